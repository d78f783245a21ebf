//! Devices by the names that people and configurations give them. There is no udev: what it would link is linked here.

use std::fs;
use std::path::{Path, PathBuf};

/// The user that the node runs as.
pub(crate) const NODE_USER: u32 = 990;

const BY_ID: &str = "/dev/disk/by-id";

/// What the kernel says about a block device in its `uevent` file.
fn property(device: &Path, key: &str) -> Option<String> {
    let text = fs::read_to_string(device.join("uevent")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
}

fn block_devices() -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten();
    let mut devices: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    devices.sort();
    devices
}

fn node_of(device: &Path) -> Option<PathBuf> {
    property(device, "DEVNAME").map(|name| Path::new("/dev").join(name))
}

/// The device of the partition with this name.
pub(crate) fn partition(name: &str) -> Option<PathBuf> {
    let devices = block_devices();
    let found = devices.iter().find(|device| property(device, "PARTNAME").as_deref() == Some(name))?;
    node_of(found)
}

/// What udev makes of a model or serial number: blanks at the ends gone, others joined to one underscore.
fn tidy(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let joined = words.join("_");
    joined
        .chars()
        .map(|letter| if letter.is_ascii_graphic() && letter != '/' { letter } else { '_' })
        .collect()
}

/// The identifiers of a whole disk, as udev forms them.
fn identifiers(device: &Path) -> Vec<String> {
    let text = |file: &str| fs::read_to_string(device.join(file)).ok().map(|text| tidy(&text));
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut identifiers = Vec::new();
    if name.starts_with("vd") {
        identifiers.extend(filled(text("serial")).map(|serial| format!("virtio-{serial}")));
    }
    if name.starts_with("nvme") {
        if let (Some(model), Some(serial)) = (filled(text("device/model")), filled(text("device/serial"))) {
            identifiers.push(format!("nvme-{model}_{serial}"));
        }
        identifiers.extend(filled(text("wwid")).map(|wwid| format!("nvme-{wwid}")));
    }
    if let Some(wwid) = filled(text("device/wwid")) {
        identifiers.extend(wwid.strip_prefix("naa.").map(|number| format!("wwn-0x{number}")));
    }
    identifiers
}

/// Links every disk, and its partitions, under its identifiers.
pub(crate) fn name_disks() {
    let _ = fs::create_dir_all(BY_ID);
    for device in block_devices() {
        let Some(node) = node_of(&device) else { continue };
        let number = property(&device, "PARTN");
        // A partition's folder lies in its disk's.
        let disk = fs::canonicalize(&device).unwrap_or_else(|_| device.clone());
        let disk = if number.is_some() { disk.parent().map(Path::to_owned).unwrap_or(disk) } else { disk };
        for identifier in identifiers(&disk) {
            let name = match &number {
                Some(number) => format!("{identifier}-part{number}"),
                None => identifier,
            };
            let link = Path::new(BY_ID).join(name);
            if fs::symlink_metadata(&link).is_err() {
                let _ = std::os::unix::fs::symlink(&node, link);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_as_udev_has_them() {
        for (text, tidied) in [
            ("  Samsung SSD 980 PRO 1TB   \n", "Samsung_SSD_980_PRO_1TB"),
            ("S5GXNX0T123456\n", "S5GXNX0T123456"),
            ("a/b\u{e9}", "a_b_"),
            ("", ""),
        ] {
            assert_eq!(tidy(text), tidied);
        }
    }
}
