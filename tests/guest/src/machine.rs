//! The machine: what it is made of, its boot, its control.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::client::{client, run};
use harness::process::{Process, wait_for};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::archive::Archive;
use crate::control::{Control, Output, READY};
use crate::kernel::{Kernel, tools};
use crate::qmp::Qmp;

/// A boot takes ten seconds on an idle machine.
const BOOT_PATIENCE: Duration = Duration::from_secs(180);

/// For a command in the guest.
const COMMAND_PATIENCE: Duration = Duration::from_secs(120);

/// What a disk's file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Its bytes.
    Raw,
    /// QEMU's own: what snapshots need.
    Qcow2,
}

impl Format {
    const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A machine before its boot.
#[derive(Clone, Debug)]
pub struct Builder {
    memory_mib: u32,
    parameters: Vec<String>,
    arguments: Vec<String>,
    forwards: Vec<u16>,
    drives: usize,
    kernel: Kernel,
    archive: Archive,
    modules: Vec<PathBuf>,
}

/// A running machine. Ends with the value.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    control: Control,
    qmp: Qmp,
    folder: TempDir,
    dumps: u32,
}

/// Runs as the first process. Whatever it says beside the protocol goes to the console. Words of the kernel's command line that it
/// does not know are variables here: `guest_root` is a disk on which this root lies too, and goes on as itself there, after
/// `guest_connect` has been run.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root /usr/bin /usr/sbin
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# The kernel found no console when it started this.
exec < /dev/null > /dev/console 2>&1
mkdir -p /dev/shm /dev/pts
while read -r module; do
    insmod "$module" || echo "no module $module"
done < /modules
ip link set lo up
ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2
if [ -n "$guest_root" ]; then
    root=$guest_root
    unset guest_root
    $guest_connect
    mkdir -p /mnt && mount "$root" /mnt && umount -l /dev && umount -l /sys && umount -l /proc && exec switch_root /mnt /init
    echo "no root on $root"
fi
exec 3<>/dev/ttyS1
stty raw -echo <&3
echo GUEST_READY >&3
# Not by `read`: where a process ends that was left to this one, that begins anew without what it has read of the line.
while line=$(head -n 1 <&3) && [ -n "$line" ]; do
    number=${line%% *} command=${line#* }
    echo "$command" | base64 -d > /run/command
    sh /run/command > /run/stdout 2> /run/stderr < /dev/null
    code=$?
    echo "$number $code $(base64 -w 0 < /run/stdout) $(base64 -w 0 < /run/stderr)" >&3
done
"#;

impl Builder {
    fn new() -> Self {
        let kernel = Kernel::find();
        let mut archive = Archive::new();
        let busybox = tools().join("bin/busybox");
        assert!(busybox.is_file(), "{} is missing: run `make clients`", busybox.display());
        archive.copy(&busybox, Path::new("/bin/busybox"));
        archive.file(Path::new("/init"), INIT.replace("GUEST_READY", READY).as_bytes(), 0o755);
        let builder = Self {
            memory_mib: 384,
            parameters: Vec::new(),
            arguments: Vec::new(),
            forwards: Vec::new(),
            drives: 0,
            kernel,
            archive,
            modules: Vec::new(),
        };
        builder.module("virtio_pci").module("virtio_net")
    }

    /// Memory; 384 MiB otherwise.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// A word of the kernel's command line.
    #[must_use]
    pub fn parameter(mut self, word: &str) -> Self {
        self.parameters.push(word.to_owned());
        self
    }

    /// Loads a module of the kernel before anything else runs.
    ///
    /// # Panics
    /// Where the kernel has none of this name.
    #[must_use]
    pub fn module(mut self, name: &str) -> Self {
        self.kernel.add_module(&mut self.archive, &mut self.modules, name);
        self
    }

    /// A disk (`/dev/vda`, then `/dev/vdb`, ...), which the guest writes to.
    #[must_use]
    pub fn drive(self, file: &Path, format: Format) -> Self {
        let number = self.drives;
        let mut machine = self.module("virtio_blk");
        machine.drives += 1;
        machine
            .argument("-drive")
            .argument(&format!("file={},format={},if=none,id=disk{number}", file.display(), format.name()))
            .argument("-device")
            .argument(&format!("virtio-blk-pci,drive=disk{number}"))
    }

    /// Lets this machine's loopback reach a TCP port of the guest under the same number.
    #[must_use]
    pub fn forward(mut self, port: u16) -> Self {
        self.forwards.push(port);
        self
    }

    /// A file or folder of this machine, with all below it, at the same path or another.
    #[must_use]
    pub fn copy(mut self, from: &Path, at: &Path) -> Self {
        self.archive.copy(from, at);
        self
    }

    /// A program with its libraries.
    #[must_use]
    pub fn program(mut self, from: &Path, at: &Path) -> Self {
        self.archive.program(from, at);
        self
    }

    /// An argument for QEMU.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// This machine's root as a file system (ext4) of `bytes` in a new file, to be put on a disk from which the machine boots then
    /// with the parameter `guest_root`.
    ///
    /// # Panics
    /// Where it does not fit.
    pub fn root_image(&self, file: &Path, bytes: u64) {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let busybox = tools().join("bin/busybox");
        let mut unpack = Command::new(busybox);
        let archive = folder.path().with_extension("cpio");
        unpack.args(["cpio", "-idm", "-F"]).arg(&archive).current_dir(folder.path());
        std::fs::write(&archive, self.finished()).expect("space for the guest's root");
        run(&mut unpack).expect_success();
        std::fs::remove_file(&archive).expect("our own");
        std::fs::File::create(file)
            .and_then(|image| image.set_len(bytes))
            .expect("space for the guest's disk");
        run(client("mkfs.ext4").args(["-q", "-d"]).arg(folder.path()).arg(file)).expect_success();
    }

    /// The archive of the machine's root.
    fn finished(&self) -> Vec<u8> {
        let order = self.modules.iter().map(|module| format!("{}\n", module.display())).collect::<String>();
        let mut archive = self.archive.clone();
        archive.file(Path::new("/modules"), order.as_bytes(), 0o644);
        archive.finish()
    }

    /// Boots, and waits until commands can be run.
    ///
    /// # Panics
    /// Where that takes too long.
    pub fn boot(self) -> Guest {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let root = folder.path().join("root.cpio");
        std::fs::write(&root, self.finished()).expect("space for the guest's root");
        let socket = |name: &str| folder.path().join(name);
        let mut words = "console=ttyS0 quiet panic=-1".to_owned();
        self.parameters.iter().for_each(|word| {
            let _ = write!(words, " {word}");
        });
        let mut network = "user,id=network".to_owned();
        for port in &self.forwards {
            let _ = write!(network, ",hostfwd=tcp:127.0.0.1:{port}-:{port}");
        }
        let mut qemu = qemu();
        qemu.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-nodefaults"]);
        qemu.args(["-display", "none", "-no-reboot", "-rtc", "base=utc,clock=host"]);
        qemu.arg("-m").arg(format!("{}M", self.memory_mib));
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(&root).arg("-append").arg(words);
        qemu.args(["-serial", "stdio"]);
        for (name, option) in [("control", "-serial"), ("qmp", "-qmp")] {
            qemu.arg("-chardev");
            qemu.arg(format!("socket,id={name},path={},server=on,wait=off", socket(name).display()));
            qemu.arg(option).arg(if name == "qmp" { "chardev:qmp" } else { "chardev:control" });
        }
        qemu.arg("-netdev").arg(network).args(["-device", "virtio-net-pci,netdev=network,romfile="]);
        qemu.args(&self.arguments);
        let mut process = Process::start("the guest", qemu);
        let mut control = wait_for("the guest's serial line", BOOT_PATIENCE, || {
            assert!(process.try_wait().is_none(), "the machine ended\n{}", process.tail());
            Control::connect(&socket("control")).map_err(|error| error.to_string())
        });
        let qmp = wait_for("the machine's control", BOOT_PATIENCE, || {
            Qmp::connect(&socket("qmp")).map_err(|error| error.to_string())
        });
        control.wait_ready(BOOT_PATIENCE);
        Guest { process, control, qmp, folder, dumps: 0 }
    }
}

/// QEMU as `make clients` unpacked it, or the machine's own where that was there already.
pub(crate) fn qemu() -> Command {
    let root = tools();
    let own = root.join("usr/bin/qemu-system-x86_64");
    if !own.is_file() {
        return harness::client::client("qemu-system-x86_64");
    }
    let mut command = Command::new(own);
    let libraries = [root.join("usr/lib/x86_64-linux-gnu"), root.join("lib/x86_64-linux-gnu")];
    command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).expect("paths without a colon"));
    for folder in ["usr/share/qemu", "usr/share/seabios"] {
        command.arg("-L").arg(root.join(folder));
    }
    command
}

impl Guest {
    /// A machine to be.
    ///
    /// # Panics
    /// Where `make clients` has not unpacked a kernel.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Runs a command of the guest's shell to its end.
    ///
    /// # Panics
    /// Where the guest does not answer in time.
    pub fn run(&mut self, command: &str) -> Output {
        self.control.run(command, COMMAND_PATIENCE)
    }

    /// The machine's process: its log is the guest's console.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A command of QEMU's control protocol.
    ///
    /// # Panics
    /// Where the machine refuses.
    pub fn qmp(&mut self, command: &str, arguments: &Value) -> Value {
        self.qmp.execute(command, arguments)
    }

    /// Everything in the machine's memory, as its owner sees it: a file in this value's folder. The machine is stopped
    /// meanwhile.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn dump_memory(&mut self) -> PathBuf {
        self.dumps += 1;
        let file = self.folder.path().join(format!("memory-{}", self.dumps));
        let arguments = json!({ "paging": false, "protocol": format!("file:{}", file.display()) });
        self.qmp.execute("dump-guest-memory", &arguments);
        file
    }

    /// Presses the power button.
    ///
    /// # Panics
    /// Where the machine has ended.
    pub fn press_power_button(&mut self) {
        self.qmp.execute("system_powerdown", &json!({}));
    }

    /// Stops the processors; time outside goes on.
    ///
    /// # Panics
    /// Where the machine has ended.
    pub fn stop(&mut self) {
        self.qmp.execute("stop", &json!({}));
    }

    /// Lets them go on.
    ///
    /// # Panics
    /// Where the machine has ended.
    pub fn go_on(&mut self) {
        self.qmp.execute("cont", &json!({}));
    }

    /// Saves the whole machine, memory included, in its first disk.
    ///
    /// # Panics
    /// Where that disk is not [`Format::Qcow2`].
    pub fn save(&mut self, name: &str) {
        let answer = self.qmp.monitor(&format!("savevm {name}"));
        assert!(answer.trim().is_empty(), "{answer}");
    }

    /// Winds the whole machine back.
    ///
    /// # Panics
    /// Where there is no such snapshot.
    pub fn restore(&mut self, name: &str) {
        let answer = self.qmp.monitor(&format!("loadvm {name}"));
        assert!(answer.trim().is_empty(), "{answer}");
    }
}
