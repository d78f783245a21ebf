//! Moving a pool to another device while it serves, without any key: `nightlatch pool replace`.
//!
//! While a pool is being moved, everything that is written goes to both devices ([`PoolDevice`]), and whoever moves it copies what
//! was there before: metadata, then every extent that is in use, in the order of their numbers. What is at an offset of the one
//! device is then at that offset of the other. At the end the superblocks say which of them is the pool.
//!
//! Invariants:
//! - At every moment the two superblocks name one of the devices as the pool, and it holds everything that was flushed:
//!
//!   | the old device says | the new one says | the pool is |
//!   |---|---|---|
//!   | nothing, or copying | nothing, or incoming | on the old one |
//!   | handing over | incoming, of the same copy | on the old one |
//!   | handing over | that it is the pool, with a higher generation | on the new one |
//!   | handing over | is not there | not known: nothing is opened until a person says so |
//!   | moved | | on the new one |
//!
//! - As long as the old device says that it copies to the new one, the new one has everything in its places that the old one's log
//!   does not have. So a cut loses nothing of the copy, if both devices are there when the pool is opened. Opened without the new
//!   one, it stops saying so before anything is written.
//! - The new device's failure ends the move and nothing else. The pool's own device may fail to read sectors of volumes: they are
//!   lost on the new device too, by their records, counted, and nothing else is.
//! - A sector without record could not be told from what the new device had in its place: in a pool without records none may be lost.
//!   Nor may metadata that was written.
//!
//! Crash order: steps 19 to 29 ([`CrashStep`]), with those of a superblock's change (7 to 10) where the old device begins to copy,
//! hands over, and where a move is cancelled.

use std::sync::Arc;

use device::{Device, Metadata, SectorBuf};
use units::{ByteLen, ByteOffset, PoolId, SectorCount};

use crate::commit::{Core, Writer, lock};
use crate::layout::{Layout, PAGES_PER_TRANSFER, SECTOR, SUPERBLOCK_SECTORS};
use crate::pool::{random, refuse_data, refuse_locked};
use crate::pool_device::{CopyDevice, CopyError};
use crate::superblock::{Moving, MovingStage, Superblock, Superblocks, superblock_at};
use crate::{CrashStep, OpenOptions, Pool, PoolError};

/// Sectors that are copied at once: 1 MiB.
const PART_SECTORS: u64 = 256;
/// How far is made durable after so much, or after so small a part of the device: each time costs flushes of the new device.
const SAVED_EVERY: ByteLen = ByteLen(256 << 20);
const SAVED_EVERY_SHARE: u64 = 16;

const NOT_RETIRED: &str = "the device that the pool was on could not be told that it is not any more; it does not open by itself all \
                           the same";

/// How far a pool's move to another device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacing {
    /// The path of the device that it moves to.
    pub onto: String,
    /// What was copied, and what there is to be copied as far as is known.
    pub copied: ByteLen,
    pub total: ByteLen,
    /// Everything is copied: it can be finished.
    pub copied_all: bool,
    /// Sectors that the old device did not read.
    pub unreadable: u64,
    /// Whether the new device has failed: the move can only be cancelled.
    pub failed: bool,
}

/// What one step has copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyStep {
    pub bytes: ByteLen,
    /// Sectors among them that the old device did not read.
    pub unreadable: u64,
}

/// A finished move.
#[derive(Debug)]
pub struct Replaced {
    /// The path of the device that the pool was on.
    pub from: String,
    /// Why that device could not be told that the pool is not on it any more. It opens by itself no more, all the same.
    pub not_retired: Option<PoolError>,
    /// Sectors that it did not read.
    pub unreadable: u64,
}

/// Where the copying is.
#[derive(Debug)]
pub(crate) struct Progress {
    moving: Moving,
    /// What the new device's superblock says.
    incoming: Superblock,
    /// Metadata that is still to be copied, the last first.
    fronts: Vec<(ByteOffset, ByteLen)>,
    extent: u32,
    /// Of that extent, what is copied: its records, and sectors of it.
    records_done: bool,
    sector: u64,
    copied: u64,
    unsaved: u64,
    unreadable: u64,
    copied_all: bool,
}

/// What is copied next.
#[derive(Clone, Copy, Debug)]
enum Part {
    Front {
        at: ByteOffset,
        sectors: u64,
    },
    Records {
        extent: u32,
    },
    Data {
        extent: u32,
        first: u64,
        sectors: u64,
    },
    /// Nothing: how far it is becomes durable.
    Save {
        last: bool,
    },
    End,
}

impl Progress {
    fn new(layout: Layout, moving: Moving, incoming: Superblock, next_extent: u32) -> Self {
        Self {
            moving,
            incoming,
            fronts: layout.fronts(incoming.device_len).collect(),
            extent: next_extent,
            records_done: false,
            sector: 0,
            copied: 0,
            unsaved: 0,
            unreadable: 0,
            copied_all: false,
        }
    }
}

impl Pool {
    /// Begins to move the pool to `onto`, which must be as long as what the pool uses; refuses one that holds anything but a move
    /// that did not come to its end, unless forced. From here on everything is written to both. Durable when it returns.
    pub fn begin_replacing(&self, onto: Arc<dyn Device>, force: bool) -> Result<(), PoolError> {
        let _changing = lock(&self.changing);
        let path = onto.info().path;
        if !force && !is_left_over(&*onto) {
            refuse_data(&*onto).map_err(|error| match error {
                PoolError::HoldsPool { device, pool } => PoolError::ReplacementHoldsPool { device, pool },
                PoolError::HoldsOtherData { device, found } => {
                    PoolError::ReplacementHoldsData { device, found }
                }
                error => error,
            })?;
        }
        refuse_locked(&*onto)?;
        let (found, needed) = (onto.refresh_len()?, self.core.used_len());
        if found < needed {
            return Err(PoolError::ReplacementTooSmall { device: path, found, needed });
        }
        self.core.begin_replacing(onto)
    }

    /// Copies up to 1 MiB; `None` where all is copied. An error ends the move, which then is to be cancelled.
    pub fn copy_step(&self) -> Result<Option<CopyStep>, PoolError> {
        self.core.copy_step()
    }

    /// Makes the device that everything was copied to the pool's. The device that it was on is told so, and let go of.
    pub fn finish_replacing(&self) -> Result<Replaced, PoolError> {
        let _changing = lock(&self.changing);
        self.core.finish_replacing()
    }

    /// The pool stays where it is. Durable when it returns.
    pub fn cancel_replacing(&self) -> Result<(), PoolError> {
        let _changing = lock(&self.changing);
        self.core.cancel_replacing()
    }

    /// Whether the pool is being moved, and how far that is.
    pub fn replacing(&self) -> Option<Replacing> {
        let progress = lock(&self.core.replacing);
        let (progress, copy) = (progress.as_ref()?, self.core.device.copy()?);
        let counts = self.core.allocator.counts();
        let allocated = u64::from(counts.allocated) * self.core.layout.extent_len().0;
        let total = if progress.copied_all { progress.copied } else { allocated.max(progress.copied) };
        Some(Replacing {
            onto: copy.device().info().path,
            copied: ByteLen(progress.copied),
            total: ByteLen(total),
            copied_all: progress.copied_all,
            unreadable: progress.unreadable,
            failed: copy.failure().is_some(),
        })
    }

    /// Opens the pool that is on `device`, or that is being moved or was moved from there to one of `others`.
    ///
    /// A move that was interrupted goes on with [`Pool::copy_step`]. Where the pool is on one of the others, `device` is told so.
    pub fn open_among(
        device: Arc<dyn Device>,
        others: &[Arc<dyn Device>],
        options: OpenOptions,
    ) -> Result<Arc<Self>, PoolError> {
        let found = Superblocks::read(&*device)?.current;
        let Some(moving) = found.moving else { return Self::open_as(device, None, options) };
        let incoming = others.iter().find(|other| is_incoming_of(&***other, &moving));
        let whole = others.iter().find(|other| is_successor_of(&***other, &found));
        match (moving.stage, incoming, whole) {
            (MovingStage::HandingOver | MovingStage::Moved, _, Some(whole)) => {
                let on_step = options.on_step.clone();
                // It may have been moved on since. Each is of a higher generation than the one before.
                let pool = Self::open_among(Arc::clone(whole), others, options)?;
                if moving.stage == MovingStage::HandingOver {
                    let step = |step| on_step.iter().for_each(|hook| hook(step));
                    if let Err(error) = retire(&*device, &found, moving, &step) {
                        tracing::warn!(pool = %found.pool, device = device.info().path, %error, "{NOT_RETIRED}");
                    }
                }
                tracing::warn!(
                    pool = %found.pool, from = device.info().path, to = whole.info().path,
                    "the pool was moved to another device: name that one in the configuration"
                );
                Ok(pool)
            }
            (MovingStage::Copying | MovingStage::HandingOver, Some(onto), _) => {
                Self::open_as(device, Some(Arc::clone(onto)), options)
            }
            // Refused, or, where it was only being copied, opened and copied no more.
            _ => Self::open_as(device, None, options),
        }
    }

    /// The pool that is whole on a device, if one is.
    pub fn is_on(device: &dyn Device) -> Option<PoolId> {
        let found = Superblocks::read(device).ok()?.current;
        let is_here = found
            .moving
            .is_none_or(|moving| matches!(moving.stage, MovingStage::Copying | MovingStage::HandingOver));
        is_here.then_some(found.pool)
    }

    /// Says that the device which a pool was being handed over to is lost, so that the pool is on this one. Only where it is: what
    /// was written to the other one since is gone.
    pub fn keep_on(device: &dyn Device) -> Result<bool, PoolError> {
        let found = Superblocks::read(device)?.current;
        let handing_over = found.moving.is_some_and(|moving| moving.stage == MovingStage::HandingOver);
        if handing_over {
            let kept = Superblock { moving: None, generation: found.generation + 1, ..found };
            write_both(
                device,
                &kept,
                &|_| {},
                [CrashStep::FirstSuperblockWrite, CrashStep::SecondSuperblockWrite],
            )?;
        }
        Ok(handing_over)
    }
}

/// Whether a device holds what is left of a move that did not come to its end.
fn is_left_over(device: &dyn Device) -> bool {
    let found = Superblocks::read(device).ok().and_then(|found| found.current.moving);
    found.is_some_and(|moving| matches!(moving.stage, MovingStage::Incoming { .. }))
}

fn is_incoming_of(device: &dyn Device, of: &Moving) -> bool {
    let found = Superblocks::read(device).ok().and_then(|found| found.current.moving);
    found.is_some_and(|moving| matches!(moving.stage, MovingStage::Incoming { .. }) && moving.copy == of.copy)
}

fn is_successor_of(device: &dyn Device, of: &Superblock) -> bool {
    let found = Superblocks::read(device).ok().map(|found| found.current);
    found.is_some_and(|found| {
        let is_here = found
            .moving
            .is_none_or(|moving| matches!(moving.stage, MovingStage::Copying | MovingStage::HandingOver));
        found.pool == of.pool && is_here && found.generation > of.generation
    })
}

/// Steps 28 and 29: the device says that the pool is not on it any more.
fn retire(
    device: &dyn Device,
    found: &Superblock,
    moving: Moving,
    step: &dyn Fn(CrashStep),
) -> Result<(), PoolError> {
    let moved = Superblock {
        moving: Some(moving.at(MovingStage::Moved)),
        // Below the successor's, by which that one is known.
        generation: found.generation + 1,
        ..*found
    };
    write_both(device, &moved, step, [CrashStep::RetireWrite, CrashStep::RetireWrite])
}

/// Writes both copies of a superblock, the second when the first is durable.
fn write_both(
    device: &dyn Device,
    superblock: &Superblock,
    step: &dyn Fn(CrashStep),
    steps: [CrashStep; 2],
) -> Result<(), PoolError> {
    let encoded = superblock.encode();
    for (copy, of_step) in (0..SUPERBLOCK_SECTORS.len()).zip(steps) {
        step(of_step);
        device.write_metadata(superblock_at(copy), &encoded)?;
        step(flush_behind(of_step));
        device.flush()?;
    }
    Ok(())
}

fn flush_behind(step: CrashStep) -> CrashStep {
    match step {
        CrashStep::IncomingWrite => CrashStep::IncomingFlush,
        CrashStep::SuccessorWrite => CrashStep::SuccessorFlush,
        CrashStep::RetireWrite => CrashStep::RetireFlush,
        CrashStep::FirstSuperblockWrite => CrashStep::FirstSuperblockFlush,
        _ => CrashStep::SecondSuperblockFlush,
    }
}

fn erase(device: &dyn Device, step: &dyn Fn(CrashStep)) -> Result<(), PoolError> {
    let zeros = Metadata::from_encoding(SectorBuf::zeroed(SectorCount(1)));
    step(CrashStep::IncomingErase);
    for copy in 0..SUPERBLOCK_SECTORS.len() {
        device.write_metadata(superblock_at(copy), &zeros)?;
    }
    step(CrashStep::IncomingEraseFlush);
    Ok(device.flush()?)
}

impl Core {
    /// What a pool does that was opened with the device it was being moved to, or says that it was being moved.
    pub(crate) fn take_up_replacing(&self) -> Result<(), PoolError> {
        let mut writer = self.writer()?;
        let Some(moving) = writer.superblock.moving else { return Ok(()) };
        let Some(copy) = self.device.copy().filter(|copy| copy.failure().is_none()) else {
            self.device.end_copying();
            // Before anything is written that the other device lacks.
            tracing::warn!(
                pool = %self.pool, onto = moving.other_path(),
                "the pool was being moved to another device, which is not here: that is given up, and begins anew when it is ordered"
            );
            return self.mark(&mut writer, None).map_err(|error| self.fail(error));
        };
        let incoming = Superblocks::read(&**copy.device())?.current;
        let next_extent = match incoming.moving.map(|moving| moving.stage) {
            Some(MovingStage::Incoming { next_extent }) => next_extent,
            _ => 0,
        };
        if moving.stage != MovingStage::Copying {
            // Should the other device not be here next time, the pool is on this one.
            self.mark(&mut writer, Some(moving.at(MovingStage::Copying)))
                .map_err(|error| self.fail(error))?;
        }
        let mut progress = Progress::new(self.layout, moving, incoming, next_extent);
        let before = (0..next_extent).filter(|extent| self.allocator.is_used(*extent)).count() as u64;
        progress.copied = before * self.layout.extent_len().0;
        *lock(&self.replacing) = Some(progress);
        Ok(())
    }

    fn begin_replacing(&self, onto: Arc<dyn Device>) -> Result<(), PoolError> {
        let _copying = lock(&self.copying);
        let mut writer = self.writer()?;
        if self.is_replacing() {
            return Err(PoolError::AlreadyReplacing(self.pool));
        }
        let step = |step| self.step(step);
        let (old, new) = (self.device.info().path, onto.info().path);
        let copy = random()?;
        // 19, 20: whatever was there is gone before it could be taken for something of this pool.
        erase(&*onto, &step).map_err(of_replacement)?;
        for (at, len) in self.layout.metadata_ranges(writer.superblock.device_len) {
            onto.reserve(at, len).map_err(PoolError::ReplacementFailed)?;
        }
        // 21, 22: it is there and says that it is not whole.
        let stage = MovingStage::Incoming { next_extent: 0 };
        let incoming =
            Superblock { generation: 1, moving: Some(Moving::new(stage, copy, &old)), ..writer.superblock };
        write_both(&*onto, &incoming, &step, [CrashStep::IncomingWrite; 2]).map_err(of_replacement)?;
        // Nothing is written from here on that it does not get.
        self.device.begin_copying(onto);
        // 7 to 10: only now does this device say so, and a copy that is found beside it is true.
        let moving = Moving::new(MovingStage::Copying, copy, &new);
        self.mark(&mut writer, Some(moving)).map_err(|error| self.fail(error))?;
        *lock(&self.replacing) = Some(Progress::new(self.layout, moving, incoming, 0));
        tracing::info!(pool = %self.pool, from = old, to = new, "moving the pool to another device");
        Ok(())
    }

    fn copy_step(&self) -> Result<Option<CopyStep>, PoolError> {
        self.check_not_failed()?;
        let _copying = lock(&self.copying);
        let copy = self.device.copy().ok_or(PoolError::NotReplacing(self.pool))?;
        loop {
            let part = self.next_part()?;
            let unreadable = match part {
                Part::Front { at, sectors } => {
                    let superblock = self.writer()?.superblock;
                    let is_unwritten = |at| !self.layout.is_written_front(at, &superblock);
                    // What lies there is nothing: it is not counted.
                    self.copy(at, sectors, &is_unwritten)?;
                    0
                }
                Part::Records { extent } => {
                    let (at, len) = self.layout.records_of(extent);
                    self.reserve_copy(&copy, extent)?;
                    self.copy(at, len.0 / SECTOR, &self.may_lack(extent))?
                }
                Part::Data { extent, first, sectors } => {
                    let at = ByteOffset(self.layout.sector_at(extent, 0).0 + first * SECTOR);
                    self.copy(at, sectors, &self.may_lack(extent))?
                }
                Part::Save { .. } => {
                    self.save_progress(&copy)?;
                    0
                }
                Part::End => return Ok(None),
            };
            let bytes = self.note_copied(part, unreadable)?;
            if bytes.0 > 0 {
                return Ok(Some(CopyStep { bytes, unreadable }));
            }
        }
    }

    /// Whether a sector of an extent may be lost. The pool's own is metadata.
    fn may_lack(&self, extent: u32) -> impl Fn(ByteOffset) -> bool + use<> {
        let may_lack = self.layout.has_records() && !self.holes.chunks().contains(&extent);
        move |_| may_lack
    }

    fn next_part(&self) -> Result<Part, PoolError> {
        let mut replacing = lock(&self.replacing);
        let progress = replacing.as_mut().ok_or(PoolError::NotReplacing(self.pool))?;
        if let Some((at, len)) = progress.fronts.last() {
            return Ok(Part::Front { at: *at, sectors: PART_SECTORS.min(len.0 / SECTOR) });
        }
        if progress.copied_all {
            return Ok(Part::End);
        }
        let next = self.allocator.next_used(progress.extent);
        if next != Some(progress.extent) {
            (progress.records_done, progress.sector) = (false, 0);
        }
        let Some(extent) = next else {
            progress.extent = self.allocator.counts().extents;
            return Ok(Part::Save { last: true });
        };
        progress.extent = extent;
        let saved_every = SAVED_EVERY.0.min(progress.incoming.device_len.0 / SAVED_EVERY_SHARE);
        if progress.unsaved >= saved_every && progress.sector == 0 && !progress.records_done {
            return Ok(Part::Save { last: false });
        }
        if self.layout.has_records() && !progress.records_done {
            return Ok(Part::Records { extent });
        }
        let left = u64::from(self.layout.extent_sectors()) - progress.sector;
        Ok(Part::Data { extent, first: progress.sector, sectors: PART_SECTORS.min(left) })
    }

    /// A part is copied, or how far that is was saved; how much there was of it.
    fn note_copied(&self, part: Part, unreadable: u64) -> Result<ByteLen, PoolError> {
        let mut replacing = lock(&self.replacing);
        let progress = replacing.as_mut().ok_or(PoolError::NotReplacing(self.pool))?;
        progress.unreadable += unreadable;
        Ok(match part {
            Part::Front { sectors, .. } => {
                let copied = sectors * SECTOR;
                if let Some((at, len)) = progress.fronts.pop().filter(|(_, len)| len.0 > copied) {
                    progress.fronts.push((ByteOffset(at.0 + copied), ByteLen(len.0 - copied)));
                }
                ByteLen(copied)
            }
            Part::Records { extent } => {
                progress.records_done = true;
                self.layout.records_of(extent).1
            }
            Part::Data { extent, first, sectors } => {
                progress.sector = first + sectors;
                progress.copied += sectors * SECTOR;
                progress.unsaved += sectors * SECTOR;
                if progress.sector == u64::from(self.layout.extent_sectors()) {
                    (progress.extent, progress.records_done, progress.sector) = (extent + 1, false, 0);
                }
                ByteLen(sectors * SECTOR)
            }
            Part::Save { last } => {
                progress.copied_all = last;
                ByteLen(0)
            }
            Part::End => ByteLen(0),
        })
    }

    /// Step 23; how many sectors could not be read.
    fn copy(
        &self,
        at: ByteOffset,
        sectors: u64,
        may_lack: &dyn Fn(ByteOffset) -> bool,
    ) -> Result<u64, PoolError> {
        self.step(CrashStep::CopyWrite);
        let copied = self.device.copy_range(at, SectorCount(sectors), may_lack);
        copied.map(|copied| copied.unreadable).map_err(|error| match error {
            CopyError::Source(error) => PoolError::Device(error),
            CopyError::Copy(error) => PoolError::ReplacementFailed(error),
        })
    }

    /// On a sparse file, room for what the log may promise of this extent.
    fn reserve_copy(&self, copy: &CopyDevice, extent: u32) -> Result<(), PoolError> {
        let (at, len) = self.layout.records_of(extent);
        let reserved = copy.device().reserve(at, len);
        let reserved = reserved
            .and_then(|()| copy.device().reserve(self.layout.sector_at(extent, 0), self.layout.extent_len()));
        reserved.map_err(|error| failed(copy, error.into()))
    }

    /// Steps 24, 21 and 22: what was copied is durable, and then how far that is.
    fn save_progress(&self, copy: &CopyDevice) -> Result<(), PoolError> {
        self.step(CrashStep::CopyFlush);
        copy.flush().map_err(PoolError::ReplacementFailed)?;
        let incoming = {
            let mut replacing = lock(&self.replacing);
            let progress = replacing.as_mut().ok_or(PoolError::NotReplacing(self.pool))?;
            let stage = MovingStage::Incoming { next_extent: progress.extent };
            progress.incoming.generation += 1;
            progress.incoming.moving = progress.incoming.moving.map(|moving| moving.at(stage));
            progress.unsaved = 0;
            progress.incoming
        };
        let step = |step| self.step(step);
        write_both(&**copy.device(), &incoming, &step, [CrashStep::IncomingWrite; 2])
            .map_err(|error| failed(copy, error))
    }

    fn finish_replacing(&self) -> Result<Replaced, PoolError> {
        let _copying = lock(&self.copying);
        let mut writer = self.writer()?;
        let (moving, incoming, unreadable) = match &*lock(&self.replacing) {
            None => return Err(PoolError::NotReplacing(self.pool)),
            Some(progress) if !progress.copied_all => return Err(PoolError::NotCopied(self.pool)),
            Some(progress) => (progress.moving, progress.incoming, progress.unreadable),
        };
        let copy = self.device.copy().ok_or(PoolError::NotReplacing(self.pool))?;
        // The log becomes as short as it can be, and all of it that counts goes to the new device.
        self.checkpoint(&mut writer).map_err(|error| self.fail(error))?;
        self.copy_log(&writer)?;
        // 24: whatever was written so far is on the new device.
        self.step(CrashStep::CopyFlush);
        copy.flush().map_err(PoolError::ReplacementFailed)?;
        // 25, with 7 to 10: from here on the old device alone is nobody's pool.
        self.step(CrashStep::HandOver);
        let handing_over = moving.at(MovingStage::HandingOver);
        self.mark(&mut writer, Some(handing_over)).map_err(|error| self.fail(error))?;
        if let Some(error) = copy.failure() {
            self.mark(&mut writer, None).map_err(|error| self.fail(error))?;
            return Err(PoolError::ReplacementFailed(error.clone()));
        }
        // 26, 27: the new one is the pool.
        let old_superblock = writer.superblock;
        // Above what the old one will say at last.
        let generation = old_superblock.generation.max(incoming.generation) + 2;
        let successor = Superblock { generation, moving: None, ..old_superblock };
        self.write_successor(&mut writer, &successor, &copy)?;
        // Nothing goes to the old one any more.
        let old = self.device.switch().ok_or(PoolError::NotReplacing(self.pool))?;
        writer.superblock = successor;
        *lock(&self.replacing) = None;
        drop(writer);
        // 28, 29: and it says so.
        let step = |step| self.step(step);
        let not_retired = retire(&*old, &old_superblock, handing_over, &step).err();
        if let Some(error) = &not_retired {
            tracing::warn!(pool = %self.pool, device = old.info().path, %error, "{NOT_RETIRED}");
        }
        let (from, to) = (old.info().path, self.device.info().path);
        tracing::info!(pool = %self.pool, from, to, unreadable, "the pool was moved to another device");
        Ok(Replaced { from, not_retired, unreadable })
    }

    /// Steps 26 and 27. Where they fail, the device may or may not say that it is the pool: it is made to say nothing, or nobody
    /// knows which is, and the pool fails.
    fn write_successor(
        &self,
        writer: &mut Writer,
        successor: &Superblock,
        copy: &CopyDevice,
    ) -> Result<(), PoolError> {
        let step = |step| self.step(step);
        let written = write_both(&**copy.device(), successor, &step, [CrashStep::SuccessorWrite; 2]);
        let Err(error) = written.map_err(|error| failed(copy, error)) else { return Ok(()) };
        if erase(&**copy.device(), &step).is_err() {
            return Err(self.fail(error));
        }
        self.mark(writer, None).map_err(|error| self.fail(error))?;
        Err(error)
    }

    /// Copies the blocks of the log that count.
    fn copy_log(&self, writer: &Writer) -> Result<(), PoolError> {
        let (mut next, end) = (writer.superblock.log_start, writer.log.end().next);
        while next < end {
            let to_ring_end = self.layout.log_blocks() - next % self.layout.log_blocks();
            let count = (end - next).min(to_ring_end).min(PAGES_PER_TRANSFER);
            self.copy(self.layout.log_block_at(next), count, &|_| false)?;
            next += count;
        }
        Ok(())
    }

    fn cancel_replacing(&self) -> Result<(), PoolError> {
        let _copying = lock(&self.copying);
        let mut writer = self.writer()?;
        if !self.is_replacing() {
            return Err(PoolError::NotReplacing(self.pool));
        }
        // 7 to 10: this device says so no more before the first write that the other one lacks.
        if writer.superblock.moving.is_some() {
            self.mark(&mut writer, None).map_err(|error| self.fail(error))?;
        }
        // What is there says that it is not whole, and is never opened.
        self.device.end_copying();
        *lock(&self.replacing) = None;
        tracing::info!(pool = %self.pool, "moving the pool to another device was given up: it stays where it is");
        Ok(())
    }

    /// Changes what the superblock says of a move, and nothing else of it.
    pub(crate) fn mark(&self, writer: &mut Writer, moving: Option<Moving>) -> Result<(), PoolError> {
        let superblock = Superblock { moving, ..writer.superblock };
        self.write_superblock_as(writer, superblock)
    }

    /// Flushes, and, where the device that the pool is being moved to has missed something, says so durably before anything is built on
    /// the flush.
    pub(crate) fn flush_device(&self, writer: &mut Writer) -> Result<(), PoolError> {
        self.device.flush()?;
        if writer.superblock.moving.is_some() && self.device.copy_has_failed() {
            self.mark(writer, None)?;
        }
        Ok(())
    }

    pub(crate) fn is_replacing(&self) -> bool {
        lock(&self.replacing).is_some()
    }
}

/// The new device cannot say any more what it has: it is no copy from here on.
fn failed(copy: &CopyDevice, error: PoolError) -> PoolError {
    let error = of_replacement(error);
    if let PoolError::ReplacementFailed(error) = &error {
        copy.fail(error.clone());
    }
    error
}

fn of_replacement(error: PoolError) -> PoolError {
    match error {
        PoolError::Device(error) => PoolError::ReplacementFailed(error),
        error => error,
    }
}
