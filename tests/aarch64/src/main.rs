//! The kernel of aarch64 beside xts-mode and the portable kernel: random keys, sizes and numbers, in place and apart, both
//! directions, tags, with marks around every buffer; and what a call leaves in registers and scratch. Exits with an error at
//! the first difference.
#![expect(unsafe_code, reason = "reads registers, and plants a word in one")]

use std::sync::atomic::{AtomicU64, Ordering};

use aes::Aes256;
use aes::cipher::KeyInit;
use aes_xts::{
    Binding, Cipher, Direction, Kernel, Record, SCHEDULE_WORDS, SCRATCH_WORDS, Scratch, Sectors, TAG_WORDS,
    TagSchedule, XtsSchedule,
};
use xts_mode::{Xts128, get_tweak_default};

const CASES: u64 = 400;
const MARK: u8 = 0xA7;

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.bits().to_le_bytes()).flatten().take(len).collect()
    }
}

fn words<const N: usize>() -> Box<[AtomicU64; N]> {
    Box::new(std::array::from_fn(|_| AtomicU64::new(0)))
}

/// A buffer with marks on both sides, at any alignment.
struct Marked(Vec<u8>, usize, usize);

impl Marked {
    fn new(random: &mut Random, content: &[u8]) -> Self {
        let before = 1 + random.below(64);
        let mut bytes = vec![MARK; before + content.len() + 64];
        bytes[before..before + content.len()].copy_from_slice(content);
        Self(bytes, before, content.len())
    }

    fn content(&mut self) -> &mut [u8] {
        &mut self.0[self.1..self.1 + self.2]
    }

    fn check(&self) {
        let (before, rest) = self.0.split_at(self.1);
        assert!(before.iter().chain(&rest[self.2..]).all(|byte| *byte == MARK), "written past an end");
    }
}

/// What is in the vector registers right now.
#[inline(always)]
fn registers() -> [[u8; 16]; 32] {
    let mut found = [[0; 16]; 32];
    // SAFETY: writes 32 registers to as much memory.
    unsafe {
        std::arch::asm!(
            "stp q0, q1, [{at}]", "stp q2, q3, [{at}, #32]", "stp q4, q5, [{at}, #64]", "stp q6, q7, [{at}, #96]",
            "stp q8, q9, [{at}, #128]", "stp q10, q11, [{at}, #160]", "stp q12, q13, [{at}, #192]",
            "stp q14, q15, [{at}, #224]", "stp q16, q17, [{at}, #256]", "stp q18, q19, [{at}, #288]",
            "stp q20, q21, [{at}, #320]", "stp q22, q23, [{at}, #352]", "stp q24, q25, [{at}, #384]",
            "stp q26, q27, [{at}, #416]", "stp q28, q29, [{at}, #448]", "stp q30, q31, [{at}, #480]",
            at = in(reg) found.as_mut_ptr(),
            options(nostack),
        );
    }
    found
}

fn one_case(random: &mut Random, kernel: Kernel, portable: Kernel) {
    let (schedule, tags, scratch) =
        (words::<SCHEDULE_WORDS>(), words::<TAG_WORDS>(), words::<SCRATCH_WORDS>());
    let key: [u8; 64] = random.bytes(64).try_into().unwrap();
    let (schedule, tags) = (XtsSchedule::over(&schedule), TagSchedule::over(&tags));
    schedule.expand(&key).unwrap();
    tags.expand(&random.bytes(16).try_into().unwrap(), &random.bytes(32).try_into().unwrap());
    let bytes = match random.below(3) {
        0 => 512,
        1 => 4096,
        _ => 16 * (32 + random.below(300)),
    };
    let count = 1 + random.below(if bytes > 2048 { 10 } else { 150 });
    let first = u128::from(random.bits()) << (8 * random.below(9));
    let sectors = Sectors { first, bytes };
    let clear = random.bytes(bytes * count);
    let half = |at: usize| Aes256::new_from_slice(&key[at..][..32]).unwrap();
    let mut expected = clear.clone();
    Xts128::new(half(0), half(32)).encrypt_area(&mut expected, bytes, first, get_tweak_default);

    let cipher = Cipher::new(kernel, schedule, Scratch::over(&scratch));
    let mut data = Marked::new(random, &clear);
    let blocks = cipher.apply(Direction::Encrypt, sectors, data.content());
    let left = registers();
    assert_eq!(blocks, Ok((clear.len() / 16) as u64));
    assert!(data.content() == expected, "encrypting {count} sectors of {bytes} bytes in place");
    let kept: Vec<_> = (0..8).chain(16..21).filter(|register| left[*register] != [0; 16]).collect();
    let secret = |register: &usize| {
        let found = left[*register];
        let in_key = key.windows(8).any(|part| found[..8] == *part || found[8..] == *part);
        in_key
            || clear.chunks_exact(16).any(|block| block == found)
            || expected.chunks_exact(16).any(|block| block == found)
    };
    assert!(!kept.iter().any(secret), "registers hold a key or data after the call: {kept:?}");
    assert!(scratch.iter().all(|word| word.load(Ordering::Relaxed) == 0), "scratch is not zero");

    let mut apart = Marked::new(random, &vec![0; clear.len()]);
    cipher.apply_into(Direction::Decrypt, sectors, (data.content(), apart.content())).unwrap();
    assert!(apart.content() == clear, "decrypting {count} sectors of {bytes} bytes apart");
    let sequences: Vec<u64> = (0..count as u64).map(|_| random.bits()).collect();
    let binding = Binding { domain: [5; 16], epoch: 9, sequences: &sequences };
    let mut sealed = vec![Record::default(); count];
    let mut again = vec![Record::default(); count];
    cipher.seal(tags, sectors, binding, apart.content(), &mut sealed).unwrap();
    assert!(apart.content() == expected);
    let portable = Cipher::new(portable, schedule, Scratch::over(&scratch));
    portable.open(tags, sectors, binding, (&expected, data.content()), &mut again).unwrap();
    assert!(data.content() == clear);
    for (sealed, again) in sealed.iter().zip(&again) {
        assert_eq!(sealed.tag.verify(again.tag.bytes()), Ok(()));
        assert_eq!(sealed.checksum, again.checksum);
    }
    data.check();
    apart.check();
}

fn main() {
    let names: Vec<_> = Kernel::all().map(Kernel::name).collect();
    println!("kernels here: {}", names.join(", "));
    let kernel = Kernel::by_name("aarch64-aes").expect("the emulated processor has AES");
    let portable = Kernel::by_name("portable").unwrap();
    assert_eq!(Kernel::fastest(), kernel);
    let mut random = Random(1);
    (0..CASES).for_each(|_| one_case(&mut random, kernel, portable));
    // The search for what is left must be able to find something.
    let planted = [0x3Cu8; 16];
    // SAFETY: loads a register.
    unsafe {
        std::arch::asm!("ldr q20, [{at}]", at = in(reg) planted.as_ptr(), out("v20") _, options(nostack))
    };
    assert_eq!(registers()[20], planted, "a planted word is not found");
    println!("{CASES} cases agree with xts-mode and with the portable kernel");
}
