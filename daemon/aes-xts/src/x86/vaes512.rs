//! VAES on 512-bit vectors: AVX-512 with VAES and VPCLMULQDQ (Ice Lake, Zen 4 and later). `evex.rs` is the program.

use super::evex::Counts;
use super::{Chunked, Stream, Tweaks, run_chunked};
use crate::batch::Job;

/// Eight vectors of four blocks.
const CHUNK_BYTES: usize = 512;

static COUNTS: Counts = Counts::new(4);

/// Runs `job`.
///
/// # Safety
/// The processor must have what the kernels on 512-bit vectors ask for.
pub(crate) unsafe fn run(job: &Job<'_>, tweaks: Tweaks) {
    if !job.sector_bytes.is_multiple_of(CHUNK_BYTES) {
        // SAFETY: a processor with VAES has AES-NI.
        return unsafe { super::aesni(job) };
    }
    let rounds = match (tweaks, job.encrypt) {
        (Tweaks::ByBits, true) => encrypt_bits,
        (Tweaks::ByBits, false) => decrypt_bits,
        (Tweaks::ByBytes, true) => encrypt_bytes,
        (Tweaks::ByBytes, false) => decrypt_bytes,
    };
    let kernel = Chunked { chunk_bytes: CHUNK_BYTES, firsts_group: 32, firsts, rounds };
    // SAFETY: as the caller says.
    unsafe { run_chunked(job, kernel, job.data_keys()) };
}

evex_firsts! { #[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")] firsts: "zmm" 64 }
evex_rounds! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")]
    encrypt_bits: bits "zmm" 64 32 "vaesenc" "vaesenclast"
}
evex_rounds! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")]
    encrypt_bytes: bytes "zmm" 64 32 "vaesenc" "vaesenclast"
}
evex_rounds! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")]
    decrypt_bits: bits "zmm" 64 32 "vaesdec" "vaesdeclast"
}
evex_rounds! {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")]
    decrypt_bytes: bytes "zmm" 64 32 "vaesdec" "vaesdeclast"
}
