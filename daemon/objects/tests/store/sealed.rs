//! The key goes, the device fails: nothing wrong is returned, nothing acknowledged is lost.

use crate::workload::{content, get, put};
use objects::simulated::{SimulatedVolume, SplitMix64};
use objects::{BucketOptions, Condition, Declared, DeleteRequest, Store, StoreError, UploadOptions};
use units::ByteLen;

const BUCKET: &str = "sealed";

fn store_with(volume: &SimulatedVolume, key: &str, bytes: &[u8]) -> std::sync::Arc<Store> {
    let store = Store::open(volume.clone()).unwrap();
    store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
    put(&store, BUCKET, key, bytes, Condition::default(), &mut SplitMix64(1)).unwrap();
    store
}

#[test]
fn after_a_wipe_every_call_says_sealed_and_after_the_next_push_everything_is_there() {
    let volume = SimulatedVolume::new(ByteLen(64 << 20));
    let bytes = content(5, 300_000);
    let store = store_with(&volume, "big", &bytes);
    put(&store, BUCKET, "inline", b"small", Condition::default(), &mut SplitMix64(1)).unwrap();
    let access_key = store.create_user("alice").unwrap();
    let upload = store.create_upload(BUCKET, "parts", UploadOptions::default()).unwrap();
    let objects = [store.object(BUCKET, "big", None).unwrap(), store.object(BUCKET, "inline", None).unwrap()];
    let mut half_read = objects[0].reader(&(0..300_000));
    half_read.next_chunk(4096).unwrap().unwrap();
    let mut half_written = store.put_object(BUCKET, "late", None, None).unwrap();
    half_written.append(&bytes).unwrap();

    volume.wipe_key();
    let sealed =
        |result: Result<(), StoreError>| assert!(matches!(result, Err(StoreError::Sealed)), "{result:?}");
    sealed(half_read.next_chunk(4096).map(drop));
    for object in &objects {
        sealed(object.reader(&(0..5)).next_chunk(5).map(drop));
    }
    sealed(half_written.append(&bytes));
    sealed(half_written.finish(objects::PutOptions::default()).map(drop));
    sealed(store.check());
    sealed(store.status().map(drop));
    sealed(store.buckets().map(drop));
    sealed(store.head_object(BUCKET, "inline", None).map(drop));
    sealed(store.credential(&access_key.id).map(drop));
    sealed(store.users().map(drop));
    sealed(store.create_bucket("other", BucketOptions::default()));
    sealed(store.delete_object(BUCKET, DeleteRequest::of("big")).map(drop));
    sealed(store.put_object(BUCKET, "new", None, None).map(drop));
    sealed(store.upload_part((BUCKET, "parts"), &upload.id, 1, None, None).map(drop));
    sealed(Store::open(volume.clone()).map(drop));

    // The old store may still be around when the next push opens a new one.
    let opened = Store::open(volume.unlocked_again()).unwrap();
    drop(store);
    assert!(get(&opened, BUCKET, "big").unwrap() == bytes);
    assert_eq!(get(&opened, BUCKET, "inline").unwrap(), b"small");
    assert!(matches!(opened.head_object(BUCKET, "late", None), Err(StoreError::NoSuchKey)));
    let found = opened.credential(&access_key.id).unwrap().unwrap();
    assert_eq!((found.user.as_str(), found.secret.expose()), ("alice", access_key.secret.expose()));
    opened.abort_upload(BUCKET, "parts", &upload.id).unwrap();
}

#[test]
fn a_wipe_under_load_loses_nothing_that_was_acknowledged() {
    let mut volume = SimulatedVolume::new(ByteLen(64 << 20));
    Store::open(volume.clone()).unwrap().create_bucket(BUCKET, BucketOptions::default()).unwrap();
    let mut acknowledged = std::collections::BTreeMap::new();
    for round in 0..30_u64 {
        let store = Store::open(volume.clone()).unwrap();
        let done = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..4_u64)
                .map(|client| {
                    let store = &store;
                    scope.spawn(move || {
                        let mut done = Vec::new();
                        for number in 0.. {
                            let (key, tag) =
                                (format!("{client}/{}", number % 10), round << 32 | client << 16 | number);
                            let bytes = content(tag, 100 + (tag % 9_000) as usize);
                            let mut random = SplitMix64(tag);
                            match put(store, BUCKET, &key, &bytes, Condition::default(), &mut random) {
                                Ok(_) => done.push((key, Some(bytes))),
                                Err(StoreError::Sealed) => {
                                    // Not answered: old or new.
                                    done.push((key, None));
                                    return done;
                                }
                                Err(error) => panic!("{error}"),
                            }
                        }
                        done
                    })
                })
                .collect();
            while store.status().is_ok_and(|status| status.changes < 20 + round) {
                std::thread::yield_now();
            }
            volume.wipe_key();
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
        });
        for (key, bytes) in done {
            match bytes {
                Some(bytes) => drop(acknowledged.insert(key, bytes)),
                None => drop(acknowledged.remove(&key)),
            }
        }
        volume = volume.unlocked_again();
        let store = Store::open(volume.clone()).unwrap();
        for (key, bytes) in &acknowledged {
            assert!(get(&store, BUCKET, key).unwrap() == *bytes, "{key} differs in round {round}");
        }
    }
}

#[test]
fn a_failed_flush_is_final_until_the_store_is_opened_again() {
    let volume = SimulatedVolume::new(ByteLen(64 << 20));
    let store = store_with(&volume, "old", b"old");
    volume.cut_at(volume.steps() + 1);
    let result = put(&store, BUCKET, "new", b"new", Condition::default(), &mut SplitMix64(1));
    assert!(matches!(result, Err(StoreError::Failed(_))), "{result:?}");
    for _ in 0..2 {
        assert!(matches!(store.head_object(BUCKET, "old", None), Err(StoreError::Failed(_))));
        assert!(matches!(store.create_bucket("more", BucketOptions::default()), Err(StoreError::Failed(_))));
    }
    let left = Store::open(volume.power_cut(9)).unwrap();
    assert_eq!(get(&left, BUCKET, "old").unwrap(), b"old");
}

#[test]
fn a_body_that_cannot_be_read_fails_alone() {
    let volume = SimulatedVolume::new(ByteLen(64 << 20));
    let store = store_with(&volume, "k", &content(1, 50_000));
    let object = store.object(BUCKET, "k", None).unwrap();
    volume.set_failing_reads(true);
    assert!(matches!(object.reader(&(0..100)).next_chunk(100), Err(StoreError::Io(_))));
    volume.set_failing_reads(false);
    assert_eq!(object.reader(&(0..100)).next_chunk(100).unwrap().unwrap(), content(1, 50_000)[..100]);
    let mut writer = store.put_object(BUCKET, "k", None, None).unwrap();
    writer.append(b"x").unwrap();
    let declared = Declared { md5: Some([0; 16]), checksum: None };
    let result = writer.finish(objects::PutOptions { declared, ..Default::default() });
    assert!(matches!(result, Err(StoreError::DigestMismatch(objects::DigestKind::Md5))));
    assert_eq!(get(&store, BUCKET, "k").unwrap(), content(1, 50_000), "a refused body leaves the old one");
}
