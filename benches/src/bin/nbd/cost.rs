//! What sealing alone costs on this machine, measured in the run: what ours may cost more than a server in clear. Cipher, keyed tag and
//! checksum of every sector, since what is measured verifies what it reads.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use aes_xts::{
    Binding, Cipher, Kernel, Record, SCHEDULE_WORDS, SCRATCH_WORDS, Scratch, Sectors, TAG_WORDS, TagSchedule,
    XtsSchedule,
};
use anyhow::{Result, anyhow};
use benches::{median, rate};
use units::SECTOR_BYTES;

const KEY: [u8; 64] = {
    let mut key = [7; 64];
    key[40] = 9;
    key
};

#[repr(C, align(64))]
struct Aligned<const N: usize>([AtomicU64; N]);

pub(crate) struct Cost {
    /// Microseconds for a sector alone, and for each of 16 at once.
    alone_us: f64,
    together_us: f64,
}

impl Cost {
    pub(crate) fn measure() -> Result<Self> {
        let schedule = Box::new(Aligned::<SCHEDULE_WORDS>(std::array::from_fn(|_| AtomicU64::new(0))));
        let scratch = Box::new(Aligned::<SCRATCH_WORDS>(std::array::from_fn(|_| AtomicU64::new(0))));
        let refused = |error| anyhow!("a key that is fine: {error}");
        XtsSchedule::over(&schedule.0).expand(&KEY).map_err(refused)?;
        let cipher =
            Cipher::new(Kernel::fastest(), XtsSchedule::over(&schedule.0), Scratch::over(&scratch.0));
        let tags = Box::new(Aligned::<TAG_WORDS>(std::array::from_fn(|_| AtomicU64::new(0))));
        TagSchedule::over(&tags.0).expand(&[3; 16], &[4; 32]);
        let each_us = |sectors: usize| -> Result<f64> {
            let mut data = vec![0; SECTOR_BYTES * sectors];
            let (sequences, mut records) = (vec![5; sectors], vec![Record::default(); sectors]);
            let mut rates = Vec::new();
            for _ in 0..5 {
                rates.push(rate(Duration::from_millis(20), || {
                    let binding = Binding { domain: [1; 16], epoch: 1, sequences: &sequences };
                    let place = Sectors { first: 1, bytes: SECTOR_BYTES };
                    cipher
                        .seal(TagSchedule::over(&tags.0), place, binding, &mut data, &mut records)
                        .map_err(|error| anyhow!("whole sectors: {error}"))?;
                    Ok(sectors as u64)
                })?);
            }
            Ok(1e6 / median(rates))
        };
        Ok(Self { alone_us: each_us(1)?, together_us: each_us(16)? })
    }

    /// Microseconds for a request of `bytes`.
    pub(crate) fn of_bytes_us(&self, bytes: u32) -> f64 {
        let sectors = f64::from(bytes) / 4096.0;
        if sectors <= 1.0 { self.alone_us } else { sectors * self.together_us }
    }
}
