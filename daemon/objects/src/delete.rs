//! Deletes: of what is current, and of versions.

use crate::commit::{Dropped, Mutation};
use crate::condition::Condition;
use crate::error::StoreError;
use crate::index::Changes;
use crate::limits::DELETE_KEYS_MAX;
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
    /// [`StoreError::NoSuchBucket`], [`StoreError::PreconditionFailed`], [`StoreError::NoSuchKey`] (a condition on nothing),
    /// [`StoreError::Locked`].
    pub fn delete_object(&self, bucket: &str, request: DeleteRequest) -> Result<Deleted, StoreError> {
        check_key(&request.key)?;
        let mut results = self.submit_deletes(bucket, vec![request])?;
        results.pop().unwrap_or_else(|| Ok(Deleted::default()))
    }

    /// Deletes many objects in one commit; the results are in the order of `requests`.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::TooManyKeys`]. What concerns one key is in the results.
    pub fn delete_objects(
        &self,
        bucket: &str,
        requests: &[DeleteRequest],
    ) -> Result<Vec<Result<Deleted, StoreError>>, StoreError> {
        if requests.len() > DELETE_KEYS_MAX {
            return Err(StoreError::TooManyKeys);
        }
        match self.submit_deletes(bucket, requests.to_vec()) {
            // A full store has few pages to spare: smaller steps need fewer.
            Err(StoreError::NoSpace) if requests.len() > 1 => {
                let (first, second) = requests.split_at(requests.len() / 2);
                let mut results = self.delete_objects(bucket, first)?;
                results.extend(self.delete_objects(bucket, second)?);
                Ok(results)
            }
            results => results,
        }
    }

    fn submit_deletes(
        &self,
        bucket: &str,
        requests: Vec<DeleteRequest>,
    ) -> Result<Vec<Result<Deleted, StoreError>>, StoreError> {
        let requests = requests.into_iter().map(|request| (request, Moment::now())).collect();
        self.shared.submit(DeleteObjects { bucket: bucket.to_owned(), requests })
    }
}

struct DeleteObjects {
    bucket: String,
    requests: Vec<(DeleteRequest, Moment)>,
}

impl Mutation for DeleteObjects {
    type Output = Vec<Result<Deleted, StoreError>>;
    const NEEDS_ROOM: bool = false;

    fn apply(&self, changes: &mut Changes<'_>, dropped: &mut Dropped) -> Result<Self::Output, StoreError> {
        let bucket = changes.bucket(&self.bucket)?.ok_or(StoreError::NoSuchBucket)?;
        let mut results = Vec::with_capacity(self.requests.len());
        for (request, moment) in &self.requests {
            match delete(changes, &bucket, request, *moment, dropped) {
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

/// Checks everything before it changes anything, so that one refused key leaves the others' changes whole.
fn delete(
    changes: &mut Changes<'_>,
    bucket: &BucketRecord,
    request: &DeleteRequest,
    moment: Moment,
    dropped: &mut Dropped,
) -> Result<Deleted, StoreError> {
    check_key(&request.key)?;
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
