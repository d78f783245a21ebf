//! The bound: what one core could encrypt if AES rounds were all there is, fourteen a block.

use std::time::Instant;

/// Turns of the loop: some tens of microseconds.
const TURNS: u64 = 2_500;

/// Rounds in a turn: sixteen registers, twice.
const ROUNDS_A_TURN: u64 = 32;

macro_rules! rounds {
    ($v:literal $key:literal: $($i:literal)*) => { concat!($("vaesenc ", $v, $i, ",", $v, $i, ",", $v, $key, "\n",)*) };
}

/// GiB a second, on the widest vectors there are.
///
/// # Panics
/// On a processor without VAES, where this bench has nothing to say.
pub(crate) fn gib_per_second() -> f64 {
    assert!(
        std::arch::is_x86_feature_detected!("vaes"),
        "the bound is measured with VAES: this processor has none"
    );
    let wide = std::arch::is_x86_feature_detected!("avx512f");
    let start = Instant::now();
    if wide {
        // SAFETY: the processor has both.
        unsafe { wide_loop(TURNS) };
    } else {
        // SAFETY: the processor has VAES, and so AVX2.
        unsafe { narrow_loop(TURNS) };
    }
    let vector_bytes = if wide { 64 } else { 32 };
    #[expect(clippy::cast_precision_loss, reason = "some ten million bytes")]
    let bytes = (TURNS * ROUNDS_A_TURN * vector_bytes) as f64 / 14.0;
    bytes / start.elapsed().as_secs_f64() / f64::from(1 << 30)
}

#[target_feature(enable = "avx512f,vaes")]
#[inline(never)]
unsafe fn wide_loop(turns: u64) {
    // SAFETY: changes registers only.
    unsafe {
        std::arch::asm!(
            "2:",
            rounds!("zmm" "16": "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15"),
            rounds!("zmm" "16": "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15"),
            "dec {turns}",
            "jnz 2b",
            "vzeroall",
            turns = inout(reg) turns => _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
            out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
            options(nostack, nomem),
        );
    }
}

#[target_feature(enable = "avx2,vaes")]
#[inline(never)]
unsafe fn narrow_loop(turns: u64) {
    // SAFETY: changes registers only.
    unsafe {
        std::arch::asm!(
            "2:",
            rounds!("ymm" "15": "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14"),
            rounds!("ymm" "15": "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14"),
            rounds!("ymm" "15": "0" "1"),
            "dec {turns}",
            "jnz 2b",
            "vzeroall",
            turns = inout(reg) turns => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
            out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack, nomem),
        );
    }
}
