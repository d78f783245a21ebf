//! What object store formats 2 to 5 added opens, byte for byte. Format 2: versions, delete markers, tags, locks, documents of a
//! bucket, parts with checksums. Format 3: keys that end, groups, policies. Format 4: events that wait. Format 5: objects under named
//! keys. `installation.rs` opens stores of format 1.
//!
//! `NIGHTLATCH_WRITE_GOLDEN=1` makes the file where there is none; it never replaces one.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use device::SimulatedDevice;
use formats_tests::{decode, encode, golden};
use objects::{
    Acl, Attributes, BucketOptions, ChecksumAlgorithm, ChecksumKind, CompleteOptions, CompletedPart,
    Declared, DeleteRequest, Grant, Grantee, Happened, ListRequest, LockMode, Notice, Notices, ObjectLock,
    Permission, Principal, PutOptions, Retention, Store, StoreError, UploadOptions, Versioning,
};
use simulation_tests::node::{NAMED_KEY, SimulatedNode};

const STORE_BYTES: u64 = 16 << 20;
const BUCKET: &str = "versions";
const KEY: &str = "photo/ä";
const KEYED: &str = "keyed";
/// 2100, in milliseconds since 1970.
const FAR: u64 = 4_102_444_800_000;

fn attributes() -> Attributes {
    let retention = Some(Retention { mode: LockMode::Compliance, until_ms: FAR });
    let grant = Grant { grantee: Grantee::Everyone, permission: Permission::Read };
    Attributes {
        tags: vec![("colour".to_owned(), "blue".to_owned())],
        lock: ObjectLock { retention, legal_hold: Some(true) },
        acl: Acl { owner: "alice".to_owned(), grants: Some(vec![grant]) },
    }
}

fn put(store: &Store, bytes: &[u8], attributes: Attributes) {
    let mut writer = store.put_object(BUCKET, KEY, None, None).expect("a writer");
    writer.append(bytes).expect("room");
    writer.finish(PutOptions { attributes, ..PutOptions::default() }).expect("a put");
}

fn write() -> Arc<SimulatedDevice> {
    let node = SimulatedNode::create_with_store(STORE_BYTES);
    let store = node.store();
    store
        .create_bucket(BUCKET, BucketOptions { owner: "alice".into(), ..BucketOptions::default() })
        .expect("a bucket");
    put(store, b"before versions", Attributes::default());
    store.set_versioning(BUCKET, Versioning::Enabled).expect("versions");
    store.set_bucket_lock(BUCKET, None).expect("locks");
    put(store, &[7; 9000], attributes());
    let checksum = Some((ChecksumAlgorithm::Crc32c, ChecksumKind::FullObject));
    let options = UploadOptions { checksum, ..UploadOptions::default() };
    let upload = store.create_upload(BUCKET, KEY, options).expect("an upload").id;
    let mut part = store.upload_part((BUCKET, KEY), &upload, 3, None, None).expect("a part");
    part.append(&[8; 5000]).expect("room");
    let part = part.finish(&Declared::default()).expect("a part");
    let listed = vec![CompletedPart { number: 3, etag: part.etag.to_string(), checksum: None }];
    store.complete_upload(BUCKET, KEY, &upload, listed, CompleteOptions::default()).expect("an object");
    store.delete_object(BUCKET, DeleteRequest::of(KEY)).expect("a delete marker");
    store.set_bucket_document(BUCKET, "policy", Some(b"{}".to_vec())).expect("a document");
    let key = store.create_user("alice").expect("a user");
    store.set_access_key_expiry(&key.id, Some(UNIX_EPOCH + Duration::from_millis(FAR))).expect("an expiry");
    store.create_group("staff").expect("a group");
    store.put_policy("reads", "{}").expect("a policy");
    store.set_attached("reads", Principal::Group("staff".into()), true).expect("an attached policy");
    store.set_membership("alice", "staff", true).expect("a member");
    let notice = |destination: &str| Notice {
        happened: Happened::Changed,
        event: "ObjectTagging:Put",
        destination: destination.to_owned(),
        configuration: "rule".to_owned(),
    };
    let to = vec![notice("hook"), notice("gone")];
    let notices = Notices { to, user: "alice".into(), address: "::1".into(), request: "R1".into() };
    store.note(BUCKET, notices).expect("events");
    put_under_key(store);
    let place = store.waiting_events("gone", 1).expect("events")[0].0;
    store.settle_events("gone", vec![place], true).expect("a dead letter");
    node.power_cut(1)
}

/// What format 3 added.
fn check_identities(store: &Store) {
    let users = store.users().expect("users");
    let expiries: Vec<_> = users[0].access_keys.iter().map(|key| key.expires).collect();
    assert_eq!(expiries, [Some(UNIX_EPOCH + Duration::from_millis(FAR))]);
    assert!(users[0].limited && users[0].groups == ["staff"]);
    let credential = store.credential(&users[0].access_keys[0].id).expect("a read").expect("the key");
    assert_eq!((credential.user.as_str(), credential.policies), ("alice", vec!["{}".to_owned()]));
}

/// What format 4 added.
fn check_events(store: &Store) {
    let waiting = store.waiting_events("hook", 10).expect("events");
    let dead = store.dead_events("gone", 10).expect("dead letters");
    let (_, event) = &waiting[0];
    assert_eq!((waiting.len(), dead.len()), (1, 1));
    assert_eq!((event.name.as_str(), event.bucket.as_str()), ("ObjectTagging:Put", BUCKET));
    let asked = (event.user.as_str(), event.address.as_str(), event.request.as_str());
    assert_eq!((asked, event.owner.as_str()), (("alice", "::1", "R1"), "alice"));
}

/// What format 5 added.
fn put_under_key(store: &Store) {
    store.create_bucket(KEYED, BucketOptions::default()).expect("a bucket");
    let mut writer = store.put_object(KEYED, "photo", None, None).expect("a writer");
    writer.encrypt_under(NAMED_KEY).expect("a key");
    writer.append(&[5; 5000]).expect("room");
    writer.finish(PutOptions::default()).expect("a put");
    let options = UploadOptions { named_key: Some(NAMED_KEY.to_owned()), ..UploadOptions::default() };
    store.create_upload(KEYED, "begun", options).expect("an upload");
}

fn check_keys(store: &Store) {
    let object = store.object(KEYED, "photo", None).expect("the object");
    assert_eq!(object.info().named_key.as_deref(), Some(NAMED_KEY));
    object.check_named_key().expect("the key");
    let body = object.reader(&(0..5000)).next_chunk(1 << 20).expect("a read").expect("bytes");
    assert_eq!(body, vec![5_u8; 5000]);
    let uploads = store.list_uploads(KEYED, &ListRequest { limit: 10, ..ListRequest::default() }, None);
    let upload = uploads.expect("a listing").uploads.remove(0).id;
    let mut part = store.upload_part((KEYED, "begun"), &upload, 1, None, None).expect("a part");
    part.encrypt(None).expect("the key");
    part.append(&[6; 6000]).expect("room");
    let part = part.finish(&Declared::default()).expect("a part");
    assert_eq!(part.named_key.as_deref(), Some(NAMED_KEY));
}

fn check(device: Arc<SimulatedDevice>, format: u32) {
    let node = SimulatedNode::open(device, None).unwrap_or_else(|error| panic!("it does not open: {error}"));
    let store = node.store();
    if format >= 3 {
        check_identities(store);
    }
    if format >= 5 {
        check_keys(store);
    }
    match format {
        4.. => check_events(store),
        _ => assert!(store.event_counts().expect("events").is_empty()),
    }
    let (bucket, documents) = store.bucket_with_documents(BUCKET).expect("the bucket");
    assert_eq!((bucket.owner.as_str(), bucket.versioning), ("alice", Versioning::Enabled));
    assert!(bucket.lock.enabled && documents == [("policy".to_owned(), b"{}".to_vec())]);
    let request = ListRequest { limit: 10, ..ListRequest::default() };
    let versions = store.list_versions(BUCKET, &request, None).expect("a listing").versions;
    let shapes: Vec<_> =
        versions.iter().map(|entry| (entry.info.bytes, entry.delete_marker, entry.is_latest)).collect();
    assert_eq!(shapes, [(0, true, true), (5000, false, false), (9000, false, false), (15, false, false)]);
    let parts = store.object(BUCKET, KEY, Some(versions[1].version)).expect("the parts");
    assert_eq!((parts.parts()[0].number, parts.parts()[0].checksum.is_some()), (3, true));
    assert_eq!(
        store.head_object(BUCKET, KEY, Some(versions[2].version)).expect("the head").attributes,
        attributes()
    );
    for (entry, byte) in versions[1..3].iter().zip([8_u8, 7]) {
        let object = store.object(BUCKET, KEY, Some(entry.version)).expect("the version");
        let mut reader = object.reader(&(0..entry.info.bytes));
        let body = reader.next_chunk(1 << 20).expect("a read").expect("bytes");
        assert!(body.len() as u64 == entry.info.bytes && body.iter().all(|found| *found == byte));
    }
    let locked = DeleteRequest { version: Some(versions[2].version), ..DeleteRequest::of(KEY) };
    assert!(matches!(store.delete_object(BUCKET, locked), Err(StoreError::Locked)));
    // And it goes on living.
    put(store, b"new", Attributes::default());
}

#[test]
fn stores_of_versions_2_to_5_open() {
    for format in 2..=5 {
        let path = golden(&format!("objects-{format}.bin"));
        if std::env::var_os("NIGHTLATCH_WRITE_GOLDEN").is_some() && !path.exists() {
            std::fs::write(&path, encode(&write())).expect("a writable golden folder");
        }
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        check(decode(&bytes).expect("a golden device"), format);
    }
}

#[test]
fn a_store_of_today_passes() {
    check(write(), 5);
}
