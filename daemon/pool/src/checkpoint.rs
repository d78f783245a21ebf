//! The checkpoint: what the log holds goes to its places and to the tables, and the log starts anew.
//!
//! Pages change in their places, so a cut leaves each old, new or torn. What it becomes is durable in the log before, as a
//! **plan**: with the log's records in it a page is what the plan says, whatever of the three it is. Opening a pool whose log
//! has a plan does the checkpoint again, before anything else is written.

use std::collections::{BTreeMap, BTreeSet};

use device::{Device, Metadata, SectorBuf};
use units::{ByteOffset, SECTOR_BYTES, SectorCount};

use crate::commit::{Core, Writer};
use crate::digest::{Digest, NEVER_WRITTEN, Planned, Root, digest_of};
use crate::entry::{Mapping, VolumeEntry, encode_extent, encode_volume};
use crate::history::Whose;
use crate::layout::{Layout, PAGES_PER_TRANSFER, VOLUME_ENTRIES_PER_PAGE, VOLUME_ENTRY_BYTES};
use crate::load::{Logged, read_pages};
use crate::log::{LogEnd, Packer, Record, plan_blocks};
use crate::records::{PAGES_AT_ONCE, Plan, SectorId, Written};
use crate::superblock::{Superblock, superblock_at};
use crate::{CrashStep, Damage, PoolError};

/// What of a checkpoint the log has already.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    pub(crate) plan: BTreeMap<ByteOffset, Planned>,
    /// The batch behind the plan, where it is the log's last.
    pub(crate) root: Option<BegunRoot>,
}

/// A batch that begins with the tables' root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BegunRoot {
    pub(crate) root: Root,
    /// Where it starts.
    pub(crate) start: LogEnd,
    /// Records in it whose page cannot be used.
    pub(crate) left: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Table {
    Volumes,
    Extents,
    Holes,
    Digests,
    Records,
}

/// Pages that a checkpoint changes.
#[derive(Debug, Default)]
pub(crate) struct Changing(BTreeSet<(Table, u64)>);

impl Changing {
    pub(crate) fn add(&mut self, layout: Layout, record: &Record) {
        match record {
            Record::Volume { slot, .. } => self.add_volume(*slot),
            Record::Extent { index, .. } => self.add_extent(layout, *index),
            Record::Holes { index, .. } => self.add_holes(layout, *index),
            Record::Sector { of, .. } => self.add_sector(layout, *of),
            Record::Plan { .. } | Record::Root(_) | Record::Vouch { .. } => {}
        }
    }

    pub(crate) fn add_volume(&mut self, slot: u32) {
        self.0.insert((Table::Volumes, u64::from(slot / VOLUME_ENTRIES_PER_PAGE)));
    }

    pub(crate) fn add_extent(&mut self, layout: Layout, index: u32) {
        self.0.insert((Table::Extents, u64::from(index / layout.extent_entries_per_page())));
    }

    pub(crate) fn add_holes(&mut self, layout: Layout, index: u32) {
        self.0.insert((Table::Holes, u64::from(index / layout.extent_entries_per_page())));
    }

    pub(crate) fn add_sector(&mut self, layout: Layout, of: SectorId) {
        let page = layout.record_page_at(of.extent, of.sector);
        if self.0.insert((Table::Records, page.0)) && layout.has_digests() {
            self.0.insert((Table::Digests, layout.digest_of(page).page));
        }
    }

    /// What the plan for these and `others` takes of the log, at most.
    pub(crate) fn plan_room(&self, others: &Self, superblock: &Superblock) -> PlanRoom {
        if !superblock.layout.has_digests() || self.0.is_empty() && others.0.is_empty() {
            return PlanRoom::default();
        }
        let last = |table| {
            let of = |pages: &Self| {
                pages.0.range((table, 0)..=(table, u64::MAX)).next_back().map(|(_, page)| *page)
            };
            of(self).max(of(others)).map_or(0, |page| page + 1)
        };
        // Pages of a table that were never written are written with the first behind them.
        let fresh = [
            (Table::Volumes, superblock.volume_pages),
            (Table::Extents, superblock.extent_pages),
            (Table::Holes, superblock.hole_pages),
            (Table::Digests, superblock.digest_pages),
        ];
        let fresh: u64 = fresh.iter().map(|(table, written)| last(*table).saturating_sub(*written)).sum();
        let pages = (self.0.len() + others.0.len()) as u64 + fresh;
        // One for the records, one for the tables, and one for as many pages as come together at least where more follow: each
        // ends with a block that is not full.
        let batches = 2 + pages / (PAGES_AT_ONCE - PAGES_PER_TRANSFER);
        PlanRoom { blocks: plan_blocks(pages) + batches, batches }
    }
}

/// How much of the log a plan takes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PlanRoom {
    /// Without the vouches that each of its batches carries.
    blocks: u64,
    batches: u64,
}

impl PlanRoom {
    /// With so many blocks of vouches in each batch.
    pub(crate) fn blocks(self, vouches: u64) -> u64 {
        self.blocks + self.batches * vouches
    }
}

/// The numbers of the entries in a page.
fn entries_of(page: u64, per_page: u32) -> std::ops::Range<u32> {
    let first = u32::try_from(page).unwrap_or(u32::MAX).saturating_mul(per_page);
    first..first.saturating_add(per_page)
}

impl Logged {
    /// Puts what is logged of a page of the volume table into it.
    pub(crate) fn change_volume_page(
        &self,
        superblock: &Superblock,
        page: u64,
        bytes: &mut [u8],
        fresh: bool,
    ) {
        let entries = bytes.chunks_exact_mut(VOLUME_ENTRY_BYTES);
        for (slot, entry) in entries_of(page, VOLUME_ENTRIES_PER_PAGE).zip(entries) {
            let changed: Option<&VolumeEntry> = self.volumes.get(&slot);
            if fresh || changed.is_some() {
                encode_volume(superblock.pool, slot, changed, entry);
            }
        }
    }
}

/// Puts what is logged of a page of the extent or hole table into it.
pub(crate) fn change_entry_page(
    superblock: &Superblock,
    logged: &BTreeMap<u32, Option<Mapping>>,
    page: u64,
    bytes: &mut [u8],
    fresh: bool,
) {
    let layout = superblock.layout;
    let entries = bytes.chunks_exact_mut(layout.extent_entry_bytes());
    for (index, entry) in entries_of(page, layout.extent_entries_per_page()).zip(entries) {
        let changed = logged.get(&index);
        if fresh || changed.is_some() {
            encode_extent(layout, superblock.pool, index, changed.and_then(Option::as_ref), entry);
        }
    }
}

/// One table in a checkpoint.
struct TableChange<'a> {
    /// Pages before this one hold entries already; the others hold whatever the device held before.
    written: u64,
    /// Pages with changed entries, in ascending order, each perhaps several times.
    changed: Vec<u64>,
    at: &'a dyn Fn(u64) -> ByteOffset,
    /// How many pages from one on, at most so many, lie together.
    contiguous: &'a dyn Fn(u64, u64) -> u64,
    /// Brings a page up to date; whether it is fresh.
    change: &'a dyn Fn(u64, &mut [u8], bool),
}

/// Pages that are about to be written to their places, together.
#[derive(Default)]
struct InPlace {
    parts: Vec<(ByteOffset, Metadata)>,
    plan: Vec<(ByteOffset, Planned)>,
}

impl Core {
    /// Does again what a cut left half done. Before anything else is written.
    pub(crate) fn finish_checkpoint(&self) -> Result<(), PoolError> {
        let mut writer = self.writer()?;
        if writer.begun.plan.is_empty() {
            return Ok(());
        }
        tracing::info!(
            pool = %self.pool, pages = writer.begun.plan.len(),
            "doing a checkpoint again that a power cut interrupted, or that could not use some pages"
        );
        self.checkpoint(&mut writer).map_err(|error| self.fail(error))
    }

    /// Writes what the log holds to its places and to the tables, and starts the log anew. Every record in `logged` is
    /// durable in the log here.
    pub(crate) fn checkpoint(&self, writer: &mut Writer) -> Result<(), PoolError> {
        self.place(u64::MAX)?;
        self.step(CrashStep::TableWrite);
        let mut written = self.records.write_pages(&mut |plan| self.log_plan(writer, plan))?;
        let mut superblock = Superblock { next_sequence: self.next_sequence(), ..writer.superblock };
        self.write_tables(writer, &written, &mut superblock)?;
        self.step(CrashStep::TableFlush);
        self.flush_device(writer)?;
        superblock.root = match self.records.digests_are_reliable() {
            true => writer.tables.root(),
            // What they are of is not known to be what was last written, and is not called so.
            false => Root::UNKNOWN,
        };
        // Only now: it says that what it does not have is in its place.
        let start = self.begin_log(writer, superblock.root, &mut written)?;
        superblock =
            Superblock { log_start: start.next, log_link: start.link, state: start.state, ..superblock };
        self.write_superblock(writer, superblock)?;
        writer.log.forget_before(start);
        writer.logged = Logged::default();
        writer.changing = Changing::default();
        // Once their pages can be used they are to be planned as well.
        written.left.iter().for_each(|(of, _)| writer.changing.add_sector(self.layout, *of));
        writer.left_room = writer.changing.plan_room(&Changing::default(), &writer.superblock);
        writer.begun.root = None;
        let left = self.records.pages_left(&written);
        writer.begun.plan.retain(|page, _| left.contains(page));
        self.records.end_checkpoint(written);
        Ok(())
    }

    /// Steps 17 and 18: what pages become is durable before they change in their places.
    fn log_plan(&self, writer: &mut Writer, plan: &Plan) -> Result<(), PoolError> {
        let mut packer = Packer::new(self.layout, self.pool);
        for (page, planned) in plan {
            let known =
                writer.begun.plan.entry(*page).or_insert(Planned { after: NEVER_WRITTEN, ..*planned });
            if known.after != planned.after {
                known.after = planned.after;
                packer.push(Record::Plan { page: *page, planned: *known });
            }
        }
        if packer.blocks() > 0 {
            self.step(CrashStep::PlanWrite);
            self.write_batch(writer, &mut packer, &Whose::All)?;
            self.step(CrashStep::PlanFlush);
            self.flush_device(writer)?;
            self.history.reached(writer.log.end().state);
        }
        self.step(CrashStep::TableWrite);
        Ok(())
    }

    /// The batch that the log starts with from now on: the root of the tables, and records that a checkpoint could not put to
    /// their page. Where it starts.
    fn begin_log(&self, writer: &mut Writer, root: Root, written: &mut Written) -> Result<LogEnd, PoolError> {
        let mut packer = Packer::new(self.layout, self.pool);
        if self.layout.has_digests() {
            if let Some(begun) = writer.begun.root.filter(|begun| {
                begun.root == root && root != Root::UNKNOWN && begun.left == written.left.len()
            }) {
                return Ok(begun.start);
            }
            packer.push(Record::Root(root));
        }
        // Should such a page be usable again, it may be from before this checkpoint, or of one that a cut interrupted.
        let left = self.records.pages_left(written);
        for (page, planned) in writer.begun.plan.iter().filter(|(page, _)| left.contains(page)) {
            packer.push(Record::Plan { page: *page, planned: *planned });
        }
        for (of, record) in &written.left {
            packer.push(Record::Sector { of: *of, record: *record, ciphertext: None });
        }
        let start = writer.log.end();
        let room = (self.layout.log_reserve_blocks() + 1).min(writer.log.free_blocks());
        if packer.blocks() > room
            && let Some(error) = written.unusable.take()
        {
            return Err(error);
        }
        if packer.blocks() > 0 {
            self.append(writer, &mut packer, &Whose::All)?;
        }
        Ok(start)
    }

    /// Writes both copies, one after the other, under the next generation. What they say of a move stays.
    pub(crate) fn write_superblock(
        &self,
        writer: &mut Writer,
        superblock: Superblock,
    ) -> Result<(), PoolError> {
        let moving = writer.superblock.moving;
        self.write_superblock_as(writer, Superblock { moving, ..superblock })
    }

    /// As [`Self::write_superblock`], also with what is new of a move.
    pub(crate) fn write_superblock_as(
        &self,
        writer: &mut Writer,
        superblock: Superblock,
    ) -> Result<(), PoolError> {
        let superblock = Superblock { generation: writer.superblock.generation + 1, ..superblock };
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

    /// Brings every table up to date, and the digests of the pages of records that were written.
    fn write_tables(
        &self,
        writer: &mut Writer,
        written: &Written,
        superblock: &mut Superblock,
    ) -> Result<(), PoolError> {
        // A failed checkpoint is the end of the pool, so nobody asks for these again.
        let logged = std::mem::take(&mut writer.logged);
        let mut tables = std::mem::take(&mut writer.tables);
        let of = *superblock;
        let mut in_place = InPlace::default();
        let volumes = TableChange {
            written: of.volume_pages,
            changed: logged.volumes.keys().map(|slot| u64::from(slot / VOLUME_ENTRIES_PER_PAGE)).collect(),
            at: &|page| self.layout.volume_page_at(page),
            contiguous: &|_, wanted| wanted.min(PAGES_PER_TRANSFER),
            change: &|page, bytes, fresh| logged.change_volume_page(&of, page, bytes, fresh),
        };
        superblock.volume_pages = self.change_table(writer, volumes, &mut tables.volumes, &mut in_place)?;
        let per_page = self.layout.extent_entries_per_page();
        let pages_of = |logged: &BTreeMap<u32, Option<Mapping>>| {
            logged.keys().map(|index| u64::from(index / per_page)).collect()
        };
        let contiguous = |page, wanted| self.layout.contiguous_pages(page, wanted);
        let extents = TableChange {
            written: of.extent_pages,
            changed: pages_of(&logged.extents),
            at: &|page| self.layout.extent_page_at(page),
            contiguous: &contiguous,
            change: &|page, bytes, fresh| change_entry_page(&of, &logged.extents, page, bytes, fresh),
        };
        superblock.extent_pages = self.change_table(writer, extents, &mut tables.extents, &mut in_place)?;
        let chunks = self.holes.chunks();
        let holes = TableChange {
            written: of.hole_pages,
            changed: pages_of(&logged.holes),
            // A logged entry lies in a page that there is, so this is a page that there is.
            at: &|page| self.layout.hole_page_at(&chunks, page).unwrap_or(ByteOffset(u64::MAX)),
            contiguous: &contiguous,
            change: &|page, bytes, fresh| change_entry_page(&of, &logged.holes, page, bytes, fresh),
        };
        superblock.hole_pages = self.change_table(writer, holes, &mut tables.holes, &mut in_place)?;
        superblock.digest_pages =
            self.change_digests(writer, of.digest_pages, written, &mut tables.digests, &mut in_place)?;
        self.write_in_place(writer, &mut in_place)?;
        writer.tables = tables;
        Ok(())
    }

    /// Takes the changed pages of a table and all that were skipped before them, neighbours in one transfer; how many pages
    /// of it are written now.
    fn change_table(
        &self,
        writer: &mut Writer,
        table: TableChange<'_>,
        digests: &mut Vec<Digest>,
        in_place: &mut InPlace,
    ) -> Result<u64, PoolError> {
        let (pages, now) = pages_to_write(table.changed, table.written);
        let mut rest = &pages[..];
        while let Some(first) = rest.first() {
            let neighbours =
                rest.iter().zip(*first..).take_while(|(page, expected)| **page == *expected).count();
            let count = (table.contiguous)(*first, neighbours as u64);
            let (run, after) = rest.split_at(usize::try_from(count).unwrap_or(rest.len()));
            rest = after;
            let old = table.written.saturating_sub(*first).min(count);
            let at = (table.at)(*first);
            let mut buf = SectorBuf::zeroed(SectorCount(count));
            if old > 0 {
                let bytes = read_pages(&*self.device, at, old)?;
                buf.as_mut_bytes()[..bytes.as_bytes().len()].copy_from_slice(bytes.as_bytes());
            }
            let places = (at.0..).step_by(SECTOR_BYTES).map(ByteOffset);
            for ((page, at), bytes) in
                run.iter().zip(places).zip(buf.as_mut_bytes().chunks_exact_mut(SECTOR_BYTES))
            {
                let fresh = *page >= table.written;
                let found = digest_of(bytes);
                (table.change)(*page, bytes, fresh);
                if !self.layout.has_digests() {
                    continue;
                }
                let planned = plan_page(digests, *page, digest_of(bytes));
                let begun = writer.begun.plan.get(&at).is_some_and(|known| known.after == planned.after);
                if !fresh && !begun && planned.before != found {
                    return Err(PoolError::MetadataDamaged {
                        device: self.device.info().path,
                        what: Damage::Root,
                        at,
                    });
                }
                in_place.plan.push((at, planned));
            }
            in_place.parts.push((at, Metadata::from_encoding(buf)));
            if in_place.is_full() {
                self.write_in_place(writer, in_place)?;
            }
        }
        Ok(now)
    }

    /// As `change_table`, for the pages of digests, which are in memory.
    fn change_digests(
        &self,
        writer: &mut Writer,
        written_before: u64,
        written: &Written,
        digests: &mut Vec<Digest>,
        in_place: &mut InPlace,
    ) -> Result<u64, PoolError> {
        let changes = self.records.digest_changes(written);
        let (pages, now) = pages_to_write(changes.keys().copied().collect(), written_before);
        for page in pages {
            let at = self.layout.digest_page_at(page);
            let mut buf = SectorBuf::zeroed(SectorCount(1));
            self.records.copy_digest_page(
                page,
                changes.get(&page).map_or(&[], Vec::as_slice),
                buf.as_mut_bytes(),
            );
            in_place.plan.push((at, plan_page(digests, page, digest_of(buf.as_bytes()))));
            in_place.parts.push((at, Metadata::from_encoding(buf)));
            if in_place.is_full() {
                self.write_in_place(writer, in_place)?;
            }
        }
        Ok(now)
    }

    fn write_in_place(&self, writer: &mut Writer, in_place: &mut InPlace) -> Result<(), PoolError> {
        let InPlace { parts, plan } = std::mem::take(in_place);
        if !plan.is_empty() {
            self.log_plan(writer, &plan)?;
        }
        Ok(self.device.write_metadata_many(&parts)?)
    }
}

impl InPlace {
    fn is_full(&self) -> bool {
        self.plan.len().max(self.parts.len()) as u64 >= PAGES_AT_ONCE
    }
}

/// The changed pages and all that were skipped before them, in order; and how many are written then.
fn pages_to_write(mut changed: Vec<u64>, written: u64) -> (Vec<u64>, u64) {
    let now = changed.last().map_or(written, |last| written.max(last + 1));
    changed.retain(|page| *page < written);
    changed.extend(written..now);
    changed.dedup();
    (changed, now)
}

/// Notes what a page becomes.
fn plan_page(digests: &mut Vec<Digest>, page: u64, after: Digest) -> Planned {
    let page = usize::try_from(page).unwrap_or(usize::MAX);
    if digests.len() <= page {
        digests.resize(page + 1, NEVER_WRITTEN);
    }
    Planned { before: std::mem::replace(&mut digests[page], after), after }
}
