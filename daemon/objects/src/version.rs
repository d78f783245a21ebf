//! Versions of objects: their names and order, and the changes that make, hide and remove them.
//!
//! The newest version of a key is in `objects` if it is an object. All other versions, delete markers among them, are in
//! `versions`, newest first. A delete marker is thus the newest version exactly where `objects` has no row.
//!
//! Amazon S3 User Guide, "How S3 Versioning works" and "Working with delete markers".

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::commit::{Dropped, drop_body};
use crate::error::StoreError;
use crate::index::Changes;
use crate::records::{Attributes, Body, BucketRecord, ETag, Metadata, ObjectRecord};

/// Whether a bucket keeps what is overwritten and deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Versioning {
    /// Never did: there is one version of a key, the null version.
    #[default]
    Unversioned,
    /// Every write makes a version.
    Enabled,
    /// Writes replace the null version; those with ids stay.
    Suspended,
}

/// The name and place of a version in an index row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    /// Orders the versions of a key: the highest is the newest. Microseconds since 1970 where the clock did not stand
    /// still or go back. 0 for what was written before the bucket knew versions, which therefore is the oldest.
    pub(crate) sequence: u64,
    pub(crate) random: u64,
    /// Whether clients call it `null`.
    pub(crate) is_null: bool,
}

/// What clients call a version by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VersionId {
    /// The one that was written while the bucket did not make versions.
    Null,
    /// Any other: its place and a random number.
    Id {
        /// Orders the versions of a key.
        sequence: u64,
        /// Tells it from another store's.
        random: u64,
    },
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Id { sequence, random } => write!(f, "{sequence:016x}{random:016x}"),
        }
    }
}

impl VersionId {
    /// What a client calls a version by; `None` if no version was ever called so.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "null" {
            return Some(Self::Null);
        }
        let digits = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten()?;
        let sequence = u64::try_from(number >> 64).ok()?;
        let random = u64::try_from(number & u128::from(u64::MAX)).ok()?;
        Some(Self::Id { sequence, random })
    }
}

impl Version {
    /// Of everything that was written before its bucket knew versions.
    pub(crate) const UNVERSIONED: Self = Self { sequence: 0, random: 0, is_null: true };

    pub(crate) fn id(self) -> VersionId {
        match self.is_null {
            true => VersionId::Null,
            false => VersionId::Id { sequence: self.sequence, random: self.random },
        }
    }
}

/// A moment and a random number, from which a commit makes the name of a version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now_ms: u64,
    pub(crate) random: u64,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { now_ms: crate::store::now_ms(), random: u64::from_le_bytes(crate::store::random_bytes()) }
    }
}

/// What a delete did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// The delete marker that was made, or the version that was removed; `None` in a bucket without versions.
    pub version: Option<VersionId>,
    /// Whether that is a delete marker.
    pub delete_marker: bool,
    /// Whether anything is other than before: deleting what is not there is no error.
    pub changed: bool,
}

/// The version that a request names, or the newest.
pub(crate) fn find(
    found: Option<ObjectRecord>,
    named: Option<VersionId>,
) -> Result<ObjectRecord, StoreError> {
    match (found, named) {
        (Some(record), named) if record.delete_marker => Err(StoreError::IsDeleteMarker {
            version: record.version.id(),
            modified_ms: record.modified_ms,
            named: named.is_some(),
        }),
        (Some(record), _) => Ok(record),
        (None, None) => Err(StoreError::NoSuchKey),
        (None, Some(_)) => Err(StoreError::NoSuchVersion),
    }
}

/// Makes `record`, whose lock is settled, the newest version of `key`; what was there becomes an older version or goes, as the
/// bucket has it.
pub(crate) fn put(
    changes: &mut Changes<'_>,
    (bucket, key): (&BucketRecord, &str),
    mut record: ObjectRecord,
    moment: Moment,
    dropped: &mut Dropped,
) -> Result<ObjectRecord, StoreError> {
    let current = changes.object(bucket.id, key)?;
    record.version = next_version(changes, (bucket, key), current.as_ref(), moment)?;
    make_room(changes, (bucket, key), current, moment, dropped)?;
    changes.put_object(bucket.id, key, &record)?;
    Ok(record)
}

/// Deletes `key` as a request without a version does: hides it behind a delete marker where the bucket has versions.
pub(crate) fn hide(
    changes: &mut Changes<'_>,
    (bucket, key): (&BucketRecord, &str),
    owner: &str,
    moment: Moment,
    dropped: &mut Dropped,
) -> Result<Deleted, StoreError> {
    let current = changes.object(bucket.id, key)?;
    if bucket.versioning == Versioning::Unversioned {
        let changed = current.is_some();
        if let Some(current) = current {
            drop_body(changes, current.body, dropped)?;
            changes.remove_object(bucket.id, key)?;
        }
        return Ok(Deleted { changed, ..Deleted::default() });
    }
    let version = next_version(changes, (bucket, key), current.as_ref(), moment)?;
    let existed = current.is_some();
    make_room(changes, (bucket, key), current, moment, dropped)?;
    if existed {
        changes.remove_object(bucket.id, key)?;
    }
    changes.put_version(bucket.id, key, &delete_marker(version, owner, moment.now_ms))?;
    Ok(Deleted { version: Some(version.id()), delete_marker: true, changed: true })
}

/// Removes one version for good. What is not there is no error, as in S3.
pub(crate) fn remove(
    changes: &mut Changes<'_>,
    (bucket, key): (&BucketRecord, &str),
    id: VersionId,
    (now_ms, bypass): (u64, bool),
    dropped: &mut Dropped,
) -> Result<Deleted, StoreError> {
    let unchanged = Deleted { version: Some(id), delete_marker: false, changed: false };
    let current = changes.object(bucket.id, key)?;
    let Some(record) = changes.version(bucket.id, key, id)? else { return Ok(unchanged) };
    record.attributes.lock.check_delete(now_ms, bypass)?;
    let delete_marker = record.delete_marker;
    let was_current = current.is_some_and(|current| current.version == record.version);
    if was_current {
        changes.remove_object(bucket.id, key)?;
    } else {
        changes.remove_version(bucket.id, key, record.version)?;
    }
    drop_body(changes, record.body, dropped)?;
    if was_current || (delete_marker && changes.object(bucket.id, key)?.is_none()) {
        promote(changes, bucket, key)?;
    }
    Ok(Deleted { delete_marker, changed: true, ..unchanged })
}

/// The newest of the older versions becomes the one that is read, if it is an object.
fn promote(changes: &mut Changes<'_>, bucket: &BucketRecord, key: &str) -> Result<(), StoreError> {
    match changes.newest_version(bucket.id, key)? {
        Some(newest) if !newest.delete_marker => {
            changes.remove_version(bucket.id, key, newest.version)?;
            changes.put_object(bucket.id, key, &newest)
        }
        _ => Ok(()),
    }
}

/// Takes the current object out of the way of a new version, and the null version where a new one comes.
fn make_room(
    changes: &mut Changes<'_>,
    (bucket, key): (&BucketRecord, &str),
    current: Option<ObjectRecord>,
    moment: Moment,
    dropped: &mut Dropped,
) -> Result<(), StoreError> {
    let replaces_null = bucket.versioning != Versioning::Enabled;
    let current = match current {
        Some(current) if replaces_null && current.version.is_null => {
            current.attributes.lock.check_delete(moment.now_ms, false)?;
            return drop_body(changes, current.body, dropped);
        }
        current => current,
    };
    if bucket.versioning == Versioning::Suspended
        && let Some(null) = changes.version(bucket.id, key, VersionId::Null)?
    {
        null.attributes.lock.check_delete(moment.now_ms, false)?;
        changes.remove_version(bucket.id, key, null.version)?;
        drop_body(changes, null.body, dropped)?;
    }
    match current {
        Some(current) => changes.put_version(bucket.id, key, &current),
        None => Ok(()),
    }
}

fn next_version(
    changes: &Changes<'_>,
    (bucket, key): (&BucketRecord, &str),
    current: Option<&ObjectRecord>,
    moment: Moment,
) -> Result<Version, StoreError> {
    if bucket.versioning == Versioning::Unversioned {
        return Ok(Version::UNVERSIONED);
    }
    let newest = match current {
        Some(current) => Some(current.version.sequence),
        None => changes.newest_version(bucket.id, key)?.map(|newest| newest.version.sequence),
    };
    // Later than every version there is, whatever the clock did meanwhile.
    let sequence =
        moment.now_ms.saturating_mul(1000).max(newest.map_or(1, |newest| newest.saturating_add(1)));
    let is_null = bucket.versioning == Versioning::Suspended;
    Ok(Version { sequence, random: moment.random, is_null })
}

fn delete_marker(version: Version, owner: &str, now_ms: u64) -> ObjectRecord {
    let mut attributes = Attributes::default();
    owner.clone_into(&mut attributes.acl.owner);
    ObjectRecord {
        body: Body::Inline(Vec::new()),
        bytes: 0,
        modified_ms: now_ms,
        etag: ETag { md5: [0; 16], parts: 0 },
        checksum: None,
        metadata: Metadata::default(),
        version,
        delete_marker: true,
        attributes,
        customer_key: None,
        named_key: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_as_they_were_and_others_are_none() {
        for id in [VersionId::Null, VersionId::Id { sequence: u64::MAX, random: 1 }] {
            assert_eq!(VersionId::parse(&id.to_string()), Some(id));
        }
        for bad in ["", "NULL", "0", &"f".repeat(31), &"F".repeat(32), &"+".repeat(32), &"ä".repeat(16)] {
            assert_eq!(VersionId::parse(bad), None, "{bad}");
        }
    }
}
