//! Objects as they are read.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use crate::body::{ObjectReader, Source};
use crate::checksum::Checksum;
use crate::commit::Shared;
use crate::error::StoreError;
use crate::index::Snapshot;
use crate::records::{Attributes, Body, BodyId, BucketRecord, ETag, Metadata, ObjectRecord};
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
}

impl ObjectInfo {
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
}

/// An object as it was when it was looked up. Its bytes stay readable for as long as this lives.
#[derive(Debug)]
pub struct Object {
    pub(crate) shared: Arc<Shared>,
    pub(crate) info: ObjectInfo,
    source: Source,
    parts: Vec<ObjectPart>,
    pin: Option<Arc<Pin>>,
    pub(crate) id: Option<BodyId>,
    /// Bucket and key.
    pub(crate) place: (String, String),
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

    /// The parts it was put together from; none where it was put in one piece.
    pub fn parts(&self) -> &[ObjectPart] {
        &self.parts
    }

    /// The bytes of part `number`; an object put in one piece is its own part 1.
    pub fn part(&self, number: u16) -> Option<Range<u64>> {
        if self.parts.is_empty() {
            return (number == 1).then_some(0..self.info.bytes);
        }
        self.parts.iter().find(|part| part.number == number).map(|part| part.range.clone())
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
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
    ) -> Result<ObjectInfo, StoreError> {
        self.shared.read(|snapshot| {
            let bucket = snapshot.bucket(bucket)?.ok_or(StoreError::NoSuchBucket)?;
            look_up(snapshot, &bucket, key, version).map(|record| ObjectInfo::of(&record, &bucket))
        })
    }

    /// An object to read from.
    ///
    /// # Errors
    /// Those of [`Store::head_object`].
    pub fn object(&self, bucket: &str, key: &str, version: Option<VersionId>) -> Result<Object, StoreError> {
        // Entered before the index is read: no run that the row names is used anew until the pin is set.
        let guard = self.shared.space.enter();
        let (record, info, extents) = self.shared.read(|snapshot| {
            let bucket = snapshot.bucket(bucket)?.ok_or(StoreError::NoSuchBucket)?;
            let record = look_up(snapshot, &bucket, key, version)?;
            let info = ObjectInfo::of(&record, &bucket);
            let extents = match &record.body {
                Body::Parts { id } => snapshot.manifest(*id)?.parts,
                _ => Vec::new(),
            };
            Ok((record, info, extents))
        })?;
        let (source, id) = match record.body {
            Body::Inline(bytes) => (Source::Inline(bytes), None),
            Body::Runs { id, runs } => {
                (Source::Volume(Source::pieces(&runs, record.bytes).collect()), Some(id))
            }
            Body::Parts { id } => {
                let pieces = extents.iter().flat_map(|part| Source::pieces(&part.runs, part.bytes)).collect();
                (Source::Volume(pieces), Some(id))
            }
        };
        let mut end = 0;
        let mut parts = Vec::with_capacity(extents.len());
        for extent in extents {
            let begin = end;
            end += extent.bytes;
            let checksum = extent.checksum;
            parts.push(ObjectPart { number: extent.number, range: begin..end, checksum });
        }
        let pin = id.map(|id| Arc::new(guard.pin(id)));
        let place = (bucket.to_owned(), key.to_owned());
        Ok(Object { shared: Arc::clone(&self.shared), info, source, parts, pin, id, place })
    }
}
