//! What the tests of the cipher share: random inputs with a seed, memory for schedules, and other people's ciphers.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod oracle;

use std::sync::atomic::AtomicU64;

use aes_xts::{BatchError, Direction, Kernel, SCHEDULE_WORDS, SCRATCH_WORDS, Scratch, Sectors, XtsSchedule};

/// A schedule and scratch in ordinary memory, as only a test may have.
pub(crate) struct Key {
    schedule: [AtomicU64; SCHEDULE_WORDS],
    scratch: [AtomicU64; SCRATCH_WORDS],
}

impl Key {
    pub(crate) fn new(key: &[u8; 64]) -> Self {
        let new = Self::empty();
        new.schedule().expand(key).unwrap();
        new
    }

    pub(crate) fn empty() -> Self {
        Self {
            schedule: std::array::from_fn(|_| AtomicU64::new(0)),
            scratch: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub(crate) fn schedule(&self) -> &XtsSchedule {
        XtsSchedule::over(&self.schedule)
    }

    pub(crate) fn words(&self) -> &[AtomicU64; SCHEDULE_WORDS] {
        &self.schedule
    }

    pub(crate) fn scratch(&self) -> &Scratch {
        Scratch::over(&self.scratch)
    }

    pub(crate) fn scratch_words(&self) -> &[AtomicU64; SCRATCH_WORDS] {
        &self.scratch
    }

    pub(crate) fn apply(
        &self,
        kernel: Kernel,
        direction: Direction,
        (first, bytes): (u128, usize),
        data: &mut [u8],
    ) -> Result<u64, BatchError> {
        kernel.apply(direction, self.schedule(), self.scratch(), Sectors { first, bytes }, data)
    }

    pub(crate) fn apply_into(
        &self,
        kernel: Kernel,
        direction: Direction,
        (first, bytes): (u128, usize),
        source: &[u8],
        target: &mut [u8],
    ) -> Result<u64, BatchError> {
        let sectors = Sectors { first, bytes };
        kernel.apply_into(direction, self.schedule(), self.scratch(), sectors, (source, target))
    }
}

/// SplitMix64: small, seedable, good enough to choose test inputs.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }

    pub(crate) fn key(&mut self) -> [u8; 64] {
        let mut key = [0; 64];
        self.fill(&mut key);
        key
    }
}

pub(crate) fn seed() -> u64 {
    let seed = match std::env::var("NIGHTLATCH_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) if cfg!(miri) => 1,
        Err(_) => std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs(),
    };
    println!("NIGHTLATCH_SEED={seed}");
    seed
}

/// A key of which every byte is different.
pub(crate) fn plain_key() -> [u8; 64] {
    std::array::from_fn(|index| u8::try_from(index).unwrap())
}
