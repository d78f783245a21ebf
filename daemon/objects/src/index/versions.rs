//! The tables of older versions, and walks over all versions of a bucket.
//!
//! ```text
//! versions       bucket id (8) ‖ key ‖ 0 ‖ complement of the sequence (8) -> ObjectRecord
//! null_versions  bucket id (8) ‖ key                                      -> sequence (8) of the null version in `versions`
//! ```
//!
//! A key contains no NUL, so all versions of one key stand together, newest first, before those of the next key.

use redb::{ReadableTable, TableDefinition};

use super::rows::{
    BUCKET_ID_BYTES, Changes, Opened, Rewritten, Snapshot, Step, object_key, put, remove, replace, take,
};
use crate::error::StoreError;
use crate::records::{self, BucketId, ObjectRecord};
use crate::version::{Version, VersionId};

pub(super) const VERSIONS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("versions");
pub(super) const NULL_VERSIONS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("null_versions");

/// NUL and sequence behind the key of a version.
const SUFFIX_BYTES: usize = 9;

/// Where a walk over versions begins.
#[derive(Clone, Debug)]
pub(crate) enum Start {
    /// At the newest version of the first key that is not before this one.
    Key(Vec<u8>),
    /// At the version of a key that follows the one with this sequence.
    After(Vec<u8>, u64),
}

fn version_key(bucket: BucketId, key: &[u8], sequence: u64) -> Vec<u8> {
    let mut bytes = object_key(bucket, key);
    bytes.push(0);
    bytes.extend_from_slice(&(!sequence).to_be_bytes());
    bytes
}

/// The object's key in the key of a version's row.
fn key_of(row: &[u8]) -> Result<&[u8], StoreError> {
    let damaged = StoreError::Corrupt { what: "the key of a version can't be read" };
    row.len()
        .checked_sub(SUFFIX_BYTES)
        .filter(|end| *end >= BUCKET_ID_BYTES)
        .map(|end| &row[BUCKET_ID_BYTES..end])
        .ok_or(damaged)
}

macro_rules! version_reads {
    ($($borrow:tt)?) => {
        /// The version of `key` that clients call `id`.
        pub(crate) fn version(
            &self,
            bucket: BucketId,
            key: &str,
            id: VersionId,
        ) -> Result<Option<ObjectRecord>, StoreError> {
            if let Some(current) = self.object(bucket, key)?.filter(|current| current.version.id() == id) {
                return Ok(Some(current));
            }
            let sequence = match id {
                VersionId::Id { sequence, .. } => sequence,
                VersionId::Null => match self.null_sequence(bucket, key)? {
                    Some(sequence) => sequence,
                    None => return Ok(None),
                },
            };
            let table = self.versions()?;
            let place = version_key(bucket, key.as_bytes(), sequence);
            let found: Option<ObjectRecord> =
                self.view($($borrow)? table).row::<&[u8], _>(place.as_slice())?;
            Ok(found.filter(|found| found.version.id() == id))
        }

        /// The newest of the versions of `key` that are not in `objects`.
        pub(crate) fn newest_version(
            &self,
            bucket: BucketId,
            key: &str,
        ) -> Result<Option<ObjectRecord>, StoreError> {
            let mut newest = None;
            self.walk_older(bucket, key, &mut |version| {
                newest = Some(version);
                Ok(Step::Stop)
            })?;
            Ok(newest)
        }

        /// The versions of `key` that are not in `objects`, from new to old, until `visit` says stop.
        pub(crate) fn walk_older(
            &self,
            bucket: BucketId,
            key: &str,
            visit: &mut dyn FnMut(ObjectRecord) -> Result<Step, StoreError>,
        ) -> Result<(), StoreError> {
            let table = self.versions()?;
            let view = self.view($($borrow)? table);
            let (from, to) = (version_key(bucket, key.as_bytes(), u64::MAX), version_key(bucket, key.as_bytes(), 0));
            for row in view.explain(view.table.range::<&[u8]>(from.as_slice()..=to.as_slice()))? {
                if let Step::Stop = visit(records::decode(view.explain(row)?.1.value())?)? {
                    break;
                }
            }
            Ok(())
        }

        fn null_sequence(&self, bucket: BucketId, key: &str) -> Result<Option<u64>, StoreError> {
            let table = self.null_versions()?;
            let view = self.view($($borrow)? table);
            let place = object_key(bucket, key.as_bytes());
            let damaged = StoreError::Corrupt { what: "the place of a null version can't be read" };
            match view.explain(view.table.get(place.as_slice()))? {
                Some(row) => row.value().try_into().map(u64::from_le_bytes).map(Some).map_err(|_| damaged),
                None => Ok(None),
            }
        }
    };
}

/// Called with key and row of a version, and whether it is the newest of its key.
type VisitVersion<'a> = dyn FnMut(&[u8], &[u8], bool) -> Result<Step, StoreError> + 'a;

impl Snapshot {
    version_reads!(&);

    /// Every version of `bucket`, by key and from new to old, until `visit` says stop. A seek is to a key.
    pub(crate) fn walk_versions(
        &self,
        bucket: BucketId,
        from: Start,
        visit: &mut VisitVersion<'_>,
    ) -> Result<(), StoreError> {
        let (objects, versions) = (self.objects()?, self.versions()?);
        let (newest, older) = (self.view(&objects), self.view(&versions));
        let end = object_key(BucketId(bucket.0 + 1), b"");
        let mut shown = Vec::new();
        let (mut newest_from, mut older_from) = match from {
            Start::Key(key) => (object_key(bucket, &key), object_key(bucket, &key)),
            Start::After(key, sequence) => {
                let starts = [object_key(bucket, &key), version_key(bucket, &key, sequence)];
                shown.clone_from(&key);
                let [newest, older] = starts.map(|start| [start, vec![0]].concat());
                (newest, older)
            }
        };
        'seek: loop {
            if newest_from >= end {
                return Ok(());
            }
            let mut newest_rows =
                newest.explain(newest.table.range::<&[u8]>(newest_from.as_slice()..end.as_slice()))?;
            let mut older_rows =
                older.explain(older.table.range::<&[u8]>(older_from.as_slice()..end.as_slice()))?;
            let mut next_newest = newest_rows.next().transpose().map_err(|error| newest.fault(error))?;
            let mut next_older = older_rows.next().transpose().map_err(|error| older.fault(error))?;
            loop {
                let first_is_newest = match (&next_newest, &next_older) {
                    (None, None) => return Ok(()),
                    (Some(_), None) => true,
                    (None, Some(_)) => false,
                    (Some((newest, _)), Some((older, _))) => {
                        newest.value()[BUCKET_ID_BYTES..] <= *key_of(older.value())?
                    }
                };
                let taken = if first_is_newest {
                    let next = newest_rows.next().transpose().map_err(|error| newest.fault(error))?;
                    std::mem::replace(&mut next_newest, next)
                } else {
                    let next = older_rows.next().transpose().map_err(|error| older.fault(error))?;
                    std::mem::replace(&mut next_older, next)
                };
                let Some((place, row)) = taken else { return Ok(()) };
                let key = match first_is_newest {
                    true => &place.value()[BUCKET_ID_BYTES..],
                    false => key_of(place.value())?,
                };
                let is_newest = key != shown.as_slice();
                match visit(key, row.value(), is_newest)? {
                    Step::Next => {}
                    Step::Stop => return Ok(()),
                    Step::Seek(to) => {
                        shown.clear();
                        newest_from = object_key(bucket, &to);
                        older_from.clone_from(&newest_from);
                        continue 'seek;
                    }
                }
                if is_newest {
                    key.clone_into(&mut shown);
                }
            }
        }
    }

    pub(super) fn versions(&self) -> Opened<&'static [u8]> {
        self.open(VERSIONS)
    }

    fn null_versions(&self) -> Opened<&'static [u8]> {
        self.open(NULL_VERSIONS)
    }
}

impl<'txn> Changes<'txn> {
    version_reads!();

    /// Adds a version that is not the newest object.
    pub(crate) fn put_version(
        &mut self,
        bucket: BucketId,
        key: &str,
        record: &ObjectRecord,
    ) -> Result<(), StoreError> {
        let place = version_key(bucket, key.as_bytes(), record.version.sequence);
        let row = records::encode(record);
        self.written += row.len();
        let replaced = replace(self.file, &mut self.versions, &place, &row)?;
        self.count_row(bucket, Some(record.bytes), replaced);
        if record.version.is_null {
            let place = object_key(bucket, key.as_bytes());
            let sequence = record.version.sequence.to_le_bytes();
            self.written += put(self.file, &mut self.null_versions, place.as_slice(), &sequence)?;
        }
        Ok(())
    }

    /// Takes a version out that is not the newest object.
    pub(crate) fn remove_version(
        &mut self,
        bucket: BucketId,
        key: &str,
        version: Version,
    ) -> Result<(), StoreError> {
        let place = version_key(bucket, key.as_bytes(), version.sequence);
        let removed = take(self.file, &mut self.versions, &place)?;
        self.removed += u64::from(removed.is_some());
        self.count_row(bucket, None, removed);
        if version.is_null {
            let place = object_key(bucket, key.as_bytes());
            self.removed += remove(self.file, &mut self.null_versions, place.as_slice())?;
        }
        Ok(())
    }

    /// Whether a bucket has versions that are not in `objects`.
    pub(crate) fn holds_versions(&self, bucket: BucketId) -> Result<bool, StoreError> {
        let (from, to) = (object_key(bucket, b""), object_key(BucketId(bucket.0 + 1), b""));
        let view = self.view(&self.versions);
        let mut rows = view.explain(self.versions.range::<&[u8]>(from.as_slice()..to.as_slice()))?;
        rows.next().transpose().map(|row| row.is_some()).map_err(|error| view.fault(error))
    }

    fn versions(&self) -> Result<&Rewritten<'txn, &'static [u8]>, StoreError> {
        Ok(&self.versions)
    }

    fn null_versions(&self) -> Result<&Rewritten<'txn, &'static [u8]>, StoreError> {
        Ok(&self.null_versions)
    }
}
