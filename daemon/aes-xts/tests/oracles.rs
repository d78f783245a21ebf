//! Every kernel against the standard's vectors and against other people's ciphers.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::sync::atomic::Ordering;

use aes_xts::{BatchError, Direction, Kernel, KernelError, SECTOR_BYTES_MAX, XtsKeyError, XtsSchedule};
use support::{Key, Random, oracle, plain_key, seed};

const IEEE_1619: &str = include_str!("vectors/ieee1619-xts-aes-256.txt");

/// NIST's response file as published (CAVS 11.0, XTSTestVectors.zip, tweaks as 128 bits).
const NIST_CAVP: &str = include_str!("vectors/XTSGenAES256.rsp");

use Direction::{Decrypt, Encrypt};

/// IEEE 1619-2018, annex B, vectors 10 to 14: all of XTS-AES-256 with whole blocks.
#[test]
fn ieee_1619_vectors_hold_in_both_directions() {
    let mut lines =
        IEEE_1619.lines().filter(|line| !line.starts_with('#')).map(|line| line.split_once(' ').unwrap());
    let mut key = [0; 64];
    for half in key.chunks_exact_mut(32) {
        hex::decode_to_slice(lines.next().unwrap().1, half).unwrap();
    }
    let vectors: Vec<_> = lines.collect();
    assert_eq!(vectors.len(), 5);
    let plaintext: Vec<u8> = (0..=255).chain(0..=255).collect();
    let key = Key::new(&key);
    for kernel in Kernel::all() {
        for (number, ciphertext) in &vectors {
            let context = format!("{}, data unit {number}", kernel.name());
            let sectors = (u128::from_str_radix(number, 16).unwrap(), 512);
            let mut data = plaintext.clone();
            assert_eq!(key.apply(kernel, Encrypt, sectors, &mut data), Ok(32));
            assert_eq!(hex::encode(&data), *ciphertext, "{context}");
            assert_eq!(key.apply(kernel, Decrypt, sectors, &mut data), Ok(32));
            assert_eq!(data, plaintext, "{context}");
        }
    }
}

/// NIST's data units have two or three blocks and ours at least 32. Without ciphertext stealing a block depends on its key,
/// its tweak and its place alone, so a unit of ours that begins like one of NIST's must begin like its ciphertext.
#[test]
fn nist_cavp_vectors_of_whole_blocks_hold_in_both_directions() {
    let mut random = Random(seed());
    let (mut checked, mut broken_blocks) = (0, 0);
    for record in NIST_CAVP.split("COUNT = ").skip(1) {
        let field = |name: &str| {
            let line = record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
            line.unwrap_or_else(|| panic!("no {name} in {record}")).trim()
        };
        if field("DataUnitLen").parse::<usize>().unwrap() % 128 != 0 {
            broken_blocks += 1;
            continue;
        }
        let mut key = [0; 64];
        hex::decode_to_slice(field("Key"), &mut key).unwrap();
        let mut tweak = [0; 16];
        hex::decode_to_slice(field("i"), &mut tweak).unwrap();
        let (clear, sealed) = (hex::decode(field("PT")).unwrap(), hex::decode(field("CT")).unwrap());
        let key = Key::new(&key);
        let sectors = (u128::from_le_bytes(tweak), 512);
        for kernel in Kernel::all() {
            for (direction, from, to) in [(Encrypt, &clear, &sealed), (Decrypt, &sealed, &clear)] {
                let mut data = vec![0; 512];
                random.fill(&mut data);
                data[..from.len()].copy_from_slice(from);
                assert_eq!(key.apply(kernel, direction, sectors, &mut data), Ok(32));
                assert_eq!(data[..to.len()], to[..], "{}, {direction:?}, COUNT = {record}", kernel.name());
            }
        }
        checked += 1;
    }
    assert_eq!((checked, broken_blocks), (600, 400), "the file was misread");
}

/// A random batch and what it should become.
struct Case {
    key: [u8; 64],
    sectors: (u128, usize),
    clear: Vec<u8>,
    context: String,
}

impl Case {
    fn random(random: &mut Random, case: usize) -> Self {
        let bytes = match case % 6 {
            0 => 4096,
            1 => 512,
            2 => 512 * (1 + random.below(SECTOR_BYTES_MAX / 512)),
            3 => 256 * (2 + random.below(40)),
            4 => 16 * (32 + random.below(100)),
            _ => 16 * (32 + random.below(SECTOR_BYTES_MAX / 16 - 31)),
        };
        let count = 1 + random.below((128 * 1024 / bytes).clamp(1, 150));
        let first = match case % 4 {
            0 => u128::from(random.next() >> 20),
            1 => u128::from(random.next()) << 64 | u128::from(random.next()),
            2 => u128::from(u64::MAX) - random.below(count) as u128,
            // Wraps at 2^128.
            _ => u128::MAX - random.below(count) as u128,
        };
        let mut clear = vec![0; bytes * count];
        random.fill(&mut clear);
        let context = format!("case {case}: {count} sectors of {bytes} from {first:#x}");
        Self { key: random.key(), sectors: (first, bytes), clear, context }
    }
}

#[test]
fn every_kernel_agrees_with_three_other_ciphers() {
    let mut random = Random(seed());
    let oracles = oracle::all();
    let begun = std::time::Instant::now();
    let soak = std::env::var("NIGHTLATCH_SOAK_SECONDS").map_or(0, |text| text.parse().unwrap());
    for number in 0.. {
        if number >= 120 && begun.elapsed().as_secs() >= soak {
            println!("{number} cases");
            break;
        }
        let case = Case::random(&mut random, number);
        let oracle = &oracles[number % oracles.len()];
        let mut sealed = case.clear.clone();
        oracle.units(Encrypt, &case.key, case.sectors, &mut sealed);
        let mut opened = case.clear.clone();
        oracle.units(Decrypt, &case.key, case.sectors, &mut opened);
        let key = Key::new(&case.key);
        for kernel in Kernel::all() {
            let context = format!("{} against {}, {}", kernel.name(), oracle.name(), case.context);
            for (direction, expected) in [(Encrypt, &sealed), (Decrypt, &opened)] {
                let mut buffer = Unaligned::new(&case.clear, random.below(64));
                let blocks = key.apply(kernel, direction, case.sectors, buffer.bytes());
                assert_eq!(blocks, Ok(case.clear.len() as u64 / 16));
                assert!(buffer.bytes() == expected, "{direction:?} in place, {context}");
                assert!(buffer.edges_are_untouched(), "{direction:?} in place, {context}");
                let mut buffer = Unaligned::new(&vec![0xEE; expected.len()], random.below(64));
                let source = Unaligned::new(&case.clear, random.below(64));
                key.apply_into(kernel, direction, case.sectors, source.as_bytes(), buffer.bytes()).unwrap();
                assert!(buffer.bytes() == expected, "{direction:?} apart, {context}");
                assert!(buffer.edges_are_untouched(), "{direction:?} apart, {context}");
                assert!(source.as_bytes() == case.clear, "{direction:?} apart changed its source, {context}");
            }
            assert!(scratch_is_zero(&key), "{context} left something in the scratch");
        }
    }
}

fn scratch_is_zero(key: &Key) -> bool {
    key.scratch_words().iter().all(|word| word.load(Ordering::Relaxed) == 0)
}

/// A buffer at some distance from a cache line, with marks on both sides.
struct Unaligned {
    all: Vec<u8>,
    at: usize,
    len: usize,
}

impl Unaligned {
    const MARK: u8 = 0xA7;

    fn new(bytes: &[u8], distance: usize) -> Self {
        let mut all = vec![Self::MARK; bytes.len() + 192];
        let at = all.as_ptr().align_offset(64) + distance;
        all[at..][..bytes.len()].copy_from_slice(bytes);
        Self { all, at, len: bytes.len() }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.all[self.at..][..self.len]
    }

    fn as_bytes(&self) -> &[u8] {
        &self.all[self.at..][..self.len]
    }

    fn edges_are_untouched(&self) -> bool {
        let (before, rest) = self.all.split_at(self.at);
        before.iter().chain(&rest[self.len..]).all(|byte| *byte == Self::MARK)
    }
}

#[test]
fn a_run_of_sectors_is_the_same_as_its_sectors_one_by_one() {
    let mut random = Random(seed());
    let key = Key::new(&random.key());
    for kernel in Kernel::all() {
        for count in (1..=19).chain([63, 64, 65, 66, 127, 129]) {
            for bytes in [512, 768, 1024, 4096] {
                let mut together = vec![0; bytes * count];
                random.fill(&mut together);
                let mut apart = together.clone();
                let first = u128::from(u64::MAX) - 4;
                key.apply(kernel, Encrypt, (first, bytes), &mut together).unwrap();
                for (index, sector) in (0_u128..).zip(apart.chunks_exact_mut(bytes)) {
                    key.apply(kernel, Encrypt, (first + index, bytes), sector).unwrap();
                }
                assert!(together == apart, "{}: {count} sectors of {bytes}", kernel.name());
            }
        }
    }
}

#[test]
fn no_data_is_no_work() {
    let key = Key::new(&plain_key());
    for kernel in Kernel::all() {
        assert_eq!(key.apply(kernel, Encrypt, (0, 4096), &mut []), Ok(0));
    }
}

#[test]
fn lengths_are_refused_by_kind_and_change_nothing() {
    let key = Key::new(&plain_key());
    for kernel in Kernel::all() {
        for (bytes, len, expected) in [
            (520, 1040, BatchError::BrokenBlock(520)),
            (0, 0, BatchError::SectorSize(0)),
            (496, 496, BatchError::SectorSize(496)),
            (65_552, 65_552, BatchError::SectorSize(65_552)),
            (4096, 4095, BatchError::BrokenSector { bytes: 4095, sector: 4096 }),
            (512, 4097, BatchError::BrokenSector { bytes: 4097, sector: 512 }),
        ] {
            let mut data = vec![0x3C; len];
            assert_eq!(key.apply(kernel, Encrypt, (0, bytes), &mut data), Err(expected));
            assert!(data.iter().all(|byte| *byte == 0x3C));
        }
        let mut target = [0x3C; 512];
        let refused = key.apply_into(kernel, Encrypt, (0, 512), &[0; 1024], &mut target);
        assert_eq!(refused, Err(BatchError::Lengths { from: 1024, into: 512 }));
        assert_eq!(target, [0x3C; 512]);
        for bytes in [512, SECTOR_BYTES_MAX] {
            assert_eq!(key.apply(kernel, Encrypt, (0, bytes), &mut vec![0; bytes]), Ok(bytes as u64 / 16));
        }
    }
}

#[test]
fn equal_halves_are_refused_and_leave_nothing_behind() {
    let key = Key::empty();
    assert_eq!(key.schedule().expand(&[0x42; 64]), Err(XtsKeyError::EqualHalves));
    assert!(key.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
    let mut nearly = [0x42; 64];
    nearly[63] ^= 1;
    assert_eq!(key.schedule().expand(&nearly), Ok(()));
}

#[test]
fn a_zeroed_schedule_holds_no_word_of_the_key() {
    let key = Key::new(&plain_key());
    let zeros = key.words().iter().filter(|word| word.load(Ordering::Relaxed) == 0).count();
    assert_eq!(zeros, 0, "every word of a schedule is used");
    key.schedule().zero();
    assert!(key.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
}

fn bytes_of(schedule: &Key) -> Vec<u8> {
    schedule.words().iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect()
}

/// FIPS 197, A.3: the expansion itself, since a scanner for residue relies on knowing it.
#[test]
fn the_expansion_matches_fips_197() {
    let mut key = plain_key();
    hex::decode_to_slice("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4", &mut key[..32])
        .unwrap();
    let bytes = bytes_of(&Key::new(&key));
    assert_eq!(hex::encode(&bytes[32..48]), "9ba354118e6925afa51a8b5f2067fcde", "w8 to w11");
    assert_eq!(hex::encode(&bytes[224..240]), "fe4890d1e6188d0b046df344706c631e", "w56 to w59");
    assert_eq!(bytes[240..256], bytes[224..240], "decryption starts with the last round key");
    assert_eq!(bytes[464..480], bytes[..16], "and ends with the first");
}

#[test]
fn both_ways_of_expanding_give_the_same_words() {
    let mut random = Random(seed());
    for _ in 0..200 {
        let key = random.key();
        let portable = Key::empty();
        portable.schedule().expand_portably(&key).unwrap();
        assert!(bytes_of(&Key::new(&key)) == bytes_of(&portable));
    }
}

#[test]
fn a_kernel_is_found_by_its_name_and_by_no_other() {
    for kernel in Kernel::all() {
        assert_eq!(Kernel::by_name(kernel.name()), Ok(kernel));
    }
    assert_eq!(Kernel::all().next(), Some(Kernel::fastest()));
    let refused = Kernel::by_name("rot13").unwrap_err();
    assert!(matches!(&refused, KernelError::Unknown { name, .. } if &**name == "rot13"));
    assert!(refused.to_string().contains("portable"), "{refused}");
}

#[test]
fn a_measured_speed_is_one_that_a_machine_can_have() {
    let begun = std::time::Instant::now();
    for kernel in Kernel::all() {
        let speed = kernel.measure(|| begun.elapsed());
        assert!((1 << 20..1 << 38).contains(&speed), "{}: {speed} bytes a second", kernel.name());
    }
}

#[test]
fn a_schedule_is_a_view() {
    let key = Key::new(&plain_key());
    assert!(std::ptr::eq(XtsSchedule::over(key.words()), key.schedule()));
}
