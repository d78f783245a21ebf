//! A new epoch of a volume's key, and what is left under the ones before it. Needs no key: what seals the sectors anew is the
//! caller's ([`PoolVolume::rewrite`]).
//!
//! Invariants:
//! - A new epoch ends the volume's moment, as a snapshot does. So every extent is of one epoch, and what the older ones hold is
//!   what was born before: it stays readable, and is hidden by what is written in its place.
//! - The entry that says so is one record of the log. A cut leaves the volume under the one epoch or the other, and an extent of
//!   the new one is durable only behind it.
//! - An epoch that a volume was taken off is never used for it again.
//! - What [`Pool::epochs_in_use`] does not name is on the device nowhere: no extent of that domain is of it, whoever shows it,
//!   and no power cut brings one back.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use units::{ByteLen, DomainId, Lba, SectorCount, VolumeEpoch, VolumeId};

use crate::blocks::AHEAD;
use crate::branch::{Branch, resolve};
use crate::commit::lock;
use crate::entry::{BranchId, Moment};
use crate::extent::ExtentKind;
use crate::volume::VolumeState;
use crate::{Pool, PoolError, PoolVolume, VolumeSpec};

/// Extents of a volume whose map is looked at at once.
const AT_ONCE: u64 = 1024;

/// What lies under one epoch of a key domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochUse {
    pub epoch: VolumeEpoch,
    /// In whole extents.
    pub allocated: ByteLen,
    /// The volumes and snapshots that show something of it. Where nobody does, it is being freed by the next flushes.
    pub shown_by: BTreeSet<VolumeId>,
}

impl Pool {
    /// From when this returns, durably, the volume is written under a new epoch of its key, of which `check` is the key-check
    /// value. What it holds stays as it is until somebody seals it anew ([`PoolVolume::rewrite`]) or writes it. Said again it
    /// changes nothing. While something lies under an older epoch, writing over it may take an extent, as after a snapshot.
    pub fn begin_epoch(&self, id: VolumeId, epoch: VolumeEpoch, check: [u8; 16]) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        let _changing = lock(&self.changing);
        let state = self.volume_state(id)?;
        state.refuse_replica()?;
        let now = state.spec();
        if (now.epoch, now.check) == (epoch, check) {
            // It may not be durable yet: whoever said it first may still be waiting.
            return self.core.flush();
        }
        if epoch <= now.epoch {
            return Err(PoolError::OldEpoch { volume: id, present: now.epoch });
        }
        // Before there is anything to hide: a trim on a full pool must find room for its holes.
        self.core.reserve_holes(0)?;
        // Others may still be written under the key before; what was counted for it counts on, for one of them.
        let heir = {
            let volumes = lock(&self.volumes);
            let mut others = volumes.live.values().filter(|other| other.id() != id && !other.is_replica());
            others.find(|other| other.key() == state.key()).cloned()
        };
        let left = state.blocks();
        if let Some(heir) = &heir {
            heir.add_blocks(&self.core, left);
            self.core.flush()?;
        }
        let reserved = self.core.encrypted.reserve((now.domain, epoch), 0, AHEAD);
        let blocks = reserved.map_or(0, |(blocks, _)| blocks);
        let (ended, writing, counted) = state.begin_epoch(&self.core, (epoch, check), Some(blocks))?;
        if let Some(heir) = &heir {
            heir.add_blocks(&self.core, counted.saturating_sub(left));
        }
        // What was on its way belongs to the moment that ended.
        writing.wait();
        ended.detach(&self.core);
        self.core.flush()
    }

    /// A replica takes what is sealed under this epoch from here on.
    pub(crate) fn change_key(
        &self,
        state: &VolumeState,
        key: (VolumeEpoch, [u8; 16]),
    ) -> Result<(), PoolError> {
        if state.spec().epoch == key.0 {
            return Ok(());
        }
        self.core.reserve_holes(0)?;
        let (ended, writing, _) = state.begin_epoch(&self.core, key, None)?;
        writing.wait();
        ended.detach(&self.core);
        self.core.flush()
    }

    /// With the newest epoch that a volume of the same domain is written under. A replica is not, nor are its snapshots: their epochs are
    /// what another node says.
    pub(crate) fn under_newest_key(&self, spec: VolumeSpec) -> VolumeSpec {
        let volumes = lock(&self.volumes);
        let is_replica = |id: &VolumeId| volumes.live.get(id).is_some_and(|state| state.is_replica());
        let is_told = |state: &&Arc<VolumeState>| {
            state.is_replica() || (state.is_snapshot() && state.origin().is_some_and(|of| is_replica(&of)))
        };
        let written = volumes.live.values().filter(|state| !is_told(state));
        let specs = written.map(|state| state.spec()).filter(|of| of.domain == spec.domain);
        let newest = specs.max_by_key(|of| of.epoch).filter(|of| of.epoch > spec.epoch);
        newest.map_or(spec, |of| VolumeSpec { epoch: of.epoch, check: of.check, ..spec })
    }

    /// What of a domain lies under which of its epochs, oldest first. Looks at every extent of the domain.
    pub fn epochs(&self, domain: DomainId) -> Vec<EpochUse> {
        let mut viewed: BTreeMap<BranchId, (Arc<Branch>, BTreeMap<Moment, Vec<VolumeId>>)> = BTreeMap::new();
        let states: Vec<(VolumeId, Arc<VolumeState>)> = {
            let volumes = lock(&self.volumes);
            let of_domain = volumes.live.iter().filter(|(_, state)| state.spec().domain == domain);
            of_domain.map(|(id, state)| (*id, Arc::clone(state))).collect()
        };
        for (id, state) in &states {
            for (branch, moment) in state.head().view.levels() {
                let (_, by) =
                    viewed.entry(branch.id).or_insert_with(|| (Arc::clone(branch), BTreeMap::new()));
                by.entry(moment).or_default().push(*id);
            }
        }
        let mut epochs: BTreeMap<VolumeEpoch, EpochUse> = BTreeMap::new();
        for (branch, by) in viewed.values() {
            branch.for_each_extent(|extent, moments| {
                let epoch = extent.epoch();
                let none = || EpochUse { epoch, allocated: ByteLen(0), shown_by: BTreeSet::new() };
                let of = epochs.entry(epoch).or_insert_with(none);
                of.allocated.0 += self.core.layout.extent_len().0;
                of.shown_by.extend(moments.iter().filter_map(|moment| by.get(moment)).flatten());
            });
        }
        epochs.into_values().collect()
    }

    /// The epochs of a domain under which anything lies that is shown, is being freed, or could come back after a power cut.
    /// Those that volumes are written under count too.
    pub fn epochs_in_use(&self, domain: DomainId) -> Result<BTreeSet<VolumeEpoch>, PoolError> {
        let mut epochs: BTreeSet<VolumeEpoch> = self.epochs(domain).iter().map(|of| of.epoch).collect();
        let states: Vec<_> = lock(&self.volumes).live.values().cloned().collect();
        let written = states.iter().filter(|state| !state.is_snapshot() && state.spec().domain == domain);
        epochs.extend(written.map(|state| state.spec().epoch));
        // An extent that is in no map any more may still be named on the device: after this it is not.
        self.core.flush()?;
        Ok(epochs)
    }
}

impl PoolVolume {
    /// The next sectors from `from` on that lie under another epoch than writes use, no more than `most` of them.
    pub fn next_outdated(
        &self,
        from: Lba,
        most: SectorCount,
    ) -> Result<Option<(Lba, SectorCount)>, PoolError> {
        let mut found = None;
        self.each_outdated(from, |run| {
            found = Some((Lba(run.start), SectorCount((run.end - run.start).min(most.0))));
            false
        })?;
        Ok(found)
    }

    /// How many sectors the volume shows that lie under another epoch than writes use.
    pub fn outdated(&self) -> Result<SectorCount, PoolError> {
        let mut sectors = SectorCount(0);
        self.each_outdated(Lba(0), |run| {
            sectors.0 += run.end - run.start;
            true
        })?;
        Ok(sectors)
    }

    /// Shows runs of such sectors, until told that it is enough.
    fn each_outdated(&self, from: Lba, mut visit: impl FnMut(Range<u64>) -> bool) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        let per_extent = u64::from(self.state.extent_sectors);
        let mut at = from.0;
        loop {
            let (view, epoch, end) = {
                let head = self.state.head();
                (head.view.clone(), head.epoch, head.sectors.0)
            };
            if at >= end {
                return Ok(());
            }
            let range = at..end.min((at / per_extent + AT_ONCE) * per_extent);
            for (logical, layers) in view.layers(self.state.logical(&range)) {
                let is_old = |nth: usize| {
                    layers[nth].kind() == ExtentKind::Data && layers[nth].extent.epoch() != epoch
                };
                if !(0..layers.len()).any(is_old) {
                    continue;
                }
                let start = logical * per_extent;
                for (run, holder) in resolve(&layers, self.state.part(logical, &range)) {
                    let run = start + u64::from(run.start)..start + u64::from(run.end);
                    if holder.is_some_and(is_old) && !visit(run) {
                        return Ok(());
                    }
                }
            }
            at = range.end;
        }
    }
}
