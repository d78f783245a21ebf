//! A full pool: a clear error, nothing lost, deletes still work, and what they free can be used.

use crate::workload::{content, get, put};
use objects::simulated::{SimulatedVolume, SplitMix64};
use objects::{BucketOptions, Condition, DeleteRequest, Store, StoreError};
use units::ByteLen;

const BUCKET: &str = "full";

fn fill(store: &Store, random: &mut SplitMix64, sizes: &[usize]) -> Vec<String> {
    let mut stored = Vec::new();
    for number in 0_u64.. {
        let key = format!("{number:06}");
        let bytes = content(number, sizes[number as usize % sizes.len()]);
        match put(store, BUCKET, &key, &bytes, Condition::default(), random) {
            Ok(_) => stored.push(key),
            Err(StoreError::NoSpace) => return stored,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!()
}

fn check(store: &Store, stored: &[String], sizes: &[usize]) {
    for key in stored {
        let number: u64 = key.parse().unwrap();
        assert!(
            get(store, BUCKET, key).unwrap() == content(number, sizes[number as usize % sizes.len()]),
            "{key}"
        );
    }
}

/// Fills, checks, deletes everything, fills again: the second time as much fits.
fn fill_twice(volume: &SimulatedVolume, sizes: &[usize]) {
    let mut random = SplitMix64(11);
    let store = Store::open(volume.clone()).unwrap();
    store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
    let stored = fill(&store, &mut random, sizes);
    assert!(stored.len() > 20, "only {} objects fit", stored.len());
    check(&store, &stored, sizes);
    let result = put(&store, BUCKET, "one more", &content(0, sizes[0]), Condition::default(), &mut random);
    assert!(matches!(result, Err(StoreError::NoSpace)), "{result:?}");

    // Reopened while full: nothing lost, still full, still deletable.
    drop(store);
    let store = Store::open(volume.clone()).unwrap();
    check(&store, &stored, sizes);
    let (half, rest) = stored.split_at(stored.len() / 2);
    for key in half {
        store.delete_object(BUCKET, DeleteRequest::of(key)).unwrap();
    }
    check(&store, rest, sizes);
    for key in rest {
        store.delete_object(BUCKET, DeleteRequest::of(key)).unwrap();
    }
    let again = fill(&store, &mut random, sizes);
    assert!(again.len() * 10 >= stored.len() * 9, "first {} objects fit, then {}", stored.len(), again.len());
    check(&store, &again, sizes);
}

#[test]
fn a_pool_full_of_bodies_takes_deletes_and_then_new_bodies() {
    let volume = SimulatedVolume::new(ByteLen(1 << 30));
    volume.set_capacity(Some(ByteLen(40 << 20)));
    fill_twice(&volume, &[100_000, 4096, 300]);
}

#[test]
fn a_pool_full_of_index_rows_takes_deletes_and_then_new_rows() {
    let volume = SimulatedVolume::new(ByteLen(1 << 30));
    volume.set_capacity(Some(ByteLen(22 << 20)));
    fill_twice(&volume, &[1_000]);
}

#[test]
fn an_index_that_fills_its_region_takes_deletes_and_then_new_rows() {
    fill_twice(&SimulatedVolume::new(ByteLen(16 << 20)), &[1_000]);
}

#[test]
fn a_volume_whose_address_space_is_used_up_takes_deletes_and_then_new_bodies() {
    fill_twice(&SimulatedVolume::new(ByteLen(16 << 20)), &[200_000, 5_000]);
}

#[test]
fn a_pool_that_grows_takes_new_bodies_at_once() {
    let volume = SimulatedVolume::new(ByteLen(1 << 30));
    volume.set_capacity(Some(ByteLen(30 << 20)));
    let store = Store::open(volume.clone()).unwrap();
    store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
    let mut random = SplitMix64(3);
    fill(&store, &mut random, &[500_000, 100]);
    volume.set_capacity(None);
    put(&store, BUCKET, "after", &content(1, 500_000), Condition::default(), &mut random).unwrap();
}
