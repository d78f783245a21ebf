//! What a pool does, without power cuts.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use device::{
    Device, DeviceError, DeviceInfo, Errno, Fault, Metadata, Operation, Sealed, SealedSlice, SimulatedDevice,
    Survivors,
};
use pool::{CreateOptions, Piece, Pool, PoolError, PoolErrorKind, VOLUMES_MAX};
use units::{ByteLen, ByteOffset, Fence, Lba, SectorCount, VolumeEpoch, VolumeId};

use crate::model::{EPOCH, read, sealed, spec, verify_metadata};
use crate::workload::{DEVICE, EXTENT, EXTENTS, LOG, Shape, Workload, create_options, reopen, small_pool};

#[test]
fn random_operations_leave_what_the_model_says_before_and_after_reopening() {
    for seed in 0..40 {
        let shape = if seed % 4 == 0 { Shape::LARGE } else { Shape::SMALL };
        let device = SimulatedDevice::new(shape.device_len());
        let mut pool = Pool::create(device.clone(), shape.create_options()).unwrap();
        let mut workload = Workload::new(seed, shape);
        for round in 0..4 {
            for _ in 0..60 {
                workload.step(&pool).unwrap();
            }
            workload.model.verify_exactly(&pool).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
            verify_metadata(&pool).unwrap_or_else(|wrong| panic!("seed {seed}, round {round}: {wrong}"));
            workload.model.flushed();
            drop(pool);
            pool = reopen(&device);
            workload
                .model
                .verify_exactly(&pool)
                .unwrap_or_else(|wrong| panic!("seed {seed}, reopened: {wrong}"));
            verify_metadata(&pool).unwrap();
        }
    }
}

#[test]
fn a_pebibyte_volume_takes_writes_at_both_ends_and_costs_two_extents() {
    let (device, pool) = small_pool();
    let last = (1 << 38) - 1;
    let volume = pool.create_volume(spec(1, last + 1)).unwrap();
    volume.write(Lba(0), EPOCH, sealed([1])).unwrap();
    volume.write(Lba(last), EPOCH, sealed([2])).unwrap();
    volume.flush().unwrap();
    drop((volume, pool));
    let pool = reopen(&device);
    let volume = pool.volume(spec(1, 1).id).unwrap();
    assert_eq!(read(&volume, last - 1, 2).unwrap(), [None, Some([2; 8])]);
    let runs = volume.presence(Lba(0), SectorCount(last + 1)).unwrap();
    assert_eq!(runs, [(SectorCount(1), true), (SectorCount(last - 1), false), (SectorCount(1), true)]);
    assert_eq!(volume.info().allocated, ByteLen(2 * EXTENT));
    volume.unmap(Lba(0), SectorCount(last + 1)).unwrap();
    volume.flush().unwrap();
    assert_eq!(pool.info().allocated, ByteLen(0));
}

/// Fills the pool; the volume that did it.
fn fill(pool: &Pool) -> Arc<pool::PoolVolume> {
    let volume = pool.create_volume(spec(1, 2 * EXTENTS * 16)).unwrap();
    for extent in 0..EXTENTS {
        volume.write(Lba(extent * 16), EPOCH, sealed([extent + 1])).unwrap();
    }
    assert_eq!(pool.info().allocated, pool.info().capacity);
    volume
}

#[test]
fn a_full_pool_says_so_and_still_trims_deletes_and_overwrites() {
    let (_, pool) = small_pool();
    let volume = fill(&pool);
    let beyond = Lba(EXTENTS * 16);
    assert_eq!(volume.write(beyond, EPOCH, sealed([99])).unwrap_err().kind(), PoolErrorKind::NoSpace);
    volume.write(Lba(0), EPOCH, sealed([100])).unwrap();
    volume.flush().unwrap();
    // A trim makes room at once, though nobody has flushed it.
    volume.unmap(Lba(16), SectorCount(16)).unwrap();
    volume.write(beyond, EPOCH, sealed([101])).unwrap();
    assert!(matches!(volume.write(Lba(16), EPOCH, sealed([102])), Err(PoolError::NoSpace)));
    assert_eq!(read(&volume, beyond.0, 1).unwrap(), [Some([101; 8])]);
    assert_eq!(read(&volume, 0, 1).unwrap(), [Some([100; 8])]);
    let second = pool.create_volume(spec(2, 16)).unwrap();
    assert!(matches!(second.write(Lba(0), EPOCH, sealed([103])), Err(PoolError::NoSpace)));
    pool.delete_volume(spec(1, 1).id).unwrap();
    second.write(Lba(0), EPOCH, sealed([103])).unwrap();
    assert_eq!(pool.info().allocated, ByteLen(EXTENT));
    verify_metadata(&pool).unwrap();
}

#[test]
fn what_a_deleted_volume_held_is_never_shown_to_the_next() {
    let (device, pool) = small_pool();
    drop(fill(&pool));
    pool.flush().unwrap();
    pool.delete_volume(spec(1, 1).id).unwrap();
    let next = pool.create_volume(spec(2, EXTENTS * 16)).unwrap();
    for extent in 0..EXTENTS {
        next.write(Lba(extent * 16 + 3), EPOCH, sealed([1000 + extent])).unwrap();
    }
    next.flush().unwrap();
    for pool in [&pool, &reopen(&device)] {
        let next = pool.volume(spec(2, 1).id).unwrap();
        for (sector, found) in (0..).zip(read(&next, 0, EXTENTS * 16).unwrap()) {
            let expected = (sector % 16 == 3).then_some([1000 + sector / 16; 8]);
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn a_handle_to_a_deleted_volume_is_refused() {
    let (_, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 16)).unwrap();
    pool.delete_volume(volume.id()).unwrap();
    let refused = |error: PoolError| assert!(matches!(error, PoolError::NoSuchVolume(_)), "{error}");
    refused(volume.read(Lba(0), SectorCount(1)).unwrap_err());
    refused(volume.write(Lba(0), EPOCH, sealed([1])).unwrap_err());
    refused(volume.unmap(Lba(0), SectorCount(1)).unwrap_err());
    refused(pool.volume(volume.id()).unwrap_err());
    refused(pool.delete_volume(volume.id()).unwrap_err());
    refused(pool.resize_volume(volume.id(), SectorCount(1)).unwrap_err());
    refused(pool.raise_fence(volume.id(), Fence(1)).unwrap_err());
}

#[test]
fn growing_again_after_shrinking_shows_holes() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=64)).unwrap();
    volume.flush().unwrap();
    pool.resize_volume(volume.id(), SectorCount(20)).unwrap();
    assert_eq!(volume.info().allocated, ByteLen(2 * EXTENT));
    assert!(matches!(volume.read(Lba(20), SectorCount(1)), Err(PoolError::OutOfRange { .. })));
    pool.resize_volume(volume.id(), SectorCount(64)).unwrap();
    for pool in [&pool, &reopen(&device)] {
        let found = read(&pool.volume(spec(1, 1).id).unwrap(), 0, 64).unwrap();
        assert!(found[..20].iter().all(Option::is_some) && found[20..].iter().all(Option::is_none));
    }
}

#[test]
fn requests_at_the_limits_are_taken_and_one_past_refused() {
    let (_, pool) = small_pool();
    for sectors in [0, (1 << 38) + 1] {
        assert!(matches!(pool.create_volume(spec(1, sectors)), Err(PoolError::VolumeSize(_))));
    }
    let volume = pool.create_volume(spec(1, 20)).unwrap();
    assert!(matches!(pool.create_volume(spec(1, 20)), Err(PoolError::VolumeExists(_))));
    assert!(matches!(pool.resize_volume(volume.id(), SectorCount(0)), Err(PoolError::VolumeSize(_))));
    volume.write(Lba(18), EPOCH, sealed([1, 2])).unwrap();
    for (first, count) in [(19, 2), (20, 1), (u64::MAX, 1), (1, u64::MAX)] {
        let error = volume.read(Lba(first), SectorCount(count)).unwrap_err();
        assert_eq!(error.kind(), PoolErrorKind::OutOfRange);
        assert!(volume.unmap(Lba(first), SectorCount(count)).is_err());
        assert!(volume.presence(Lba(first), SectorCount(count)).is_err());
    }
    assert!(volume.write(Lba(19), EPOCH, sealed([1, 2])).is_err());
    assert!(volume.read(Lba(20), SectorCount(0)).unwrap().is_empty());
    volume.write(Lba(20), EPOCH, sealed([])).unwrap();
    volume.unmap(Lba(5), SectorCount(0)).unwrap();
    let foreign = volume.write(Lba(0), VolumeEpoch(EPOCH.0 + 1), sealed([1])).unwrap_err();
    assert!(matches!(foreign, PoolError::WrongEpoch { .. }));
    assert_eq!(read(&volume, 0, 20).unwrap()[19], Some([2; 8]));
}

#[test]
fn the_volume_table_takes_all_its_volumes_and_not_one_more() {
    let device = SimulatedDevice::new(ByteLen(64 << 20));
    let pool = Pool::create(device.clone(), CreateOptions::default()).unwrap();
    let numbered = |number: u32| {
        let mut volume = spec(1, 1);
        volume.id.0[..4].copy_from_slice(&number.to_le_bytes());
        volume
    };
    for number in 0..VOLUMES_MAX {
        pool.create_volume(numbered(number)).unwrap();
    }
    assert!(matches!(pool.create_volume(numbered(VOLUMES_MAX)), Err(PoolError::TooManyVolumes)));
    pool.delete_volume(numbered(77).id).unwrap();
    pool.create_volume(numbered(VOLUMES_MAX)).unwrap();
    drop(pool);
    let pool = reopen(&device);
    assert_eq!(pool.volumes().len(), VOLUMES_MAX as usize);
    assert!(pool.volume(numbered(77).id).is_err() && pool.volume(numbered(VOLUMES_MAX).id).is_ok());
}

#[test]
fn fences_only_rise_and_are_remembered() {
    let (device, pool) = small_pool();
    let id = pool.create_volume(spec(1, 16)).unwrap().id();
    pool.raise_fence(id, Fence(5)).unwrap();
    for stale in [0, 4, 5] {
        let error = pool.raise_fence(id, Fence(stale)).unwrap_err();
        assert_eq!(error.kind(), PoolErrorKind::StaleFence);
    }
    drop(pool);
    let pool = Pool::open(device.power_cut(1)).unwrap();
    assert_eq!(pool.volume(id).unwrap().info().fence, Fence(5));
    assert!(pool.raise_fence(id, Fence(5)).is_err());
    pool.raise_fence(id, Fence(u64::MAX)).unwrap();
}

#[test]
fn overwriting_needs_one_device_write_and_one_flush() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 16)).unwrap();
    volume.write(Lba(0), EPOCH, sealed([1])).unwrap();
    volume.flush().unwrap();
    let (operations, flushes) = (device.operations(), device.flushes());
    volume.write(Lba(0), EPOCH, sealed([2])).unwrap();
    volume.flush().unwrap();
    volume.flush().unwrap();
    // The log's block with the ciphertext behind it, and the flush.
    assert_eq!((device.operations() - operations, device.flushes() - flushes), (2, 1));
}

#[test]
fn opening_reads_the_ciphertext_in_the_log_together() {
    const OVERWRITTEN: u64 = 60;
    let device = SimulatedDevice::new(ByteLen(DEVICE.0 + (4 << 20)));
    let options = CreateOptions { log_len: Some(ByteLen(4 << 20)), ..create_options() };
    let pool = Pool::create(device.clone(), options).unwrap();
    let volume = pool.create_volume(spec(1, 256)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(0..256)).unwrap();
    volume.flush().unwrap();
    // Each in a batch of its own, here and there.
    let sector = |nth: u64| nth * 37 % 256;
    for nth in 0..OVERWRITTEN {
        volume.write(Lba(sector(nth)), EPOCH, sealed([1000 + sector(nth)])).unwrap();
        volume.flush().unwrap();
    }
    drop((pool, volume));
    let device = device.power_cut_leaving(Survivors::Nothing);
    let pool = reopen(&device);
    assert!(device.reads() < OVERWRITTEN / 2, "{} reads", device.reads());
    let found = read(&pool.volume(spec(1, 1).id).unwrap(), 0, 256).unwrap();
    let overwritten: Vec<u64> = (0..OVERWRITTEN).map(sector).collect();
    for (at, found) in (0..).zip(found) {
        let tag = if overwritten.contains(&at) { 1000 + at } else { at };
        assert_eq!(found, Some([tag; 8]), "sector {at}");
    }
}

#[test]
fn a_failed_flush_is_final_for_the_pool_and_every_volume() {
    for after in 0..2 {
        let (device, pool) = small_pool();
        let first = pool.create_volume(spec(1, 16)).unwrap();
        let second = pool.create_volume(spec(2, 16)).unwrap();
        second.write(Lba(0), EPOCH, sealed([1])).unwrap();
        pool.flush().unwrap();
        // So many go to their places at once: the flush is one of the device before the log, and one behind it.
        first.write(Lba(0), EPOCH, sealed(2..=17)).unwrap();
        device.inject(Fault { operation: Operation::Flush, after, errno: Errno::EIO, lasting: false });
        let error = first.flush().unwrap_err();
        assert!(matches!(&error, PoolError::Failed(_)), "{error}");
        assert!(error.to_string().contains("restart nightlatchd"), "{error}");
        device.clear_faults();
        for result in [
            second.flush(),
            second.write(Lba(0), EPOCH, sealed([3])),
            second.read(Lba(0), SectorCount(1)).map(drop),
            second.unmap(Lba(0), SectorCount(1)),
            pool.create_volume(spec(3, 16)).map(drop),
            pool.delete_volume(second.id()),
            pool.raise_fence(second.id(), Fence(9)),
            pool.grow().map(drop),
        ] {
            assert_eq!(result.unwrap_err().kind(), PoolErrorKind::Failed);
        }
        assert!(pool.info().failed);
        let pool = Pool::open(device.power_cut(3)).unwrap();
        assert_eq!(read(&pool.volume(second.id()).unwrap(), 0, 1).unwrap(), [Some([1; 8])]);
    }
}

#[test]
fn a_failed_write_is_that_writes_alone_and_gives_its_extent_back() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    for (errno, kind) in [(Errno::EIO, PoolErrorKind::Io), (Errno::ENOSPC, PoolErrorKind::NoSpace)] {
        device.inject(Fault { operation: Operation::Write, after: 0, errno, lasting: false });
        // More than is held in memory for a flush that may follow.
        assert_eq!(volume.write(Lba(0), EPOCH, sealed(1..=16)).unwrap_err().kind(), kind);
        assert_eq!(read(&volume, 0, 1).unwrap(), [None]);
    }
    volume.flush().unwrap();
    assert_eq!(pool.info().allocated, ByteLen(0));
    volume.write(Lba(0), EPOCH, sealed([2])).unwrap();
    volume.write(Lba(16), EPOCH, sealed(1..=16)).unwrap();
    assert_eq!(read(&volume, 0, 1).unwrap(), [Some([2; 8])]);
    device.inject(Fault { operation: Operation::Read, after: 0, errno: Errno::EIO, lasting: false });
    assert_eq!(volume.read(Lba(16), SectorCount(1)).unwrap_err().kind(), PoolErrorKind::Io);
    volume.flush().unwrap();
}

#[test]
fn a_metadata_write_that_fails_ends_the_pool() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    volume.write(Lba(0), EPOCH, sealed([1])).unwrap();
    device.inject(Fault { operation: Operation::Write, after: 0, errno: Errno::ENOSPC, lasting: false });
    assert_eq!(volume.flush().unwrap_err().kind(), PoolErrorKind::Failed);
    device.clear_faults();
    assert_eq!(volume.flush().unwrap_err().kind(), PoolErrorKind::Failed);
    let pool = Pool::open(device.reopened()).unwrap();
    assert_eq!(read(&pool.volume(volume.id()).unwrap(), 0, 1).unwrap(), [None]);
}

#[test]
fn a_longer_device_is_used_after_grow_and_across_groups() {
    let device = SimulatedDevice::new(DEVICE);
    let pool = Pool::create(device.clone(), create_options()).unwrap();
    let volume = fill(&pool);
    volume.flush().unwrap();
    // Past the first group, which has 2048 extents, and into the third.
    let long = ByteLen((2 << 20) + LOG + 2 * (2 + 2048 + 16) * EXTENT + 102 * EXTENT);
    device.set_len(long);
    assert_eq!(pool.info().capacity, ByteLen(EXTENTS * EXTENT));
    assert!(matches!(volume.write(Lba(EXTENTS * 16), EPOCH, sealed([7])), Err(PoolError::NoSpace)));
    assert_eq!(pool.grow().unwrap(), long);
    assert_eq!(pool.grow().unwrap(), long);
    let extents = 2 * 2048 + 99;
    assert_eq!(pool.info().capacity, ByteLen(extents * EXTENT));
    pool.resize_volume(volume.id(), SectorCount(extents * 16)).unwrap();
    for extent in EXTENTS..extents {
        volume.write(Lba(extent * 16), EPOCH, sealed([extent + 1])).unwrap();
    }
    volume.flush().unwrap();
    assert_eq!(pool.info().allocated, pool.info().capacity);
    drop((pool, volume));
    for device in [device.reopened().power_cut(5)] {
        let pool = reopen(&device);
        let volume = pool.volume(spec(1, 1).id).unwrap();
        for extent in 0..extents {
            assert_eq!(read(&volume, extent * 16, 2).unwrap(), [Some([extent + 1; 8]), None], "{extent}");
        }
        verify_metadata(&pool).unwrap();
    }
}

/// On a sparse file the tables have their space before anything is in them. The front of a group that the old end cuts short is
/// reserved with the growth that makes it whole.
#[test]
fn growing_reserves_the_front_of_a_group_that_the_old_end_cut_short() {
    let second_group = (2 << 20) + LOG + (2 + 2048 + 16) * EXTENT;
    let device = SimulatedDevice::new(ByteLen(second_group + EXTENT));
    let pool = Pool::create(device.clone(), create_options()).unwrap();
    device.set_len(ByteLen(second_group + 10 * EXTENT));
    device.inject(Fault { operation: Operation::Reserve, after: 0, errno: Errno::ENOSPC, lasting: false });
    assert_eq!(pool.grow().unwrap_err().kind(), PoolErrorKind::NoSpace);
    assert_eq!(pool.grow().unwrap(), ByteLen(second_group + 10 * EXTENT));
    assert_eq!(pool.info().capacity, ByteLen((2048 + 10 - 3) * EXTENT));
}

#[test]
fn a_trimmed_part_of_an_extent_is_given_back_to_the_device_unless_it_is_small_or_read() {
    let device = SimulatedDevice::new(Shape::LARGE.device_len());
    let pool = Pool::create(device.clone(), Shape::LARGE.create_options()).unwrap();
    let volume = pool.create_volume(spec(1, 1000)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(0..300)).unwrap();
    volume.flush().unwrap();
    // Sectors of ciphertext, which repeat their first word.
    let is_ciphertext =
        |page: &[u8]| page[0] == 0xc0 && page[..8] == page[8..16] && page[..8] == page[504..512];
    let held = || device.content().iter().filter(|(_, page)| is_ciphertext(page)).count();
    let before = held();
    volume.unmap(Lba(20), SectorCount(15)).unwrap();
    volume.flush().unwrap();
    assert_eq!(held(), before, "60 KiB are left alone");
    volume.unmap(Lba(100), SectorCount(100)).unwrap();
    assert_eq!(held(), before, "not before the log says so");
    volume.flush().unwrap();
    assert_eq!(held(), before - 100);
    // What is written there next is what is read, also by whoever opens the pool after a cut.
    volume.write(Lba(110), EPOCH, sealed(500..530)).unwrap();
    volume.flush().unwrap();
    let pool = reopen(&device.power_cut_leaving(Survivors::Nothing));
    let found = read(&pool.volume(spec(1, 1).id).unwrap(), 0, 300).unwrap();
    for (at, found) in (0..).zip(found) {
        let expected = match at {
            110..140 => Some([390 + at; 8]),
            20..35 | 100..200 => None,
            _ => Some([at; 8]),
        };
        assert_eq!(found, expected, "sector {at}");
    }
}

/// Where a device may be held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    BeforeRead,
    BeforeWrite,
    BeforeFlush,
    AfterFlush,
}

/// A device that can be held up at a point of the test's choice.
#[derive(Debug)]
struct Gated {
    inner: Arc<SimulatedDevice>,
    gate: Mutex<Option<Closed>>,
}

/// The device's side of a gate.
#[derive(Debug)]
struct Closed {
    point: Point,
    arrive: Sender<()>,
    opened: Receiver<()>,
}

/// The test's side of a gate.
struct Gate {
    arrived: Receiver<()>,
    open: Sender<()>,
}

impl Gated {
    fn new() -> Arc<Self> {
        Arc::new(Self { inner: SimulatedDevice::new(DEVICE), gate: Mutex::new(None) })
    }

    /// Holds up the next operation of that kind.
    fn close(&self, point: Point) -> Gate {
        let ((arrive, arrived), (open, opened)) = (channel(), channel());
        *self.gate.lock().unwrap() = Some(Closed { point, arrive, opened });
        Gate { arrived, open }
    }

    fn pass(&self, point: Point) {
        let gate = self.gate.lock().unwrap().take_if(|gate| gate.point == point);
        if let Some(Closed { arrive, opened, .. }) = gate {
            arrive.send(()).unwrap();
            opened.recv().unwrap();
        }
    }
}

impl Device for Gated {
    fn len(&self) -> ByteLen {
        self.inner.len()
    }
    fn refresh_len(&self) -> Result<ByteLen, DeviceError> {
        self.inner.refresh_len()
    }
    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }
    fn read(&self, at: ByteOffset, count: SectorCount) -> Result<Sealed, DeviceError> {
        self.pass(Point::BeforeRead);
        self.inner.read(at, count)
    }
    fn read_metadata(&self, at: ByteOffset, count: SectorCount) -> Result<Metadata, DeviceError> {
        self.inner.read_metadata(at, count)
    }
    fn write(&self, at: ByteOffset, data: SealedSlice<'_>) -> Result<(), DeviceError> {
        self.pass(Point::BeforeWrite);
        self.inner.write(at, data)
    }
    fn write_metadata(&self, at: ByteOffset, data: &Metadata) -> Result<(), DeviceError> {
        self.inner.write_metadata(at, data)
    }
    fn flush(&self) -> Result<(), DeviceError> {
        self.pass(Point::BeforeFlush);
        let result = self.inner.flush();
        self.pass(Point::AfterFlush);
        result
    }
    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.inner.discard(at, len)
    }
    fn reserve(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.inner.reserve(at, len)
    }
}

#[test]
fn an_extent_is_not_given_away_while_somebody_reads_it() {
    let gated = Gated::new();
    let pool = Pool::create(gated.clone(), create_options()).unwrap();
    let volume = fill(&pool);
    volume.flush().unwrap();
    // In its place, with a record that only the log has.
    volume.write(Lba(0), EPOCH, sealed([7])).unwrap();
    volume.flush().unwrap();
    pool.tend(Duration::ZERO).unwrap();
    let gate = gated.close(Point::BeforeRead);
    let reader = thread::spawn(move || volume.read(Lba(0), SectorCount(1)).unwrap());
    gate.arrived.recv().unwrap();
    pool.delete_volume(VolumeId([1; 16])).unwrap();
    assert_eq!(pool.info().allocated, ByteLen(EXTENT), "only the extent that is being read is still held");
    let next = pool.create_volume(spec(2, EXTENTS * 16)).unwrap();
    for extent in 0..EXTENTS - 1 {
        next.write(Lba(extent * 16), EPOCH, sealed([1000 + extent])).unwrap();
    }
    assert!(matches!(next.write(Lba((EXTENTS - 1) * 16), EPOCH, sealed([1])), Err(PoolError::NoSpace)));
    gate.open.send(()).unwrap();
    let pieces = reader.join().unwrap();
    let [Piece::Sealed { data, .. }] = &pieces[..] else { panic!("{pieces:?}") };
    assert_eq!(data.as_bytes(), sealed([7]).as_bytes());
    assert_eq!(data.records(), sealed([7]).records());
    next.write(Lba((EXTENTS - 1) * 16), EPOCH, sealed([1])).unwrap();
    verify_metadata(&pool).unwrap();
}

/// What it reads is hidden from everybody by now, but for itself.
#[test]
fn a_place_is_not_folded_over_while_somebody_reads_it() {
    let gated = Gated::new();
    let pool = Pool::create(gated.clone(), create_options()).unwrap();
    let id = |number| VolumeId([number; 16]);
    let volume = pool.create_volume(spec(1, 16)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=10)).unwrap();
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    volume.write(Lba(0), EPOCH, sealed([77])).unwrap();
    pool.create_snapshot(id(1), id(3), 0).unwrap();
    pool.tend(Duration::ZERO).unwrap();
    let snapshot = pool.snapshot(id(2)).unwrap();
    let gate = gated.close(Point::BeforeRead);
    let reader = thread::spawn(move || snapshot.read(Lba(0), SectorCount(1)).unwrap());
    gate.arrived.recv().unwrap();
    pool.delete_snapshot(id(2)).unwrap();
    let step = pool.fold(SectorCount(100)).unwrap();
    assert_eq!((step.groups, step.moved, step.more, step.waiting), (0, SectorCount(0), true, 1));
    pool.flush().unwrap();
    pool.tend(Duration::ZERO).unwrap();
    gate.open.send(()).unwrap();
    let pieces = reader.join().unwrap();
    let [Piece::Sealed { data, .. }] = &pieces[..] else { panic!("{pieces:?}") };
    assert_eq!(data.as_bytes(), sealed([1]).as_bytes());
    assert_eq!(data.records(), sealed([1]).records());
    let step = pool.fold(SectorCount(100)).unwrap();
    assert_eq!((step.groups, step.moved, step.waiting), (1, SectorCount(1), 0));
    pool.tend(Duration::ZERO).unwrap();
    assert_eq!(read(&volume, 0, 2).unwrap(), [Some([77; 8]), Some([2; 8])]);
    assert_eq!(pool.info().allocated, ByteLen(EXTENT));
    verify_metadata(&pool).unwrap();
}

#[test]
fn an_extent_is_not_given_away_where_its_unmapping_could_not_be_written() {
    let device = SimulatedDevice::new(DEVICE);
    let pool = Pool::create(device.clone(), create_options()).unwrap();
    fill(&pool).flush().unwrap();
    let allocated = pool.info().allocated;
    device.inject(Fault { operation: Operation::Write, after: 0, errno: Errno::EIO, lasting: false });
    pool.delete_volume(VolumeId([1; 16])).unwrap_err();
    // A write that had looked whether the pool has failed just before it did may still ask for an extent.
    assert_eq!(pool.info().allocated, allocated);
    drop(pool);
    let pool = Pool::open(device).unwrap();
    let volume = pool.volume(VolumeId([1; 16])).unwrap();
    assert_eq!(read(&volume, 0, 1).unwrap(), [Some([1; 8])]);
}

#[test]
fn an_extent_is_not_given_away_before_its_unmapping_is_durable() {
    for trim in [false, true] {
        let gated = Gated::new();
        let pool = Pool::create(gated.clone(), create_options()).unwrap();
        let volume = pool.create_volume(spec(1, 160)).unwrap();
        volume.write(Lba(0), EPOCH, sealed(1..=160)).unwrap();
        volume.flush().unwrap();
        let gate = gated.close(Point::BeforeFlush);
        let deleting = {
            let pool = Arc::clone(&pool);
            thread::spawn(move || {
                if trim {
                    volume.unmap(Lba(0), SectorCount(160)).unwrap();
                    volume.flush().unwrap();
                } else {
                    pool.delete_volume(volume.id()).unwrap();
                }
            })
        };
        gate.arrived.recv().unwrap();
        assert_eq!(pool.info().allocated, ByteLen(10 * EXTENT), "given back too early");
        gate.open.send(()).unwrap();
        deleting.join().unwrap();
        assert_eq!(pool.info().allocated, ByteLen(0));
    }
}

/// The snapshot of a flush is taken before the device is flushed: a write that comes in between is not in it.
#[test]
fn a_write_that_overtakes_the_device_flush_is_not_logged_as_present() {
    for seed in 0..20 {
        let gated = Gated::new();
        let pool = Pool::create(gated.clone(), create_options()).unwrap();
        let volume = pool.create_volume(spec(1, 160)).unwrap();
        volume.write(Lba(0), EPOCH, sealed(1..=9)).unwrap();
        let gate = gated.close(Point::AfterFlush);
        let flushing = {
            let volume = Arc::clone(&volume);
            thread::spawn(move || volume.flush().unwrap())
        };
        gate.arrived.recv().unwrap();
        // In their places, in an extent of their own, and in memory, in the same extent; neither is flushed.
        volume.write(Lba(32), EPOCH, sealed(30..=45)).unwrap();
        volume.write(Lba(9), EPOCH, sealed([20])).unwrap();
        gate.open.send(()).unwrap();
        flushing.join().unwrap();
        // Nothing was logged after the snapshot, so nothing of it is flushed by the log's flush but what it covers.
        let survivor = gated.inner.power_cut(seed);
        let pool = Pool::open(survivor).unwrap();
        let volume = pool.volume(volume.id()).unwrap();
        assert_eq!(read(&volume, 8, 2).unwrap(), [Some([9; 8]), None]);
        assert_eq!(read(&volume, 32, 1).unwrap(), [None]);
    }
}

/// An extent from which everything was unmapped stays while a write to it is on its way, and what was unmapped and
/// flushed stays unmapped.
#[test]
fn unmapping_beside_a_write_on_its_way_is_durable_and_leaks_nothing() {
    for cut in [true, false] {
        let gated = Gated::new();
        let pool = Pool::create(gated.clone(), create_options()).unwrap();
        let volume = pool.create_volume(spec(1, 16)).unwrap();
        volume.write(Lba(0), EPOCH, sealed([1])).unwrap();
        volume.flush().unwrap();
        let gate = gated.close(Point::BeforeWrite);
        let writing = {
            let volume = Arc::clone(&volume);
            thread::spawn(move || volume.write(Lba(1), EPOCH, sealed(2..=13)))
        };
        gate.arrived.recv().unwrap();
        volume.unmap(Lba(0), SectorCount(1)).unwrap();
        volume.flush().unwrap();
        let device = if cut { gated.inner.power_cut(1) } else { Arc::clone(&gated.inner) };
        gate.open.send(()).unwrap();
        if cut {
            writing.join().unwrap().unwrap_err();
            drop(pool);
            let pool = Pool::open(device).unwrap();
            assert_eq!(read(&pool.volume(volume.id()).unwrap(), 0, 2).unwrap(), [None, None]);
            verify_metadata(&pool).unwrap();
            assert_eq!(pool.info().allocated, ByteLen(0), "the empty extent is given back");
        } else {
            writing.join().unwrap().unwrap();
            assert_eq!(read(&volume, 0, 2).unwrap(), [None, Some([2; 8])]);
            verify_metadata(&pool).unwrap();
        }
    }
}

/// What the log still has for a place that has become free must not go there: somebody may have written there since.
#[test]
fn what_waits_for_a_place_is_forgotten_when_nothing_is_there_any_more() {
    // With so many batches before, one of the flushes at the end finds no room in the log and first places what waits.
    for filled in 0..20 {
        let (device, pool) = small_pool();
        let volume = pool.create_volume(spec(1, 16)).unwrap();
        volume.write(Lba(15), EPOCH, sealed([15])).unwrap();
        volume.write(Lba(0), EPOCH, sealed([1])).unwrap();
        for fence in 0..filled {
            pool.raise_fence(volume.id(), Fence(fence + 1)).unwrap();
        }
        volume.unmap(Lba(0), SectorCount(1)).unwrap();
        volume.flush().unwrap();
        // More than such a log takes: to its place at once.
        volume.write(Lba(0), EPOCH, sealed(101..=109)).unwrap();
        volume.flush().unwrap();
        let expected = [Some([101; 8]), Some([102; 8])];
        assert_eq!(read(&volume, 0, 2).unwrap(), expected, "{filled} batches before");
        let reopened = Pool::open(device.power_cut(filled)).unwrap();
        let found = read(&reopened.volume(volume.id()).unwrap(), 0, 2).unwrap();
        assert_eq!(found, expected, "{filled} batches before, after a cut");
    }
}
