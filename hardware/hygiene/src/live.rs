//! Facts that a process learns about itself by system calls: taken once, before a node gives such calls up.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::{Finding, Probe};

/// Locked memory that a node needs: an arena of 64 KiB and a key stack of 1 MiB, with room to spare.
pub const MEMLOCK_BYTES_MIN: u64 = 2 << 20;

/// The wiper's priority.
const REALTIME_PRIORITY: u64 = 10;

/// linux/capability.h
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_NICE: u32 = 23;

/// What the calls said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Whether memfd_secret works, or with which error number it does not.
    pub secret_memory: Result<(), i32>,
    /// Whether mseal works, or with which error number it does not.
    pub mseal: Result<(), i32>,
    /// Landlock's version, or with which error number it is not there.
    pub landlock: Result<u32, i32>,
    /// Bytes that may be locked; `None` without limit.
    pub memlock_bytes: Option<u64>,
    /// Highest real-time priority that may be asked for.
    pub realtime_priority: u64,
    /// Whether any amount may be locked (CAP_IPC_LOCK).
    pub may_lock_all: bool,
    /// Whether any priority may be taken (CAP_SYS_NICE).
    pub may_take_any_priority: bool,
}

impl Live {
    /// Asks the kernel.
    pub fn read() -> Self {
        let limit = |resource| getrlimit(resource).map_or(0, |(soft, _)| soft);
        let memlock = limit(Resource::RLIMIT_MEMLOCK);
        Self {
            secret_memory: memfd_secret(),
            mseal: mseal(),
            landlock: landlock_version(),
            memlock_bytes: (memlock != RLIM_INFINITY).then_some(memlock),
            realtime_priority: limit(Resource::RLIMIT_RTPRIO),
            may_lock_all: has_capability(CAP_IPC_LOCK),
            may_take_any_priority: has_capability(CAP_SYS_NICE),
        }
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        vec![self.secret_memory(), self.locked_memory(), self.mseal(), self.priority(), self.landlock()]
    }

    fn secret_memory(&self) -> Finding {
        match self.secret_memory {
            Ok(()) => Finding::good(Probe::SecretMemory, "memfd_secret works"),
            Err(errno) => Finding::bad(
                Probe::SecretMemory,
                format!("memfd_secret fails: {}", io::Error::from_raw_os_error(errno)),
            ),
        }
    }

    fn locked_memory(&self) -> Finding {
        match self.memlock_bytes {
            None => Finding::good(Probe::LockedMemory, "without limit"),
            Some(bytes) if self.may_lock_all => Finding::good(
                Probe::LockedMemory,
                format!("any, by CAP_IPC_LOCK; without it {} KiB", bytes / 1024),
            ),
            Some(bytes) if bytes >= MEMLOCK_BYTES_MIN => {
                Finding::good(Probe::LockedMemory, format!("{} KiB may be locked", bytes / 1024))
            }
            Some(bytes) => {
                let needed = MEMLOCK_BYTES_MIN / 1024;
                let found = format!("{} KiB may be locked, {needed} are needed", bytes / 1024);
                Finding::bad(Probe::LockedMemory, found)
            }
        }
    }

    fn mseal(&self) -> Finding {
        match self.mseal {
            Ok(()) => Finding::good(Probe::Mseal, "mseal works"),
            Err(errno) => {
                Finding::bad(Probe::Mseal, format!("mseal fails: {}", io::Error::from_raw_os_error(errno)))
            }
        }
    }

    fn priority(&self) -> Finding {
        if self.may_take_any_priority || self.realtime_priority >= REALTIME_PRIORITY {
            let why = if self.may_take_any_priority { "any, by CAP_SYS_NICE" } else { "may be asked for" };
            return Finding::good(Probe::RealtimePriority, why);
        }
        let found = format!("up to {}, {REALTIME_PRIORITY} is needed", self.realtime_priority);
        Finding::bad(Probe::RealtimePriority, found)
    }

    fn landlock(&self) -> Finding {
        match self.landlock {
            Ok(version) => Finding::good(Probe::Landlock, format!("version {version}")),
            Err(errno) => {
                Finding::bad(Probe::Landlock, format!("not there: {}", io::Error::from_raw_os_error(errno)))
            }
        }
    }
}

/// Whether this process has a capability in force: root without it, as in a container, has not.
fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> number & 1 == 1)
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn memfd_secret() -> Result<(), i32> {
    // SAFETY: the call takes one word of flags and no pointer.
    let descriptor = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let descriptor =
        i32::try_from(descriptor).ok().filter(|descriptor| *descriptor >= 0).ok_or_else(errno)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
    Ok(())
}

fn mseal() -> Result<(), i32> {
    /// Linux 6.10: the same number on every architecture.
    const SYS_MSEAL: libc::c_long = 462;
    let nothing: *const libc::c_void = std::ptr::null();
    // SAFETY: a range without length, of which the call seals nothing.
    let sealed = unsafe { libc::syscall(SYS_MSEAL, nothing, 0 as libc::size_t, 0 as libc::c_ulong) };
    if sealed == 0 { Ok(()) } else { Err(errno()) }
}

fn landlock_version() -> Result<u32, i32> {
    /// linux/landlock.h
    const CREATE_RULESET_VERSION: libc::c_long = 1;
    let nothing: *const libc::c_void = std::ptr::null();
    // SAFETY: with this flag the call takes a null pointer of length 0, and returns a number.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0 as libc::size_t, CREATE_RULESET_VERSION)
    };
    u32::try_from(version).map_err(|_| errno())
}
