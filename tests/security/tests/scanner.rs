//! The scanner's own proof: it finds a planted key in each form, and nothing where nothing was planted.

use std::path::Path;

use security_tests::memory::{Scan, scan};
use security_tests::needles::Needles;
use security_tests::planted::Planted;
use security_tests::schedule;

const DATA_KEY: [u8; 32] = [
    0x8f, 0x1c, 0x52, 0xe7, 0x33, 0x90, 0xab, 0x04, 0xd1, 0x6e, 0x77, 0x29, 0xf8, 0x45, 0xb2, 0x9c, 0x10,
    0xc3, 0x6a, 0xfd, 0x58, 0x87, 0x2e, 0xe1, 0x94, 0x3b, 0xd6, 0x0f, 0xa2, 0x7d, 0x68, 0xb5,
];

/// What a scan of a process finds that holds `bytes`.
fn scan_of(bytes: &[u8]) -> Scan {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let planted = Planted::start(Path::new(env!("CARGO_BIN_EXE_planted")), None, folder.path(), bytes);
    let mut needles = Needles::new();
    needles.add_aes_key("planted", &DATA_KEY);
    scan(planted.pid(), &needles).expect("a child can be scanned")
}

#[test]
fn a_process_without_the_key_is_clean() {
    let scan = scan_of(b"nothing of interest");
    assert!(scan.findings.is_empty(), "{}", scan.describe(10));
    assert!(scan.bytes_read > 100_000, "read only {} bytes", scan.bytes_read);
}

#[test]
fn a_planted_key_is_found_in_every_form() {
    let schedules = schedule::expand(&DATA_KEY);
    let swapped: Vec<u8> = DATA_KEY.chunks(8).flat_map(|word| word.iter().rev().copied()).collect();
    let padded: Vec<u8> = DATA_KEY.iter().map(|byte| byte ^ 0x36).collect();
    let planted: [(&str, &[u8]); 7] = [
        ("the key", &DATA_KEY),
        ("eight bytes from its middle", &DATA_KEY[13..21]),
        ("an encryption round key", &schedules.encryption[9]),
        ("a decryption round key", &schedules.decryption[9]),
        ("half a decryption round key", &schedules.decryption[4][8..]),
        ("the key in swapped words", &swapped),
        ("the key under HMAC's inner pad", &padded),
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
