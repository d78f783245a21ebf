//! Making things durable: group commit, the log, and the checkpoint that empties it.
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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use device::{Device, DeviceErrorKind, Metadata, Sealed, SectorBuf, SectorRecord};
use units::{ByteLen, ByteOffset, PoolId, SECTOR_BYTES, SectorCount};

use crate::allocator::{Account, Allocated, Allocator, Shortage};
use crate::blocks::OfKeys;
use crate::branch::{Branch, Taken, Unseen};
use crate::entry::{BranchId, Mapping, Moment, Place, VolumeEntry, encode_extent, encode_volume};
use crate::extent::{Content, Extent, ExtentKind, Retired};
use crate::holes::HoleTable;
use crate::layout::{Layout, PAGES_PER_TRANSFER, VOLUME_ENTRIES_PER_PAGE, VOLUME_ENTRY_BYTES};
use crate::load::{Loaded, Logged, read_pages};
use crate::log::{Batch, Log, Packer, Record};
use crate::placement::{Placement, Waiting};
use crate::presence::Presence;
use crate::records::{RecordStore, SectorId, Written};
use crate::superblock::{Superblock, superblock_at};
use crate::{CrashStep, FORMAT_VERSION, Limits, PoolError, StepHook};

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
    on_step: Option<StepHook>,
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
}

/// The disk's side: only who holds it writes metadata.
#[derive(Debug)]
struct Writer {
    superblock: Superblock,
    log: Log,
    /// What the log holds and the tables may not.
    logged: Logged,
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
                Content::InMemory(sealed) => Some(Arc::clone(sealed)),
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
    pub(crate) allocator: Arc<Allocator>,
    pub(crate) holes: HoleTable,
    pub(crate) records: RecordStore,
    pub(crate) placement: Placement,
    pub(crate) next_sequence: u64,
    pub(crate) on_step: Option<StepHook>,
}

impl Core {
    pub(crate) fn new(device: Arc<dyn Device>, parts: Parts) -> Self {
        let Parts { superblock, log, logged, allocator, holes, records, placement, next_sequence, on_step } =
            parts;
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
            writer: Mutex::new(Writer { superblock, log, logged, flushed_writes: 0 }),
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
            on_step,
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
    fn fail(&self, error: PoolError) -> PoolError {
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

    /// Counts sectors that are written to memory.
    pub(crate) fn buffered(&self, sectors: u64) {
        self.buffered.fetch_add(sectors, Ordering::AcqRel);
    }

    /// Sectors that may wait in memory for a flush, and as many behind it for their placing: a log's worth at most.
    fn buffer_sectors(&self) -> u64 {
        BUFFER_SECTORS_MAX.min(self.layout.log_blocks() / 2)
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
            self.reserve_holes(2)?;
        }
        self.allocate(account)
    }

    /// Sees to it that the hole table has room for every extent in use twice, once for a rollback, and `more`.
    pub(crate) fn reserve_holes(&self, more: u64) -> Result<(), PoolError> {
        let enough = || {
            let extents = 2 * u64::from(self.allocator.counts().allocated) + more;
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

    /// Sets an account's limits; whole extents, a quota rounded down and a reserve up.
    pub(crate) fn set_limits(&self, account: Account, limits: Limits) -> Result<(), PoolError> {
        let extent = self.layout.extent_len().0;
        let quota = limits.quota.map(|quota| u32::try_from(quota.0 / extent).unwrap_or(u32::MAX));
        let reserve = u32::try_from(limits.reserve.0.div_ceil(extent)).unwrap_or(u32::MAX);
        if self.allocator.set_limits(account, quota, reserve) { Ok(()) } else { Err(PoolError::NoSpace) }
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
        let Snapshot { records, retired, taken } = self.snapshot();
        // After the snapshot: a write in it was counted before it was marked.
        let written = self.data_writes.load(Ordering::Acquire);
        if written != writer.flushed_writes {
            self.step(CrashStep::DataFlush);
            self.device.flush()?;
            writer.flushed_writes = written;
        }
        let of_data = taken.iter().filter(|taken| taken.extent.kind() == ExtentKind::Data);
        let extents = of_data.map(|taken| (taken.extent.index(), Arc::clone(&taken.extent))).collect();
        self.log_records(&mut writer, records, &extents)?;
        drop(extents);
        settle(&self.placement, taken);
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
    fn writer(&self) -> Result<MutexGuard<'_, Writer>, PoolError> {
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
    /// 6. what nobody sees any more, behind what hides it, holes behind what they hid;
    /// 7. extents that have become empty, behind what was below them and unseen.
    fn snapshot(&self) -> Snapshot {
        let _alone = self.unmapping.write().unwrap_or_else(PoisonError::into_inner);
        let Dirty { extents, volumes, chunks, cut, unseen } = std::mem::take(&mut *lock(&self.dirty));
        let volumes =
            volumes.into_iter().map(|(slot, entry)| Record::Volume { slot, entry: Box::new(entry) });
        let mut snapshot = Snapshot {
            records: volumes.chain(chunks).collect(),
            retired: NotYetFree::default(),
            taken: Vec::new(),
        };
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
        extents: &BTreeMap<u32, Arc<Extent>>,
    ) -> Result<(), PoolError> {
        let mut packer = Packer::new(self.layout, self.pool);
        for record in records {
            if packer.blocks() + packer.blocks_more(&record) > self.layout.batch_blocks_max() {
                self.log_batch(writer, &mut packer, extents)?;
            }
            packer.push(record);
        }
        if packer.blocks() == 0 { Ok(()) } else { self.log_batch(writer, &mut packer, extents) }
    }

    fn log_batch(
        &self,
        writer: &mut Writer,
        packer: &mut Packer,
        extents: &BTreeMap<u32, Arc<Extent>>,
    ) -> Result<(), PoolError> {
        let too_many = self.records.waiting() > RECORDS_WAITING_MAX;
        if writer.log.free_blocks() < packer.blocks() + self.layout.log_reserve_blocks() || too_many {
            self.checkpoint(writer)?;
        }
        let batch = packer.take();
        self.append(writer, &batch)?;
        for record in batch.records {
            self.note_logged(writer, record, extents);
        }
        Ok(())
    }

    fn append(&self, writer: &mut Writer, batch: &Batch) -> Result<(), PoolError> {
        self.step(CrashStep::LogWrite);
        writer.log.append(&*self.device, batch)?;
        self.step(CrashStep::LogFlush);
        Ok(self.device.flush()?)
    }

    /// Takes in a record that is durable in the log.
    fn note_logged(&self, writer: &mut Writer, record: Record, extents: &BTreeMap<u32, Arc<Extent>>) {
        match record {
            Record::Sector { of, record, ciphertext } => {
                self.records.logged(of, record);
                match ciphertext.zip(extents.get(&of.extent)) {
                    Some((sealed, extent)) => {
                        self.placement.add(of, Waiting { extent: Arc::clone(extent), sealed });
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
        let waiting = self.placement.sectors();
        if waiting <= self.buffer_sectors() / 2 {
            return Ok(());
        }
        let share = (2 * added).max(PLACED_AT_ONCE_MIN);
        let most = if waiting > self.buffer_sectors() { waiting } else { share };
        self.place(most)
    }

    /// Step 16: ciphertext that the log has goes to its place, up to `most` sectors of it or until nothing waits and nothing
    /// is on its way.
    fn place(&self, most: u64) -> Result<(), PoolError> {
        let mut left = most;
        while left > 0 {
            let batch =
                self.placement.take(usize::try_from(left).unwrap_or(usize::MAX).min(PLACED_AT_ONCE_MAX));
            if batch.len() == 0 {
                break;
            }
            left = left.saturating_sub(batch.len());
            self.step(CrashStep::PlaceWrite);
            let runs: Vec<(SectorId, Sealed)> = batch.runs().collect();
            let at = |of: &SectorId| self.layout.sector_at(of.extent, of.sector);
            let parts: Vec<_> = runs.iter().map(|(first, run)| (at(first), run.as_slice())).collect();
            self.device.write_many(&parts)?;
            batch.let_go();
        }
        Ok(())
    }

    /// Beside commits: puts what waits to its place, once it is worth it or `patience` is over.
    pub(crate) fn tend(&self, patience: Duration) -> Result<(), PoolError> {
        self.placement.wait(patience);
        self.check_not_failed()?;
        self.place(self.placement.sectors()).map_err(|error| self.fail(error))
    }

    /// Writes what the log holds to its places and to the tables, and starts the log anew. Every record in `logged` is
    /// durable in the log here.
    fn checkpoint(&self, writer: &mut Writer) -> Result<(), PoolError> {
        self.place(u64::MAX)?;
        self.step(CrashStep::TableWrite);
        let written = self.records.write_pages()?;
        let volume_pages = self.write_volume_table(writer)?;
        let extent_pages = self.write_extent_table(writer)?;
        let hole_pages = self.write_hole_table(writer)?;
        self.step(CrashStep::TableFlush);
        self.device.flush()?;
        let start = writer.log.end();
        // Only now: they say that their sectors are in their places.
        self.log_again(writer, &written)?;
        let superblock = Superblock {
            log_start: start.next,
            log_link: start.link,
            volume_pages,
            extent_pages,
            hole_pages,
            next_sequence: self.next_sequence.load(Ordering::Acquire),
            ..writer.superblock
        };
        self.write_superblock(writer, superblock)?;
        writer.log.forget_before(start);
        writer.logged = Logged::default();
        self.records.end_checkpoint(written);
        Ok(())
    }

    /// Logs the records once more that a checkpoint could not put to their page, behind where the log will start.
    fn log_again(&self, writer: &mut Writer, written: &Written) -> Result<(), PoolError> {
        let mut packer = Packer::new(self.layout, self.pool);
        for (of, record) in &written.left {
            packer.push(Record::Sector { of: *of, record: *record, ciphertext: None });
        }
        let room = self.layout.log_reserve_blocks().min(writer.log.free_blocks());
        match &written.unreadable {
            Some(error) if packer.blocks() > room => Err(error.clone().into()),
            Some(_) => self.append(writer, &packer.take()),
            None => Ok(()),
        }
    }

    /// Writes both copies, one after the other, under the next generation.
    fn write_superblock(&self, writer: &mut Writer, superblock: Superblock) -> Result<(), PoolError> {
        let superblock = Superblock { generation: superblock.generation + 1, ..superblock };
        let encoded = superblock.encode();
        self.step(CrashStep::FirstSuperblockWrite);
        self.device.write_metadata(superblock_at(0), &encoded)?;
        self.step(CrashStep::FirstSuperblockFlush);
        self.device.flush()?;
        self.step(CrashStep::SecondSuperblockWrite);
        self.device.write_metadata(superblock_at(1), &encoded)?;
        self.step(CrashStep::SecondSuperblockFlush);
        self.device.flush()?;
        writer.superblock = superblock;
        Ok(())
    }

    /// Brings the volume table up to date; how many of its pages are written now.
    fn write_volume_table(&self, writer: &Writer) -> Result<u64, PoolError> {
        let logged = &writer.logged.volumes;
        let pages = Pages {
            written: writer.superblock.volume_pages,
            changed: logged.keys().map(|slot| u64::from(slot / VOLUME_ENTRIES_PER_PAGE)).collect(),
        };
        pages.write(
            &*self.device,
            |page| self.layout.volume_page_at(page),
            |_, wanted| wanted.min(PAGES_PER_TRANSFER),
            |page, bytes, fresh| {
                for (slot, entry) in
                    entries_of(page, VOLUME_ENTRIES_PER_PAGE).zip(bytes.chunks_exact_mut(VOLUME_ENTRY_BYTES))
                {
                    let changed = logged.get(&slot);
                    if fresh || changed.is_some() {
                        encode_volume(self.pool, slot, changed, entry);
                    }
                }
            },
        )
    }

    /// Brings the extent table up to date; how many of its pages are written now.
    fn write_extent_table(&self, writer: &Writer) -> Result<u64, PoolError> {
        self.write_entries(&writer.logged.extents, writer.superblock.extent_pages, |page| {
            Some(self.layout.extent_page_at(page))
        })
    }

    /// Brings the hole table up to date; how many of its pages are written now.
    fn write_hole_table(&self, writer: &Writer) -> Result<u64, PoolError> {
        let chunks = self.holes.chunks();
        self.write_entries(&writer.logged.holes, writer.superblock.hole_pages, |page| {
            self.layout.hole_page_at(&chunks, page)
        })
    }

    fn write_entries(
        &self,
        logged: &BTreeMap<u32, Option<Mapping>>,
        written: u64,
        at: impl Fn(u64) -> Option<ByteOffset>,
    ) -> Result<u64, PoolError> {
        let per_page = self.layout.extent_entries_per_page();
        let pages =
            Pages { written, changed: logged.keys().map(|index| u64::from(index / per_page)).collect() };
        pages.write(
            &*self.device,
            // A logged entry lies in a page that there is, so this is a page that there is.
            |page| at(page).unwrap_or(ByteOffset(u64::MAX)),
            |page, wanted| self.layout.contiguous_pages(page, wanted),
            |page, bytes, fresh| {
                let entries = bytes.chunks_exact_mut(self.layout.extent_entry_bytes());
                for (index, entry) in entries_of(page, per_page).zip(entries) {
                    let changed = logged.get(&index);
                    if fresh || changed.is_some() {
                        let mapping: Option<&Mapping> = changed.and_then(Option::as_ref);
                        encode_extent(self.layout, self.pool, index, mapping, entry);
                    }
                }
            },
        )
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
            self.step(CrashStep::Discard);
            match self.device.discard(at, ByteLen(count as u64 * extent_len)) {
                Ok(()) => {}
                Err(error) if error.kind() == DeviceErrorKind::Unsupported => {
                    self.discard_works.store(false, Ordering::Relaxed);
                    return;
                }
                // Nothing depends on it, and a device that is ill says so at the next write.
                Err(error) => tracing::debug!(pool = %self.pool, %error, "discarding freed extents failed"),
            }
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
        for (at, len) in self.layout.metadata_ranges(found).filter(|(at, _)| at.0 >= recorded.0) {
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

    pub(crate) fn count_damaged(&self) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
    }

    /// Sectors that were read since the pool was opened and were not what was written.
    pub(crate) fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.get().is_some()
    }
}

/// The log has all of it: what is in its place is let go of, what the log says is on the device from now on, and nothing goes
/// to a place any more where the log says that nothing is.
fn settle(placement: &Placement, taken: Vec<TakenExtent>) {
    for TakenExtent { extent, sectors, contents } in taken {
        if let Some(sectors) = sectors.as_ref().filter(|_| extent.kind() == ExtentKind::Data) {
            placement.keep(extent.index(), sectors);
        }
        let mut state = extent.state();
        if let Some(sectors) = sectors {
            state.settle(sectors);
        }
        state.forget_placed(&contents);
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

/// The numbers of the entries in a page.
fn entries_of(page: u64, per_page: u32) -> std::ops::Range<u32> {
    let first = u32::try_from(page).unwrap_or(u32::MAX).saturating_mul(per_page);
    first..first.saturating_add(per_page)
}

/// Pages of a table that are to be written.
struct Pages {
    /// Pages before this one hold entries already; the others hold whatever the device held before.
    written: u64,
    /// Pages with changed entries, in ascending order, each perhaps several times.
    changed: Vec<u64>,
}

impl Pages {
    /// Writes the changed pages and all that were skipped before them, neighbours in one transfer. `contiguous(page,
    /// wanted)` says how many pages from `page` lie together; `change(page, bytes, fresh)` brings one up to date.
    /// Returns how many pages are written now.
    fn write(
        mut self,
        device: &dyn Device,
        at: impl Fn(u64) -> ByteOffset,
        contiguous: impl Fn(u64, u64) -> u64,
        change: impl Fn(u64, &mut [u8], bool),
    ) -> Result<u64, PoolError> {
        let Some(last) = self.changed.last() else { return Ok(self.written) };
        let written = self.written.max(last + 1);
        self.changed.retain(|page| *page < self.written);
        self.changed.extend(self.written..written);
        self.changed.dedup();
        let mut rest = &self.changed[..];
        while let Some(first) = rest.first() {
            let neighbours =
                rest.iter().zip(*first..).take_while(|(page, expected)| **page == *expected).count();
            let count = contiguous(*first, neighbours as u64);
            let (run, after) = rest.split_at(usize::try_from(count).unwrap_or(rest.len()));
            rest = after;
            let old = self.written.saturating_sub(*first).min(count);
            let mut buf = if old == count {
                read_pages(device, at(*first), count)?
            } else {
                let mut buf = SectorBuf::zeroed(SectorCount(count));
                if old > 0 {
                    let bytes = read_pages(device, at(*first), old)?;
                    buf.as_mut_bytes()[..bytes.as_bytes().len()].copy_from_slice(bytes.as_bytes());
                }
                buf
            };
            for (page, bytes) in run.iter().zip(buf.as_mut_bytes().chunks_exact_mut(SECTOR_BYTES)) {
                change(*page, bytes, *page >= self.written);
            }
            device.write_metadata(at(*first), &Metadata::from_encoding(buf))?;
        }
        Ok(written)
    }
}
