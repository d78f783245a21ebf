//! Devices that cannot be opened or made into a pool: a clear error each, and nothing written.

use std::sync::Arc;

use device::{Device, FileDevice, SimulatedDevice};
use pool::{CreateOptions, Damage, Pool, PoolError, SuperblockFault};
use units::{ByteLen, Lba};

use crate::model::{EPOCH, read, sealed, spec};
use crate::workload::{DEVICE, EXTENT, LOG, create_options, small_pool};

const COPIES: [u64; 2] = [0, 16];

/// A pool with something in it, closed, whose log has been round more than once.
fn closed_pool() -> Arc<SimulatedDevice> {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    for fence in 1..40 {
        pool.raise_fence(volume.id(), units::Fence(fence)).unwrap();
        volume.write(Lba(fence), EPOCH, sealed([1000])).unwrap();
    }
    volume.write(Lba(0), EPOCH, sealed(1..=40)).unwrap();
    volume.flush().unwrap();
    drop((pool, volume));
    device
}

fn holds_what_was_written(pool: &Pool) {
    let found = read(&pool.volume(spec(1, 1).id).unwrap(), 0, 40).unwrap();
    assert!(found.iter().zip(1..).all(|(sector, tag)| *sector == Some([tag; 8])));
}

/// Opening fails, says what to do, and leaves the device as it was.
fn refused(device: &Arc<SimulatedDevice>, next_step: &str) -> PoolError {
    let (content, operations) = (device.content(), device.operations());
    let error = Pool::open(device.clone()).unwrap_err();
    assert!(error.to_string().contains(next_step), "{error}");
    assert_eq!(device.operations(), operations, "something was written or flushed: {error}");
    assert!(device.content() == content);
    error
}

type Damaging = Box<dyn Fn(&mut [u8])>;

/// Ways to damage a superblock: any bit flipped, or cut short after any number of bytes.
fn damages() -> Vec<Damaging> {
    let mut damages: Vec<Damaging> = Vec::new();
    for bit in (0..152 * 8).chain([8 * 2000 + 3, 8 * 4095 + 7]) {
        damages.push(Box::new(move |sector| sector[bit / 8] ^= 1 << (bit % 8)));
    }
    for kept in [0, 1, 8, 12, 60, 100] {
        damages.push(Box::new(move |sector| sector[kept..].fill(0)));
    }
    damages
}

#[test]
fn one_damaged_superblock_is_mended_from_the_other_and_said() {
    let pristine = closed_pool();
    for copy in COPIES {
        for (number, damage) in damages().iter().enumerate() {
            let device = pristine.durable_copy();
            device.edit(copy, damage);
            let report = Pool::check_device(&*device).unwrap();
            assert_eq!(report.damaged_superblock.unwrap().sector, copy, "damage {number}");
            let pool = Pool::open(device.clone()).unwrap();
            let repaired = pool.info().repaired.unwrap();
            assert_eq!(repaired.sector, copy, "damage {number}");
            holds_what_was_written(&pool);
            drop(pool);
            assert!(device.content() == pristine.content(), "damage {number} is not mended as it was");
            assert_eq!(Pool::open(device).unwrap().info().repaired, None);
        }
    }
}

#[test]
fn both_superblocks_damaged_is_refused() {
    let pristine = closed_pool();
    for damage in damages().iter().step_by(7) {
        let device = pristine.durable_copy();
        let mut erased = [0xff; 4096];
        damage(&mut erased);
        if erased == [0; 4096] {
            // Such a device is empty, which is another refusal.
            continue;
        }
        COPIES.iter().for_each(|copy| device.edit(*copy, damage));
        let error = refused(&device, "restore sector 0");
        assert!(matches!(error, PoolError::SuperblocksDamaged { .. }));
        let error = Pool::create(device, create_options()).unwrap_err();
        assert!(matches!(error, PoolError::HoldsOtherData { .. }), "{error}");
    }
}

/// Changes fields of both superblocks and puts the checksum right.
fn rewrite(device: &SimulatedDevice, change: impl Fn(&mut [u8])) {
    for copy in COPIES {
        device.edit(copy, |sector| {
            change(sector);
            sector[8..12].fill(0);
            let sum = crc32c::crc32c(sector).to_le_bytes();
            sector[8..12].copy_from_slice(&sum);
        });
    }
}

#[test]
fn newer_formats_and_unknown_features_are_refused() {
    let device = closed_pool().durable_copy();
    let newer = pool::FORMAT_VERSION + 1;
    rewrite(&device, |sector| sector[12..16].copy_from_slice(&newer.to_le_bytes()));
    let error = refused(&device, "install the release");
    assert!(matches!(error, PoolError::NewerFormat { found, .. } if found == newer));
    for (at, name) in [(24, "read-only"), (32, "incompatible")] {
        let device = closed_pool().durable_copy();
        rewrite(&device, |sector| sector[at] = 4);
        let error = refused(&device, "install the release");
        assert!(matches!(error, PoolError::UnknownFeatures { .. }) && error.to_string().contains(name));
    }
    // A feature one need not know is kept.
    let device = closed_pool().durable_copy();
    rewrite(&device, |sector| sector[16] = 4);
    let generation = device.content()[0].1[56];
    let pool = Pool::open(device.clone()).unwrap();
    device.set_len(ByteLen(DEVICE.0 + EXTENT));
    pool.grow().unwrap();
    let (_, superblock) = device.content().swap_remove(0);
    assert_eq!((superblock[16], superblock[56]), (4, generation + 1), "feature kept, generation risen");
}

#[test]
fn a_newer_format_counts_even_when_the_other_copy_is_damaged() {
    let device = closed_pool().durable_copy();
    rewrite(&device, |sector| sector[12] = 9);
    device.edit(0, |sector| sector[100] ^= 1);
    assert!(matches!(refused(&device, "install"), PoolError::NewerFormat { found: 9, .. }));
}

#[test]
fn fields_out_of_range_are_damage_even_under_a_right_checksum() {
    for (at, bytes) in [
        (72, 512_u64),  // sector size
        (80, 3 << 20),  // extent size
        (88, 100),      // log length
        (64, 4096),     // device length
        (96, u64::MAX), // start of the log
    ] {
        let device = closed_pool().durable_copy();
        rewrite(&device, |sector| sector[at..at + 8].copy_from_slice(&bytes.to_le_bytes()));
        match Pool::open(device).unwrap_err() {
            PoolError::SuperblocksDamaged { first: SuperblockFault::Fields, .. } => {}
            other => panic!("field at {at}: {other}"),
        }
    }
}

#[test]
fn a_device_that_has_become_shorter_is_refused_until_it_is_long_again() {
    let device = closed_pool();
    device.set_len(ByteLen(DEVICE.0 - 4096));
    let error = refused(&device, "former length");
    assert!(matches!(error, PoolError::DeviceShrunk { recorded, .. } if recorded == DEVICE));
    device.set_len(DEVICE);
    holds_what_was_written(&Pool::open(device.clone()).unwrap());
    let pool = Pool::open(device.clone()).unwrap();
    device.set_len(ByteLen(DEVICE.0 - 4096));
    assert!(matches!(pool.grow(), Err(PoolError::DeviceShrunk { .. })));
}

#[test]
fn copies_of_different_pools_are_refused() {
    let (first, second) = (closed_pool().durable_copy(), closed_pool());
    let (_, superblock) = second.content().swap_remove(0);
    first.edit(0, |sector| sector.copy_from_slice(&superblock));
    assert!(matches!(refused(&first, "Restore the right copy"), PoolError::SuperblocksDisagree { .. }));
}

#[test]
fn devices_without_a_pool_are_told_apart() {
    let blank = SimulatedDevice::new(DEVICE);
    assert!(matches!(refused(&blank, "pool create"), PoolError::NoPool { .. }));
    let tiny = SimulatedDevice::new(ByteLen(4096));
    assert!(Pool::open(tiny.clone()).is_err() && Pool::create(tiny, create_options()).is_err());
    for (sector, at, magic, name) in [
        (0, 0, &b"LUKS\xba\xbe"[..], "LUKS"),
        (0, 1080, b"\x53\xef", "ext4"),
        (16, 64, b"_BHRfS_M", "btrfs"),
        (0, 512, b"EFI PART", "GPT"),
        (0, 510, b"\x55\xaa", "boot sector"),
    ] {
        let device = SimulatedDevice::new(DEVICE);
        device.edit(sector, |bytes| bytes[at..at + magic.len()].copy_from_slice(magic));
        for error in [refused(&device, name), Pool::create(device.clone(), create_options()).unwrap_err()] {
            assert!(error.to_string().contains(name), "{error}");
            assert!(matches!(error, PoolError::HoldsOtherData { .. }));
        }
        let force = CreateOptions { force: true, ..create_options() };
        drop(Pool::create(device.clone(), force).unwrap());
        Pool::open(device).unwrap();
    }
    let at_end = SimulatedDevice::new(DEVICE);
    at_end.edit(DEVICE.0 / 4096 - 1, |bytes| bytes[5] = 1);
    assert!(Pool::create(at_end, create_options()).is_err());
}

#[test]
fn a_pool_is_only_replaced_by_force() {
    let device = closed_pool();
    let before = device.content();
    let error = Pool::create(device.clone(), create_options()).unwrap_err();
    assert!(matches!(error, PoolError::HoldsPool { .. }));
    assert!(device.content() == before);
    let force = CreateOptions { force: true, ..create_options() };
    let pool = Pool::create(device.clone(), force).unwrap();
    assert!(pool.volumes().is_empty());
    // Nothing of the old pool's log or tables is taken for the new one's.
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    assert!(read(&volume, 0, 64).unwrap().iter().all(Option::is_none));
    drop((pool, volume));
    assert_eq!(Pool::open(device).unwrap().volumes().len(), 1);
}

#[test]
fn lengths_that_make_no_pool_are_refused() {
    let create = |len: u64, extent: u64, log: Option<u64>| {
        let options =
            CreateOptions { extent_len: ByteLen(extent), log_len: log.map(ByteLen), ..Default::default() };
        Pool::create(SimulatedDevice::new(ByteLen(len)), options)
    };
    let least = (2 << 20) + LOG + 4 * EXTENT;
    assert!(create(least, EXTENT, Some(LOG)).is_ok());
    assert!(matches!(create(least - 4096, EXTENT, Some(LOG)), Err(PoolError::DeviceTooSmall { .. })));
    assert!(matches!(create(1 << 30, 5000, None), Err(PoolError::ExtentLen(_))));
    assert!(matches!(create(1 << 30, EXTENT, Some(1)), Err(PoolError::LogLen(_))));
    assert!(matches!(create(1 << 46, EXTENT, None), Err(PoolError::TooManyExtents { .. })));
}

#[test]
fn a_second_daemon_on_the_same_device_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let options = device::OpenOptions { create_len: Some(DEVICE), ..Default::default() };
    let device = Arc::new(FileDevice::open(&path, options).unwrap());
    let pool = Pool::create(device, create_options()).unwrap();
    let error = FileDevice::open(&path, device::OpenOptions::default()).unwrap_err();
    assert!(error.to_string().contains("already opened by another process"));
    drop(pool);
    Pool::open(Arc::new(FileDevice::open(&path, device::OpenOptions::default()).unwrap())).unwrap();
}

#[test]
fn damaged_tables_are_found_and_nothing_is_written() {
    // Enough volumes and extents for several checkpoints, so that the tables are on disk.
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    for round in 0..40 {
        volume.unmap(units::Lba(0), units::SectorCount(64)).unwrap();
        volume.write(Lba(round % 40), EPOCH, sealed([round + 1])).unwrap();
        volume.flush().unwrap();
    }
    drop((pool, volume));
    let volume_table = (1 << 20) / 4096;
    let extent_table = ((2 << 20) + LOG) / 4096;
    for (sector, expected) in [(volume_table, Damage::VolumeEntry), (extent_table, Damage::ExtentEntry)] {
        let damaged = device.durable_copy();
        // Past the entries that the log holds newer versions of.
        damaged.edit(sector, |bytes| bytes[4000] ^= 1);
        let error = refused(&damaged, "pool check");
        assert!(matches!(error, PoolError::MetadataDamaged { what, .. } if what == expected), "{error}");
        let report = Pool::check_device(&*damaged).unwrap();
        assert!(!report.is_sound() && report.problems[0].damage == expected);
        assert!(report.problems[0].at.0 / 4096 == sector);
    }
    assert!(Pool::check_device(&*device).unwrap().is_sound());
    assert_eq!(Device::len(&*device), DEVICE);
}
