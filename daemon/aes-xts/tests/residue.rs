//! Right after a call: every vector and general register, and the stack that the call used, hold no eight bytes of a key, a
//! round key, a power of the hash key, a tweak or a state between two rounds. Planted ones are found in each of the three places.
#![cfg(target_arch = "x86_64")]
#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(unsafe_code, reason = "reads registers and the stack below")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "one of three plants")]

mod support;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes::hazmat::{self, Block};
use aes_xts::{Binding, Cipher, Direction, Kernel, Record, Sectors, TAG_WORDS, TagSchedule};
use support::oracle::{Oracle, XtsMode};
use support::{Key, Random, seed};

/// Stack that is looked at: more than any call here uses.
const STACK_BYTES: usize = 16 * 1024;
/// 32 vector registers of 64 bytes, then 16 general ones.
const REGISTER_BYTES: usize = 32 * 64 + 16 * 8;

/// Every byte of the data before it is encrypted.
const CLEAR: u8 = 0xAB;

/// What was in the registers, then on the stack.
struct Dump {
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq)]
enum Plant {
    Nothing,
    Vector,
    General,
    Stack,
}

macro_rules! store_vectors {
    ($instruction:literal $v:literal: $($i:literal)*) => {
        concat!($($instruction, " [{out}+64*", $i, "],", $v, $i, "\n",)*)
    };
}

macro_rules! clear_vectors {
    ($($i:literal)*) => {
        concat!($("pxor xmm", $i, ",xmm", $i, "\n",)*)
    };
}

/// Runs `work` and dumps what it left. What is planted goes there between the two.
#[inline(never)]
fn dump_after(work: &mut dyn FnMut(), plant: Plant, secret: u64) -> Dump {
    let mut bytes = vec![0_u8; REGISTER_BYTES + STACK_BYTES];
    let out = bytes.as_mut_ptr();
    let wide = is_x86_feature_detected!("avx512f");
    // SAFETY: clears the stack below, where the test's own frames were, and the vector registers, in which its own secrets may be.
    unsafe {
        std::arch::asm!(
            clear_vectors!("0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15"),
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nomem, nostack),
        );
        std::arch::asm!(
            "lea rdi,[rsp-{stack}]",
            "mov ecx,{stack}",
            "xor eax,eax",
            "rep stosb",
            stack = const STACK_BYTES,
            out("rax") _, out("rcx") _, out("rdi") _,
            options(nostack),
        );
    }
    work();
    // SAFETY: puts a number where it is looked for: a register declared as clobbered, the stack below.
    unsafe {
        match plant {
            Plant::Nothing => {}
            Plant::Vector => std::arch::asm!("movq xmm9,{0}", in(reg) secret, out("xmm9") _),
            Plant::General => std::arch::asm!("mov r10,{0}", in(reg) secret, out("r10") _),
            Plant::Stack => std::arch::asm!("mov [rsp-1000],{0}", in(reg) secret, options(nostack)),
        }
    }
    // SAFETY: writes the dump, which has room; reads the stack below, which is mapped: this thread's frames were there.
    unsafe {
        std::arch::asm!(
            "mov [{out}+2048],rax", "mov [{out}+2056],rcx", "mov [{out}+2064],rdx", "mov [{out}+2072],rsi",
            "mov [{out}+2080],rdi", "mov [{out}+2088],r8", "mov [{out}+2096],r9", "mov [{out}+2104],r10",
            "mov [{out}+2112],r11", "mov [{out}+2120],rbx", "mov [{out}+2128],rbp", "mov [{out}+2136],r12",
            "mov [{out}+2144],r13", "mov [{out}+2152],r14", "mov [{out}+2160],r15",
            "test {wide},{wide}",
            "jz 2f",
            store_vectors!("vmovdqu64" "zmm": "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15"
                "16" "17" "18" "19" "20" "21" "22" "23" "24" "25" "26" "27" "28" "29" "30" "31"),
            "jmp 3f",
            "2:",
            store_vectors!("movdqu" "xmm": "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15"),
            "3:",
            "lea rsi,[rsp-{stack}]",
            "lea rdi,[{out}+{registers}]",
            "mov ecx,{stack}",
            "rep movsb",
            out = in(reg) out,
            wide = in(reg) u64::from(wide),
            stack = const STACK_BYTES,
            registers = const REGISTER_BYTES,
            out("rcx") _, out("rsi") _, out("rdi") _,
            options(nostack),
        );
    }
    Dump { bytes }
}

/// Eight-byte windows that must not be left.
struct Needles(HashSet<[u8; 8]>);

impl Needles {
    fn add(&mut self, bytes: &[u8]) {
        let windows = bytes.windows(8).map(|window| window.try_into().unwrap());
        self.0.extend(windows.filter(|window: &[u8; 8]| window.iter().any(|byte| *byte != window[0])));
    }

    fn add_words(&mut self, words: &[AtomicU64]) {
        let bytes: Vec<u8> =
            words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
        self.add(&bytes);
    }

    /// What the first blocks of [`CLEAR`] are between the rounds, before and after a round key is added.
    fn add_states(&mut self, key: &Key, tweak_cipher: &Aes256) {
        // The data's schedule for encryption comes first.
        let round_keys: Vec<Block> = key.words()[..30]
            .chunks(2)
            .map(|pair| {
                let mut round_key = Block::default();
                for (half, word) in round_key.chunks_mut(8).zip(pair) {
                    half.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
                }
                round_key
            })
            .collect();
        let mut tweak = Block::default();
        tweak_cipher.encrypt_block(&mut tweak);
        let mut tweak = u128::from_le_bytes(tweak.into());
        let mut sealed = Vec::new();
        for _ in 0..8 {
            let mut state = Block::from((u128::from_le_bytes([CLEAR; 16]) ^ tweak).to_le_bytes());
            self.add(&state);
            add_key(&mut state, &round_keys[0]);
            self.add(&state);
            for round_key in &round_keys[1..14] {
                hazmat::cipher_round(&mut state, &Block::default());
                self.add(&state);
                add_key(&mut state, round_key);
                self.add(&state);
            }
            // That these are the cipher's states: the last one leads to its output.
            hazmat::cipher_round(&mut state, &Block::default());
            hazmat::inv_mix_columns(&mut state);
            add_key(&mut state, &round_keys[14]);
            sealed.extend((u128::from_le_bytes(state.into()) ^ tweak).to_le_bytes());
            tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
        }
        let mut expected = [CLEAR; 512];
        key.apply(Kernel::fastest(), Direction::Encrypt, (0, 512), &mut expected).unwrap();
        assert_eq!(sealed, expected[..128]);
    }

    fn found(&self, dump: &Dump) -> Vec<usize> {
        dump.bytes
            .windows(8)
            .enumerate()
            .filter(|(_, window)| self.0.contains(*window))
            .map(|(at, _)| at)
            .collect()
    }
}

fn add_key(state: &mut Block, key: &Block) {
    state.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
}

struct Secrets {
    bytes: [u8; 64],
    key: Key,
    tags: [AtomicU64; TAG_WORDS],
    needles: Needles,
}

impl Secrets {
    fn new(random: &mut Random) -> Self {
        let bytes = random.key();
        let key = Key::new(&bytes);
        let tags: [AtomicU64; TAG_WORDS] = std::array::from_fn(|_| AtomicU64::new(0));
        let (mut hash_key, mut prf_key) = ([0; 16], [0; 32]);
        random.fill(&mut hash_key);
        random.fill(&mut prf_key);
        TagSchedule::over(&tags).expand(&hash_key, &prf_key);
        let mut needles = Needles(HashSet::new());
        needles.add(&bytes);
        needles.add_words(key.words());
        needles.add_words(&tags);
        // The tweaks of some sectors, and where they lead.
        let tweak_cipher = Aes256::new_from_slice(&bytes[32..]).unwrap();
        needles.add_states(&key, &tweak_cipher);
        for number in 0..4_u128 {
            let mut block = number.to_le_bytes().into();
            tweak_cipher.encrypt_block(&mut block);
            let mut tweak = u128::from_le_bytes(block.into());
            for _ in 0..256 {
                needles.add(&tweak.to_le_bytes());
                tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
            }
        }
        Self { bytes, key, tags, needles }
    }
}

#[test]
fn no_call_leaves_a_secret_in_a_register_or_on_the_stack() {
    let mut random = Random(seed());
    let secrets = Secrets::new(&mut random);
    let mut data = vec![CLEAR; 4 * 4096];
    let mut target = data.clone();
    for kernel in Kernel::all() {
        for bytes in [512, 528, 1024, 4096] {
            let whole = data.len() / bytes * bytes;
            let sectors = Sectors { first: 0, bytes };
            let sequences = vec![1; whole / bytes];
            let mut records = vec![Record::default(); whole / bytes];
            let binding = Binding { domain: [7; 16], epoch: 1, sequences: &sequences };
            let cipher = Cipher::new(kernel, secrets.key.schedule(), secrets.key.scratch());
            let tags = TagSchedule::over(&secrets.tags);
            let assert_clean = |what: &str, dump: &Dump| {
                let found = secrets.needles.found(dump);
                assert!(
                    found.is_empty(),
                    "{} {what}, {bytes} B: {} left, from {:?}",
                    kernel.name(),
                    found.len(),
                    found.first()
                );
            };
            data.fill(CLEAR);
            let mut run = |direction| {
                let mut work = || {
                    cipher.apply(direction, sectors, &mut data[..whole]).unwrap();
                };
                dump_after(&mut work, Plant::Nothing, 0)
            };
            assert_clean("encrypt", &run(Direction::Encrypt));
            assert_clean("decrypt", &run(Direction::Decrypt));
            let mut seal = || {
                cipher.seal(tags, sectors, binding, &mut data[..whole], &mut records).unwrap();
            };
            assert_clean("seal", &dump_after(&mut seal, Plant::Nothing, 0));
            let mut open = || {
                let apart = (&data[..whole], &mut target[..whole]);
                cipher.open(tags, sectors, binding, apart, &mut records).unwrap();
            };
            assert_clean("open", &dump_after(&mut open, Plant::Nothing, 0));
        }
    }
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&secrets.key.words()[7].load(Ordering::Relaxed).to_ne_bytes());
    for plant in [Plant::Vector, Plant::General, Plant::Stack] {
        let dump = dump_after(&mut || (), plant, u64::from_ne_bytes(bytes));
        assert!(!secrets.needles.found(&dump).is_empty(), "a planted word was not found");
    }
}

/// The same work by Rust code that nobody cleans up after does leave something, of each kind that is looked for: so the
/// portable kernel, which is Rust code too, would be found out.
#[test]
fn what_code_without_scrubbing_leaves_is_found() {
    let mut random = Random(seed());
    let secrets = Secrets::new(&mut random);
    let mut data = vec![CLEAR; 4096];
    let mut work = || XtsMode.units(Direction::Encrypt, &secrets.bytes, (0, 4096), &mut data);
    let found = secrets.needles.found(&dump_after(&mut work, Plant::Nothing, 0));
    let registers = found.iter().filter(|at| **at < REGISTER_BYTES).count();
    println!("{} words left, {registers} of them in registers", found.len());
    assert!(
        !found.is_empty(),
        "xts-mode left nothing: the scanner would not see what the portable kernel leaves"
    );
}
