//! Bodies under keys of their customers: read with the key only, and not to be found on the volume.

use crate::workload::content;
use objects::simulated::SimulatedVolume;
use objects::{
    BlockVolume, BucketOptions, CompleteOptions, CompletedPart, CopyOptions, CustomerKey, Declared, Object,
    PutOptions, Store, StoreError, UploadOptions,
};
use units::{ByteLen, ByteOffset};

const BUCKET: &str = "customers";

fn key(byte: u8) -> CustomerKey {
    CustomerKey::new(&[byte; 32])
}

fn store() -> (SimulatedVolume, std::sync::Arc<Store>) {
    let volume = SimulatedVolume::new(ByteLen(64 << 20));
    let store = Store::open(volume.clone()).unwrap();
    store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
    (volume, store)
}

fn put(store: &Store, name: &str, bytes: &[u8], key: Option<&CustomerKey>) {
    let mut writer = store.put_object(BUCKET, name, Some(bytes.len() as u64), None).unwrap();
    key.iter().for_each(|key| writer.encrypt(key));
    bytes.chunks(5_000).for_each(|chunk| writer.append(chunk).unwrap());
    writer.finish(PutOptions::default()).unwrap();
}

fn read(object: &Object, from: u64, to: u64) -> Result<Vec<u8>, StoreError> {
    let mut reader = object.reader(&(from..to));
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.next_chunk(3_000)? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Whether any sector of the volume holds this piece of a body.
fn lies_open(volume: &SimulatedVolume, piece: &[u8]) -> bool {
    let mut chunk = vec![0; 1 << 20];
    (0..volume.len().0 >> 20).any(|number| {
        volume.read(ByteOffset(number << 20), &mut chunk).unwrap();
        chunk.windows(piece.len()).any(|window| window == piece)
    })
}

#[test]
fn a_body_is_read_with_its_key_only_and_every_range_alike() {
    let (volume, store) = store();
    for len in [0, 1, 1024, 1025, 4096, 50_001] {
        let bytes = content(len as u64 + 1, len);
        put(&store, "k", &bytes, Some(&key(1)));
        let mut object = store.object(BUCKET, "k", None).unwrap();
        assert!(object.info().has_customer_key());
        assert!(matches!(object.unlock(None), Err(StoreError::CustomerKeyNeeded)));
        assert!(matches!(object.unlock(Some(&key(2))), Err(StoreError::WrongCustomerKey)));
        if len > 0 {
            assert!(
                matches!(read(&object, 0, len as u64), Err(StoreError::CustomerKeyNeeded)),
                "still locked"
            );
        }
        object.unlock(Some(&key(1))).unwrap();
        let len = len as u64;
        for (from, to) in [(0, len), (len / 2, len), (len / 3, len / 3 + (len > 3) as u64)] {
            assert!(
                read(&object, from, to).unwrap() == bytes[from as usize..to as usize],
                "{len} {from} {to}"
            );
        }
    }
    let bytes = content(9, 20_000);
    put(&store, "open", &bytes, None);
    assert!(lies_open(&volume, &bytes[8192..8256]), "the search finds what is there");
    let bytes = content(10, 20_000);
    put(&store, "sealed", &bytes, Some(&key(1)));
    put(&store, "small", &bytes[..500], Some(&key(1)));
    assert!(!lies_open(&volume, &bytes[8192..8256]) && !lies_open(&volume, &bytes[100..164]));
    let refused = store.object(BUCKET, "open", None).unwrap().unlock(Some(&key(1)));
    assert!(matches!(refused, Err(StoreError::CustomerKeyUnexpected)));
}

#[test]
fn parts_and_copies_take_keys_too() {
    let (_, store) = store();
    let options = UploadOptions { customer_key: Some(key(1)), ..UploadOptions::default() };
    let upload = store.create_upload(BUCKET, "m", options).unwrap().id;
    let bodies = [content(1, (5 << 20) + 3), content(2, 10_000)];
    let mut listed = Vec::new();
    for (number, body) in (1..).zip(&bodies) {
        let mut writer = store.upload_part((BUCKET, "m"), &upload, number, None, None).unwrap();
        assert!(matches!(writer.encrypt(None), Err(StoreError::CustomerKeyNeeded)));
        assert!(matches!(writer.encrypt(Some(&key(2))), Err(StoreError::WrongCustomerKey)));
        writer.encrypt(Some(&key(1))).unwrap();
        writer.append(body).unwrap();
        let part = writer.finish(&Declared::default()).unwrap();
        listed.push(CompletedPart { number, etag: part.etag.to_string(), checksum: None });
    }
    let bare = store.upload_part((BUCKET, "m"), &upload, 3, None, None).unwrap();
    assert!(matches!(bare.finish(&Declared::default()), Err(StoreError::CustomerKeyNeeded)));
    let complete = |customer_key| {
        let options = CompleteOptions { customer_key, ..CompleteOptions::default() };
        store.complete_upload(BUCKET, "m", &upload, listed.clone(), options)
    };
    assert!(matches!(complete(None), Err(StoreError::CustomerKeyNeeded)));
    assert!(matches!(complete(Some(key(2))), Err(StoreError::WrongCustomerKey)));
    complete(Some(key(1))).unwrap();
    let mut object = store.object(BUCKET, "m", None).unwrap();
    object.unlock(Some(&key(1))).unwrap();
    let whole = bodies.concat();
    assert!(read(&object, 0, whole.len() as u64).unwrap() == whole);
    let edge = bodies[0].len() as u64;
    assert!(read(&object, edge - 5, edge + 5).unwrap() == whole[edge as usize - 5..edge as usize + 5]);

    let options = CopyOptions { customer_key: Some(key(3)), ..CopyOptions::default() };
    store.copy_object(&object, BUCKET, "copy", options).unwrap();
    let mut copy = store.object(BUCKET, "copy", None).unwrap();
    assert!(copy.unlock(Some(&key(1))).is_err());
    copy.unlock(Some(&key(3))).unwrap();
    assert!(read(&copy, 0, whole.len() as u64).unwrap() == whole);
    store.copy_object(&copy, BUCKET, "copy", CopyOptions::default()).unwrap();
    let mut open = store.object(BUCKET, "copy", None).unwrap();
    open.unlock(None).unwrap();
    assert!(read(&open, 0, whole.len() as u64).unwrap() == whole);
}
