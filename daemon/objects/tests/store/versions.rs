//! Versions, delete markers, tags and locks, compared with a list per key that does the same by the book.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::workload::{budget, content, first_seed, length, multipart};
use objects::simulated::{SimulatedVolume, SplitMix64};
use objects::{
    Attributes, BucketOptions, CompleteOptions, CompletedPart, Declared, DefaultRetention, DeleteRequest,
    Deleted, ListRequest, LockMode, Notices, ObjectLock, Period, PutOptions, Retention, Store, StoreError,
    UploadOptions, VersionId, Versioning,
};
use units::ByteLen;

const BUCKET: &str = "versions";
const KEYS: [&str; 7] = ["a", "a!", "a/1", "a/2", "ab", "b", "b/c/d"];

/// One version as the book has it; no body: a delete marker.
#[derive(Clone, Debug, PartialEq)]
struct Expected {
    id: VersionId,
    body: Option<Vec<u8>>,
}

struct Model {
    volume: SimulatedVolume,
    store: Arc<Store>,
    versioning: Versioning,
    /// Versions by key, the oldest first.
    keys: BTreeMap<&'static str, Vec<Expected>>,
    random: SplitMix64,
}

fn put(
    store: &Store,
    key: &str,
    bytes: &[u8],
    attributes: Attributes,
) -> Result<Option<VersionId>, StoreError> {
    let mut writer = store.put_object(BUCKET, key, Some(bytes.len() as u64), None)?;
    writer.append(bytes)?;
    Ok(writer.finish(PutOptions { attributes, ..PutOptions::default() })?.version)
}

fn read(store: &Store, key: &str, version: Option<VersionId>) -> Result<Vec<u8>, StoreError> {
    let object = store.object(BUCKET, key, version)?;
    let mut reader = object.reader(&(0..object.info().bytes));
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.next_chunk(1 << 20)? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

impl Model {
    fn new(seed: u64) -> Self {
        let volume = SimulatedVolume::new(ByteLen(64 << 20));
        let store = Store::open(volume.clone()).unwrap();
        store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
        let keys = BTreeMap::new();
        Self { volume, store, versioning: Versioning::Unversioned, keys, random: SplitMix64(seed) }
    }

    fn key(&mut self) -> &'static str {
        KEYS[self.random.below(KEYS.len() as u64) as usize]
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..=5 => {
                let next = [Versioning::Enabled, Versioning::Suspended][self.random.below(2) as usize];
                self.store.set_versioning(BUCKET, next).unwrap();
                self.versioning = next;
            }
            6..=50 => self.put(),
            51..=65 => self.hide(),
            66..=85 => self.remove(),
            86..=95 => self.compare_listing(),
            _ => {
                self.store.close();
                self.store = Store::open(self.volume.clone()).unwrap();
            }
        }
    }

    /// What a new version or marker does to those that are there.
    fn make_room(&mut self, key: &'static str) {
        if self.versioning != Versioning::Enabled {
            self.keys.entry(key).or_default().retain(|version| version.id != VersionId::Null);
        }
    }

    fn put(&mut self) {
        let key = self.key();
        let body = content(self.random.next_u64(), length(&mut self.random));
        let version = match self.random.below(8) {
            0 => multipart(&self.store, BUCKET, key, std::slice::from_ref(&body)).unwrap().version,
            _ => put(&self.store, key, &body, Attributes::default()).unwrap(),
        };
        assert_eq!(version.is_none(), self.versioning == Versioning::Unversioned);
        assert_eq!(version == Some(VersionId::Null), self.versioning == Versioning::Suspended);
        self.make_room(key);
        let id = version.unwrap_or(VersionId::Null);
        self.keys.entry(key).or_default().push(Expected { id, body: Some(body) });
    }

    fn hide(&mut self) {
        let key = self.key();
        let deleted = self.store.delete_object(BUCKET, DeleteRequest::of(key)).unwrap();
        self.make_room(key);
        if self.versioning == Versioning::Unversioned {
            assert_eq!(Deleted { changed: false, ..deleted }, Deleted::default());
            return;
        }
        assert!(deleted.delete_marker);
        let id = deleted.version.unwrap();
        self.keys.entry(key).or_default().push(Expected { id, body: None });
    }

    fn remove(&mut self) {
        let key = self.key();
        let versions = self.keys.entry(key).or_default();
        let stranger = VersionId::Id { sequence: 1, random: 2 };
        let id = match self.random.below(versions.len() as u64 + 1) {
            0 => stranger,
            position => versions[position as usize - 1].id,
        };
        let request = DeleteRequest { version: Some(id), ..DeleteRequest::of(key) };
        let deleted = self.store.delete_object(BUCKET, request).unwrap();
        let marker = versions.iter().any(|version| version.id == id && version.body.is_none());
        assert_eq!((deleted.version, deleted.delete_marker), (Some(id), marker));
        versions.retain(|version| version.id != id);
    }

    /// Every version by pages of a random size.
    fn compare_listing(&mut self) {
        let prefix = ["", "a", "a/", "b"][self.random.below(4) as usize];
        let mut request = ListRequest {
            prefix: prefix.into(),
            limit: 1 + self.random.below(4) as usize,
            ..ListRequest::default()
        };
        let (mut found, mut marker) = (Vec::new(), None);
        loop {
            let page = self.store.list_versions(BUCKET, &request, marker).unwrap();
            assert!(page.versions.len() <= request.limit);
            found.extend(page.versions);
            match page.next {
                Some((key, version)) => (request.after, marker) = (Some(key), version),
                None => break,
            }
        }
        let mut expected = Vec::new();
        for (key, versions) in self.keys.iter().filter(|(key, _)| key.starts_with(prefix)) {
            for (age, version) in versions.iter().rev().enumerate() {
                expected.push((*key, version.id, age == 0, version.body.is_none()));
            }
        }
        let found: Vec<_> = found
            .iter()
            .map(|entry| (entry.key.as_str(), entry.version, entry.is_latest, entry.delete_marker))
            .collect();
        assert_eq!(found, expected);
    }

    fn compare_bodies(&self) {
        for (key, versions) in &self.keys {
            for version in versions {
                match (&version.body, read(&self.store, key, Some(version.id))) {
                    (Some(body), Ok(found)) => assert!(found == *body, "{key} {}", version.id),
                    (None, Err(StoreError::IsDeleteMarker { named: true, .. })) => {}
                    (_, found) => panic!("{key} {}: {:?}", version.id, found.map(drop)),
                }
            }
            match (versions.last().map(|version| &version.body), read(&self.store, key, None)) {
                (Some(Some(body)), Ok(found)) => assert!(found == *body, "{key}"),
                (Some(None), Err(StoreError::IsDeleteMarker { named: false, .. })) => {}
                (None, Err(StoreError::NoSuchKey)) => {}
                (_, found) => panic!("{key}: {:?}", found.map(drop)),
            }
        }
    }

    fn check_no_leak(self) {
        for (key, versions) in &self.keys {
            for version in versions {
                let request = DeleteRequest { version: Some(version.id), ..DeleteRequest::of(*key) };
                self.store.delete_object(BUCKET, request).unwrap();
            }
        }
        self.store.wait_until_reclaimed();
        let empty = Store::open(SimulatedVolume::new(ByteLen(64 << 20))).unwrap().status().unwrap();
        let status = self.store.status().unwrap();
        assert_eq!((status.free, status.objects, status.versions), (empty.free, 0, 0));
        self.store.delete_bucket(BUCKET).unwrap();
    }
}

#[test]
fn a_random_history_of_versions_is_the_one_by_the_book() {
    let deadline = budget(Duration::from_secs(6));
    let mut seed = first_seed();
    loop {
        println!("NIGHTLATCH_SEED={seed}");
        let mut model = Model::new(seed);
        for step in 0..300 {
            model.step();
            if step % 50 == 0 {
                model.compare_bodies();
            }
        }
        model.compare_listing();
        model.compare_bodies();
        model.check_no_leak();
        if std::time::Instant::now() > deadline {
            return;
        }
        seed += 1;
    }
}

fn versioned() -> Arc<Store> {
    let store = Store::open(SimulatedVolume::new(ByteLen(64 << 20))).unwrap();
    store.create_bucket(BUCKET, BucketOptions { lock: true, ..BucketOptions::default() }).unwrap();
    store
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn retained(mode: LockMode, seconds: u64) -> Attributes {
    let retention = Some(Retention { mode, until_ms: now_ms() + seconds * 1000 });
    Attributes { lock: ObjectLock { retention, legal_hold: None }, ..Attributes::default() }
}

#[test]
fn a_locked_version_outlives_every_delete() {
    let store = versioned();
    let remove = |id, bypass_governance| {
        let request = DeleteRequest { version: Some(id), bypass_governance, ..DeleteRequest::of("k") };
        store.delete_object(BUCKET, request)
    };
    let strict = put(&store, "k", b"strict", retained(LockMode::Compliance, 1000)).unwrap().unwrap();
    let lenient = put(&store, "k", b"lenient", retained(LockMode::Governance, 1000)).unwrap().unwrap();
    let held = put(&store, "k", b"held", Attributes::default()).unwrap().unwrap();
    store.set_legal_hold(BUCKET, "k", Some(held), true).unwrap();
    store.delete_object(BUCKET, DeleteRequest::of("k")).unwrap();
    for (id, bypass) in [(strict, false), (strict, true), (lenient, false), (held, true)] {
        assert!(matches!(remove(id, bypass), Err(StoreError::Locked)), "{id} {bypass}");
    }
    assert!(remove(lenient, true).is_ok());
    store.set_legal_hold(BUCKET, "k", Some(held), false).unwrap();
    assert!(remove(held, false).is_ok());
    assert_eq!(read(&store, "k", Some(strict)).unwrap(), b"strict");
    assert!(matches!(
        store.set_versioning(BUCKET, Versioning::Suspended),
        Err(StoreError::InvalidBucketState)
    ));
    assert!(matches!(store.delete_bucket(BUCKET), Err(StoreError::BucketNotEmpty)));
}

#[test]
fn a_bucket_gives_new_versions_its_retention_and_lets_nobody_shorten_it() {
    let store = versioned();
    let default = DefaultRetention { mode: LockMode::Compliance, period: Period::Days(1) };
    store.set_bucket_lock(BUCKET, Some(default)).unwrap();
    let id = put(&store, "k", b"x", Attributes::default()).unwrap();
    let found = store.head_object(BUCKET, "k", id).unwrap().attributes.lock.retention.unwrap();
    assert_eq!(found.mode, LockMode::Compliance);
    assert!(found.until_ms > now_ms() + 23 * 3600 * 1000);
    assert!(matches!(store.set_retention(BUCKET, "k", id, None, true), Err(StoreError::Locked)));
    let longer = Some(Retention { until_ms: found.until_ms + 1, ..found });
    assert!(store.set_retention(BUCKET, "k", id, longer, false).is_ok());
    store.create_bucket("plain", BucketOptions::default()).unwrap();
    assert!(matches!(store.set_bucket_lock("plain", None), Err(StoreError::InvalidBucketState)));
    assert!(matches!(
        store.set_retention("plain", "k", None, longer, false),
        Err(StoreError::LockNotEnabled)
    ));
}

#[test]
fn tags_belong_to_a_version_and_change_without_making_one() {
    let store = versioned();
    let first = put(&store, "k", b"1", Attributes::default()).unwrap();
    let second = put(&store, "k", b"2", Attributes::default()).unwrap();
    let tags = vec![("colour".to_owned(), "blue".to_owned())];
    store.set_tags(BUCKET, "k", first, tags.clone(), Notices::default()).unwrap();
    assert_eq!(store.head_object(BUCKET, "k", first).unwrap().attributes.tags, tags);
    assert!(store.head_object(BUCKET, "k", second).unwrap().attributes.tags.is_empty());
    assert_eq!(
        store
            .list_versions(BUCKET, &ListRequest { limit: 9, ..Default::default() }, None)
            .unwrap()
            .versions
            .len(),
        2
    );
    let many = |count: usize| (0..count).map(|n| (n.to_string(), String::new())).collect::<Vec<_>>();
    assert!(store.set_tags(BUCKET, "k", None, many(objects::limits::TAGS_MAX), Notices::default()).is_ok());
    let refused = store.set_tags(BUCKET, "k", None, many(objects::limits::TAGS_MAX + 1), Notices::default());
    assert!(matches!(refused, Err(StoreError::TooManyTags { .. })));
    for bad in [
        vec![(String::new(), String::new())],
        vec![("n".repeat(129), String::new())],
        vec![("n".to_owned(), "v".repeat(257))],
        vec![("n".to_owned(), "1".to_owned()), ("n".to_owned(), "2".to_owned())],
    ] {
        assert!(matches!(
            store.set_tags(BUCKET, "k", None, bad, Notices::default()),
            Err(StoreError::InvalidTags)
        ));
    }
}

/// A history with every kind of change of versions, cut at each of its steps: what was acknowledged is there, each version
/// under its name, and of what was not at most one step, whole.
#[test]
fn a_cut_at_every_step_leaves_every_acknowledged_version() {
    type Acknowledged = Vec<(VersionId, Option<Vec<u8>>)>;
    let history = |volume: &SimulatedVolume| -> (bool, Acknowledged) {
        let mut kept = Acknowledged::new();
        let mut made = false;
        let mut run = || -> Result<(), StoreError> {
            let store = Store::open(volume.clone())?;
            store.create_bucket(BUCKET, BucketOptions::default())?;
            store.set_versioning(BUCKET, Versioning::Enabled)?;
            made = true;
            for tag in 0..3 {
                let body = content(tag, 9_000 * tag as usize + 5);
                if let Some(id) = put(&store, "k", &body, Attributes::default())? {
                    kept.push((id, Some(body)));
                }
            }
            let hidden = store.delete_object(BUCKET, DeleteRequest::of("k"))?;
            kept.extend(hidden.version.map(|id| (id, None)));
            let body = content(9, 20_000);
            if let Some(id) = multipart(&store, BUCKET, "k", std::slice::from_ref(&body))?.version {
                kept.push((id, Some(body)));
            }
            let (second, _) = kept[1].clone();
            kept.remove(1);
            let request = DeleteRequest { version: Some(second), ..DeleteRequest::of("k") };
            store.delete_object(BUCKET, request)?;
            Ok(())
        };
        let _ = run();
        (made, kept)
    };
    let whole = SimulatedVolume::new(ByteLen(32 << 20));
    assert_eq!(history(&whole).1.len(), 4);
    let steps = whole.steps();
    for cut in (1..steps + 5).filter(|cut| *cut > 270 || cut % 32 == 1) {
        let volume = SimulatedVolume::new(ByteLen(32 << 20));
        volume.cut_at(cut);
        let (made, kept) = history(&volume);
        let store = Store::open(volume.power_cut(cut)).unwrap();
        if !made {
            continue;
        }
        for (id, body) in &kept {
            match (body, read(&store, "k", Some(*id))) {
                (Some(body), Ok(found)) => assert!(found == *body, "cut at {cut}: {id} differs"),
                (None, Err(StoreError::IsDeleteMarker { .. })) => {}
                (_, found) => panic!("cut at {cut}: {id}: {:?}", found.map(drop)),
            }
        }
        let request = ListRequest { limit: 100, ..ListRequest::default() };
        let listed = store.list_versions(BUCKET, &request, None).unwrap().versions;
        assert!(listed.len() <= kept.len() + 1, "cut at {cut}: more versions than were written");
    }
}

fn begin(store: &Store, key: &str, attributes: Attributes) -> (String, Vec<CompletedPart>) {
    let options = UploadOptions { attributes, ..UploadOptions::default() };
    let upload = store.create_upload(BUCKET, key, options).unwrap().id;
    let mut part = store.upload_part((BUCKET, key), &upload, 1, None, None).unwrap();
    part.append(&content(7, 5_000)).unwrap();
    let part = part.finish(&Declared::default()).unwrap();
    (upload, vec![CompletedPart { number: 1, etag: part.etag.to_string(), checksum: None }])
}

#[test]
fn a_retention_that_passes_while_parts_arrive_does_not_refuse_the_whole() {
    let store = Store::open(SimulatedVolume::new(ByteLen(64 << 20))).unwrap();
    store.create_bucket(BUCKET, BucketOptions { lock: true, ..BucketOptions::default() }).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    // Long enough to be asked for in time.
    let until_ms = u64::try_from(now.as_millis()).unwrap() + 3_000;
    let lock =
        ObjectLock { retention: Some(Retention { mode: LockMode::Compliance, until_ms }), legal_hold: None };
    let (upload, parts) = begin(&store, "k", Attributes { lock, ..Attributes::default() });
    while SystemTime::now() <= UNIX_EPOCH + Duration::from_millis(until_ms) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let made = store.complete_upload(BUCKET, "k", &upload, parts, CompleteOptions::default()).unwrap();
    assert_eq!(made.attributes.lock, lock, "as it was asked for");
    let options = UploadOptions {
        attributes: Attributes { lock, ..Attributes::default() },
        ..UploadOptions::default()
    };
    assert!(matches!(store.create_upload(BUCKET, "k", options), Err(StoreError::RetentionPassed)));
}

#[test]
fn a_completion_sent_again_finds_its_version_behind_newer_ones() {
    let store = Store::open(SimulatedVolume::new(ByteLen(64 << 20))).unwrap();
    store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
    store.set_versioning(BUCKET, Versioning::Enabled).unwrap();
    let (upload, parts) = begin(&store, "k", Attributes::default());
    let complete = || store.complete_upload(BUCKET, "k", &upload, parts.clone(), CompleteOptions::default());
    let made = complete().unwrap().version;
    put(&store, "k", b"newer", Attributes::default()).unwrap();
    assert_eq!(complete().unwrap().version, made);
    store.delete_object(BUCKET, DeleteRequest::of("k")).unwrap();
    assert_eq!(complete().unwrap().version, made, "behind a delete marker too");
    store.delete_object(BUCKET, DeleteRequest { version: made, ..DeleteRequest::of("k") }).unwrap();
    assert!(matches!(complete(), Err(StoreError::NoSuchUpload)), "not once it is gone");
    // The same bytes from before the upload was begun are not what it made.
    let (earlier, same) = begin(&store, "other", Attributes::default());
    store.complete_upload(BUCKET, "other", &earlier, same.clone(), CompleteOptions::default()).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    let (later, _) = begin(&store, "other", Attributes::default());
    store.abort_upload(BUCKET, "other", &later).unwrap();
    put(&store, "other", b"newer", Attributes::default()).unwrap();
    let again = store.complete_upload(BUCKET, "other", &later, same, CompleteOptions::default());
    assert!(matches!(again, Err(StoreError::NoSuchUpload)));
}

#[test]
fn a_completion_that_is_sent_again_is_found_among_the_last_versions_only() {
    let store = Store::open(SimulatedVolume::new(ByteLen(64 << 20))).unwrap();
    store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
    store.set_versioning(BUCKET, Versioning::Enabled).unwrap();
    let upload = store.create_upload(BUCKET, "k", UploadOptions::default()).unwrap().id;
    let mut part = store.upload_part((BUCKET, "k"), &upload, 1, None, None).unwrap();
    part.append(b"part").unwrap();
    let etag = part.finish(&Declared::default()).unwrap().etag.to_string();
    let complete = |upload: &str| {
        let parts = vec![CompletedPart { number: 1, etag: etag.clone(), checksum: None }];
        store.complete_upload(BUCKET, "k", upload, parts, CompleteOptions::default())
    };
    let made = complete(&upload).unwrap().version;
    // One is the newest, and the older ones are counted.
    for _ in 0..objects::limits::LOST_REPLY_VERSIONS_MAX {
        put(&store, "k", b"newer", Attributes::default()).unwrap();
    }
    assert_eq!(complete(&upload).unwrap().version, made, "the last that is looked at");
    let ancient = "0".repeat(32);
    assert_eq!(complete(&ancient).unwrap().version, made, "by an id that somebody made up, too");
    put(&store, "k", b"newer", Attributes::default()).unwrap();
    for upload in [&upload, &ancient] {
        assert!(matches!(complete(upload), Err(StoreError::NoSuchUpload)), "beyond them");
    }
}
