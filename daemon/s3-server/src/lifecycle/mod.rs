//! Lifecycle: what a bucket's rules say is to go, goes.
//!
//! One walk over a bucket's versions at a time, page by page; every delete is conditional on what the walk saw, so that an
//! object that was written meanwhile stays. Locks are kept: the store refuses, and the next walk asks again. A node that was
//! sealed or stopped in the middle begins anew.

pub(crate) mod rules;

use std::time::{Duration, SystemTime};

use objects::limits::LIST_PAGE_MAX;
use objects::{
    Condition, DeleteRequest, ListRequest, Store, StoreError, TagMatch, UploadInfo, VersionEntry, Versioning,
};
use s3s::dto::BucketLifecycleConfiguration;
use s3s::{S3ErrorCode, S3Result};

use crate::documents::{self, LIFECYCLE};
use crate::error::from_store;
use crate::slot::Slot;
use rules::{Expiry, Rule, due, expiry};

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
        let configuration: Option<BucketLifecycleConfiguration> =
            match documents::find(store, &bucket.name, LIFECYCLE) {
                Ok(found) => found,
                // Deleted meanwhile, or damaged and said so.
                Err(_) => continue,
            };
        let Some(configuration) = configuration else { continue };
        let rules = rules::read(&configuration.rules)?;
        let walk = Walk { store, bucket: &bucket.name, rules: &rules, day, now: SystemTime::now() };
        match walk.run(bucket.versioning) {
            Ok(()) | Err(StoreError::NoSuchBucket) => {}
            Err(error) => return Err(from_store(&error)),
        }
    }
    Ok(())
}

struct Walk<'a> {
    store: &'a Store,
    bucket: &'a str,
    rules: &'a [Rule],
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

    fn versions(&self, versioning: Versioning) -> Result<(), StoreError> {
        let mut request = ListRequest { limit: LIST_PAGE_MAX, ..ListRequest::default() };
        let (mut marker, mut newer) = (None, Newer::default());
        // A delete marker is judged only once it is known whether anything is behind it.
        let mut waiting: Option<VersionEntry> = None;
        loop {
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
            let due = expiry(self.rules, &entry.key, &entry.info, self.day);
            if due.is_some_and(|(moment, _)| moment <= self.now) {
                self.delete(entry, None)?;
            }
            return Ok(());
        }
        let since = newer.replaced.replace(entry.info.modified).unwrap_or(entry.info.modified);
        let age = newer.noncurrent;
        newer.noncurrent += 1;
        let goes = self.rules.iter().filter(|rule| rule.fits(&entry.key, &entry.info)).any(|rule| {
            rule.noncurrent.is_some_and(|(days, kept)| age >= kept && due(since, days, self.day) <= self.now)
        });
        if goes && versioning != Versioning::Unversioned {
            self.delete(entry, Some(entry.version))?;
        }
        Ok(())
    }

    /// A delete marker with nothing behind it.
    fn lone_marker(&self, entry: &VersionEntry) -> Result<(), StoreError> {
        let goes = self.rules.iter().filter(|rule| rule.fits(&entry.key, &entry.info)).any(|rule| {
            let aged = matches!(rule.expiry, Expiry::After(days)
                if due(entry.info.modified, days, self.day) <= self.now);
            rule.expires_markers || aged
        });
        if goes { self.delete(entry, Some(entry.version)) } else { Ok(()) }
    }

    fn delete(&self, entry: &VersionEntry, version: Option<objects::VersionId>) -> Result<(), StoreError> {
        let seen = Condition {
            if_match: Some(TagMatch::Tag(entry.info.etag.to_string())),
            modified_seconds: entry
                .info
                .modified
                .duration_since(SystemTime::UNIX_EPOCH)
                .ok()
                .map(|since| since.as_secs()),
            ..Condition::default()
        };
        // A version that is named can't have become another one.
        let condition = if version.is_none() { seen } else { Condition::default() };
        let request = DeleteRequest { version, condition, ..DeleteRequest::of(entry.key.as_str()) };
        match self.store.delete_object(self.bucket, request) {
            Ok(_) => {
                tracing::debug!(bucket = self.bucket, "a version expired");
                Ok(())
            }
            Err(StoreError::PreconditionFailed | StoreError::NoSuchKey | StoreError::Locked) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn uploads(&self) -> Result<(), StoreError> {
        let mut request = ListRequest { limit: LIST_PAGE_MAX, ..ListRequest::default() };
        let mut marker = None;
        loop {
            let page = self.store.list_uploads(self.bucket, &request, marker.as_deref())?;
            for upload in page.uploads.iter().filter(|upload| self.is_stale(upload)) {
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
