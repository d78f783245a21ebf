//! A thread that others wait for, while it waits for a processor.

/// A thread that goes before all normal ones, until this is dropped.
#[derive(Debug)]
pub struct Hurried {
    thread: libc::pid_t,
}

/// Gives `thread` (its number for the kernel) a priority above all normal ones. `None` where the machine does not allow
/// that (`LimitRTPRIO`), or the thread has ended.
pub fn hurry(thread: u64) -> Option<Hurried> {
    /// Above every normal thread, below whatever wipes.
    const PRIORITY: libc::c_int = 1;
    let thread = libc::pid_t::try_from(thread).ok()?;
    schedule(thread, libc::SCHED_FIFO, PRIORITY).then(|| Hurried { thread })
}

impl Hurried {
    /// Its number for the kernel.
    pub fn thread(&self) -> u64 {
        u64::try_from(self.thread).unwrap_or(0)
    }
}

impl Drop for Hurried {
    fn drop(&mut self) {
        schedule(self.thread, libc::SCHED_OTHER, 0);
    }
}

fn schedule(thread: libc::pid_t, policy: libc::c_int, priority: libc::c_int) -> bool {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the call reads `parameters`, which lives through it.
    unsafe { libc::sched_setscheduler(thread, policy, &raw const parameters) == 0 }
}
