//! The expanded key, in place.

use std::sync::atomic::{AtomicU64, Ordering};

use aes::hazmat;
use zeroize::Zeroize;

/// Rounds of AES-256.
pub(crate) const ROUNDS: usize = 14;

/// Words of one direction's round keys.
const DIRECTION_WORDS: usize = 2 * (ROUNDS + 1);

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
    words: &'a [AtomicU64],
}

impl RoundKeys<'_> {
    /// Round key `round` as two native-endian halves.
    #[inline(always)]
    pub(crate) fn load(self, round: usize) -> [u64; 2] {
        let [low, high] = [&self.words[2 * round], &self.words[2 * round + 1]];
        [low.load(Ordering::Relaxed), high.load(Ordering::Relaxed)]
    }

    fn store(self, round: usize, block: &hazmat::Block) {
        for (word, bytes) in self.words[2 * round..][..2].iter().zip(block.chunks_exact(8)) {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
            value.zeroize();
        }
    }

    fn copy_block(self, round: usize, block: &mut hazmat::Block) {
        for (half, bytes) in self.load(round).into_iter().zip(block.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&half.to_ne_bytes());
        }
    }
}

impl XtsSchedule {
    /// Sees `words` as a schedule. Zeros are a valid schedule, of no key: expand before use.
    pub fn over(words: &[AtomicU64; SCHEDULE_WORDS]) -> &Self {
        // SAFETY: `repr(transparent)`: same layout, same validity, same lifetime.
        unsafe { &*std::ptr::from_ref(words).cast::<Self>() }
    }

    /// Expands cipher key `key[..32]` and tweak key `key[32..]` in place. Call it on the key stack.
    pub fn expand(&self, key: &[u8; 64]) -> Result<(), XtsKeyError> {
        let (cipher_key, tweak_key) = key.split_at(32);
        let difference = cipher_key.iter().zip(tweak_key).fold(0, |difference, (a, b)| difference | (a ^ b));
        if std::hint::black_box(difference) == 0 {
            return Err(XtsKeyError::EqualHalves);
        }
        expand_encryption(self.cipher_encrypt(), cipher_key);
        invert(self.cipher_encrypt(), self.cipher_decrypt());
        expand_encryption(self.tweak_encrypt(), tweak_key);
        Ok(())
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
        RoundKeys { words: &self.words[index * DIRECTION_WORDS..][..DIRECTION_WORDS] }
    }
}

/// FIPS 197, 5.2, for 256-bit keys: eight columns at a time, held as bytes in memory order.
fn expand_encryption(keys: RoundKeys<'_>, key: &[u8]) {
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
    for index in 0..8 {
        if index == 4 {
            substitute(&mut previous);
        }
        for (byte, from) in columns[index].iter_mut().zip(previous) {
            *byte ^= from;
        }
        previous = columns[index];
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
        encrypt.copy_block(ROUNDS - round, &mut block);
        if round != 0 && round != ROUNDS {
            hazmat::inv_mix_columns(&mut block);
        }
        decrypt.store(round, &block);
    }
    block.zeroize();
}
