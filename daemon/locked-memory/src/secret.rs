//! Bytes that stay in the arena.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroize;

/// `8 * WORDS` secret bytes in place. Lent by reference only: no Clone, Debug, Eq or by-value read.
///
/// Concurrent use is not a data race, but a reader that raced with a writer gets a mixture: whoever can race checks
/// a generation of its own afterwards, as the keyring does.
#[repr(transparent)]
#[expect(missing_debug_implementations, reason = "a secret has nothing to print")]
pub struct SecretBytes<const WORDS: usize> {
    words: [AtomicU64; WORDS],
}

impl<const WORDS: usize> SecretBytes<WORDS> {
    pub(crate) fn over(words: &[AtomicU64; WORDS]) -> &Self {
        // SAFETY: `repr(transparent)`: same layout, same validity, same lifetime.
        unsafe { &*std::ptr::from_ref(words).cast::<Self>() }
    }

    /// Moves `source` in; `source` is zeroed.
    pub fn write_from<const BYTES: usize>(&self, source: &mut [u8; BYTES]) {
        const { assert!(BYTES == 8 * WORDS, "as many bytes as the secret has") };
        for (word, bytes) in self.words.iter().zip(source.chunks_exact(8)) {
            word.store(word_of(bytes), Ordering::Relaxed);
        }
        source.zeroize();
    }

    /// Copies out. Call it on the key stack, and let `out` be there too.
    pub fn read_into<const BYTES: usize>(&self, out: &mut [u8; BYTES]) {
        const { assert!(BYTES == 8 * WORDS, "as many bytes as the secret has") };
        for (word, bytes) in self.words.iter().zip(out.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
    }

    /// Fills it from the kernel's random source, with no copy anywhere else.
    pub fn fill_random(&self) -> io::Result<()> {
        let start = self.words.as_ptr().cast::<u8>().cast_mut();
        let mut filled = 0;
        while filled < 8 * WORDS {
            // SAFETY: inside the array; interior mutability (atomics) permits the kernel's write through `&self`.
            let got = unsafe { libc::getrandom(start.wrapping_add(filled).cast(), 8 * WORDS - filled, 0) };
            match usize::try_from(got) {
                Ok(bytes) => filled += bytes,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Overwrites it with zeros, in the caches at least; [`Arena::zero_span`](crate::Arena::zero_span) also in memory.
    pub fn zero(&self) {
        for word in &self.words {
            word.store(0, Ordering::Relaxed);
        }
    }
}

fn word_of(bytes: &[u8]) -> u64 {
    let mut word = 0;
    for (index, byte) in bytes.iter().enumerate() {
        word |= u64::from(*byte) << (8 * index);
    }
    u64::from_le(word)
}
