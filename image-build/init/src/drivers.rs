//! Kernel modules: those that are loaded always, and those that a device of this machine asks for.
//!
//! The image's build has written down what each needs and which devices each is for (`image-build/src/modules.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::console::say;
use crate::failure::Failure;

const FOLDER: &str = "/usr/lib/modules";

/// `MODULE_INIT_COMPRESSED_FILE` (include/uapi/linux/module.h).
const COMPRESSED: u32 = 4;

/// Devices of a bus that is slow to look around, and what hangs on them, have shown themselves by then.
const SETTLE_MAX: Duration = Duration::from_secs(15);
/// Nothing new for so long is settled.
const SETTLED: Duration = Duration::from_millis(600);
const TURN: Duration = Duration::from_millis(100);

/// The modules of this file system.
#[derive(Debug, Default)]
pub(crate) struct Drivers {
    order: BTreeMap<String, Vec<String>>,
    always: Vec<String>,
    aliases: Vec<(String, String)>,
    loaded: BTreeSet<String>,
    seen: BTreeSet<String>,
}

impl Drivers {
    /// Reads what the build has written down.
    pub(crate) fn read() -> Result<Self, Failure> {
        let text = |name: &str| {
            let path = Path::new(FOLDER).join(name);
            fs::read_to_string(&path).map_err(Failure::system(format!("read {}", path.display())))
        };
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let order = text("order")?;
        let order = order.lines().filter_map(|line| line.split_once(':'));
        let aliases = text("aliases")?;
        let aliases = aliases.lines().filter_map(|line| line.split_once(' '));
        Ok(Self {
            order: order.map(|(name, before)| (name.to_owned(), words(before))).collect(),
            always: words(&text("start")?),
            aliases: aliases.map(|(pattern, name)| (pattern.to_owned(), name.to_owned())).collect(),
            ..Self::default()
        })
    }

    /// Loads what is loaded in any case.
    pub(crate) fn load_always(&mut self) -> Result<(), Failure> {
        for name in self.always.clone() {
            match self.load(&name) {
                // The processor has no such instructions, or the machine no such device.
                Err(Errno::ENODEV) | Ok(()) => {}
                Err(errno) => return Err(Failure::system(format!("load the kernel module {name}"))(errno)),
            }
        }
        Ok(())
    }

    fn load(&mut self, name: &str) -> Result<(), Errno> {
        for module in self.order.get(name).cloned().unwrap_or_default().iter().chain([&name.to_owned()]) {
            if self.loaded.contains(module) {
                continue;
            }
            let path = Path::new(FOLDER).join(format!("{module}.ko.xz"));
            let file =
                File::open(path).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
            let compressed = ModuleInitFlags::from_bits_retain(COMPRESSED);
            match finit_module(&file, c"", compressed) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
            self.loaded.insert(module.clone());
        }
        Ok(())
    }

    /// Loads what the devices of this machine ask for now; says whether any was new.
    pub(crate) fn look_around(&mut self) -> bool {
        let mut asked = BTreeSet::new();
        collect(Path::new("/sys/devices"), &mut asked);
        let new: Vec<String> = asked.into_iter().filter(|device| self.seen.insert(device.clone())).collect();
        let mut any = false;
        for device in new {
            let wanted: BTreeSet<String> = self
                .aliases
                .iter()
                .filter(|(pattern, name)| {
                    !self.loaded.contains(name) && matches(pattern.as_bytes(), device.as_bytes())
                })
                .map(|(_, name)| name.clone())
                .collect();
            for name in wanted {
                any = true;
                if let Err(errno) = self.load(&name) {
                    say(&format!("the driver {name} does not load: {errno}"));
                }
            }
        }
        any
    }

    /// Looks around until no new device appears.
    pub(crate) fn settle(&mut self) {
        let begun = Instant::now();
        let mut last_new = begun;
        while begun.elapsed() < SETTLE_MAX && last_new.elapsed() < SETTLED {
            if self.look_around() {
                last_new = Instant::now();
            }
            std::thread::sleep(TURN);
        }
    }
}

/// Every device's own description, below a folder of sysfs.
fn collect(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // Links lead to other places of the same tree.
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder {
            collect(&entry.path(), found);
        } else if entry.file_name() == "modalias"
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            found.insert(text.trim().to_owned());
        }
    }
}

/// Whether a shell's pattern (`*`, `?`, `[…]`) is this text, as modprobe compares them.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.first() {
        None => text.is_empty(),
        Some(b'*') => (0..=text.len()).any(|skipped| matches(&pattern[1..], &text[skipped..])),
        Some(b'?') => !text.is_empty() && matches(&pattern[1..], &text[1..]),
        Some(b'[') => {
            let Some(end) = pattern.iter().position(|byte| *byte == b']') else { return false };
            let (set, rest) = (&pattern[1..end], &pattern[end + 1..]);
            text.first().is_some_and(|letter| in_set(set, *letter)) && matches(rest, &text[1..])
        }
        Some(letter) => text.first() == Some(letter) && matches(&pattern[1..], &text[1..]),
    }
}

fn in_set(set: &[u8], letter: u8) -> bool {
    match set {
        [first, b'-', last, rest @ ..] => (first..=last).contains(&&letter) || in_set(rest, letter),
        [one, rest @ ..] => *one == letter || in_set(rest, letter),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_modprobe_has_them() {
        let device = "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00";
        for (pattern, expected) in [
            ("pci:v00001AF4d00001041sv*sd*bc*sc*i*", true),
            ("pci:v*d*sv*sd*bc02sc00i*", true),
            ("pci:v00001AF4d0000104[0-3]sv*", true),
            ("pci:v00001AF4d0000104[2-9]sv*", false),
            ("pci:v00001AF4d0000104?sv*", true),
            ("pci:v00001AF4", false),
            ("virtio:*", false),
            ("pci:[", false),
            ("", false),
            ("*", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), device.as_bytes()), expected, "{pattern}");
        }
    }
}
