//! A recorded machine for a node to watch: two disks that say how they fare, a sensor, memory, a network card and a slot with a
//! light. Nothing of the machine that runs the tests has a part in what they find.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::HealthConfig;
use health::{ATA_PAGE_BYTES, Capture, NVME_PAGE_BYTES, Page, SelfVerdict, capture_name};
use nix::sys::stat::{major, minor};
use nix::time::{ClockId, clock_gettime};
use units::BootInstant;

/// The name of the disk that tests change.
pub const RECORDED_DISK: &str = "nvme0n1";

/// The network card's name.
pub const RECORDED_CARD: &str = "eth0";

/// The name of another, of the kind that turns.
const OTHER_DISK: &str = "sda";

/// How often a node looks at it.
const INTERVAL: Duration = Duration::from_millis(200);

const DISK: &str = "devices/pci0/0000:01:00.0/nvme/nvme0";
const OTHER: &str = "devices/pci0/0000:02:00.0/ata1/host0/target0/0:0:0:0";
const CONTROLLER: &str = "devices/system/edac/mc/mc0";
const CARD: &str = "class/net/eth0";

/// Its files below a folder.
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
}

/// What the disk says of itself; the places of a page of NVMe's SMART log that tests change.
#[derive(Clone, Copy, Debug)]
pub struct DiskSays {
    /// The bits of what is critical.
    pub critical_warning: u8,
    /// Endurance used, in percent.
    pub used_percent: u8,
    /// Data that could not be given back.
    pub media_errors: u32,
}

impl DiskSays {
    /// That it is well.
    pub const WELL: Self = Self { critical_warning: 0, used_percent: 3, media_errors: 0 };
}

impl Machine {
    /// Records a machine of which all parts are well, below `dir`.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn record(dir: &Path) -> Self {
        let machine = Self::at(dir);
        let files = [
            (format!("{DISK}/model"), "Recorded 1T"),
            (format!("{DISK}/serial"), "R1"),
            (format!("{DISK}/firmware_rev"), "1.0"),
            (format!("{DISK}/{RECORDED_DISK}/size"), "2000409264"),
            (format!("{OTHER}/vendor"), "ATA"),
            (format!("{OTHER}/block/{OTHER_DISK}/size"), "7814037168"),
            (format!("{OTHER}/block/{OTHER_DISK}/queue/rotational"), "1"),
            (format!("{DISK}/hwmon0/name"), "nvme"),
            (format!("{DISK}/hwmon0/temp1_input"), "38850"),
            (format!("{DISK}/hwmon0/temp1_label"), "Composite"),
            (format!("{DISK}/hwmon0/temp1_crit"), "84850"),
            (format!("{CONTROLLER}/ce_count"), "0"),
            (format!("{CONTROLLER}/ue_count"), "0"),
            (format!("{CONTROLLER}/dimm0/dimm_label"), "A1"),
            (format!("{CONTROLLER}/dimm0/size"), "16384"),
            (format!("{CARD}/operstate"), "up"),
            (format!("{CARD}/carrier"), "1"),
            (format!("{CARD}/device/vendor"), "0x8086"),
            ("class/enclosure/0:0:0:0/Slot 1/locate".to_owned(), "0"),
            ("class/dmi/id/product_name".to_owned(), "Recorded"),
        ];
        files.iter().for_each(|(path, text)| machine.write(path, text));
        let links = [
            (format!("block/{RECORDED_DISK}"), format!("{DISK}/{RECORDED_DISK}")),
            (format!("{DISK}/{RECORDED_DISK}/device"), DISK.to_owned()),
            (format!("block/{OTHER_DISK}"), format!("{OTHER}/block/{OTHER_DISK}")),
            (format!("{OTHER}/block/{OTHER_DISK}/device"), OTHER.to_owned()),
            (format!("{DISK}/hwmon0/device"), DISK.to_owned()),
            ("class/hwmon/hwmon0".to_owned(), format!("{DISK}/hwmon0")),
            ("class/enclosure/0:0:0:0/Slot 1/device".to_owned(), DISK.to_owned()),
        ];
        for (link, target) in links {
            let link = machine.sys(&link);
            fs::create_dir_all(link.parent().expect("a folder")).expect("a recorded tree");
            symlink(machine.sys(&target), link).expect("a recorded tree");
        }
        let proc = machine.root.join("proc");
        fs::create_dir_all(&proc).expect("a recorded tree");
        fs::write(proc.join("cpuinfo"), "processor\t: 0\nmodel name\t: Recorded CPU\n")
            .expect("a recorded tree");
        fs::write(proc.join("meminfo"), "MemTotal:  1048576 kB\n").expect("a recorded tree");
        fs::create_dir_all(machine.captures()).expect("a recorded tree");
        machine.disk_says(DiskSays::WELL);
        machine.other_disk_is_well();
        machine
    }

    /// The machine that was recorded below `dir`.
    pub fn at(dir: &Path) -> Self {
        Self { root: dir.join("machine") }
    }

    fn sys(&self, path: &str) -> PathBuf {
        self.root.join("sys").join(path)
    }

    fn captures(&self) -> PathBuf {
        self.root.join("captures")
    }

    /// Replaces a file below `sys`, whole.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.sys(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a recorded tree");
        // Whoever reads meanwhile sees the one or the other.
        let new = path.with_extension("new");
        fs::write(&new, format!("{text}\n")).and_then(|()| fs::rename(&new, &path)).expect("a recorded tree");
    }

    /// Whether the light of the disk's slot is on.
    ///
    /// # Panics
    /// Where it cannot be read.
    pub fn is_lit(&self) -> bool {
        fs::read_to_string(self.sys("class/enclosure/0:0:0:0/Slot 1/locate"))
            .expect("a light")
            .starts_with('1')
    }

    /// Takes the card's link away, or gives it back.
    pub fn link(&self, up: bool) {
        self.write(&format!("{CARD}/carrier"), if up { "1" } else { "0" });
    }

    /// Sets how many errors memory did not correct.
    pub fn uncorrected(&self, errors: u64) {
        self.write(&format!("{CONTROLLER}/ue_count"), &errors.to_string());
    }

    /// Sets what the disk's sensor feels.
    pub fn disk_celsius(&self, celsius: i64) {
        self.write(&format!("{DISK}/hwmon0/temp1_input"), &(celsius * 1000).to_string());
    }

    /// Makes the disk the one that the pool's file is on.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn holds(&self, pool: &Path) {
        let device = fs::metadata(pool).expect("the pool's file").st_dev();
        let link = self.sys(&format!("dev/block/{}:{}", major(device), minor(device)));
        fs::create_dir_all(link.parent().expect("a folder")).expect("a recorded tree");
        symlink(self.sys(&format!("{DISK}/{RECORDED_DISK}")), link).expect("a recorded tree");
    }

    fn leave(&self, disk: &str, page: Page, verdict: SelfVerdict) {
        let taken = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the boot's clock");
        let taken =
            BootInstant(u64::try_from(taken.tv_sec()).expect("a time after the boot") * 1_000_000_000);
        let path = self.captures().join(capture_name(disk));
        let new = path.with_extension("new");
        let capture = Capture { taken, verdict, page };
        fs::write(&new, capture.encode()).and_then(|()| fs::rename(&new, &path)).expect("a recorded tree");
    }

    /// Sectors: none reallocated, none pending, and none that could not be read.
    fn other_disk_is_well(&self) {
        let mut data = Box::new([0; ATA_PAGE_BYTES]);
        for (place, number) in [5, 187, 197].into_iter().enumerate() {
            let attribute = 2 + 12 * place;
            [data[attribute], data[attribute + 3], data[attribute + 4]] = [number, 100, 100];
        }
        data[511] = data.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
        let page = Page::Ata { data, thresholds: Box::new([0; ATA_PAGE_BYTES]) };
        self.leave(OTHER_DISK, page, SelfVerdict::Passed);
    }

    /// What the disk answers when it is asked, just now.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn disk_says(&self, says: DiskSays) {
        let mut page = Box::new([0; NVME_PAGE_BYTES]);
        page[0] = says.critical_warning;
        page[1..3].copy_from_slice(&(273_u16 + 38).to_le_bytes());
        [page[3], page[4], page[5]] = [100, 10, says.used_percent];
        page[160..164].copy_from_slice(&says.media_errors.to_le_bytes());
        self.leave(RECORDED_DISK, Page::Nvme(page), SelfVerdict::Unknown);
    }

    /// A node's configuration to watch it.
    pub fn config(&self) -> HealthConfig {
        HealthConfig {
            root: self.root.clone(),
            captures: self.captures(),
            interval_ms: u64::try_from(INTERVAL.as_millis()).expect("a short time"),
            ..HealthConfig::default()
        }
    }
}
