//! Zeros that reach DRAM.
//!
//! A zero in a cache does not overwrite the key in the memory chip behind it: every line is written back with a flush
//! instruction, and a fence waits for all of them. Nothing here allocates, locks or fails.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes in the cache line that one flush instruction writes back. Smaller than the truth costs time, larger
/// would skip lines; 64 holds on every x86-64 and is the smallest in use on AArch64 servers.
const LINE_BYTES: usize = 64;

/// How lines are written back on this processor; found out once, so that a wipe does not have to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// `clflushopt`: flushes overlap each other.
    #[cfg(target_arch = "x86_64")]
    Overlapping,
    /// `clflush`: in order, on every x86-64.
    #[cfg(target_arch = "x86_64")]
    Ordered,
    /// `dc civac`, which Linux allows user space.
    #[cfg(target_arch = "aarch64")]
    CleanAndInvalidate,
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!(
    "no cache flush is known for this architecture: a wipe could not promise that DRAM is overwritten"
);

impl Flush {
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{__cpuid_count, __get_cpuid_max};
            const STRUCTURED_FEATURES: u32 = 7;
            const EBX_CLFLUSHOPT: u32 = 1 << 23;
            let (highest_leaf, _) = __get_cpuid_max(0);
            if highest_leaf >= STRUCTURED_FEATURES
                && __cpuid_count(STRUCTURED_FEATURES, 0).ebx & EBX_CLFLUSHOPT != 0
            {
                Self::Overlapping
            } else {
                Self::Ordered
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            Self::CleanAndInvalidate
        }
    }

    /// Zeroes `words` and returns when the zeros are in memory.
    ///
    /// Others may be reading and writing the same words; what they read is a word from before or zero.
    pub(crate) fn zero(self, words: &[AtomicU64]) {
        for word in words {
            word.store(0, Ordering::Relaxed);
        }
        self.write_back(words);
    }

    fn write_back(self, words: &[AtomicU64]) {
        let range = words.as_ptr_range();
        let mut line = range.start.cast::<u8>().map_addr(|address| address & !(LINE_BYTES - 1));
        let end = range.end.cast::<u8>();
        while line < end {
            self.write_back_line(line);
            line = line.wrapping_add(LINE_BYTES);
        }
        // SAFETY: a fence has no operands; leaving out `nomem` also tells the compiler that the stores above are observed.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            std::arch::asm!("mfence", options(nostack, preserves_flags));
            #[cfg(target_arch = "aarch64")]
            std::arch::asm!("dsb sy", options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn write_back_line(self, line: *const u8) {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: detected at start; `line` overlaps words that the caller holds a reference to, and flushing a line
            // never changes what anyone reads.
            Self::Overlapping => unsafe {
                std::arch::asm!("clflushopt [{0}]", in(reg) line, options(nostack, preserves_flags));
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above; the instruction is part of every x86-64.
            Self::Ordered => unsafe {
                std::arch::asm!("clflush [{0}]", in(reg) line, options(nostack, preserves_flags));
            },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above; Linux sets SCTLR_EL1.UCI.
            Self::CleanAndInvalidate => unsafe {
                std::arch::asm!("dc civac, {0}", in(reg) line, options(nostack, preserves_flags));
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_an_unaligned_range_is_zeroed_and_its_neighbours_are_not() {
        let words: Vec<AtomicU64> = (0..64).map(|_| AtomicU64::new(u64::MAX)).collect();
        Flush::detect().zero(&words[3..61]);
        for (index, word) in words.iter().enumerate() {
            let expected = if (3..61).contains(&index) { 0 } else { u64::MAX };
            assert_eq!(word.load(Ordering::Relaxed), expected, "word {index}");
        }
    }
}
