//! Uploads in parts that were begun, written down, so that the next run goes on with its own and with nobody else's.
//!
//! A line of JSON for each that is begun, and one for each that is ended. A line that can't be read counts for nothing: what it was
//! about is copied anew. The file holds keys, entity tags and upload ids, and no access key.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
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
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Begun { key: String, upload: Upload },
    Ended { key: String },
}

#[derive(Default)]
pub(super) struct Journal {
    /// None where nothing is to be written.
    file: Option<(PathBuf, File)>,
    open: HashMap<String, Upload>,
}

/// Where it is kept unless said otherwise: one file for each pair of places.
fn usual_path((from, source): (&url::Url, &Place), (to, target): (&url::Url, &Place)) -> Done<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let state = state.or_else(home).ok_or_else(|| {
        Failure::usage(
            "this user has no home directory to write down in which uploads were begun",
            "name a file for them with --journal",
        )
    })?;
    let mut hash = Sha256::new();
    for part in [from.as_str(), &source.bucket, &source.prefix, to.as_str(), &target.bucket, &target.prefix] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let name = format!("mirror-{}.jsonl", hex::encode(&hash.finalize()[..8]));
    Ok(state.join("nightlatch").join(name))
}

impl Journal {
    pub(super) fn open(
        path: Option<&Path>,
        from: (&url::Url, &Place),
        to: (&url::Url, &Place),
    ) -> Done<Self> {
        let path = match path {
            Some(path) => path.to_path_buf(),
            None => usual_path(from, to)?,
        };
        let failed = |error: std::io::Error| {
            Failure::local(format!("{}: {error}", path.display()), "name another file with --journal")
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        let open = match std::fs::read_to_string(&path) {
            Ok(text) => read(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => HashMap::new(),
            Err(error) => return Err(failed(error)),
        };
        // What has ended is left behind.
        let whole: String = open.iter().map(|(key, upload)| begun_line(key, upload)).collect();
        let mut options = OpenOptions::new();
        options.create(true).mode(0o600);
        if open.is_empty() {
            options.write(true).truncate(true)
        } else {
            options.append(true)
        };
        let mut file = options.open(&path).map_err(failed)?;
        if !whole.is_empty() {
            // A line that was cut off ends here.
            file.write_all(format!("\n{whole}").as_bytes()).map_err(failed)?;
        }
        Ok(Self { file: Some((path, file)), open })
    }

    /// The upload that was begun of this object, as it is.
    pub(super) fn find(&self, key: &str, etag: &str, bytes: u64) -> Option<Upload> {
        self.open.get(key).filter(|upload| upload.etag == etag && upload.bytes == bytes).cloned()
    }

    /// The upload that was begun of an object with this key, whatever it was then.
    pub(super) fn of(&self, key: &str) -> Option<Upload> {
        self.open.get(key).cloned()
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

fn begun_line(key: &str, upload: &Upload) -> String {
    line(&Line::Begun { key: key.to_owned(), upload: upload.clone() })
}

fn line(line: &Line) -> String {
    // Text and numbers: there is nothing in it that JSON does not have.
    format!("{}\n", serde_json::to_string(line).unwrap_or_default())
}

fn read(text: &str) -> HashMap<String, Upload> {
    let mut open = HashMap::new();
    for line in text.lines() {
        match serde_json::from_str(line) {
            Ok(Line::Begun { key, upload }) => drop(open.insert(key, upload)),
            Ok(Line::Ended { key }) => drop(open.remove(&key)),
            Err(_) => {}
        }
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(id: &str) -> Upload {
        Upload { id: id.to_owned(), etag: "e-2".to_owned(), bytes: 100, part_bytes: 60 }
    }

    fn open(path: &Path) -> Journal {
        let url: url::Url = "https://s3.example.com".parse().unwrap();
        let place = Place { bucket: "b".to_owned(), prefix: String::new() };
        Journal::open(Some(path), (&url, &place), (&url, &place)).unwrap()
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
        journal.begun("c", &upload("3")).unwrap();
        drop(journal);
        let mut journal = open(&path);
        assert_eq!(journal.find("c", "e-2", 100), Some(upload("3")));
        journal.ended("b").unwrap();
        journal.ended("c").unwrap();
        drop(journal);
        drop(open(&path));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "", "nothing is left of what has ended");
    }
}
