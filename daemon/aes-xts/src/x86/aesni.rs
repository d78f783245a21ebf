//! AES-NI: eight blocks in flight, for every processor since 2010 and for sector sizes that no wider kernel takes.
//!
//! Tweaks are doubled one by one, as the standard writes it, between the rounds of the blocks before; five cheap
//! instructions a block. Legacy encodings throughout, so that nothing beyond AES-NI is asked for.

use super::GROUP_SECTORS;
use crate::batch::{BLOCK_BYTES, Job};

/// x^128 = x^7+x^2+x+1 for the bit that leaves the upper half, and the carry of the one that leaves the lower.
#[repr(C, align(16))]
struct Carries([u32; 4]);

static CARRIES: Carries = Carries([0x87, 0, 1, 0]);

/// Sector numbers encrypted together.
const FIRSTS_GROUP: usize = 8;

/// Runs `job`.
///
/// # Safety
/// The processor must have AES-NI.
pub(crate) unsafe fn run(job: &Job<'_>) {
    clean_upper_halves();
    let rounds = if job.encrypt { encrypt_sector } else { decrypt_sector };
    let blocks = (job.sector_bytes / BLOCK_BYTES) as u64;
    let keys = job.data_keys();
    for begin in (0..job.sectors).step_by(GROUP_SECTORS) {
        let group = (job.sectors - begin).min(GROUP_SECTORS);
        job.scratch.number(job.first_sector.wrapping_add(begin as u128), group);
        let list = job.scratch.firsts();
        let groups = group.div_ceil(FIRSTS_GROUP) as u64;
        // SAFETY: the caller vouches for the processor; the list has room for whole groups (`scratch.rs`).
        unsafe { firsts(job.schedule.tweak_encrypt().as_ptr(), list.cast_mut(), groups) };
        for sector in begin..begin + group {
            let at = sector * job.sector_bytes;
            let (source, target) = (job.source.wrapping_add(at), job.target.wrapping_add(at));
            let first = list.wrapping_add((sector - begin) * BLOCK_BYTES);
            // SAFETY: as above; source and target hold `sectors` sectors of `blocks` blocks.
            unsafe { rounds(keys, source, target, first, job.scratch.ring(), blocks) };
        }
    }
    job.scratch.zero(job.sectors.min(GROUP_SECTORS));
}

/// Legacy instructions keep the upper halves of the registers: where the caller left anything there, each waits for the
/// one before it on the same register, and the loop takes twice as long.
pub(super) fn clean_upper_halves() {
    if is_x86_feature_detected!("avx") {
        // SAFETY: the processor has AVX.
        unsafe { core::arch::x86_64::_mm256_zeroupper() };
    }
}

macro_rules! round8 {
    ($op:literal $round:literal: $between:expr) => {
        concat!(
            "movdqu xmm8,[{keys}+16*",
            $round,
            "]\n",
            $op,
            " xmm0,xmm8\n",
            $op,
            " xmm1,xmm8\n",
            $op,
            " xmm2,xmm8\n",
            $op,
            " xmm3,xmm8\n",
            $between,
            $op,
            " xmm4,xmm8\n",
            $op,
            " xmm5,xmm8\n",
            $op,
            " xmm6,xmm8\n",
            $op,
            " xmm7,xmm8\n",
        )
    };
}

/// Keeps the running tweak in slot `$j` and doubles it.
macro_rules! double {
    ($j:literal) => {
        concat!(
            "movdqu [{next}+16*",
            $j,
            "],xmm9\n",
            "pshufd xmm11,xmm9,0x13\n",
            "psrad xmm11,31\n",
            "pand xmm11,xmm10\n",
            "paddq xmm9,xmm9\n",
            "pxor xmm9,xmm11\n",
        )
    };
}

macro_rules! whiten {
    ($($i:literal)*) => {
        concat!(
            "movdqu xmm8,[{keys}]\n",
            $(
                "movdqu xmm", $i, ",[{source}+16*", $i, "]\n",
                "movdqu xmm11,[{this}+16*", $i, "]\n",
                "pxor xmm", $i, ",xmm8\n",
                "pxor xmm", $i, ",xmm11\n",
            )*
        )
    };
}

macro_rules! finish {
    ($last:literal: $($i:literal)*) => {
        concat!(
            "movdqu xmm8,[{keys}+16*14]\n",
            $(
                "movdqu xmm11,[{this}+16*", $i, "]\n",
                "pxor xmm11,xmm8\n",
                $last, " xmm", $i, ",xmm11\n",
                "movdqu [{target}+16*", $i, "],xmm", $i, "\n",
            )*
        )
    };
}

macro_rules! round1 {
    ($op:literal: $($round:literal)*) => {
        concat!($("movdqu xmm8,[{keys}+16*", $round, "]\n", $op, " xmm0,xmm8\n",)*)
    };
}

macro_rules! clear_registers {
    () => {
        concat!(
            "pxor xmm0,xmm0\n",
            "pxor xmm1,xmm1\n",
            "pxor xmm2,xmm2\n",
            "pxor xmm3,xmm3\n",
            "pxor xmm4,xmm4\n",
            "pxor xmm5,xmm5\n",
            "pxor xmm6,xmm6\n",
            "pxor xmm7,xmm7\n",
            "pxor xmm8,xmm8\n",
            "pxor xmm9,xmm9\n",
            "pxor xmm10,xmm10\n",
            "pxor xmm11,xmm11\n",
        )
    };
}

macro_rules! sector {
    ($name:ident: $op:literal $last:literal) => {
        #[target_feature(enable = "aes")]
        #[inline(never)]
        unsafe fn $name(
            keys: *const u8,
            source: *const u8,
            target: *mut u8,
            first: *const u8,
            ring: *mut u8,
            blocks: u64,
        ) {
            // SAFETY: see UNSAFE.md, "kernels". Reads 15 round keys, one tweak and `blocks` blocks; writes as many and
            // 256 bytes of the ring.
            unsafe {
                core::arch::asm!(
                    "movdqu xmm9,[{first}]",
                    "movdqu xmm10,[{carries}]",
                    double!("0"), double!("1"), double!("2"), double!("3"),
                    double!("4"), double!("5"), double!("6"), double!("7"),
                    "sub {blocks},8",
                    "jb 3f",
                    "2:",
                    "xchg {this},{next}",
                    whiten!("0" "1" "2" "3" "4" "5" "6" "7"),
                    round8!($op "1": ""),
                    round8!($op "2": double!("0")),
                    round8!($op "3": double!("1")),
                    round8!($op "4": double!("2")),
                    round8!($op "5": double!("3")),
                    round8!($op "6": double!("4")),
                    round8!($op "7": double!("5")),
                    round8!($op "8": double!("6")),
                    round8!($op "9": double!("7")),
                    round8!($op "10": ""), round8!($op "11": ""), round8!($op "12": ""), round8!($op "13": ""),
                    finish!($last: "0" "1" "2" "3" "4" "5" "6" "7"),
                    "add {source},128",
                    "add {target},128",
                    "sub {blocks},8",
                    "jae 2b",
                    "3:",
                    "add {blocks},8",
                    "jz 5f",
                    "4:",
                    "mov {this},{next}",
                    whiten!("0"),
                    round1!($op: "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13"),
                    finish!($last: "0"),
                    "add {next},16",
                    "add {source},16",
                    "add {target},16",
                    "dec {blocks}",
                    "jnz 4b",
                    "5:",
                    clear_registers!(),
                    keys = in(reg) keys,
                    source = inout(reg) source => _,
                    target = inout(reg) target => _,
                    first = in(reg) first,
                    this = inout(reg) ring.wrapping_add(128) => _,
                    next = inout(reg) ring => _,
                    carries = in(reg) &raw const CARRIES,
                    blocks = inout(reg) blocks => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                    out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    options(nostack),
                );
            }
        }
    };
}

sector!(encrypt_sector: "aesenc" "aesenclast");
sector!(decrypt_sector: "aesdec" "aesdeclast");

macro_rules! first_blocks {
    ($($i:literal)*) => {
        concat!(
            "movdqu xmm8,[{keys}]\n",
            $("movdqu xmm", $i, ",[{list}+16*", $i, "]\n", "pxor xmm", $i, ",xmm8\n",)*
        )
    };
}

macro_rules! last_blocks {
    ($($i:literal)*) => {
        concat!(
            "movdqu xmm8,[{keys}+16*14]\n",
            $("aesenclast xmm", $i, ",xmm8\n", "movdqu [{list}+16*", $i, "],xmm", $i, "\n",)*
        )
    };
}

/// Encrypts eight sector numbers at a time, in place: the tweaks of the sectors' first blocks.
#[target_feature(enable = "aes")]
#[inline(never)]
pub(super) unsafe fn firsts(keys: *const u8, list: *mut u8, groups: u64) {
    // SAFETY: see UNSAFE.md, "kernels". Reads 15 round keys, rewrites `groups` times eight blocks of the list.
    unsafe {
        core::arch::asm!(
            "2:",
            first_blocks!("0" "1" "2" "3" "4" "5" "6" "7"),
            round8!("aesenc" "1": ""), round8!("aesenc" "2": ""), round8!("aesenc" "3": ""),
            round8!("aesenc" "4": ""), round8!("aesenc" "5": ""), round8!("aesenc" "6": ""),
            round8!("aesenc" "7": ""), round8!("aesenc" "8": ""), round8!("aesenc" "9": ""),
            round8!("aesenc" "10": ""), round8!("aesenc" "11": ""), round8!("aesenc" "12": ""),
            round8!("aesenc" "13": ""),
            last_blocks!("0" "1" "2" "3" "4" "5" "6" "7"),
            "add {list},128",
            "dec {groups}",
            "jnz 2b",
            clear_registers!(),
            keys = in(reg) keys,
            list = inout(reg) list => _,
            groups = inout(reg) groups => _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            options(nostack),
        );
    }
}
