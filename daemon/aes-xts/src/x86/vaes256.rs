//! VAES on 256-bit vectors with the 32 registers of AVX-512VL, for processors that slow down under 512-bit vectors. `evex.rs` is the program.

use super::evex::Counts;
use super::{Chunked, Stream, run_chunked};
use crate::batch::Job;

/// Eight vectors of two blocks.
const CHUNK_BYTES: usize = 256;

static COUNTS: Counts = Counts::new(2);

/// Runs `job`.
///
/// # Safety
/// The processor must have what `Kernel::VAES_256` asks for.
pub(crate) unsafe fn run(job: &Job<'_>) {
    if !job.sector_bytes.is_multiple_of(CHUNK_BYTES) {
        // SAFETY: a processor with VAES has AES-NI.
        return unsafe { super::aesni(job) };
    }
    let rounds = if job.encrypt { encrypt_rounds } else { decrypt_rounds };
    let kernel = Chunked { chunk_bytes: CHUNK_BYTES, firsts_group: 16, firsts, rounds };
    // SAFETY: as the caller says.
    unsafe { run_chunked(job, kernel, job.data_keys()) };
}

evex_firsts! { #[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")] firsts: "ymm" 32 }
evex_rounds! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")]
    encrypt_rounds: bits "ymm" 32 16 "vaesenc" "vaesenclast"
}
evex_rounds! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")]
    decrypt_rounds: bits "ymm" 32 16 "vaesdec" "vaesdeclast"
}
