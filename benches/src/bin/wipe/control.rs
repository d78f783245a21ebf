//! The control thread: when did the machine take the processor away from whoever has the wiper's priority?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use keyring::Clock;

/// A gap longer than this makes a round worthless.
const GAP_NS_MAX: u64 = 50_000;

const PERIOD: Duration = Duration::from_micros(50);

/// A time in which the control thread should have run and did not, CLOCK_BOOTTIME.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gap {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

pub(crate) struct Control {
    seen: Arc<AtomicU64>,
    gaps: Receiver<Gap>,
    late: Arc<Lateness>,
    known: Vec<Gap>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let (sender, gaps) = channel();
        let (seen, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let late = Arc::new(Lateness::default());
        let (seen_there, stop_there, late_there) = (Arc::clone(&seen), Arc::clone(&stop), Arc::clone(&late));
        let thread = std::thread::Builder::new().name("control".into()).spawn(move || {
            real_time(crate::rounds::PRIORITY);
            watch(&seen_there, &sender, &late_there, &stop_there);
        })?;
        Ok(Self { seen, gaps, late, known: Vec::new(), stop, thread: Some(thread) })
    }

    /// Whether there was a gap between two moments. Waits until the thread has passed the later one.
    pub(crate) fn had_gap(&mut self, from: u64, to: u64) -> bool {
        while self.seen.load(Ordering::SeqCst) <= to {
            std::thread::sleep(PERIOD);
        }
        self.known.extend(self.gaps.try_iter());
        let had = self.known.iter().any(|gap| gap.from < to && from < gap.to);
        self.known.retain(|gap| gap.to > to);
        had
    }

    /// How late the thread woke each time, sorted, in microseconds: what the machine gives to whoever has the wiper's priority.
    pub(crate) fn wakes(&self) -> Vec<f64> {
        let counts = self.late.counts.iter().map(|count| count.load(Ordering::Relaxed));
        (0u32..)
            .zip(counts)
            .flat_map(|(us, count)| std::iter::repeat_n(f64::from(us), usize::try_from(count).unwrap_or(0)))
            .collect()
    }
}

/// How often it woke how many whole microseconds late; the last counts whatever is later.
struct Lateness {
    counts: Box<[AtomicU64]>,
}

impl Default for Lateness {
    fn default() -> Self {
        Self { counts: (0..10_000).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Lateness {
    fn note(&self, ns: u64) {
        let at = usize::try_from(ns / 1_000).unwrap_or(usize::MAX).min(self.counts.len() - 1);
        self.counts[at].fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(seen: &AtomicU64, gaps: &Sender<Gap>, late: &Lateness, stop: &AtomicBool) {
    let period = u64::try_from(PERIOD.as_nanos()).unwrap_or(u64::MAX);
    let mut last = Clock::Boot.now().0;
    while !stop.load(Ordering::SeqCst) {
        std::thread::sleep(PERIOD);
        let now = Clock::Boot.now().0;
        late.note(now.saturating_sub(last + period));
        if now.saturating_sub(last) > period + GAP_NS_MAX {
            // Told before it is seen: whoever sees this moment knows of the gap before it.
            let _ = gaps.send(Gap { from: last + period, to: now });
        }
        last = now;
        seen.store(now, Ordering::SeqCst);
    }
}

/// Gives this thread a real-time priority, or takes it back with zero.
pub(crate) fn real_time(priority: u8) {
    use thread_priority::unix::{
        NormalThreadSchedulePolicy, RealtimeThreadSchedulePolicy, ThreadSchedulePolicy,
        set_thread_priority_and_policy, thread_native_id,
    };
    use thread_priority::{ThreadPriority, ThreadPriorityValue};
    let (policy, wanted) = match ThreadPriorityValue::try_from(priority) {
        Ok(value) if priority > 0 => (
            ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo),
            ThreadPriority::Crossplatform(value),
        ),
        _ => (ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other), ThreadPriority::Min),
    };
    if let Err(error) = set_thread_priority_and_policy(thread_native_id(), wanted, policy) {
        panic!("real-time priorities are needed (root, or LimitRTPRIO): {error:?}");
    }
}
