//! A machine that boots as a server does: firmware, a disk or the network, and nothing that the test puts into its memory.
//!
//! Its console is the serial port, and becomes the log. There is no way in but its network: an image has no shell.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use harness::process::{Process, wait_for};
use serde_json::json;
use tempfile::TempDir;

use crate::kernel::tools;
use crate::machine::qemu;
use crate::qmp::Qmp;

/// Firmware and image under emulation, on a machine that is busy.
const BOOT_PATIENCE: Duration = Duration::from_secs(240);

/// Whose certificates the firmware starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// None: whatever is on the disk is started.
    Open,
    /// None of UEFI's: a machine of the old kind, with iPXE in its network card.
    Bios,
    /// Secure Boot, with the example keys that come with the firmware's package.
    SecureBoot,
}

impl Firmware {
    /// Puts it into a machine, with variables of its own in `folder`.
    fn add_to(self, command: &mut Command, folder: &Path) {
        let (machine, code, variables) = match self {
            Self::Bios => {
                command.args(["-machine", "pc,graphics=off"]);
                return;
            }
            Self::Open => ("q35", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
            Self::SecureBoot => ("q35,smm=on", "OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.snakeoil.fd"),
        };
        command.args(["-machine", machine]);
        if self == Self::SecureBoot {
            // Its variables are written in system management mode alone.
            command.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]);
        }
        let firmware = tools().join("usr/share/OVMF");
        let own = folder.join("variables");
        std::fs::copy(firmware.join(variables), &own)
            .unwrap_or_else(|error| panic!("{}: {error}: run `make clients`", firmware.display()));
        let flash = |unit: u8, file: &Path, read_only: &str| {
            format!("if=pflash,format=raw,unit={unit},readonly={read_only},file={}", file.display())
        };
        command.arg("-drive").arg(flash(0, &firmware.join(code), "on"));
        command.arg("-drive").arg(flash(1, &own, "off"));
    }
}

/// The example key that [`Firmware::SecureBoot`] believes, and its certificate.
pub fn example_secure_boot_key() -> [PathBuf; 2] {
    ["PkKek-1-snakeoil.key", "PkKek-1-snakeoil.pem"].map(|name| tools().join("usr/share/ovmf").join(name))
}

/// A machine before its boot.
#[derive(Debug)]
pub struct ApplianceBuilder {
    firmware: Firmware,
    arguments: Vec<String>,
    forwards: Vec<u16>,
    /// QEMU's option for where machines on the guest's network boot from.
    network_boot: String,
    keep_after_end: bool,
}

/// A running machine. Ends with the value.
#[derive(Debug)]
pub struct Appliance {
    process: Process,
    qmp: Qmp,
    folder: TempDir,
    started: Instant,
}

impl ApplianceBuilder {
    /// Which certificates it has.
    #[must_use]
    pub fn firmware(mut self, firmware: Firmware) -> Self {
        self.firmware = firmware;
        self
    }

    /// A disk with a serial number; the first is what it boots from.
    #[must_use]
    pub fn disk(mut self, file: &Path, serial: &str) -> Self {
        let number = self.arguments.iter().filter(|argument| *argument == "-drive").count();
        let drive = format!("file={},format=raw,if=none,id=disk{number},cache=writeback", file.display());
        let device = format!("virtio-blk-pci,drive=disk{number},serial={serial},bootindex={number}");
        self.arguments.extend(["-drive".to_owned(), drive, "-device".to_owned(), device]);
        self
    }

    /// Lets this machine's loopback reach a TCP port of the guest under the same number.
    #[must_use]
    pub fn forward(mut self, port: u16) -> Self {
        self.forwards.push(port);
        self
    }

    /// An argument for QEMU.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Where the firmware's network boot finds its file: an option of QEMU's user network.
    #[must_use]
    pub fn network_boot(mut self, option: &str) -> Self {
        self.network_boot = format!(",{option}");
        self
    }

    /// Keeps the machine, stopped, when the guest has powered it off: its memory can still be looked at.
    #[must_use]
    pub fn keep_after_end(mut self) -> Self {
        self.keep_after_end = true;
        self
    }

    /// Switches it on.
    ///
    /// # Panics
    /// Where QEMU or its firmware is missing.
    pub fn start(self) -> Appliance {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut network = format!("user,id=network{}", self.network_boot);
        for port in &self.forwards {
            network.push_str(&format!(",hostfwd=tcp:127.0.0.1:{port}-:{port}"));
        }
        let qmp = folder.path().join("qmp");
        let mut command = qemu();
        self.firmware.add_to(&mut command, folder.path());
        command.args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "768M", "-nodefaults"]);
        command.args(["-display", "none", "-no-reboot", "-rtc", "base=utc,clock=host", "-serial", "stdio"]);
        command.arg("-chardev").arg(format!("socket,id=qmp,path={},server=on,wait=off", qmp.display()));
        command.args(["-qmp", "chardev:qmp", "-device", "virtio-rng-pci"]);
        command.arg("-netdev").arg(network);
        // UEFI brings a driver of its own; the card's would hang it.
        command.arg("-device").arg(match self.firmware {
            Firmware::Bios => {
                let rom = tools().join("usr/lib/ipxe/qemu/pxe-e1000.rom");
                format!("e1000,netdev=network,bootindex=9,romfile={}", rom.display())
            }
            _ => "virtio-net-pci,netdev=network,romfile=".to_owned(),
        });
        if self.keep_after_end {
            command.arg("-no-shutdown");
        }
        command.args(&self.arguments);
        let mut process = Process::start("the appliance", command);
        let qmp = wait_for("the machine's control", BOOT_PATIENCE, || {
            assert!(process.try_wait().is_none(), "the machine ended\n{}", process.tail());
            Qmp::connect(&qmp).map_err(|error| error.to_string())
        });
        Appliance { process, qmp, folder, started: Instant::now() }
    }
}

impl Appliance {
    /// A machine to be.
    pub fn builder() -> ApplianceBuilder {
        ApplianceBuilder {
            firmware: Firmware::Open,
            arguments: Vec::new(),
            forwards: Vec::new(),
            network_boot: String::new(),
            keep_after_end: false,
        }
    }

    /// Waits until the console shows `text`; says how long that took since the machine was switched on.
    ///
    /// # Panics
    /// Where it does not, or the machine ends before.
    pub fn wait_console(&mut self, text: &str) -> Duration {
        let (process, started) = (&mut self.process, self.started);
        wait_for(&format!("`{text}` on the console"), BOOT_PATIENCE, || {
            if process.log().iter().any(|line| line.contains(text)) {
                return Ok(started.elapsed());
            }
            assert!(process.try_wait().is_none(), "the machine ended\n{}", process.tail());
            Err(process.tail())
        })
    }

    /// How long ago it was switched on.
    pub fn since_start(&self) -> Duration {
        self.started.elapsed()
    }

    /// What the console has shown.
    pub fn console(&self) -> String {
        self.process.log().join("\n")
    }

    /// Presses the power button.
    ///
    /// # Panics
    /// Where the machine has ended.
    pub fn press_power_button(&mut self) {
        self.qmp.execute("system_powerdown", &json!({}));
    }

    /// Waits until the machine has switched itself off.
    ///
    /// # Panics
    /// Where it does not.
    pub fn wait_end(&mut self) -> ExitStatus {
        self.process.wait_end(BOOT_PATIENCE)
    }

    /// Pulls the plug: the machine ends between two instructions.
    pub fn cut_power(mut self) {
        self.process.kill();
    }

    /// Everything in the machine's memory, as its owner sees it: a file that goes with this value.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn dump_memory(&mut self, name: &str) -> PathBuf {
        let file = self.folder.path().join(name);
        let arguments = json!({ "paging": false, "protocol": format!("file:{}", file.display()) });
        self.qmp.execute("dump-guest-memory", &arguments);
        file
    }

    /// Whether the guest has powered the machine off, which is kept.
    pub fn is_switched_off(&mut self) -> bool {
        self.qmp.execute("query-status", &json!({}))["status"] == "shutdown"
    }
}
