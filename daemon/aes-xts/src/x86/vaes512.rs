//! VAES on 512-bit vectors: AVX-512 with VAES and VPCLMULQDQ (Ice Lake, Zen 4 and later). `evex.rs` is the program.

use super::evex::Counts;
use super::{Chunked, Stream, run_chunked};
use crate::batch::Job;

/// Eight vectors of four blocks.
const CHUNK_BYTES: usize = 512;

static COUNTS: Counts = Counts::new(4);

/// Runs `job`.
///
/// # Safety
/// The processor must have what `Kernel::VAES_512` asks for.
pub(crate) unsafe fn run(job: &Job<'_>) {
    if !job.sector_bytes.is_multiple_of(CHUNK_BYTES) {
        // SAFETY: a processor with VAES has AES-NI.
        return unsafe { super::aesni(job) };
    }
    let rounds = if job.encrypt { encrypt_rounds } else { decrypt_rounds };
    let kernel = Chunked { chunk_bytes: CHUNK_BYTES, firsts_group: 32, firsts, rounds };
    // SAFETY: as the caller says.
    unsafe { run_chunked(job, kernel, job.data_keys()) };
}

evex_firsts! { #[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")] firsts: "zmm" 64 }
evex_rounds! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")]
    encrypt_rounds: "zmm" 64 32 "vaesenc" "vaesenclast"
}
evex_rounds! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")]
    decrypt_rounds: "zmm" 64 32 "vaesdec" "vaesdeclast"
}
