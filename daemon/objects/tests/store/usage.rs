//! What buckets hold, counted and limited.

use std::sync::Arc;

use crate::workload::{budget, content, first_seed, length, multipart};
use objects::simulated::{SimulatedVolume, SplitMix64};
use objects::{
    BucketOptions, Declared, DeleteRequest, ListRequest, PutOptions, Quota, QuotaOf, Store, StoreError,
    UploadOptions, Usage, Versioning,
};
use units::ByteLen;

fn store() -> (SimulatedVolume, Arc<Store>) {
    let volume = SimulatedVolume::new(ByteLen(256 << 20));
    let store = Store::open(volume.clone()).unwrap();
    (volume, store)
}

fn put(store: &Store, bucket: &str, key: &str, len: usize) -> Result<(), StoreError> {
    let mut writer = store.put_object(bucket, key, Some(len as u64), None)?;
    writer.append(&content(3, len))?;
    writer.finish(PutOptions::default()).map(drop)
}

/// Counted the slow way.
fn listed(store: &Store, bucket: &str) -> Usage {
    let request = ListRequest { limit: 1_000, ..ListRequest::default() };
    let mut usage = Usage::default();
    for version in store.list_versions(bucket, &request, None).unwrap().versions {
        usage.bytes += version.info.bytes;
        usage.objects += 1;
    }
    for upload in store.list_uploads(bucket, &request, None).unwrap().uploads {
        let parts = store.parts(bucket, &upload.key, &upload.id, 0, 1_000).unwrap().parts;
        // Whole sectors, until they are an object.
        let counted = |bytes: u64| bytes.max(1).next_multiple_of(4096);
        usage.bytes += parts.iter().map(|part| counted(part.bytes)).sum::<u64>();
    }
    usage
}

#[test]
fn what_is_counted_is_what_is_there_after_any_history_and_any_opening() {
    let seed = first_seed();
    println!("NIGHTLATCH_SEED={seed}");
    let mut random = SplitMix64(seed);
    let until = budget(std::time::Duration::from_secs(3));
    let (mut volume, mut store) = store();
    for bucket in ["plain", "kept"] {
        store.create_bucket(bucket, BucketOptions::default()).unwrap();
    }
    store.set_versioning("kept", Versioning::Enabled).unwrap();
    let mut uploads = Vec::new();
    let mut rounds = 0;
    while rounds <= 50 || std::time::Instant::now() < until {
        let bucket = ["plain", "kept"][random.below(2) as usize];
        let key = format!("k{}", random.below(6));
        let len = length(&mut random);
        match random.below(10) {
            0..=3 => put(&store, bucket, &key, len).unwrap(),
            4 => drop(multipart(&store, bucket, &key, &[content(1, len)]).unwrap()),
            5 | 6 => drop(store.delete_object(bucket, DeleteRequest::of(&key)).unwrap()),
            7 => {
                let id = store.create_upload(bucket, &key, UploadOptions::default()).unwrap().id;
                uploads.push((bucket, key, id));
            }
            8 => {
                for (bucket, key, id) in &uploads {
                    let number = 1 + random.below(2) as u16;
                    let mut part = store.upload_part((bucket, key), id, number, None, None).unwrap();
                    part.append(&content(2, len)).unwrap();
                    part.finish(&Declared::default()).unwrap();
                }
            }
            _ => {
                if let Some((bucket, key, id)) = uploads.pop() {
                    store.abort_upload(bucket, &key, &id).unwrap();
                }
                let request = ListRequest { limit: 2, ..ListRequest::default() };
                for version in store.list_versions("kept", &request, None).unwrap().versions {
                    let named =
                        DeleteRequest { version: Some(version.version), ..DeleteRequest::of(version.key) };
                    store.delete_object("kept", named).unwrap();
                }
            }
        }
        if random.below(20) == 0 {
            store.close();
            volume = volume.power_cut(random.next_u64());
            store = Store::open(volume.clone()).unwrap();
        }
        for bucket in ["plain", "kept"] {
            assert_eq!(store.usage(bucket).unwrap(), listed(&store, bucket), "{bucket}");
        }
        rounds += 1;
    }
    println!("{rounds} changes");
}

#[test]
fn a_quota_holds_to_the_byte_and_deletes_always_go_through() {
    let (_, store) = store();
    store.create_user("alice").unwrap();
    for bucket in ["one", "two"] {
        let options = BucketOptions { owner: "alice".into(), ..BucketOptions::default() };
        store.create_bucket(bucket, options).unwrap();
    }
    let of = || QuotaOf::Bucket("one".to_owned());
    let bytes = |bytes| Some(Quota { bytes: Some(bytes), objects: None });
    let refused = |result: Result<(), StoreError>| matches!(result, Err(StoreError::QuotaExceeded));
    store.set_quota(of(), bytes(10_000)).unwrap();
    put(&store, "one", "a", 10_000).unwrap();
    assert!(refused(put(&store, "one", "b", 1)));
    put(&store, "one", "b", 0).unwrap();
    put(&store, "one", "a", 9_999).unwrap();
    put(&store, "one", "b", 1).unwrap();
    assert!(refused(multipart(&store, "one", "m", &[content(1, 1)]).map(drop)));
    store.set_quota(of(), bytes(5_000)).unwrap();
    put(&store, "one", "a", 9_000).unwrap();
    assert!(refused(put(&store, "one", "a", 9_001)), "less is taken, more is not");
    store.delete_object("one", DeleteRequest::of("a")).unwrap();
    put(&store, "one", "a", 4_999).unwrap();
    store.set_quota(of(), Some(Quota { bytes: None, objects: Some(2) })).unwrap();
    assert!(refused(put(&store, "one", "c", 0)));
    put(&store, "one", "a", 100_000).unwrap();
    store.set_quota(of(), None).unwrap();
    store.set_quota(QuotaOf::User("alice".into()), bytes(200_000)).unwrap();
    put(&store, "two", "a", 99_999).unwrap();
    assert!(refused(put(&store, "two", "b", 1)), "of both buckets together");
    assert!(matches!(store.set_quota(QuotaOf::User("bob".into()), None), Err(StoreError::NoSuchUser)));
    assert!(matches!(store.set_quota(QuotaOf::Bucket("x".into()), None), Err(StoreError::NoSuchBucket)));
    assert_eq!(store.quotas().unwrap().len(), 1);
    store.delete_user("alice").unwrap();
    assert!(store.quotas().unwrap().is_empty());
}

#[test]
fn many_writers_at_once_pass_a_quota_by_nothing() {
    let (_, store) = store();
    store.create_bucket("bucket", BucketOptions::default()).unwrap();
    let quota = Quota { bytes: Some(20_000), objects: None };
    store.set_quota(QuotaOf::Bucket("bucket".into()), Some(quota)).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..10 {
                    let result = put(store, "bucket", &format!("{writer}/{number}"), 1_500);
                    assert!(matches!(result, Ok(()) | Err(StoreError::QuotaExceeded)));
                }
            });
        }
    });
    assert_eq!(store.usage("bucket").unwrap(), Usage { bytes: 19_500, objects: 13 });
}

#[test]
fn what_is_on_its_way_counts_against_a_quota_and_takes_no_more_than_it_sends() {
    const GIB: u64 = 1 << 30;
    let volume = SimulatedVolume::new(ByteLen(1 << 40));
    let store = Store::open(volume).unwrap();
    store.create_user("alice").unwrap();
    for bucket in ["one", "two"] {
        let options = BucketOptions { owner: "alice".into(), ..BucketOptions::default() };
        store.create_bucket(bucket, options).unwrap();
    }
    let begin = |bucket: &str, key: &str, bytes| store.put_object(bucket, key, Some(bytes), None);
    let refused = |result: Result<(), StoreError>| matches!(result, Err(StoreError::QuotaExceeded));
    let free = store.status().unwrap().free.0;
    let mut longest = begin("one", "k", 5 * GIB).unwrap();
    longest.append(&[1; 8192]).unwrap();
    let step = objects::limits::KNOWN_LENGTH_STEP.0;
    assert_eq!(store.status().unwrap().free.0, free - step, "no more than a step is held");
    drop(longest);
    let bytes = |bytes| Some(Quota { bytes: Some(bytes), objects: None });
    store.set_quota(QuotaOf::User("alice".into()), bytes(10_000)).unwrap();
    let first = begin("one", "a", 5_904).unwrap();
    assert!(refused(begin("one", "b", 4_097).map(drop)) && refused(begin("two", "b", 4_097).map(drop)));
    let upload = store.create_upload("two", "m", UploadOptions::default()).unwrap().id;
    let part = |bytes| store.upload_part(("two", "m"), &upload, 1, Some(bytes), None);
    assert!(refused(part(4_097).map(drop)));
    // A part takes whole sectors until its upload is completed.
    let second = part(4_000).unwrap();
    assert!(refused(begin("one", "b", 1).map(drop)));
    drop(second);
    let mut second = part(4_000).unwrap();
    second.append(&[1; 4_000]).unwrap();
    second.finish(&Declared::default()).unwrap();
    drop(first);
    // Counted once, whether it is coming or there; and what it replaces goes.
    put(&store, "one", "a", 5_904).unwrap();
    drop(begin("one", "a", 5_904).unwrap());
    drop(part(4_000).unwrap());
    assert!(refused(begin("one", "a", 5_905).map(drop)) && refused(part(4_097).map(drop)));
}
