//! Uploads in parts that were begun, written down, so that the next run goes on with its own and with nobody else's.
//!
//! A line of JSON says between which places, one for each upload that it is begun, and one that it is ended. A line that can't be read
//! counts for nothing: what it was about is copied anew. The file holds keys, entity tags and upload ids, and no access key.
//!
//! Invariants:
//! - One run has it at a time, and it is of one pair of places: what one began the other would end.
//! - It is written anew, beside it and whole, by whoever opens it: what has ended is not kept.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::args::Place;
use crate::failure::{Done, Failure};

/// An upload that this program began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Upload {
    pub(super) id: String,
    /// Of the object at its source.
    pub(super) etag: String,
    pub(super) bytes: u64,
    pub(super) part_bytes: u64,
    /// The source's tags, which are left behind.
    #[serde(default)]
    pub(super) had_tags: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Between { places: String },
    Begun { key: String, upload: Upload },
    Ended { key: String },
}

#[derive(Default)]
pub(super) struct Journal {
    /// None where nothing is to be written.
    file: Option<(PathBuf, File)>,
    /// What this one was written in place of: locked too, for a run that has just opened it.
    _replaced: Option<File>,
    open: HashMap<String, Upload>,
}

/// Where it is kept unless said otherwise: one file for each pair of places.
fn usual_path(places: &str) -> Done<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let state = state.or_else(home).ok_or_else(|| {
        Failure::usage(
            "this user has no home directory to write down in which uploads were begun",
            "name a file for them with --journal",
        )
    })?;
    Ok(state.join("nightlatch").join(format!("mirror-{places}.jsonl")))
}

/// A name for a pair of places.
fn places_of((from, source): (&url::Url, &Place), (to, target): (&url::Url, &Place)) -> String {
    let mut hash = Sha256::new();
    for part in [from.as_str(), &source.bucket, &source.prefix, to.as_str(), &target.bucket, &target.prefix] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..8])
}

/// Opens the file and locks it until it is closed; `None` where another run has it.
fn lock(path: &Path) -> std::io::Result<Option<File>> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Another run may have put another file in its place between the two.
    let is_there = std::fs::metadata(path)?.ino() == file.metadata()?.ino();
    Ok(is_there.then_some(file))
}

impl Journal {
    pub(super) fn open(
        path: Option<&Path>,
        from: (&url::Url, &Place),
        to: (&url::Url, &Place),
    ) -> Done<Self> {
        let places = places_of(from, to);
        let path = match path {
            Some(path) => path.to_path_buf(),
            None => usual_path(&places)?,
        };
        let failed = |error: std::io::Error| {
            Failure::local(format!("{}: {error}", path.display()), "name another file with --journal")
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        let mut replaced = lock(&path).map_err(failed)?.ok_or_else(|| {
            Failure::local(
                format!("{} is in use: the same is being mirrored already", path.display()),
                "wait until that run is over",
            )
        })?;
        let mut text = String::new();
        replaced.read_to_string(&mut text).map_err(failed)?;
        let (between, open) = read(&text);
        if between.is_some_and(|between| between != places) {
            return Err(Failure::usage(
                format!("{} is of other buckets or places in them", path.display()),
                "name another file with --journal, one for each pair",
            ));
        }
        let mut whole = line(&Line::Between { places });
        whole.extend(open.iter().map(|(key, upload)| begun_line(key, upload)));
        // 1. Whole beside it, and locked. 2. In its place. The other way round a crash would lose what was begun.
        let mut fresh = path.clone().into_os_string();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let file = write_locked(&fresh, whole.as_bytes()).map_err(failed)?;
        std::fs::rename(&fresh, &path).map_err(failed)?;
        Ok(Self { file: Some((path, file)), _replaced: Some(replaced), open })
    }

    /// The upload that was begun of this object, as it is.
    pub(super) fn find(&self, key: &str, etag: &str, bytes: u64) -> Option<Upload> {
        self.open.get(key).filter(|upload| upload.etag == etag && upload.bytes == bytes).cloned()
    }

    /// The upload that was begun of an object with this key, whatever it was then.
    pub(super) fn of(&self, key: &str) -> Option<Upload> {
        self.open.get(key).cloned()
    }

    /// Keys and ids of all that were begun and have not ended.
    pub(super) fn open_uploads(&self) -> Vec<(String, String)> {
        self.open.iter().map(|(key, upload)| (key.clone(), upload.id.clone())).collect()
    }

    pub(super) fn begun(&mut self, key: &str, upload: &Upload) -> Done {
        self.open.insert(key.to_owned(), upload.clone());
        self.write(&begun_line(key, upload))
    }

    pub(super) fn ended(&mut self, key: &str) -> Done {
        self.open.remove(key);
        self.write(&line(&Line::Ended { key: key.to_owned() }))
    }

    fn write(&mut self, line: &str) -> Done {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        file.write_all(line.as_bytes()).map_err(|error| {
            Failure::local(format!("{}: {error}", path.display()), "name another file with --journal")
        })
    }
}

fn write_locked(path: &Path, content: &[u8]) -> std::io::Result<File> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.try_lock()?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(file)
}

fn begun_line(key: &str, upload: &Upload) -> String {
    line(&Line::Begun { key: key.to_owned(), upload: upload.clone() })
}

fn line(line: &Line) -> String {
    // Text and numbers: there is nothing in it that JSON does not have.
    format!("{}\n", serde_json::to_string(line).unwrap_or_default())
}

fn read(text: &str) -> (Option<String>, HashMap<String, Upload>) {
    let (mut between, mut open) = (None, HashMap::new());
    for line in text.lines() {
        match serde_json::from_str(line) {
            Ok(Line::Between { places }) => between = Some(places),
            Ok(Line::Begun { key, upload }) => drop(open.insert(key, upload)),
            Ok(Line::Ended { key }) => drop(open.remove(&key)),
            Err(_) => {}
        }
    }
    (between, open)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(id: &str) -> Upload {
        Upload { id: id.to_owned(), etag: "e-2".to_owned(), bytes: 100, part_bytes: 60, had_tags: true }
    }

    fn try_open(path: &Path, bucket: &str) -> Done<Journal> {
        let url: url::Url = "https://s3.example.com".parse().unwrap();
        let place = |bucket: &str| Place { bucket: bucket.to_owned(), prefix: String::new() };
        Journal::open(Some(path), (&url, &place("b")), (&url, &place(bucket)))
    }

    fn open(path: &Path) -> Journal {
        try_open(path, "c").unwrap()
    }

    #[test]
    fn what_was_begun_and_not_ended_is_found_the_next_time_if_the_object_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/journal");
        let mut journal = open(&path);
        journal.begun("a", &upload("1")).unwrap();
        journal.begun("b", &upload("2")).unwrap();
        journal.ended("a").unwrap();
        drop(journal);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text + "{\"begun\":{\"key\":\"c\",").unwrap();
        let mut journal = open(&path);
        assert_eq!(journal.find("a", "e-2", 100), None);
        assert_eq!(journal.find("b", "e-2", 100), Some(upload("2")));
        assert_eq!(journal.find("b", "e-3", 100), None, "it has changed since");
        assert_eq!(journal.find("c", "e-2", 100), None, "cut off");
        assert_eq!(journal.open_uploads(), [("b".to_owned(), "2".to_owned())]);
        journal.begun("c", &upload("3")).unwrap();
        drop(journal);
        let mut journal = open(&path);
        assert_eq!(journal.find("c", "e-2", 100), Some(upload("3")));
        journal.ended("b").unwrap();
        journal.ended("c").unwrap();
        drop(journal);
        drop(open(&path));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1, "nothing is left of what has ended: {text}");
    }

    #[test]
    fn a_journal_does_not_grow_with_the_runs_that_have_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        open(&path).begun("a", &upload("1")).unwrap();
        drop(open(&path));
        let once = std::fs::read_to_string(&path).unwrap();
        drop(open(&path));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), once);
        let old = r#"{"begun":{"key":"a","upload":{"id":"1","etag":"e-2","bytes":100,"part_bytes":60}}}"#;
        std::fs::write(&path, old).unwrap();
        assert!(open(&path).find("a", "e-2", 100).is_some(), "one of an earlier version");
    }

    #[test]
    fn a_journal_is_for_one_run_at_a_time_and_for_one_pair_of_places() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut first = open(&path);
        first.begun("a", &upload("1")).unwrap();
        assert!(try_open(&path, "c").is_err(), "in use");
        drop(first);
        assert!(try_open(&path, "d").is_err(), "of others");
        assert!(open(&path).find("a", "e-2", 100).is_some());
    }
}
