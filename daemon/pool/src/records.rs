//! Sector records in an open pool: the pages they lie in, and those that are newer than their page.
//!
//! Invariants:
//! - A record that the log holds and its page may not yet is in `newer`; it moves to its page in a checkpoint, and leaves
//!   `newer` only when the superblock no longer starts the log before it.
//! - A page in the cache is what the device holds: it is put there under the lock that a checkpoint ends under, unless one
//!   ended since it was read.
//! - Nothing here makes a record: what is not found is not there.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use device::{Device, DeviceError, DeviceErrorKind, Metadata, SectorBuf, SectorRecord};
use quick_cache::sync::Cache;
use units::{ByteLen, ByteOffset, PoolId, SECTOR_BYTES, SectorCount};

use crate::PoolError;
use crate::bytes::{Decoder, Encoder};
use crate::layout::{Layout, PAGES_PER_TRANSFER, SECTOR, SECTOR_RECORD_BYTES};

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

/// Pages that are read or written at once: 4 MiB.
const PAGES_AT_ONCE: u64 = 1024;

/// Neighbouring pages, and the records that change in them.
struct PageRun<'a> {
    at: u64,
    pages: u64,
    changes: &'a [(SectorId, SectorRecord)],
}

type Page = Arc<[u8; SECTOR_BYTES]>;

#[derive(Debug)]
pub(crate) struct RecordStore {
    device: Arc<dyn Device>,
    layout: Layout,
    pool: PoolId,
    newer: RwLock<BTreeMap<SectorId, SectorRecord>>,
    pages: Cache<u64, Page>,
    /// Checkpoints that have ended.
    checkpoints: AtomicU64,
}

impl RecordStore {
    pub(crate) fn new(
        device: Arc<dyn Device>,
        (layout, pool): (Layout, PoolId),
        newer: BTreeMap<SectorId, SectorRecord>,
        cache: ByteLen,
    ) -> Self {
        let pages = usize::try_from(cache.0 / SECTOR).unwrap_or(usize::MAX).max(1);
        Self {
            device,
            layout,
            pool,
            newer: RwLock::new(newer),
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
        let bytes = self.device.read_metadata(at, SectorCount(1))?;
        let page: Page = Arc::new(bytes.as_bytes().try_into().map_err(|_| PoolError::Interrupted)?);
        let _no_checkpoint_ends = self.newer();
        if self.checkpoints.load(Ordering::Acquire) == before {
            self.pages.insert(at.0, Arc::clone(&page));
        }
        Ok(page)
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
    /// A page that cannot be read is not written, for what else it holds would be gone: its records are left to the caller.
    pub(crate) fn write_pages(&self) -> Result<Written, PoolError> {
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
            self.write_runs(together, &mut written)?;
            rest = after;
        }
        Ok(written)
    }

    fn write_runs(&self, runs: &[PageRun<'_>], written: &mut Written) -> Result<(), PoolError> {
        let mut bufs: Vec<Option<SectorBuf>> = runs.iter().map(|run| self.cached(run)).collect();
        let missing = runs.iter().zip(&bufs).filter(|(_, buf)| buf.is_none());
        let missing: Vec<_> = missing.map(|(run, _)| (ByteOffset(run.at), SectorCount(run.pages))).collect();
        let mut read = match self.device.read_metadata_many(&missing) {
            Ok(read) => read.into_iter(),
            Err(error) if error.kind() == DeviceErrorKind::Io => return self.part(runs, written, error),
            Err(error) => return Err(error.into()),
        };
        for buf in bufs.iter_mut().filter(|buf| buf.is_none()) {
            *buf = read.next().map(Metadata::into_buf);
        }
        let mut parts = Vec::with_capacity(runs.len());
        for (run, buf) in runs.iter().zip(bufs) {
            let mut buf = buf.ok_or(PoolError::Interrupted)?;
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
            let pages = (run.at..).step_by(SECTOR_BYTES).zip(buf.as_bytes().as_chunks::<SECTOR_BYTES>().0);
            let cached = |at, page| self.pages.contains_key(&at).then(|| Arc::new(page));
            written.pages.extend(pages.map(|(at, page)| (at, cached(at, *page))));
            parts.push((ByteOffset(run.at), Metadata::from_encoding(buf)));
        }
        Ok(self.device.write_metadata_many(&parts)?)
    }

    /// Writes runs that cannot be read together one by one, and a run page by page.
    fn part(&self, runs: &[PageRun<'_>], written: &mut Written, error: DeviceError) -> Result<(), PoolError> {
        let [run] = runs else {
            return runs.iter().try_for_each(|run| self.write_runs(std::slice::from_ref(run), written));
        };
        if run.pages == 1 {
            tracing::error!(
                pool = %self.pool, %error, records = run.changes.len(),
                "a page of sector records cannot be read; its newest records stay in the log"
            );
            written.left.extend_from_slice(run.changes);
            written.unreadable = Some(error);
            return Ok(());
        }
        let page_of = |(of, _): &(SectorId, SectorRecord)| self.layout.record_page_at(of.extent, of.sector).0;
        run.changes.chunk_by(|a, b| page_of(a) == page_of(b)).try_for_each(|changes| {
            let at = changes.first().map_or(run.at, page_of);
            self.write_runs(&[PageRun { at, pages: 1, changes }], written)
        })
    }

    /// The pages of a run where the cache holds all of them.
    fn cached(&self, run: &PageRun<'_>) -> Option<SectorBuf> {
        let mut buf = SectorBuf::zeroed(SectorCount(run.pages));
        for (at, bytes) in
            (run.at..).step_by(SECTOR_BYTES).zip(buf.as_mut_bytes().chunks_exact_mut(SECTOR_BYTES))
        {
            bytes.copy_from_slice(&self.pages.peek(&at)?[..]);
        }
        Some(buf)
    }

    /// The superblock starts the log behind every record that `write_pages` wrote, and the log has those that it left.
    pub(crate) fn end_checkpoint(&self, written: Written) {
        let mut newer = self.newer_mut();
        for (at, page) in written.pages {
            match page {
                Some(page) => self.pages.insert(at, page),
                // Somebody may have read it since, as it was before.
                None => drop(self.pages.remove(&at)),
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
    /// With what is in those that the cache held.
    pages: Vec<(u64, Option<Page>)>,
    /// Records whose page cannot be read.
    pub(crate) left: Vec<(SectorId, SectorRecord)>,
    /// Why not.
    pub(crate) unreadable: Option<DeviceError>,
}

const _: () = assert!(8 + 4 + 4 + 16 == SECTOR_RECORD_BYTES);
