//! Healing from another pool: what the record says comes back, and nothing else ever does.

use std::sync::Arc;

use device::SimulatedDevice;
use pool::{DamagedSector, Pool, PoolError, PoolVolume, Scrub, WantedSector};
use units::{ByteOffset, Lba, SectorCount, VolumeId};

use crate::model::{EPOCH, read, sealed, spec};
use crate::workload::{Random, small_pool};

const SECTORS: u64 = 64;
const VOLUME: VolumeId = VolumeId([1; 16]);
const SNAPSHOT: VolumeId = VolumeId([9; 16]);

fn damaged(pool: &Arc<Pool>) -> Vec<DamagedSector> {
    let mut scrub = Scrub::starting_at(Arc::clone(pool), 0);
    let mut damaged = Vec::new();
    while let Some(step) = scrub.step().unwrap() {
        damaged.extend(step.damaged);
    }
    damaged
}

/// A volume in one pool, and its replica in another, which has the snapshot too.
struct Sites {
    first: (Arc<SimulatedDevice>, Arc<Pool>),
    second: (Arc<SimulatedDevice>, Arc<Pool>),
}

fn settled(device: &Arc<SimulatedDevice>, pool: Arc<Pool>) -> (Arc<SimulatedDevice>, Arc<Pool>) {
    pool.flush().unwrap();
    for fence in 1..40 {
        // Until the log has been used once: then everything is in its place.
        let _ = pool.raise_fence(VOLUME, units::Fence(fence));
    }
    pool.tend(std::time::Duration::ZERO).unwrap();
    drop(pool);
    let device = device.reopened();
    let pool = Pool::open(device.clone()).unwrap();
    (device, pool)
}

impl Sites {
    fn new() -> Self {
        let (first_device, first) = small_pool();
        let (second_device, second) = small_pool();
        let volume = first.create_volume(spec(1, SECTORS)).unwrap();
        volume.write(Lba(0), EPOCH, sealed(1000..1000 + SECTORS)).unwrap();
        first.create_snapshot(VOLUME, SNAPSHOT, 0).unwrap();
        let manifest = first.manifest(SNAPSHOT, None).unwrap();
        let mut next = second.begin_receiving(&manifest).unwrap();
        while next.0 < SECTORS {
            let portion = first.send(&manifest, next, SectorCount(16)).unwrap();
            next = second.receive(VOLUME, SNAPSHOT, &portion.bytes).unwrap();
        }
        second.end_receiving(&manifest).unwrap();
        drop(volume);
        Self { first: settled(&first_device, first), second: settled(&second_device, second) }
    }
}

/// Which sector of the device has what a volume's has. The log may have it as well: its place is behind that.
fn place_of(device: &SimulatedDevice, volume: &PoolVolume, sector: u64) -> u64 {
    let held = volume.read(Lba(sector), SectorCount(1)).unwrap();
    let pool::Piece::Sealed { data, .. } = &held[0] else { panic!("it holds something") };
    device.content().into_iter().rfind(|(_, content)| data.as_bytes() == &content[..]).unwrap().0
}

/// Damages a sector of the snapshot: where that is.
fn spoil(device: &Arc<SimulatedDevice>, pool: &Arc<Pool>, sector: u64) -> ByteOffset {
    let at = place_of(device, &pool.snapshot(SNAPSHOT).unwrap(), sector);
    device.edit(at, |content| content[7] ^= 1);
    ByteOffset(at * 4096)
}

fn tags(volume: &PoolVolume) -> Vec<Option<u64>> {
    read(volume, 0, SECTORS).unwrap().into_iter().map(|sector| sector.map(|units| units[0])).collect()
}

fn fetched(from: &Pool, wanted: &WantedSector) -> Option<Vec<u8>> {
    let found = wanted
        .volumes
        .iter()
        .find_map(|(volume, sector)| from.find_sector(*volume, *sector, &wanted.record).unwrap());
    found.map(|sealed| sealed.as_bytes().to_vec())
}

#[test]
fn either_site_gives_the_other_a_damaged_sector_back() {
    let sites = Sites::new();
    let expected: Vec<_> = (1000..1000 + SECTORS).map(Some).collect();
    for (damaged_one, other) in [(&sites.second, &sites.first), (&sites.first, &sites.second)] {
        let (device, pool) = damaged_one;
        let at = spoil(device, pool, 5);
        assert_eq!(damaged(pool).iter().map(|damaged| damaged.at).collect::<Vec<_>>(), [at]);
        let wanted = pool.wanted(at).unwrap().unwrap();
        assert_eq!((wanted.at, &wanted.volumes[..]), (at, &[(VOLUME, Lba(5))][..]));
        let ciphertext = fetched(&other.1, &wanted).unwrap();
        assert!(pool.heal(at, &ciphertext).unwrap());
        assert_eq!(damaged(pool), []);
        assert_eq!(pool.wanted(at).unwrap(), None);
        assert!(!pool.heal(at, &ciphertext).unwrap(), "it is not damaged any more");
        let pool = Pool::open(device.durable_copy()).unwrap();
        assert_eq!(tags(&pool.snapshot(SNAPSHOT).unwrap()), expected);
        assert!(pool.check().unwrap().is_sound());
        assert_eq!(damaged(&pool), []);
    }
}

#[test]
fn an_unreadable_sector_is_written_again_and_what_the_device_does_not_take_stays_damaged() {
    let sites = Sites::new();
    let (device, pool) = &sites.second;
    let at = spoil(device, pool, 9);
    device.make_unreadable(at.0 / 4096);
    let wanted = pool.wanted(at).unwrap().unwrap();
    let ciphertext = fetched(&sites.first.1, &wanted).unwrap();
    let healed = pool.heal(at, &ciphertext).unwrap();
    assert_eq!(healed, damaged(pool).is_empty());
}

#[test]
fn nothing_but_what_the_record_says_is_taken() {
    let sites = Sites::new();
    let (device, pool) = &sites.second;
    let at = spoil(device, pool, 5);
    let wanted = pool.wanted(at).unwrap().unwrap();
    let ciphertext = fetched(&sites.first.1, &wanted).unwrap();
    let mut flipped = ciphertext.clone();
    flipped[4095] ^= 1;
    // Another sector, a changed one, one that is cut short, one too long, none.
    let other = sites.first.1.snapshot(SNAPSHOT).unwrap().read(Lba(6), SectorCount(1)).unwrap();
    let pool::Piece::Sealed { data, .. } = &other[0] else { panic!("it holds something") };
    for wrong in [data.as_bytes(), &flipped, &ciphertext[..4095], &[&ciphertext[..], &[0]].concat(), &[]] {
        assert!(matches!(pool.heal(at, wrong), Err(PoolError::UnfitToHeal { .. })));
    }
    assert_eq!(damaged(pool).len(), 1);
    // What lies nowhere, and what is not damaged.
    for elsewhere in [0, 4096, at.0 + 1, at.0 + 4096, u64::MAX / 2] {
        assert!(!pool.heal(ByteOffset(elsewhere), &ciphertext).unwrap());
        assert_eq!(pool.wanted(ByteOffset(elsewhere)).unwrap(), None);
    }
    // A site that has written the sector since, and deleted the snapshot, has nothing that fits.
    let first = &sites.first.1;
    let volume = first.volume(VOLUME).unwrap();
    volume.write(Lba(5), EPOCH, sealed([7])).unwrap();
    assert!(fetched(first, &wanted).is_some(), "the snapshot still shows it");
    first.delete_snapshot(SNAPSHOT).unwrap();
    assert_eq!(fetched(first, &wanted), None);
    assert!(pool.heal(at, &ciphertext).unwrap());
}

/// Whatever the volume's client does meanwhile, healing never brings an older sector back.
#[test]
fn what_is_written_while_a_sector_is_healed_stays() {
    let mut random = Random::new(5);
    for round in 0..60 {
        let sites = Sites::new();
        let (device, pool) = &sites.first;
        pool.delete_snapshot(SNAPSHOT).unwrap();
        let spoiled = place_of(device, &pool.volume(VOLUME).unwrap(), 5);
        device.edit(spoiled, |content| content[7] ^= 1);
        let at = ByteOffset(spoiled * 4096);
        let wanted = pool.wanted(at).unwrap().unwrap();
        let ciphertext = fetched(&sites.second.1, &wanted).unwrap();
        let volume = pool.volume(VOLUME).unwrap();
        let unmaps = random.below(2) == 0;
        let patience = std::time::Duration::from_micros(random.below(300));
        let healed = std::thread::scope(|scope| {
            let healing = scope.spawn(|| pool.heal(at, &ciphertext).unwrap());
            std::thread::sleep(patience);
            match unmaps {
                true => volume.unmap(Lba(5), SectorCount(1)).unwrap(),
                false => volume.write(Lba(5), EPOCH, sealed([7])).unwrap(),
            }
            pool.flush().unwrap();
            healing.join().unwrap()
        });
        let expected = if unmaps { None } else { Some(7) };
        assert_eq!(tags(&volume)[5], expected, "round {round}, healed {healed}");
        drop((volume, pool));
        let again = Pool::open(device.reopened()).unwrap();
        assert_eq!(tags(&again.volume(VOLUME).unwrap())[5], expected, "round {round}, healed {healed}");
        assert_eq!(damaged(&again), []);
    }
}
