//! A pool written by the version that first had this format, byte for byte. It must open as it was, and a pool made by
//! the same operations today must have the same tables.
//!
//! `NIGHTLATCH_WRITE_GOLDEN=<file>` writes the image of today's code, for a new format version only: an image that is
//! committed is never changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use device::{Sealed, SectorBuf, SimulatedDevice};
use pool::{CreateOptions, Piece, Pool, VolumeInfo};
use units::{ByteLen, Fence, Lba, PoolId, SECTOR_BYTES, SectorCount};

use crate::model::{EPOCH, spec};

const IMAGE: &[u8] = include_bytes!("../golden/version-1.image");
const DEVICE: ByteLen = ByteLen(4 << 20);
const LOG: ByteLen = ByteLen(64 << 10);
const POOL: PoolId = PoolId(*b"a pool from 2026");

/// A sector of which all but the start is zero, so that the image stays small.
fn sector(tag: u8) -> Sealed {
    let mut buf = SectorBuf::zeroed(SectorCount(1));
    buf.as_mut_bytes()[..32].fill(tag);
    Sealed::from_cipher(buf)
}

/// Everything the format has: live, deleted and reused slots, full, partial, freed and stale extents, a log that has
/// been round and holds records of every kind.
fn make() -> Arc<SimulatedDevice> {
    let device = SimulatedDevice::new(DEVICE);
    let options =
        CreateOptions { extent_len: ByteLen(64 << 10), log_len: Some(LOG), force: false, id: Some(POOL) };
    let pool = Pool::create(device.clone(), options).unwrap();
    let block = pool.create_volume(spec(2, 1000)).unwrap();
    let gone = pool.create_volume(spec(4, 64)).unwrap();
    gone.write(Lba(0), EPOCH, &sector(40)).unwrap();
    for lba in 0..16 {
        block.write(Lba(lba), EPOCH, &sector(20)).unwrap();
    }
    block.write(Lba(999), EPOCH, &sector(21)).unwrap();
    block.write(Lba(500), EPOCH, &sector(22)).unwrap();
    block.flush().unwrap();
    pool.delete_volume(gone.id()).unwrap();
    for fence in 1..=14 {
        pool.raise_fence(block.id(), Fence(fence)).unwrap();
    }
    let objects = pool.create_volume(spec(3, 1 << 34)).unwrap();
    objects.write(Lba((1 << 34) - 1), EPOCH, &sector(30)).unwrap();
    block.unmap(Lba(500), SectorCount(1)).unwrap();
    block.write(Lba(17), EPOCH, &sector(23)).unwrap();
    objects.flush().unwrap();
    pool.delete_volume(pool.create_volume(spec(6, 1)).unwrap().id()).unwrap();
    device
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
    let volume = pool.volume(spec(number, 1).id).unwrap();
    match &volume.read(Lba(lba), SectorCount(1)).unwrap()[..] {
        [Piece::Hole(SectorCount(1))] => None,
        [Piece::Sealed { first, epoch, data }] => {
            assert_eq!((*first, *epoch), (Lba(lba), EPOCH));
            let tag = data.as_bytes()[0];
            assert_eq!(data.as_bytes(), sector(tag).as_bytes());
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
    }
}

fn holds_what_was_put_in(device: Arc<SimulatedDevice>) {
    let report = Pool::check_device(&*device).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.volumes, report.mapped_extents, report.present_sectors), (2, 4, 19));
    let pool = Pool::open(device).unwrap();
    let info = pool.info();
    assert_eq!((info.id, info.format_version, info.repaired), (POOL, 1, None));
    assert_eq!((info.used_len, info.extent_len), (DEVICE, ByteLen(64 << 10)));
    assert_eq!(pool.volumes(), [expected(2, 1000, 14, 3), expected(3, 1 << 34, 0, 1)]);
    for (number, lba, tag) in [
        (2, 0, Some(20)),
        (2, 15, Some(20)),
        (2, 16, None),
        (2, 17, Some(23)),
        (2, 500, None),
        (2, 999, Some(21)),
        (3, 0, None),
        (3, (1 << 34) - 1, Some(30)),
    ] {
        assert_eq!(present(&pool, number, lba), tag, "volume {number}, sector {lba}");
    }
}

#[test]
fn the_image_of_version_1_opens_as_it_was() {
    let device = decode(IMAGE);
    let before = device.content();
    holds_what_was_put_in(device.clone());
    assert!(device.content() == before, "opening a sound pool changes nothing");
}

/// All sectors but the log's, which differs by its random session, and the superblock's mention of it.
fn comparable(device: &SimulatedDevice) -> BTreeMap<u64, Vec<u8>> {
    let log = (2 << 20) / SECTOR_BYTES as u64..((2 << 20) + LOG.0) / SECTOR_BYTES as u64;
    let mut sectors: BTreeMap<u64, Vec<u8>> = device.content().into_iter().collect();
    sectors.retain(|number, _| !log.contains(number));
    for copy in [0, 16] {
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
    assert_eq!(comparable(&device), comparable(&decode(IMAGE)));
    assert_eq!(decode(&encode(&device)).content(), device.content());
    holds_what_was_put_in(device);
}
