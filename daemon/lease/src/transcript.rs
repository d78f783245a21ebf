//! What is signed: a label for each kind of message, the session's transcript hash, and the body's hash.
//!
//! The transcript names both sides, the version, the TLS exporter, the challenge and the evidence, each with its
//! length in front, so that no two sessions share one and no two of its parts can be read as each other. Since every
//! message after `evidence` is signed over it, a message of one session is void in any other, whoever's
//! certificate carried it.

use std::fmt;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use units::{BootId, DomainId, Fence, GrantId, VolumeEpoch, VolumeId};

use crate::error::SessionError;
use crate::frame::{self, RawFrame};
use crate::limits::PROTOCOL_VERSION;
use crate::message::{Body, Hello, Kind, Nonce, SigningPublicKey, WipeRecord};

const HELLO_CONTEXT: &[u8] = b"nightlatch/lease/1 hello";
const SESSION_CONTEXT: &[u8] = b"nightlatch/lease/1 session";
const SIGNATURE_CONTEXT: &[u8] = b"nightlatch/lease/1 signature";
const AAD_CONTEXT: &[u8] = b"nightlatch/lease/1 grant";
const CHALLENGE_CONTEXT: &[u8] = b"nightlatch/lease/1 challenge";
const QUOTE_CONTEXT: &[u8] = b"nightlatch/lease/1 quote";
const WIPE_CONTEXT: &[u8] = b"nightlatch wipe 1";

/// The label under which both sides derive the TLS exporter (RFC 8446 section 7.5), with no context.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-nightlatch-lease-1";

/// Bytes of exporter value that enter the transcript.
pub const EXPORTER_BYTES: usize = 32;

/// Something that signs with one Ed25519 key. The keyholder's runs in its arena and may be gone.
pub trait Signer: Send + Sync + fmt::Debug {
    /// The public half.
    fn public_key(&self) -> SigningPublicKey;

    /// Signs a digest, or says that the key is gone.
    fn sign(&self, digest: &[u8; 32]) -> Result<[u8; 64], SignerGone>;
}

/// The signing key is no longer there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signing key is gone: this program is sealed; unseal it")]
pub struct SignerGone;

impl From<SignerGone> for SessionError {
    fn from(_: SignerGone) -> Self {
        Self::SignerGone
    }
}

/// A key in ordinary memory: a node's identity key, which is a file on its disk anyway, and tests.
pub struct LocalSigner(SigningKey);

impl LocalSigner {
    /// The signer with this 32-byte seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }
}

impl Signer for LocalSigner {
    fn public_key(&self) -> SigningPublicKey {
        self.0.verifying_key().to_bytes()
    }

    fn sign(&self, digest: &[u8; 32]) -> Result<[u8; 64], SignerGone> {
        Ok(self.0.sign(digest).to_bytes())
    }
}

impl fmt::Debug for LocalSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalSigner({})", crate::KeyFingerprint::of(&self.public_key()))
    }
}

/// The signature by the key with this 32-byte seed, for signers that keep the seed elsewhere. Run it on a stack
/// that is wiped.
pub fn sign_with_seed(seed: &[u8; 32], digest: &[u8; 32]) -> [u8; 64] {
    SigningKey::from_bytes(seed).sign(digest).to_bytes()
}

/// The public key that belongs to this 32-byte seed. Run it on a stack that is wiped.
pub fn public_key_of_seed(seed: &[u8; 32]) -> SigningPublicKey {
    SigningKey::from_bytes(seed).verifying_key().to_bytes()
}

/// Hash over parts, each preceded by its length as u64 LE.
struct Parts(Sha256);

impl Parts {
    fn new(context: &[u8]) -> Self {
        Self(Sha256::new()).with(context)
    }

    fn with(mut self, part: &[u8]) -> Self {
        // Widening: no length in memory exceeds 64 bits.
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    fn hash(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// The transcript that `hello` itself is signed over: the connection, nothing else being known yet.
pub(crate) fn hello_transcript(exporter: &[u8; EXPORTER_BYTES]) -> [u8; 32] {
    Parts::new(HELLO_CONTEXT).with(&[PROTOCOL_VERSION]).with(exporter).hash()
}

/// The transcript of the session, which `evidence` and all that follows is signed over.
pub(crate) fn session_transcript(
    hello: &Hello,
    identity_key: &SigningPublicKey,
    exporter: &[u8; EXPORTER_BYTES],
    evidence_body: &[u8],
) -> [u8; 32] {
    Parts::new(SESSION_CONTEXT)
        .with(&[PROTOCOL_VERSION])
        .with(hello.keyholder.as_bytes())
        .with(&hello.signing_key)
        .with(&hello.root_epoch.0.to_le_bytes())
        .with(&hello.node.0)
        .with(identity_key)
        .with(exporter)
        .with(&hello.challenge)
        .with(evidence_body)
        .hash()
}

/// What a TPM is asked to sign beside its registers: this session and no other.
pub(crate) fn quote_digest(transcript: &[u8; 32]) -> [u8; 32] {
    Parts::new(QUOTE_CONTEXT).with(&[PROTOCOL_VERSION]).with(transcript).hash()
}

/// What a TPM's register is extended with for a wipe.
pub(crate) fn wipe_measurement(wipe: &WipeRecord, boot: BootId) -> [u8; 32] {
    Parts::new(WIPE_CONTEXT)
        .with(&boot.0)
        .with(wipe.cause.name().as_bytes())
        .with(&wipe.at.0.to_le_bytes())
        .with(&wipe.generation.to_le_bytes())
        .hash()
}

/// What stands for the lease where a key has none of its own: that of a new epoch ends with the grant that it is given under.
pub(crate) const EPOCH_KEY_LEASE_MS: u64 = 0;

/// The associated data of a grant's envelope: (volume, domain, epoch, fence, lease, grant id).
pub fn grant_aad(
    volume: VolumeId,
    domain: DomainId,
    epoch: VolumeEpoch,
    fence: Fence,
    lease_ms: u64,
    grant: GrantId,
) -> Vec<u8> {
    [
        AAD_CONTEXT,
        &volume.0,
        &domain.0,
        &epoch.0.to_le_bytes(),
        &fence.0.to_le_bytes(),
        &lease_ms.to_le_bytes(),
        &grant.0,
    ]
    .concat()
}

/// The `count`th challenge of the session with this secret seed.
pub(crate) fn challenge_nonce(seed: &[u8; 32], count: u64) -> Nonce {
    Parts::new(CHALLENGE_CONTEXT).with(seed).with(&count.to_le_bytes()).hash()
}

/// What the signature of a message is made over.
pub(crate) fn signed_digest(kind: Kind, transcript: &[u8; 32], body: &[u8]) -> [u8; 32] {
    Parts::new(SIGNATURE_CONTEXT)
        .with(&[PROTOCOL_VERSION])
        .with(kind.label().as_bytes())
        .with(transcript)
        .with(body)
        .hash()
}

/// Encodes, signs and frames a body.
pub(crate) fn sign_frame<B: Body>(
    signer: &dyn Signer,
    transcript: &[u8; 32],
    body: &B,
) -> Result<Vec<u8>, SessionError> {
    sign_encoded(signer, B::KIND, transcript, &frame::encode_body(body)?)
}

/// Signs and frames an encoded body.
pub(crate) fn sign_encoded(
    signer: &dyn Signer,
    kind: Kind,
    transcript: &[u8; 32],
    body: &[u8],
) -> Result<Vec<u8>, SessionError> {
    let signature = signer.sign(&signed_digest(kind, transcript, body))?;
    frame::assemble(kind, transcript, &signature, body)
}

/// Checks that a frame belongs to this transcript and was signed by this key.
pub(crate) fn verify(
    raw: &RawFrame<'_>,
    transcript: &[u8; 32],
    key: &SigningPublicKey,
) -> Result<(), SessionError> {
    let what = raw.kind.label();
    if !bool::from(raw.transcript.ct_eq(transcript)) {
        return Err(SessionError::OtherSession { what });
    }
    let bad = |_| SessionError::BadSignature { what };
    let key = VerifyingKey::from_bytes(key).map_err(bad)?;
    let digest = signed_digest(raw.kind, transcript, raw.body);
    key.verify_strict(&digest, &Signature::from_bytes(&raw.signature)).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cannot_be_shifted_into_each_other() {
        let one = Parts::new(b"c").with(b"ab").with(b"c").hash();
        let two = Parts::new(b"c").with(b"a").with(b"bc").hash();
        assert_ne!(one, two);
    }

    #[test]
    fn a_signature_is_void_for_another_kind_transcript_body_or_key() {
        let signer = LocalSigner::from_seed(&[1; 32]);
        let other = LocalSigner::from_seed(&[2; 32]);
        let transcript = [3; 32];
        let signature = signer.sign(&signed_digest(Kind::Renewal, &transcript, b"body")).unwrap();
        let raw = RawFrame { kind: Kind::Renewal, transcript, signature, body: b"body" };
        verify(&raw, &transcript, &signer.public_key()).unwrap();

        let bad = SessionError::BadSignature { what: "renewal" };
        assert_eq!(verify(&raw, &transcript, &other.public_key()), Err(bad.clone()));
        assert_eq!(verify(&RawFrame { body: b"bodY", ..raw }, &transcript, &signer.public_key()), Err(bad));
        assert_eq!(
            verify(&RawFrame { kind: Kind::Revoke, ..raw }, &transcript, &signer.public_key()),
            Err(SessionError::BadSignature { what: "revoke" })
        );
        assert_eq!(
            verify(&raw, &[4; 32], &signer.public_key()),
            Err(SessionError::OtherSession { what: "renewal" })
        );
    }
}
