//! The server access log: a line for each request to a bucket that asks for it, delivered as objects into another bucket.
//!
//! Lines wait in memory and are delivered every few minutes, when there are many of them, and before a planned stop. As Amazon's,
//! the log is no account book: what waits when a key goes is lost with it, and so is what comes faster than it can be delivered.
//! Both are counted.
//!
//! Invariants:
//! - What waits belongs to one serving, is bounded, and goes with it.
//! - A log is delivered only to where it may be when it is delivered: a bucket of the same owner, or one that lets the log
//!   delivery group write.
//! - A line is one line, whatever a client sent: what could end a line or a field is percent-encoded. No signature is in it.
//!
//! Amazon S3 User Guide, "Amazon S3 server access log format" and "Enabling Amazon S3 server access logging".

mod line;

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use objects::{
    Acl, Attributes, BucketId, BucketInfo, Grantee, Metadata, Permission, PutOptions, Store, StoreError,
};
use s3s::dto::{BucketLoggingStatus, LoggingEnabled, PartitionDateSource, TargetObjectKeyFormat};
use s3s::{S3Result, s3_error};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::Notify;

use crate::convert::owner_name;
use crate::documents;
use crate::encryption::default_key;
use crate::error::from_store;
use crate::limits::{LOG_BYTES_MAX, LOG_DELIVERY_BYTES, LOG_OBJECT_BYTES_MAX};
use crate::metrics::Metrics;
use crate::slot::{Serving, Slot};

pub(crate) use line::{Answer, Entry};

/// Where a bucket's lines go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) bucket: String,
    pub(crate) prefix: String,
    names: Names,
}

/// How log objects are called behind the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Names {
    /// By the time of their delivery.
    Simple,
    /// Below owner, region, bucket and day.
    Partitioned,
}

impl Target {
    /// What a document of a bucket says; `None` where nothing is to be written down.
    pub(crate) fn of(status: &BucketLoggingStatus) -> S3Result<Option<Self>> {
        let Some(LoggingEnabled { target_bucket, target_grants, target_object_key_format, target_prefix }) =
            &status.logging_enabled
        else {
            return Ok(None);
        };
        if target_grants.as_ref().is_some_and(|grants| !grants.is_empty()) {
            return Err(s3_error!(
                NotImplemented,
                "grants on log objects are not implemented: use a policy of the bucket that holds them"
            ));
        }
        let names = target_object_key_format.as_ref().map_or(Ok(Names::Simple), Names::of)?;
        Ok(Some(Self { bucket: target_bucket.clone(), prefix: target_prefix.clone(), names }))
    }

    fn key(&self, source: &Source, region: &str, now: OffsetDateTime) -> String {
        let moment = format_description!("[year]-[month]-[day]-[hour]-[minute]-[second]");
        let moment = now.format(moment).unwrap_or_default();
        let mut unique = [0; 8];
        getrandom::fill(&mut unique).expect("the kernel's random source never fails once it is seeded");
        let unique = u64::from_le_bytes(unique);
        let place = match self.names {
            Names::Simple => String::new(),
            Names::Partitioned => {
                let day = now.format(format_description!("[year]/[month]/[day]")).unwrap_or_default();
                format!("{}/{region}/{}/{day}/", owner_name(&source.owner), source.bucket)
            }
        };
        format!("{}{place}{moment}-{unique:016X}", self.prefix)
    }
}

impl Names {
    fn of(format: &TargetObjectKeyFormat) -> S3Result<Self> {
        let dates = format.partitioned_prefix.as_ref().map(|prefix| &prefix.partition_date_source);
        match dates {
            None => Ok(Self::Simple),
            Some(_) if format.simple_prefix.is_some() => {
                Err(s3_error!(MalformedXML, "log objects are called in one way"))
            }
            Some(Some(source)) if source.as_str() == PartitionDateSource::EVENT_TIME => Err(s3_error!(
                NotImplemented,
                "log objects are called by the time of their delivery: ask for DeliveryTime"
            )),
            Some(_) => Ok(Self::Partitioned),
        }
    }
}

/// The bucket that lines are about.
#[derive(Clone, Debug)]
struct Source {
    bucket: String,
    owner: String,
}

/// Lines on their way to one place.
#[derive(Debug)]
struct Batch {
    source: Source,
    text: Vec<u8>,
    lines: u64,
}

#[derive(Debug, Default)]
struct Waiting {
    batches: BTreeMap<(BucketId, Target), Batch>,
    bytes: usize,
}

/// The lines of one serving that were not delivered yet.
#[derive(Debug, Default)]
pub(crate) struct AccessLog {
    waiting: Mutex<Waiting>,
    many: Notify,
}

impl AccessLog {
    /// Adds a line about a request to `bucket`; false where there is no room for it.
    fn push(&self, bucket: &BucketInfo, target: &Target, line: &str) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.bytes + line.len() > LOG_BYTES_MAX {
            return false;
        }
        waiting.bytes += line.len();
        if waiting.bytes >= LOG_DELIVERY_BYTES {
            self.many.notify_one();
        }
        let batch = waiting.batches.entry((bucket.id, target.clone())).or_insert_with(|| Batch {
            source: Source { bucket: bucket.name.clone(), owner: bucket.owner.clone() },
            text: Vec::new(),
            lines: 0,
        });
        batch.text.extend_from_slice(line.as_bytes());
        batch.lines += 1;
        true
    }

    fn take(&self) -> Waiting {
        mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Delivers what waits every `interval`, and when there is much of it.
pub(crate) async fn keep(slot: &Slot, region: &str, interval: Duration, metrics: &Metrics) {
    loop {
        let Ok(serving) = slot.serving() else {
            tokio::time::sleep(interval).await;
            continue;
        };
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = serving.log.many.notified() => {}
            () = serving.sealed.cancelled() => continue,
        }
        deliver(&serving, region, metrics).await;
    }
}

/// Delivers what waits.
pub(crate) async fn deliver(serving: &Serving, region: &str, metrics: &Metrics) {
    for ((_, target), batch) in serving.log.take().batches {
        let lines = batch.lines;
        let region = region.to_owned();
        let delivered = serving.run(move |store| write(store, &target, &batch, &region)).await;
        let Err(error) = delivered else {
            metrics.log_lines.inc_by(lines);
            continue;
        };
        let error = error.to_string();
        metrics.log_lines_lost.inc_by(lines);
        tracing::warn!(error, lines, "lines of a bucket's access log could not be delivered");
    }
}

fn write(store: &Store, target: &Target, batch: &Batch, region: &str) -> S3Result<()> {
    let bucket = store.bucket(&target.bucket).map_err(|error| from_store(&error))?;
    if !takes_logs_of(&bucket, &batch.source.owner) {
        return Err(from_store(&StoreError::NoSuchBucket));
    }
    // As anything that is put there and says nothing of it.
    let configuration = documents::find(store, &bucket.reference(), documents::ENCRYPTION)?;
    let named_key = configuration.map_or(Ok(None), |configuration| default_key(&configuration))?;
    for text in objects_of(&batch.text) {
        let key = target.key(&batch.source, region, OffsetDateTime::now_utc());
        put(store, (&bucket, &key), named_key.as_deref(), text).map_err(|error| from_store(&error))?;
    }
    Ok(())
}

fn put(
    store: &Store,
    (bucket, key): (&BucketInfo, &str),
    named_key: Option<&str>,
    text: &[u8],
) -> Result<(), StoreError> {
    let mut writer = store.put_object(bucket.reference(), key, Some(text.len() as u64), None)?;
    named_key.map_or(Ok(()), |name| writer.encrypt_under(name))?;
    writer.append(text)?;
    let acl = Acl { owner: bucket.owner.clone(), grants: None };
    let options = PutOptions {
        metadata: Metadata { content_type: Some("text/plain".to_owned()), ..Metadata::default() },
        attributes: Attributes { acl, ..Attributes::default() },
        ..PutOptions::default()
    };
    writer.finish(options).map(drop)
}

/// Whole lines, as many as one log object holds.
fn objects_of(mut text: &[u8]) -> Vec<&[u8]> {
    let mut objects = Vec::new();
    while text.len() > LOG_OBJECT_BYTES_MAX {
        let end = text[..LOG_OBJECT_BYTES_MAX].iter().rposition(|byte| *byte == b'\n');
        let (object, rest) = text.split_at(end.map_or(LOG_OBJECT_BYTES_MAX, |end| end + 1));
        objects.push(object);
        text = rest;
    }
    objects.extend((!text.is_empty()).then_some(text));
    objects
}

/// Whether `bucket` may hold lines about a bucket of `owner`.
pub(crate) fn takes_logs_of(bucket: &BucketInfo, owner: &str) -> bool {
    let writes = |permission| matches!(permission, Permission::Write | Permission::FullControl);
    let grants = bucket.acl.grants.iter().flatten();
    let mut delivers =
        grants.filter(|grant| grant.grantee == Grantee::LogDelivery && writes(grant.permission));
    bucket.owner == owner || delivers.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_objects_hold_whole_lines() {
        let line = [b'x'; 1000];
        let text = [&line[..], b"\n"].concat().repeat(3 * LOG_OBJECT_BYTES_MAX / 1001);
        let objects = objects_of(&text);
        assert!(objects.len() >= 3 && objects.iter().all(|object| object.len() <= LOG_OBJECT_BYTES_MAX));
        assert!(objects.iter().all(|object| object.ends_with(b"\n") && object.len() % 1001 == 0));
        assert_eq!(objects.concat(), text);
        assert_eq!(objects_of(b""), Vec::<&[u8]>::new());
    }

    #[test]
    fn what_waits_is_bounded() {
        let log = AccessLog::default();
        let bucket = BucketInfo {
            id: BucketId::default(),
            name: "b".to_owned(),
            created: std::time::UNIX_EPOCH,
            owner: String::new(),
            versioning: Default::default(),
            lock: Default::default(),
            acl: Acl::default(),
        };
        let target = Target { bucket: "logs".to_owned(), prefix: String::new(), names: Names::Simple };
        let line = "y".repeat(LOG_BYTES_MAX / 4);
        let pushed = (0..8).filter(|_| log.push(&bucket, &target, &line)).count();
        assert_eq!(pushed, 4);
        assert_eq!(log.take().batches.into_values().map(|batch| batch.lines).collect::<Vec<_>>(), [4]);
        assert!(log.push(&bucket, &target, &line), "delivered, there is room again");
    }
}
