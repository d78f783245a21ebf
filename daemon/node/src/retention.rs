//! How long snapshots are still locked, and what ends their locks.
//!
//! That a snapshot is locked, and for how many seconds, stands in the pool (FORMAT.md), which refuses to delete it. How much of
//! that time is over stands in `retention.json` in the state directory.
//!
//! Invariants:
//! - Time is what this program has run with the pool open, on CLOCK_BOOTTIME, added up over its runs. No wall clock is asked,
//!   so nobody sets it forward; what a node was off for does not count, so a lock ends late and never early.
//! - After a cut the file is behind by up to a tick, which makes locks longer. A clean stop writes it.
//! - A snapshot that the file does not know, or knows with another lock than the pool has, begins its whole time anew, and the
//!   log and the trail say so. So does everything where the file is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pool::{Pool, PoolError, SnapshotInfo};
use serde::{Deserialize, Serialize};
use units::{BootInstant, PoolId, VolumeId};

use crate::boot_clock;
use crate::node::OpenPool;
use crate::state_file;
use crate::trail::NodeTrail;

const FILE: &str = "retention.json";
const VERSION: u32 = 1;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Longest lock: a hundred years of 365 days. What is meant to stay for longer belongs on another medium.
pub(crate) const LOCK_MAX_S: u64 = 100 * 365 * 86_400;

/// What the file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    /// Seconds that this program has run, of all its runs.
    run_s: u64,
    /// Locks whose time is being counted, of each pool.
    counted: BTreeMap<PoolId, BTreeMap<VolumeId, Counted>>,
}

/// A lock whose time is being counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counted {
    /// As the pool has it.
    lock_s: u64,
    /// What `run_s` was when it began.
    since_s: u64,
}

impl Counted {
    /// From the second after this one, of which a part is over: a lock ends late and never early.
    fn beginning(lock_s: u64, run_s: u64) -> Self {
        Self { lock_s, since_s: run_s.saturating_add(1) }
    }

    fn left_s(self, run_s: u64) -> u64 {
        self.lock_s.saturating_sub(run_s.saturating_sub(self.since_s))
    }
}

/// What of a pool's locks is over, and what begins anew.
#[derive(Debug, Default, PartialEq, Eq)]
struct Aligned {
    over: Vec<(VolumeId, u64)>,
    begun_anew: Vec<(VolumeId, u64)>,
}

impl Saved {
    /// Brings what is counted in line with what a pool has locked.
    fn align(&mut self, pool: PoolId, locked: &[SnapshotInfo], run_s: u64) -> Aligned {
        let counted = self.counted.entry(pool).or_default();
        let there: BTreeSet<VolumeId> = locked.iter().map(|info| info.id).collect();
        counted.retain(|id, _| there.contains(id));
        let mut aligned = Aligned::default();
        for SnapshotInfo { id, lock_s, .. } in locked {
            match counted.get(id) {
                Some(known) if known.lock_s == *lock_s => {
                    if known.left_s(run_s) == 0 {
                        aligned.over.push((*id, *lock_s));
                    }
                }
                _ => {
                    counted.insert(*id, Counted::beginning(*lock_s, run_s));
                    aligned.begun_anew.push((*id, *lock_s));
                }
            }
        }
        aligned
    }

    fn find(&self, pool: PoolId, snapshot: &SnapshotInfo) -> Option<Counted> {
        let found = self.counted.get(&pool)?.get(&snapshot.id).copied();
        found.filter(|counted| counted.lock_s == snapshot.lock_s)
    }
}

/// Why a lock was not set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("a lock is for 1 second to {LOCK_MAX_S} seconds, which are a hundred years")]
    OutOfRange,
    #[error("the snapshot is locked for another {left_s} s already: a lock is made longer and never shorter")]
    Shorter { left_s: u64 },
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// Counts the time of locks.
#[derive(Debug)]
pub(crate) struct Retention {
    file: PathBuf,
    began: BootInstant,
    /// Of earlier runs.
    run_before_s: u64,
    saved: Mutex<Saved>,
}

impl Retention {
    /// Reads what was counted. A file that is damaged counts nothing: every lock begins anew.
    pub(crate) fn open(state_dir: &Path) -> Self {
        let file = state_dir.join(FILE);
        let saved = match std::fs::read(&file) {
            Ok(bytes) => parse(&bytes).unwrap_or_else(|reason| {
                tracing::error!(path = %file.display(), reason, "what of the time of locked snapshots is over cannot be read: all of it begins anew");
                Saved::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Saved::default(),
            Err(error) => {
                tracing::error!(path = %file.display(), %error, "what of the time of locked snapshots is over cannot be read: all of it begins anew");
                Saved::default()
            }
        };
        let run_before_s = saved.run_s;
        Self { file, began: boot_clock::now(), run_before_s, saved: Mutex::new(saved) }
    }

    /// Seconds that this program has run, of all its runs.
    pub(crate) fn run_s(&self) -> u64 {
        let run = boot_clock::now().0.saturating_sub(self.began.0) / NANOS_PER_SECOND;
        self.run_before_s.saturating_add(run)
    }

    fn saved(&self) -> MutexGuard<'_, Saved> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a snapshot is still locked; `None` where it is not.
    pub(crate) fn left_s(&self, pool: PoolId, snapshot: &SnapshotInfo) -> Option<u64> {
        let left = |counted: Counted| counted.left_s(self.run_s());
        (snapshot.lock_s > 0).then(|| self.saved().find(pool, snapshot).map_or(snapshot.lock_s, left))
    }

    /// Locks a snapshot for so long from now on. Durable when it returns.
    pub(crate) fn lock(
        &self,
        pool: &Pool,
        snapshot: VolumeId,
        for_s: u64,
    ) -> Result<SnapshotInfo, LockError> {
        if !(1..=LOCK_MAX_S).contains(&for_s) {
            return Err(LockError::OutOfRange);
        }
        let info = pool.snapshots().into_iter().find(|info| info.id == snapshot);
        let info = info.ok_or(PoolError::NoSuchSnapshot(snapshot))?;
        let id = pool.info().id;
        let mut saved = self.saved();
        let run_s = self.run_s();
        let counted = saved.find(id, &info).unwrap_or(Counted::beginning(info.lock_s, run_s));
        let left_s = counted.left_s(run_s);
        if for_s < left_s {
            return Err(LockError::Shorter { left_s });
        }
        let over_s = run_s.saturating_add(1).saturating_sub(counted.since_s);
        let lock_s = over_s.saturating_add(for_s);
        // First: a cut between the two makes it begin anew.
        let locked = pool.lock_snapshot(snapshot, lock_s)?;
        saved.counted.entry(id).or_default().insert(snapshot, Counted { lock_s, ..counted });
        self.save(&mut saved);
        Ok(locked)
    }

    /// Ends the locks whose time is over, and writes down how far the others are, and where asked to how long this program has run.
    pub(crate) fn tend(&self, pools: &[OpenPool], trail: &NodeTrail, keep_time: bool) {
        for open in pools {
            let pool = open.pool.info().id;
            let aligned = {
                // Before the pool is asked: a lock that is set meanwhile is either in both or in neither.
                let mut saved = self.saved();
                let locked: Vec<_> =
                    open.pool.snapshots().into_iter().filter(|info| info.lock_s > 0).collect();
                saved.align(pool, &locked, self.run_s())
            };
            for (snapshot, lock_s) in aligned.begun_anew {
                tracing::error!(%pool, %snapshot, lock_s, "how much of a locked snapshot's time is over is not known: it begins anew");
                note(trail, "lock-begun-anew", pool, snapshot, lock_s);
            }
            for (snapshot, lock_s) in aligned.over {
                match open.pool.end_lock(snapshot, lock_s) {
                    Ok(()) => {
                        tracing::info!(%pool, %snapshot, lock_s, "a snapshot's lock is over");
                        note(trail, "lock-ended", pool, snapshot, lock_s);
                    }
                    // It was made longer meanwhile, or the pool has failed: it stays locked.
                    Err(error) => tracing::warn!(%pool, %snapshot, %error, "a snapshot's lock was not ended"),
                }
            }
        }
        let there: BTreeSet<PoolId> = pools.iter().map(|open| open.pool.info().id).collect();
        let mut saved = self.saved();
        // The time of a pool that is elsewhere is not counted here: back again it begins anew.
        saved.counted.retain(|pool, _| there.contains(pool));
        if keep_time || saved.counted.values().any(|counted| !counted.is_empty()) {
            self.save(&mut saved);
        }
    }

    /// At a clean stop: what has run since the last tick counts too.
    pub(crate) fn keep_time(&self) {
        let mut saved = self.saved();
        // A node that never had a lock or a schedule has no such file.
        if self.file.exists() {
            self.save(&mut saved);
        }
    }

    /// How long until the next lock ends. One that should have ended and could not is left out.
    pub(crate) fn next_s(&self) -> Option<u64> {
        let run_s = self.run_s();
        let saved = self.saved();
        let left = saved.counted.values().flat_map(BTreeMap::values).map(|counted| counted.left_s(run_s));
        left.filter(|left_s| *left_s > 0).min()
    }

    fn save(&self, saved: &mut Saved) {
        (saved.version, saved.run_s) = (VERSION, self.run_s());
        let text = serde_json::to_vec_pretty(&saved).unwrap_or_default();
        if let Err(error) = state_file::replace(&self.file, &text) {
            tracing::error!(path = %self.file.display(), %error, "how much of the time of locked snapshots is over could not be written: after a restart they stay locked for longer");
        }
    }
}

fn note(trail: &NodeTrail, event: &str, pool: PoolId, snapshot: VolumeId, lock_s: u64) {
    let fields = [
        ("pool", pool.to_string().into()),
        ("snapshot", snapshot.to_string().into()),
        ("lock_s", lock_s.into()),
    ];
    trail.note(event, fields);
}

fn parse(bytes: &[u8]) -> Result<Saved, String> {
    let saved: Saved = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    match saved.version {
        VERSION => Ok(saved),
        version => Err(format!("version {version}, this program reads {VERSION}")),
    }
}

#[cfg(test)]
mod tests {
    use pool::VolumeKind;
    use units::{DomainId, SectorCount, VolumeEpoch};

    use super::*;

    const POOL: PoolId = PoolId([1; 16]);
    const SNAPSHOT: VolumeId = VolumeId([2; 16]);

    fn locked(lock_s: u64) -> SnapshotInfo {
        SnapshotInfo {
            id: SNAPSHOT,
            volume: VolumeId([3; 16]),
            created_s: 0,
            lock_s,
            sectors: SectorCount(1),
            domain: DomainId([4; 16]),
            epoch: VolumeEpoch(1),
            kind: VolumeKind::Block,
        }
    }

    #[test]
    fn a_lock_is_over_when_its_time_was_run_and_not_before() {
        let mut saved = Saved::default();
        assert_eq!(saved.align(POOL, &[locked(60)], 100).begun_anew, [(SNAPSHOT, 60)]);
        assert_eq!(saved.align(POOL, &[locked(60)], 160), Aligned::default());
        assert_eq!(saved.find(POOL, &locked(60)).map(|counted| counted.left_s(160)), Some(1));
        // Of the second that it began in a part was over.
        assert_eq!(saved.align(POOL, &[locked(60)], 161).over, [(SNAPSHOT, 60)]);
    }

    #[test]
    fn what_the_file_does_not_know_or_knows_otherwise_begins_anew() {
        let mut saved = Saved::default();
        let _ = saved.align(POOL, &[locked(60)], 0);
        // Made longer elsewhere.
        assert_eq!(saved.align(POOL, &[locked(61)], 60).begun_anew, [(SNAPSHOT, 61)]);
        assert_eq!(saved.align(POOL, &[locked(61)], 120), Aligned::default());
        // Of the same id in another pool.
        assert_eq!(saved.align(PoolId([9; 16]), &[locked(61)], 120).begun_anew, [(SNAPSHOT, 61)]);
        // Gone, and back.
        let _ = saved.align(POOL, &[], 120);
        assert_eq!(saved.align(POOL, &[locked(61)], 200).begun_anew, [(SNAPSHOT, 61)]);
    }

    #[test]
    fn a_file_that_is_lost_or_damaged_makes_every_lock_longer_and_none_shorter() {
        let dir = tempfile::tempdir().unwrap();
        let retention = Retention::open(dir.path());
        let _ = retention.saved().align(POOL, &[locked(60)], retention.run_s());
        retention.save(&mut retention.saved());
        let saved = Retention::open(dir.path());
        assert!(saved.saved().find(POOL, &locked(60)).is_some());
        for damaged in [&b""[..], b"{", b"{\"version\":9,\"run_s\":5000000000,\"counted\":{}}"] {
            std::fs::write(dir.path().join(FILE), damaged).unwrap();
            let retention = Retention::open(dir.path());
            assert_eq!(retention.run_before_s, 0);
            assert_eq!(retention.left_s(POOL, &locked(60)), Some(60));
        }
    }
}
