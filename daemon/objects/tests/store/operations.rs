//! Single operations at their limits and one past them.

use std::sync::Arc;

use crate::workload::{content, get, list_all, put};
use objects::limits::*;
use objects::simulated::{SimulatedVolume, SplitMix64};
use objects::{
    BucketOptions, Checksum, ChecksumAlgorithm, ChecksumKind, CompleteOptions, CompletedPart, Condition,
    CopyOptions, Declared, DeleteRequest, DigestKind, ListRequest, Metadata, PutOptions, Store, StoreError,
    TagMatch, UploadOptions, Versioning,
};
use units::ByteLen;

const BUCKET: &str = "bucket";

fn store() -> (SimulatedVolume, Arc<Store>) {
    let volume = SimulatedVolume::new(ByteLen(256 << 20));
    let store = Store::open(volume.clone()).unwrap();
    store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
    (volume, store)
}

fn put_plain(store: &Store, key: &str, bytes: &[u8]) -> objects::ObjectInfo {
    put(store, BUCKET, key, bytes, Condition::default(), &mut SplitMix64(1)).unwrap()
}

fn put_if(store: &Store, key: &str, bytes: &[u8], condition: Condition) -> Result<(), StoreError> {
    put(store, BUCKET, key, bytes, condition, &mut SplitMix64(1)).map(drop)
}

fn if_match(tag: &str) -> Condition {
    Condition { if_match: Some(TagMatch::Tag(tag.to_owned())), ..Condition::default() }
}

fn if_absent() -> Condition {
    Condition { if_none_match: Some(TagMatch::Any), ..Condition::default() }
}

#[test]
fn conditions_are_checked_in_the_commit_so_exactly_one_of_many_writers_wins() {
    let (_, store) = store();
    let winners: usize = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8_u8)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || usize::from(put_if(store, "once", &[writer; 2_000], if_absent()).is_ok()))
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).sum()
    });
    assert_eq!(winners, 1);
    let etag = store.head_object(BUCKET, "once", None).unwrap().etag.to_string();
    assert!(matches!(
        put_if(&store, "once", b"x", if_match("no such tag")),
        Err(StoreError::PreconditionFailed)
    ));
    assert!(matches!(put_if(&store, "other", b"x", if_match(&etag)), Err(StoreError::NoSuchKey)));
    let unlike = Condition { if_none_match: Some(TagMatch::Tag(etag.clone())), ..Condition::default() };
    assert!(matches!(put_if(&store, "once", b"x", unlike), Err(StoreError::PreconditionFailed)));
    put_if(&store, "once", b"x", if_match(&etag)).unwrap();
    let stale = store
        .delete_object(BUCKET, DeleteRequest { condition: if_match(&etag), ..DeleteRequest::of("once") });
    assert!(matches!(stale, Err(StoreError::PreconditionFailed)));
    assert_eq!(get(&store, BUCKET, "once").unwrap(), b"x");
}

#[test]
fn an_open_object_outlives_overwrite_delete_and_reuse_of_space() {
    let (volume, store) = store();
    let bytes = content(1, 1 << 20);
    put_plain(&store, "k", &bytes);
    let object = store.object(BUCKET, "k", None).unwrap();
    let before = volume.allocated_sectors();
    put_plain(&store, "k", &content(2, 1 << 20));
    store.delete_object(BUCKET, DeleteRequest::of("k")).unwrap();
    for number in 0..20 {
        put_plain(&store, &format!("other/{number}"), &content(100 + number, 1 << 20));
    }
    store.wait_until_reclaimed();
    let mut reader = object.reader(&(0..1 << 20));
    drop(object);
    assert!(reader.next_chunk(1 << 20).unwrap().unwrap() == bytes, "its sectors were given to somebody else");
    let free = store.status().unwrap().free;
    drop(reader);
    store.wait_until_reclaimed();
    assert_eq!(store.status().unwrap().free.0 - free.0, 1 << 20, "and are free once nobody reads");
    assert!(volume.allocated_sectors() > before);
}

#[test]
fn names_and_metadata_are_limited() {
    let (_, store) = store();
    put_plain(&store, &"k".repeat(KEY_BYTES_MAX), b"x");
    let result = store.put_object(BUCKET, &"k".repeat(KEY_BYTES_MAX + 1), None, None);
    assert!(matches!(result, Err(StoreError::InvalidKey)));
    let with_user_bytes = |bytes: usize| {
        let user = vec![("n".to_owned(), "v".repeat(bytes - 1))];
        let writer = store.put_object(BUCKET, "m", None, None).unwrap();
        writer.finish(PutOptions {
            metadata: Metadata { user, ..Metadata::default() },
            ..PutOptions::default()
        })
    };
    assert!(with_user_bytes(USER_METADATA_BYTES_MAX).is_ok());
    assert!(matches!(with_user_bytes(USER_METADATA_BYTES_MAX + 1), Err(StoreError::MetadataTooLarge)));
    let keys = vec![DeleteRequest::of("k"); DELETE_KEYS_MAX + 1];
    assert!(matches!(store.delete_objects(BUCKET, &keys), Err(StoreError::TooManyKeys)));
    assert!(matches!(store.put_object("nowhere", "k", None, None), Err(StoreError::NoSuchBucket)));
}

#[test]
fn a_body_must_have_the_length_and_digests_that_were_declared() {
    let (_, store) = store();
    assert!(matches!(
        store.put_object(BUCKET, "k", Some(PUT_BYTES_MAX + 1), None),
        Err(StoreError::TooLarge { .. })
    ));
    let mut long = store.put_object(BUCKET, "k", Some(3), None).unwrap();
    assert!(matches!(long.append(b"four"), Err(StoreError::LengthMismatch { .. })));
    let mut short = store.put_object(BUCKET, "k", Some(5), None).unwrap();
    short.append(b"four").unwrap();
    assert!(matches!(short.finish(PutOptions::default()), Err(StoreError::LengthMismatch { .. })));
    let finish_with = |value: [u8; 4]| {
        let mut writer = store.put_object(BUCKET, "k", None, Some(ChecksumAlgorithm::Crc32)).unwrap();
        writer.append(b"123456789").unwrap();
        let checksum = Checksum::of_bytes(ChecksumAlgorithm::Crc32, value.to_vec());
        let declared = Declared { md5: None, checksum };
        writer.finish(PutOptions { declared, ..PutOptions::default() })
    };
    let wrong = finish_with([0; 4]);
    assert!(matches!(wrong, Err(StoreError::DigestMismatch(DigestKind::Checksum))));
    assert!(matches!(store.head_object(BUCKET, "k", None), Err(StoreError::NoSuchKey)));
    let info = finish_with([0xcb, 0xf4, 0x39, 0x26]).unwrap();
    assert_eq!(store.head_object(BUCKET, "k", None).unwrap(), info);
}

fn part(store: &Store, upload: &str, number: u16, bytes: &[u8]) -> CompletedPart {
    let mut writer = store.upload_part((BUCKET, "m"), upload, number, None, None).unwrap();
    writer.append(bytes).unwrap();
    let info = writer.finish(&Declared::default()).unwrap();
    CompletedPart { number, etag: info.etag.to_string(), checksum: info.checksum }
}

#[test]
fn completing_checks_order_etags_and_sizes_and_frees_what_is_not_listed() {
    let (_, store) = store();
    let free = store.status().unwrap().free;
    let upload = store.create_upload(BUCKET, "m", UploadOptions::default()).unwrap().id;
    let big = content(1, PART_BYTES_MIN as usize);
    let (first, replaced, extra) = (
        part(&store, &upload, 1, &big),
        part(&store, &upload, 2, b"old"),
        part(&store, &upload, 9, b"unlisted"),
    );
    let second = part(&store, &upload, 2, b"tail");
    let complete = |parts: Vec<CompletedPart>| {
        store.complete_upload(BUCKET, "m", &upload, parts, CompleteOptions::default())
    };
    assert!(matches!(complete(vec![]), Err(StoreError::InvalidPartOrder)));
    assert!(matches!(complete(vec![second.clone(), first.clone()]), Err(StoreError::InvalidPartOrder)));
    assert!(matches!(complete(vec![first.clone(), first.clone()]), Err(StoreError::InvalidPartOrder)));
    assert!(matches!(complete(vec![first.clone(), replaced]), Err(StoreError::InvalidPart { number: 2 })));
    let missing = CompletedPart { number: 3, ..first.clone() };
    assert!(matches!(complete(vec![first.clone(), missing]), Err(StoreError::InvalidPart { number: 3 })));
    assert!(matches!(complete(vec![second.clone(), extra]), Err(StoreError::PartTooSmall { number: 2 })));
    let info = complete(vec![first.clone(), second.clone()]).unwrap();
    assert_eq!(info.bytes, PART_BYTES_MIN + 4);
    assert!(info.etag.to_string().ends_with("-2"));
    assert_eq!(get(&store, BUCKET, "m").unwrap(), [big.as_slice(), b"tail"].concat());

    let object = store.object(BUCKET, "m", None).unwrap();
    assert_eq!(object.part(2).unwrap(), PART_BYTES_MIN..PART_BYTES_MIN + 4);
    assert_eq!(object.part(3), None);
    let mut across = object.reader(&(PART_BYTES_MIN - 2..PART_BYTES_MIN + 2));
    assert_eq!(across.next_chunk(100).unwrap().unwrap(), [&big[big.len() - 2..], b"ta"].concat());
    drop((object, across));

    // The reply was lost; the client completes again.
    assert_eq!(complete(vec![first, second]).unwrap().etag, info.etag);
    store.delete_object(BUCKET, DeleteRequest::of("m")).unwrap();
    store.wait_until_reclaimed();
    assert_eq!(store.status().unwrap().free, free);
    assert!(matches!(store.abort_upload(BUCKET, "m", &upload), Err(StoreError::NoSuchUpload)));
}

#[test]
fn part_numbers_and_upload_ids_are_checked() {
    let (_, store) = store();
    let upload = store.create_upload(BUCKET, "m", UploadOptions::default()).unwrap().id;
    for number in [0, PART_NUMBER_MAX + 1] {
        let result = store.upload_part((BUCKET, "m"), &upload, number, None, None);
        assert!(matches!(result, Err(StoreError::InvalidPartNumber)));
    }
    store.upload_part((BUCKET, "m"), &upload, PART_NUMBER_MAX, None, None).unwrap();
    for id in ["", "xyz", &"f".repeat(33), &"0".repeat(32), "+0000000000000000000000000000000"] {
        assert!(matches!(store.parts(BUCKET, "m", id, 0, 10), Err(StoreError::NoSuchUpload)), "{id}");
    }
    assert!(matches!(store.parts(BUCKET, "another key", &upload, 0, 10), Err(StoreError::NoSuchUpload)));
    let late = store.upload_part((BUCKET, "m"), &upload, 1, None, None).unwrap();
    store.abort_upload(BUCKET, "m", &upload).unwrap();
    assert!(matches!(late.finish(&Declared::default()), Err(StoreError::NoSuchUpload)));
}

#[test]
fn a_bucket_goes_with_its_unfinished_uploads_and_their_space() {
    let (_, store) = store();
    let free = store.status().unwrap().free;
    let upload = store.create_upload(BUCKET, "m", UploadOptions::default()).unwrap().id;
    part(&store, &upload, 1, &content(3, 100_000));
    let late = store.upload_part((BUCKET, "m"), &upload, 2, None, None).unwrap();
    store.delete_bucket(BUCKET).unwrap();
    assert!(matches!(late.finish(&Declared::default()), Err(StoreError::NoSuchBucket)));
    store.wait_until_reclaimed();
    let status = store.status().unwrap();
    assert_eq!((status.free, status.uploads), (free, 0));
}

#[test]
fn checksums_of_parts_become_the_checksum_of_the_object() {
    let (_, store) = store();
    let bytes = content(4, PART_BYTES_MIN as usize + 1000);
    let (head, tail) = bytes.split_at(PART_BYTES_MIN as usize);
    for kind in [ChecksumKind::FullObject, ChecksumKind::Composite] {
        let checksum = Some((ChecksumAlgorithm::Crc32c, kind));
        let wanted = UploadOptions { checksum, ..UploadOptions::default() };
        let upload = store.create_upload(BUCKET, "m", wanted).unwrap().id;
        let parts = vec![part(&store, &upload, 1, head), part(&store, &upload, 2, tail)];
        assert!(parts[0].checksum.is_some(), "a part gets the checksum that its upload asks for");
        let options = |checksum| CompleteOptions { checksum, ..CompleteOptions::default() };
        let wrong = Checksum::of_bytes(ChecksumAlgorithm::Crc32c, vec![1; 4]);
        let refused = store.complete_upload(BUCKET, "m", &upload, parts.clone(), options(wrong));
        assert!(matches!(refused, Err(StoreError::DigestMismatch(DigestKind::Checksum))));
        let whole =
            Checksum::of_bytes(ChecksumAlgorithm::Crc32c, crc32c::crc32c(&bytes).to_be_bytes().to_vec());
        let declared = (kind == ChecksumKind::FullObject).then_some(whole).flatten();
        let info = store.complete_upload(BUCKET, "m", &upload, parts, options(declared.clone())).unwrap();
        let checksum = info.checksum.unwrap();
        assert_eq!(checksum.kind(), kind);
        assert!(declared.is_none_or(|declared| declared == checksum));
    }
    let refused = store.create_upload(
        BUCKET,
        "m",
        UploadOptions {
            checksum: Some((ChecksumAlgorithm::Sha1, ChecksumKind::FullObject)),
            ..UploadOptions::default()
        },
    );
    assert!(matches!(refused, Err(StoreError::InvalidChecksum)));
}

#[test]
fn uploads_are_listed_by_key_and_age_in_pages() {
    let (_, store) = store();
    let mut ids = Vec::new();
    for key in ["a", "b/1", "b/2", "c", "c"] {
        ids.push(store.create_upload(BUCKET, key, UploadOptions::default()).unwrap().id);
    }
    let mut request = ListRequest { delimiter: "/".into(), limit: 1, ..ListRequest::default() };
    let (mut seen, mut after_upload) = (Vec::new(), None);
    loop {
        let page = store.list_uploads(BUCKET, &request, after_upload.as_deref()).unwrap();
        seen.extend(page.uploads.iter().map(|upload| upload.key.clone()));
        seen.extend(page.prefixes);
        match page.next {
            Some((key, upload)) => (request.after, after_upload) = (Some(key), upload),
            None => break,
        }
    }
    assert_eq!(seen, ["a", "b/", "c", "c"]);
    let page = store.parts(BUCKET, "a", &ids[0], 0, 10).unwrap();
    assert!(page.parts.is_empty() && !page.truncated);
}

#[test]
fn copies_are_whole_and_a_copy_onto_itself_moves_nothing() {
    let (volume, store) = store();
    let bytes = content(8, 3 << 20);
    let info = put_plain(&store, "from", &bytes);
    let source = store.object(BUCKET, "from", None).unwrap();
    let copy = store.copy_object(&source, BUCKET, "to", CopyOptions::default()).unwrap();
    assert_eq!((copy.etag, copy.metadata), (info.etag, info.metadata.clone()));
    assert!(get(&store, BUCKET, "to").unwrap() == bytes);
    let sectors = volume.allocated_sectors();
    let metadata = Metadata { content_type: Some("text/plain".into()), ..Metadata::default() };
    let replace = || CopyOptions { metadata: Some(metadata.clone()), ..CopyOptions::default() };
    let changed = store.copy_object(&source, BUCKET, "from", replace()).unwrap();
    assert_eq!((changed.etag, &changed.metadata), (info.etag, &metadata));
    assert!(volume.allocated_sectors() < sectors + 64, "the body was copied");
    put_plain(&store, "from", b"changed meanwhile");
    let stale = store.copy_object(&source, BUCKET, "from", replace());
    assert!(matches!(stale, Err(StoreError::Conflict)));
    assert_eq!(get(&store, BUCKET, "from").unwrap(), b"changed meanwhile");
    let upload = store.create_upload(BUCKET, "m", UploadOptions::default()).unwrap().id;
    let part =
        store.copy_part(&source, &(1..1 + PART_BYTES_MIN / 2), (BUCKET, "m"), (&upload, None), 1).unwrap();
    assert_eq!(part.bytes, PART_BYTES_MIN / 2);
}

#[test]
fn users_have_keys_that_are_shown_once() {
    let (_, store) = store();
    let first = store.create_user("alice").unwrap();
    assert!(matches!(store.create_user("alice"), Err(StoreError::UserExists)));
    assert!(matches!(store.create_access_key("bob"), Err(StoreError::NoSuchUser)));
    assert!(matches!(store.create_user("no spaces"), Err(StoreError::InvalidUserName)));
    let second = store.create_access_key("alice").unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!((first.id.len(), first.secret.expose().len()), (20, 40));
    let users = store.users().unwrap();
    assert_eq!((users.len(), users[0].access_keys.len()), (1, 2));
    for _ in 2..ACCESS_KEYS_PER_USER_MAX {
        store.create_access_key("alice").unwrap();
    }
    assert!(matches!(store.create_access_key("alice"), Err(StoreError::TooManyUsers)));
    store.delete_access_key(&first.id).unwrap();
    assert!(store.credential(&first.id).unwrap().is_none());
    assert!(store.credential(&second.id).unwrap().is_some());
    store.delete_user("alice").unwrap();
    assert!(store.users().unwrap().is_empty());
    assert!(matches!(store.delete_user("alice"), Err(StoreError::NoSuchUser)));
}

#[test]
fn a_listing_skips_what_a_prefix_hides() {
    let (_, store) = store();
    for number in 0..300 {
        put_plain(&store, &format!("dir-{}/{number:03}", number % 3), b"");
    }
    let request = ListRequest { delimiter: "/".into(), limit: 2, ..ListRequest::default() };
    let (keys, prefixes) = list_all(&store, BUCKET, &request).unwrap();
    assert!(keys.is_empty());
    assert_eq!(prefixes, ["dir-0/", "dir-1/", "dir-2/"]);
    let none = ListRequest { limit: 0, ..ListRequest::default() };
    assert_eq!(store.list_objects(BUCKET, &none).unwrap(), objects::ObjectsPage::default());
}

#[test]
fn a_reference_means_the_bucket_it_was_made_of_and_no_other_of_its_name() {
    let store = Store::open(SimulatedVolume::new(ByteLen(64 << 20))).unwrap();
    store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
    let old = store.bucket(BUCKET).unwrap().reference();
    let mut writer = store.put_object(BUCKET, "k", None, None).unwrap();
    writer.append(b"for the old one").unwrap();
    let gone = |error: StoreError| assert!(matches!(error, StoreError::NoSuchBucket), "{error}");
    store.delete_bucket(&old).unwrap();
    store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
    gone(writer.finish(PutOptions::default()).unwrap_err());
    gone(store.bucket(&old).unwrap_err());
    gone(store.set_bucket_document(&old, "d", Some(Vec::new())).unwrap_err());
    gone(store.set_versioning(&old, Versioning::Enabled).unwrap_err());
    gone(store.put_object(&old, "k", None, None).unwrap_err());
    gone(store.create_upload(&old, "k", UploadOptions::default()).unwrap_err());
    gone(store.delete_object(&old, DeleteRequest::of("k")).unwrap_err());
    gone(store.list_objects(&old, &ListRequest { limit: 1, ..ListRequest::default() }).unwrap_err());
    gone(store.head_object(&old, "k", None).unwrap_err());
    gone(store.delete_bucket(&old).unwrap_err());
    assert_eq!(store.bucket(BUCKET).unwrap().versioning, Versioning::Unversioned);
}
