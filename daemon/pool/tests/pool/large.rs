//! A pool of 1 TiB, of 10 TiB in `make soak`, on a device that costs what is written to it: filled to its last extent,
//! snapshotted, trimmed and emptied.

use std::time::Instant;

use device::SimulatedDevice;
use pool::{CreateOptions, Pool, PoolError, PoolVolume};
use units::{ByteLen, Lba, SectorCount, VolumeId};

use crate::model::{EPOCH, read, sealed, spec, verify_metadata};
use crate::power_cuts::soak_time;
use crate::workload::reopen;

const EXTENT: u64 = 64 << 20;
const PER_EXTENT: u64 = EXTENT / 4096;

fn extents(pool: &Pool, bytes: impl Fn(&Pool) -> ByteLen) -> u64 {
    bytes(pool).0 / EXTENT
}

fn allocated(pool: &Pool) -> u64 {
    extents(pool, |pool| pool.info().allocated)
}

/// Writes a sector in each of these extents of the volume that the pool has room for; how many.
fn fill(volume: &PoolVolume, from: std::ops::Range<u64>) -> u64 {
    let write = |extent: &u64| match volume.write(Lba(extent * PER_EXTENT), EPOCH, sealed([extent + 1])) {
        Ok(()) => true,
        Err(PoolError::NoSpace) => false,
        Err(error) => panic!("extent {extent}: {error}"),
    };
    from.take_while(write).count() as u64
}

#[test]
fn tebibytes_are_filled_to_the_last_extent_and_given_back_whole() {
    let started = Instant::now();
    let tebibytes = if soak_time().is_zero() { 1 } else { 10 };
    let device = SimulatedDevice::new(ByteLen(tebibytes << 40));
    let options = CreateOptions { extent_len: ByteLen(EXTENT), ..CreateOptions::default() };
    let pool = Pool::create(device.clone(), options).unwrap();
    let capacity = extents(&pool, |pool| pool.info().capacity);
    let volume = pool.create_volume(spec(1, 2 * capacity * PER_EXTENT)).unwrap();
    let filled = fill(&volume, 0..u64::MAX);
    assert_eq!((filled, allocated(&pool)), (capacity, capacity));
    volume.flush().unwrap();
    println!("{capacity} extents filled after {:?}", started.elapsed());

    // Room for a snapshot's holes has to be made first; then all of it is the snapshot's too.
    assert!(matches!(pool.create_snapshot(volume.id(), VolumeId([2; 16]), 1), Err(PoolError::NoSpace)));
    let given_up = capacity / 64;
    volume.unmap(Lba(0), SectorCount(given_up * PER_EXTENT)).unwrap();
    volume.flush().unwrap();
    assert_eq!(allocated(&pool), capacity - given_up);
    pool.create_snapshot(volume.id(), VolumeId([2; 16]), 1).unwrap();
    let again = fill(&volume, given_up..u64::MAX);
    volume.flush().unwrap();
    let hole_table = |pool: &Pool| pool.check().unwrap().hole_table_extents;
    assert_eq!(again + hole_table(&pool), given_up, "the hole table took its part");
    // Trimmed, what the snapshot shows stays, and what the volume alone has is free.
    volume.unmap(Lba(0), volume.sectors()).unwrap();
    verify_metadata(&pool).unwrap();
    assert_eq!(allocated(&pool), capacity - given_up);
    println!("snapshotted, overwritten and trimmed after {:?}", started.elapsed());

    drop((pool, volume));
    let pool = reopen(&device);
    println!("opened after {:?}", started.elapsed());
    let snapshot = pool.snapshot(VolumeId([2; 16])).unwrap();
    for extent in (given_up..capacity).step_by(997) {
        assert_eq!(read(&snapshot, extent * PER_EXTENT, 1).unwrap(), [Some([extent + 1; 8])]);
    }
    drop(snapshot);
    pool.delete_snapshot(VolumeId([2; 16])).unwrap();
    pool.delete_volume(spec(1, 1).id).unwrap();
    verify_metadata(&pool).unwrap();
    assert_eq!(allocated(&pool), 0);
    println!("emptied after {:?}", started.elapsed());

    // Nothing is lost and nothing is there twice: as many extents as before, less the hole table's, and none was given out twice, or the metadata would say so.
    let other = pool.create_volume(spec(3, 2 * capacity * PER_EXTENT)).unwrap();
    let filled = fill(&other, 0..u64::MAX);
    drop(other);
    verify_metadata(&pool).unwrap();
    assert_eq!(filled + hole_table(&pool), capacity);
    println!("filled again after {:?}", started.elapsed());
}
