//! Moving a pool to another device in the background: `nightlatch pool replace`. It needs no key, and clients go on.
//!
//! A thread for each pool copies, makes way for clients as scrubbing does, and finishes. What was done is on the devices, so a node
//! that is started again goes on by itself where it was; what it was told of how fast, it has forgotten then.
//!
//! A node opens no file once it serves, so where a pool can be moved to is named in its configuration (`spares`) and open from the
//! start.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use admin::api::{ReplaceAction, ReplaceState, Replacement};
use admin::{ControlError, ErrorKind};
use device::Device;
use pool::{Pool, PoolError};
use units::{ByteLen, PoolId};

use crate::control::pool_error;
use crate::heartbeat::Heart;
use crate::node::{Node, OpenPool};

/// How much of the time it copies: where that takes longer because clients read and write too, it copies less.
const SHARE: f64 = 0.5;
/// How often a mover with nothing to do looks whether there is something.
const LOOKS_EVERY: Duration = Duration::from_secs(60);
/// One step takes less, however slow a device is.
const STEP_WITHIN: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
struct State {
    /// Most bytes a second.
    ceiling: Option<u64>,
    bytes_per_s: f64,
    running: bool,
    /// There may be something new to do.
    ordered: bool,
    /// How the last move ended.
    last: Option<Replacement>,
}

/// Moves one pool, when told to.
#[derive(Debug, Default)]
pub(crate) struct Mover {
    state: Mutex<State>,
    changed: Condvar,
    /// The thread's, once it runs.
    heart: OnceLock<Heart>,
}

impl Mover {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a thread that moves the pool when there is something to do, as long as the node is there.
    pub(crate) fn start(number: usize, node: &Arc<Node>) -> std::io::Result<()> {
        let open = &node.pools[number];
        let (mover, pool) = (Arc::clone(&open.mover), Arc::downgrade(&open.pool));
        let _ = mover.heart.set(node.heartbeats.worker(format!("move-{number}")));
        let node = Arc::downgrade(node);
        std::thread::Builder::new().name(format!("move-{number}")).spawn(move || {
            while node.strong_count() > 0 {
                let Some(pool) = pool.upgrade() else { return };
                // One that has failed copies no more: what was copied stays, and it goes on when it is opened again.
                if pool.replacing().is_some() && !pool.info().failed {
                    mover.run(&pool, &node);
                    continue;
                }
                drop(pool);
                mover.beat(LOOKS_EVERY);
                let mut state = mover.state();
                if !std::mem::take(&mut state.ordered) {
                    drop(mover.changed.wait_timeout(state, LOOKS_EVERY));
                }
            }
        })?;
        Ok(())
    }

    fn beat(&self, within: Duration) {
        self.heart.get().into_iter().for_each(|heart| heart.beat(within));
    }

    /// Copies and finishes, or is cancelled, or fails.
    fn run(&self, pool: &Pool, node: &Weak<Node>) {
        let from = pool.info().device.path;
        let Some(began) = pool.replacing() else { return };
        {
            let mut state = self.state();
            (state.running, state.ordered, state.bytes_per_s, state.last) = (true, false, 0.0, None);
        }
        let copied = self.copy(pool, node);
        let now = pool.replacing().unwrap_or(began);
        let ended = copied.and_then(|()| pool.finish_replacing());
        let mut end = Replacement {
            from,
            onto: now.onto,
            state: ReplaceState::Done,
            copied_bytes: now.copied.0,
            total_bytes: now.total.0,
            bytes_per_second: 0,
            eta_s: None,
            unreadable_sectors: now.unreadable,
            trouble: String::new(),
        };
        match ended {
            Ok(replaced) => {
                (end.unreadable_sectors, end.copied_bytes) = (replaced.unreadable, end.total_bytes);
                end.trouble = replaced.not_retired.map_or_else(String::new, |error| {
                    format!("the device that it was on could not be told so; take it out. {error}")
                });
            }
            // Cancelled, by somebody who has said so.
            Err(PoolError::NotReplacing(_)) => end.state = ReplaceState::Cancelled,
            Err(error) if node.strong_count() > 0 => {
                tracing::error!(pool = %pool.info().id, %error, "moving the pool to another device failed; it stays where it is");
                // Where the pool itself has failed, its superblock stays as it is: the move goes on when the node is started again.
                let _ = pool.cancel_replacing();
                (end.state, end.trouble) = (ReplaceState::Failed, error.to_string());
            }
            Err(_) => {}
        }
        let mut state = self.state();
        (state.running, state.last) = (false, Some(end));
    }

    fn copy(&self, pool: &Pool, node: &Weak<Node>) -> Result<(), PoolError> {
        loop {
            self.beat(STEP_WITHIN);
            let began = Instant::now();
            let Some(step) = pool.copy_step()? else { return Ok(()) };
            if !self.rest(began, step.bytes, node) {
                return Err(PoolError::NotCopied(pool.info().id));
            }
        }
    }

    /// Rests as long as is due after so many bytes; whether to go on.
    fn rest(&self, began: Instant, bytes: ByteLen, node: &Weak<Node>) -> bool {
        let busy = began.elapsed();
        let mut state = self.state();
        let bytes = as_f64(bytes.0);
        let by_ceiling = state.ceiling.map_or(0.0, |ceiling| bytes / as_f64(ceiling.max(1)));
        let period = (busy.as_secs_f64() / SHARE).max(by_ceiling).max(1e-6);
        // Of the last hundred pieces or so.
        let known = if state.bytes_per_s == 0.0 { 1.0 } else { 100.0 };
        state.bytes_per_s += (bytes / period - state.bytes_per_s) / known;
        let until = began + Duration::from_secs_f64(period.min(3600.0));
        loop {
            if node.strong_count() == 0 {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            // Somebody has given it up, perhaps.
            if left.is_zero() || std::mem::take(&mut state.ordered) {
                return true;
            }
            self.beat(STEP_WITHIN);
            let waited = self.changed.wait_timeout(state, left.min(Duration::from_secs(1)));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What is to be told of the move that is on its way, or of the last one.
    pub(crate) fn status(&self, pool: &Pool) -> Option<Replacement> {
        // Before the lock: it may wait for a superblock that is being written.
        let (now, from) = (pool.replacing(), pool.info().device.path);
        let state = self.state();
        let Some(now) = now else { return state.last.clone() };
        let bytes_per_s = if state.running { as_u64(state.bytes_per_s) } else { 0 };
        Some(Replacement {
            from,
            onto: now.onto,
            state: if now.copied_all { ReplaceState::Finishing } else { ReplaceState::Copying },
            copied_bytes: now.copied.0,
            total_bytes: now.total.0,
            bytes_per_second: bytes_per_s,
            eta_s: now.total.0.saturating_sub(now.copied.0).checked_div(bytes_per_s),
            unreadable_sectors: now.unreadable,
            trouble: String::new(),
        })
    }
}

impl Node {
    /// Begins a move of the pool, or gives it up.
    pub(crate) fn replace_pool(&self, pool: PoolId, order: &ReplaceAction) -> Result<(), ControlError> {
        let open = self.pool_or_refuse(pool)?;
        match order {
            ReplaceAction::Start { device, bytes_per_second, force } => {
                let spare = self.free_spare(device)?;
                open.mover.state().ceiling = *bytes_per_second;
                open.pool.begin_replacing(spare, *force).map_err(|error| pool_error(&error))?;
            }
            ReplaceAction::Cancel => open.pool.cancel_replacing().map_err(|error| pool_error(&error))?,
        }
        open.mover.state().ordered = true;
        open.mover.changed.notify_all();
        Ok(())
    }

    /// A spare by its path, on which there is no pool and to which none is being moved.
    fn free_spare(&self, path: &str) -> Result<Arc<dyn Device>, ControlError> {
        let paths = || self.spares.iter().map(|spare| spare.info().path);
        let Some(spare) = self.spares.iter().find(|spare| spare.info().path == path) else {
            let known: Vec<String> = paths().collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(ControlError::new(
                ErrorKind::NotFound,
                format!("{path} is no spare that this node has opened"),
                format!(
                    "name it under `spares` in the node's configuration and restart the node, or choose one of those there are: {known}"
                ),
            ));
        };
        let uses = |open: &OpenPool| {
            open.path() == path || open.pool.replacing().is_some_and(|replacing| replacing.onto == path)
        };
        if let Some(open) = self.pools.iter().find(|open| uses(open)) {
            return Err(ControlError::new(
                ErrorKind::Conflict,
                format!("{path} is in use: it is the pool {}'s", open.pool.info().id),
                "choose another spare",
            ));
        }
        Ok(Arc::clone(spare))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn as_f64(number: u64) -> f64 {
    number as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
fn as_u64(number: f64) -> u64 {
    number as u64
}
