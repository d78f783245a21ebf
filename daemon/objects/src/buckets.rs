//! Buckets, their settings, and the documents that configure them.

use std::time::SystemTime;

use crate::acl::Acl;
use crate::commit::{Dropped, Mutation};
use crate::error::StoreError;
use crate::index::{Changes, Step};
use crate::limits::{
    BUCKET_NAME_BYTES, BUCKETS_MAX, BUCKETS_PER_USER_MAX, DOCUMENT_BYTES_MAX, LIST_PAGE_MAX,
};
use crate::list::ListRequest;
use crate::lock::{BucketLock, DefaultRetention};
use crate::records::{BucketId, BucketRecord, QuotaRecord};
use crate::store::{Store, now_ms, time_of};
use crate::usage::QuotaOf;
use crate::version::Versioning;
use crate::write::check_grants;

/// Which bucket a call is about: the very one that was looked up before, or whichever has a name when the call is carried out.
///
/// A name is given again as soon as its bucket is deleted: to another user, for all that is known. Whoever decided something
/// about a bucket hands on the [`BucketInfo::reference`] of that one, and everything ends in [`StoreError::NoSuchBucket`] once it is
/// gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketRef {
    name: String,
    id: Option<BucketId>,
}

impl BucketRef {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn means(&self, found: BucketId) -> bool {
        self.id.is_none_or(|id| id == found)
    }
}

impl<T: AsRef<str> + ?Sized> From<&T> for BucketRef {
    fn from(name: &T) -> Self {
        Self { name: name.as_ref().to_owned(), id: None }
    }
}

impl From<&BucketRef> for BucketRef {
    fn from(bucket: &BucketRef) -> Self {
        bucket.clone()
    }
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketInfo {
    /// Tells it from another that gets its name later.
    pub id: BucketId,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: SystemTime,
    /// Name of the user who made it; empty where all users of the store share it.
    pub owner: String,
    /// Whether it keeps versions.
    pub versioning: Versioning,
    /// Whether and how it locks them.
    pub lock: BucketLock,
    /// Owner and grants.
    pub acl: Acl,
}

/// The documents of a bucket by name.
pub type Documents = Vec<(String, Vec<u8>)>;

/// What a bucket is made with.
#[derive(Clone, Debug, Default)]
pub struct BucketOptions {
    /// Name of the user who makes it; empty for one that all users of the store share.
    pub owner: String,
    /// Whether versions can be locked: the bucket then keeps versions from the start.
    pub lock: bool,
    /// Owner and grants.
    pub acl: Acl,
    /// Documents by name, as [`Store::set_bucket_document`] takes them.
    pub documents: Documents,
}

impl BucketInfo {
    /// This bucket, for calls that are not to mean another.
    pub fn reference(&self) -> BucketRef {
        BucketRef { name: self.name.clone(), id: Some(self.id) }
    }

    pub(crate) fn of(name: &str, record: BucketRecord) -> Self {
        Self {
            id: record.id,
            name: name.to_owned(),
            created: time_of(record.created_ms),
            owner: record.owner,
            versioning: record.versioning,
            lock: record.lock,
            acl: record.acl,
        }
    }
}

impl Store {
    /// Makes a bucket.
    ///
    /// # Errors
    /// [`StoreError::BucketExists`], [`StoreError::InvalidBucketName`], [`StoreError::TooManyBuckets`].
    pub fn create_bucket(&self, name: &str, options: BucketOptions) -> Result<(), StoreError> {
        check_bucket_name(name)?;
        check_grants(&options.acl)?;
        options.documents.iter().try_for_each(|(_, document)| check_document(document))?;
        let versioning = if options.lock { Versioning::Enabled } else { Versioning::Unversioned };
        let record = BucketRecord {
            id: BucketId(self.shared.next_bucket()),
            created_ms: now_ms(),
            owner: options.owner,
            versioning,
            lock: BucketLock { enabled: options.lock, default: None },
            acl: options.acl,
        };
        self.shared.submit(CreateBucket { name: name.to_owned(), record, documents: options.documents })
    }

    /// One bucket.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`].
    pub fn bucket(&self, bucket: impl Into<BucketRef>) -> Result<BucketInfo, StoreError> {
        let bucket = bucket.into();
        let record = self.shared.read(|snapshot| snapshot.bucket(&bucket))?;
        Ok(BucketInfo::of(bucket.name(), record))
    }

    /// All buckets by name.
    ///
    /// # Errors
    /// Outages only.
    pub fn buckets(&self) -> Result<Vec<BucketInfo>, StoreError> {
        self.shared.read(|snapshot| {
            let mut buckets = Vec::new();
            snapshot.walk_buckets(&mut |name, record| {
                buckets.push(BucketInfo::of(name, record));
                Ok(())
            })?;
            Ok(buckets)
        })
    }

    /// Deletes a bucket that holds neither objects nor versions of any. Unfinished uploads are aborted.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`]; [`StoreError::BucketNotEmpty`], then no upload was touched, unless an object came
    /// meanwhile.
    pub fn delete_bucket(&self, bucket: impl Into<BucketRef>) -> Result<(), StoreError> {
        let bucket = self.bucket(bucket)?.reference();
        while !self.shared.submit(DeleteBucket { bucket: bucket.clone() })? {
            let page = ListRequest { limit: LIST_PAGE_MAX, ..ListRequest::default() };
            for upload in self.list_uploads(&bucket, &page, None)?.uploads {
                match self.abort_upload(&bucket, &upload.key, &upload.id) {
                    Err(StoreError::NoSuchUpload) => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }

    /// Begins or suspends versioning.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`]; [`StoreError::InvalidBucketState`] where versions may be locked, and for
    /// [`Versioning::Unversioned`], to which there is no way back.
    pub fn set_versioning(
        &self,
        bucket: impl Into<BucketRef>,
        versioning: Versioning,
    ) -> Result<(), StoreError> {
        self.change_bucket(bucket, move |record| {
            let suspends = versioning != Versioning::Enabled;
            if versioning == Versioning::Unversioned || (suspends && record.lock.enabled) {
                return Err(StoreError::InvalidBucketState);
            }
            record.versioning = versioning;
            Ok(())
        })
    }

    /// Lets versions be locked, and says what new ones get that name no retention themselves.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::InvalidRetention`]; [`StoreError::InvalidBucketState`] where the bucket
    /// does not keep versions.
    pub fn set_bucket_lock(
        &self,
        bucket: impl Into<BucketRef>,
        default: Option<DefaultRetention>,
    ) -> Result<(), StoreError> {
        default.iter().try_for_each(DefaultRetention::check)?;
        self.change_bucket(bucket, move |record| {
            if record.versioning != Versioning::Enabled {
                return Err(StoreError::InvalidBucketState);
            }
            record.lock = BucketLock { enabled: true, default };
            Ok(())
        })
    }

    /// Replaces a bucket's access control list.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::TooManyGrants`].
    pub fn set_bucket_acl(&self, bucket: impl Into<BucketRef>, acl: Acl) -> Result<(), StoreError> {
        check_grants(&acl)?;
        self.change_bucket(bucket, move |record| {
            record.acl.clone_from(&acl);
            Ok(())
        })
    }

    /// A document that configures a bucket; what it says is known to the head only.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`].
    pub fn bucket_document(
        &self,
        bucket: impl Into<BucketRef>,
        document: &str,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let bucket = bucket.into();
        self.shared.read(|snapshot| {
            let bucket = snapshot.bucket(&bucket)?.id;
            snapshot.document(bucket, document)
        })
    }

    /// A bucket with all its documents, by name, as one moment had them.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`].
    pub fn bucket_with_documents(
        &self,
        bucket: impl Into<BucketRef>,
    ) -> Result<(BucketInfo, Documents), StoreError> {
        let bucket = bucket.into();
        self.shared.read(|snapshot| {
            let record = snapshot.bucket(&bucket)?;
            let documents = snapshot.documents_of(record.id)?;
            Ok((BucketInfo::of(bucket.name(), record), documents))
        })
    }

    /// Replaces a document of a bucket, or removes it.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::DocumentTooLarge`].
    pub fn set_bucket_document(
        &self,
        bucket: impl Into<BucketRef>,
        document: &'static str,
        text: Option<Vec<u8>>,
    ) -> Result<(), StoreError> {
        text.iter().try_for_each(|text| check_document(text))?;
        self.shared.submit(SetDocument { bucket: bucket.into(), document, text })
    }

    fn change_bucket(
        &self,
        bucket: impl Into<BucketRef>,
        change: impl Fn(&mut BucketRecord) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        self.shared.submit(ChangeBucket { bucket: bucket.into(), change: Box::new(change) })
    }
}

fn check_document(text: &[u8]) -> Result<(), StoreError> {
    if text.len() > DOCUMENT_BYTES_MAX { Err(StoreError::DocumentTooLarge) } else { Ok(()) }
}

struct CreateBucket {
    name: String,
    record: BucketRecord,
    documents: Documents,
}

impl Mutation for CreateBucket {
    type Output = ();
    const NEEDS_ROOM: bool = true;
    const CHANGES_SETTINGS: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<(), StoreError> {
        if let Some(existing) = changes.bucket_named(&self.name)? {
            // One without an owner is everybody's who shares the store.
            let own = existing.owner.is_empty() || existing.owner == self.record.owner;
            return Err(if own { StoreError::BucketExists } else { StoreError::BucketTaken });
        }
        if changes.bucket_count()? >= BUCKETS_MAX {
            return Err(StoreError::TooManyBuckets);
        }
        if !self.record.owner.is_empty() {
            let mut owned = 0;
            changes.walk_buckets(&mut |_, other| {
                owned += usize::from(other.owner == self.record.owner);
                Ok(())
            })?;
            if owned >= BUCKETS_PER_USER_MAX {
                return Err(StoreError::TooManyBuckets);
            }
        }
        for (name, document) in &self.documents {
            changes.put_document(self.record.id, name, document)?;
        }
        changes.put_bucket(&self.name, &self.record)
    }

    fn committed(self) {}
}

struct DeleteBucket {
    bucket: BucketRef,
}

impl Mutation for DeleteBucket {
    /// Whether it is gone; false where only unfinished uploads are in the way.
    type Output = bool;
    const NEEDS_ROOM: bool = false;
    const CHANGES_SETTINGS: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<bool, StoreError> {
        let bucket = changes.bucket(&self.bucket)?.id;
        let mut holds_objects = changes.holds_versions(bucket)?;
        changes.walk_objects(bucket, b"", &mut |_, _| {
            holds_objects = true;
            Ok(Step::Stop)
        })?;
        if holds_objects {
            return Err(StoreError::BucketNotEmpty);
        }
        let mut holds_uploads = false;
        changes.walk_uploads(bucket, (b"", 0), &mut |_, _, _| {
            holds_uploads = true;
            Ok(Step::Stop)
        })?;
        if holds_uploads {
            return Ok(false);
        }
        for (name, _) in changes.documents_of(bucket)? {
            changes.remove_document(bucket, &name)?;
        }
        changes.remove_identity::<QuotaRecord>(&QuotaOf::Bucket(self.bucket.name().to_owned()).row())?;
        changes.remove_bucket(self.bucket.name()).map(|()| true)
    }

    fn committed(self) {}
}

type Change = dyn Fn(&mut BucketRecord) -> Result<(), StoreError> + Send;

struct ChangeBucket {
    bucket: BucketRef,
    change: Box<Change>,
}

impl Mutation for ChangeBucket {
    type Output = ();
    const NEEDS_ROOM: bool = true;
    const CHANGES_SETTINGS: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<(), StoreError> {
        let mut record = changes.bucket(&self.bucket)?;
        (self.change)(&mut record)?;
        changes.put_bucket(self.bucket.name(), &record)
    }

    fn committed(self) {}
}

struct SetDocument {
    bucket: BucketRef,
    document: &'static str,
    text: Option<Vec<u8>>,
}

impl Mutation for SetDocument {
    type Output = ();
    const NEEDS_ROOM: bool = true;
    const CHANGES_SETTINGS: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<(), StoreError> {
        let bucket = changes.bucket(&self.bucket)?.id;
        match &self.text {
            Some(text) => changes.put_document(bucket, self.document, text),
            None => changes.remove_document(bucket, self.document),
        }
    }

    fn committed(self) {}
}

/// S3's rules for bucket names ("General purpose bucket naming rules"), those about reserved affixes left out: they name
/// services that this store does not have.
fn check_bucket_name(name: &str) -> Result<(), StoreError> {
    let bytes = name.as_bytes();
    let edge =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let allowed =
        |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
    let valid = BUCKET_NAME_BYTES.contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(allowed)
        && !["..", ".-", "-."].iter().any(|pair| name.contains(pair))
        && name.parse::<std::net::Ipv4Addr>().is_err();
    if valid { Ok(()) } else { Err(StoreError::InvalidBucketName) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_follow_the_rules_of_s3() {
        for good in ["abc", "a.b-c.d", "a--b", "photos-2024", "1st", &"a".repeat(63)] {
            assert!(check_bucket_name(good).is_ok(), "{good}");
        }
        for bad in [
            "ab",
            &"a".repeat(64),
            "Abc",
            "a_b",
            "-ab",
            "ab-",
            "a..b",
            "a.-b",
            "a-.b",
            "192.168.1.1",
            "a b",
            "ä-b",
        ] {
            assert!(check_bucket_name(bad).is_err(), "{bad}");
        }
    }
}
