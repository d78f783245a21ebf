//! A seeded source of choices, shared by the tests of this crate.

use std::time::Duration;

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

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn bytes(&mut self, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; index(len)];
        for chunk in bytes.chunks_mut(8) {
            let random = self.next().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
        bytes
    }
}

pub(crate) fn index(position: u64) -> usize {
    usize::try_from(position).unwrap()
}

/// The seed of this run, printed so that a failure can be replayed with NIGHTLATCH_SEED.
pub(crate) fn seed() -> u64 {
    let seed = match std::env::var("NIGHTLATCH_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => u64::from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos()),
    };
    println!("NIGHTLATCH_SEED={seed}");
    seed
}

/// How long a random test goes on: `seconds`, or NIGHTLATCH_SOAK_SECONDS.
pub(crate) fn soak(seconds: u64) -> Duration {
    Duration::from_secs(
        std::env::var("NIGHTLATCH_SOAK_SECONDS").map_or(seconds, |text| text.parse().unwrap()),
    )
}
