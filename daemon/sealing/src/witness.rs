//! A volume's key gives its word for its pool's state, and tells its word from others.

use std::fmt;
use std::sync::Arc;

use aes_xts::{Binding, Record, Sectors};
use keyring::{KeyGone, KeyHandle, Keyring};
use pool::{StateHead, Witness};

use crate::clear::Bound;

/// What a word is computed over: a head, filled up with zeros to what the tag takes at least.
const WORD_BYTES: usize = 512;
/// No sector of a volume has this address, nor that length (`aes-xts/TAG.md`).
const STATE_ADDRESS: u128 = u128::MAX;

/// Whoever holds the key of a volume, as long as it is held.
pub struct KeyWitness {
    keyring: Arc<Keyring>,
    key: KeyHandle,
    bound: Bound,
}

impl fmt::Debug for KeyWitness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyWitness")
            .field("key", &self.key)
            .field("bound", &self.bound)
            .finish_non_exhaustive()
    }
}

impl KeyWitness {
    /// For the key that was admitted for this domain and epoch.
    pub fn new(keyring: Arc<Keyring>, key: KeyHandle, bound: Bound) -> Self {
        Self { keyring, key, bound }
    }

    /// Whether this is the key's word for the state. Without the key nothing is.
    pub fn is_word(&self, state: &StateHead, word: &[u8; 16]) -> bool {
        self.record(state).is_ok_and(|record| record.tag.verify(word).is_ok())
    }

    /// The tag that a sector of this content would have at an address that none has.
    fn record(&self, state: &StateHead) -> Result<Record, KeyGone> {
        let mut content = [0; WORD_BYTES];
        content[..32].copy_from_slice(&state.chain);
        content[32..40].copy_from_slice(&state.count.to_le_bytes());
        let mut unused = [0; WORD_BYTES];
        let mut records = [Record::default()];
        let binding =
            Binding { domain: self.bound.domain.0, epoch: self.bound.epoch.0, sequences: &[state.count] };
        let sectors = Sectors { first: STATE_ADDRESS, bytes: WORD_BYTES };
        self.keyring.with_key(self.key, |key| {
            let made = key.cipher.open(key.tags, sectors, binding, (&content, &mut unused), &mut records);
            made.unwrap_or_else(|error| panic!("one sector for the cipher: {error}"));
        })?;
        let [record] = records;
        Ok(record)
    }
}

impl Witness for KeyWitness {
    fn vouch(&self, state: &StateHead) -> Option<[u8; 16]> {
        self.record(state).ok().map(|record| *record.tag.bytes())
    }
}
