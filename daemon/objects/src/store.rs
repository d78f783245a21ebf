//! The store as a whole: opening, closing, status.

use std::collections::HashMap;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use units::ByteLen;

use crate::commit::Shared;
use crate::error::StoreError;
use crate::index::{Index, Snapshot};
use crate::layout::{FORMAT_VERSION, Layout, SECTOR};
use crate::limits::KEY_BYTES_MAX;
use crate::named_key::NamedKeys;
use crate::records::{BodyId, BucketId, Run};
use crate::space::{Census, Space};
use crate::usage::UsageChange;
use crate::volume::BlockVolume;

/// An object store on one volume. Every call blocks; call it from threads that may wait for a device.
///
/// Dropping it closes it.
#[derive(Debug)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the store holds and has done, for status and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreStatus {
    /// Buckets.
    pub buckets: u64,
    /// Objects.
    pub objects: u64,
    /// Versions of objects that are not the newest, and delete markers.
    pub versions: u64,
    /// Unfinished multipart uploads.
    pub uploads: u64,
    /// Access keys of all users.
    pub access_keys: u64,
    /// Size of the index file.
    pub index: ByteLen,
    /// Room for bodies inside the volume; the pool may have less.
    pub free: ByteLen,
    /// Index commits since the store was opened.
    pub commits: u64,
    /// Changes made by them: more than one a commit is group commit at work.
    pub changes: u64,
}

impl Store {
    /// Opens the store on `volume`; a volume that was never written becomes an empty store.
    ///
    /// Reads the whole index once, to find out which sectors are free.
    ///
    /// # Errors
    /// The kinds of [`StoreError`] under "the store is broken", [`StoreError::Sealed`] and [`StoreError::NoSpace`].
    pub fn open(volume: impl BlockVolume) -> Result<Arc<Self>, StoreError> {
        Self::open_with_keys(volume, Arc::default())
    }

    /// As [`Store::open`]: objects may be encrypted under the named keys that are lent, now and later.
    ///
    /// # Errors
    /// As there.
    pub fn open_with_keys(
        volume: impl BlockVolume,
        named_keys: Arc<NamedKeys>,
    ) -> Result<Arc<Self>, StoreError> {
        let volume: Arc<dyn BlockVolume> = Arc::new(volume);
        volume.check_key()?;
        let (layout, index) = match Layout::read(&*volume)? {
            Some(layout) => {
                let index = Index::open(Arc::clone(&volume), &layout)?;
                match layout.version < FORMAT_VERSION {
                    true => (layout.upgrade(&*volume)?, index),
                    false => (layout, index),
                }
            }
            None => format(&volume)?,
        };
        let mut census = Census::new();
        let mut usage = HashMap::<BucketId, UsageChange>::new();
        let (mut next_body, mut next_bucket) = (1, 1);
        index.read_once(|snapshot| {
            let mut visit = |body: Option<BodyId>, runs: &[Run]| {
                next_body = next_body.max(body.map_or(0, |body| body.0 + 1));
                census.add(runs)
            };
            snapshot.walk_runs(&mut visit, &mut |bucket, held| {
                let change = usage.entry(bucket).or_default();
                change.bytes += held.bytes;
                change.objects += held.objects;
            })?;
            snapshot.walk_buckets(&mut |_, bucket| {
                next_bucket = next_bucket.max(bucket.id.0 + 1);
                Ok(())
            })
        })?;
        index.counted().add(&usage);
        let space = Space::new(census, layout.data_sectors(volume.len()))?;
        let (sender, receiver) = channel();
        let shared =
            Arc::new(Shared::new((volume, named_keys), index, space, (next_body, next_bucket), sender));
        let committer = Arc::clone(&shared);
        let reaper = Arc::clone(&shared);
        let threads = vec![
            spawn("objects-commit", move || committer.run_committer(&receiver)),
            spawn("objects-reaper", move || reaper.space.reap(&*reaper.volume)),
        ];
        Ok(Arc::new(Self { shared, threads: Mutex::new(threads) }))
    }

    /// Takes no further request, waits for the commit under way, lets go of the index. Readers still open fail from here
    /// on. Safe to call more than once.
    pub fn close(&self) {
        self.shared.shut();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic there has already been reported, and nothing of it is durable.
            let _ = thread.join();
        }
        self.shared.index.close();
    }

    /// Whether the store serves: asked again before bytes that were read leave the node.
    ///
    /// # Errors
    /// [`StoreError::Sealed`], [`StoreError::Closed`] or [`StoreError::Failed`].
    pub fn check(&self) -> Result<(), StoreError> {
        self.shared.ready()
    }

    /// What the store holds.
    ///
    /// # Errors
    /// Outages only.
    pub fn status(&self) -> Result<StoreStatus, StoreError> {
        let counts = self.shared.read(Snapshot::counts)?;
        let (commits, changes) = self.shared.commit_counts();
        Ok(StoreStatus {
            buckets: counts.buckets,
            objects: counts.objects,
            versions: counts.versions,
            uploads: counts.uploads,
            access_keys: counts.access_keys,
            index: ByteLen(self.shared.index.file_bytes()),
            free: ByteLen(self.shared.space.free_sectors() * SECTOR),
            commits,
            changes,
        })
    }

    /// Waits until what was deleted or overwritten, and is read by nobody any more, is free again.
    pub fn wait_until_reclaimed(&self) {
        self.shared.space.wait_for_reaper();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

/// Makes an empty store. The header comes last: cut anywhere before it is durable, the volume is formatted anew.
fn format(volume: &Arc<dyn BlockVolume>) -> Result<(Layout, Index), StoreError> {
    let layout = Layout::plan(volume.len(), random_bytes())?;
    layout.prepare(&**volume)?;
    let index = Index::open(Arc::clone(volume), &layout)?;
    layout.publish(&**volume)?;
    tracing::info!(volume = %volume.len(), "formatted a new object store");
    Ok((layout, index))
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let run = move || {
        // They are a copy of those of the thread that opened the store.
        thread_wipe::registers();
        run();
        // The thread library keeps an ended thread's stack for the next.
        thread_wipe::this_thread();
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).expect("the process can start a thread")
}

pub(crate) fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX || key.contains('\0') {
        return Err(StoreError::InvalidKey);
    }
    Ok(())
}

/// Milliseconds since 1970; the wall clock of the node, as S3 reports it.
pub(crate) fn now_ms() -> u64 {
    ms_of(SystemTime::now())
}

pub(crate) fn ms_of(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn time_of(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms)
}

pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel's random source never fails once it is seeded");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_accepted_up_to_their_limit() {
        assert!(check_key(&"k".repeat(KEY_BYTES_MAX)).is_ok());
        for bad in ["", "a\0b", &"k".repeat(KEY_BYTES_MAX + 1)] {
            assert!(check_key(bad).is_err());
        }
    }
}
