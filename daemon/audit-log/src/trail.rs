//! Writing a trail: segments of lines in a directory that one program owns.
//!
//! ```text
//! audit.jsonl                  the segment that is written
//! audit-000000000001.jsonl     closed segments, by the number of their first entry
//! audit.jsonl.new              the next segment, while it is begun
//! audit-v1.jsonl               a trail of version 1, as it was found
//! ```
//!
//! Crash order of a roll; a crash leaves a trail that opens, at every step, and what fails is tried again with the next entry:
//!
//! 1. sync the full segment;
//! 2. write the new one beside it, with its first entry, which says which run writes it, and sync that (a disk that is full is
//!    found here, while nothing has been renamed);
//! 3. rename the full one (before step 1 the name could survive and the last lines not);
//! 4. rename the new one (before step 2 a segment could begin without its first entry);
//! 5. sync the directory.
//!
//! A crash between 3 and 4 leaves no current segment: the new one takes its name when the trail is opened.
//!
//! A line that a crash cut short was never acknowledged: it is taken off when the trail is opened, and the trail says so.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::chain::{Digest, Hash, Head, Opening, Signer, TrailId, certificate_digest, head_digest, link};
use crate::entry::{Entry, LINE_BYTES_MAX, Moment, body, digest, line};
use crate::v1;
use crate::verify::{Finding, Verifier};
use crate::witness::SignedHead;

const CURRENT: &str = "audit.jsonl";
const NEXT: &str = "audit.jsonl.new";
const OLD_FORMAT: &str = "audit-v1.jsonl";
const FILE_MODE: u32 = 0o600;

/// Most entries of one answer.
pub const ENTRIES_MAX: usize = 1_000;

/// How long segments are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A segment is closed before it gets longer; each start reads one.
    pub segment_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20 }
    }
}

/// What could not be done with the trail.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {source}; check the directory's space, owner and mode, then try again", path.display())]
pub struct TrailError {
    /// What was tried.
    pub operation: &'static str,
    /// With which file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// What was found when a trail was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The first thing that does not hold in the segment that is written; the trail says so and goes on.
    pub broken: Option<Finding>,
    /// Bytes of a line that a crash cut short.
    pub torn_bytes: u64,
}

/// A part of a trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// How far the trail has come.
    pub head: SignedHead,
    /// Lines, oldest first, without line feeds.
    pub lines: Vec<String>,
}

/// A line that is about to be written, and what it makes of the trail.
struct Line {
    text: String,
    head: Head,
    signature: [u8; 64],
}

#[derive(Clone, Copy, Debug)]
struct Certificate {
    root_key: [u8; 32],
    signature: [u8; 64],
}

/// A trail, open for appending. One process has it; that is the caller's lock to keep.
#[derive(Debug)]
pub struct Trail<S> {
    dir: PathBuf,
    file: File,
    bytes: u64,
    first_seq: u64,
    limits: Limits,
    head: Head,
    signature: [u8; 64],
    opening: Opening,
    certificate: Option<Certificate>,
    signer: S,
}

impl<S: Signer> Trail<S> {
    /// Opens the trail in `dir`, or begins one, and appends the entry `start` with `fields`. `new_id` names the trail where it
    /// begins.
    pub fn open<const N: usize>(
        dir: &Path,
        signer: S,
        new_id: TrailId,
        at: Moment,
        limits: Limits,
        fields: [(&str, Value); N],
    ) -> Result<(Self, Found), TrailError> {
        let path = dir.join(CURRENT);
        let continues = set_old_format_aside(dir)?;
        let closed = segments(dir)?;
        finish_roll(dir, closed.last().map(|(_, path)| path.as_path()))?;
        let torn_bytes = cut_torn_line(&path)?;
        let first = first_entry(&path)?;
        // Only `start` and `segment` say which trail it is: where the segment begins otherwise, or a crash left none, the closed
        // ones are read before it, back to one that says so.
        let mut named = first.as_ref().is_some_and(names_trail);
        let mut read = vec![&path];
        for (_, path) in closed.iter().rev() {
            if named {
                break;
            }
            named = first_entry(path)?.as_ref().is_some_and(names_trail);
            read.push(path);
        }
        let mut walk = Verifier::new(&[]).without_signatures();
        for path in read.into_iter().rev() {
            for text in Lines::open(path, u64::MAX)? {
                walk.line(&text?);
            }
        }
        let head = match walk.head() {
            // Nothing that is left says which trail it was: it goes on as a new one, and does not hold.
            Some(head) if !named => Head { trail: new_id, ..head },
            Some(head) => head,
            None => Head { trail: new_id, seq: 0, hash: Hash::BEGINNING },
        };
        let failed = |source| TrailError { operation: "open", path: path.clone(), source };
        let file =
            OpenOptions::new().create(true).append(true).mode(FILE_MODE).open(&path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let key = signer.public();
        let opening =
            Opening { trail: head.trail, key, since: head.seq.saturating_add(1), previous: head.hash };
        let first_seq = first.map_or(opening.since, |entry| entry.seq);
        let signature = [0; 64];
        let mut trail = Self {
            dir: dir.to_owned(),
            file,
            bytes,
            first_seq,
            limits,
            head,
            signature,
            opening,
            certificate: None,
            signer,
        };
        let broken = walk.first_breach();
        let begun = [("trail", head.trail.to_string().into()), ("key", hex::encode(key).into())];
        // Never into a segment of its own: the entry that begins one names a run, and this names the run.
        trail.write(at, "start", begun.into_iter().chain(continues).chain(fields).collect())?;
        if torn_bytes > 0 {
            trail.append(at, "audit-line-torn", [("bytes", torn_bytes.into())])?;
        }
        if let Some(broken) = &broken {
            trail.append(at, "audit-chain-broken", [("what", broken.to_string().into())])?;
        }
        trail.sync()?;
        sync_dir(dir)?;
        Ok((trail, Found { broken, torn_bytes }))
    }

    /// How far it has come.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The same, signed.
    pub fn signed_head(&self) -> SignedHead {
        SignedHead {
            head: self.head,
            key: hex::encode(self.opening.key),
            signature: hex::encode(self.signature),
            since: self.opening.since,
            previous: self.opening.previous,
            root_key: self.certificate.map(|certificate| hex::encode(certificate.root_key)),
            certificate: self.certificate.map(|certificate| hex::encode(certificate.signature)),
        }
    }

    /// What the root's key has to sign for [`Self::certify`].
    pub fn certificate_digest(&self) -> [u8; 32] {
        certificate_digest(&self.opening)
    }

    /// Appends the root's word that this run's key is its own.
    pub fn certify(&mut self, at: Moment, root_key: [u8; 32], signature: [u8; 64]) -> Result<(), TrailError> {
        self.certificate = Some(Certificate { root_key, signature });
        let fields =
            [("root_key", hex::encode(root_key).into()), ("certificate", hex::encode(signature).into())];
        self.record(at, "session-certified", fields)
    }

    /// Appends one entry and syncs.
    pub fn record<const N: usize>(
        &mut self,
        at: Moment,
        event: &str,
        fields: [(&str, Value); N],
    ) -> Result<(), TrailError> {
        self.append(at, event, fields)?;
        self.sync()
    }

    /// Appends one entry; it is durable with the next sync.
    pub fn append<const N: usize>(
        &mut self,
        at: Moment,
        event: &str,
        fields: [(&str, Value); N],
    ) -> Result<(), TrailError> {
        self.append_all(at, event, fields.into_iter())
    }

    /// Makes durable what was appended.
    pub fn sync(&mut self) -> Result<(), TrailError> {
        self.file.sync_data().map_err(|source| self.failed("sync", source))
    }

    /// The file that is written, for a sync that does not hold up whoever appends meanwhile. A segment that is closed in between has
    /// been synced by that.
    pub fn handle(&self) -> Result<File, TrailError> {
        self.file.try_clone().map_err(|source| self.failed("sync", source))
    }

    fn append_all<'a>(
        &mut self,
        at: Moment,
        event: &str,
        fields: impl Iterator<Item = (&'a str, Value)>,
    ) -> Result<(), TrailError> {
        let fields: Vec<_> = fields.collect();
        let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.to_string().len()).sum();
        let about = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(512);
        if self.bytes > 0 && self.bytes.saturating_add(about) > self.limits.segment_bytes {
            self.roll(at)?;
        }
        self.write(at, event, fields)
    }

    fn write(&mut self, at: Moment, event: &str, fields: Vec<(&str, Value)>) -> Result<(), TrailError> {
        let Line { text, head, signature } = self.compose(at, event, fields)?;
        if let Err(source) = self.file.write_all(text.as_bytes()) {
            // What was written of it is no entry and may not stand before the next one.
            let _ = self.file.set_len(self.bytes);
            return Err(self.failed("append to", source));
        }
        self.bytes += text.len() as u64;
        (self.head, self.signature) = (head, signature);
        Ok(())
    }

    /// The next line, signed; it is not part of the trail before it is written.
    fn compose(&self, at: Moment, event: &str, fields: Vec<(&str, Value)>) -> Result<Line, TrailError> {
        let seq = self.head.seq.saturating_add(1);
        let body = body(seq, at, event, fields);
        let hash = link(self.head.trail, self.head.hash, seq, digest(&body));
        let signature = self.signer.sign(&head_digest(hash)).ok_or_else(|| {
            self.failed("sign an entry of", io::Error::other("the run's key is gone: the program ends"))
        })?;
        let text = line(&body, self.head.hash, hash, &signature);
        if text.len() > LINE_BYTES_MAX {
            return Err(self.failed("append to", io::Error::from(io::ErrorKind::FileTooLarge)));
        }
        Ok(Line { text, head: Head { seq, hash, ..self.head }, signature })
    }

    fn roll(&mut self, at: Moment) -> Result<(), TrailError> {
        // 1
        self.sync()?;
        // 2
        let mut fields = vec![
            ("trail", self.head.trail.to_string().into()),
            ("key", hex::encode(self.opening.key).into()),
            ("since", self.opening.since.into()),
            ("before", self.opening.previous.to_string().into()),
        ];
        if let Some(Certificate { root_key, signature }) = self.certificate {
            fields.push(("root_key", hex::encode(root_key).into()));
            fields.push(("certificate", hex::encode(signature).into()));
        }
        let Line { text, head, signature } = self.compose(at, "segment", fields)?;
        let (path, next) = (self.dir.join(CURRENT), self.dir.join(NEXT));
        let file = write_next(&next, &text).map_err(|source| TrailError {
            operation: "begin",
            path: next.clone(),
            source,
        })?;
        // 3
        let closed = self.dir.join(format!("audit-{:012}.jsonl", self.first_seq));
        match std::fs::rename(&path, &closed) {
            // An attempt before this one came so far, and could not take it back.
            Err(error) if error.kind() == io::ErrorKind::NotFound && closed.exists() => {}
            renamed => renamed.map_err(|source| self.failed("close", source))?,
        }
        // 4
        if let Err(source) = std::fs::rename(&next, &path) {
            // The full segment is the one that is written, until the next attempt.
            let _ = std::fs::rename(&closed, &path);
            return Err(self.failed("begin", source));
        }
        self.file = file;
        self.bytes = text.len() as u64;
        self.first_seq = head.seq;
        (self.head, self.signature) = (head, signature);
        // 5
        sync_dir(&self.dir)
    }

    /// The trail as it is now, to be read while this one is written on.
    pub fn reader(&self) -> Result<Reader, TrailError> {
        let current = Lines::open(&self.dir.join(CURRENT), self.bytes)?;
        Ok(Reader {
            head: self.signed_head(),
            closed: segments(&self.dir)?,
            first_seq: self.first_seq,
            current,
        })
    }

    /// Entries after number `after`, at most `count` of them and of [`ENTRIES_MAX`].
    pub fn page(&self, after: u64, count: usize) -> Result<Page, TrailError> {
        self.reader()?.page(after, count)
    }

    /// Every line, oldest first: for what has to see all of the trail, one line at a time.
    pub fn each_line(&self, take: impl FnMut(String)) -> Result<(), TrailError> {
        each_line(&self.dir, take)
    }

    /// Digests of entries after number `after`: enough to follow the chain, and nothing of what it says.
    pub fn digests(&self, after: u64, count: usize) -> Result<(SignedHead, Vec<Digest>), TrailError> {
        self.reader()?.digests(after, count)
    }

    /// Removes closed segments whose last entry is older than `before_unix_ms`, oldest first, after an entry that says which.
    /// Returns the number of the last entry that was removed.
    pub fn prune(&mut self, at: Moment, before_unix_ms: u64) -> Result<Option<u64>, TrailError> {
        let mut pruned = None;
        for (first, path) in segments(&self.dir)? {
            let mut last = None;
            for text in Lines::open(&path, u64::MAX)? {
                last = Entry::parse(&text?).ok().or(last);
            }
            let Some(last) = last.filter(|last| last.at.unix_ms < before_unix_ms) else { break };
            let fields = [
                ("from", first.into()),
                ("to", last.seq.into()),
                ("last_hash", last.hash.to_string().into()),
            ];
            self.record(at, "audit-pruned", fields)?;
            std::fs::remove_file(&path).map_err(|source| TrailError {
                operation: "remove",
                path: path.clone(),
                source,
            })?;
            pruned = Some(last.seq);
        }
        Ok(pruned)
    }

    /// An error about the file that is written.
    pub fn failed(&self, operation: &'static str, source: io::Error) -> TrailError {
        TrailError { operation, path: self.dir.join(CURRENT), source }
    }
}

/// A trail as it was at one moment. It keeps no writer waiting: closed segments change no more, and of the one that was written it
/// reads what was there. A segment that is pruned meanwhile is left out.
pub struct Reader {
    head: SignedHead,
    closed: Vec<(u64, PathBuf)>,
    first_seq: u64,
    current: Lines,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("head", &self.head).finish_non_exhaustive()
    }
}

impl Reader {
    /// As [`Trail::page`].
    pub fn page(self, after: u64, count: usize) -> Result<Page, TrailError> {
        let count = count.min(ENTRIES_MAX);
        let head = self.head.clone();
        let mut lines = Vec::new();
        for text in self.lines_from(after) {
            if lines.len() == count {
                break;
            }
            let text = text?;
            // What does not read is handed out too: whoever verifies has to see it.
            if Entry::parse(&text).map_or(true, |entry| entry.seq > after) {
                lines.push(text);
            }
        }
        Ok(Page { head, lines })
    }

    /// As [`Trail::digests`].
    pub fn digests(self, after: u64, count: usize) -> Result<(SignedHead, Vec<Digest>), TrailError> {
        let Page { head, lines } = self.page(after, count)?;
        let digests =
            lines.iter().filter_map(|line| Entry::parse(line).ok()).map(|entry| entry.digest).collect();
        Ok((head, digests))
    }

    /// As [`Trail::each_line`].
    pub fn each_line(self, mut take: impl FnMut(String)) -> Result<(), TrailError> {
        for text in self.lines_from(0) {
            take(text?);
        }
        Ok(())
    }

    /// The lines of the segments that may have entries after this number.
    fn lines_from(self, after: u64) -> impl Iterator<Item = Result<String, TrailError>> {
        let Self { closed, first_seq, current, .. } = self;
        // A segment ends where the next one begins.
        let ends: Vec<u64> = closed.iter().map(|(first, _)| *first).skip(1).chain([first_seq]).collect();
        let wanted = closed.into_iter().zip(ends).filter(move |(_, next)| *next > after.saturating_add(1));
        let of_closed = wanted.flat_map(|((_, path), _)| {
            let (lines, error) = match Lines::open(&path, u64::MAX) {
                Ok(lines) => (Some(lines), None),
                Err(error) => (None, Some(Err(error))),
            };
            lines.into_iter().flatten().chain(error)
        });
        of_closed.chain(current)
    }
}

/// Every line of the trail in `dir`, oldest first: for a verification without the program that writes it.
pub fn read_dir(dir: &Path) -> Result<Vec<String>, TrailError> {
    let mut lines = Vec::new();
    each_line(dir, |line| lines.push(line))?;
    Ok(lines)
}

fn each_line(dir: &Path, mut take: impl FnMut(String)) -> Result<(), TrailError> {
    let closed = segments(dir)?.into_iter().map(|(_, path)| path);
    for path in closed.chain([dir.join(CURRENT)]) {
        for text in Lines::open(&path, u64::MAX)? {
            take(text?);
        }
    }
    Ok(())
}

fn segments(dir: &Path) -> Result<Vec<(u64, PathBuf)>, TrailError> {
    let failed = |source| TrailError { operation: "list", path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("audit-").and_then(|name| name.strip_suffix(".jsonl"));
        if let Some(first) = number.and_then(|number| number.parse().ok()) {
            found.push((first, path));
        }
    }
    found.sort();
    Ok(found)
}

fn sync_dir(dir: &Path) -> Result<(), TrailError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| TrailError {
        operation: "sync the directory",
        path: dir.to_owned(),
        source,
    })
}

/// Makes the file that the next segment begins as, durably. One that an earlier attempt left is none.
fn write_next(next: &Path, text: &str) -> io::Result<File> {
    match std::fs::remove_file(next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).append(true).mode(FILE_MODE).open(next)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(file)
}

/// Ends a roll that a crash interrupted: the new segment takes its name where the full one has given it up, and is removed where
/// that is still the one that is written.
fn finish_roll(dir: &Path, last_closed: Option<&Path>) -> Result<(), TrailError> {
    let (path, next) = (dir.join(CURRENT), dir.join(NEXT));
    let failed = |source| TrailError { operation: "finish", path: next.clone(), source };
    if !next.try_exists().map_err(failed)? {
        return Ok(());
    }
    let mut ended = None;
    for text in last_closed.map(|path| Lines::open(path, u64::MAX)).transpose()?.into_iter().flatten() {
        ended = Entry::parse(&text?).ok().or(ended);
    }
    let follows = first_entry(&next)?.zip(ended).is_some_and(|(next, last)| next.previous == last.hash);
    if follows && !path.try_exists().map_err(failed)? {
        std::fs::rename(&next, &path).map_err(failed)?;
    } else {
        std::fs::remove_file(&next).map_err(failed)?;
    }
    sync_dir(dir)
}

/// The first line that is an entry.
fn first_entry(path: &Path) -> Result<Option<Entry>, TrailError> {
    for text in Lines::open(path, u64::MAX)? {
        if let Ok(entry) = Entry::parse(&text?) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

fn names_trail(entry: &Entry) -> bool {
    matches!(entry.event.as_str(), "start" | "segment") && entry.bytes::<16>("trail").is_some()
}

/// Takes a line off that has no end; returns its length.
fn cut_torn_line(path: &Path) -> Result<u64, TrailError> {
    let failed = |source| TrailError { operation: "mend", path: path.to_owned(), source };
    let content = match std::fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(failed(error)),
    };
    let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |position| position + 1);
    let torn = content.len() - whole;
    if torn > 0 {
        let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(failed)?;
    }
    Ok(torn as u64)
}

/// Renames a trail of version 1; returns the field that the new trail begins with.
fn set_old_format_aside(dir: &Path) -> Result<Option<(&'static str, Value)>, TrailError> {
    let path = dir.join(CURRENT);
    let failed = |source| TrailError { operation: "set aside", path: path.clone(), source };
    let first = Lines::open(&path, u64::MAX)?.next().transpose()?;
    if !first.is_some_and(|line| v1::is_v1(&line)) {
        return Ok(None);
    }
    let ended = v1::walk(&path).map_err(failed)?;
    let content = std::fs::read(&path).map_err(failed)?;
    // One that was set aside before, and came back with an older program or a backup, is not written over.
    let mut aside = OLD_FORMAT.to_owned();
    for number in 2_u32.. {
        if !dir.join(&aside).try_exists().map_err(failed)? {
            break;
        }
        aside = format!("audit-v1-{number}.jsonl");
    }
    std::fs::rename(&path, dir.join(&aside)).map_err(failed)?;
    sync_dir(dir)?;
    let continues = serde_json::json!({
        "file": aside,
        "lines": ended.lines,
        "last_hash": hex::encode(ended.last),
        "sha256": hex::encode(Sha256::digest(content)),
        "broken_at_line": ended.broken_at,
    });
    Ok(Some(("continues", continues)))
}

/// The lines of a file's first bytes, none where there is no file.
struct Lines {
    path: PathBuf,
    reader: Option<BufReader<io::Take<File>>>,
}

impl Lines {
    fn open(path: &Path, bytes: u64) -> Result<Self, TrailError> {
        let reader = match File::open(path) {
            Ok(file) => Some(BufReader::new(file.take(bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(TrailError { operation: "read", path: path.to_owned(), source }),
        };
        Ok(Self { path: path.to_owned(), reader })
    }
}

impl Iterator for Lines {
    type Item = Result<String, TrailError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::new();
        match self.reader.as_mut()?.read_until(b'\n', &mut line) {
            Ok(0) => None,
            // What is no text is no entry, and is reported as such.
            Ok(_) => Some(Ok(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned())),
            Err(source) => {
                self.reader = None;
                Some(Err(TrailError { operation: "read", path: self.path.clone(), source }))
            }
        }
    }
}
