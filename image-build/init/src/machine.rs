//! File systems and the end.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use memory_overwrite::MemoryOverwrite;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::console::say;
use crate::devices::{self, NODE_USER};
use crate::failure::Failure;

const STATE: &str = "/var/lib/nightlatch";

/// The name of the partition with the node's few files.
const STATE_PARTITION: &str = "nightlatch-state";

/// What is left of other processes gets this long.
const LAST_PATIENCE: Duration = Duration::from_millis(500);

pub(crate) fn attach(
    kind: &str,
    source: &str,
    at: &str,
    flags: MsFlags,
    options: &str,
) -> Result<(), Failure> {
    mount(Some(source), at, Some(kind), flags, Some(options))
        .map_err(Failure::system(format!("mount {kind} at {at}")))
}

pub(crate) const INERT: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// What the kernel shows of itself and of devices.
pub(crate) fn mount_kernel_file_systems() -> Result<(), Failure> {
    for folder in ["/dev", "/proc", "/sys", "/run"] {
        let _ = std::fs::create_dir(folder);
    }
    attach("proc", "proc", "/proc", INERT, "")?;
    attach("sysfs", "sysfs", "/sys", INERT, "")?;
    attach("devtmpfs", "devtmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0755")
}

/// The node's own files: on the disk that the image lies on, or in memory where there is none.
pub(crate) fn open_state() -> Result<(), Failure> {
    match devices::partition(STATE_PARTITION) {
        Some(device) => attach("ext4", &device.to_string_lossy(), STATE, INERT, "errors=panic")?,
        None => {
            say(&format!(
                "there is no partition {STATE_PARTITION}: the node's files are kept in memory only"
            ));
            attach("tmpfs", "state", STATE, INERT, "mode=0700,size=16m")?;
        }
    }
    own(Path::new(STATE), 0o700).map_err(Failure::system(format!("hand {STATE} to the node")))?;
    if Path::new("/sys/firmware/efi/efivars").is_dir() {
        // Firmware without variables has no such folder; one that refuses has none that could be asked for.
        let _ = attach("efivarfs", "efivarfs", "/sys/firmware/efi/efivars", INERT, "");
        hand_over_memory_overwrite();
    }
    hand_over_tpm();
    Ok(())
}

/// The node asks the TPM to say what was started, and sends along what the firmware noted of it.
fn hand_over_tpm() {
    const DEVICE: &str = "/dev/tpmrm0";
    const EVENT_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
    if !Path::new(DEVICE).exists() {
        return;
    }
    if let Err(error) = own(Path::new(DEVICE), 0o600) {
        say(&format!("the TPM cannot be handed to the node: {error}"));
    }
    // The quote stands without the log; firmware need not write one.
    if attach("securityfs", "securityfs", "/sys/kernel/security", INERT, "").is_ok() {
        let _ = own(Path::new(EVENT_LOG), 0o400);
    }
}

/// The node asks the firmware to clear memory after a sudden reset, where the firmware has the variable for it.
fn hand_over_memory_overwrite() {
    let variable = Path::new(memory_overwrite::VARIABLE);
    if !variable.exists() {
        return;
    }
    // Opening takes the mark off with which the kernel keeps variables from being changed by accident.
    let opened = MemoryOverwrite::open(variable).and_then(|_| own(variable, 0o600));
    if let Err(error) = opened {
        say(&format!("the firmware will not be asked to clear memory after a sudden reset: {error}"));
    }
}

/// Makes the node the owner of a file or folder.
pub(crate) fn own(path: &Path, mode: u32) -> io::Result<()> {
    chown(path, Some(NODE_USER), Some(NODE_USER))?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// A folder of the node's.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    own(path, 0o700)
}

/// Ends the machine. Whatever still runs is ended first, and what was written is on the disk.
pub(crate) fn end(how: RebootMode) -> ! {
    let everybody = Pid::from_raw(-1);
    let _ = kill(everybody, Signal::SIGTERM);
    std::thread::sleep(LAST_PATIENCE);
    let _ = kill(everybody, Signal::SIGKILL);
    let _ = umount2(STATE, MntFlags::MNT_DETACH);
    nix::unistd::sync();
    let what = if how == RebootMode::RB_POWER_OFF { "powering off" } else { "restarting" };
    say(what);
    let failed = reboot(how).map(|never| match never {}).err().unwrap_or(Errno::UnknownErrno);
    say(&format!("the kernel refuses to end: {failed}; switch the machine off"));
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
