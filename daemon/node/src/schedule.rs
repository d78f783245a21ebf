//! Snapshots by schedule, sealed or not: taken, locked, compared with the one before, and pruned.
//!
//! Of a volume a schedule takes snapshots. A replica has its snapshots from where it comes: there the schedule adopts the newest
//! that has arrived whole, once an interval. What it made or adopted it prunes, the oldest first, so many that `keep` are left.
//!
//! Invariants:
//! - What is locked is not pruned, and neither is a volume's newest snapshot, which the next increment is sent since.
//! - A snapshot that shows an unusual part of the one before rewritten stops the pruning until a person has said that it is all
//!   right: what was good before is not rotated out.
//! - Intervals are counted as locks are (`retention.rs`): setting the wall clock takes no snapshot and prunes none.
//! - What cannot be made for want of space is said in status, metrics and the trail, and tried again; nothing is given up for it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use admin::api::{RewriteAnomaly, ScheduleStatus, SnapshotSchedule};
use admin::{ControlError, ErrorKind};
use pool::Rewritten;
use serde::{Deserialize, Serialize};
use units::VolumeId;

use crate::control::{pool_error, unknown_volume};
use crate::lock::lock;
use crate::node::{Node, OpenPool};
use crate::retention::LOCK_MAX_S;
use crate::state_file;

const FILE: &str = "snapshot-schedules.json";
const VERSION: u32 = 1;

/// How often a thread that has nothing to do looks, and how long after a failure it tries again.
const TICK_S: u64 = 60;
/// Comparing one snapshot of a large volume with the next takes less.
const TENDING: Duration = Duration::from_secs(3600);
/// Longest interval: a year. One that is longer is no schedule.
const EVERY_MAX_S: u64 = 366 * 86_400;
/// Most that one schedule keeps: a quarter of what a pool can hold of volumes and snapshots.
const KEEP_MAX: u32 = 1024;

/// A schedule, and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    schedule: SnapshotSchedule,
    /// What it made or adopted and has not pruned, oldest first.
    #[serde(default)]
    made: Vec<VolumeId>,
    /// When it last did, by the clock of `retention.rs` and for people.
    #[serde(default)]
    last_run_s: Option<u64>,
    #[serde(default)]
    last_unix_s: Option<u64>,
    #[serde(default)]
    rewritten_percent: Option<u8>,
    #[serde(default)]
    anomaly: Option<RewriteAnomaly>,
    /// Why it does not do what it should.
    #[serde(default, skip)]
    trouble: Option<String>,
    /// Not before, by that clock.
    #[serde(default, skip)]
    retry_s: u64,
}

impl Kept {
    fn next_s(&self, run_s: u64) -> u64 {
        // A clock that was begun anew is behind.
        let due = self.last_run_s.map_or(run_s, |last| last.min(run_s).saturating_add(self.schedule.every_s));
        due.max(self.retry_s.min(run_s + TICK_S))
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    schedules: BTreeMap<VolumeId, Kept>,
}

/// Why the schedules could not be read at the start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SchedulesError {
    #[error("{path} cannot be read: {source}; correct its owner, or the disk")]
    Unreadable { path: String, source: io::Error },
    #[error("{path} has no snapshot schedules ({reason}); put a copy back, or remove it and set them anew")]
    Damaged { path: String, reason: String },
}

/// The schedules of a node.
#[derive(Debug)]
pub(crate) struct Schedules {
    file: PathBuf,
    kept: Mutex<BTreeMap<VolumeId, Kept>>,
    /// Whether there is something that the thread has not looked at.
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Schedules {
    /// Reads the schedules in the state directory. A file that is damaged ends the start: without it nothing would be taken.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, SchedulesError> {
        let file = state_dir.join(FILE);
        let path = || file.display().to_string();
        let kept = match std::fs::read(&file) {
            Ok(bytes) => {
                let saved: Saved = serde_json::from_slice(&bytes)
                    .map_err(|error| SchedulesError::Damaged { path: path(), reason: error.to_string() })?;
                if saved.version != VERSION {
                    let reason = format!("version {}, this program reads {VERSION}", saved.version);
                    return Err(SchedulesError::Damaged { path: path(), reason });
                }
                saved.schedules
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(SchedulesError::Unreadable { path: path(), source }),
        };
        Ok(Self { file, kept: Mutex::new(kept), woken: Mutex::new(false), changed: Condvar::new() })
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes them, and writes them down before the change holds.
    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<VolumeId, Kept>) -> T) -> io::Result<T> {
        let mut kept = self.kept();
        let mut schedules = kept.clone();
        let answer = change(&mut schedules);
        let saved = Saved { version: VERSION, schedules };
        let text = serde_json::to_vec_pretty(&saved)?;
        state_file::replace(&self.file, &text)?;
        *kept = saved.schedules;
        drop(kept);
        self.wake();
        Ok(answer)
    }

    /// Whether a schedule keeps a snapshot.
    pub(crate) fn has(&self, volume: VolumeId, snapshot: VolumeId) -> bool {
        self.kept().get(&volume).is_some_and(|kept| kept.made.contains(&snapshot))
    }

    /// Something has changed that the thread should look at.
    pub(crate) fn wake(&self) {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for that, or until so many seconds are over.
    fn rest(&self, wait_s: u64) {
        let woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = Duration::from_secs(wait_s.max(1));
        let rested = self.changed.wait_timeout_while(woken, wait, |woken| !*woken);
        *rested.unwrap_or_else(PoisonError::into_inner).0 = false;
    }

    /// Starts the thread that keeps schedules and ends locks, as long as the node is there.
    pub(crate) fn start(node: &Arc<Node>) -> io::Result<()> {
        let heart = node.heartbeats.worker("snapshots");
        let (schedules, node) = (Arc::clone(&node.schedules), Arc::downgrade(node));
        std::thread::Builder::new().name("snapshots".to_owned()).spawn(move || {
            while let Some(node) = node.upgrade() {
                heart.beat(TENDING);
                let wait_s = node.tend_snapshots();
                drop(node);
                heart.beat(Duration::from_secs(wait_s));
                schedules.rest(wait_s);
            }
        })?;
        Ok(())
    }

    fn status_of(&self, volume: VolumeId, run_s: u64) -> Option<ScheduleStatus> {
        self.kept().get(&volume).map(|kept| status(volume, kept, run_s))
    }

    /// Each, by volume.
    pub(crate) fn status(&self, run_s: u64) -> Vec<ScheduleStatus> {
        self.kept().iter().map(|(volume, kept)| status(*volume, kept, run_s)).collect()
    }
}

fn status(volume: VolumeId, kept: &Kept, run_s: u64) -> ScheduleStatus {
    ScheduleStatus {
        volume,
        schedule: kept.schedule,
        snapshots: kept.made.clone(),
        last_unix_s: kept.last_unix_s,
        next_in_s: kept.next_s(run_s).saturating_sub(run_s),
        rewritten_percent: kept.rewritten_percent,
        anomaly: kept.anomaly,
        trouble: kept.trouble.clone(),
    }
}

impl Node {
    /// Ends locks, and does what is due. How long until there is something to do again, seconds.
    fn tend_snapshots(&self) -> u64 {
        let counts_for_schedules = !self.schedules.kept().is_empty();
        self.retention.tend(&self.pools, &self.trail, counts_for_schedules);
        let run_s = self.retention.run_s();
        let due: Vec<VolumeId> = {
            let kept = self.schedules.kept();
            kept.iter().filter(|(_, kept)| kept.next_s(run_s) <= run_s).map(|(volume, _)| *volume).collect()
        };
        due.into_iter().for_each(|volume| self.keep_schedule(volume));
        let run_s = self.retention.run_s();
        let next = self.schedules.kept().values().map(|kept| kept.next_s(run_s).saturating_sub(run_s)).min();
        [next, self.retention.next_s()].into_iter().flatten().fold(TICK_S, u64::min)
    }

    /// Makes or adopts a snapshot, compares it with the one before, and prunes.
    fn keep_schedule(&self, volume: VolumeId) {
        let Some(mut kept) = self.schedules.kept().get(&volume).cloned() else { return };
        let anomaly = kept.anomaly;
        let run_s = self.retention.run_s();
        let before = kept.made.last().copied();
        let result = {
            // An epoch that arrives has those deleted that nobody keeps: that this one is kept is written down before, and before the
            // long comparison.
            let turn = self.replication.turn(volume);
            let _turn = lock(&turn);
            let made = self.make(volume, &kept);
            if let Ok(Some(snapshot)) = made {
                kept.made.push(snapshot);
                (kept.last_run_s, kept.last_unix_s) = (Some(run_s), Some(now_unix_s()));
                self.write_down(volume, &kept, anomaly);
            }
            made
        };
        if let (Ok(Some(snapshot)), Some(before)) = (&result, before) {
            self.compare(volume, &mut kept, before, *snapshot);
        }
        // It may make the room that was wanting.
        let pruned = self.prune(volume, &mut kept);
        let trouble = result.err().or(pruned.err()).map(|error| error.message);
        if let Some(trouble) = trouble.as_ref().filter(|_| kept.trouble.is_none()) {
            tracing::error!(%volume, trouble, "a snapshot schedule does not do what it should");
            let fields = [("volume", volume.to_string().into()), ("why", trouble.as_str().into())];
            self.trail.note("snapshot-schedule-failed", fields);
        }
        kept.trouble = trouble;
        // Nothing had arrived, or it went wrong.
        kept.retry_s = run_s + TICK_S.min(kept.schedule.every_s);
        self.write_down(volume, &kept, anomaly);
    }

    /// What became of a schedule, whose anomaly was `before` when it was looked at.
    fn write_down(&self, volume: VolumeId, kept: &Kept, before: Option<RewriteAnomaly>) {
        let written = self.schedules.change(|schedules| {
            // It may have been set anew or removed meanwhile; a person may have looked at what is unusual.
            if let Some(present) = schedules.get_mut(&volume) {
                let anomaly = if present.anomaly == before { kept.anomaly } else { present.anomaly };
                *present = Kept { schedule: present.schedule, anomaly, ..kept.clone() };
            }
        });
        if let Err(error) = written {
            tracing::error!(%volume, %error, "what a snapshot schedule has done could not be written down");
        }
    }

    /// The snapshot that is due, locked where it is to be; `None` where nothing has arrived since the last.
    fn make(&self, volume: VolumeId, kept: &Kept) -> Result<Option<VolumeId>, ControlError> {
        let (open, found) = self.find_volume(volume).ok_or_else(|| unknown_volume(volume))?;
        let snapshot = if found.info().replica {
            match open.pool.last_snapshot(volume) {
                Some(newest) if !kept.made.contains(&newest.id) => newest.id,
                _ => return Ok(None),
            }
        } else {
            self.create_snapshot(volume, None)?.snapshot
        };
        if kept.schedule.lock_s > 0 {
            self.lock_snapshot(snapshot, kept.schedule.lock_s)?;
        }
        tracing::info!(%volume, %snapshot, lock_s = kept.schedule.lock_s, "a schedule keeps a snapshot");
        let fields = [
            ("volume", volume.to_string().into()),
            ("snapshot", snapshot.to_string().into()),
            ("lock_s", kept.schedule.lock_s.into()),
        ];
        self.trail.note("snapshot-kept", fields);
        Ok(Some(snapshot))
    }

    /// How much of what the snapshot before shows was rewritten.
    fn compare(&self, volume: VolumeId, kept: &mut Kept, before: VolumeId, snapshot: VolumeId) {
        let Some((open, _)) = self.find_volume(volume) else { return };
        let compared = open.pool.snapshot(snapshot).and_then(|snapshot| {
            let before = open.pool.snapshot(before)?;
            snapshot.rewritten_since(&before)
        });
        let Ok(rewritten) = compared else {
            // The one before was deleted by a person.
            kept.rewritten_percent = None;
            return;
        };
        let percent = percent(rewritten);
        kept.rewritten_percent = Some(percent);
        if percent < kept.schedule.alert_rewritten_percent {
            return;
        }
        tracing::error!(%volume, %before, %snapshot, percent, "an unusual part of a volume was rewritten: its snapshots are not pruned until `nightlatch snapshot schedule --acknowledge`");
        let fields = [
            ("volume", volume.to_string().into()),
            ("before", before.to_string().into()),
            ("snapshot", snapshot.to_string().into()),
            ("rewritten_percent", percent.into()),
        ];
        self.trail.note("rewrite-anomaly", fields);
        // The first tells which snapshot is the last good one.
        kept.anomaly.get_or_insert(RewriteAnomaly { before, snapshot, percent, at_unix_s: now_unix_s() });
    }

    /// Deletes what is more than is to be kept, and forgets what is gone.
    fn prune(&self, volume: VolumeId, kept: &mut Kept) -> Result<(), ControlError> {
        let (open, _) = self.find_volume(volume).ok_or_else(|| unknown_volume(volume))?;
        let there = open.pool.snapshots();
        kept.made.retain(|made| there.iter().any(|info| info.id == *made));
        if kept.anomaly.is_some() {
            return Ok(());
        }
        let newest = open.pool.last_snapshot(volume).map(|newest| newest.id);
        let more = kept.made.len().saturating_sub(usize::try_from(kept.schedule.keep).unwrap_or(usize::MAX));
        let free = |id: &VolumeId| there.iter().any(|info| info.id == *id && info.lock_s == 0);
        let oldest = kept.made[..more].iter().copied().filter(free).filter(|id| Some(*id) != newest);
        for snapshot in oldest.collect::<Vec<_>>() {
            self.delete_snapshot(snapshot)?;
            let fields = [("volume", volume.to_string().into()), ("snapshot", snapshot.to_string().into())];
            self.trail.note("snapshot-pruned", fields);
            kept.made.retain(|made| *made != snapshot);
        }
        Ok(())
    }

    /// Sets a volume's schedule. Locks that were set stay.
    pub(crate) fn set_schedule(
        &self,
        volume: VolumeId,
        schedule: SnapshotSchedule,
    ) -> Result<ScheduleStatus, ControlError> {
        self.find_volume(volume).ok_or_else(|| unknown_volume(volume))?;
        check(&schedule).map_err(|message| {
            ControlError::new(ErrorKind::Invalid, message, "see `nightlatch snapshot schedule --help`")
        })?;
        let set = |schedules: &mut BTreeMap<VolumeId, Kept>| match schedules.get_mut(&volume) {
            Some(kept) => kept.schedule = schedule,
            None => drop(schedules.insert(volume, Kept::new(schedule))),
        };
        self.schedules.change(set).map_err(|error| not_written(&error))?;
        tracing::info!(%volume, ?schedule, "set a snapshot schedule");
        self.schedules.status_of(volume, self.retention.run_s()).ok_or_else(|| none(volume))
    }

    /// Removes a volume's schedule. Its snapshots stay.
    pub(crate) fn remove_schedule(&self, volume: VolumeId) -> Result<(), ControlError> {
        let removed = self.schedules.change(|schedules| schedules.remove(&volume));
        removed.map_err(|error| not_written(&error))?.map(drop).ok_or_else(|| none(volume))?;
        tracing::warn!(%volume, "removed a snapshot schedule");
        Ok(())
    }

    /// A person has looked at what was unusual: pruning goes on.
    pub(crate) fn acknowledge_rewrite(&self, volume: VolumeId) -> Result<ScheduleStatus, ControlError> {
        let acknowledged =
            self.schedules.change(|schedules| schedules.get_mut(&volume).map(|kept| kept.anomaly = None));
        acknowledged.map_err(|error| not_written(&error))?.ok_or_else(|| none(volume))?;
        self.schedules.status_of(volume, self.retention.run_s()).ok_or_else(|| none(volume))
    }

    /// Locks a snapshot for so long from now on.
    pub(crate) fn lock_snapshot(
        &self,
        snapshot: VolumeId,
        for_s: u64,
    ) -> Result<admin::api::SnapshotStatus, ControlError> {
        use crate::retention::LockError;
        let pool = self.pool_with_snapshot(snapshot)?;
        let locked = self.retention.lock(pool, snapshot, for_s).map_err(|error| match error {
            LockError::Pool(error) => pool_error(&error),
            error @ LockError::OutOfRange => ControlError::new(ErrorKind::Invalid, error.to_string(), ""),
            error @ LockError::Shorter { .. } => {
                ControlError::new(ErrorKind::Conflict, error.to_string(), "")
            }
        })?;
        tracing::info!(%snapshot, for_s, "locked a snapshot");
        let usage = pool.usage().of.get(&snapshot).copied();
        Ok(self.snapshot_status(pool.info().id, &locked, usage))
    }

    /// Snapshots that are locked.
    pub(crate) fn locked_snapshots(&self) -> usize {
        let of_pool = |open: &OpenPool| open.pool.snapshots().iter().filter(|info| info.lock_s > 0).count();
        self.pools.iter().map(of_pool).sum()
    }
}

impl Kept {
    fn new(schedule: SnapshotSchedule) -> Self {
        Self {
            schedule,
            made: Vec::new(),
            last_run_s: None,
            last_unix_s: None,
            rewritten_percent: None,
            anomaly: None,
            trouble: None,
            retry_s: 0,
        }
    }
}

fn check(schedule: &SnapshotSchedule) -> Result<(), String> {
    let SnapshotSchedule { every_s, keep, lock_s, alert_rewritten_percent } = *schedule;
    if !(1..=EVERY_MAX_S).contains(&every_s) {
        return Err(format!("an interval is 1 second to {EVERY_MAX_S} seconds, which are a year"));
    }
    if !(1..=KEEP_MAX).contains(&keep) {
        return Err(format!("a schedule keeps 1 to {KEEP_MAX} snapshots"));
    }
    if lock_s > LOCK_MAX_S {
        return Err(format!("a lock is for at most {LOCK_MAX_S} seconds, which are a hundred years"));
    }
    // While they are locked they are there.
    if lock_s.div_ceil(every_s) > u64::from(KEEP_MAX) {
        return Err(format!(
            "with this interval and lock more than {KEEP_MAX} snapshots would be locked at a time: take them less often, or lock them for less long"
        ));
    }
    if !(1..=100).contains(&alert_rewritten_percent) {
        return Err("the part of a volume whose rewriting is unusual is 1 to 100 percent".to_owned());
    }
    Ok(())
}

fn percent(rewritten: Rewritten) -> u8 {
    let percent = u128::from(rewritten.sectors.0) * 100 / u128::from(rewritten.of.0.max(1));
    u8::try_from(percent).unwrap_or(100)
}

fn none(volume: VolumeId) -> ControlError {
    let next = "`nightlatch snapshot schedule` shows those there are";
    ControlError::new(ErrorKind::NotFound, format!("{volume} has no snapshot schedule"), next)
}

fn not_written(error: &io::Error) -> ControlError {
    let next = "nothing has changed; look at the disk that holds the state directory";
    ControlError::new(ErrorKind::Failed, format!("the schedules could not be written down: {error}"), next)
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use units::SectorCount;

    use super::*;

    const VOLUME: VolumeId = VolumeId([1; 16]);
    const HOURLY: SnapshotSchedule =
        SnapshotSchedule { every_s: 3600, keep: 24, lock_s: 7 * 86_400, alert_rewritten_percent: 50 };

    #[test]
    fn the_first_is_due_at_once_and_the_next_an_interval_later() {
        let mut kept = Kept::new(HOURLY);
        assert_eq!(kept.next_s(1000), 1000);
        kept.last_run_s = Some(1000);
        assert_eq!(kept.next_s(1001), 4600);
        // The clock was begun anew.
        assert_eq!(kept.next_s(10), 3610);
        // It went wrong.
        (kept.last_run_s, kept.retry_s) = (None, 1060);
        assert_eq!((kept.next_s(1000), kept.next_s(1060)), (1060, 1060));
        assert_eq!(kept.next_s(10), 10 + TICK_S);
    }

    #[test]
    fn schedules_at_their_limits_are_taken_and_one_past_them_refused() {
        let every = |every_s| SnapshotSchedule { every_s, lock_s: 0, ..HOURLY };
        for good in [
            HOURLY,
            every(1),
            every(EVERY_MAX_S),
            SnapshotSchedule { keep: KEEP_MAX, ..HOURLY },
            SnapshotSchedule { lock_s: 3600 * u64::from(KEEP_MAX), ..HOURLY },
            SnapshotSchedule { alert_rewritten_percent: 100, ..HOURLY },
        ] {
            check(&good).unwrap();
        }
        for bad in [
            every(0),
            every(EVERY_MAX_S + 1),
            SnapshotSchedule { keep: 0, ..HOURLY },
            SnapshotSchedule { keep: KEEP_MAX + 1, ..HOURLY },
            SnapshotSchedule { lock_s: 3600 * u64::from(KEEP_MAX) + 1, ..HOURLY },
            SnapshotSchedule { lock_s: LOCK_MAX_S + 1, every_s: EVERY_MAX_S, ..HOURLY },
            SnapshotSchedule { alert_rewritten_percent: 0, ..HOURLY },
            SnapshotSchedule { alert_rewritten_percent: 101, ..HOURLY },
        ] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn schedules_are_read_back_and_a_damaged_file_is_no_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let schedules = Schedules::open(dir.path()).unwrap();
        schedules.change(|kept| kept.insert(VOLUME, Kept::new(HOURLY))).unwrap();
        let again = Schedules::open(dir.path()).unwrap();
        assert_eq!(again.status(0)[0].schedule, HOURLY);
        for damaged in [&b"{"[..], b"{\"version\":2,\"schedules\":{}}"] {
            std::fs::write(dir.path().join(FILE), damaged).unwrap();
            assert!(matches!(Schedules::open(dir.path()), Err(SchedulesError::Damaged { .. })));
        }
    }

    #[test]
    fn a_part_is_told_in_percent_of_what_there_was() {
        let part = |of, sectors| percent(Rewritten { of: SectorCount(of), sectors: SectorCount(sectors) });
        assert_eq!((part(0, 0), part(200, 1), part(200, 100), part(200, 200)), (0, 0, 50, 100));
    }
}
