//! Why locked memory could not be had.

use std::io;

/// Which step failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `memfd_secret(2)`: missing kernel support, or `secretmem` not enabled.
    MemfdSecret,
    /// Reserving address space between the guard pages.
    Reserve,
    /// Setting the length of the secret memory.
    Resize,
    /// Mapping it.
    Map,
    /// `mlock(2)`.
    Lock,
    /// Keeping it out of core dumps and children.
    Advise,
}

/// Locked memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockedMemoryError {
    /// The kernel gives no secret memory, and ordinary locked memory was not allowed.
    #[error(
        "this kernel gives no secret memory (memfd_secret): boot with secretmem.enable=1 on Linux 5.14 or later, \
         or allow mlock by name in the configuration, knowing that a core dump or a kill then leaves keys in RAM"
    )]
    NoSecretMemory(#[source] io::Error),
    /// The locked-memory limit is too low.
    #[error("the limit on locked memory is too low for {bytes} bytes: raise LimitMEMLOCK (ulimit -l)")]
    Limit {
        /// Bytes that were to be locked.
        bytes: usize,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The limit on locked memory would be passed before everything has its memory.
    #[error(
        "{needed} bytes of locked memory are needed for keys and {locked} are locked already, but the limit is {limit}: \
         set LimitMEMLOCK in the unit (ulimit -l in a shell) to at least {}",
        .needed + .locked
    )]
    Budget {
        /// Bytes that are to be locked.
        needed: u64,
        /// Bytes that this process has locked.
        locked: u64,
        /// `RLIMIT_MEMLOCK`.
        limit: u64,
    },
    /// A system call failed for another reason.
    #[error("{step:?} failed for locked memory of {bytes} bytes")]
    System {
        /// Which.
        step: Step,
        /// Bytes that were to be locked.
        bytes: usize,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}
