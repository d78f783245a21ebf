//! How many blocks of the cipher have been encrypted under each key: what XTS promises wears out with them.
//!
//! Counted are blocks of 16 bytes, overwrites included, for each domain and epoch of the pool. A volume's entry has its part, rounded
//! up and durable before so many are encrypted, so that a power cut counts too many and never too few. What a volume or
//! snapshot leaves when it goes another of the same key takes over.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use units::{DomainId, SectorCount, VolumeEpoch};

use crate::commit::lock;

/// Blocks in a sector.
const BLOCKS: u64 = 256;
/// What is reserved ahead: a GiB.
pub(crate) const AHEAD: u64 = 1 << 26;
/// From here on a new epoch is due: 128 TiB.
pub(crate) const DUE: u64 = 1 << 43;
/// From here on nothing is encrypted under the key any more.
pub(crate) const USED_UP: u64 = 1 << 44;

/// Which key.
pub(crate) type Key = (DomainId, VolumeEpoch);

/// What is reserved of each key, of all volumes and snapshots together.
#[derive(Debug, Default)]
pub(crate) struct OfKeys(Mutex<BTreeMap<Key, u64>>);

impl OfKeys {
    pub(crate) fn add(&self, key: Key, blocks: u64) -> u64 {
        let mut keys = lock(&self.0);
        let sum = keys.entry(key).or_default();
        *sum = sum.saturating_add(blocks);
        *sum
    }

    /// Counts as many more as the key may still encrypt, up to `most`: how many, and how many there are then. `None`, and
    /// nothing is counted, where it may not even encrypt `least` more.
    pub(crate) fn reserve(&self, key: Key, least: u64, most: u64) -> Option<(u64, u64)> {
        let mut keys = lock(&self.0);
        let sum = keys.entry(key).or_default();
        let more = most.min(USED_UP.saturating_sub(*sum));
        if more < least {
            return None;
        }
        *sum += more;
        Some((more, *sum))
    }

    pub(crate) fn of(&self, key: Key) -> u64 {
        lock(&self.0).get(&key).copied().unwrap_or(0)
    }
}

/// A volume's part.
#[derive(Debug)]
pub(crate) struct Part {
    /// At least so many have been encrypted.
    used: AtomicU64,
    /// And no more than so many: durably so.
    reserved: AtomicU64,
}

impl Part {
    /// As its entry has it.
    pub(crate) fn recorded(blocks: u64) -> Self {
        Self { used: AtomicU64::new(blocks), reserved: AtomicU64::new(blocks) }
    }

    /// Nothing of what is reserved has been encrypted yet.
    pub(crate) fn begin(&self) {
        self.used.store(0, Ordering::Relaxed);
    }

    /// Another key is used from here on: nothing has been encrypted under it, and nothing is reserved yet.
    pub(crate) fn restart(&self) {
        self.reserved.store(0, Ordering::Release);
        self.used.store(0, Ordering::Release);
    }

    /// Counts sectors that are about to be encrypted. `Some` where more must be reserved first: so many at least.
    pub(crate) fn count(&self, sectors: SectorCount) -> Option<u64> {
        let blocks = sectors.0.saturating_mul(BLOCKS);
        let used = self.used.fetch_add(blocks, Ordering::Relaxed).saturating_add(blocks);
        (used > self.reserved.load(Ordering::Acquire)).then_some(used)
    }

    /// These were not encrypted after all.
    pub(crate) fn take_back(&self, sectors: SectorCount) {
        self.used.fetch_sub(sectors.0.saturating_mul(BLOCKS), Ordering::Relaxed);
    }

    /// So many more were encrypted elsewhere, and are reserved in the entry.
    pub(crate) fn take_over(&self, blocks: u64) {
        self.used.fetch_add(blocks, Ordering::AcqRel);
        self.reserved.fetch_add(blocks, Ordering::AcqRel);
    }

    /// So many are reserved, durably.
    pub(crate) fn reserved(&self, blocks: u64) {
        self.reserved.fetch_max(blocks, Ordering::AcqRel);
    }
}
