//! The thread that forgets.
//!
//! One thread waits on a signal descriptor, on two CLOCK_BOOTTIME timers (the lease's deadline and the end of a drain) and
//! on every fast source of triggers, and wipes in place: no executor, no allocation and no lock stands between the event
//! and the zeroed arena. Whoever else has to wipe (a slow source, a revoke, a lockdown, an administrator) orders it from
//! this thread, which runs before all normal ones, by [`Wiper::wipe`].
//!
//! Invariants:
//! - The keys are gone before anyone is told. What follows a wipe (closing heads, dropping caches, saving the cause)
//!   hangs on the [`Event`] channel and may be late; the wipe may not.
//! - Every signal the node reacts to is blocked in every thread, so no handler ever runs and no signal frame can hold
//!   a cipher thread's registers. [`block_signals`] must run before any thread is started.
//! - The timer is a second enforcement: each use of a key checks the deadline by itself.
//! - An order that this thread does not carry out at once is carried out by whoever gave it.
//! - A drain that a source or a stop began ends in a wipe at its time, by this thread's timer, whatever the executor and the disks
//!   do. The earliest end of several holds; a wipe for another reason ends them all.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use keyring::Keyring;
use lease::message::{WipeCause, WipeRecord, WipeStages};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use sources::{Action, Condition, Fired, SourceState};
use tokio::sync::{mpsc, watch};
use units::BootInstant;

use crate::boot_clock;
use crate::sources::{Watched, cause};
use crate::stages::{self, StageTimes};

/// Descriptors that one wait returns; more are returned by the next.
const EVENTS_PER_WAIT: usize = 16;

/// Above every normal thread, below the kernel's own real-time work; the unit grants up to 10.
const PRIORITY: u8 = 10;

/// How long the thread may take to show that it lives: it runs before all others.
const ANSWER_MS: u16 = 1_000;

/// How long whoever orders a wipe waits for the thread: some hundred times what it takes.
const ORDER_PATIENCE: Duration = Duration::from_millis(1);

/// How long for a wipe that it has taken up, on a machine that stands still.
const WIPE_PATIENCE: Duration = Duration::from_millis(20);

/// What a descriptor of the wait is, before the sources' own numbers.
mod token {
    pub(super) const SIGNALS: u64 = 0;
    pub(super) const DEADLINE: u64 = 1;
    pub(super) const DRAIN: u64 = 2;
    pub(super) const QUESTION: u64 = 3;
    pub(super) const ORDERS: u64 = 4;
    pub(super) const SOURCES: u64 = 5;
}

/// What the rest of the node has to know of, in the order it happened.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The keys are gone.
    Wiped(Wipe),
    /// A source has fired; what it asks for has been done or begun.
    Fired(Notice),
    /// SIGTERM or SIGINT: drain, wipe, end. The wipe comes at its time whoever hears of this.
    Stop,
}

/// A wipe that has happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wipe {
    /// Why, when, and the generation after it.
    pub(crate) record: WipeRecord,
    /// How far it has come.
    pub(crate) stages: WipeStages,
    /// Keys that were lent.
    pub(crate) keys: usize,
    /// When it was called for.
    began: Instant,
}

/// What a source said.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    pub(crate) source: String,
    pub(crate) condition: Condition,
    pub(crate) action: Action,
    pub(crate) trouble: Option<String>,
}

/// Wipes, and keeps the lease's timer.
#[derive(Debug)]
pub(crate) struct Wiper {
    keyring: Arc<Keyring>,
    timer: TimerFd,
    drain_timer: TimerFd,
    /// Somebody asks whether the thread lives, and its answer.
    question: EventFd,
    answer: EventFd,
    /// One asker at a time.
    asking: Mutex<()>,
    /// Somebody orders a wipe; for which causes, as bits by their places in [`WipeCause::ALL`].
    order: EventFd,
    ordered: AtomicU64,
    /// The drain that was begun, as [`Drain`] packs it.
    drain: AtomicU64,
    events: mpsc::UnboundedSender<Event>,
    last: Mutex<Option<Wipe>>,
    wiped: Condvar,
    watching: AtomicBool,
    /// How long after the signal to stop the keys go at the latest.
    stop_limit: Duration,
    /// To the thread of the second stage.
    second_stage: std::sync::mpsc::Sender<Wipe>,
    /// The last generation that no thread works with keys from before of.
    threads_clear: watch::Sender<u64>,
    times: StageTimes,
}

/// When a drain ends and why, in one word: the earlier of two is the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Drain {
    /// CLOCK_BOOTTIME in nanoseconds, a quarter of a microsecond early at most.
    end: u64,
    cause: WipeCause,
}

impl Drain {
    /// None stands.
    const NONE: u64 = u64::MAX;

    fn pack(end: u64, cause: WipeCause) -> u64 {
        // The end of time is none.
        (end.min(Self::NONE - 0x100) & !0xff) | place(cause)
    }

    fn unpack(word: u64) -> Option<Self> {
        let at = usize::try_from(word & 0xff).ok()?;
        let cause = WipeCause::ALL.get(at).copied()?;
        Some(Self { end: word & !0xff, cause })
    }
}

/// A cause's place in [`WipeCause::ALL`].
fn place(cause: WipeCause) -> u64 {
    WipeCause::ALL.iter().zip(0..).find(|(known, _)| **known == cause).map_or(0, |(_, place)| place)
}

// Places are bits of a word, and the last byte of a drain's is none of them.
const _: () = assert!(WipeCause::ALL.len() < 64);

impl Wipe {
    fn nanos_so_far(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The signals that the wiper's thread reads.
fn signals() -> SigSet {
    [Signal::SIGPWR, Signal::SIGTERM, Signal::SIGINT].into_iter().collect()
}

/// Blocks the node's signals in this thread and in every thread it will start.
pub fn block_signals() -> Result<(), Errno> {
    signals().thread_block()
}

/// Lets threads of this program take the priorities that a wipe needs, where the program was started with the right to say
/// so. In a unit `LimitRTPRIO` does it.
pub(crate) fn allow_priorities() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let wanted = u64::from(PRIORITY);
    if getrlimit(Resource::RLIMIT_RTPRIO).is_ok_and(|(now, _)| now < wanted) {
        // Without it the wiper's own attempt says what is missing.
        let _ = setrlimit(Resource::RLIMIT_RTPRIO, wanted, wanted);
    }
}

impl Wiper {
    /// Starts the thread, which hears `fast` too. Signals must be blocked already. One to stop is followed by a wipe after
    /// `stop_limit`.
    pub(crate) fn start(
        keyring: Arc<Keyring>,
        fast: Vec<Watched>,
        stop_limit: Duration,
        events: mpsc::UnboundedSender<Event>,
    ) -> anyhow::Result<Arc<Self>> {
        let timer =
            || TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let (second_stage, wipes) = std::sync::mpsc::channel();
        let wiper = Arc::new(Self {
            keyring,
            timer: timer()?,
            drain_timer: timer()?,
            question: EventFd::from_value_and_flags(0, flags)?,
            answer: EventFd::from_value_and_flags(0, flags)?,
            asking: Mutex::new(()),
            order: EventFd::from_value_and_flags(0, flags)?,
            ordered: AtomicU64::new(0),
            drain: AtomicU64::new(Drain::NONE),
            events,
            last: Mutex::new(None),
            wiped: Condvar::new(),
            watching: AtomicBool::new(true),
            stop_limit,
            second_stage,
            threads_clear: watch::Sender::new(0),
            times: StageTimes::default(),
        });
        start_second_stage(&wiper, wipes)?;
        // Non-blocking: a read that waited for the next signal would sleep through the deadline.
        let signal_fd = SignalFd::with_flags(&signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let ears = Ears::open(&wiper, signal_fd, fast)?;
        let thread_wiper = Arc::clone(&wiper);
        let (confined, outcome) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new().name("wiper".into()).spawn(move || {
            prefer_this_thread();
            let is_confined = confine_this_thread();
            let may_watch = is_confined.is_ok();
            // Whoever starts the wiper waits for this.
            let _ = confined.send(is_confined);
            if may_watch {
                thread_wiper.watch(ears);
            }
            thread_wiper.watching.store(false, Ordering::SeqCst);
        })?;
        outcome.recv().context("the wiper's thread ended at its start")??;
        Ok(wiper)
    }

    /// Has all keys taken back, now, by the wiper's thread: this one may be kept from running. Returns once they are gone.
    pub(crate) fn wipe(&self, cause: WipeCause) -> Wipe {
        let before = self.keyring.status().generation;
        let order = 1 << place(cause);
        let carried_out = |patience| {
            let is_ours = |wipe: &Wipe| wipe.record.cause == cause && wipe.record.generation > before;
            let unserved = |last: &mut Option<Wipe>| !last.as_ref().is_some_and(is_ours);
            let waited = self.wiped.wait_timeout_while(self.lock_last(), patience, unserved);
            waited.unwrap_or_else(PoisonError::into_inner).0.filter(is_ours)
        };
        self.ordered.fetch_or(order, Ordering::SeqCst);
        if self.order.write(1).is_ok() {
            if let Some(wipe) = carried_out(ORDER_PATIENCE) {
                return wipe;
            }
            // Taken back, so that it is carried out once; where the thread has taken it up, its wipe is the one.
            let is_under_way = self.ordered.fetch_and(!order, Ordering::SeqCst) & order == 0;
            if is_under_way && let Some(wipe) = carried_out(WIPE_PATIENCE) {
                return wipe;
            }
        }
        self.wipe_here(cause)
    }

    /// Takes all keys back in this thread; then tells the node.
    fn wipe_here(&self, cause: WipeCause) -> Wipe {
        let began = Instant::now();
        let report = self.keyring.wipe(cause);
        let stages = WipeStages::keys(report.nanos);
        let wipe = Wipe { record: report.record(), stages, keys: report.keys, began };
        self.drain.store(Drain::NONE, Ordering::SeqCst);
        *self.lock_last() = Some(wipe);
        self.wiped.notify_all();
        // That thread lives as long as this does.
        let _ = self.second_stage.send(wipe);
        // The receiver is gone only when the node has ended.
        let _ = self.events.send(Event::Wiped(wipe));
        wipe
    }

    /// The second stage of `wipe` is done.
    pub(crate) fn on_threads_clear(&self, wipe: &Wipe) {
        let nanos = wipe.nanos_so_far();
        self.note(wipe, |stages| stages.threads_ns = Some(nanos));
        self.times.observe("keys", wipe.stages.keys_ns);
        self.times.observe("threads", nanos);
        self.threads_clear.send_modify(|clear| *clear = wipe.record.generation.max(*clear));
    }

    /// The third stage of `wipe` is done. Says how far it has come in all.
    pub(crate) fn on_memory_clear(&self, wipe: &Wipe) {
        let nanos = wipe.nanos_so_far();
        self.note(wipe, |stages| stages.memory_ns = Some(nanos));
        self.times.observe("memory", nanos);
    }

    fn note(&self, wipe: &Wipe, change: impl FnOnce(&mut WipeStages)) {
        let mut last = self.lock_last();
        // A later wipe has stages of its own.
        if let Some(last) = last.as_mut().filter(|last| last.record == wipe.record) {
            change(&mut last.stages);
        }
    }

    /// How far `wipe` has come by now; where a later one has come in between, what was known at its time.
    pub(crate) fn stages_of(&self, wipe: &Wipe) -> WipeStages {
        self.last().filter(|last| last.record == wipe.record).map_or(wipe.stages, |last| last.stages)
    }

    /// Returns once no thread works with keys from before `generation`.
    pub(crate) async fn threads_clear(&self, generation: u64) {
        // The sender is this wiper's.
        let _ = self.threads_clear.subscribe().wait_for(|clear| *clear >= generation).await;
    }

    /// How long the stages of all wipes took.
    pub(crate) fn times(&self) -> &StageTimes {
        &self.times
    }

    /// Whether the thread still waits for its events.
    pub(crate) fn is_watching(&self) -> bool {
        self.watching.load(Ordering::SeqCst)
    }

    /// Asks the thread for a sign of life. Blocks for a second at most.
    pub(crate) fn answers(&self) -> bool {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer that came too late for the last question is none to this one.
        let _ = self.answer.read();
        if self.question.write(1).is_err() {
            return false;
        }
        let mut ready = [PollFd::new(self.answer.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut ready, PollTimeout::from(ANSWER_MS)), Ok(1..)) && self.answer.read().is_ok()
    }

    /// The last wipe of this run.
    pub(crate) fn last(&self) -> Option<Wipe> {
        *self.lock_last()
    }

    fn lock_last(&self) -> MutexGuard<'_, Option<Wipe>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the lease's end; `None` where nothing is held. The keyring learns it first: from then on no use of a key
    /// can be late.
    pub(crate) fn set_deadline(&self, deadline: Option<BootInstant>) -> Result<(), Errno> {
        let Some(deadline) = deadline else {
            self.keyring.clear_deadline();
            return self.timer.unset();
        };
        self.keyring.set_deadline(deadline);
        let at = TimeSpec::from_duration(Duration::from_nanos(deadline.0));
        self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
    }

    /// Does what the policy of a source asks for that another thread listens to; then tells the node.
    pub(crate) fn on_fired(&self, source: &SourceState, fired: Fired) {
        self.react(source, fired, Self::wipe);
    }

    fn react(&self, source: &SourceState, fired: Fired, wipe: fn(&Self, WipeCause) -> Wipe) {
        let cause = cause(fired.condition);
        match fired.action {
            Action::Wipe => {
                wipe(self, cause);
            }
            Action::Drain(limit) => {
                self.drain(cause, limit, wipe);
            }
            Action::Report => {}
        }
        let notice = Notice {
            source: source.name().to_owned(),
            condition: fired.condition,
            action: fired.action,
            trouble: source.trouble(),
        };
        let _ = self.events.send(Event::Fired(notice));
    }

    /// Has clients finish for `limit` at most, or wipes at once where that end cannot be set.
    fn drain(&self, cause: WipeCause, limit: Duration, wipe: fn(&Self, WipeCause) -> Wipe) {
        if let Err(errno) = self.begin_drain(cause, limit) {
            // Without its timer a drain would have no end.
            wipe(self, cause);
            tracing::error!(%errno, "the end of a drain could not be set; wiped at once");
        }
    }

    /// Wipes after `limit` at the latest, unless an earlier end stands.
    fn begin_drain(&self, cause: WipeCause, limit: Duration) -> Result<(), Errno> {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let drain = Drain::pack(boot_clock::now().0.saturating_add(nanos), cause);
        self.drain.fetch_min(drain, Ordering::SeqCst);
        // Two threads may begin one: whoever sets the timer last sets it to what then stands.
        let mut set = Drain::NONE;
        loop {
            let standing = self.drain.load(Ordering::SeqCst);
            let Some(Drain { end, .. }) = Drain::unpack(standing).filter(|_| standing != set) else {
                return Ok(());
            };
            let at = TimeSpec::from_duration(Duration::from_nanos(end));
            self.drain_timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            set = standing;
        }
    }

    /// The thread: waits for a signal, a timer or a source, for as long as the process lives.
    fn watch(&self, mut ears: Ears) {
        let mut ready = [EpollEvent::empty(); EVENTS_PER_WAIT];
        // What was on before anyone listened.
        self.act_on(&mut ears, boot_clock::now());
        loop {
            let count = match ears.epoll.wait(&mut ready, ears.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => {
                    // Without this thread nothing would wipe at power loss: better sealed than unwatched.
                    self.wipe_here(WipeCause::Fault);
                    tracing::error!(%errno, "the wiper cannot wait for its events; wiped, and stopping");
                    let _ = self.events.send(Event::Stop);
                    return;
                }
            };
            let now = boot_clock::now();
            for event in &ready[..count] {
                match event.data() {
                    token::SIGNALS => {
                        while let Ok(Some(info)) = ears.signals.read_signal() {
                            self.on_signal(info.ssi_signo);
                        }
                    }
                    token::DEADLINE => self.on_deadline(),
                    token::DRAIN => self.on_drain_end(),
                    token::QUESTION => {
                        let _ = self.question.read();
                        let _ = self.answer.write(1);
                    }
                    token::ORDERS => self.on_orders(),
                    source => ears.read(source, now),
                }
            }
            self.act_on(&mut ears, now);
        }
    }

    fn act_on(&self, ears: &mut Ears, now: BootInstant) {
        for watched in &mut ears.sources {
            while let Some(fired) = watched.monitor.next_fired(now) {
                self.react(watched.monitor.state(), fired, Self::wipe_here);
            }
        }
    }

    fn on_orders(&self) {
        let _ = self.order.read();
        let ordered = self.ordered.swap(0, Ordering::SeqCst);
        for cause in WipeCause::ALL.iter().filter(|cause| ordered & 1 << place(**cause) != 0) {
            self.wipe_here(*cause);
        }
    }

    fn on_signal(&self, number: u32) {
        match i32::try_from(number).map(Signal::try_from) {
            Ok(Ok(Signal::SIGPWR)) => {
                self.wipe_here(WipeCause::PowerLoss);
            }
            _ => {
                self.drain(WipeCause::PlannedStop, self.stop_limit, Self::wipe_here);
                let _ = self.events.send(Event::Stop);
            }
        }
    }

    fn on_deadline(&self) {
        // Reading disarms the wait; a renewal may have moved the deadline between expiry and here.
        let _ = self.timer.wait();
        if self.keyring.deadline().is_some_and(|deadline| deadline <= boot_clock::now()) {
            self.wipe_here(WipeCause::LeaseExpired);
        }
    }

    fn on_drain_end(&self) {
        // A wipe may have come between; then the end has moved out of reach.
        let _ = self.drain_timer.wait();
        let drain = Drain::unpack(self.drain.load(Ordering::SeqCst));
        if let Some(drain) = drain.filter(|drain| drain.end <= boot_clock::now().0) {
            self.wipe_here(drain.cause);
        }
    }
}

/// What the thread waits for. Everything is made before the first wait: waiting and reading allocate nothing.
#[derive(Debug)]
struct Ears {
    epoll: Epoll,
    signals: SignalFd,
    sources: Vec<Watched>,
}

impl Ears {
    fn open(wiper: &Wiper, signals: SignalFd, sources: Vec<Watched>) -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let readable = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        epoll.add(signals.as_fd(), readable(token::SIGNALS))?;
        epoll.add(wiper.timer.as_fd(), readable(token::DEADLINE))?;
        epoll.add(wiper.drain_timer.as_fd(), readable(token::DRAIN))?;
        epoll.add(wiper.question.as_fd(), readable(token::QUESTION))?;
        epoll.add(wiper.order.as_fd(), readable(token::ORDERS))?;
        for (watched, token) in sources.iter().zip(token::SOURCES..) {
            if let Some(fast) = &watched.fast {
                epoll.add(fast.fd(), readable(token))?;
            }
        }
        Ok(Self { epoll, signals, sources })
    }

    /// Until the first debounce is over.
    fn timeout(&self) -> EpollTimeout {
        let Some(due) = self.sources.iter().filter_map(|watched| watched.monitor.due()).min() else {
            return EpollTimeout::NONE;
        };
        // Rounded up: a wait that ends too early would be repeated without rest.
        let ms = due.0.saturating_sub(boot_clock::now().0).div_ceil(1_000_000);
        i32::try_from(ms).ok().and_then(|ms| EpollTimeout::try_from(ms).ok()).unwrap_or(EpollTimeout::MAX)
    }

    fn read(&mut self, token: u64, now: BootInstant) {
        let index = usize::try_from(token.saturating_sub(token::SOURCES)).unwrap_or(usize::MAX);
        let Some(watched) = self.sources.get_mut(index) else { return };
        if let Some(fast) = watched.read(now) {
            // A descriptor that has ended is ready for ever.
            let _ = self.epoll.delete(fast.fd());
        }
    }
}

/// The second stage gives late threads priority.
fn confine_but_priority() -> anyhow::Result<()> {
    sandbox::drop_capabilities_but_priority()?;
    restrict_this_thread()
}

/// The wiper opens no file and needs a handful of system calls.
fn confine_this_thread() -> anyhow::Result<()> {
    sandbox::drop_capabilities()?;
    restrict_this_thread()
}

fn restrict_this_thread() -> anyhow::Result<()> {
    sandbox::restrict_files(&sandbox::FileRules::default())?;
    sandbox::restrict_calls(sandbox::Role::Wiper)?;
    Ok(())
}

/// The thread that waits for the others to be done with a wiped key; confined as the wiper's.
fn start_second_stage(wiper: &Arc<Wiper>, wipes: std::sync::mpsc::Receiver<Wipe>) -> anyhow::Result<()> {
    let (keyring, wiper) = (Arc::clone(&wiper.keyring), Arc::downgrade(wiper));
    let (confined, outcome) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new().name("second-stage".into()).spawn(move || {
        prefer_this_thread();
        let is_confined = confine_but_priority();
        let may_run = is_confined.is_ok();
        // Whoever starts the thread waits for this.
        let _ = confined.send(is_confined);
        if may_run {
            stages::run(&keyring, &wiper, &wipes);
        }
    })?;
    outcome.recv().context("the thread of the second stage ended at its start")?
}

/// Runs this thread before all normal ones where the machine lets us (root, or LimitRTPRIO in the unit).
fn prefer_this_thread() {
    use thread_priority::unix::{
        RealtimeThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
    };
    use thread_priority::{ThreadPriority, ThreadPriorityValue};
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_drains_the_earlier_is_the_smaller_word_and_keeps_its_cause() {
        let early = Drain::pack(5_000_000, WipeCause::MachineShutdown);
        for later in WipeCause::ALL {
            assert!(early < Drain::pack(5_000_256, *later), "{later}");
            assert!(Drain::pack(u64::MAX, *later) < Drain::NONE, "{later}");
        }
        let drain = Drain::unpack(early).unwrap();
        assert_eq!(drain.cause, WipeCause::MachineShutdown);
        assert!((4_999_744..=5_000_000).contains(&drain.end), "{drain:?}");
        assert_eq!(Drain::unpack(Drain::NONE), None);
    }

    #[test]
    fn every_cause_has_a_place_of_its_own() {
        let places: std::collections::BTreeSet<_> =
            WipeCause::ALL.iter().map(|cause| place(*cause)).collect();
        assert_eq!(places.len(), WipeCause::ALL.len());
    }
}
