//! A credential that only one TPM can open, and only while it holds one named key (TPM 2.0 Library, part 1, section 24): so
//! a verifier learns that an attestation key is in the TPM whose endorsement key it knows.

use aes::Aes128;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::hmac;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::key::{KeyRole, Name, PublicKey};
use crate::wire::Writer;

/// Bytes of a credential's secret.
pub const SECRET_BYTES: usize = 32;

/// Random bytes for one credential.
pub struct CredentialRandom {
    /// The one-time key for the exchange with the endorsement key.
    pub scalar: Zeroizing<[u8; 32]>,
    /// What the TPM has to find.
    pub secret: Zeroizing<[u8; SECRET_BYTES]>,
}

impl std::fmt::Debug for CredentialRandom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CredentialRandom")
    }
}

/// A credential, for ActivateCredential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The encrypted secret and its authentication (TPM2B_ID_OBJECT without its length).
    pub object: Vec<u8>,
    /// What the endorsement key needs to find the seed (TPM2B_ENCRYPTED_SECRET without its length).
    pub seed: Vec<u8>,
}

/// Why there is no credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The key decrypts no credentials.
    #[error("credentials are made for endorsement keys")]
    NoEndorsementKey,
    /// Its point is not on the curve.
    #[error("the endorsement key is no point of P-256")]
    NoPoint,
    /// The random number is zero or above the curve's order: once in 2^32.
    #[error("the random number was no scalar of P-256; try again")]
    NoScalar,
}

/// Encrypts `random.secret` so that only the TPM with `endorsement` opens it, and only for its key named `attestation`.
pub fn make_credential(
    endorsement: &PublicKey,
    attestation: Name,
    random: &CredentialRandom,
) -> Result<Credential, CredentialError> {
    if endorsement.role() != KeyRole::Endorsement {
        return Err(CredentialError::NoEndorsementKey);
    }
    let one_time = PrivateKey::from_private_key(&ECDH_P256, random.scalar.as_slice())
        .map_err(|_| CredentialError::NoScalar)?;
    let public = one_time.compute_public_key().map_err(|_| CredentialError::NoScalar)?;
    let public = public.as_ref();
    let (x, y) =
        public.get(1..).and_then(|point| point.split_at_checked(32)).ok_or(CredentialError::NoScalar)?;
    let peer = UnparsedPublicKey::new(&ECDH_P256, endorsement.point());
    let their_x = &endorsement.point()[1..33];
    let seed = agree(&one_time, peer, CredentialError::NoPoint, |shared| {
        Ok(Zeroizing::new(kdf_e(shared, "IDENTITY", x, their_x)))
    })?;
    let name = attestation.encoded();
    let storage: [u8; 16] = kdf_a(&*seed, "STORAGE", &name);
    let integrity: [u8; 32] = kdf_a(&*seed, "INTEGRITY", &[]);
    let mut encrypted = Writer::new().sized(random.secret.as_slice()).finish();
    encrypt_cfb(&storage, &mut encrypted);
    let tag = authenticate(&integrity, &[&encrypted, &name]);
    let object = Writer::new().sized(&tag).bytes(&encrypted).finish();
    Ok(Credential { object, seed: Writer::new().sized(x).sized(y).finish() })
}

/// Whether what a TPM found is what was hidden.
pub fn secrets_match(found: &[u8], hidden: &[u8; SECRET_BYTES]) -> bool {
    found.ct_eq(hidden.as_slice()).into()
}

/// KDFe (part 1, section 11.4.10.3) for 256 bits: one block.
fn kdf_e(shared: &[u8], label: &str, our_x: &[u8], their_x: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(1_u32.to_be_bytes())
        .chain_update(shared)
        .chain_update(label)
        .chain_update([0])
        .chain_update(our_x)
        .chain_update(their_x)
        .finalize()
        .into()
}

/// KDFa (part 1, section 11.4.10.2) for as many bits as the key has: SP 800-108 in counter mode with HMAC, one block.
fn kdf_a<const N: usize>(key: &[u8], label: &str, context: &[u8]) -> [u8; N] {
    const { assert!(N <= 32, "one block") };
    let bits = u32::try_from(N * 8).unwrap_or(0);
    let parts = [&1_u32.to_be_bytes()[..], label.as_bytes(), &[0], context, &bits.to_be_bytes()];
    let block = authenticate(key, &parts);
    std::array::from_fn(|at| block[at])
}

fn authenticate(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &parts.concat());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(tag.as_ref());
    bytes
}

/// AES-128 in cipher feedback with a zero vector: each seed encrypts one credential.
fn encrypt_cfb(key: &[u8; 16], bytes: &mut [u8]) {
    let cipher = Aes128::new(&(*key).into());
    let mut feedback = [0; 16];
    for chunk in bytes.chunks_mut(16) {
        let mut pad = feedback.into();
        cipher.encrypt_block(&mut pad);
        for ((byte, pad), next) in chunk.iter_mut().zip(pad.iter()).zip(&mut feedback) {
            *byte ^= pad;
            *next = *byte;
        }
    }
}
