//! What earlier versions wrote opens, byte for byte. The number in a file's name is the pool format that it has.
//!
//! `NIGHTLATCH_WRITE_GOLDEN=1` makes the file where there is none; it never replaces one. A change of format keeps the old
//! file, adds a new one, and makes both open.

use std::sync::Arc;

use device::SimulatedDevice;
use formats_tests::{decode, encode, golden};
use simulation_tests::load::{Blocks, Objects};
use simulation_tests::node::SimulatedNode;
use simulation_tests::pattern;

const WRITE_VARIABLE: &str = "NIGHTLATCH_WRITE_GOLDEN";

/// The smallest that a store fits on: what it holds in reserve is in the golden file too.
const STORE_BYTES: u64 = 16 << 20;

/// Byte offset in the volume, length and tag of what is written there; the last two overlap.
const WRITES: &[(u64, usize, u64)] =
    &[(0, 4096, 11), (65_536, 12_288, 12), (1_048_576 + 512, 1536, 13), (69_632, 512, 14)];

/// A trimmed range of the volume.
const TRIMMED: (u64, u64) = (73_728, 4096);

/// Key, length and tag of each object: none, in the index, one run, and one in two parts.
const OBJECTS: &[(&str, usize, u64)] =
    &[("empty", 0, 21), ("small", 100, 22), ("run", 20_000, 23), ("ünïcode/ key", 5000, 24)];

fn unit(tag: u64, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let first = at / pattern::UNIT_BYTES as u64;
    for (position, unit) in (first..).zip(bytes.chunks_exact_mut(pattern::UNIT_BYTES)) {
        pattern::fill(unit, tag, position);
    }
    bytes
}

/// What the volume must hold from its start to the end of the last write.
fn expected_disk() -> Vec<u8> {
    let mut disk = vec![0; 1_048_576 + 4096];
    for (at, len, tag) in WRITES {
        let at_index = usize::try_from(*at).expect("small");
        disk[at_index..at_index + len].copy_from_slice(&unit(*tag, *at, *len));
    }
    let (at, len) = TRIMMED;
    let at = usize::try_from(at).expect("small");
    disk[at..at + usize::try_from(len).expect("small")].fill(0);
    disk
}

fn write_installation() -> Arc<SimulatedDevice> {
    let node = SimulatedNode::create_with_store(STORE_BYTES);
    let (mut disk, mut store) = (node.blocks(), node.objects());
    for (at, len, tag) in WRITES {
        disk.write(*at, &unit(*tag, *at, *len), false).expect("a write");
    }
    disk.trim(TRIMMED.0, TRIMMED.1).expect("a trim");
    disk.flush().expect("a flush");
    for (key, len, tag) in OBJECTS {
        store.put(key, &pattern::body(*tag, *len)).expect("a put");
    }
    store.put_in_parts("parts", &[&pattern::body(25, 9000)]).expect("a multipart upload");
    store.put("deleted", b"gone").expect("a put");
    store.delete("deleted").expect("a delete");
    drop((disk, store));
    node.power_cut(1)
}

fn check(device: Arc<SimulatedDevice>) {
    let node = SimulatedNode::open(device, None).unwrap_or_else(|error| panic!("it does not open: {error}"));
    let (mut disk, mut store) = (node.blocks(), node.objects());
    let expected = expected_disk();
    let mut found = vec![0; expected.len()];
    disk.read(0, &mut found).expect("a read");
    assert!(found == expected, "the volume reads otherwise");
    for (key, len, tag) in OBJECTS {
        let body = store.get(key).expect("an answer").unwrap_or_else(|| panic!("{key} is gone"));
        assert!(body == pattern::body(*tag, *len), "{key} reads otherwise");
    }
    assert!(store.get("parts").expect("an answer") == Some(pattern::body(25, 9000)));
    assert_eq!(store.list("").expect("a listing").len(), OBJECTS.len() + 1);
    // And it goes on living.
    disk.write(0, &unit(31, 0, 4096), true).expect("a durable write");
    store.put("new", b"new").expect("a put");
}

fn opens(name: &str) {
    let path = golden(name);
    if std::env::var_os(WRITE_VARIABLE).is_some() && !path.exists() {
        std::fs::write(&path, encode(&write_installation())).expect("a writable golden folder");
    }
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    check(decode(&bytes).expect("a golden device"));
}

#[test]
fn an_installation_of_version_1_opens() {
    opens("installation-1.bin");
}

#[test]
fn an_installation_of_version_3_opens() {
    opens("installation-3.bin");
}

/// The check itself finds a flipped bit in a stored sector: the golden file is not opened by luck.
#[test]
fn an_installation_of_today_passes_and_a_damaged_one_does_not() {
    let device = write_installation();
    check(decode(&encode(&device)).expect("a device that was written down"));
    let damaged = decode(&encode(&device)).expect("a device that was written down");
    for (number, _) in damaged.content().into_iter().filter(|(number, _)| *number > 600) {
        damaged.edit(number, |sector| sector[700] ^= 1);
    }
    assert!(std::panic::catch_unwind(|| check(damaged)).is_err(), "damage everywhere was not noticed");
}
