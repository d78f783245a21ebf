//! A volume against the simplest thing it could be: a `Vec<u8>`.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::ops::Range;
use std::time::Instant;

use aes::Aes256;
use aes::cipher::KeyInit;
use device::SimulatedDevice;
use pool::{Piece, VolumeKind};
use sealing::simulated::SimulatedNode;
use sealing::{Durability, ErrorKind, Presence, Volume, ZeroMode};
use support::{Random, index, seed, soak};
use units::{ByteLen, ByteOffset, Lba, SECTOR_BYTES, SectorCount};
use xts_mode::{Xts128, get_tweak_default};

const SECTOR: u64 = SECTOR_BYTES as u64;
/// Several extents of 1 MiB, and an odd number of sectors.
const VOLUME_BYTES: u64 = (3 << 20) + 5 * SECTOR;

fn node() -> SimulatedNode {
    SimulatedNode::create(SimulatedDevice::new(ByteLen(64 << 20)), ByteLen(VOLUME_BYTES), VolumeKind::Block)
}

/// What the volume must hold, and which bytes a power cut may change.
struct Reference {
    bytes: Vec<u8>,
    unflushed: Vec<bool>,
}

impl Reference {
    fn new() -> Self {
        Self { bytes: vec![0; index(VOLUME_BYTES)], unflushed: vec![false; index(VOLUME_BYTES / SECTOR)] }
    }

    fn put(&mut self, at: u64, bytes: &[u8], durability: Durability) {
        self.bytes[index(at)..][..bytes.len()].copy_from_slice(bytes);
        let end = at + bytes.len() as u64;
        self.unflushed[index(at / SECTOR)..index(end.div_ceil(SECTOR))].fill(true);
        if durability == Durability::Durable {
            self.flushed();
        }
    }

    fn flushed(&mut self) {
        self.unflushed.fill(false);
    }
}

/// Small and sub-sector, whole sectors, or across several batches.
fn range(random: &mut Random) -> Range<u64> {
    let len = match random.below(8) {
        0 => 0,
        1..=3 => 1 + random.below(3 * SECTOR),
        4..=5 => SECTOR * (1 + random.below(8)),
        6 => 1 + random.below(100 * SECTOR),
        _ => 1 + random.below(VOLUME_BYTES),
    };
    let mut at = random.below(VOLUME_BYTES - len + 1);
    if random.below(3) == 0 {
        at -= at % SECTOR;
    }
    at..at + len
}

fn step(random: &mut Random, volume: &Volume, reference: &mut Reference) {
    let range = range(random);
    let (at, len) = (ByteOffset(range.start), ByteLen(range.end - range.start));
    let durability = if random.below(10) == 0 { Durability::Durable } else { Durability::Buffered };
    match random.below(12) {
        0..=4 => {
            let data = random.bytes(len.0);
            volume.write(at, &data, durability).unwrap();
            reference.put(at.0, &data, durability);
        }
        5 => {
            let mode = if random.below(2) == 0 { ZeroMode::MayUnmap } else { ZeroMode::KeepAllocated };
            volume.write_zeroes(at, len, mode, durability).unwrap();
            reference.put(at.0, &vec![0; index(len.0)], durability);
        }
        6 => {
            volume.trim(at, len, durability).unwrap();
            let (first, end) = (at.0.next_multiple_of(SECTOR), range.end - range.end % SECTOR);
            if first < end {
                reference.put(first, &vec![0; index(end - first)], Durability::Buffered);
            }
            if durability == Durability::Durable {
                reference.flushed();
            }
        }
        7 => {
            volume.flush().unwrap();
            reference.flushed();
        }
        8 => check_status(volume, reference, at, len),
        _ => {
            let mut out = random.bytes(len.0);
            volume.read(at, &mut out).unwrap();
            assert!(out == reference.bytes[index(range.start)..index(range.end)], "read of {range:?}");
        }
    }
}

fn check_status(volume: &Volume, reference: &Reference, at: ByteOffset, len: ByteLen) {
    let extents = volume.status(at, len).unwrap();
    let mut next = at.0;
    let mut previous = None;
    for (extent, presence) in extents {
        assert!(extent.0 > 0 && previous != Some(presence), "neighbours differ");
        let end = next + extent.0;
        if presence == Presence::Hole {
            assert!(reference.bytes[index(next)..index(end)].iter().all(|byte| *byte == 0), "data in a hole");
        }
        (next, previous) = (end, Some(presence));
    }
    assert_eq!(next, at.0 + len.0, "the range is covered exactly");
}

fn check_all(volume: &Volume, reference: &Reference) {
    let mut out = vec![0xff; index(VOLUME_BYTES)];
    volume.read(ByteOffset(0), &mut out).unwrap();
    assert!(out == reference.bytes);
}

#[test]
fn random_operations_and_wipes_agree_with_a_plain_vector() {
    let mut random = Random(seed());
    let (mut node, mut reference) = (node(), Reference::new());
    let mut volume = node.volume();
    let start = Instant::now();
    let mut steps = 0;
    while steps < 200 || start.elapsed() < soak(4) {
        step(&mut random, &volume, &mut reference);
        steps += 1;
        if random.below(50) == 0 {
            node.wipe();
            assert_eq!(volume.read(ByteOffset(0), &mut [0; 1]).unwrap_err().kind(), ErrorKind::KeyGone);
            volume = node.push();
        }
    }
    check_all(&volume, &reference);
    println!("{steps} steps");
}

#[test]
fn after_a_power_cut_or_a_kill_every_flushed_sector_is_there() {
    let mut random = Random(seed());
    let (mut node, mut reference) = (node(), Reference::new());
    let start = Instant::now();
    let mut cuts = 0;
    while cuts < 5 || start.elapsed() < soak(4) {
        let volume = node.volume();
        for _ in 0..random.below(40) {
            step(&mut random, &volume, &mut reference);
        }
        drop(volume);
        node = if random.below(4) == 0 { node.killed() } else { node.power_cut(random.next()) };
        cuts += 1;
        let mut survived = vec![0; index(VOLUME_BYTES)];
        node.volume().read(ByteOffset(0), &mut survived).unwrap();
        for (sector, unflushed) in reference.unflushed.iter().enumerate() {
            let at = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
            assert!(
                *unflushed || survived[at.clone()] == reference.bytes[at],
                "sector {sector} after cut {cuts}"
            );
        }
        reference.bytes = survived;
        // What survived a cut is on the medium; a flush makes the model and the pool agree on that.
        node.volume().flush().unwrap();
        reference.flushed();
    }
    println!("{cuts} cuts");
}

#[test]
#[should_panic(expected = "lost")]
fn the_power_cut_notices_a_flush_that_does_nothing() {
    let node = node();
    node.volume().write(ByteOffset(0), &[0; 1 << 20], Durability::Durable).unwrap();
    node.device().make_flush_a_noop();
    // Too little for a checkpoint, which would lose the whole pool to such a device.
    let data = Random(1).bytes(1 << 16);
    node.volume().write(ByteOffset(0), &data, Durability::Durable).unwrap();
    let node = node.power_cut(2);
    let mut out = vec![0; 1 << 16];
    let read = node.volume().read(ByteOffset(0), &mut out);
    assert!(read.is_ok() && out == data, "lost");
}

#[test]
fn what_the_pool_holds_is_aes_xts_under_the_sectors_number_and_nothing_clear() {
    let node = node();
    let data = b"correct horse battery staple. ".repeat(1000);
    let at = 2 * (1 << 20) + 3 * SECTOR + 17;
    node.volume().write(ByteOffset(at), &data, Durability::Durable).unwrap();

    let key = node.keyholder().xts_key();
    let [cipher, tweak] = [&key[..32], &key[32..]].map(|half| Aes256::new_from_slice(half).unwrap());
    let oracle = Xts128::new(cipher, tweak);
    let (first, count) = (at / SECTOR, (at + data.len() as u64).div_ceil(SECTOR) - at / SECTOR);
    let mut clear = Vec::new();
    for piece in node.pool_volume().read(Lba(first), SectorCount(count)).unwrap() {
        let Piece::Sealed { first, data, .. } = piece else { panic!("a hole") };
        let mut bytes = data.as_bytes().to_vec();
        oracle.decrypt_area(&mut bytes, SECTOR_BYTES, u128::from(first.0), get_tweak_default);
        clear.extend(bytes);
    }
    assert!(clear[index(at % SECTOR)..][..data.len()] == data);
    for (sector, bytes) in node.device().content() {
        assert!(!bytes.windows(8).any(|window| window == &data[..8]), "plaintext in device sector {sector}");
    }
}

#[test]
fn zeroes_and_trims_leave_holes_only_where_they_may() {
    let node = node();
    let volume = node.volume();
    let holes = |volume: &Volume| -> u64 {
        let extents = volume.status(ByteOffset(0), ByteLen(16 * SECTOR)).unwrap();
        extents.iter().filter(|(_, presence)| *presence == Presence::Hole).map(|(len, _)| len.0).sum()
    };
    assert_eq!(holes(&volume), 16 * SECTOR);
    // Zeros over part of a hole stay a hole.
    volume.write_zeroes(ByteOffset(5), ByteLen(100), ZeroMode::MayUnmap, Durability::Buffered).unwrap();
    assert_eq!(holes(&volume), 16 * SECTOR);
    volume.write(ByteOffset(0), &vec![7; index(16 * SECTOR)], Durability::Buffered).unwrap();
    assert_eq!(holes(&volume), 0);
    let part = (ByteOffset(SECTOR / 2), ByteLen(3 * SECTOR));
    volume.write_zeroes(part.0, part.1, ZeroMode::KeepAllocated, Durability::Buffered).unwrap();
    assert_eq!(holes(&volume), 0, "sealed zeros show nothing");
    volume.write_zeroes(part.0, part.1, ZeroMode::MayUnmap, Durability::Buffered).unwrap();
    assert_eq!(holes(&volume), 2 * SECTOR);
    volume.trim(ByteOffset(8 * SECTOR - 1), ByteLen(2 * SECTOR), Durability::Buffered).unwrap();
    assert_eq!(holes(&volume), 3 * SECTOR);
    let mut out = vec![0; index(16 * SECTOR)];
    volume.read(ByteOffset(0), &mut out).unwrap();
    let mut expected = vec![7; index(16 * SECTOR)];
    expected[index(SECTOR / 2)..index(SECTOR / 2 + 3 * SECTOR)].fill(0);
    expected[index(8 * SECTOR)..index(9 * SECTOR)].fill(0);
    assert!(out == expected, "a trim leaves parts of sectors alone");
}

#[test]
fn ranges_past_the_end_are_refused_and_change_nothing() {
    let node = node();
    let volume = node.volume();
    assert_eq!(volume.len(), ByteLen(VOLUME_BYTES));
    for (at, len) in [(VOLUME_BYTES, 1), (VOLUME_BYTES - 1, 2), (u64::MAX, 1), (u64::MAX - 1, u64::MAX)] {
        let (at, len) = (ByteOffset(at), ByteLen(len));
        let data = vec![1; index(len.0.min(2))];
        let short = ByteLen(data.len() as u64);
        let refused = [
            volume.read(at, &mut vec![0; data.len()]).unwrap_err(),
            volume.write(at, &data, Durability::Buffered).unwrap_err(),
            volume.trim(at, len, Durability::Buffered).unwrap_err(),
            volume.write_zeroes(at, len, ZeroMode::MayUnmap, Durability::Buffered).unwrap_err(),
            volume.status(at, len).unwrap_err(),
        ];
        for error in refused {
            assert_eq!(error.kind(), ErrorKind::OutOfRange, "{at} {len} {short}: {error}");
            assert_eq!(error.range().0, at);
        }
    }
    volume.read(ByteOffset(VOLUME_BYTES), &mut []).unwrap();
    volume.write(ByteOffset(VOLUME_BYTES), &[], Durability::Durable).unwrap();
    assert_eq!(volume.status(ByteOffset(VOLUME_BYTES), ByteLen(0)).unwrap(), []);
    check_all(&volume, &Reference::new());
}
