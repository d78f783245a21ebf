//! Deletes: of what is current, and of versions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::buckets::BucketRef;
use crate::commit::{Dropped, Mutation};
use crate::condition::Condition;
use crate::error::StoreError;
use crate::events::{About, Happened, Notices};
use crate::index::{Changes, Step};
use crate::limits::DELETE_KEYS_MAX;
use crate::list::VersionEntry;
use crate::records::BucketRecord;
use crate::store::{Store, check_key};
use crate::version::{self, Deleted, Moment, VersionId};

/// One object to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteRequest {
    /// Its key.
    pub key: String,
    /// The version to remove for good; without one the object is deleted as its bucket has it.
    pub version: Option<VersionId>,
    /// When to refuse.
    pub condition: Condition,
    /// Whether a retention under governance does not count.
    pub bypass_governance: bool,
    /// Who asks: a delete marker is theirs.
    pub user: String,
    /// What the key's version was when it was decided to delete it, listed with its tags. Where it is anything else by now (written again, read as
    /// the newest or not any more, tagged otherwise), it stays: names are given again, `null` by every write that makes no version.
    pub only_if: Option<VersionEntry>,
    /// Together with `only_if`: so many versions must lie between it and the current one, or it stays.
    pub only_behind: usize,
    /// Who is to be told.
    pub notices: Notices,
    /// The [`Store::settings_generation`] in which it was decided: in another one, nothing is deleted.
    pub only_in: Option<u64>,
}

impl DeleteRequest {
    /// Of whatever `key` is now.
    pub fn of(key: impl Into<String>) -> Self {
        Self { key: key.into(), ..Self::default() }
    }
}

impl Store {
    /// Deletes an object. Deleting what isn't there is no error, as in S3.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::PreconditionFailed`] (a condition, or `only_if`), [`StoreError::NoSuchKey`] (a
    /// condition on nothing), [`StoreError::Locked`], [`StoreError::Conflict`] (`only_in`).
    pub fn delete_object(
        &self,
        bucket: impl Into<BucketRef>,
        request: DeleteRequest,
    ) -> Result<Deleted, StoreError> {
        check_key(&request.key)?;
        let mut results = self.submit_deletes(&bucket.into(), vec![request])?;
        results.pop().unwrap_or_else(|| Ok(Deleted::default()))
    }

    /// Deletes many objects in one commit; the results are in the order of `requests`.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::TooManyKeys`]. What concerns one key is in the results.
    pub fn delete_objects(
        &self,
        bucket: impl Into<BucketRef>,
        requests: &[DeleteRequest],
    ) -> Result<Vec<Result<Deleted, StoreError>>, StoreError> {
        let bucket = bucket.into();
        if requests.len() > DELETE_KEYS_MAX {
            return Err(StoreError::TooManyKeys);
        }
        let submit = |requests: &[DeleteRequest]| self.submit_deletes(&bucket, requests.to_vec());
        match submit(requests) {
            Err(StoreError::NoSpace) if requests.len() > 1 => Ok(in_halves(requests, &submit)),
            results => results,
        }
    }

    fn submit_deletes(
        &self,
        bucket: &BucketRef,
        requests: Vec<DeleteRequest>,
    ) -> Result<Vec<Result<Deleted, StoreError>>, StoreError> {
        let requests = requests.into_iter().map(|request| (request, Moment::now())).collect();
        let settings = self.shared.settings_counter();
        self.shared.submit(DeleteObjects { bucket: bucket.clone(), requests, settings })
    }
}

type Results = Vec<Result<Deleted, StoreError>>;

/// A full store has few pages to spare: smaller steps need fewer. What a step did is durable, whatever the next one ends in: so each
/// key has an answer of its own.
fn in_halves(
    requests: &[DeleteRequest],
    submit: &impl Fn(&[DeleteRequest]) -> Result<Results, StoreError>,
) -> Results {
    let (first, second) = requests.split_at(requests.len() / 2);
    let step = |half: &[DeleteRequest]| match submit(half) {
        Err(StoreError::NoSpace) if half.len() > 1 => in_halves(half, submit),
        Err(error) => vec![Err(error); half.len()],
        Ok(results) => results,
    };
    [step(first), step(second)].concat()
}

struct DeleteObjects {
    bucket: BucketRef,
    requests: Vec<(DeleteRequest, Moment)>,
    /// Counts changes of settings; between two commits it stands still.
    settings: Arc<AtomicU64>,
}

impl Mutation for DeleteObjects {
    type Output = Vec<Result<Deleted, StoreError>>;
    const NEEDS_ROOM: bool = false;

    fn apply(&self, changes: &mut Changes<'_>, dropped: &mut Dropped) -> Result<Self::Output, StoreError> {
        let bucket = changes.bucket(&self.bucket)?;
        let mut results = Vec::with_capacity(self.requests.len());
        let settings = self.settings.load(Ordering::SeqCst);
        for (request, moment) in &self.requests {
            if request.only_in.is_some_and(|only_in| only_in != settings) {
                results.push(Err(StoreError::Conflict));
                continue;
            }
            let result = delete(changes, &bucket, request, *moment, dropped);
            if let Ok(deleted) = &result
                && deleted.changed
            {
                let happened = match deleted.delete_marker && request.version.is_none() {
                    true => Happened::Hidden,
                    false => Happened::Removed,
                };
                let about = About::deleted((self.bucket.name(), &bucket), &request.key, deleted);
                request.notices.put(changes, happened, &about)?;
            }
            match result {
                Err(error) if error.is_outage() => return Err(error),
                result => results.push(result),
            }
        }
        Ok(results)
    }

    fn committed(self) {}
}

/// A condition of what is not there holds, but for a delete marker: that is there and not what was asked for.
fn check_current(
    changes: &Changes<'_>,
    bucket: &BucketRecord,
    request: &DeleteRequest,
) -> Result<(), StoreError> {
    if request.condition == Condition::default() {
        return Ok(());
    }
    match changes.object(bucket.id, &request.key)? {
        Some(current) => request.condition.check(Some(&current)),
        None if changes.newest_version(bucket.id, &request.key)?.is_some() => {
            Err(StoreError::PreconditionFailed)
        }
        None => Ok(()),
    }
}

/// Whether a version is still what somebody saw.
fn check_seen(
    changes: &Changes<'_>,
    bucket: &BucketRecord,
    (key, seen): (&str, &VersionEntry),
) -> Result<(), StoreError> {
    let found = changes.version(bucket.id, key, seen.version)?;
    let newest = match changes.object(bucket.id, key)? {
        Some(current) => Some(current),
        None => changes.newest_version(bucket.id, key)?,
    };
    let is_same = found.is_some_and(|found| {
        let is_latest = newest.is_some_and(|newest| newest.version == found.version);
        VersionEntry::of(key, found, is_latest, true) == *seen
    });
    if is_same { Ok(()) } else { Err(StoreError::PreconditionFailed) }
}

/// Whether there are still so many versions that are newer and not current: others may have gone since they were counted.
fn check_behind(
    changes: &Changes<'_>,
    bucket: &BucketRecord,
    (key, seen): (&str, &VersionEntry),
    wanted: usize,
) -> Result<(), StoreError> {
    if wanted == 0 {
        return Ok(());
    }
    let mut newer = 0;
    changes.walk_older(bucket.id, key, &mut |older| {
        if older.version.id() == seen.version {
            return Ok(Step::Stop);
        }
        newer += 1;
        Ok(if newer > wanted { Step::Stop } else { Step::Next })
    })?;
    // A delete marker that is current stands with the older ones.
    let current = usize::from(changes.object(bucket.id, key)?.is_none());
    if newer >= wanted + current { Ok(()) } else { Err(StoreError::PreconditionFailed) }
}

/// Checks everything before it changes anything, so that one refused key leaves the others' changes whole.
fn delete(
    changes: &mut Changes<'_>,
    bucket: &BucketRecord,
    request: &DeleteRequest,
    moment: Moment,
    dropped: &mut Dropped,
) -> Result<Deleted, StoreError> {
    check_key(&request.key)?;
    if let Some(seen) = &request.only_if {
        check_seen(changes, bucket, (&request.key, seen))?;
        check_behind(changes, bucket, (&request.key, seen), request.only_behind)?;
    }
    let place = (bucket, request.key.as_str());
    match request.version {
        None => {
            check_current(changes, bucket, request)?;
            version::hide(changes, place, &request.user, moment, dropped)
        }
        Some(id) => {
            // What is not there is no error, whatever is asked of it.
            let asks = request.condition != Condition::default();
            let found = if asks { changes.version(bucket.id, &request.key, id)? } else { None };
            found.iter().try_for_each(|found| request.condition.check(Some(found)))?;
            version::remove(changes, place, id, (moment.now_ms, request.bypass_governance), dropped)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_step_deleted_is_said_though_another_finds_no_room() {
        let requests: Vec<_> = ["a", "b", "c", "full", "d", "e"].map(DeleteRequest::of).into();
        let submit = |step: &[DeleteRequest]| match step {
            step if step.len() > 2 || step.iter().any(|request| request.key == "full") => {
                Err(StoreError::NoSpace)
            }
            step => Ok(vec![Ok(Deleted::default()); step.len()]),
        };
        let deleted: Vec<bool> = in_halves(&requests, &submit).iter().map(Result::is_ok).collect();
        assert_eq!(deleted, [true, true, true, false, true, true]);
    }
}
