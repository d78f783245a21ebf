//! seccomp: which system calls each role may make, and why.
//!
//! A table reads as "call, condition, reason". Arguments are looked at where a call can do more than the role needs.
//! What is in no table raises SIGSYS, upon which the fault handlers wipe and end the process.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Why calls could not be restricted.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// This processor is none that the filters were written for.
    #[error("there is no system call filter for {}", std::env::consts::ARCH)]
    Architecture,
    /// The tables make no filter.
    #[error("the system call filter could not be built: {0}")]
    Build(#[from] BackendError),
    /// The kernel refused it.
    #[error("the kernel refused the system call filter: {0}; it needs CONFIG_SECCOMP_FILTER")]
    Refused(#[from] seccompiler::Error),
}

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Waits for an event, wipes.
    Wiper,
    /// Asks one source of triggers: a daemon over TCP or the system's bus, or files of the kernel. Reads how the machine's parts fare.
    Source,
    /// Everything else in a storage node: heads, pools, sessions, administration.
    Node,
    /// The keyholder: sessions with nodes, administration, its ledger.
    Keyholder,
}

/// A condition on the arguments of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// None.
    Any,
    /// The argument with this index has none of these bits.
    Without(u8, u64),
    /// The argument with this index has all of these bits.
    With(u8, u64),
    /// The argument with this index is one of these.
    OneOf(u8, &'static [u64]),
}

/// One allowed call.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its name in the manual.
    pub name: &'static str,
    /// Its number.
    pub number: c_long,
    /// When.
    pub only: Only,
    /// What the role needs it for.
    pub why: &'static str,
    /// A machine or a moment that a test can't bring about needs it.
    pub rare: Option<Rare>,
}

/// Why a call may not be seen in a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rare {
    /// When the allocator grows or shrinks is a matter of what else it holds.
    Allocator,
    /// Where the kernel lets programs read its clock directly, no call is made.
    Clock,
    /// Something broke.
    Fault,
    /// Two threads meet, or one is late.
    Chance,
    /// A device that the machine may not have, or that does something.
    Hardware,
    /// How the machine looks names up: a C library's version, a name server that is far away.
    Names,
    /// Another version of the C library, or another build, takes another call for the same.
    Library,
    /// The service manager is not there.
    ServiceManager,
    /// A long life: more requests at once, more entries, than a test of seconds has.
    Size,
}

impl Rare {
    /// The reason, in a few words.
    pub const fn why(self) -> &'static str {
        match self {
            Self::Allocator => "when the allocator grows or shrinks is its matter",
            Self::Clock => "the clock is read without a call here",
            Self::Fault => "nothing broke",
            Self::Chance => "it takes two threads that meet, or one that is late",
            Self::Hardware => "it takes a device that is not here",
            Self::Names => "names are looked up otherwise here",
            Self::Library => "another C library or build would make it",
            Self::ServiceManager => "no service manager started it",
            Self::Size => "it takes more than a test of seconds has",
        }
    }
}

macro_rules! rules {
    ($($name:ident $(if $kind:ident($($argument:expr),+))? $(, rare $rare:ident)? => $why:literal;)+) => {
        &[$(Rule {
            name: stringify!($name),
            number: libc::$name,
            only: rules!(@only $($kind $($argument),+)?),
            why: $why,
            rare: rules!(@rare $($rare)?),
        },)+]
    };
    (@only) => { Only::Any };
    (@only $kind:ident $($argument:expr),+) => { Only::$kind($($argument),+) };
    (@rare) => { None };
    (@rare $rare:ident) => { Some(Rare::$rare) };
}

const EXECUTABLE: u64 = libc::PROT_EXEC as u64;
const THREAD: u64 = libc::CLONE_THREAD as u64;

/// Every thread, the wiper's included.
const ANY_THREAD: &[Rule] = rules! {
    SYS_futex => "locks and channels wait and wake";
    SYS_read => "event descriptors and timers, small files";
    SYS_exit_group, rare Fault => "a fault handler ends the process";
    SYS_clock_gettime, rare Clock => "on machines whose clock the kernel does not let programs read directly";
    SYS_restart_syscall, rare Chance => "the kernel resumes a sleep that SIGSTOP and SIGCONT interrupted";
};

/// The thread that wipes.
const WIPER: &[Rule] = rules! {
    SYS_recvmsg => "the kernel's events";
    SYS_timerfd_settime => "a source begins a drain";
    SYS_epoll_ctl => "a source has ended";
    SYS_close => "a source has ended";
    SYS_fcntl, rare Library => "unoptimised programs look at a descriptor before they close it";
    SYS_pread64, rare Hardware => "supplies are read again after the kernel has dropped events";
    SYS_ioctl if OneOf(1, &[GPIO_V2_LINE_GET_VALUES, IPMICTL_RECEIVE_MSG_TRUNC]), rare Hardware => "the level of a power-fail line after a gap in its events; an event of a management controller";
    SYS_clock_nanosleep, rare Chance => "the second stage looks again";
    SYS_sched_yield, rare Chance => "a channel that another thread is writing to";
    SYS_gettid, rare Fault => "a panic's message names its thread";
    SYS_sched_setscheduler, rare Chance => "a thread that the second stage waits for goes before others";
    SYS_write, rare Chance => "the log, a sign of life, the last line of a fault, an idle executor that is to hear of an event";
    SYS_madvise, rare Allocator => "the allocator gives memory back while an event is sent";
    SYS_mmap if Without(2, EXECUTABLE), rare Allocator => "the allocator grows while an event is sent";
    SYS_munmap, rare Allocator => "the allocator shrinks";
    SYS_brk, rare Allocator => "the allocator grows";
    SYS_mprotect if Without(2, EXECUTABLE), rare Allocator => "the allocator's own arena of this thread grows";
};

/// A thread that asks one source.
const SOURCE: &[Rule] = rules! {
    // The daemon that knows: upsd, apcupsd, logind's bus. Which ports may be dialled is the file rules' matter.
    SYS_socket if OneOf(0, &[libc::AF_INET as u64, libc::AF_INET6 as u64, libc::AF_UNIX as u64]) => "a connection to the daemon that is asked";
    SYS_connect => "a connection to the daemon that is asked";
    SYS_ioctl if OneOf(1, &[FIONBIO]) => "std connects with a time limit";
    SYS_getsockopt => "whether a connection came about";
    SYS_setsockopt => "time limits, no delay";
    SYS_sendto => "a question";
    SYS_recvfrom => "an answer";
    SYS_recvmsg => "an answer of a bus, with a descriptor";
    SYS_sendmmsg, rare Names => "the C library looks a name up";
    SYS_bind if OneOf(2, &[SOCKADDR_NL_BYTES]), rare Names => "the C library asks the kernel for addresses; no other family has this length";
    SYS_getsockname, rare Names => "the C library looks a name up";
    SYS_getpeername, rare Names => "the C library looks a name up";
    SYS_uname, rare Names => "the C library looks a name up";
    SYS_geteuid => "a bus asks who this is";
    SYS_fcntl => "descriptors of a bus";
    // Files of the kernel, a password's file, what the C library looks names up in.
    SYS_openat => "what the file rules allow";
    SYS_close => "connections and files end";
    SYS_statx => "the size of a file before it is read";
    SYS_lseek, rare Library => "the place in a file before it is read";
    SYS_fstat, rare Library => "the C library looks at a file";
    SYS_newfstatat, rare Library => "the C library looks at a file";
    SYS_getdents64 => "directories of the kernel";
    SYS_readlinkat => "links in directories of the kernel";
    // What a wipe does afterwards, and the thread itself.
    SYS_write, rare Chance => "the light at a disk's place, the log, the last line of a fault, an idle executor that is to hear of an event";
    SYS_timerfd_settime => "a source begins a drain";
    SYS_sched_yield, rare Chance => "a channel that another thread is writing to";
    SYS_mmap if Without(2, EXECUTABLE), rare Allocator => "the allocator grows";
    SYS_munmap => "the allocator shrinks, the thread's signal stack goes";
    SYS_mprotect if Without(2, EXECUTABLE), rare Allocator => "the allocator's own arena of this thread grows";
    SYS_madvise, rare Allocator => "memory goes back to the kernel";
    SYS_brk, rare Allocator => "the allocator grows";
    SYS_sigaltstack => "the thread ends";
    SYS_rt_sigprocmask => "the thread ends";
    SYS_exit => "the thread ends";
    SYS_getrandom, rare Library => "the seeds of maps";
};

/// Storage, sockets, sessions.
const NODE: &[Rule] = rules! {
    // Disks. They were opened before; what is opened from here on is bounded by the file rules.
    SYS_pread64 => "sectors";
    SYS_pwrite64 => "sectors";
    SYS_pwritev => "blocks of the log with the sectors behind them, in one transfer";
    SYS_io_uring_enter => "many sectors at once, once so many wait, by a ring that the kernel keeps to its one device";
    SYS_fdatasync => "a flush";
    SYS_fallocate => "discards on a pool in a file";
    SYS_ioctl if OneOf(1, &[BLKDISCARD, BLKGETSIZE64, BLKZEROOUT]), rare Hardware => "discards and growth of a pool on a block device";
    SYS_flock, rare Chance => "the lock on a pool is given back at the end, unless the process's end comes first";
    SYS_lseek => "the size of a pool in a file, when it may have grown";
    // Sockets. They are bound already; none is made but for the service manager's notices.
    SYS_accept4 => "clients and keyholders";
    SYS_recvfrom => "requests";
    SYS_readv => "block requests, and what comes behind them";
    SYS_sendto => "replies";
    SYS_write => "events to other threads, the log, files";
    SYS_writev => "replies of several pieces";
    SYS_recvmsg, rare Library => "requests in pieces";
    SYS_sendmsg => "replies to block requests, notices to the service manager";
    SYS_shutdown => "the end of a connection";
    SYS_setsockopt => "no delay, keep-alive";
    SYS_getsockopt, rare Fault => "what went wrong on a socket";
    SYS_getsockname, rare Library => "the local address of a connection";
    SYS_getpeername, rare Library => "the address of a client";
    SYS_socket if OneOf(0, &[libc::AF_UNIX as u64]), rare ServiceManager => "a notice to the service manager; no other family";
    SYS_connect, rare ServiceManager => "a notice to the service manager; TCP is for the file rules to refuse";
    SYS_epoll_ctl => "the executor";
    SYS_socketpair if OneOf(0, &[libc::AF_UNIX as u64]) => "the executor starts: it wants a pair for signals, though none come";
    SYS_epoll_create1 => "the executor starts";
    SYS_eventfd2 => "the executor starts";
    SYS_fcntl => "descriptors of new connections, sizes of pipes";
    SYS_close => "connections and files end";
    SYS_timerfd_settime => "a grant or a renewal sets the lease's deadline";
    // Files: state, the pinned key, what the hygiene probes read.
    SYS_openat => "what the file rules allow";
    SYS_statx => "files of the state directory and the probes";
    SYS_getdents64 => "directories that the probes look through";
    SYS_readlinkat, rare Hardware => "links that the probes look through";
    SYS_newfstatat, rare Library => "the C library looks at a file";
    SYS_fstat, rare Library => "the C library looks at a file";
    SYS_ftruncate, rare Size => "a pool in a file grows";
    SYS_fsync, rare Size => "the next segment of the audit trail, who may use which disk";
    // Threads and memory. No new program, nothing executable.
    SYS_clone if With(0, THREAD) => "threads; a process has no such flag";
    SYS_clone3 => "refused with ENOSYS by the filter in front, so that the C library takes `clone`";
    SYS_set_robust_list => "a thread starts";
    SYS_rseq => "a thread starts";
    SYS_exit => "a thread ends";
    SYS_sigaltstack => "the stack that a thread's fault handler runs on";
    SYS_rt_sigprocmask => "a thread starts or ends";
    SYS_rt_sigreturn, rare Library => "the C library's own signals";
    SYS_gettid => "a thread's name for itself";
    SYS_getpid, rare Library => "the process's name for itself";
    SYS_sched_getaffinity => "how many threads make sense";
    SYS_sched_yield, rare Chance => "a worker makes way, when two meet";
    SYS_prctl if OneOf(0, &[libc::PR_SET_NAME as u64]) => "a thread's name";
    SYS_prctl if OneOf(0, &[PR_SET_VMA]), rare Library => "the C library names the allocator's mappings";
    SYS_mmap if Without(2, EXECUTABLE) => "buffers and stacks";
    SYS_munmap => "buffers and stacks";
    SYS_mprotect if Without(2, EXECUTABLE) => "guard pages, the allocator";
    SYS_mremap, rare Allocator => "a large buffer grows";
    SYS_madvise => "memory goes back to the kernel";
    SYS_brk, rare Allocator => "the allocator grows";
    SYS_getrandom => "keys, nonces, the seeds of maps";
};

/// The compute tier: it dials, and it looks names up.
const KEYHOLDER: &[Rule] = rules! {
    // Sockets. Ports cannot be bound: the file rules refuse it.
    SYS_socket => "sessions with nodes, looking names up; families are the service manager's matter";
    SYS_connect => "a node is dialled";
    SYS_bind if OneOf(2, &[SOCKADDR_NL_BYTES]), rare Names => "the C library asks the kernel for addresses; no other family has this length";
    SYS_accept4 => "administrators";
    SYS_recvfrom => "requests, messages of nodes";
    SYS_sendto, rare Library => "replies in one piece, messages to nodes";
    SYS_writev => "replies of several pieces";
    SYS_recvmsg, rare Names => "the C library looks a name up";
    SYS_sendmsg, rare ServiceManager => "notices to the service manager";
    SYS_sendmmsg, rare Names => "the C library looks a name up";
    SYS_shutdown => "the end of a connection";
    SYS_setsockopt => "no delay, keep-alive";
    SYS_getsockopt => "whether a connection came about";
    SYS_getsockname => "the local address of a connection";
    SYS_getpeername, rare Library => "the address of a peer";
    SYS_ioctl if OneOf(1, &[FIONBIO, FIONREAD]), rare Names => "the C library looks a name up";
    SYS_uname, rare Names => "the C library looks a name up";
    SYS_socketpair if OneOf(0, &[libc::AF_UNIX as u64]) => "the executor starts: it wants a pair for signals, though none come";
    SYS_epoll_ctl => "the executor";
    SYS_epoll_create1 => "the executor starts";
    SYS_eventfd2 => "the executor starts";
    SYS_fcntl => "descriptors of new connections";
    SYS_close => "connections and files end";
    // The ledger, lease records, the audit trail.
    SYS_openat => "what the file rules allow";
    SYS_statx => "the size of a file before it is read";
    SYS_newfstatat, rare Library => "the C library looks at a file";
    SYS_fstat, rare Library => "the C library looks at a file";
    SYS_lseek => "the place in a file before it is read";
    SYS_write => "files, events to other threads, the log";
    SYS_fsync => "a new file and its directory";
    SYS_fdatasync => "a line of the audit trail";
    SYS_ftruncate, rare Size => "an old ledger is overwritten at an erasure";
    SYS_getdents64, rare Size => "segments of the audit trail";
    SYS_flock, rare Library => "the lock on the state directory is given back";
    // Threads and memory. No new program, nothing executable.
    SYS_clone if With(0, THREAD) => "threads; a process has no such flag";
    SYS_clone3 => "refused with ENOSYS by the filter in front, so that the C library takes `clone`";
    SYS_set_robust_list => "a thread starts";
    SYS_rseq => "a thread starts";
    SYS_exit => "a thread ends";
    SYS_sigaltstack => "the stack that a thread's fault handler runs on";
    SYS_rt_sigprocmask => "a thread starts or ends";
    SYS_rt_sigtimedwait => "the thread that waits to be told to stop";
    SYS_rt_sigreturn, rare Library => "the C library's own signals";
    SYS_gettid => "a thread's name for itself";
    SYS_getpid, rare Library => "the process's name for itself";
    SYS_sched_getaffinity => "the size of a thread's stack";
    SYS_sched_yield, rare Chance => "a worker makes way";
    SYS_prctl if OneOf(0, &[libc::PR_SET_NAME as u64]) => "a thread's name";
    SYS_prctl if OneOf(0, &[PR_SET_VMA]), rare Library => "the C library names the allocator's mappings";
    SYS_mmap if Without(2, EXECUTABLE) => "buffers and stacks";
    SYS_munmap => "buffers and stacks";
    SYS_mprotect if Without(2, EXECUTABLE) => "guard pages, the allocator";
    SYS_mremap, rare Allocator => "a large buffer grows";
    SYS_madvise => "memory goes back to the kernel";
    SYS_brk, rare Allocator => "the allocator grows";
    SYS_getrandom => "keys, nonces, the seeds of maps";
};

/// `PR_SET_VMA`: glibc names the allocator's mappings where the kernel can. linux/prctl.h
const PR_SET_VMA: u64 = 0x5356_4d41;
/// linux/gpio.h
const GPIO_V2_LINE_GET_VALUES: u64 = 0xc010_b40e;
/// linux/ipmi.h
const IPMICTL_RECEIVE_MSG_TRUNC: u64 = 0xc030_690b;
/// asm-generic/ioctls.h
const FIONBIO: u64 = 0x5421;
const FIONREAD: u64 = 0x541b;
/// The length of `struct sockaddr_nl`.
const SOCKADDR_NL_BYTES: u64 = 12;
/// linux/fs.h
const BLKDISCARD: u64 = 0x1277;
const BLKZEROOUT: u64 = 0x127f;
const BLKGETSIZE64: u64 = 0x8008_1272;

#[cfg(target_arch = "x86_64")]
mod of_this_processor {
    use super::{Only, Rare, Rule};

    pub(super) const WIPER: &[Rule] = rules! {
        SYS_epoll_wait => "waits for the next event";
    };

    pub(super) const SOURCE: &[Rule] = rules! {
        SYS_poll => "std waits for a connection";
        SYS_readlink, rare Library => "links in directories of the kernel";
    };

    pub(super) const NODE: &[Rule] = rules! {
        SYS_epoll_wait => "the executor waits";
        SYS_poll, rare ServiceManager => "the wiper's sign of life is waited for";
        SYS_unlink => "the ready file and the socket go";
        SYS_rename => "a file is replaced in one step";
        SYS_readlink, rare Library => "links that the probes look through";
    };

    pub(super) const KEYHOLDER: &[Rule] = rules! {
        SYS_epoll_wait => "the executor waits";
        SYS_poll, rare Names => "the C library looks a name up";
        SYS_rename => "a file is replaced in one step";
        SYS_unlink, rare Size => "a segment of the audit trail after its time";
    };
}

/// Where the newer forms of a call are the only ones.
#[cfg(not(target_arch = "x86_64"))]
mod of_this_processor {
    use super::{Only, Rare, Rule};

    pub(super) const WIPER: &[Rule] = rules! {
        SYS_epoll_pwait => "waits for the next event";
    };

    pub(super) const SOURCE: &[Rule] = rules! {
        SYS_ppoll => "std waits for a connection";
    };

    pub(super) const NODE: &[Rule] = rules! {
        SYS_epoll_pwait => "the executor waits";
        SYS_ppoll => "a connection's thread waits for its client";
        SYS_unlinkat => "the ready file and the socket go";
        SYS_renameat => "a file is replaced in one step";
    };

    pub(super) const KEYHOLDER: &[Rule] = rules! {
        SYS_epoll_pwait => "the executor waits";
        SYS_ppoll, rare Names => "the C library looks a name up";
        SYS_renameat => "a file is replaced in one step";
        SYS_unlinkat, rare Size => "a segment of the audit trail after its time";
    };
}

/// The rules of a role.
pub fn rules(role: Role) -> impl Iterator<Item = &'static Rule> {
    let (own, of_this_processor) = match role {
        Role::Wiper => (WIPER, of_this_processor::WIPER),
        Role::Source => (SOURCE, of_this_processor::SOURCE),
        Role::Node => (NODE, of_this_processor::NODE),
        Role::Keyholder => (KEYHOLDER, of_this_processor::KEYHOLDER),
    };
    ANY_THREAD.iter().chain(own).chain(of_this_processor)
}

/// Restricts the calling thread, and every thread it starts, to the calls of `role`. Call after
/// [`crate::before_threads`]: the kernel takes a filter only from threads without new privileges.
pub fn restrict_calls(role: Role) -> Result<(), CallError> {
    // A filter can't look into clone3's structure, so the C library is told that there is none. The most restrictive
    // verdict of two filters counts.
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    seccompiler::apply_filter(&program(no_clone3, SeccompAction::Allow, SeccompAction::Errno(ENOSYS))?)?;
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in rules(role) {
        allowed.entry(rule.number).or_default().extend(conditions(rule.only)?);
    }
    seccompiler::apply_filter(&program(allowed, SeccompAction::Trap, SeccompAction::Allow)?)?;
    Ok(())
}

const ENOSYS: u32 = libc::ENOSYS as u32;

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, CallError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| CallError::Architecture)?;
    Ok(SeccompFilter::new(rules, otherwise, matched, arch)?.try_into()?)
}

/// One rule for each alternative; none means unconditionally.
fn conditions(only: Only) -> Result<Vec<SeccompRule>, CallError> {
    let compare = |index: u8, operator, value| {
        let condition = SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    Ok(match only {
        Only::Any => Vec::new(),
        Only::Without(index, bits) => vec![compare(index, SeccompCmpOp::MaskedEq(bits), 0)?],
        Only::With(index, bits) => vec![compare(index, SeccompCmpOp::MaskedEq(bits), bits)?],
        Only::OneOf(index, values) => values
            .iter()
            .map(|value| compare(index, SeccompCmpOp::Eq, *value))
            .collect::<Result<_, BackendError>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_role_has_a_call_twice_or_one_without_a_reason() {
        for role in [Role::Wiper, Role::Source, Role::Node, Role::Keyholder] {
            let mut seen: Vec<&Rule> = Vec::new();
            for rule in rules(role) {
                // A call may stand twice, with other values.
                let is_same = |other: &&Rule| {
                    other.number == rule.number
                        && !matches!((other.only, rule.only), (Only::OneOf(a, _), Only::OneOf(b, _)) if a == b)
                };
                assert!(!seen.iter().any(is_same), "{role:?} {}", rule.name);
                seen.push(rule);
                assert!(rule.why.len() > 5, "{role:?} {}", rule.name);
            }
        }
    }

    #[test]
    fn no_role_may_start_a_program_trace_or_open_a_door() {
        let forbidden = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_memfd_create,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_bpf,
            libc::SYS_userfaultfd,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_setuid,
            libc::SYS_rt_sigaction,
            libc::SYS_setrlimit,
            libc::SYS_prlimit64,
            libc::SYS_io_uring_setup,
        ];
        for role in [Role::Wiper, Role::Source, Role::Node, Role::Keyholder] {
            // Who looks names up binds netlink sockets only, by the length of their addresses.
            let looks_up = matches!(role, Role::Source | Role::Keyholder);
            let forbidden: Vec<_> =
                forbidden.iter().filter(|call| !looks_up || **call != libc::SYS_bind).collect();
            for rule in rules(role) {
                assert!(!forbidden.contains(&&rule.number), "{role:?} {}", rule.name);
            }
        }
    }
}
