//! The tables, their rows and the reads and writes on them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use redb::{
    Key, ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
    WriteTransaction,
};

use super::documents::{DOCUMENTS, DocumentKey};
use super::events::{Destinations, EVENTS, EventKey};
use super::explain;
use super::file::IndexFile;
use super::identities::{IDENTITIES, IdentityKey};
use super::versions::{NULL_VERSIONS, VERSIONS};
use crate::buckets::BucketRef;
use crate::error::StoreError;
use crate::records::{
    self, Body, BodyId, BucketId, BucketRecord, Manifest, ObjectRecord, PartRecord, Run, UploadRecord,
};
use crate::usage::{Counted, Usage, UsageChange};

/// Names a multipart upload: its start time and random bits, so that ids sort by age.
pub(crate) type UploadId = u128;

type Rows = TableDefinition<'static, &'static [u8], &'static [u8]>;
type UploadKey = (u64, &'static [u8], UploadId);

const BUCKETS: TableDefinition<&str, &[u8]> = TableDefinition::new("buckets");
const OBJECTS: Rows = TableDefinition::new("objects");
const MANIFESTS: TableDefinition<u64, &[u8]> = TableDefinition::new("manifests");
const UPLOADS: TableDefinition<UploadKey, &[u8]> = TableDefinition::new("uploads");
const PARTS: TableDefinition<(UploadId, u16), &[u8]> = TableDefinition::new("parts");
const ACCESS_KEYS: TableDefinition<&str, &[u8]> = TableDefinition::new("access_keys");

/// Called with the body id of a row, where it has one, and the runs that it refers to.
type VisitRuns<'a> = dyn FnMut(Option<BodyId>, &[Run]) -> Result<(), StoreError> + 'a;

/// Called with what a row adds to what its bucket holds.
type VisitUsage<'a> = dyn FnMut(BucketId, UsageChange) + 'a;

/// Called with key, id and row of an unfinished upload.
type VisitUpload<'a> = dyn FnMut(&[u8], UploadId, UploadRecord) -> Result<Step, StoreError> + 'a;

/// What a walk does after a row.
pub(crate) enum Step {
    Next,
    /// Goes on at the first row with this key or a later one.
    Seek(Vec<u8>),
    Stop,
}

/// Rows in the index, for status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) buckets: u64,
    pub(crate) objects: u64,
    pub(crate) versions: u64,
    pub(crate) uploads: u64,
    pub(crate) access_keys: u64,
}

/// A table whichever way it was opened, with the way to explain its errors.
pub(super) struct View<'a, T> {
    pub(super) table: &'a T,
    file: &'a IndexFile,
}

impl<T> View<'_, T> {
    pub(super) fn explain<R>(&self, result: Result<R, redb::StorageError>) -> Result<R, StoreError> {
        result.map_err(|error| self.fault(error))
    }

    pub(super) fn fault(&self, error: redb::StorageError) -> StoreError {
        explain(self.file, error.into())
    }

    pub(super) fn row<'k, K: Key + 'static, R: records::Row>(
        &self,
        key: impl std::borrow::Borrow<K::SelfType<'k>>,
    ) -> Result<Option<R>, StoreError>
    where
        T: ReadableTable<K, &'static [u8]>,
    {
        self.explain(self.table.get(key))?.map(|row| records::decode(row.value())).transpose()
    }
}

/// Reads that work on a committed state and on one in the making.
macro_rules! shared_reads {
    // `$borrow` is `&` where opening a table gives the table itself, nothing where it gives a reference.
    ($($borrow:tt)?) => {
        /// Whichever bucket has this name.
        pub(crate) fn bucket_named(&self, name: &str) -> Result<Option<BucketRecord>, StoreError> {
            let table = self.buckets()?;
            self.view($($borrow)? table).row::<&str, _>(name)
        }

        /// The bucket that is meant, and not another that has its name by now.
        pub(crate) fn bucket(&self, bucket: &BucketRef) -> Result<BucketRecord, StoreError> {
            let found = self.bucket_named(bucket.name())?;
            found.filter(|found| bucket.means(found.id)).ok_or(StoreError::NoSuchBucket)
        }

        pub(crate) fn object(&self, bucket: BucketId, key: &str) -> Result<Option<ObjectRecord>, StoreError> {
            let table = self.objects()?;
            self.view($($borrow)? table).row::<&[u8], _>(object_key(bucket, key.as_bytes()).as_slice())
        }

        pub(crate) fn manifest(&self, id: BodyId) -> Result<Manifest, StoreError> {
            let table = self.manifests()?;
            self.view($($borrow)? table)
                .row::<u64, _>(id.0)?
                .ok_or(StoreError::Corrupt { what: "an object's list of parts is missing" })
        }

        pub(crate) fn upload(
            &self,
            bucket: BucketId,
            key: &str,
            upload: UploadId,
        ) -> Result<Option<UploadRecord>, StoreError> {
            let table = self.uploads()?;
            self.view($($borrow)? table).row::<UploadKey, _>((bucket.0, key.as_bytes(), upload))
        }

        /// Every part of `upload` above `after`, ascending, until `visit` says stop.
        pub(crate) fn walk_parts(
            &self,
            upload: UploadId,
            after: u16,
            visit: &mut dyn FnMut(u16, PartRecord) -> Result<Step, StoreError>,
        ) -> Result<(), StoreError> {
            let table = self.parts()?;
            let view = self.view($($borrow)? table);
            let range = (Bound::Excluded((upload, after)), Bound::Included((upload, u16::MAX)));
            for row in view.explain(view.table.range(range))? {
                let (key, row) = view.explain(row)?;
                if let Step::Stop = visit(key.value().1, records::decode(row.value())?)? {
                    break;
                }
            }
            Ok(())
        }

        /// Every object of `bucket` from key `from` on, in byte order, until `visit` says stop.
        pub(crate) fn walk_objects(
            &self,
            bucket: BucketId,
            from: &[u8],
            visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<Step, StoreError>,
        ) -> Result<(), StoreError> {
            let table = self.objects()?;
            let view = self.view($($borrow)? table);
            let end = object_key(BucketId(bucket.0 + 1), b"");
            let mut start = object_key(bucket, from);
            'seek: loop {
                if start >= end {
                    return Ok(());
                }
                for row in view.explain(view.table.range::<&[u8]>(start.as_slice()..end.as_slice()))? {
                    let (key, row) = view.explain(row)?;
                    match visit(&key.value()[BUCKET_ID_BYTES..], row.value())? {
                        Step::Next => {}
                        Step::Stop => return Ok(()),
                        Step::Seek(to) => {
                            start = object_key(bucket, &to);
                            continue 'seek;
                        }
                    }
                }
                return Ok(());
            }
        }

        /// Every unfinished upload of `bucket` from (`key`, `upload`) on, by key and then by age, until `visit` says stop.
        pub(crate) fn walk_uploads(
            &self,
            bucket: BucketId,
            from: (&[u8], UploadId),
            visit: &mut VisitUpload<'_>,
        ) -> Result<(), StoreError> {
            let table = self.uploads()?;
            let view = self.view($($borrow)? table);
            let mut start = (from.0.to_vec(), from.1);
            'seek: loop {
                let range = (bucket.0, start.0.as_slice(), start.1)..(bucket.0 + 1, b"".as_slice(), 0);
                for row in view.explain(view.table.range(range))? {
                    let (key, row) = view.explain(row)?;
                    let (_, name, upload) = key.value();
                    match visit(name, upload, records::decode(row.value())?)? {
                        Step::Next => {}
                        Step::Stop => return Ok(()),
                        Step::Seek(to) => {
                            start = (to, 0);
                            continue 'seek;
                        }
                    }
                }
                return Ok(());
            }
        }

        /// Every bucket by name.
        pub(crate) fn walk_buckets(
            &self,
            visit: &mut dyn FnMut(&str, BucketRecord) -> Result<(), StoreError>,
        ) -> Result<(), StoreError> {
            let table = self.buckets()?;
            let view = self.view($($borrow)? table);
            for row in view.explain(view.table.iter())? {
                let (name, row) = view.explain(row)?;
                visit(name.value(), records::decode(row.value())?)?;
            }
            Ok(())
        }

        /// The row of an access key, handed to `read` where it stands: it holds a secret.
        pub(crate) fn access_key<R>(
            &self,
            id: &str,
            read: impl FnOnce(&[u8]) -> Result<R, StoreError>,
        ) -> Result<Option<R>, StoreError> {
            let table = self.access_keys()?;
            let view = self.view($($borrow)? table);
            view.explain(view.table.get(id))?.map(|row| read(row.value())).transpose()
        }

        /// Every access key by id.
        pub(crate) fn walk_access_keys(
            &self,
            visit: &mut dyn FnMut(&str, &[u8]) -> Result<(), StoreError>,
        ) -> Result<(), StoreError> {
            let table = self.access_keys()?;
            let view = self.view($($borrow)? table);
            for row in view.explain(view.table.iter())? {
                let (id, row) = view.explain(row)?;
                visit(id.value(), row.value())?;
            }
            Ok(())
        }
    };
}

/// One committed state.
pub(crate) struct Snapshot {
    pub(super) transaction: ReadTransaction,
    pub(super) file: Arc<IndexFile>,
}

pub(super) type Opened<K> = Result<ReadOnlyTable<K, &'static [u8]>, StoreError>;

impl Snapshot {
    shared_reads!(&);

    /// Calls `visit` with every run that a committed row refers to, and with every body id; `count` with what rows hold.
    pub(crate) fn walk_runs(
        &self,
        visit: &mut VisitRuns<'_>,
        count: &mut VisitUsage<'_>,
    ) -> Result<(), StoreError> {
        let (objects, manifests, parts) = (self.objects()?, self.manifests()?, self.parts()?);
        let versions = self.versions()?;
        let view = self.view(&objects);
        for row in view.explain(objects.iter())?.chain(view.explain(versions.iter())?) {
            let (key, row) = view.explain(row)?;
            let (body, bytes) = records::decode_body(row.value())?;
            count(bucket_of(key.value())?, UsageChange { bytes: signed(bytes), objects: 1 });
            match body {
                Body::Inline(_) => {}
                Body::Runs { id, runs } => visit(Some(id), &runs)?,
                Body::Parts { id } => visit(Some(id), &[])?,
            }
        }
        for row in view.explain(manifests.iter())? {
            let (_, row) = view.explain(row)?;
            for part in records::decode::<Manifest>(row.value())?.parts {
                visit(None, &part.runs)?;
            }
        }
        let uploads = self.uploads()?;
        let mut begun = HashMap::new();
        for row in view.explain(uploads.iter())? {
            let (bucket, _, upload) = view.explain(row)?.0.value();
            begun.insert(upload, BucketId(bucket));
        }
        for row in view.explain(parts.iter())? {
            let (key, row) = view.explain(row)?;
            let part: PartRecord = records::decode(row.value())?;
            if let Some(bucket) = begun.get(&key.value().0) {
                count(*bucket, UsageChange { bytes: signed(part.counted_bytes()), objects: 0 });
            }
            visit(Some(part.id), &part.runs)?;
        }
        Ok(())
    }

    /// Rows per table.
    pub(crate) fn counts(&self) -> Result<Counts, StoreError> {
        Ok(Counts {
            buckets: self.rows(BUCKETS)?,
            objects: self.rows(OBJECTS)?,
            versions: self.rows(VERSIONS)?,
            uploads: self.rows(UPLOADS)?,
            access_keys: self.rows(ACCESS_KEYS)?,
        })
    }

    fn rows<K: Key + 'static>(
        &self,
        table: TableDefinition<'static, K, &'static [u8]>,
    ) -> Result<u64, StoreError> {
        let table = self.open(table)?;
        self.view(&table).explain(table.len())
    }

    pub(super) fn open<K: Key + 'static>(
        &self,
        table: TableDefinition<'static, K, &'static [u8]>,
    ) -> Opened<K> {
        self.transaction.open_table(table).map_err(|error| explain(&self.file, error.into()))
    }

    pub(super) fn view<'a, T>(&'a self, table: &'a T) -> View<'a, T> {
        View { table, file: &self.file }
    }

    fn buckets(&self) -> Opened<&'static str> {
        self.open(BUCKETS)
    }

    pub(super) fn objects(&self) -> Opened<&'static [u8]> {
        self.open(OBJECTS)
    }

    fn manifests(&self) -> Opened<u64> {
        self.open(MANIFESTS)
    }

    fn uploads(&self) -> Opened<UploadKey> {
        self.open(UPLOADS)
    }

    fn parts(&self) -> Opened<(UploadId, u16)> {
        self.open(PARTS)
    }

    fn access_keys(&self) -> Opened<&'static str> {
        self.open(ACCESS_KEYS)
    }
}

pub(super) type Rewritten<'txn, K> = Table<'txn, K, &'static [u8]>;

/// A state in the making.
pub(crate) struct Changes<'txn> {
    pub(super) file: &'txn IndexFile,
    buckets: Rewritten<'txn, &'static str>,
    objects: Rewritten<'txn, &'static [u8]>,
    manifests: Rewritten<'txn, u64>,
    uploads: Rewritten<'txn, UploadKey>,
    parts: Rewritten<'txn, (UploadId, u16)>,
    access_keys: Rewritten<'txn, &'static str>,
    pub(super) versions: Rewritten<'txn, &'static [u8]>,
    pub(super) null_versions: Rewritten<'txn, &'static [u8]>,
    pub(super) documents: Rewritten<'txn, DocumentKey>,
    pub(super) identities: Rewritten<'txn, IdentityKey>,
    pub(super) events: Rewritten<'txn, EventKey>,
    /// Whether there is room for events.
    pub(crate) takes_events: bool,
    /// Those for which there was none.
    pub(super) events_lost: u64,
    /// Those that wait, and did not before.
    pub(super) events_added: u64,
    /// What is added to the rows of destinations.
    pub(super) event_changes: BTreeMap<String, i64>,
    pub(super) destinations: &'txn Destinations,
    /// What buckets held before.
    counted: &'txn Counted,
    /// What is added to them.
    pub(super) usage: HashMap<BucketId, UsageChange>,
    /// Bytes of rows written so far.
    pub(super) written: usize,
    /// Rows removed so far.
    pub(super) removed: u64,
}

impl<'txn> Changes<'txn> {
    shared_reads!();

    pub(super) fn open(
        transaction: &'txn WriteTransaction,
        file: &'txn IndexFile,
        (counted, destinations): (&'txn Counted, &'txn Destinations),
    ) -> Result<Self, StoreError> {
        fn table<'txn, K: Key + 'static>(
            transaction: &'txn WriteTransaction,
            file: &IndexFile,
            definition: TableDefinition<'static, K, &'static [u8]>,
        ) -> Result<Rewritten<'txn, K>, StoreError> {
            transaction.open_table(definition).map_err(|error| explain(file, error.into()))
        }
        Ok(Self {
            file,
            buckets: table(transaction, file, BUCKETS)?,
            objects: table(transaction, file, OBJECTS)?,
            manifests: table(transaction, file, MANIFESTS)?,
            uploads: table(transaction, file, UPLOADS)?,
            parts: table(transaction, file, PARTS)?,
            access_keys: table(transaction, file, ACCESS_KEYS)?,
            versions: table(transaction, file, VERSIONS)?,
            null_versions: table(transaction, file, NULL_VERSIONS)?,
            documents: table(transaction, file, DOCUMENTS)?,
            identities: table(transaction, file, IDENTITIES)?,
            events: table(transaction, file, EVENTS)?,
            takes_events: true,
            events_lost: 0,
            events_added: 0,
            event_changes: BTreeMap::new(),
            destinations,
            counted,
            usage: HashMap::new(),
            written: 0,
            removed: 0,
        })
    }

    /// Bytes of rows written so far.
    pub(crate) fn written(&self) -> usize {
        self.written
    }

    /// What a bucket holds, with what was changed so far.
    pub(crate) fn usage(&self, bucket: BucketId) -> Usage {
        let change = self.usage.get(&bucket).copied().unwrap_or_default();
        self.counted.of(bucket).with(change)
    }

    /// Counts a change of what a bucket holds.
    pub(crate) fn count(&mut self, bucket: BucketId, bytes: i64, objects: i64) {
        let change = self.usage.entry(bucket).or_default();
        change.bytes += bytes;
        change.objects += objects;
    }

    /// Takes what is added to buckets.
    pub(super) fn take_usage(&mut self) -> HashMap<BucketId, UsageChange> {
        std::mem::take(&mut self.usage)
    }

    /// Rows removed so far.
    pub(crate) fn removed(&self) -> u64 {
        self.removed
    }

    pub(crate) fn bucket_count(&self) -> Result<u64, StoreError> {
        self.view(&self.buckets).explain(self.buckets.len())
    }

    pub(crate) fn put_bucket(&mut self, name: &str, record: &BucketRecord) -> Result<(), StoreError> {
        self.written += put(self.file, &mut self.buckets, name, &records::encode(record))?;
        Ok(())
    }

    pub(crate) fn remove_bucket(&mut self, name: &str) -> Result<(), StoreError> {
        self.removed += remove(self.file, &mut self.buckets, name)?;
        Ok(())
    }

    pub(crate) fn put_object(
        &mut self,
        bucket: BucketId,
        key: &str,
        record: &ObjectRecord,
    ) -> Result<(), StoreError> {
        let key = object_key(bucket, key.as_bytes());
        let row = records::encode(record);
        self.written += row.len();
        let replaced = replace(self.file, &mut self.objects, &key, &row)?;
        self.count_row(bucket, Some(record.bytes), replaced);
        Ok(())
    }

    pub(crate) fn remove_object(&mut self, bucket: BucketId, key: &str) -> Result<(), StoreError> {
        let removed = take(self.file, &mut self.objects, &object_key(bucket, key.as_bytes()))?;
        self.removed += u64::from(removed.is_some());
        self.count_row(bucket, None, removed);
        Ok(())
    }

    /// Counts that a row of so many bytes took the place of another.
    pub(super) fn count_row(&mut self, bucket: BucketId, new: Option<u64>, old: Option<u64>) {
        let bytes = signed(new.unwrap_or(0)) - signed(old.unwrap_or(0));
        self.count(bucket, bytes, i64::from(new.is_some()) - i64::from(old.is_some()));
    }

    pub(crate) fn put_manifest(&mut self, id: BodyId, manifest: &Manifest) -> Result<(), StoreError> {
        self.written += put(self.file, &mut self.manifests, id.0, &records::encode(manifest))?;
        Ok(())
    }

    pub(crate) fn remove_manifest(&mut self, id: BodyId) -> Result<(), StoreError> {
        self.removed += remove(self.file, &mut self.manifests, id.0)?;
        Ok(())
    }

    pub(crate) fn put_upload(
        &mut self,
        bucket: BucketId,
        key: &str,
        upload: UploadId,
        record: &UploadRecord,
    ) -> Result<(), StoreError> {
        let key = (bucket.0, key.as_bytes(), upload);
        self.written += put(self.file, &mut self.uploads, key, &records::encode(record))?;
        Ok(())
    }

    pub(crate) fn remove_upload(
        &mut self,
        bucket: BucketId,
        key: &str,
        upload: UploadId,
    ) -> Result<(), StoreError> {
        self.removed += remove(self.file, &mut self.uploads, (bucket.0, key.as_bytes(), upload))?;
        Ok(())
    }

    pub(crate) fn part(&self, upload: UploadId, number: u16) -> Result<Option<PartRecord>, StoreError> {
        self.view(&self.parts).row::<(UploadId, u16), _>((upload, number))
    }

    pub(crate) fn put_part(
        &mut self,
        upload: UploadId,
        number: u16,
        record: &PartRecord,
    ) -> Result<(), StoreError> {
        self.written += put(self.file, &mut self.parts, (upload, number), &records::encode(record))?;
        Ok(())
    }

    pub(crate) fn remove_part(&mut self, upload: UploadId, number: u16) -> Result<(), StoreError> {
        self.removed += remove(self.file, &mut self.parts, (upload, number))?;
        Ok(())
    }

    pub(crate) fn put_access_key(&mut self, id: &str, row: &[u8]) -> Result<(), StoreError> {
        self.written += put(self.file, &mut self.access_keys, id, row)?;
        Ok(())
    }

    pub(crate) fn remove_access_key(&mut self, id: &str) -> Result<(), StoreError> {
        self.removed += remove(self.file, &mut self.access_keys, id)?;
        Ok(())
    }

    pub(super) fn view<'a, T>(&'a self, table: &'a T) -> View<'a, T> {
        View { table, file: self.file }
    }

    fn buckets(&self) -> Result<&Rewritten<'txn, &'static str>, StoreError> {
        Ok(&self.buckets)
    }

    fn objects(&self) -> Result<&Rewritten<'txn, &'static [u8]>, StoreError> {
        Ok(&self.objects)
    }

    fn manifests(&self) -> Result<&Rewritten<'txn, u64>, StoreError> {
        Ok(&self.manifests)
    }

    fn uploads(&self) -> Result<&Rewritten<'txn, UploadKey>, StoreError> {
        Ok(&self.uploads)
    }

    fn parts(&self) -> Result<&Rewritten<'txn, (UploadId, u16)>, StoreError> {
        Ok(&self.parts)
    }

    fn access_keys(&self) -> Result<&Rewritten<'txn, &'static str>, StoreError> {
        Ok(&self.access_keys)
    }
}

pub(super) fn put<'k, K: Key + 'static>(
    file: &IndexFile,
    table: &mut Rewritten<'_, K>,
    key: impl std::borrow::Borrow<K::SelfType<'k>>,
    row: &[u8],
) -> Result<usize, StoreError> {
    table.insert(key, row).map_err(|error| explain(file, error.into()))?;
    Ok(row.len())
}

pub(super) fn remove<'k, K: Key + 'static>(
    file: &IndexFile,
    table: &mut Rewritten<'_, K>,
    key: impl std::borrow::Borrow<K::SelfType<'k>>,
) -> Result<u64, StoreError> {
    let removed = table.remove(key).map_err(|error| explain(file, error.into()))?;
    Ok(removed.is_some().into())
}

/// Puts an object's row; size of the object in the row that was there.
pub(super) fn replace(
    file: &IndexFile,
    table: &mut Rewritten<'_, &'static [u8]>,
    key: &[u8],
    row: &[u8],
) -> Result<Option<u64>, StoreError> {
    let replaced = table.insert(key, row).map_err(|error| explain(file, error.into()))?;
    replaced.map(|row| records::decode_body(row.value()).map(|(_, bytes)| bytes)).transpose()
}

/// Removes an object's row; size of the object in it.
pub(super) fn take(
    file: &IndexFile,
    table: &mut Rewritten<'_, &'static [u8]>,
    key: &[u8],
) -> Result<Option<u64>, StoreError> {
    let removed = table.remove(key).map_err(|error| explain(file, error.into()))?;
    removed.map(|row| records::decode_body(row.value()).map(|(_, bytes)| bytes)).transpose()
}

/// Sizes are below 2^63: the largest object has 5 TiB.
pub(crate) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The bucket in the key of a row of `objects` or `versions`.
fn bucket_of(key: &[u8]) -> Result<BucketId, StoreError> {
    let id = key.first_chunk().map(|id| BucketId(u64::from_be_bytes(*id)));
    id.ok_or(StoreError::Corrupt { what: "the key of an object can't be read" })
}

pub(super) const BUCKET_ID_BYTES: usize = 8;

/// Objects of one bucket stand together, in the byte order of their keys.
pub(super) fn object_key(bucket: BucketId, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BUCKET_ID_BYTES + key.len());
    bytes.extend_from_slice(&bucket.0.to_be_bytes());
    bytes.extend_from_slice(key);
    bytes
}
