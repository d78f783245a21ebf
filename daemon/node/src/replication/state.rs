//! What replication remembers over restarts: `replication.json` in the state directory, version 2.
//!
//! Of each volume that was ever sent here, the last epoch that was begun; of each that is sent from here, its writer: fence, generation,
//! and up to which number epochs may be called without writing that down again; of each that was deleted here, the fence of its key.
//! Version 1, which did not remember that, is read.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use replication::{EpochKey, Generation, Histories, Reason, Verdict};
use serde::{Deserialize, Serialize};
use units::{Fence, VolumeId};

use crate::lock::lock;
use crate::state_file;

const FILE: &str = "replication.json";
const VERSION: u32 = 2;
const VERSION_MIN: u32 = 1;

/// Numbers that are set aside at once: with an epoch a second the file is written every quarter of an hour.
const AHEAD: u64 = 1024;

/// Why it could not be read at the start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("{path} cannot be read: {source}; correct its owner, or the disk")]
    Unreadable { path: String, source: io::Error },
    #[error(
        "{path} does not say who has replicated here ({reason}); put a copy back. Without it a primary that was superseded could overwrite its replicas here: remove it only once you know that there is none"
    )]
    Damaged { path: String, reason: String },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Writer {
    fence: Fence,
    generation: Generation,
    /// Every number below it may have been used.
    reserved: u64,
    /// The next, in this run.
    #[serde(skip)]
    next: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    histories: Histories,
    writers: BTreeMap<VolumeId, Writer>,
    /// Fences of volumes that are no longer here, or were not when this was written.
    #[serde(default)]
    floors: BTreeMap<VolumeId, Fence>,
}

impl Saved {
    /// The highest fence that a volume has had here: it outlives the volume.
    fn own(&self, volume: VolumeId, own: Fence) -> Fence {
        let writer = self.writers.get(&volume).map(|writer| writer.fence);
        let floor = self.floors.get(&volume).copied();
        [writer, floor].into_iter().flatten().fold(own, Fence::max)
    }
}

/// The file, and what it holds.
#[derive(Debug)]
pub(super) struct State {
    file: PathBuf,
    saved: Mutex<Saved>,
}

impl State {
    pub(super) fn open(state_dir: &Path) -> Result<Self, StateError> {
        let file = state_dir.join(FILE);
        let path = || file.display().to_string();
        let mut saved = match std::fs::read(&file) {
            Ok(bytes) => {
                let mut saved: Saved = serde_json::from_slice(&bytes)
                    .map_err(|error| StateError::Damaged { path: path(), reason: error.to_string() })?;
                if !(VERSION_MIN..=VERSION).contains(&saved.version) {
                    let reason =
                        format!("version {}, this program reads {VERSION_MIN} to {VERSION}", saved.version);
                    return Err(StateError::Damaged { path: path(), reason });
                }
                saved.version = VERSION;
                saved
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Saved { version: VERSION, ..Saved::default() }
            }
            Err(source) => return Err(StateError::Unreadable { path: path(), source }),
        };
        for writer in saved.writers.values_mut() {
            writer.next = writer.reserved;
        }
        Ok(Self { file, saved: Mutex::new(saved) })
    }

    /// Changes it, and writes it down before the change holds.
    fn change(&self, saved: &mut Saved, change: impl FnOnce(&mut Saved)) -> io::Result<()> {
        let mut changed = saved.clone();
        change(&mut changed);
        state_file::replace(&self.file, &serde_json::to_vec_pretty(&changed)?)?;
        *saved = changed;
        Ok(())
    }

    /// Whether a writer may send at all. `own` is the volume's own fence here.
    pub(super) fn check_writer(
        &self,
        volume: VolumeId,
        own: Fence,
        writer: (Fence, Generation),
    ) -> Result<(), Reason> {
        let saved = lock(&self.saved);
        saved.histories.check_writer(volume, saved.own(volume, own), writer)
    }

    /// Whether an epoch may be begun. Changes nothing.
    pub(super) fn judge(&self, volume: VolumeId, own: Fence, key: &EpochKey) -> Result<(), Reason> {
        let saved = lock(&self.saved);
        saved.histories.judge(volume, saved.own(volume, own), key).map(|_| ())
    }

    /// A volume goes whose key was granted under this fence: nobody with a lower one makes a replica of it here. Durable when it returns.
    pub(super) fn remember_fence(&self, volume: VolumeId, fence: Fence) -> io::Result<()> {
        let mut saved = lock(&self.saved);
        let known = saved.histories.fence(volume, saved.own(volume, Fence(0)));
        if fence <= known {
            return Ok(());
        }
        self.change(&mut saved, |saved| {
            saved.floors.insert(volume, fence);
        })
    }

    /// Whether an epoch may be begun; durably written down when it returns.
    pub(super) fn begin(&self, volume: VolumeId, own: Fence, key: &EpochKey) -> Result<(), Reason> {
        let mut saved = lock(&self.saved);
        match saved.histories.judge(volume, saved.own(volume, own), key)? {
            Verdict::Continues => Ok(()),
            Verdict::Next => {
                let written = self.change(&mut saved, |saved| saved.histories.accept(volume, *key));
                written.map_err(|error| {
                    tracing::error!(%volume, %error, "who replicates here cannot be written down; nothing is taken in");
                    Reason::Failed
                })
            }
        }
    }

    /// Whether an epoch is the last that was begun.
    pub(super) fn is_current(&self, volume: VolumeId, key: &EpochKey) -> bool {
        lock(&self.saved).histories.is_current(volume, key)
    }

    /// The last epoch that was begun here of each volume.
    pub(super) fn last_begun(&self) -> BTreeMap<VolumeId, EpochKey> {
        lock(&self.saved).histories.volumes().map(|(volume, key)| (*volume, *key)).collect()
    }

    /// The generation of a volume's writer under this fence: a new one where the fence is. Numbers go on above `used`.
    pub(super) fn writer(&self, volume: VolumeId, fence: Fence, used: u64) -> io::Result<Generation> {
        let mut saved = lock(&self.saved);
        if let Some(writer) = saved.writers.get_mut(&volume).filter(|writer| writer.fence == fence) {
            writer.next = writer.next.max(used + 1);
            return Ok(writer.generation);
        }
        let mut generation = [0; 16];
        getrandom::fill(&mut generation).map_err(|error| io::Error::other(error.to_string()))?;
        let generation = Generation(generation);
        let begun = saved.histories.last(volume).map_or(0, |last| last.number);
        let before = saved.writers.get(&volume).map_or(0, |writer| writer.next);
        let next = before.max(used + 1).max(begun + 1);
        let writer = Writer { fence, generation, reserved: next, next };
        self.change(&mut saved, |saved| {
            saved.writers.insert(volume, writer);
        })?;
        Ok(generation)
    }

    /// A number that no epoch of the volume has had.
    pub(super) fn next_number(&self, volume: VolumeId) -> io::Result<u64> {
        let mut saved = lock(&self.saved);
        let Some(Writer { next, reserved, .. }) = saved.writers.get(&volume).copied() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if next >= reserved {
            self.change(&mut saved, |saved| {
                if let Some(writer) = saved.writers.get_mut(&volume) {
                    writer.reserved = next + AHEAD;
                }
            })?;
        }
        if let Some(writer) = saved.writers.get_mut(&volume) {
            writer.next = next + 1;
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: VolumeId = VolumeId([1; 16]);

    fn key(fence: u64, number: u64) -> EpochKey {
        let generation = Generation([9; 16]);
        EpochKey { fence: Fence(fence), generation, number, snapshot: VolumeId([2; 16]) }
    }

    #[test]
    fn no_number_comes_twice_over_restarts_and_a_new_fence_has_a_new_generation() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let first = state.writer(V, Fence(1), 5).unwrap();
        assert_eq!((state.next_number(V).unwrap(), state.next_number(V).unwrap()), (6, 7));
        let again = State::open(dir.path()).unwrap();
        assert_eq!(again.writer(V, Fence(1), 7).unwrap(), first);
        assert!(again.next_number(V).unwrap() > 7);
        let second = again.writer(V, Fence(2), 0).unwrap();
        assert_ne!(first, second);
        assert!(again.next_number(V).unwrap() > 7 + 1);
    }

    #[test]
    fn the_highest_fence_seen_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        assert_eq!(state.begin(V, Fence(0), &key(2, 1)), Ok(()));
        let again = State::open(dir.path()).unwrap();
        assert_eq!(again.begin(V, Fence(0), &key(1, 9)), Err(Reason::LowerFence));
        assert_eq!(again.begin(V, Fence(0), &key(2, 1)), Ok(()));
        assert!(again.is_current(V, &key(2, 1)));
        assert_eq!(again.begin(V, Fence(3), &key(2, 2)), Err(Reason::LowerFence));
    }

    #[test]
    fn the_fence_of_a_volume_outlives_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        // Written here under 4, sent to peers, and deleted.
        state.writer(V, Fence(4), 0).unwrap();
        assert_eq!(state.begin(V, Fence(0), &key(3, 1)), Err(Reason::LowerFence));
        // Deleted under 6, of which no peer ever heard.
        state.remember_fence(V, Fence(6)).unwrap();
        state.remember_fence(V, Fence(5)).unwrap();
        let again = State::open(dir.path()).unwrap();
        let generation = Generation([9; 16]);
        assert_eq!(again.check_writer(V, Fence(0), (Fence(5), generation)), Err(Reason::LowerFence));
        assert_eq!(again.judge(V, Fence(0), &key(5, 1)), Err(Reason::LowerFence));
        assert_eq!(again.begin(V, Fence(0), &key(5, 1)), Err(Reason::LowerFence));
        assert_eq!(again.begin(V, Fence(0), &key(7, 1)), Ok(()));
    }

    #[test]
    fn what_is_judged_is_not_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        assert_eq!(state.judge(V, Fence(0), &key(2, 1)), Ok(()));
        assert_eq!(state.last_begun(), BTreeMap::new());
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn a_file_that_is_damaged_or_newer_ends_the_start() {
        let dir = tempfile::tempdir().unwrap();
        for damaged in ["{", r#"{"version":3,"histories":{"last":{}},"writers":{}}"#] {
            std::fs::write(dir.path().join(FILE), damaged).unwrap();
            assert!(matches!(State::open(dir.path()), Err(StateError::Damaged { .. })));
        }
        std::fs::write(dir.path().join(FILE), r#"{"version":1,"histories":{"last":{}},"writers":{}}"#)
            .unwrap();
        // As version 1 wrote it: read, and written anew with the next change.
        let state = State::open(dir.path()).unwrap();
        state.remember_fence(V, Fence(1)).unwrap();
        let written = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(written.contains("\"version\": 2"), "{written}");
    }
}
