//! What the kernel refuses a daemon once it has what it needs.
//!
//! A daemon prepares (opens devices, takes memory, binds ports) with the rights it was started with, then gives up what
//! serving does not need, and only then starts the threads that listen to the network:
//!
//! 1. [`before_threads`]: no core file, no tracing by other programs of the same user, no new privileges.
//! 2. [`drop_capabilities`]: none is left, root's included.
//! 3. [`restrict_files`]: only the named files and directories can be opened, no TCP connection can be made out.
//! 4. [`restrict_calls`]: only the system calls of the thread's role; the rest ends the process (SIGSYS).
//!
//! Invariants:
//! - Each step holds for the calling thread and every thread it starts afterwards, and cannot be taken back.
//! - No role may start another program, change what memory is executable, or trace.
//! - Every rule says why it is there (`calls.rs`); a test runs the daemons and fails on a rule that was not used.
//!
//! It is no container: the service manager's namespaces and device rules come on top (`systemd/`).

mod calls;
mod capabilities;
mod files;
mod process;

pub use calls::{CallError, Only, Rare, Role, Rule, restrict_calls, rules};
pub use capabilities::{CapabilityError, drop_capabilities, drop_capabilities_but_priority};
pub use files::{Access, FileError, FileRules, restrict_files};
pub use process::{ProcessError, before_threads};

/// How much of what was asked for the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// All of it.
    Full,
    /// What this kernel's version of Landlock knows.
    Partial,
    /// Nothing: the kernel has no Landlock.
    None,
}
