//! Whether a trail holds.
//!
//! What is found from the lines alone: an altered, missing, reordered, unsigned or inserted entry, a beginning that was cut off, a
//! clock that was set. What takes a head from elsewhere ([`Verifier::finish`]): an end that was cut off, a fork.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::chain::{Hash, Head, Opening, TrailId, certificate_digest, head_digest, is_signed, link};
use crate::entry::{Entry, Moment};

/// The wall clock may drift from the boot clock by this much between two entries, as time servers correct it.
const CLOCK_TOLERANCE_MS: i128 = 5_000;

/// Most findings of each severity that are kept: a trail that is broken everywhere is broken, and notes crowd no breach out.
const FINDINGS_MAX: usize = 100;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Has an honest explanation as well; look into it.
    Doubt,
    /// The trail is not what was written.
    Broken,
}

/// Something about a trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", tag = "finding")]
pub enum Finding {
    /// A line is no entry.
    #[error("line {line} is no entry: it was cut, altered or put in")]
    Unreadable {
        /// The line.
        line: u64,
    },
    /// Entries are missing or in another order.
    #[error("entry {found} stands where entry {expected} belongs: entries are missing or in another order")]
    OutOfOrder {
        /// The number that belongs there.
        expected: u64,
        /// The number that stands there.
        found: u64,
    },
    /// An entry does not have the hash that it claims.
    #[error("entry {seq} was altered: its hash is not that of what it says")]
    Altered {
        /// The entry.
        seq: u64,
    },
    /// An entry is not chained to the one before it.
    #[error("entry {seq} does not follow the entry before it")]
    Unchained {
        /// The entry.
        seq: u64,
    },
    /// A signature is not by the run's key.
    #[error("entry {seq} is not signed by the run it stands in")]
    Unsigned {
        /// The entry.
        seq: u64,
    },
    /// An entry that names the run claims another one.
    #[error("entry {seq} names another trail or run than the one it stands in")]
    Misplaced {
        /// The entry.
        seq: u64,
    },
    /// The run's certificate is not by the root's key.
    #[error("entry {seq}: the certificate of the run is not by the expected root key")]
    FalseCertificate {
        /// The entry.
        seq: u64,
    },
    /// The boot clock went back within one boot.
    #[error("entry {seq} is older than the one before it by the clock that nobody sets")]
    BootClockBack {
        /// The entry.
        seq: u64,
    },
    /// The trail begins later than it should, and no entry that counts says that it was pruned.
    #[error(
        "the trail begins with entry {first}: what stood before is missing, and no run that is believed says that it was \
         pruned"
    )]
    BeginningMissing {
        /// Its first entry.
        first: u64,
    },
    /// A head that was witnessed is past the end.
    #[error("the trail ends with entry {end}, and entry {witnessed} was witnessed: its end was cut off")]
    Truncated {
        /// Its last entry.
        end: u64,
        /// The witnessed one.
        witnessed: u64,
    },
    /// A head that was witnessed stands before the beginning, and nothing that counts says that it was pruned.
    #[error(
        "entry {witnessed} was witnessed and is missing: the trail begins with entry {first}, and no run that is believed \
         says that what stood before was pruned"
    )]
    WitnessedMissing {
        /// The witnessed one.
        witnessed: u64,
        /// The trail's first entry.
        first: u64,
    },
    /// A head that was witnessed has another hash.
    #[error("entry {seq} is not the one that was witnessed: there are two trails in the place of one")]
    Forked {
        /// The entry.
        seq: u64,
    },
    /// The trail is another one than was witnessed.
    #[error("this is trail {found}, and {witnessed} was witnessed")]
    OtherTrail {
        /// This one.
        found: TrailId,
        /// The witnessed one.
        witnessed: TrailId,
    },
    /// The program that wrote it found it broken.
    #[error("entry {seq} says that the program found its trail broken when it started")]
    FoundBroken {
        /// The entry.
        seq: u64,
    },
    /// A run that the root never certified.
    #[error(
        "entries {from} to {to} were written by a run that no root certified: it ended before it was unsealed, or it was \
         not the keyholder"
    )]
    Uncertified {
        /// First entry.
        from: u64,
        /// Last entry.
        to: u64,
    },
    /// The wall clock was set.
    #[error("before entry {seq} the wall clock was set by {by_ms} ms")]
    ClockSet {
        /// The entry.
        seq: u64,
        /// By how much, forward.
        by_ms: i64,
    },
    /// A line was torn by a crash, and taken off.
    #[error("entry {seq}: a line was cut short by a crash, before it was acknowledged")]
    Torn {
        /// The entry that says so.
        seq: u64,
    },
    /// Entries were removed after their time.
    #[error("entries up to {to} were pruned after their time")]
    Pruned {
        /// The last of them.
        to: u64,
    },
}

impl Finding {
    /// How bad it is.
    pub const fn severity(&self) -> Severity {
        match self {
            Self::Unreadable { .. }
            | Self::OutOfOrder { .. }
            | Self::Altered { .. }
            | Self::Unchained { .. }
            | Self::Unsigned { .. }
            | Self::Misplaced { .. }
            | Self::FalseCertificate { .. }
            | Self::BootClockBack { .. }
            | Self::BeginningMissing { .. }
            | Self::Truncated { .. }
            | Self::WitnessedMissing { .. }
            | Self::Forked { .. }
            | Self::OtherTrail { .. } => Severity::Broken,
            Self::FoundBroken { .. } | Self::Uncertified { .. } | Self::ClockSet { .. } => Severity::Doubt,
            Self::Torn { .. } | Self::Pruned { .. } => Severity::Note,
        }
    }
}

/// A run of the program that wrote a part of the trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// First entry.
    pub from: u64,
    /// Last entry.
    pub to: u64,
    /// Its public key, hex.
    pub key: String,
    /// The root key that certified it, hex; `None` where none did.
    pub root_key: Option<String>,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Entries that were read.
    pub entries: u64,
    /// Where the trail ends; `None` where it has no entry.
    pub head: Option<Head>,
    /// The runs that wrote it.
    pub sessions: Vec<Session>,
    /// What was found, the first hundred of each severity.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst that was found.
    pub fn severity(&self) -> Option<Severity> {
        self.findings.iter().map(Finding::severity).max()
    }

    /// Whether the trail is what was written, as far as can be told.
    pub fn holds(&self) -> bool {
        self.severity() != Some(Severity::Broken)
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Doubt => "doubt",
            Self::Broken => "broken",
        })
    }
}

/// Who has to have signed the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Author {
    /// Each run by a key of its own, which a root certifies.
    Runs,
    /// Every entry by one known key, as a node does.
    Key([u8; 32]),
}

/// Reads a trail line by line.
#[derive(Debug)]
pub struct Verifier {
    roots: Vec<[u8; 32]>,
    author: Author,
    check_signatures: bool,
    lines: u64,
    entries: u64,
    head: Option<Head>,
    opening: Option<Opening>,
    sessions: Vec<Session>,
    last: Option<Moment>,
    /// Number and predecessor of a first entry that is not number 1.
    missing_before: Option<(u64, Hash)>,
    /// The runs, by their place in `sessions`, that say that what is missing there was pruned.
    pruned_by: Vec<Option<usize>>,
    /// Heads from elsewhere that have not come by yet.
    expected: Vec<Head>,
    findings: Vec<Finding>,
}

impl Verifier {
    /// Of a keyholder's trail. A run is certified by one of these root keys; by any where none is given.
    pub fn new(roots: &[[u8; 32]]) -> Self {
        Self {
            roots: roots.to_vec(),
            author: Author::Runs,
            check_signatures: true,
            lines: 0,
            entries: 0,
            head: None,
            opening: None,
            sessions: Vec::new(),
            last: None,
            missing_before: None,
            pruned_by: Vec::new(),
            expected: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// Of a trail whose every entry is signed by `key`, as a node's is by its identity key.
    pub fn of_node(key: [u8; 32]) -> Self {
        Self { author: Author::Key(key), ..Self::new(&[]) }
    }

    /// Chain only: what a program checks at its start.
    #[must_use]
    pub(crate) fn without_signatures(self) -> Self {
        Self { check_signatures: false, ..self }
    }

    /// These heads were seen elsewhere: the trail has to pass through each of them.
    #[must_use]
    pub fn witnessed_at(self, heads: impl IntoIterator<Item = Head>) -> Self {
        Self { expected: heads.into_iter().collect(), ..self }
    }

    /// Where it ends so far.
    pub fn head(&self) -> Option<Head> {
        self.head
    }

    /// The first thing that does not hold so far.
    pub(crate) fn first_breach(&self) -> Option<Finding> {
        self.findings.iter().find(|finding| finding.severity() == Severity::Broken).cloned()
    }

    fn found(&mut self, finding: Finding) {
        let alike = self.findings.iter().filter(|known| known.severity() == finding.severity()).count();
        if alike < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    /// Takes the next line in.
    pub fn line(&mut self, line: &str) {
        self.lines += 1;
        match Entry::parse(line) {
            Ok(entry) => self.entry(&entry),
            Err(_) => self.found(Finding::Unreadable { line: self.lines }),
        }
    }

    /// Takes the next entry in. After one that does not hold it goes on from what that one claims, so that the rest can still be
    /// told apart.
    pub fn entry(&mut self, entry: &Entry) {
        let seq = entry.seq;
        self.entries += 1;
        self.check_order(entry);
        self.check_run(entry);
        let trail = self.opening.map_or(TrailId([0; 16]), |opening| opening.trail);
        if link(trail, entry.previous, seq, entry.digest) != entry.hash {
            self.found(Finding::Altered { seq });
        }
        self.check_signature(entry);
        self.check_clocks(entry);
        self.check_witnessed(trail, entry);
        self.note_events(entry);
        self.head = Some(Head { trail, seq, hash: entry.hash });
        if let Some(session) = self.sessions.last_mut() {
            session.to = seq;
        }
        self.last = Some(entry.at);
    }

    fn check_order(&mut self, entry: &Entry) {
        let seq = entry.seq;
        match self.head {
            None if seq == 1 && entry.previous == Hash::BEGINNING => {}
            None => self.missing_before = Some((seq, entry.previous)),
            Some(head) if head.seq.checked_add(1) != Some(seq) => {
                self.found(Finding::OutOfOrder { expected: head.seq.saturating_add(1), found: seq });
            }
            Some(head) if entry.previous != head.hash => self.found(Finding::Unchained { seq }),
            Some(_) => {}
        }
    }

    /// Entries that say which run writes from here on.
    fn check_run(&mut self, entry: &Entry) {
        let seq = entry.seq;
        let opening = match entry.event.as_str() {
            "start" => entry.bytes("trail").zip(entry.bytes("key")).map(|(trail, key)| Opening {
                trail: TrailId(trail),
                key,
                since: seq,
                previous: entry.previous,
            }),
            "segment" => (|| {
                Some(Opening {
                    trail: TrailId(entry.bytes("trail")?),
                    key: entry.bytes("key")?,
                    since: entry.fields.get("since")?.as_u64()?,
                    previous: Hash(entry.bytes("before")?),
                })
            })(),
            _ => return,
        };
        let fits = match (opening, self.opening) {
            (None, _) => false,
            (Some(new), Some(old)) if entry.event == "start" => new.trail == old.trail,
            (Some(new), Some(old)) => new == old,
            (Some(_), None) => true,
        };
        let foreign = matches!((self.author, opening), (Author::Key(key), Some(new)) if new.key != key);
        if !fits || foreign {
            self.found(Finding::Misplaced { seq });
        }
        let Some(opening) = opening else { return };
        let is_new = self.opening != Some(opening);
        self.opening = Some(opening);
        if is_new {
            let key = hex::encode(opening.key);
            self.sessions.push(Session { from: seq, to: seq, key, root_key: None });
        }
        if entry.event == "segment" && entry.fields.contains_key("certificate") {
            self.check_certificate(entry);
        }
    }

    fn check_certificate(&mut self, entry: &Entry) {
        let certified = (|| {
            let root: [u8; 32] = entry.bytes("root_key")?;
            let signature: [u8; 64] = entry.bytes("certificate")?;
            let believed = self.roots.is_empty() || self.roots.contains(&root);
            let opening = self.opening?;
            (believed && is_signed(&root, &certificate_digest(&opening), &signature)).then_some(root)
        })();
        match (certified, self.sessions.last_mut()) {
            (Some(root), Some(session)) => session.root_key = Some(hex::encode(root)),
            _ => self.found(Finding::FalseCertificate { seq: entry.seq }),
        }
    }

    fn check_signature(&mut self, entry: &Entry) {
        if !self.check_signatures {
            return;
        }
        let key = match self.author {
            Author::Key(key) => Some(key),
            Author::Runs => self.opening.map(|opening| opening.key),
        };
        if !key.is_some_and(|key| is_signed(&key, &head_digest(entry.hash), &entry.signature)) {
            self.found(Finding::Unsigned { seq: entry.seq });
        }
    }

    fn check_clocks(&mut self, entry: &Entry) {
        let (seq, at) = (entry.seq, entry.at);
        let Some(last) = self.last.filter(|last| last.boot == at.boot) else { return };
        if at.boot_ns < last.boot_ns {
            self.found(Finding::BootClockBack { seq });
            return;
        }
        let by_wall = i128::from(at.unix_ms) - i128::from(last.unix_ms);
        let by_boot = i128::from((at.boot_ns - last.boot_ns) / 1_000_000);
        let by_ms = by_wall - by_boot;
        if by_ms.abs() > CLOCK_TOLERANCE_MS {
            self.found(Finding::ClockSet { seq, by_ms: i64::try_from(by_ms).unwrap_or(i64::MAX) });
        }
    }

    fn check_witnessed(&mut self, trail: TrailId, entry: &Entry) {
        let seq = entry.seq;
        let here: Vec<Head> =
            self.expected.extract_if(.., |head| head.seq == seq || head.trail != trail).collect();
        for head in here {
            if head.trail != trail {
                self.found(Finding::OtherTrail { found: trail, witnessed: head.trail });
            } else if head.hash != entry.hash {
                self.found(Finding::Forked { seq });
            }
        }
    }

    fn note_events(&mut self, entry: &Entry) {
        let seq = entry.seq;
        match entry.event.as_str() {
            "session-certified" => self.check_certificate(entry),
            "audit-chain-broken" => self.found(Finding::FoundBroken { seq }),
            "audit-line-torn" => self.found(Finding::Torn { seq }),
            "audit-pruned" => {
                let to = entry.fields.get("to").and_then(serde_json::Value::as_u64).unwrap_or(0);
                let fits = self.missing_before.is_some_and(|(first, hash)| {
                    to.checked_add(1) == Some(first) && entry.bytes("last_hash") == Some(hash.0)
                });
                let run = self.sessions.len().checked_sub(1);
                if fits && self.pruned_by.last() != Some(&run) {
                    self.pruned_by.push(run);
                }
                self.found(Finding::Pruned { to });
            }
            _ => {}
        }
    }

    /// Whether a run's word counts that entries were pruned: one that nobody certified may be that of whoever removed them.
    fn is_believed(&self, run: Option<usize>) -> bool {
        match self.author {
            Author::Key(_) => true,
            Author::Runs => {
                run.and_then(|run| self.sessions.get(run)).is_some_and(|run| run.root_key.is_some())
            }
        }
    }

    /// All lines have come by.
    pub fn finish(mut self) -> Report {
        let is_pruned = self.pruned_by.iter().any(|run| self.is_believed(*run));
        if let Some((first, _)) = self.missing_before.filter(|_| !is_pruned) {
            self.found(Finding::BeginningMissing { first });
        }
        let end = self.head.map_or(0, |head| head.seq);
        let (first, before) = self.missing_before.unwrap_or((1, Hash::BEGINNING));
        for head in std::mem::take(&mut self.expected) {
            let witnessed = head.seq;
            if witnessed > end {
                self.found(Finding::Truncated { end, witnessed });
            } else if witnessed >= first {
                self.found(Finding::Forked { seq: witnessed });
            } else if witnessed > 0 && !is_pruned {
                self.found(Finding::WitnessedMissing { witnessed, first });
            } else if witnessed.checked_add(1) == Some(first) && head.hash != before {
                self.found(Finding::Forked { seq: witnessed });
            }
        }
        if self.author == Author::Runs {
            let uncertified: Vec<_> =
                self.sessions.iter().filter(|session| session.root_key.is_none()).cloned().collect();
            for Session { from, to, .. } in uncertified {
                self.found(Finding::Uncertified { from, to });
            }
        }
        Report { entries: self.entries, head: self.head, sessions: self.sessions, findings: self.findings }
    }
}
