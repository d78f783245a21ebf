//! Clear sectors, and the two steps through the door: `seal` and `unseal`.

use std::fmt;
use std::mem;

use aes_xts::{BatchError, Direction, Sectors};
use device::{Sealed, SectorBuf};
use keyring::{KeyGone, KeyHandle, Keyring};
use units::{Lba, SECTOR_BYTES, SectorCount};
use zeroize::Zeroize;

/// Whole sectors of plaintext. No device takes it: the only way to storage is [`seal`], which consumes it. Zeroed
/// on drop.
pub struct Clear(SectorBuf);

impl Clear {
    /// `count` sectors of zeros.
    pub fn zeroed(count: SectorCount) -> Self {
        Self(SectorBuf::zeroed(count))
    }

    /// The plaintext.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The plaintext, to fill in.
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }
}

impl fmt::Debug for Clear {
    /// Says how much, never what.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clear({} sectors)", self.0.sectors().0)
    }
}

impl Drop for Clear {
    fn drop(&mut self) {
        self.0.as_mut_bytes().zeroize();
    }
}

/// Encrypts `clear` in place for the sectors from `first` on.
///
/// A buffer that was being encrypted while the key went is neither plaintext nor ciphertext: it is zeroed and the
/// answer is [`KeyGone`].
pub fn seal(mut clear: Clear, keyring: &Keyring, key: KeyHandle, first: Lba) -> Result<Sealed, KeyGone> {
    keyring.with_key(key, |key| {
        whole(key.cipher.apply(Direction::Encrypt, sectors_from(first), clear.as_mut_bytes()))
    })?;
    Ok(Sealed::from_cipher(mem::replace(&mut clear.0, SectorBuf::zeroed(SectorCount(0)))))
}

/// Decrypts `sealed`, which was read from the sectors from `first` on, into `out` of the same length.
///
/// When the key goes meanwhile, `out` is zeroed and the answer is [`KeyGone`].
///
/// # Panics
/// If the lengths differ: the caller's invariant.
pub fn unseal(
    sealed: &Sealed,
    keyring: &Keyring,
    key: KeyHandle,
    first: Lba,
    out: &mut [u8],
) -> Result<(), KeyGone> {
    let lent = keyring.with_key(key, |key| {
        whole(key.cipher.apply_into(Direction::Decrypt, sectors_from(first), (sealed.as_bytes(), &mut *out)))
    });
    if lent.is_err() {
        out.zeroize();
    }
    lent.map(|_blocks| ())
}

/// The tweak is the sector's number in its key domain.
fn sectors_from(first: Lba) -> Sectors {
    Sectors { first: u128::from(first.0), bytes: SECTOR_BYTES }
}

/// A buffer of whole sectors is never refused; anything else is a bug of the caller.
fn whole(done: Result<u64, BatchError>) -> u64 {
    done.unwrap_or_else(|error| panic!("sectors for the cipher: {error}"))
}
