//! The keyholder's trail: one JSON object a line, each with the hash of the line before it.
//!
//! A line is `{"seq":…,"unix_s":…,"event":…,…,"prev":"<hex>","hash":"<hex>"}`, and `hash` is SHA-256 over the line up to
//! and including the value of `prev`, closed by `}`. So a line that was changed, removed or put in between breaks the
//! chain from there on. Whoever can rewrite the whole file can make a new chain: the last hash, kept elsewhere (it is
//! in the log line of every start), shows that too.
//!
//! What a person does is written and synced before it is answered. Grants of one push are synced together before any of
//! them leaves; receipts with whatever comes next.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::clock;
use crate::durable::StorageError;

/// The hash before the first line.
const BEGINNING: [u8; 32] = [0; 32];

/// The trail, open for appending.
#[derive(Debug)]
pub(crate) struct Audit {
    path: PathBuf,
    file: File,
    seq: u64,
    last: [u8; 32],
}

/// Where the chain does not hold.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit trail does not hold from line {line} on; keep a copy of it and find out who changed it")]
pub(crate) struct BrokenChain {
    line: u64,
}

impl Audit {
    /// Opens the trail and checks it. A broken one is continued, and says so in its next line.
    pub(crate) fn open(path: &Path) -> Result<(Self, Result<(), BrokenChain>), StorageError> {
        let failed = |source| StorageError { operation: "open", path: path.to_owned(), source };
        let (seq, last, torn, state) = match File::open(path) {
            Ok(file) => walk(BufReader::new(file)).map_err(failed)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (0, BEGINNING, false, Ok(())),
            Err(error) => return Err(failed(error)),
        };
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(failed)?;
        if torn {
            file.write_all(b"\n").map_err(failed)?;
        }
        let mut audit = Self { path: path.to_owned(), file, seq, last };
        if let Err(broken) = &state {
            audit.record("audit-chain-broken", [("from_line", broken.line.into())])?;
        }
        Ok((audit, state))
    }

    /// The hash of the last line.
    pub(crate) fn last_hash(&self) -> [u8; 32] {
        self.last
    }

    /// Appends one event and syncs.
    pub(crate) fn record<const N: usize>(
        &mut self,
        event: &str,
        fields: [(&str, Value); N],
    ) -> Result<(), StorageError> {
        self.append(event, fields)?;
        self.sync()
    }

    /// Makes durable what was appended.
    pub(crate) fn sync(&mut self) -> Result<(), StorageError> {
        self.file.sync_data().map_err(|source| StorageError {
            operation: "sync",
            path: self.path.clone(),
            source,
        })
    }

    /// Appends one event; it is durable with the next sync. For what comes in hundreds.
    pub(crate) fn append<const N: usize>(
        &mut self,
        event: &str,
        fields: [(&str, Value); N],
    ) -> Result<(), StorageError> {
        let mut line = Map::new();
        line.insert("seq".to_owned(), (self.seq + 1).into());
        line.insert("unix_s".to_owned(), clock::unix_s().into());
        line.insert("event".to_owned(), event.into());
        line.extend(fields.map(|(name, value)| (name.to_owned(), value)));
        let object = Value::Object(line).to_string();
        // By hand, so that these two stand last whatever the order of the others.
        let open = format!(
            "{},\"prev\":\"{}\"",
            object.strip_suffix('}').unwrap_or_default(),
            hex::encode(self.last)
        );
        let hash: [u8; 32] = Sha256::digest(format!("{open}}}").as_bytes()).into();
        let text = format!("{open},\"hash\":\"{}\"}}\n", hex::encode(hash));
        let failed = |source| StorageError { operation: "append to", path: self.path.clone(), source };
        self.file.write_all(text.as_bytes()).map_err(failed)?;
        self.seq += 1;
        self.last = hash;
        Ok(())
    }
}

/// Checks a trail.
#[cfg(test)]
pub(crate) fn verify(path: &Path) -> std::io::Result<Result<(), BrokenChain>> {
    Ok(walk(BufReader::new(File::open(path)?))?.3)
}

type Walked = (u64, [u8; 32], bool, Result<(), BrokenChain>);

fn walk(mut reader: impl BufRead) -> std::io::Result<Walked> {
    let (mut number, mut seq, mut last, mut torn) = (0, 0, BEGINNING, false);
    let mut state = Ok(());
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok((seq, last, torn, state));
        }
        number += 1;
        torn = !line.ends_with(b"\n");
        match read_line(&line, &last) {
            Some((line_seq, hash)) if line_seq == seq + 1 => (seq, last) = (line_seq, hash),
            _ => {
                if state.is_ok() {
                    state = Err(BrokenChain { line: number });
                }
                // Go on from what the line claims, so that what follows it can still be told apart.
                if let Some((line_seq, hash)) = claimed(&line) {
                    (seq, last) = (line_seq, hash);
                }
            }
        }
    }
}

fn read_line(line: &[u8], previous: &[u8; 32]) -> Option<(u64, [u8; 32])> {
    let text = std::str::from_utf8(line).ok()?.trim_end();
    let (open, _) = text.rsplit_once(",\"hash\":")?;
    let (seq, hash) = claimed(line)?;
    let actual: [u8; 32] = Sha256::digest(format!("{open}}}").as_bytes()).into();
    let chained = open.ends_with(&format!("\"prev\":\"{}\"", hex::encode(previous)));
    (chained && actual == hash).then_some((seq, hash))
}

fn claimed(line: &[u8]) -> Option<(u64, [u8; 32])> {
    let value: Value = serde_json::from_slice(line).ok()?;
    let mut hash = [0; 32];
    hex::decode_to_slice(value.get("hash")?.as_str()?, &mut hash).ok()?;
    Some((value.get("seq")?.as_u64()?, hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trail(lines: u64) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let (mut audit, state) = Audit::open(&path).unwrap();
        assert_eq!(state, Ok(()));
        for number in 0..lines {
            audit.record("grant", [("volume", format!("v{number}").into()), ("z", 1.into())]).unwrap();
        }
        (dir, path)
    }

    #[test]
    fn a_trail_holds_and_is_continued() {
        let (_dir, path) = trail(3);
        let (mut audit, state) = Audit::open(&path).unwrap();
        assert_eq!(state, Ok(()));
        audit.record("revoke", []).unwrap();
        assert_eq!(verify(&path).unwrap(), Ok(()));
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 4);
    }

    #[test]
    fn a_changed_removed_or_swapped_line_is_found() {
        let (_dir, path) = trail(5);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let broken = |lines: &[&str]| {
            std::fs::write(&path, lines.join("\n") + "\n").unwrap();
            verify(&path).unwrap()
        };
        assert_eq!(broken(&lines), Ok(()));
        let changed = lines[1].replace("v1", "v9");
        assert_eq!(broken(&[lines[0], &changed, lines[2]]), Err(BrokenChain { line: 2 }));
        assert_eq!(broken(&[lines[0], lines[2], lines[3]]), Err(BrokenChain { line: 2 }));
        assert_eq!(broken(&[lines[0], lines[2], lines[1]]), Err(BrokenChain { line: 2 }));
    }

    #[test]
    fn a_line_torn_by_a_crash_is_told_and_the_trail_goes_on() {
        let (_dir, path) = trail(2);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.truncate(text.len() - 10);
        std::fs::write(&path, &text).unwrap();
        let (mut audit, state) = Audit::open(&path).unwrap();
        assert_eq!(state, Err(BrokenChain { line: 2 }));
        audit.record("start", []).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().nth(2).unwrap().contains("audit-chain-broken"), "{text}");
        let (_, state) = Audit::open(&path).unwrap();
        assert_eq!(state, Err(BrokenChain { line: 2 }), "what was torn stays torn");
    }
}
