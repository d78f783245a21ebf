//! Reads a pool's metadata off its device and judges it. Writes nothing, so that it serves opening and checking alike.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use device::{Device, DeviceError};
use units::{ByteOffset, PoolId, SECTOR_BYTES, SectorCount, VolumeEpoch};

use crate::entry::{Mapping, VolumeEntry, VolumeEntryFault, VolumeSerial, decode_extent, decode_volume};
use crate::layout::{Layout, PAGES_PER_TRANSFER, VOLUME_ENTRIES_PER_PAGE, VOLUME_ENTRY_BYTES};
use crate::log::{LogEnd, Record, ReplayError, replay};
use crate::presence::Presence;
use crate::superblock::{Superblock, Superblocks};
use crate::{Damage, PoolError};

/// More than this many are counted, not listed: a device full of noise would fill memory with them.
const PROBLEMS_LISTED_MAX: usize = 1000;

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
}

impl Logged {
    pub(crate) fn apply(&mut self, record: Record) {
        match record {
            Record::Volume { slot, entry } => {
                self.volumes.insert(slot, entry);
            }
            Record::Extent { index, mapping } => {
                self.extents.insert(index, mapping);
            }
        }
    }
}

/// An extent of a live volume.
#[derive(Debug)]
pub(crate) struct MappedExtent {
    pub(crate) logical: u64,
    pub(crate) index: u32,
    pub(crate) epoch: VolumeEpoch,
    pub(crate) presence: Presence,
}

/// A pool's metadata as the device holds it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) superblocks: Superblocks,
    pub(crate) log_end: LogEnd,
    pub(crate) logged: Logged,
    /// Every slot that was ever used.
    pub(crate) volumes: BTreeMap<u32, VolumeEntry>,
    /// Extents of live volumes, in the order of their place in the volume.
    pub(crate) maps: HashMap<VolumeSerial, Vec<MappedExtent>>,
    /// Extents of live volumes past the volume's end: a shrinking that a power cut left between two batches.
    pub(crate) outside: Vec<u32>,
    /// Entries that name a volume which is deleted: their extents are free.
    pub(crate) stale_entries: u64,
    pub(crate) problems: Vec<Problem>,
    pub(crate) problems_unlisted: u64,
}

impl Loaded {
    /// Reads everything. An error is something without which nothing more can be read; lesser damage is listed.
    pub(crate) fn read(device: &dyn Device) -> Result<Self, PoolError> {
        let superblocks = Superblocks::read(device)?;
        let superblock = superblocks.current;
        if device.len() < superblock.device_len {
            return Err(PoolError::DeviceShrunk {
                device: device.info().path,
                recorded: superblock.device_len,
                found: device.len(),
            });
        }
        let mut logged = Logged::default();
        let mut problems = Vec::new();
        // What follows the damage is not known, so tables and log are judged as far as it goes, and nothing is opened.
        let mut damaged_log = |damage, sequence| {
            problems.push(Problem { damage, at: superblock.layout.log_block_at(sequence) });
            LogEnd { next: superblock.log_start, link: superblock.log_link }
        };
        let log_end = match replay(device, &superblock, |record| logged.apply(record)) {
            Ok(end) => end,
            Err(ReplayError::Pool(error)) => return Err(error),
            Err(ReplayError::Record { sequence }) => damaged_log(Damage::LogRecord, sequence),
            Err(ReplayError::Block { sequence }) => damaged_log(Damage::LogBlock, sequence),
        };
        let mut loaded = Self {
            superblocks,
            log_end,
            logged,
            volumes: BTreeMap::new(),
            maps: HashMap::new(),
            outside: Vec::new(),
            stale_entries: 0,
            problems,
            problems_unlisted: 0,
        };
        loaded.read_volumes(device)?;
        loaded.read_extents(device)?;
        loaded.sort_extents();
        Ok(loaded)
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

    fn extent_entry_at(&self, index: u32) -> ByteOffset {
        let per_page = self.layout().extent_entries_per_page();
        let page = self.layout().extent_page_at(u64::from(index / per_page));
        ByteOffset(page.0 + u64::from(index % per_page) * self.layout().extent_entry_bytes() as u64)
    }

    fn read_volumes(&mut self, device: &dyn Device) -> Result<(), PoolError> {
        let pages = self.superblock().volume_pages;
        let layout = self.layout();
        let mut slot = 0;
        for page in (0..pages).step_by(step(PAGES_PER_TRANSFER)) {
            let count = (pages - page).min(PAGES_PER_TRANSFER);
            let bytes = device.read_metadata(layout.volume_page_at(page), SectorCount(count))?;
            for entry in bytes.as_bytes().chunks_exact(VOLUME_ENTRY_BYTES) {
                self.take_volume_entry(slot, entry);
                slot += 1;
            }
        }
        let logged = self.logged.volumes.iter().map(|(slot, entry)| (*slot, *entry));
        self.volumes.extend(logged);
        let mut ids = BTreeSet::new();
        let twice: Vec<u32> = self
            .volumes
            .iter()
            .filter(|(_, entry)| entry.volume.is_some_and(|volume| !ids.insert(volume.spec.id)))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in twice {
            self.problem(Damage::VolumeTwice, self.volume_entry_at(slot));
        }
        Ok(())
    }

    fn take_volume_entry(&mut self, slot: u32, entry: &[u8]) {
        // A page that was being written when power failed may be torn; what was changed in it is in the log.
        if self.logged.volumes.contains_key(&slot) {
            return;
        }
        match decode_volume(self.pool(), slot, entry) {
            Ok(Some(entry)) => {
                self.volumes.insert(slot, entry);
            }
            Ok(None) => {}
            Err(VolumeEntryFault::Checksum) => self.problem(Damage::VolumeEntry, self.volume_entry_at(slot)),
            Err(VolumeEntryFault::Fields) => self.problem(Damage::VolumeFields, self.volume_entry_at(slot)),
        }
    }

    fn read_extents(&mut self, device: &dyn Device) -> Result<(), PoolError> {
        let layout = self.layout();
        let extents = layout.extents_on(self.superblock().device_len)?;
        let pages = self.superblock().extent_pages;
        // The size in extents of each live volume.
        let live: HashMap<VolumeSerial, u64> = self
            .volumes
            .values()
            .filter_map(|entry| {
                entry.volume.map(|volume| (entry.serial, layout.extents_spanned(volume.spec.sectors)))
            })
            .collect();
        let (mut page, mut index) = (0, 0);
        while page < pages {
            let count = layout.contiguous_extent_pages(page, pages - page);
            let bytes = device.read_metadata(layout.extent_page_at(page), SectorCount(count))?;
            self.take_extent_entries(&live, extents, index, bytes.as_bytes());
            page += count;
            index += u32::try_from(count).unwrap_or(0) * layout.extent_entries_per_page();
        }
        let logged = std::mem::take(&mut self.logged.extents);
        for (index, mapping) in &logged {
            self.take_mapping(&live, *index, mapping.clone());
        }
        self.logged.extents = logged;
        Ok(())
    }

    fn take_extent_entries(
        &mut self,
        live: &HashMap<VolumeSerial, u64>,
        extents: u32,
        first: u32,
        pages: &[u8],
    ) {
        let layout = self.layout();
        let entry_bytes = layout.extent_entry_bytes();
        debug_assert!(pages.len().is_multiple_of(SECTOR_BYTES));
        for (index, entry) in (first..).zip(pages.chunks_exact(entry_bytes)) {
            // As in `take_volume_entry`.
            if self.logged.extents.contains_key(&index) {
                continue;
            }
            match decode_extent(layout, self.pool(), index, entry) {
                Some(Some(_)) if index >= extents => {
                    self.problem(Damage::ExtentEntry, self.extent_entry_at(index));
                }
                Some(mapping) => self.take_mapping(live, index, mapping),
                None => self.problem(Damage::ExtentEntry, self.extent_entry_at(index)),
            }
        }
    }

    fn take_mapping(&mut self, live: &HashMap<VolumeSerial, u64>, index: u32, mapping: Option<Mapping>) {
        let Some(mapping) = mapping else { return };
        let Some(extents) = live.get(&mapping.volume) else {
            self.stale_entries += 1;
            return;
        };
        if mapping.logical >= *extents {
            self.outside.push(index);
            return;
        }
        self.maps.entry(mapping.volume).or_default().push(MappedExtent {
            logical: mapping.logical,
            index,
            epoch: mapping.epoch,
            presence: mapping.presence,
        });
    }

    fn sort_extents(&mut self) {
        let mut twice = Vec::new();
        for extents in self.maps.values_mut() {
            extents.sort_unstable_by_key(|extent| extent.logical);
            let pairs = extents.windows(2).filter(|pair| pair[0].logical == pair[1].logical);
            twice.extend(pairs.map(|pair| pair[1].index));
        }
        for index in twice {
            self.problem(Damage::ExtentTwice, self.extent_entry_at(index));
        }
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
