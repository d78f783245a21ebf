//! How much buckets hold, and how much they may.
//!
//! Invariants:
//! - What a bucket holds is counted in memory: once when the store opens, from the same rows that say which sectors are taken, and
//!   with every commit from then on. Nothing of it is on the volume, so nothing can differ from the rows.
//! - A quota is checked in the commit, against what the commits before it made: any number of clients together pass it by nothing.
//! - It is checked before a body of declared length begins as well, against what is there and what is coming: who may store little
//!   does not hold much either while it is on its way.
//! - What only removes is never refused.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::buckets::BucketRef;
use crate::commit::{Dropped, Mutation, Shared};
use crate::error::StoreError;
use crate::index::{Changes, Snapshot};
use crate::records::{BucketId, BucketRecord, QuotaRecord};
use crate::store::Store;

/// What a bucket holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all versions and of the parts of unfinished uploads.
    pub bytes: u64,
    /// Versions, delete markers counted.
    pub objects: u64,
}

/// What a bucket, or everything that a user owns, may hold at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Bytes, as [`Usage::bytes`] counts them.
    pub bytes: Option<u64>,
    /// Versions, as [`Usage::objects`] counts them.
    pub objects: Option<u64>,
}

/// Whose quota it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QuotaOf {
    /// A bucket's.
    Bucket(String),
    /// That of all buckets that a user owns together.
    User(String),
}

impl QuotaOf {
    /// Its name in the index: buckets have no slash.
    pub(crate) fn row(&self) -> String {
        match self {
            Self::Bucket(name) => format!("bucket/{name}"),
            Self::User(name) => format!("user/{name}"),
        }
    }

    fn of_row(row: &str) -> Option<Self> {
        match row.split_once('/')? {
            ("bucket", name) => Some(Self::Bucket(name.to_owned())),
            ("user", name) => Some(Self::User(name.to_owned())),
            _ => None,
        }
    }
}

/// What a commit in the making adds to a bucket, or takes from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct UsageChange {
    pub(crate) bytes: i64,
    pub(crate) objects: i64,
}

impl Usage {
    pub(crate) fn with(self, change: UsageChange) -> Self {
        // Counted from the same rows, so it can't fall below nothing.
        Self {
            bytes: self.bytes.saturating_add_signed(change.bytes),
            objects: self.objects.saturating_add_signed(change.objects),
        }
    }

    fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, objects: self.objects + other.objects }
    }
}

impl Quota {
    /// Whether `usage` passes it, where it is more than before.
    fn check(&self, usage: Usage, change: UsageChange) -> Result<(), StoreError> {
        let passes =
            |limit: Option<u64>, used: u64, more: i64| more > 0 && limit.is_some_and(|limit| used > limit);
        if passes(self.bytes, usage.bytes, change.bytes)
            || passes(self.objects, usage.objects, change.objects)
        {
            return Err(StoreError::QuotaExceeded);
        }
        Ok(())
    }
}

/// What every bucket holds, as the last commit left it.
#[derive(Debug, Default)]
pub(crate) struct Counted(Mutex<HashMap<BucketId, Usage>>);

impl Counted {
    pub(crate) fn of(&self, bucket: BucketId) -> Usage {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.get(&bucket).copied().unwrap_or_default()
    }

    pub(crate) fn add(&self, changes: &HashMap<BucketId, UsageChange>) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (bucket, change) in changes {
            let usage = counted.entry(*bucket).or_default();
            *usage = usage.with(*change);
            if *usage == Usage::default() {
                counted.remove(bucket);
            }
        }
    }
}

/// Whether a bucket, and its owner, may hold so much more.
pub(crate) fn check(
    changes: &Changes<'_>,
    (name, bucket): (&str, &BucketRecord),
    more: UsageChange,
) -> Result<(), StoreError> {
    let quota = |of: QuotaOf| changes.identity::<QuotaRecord>(&of.row());
    if let Some(record) = quota(QuotaOf::Bucket(name.to_owned()))? {
        record.quota.check(changes.usage(bucket.id).with(more), more)?;
    }
    if bucket.owner.is_empty() {
        return Ok(());
    }
    if let Some(record) = quota(QuotaOf::User(bucket.owner.clone()))? {
        let mut total = Usage::default();
        changes.walk_buckets(&mut |_, other| {
            if other.owner == bucket.owner {
                total = total.and(changes.usage(other.id));
            }
            Ok(())
        })?;
        record.quota.check(total.with(more), more)?;
    }
    Ok(())
}

/// Bytes by which bodies on their way will make their buckets hold more.
#[derive(Debug, Default)]
pub(crate) struct Coming(Mutex<HashMap<BucketId, u64>>);

/// A body on its way. To be dropped before its commit, which counts what came.
#[derive(Debug)]
pub(crate) struct Claim {
    coming: Arc<Coming>,
    bucket: BucketId,
    bytes: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut coming = self.coming.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut claimed) = coming.entry(self.bucket) {
            *claimed.get_mut() -= self.bytes;
            if *claimed.get() == 0 {
                claimed.remove();
            }
        }
    }
}

/// Claims `more` bytes for a body that begins, if the quotas of the bucket and of its owner leave so many beside what is there and what
/// others claimed. `None` where there is no quota, or nothing more is asked for.
pub(crate) fn claim(
    shared: &Shared,
    snapshot: &Snapshot,
    (name, bucket): (&str, &BucketRecord),
    more: i64,
) -> Result<Option<Claim>, StoreError> {
    let bytes = u64::try_from(more).unwrap_or_default();
    let limit = |of: QuotaOf| -> Result<Option<u64>, StoreError> {
        Ok(snapshot.identity::<QuotaRecord>(&of.row())?.and_then(|record| record.quota.bytes))
    };
    let mut limits = Vec::new();
    if let Some(limit) = limit(QuotaOf::Bucket(name.to_owned()))? {
        limits.push((limit, vec![bucket.id]));
    }
    if !bucket.owner.is_empty()
        && let Some(limit) = limit(QuotaOf::User(bucket.owner.clone()))?
    {
        let mut owned = Vec::new();
        snapshot.walk_buckets(&mut |_, other| {
            owned.extend((other.owner == bucket.owner).then_some(other.id));
            Ok(())
        })?;
        limits.push((limit, owned));
    }
    if bytes == 0 || limits.is_empty() {
        return Ok(None);
    }
    let mut coming = shared.coming.0.lock().unwrap_or_else(PoisonError::into_inner);
    let held = |id: &BucketId| {
        shared.index.counted().of(*id).bytes.saturating_add(coming.get(id).copied().unwrap_or_default())
    };
    for (limit, buckets) in limits {
        if buckets.iter().map(held).fold(bytes, u64::saturating_add) > limit {
            return Err(StoreError::QuotaExceeded);
        }
    }
    *coming.entry(bucket.id).or_default() += bytes;
    Ok(Some(Claim { coming: Arc::clone(&shared.coming), bucket: bucket.id, bytes }))
}

impl Store {
    /// What a bucket holds.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`].
    pub fn usage(&self, bucket: impl Into<BucketRef>) -> Result<Usage, StoreError> {
        let bucket = bucket.into();
        let record = self.shared.read(|snapshot| snapshot.bucket(&bucket))?;
        Ok(self.shared.index.counted().of(record.id))
    }

    /// All quotas.
    ///
    /// # Errors
    /// Outages only.
    pub fn quotas(&self) -> Result<Vec<(QuotaOf, Quota)>, StoreError> {
        let rows = self.shared.read(|snapshot| snapshot.identities_of::<QuotaRecord>())?;
        Ok(rows
            .into_iter()
            .filter_map(|(row, record)| Some((QuotaOf::of_row(&row)?, record.quota)))
            .collect())
    }

    /// Sets a quota, or lifts it. What is there already stays, however much it is.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::NoSuchUser`].
    pub fn set_quota(&self, of: QuotaOf, quota: Option<Quota>) -> Result<(), StoreError> {
        self.shared.submit(SetQuota { of, quota })
    }
}

struct SetQuota {
    of: QuotaOf,
    quota: Option<Quota>,
}

impl Mutation for SetQuota {
    type Output = ();
    const NEEDS_ROOM: bool = false;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<(), StoreError> {
        match &self.of {
            QuotaOf::Bucket(name) => drop(changes.bucket(&name.into())?),
            QuotaOf::User(name) => drop(crate::identities::user_record(changes, name)?),
        }
        match self.quota {
            Some(quota) => changes.put_identity(&self.of.row(), &QuotaRecord { quota }),
            None => changes.remove_identity::<QuotaRecord>(&self.of.row()),
        }
    }

    fn committed(self) {}
}
