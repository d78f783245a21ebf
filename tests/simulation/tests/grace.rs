//! What was acknowledged before a wipe is ciphertext already, and reaches the disk without a key.

use device::SimulatedDevice;
use pool::VolumeKind;
use sealing::simulated::SimulatedNode;
use sealing::{Durability, ErrorKind};
use units::{ByteLen, ByteOffset};

const SECTORS: u64 = 64;
const SECTOR: u64 = 4096;

/// Power cuts tried, each with another choice of what an unflushed device keeps.
const CUTS: u64 = 200;

fn written(byte: u8) -> Vec<u8> {
    vec![byte; usize::try_from(SECTORS * SECTOR).expect("small")]
}

/// A node that has acknowledged a write and then forgot its key; whether the write outlives a power cut that follows.
fn outlives(flush: bool, seed: u64) -> bool {
    let device = SimulatedDevice::new(ByteLen(32 << 20));
    let node = SimulatedNode::create(device, ByteLen(SECTORS * SECTOR), VolumeKind::Block);
    let volume = node.volume();
    volume.write(ByteOffset(0), &written(1), Durability::Durable).expect("a durable write");
    volume.write(ByteOffset(0), &written(2), Durability::Buffered).expect("an acknowledged write");
    node.wipe();
    let refused =
        volume.write(ByteOffset(0), &written(3), Durability::Buffered).expect_err("no key, no write");
    assert_eq!(refused.kind(), ErrorKind::KeyGone);
    if flush {
        node.pool().flush().expect("a flush takes no key");
    }
    let node = node.power_cut(seed);
    let mut read = written(0);
    node.volume().read(ByteOffset(0), &mut read).expect("a read under the key that was pushed again");
    assert!(read.iter().all(|byte| matches!(byte, 1 | 2)), "seed {seed}: neither the old nor the new");
    read == written(2)
}

#[test]
fn a_wiped_node_makes_durable_what_it_acknowledged_before() {
    for seed in 0..CUTS {
        assert!(outlives(true, seed), "seed {seed}: an acknowledged and flushed write was lost");
    }
    // The same cuts take it where nobody flushed: they would have shown a flush that does nothing.
    assert!((0..CUTS).any(|seed| !outlives(false, seed)));
}
