//! A recorded machine: two disks, RAID over one, sensors, memory with an error, two interfaces, an enclosure.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use health::{Roots, Tree};

/// The files of the machine below `sys`.
const FILES: &[(&str, &str)] = &[
    ("devices/pci0/0000:01:00.0/nvme/nvme0/model", "Example 9000                            \n"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/serial", "NV123   \n"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/firmware_rev", "1.2\n"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/nvme0n1/size", "2000409264\n"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/nvme0n1/queue/rotational", "0\n"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/nvme0n1/nvme0n1p1/partition", "1\n"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/nvme0c0n1/hidden", "1\n"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/hwmon0/name", "nvme\n"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/hwmon0/temp1_input", "41850\n"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/hwmon0/temp1_label", "Composite\n"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/hwmon0/temp1_max", "65261850\n"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/hwmon0/temp1_crit", "84850\n"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/hwmon0/temp1_alarm", "0\n"),
    ("devices/pci0/0000:02:00.0/ata3/host2/target/2:0:0:0/vendor", "ATA     \n"),
    ("devices/pci0/0000:02:00.0/ata3/host2/target/2:0:0:0/model", "SPINNER 4T\n"),
    ("devices/pci0/0000:02:00.0/ata3/host2/target/2:0:0:0/rev", "AB1\n"),
    ("devices/pci0/0000:02:00.0/ata3/host2/target/2:0:0:0/vpd_pg80", "\0\u{80}"),
    ("devices/pci0/0000:02:00.0/ata3/host2/target/2:0:0:0/block/sda/size", "7814037168\n"),
    ("devices/pci0/0000:02:00.0/ata3/host2/target/2:0:0:0/block/sda/queue/rotational", "1\n"),
    ("devices/virtual/block/md0/size", "100\n"),
    ("devices/platform/isa/hwmon/hwmon1/name", "nct6798\n"),
    ("devices/platform/isa/hwmon/hwmon1/temp1_input", "71000\n"),
    ("devices/platform/isa/hwmon/hwmon1/temp1_label", "SYSTIN\n"),
    ("devices/platform/isa/hwmon/hwmon1/temp1_max", "70000\n"),
    ("devices/platform/isa/hwmon/hwmon1/temp2_input", "-128000\n"),
    ("devices/platform/isa/hwmon/hwmon1/temp10_input", "30000\n"),
    ("devices/platform/isa/hwmon/hwmon1/in0_input", "1000\n"),
    ("devices/system/edac/mc/mc0/mc_name", "F19h\n"),
    ("devices/system/edac/mc/mc0/ce_count", "7\n"),
    ("devices/system/edac/mc/mc0/ue_count", "1\n"),
    ("devices/system/edac/mc/mc0/dimm1/dimm_label", "P0_DIMM_A1\n"),
    ("devices/system/edac/mc/mc0/dimm1/dimm_location", "channel 0 slot 1\n"),
    ("devices/system/edac/mc/mc0/dimm1/dimm_mem_type", "Registered-DDR5\n"),
    ("devices/system/edac/mc/mc0/dimm1/size", "32768\n"),
    ("devices/system/edac/mc/mc0/dimm1/dimm_ce_count", "7\n"),
    ("devices/system/edac/mc/mc0/dimm1/dimm_ue_count", "1\n"),
    ("class/net/lo/operstate", "unknown\n"),
    ("class/net/bonding_masters", "bond0\n"),
    ("class/net/eth0/operstate", "up\n"),
    ("class/net/eth0/carrier", "1\n"),
    ("class/net/eth0/speed", "25000\n"),
    ("class/net/eth0/duplex", "full\n"),
    ("class/net/eth0/address", "02:00:00:00:00:01\n"),
    ("class/net/eth0/carrier_changes", "3\n"),
    ("class/net/eth0/statistics/rx_errors", "4\n"),
    ("class/net/eth0/device/vendor", "0x8086\n"),
    ("class/net/eth1/operstate", "down\n"),
    ("class/net/eth1/speed", "-1\n"),
    ("class/net/eth1/device/vendor", "0x8086\n"),
    ("class/enclosure/5:0:0:0/Slot 01/locate", "0\n"),
    ("class/enclosure/5:0:0:0/Slot 02/locate", "0\n"),
    ("class/enclosure/5:0:0:0/components", "2\n"),
    ("class/leds/0000:01:00.0:enclosure:locate/brightness", "0\n"),
    ("class/leds/0000:01:00.0:enclosure:locate/max_brightness", "255\n"),
    ("class/leds/tray:locate/brightness", "0\n"),
    ("class/leds/tray:locate/max_brightness", "3\n"),
    ("class/dmi/id/sys_vendor", "Example\n"),
    ("class/dmi/id/product_name", "Box 1\n"),
    ("class/dmi/id/board_name", "X1\n"),
    ("class/dmi/id/bios_version", "3.4\n"),
];

/// Its links: where, and what to, below `sys`.
const LINKS: &[(&str, &str)] = &[
    ("block/nvme0n1", "devices/pci0/0000:01:00.0/nvme/nvme0/nvme0n1"),
    ("block/nvme0c0n1", "devices/pci0/0000:01:00.0/nvme/nvme0/nvme0c0n1"),
    ("block/sda", "devices/pci0/0000:02:00.0/ata3/host2/target/2:0:0:0/block/sda"),
    ("block/md0", "devices/virtual/block/md0"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/nvme0n1/device", "devices/pci0/0000:01:00.0/nvme/nvme0"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/nvme0c0n1/device", "devices/pci0/0000:01:00.0/nvme/nvme0"),
    ("devices/pci0/0000:01:00.0/nvme/nvme0/hwmon0/device", "devices/pci0/0000:01:00.0/nvme/nvme0"),
    (
        "devices/pci0/0000:02:00.0/ata3/host2/target/2:0:0:0/block/sda/device",
        "devices/pci0/0000:02:00.0/ata3/host2/target/2:0:0:0",
    ),
    ("devices/virtual/block/md0/slaves/sda", "devices/pci0/0000:02:00.0/ata3/host2/target/2:0:0:0/block/sda"),
    ("devices/virtual/block/md0/slaves/nvme0n1p1", "devices/pci0/0000:01:00.0/nvme/nvme0/nvme0n1/nvme0n1p1"),
    ("dev/block/9:0", "devices/virtual/block/md0"),
    ("dev/block/259:1", "devices/pci0/0000:01:00.0/nvme/nvme0/nvme0n1/nvme0n1p1"),
    ("dev/block/8:0", "devices/pci0/0000:02:00.0/ata3/host2/target/2:0:0:0/block/sda"),
    ("class/hwmon/hwmon0", "devices/pci0/0000:01:00.0/nvme/nvme0/hwmon0"),
    ("class/hwmon/hwmon1", "devices/platform/isa/hwmon/hwmon1"),
    ("class/enclosure/5:0:0:0/Slot 02/device", "devices/pci0/0000:02:00.0/ata3/host2/target/2:0:0:0"),
];

const PROC: &[(&str, &str)] = &[
    ("cpuinfo", "processor\t: 0\nmodel name\t: Example CPU\n\nprocessor\t: 1\nmodel name\t: Example CPU\n"),
    ("meminfo", "MemTotal:       65536 kB\nMemFree:        100 kB\n"),
];

/// A copy of the machine of its own.
pub(crate) struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        FILES.iter().for_each(|(path, text)| machine.write(path, text.as_bytes()));
        machine
            .write("devices/pci0/0000:02:00.0/ata3/host2/target/2:0:0:0/vpd_pg80", b"\0\x80\0\x08  SP-1  ");
        for (link, target) in LINKS {
            let link = machine.sys().join(link);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(machine.sys().join(target), link).unwrap();
        }
        for (path, text) in PROC {
            let path = machine.root().join("proc").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::create_dir(machine.captures()).unwrap();
        for name in ["nvme0n1.smart", "sda.smart"] {
            fs::copy(golden().join(name), machine.captures().join(name)).unwrap();
        }
        machine
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn sys(&self) -> PathBuf {
        self.root().join("sys")
    }

    pub(crate) fn captures(&self) -> PathBuf {
        self.root().join("captures")
    }

    pub(crate) fn roots(&self) -> Roots {
        Roots::new(self.root(), &self.captures())
    }

    pub(crate) fn tree(&self) -> Tree {
        self.roots().sys
    }

    /// Replaces a file below `sys`.
    pub(crate) fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.sys().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Every file of it.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let below_sys = FILES.iter().map(|(path, _)| self.sys().join(path));
        let proc = PROC.iter().map(|(path, _)| self.root().join("proc").join(path));
        let captures = ["nvme0n1.smart", "sda.smart"].map(|name| self.captures().join(name));
        below_sys.chain(proc).chain(captures).collect()
    }
}

/// Where golden captures are.
pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}
