//! Folding in the background: what snapshots and epochs have left in many extents comes to lie in one, sealed or not
//! (`pool::Pool::fold`).
//!
//! It takes a share of its own thread's time, so that it makes way when the device is busy. When the pool is nearly full it takes
//! all of it: what it frees is what clients wait for.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use pool::{Pool, PoolErrorKind};
use units::SectorCount;

use crate::heartbeat::Heart;
use crate::node::Node;

/// Sectors that a step moves, or a little more: 1 MiB.
const STEP: SectorCount = SectorCount(256);
/// Of the time a step takes, so much is rested behind it.
const RESTS: u32 = 3;
/// How often it looks whether there is anything to do.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// How often moments are ended that folding waits for. A volume has 2^29 of them.
const ENDS_MOMENTS_EVERY: Duration = Duration::from_secs(600);
/// After an error, such as of a device that does not read a sector, the next step waits for so long.
const AFTER_AN_ERROR: Duration = Duration::from_secs(10);
/// A step takes less, however slow the device is.
const STEP_WITHIN: Duration = Duration::from_secs(60);
/// With less than one extent in so many free, it does not rest.
const SHORT_OF_SPACE: u64 = 16;

/// Starts a thread for each pool, which ends with it.
pub(crate) fn start(node: &Node) -> std::io::Result<()> {
    for (number, open) in node.pools.iter().enumerate() {
        let pool = Arc::downgrade(&open.pool);
        let heart = node.heartbeats.worker(format!("fold-{number}"));
        std::thread::Builder::new()
            .name(format!("fold-{number}"))
            .spawn(move || Folding { pool, heart, moments_ended: Instant::now() }.run())?;
    }
    Ok(())
}

struct Folding {
    pool: Weak<Pool>,
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
            std::thread::sleep(rest);
        }
    }

    /// One step: how long to rest behind it; `None` where the pool has failed, which it says itself.
    fn step(&mut self, pool: &Pool) -> Option<Duration> {
        let began = Instant::now();
        let done = pool.fold(STEP).and_then(|step| {
            let idle = step.groups == 0 && !step.more;
            if idle && self.moments_ended.elapsed() >= ENDS_MOMENTS_EVERY {
                self.moments_ended = Instant::now();
                pool.end_moments_to_fold()?;
            }
            Ok(step)
        });
        match done {
            Ok(step) if step.more && is_short_of_space(pool) => Some(Duration::ZERO),
            Ok(step) if step.more => Some(began.elapsed() * RESTS),
            Ok(_) => Some(LOOKS_EVERY),
            Err(error) if error.kind() == PoolErrorKind::Failed => None,
            Err(error) => {
                tracing::debug!(pool = %pool.info().id, %error, "folding stopped before its end");
                Some(AFTER_AN_ERROR)
            }
        }
    }
}

fn is_short_of_space(pool: &Pool) -> bool {
    let info = pool.info();
    info.capacity.0.saturating_sub(info.allocated.0) < info.capacity.0 / SHORT_OF_SPACE
}
