//! The expanded key, in place.

use std::sync::atomic::{AtomicU64, Ordering};

use aes::hazmat;
use zeroize::Zeroize;

use crate::scrub;
#[cfg(target_arch = "x86_64")]
use crate::x86;

/// Rounds of AES-256.
pub(crate) const ROUNDS: usize = 14;

/// Words of one direction's round keys.
pub(crate) const DIRECTION_WORDS: usize = 2 * (ROUNDS + 1);

/// Words of an expanded XTS key: cipher key both ways, tweak key for encryption.
pub const SCHEDULE_WORDS: usize = 3 * DIRECTION_WORDS;

/// Why a key cannot be used for XTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XtsKeyError {
    /// Cipher key and tweak key are equal, which IEEE 1619 and FIPS 140-3 IG C.I forbid.
    #[error("the cipher key and the tweak key are equal; this key must not be used")]
    EqualHalves,
}

/// An expanded AES-256-XTS key, seen through a reference into the arena.
///
/// Words are relaxed atomics, so that a wipe by another thread is no data race: an encryption that races with one
/// computes garbage, and the keyring's generation tells. It can't be created, copied, compared or printed.
#[repr(transparent)]
#[expect(missing_debug_implementations, reason = "a key schedule has nothing to print")]
pub struct XtsSchedule {
    words: [AtomicU64; SCHEDULE_WORDS],
}

/// Round keys of one AES key in one direction, in the order of use.
#[derive(Clone, Copy)]
pub(crate) struct RoundKeys<'a> {
    words: &'a [AtomicU64; DIRECTION_WORDS],
}

impl<'a> RoundKeys<'a> {
    /// Those at the beginning of `words`.
    ///
    /// # Panics
    /// Where there are fewer words than one direction takes.
    pub(crate) fn first_of(words: &'a [AtomicU64]) -> Self {
        let (directions, _) = words.as_chunks::<DIRECTION_WORDS>();
        Self { words: &directions[0] }
    }

    /// Round key `round` as the little-endian number that its 16 bytes are.
    #[inline(always)]
    pub(crate) fn load(self, round: usize) -> u128 {
        let low = u64::from_le(self.words[2 * round].load(Ordering::Relaxed));
        let high = u64::from_le(self.words[2 * round + 1].load(Ordering::Relaxed));
        u128::from(low) | u128::from(high) << 64
    }

    /// Where they begin, for the kernels' machine code.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) fn as_ptr(self) -> *const u8 {
        self.words.as_ptr().cast()
    }

    fn store(self, round: usize, block: &hazmat::Block) {
        let [low, high] = &self.words[2 * round..][..2] else { unreachable!("a round key is two words") };
        let bytes = u128::from_le_bytes(block.0);
        low.store(low_half(bytes).to_le(), Ordering::Relaxed);
        high.store(low_half(bytes >> 64).to_le(), Ordering::Relaxed);
    }
}

impl XtsSchedule {
    /// Sees `words` as a schedule. Zeros are a valid schedule, of no key: expand before use.
    pub fn over(words: &[AtomicU64; SCHEDULE_WORDS]) -> &Self {
        // SAFETY: `repr(transparent)`: same layout, same validity, same lifetime.
        unsafe { &*std::ptr::from_ref(words).cast::<Self>() }
    }

    /// Expands cipher key `key[..32]` and tweak key `key[32..]` in place. Equal halves are refused and leave the schedule
    /// as it was. Call it on the key stack.
    ///
    /// # Errors
    /// Equal halves.
    pub fn expand(&self, key: &[u8; 64]) -> Result<(), XtsKeyError> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("aes") {
            let (cipher_key, tweak_key) = halves(key)?;
            let [cipher, inverse, tweak] =
                [self.cipher_encrypt(), self.cipher_decrypt(), self.tweak_encrypt()].map(RoundKeys::as_ptr);
            // SAFETY: the processor has AES-NI, the halves are 32 bytes each, and each direction has 240 bytes, whose
            // contents may be changed through a shared reference.
            unsafe { x86::expand::encryption(cipher_key.as_ptr(), cipher.cast_mut()) };
            // SAFETY: as above.
            unsafe { x86::expand::decryption(cipher, inverse.cast_mut()) };
            // SAFETY: as above.
            unsafe { x86::expand::encryption(tweak_key.as_ptr(), tweak.cast_mut()) };
            return Ok(());
        }
        self.expand_portably(key)
    }

    /// As [`XtsSchedule::expand`], without the processor's own instructions for it.
    ///
    /// # Errors
    /// Equal halves.
    pub fn expand_portably(&self, key: &[u8; 64]) -> Result<(), XtsKeyError> {
        let (cipher_key, tweak_key) = halves(key)?;
        self.expand_halves(cipher_key, tweak_key);
        scrub::after_keys();
        Ok(())
    }

    #[inline(never)]
    fn expand_halves(&self, cipher_key: &[u8], tweak_key: &[u8]) {
        expand_encryption(self.cipher_encrypt(), cipher_key);
        invert(self.cipher_encrypt(), self.cipher_decrypt());
        expand_encryption(self.tweak_encrypt(), tweak_key);
    }

    /// Overwrites the schedule with zeros.
    pub fn zero(&self) {
        for word in &self.words {
            word.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn cipher_encrypt(&self) -> RoundKeys<'_> {
        self.direction(0)
    }

    pub(crate) fn cipher_decrypt(&self) -> RoundKeys<'_> {
        self.direction(1)
    }

    pub(crate) fn tweak_encrypt(&self) -> RoundKeys<'_> {
        self.direction(2)
    }

    fn direction(&self, index: usize) -> RoundKeys<'_> {
        let (directions, _) = self.words.as_chunks::<DIRECTION_WORDS>();
        RoundKeys { words: &directions[index] }
    }
}

/// Cipher key and tweak key, which must differ.
fn halves(key: &[u8; 64]) -> Result<(&[u8], &[u8]), XtsKeyError> {
    let (cipher_key, tweak_key) = key.split_at(32);
    let difference = cipher_key.iter().zip(tweak_key).fold(0, |difference, (a, b)| difference | (a ^ b));
    if std::hint::black_box(difference) == 0 {
        return Err(XtsKeyError::EqualHalves);
    }
    Ok((cipher_key, tweak_key))
}

#[expect(clippy::cast_possible_truncation, reason = "takes the low half")]
fn low_half(number: u128) -> u64 {
    number as u64
}

/// FIPS 197, 5.2, for 256-bit keys: eight columns at a time, held as bytes in memory order.
pub(crate) fn expand_encryption(keys: RoundKeys<'_>, key: &[u8]) {
    let mut columns = [[0u8; 4]; 8];
    for (column, bytes) in columns.iter_mut().zip(key.chunks_exact(4)) {
        column.copy_from_slice(bytes);
    }
    let mut block = hazmat::Block::default();
    let mut round_constant: u8 = 1;
    for round in (0..=ROUNDS).step_by(2) {
        block.copy_from_slice(columns[..4].as_flattened());
        keys.store(round, &block);
        if round == ROUNDS {
            break;
        }
        block.copy_from_slice(columns[4..].as_flattened());
        keys.store(round + 1, &block);
        next_columns(&mut columns, round_constant);
        round_constant <<= 1;
    }
    columns.as_flattened_mut().zeroize();
    block.zeroize();
}

fn next_columns(columns: &mut [[u8; 4]; 8], round_constant: u8) {
    let mut previous = columns[7];
    previous.rotate_left(1);
    substitute(&mut previous);
    previous[0] ^= round_constant;
    for (index, column) in columns.iter_mut().enumerate() {
        if index == 4 {
            substitute(&mut previous);
        }
        for (byte, from) in column.iter_mut().zip(previous) {
            *byte ^= from;
        }
        previous = *column;
    }
    previous.zeroize();
}

/// SubWord without a table: in a state of four equal columns ShiftRows changes nothing, so one cipher round with a zero
/// key is SubBytes and MixColumns, and InvMixColumns takes the latter back.
fn substitute(column: &mut [u8; 4]) {
    let mut block = hazmat::Block::default();
    for copy in block.chunks_exact_mut(4) {
        copy.copy_from_slice(column);
    }
    hazmat::cipher_round(&mut block, &hazmat::Block::default());
    hazmat::inv_mix_columns(&mut block);
    column.copy_from_slice(&block[..4]);
    block.zeroize();
}

/// Round keys of the equivalent inverse cipher (FIPS 197, 5.3.5): reversed, the inner ones through InvMixColumns.
fn invert(encrypt: RoundKeys<'_>, decrypt: RoundKeys<'_>) {
    let mut block = hazmat::Block::default();
    for round in 0..=ROUNDS {
        block.0 = encrypt.load(ROUNDS - round).to_le_bytes();
        if round != 0 && round != ROUNDS {
            hazmat::inv_mix_columns(&mut block);
        }
        decrypt.store(round, &block);
    }
    block.zeroize();
}
