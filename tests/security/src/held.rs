//! A thread of a node that is kept from running, as one is that waits for a dead device: whatever waits for it waits.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::site::PATIENCE;
use nix::sys::ptrace;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use crate::at_exit::next_event;

/// The thread that scrubs the node's first pool: the third stage of a wipe waits for it, and nobody who is answered does. A
/// thread of the runtime may be given what somebody waits for while it is held, and the node would answer no more.
const NAME: &str = "scrub-0";

/// Between two tries to find it at rest.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A held thread. The node is killed when this is dropped without [`Held::release`].
#[derive(Debug)]
pub struct Held {
    release: Option<Sender<()>>,
    /// It traces: the kernel kills what it traces when it ends.
    tracer: Option<JoinHandle<()>>,
}

impl Held {
    /// Holds the thread of node `pid` that scrubs, while it has nothing to do.
    ///
    /// # Panics
    /// Where there is none, it never rests, or tracing is not allowed (run the tests as root).
    pub fn at_rest(pid: u32) -> Self {
        let (release, releases) = channel();
        let (holds, is_held) = channel();
        let tracer = std::thread::spawn(move || hold(pid, &holds, &releases));
        let held = Self { release: Some(release), tracer: Some(tracer) };
        is_held.recv().expect("a thread that scrubs and rests");
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
    let thread = scrubbing_thread(pid);
    let begun = Instant::now();
    while !stops_idle(thread) {
        assert!(begun.elapsed() < PATIENCE, "thread {thread} never rests");
        std::thread::sleep(LOOK_EVERY);
    }
    let _ = holds.send(());
    if releases.recv().is_ok() {
        ptrace::detach(thread, None).expect("a stopped thread goes on");
    }
}

fn scrubbing_thread(pid: u32) -> Pid {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running node");
    let thread = tasks
        .flatten()
        .find(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == NAME))
        .expect("a thread that scrubs");
    Pid::from_raw(thread.file_name().to_string_lossy().parse().expect("a number"))
}

/// Stops a thread; `true` where it waits to be woken by another, and stays stopped.
fn stops_idle(thread: Pid) -> bool {
    ptrace::seize(thread, ptrace::Options::PTRACE_O_EXITKILL).expect("run the tests as root");
    ptrace::interrupt(thread).expect("a traced thread");
    let event = next_event(thread, PATIENCE);
    assert!(matches!(event, WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)), "{event:?}");
    let call = ptrace::getregs(thread).expect("a stopped thread").orig_rax;
    let is_idle = i64::try_from(call) == Ok(libc::SYS_futex);
    if !is_idle {
        ptrace::detach(thread, None).expect("a stopped thread goes on");
    }
    is_idle
}
