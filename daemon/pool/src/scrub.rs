//! Scrubbing: every sector is read and compared with its record, while the pool serves and without any key.
//!
//! A pass goes through the device by the numbers of its extents, so that what volumes share is read once, and can be taken
//! up at any number. What comes to be behind it is the next pass's.
//!
//! A sector that is written meanwhile is not judged: its ciphertext and its record change one after the other. It counts only
//! if it had the same record before and after its ciphertext was read, twice.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Weak};

use device::{Device, DeviceErrorKind, SectorRecord};
use units::{ByteOffset, Lba, SECTOR_BYTES, SectorCount, VolumeId};

use crate::branch::{Branch, resolve};
use crate::commit::{Core, lock};
use crate::entry::{BranchId, Place};
use crate::extent::{Content, Extent};
use crate::{Pool, PoolError};

/// Sectors that are read at once: 1 MiB.
const PART_SECTORS: u32 = 256;
/// Least extents that are looked up at once.
const WINDOW_MIN: u32 = 8192;
/// Most windows of a pass: each looks at every extent that is mapped.
const WINDOWS_MAX: u32 = 64;

/// Why a sector is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectorFault {
    /// The device does not read it.
    Unreadable,
    /// Its ciphertext has not the checksum of its record.
    Checksum,
    /// It has no record, or a damaged one.
    Record,
    /// The page of its record is not the one last written there.
    RecordsReplaced,
    /// The device does not read its record.
    RecordUnreadable,
}

impl fmt::Display for SectorFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreadable => "the device cannot read it",
            Self::Checksum => "its ciphertext is not what was written",
            Self::Record => "its record is damaged",
            Self::RecordsReplaced => "the page of its record is not the one that was last written",
            Self::RecordUnreadable => "the device cannot read its record",
        })
    }
}

/// A sector that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedSector {
    /// Where it is on the device.
    pub at: ByteOffset,
    pub fault: SectorFault,
    /// The volumes and snapshots that show it, and which of their sectors it is. Empty where nobody does any more.
    pub shown_by: Vec<(VolumeId, Lba)>,
}

/// What one step of a scrub has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// Sectors that were read.
    pub sectors: SectorCount,
    pub damaged: Vec<DamagedSector>,
}

/// A pass through a pool, step by step.
#[derive(Debug)]
pub struct Scrub {
    pool: Arc<Pool>,
    /// The extent from which the next window is looked up.
    next: u32,
    window: VecDeque<Mapped>,
    /// The sector of the window's first extent that comes next.
    sector: u32,
}

/// An extent that some branch had when its window was looked up. It may be given away meanwhile.
#[derive(Debug)]
pub(crate) struct Mapped {
    index: u32,
    pub(crate) branch: Weak<Branch>,
    pub(crate) place: Place,
    pub(crate) extent: Weak<Extent>,
}

impl Scrub {
    /// A pass that begins, or goes on, at this extent.
    pub fn starting_at(pool: Arc<Pool>, extent: u32) -> Self {
        Self { pool, next: extent, window: VecDeque::new(), sector: 0 }
    }

    /// The first extent that is not done: where another pass would go on.
    pub fn position(&self) -> u32 {
        self.window.front().map_or(self.next, |mapped| mapped.index)
    }

    /// How many extents the device has.
    pub fn extents(&self) -> u32 {
        self.pool.core.allocator.counts().extents
    }

    /// Reads and compares up to 1 MiB. `None` at the end of the pass. An error is the pool's, not a sector's.
    pub fn step(&mut self) -> Result<Option<ScrubStep>, PoolError> {
        self.pool.core.check_not_failed()?;
        let extent_sectors = self.pool.core.layout.extent_sectors();
        loop {
            self.look_up();
            let Some(Mapped { branch, place, extent, .. }) = self.window.front() else { return Ok(None) };
            let (place, found) = (*place, branch.upgrade().zip(extent.upgrade()));
            let Some((branch, extent)) = found.filter(|_| self.sector < extent_sectors) else {
                self.window.pop_front();
                self.sector = 0;
                continue;
            };
            let part = self.sector..extent_sectors.min(self.sector + PART_SECTORS);
            self.sector = part.end;
            let step = self.pool.scrub_part(&branch, &extent, place, part)?;
            if step.sectors.0 > 0 {
                return Ok(Some(step));
            }
        }
    }

    /// Looks the next window up where one is over.
    fn look_up(&mut self) {
        let extents = self.extents();
        while self.window.is_empty() && self.next < extents {
            let window = WINDOW_MIN.max(extents / WINDOWS_MAX);
            let end = self.next.saturating_add(window).min(extents);
            self.window = self.pool.mapped(self.next..end).into();
            self.next = end;
        }
    }
}

impl Pool {
    /// The extents in a range of the device that some branch has, in order.
    pub(crate) fn mapped(&self, range: Range<u32>) -> Vec<Mapped> {
        let mut branches: BTreeMap<BranchId, Arc<Branch>> = BTreeMap::new();
        for state in lock(&self.volumes).live.values() {
            let head = state.head();
            branches.extend(head.view.levels().map(|(branch, _)| (branch.id, Arc::clone(branch))));
        }
        let mut mapped = Vec::new();
        for branch in branches.values() {
            branch.visit_extents(|place, extent| {
                if range.contains(&extent.index()) {
                    let (branch, index) = (Arc::downgrade(branch), extent.index());
                    mapped.push(Mapped { index, branch, place, extent: Arc::downgrade(extent) });
                }
            });
        }
        mapped.sort_unstable_by_key(|mapped| mapped.index);
        mapped
    }

    fn scrub_part(
        &self,
        branch: &Branch,
        extent: &Arc<Extent>,
        place: Place,
        part: Range<u32>,
    ) -> Result<ScrubStep, PoolError> {
        let core = &self.core;
        let (sectors, mut faults) = judge(core, extent, part.clone())?;
        if !faults.is_empty() {
            // It may be the reading that went wrong.
            let again = judge(core, extent, part)?.1;
            faults.retain(|fault| again.contains(fault));
        }
        // What was freed meanwhile may have been discarded.
        faults.retain(|_| branch.has(place, extent));
        let damaged = faults.into_iter().map(|(sector, fault)| {
            let at = core.layout.sector_at(extent.index(), sector);
            let shown_by = self.shown_by(extent, place, sector);
            core.found_damage(Some(at), &shown_by, &fault);
            tracing::error!(pool = %core.pool, device_offset = at.0, %fault, ?shown_by, "scrubbing found a damaged sector");
            DamagedSector { at, fault, shown_by }
        });
        Ok(ScrubStep { sectors, damaged: damaged.collect() })
    }

    /// The volumes and snapshots that show a sector of an extent.
    pub(crate) fn shown_by(&self, extent: &Arc<Extent>, place: Place, sector: u32) -> Vec<(VolumeId, Lba)> {
        let logical = place.logical();
        let lba = Lba(logical * u64::from(self.core.layout.extent_sectors()) + u64::from(sector));
        let states: Vec<_> = lock(&self.volumes).live.values().cloned().collect();
        let shows = |state: &Arc<crate::volume::VolumeState>| {
            let head = state.head();
            let layers = head.view.layers(logical..logical + 1).remove(&logical).unwrap_or_default();
            let holder = resolve(&layers, sector..sector + 1).first().and_then(|(_, holder)| *holder);
            let is_it = holder.is_some_and(|nth| Arc::ptr_eq(&layers[nth].extent, extent));
            (is_it && lba.0 < head.sectors.0).then_some((state.id(), lba))
        };
        states.iter().filter_map(shows).collect()
    }
}

type Fault = (u32, SectorFault);

/// Compares the sectors of `part` that are in their places; how many there are, and which are not what was written.
pub(crate) fn judge(
    core: &Core,
    extent: &Extent,
    part: Range<u32>,
) -> Result<(SectorCount, Vec<Fault>), PoolError> {
    let (mut sectors, mut faults) = (0, Vec::new());
    for run in placed(extent, part) {
        sectors += run.len() as u64;
        let before = records(core, extent, run.clone())?;
        let found = read(core, extent, run.clone())?;
        for ((sector, record), checksum) in run.zip(before).zip(found) {
            let fault = match (record, checksum) {
                (_, None) => SectorFault::Unreadable,
                (Ok(Some(record)), Some(checksum)) if record.checksum != checksum => SectorFault::Checksum,
                (Err(fault), Some(_)) => fault,
                (Ok(_), Some(_)) => continue,
            };
            let is_placed = placed(extent, sector..sector + 1).next().is_some();
            if is_placed && records(core, extent, sector..sector + 1)? == [record] {
                faults.push((sector, fault));
            }
        }
    }
    Ok((SectorCount(sectors), faults))
}

/// Runs of sectors that are present, and in their places.
fn placed(extent: &Extent, part: Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let state = extent.state();
    let mut runs = Vec::new();
    for (run, present) in state.sectors().runs(part) {
        if !present {
            continue;
        }
        let mut at = run.start;
        for (sector, content) in state.pending(run.clone()) {
            if matches!(content, Content::InMemory(_)) {
                runs.push(at..sector);
                at = sector + 1;
            }
        }
        runs.push(at..run.end);
    }
    runs.into_iter().filter(|run| !run.is_empty())
}

/// What each sector should be; `None` of a pool that keeps no records.
pub(crate) fn records(
    core: &Core,
    extent: &Extent,
    run: Range<u32>,
) -> Result<Vec<Result<Option<SectorRecord>, SectorFault>>, PoolError> {
    if !core.layout.has_records() {
        return Ok(vec![Ok(None); run.len()]);
    }
    let mut found = Vec::with_capacity(run.len());
    let mut at = run.start;
    let known: Vec<(u32, SectorRecord)> =
        extent.state().pending(run.clone()).map(|(sector, content)| (sector, content.record())).collect();
    for (sector, record) in known {
        stored(core, extent, at..sector, &mut found)?;
        found.push(Ok(Some(record)));
        at = sector + 1;
    }
    stored(core, extent, at..run.end, &mut found)?;
    Ok(found)
}

fn stored(
    core: &Core,
    extent: &Extent,
    run: Range<u32>,
    found: &mut Vec<Result<Option<SectorRecord>, SectorFault>>,
) -> Result<(), PoolError> {
    let mut at = run.start;
    while at < run.end {
        let mut good = Vec::new();
        let result = core.records.read(extent.index(), at..run.end, &mut good);
        at += u32::try_from(good.len()).unwrap_or(u32::MAX);
        found.extend(good.into_iter().map(|record| Ok(Some(record))));
        match result {
            Ok(()) => break,
            Err(PoolError::RecordDamaged { .. }) => found.push(Err(SectorFault::Record)),
            Err(PoolError::RecordsReplaced { .. }) => found.push(Err(SectorFault::RecordsReplaced)),
            Err(PoolError::Device(error)) if error.kind() == DeviceErrorKind::Io => {
                found.push(Err(SectorFault::RecordUnreadable));
            }
            Err(error) => return Err(error),
        }
        at += 1;
    }
    Ok(())
}

/// The checksum of each sector's ciphertext as the device has it; `None` where it cannot be read.
fn read(core: &Core, extent: &Extent, run: Range<u32>) -> Result<Vec<Option<u32>>, PoolError> {
    let at = core.layout.sector_at(extent.index(), run.start);
    match core.device.read(at, SectorCount(run.len() as u64)) {
        Ok(data) => Ok(data
            .as_bytes()
            .chunks_exact(SECTOR_BYTES)
            .map(|sector| Some(crc32c::crc32c(sector)))
            .collect()),
        Err(error) if error.kind() != DeviceErrorKind::Io => Err(error.into()),
        Err(_) if run.len() == 1 => Ok(vec![None]),
        Err(_) => {
            let mut found = Vec::with_capacity(run.len());
            for sector in run {
                found.append(&mut read(core, extent, sector..sector + 1)?);
            }
            Ok(found)
        }
    }
}
