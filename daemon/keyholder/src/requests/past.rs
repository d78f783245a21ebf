//! Which named requests were begun and carried out, over restarts of the program: hashes alone, no name, no answer.
//!
//! ```text
//! 0    name          32   SHA-256 of actor and Idempotency-Key, each behind its length
//! 32   fingerprint   32   SHA-256 of method, path and body
//! 64   since          8   seconds since 1970
//! 72   step           1   0 begun, 1 carried out, 2 refused or broken off: it may be sent again
//! 73   checksum       7   of SHA-256 over everything before
//! ```
//!
//! Crash order: `begun` is durable before the request is carried out, the second record before it is answered. So one that a crash
//! met in between is known to have been begun, and is not done a second time. A record that a crash cut short is of a request
//! that was not begun.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::durable::{self, OldContent, StorageError};

const RECORD_BYTES: usize = 80;
const BODY_BYTES: usize = 73;

/// Requests that are known. Past it the oldest is forgotten.
const KNOWN_MAX: usize = 16_384;

/// Records in the file before it is written anew.
const RECORDS_MAX: usize = 4 * KNOWN_MAX;

/// For so long a request is known.
const KEPT_S: u64 = 24 * 3_600;

pub(super) type NameHash = [u8; 32];

/// How far a request had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Begun,
    Done,
    Free,
}

/// A request that came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) fingerprint: [u8; 32],
    since_unix_s: u64,
    pub(super) step: Step,
}

/// The file, open for appending.
#[derive(Debug)]
pub(super) struct Past {
    path: PathBuf,
    file: File,
    records: usize,
    /// The last record may be there in part: what came after it would not read.
    torn: bool,
    known: BTreeMap<NameHash, Known>,
}

/// What a request is known by.
pub(super) fn name_hash(who: &str, key: &str) -> NameHash {
    let mut hash = Sha256::new();
    for part in [who, key] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

impl Past {
    /// Reads what is there, and writes it anew without what is over.
    pub(super) fn open(path: PathBuf, now_unix_s: u64) -> Result<Self, StorageError> {
        let most = (RECORDS_MAX + KNOWN_MAX) * RECORD_BYTES;
        let bytes = durable::read(&path, most as u64)?.unwrap_or_default();
        let mut known = BTreeMap::new();
        for record in bytes.chunks_exact(RECORD_BYTES).filter_map(decode) {
            match record {
                (name, Known { step: Step::Free, .. }) => known.remove(&name),
                (name, entry) => known.insert(name, entry),
            };
        }
        known.retain(|_, entry: &mut Known| entry.counts_at(now_unix_s));
        let file = write_anew(&path, &known)?;
        Ok(Self { path, file, records: known.len(), torn: false, known })
    }

    /// What is known of a request of this name.
    pub(super) fn of(&self, name: &NameHash, now_unix_s: u64) -> Option<Known> {
        self.known.get(name).copied().filter(|entry| entry.counts_at(now_unix_s))
    }

    /// Notes a step, durably but for what may be sent again: a crash only makes that one refused.
    pub(super) fn note(
        &mut self,
        name: NameHash,
        fingerprint: [u8; 32],
        step: Step,
        now_unix_s: u64,
    ) -> Result<(), StorageError> {
        let entry = Known { fingerprint, since_unix_s: now_unix_s, step };
        let failed = |operation| {
            let path = self.path.clone();
            move |source| StorageError { operation, path, source }
        };
        if self.torn {
            self.file = write_anew(&self.path, &self.known)?;
            (self.records, self.torn) = (self.known.len(), false);
        }
        if let Err(source) = self.file.write_all(&encode(&name, &entry)) {
            self.torn = true;
            return Err(failed("append to")(source));
        }
        if step != Step::Free {
            self.file.sync_data().map_err(failed("sync"))?;
        }
        self.records += 1;
        match step {
            Step::Free => self.known.remove(&name),
            Step::Begun | Step::Done => self.known.insert(name, entry),
        };
        while self.known.len() > KNOWN_MAX {
            let oldest = self.known.iter().min_by_key(|(_, entry)| entry.since_unix_s).map(|(name, _)| *name);
            let Some(oldest) = oldest else { break };
            self.known.remove(&oldest);
        }
        if self.records > RECORDS_MAX {
            self.file = write_anew(&self.path, &self.known)?;
            self.records = self.known.len();
        }
        Ok(())
    }
}

impl Known {
    const fn counts_at(&self, unix_s: u64) -> bool {
        unix_s < self.since_unix_s.saturating_add(KEPT_S)
    }
}

fn write_anew(path: &Path, known: &BTreeMap<NameHash, Known>) -> Result<File, StorageError> {
    let bytes: Vec<u8> = known.iter().flat_map(|(name, entry)| encode(name, entry)).collect();
    durable::replace(path, &bytes, OldContent::Leave)?;
    let failed = |source| StorageError { operation: "open", path: path.to_owned(), source };
    OpenOptions::new().append(true).open(path).map_err(failed)
}

fn encode(name: &NameHash, entry: &Known) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..32].copy_from_slice(name);
    record[32..64].copy_from_slice(&entry.fingerprint);
    record[64..72].copy_from_slice(&entry.since_unix_s.to_le_bytes());
    record[72] = match entry.step {
        Step::Begun => 0,
        Step::Done => 1,
        Step::Free => 2,
    };
    let checksum = Sha256::digest(&record[..BODY_BYTES]);
    record[BODY_BYTES..].copy_from_slice(&checksum[..RECORD_BYTES - BODY_BYTES]);
    record
}

fn decode(record: &[u8]) -> Option<(NameHash, Known)> {
    let (body, checksum) = record.split_at_checked(BODY_BYTES)?;
    if !Sha256::digest(body).starts_with(checksum) {
        return None;
    }
    let step = match body[72] {
        0 => Step::Begun,
        1 => Step::Done,
        2 => Step::Free,
        _ => return None,
    };
    let since_unix_s = u64::from_le_bytes(body[64..72].try_into().ok()?);
    Some((
        body[..32].try_into().ok()?,
        Known { fingerprint: body[32..64].try_into().ok()?, since_unix_s, step },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_begun_and_what_was_done_is_known_after_a_restart_and_what_may_be_sent_again_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("requests");
        let mut past = Past::open(path.clone(), 1_000).unwrap();
        for (name, steps) in [
            ("begun", [Step::Begun].as_slice()),
            ("done", &[Step::Begun, Step::Done]),
            ("free", &[Step::Begun, Step::Free]),
        ] {
            for step in steps {
                past.note(name_hash("operator/op", name), [7; 32], *step, 1_000).unwrap();
            }
        }
        for at in [1_000, 1_000 + KEPT_S - 1] {
            let past = Past::open(path.clone(), at).unwrap();
            let step = |name: &str| past.of(&name_hash("operator/op", name), at).map(|known| known.step);
            assert_eq!(
                [step("begun"), step("done"), step("free")],
                [Some(Step::Begun), Some(Step::Done), None]
            );
            assert_eq!(past.of(&name_hash("operator/o", "pbegun"), at), None, "names do not run together");
        }
        let past = Past::open(path.clone(), 1_000 + KEPT_S).unwrap();
        assert_eq!(past.of(&name_hash("operator/op", "done"), 1_000 + KEPT_S), None);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn a_record_that_a_crash_cut_short_or_that_is_damaged_is_none_and_the_others_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("requests");
        let mut past = Past::open(path.clone(), 1).unwrap();
        for name in ["a", "b", "c"] {
            past.note(name_hash("x", name), [1; 32], Step::Done, 1).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 3 * RECORD_BYTES);
        for cut in 0..RECORD_BYTES {
            std::fs::write(&path, &bytes[..2 * RECORD_BYTES + cut]).unwrap();
            let past = Past::open(path.clone(), 1).unwrap();
            assert_eq!(past.known.len(), 2, "cut at {cut}");
        }
        let mut damaged = bytes.clone();
        damaged[RECORD_BYTES + 5] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        assert_eq!(Past::open(path, 1).unwrap().known.len(), 2);
    }

    #[test]
    fn what_follows_a_record_that_was_written_in_part_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("requests");
        let mut past = Past::open(file.clone(), 1).unwrap();
        past.note([1; 32], [9; 32], Step::Done, 1).unwrap();
        // No room for more.
        OpenOptions::new().append(true).open(&file).unwrap().write_all(&[7; 10]).unwrap();
        past.torn = true;
        for name in [[2; 32], [3; 32]] {
            past.note(name, [9; 32], Step::Begun, 1).unwrap();
        }
        drop(past);
        let past = Past::open(file, 1).unwrap();
        assert!([[1; 32], [2; 32], [3; 32]].iter().all(|name| past.of(name, 1).is_some()));
    }

    #[test]
    fn the_oldest_is_forgotten_past_the_limit_and_the_file_does_not_grow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("requests");
        let mut past = Past::open(path.clone(), 0).unwrap();
        for number in 0..KNOWN_MAX as u64 {
            let name = name_hash("x", &number.to_string());
            past.known.insert(name, Known { fingerprint: [0; 32], since_unix_s: number, step: Step::Done });
        }
        past.records = RECORDS_MAX;
        past.note(name_hash("x", "more"), [0; 32], Step::Begun, KNOWN_MAX as u64).unwrap();
        assert_eq!(past.known.len(), KNOWN_MAX);
        assert!(!past.known.contains_key(&name_hash("x", "0")));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), (KNOWN_MAX * RECORD_BYTES) as u64);
    }
}
