//! Folding in the background: what snapshots and epochs have left in many extents comes to lie in one, sealed or not
//! (`pool::Pool::fold`).
//!
//! It takes a share of its own thread's time, one transfer after the other, so that it makes way when the device is busy. Where space
//! runs short, or what waits is much of what is free, it takes all of its time: what it frees is what clients wait for. While it falls
//! so far behind, replication closes epochs less often (`replication/closing.rs`).
//!
//! What a node finds in a pool at its start is not touched before a key has judged it: the state that the keyholder compares with is to
//! be what was there. Replicas have no key, and where space runs short there is nothing to wait for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pool::{FoldStep, Pool, PoolErrorKind, PoolInfo};
use units::{Fence, SectorCount};

use crate::heartbeat::Heart;
use crate::node::Node;

/// Sectors that a step moves, or a little more: 1 MiB.
const STEP: SectorCount = SectorCount(256);
/// Of the time a step takes, so much is rested behind it.
const RESTS: u32 = 3;
/// Least that is rested behind a step that could do nothing.
const RESTS_MIN: Duration = Duration::from_millis(10);
/// How often it looks whether there is anything to do.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// How often moments are ended that folding waits for, of which a volume has 2^29. It costs each extent that is written afterwards another
/// one for a while: nothing to do more often where space is short.
const ENDS_MOMENTS_EVERY: Duration = Duration::from_secs(600);
/// After an error, such as of a device that does not take a write, the next step waits for so long.
const AFTER_AN_ERROR: Duration = Duration::from_secs(10);
/// A step takes less, however slow the device is.
const STEP_WITHIN: Duration = Duration::from_secs(60);
/// With less than one extent in so many free, space is short.
const SHORT_OF: u64 = 16;
/// When what waits is at least one of so many extents that are free, folding falls behind.
const BEHIND_BY: u64 = 4;

/// What folding in a pool has done since the start, and what is left.
#[derive(Debug, Default)]
pub(crate) struct Folded {
    freed_extents: AtomicU64,
    moved_sectors: AtomicU64,
    waiting: AtomicU64,
    behind: AtomicBool,
    last_unix_s: AtomicU64,
}

impl Folded {
    /// Extents of the device that it has freed.
    pub(crate) fn freed_extents(&self) -> u64 {
        self.freed_extents.load(Ordering::Relaxed)
    }

    pub(crate) fn moved_sectors(&self) -> SectorCount {
        SectorCount(self.moved_sectors.load(Ordering::Relaxed))
    }

    /// Extents of volumes in which something is left to fold, now or once a moment ends.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// When it last folded something, seconds since 1970; 0 before.
    pub(crate) fn last_unix_s(&self) -> u64 {
        self.last_unix_s.load(Ordering::Relaxed)
    }

    /// Whether more comes than it folds, and space may run out.
    pub(crate) fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    fn note(&self, step: &FoldStep, pressure: Pressure) {
        self.freed_extents.fetch_add(step.freed, Ordering::Relaxed);
        self.moved_sectors.fetch_add(step.moved.0, Ordering::Relaxed);
        self.waiting.store(step.waiting, Ordering::Relaxed);
        self.behind.store(pressure == Pressure::Behind, Ordering::Relaxed);
        if step.groups > 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.last_unix_s.store(now.as_secs(), Ordering::Relaxed);
        }
    }
}

/// How much of a pool's space hangs on folding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pressure {
    None,
    /// Little is free.
    Short,
    /// What waits is much of what is free.
    Behind,
}

impl Pressure {
    /// Of a pool with so many bytes, so many of them free, in extents of so many.
    fn of((capacity, free, extent): (u64, u64, u64), step: &FoldStep) -> Self {
        if step.more && step.waiting.saturating_mul(extent) >= free / BEHIND_BY {
            Self::Behind
        } else if free < capacity / SHORT_OF {
            Self::Short
        } else {
            Self::None
        }
    }
}

fn space(info: &PoolInfo) -> (u64, u64, u64) {
    let free = info.capacity.0.saturating_sub(info.allocated.0 + info.reserved.0);
    (info.capacity.0, free, info.extent_len.0)
}

/// Starts a thread for each pool, which ends with it.
pub(crate) fn start(node: &Arc<Node>) -> std::io::Result<()> {
    for (number, open) in node.pools.iter().enumerate() {
        let folding = Folding {
            node: Arc::downgrade(node),
            pool: Arc::downgrade(&open.pool),
            folded: Arc::clone(&open.folded),
            heart: node.heartbeats.worker(format!("fold-{number}")),
            moments_ended: Instant::now(),
        };
        std::thread::Builder::new().name(format!("fold-{number}")).spawn(move || folding.run())?;
    }
    Ok(())
}

struct Folding {
    node: Weak<Node>,
    pool: Weak<Pool>,
    folded: Arc<Folded>,
    heart: Heart,
    moments_ended: Instant,
}

impl Folding {
    fn run(mut self) {
        while let Some(pool) = self.pool.upgrade() {
            self.heart.beat(STEP_WITHIN);
            let Some(rest) = self.step(&pool) else { return };
            drop(pool);
            self.heart.beat(rest);
            // As waiting for a lock is: no call that only sleeps passes by the filter.
            std::thread::park_timeout(rest);
        }
    }

    /// One step: how long to rest behind it; `None` where the pool has failed, which it says itself.
    fn step(&mut self, pool: &Pool) -> Option<Duration> {
        if !self.may_fold(pool) {
            return Some(LOOKS_EVERY);
        }
        let began = Instant::now();
        let done = pool.fold(STEP).and_then(|step| {
            let pressure = Pressure::of(space(&pool.info()), &step);
            self.folded.note(&step, pressure);
            let idle = step.groups == 0 && !step.more;
            if idle && self.moments_ended.elapsed() >= ENDS_MOMENTS_EVERY {
                self.moments_ended = Instant::now();
                pool.end_moments_to_fold()?;
            }
            Ok((step, pressure))
        });
        match done {
            Ok((step, pressure)) => Some(rest_behind(&step, pressure, began.elapsed())),
            Err(error) if error.kind() == PoolErrorKind::Failed => None,
            Err(error) => {
                let pool = pool.info().id;
                tracing::warn!(%pool, %error, "folding stopped before its end and is tried again: look at the device");
                Some(AFTER_AN_ERROR)
            }
        }
    }

    /// Whether a key has judged what is in the pool, none is to, or there is no space to wait for one.
    fn may_fold(&self, pool: &Pool) -> bool {
        let Some(node) = self.node.upgrade() else { return true };
        let info = pool.info();
        let is_short = Pressure::of(space(&info), &FoldStep::default()) == Pressure::Short;
        let is_written_here =
            || pool.volumes().iter().any(|volume| !volume.replica && volume.fence > Fence(0));
        node.has_judged(info.id) || is_short || !is_written_here()
    }
}

fn rest_behind(step: &FoldStep, pressure: Pressure, took: Duration) -> Duration {
    match (step.more, pressure) {
        (false, _) => LOOKS_EVERY,
        (true, _) if step.groups == 0 => RESTS_MIN.max(took * RESTS),
        (true, Pressure::None) => took * RESTS,
        (true, Pressure::Short | Pressure::Behind) => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Of a pool of 1000 extents.
    fn pressure(free: u64, more: bool, waiting: u64) -> Pressure {
        Pressure::of((1000 * MIB, free * MIB, MIB), &FoldStep { more, waiting, ..FoldStep::default() })
    }

    #[test]
    fn what_waits_is_weighed_against_what_is_free() {
        assert_eq!(pressure(500, true, 124), Pressure::None);
        assert_eq!(pressure(500, true, 125), Pressure::Behind);
        assert_eq!(pressure(500, false, 400), Pressure::None, "it waits for moments to end");
        assert_eq!(pressure(62, true, 1), Pressure::Short);
        assert_eq!(pressure(62, true, 16), Pressure::Behind);
        assert_eq!(pressure(0, true, 1), Pressure::Behind);
        assert_eq!(pressure(0, false, 0), Pressure::Short);
    }

    #[test]
    fn it_takes_a_quarter_of_its_time_unless_space_hangs_on_it() {
        let step = |groups, more| FoldStep { groups, more, ..FoldStep::default() };
        let took = Duration::from_millis(20);
        assert_eq!(rest_behind(&step(9, true), Pressure::None, took), Duration::from_millis(60));
        assert_eq!(rest_behind(&step(9, true), Pressure::Short, took), Duration::ZERO);
        assert_eq!(rest_behind(&step(9, true), Pressure::Behind, took), Duration::ZERO);
        assert_eq!(rest_behind(&step(9, false), Pressure::Short, took), LOOKS_EVERY);
        let nothing = Duration::from_micros(3);
        assert_eq!(rest_behind(&step(0, true), Pressure::Behind, nothing), RESTS_MIN, "no busy waiting");
    }
}
