//! Random operations on a small pool, the same for the same seed, done to the pool and to the model.

use std::sync::Arc;

use device::{Device, SimulatedDevice};
use pool::{CreateOptions, Limits, OpenOptions, Pool, PoolError, PoolErrorKind, StateHead, Witness};
use units::{ByteLen, DomainId, Fence, Lba, SectorCount, VolumeEpoch, VolumeId};

use crate::model::{Begun, Model, check_of, resealed, sealed_under, spec, word};
use crate::replica::{SENDER, VOLUME as REPLICA};

/// The smallest extents, 16 sectors, and the smallest log, 16 blocks: everything happens soon.
pub(crate) const EXTENT: u64 = 64 << 10;
pub(crate) const LOG: u64 = 64 << 10;
/// Extents in the small pool: fewer than the volumes could use, so that it is full now and then.
pub(crate) const EXTENTS: u64 = 24;
pub(crate) const DEVICE: ByteLen = Shape::SMALL.device_len();

/// How the pool under test is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    extent: u64,
    /// Whether the device holds what somebody else left on it.
    used_before: bool,
}

impl Shape {
    /// Many records fit a log block.
    pub(crate) const SMALL: Self = Self { extent: EXTENT, used_before: false };
    /// A log block holds one record, so that most commits are several blocks and the log is soon full; an entry of the
    /// table is longer than what a device writes whole.
    pub(crate) const LARGE: Self = Self { extent: 64 << 20, used_before: false };
    /// As the small one, made with force on a device that is full of something else.
    pub(crate) const USED_BEFORE: Self = Self { extent: EXTENT, used_before: true };

    pub(crate) fn device(self) -> Arc<SimulatedDevice> {
        match self.used_before {
            true => SimulatedDevice::filled_with_noise(self.device_len(), 0x0bad_da7a),
            false => SimulatedDevice::new(self.device_len()),
        }
    }

    pub(crate) const fn device_len(self) -> ByteLen {
        let base = ((2 << 20) + LOG).next_multiple_of(self.extent);
        ByteLen(base + (3 + EXTENTS) * self.extent)
    }

    pub(crate) fn create_options(self) -> CreateOptions {
        CreateOptions {
            extent_len: ByteLen(self.extent),
            log_len: Some(ByteLen(LOG)),
            force: self.used_before,
            ..CreateOptions::default()
        }
    }

    /// The first 16 sectors of each extent are used: the rest of a large one would only cost time.
    fn sector(self, nth: u64) -> u64 {
        nth / 16 * (self.extent / 4096) + nth % 16
    }
}

pub(crate) fn create_options() -> CreateOptions {
    Shape::SMALL.create_options()
}

pub(crate) fn small_pool() -> (Arc<SimulatedDevice>, Arc<Pool>) {
    let device = SimulatedDevice::new(DEVICE);
    let pool = Pool::create(device.clone(), create_options()).unwrap();
    (device, pool)
}

/// Most volumes at a time.
const VOLUMES_MAX: usize = 5;
/// Most snapshots at a time.
const SNAPSHOTS_MAX: usize = 4;
/// Extents that the device may grow by.
const GROWTH_MAX: u64 = 3;
/// Size of a volume, in sectors that are used.
const SECTORS_MAX: u64 = 160;

/// Numbers that look random and are the same for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn one_of<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        let count = items.len() as u64;
        if count == 0 { None } else { items.get(usize::try_from(self.below(count)).unwrap()).copied() }
    }
}

/// A pool, what it should hold, and where the next operations come from.
pub(crate) struct Workload {
    shape: Shape,
    pub(crate) random: Random,
    pub(crate) model: Model,
    next_tag: u64,
    next_volume: u8,
    /// What the pool is on, where it may grow and keys may vouch: what they say goes to the log without a commit.
    device: Option<Arc<SimulatedDevice>>,
}

/// Whoever has a volume's key.
struct Holder(DomainId);

impl Witness for Holder {
    fn vouch(&self, state: &StateHead) -> Option<[u8; 16]> {
        Some(word(self.0, state))
    }
}

impl Workload {
    pub(crate) fn new(seed: u64, shape: Shape) -> Self {
        let model = Model::default();
        Self { shape, random: Random::new(seed), model, next_tag: 1, next_volume: 1, device: None }
    }

    /// Goes on with a pool that may hold `model`, with tags that were not used before.
    pub(crate) fn resume(model: Model, seed: u64, first_tag: u64, shape: Shape) -> Self {
        let random = Random::new(seed);
        Self { shape, random, model, next_tag: first_tag, next_volume: 128, device: None }
    }

    /// The pool is on this device and grows with it, and its volumes' keys are held.
    pub(crate) fn growing(self, device: &Arc<SimulatedDevice>) -> Self {
        Self { device: Some(Arc::clone(device)), ..self }
    }

    /// Does one operation. An error is one that ends the pool.
    pub(crate) fn step(&mut self, pool: &Pool) -> Result<(), PoolError> {
        let ids = self.model.ids();
        let Some(id) = self.random.one_of(&ids) else { return self.create(pool) };
        let snapshots = self.model.snapshots();
        match self.random.below(126) {
            0..76 => self.step_on(pool, id),
            76..81 if ids.len() < VOLUMES_MAX => self.create(pool),
            76..82 => self.delete(pool, id),
            82..86 => self.resize(pool, id),
            86..88 => self.raise_fence(pool, id),
            88..93 if snapshots.len() < SNAPSHOTS_MAX => self.snapshot(pool, id),
            88..95 => self.delete_snapshot(pool),
            95..97 if ids.len() < VOLUMES_MAX => self.clone_snapshot(pool),
            95..100 => self.roll_back(pool),
            100..103 => self.limit(pool, id),
            103..105 => self.grow(pool),
            105..108 => self.hold_key(pool, id),
            108..110 => self.begin_epoch(pool, id),
            110..116 => self.rewrite(pool, id),
            116..122 => self.fold(pool),
            _ => self.receive(pool),
        }
    }

    /// A quota, a reserve, both or none.
    fn limit(&mut self, pool: &Pool, id: VolumeId) -> Result<(), PoolError> {
        let extents = |count: u64| ByteLen(count * self.shape.extent);
        let quota = (self.random.below(4) == 0).then(|| extents(1 + self.random.below(10)));
        let limits = Limits { quota, reserve: extents(self.random.below(6)), ..Limits::default() };
        self.model.begin(Begun::Limit(id, limits));
        self.settle(pool.set_limits(id, limits))
    }

    fn grow(&mut self, pool: &Pool) -> Result<(), PoolError> {
        let Some(device) = &self.device else { return Ok(()) };
        let longer = ByteLen(device.len().0 + self.shape.extent);
        if longer.0 > self.shape.device_len().0 + GROWTH_MAX * self.shape.extent {
            return Ok(());
        }
        device.set_len(longer);
        self.model.begin(Begun::Grow(longer));
        pool.grow()?;
        self.model.acknowledge();
        Ok(())
    }

    /// A new epoch of the volume's key.
    fn begin_epoch(&mut self, pool: &Pool, id: VolumeId) -> Result<(), PoolError> {
        let epoch = VolumeEpoch(self.model.newest_epoch_of(id).0 + 1);
        self.model.begin(Begun::Epoch(id, epoch));
        let domain = pool.volume(id)?.info().domain;
        self.settle(pool.begin_epoch(id, epoch, check_of(domain, epoch)))
    }

    /// Some of what lies under an older epoch is sealed anew. What it holds stays the same, whatever comes in between.
    fn rewrite(&mut self, pool: &Pool, id: VolumeId) -> Result<(), PoolError> {
        let (volume, epoch) = (pool.volume(id)?, self.model.epoch(id));
        let from = if self.random.below(2) == 0 { 0 } else { self.range(id).0 };
        let most = SectorCount(1 + self.random.below(24));
        let Some((first, count)) = volume.next_outdated(Lba(from), most)? else { return Ok(()) };
        let moved = volume.rewrite(first, count, epoch, |_, under, data| resealed(&data, under, epoch));
        match moved {
            Ok(moved) => assert_eq!(moved, count),
            Err(error) if error.kind() == PoolErrorKind::NoSpace => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What lies in several extents of one place comes to lie in one.
    fn fold(&mut self, pool: &Pool) -> Result<(), PoolError> {
        let ended = if self.random.below(3) == 0 { pool.end_moments_to_fold().map(drop) } else { Ok(()) };
        let folded = ended.and_then(|()| pool.fold(SectorCount(1 + self.random.below(40))).map(drop));
        match folded {
            Err(error) if error.kind() == PoolErrorKind::NoSpace => Ok(()),
            folded => folded,
        }
    }

    /// What replication does: something is written, a snapshot taken and the one before deleted. And what that leaves is folded.
    pub(crate) fn step_folding(&mut self, pool: &Pool) -> Result<(), PoolError> {
        let Some(id) = self.model.ids().first().copied() else { return self.create(pool) };
        for _ in 0..1 + self.random.below(3) {
            match self.random.below(4) {
                0 => self.unmap(pool, id)?,
                _ => self.write(pool, id)?,
            }
        }
        self.snapshot(pool, id)?;
        if self.model.snapshots().len() > 1 {
            self.delete_snapshot(pool)?;
        }
        self.fold(pool)
    }

    /// The volume's key vouches from here on, and the keyholder is told where the pool stands.
    fn hold_key(&mut self, pool: &Pool, id: VolumeId) -> Result<(), PoolError> {
        if self.device.is_none() {
            return Ok(());
        }
        let volume = pool.volume(id)?;
        volume.set_witness(Arc::new(Holder(volume.info().domain)))?;
        self.model.tell(pool);
        Ok(())
    }

    /// A few sectors more of a replica, or a new beginning where it has all there is.
    fn receive(&mut self, pool: &Pool) -> Result<(), PoolError> {
        let lacking = SENDER.snapshots.iter().find(|there| pool.snapshot(there.manifest.snapshot).is_err());
        let Some(manifest) = lacking.map(|lacking| &lacking.manifest) else {
            self.model.forget_replica();
            for there in SENDER.snapshots.iter().rev() {
                pool.delete_snapshot(there.manifest.snapshot)?;
            }
            return pool.delete_volume(REPLICA);
        };
        let most = SectorCount(1 + self.random.below(30));
        let arriving = pool.begin_receiving(manifest).and_then(|from| {
            let portion = SENDER.pool.send(manifest, from, most)?;
            let next = pool.receive(REPLICA, manifest.snapshot, &portion.bytes)?;
            if next.0 < manifest.sectors.0 {
                return Ok(None);
            }
            pool.end_receiving(manifest).map(Some)
        });
        match arriving {
            Ok(arrived) => arrived.into_iter().for_each(|info| self.model.arrived(info.id)),
            Err(error) if error.kind() == PoolErrorKind::NoSpace => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// An id that nothing has.
    fn new_id(&mut self) -> VolumeId {
        loop {
            let id = spec(self.next_volume, 1).id;
            self.next_volume = self.next_volume.wrapping_add(1);
            let snapshots = self.model.snapshots();
            let of_replica = id.0[0] >= REPLICA.0[0];
            if !of_replica
                && !self.model.ids().contains(&id)
                && snapshots.iter().all(|(snapshot, _)| *snapshot != id)
            {
                return id;
            }
        }
    }

    fn snapshot(&mut self, pool: &Pool, of: VolumeId) -> Result<(), PoolError> {
        let id = self.new_id();
        self.model.begin(Begun::Snapshot(of, id));
        self.settle(pool.create_snapshot(of, id, 1).map(drop))
    }

    fn delete_snapshot(&mut self, pool: &Pool) -> Result<(), PoolError> {
        let snapshots = self.model.snapshots();
        let Some((id, _)) = self.random.one_of(&snapshots) else { return Ok(()) };
        self.model.begin(Begun::DeleteSnapshot(id));
        self.settle(pool.delete_snapshot(id))
    }

    fn clone_snapshot(&mut self, pool: &Pool) -> Result<(), PoolError> {
        let snapshots = self.model.snapshots();
        let Some((snapshot, _)) = self.random.one_of(&snapshots) else { return Ok(()) };
        let id = self.new_id();
        self.model.begin(Begun::Clone(snapshot, id));
        self.settle(pool.clone_snapshot(snapshot, id, Limits::default()).map(drop))
    }

    fn roll_back(&mut self, pool: &Pool) -> Result<(), PoolError> {
        let ids = self.model.ids();
        let own: Vec<_> = self.model.snapshots().into_iter().filter(|(_, of)| ids.contains(of)).collect();
        let Some((snapshot, of)) = self.random.one_of(&own) else { return Ok(()) };
        self.model.begin(Begun::RollBack(of, snapshot));
        self.settle(pool.roll_back(of, snapshot))
    }

    /// What was begun has been done, or refused for want of space or because clones are too deep.
    fn settle(&mut self, result: Result<(), PoolError>) -> Result<(), PoolError> {
        match result {
            Ok(()) => self.model.acknowledge(),
            Err(PoolError::NoSpace | PoolError::TooManyLevels { .. }) => self.model.refused(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Does one operation on the sectors of a volume.
    pub(crate) fn step_on(&mut self, pool: &Pool, id: VolumeId) -> Result<(), PoolError> {
        match self.random.below(84) {
            0..55 => self.write(pool, id),
            55..70 => self.unmap(pool, id),
            _ => self.flush(pool, id),
        }
    }

    /// A range, short more often than long, that the volume has.
    fn range(&mut self, id: VolumeId) -> (u64, u64) {
        let size = self.model.size(id);
        let used = (0..=SECTORS_MAX).take_while(|nth| self.shape.sector(*nth) < size).count() as u64;
        let nth = self.random.below(used);
        let longest = if self.random.below(4) == 0 { 64 } else { 6 };
        let longest = if self.shape.extent == EXTENT { longest } else { 16 - nth % 16 };
        let first = self.shape.sector(nth);
        (first, (1 + self.random.below(longest)).min(size - first))
    }

    /// A size that a volume may have.
    fn any_size(&mut self) -> u64 {
        self.shape.sector(self.random.below(SECTORS_MAX)) + 1
    }

    fn write(&mut self, pool: &Pool, id: VolumeId) -> Result<(), PoolError> {
        let (first, count) = self.range(id);
        let tags = self.next_tag..self.next_tag + count;
        self.next_tag += count;
        self.model.write(id, first, tags.clone());
        let epoch = self.model.epoch(id);
        match pool.volume(id)?.write(Lba(first), epoch, sealed_under(epoch, tags)) {
            Err(error) if error.kind() == PoolErrorKind::NoSpace => {
                // Where it cannot be read, power or the device has failed since, and either is allowed.
                let found = crate::model::read(&*pool.volume(id)?, first, count).map_err(|_| error)?;
                self.model.settle(found, id, first);
                Ok(())
            }
            result => result,
        }
    }

    fn unmap(&mut self, pool: &Pool, id: VolumeId) -> Result<(), PoolError> {
        let (mut first, mut count) = self.range(id);
        if self.random.below(3) == 0 {
            // Whole extents, so that some become free.
            let extent = self.shape.extent / 4096;
            first -= first % extent;
            count = count.next_multiple_of(extent).min(self.model.size(id) - first);
        }
        self.model.unmap(id, first, count);
        pool.volume(id)?.unmap(Lba(first), SectorCount(count))
    }

    fn flush(&mut self, pool: &Pool, id: VolumeId) -> Result<(), PoolError> {
        pool.volume(id)?.flush()?;
        self.model.flushed();
        Ok(())
    }

    fn create(&mut self, pool: &Pool) -> Result<(), PoolError> {
        let spec = spec(self.new_id().0[0], self.any_size());
        self.model.begin(Begun::Create(spec));
        pool.create_volume(spec)?;
        self.model.acknowledge();
        Ok(())
    }

    fn delete(&mut self, pool: &Pool, id: VolumeId) -> Result<(), PoolError> {
        self.model.begin(Begun::Delete(id));
        pool.delete_volume(id)?;
        self.model.acknowledge();
        Ok(())
    }

    fn resize(&mut self, pool: &Pool, id: VolumeId) -> Result<(), PoolError> {
        let sectors = self.any_size();
        self.model.begin(Begun::Resize(id, sectors));
        pool.resize_volume(id, SectorCount(sectors))?;
        self.model.acknowledge();
        Ok(())
    }

    fn raise_fence(&mut self, pool: &Pool, id: VolumeId) -> Result<(), PoolError> {
        let fence = Fence(self.random.below(20));
        self.model.begin(Begun::RaiseFence(id, fence));
        let stale = fence <= self.model.fence(id);
        match pool.raise_fence(id, fence) {
            Err(PoolError::StaleFence { highest, .. }) if stale => {
                assert_eq!(highest, self.model.fence(id));
                self.model.refused();
                Ok(())
            }
            Ok(()) => {
                assert!(!stale, "{fence} was taken again");
                self.model.acknowledge();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Opens the pool on a device again, as a restarted daemon does.
pub(crate) fn reopen(device: &Arc<SimulatedDevice>) -> Arc<Pool> {
    Pool::open_with(device.clone(), OpenOptions::default()).unwrap()
}
