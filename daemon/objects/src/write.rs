//! Objects as they are written: PUT, copy, and changes to what is kept beside the bytes.

use std::sync::Arc;

use crate::acl::Acl;
use crate::body::{BodyWriter, Declared, FinishedBody};
use crate::buckets::{BucketInfo, BucketRef};
use crate::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind};
use crate::commit::{Dropped, Mutation, Shared};
use crate::condition::Condition;
use crate::customer_key::{BodyCipher, CustomerKey, KeyProof};
use crate::error::StoreError;
use crate::events::{About, Happened, Notices};
use crate::index::{Changes, signed};
use crate::limits::{
    GRANTS_MAX, PUT_BYTES_MAX, SYSTEM_METADATA_BYTES_MAX, TAG_NAME_CHARS_MAX, TAG_VALUE_CHARS_MAX, TAGS_MAX,
    USER_METADATA_BYTES_MAX,
};
use crate::lock::Retention;
use crate::named_key::SealedKey;
use crate::object::{Object, ObjectInfo};
use crate::records::{Attributes, Body, BodyId, ETag, Metadata, ObjectRecord};
use crate::space::Reservation;
use crate::store::{Store, check_key};
use crate::usage::{self, Claim, UsageChange};
use crate::version::{self, Moment, Version, VersionId, Versioning};

/// What is moved at a time when the store copies an object by itself.
const COPY_CHUNK_BYTES: usize = 1 << 20;

/// What a PUT says besides its body.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    /// Headers and user metadata to keep.
    pub metadata: Metadata,
    /// Tags, lock and access control list to keep.
    pub attributes: Attributes,
    /// When to refuse.
    pub condition: Condition,
    /// What the body must be.
    pub declared: Declared,
    /// Who is to be told.
    pub notices: Notices,
}

/// What a copy is to have that its source has not.
#[derive(Clone, Debug, Default)]
pub struct CopyOptions {
    /// Headers and user metadata; `None` takes those of the source.
    pub metadata: Option<Metadata>,
    /// Tags, lock and access control list; nothing of it comes from the source.
    pub attributes: Attributes,
    /// Another checksum than the source has.
    pub checksum: Option<ChecksumAlgorithm>,
    /// When to refuse.
    pub condition: Condition,
    /// The key to encrypt the copy under.
    pub customer_key: Option<CustomerKey>,
    /// Name of the key to encrypt the copy under; where a customer's is given, that counts.
    pub named_key: Option<String>,
    /// Who is to be told.
    pub notices: Notices,
}

/// A PUT being received.
pub struct ObjectWriter {
    shared: Arc<Shared>,
    bucket: BucketRef,
    key: String,
    body: BodyWriter,
    proof: Option<KeyProof>,
    sealed: Option<SealedKey>,
    claim: Option<Claim>,
}

impl std::fmt::Debug for ObjectWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectWriter").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl ObjectWriter {
    /// Encrypts the body under a customer's key; to be called before the first byte is appended.
    pub fn encrypt(&mut self, key: &CustomerKey) {
        let proof = key.proof();
        self.body.encrypt(key.body(proof.salt));
        (self.proof, self.sealed) = (Some(proof), None);
    }

    /// Encrypts the body under a key of its own, which the named key seals; to be called before the first byte is appended.
    ///
    /// # Errors
    /// [`StoreError::NoSuchNamedKey`], [`StoreError::NamedKeyRevoked`], [`StoreError::NamedKeyAway`].
    pub fn encrypt_under(&mut self, name: &str) -> Result<(), StoreError> {
        let key = self.shared.named_keys.find(name)?.make()?;
        let proof = key.with(KeyProof::of)?;
        (self.proof, self.sealed) = (Some(proof), Some(SealedKey::clone(&key.sealed)));
        self.body.encrypt(BodyCipher::Sealed(key, proof.salt));
        Ok(())
    }

    /// The next bytes of the body.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::LengthMismatch`], outages. After an error the writer is of no use.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.body.append(bytes)
    }

    /// Ends the body and makes the object durable and visible, all of it or nothing.
    ///
    /// # Errors
    /// [`StoreError::LengthMismatch`], [`StoreError::DigestMismatch`], [`StoreError::PreconditionFailed`],
    /// [`StoreError::NoSuchKey`] (If-Match on nothing), [`StoreError::NoSuchBucket`], [`StoreError::MetadataTooLarge`],
    /// [`StoreError::InvalidTags`], [`StoreError::LockNotEnabled`], [`StoreError::RetentionPassed`].
    pub fn finish(self, options: PutOptions) -> Result<ObjectInfo, StoreError> {
        check_metadata(&options.metadata)?;
        check_attributes(&options.attributes)?;
        self.body.check_cipher()?;
        let body = self.body.finish(&options.declared, true)?;
        drop(self.claim);
        commit_put(&self.shared, (self.bucket, self.key), body, (self.proof, self.sealed), options)
    }
}

fn commit_put(
    shared: &Arc<Shared>,
    (bucket, key): (BucketRef, String),
    finished: FinishedBody,
    (customer_key, named_key): (Option<KeyProof>, Option<SealedKey>),
    options: PutOptions,
) -> Result<ObjectInfo, StoreError> {
    let (bytes, digests) = (finished.bytes, finished.digests.clone());
    let (body, reservation) = finished.into_body(shared);
    let moment = Moment::now();
    let record = ObjectRecord {
        body,
        bytes,
        modified_ms: moment.now_ms,
        etag: ETag { md5: digests.md5, parts: 0 },
        checksum: digests.checksum,
        metadata: options.metadata,
        version: Version::UNVERSIONED,
        delete_marker: false,
        attributes: options.attributes,
        customer_key,
        named_key,
    };
    let PutOptions { condition, notices, .. } = options;
    shared.submit(PutObject { bucket, key, record, condition, moment, reservation, notices })
}

impl Store {
    /// Begins a PUT of `length` bytes, as far as the client said, with a checksum besides the MD5 if one is wanted.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::InvalidKey`], [`StoreError::TooLarge`], [`StoreError::QuotaExceeded`].
    pub fn put_object(
        &self,
        bucket: impl Into<BucketRef>,
        key: &str,
        length: Option<u64>,
        checksum: Option<ChecksumAlgorithm>,
    ) -> Result<ObjectWriter, StoreError> {
        check_key(key)?;
        let asked = bucket.into();
        let shared = Arc::clone(&self.shared);
        let (bucket, claim) = shared.read(|snapshot| {
            let record = snapshot.bucket(&asked)?;
            let claim = match length {
                None => None,
                Some(length) => {
                    let current = snapshot.object(record.id, key)?;
                    let replaced = current.filter(|_| record.versioning == Versioning::Unversioned);
                    let more = signed(length) - replaced.map_or(0, |replaced| signed(replaced.bytes));
                    usage::claim(&shared, snapshot, (asked.name(), &record), more)?
                }
            };
            // Of this bucket, however long the body takes and whatever has its name by then.
            Ok((BucketInfo::of(asked.name(), record).reference(), claim))
        })?;
        let body = BodyWriter::new(Arc::clone(&shared), length, PUT_BYTES_MAX, checksum)?;
        let key = key.to_owned();
        Ok(ObjectWriter { shared, bucket, key, body, proof: None, sealed: None, claim })
    }

    /// Copies `source` to `key`. Copying an object onto itself, where no version of it is to be kept, changes what is kept
    /// beside its bytes and leaves them where they are.
    ///
    /// # Errors
    /// Those of a PUT; [`StoreError::Conflict`] where an object copied onto itself changed meanwhile.
    pub fn copy_object(
        &self,
        source: &Object,
        bucket: impl Into<BucketRef>,
        key: &str,
        options: CopyOptions,
    ) -> Result<ObjectInfo, StoreError> {
        let CopyOptions { metadata, attributes, checksum, condition, customer_key, named_key, notices } =
            options;
        let metadata = metadata.unwrap_or_else(|| source.info.metadata.clone());
        check_metadata(&metadata)?;
        check_attributes(&attributes)?;
        let stored = source.info.checksum.as_ref().map(|checksum| checksum.algorithm);
        let target = self.bucket(bucket)?;
        let onto_itself = source.place.0 == target.id && source.place.1 == key;
        let in_clear = customer_key.is_none() && named_key.is_none() && !source.is_encrypted();
        let unversioned = onto_itself && in_clear && target.versioning == Versioning::Unversioned;
        if unversioned && checksum.is_none_or(|wanted| Some(wanted) == stored) {
            return self.shared.submit(ReplaceMetadata {
                bucket: target.reference(),
                key: key.to_owned(),
                seen: (source.id, source.info.etag, source.info.bytes),
                metadata,
                attributes,
                condition,
                moment: Moment::now(),
                notices,
            });
        }
        let mut writer =
            self.put_object(target.reference(), key, Some(source.info.bytes), checksum.or(stored))?;
        match (&customer_key, &named_key) {
            (Some(key), _) => writer.encrypt(key),
            (None, Some(name)) => writer.encrypt_under(name)?,
            (None, None) => {}
        }
        let mut reader = source.reader(&(0..source.info.bytes));
        while let Some(chunk) = reader.next_chunk(COPY_CHUNK_BYTES)? {
            writer.append(&chunk)?;
        }
        // The copy is one body: a checksum over the parts of the source would not be its own.
        let same_kind = |stored: &&Checksum| stored.kind() == ChecksumKind::FullObject;
        let expected = source.info.checksum.as_ref().filter(same_kind).filter(|_| checksum.is_none());
        let declared = Declared { md5: None, checksum: expected.cloned() };
        writer.finish(PutOptions { metadata, attributes, condition, declared, notices })
    }

    /// Replaces the tags of an object or of a version of it; tells whoever is in `notices`.
    ///
    /// # Errors
    /// Those of [`Store::head_object`], [`StoreError::InvalidTags`].
    pub fn set_tags(
        &self,
        bucket: impl Into<BucketRef>,
        key: &str,
        version: Option<VersionId>,
        tags: Vec<(String, String)>,
        notices: Notices,
    ) -> Result<ObjectInfo, StoreError> {
        check_tags(&tags, TAGS_MAX)?;
        self.change_version(bucket, key, version, notices, move |record| {
            record.attributes.tags.clone_from(&tags);
            Ok(())
        })
    }

    /// Replaces the access control list of an object or of a version of it; tells whoever is in `notices`.
    ///
    /// # Errors
    /// Those of [`Store::head_object`].
    pub fn set_object_acl(
        &self,
        bucket: impl Into<BucketRef>,
        key: &str,
        version: Option<VersionId>,
        acl: Acl,
        notices: Notices,
    ) -> Result<ObjectInfo, StoreError> {
        check_grants(&acl)?;
        self.change_version(bucket, key, version, notices, move |record| {
            record.attributes.acl.clone_from(&acl);
            Ok(())
        })
    }

    /// Sets or lifts the retention of an object or of a version of it.
    ///
    /// # Errors
    /// Those of [`Store::head_object`], [`StoreError::LockNotEnabled`], [`StoreError::RetentionPassed`],
    /// [`StoreError::Locked`].
    pub fn set_retention(
        &self,
        bucket: impl Into<BucketRef>,
        key: &str,
        version: Option<VersionId>,
        retention: Option<Retention>,
        bypass: bool,
    ) -> Result<ObjectInfo, StoreError> {
        let bucket = self.locking_bucket(bucket)?;
        self.change_version(bucket, key, version, Notices::default(), move |record| {
            record.attributes.lock.check_retention(retention, crate::store::now_ms(), bypass)?;
            record.attributes.lock.retention = retention;
            Ok(())
        })
    }

    /// Sets or lifts the legal hold of an object or of a version of it.
    ///
    /// # Errors
    /// Those of [`Store::head_object`], [`StoreError::LockNotEnabled`].
    pub fn set_legal_hold(
        &self,
        bucket: impl Into<BucketRef>,
        key: &str,
        version: Option<VersionId>,
        hold: bool,
    ) -> Result<ObjectInfo, StoreError> {
        let bucket = self.locking_bucket(bucket)?;
        self.change_version(bucket, key, version, Notices::default(), move |record| {
            record.attributes.lock.legal_hold = Some(hold);
            Ok(())
        })
    }

    fn locking_bucket(&self, bucket: impl Into<BucketRef>) -> Result<BucketRef, StoreError> {
        let bucket = self.bucket(bucket)?;
        if bucket.lock.enabled { Ok(bucket.reference()) } else { Err(StoreError::LockNotEnabled) }
    }

    fn change_version(
        &self,
        bucket: impl Into<BucketRef>,
        key: &str,
        version: Option<VersionId>,
        notices: Notices,
        change: impl Fn(&mut ObjectRecord) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<ObjectInfo, StoreError> {
        let (bucket, key) = (bucket.into(), key.to_owned());
        self.shared.submit(ChangeVersion { bucket, key, version, notices, change: Box::new(change) })
    }
}

pub(crate) fn check_metadata(metadata: &Metadata) -> Result<(), StoreError> {
    let user: usize = metadata.user.iter().map(|(name, value)| name.len() + value.len()).sum();
    let system: usize = [
        &metadata.content_type,
        &metadata.cache_control,
        &metadata.content_disposition,
        &metadata.content_encoding,
        &metadata.content_language,
    ]
    .into_iter()
    .flatten()
    .map(String::len)
    .sum();
    if user > USER_METADATA_BYTES_MAX || system > SYSTEM_METADATA_BYTES_MAX {
        return Err(StoreError::MetadataTooLarge);
    }
    Ok(())
}

pub(crate) fn check_attributes(attributes: &Attributes) -> Result<(), StoreError> {
    check_tags(&attributes.tags, TAGS_MAX)?;
    check_grants(&attributes.acl)
}

pub(crate) fn check_grants(acl: &Acl) -> Result<(), StoreError> {
    match &acl.grants {
        Some(grants) if grants.len() > GRANTS_MAX => Err(StoreError::TooManyGrants),
        _ => Ok(()),
    }
}

/// Whether there are at most `max` tags, with names and values that S3 allows.
///
/// # Errors
/// [`StoreError::TooManyTags`], [`StoreError::InvalidTags`].
pub fn check_tags(tags: &[(String, String)], max: usize) -> Result<(), StoreError> {
    let names: std::collections::HashSet<&str> = tags.iter().map(|(name, _)| name.as_str()).collect();
    if tags.len() > max {
        return Err(StoreError::TooManyTags { max });
    }
    let fits = |(name, value): &(String, String)| {
        (1..=TAG_NAME_CHARS_MAX).contains(&name.chars().count())
            && value.chars().count() <= TAG_VALUE_CHARS_MAX
    };
    if names.len() == tags.len() && tags.iter().all(fits) { Ok(()) } else { Err(StoreError::InvalidTags) }
}

struct PutObject {
    bucket: BucketRef,
    key: String,
    record: ObjectRecord,
    condition: Condition,
    moment: Moment,
    reservation: Reservation,
    notices: Notices,
}

impl Mutation for PutObject {
    type Output = ObjectInfo;
    const NEEDS_ROOM: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, dropped: &mut Dropped) -> Result<ObjectInfo, StoreError> {
        let bucket = changes.bucket(&self.bucket)?;
        let current = changes.object(bucket.id, &self.key)?;
        self.condition.check(current.as_ref())?;
        let replaced = current.filter(|_| bucket.versioning == Versioning::Unversioned);
        let more = UsageChange {
            bytes: signed(self.record.bytes) - replaced.as_ref().map_or(0, |replaced| signed(replaced.bytes)),
            objects: i64::from(replaced.is_none()),
        };
        usage::check(changes, (self.bucket.name(), &bucket), more)?;
        let place = (&bucket, self.key.as_str());
        let mut record = self.record.clone();
        record.attributes.lock = bucket.lock.of_new(record.attributes.lock, self.moment.now_ms)?;
        let record = version::put(changes, place, record, self.moment, dropped)?;
        let about = About::object((self.bucket.name(), &bucket), &self.key, &record);
        self.notices.put(changes, Happened::Made, &about)?;
        Ok(ObjectInfo::of(&record, &bucket))
    }

    fn committed(self) {
        self.reservation.keep();
    }
}

struct ReplaceMetadata {
    bucket: BucketRef,
    key: String,
    /// Body, entity tag and size of the object that the client wants to change.
    seen: (Option<BodyId>, ETag, u64),
    metadata: Metadata,
    attributes: Attributes,
    condition: Condition,
    moment: Moment,
    notices: Notices,
}

impl Mutation for ReplaceMetadata {
    type Output = ObjectInfo;
    const NEEDS_ROOM: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<ObjectInfo, StoreError> {
        let bucket = changes.bucket(&self.bucket)?;
        let current = changes.object(bucket.id, &self.key)?;
        self.condition.check(current.as_ref())?;
        let current = current.ok_or(StoreError::Conflict)?;
        let id = match &current.body {
            Body::Inline(_) => None,
            Body::Runs { id, .. } | Body::Parts { id } => Some(*id),
        };
        let seen = (id, current.etag, current.bytes) == self.seen;
        if !seen || bucket.versioning != Versioning::Unversioned {
            return Err(StoreError::Conflict);
        }
        let lock = bucket.lock.of_new(self.attributes.lock, self.moment.now_ms)?;
        let record = ObjectRecord {
            metadata: self.metadata.clone(),
            attributes: Attributes { lock, ..self.attributes.clone() },
            modified_ms: self.moment.now_ms,
            ..current
        };
        changes.put_object(bucket.id, &self.key, &record)?;
        let about = About::object((self.bucket.name(), &bucket), &self.key, &record);
        self.notices.put(changes, Happened::Made, &about)?;
        Ok(ObjectInfo::of(&record, &bucket))
    }

    fn committed(self) {}
}

type Change = dyn Fn(&mut ObjectRecord) -> Result<(), StoreError> + Send;

/// Changes what is kept beside the bytes of a version, which stays the version it is.
struct ChangeVersion {
    bucket: BucketRef,
    key: String,
    version: Option<VersionId>,
    notices: Notices,
    change: Box<Change>,
}

impl Mutation for ChangeVersion {
    type Output = ObjectInfo;
    const NEEDS_ROOM: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<ObjectInfo, StoreError> {
        let bucket = changes.bucket(&self.bucket)?;
        let current = changes.object(bucket.id, &self.key)?;
        let found = match (self.version, &current) {
            (None, Some(_)) => current.clone(),
            (None, None) => changes.newest_version(bucket.id, &self.key)?,
            (Some(id), _) => changes.version(bucket.id, &self.key, id)?,
        };
        let mut record = version::find(found, self.version)?;
        (self.change)(&mut record)?;
        let is_current = current.is_some_and(|current| current.version == record.version);
        match is_current {
            true => changes.put_object(bucket.id, &self.key, &record)?,
            false => changes.put_version(bucket.id, &self.key, &record)?,
        }
        let about = About::object((self.bucket.name(), &bucket), &self.key, &record);
        self.notices.put(changes, Happened::Changed, &about)?;
        Ok(ObjectInfo::of(&record, &bucket))
    }

    fn committed(self) {}
}
