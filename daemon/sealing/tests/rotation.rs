//! A volume whose key is given a new epoch while clients write: what they read is what they wrote, whatever comes in between.
#![expect(clippy::unwrap_used, reason = "a test")]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use device::{Device, SimulatedDevice};
use keyring::simulated::{Keyholder, keyring};
use keyring::{Keyring, WipeCause};
use pool::{CreateOptions, Pool, PoolVolume, VolumeKind, VolumeSpec};
use sealing::{Durability, ErrorKind, Volume, VolumeKeys, ZeroMode};
use support::{Random, index, seed};
use units::{ByteLen, ByteOffset, DomainId, Lba, SECTOR_BYTES, SectorCount, VolumeEpoch, VolumeId};

const SECTOR: u64 = SECTOR_BYTES as u64;
const DOMAIN: DomainId = DomainId([4; 16]);
const VOLUME: VolumeId = VolumeId([3; 16]);
const OLD: VolumeEpoch = VolumeEpoch(1);
const NEW: VolumeEpoch = VolumeEpoch(2);

/// Who has the keys of both epochs: of secrets that have nothing to do with each other.
struct Keys {
    old: Keyholder,
    new: Keyholder,
}

impl Keys {
    fn new() -> Self {
        Self { old: Keyholder::new(DOMAIN, OLD), new: Keyholder::with_prk(DOMAIN, NEW, [0x5e; 32]) }
    }

    fn push(&self, keyring: &Arc<Keyring>) -> Arc<VolumeKeys> {
        let keys = [(OLD, &self.old), (NEW, &self.new)];
        let keys = keys.map(|(epoch, of)| (epoch, of.push(keyring).unwrap().handle));
        VolumeKeys::new(Arc::clone(keyring), keys)
    }
}

fn volume_on(device: &Arc<SimulatedDevice>, sectors: u64, keys: &Keys) -> (Arc<Pool>, Arc<PoolVolume>) {
    let options = CreateOptions { extent_len: ByteLen(64 << 10), ..CreateOptions::default() };
    let pool = Pool::create(Arc::clone(device) as Arc<dyn Device>, options).unwrap();
    let spec = VolumeSpec {
        id: VOLUME,
        sectors: SectorCount(sectors),
        domain: DOMAIN,
        epoch: OLD,
        check: keys.old.check(),
        kind: VolumeKind::Block,
    };
    let volume = pool.create_volume(spec).unwrap();
    (pool, volume)
}

/// Moves everything; how much that was, and how many sectors could not be.
fn move_all(volume: &Volume) -> (u64, u64) {
    let (mut from, mut moved, mut damaged) = (Lba(0), 0, 0);
    while let Some(step) = volume.move_next(from).unwrap() {
        (from, moved, damaged) = (step.next, moved + step.moved.0, damaged + step.damaged);
    }
    (moved, damaged)
}

fn content(volume: &Volume) -> Vec<u8> {
    let mut bytes = vec![0; index(volume.len().0)];
    volume.read(ByteOffset(0), &mut bytes).unwrap();
    bytes
}

#[test]
fn clients_write_and_read_through_a_rotation_and_the_old_key_is_not_needed_after_it() {
    const SECTORS: u64 = 1024;
    let seed = seed();
    let (keys, device) = (Keys::new(), SimulatedDevice::new(ByteLen(64 << 20)));
    let (pool, sealed) = volume_on(&device, SECTORS, &keys);
    let keyring = keyring();
    let lent = keys.push(&keyring);
    let volume = Volume::open_with(Arc::clone(&sealed), Arc::clone(&lent));
    let mut expected = Random(seed).bytes(SECTORS * SECTOR);
    volume.write(ByteOffset(0), &expected, Durability::Durable).unwrap();
    assert_eq!(sealed.outdated().unwrap(), SectorCount(0));
    let done = AtomicBool::new(false);
    let quarters = expected.chunks_mut(index(SECTORS * SECTOR / 4));
    thread::scope(|scope| {
        for (quarter, mine) in (0..).zip(quarters) {
            let (volume, done) = (volume.clone(), &done);
            scope.spawn(move || {
                let (start, len) = (quarter * mine.len() as u64, mine.len() as u64);
                let mut random = Random(seed + 1 + quarter);
                while !done.load(Ordering::Relaxed) {
                    // At any alignment, so that sectors of the old epoch are merged with what is new.
                    let from = random.below(len);
                    let to = (from + 1 + random.below(9 * SECTOR)).min(len);
                    let part = &mut mine[index(from)..index(to)];
                    let at = ByteOffset(start + from);
                    match random.below(6) {
                        0 => {
                            part.fill(0);
                            let mode = if random.below(2) == 0 {
                                ZeroMode::MayUnmap
                            } else {
                                ZeroMode::KeepAllocated
                            };
                            volume.write_zeroes(at, ByteLen(to - from), mode, Durability::Buffered).unwrap();
                        }
                        1 => {
                            let mut found = vec![0; part.len()];
                            volume.read(at, &mut found).unwrap();
                            assert!(found == *part, "at {at}");
                        }
                        2 => volume.flush().unwrap(),
                        _ => {
                            part.copy_from_slice(&random.bytes(to - from));
                            volume.write(at, part, Durability::Buffered).unwrap();
                        }
                    }
                }
            });
        }
        pool.begin_epoch(VOLUME, NEW, keys.new.check()).unwrap();
        assert!(sealed.outdated().unwrap().0 > 0, "nothing was left to move");
        while move_all(&volume).0 > 0 {}
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(sealed.outdated().unwrap(), SectorCount(0), "nobody writes under the old one any more");
    for _ in 0..2 {
        pool.flush().unwrap();
    }
    assert_eq!(pool.epochs_in_use(DOMAIN).unwrap().into_iter().collect::<Vec<_>>(), [NEW]);
    lent.retire(OLD);
    assert!(content(&volume) == expected, "seed {seed}");
    assert_eq!(keyring.status().keys, 1);
}

/// Power cut, again and again, while it is moved and written: every durable byte is there under one key or the other, and at the
/// end under the new one alone.
#[test]
fn a_rotation_that_is_cut_off_again_and_again_ends_and_loses_nothing() {
    const SECTORS: u64 = 300;
    let seed = seed();
    let mut random = Random(seed);
    let keys = Keys::new();
    let mut device = SimulatedDevice::new(ByteLen(16 << 20));
    let mut expected = random.bytes(SECTORS * SECTOR);
    {
        let (_pool, sealed) = volume_on(&device, SECTORS, &keys);
        let keyring = keyring();
        let volume = Volume::open_with(sealed, keys.push(&keyring));
        volume.write(ByteOffset(0), &expected, Durability::Durable).unwrap();
        volume.trim(ByteOffset(40 * SECTOR), ByteLen(7 * SECTOR), Durability::Durable).unwrap();
        expected[index(40 * SECTOR)..index(47 * SECTOR)].fill(0);
    }
    device = device.power_cut(random.next());
    let (mut cuts, mut moved) = (0, 0);
    loop {
        let pool = Pool::open(Arc::clone(&device) as Arc<dyn Device>).unwrap();
        let sealed = pool.volume(VOLUME).unwrap();
        let keyring = keyring();
        let volume = Volume::open_with(Arc::clone(&sealed), keys.push(&keyring));
        assert!(content(&volume) == expected, "seed {seed}, after {cuts} cuts");
        device.cut_power_at(device.operations() + 2 + random.below(40));
        let mut run = || {
            pool.begin_epoch(VOLUME, NEW, keys.new.check()).ok()?;
            let mut from = Lba(0);
            while let Some(step) = volume.move_next(from).ok()? {
                from = step.next;
                moved += step.moved.0;
            }
            pool.flush().ok()?;
            pool.flush().ok()
        };
        let through = run().is_some() && device.has_power();
        if through {
            break;
        }
        drop((volume, sealed, pool));
        device = if random.below(4) == 0 { device.reopened() } else { device.power_cut(random.next()) };
        cuts += 1;
        assert!(cuts < 10_000, "it does not come to its end");
    }
    println!("seed {seed}: {cuts} cuts, {} MiB moved for {} MiB", moved >> 20, (SECTORS * SECTOR) >> 20);
    device = device.power_cut(random.next());
    let pool = Pool::open(Arc::clone(&device) as Arc<dyn Device>).unwrap();
    assert_eq!(pool.epochs_in_use(DOMAIN).unwrap().into_iter().collect::<Vec<_>>(), [NEW]);
    let keyring = keyring();
    let key = keys.new.push(&keyring).unwrap().handle;
    let volume = Volume::open(pool.volume(VOLUME).unwrap(), keyring, key);
    assert!(content(&volume) == expected, "seed {seed}");
    assert!(cuts > 3, "seed {seed}: {cuts} cuts only");
}

#[test]
fn a_snapshot_keeps_its_epoch_and_reads_with_its_key_until_it_is_deleted() {
    const SECTORS: u64 = 64;
    let (keys, device) = (Keys::new(), SimulatedDevice::new(ByteLen(64 << 20)));
    let (pool, sealed) = volume_on(&device, SECTORS, &keys);
    let keyring = keyring();
    let lent = keys.push(&keyring);
    let volume = Volume::open_with(Arc::clone(&sealed), Arc::clone(&lent));
    let before = Random(7).bytes(SECTORS * SECTOR);
    volume.write(ByteOffset(0), &before, Durability::Durable).unwrap();
    let snapshot = VolumeId([9; 16]);
    pool.create_snapshot(VOLUME, snapshot, 1).unwrap();
    pool.begin_epoch(VOLUME, NEW, keys.new.check()).unwrap();
    assert_eq!(move_all(&volume), (SECTORS * SECTOR, 0));
    for _ in 0..2 {
        pool.flush().unwrap();
    }
    let uses = pool.epochs(DOMAIN);
    assert_eq!(uses.iter().map(|of| of.epoch).collect::<Vec<_>>(), [OLD, NEW]);
    assert_eq!(uses[0].shown_by.iter().copied().collect::<Vec<_>>(), [snapshot], "what keeps it is named");
    let shown = Volume::open_with(pool.snapshot(snapshot).unwrap(), Arc::clone(&lent));
    assert!(content(&shown) == before && content(&volume) == before);
    // What goes back to the snapshot is moved again.
    pool.roll_back(VOLUME, snapshot).unwrap();
    assert_eq!((sealed.epoch(), sealed.outdated().unwrap()), (NEW, SectorCount(SECTORS)));
    assert!(content(&volume) == before);
    assert_eq!(move_all(&volume), (SECTORS * SECTOR, 0));
    // A clone is written under the newest, whatever its snapshot was.
    let clone = pool.clone_snapshot(snapshot, VolumeId([10; 16]), pool::Limits::default()).unwrap();
    assert_eq!((clone.epoch(), clone.info().check), (NEW, keys.new.check()));
    pool.delete_volume(VolumeId([10; 16])).unwrap();
    pool.delete_snapshot(snapshot).unwrap();
    assert_eq!(pool.epochs_in_use(DOMAIN).unwrap().into_iter().collect::<Vec<_>>(), [NEW]);
    lent.retire(OLD);
    assert!(content(&volume) == before);
}

#[test]
fn a_damaged_sector_is_left_as_it_is_and_keeps_nobody_from_moving() {
    const SECTORS: u64 = 64;
    let (keys, device) = (Keys::new(), SimulatedDevice::new(ByteLen(64 << 20)));
    let (pool, sealed) = volume_on(&device, SECTORS, &keys);
    let keyring = keyring();
    let lent = keys.push(&keyring);
    let volume = Volume::open_with(Arc::clone(&sealed), Arc::clone(&lent));
    let before = Random(7).bytes(SECTORS * SECTOR);
    volume.write(ByteOffset(0), &before, Durability::Durable).unwrap();
    let pieces = sealed.read(Lba(10), SectorCount(1)).unwrap();
    let pool::Piece::Sealed { data, .. } = &pieces[0] else { panic!("{pieces:?}") };
    let (page, _) = device.content().into_iter().find(|(_, bytes)| *bytes == data.as_bytes()).unwrap();
    device.edit(page, |sector| sector[5] ^= 1);
    pool.begin_epoch(VOLUME, NEW, keys.new.check()).unwrap();
    assert_eq!(move_all(&volume), ((SECTORS - 1) * SECTOR, 1));
    assert_eq!(sealed.outdated().unwrap(), SectorCount(1), "it keeps its epoch, and says so");
    // Written anew it moves.
    volume
        .write(ByteOffset(10 * SECTOR), &before[index(10 * SECTOR)..index(11 * SECTOR)], Durability::Durable)
        .unwrap();
    assert_eq!(sealed.outdated().unwrap(), SectorCount(0));
    assert!(content(&volume) == before);
}

#[test]
fn a_wipe_in_the_middle_ends_it_and_a_key_that_was_never_given_opens_nothing() {
    const SECTORS: u64 = 256;
    let (keys, device) = (Keys::new(), SimulatedDevice::new(ByteLen(64 << 20)));
    let (pool, sealed) = volume_on(&device, SECTORS, &keys);
    let ring = keyring();
    let lent = keys.push(&ring);
    let volume = Volume::open_with(Arc::clone(&sealed), Arc::clone(&lent));
    let before = Random(7).bytes(SECTORS * SECTOR);
    volume.write(ByteOffset(0), &before, Durability::Durable).unwrap();
    pool.begin_epoch(VOLUME, NEW, keys.new.check()).unwrap();
    let step = volume.move_next(Lba(0)).unwrap().unwrap();
    assert!(step.moved.0 > 0);
    ring.wipe(WipeCause::PowerLoss);
    assert_eq!(volume.move_next(step.next).unwrap_err().kind(), ErrorKind::KeyGone);
    // The new key alone: what is still under the old one is an error and never data.
    let ring = keyring();
    let new = Volume::open_with(
        Arc::clone(&sealed),
        VolumeKeys::new(Arc::clone(&ring), [(NEW, keys.new.push(&ring).unwrap().handle)]),
    );
    let mut moved = vec![0; index(step.moved.0)];
    new.read(ByteOffset(0), &mut moved).unwrap();
    assert!(moved[..] == before[..moved.len()]);
    let mut rest = vec![0; index(SECTOR)];
    let error = new.read(ByteOffset((SECTORS - 1) * SECTOR), &mut rest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(new.move_next(step.next).unwrap_err().kind(), ErrorKind::Io);
}
