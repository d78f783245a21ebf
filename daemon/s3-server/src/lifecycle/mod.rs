//! Lifecycle: what a bucket's rules say is to go, goes.
//!
//! One walk over a bucket's versions at a time, page by page. A page is old when its deletes come to be committed: each is
//! carried out only if the version is still exactly what the walk saw, so that what was written, restored or tagged otherwise
//! meanwhile stays; a name alone proves nothing, because `null` is given again. Locks are kept: the store refuses, and the next walk
//! asks again. Nothing goes by rules that are the bucket's no more: every delete asks in its commit whether settings changed since the
//! rules were seen. A node that was sealed or stopped in the middle begins anew.

pub(crate) mod rules;

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use objects::limits::LIST_PAGE_MAX;
use objects::{
    BucketInfo, BucketRef, DeleteRequest, ListRequest, Notices, Store, StoreError, UploadInfo, VersionEntry,
    VersionId, Versioning,
};
use s3s::dto::BucketLifecycleConfiguration;
use s3s::{S3ErrorCode, S3Result};

use crate::documents::{self, LIFECYCLE, NOTIFICATIONS};
use crate::error::from_store;
use crate::notifications::{self, EXPIRED};
use crate::slot::Slot;
use rules::{Candidate, Expiry, Rule, due, expiry};

/// How often buckets are walked: a walk reads the whole index of a bucket with rules. Nothing is due more finely than by the
/// day; shorter days, for tests, are looked at more often.
const WALKS_A_DAY: u32 = 8;
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// Walks all buckets again and again. A walk that ends because the node was sealed begins anew with the next store.
pub(crate) async fn keep(slot: &Slot, day: Duration) {
    loop {
        tokio::time::sleep((day / WALKS_A_DAY).max(PAUSE_MIN)).await;
        let Ok(serving) = slot.serving() else { continue };
        if let Err(error) = serving.run(move |store| walk_all(store, day)).await
            && error.code() != &S3ErrorCode::ServiceUnavailable
        {
            tracing::warn!(code = error.code().as_str(), "a walk over the lifecycles of buckets ended early");
        }
    }
}

fn walk_all(store: &Store, day: Duration) -> S3Result<()> {
    for bucket in store.buckets().map_err(|error| from_store(&error))? {
        match walk(store, &bucket, day) {
            // Deleted meanwhile, or its rules were changed: the next walk goes by what they are then.
            Ok(()) | Err(StoreError::NoSuchBucket | StoreError::Conflict) => {}
            Err(error) => {
                // What ends this walk need not end those of other buckets, unless nothing is served any more.
                store.check().map_err(|error| from_store(&error))?;
                let error = &error as &dyn std::error::Error;
                tracing::warn!(bucket = bucket.name, error, "a walk over a bucket's lifecycle ended early");
            }
        }
    }
    Ok(())
}

fn walk(store: &Store, bucket: &BucketInfo, day: Duration) -> Result<(), StoreError> {
    let (settings, bucket_ref) = (store.settings_generation(), bucket.reference());
    let Some(document) = store.bucket_document(&bucket_ref, LIFECYCLE)? else { return Ok(()) };
    let notifications = match store.bucket_document(&bucket_ref, NOTIFICATIONS)? {
        // One that can't be read is none: what is due goes.
        Some(text) => documents::parse(&text).and_then(|text| notifications::read(&text)).unwrap_or_default(),
        None => Vec::new(),
    };
    let rules = documents::parse::<BucketLifecycleConfiguration>(&document)
        .and_then(|configuration| rules::read(&configuration.rules));
    let rules = match rules {
        Ok(rules) => rules,
        Err(error) => {
            let code = error.code().as_str();
            tracing::warn!(bucket = bucket.name, code, "the lifecycle of a bucket can't be read");
            return Ok(());
        }
    };
    let walk = Walk {
        store,
        bucket: &bucket_ref,
        document: &document,
        settings: Cell::new(settings),
        rules: &rules,
        notifications: &notifications,
        day,
        now: SystemTime::now(),
    };
    walk.run(bucket.versioning)
}

struct Walk<'a> {
    store: &'a Store,
    bucket: &'a BucketRef,
    /// What the rules were read from.
    document: &'a [u8],
    /// Generation of the store's settings in which the document was last seen to be the bucket's.
    settings: Cell<u64>,
    rules: &'a [Rule],
    /// Who is told of what goes.
    notifications: &'a [notifications::Rule],
    day: Duration,
    now: SystemTime,
}

/// The versions of one key that were seen so far, from new to old.
#[derive(Default)]
struct Newer {
    key: String,
    /// When the version before was written: since then the next one is not current.
    replaced: Option<SystemTime>,
    noncurrent: usize,
}

impl Walk<'_> {
    fn run(&self, versioning: Versioning) -> Result<(), StoreError> {
        self.versions(versioning)?;
        self.uploads()
    }

    /// The generation of settings in which the walk's rules are the bucket's.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] once they are not: nothing more is to go by them.
    fn settings(&self) -> Result<u64, StoreError> {
        let settings = self.store.settings_generation();
        if settings != self.settings.get() {
            let document = self.store.bucket_document(self.bucket, LIFECYCLE)?;
            if document.as_deref() != Some(self.document) {
                return Err(StoreError::Conflict);
            }
            self.settings.set(settings);
        }
        Ok(settings)
    }

    fn versions(&self, versioning: Versioning) -> Result<(), StoreError> {
        let mut request = ListRequest { limit: LIST_PAGE_MAX, tags: true, ..ListRequest::default() };
        let (mut marker, mut newer) = (None, Newer::default());
        // A delete marker is judged only once it is known whether anything is behind it.
        let mut waiting: Option<VersionEntry> = None;
        loop {
            self.settings()?;
            let page = self.store.list_versions(self.bucket, &request, marker)?;
            for entry in page.versions {
                if let Some(alone) = waiting.take_if(|alone| alone.key != entry.key) {
                    self.lone_marker(&alone)?;
                }
                waiting = None;
                if newer.key != entry.key {
                    newer = Newer { key: entry.key.clone(), ..Newer::default() };
                }
                if entry.is_latest && entry.delete_marker {
                    newer.replaced = Some(entry.info.modified);
                    waiting = Some(entry);
                } else {
                    self.version(&entry, &mut newer, versioning)?;
                }
            }
            match page.next {
                Some((key, version)) => (request.after, marker) = (Some(key), version),
                None => break,
            }
        }
        waiting.iter().try_for_each(|alone| self.lone_marker(alone))
    }

    fn version(
        &self,
        entry: &VersionEntry,
        newer: &mut Newer,
        versioning: Versioning,
    ) -> Result<(), StoreError> {
        if entry.is_latest {
            newer.replaced = Some(entry.info.modified);
            let due = expiry(self.rules, Candidate::listed(entry), self.day);
            if due.is_some_and(|(moment, _)| moment <= self.now) {
                self.delete(entry, None, 0)?;
            }
            return Ok(());
        }
        let since = newer.replaced.replace(entry.info.modified).unwrap_or(entry.info.modified);
        let age = newer.noncurrent;
        newer.noncurrent += 1;
        let fitting = self.rules.iter().filter(|rule| rule.fits(Candidate::listed(entry)));
        let due = fitting.filter_map(|rule| {
            rule.noncurrent.filter(|(days, kept)| age >= *kept && due(since, *days, self.day) <= self.now)
        });
        // The rule that keeps the fewest decides.
        match due.map(|(_, kept)| kept).min() {
            Some(kept) if versioning != Versioning::Unversioned => {
                self.delete(entry, Some(entry.version), kept)
            }
            _ => Ok(()),
        }
    }

    /// A delete marker with nothing behind it.
    fn lone_marker(&self, entry: &VersionEntry) -> Result<(), StoreError> {
        let goes = self.rules.iter().filter(|rule| rule.fits(Candidate::listed(entry))).any(|rule| {
            let aged = matches!(rule.expiry, Expiry::After(days)
                if due(entry.info.modified, days, self.day) <= self.now);
            rule.expires_markers || aged
        });
        if goes { self.delete(entry, Some(entry.version), 0) } else { Ok(()) }
    }

    /// `kept`: versions that must lie between it and the current one.
    fn delete(
        &self,
        entry: &VersionEntry,
        version: Option<VersionId>,
        kept: usize,
    ) -> Result<(), StoreError> {
        loop {
            let (only_if, only_in) = (Some(entry.clone()), Some(self.settings()?));
            let to = notifications::notices_of(self.notifications, &entry.key, &EXPIRED);
            let notices = Notices { to, ..Notices::default() };
            let request = DeleteRequest {
                version,
                only_if,
                only_behind: kept,
                only_in,
                notices,
                ..DeleteRequest::of(entry.key.as_str())
            };
            match self.store.delete_object(self.bucket, request) {
                Ok(_) => {
                    tracing::debug!(bucket = self.bucket.name(), "a version expired");
                    return Ok(());
                }
                Err(StoreError::PreconditionFailed | StoreError::Locked) => return Ok(()),
                // Settings changed since they were looked at, this bucket's or others.
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn uploads(&self) -> Result<(), StoreError> {
        let mut request = ListRequest { limit: LIST_PAGE_MAX, ..ListRequest::default() };
        let mut marker = None;
        loop {
            let page = self.store.list_uploads(self.bucket, &request, marker.as_deref())?;
            for upload in page.uploads.iter().filter(|upload| self.is_stale(upload)) {
                self.settings()?;
                match self.store.abort_upload(self.bucket, &upload.key, &upload.id) {
                    Ok(()) | Err(StoreError::NoSuchUpload) => {}
                    Err(error) => return Err(error),
                }
            }
            match page.next {
                Some((key, upload)) => (request.after, marker) = (Some(key), upload),
                None => return Ok(()),
            }
        }
    }

    fn is_stale(&self, upload: &UploadInfo) -> bool {
        let stale = |rule: &Rule| {
            rule.aborts_uploads.is_some_and(|days| due(upload.initiated, days, self.day) <= self.now)
        };
        self.rules.iter().any(|rule| upload.key.starts_with(&rule.prefix) && stale(rule))
    }
}

#[cfg(test)]
mod tests {
    use objects::simulated::SimulatedVolume;
    use objects::{BlockVolume, BucketOptions, PutOptions};
    use units::ByteLen;

    use super::*;

    const RULES: &str = "<LifecycleConfiguration><Rule><ID>all</ID><Status>Enabled</Status><Filter><Prefix>old/</Prefix></Filter>\
        <Expiration><Days>1</Days></Expiration><NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays>\
        </NoncurrentVersionExpiration></Rule></LifecycleConfiguration>";

    fn put(store: &Store, key: &str, byte: u8) {
        let mut writer = store.put_object("bucket", key, None, None).unwrap();
        writer.append(&[byte; 9_000]).unwrap();
        writer.finish(PutOptions::default()).unwrap();
    }

    /// Every version with its bytes.
    fn dump(store: &Store) -> Vec<(String, bool, u8)> {
        let request = ListRequest { limit: 100, ..ListRequest::default() };
        let entries = store.list_versions("bucket", &request, None).unwrap().versions;
        let read = |entry: VersionEntry| {
            if entry.delete_marker {
                return (entry.key, true, 0);
            }
            let object = store.object("bucket", &entry.key, Some(entry.version)).unwrap();
            let bytes = object.reader(&(0..9_000)).next_chunk(9_000).unwrap().unwrap();
            assert!(bytes.len() == 9_000 && bytes.iter().all(|byte| *byte == bytes[0]), "{}", entry.key);
            (entry.key, false, bytes[0])
        };
        entries.into_iter().map(read).collect()
    }

    /// A bucket with an old null version `v1` under a new one, as a walk sees it in whose course anything may happen.
    fn seen_by_a_walk(change: impl FnOnce(&Store)) -> Vec<(String, bool, u8)> {
        let store = Store::open(SimulatedVolume::new(ByteLen(32 << 20))).unwrap();
        store.create_bucket("bucket", BucketOptions::default()).unwrap();
        put(&store, "old/replaced", 1);
        let tags = vec![("expire".to_owned(), "yes".to_owned())];
        put(&store, "old/tagged", 1);
        store.set_tags("bucket", "old/tagged", None, tags, Notices::default()).unwrap();
        store.set_versioning("bucket", Versioning::Enabled).unwrap();
        put(&store, "old/replaced", 2);
        store.set_versioning("bucket", Versioning::Suspended).unwrap();
        store.delete_object("bucket", DeleteRequest::of("old/marked")).unwrap();
        store.set_bucket_document("bucket", LIFECYCLE, Some(RULES.as_bytes().to_vec())).unwrap();
        let configuration: BucketLifecycleConfiguration = documents::parse(RULES.as_bytes()).unwrap();
        let rules = rules::read(&configuration.rules).unwrap();
        let (bucket, day) = (store.bucket("bucket").unwrap().reference(), Duration::from_nanos(1));
        let walk = Walk {
            store: &store,
            bucket: &bucket,
            document: RULES.as_bytes(),
            settings: Cell::new(store.settings_generation()),
            rules: &rules,
            notifications: &[],
            day,
            now: SystemTime::now() + day * 1_000,
        };
        let request = ListRequest { limit: 100, tags: true, ..ListRequest::default() };
        let page = store.list_versions("bucket", &request, None).unwrap().versions;
        change(&store);
        for entry in &page {
            let replaced = page.iter().find(|newer| newer.key == entry.key && newer.is_latest);
            let replaced = replaced.filter(|_| !entry.is_latest).map(|newer| newer.info.modified);
            let newer = &mut Newer { replaced, ..Newer::default() };
            let result = match entry.delete_marker {
                true => walk.lone_marker(entry),
                false => walk.version(entry, newer, Versioning::Suspended),
            };
            assert!(matches!(result, Ok(()) | Err(StoreError::Conflict)), "{result:?}");
        }
        dump(&store)
    }

    fn holds(found: &[(String, bool, u8)], key: &str, byte: u8) -> bool {
        found.iter().any(|(name, marker, first)| name == key && !marker && *first == byte)
    }

    #[test]
    fn what_changed_since_the_page_was_read_stays() {
        let untouched = seen_by_a_walk(|_| ());
        assert!(
            !holds(&untouched, "old/replaced", 1) && !holds(&untouched, "old/tagged", 1),
            "{untouched:?}"
        );
        let found = seen_by_a_walk(|store| {
            // Each takes the name `null` from the version that the walk saw.
            put(store, "old/replaced", 3);
            put(store, "old/marked", 3);
        });
        assert!(holds(&found, "old/replaced", 3) && holds(&found, "old/marked", 3), "{found:?}");
        let found = seen_by_a_walk(|store| {
            let request = ListRequest { limit: 100, ..ListRequest::default() };
            let page = store.list_versions("bucket", &request, None).unwrap().versions;
            let newest = page.iter().find(|entry| entry.key == "old/replaced" && entry.is_latest).unwrap();
            let named = DeleteRequest { version: Some(newest.version), ..DeleteRequest::of("old/replaced") };
            store.delete_object("bucket", named).unwrap();
            store.set_tags("bucket", "old/tagged", None, Vec::new(), Notices::default()).unwrap();
        });
        assert!(holds(&found, "old/replaced", 1), "restored: {found:?}");
        assert!(holds(&found, "old/tagged", 1), "kept by its tags: {found:?}");
    }

    #[test]
    fn rules_that_were_changed_delete_nothing_more_and_other_settings_change_nothing() {
        let kept = seen_by_a_walk(|store| store.set_bucket_document("bucket", LIFECYCLE, None).unwrap());
        assert!(holds(&kept, "old/replaced", 1) && holds(&kept, "old/tagged", 1), "{kept:?}");
        let other = RULES.replace("old/", "older/").into_bytes();
        let kept = seen_by_a_walk(|store| {
            store.set_bucket_document("bucket", LIFECYCLE, Some(other)).unwrap();
        });
        assert!(holds(&kept, "old/replaced", 1) && holds(&kept, "old/tagged", 1), "{kept:?}");
        let gone = seen_by_a_walk(|store| drop(store.create_user("bob").unwrap()));
        assert!(!holds(&gone, "old/replaced", 1) && !holds(&gone, "old/tagged", 1), "{gone:?}");
    }

    #[test]
    fn a_bucket_whose_rules_can_not_be_read_does_not_end_the_walk_of_others() {
        let store = Store::open(SimulatedVolume::new(ByteLen(32 << 20))).unwrap();
        for bucket in ["a-bucket", "bucket"] {
            store.create_bucket(bucket, BucketOptions::default()).unwrap();
        }
        // Written by a version that took what this one does not.
        let days = RULES.replace("<Days>1", "<Days>0").into_bytes();
        store.set_bucket_document("a-bucket", LIFECYCLE, Some(days)).unwrap();
        store.set_bucket_document("bucket", LIFECYCLE, Some(RULES.as_bytes().to_vec())).unwrap();
        put(&store, "old/1", 1);
        walk_all(&store, Duration::from_nanos(1)).unwrap();
        assert_eq!(dump(&store), []);
    }

    /// Wherever power goes during a walk, what is not due stays whole, what is due is there whole or gone, and the next walk
    /// finishes.
    #[test]
    fn a_walk_may_be_cut_anywhere() {
        let volume = SimulatedVolume::new(ByteLen(32 << 20));
        let store = Store::open(volume.clone()).unwrap();
        store.create_bucket("bucket", BucketOptions::default()).unwrap();
        store.set_versioning("bucket", Versioning::Enabled).unwrap();
        for number in 0..4 {
            put(&store, &format!("old/{number}"), number);
            put(&store, &format!("old/{number}"), 10 + number);
            put(&store, &format!("stays/{number}"), 20 + number);
        }
        store.set_bucket_document("bucket", LIFECYCLE, Some(RULES.as_bytes().to_vec())).unwrap();
        let before = dump(&store);
        drop(store);
        volume.flush().unwrap();
        let walk = |store: &Store| walk_all(store, Duration::from_nanos(1));
        let finished = |store: &Store| {
            // Markers and what they hide go in turns.
            (0..4).for_each(|_| walk(store).unwrap());
            dump(store)
        };
        let base = volume.power_cut(0);
        let after = finished(&Store::open(base.power_cut(0)).unwrap());
        assert!(after.iter().all(|(key, ..)| key.starts_with("stays/")), "{after:?}");
        let mut cuts = 0;
        for cut in 1.. {
            let volume = base.power_cut(0);
            let store = Store::open(volume.clone()).unwrap();
            let steps = volume.steps() + cut;
            volume.cut_at(steps);
            let outcome = walk(&store);
            store.close();
            let store = Store::open(volume.power_cut(cut)).unwrap();
            let found = dump(&store);
            let old = |entry: &&(String, bool, u8)| entry.0.starts_with("old/") && !entry.1;
            assert!(found.iter().filter(old).all(|entry| before.contains(entry)), "cut at {cut}: {found:?}");
            assert_eq!(finished(&store), after, "cut at {cut}");
            if outcome.is_ok() && volume.steps() < steps {
                break;
            }
            cuts += 1;
        }
        println!("{cuts} cuts under a lifecycle");
        assert!(cuts >= 50, "only {cuts} cuts");
    }
}
