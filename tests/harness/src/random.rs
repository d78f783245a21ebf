//! A small random source that replays from its seed, and where seeds come from.

use std::time::{SystemTime, UNIX_EPOCH};

/// Replays one run: the seed that a failed test printed.
pub const SEED_VARIABLE: &str = "NIGHTLATCH_SEED";

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Whether something happens that happens once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of `choices`.
    ///
    /// # Panics
    /// Where there are none.
    pub fn choose<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        let index = usize::try_from(self.below(choices.len() as u64)).unwrap_or(0);
        &choices[index]
    }

    /// An independent source: what it does is not disturbed by how often this one is asked.
    #[must_use]
    pub fn split(&mut self) -> Self {
        Self(self.bits())
    }
}

/// Scatters 64 bits over 64 bits.
pub fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The seed from the environment, or a fresh one. Callers print it.
///
/// # Panics
/// Where the variable is set to something that is not a number.
pub fn seed() -> u64 {
    if let Ok(text) = std::env::var(SEED_VARIABLE) {
        return text.parse().unwrap_or_else(|_| panic!("{SEED_VARIABLE}={text} is not a number"));
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    mix(since.as_secs() ^ u64::from(since.subsec_nanos()) << 32) >> 16
}
