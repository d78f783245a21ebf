//! One core's XTS throughput at three sector sizes, beside the `xts-mode` crate on the same `aes` crate:
//! `cargo run --release -p aes-xts --example throughput`.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use aes::cipher::KeyInit;
use aes_xts::{SCHEDULE_WORDS, XtsSchedule};

const BUFFER_BYTES: usize = 256 * 1024;
const RUN: Duration = Duration::from_millis(700);

fn gib_per_second(mut work: impl FnMut(&mut [u8])) -> f64 {
    let mut data = vec![0x5a; BUFFER_BYTES];
    work(&mut data);
    let start = Instant::now();
    let mut rounds = 0u32;
    while start.elapsed() < RUN {
        work(&mut data);
        rounds += 1;
    }
    f64::from(rounds) * BUFFER_BYTES as f64 / start.elapsed().as_secs_f64() / f64::from(1 << 30)
}

fn main() -> Result<(), aes_xts::XtsKeyError> {
    let key: [u8; 64] = std::array::from_fn(|index| u8::try_from(index).unwrap_or(0));
    let words: [AtomicU64; SCHEDULE_WORDS] = std::array::from_fn(|_| AtomicU64::new(0));
    let schedule = XtsSchedule::over(&words);
    schedule.expand(&key)?;
    let (cipher_key, tweak_key) = key.split_at(32);
    let halves = [cipher_key, tweak_key].map(|half| aes::Aes256::new_from_slice(half).expect("32 bytes"));
    let [cipher, tweak] = halves;
    let peer = xts_mode::Xts128::new(cipher, tweak);
    println!("{:>8}  {:>10}  {:>10}  {:>10}   GiB/s", "sector", "encrypt", "decrypt", "xts-mode");
    for sector_bytes in [512, 4096, 16384] {
        let encrypt = gib_per_second(|data| {
            aes_xts::encrypt(schedule, 7, sector_bytes, data);
        });
        let decrypt = gib_per_second(|data| {
            aes_xts::decrypt(schedule, 7, sector_bytes, data);
        });
        let other =
            gib_per_second(|data| peer.encrypt_area(data, sector_bytes, 7, xts_mode::get_tweak_default));
        println!("{sector_bytes:>8}  {encrypt:>10.2}  {decrypt:>10.2}  {other:>10.2}");
    }
    Ok(())
}
