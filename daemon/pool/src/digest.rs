//! Digests of pages, and the one value that says which state a pool is in.
//!
//! Of every page of tables and of digests the pool knows a digest while it is open; of every page of records the device holds
//! one, so that it need not be read to be known. All of them together are the **root**. The root at the last checkpoint, and
//! every record that was logged since, are the **head**: what was so once and is not so any more has another head, and nobody
//! can make one state that has the head of another.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::layout::{DIGEST_BYTES, DIGESTS_IN_PAGE};

/// A digest of a page: SHA-256, cut short. Whoever would replace a page needs a second one of the same digest.
pub(crate) type Digest = [u8; DIGEST_BYTES];

/// Of a page that was never written.
pub(crate) const NEVER_WRITTEN: Digest = [0; DIGEST_BYTES];

pub(crate) fn digest_of(page: &[u8]) -> Digest {
    let [digest, _] = halves(Sha256::digest(page).into());
    digest
}

fn halves(hash: [u8; 32]) -> [Digest; 2] {
    let mut halves = [NEVER_WRITTEN; 2];
    halves.as_flattened_mut().copy_from_slice(&hash);
    halves
}

/// What every page of a pool's metadata has as its digest, one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root(pub(crate) [u8; 32]);

impl Root {
    /// Of tables that are not known to be what was last written.
    pub(crate) const UNKNOWN: Self = Self([0; 32]);
}

/// The digests of the pages that are read when a pool is opened, table by table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tables {
    pub(crate) volumes: Vec<Digest>,
    pub(crate) extents: Vec<Digest>,
    pub(crate) holes: Vec<Digest>,
    /// Of the pages of digests.
    pub(crate) digests: Vec<Digest>,
}

impl Tables {
    pub(crate) fn root(&self) -> Root {
        let mut hash = Sha256::new();
        for table in [&self.volumes, &self.extents, &self.holes, &self.digests] {
            hash.update((table.len() as u64).to_le_bytes());
            hash.update(table.as_flattened());
        }
        Root(hash.finalize().into())
    }
}

/// Where a pool's history stands. A later state of the same pool has a higher count, and the chain of another history is
/// another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHead {
    /// Batches of the log since the pool was made.
    pub count: u64,
    pub chain: [u8; 32],
}

impl StateHead {
    /// Of a pool in which nothing has ever been.
    pub(crate) const BEGINNING: Self = Self { count: 0, chain: [0; 32] };
}

/// The state behind a batch, while its records are added one by one.
#[derive(Clone, Debug)]
pub(crate) struct NextState {
    count: u64,
    hash: Sha256,
}

impl NextState {
    pub(crate) fn batch(before: StateHead) -> Self {
        Self { count: before.count + 1, hash: Sha256::new_with_prefix(before.chain) }
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
    }

    pub(crate) fn state(&self) -> StateHead {
        StateHead { count: self.count, chain: self.hash.clone().finalize().into() }
    }
}

/// The digests of pages of records, as the device has them.
#[derive(Debug, Default)]
pub(crate) struct RecordDigests {
    pages: BTreeMap<u64, Box<[Digest; DIGESTS_IN_PAGE]>>,
}

impl RecordDigests {
    pub(crate) fn insert_page(&mut self, page: u64, bytes: &[u8]) {
        let mut digests = Box::new([NEVER_WRITTEN; DIGESTS_IN_PAGE]);
        digests.as_flattened_mut().copy_from_slice(bytes);
        self.pages.insert(page, digests);
    }

    pub(crate) fn get(&self, page: u64, nth: usize) -> Digest {
        self.pages.get(&page).map_or(NEVER_WRITTEN, |digests| digests[nth])
    }

    pub(crate) fn set(&mut self, page: u64, nth: usize, digest: Digest) {
        let fresh = || Box::new([NEVER_WRITTEN; DIGESTS_IN_PAGE]);
        self.pages.entry(page).or_insert_with(fresh)[nth] = digest;
    }

    /// A page as it stands on the device.
    pub(crate) fn copy_page(&self, page: u64, out: &mut [u8]) {
        match self.pages.get(&page) {
            Some(digests) => out.copy_from_slice(digests.as_flattened()),
            None => out.fill(0),
        }
    }
}

/// What a page that is about to change is, and what it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) before: Digest,
    pub(crate) after: Digest,
}
