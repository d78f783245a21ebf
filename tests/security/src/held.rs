//! A thread of a node that is kept from running, as one is that waits for a dead device: whatever waits for it waits.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use harness::site::PATIENCE;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use crate::at_exit::next_event;

/// The name of the threads on which a node serves.
const NAME: &str = "nightlatchd";

/// A held thread. The node is killed when this is dropped without [`Held::release`].
#[derive(Debug)]
pub struct Held {
    release: Option<Sender<()>>,
    /// It traces: the kernel kills what it traces when it ends.
    tracer: Option<JoinHandle<()>>,
}

impl Held {
    /// Holds a serving thread of node `pid` that has nothing to do: the newest, which is none of those that wait for sockets.
    ///
    /// # Panics
    /// Where there is none, or tracing is not allowed (run the tests as root).
    pub fn idle(pid: u32) -> Self {
        let (release, releases) = channel();
        let (holds, is_held) = channel();
        let tracer = std::thread::spawn(move || hold(pid, &holds, &releases));
        let held = Self { release: Some(release), tracer: Some(tracer) };
        is_held.recv().expect("a thread that waits for work");
        held
    }

    /// Lets it run again.
    ///
    /// # Panics
    /// Where the node has ended meanwhile.
    pub fn release(mut self) {
        let release = self.release.take().expect("a thread is released once");
        release.send(()).expect("its tracer waits");
        let tracer = self.tracer.take().expect("a thread is released once");
        tracer.join().expect("a stopped thread goes on");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(tracer) = self.tracer.take() {
            let _ = tracer.join();
        }
    }
}

fn hold(pid: u32, holds: &Sender<()>, releases: &Receiver<()>) {
    let Some(thread) = serving_threads(pid).into_iter().rev().find(|thread| stops_idle(*thread)) else {
        return;
    };
    let _ = holds.send(());
    if releases.recv().is_ok() {
        ptrace::detach(thread, None).expect("a stopped thread goes on");
    }
}

/// The threads of that name but the first, the oldest first.
fn serving_threads(pid: u32) -> Vec<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running node");
    let mut threads: Vec<i32> = tasks
        .flatten()
        .filter(|task| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == NAME)
        })
        .map(|task| task.file_name().to_string_lossy().parse().expect("a number"))
        .filter(|thread| u32::try_from(*thread) != Ok(pid))
        .collect();
    threads.sort_unstable();
    threads.into_iter().map(Pid::from_raw).collect()
}

/// Stops a thread; `true` where it waits to be woken by another, and stays stopped.
fn stops_idle(thread: Pid) -> bool {
    match ptrace::seize(thread, ptrace::Options::PTRACE_O_EXITKILL) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return false,
        Err(errno) => panic!("tracing: {errno}; run the tests as root"),
    }
    // It fails where the thread has ended, which is told next.
    let _ = ptrace::interrupt(thread);
    if !matches!(next_event(thread, PATIENCE), WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)) {
        return false;
    }
    let call = ptrace::getregs(thread).expect("a stopped thread").orig_rax;
    let is_idle = i64::try_from(call) == Ok(libc::SYS_futex);
    if !is_idle {
        ptrace::detach(thread, None).expect("a stopped thread goes on");
    }
    is_idle
}
