//! The index: redb tables on the index region. The only module that knows redb.
//!
//! ```text
//! buckets      name                            -> BucketRecord
//! objects      bucket id (8, big-endian) ‖ key -> ObjectRecord
//! manifests    body id                         -> Manifest
//! uploads      (bucket id, key, upload id)     -> UploadRecord
//! parts        (upload id, part number)        -> PartRecord
//! access_keys  access key id                   -> AccessKeyRow
//! versions, null_versions: see `versions`; bucket_documents: see `documents`
//! ```
//!
//! Invariants:
//! - Every change is part of one durable two-phase commit: all pages and the new root's slot, flush, root switched, flush.
//!   The first of these flushes is also the one that makes bodies durable (see `commit`).
//! - Reads see one committed state and never wait for a commit. They wait while the index is opened again or compacted,
//!   which happens only when there is no room left.
//! - A commit that finds the pool full changes nothing: the index is opened again as it was.
//! - redb may panic on a damaged page. A panic ends in an error here, never in the thread of a caller.

mod documents;
mod file;
mod rows;
mod versions;

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use redb::{Database, ReadableDatabase};

use crate::error::StoreError;
use crate::layout::{FORMAT_VERSION, IndexLength, Layout};
use crate::limits::{INDEX_CACHE_BYTES, QUICK_REPAIR_INDEX_BYTES_MAX};
use crate::volume::{BlockErrorKind, BlockVolume};

use file::{Backend, IndexFile};
pub(crate) use rows::{Changes, Snapshot, Step, UploadId};
pub(crate) use versions::Start as VersionsStart;

/// Rows that must be gone before it is worth looking whether the index file can be made smaller.
const COMPACT_AFTER_REMOVALS: u64 = 256;

/// Share of the index's capacity that stays free for deletes.
const DELETE_SHARE: u64 = 8;

/// Pages that a row may cost at worst, as a factor on its bytes: half-full leaves, branches, and the copies that a commit
/// makes before it frees the originals.
const PAGES_PER_ROW: u64 = 4;

/// What becomes of a change.
pub(crate) enum Verdict<R> {
    Commit(R),
    /// Nothing was changed: there is nothing to make durable.
    Discard(R),
}

/// The open index.
pub(crate) struct Index {
    file: Arc<IndexFile>,
    /// `None` once closed. Behind a lock because a full pool makes it open again.
    database: RwLock<Option<Arc<Database>>>,
    room: Mutex<Room>,
}

/// What is known about the pages of an index file that may have reached its capacity. Counting them walks the whole
/// index, so it is done again only when the last count is used up.
#[derive(Debug, Default)]
struct Room {
    /// Bytes of rows that are certain to fit.
    rows_left: u64,
    /// Whether anything was committed since the last count.
    changed: bool,
    /// Rows removed since the file was last compacted.
    removed: u64,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("file", &self.file).finish_non_exhaustive()
    }
}

type DatabaseSlot = Option<Arc<Database>>;

impl Index {
    /// Opens the index, making it if the file is empty.
    pub(crate) fn open(volume: Arc<dyn BlockVolume>, layout: &Layout) -> Result<Self, StoreError> {
        let length = IndexLength::read(&*volume)?;
        let lacks_tables = length.bytes() == 0 || layout.version < FORMAT_VERSION;
        let file = Arc::new(IndexFile::new(volume, layout, length));
        file.measure_reserve()?;
        let database = open_database(&file)?;
        let room = Mutex::new(Room { changed: true, ..Room::default() });
        let index = Self { file, database: RwLock::new(Some(Arc::new(database))), room };
        if lacks_tables {
            // Opening them for a write makes them.
            index.write(|_| Ok(Verdict::Commit(())))?;
        }
        Ok(index)
    }

    /// Lets go of the database. Whoever reads still finishes or fails; nothing is written any more.
    pub(crate) fn close(&self) {
        let database = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(database);
    }

    /// Size of the index file in bytes.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.file.len()
    }

    /// Runs `read` on the last committed state.
    pub(crate) fn read<R>(
        &self,
        read: impl FnOnce(&Snapshot) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let database = self.database()?;
        contained(|| {
            let transaction = database.begin_read().map_err(|error| self.fault(error.into()))?;
            read(&Snapshot { transaction, file: Arc::clone(&self.file) })
        })
    }

    /// Runs `change` and commits what it did, durably. On an error nothing of it is there.
    pub(crate) fn write<R>(
        &self,
        change: impl FnOnce(&mut Changes<'_>) -> Result<Verdict<R>, StoreError>,
    ) -> Result<R, StoreError> {
        let database = self.database()?;
        let result = contained(|| self.commit(&database, change));
        if matches!(result, Err(StoreError::NoSpace)) {
            drop(database);
            self.reopen(&mut self.database.write().unwrap_or_else(PoisonError::into_inner))?;
        }
        result
    }

    fn commit<R>(
        &self,
        database: &Database,
        change: impl FnOnce(&mut Changes<'_>) -> Result<Verdict<R>, StoreError>,
    ) -> Result<R, StoreError> {
        let mut transaction = database.begin_write().map_err(|error| self.fault(error.into()))?;
        transaction.set_two_phase_commit(true);
        transaction.set_quick_repair(self.file.len() <= QUICK_REPAIR_INDEX_BYTES_MAX);
        let (outcome, written, removed) = {
            let mut changes = Changes::open(&transaction, &self.file)?;
            (change(&mut changes), changes.written(), changes.removed())
        };
        match outcome {
            Ok(Verdict::Commit(outcome)) => {
                transaction.commit().map_err(|error| self.fault(error.into()))?;
                let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
                room.rows_left = room.rows_left.saturating_sub(written as u64);
                room.removed += removed;
                room.changed = true;
                Ok(outcome)
            }
            Ok(Verdict::Discard(outcome)) => {
                transaction.abort().map_err(|error| self.fault(error.into()))?;
                Ok(outcome)
            }
            Err(error) => {
                // A failed abort is found out by whoever uses the index next.
                let _ = transaction.abort();
                Err(error)
            }
        }
    }

    /// redb takes no further request after an error, this one included that only said "full". What is on the volume is
    /// the last commit, whole; opening it again is all it takes.
    fn reopen(&self, slot: &mut DatabaseSlot) -> Result<(), StoreError> {
        if slot.take().is_none() {
            return Err(StoreError::Closed);
        }
        self.file.take_fault();
        *slot = Some(Arc::new(open_database(&self.file)?));
        Ok(())
    }

    fn database(&self) -> Result<Arc<Database>, StoreError> {
        self.database.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(StoreError::Closed)
    }

    fn fault(&self, error: redb::Error) -> StoreError {
        explain(&self.file, error)
    }

    /// Whether new rows may be written such that deletes still fit after them. To be called between commits.
    pub(crate) fn has_room(&self) -> Result<bool, StoreError> {
        if !self.file.has_reserve() {
            self.file.fill_reserve()?;
        }
        if !self.file.has_reserve() && self.compact_if_worthwhile()? {
            self.file.fill_reserve()?;
        }
        Ok(self.file.has_reserve() && (self.file.is_below_capacity() || self.counted_room()?))
    }

    /// Whether the rows leave the share of deletes free.
    fn counted_room(&self) -> Result<bool, StoreError> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if room.rows_left == 0 && room.changed {
            let used = contained(|| {
                let transaction = self.database()?.begin_write().map_err(|error| self.fault(error.into()))?;
                let stats = transaction.stats().map_err(|error| self.fault(error.into()))?;
                transaction.abort().map_err(|error| self.fault(error.into()))?;
                Ok(stats.allocated_pages() * stats.page_size() as u64)
            })?;
            let capacity = self.file.capacity();
            let free = capacity.saturating_sub(used + capacity / DELETE_SHARE);
            room.rows_left = free / PAGES_PER_ROW;
            room.changed = false;
        }
        Ok(room.rows_left > 0)
    }

    /// Makes the file smaller where many rows went: their pages stay the file's, and the pool has nothing of it.
    fn compact_if_worthwhile(&self) -> Result<bool, StoreError> {
        let removed = {
            let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
            if room.removed < COMPACT_AFTER_REMOVALS {
                return Ok(false);
            }
            std::mem::take(&mut room.removed)
        };
        tracing::info!(removed, "the pool is full: compacting the object index");
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let mut shared = slot.take().ok_or(StoreError::Closed)?;
        let mut database = loop {
            // Readers that began before the lock was taken; they are short, and new ones wait.
            match Arc::try_unwrap(shared) {
                Ok(database) => break database,
                Err(in_use) => shared = in_use,
            }
            std::thread::yield_now();
        };
        let compacted = contained(|| database.compact().map_err(|error| self.fault(error.into())));
        *slot = Some(Arc::new(database));
        match compacted {
            Err(StoreError::NoSpace) => self.reopen(&mut slot).map(|()| false),
            // The file is shorter; the pool has the difference only after a flush.
            Ok(_) => self.file.sync().map(|()| true).map_err(StoreError::from),
            Err(error) => Err(error),
        }
    }
}

fn open_database(file: &Arc<IndexFile>) -> Result<Database, StoreError> {
    contained(|| {
        Database::builder()
            .set_cache_size(INDEX_CACHE_BYTES)
            .set_repair_callback(|_| tracing::debug!("walking the object index after an unclean end"))
            .create_with_backend(Backend(Arc::clone(file)))
            .map_err(|error| explain(file, error.into()))
    })
}

/// Runs what may panic on a damaged index; afterwards the index is not used any more.
fn contained<R>(run: impl FnOnce() -> Result<R, StoreError>) -> Result<R, StoreError> {
    let damaged = StoreError::IndexDamaged { what: "a page can't be what it says it is" };
    faults::contain(run).unwrap_or(Err(damaged))
}

/// What lies behind redb's error: the volume's own first error, where it was one.
fn explain(file: &IndexFile, error: redb::Error) -> StoreError {
    match file.fault() {
        Some(fault) => match fault.kind() {
            BlockErrorKind::KeyGone => StoreError::Sealed,
            BlockErrorKind::NoSpace => StoreError::NoSpace,
            BlockErrorKind::Io | BlockErrorKind::Failed => StoreError::Failed(Arc::new(fault)),
        },
        None => match error {
            redb::Error::DatabaseClosed => StoreError::Closed,
            redb::Error::Corrupted(_) => StoreError::IndexDamaged { what: "a page has the wrong checksum" },
            error => StoreError::Failed(Arc::new(error)),
        },
    }
}
