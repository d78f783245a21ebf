//! VAES on 256-bit vectors without AVX-512: sixteen registers (Alder Lake and later, Zen 3).
//!
//! `evex.rs` explains the tweaks. Here eight vectors are in flight, a chunk is a turn, and what AVX-512 does in one sum of
//! three takes two of two.

use super::evex::Counts;
use super::{Chunked, Stream, run_chunked};
use crate::batch::Job;

/// Eight vectors of two blocks.
const CHUNK_BYTES: usize = 256;

static COUNTS: Counts = Counts::new(2);

/// Runs `job`.
///
/// # Safety
/// The processor must have what `Kernel::by_name("vaes256-avx2")` asks for.
pub(crate) unsafe fn run(job: &Job<'_>) {
    if !job.sector_bytes.is_multiple_of(CHUNK_BYTES) {
        // SAFETY: a processor with VAES has AES-NI.
        return unsafe { super::aesni(job) };
    }
    let rounds = if job.encrypt { encrypt_rounds } else { decrypt_rounds };
    let kernel = Chunked { chunk_bytes: CHUNK_BYTES, firsts_group: 8, firsts: super::aesni::firsts, rounds };
    // SAFETY: as the caller says.
    unsafe { run_chunked(job, kernel, job.data_keys()) };
}

macro_rules! round8 {
    ($op:literal $round:literal: $a:expr, $b:expr) => {
        concat!(
            "vbroadcasti128 ymm8,[{keys}+16*",
            $round,
            "]\n",
            $op,
            " ymm0,ymm0,ymm8\n",
            $op,
            " ymm1,ymm1,ymm8\n",
            $op,
            " ymm2,ymm2,ymm8\n",
            $op,
            " ymm3,ymm3,ymm8\n",
            $a,
            $op,
            " ymm4,ymm4,ymm8\n",
            $op,
            " ymm5,ymm5,ymm8\n",
            $op,
            " ymm6,ymm6,ymm8\n",
            $op,
            " ymm7,ymm7,ymm8\n",
            $b,
        )
    };
}

/// Tweaks of vector `$j` of the chunk with base 9 (halves swapped: 10).
macro_rules! tweak {
    ($j:literal) => {
        concat!(
            "vpsrlvq ymm13,ymm10,[{counts}+512+32*",
            $j,
            "]\n",
            "vpsllvq ymm12,ymm9,[{counts}+32*",
            $j,
            "]\n",
            "vpclmulqdq ymm14,ymm13,ymm11,0\n",
            "vpxor ymm12,ymm12,ymm13\n",
            "vpxor ymm12,ymm12,ymm14\n",
            "vmovdqu [{next}+32*",
            $j,
            "],ymm12\n",
        )
    };
}

/// The base of the next chunk.
macro_rules! advance {
    () => {
        concat!(
            "dec {left}\n",
            "jnz 30f\n",
            "vbroadcasti128 ymm9,[{firsts}]\n",
            "add {firsts},16\n",
            "mov {left},{per}\n",
            "jmp 31f\n",
            "30:\n",
            "vpsrlq ymm13,ymm10,48\n",
            "vpsllq ymm9,ymm9,16\n",
            "vpclmulqdq ymm14,ymm13,ymm11,0\n",
            "vpxor ymm9,ymm9,ymm13\n",
            "vpxor ymm9,ymm9,ymm14\n",
            "31:\n",
            "vpshufd ymm10,ymm9,0x4e\n",
        )
    };
}

macro_rules! whiten {
    ($($i:literal)*) => {
        concat!(
            "vbroadcasti128 ymm8,[{keys}]\n",
            $(
                "vpxor ymm15,ymm8,[{this}+32*", $i, "]\n",
                "vpxor ymm", $i, ",ymm15,[{source}+32*", $i, "]\n",
            )*
        )
    };
}

macro_rules! finish {
    ($last:literal: $($i:literal)*) => {
        concat!(
            "vbroadcasti128 ymm8,[{keys}+16*14]\n",
            $(
                "vpxor ymm15,ymm8,[{this}+32*", $i, "]\n",
                $last, " ymm", $i, ",ymm", $i, ",ymm15\n",
                "vmovdqu [{target}+32*", $i, "],ymm", $i, "\n",
            )*
        )
    };
}

macro_rules! rounds {
    ($name:ident: $op:literal $last:literal) => {
        #[target_feature(enable = "aes,avx2,vaes,vpclmulqdq")]
        #[inline(never)]
        unsafe fn $name(stream: &Stream<'_>) {
            // SAFETY: see UNSAFE.md, "kernels". Reads `chunks` chunks of source, the schedule and the list of first
            // tweaks (with the entries past its end that a scratch has), writes as much of the target and the ring.
            unsafe {
                core::arch::asm!(
                    "vmovdqu ymm11,[{counts}+1024]",
                    "mov {left},1",
                    advance!(),
                    tweak!("0"), tweak!("1"), tweak!("2"), tweak!("3"),
                    tweak!("4"), tweak!("5"), tweak!("6"), tweak!("7"),
                    ".p2align 6",
                    "2:",
                    "xchg {this},{next}",
                    whiten!("0" "1" "2" "3" "4" "5" "6" "7"),
                    round8!($op "1": "", ""),
                    round8!($op "2": advance!(), tweak!("0")),
                    round8!($op "3": "", tweak!("1")),
                    round8!($op "4": tweak!("2"), ""),
                    round8!($op "5": "", tweak!("3")),
                    round8!($op "6": "", tweak!("4")),
                    round8!($op "7": tweak!("5"), ""),
                    round8!($op "8": "", tweak!("6")),
                    round8!($op "9": "", tweak!("7")),
                    round8!($op "10": "", ""), round8!($op "11": "", ""), round8!($op "12": "", ""),
                    round8!($op "13": "", ""),
                    finish!($last: "0" "1" "2" "3" "4" "5" "6" "7"),
                    "add {source},256",
                    "add {target},256",
                    "dec {chunks}",
                    "jnz 2b",
                    "vzeroall",
                    keys = in(reg) stream.keys,
                    source = inout(reg) stream.source => _,
                    target = inout(reg) stream.target => _,
                    firsts = inout(reg) stream.firsts => _,
                    this = inout(reg) stream.ring.wrapping_add(256) => _,
                    next = inout(reg) stream.ring => _,
                    per = in(reg) stream.chunks_a_sector,
                    left = out(reg) _,
                    chunks = inout(reg) stream.chunks => _,
                    counts = in(reg) &raw const COUNTS,
                    out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
                    out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                    options(nostack),
                );
            }
        }
    };
}

rounds!(encrypt_rounds: "vaesenc" "vaesenclast");
rounds!(decrypt_rounds: "vaesdec" "vaesdeclast");
