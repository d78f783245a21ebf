//! Scrubbing in the background: every pool is read from one end to the other now and then, sealed or not, and then what the
//! keys at hand can verify.
//!
//! A pass takes a share of its own thread's time, so that it makes way when the device is busy, and no more than so many
//! bytes a second. How far it is stands in a file in the state directory: a pass survives a restart of the node.
//!
//! What it verifies is clear in its thread's memory. So a wipe ends its rest (`wake`): it lets go of everything, wipes its thread
//! (`threads.rs`), and goes on with what needs no key.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use admin::api::{DamagedSector, ScrubAction, ScrubPass, ScrubPhase, ScrubReport, ScrubStatus, ShownBy};
use config::ScrubConfig;
use pool::{Change, Pool, PoolError, Scrub};
use sealing::{ErrorKind, Volume};
use serde::{Deserialize, Serialize};
use units::{ByteLen, ByteOffset, Lba, SECTOR_BYTES, SectorCount, VolumeId};
use zeroize::Zeroizing;

use crate::heartbeat::Heart;
use crate::node::{Node, Unsealed};
use crate::threads::{self, OfItsOwn};

/// Most damaged sectors that a report names; the others are counted, and in the log.
const NAMED_MAX: usize = 100;
/// How often the file is brought up to date.
const SAVED_EVERY: Duration = Duration::from_secs(10);
/// How often a scrubber that has nothing to do looks whether it is time.
const LOOKS_EVERY: Duration = Duration::from_secs(60);
/// Bytes that are verified under a key at once, and whose map is looked at at once.
const KEYED_READ: u64 = 256 << 10;
const KEYED_MAP: u64 = 1 << 30;
/// After a report that could not be finished, such as of a pool that has failed, the next waits for so long.
const AFTER_AN_ERROR: Duration = Duration::from_secs(600);
/// Reading the next piece takes less, however slow the device is.
const STEP_WITHIN: Duration = Duration::from_secs(60);

/// What the file holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    /// When the pool was first looked after here: its first pass is an interval later.
    #[serde(default)]
    since_unix_s: u64,
    /// The pass that is on its way.
    #[serde(default)]
    pass: Option<ScrubPass>,
    /// Whether it waits for an order to go on.
    #[serde(default)]
    stopped: bool,
    /// Passes that came to their end.
    #[serde(default)]
    passes: u64,
    /// The last of them.
    #[serde(default)]
    last: Option<ScrubReport>,
    /// Damaged sectors of the pass that its first phase found, once that is over: the second may begin more than once.
    #[serde(default)]
    compared_damaged: Option<u64>,
}

impl Saved {
    /// Forgets what an earlier try of verifying has found and counted.
    fn begin_verifying(&mut self) {
        let Some(pass) = &mut self.pass else { return };
        pass.bytes_verified = 0;
        pass.damaged_sectors = *self.compared_damaged.get_or_insert(pass.damaged_sectors);
        // What a key finds has no place on the device.
        pass.damaged.retain(|damaged| damaged.device_offset.is_some());
    }
}

#[derive(Debug)]
struct State {
    saved: Saved,
    /// The next pass begins without waiting for its time.
    ordered: bool,
    /// The pass on its way is given up for a new one.
    restart: bool,
    /// Whether the thread is reading.
    running: bool,
    bytes_per_s: u64,
}

/// Scrubs one pool.
#[derive(Debug)]
pub(crate) struct Scrubber {
    config: ScrubConfig,
    file: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
    /// The thread's, once it runs.
    heart: OnceLock<Heart>,
}

/// Why a pass does not go on.
enum Halt {
    Stopped,
    Restarted,
    /// The node was wiped: this thread is to be, before it goes on.
    Wiped,
    NodeGone,
    Failed(PoolError),
}

impl Scrubber {
    /// Reads how far an earlier run came.
    pub(crate) fn new(config: ScrubConfig, state_dir: &Path, pool: &Pool) -> Self {
        let file = state_dir.join(format!("scrub-{}.json", pool.info().id));
        let saved = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %file.display(), %error, "how far scrubbing came cannot be read; it begins anew");
                Saved::default()
            }),
            Err(_) => Saved { since_unix_s: now(), ..Saved::default() },
        };
        let state = State { saved, ordered: false, restart: false, running: false, bytes_per_s: 0 };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let scrubber = Self { config, file, state, changed, heart: OnceLock::new() };
        scrubber.save(&scrubber.state().saved);
        scrubber
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn order(&self, action: ScrubAction) {
        let mut state = self.state();
        state.saved.stopped = action == ScrubAction::Stop;
        state.restart = action == ScrubAction::Restart;
        state.ordered = action != ScrubAction::Stop;
        self.save(&state.saved);
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn status(&self) -> ScrubStatus {
        let state = self.state();
        let left = state.saved.pass.as_ref().map(|pass| pass.bytes_total.saturating_sub(pass.bytes_done));
        let eta_s = left.filter(|_| state.running).and_then(|left| left.checked_div(state.bytes_per_s));
        ScrubStatus {
            running: state.running,
            stopped: state.saved.stopped,
            bytes_per_second: if state.running { state.bytes_per_s } else { 0 },
            eta_s,
            pass: state.saved.pass.clone(),
            passes: state.saved.passes,
            last: state.saved.last.clone(),
            next_unix_s: self.next(&state),
        }
    }

    /// Where on the device damaged sectors were found, by the pass on its way and by the last.
    pub(crate) fn damaged_places(&self) -> BTreeSet<u64> {
        let state = self.state();
        let pass = state.saved.pass.iter().flat_map(|pass| &pass.damaged);
        let last = state.saved.last.iter().flat_map(|last| &last.damaged);
        pass.chain(last).filter_map(|damaged| damaged.device_offset).collect()
    }

    /// The sector there holds again what was written: no report tells of it any more.
    pub(crate) fn note_healed(&self, device_offset: u64) {
        let mut state = self.state();
        let Saved { pass, last, compared_damaged, .. } = &mut state.saved;
        let forget = |named: &mut Vec<DamagedSector>, counted: &mut u64| {
            let before = named.len();
            named.retain(|damaged| damaged.device_offset != Some(device_offset));
            let healed = u64::try_from(before - named.len()).unwrap_or(0);
            *counted = counted.saturating_sub(healed);
            healed
        };
        if let Some(pass) = pass {
            let healed = forget(&mut pass.damaged, &mut pass.damaged_sectors);
            if let Some(compared) = compared_damaged {
                *compared = compared.saturating_sub(healed);
            }
        }
        if let Some(last) = last {
            forget(&mut last.damaged, &mut last.damaged_sectors);
        }
        self.save(&state.saved);
    }

    /// When the next pass begins by itself.
    fn next(&self, state: &State) -> Option<u64> {
        let every = u64::from(self.config.every_days) * 86_400;
        let last = state.saved.last.as_ref().map_or(state.saved.since_unix_s, |last| last.ended_unix_s);
        let due = last.saturating_add(every);
        (every > 0 && state.saved.pass.is_none() && !state.saved.stopped).then_some(due)
    }

    fn save(&self, saved: &Saved) {
        let text = serde_json::to_vec_pretty(saved).unwrap_or_default();
        let new = self.file.with_extension("json.new");
        let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &self.file));
        if let Err(error) = written {
            tracing::warn!(path = %self.file.display(), %error, "how far scrubbing came could not be written");
        }
    }

    /// Starts a thread that scrubs as long as the node is there.
    pub(crate) fn start(number: usize, node: &Arc<Node>) -> std::io::Result<()> {
        let _ = node.pools[number].scrubber.heart.set(node.heartbeats.worker(format!("scrub-{number}")));
        let node = Arc::downgrade(node);
        std::thread::Builder::new().name(format!("scrub-{number}")).spawn(move || {
            let _own = OfItsOwn::begin();
            while let Some(scrubber) = wait_for_work(number, &node) {
                match scrubber.pass(number, &node) {
                    Ok(()) | Err(Halt::Stopped | Halt::Restarted | Halt::Wiped) => {}
                    Err(Halt::NodeGone) => return,
                    Err(Halt::Failed(error)) => {
                        tracing::error!(%error, "scrubbing stopped before its end");
                        scrubber.rest(AFTER_AN_ERROR, &node);
                    }
                }
            }
        })?;
        Ok(())
    }

    fn beat(&self, within: Duration) {
        self.heart.get().into_iter().for_each(|heart| heart.beat(within));
    }

    /// A wipe has happened: whoever rests wakes and looks.
    pub(crate) fn wake(&self) {
        // Under the lock, so that nobody is between looking and resting.
        drop(self.state());
        self.changed.notify_all();
    }

    /// Rests until the time is over or somebody wakes it.
    fn rest(&self, time: Duration, node: &Weak<Node>) {
        self.beat(time);
        let state = self.state();
        if wiped_since(node).is_none() {
            drop(self.changed.wait_timeout(state, time));
        }
    }

    /// One pass, from where it stopped.
    fn pass(&self, number: usize, node: &Weak<Node>) -> Result<(), Halt> {
        let pool = Arc::clone(&node.upgrade().ok_or(Halt::NodeGone)?.pools[number].pool);
        let info = pool.info();
        {
            let mut state = self.state();
            state.ordered = false;
            if std::mem::take(&mut state.restart) {
                state.saved.pass = None;
                state.saved.compared_damaged = None;
            }
            let pass = state.saved.pass.get_or_insert_with(|| ScrubPass {
                started_unix_s: now(),
                phase: ScrubPhase::Checksums,
                next_extent: 0,
                bytes_done: 0,
                bytes_total: 0,
                bytes_verified: 0,
                damaged_sectors: 0,
                damaged: Vec::new(),
            });
            pass.bytes_total = info.allocated.0.max(pass.bytes_done);
            tracing::info!(pool = %info.id, next_extent = pass.next_extent, "scrubbing");
            state.running = true;
        }
        let _running = Running(self);
        self.compare(&pool, node)?;
        self.verify(number, node)?;
        let mut state = self.state();
        state.saved.compared_damaged = None;
        let Some(pass) = state.saved.pass.take() else { return Ok(()) };
        tracing::info!(pool = %info.id, bytes = pass.bytes_done, verified = pass.bytes_verified, damaged = pass.damaged_sectors, "scrubbed");
        state.saved.passes += 1;
        state.saved.last = Some(ScrubReport {
            started_unix_s: pass.started_unix_s,
            ended_unix_s: now(),
            bytes_compared: pass.bytes_done,
            bytes_verified: pass.bytes_verified,
            damaged_sectors: pass.damaged_sectors,
            damaged: pass.damaged,
        });
        self.save(&state.saved);
        Ok(())
    }

    /// Everything on the pool, with its checksums: needs no key.
    fn compare(&self, pool: &Arc<Pool>, node: &Weak<Node>) -> Result<(), Halt> {
        let next = match &self.state().saved.pass {
            Some(pass) if pass.phase == ScrubPhase::Checksums => pass.next_extent,
            _ => return Ok(()),
        };
        let mut scrub = Scrub::starting_at(Arc::clone(pool), next);
        let mut throttle = Throttle::new(self, node);
        loop {
            let step = match scrub.step() {
                Ok(Some(step)) => step,
                Ok(None) => break,
                Err(error) => return Err(Halt::Failed(error)),
            };
            let bytes = step.sectors.byte_len().unwrap_or_default();
            throttle.done(bytes, |pass| {
                pass.next_extent = scrub.position();
                pass.bytes_done += bytes.0;
                note_damage(pass, step.damaged.iter().map(named));
            })?;
        }
        throttle.done(ByteLen(0), |pass| {
            pass.phase = ScrubPhase::Tags;
            pass.bytes_total = pass.bytes_done;
        })
    }

    /// What can be decrypted now, with its tags. Begins anew after a restart.
    fn verify(&self, number: usize, node: &Weak<Node>) -> Result<(), Halt> {
        self.state().saved.begin_verifying();
        let mut throttle = Throttle::new(self, node);
        let mut verified = BTreeSet::new();
        loop {
            // Volumes and snapshots come and go meanwhile.
            let unsealed = node.upgrade().ok_or(Halt::NodeGone)?.unsealed(number);
            let Some(next) = unsealed.into_iter().find(|next| verified.insert(next.volume.id())) else {
                return Ok(());
            };
            verify_sectors(&next, &mut throttle)?;
        }
    }
}

/// The generation of a wipe that this thread has not been wiped after. Asked under the lock: see [`Scrubber::wake`].
fn wiped_since(node: &Weak<Node>) -> Option<u64> {
    let generation = node.upgrade()?.keyring.status().generation;
    threads::is_late(generation).then_some(generation)
}

/// Waits until a pass is due, ordered, or was interrupted. `None` when the node is gone.
fn wait_for_work(number: usize, node: &Weak<Node>) -> Option<Arc<Scrubber>> {
    loop {
        let scrubber = Arc::clone(&node.upgrade()?.pools[number].scrubber);
        let state = scrubber.state();
        if let Some(generation) = wiped_since(node) {
            drop(state);
            threads::visit(generation);
            continue;
        }
        let is_due = scrubber.next(&state).is_some_and(|due| due <= now());
        if state.ordered || is_due || (state.saved.pass.is_some() && !state.saved.stopped) {
            drop(state);
            return Some(scrubber);
        }
        scrubber.beat(LOOKS_EVERY);
        drop(scrubber.changed.wait_timeout(state, LOOKS_EVERY));
    }
}

/// Reads what there is of a volume, or of a snapshot what the one after it does not show as well; what is not what was
/// written is counted, sector by sector.
fn verify_sectors(unsealed: &Unsealed, throttle: &mut Throttle<'_>) -> Result<(), Halt> {
    let Unsealed { volume, sealed, newer } = unsealed;
    let mut clear = Zeroizing::new(vec![0; usize::try_from(KEYED_READ).unwrap_or_default()]);
    let mut at = 0;
    // It may be resized meanwhile.
    while at < volume.len().0 {
        let len = KEYED_MAP.min(volume.len().0 - at);
        // Sealed again, or deleted: the next pass has its turn.
        let (first, count) = (Lba(at / SECTOR_BYTES as u64), SectorCount(len / SECTOR_BYTES as u64));
        let Ok(map) = sealed.changes_since(newer.as_deref(), first, count) else { return Ok(()) };
        for (run, change) in map {
            let end = at + run.0 * SECTOR_BYTES as u64;
            while change == Change::Written && at < end {
                let part = &mut clear[..usize::try_from(KEYED_READ.min(end - at)).unwrap_or_default()];
                let mut damaged = Vec::new();
                match volume.verify(ByteOffset(at), part) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::Io => damaged = damaged_in(volume, at, part),
                    Err(_) => return Ok(()),
                }
                let len = part.len() as u64;
                throttle.done(ByteLen(len), |pass| {
                    pass.bytes_verified += len;
                    note_damage(pass, damaged.into_iter());
                })?;
                at += len;
            }
            at = end;
        }
    }
    Ok(())
}

fn damaged_in(volume: &Volume, at: u64, part: &mut [u8]) -> Vec<DamagedSector> {
    let mut damaged = Vec::new();
    for (nth, sector) in part.chunks_mut(SECTOR_BYTES).enumerate() {
        let at = at + (nth * SECTOR_BYTES) as u64;
        if let Err(error) = volume.verify(ByteOffset(at), sector)
            && error.kind() == ErrorKind::Io
        {
            let shown = ShownBy { volume: volume.id(), sector: at / SECTOR_BYTES as u64 };
            damaged.push(DamagedSector {
                device_offset: None,
                fault: error.to_string(),
                shown_by: vec![shown],
            });
        }
    }
    damaged
}

/// Counts damaged sectors, and names them as far as there is room.
fn note_damage(pass: &mut ScrubPass, damaged: impl ExactSizeIterator<Item = DamagedSector>) {
    pass.damaged_sectors += damaged.len() as u64;
    let room = NAMED_MAX.saturating_sub(pass.damaged.len());
    pass.damaged.extend(damaged.take(room));
}

fn named(damaged: &pool::DamagedSector) -> DamagedSector {
    let shown = |(volume, sector): &(VolumeId, units::Lba)| ShownBy { volume: *volume, sector: sector.0 };
    DamagedSector {
        device_offset: Some(damaged.at.0),
        fault: damaged.fault.to_string(),
        shown_by: damaged.shown_by.iter().map(shown).collect(),
    }
}

/// Says that the thread no longer reads, however it came to stop, and where it stopped.
struct Running<'a>(&'a Scrubber);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.running = false;
        self.0.save(&state.saved);
    }
}

/// Keeps a pass to its share of the time and to its bandwidth, and tells it of orders.
struct Throttle<'a> {
    scrubber: &'a Scrubber,
    node: &'a Weak<Node>,
    began: Instant,
    saved: Instant,
    bytes_per_s: f64,
}

impl<'a> Throttle<'a> {
    fn new(scrubber: &'a Scrubber, node: &'a Weak<Node>) -> Self {
        let now = Instant::now();
        Self { scrubber, node, began: now, saved: now, bytes_per_s: 0.0 }
    }

    /// After a piece of work of so many bytes: notes it, and rests as long as is due.
    fn done(&mut self, bytes: ByteLen, note: impl FnOnce(&mut ScrubPass)) -> Result<(), Halt> {
        let scrubber = self.scrubber;
        let busy = self.began.elapsed();
        let share = f64::from(scrubber.config.share_percent.clamp(1, 100)) / 100.0;
        let by_bandwidth =
            as_f64(bytes.0) / (f64::from(scrubber.config.mib_per_s.max(1)) * f64::from(1 << 20));
        let period = Duration::from_secs_f64((busy.as_secs_f64() / share).max(by_bandwidth));
        let until = self.began + period;
        let mut state = scrubber.state();
        if let Some(pass) = &mut state.saved.pass {
            note(pass);
        }
        if bytes.0 > 0 && !period.is_zero() {
            let now = as_f64(bytes.0) / period.as_secs_f64();
            // Of the last hundred pieces or so.
            self.bytes_per_s += (now - self.bytes_per_s) / if self.bytes_per_s == 0.0 { 1.0 } else { 100.0 };
            state.bytes_per_s = as_u64(self.bytes_per_s);
        }
        if self.saved.elapsed() >= SAVED_EVERY {
            scrubber.save(&state.saved);
            self.saved = Instant::now();
        }
        loop {
            scrubber.beat(STEP_WITHIN);
            if state.saved.stopped {
                return Err(Halt::Stopped);
            }
            if state.restart {
                return Err(Halt::Restarted);
            }
            if self.node.strong_count() == 0 {
                return Err(Halt::NodeGone);
            }
            if wiped_since(self.node).is_some() {
                return Err(Halt::Wiped);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = scrubber.changed.wait_timeout(state, left.min(Duration::from_secs(1)));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        self.began = Instant::now();
        Ok(())
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

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
