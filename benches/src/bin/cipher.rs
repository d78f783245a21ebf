//! AES-256-XTS by this machine's kernel beside the `xts-mode` crate, on one core.
//!
//! The batch is what a device request carries; 4 KiB is the sector.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use aes::Aes256;
use aes::cipher::KeyInit;
use aes_xts::{Cipher, Direction, Kernel, SCHEDULE_WORDS, SCRATCH_WORDS, Scratch, Sectors, XtsSchedule};
use anyhow::{Result, anyhow, ensure};
use benches::{Figure, ROUNDS, median, publish, rate};
use xts_mode::{Xts128, get_tweak_default};

/// Bytes encrypted in place by one call.
const BATCH_BYTES: usize = 256 * 1024;

/// Sector sizes measured; 4096 is the one in use.
const SECTOR_BYTES: [usize; 3] = [512, 4096, 16 * 1024];

/// How long one subject's turn at one case lasts.
const TURN: Duration = Duration::from_millis(300);

/// Any key with two different halves.
const KEY: [u8; 64] = {
    let mut key = [7_u8; 64];
    key[40] = 9;
    key
};

type Work<'a> = Box<dyn FnMut(&mut [u8], usize) + 'a>;

fn main() -> Result<()> {
    let words: [AtomicU64; SCHEDULE_WORDS] = std::array::from_fn(|_| AtomicU64::new(0));
    let ours = XtsSchedule::over(&words);
    ours.expand(&KEY).map_err(|error| anyhow!("a key that must be accepted: {error}"))?;
    let half = |range| Aes256::new_from_slice(&KEY[range]).map_err(|error| anyhow!("{error}"));
    let peer = Xts128::new(half(0..32)?, half(32..64)?);
    let scratch: [AtomicU64; SCRATCH_WORDS] = std::array::from_fn(|_| AtomicU64::new(0));
    let kernel = Kernel::fastest();
    let ours_name = kernel.name();
    let ours = Cipher::new(kernel, ours, Scratch::over(&scratch));
    agree(ours, &peer)?;
    let mut buffer = vec![0x5A_u8; BATCH_BYTES];
    let mut figures = Vec::new();
    for sector_bytes in SECTOR_BYTES {
        let mut subjects: [(&str, &str, Work<'_>); 4] = [
            (
                "encrypt",
                ours_name,
                Box::new(|data, sector| {
                    run(ours, Direction::Encrypt, sector, data);
                }),
            ),
            (
                "encrypt",
                "xts-mode",
                Box::new(|data, sector| peer.encrypt_area(data, sector, 1, get_tweak_default)),
            ),
            (
                "decrypt",
                ours_name,
                Box::new(|data, sector| {
                    run(ours, Direction::Decrypt, sector, data);
                }),
            ),
            (
                "decrypt",
                "xts-mode",
                Box::new(|data, sector| peer.decrypt_area(data, sector, 1, get_tweak_default)),
            ),
        ];
        let mut values = vec![Vec::new(); subjects.len()];
        for _ in 0..ROUNDS {
            for ((_, _, cipher), values) in subjects.iter_mut().zip(&mut values) {
                let bytes = rate(TURN, || {
                    cipher(&mut buffer, sector_bytes);
                    Ok(BATCH_BYTES as u64)
                })?;
                values.push(bytes / f64::from(1 << 30));
            }
        }
        for ((case, subject, _), values) in subjects.iter().zip(values) {
            let case = format!("{case}, {sector_bytes} B sectors");
            figures.push(Figure::new(&case, subject, median(values), "GiB/s"));
        }
    }
    publish("cipher", &figures)
}

fn run(cipher: Cipher<'_>, direction: Direction, bytes: usize, data: &mut [u8]) {
    let done = cipher.apply(direction, Sectors { first: 1, bytes }, data);
    assert!(done.is_ok(), "whole sectors: {done:?}");
}

/// A fast wrong cipher would be no result.
fn agree(ours: Cipher<'_>, peer: &Xts128<Aes256>) -> Result<()> {
    let mut one = vec![0xC3_u8; 8 * 4096];
    let mut other = one.clone();
    run(ours, Direction::Encrypt, 4096, &mut one);
    peer.encrypt_area(&mut other, 4096, 1, get_tweak_default);
    ensure!(one == other, "our kernel and xts-mode disagree");
    Ok(())
}
