//! The index: redb tables on the index region. The only module that knows redb.
//!
//! ```text
//! buckets      name                            -> BucketRecord
//! objects      bucket id (8, big-endian) ‖ key -> ObjectRecord
//! manifests    body id                         -> Manifest
//! uploads      (bucket id, key, upload id)     -> UploadRecord
//! parts        (upload id, part number)        -> PartRecord
//! access_keys  access key id                   -> AccessKeyRow
//! versions, null_versions: see `versions`; bucket_documents: see `documents`; identities: see `identities`;
//! events: see `events`
//! ```
//!
//! Invariants:
//! - Every change is part of one durable two-phase commit: all pages and the new root's slot, flush, root switched, flush.
//!   The first of these flushes is also the one that makes bodies durable (see `commit`).
//! - Reads see one committed state and never wait for a commit. They wait while the index is opened again or compacted,
//!   which happens only when there is no room left.
//! - A commit that finds the pool full changes nothing: the index is opened again as it was. Whoever was reading then reads on in
//!   the index that was opened; where there was no room even to open it, that is tried again.
//! - redb may panic on a damaged page. A panic ends in an error here, never in the thread of a caller.

mod documents;
mod events;
mod file;
mod identities;
mod rows;
mod versions;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase};

use crate::error::StoreError;
use crate::layout::{FORMAT_VERSION, IndexLength, Layout};
use crate::limits::{INDEX_CACHE_BYTES, QUICK_REPAIR_INDEX_BYTES_MAX};
use crate::usage::Counted;
use crate::volume::{BlockError, BlockErrorKind, BlockVolume};

use events::Destinations;
pub(crate) use events::EventState;
use file::{Backend, IndexFile};
pub(crate) use identities::Identity;
pub(crate) use rows::{Changes, Snapshot, Step, UploadId, signed};
pub(crate) use versions::Start as VersionsStart;

/// Rows that must be gone before it is worth looking whether the index file can be made smaller.
const COMPACT_AFTER_REMOVALS: u64 = 256;

/// Share of the index's capacity that stays free for deletes.
const DELETE_SHARE: u64 = 8;

/// Pages that a row may cost at worst, as a factor on its bytes: half-full leaves, branches, and the copies that a commit
/// makes before it frees the originals.
const PAGES_PER_ROW: u64 = 4;

/// How often a read begins anew because the index was opened again under it: a full pool may do so with every change.
const READ_ATTEMPTS: usize = 4;

/// Time between two readers' attempts to open an index for which there was no room; a change tries at once.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// What becomes of a change.
pub(crate) enum Verdict<R> {
    Commit(R),
    /// Nothing was changed: there is nothing to make durable.
    Discard(R),
}

/// The open index.
pub(crate) struct Index {
    file: Arc<IndexFile>,
    /// Behind a lock because a full pool makes it open again.
    slot: RwLock<Slot>,
    /// Counts how often it was opened again.
    reopened: AtomicU64,
    /// Held from the beginning of a change until it is committed, or the index is open again.
    changing: Mutex<()>,
    room: Mutex<Room>,
    counted: Counted,
    /// Events for which there was no room, and those that were added.
    events_lost: AtomicU64,
    events_added: AtomicU64,
    destinations: Destinations,
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

/// What there is of the database.
enum Slot {
    Open(Arc<Database>),
    /// There was no room to open it again, at that time.
    Short(Instant),
    Closed,
}

impl Index {
    /// Opens the index, making it if the file is empty.
    pub(crate) fn open(volume: Arc<dyn BlockVolume>, layout: &Layout) -> Result<Self, StoreError> {
        let length = IndexLength::read(&*volume)?;
        let lacks_tables = length.bytes() == 0 || layout.version < FORMAT_VERSION;
        let file = Arc::new(IndexFile::new(volume, layout, length));
        file.measure_reserve()?;
        let database = open_database(&file)?;
        let room = Mutex::new(Room { changed: true, ..Room::default() });
        let index = Self {
            file,
            slot: RwLock::new(Slot::Open(Arc::new(database))),
            reopened: AtomicU64::new(0),
            changing: Mutex::new(()),
            room,
            counted: Counted::default(),
            events_lost: AtomicU64::new(0),
            events_added: AtomicU64::new(0),
            destinations: Destinations::default(),
        };
        if lacks_tables {
            // Opening them for a write makes them.
            index.write(|_| Ok(Verdict::Commit(())))?;
        }
        Ok(index)
    }

    /// Lets go of the database. Whoever reads still finishes or fails; nothing is written any more.
    pub(crate) fn close(&self) {
        let database = std::mem::replace(&mut *self.slot_to_change(), Slot::Closed);
        drop(database);
    }

    fn slot(&self) -> RwLockReadGuard<'_, Slot> {
        self.slot.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot_to_change(&self) -> RwLockWriteGuard<'_, Slot> {
        self.slot.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What buckets hold, as the last commit left them.
    pub(crate) fn counted(&self) -> &Counted {
        &self.counted
    }

    /// Events for which there was no room.
    pub(crate) fn events_lost(&self) -> u64 {
        self.events_lost.load(Ordering::Relaxed)
    }

    /// Keeps events for these destinations from now on, and for no others.
    pub(crate) fn set_destinations(&self, named: BTreeSet<String>) {
        self.destinations.set_named(named);
    }

    /// Events that were added since the index was opened.
    pub(crate) fn events_added(&self) -> u64 {
        self.events_added.load(Ordering::Relaxed)
    }

    /// Size of the index file in bytes.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.file.len()
    }

    /// Runs `read` on the last committed state; again, where the index was opened again meanwhile and that was what failed.
    pub(crate) fn read<R>(&self, read: impl Fn(&Snapshot) -> Result<R, StoreError>) -> Result<R, StoreError> {
        for _ in 1..READ_ATTEMPTS {
            let reopened = self.reopened.load(Ordering::SeqCst);
            match self.read_once(&read) {
                Err(error) if error.is_outage() => {
                    // The change that closed the index under this reader may still be about to open it again.
                    let ended = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
                    drop(ended);
                    if self.reopened.load(Ordering::SeqCst) == reopened {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
        self.read_once(&read)
    }

    /// Runs `read` on the last committed state, where nothing is changed yet.
    pub(crate) fn read_once<R>(
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
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let database = self.database()?;
        let result = contained(|| self.commit(&database, change));
        if result.is_err() {
            // Whether it was committed may be open.
            self.destinations.forget_rows();
        }
        match &result {
            // What readers met of a shortage that is over explains no later error.
            Ok(_) => self.file.forget_shortage(),
            Err(StoreError::NoSpace) => {
                drop(database);
                self.reopen(&mut self.slot_to_change())?;
            }
            Err(_) => {}
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
        let (outcome, written, removed, usage, (events_lost, events_added, events)) = {
            let counts = (&self.counted, &self.destinations);
            let mut changes = Changes::open(&transaction, &self.file, counts)?;
            let outcome = change(&mut changes);
            let usage = changes.take_usage();
            (
                outcome,
                changes.written(),
                changes.removed(),
                usage,
                (changes.events_lost, changes.events_added, std::mem::take(&mut changes.event_changes)),
            )
        };
        match outcome {
            Ok(Verdict::Commit(outcome)) => {
                transaction.commit().map_err(|error| self.fault(error.into()))?;
                self.counted.add(&usage);
                self.destinations.add(&events);
                self.events_lost.fetch_add(events_lost, Ordering::Relaxed);
                self.events_added.fetch_add(events_added, Ordering::Relaxed);
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
    fn reopen(&self, slot: &mut Slot) -> Result<(), StoreError> {
        if let Slot::Closed = std::mem::replace(slot, Slot::Closed) {
            return Err(StoreError::Closed);
        }
        self.file.take_fault();
        *slot = match open_database(&self.file) {
            Ok(database) => Slot::Open(Arc::new(database)),
            Err(StoreError::NoSpace) => Slot::Short(Instant::now()),
            Err(error) => return Err(error),
        };
        self.reopened.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Opens an index again for which there was no room, if the last attempt was at least so long ago.
    fn reopen_after(&self, pause: Duration) -> Result<(), StoreError> {
        let is_due = |slot: &Slot| matches!(slot, Slot::Short(since) if since.elapsed() >= pause);
        if !is_due(&self.slot()) {
            return Ok(());
        }
        let mut slot = self.slot_to_change();
        if is_due(&slot) { self.reopen(&mut slot) } else { Ok(()) }
    }

    fn database(&self) -> Result<Arc<Database>, StoreError> {
        self.reopen_after(REOPEN_PAUSE)?;
        match &*self.slot() {
            Slot::Open(database) => Ok(Arc::clone(database)),
            Slot::Short(_) => Err(StoreError::NoSpace),
            Slot::Closed => Err(StoreError::Closed),
        }
    }

    fn fault(&self, error: redb::Error) -> StoreError {
        explain(&self.file, error)
    }

    /// Whether new rows may be written such that deletes still fit after them. To be called between commits.
    pub(crate) fn has_room(&self) -> Result<bool, StoreError> {
        self.reopen_after(Duration::ZERO)?;
        if let Slot::Short(_) = *self.slot() {
            return Ok(false);
        }
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
        let mut slot = self.slot_to_change();
        let Slot::Open(mut shared) = std::mem::replace(&mut *slot, Slot::Closed) else {
            return Err(StoreError::Closed);
        };
        let mut database = loop {
            // Readers that began before the lock was taken; they are short, and new ones wait.
            match Arc::try_unwrap(shared) {
                Ok(database) => break database,
                Err(in_use) => shared = in_use,
            }
            std::thread::yield_now();
        };
        let compacted = contained(|| database.compact().map_err(|error| self.fault(error.into())));
        *slot = Slot::Open(Arc::new(database));
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
            // Of a shortage that is over: the index was opened again, and this one is not used any more.
            redb::Error::PreviousIo => {
                StoreError::Io(BlockError::new(BlockErrorKind::Io, "the index was opened again meanwhile"))
            }
            redb::Error::Corrupted(_) => StoreError::IndexDamaged { what: "a page has the wrong checksum" },
            error => StoreError::Failed(Arc::new(error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use units::ByteLen;

    use super::*;
    use crate::records::BucketId;
    use crate::simulated::SimulatedVolume;

    const DOCUMENTS: usize = 128;
    const DOCUMENT_BYTES: usize = 512 * 1024;

    // A reader notices the end of its index at the first page that is not in memory.
    const _: () = assert!(DOCUMENTS * DOCUMENT_BYTES > INDEX_CACHE_BYTES);

    fn add(index: &Index, number: usize) -> Result<(), StoreError> {
        index.write(|changes| {
            changes.put_document(BucketId(1), &format!("{number:03}"), &vec![7; DOCUMENT_BYTES])?;
            Ok(Verdict::Commit(()))
        })
    }

    fn count(snapshot: &Snapshot) -> Result<usize, StoreError> {
        Ok(snapshot.documents_of(BucketId(1))?.len())
    }

    /// An index with more rows than memory holds.
    fn index() -> (SimulatedVolume, Index) {
        let volume = SimulatedVolume::new(ByteLen(1 << 40));
        let shared: Arc<dyn BlockVolume> = Arc::new(volume.clone());
        let layout = Layout::plan(volume.len(), [1; 16]).unwrap();
        layout.prepare(&*shared).unwrap();
        let index = Index::open(Arc::clone(&shared), &layout).unwrap();
        (0..DOCUMENTS).for_each(|number| add(&index, number).unwrap());
        drop(index);
        (volume, Index::open(shared, &layout).unwrap())
    }

    #[test]
    fn a_reader_under_whom_the_pool_ran_full_reads_on() {
        let (volume, index) = index();
        let attempts = Cell::new(0);
        let found = index.read(|snapshot| {
            attempts.set(attempts.get() + 1);
            if attempts.get() == 1 {
                volume.set_refusing_writes(true);
                // By another thread, as the committer is one.
                let full = std::thread::scope(|scope| {
                    let change = scope.spawn(|| {
                        let result = add(&index, DOCUMENTS);
                        volume.set_refusing_writes(false);
                        result
                    });
                    change.join().unwrap()
                });
                assert!(matches!(full, Err(StoreError::NoSpace)), "{full:?}");
                index.reopen_after(Duration::ZERO)?;
            }
            count(snapshot)
        });
        assert_eq!(found.unwrap(), DOCUMENTS);
        assert_eq!(attempts.get(), 2, "the first attempt met the end of the index it began on");
        add(&index, DOCUMENTS).unwrap();
    }

    #[test]
    fn an_index_that_finds_no_room_to_open_again_is_opened_once_there_is() {
        let (volume, index) = index();
        volume.set_refusing_writes(true);
        assert!(matches!(add(&index, DOCUMENTS), Err(StoreError::NoSpace)));
        assert!(matches!(*index.slot(), Slot::Short(_)), "there was no room to open it");
        assert!(matches!(index.read(count), Err(StoreError::NoSpace)));
        assert!(!index.has_room().unwrap());
        assert!(matches!(add(&index, DOCUMENTS), Err(StoreError::NoSpace)));
        volume.set_refusing_writes(false);
        assert!(index.has_room().unwrap());
        assert_eq!(index.read(count).unwrap(), DOCUMENTS);
        add(&index, DOCUMENTS).unwrap();
        assert_eq!(index.read(count).unwrap(), DOCUMENTS + 1);
    }
}
