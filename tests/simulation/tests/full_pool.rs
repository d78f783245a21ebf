//! A pool that runs full under the object store: a clear error, nothing lost, deletes work, and what they free is used again.

use std::sync::Arc;

use device::{Device, SimulatedDevice};
use keyring::simulated::{Keyholder, keyring};
use objects::{BucketOptions, DeleteRequest, PutOptions, Store, StoreError};
use pool::{CreateOptions, Pool, VolumeKind, VolumeSpec};
use sealing::Volume;
use units::{ByteLen, DomainId, SectorCount, VolumeEpoch, VolumeId};

const BUCKET: &str = "bucket";
const STORE: VolumeId = VolumeId([2; 16]);
const EPOCH: VolumeEpoch = VolumeEpoch(1);

fn body(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|byte| u8::try_from((byte * 31 + number * 7) % 251).expect("below 251")).collect()
}

fn put(store: &Store, number: usize, len: usize) -> Result<(), StoreError> {
    let mut writer = store.put_object(BUCKET, &format!("{number:06}"), Some(len as u64), None)?;
    writer.append(&body(number, len))?;
    writer.finish(PutOptions::default()).map(|_| ())
}

fn fill(store: &Store, len: usize) -> usize {
    for number in 0.. {
        match put(store, number, len) {
            Ok(()) => {}
            Err(StoreError::NoSpace) => return number,
            Err(error) => panic!("after {number} objects: {error:?}"),
        }
    }
    unreachable!()
}

fn check(store: &Store, range: std::ops::Range<usize>, len: usize) {
    for number in range {
        let object = store.object(BUCKET, &format!("{number:06}"), None).expect("the object is there");
        let mut reader = object.reader(&(0..len as u64));
        assert!(
            reader.next_chunk(len).expect("it can be read").unwrap_or_default() == body(number, len),
            "{number}"
        );
    }
}

fn full_and_empty_again(pool_mib: u64, volume_mib: u64, len: usize) {
    let device = SimulatedDevice::new(ByteLen(pool_mib << 20));
    let pool =
        Pool::create(Arc::clone(&device) as Arc<dyn Device>, CreateOptions::default()).expect("a pool");
    let keyholder = Keyholder::new(DomainId(STORE.0), EPOCH);
    let sectors = SectorCount((volume_mib << 20) / 4096);
    let spec = VolumeSpec {
        id: STORE,
        sectors,
        domain: DomainId(STORE.0),
        epoch: EPOCH,
        check: keyholder.check(),
        kind: VolumeKind::Objects,
    };
    pool.create_volume(spec).expect("a volume");
    let keyring = keyring();
    let key = keyholder.push(&keyring).expect("a key");
    let volume = Volume::open(pool.volume(STORE).expect("the volume"), Arc::clone(&keyring), key.handle);
    let store = Store::open(volume.clone()).expect("a store");
    store.create_bucket(BUCKET, BucketOptions::default()).expect("a bucket");
    let first = fill(&store, len);
    println!("{first} objects of {len} bytes fit");
    assert!(first > 10);
    drop(store);
    let store = Store::open(volume).expect("a full store opens");
    check(&store, 0..first, len);
    for number in 0..first {
        store
            .delete_object(BUCKET, DeleteRequest::of(format!("{number:06}")))
            .expect("a delete on a full pool");
        if number == first / 2 {
            check(&store, number + 1..first, len);
        }
    }
    let second = fill(&store, len);
    println!("{second} the second time");
    assert!(second * 10 >= first * 8, "first {first}, then {second}");
    check(&store, 0..second, len);
}

#[test]
fn a_pool_full_of_bodies() {
    full_and_empty_again(48, 256, 300_000);
}

#[test]
fn a_pool_full_of_small_bodies() {
    full_and_empty_again(48, 256, 9_000);
}

#[test]
fn a_pool_full_of_index_rows() {
    full_and_empty_again(24, 256, 1_000);
}

/// The index reaches the end of its region before the pool is full.
#[test]
fn an_index_full_of_rows() {
    full_and_empty_again(48, 64, 1_000);
}
