//! Snapshots sent from one pool to another: what arrives is what was there, record by record, whatever breaks off in between.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use device::{SimulatedDevice, Survivors};
use pool::{CrashStep, Manifest, OpenOptions, Piece, Pool, PoolError, PoolErrorKind, StepHook};
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
                    .write(Lba(at), EPOCH, sealed((0..count).map(|tag| nth * 1000 + at + tag + 1)))
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
    refused(volume.write(Lba(0), EPOCH, sealed([1])));
    refused(volume.unmap(Lba(0), SectorCount(1)));
    refused(target.raise_fence(VOLUME, Fence(5)));
    refused(target.resize_volume(VOLUME, SectorCount(500)));
    refused(target.roll_back(VOLUME, first));
    refused(target.create_snapshot(VOLUME, id(50), 0).map(drop));
    assert!(volume.info().replica);

    // Half of an increment has arrived, and is given up.
    assert_eq!(target.promote(VOLUME).unwrap(), first);
    let sectors = target.snapshot(first).unwrap().sectors();
    assert_eq!(volume.sectors(), sectors);
    let snapshot = target.snapshot(first).unwrap();
    assert_eq!(read(&volume, 0, sectors.0).unwrap(), read(&snapshot, 0, sectors.0).unwrap());
    // A later write has a later sequence.
    let highest = content(&target, first).into_iter().flatten().map(|(_, sequence)| sequence).max();
    assert!(volume.take_sequences(EPOCH, SectorCount(1)).unwrap() > highest.unwrap());
    target.raise_fence(VOLUME, Fence(5)).unwrap();
    volume.write(Lba(0), EPOCH, sealed([77])).unwrap();
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
    // It is there: nothing is to be sent.
    assert_eq!(target.begin_receiving(&whole).unwrap().0, whole.sectors.0);
    let other = Manifest { volume: id(77), ..whole };
    assert!(matches!(target.begin_receiving(&other), Err(PoolError::VolumeExists(_))));
    let too_many = Manifest { blocks: 1 << 50, ..increment };
    assert!(matches!(target.begin_receiving(&too_many), Err(PoolError::BadPortion { .. })));
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
    volume.write(Lba(0), EPOCH, sealed(0..100)).unwrap();
    pool.create_snapshot(VOLUME, id(9), 0).unwrap();
    let sector = device.content().into_iter().find(|(_, page)| page == sealed([30]).as_bytes()).unwrap().0;
    device.edit(sector, |page| page[9] ^= 1);
    let manifest = pool.manifest(id(9), None).unwrap();
    let error = pool.send(&manifest, Lba(0), SectorCount(1000)).unwrap_err();
    assert!(matches!(error, PoolError::DamagedSector { sector: Lba(30), .. }), "{error}");
    assert_eq!((error.kind(), pool.info().damaged), (PoolErrorKind::Damaged, 1));
}

/// What a replica receives was sent since its newest snapshot: when that goes, it begins again since the one before.
#[test]
fn a_snapshot_that_is_received_since_one_that_goes_begins_again() {
    let (_device, source) = roomy_pool();
    let volume = source.create_volume(spec(1, SECTORS)).unwrap();
    let (_device, target) = roomy_pool();
    let snapshot = |tag| source.create_snapshot(VOLUME, id(tag), 0).unwrap();
    volume.write(Lba(0), EPOCH, sealed([1])).unwrap();
    snapshot(10);
    volume.write(Lba(50), EPOCH, sealed([2])).unwrap();
    snapshot(11);
    volume.unmap(Lba(50), SectorCount(1)).unwrap();
    volume.write(Lba(3), EPOCH, sealed([3, 4, 5])).unwrap();
    volume.write(Lba(90), EPOCH, sealed([9])).unwrap();
    snapshot(12);
    for (tag, since) in [(10, None), (11, Some(id(10)))] {
        let manifest = source.manifest(id(tag), since).unwrap();
        assert!(send(&source, &target, &manifest, 100, 100).unwrap());
    }
    let since_11 = source.manifest(id(12), Some(id(11))).unwrap();
    assert!(!send(&source, &target, &since_11, 2, 1).unwrap());
    target.delete_snapshot(id(11)).unwrap();
    let since_10 = source.manifest(id(12), Some(id(10))).unwrap();
    assert_eq!(target.begin_receiving(&since_10).unwrap(), Lba(0));
    assert!(send(&source, &target, &since_10, 2, 100).unwrap());
    assert_eq!(content(&target, id(12)), content(&source, id(12)));
}

#[test]
fn a_replica_that_is_given_its_content_again_holds_up_no_other() {
    let (_device, source) = roomy_pool();
    let other = VolumeId([2; 16]);
    for (volume, first) in [(VOLUME, 10), (other, 20)] {
        let written = source.create_volume(spec(volume.0[0], SECTORS)).unwrap();
        written.write(Lba(0), EPOCH, sealed(100..140)).unwrap();
        source.create_snapshot(volume, id(first), 0).unwrap();
        written.unmap(Lba(0), SectorCount(10)).unwrap();
        written.write(Lba(10), EPOCH, sealed(200..230)).unwrap();
        source.create_snapshot(volume, id(first + 1), 0).unwrap();
        written.write(Lba(5), EPOCH, sealed(300..310)).unwrap();
        source.create_snapshot(volume, id(first + 2), 0).unwrap();
    }
    let (device, target) = roomy_pool();
    for tag in [10, 20] {
        assert!(send(&source, &target, &source.manifest(id(tag), None).unwrap(), 100, 100).unwrap());
    }
    // A part of an epoch has arrived that is given up for another.
    assert!(!send(&source, &target, &source.manifest(id(11), Some(id(10))).unwrap(), 8, 1).unwrap());
    drop(target);
    let (blocked, is_blocked) = mpsc::channel();
    let (go_on, gone_on) = mpsc::channel::<()>();
    let gone_on = Mutex::new(gone_on);
    let on_step: StepHook = Arc::new(move |step| {
        let is_restoring = std::thread::current().name() == Some("restoring");
        if is_restoring && step == CrashStep::DataWrite {
            let _ = blocked.send(());
            let _ = gone_on.lock().unwrap().recv();
        }
    });
    let options = OpenOptions { on_step: Some(on_step), ..OpenOptions::default() };
    let target = Pool::open_with(device.reopened(), options).unwrap();
    let since_10 = source.manifest(id(12), Some(id(10))).unwrap();
    let restoring = {
        let target = Arc::clone(&target);
        let restore = move || target.begin_receiving(&since_10);
        std::thread::Builder::new().name("restoring".to_owned()).spawn(restore).unwrap()
    };
    is_blocked.recv_timeout(Duration::from_secs(10)).expect("it copies");
    let (done, is_done) = mpsc::channel();
    {
        let target = Arc::clone(&target);
        std::thread::spawn(move || done.send(target.promote(other)));
    }
    let promoted = is_done.recv_timeout(Duration::from_secs(10)).expect("it does not wait for the other");
    assert_eq!(promoted.unwrap(), id(20));
    // What is blocked goes on, each time.
    drop(go_on);
    assert_eq!(restoring.join().unwrap().unwrap(), Lba(0));
    assert!(send(&source, &target, &since_10, 100, 100).unwrap());
    assert_eq!(content(&target, id(12)), content(&source, id(12)));
    assert!(target.check().unwrap().is_sound());
}

#[test]
fn a_replica_without_a_whole_snapshot_is_not_promoted_and_loses_nothing() {
    let mut source = Source::new(4);
    let first = source.change_and_snapshot();
    let (_device, target) = small_pool();
    let whole = source.pool.manifest(first, None).unwrap();
    assert!(!send(&source.pool, &target, &whole, 5, 2).unwrap());
    let next = target.begin_receiving(&whole).unwrap();
    assert!(matches!(target.promote(VOLUME), Err(PoolError::NothingArrived(VOLUME))));
    assert_eq!(target.begin_receiving(&whole).unwrap(), next);
    // A shorter end is none.
    let short = Manifest { sectors: SectorCount(1), ..whole };
    assert!(matches!(target.end_receiving(&short), Err(PoolError::NotReceiving { .. })));
    assert!(send(&source.pool, &target, &whole, 5, 100).unwrap());
    assert_eq!(content(&target, first), content(&source.pool, first));
}

/// The first site is gone, the pool is full, and the device does not read what the increment had begun to replace.
#[test]
fn promotion_reads_nothing_and_needs_no_space() {
    let (_device, source) = roomy_pool();
    let volume = source.create_volume(spec(1, SECTORS)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(0..SECTORS)).unwrap();
    source.create_snapshot(VOLUME, id(10), 0).unwrap();
    volume.unmap(Lba(0), SectorCount(40)).unwrap();
    volume.write(Lba(40), EPOCH, sealed(140..150)).unwrap();
    source.create_snapshot(VOLUME, id(11), 0).unwrap();
    let (device, target) = small_pool();
    assert!(send(&source, &target, &source.manifest(id(10), None).unwrap(), 100, 100).unwrap());
    let increment = source.manifest(id(11), Some(id(10))).unwrap();
    assert!(!send(&source, &target, &increment, 4, 1).unwrap());
    let filler = target.create_volume(spec(2, 16 * 100)).unwrap();
    while filler.write(Lba(16 * (target.info().allocated.0 / EXTENT)), EPOCH, sealed([1])).is_ok() {}
    target.flush().unwrap();
    let sector = device.content().into_iter().find(|(_, page)| page == sealed([5]).as_bytes()).unwrap().0;
    device.make_unreadable(sector);
    assert_eq!(target.promote(VOLUME).unwrap(), id(10));
    device.make_readable(sector);
    let found = read(&target.volume(VOLUME).unwrap(), 0, SECTORS).unwrap();
    assert!(found.iter().zip(0..).all(|(sector, tag)| *sector == Some([tag; 8])));
}

#[test]
fn runs_and_numbers_that_no_pool_sends_are_refused() {
    let mut source = Source::new(6);
    let first = source.change_and_snapshot();
    let (_device, target) = small_pool();
    let whole = source.pool.manifest(first, None).unwrap();
    target.begin_receiving(&whole).unwrap();
    let portion = source.pool.send(&whole, Lba(0), SectorCount(1000)).unwrap().bytes;
    let forged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = portion.clone();
        change(&mut bytes);
        let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &bytes[12..]);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        let result = target.receive(VOLUME, first, &bytes);
        assert!(matches!(result, Err(PoolError::BadPortion { .. })), "{result:?}");
    };
    let put = |at: usize, value: u64| {
        move |bytes: &mut Vec<u8>| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes())
    };
    let runs = usize::try_from(u64::from_le_bytes(portion[32..40].try_into().unwrap())).unwrap();
    for value in [u64::MAX, u64::MAX - 1, 1 << 62, 1 << 40] {
        forged(&put(16, value));
        forged(&put(24, value));
        forged(&put(32, value));
        forged(&put(40, value));
    }
    forged(&|bytes| {
        put(16, u64::MAX - 11)(bytes);
        put(24, u64::MAX - 1)(bytes);
    });
    // A sequence that would use up the pool's numbers.
    forged(&put(40 + 8 * runs, (1 << 62) - 2));
    forged(&put(40 + 8 * runs, 1 << 56));
    target.receive(VOLUME, first, &portion).unwrap();
    target.end_receiving(&whole).unwrap();
}
