//! The scanner's own proof: it finds a planted key in each form, and nothing where nothing was planted.

use std::path::Path;

use security_tests::core_file::{self, Extent};
use security_tests::image;
use security_tests::locked::Locked;
use security_tests::memory::{Scan, scan};
use security_tests::needles::Needles;
use security_tests::planted::Planted;
use security_tests::{polyval, schedule};

const DATA_KEY: [u8; 32] = [
    0x8f, 0x1c, 0x52, 0xe7, 0x33, 0x90, 0xab, 0x04, 0xd1, 0x6e, 0x77, 0x29, 0xf8, 0x45, 0xb2, 0x9c, 0x10,
    0xc3, 0x6a, 0xfd, 0x58, 0x87, 0x2e, 0xe1, 0x94, 0x3b, 0xd6, 0x0f, 0xa2, 0x7d, 0x68, 0xb5,
];

/// What a scan of a process finds that holds `bytes`.
fn scan_of(bytes: &[u8]) -> Scan {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let planted = Planted::start(Path::new(env!("CARGO_BIN_EXE_planted")), None, folder.path(), bytes);
    let mut needles = needles();
    needles.add_hash_key("planted", &hash_key());
    scan(planted.pid(), &needles).expect("a child can be scanned")
}

/// What POLYVAL's key of a tag is to the scanner.
fn hash_key() -> [u8; 16] {
    std::array::from_fn(|at| DATA_KEY[at] ^ DATA_KEY[at + 16])
}

#[test]
fn a_process_without_the_key_is_clean() {
    let scan = scan_of(b"nothing of interest");
    scan.assert_clean("a process without the key", 0);
}

#[test]
fn a_planted_key_is_found_in_every_form() {
    let schedules = schedule::expand(&DATA_KEY);
    let swapped: Vec<u8> = DATA_KEY.chunks(8).flat_map(|word| word.iter().rev().copied()).collect();
    let padded: Vec<u8> = DATA_KEY.iter().map(|byte| byte ^ 0x36).collect();
    let powers = polyval::powers(&hash_key());
    let planted: [(&str, &[u8]); 11] = [
        ("the key", &DATA_KEY),
        ("eight bytes from its middle", &DATA_KEY[13..21]),
        ("an encryption round key", &schedules.encryption[9]),
        ("a decryption round key", &schedules.decryption[9]),
        ("half a decryption round key", &schedules.decryption[4][8..]),
        ("the key in swapped words", &swapped),
        ("the key under HMAC's inner pad", &padded),
        ("a hash key", &hash_key()),
        ("a power of a hash key", &powers[63].0),
        ("half a power of a hash key", &powers[11].0[8..]),
        ("the sum of a power's halves", &powers[3].1),
    ];
    for (what, bytes) in planted {
        let scan = scan_of(bytes);
        assert!(!scan.findings.is_empty(), "{what} was planted and not found");
    }
}

#[test]
fn the_scanner_refuses_to_scan_itself() {
    let mut needles = Needles::new();
    needles.add_secret("planted", &DATA_KEY);
    assert!(scan(std::process::id(), &needles).is_err());
}

fn needles() -> Needles {
    let mut needles = Needles::new();
    needles.add_aes_key("planted", &DATA_KEY);
    needles
}

#[test]
fn a_key_in_memory_that_is_excluded_from_cores_is_found_in_a_core_that_leaves_nothing_out() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let program = Path::new(env!("CARGO_BIN_EXE_locked"));
    let mut locked = Locked::start(program, "ordinary", &DATA_KEY);
    let search = |pid: u32, extent| {
        let core = core_file::take(pid, extent, folder.path());
        let found = image::search(&core, &needles()).expect("a core");
        std::fs::remove_file(core).expect("our own");
        found
    };
    assert!(!scan(locked.pid(), &needles()).expect("a child").findings.is_empty());
    let ordinary = search(locked.pid(), Extent::Ordinary);
    assert!(ordinary.findings.is_empty(), "excluded from this one: {}", ordinary.describe(10));
    let everything = search(locked.pid(), Extent::Everything);
    assert_eq!(everything.findings.len(), DATA_KEY.len() - 7, "{}", everything.describe(10));
    locked.wipe();
    let wiped = search(locked.pid(), Extent::Everything);
    assert!(wiped.findings.is_empty(), "{}", wiped.describe(10));
}

#[test]
fn a_key_in_secret_memory_is_in_no_core() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let locked = Locked::start(Path::new(env!("CARGO_BIN_EXE_locked")), "secret", &DATA_KEY);
    let core = core_file::take(locked.pid(), Extent::Everything, folder.path());
    let found = image::search(&core, &needles()).expect("a core");
    assert!(found.findings.is_empty(), "{}", found.describe(10));
}

#[test]
fn a_window_across_two_reads_of_a_file_is_found_once_and_in_its_place() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("image");
    let mut needles = Needles::new();
    needles.add_text("planted", &DATA_KEY[..8]);
    for at in [0, (4 << 20) - 8, (4 << 20) - 7, (4 << 20) - 3, 4 << 20, (9 << 20) - 8] {
        let mut bytes = vec![0x11; 9 << 20];
        bytes[at..at + 8].copy_from_slice(&DATA_KEY[..8]);
        std::fs::write(&file, &bytes).expect("a file");
        let found = image::search(&file, &needles).expect("a file");
        let places: Vec<u64> = found.findings.iter().map(|finding| finding.address).collect();
        assert_eq!((places, found.bytes_read), (vec![at as u64], 9 << 20));
    }
}
