//! Objects as they are read.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use crate::body::{Cipher, ObjectReader, Source, pieces};
use crate::buckets::BucketRef;
use crate::checksum::Checksum;
use crate::commit::Shared;
use crate::customer_key::{BodyCipher, BodySalt, CustomerKey, KeyProof};
use crate::error::StoreError;
use crate::index::Snapshot;
use crate::named_key::SealedKey;
use crate::records::{
    Attributes, Body, BodyId, BucketId, BucketRecord, ETag, Metadata, ObjectRecord, PartExtent, Run,
};
use crate::space::Pin;
use crate::store::{Store, time_of};
use crate::version::{self, VersionId, Versioning};

/// What is known about an object without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Size in bytes.
    pub bytes: u64,
    /// When the write that made it was taken in.
    pub modified: SystemTime,
    /// Entity tag.
    pub etag: ETag,
    /// The checksum it was stored with.
    pub checksum: Option<Checksum>,
    /// Headers and user metadata.
    pub metadata: Metadata,
    /// Which version it is; `None` in a bucket that never kept versions.
    pub version: Option<VersionId>,
    /// Tags, lock and access control list.
    pub attributes: Attributes,
    /// Recognises the customer's key that it is encrypted under, where it is.
    pub proof: Option<KeyProof>,
    /// Name of the key that it is encrypted under, where that is one with a name.
    pub named_key: Option<String>,
}

impl ObjectInfo {
    /// Whether it is encrypted under a customer's key.
    pub fn has_customer_key(&self) -> bool {
        self.proof.is_some()
    }

    /// Whether the customer's key that was given, or none, is the one that it takes.
    ///
    /// # Errors
    /// [`StoreError::CustomerKeyNeeded`], [`StoreError::WrongCustomerKey`], [`StoreError::CustomerKeyUnexpected`].
    pub fn check_key(&self, key: Option<&CustomerKey>) -> Result<(), StoreError> {
        KeyProof::check_given(self.proof.as_ref(), key)
    }

    pub(crate) fn of(record: &ObjectRecord, bucket: &BucketRecord) -> Self {
        let versioned = bucket.versioning != Versioning::Unversioned;
        Self {
            bytes: record.bytes,
            modified: time_of(record.modified_ms),
            etag: record.etag,
            checksum: record.checksum.clone(),
            metadata: record.metadata.clone(),
            version: versioned.then(|| record.version.id()),
            attributes: record.attributes.clone(),
            proof: record.customer_key.filter(|_| record.named_key.is_none()),
            named_key: record.named_key.as_ref().map(|sealed| sealed.name.clone()),
        }
    }
}

/// A part of an object that was put together from parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPart {
    /// 1 to 10,000.
    pub number: u16,
    /// Where its bytes lie within the object.
    pub range: Range<u64>,
    /// Its checksum; none in objects of earlier versions of the store.
    pub checksum: Option<Checksum>,
    runs: Vec<Run>,
    salt: Option<BodySalt>,
}

/// An object as it was when it was looked up. Its bytes stay readable for as long as this lives.
#[derive(Debug)]
pub struct Object {
    pub(crate) shared: Arc<Shared>,
    pub(crate) info: ObjectInfo,
    body: Body,
    key: Option<CustomerKey>,
    /// Of the body, where it came in one piece.
    salt: Option<BodySalt>,
    /// The object's own key, where a named key seals it.
    sealed: Option<SealedKey>,
    parts: Vec<ObjectPart>,
    pin: Option<Arc<Pin>>,
    pub(crate) id: Option<BodyId>,
    /// Bucket and key.
    pub(crate) place: (BucketId, String),
}

impl Object {
    /// What is known about it.
    pub fn info(&self) -> &ObjectInfo {
        &self.info
    }

    /// Gives the customer's key that the object takes; one that takes a key can't be read without.
    ///
    /// # Errors
    /// Those of [`ObjectInfo::check_key`].
    pub fn unlock(&mut self, key: Option<&CustomerKey>) -> Result<(), StoreError> {
        self.info.check_key(key)?;
        self.key = key.cloned();
        Ok(())
    }

    /// Whether the body is encrypted beneath the volume's own encryption.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.info.has_customer_key() || self.sealed.is_some()
    }

    /// Whether the named key that it is encrypted under is lent, where there is one.
    ///
    /// # Errors
    /// [`StoreError::NamedKeyRevoked`], [`StoreError::NamedKeyAway`], [`StoreError::WrongNamedKey`].
    pub fn check_named_key(&self) -> Result<(), StoreError> {
        self.sealed.iter().try_for_each(|sealed| self.shared.named_keys.open(sealed).map(drop))
    }

    /// Reads `range`, which must lie within the object.
    pub fn reader(&self, range: &Range<u64>) -> ObjectReader {
        let range = range.start..range.end.min(self.info.bytes);
        ObjectReader::new(Arc::clone(&self.shared), self.pin.clone(), self.source(&range), &range)
    }

    /// Where `range` is: of an object of many parts no more than those that it touches.
    fn source(&self, range: &Range<u64>) -> Source {
        match &self.body {
            Body::Inline(bytes) => Source::Inline(bytes.clone(), self.cipher(self.salt)),
            Body::Runs { runs, .. } => {
                let whole = 0..self.info.bytes;
                Source::Volume(pieces(runs, &whole, range, &self.cipher(self.salt)).collect())
            }
            Body::Parts { .. } => {
                let first = self.parts.partition_point(|part| part.range.end <= range.start);
                let touched = self.parts[first..].iter().take_while(|part| part.range.start < range.end);
                let of_part = |part: &ObjectPart| {
                    let cipher = self.cipher(part.salt.or(self.salt));
                    pieces(&part.runs, &part.range, range, &cipher).collect::<Vec<_>>()
                };
                Source::Volume(touched.flat_map(of_part).collect())
            }
        }
    }

    fn cipher(&self, salt: Option<BodySalt>) -> Cipher {
        match (salt, &self.sealed, &self.key) {
            (None, _, _) => Cipher::None,
            (Some(salt), Some(sealed), _) => match self.shared.named_keys.open(sealed) {
                Ok(key) => Cipher::Open(Arc::new(BodyCipher::Sealed(key, salt))),
                Err(why) => Cipher::Away(Arc::new(why)),
            },
            (Some(_), None, None) => Cipher::Locked,
            (Some(salt), None, Some(key)) => Cipher::Open(Arc::new(key.body(salt))),
        }
    }

    /// The parts it was put together from; none where it was put in one piece.
    pub fn parts(&self) -> &[ObjectPart] {
        &self.parts
    }

    /// The bytes of part `number`; an object put in one piece is its own part 1.
    pub fn part(&self, number: u16) -> Option<Range<u64>> {
        if self.parts.is_empty() {
            return (number == 1).then_some(0..self.info.bytes);
        }
        let place = self.parts.binary_search_by_key(&number, |part| part.number).ok()?;
        Some(self.parts[place].range.clone())
    }
}

/// The version of `key` that is named, or the newest.
pub(crate) fn look_up(
    snapshot: &Snapshot,
    bucket: &BucketRecord,
    key: &str,
    named: Option<VersionId>,
) -> Result<ObjectRecord, StoreError> {
    let found = match named {
        Some(id) => snapshot.version(bucket.id, key, id)?,
        None => match snapshot.object(bucket.id, key)? {
            Some(current) => Some(current),
            None => snapshot.newest_version(bucket.id, key)?,
        },
    };
    version::find(found, named)
}

impl Store {
    /// What is known about an object, or about a version of it.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::NoSuchKey`], [`StoreError::NoSuchVersion`],
    /// [`StoreError::IsDeleteMarker`].
    pub fn head_object(
        &self,
        bucket: impl Into<BucketRef>,
        key: &str,
        version: Option<VersionId>,
    ) -> Result<ObjectInfo, StoreError> {
        let bucket = bucket.into();
        self.shared.read(|snapshot| {
            let bucket = snapshot.bucket(&bucket)?;
            look_up(snapshot, &bucket, key, version).map(|record| ObjectInfo::of(&record, &bucket))
        })
    }

    /// An object to read from.
    ///
    /// # Errors
    /// Those of [`Store::head_object`].
    pub fn object(
        &self,
        bucket: impl Into<BucketRef>,
        key: &str,
        version: Option<VersionId>,
    ) -> Result<Object, StoreError> {
        let bucket = bucket.into();
        // Entered before the index is read: no run that the row names is used anew until the pin is set.
        let guard = self.shared.space.enter();
        let (bucket, record, info, extents) = self.shared.read(|snapshot| {
            let bucket = snapshot.bucket(&bucket)?;
            let record = look_up(snapshot, &bucket, key, version)?;
            let info = ObjectInfo::of(&record, &bucket);
            let extents = match &record.body {
                Body::Parts { id } => snapshot.manifest(*id)?.parts,
                _ => Vec::new(),
            };
            Ok((bucket.id, record, info, extents))
        })?;
        let id = match &record.body {
            Body::Inline(_) => None,
            Body::Runs { id, .. } | Body::Parts { id } => Some(*id),
        };
        let mut end = 0;
        let part = |extent: PartExtent| {
            let begin = end;
            end += extent.bytes;
            let PartExtent { runs, number, checksum, salt, .. } = extent;
            ObjectPart { number, range: begin..end, checksum, runs, salt }
        };
        let parts = extents.into_iter().map(part).collect();
        let pin = id.map(|id| Arc::new(guard.pin(id)));
        let place = (bucket, key.to_owned());
        let salt = record.customer_key.map(|proof| proof.salt);
        let (shared, body, sealed) = (Arc::clone(&self.shared), record.body, record.named_key);
        Ok(Object { shared, info, body, key: None, salt, sealed, parts, pin, id, place })
    }
}
