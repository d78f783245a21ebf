//! POLYVAL on 128-bit vectors, sixteen products a reduction: for AES-NI, and for what is left of a sector after whole
//! vectors of 64 bytes. `polyval_wide.rs` is the same on wider ones.
//!
//! Blocks 0, 4, 8 and so on are one sum, 1, 5, 9 the next; each takes its way through the data for itself, so that the
//! same powers serve every width. Legacy encodings, so that nothing beyond PCLMULQDQ is asked for.

use crate::tag::LAST_POWERS_WORD;

/// x^127+x^126+x^121 (and 1), the reduction of POLYVAL (RFC 8452, 3).
#[repr(C, align(16))]
struct Reduction([u64; 2]);

static REDUCTION: Reduction = Reduction([0xC200_0000_0000_0000, 0]);

/// Adds the block in xmm0, which is lost, times the power in xmm5 (sum of its halves in xmm6) to low, middle and high sums.
macro_rules! multiply {
    ($low:literal $middle:literal $high:literal) => {
        concat!(
            "pshufd xmm1,xmm0,0x4e\n",
            "pxor xmm1,xmm0\n",
            "movdqa xmm7,xmm0\n",
            "pclmulqdq xmm7,xmm5,0x00\n",
            "pclmulqdq xmm0,xmm5,0x11\n",
            "pclmulqdq xmm1,xmm6,0x00\n",
            "pxor ",
            $low,
            ",xmm7\n",
            "pxor ",
            $high,
            ",xmm0\n",
            "pxor ",
            $middle,
            ",xmm1\n",
        )
    };
}

/// Reduces the sums into `$high`.
macro_rules! reduce {
    ($low:literal $middle:literal $high:literal) => {
        concat!(
            "pxor ",
            $middle,
            ",",
            $low,
            "\n",
            "pxor ",
            $middle,
            ",",
            $high,
            "\n",
            "movdqa xmm7,",
            $middle,
            "\n",
            "pslldq xmm7,8\n",
            "psrldq ",
            $middle,
            ",8\n",
            "pxor ",
            $low,
            ",xmm7\n",
            "pxor ",
            $high,
            ",",
            $middle,
            "\n",
            "movdqa xmm7,",
            $low,
            "\n",
            "pclmulqdq xmm7,xmm11,0x00\n",
            "pshufd ",
            $low,
            ",",
            $low,
            ",0x4e\n",
            "pxor ",
            $low,
            ",xmm7\n",
            "movdqa xmm7,",
            $low,
            "\n",
            "pclmulqdq xmm7,xmm11,0x00\n",
            "pshufd ",
            $low,
            ",",
            $low,
            ",0x4e\n",
            "pxor ",
            $high,
            ",",
            $low,
            "\n",
            "pxor ",
            $high,
            ",xmm7\n",
        )
    };
}

macro_rules! clear {
    ($($i:literal)*) => { concat!($("pxor xmm", $i, ",xmm", $i, "\n",)*) };
}

/// The power at `$at` into xmm5 and the sum of its halves into xmm6.
macro_rules! power {
    ($at:literal) => {
        concat!("movdqu xmm5,", $at, "\n", "pshufd xmm6,xmm5,0x4e\n", "pxor xmm6,xmm5\n")
    };
}

/// Writes to `sum` the hash of the 64 bytes at `header` and the `vectors` times 64 bytes at `data`, at least one.
///
/// # Safety
/// `powers` as `tag.rs` lays them out, `header` and `data` readable, `sum` writable for a block, and the processor has
/// PCLMULQDQ.
#[target_feature(enable = "pclmulqdq,sse2")]
#[inline(never)]
pub(super) unsafe fn hash128(
    powers: *const u8,
    sum: *mut u8,
    header: *const u8,
    data: *const u8,
    vectors: usize,
) {
    // SAFETY: as the caller says; see UNSAFE.md, "kernels".
    unsafe {
        core::arch::asm!(
            "movdqu xmm11,[rip+{reduction}]",
            clear!("8" "9" "10"),
            "xor {lane:e},{lane:e}",
            "4:",
            "movdqu xmm0,[{header}+{lane}]",
            "mov {at},{lane}",
            "mov {all},{vectors}",
            "2:",
            "mov {left:e},16",
            "cmp {all},{left}",
            "cmovb {left},{all}",
            "sub {all},{left}",
            "mov {power:e},16",
            "sub {power},{left}",
            "shl {power},4",
            "add {power},{powers}",
            clear!("2" "3" "4"),
            "3:",
            power!("[{power}]"),
            multiply!("xmm2" "xmm3" "xmm4"),
            "movdqu xmm0,[{data}+{at}]",
            "add {at},64",
            "add {power},16",
            "dec {left}",
            "jnz 3b",
            reduce!("xmm2" "xmm3" "xmm4"),
            "pxor xmm0,xmm4",
            "test {all},{all}",
            "jnz 2b",
            power!("[{powers}+{lane}+8*{last}]"),
            multiply!("xmm8" "xmm9" "xmm10"),
            "add {lane},16",
            "cmp {lane},64",
            "jb 4b",
            reduce!("xmm8" "xmm9" "xmm10"),
            "movdqu [{sum}],xmm10",
            clear!("0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11"),
            powers = in(reg) powers,
            sum = in(reg) sum,
            header = in(reg) header,
            data = in(reg) data,
            vectors = in(reg) vectors,
            lane = out(reg) _,
            at = out(reg) _,
            all = out(reg) _,
            left = out(reg) _,
            power = out(reg) _,
            reduction = sym REDUCTION,
            last = const LAST_POWERS_WORD,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
            out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            options(nostack),
        );
    }
}

/// Continues the sum at `sum` over `blocks` blocks, at least one.
///
/// # Safety
/// As [`hash128`], with `data` readable for `blocks` blocks.
#[target_feature(enable = "pclmulqdq,sse2")]
#[inline(never)]
pub(super) unsafe fn update(powers: *const u8, sum: *mut u8, data: *const u8, blocks: usize) {
    // SAFETY: as the caller says; see UNSAFE.md, "kernels".
    unsafe {
        core::arch::asm!(
            "movdqu xmm11,[rip+{reduction}]",
            power!("[{powers}+8*{last}+48]"),
            "movdqu xmm4,[{sum}]",
            "2:",
            "movdqu xmm0,[{data}]",
            "pxor xmm0,xmm4",
            clear!("2" "3" "4"),
            multiply!("xmm2" "xmm3" "xmm4"),
            reduce!("xmm2" "xmm3" "xmm4"),
            "add {data},16",
            "dec {blocks}",
            "jnz 2b",
            "movdqu [{sum}],xmm4",
            clear!("0" "1" "2" "3" "4" "5" "6" "7" "11"),
            powers = in(reg) powers,
            sum = in(reg) sum,
            data = inout(reg) data => _,
            blocks = inout(reg) blocks => _,
            reduction = sym REDUCTION,
            last = const LAST_POWERS_WORD,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
            out("xmm7") _, out("xmm11") _,
            options(nostack),
        );
    }
}
