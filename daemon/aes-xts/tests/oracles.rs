//! The cipher against the standard's vectors and against the `xts-mode` crate.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::atomic::{AtomicU64, Ordering};

use aes::Aes256;
use aes::cipher::KeyInit;
use aes_xts::{SCHEDULE_WORDS, XtsKeyError, XtsSchedule, decrypt, encrypt};
use xts_mode::{Xts128, get_tweak_default};

const VECTORS: &str = include_str!("vectors/ieee1619-xts-aes-256.txt");

type Words = [AtomicU64; SCHEDULE_WORDS];

fn words() -> Words {
    std::array::from_fn(|_| AtomicU64::new(0))
}

fn expanded<'a>(words: &'a Words, key: &[u8; 64]) -> &'a XtsSchedule {
    let schedule = XtsSchedule::over(words);
    schedule.expand(key).unwrap();
    schedule
}

fn oracle(key: &[u8; 64]) -> Xts128<Aes256> {
    let (cipher_key, tweak_key) = key.split_at(32);
    Xts128::new(Aes256::new_from_slice(cipher_key).unwrap(), Aes256::new_from_slice(tweak_key).unwrap())
}

/// SplitMix64: small, seedable, good enough to choose test inputs.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

fn seed() -> u64 {
    let seed = match std::env::var("NIGHTLATCH_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs(),
    };
    println!("NIGHTLATCH_SEED={seed}");
    seed
}

#[test]
fn ieee_1619_vectors_hold_in_both_directions() {
    let mut lines =
        VECTORS.lines().filter(|line| !line.starts_with('#')).map(|line| line.split_once(' ').unwrap());
    let mut key = [0; 64];
    for half in key.chunks_exact_mut(32) {
        hex::decode_to_slice(lines.next().unwrap().1, half).unwrap();
    }
    let plaintext: Vec<u8> = (0..=255).chain(0..=255).collect();
    let words = words();
    let schedule = expanded(&words, &key);
    let mut vectors = 0;
    for (number, ciphertext) in lines {
        let number = u128::from_str_radix(number, 16).unwrap();
        let mut data = plaintext.clone();
        assert_eq!(encrypt(schedule, number, 512, &mut data), 32);
        assert_eq!(hex::encode(&data), ciphertext, "data unit {number:x}");
        assert_eq!(decrypt(schedule, number, 512, &mut data), 32);
        assert_eq!(data, plaintext, "data unit {number:x}");
        vectors += 1;
    }
    assert_eq!(vectors, 5);
}

#[test]
fn random_keys_sizes_and_numbers_agree_with_xts_mode() {
    let mut random = Random(seed());
    for case in 0..200 {
        let mut key = [0; 64];
        random.fill(&mut key);
        let words = words();
        let schedule = expanded(&words, &key);
        let oracle = oracle(&key);
        let sector_bytes = match case % 4 {
            0 => 4096,
            1 => 512,
            2 => 16 * (1 + random.below(64)),
            _ => 16 * (32 + random.below(4096 - 31)),
        };
        let sectors = 1 + random.below((64 * 1024 / sector_bytes).clamp(1, 20));
        // Low, above 2^64, and just below 2^128 without wrapping, which the oracle does not do.
        let number = match case % 3 {
            0 => u128::from(random.next() >> 20),
            1 => u128::from(random.next()) << 64 | u128::from(random.next()) >> 1,
            _ => u128::MAX - sectors as u128,
        };
        let mut clear = vec![0; sector_bytes * sectors];
        random.fill(&mut clear);
        let context = format!("case {case}: {sectors} sectors of {sector_bytes} from {number}");

        let mut expected = clear.clone();
        oracle.encrypt_area(&mut expected, sector_bytes, number, get_tweak_default);
        let mut actual = clear.clone();
        assert_eq!(encrypt(schedule, number, sector_bytes, &mut actual), clear.len() as u64 / 16);
        assert!(actual == expected, "encrypt, {context}");
        decrypt(schedule, number, sector_bytes, &mut actual);
        assert!(actual == clear, "decrypt, {context}");
    }
}

#[test]
fn a_run_of_sectors_is_the_same_as_its_sectors_one_by_one() {
    let mut random = Random(seed());
    let mut key = [0; 64];
    random.fill(&mut key);
    let words = words();
    let schedule = expanded(&words, &key);
    for sectors in 1..=19u8 {
        let mut together = vec![0; 4096 * usize::from(sectors)];
        random.fill(&mut together);
        let mut apart = together.clone();
        let first = u128::from(u64::MAX) - 4;
        encrypt(schedule, first, 4096, &mut together);
        for (index, sector) in (0u128..).zip(apart.chunks_exact_mut(4096)) {
            encrypt(schedule, first + index, 4096, sector);
        }
        assert!(together == apart, "{sectors} sectors");
    }
}

#[test]
fn no_data_is_no_work() {
    let words = words();
    let schedule = expanded(&words, &std::array::from_fn(|index| u8::try_from(index).unwrap()));
    assert_eq!(encrypt(schedule, 0, 4096, &mut []), 0);
}

#[test]
fn equal_halves_are_refused_and_leave_nothing_behind() {
    let words = words();
    let schedule = XtsSchedule::over(&words);
    assert_eq!(schedule.expand(&[0x42; 64]), Err(XtsKeyError::EqualHalves));
    assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
    let mut nearly = [0x42; 64];
    nearly[63] ^= 1;
    assert_eq!(schedule.expand(&nearly), Ok(()));
}

#[test]
fn a_zeroed_schedule_holds_no_word_of_the_key() {
    let words = words();
    let schedule = expanded(&words, &std::array::from_fn(|index| u8::try_from(index).unwrap()));
    let zeros = words.iter().filter(|word| word.load(Ordering::Relaxed) == 0).count();
    assert_eq!(zeros, 0, "every word of a schedule is used");
    schedule.zero();
    assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
}

/// FIPS 197, A.3: the expansion itself, since a scanner for residue relies on knowing it.
#[test]
fn the_expansion_matches_fips_197() {
    let mut key = [0; 64];
    hex::decode_to_slice("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4", &mut key[..32])
        .unwrap();
    let words = words();
    expanded(&words, &key);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
    assert_eq!(hex::encode(&bytes[32..48]), "9ba354118e6925afa51a8b5f2067fcde", "w8 to w11");
    assert_eq!(hex::encode(&bytes[224..240]), "fe4890d1e6188d0b046df344706c631e", "w56 to w59");
    assert_eq!(bytes[240..256], bytes[224..240], "decryption starts with the last round key");
    assert_eq!(bytes[464..480], bytes[..16], "and ends with the first");
}

#[test]
#[should_panic(expected = "a sector is whole blocks")]
fn a_sector_of_broken_blocks_is_a_bug_of_the_caller() {
    let words = words();
    encrypt(
        expanded(&words, &std::array::from_fn(|index| u8::try_from(index).unwrap())),
        0,
        24,
        &mut [0; 48],
    );
}
