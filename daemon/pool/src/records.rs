//! Sector records in an open pool: the pages they lie in, and those that are newer than their page.
//!
//! Invariants:
//! - A record that the log holds and its page may not yet is in `newer`; it moves to its page in a checkpoint, and leaves
//!   `newer` only when the superblock no longer starts the log before it.
//! - A page in the cache is what the device holds: it is put there under the lock that a checkpoint ends under, unless one
//!   ended since it was read.
//! - A page counts only if it is what was last written to it, as its digest says. A page changes in its place only when what
//!   it becomes is durable in the log.
//! - Nothing here makes a record: what is not found is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use device::{Device, DeviceErrorKind, Metadata, SectorBuf, SectorRecord};
use quick_cache::sync::Cache;
use units::{ByteLen, ByteOffset, PoolId, SECTOR_BYTES, SectorCount};

use crate::PoolError;
use crate::bytes::{Decoder, Encoder};
use crate::digest::{Digest, NEVER_WRITTEN, Planned, RecordDigests, digest_of};
use crate::layout::{DIGEST_BYTES, Layout, PAGES_PER_TRANSFER, SECTOR, SECTOR_RECORD_BYTES};

/// Memory for record pages by default: the records of 8 GiB.
pub(crate) const CACHE_LEN_DEFAULT: ByteLen = ByteLen(64 << 20);

/// A sector of an extent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SectorId {
    pub(crate) extent: u32,
    pub(crate) sector: u32,
}

impl SectorId {
    pub(crate) fn all_of(extent: u32) -> std::ops::RangeInclusive<Self> {
        Self { extent, sector: 0 }..=Self { extent, sector: u32::MAX }
    }
}

/// Writes a record as it stands in its page and in the log.
pub(crate) fn encode_record(pool: PoolId, of: SectorId, record: &SectorRecord, out: &mut [u8]) {
    Encoder::new(out)
        .u64(record.sequence)
        .u32(record.checksum)
        .u32(self_checksum(pool, of, record))
        .bytes(&record.tag);
}

/// Reads a record; `None` where it is none, not this sector's, or damaged.
pub(crate) fn decode_record(pool: PoolId, of: SectorId, bytes: &[u8]) -> Option<SectorRecord> {
    let mut fields = Decoder::new(bytes);
    let (sequence, checksum, own) = (fields.u64()?, fields.u32()?, fields.u32()?);
    let record = SectorRecord { sequence, checksum, tag: fields.array()? };
    (self_checksum(pool, of, &record) == own).then_some(record)
}

/// Covers the pool, the place and the record.
fn self_checksum(pool: PoolId, of: SectorId, record: &SectorRecord) -> u32 {
    let mut covered = [0; 52];
    Encoder::new(&mut covered)
        .bytes(&pool.0)
        .u32(of.extent)
        .u32(of.sector)
        .u64(record.sequence)
        .u32(record.checksum)
        .bytes(&record.tag);
    crc32c::crc32c(&covered)
}

/// Pages that are read or written at once, behind one plan: 16 MiB.
pub(crate) const PAGES_AT_ONCE: u64 = 4096;

/// Neighbouring pages, and the records that change in them.
#[derive(Clone, Copy)]
struct PageRun<'a> {
    at: u64,
    pages: u64,
    changes: &'a [(SectorId, SectorRecord)],
}

impl PageRun<'_> {
    fn pages(&self) -> impl Iterator<Item = ByteOffset> {
        (self.at..).step_by(SECTOR_BYTES).take(usize::try_from(self.pages).unwrap_or(0)).map(ByteOffset)
    }
}

type Page = Arc<[u8; SECTOR_BYTES]>;

/// What pages of records must be.
#[derive(Debug)]
pub(crate) struct Digests {
    pub(crate) stored: RecordDigests,
    /// Of pages that a checkpoint is changing: what they were and what they become.
    pub(crate) planned: BTreeMap<u64, Planned>,
    /// The digests themselves are what was last written, so that a page that has another is not.
    pub(crate) reliable: bool,
}

/// What goes to the log before pages change in their places.
pub(crate) type Plan = [(ByteOffset, Planned)];

#[derive(Debug)]
pub(crate) struct RecordStore {
    device: Arc<dyn Device>,
    layout: Layout,
    pool: PoolId,
    newer: RwLock<BTreeMap<SectorId, SectorRecord>>,
    /// `None` of a pool that keeps none.
    digests: Option<RwLock<Digests>>,
    pages: Cache<u64, Page>,
    /// Checkpoints that have ended.
    checkpoints: AtomicU64,
}

impl RecordStore {
    pub(crate) fn new(
        device: Arc<dyn Device>,
        (layout, pool): (Layout, PoolId),
        newer: BTreeMap<SectorId, SectorRecord>,
        digests: Option<Digests>,
        cache: ByteLen,
    ) -> Self {
        let pages = usize::try_from(cache.0 / SECTOR).unwrap_or(usize::MAX).max(1);
        Self {
            device,
            layout,
            pool,
            newer: RwLock::new(newer),
            digests: digests.map(RwLock::new),
            pages: Cache::new(pages),
            checkpoints: AtomicU64::new(0),
        }
    }

    fn newer(&self) -> RwLockReadGuard<'_, BTreeMap<SectorId, SectorRecord>> {
        self.newer.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn newer_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<SectorId, SectorRecord>> {
        self.newer.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the records of sectors of an extent that are on the device, as far as they can be read: on an error the one that
    /// would come next cannot.
    pub(crate) fn read(
        &self,
        extent: u32,
        sectors: Range<u32>,
        out: &mut Vec<SectorRecord>,
    ) -> Result<(), PoolError> {
        let id = |sector| SectorId { extent, sector };
        let found: Vec<Option<SectorRecord>> = {
            let newer = self.newer();
            let mut known = newer.range(id(sectors.start)..id(sectors.end)).peekable();
            let next = |sector| known.next_if(|(of, _)| **of == id(sector)).map(|(_, record)| *record);
            sectors.clone().map(next).collect()
        };
        let mut page: Option<(ByteOffset, Page)> = None;
        for (sector, found) in sectors.zip(found) {
            let record = match found {
                Some(record) => record,
                None => self.stored(id(sector), &mut page)?,
            };
            out.push(record);
        }
        Ok(())
    }

    /// The record of a sector in its page, which is `last` or becomes it.
    fn stored(&self, of: SectorId, last: &mut Option<(ByteOffset, Page)>) -> Result<SectorRecord, PoolError> {
        let at = self.layout.record_page_at(of.extent, of.sector);
        let place = self.layout.record_in_page(of.extent, of.sector);
        let decode = |page: &Page| decode_record(self.pool, of, &page[place.clone()]);
        if let Some(record) =
            last.as_ref().filter(|(page_at, _)| *page_at == at).and_then(|(_, page)| decode(page))
        {
            return Ok(record);
        }
        let mut page = self.page(at)?;
        if decode(&page).is_none() {
            // It may be the read that was wrong, and must not be kept, or written back with the next change of the page.
            drop(self.pages.remove(&at.0));
            page = self.page(at)?;
        }
        let record = decode(&page);
        *last = Some((at, page));
        record.ok_or_else(|| PoolError::RecordDamaged {
            device: self.device.info().path,
            at: ByteOffset(at.0 + place.start as u64),
        })
    }

    fn page(&self, at: ByteOffset) -> Result<Page, PoolError> {
        if let Some(page) = self.pages.get(&at.0) {
            return Ok(page);
        }
        let before = self.checkpoints.load(Ordering::Acquire);
        if self.is_blank(at) {
            return Ok(Arc::new([0; SECTOR_BYTES]));
        }
        let mut bytes = self.read_page(at)?;
        if !self.is_right(at, &mut bytes) {
            // It may be the reading that went wrong.
            bytes = self.read_page(at)?;
            if !self.is_right(at, &mut bytes) {
                return Err(self.replaced(at));
            }
        }
        let page = Arc::new(bytes);
        let _no_checkpoint_ends = self.newer();
        if self.checkpoints.load(Ordering::Acquire) == before {
            self.pages.insert(at.0, Arc::clone(&page));
        }
        Ok(page)
    }

    fn read_page(&self, at: ByteOffset) -> Result<[u8; SECTOR_BYTES], PoolError> {
        let bytes = self.device.read_metadata(at, SectorCount(1))?;
        bytes.as_bytes().try_into().map_err(|_| PoolError::Interrupted)
    }

    fn replaced(&self, at: ByteOffset) -> PoolError {
        PoolError::RecordsReplaced { device: self.device.info().path, at }
    }

    fn digests(&self) -> Option<RwLockReadGuard<'_, Digests>> {
        self.digests.as_ref().map(|digests| digests.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn digests_mut(&self) -> Option<RwLockWriteGuard<'_, Digests>> {
        self.digests.as_ref().map(|digests| digests.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a page of records was when last written; [`NEVER_WRITTEN`] where nobody knows.
    fn stored_digest(&self, at: ByteOffset) -> Digest {
        let place = self.layout.digest_of(at);
        self.digests().map_or(NEVER_WRITTEN, |digests| digests.stored.get(place.page, place.nth))
    }

    /// Whether nothing was in this page before what the log now has for it: whatever the device has there, which may be what
    /// somebody else left on it, or a write that a cut tore, it is zeros with the log's records.
    fn is_blank(&self, at: ByteOffset) -> bool {
        let place = self.layout.digest_of(at);
        self.digests().is_some_and(|digests| {
            let before = match digests.planned.get(&at.0) {
                // The digest on the device may be what the page was about to become.
                Some(planned) => planned.before,
                None => digests.stored.get(place.page, place.nth),
            };
            digests.reliable && before == NEVER_WRITTEN
        })
    }

    /// Whether this is what was last written to the page, as far as that is known. What a checkpoint was changing when power
    /// failed, or is changing now, may be old, new or torn: with the log's records in it, it is new.
    fn is_right(&self, at: ByteOffset, page: &mut [u8; SECTOR_BYTES]) -> bool {
        let place = self.layout.digest_of(at);
        let expected = |digests: &Digests| {
            let stored = digests.stored.get(place.page, place.nth);
            let planned = digests.planned.get(&at.0);
            // What it was, should its digest have become the new one before the page did.
            let planned = [planned.map(|planned| planned.after), planned.map(|planned| planned.before)];
            (digests.reliable, [Some(stored), planned[0], planned[1]])
        };
        let Some((true, expected)) = self.digests().map(|digests| expected(&digests)) else { return true };
        if expected.contains(&Some(digest_of(page))) {
            return true;
        }
        let [first, last] =
            self.layout.sectors_of_record_page(at).map(|(extent, sector)| SectorId { extent, sector });
        let mut with_log = *page;
        for (of, record) in self.newer().range(first..=last) {
            let place = self.layout.record_in_page(of.extent, of.sector);
            encode_record(self.pool, *of, record, &mut with_log[place]);
        }
        let right = expected.contains(&Some(digest_of(&with_log)));
        if right {
            *page = with_log;
        }
        right
    }

    /// Takes in what has become durable in the log.
    pub(crate) fn logged(&self, of: SectorId, record: SectorRecord) {
        self.newer_mut().insert(of, record);
    }

    /// Records that wait for a checkpoint.
    pub(crate) fn waiting(&self) -> usize {
        self.newer().len()
    }

    /// Writes the records that the log holds to their pages, neighbours in one transfer, many transfers at once. They count as
    /// long as the log does.
    ///
    /// A page that cannot be read, or is not what was last written, is not written, for what else it holds would be gone, or
    /// would be taken for true: its records are left to the caller. `plan` makes durable what is about to change.
    pub(crate) fn write_pages(
        &self,
        plan: &mut dyn FnMut(&Plan) -> Result<(), PoolError>,
    ) -> Result<Written, PoolError> {
        let newer: Vec<(SectorId, SectorRecord)> =
            self.newer().iter().map(|(of, record)| (*of, *record)).collect();
        let page_of = |(of, _): &(SectorId, SectorRecord)| self.layout.record_page_at(of.extent, of.sector).0;
        let mut runs: Vec<PageRun<'_>> = Vec::new();
        for neighbours in newer.chunk_by(|a, b| page_of(b) - page_of(a) <= SECTOR) {
            let first = neighbours.first().map_or(0, page_of);
            let in_transfer =
                |change: &(SectorId, SectorRecord)| (page_of(change) - first) / SECTOR / PAGES_PER_TRANSFER;
            runs.extend(neighbours.chunk_by(|a, b| in_transfer(a) == in_transfer(b)).filter_map(|changes| {
                let (at, last) = (page_of(changes.first()?), page_of(changes.last()?));
                Some(PageRun { at, pages: (last - at) / SECTOR + 1, changes })
            }));
        }
        let mut written = Written::default();
        let mut rest = &runs[..];
        while !rest.is_empty() {
            let mut pages = 0;
            let fits = |run: &&PageRun<'_>| {
                pages += run.pages;
                pages <= PAGES_AT_ONCE
            };
            let (together, after) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            self.write_runs(together, &mut written, plan)?;
            rest = after;
        }
        Ok(written)
    }

    fn write_runs(
        &self,
        runs: &[PageRun<'_>],
        written: &mut Written,
        plan: &mut dyn FnMut(&Plan) -> Result<(), PoolError>,
    ) -> Result<(), PoolError> {
        let mut parts = Vec::with_capacity(runs.len());
        let mut changes = Vec::new();
        for (run, mut buf) in self.read_runs(runs, written)? {
            for (of, record) in run.changes {
                let page = self.layout.record_page_at(of.extent, of.sector).0 - run.at;
                let page = usize::try_from(page).unwrap_or(usize::MAX);
                let place = self.layout.record_in_page(of.extent, of.sector);
                encode_record(
                    self.pool,
                    *of,
                    record,
                    &mut buf.as_mut_bytes()[page + place.start..page + place.end],
                );
            }
            for (at, page) in run.pages().zip(buf.as_bytes().as_chunks::<SECTOR_BYTES>().0) {
                let cached = self.pages.contains_key(&at.0).then(|| Arc::new(*page));
                if self.layout.has_digests() {
                    let planned = Planned { before: self.stored_digest(at), after: digest_of(page) };
                    changes.push((at, planned));
                }
                let digest = changes.last().map_or(NEVER_WRITTEN, |(_, planned)| planned.after);
                written.pages.push(WrittenPage { at, digest, cached });
            }
            parts.push((ByteOffset(run.at), Metadata::from_encoding(buf)));
        }
        if !changes.is_empty() {
            plan(&changes)?;
        }
        if let Some(mut digests) = self.digests_mut() {
            for (at, planned) in &changes {
                // A checkpoint that is done again goes from what was there before the first.
                digests.planned.entry(at.0).or_insert(*planned).after = planned.after;
            }
        }
        Ok(self.device.write_metadata_many(&parts)?)
    }

    /// Reads runs together; where a page of them cannot be used, one by one, and its run page by page.
    fn read_runs<'a>(
        &self,
        runs: &[PageRun<'a>],
        written: &mut Written,
    ) -> Result<Vec<(PageRun<'a>, SectorBuf)>, PoolError> {
        let error = match self.read_together(runs) {
            Ok(bufs) => return Ok(runs.iter().copied().zip(bufs).collect()),
            Err(PoolError::Device(error)) if error.kind() != DeviceErrorKind::Io => return Err(error.into()),
            Err(error) => error,
        };
        let one_by_one: Vec<PageRun<'a>> = match runs {
            [run] if run.pages == 1 => {
                tracing::error!(
                    pool = %self.pool, %error, records = run.changes.len(),
                    "a page of sector records cannot be used; its newest records stay in the log"
                );
                written.left.extend_from_slice(run.changes);
                written.unusable = Some(error);
                return Ok(Vec::new());
            }
            [run] => {
                let page_of =
                    |(of, _): &(SectorId, SectorRecord)| self.layout.record_page_at(of.extent, of.sector).0;
                let pages = run.changes.chunk_by(|a, b| page_of(a) == page_of(b));
                pages
                    .map(|changes| PageRun { at: changes.first().map_or(run.at, page_of), pages: 1, changes })
                    .collect()
            }
            runs => runs.to_vec(),
        };
        let mut usable = Vec::with_capacity(one_by_one.len());
        for run in one_by_one {
            usable.extend(self.read_runs(&[run], written)?);
        }
        Ok(usable)
    }

    /// What is in these pages, all of it right.
    fn read_together(&self, runs: &[PageRun<'_>]) -> Result<Vec<SectorBuf>, PoolError> {
        let mut bufs: Vec<Option<SectorBuf>> = runs.iter().map(|run| self.known(run)).collect();
        let missing = runs.iter().zip(&bufs).filter(|(_, buf)| buf.is_none());
        let missing: Vec<_> = missing.map(|(run, _)| (ByteOffset(run.at), SectorCount(run.pages))).collect();
        let mut read = self.device.read_metadata_many(&missing)?.into_iter().map(Metadata::into_buf);
        for (run, buf) in runs.iter().zip(&mut bufs).filter(|(_, buf)| buf.is_none()) {
            let mut found = read.next().ok_or(PoolError::Interrupted)?;
            for (at, page) in run.pages().zip(found.as_mut_bytes().as_chunks_mut::<SECTOR_BYTES>().0) {
                if self.is_blank(at) {
                    page.fill(0);
                } else if !self.is_right(at, page) {
                    return Err(self.replaced(at));
                }
            }
            *buf = Some(found);
        }
        bufs.into_iter().map(|buf| buf.ok_or(PoolError::Interrupted)).collect()
    }

    /// Whether the digests are what was last written, so that what has another is not.
    pub(crate) fn digests_are_reliable(&self) -> bool {
        self.digests().is_some_and(|digests| digests.reliable)
    }

    /// The digests that change with what was written, by their page.
    pub(crate) fn digest_changes(&self, written: &Written) -> BTreeMap<u64, Vec<(usize, Digest)>> {
        let mut changes: BTreeMap<u64, Vec<(usize, Digest)>> = BTreeMap::new();
        if self.layout.has_digests() {
            for page in &written.pages {
                let place = self.layout.digest_of(page.at);
                changes.entry(place.page).or_default().push((place.nth, page.digest));
            }
        }
        changes
    }

    /// A page of digests as it stands on the device, with changes.
    pub(crate) fn copy_digest_page(&self, page: u64, changes: &[(usize, Digest)], out: &mut [u8]) {
        if let Some(digests) = self.digests() {
            digests.stored.copy_page(page, out);
        }
        let slots = out.as_chunks_mut::<DIGEST_BYTES>().0;
        changes.iter().for_each(|(nth, digest)| slots[*nth] = *digest);
    }

    /// The pages of a run where none of them needs to be read.
    fn known(&self, run: &PageRun<'_>) -> Option<SectorBuf> {
        let mut buf = SectorBuf::zeroed(SectorCount(run.pages));
        for (at, bytes) in run.pages().zip(buf.as_mut_bytes().chunks_exact_mut(SECTOR_BYTES)) {
            match self.pages.peek(&at.0) {
                Some(page) => bytes.copy_from_slice(&page[..]),
                None if self.is_blank(at) => {}
                None => return None,
            }
        }
        Some(buf)
    }

    /// The pages whose records were left.
    pub(crate) fn pages_left(&self, written: &Written) -> BTreeSet<ByteOffset> {
        written.left.iter().map(|(of, _)| self.layout.record_page_at(of.extent, of.sector)).collect()
    }

    /// The superblock starts the log behind every record that `write_pages` wrote, and the log has those that it left.
    pub(crate) fn end_checkpoint(&self, written: Written) {
        let left = self.pages_left(&written);
        let mut newer = self.newer_mut();
        if let Some(mut digests) = self.digests_mut() {
            digests.planned.retain(|at, _| left.contains(&ByteOffset(*at)));
            for page in &written.pages {
                let place = self.layout.digest_of(page.at);
                digests.stored.set(place.page, place.nth, page.digest);
            }
        }
        for WrittenPage { at, cached, .. } in written.pages {
            match cached {
                Some(page) => self.pages.insert(at.0, page),
                // Somebody may have read it since, as it was before.
                None => drop(self.pages.remove(&at.0)),
            }
        }
        *newer = written.left.into_iter().collect();
        self.checkpoints.fetch_add(1, Ordering::AcqRel);
    }
}

/// Pages that were written, and records that were not.
#[derive(Debug, Default)]
#[must_use = "until the checkpoint has ended the cache shows what was before"]
pub(crate) struct Written {
    pages: Vec<WrittenPage>,
    /// Records whose page cannot be used.
    pub(crate) left: Vec<(SectorId, SectorRecord)>,
    /// Why not.
    pub(crate) unusable: Option<PoolError>,
}

#[derive(Debug)]
struct WrittenPage {
    at: ByteOffset,
    digest: Digest,
    /// What is in it, where the cache held it.
    cached: Option<Page>,
}

const _: () = assert!(8 + 4 + 4 + 16 == SECTOR_RECORD_BYTES);
