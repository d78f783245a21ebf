//! The thread that forgets.
//!
//! One thread waits on a signal descriptor and on a CLOCK_BOOTTIME timer set to the lease's deadline, and wipes in
//! place: no executor, no allocation and no lock stands between the event and the zeroed arena. Whoever else has to
//! wipe (a revoke, a lockdown, an administrator) calls [`Wiper::wipe`] in its own thread, which is as direct.
//!
//! Invariants:
//! - The keys are gone before anyone is told. What follows a wipe (closing heads, dropping caches, saving the cause)
//!   hangs on the [`Event`] channel and may be late; the wipe may not.
//! - Every signal the node reacts to is blocked in every thread, so no handler ever runs and no signal frame can hold
//!   a cipher thread's registers. [`block_signals`] must run before any thread is started.
//! - The timer is a second enforcement: each use of a key checks the deadline by itself.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use keyring::Keyring;
use lease::message::{WipeCause, WipeRecord};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::sync::mpsc;
use units::BootInstant;

use crate::boot_clock;

/// What the rest of the node has to know of, in the order it happened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// The keys are gone.
    Wiped(Wipe),
    /// SIGTERM or SIGINT: drain, wipe, end.
    Stop,
}

/// A wipe that has happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wipe {
    /// Why, when, and the generation after it.
    pub(crate) record: WipeRecord,
    /// From the call to the last zero in memory, nanoseconds.
    pub(crate) nanos: u64,
    /// Keys that were lent.
    pub(crate) keys: usize,
}

/// Wipes, and keeps the lease's timer.
#[derive(Debug)]
pub(crate) struct Wiper {
    keyring: Arc<Keyring>,
    timer: TimerFd,
    events: mpsc::UnboundedSender<Event>,
    last: Mutex<Option<Wipe>>,
    watching: AtomicBool,
}

/// The signals that the wiper's thread reads.
fn signals() -> SigSet {
    [Signal::SIGPWR, Signal::SIGTERM, Signal::SIGINT].into_iter().collect()
}

/// Blocks the node's signals in this thread and in every thread it will start.
pub fn block_signals() -> Result<(), Errno> {
    signals().thread_block()
}

impl Wiper {
    /// Starts the thread. Signals must be blocked already.
    pub(crate) fn start(
        keyring: Arc<Keyring>,
        events: mpsc::UnboundedSender<Event>,
    ) -> anyhow::Result<Arc<Self>> {
        let timer =
            TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let wiper = Arc::new(Self {
            keyring,
            timer,
            events,
            last: Mutex::new(None),
            watching: AtomicBool::new(true),
        });
        // Non-blocking: a read that waited for the next signal would sleep through the deadline.
        let signal_fd = SignalFd::with_flags(&signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let thread_wiper = Arc::clone(&wiper);
        let (confined, outcome) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new().name("wiper".into()).spawn(move || {
            prefer_this_thread();
            let is_confined = confine_this_thread();
            let may_watch = is_confined.is_ok();
            // Whoever starts the wiper waits for this.
            let _ = confined.send(is_confined);
            if may_watch {
                thread_wiper.watch(&signal_fd);
            }
            thread_wiper.watching.store(false, Ordering::SeqCst);
        })?;
        outcome.recv().context("the wiper's thread ended at its start")??;
        Ok(wiper)
    }

    /// Takes all keys back, now, in this thread; then tells the node.
    pub(crate) fn wipe(&self, cause: WipeCause) -> Wipe {
        let report = self.keyring.wipe(cause);
        let wipe = Wipe { record: report.record(), nanos: report.nanos, keys: report.keys };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(wipe);
        // The receiver is gone only when the node has ended.
        let _ = self.events.send(Event::Wiped(wipe));
        wipe
    }

    /// Whether the thread still waits for its events.
    pub(crate) fn is_watching(&self) -> bool {
        self.watching.load(Ordering::SeqCst)
    }

    /// The last wipe of this run.
    pub(crate) fn last(&self) -> Option<Wipe> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the lease's end; `None` where nothing is held. The keyring learns it first: from then on no use of a key
    /// can be late.
    pub(crate) fn set_deadline(&self, deadline: Option<BootInstant>) -> Result<(), Errno> {
        let Some(deadline) = deadline else {
            self.keyring.clear_deadline();
            return self.timer.unset();
        };
        self.keyring.set_deadline(deadline);
        let at = TimeSpec::from_duration(std::time::Duration::from_nanos(deadline.0));
        self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
    }

    /// The thread: waits for a signal or the deadline, for as long as the process lives.
    fn watch(&self, signal_fd: &SignalFd) {
        loop {
            let mut ready = [
                PollFd::new(signal_fd.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.timer.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    // Without this thread nothing would wipe at power loss: better sealed than unwatched.
                    self.wipe(WipeCause::Fault);
                    tracing::error!(%errno, "the wiper cannot wait for its events; wiped, and stopping");
                    let _ = self.events.send(Event::Stop);
                    return;
                }
            }
            while let Ok(Some(info)) = signal_fd.read_signal() {
                self.on_signal(info.ssi_signo);
            }
            if ready[1].any().unwrap_or(false) {
                self.on_timer();
            }
        }
    }

    fn on_signal(&self, number: u32) {
        match i32::try_from(number).map(Signal::try_from) {
            Ok(Ok(Signal::SIGPWR)) => {
                self.wipe(WipeCause::PowerLoss);
            }
            _ => {
                let _ = self.events.send(Event::Stop);
            }
        }
    }

    fn on_timer(&self) {
        // Reading disarms the poll; a renewal may have moved the deadline between expiry and here.
        let _ = self.timer.wait();
        if self.keyring.deadline().is_some_and(|deadline| deadline <= boot_clock::now()) {
            self.wipe(WipeCause::LeaseExpired);
        }
    }
}

/// The wiper opens no file and needs a handful of system calls.
fn confine_this_thread() -> anyhow::Result<()> {
    sandbox::drop_capabilities()?;
    sandbox::restrict_files(&sandbox::FileRules::default())?;
    sandbox::restrict_calls(sandbox::Role::Wiper)?;
    Ok(())
}

/// Runs this thread before all normal ones where the machine lets us (root, or LimitRTPRIO in the unit).
fn prefer_this_thread() {
    use thread_priority::unix::{
        RealtimeThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
    };
    use thread_priority::{ThreadPriority, ThreadPriorityValue};
    // Above every normal thread, below the kernel's own real-time work; the unit grants up to 10.
    const PRIORITY: u8 = 10;
    let Ok(value) = ThreadPriorityValue::try_from(PRIORITY) else { return };
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    let wanted = ThreadPriority::Crossplatform(value);
    if let Err(error) = set_thread_priority_and_policy(thread_native_id(), wanted, policy) {
        tracing::info!(
            ?error,
            "the wiper runs at normal priority; grant LimitRTPRIO=10 for a bounded wipe under load"
        );
    }
}
