//! What a store says about a volume that is not one, not intact or not of its time.

use objects::simulated::SimulatedVolume;
use objects::{BlockVolume, BucketOptions, FORMAT_VERSION, Store, StoreError};
use units::{ByteLen, ByteOffset};

const HEADER: [u64; 2] = [0, 4096];

fn formatted() -> SimulatedVolume {
    let volume = SimulatedVolume::new(ByteLen(32 << 20));
    Store::open(volume.clone()).unwrap().create_bucket("kept", BucketOptions::default()).unwrap();
    volume
}

fn change(volume: &SimulatedVolume, at: u64, edit: impl FnOnce(&mut [u8])) {
    let mut sector = vec![0; 4096];
    volume.read(ByteOffset(at), &mut sector).unwrap();
    edit(&mut sector);
    volume.write(ByteOffset(at), &sector).unwrap();
}

#[test]
fn either_copy_of_the_header_is_enough_and_neither_is_a_clear_error() {
    for at in HEADER {
        let volume = formatted();
        change(&volume, at, |sector| sector[40] ^= 1);
        assert!(Store::open(volume).unwrap().bucket("kept").is_ok());
    }
    let volume = formatted();
    HEADER.iter().for_each(|at| change(&volume, *at, |sector| sector[40] ^= 1));
    assert!(matches!(Store::open(volume), Err(StoreError::HeaderDamaged)));
}

#[test]
fn a_newer_format_is_named_and_left_alone() {
    let volume = formatted();
    for at in HEADER {
        change(&volume, at, |sector| {
            sector[8..12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
            let checksum = crc32c::crc32c(&sector[..4092]);
            sector[4092..].copy_from_slice(&checksum.to_le_bytes());
        });
    }
    let result = Store::open(volume);
    assert!(matches!(result, Err(StoreError::NewerFormat { found, .. }) if found == FORMAT_VERSION + 1));
}

#[test]
fn a_volume_with_other_data_is_never_formatted() {
    for at in [0, 8 << 20] {
        let volume = SimulatedVolume::new(ByteLen(32 << 20));
        volume.write(ByteOffset(at), b"somebody's file system").unwrap();
        let steps = volume.steps();
        assert!(matches!(Store::open(volume.clone()), Err(StoreError::NotAStore)));
        assert_eq!(volume.steps(), steps, "nothing was written");
    }
}

#[test]
fn a_volume_that_is_too_small_is_refused() {
    let volume = SimulatedVolume::new(ByteLen((16 << 20) - 4096));
    assert!(matches!(Store::open(volume), Err(StoreError::VolumeTooSmall { .. })));
    Store::open(SimulatedVolume::new(ByteLen(16 << 20))).unwrap();
}

#[test]
fn a_damaged_index_is_an_error_and_no_panic() {
    let volume = formatted();
    // The index region follows header and reserve: redb's own header is its first page.
    let store = Store::open(volume.clone()).unwrap();
    drop(store);
    for at in (2 << 20..3 << 20).step_by(4096) {
        let damaged = volume.power_cut(1);
        change(&damaged, at, |sector| sector.fill(0x5a));
        let outcome = std::panic::catch_unwind(|| Store::open(damaged).map(drop));
        assert!(outcome.is_ok(), "opening panicked with the page at {at} damaged");
    }
}

#[test]
fn the_sixteen_tebibyte_and_the_largest_volume_open_at_once() {
    for len in [16_u64 << 40, 64 << 40, 1 << 50] {
        let volume = SimulatedVolume::new(ByteLen(len));
        let store = Store::open(volume).unwrap();
        assert!(store.status().unwrap().free.0 > len / 2);
    }
}
