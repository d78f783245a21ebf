//! Signs of life of what works in the background: nobody asks such a thread for anything, so nobody would notice that it hangs.
//!
//! Invariants:
//! - At each sign a worker says by when it gives the next; one that rests for an hour says an hour. Past that and a grace it
//!   counts as stalled, until it gives a sign again.
//! - A worker that has ended in order counts as no worker: what ended it has been said elsewhere.
//! - A sign is two stores: it costs a worker nothing, and waits for nobody.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use admin::api::WorkerStatus;
use units::BootInstant;

use crate::boot_clock;

/// A slow device, or a machine that has more to do than it can, is no stall.
const GRACE: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Signs {
    name: String,
    /// The last sign, on the boot's clock.
    last: AtomicU64,
    /// The next comes by then.
    due: AtomicU64,
}

/// All workers of a node.
#[derive(Debug, Default)]
pub(crate) struct Heartbeats {
    workers: Mutex<Vec<Arc<Signs>>>,
}

/// A worker's own. Dropping it ends the worker.
#[derive(Debug)]
pub(crate) struct Heart {
    signs: Arc<Signs>,
    all: Arc<Heartbeats>,
}

impl Heartbeats {
    /// A new worker, which gives its first sign soon.
    pub(crate) fn worker(self: &Arc<Self>, name: impl Into<String>) -> Heart {
        let signs = Arc::new(Signs { name: name.into(), last: AtomicU64::new(0), due: AtomicU64::new(0) });
        self.list().push(Arc::clone(&signs));
        let heart = Heart { signs, all: Arc::clone(self) };
        heart.beat(Duration::ZERO);
        heart
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Signs>>> {
        // Nothing that can panic runs under the lock.
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each, by name.
    pub(crate) fn status(&self) -> Vec<WorkerStatus> {
        self.status_at(boot_clock::now())
    }

    fn status_at(&self, now: BootInstant) -> Vec<WorkerStatus> {
        let status = |signs: &Arc<Signs>| WorkerStatus {
            name: signs.name.clone(),
            beat_boot_ns: BootInstant(signs.last.load(Ordering::Relaxed)),
            stalled: now.0 > signs.due.load(Ordering::Relaxed).saturating_add(nanos(GRACE)),
        };
        let mut workers: Vec<_> = self.list().iter().map(status).collect();
        workers.sort_by(|one, other| one.name.cmp(&other.name));
        workers
    }
}

impl Heart {
    /// A sign of life; the next follows within so long.
    pub(crate) fn beat(&self, within: Duration) {
        self.beat_at(boot_clock::now(), within);
    }

    fn beat_at(&self, now: BootInstant, within: Duration) {
        self.signs.due.store(now.0.saturating_add(nanos(within)), Ordering::Relaxed);
        self.signs.last.store(now.0, Ordering::Relaxed);
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.all.list().retain(|signs| !Arc::ptr_eq(signs, &self.signs));
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_worker_is_stalled_when_its_time_and_the_grace_are_over_and_not_before() {
        let hearts = Arc::new(Heartbeats::default());
        let (scrub, rests) = (hearts.worker("scrub-0"), hearts.worker("rests"));
        scrub.beat_at(BootInstant(SECOND), Duration::from_secs(5));
        rests.beat_at(BootInstant(SECOND), Duration::from_secs(3600));
        let stalled = |seconds: u64| {
            let status = hearts.status_at(BootInstant(seconds * SECOND));
            status.into_iter().filter(|worker| worker.stalled).map(|worker| worker.name).collect::<Vec<_>>()
        };
        assert_eq!(stalled(66), [""; 0]);
        assert_eq!(stalled(67), ["scrub-0"]);
        scrub.beat_at(BootInstant(67 * SECOND), Duration::from_secs(5));
        assert_eq!(stalled(67), [""; 0], "it goes on");
        assert_eq!(stalled(3662), ["rests", "scrub-0"]);
        drop(scrub);
        assert_eq!(stalled(3662), ["rests"], "one that has ended is not missed");
    }
}
