//! A volume in memory that loses power, runs full and loses its key on demand: for the tests of this crate and of the
//! heads above it, which so need no key.
//!
//! What it promises is what a volume promises: writes are visible at once, durable after a flush. What it does to the rest
//! is what a disk may do: at [`SimulatedVolume::power_cut`] every sector written since the last flush is kept, dropped or
//! torn at 512 bytes, each by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use units::{ByteLen, ByteOffset};

use crate::named_key::{KEY_INPUT_BYTES, KeyAway, KeyFunction};
use crate::volume::{BlockError, BlockErrorKind, BlockVolume};

const SECTOR: usize = 4096;
const SECTOR_U64: u64 = 4096;
const TEAR: usize = 512;

type Sector = Box<[u8; SECTOR]>;

#[derive(Default)]
struct Storage {
    len: u64,
    durable: BTreeMap<u64, Sector>,
    /// State since the last flush; `None` is a hole.
    changed: BTreeMap<u64, Option<Sector>>,
    /// Sectors in `changed` that take up space and are not durable.
    fresh: usize,
    /// Every change since the last flush, in order.
    log: Vec<(u64, Option<Sector>)>,
    /// Sectors the pool has for this volume.
    capacity: Option<usize>,
    flush_is_noop: bool,
    steps: u64,
    /// Step at which the power goes: it and all later ones fail.
    cut_at: Option<u64>,
    flushes: u64,
    /// Flush at which the power goes.
    cut_at_flush: Option<u64>,
    failing_reads: bool,
    refusing_writes: bool,
}

/// The volume. Clones share storage and key.
#[derive(Clone)]
pub struct SimulatedVolume {
    storage: Arc<Mutex<Storage>>,
    key_gone: Arc<AtomicBool>,
}

impl fmt::Debug for SimulatedVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedVolume").field("len", &self.lock().len).finish_non_exhaustive()
    }
}

/// A named key that is no secret, and can be taken back. Clones are the same key.
#[derive(Clone, Debug)]
pub struct SimulatedKey {
    byte: u8,
    away: Arc<Mutex<Option<KeyAway>>>,
}

impl SimulatedKey {
    /// A key; the same for the same byte.
    pub fn new(byte: u8) -> Self {
        Self { byte, away: Arc::default() }
    }

    /// Takes this one key back.
    pub fn revoke(&self) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = Some(KeyAway::Revoked);
    }

    /// Wipes the node that it is on.
    pub fn seal(&self) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = Some(KeyAway::Sealed);
    }
}

impl KeyFunction for SimulatedKey {
    fn compute(&self, input: &[u8; KEY_INPUT_BYTES]) -> Result<[u8; 16], KeyAway> {
        if let Some(away) = *self.away.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(away);
        }
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&[self.byte; 32]).expect("HMAC takes keys of any length");
        mac.update(input);
        let mut made = [0; 16];
        made.copy_from_slice(&mac.finalize().into_bytes()[..16]);
        Ok(made)
    }
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators"): small, seeded, good enough for tests.
#[derive(Clone, Debug)]
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

impl SimulatedVolume {
    /// A volume of `len` that was never written.
    pub fn new(len: ByteLen) -> Self {
        Self::with_storage(Storage { len: len.0, ..Storage::default() })
    }

    fn with_storage(storage: Storage) -> Self {
        Self { storage: Arc::new(Mutex::new(storage)), key_gone: Arc::new(AtomicBool::new(false)) }
    }

    fn lock(&self) -> MutexGuard<'_, Storage> {
        self.storage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes flush a promise that is not kept.
    pub fn set_flush_is_noop(&self, noop: bool) {
        self.lock().flush_is_noop = noop;
    }

    /// Limits the sectors that may be allocated; `None` lifts the limit.
    pub fn set_capacity(&self, bytes: Option<ByteLen>) {
        let sectors = bytes.map(|bytes| usize::try_from(bytes.0 / SECTOR_U64).unwrap_or(usize::MAX));
        self.lock().capacity = sectors;
    }

    /// Makes every read fail with an I/O error, or no longer.
    pub fn set_failing_reads(&self, failing: bool) {
        self.lock().failing_reads = failing;
    }

    /// Makes every write find the pool full, those over what is there as well: after a snapshot each of them needs room. Or no longer.
    pub fn set_refusing_writes(&self, refusing: bool) {
        self.lock().refusing_writes = refusing;
    }

    /// Sectors that take up space now.
    pub fn allocated_sectors(&self) -> usize {
        self.lock().allocated()
    }

    /// Writes, trims and flushes so far.
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// The power goes at step `step`: it and everything after it fails.
    pub fn cut_at(&self, step: u64) {
        self.lock().cut_at = Some(step);
    }

    /// The power goes when the `count`-th flush from now is asked for: with the most that was not yet durable.
    pub fn cut_at_flush(&self, count: u64) {
        let mut storage = self.lock();
        storage.cut_at_flush = Some(storage.flushes + count);
    }

    /// The key is gone for every clone of this handle.
    pub fn wipe_key(&self) {
        self.key_gone.store(true, Ordering::SeqCst);
    }

    /// A new handle on the same storage, with a key.
    pub fn unlocked_again(&self) -> Self {
        Self { storage: Arc::clone(&self.storage), key_gone: Arc::new(AtomicBool::new(false)) }
    }

    /// What is left after the power was cut now; `seed` decides what becomes of the writes that were not flushed.
    pub fn power_cut(&self, seed: u64) -> Self {
        let storage = self.lock();
        let mut random = SplitMix64(seed);
        let mut durable = storage.durable.clone();
        for (sector, content) in &storage.log {
            match (random.below(4), content) {
                (0, _) => {}
                (1, Some(new)) => {
                    let old = durable.entry(*sector).or_insert_with(|| Box::new([0; SECTOR]));
                    for (old, new) in old.chunks_exact_mut(TEAR).zip(new.chunks_exact(TEAR)) {
                        if random.below(2) == 0 {
                            old.copy_from_slice(new);
                        }
                    }
                }
                (_, Some(new)) => drop(durable.insert(*sector, new.clone())),
                (_, None) => drop(durable.remove(sector)),
            }
        }
        Self::with_storage(Storage { len: storage.len, durable, ..Storage::default() })
    }

    fn check(&self) -> Result<MutexGuard<'_, Storage>, BlockError> {
        if self.key_gone.load(Ordering::SeqCst) {
            return Err(BlockError::new(BlockErrorKind::KeyGone, "the key was wiped"));
        }
        Ok(self.lock())
    }
}

impl Storage {
    /// A durable sector that was trimmed is the pool's again only once the trim is durable too.
    fn allocated(&self) -> usize {
        self.durable.len() + self.fresh
    }

    /// Sectors of `range` that hold something, ascending.
    fn present(&self, range: &std::ops::Range<u64>) -> Vec<u64> {
        let durable = self.durable.range(range.clone()).map(|(sector, _)| *sector);
        let changed = self.changed.range(range.clone()).map(|(sector, _)| *sector);
        let sectors: BTreeSet<u64> = durable.chain(changed).collect();
        sectors.into_iter().filter(|sector| self.get(*sector).is_some()).collect()
    }

    fn get(&self, sector: u64) -> Option<&Sector> {
        match self.changed.get(&sector) {
            Some(changed) => changed.as_ref(),
            None => self.durable.get(&sector),
        }
    }

    fn set(&mut self, sector: u64, content: Option<Sector>) {
        self.log.push((sector, content.clone()));
        let is_there = content.is_some();
        let was_there = self.changed.insert(sector, content).flatten().is_some();
        if !self.durable.contains_key(&sector) {
            self.fresh = self.fresh + usize::from(is_there) - usize::from(was_there);
        }
    }

    fn step(&mut self) -> Result<(), BlockError> {
        self.steps += 1;
        if self.cut_at.is_some_and(|cut| self.steps >= cut) {
            return Err(BlockError::new(BlockErrorKind::Failed, "the power was cut"));
        }
        Ok(())
    }

    fn check_range(&self, at: ByteOffset, len: u64) -> Result<(), BlockError> {
        if at.0.checked_add(len).is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        Err(BlockError::new(BlockErrorKind::Failed, "outside the volume"))
    }

    fn write(&mut self, at: ByteOffset, data: &[u8]) -> Result<(), BlockError> {
        self.check_range(at, data.len() as u64)?;
        if self.refusing_writes {
            return Err(BlockError::new(BlockErrorKind::NoSpace, "the simulated pool is full"));
        }
        let mut offset = usize::try_from(at.0 % SECTOR_U64).expect("less than a sector");
        let mut sector = at.0 / SECTOR_U64;
        let mut rest = data;
        while !rest.is_empty() {
            self.step()?;
            let (head, tail) = rest.split_at(rest.len().min(SECTOR - offset));
            let current = self.get(sector);
            let full = self.capacity.is_some_and(|capacity| self.allocated() >= capacity);
            if current.is_none() && full && !self.durable.contains_key(&sector) {
                return Err(BlockError::new(BlockErrorKind::NoSpace, "the simulated pool is full"));
            }
            let mut content = current.cloned().unwrap_or_else(|| Box::new([0; SECTOR]));
            content[offset..offset + head.len()].copy_from_slice(head);
            self.set(sector, Some(content));
            (rest, offset, sector) = (tail, 0, sector + 1);
        }
        Ok(())
    }
}

impl BlockVolume for SimulatedVolume {
    fn len(&self) -> ByteLen {
        ByteLen(self.lock().len)
    }

    fn read(&self, at: ByteOffset, out: &mut [u8]) -> Result<(), BlockError> {
        let storage = self.check()?;
        storage.check_range(at, out.len() as u64)?;
        if storage.cut_at.is_some_and(|cut| storage.steps >= cut) {
            return Err(BlockError::new(BlockErrorKind::Failed, "the power was cut"));
        }
        if storage.failing_reads {
            return Err(BlockError::new(BlockErrorKind::Io, "reads fail"));
        }
        let mut offset = usize::try_from(at.0 % SECTOR_U64).expect("less than a sector");
        let mut sector = at.0 / SECTOR_U64;
        let mut rest = out;
        while !rest.is_empty() {
            let len = rest.len().min(SECTOR - offset);
            let (head, tail) = rest.split_at_mut(len);
            match storage.get(sector) {
                Some(content) => head.copy_from_slice(&content[offset..offset + len]),
                None => head.fill(0),
            }
            (rest, offset, sector) = (tail, 0, sector + 1);
        }
        Ok(())
    }

    fn write(&self, at: ByteOffset, data: &[u8]) -> Result<(), BlockError> {
        self.check()?.write(at, data)
    }

    fn write_allocated_zeros(&self, at: ByteOffset, len: ByteLen) -> Result<(), BlockError> {
        let zeros = vec![0; usize::try_from(len.0).expect("a length that fits memory")];
        self.check()?.write(at, &zeros)
    }

    fn trim(&self, at: ByteOffset, len: ByteLen) -> Result<(), BlockError> {
        let mut storage = self.check()?;
        storage.check_range(at, len.0)?;
        storage.step()?;
        let whole = at.0.div_ceil(SECTOR_U64)..(at.0 + len.0) / SECTOR_U64;
        storage.present(&whole).into_iter().for_each(|sector| storage.set(sector, None));
        Ok(())
    }

    fn flush(&self) -> Result<(), BlockError> {
        let mut storage = self.check()?;
        storage.flushes += 1;
        if storage.cut_at_flush == Some(storage.flushes) {
            storage.cut_at = Some(storage.steps);
        }
        storage.step()?;
        if storage.flush_is_noop {
            return Ok(());
        }
        storage.log.clear();
        storage.fresh = 0;
        for (sector, content) in std::mem::take(&mut storage.changed) {
            match content {
                Some(content) => drop(storage.durable.insert(sector, content)),
                None => drop(storage.durable.remove(&sector)),
            }
        }
        Ok(())
    }

    fn allocated(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<(ByteLen, bool)>, BlockError> {
        let storage = self.check()?;
        storage.check_range(at, len.0)?;
        let range = at.0 / SECTOR_U64..(at.0 + len.0) / SECTOR_U64;
        let mut pieces: Vec<(ByteLen, bool)> = Vec::new();
        let mut add = |sectors: u64, allocated: bool| match pieces.last_mut() {
            _ if sectors == 0 => {}
            Some((len, last)) if *last == allocated => len.0 += sectors * SECTOR_U64,
            _ => pieces.push((ByteLen(sectors * SECTOR_U64), allocated)),
        };
        let mut next = range.start;
        for sector in storage.present(&range) {
            add(sector - next, false);
            add(1, true);
            next = sector + 1;
        }
        add(range.end - next, false);
        Ok(pieces)
    }

    fn check_key(&self) -> Result<(), BlockError> {
        self.check().map(drop)
    }
}
