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
//! - Only what a person took back is refused for good: a key that went with a wipe, or that has not come since, is on its way, and
//!   a client that waits for it is right.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
    keys: RwLock<BTreeMap<String, Known>>,
    /// Keys that are to be lent and have not been yet. What they are called is not known before.
    awaited: AtomicUsize,
}

/// What is known of a key that has a name.
#[derive(Debug)]
enum Known {
    Lent(Arc<Lent>),
    /// It was lent, and is to be lent again: it went with a wipe or a lease.
    Away,
    /// It was lent, and taken back by a person or erased.
    Revoked,
}

/// A key that is lent.
#[derive(Debug)]
struct Lent {
    /// It went, and is to be lent again: said before its function computes no more.
    is_away: AtomicBool,
    function: Box<dyn KeyFunction>,
}

impl NamedKeys {
    /// Lends a key, or lends it anew.
    pub fn lend(&self, name: &str, function: impl KeyFunction) {
        let lent = Lent { is_away: AtomicBool::new(false), function: Box::new(function) };
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= NAMED_KEYS_REMEMBERED_MAX {
            keys.retain(|_, known| matches!(known, Known::Lent(_)));
        }
        if let Some(Known::Lent(before)) = keys.insert(name.to_owned(), Known::Lent(Arc::new(lent))) {
            before.is_away.store(true, Ordering::SeqCst);
        }
    }

    /// Takes a key back: nothing that is under its way is finished with it. To be called before its function is made to compute no
    /// more, so that those who use it are told why.
    pub fn take_back(&self, name: &str, why: KeyAway) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = keys.get_mut(name) {
            known.take_back(why);
        }
    }

    /// Takes all of them back, until they are lent again.
    pub fn take_all_back(&self) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let lent = keys.values_mut().filter(|known| matches!(known, Known::Lent(_)));
        lent.for_each(|known| known.take_back(KeyAway::Sealed));
    }

    /// Says how many keys are to be lent and have not been: until none are, a name that is not known may well be one of them.
    pub fn set_awaited(&self, count: usize) {
        self.awaited.store(count, Ordering::SeqCst);
    }

    /// Names of those that are lent.
    pub fn names(&self) -> Vec<String> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter()
            .filter(|(_, known)| matches!(known, Known::Lent(_)))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The key of this name, to encrypt something new under.
    pub(crate) fn find(&self, name: &str) -> Result<NamedKey, StoreError> {
        // Before the names: one that is lent meanwhile is found.
        let is_awaited = self.awaited.load(Ordering::SeqCst) > 0;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        match keys.get(name) {
            Some(Known::Lent(lent)) => Ok(NamedKey { name: name.into(), lent: Arc::clone(lent) }),
            Some(Known::Revoked) => Err(StoreError::NamedKeyRevoked { name: name.to_owned() }),
            Some(Known::Away) => Err(StoreError::NamedKeyAway { name: name.to_owned() }),
            None if is_awaited => Err(StoreError::NamedKeyAway { name: name.to_owned() }),
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

impl Known {
    fn take_back(&mut self, why: KeyAway) {
        let taken = match why {
            KeyAway::Revoked => Self::Revoked,
            KeyAway::Sealed => Self::Away,
        };
        if let Self::Lent(lent) = std::mem::replace(self, taken) {
            lent.is_away.store(why == KeyAway::Sealed, Ordering::SeqCst);
        }
    }
}

/// A key that is lent, and its name.
#[derive(Clone, Debug)]
pub(crate) struct NamedKey {
    name: Arc<str>,
    lent: Arc<Lent>,
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
        self.lent.function.compute(&input).map_err(|away| match away {
            KeyAway::Revoked if self.lent.is_away.load(Ordering::SeqCst) => {
                StoreError::NamedKeyAway { name: self.name.to_string() }
            }
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
    /// [`StoreError::NamedKeyRevoked`], [`StoreError::NamedKeyAway`], [`StoreError::Sealed`], and [`StoreError::WrongNamedKey`] where
    /// the key of this name is not the one that sealed it.
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
        keys.take_back("photos", KeyAway::Revoked);
        assert!(keys.names().is_empty());
        assert!(matches!(keys.find("photos"), Err(StoreError::NamedKeyRevoked { .. })));
        assert!(matches!(keys.open(&made.sealed), Err(StoreError::NamedKeyRevoked { .. })));
        keys.lend("photos", SimulatedKey::new(1));
        assert!(keys.open(&made.sealed).is_ok());
        keys.take_all_back();
        assert!(matches!(keys.open(&made.sealed), Err(StoreError::NamedKeyAway { .. })));
        keys.lend("photos", SimulatedKey::new(1));
        keys.take_back("photos", KeyAway::Revoked);
        keys.take_all_back();
        assert!(
            matches!(keys.open(&made.sealed), Err(StoreError::NamedKeyRevoked { .. })),
            "as before the wipe"
        );
    }

    #[test]
    fn a_key_that_is_to_come_is_waited_for_and_one_that_is_used_is_gone_for_the_same_reason() {
        let (keys, key) = keys("photos", 1);
        let made = keys.find("photos").unwrap().make().unwrap();
        keys.take_back("photos", KeyAway::Sealed);
        key.revoke();
        assert!(matches!(made.with(|_| ()), Err(StoreError::NamedKeyAway { .. })), "one in use");
        assert!(matches!(keys.find("photos"), Err(StoreError::NamedKeyAway { .. })));

        let after_restart = NamedKeys::default();
        after_restart.set_awaited(1);
        assert!(matches!(after_restart.find("photos"), Err(StoreError::NamedKeyAway { .. })));
        assert!(matches!(after_restart.open(&made.sealed), Err(StoreError::NamedKeyAway { .. })));
        after_restart.lend("books", SimulatedKey::new(2));
        after_restart.set_awaited(0);
        assert!(matches!(after_restart.find("photos"), Err(StoreError::NoSuchNamedKey { .. })));
        assert!(matches!(after_restart.open(&made.sealed), Err(StoreError::NamedKeyRevoked { .. })));

        // Lent anew while it is used: the one before is gone, and comes back with the next request.
        let (keys, key) = self::keys("photos", 1);
        let made = keys.find("photos").unwrap().make().unwrap();
        keys.lend("photos", SimulatedKey::new(1));
        key.revoke();
        assert!(matches!(made.with(|_| ()), Err(StoreError::NamedKeyAway { .. })));
        assert!(keys.open(&made.sealed).is_ok());
    }
}
