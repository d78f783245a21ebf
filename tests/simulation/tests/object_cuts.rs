//! Each change of the object store, power cut at every device operation under it, one after the other.
//!
//! The node is the real one: pool, sealing with real keys, object store; the device drops, reorders and tears what was not
//! flushed. After each cut the store is read out whole, every version byte for byte, with uploads and users. What was
//! acknowledged is there; what was not is there whole or not at all, and nothing else has changed. Then the store must go on:
//! what is written next may not take space that something still refers to.

use std::collections::BTreeMap;
use std::sync::Arc;

use device::SimulatedDevice;
use harness::slice::Slice;
use objects::{
    BucketOptions, CompleteOptions, CompletedPart, CopyOptions, Declared, DeleteRequest, ListRequest,
    Metadata, Principal, PutOptions, Store, StoreError, UploadOptions, VersionId, Versioning,
};
use simulation_tests::node::SimulatedNode;

/// Cuts that `make test` makes at least.
const CUTS_MIN: u64 = 1_000;

/// Seconds of `make test` that the rounds take; each is a cut at every operation of every change.
const SLICE_SECONDS: u64 = 5;

/// Small, so that copies of the device are.
const STORE_BYTES: u64 = 64 << 20;

const PLAIN: &str = "plain";
const KEPT: &str = "kept";

/// Lengths around what is kept in the index, what fills sectors and what takes several runs.
const LENGTHS: [usize; 4] = [700, 4096, 9_001, 150_000];

fn body(tag: u64, len: usize) -> Vec<u8> {
    let mut state = tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.push(state.to_le_bytes()[3]);
    }
    bytes
}

fn put(store: &Store, bucket: &str, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let mut writer = store.put_object(bucket, key, Some(bytes.len() as u64), None)?;
    bytes.chunks(64 << 10).try_for_each(|chunk| writer.append(chunk))?;
    writer.finish(PutOptions::default()).map(drop)
}

fn part(
    store: &Store,
    key: &str,
    upload: &str,
    number: u16,
    bytes: &[u8],
) -> Result<CompletedPart, StoreError> {
    let mut writer = store.upload_part((PLAIN, key), upload, number, None, None)?;
    bytes.chunks(64 << 10).try_for_each(|chunk| writer.append(chunk))?;
    let part = writer.finish(&Declared::default())?;
    Ok(CompletedPart { number, etag: part.etag.to_string(), checksum: None })
}

/// What an operation works on, as [`base`] left it.
struct Ground {
    /// Upload of `parts` with part 1, to be completed, and part 2, to be left out.
    upload: String,
    listed: Vec<CompletedPart>,
    /// Oldest version of `k` in the bucket that keeps versions.
    oldest: VersionId,
    access_key: String,
}

/// A store with something of everything, durable.
fn base() -> (Arc<SimulatedDevice>, Ground) {
    let node = SimulatedNode::create_with_store(STORE_BYTES);
    let store = node.store();
    let prepare = || -> Result<Ground, StoreError> {
        store.create_bucket(PLAIN, BucketOptions::default())?;
        store.create_bucket(KEPT, BucketOptions::default())?;
        store.set_versioning(KEPT, Versioning::Enabled)?;
        for (tag, len) in (1..).zip(LENGTHS) {
            put(store, PLAIN, &format!("old-{len}"), &body(tag, len))?;
            put(store, KEPT, "k", &body(10 + tag, len))?;
        }
        for number in 0..8 {
            put(store, PLAIN, &format!("many/{number}"), &body(20 + number, 5_000))?;
        }
        let upload = store.create_upload(PLAIN, "parts", UploadOptions::default())?.id;
        let listed = vec![part(store, "parts", &upload, 1, &body(30, 30_000))?];
        part(store, "parts", &upload, 2, &body(31, 10_000))?;
        let access_key = store.create_user("alice")?.id;
        store.put_policy("reads", "{}")?;
        let versions =
            store.list_versions(KEPT, &ListRequest { limit: 9, ..ListRequest::default() }, None)?;
        let oldest = versions.versions.last().expect("versions").version;
        Ok(Ground { upload, listed, oldest, access_key })
    };
    let ground = prepare().expect("a store");
    (node.power_cut(1), ground)
}

type Dump = BTreeMap<String, String>;

/// Everything that clients can see, without what differs from one run of an operation to the next.
fn dump(store: &Store) -> Result<Dump, StoreError> {
    let mut seen = Dump::new();
    let all = ListRequest { limit: 1_000, tags: true, ..ListRequest::default() };
    for bucket in store.buckets()? {
        let name = bucket.name;
        let (info, documents) = store.bucket_with_documents(&name)?;
        seen.insert(format!("bucket {name}"), format!("{:?} {documents:?}", info.versioning));
        for (age, entry) in store.list_versions(&name, &all, None)?.versions.into_iter().enumerate() {
            let read = if entry.delete_marker {
                "mark".to_owned()
            } else {
                content(store, &name, &entry.key, entry.version)?
            };
            let metadata = match entry.delete_marker {
                true => Vec::new(),
                false => store.head_object(&name, &entry.key, Some(entry.version))?.metadata.user,
            };
            let tags = &entry.info.tags;
            let line = format!("{} latest {} {read} {tags:?} {metadata:?}", entry.key, entry.is_latest);
            seen.insert(format!("version {name} {age:03}"), line);
        }
        let listed = store.list_objects(&name, &all)?.objects;
        let keys: Vec<_> = listed.into_iter().map(|(key, info)| (key, info.etag.to_string())).collect();
        seen.insert(format!("listing {name}"), format!("{keys:?}"));
        for upload in store.list_uploads(&name, &all, None)?.uploads {
            let parts = store.parts(&name, &upload.key, &upload.id, 0, 100)?.parts;
            let parts: Vec<_> = parts.iter().map(|part| (part.number, part.etag.to_string())).collect();
            seen.insert(format!("upload {name} {}", upload.key), format!("{parts:?}"));
        }
    }
    for user in store.users()? {
        let keys = user.access_keys.iter().map(|key| key.expires.is_some()).collect::<Vec<_>>();
        seen.insert(format!("user {}", user.name), format!("{keys:?} {:?} {:?}", user.groups, user.policies));
    }
    seen.insert("groups".to_owned(), format!("{:?}", store.groups()?));
    seen.insert("policies".to_owned(), format!("{:?}", store.policies()?));
    Ok(seen)
}

/// Entity tag of a version and what its bytes hash to, which must fit together.
fn content(store: &Store, bucket: &str, key: &str, version: VersionId) -> Result<String, StoreError> {
    use std::hash::{DefaultHasher, Hasher};
    let object = store.object(bucket, key, Some(version))?;
    let mut reader = object.reader(&(0..object.info().bytes));
    let mut hasher = DefaultHasher::new();
    let mut length = 0;
    while let Some(chunk) = reader.next_chunk(64 << 10)? {
        length += chunk.len();
        chunk.iter().for_each(|byte| hasher.write_u8(*byte));
    }
    Ok(format!("{} {length} {:016x}", object.info().etag, hasher.finish()))
}

type Operation = fn(&Store, &Ground) -> Result<(), StoreError>;

/// Every kind of change.
const OPERATIONS: &[(&str, Operation)] = &[
    ("put, in the index", |store, _| put(store, PLAIN, "new", &body(40, LENGTHS[0]))),
    ("put, in sectors", |store, _| put(store, PLAIN, "new", &body(41, LENGTHS[2]))),
    ("put, long", |store, _| put(store, PLAIN, "new", &body(42, LENGTHS[3]))),
    ("overwrite", |store, _| put(store, PLAIN, "old-9001", &body(43, 12_000))),
    ("overwrite, long by short", |store, _| put(store, PLAIN, "old-150000", &body(44, 100))),
    ("put of a version", |store, _| put(store, KEPT, "k", &body(45, 9_000))),
    ("upload of a part", |store, ground| {
        part(store, "parts", &ground.upload, 3, &body(46, 20_000)).map(drop)
    }),
    ("replacement of a part", |store, ground| {
        part(store, "parts", &ground.upload, 2, &body(47, 9_000)).map(drop)
    }),
    ("completion", |store, ground| {
        let options = CompleteOptions::default();
        store.complete_upload(PLAIN, "parts", &ground.upload, ground.listed.clone(), options).map(drop)
    }),
    ("abort", |store, ground| store.abort_upload(PLAIN, "parts", &ground.upload)),
    ("copy", |store, _| {
        let source = store.object(PLAIN, "old-150000", None)?;
        store.copy_object(&source, PLAIN, "copy", CopyOptions::default()).map(drop)
    }),
    ("copy onto itself", |store, _| {
        let source = store.object(PLAIN, "old-9001", None)?;
        let metadata = Some(Metadata { user: vec![("a".into(), "b".into())], ..Metadata::default() });
        store
            .copy_object(&source, PLAIN, "old-9001", CopyOptions { metadata, ..CopyOptions::default() })
            .map(drop)
    }),
    ("delete", |store, _| store.delete_object(PLAIN, DeleteRequest::of("old-150000")).map(drop)),
    ("delete of many", |store, _| {
        let requests: Vec<_> = (0..8).map(|number| DeleteRequest::of(format!("many/{number}"))).collect();
        store.delete_objects(PLAIN, &requests)?.into_iter().try_for_each(|deleted| deleted.map(drop))
    }),
    ("delete, kept", |store, _| store.delete_object(KEPT, DeleteRequest::of("k")).map(drop)),
    ("delete of a version", |store, ground| {
        let request = DeleteRequest { version: Some(ground.oldest), ..DeleteRequest::of("k") };
        store.delete_object(KEPT, request).map(drop)
    }),
    ("tags", |store, _| {
        store
            .set_tags(PLAIN, "old-9001", None, vec![("colour".into(), "blue".into())], Default::default())
            .map(drop)
    }),
    ("bucket", |store, _| store.create_bucket("made", BucketOptions::default())),
    ("document of a bucket", |store, _| store.set_bucket_document(PLAIN, "policy", Some(vec![b'x'; 9_000]))),
    ("user", |store, _| store.create_user("bob").map(drop)),
    ("expiry of a key", |store, ground| {
        store.set_access_key_expiry(&ground.access_key, Some(std::time::SystemTime::now()))
    }),
    ("policy of a user", |store, _| store.set_attached("reads", Principal::User("alice".into()), true)),
];

/// What one kind of change went through.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    cuts: u64,
    acknowledged: u64,
    there: u64,
}

/// One change, cut at the device operation `cut` after its beginning. False where it was over before that.
fn cut_once(
    (name, operation): (&str, Operation),
    (device, ground): (&SimulatedDevice, &Ground),
    (before, after): (&Dump, &Dump),
    (cut, seed, lying): (u64, u64, bool),
    count: &mut Count,
) -> Result<bool, String> {
    let device = device.durable_copy();
    let node = SimulatedNode::open(Arc::clone(&device), None).map_err(|error| error.to_string())?;
    if lying {
        device.make_flush_a_noop();
    }
    device.cut_power_at(device.operations() + cut);
    let acknowledged = operation(node.store(), ground).is_ok();
    // Space that it gave up is given back behind it, and that can be cut too.
    node.store().wait_until_reclaimed();
    let went = !device.has_power();
    let survivor = node.power_cut(seed);
    let node = SimulatedNode::open(survivor, None).map_err(|error| format!("it does not open: {error}"))?;
    let store = node.store();
    let found = dump(store).map_err(|error| format!("it can't be read: {error}"))?;
    let there = found == *after;
    if !there && (acknowledged || found != *before) {
        let expected = if acknowledged { after } else { before };
        let differing: Vec<_> =
            found.iter().filter(|(key, value)| expected.get(*key) != Some(value)).collect();
        return Err(format!("{name}, acknowledged {acknowledged}: {differing:?}"));
    }
    for number in 0..2 {
        put(store, PLAIN, "later", &body(90 + number, 60_000))
            .map_err(|error| format!("it does not go on: {error}"))?;
    }
    store.delete_object(PLAIN, DeleteRequest::of("later")).map_err(|error| error.to_string())?;
    if dump(store).map_err(|error| error.to_string())? != found {
        return Err(format!("{name}: what was written next changed what was there"));
    }
    // Where the change was over before the cut came, power went right after the answer.
    count.cuts += 1;
    count.acknowledged += u64::from(acknowledged);
    count.there += u64::from(there);
    Ok(went)
}

/// One change, cut at each of its device operations in turn.
fn cut_everywhere(
    operation: (&str, Operation),
    (device, ground): (&SimulatedDevice, &Ground),
    states: (&Dump, &Dump),
    seed: u64,
    count: &mut Count,
) {
    for cut in 0.. {
        match cut_once(operation, (device, ground), states, (cut, seed, false), count) {
            Ok(true) => {}
            Ok(false) => return,
            Err(broken) => panic!("{}: cut at {cut}, seed {seed}: {broken}", operation.0),
        }
    }
}

/// The state that an operation leaves where nothing is cut.
fn result_of(operation: Operation, device: &SimulatedDevice, ground: &Ground) -> Dump {
    let node = SimulatedNode::open(device.durable_copy(), None).expect("a node");
    operation(node.store(), ground).expect("the operation is right");
    dump(node.store()).expect("a readable store")
}

#[test]
fn every_change_is_whole_or_absent_wherever_it_is_cut() {
    let (device, ground) = base();
    let before =
        dump(SimulatedNode::open(device.durable_copy(), None).expect("a node").store()).expect("a dump");
    let results: Vec<Dump> =
        OPERATIONS.iter().map(|(_, operation)| result_of(*operation, &device, &ground)).collect();
    let mut counts = vec![Count::default(); OPERATIONS.len()];
    let mut slice = Slice::new("rounds", SLICE_SECONDS, 1);
    while slice.another() || counts.iter().map(|count| count.cuts).sum::<u64>() < CUTS_MIN {
        let round = slice.done();
        let (half, other) = counts.split_at_mut(OPERATIONS.len() / 2);
        std::thread::scope(|scope| {
            for (first, counts) in [(0, half), (OPERATIONS.len() / 2, other)] {
                let (device, ground, before, results) = (&device, &ground, &before, &results);
                scope.spawn(move || {
                    for (number, count) in (first..).zip(counts) {
                        let seed = 1_000 * round + number as u64;
                        cut_everywhere(
                            OPERATIONS[number],
                            (device, ground),
                            (before, &results[number]),
                            seed,
                            count,
                        );
                    }
                });
            }
        });
    }
    let total: u64 = counts.iter().map(|count| count.cuts).sum();
    println!("{:26}{:>8}{:>14}{:>8}", "change", "cuts", "acknowledged", "there");
    for ((name, _), count) in OPERATIONS.iter().zip(&counts) {
        println!("{name:26}{:>8}{:>14}{:>8}", count.cuts, count.acknowledged, count.there);
        assert!(count.acknowledged > 0 && count.cuts > count.acknowledged, "{name}: {count:?}");
    }
    slice.report(&format!("{total} cuts"));
    assert!(total >= CUTS_MIN, "only {total} cuts");
}

/// Were a flush only a promise, the test above would have to notice.
#[test]
fn with_flushes_that_do_nothing_lost_changes_are_found() {
    let (device, ground) = base();
    let before =
        dump(SimulatedNode::open(device.durable_copy(), None).expect("a node").store()).expect("a dump");
    let mut found = 0;
    for (seed, (name, operation)) in (1..).zip(OPERATIONS) {
        let after = result_of(*operation, &device, &ground);
        // Late enough that it was acknowledged first.
        let place = (10_000, seed, true);
        let outcome =
            cut_once((name, *operation), (&device, &ground), (&before, &after), place, &mut Count::default());
        found += usize::from(outcome.is_err());
    }
    assert!(found > OPERATIONS.len() / 2, "only {found} of {} losses were noticed", OPERATIONS.len());
}
