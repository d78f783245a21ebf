//! Where everything lies on the device. Every offset follows from three things chosen at creation, the extent length, the
//! log length and whether sectors have records; growth changes none of them.
//!
//! ```text
//! 0          superblock, first copy            one sector
//! 64 KiB     superblock, second copy           one sector
//! 1 MiB      volume table                      4096 entries of 256 bytes
//! 2 MiB      log                               a ring of 4 KiB blocks
//! base       group 0: table, digests, extents  base = end of the log, rounded up to an extent
//!            group 1: table, digests, extents  ...
//! ```
//!
//! A group is one extent's worth of table, one of digests, and as many extents as that table has entries for, before each 128
//! of them one extent's worth of their sectors' records. So metadata space is there from the first day and grows with the
//! device, a device grows by whole or partial groups, and where a record lies needs no map.

use units::{ByteLen, ByteOffset, SECTOR_BYTES, SectorCount};

use crate::superblock::Superblock;
use crate::{DEVICE_EXTENTS_MAX, PoolError, VOLUMES_MAX};

/// `SECTOR_BYTES` as the `u64` that offsets are computed in.
pub(crate) const SECTOR: u64 = 4096;
const _: () = assert!(SECTOR == SECTOR_BYTES as u64);

/// The sectors of the two copies of the superblock. Far enough apart that no device tears both in one write.
pub(crate) const SUPERBLOCK_SECTORS: [u64; 2] = [0, 16];

pub(crate) const VOLUME_ENTRY_BYTES: usize = 256;
pub(crate) const VOLUME_ENTRIES_PER_PAGE: u32 = 16;
const _: () = assert!(VOLUME_ENTRIES_PER_PAGE as usize * VOLUME_ENTRY_BYTES == SECTOR_BYTES);
const VOLUME_TABLE_AT: u64 = 1 << 20;
const VOLUME_TABLE_BYTES: u64 = VOLUMES_MAX as u64 * VOLUME_ENTRY_BYTES as u64;

const LOG_AT: u64 = 2 << 20;
const _: () = assert!(VOLUME_TABLE_AT + VOLUME_TABLE_BYTES <= LOG_AT);
const _: () = assert!(SUPERBLOCK_SECTORS[1] * SECTOR < VOLUME_TABLE_AT);

/// A sector's record on the device.
pub(crate) const SECTOR_RECORD_BYTES: usize = 32;
pub(crate) const SECTOR_RECORDS_PER_PAGE: u32 = 128;
const _: () = assert!(SECTOR_RECORDS_PER_PAGE as usize * SECTOR_RECORD_BYTES == SECTOR_BYTES);
/// Extents whose records fill one extent, whatever its length.
const EXTENTS_PER_RECORD_EXTENT: u64 = (SECTOR_BYTES / SECTOR_RECORD_BYTES) as u64;

/// An extent entry without its presence bitmap: checksum, epoch, branch, place.
pub(crate) const EXTENT_ENTRY_HEADER_BYTES: usize = 24;

const EXTENT_BYTES_MIN: u64 = 64 << 10;
const EXTENT_BYTES_MAX: u64 = 64 << 20;
const LOG_BYTES_MIN: u64 = 64 << 10;
const LOG_BYTES_MAX: u64 = 256 << 20;
/// A log of 1/64 of the device up to 64 MiB: it carries overwritten sectors whole, and every lap of it is a checkpoint. Short
/// enough to be read at opening in a fraction of a second.
const LOG_BYTES_DEFAULT_MAX: u64 = 64 << 20;
const LOG_SHARE: u64 = 64;

/// Pages moved in one transfer when tables are read or written.
pub(crate) const PAGES_PER_TRANSFER: u64 = 256;

/// A digest of a page of records on the device.
pub(crate) const DIGEST_BYTES: usize = 16;
pub(crate) const DIGESTS_PER_PAGE: u64 = 256;
/// The same as a length.
pub(crate) const DIGESTS_IN_PAGE: usize = SECTOR_BYTES / DIGEST_BYTES;
const _: () = assert!(DIGESTS_IN_PAGE as u64 == DIGESTS_PER_PAGE);

/// Whether there is a record beside every sector, and a digest of every page of them. Pools of version 1 and 2 have neither,
/// those of versions 3 and 4 no digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SectorRecords {
    Digested,
    Kept,
    Absent,
}

/// The place of a page of records' digest: the page of digests, counted over the device, and which of its digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DigestPlace {
    pub(crate) page: u64,
    pub(crate) nth: usize,
}

/// What everything follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    extent_bytes: u64,
    log_bytes: u64,
    records: SectorRecords,
}

impl Layout {
    /// A layout with these lengths, if the format allows them.
    pub(crate) fn new(extent: ByteLen, log: ByteLen, records: SectorRecords) -> Result<Self, PoolError> {
        if !extent.0.is_power_of_two() || !(EXTENT_BYTES_MIN..=EXTENT_BYTES_MAX).contains(&extent.0) {
            return Err(PoolError::ExtentLen(extent));
        }
        if !log.is_sector_aligned() || !(LOG_BYTES_MIN..=LOG_BYTES_MAX).contains(&log.0) {
            return Err(PoolError::LogLen(log));
        }
        Ok(Self { extent_bytes: extent.0, log_bytes: log.0, records })
    }

    pub(crate) fn has_records(self) -> bool {
        self.records != SectorRecords::Absent
    }

    /// Whether pages of records have digests, and the pool a state that can be told from an older one.
    pub(crate) fn has_digests(self) -> bool {
        self.records == SectorRecords::Digested
    }

    /// The log length for a device where none was asked for.
    pub(crate) fn default_log_len(device: ByteLen) -> ByteLen {
        let share = (device.0 / LOG_SHARE).clamp(LOG_BYTES_MIN, LOG_BYTES_DEFAULT_MAX);
        ByteLen(share - share % SECTOR)
    }

    pub(crate) fn extent_len(self) -> ByteLen {
        ByteLen(self.extent_bytes)
    }

    pub(crate) fn log_len(self) -> ByteLen {
        ByteLen(self.log_bytes)
    }

    pub(crate) fn log_blocks(self) -> u64 {
        self.log_bytes / SECTOR
    }

    /// Blocks of the log that no commit takes: for records that a checkpoint cannot put to their page.
    pub(crate) fn log_reserve_blocks(self) -> u64 {
        self.log_blocks() / 8
    }

    /// Where the block with this sequence number lies.
    pub(crate) fn log_block_at(self, sequence: u64) -> ByteOffset {
        ByteOffset(LOG_AT + sequence % self.log_blocks() * SECTOR)
    }

    /// Sectors in an extent: 16 to 16384.
    pub(crate) fn extent_sectors(self) -> u32 {
        // At most 64 MiB / 4 KiB.
        u32::try_from(self.extent_bytes / SECTOR).unwrap_or(u32::MAX)
    }

    /// Bytes of a presence bitmap: one bit a sector.
    pub(crate) fn bitmap_bytes(self) -> usize {
        self.extent_sectors() as usize / 8
    }

    /// Bytes of an entry of the extent table: a power of two, so that none crosses a page.
    pub(crate) fn extent_entry_bytes(self) -> usize {
        (EXTENT_ENTRY_HEADER_BYTES + self.bitmap_bytes()).next_power_of_two()
    }

    pub(crate) fn extent_entries_per_page(self) -> u32 {
        u32::try_from(SECTOR_BYTES / self.extent_entry_bytes()).unwrap_or(1)
    }

    fn extents_per_group(self) -> u64 {
        self.extent_bytes / self.extent_entry_bytes() as u64
    }

    fn table_pages_per_group(self) -> u64 {
        self.extent_bytes / SECTOR
    }

    fn base(self) -> u64 {
        (LOG_AT + self.log_bytes).next_multiple_of(self.extent_bytes)
    }

    /// Extents' worth of space in front of a group's extents and their records: the table, and the digests.
    fn slots_in_front(self) -> u64 {
        if self.has_digests() { 2 } else { 1 }
    }

    /// Extents' worth of space before `extents` of a group, the table, digests and the records before them included.
    fn slots_before(self, extents: u64) -> u64 {
        let records = if self.has_records() { extents / EXTENTS_PER_RECORD_EXTENT + 1 } else { 0 };
        self.slots_in_front() + extents + records
    }

    fn slots_per_group(self) -> u64 {
        // Behind the last extent come no more records.
        self.slots_before(self.extents_per_group() - 1) + 1
    }

    fn group_at(self, group: u64) -> u64 {
        self.base() + group * self.slots_per_group() * self.extent_bytes
    }

    /// The group of an extent, and which of its extents it is.
    fn in_group(self, extent: u32) -> (u64, u64) {
        (u64::from(extent) / self.extents_per_group(), u64::from(extent) % self.extents_per_group())
    }

    /// Extents on a device of this length.
    pub(crate) fn extents_on(self, device: ByteLen) -> Result<u32, PoolError> {
        let slots = device.0.saturating_sub(self.base()) / self.extent_bytes;
        let behind_front = (slots % self.slots_per_group()).saturating_sub(self.slots_in_front());
        let partial = if self.has_records() {
            let run = 1 + EXTENTS_PER_RECORD_EXTENT;
            behind_front / run * EXTENTS_PER_RECORD_EXTENT + (behind_front % run).saturating_sub(1)
        } else {
            behind_front
        };
        let extents = slots / self.slots_per_group() * self.extents_per_group() + partial;
        match u32::try_from(extents) {
            Ok(extents) if extents <= DEVICE_EXTENTS_MAX => Ok(extents),
            _ => Err(PoolError::TooManyExtents { extent: self.extent_len() }),
        }
    }

    /// The shortest device that holds one extent.
    pub(crate) fn device_len_min(self) -> ByteLen {
        ByteLen(self.base() + (self.slots_before(0) + 1) * self.extent_bytes)
    }

    /// Where sector `sector` of an extent lies.
    pub(crate) fn sector_at(self, extent: u32, sector: u32) -> ByteOffset {
        let (group, nth) = self.in_group(extent);
        let extent_at = self.group_at(group) + self.slots_before(nth) * self.extent_bytes;
        ByteOffset(extent_at + u64::from(sector) * SECTOR)
    }

    /// Which sector of which of the first `extents` extents lies there, if any does.
    pub(crate) fn sector_of(self, at: ByteOffset, extents: u32) -> Option<(u32, u32)> {
        let (mut low, mut high) = (0, extents);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.sector_at(middle, 0) <= at {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        let extent = low.checked_sub(1)?;
        let behind = at.0 - self.sector_at(extent, 0).0;
        let sector = u32::try_from(behind / SECTOR).ok()?;
        (behind.is_multiple_of(SECTOR) && sector < self.extent_sectors()).then_some((extent, sector))
    }

    /// Where the page of records lies that has the one of this sector. Of the sectors before it in its extent it has those of
    /// `sector - sector % 128`, or of the extents before it where an extent has fewer.
    pub(crate) fn record_page_at(self, extent: u32, sector: u32) -> ByteOffset {
        ByteOffset(self.record_at(extent, sector) / SECTOR * SECTOR)
    }

    /// Where in that page it stands.
    pub(crate) fn record_in_page(self, extent: u32, sector: u32) -> std::ops::Range<usize> {
        let at = usize::try_from(self.record_at(extent, sector) % SECTOR).unwrap_or(0);
        at..at + SECTOR_RECORD_BYTES
    }

    fn record_at(self, extent: u32, sector: u32) -> u64 {
        debug_assert!(self.has_records());
        let (group, nth) = self.in_group(extent);
        let (run, in_run) = (nth / EXTENTS_PER_RECORD_EXTENT, nth % EXTENTS_PER_RECORD_EXTENT);
        let records_at = self.records_at(group, run);
        let record = in_run * u64::from(self.extent_sectors()) + u64::from(sector);
        records_at + record * SECTOR_RECORD_BYTES as u64
    }

    /// Where the records of a run of extents lie.
    fn records_at(self, group: u64, run: u64) -> u64 {
        let slots = self.slots_in_front() + run * (1 + EXTENTS_PER_RECORD_EXTENT);
        self.group_at(group) + slots * self.extent_bytes
    }

    /// Of a page of records: its group, the run, and which of the run's pages it is.
    fn record_page(self, at: ByteOffset) -> (u64, u64, u64) {
        let group_bytes = self.slots_per_group() * self.extent_bytes;
        let behind_base = at.0 - self.base();
        let (group, in_group) = (behind_base / group_bytes, behind_base % group_bytes);
        let behind_front = in_group - self.slots_in_front() * self.extent_bytes;
        let run = behind_front / ((1 + EXTENTS_PER_RECORD_EXTENT) * self.extent_bytes);
        (group, run, (at.0 - self.records_at(group, run)) / SECTOR)
    }

    /// Whether a page of records lies there.
    pub(crate) fn is_record_page(self, at: ByteOffset) -> bool {
        let Some(behind_base) = at.0.checked_sub(self.base()) else { return false };
        let slot = behind_base / self.extent_bytes % self.slots_per_group();
        let behind_front = slot.checked_sub(self.slots_in_front());
        self.has_records()
            && behind_front.is_some_and(|slot| slot.is_multiple_of(1 + EXTENTS_PER_RECORD_EXTENT))
    }

    /// The first and the last sector whose record is in a page of records.
    pub(crate) fn sectors_of_record_page(self, at: ByteOffset) -> [(u32, u32); 2] {
        let (group, run, page) = self.record_page(at);
        let extent = group * self.extents_per_group() + run * EXTENTS_PER_RECORD_EXTENT;
        let first = page * u64::from(SECTOR_RECORDS_PER_PAGE);
        [first, first + u64::from(SECTOR_RECORDS_PER_PAGE) - 1].map(|nth| {
            let sectors = u64::from(self.extent_sectors());
            let (extent, sector) = (extent + nth / sectors, nth % sectors);
            // A device has fewer than 2^28 extents, an extent fewer than 2^15 sectors.
            (u32::try_from(extent).unwrap_or(u32::MAX), u32::try_from(sector).unwrap_or(u32::MAX))
        })
    }

    /// Where the digest of a page of records stands.
    pub(crate) fn digest_of(self, at: ByteOffset) -> DigestPlace {
        let (group, run, page) = self.record_page(at);
        let in_group = run * (self.extent_bytes / SECTOR) + page;
        let (page, nth) = (in_group / DIGESTS_PER_PAGE, in_group % DIGESTS_PER_PAGE);
        DigestPlace {
            page: group * self.digest_pages_per_group() + page,
            nth: usize::try_from(nth).unwrap_or(usize::MAX),
        }
    }

    fn digest_pages_per_group(self) -> u64 {
        let pages = self.extents_per_group() / EXTENTS_PER_RECORD_EXTENT * (self.extent_bytes / SECTOR);
        pages.div_ceil(DIGESTS_PER_PAGE)
    }

    /// Pages of digests that a device with so many extents can have.
    pub(crate) fn digest_pages_max(self, extents: u32) -> u64 {
        if !self.has_digests() {
            return 0;
        }
        u64::from(extents).div_ceil(self.extents_per_group()) * self.digest_pages_per_group()
    }

    /// Where page `page` of the digests lies.
    pub(crate) fn digest_page_at(self, page: u64) -> ByteOffset {
        let (group, in_group) = (page / self.digest_pages_per_group(), page % self.digest_pages_per_group());
        ByteOffset(self.group_at(group) + self.extent_bytes + in_group * SECTOR)
    }

    /// How many pages of digests from `page` on, at most `wanted`, lie one after another.
    pub(crate) fn contiguous_digest_pages(self, page: u64, wanted: u64) -> u64 {
        let of_group = self.digest_pages_per_group();
        wanted.min(of_group - page % of_group).min(PAGES_PER_TRANSFER)
    }

    /// The records of one extent, whole pages: what is reserved for them on a sparse file.
    pub(crate) fn records_of(self, extent: u32) -> (ByteOffset, ByteLen) {
        let first = self.record_page_at(extent, 0);
        let last = self.record_page_at(extent, self.extent_sectors() - 1);
        (first, ByteLen(last.0 + SECTOR - first.0))
    }

    /// Where page `page` of the extent table lies.
    pub(crate) fn extent_page_at(self, page: u64) -> ByteOffset {
        let (group, in_group) = (page / self.table_pages_per_group(), page % self.table_pages_per_group());
        ByteOffset(self.group_at(group) + in_group * SECTOR)
    }

    /// How many pages of the extent or hole table from `page` on, at most `wanted`, lie one after another.
    pub(crate) fn contiguous_pages(self, page: u64, wanted: u64) -> u64 {
        wanted.min(self.table_pages_per_group() - page % self.table_pages_per_group()).min(PAGES_PER_TRANSFER)
    }

    /// Entries that an extent of the hole table has room for.
    pub(crate) fn hole_entries_per_chunk(self) -> u32 {
        // At most 64 MiB / 4096 B, or 64 KiB / 32 B.
        u32::try_from(self.extents_per_group()).unwrap_or(u32::MAX)
    }

    pub(crate) fn hole_pages_per_chunk(self) -> u64 {
        self.table_pages_per_group()
    }

    /// Where page `page` of the hole table lies, whose chunks are these extents.
    pub(crate) fn hole_page_at(self, chunks: &[u32], page: u64) -> Option<ByteOffset> {
        let (chunk, in_chunk) = (page / self.hole_pages_per_chunk(), page % self.hole_pages_per_chunk());
        let extent = *chunks.get(usize::try_from(chunk).ok()?)?;
        Some(ByteOffset(self.sector_at(extent, 0).0 + in_chunk * SECTOR))
    }

    /// Where page `page` of the volume table lies.
    pub(crate) fn volume_page_at(self, page: u64) -> ByteOffset {
        ByteOffset(VOLUME_TABLE_AT + page * SECTOR)
    }

    pub(crate) fn volume_pages_max() -> u64 {
        VOLUME_TABLE_BYTES / SECTOR
    }

    /// The parts of a device of this length that hold metadata, but for the superblock: what is reserved on a sparse
    /// file, so that the log and the tables never lack space.
    pub(crate) fn metadata_ranges(self, device: ByteLen) -> impl Iterator<Item = (ByteOffset, ByteLen)> {
        let front = (ByteOffset(VOLUME_TABLE_AT), ByteLen(LOG_AT + self.log_bytes - VOLUME_TABLE_AT));
        let in_front = self.slots_in_front() * self.extent_bytes;
        let groups = (0..)
            .map(move |group| self.group_at(group))
            .take_while(move |at| at + in_front <= device.0)
            .map(move |at| (ByteOffset(at), ByteLen(in_front)));
        std::iter::once(front).chain(groups)
    }

    /// Of them, those that a device is copied with before its extents: all but the log.
    pub(crate) fn fronts(self, device: ByteLen) -> impl Iterator<Item = (ByteOffset, ByteLen)> {
        let volumes = (ByteOffset(VOLUME_TABLE_AT), ByteLen(VOLUME_TABLE_BYTES));
        std::iter::once(volumes).chain(self.metadata_ranges(device).skip(1))
    }

    /// Whether a page of them has been written, so that it is read.
    pub(crate) fn is_written_front(self, at: ByteOffset, superblock: &Superblock) -> bool {
        let Some(behind_base) = at.0.checked_sub(self.base()) else {
            return at.0.saturating_sub(VOLUME_TABLE_AT) / SECTOR < superblock.volume_pages;
        };
        let group_bytes = self.slots_per_group() * self.extent_bytes;
        let (group, in_group) = (behind_base / group_bytes, behind_base % group_bytes);
        let page = in_group % self.extent_bytes / SECTOR;
        match in_group / self.extent_bytes {
            0 => group * self.table_pages_per_group() + page < superblock.extent_pages,
            _ => {
                let of_group = self.digest_pages_per_group();
                page < of_group && group * of_group + page < superblock.digest_pages
            }
        }
    }

    /// The extents that a volume of this size spans.
    pub(crate) fn extents_spanned(self, sectors: SectorCount) -> u64 {
        sectors.0.div_ceil(u64::from(self.extent_sectors()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layouts() -> impl Iterator<Item = Layout> {
        (16..=26).flat_map(|shift| {
            [SectorRecords::Digested, SectorRecords::Kept, SectorRecords::Absent]
                .map(|records| Layout::new(ByteLen(1 << shift), ByteLen(64 << 10), records).unwrap())
        })
    }

    #[test]
    fn every_sector_has_a_record_of_its_own_in_front_of_its_run_of_extents() {
        for layout in layouts().filter(|layout| layout.has_records()) {
            let per_group = u32::try_from(layout.extents_per_group()).unwrap();
            let last = layout.extent_sectors() - 1;
            for extent in [0, 1, 126, 127, 128, 129, per_group - 1, per_group, per_group + 128] {
                let run_first = extent - extent % per_group % 128;
                let records = layout.sector_at(run_first, 0).0 - layout.extent_bytes;
                for sector in [0, 1, last] {
                    let at = layout.record_at(extent, sector);
                    assert!((records..records + layout.extent_bytes).contains(&at), "{extent} {sector}");
                    let in_page = layout.record_in_page(extent, sector);
                    assert_eq!(layout.record_page_at(extent, sector).0 + in_page.start as u64, at);
                }
                assert_eq!(
                    layout.record_at(extent, last) + 32,
                    layout.record_at(extent, 0) + u64::from(last + 1) * 32
                );
                if extent % per_group % 128 != 127 {
                    assert_eq!(layout.record_at(extent, last) + 32, layout.record_at(extent + 1, 0));
                }
                let (at, len) = layout.records_of(extent);
                assert!(at.0 >= records && at.0 + len.0 <= records + layout.extent_bytes);
            }
        }
    }

    #[test]
    fn what_lies_at_an_offset_is_a_sector_of_an_extent_or_none() {
        for layout in layouts() {
            let per_group = u32::try_from(layout.extents_per_group()).unwrap();
            let extents = per_group + 200;
            let last = layout.extent_sectors() - 1;
            for extent in [0, 1, 127, 128, per_group - 1, per_group, extents - 1] {
                for sector in [0, 1, last] {
                    let at = layout.sector_at(extent, sector);
                    assert_eq!(layout.sector_of(at, extents), Some((extent, sector)));
                    assert_eq!(layout.sector_of(ByteOffset(at.0 + 1), extents), None);
                }
            }
            let behind = ByteOffset(layout.sector_at(extents - 1, last).0 + SECTOR);
            assert_eq!(layout.sector_of(behind, extents), None);
            assert_eq!(layout.sector_of(ByteOffset(0), extents), None);
            if layout.has_records() {
                assert_eq!(layout.sector_of(layout.record_page_at(0, 0), extents), None);
                assert_eq!(layout.sector_of(layout.record_page_at(200, 0), extents), None);
            }
        }
    }

    #[test]
    fn every_page_of_records_has_a_digest_of_its_own_in_front_of_its_group() {
        for layout in layouts().filter(|layout| layout.has_digests()) {
            let per_group = u32::try_from(layout.extents_per_group()).unwrap();
            let last_sector = layout.extent_sectors() - 1;
            let mut places = std::collections::BTreeMap::new();
            for extent in [0, 1, 7, 8, 127, 128, per_group - 1, per_group, per_group + 128, 3 * per_group - 1]
            {
                for sector in [0, last_sector / 2, last_sector] {
                    let page = layout.record_page_at(extent, sector);
                    assert!(layout.is_record_page(page));
                    assert!(!layout.is_record_page(layout.sector_at(extent, sector)));
                    let [first, last] = layout.sectors_of_record_page(page);
                    assert!((first..=last).contains(&(extent, sector)), "{extent} {sector}");
                    assert_eq!(layout.record_page_at(first.0, first.1), page);
                    assert_eq!(layout.record_page_at(last.0, last.1), page);
                    let place = layout.digest_of(page);
                    assert_eq!(*places.entry(place).or_insert(page), page, "{extent} {sector}");
                    let digests = layout.digest_page_at(place.page).0;
                    let group = layout.group_at(u64::from(extent / per_group));
                    assert!(
                        (group + layout.extent_bytes..group + 2 * layout.extent_bytes).contains(&digests)
                    );
                }
            }
            let device = ByteLen(layout.group_at(3));
            let pages = layout.digest_pages_max(layout.extents_on(device).unwrap());
            assert_eq!(
                pages,
                layout.digest_of(layout.record_page_at(3 * per_group - 1, last_sector)).page + 1
            );
            assert_eq!(
                layout.contiguous_digest_pages(0, u64::MAX),
                pages.div_ceil(3).min(PAGES_PER_TRANSFER)
            );
        }
    }

    #[test]
    fn nothing_overlaps_and_everything_is_aligned() {
        for layout in layouts() {
            let per_group = u32::try_from(layout.extents_per_group()).unwrap();
            for extent in [0, 1, per_group - 1, per_group, per_group + 1, 3 * per_group] {
                let at = layout.sector_at(extent, 0).0;
                assert_eq!(at % layout.extent_bytes, 0);
                let table_of_group = layout.group_at(u64::from(extent / per_group));
                assert!(at >= table_of_group + layout.extent_bytes);
                assert!(
                    at + layout.extent_bytes <= layout.group_at(u64::from(extent / per_group) + 1),
                    "an extent stays in its group"
                );
                let page = u64::from(extent / layout.extent_entries_per_page());
                let page_at = layout.extent_page_at(page).0;
                assert!((table_of_group..table_of_group + layout.extent_bytes).contains(&page_at));
            }
            assert!(LOG_AT + layout.log_bytes <= layout.extent_page_at(0).0);
        }
    }

    #[test]
    fn the_last_extent_ends_inside_the_device_and_one_more_would_not() {
        for layout in layouts() {
            let group = layout.slots_per_group() * layout.extent_bytes;
            let least = layout.device_len_min().0;
            for len in
                [least, least + layout.extent_bytes, least + group, least + group - layout.extent_bytes]
            {
                let extents = layout.extents_on(ByteLen(len)).unwrap();
                let end = |extent: u32| layout.sector_at(extent, 0).0 + layout.extent_bytes;
                assert!(end(extents - 1) <= len && end(extents) > len);
                assert!(layout.extents_on(ByteLen(len - 4096)).unwrap() <= extents);
            }
            assert_eq!(layout.extents_on(ByteLen(least - 4096)).unwrap(), 0);
        }
    }

    #[test]
    fn lengths_at_the_limits_are_taken_and_one_past_refused() {
        let log = ByteLen(64 << 10);
        let with = |extent, log| Layout::new(ByteLen(extent), log, SectorRecords::Kept);
        for extent in [64 << 10, 64 << 20] {
            assert!(with(extent, log).is_ok());
        }
        for extent in [0, 32 << 10, 128 << 20, (1 << 20) + 4096] {
            assert!(matches!(with(extent, log), Err(PoolError::ExtentLen(_))));
        }
        for (bytes, good) in [(64 << 10, true), (256 << 20, true), (60 << 10, false), ((64 << 10) + 1, false)]
        {
            assert_eq!(with(1 << 20, ByteLen(bytes)).is_ok(), good);
        }
        let small = with(64 << 10, log).unwrap();
        assert!(matches!(small.extents_on(ByteLen(1 << 50)), Err(PoolError::TooManyExtents { .. })));
    }

    #[test]
    fn a_mebibyte_extent_costs_64_bytes_of_table_and_two_pages_of_records() {
        let layout = |records| Layout::new(ByteLen(1 << 20), ByteLen(16 << 20), records).unwrap();
        assert_eq!(layout(SectorRecords::Kept).extent_entry_bytes(), 64);
        assert_eq!(layout(SectorRecords::Kept).records_of(7).1, ByteLen(8192));
        let extents = |records| layout(records).extents_on(ByteLen(1 << 40)).unwrap();
        assert_eq!(extents(SectorRecords::Absent), (1 << 20) - 18 - 64);
        assert_eq!(extents(SectorRecords::Kept), (1 << 20) - 18 - 64 - 8128);
        assert_eq!(extents(SectorRecords::Digested), (1 << 20) - 18 - 2 * 64 - 8128);
    }
}
