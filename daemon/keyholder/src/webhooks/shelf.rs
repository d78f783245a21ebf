//! What outlives a restart: each receiver's place in the trail, and its dead letters. The letters' content is the trail's.

use std::collections::BTreeMap;
use std::path::PathBuf;

use audit_log::{Head, TrailId};
use serde::{Deserialize, Serialize};

use crate::durable::{self, OldContent, StorageError};

/// Version of the file.
const VERSION: u32 = 1;

/// Sixteen receivers with all their letters take 2 MiB.
const BYTES_MAX: u64 = 16 << 20;

/// Dead letters of one receiver. What comes on top drops the oldest, and is counted.
pub(super) const DEAD_MAX: usize = 256;

/// A receiver's place: it has been told, or given up on, all up to this entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) trail: TrailId,
    pub(super) seq: u64,
}

/// An event that a receiver did not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Dead {
    pub(super) entry: u64,
    pub(super) event: String,
    pub(super) at_unix_s: u64,
    pub(super) attempts: u32,
    pub(super) why: String,
}

/// A dead letter that a person wants sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Again {
    pub(super) entry: u64,
}

/// One receiver's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    #[serde(flatten)]
    pub(super) position: Position,
    pub(super) dead: Vec<Dead>,
    pub(super) again: Vec<Again>,
    /// Dead letters that had no room any more.
    pub(super) dropped: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    webhooks: BTreeMap<String, Kept>,
}

/// The file, open.
#[derive(Debug)]
pub(super) struct Shelf {
    path: PathBuf,
    kept: BTreeMap<String, Kept>,
    /// Where a receiver that is not in it begins.
    begin: Position,
}

impl Shelf {
    /// Reads it. One that does not read is set aside: that somebody was not told of something must not keep keys from nodes.
    pub(super) fn open<'a>(
        path: PathBuf,
        names: impl Iterator<Item = &'a str>,
        head: Head,
    ) -> Result<Self, StorageError> {
        let begin = Position { trail: head.trail, seq: head.seq };
        let read = durable::read(&path, BYTES_MAX)?;
        let parsed = read.as_deref().map(|bytes| serde_json::from_slice::<File>(bytes));
        let mut kept = match parsed {
            Some(Ok(file)) if file.version == VERSION => file.webhooks,
            None => BTreeMap::new(),
            Some(_) => {
                let aside = path.with_extension("damaged");
                tracing::error!(
                    path = %path.display(), aside = %aside.display(),
                    "the record of what webhooks have been told does not read: it is set aside, and they are told of what happens \
                     from now on"
                );
                std::fs::rename(&path, &aside).map_err(|source| StorageError {
                    operation: "set aside",
                    path: path.clone(),
                    source,
                })?;
                BTreeMap::new()
            }
        };
        let fresh = Kept { position: begin, dead: Vec::new(), again: Vec::new(), dropped: 0 };
        // One that is not configured any more is kept: it may be a mistake.
        for name in names {
            kept.entry(name.to_owned()).or_insert_with(|| fresh.clone());
        }
        let shelf = Self { path, kept, begin };
        if !shelf.kept.is_empty() {
            shelf.save()?;
        }
        Ok(shelf)
    }

    pub(super) fn of(&self, name: &str) -> Kept {
        let fresh = || Kept { position: self.begin, dead: Vec::new(), again: Vec::new(), dropped: 0 };
        self.kept.get(name).cloned().unwrap_or_else(fresh)
    }

    /// Changes one receiver's part and makes it durable. On an error nothing has changed in memory.
    pub(super) fn change(&mut self, name: &str, change: impl FnOnce(&mut Kept)) -> Result<(), StorageError> {
        let before = self.of(name);
        let mut after = before.clone();
        change(&mut after);
        self.kept.insert(name.to_owned(), after);
        self.save().inspect_err(|_| {
            self.kept.insert(name.to_owned(), before);
        })
    }

    /// Puts a letter to the dead ones.
    pub(super) fn bury(kept: &mut Kept, letter: Dead) {
        kept.dead.retain(|known| known.entry != letter.entry);
        kept.dead.push(letter);
        let over = kept.dead.len().saturating_sub(DEAD_MAX);
        kept.dead.drain(..over);
        kept.dropped = kept.dropped.saturating_add(over as u64);
    }

    /// Takes dead letters back to be sent, all of them where none are named.
    pub(super) fn send_again(&mut self, name: &str, entries: &[u64]) -> Result<(), StorageError> {
        self.change(name, |kept| {
            let wanted = |letter: &mut Dead| entries.is_empty() || entries.contains(&letter.entry);
            kept.again.extend(kept.dead.extract_if(.., wanted).map(|letter| Again { entry: letter.entry }));
        })
    }

    /// Forgets dead letters, all of them where none are named.
    pub(super) fn discard(&mut self, name: &str, entries: &[u64]) -> Result<(), StorageError> {
        self.change(name, |kept| {
            kept.dead.retain(|letter| !entries.is_empty() && !entries.contains(&letter.entry));
        })
    }

    fn save(&self) -> Result<(), StorageError> {
        let file = File { version: VERSION, webhooks: self.kept.clone() };
        let failed = |source: serde_json::Error| StorageError {
            operation: "encode",
            path: self.path.clone(),
            source: source.into(),
        };
        let text = serde_json::to_vec(&file).map_err(failed)?;
        durable::replace(&self.path, &text, OldContent::Leave)
    }
}

#[cfg(test)]
mod tests {
    use audit_log::Hash;

    use super::*;

    const TRAIL: TrailId = TrailId([5; 16]);

    fn open(path: &std::path::Path) -> Shelf {
        let head = Head { trail: TRAIL, seq: 9, hash: Hash::BEGINNING };
        Shelf::open(path.to_owned(), ["pager"].into_iter(), head).unwrap()
    }

    fn dead(entry: u64) -> Dead {
        let (event, why) = ("node.wiped".to_owned(), "it answered 500".to_owned());
        Dead { entry, event, at_unix_s: 1_700_000_000, attempts: 3, why }
    }

    #[test]
    fn the_file_of_version_1_reads_as_it_did() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/webhooks-v1.json");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("webhooks.json");
        std::fs::copy(golden, &path).unwrap();
        let shelf = open(&path);
        let expected = Kept {
            position: Position { trail: TRAIL, seq: 4 },
            dead: vec![dead(2)],
            again: vec![Again { entry: 3 }],
            dropped: 1,
        };
        assert_eq!(shelf.of("pager"), expected);
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(written.trim(), std::fs::read_to_string(golden).unwrap().trim());
    }

    #[test]
    fn what_is_kept_outlives_a_restart_and_a_new_receiver_begins_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("webhooks.json");
        let mut shelf = open(&path);
        assert_eq!(shelf.of("pager").position.seq, 9);
        shelf.change("pager", |kept| kept.position.seq = 12).unwrap();
        shelf.change("pager", |kept| (1..=3).for_each(|entry| Shelf::bury(kept, dead(entry)))).unwrap();
        shelf.send_again("pager", &[2]).unwrap();
        shelf.discard("pager", &[1]).unwrap();
        let kept = open(&path).of("pager");
        assert_eq!((kept.position.seq, kept.dead, kept.again), (12, vec![dead(3)], vec![Again { entry: 2 }]));
        shelf.send_again("pager", &[]).unwrap();
        shelf.discard("pager", &[]).unwrap();
        assert!(open(&path).of("pager").dead.is_empty());
    }

    #[test]
    fn dead_letters_are_bounded_and_what_has_no_room_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = open(&dir.path().join("webhooks.json"));
        let all = 0..DEAD_MAX as u64 + 2;
        shelf.change("pager", |kept| all.for_each(|entry| Shelf::bury(kept, dead(entry)))).unwrap();
        let kept = shelf.of("pager");
        assert_eq!((kept.dead.len(), kept.dead[0].entry, kept.dropped), (DEAD_MAX, 2, 2));
        // Twice the same is one letter.
        shelf.change("pager", |kept| Shelf::bury(kept, dead(2))).unwrap();
        assert_eq!((shelf.of("pager").dead.len(), shelf.of("pager").dropped), (DEAD_MAX, 2));
    }

    #[test]
    fn a_file_that_does_not_read_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("webhooks.json");
        for damaged in ["", "{}", r#"{"version":2,"webhooks":{}}"#] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(open(&path).of("pager").position.seq, 9);
            assert_eq!(std::fs::read_to_string(path.with_extension("damaged")).unwrap(), damaged);
        }
    }
}
