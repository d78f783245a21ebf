//! A lent key as a pseudorandom function: what wraps the keys of objects, which are made elsewhere.
//!
//! The function is the key's tag (`aes-xts/TAG.md`: a keyed hash under AES-256) at an address that no sector has. Its key stays
//! where keys are; the answer is withheld where the key went meanwhile.

use std::fmt;
use std::sync::Arc;

use aes_xts::{Binding, Record, Sectors};
use keyring::{KeyGone, KeyHandle, Keyring};
use zeroize::Zeroize;

use crate::clear::Bound;

/// What the function is computed over.
pub const FUNCTION_INPUT_BYTES: usize = 512;

/// Beside the address of a pool's state (`witness.rs`), and no sector's either.
const FUNCTION_ADDRESS: u128 = u128::MAX - 1;

/// A key that was admitted, as long as it is held.
#[derive(Clone)]
pub struct KeyFunction {
    keyring: Arc<Keyring>,
    key: KeyHandle,
    bound: Bound,
}

impl fmt::Debug for KeyFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFunction")
            .field("key", &self.key)
            .field("bound", &self.bound)
            .finish_non_exhaustive()
    }
}

impl KeyFunction {
    /// For the key that was admitted for this domain and epoch.
    pub fn new(keyring: Arc<Keyring>, key: KeyHandle, bound: Bound) -> Self {
        Self { keyring, key, bound }
    }

    /// 16 bytes that nobody without the key tells from random ones. The input may be secret.
    ///
    /// # Errors
    /// The key is gone, or went meanwhile.
    pub fn compute(&self, input: &[u8; FUNCTION_INPUT_BYTES]) -> Result<[u8; 16], KeyGone> {
        // The tag comes with a decryption of what is tagged, which is of no use here.
        let mut unused = [0; FUNCTION_INPUT_BYTES];
        let mut records = [Record::default()];
        let binding = Binding { domain: self.bound.domain.0, epoch: self.bound.epoch.0, sequences: &[0] };
        let sectors = Sectors { first: FUNCTION_ADDRESS, bytes: FUNCTION_INPUT_BYTES };
        let used = self.keyring.with_key(self.key, |key| {
            let made = key.cipher.open(key.tags, sectors, binding, (input, &mut unused), &mut records);
            made.unwrap_or_else(|error| panic!("one sector for the cipher: {error}"));
        });
        unused.zeroize();
        used?;
        let [record] = records;
        Ok(*record.tag.bytes())
    }
}

#[cfg(test)]
mod tests {
    use keyring::WipeCause;
    use keyring::simulated::{Keyholder, keyring};
    use units::{DomainId, VolumeEpoch};

    use super::*;

    #[test]
    fn the_function_follows_input_domain_and_key_and_goes_with_the_key() {
        let keyring = keyring();
        let function = |domain: u8, epoch: u32| {
            let (domain, epoch) = (DomainId([domain; 16]), VolumeEpoch(epoch));
            let key = Keyholder::new(domain, epoch).push(&keyring).unwrap().handle;
            (KeyFunction::new(Arc::clone(&keyring), key, Bound { domain, epoch }), key)
        };
        let (one, key) = function(1, 1);
        let (other, _) = function(2, 1);
        let zeros = [0; FUNCTION_INPUT_BYTES];
        let mut last = zeros;
        last[FUNCTION_INPUT_BYTES - 1] = 1;
        let made = one.compute(&zeros).unwrap();
        assert_eq!(made, one.compute(&zeros).unwrap());
        assert_ne!(made, one.compute(&last).unwrap());
        assert_ne!(made, other.compute(&zeros).unwrap());
        keyring.drop_key(key);
        assert_eq!(one.compute(&zeros), Err(KeyGone::Stale));
        assert!(other.compute(&zeros).is_ok(), "the others stay");
        keyring.wipe(WipeCause::PowerLoss);
        assert_eq!(other.compute(&zeros), Err(KeyGone::Wiped));
    }
}
