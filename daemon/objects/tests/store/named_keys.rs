//! Objects under keys with names: while the key is lent they are read as any, when it is taken back they alone are not.

use std::sync::Arc;

use crate::workload::content;
use objects::simulated::{SimulatedKey, SimulatedVolume};
use objects::{
    BlockVolume, BucketOptions, CompleteOptions, CompletedPart, CopyOptions, CustomerKey, Declared, KeyAway,
    NamedKeys, Object, PutOptions, Store, StoreError, UploadOptions,
};
use units::{ByteLen, ByteOffset};

const BUCKET: &str = "named";

struct Fixture {
    volume: SimulatedVolume,
    keys: Arc<NamedKeys>,
    store: Arc<Store>,
}

/// A store with the keys `one` and `two`.
fn fixture() -> Fixture {
    let volume = SimulatedVolume::new(ByteLen(64 << 20));
    let keys = Arc::new(NamedKeys::default());
    keys.lend("one", SimulatedKey::new(1));
    keys.lend("two", SimulatedKey::new(2));
    let store = Store::open_with_keys(volume.clone(), Arc::clone(&keys)).unwrap();
    store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
    Fixture { volume, keys, store }
}

fn put(store: &Store, name: &str, bytes: &[u8], key: Option<&str>) {
    let mut writer = store.put_object(BUCKET, name, Some(bytes.len() as u64), None).unwrap();
    key.iter().for_each(|key| writer.encrypt_under(key).unwrap());
    bytes.chunks(5_000).for_each(|chunk| writer.append(chunk).unwrap());
    let info = writer.finish(PutOptions::default()).unwrap();
    assert_eq!(info.named_key.as_deref(), key);
}

fn read(object: &Object, from: u64, to: u64) -> Result<Vec<u8>, StoreError> {
    let mut reader = object.reader(&(from..to));
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.next_chunk(3_000)? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn whole(store: &Store, name: &str) -> Result<Vec<u8>, StoreError> {
    let object = store.object(BUCKET, name, None)?;
    object.check_named_key()?;
    read(&object, 0, object.info().bytes)
}

fn is_revoked<T>(result: &Result<T, StoreError>, key: &str) -> bool {
    matches!(result, Err(StoreError::NamedKeyRevoked { name }) if name == key)
}

#[test]
fn revoking_a_key_locks_its_objects_and_only_those() {
    let Fixture { keys, store, .. } = fixture();
    for len in [0, 1, 1024, 1025, 4096, 50_001] {
        let bytes = content(len as u64 + 1, len);
        put(&store, &format!("one/{len}"), &bytes, Some("one"));
        put(&store, &format!("two/{len}"), &bytes, Some("two"));
        put(&store, &format!("open/{len}"), &bytes, None);
        let object = store.object(BUCKET, &format!("one/{len}"), None).unwrap();
        assert_eq!(object.info().named_key.as_deref(), Some("one"));
        assert!(!object.info().has_customer_key() && object.info().check_key(None).is_ok());
        let len = len as u64;
        for (from, to) in [(0, len), (len / 2, len), (len / 3, len / 3 + (len > 3) as u64)] {
            assert!(read(&object, from, to).unwrap() == bytes[from as usize..to as usize]);
        }
    }
    keys.take_back("one", KeyAway::Revoked);
    for len in [0, 1, 1024, 1025, 4096, 50_001] {
        let bytes = content(len as u64 + 1, len);
        assert!(is_revoked(&whole(&store, &format!("one/{len}")), "one"), "{len}");
        assert!(whole(&store, &format!("two/{len}")).unwrap() == bytes);
        assert!(whole(&store, &format!("open/{len}")).unwrap() == bytes);
        let info = store.head_object(BUCKET, &format!("one/{len}"), None).unwrap();
        assert_eq!(
            (info.bytes, info.named_key.as_deref()),
            (len as u64, Some("one")),
            "what it is may be known"
        );
    }
    let fresh = store.put_object(BUCKET, "new", None, None).unwrap().encrypt_under("one");
    assert!(is_revoked(&fresh, "one"));
    let unknown = store.put_object(BUCKET, "new", None, None).unwrap().encrypt_under("three");
    assert!(matches!(unknown, Err(StoreError::NoSuchNamedKey { .. })));
    store.delete_object(BUCKET, objects::DeleteRequest::of("one/1")).unwrap();

    keys.lend("one", SimulatedKey::new(1));
    assert!(whole(&store, "one/50001").unwrap() == content(50_002, 50_001), "lent again");
    keys.lend("one", SimulatedKey::new(3));
    assert!(
        matches!(whole(&store, "one/4096"), Err(StoreError::WrongNamedKey { .. })),
        "another of that name"
    );
}

#[test]
fn what_is_under_its_way_stops_when_its_key_is_taken_back() {
    let Fixture { keys, store, .. } = fixture();
    let key = SimulatedKey::new(4);
    keys.lend("four", key.clone());
    let bytes = content(7, 50_000);
    put(&store, "k", &bytes, Some("four"));
    let object = store.object(BUCKET, "k", None).unwrap();
    let mut reader = object.reader(&(0..50_000));
    assert!(reader.next_chunk(10_000).unwrap().unwrap() == bytes[..10_000]);
    let mut writer = store.put_object(BUCKET, "late", None, None).unwrap();
    writer.encrypt_under("four").unwrap();
    writer.append(&[1; 9_000]).unwrap();
    key.revoke();
    assert!(is_revoked(&reader.next_chunk(10_000), "four"));
    assert!(is_revoked(&writer.append(&[1; 9_000]), "four"));
    drop(writer);
    assert!(matches!(store.head_object(BUCKET, "late", None), Err(StoreError::NoSuchKey)));
}

fn is_away<T>(result: &Result<T, StoreError>, key: &str) -> bool {
    matches!(result, Err(StoreError::NamedKeyAway { name }) if name == key)
}

#[test]
fn what_a_wipe_or_a_restart_took_is_waited_for() {
    let Fixture { volume, keys, store } = fixture();
    let bytes = content(3, 20_000);
    put(&store, "k", &bytes, Some("one"));
    put(&store, "small", &bytes[..100], Some("one"));
    let before = store.object(BUCKET, "k", None).unwrap();
    keys.take_all_back();
    for name in ["k", "small"] {
        assert!(is_away(&whole(&store, name), "one"));
    }
    assert!(is_away(&read(&before, 0, 10), "one"), "without being asked whether it may");
    let fresh = store.put_object(BUCKET, "new", None, None).unwrap().encrypt_under("one");
    assert!(is_away(&fresh, "one"));
    assert!(store.head_object(BUCKET, "k", None).is_ok(), "the store serves on");
    store.close();

    // After a restart, before the keys are there: none is known by its name.
    let keys = Arc::new(NamedKeys::default());
    keys.set_awaited(2);
    let store = Store::open_with_keys(volume, Arc::clone(&keys)).unwrap();
    assert!(is_away(&whole(&store, "k"), "one"));
    for name in ["one", "three"] {
        assert!(is_away(&store.put_object(BUCKET, "new", None, None).unwrap().encrypt_under(name), name));
    }
    keys.lend("one", SimulatedKey::new(1));
    keys.set_awaited(1);
    assert!(whole(&store, "k").unwrap() == bytes);
    keys.lend("two", SimulatedKey::new(2));
    keys.set_awaited(0);
    let unknown = store.put_object(BUCKET, "new", None, None).unwrap().encrypt_under("three");
    assert!(matches!(unknown, Err(StoreError::NoSuchNamedKey { .. })));
}

#[test]
fn nothing_is_made_under_a_key_that_went_before_the_last_word() {
    let Fixture { keys, store, .. } = fixture();
    let options = UploadOptions { named_key: Some("one".to_owned()), ..UploadOptions::default() };
    let upload = store.create_upload(BUCKET, "m", options).unwrap().id;
    let part = |number| {
        let mut writer = store.upload_part((BUCKET, "m"), &upload, number, None, None).unwrap();
        writer.encrypt(None).unwrap();
        writer.append(&content(1, 9_000)).unwrap();
        writer
    };
    let first = part(1).finish(&Declared::default()).unwrap();
    let (late_part, mut late) = (part(1), store.put_object(BUCKET, "late", None, None).unwrap());
    late.encrypt_under("one").unwrap();
    late.append(b"small").unwrap();
    let listed = || vec![CompletedPart { number: 1, etag: first.etag.to_string(), checksum: None }];
    let complete = || store.complete_upload(BUCKET, "m", &upload, listed(), CompleteOptions::default());

    keys.take_back("one", KeyAway::Revoked);
    assert!(is_revoked(&late.finish(PutOptions::default()), "one"));
    assert!(is_revoked(&late_part.finish(&Declared::default()), "one"));
    assert!(is_revoked(&complete(), "one"));
    // Erased, and another of the same name.
    keys.lend("one", SimulatedKey::new(9));
    assert!(matches!(complete(), Err(StoreError::WrongNamedKey { .. })));
    keys.take_back("one", KeyAway::Sealed);
    assert!(is_away(&complete(), "one"));
    for name in ["late", "m"] {
        assert!(matches!(store.head_object(BUCKET, name, None), Err(StoreError::NoSuchKey)), "{name}");
    }
    // The very key: the upload goes on where it was, also when the answer was lost.
    keys.lend("one", SimulatedKey::new(1));
    assert!(complete().is_ok());
    keys.take_back("one", KeyAway::Revoked);
    assert!(complete().is_ok(), "it was made before");
}

#[test]
fn bodies_are_not_to_be_found_on_the_volume_and_open_in_a_store_that_is_opened_again() {
    let Fixture { volume, keys, store } = fixture();
    let bytes = content(10, 20_000);
    put(&store, "large", &bytes, Some("one"));
    put(&store, "small", &bytes[..500], Some("one"));
    store.close();
    let mut chunk = vec![0; 1 << 20];
    for number in 0..volume.len().0 >> 20 {
        volume.read(ByteOffset(number << 20), &mut chunk).unwrap();
        for piece in [&bytes[8192..8256], &bytes[100..164]] {
            assert!(!chunk.windows(64).any(|window| window == piece));
        }
    }
    let store = Store::open_with_keys(volume.clone(), keys).unwrap();
    assert!(whole(&store, "large").unwrap() == bytes && whole(&store, "small").unwrap() == bytes[..500]);
    store.close();
    let store = Store::open(volume).unwrap();
    assert!(is_revoked(&whole(&store, "large"), "one"), "not pushed yet");
}

#[test]
fn parts_and_copies_are_under_named_keys_too() {
    let Fixture { keys, store, .. } = fixture();
    let options = UploadOptions { named_key: Some("one".to_owned()), ..UploadOptions::default() };
    let upload = store.create_upload(BUCKET, "m", options).unwrap().id;
    let bodies = [content(1, (5 << 20) + 3), content(2, 10_000)];
    let mut listed = Vec::new();
    for (number, body) in (1..).zip(&bodies) {
        let mut writer = store.upload_part((BUCKET, "m"), &upload, number, None, None).unwrap();
        let customers = writer.encrypt(Some(&CustomerKey::new(&[1; 32])));
        assert!(matches!(customers, Err(StoreError::CustomerKeyUnexpected)));
        writer.encrypt(None).unwrap();
        writer.append(body).unwrap();
        let part = writer.finish(&Declared::default()).unwrap();
        assert_eq!(part.named_key.as_deref(), Some("one"));
        listed.push(CompletedPart { number, etag: part.etag.to_string(), checksum: None });
    }
    let bare = store.upload_part((BUCKET, "m"), &upload, 3, None, None).unwrap();
    assert!(bare.finish(&Declared::default()).is_err(), "never in clear");
    let info = store.complete_upload(BUCKET, "m", &upload, listed, CompleteOptions::default()).unwrap();
    assert_eq!(info.named_key.as_deref(), Some("one"));
    let bytes = bodies.concat();
    assert!(whole(&store, "m").unwrap() == bytes);
    let object = store.object(BUCKET, "m", None).unwrap();
    let edge = bodies[0].len() as u64;
    assert!(read(&object, edge - 5, edge + 5).unwrap() == bytes[edge as usize - 5..edge as usize + 5]);

    for (to, key) in [("under-two", Some("two")), ("open", None)] {
        let options = CopyOptions { named_key: key.map(str::to_owned), ..CopyOptions::default() };
        store.copy_object(&object, BUCKET, to, options).unwrap();
    }
    // Onto itself it is not left under the key that it had.
    store.copy_object(&object, BUCKET, "m", CopyOptions::default()).unwrap();
    keys.take_back("one", KeyAway::Revoked);
    for name in ["m", "under-two", "open"] {
        assert!(whole(&store, name).unwrap() == bytes, "{name}");
    }
    assert!(is_revoked(&read(&object, 0, 10), "one"), "what it was before");
    keys.take_back("two", KeyAway::Revoked);
    assert!(is_revoked(&whole(&store, "under-two"), "two") && whole(&store, "open").is_ok());
}
