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

use device::{Device, Metadata, SectorBuf, SectorRecord};
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

    /// The records of sectors of an extent that are on the device, or an error where one of them cannot be read.
    pub(crate) fn read(&self, extent: u32, sectors: Range<u32>) -> Result<Vec<SectorRecord>, PoolError> {
        let id = |sector| SectorId { extent, sector };
        let mut found: Vec<Option<SectorRecord>> = {
            let newer = self.newer();
            let mut known = newer.range(id(sectors.start)..id(sectors.end)).peekable();
            let next = |sector| known.next_if(|(of, _)| **of == id(sector)).map(|(_, record)| *record);
            sectors.clone().map(next).collect()
        };
        let mut page: Option<(ByteOffset, Page)> = None;
        for (sector, found) in sectors.zip(&mut found).filter(|(_, found)| found.is_none()) {
            let at = self.layout.record_page_at(extent, sector);
            let bytes = match &page {
                Some((page_at, bytes)) if *page_at == at => bytes,
                _ => &page.insert((at, self.page(at)?)).1,
            };
            let stored = &bytes[self.layout.record_in_page(extent, sector)];
            let record = decode_record(self.pool, id(sector), stored);
            *found = Some(record.ok_or_else(|| PoolError::RecordDamaged {
                device: self.device.info().path,
                at: ByteOffset(at.0 + self.layout.record_in_page(extent, sector).start as u64),
            })?);
        }
        Ok(found.into_iter().flatten().collect())
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

    /// The extent is nobody's from here on.
    pub(crate) fn forget(&self, extent: u32) {
        let mut newer = self.newer_mut();
        let of: Vec<SectorId> = newer.range(SectorId::all_of(extent)).map(|(of, _)| *of).collect();
        for sector in of {
            newer.remove(&sector);
        }
    }

    /// Records that wait for a checkpoint.
    pub(crate) fn waiting(&self) -> usize {
        self.newer().len()
    }

    /// Writes the records that the log holds to their pages, neighbours in one transfer. They count as long as the log does.
    pub(crate) fn write_pages(&self) -> Result<Written, PoolError> {
        let newer: Vec<(SectorId, SectorRecord)> =
            self.newer().iter().map(|(of, record)| (*of, *record)).collect();
        let mut written = Vec::new();
        let page_of = |(of, _): &(SectorId, SectorRecord)| self.layout.record_page_at(of.extent, of.sector).0;
        for run in newer.chunk_by(|a, b| page_of(b) - page_of(a) <= SECTOR) {
            let first = run.first().map_or(0, page_of);
            let last = run.last().map_or(first, page_of);
            for start in
                (first..=last).step_by(usize::try_from(PAGES_PER_TRANSFER * SECTOR).unwrap_or(usize::MAX))
            {
                let end = (last + SECTOR).min(start + PAGES_PER_TRANSFER * SECTOR);
                let changed = run.iter().filter(|change| (start..end).contains(&page_of(change)));
                self.write_run(start..end, changed, &mut written)?;
            }
        }
        Ok(Written(written))
    }

    fn write_run<'a>(
        &self,
        bytes: Range<u64>,
        changed: impl Iterator<Item = &'a (SectorId, SectorRecord)>,
        written: &mut Vec<(u64, Option<Page>)>,
    ) -> Result<(), PoolError> {
        let at = ByteOffset(bytes.start);
        let mut buf: SectorBuf =
            self.device.read_metadata(at, SectorCount((bytes.end - bytes.start) / SECTOR))?.into_buf();
        for (of, record) in changed {
            let page = self.layout.record_page_at(of.extent, of.sector).0 - bytes.start;
            let page = usize::try_from(page).unwrap_or(usize::MAX);
            let place = self.layout.record_in_page(of.extent, of.sector);
            let out = &mut buf.as_mut_bytes()[page + place.start..page + place.end];
            encode_record(self.pool, *of, record, out);
        }
        let pages = buf.as_bytes().as_chunks::<SECTOR_BYTES>().0;
        let with_place = (bytes.start..).step_by(SECTOR_BYTES).zip(pages);
        written
            .extend(with_place.map(|(at, page)| (at, self.pages.contains_key(&at).then(|| Arc::new(*page)))));
        self.device.write_metadata(at, &Metadata::from_encoding(buf))?;
        Ok(())
    }

    /// The superblock starts the log behind every record that `write_pages` wrote.
    pub(crate) fn end_checkpoint(&self, Written(written): Written) {
        let mut newer = self.newer_mut();
        for (at, page) in written {
            match page {
                Some(page) => self.pages.insert(at, page),
                // Somebody may have read it since, as it was before.
                None => drop(self.pages.remove(&at)),
            }
        }
        newer.clear();
        self.checkpoints.fetch_add(1, Ordering::AcqRel);
    }
}

/// Pages that were written, and what is in those that the cache held.
#[derive(Debug)]
#[must_use = "until the checkpoint has ended the cache shows what was before"]
pub(crate) struct Written(Vec<(u64, Option<Page>)>);

const _: () = assert!(8 + 4 + 4 + 16 == SECTOR_RECORD_BYTES);
