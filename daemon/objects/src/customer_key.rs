//! Keys that a customer sends along with each request (SSE-C). They encrypt bodies beneath the volume's own encryption, so
//! that who holds the volume's key alone can't read them; none is ever kept.
//!
//! ```text
//! key of a body   HMAC-SHA-256(customer's key, "nightlatch customer key: body" ‖ salt)
//! body            AES-256 in counter mode (NIST SP 800-38A) under it, from counter 0, big-endian; each salt is used for one body
//! proof           HMAC-SHA-256(customer's key, "nightlatch customer key: proof" ‖ salt)
//! ```
//!
//! Counter mode does not notice changes; the volume beneath does, sector by sector.

use std::sync::Arc;

use aes::Aes256;
use ctr::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::error::StoreError;
use crate::named_key::ObjectKey;
use crate::store::random_bytes;

const BODY_LABEL: &[u8] = b"nightlatch customer key: body";
const PROOF_LABEL: &[u8] = b"nightlatch customer key: proof";

/// A customer's key. Clones share it; it is overwritten with the last of them, and never printed.
#[derive(Clone)]
pub struct CustomerKey(Arc<Zeroizing<[u8; 32]>>);

/// Makes the key of one body out of a customer's key: no two bodies are encrypted alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BodySalt(pub(crate) [u8; 16]);

/// Recognises the key that an object was encrypted with, without holding it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyProof {
    pub(crate) salt: BodySalt,
    proof: [u8; 32],
}

impl CustomerKey {
    /// A key of 256 bits.
    pub fn new(key: &[u8; 32]) -> Self {
        Self(Arc::new(Zeroizing::new(*key)))
    }

    /// What recognises this key, with a fresh salt.
    pub(crate) fn proof(&self) -> KeyProof {
        KeyProof::of(&self.0)
    }

    /// The cipher of the body that has this salt.
    pub(crate) fn body(&self, salt: BodySalt) -> BodyCipher {
        BodyCipher::Held(body_key(&self.0, salt))
    }
}

fn mac(key: &[u8; 32], label: &[u8], salt: BodySalt) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(label);
    mac.update(&salt.0);
    mac
}

fn body_key(key: &[u8; 32], salt: BodySalt) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(mac(key, BODY_LABEL, salt).finalize().into_bytes().into())
}

impl std::fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CustomerKey(..)")
    }
}

impl KeyProof {
    /// What recognises `key`, with a fresh salt.
    pub(crate) fn of(key: &[u8; 32]) -> Self {
        let salt = BodySalt(random_bytes());
        Self { salt, proof: mac(key, PROOF_LABEL, salt).finalize().into_bytes().into() }
    }

    /// Whether `key` is the one.
    pub(crate) fn check(&self, key: &CustomerKey) -> Result<(), StoreError> {
        mac(&key.0, PROOF_LABEL, self.salt)
            .verify_slice(&self.proof)
            .map_err(|_| StoreError::WrongCustomerKey)
    }

    /// Whether the key that was given, or none, is what something with this proof, or without one, takes.
    pub(crate) fn check_given(proof: Option<&Self>, key: Option<&CustomerKey>) -> Result<(), StoreError> {
        match (proof, key) {
            (None, None) => Ok(()),
            (Some(proof), Some(key)) => proof.check(key),
            (Some(_), None) => Err(StoreError::CustomerKeyNeeded),
            (None, Some(_)) => Err(StoreError::CustomerKeyUnexpected),
        }
    }
}

/// Encrypts and decrypts one body.
pub(crate) enum BodyCipher {
    /// Under a customer's key, which came with the request.
    Held(Zeroizing<[u8; 32]>),
    /// Under a key of the object's own, opened anew for each piece.
    Sealed(ObjectKey, BodySalt),
}

impl std::fmt::Debug for BodyCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BodyCipher(..)")
    }
}

impl BodyCipher {
    /// Turns the bytes at `offset` of the body from clear to encrypted, or back.
    ///
    /// # Errors
    /// Those of a named key that was taken back; a customer's is there.
    pub(crate) fn apply(&self, offset: u64, bytes: &mut [u8]) -> Result<(), StoreError> {
        match self {
            Self::Held(key) => {
                apply(key, offset, bytes);
                Ok(())
            }
            Self::Sealed(key, salt) => key.with(|key| apply(&body_key(key, *salt), offset, bytes)),
        }
    }
}

fn apply(key: &[u8; 32], offset: u64, bytes: &mut [u8]) {
    let mut cipher = ctr::Ctr128BE::<Aes256>::new(key.into(), &[0; 16].into());
    cipher.seek(offset);
    cipher.apply_keystream(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_recognised_and_another_is_not() {
        let key = CustomerKey::new(&[1; 32]);
        let proof = key.proof();
        assert!(proof.check(&CustomerKey::new(&[1; 32])).is_ok());
        assert!(matches!(proof.check(&CustomerKey::new(&[2; 32])), Err(StoreError::WrongCustomerKey)));
        assert_ne!(proof, key.proof(), "each proof has a salt of its own");
        assert_eq!(format!("{key:?}"), "CustomerKey(..)");
    }

    #[test]
    fn any_piece_of_a_body_decrypts_alone() {
        let cipher = CustomerKey::new(&[3; 32]).body(BodySalt([4; 16]));
        let clear: Vec<u8> = (0..1000_u32).map(|n| (n % 251) as u8).collect();
        let mut sealed = clear.clone();
        cipher.apply(0, &mut sealed).unwrap();
        assert_ne!(sealed, clear);
        for (from, to) in [(0, 1000), (1, 17), (16, 32), (999, 1000), (500, 500)] {
            let mut piece = sealed[from..to].to_vec();
            cipher.apply(from as u64, &mut piece).unwrap();
            assert_eq!(piece, clear[from..to]);
        }
        let mut other = clear.clone();
        CustomerKey::new(&[3; 32]).body(BodySalt([5; 16])).apply(0, &mut other).unwrap();
        assert_ne!(other, sealed);
    }
}
