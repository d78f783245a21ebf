//! The keyholder's side of one connection.
//!
//! Invariants:
//! - No grant leaves a session whose node's identity key is not pinned, or before its evidence was verified, or
//!   after everything was revoked in it.
//! - Sealing the key is the caller's ([`KeyholderSession::grant`] takes a closure), so that no key passes through
//!   here.
//! - The machine reports each grant's first answer and no other.
//! - Evidence that announces a statement of the TPM is reported together with it, never without.
//!
//! It keeps no record: the shell makes the latest expiry durable **before** it asks for a grant or a renewal to be
//! encoded (PROTOCOL.md, "The keyholder's record"). It judges no policy either.

use std::collections::BTreeMap;
use std::sync::Arc;

use units::{BootInstant, DomainId, Fence, GrantId, NodeId, RootEpoch, VolumeEpoch, VolumeId};

use crate::envelope::PublicEnvelopeKey;
use crate::error::{GrantRefusal, KeyFingerprint, SessionError, SessionRefusal};
use crate::frame::{self, Incoming, RawFrame};
use crate::limits::{HANDSHAKE_MS_MAX, SILENCE_MS_MAX};
use crate::message::{
    Attestation, Body, ChallengeRequest, Credential, CredentialOpened, EnvelopedKey, EpochKey, EpochTaken,
    EpochsInUse, Evidence, Grant, GrantRefused, Hello, Kind, Nonce, OnRollback, OnSeal, PoolState, Receipt,
    Renewal, RenewalChallenge, Revoke, RevokeCause, Scope, SigningPublicKey, VolumeKind, WipeReceipt,
};
use crate::transcript::{
    self, EPOCH_KEY_LEASE_MS, EXPORTER_BYTES, Signer, grant_aad, hello_transcript, quote_digest,
    session_transcript, sign_frame,
};

/// What a session is opened with.
#[derive(Debug)]
pub struct KeyholderSessionParams {
    /// The keyholder's name, as in its certificate.
    pub keyholder: String,
    /// The node that is dialled.
    pub node: NodeId,
    /// The node's identity key pinned at enrolment. Without one evidence is verified under the key that
    /// it names itself, and nothing is granted.
    pub pinned: Option<SigningPublicKey>,
    /// The grant-signing key, in the keyholder's arena.
    pub signer: Arc<dyn Signer>,
    /// Which root that key comes from.
    pub root_epoch: RootEpoch,
    /// The TLS exporter value for [`crate::EXPORTER_LABEL`].
    pub exporter: [u8; EXPORTER_BYTES],
    /// Fresh random bytes.
    pub challenge: Nonce,
}

/// What the shell learns. In order.
#[derive(Debug, PartialEq, Eq)]
pub enum KeyholderEvent {
    /// Evidence whose signature holds under the pinned key, or under the key that it names itself where none is
    /// pinned yet, and what the machine's TPM says, which is not verified: its quote has to be over
    /// [`KeyholderSession::quote_digest`]. Judge both, then grant.
    Evidence(Box<Evidence>, Option<Box<Attestation>>),
    /// What the node's TPM found in a credential.
    CredentialOpened(CredentialOpened),
    /// The node asks whether it may go on. Record the expiry, then [`KeyholderSession::renewal`].
    Challenged(Challenged, Told),
    /// A grant is in force.
    Receipt(Receipt),
    /// A grant was not taken.
    GrantRefused(GrantRefused),
    /// What came of the key of a new epoch.
    EpochTaken(EpochTaken),
    /// Keys are gone.
    Wiped(WipeReceipt),
    /// The node ends the session. Unsigned: a hint for people, not a fact.
    NodeRefused(SessionRefusal),
}

/// What a challenge tells besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The durable states of the pools whose volumes are unlocked.
    pub states: Vec<PoolState>,
    /// What is left under which epochs.
    pub epochs: Vec<EpochsInUse>,
    /// Volumes whose keys have encrypted so much that new ones are due.
    pub due: Vec<VolumeId>,
}

/// A challenge that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenged {
    nonce: Nonce,
    /// When it arrived.
    pub at: BootInstant,
}

/// What is to be granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantOrder {
    /// Fresh random id.
    pub grant: GrantId,
    /// The volume.
    pub volume: VolumeId,
    /// Its key domain.
    pub domain: DomainId,
    /// Epoch of the domain's secret.
    pub epoch: VolumeEpoch,
    /// Above every fence recorded for the volume.
    pub fence: Fence,
    /// Length of the lease.
    pub lease_ms: u64,
    /// The label that clients know the volume by.
    pub label: String,
    /// What it is for.
    pub kind: VolumeKind,
    /// What its clients see when the key goes.
    pub on_seal: OnSeal,
    /// The state that its pool was last known in.
    pub known_state: Option<PoolState>,
    /// What the node does where the pool is not in that or a later one.
    pub on_rollback: OnRollback,
    /// Value that the key must give.
    pub check: [u8; 16],
    /// Other epochs whose keys go with it, and the values that these must give.
    pub further: Vec<(VolumeEpoch, [u8; 16])>,
}

/// A new epoch of a volume whose key is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochOrder {
    /// The grant in force.
    pub grant: GrantId,
    /// Its volume.
    pub volume: VolumeId,
    /// Its key domain.
    pub domain: DomainId,
    /// Its fence.
    pub fence: Fence,
    /// The new epoch.
    pub epoch: VolumeEpoch,
    /// Value that its key must give.
    pub check: [u8; 16],
}

/// For whom and in which context the key of a grant is sealed; hand it to [`crate::envelope::seal`].
#[derive(Debug)]
pub struct SealRequest<'a> {
    /// The node's one-time key.
    pub recipient: &'a PublicEnvelopeKey,
    /// The session's transcript hash.
    pub info: &'a [u8; 32],
    /// (volume, domain, epoch, fence, lease, grant id).
    pub aad: &'a [u8],
    /// Of which epoch the key is.
    pub epoch: VolumeEpoch,
}

/// Why a grant was not made.
#[derive(Debug, thiserror::Error)]
pub enum GrantError<E> {
    /// The session cannot grant.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The node has no pinned identity key.
    #[error(
        "the node is not approved: its identity key is not pinned; compare its fingerprint and approve it"
    )]
    NotPinned,
    /// Everything was revoked in this session.
    #[error("everything on the node was revoked; a new session is needed")]
    Revoked,
    /// The caller could not seal the key.
    #[error("the key could not be sealed")]
    Seal(#[source] E),
}

#[derive(Clone, Debug)]
enum State {
    New,
    AwaitingEvidence,
    /// There is evidence, and the TPM's statement is on its way.
    AwaitingAttestation {
        established: Box<State>,
        evidence: Box<Evidence>,
    },
    Established {
        transcript: [u8; 32],
        identity: SigningPublicKey,
        envelope_key: PublicEnvelopeKey,
    },
    /// The node has wiped, and will say how far that came.
    Wiped {
        transcript: [u8; 32],
        identity: SigningPublicKey,
    },
    Over,
}

/// The keyholder's end of one connection. A copy is for a model checker; a program has one.
#[derive(Clone, Debug)]
pub struct KeyholderSession {
    signer: Arc<dyn Signer>,
    pinned: Option<SigningPublicKey>,
    hello: Hello,
    exporter: [u8; EXPORTER_BYTES],
    state: State,
    revoked_all: bool,
    latest: Option<Challenged>,
    unanswered: BTreeMap<GrantId, VolumeId>,
    opened: BootInstant,
    heard: BootInstant,
}

impl KeyholderSession {
    /// A session on a connection whose TLS handshake is done.
    pub fn new(now: BootInstant, params: KeyholderSessionParams) -> Self {
        let hello = Hello {
            node: params.node,
            keyholder: params.keyholder,
            signing_key: params.signer.public_key(),
            root_epoch: params.root_epoch,
            challenge: params.challenge,
        };
        Self {
            signer: params.signer,
            pinned: params.pinned,
            hello,
            exporter: params.exporter,
            state: State::New,
            revoked_all: false,
            latest: None,
            unanswered: BTreeMap::new(),
            opened: now,
            heard: now,
        }
    }

    /// The first bytes to send.
    pub fn start(&mut self) -> Result<Vec<u8>, SessionError> {
        let State::New = self.state else {
            return Err(SessionError::OutOfOrder {
                got: Kind::Hello.label(),
                expected: Kind::Evidence.label(),
            });
        };
        self.state = State::AwaitingEvidence;
        sign_frame(self.signer.as_ref(), &hello_transcript(&self.exporter), &self.hello)
    }

    /// Whether evidence has been verified and the session is not over.
    pub fn is_established(&self) -> bool {
        matches!(self.state, State::Established { .. })
    }

    /// The newest challenge; a grant counts from its sending.
    pub fn latest_challenge(&self) -> Option<Challenged> {
        self.latest
    }

    /// Takes one frame, without its prefix. After an error the session is over: close it.
    pub fn on_frame(
        &mut self,
        now: BootInstant,
        frame: &[u8],
    ) -> Result<Option<KeyholderEvent>, SessionError> {
        let result = self.handle(now, frame);
        if result.is_err() {
            self.state = State::Over;
        }
        result
    }

    fn handle(&mut self, now: BootInstant, frame: &[u8]) -> Result<Option<KeyholderEvent>, SessionError> {
        let raw = match frame::parse(frame)? {
            Incoming::Signed(raw) => raw,
            Incoming::Refused(refused) => {
                self.state = State::Over;
                return Ok(Some(KeyholderEvent::NodeRefused(refused.reason)));
            }
        };
        let event = match &self.state {
            State::New | State::Over => return Err(SessionError::Closed),
            State::AwaitingEvidence => self.on_evidence(now, &raw)?,
            State::AwaitingAttestation { .. } => self.on_attestation(now, &raw)?,
            State::Established { transcript, identity, .. } => {
                transcript::verify(&raw, transcript, identity)?;
                self.on_established(now, &raw)?
            }
            State::Wiped { transcript, identity } => {
                transcript::verify(&raw, transcript, identity)?;
                // Whatever else it still says is about keys that are gone.
                if raw.kind == Kind::WipeReceipt { self.on_established(now, &raw)? } else { None }
            }
        };
        self.heard = now;
        Ok(event)
    }

    fn on_evidence(
        &mut self,
        now: BootInstant,
        raw: &RawFrame<'_>,
    ) -> Result<Option<KeyholderEvent>, SessionError> {
        if raw.kind != Kind::Evidence {
            return Err(SessionError::OutOfOrder { got: raw.kind.label(), expected: Kind::Evidence.label() });
        }
        let evidence: Evidence = frame::decode(raw.body)?;
        if let Some(pinned) = self.pinned
            && pinned != evidence.identity_key
        {
            return Err(SessionError::ForeignIdentity {
                offered: KeyFingerprint::of(&evidence.identity_key),
                pinned: KeyFingerprint::of(&pinned),
            });
        }
        let transcript = session_transcript(&self.hello, &evidence.identity_key, &self.exporter, raw.body);
        transcript::verify(raw, &transcript, &evidence.identity_key)?;
        if evidence.node != self.hello.node {
            return Err(SessionError::WrongNode { wanted: self.hello.node, reached: evidence.node });
        }
        self.latest = Some(Challenged { nonce: evidence.challenge, at: now });
        let established = State::Established {
            transcript,
            identity: evidence.identity_key,
            envelope_key: evidence.envelope_key.clone(),
        };
        let evidence = Box::new(evidence);
        if evidence.attests {
            self.state = State::AwaitingAttestation { established: Box::new(established), evidence };
            return Ok(None);
        }
        self.state = established;
        Ok(Some(KeyholderEvent::Evidence(evidence, None)))
    }

    fn on_attestation(
        &mut self,
        now: BootInstant,
        raw: &RawFrame<'_>,
    ) -> Result<Option<KeyholderEvent>, SessionError> {
        let State::AwaitingAttestation { established, evidence } = &self.state else {
            return Err(SessionError::Closed);
        };
        let State::Established { transcript, identity, .. } = established.as_ref() else {
            return Err(SessionError::Closed);
        };
        transcript::verify(raw, transcript, identity)?;
        match raw.kind {
            Kind::Attestation => {
                let attestation: Attestation = frame::decode(raw.body)?;
                let event = KeyholderEvent::Evidence(evidence.clone(), Some(Box::new(attestation)));
                self.state = established.as_ref().clone();
                Ok(Some(event))
            }
            // A TPM takes its time; the node goes on asking, and is answered once it was judged.
            Kind::RenewalChallenge => {
                let RenewalChallenge { nonce, .. } = frame::decode(raw.body)?;
                self.latest = Some(Challenged { nonce, at: now });
                Ok(None)
            }
            // What was given up was given up. Only a wipe of everything ends the wait, and the session with it: evidence that
            // nobody has judged must not become a session in which keys are granted.
            Kind::WipeReceipt => {
                let receipt: WipeReceipt = frame::decode(raw.body)?;
                if receipt.scope == Scope::All {
                    self.state = established.as_ref().clone();
                    return self.on_established(now, raw);
                }
                Ok(Some(KeyholderEvent::Wiped(receipt)))
            }
            _ => Err(SessionError::OutOfOrder { got: raw.kind.label(), expected: Kind::Attestation.label() }),
        }
    }

    /// What the quote of this session's node has to be over.
    pub fn quote_digest(&self) -> Option<[u8; 32]> {
        let State::Established { transcript, .. } = &self.state else { return None };
        Some(quote_digest(transcript))
    }

    /// Encodes a credential for the node's TPM; [`KeyholderEvent::CredentialOpened`] has what it found.
    pub fn credential(&self, credential: &Credential) -> Result<Vec<u8>, SessionError> {
        self.signed(credential)
    }

    fn on_established(
        &mut self,
        now: BootInstant,
        raw: &RawFrame<'_>,
    ) -> Result<Option<KeyholderEvent>, SessionError> {
        match raw.kind {
            Kind::RenewalChallenge => {
                let RenewalChallenge { nonce, states, epochs, due } = frame::decode(raw.body)?;
                let challenged = Challenged { nonce, at: now };
                self.latest = Some(challenged);
                Ok(Some(KeyholderEvent::Challenged(challenged, Told { states, epochs, due })))
            }
            Kind::Receipt => {
                let receipt: Receipt = frame::decode(raw.body)?;
                let first = self.first_answer(receipt.grant, receipt.volume)?;
                Ok(first.then_some(KeyholderEvent::Receipt(receipt)))
            }
            Kind::GrantRefused => {
                let refused: GrantRefused = frame::decode(raw.body)?;
                // What answers a duplicate says nothing about the grant itself, whose own answer comes or came.
                if refused.reason == GrantRefusal::Replayed {
                    return Ok(None);
                }
                let first = self.first_answer(refused.grant, refused.volume)?;
                Ok(first.then_some(KeyholderEvent::GrantRefused(refused)))
            }
            Kind::WipeReceipt => {
                let receipt: WipeReceipt = frame::decode(raw.body)?;
                match receipt.scope {
                    Scope::All => {
                        self.unanswered.clear();
                        self.state = match (&self.state, receipt.more) {
                            (
                                State::Established { transcript, identity, .. }
                                | State::Wiped { transcript, identity },
                                true,
                            ) => State::Wiped { transcript: *transcript, identity: *identity },
                            _ => State::Over,
                        };
                    }
                    Scope::Volume(volume) => self.unanswered.retain(|_, of| *of != volume),
                }
                Ok(Some(KeyholderEvent::Wiped(receipt)))
            }
            Kind::EpochTaken => Ok(Some(KeyholderEvent::EpochTaken(frame::decode(raw.body)?))),
            Kind::CredentialOpened => Ok(Some(KeyholderEvent::CredentialOpened(frame::decode(raw.body)?))),
            other => Err(SessionError::UnexpectedKind { kind: other.byte() }),
        }
    }

    /// Whether this is the first answer to a grant of this session. One that names another volume is no answer at all.
    fn first_answer(&mut self, grant: GrantId, volume: VolumeId) -> Result<bool, SessionError> {
        match self.unanswered.remove(&grant) {
            Some(granted) if granted != volume => Err(SessionError::OtherVolume { grant }),
            Some(_) => Ok(true),
            None => Ok(false),
        }
    }

    /// Encodes a grant that counts from the latest challenge. The shell has recorded its latest expiry durably: that of a lease from
    /// the arrival of [`Self::latest_challenge`], which may have come after the grant was planned.
    ///
    /// `seal` encrypts the volume's PRK for the node; it runs where the root secret is.
    pub fn grant<E>(
        &mut self,
        order: GrantOrder,
        mut seal: impl FnMut(&SealRequest<'_>) -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, GrantError<E>> {
        let State::Established { transcript, envelope_key, .. } = &self.state else {
            return Err(SessionError::Closed.into());
        };
        if self.pinned.is_none() {
            return Err(GrantError::NotPinned);
        }
        if self.revoked_all {
            return Err(GrantError::Revoked);
        }
        let nonce = self.latest.ok_or(SessionError::Closed)?.nonce;
        let mut enveloped = |epoch: VolumeEpoch| {
            let aad = grant_aad(order.volume, order.domain, epoch, order.fence, order.lease_ms, order.grant);
            seal(&SealRequest { recipient: envelope_key, info: transcript, aad: &aad, epoch })
                .map_err(GrantError::Seal)
        };
        let envelope = enveloped(order.epoch)?;
        let further = order.further.iter().map(|(epoch, check)| {
            enveloped(*epoch).map(|envelope| EnvelopedKey { epoch: *epoch, check: *check, envelope })
        });
        let further = further.collect::<Result<Vec<_>, _>>()?;
        let grant = Grant {
            grant: order.grant,
            volume: order.volume,
            domain: order.domain,
            epoch: order.epoch,
            fence: order.fence,
            lease_ms: order.lease_ms,
            nonce,
            label: order.label,
            kind: order.kind,
            on_seal: order.on_seal,
            known_state: order.known_state,
            on_rollback: order.on_rollback,
            check: order.check,
            envelope,
            further,
        };
        let bytes = sign_frame(self.signer.as_ref(), transcript, &grant)?;
        self.unanswered.insert(order.grant, order.volume);
        Ok(bytes)
    }

    /// Encodes the key of a new epoch for a volume whose key is in force on the node: it ends with the lease that runs.
    pub fn epoch_key<E>(
        &self,
        order: EpochOrder,
        seal: impl FnOnce(&SealRequest<'_>) -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, GrantError<E>> {
        let State::Established { transcript, envelope_key, .. } = &self.state else {
            return Err(SessionError::Closed.into());
        };
        if self.pinned.is_none() {
            return Err(GrantError::NotPinned);
        }
        if self.revoked_all {
            return Err(GrantError::Revoked);
        }
        let EpochOrder { grant, volume, domain, fence, epoch, check } = order;
        let aad = grant_aad(volume, domain, epoch, fence, EPOCH_KEY_LEASE_MS, grant);
        let request = SealRequest { recipient: envelope_key, info: transcript, aad: &aad, epoch };
        let envelope = seal(&request).map_err(GrantError::Seal)?;
        let key = EnvelopedKey { epoch, check, envelope };
        Ok(sign_frame(self.signer.as_ref(), transcript, &EpochKey { grant, volume, domain, key })?)
    }

    /// Encodes the answer to a challenge: every grant that goes on. The shell has recorded the expiry durably.
    ///
    /// With no grants it prolongs nothing and only shows the node that the keyholder is there.
    pub fn renewal(
        &self,
        challenged: Challenged,
        lease_ms: u64,
        grants: Vec<GrantId>,
    ) -> Result<Vec<u8>, SessionError> {
        if self.revoked_all && !grants.is_empty() {
            return Err(SessionError::Closed);
        }
        self.signed(&Renewal { nonce: challenged.nonce, lease_ms, grants })
    }

    /// Encodes a revocation.
    pub fn revoke(&mut self, scope: Scope, cause: RevokeCause) -> Result<Vec<u8>, SessionError> {
        let bytes = self.signed(&Revoke { scope, cause })?;
        self.revoked_all |= scope == Scope::All;
        Ok(bytes)
    }

    /// Asks for a challenge at once, for a grant that is to be made now.
    pub fn request_challenge(&self) -> Result<Vec<u8>, SessionError> {
        self.signed(&ChallengeRequest {})
    }

    /// The error to close with, once the node has been silent for too long.
    pub fn on_time(&mut self, now: BootInstant) -> Result<(), SessionError> {
        if self.next_timeout().is_none_or(|timeout| now < timeout) {
            return Ok(());
        }
        self.state = State::Over;
        Err(SessionError::Silent { ms: now.ms_since(self.heard) })
    }

    /// When [`Self::on_time`] has something to say.
    pub fn next_timeout(&self) -> Option<BootInstant> {
        match self.state {
            State::New | State::AwaitingEvidence | State::AwaitingAttestation { .. } => {
                Some(self.opened.saturating_add_ms(HANDSHAKE_MS_MAX))
            }
            State::Established { .. } | State::Wiped { .. } => {
                Some(self.heard.saturating_add_ms(SILENCE_MS_MAX))
            }
            State::Over => None,
        }
    }

    fn signed<B: Body>(&self, body: &B) -> Result<Vec<u8>, SessionError> {
        let State::Established { transcript, .. } = &self.state else { return Err(SessionError::Closed) };
        sign_frame(self.signer.as_ref(), transcript, body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::keypair;
    use crate::frame::PREFIX_BYTES;
    use crate::message::{LeaseLimits, StateVerdict};
    use crate::transcript::{LocalSigner, sign_encoded};
    use units::{BootId, PoolId};

    const NOW: BootInstant = BootInstant(1);
    const NODE: NodeId = NodeId([1; 16]);
    const VOLUME: VolumeId = VolumeId([2; 16]);
    const GRANT: GrantId = GrantId([3; 16]);
    const POOL: PoolId = PoolId([4; 16]);

    /// A session whose node the test speaks for, with one grant unanswered.
    fn session() -> (KeyholderSession, LocalSigner, [u8; 32]) {
        let identity = LocalSigner::from_seed(&[4; 32]);
        let mut session = KeyholderSession::new(
            NOW,
            KeyholderSessionParams {
                keyholder: "k".to_owned(),
                node: NODE,
                pinned: Some(identity.public_key()),
                signer: Arc::new(LocalSigner::from_seed(&[5; 32])),
                root_epoch: RootEpoch(1),
                exporter: [6; 32],
                challenge: [7; 32],
            },
        );
        session.start().unwrap();
        let evidence = Evidence {
            node: NODE,
            identity_key: identity.public_key(),
            boot: BootId([8; 16]),
            image: None,
            hygiene: String::new(),
            last_wipe: None,
            envelope_key: keypair(&[9; 32]).unwrap(),
            volumes: Vec::new(),
            held: Vec::new(),
            lease_limits: LeaseLimits::PROTOCOL,
            challenge: [10; 32],
            attests: false,
        };
        let body = frame::encode_body(&evidence).unwrap();
        let transcript = session_transcript(&session.hello, &identity.public_key(), &[6; 32], &body);
        let bytes = sign_encoded(&identity, Kind::Evidence, &transcript, &body).unwrap();
        session.on_frame(NOW, &bytes[PREFIX_BYTES..]).unwrap();
        let order = GrantOrder {
            grant: GRANT,
            volume: VOLUME,
            domain: DomainId([11; 16]),
            epoch: VolumeEpoch(1),
            fence: Fence(1),
            lease_ms: 1_000,
            label: "v".to_owned(),
            kind: VolumeKind::Block,
            on_seal: OnSeal::Hold,
            known_state: None,
            on_rollback: OnRollback::Refuse,
            check: [0; 16],
            further: Vec::new(),
        };
        session.grant(order, |_| Ok::<_, std::convert::Infallible>(Vec::new())).unwrap();
        (session, identity, transcript)
    }

    #[test]
    fn an_answer_counts_once_and_only_for_the_volume_of_its_grant() {
        let (mut session, identity, transcript) = session();
        let receipt = |volume, grant| {
            let verdict = StateVerdict::First;
            let receipt = Receipt { grant, volume, fence: Fence(1), pool: POOL, verdict, states: Vec::new() };
            sign_frame(&identity, &transcript, &receipt).unwrap().split_off(PREFIX_BYTES)
        };
        assert_eq!(session.on_frame(NOW, &receipt(VOLUME, GrantId([99; 16]))), Ok(None), "never granted");
        let first = session.on_frame(NOW, &receipt(VOLUME, GRANT));
        assert!(matches!(first, Ok(Some(KeyholderEvent::Receipt(_)))));
        assert_eq!(session.on_frame(NOW, &receipt(VOLUME, GRANT)), Ok(None), "once");

        let (mut session, identity, transcript) = self::session();
        let (volume, verdict) = (VolumeId([12; 16]), StateVerdict::First);
        let lie = Receipt { grant: GRANT, volume, fence: Fence(1), pool: POOL, verdict, states: Vec::new() };
        let lie = sign_frame(&identity, &transcript, &lie).unwrap().split_off(PREFIX_BYTES);
        assert_eq!(session.on_frame(NOW, &lie), Err(SessionError::OtherVolume { grant: GRANT }));
        assert!(!session.is_established());
    }
}
