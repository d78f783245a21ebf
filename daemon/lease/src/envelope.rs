//! The HPKE envelope in which a secret travels: X-Wing (X25519 + ML-KEM-768) with HKDF-SHA-256 and
//! ChaCha20-Poly1305, base mode, one message per encapsulation.
//!
//! Suite identifiers: KEM 0x647a, KDF 0x0001, AEAD 0x0003 (RFC 9180; draft-ietf-hpke-pq for X-Wing).
//! A sealed message is `encapsulated key (1120) ‖ ciphertext ‖ tag (16)`.
//!
//! Invariants:
//! - A secret is read from the caller's slice and written to the caller's slice; nothing secret is put on the
//!   heap. What the computation leaves behind is on the stack: call [`keypair`] and [`open`], and [`seal`] of
//!   a root-derived secret, on a locked stack of at least [`STACK_BYTES`] that is wiped afterwards.
//! - `open` writes to `out` only after the tag has been verified; on every error `out` is all zeros.
//! - Randomness comes from the caller, who never hands in the same bytes twice.
//!
//! It authenticates no sender: who sealed is proven by the signature around the envelope.

use std::fmt;

use hpke::aead::{AeadTag, ChaCha20Poly1305};
use hpke::inout::InOutBuf;
use hpke::kdf::HkdfSha256;
use hpke::kem::XWing;
use hpke::rand_core::{Infallible, TryCryptoRng, TryRng};
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

/// Length of a public key: ML-KEM-768 encapsulation key (1184) and X25519 point (32).
pub const PUBLIC_KEY_BYTES: usize = 1216;

/// Length of a secret: the X-Wing seed from which both halves are expanded at every use.
pub const SECRET_BYTES: usize = 32;

/// Randomness that one [`seal`] consumes: 32 bytes for each half of X-Wing.
pub const SEAL_RANDOMNESS_BYTES: usize = 64;

/// What a sealed message is longer than its plaintext by: encapsulated key and authentication tag.
pub const OVERHEAD_BYTES: usize = ENCAPSULATED_BYTES + TAG_BYTES;

/// Longest plaintext: keys, shares and small bundles of them. Bounds what an unchecked length can allocate.
pub const PLAINTEXT_BYTES_MAX: usize = 64 * 1024;

/// Longest `info` and `aad`; hashes and small headers. HPKE's own bound is higher.
pub const CONTEXT_BYTES_MAX: usize = 4096;

/// Stack that one call may use, with room for an unoptimised build; a test runs each call on exactly this much.
pub const STACK_BYTES: usize = 256 * 1024;

const ENCAPSULATED_BYTES: usize = 1120;
const TAG_BYTES: usize = 16;

/// Why an envelope could not be sealed or opened. Says nothing about the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not an X-Wing public key.
    #[error("the envelope public key is malformed; fetch it again from its owner")]
    PublicKey,
    /// Too short to hold an encapsulated key and a tag, or the plaintext is not as long as was asked for.
    #[error(
        "the envelope is {actual} bytes long where {expected} were expected; it was cut or is of another kind"
    )]
    Length {
        /// Length that was expected.
        expected: usize,
        /// Length that was found.
        actual: usize,
    },
    /// Plaintext or context beyond the named maximum.
    #[error("the envelope's content of {actual} bytes is over the limit of {limit}")]
    TooLong {
        /// The limit.
        limit: usize,
        /// Length that was found.
        actual: usize,
    },
    /// The tag does not verify: other recipient, other context, or altered bytes.
    #[error("the envelope does not open: it was sealed to another key, for another context, or was altered")]
    Opening,
}

/// The public half of an envelope key pair. Not a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicEnvelopeKey(Box<[u8; PUBLIC_KEY_BYTES]>);

impl PublicEnvelopeKey {
    /// Takes the encoding after checking that it is a valid X-Wing key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let boxed: Box<[u8; PUBLIC_KEY_BYTES]> = bytes
            .to_vec()
            .into_boxed_slice()
            .try_into()
            .map_err(|_| EnvelopeError::Length { expected: PUBLIC_KEY_BYTES, actual: bytes.len() })?;
        <XWing as Kem>::PublicKey::from_bytes(bytes).map_err(|_| EnvelopeError::PublicKey)?;
        Ok(Self(boxed))
    }

    /// The encoding: ML-KEM-768 encapsulation key, then X25519 point.
    pub fn as_bytes(&self) -> &[u8; PUBLIC_KEY_BYTES] {
        &self.0
    }

    /// SHA-256 of the encoding, for people to compare.
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(self.as_bytes()).into()
    }
}

impl fmt::Debug for PublicEnvelopeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicEnvelopeKey(sha256:")?;
        for byte in &self.fingerprint()[..8] {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

impl Serialize for PublicEnvelopeKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.as_bytes())
    }
}

impl<'de> Deserialize<'de> for PublicEnvelopeKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = PublicEnvelopeKey;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an X-Wing public key of {PUBLIC_KEY_BYTES} bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                PublicEnvelopeKey::from_bytes(bytes).map_err(E::custom)
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// The public key that belongs to `secret`, 32 uniformly random bytes that the caller made where they may stay.
pub fn keypair(secret: &[u8; SECRET_BYTES]) -> Result<PublicEnvelopeKey, EnvelopeError> {
    let private = private_key(secret)?;
    let public = <XWing as Kem>::sk_to_pk(&private);
    PublicEnvelopeKey::from_bytes(&public.to_bytes())
}

/// Seals `plaintext` to `recipient`. `info` and `aad` must be the same at opening.
///
/// `randomness` is consumed and zeroed. The plaintext is not copied: ciphertext is written straight from it.
pub fn seal(
    recipient: &PublicEnvelopeKey,
    info: &[u8],
    aad: &[u8],
    plaintext: &[u8],
    randomness: &mut [u8; SEAL_RANDOMNESS_BYTES],
) -> Result<Vec<u8>, EnvelopeError> {
    let result = seal_with(recipient, info, aad, plaintext, randomness);
    randomness.zeroize();
    result
}

fn seal_with(
    recipient: &PublicEnvelopeKey,
    info: &[u8],
    aad: &[u8],
    plaintext: &[u8],
    randomness: &[u8; SEAL_RANDOMNESS_BYTES],
) -> Result<Vec<u8>, EnvelopeError> {
    check_context(info, aad)?;
    check_limit(plaintext.len(), PLAINTEXT_BYTES_MAX)?;
    let public =
        <XWing as Kem>::PublicKey::from_bytes(recipient.as_bytes()).map_err(|_| EnvelopeError::PublicKey)?;
    let (encapsulated, mut context) = hpke::setup_sender_with_rng::<ChaCha20Poly1305, HkdfSha256, XWing>(
        &OpModeS::Base,
        &public,
        info,
        &mut GivenBytes { bytes: randomness, used: 0 },
    )
    .map_err(|_| EnvelopeError::PublicKey)?;

    let mut sealed = vec![0; OVERHEAD_BYTES + plaintext.len()];
    let (head, rest) = sealed.split_at_mut(ENCAPSULATED_BYTES);
    let (body, tail) = rest.split_at_mut(plaintext.len());
    head.copy_from_slice(&encapsulated.to_bytes());
    let buffer = InOutBuf::new(plaintext, body).map_err(|_| EnvelopeError::Opening)?;
    let tag = context.seal_inout_detached(buffer, aad).map_err(|_| EnvelopeError::Opening)?;
    tail.copy_from_slice(&tag.to_bytes());
    Ok(sealed)
}

/// Opens `sealed` into `out`, which must be exactly as long as the plaintext. On an error `out` is zeroed.
pub fn open(
    secret: &[u8; SECRET_BYTES],
    info: &[u8],
    aad: &[u8],
    sealed: &[u8],
    out: &mut [u8],
) -> Result<(), EnvelopeError> {
    let result = open_into(secret, info, aad, sealed, out);
    if result.is_err() {
        out.zeroize();
    }
    result
}

fn open_into(
    secret: &[u8; SECRET_BYTES],
    info: &[u8],
    aad: &[u8],
    sealed: &[u8],
    out: &mut [u8],
) -> Result<(), EnvelopeError> {
    check_context(info, aad)?;
    check_limit(out.len(), PLAINTEXT_BYTES_MAX)?;
    let expected = OVERHEAD_BYTES + out.len();
    if sealed.len() != expected {
        return Err(EnvelopeError::Length { expected, actual: sealed.len() });
    }
    let (head, rest) = sealed.split_at(ENCAPSULATED_BYTES);
    let (body, tail) = rest.split_at(out.len());
    let encapsulated = <XWing as Kem>::EncappedKey::from_bytes(head).map_err(|_| EnvelopeError::Opening)?;
    let tag = AeadTag::<ChaCha20Poly1305>::from_bytes(tail).map_err(|_| EnvelopeError::Opening)?;
    let private = private_key(secret)?;
    let mut context = hpke::setup_receiver::<ChaCha20Poly1305, HkdfSha256, XWing>(
        &OpModeR::Base,
        &private,
        &encapsulated,
        info,
    )
    .map_err(|_| EnvelopeError::Opening)?;
    let buffer = InOutBuf::new(body, out).map_err(|_| EnvelopeError::Opening)?;
    context.open_inout_detached(buffer, aad, &tag).map_err(|_| EnvelopeError::Opening)
}

fn private_key(secret: &[u8; SECRET_BYTES]) -> Result<<XWing as Kem>::PrivateKey, EnvelopeError> {
    // Only a wrong length can fail, and the type rules that out.
    <XWing as Kem>::PrivateKey::from_bytes(secret).map_err(|_| EnvelopeError::PublicKey)
}

fn check_context(info: &[u8], aad: &[u8]) -> Result<(), EnvelopeError> {
    check_limit(info.len(), CONTEXT_BYTES_MAX)?;
    check_limit(aad.len(), CONTEXT_BYTES_MAX)
}

fn check_limit(actual: usize, limit: usize) -> Result<(), EnvelopeError> {
    if actual > limit { Err(EnvelopeError::TooLong { limit, actual }) } else { Ok(()) }
}

/// A "generator" that hands out the caller's bytes once. Past their end it would have to repeat itself, which
/// for an encapsulation is fatal: that is a bug in this module and it panics (a test counts what X-Wing takes).
struct GivenBytes<'a> {
    bytes: &'a [u8],
    used: usize,
}

impl TryRng for GivenBytes<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut word = [0; 4];
        self.try_fill_bytes(&mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut word = [0; 8];
        self.try_fill_bytes(&mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        let end = self.used + out.len();
        assert!(end <= self.bytes.len(), "X-Wing asked for more randomness than SEAL_RANDOMNESS_BYTES");
        out.copy_from_slice(&self.bytes[self.used..end]);
        self.used = end;
        Ok(())
    }
}

impl TryCryptoRng for GivenBytes<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [7; 32];

    fn sealed(plaintext: &[u8]) -> Vec<u8> {
        let public = keypair(&SECRET).unwrap();
        seal(&public, b"info", b"aad", plaintext, &mut [9; 64]).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_with_the_same_context() {
        let sealed = sealed(b"a key of thirty-two bytes length");
        let mut out = [0; 32];
        open(&SECRET, b"info", b"aad", &sealed, &mut out).unwrap();
        assert_eq!(&out, b"a key of thirty-two bytes length");
    }

    #[test]
    fn another_context_recipient_or_bit_does_not_open_and_leaves_zeros() {
        let sealed = sealed(&[0xa5; 32]);
        let mut out = [0xff; 32];
        for (secret, info, aad) in [
            ([8; 32], &b"info"[..], &b"aad"[..]),
            (SECRET, b"inf0", b"aad"),
            (SECRET, b"info", b"aad "),
            (SECRET, b"infoa", b"ad"),
        ] {
            out.fill(0xff);
            assert_eq!(open(&secret, info, aad, &sealed, &mut out), Err(EnvelopeError::Opening));
            assert_eq!(out, [0; 32]);
        }
        // Every 37th bit: encapsulated key, ciphertext and tag are all hit.
        for bit in (0..sealed.len() * 8).step_by(37) {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            out.fill(0xff);
            assert_eq!(
                open(&SECRET, b"info", b"aad", &altered, &mut out),
                Err(EnvelopeError::Opening),
                "bit {bit}"
            );
            assert_eq!(out, [0; 32]);
        }
    }

    #[test]
    fn lengths_are_checked_at_the_limit_and_one_past_it() {
        let public = keypair(&SECRET).unwrap();
        let at = vec![1; PLAINTEXT_BYTES_MAX];
        let envelope = seal(&public, &[0; CONTEXT_BYTES_MAX], b"", &at, &mut [1; 64]).unwrap();
        let mut out = vec![0; PLAINTEXT_BYTES_MAX];
        open(&SECRET, &[0; CONTEXT_BYTES_MAX], b"", &envelope, &mut out).unwrap();
        assert_eq!(out, at);

        let past = vec![1; PLAINTEXT_BYTES_MAX + 1];
        let limit = PLAINTEXT_BYTES_MAX;
        assert_eq!(
            seal(&public, b"", b"", &past, &mut [1; 64]),
            Err(EnvelopeError::TooLong { limit, actual: limit + 1 })
        );
        let limit = CONTEXT_BYTES_MAX;
        assert_eq!(
            seal(&public, b"", &[0; CONTEXT_BYTES_MAX + 1], b"", &mut [1; 64]),
            Err(EnvelopeError::TooLong { limit, actual: limit + 1 })
        );
        for cut in [0, 1, OVERHEAD_BYTES - 1, envelope.len() - 1] {
            assert!(matches!(
                open(&SECRET, b"", b"", &envelope[..cut], &mut out),
                Err(EnvelopeError::Length { .. })
            ));
        }
    }

    #[test]
    fn sealing_consumes_the_randomness() {
        let public = keypair(&SECRET).unwrap();
        let mut randomness = [9; 64];
        seal(&public, b"", b"", b"x", &mut randomness).unwrap();
        assert_eq!(randomness, [0; 64]);
    }

    #[test]
    fn malformed_public_keys_are_refused() {
        assert!(matches!(PublicEnvelopeKey::from_bytes(&[0; 10]), Err(EnvelopeError::Length { .. })));
        // Coefficients of ML-KEM are below 3329; all ones is not a canonical encoding.
        assert_eq!(PublicEnvelopeKey::from_bytes(&[0xff; PUBLIC_KEY_BYTES]), Err(EnvelopeError::PublicKey));
    }

    #[test]
    fn each_call_fits_the_stated_stack() {
        let run = |work: fn()| {
            std::thread::Builder::new().stack_size(STACK_BYTES).spawn(work).unwrap().join().unwrap();
        };
        run(|| {
            keypair(&SECRET).unwrap();
        });
        run(|| {
            sealed(&[1; 32]);
        });
        run(|| {
            let sealed = sealed(&[1; 32]);
            open(&SECRET, b"info", b"aad", &sealed, &mut [0; 32]).unwrap();
        });
    }
}
