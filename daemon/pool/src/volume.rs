//! A volume or a snapshot: a view of a branch, its size, and the reads and writes that go through it.
//!
//! Invariants:
//! - A sector is present only when a write of it has returned, so a reader never sees what an extent held before.
//! - A request that writes belongs to one moment as a whole. Who ends a moment, or the volume, waits for the requests of it.
//! - A snapshot takes no writes.
//!
//! It knows no key: what it keeps is sealed, and holes are its only zeros.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use device::{Sealed, SectorRecord};
use units::{ByteLen, ByteOffset, Fence, Lba, SECTOR_BYTES, SectorCount, VolumeEpoch, VolumeId};

use crate::allocator::Allocated;
use crate::blocks::{AHEAD, DUE, Key, Part};
use crate::branch::{Branch, Layer, View, Written, resolve};
use crate::ceilings::Pace;
use crate::commit::{Core, lock};
use crate::entry::{BranchId, Moment, Place, Receiving, Role, VolumeEntry, VolumeRecord};
use crate::extent::{Content, Extent, ExtentKind, Route, Way};
use crate::held::Held;
use crate::{
    Ceilings, CrashStep, Limits, PoolError, SnapshotInfo, StateHead, Verdict, VolumeInfo, VolumeSpec, Witness,
};

/// A volume's or snapshot's part of an open pool.
#[derive(Debug)]
pub(crate) struct VolumeState {
    pub(crate) slot: u32,
    /// As opened; the size, the epoch and the check value that count are the head's.
    spec: VolumeSpec,
    snapshot: bool,
    origin: Option<VolumeId>,
    created_s: u64,
    pub(crate) extent_sectors: u32,
    head: RwLock<Head>,
    pace: Mutex<Pace>,
    pub(crate) blocks: Part,
    /// Sectors written and unmapped since it was opened; a change of size, or of all it shows, counts as one.
    written: AtomicU64,
    /// Held while sectors are sealed anew, and while the size changes: what a shrinking cuts off is not put back.
    pub(crate) rewriting: Mutex<()>,
}

#[derive(Debug)]
pub(crate) struct Head {
    serial: BranchId,
    pub(crate) view: View,
    pub(crate) sectors: SectorCount,
    /// What is written in the present moment is sealed under: every extent that was born in it is.
    pub(crate) epoch: VolumeEpoch,
    check: [u8; 16],
    fence: Fence,
    limits: Limits,
    /// Blocks encrypted, and reserved ahead.
    blocks: u64,
    /// A snapshot's retention lock, seconds; 0 for none.
    pub(crate) lock_s: u64,
    /// Whether it takes only what is sent to it, and what is on its way.
    pub(crate) replica: Option<Option<Receiving>>,
    deleted: bool,
    /// Requests of the present moment that write.
    writing: Arc<Writing>,
}

/// Requests that are on their way.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    count: Mutex<u64>,
    none: Condvar,
}

impl Writing {
    fn begin(self: &Arc<Self>) -> Request {
        *lock(&self.count) += 1;
        Request { of: Arc::clone(self) }
    }

    /// Returns when none is left. New ones must have nowhere to come from.
    pub(crate) fn wait(&self) {
        let count = lock(&self.count);
        drop(self.none.wait_while(count, |count| *count > 0).unwrap_or_else(PoisonError::into_inner));
    }
}

/// A request on its way.
#[derive(Debug)]
struct Request {
    of: Arc<Writing>,
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut count = lock(&self.of.count);
        *count -= 1;
        if *count == 0 {
            self.of.none.notify_all();
        }
    }
}

impl VolumeState {
    pub(crate) fn new(
        slot: u32,
        serial: BranchId,
        record: &VolumeRecord,
        view: View,
        extent_sectors: u32,
    ) -> Self {
        let (fence, limits, snapshot) = match record.role {
            Role::Volume { fence, limits } => (fence, limits, false),
            Role::Snapshot => (Fence(0), Limits::default(), true),
            Role::Replica { .. } => (Fence(0), Limits::default(), false),
        };
        let replica = match record.role {
            Role::Replica { receiving } => Some(receiving),
            _ => None,
        };
        let VolumeSpec { sectors, epoch, check, .. } = record.spec;
        let (blocks, lock_s) = (record.blocks, record.lock_s);
        let head = Head {
            serial,
            view,
            sectors,
            epoch,
            check,
            fence,
            limits,
            blocks,
            lock_s,
            replica,
            deleted: false,
            writing: Arc::default(),
        };
        Self {
            slot,
            spec: record.spec,
            snapshot,
            origin: record.origin,
            created_s: record.created_s,
            extent_sectors,
            head: RwLock::new(head),
            pace: Mutex::default(),
            blocks: Part::recorded(record.blocks),
            written: AtomicU64::new(0),
            rewriting: Mutex::default(),
        }
    }

    pub(crate) fn head(&self) -> RwLockReadGuard<'_, Head> {
        self.head.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn head_mut(&self) -> RwLockWriteGuard<'_, Head> {
        self.head.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn id(&self) -> VolumeId {
        self.spec.id
    }

    pub(crate) fn is_snapshot(&self) -> bool {
        self.snapshot
    }

    pub(crate) fn origin(&self) -> Option<VolumeId> {
        self.origin
    }

    /// As it now is.
    pub(crate) fn spec(&self) -> VolumeSpec {
        self.spec_of(&self.head())
    }

    fn spec_of(&self, head: &Head) -> VolumeSpec {
        VolumeSpec { sectors: head.sectors, epoch: head.epoch, check: head.check, ..self.spec }
    }

    pub(crate) fn info(&self, core: &Core) -> VolumeInfo {
        let head = self.head();
        let owned = u64::from(core.allocator.owned(head.view.branch.account));
        VolumeInfo {
            id: self.spec.id,
            sectors: head.sectors,
            domain: self.spec.domain,
            epoch: head.epoch,
            check: head.check,
            kind: self.spec.kind,
            fence: head.fence,
            allocated: ByteLen(owned * core.layout.extent_len().0),
            limits: head.limits,
            clone_of: self.origin,
            replica: head.replica.is_some(),
            encrypted_blocks: core.encrypted.of((self.spec.domain, head.epoch)),
        }
    }

    pub(crate) fn snapshot_info(&self) -> SnapshotInfo {
        let (sectors, epoch, lock_s) = {
            let head = self.head();
            (head.sectors, head.epoch, head.lock_s)
        };
        SnapshotInfo {
            id: self.spec.id,
            volume: self.origin.unwrap_or(self.spec.id),
            created_s: self.created_s,
            sectors,
            lock_s,
            domain: self.spec.domain,
            epoch,
            kind: self.spec.kind,
        }
    }

    /// The entry as the head now stands.
    fn entry(&self, head: &Head) -> VolumeEntry {
        let role = match (self.snapshot, head.replica) {
            (true, _) => Role::Snapshot,
            (false, Some(receiving)) => Role::Replica { receiving },
            (false, None) => Role::Volume { fence: head.fence, limits: head.limits },
        };
        let record = VolumeRecord {
            spec: self.spec_of(head),
            role,
            levels: head.view.recorded_levels(),
            origin: self.origin,
            created_s: self.created_s,
            blocks: head.blocks,
            lock_s: head.lock_s,
        };
        VolumeEntry { serial: head.serial, volume: (!head.deleted).then_some(record) }
    }

    /// Sets a snapshot's retention lock. Not durable yet.
    pub(crate) fn set_lock(&self, core: &Core, lock_s: u64) {
        let mut head = self.head_mut();
        head.lock_s = lock_s;
        self.mark_entry(core, &head);
    }

    /// What it is written under.
    pub(crate) fn key(&self) -> Key {
        (self.spec.domain, self.head().epoch)
    }

    /// Blocks counted in its entry.
    pub(crate) fn blocks(&self) -> u64 {
        self.head().blocks
    }

    /// Takes over blocks that were counted in another entry. Volumes do not come and go meanwhile.
    pub(crate) fn add_blocks(&self, core: &Core, blocks: u64) {
        let mut head = self.head_mut();
        head.blocks = head.blocks.saturating_add(blocks);
        self.blocks.take_over(blocks);
        self.mark_entry(core, &head);
    }

    /// Notes how many blocks the volume that a replica is of has encrypted. They count from its promotion on.
    pub(crate) fn note_blocks(&self, core: &Core, blocks: u64) {
        self.add_blocks(core, blocks.saturating_sub(self.blocks()));
    }

    pub(crate) fn is_replica(&self) -> bool {
        self.head().replica.is_some()
    }

    /// Reserves so many blocks, durably, and some ahead, unless the key is used up.
    fn reserve_blocks(&self, core: &Core, epoch: VolumeEpoch, needed: u64) -> Result<(), PoolError> {
        let reserved = {
            let mut head = self.head_mut();
            // Its slot may be another volume's by now, whose entry this would take away.
            self.check_alive(&head)?;
            check_epoch(&head, epoch)?;
            let least = needed.saturating_sub(head.blocks);
            if least > 0 {
                let (more, sum) = core
                    .encrypted
                    .reserve((self.spec.domain, epoch), least, least.saturating_add(AHEAD))
                    .ok_or(PoolError::KeyUsedUp(self.spec.id))?;
                head.blocks += more;
                self.mark_entry(core, &head);
                if sum >= DUE && sum - more < DUE {
                    tracing::warn!(volume = %self.spec.id, "the volume's key has encrypted 2^43 blocks: give the volume a new one (`nightlatch volume rotate`) before it has encrypted 2^44, from where on nothing is written under it");
                }
            }
            head.blocks
        };
        // Another may have marked it, and not be through.
        core.flush()?;
        let head = self.head();
        check_epoch(&head, epoch)?;
        self.blocks.reserved(reserved);
        Ok(())
    }

    /// Puts the entry on the dirty list, while the head that it describes is locked.
    pub(crate) fn mark_entry(&self, core: &Core, head: &Head) {
        lock(&core.dirty).volumes.insert(self.slot, self.entry(head));
    }

    /// Marks the volume deleted. Returns when no request is on its way any more.
    pub(crate) fn delete(&self, core: &Core) {
        let mut head = self.head_mut();
        head.deleted = true;
        self.mark_entry(core, &head);
        let writing = Arc::clone(&head.writing);
        drop(head);
        writing.wait();
    }

    fn note_written(&self, sectors: u64) {
        self.written.fetch_add(sectors, Ordering::Relaxed);
    }

    /// Ends the present moment. What it was, for the snapshot to show, with the size, and the requests that belong to it.
    pub(crate) fn end_moment(&self, core: &Core) -> Result<(View, SectorCount, Arc<Writing>), PoolError> {
        let mut head = self.head_mut();
        self.check_alive(&head)?;
        let ended = head.view.clone();
        let moment = ended.moment.next().ok_or(PoolError::TooManySnapshots)?;
        // The snapshot takes over what the head counted for.
        let next = View { branch: Arc::clone(&ended.branch), moment };
        next.attach(core.layout.extents_spanned(head.sectors));
        head.view = next;
        let writing = std::mem::take(&mut head.writing);
        self.mark_entry(core, &head);
        Ok((ended, head.sectors, writing))
    }

    /// Ends the present moment without anybody's looking at what it was: what is written from here on is sealed under `epoch`.
    /// What it was, the requests that belong to it, and how many blocks were counted for the key before. `blocks`: how many
    /// are reserved for the new key; `None` leaves the count as it is.
    pub(crate) fn begin_epoch(
        &self,
        core: &Core,
        (epoch, check): (VolumeEpoch, [u8; 16]),
        blocks: Option<u64>,
    ) -> Result<(View, Arc<Writing>, u64), PoolError> {
        let mut head = self.head_mut();
        self.check_alive(&head)?;
        let ended = head.view.clone();
        let moment = ended.moment.next().ok_or(PoolError::TooManySnapshots)?;
        let next = View { branch: Arc::clone(&ended.branch), moment };
        next.attach(core.layout.extents_spanned(head.sectors));
        head.view = next;
        (head.epoch, head.check) = (epoch, check);
        let counted = head.blocks;
        if let Some(blocks) = blocks {
            head.blocks = blocks;
            // Nothing of it is durable yet: the first who seal under the new key wait until it is.
            self.blocks.restart();
        }
        let writing = std::mem::take(&mut head.writing);
        self.mark_entry(core, &head);
        Ok((ended, writing, counted))
    }

    /// Shows something else from here on: what was shown, and the requests that still write to it. `key`: under which epoch what
    /// is written from here on is sealed, where that changes with it.
    pub(crate) fn roll_back(
        &self,
        core: &Core,
        branch: Arc<Branch>,
        sectors: SectorCount,
        key: Option<(VolumeEpoch, [u8; 16])>,
    ) -> (View, Arc<Writing>) {
        let mut head = self.head_mut();
        self.note_written(1);
        if let Some(key) = key {
            (head.epoch, head.check) = key;
        }
        head.serial = branch.id;
        let view = View { branch, moment: Moment(0) };
        view.attach(core.layout.extents_spanned(sectors));
        let before = std::mem::replace(&mut head.view, view);
        head.sectors = sectors;
        let writing = std::mem::take(&mut head.writing);
        self.mark_entry(core, &head);
        (before, writing)
    }

    /// Changes the size. What is cut off is a hole should the volume grow again.
    pub(crate) fn resize(&self, core: &Core, sectors: SectorCount) {
        let mut head = self.head_mut();
        self.note_written(1);
        let shorter = sectors < head.sectors;
        head.sectors = sectors;
        self.mark_entry(core, &head);
        let end = core.layout.extents_spanned(sectors);
        if !shorter {
            return;
        }
        let (branch, moment) = (&head.view.branch, head.view.moment);
        let cut = branch.cut(end, moment);
        lock(&core.dirty).cut.extend(cut);
        head.view.shorten(core, end);
        let kept = in_extent(sectors.0, self.extent_sectors);
        if kept != 0 {
            let last = Place::new(sectors.0 / u64::from(self.extent_sectors), moment);
            branch.remove(core, last, kept..self.extent_sectors);
        }
        drop(head);
        core.unmapped();
    }

    /// Makes a hole of what growing to `sectors` would show: older extents that a shrinking left for the snapshots.
    pub(crate) fn hide_past_end(&self, core: &Core, sectors: SectorCount) -> Result<(), PoolError> {
        {
            let head = self.head();
            self.check_alive(&head)?;
            // First, or the holes would be taken for some that nobody sees.
            head.view.lengthen(core.layout.extents_spanned(sectors.max(head.sectors)));
        }
        core.with_room_for_holes(|| {
            let head = self.head();
            self.check_alive(&head)?;
            Ok(self.unmap(core, &head, head.sectors.0..sectors.0.max(head.sectors.0)).map(|_any| ()))
        })
    }

    /// Makes holes of sectors; `None` where the hole table has no room for them.
    ///
    /// The holes come before presence goes. Between the two the sector reads as before; the other way round it would show
    /// what it held before a snapshot.
    fn unmap(&self, core: &Core, head: &Head, sectors: Range<u64>) -> Option<bool> {
        let mut any = false;
        for (logical, layers) in head.view.layers(self.logical(&sectors)) {
            let part = self.part(logical, &sectors);
            let place = Place::new(logical, head.view.moment);
            let own =
                layers.first().is_some_and(|layer| layer.present_moment && layer.kind() == ExtentKind::Data);
            let older = &layers[usize::from(own)..];
            if !older.is_empty() {
                let shown = resolve(older, part.clone()).into_iter().filter(|(_, holder)| holder.is_some());
                let shown: Vec<Range<u32>> = shown.map(|(run, _)| run).collect();
                if !shown.is_empty() {
                    head.view.branch.add_holes(core, place, &shown)?;
                }
            }
            any |= own && head.view.branch.remove(core, place, part);
        }
        Some(any)
    }

    /// Records a fence, unless it is not above the highest seen.
    pub(crate) fn raise_fence(&self, core: &Core, fence: Fence) -> Result<(), PoolError> {
        let mut head = self.head_mut();
        self.check_alive(&head)?;
        if head.replica.is_some() {
            return Err(PoolError::Replica(self.spec.id));
        }
        if fence <= head.fence {
            return Err(PoolError::StaleFence { volume: self.spec.id, given: fence, highest: head.fence });
        }
        head.fence = fence;
        self.mark_entry(core, &head);
        Ok(())
    }

    pub(crate) fn set_limits(&self, core: &Core, limits: Limits) -> Result<(), PoolError> {
        let mut head = self.head_mut();
        self.check_alive(&head)?;
        core.set_limits(head.view.branch.account, limits)?;
        head.limits = limits;
        // Turns that were taken at another pace.
        *lock(&self.pace) = Pace::default();
        self.mark_entry(core, &head);
        Ok(())
    }

    /// After opening. A pool may have lost the room for a reserve; then it holds for what is left.
    pub(crate) fn restore_limits(&self, core: &Core, head: &Head) {
        if let Err(error) = core.restore_limits(head.view.branch.account, head.limits) {
            tracing::warn!(volume = %self.spec.id, %error, "the pool no longer has room for what the volume has reserved");
        }
    }

    fn check_alive(&self, head: &Head) -> Result<(), PoolError> {
        if head.deleted { Err(PoolError::NoSuchVolume(self.spec.id)) } else { Ok(()) }
    }

    fn check_writable(&self) -> Result<(), PoolError> {
        if self.snapshot { Err(PoolError::ReadOnly(self.spec.id)) } else { self.refuse_replica() }
    }

    pub(crate) fn refuse_replica(&self) -> Result<(), PoolError> {
        if self.is_replica() { Err(PoolError::Replica(self.spec.id)) } else { Ok(()) }
    }

    /// Makes it a replica that receives this, or nothing now; or, with `None`, a volume like others.
    pub(crate) fn set_replica(
        &self,
        core: &Core,
        replica: Option<Option<Receiving>>,
    ) -> Result<(), PoolError> {
        let mut head = self.head_mut();
        self.check_alive(&head)?;
        head.replica = replica;
        self.mark_entry(core, &head);
        Ok(())
    }

    /// The range as sector numbers, if the volume has all of it.
    pub(crate) fn range(&self, head: &Head, first: Lba, count: SectorCount) -> Result<Range<u64>, PoolError> {
        self.check_alive(head)?;
        match first.checked_add(count) {
            Some(end) if end.0 <= head.sectors.0 => Ok(first.0..end.0),
            _ => Err(PoolError::OutOfRange { first, count, sectors: head.sectors }),
        }
    }

    /// The extents of the volume that hold any of these sectors.
    pub(crate) fn logical(&self, sectors: &Range<u64>) -> Range<u64> {
        let per_extent = u64::from(self.extent_sectors);
        if sectors.is_empty() { 0..0 } else { sectors.start / per_extent..sectors.end.div_ceil(per_extent) }
    }

    /// The part of one of those extents that is meant.
    pub(crate) fn part(&self, logical: u64, sectors: &Range<u64>) -> Range<u32> {
        let start = logical * u64::from(self.extent_sectors);
        up_to_extent(sectors.start.saturating_sub(start), self.extent_sectors)
            ..up_to_extent(sectors.end.saturating_sub(start), self.extent_sectors)
    }
}

/// Refuses what is sealed under another epoch than writes use.
fn check_epoch(head: &Head, given: VolumeEpoch) -> Result<(), PoolError> {
    let expected = head.epoch;
    if given == expected { Ok(()) } else { Err(PoolError::WrongEpoch { expected, given }) }
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
    source: Source,
}

/// Where sectors are read from, and what they are sealed under.
enum Source {
    Hole,
    /// Their places, one behind the other, from `at` on.
    Device {
        at: ByteOffset,
        epoch: VolumeEpoch,
        parts: Vec<PlacedPart>,
    },
    /// Not in their places yet.
    Memory {
        epoch: VolumeEpoch,
        sectors: Vec<Held>,
    },
}

/// Sectors of one extent that are in their places, and those of their records that the device does not have yet.
struct PlacedPart {
    extent: u32,
    sectors: Range<u32>,
    known: Vec<(u32, SectorRecord)>,
}

impl Span {
    /// Takes in `next`, where it continues this span on the device as well, or gives it back.
    fn absorb(&mut self, next: Self) -> Option<Self> {
        match (&mut self.source, next.source) {
            (Source::Hole, Source::Hole) => {}
            (
                Source::Device { at, epoch, parts },
                Source::Device { at: next_at, epoch: next_epoch, parts: mut next_parts },
            ) if *epoch == next_epoch
                && SectorCount(self.count).byte_len().and_then(|len| at.checked_add(len))
                    == Some(next_at) =>
            {
                parts.append(&mut next_parts);
            }
            (
                Source::Memory { epoch, sectors },
                Source::Memory { epoch: next_epoch, sectors: mut next_sectors },
            ) if *epoch == next_epoch => sectors.append(&mut next_sectors),
            (_, source) => return Some(Self { source, ..next }),
        }
        self.count += next.count;
        None
    }
}

/// Spans in order, as few as there can be.
#[derive(Default)]
struct Spans(Vec<Span>);

impl Spans {
    fn push(&mut self, span: Span) {
        if span.count > 0 {
            let left = match self.0.last_mut() {
                Some(last) => last.absorb(span),
                None => Some(span),
            };
            self.0.extend(left);
        }
    }

    /// Pushes the sectors `run` of `extent`, of which the first is sector `first` of the volume.
    fn push_run(&mut self, core: &Core, extent: &Extent, first: u64, run: Range<u32>) {
        let (index, epoch) = (extent.index(), extent.epoch());
        let placed = |sectors: Range<u32>, known: Vec<(u32, SectorRecord)>| Span {
            first: first + u64::from(sectors.start - run.start),
            count: sectors.len() as u64,
            source: Source::Device {
                at: core.layout.sector_at(index, sectors.start),
                epoch,
                parts: vec![PlacedPart { extent: index, sectors, known }],
            },
        };
        let state = extent.state();
        let (mut at, mut known) = (run.start, Vec::new());
        for (sector, content) in state.pending(run.clone()) {
            match content {
                Content::Placed(record) => known.push((sector, *record)),
                Content::InMemory(held) => {
                    self.push(placed(at..sector, std::mem::take(&mut known)));
                    self.push(Span {
                        first: first + u64::from(sector - run.start),
                        count: 1,
                        source: Source::Memory { epoch, sectors: vec![held.clone()] },
                    });
                    at = sector + 1;
                }
            }
        }
        self.push(placed(at..run.end, known));
    }
}

/// The sectors of a volume or of a snapshot. Calls block; they may be made from many threads at once.
///
/// Reads and writes of the same sectors at the same time are the caller's to order: a read that overlaps a write sees
/// old or new content, in any mix of the units that the device writes whole.
#[derive(Debug)]
pub struct PoolVolume {
    pub(crate) core: Arc<Core>,
    pub(crate) state: Arc<VolumeState>,
}

impl PoolVolume {
    pub(crate) fn new(core: &Arc<Core>, state: &Arc<VolumeState>) -> Arc<Self> {
        Arc::new(Self { core: Arc::clone(core), state: Arc::clone(state) })
    }

    pub fn id(&self) -> VolumeId {
        self.state.spec.id
    }

    pub fn info(&self) -> VolumeInfo {
        self.state.info(&self.core)
    }

    /// What writes are sealed under now; what is there may be under others ([`Piece::Sealed`]).
    pub fn epoch(&self) -> VolumeEpoch {
        self.state.head().epoch
    }

    /// A snapshot's volume, a clone's snapshot.
    pub fn origin(&self) -> Option<VolumeId> {
        self.state.origin()
    }

    /// The size as it is now; a resize changes it under the caller.
    pub fn sectors(&self) -> SectorCount {
        self.state.head().sectors
    }

    /// Reads `count` sectors from `first` on: holes and ciphertext, in order, covering exactly the range.
    ///
    /// The caller bounds `count`: all of it is in memory at once.
    pub fn read(&self, first: Lba, count: SectorCount) -> Result<Vec<Piece>, PoolError> {
        self.core.check_not_failed()?;
        let (spans, held) = self.plan(first, count)?;
        let pieces = spans.into_iter().map(|span| self.piece(span)).collect();
        // Until here no one else is given these extents, even if they are unmapped meanwhile.
        drop(held);
        pieces
    }

    fn piece(&self, span: Span) -> Result<Piece, PoolError> {
        let first = Lba(span.first);
        match span.source {
            Source::Hole => Ok(Piece::Hole(SectorCount(span.count))),
            Source::Memory { epoch, sectors } => {
                let data = Sealed::gathered(Held::pieces(&sectors).into_iter());
                Ok(Piece::Sealed { first, epoch, data })
            }
            Source::Device { at, epoch, parts } => {
                let data = self.core.device.read(at, SectorCount(span.count))?;
                if !self.core.layout.has_records() {
                    return Ok(Piece::Sealed { first, epoch, data });
                }
                let mut records = Vec::with_capacity(data.as_bytes().len() / SECTOR_BYTES);
                for part in &parts {
                    if let Err(error) = self.read_records(part, &mut records) {
                        if let PoolError::RecordDamaged { .. } | PoolError::RecordsReplaced { .. } = &error {
                            self.report_damage(Lba(span.first + records.len() as u64), &error);
                        }
                        return Err(error);
                    }
                }
                Ok(Piece::Sealed { first, epoch, data: data.with_records(records) })
            }
        }
    }

    fn read_records(&self, part: &PlacedPart, records: &mut Vec<SectorRecord>) -> Result<(), PoolError> {
        let mut at = part.sectors.start;
        for (sector, record) in &part.known {
            self.core.records.read(part.extent, at..*sector, records)?;
            records.push(*record);
            at = sector + 1;
        }
        self.core.records.read(part.extent, at..part.sectors.end, records)
    }

    /// Whether each sector of the range is present: runs of (sectors, present) that cover it in order.
    pub fn presence(&self, first: Lba, count: SectorCount) -> Result<Vec<(SectorCount, bool)>, PoolError> {
        self.core.check_not_failed()?;
        let (spans, _) = self.plan(first, count)?;
        let mut runs: Vec<(SectorCount, bool)> = Vec::new();
        for span in spans {
            let present = !matches!(span.source, Source::Hole);
            match runs.last_mut() {
                Some((run, same)) if *same == present => run.0 += span.count,
                _ => runs.push((SectorCount(span.count), present)),
            }
        }
        Ok(runs)
    }

    fn plan(&self, first: Lba, count: SectorCount) -> Result<(Vec<Span>, Vec<Layer>), PoolError> {
        let head = self.state.head();
        let range = self.state.range(&head, first, count)?;
        Ok(self.plan_of(&head.view, &range))
    }

    /// Where every sector of the range lies, and what keeps those places from being given away.
    fn plan_of(&self, view: &View, range: &Range<u64>) -> (Vec<Span>, Vec<Layer>) {
        let layers = view.layers(self.state.logical(range));
        let (mut spans, mut held) = (Spans::default(), Vec::new());
        let hole = |from: u64, to: u64| Span { first: from, count: to - from, source: Source::Hole };
        let mut at = range.start;
        for (logical, layers) in layers {
            let start = logical * u64::from(self.state.extent_sectors);
            let part = self.state.part(logical, range);
            spans.push(hole(at, start + u64::from(part.start)));
            at = start + u64::from(part.end);
            for (run, holder) in resolve(&layers, part) {
                let first = start + u64::from(run.start);
                match holder {
                    Some(nth) => spans.push_run(&self.core, &layers[nth].extent, first, run),
                    None => spans.push(hole(first, first + run.len() as u64)),
                }
            }
            held.extend(layers);
        }
        spans.push(hole(at, range.end));
        (spans.0, held)
    }

    /// Writes sealed sectors from `first` on. Durable only after a later [`PoolVolume::flush`]. On an error any part
    /// of it may have been written.
    pub fn write(
        &self,
        first: Lba,
        epoch: VolumeEpoch,
        data: impl Into<Arc<Sealed>>,
    ) -> Result<(), PoolError> {
        self.state.check_writable()?;
        self.store(first, epoch, &data.into())
    }

    /// As [`PoolVolume::write`], to a replica too.
    pub(crate) fn store(&self, first: Lba, epoch: VolumeEpoch, data: &Arc<Sealed>) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        self.core.make_room(data.sectors().0)?;
        let (range, view, _request) = {
            let head = self.state.head();
            check_epoch(&head, epoch)?;
            let range = self.state.range(&head, first, data.sectors())?;
            // Under the lock that a snapshot takes: what is counted before one is in it.
            self.state.note_written(data.sectors().0);
            (range, head.view.clone(), head.writing.begin())
        };
        self.store_in((&view, epoch), &range, data)
    }

    /// Puts sectors into the extents of a moment, all of which are of this epoch.
    fn store_in(
        &self,
        present: (&View, VolumeEpoch),
        range: &Range<u64>,
        data: &Arc<Sealed>,
    ) -> Result<(), PoolError> {
        for logical in self.state.logical(range) {
            let part = self.state.part(logical, range);
            let start = logical * u64::from(self.state.extent_sectors) + u64::from(part.start) - range.start;
            self.write_part(present, logical, part, (data, start))?;
        }
        Ok(())
    }

    /// Seals anew what the range holds under other epochs than the one that writes use: `reseal` is given each piece of it, and
    /// returns the same sectors under `epoch`. How many that were. Nobody else writes these sectors meanwhile: that is the
    /// caller's to see to. A snapshot, a rollback or another epoch that comes in between waits for it, or finds it done.
    pub fn rewrite<E: From<PoolError>>(
        &self,
        first: Lba,
        count: SectorCount,
        epoch: VolumeEpoch,
        mut reseal: impl FnMut(Lba, VolumeEpoch, Sealed) -> Result<Sealed, E>,
    ) -> Result<SectorCount, E> {
        self.state.check_writable()?;
        self.core.check_not_failed()?;
        self.core.make_room(count.0)?;
        let _sizes = lock(&self.state.rewriting);
        let (range, view, _request) = {
            let head = self.state.head();
            check_epoch(&head, epoch)?;
            let range = self.state.range(&head, first, count)?;
            // It is a change for whoever follows the volume: a replica has to have it before the old key may go.
            self.state.note_written(count.0);
            (range, head.view.clone(), head.writing.begin())
        };
        let (spans, held) = self.plan_of(&view, &range);
        let mut rewritten = SectorCount(0);
        for span in spans {
            let Piece::Sealed { first, epoch: under, data } = self.piece(span)? else { continue };
            if under == epoch {
                continue;
            }
            let sectors = data.sectors();
            let sealed = reseal(first, under, data)?;
            debug_assert_eq!(sealed.sectors(), sectors);
            self.store_in((&view, epoch), &(first.0..first.0 + sectors.0), &Arc::new(sealed))?;
            rewritten.0 += sectors.0;
        }
        drop(held);
        Ok(rewritten)
    }

    fn write_part(
        &self,
        (view, epoch): (&View, VolumeEpoch),
        logical: u64,
        part: Range<u32>,
        (data, start): (&Arc<Sealed>, u64),
    ) -> Result<(), PoolError> {
        let extent = self.begin_write(view, epoch, logical)?;
        let route = match self.core.layout.has_records() {
            false => Route::Direct,
            true if self.core.buffers_small(part.len() as u64) => Route::Buffered,
            true => Route::ByPlace,
        };
        let mut contents = Vec::with_capacity(part.len());
        let mut result = Ok(());
        let mut direct = false;
        for (run, way) in extent.begin_ways(part.clone(), route) {
            // Of what the caller has given.
            let first = start + u64::from(run.start - part.start);
            let slice = data.as_slice().sectors_in(first..first + run.len() as u64);
            match way {
                Way::Direct if result.is_ok() => {
                    direct = true;
                    self.core.step(CrashStep::DataWrite);
                    result =
                        self.core.device.write(self.core.layout.sector_at(extent.index(), run.start), slice);
                    contents
                        .extend(run.zip(slice.records()).map(|(at, record)| (at, Content::Placed(*record))));
                }
                Way::Direct => {}
                Way::Buffered => contents
                    .extend(run.zip(first..).map(|(at, nth)| (at, Content::InMemory(Held::new(data, nth))))),
            }
        }
        let written = match (&result, route) {
            (Err(_), _) => Written::Nothing,
            (Ok(()), Route::Direct) => Written::WithoutRecords(part.clone()),
            (Ok(()), _) => Written::Sectors(contents),
        };
        if direct && result.is_ok() {
            // Before presence is set: a snapshot that has the presence must find the write counted, or it would not flush.
            self.core.data_written();
        }
        self.end_write(view, logical, &extent, (part, written))?;
        Ok(result?)
    }

    /// The extent at `logical` for the moment of `view`, allocated if there is none, with one writer more.
    fn begin_write(&self, view: &View, epoch: VolumeEpoch, logical: u64) -> Result<Arc<Extent>, PoolError> {
        let place = Place::new(logical, view.moment);
        if let Some(extent) = view.branch.join(place) {
            return Ok(extent);
        }
        let account = view.branch.account;
        let index = self.core.allocate_for_data(account)?;
        let space = Allocated::new(index, account, &self.core.allocator);
        self.core.reserve_space(index)?;
        // No shrinking may come between looking at the size and the extent's being there.
        let head = self.state.head();
        self.state.check_alive(&head)?;
        if logical >= self.core.layout.extents_spanned(head.sectors) {
            let first = Lba(logical.saturating_mul(u64::from(self.state.extent_sectors)));
            return Err(PoolError::OutOfRange { first, count: SectorCount(1), sectors: head.sectors });
        }
        Ok(view.branch.insert_or_join(place, space, epoch))
    }

    /// Takes one writer off the extent, and makes what it has written present, as far as the volume still reaches.
    fn end_write(
        &self,
        view: &View,
        logical: u64,
        extent: &Extent,
        (part, written): (Range<u32>, Written),
    ) -> Result<(), PoolError> {
        let head = self.state.head();
        let inside = head.sectors.0.saturating_sub(logical * u64::from(self.state.extent_sectors));
        let inside = up_to_extent(inside, self.state.extent_sectors);
        let mut in_memory = 0;
        let written = match written {
            Written::Nothing => Written::Nothing,
            healed @ Written::Healed(..) => healed,
            Written::WithoutRecords(part) => {
                Written::WithoutRecords(part.start.min(inside)..part.end.min(inside))
            }
            Written::Sectors(mut sectors) => {
                sectors.retain(|(sector, _)| *sector < inside);
                let waits = |(_, content): &&(u32, Content)| matches!(content, Content::InMemory(_));
                in_memory = sectors.iter().filter(waits).count() as u64;
                Written::Sectors(sectors)
            }
        };
        view.branch.end_write(&self.core, Place::new(logical, view.moment), extent, (part, written));
        // A commit that takes them before they are counted leaves the count too high. The other way round it would be too low.
        self.core.buffered(in_memory);
        self.state.check_alive(&head)
    }

    /// Makes the range a hole. Durable only after a later [`PoolVolume::flush`]; extents in which nothing is left are free
    /// from then on.
    pub fn unmap(&self, first: Lba, count: SectorCount) -> Result<(), PoolError> {
        self.state.check_writable()?;
        self.clear(first, count)
    }

    /// As [`PoolVolume::unmap`], of a replica too.
    pub(crate) fn clear(&self, first: Lba, count: SectorCount) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        let any = self.core.with_room_for_holes(|| {
            let head = self.state.head();
            let range = self.state.range(&head, first, count)?;
            self.state.note_written(count.0);
            Ok(self.state.unmap(&self.core, &head, range))
        })?;
        if any {
            self.core.unmapped();
        }
        Ok(())
    }

    /// Numbers for `count` writes of a sector, to seal them under: this one and those after it. No write before had any of
    /// them, but for such as a crash undid. Counts them against what the key may encrypt: [`PoolError::KeyUsedUp`] past it,
    /// [`PoolError::WrongEpoch`] where writes use another by now.
    pub fn take_sequences(&self, epoch: VolumeEpoch, count: SectorCount) -> Result<u64, PoolError> {
        if let Some(needed) = self.state.blocks.count(count) {
            let reserved = self.state.reserve_blocks(&self.core, epoch, needed);
            reserved.inspect_err(|_| self.state.blocks.take_back(count))?;
        }
        Ok(self.core.take_sequences(count.0))
    }

    /// A sector that was read is not what was written: counts it, and says so in the log and to whoever wants to know
    /// ([`crate::OpenOptions::on_damage`]).
    pub fn report_damage(&self, sector: Lba, damage: &dyn std::fmt::Display) {
        self.core.found_damage(None, &[(self.id(), sector)], damage);
        tracing::error!(pool = %self.core.pool, volume = %self.id(), sector = sector.0, %damage, "a damaged sector was read");
    }

    /// Sectors that were written and unmapped since the pool was opened, each as often as it was: what has not grown shows that nothing
    /// has changed.
    pub fn written(&self) -> SectorCount {
        SectorCount(self.state.written.load(Ordering::Relaxed))
    }

    /// How long a request of so many bytes must wait, for the volume's ceilings to hold. Its turn is taken.
    pub fn take_turn(&self, bytes: ByteLen) -> Duration {
        let ceilings = self.state.head().limits.ceilings;
        if ceilings == Ceilings::default() {
            return Duration::ZERO;
        }
        lock(&self.state.pace).take_turn(ceilings, bytes, Instant::now())
    }

    /// Whether the pool keeps a record of every sector. One that was made by an earlier version does not.
    pub fn keeps_records(&self) -> bool {
        self.core.layout.has_records()
    }

    /// How the pool's state stands to the one that was told last. `is_word` says whether this is the word of the volume's key
    /// for a state ([`Witness::vouch`]).
    pub fn judge_state(
        &self,
        told: Option<StateHead>,
        is_word: impl Fn(&StateHead, &[u8; 16]) -> bool,
    ) -> Verdict {
        self.core.history.judge(self.state.spec().domain, told, is_word)
    }

    /// From now on `witness` vouches for what changes the volume's data, and for the state as it is. Durable when it returns.
    pub fn set_witness(&self, witness: Arc<dyn Witness>) -> Result<(), PoolError> {
        let account = {
            let head = self.state.head();
            // Deleting takes the witness away, so it may not come after that.
            self.state.check_alive(&head)?;
            let account = head.view.branch.account;
            self.core.history.attach(self.state.slot, account, witness);
            account
        };
        self.core.vouch(account)
    }

    /// Makes everything durable that was acknowledged before the call, on this and every other volume of the pool.
    /// An error is final: see [`PoolError::Failed`].
    pub fn flush(&self) -> Result<(), PoolError> {
        self.core.flush()
    }
}
