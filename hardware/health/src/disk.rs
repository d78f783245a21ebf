//! The machine's disks: which there are (`/sys/block`), and what the last capture of each says.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use units::BootInstant;

use crate::ata::{self, AtaSmart};
use crate::capture::{CAPTURE_BYTES_MAX, Capture, Page, SelfVerdict, capture_name};
use crate::nvme::NvmeSmart;
use crate::tree::{Tree, cleaned};

/// The unit in which the kernel counts a disk's size, whatever its sectors.
const SECTOR_BYTES: u64 = 512;

/// The unit in which NVMe counts what was written.
const DATA_UNIT_BYTES: u128 = 512_000;

/// Longest page of vital product data that is read.
const VPD_BYTES_MAX: u64 = 512;

/// Deepest stack of block devices (RAID on LVM on ...) that is followed.
const STACK_DEPTH_MAX: usize = 8;

/// How a disk is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// NVM Express.
    Nvme,
    /// ATA, behind a SATA port or a SAS adapter that translates.
    Ata,
    /// SCSI: SAS, USB.
    Scsi,
    /// A virtual machine's.
    Virtio,
    /// Something else.
    Other,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The kernel's name of it, as in `nvme0n1`.
    pub name: String,
    /// How it is attached.
    pub bus: Bus,
    /// The maker's name of its kind.
    pub model: Option<String>,
    /// What tells it from others of its kind.
    pub serial: Option<String>,
    /// The version of its firmware.
    pub firmware: Option<String>,
    /// Its size.
    pub size_bytes: u64,
    /// Whether it turns.
    pub rotational: bool,
}

/// What a disk warns of by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warning {
    /// Spare is below its threshold.
    Spare,
    /// It is too hot or too cold.
    Temperature,
    /// It has become unreliable, or predicts its failure.
    Failing,
    /// It takes no writes any more.
    ReadOnly,
    /// What keeps its volatile memory through a power cut has failed.
    Backup,
    /// Its persistent memory region is unreliable or read-only.
    PersistentMemory,
}

/// The bits of NVMe's critical warning, from the lowest.
const NVME_WARNINGS: [Warning; 6] = [
    Warning::Spare,
    Warning::Temperature,
    Warning::Failing,
    Warning::ReadOnly,
    Warning::Backup,
    Warning::PersistentMemory,
];

/// What a disk says of itself, whatever it speaks. Nothing where it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskHealth {
    /// Its temperature in degrees Celsius.
    pub celsius: Option<i64>,
    /// Endurance used, in percent; may pass 100.
    pub used_percent: Option<u8>,
    /// Spare left, in percent.
    pub spare_percent: Option<u8>,
    /// Below this the disk warns.
    pub spare_threshold_percent: Option<u8>,
    /// Data that could not be given back as written.
    pub media_errors: Option<u64>,
    /// Sectors that were replaced by others.
    pub reallocated_sectors: Option<u64>,
    /// Sectors that cannot be read and wait for a write.
    pub pending_sectors: Option<u64>,
    /// Hours it was on.
    pub power_on_hours: Option<u64>,
    /// Times it was switched on.
    pub power_cycles: Option<u64>,
    /// Times its power went without a word.
    pub unsafe_shutdowns: Option<u64>,
    /// Bytes written.
    pub written_bytes: Option<u64>,
    /// What it warns of.
    pub warnings: BTreeSet<Warning>,
}

/// What is known of a disk's health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum DiskState {
    /// Nobody has asked it, or it cannot be asked.
    NotAsked,
    /// It answered.
    Read {
        /// When it was asked.
        asked_boot_ns: BootInstant,
        /// What it said.
        health: DiskHealth,
    },
    /// What it answered makes no sense.
    Unreadable {
        /// Why.
        why: String,
    },
}

/// The machine's disks, by name. What is made of them (RAID, volumes, partitions) is none.
pub fn disks(sys: &Tree) -> Vec<Disk> {
    let names = sys.names("block").into_iter();
    names.filter_map(|name| disk(sys, name)).collect()
}

fn disk(sys: &Tree, name: String) -> Option<Disk> {
    let block = format!("block/{name}");
    let device = format!("{block}/device");
    // One path of several to the same namespace says that it is hidden.
    if !sys.exists(&device) || sys.text(&format!("{block}/hidden")).as_deref() == Some("1") {
        return None;
    }
    let attribute = |attribute: &str| sys.text(&format!("{device}/{attribute}"));
    let bus = match (name.as_str(), attribute("vendor").as_deref()) {
        (name, _) if name.starts_with("nvme") => Bus::Nvme,
        (name, _) if name.starts_with("vd") => Bus::Virtio,
        (name, Some("ATA")) if name.starts_with("sd") => Bus::Ata,
        (name, _) if name.starts_with("sd") => Bus::Scsi,
        _ => Bus::Other,
    };
    let sectors: u64 = sys.number(&format!("{block}/size")).unwrap_or(0);
    Some(Disk {
        bus,
        model: attribute("model"),
        serial: attribute("serial")
            .or_else(|| scsi_serial(sys, &device))
            .or_else(|| sys.text(&format!("{block}/serial"))),
        firmware: attribute("firmware_rev").or_else(|| attribute("rev")),
        size_bytes: sectors.saturating_mul(SECTOR_BYTES),
        rotational: sys.text(&format!("{block}/queue/rotational")).as_deref() == Some("1"),
        name,
    })
}

/// The page of vital product data with the unit's serial number (SPC-5, 80h): two bytes, two of its length, then the text.
fn scsi_serial(sys: &Tree, device: &str) -> Option<String> {
    let page = sys.bytes(&format!("{device}/vpd_pg80"), VPD_BYTES_MAX)?;
    let len = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
    let text = page.get(4..)?;
    cleaned(text.get(..len).unwrap_or(text))
}

impl Disk {
    /// What the last capture in `captures` says of it.
    pub fn state(&self, captures: &Tree) -> DiskState {
        let bytes_max = u64::try_from(CAPTURE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
        let Some(bytes) = captures.bytes(&capture_name(&self.name), bytes_max) else {
            return DiskState::NotAsked;
        };
        match health(&bytes) {
            // Disks that turn use the numbers of SSDs' endurance for other things.
            Ok((asked_boot_ns, health)) if self.rotational => {
                DiskState::Read { asked_boot_ns, health: DiskHealth { used_percent: None, ..health } }
            }
            Ok((asked_boot_ns, health)) => DiskState::Read { asked_boot_ns, health },
            Err(why) => DiskState::Unreadable { why },
        }
    }
}

fn health(bytes: &[u8]) -> Result<(BootInstant, DiskHealth), String> {
    let capture = Capture::parse(bytes).map_err(|error| error.to_string())?;
    let mut health = match &capture.page {
        Page::Nvme(page) => of_nvme(&NvmeSmart::parse(&**page).map_err(|error| error.to_string())?),
        Page::Ata { data, thresholds } => {
            of_ata(&AtaSmart::parse(&**data, &**thresholds).map_err(|error| error.to_string())?)
        }
    };
    if capture.verdict == SelfVerdict::Failing {
        health.warnings.insert(Warning::Failing);
    }
    Ok((capture.taken, health))
}

fn counted(number: u128) -> Option<u64> {
    Some(u64::try_from(number).unwrap_or(u64::MAX))
}

fn of_nvme(smart: &NvmeSmart) -> DiskHealth {
    let warnings = NVME_WARNINGS.into_iter().enumerate();
    DiskHealth {
        celsius: smart.celsius,
        used_percent: Some(smart.used_percent),
        spare_percent: Some(smart.spare_percent),
        spare_threshold_percent: Some(smart.spare_threshold_percent),
        media_errors: counted(smart.media_errors),
        reallocated_sectors: None,
        pending_sectors: None,
        power_on_hours: counted(smart.power_on_hours),
        power_cycles: counted(smart.power_cycles),
        unsafe_shutdowns: counted(smart.unsafe_shutdowns),
        written_bytes: counted(smart.data_units_written.saturating_mul(DATA_UNIT_BYTES)),
        warnings: warnings
            .filter(|(bit, _)| smart.critical_warning >> bit & 1 == 1)
            .map(|(_, warning)| warning)
            .collect(),
    }
}

fn of_ata(smart: &AtaSmart) -> DiskHealth {
    let failing = smart.failing().next().map(|_| Warning::Failing);
    DiskHealth {
        celsius: smart.celsius(),
        used_percent: smart.used_percent(),
        media_errors: smart.counter(ata::number::UNCORRECTABLE),
        reallocated_sectors: smart.counter(ata::number::REALLOCATED),
        pending_sectors: smart.counter(ata::number::PENDING),
        power_on_hours: smart.counter(ata::number::POWER_ON_HOURS),
        power_cycles: smart.counter(ata::number::POWER_CYCLES),
        warnings: failing.into_iter().collect(),
        ..DiskHealth::default()
    }
}

/// The disks that a block device with this number is made of: itself, the disk of a partition, or what RAID and volume
/// managers put it on.
pub fn disks_below(sys: &Tree, major: u64, minor: u64) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if let Some(path) = sys.real(&format!("dev/block/{major}:{minor}")) {
        follow(path, STACK_DEPTH_MAX, &mut found);
    }
    found
}

fn follow(path: PathBuf, depth: usize, found: &mut BTreeSet<String>) {
    // A partition is a directory in its disk's.
    let disk = if path.join("partition").exists() { path.parent().map(PathBuf::from) } else { None };
    let disk = disk.unwrap_or(path);
    let below = Tree::new(&disk);
    let slaves = below.names("slaves");
    if slaves.is_empty() {
        found.extend(disk.file_name().map(|name| name.to_string_lossy().into_owned()));
    } else if depth > 0 {
        let below = slaves.iter().filter_map(|slave| below.real(&format!("slaves/{slave}")));
        below.for_each(|path| follow(path, depth - 1, found));
    }
}
