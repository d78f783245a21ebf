//! Making things durable: group commit and the log.
//!
//! Invariants:
//! - What a flush covers is decided by one snapshot, taken before the device is flushed: presence is set only after the
//!   data write has returned, so everything in the snapshot has its data covered by that flush.
//! - One round runs at a time and serves everyone who asked before it started.
//! - An unmapping is in a snapshot whole or not at all: its holes and the presence it takes away go together.
//! - An extent taken out of a map is held until the round that logged it has ended, and by every reader that found
//!   it before; only then is it free.
//! - The first error ends the pool: every later call fails with it.
//!
//! The steps are numbered in `CrashStep`; the table there says what breaks when two are swapped.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use device::{Device, DeviceErrorKind, SealedSlice, SectorRecord};
use units::{ByteLen, ByteOffset, Lba, PoolId, SectorCount, VolumeId};

use crate::allocator::{Account, Allocated, Allocator, Share, Shortage};
use crate::blocks::OfKeys;
use crate::branch::{Branch, Taken, Unseen};
use crate::checkpoint::{Begun, Changing, PlanRoom};
use crate::digest::Tables;
use crate::entry::{BranchId, Mapping, Moment, Place, VolumeEntry};
use crate::extent::{Content, Extent, ExtentKind, Retired};
use crate::fold::Emptied;
use crate::history::{History, Whose};
use crate::holes::HoleTable;
use crate::layout::Layout;
use crate::load::{Loaded, Logged};
use crate::log::{Batch, Log, Packer, Record, vouch_blocks};
use crate::placement::{Placement, Waiting};
use crate::presence::Presence;
use crate::records::{RecordStore, SectorId};
use crate::superblock::Superblock;
use crate::volume::Reading;
use crate::{CrashStep, DamageHook, FORMAT_VERSION, FoundDamage, Limits, PoolError, StepHook};

/// Most sectors of a write that goes to memory where its place is free: 64 KiB.
const SMALL_SECTORS: u64 = 16;
/// And most of such that wait for a flush; what comes beyond is no small flushed write, and goes to its place: 512 KiB.
const SMALL_SECTORS_WAITING: u64 = 128;
/// Most sectors that wait in memory for a flush: 32 MiB; and as many wait behind it for their placing.
const BUFFER_SECTORS_MAX: u64 = 8192;
/// Least sectors to place at once: enough to keep a disk's queue full.
const PLACED_AT_ONCE_MIN: u64 = 64;
/// And most: 4 MiB.
const PLACED_AT_ONCE_MAX: usize = 1024;
/// Least sectors of an extent to discard while others of it stay: 64 KiB, below which many devices give nothing back.
const DISCARD_SECTORS_MIN: u64 = 16;
/// Most records that wait for a checkpoint, about 40 MiB of memory.
const RECORDS_WAITING_MAX: usize = 1 << 19;

/// What every part of an open pool shares.
pub(crate) struct Core {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) layout: Layout,
    pub(crate) pool: PoolId,
    pub(crate) allocator: Arc<Allocator>,
    pub(crate) holes: HoleTable,
    pub(crate) records: RecordStore,
    pub(crate) encrypted: OfKeys,
    /// Sectors that the log holds and their places may not.
    placement: Placement,
    pub(crate) dirty: Mutex<Dirty>,
    /// Shared by those who unmap, taken alone by the snapshot of a flush.
    unmapping: RwLock<()>,
    /// Held by the round that runs, and by `grow` and `check`.
    writer: Mutex<Writer>,
    pub(crate) history: History,
    rounds: Mutex<Rounds>,
    round_ended: Condvar,
    /// Direct data writes that have returned. Counted before their presence is set.
    data_writes: AtomicU64,
    /// Sectors that were written to memory since the last snapshot of a flush began.
    buffered: AtomicU64,
    /// The next write's sequence.
    next_sequence: AtomicU64,
    /// The device length in use; also in the superblock, but status must not wait for a flush.
    used_len_bytes: AtomicU64,
    /// Unmappings that are marked dirty, and how many of them have been made durable and given back.
    unmaps: AtomicU64,
    unmaps_reclaimed: AtomicU64,
    discard_works: AtomicBool,
    /// Sectors that were read and were not what was written.
    damaged: AtomicU64,
    failed: OnceLock<Arc<PoolError>>,
    /// Reads that began before somebody came to look at something else.
    old_reads: Mutex<Vec<Arc<Reading>>>,
    /// Whether some branch has something to fold.
    folding_due: AtomicBool,
    /// Extents of volumes that were looked at, for what nobody sees any more or for what differs.
    looked_at: AtomicU64,
    on_step: Option<StepHook>,
    on_damage: Option<DamageHook>,
}

/// What has changed since the last snapshot.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// Extents and holes that changed or are new, by branch and place in it. Each at most once.
    pub(crate) extents: Vec<(Arc<Branch>, Place, ExtentKind)>,
    /// Volume entries, the last state of each slot.
    pub(crate) volumes: BTreeMap<u32, VolumeEntry>,
    /// Extents that the hole table has grown by.
    chunks: Vec<Record>,
    /// Extents taken out of their map by deleting or shrinking a volume.
    pub(crate) cut: Vec<Retired>,
    /// Extents that nobody sees any more, in the order in which they must be freed.
    pub(crate) unseen: Vec<Unseen>,
    /// What was folded into another place.
    pub(crate) folded: Vec<Emptied>,
}

/// The disk's side: only who holds it writes metadata.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) superblock: Superblock,
    pub(crate) log: Log,
    /// What the log holds and the tables may not.
    pub(crate) logged: Logged,
    /// Pages that the next checkpoint changes.
    pub(crate) changing: Changing,
    /// What the plan takes for those of them that the last checkpoint could not use.
    pub(crate) left_room: PlanRoom,
    /// What the pages of the tables are now.
    pub(crate) tables: Tables,
    /// What of the next checkpoint the log has already: a cut came before it had ended.
    pub(crate) begun: Begun,
    /// `data_writes` as of the last device flush.
    flushed_writes: u64,
}

#[derive(Debug, Default)]
struct Rounds {
    started: u64,
    ended: u64,
    running: bool,
}

/// What one round makes durable.
struct Snapshot {
    records: Vec<Record>,
    retired: NotYetFree,
    taken: Vec<TakenExtent>,
    /// Whose data it changes.
    whose: Whose,
}

/// Extents that the log does not say are free yet. Dropped before it does, as a failed commit drops them, they are nobody's
/// until the pool is opened again: the disk gives them to whom they belonged.
#[derive(Default)]
struct NotYetFree(Vec<Arc<Extent>>);

impl NotYetFree {
    /// The log says so, durably.
    fn freed(mut self) -> Vec<Arc<Extent>> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for NotYetFree {
    fn drop(&mut self) {
        std::mem::forget(std::mem::take(&mut self.0));
    }
}

/// An extent of which a round makes something durable.
struct TakenExtent {
    extent: Arc<Extent>,
    /// Its presence, where the table said something else.
    sectors: Option<Presence>,
    contents: Vec<(u32, Content)>,
}

impl TakenExtent {
    /// What the log lacks of its sectors, in front of the presence that shows them.
    fn sector_records(&self) -> impl Iterator<Item = Record> {
        let of = |sector| SectorId { extent: self.extent.index(), sector };
        self.contents.iter().map(move |(sector, content)| Record::Sector {
            of: of(*sector),
            record: content.record(),
            ciphertext: match content {
                Content::InMemory(held) => Some(held.clone()),
                Content::Placed(_) => None,
            },
        })
    }
}

impl Snapshot {
    fn free(&mut self, Retired { extent, needs_record }: Retired) {
        if needs_record {
            self.records.push(match extent.kind() {
                ExtentKind::Data => Record::Extent { index: extent.index(), mapping: None },
                ExtentKind::Holes => Record::Holes { index: extent.index(), mapping: None },
            });
        }
        self.retired.0.push(extent);
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("pool", &self.pool).field("device", &self.device).finish_non_exhaustive()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every holder leaves what it guards whole, even when it panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an open pool's core is made of.
pub(crate) struct Parts {
    pub(crate) superblock: Superblock,
    pub(crate) log: Log,
    pub(crate) logged: Logged,
    pub(crate) changing: Changing,
    pub(crate) tables: Tables,
    pub(crate) begun: Begun,
    pub(crate) history: History,
    pub(crate) allocator: Arc<Allocator>,
    pub(crate) holes: HoleTable,
    pub(crate) records: RecordStore,
    pub(crate) placement: Placement,
    pub(crate) next_sequence: u64,
    pub(crate) on_step: Option<StepHook>,
    pub(crate) on_damage: Option<DamageHook>,
}

impl Core {
    pub(crate) fn new(device: Arc<dyn Device>, parts: Parts) -> Self {
        let Parts { superblock, log, logged, changing, tables, begun, history, .. } = parts;
        let Parts { allocator, holes, records, placement, next_sequence, on_step, on_damage, .. } = parts;
        Self {
            device,
            layout: superblock.layout,
            pool: superblock.pool,
            allocator,
            holes,
            records,
            encrypted: OfKeys::default(),
            placement,
            dirty: Mutex::default(),
            unmapping: RwLock::default(),
            writer: Mutex::new(Writer {
                superblock,
                log,
                logged,
                changing,
                left_room: PlanRoom::default(),
                tables,
                begun,
                flushed_writes: 0,
            }),
            history,
            rounds: Mutex::default(),
            round_ended: Condvar::new(),
            data_writes: AtomicU64::new(0),
            buffered: AtomicU64::new(0),
            next_sequence: AtomicU64::new(next_sequence),
            used_len_bytes: AtomicU64::new(superblock.device_len.0),
            unmaps: AtomicU64::new(0),
            unmaps_reclaimed: AtomicU64::new(0),
            discard_works: AtomicBool::new(true),
            damaged: AtomicU64::new(0),
            failed: OnceLock::new(),
            old_reads: Mutex::default(),
            folding_due: AtomicBool::new(false),
            looked_at: AtomicU64::new(0),
            on_step,
            on_damage,
        }
    }

    pub(crate) fn step(&self, step: CrashStep) {
        if let Some(hook) = &self.on_step {
            hook(step);
        }
    }

    pub(crate) fn check_not_failed(&self) -> Result<(), PoolError> {
        match self.failed.get() {
            None => Ok(()),
            Some(first) => Err(PoolError::Failed(Arc::clone(first))),
        }
    }

    /// Ends the pool with `error`, or with the one that already has.
    pub(crate) fn fail(&self, error: PoolError) -> PoolError {
        if matches!(error, PoolError::Failed(_)) {
            return error;
        }
        let first = self.failed.get_or_init(|| {
            tracing::error!(pool = %self.pool, %error, "the pool has failed");
            Arc::new(error)
        });
        PoolError::Failed(Arc::clone(first))
    }

    /// Counts a data write that has returned. Before its presence is set and before it is acknowledged.
    pub(crate) fn data_written(&self) {
        self.data_writes.fetch_add(1, Ordering::AcqRel);
    }

    /// Numbers for `count` writes of a sector, the first of them.
    pub(crate) fn take_sequences(&self, count: u64) -> u64 {
        self.next_sequence.fetch_add(count, Ordering::Relaxed)
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence.load(Ordering::Acquire)
    }

    /// Writes from here on have higher numbers than these, which were given out elsewhere.
    pub(crate) fn raise_sequence(&self, records: &[SectorRecord]) {
        let highest = records.iter().map(|record| record.sequence).max();
        self.next_sequence.fetch_max(highest.map_or(0, |highest| highest + 1), Ordering::Relaxed);
    }

    /// Whether a write of so many sectors goes to memory whatever is in its place: with the flush that is likely to follow
    /// the log then takes it, in one device write, and one device flush answers.
    pub(crate) fn buffers_small(&self, sectors: u64) -> bool {
        let waiting = self.buffered.load(Ordering::Acquire);
        sectors <= SMALL_SECTORS && waiting + sectors <= SMALL_SECTORS_WAITING.min(self.buffer_sectors())
    }

    /// Makes what is in memory durable where there is too much of it for `sectors` more.
    pub(crate) fn make_room(&self, sectors: u64) -> Result<(), PoolError> {
        match self.buffered.load(Ordering::Acquire) {
            0 => Ok(()),
            waiting if waiting + sectors <= self.buffer_sectors() => Ok(()),
            _ => self.flush(),
        }
    }

    /// Counts sectors that are written to memory. When half of it is full, whoever tends the pool commits, while the other half
    /// takes what comes.
    pub(crate) fn buffered(&self, sectors: u64) {
        let before = self.buffered.fetch_add(sectors, Ordering::AcqRel);
        let half = self.buffer_sectors() / 2;
        if before <= half && before + sectors > half {
            self.placement.want_commit();
        }
    }

    /// Sectors that may wait in memory for a flush, and as many behind it for their placing: a log's worth at most.
    fn buffer_sectors(&self) -> u64 {
        BUFFER_SECTORS_MAX.min(self.layout.log_blocks() / 2)
    }

    /// Whoever looks at something else now may have left these reads behind.
    pub(crate) fn leave_behind(&self, mut reads: Arc<Reading>) {
        if !reads.has_ended() {
            let mut old = lock(&self.old_reads);
            old.retain_mut(|reads| !reads.has_ended());
            old.push(reads);
        }
    }

    /// Whether reads are on their way that look at what nobody looks at any more.
    pub(crate) fn has_old_reads(&self) -> bool {
        let mut old = lock(&self.old_reads);
        old.retain_mut(|reads| !reads.has_ended());
        !old.is_empty()
    }

    /// Some branch has something to fold.
    pub(crate) fn note_folding(&self) {
        self.folding_due.store(true, Ordering::Release);
    }

    /// Whether some branch has, as far as has been noted since this was asked last.
    pub(crate) fn is_folding_due(&self) -> bool {
        self.folding_due.swap(false, Ordering::AcqRel)
    }

    /// While this is held no commit takes what is dirty.
    pub(crate) fn not_committing(&self) -> RwLockReadGuard<'_, ()> {
        self.unmapping.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn looked_at(&self, extents: usize) {
        self.looked_at.fetch_add(extents as u64, Ordering::Relaxed);
    }

    /// Extents of volumes that have been looked at since the pool was opened.
    pub(crate) fn extents_looked_at(&self) -> u64 {
        self.looked_at.load(Ordering::Relaxed)
    }

    /// Counts an unmapping, after it was marked dirty.
    pub(crate) fn unmapped(&self) {
        self.unmaps.fetch_add(1, Ordering::AcqRel);
    }

    /// A free extent for `account`. Where there is none but unmappings wait to become durable, makes them so first: at
    /// 100% a trim followed by a write works.
    fn allocate(&self, account: Account) -> Result<u32, PoolError> {
        loop {
            // Before trying, so that what is reclaimed in between is not missed.
            let reclaimed = self.unmaps_reclaimed.load(Ordering::Acquire);
            match self.allocator.allocate(account) {
                Ok(index) => return Ok(index),
                Err(_) if self.unmaps.load(Ordering::Acquire) != reclaimed => self.flush()?,
                Err(Shortage::Space) => return Err(PoolError::NoSpace),
                Err(Shortage::Quota) => return Err(PoolError::Quota),
            }
        }
    }

    /// Sees to it, on a sparse file, that what the log promises of an extent finds room in its place.
    pub(crate) fn reserve_space(&self, extent: u32) -> Result<(), PoolError> {
        if self.layout.has_records() {
            let (records_at, records_len) = self.layout.records_of(extent);
            self.device.reserve(records_at, records_len)?;
            self.device.reserve(self.layout.sector_at(extent, 0), self.layout.extent_len())?;
        }
        Ok(())
    }

    /// A free extent for a volume's data, with room in the hole table should it ever be hidden.
    pub(crate) fn allocate_for_data(&self, account: Account) -> Result<u32, PoolError> {
        if self.holes.in_use() {
            match self.reserve_holes(2) {
                // It was taken when the extent was promised.
                Err(PoolError::NoSpace) if self.allocator.is_promised(account) => {}
                reserved => reserved?,
            }
        }
        self.allocate(account)
    }

    /// Sees to it that the hole table has room for every extent in use or promised twice, once for a rollback, and `more`.
    pub(crate) fn reserve_holes(&self, more: u64) -> Result<(), PoolError> {
        let enough = || {
            let counts = self.allocator.counts();
            let extents = 2 * (u64::from(counts.allocated) + counts.promised) + more;
            self.holes.in_use() && self.holes.has_room_for(extents)
        };
        if enough() {
            return Ok(());
        }
        let _growing = lock(&self.holes.growing);
        while !enough() {
            self.add_hole_chunk()?;
        }
        Ok(())
    }

    /// Does what may need holes, and does it again with more room where the table had none.
    pub(crate) fn with_room_for_holes<T>(
        &self,
        unmap: impl Fn() -> Result<Option<T>, PoolError>,
    ) -> Result<T, PoolError> {
        loop {
            let whole = self.unmapping.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(done) = unmap()? {
                return Ok(done);
            }
            drop(whole);
            let _growing = lock(&self.holes.growing);
            self.add_hole_chunk()?;
        }
    }

    fn add_hole_chunk(&self) -> Result<(), PoolError> {
        let index = self.allocate(Account::POOL)?;
        let space = Allocated::new(index, Account::POOL, &self.allocator);
        self.device.reserve(self.layout.sector_at(index, 0), self.layout.extent_len())?;
        // Under the dirty list's lock, so that no entry of the new chunk is logged before the chunk itself.
        let mut dirty = lock(&self.dirty);
        let place = Place::new(self.holes.add_chunk(space), Moment(0));
        let mapping = Mapping {
            branch: BranchId::HOLE_TABLE,
            place,
            epoch: units::VolumeEpoch(0),
            sectors: Presence::All,
        };
        dirty.chunks.push(Record::Extent { index, mapping: Some(mapping) });
        Ok(())
    }

    /// Sets an account's limits; whole extents, a quota rounded down and a reserve up, with room in the hole table for what is
    /// reserved.
    pub(crate) fn set_limits(&self, account: Account, limits: Limits) -> Result<(), PoolError> {
        let (before, now) = self.promise(account, limits)?;
        let more = now.reserve > before.reserve;
        if more && let Err(error) = self.reserve_holes_for_promises() {
            self.allocator.set_limits(account, before);
            return Err(error);
        }
        Ok(())
    }

    /// As [`Self::set_limits`], after opening: what cannot be had any more takes nothing from what can.
    pub(crate) fn restore_limits(&self, account: Account, limits: Limits) -> Result<(), PoolError> {
        self.promise(account, limits)?;
        self.reserve_holes_for_promises()
    }

    /// What the account's share was, and what it is.
    fn promise(&self, account: Account, limits: Limits) -> Result<(Share, Share), PoolError> {
        let extent = self.layout.extent_len().0;
        let quota = limits.quota.map(|quota| u32::try_from(quota.0 / extent).unwrap_or(u32::MAX));
        let reserve = u32::try_from(limits.reserve.0.div_ceil(extent)).unwrap_or(u32::MAX);
        let share = Share { quota, reserve };
        let before = self.allocator.set_limits(account, share).ok_or(PoolError::NoSpace)?;
        Ok((before, share))
    }

    fn reserve_holes_for_promises(&self) -> Result<(), PoolError> {
        let needed = self.holes.in_use() && self.allocator.counts().promised > 0;
        if needed { self.reserve_holes(0) } else { Ok(()) }
    }

    /// Makes everything durable that was acknowledged before the call.
    pub(crate) fn flush(&self) -> Result<(), PoolError> {
        self.check_not_failed()?;
        let mut rounds = lock(&self.rounds);
        // A round that runs already may have taken its snapshot before the writes this call must cover.
        let needed = rounds.started + 1;
        while rounds.ended < needed {
            if rounds.running {
                rounds = self.round_ended.wait(rounds).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            rounds.running = true;
            rounds.started += 1;
            drop(rounds);
            let round = RunningRound { core: self };
            let result = self.commit();
            return round.end(result);
        }
        drop(rounds);
        self.check_not_failed()
    }

    fn commit(&self) -> Result<(), PoolError> {
        let mut writer = self.writer()?;
        let unmaps = self.unmaps.load(Ordering::Acquire);
        // What is written from here on may be counted and taken as well: then it is counted too often, and never too seldom.
        let buffered = self.buffered.swap(0, Ordering::AcqRel);
        let Snapshot { records, retired, taken, whose } = self.snapshot();
        // After the snapshot: a write in it was counted before it was marked.
        let written = self.data_writes.load(Ordering::Acquire);
        if written != writer.flushed_writes {
            self.step(CrashStep::DataFlush);
            self.device.flush()?;
            writer.flushed_writes = written;
        }
        let of_data = taken.iter().filter(|taken| taken.extent.kind() == ExtentKind::Data);
        let extents = of_data.map(|taken| (taken.extent.index(), Arc::clone(&taken.extent))).collect();
        self.log_records(&mut writer, records, &whose, &extents)?;
        drop(extents);
        self.settle(taken);
        let retired = retired.freed();
        // What the log has of their records stays: a reader that came before may still want them, and whoever has the extent
        // next shows no sector without a newer one.
        for extent in retired.iter().filter(|extent| extent.kind() == ExtentKind::Data) {
            self.placement.forget(extent.index());
        }
        self.place_some(buffered)?;
        drop(writer);
        self.give_back(retired);
        self.unmaps_reclaimed.fetch_max(unmaps, Ordering::AcqRel);
        Ok(())
    }

    /// The disk's side, unless a thread has panicked while writing it: then nobody knows how far it came.
    pub(crate) fn writer(&self) -> Result<MutexGuard<'_, Writer>, PoolError> {
        self.check_not_failed()?;
        self.writer.lock().map_err(|_| self.fail(PoolError::Interrupted))
    }

    /// Takes what is dirty, as records in the order in which they must become durable, for there may be more than fit one
    /// batch:
    ///
    /// 1. volumes and the hole table's extents, so that nothing ever names one that is not there;
    /// 2. extents that were cut out of a map, so that no place ever has two;
    /// 3. holes, so that what they hide does not show when what is above them goes;
    /// 4. sectors' records, so that none is ever shown without;
    /// 5. extents in use;
    /// 6. what was folded, behind what it was folded into, the oldest first; what nobody sees any more, behind what hides it, holes
    ///    behind what they hid;
    /// 7. extents that have become empty, behind what was below them and unseen.
    fn snapshot(&self) -> Snapshot {
        let _alone = self.unmapping.write().unwrap_or_else(PoisonError::into_inner);
        let Dirty { extents, volumes, chunks, cut, unseen, mut folded } =
            std::mem::take(&mut *lock(&self.dirty));
        let volumes =
            volumes.into_iter().map(|(slot, entry)| Record::Volume { slot, entry: Box::new(entry) });
        let mut accounts: Vec<Account> = extents.iter().map(|(branch, ..)| branch.account).collect();
        accounts.dedup();
        let mut snapshot = Snapshot {
            records: volumes.chain(chunks).collect(),
            retired: NotYetFree::default(),
            taken: Vec::new(),
            whose: Whose::Some(accounts),
        };
        if snapshot.records.len() + cut.len() + unseen.len() + folded.len() > 0 {
            snapshot.whose = Whose::All;
        }
        cut.into_iter().for_each(|retired| snapshot.free(retired));
        // Out of the map before anything is taken of it, and while nobody trims what hides it.
        let gone: Vec<(Unseen, Retired)> =
            unseen.into_iter().filter_map(|unseen| unseen.take().map(|retired| (unseen, retired))).collect();
        let (mut holes, mut used, mut emptied, mut hidden) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (branch, place, kind) in extents {
            match branch.take_dirty(place, kind) {
                None => {}
                Some(Taken::Used { extent, mapping, contents }) => {
                    let sectors = mapping.as_ref().map(|mapping| mapping.sectors.clone());
                    let record = mapping.map(|mapping| (extent.index(), Some(mapping)));
                    match kind {
                        ExtentKind::Holes => {
                            holes.extend(record.map(|(index, mapping)| Record::Holes { index, mapping }));
                        }
                        ExtentKind::Data => {
                            used.extend(record.map(|(index, mapping)| Record::Extent { index, mapping }));
                        }
                    }
                    snapshot.taken.push(TakenExtent { extent, sectors, contents });
                }
                Some(Taken::Emptied(retired)) => emptied.push(retired),
            }
            // What it holds now may be the last that was needed to hide something older.
            hidden.extend(branch.collect(place.logical()));
        }
        snapshot.records.append(&mut holes);
        let of_sectors: Vec<Record> = snapshot.taken.iter().flat_map(TakenExtent::sector_records).collect();
        snapshot.records.extend(of_sectors);
        snapshot.records.append(&mut used);
        hidden.extend(gone.iter().flat_map(|(unseen, _)| unseen.collect_again()));
        Emptied::sort(&mut folded);
        for Emptied { branch, place, retired } in folded {
            snapshot.free(retired);
            hidden.extend(branch.collect(place.logical()));
        }
        gone.into_iter()
            .map(|(_, retired)| retired)
            .chain(emptied)
            .for_each(|retired| snapshot.free(retired));
        if !hidden.is_empty() {
            // For the next round: what hides it may have come after this snapshot.
            lock(&self.dirty).unseen.append(&mut hidden);
            self.unmapped();
        }
        snapshot
    }

    fn log_records(
        &self,
        writer: &mut Writer,
        records: Vec<Record>,
        whose: &Whose,
        extents: &BTreeMap<u32, Arc<Extent>>,
    ) -> Result<(), PoolError> {
        let mut packer = Packer::new(self.layout, self.pool);
        // Pages that a checkpoint of this batch alone changes.
        let mut changes = Changing::default();
        for record in records {
            let plan = changes.plan_room(&Changing::default(), &writer.superblock);
            let behind = plan.blocks(self.vouch_room()) + 1;
            if packer.blocks() + packer.blocks_more(&record) + behind > self.batch_room(writer)
                && packer.blocks() > 0
            {
                self.log_batch(writer, &mut packer, &changes, whose, extents)?;
                changes = Changing::default();
            }
            changes.add(self.layout, &record);
            packer.push(record);
        }
        if packer.blocks() == 0 {
            Ok(())
        } else {
            self.log_batch(writer, &mut packer, &changes, whose, extents)
        }
    }

    /// Blocks of the log that a batch and the plan for what it changes may take: they fit behind any checkpoint, with the
    /// plan for pages that the last one could not use.
    fn batch_room(&self, writer: &Writer) -> u64 {
        let vouches = self.vouch_room();
        let checkpoints = 2 * (self.layout.log_reserve_blocks() + 1 + vouches) + vouches;
        self.layout.log_blocks().saturating_sub(checkpoints + writer.left_room.blocks(vouches))
    }

    fn log_batch(
        &self,
        writer: &mut Writer,
        packer: &mut Packer,
        changes: &Changing,
        whose: &Whose,
        extents: &BTreeMap<u32, Arc<Extent>>,
    ) -> Result<(), PoolError> {
        let too_many = self.records.waiting() > RECORDS_WAITING_MAX;
        let behind = self.layout.log_reserve_blocks()
            + writer.changing.plan_room(changes, &writer.superblock).blocks(self.vouch_room())
            + 2 * self.vouch_room()
            + 1;
        if writer.log.free_blocks() < packer.blocks() + behind || too_many {
            self.checkpoint(writer)?;
        }
        let batch = self.append(writer, packer, whose)?;
        for record in batch.records {
            self.note_logged(writer, record, extents);
        }
        Ok(())
    }

    /// Steps 3 and 4: makes a batch durable, and has those vouch for it whose it is.
    pub(crate) fn append(
        &self,
        writer: &mut Writer,
        packer: &mut Packer,
        whose: &Whose,
    ) -> Result<Batch, PoolError> {
        self.step(CrashStep::LogWrite);
        let batch = self.write_batch(writer, packer, whose)?;
        if batch.is_empty() {
            return Ok(batch);
        }
        self.step(CrashStep::LogFlush);
        self.device.flush()?;
        self.history.reached(writer.log.end().state);
        Ok(batch)
    }

    pub(crate) fn write_batch(
        &self,
        writer: &mut Writer,
        packer: &mut Packer,
        whose: &Whose,
    ) -> Result<Batch, PoolError> {
        if self.layout.has_digests() && self.vouch_room() > 0 {
            let state = packer.state_after(writer.log.end().state);
            for (slot, mac) in self.history.vouches(whose, &state) {
                packer.push(Record::Vouch { slot, mac });
            }
        }
        if packer.blocks() > writer.log.free_blocks() {
            return Err(PoolError::LogFull);
        }
        let batch = packer.take();
        if !batch.is_empty() {
            writer.log.append(&*self.device, &batch)?;
        }
        Ok(batch)
    }

    /// Lets those of an account vouch for the state as it is, durably.
    pub(crate) fn vouch(&self, account: Account) -> Result<(), PoolError> {
        let mut writer = self.writer()?;
        let mut packer = Packer::new(self.layout, self.pool);
        let whose = Whose::Some(vec![account]);
        self.log_batch(&mut writer, &mut packer, &Changing::default(), &whose, &BTreeMap::new())
            .map_err(|error| self.fail(error))
    }

    /// Blocks that vouches take of a batch, at most. A log that is too short for them has none.
    pub(crate) fn vouch_room(&self) -> u64 {
        let blocks = vouch_blocks(self.history.witnesses());
        if blocks <= self.layout.log_reserve_blocks() / 2 { blocks } else { 0 }
    }

    /// Takes in a record that is durable in the log.
    fn note_logged(&self, writer: &mut Writer, record: Record, extents: &BTreeMap<u32, Arc<Extent>>) {
        writer.changing.add(self.layout, &record);
        match record {
            Record::Sector { of, record, ciphertext } => {
                self.records.logged(of, record);
                match ciphertext.zip(extents.get(&of.extent)) {
                    Some((held, extent)) => {
                        self.placement.add(of, Waiting { extent: Arc::clone(extent), held });
                    }
                    // What the place has now is newer than what an earlier record of the log would put there.
                    None => self.placement.forget_sector(of),
                }
            }
            record => writer.logged.apply(record),
        }
    }

    /// Step 16, a part of it: as much as a round of `added` sectors must place for the log and memory not to fill up.
    fn place_some(&self, added: u64) -> Result<(), PoolError> {
        let in_memory = self.placement.in_memory();
        if in_memory <= self.buffer_sectors() / 2 {
            return Ok(());
        }
        let share = (2 * added).max(PLACED_AT_ONCE_MIN);
        let most = if in_memory > self.buffer_sectors() { self.placement.sectors() } else { share };
        self.place(most)
    }

    /// Step 16: ciphertext that the log has goes to its place, up to `most` sectors of it or until nothing waits and nothing
    /// is on its way.
    pub(crate) fn place(&self, most: u64) -> Result<(), PoolError> {
        let mut left = most;
        while left > 0 {
            let batch =
                self.placement.take(usize::try_from(left).unwrap_or(usize::MAX).min(PLACED_AT_ONCE_MAX));
            if batch.len() == 0 {
                break;
            }
            left = left.saturating_sub(batch.len());
            self.step(CrashStep::PlaceWrite);
            let at = |of: SectorId| self.layout.sector_at(of.extent, of.sector);
            let runs: Vec<(ByteOffset, Vec<SealedSlice<'_>>)> =
                batch.runs().map(|(first, run)| (at(first), run)).collect();
            self.device.write_many(&runs)?;
            drop(runs);
            batch.let_go();
        }
        Ok(())
    }

    /// Beside what others commit: commits where memory fills, and puts what waits to its place, once it is worth it or `patience`
    /// is over.
    pub(crate) fn tend(&self, patience: Duration) -> Result<(), PoolError> {
        let commit_wanted = self.placement.wait(patience);
        self.check_not_failed()?;
        if commit_wanted {
            self.flush()?;
        }
        self.place(self.placement.sectors()).map_err(|error| self.fail(error))
    }

    /// Discards extents that nobody reads any more, then lets go of all: those free themselves with their last holder.
    fn give_back(&self, retired: Vec<Arc<Extent>>) {
        if self.discard_works.load(Ordering::Relaxed) {
            // No map holds them, so nobody finds them any more but a scrub, which does not judge what no map holds.
            let mut unread: Vec<u32> = retired
                .iter()
                .filter(|extent| extent.kind() == ExtentKind::Data && Arc::strong_count(extent) == 1)
                .map(|extent| extent.index())
                .collect();
            unread.sort_unstable();
            self.discard(&unread);
        }
        drop(retired);
    }

    fn discard(&self, extents: &[u32]) {
        let extent_len = self.layout.extent_len().0;
        let mut rest = extents;
        while let Some(first) = rest.first() {
            let at = self.layout.sector_at(*first, 0);
            let count = rest
                .iter()
                .zip(0..)
                .take_while(|(index, nth)| self.layout.sector_at(**index, 0).0 == at.0 + nth * extent_len)
                .count();
            rest = &rest[count..];
            self.discard_range(at, ByteLen(count as u64 * extent_len));
        }
    }

    fn discard_range(&self, at: ByteOffset, len: ByteLen) {
        if !self.discard_works.load(Ordering::Relaxed) {
            return;
        }
        self.step(CrashStep::Discard);
        match self.device.discard(at, len) {
            Ok(()) => {}
            Err(error) if error.kind() == DeviceErrorKind::Unsupported => {
                self.discard_works.store(false, Ordering::Relaxed);
            }
            // Nothing depends on it, and a device that is ill says so at the next write.
            Err(error) => tracing::debug!(pool = %self.pool, %error, "discarding what was freed failed"),
        }
    }

    /// The log has all of it: what is in its place is let go of, what the log says is on the device from now on, and nothing
    /// goes to a place any more where the log says that nothing is.
    fn settle(&self, taken: Vec<TakenExtent>) {
        for TakenExtent { extent, sectors, contents } in taken {
            if let Some(present) = sectors.as_ref().filter(|_| extent.kind() == ExtentKind::Data) {
                self.placement.keep(extent.index(), present);
                self.discard_unmapped(&extent, present);
            }
            let mut state = extent.state();
            if let Some(sectors) = sectors {
                state.settle(sectors);
            }
            state.forget_placed(&contents);
        }
    }

    /// Discards what was unmapped of an extent that stays, where it is worth it. Until `settle` no write goes to these places:
    /// they count for what is on the device.
    fn discard_unmapped(&self, extent: &Arc<Extent>, present: &Presence) {
        // Without records writes go to their places whatever is there.
        if !self.layout.has_records() {
            return;
        }
        let unmapped = extent.state().on_device_without(present, self.layout.extent_sectors());
        // Only the map has it beside the caller: who came before the sectors were unmapped may be reading them.
        if Arc::strong_count(extent) > 2 {
            return;
        }
        for run in unmapped.iter().filter(|run| run.len() as u64 >= DISCARD_SECTORS_MIN) {
            let len = SectorCount(run.len() as u64).byte_len().unwrap_or_default();
            self.discard_range(self.layout.sector_at(extent.index(), run.start), len);
        }
    }

    /// Uses what the device has become longer by; the length in use.
    pub(crate) fn grow(&self) -> Result<ByteLen, PoolError> {
        let mut writer = self.writer()?;
        let recorded = writer.superblock.device_len;
        let found = self.device.refresh_len()?;
        if found < recorded {
            return Err(PoolError::DeviceShrunk { device: self.device.info().path, recorded, found });
        }
        let extents = self.layout.extents_on(found)?;
        if found == recorded {
            return Ok(recorded);
        }
        // Those of the recorded length come first. A group whose front the old end cut short is not among them.
        let reserved = self.layout.metadata_ranges(recorded).count();
        for (at, len) in self.layout.metadata_ranges(found).skip(reserved) {
            self.device.reserve(at, len)?;
        }
        let superblock = Superblock { device_len: found, ..writer.superblock };
        self.write_superblock(&mut writer, superblock).map_err(|error| self.fail(error))?;
        self.allocator.extend_to(extents);
        self.used_len_bytes.store(found.0, Ordering::Release);
        Ok(found)
    }

    /// The device length in use.
    pub(crate) fn used_len(&self) -> ByteLen {
        ByteLen(self.used_len_bytes.load(Ordering::Acquire))
    }

    /// Brings a pool of an older version up to date. The tables of version 1 are tables of version 2 in which nothing
    /// was ever snapshotted, so what changes is the superblock alone, in the order of every other change of it.
    pub(crate) fn migrate(&self) -> Result<(), PoolError> {
        let mut writer = self.writer()?;
        let from = writer.superblock.version;
        if from == FORMAT_VERSION {
            return Ok(());
        }
        let superblock = Superblock { version: FORMAT_VERSION, ..writer.superblock };
        self.write_superblock(&mut writer, superblock).map_err(|error| self.fail(error))?;
        tracing::info!(pool = %self.pool, from, to = FORMAT_VERSION, "brought the pool to the present format version");
        Ok(())
    }

    /// Reads the metadata back while nobody writes any.
    pub(crate) fn load_again(&self) -> Result<Loaded, PoolError> {
        let _writer = self.writer()?;
        Loaded::read(&*self.device)
    }

    /// Counts a sector that is not what was written, and tells whoever wants to know.
    pub(crate) fn found_damage(
        &self,
        at: Option<ByteOffset>,
        shown_by: &[(VolumeId, Lba)],
        fault: &dyn fmt::Display,
    ) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
        if let Some(hook) = &self.on_damage {
            hook(&FoundDamage { pool: self.pool, at, shown_by, fault });
        }
    }

    /// Sectors that were read since the pool was opened and were not what was written.
    pub(crate) fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.get().is_some()
    }
}

/// Ends its round even when the commit panics; the waiters then find the writer poisoned and fail.
struct RunningRound<'a> {
    core: &'a Core,
}

impl RunningRound<'_> {
    fn end(self, result: Result<(), PoolError>) -> Result<(), PoolError> {
        let result = result.map_err(|error| self.core.fail(error));
        let mut rounds = lock(&self.core.rounds);
        rounds.ended = rounds.started;
        drop(rounds);
        result
    }
}

impl Drop for RunningRound<'_> {
    fn drop(&mut self) {
        lock(&self.core.rounds).running = false;
        self.core.round_ended.notify_all();
    }
}
