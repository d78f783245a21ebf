//! How a sealed keyholder gets the root from one that has it: memory to memory, in one exchange over their mutual TLS. JOIN.md is the
//! specification.
//!
//! Invariants:
//! - The root travels in an HPKE envelope to a key that was made for this one request, whose secret half is in the joiner's arena and
//!   never leaves it; envelope and signatures are bound to the connection, so nothing of it is of use on another one.
//! - The joiner signs with the identity key that the policy names; the giver with the grant-signing key, which only the root gives.
//! - A root that is not the one committed to in the ledger's share set is not taken.
//!
//! Bytes in, bytes out: no socket, clock or random source. Who may have the root, when and how often is the book's to judge.

use ed25519_dalek::{Signature, VerifyingKey};
use identity::ChannelBinding;
use lease::envelope::PublicEnvelopeKey;
use lease::message::SigningPublicKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use units::RootEpoch;

use crate::shares::SetId;

/// Version of both messages and of what is signed.
pub(crate) const JOIN_VERSION: u8 = 1;

const TRANSCRIPT_CONTEXT: &[u8] = b"nightlatch/join/1 transcript";
const REQUEST_CONTEXT: &[u8] = b"nightlatch/join/1 request";
const ANSWER_CONTEXT: &[u8] = b"nightlatch/join/1 answer";
const ROOT_CONTEXT: &[u8] = b"nightlatch/join/1 root";

const SIGNATURE_BYTES: usize = 64;

/// What a sealed keyholder asks with, as it stands in the body of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JoinRequest {
    /// [`JOIN_VERSION`].
    pub(crate) version: u8,
    /// Who asks, as in the certificate.
    pub(crate) joiner: String,
    /// Who is asked.
    pub(crate) giver: String,
    /// The joiner's identity key, hex.
    pub(crate) identity_key: String,
    /// Which root: the public grant-signing key of the ledger that the joiner has, hex.
    pub(crate) root: String,
    /// The one-time key, hex.
    pub(crate) envelope_key: String,
    /// By the identity key, hex.
    pub(crate) signature: String,
}

/// The root, for that request and that connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JoinAnswer {
    /// [`JOIN_VERSION`].
    pub(crate) version: u8,
    /// The envelope, hex.
    pub(crate) sealed: String,
    /// By the grant-signing key, hex.
    pub(crate) signature: String,
}

/// Why a request or an answer is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Of another version.
    #[error(
        "it is of version {0}, and this program speaks version {JOIN_VERSION}; run the same version on both keyholders"
    )]
    Version(u8),
    /// A field that is not what it should be.
    #[error("its {0} does not read; run the same version on both keyholders")]
    Field(&'static str),
    /// Of somebody else.
    #[error("it names {0} otherwise than the connection does; something stands between the keyholders")]
    Name(&'static str),
    /// Not signed by whom it says, or for another connection.
    #[error("its signature does not hold on this connection; something stands between the keyholders")]
    Signature,
}

/// What both sides know of an exchange.
struct Parts<'a> {
    joiner: &'a str,
    giver: &'a str,
    identity_key: &'a SigningPublicKey,
    root: &'a SigningPublicKey,
    envelope_key: &'a PublicEnvelopeKey,
}

impl Parts<'_> {
    fn transcript(&self, binding: ChannelBinding) -> [u8; 32] {
        digest(
            TRANSCRIPT_CONTEXT,
            &[
                &[JOIN_VERSION],
                self.joiner.as_bytes(),
                self.giver.as_bytes(),
                self.identity_key,
                self.root,
                self.envelope_key.as_bytes().as_slice(),
                &binding.0,
            ],
        )
    }
}

/// Hash over parts, each preceded by its length as u64 LE.
fn digest(context: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in std::iter::once(&context).chain(parts) {
        // Widening: no length in memory exceeds 64 bits.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn verify(
    key: &SigningPublicKey,
    digest: &[u8; 32],
    signature: &[u8; SIGNATURE_BYTES],
) -> Result<(), JoinError> {
    let key = VerifyingKey::from_bytes(key).map_err(|_| JoinError::Signature)?;
    key.verify_strict(digest, &Signature::from_bytes(signature)).map_err(|_| JoinError::Signature)
}

fn read<const N: usize>(field: &'static str, text: &str) -> Result<[u8; N], JoinError> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| JoinError::Field(field))?;
    Ok(bytes)
}

/// The associated data of the envelope.
pub(crate) fn root_aad(set: SetId, epoch: RootEpoch) -> Vec<u8> {
    [ROOT_CONTEXT, &set.0, &epoch.0.to_le_bytes()].concat()
}

/// A keyholder that asks.
#[derive(Debug)]
pub(crate) struct Joiner {
    pub(crate) joiner: String,
    pub(crate) giver: String,
    pub(crate) identity_key: SigningPublicKey,
    pub(crate) root: SigningPublicKey,
    pub(crate) envelope_key: PublicEnvelopeKey,
}

/// A keyholder that has asked and waits for the answer on that connection.
#[derive(Debug)]
pub(crate) struct Asked {
    root: SigningPublicKey,
    transcript: [u8; 32],
}

impl Joiner {
    /// The request for a connection. `sign` signs with the identity key.
    pub(crate) fn ask(
        self,
        binding: ChannelBinding,
        sign: impl FnOnce(&[u8; 32]) -> [u8; 64],
    ) -> (Asked, JoinRequest) {
        let parts = Parts {
            joiner: &self.joiner,
            giver: &self.giver,
            identity_key: &self.identity_key,
            root: &self.root,
            envelope_key: &self.envelope_key,
        };
        let transcript = parts.transcript(binding);
        let signature = sign(&digest(REQUEST_CONTEXT, &[&transcript]));
        let request = JoinRequest {
            version: JOIN_VERSION,
            joiner: self.joiner,
            giver: self.giver,
            identity_key: hex::encode(self.identity_key),
            root: hex::encode(self.root),
            envelope_key: hex::encode(self.envelope_key.as_bytes()),
            signature: hex::encode(signature),
        };
        (Asked { root: self.root, transcript }, request)
    }
}

/// An envelope whose sender has the root that was asked for. What is in it is still to be compared with the commitment.
#[derive(Debug)]
pub(crate) struct Received {
    /// The envelope's `info`.
    pub(crate) info: [u8; 32],
    pub(crate) sealed: Vec<u8>,
}

impl Asked {
    /// Takes the answer.
    pub(crate) fn on_answer(self, answer: &JoinAnswer) -> Result<Received, JoinError> {
        if answer.version != JOIN_VERSION {
            return Err(JoinError::Version(answer.version));
        }
        let sealed = hex::decode(&answer.sealed).map_err(|_| JoinError::Field("envelope"))?;
        let signature = read("signature", &answer.signature)?;
        verify(&self.root, &digest(ANSWER_CONTEXT, &[&self.transcript, &sealed]), &signature)?;
        Ok(Received { info: self.transcript, sealed })
    }
}

/// A request that holds: its sender has the identity key, on this connection.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) joiner: String,
    pub(crate) identity_key: SigningPublicKey,
    /// The root that is asked for, by its public grant-signing key.
    pub(crate) root: SigningPublicKey,
    pub(crate) envelope_key: PublicEnvelopeKey,
    /// The envelope's `info`.
    pub(crate) info: [u8; 32],
}

impl Verified {
    /// Checks a request that came from `peer` over the connection of `binding` to the keyholder `own`.
    pub(crate) fn read(
        request: &JoinRequest,
        peer: &str,
        own: &str,
        binding: ChannelBinding,
    ) -> Result<Self, JoinError> {
        if request.version != JOIN_VERSION {
            return Err(JoinError::Version(request.version));
        }
        if request.joiner != peer {
            return Err(JoinError::Name("who asks"));
        }
        if request.giver != own {
            return Err(JoinError::Name("who is asked"));
        }
        let identity_key = read("identity key", &request.identity_key)?;
        let root = read("root", &request.root)?;
        let envelope_key =
            hex::decode(&request.envelope_key).map_err(|_| JoinError::Field("envelope key"))?;
        let envelope_key =
            PublicEnvelopeKey::from_bytes(&envelope_key).map_err(|_| JoinError::Field("envelope key"))?;
        let signature = read("signature", &request.signature)?;
        let parts = Parts {
            joiner: &request.joiner,
            giver: &request.giver,
            identity_key: &identity_key,
            root: &root,
            envelope_key: &envelope_key,
        };
        let info = parts.transcript(binding);
        verify(&identity_key, &digest(REQUEST_CONTEXT, &[&info]), &signature)?;
        Ok(Self { joiner: request.joiner.clone(), identity_key, root, envelope_key, info })
    }

    /// The answer with this envelope. `sign` signs with the grant-signing key.
    pub(crate) fn answer<E>(
        &self,
        sealed: &[u8],
        sign: impl FnOnce(&[u8; 32]) -> Result<[u8; 64], E>,
    ) -> Result<JoinAnswer, E> {
        let signature = sign(&digest(ANSWER_CONTEXT, &[&self.info, sealed]))?;
        Ok(JoinAnswer {
            version: JOIN_VERSION,
            sealed: hex::encode(sealed),
            signature: hex::encode(signature),
        })
    }
}

#[cfg(test)]
mod tests {
    use lease::envelope;
    use lease::{public_key_of_seed, sign_with_seed};

    use super::*;

    const IDENTITY: [u8; 32] = [1; 32];
    const ROOT_SIGNER: [u8; 32] = [2; 32];
    const BINDING: ChannelBinding = ChannelBinding([3; 32]);

    fn asked(binding: ChannelBinding) -> (Asked, JoinRequest) {
        let joiner = Joiner {
            joiner: "compute-2".to_owned(),
            giver: "compute-1".to_owned(),
            identity_key: public_key_of_seed(&IDENTITY),
            root: public_key_of_seed(&ROOT_SIGNER),
            envelope_key: envelope::keypair(&[4; 32]).unwrap(),
        };
        joiner.ask(binding, |digest| sign_with_seed(&IDENTITY, digest))
    }

    fn read(request: &JoinRequest, binding: ChannelBinding) -> Result<Verified, JoinError> {
        Verified::read(request, "compute-2", "compute-1", binding)
    }

    fn answered(verified: &Verified, signer: &[u8; 32]) -> JoinAnswer {
        let sealed =
            envelope::seal(&verified.envelope_key, &verified.info, b"aad", &[5; 32], &mut [6; 64]).unwrap();
        verified.answer(&sealed, |digest| Ok::<_, ()>(sign_with_seed(signer, digest))).unwrap()
    }

    #[test]
    fn what_is_asked_for_on_a_connection_arrives_on_it() {
        let (asked, request) = asked(BINDING);
        let verified = read(&request, BINDING).unwrap();
        assert_eq!(verified.identity_key, public_key_of_seed(&IDENTITY));
        let received = asked.on_answer(&answered(&verified, &ROOT_SIGNER)).unwrap();
        let mut root = [0; 32];
        envelope::open(&[4; 32], &received.info, b"aad", &received.sealed, &mut root).unwrap();
        assert_eq!(root, [5; 32]);
    }

    #[test]
    fn a_request_is_of_no_use_on_another_connection_from_another_peer_or_to_another_keyholder() {
        let (_, request) = asked(BINDING);
        assert_eq!(read(&request, ChannelBinding([9; 32])).unwrap_err(), JoinError::Signature);
        let from = |peer, own| Verified::read(&request, peer, own, BINDING).unwrap_err();
        assert_eq!(from("compute-3", "compute-1"), JoinError::Name("who asks"));
        assert_eq!(from("compute-2", "compute-3"), JoinError::Name("who is asked"));
    }

    #[test]
    fn every_altered_field_is_noticed() {
        let (_, good) = asked(BINDING);
        let flip = |text: &str| {
            let last = if text.ends_with('0') { "1" } else { "0" };
            format!("{}{last}", &text[..text.len() - 1])
        };
        for altered in [
            JoinRequest { identity_key: hex::encode(public_key_of_seed(&[8; 32])), ..good.clone() },
            JoinRequest { root: flip(&good.root), ..good.clone() },
            JoinRequest {
                envelope_key: hex::encode(envelope::keypair(&[8; 32]).unwrap().as_bytes()),
                ..good.clone()
            },
            JoinRequest { signature: flip(&good.signature), ..good.clone() },
        ] {
            assert_eq!(read(&altered, BINDING).unwrap_err(), JoinError::Signature, "{altered:?}");
        }
        let later = JoinRequest { version: JOIN_VERSION + 1, ..good.clone() };
        assert_eq!(read(&later, BINDING).unwrap_err(), JoinError::Version(JOIN_VERSION + 1));
        let cut = JoinRequest { envelope_key: good.envelope_key[2..].to_owned(), ..good };
        assert_eq!(read(&cut, BINDING).unwrap_err(), JoinError::Field("envelope key"));
    }

    #[test]
    fn an_answer_without_the_root_or_for_another_request_is_not_taken() {
        let (asked_first, request) = asked(BINDING);
        let verified = read(&request, BINDING).unwrap();
        assert_eq!(asked_first.on_answer(&answered(&verified, &[7; 32])).unwrap_err(), JoinError::Signature);
        let (asked_again, _) = asked(ChannelBinding([9; 32]));
        assert_eq!(
            asked_again.on_answer(&answered(&verified, &ROOT_SIGNER)).unwrap_err(),
            JoinError::Signature
        );
        let (asked_again, _) = asked(BINDING);
        let mut altered = answered(&verified, &ROOT_SIGNER);
        altered.sealed.replace_range(0..1, if altered.sealed.starts_with('0') { "1" } else { "0" });
        assert_eq!(asked_again.on_answer(&altered).unwrap_err(), JoinError::Signature);
    }

    /// `NIGHTLATCH_BLESS=1` makes it anew.
    #[test]
    fn the_committed_exchange_is_what_is_said() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/join-v1.json");
        let (_, request) = asked(BINDING);
        let verified = read(&request, BINDING).unwrap();
        let exchange = serde_json::json!({"request": request, "answer": answered(&verified, &ROOT_SIGNER)});
        if std::env::var_os("NIGHTLATCH_BLESS").is_some() {
            std::fs::write(path, format!("{exchange:#}\n")).unwrap();
        }
        let committed: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(exchange, committed);
    }
}
