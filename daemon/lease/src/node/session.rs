//! One connection from the keyholder, seen by the node.

use std::collections::VecDeque;

use units::{BootInstant, GrantId, PoolId, VolumeEpoch, VolumeId};

use super::{
    EpochToAdmit, EvidenceInput, GrantToAdmit, KeyToAdmit, NodeEffect, NodeLease, NodeNote, Phase, WipeReport,
};
use crate::error::{GrantRefusal, SessionError};
use crate::frame::{self, Incoming, RawFrame};
use crate::limits::{
    CHALLENGE_INTERVAL_MS_MAX, CHALLENGES_OUTSTANDING_MAX, HANDSHAKE_MS_MAX, SILENCE_MS_MAX,
    challenge_interval_ms,
};
use crate::message::{
    Attestation, Body, ChallengeRequest, CredentialOpened, EnvelopedKey, EpochKey, EpochTaken, Evidence,
    Grant, GrantRefused, Hello, Kind, Nonce, Receipt, Refused, Renewal, RenewalChallenge, Revoke, Scope,
    SigningPublicKey, StateVerdict, WipeCause, WipeReceipt, WipeRecord, WipeStages,
};
use crate::transcript::{
    self, EPOCH_KEY_LEASE_MS, EXPORTER_BYTES, challenge_nonce, grant_aad, hello_transcript, quote_digest,
    session_transcript, sign_encoded, sign_frame,
};

/// What a session is opened with.
#[derive(Clone)]
pub struct NodeSessionParams {
    /// The TLS exporter value for [`crate::EXPORTER_LABEL`].
    pub exporter: [u8; EXPORTER_BYTES],
    /// Fresh random bytes, from which the session's challenges are derived.
    pub seed: [u8; 32],
}

impl std::fmt::Debug for NodeSessionParams {
    /// Challenges are unpredictable only while the seed is unknown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeSessionParams")
    }
}

#[derive(Clone, Debug)]
enum State {
    AwaitingHello,
    AwaitingEvidence {
        hello: Hello,
    },
    Established {
        transcript: [u8; 32],
        keyholder: SigningPublicKey,
    },
    /// A wipe was told, and will be once more: nothing is taken in any more, what still arrives is not looked at.
    Wiped {
        transcript: [u8; 32],
    },
    Over,
}

#[derive(Clone, Debug)]
struct Challenge {
    nonce: Nonce,
    sent: BootInstant,
    renewed: bool,
}

/// The node's end of one connection. Every method takes the node's [`NodeLease`], which outlives it.
#[derive(Clone, Debug)]
pub struct NodeSession {
    id: u64,
    params: NodeSessionParams,
    state: State,
    wiping: bool,
    challenges: VecDeque<Challenge>,
    challenges_sent: u64,
    opened: BootInstant,
    heard: BootInstant,
}

impl NodeSession {
    /// A session on a connection whose TLS handshake is done.
    pub fn new(lease: &mut NodeLease, now: BootInstant, params: NodeSessionParams) -> Self {
        Self {
            id: lease.open_session(),
            params,
            state: State::AwaitingHello,
            wiping: false,
            challenges: VecDeque::new(),
            challenges_sent: 0,
            opened: now,
            heard: now,
        }
    }

    /// Whether evidence has been sent and the session is not over.
    pub fn is_established(&self) -> bool {
        matches!(self.state, State::Established { .. })
    }

    /// The bytes that tell the keyholder why its session ends. Send them, then close.
    pub fn refusal(error: &SessionError) -> Vec<u8> {
        frame::assemble_refused(&Refused { reason: error.refusal() })
    }

    /// Takes one frame, without its prefix. After an error the session is over: send [`Self::refusal`] and close.
    pub fn on_frame(
        &mut self,
        lease: &mut NodeLease,
        now: BootInstant,
        frame: &[u8],
    ) -> Result<Vec<NodeEffect>, SessionError> {
        let result = self.handle(lease, now, frame);
        if result.is_err() {
            self.end(lease);
        }
        result
    }

    fn handle(
        &mut self,
        lease: &mut NodeLease,
        now: BootInstant,
        frame: &[u8],
    ) -> Result<Vec<NodeEffect>, SessionError> {
        match self.state {
            State::Over => return Err(SessionError::Closed),
            State::Wiped { .. } => return Ok(vec![NodeEffect::Note(NodeNote::DuringWipe)]),
            _ if lease.is_voided(self.id) => return Ok(vec![NodeEffect::Note(NodeNote::DuringWipe)]),
            State::AwaitingHello => {}
            _ if !lease.is_current(self.id) => return Err(SessionError::Superseded),
            _ => {}
        }
        // Before anything else: a message that arrives after the deadline must find nothing to prolong.
        if lease.is_overdue(now) {
            let effects = lease.on_time(now);
            return Ok(if effects.is_empty() {
                vec![NodeEffect::Note(NodeNote::DuringWipe)]
            } else {
                effects
            });
        }
        if self.wiping {
            return Ok(vec![NodeEffect::Note(NodeNote::DuringWipe)]);
        }
        let raw = match frame::parse(frame)? {
            Incoming::Signed(raw) => raw,
            Incoming::Refused(_) => return Err(SessionError::UnexpectedKind { kind: Kind::Refused.byte() }),
        };
        let effects = match &self.state {
            State::AwaitingHello => self.on_hello(lease, &raw)?,
            State::AwaitingEvidence { .. } => {
                return Err(SessionError::OutOfOrder { got: raw.kind.label(), expected: "evidence" });
            }
            State::Established { transcript, keyholder } => {
                let (transcript, keyholder) = (*transcript, *keyholder);
                self.on_established(lease, now, &raw, transcript, keyholder)?
            }
            State::Wiped { .. } | State::Over => return Err(SessionError::Closed),
        };
        self.heard = now;
        Ok(effects)
    }

    fn on_hello(
        &mut self,
        lease: &mut NodeLease,
        raw: &RawFrame<'_>,
    ) -> Result<Vec<NodeEffect>, SessionError> {
        if raw.kind != Kind::Hello {
            return Err(SessionError::OutOfOrder { got: raw.kind.label(), expected: Kind::Hello.label() });
        }
        let hello: Hello = frame::decode(raw.body)?;
        let pinned = lease.pin().ok_or(SessionError::NotEnrolled)?;
        if hello.signing_key != pinned {
            return Err(SessionError::ForeignSigningKey {
                offered: crate::KeyFingerprint::of(&hello.signing_key),
                pinned: crate::KeyFingerprint::of(&pinned),
            });
        }
        transcript::verify(raw, &hello_transcript(&self.params.exporter), &pinned)?;
        if hello.node != lease.params.node {
            return Err(SessionError::WrongNode { wanted: hello.node, reached: lease.params.node });
        }
        lease.supersede(self.id);
        self.state = State::AwaitingEvidence { hello };
        Ok(vec![NodeEffect::NeedEvidence])
    }

    /// Answers the keyholder's hello with what the shell gathered. [`SessionError::Unsettled`] while a key is on its way in or out.
    pub fn on_evidence(
        &mut self,
        lease: &mut NodeLease,
        now: BootInstant,
        input: EvidenceInput,
    ) -> Result<Vec<NodeEffect>, SessionError> {
        let result = self.send_evidence(lease, now, input);
        if result.is_err() {
            self.end(lease);
        }
        result
    }

    fn send_evidence(
        &mut self,
        lease: &NodeLease,
        now: BootInstant,
        input: EvidenceInput,
    ) -> Result<Vec<NodeEffect>, SessionError> {
        if lease.is_voided(self.id) {
            return Ok(vec![NodeEffect::Note(NodeNote::DuringWipe)]);
        }
        if !lease.is_current(self.id) {
            return Err(SessionError::Superseded);
        }
        if !lease.is_settled() {
            return Err(SessionError::Unsettled);
        }
        let State::AwaitingEvidence { hello } = std::mem::replace(&mut self.state, State::Over) else {
            return Err(SessionError::OutOfOrder {
                got: Kind::Evidence.label(),
                expected: Kind::Hello.label(),
            });
        };
        let params = &lease.params;
        let evidence = Evidence {
            node: params.node,
            identity_key: params.identity.public_key(),
            boot: params.boot,
            image: params.image,
            hygiene: input.hygiene,
            last_wipe: lease.last_wipe,
            envelope_key: input.envelope_key,
            volumes: lease.volumes.values().copied().collect(),
            held: lease.held_grants(),
            lease_limits: params.limits,
            challenge: self.make_challenge(now),
            attests: input.attests,
        };
        let body = frame::encode_body(&evidence)?;
        let transcript = session_transcript(&hello, &evidence.identity_key, &self.params.exporter, &body);
        let frame = sign_encoded(params.identity.as_ref(), Kind::Evidence, &transcript, &body)?;
        self.state = State::Established { transcript, keyholder: hello.signing_key };
        self.heard = now;
        let quote = input.attests.then(|| NodeEffect::NeedAttestation(quote_digest(&transcript)));
        Ok(std::iter::once(NodeEffect::Send(frame)).chain(quote).collect())
    }

    /// Sends what the TPM said, or why it said nothing. After a wipe, or for a session that another one follows, nothing.
    pub fn on_attestation(&self, lease: &NodeLease, attestation: &Attestation) -> Vec<NodeEffect> {
        self.answer(lease, attestation)
    }

    /// Sends what the TPM found in a credential.
    pub fn on_credential_opened(&self, lease: &NodeLease, opened: &CredentialOpened) -> Vec<NodeEffect> {
        self.answer(lease, opened)
    }

    fn answer<B: Body>(&self, lease: &NodeLease, body: &B) -> Vec<NodeEffect> {
        if !self.is_established() || !lease.is_current(self.id) {
            return Vec::new();
        }
        self.try_signed(lease, body).into_iter().collect()
    }

    fn on_established(
        &mut self,
        lease: &mut NodeLease,
        now: BootInstant,
        raw: &RawFrame<'_>,
        transcript: [u8; 32],
        keyholder: SigningPublicKey,
    ) -> Result<Vec<NodeEffect>, SessionError> {
        if raw.kind == Kind::Hello {
            return Err(SessionError::OutOfOrder { got: Kind::Hello.label(), expected: "grant or renewal" });
        }
        transcript::verify(raw, &transcript, &keyholder)?;
        match raw.kind {
            Kind::Grant => self.on_grant(lease, now, frame::decode(raw.body)?, transcript),
            Kind::Renewal => Ok(self.on_renewal(lease, &frame::decode(raw.body)?)),
            Kind::Revoke => self.on_revoke(lease, now, frame::decode(raw.body)?),
            Kind::ChallengeRequest => {
                let ChallengeRequest {} = frame::decode(raw.body)?;
                Ok(vec![self.challenge(lease, now)?])
            }
            Kind::EpochKey => self.on_epoch_key(lease, frame::decode(raw.body)?, transcript),
            Kind::Credential => Ok(vec![NodeEffect::OpenCredential(frame::decode(raw.body)?)]),
            other => Err(SessionError::UnexpectedKind { kind: other.byte() }),
        }
    }

    fn on_grant(
        &mut self,
        lease: &mut NodeLease,
        now: BootInstant,
        grant: Grant,
        transcript: [u8; 32],
    ) -> Result<Vec<NodeEffect>, SessionError> {
        let sent = self.challenges.iter().find(|challenge| challenge.nonce == grant.nonce).map(|c| c.sent);
        match lease.judge(now, &grant, sent) {
            Ok(deadline) => {
                lease.begin_admission(&grant, deadline);
                Ok(vec![
                    NodeEffect::SetDeadline(lease.deadline()),
                    NodeEffect::AdmitGrant(Box::new(GrantToAdmit::new(grant, transcript))),
                ])
            }
            Err(reason) => self.refuse(lease, grant.grant, grant.volume, reason),
        }
    }

    fn on_epoch_key(
        &self,
        lease: &NodeLease,
        key: EpochKey,
        transcript: [u8; 32],
    ) -> Result<Vec<NodeEffect>, SessionError> {
        let (grant, volume, epoch) = (key.grant, key.volume, key.key.epoch);
        match lease.judge_epoch(&key) {
            Ok(fence) => {
                let aad = grant_aad(volume, key.domain, epoch, fence, EPOCH_KEY_LEASE_MS, grant);
                let EnvelopedKey { epoch, check, envelope } = key.key;
                let domain = key.domain;
                let key = KeyToAdmit { epoch, check, envelope, aad };
                let admit = EpochToAdmit { grant, volume, domain, key, info: transcript };
                Ok(vec![NodeEffect::AdmitEpoch(Box::new(admit))])
            }
            Err(reason) => {
                let taken = EpochTaken { grant, volume, epoch, result: Err(reason) };
                let note = NodeNote::KeyRefused { grant, reason };
                Ok(vec![NodeEffect::Note(note), self.signed(lease, &taken)?])
            }
        }
    }

    /// Reports what came of an [`NodeEffect::AdmitEpoch`]. Where the volume's key is gone meanwhile, the new one went with it.
    pub fn on_epoch_admitted(
        &self,
        lease: &NodeLease,
        (volume, grant, epoch): (VolumeId, GrantId, VolumeEpoch),
        result: Result<(), GrantRefusal>,
    ) -> Vec<NodeEffect> {
        let note = result.err().map(|reason| NodeEffect::Note(NodeNote::KeyRefused { grant, reason }));
        let send = self.try_signed(lease, &EpochTaken { grant, volume, epoch, result });
        note.into_iter().chain(send).collect()
    }

    fn refuse(
        &self,
        lease: &NodeLease,
        grant: GrantId,
        volume: VolumeId,
        reason: GrantRefusal,
    ) -> Result<Vec<NodeEffect>, SessionError> {
        let send = self.signed(lease, &GrantRefused { grant, volume, reason })?;
        Ok(vec![NodeEffect::Note(NodeNote::GrantRefused { grant, volume, reason }), send])
    }

    fn on_renewal(&mut self, lease: &mut NodeLease, renewal: &Renewal) -> Vec<NodeEffect> {
        if !lease.params.limits.allow(renewal.lease_ms) {
            return vec![NodeEffect::Note(NodeNote::RenewalOutOfRange { offered_ms: renewal.lease_ms })];
        }
        let answered = self
            .challenges
            .iter()
            .position(|challenge| challenge.nonce == renewal.nonce && !challenge.renewed);
        let Some(answered) = answered else {
            return vec![NodeEffect::Note(NodeNote::StaleRenewal)];
        };
        // Earlier ones are answered with it: an older answer that arrives later finds its challenge closed.
        for challenge in self.challenges.iter_mut().take(answered + 1) {
            challenge.renewed = true;
        }
        lease.renew(self.challenges[answered].sent, renewal.lease_ms, &renewal.grants)
    }

    fn on_revoke(
        &mut self,
        lease: &mut NodeLease,
        now: BootInstant,
        revoke: Revoke,
    ) -> Result<Vec<NodeEffect>, SessionError> {
        let cause = WipeCause::from(revoke.cause);
        let volume = match revoke.scope {
            Scope::All => {
                self.wiping = true;
                return Ok(vec![NodeEffect::Wipe(cause)]);
            }
            Scope::Volume(volume) => volume,
        };
        if let Some(effects) = lease.begin_drop(volume, cause) {
            return Ok(effects);
        }
        // Nothing was held: say so at once, a revocation is answered in any case.
        let generation = lease.last_wipe.map_or(0, |wipe| wipe.generation);
        let report = WipeReport {
            record: WipeRecord { cause, at: now, generation },
            stages: WipeStages::keys(0),
            more: false,
        };
        Ok(vec![self.wipe_receipt(lease, Scope::Volume(volume), &report, Vec::new())?])
    }

    /// Reports what came of an [`NodeEffect::AdmitGrant`].
    pub fn on_admitted(
        &mut self,
        lease: &mut NodeLease,
        now: BootInstant,
        volume: VolumeId,
        grant: GrantId,
        result: Result<StateVerdict, GrantRefusal>,
    ) -> Vec<NodeEffect> {
        let held = lease.held.get_mut(&volume).filter(|held| held.grant == grant);
        match (held, result) {
            // A wipe came between: the key cannot be in force, and if it is it goes.
            (None, Ok(_)) => vec![NodeEffect::DropVolume { volume, grant, cause: WipeCause::NotRenewed }],
            (None, Err(_)) => Vec::new(),
            (Some(held), Ok(verdict)) => match held.phase {
                Phase::Cancelled(cause) => {
                    held.phase = Phase::Dropping;
                    vec![NodeEffect::DropVolume { volume, grant, cause }]
                }
                // Reported twice: it is being dropped already.
                Phase::Dropping => Vec::new(),
                Phase::Admitting | Phase::Active => {
                    held.phase = Phase::Active;
                    let fence = held.fence;
                    let pool = lease.volumes.get(&volume).map_or(PoolId([0; 16]), |present| present.pool);
                    let states = lease.states.clone();
                    let receipt = Receipt { grant, volume, fence, pool, verdict, states };
                    let mut effects = lease.on_time(now);
                    if effects.is_empty() {
                        effects.extend(self.try_signed(lease, &receipt));
                    }
                    effects
                }
            },
            (Some(_), Err(reason)) => {
                lease.held.remove(&volume);
                let mut effects = vec![
                    NodeEffect::SetDeadline(lease.deadline()),
                    NodeEffect::Note(NodeNote::KeyRefused { grant, reason }),
                ];
                effects.extend(self.try_signed(lease, &GrantRefused { grant, volume, reason }));
                effects
            }
        }
    }

    /// Reports that an [`NodeEffect::DropVolume`], or a local decision to drop a key, has been carried out.
    pub fn on_dropped(
        &mut self,
        lease: &mut NodeLease,
        volume: VolumeId,
        grant: GrantId,
        report: &WipeReport,
    ) -> Vec<NodeEffect> {
        let mut effects = vec![NodeEffect::SetDeadline(lease.on_dropped(volume, grant))];
        if self.is_established() && lease.is_current(self.id) {
            effects.extend(self.wipe_receipt(lease, Scope::Volume(volume), report, vec![grant]).ok());
        }
        effects
    }

    /// Reports that the arena was wiped, and again when that wipe has come further. Call it after [`NodeLease::on_wiped`] and
    /// hand over the grants that it returned. With the last report the session is over: its envelope key is gone. A session
    /// that was opened after the wipe is not concerned.
    pub fn on_wiped(
        &mut self,
        lease: &NodeLease,
        report: &WipeReport,
        ended: Vec<GrantId>,
    ) -> Vec<NodeEffect> {
        if !lease.is_voided(self.id) {
            return Vec::new();
        }
        let mut effects = Vec::new();
        if let State::Established { transcript, .. } | State::Wiped { transcript } = self.state {
            effects.extend(self.wipe_receipt(lease, Scope::All, report, ended).ok());
            if report.more {
                self.state = State::Wiped { transcript };
                return effects;
            }
        }
        self.state = State::Over;
        effects.push(NodeEffect::Close);
        effects
    }

    /// Sends a challenge when one is due; gives the session up after silence.
    pub fn on_time(&mut self, lease: &mut NodeLease, now: BootInstant) -> Vec<NodeEffect> {
        if lease.is_voided(self.id) {
            return Vec::new();
        }
        let note = match self.state {
            State::Over | State::Wiped { .. } => return Vec::new(),
            State::Established { .. } => {
                let silent_ms = now.ms_since(self.heard);
                (silent_ms >= SILENCE_MS_MAX).then_some(NodeNote::Silent { ms: silent_ms })
            }
            State::AwaitingHello | State::AwaitingEvidence { .. } => {
                (now.ms_since(self.opened) >= HANDSHAKE_MS_MAX).then_some(NodeNote::HandshakeTimeout)
            }
        };
        if let Some(note) = note {
            self.end(lease);
            return vec![NodeEffect::Note(note), NodeEffect::Close];
        }
        if self.wiping || self.challenge_due(lease).is_none_or(|due| now < due) {
            return Vec::new();
        }
        if !lease.is_current(self.id) {
            self.state = State::Over;
            return vec![NodeEffect::Send(Self::refusal(&SessionError::Superseded)), NodeEffect::Close];
        }
        match self.challenge(lease, now) {
            Ok(send) => vec![send],
            Err(_) => {
                self.end(lease);
                vec![NodeEffect::Close]
            }
        }
    }

    /// When [`Self::on_time`] has something to do.
    pub fn next_timeout(&self, lease: &NodeLease) -> Option<BootInstant> {
        match self.state {
            State::Over | State::Wiped { .. } => None,
            _ if lease.is_voided(self.id) => None,
            State::AwaitingHello | State::AwaitingEvidence { .. } => {
                Some(self.opened.saturating_add_ms(HANDSHAKE_MS_MAX))
            }
            State::Established { .. } => {
                let silence = self.heard.saturating_add_ms(SILENCE_MS_MAX);
                Some(self.challenge_due(lease).map_or(silence, |due| due.min(silence)))
            }
        }
    }

    /// Ends the session without a wipe: the connection is gone. Keys stay until their deadline.
    pub fn on_closed(&mut self, lease: &mut NodeLease) {
        self.end(lease);
    }

    fn end(&mut self, lease: &mut NodeLease) {
        self.state = State::Over;
        lease.end_session(self.id);
    }

    fn challenge_due(&self, lease: &NodeLease) -> Option<BootInstant> {
        if !self.is_established() || self.wiping {
            return None;
        }
        let interval_ms = lease.shortest_lease_ms().map_or(CHALLENGE_INTERVAL_MS_MAX, challenge_interval_ms);
        self.challenges.back().map(|last| last.sent.saturating_add_ms(interval_ms))
    }

    fn make_challenge(&mut self, now: BootInstant) -> Nonce {
        let nonce = challenge_nonce(&self.params.seed, self.challenges_sent);
        self.challenges_sent += 1;
        if self.challenges.len() >= CHALLENGES_OUTSTANDING_MAX {
            self.challenges.pop_front();
        }
        self.challenges.push_back(Challenge { nonce, sent: now, renewed: false });
        nonce
    }

    fn challenge(&mut self, lease: &NodeLease, now: BootInstant) -> Result<NodeEffect, SessionError> {
        let nonce = self.make_challenge(now);
        let (states, epochs, due) = (lease.states.clone(), lease.epochs.clone(), lease.due.clone());
        self.signed(lease, &RenewalChallenge { nonce, states, epochs, due })
    }

    fn wipe_receipt(
        &self,
        lease: &NodeLease,
        scope: Scope,
        report: &WipeReport,
        grants: Vec<GrantId>,
    ) -> Result<NodeEffect, SessionError> {
        let WipeReport { record, stages, more } = *report;
        let states = lease.states.clone();
        self.signed(lease, &WipeReceipt { scope, record, stages, more, grants, states })
    }

    fn signed<B: Body>(&self, lease: &NodeLease, body: &B) -> Result<NodeEffect, SessionError> {
        let (State::Established { transcript, .. } | State::Wiped { transcript }) = &self.state else {
            return Err(SessionError::Closed);
        };
        sign_frame(lease.params.identity.as_ref(), transcript, body).map(NodeEffect::Send)
    }

    /// For answers that come late: a session that is over has nobody to tell.
    fn try_signed<B: Body>(&self, lease: &NodeLease, body: &B) -> Option<NodeEffect> {
        if lease.is_current(self.id) { self.signed(lease, body).ok() } else { None }
    }
}
