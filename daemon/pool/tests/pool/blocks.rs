//! Blocks encrypted under a key are counted: never too few whatever a power cut undoes, together for all who share it, and no
//! more than it may.

use std::sync::Arc;

use device::Survivors;
use pool::{ENCRYPTED_BLOCKS_DUE, ENCRYPTED_BLOCKS_MAX, Limits, Pool, PoolError, StateHead, Witness};
use units::{Lba, SectorCount, VolumeId};

use crate::model::{EPOCH, read, sealed, spec};
use crate::workload::small_pool;

const PER_SECTOR: u64 = 256;
const GIB: u64 = 1 << 26;

fn id(tag: u8) -> VolumeId {
    VolumeId([tag; 16])
}

fn counted(pool: &Pool, volume: u8) -> u64 {
    pool.volume(id(volume)).unwrap().info().encrypted_blocks
}

#[test]
fn a_cut_counts_too_many_and_never_too_few() {
    let mut device = small_pool().0;
    let mut pool = Pool::open(device.clone()).unwrap();
    pool.create_volume(spec(1, 100)).unwrap();
    let mut sealed = 0;
    for round in 0..60 {
        let volume = pool.volume(id(1)).unwrap();
        let sectors = 1 + round * 37_123 % 300_000;
        volume.take_sequences(EPOCH, SectorCount(sectors)).unwrap();
        // Durable before they are encrypted: nothing was flushed since.
        sealed += sectors * PER_SECTOR;
        let survivors = if round % 2 == 0 { Survivors::Nothing } else { Survivors::Random(round) };
        drop((pool, volume));
        device = device.power_cut_leaving(survivors);
        pool = Pool::open(device.clone()).unwrap();
        let found = counted(&pool, 1);
        assert!(found >= sealed, "round {round}: {found} counted of {sealed}");
        // A cut costs what was reserved ahead.
        assert!(found <= sealed + (round + 2) * GIB, "round {round}: {found} counted of {sealed}");
    }
}

#[test]
fn reservations_are_rare() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 100)).unwrap();
    let before = device.writes();
    for _ in 0..1000 {
        volume.take_sequences(EPOCH, SectorCount(64)).unwrap();
    }
    assert_eq!(device.writes(), before, "a quarter of a GiB needs none");
}

#[test]
fn who_shares_a_key_is_counted_together_and_who_goes_leaves_what_it_had() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 100)).unwrap();
    volume.take_sequences(EPOCH, SectorCount(GIB / PER_SECTOR * 10)).unwrap();
    pool.create_snapshot(id(1), id(9), 0).unwrap();
    pool.clone_snapshot(id(9), id(2), Limits::default()).unwrap();
    let together = counted(&pool, 2);
    assert_eq!(together, counted(&pool, 1));
    assert!(together >= 11 * GIB);
    pool.create_volume(spec(3, 100)).unwrap();
    assert_eq!(counted(&pool, 3), GIB, "another key");
    pool.delete_volume(id(1)).unwrap();
    assert_eq!(counted(&pool, 2), together);
    pool.delete_snapshot(id(9)).unwrap();
    // What it took over is no reservation of its own.
    let more = 20 * GIB;
    pool.volume(id(2)).unwrap().take_sequences(EPOCH, SectorCount(more / PER_SECTOR)).unwrap();
    assert!(counted(&pool, 2) >= together + more - GIB, "{}", counted(&pool, 2));
    let together = counted(&pool, 2);
    drop((pool, volume));
    let pool = Pool::open(device.reopened()).unwrap();
    assert_eq!(counted(&pool, 2), together);
}

struct AnyWitness;

impl Witness for AnyWitness {
    fn vouch(&self, _: &StateHead) -> Option<[u8; 16]> {
        Some([7; 16])
    }
}

/// A request that was on its way when its volume was deleted comes to reserve blocks when another volume has its entry.
#[test]
fn a_handle_to_a_deleted_volume_takes_nothing_from_the_one_that_has_its_place() {
    let (device, pool) = small_pool();
    let old = pool.create_volume(spec(1, 100)).unwrap();
    pool.delete_volume(id(1)).unwrap();
    let new = pool.create_volume(spec(2, 100)).unwrap();
    new.write(Lba(0), EPOCH, sealed([5])).unwrap();
    let gone = |error: PoolError| assert!(matches!(error, PoolError::NoSuchVolume(_)), "{error}");
    gone(old.take_sequences(EPOCH, SectorCount(2 * GIB / PER_SECTOR)).unwrap_err());
    gone(old.write(Lba(0), EPOCH, sealed([6])).unwrap_err());
    gone(old.unmap(Lba(0), SectorCount(1)).unwrap_err());
    gone(old.set_witness(Arc::new(AnyWitness)).unwrap_err());
    old.flush().unwrap();
    drop((pool, old, new));
    let pool = Pool::open(device.reopened()).unwrap();
    let found = read(&pool.volume(id(2)).unwrap(), 0, 1).unwrap();
    assert_eq!(found, [Some([5; 8])]);
    assert_eq!(pool.volumes().len(), 1);
}

#[test]
fn a_key_that_is_used_up_encrypts_nothing_more() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 100)).unwrap();
    let half = SectorCount(ENCRYPTED_BLOCKS_DUE / PER_SECTOR);
    volume.take_sequences(EPOCH, half).unwrap();
    assert!(counted(&pool, 1) > ENCRYPTED_BLOCKS_DUE);
    volume.take_sequences(EPOCH, SectorCount(half.0 - GIB / PER_SECTOR)).unwrap();
    let refused = |result: Result<u64, PoolError>| assert!(matches!(result, Err(PoolError::KeyUsedUp(_))));
    refused(volume.take_sequences(EPOCH, SectorCount(3 * GIB / PER_SECTOR)));
    // What is left is there to the last block, a refusal takes none of it, and nobody who shares the key has more.
    volume.take_sequences(EPOCH, SectorCount(GIB / PER_SECTOR - 1)).unwrap();
    volume.take_sequences(EPOCH, SectorCount(1)).unwrap();
    refused(volume.take_sequences(EPOCH, SectorCount(1)));
    pool.create_snapshot(id(1), id(9), 0).unwrap();
    let clone = pool.clone_snapshot(id(9), id(2), Limits::default()).unwrap();
    refused(clone.take_sequences(EPOCH, SectorCount(1)));
    assert_eq!(counted(&pool, 1), ENCRYPTED_BLOCKS_MAX);
    drop((pool, volume));
    let pool = Pool::open(device.reopened()).unwrap();
    let volume = pool.volume(id(1)).unwrap();
    refused(volume.take_sequences(EPOCH, SectorCount(3 * GIB / PER_SECTOR)));
    refused(volume.take_sequences(EPOCH, SectorCount(u64::MAX)));
}
