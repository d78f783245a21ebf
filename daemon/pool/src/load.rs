//! Reads a pool's metadata off its device and judges it. Writes nothing, so that it serves opening and checking alike.

use std::collections::{BTreeMap, BTreeSet};

use device::{Device, DeviceError, SectorRecord};
use units::{ByteOffset, DomainId, Fence, PoolId, SECTOR_BYTES, SECTORS_MAX, SectorCount};

use crate::checkpoint::{Begun, BegunRoot, Changing, change_entry_page};
use crate::digest::{Digest, RecordDigests, Root, StateHead, Tables, digest_of};
use crate::entry::{
    BranchId, Level, Mapping, Moment, Role, VolumeEntry, VolumeEntryFault, VolumeRecord, decode_extent,
    decode_volume, encode_volume,
};
use crate::extent::ExtentKind;
use crate::history::{AtOpening, Note, Touches};
use crate::layout::{DIGEST_BYTES, Layout, PAGES_PER_TRANSFER, VOLUME_ENTRIES_PER_PAGE, VOLUME_ENTRY_BYTES};
use crate::log::{LogEnd, Record, ReplayError, Replayed, VouchMac, replay};
use crate::records::SectorId;
use crate::superblock::{MovingStage, Superblock, Superblocks};
use crate::{Damage, Limits, PoolError};

/// More than this many are counted, not listed: a device full of noise would fill memory with them.
const PROBLEMS_LISTED_MAX: usize = 1000;

/// The last extent that a volume of the greatest size can have, with the smallest extents.
const LOGICAL_MAX: u64 = SECTORS_MAX / 16;

/// Something that is wrong in the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    pub damage: Damage,
    /// Where on the device.
    pub at: ByteOffset,
}

/// Table entries that the log holds and the tables may not yet.
#[derive(Debug, Default)]
pub(crate) struct Logged {
    pub(crate) volumes: BTreeMap<u32, VolumeEntry>,
    pub(crate) extents: BTreeMap<u32, Option<Mapping>>,
    pub(crate) holes: BTreeMap<u32, Option<Mapping>>,
}

impl Logged {
    pub(crate) fn apply(&mut self, record: Record) {
        match record {
            // Kept by the record store and the placement, or of a checkpoint.
            Record::Sector { .. } | Record::Plan { .. } | Record::Root(_) | Record::Vouch { .. } => {}
            Record::Volume { slot, entry } => {
                self.volumes.insert(slot, *entry);
            }
            Record::Extent { index, mapping } => {
                self.extents.insert(index, mapping);
            }
            Record::Holes { index, mapping } => {
                self.holes.insert(index, mapping);
            }
        }
    }
}

/// A sector's record that the log holds, and which of its blocks has the ciphertext, if one has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoggedSector {
    pub(crate) record: SectorRecord,
    pub(crate) block: Option<u64>,
}

/// An entry of the extent table or of the hole table.
type EntryId = (ExtentKind, u32);

/// A batch of the log, and what it changes.
#[derive(Debug)]
struct LoggedBatch {
    state: StateHead,
    vouched: StateHead,
    changes: BatchChanges,
}

#[derive(Debug, Default)]
struct BatchChanges {
    vouches: Vec<VouchMac>,
    root: Option<Root>,
    /// Pages that it says a checkpoint was about to change.
    plans: usize,
    sectors: usize,
    entries: BTreeSet<EntryId>,
    /// Entries of the volume table, and what of them says what is shown.
    slots: Vec<(u32, Digest)>,
}

/// What the log says, the newest of everything.
#[derive(Debug, Default)]
struct LogContent {
    logged: Logged,
    sectors: BTreeMap<SectorId, LoggedSector>,
    highest_sequence: u64,
    begun: Begun,
    batches: Vec<LoggedBatch>,
    /// Of the batch that is being read.
    changes: BatchChanges,
    /// Whose the entries that it changes are, or were.
    owners: BTreeMap<EntryId, BTreeSet<BranchId>>,
}

impl LogContent {
    fn apply(&mut self, replayed: Replayed) {
        let record = match replayed {
            Replayed::Sector { of, record, block } => {
                self.highest_sequence = self.highest_sequence.max(record.sequence);
                self.sectors.insert(of, LoggedSector { record, block });
                self.changes.sectors += 1;
                self.changes((ExtentKind::Data, of.extent), None);
                return;
            }
            Replayed::Plan { page, planned } => {
                let known = self.begun.plan.entry(page).or_insert(planned);
                known.after = planned.after;
                self.changes.plans += 1;
                return;
            }
            Replayed::Root(root) => {
                self.changes.root = Some(root);
                return;
            }
            Replayed::Vouch { mac, .. } => {
                self.changes.vouches.push(mac);
                return;
            }
            Replayed::BatchEnd { start, state, vouched } => {
                let changes = std::mem::take(&mut self.changes);
                self.begun.root = changes.root.map(|root| BegunRoot { root, start, left: changes.sectors });
                self.batches.push(LoggedBatch { state, vouched, changes });
                return;
            }
            Replayed::Volume { slot, entry } => {
                self.changes.slots.push((slot, shown(&entry)));
                Record::Volume { slot, entry }
            }
            Replayed::Holes { index, mapping } => {
                self.changes((ExtentKind::Holes, index), mapping.as_ref());
                Record::Holes { index, mapping }
            }
            Replayed::Extent { index, mapping } => {
                self.changes((ExtentKind::Data, index), mapping.as_ref());
                Record::Extent { index, mapping }
            }
        };
        self.logged.apply(record);
    }

    fn changes(&mut self, entry: EntryId, mapping: Option<&Mapping>) {
        if self.changes.entries.insert(entry) || mapping.is_some() {
            self.owners.entry(entry).or_default().extend(mapping.map(|mapping| mapping.branch));
        }
    }
}

/// An extent, or an entry of the hole table, that a living branch has.
#[derive(Debug)]
pub(crate) struct MappedExtent {
    pub(crate) kind: ExtentKind,
    pub(crate) index: u32,
    pub(crate) mapping: Mapping,
}

/// A pool's metadata as the device holds it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) superblocks: Superblocks,
    pub(crate) log_end: LogEnd,
    pub(crate) logged: Logged,
    /// Sectors' records that the log holds.
    pub(crate) sectors: BTreeMap<SectorId, LoggedSector>,
    pub(crate) begun: Begun,
    pub(crate) tables: Tables,
    pub(crate) record_digests: RecordDigests,
    /// What the log's batches did; of a pool that keeps a state.
    pub(crate) opened: Option<AtOpening>,
    owners: BTreeMap<EntryId, BTreeSet<BranchId>>,
    /// What the volume table says of slots that the log changes.
    shown_before: BTreeMap<u32, Digest>,
    /// Above every sequence that is known.
    pub(crate) next_sequence: u64,
    /// Every slot that was ever used.
    pub(crate) volumes: BTreeMap<u32, VolumeEntry>,
    /// Branches that somebody looks at, and what is below each.
    pub(crate) branches: BTreeMap<BranchId, Vec<Level>>,
    /// The present moment of each volume's own branch, and the size in extents.
    ends: BTreeMap<BranchId, (Moment, u64)>,
    /// What those branches have, in no order.
    pub(crate) extents: Vec<MappedExtent>,
    /// The extents that hold the hole table, in order.
    pub(crate) hole_chunks: Vec<u32>,
    /// Entries that name a branch which nobody looks at: their extents are free.
    pub(crate) stale_entries: u64,
    pub(crate) problems: Vec<Problem>,
    pub(crate) problems_unlisted: u64,
}

impl Loaded {
    /// Reads everything. An error is something without which nothing more can be read; lesser damage is listed.
    pub(crate) fn read(device: &dyn Device) -> Result<Self, PoolError> {
        let superblocks = Superblocks::read(device)?;
        let superblock = superblocks.current;
        match superblock.moving.map(|moving| (moving.stage, moving.other_path())) {
            Some((MovingStage::Incoming { .. }, from)) => {
                return Err(PoolError::IncompleteCopy { device: device.info().path, from });
            }
            Some((MovingStage::Moved, to)) => {
                return Err(PoolError::MovedAway { device: device.info().path, pool: superblock.pool, to });
            }
            Some((MovingStage::Copying | MovingStage::HandingOver, _)) | None => {}
        }
        if device.len() < superblock.device_len {
            return Err(PoolError::DeviceShrunk {
                device: device.info().path,
                recorded: superblock.device_len,
                found: device.len(),
            });
        }
        let mut content = LogContent::default();
        let mut problems = Vec::new();
        // What follows the damage is not known, so tables and log are judged as far as it goes, and nothing is opened.
        let mut damaged_log = |damage, sequence| {
            problems.push(Problem { damage, at: superblock.layout.log_block_at(sequence) });
            LogEnd::start(&superblock)
        };
        let log_end = match replay(device, &superblock, |record| content.apply(record)) {
            Ok(end) => end,
            Err(ReplayError::Pool(error)) => return Err(error),
            Err(ReplayError::Record { sequence }) => damaged_log(Damage::LogRecord, sequence),
            Err(ReplayError::Block { sequence }) => damaged_log(Damage::LogBlock, sequence),
        };
        let LogContent { logged, sectors, highest_sequence, mut begun, batches, owners, .. } = content;
        begun.root = begun.root.filter(|_| !begun.plan.is_empty());
        let mut loaded = Self {
            superblocks,
            log_end,
            logged,
            sectors,
            begun,
            tables: Tables::default(),
            record_digests: RecordDigests::default(),
            opened: None,
            owners,
            shown_before: BTreeMap::new(),
            next_sequence: superblock.next_sequence.max(highest_sequence + 1),
            volumes: BTreeMap::new(),
            branches: BTreeMap::new(),
            ends: BTreeMap::new(),
            extents: Vec::new(),
            hole_chunks: Vec::new(),
            stale_entries: 0,
            problems,
            problems_unlisted: 0,
        };
        loaded.read_volumes(device)?;
        loaded.find_branches();
        loaded.read_extents(device)?;
        loaded.read_holes(device)?;
        loaded.find_doubles();
        if superblock.layout.has_digests() {
            loaded.read_digests(device)?;
            loaded.opened = Some(loaded.at_opening(&batches));
        }
        Ok(loaded)
    }

    /// Reads the digests of the pages of records.
    fn read_digests(&mut self, device: &dyn Device) -> Result<(), PoolError> {
        let (layout, pages) = (self.layout(), self.superblock().digest_pages);
        let mut planned: BTreeMap<u64, Vec<(usize, Digest)>> = BTreeMap::new();
        for (at, change) in self.begun.plan.iter().filter(|(at, _)| layout.is_record_page(**at)) {
            let place = layout.digest_of(*at);
            planned.entry(place.page).or_default().push((place.nth, change.after));
        }
        let mut page = 0;
        while page < pages {
            let count = layout.contiguous_digest_pages(page, pages - page);
            let read = device.read_metadata(layout.digest_page_at(page), SectorCount(count))?;
            for bytes in read.as_bytes().as_chunks::<SECTOR_BYTES>().0 {
                let at = layout.digest_page_at(page);
                let mut changed = *bytes;
                let slots = changed.as_chunks_mut::<DIGEST_BYTES>().0;
                for (nth, digest) in planned.get(&page).into_iter().flatten() {
                    slots[*nth] = *digest;
                }
                // One that is not planned is as it was: only what is planned in it may have changed.
                let as_is = if self.begun.plan.contains_key(&at) { &changed } else { bytes };
                self.record_digests.insert_page(page, as_is);
                let digest = self.page_digest(at, bytes, |page| page.copy_from_slice(&changed));
                self.tables.digests.push(digest);
                page += 1;
            }
        }
        Ok(())
    }

    /// What a page was at the last checkpoint. Where a cut came while another changed it, what it holds now is judged with
    /// what the log has of it.
    fn page_digest(&mut self, at: ByteOffset, bytes: &[u8], change: impl FnOnce(&mut [u8])) -> Digest {
        let Some(planned) = self.begun.plan.get(&at).copied() else { return digest_of(bytes) };
        let mut changed = bytes.to_vec();
        change(&mut changed);
        if digest_of(&changed) != planned.after {
            self.problem(Damage::Page, at);
        }
        planned.before
    }

    /// What the log did to whom, and whether tables and digests are those that it starts from.
    fn at_opening(&mut self, batches: &[LoggedBatch]) -> AtOpening {
        let superblock = self.superblock();
        // The first batch behind a checkpoint says what that left; there was none before the first.
        let said = batches.first().and_then(|batch| batch.changes.root);
        let never_had_any = superblock.state == StateHead::BEGINNING && self.tables == Tables::default();
        let altered = self.tables.root() != superblock.root
            || !(never_had_any || superblock.state.count > 0 && said == Some(superblock.root));
        let mut domains: BTreeMap<BranchId, DomainId> = BTreeMap::new();
        for (_, _, record) in self.records() {
            domains.extend(record.levels.iter().map(|level| (level.branch, record.spec.domain)));
        }
        let layout = self.layout();
        let per_page = layout.extent_entries_per_page();
        let mut shown_now = std::mem::take(&mut self.shown_before);
        let mut touches = |changes: &BatchChanges| {
            if changes.plans > 0 || changes.root.is_some() {
                // It says what pages are, whosever they are.
                return Touches::Anybody;
            }
            let mut touched = BTreeSet::new();
            for (kind, index) in &changes.entries {
                let owners = self.owners.get(&(*kind, *index));
                let page = u64::from(index / per_page);
                let at = match kind {
                    ExtentKind::Data => Some(layout.extent_page_at(page)),
                    ExtentKind::Holes => layout.hole_page_at(&self.hole_chunks, page),
                };
                let forgotten = at.is_none_or(|at| self.begun.plan.contains_key(&at));
                match owners {
                    Some(owners) if !owners.is_empty() => {
                        touched.extend(owners.iter().filter_map(|branch| domains.get(branch)));
                    }
                    _ if forgotten => return Touches::Anybody,
                    _ => {}
                }
            }
            for (slot, shown) in &changes.slots {
                let same = shown_now.insert(*slot, *shown) == Some(*shown);
                let of_slot = || Some(self.volumes.get(slot)?.volume.as_ref()?.spec.domain);
                touched.extend(if same { None } else { of_slot() });
            }
            Touches::Domains(touched)
        };
        let notes = batches
            .iter()
            .map(|batch| Note {
                state: batch.state,
                vouched: batch.vouched,
                vouches: batch.changes.vouches.clone(),
                touches: touches(&batch.changes),
            })
            .collect();
        AtOpening { start: superblock.state, notes, altered }
    }

    fn superblock(&self) -> Superblock {
        self.superblocks.current
    }

    fn layout(&self) -> Layout {
        self.superblock().layout
    }

    fn pool(&self) -> PoolId {
        self.superblock().pool
    }

    fn problem(&mut self, damage: Damage, at: ByteOffset) {
        if self.problems.len() < PROBLEMS_LISTED_MAX {
            self.problems.push(Problem { damage, at });
        } else {
            self.problems_unlisted += 1;
        }
    }

    fn volume_entry_at(&self, slot: u32) -> ByteOffset {
        let page = self.layout().volume_page_at(u64::from(slot / VOLUME_ENTRIES_PER_PAGE));
        ByteOffset(page.0 + u64::from(slot % VOLUME_ENTRIES_PER_PAGE) * VOLUME_ENTRY_BYTES as u64)
    }

    fn read_volumes(&mut self, device: &dyn Device) -> Result<(), PoolError> {
        let pages = self.superblock().volume_pages;
        let layout = self.layout();
        let mut slot = 0;
        for page in (0..pages).step_by(step(PAGES_PER_TRANSFER)) {
            let count = (pages - page).min(PAGES_PER_TRANSFER);
            let read = device.read_metadata(layout.volume_page_at(page), SectorCount(count))?;
            for (page, bytes) in (page..).zip(read.as_bytes().chunks_exact(SECTOR_BYTES)) {
                for entry in bytes.chunks_exact(VOLUME_ENTRY_BYTES) {
                    self.take_volume_entry(slot, entry);
                    slot += 1;
                }
                if layout.has_digests() {
                    let logged = std::mem::take(&mut self.logged);
                    let superblock = self.superblock();
                    let digest = self.page_digest(layout.volume_page_at(page), bytes, |bytes| {
                        logged.change_volume_page(&superblock, page, bytes, false);
                    });
                    self.tables.volumes.push(digest);
                    self.logged = logged;
                }
            }
        }
        let logged = self.logged.volumes.iter().map(|(slot, entry)| (*slot, entry.clone()));
        self.volumes.extend(logged);
        let mut ids = BTreeSet::new();
        let twice: Vec<u32> = self
            .volumes
            .iter()
            .filter(|(_, entry)| entry.volume.as_ref().is_some_and(|volume| !ids.insert(volume.spec.id)))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in twice {
            self.problem(Damage::VolumeTwice, self.volume_entry_at(slot));
        }
        Ok(())
    }

    fn take_volume_entry(&mut self, slot: u32, entry: &[u8]) {
        // A page that was being written when power failed may be torn; what was changed in it is in the log.
        let decoded = decode_volume(self.pool(), slot, entry);
        if self.logged.volumes.contains_key(&slot) {
            self.shown_before.extend(decoded.ok().flatten().map(|before| (slot, shown(&before))));
            return;
        }
        match decoded {
            Ok(Some(entry)) => {
                self.volumes.insert(slot, entry);
            }
            Ok(None) => {}
            Err(VolumeEntryFault::Checksum) => self.problem(Damage::VolumeEntry, self.volume_entry_at(slot)),
            Err(VolumeEntryFault::Fields) => self.problem(Damage::VolumeFields, self.volume_entry_at(slot)),
        }
    }

    /// Live volumes and snapshots.
    pub(crate) fn records(&self) -> impl Iterator<Item = (u32, BranchId, &VolumeRecord)> {
        self.volumes
            .iter()
            .filter_map(|(slot, entry)| entry.volume.as_ref().map(|volume| (*slot, entry.serial, volume)))
    }

    /// Live volumes, without snapshots.
    pub(crate) fn volume_count(&self) -> u64 {
        self.records().filter(|(_, _, record)| record.role != Role::Snapshot).count() as u64
    }

    /// Whether a write of the present moment left this past the volume's end, where a shrinking cut it off.
    pub(crate) fn is_past_end(&self, mapping: &Mapping) -> bool {
        self.ends.get(&mapping.branch).is_some_and(|(moment, extents)| {
            mapping.place.moment() == *moment && mapping.place.logical() >= *extents
        })
    }

    fn find_branches(&mut self) {
        let mut branches: BTreeMap<BranchId, Vec<Level>> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (slot, _, record) in self.records() {
            for (nth, level) in record.levels.iter().enumerate() {
                let below = &record.levels[nth + 1..];
                // Whoever looks at a branch sees the same below it.
                if branches.entry(level.branch).or_insert_with(|| below.to_vec()) != below {
                    wrong.push(slot);
                }
            }
        }
        self.branches = branches;
        let layout = self.layout();
        let ends =
            self.records().filter(|(_, _, record)| record.role != Role::Snapshot).filter_map(|record| {
                let (_, serial, VolumeRecord { levels, spec, .. }) = record;
                levels.first().map(|own| (serial, (own.moment, layout.extents_spanned(spec.sectors))))
            });
        self.ends = ends.collect();
        for slot in wrong {
            self.problem(Damage::VolumeFields, self.volume_entry_at(slot));
        }
    }

    fn read_extents(&mut self, device: &dyn Device) -> Result<(), PoolError> {
        let layout = self.layout();
        let pages = self.superblock().extent_pages;
        let extents = layout.extents_on(self.superblock().device_len)?;
        let logged = std::mem::take(&mut self.logged.extents);
        self.read_entries(device, ExtentKind::Data, &logged, pages, extents, |page| {
            Some(layout.extent_page_at(page))
        })?;
        self.logged.extents = logged;
        // Those of the hole table are the pool's own.
        let (chunks, extents): (Vec<_>, Vec<_>) = std::mem::take(&mut self.extents)
            .into_iter()
            .partition(|extent| extent.mapping.branch == BranchId::HOLE_TABLE);
        self.extents = extents;
        let chunks: BTreeMap<u64, u32> =
            chunks.into_iter().map(|chunk| (chunk.mapping.place.logical(), chunk.index)).collect();
        let in_order = chunks.keys().copied().eq(0..chunks.len() as u64);
        let needed = self.superblock().hole_pages.div_ceil(layout.hole_pages_per_chunk());
        if !in_order || (chunks.len() as u64) < needed {
            self.problem(Damage::HoleTable, layout.extent_page_at(0));
        }
        self.hole_chunks = chunks.into_values().collect();
        Ok(())
    }

    fn read_holes(&mut self, device: &dyn Device) -> Result<(), PoolError> {
        let layout = self.layout();
        let chunks = self.hole_chunks.clone();
        let pages = self.superblock().hole_pages.min(chunks.len() as u64 * layout.hole_pages_per_chunk());
        let entries = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
        let entries = entries.saturating_mul(layout.hole_entries_per_chunk());
        let logged = std::mem::take(&mut self.logged.holes);
        self.read_entries(device, ExtentKind::Holes, &logged, pages, entries, |page| {
            layout.hole_page_at(&chunks, page)
        })?;
        self.logged.holes = logged;
        Ok(())
    }

    /// Reads the first `pages` pages of a table of at most `entries` entries, and what is logged of it.
    fn read_entries(
        &mut self,
        device: &dyn Device,
        kind: ExtentKind,
        logged: &BTreeMap<u32, Option<Mapping>>,
        pages: u64,
        entries: u32,
        at: impl Fn(u64) -> Option<ByteOffset>,
    ) -> Result<(), PoolError> {
        let layout = self.layout();
        let (mut page, mut index) = (0, 0);
        while page < pages {
            let Some(page_at) = at(page) else { break };
            let count = layout.contiguous_pages(page, pages - page);
            let read = device.read_metadata(page_at, SectorCount(count))?;
            for bytes in read.as_bytes().chunks_exact(SECTOR_BYTES) {
                for entry in bytes.chunks_exact(layout.extent_entry_bytes()) {
                    let decoded = decode_extent(layout, self.pool(), index, entry);
                    if logged.contains_key(&index) {
                        // A page that was being written when power failed may be torn; what was changed in it is in the log.
                        let before = decoded.flatten().map(|mapping| mapping.branch);
                        self.owners.entry((kind, index)).or_default().extend(before);
                    } else {
                        match decoded {
                            Some(mapping) => self.take_mapping(kind, index, entries, mapping),
                            None => self.problem(Damage::ExtentEntry, self.entry_at(kind, index)),
                        }
                    }
                    index += 1;
                }
                if layout.has_digests()
                    && let Some(at) = at(page)
                {
                    let superblock = self.superblock();
                    let digest = self.page_digest(at, bytes, |bytes| {
                        change_entry_page(&superblock, logged, page, bytes, false);
                    });
                    match kind {
                        ExtentKind::Data => self.tables.extents.push(digest),
                        ExtentKind::Holes => self.tables.holes.push(digest),
                    }
                }
                page += 1;
            }
        }
        for (index, mapping) in logged {
            if *index >= entries {
                // Freed or not: the next checkpoint would have no page to write it to.
                self.problem(Damage::ExtentEntry, self.entry_at(kind, *index));
            } else {
                self.take_mapping(kind, *index, entries, mapping.clone());
            }
        }
        Ok(())
    }

    fn take_mapping(&mut self, kind: ExtentKind, index: u32, entries: u32, mapping: Option<Mapping>) {
        let Some(mapping) = mapping else { return };
        if let Some(owners) = self.owners.get_mut(&(kind, index)) {
            owners.insert(mapping.branch);
        }
        let of_pool = mapping.branch == BranchId::HOLE_TABLE && kind == ExtentKind::Data;
        if mapping.place.logical() > LOGICAL_MAX || index >= entries {
            self.problem(Damage::ExtentEntry, self.entry_at(kind, index));
        } else if of_pool || self.branches.contains_key(&mapping.branch) {
            self.extents.push(MappedExtent { kind, index, mapping });
        } else {
            self.stale_entries += 1;
        }
    }

    fn entry_at(&self, kind: ExtentKind, index: u32) -> ByteOffset {
        let layout = self.layout();
        let (page, in_page) =
            (index / layout.extent_entries_per_page(), index % layout.extent_entries_per_page());
        let page_at = match kind {
            ExtentKind::Data => layout.extent_page_at(u64::from(page)),
            // An entry past the end of its table is nowhere; say where the table would have begun.
            ExtentKind::Holes => layout
                .hole_page_at(&self.hole_chunks, u64::from(page))
                .unwrap_or_else(|| layout.extent_page_at(0)),
        };
        ByteOffset(page_at.0 + u64::from(in_page) * layout.extent_entry_bytes() as u64)
    }

    fn find_doubles(&mut self) {
        let key = |extent: &MappedExtent| {
            (extent.kind == ExtentKind::Holes, extent.mapping.branch, extent.mapping.place)
        };
        self.extents.sort_unstable_by_key(key);
        let doubles: Vec<(ExtentKind, u32)> = self
            .extents
            .windows(2)
            .filter(|pair| key(&pair[0]) == key(&pair[1]))
            .map(|pair| (pair[1].kind, pair[1].index))
            .collect();
        for (kind, index) in doubles {
            self.problem(Damage::ExtentTwice, self.entry_at(kind, index));
        }
    }

    /// The pages that the next checkpoint changes.
    pub(crate) fn changing(&self) -> Changing {
        let mut changing = Changing::default();
        let layout = self.layout();
        self.logged.volumes.keys().for_each(|slot| changing.add_volume(*slot));
        self.logged.extents.keys().for_each(|index| changing.add_extent(layout, *index));
        self.logged.holes.keys().for_each(|index| changing.add_holes(layout, *index));
        if layout.has_records() {
            self.sectors.keys().for_each(|of| changing.add_sector(layout, *of));
        }
        changing
    }

    /// Whether tables or digests are not what was last written.
    pub(crate) fn is_altered(&self) -> bool {
        self.opened.as_ref().is_some_and(|opened| opened.altered)
    }

    /// The first problem as the error that opening the pool ends with.
    pub(crate) fn first_problem(&self, device: &dyn Device) -> Option<PoolError> {
        self.problems.first().map(|problem| PoolError::MetadataDamaged {
            device: device.info().path,
            what: problem.damage,
            at: problem.at,
        })
    }
}

/// What of a volume's entry says what it shows: all but its fence, its limits and its count of blocks, which a sealed node changes.
fn shown(entry: &VolumeEntry) -> Digest {
    let mut entry = entry.clone();
    if let Some(volume) = &mut entry.volume {
        volume.blocks = 0;
        if let Role::Volume { fence, limits } = &mut volume.role {
            (*fence, *limits) = (Fence(0), Limits::default());
        }
    }
    let mut encoded = [0; VOLUME_ENTRY_BYTES];
    encode_volume(PoolId([0; 16]), 0, Some(&entry), &mut encoded);
    digest_of(&encoded)
}

fn step(pages: u64) -> usize {
    usize::try_from(pages).unwrap_or(usize::MAX)
}

/// Reads the page at `at`: a single one, for changing entries in it.
pub(crate) fn read_pages(
    device: &dyn Device,
    at: ByteOffset,
    count: u64,
) -> Result<device::SectorBuf, DeviceError> {
    device.read_metadata(at, SectorCount(count)).map(device::Metadata::into_buf)
}
