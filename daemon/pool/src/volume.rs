//! A thin volume: a map from extents of the volume to extents of the device, and the sectors present in each.
//!
//! Invariants:
//! - A sector is present only when a write of it has returned, so a reader never sees what an extent held before.
//! - An extent leaves the map only by `take_dirty`, deletion or shrinking, all under the map's write lock; never while a
//!   write to it is on its way, but for the last two, whose writers find out when they return.
//! - No lock is held across device input or output. Locks are taken in the order map, extent, dirty list.
//!
//! It knows no key: what it keeps is sealed, and holes are its only zeros.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use device::Sealed;
use units::{ByteLen, ByteOffset, Fence, Lba, SectorCount, VolumeEpoch, VolumeId};

use crate::allocator::AllocatedExtent;
use crate::commit::{Core, Retired, Taken, lock};
use crate::entry::{Mapping, VolumeEntry, VolumeRecord, VolumeSerial};
use crate::extent::{Extent, ExtentState};
use crate::{CrashStep, PoolError, VolumeInfo, VolumeSpec};

/// A volume's part of an open pool.
#[derive(Debug)]
pub(crate) struct VolumeState {
    pub(crate) slot: u32,
    pub(crate) serial: VolumeSerial,
    /// As created; the size that counts is the map's.
    spec: VolumeSpec,
    extent_sectors: u32,
    map: RwLock<VolumeMap>,
}

#[derive(Debug)]
struct VolumeMap {
    sectors: SectorCount,
    fence: Fence,
    deleted: bool,
    extents: BTreeMap<u64, Arc<Extent>>,
}

impl VolumeState {
    pub(crate) fn new(
        slot: u32,
        serial: VolumeSerial,
        record: &VolumeRecord,
        extent_sectors: u32,
        extents: BTreeMap<u64, Arc<Extent>>,
    ) -> Self {
        let map = VolumeMap { sectors: record.spec.sectors, fence: record.fence, deleted: false, extents };
        Self { slot, serial, spec: record.spec, extent_sectors, map: RwLock::new(map) }
    }

    fn map(&self) -> RwLockReadGuard<'_, VolumeMap> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, VolumeMap> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn info(&self, extent_len: ByteLen) -> VolumeInfo {
        let map = self.map();
        VolumeInfo {
            id: self.spec.id,
            sectors: map.sectors,
            domain: self.spec.domain,
            epoch: self.spec.epoch,
            check: self.spec.check,
            kind: self.spec.kind,
            fence: map.fence,
            allocated: ByteLen(map.extents.len() as u64 * extent_len.0),
        }
    }

    /// The volume's entry as the map now stands.
    fn entry(&self, map: &VolumeMap) -> VolumeEntry {
        let spec = VolumeSpec { sectors: map.sectors, ..self.spec };
        let volume = (!map.deleted).then_some(VolumeRecord { spec, fence: map.fence });
        VolumeEntry { serial: self.serial, volume }
    }

    /// Puts the volume's entry on the dirty list, while the map that it describes is locked.
    fn mark_entry(&self, core: &Core, map: &VolumeMap) {
        lock(&core.dirty).volumes.insert(self.slot, self.entry(map));
    }

    /// Puts a new volume's entry on the dirty list.
    pub(crate) fn mark_created(&self, core: &Core) {
        self.mark_entry(core, &self.map());
    }

    /// Takes an extent off the dirty list for a snapshot: what is to be recorded of it, if anything. An extent in which
    /// nothing is present and which nobody writes to leaves the map.
    pub(crate) fn take_dirty(&self, logical: u64) -> Option<Taken> {
        let mut map = self.map_mut();
        let extent = Arc::clone(map.extents.get(&logical)?);
        let mut state = extent.state();
        if !std::mem::take(&mut state.dirty) {
            return None;
        }
        if state.presence.is_empty() && state.writers == 0 {
            map.extents.remove(&logical);
            let needs_record = state.recorded;
            drop(state);
            return Some(Taken::Emptied(Retired { extent, needs_record }));
        }
        if state.presence.is_empty() && !state.recorded {
            // Its first writer is still on its way and marks it again.
            return None;
        }
        state.recorded = true;
        let mapping =
            Mapping { volume: self.serial, logical, epoch: extent.epoch(), presence: state.presence.clone() };
        Some(Taken::Used { index: extent.index(), mapping })
    }

    /// Deletes the volume. Its extents are free once that is durable and their last reader is gone.
    pub(crate) fn delete(&self, core: &Core) {
        let mut map = self.map_mut();
        map.deleted = true;
        let extents = std::mem::take(&mut map.extents);
        let mut dirty = lock(&core.dirty);
        dirty.volumes.insert(self.slot, self.entry(&map));
        // No record each: entries that name a serial without a volume are free.
        let retired = extents.into_values().map(|extent| Retired { extent, needs_record: false });
        dirty.retired.extend(retired);
        drop(dirty);
        core.unmapped();
    }

    /// Changes the size. What is cut off is a hole should the volume grow again: the caller flushes before growing,
    /// so that unmappings of an earlier shrinking are durable before the size that would show them.
    pub(crate) fn resize(self: &Arc<Self>, core: &Core, sectors: SectorCount) {
        let mut map = self.map_mut();
        map.sectors = sectors;
        self.mark_entry(core, &map);
        let cut = map.extents.split_off(&core.layout.extents_spanned(sectors));
        let retired: Vec<Retired> = cut
            .into_values()
            .map(|extent| {
                let needs_record = extent.state().recorded;
                Retired { extent, needs_record }
            })
            .collect();
        lock(&core.dirty).retired.extend(retired);
        let kept = in_extent(sectors.0, self.extent_sectors);
        let last = sectors.0 / u64::from(self.extent_sectors);
        if kept != 0
            && let Some(extent) = map.extents.get(&last)
        {
            let mut state = extent.state();
            if state.presence.remove(kept..self.extent_sectors, self.extent_sectors) {
                self.mark_dirty(core, last, &mut state);
            }
        }
        drop(map);
        core.unmapped();
    }

    /// Records a fence, unless it is not above the highest seen.
    pub(crate) fn raise_fence(&self, core: &Core, fence: Fence) -> Result<(), PoolError> {
        let mut map = self.map_mut();
        self.check_alive(&map)?;
        if fence <= map.fence {
            return Err(PoolError::StaleFence { volume: self.spec.id, given: fence, highest: map.fence });
        }
        map.fence = fence;
        self.mark_entry(core, &map);
        Ok(())
    }

    /// Puts an extent on the dirty list, once.
    fn mark_dirty(self: &Arc<Self>, core: &Core, logical: u64, state: &mut ExtentState) {
        if !std::mem::replace(&mut state.dirty, true) {
            lock(&core.dirty).extents.push((Arc::clone(self), logical));
        }
    }

    /// Puts those of the extents that opening found in need of it on the dirty list: empty ones, and one that holds
    /// sectors past the end.
    pub(crate) fn mark_leftovers(self: &Arc<Self>, core: &Core) {
        let map = self.map();
        let kept = in_extent(map.sectors.0, self.extent_sectors);
        let last = map.sectors.0 / u64::from(self.extent_sectors);
        for (logical, extent) in &map.extents {
            let mut state = extent.state();
            let past_end = kept != 0
                && *logical == last
                && state.presence.remove(kept..self.extent_sectors, self.extent_sectors);
            if past_end || state.presence.is_empty() {
                self.mark_dirty(core, *logical, &mut state);
            }
        }
    }

    fn check_alive(&self, map: &VolumeMap) -> Result<(), PoolError> {
        if map.deleted { Err(PoolError::NoSuchVolume(self.spec.id)) } else { Ok(()) }
    }

    /// The range as sector numbers, if the volume has all of it.
    fn range(&self, map: &VolumeMap, first: Lba, count: SectorCount) -> Result<Range<u64>, PoolError> {
        self.check_alive(map)?;
        match first.checked_add(count) {
            Some(end) if end.0 <= map.sectors.0 => Ok(first.0..end.0),
            _ => Err(PoolError::OutOfRange { first, count, sectors: map.sectors }),
        }
    }

    /// The extents of the map that `sectors` touches, each with the part of it that is touched.
    fn extents_in<'a>(
        &self,
        map: &'a VolumeMap,
        sectors: Range<u64>,
    ) -> impl Iterator<Item = (u64, &'a Arc<Extent>, Range<u32>)> {
        let per_extent = u64::from(self.extent_sectors);
        let logical = sectors.start / per_extent..sectors.end.div_ceil(per_extent);
        let width = self.extent_sectors;
        // An empty range that starts past its end would panic in `range`.
        let logical = logical.start..logical.end.max(logical.start);
        map.extents.range(logical).map(move |(logical, extent)| {
            let start = sectors.start.saturating_sub(logical * per_extent);
            let end = (sectors.end - logical * per_extent).min(per_extent);
            (*logical, extent, in_extent(start, width)..up_to_extent(end, width))
        })
    }
}

/// A sector's place in its extent.
fn in_extent(sector: u64, extent_sectors: u32) -> u32 {
    u32::try_from(sector % u64::from(extent_sectors)).expect("a remainder is below a 32-bit divisor")
}

/// As [`in_extent`], for the end of a range, which may be the end of the extent.
fn up_to_extent(sector: u64, extent_sectors: u32) -> u32 {
    u32::try_from(sector).map_or(extent_sectors, |sector| sector.min(extent_sectors))
}

/// Part of the answer to a read.
#[derive(Debug)]
pub enum Piece {
    /// Never written, or unmapped: reads as zeros.
    Hole(SectorCount),
    /// Ciphertext of consecutive sectors, and the epoch it was sealed under.
    Sealed { first: Lba, epoch: VolumeEpoch, data: Sealed },
}

/// Consecutive sectors that are alike.
struct Span {
    first: u64,
    count: u64,
    /// Where they lie and what they are sealed under; `None` for a hole.
    place: Option<(ByteOffset, VolumeEpoch)>,
}

impl Span {
    /// Appends `next` where it continues this span on the device as well.
    fn absorbs(&mut self, next: &Self) -> bool {
        let continues = match (self.place, next.place) {
            (None, None) => true,
            (Some((at, epoch)), Some((next_at, next_epoch))) => {
                let end = SectorCount(self.count).byte_len().and_then(|len| at.checked_add(len));
                end == Some(next_at) && epoch == next_epoch
            }
            _ => false,
        };
        if continues {
            self.count += next.count;
        }
        continues
    }
}

/// The sectors of a volume. Calls block; they may be made from many threads at once.
///
/// Reads and writes of the same sectors at the same time are the caller's to order: a read that overlaps a write sees
/// old or new content, in any mix of the units that the device writes whole.
#[derive(Debug)]
pub struct PoolVolume {
    core: Arc<Core>,
    state: Arc<VolumeState>,
}

impl PoolVolume {
    pub(crate) fn new(core: &Arc<Core>, state: &Arc<VolumeState>) -> Arc<Self> {
        Arc::new(Self { core: Arc::clone(core), state: Arc::clone(state) })
    }

    pub fn id(&self) -> VolumeId {
        self.state.spec.id
    }

    pub fn info(&self) -> VolumeInfo {
        self.state.info(self.core.layout.extent_len())
    }

    /// The size as it is now; a resize changes it under the caller.
    pub fn sectors(&self) -> SectorCount {
        self.state.map().sectors
    }

    /// Reads `count` sectors from `first` on: holes and ciphertext, in order, covering exactly the range.
    ///
    /// The caller bounds `count`: all of it is in memory at once.
    pub fn read(&self, first: Lba, count: SectorCount) -> Result<Vec<Piece>, PoolError> {
        self.core.check_not_failed()?;
        let (spans, held) = self.plan(first, count)?;
        let pieces = spans
            .into_iter()
            .map(|span| match span.place {
                None => Ok(Piece::Hole(SectorCount(span.count))),
                Some((at, epoch)) => {
                    let data = self.core.device.read(at, SectorCount(span.count))?;
                    Ok(Piece::Sealed { first: Lba(span.first), epoch, data })
                }
            })
            .collect();
        // Until here no one else is given these extents, even if they are unmapped meanwhile.
        drop(held);
        pieces
    }

    /// Whether each sector of the range is present: runs of (sectors, present) that cover it in order.
    pub fn presence(&self, first: Lba, count: SectorCount) -> Result<Vec<(SectorCount, bool)>, PoolError> {
        self.core.check_not_failed()?;
        let (spans, _) = self.plan(first, count)?;
        let mut runs: Vec<(SectorCount, bool)> = Vec::new();
        for span in spans {
            let present = span.place.is_some();
            match runs.last_mut() {
                Some((run, same)) if *same == present => run.0 += span.count,
                _ => runs.push((SectorCount(span.count), present)),
            }
        }
        Ok(runs)
    }

    /// Where every sector of the range lies, and what keeps those places from being given away.
    fn plan(&self, first: Lba, count: SectorCount) -> Result<(Vec<Span>, Vec<Arc<Extent>>), PoolError> {
        let map = self.state.map();
        let range = self.state.range(&map, first, count)?;
        let per_extent = u64::from(self.state.extent_sectors);
        let (mut spans, mut held): (Vec<Span>, Vec<Arc<Extent>>) = (Vec::new(), Vec::new());
        let mut push = |span: Span| {
            if span.count > 0 && !spans.last_mut().is_some_and(|last| last.absorbs(&span)) {
                spans.push(span);
            }
        };
        let mut at = range.start;
        for (logical, extent, part) in self.state.extents_in(&map, range.clone()) {
            let start = logical * per_extent;
            let part_first = start + u64::from(part.start);
            push(Span { first: at, count: part_first - at, place: None });
            for (run, present) in extent.state().presence.runs(part.clone()) {
                let place =
                    present.then(|| (self.core.layout.sector_at(extent.index(), run.start), extent.epoch()));
                push(Span { first: start + u64::from(run.start), count: run.len() as u64, place });
            }
            at = start + u64::from(part.end);
            held.push(Arc::clone(extent));
        }
        push(Span { first: at, count: range.end - at, place: None });
        Ok((spans, held))
    }

    /// Writes sealed sectors from `first` on. Durable only after a later [`PoolVolume::flush`]. On an error any part
    /// of it may have been written.
    pub fn write(&self, first: Lba, epoch: VolumeEpoch, data: &Sealed) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        let expected = self.state.spec.epoch;
        if epoch != expected {
            return Err(PoolError::WrongEpoch { expected, given: epoch });
        }
        let range = self.state.range(&self.state.map(), first, data.sectors())?;
        let per_extent = u64::from(self.state.extent_sectors);
        let mut at = range.start;
        while at < range.end {
            let logical = at / per_extent;
            let end = range.end.min((logical + 1) * per_extent);
            let start = in_extent(at, self.state.extent_sectors);
            let part = start..start + up_to_extent(end - at, self.state.extent_sectors);
            let slice = data.as_slice().sectors_in(at - range.start..end - range.start);
            self.write_part(logical, part, slice)?;
            at = end;
        }
        Ok(())
    }

    fn write_part(
        &self,
        logical: u64,
        part: Range<u32>,
        data: device::SealedSlice<'_>,
    ) -> Result<(), PoolError> {
        let extent = self.begin_write(logical)?;
        self.core.step(CrashStep::DataWrite);
        let written = self.core.device.write(self.core.layout.sector_at(extent.index(), part.start), data);
        self.end_write(logical, &extent, written.is_ok().then_some(part))?;
        Ok(written?)
    }

    /// The extent at `logical`, allocated if there is none, with one writer more.
    fn begin_write(&self, logical: u64) -> Result<Arc<Extent>, PoolError> {
        let join = |extent: &Arc<Extent>| {
            extent.state().writers += 1;
            Arc::clone(extent)
        };
        {
            let map = self.state.map();
            self.state.check_alive(&map)?;
            if let Some(extent) = map.extents.get(&logical) {
                return Ok(join(extent));
            }
        }
        let space = AllocatedExtent::new(self.core.allocate()?, &self.core.allocator);
        let mut map = self.state.map_mut();
        self.state.check_alive(&map)?;
        if let Some(extent) = map.extents.get(&logical) {
            // Another writer was faster; `space` goes back.
            return Ok(join(extent));
        }
        let spanned = self.core.layout.extents_spanned(map.sectors);
        if logical >= spanned {
            let first = Lba(logical.saturating_mul(u64::from(self.state.extent_sectors)));
            return Err(PoolError::OutOfRange { first, count: SectorCount(1), sectors: map.sectors });
        }
        let extent = Arc::new(Extent::for_first_write(space, self.state.spec.epoch));
        map.extents.insert(logical, Arc::clone(&extent));
        Ok(extent)
    }

    /// Takes one writer off the extent, and makes what it has written present.
    fn end_write(
        &self,
        logical: u64,
        extent: &Arc<Extent>,
        written: Option<Range<u32>>,
    ) -> Result<(), PoolError> {
        // Before presence is set: a snapshot that has the presence must find the write counted, or it would not flush.
        if written.is_some() {
            self.core.data_written();
        }
        let map = self.state.map();
        let mut state = extent.state();
        state.writers -= 1;
        self.state.check_alive(&map)?;
        let inside = map.sectors.0.saturating_sub(logical * u64::from(self.state.extent_sectors));
        let inside = up_to_extent(inside, self.state.extent_sectors);
        let width = self.state.extent_sectors;
        let changed = written
            .is_some_and(|part| state.presence.insert(part.start.min(inside)..part.end.min(inside), width));
        // An extent that stays empty because its first write failed is on the list so that it is given back.
        if changed || state.presence.is_empty() {
            self.state.mark_dirty(&self.core, logical, &mut state);
        }
        if state.presence.is_empty() {
            self.core.unmapped();
        }
        Ok(())
    }

    /// Makes the range a hole. Durable only after a later [`PoolVolume::flush`]; extents in which nothing is left are free
    /// from then on.
    pub fn unmap(&self, first: Lba, count: SectorCount) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        let map = self.state.map();
        let range = self.state.range(&map, first, count)?;
        let mut any = false;
        for (logical, extent, part) in self.state.extents_in(&map, range) {
            let mut state = extent.state();
            if state.presence.remove(part, self.state.extent_sectors) {
                self.state.mark_dirty(&self.core, logical, &mut state);
                any = true;
            }
        }
        drop(map);
        if any {
            self.core.unmapped();
        }
        Ok(())
    }

    /// Makes everything durable that was acknowledged before the call, on this and every other volume of the pool.
    /// An error is final: see [`PoolError::Failed`].
    pub fn flush(&self) -> Result<(), PoolError> {
        self.core.flush()
    }
}
