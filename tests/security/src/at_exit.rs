//! A process stopped as it ends: its memory is still there, and none of its code runs any more.

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A traced child whose end is waited for. Whoever traces it waits, on the thread that began.
#[derive(Debug)]
pub struct AtExit(Pid);

impl AtExit {
    /// Traces the main thread of this test's child `pid`, without stopping it.
    ///
    /// # Panics
    /// Where that is not allowed (run the tests as root).
    pub fn of(pid: u32) -> Self {
        let pid = Pid::from_raw(i32::try_from(pid).expect("a process id"));
        ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACEEXIT).expect("run the tests as root");
        Self(pid)
    }

    /// Waits until the process ends, runs `look` while it is stopped there, and lets it go on to its end.
    ///
    /// # Panics
    /// Where it ended unseen.
    pub fn look<R>(self, look: impl FnOnce() -> R) -> R {
        loop {
            match waitpid(self.0, Some(WaitPidFlag::__WALL)).expect("the process is this test's child") {
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
