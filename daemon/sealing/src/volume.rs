//! A volume as the heads see it: clear bytes at any alignment over sealed sectors.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use device::Sealed;
use keyring::{KeyGone, KeyHandle, Keyring};
use pool::{Change, Piece, PoolError, PoolVolume};
use units::{ByteLen, ByteOffset, DomainId, Lba, SECTOR_BYTES, SectorCount, VolumeEpoch, VolumeId};
use zeroize::Zeroize;

use crate::clear::{Bound, Clear, UnsealError, seal, seal_bytes, unseal};
use crate::error::{Cause, Operation, VolumeError};
use crate::keys::VolumeKeys;
use crate::locks::{Access, RangeLocks};
use crate::snapshots::Snapshots;

const SECTOR: u64 = SECTOR_BYTES as u64;

/// Sectors that are sealed or unsealed at once: 256 KiB. Bounds what a request holds in memory beside its own buffer, and
/// the time (well under a millisecond) in which a use of a key does not look at the generation.
pub(crate) const BATCH_SECTORS: u64 = 64;

/// Sectors that a long write of sealed zeros keeps locked at once: 16 MiB. Others get their turn in between.
const ZERO_LOCK_SECTORS: u64 = 4096;

/// Sectors that a long trim keeps locked at once: 1 GiB.
const UNMAP_LOCK_SECTORS: u64 = 1 << 18;

/// Sectors after which a long trim makes durable what it did: 64 GiB. Until then what it changed of the map waits in memory.
const UNMAP_FLUSH_SECTORS: u64 = 64 * UNMAP_LOCK_SECTORS;

/// How long a request that must wait for its turn sleeps before it looks whether the key is still there.
const NAP: Duration = Duration::from_millis(20);

/// When an acknowledged write must survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Durability {
    /// After the next successful [`Volume::flush`].
    Buffered,
    /// Before the call returns (FUA).
    Durable,
}

/// What [`Volume::write_zeroes`] may do with the space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroMode {
    /// Whole sectors become holes; whoever sees the ciphertext sees which.
    MayUnmap,
    /// Sealed zeros are written: space stays allocated and nothing shows.
    KeepAllocated,
}

/// Whether a range holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Presence {
    /// Never written or unmapped: reads as zeros.
    Hole,
    /// Written.
    Data,
}

/// A volume with a lent key: the plaintext side's only way to storage. Cheap to clone. Every call blocks and belongs
/// on a thread that may wait for a device; any number may run at once.
///
/// A sector changes atomically between calls of this process; a request of several sectors does not change atomically
/// in a power cut. When the key is gone every call fails with [`ErrorKind::KeyGone`](crate::ErrorKind::KeyGone), for
/// good: after the next push a new `Volume` is opened.
#[derive(Clone)]
pub struct Volume {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    id: VolumeId,
    pub(crate) pool: Arc<PoolVolume>,
    pub(crate) keys: Arc<VolumeKeys>,
    pub(crate) domain: DomainId,
    pub(crate) locks: Arc<RangeLocks>,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume")
            .field("id", &self.inner.id)
            .field("keys", &self.inner.keys)
            .finish_non_exhaustive()
    }
}

/// What a write puts in its range.
#[derive(Clone, Copy)]
enum Source<'a> {
    Data(&'a [u8]),
    Zeros,
}

/// Whole sectors to seal.
enum Plain<'a> {
    Owned(Clear),
    /// As the caller has them.
    Borrowed(&'a [u8]),
}

impl Plain<'_> {
    fn sectors(&self) -> SectorCount {
        match self {
            Self::Owned(clear) => clear.sectors(),
            Self::Borrowed(bytes) => SectorCount((bytes.len() / SECTOR_BYTES) as u64),
        }
    }
}

/// A non-empty range of bytes, in a volume or in a part of one.
type Bytes = Range<u64>;

impl Volume {
    /// Opens `pool` with `key`, which was admitted for the volume's domain and epoch.
    pub fn open(pool: Arc<PoolVolume>, keyring: Arc<Keyring>, key: KeyHandle) -> Self {
        let keys = VolumeKeys::new(keyring, [(pool.epoch(), key)]);
        Self::open_with(pool, keys)
    }

    /// Opens `pool` with these keys of its domain, and those that are added to them later.
    pub fn open_with(pool: Arc<PoolVolume>, keys: Arc<VolumeKeys>) -> Self {
        let info = pool.info();
        let locks = RangeLocks::of(info.id);
        Self { inner: Arc::new(Inner { id: info.id, pool, keys, domain: info.domain, locks }) }
    }

    /// The volume's identifier.
    pub fn id(&self) -> VolumeId {
        self.inner.id
    }

    /// Size of the volume now; a resize changes it.
    pub fn len(&self) -> ByteLen {
        self.inner.pool.sectors().byte_len().unwrap_or(ByteLen(u64::MAX))
    }

    /// Whether the volume has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == ByteLen(0)
    }

    /// Whether the key is still lent; heads ask again before a reply leaves.
    pub fn check_key(&self) -> Result<(), KeyGone> {
        self.inner.keys.check()
    }

    /// Fills `out` from `at`. Holes read as zeros. On an error `out` holds nothing of use and no plaintext of a volume
    /// whose key is gone.
    pub fn read(&self, at: ByteOffset, out: &mut [u8]) -> Result<(), VolumeError> {
        let len = ByteLen(out.len() as u64);
        self.run_in_turn(Operation::Read, at, len, || self.inner.read(at.0, out))
            .inspect_err(|_| out.zeroize())
    }

    /// As [`Volume::read`], without a turn among the clients': for what the node itself verifies.
    pub fn verify(&self, at: ByteOffset, out: &mut [u8]) -> Result<(), VolumeError> {
        let len = ByteLen(out.len() as u64);
        self.run(Operation::Read, at, len, || self.inner.read(at.0, out)).inspect_err(|_| out.zeroize())
    }

    /// Writes `data` at `at`; parts of sectors at either end are merged with what is there.
    pub fn write(&self, at: ByteOffset, data: &[u8], durability: Durability) -> Result<(), VolumeError> {
        let len = ByteLen(data.len() as u64);
        self.run_in_turn(Operation::Write, at, len, || {
            if let Some(range) = bytes(at, len) {
                let _held = self.inner.lock(&range, Access::Exclusive);
                self.inner.write_locked(range, Source::Data(data))?;
            }
            self.inner.settle(durability)
        })
    }

    /// Makes the range read as zeros.
    pub fn write_zeroes(
        &self,
        at: ByteOffset,
        len: ByteLen,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), VolumeError> {
        self.run_in_turn(Operation::WriteZeroes, at, len, || {
            if let Some(range) = bytes(at, len) {
                match mode {
                    ZeroMode::MayUnmap => self.inner.unmap_or_zero(range)?,
                    ZeroMode::KeepAllocated => self.inner.write_sealed_zeros(range)?,
                }
            }
            self.inner.settle(durability)
        })
    }

    /// Gives the range's whole sectors back to the pool; they read as zeros. Parts of sectors at either end stay as they
    /// are: a trim is advice.
    pub fn trim(&self, at: ByteOffset, len: ByteLen, durability: Durability) -> Result<(), VolumeError> {
        self.run_in_turn(Operation::Trim, at, len, || {
            if let Some(whole) = bytes(at, len).and_then(|range| whole_sectors(&range)) {
                self.inner.unmap_in_steps(whole)?;
            }
            self.inner.settle(durability)
        })
    }

    /// Returns once every write, trim and write of zeros that was acknowledged before the call is durable.
    pub fn flush(&self) -> Result<(), VolumeError> {
        self.run(Operation::Flush, ByteOffset(0), ByteLen(0), || self.inner.settle(Durability::Durable))
    }

    /// Holes and data over the range, in order, covering it exactly; neighbours differ.
    pub fn status(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<(ByteLen, Presence)>, VolumeError> {
        self.run(Operation::Status, at, len, || match bytes(at, len) {
            Some(range) => self.inner.status(&range),
            None => Ok(Vec::new()),
        })
    }

    /// Where the range differs from what `since`, one of `snapshots`, shows there: runs that cover it in order, `true` for
    /// those that do; neighbours differ. Sectors count as a whole, and one that was written with what it held counts.
    pub fn changes_since(
        &self,
        snapshots: &Snapshots,
        since: VolumeId,
        at: ByteOffset,
        len: ByteLen,
    ) -> Result<Vec<(ByteLen, bool)>, VolumeError> {
        self.run(Operation::Changes, at, len, || match bytes(at, len) {
            Some(range) => self.inner.changes_since(snapshots, since, &range),
            None => Ok(Vec::new()),
        })
    }

    /// As [`Self::run`], once the volume's ceilings allow it.
    fn run_in_turn<R>(
        &self,
        operation: Operation,
        at: ByteOffset,
        len: ByteLen,
        work: impl FnOnce() -> Result<R, Cause>,
    ) -> Result<R, VolumeError> {
        // What a trim or a hole covers costs nothing.
        let moved = match operation {
            Operation::Read | Operation::Write => len,
            _ => ByteLen(0),
        };
        self.wait_for_turn(moved)
            .map_err(|gone| VolumeError::new(operation, at, len, Cause::KeyGone(gone)))?;
        self.run(operation, at, len, work)
    }

    fn wait_for_turn(&self, bytes: ByteLen) -> Result<(), KeyGone> {
        let mut left = self.inner.pool.take_turn(bytes);
        while !left.is_zero() {
            // Whoever waits holds clear data, and lets go of it when the key goes.
            let nap = left.min(NAP);
            std::thread::sleep(nap);
            left -= nap;
            self.check_key()?;
        }
        Ok(())
    }

    /// What every call does: key and range are checked before, and the key again before an answer leaves.
    fn run<R>(
        &self,
        operation: Operation,
        at: ByteOffset,
        len: ByteLen,
        work: impl FnOnce() -> Result<R, Cause>,
    ) -> Result<R, VolumeError> {
        let checked = || {
            self.check_key()?;
            let volume = self.len();
            if at.checked_add(len).is_none_or(|end| end.0 > volume.0) {
                return Err(Cause::OutOfRange { volume });
            }
            let result = work()?;
            self.check_key()?;
            Ok(result)
        };
        checked().map_err(|cause| VolumeError::new(operation, at, len, cause))
    }
}

impl Inner {
    fn lock(&self, range: &Bytes, access: Access) -> crate::locks::RangeGuard<'_> {
        self.locks.lock(touched_sectors(range), access)
    }

    fn settle(&self, durability: Durability) -> Result<(), Cause> {
        match durability {
            Durability::Buffered => Ok(()),
            Durability::Durable => Ok(self.pool.flush()?),
        }
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<(), Cause> {
        let Some(range) = bytes(ByteOffset(at), ByteLen(out.len() as u64)) else { return Ok(()) };
        let _held = self.lock(&range, Access::Shared);
        for batch in batches(touched_sectors(&range)) {
            let pieces = self.pool.read(Lba(batch.start), SectorCount(batch.end - batch.start))?;
            let mut next = batch.start;
            for piece in pieces {
                let sectors = match &piece {
                    Piece::Hole(count) => count.0,
                    Piece::Sealed { data, .. } => data.sectors().0,
                };
                let piece_bytes = next * SECTOR..(next + sectors) * SECTOR;
                let wanted = piece_bytes.start.max(range.start)..piece_bytes.end.min(range.end);
                if !wanted.is_empty() {
                    let part = &mut out[within(&wanted, range.start)];
                    self.take_piece(&piece, next, within(&wanted, piece_bytes.start), part)?;
                }
                next += sectors;
            }
            if next != batch.end {
                let (asked, got) = (batch.end - batch.start, next - batch.start);
                return Err(Cause::ShortAnswer { first: Lba(batch.start), asked, got });
            }
        }
        Ok(())
    }

    /// Puts the bytes `wanted` of `piece`, which begins at sector `first`, into `out`.
    fn take_piece(
        &self,
        piece: &Piece,
        first: u64,
        wanted: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), Cause> {
        let Piece::Sealed { epoch, data, .. } = piece else {
            out.fill(0);
            return Ok(());
        };
        if wanted == (0..data.as_bytes().len()) {
            return self.unseal(data, *epoch, first, out);
        }
        let mut clear = Clear::to_fill(data.sectors());
        self.unseal(data, *epoch, first, clear.as_mut_bytes())?;
        out.copy_from_slice(&clear.as_bytes()[wanted]);
        Ok(())
    }

    /// Decrypts and verifies what was read from sector `first` on and is sealed under `epoch`.
    pub(crate) fn unseal(
        &self,
        data: &Sealed,
        epoch: VolumeEpoch,
        first: u64,
        out: &mut [u8],
    ) -> Result<(), Cause> {
        let key = self.key_of(Lba(first), epoch)?;
        let bound = Bound { domain: self.domain, epoch };
        let opened = unseal(data, (&self.keys.keyring, key), bound, Lba(first), out);
        if let Err(UnsealError::Damaged { first, damage }) = opened {
            self.pool.report_damage(first, &damage);
        }
        Ok(opened?)
    }

    pub(crate) fn key_of(&self, first: Lba, found: VolumeEpoch) -> Result<KeyHandle, Cause> {
        let foreign = || Cause::ForeignEpoch { first, found, granted: self.keys.newest() };
        self.keys.of(found).ok_or_else(foreign)
    }

    /// Writes `source` over `range`, whose sectors are locked exclusively.
    fn write_locked(&self, range: Bytes, source: Source<'_>) -> Result<(), Cause> {
        for batch in batches(touched_sectors(&range)) {
            let batch_bytes = batch.start * SECTOR..batch.end * SECTOR;
            let covered = batch_bytes.start.max(range.start)..batch_bytes.end.min(range.end);
            if let (Source::Data(data), true) = (source, covered == batch_bytes) {
                let data = &data[within(&covered, range.start)];
                self.seal_and_write(batch.start, || Ok(Plain::Borrowed(data)))?;
                continue;
            }
            self.seal_and_write(batch.start, || {
                // The range covers all but the edges, which are kept.
                let mut clear = Clear::to_fill(SectorCount(batch.end - batch.start));
                self.keep_edges(&batch, &covered, &mut clear)?;
                let target = &mut clear.as_mut_bytes()[within(&covered, batch_bytes.start)];
                match source {
                    Source::Data(data) => target.copy_from_slice(&data[within(&covered, range.start)]),
                    Source::Zeros => target.fill(0),
                }
                Ok(Plain::Owned(clear))
            })?;
        }
        Ok(())
    }

    /// Reads into `clear` what the first and last sector of `batch` hold outside of `covered`.
    fn keep_edges(&self, batch: &Range<u64>, covered: &Bytes, clear: &mut Clear) -> Result<(), Cause> {
        let last = batch.end - 1;
        let head = !covered.start.is_multiple_of(SECTOR);
        let read_already = head && last == batch.start;
        let tail = !read_already && !covered.end.is_multiple_of(SECTOR);
        for (sector, partial) in [(batch.start, head), (last, tail)] {
            if partial {
                let at = sector * SECTOR..(sector + 1) * SECTOR;
                let place = within(&at, batch.start * SECTOR);
                self.read_sector(sector, &mut clear.as_mut_bytes()[place])?;
            }
        }
        Ok(())
    }

    /// Decrypts one locked sector into `out`.
    fn read_sector(&self, sector: u64, out: &mut [u8]) -> Result<(), Cause> {
        match self.pool.read(Lba(sector), SectorCount(1))?.first() {
            Some(Piece::Sealed { epoch, data, .. }) if data.sectors() == SectorCount(1) => {
                self.unseal(data, *epoch, sector, out)
            }
            Some(Piece::Hole(SectorCount(1))) => {
                out.fill(0);
                Ok(())
            }
            _ => Err(Cause::ShortAnswer { first: Lba(sector), asked: 1, got: 0 }),
        }
    }

    /// The last steps of every write: 1. encrypt, 2. see that the key was there throughout (both in `seal`), 3. write. A
    /// check left out, or made before the encryption only, would let through what a wipe's zeros encrypted. Where another
    /// epoch of the key begins in between, all of it is done again: what was sealed is gone, so `clear` makes it once more.
    fn seal_and_write<'a>(
        &self,
        first: u64,
        clear: impl Fn() -> Result<Plain<'a>, Cause>,
    ) -> Result<(), Cause> {
        let try_once = |clear: Plain<'_>| -> Result<(), Cause> {
            let epoch = self.pool.epoch();
            let key = self.key_of(Lba(first), epoch)?;
            let sequence = self.pool.take_sequences(epoch, clear.sectors())?;
            let bound = Bound { domain: self.domain, epoch };
            let (keys, at) = ((&*self.keys.keyring, key), (Lba(first), sequence));
            let sealed = match clear {
                Plain::Owned(clear) => seal(clear, keys, bound, at)?,
                Plain::Borrowed(bytes) => seal_bytes(bytes, keys, bound, at)?,
            };
            Ok(self.pool.write(Lba(first), epoch, sealed)?)
        };
        loop {
            match try_once(clear()?) {
                Err(Cause::Pool(PoolError::WrongEpoch { .. })) => {}
                done => return done,
            }
        }
    }

    fn write_sealed_zeros(&self, range: Bytes) -> Result<(), Cause> {
        for part in in_steps(range, ZERO_LOCK_SECTORS * SECTOR) {
            let _held = self.lock(&part, Access::Exclusive);
            self.write_locked(part, Source::Zeros)?;
        }
        Ok(())
    }

    fn unmap_or_zero(&self, range: Bytes) -> Result<(), Cause> {
        let Some(whole) = whole_sectors(&range) else {
            let _held = self.lock(&range, Access::Exclusive);
            // No whole sector: at most two, both partly covered.
            let boundary = range.start.next_multiple_of(SECTOR).clamp(range.start, range.end);
            self.zero_part(range.start..boundary)?;
            return self.zero_part(boundary..range.end);
        };
        for part in [range.start..whole.start * SECTOR, whole.end * SECTOR..range.end] {
            if !part.is_empty() {
                let _held = self.lock(&part, Access::Exclusive);
                self.zero_part(part)?;
            }
        }
        self.unmap_in_steps(whole)
    }

    /// Unmaps sectors, however many: others come in between two steps, and what the steps changed does not gather in memory.
    fn unmap_in_steps(&self, sectors: Range<u64>) -> Result<(), Cause> {
        let first = sectors.start;
        for part in in_steps(sectors, UNMAP_LOCK_SECTORS) {
            if part.start > first && part.start.is_multiple_of(UNMAP_FLUSH_SECTORS) {
                self.settle(Durability::Durable)?;
            }
            let _held = self.locks.lock(part.clone(), Access::Exclusive);
            self.unmap_locked(part)?;
        }
        Ok(())
    }

    /// Zeroes a part of one locked sector; a hole stays one.
    fn zero_part(&self, part: Bytes) -> Result<(), Cause> {
        if part.is_empty() {
            return Ok(());
        }
        let sector = part.start / SECTOR;
        let is_hole = self.pool.presence(Lba(sector), SectorCount(1))?.iter().all(|(_, present)| !present);
        if is_hole {
            return Ok(());
        }
        self.seal_and_write(sector, || {
            let mut clear = Clear::zeroed(SectorCount(1));
            self.read_sector(sector, clear.as_mut_bytes())?;
            clear.as_mut_bytes()[within(&part, sector * SECTOR)].fill(0);
            Ok(Plain::Owned(clear))
        })
    }

    /// Unmaps locked sectors. Needs no key, but a caller whose key is gone changes nothing: the range may have been written
    /// under a newer grant while this call waited for its lock.
    fn unmap_locked(&self, sectors: Range<u64>) -> Result<(), Cause> {
        self.keys.check()?;
        Ok(self.pool.unmap(Lba(sectors.start), SectorCount(sectors.end - sectors.start))?)
    }

    fn status(&self, range: &Bytes) -> Result<Vec<(ByteLen, Presence)>, Cause> {
        let (first, count) = first_and_count(range);
        let runs = self.pool.presence(first, count)?.into_iter();
        let presence = |present| if present { Presence::Data } else { Presence::Hole };
        clipped(range, runs.map(|(count, present)| (count, presence(present))))
    }

    fn changes_since(
        &self,
        snapshots: &Snapshots,
        since: VolumeId,
        range: &Bytes,
    ) -> Result<Vec<(ByteLen, bool)>, Cause> {
        let older = snapshots.open(since).ok_or(Cause::NoSuchSnapshot(since))?;
        let (first, count) = first_and_count(range);
        let runs = self.pool.changes_since(Some(&older), first, count)?.into_iter();
        // One that was deleted meanwhile may have lost what it showed, and would seem not to differ.
        snapshots.open(since).ok_or(Cause::NoSuchSnapshot(since))?;
        clipped(range, runs.map(|(count, change)| (count, change != Change::Same)))
    }
}

/// A range in parts that end at multiples of `step`, in order.
fn in_steps(range: Range<u64>, step: u64) -> impl Iterator<Item = Range<u64>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let end = range.end.min((start / step + 1) * step);
        (start < range.end).then(|| std::mem::replace(&mut start, end)..end)
    })
}

/// The sectors that hold any byte of the range, as the pool counts them.
fn first_and_count(range: &Bytes) -> (Lba, SectorCount) {
    let sectors = touched_sectors(range);
    (Lba(sectors.start), SectorCount(sectors.end - sectors.start))
}

/// Runs of sectors that begin where the range does, as runs of the bytes of the range.
fn clipped<T: PartialEq>(
    range: &Bytes,
    runs: impl Iterator<Item = (SectorCount, T)>,
) -> Result<Vec<(ByteLen, T)>, Cause> {
    let sectors = touched_sectors(range);
    let mut extents: Vec<(ByteLen, T)> = Vec::new();
    let mut next = sectors.start;
    for (count, state) in runs {
        let run = next * SECTOR..(next + count.0) * SECTOR;
        next += count.0;
        let len = run.end.min(range.end).saturating_sub(run.start.max(range.start));
        match extents.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.1 == state => last.0.0 += len,
            _ => extents.push((ByteLen(len), state)),
        }
    }
    if next != sectors.end {
        let (asked, got) = (sectors.end - sectors.start, next.saturating_sub(sectors.start));
        return Err(Cause::ShortAnswer { first: Lba(sectors.start), asked, got });
    }
    Ok(extents)
}

/// The range, `None` where it is empty. Callers have checked that it ends inside the volume.
fn bytes(at: ByteOffset, len: ByteLen) -> Option<Bytes> {
    let end = at.checked_add(len)?;
    (len.0 > 0).then_some(at.0..end.0)
}

/// Sectors that hold any byte of the range.
fn touched_sectors(range: &Bytes) -> Range<u64> {
    range.start / SECTOR..range.end.div_ceil(SECTOR)
}

/// Sectors that lie in the range as a whole.
fn whole_sectors(range: &Bytes) -> Option<Range<u64>> {
    let whole = range.start.div_ceil(SECTOR)..range.end / SECTOR;
    (!whole.is_empty()).then_some(whole)
}

fn batches(sectors: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = sectors.end;
    sectors.step_by(BATCH_STEP).map(move |start| start..end.min(start + BATCH_SECTORS))
}

/// `BATCH_SECTORS` as iterators count.
const BATCH_STEP: usize = 64;
const _: () = assert!(BATCH_STEP as u64 == BATCH_SECTORS);

/// `range` as indices into a buffer that begins at byte `origin`. It lies inside that buffer, so it fits.
fn within(range: &Bytes, origin: u64) -> Range<usize> {
    let index = |position: u64| usize::try_from(position - origin).unwrap_or(usize::MAX);
    index(range.start)..index(range.end)
}
