//! Keys with names, which the keyholder lends and takes back one by one (SSE-KMS). Each encrypts keys of objects, and those the
//! bodies, beneath the volume's own encryption: without the named key its objects can't be read, and no others are harmed.
//!
//! ```text
//! key of an object   32 random bytes; it takes the place of a customer's key (customer_key.rs), and is kept sealed only
//! seal               F(1, key of the object): 16 bytes, which make every seal another and tell a wrong key
//! sealed key         key of the object, each half XOR F(2, seal ‖ number of the half: 0, 1)
//! F(purpose, data)   the named key's pseudorandom function (sealing::KeyFunction) of a label, purpose, and data
//! ```
//!
//! This is SIV (Rogaway and Shrimpton, "Deterministic Authenticated-Encryption", 2006) over one pseudorandom function.
//!
//! Invariants:
//! - The named key itself is never here: it is asked to compute.
//! - An object's key is opened for one piece of a body and overwritten after it: what was taken back stops at the next piece.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::error::StoreError;
use crate::limits::NAMED_KEYS_REMEMBERED_MAX;
use crate::store::random_bytes;

/// What a key's function is computed over.
pub const KEY_INPUT_BYTES: usize = sealing::FUNCTION_INPUT_BYTES;

const LABEL: &[u8] = b"nightlatch named key 1";
const PURPOSE_AT: usize = 32;
const HALF_AT: usize = 33;
const DATA_AT: usize = 48;
const PURPOSE_SEAL: u8 = 1;
const PURPOSE_MASK: u8 = 2;

/// Why a key computes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAway {
    /// This one key was taken back.
    Revoked,
    /// The node was wiped, or its lease ran out.
    Sealed,
}

/// The pseudorandom function of a key that may be taken back at any time.
pub trait KeyFunction: fmt::Debug + Send + Sync + 'static {
    /// 16 bytes that nobody without the key tells from random ones. The input may be secret.
    ///
    /// # Errors
    /// The key was taken back, before or meanwhile.
    fn compute(&self, input: &[u8; KEY_INPUT_BYTES]) -> Result<[u8; 16], KeyAway>;
}

impl KeyFunction for sealing::KeyFunction {
    fn compute(&self, input: &[u8; KEY_INPUT_BYTES]) -> Result<[u8; 16], KeyAway> {
        sealing::KeyFunction::compute(self, input).map_err(|gone| match gone {
            sealing::KeyGone::Stale | sealing::KeyGone::Damaged => KeyAway::Revoked,
            sealing::KeyGone::Wiped | sealing::KeyGone::Expired { .. } => KeyAway::Sealed,
        })
    }
}

/// The named keys that are lent now. Shared by whoever takes them in and the stores that use them.
#[derive(Debug, Default)]
pub struct NamedKeys {
    /// `None`: was lent, and taken back.
    keys: RwLock<BTreeMap<String, Option<Arc<dyn KeyFunction>>>>,
}

impl NamedKeys {
    /// Lends a key, or lends it anew.
    pub fn lend(&self, name: &str, function: impl KeyFunction) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= NAMED_KEYS_REMEMBERED_MAX {
            keys.retain(|_, function| function.is_some());
        }
        keys.insert(name.to_owned(), Some(Arc::new(function)));
    }

    /// Takes a key back: nothing that is under its way is finished with it.
    pub fn take_back(&self, name: &str) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = keys.get_mut(name) {
            *function = None;
        }
    }

    /// Takes all of them back.
    pub fn take_all_back(&self) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.values_mut().for_each(|function| *function = None);
    }

    /// Names of those that are lent.
    pub fn names(&self) -> Vec<String> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter().filter(|(_, function)| function.is_some()).map(|(name, _)| name.clone()).collect()
    }

    /// The key of this name, to encrypt something new under.
    pub(crate) fn find(&self, name: &str) -> Result<NamedKey, StoreError> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        match keys.get(name) {
            Some(Some(function)) => Ok(NamedKey { name: name.into(), function: Arc::clone(function) }),
            Some(None) => Err(StoreError::NamedKeyRevoked { name: name.to_owned() }),
            None => Err(StoreError::NoSuchNamedKey { name: name.to_owned() }),
        }
    }

    /// The key of an object, as far as the key that it is sealed under is lent.
    pub(crate) fn open(&self, sealed: &SealedKey) -> Result<ObjectKey, StoreError> {
        let named = match self.find(&sealed.name) {
            // There was one when the object was made.
            Err(StoreError::NoSuchNamedKey { name }) => return Err(StoreError::NamedKeyRevoked { name }),
            found => found?,
        };
        let key = ObjectKey { named, sealed: Arc::new(sealed.clone()) };
        key.with(|_| ())?;
        Ok(key)
    }
}

/// A key that is lent, and its name.
#[derive(Clone, Debug)]
pub(crate) struct NamedKey {
    name: Arc<str>,
    function: Arc<dyn KeyFunction>,
}

/// The key of an object, as it is kept with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealedKey {
    pub(crate) name: String,
    seal: [u8; 16],
    sealed: [u8; 32],
}

/// The key of an object, sealed, and what opens it.
#[derive(Clone, Debug)]
pub(crate) struct ObjectKey {
    named: NamedKey,
    pub(crate) sealed: Arc<SealedKey>,
}

impl NamedKey {
    /// A new key of an object, sealed under this one.
    pub(crate) fn make(self) -> Result<ObjectKey, StoreError> {
        let key = Zeroizing::new(random_bytes::<32>());
        let seal = self.seal(&key)?;
        let sealed = self.masked(seal, &key)?;
        let sealed = SealedKey { name: self.name.to_string(), seal, sealed: *sealed };
        Ok(ObjectKey { named: self, sealed: Arc::new(sealed) })
    }

    fn compute(&self, (purpose, half): (u8, u8), data: &[u8]) -> Result<[u8; 16], StoreError> {
        let mut input = Zeroizing::new([0; KEY_INPUT_BYTES]);
        input[..LABEL.len()].copy_from_slice(LABEL);
        input[PURPOSE_AT] = purpose;
        input[HALF_AT] = half;
        input[DATA_AT..DATA_AT + data.len()].copy_from_slice(data);
        self.function.compute(&input).map_err(|away| match away {
            KeyAway::Revoked => StoreError::NamedKeyRevoked { name: self.name.to_string() },
            KeyAway::Sealed => StoreError::Sealed,
        })
    }

    fn seal(&self, key: &[u8; 32]) -> Result<[u8; 16], StoreError> {
        self.compute((PURPOSE_SEAL, 0), key)
    }

    /// From clear to sealed and back.
    fn masked(&self, seal: [u8; 16], key: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, StoreError> {
        let mut masked = Zeroizing::new(*key);
        for (half, bytes) in (0..).zip(masked.chunks_exact_mut(16)) {
            let mask = Zeroizing::new(self.compute((PURPOSE_MASK, half), &seal)?);
            bytes.iter_mut().zip(&*mask).for_each(|(byte, mask)| *byte ^= mask);
        }
        Ok(masked)
    }
}

impl ObjectKey {
    /// Opens the key for the length of one use.
    ///
    /// # Errors
    /// [`StoreError::NamedKeyRevoked`], [`StoreError::Sealed`], and [`StoreError::WrongNamedKey`] where the key of this name is
    /// not the one that sealed it.
    pub(crate) fn with<R>(&self, use_key: impl FnOnce(&[u8; 32]) -> R) -> Result<R, StoreError> {
        let key = self.named.masked(self.sealed.seal, &self.sealed.sealed)?;
        let seal = self.named.seal(&key)?;
        if !bool::from(seal.ct_eq(&self.sealed.seal)) {
            return Err(StoreError::WrongNamedKey { name: self.sealed.name.clone() });
        }
        Ok(use_key(&key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulated::SimulatedKey;

    fn keys(name: &str, byte: u8) -> (NamedKeys, SimulatedKey) {
        let (keys, key) = (NamedKeys::default(), SimulatedKey::new(byte));
        keys.lend(name, key.clone());
        (keys, key)
    }

    #[test]
    fn a_sealed_key_opens_under_the_key_of_its_name_only_and_no_two_are_alike() {
        let (keys, key) = keys("photos", 1);
        let made = keys.find("photos").unwrap().make().unwrap();
        let bytes = made.with(|key| *key).unwrap();
        assert_eq!(keys.open(&made.sealed).unwrap().with(|key| *key).unwrap(), bytes);
        let other = keys.find("photos").unwrap().make().unwrap();
        assert_ne!(other.sealed, made.sealed);
        assert!(made.sealed.sealed != bytes, "it is sealed");

        let (others, _) = self::keys("photos", 2);
        assert!(matches!(others.open(&made.sealed), Err(StoreError::WrongNamedKey { .. })));
        for position in 0..32 {
            let mut changed = SealedKey::clone(&made.sealed);
            changed.sealed[position] ^= 1;
            assert!(matches!(keys.open(&changed), Err(StoreError::WrongNamedKey { .. })), "{position}");
        }
        let elsewhere = NamedKeys::default();
        assert!(matches!(elsewhere.open(&made.sealed), Err(StoreError::NamedKeyRevoked { .. })));
        assert!(matches!(elsewhere.find("photos"), Err(StoreError::NoSuchNamedKey { .. })));
        key.seal();
        assert!(matches!(made.with(|_| ()), Err(StoreError::Sealed)));
    }

    #[test]
    fn a_key_that_is_taken_back_opens_nothing_until_it_is_lent_again() {
        let (keys, key) = keys("photos", 1);
        let made = keys.find("photos").unwrap().make().unwrap();
        key.revoke();
        assert!(matches!(made.with(|_| ()), Err(StoreError::NamedKeyRevoked { .. })), "one in use");
        keys.take_back("photos");
        assert!(keys.names().is_empty());
        assert!(matches!(keys.find("photos"), Err(StoreError::NamedKeyRevoked { .. })));
        assert!(matches!(keys.open(&made.sealed), Err(StoreError::NamedKeyRevoked { .. })));
        keys.lend("photos", SimulatedKey::new(1));
        assert!(keys.open(&made.sealed).is_ok());
        keys.take_all_back();
        assert!(keys.open(&made.sealed).is_err());
    }
}
