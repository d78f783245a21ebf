//! A process stopped as it ends: its memory is still there, and none of its code runs any more.
//!
//! Invariants:
//! - Whoever traces waits for a bounded time.
//! - Where the thread that traces ends early, by a panic, the kernel ends what it traces. So a test traces on a thread of its
//!   own wherever another of its threads waits for the process.

use std::time::{Duration, Instant};

use harness::site::PATIENCE;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Between two looks at a traced thread: it stops within microseconds, unless it waits for a disk.
const LOOK_EVERY: Duration = Duration::from_micros(50);

/// What becomes of a traced thread next: it stops, or it has ended. Only the thread that traces it is told.
///
/// # Panics
/// Where nothing has within `within`, or it is not traced.
pub fn next_event(thread: Pid, within: Duration) -> WaitStatus {
    let begun = Instant::now();
    loop {
        match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => {}
            Ok(event) => return event,
            Err(errno) => panic!("waiting for thread {thread}, which is traced: {errno}"),
        }
        assert!(begun.elapsed() < within, "thread {thread} neither stops nor ends within {within:?}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A traced child whose end is waited for. Whoever traces it waits, on the thread that began.
#[derive(Debug)]
pub struct AtExit(Pid);

impl AtExit {
    /// Traces the main thread of this test's child `pid`, without stopping it. The child ends with the calling thread.
    ///
    /// # Panics
    /// Where that is not allowed (run the tests as root).
    pub fn of(pid: u32) -> Self {
        let pid = Pid::from_raw(i32::try_from(pid).expect("a process id"));
        let options = ptrace::Options::PTRACE_O_TRACEEXIT | ptrace::Options::PTRACE_O_EXITKILL;
        ptrace::seize(pid, options).expect("run the tests as root");
        Self(pid)
    }

    /// Waits until the process ends, runs `look` while it is stopped there, and lets it go on to its end.
    ///
    /// # Panics
    /// Where it ended unseen, or does not end.
    pub fn look<R>(self, look: impl FnOnce() -> R) -> R {
        loop {
            match next_event(self.0, PATIENCE) {
                WaitStatus::PtraceEvent(_, _, event) if event == libc::PTRACE_EVENT_EXIT => break,
                WaitStatus::Stopped(_, signal) => ptrace::cont(self.0, signal).expect("it goes on"),
                WaitStatus::PtraceEvent(..) => ptrace::cont(self.0, None).expect("it goes on"),
                other => panic!("the process ended unseen: {other:?}"),
            }
        }
        let seen = look();
        ptrace::cont(self.0, None).expect("it goes on to its end");
        seen
    }
}
