//! Objects: put, get, copy, delete.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use crate::body::{BodyWriter, Declared, FinishedBody, ObjectReader, Source};
use crate::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind};
use crate::commit::{Dropped, Mutation, Shared, drop_body};
use crate::error::StoreError;
use crate::index::Changes;
use crate::limits::{DELETE_KEYS_MAX, PUT_BYTES_MAX, SYSTEM_METADATA_BYTES_MAX, USER_METADATA_BYTES_MAX};
use crate::records::{Body, BodyId, ETag, Manifest, Metadata, ObjectRecord, PartExtent};
use crate::space::{Pin, Reservation};
use crate::store::{Store, check_key, now_ms, time_of};

/// What is moved at a time when the store copies an object by itself.
const COPY_CHUNK_BYTES: usize = 1 << 20;

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
}

/// One entity tag of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagMatch {
    /// `*`
    Any,
    /// An entity tag, without quotes.
    Tag(String),
}

/// `If-Match` and `If-None-Match` of a write, checked in the commit itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// The object must exist and match.
    pub if_match: Option<TagMatch>,
    /// The object must not exist, or not match.
    pub if_none_match: Option<TagMatch>,
}

impl TagMatch {
    fn matches(&self, etag: &ETag) -> bool {
        match self {
            Self::Any => true,
            Self::Tag(tag) => *tag == etag.to_string(),
        }
    }
}

impl Condition {
    pub(crate) fn check(&self, current: Option<&ObjectRecord>) -> Result<(), StoreError> {
        match (&self.if_match, current) {
            (Some(_), None) => return Err(StoreError::NoSuchKey),
            (Some(wanted), Some(current)) if !wanted.matches(&current.etag) => {
                return Err(StoreError::PreconditionFailed);
            }
            _ => {}
        }
        match (&self.if_none_match, current) {
            (Some(unwanted), Some(current)) if unwanted.matches(&current.etag) => {
                Err(StoreError::PreconditionFailed)
            }
            _ => Ok(()),
        }
    }
}

/// What a PUT says besides its body.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    /// Headers and user metadata to keep.
    pub metadata: Metadata,
    /// When to refuse.
    pub condition: Condition,
    /// What the body must be.
    pub declared: Declared,
}

/// A PUT being received.
pub struct ObjectWriter {
    shared: Arc<Shared>,
    bucket: String,
    key: String,
    body: BodyWriter,
}

impl std::fmt::Debug for ObjectWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectWriter").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl ObjectWriter {
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
    /// [`StoreError::NoSuchKey`] (If-Match on nothing), [`StoreError::NoSuchBucket`], [`StoreError::MetadataTooLarge`].
    pub fn finish(self, options: PutOptions) -> Result<ObjectInfo, StoreError> {
        check_metadata(&options.metadata)?;
        let body = self.body.finish(&options.declared, true)?;
        commit_put(&self.shared, self.bucket, self.key, body, options)
    }
}

fn commit_put(
    shared: &Arc<Shared>,
    bucket: String,
    key: String,
    finished: FinishedBody,
    options: PutOptions,
) -> Result<ObjectInfo, StoreError> {
    let (bytes, digests) = (finished.bytes, finished.digests.clone());
    let (body, reservation) = finished.into_body(shared);
    let record = ObjectRecord {
        body,
        bytes,
        modified_ms: now_ms(),
        etag: ETag { md5: digests.md5, parts: 0 },
        checksum: digests.checksum,
        metadata: options.metadata,
    };
    let info = ObjectInfo::of(&record);
    shared.submit(PutObject { bucket, key, record, condition: options.condition, reservation })?;
    Ok(info)
}

impl ObjectInfo {
    pub(crate) fn of(record: &ObjectRecord) -> Self {
        Self {
            bytes: record.bytes,
            modified: time_of(record.modified_ms),
            etag: record.etag,
            checksum: record.checksum.clone(),
            metadata: record.metadata.clone(),
        }
    }
}

/// An object as it was when it was looked up. Its bytes stay readable for as long as this lives.
#[derive(Debug)]
pub struct Object {
    shared: Arc<Shared>,
    info: ObjectInfo,
    source: Source,
    /// Last byte positions (exclusive) and numbers of its parts.
    parts: Vec<(u16, u64)>,
    pin: Option<Arc<Pin>>,
    id: Option<BodyId>,
    place: (String, String),
}

impl Object {
    /// What is known about it.
    pub fn info(&self) -> &ObjectInfo {
        &self.info
    }

    /// Reads `range`, which must lie within the object.
    pub fn reader(&self, range: &Range<u64>) -> ObjectReader {
        let range = range.start..range.end.min(self.info.bytes);
        ObjectReader::new(Arc::clone(&self.shared), self.pin.clone(), &self.source, &range)
    }

    /// The bytes of part `number`; an object put in one piece is its own part 1.
    pub fn part(&self, number: u16) -> Option<Range<u64>> {
        if self.parts.is_empty() {
            return (number == 1).then_some(0..self.info.bytes);
        }
        let position = self.parts.iter().position(|(part, _)| *part == number)?;
        let start = position.checked_sub(1).map_or(0, |before| self.parts[before].1);
        Some(start..self.parts[position].1)
    }
}

impl Store {
    /// Begins a PUT of `length` bytes, as far as the client said, with a checksum besides the MD5 if one is wanted.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::InvalidKey`], [`StoreError::TooLarge`].
    pub fn put_object(
        &self,
        bucket: &str,
        key: &str,
        length: Option<u64>,
        checksum: Option<ChecksumAlgorithm>,
    ) -> Result<ObjectWriter, StoreError> {
        check_key(key)?;
        self.bucket(bucket)?;
        let shared = Arc::clone(&self.shared);
        let body = BodyWriter::new(Arc::clone(&shared), length, PUT_BYTES_MAX, checksum)?;
        Ok(ObjectWriter { shared, bucket: bucket.to_owned(), key: key.to_owned(), body })
    }

    /// What is known about an object.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::NoSuchKey`].
    pub fn head_object(&self, bucket: &str, key: &str) -> Result<ObjectInfo, StoreError> {
        self.shared.read(|snapshot| {
            let bucket = snapshot.bucket(bucket)?.ok_or(StoreError::NoSuchBucket)?.id;
            let record = snapshot.object(bucket, key)?.ok_or(StoreError::NoSuchKey)?;
            Ok(ObjectInfo::of(&record))
        })
    }

    /// An object to read from.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::NoSuchKey`].
    pub fn object(&self, bucket: &str, key: &str) -> Result<Object, StoreError> {
        // Entered before the index is read: no run that the row names is used anew until the pin is set.
        let guard = self.shared.space.enter();
        let (record, manifest) = self.shared.read(|snapshot| {
            let id = snapshot.bucket(bucket)?.ok_or(StoreError::NoSuchBucket)?.id;
            let record = snapshot.object(id, key)?.ok_or(StoreError::NoSuchKey)?;
            let manifest = match &record.body {
                Body::Parts { id } => Some(snapshot.manifest(*id)?),
                _ => None,
            };
            Ok((record, manifest))
        })?;
        let info = ObjectInfo::of(&record);
        let parts = manifest.as_ref().map(part_ends).unwrap_or_default();
        let (source, id) = match record.body {
            Body::Inline(bytes) => (Source::Inline(bytes), None),
            Body::Runs { id, runs } => {
                (Source::Volume(Source::pieces(&runs, record.bytes).collect()), Some(id))
            }
            Body::Parts { id } => {
                let parts = manifest.map(|manifest| manifest.parts).unwrap_or_default();
                let pieces = parts.iter().flat_map(|part| Source::pieces(&part.runs, part.bytes)).collect();
                (Source::Volume(pieces), Some(id))
            }
        };
        let pin = id.map(|id| Arc::new(guard.pin(id)));
        let place = (bucket.to_owned(), key.to_owned());
        Ok(Object { shared: Arc::clone(&self.shared), info, source, parts, pin, id, place })
    }

    /// Deletes an object. Deleting what isn't there is no error, as in S3.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::PreconditionFailed`], [`StoreError::NoSuchKey`] (If-Match on nothing).
    pub fn delete_object(&self, bucket: &str, key: &str, condition: Condition) -> Result<(), StoreError> {
        check_key(key)?;
        let keys = vec![(key.to_owned(), condition)];
        let mut results = self.shared.submit(DeleteObjects { bucket: bucket.to_owned(), keys })?;
        results.pop().unwrap_or(Ok(()))
    }

    /// Deletes many objects in one commit; the results are in the order of `keys`.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::TooManyKeys`]. What concerns one key is in the results.
    pub fn delete_objects(
        &self,
        bucket: &str,
        keys: &[(String, Condition)],
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        if keys.len() > DELETE_KEYS_MAX {
            return Err(StoreError::TooManyKeys);
        }
        match self.shared.submit(DeleteObjects { bucket: bucket.to_owned(), keys: keys.to_vec() }) {
            // A full store has few pages to spare: smaller steps need fewer.
            Err(StoreError::NoSpace) if keys.len() > 1 => {
                let (first, second) = keys.split_at(keys.len() / 2);
                let mut results = self.delete_objects(bucket, first)?;
                results.extend(self.delete_objects(bucket, second)?);
                Ok(results)
            }
            results => results,
        }
    }

    /// Copies `source` to `key`, with its metadata unless `metadata` is given. Copying an object onto itself changes its
    /// metadata and leaves its bytes where they are.
    ///
    /// # Errors
    /// Those of a PUT; [`StoreError::Conflict`] where an object copied onto itself changed meanwhile.
    pub fn copy_object(
        &self,
        source: &Object,
        bucket: &str,
        key: &str,
        metadata: Option<Metadata>,
        checksum: Option<ChecksumAlgorithm>,
        condition: Condition,
    ) -> Result<ObjectInfo, StoreError> {
        let metadata = metadata.unwrap_or_else(|| source.info.metadata.clone());
        check_metadata(&metadata)?;
        let stored = source.info.checksum.as_ref().map(|checksum| checksum.algorithm);
        let onto_itself = source.place.0 == bucket && source.place.1 == key;
        if onto_itself && checksum.is_none_or(|wanted| Some(wanted) == stored) {
            return self.shared.submit(ReplaceMetadata {
                bucket: bucket.to_owned(),
                key: key.to_owned(),
                seen: (source.id, source.info.etag, source.info.bytes),
                metadata,
                condition,
                modified_ms: now_ms(),
            });
        }
        let mut writer = self.put_object(bucket, key, Some(source.info.bytes), checksum.or(stored))?;
        let mut reader = source.reader(&(0..source.info.bytes));
        while let Some(chunk) = reader.next_chunk(COPY_CHUNK_BYTES)? {
            writer.append(&chunk)?;
        }
        // The copy is one body: a checksum over the parts of the source would not be its own.
        let same_kind = |stored: &&Checksum| stored.kind() == ChecksumKind::FullObject;
        let expected = source.info.checksum.as_ref().filter(same_kind).filter(|_| checksum.is_none());
        let declared = Declared { md5: None, checksum: expected.cloned() };
        writer.finish(PutOptions { metadata, condition, declared })
    }
}

fn part_ends(manifest: &Manifest) -> Vec<(u16, u64)> {
    let mut end = 0;
    let advance = |part: &PartExtent| {
        end += part.bytes;
        (part.number, end)
    };
    manifest.parts.iter().map(advance).collect()
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

struct PutObject {
    bucket: String,
    key: String,
    record: ObjectRecord,
    condition: Condition,
    reservation: Reservation,
}

impl Mutation for PutObject {
    type Output = ();
    const NEEDS_ROOM: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, dropped: &mut Dropped) -> Result<(), StoreError> {
        let bucket = changes.bucket(&self.bucket)?.ok_or(StoreError::NoSuchBucket)?.id;
        let current = changes.object(bucket, &self.key)?;
        self.condition.check(current.as_ref())?;
        if let Some(current) = current {
            drop_body(changes, current.body, dropped)?;
        }
        changes.put_object(bucket, &self.key, &self.record)
    }

    fn committed(self) {
        self.reservation.keep();
    }
}

struct ReplaceMetadata {
    bucket: String,
    key: String,
    /// Body, entity tag and size of the object that the client wants to change.
    seen: (Option<BodyId>, ETag, u64),
    metadata: Metadata,
    condition: Condition,
    modified_ms: u64,
}

impl Mutation for ReplaceMetadata {
    type Output = ObjectInfo;
    const NEEDS_ROOM: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<ObjectInfo, StoreError> {
        let bucket = changes.bucket(&self.bucket)?.ok_or(StoreError::NoSuchBucket)?.id;
        let current = changes.object(bucket, &self.key)?;
        self.condition.check(current.as_ref())?;
        let current = current.ok_or(StoreError::Conflict)?;
        let id = match &current.body {
            Body::Inline(_) => None,
            Body::Runs { id, .. } | Body::Parts { id } => Some(*id),
        };
        if (id, current.etag, current.bytes) != self.seen {
            return Err(StoreError::Conflict);
        }
        let record =
            ObjectRecord { metadata: self.metadata.clone(), modified_ms: self.modified_ms, ..current };
        changes.put_object(bucket, &self.key, &record)?;
        Ok(ObjectInfo::of(&record))
    }

    fn committed(self) {}
}

struct DeleteObjects {
    bucket: String,
    keys: Vec<(String, Condition)>,
}

impl Mutation for DeleteObjects {
    type Output = Vec<Result<(), StoreError>>;
    const NEEDS_ROOM: bool = false;

    fn apply(&self, changes: &mut Changes<'_>, dropped: &mut Dropped) -> Result<Self::Output, StoreError> {
        let bucket = changes.bucket(&self.bucket)?.ok_or(StoreError::NoSuchBucket)?.id;
        let mut results = Vec::with_capacity(self.keys.len());
        for (key, condition) in &self.keys {
            let current = changes.object(bucket, key)?;
            let allowed = condition.check(current.as_ref());
            if let (Ok(()), Some(current)) = (&allowed, current) {
                drop_body(changes, current.body, dropped)?;
                changes.remove_object(bucket, key)?;
            }
            results.push(allowed);
        }
        Ok(results)
    }

    fn committed(self) {}
}
