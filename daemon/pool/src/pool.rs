//! The pool: made, opened, listed, grown; volumes created, resized and deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use device::{Device, Metadata, Sealed, SectorBuf, SectorRecord};
use units::{ByteLen, Fence, PoolId, SECTORS_MAX, SectorCount, VolumeId};

use crate::allocator::{Account, Allocated, Allocator};
use crate::blocks::AHEAD;
use crate::branch::{Branch, Left, View};
use crate::commit::{Core, Parts, lock};
use crate::digest::{StateHead, Tables};
use crate::entry::{BranchId, Level, Moment, Role, VolumeRecord};
use crate::extent::{Extent, ExtentKind};
use crate::held::Held;
use crate::history::History;
use crate::holes::HoleTable;
use crate::layout::{Layout, PAGES_PER_TRANSFER, SUPERBLOCK_SECTORS, SectorRecords};
use crate::load::{Loaded, MappedExtent};
use crate::log::{Link, Log};
use crate::placement::{Placement, Waiting};
use crate::probe;
use crate::records::{Digests, RecordStore, SectorId};
use crate::superblock::{Superblock, Superblocks, superblock_at};
use crate::volume::{PoolVolume, VolumeState};
use crate::{
    CrashStep, CreateOptions, Damage, FORMAT_VERSION, Limits, OpenOptions, PoolError, PoolInfo,
    RepairedSuperblock, StepHook, VOLUMES_MAX, VolumeInfo, VolumeSpec,
};

/// An open pool. It stays open until it and every volume taken from it are dropped.
pub struct Pool {
    pub(crate) core: Arc<Core>,
    pub(crate) volumes: Mutex<Volumes>,
    /// Held through creating, deleting, snapshotting, resizing and growing: they are rare, and each waits for its own
    /// flush.
    pub(crate) changing: Mutex<()>,
    /// Held through a step of folding.
    pub(crate) folding: Mutex<()>,
    /// Taken before it: see [`Turns`].
    pub(crate) turns: Turns,
    repaired: Option<RepairedSuperblock>,
}

/// A lock for each replica, held by what takes something in, promotes it, or takes it or a snapshot of it away. Giving a replica its
/// content again takes long, and nothing else of the pool waits for it.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<BTreeMap<VolumeId, Arc<Mutex<()>>>>);

impl Turns {
    pub(crate) fn of(&self, volume: VolumeId) -> Arc<Mutex<()>> {
        let mut turns = lock(&self.0);
        // Nobody waits for the others.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(volume).or_default())
    }
}

/// Volumes and snapshots.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    pub(crate) live: BTreeMap<VolumeId, Arc<VolumeState>>,
    next_serial: u64,
}

impl Volumes {
    /// A slot that is free and a serial that is new.
    pub(crate) fn vacancy(&mut self) -> Result<(u32, BranchId), PoolError> {
        let used: BTreeSet<u32> = self.live.values().map(|volume| volume.slot).collect();
        let slot = (0..VOLUMES_MAX).find(|slot| !used.contains(slot)).ok_or(PoolError::TooManyVolumes)?;
        Ok((slot, self.next_serial()))
    }

    pub(crate) fn next_serial(&mut self) -> BranchId {
        let serial = BranchId(self.next_serial);
        self.next_serial += 1;
        serial
    }
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
        let log_len = create.log_len.unwrap_or_else(|| Layout::default_log_len(len));
        let layout = Layout::new(create.extent_len, log_len, SectorRecords::Digested)?;
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
        if create.force && !create.destroy_locked {
            refuse_locked(&*device)?;
        }
        let superblock = Superblock {
            pool: match create.id {
                Some(id) => id,
                None => PoolId(random()?),
            },
            version: FORMAT_VERSION,
            generation: 1,
            layout,
            device_len: len,
            compat: 0,
            log_start: 0,
            log_link: Link { session: random_u64()?, checksum: 0 },
            extent_pages: 0,
            volume_pages: 0,
            hole_pages: 0,
            next_sequence: 1,
            digest_pages: 0,
            state: StateHead::BEGINNING,
            root: Tables::default().root(),
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
        let space = Space {
            allocator: Allocator::new(superblock.layout.extents_on(superblock.device_len)?),
            holes: HoleTable::new(superblock.layout.hole_entries_per_chunk()),
        };
        let Taken { volumes, branches, placement } = space.take(&*device, &mut loaded)?;
        let log = Log::new(&superblock, loaded.log_end, random_u64()?);
        // Step 14. A predecessor that was killed leaves log blocks in the device's cache, read here as if they were
        // durable. Were one lost after an extent that it frees has been given away, the old mapping would be back.
        step(options.on_step.as_ref(), CrashStep::OpenFlush);
        device.flush()?;
        let repaired = repair(&*device, &loaded.superblocks, options.on_step.as_ref())?;
        if loaded.is_altered() {
            tracing::error!(
                pool = %superblock.pool,
                "the pool's tables or digests are not those that were last written: each sector is still judged by its \
                 record, and keyholders are told"
            );
        }
        let newer = loaded.sectors.iter().map(|(of, logged)| (*of, logged.record)).collect();
        let changing = loaded.changing();
        let digests = superblock.layout.has_digests().then(|| Digests {
            planned: loaded.begun.plan.iter().map(|(at, planned)| (at.0, *planned)).collect(),
            reliable: !loaded.is_altered(),
            stored: std::mem::take(&mut loaded.record_digests),
        });
        let of_pool = (superblock.layout, superblock.pool);
        let parts = Parts {
            superblock,
            log,
            logged: loaded.logged,
            changing,
            tables: loaded.tables,
            begun: loaded.begun,
            history: History::new(loaded.opened),
            allocator: space.allocator,
            holes: space.holes,
            records: RecordStore::new(Arc::clone(&device), of_pool, newer, digests, options.record_cache),
            placement,
            next_sequence: loaded.next_sequence,
            on_step: options.on_step,
            on_damage: options.on_damage,
        };
        let core = Arc::new(Core::new(device, parts));
        core.finish_checkpoint()?;
        core.migrate()?;
        volumes.live.values().filter(|state| !state.is_replica()).for_each(|state| {
            core.encrypted.add(state.key(), state.blocks());
        });
        let pool = Self {
            core,
            volumes: Mutex::new(volumes),
            changing: Mutex::new(()),
            folding: Mutex::new(()),
            turns: Turns::default(),
            repaired,
        };
        pool.take_up(&branches);
        Ok(Arc::new(pool))
    }

    /// Mends what a power cut left between two steps, with the first flush, and brings the limits to bear.
    fn take_up(&self, branches: &BTreeMap<BranchId, Arc<Branch>>) {
        let volumes = lock(&self.volumes);
        let mut heads: BTreeMap<BranchId, (Moment, u64)> = BTreeMap::new();
        for volume in volumes.live.values().filter(|volume| !volume.is_snapshot()) {
            let head = volume.head();
            heads.insert(head.view.branch.id, (head.view.moment, head.sectors.0));
            volume.restore_limits(&self.core, &head);
        }
        for (id, branch) in branches {
            branch.mark_leftovers(&self.core, heads.get(id).copied());
        }
        self.core.unmapped();
    }

    pub fn info(&self) -> PoolInfo {
        let counts = self.core.allocator.counts();
        let extents = |count: u64| ByteLen(count * self.core.layout.extent_len().0);
        let volumes = lock(&self.volumes);
        let snapshots = volumes.live.values().filter(|volume| volume.is_snapshot()).count() as u64;
        PoolInfo {
            id: self.core.pool,
            format_version: FORMAT_VERSION,
            device: self.core.device.info(),
            used_len: self.core.used_len(),
            extent_len: self.core.layout.extent_len(),
            capacity: extents(u64::from(counts.extents - counts.pool)),
            allocated: extents(u64::from(counts.allocated - counts.pool)),
            reserved: extents(counts.promised),
            volumes: volumes.live.len() as u64 - snapshots,
            snapshots,
            repaired: self.repaired,
            keeps_records: self.core.layout.has_records(),
            damaged: self.core.damaged(),
            failed: self.core.has_failed(),
        }
    }

    /// The durable state, for the keyholder to remember; `None` of a pool that keeps none (versions before 5).
    pub fn tell_state(&self) -> Option<StateHead> {
        self.core.history.tell()
    }

    /// Every volume, in the order of their ids.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let volumes = lock(&self.volumes);
        let volumes = volumes.live.values().filter(|volume| !volume.is_snapshot());
        volumes.map(|volume| volume.info(&self.core)).collect()
    }

    /// Opens a volume.
    pub fn volume(&self, id: VolumeId) -> Result<Arc<PoolVolume>, PoolError> {
        Ok(PoolVolume::new(&self.core, &self.volume_state(id)?))
    }

    pub(crate) fn volume_state(&self, id: VolumeId) -> Result<Arc<VolumeState>, PoolError> {
        match lock(&self.volumes).live.get(&id) {
            Some(found) if !found.is_snapshot() => Ok(Arc::clone(found)),
            Some(_) => Err(PoolError::NotAVolume(id)),
            None => Err(PoolError::NoSuchVolume(id)),
        }
    }

    /// Creates a volume of holes. Durable when it returns.
    pub fn create_volume(&self, spec: VolumeSpec) -> Result<Arc<PoolVolume>, PoolError> {
        self.create_volume_within(spec, Limits::default())
    }

    /// As [`Pool::create_volume`], with limits from the start; [`PoolError::NoSpace`] where there is no room for the
    /// reserve.
    pub fn create_volume_within(
        &self,
        spec: VolumeSpec,
        limits: Limits,
    ) -> Result<Arc<PoolVolume>, PoolError> {
        self.core.check_not_failed()?;
        if !spec.size_is_allowed() {
            return Err(PoolError::VolumeSize(spec.sectors));
        }
        let _changing = lock(&self.changing);
        self.add_volume(spec, Role::Volume { fence: Fence(0), limits }, None)
    }

    /// Makes a volume, of holes or of what a snapshot shows, while nothing else is being changed. Durable when it returns.
    pub(crate) fn add_volume(
        &self,
        spec: VolumeSpec,
        role: Role,
        of: Option<(VolumeId, &View)>,
    ) -> Result<Arc<PoolVolume>, PoolError> {
        let (slot, serial) = {
            let mut volumes = lock(&self.volumes);
            if volumes.live.contains_key(&spec.id) {
                return Err(PoolError::VolumeExists(spec.id));
            }
            volumes.vacancy()?
        };
        let account = self.core.allocator.open_account();
        if let Role::Volume { limits, .. } = role
            && let Err(error) = self.core.set_limits(account, limits)
        {
            self.core.allocator.close_account(account);
            return Err(error);
        }
        // So that its first writes need not wait for a reservation.
        let ahead = if matches!(role, Role::Replica { .. }) { 0 } else { AHEAD };
        let reserved = self.core.encrypted.reserve((spec.domain, spec.epoch), 0, ahead);
        let blocks = reserved.map_or(0, |(blocks, _)| blocks);
        let sectors = self.core.layout.extent_sectors();
        let branch = Branch::new(serial, account, of.map(|(_, below)| below), sectors);
        self.core.holes.expect_inherited(branch.inherited);
        let view = View { branch, moment: Moment(0) };
        view.attach(self.core.layout.extents_spanned(spec.sectors));
        let record = VolumeRecord {
            spec,
            role,
            levels: view.recorded_levels(),
            origin: of.map(|(snapshot, _)| snapshot),
            created_s: 0,
            blocks,
            lock_s: 0,
        };
        let state = Arc::new(VolumeState::new(slot, serial, &record, view, sectors));
        state.blocks.begin();
        lock(&self.volumes).live.insert(spec.id, Arc::clone(&state));
        state.mark_entry(&self.core, &state.head());
        self.core.flush()?;
        Ok(PoolVolume::new(&self.core, &state))
    }

    /// Deletes a volume and frees what no snapshot shows. Durable when it returns. Works on a full pool. Its snapshots
    /// stay.
    pub fn delete_volume(&self, id: VolumeId) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        let turn = self.turns.of(id);
        let _turn = lock(&turn);
        let _changing = lock(&self.changing);
        let state = self.volume_state(id)?;
        self.remove(&state)?;
        self.core.allocator.close_account(state.head().view.branch.account);
        Ok(())
    }

    /// Takes a volume or snapshot away, and with it what only it showed. Durable when it returns.
    pub(crate) fn remove(&self, state: &VolumeState) -> Result<(), PoolError> {
        let heir = {
            let mut volumes = lock(&self.volumes);
            volumes.live.remove(&state.id());
            let mut others = volumes.live.values().filter(|other| !other.is_replica() && !state.is_replica());
            others.find(|other| other.key() == state.key()).cloned()
        };
        let left = state.blocks();
        if let Some(heir) = heir.as_ref().filter(|_| left > 0) {
            // First, so that a cut between the two counts them twice.
            heir.add_blocks(&self.core, left);
            self.core.flush()?;
        }
        state.delete(&self.core);
        self.core.history.detach(state.slot);
        if let Some(heir) = heir {
            // What was reserved by requests that were on their way.
            heir.add_blocks(&self.core, state.blocks() - left);
        }
        let view = state.head().view.clone();
        self.leave(&view)
    }

    /// Nobody looks at this any more through what it was taken from: frees what nobody else sees. Durable when it
    /// returns.
    pub(crate) fn leave(&self, view: &View) -> Result<(), PoolError> {
        let left = view.detach(&self.core);
        for left in &left {
            self.look_above(view, left);
        }
        self.core.flush()
    }

    /// What branches above hide may now be hidden from everybody. Of one that is above a moment beside the one that was left,
    /// that lies in what changed there; of one that is now the only one above, it may be anything.
    fn look_above(&self, view: &View, left: &Left) {
        let mut above: BTreeMap<BranchId, (Arc<Branch>, Moment)> = BTreeMap::new();
        for state in lock(&self.volumes).live.values() {
            let head = state.head();
            let levels: Vec<_> = head.view.levels().collect();
            let Some(at) = levels.iter().position(|(branch, _)| branch.id == left.branch.id) else {
                continue;
            };
            let until = levels[at].1;
            above.extend(levels[..at].iter().map(|(branch, _)| (branch.id, (Arc::clone(branch), until))));
        }
        for (branch, until) in above.into_values() {
            let was_seen_too = |other: Option<Moment>| !left.still_seen && other == Some(until);
            // Through those that the view itself had above it one fewer looks here as well as there.
            let one_fewer = left.still_seen
                && until == left.moment
                && view.levels().all(|(of_view, _)| of_view.id != branch.id);
            let last_of_others = was_seen_too(left.before) && left.after.is_none();
            if was_seen_too(left.before) {
                branch.look_at(&self.core, &left.logicals);
            }
            if (was_seen_too(left.after) || one_fewer || last_of_others)
                && branch.is_alone_above(&left.branch, until)
            {
                branch.collect_all(&self.core);
            }
        }
    }

    /// Sets a volume's limits. Durable when it returns.
    pub fn set_limits(&self, id: VolumeId, limits: Limits) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        let _changing = lock(&self.changing);
        let state = self.volume_state(id)?;
        state.refuse_replica()?;
        state.set_limits(&self.core, limits)?;
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
        let state = self.volume_state(id)?;
        state.refuse_replica()?;
        self.set_size(&state, sectors)
    }

    pub(crate) fn set_size(&self, state: &VolumeState, sectors: SectorCount) -> Result<(), PoolError> {
        let _nobody_rewrites = lock(&state.rewriting);
        // What an earlier shrinking cut off must be unmapped before a larger size could show it again.
        state.hide_past_end(&self.core, sectors)?;
        self.core.flush()?;
        state.resize(&self.core, sectors);
        self.core.flush()
    }

    /// Records that a grant with this fence has been seen. Durable when it returns; a fence that is not above the
    /// highest seen is [`PoolError::StaleFence`].
    pub fn raise_fence(&self, id: VolumeId, fence: Fence) -> Result<(), PoolError> {
        self.core.check_not_failed()?;
        self.volume_state(id)?.raise_fence(&self.core, fence)?;
        self.core.flush()
    }

    /// Puts what waits in the log to its place, for a thread that does so again and again beside the others: returns once it
    /// has, after `patience` at the latest where there is too little to do. Without such a thread flushes do it.
    pub fn tend(&self, patience: Duration) -> Result<(), PoolError> {
        self.core.tend(patience)
    }

    /// Extents of volumes that have been looked at since the pool was opened, for what nobody sees any more and for what
    /// differs: for tests of what that costs.
    #[doc(hidden)]
    pub fn extents_looked_at(&self) -> u64 {
        self.core.extents_looked_at()
    }

    /// Goes on with a later moment of a volume, as if so many snapshots had been taken of it: for tests of how many it can have.
    #[doc(hidden)]
    pub fn skip_moments(&self, id: VolumeId, moments: u32) -> Result<(), PoolError> {
        let _changing = lock(&self.changing);
        self.volume_state(id)?.skip_moments(&self.core, moments)?;
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

/// Refuses a pool with snapshots that are locked. One that cannot be read shows none.
fn refuse_locked(device: &dyn Device) -> Result<(), PoolError> {
    match Pool::check_device(device) {
        Ok(found) if found.locked_snapshots > 0 => Err(PoolError::HoldsLocked {
            device: device.info().path,
            pool: found.pool,
            snapshots: found.locked_snapshots,
        }),
        _ => Ok(()),
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

/// What opening has made of what it read.
struct Taken {
    volumes: Volumes,
    branches: BTreeMap<BranchId, Arc<Branch>>,
    placement: Placement,
}

/// A sector whose ciphertext the log has and its place may lack.
struct InLog {
    block: u64,
    of: SectorId,
    record: SectorRecord,
    extent: Arc<Extent>,
}

/// Those of an extent.
fn in_log(loaded: &Loaded, extent: &Arc<Extent>) -> Vec<InLog> {
    let of_extent = loaded.sectors.range(SectorId::all_of(extent.index()));
    let present = of_extent.filter(|(of, _)| extent.state().sectors().contains(of.sector));
    let in_log = present.filter_map(|(of, logged)| {
        let extent = Arc::clone(extent);
        Some(InLog { block: logged.block?, of: *of, record: logged.record, extent })
    });
    in_log.collect()
}

/// Takes ciphertext that the log has into memory, as it was before the cut; what lies near each other in the log in one
/// transfer.
fn restore_from_log(
    device: &dyn Device,
    layout: Layout,
    mut in_log: Vec<InLog>,
) -> Result<BTreeMap<SectorId, Waiting>, PoolError> {
    let mut waiting = BTreeMap::new();
    let place = |sector: &InLog| sector.block % layout.log_blocks();
    in_log.sort_unstable_by_key(place);
    let mut rest = in_log.into_iter().peekable();
    while let Some(first) = rest.peek().map(place) {
        // No transfer goes round the end of the ring.
        let end = (first + PAGES_PER_TRANSFER).min(layout.log_blocks());
        let together: Vec<InLog> = std::iter::from_fn(|| rest.next_if(|next| place(next) < end)).collect();
        let last = together.last().map_or(first, place);
        let read = device.read(layout.log_block_at(first), SectorCount(last - first + 1))?;
        for sector in together {
            let nth = place(&sector) - first;
            let sealed = Sealed::gathered(std::iter::once(read.as_slice().sectors_in(nth..nth + 1)));
            let held = Held::new(&Arc::new(sealed.with_records(vec![sector.record])), 0);
            let InLog { of, extent, .. } = sector;
            extent.state().restore(of.sector, held.clone());
            waiting.insert(of, Waiting { extent, held });
        }
    }
    Ok(waiting)
}

/// What there is to be given out, before anything is marked as in use.
struct Space {
    allocator: Arc<Allocator>,
    holes: HoleTable,
}

impl Space {
    /// Builds the branches, the volumes and the snapshots that look at them, and puts every extent in its place.
    fn take(&self, device: &dyn Device, loaded: &mut Loaded) -> Result<Taken, PoolError> {
        let layout = loaded.superblocks.current.layout;
        let taken_twice = |index: u32| PoolError::MetadataDamaged {
            device: device.info().path,
            what: Damage::ExtentTwice,
            at: layout.sector_at(index, 0),
        };
        let take = |index: u32, account: Account| {
            let marked = self.allocator.mark(index, account);
            marked.then(|| Allocated::new(index, account, &self.allocator)).ok_or_else(|| taken_twice(index))
        };
        for index in &loaded.hole_chunks {
            self.holes.add_chunk(take(*index, Account::POOL)?);
        }
        let accounts = self.accounts(loaded);
        let mut branches: BTreeMap<BranchId, Arc<Branch>> = BTreeMap::new();
        let mut logged: Vec<InLog> = Vec::new();
        let mut extents = std::mem::take(&mut loaded.extents);
        extents.sort_unstable_by_key(|extent| (extent.mapping.branch, extent.mapping.place));
        let mut extents = extents.into_iter().peekable();
        // In the order of their numbers, what is below a branch comes before it.
        for (id, below) in &loaded.branches {
            let account = accounts.get(id).copied().unwrap_or_else(|| self.allocator.open_account());
            let below = below.first().and_then(|level| view_of(&branches, level));
            let branch = Branch::new(*id, account, below.as_ref(), layout.extent_sectors());
            let mut recorded = Vec::new();
            while let Some(extent) = extents.next_if(|extent| extent.mapping.branch == *id) {
                let MappedExtent { kind, index, mapping } = extent;
                let space = match kind {
                    ExtentKind::Data => take(index, account)?,
                    ExtentKind::Holes => self.holes.mark(index).ok_or_else(|| taken_twice(0))?,
                };
                let extent = Arc::new(Extent::recorded(space, kind, mapping.epoch, mapping.sectors));
                if kind == ExtentKind::Data {
                    logged.extend(in_log(loaded, &extent));
                }
                recorded.push((mapping.place, extent));
            }
            branch.fill(recorded);
            self.holes.expect_inherited(branch.inherited);
            branches.insert(*id, branch);
        }
        let volumes = take_volumes(loaded, &branches);
        for branch in branches.values().filter(|branch| !accounts.contains_key(&branch.id)) {
            self.allocator.close_account(branch.account);
        }
        let waiting = restore_from_log(device, layout, logged)?;
        Ok(Taken { volumes, branches, placement: Placement::new(waiting) })
    }

    /// Whom the branches' extents are counted for: the volume that writes them, else that of a snapshot of them, else the
    /// first that is left to show them.
    fn accounts(&self, loaded: &Loaded) -> BTreeMap<BranchId, Account> {
        let mut of_volume: BTreeMap<VolumeId, Account> = BTreeMap::new();
        let mut of_branch: BTreeMap<BranchId, Account> = BTreeMap::new();
        for (_, serial, record) in loaded.records().filter(|(_, _, record)| record.role != Role::Snapshot) {
            let account = self.allocator.open_account();
            of_volume.insert(record.spec.id, account);
            of_branch.insert(serial, account);
        }
        for (_, _, record) in loaded.records().filter(|(_, _, record)| record.role == Role::Snapshot) {
            let account = record.origin.and_then(|volume| of_volume.get(&volume));
            if let (Some(account), Some(level)) = (account, record.levels.first()) {
                of_branch.entry(level.branch).or_insert(*account);
            }
        }
        for (_, serial, record) in loaded.records().filter(|(_, _, record)| record.role != Role::Snapshot) {
            if let Some(account) = of_branch.get(&serial).copied() {
                record.levels.iter().for_each(|level| {
                    of_branch.entry(level.branch).or_insert(account);
                });
            }
        }
        of_branch
    }
}

fn view_of(branches: &BTreeMap<BranchId, Arc<Branch>>, level: &Level) -> Option<View> {
    branches.get(&level.branch).map(|branch| View { branch: Arc::clone(branch), moment: level.moment })
}

fn take_volumes(loaded: &Loaded, branches: &BTreeMap<BranchId, Arc<Branch>>) -> Volumes {
    let highest = loaded.volumes.values().map(|entry| entry.serial.0).max();
    let mut volumes = Volumes { live: BTreeMap::new(), next_serial: highest.unwrap_or(0) + 1 };
    // A cut may leave a snapshot without the end of the moment that it shows.
    let mut ended: BTreeMap<BranchId, Moment> = BTreeMap::new();
    for (_, _, record) in loaded.records().filter(|(_, _, record)| record.role == Role::Snapshot) {
        if let Some(level) = record.levels.first() {
            let last = ended.entry(level.branch).or_insert(level.moment);
            *last = level.moment.max(*last);
        }
    }
    for (slot, serial, record) in loaded.records() {
        let Some(mut view) = record.levels.first().and_then(|level| view_of(branches, level)) else {
            continue;
        };
        if record.role != Role::Snapshot
            && let Some(after) = ended.get(&serial).and_then(|moment| moment.next())
        {
            view.moment = view.moment.max(after);
        }
        view.attach(loaded.superblocks.current.layout.extents_spanned(record.spec.sectors));
        let sectors = loaded.superblocks.current.layout.extent_sectors();
        volumes.live.insert(record.spec.id, Arc::new(VolumeState::new(slot, serial, record, view, sectors)));
    }
    volumes
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
