//! Snapshots sent from one pool to another: what arrives is what was there, record by record, whatever breaks off in between.

use std::sync::Arc;

use device::{SimulatedDevice, Survivors};
use pool::{Manifest, Piece, Pool, PoolError, PoolErrorKind};
use units::{ByteLen, Fence, Lba, SectorCount, VolumeId};

use crate::model::{EPOCH, read, sealed, spec};
use crate::workload::{DEVICE, EXTENT, Random, create_options, small_pool};

const SECTORS: u64 = 100;
const VOLUME: VolumeId = VolumeId([1; 16]);

fn id(tag: u8) -> VolumeId {
    VolumeId([tag; 16])
}

/// A pool with room for a few snapshots.
fn roomy_pool() -> (Arc<SimulatedDevice>, Arc<Pool>) {
    let device = SimulatedDevice::new(ByteLen(DEVICE.0 + 100 * EXTENT));
    let pool = Pool::create(device.clone(), create_options()).unwrap();
    (device, pool)
}

/// Every sector with its record.
fn content(pool: &Pool, snapshot: VolumeId) -> Vec<Option<(Vec<u8>, u64)>> {
    let snapshot = pool.snapshot(snapshot).unwrap();
    let mut found = Vec::new();
    for piece in snapshot.read(Lba(0), snapshot.sectors()).unwrap() {
        match piece {
            Piece::Hole(count) => found.extend((0..count.0).map(|_| None)),
            Piece::Sealed { data, .. } => {
                let sectors = data.as_bytes().chunks_exact(4096).map(<[u8]>::to_vec);
                found.extend(sectors.zip(data.records().iter().map(|record| record.sequence)).map(Some));
            }
        }
    }
    found
}

/// Sends what is left of a snapshot in portions of `most` sectors. `false` where `until` portions were not enough.
fn send(from: &Pool, to: &Pool, manifest: &Manifest, most: u64, until: usize) -> Result<bool, PoolError> {
    let mut next = to.begin_receiving(manifest)?;
    for _ in 0..until {
        if next.0 >= manifest.sectors.0 {
            to.end_receiving(manifest)?;
            return Ok(true);
        }
        let portion = from.send(manifest, next, SectorCount(most))?;
        assert!(portion.written.0 <= most);
        next = to.receive(manifest.volume, manifest.snapshot, &portion.bytes)?;
        assert_eq!(next, portion.next);
    }
    Ok(false)
}

/// A volume that is written, trimmed, resized and snapshotted.
struct Source {
    pool: Arc<Pool>,
    random: Random,
    snapshots: Vec<VolumeId>,
}

impl Source {
    fn new(seed: u64) -> Self {
        let (_device, pool) = roomy_pool();
        pool.create_volume(spec(1, SECTORS)).unwrap();
        Self { pool, random: Random::new(seed), snapshots: Vec::new() }
    }

    fn change_and_snapshot(&mut self) -> VolumeId {
        let sectors = 60 + self.random.below(80);
        self.pool.resize_volume(VOLUME, SectorCount(sectors)).unwrap();
        let volume = self.pool.volume(VOLUME).unwrap();
        for nth in 0..10 {
            let at = self.random.below(sectors - 12);
            let count = 1 + self.random.below(12);
            match self.random.below(3) {
                0 => volume.unmap(Lba(at), SectorCount(count)).unwrap(),
                _ => volume
                    .write(Lba(at), EPOCH, &sealed((0..count).map(|tag| nth * 1000 + at + tag + 1)))
                    .unwrap(),
            }
        }
        let snapshot = id(100 + u8::try_from(self.snapshots.len()).unwrap());
        self.pool.create_snapshot(VOLUME, snapshot, 7).unwrap();
        // The pool is small: only the last two are kept.
        if self.snapshots.len() >= 2 {
            self.pool.delete_snapshot(self.snapshots[self.snapshots.len() - 2]).unwrap();
        }
        self.snapshots.push(snapshot);
        snapshot
    }
}

#[test]
fn every_snapshot_arrives_as_it_was_whatever_breaks_off_meanwhile() {
    let mut restarts = 0;
    for seed in 0..40 {
        let mut source = Source::new(seed);
        let (mut device, mut target) = roomy_pool();
        let mut newest: Option<VolumeId> = None;
        for _ in 0..8 {
            let snapshot = source.change_and_snapshot();
            let manifest = source.pool.manifest(snapshot, newest).unwrap();
            let most = 1 + source.random.below(40);
            while !send(&source.pool, &target, &manifest, most, 3).unwrap() {
                if source.random.below(2) == 0 {
                    // The node that receives is killed.
                    drop(target);
                    device = device.reopened();
                    target = Pool::open(device.clone()).unwrap();
                    restarts += 1;
                }
            }
            assert_eq!(content(&target, snapshot), content(&source.pool, snapshot), "seed {seed}");
            assert_eq!(target.snapshots().last().map(|info| (info.id, info.created_s)), Some((snapshot, 7)));
            if let Some(older) = newest {
                target.delete_snapshot(older).unwrap();
            }
            newest = Some(snapshot);
        }
        assert!(target.check().unwrap().is_sound());
    }
    println!("{restarts} restarts");
    assert!(restarts > 50);
}

/// Power fails at every operation of taking in an increment: what arrived before is there, and the rest arrives after.
#[test]
fn a_cut_while_a_snapshot_arrives_costs_nothing_that_has_arrived() {
    let mut source = Source::new(5);
    let first = source.change_and_snapshot();
    let second = source.change_and_snapshot();
    let (device, target) = small_pool();
    let whole = source.pool.manifest(first, None).unwrap();
    assert!(send(&source.pool, &target, &whole, 16, 100).unwrap());
    drop(target);
    let increment = source.pool.manifest(second, Some(first)).unwrap();
    let uncut = device.durable_copy();
    assert!(send(&source.pool, &Pool::open(uncut.clone()).unwrap(), &increment, 8, 100).unwrap());
    let mut cuts = 0;
    for cut in 0..uncut.operations() {
        for survivors in [Survivors::Nothing, Survivors::All, Survivors::Random(cut)] {
            let device = device.durable_copy();
            device.cut_power_at(cut);
            if let Ok(target) = Pool::open(device.clone()) {
                send(&source.pool, &target, &increment, 8, 100).unwrap_err();
            }
            let target = Pool::open(device.power_cut_leaving(survivors)).unwrap();
            assert_eq!(content(&target, first), content(&source.pool, first), "cut {cut}");
            match send(&source.pool, &target, &increment, 8, 100) {
                Ok(done) => assert!(done),
                // It had arrived, and the cut came behind that.
                Err(PoolError::VolumeExists(found)) => assert_eq!(found, second),
                Err(error) => panic!("cut {cut}: {error}"),
            }
            assert_eq!(content(&target, second), content(&source.pool, second), "cut {cut}");
            cuts += 1;
        }
    }
    println!("{cuts} cuts");
    assert!(cuts > 100);
}

#[test]
fn a_replica_takes_nothing_but_what_is_sent_until_it_is_promoted() {
    let mut source = Source::new(9);
    let first = source.change_and_snapshot();
    let second = source.change_and_snapshot();
    let (_device, target) = small_pool();
    let whole = source.pool.manifest(first, None).unwrap();
    assert!(send(&source.pool, &target, &whole, 16, 100).unwrap());
    let increment = source.pool.manifest(second, Some(first)).unwrap();
    assert!(!send(&source.pool, &target, &increment, 4, 2).unwrap());

    let volume = target.volume(VOLUME).unwrap();
    let refused = |result: Result<(), PoolError>| assert!(matches!(result, Err(PoolError::Replica(VOLUME))));
    refused(volume.write(Lba(0), EPOCH, &sealed([1])));
    refused(volume.unmap(Lba(0), SectorCount(1)));
    refused(target.raise_fence(VOLUME, Fence(5)));
    refused(target.resize_volume(VOLUME, SectorCount(500)));
    refused(target.roll_back(VOLUME, first));
    refused(target.create_snapshot(VOLUME, id(50), 0).map(drop));
    assert!(volume.info().replica);

    // Half of an increment has arrived, and is given up.
    assert_eq!(target.promote(VOLUME).unwrap(), Some(first));
    let sectors = target.snapshot(first).unwrap().sectors();
    assert_eq!(volume.sectors(), sectors);
    let snapshot = target.snapshot(first).unwrap();
    assert_eq!(read(&volume, 0, sectors.0).unwrap(), read(&snapshot, 0, sectors.0).unwrap());
    // A later write has a later sequence.
    let highest = content(&target, first).into_iter().flatten().map(|(_, sequence)| sequence).max();
    assert!(volume.take_sequences(SectorCount(1)).unwrap() > highest.unwrap());
    target.raise_fence(VOLUME, Fence(5)).unwrap();
    volume.write(Lba(0), EPOCH, &sealed([77])).unwrap();
    volume.flush().unwrap();
    assert!(matches!(target.begin_receiving(&increment), Err(PoolError::NotAReplica(VOLUME))));
    assert!(matches!(target.promote(VOLUME), Err(PoolError::NotAReplica(VOLUME))));
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let mut source = Source::new(3);
    let first = source.change_and_snapshot();
    let second = source.change_and_snapshot();
    let (_device, target) = small_pool();
    let whole = source.pool.manifest(first, None).unwrap();
    let increment = source.pool.manifest(second, Some(first)).unwrap();
    assert!(matches!(target.begin_receiving(&increment), Err(PoolError::NoSuchVolume(VOLUME))));
    assert!(send(&source.pool, &target, &whole, 1000, 100).unwrap());
    assert!(matches!(target.begin_receiving(&whole), Err(PoolError::VolumeExists(_))));
    let all_of_second = source.pool.manifest(second, None).unwrap();
    assert!(matches!(target.begin_receiving(&all_of_second), Err(PoolError::NoCommonSnapshot { .. })));
    let other_key = Manifest { check: [9; 16], ..increment };
    assert!(matches!(target.begin_receiving(&other_key), Err(PoolError::BadPortion { .. })));
    assert!(matches!(target.end_receiving(&increment), Err(PoolError::NotReceiving { .. })));

    assert_eq!(target.begin_receiving(&increment).unwrap(), Lba(0));
    let portion = source.pool.send(&increment, Lba(0), SectorCount(1000)).unwrap();
    let take = |bytes: &[u8]| target.receive(VOLUME, second, bytes);
    let head = || read(&target.volume(VOLUME).unwrap(), 0, increment.sectors.0).unwrap();
    let before = head();
    for bit in (0..portion.bytes.len() * 8).step_by(37) {
        let mut damaged = portion.bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(take(&damaged), Err(PoolError::BadPortion { .. })), "bit {bit}");
    }
    for len in (0..portion.bytes.len()).step_by(101) {
        assert!(matches!(take(&portion.bytes[..len]), Err(PoolError::BadPortion { .. })), "{len} bytes");
    }
    let later = source.pool.send(&increment, Lba(10), SectorCount(1000)).unwrap();
    assert!(matches!(take(&later.bytes), Err(PoolError::BadPortion { .. })), "a gap");
    assert!(matches!(target.receive(VOLUME, first, &portion.bytes), Err(PoolError::NotReceiving { .. })));
    assert_eq!(head(), before);
    assert!(matches!(target.end_receiving(&increment), Err(PoolError::NotReceiving { .. })));
    assert_eq!(take(&portion.bytes).unwrap(), portion.next);
    // Once more is as good as once.
    assert_eq!(take(&portion.bytes).unwrap(), portion.next);
    target.end_receiving(&increment).unwrap();
    assert_eq!(content(&target, second), content(&source.pool, second));
    // Asked again, because the answer was lost.
    target.end_receiving(&increment).unwrap();
}

#[test]
fn a_damaged_sector_is_not_sent() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, SECTORS)).unwrap();
    volume.write(Lba(0), EPOCH, &sealed(0..100)).unwrap();
    pool.create_snapshot(VOLUME, id(9), 0).unwrap();
    let sector = device.content().into_iter().find(|(_, page)| page == sealed([30]).as_bytes()).unwrap().0;
    device.edit(sector, |page| page[9] ^= 1);
    let manifest = pool.manifest(id(9), None).unwrap();
    let error = pool.send(&manifest, Lba(0), SectorCount(1000)).unwrap_err();
    assert!(matches!(error, PoolError::DamagedSector { sector: Lba(30), .. }), "{error}");
    assert_eq!((error.kind(), pool.info().damaged), (PoolErrorKind::Damaged, 1));
}
