//! The built kernels, disassembled: no vector register is ever stored to the stack, and keys are stored only where a schedule
//! is expanded. The kernels are machine code that no optimisation level touches, so this program's are the release's.
#![cfg(target_arch = "x86_64")]
#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(unsafe_code, reason = "plants a store to the stack")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::atomic::AtomicU64;

use aes_xts::{Binding, Cipher, Direction, Kernel, Record, Sectors, TAG_WORDS, TagSchedule};

/// Functions that must be there, each with machine code of its own, and how many registers point at what its vector stores
/// write: the destination, the scratch's ring, its list, its powers, a schedule, a sum.
const KERNELS: &[(&str, usize)] = &[
    ("aes_xts::x86::vaes512::encrypt_bits", 2),
    ("aes_xts::x86::vaes512::encrypt_bytes", 2),
    ("aes_xts::x86::vaes512::decrypt_bits", 2),
    ("aes_xts::x86::vaes512::decrypt_bytes", 2),
    ("aes_xts::x86::vaes512::firsts", 1),
    ("aes_xts::x86::vaes256::encrypt_rounds", 2),
    ("aes_xts::x86::vaes256::decrypt_rounds", 2),
    ("aes_xts::x86::vaes256::firsts", 1),
    ("aes_xts::x86::vaes256_avx2::encrypt_rounds", 2),
    ("aes_xts::x86::vaes256_avx2::decrypt_rounds", 2),
    ("aes_xts::x86::aesni::encrypt_sector", 2),
    ("aes_xts::x86::aesni::decrypt_sector", 2),
    ("aes_xts::x86::aesni::firsts", 1),
    ("aes_xts::x86::tagged512::seal_bits", 4),
    ("aes_xts::x86::tagged512::seal_bytes", 4),
    ("aes_xts::x86::tagged512::open_bits", 4),
    ("aes_xts::x86::tagged512::open_bytes", 4),
    ("aes_xts::x86::polyval::hash128", 1),
    ("aes_xts::x86::polyval::update", 1),
    ("aes_xts::x86::polyval_wide::hash256", 1),
    ("aes_xts::x86::polyval_wide::hash512", 1),
    ("aes_xts::x86::expand::encryption", 1),
    ("aes_xts::x86::expand::decryption", 1),
];

/// What a compiler does when it has too few registers.
#[inline(never)]
fn planted() {
    // SAFETY: writes below the stack pointer, where nobody else has anything.
    unsafe { std::arch::asm!("movups [rsp-64],xmm0", options(nostack)) };
}

/// Instructions of each function of this program whose name holds `wanted`.
fn disassembled(wanted: &[&str]) -> BTreeMap<String, Vec<String>> {
    let program = std::env::current_exe().unwrap();
    let output = Command::new("objdump")
        .args(["--disassemble", "--demangle", "--no-show-raw-insn"])
        .arg(program)
        .output()
        .expect("objdump, of binutils");
    assert!(output.status.success());
    let mut functions = BTreeMap::new();
    let mut current: Option<&mut Vec<String>> = None;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some((_, name)) = line.split_once(" <").filter(|_| line.ends_with(">:")) {
            let name = wanted.iter().find(|wanted| name.starts_with(**wanted));
            current = name.map(|name| functions.entry((*name).to_owned()).or_insert_with(Vec::new));
        } else if let (Some(function), Some((_, instruction))) = (&mut current, line.split_once('\t')) {
            function.push(instruction.trim().to_owned());
        }
    }
    functions
}

/// Whether the instruction writes a vector register to memory: in objdump's order the target is last.
fn stores_vector(instruction: &str) -> bool {
    let Some((_, operands)) = instruction.split_once(char::is_whitespace) else { return false };
    let vector = ["%xmm", "%ymm", "%zmm"].iter().any(|register| operands.trim().starts_with(register));
    vector && operands.trim_end().ends_with(')')
}

/// The register that points at where a store goes, in `disp(base,index,scale)`. A store relative to the program has `%rip`.
fn base(instruction: &str) -> &str {
    let (_, address) = instruction.rsplit_once('(').unwrap();
    address.trim_end_matches(')').split(',').next().unwrap()
}

fn touches_stack(instruction: &str) -> bool {
    instruction.contains("(%rsp") || instruction.contains("(%rbp") || instruction.contains(",%rsp")
}

/// So that the linker keeps them.
fn use_all() {
    let tags: [AtomicU64; TAG_WORDS] = std::array::from_fn(|_| AtomicU64::new(0));
    let key = support::Key::new(&support::plain_key());
    TagSchedule::over(&tags).expand(&[1; 16], &[2; 32]);
    let binding = Binding { domain: [0; 16], epoch: 0, sequences: &[0] };
    for kernel in Kernel::all() {
        let cipher = Cipher::new(kernel, key.schedule(), key.scratch());
        let sectors = Sectors { first: 0, bytes: 4096 };
        let mut records = [Record::default()];
        cipher.apply(Direction::Encrypt, sectors, &mut [0; 4096]).unwrap();
        cipher.seal(TagSchedule::over(&tags), sectors, binding, &mut [0; 4096], &mut records).unwrap();
    }
}

#[test]
fn kernels_store_vectors_to_their_targets_and_scratch_and_never_to_the_stack() {
    assert!(Kernel::all().count() > 1, "this machine runs none of the kernels");
    use_all();
    let names: Vec<&str> = KERNELS.iter().map(|(name, _)| *name).collect();
    let functions = disassembled(&names);
    for (name, targets) in KERNELS {
        let instructions = functions.get(*name).unwrap_or_else(|| panic!("{name} is not in this program"));
        let stores: Vec<_> = instructions.iter().filter(|instruction| stores_vector(instruction)).collect();
        assert!(!stores.is_empty(), "{name} stores nothing: the disassembly was not understood");
        let spilled: Vec<_> = stores.iter().filter(|instruction| touches_stack(instruction)).collect();
        assert!(spilled.is_empty(), "{name} spills: {spilled:#?}");
        let bases: BTreeSet<_> = stores.iter().map(|store| base(store)).collect();
        assert_eq!(bases.len(), *targets, "{name} stores vectors through {bases:?}");
        assert!(!bases.contains("%rip"), "{name} stores a vector to the program's own data");
        let calls: Vec<_> =
            instructions.iter().filter(|instruction| instruction.starts_with("call")).collect();
        assert!(calls.is_empty(), "{name} calls: {calls:?}");
    }
    planted();
    let control = disassembled(&["disassembly::planted"]);
    let found = control
        .values()
        .flatten()
        .filter(|instruction| stores_vector(instruction) && touches_stack(instruction));
    assert_eq!(found.count(), 1, "the planted store was not found: {control:?}");
}
