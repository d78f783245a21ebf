//! Memory for tweaks while a batch runs: the caller's, and zeroed when the batch is done.

use std::sync::atomic::{AtomicU64, Ordering};

/// Sectors whose first tweaks are made together.
pub(crate) const GROUP_SECTORS: usize = 64;

/// A kernel looks two sectors ahead, and works on the list in vectors.
const LIST_WORDS: usize = 2 * (GROUP_SECTORS + 4);

/// Tweaks of two turns of 1 KiB each.
const RING_WORDS: usize = 2 * 1024 / 8;

/// Powers of the hash key as the widest loop multiplies by them: sixteen, four times each, and their sums of halves, two in
/// a vector.
const POWER_WORDS: usize = (16 + 8) * 64 / 8;

/// Words of scratch that a batch needs: 4,672 bytes.
pub const SCRATCH_WORDS: usize = LIST_WORDS + RING_WORDS + POWER_WORDS;

/// Memory that a batch may write tweaks to, seen through a reference into the arena. Two batches must not share one at the
/// same time: both would compute garbage. Zeros before and after each use.
#[repr(transparent)]
#[expect(missing_debug_implementations, reason = "what it holds is secret")]
pub struct Scratch {
    words: [AtomicU64; SCRATCH_WORDS],
}

impl Scratch {
    /// Sees `words` as scratch.
    pub fn over(words: &[AtomicU64; SCRATCH_WORDS]) -> &Self {
        // SAFETY: `repr(transparent)`: same layout, same validity, same lifetime.
        unsafe { &*std::ptr::from_ref(words).cast::<Self>() }
    }

    /// Writes `count` sector numbers from `first` on into the list.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[expect(clippy::cast_possible_truncation, reason = "takes the halves of a number")]
    pub(crate) fn number(&self, first: u128, count: usize) {
        let (entries, _) = self.words.as_chunks::<2>();
        let mut number = first;
        for [low, high] in &entries[..count] {
            low.store(number as u64, Ordering::Relaxed);
            high.store((number >> 64) as u64, Ordering::Relaxed);
            number = number.wrapping_add(1);
        }
    }

    /// The list of first tweaks, for the kernels' machine code.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) fn firsts(&self) -> *const u8 {
        self.words.as_ptr().cast()
    }

    /// The ring of tweaks, for the kernels' machine code.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) fn ring(&self) -> *mut u8 {
        self.words[LIST_WORDS..].as_ptr().cast_mut().cast()
    }

    /// Room for powers of a hash key, for the kernels' machine code.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn powers(&self) -> *mut u8 {
        self.words[LIST_WORDS + RING_WORDS..].as_ptr().cast_mut().cast()
    }

    /// Zeroes that room.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn zero_powers(&self) {
        zero_words(&self.words[LIST_WORDS + RING_WORDS..]);
    }

    /// Zeroes the ring and the list's first `sectors` entries, with those that a kernel reads ahead of them.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) fn zero(&self, sectors: usize) {
        // Whole groups of the widest kernel were encrypted, whatever was in them.
        let list = (sectors.next_multiple_of(32) * 2).min(LIST_WORDS);
        zero_words(&self.words[..list]);
        zero_words(&self.words[LIST_WORDS..][..RING_WORDS]);
    }
}

/// As on x86-64, where one instruction does it.
#[cfg(target_arch = "aarch64")]
fn zero_words(words: &[AtomicU64]) {
    for word in words {
        word.store(0, Ordering::Relaxed);
    }
}

/// Atomic stores are not made into vector stores; the string instruction writes a line at a time.
#[cfg(target_arch = "x86_64")]
fn zero_words(words: &[AtomicU64]) {
    // SAFETY: writes exactly `words`, whose contents may be changed through a shared reference; a concurrent wipe writes
    // the same zeros. The direction flag is clear, as the ABI says.
    unsafe {
        std::arch::asm!(
            "rep stosq",
            inout("rcx") words.len() => _,
            inout("rdi") words.as_ptr() => _,
            in("rax") 0_u64,
            options(nostack, preserves_flags),
        );
    }
}
