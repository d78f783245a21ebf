//! Coverage-guided batches of the cipher: every kernel of this machine against the XTS, POLYVAL, AES and CRC-32C of others.
//!
//! An input chooses keys, sector size (also one that must be refused), number, count, alignments and data. Each kernel
//! encrypts, decrypts, seals and opens it, in place and apart; results, marks around the buffers, the source and the
//! scratch are checked. With `NIGHTLATCH_FUZZ_PLANT` set, what is expected is wrong on purpose: a run that then finds
//! nothing checks nothing.
#![no_main]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes_xts::{
    Binding, Cipher, Direction, Kernel, Record, SCHEDULE_WORDS, SCRATCH_WORDS, Scratch, Sectors, TAG_WORDS,
    TagSchedule, XtsSchedule,
};
use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use polyval::Polyval;
use polyval::universal_hash::UniversalHash;
use xts_mode::{Xts128, get_tweak_default};

/// Data of one input: more than a group of 64 sectors of 512 bytes, and half a sector of the largest size more than one.
const DATA_BYTES_MAX: usize = 96 * 1024;

#[derive(Debug)]
struct Case {
    key: [u8; 64],
    hash_key: [u8; 16],
    prf_key: [u8; 32],
    domain: [u8; 16],
    epoch: u32,
    first: u128,
    bytes: usize,
    clear: Vec<u8>,
    sequences: Vec<u64>,
    /// Distances of source and target from a cache line.
    distances: [usize; 2],
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let bytes = match input.int_in_range(0..=7_u8)? {
            0 => 512,
            1 => 4096,
            2 => 512 * input.int_in_range(1..=128)?,
            3 => 1024 * input.int_in_range(1..=64)?,
            4 => 256 * input.int_in_range(2..=40)?,
            5 | 6 => 16 * input.int_in_range(32..=4096)?,
            _ => input.int_in_range(1..=70_000)?,
        };
        let room = (DATA_BYTES_MAX / bytes).clamp(1, 140);
        let count = input.int_in_range(0..=room)?;
        let odd = if input.ratio(1, 16_u8)? { input.int_in_range(0..=40)? } else { 0 };
        let first = match input.int_in_range(0..=2_u8)? {
            0 => u128::from(input.arbitrary::<u32>()?),
            1 => input.arbitrary()?,
            _ => u128::MAX - input.int_in_range(0..=140_u128)?,
        };
        let distances = [input.int_in_range(0..=63)?, input.int_in_range(0..=63)?];
        let mut key = [0; 64];
        input.fill_buffer(&mut key)?;
        let mut case = Self {
            key,
            hash_key: input.arbitrary()?,
            prf_key: input.arbitrary()?,
            domain: input.arbitrary()?,
            epoch: input.arbitrary()?,
            first,
            bytes,
            clear: vec![0; bytes * count + odd],
            sequences: Vec::new(),
            distances,
        };
        // A seed spreads over the data; what is left of the input lies over their beginning and end.
        let mut state: u64 = input.arbitrary()?;
        for chunk in case.clear.chunks_mut(8) {
            chunk.copy_from_slice(&mixed(&mut state).to_le_bytes()[..chunk.len()]);
        }
        case.sequences = (0..count).map(|_| mixed(&mut state)).collect();
        let rest = input.bytes(input.len().min(case.clear.len()))?;
        let (begin, end) = rest.split_at(rest.len() / 2);
        case.clear[..begin.len()].copy_from_slice(begin);
        let at = case.clear.len() - end.len();
        case.clear[at..].copy_from_slice(end);
        Ok(case)
    }
}

/// SplitMix64.
fn mixed(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A buffer at some distance from a cache line, with marks on both sides.
struct Marked {
    all: Vec<u8>,
    at: usize,
    len: usize,
}

impl Marked {
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

    /// Its bytes, if nothing else was written.
    fn unmarked(&self) -> &[u8] {
        let (before, rest) = self.all.split_at(self.at);
        let (bytes, after) = rest.split_at(self.len);
        assert!(before.iter().chain(after).all(|byte| *byte == Self::MARK), "written past the end");
        bytes
    }
}

/// What others make of a case.
struct Expected {
    sealed: Vec<u8>,
    opened: Vec<u8>,
    /// Checksum and tag of each sealed sector.
    records: Vec<(u32, [u8; 16])>,
}

impl Case {
    fn is_valid(&self) -> bool {
        self.bytes.is_multiple_of(16)
            && (512..=65_536).contains(&self.bytes)
            && self.clear.len().is_multiple_of(self.bytes)
    }

    fn expected(&self) -> Expected {
        let half = |at: usize| Aes256::new(self.key[at..][..32].try_into().expect("32 bytes"));
        let xts = Xts128::new(half(0), half(32));
        let (mut sealed, mut opened) = (self.clear.clone(), self.clear.clone());
        let mut records = Vec::new();
        let sectors = sealed.chunks_mut(self.bytes).zip(opened.chunks_mut(self.bytes));
        for (index, (sealed, opened)) in (0_u128..).zip(sectors) {
            let number = self.first.wrapping_add(index);
            xts.encrypt_sector(sealed, get_tweak_default(number));
            xts.decrypt_sector(opened, get_tweak_default(number));
            let sequence = self.sequences[records.len()];
            records.push((crc32c::crc32c(sealed), self.tag(number, sequence, sealed)));
        }
        if std::env::var_os("NIGHTLATCH_FUZZ_PLANT").is_some()
            && let Some(byte) = sealed.last_mut()
        {
            *byte ^= 0x10;
        }
        Expected { sealed, opened, records }
    }

    /// TAG.md, on the `polyval` and `aes` crates.
    fn tag(&self, number: u128, sequence: u64, ciphertext: &[u8]) -> [u8; 16] {
        let mut message = b"nl-tag 1".to_vec();
        message.extend((ciphertext.len() as u64).to_le_bytes());
        message.extend(self.domain);
        message.extend(number.to_le_bytes());
        message.extend(sequence.to_le_bytes());
        message.extend(self.epoch.to_le_bytes());
        message.extend([0; 4]);
        message.extend(ciphertext);
        let mut hash = Polyval::new(&self.hash_key.into());
        hash.update_padded(&message);
        let mut block = hash.finalize();
        Aes256::new(&self.prf_key.into()).encrypt_block(&mut block);
        block.into()
    }

    fn sectors(&self) -> Sectors {
        Sectors { first: self.first, bytes: self.bytes }
    }

    fn binding(&self) -> Binding<'_> {
        Binding { domain: self.domain, epoch: self.epoch, sequences: &self.sequences }
    }
}

/// Expanded keys and scratch.
struct Keys {
    schedule: [AtomicU64; SCHEDULE_WORDS],
    tags: [AtomicU64; TAG_WORDS],
    scratch: [AtomicU64; SCRATCH_WORDS],
}

impl Keys {
    fn cipher(&self, kernel: Kernel) -> Cipher<'_> {
        Cipher::new(kernel, XtsSchedule::over(&self.schedule), Scratch::over(&self.scratch))
    }

    fn assert_scratch_is_zero(&self) {
        assert!(self.scratch.iter().all(|word| word.load(Ordering::Relaxed) == 0), "left in the scratch");
    }
}

fuzz_target!(|case: Case| {
    let keys = Keys {
        schedule: std::array::from_fn(|_| AtomicU64::new(0)),
        tags: std::array::from_fn(|_| AtomicU64::new(0)),
        scratch: std::array::from_fn(|_| AtomicU64::new(0)),
    };
    let equal_halves = case.key[..32] == case.key[32..];
    assert_eq!(XtsSchedule::over(&keys.schedule).expand(&case.key).is_err(), equal_halves);
    if equal_halves {
        return;
    }
    TagSchedule::over(&keys.tags).expand(&case.hash_key, &case.prf_key);
    static KERNELS: OnceLock<Vec<Kernel>> = OnceLock::new();
    let kernels = KERNELS.get_or_init(|| Kernel::all().collect());
    if case.is_valid() {
        let expected = case.expected();
        kernels.iter().for_each(|kernel| agree(&case, &keys, *kernel, &expected));
    } else {
        kernels.iter().for_each(|kernel| refuse(&case, &keys, *kernel));
    }
});

/// All four uses of `kernel`, in place and apart.
fn agree(case: &Case, keys: &Keys, kernel: Kernel, expected: &Expected) {
    let cipher = keys.cipher(kernel);
    let blocks = Ok(case.clear.len() as u64 / 16);
    for (direction, result) in
        [(Direction::Encrypt, &expected.sealed), (Direction::Decrypt, &expected.opened)]
    {
        let mut data = Marked::new(&case.clear, case.distances[0]);
        assert_eq!(cipher.apply(direction, case.sectors(), data.bytes()), blocks);
        assert!(data.unmarked() == result, "{} {direction:?} in place", kernel.name());
        let source = Marked::new(&case.clear, case.distances[0]);
        let mut target = Marked::new(&vec![0xEE; case.clear.len()], case.distances[1]);
        let apart = (source.unmarked(), target.bytes());
        assert_eq!(cipher.apply_into(direction, case.sectors(), apart), blocks);
        assert!(target.unmarked() == result, "{} {direction:?} apart", kernel.name());
        assert!(source.unmarked() == case.clear, "{} {direction:?} changed its source", kernel.name());
        keys.assert_scratch_is_zero();
    }
    let tags = TagSchedule::over(&keys.tags);
    let mut records = vec![Record::default(); case.sequences.len()];
    let mut data = Marked::new(&case.clear, case.distances[0]);
    let sealed = cipher.seal(tags, case.sectors(), case.binding(), data.bytes(), &mut records);
    assert_eq!(sealed, blocks);
    assert!(data.unmarked() == expected.sealed, "{} seal", kernel.name());
    assert_records(kernel, &records, expected);
    keys.assert_scratch_is_zero();
    let mut target = Marked::new(&vec![0xEE; case.clear.len()], case.distances[1]);
    records.fill(Record::default());
    let apart = (data.unmarked(), target.bytes());
    assert_eq!(cipher.open(tags, case.sectors(), case.binding(), apart, &mut records), blocks);
    assert!(target.unmarked() == case.clear, "{} open", kernel.name());
    assert_records(kernel, &records, expected);
    keys.assert_scratch_is_zero();
}

fn assert_records(kernel: Kernel, records: &[Record], expected: &Expected) {
    for (record, (checksum, tag)) in records.iter().zip(&expected.records) {
        assert_eq!(record.checksum, *checksum, "{} checksum", kernel.name());
        assert_eq!(record.tag.bytes(), tag, "{} tag", kernel.name());
    }
}

/// A batch that is no whole sectors is refused by every use, and nothing is written.
fn refuse(case: &Case, keys: &Keys, kernel: Kernel) {
    let cipher = keys.cipher(kernel);
    let tags = TagSchedule::over(&keys.tags);
    let mut data = Marked::new(&case.clear, case.distances[0]);
    let mut target = Marked::new(&vec![0xEE; case.clear.len()], case.distances[1]);
    let mut records = vec![Record::default(); case.sequences.len()];
    for direction in [Direction::Encrypt, Direction::Decrypt] {
        assert!(cipher.apply(direction, case.sectors(), data.bytes()).is_err());
        let apart = (&case.clear[..], target.bytes());
        assert!(cipher.apply_into(direction, case.sectors(), apart).is_err());
    }
    assert!(cipher.seal(tags, case.sectors(), case.binding(), data.bytes(), &mut records).is_err());
    let apart = (&case.clear[..], target.bytes());
    assert!(cipher.open(tags, case.sectors(), case.binding(), apart, &mut records).is_err());
    assert!(data.unmarked() == case.clear, "{} wrote to what it refused", kernel.name());
    assert!(target.unmarked().iter().all(|byte| *byte == 0xEE), "{} wrote to what it refused", kernel.name());
    assert!(records.iter().all(|record| record.checksum == 0 && *record.tag.bytes() == [0; 16]));
    keys.assert_scratch_is_zero();
}
