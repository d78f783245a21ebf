//! The sector tag's keys and values. TAG.md has the bytes, the bounds and why sequences may repeat.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::polyval::dot;
use crate::schedule::{DIRECTION_WORDS, RoundKeys, expand_encryption};
use crate::scrub;
#[cfg(target_arch = "x86_64")]
use crate::x86;

/// H^64, H^60 and so on to H^4, then H^3, H^2 and H.
const POWER_WORDS: usize = 2 * (16 + 3);

/// H^4, H^3, H^2 and H begin here.
#[cfg(target_arch = "x86_64")]
pub(crate) const LAST_POWERS_WORD: usize = 2 * 15;

/// Words of an expanded tag key: 544 bytes.
pub const TAG_WORDS: usize = DIRECTION_WORDS + POWER_WORDS;

/// Bytes of a tag that is stored whole.
pub const TAG_BYTES: usize = 16;

/// Shortest prefix of a tag that is accepted: a forger succeeds once in 2^64 tries.
pub const TAG_BYTES_MIN: usize = 8;

/// Bytes that say, before the ciphertext, whose tag it is: four blocks.
pub(crate) const HEADER_BYTES: usize = 64;

/// First field of a header: a change of anything in TAG.md changes it.
const VERSION: [u8; 8] = *b"nl-tag 1";

/// An expanded tag key, seen through a reference into the arena; see [`XtsSchedule`](crate::XtsSchedule).
#[repr(transparent)]
#[expect(missing_debug_implementations, reason = "a key has nothing to print")]
pub struct TagSchedule {
    words: [AtomicU64; TAG_WORDS],
}

/// What a tag binds a run of sectors to, beside their addresses, lengths and ciphertexts.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// Key domain.
    pub domain: [u8; 16],
    /// Volume epoch.
    pub epoch: u32,
    /// Sequence of each sector. It may repeat.
    pub sequences: &'a [u64],
}

/// What is kept beside a sector: see DESIGN, section 5.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// CRC-32C of the ciphertext: tells rot without a key.
    pub checksum: u32,
    /// Keyed tag over ciphertext and [`Binding`].
    pub tag: Tag,
}

/// A computed tag. Compare it with [`Tag::verify`] only: there is no `==`.
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "a tag that is not verified or stored protects nothing"]
pub struct Tag(pub(crate) [u8; TAG_BYTES]);

/// Why a stored tag was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// Ciphertext, key, domain, address, epoch or sequence is not what was tagged.
    #[error("the sector's tag does not match: it was changed, moved, or put back from an earlier time")]
    Mismatch,
    /// Not a length that a tag is stored at.
    #[error("a stored tag of {0} bytes is out of bounds: use 8 to 16")]
    Length(usize),
}

impl Tag {
    /// All 16 bytes, to store them or a prefix.
    pub fn bytes(&self) -> &[u8; TAG_BYTES] {
        &self.0
    }

    /// Compares with a stored tag or its prefix of 8 to 16 bytes, in a time that does not depend on where they differ.
    ///
    /// # Errors
    /// Another tag, or a length out of bounds.
    pub fn verify(&self, stored: &[u8]) -> Result<(), TagError> {
        if !(TAG_BYTES_MIN..=TAG_BYTES).contains(&stored.len()) {
            return Err(TagError::Length(stored.len()));
        }
        let difference = self.0.iter().zip(stored).fold(0, |difference, (a, b)| difference | (a ^ b));
        if std::hint::black_box(difference) == 0 { Ok(()) } else { Err(TagError::Mismatch) }
    }
}

impl TagSchedule {
    /// Sees `words` as a tag key. Zeros are no key: expand before use.
    pub fn over(words: &[AtomicU64; TAG_WORDS]) -> &Self {
        // SAFETY: `repr(transparent)`: same layout, same validity, same lifetime.
        unsafe { &*std::ptr::from_ref(words).cast::<Self>() }
    }

    /// Expands the POLYVAL key and the AES-256 key over it in place. Call it on the key stack.
    pub fn expand(&self, hash_key: &[u8; 16], prf_key: &[u8; 32]) {
        self.expand_prf(prf_key);
        self.expand_powers(u128::from_le_bytes(*hash_key));
        scrub::after_keys();
    }

    #[inline(never)]
    fn expand_prf(&self, key: &[u8; 32]) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("aes") {
            // SAFETY: the processor has AES-NI; 32 bytes of key, 240 of schedule that may be changed while shared.
            return unsafe { x86::expand::encryption(key.as_ptr(), self.prf().as_ptr().cast_mut()) };
        }
        expand_encryption(self.prf(), key);
    }

    #[inline(never)]
    fn expand_powers(&self, key: u128) {
        let mut power = key;
        for exponent in 1..=64 {
            if exponent < 4 {
                self.store(POWER_WORDS - 2 * exponent, power);
            } else if exponent % 4 == 0 {
                self.store(2 * (16 - exponent / 4), power);
            }
            power = dot(power, key);
        }
        std::hint::black_box(&mut power);
    }

    fn store(&self, at: usize, power: u128) {
        self.words[DIRECTION_WORDS + at].store(low_half(power).to_le(), Ordering::Relaxed);
        self.words[DIRECTION_WORDS + at + 1].store(low_half(power >> 64).to_le(), Ordering::Relaxed);
    }

    /// Overwrites the key with zeros.
    pub fn zero(&self) {
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    pub(crate) fn prf(&self) -> RoundKeys<'_> {
        RoundKeys::first_of(&self.words)
    }

    /// The hash key itself, for the portable path.
    pub(crate) fn hash_key(&self) -> u128 {
        let word =
            |at: usize| u128::from(u64::from_le(self.words[DIRECTION_WORDS + at].load(Ordering::Relaxed)));
        word(POWER_WORDS - 2) | word(POWER_WORDS - 1) << 64
    }

    /// All powers, for the kernels' machine code.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn powers(&self) -> *const u8 {
        self.words[DIRECTION_WORDS..].as_ptr().cast()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "takes the low half")]
fn low_half(number: u128) -> u64 {
    number as u64
}

impl Binding<'_> {
    /// The header of sector `index` of a run that begins at `first`, `bytes` long: TAG.md, "Encoding".
    pub(crate) fn header(&self, first: u128, index: usize, bytes: usize) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&VERSION);
        header[8..16].copy_from_slice(&(bytes as u64).to_le_bytes());
        header[16..32].copy_from_slice(&self.domain);
        header[32..48].copy_from_slice(&first.wrapping_add(index as u128).to_le_bytes());
        header[48..56].copy_from_slice(&self.sequences[index].to_le_bytes());
        header[56..60].copy_from_slice(&self.epoch.to_le_bytes());
        header
    }
}
