//! The pool: made, opened, listed, grown; volumes created, resized and deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};

use device::{Device, Metadata, SectorBuf};
use units::{ByteLen, Fence, PoolId, SECTORS_MAX, SectorCount, VolumeId};

use crate::allocator::{AllocatedExtent, Allocator};
use crate::commit::{Core, Retired, lock};
use crate::entry::{VolumeEntry, VolumeRecord, VolumeSerial};
use crate::extent::Extent;
use crate::layout::{Layout, SUPERBLOCK_SECTORS};
use crate::load::{Loaded, MappedExtent};
use crate::log::{Link, Log};
use crate::probe;
use crate::superblock::{Superblock, Superblocks, superblock_at};
use crate::volume::{PoolVolume, VolumeState};
use crate::{
    CrashStep, CreateOptions, Damage, FORMAT_VERSION, OpenOptions, PoolError, PoolInfo, RepairedSuperblock,
    StepHook, VOLUMES_MAX, VolumeInfo, VolumeSpec,
};

/// An open pool. It stays open until it and every volume taken from it are dropped.
pub struct Pool {
    pub(crate) core: Arc<Core>,
    volumes: Mutex<Volumes>,
    /// Held through creating, deleting, resizing and growing: they are rare, and each waits for its own flush.
    changing: Mutex<()>,
    repaired: Option<RepairedSuperblock>,
}

#[derive(Debug, Default)]
struct Volumes {
    live: BTreeMap<VolumeId, Arc<VolumeState>>,
    next_serial: u64,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("core", &self.core).finish_non_exhaustive()
    }
}

impl VolumeSpec {
    pub(crate) fn size_is_allowed(&self) -> bool {
        size_is_allowed(self.sectors)
    }
}

fn size_is_allowed(sectors: SectorCount) -> bool {
    (1..=SECTORS_MAX).contains(&sectors.0)
}

impl Pool {
    /// Makes an empty pool on `device` and opens it. Refuses a device that holds anything, unless forced.
    ///
    /// A power cut in the middle leaves either what was there, or nothing, or the new pool.
    pub fn create(device: Arc<dyn Device>, options: CreateOptions) -> Result<Arc<Self>, PoolError> {
        Self::create_with(device, options, OpenOptions::default())
    }

    /// As [`Pool::create`], with options for the pool it opens.
    pub fn create_with(
        device: Arc<dyn Device>,
        create: CreateOptions,
        open: OpenOptions,
    ) -> Result<Arc<Self>, PoolError> {
        let len = device.refresh_len()?;
        let layout =
            Layout::new(create.extent_len, create.log_len.unwrap_or_else(|| Layout::default_log_len(len)))?;
        if layout.extents_on(len)? == 0 {
            return Err(PoolError::DeviceTooSmall {
                device: device.info().path,
                found: len,
                needed: layout.device_len_min(),
            });
        }
        if !create.force {
            refuse_data(&*device)?;
        }
        let superblock = Superblock {
            pool: match create.id {
                Some(id) => id,
                None => PoolId(random()?),
            },
            generation: 1,
            layout,
            device_len: len,
            compat: 0,
            log_start: 0,
            log_link: Link { session: random_u64()?, checksum: 0 },
            extent_pages: 0,
            volume_pages: 0,
        };
        write_first_superblocks(&*device, &superblock, open.on_step.as_ref())?;
        Self::open_with(device, open)
    }

    /// Opens the pool on `device`.
    ///
    /// Nothing is written when this fails. When it succeeds, a copy of the superblock that was damaged has been
    /// written again from the other, and [`PoolInfo::repaired`] says so.
    pub fn open(device: Arc<dyn Device>) -> Result<Arc<Self>, PoolError> {
        Self::open_with(device, OpenOptions::default())
    }

    /// As [`Pool::open`], with options.
    pub fn open_with(device: Arc<dyn Device>, options: OpenOptions) -> Result<Arc<Self>, PoolError> {
        device.refresh_len()?;
        let mut loaded = Loaded::read(&*device)?;
        if let Some(error) = loaded.first_problem(&*device) {
            return Err(error);
        }
        let superblock = loaded.superblocks.current;
        let allocator = Allocator::new(superblock.layout.extents_on(superblock.device_len)?);
        let (volumes, retired) = take_volumes(&*device, &mut loaded, &allocator)?;
        let log = Log::new(&superblock, loaded.log_end, random_u64()?);
        // Step 14. A predecessor that was killed leaves log blocks in the device's cache, read here as if they were
        // durable. Were one lost after an extent that it frees has been given away, the old mapping would be back.
        step(options.on_step.as_ref(), CrashStep::OpenFlush);
        device.flush()?;
        let repaired = repair(&*device, &loaded.superblocks, options.on_step.as_ref())?;
        let core = Arc::new(Core::new(device, superblock, log, loaded.logged, allocator, options.on_step));
        lock(&core.dirty).retired = retired;
        for volume in volumes.live.values() {
            volume.mark_leftovers(&core);
        }
        let pool = Self { core, volumes: Mutex::new(volumes), changing: Mutex::new(()), repaired };
        Ok(Arc::new(pool))
    }

    pub fn info(&self) -> PoolInfo {
        let (allocated, extents) = self.core.allocator.counts();
        let extent_len = self.core.layout.extent_len();
        PoolInfo {
            id: self.core.pool,
            format_version: FORMAT_VERSION,
            device: self.core.device.info(),
            used_len: self.core.used_len(),
            extent_len,
            capacity: ByteLen(u64::from(extents) * extent_len.0),
            allocated: ByteLen(u64::from(allocated) * extent_len.0),
            volumes: lock(&self.volumes).live.len() as u64,
            repaired: self.repaired,
            failed: self.core.has_failed(),
        }
    }

    /// Every volume, in the order of their ids.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let extent_len = self.core.layout.extent_len();
        lock(&self.volumes).live.values().map(|volume| volume.info(extent_len)).collect()
    }

    /// Opens a volume.
    pub fn volume(&self, id: VolumeId) -> Result<Arc<PoolVolume>, PoolError> {
        Ok(PoolVolume::new(&self.core, &self.state_of(id)?))
    }

    fn state_of(&self, id: VolumeId) -> Result<Arc<VolumeState>, PoolError> {
        lock(&self.volumes).live.get(&id).cloned().ok_or(PoolError::NoSuchVolume(id))
    }

    /// Creates a volume of holes. Durable when it returns.
    pub fn create_volume(&self, spec: VolumeSpec) -> Result<Arc<PoolVolume>, PoolError> {
        self.core.check_not_failed()?;
        if !spec.size_is_allowed() {
            return Err(PoolError::VolumeSize(spec.sectors));
        }
        let _changing = lock(&self.changing);
        let state = {
            let mut volumes = lock(&self.volumes);
            if volumes.live.contains_key(&spec.id) {
                return Err(PoolError::VolumeExists(spec.id));
            }
            let used: BTreeSet<u32> = volumes.live.values().map(|volume| volume.slot).collect();
            let slot = (0..VOLUMES_MAX).find(|slot| !used.contains(slot)).ok_or(PoolError::TooManyVolumes)?;
            let serial = VolumeSerial(volumes.next_serial);
            volumes.next_serial += 1;
            let record = VolumeRecord { spec, fence: Fence(0) };
            let sectors = self.core.layout.extent_sectors();
            let state = Arc::new(VolumeState::new(slot, serial, &record, sectors, BTreeMap::new()));
            volumes.live.insert(spec.id, Arc::clone(&state));
            state
        };
        state.mark_created(&self.core);
        self.core.flush()?;
        Ok(PoolVolume::new(&self.core, &state))
    }

    /// Deletes a volume and frees its extents. Durable when it returns. Works on a full pool.
    pub fn delete_volume(&self, id: VolumeId) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        let _changing = lock(&self.changing);
        let state = lock(&self.volumes).live.remove(&id).ok_or(PoolError::NoSuchVolume(id))?;
        state.delete(&self.core);
        self.core.flush()
    }

    /// Changes the size of a volume. Durable when it returns. What shrinking cuts off is gone, and a hole should the
    /// volume grow again; after a power cut in the middle the size is the old or the new one.
    pub fn resize_volume(&self, id: VolumeId, sectors: SectorCount) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        if !size_is_allowed(sectors) {
            return Err(PoolError::VolumeSize(sectors));
        }
        let _changing = lock(&self.changing);
        let state = self.state_of(id)?;
        // What an earlier shrinking cut off must be unmapped before a larger size could show it again.
        self.core.flush()?;
        state.resize(&self.core, sectors);
        self.core.flush()
    }

    /// Records that a grant with this fence has been seen. Durable when it returns; a fence that is not above the
    /// highest seen is [`PoolError::StaleFence`].
    pub fn raise_fence(&self, id: VolumeId, fence: Fence) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        self.state_of(id)?.raise_fence(&self.core, fence)?;
        self.core.flush()
    }

    /// Uses what the device has become longer by, and returns the length in use. Durable when it returns.
    pub fn grow(&self) -> Result<ByteLen, PoolError> {
        let _changing = lock(&self.changing);
        self.core.grow()
    }

    /// Makes everything durable that was acknowledged before the call, on every volume. An error is final: see
    /// [`PoolError::Failed`].
    pub fn flush(&self) -> Result<(), PoolError> {
        self.core.flush()
    }
}

/// Refuses a device that holds a pool or anything else.
fn refuse_data(device: &dyn Device) -> Result<(), PoolError> {
    let name = device.info().path;
    match Superblocks::read(device) {
        Ok(found) => Err(PoolError::HoldsPool { device: name, pool: found.current.pool }),
        Err(PoolError::NoPool { .. }) => Ok(()),
        Err(PoolError::SuperblocksDamaged { .. }) => {
            let found = probe::contents(device)?.unwrap_or(probe::UNKNOWN);
            Err(PoolError::HoldsOtherData { device: name, found })
        }
        Err(error) => Err(error),
    }
}

/// Crash order: 12 and 13 zero both copies, so that a cut never leaves one of an older pool beside one of the new; 7 to
/// 10 write the new ones.
fn write_first_superblocks(
    device: &dyn Device,
    superblock: &Superblock,
    on_step: Option<&StepHook>,
) -> Result<(), PoolError> {
    let zeros = Metadata::from_encoding(SectorBuf::zeroed(SectorCount(1)));
    step(on_step, CrashStep::CreateErase);
    for copy in 0..SUPERBLOCK_SECTORS.len() {
        device.write_metadata(superblock_at(copy), &zeros)?;
    }
    step(on_step, CrashStep::CreateEraseFlush);
    device.flush()?;
    for (at, len) in superblock.layout.metadata_ranges(superblock.device_len) {
        device.reserve(at, len)?;
    }
    let encoded = superblock.encode();
    step(on_step, CrashStep::FirstSuperblockWrite);
    device.write_metadata(superblock_at(0), &encoded)?;
    step(on_step, CrashStep::FirstSuperblockFlush);
    device.flush()?;
    step(on_step, CrashStep::SecondSuperblockWrite);
    device.write_metadata(superblock_at(1), &encoded)?;
    step(on_step, CrashStep::SecondSuperblockFlush);
    device.flush()?;
    Ok(())
}

/// Step 15: writes the copy that is damaged or one change behind again, from the current one.
fn repair(
    device: &dyn Device,
    superblocks: &Superblocks,
    on_step: Option<&StepHook>,
) -> Result<Option<RepairedSuperblock>, PoolError> {
    let Some((copy, _)) = superblocks.behind else { return Ok(None) };
    step(on_step, CrashStep::OpenRepair);
    device.write_metadata(superblock_at(copy), &superblocks.current.encode())?;
    device.flush()?;
    let repaired = superblocks.damaged();
    if let Some(RepairedSuperblock { sector, fault }) = repaired {
        tracing::warn!(
            pool = %superblocks.current.pool,
            device = device.info().path,
            sector,
            %fault,
            "a copy of the superblock was damaged and has been written again from the other; check the device"
        );
    }
    Ok(repaired)
}

/// The live volumes with their maps, and the extents that are to be freed by the first flush.
fn take_volumes(
    device: &dyn Device,
    loaded: &mut Loaded,
    allocator: &Arc<Allocator>,
) -> Result<(Volumes, Vec<Retired>), PoolError> {
    let layout = loaded.superblocks.current.layout;
    let taken_twice = |index: u32| PoolError::MetadataDamaged {
        device: device.info().path,
        what: Damage::ExtentTwice,
        at: layout.sector_at(index, 0),
    };
    let take = |index: u32| {
        let marked = allocator.mark(index);
        marked.then(|| AllocatedExtent::new(index, allocator)).ok_or_else(|| taken_twice(index))
    };
    let highest = loaded.volumes.values().map(|entry| entry.serial.0).max();
    let mut volumes = Volumes { live: BTreeMap::new(), next_serial: highest.unwrap_or(0) + 1 };
    for (slot, VolumeEntry { serial, volume }) in &loaded.volumes {
        let Some(record) = volume else { continue };
        let mut extents = Vec::new();
        for MappedExtent { logical, index, epoch, presence } in loaded.maps.remove(serial).unwrap_or_default()
        {
            extents.push((logical, Arc::new(Extent::recorded(take(index)?, epoch, presence))));
        }
        let state =
            VolumeState::new(*slot, *serial, record, layout.extent_sectors(), extents.into_iter().collect());
        volumes.live.insert(record.spec.id, Arc::new(state));
    }
    let mut retired = Vec::new();
    for index in &loaded.outside {
        let extent = Extent::recorded(take(*index)?, units::VolumeEpoch(0), crate::presence::Presence::None);
        retired.push(Retired { extent: Arc::new(extent), needs_record: true });
    }
    Ok((volumes, retired))
}

fn step(on_step: Option<&StepHook>, step: CrashStep) {
    if let Some(hook) = on_step {
        hook(step);
    }
}

fn random<const N: usize>() -> Result<[u8; N], PoolError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(PoolError::Random)?;
    Ok(bytes)
}

fn random_u64() -> Result<u64, PoolError> {
    random().map(u64::from_le_bytes)
}
