//! An outside witness: it keeps heads, and the clock of another machine.
//!
//! What it is handed are digests, which say nothing. From the last head that it kept it computes the chain forward; a trail that was
//! cut, rewritten or replaced since does not arrive at the head that is claimed now.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::chain::{Digest, Hash, Head, Opening, TrailId, certificate_digest, head_digest, is_signed, link};
use crate::trail::TrailError;

/// A head with the signature of the run that wrote it, and the root's certificate of that run where there is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedHead {
    /// The head.
    #[serde(flatten)]
    pub head: Head,
    /// The run's public key, hex.
    pub key: String,
    /// Its signature over the head's hash, hex.
    pub signature: String,
    /// Number of the run's first entry.
    pub since: u64,
    /// Hash of the entry before that.
    pub previous: Hash,
    /// The root key that certified the run, hex.
    pub root_key: Option<String>,
    /// Its signature, hex.
    pub certificate: Option<String>,
}

/// What a witness has reason to raise an alarm about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Suspicion {
    /// The trail is shorter than it was.
    #[error("the trail ends with entry {end}, and entry {witnessed} was witnessed: its end was cut off")]
    Truncated {
        /// Its last entry now.
        end: u64,
        /// The last one witnessed.
        witnessed: u64,
    },
    /// It does not continue what was witnessed.
    #[error(
        "the trail does not continue from entry {witnessed} as it was witnessed: it was rewritten, or there are two"
    )]
    Forked {
        /// The last entry witnessed.
        witnessed: u64,
    },
    /// It is another trail.
    #[error("another trail stands in the place of the one that was witnessed up to entry {witnessed}")]
    Replaced {
        /// The last entry witnessed.
        witnessed: u64,
    },
    /// The head is not signed by the run that it names.
    #[error("the head is not signed by the run that it names")]
    Unsigned,
    /// The run is certified by another root than before, or falsely.
    #[error("the run is not certified by the root key that was witnessed before")]
    OtherRoot,
    /// The entries that would show it are not there any more.
    #[error(
        "entries after {witnessed} were pruned before this witness saw them: look more often than they are pruned"
    )]
    Gap {
        /// The last entry witnessed.
        witnessed: u64,
    },
}

/// A head as it was observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// When, by the witness's clock, milliseconds since 1970.
    pub unix_ms: u64,
    /// Whose trail it is.
    pub of: String,
    /// The head.
    #[serde(flatten)]
    pub head: Head,
    /// The root key that certified the run, hex.
    pub root_key: Option<String>,
}

/// Heads that were observed, in a file: one JSON object a line.
#[derive(Debug)]
pub struct Witness {
    path: PathBuf,
    observed: Vec<Observed>,
}

impl Witness {
    /// Opens the file, or begins one with the first observation. A line that a crash cut short is passed over.
    pub fn open(path: &Path) -> Result<Self, TrailError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(TrailError { operation: "read", path: path.to_owned(), source }),
        };
        let observed = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(Self { path: path.to_owned(), observed })
    }

    /// The last head observed of this trail.
    pub fn last(&self, of: &str) -> Option<&Observed> {
        self.observed.iter().rev().find(|observed| observed.of == of)
    }

    /// Every head observed of this trail.
    pub fn heads(&self, of: &str) -> impl Iterator<Item = Head> {
        self.observed.iter().filter(move |observed| observed.of == of).map(|observed| observed.head)
    }

    /// Every head observed, of whatever trail.
    pub fn all_heads(&self) -> impl Iterator<Item = Head> {
        self.observed.iter().map(|observed| observed.head)
    }

    /// The root key that was witnessed first, hex.
    pub fn root_key(&self, of: &str) -> Option<&str> {
        self.observed
            .iter()
            .filter(|observed| observed.of == of)
            .find_map(|observed| observed.root_key.as_deref())
    }

    /// The root key that was witnessed first for this trail, hex, under whatever name: for a trail that is not asked for its name.
    pub fn root_key_of_trail(&self, trail: TrailId) -> Option<&str> {
        self.observed
            .iter()
            .filter(|observed| observed.head.trail == trail)
            .find_map(|observed| self.root_key(&observed.of))
    }

    /// Whether `claimed` may be a continuation at all: signed, of the same trail, not shorter.
    pub fn check(&self, of: &str, claimed: &SignedHead) -> Result<(), Suspicion> {
        let certified = claimed.check_signature()?;
        if let (Some(known), true) = (self.root_key(of), certified)
            && claimed.root_key.as_deref() != Some(known)
        {
            return Err(Suspicion::OtherRoot);
        }
        let Some(Observed { head: last, .. }) = self.last(of) else { return Ok(()) };
        if claimed.head.trail != last.trail {
            return Err(Suspicion::Replaced { witnessed: last.seq });
        }
        if claimed.head.seq < last.seq {
            return Err(Suspicion::Truncated { end: claimed.head.seq, witnessed: last.seq });
        }
        if claimed.head.seq == last.seq && claimed.head.hash != last.hash {
            return Err(Suspicion::Forked { witnessed: last.seq });
        }
        Ok(())
    }

    /// Keeps a head that was found to continue the last one.
    pub fn keep(&mut self, unix_ms: u64, of: &str, signed: &SignedHead) -> Result<(), TrailError> {
        let root_key = signed.root_key.clone();
        let observed = Observed { unix_ms, of: of.to_owned(), head: signed.head, root_key };
        let failed = |operation| {
            let path = self.path.clone();
            move |source| TrailError { operation, path: path.clone(), source }
        };
        let mut line =
            serde_json::to_string(&observed).map_err(io::Error::other).map_err(failed("append to"))?;
        line.push('\n');
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(failed("open"))?;
        file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("append to"))?;
        self.observed.push(observed);
        Ok(())
    }
}

/// Follows the chain from `from` by digests of the entries behind it.
pub(crate) fn follow(from: Head, digests: &[Digest]) -> Head {
    digests.iter().fold(from, |head, digest| {
        let seq = head.seq.saturating_add(1);
        Head { seq, hash: link(head.trail, head.hash, seq, *digest), ..head }
    })
}

impl Head {
    /// Where the chain arrives after these entries.
    #[must_use]
    pub fn after(self, digests: &[Digest]) -> Self {
        follow(self, digests)
    }
}

impl SignedHead {
    /// Whether the head is signed by the run it names, and whether that run is certified. A certificate that does not hold is
    /// worse than none.
    pub fn check_signature(&self) -> Result<bool, Suspicion> {
        let key: [u8; 32] = array(&self.key).ok_or(Suspicion::Unsigned)?;
        let signature = array(&self.signature).ok_or(Suspicion::Unsigned)?;
        if !is_signed(&key, &head_digest(self.head.hash), &signature) {
            return Err(Suspicion::Unsigned);
        }
        let (Some(root), Some(certificate)) = (&self.root_key, &self.certificate) else { return Ok(false) };
        let opening = Opening { trail: self.head.trail, key, since: self.since, previous: self.previous };
        let (root, certificate) = array(root).zip(array(certificate)).ok_or(Suspicion::OtherRoot)?;
        if is_signed(&root, &certificate_digest(&opening), &certificate) {
            Ok(true)
        } else {
            Err(Suspicion::OtherRoot)
        }
    }
}

fn array<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}
