//! What the kernel is told before the node starts, each with its reason. The rest stands on its command line.

use std::fs;
use std::path::Path;

use crate::console::say;
use crate::failure::Failure;

/// Setting below `/proc/sys`, value, reason.
const SETTINGS: &[(&str, &str, &str)] = &[
    ("kernel/core_pattern", "|/bin/false", "no core file of any program"),
    ("fs/suid_dumpable", "0", "none of a program that changed its rights"),
    ("kernel/yama/ptrace_scope", "3", "no process reads another's memory, and root cannot take that back"),
    ("kernel/kptr_restrict", "2", "the kernel's addresses are shown to nobody"),
    ("kernel/dmesg_restrict", "1", "nor is its log"),
    ("kernel/perf_event_paranoid", "3", "no measurements of other programs"),
    ("kernel/unprivileged_bpf_disabled", "1", "no program of a user's in the kernel"),
    ("kernel/sysrq", "0", "no orders by keyboard or serial break"),
    ("net/ipv4/tcp_syncookies", "1", "a flood of half-open connections keeps nobody out"),
    ("net/ipv4/conf/all/accept_redirects", "0", "a neighbour does not change where packets go"),
    ("net/ipv4/conf/all/send_redirects", "0", "this is no router"),
    ("net/ipv6/conf/all/accept_redirects", "0", "as above"),
    ("vm/swappiness", "0", "there is nothing to swap to, and never shall be"),
    (
        "kernel/kexec_load_disabled",
        "1",
        "no other kernel takes over with this one's memory; cannot be taken back",
    ),
    ("kernel/modules_disabled", "1", "no further module; cannot be taken back"),
];

/// Sets them. The last two are what nothing after this may change.
pub(crate) fn close_the_kernel() -> Result<(), Failure> {
    for (setting, value, _) in SETTINGS {
        let path = Path::new("/proc/sys").join(setting);
        match fs::write(&path, value) {
            Ok(()) => {}
            // A kernel without the feature needs no setting for it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) if setting.ends_with("_disabled") => {
                return Err(Failure::system(format!("set {setting} to {value}"))(error));
            }
            Err(error) => say(&format!("{setting} stays as it is: {error}")),
        }
    }
    Ok(())
}
