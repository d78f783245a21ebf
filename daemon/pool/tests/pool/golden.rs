//! Pools written by the versions that first had their formats, byte for byte. Each must open as it was, an older one
//! brought to the present version, and a pool made by the same operations today must have the same tables as the last.
//!
//! `NIGHTLATCH_WRITE_GOLDEN=<file>` writes the image of today's code, for a new format version only: an image that is
//! committed is never changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use device::{Sealed, SectorBuf, SectorRecord, SimulatedDevice};
use pool::{Ceilings, CreateOptions, Limits, Piece, Pool, StateHead, Verdict, VolumeInfo};
use units::{ByteLen, Fence, Lba, PoolId, SECTOR_BYTES, SectorCount};

use crate::model::{EPOCH, spec, verify_metadata};

const VERSION_1: &[u8] = include_bytes!("../golden/version-1.image");
const VERSION_2: &[u8] = include_bytes!("../golden/version-2.image");
const VERSION_3: &[u8] = include_bytes!("../golden/version-3.image");
const VERSION_4: &[u8] = include_bytes!("../golden/version-4.image");
const VERSION_5: &[u8] = include_bytes!("../golden/version-5.image");
const VERSION_6: &[u8] = include_bytes!("../golden/version-6.image");
const DEVICE: ByteLen = ByteLen(4 << 20);
const SUPERBLOCKS: [u64; 2] = [0, 16];
const LOG: ByteLen = ByteLen(64 << 10);
const LIMITS: Limits = Limits {
    quota: Some(ByteLen(1 << 30)),
    reserve: ByteLen(128 << 10),
    ceilings: Ceilings { requests_per_s: None, bytes_per_s: None },
};
/// Since version 4.
const CEILINGS: Ceilings = Ceilings { requests_per_s: Some(5000), bytes_per_s: Some(ByteLen(200 << 20)) };
/// Since version 6.
const LATE: u32 = 3 << 24 | 77;
const POOL: PoolId = PoolId(*b"a pool from 2026");

/// Sectors of which all but the start is zero, so that the image stays small.
fn sectors(tag: u8, count: u64) -> Sealed {
    let mut buf = SectorBuf::zeroed(SectorCount(count));
    buf.as_mut_bytes().chunks_mut(SECTOR_BYTES).for_each(|sector| sector[..32].fill(tag));
    let checksum = crc32c::crc32c(&buf.as_bytes()[..SECTOR_BYTES]);
    let record = SectorRecord { sequence: u64::from(tag), checksum, tag: [tag; 16] };
    Sealed::from_cipher(buf, vec![record; usize::try_from(count).unwrap()])
}

fn sector(tag: u8) -> Sealed {
    sectors(tag, 1)
}

/// Everything the format has. As version 1: live, deleted and reused slots, full, partial, freed and stale extents, a log
/// that has been round and holds records of every kind. Since version 2: snapshots, one of a volume that is gone, a clone, a
/// rollback, holes over shared extents, freed ones among them, in table and log, limits. Since version 3: records in their
/// pages and in the log, with and without the ciphertext. Since version 4: ceilings, and a replica that has a snapshot and half
/// of the next. Since version 5: digests, a root, and a log that begins with it. Since version 6: an extent and holes of a
/// moment that earlier versions have no room for.
fn make() -> Arc<SimulatedDevice> {
    let device = SimulatedDevice::new(DEVICE);
    let options = CreateOptions {
        extent_len: ByteLen(64 << 10),
        log_len: Some(LOG),
        force: false,
        destroy_locked: false,
        id: Some(POOL),
    };
    let pool = Pool::create(device.clone(), options).unwrap();
    let block = pool.create_volume(spec(2, 1000)).unwrap();
    let gone = pool.create_volume(spec(4, 64)).unwrap();
    gone.write(Lba(0), EPOCH, sector(40)).unwrap();
    for lba in 0..16 {
        block.write(Lba(lba), EPOCH, sector(20)).unwrap();
    }
    block.write(Lba(999), EPOCH, sector(21)).unwrap();
    block.write(Lba(500), EPOCH, sector(22)).unwrap();
    pool.create_snapshot(block.id(), spec(10, 1).id, 1_700_000_000).unwrap();
    pool.create_snapshot(gone.id(), spec(11, 1).id, 1_700_000_001).unwrap();
    pool.delete_volume(gone.id()).unwrap();
    block.unmap(Lba(999), SectorCount(1)).unwrap();
    block.unmap(Lba(4), SectorCount(3)).unwrap();
    block.write(Lba(5), EPOCH, sector(24)).unwrap();
    let clone = pool.clone_snapshot(spec(10, 1).id, spec(5, 1).id, LIMITS).unwrap();
    clone.write(Lba(1), EPOCH, sector(50)).unwrap();
    clone.unmap(Lba(0), SectorCount(1)).unwrap();
    for fence in 1..=14 {
        pool.raise_fence(block.id(), Fence(fence)).unwrap();
    }
    let objects = pool.create_volume(spec(3, 1 << 34)).unwrap();
    objects.write(Lba((1 << 34) - 1), EPOCH, sector(30)).unwrap();
    pool.create_snapshot(objects.id(), spec(12, 1).id, 1_700_000_002).unwrap();
    objects.write(Lba(7), EPOCH, sector(31)).unwrap();
    pool.roll_back(objects.id(), spec(12, 1).id).unwrap();
    objects.write(Lba(8), EPOCH, sector(32)).unwrap();
    block.unmap(Lba(500), SectorCount(1)).unwrap();
    block.write(Lba(17), EPOCH, sector(23)).unwrap();
    block.write(Lba(608), EPOCH, sectors(25, 12)).unwrap();
    objects.flush().unwrap();
    pool.delete_volume(pool.create_volume(spec(6, 1)).unwrap().id()).unwrap();
    pool.set_limits(clone.id(), Limits { ceilings: CEILINGS, ..LIMITS }).unwrap();
    receive(&pool);
    pool.skip_moments(objects.id(), LATE).unwrap();
    objects.write(Lba(9), EPOCH, sectors(33, 2)).unwrap();
    objects.unmap(Lba(8), SectorCount(1)).unwrap();
    pool.create_snapshot(objects.id(), spec(15, 1).id, 1_700_000_005).unwrap();
    objects.unmap(Lba(10), SectorCount(1)).unwrap();
    objects.flush().unwrap();
    device
}

/// Where the replica's snapshots come from.
fn sender() -> Arc<Pool> {
    let options =
        CreateOptions { extent_len: ByteLen(64 << 10), log_len: Some(LOG), ..CreateOptions::default() };
    let pool = Pool::create(SimulatedDevice::new(DEVICE), options).unwrap();
    let volume = pool.create_volume(spec(7, 100)).unwrap();
    volume.write(Lba(0), EPOCH, sectors(60, 4)).unwrap();
    pool.create_snapshot(volume.id(), spec(13, 1).id, 1_700_000_003).unwrap();
    pool.resize_volume(volume.id(), SectorCount(200)).unwrap();
    volume.write(Lba(5), EPOCH, sectors(61, 3)).unwrap();
    volume.write(Lba(199), EPOCH, sector(62)).unwrap();
    pool.create_snapshot(volume.id(), spec(14, 1).id, 1_700_000_004).unwrap();
    pool
}

/// A snapshot and a part of the next.
fn receive(pool: &Pool) {
    let sender = sender();
    let (volume, first, second) = (spec(7, 1).id, spec(13, 1).id, spec(14, 1).id);
    let whole = sender.manifest(first, None).unwrap();
    let from = pool.begin_receiving(&whole).unwrap();
    let portion = sender.send(&whole, from, SectorCount(1000)).unwrap();
    pool.receive(volume, first, &portion.bytes).unwrap();
    pool.end_receiving(&whole).unwrap();
    let increment = sender.manifest(second, Some(first)).unwrap();
    let from = pool.begin_receiving(&increment).unwrap();
    let portion = sender.send(&increment, from, SectorCount(3)).unwrap();
    assert_eq!(portion.next, Lba(8));
    pool.receive(volume, second, &portion.bytes).unwrap();
    pool.flush().unwrap();
}

/// Sectors that are not zero, each without the zeros at its end: number, length, bytes.
fn encode(device: &SimulatedDevice) -> Vec<u8> {
    let mut image = Vec::new();
    for (number, bytes) in device.content() {
        let len = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        image.extend(u32::try_from(number).unwrap().to_le_bytes());
        image.extend(u32::try_from(len).unwrap().to_le_bytes());
        image.extend(&bytes[..len]);
    }
    image
}

fn decode(mut image: &[u8]) -> Arc<SimulatedDevice> {
    let device = SimulatedDevice::new(DEVICE);
    while let Some((header, rest)) = image.split_at_checked(8) {
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let (bytes, rest) = rest.split_at(word(4) as usize);
        device.edit(u64::from(word(0)), |sector| sector[..bytes.len()].copy_from_slice(bytes));
        image = rest;
    }
    assert!(image.is_empty());
    device
}

fn present(pool: &Pool, number: u8, lba: u64) -> Option<u8> {
    let id = spec(number, 1).id;
    let volume = pool.volume(id).or_else(|_| pool.snapshot(id)).unwrap();
    match &volume.read(Lba(lba), SectorCount(1)).unwrap()[..] {
        [Piece::Hole(SectorCount(1))] => None,
        [Piece::Sealed { first, epoch, data }] => {
            assert_eq!((*first, *epoch), (Lba(lba), EPOCH));
            let tag = data.as_bytes()[0];
            assert_eq!(data.as_bytes(), sector(tag).as_bytes());
            let recorded = if volume.keeps_records() { sector(tag).records().to_vec() } else { Vec::new() };
            assert_eq!(data.records(), recorded);
            Some(tag)
        }
        pieces => panic!("{pieces:?}"),
    }
}

fn expected(number: u8, sectors: u64, fence: u64, extents: u64) -> VolumeInfo {
    let spec = spec(number, sectors);
    VolumeInfo {
        id: spec.id,
        sectors: spec.sectors,
        domain: spec.domain,
        epoch: spec.epoch,
        check: spec.check,
        kind: spec.kind,
        fence: Fence(fence),
        allocated: ByteLen(extents * (64 << 10)),
        limits: Limits::default(),
        clone_of: None,
        replica: false,
        encrypted_blocks: 0,
    }
}

fn holds(device: &Arc<SimulatedDevice>, sectors: &[(u8, u64, Option<u8>)]) -> Arc<Pool> {
    let report = Pool::check_device(&**device).unwrap();
    assert!(report.is_sound(), "{report:?}");
    let pool = Pool::open(device.clone()).unwrap();
    let info = pool.info();
    assert_eq!((info.id, info.format_version, info.repaired), (POOL, 6, None));
    assert_eq!((info.used_len, info.extent_len), (DEVICE, ByteLen(64 << 10)));
    for (number, lba, tag) in sectors {
        assert_eq!(present(&pool, *number, *lba), *tag, "volume {number}, sector {lba}");
    }
    pool
}

const IN_VERSION_1: &[(u8, u64, Option<u8>)] = &[
    (2, 0, Some(20)),
    (2, 15, Some(20)),
    (2, 16, None),
    (2, 17, Some(23)),
    (2, 500, None),
    (2, 999, Some(21)),
    (3, 0, None),
    (3, (1 << 34) - 1, Some(30)),
];

const IN_VERSION_2: &[(u8, u64, Option<u8>)] = &[
    (2, 0, Some(20)),
    (2, 4, None),
    (2, 5, Some(24)),
    (2, 6, None),
    (2, 15, Some(20)),
    (2, 17, Some(23)),
    (2, 500, None),
    (2, 999, None),
    (3, 7, None),
    (3, 8, Some(32)),
    (3, (1 << 34) - 1, Some(30)),
    (5, 0, None),
    (5, 1, Some(50)),
    (5, 2, Some(20)),
    (5, 500, Some(22)),
    (10, 4, Some(20)),
    (10, 17, None),
    (10, 500, Some(22)),
    (10, 999, Some(21)),
    (11, 0, Some(40)),
    (12, 8, None),
    (12, (1 << 34) - 1, Some(30)),
];

const SINCE_VERSION_3: &[(u8, u64, Option<u8>)] =
    &[(2, 607, None), (2, 608, Some(25)), (2, 619, Some(25)), (2, 620, None)];

fn volumes_of_version_1() -> [VolumeInfo; 2] {
    [expected(2, 1000, 14, 3), expected(3, 1 << 34, 0, 1)]
}

const SINCE_VERSION_4: &[(u8, u64, Option<u8>)] =
    &[(7, 1, Some(60)), (7, 5, Some(61)), (13, 0, Some(60)), (13, 3, Some(60)), (13, 4, None), (13, 5, None)];

const SINCE_VERSION_6: &[(u8, u64, Option<u8>)] =
    &[(3, 8, None), (3, 9, Some(33)), (3, 10, None), (15, 8, None), (15, 9, Some(33)), (15, 10, Some(33))];

/// What a version put in, and the versions before it.
struct PutIn {
    version: u8,
    sectors: &'static [&'static [(u8, u64, Option<u8>)]],
    /// Extents of the volume 2.
    extents: u64,
}

const AS_VERSION_2: PutIn = PutIn { version: 2, sectors: &[], extents: 5 };
const AS_VERSION_3: PutIn = PutIn { version: 3, sectors: &[SINCE_VERSION_3], extents: 6 };
const AS_VERSION_4: PutIn = PutIn { version: 4, sectors: &[SINCE_VERSION_3, SINCE_VERSION_4], extents: 6 };
const AS_VERSION_6: PutIn =
    PutIn { version: 6, sectors: &[SINCE_VERSION_3, SINCE_VERSION_4, SINCE_VERSION_6], extents: 6 };

fn holds_what_was_put_in(device: &Arc<SimulatedDevice>, since: &PutIn) {
    let PutIn { version, sectors, extents } = *since;
    // The last change of a sector is what counts.
    let later: Vec<_> = sectors.iter().copied().flatten().map(|(number, lba, _)| (*number, *lba)).collect();
    let earlier: Vec<_> =
        IN_VERSION_2.iter().copied().filter(|(number, lba, _)| !later.contains(&(*number, *lba))).collect();
    let pool = holds(device, &earlier);
    for (number, lba, tag) in sectors.iter().copied().flatten() {
        assert_eq!(present(&pool, *number, *lba), *tag, "volume {number}, sector {lba}");
    }
    let (ceilings, counted) = if version >= 4 { (CEILINGS, 1 << 26) } else { (Ceilings::default(), 0) };
    let with = |encrypted_blocks, info| VolumeInfo { encrypted_blocks, ..info };
    let clone = VolumeInfo {
        id: spec(5, 1).id,
        clone_of: Some(spec(10, 1).id),
        limits: Limits { ceilings, ..LIMITS },
        ..expected(2, 1000, 0, 1)
    };
    let replica = VolumeInfo { replica: true, ..expected(7, 200, 0, 2) };
    // The clone is of the same key.
    let mut volumes = vec![
        with(2 * counted, expected(2, 1000, 14, extents)),
        with(counted, expected(3, 1 << 34, 0, 2)),
        with(2 * counted, clone),
    ];
    // What its volume has encrypted counts from its promotion on.
    volumes.extend((version >= 4).then_some(replica));
    assert_eq!(pool.volumes(), volumes);
    let snapshots: Vec<_> =
        pool.snapshots().iter().map(|info| (info.volume, info.id, info.created_s, info.sectors.0)).collect();
    let snapshot = |of, number, created, sectors| (spec(of, 1).id, spec(number, 1).id, created, sectors);
    let mut there = vec![
        snapshot(2, 10, 1_700_000_000, 1000),
        snapshot(3, 12, 1_700_000_002, 1 << 34),
        snapshot(4, 11, 1_700_000_001, 64),
    ];
    there.extend((version >= 6).then(|| snapshot(3, 15, 1_700_000_005, 1 << 34)));
    there.sort_by_key(|(of, id, created, _)| (*of, *created, *id));
    there.extend((version >= 4).then(|| snapshot(7, 13, 1_700_000_003, 100)));
    assert_eq!(snapshots, there);
    assert_eq!(pool.info().reserved, ByteLen(64 << 10));
    verify_metadata(&pool).unwrap();
}

/// What the device holds but for its superblocks.
fn without_superblocks(device: &SimulatedDevice) -> BTreeMap<u64, Vec<u8>> {
    let mut content: BTreeMap<u64, Vec<u8>> = device.content().into_iter().collect();
    content.retain(|sector, _| !SUPERBLOCKS.contains(sector));
    content
}

#[test]
fn the_image_of_version_6_opens_as_it_was() {
    let device = decode(VERSION_6);
    let before = device.content();
    drop(holds(&device, SINCE_VERSION_6));
    assert!(device.content() == before, "opening a sound pool changes nothing");
    goes_on_receiving(device, &AS_VERSION_6);
}

#[test]
fn the_image_of_version_5_opens_as_it_was_and_is_version_6_from_then_on() {
    let device = decode(VERSION_5);
    let before = without_superblocks(&device);
    drop(holds(&device, IN_VERSION_2));
    assert!(without_superblocks(&device) == before, "only the superblocks change");
    are_of_version(6, &device);
    assert!(Pool::open(device.clone()).unwrap().tell_state().is_some(), "it keeps its state");
    goes_on_receiving(device, &AS_VERSION_4);
}

#[test]
fn the_image_of_version_4_opens_as_it_was_and_is_version_6_from_then_on() {
    let device = decode(VERSION_4);
    let before = without_superblocks(&device);
    drop(holds(&device, IN_VERSION_2));
    assert!(without_superblocks(&device) == before, "only the superblocks change");
    are_of_version(6, &device);
    let pool = Pool::open(device.clone()).unwrap();
    assert_eq!(pool.tell_state(), None, "it keeps no digests");
    let volume = pool.volume(spec(2, 1).id).unwrap();
    assert_eq!(volume.judge_state(None, |_, _| false), Verdict::NotKept);
    let told = StateHead { count: 7, chain: [7; 32] };
    assert_eq!(volume.judge_state(Some(told), |_, _| true), Verdict::Other, "it had a state once");
    drop(volume);
    drop(pool);
    goes_on_receiving(device, &AS_VERSION_4);
}

fn goes_on_receiving(device: Arc<SimulatedDevice>, since: &PutIn) {
    holds_what_was_put_in(&device, since);
    // The replica goes on where it was.
    let (pool, sender) = (Pool::open(device).unwrap(), sender());
    let manifest = sender.manifest(spec(14, 1).id, Some(spec(13, 1).id)).unwrap();
    assert_eq!(pool.begin_receiving(&manifest).unwrap(), Lba(8));
    let portion = sender.send(&manifest, Lba(8), SectorCount(1000)).unwrap();
    pool.receive(spec(7, 1).id, spec(14, 1).id, &portion.bytes).unwrap();
    pool.end_receiving(&manifest).unwrap();
    assert_eq!(present(&pool, 14, 5), Some(61));
    assert_eq!(present(&pool, 14, 199), Some(62));
}

#[test]
fn the_image_of_version_3_opens_as_it_was_and_is_version_6_from_then_on() {
    let device = decode(VERSION_3);
    let before = without_superblocks(&device);
    drop(holds(&device, IN_VERSION_2));
    assert!(without_superblocks(&device) == before, "only the superblocks change");
    are_of_version(6, &device);
    holds_what_was_put_in(&device, &AS_VERSION_3);
}

/// An older pool keeps its layout, without records, and takes what it took.
#[test]
fn the_image_of_version_2_opens_as_it_was_and_is_version_6_from_then_on() {
    let device = decode(VERSION_2);
    let before = without_superblocks(&device);
    drop(holds(&device, IN_VERSION_2));
    assert!(without_superblocks(&device) == before, "only the superblocks change");
    are_of_version(6, &device);
    holds_what_was_put_in(&device, &AS_VERSION_2);
    let pool = Pool::open(device.clone()).unwrap();
    let volume = pool.volume(spec(2, 1).id).unwrap();
    assert!(!volume.keeps_records());
    volume.write(Lba(0), EPOCH, sectors(60, 40)).unwrap();
    volume.flush().unwrap();
    drop(holds(&device, &[(2, 0, Some(60)), (2, 39, Some(60)), (10, 0, Some(20))]));
}

fn are_of_version(version: u8, device: &SimulatedDevice) {
    let content: BTreeMap<u64, Vec<u8>> = device.content().into_iter().collect();
    for sector in SUPERBLOCKS {
        assert_eq!(content[&sector][12], version);
    }
}

#[test]
fn the_image_of_version_1_opens_as_it_was_and_is_version_6_from_then_on() {
    let device = decode(VERSION_1);
    let before = without_superblocks(&device);
    assert_eq!(Pool::check_device(&*device).unwrap().present_sectors, 19);
    for _ in 0..2 {
        let pool = holds(&device, IN_VERSION_1);
        assert_eq!(pool.volumes(), volumes_of_version_1());
    }
    assert!(without_superblocks(&device) == before, "only the superblocks change");
    are_of_version(6, &device);
    // It takes what is new.
    let pool = Pool::open(device.clone()).unwrap();
    pool.create_snapshot(spec(2, 1).id, spec(10, 1).id, 0).unwrap();
    pool.volume(spec(2, 1).id).unwrap().unmap(Lba(0), SectorCount(1000)).unwrap();
    let pool = holds(&device, &[(10, 0, Some(20)), (10, 999, Some(21))]);
    verify_metadata(&pool).unwrap();
}

/// Power is cut at every operation of bringing an older pool up to date, also one whose second superblock is damaged: it
/// opens every time, as it was.
#[test]
fn a_cut_while_an_older_version_becomes_the_present_one_leaves_the_one_or_the_other() {
    let mut cuts = 0;
    let older = [
        (VERSION_1, IN_VERSION_1),
        (VERSION_2, IN_VERSION_2),
        (VERSION_3, IN_VERSION_2),
        (VERSION_4, IN_VERSION_2),
        (VERSION_5, IN_VERSION_2),
    ];
    for ((image, content), damaged) in older.iter().flat_map(|older| [(older, false), (older, true)]) {
        let before = || {
            let device = decode(image);
            if damaged {
                device.edit(SUPERBLOCKS[1], |sector| sector[100] ^= 1);
            }
            device
        };
        for nth in 0.. {
            let uncut = before();
            uncut.cut_power_at(nth);
            if Pool::open(uncut.clone()).is_ok() && uncut.has_power() {
                break;
            }
            for seed in 0..20 {
                let device = before();
                device.cut_power_at(nth);
                Pool::open(device.clone()).unwrap_err();
                let survivor = device.power_cut(seed);
                drop(Pool::open(survivor.clone()).unwrap());
                holds(&survivor, content);
                cuts += 1;
            }
        }
    }
    println!("{cuts} cuts");
    assert!(cuts > 100);
}

/// All sectors but the log's, which differs by its random session, and the superblock's mention of it.
fn comparable(device: &SimulatedDevice) -> BTreeMap<u64, Vec<u8>> {
    let log = (2 << 20) / SECTOR_BYTES as u64..((2 << 20) + LOG.0) / SECTOR_BYTES as u64;
    let mut sectors: BTreeMap<u64, Vec<u8>> = device.content().into_iter().collect();
    sectors.retain(|number, _| !log.contains(number));
    for copy in SUPERBLOCKS {
        let superblock = sectors.get_mut(&copy).unwrap();
        superblock[8..12].fill(0);
        superblock[104..116].fill(0);
    }
    sectors
}

#[test]
fn the_same_operations_still_write_the_same_tables() {
    let device = make();
    if let Some(path) = std::env::var_os("NIGHTLATCH_WRITE_GOLDEN") {
        std::fs::write(path, encode(&device)).unwrap();
    }
    assert!(comparable(&device) == comparable(&decode(VERSION_6)), "the tables are not the same");
    assert_eq!(decode(&encode(&device)).content(), device.content());
    holds_what_was_put_in(&device, &AS_VERSION_6);
}
