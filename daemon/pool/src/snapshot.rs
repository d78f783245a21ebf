//! Snapshots and clones: made, listed, read, rolled back to and deleted. None of it needs a key, copies a sector or walks
//! a map, but that deleting looks for what nobody sees any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use units::{Fence, VolumeEpoch, VolumeId};

use crate::branch::{Branch, View};
use crate::commit::lock;
use crate::entry::{BranchId, Moment, Role, VolumeRecord};
use crate::volume::{PoolVolume, VolumeState};
use crate::{LEVELS_MAX, Limits, Pool, PoolError, PoolUsage, SnapshotInfo, Usage, VolumeSpec};

/// A branch, and who looks at which moment of it.
struct Viewed {
    branch: Arc<Branch>,
    by: BTreeMap<Moment, Vec<VolumeId>>,
}

impl Pool {
    /// Takes a snapshot of a volume: what every write that was answered before the call has put there, and of those on
    /// their way each whole. Durable when it returns, and so is everything in it. `created_s` is the time, in seconds since
    /// 1970, for people.
    pub fn create_snapshot(
        &self,
        volume: VolumeId,
        id: VolumeId,
        created_s: u64,
    ) -> Result<SnapshotInfo, PoolError> {
        self.core.check_not_failed()?;
        let _changing = lock(&self.changing);
        let state = self.volume_state(volume)?;
        state.refuse_replica()?;
        self.take_snapshot(&state, id, created_s)
    }

    /// As [`Pool::create_snapshot`], while nothing else is being changed.
    pub(crate) fn take_snapshot(
        &self,
        state: &VolumeState,
        id: VolumeId,
        created_s: u64,
    ) -> Result<SnapshotInfo, PoolError> {
        let (slot, serial) = {
            let mut volumes = lock(&self.volumes);
            if volumes.live.contains_key(&id) {
                return Err(PoolError::VolumeExists(id));
            }
            volumes.vacancy()?
        };
        // Before there is anything to hide: a trim on a full pool must find room for its holes.
        self.core.reserve_holes(0)?;
        let (view, sectors, writing) = state.end_moment(&self.core)?;
        let record = VolumeRecord {
            spec: VolumeSpec { id, sectors, ..state.spec() },
            role: Role::Snapshot,
            levels: view.recorded_levels(),
            origin: Some(state.id()),
            created_s,
            blocks: 0,
            lock_s: 0,
        };
        let extent_sectors = self.core.layout.extent_sectors();
        let snapshot = Arc::new(VolumeState::new(slot, serial, &record, view, extent_sectors));
        snapshot.mark_entry(&self.core, &snapshot.head());
        // What was on its way belongs to it, and does not change once it is there.
        writing.wait();
        lock(&self.volumes).live.insert(id, Arc::clone(&snapshot));
        self.core.flush()?;
        Ok(snapshot.snapshot_info())
    }

    /// Every snapshot, by volume and age.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let volumes = lock(&self.volumes);
        let snapshots = volumes.live.values().filter(|volume| volume.is_snapshot());
        let mut sorted: Vec<_> =
            snapshots.map(|state| (state.head().view.moment, state.snapshot_info())).collect();
        sorted.sort_by_key(|(moment, info)| (info.volume, info.created_s, *moment, info.id));
        sorted.into_iter().map(|(_, info)| info).collect()
    }

    /// Opens a snapshot, to read.
    pub fn snapshot(&self, id: VolumeId) -> Result<Arc<PoolVolume>, PoolError> {
        Ok(PoolVolume::new(&self.core, &self.snapshot_state(id)?))
    }

    pub(crate) fn snapshot_state(&self, id: VolumeId) -> Result<Arc<VolumeState>, PoolError> {
        let found = lock(&self.volumes).live.get(&id).cloned();
        found.filter(|found| found.is_snapshot()).ok_or(PoolError::NoSuchSnapshot(id))
    }

    /// Deletes a snapshot and frees what only it showed. Durable when it returns. Works on a full pool.
    pub fn delete_snapshot(&self, id: VolumeId) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        // A replica that is given its content again reads it from there.
        let turn = self.turns.of(self.snapshot_state(id)?.origin().unwrap_or(id));
        let _turn = lock(&turn);
        let _changing = lock(&self.changing);
        let state = self.snapshot_state(id)?;
        if state.head().lock_s > 0 {
            return Err(PoolError::SnapshotLocked(id));
        }
        self.before_losing(&state)?;
        self.remove(&state)
    }

    /// Locks a snapshot: from when this returns, durably, nobody deletes it before [`Pool::end_lock`]. The pool has no clock: who
    /// has one counts `lock_s` seconds from when the lock was set. A lock is made longer by setting a larger number, and never
    /// shorter.
    pub fn lock_snapshot(&self, id: VolumeId, lock_s: u64) -> Result<SnapshotInfo, PoolError> {
        self.core.check_not_failed()?;
        let _changing = lock(&self.changing);
        let state = self.snapshot_state(id)?;
        if lock_s < state.head().lock_s {
            return Err(PoolError::SnapshotLocked(id));
        }
        state.set_lock(&self.core, lock_s);
        self.core.flush()?;
        Ok(state.snapshot_info())
    }

    /// Ends a snapshot's lock, durably, if it is still for as long as `lock_s`: whoever counts its time calls this when it is
    /// over, and nobody else.
    pub fn end_lock(&self, id: VolumeId, lock_s: u64) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        let _changing = lock(&self.changing);
        let state = self.snapshot_state(id)?;
        if state.head().lock_s != lock_s {
            return Err(PoolError::SnapshotLocked(id));
        }
        state.set_lock(&self.core, 0);
        self.core.flush()
    }

    /// The newest snapshot of a volume: of a replica the last that has arrived whole.
    pub fn last_snapshot(&self, volume: VolumeId) -> Option<SnapshotInfo> {
        self.newest_snapshot(volume).map(|newest| newest.state.snapshot_info())
    }

    /// Makes a volume that begins as the snapshot is, in the snapshot's key domain and written under the newest epoch of that
    /// which the pool knows. Durable when it returns.
    pub fn clone_snapshot(
        &self,
        snapshot: VolumeId,
        id: VolumeId,
        limits: Limits,
    ) -> Result<Arc<PoolVolume>, PoolError> {
        self.core.check_not_failed()?;
        let _changing = lock(&self.changing);
        let state = self.snapshot_state(snapshot)?;
        let view = state.head().view.clone();
        self.prepare_above(snapshot, &view)?;
        let role = Role::Volume { fence: Fence(0), limits };
        let spec = self.under_newest_key(VolumeSpec { id, ..state.spec() });
        self.add_volume(spec, role, Some((snapshot, &view)))
    }

    /// Makes a volume what one of its snapshots shows, its size too. What was written since is gone, but for what other
    /// snapshots show; those stay. Durable when it returns; after a power cut in the middle the volume is the one or the other.
    /// Works on a full pool.
    pub fn roll_back(&self, volume: VolumeId, snapshot: VolumeId) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        let _changing = lock(&self.changing);
        let state = self.volume_state(volume)?;
        state.refuse_replica()?;
        let target = self.snapshot_state(snapshot)?;
        if target.origin() != Some(volume) {
            return Err(PoolError::ForeignSnapshot { volume, snapshot });
        }
        let before = self.show(&state, &target, None)?;
        self.leave(&before)
    }

    /// Lets a volume show what a snapshot shows, from a new branch on: what it showed before. Not durable yet. `key`: what is
    /// written from then on, where that is under another epoch than before.
    pub(crate) fn show(
        &self,
        state: &VolumeState,
        target: &VolumeState,
        key: Option<(VolumeEpoch, [u8; 16])>,
    ) -> Result<View, PoolError> {
        let snapshot = target.id();
        let (view, sectors) = {
            let head = target.head();
            (head.view.clone(), head.sectors)
        };
        match self.prepare_above(snapshot, &view) {
            // Going back must work on a full pool. There is room for the holes of one branch more (`reserve_holes`), and
            // a trim that still finds none says so.
            Ok(()) | Err(PoolError::NoSpace) => {}
            Err(error) => return Err(error),
        }
        let serial = lock(&self.volumes).next_serial();
        let account = state.head().view.branch.account;
        let branch = Branch::new(serial, account, Some(&view), self.core.layout.extent_sectors());
        self.core.holes.expect_inherited(branch.inherited);
        let (before, writing) = state.roll_back(&self.core, branch, sectors, key);
        writing.wait();
        Ok(before)
    }

    /// Sees to it that a branch can be made above what a snapshot shows.
    fn prepare_above(&self, snapshot: VolumeId, view: &View) -> Result<(), PoolError> {
        if view.levels().count() >= LEVELS_MAX {
            return Err(PoolError::TooManyLevels { snapshot });
        }
        let inherited = view.levels().map(|(branch, _)| branch.extents()).sum();
        self.core.reserve_holes(inherited)
    }

    /// What every volume and snapshot uses. Looks at every extent of the pool.
    pub fn usage(&self) -> PoolUsage {
        let extent = self.core.layout.extent_len().0;
        let mut viewed: BTreeMap<BranchId, Viewed> = BTreeMap::new();
        let mut usage = PoolUsage::default();
        for (id, state) in &lock(&self.volumes).live {
            usage.of.insert(*id, Usage::default());
            for (branch, moment) in state.head().view.levels() {
                let viewed = viewed
                    .entry(branch.id)
                    .or_insert_with(|| Viewed { branch: Arc::clone(branch), by: BTreeMap::new() });
                viewed.by.entry(moment).or_default().push(*id);
            }
        }
        for Viewed { branch, by: seen } in viewed.values() {
            branch.for_each_extent(|_, moments| {
                let viewers = moments.iter().filter_map(|moment| seen.get(moment)).flatten();
                let viewers: Vec<VolumeId> = viewers.copied().collect();
                for id in &viewers {
                    let of = usage.of.entry(*id).or_default();
                    of.referenced.0 += extent;
                    if viewers.len() == 1 {
                        of.unique.0 += extent;
                    }
                }
                if viewers.is_empty() {
                    usage.unseen.0 += extent;
                }
            });
        }
        usage
    }
}
