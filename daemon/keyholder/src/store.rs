//! Where ledger and lease records are kept: in this keyholder's own files, or in a store that several keyholders share.
//!
//! Both make durable before they return, and leave the old or the new where they fail. What differs is who else writes: the files
//! are this program's alone, and in the shared store a write is done only if nobody else wrote the same meanwhile.

use std::path::{Path, PathBuf};

use crate::cluster::shared::Shared;
use crate::durable::{self, OldContent, StorageError};
use crate::records::{self, Body};

/// The ledger's file; beside a shared store a copy of the last ledger that was seen there.
pub(crate) const LEDGER_FILE: &str = "ledger";

/// What every ledger leaves of the room that there is, unless it takes keys away or is no longer than the one before: the latches of
/// a thousand nodes fit into it, whoever filled the rest.
pub(crate) const RESERVE_BYTES: usize = 64 << 10;

/// How much of the room for ledgers one may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// All but [`RESERVE_BYTES`].
    Ordinary,
    /// All of it.
    Reserve,
}

/// The lease records' file.
pub(crate) const LEASES_FILE: &str = "leases";

/// Why it could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file.
    #[error(transparent)]
    File(#[from] StorageError),
    /// No quorum of the shared store answers.
    #[error(
        "the store that keyholders share cannot be reached ({why}); keys in force are renewed as far as is recorded, everything \
         else waits: look at etcd's members and the network to them"
    )]
    Away {
        /// What happened.
        why: String,
    },
    /// Another keyholder was quicker.
    #[error("another keyholder changed the same at this moment, and nothing was done; ask again")]
    Changed,
    /// It is not the store that this keyholder knew.
    #[error(
        "the shared store is not the one that this keyholder knew: {why}; nothing is granted or changed until the right one is \
         back, see \"When the store is not the one it was\" in CLUSTER.md"
    )]
    Distrusted {
        /// What is wrong with it.
        why: String,
    },
    /// etcd says no.
    #[error("the shared store does not take it ({why}); look at etcd's log and limits")]
    Refused {
        /// What it said.
        why: String,
    },
}

/// Where they are kept.
#[derive(Debug)]
pub(crate) enum Store {
    Files(Files),
    Shared(Box<Shared>),
}

/// The files of the state directory.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
}

impl Files {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }
}

impl Store {
    /// Puts a ledger in the place of the one before it, whose content is overwritten where it lies in a file of ours: each of them
    /// has what a later erasure takes out, under the same key.
    pub(crate) fn put_ledger(&mut self, bytes: &[u8], room: Room) -> Result<(), StoreError> {
        match self {
            Self::Files(files) => {
                Ok(durable::replace(&files.dir.join(LEDGER_FILE), bytes, OldContent::Overwrite)?)
            }
            Self::Shared(shared) => shared.put_ledger(bytes, room),
        }
    }

    /// The same with the first ledger of a ceremony. Into a shared store that is empty it comes with the first look at it.
    pub(crate) fn put_first_ledger(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        match self {
            Self::Shared(shared) if shared.is_empty() => shared.keep_copy(bytes),
            _ => self.put_ledger(bytes, Room::Ordinary),
        }
    }

    /// Keeps lease records. What others could take for a permission is there before it is used.
    pub(crate) fn put_leases(&mut self, body: &Body) -> Result<(), StoreError> {
        match self {
            Self::Files(files) => {
                let bytes = records::encode(body);
                Ok(durable::replace(&files.dir.join(LEASES_FILE), &bytes, OldContent::Leave)?)
            }
            Self::Shared(shared) => shared.put_leases(body),
        }
    }

    /// Forgets this keyholder's own file of lease records.
    pub(crate) fn lose_leases(&mut self) -> Result<(), StoreError> {
        let dir = match self {
            Self::Files(files) => &files.dir,
            Self::Shared(shared) => shared.dir(),
        };
        Ok(durable::remove(&dir.join(LEASES_FILE))?)
    }

    /// How much further than a lease is recorded that a key may be held, so that renewals need not be written one by one.
    pub(crate) fn ahead_ms(&self) -> u64 {
        match self {
            Self::Files(_) => 0,
            Self::Shared(shared) => shared.ahead_ms(),
        }
    }

    /// Whether anything new may be granted.
    pub(crate) fn may_grant(&self) -> Result<(), StoreError> {
        match self {
            Self::Files(_) => Ok(()),
            Self::Shared(shared) => shared.is_usable(),
        }
    }

    /// Makes what was replaced unreachable in the store's own history.
    pub(crate) fn forget_history(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Files(_) => Ok(()),
            Self::Shared(shared) => shared.forget_history(),
        }
    }

    pub(crate) fn shared(&self) -> Option<&Shared> {
        match self {
            Self::Files(_) => None,
            Self::Shared(shared) => Some(shared),
        }
    }

    pub(crate) fn shared_mut(&mut self) -> Option<&mut Shared> {
        match self {
            Self::Files(_) => None,
            Self::Shared(shared) => Some(shared),
        }
    }
}
