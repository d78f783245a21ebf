//! The node's side: what it holds and until when ([`NodeLease`], one per run of the program), and the exchange on
//! one connection ([`NodeSession`]). The shell performs the effects and reports back what came of them.
//!
//! Invariants:
//! - A key is in use only between an admitted grant and the earliest deadline of all held grants; past that the
//!   machines ask for a wipe and take nothing else into account.
//! - A deadline is `sending of a challenge + lease`, never `arrival + lease`. It moves later only by a signed
//!   renewal that answers a challenge not answered before.
//! - A grant held that a renewal does not name is dropped, so that the keyholder's record bounds each single one.
//! - What a superseded session was admitting is dropped when it arrives, and no evidence leaves before that: the keyholder
//!   takes what evidence does not list for gone.
//!
//! It holds no key, no envelope secret and no clock.

mod session;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use units::{BootId, BootInstant, DomainId, Fence, GrantId, NodeId, VolumeEpoch, VolumeId};

pub use self::session::{NodeSession, NodeSessionParams};
use crate::envelope::PublicEnvelopeKey;
use crate::error::{GrantRefusal, SessionError};
use crate::limits::{EPOCH_REPORTS_MAX, GRANTS_REMEMBERED_MAX, VOLUMES_MAX};
use crate::message::{
    Credential, EpochKey, EpochsInUse, Grant, HeldGrant, LeaseLimits, OnRollback, OnSeal, PoolState,
    SigningPublicKey, VolumeKind, VolumePresent, WipeCause, WipeRecord, WipeStages,
};
use crate::transcript::{Signer, grant_aad};

/// What a node is, for as long as its program runs.
#[derive(Clone, Debug)]
pub struct NodeParams {
    /// The node's id.
    pub node: NodeId,
    /// The kernel's boot id.
    pub boot: BootId,
    /// Measurement of the booted image, where there is one.
    pub image: Option<[u8; 32]>,
    /// The identity key that signs evidence and receipts; the keyholder pins its public half.
    pub identity: Arc<dyn Signer>,
    /// Leases that this node takes.
    pub limits: LeaseLimits,
    /// The grant-signing key pinned at enrolment; `None` takes no grant from anyone.
    pub pin: Option<SigningPublicKey>,
}

/// What the shell does for the machines. In order.
#[derive(Debug, PartialEq, Eq)]
pub enum NodeEffect {
    /// Write these bytes, a whole frame with its prefix, to this session's connection.
    Send(Vec<u8>),
    /// Wait until [`NodeLease::is_settled`], make a fresh envelope key, gather hygiene, then call [`NodeSession::on_evidence`].
    NeedEvidence,
    /// Have the TPM quote its registers for this digest, then call [`NodeSession::on_attestation`].
    NeedAttestation([u8; 32]),
    /// Have the TPM open this, then call [`NodeSession::on_credential_opened`].
    OpenCredential(Credential),
    /// Make the fence durable, admit the key, open the volume, then call [`NodeSession::on_admitted`].
    AdmitGrant(Box<GrantToAdmit>),
    /// Admit the key, write the volume under its epoch from now on, durably, then call [`NodeSession::on_epoch_admitted`].
    AdmitEpoch(Box<EpochToAdmit>),
    /// Give the keyring this deadline; `None` where no key is held any more. Comes before the key it is for.
    SetDeadline(Option<BootInstant>),
    /// Drop this volume's key, then call [`NodeSession::on_dropped`] (or [`NodeLease::on_dropped`]).
    DropVolume {
        /// The volume.
        volume: VolumeId,
        /// The grant that ends.
        grant: GrantId,
        /// Why.
        cause: WipeCause,
    },
    /// Wipe the arena now, then call [`NodeLease::on_wiped`] and every session's [`NodeSession::on_wiped`].
    Wipe(WipeCause),
    /// Nothing to do; something worth a line in the log.
    Note(NodeNote),
    /// Close this session's connection once what was sent is written.
    Close,
}

/// What a node notices and does not act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeNote {
    /// A renewal answers no open challenge: late, duplicated or replayed. It changed nothing.
    #[error("a renewal answered no open challenge: it was late or sent twice; it changed nothing")]
    StaleRenewal,
    /// A renewal names a lease outside the limits. It changed nothing.
    #[error("a renewal of {offered_ms} ms is outside the lease limits; it changed nothing")]
    RenewalOutOfRange {
        /// The lease named.
        offered_ms: u64,
    },
    /// A grant was refused by this machine: its key was not touched, and the shell has not heard of it.
    #[error("grant {grant} was refused: {reason}")]
    GrantRefused {
        /// The grant.
        grant: GrantId,
        /// The volume that it names.
        volume: VolumeId,
        /// Why.
        reason: GrantRefusal,
    },
    /// The shell could not take a grant's key in, and has said why.
    #[error("grant {grant} was refused: {reason}")]
    KeyRefused {
        /// The grant.
        grant: GrantId,
        /// Why.
        reason: GrantRefusal,
    },
    /// The opening exchange took too long.
    #[error("the keyholder did not finish the opening exchange in time; it will dial again")]
    HandshakeTimeout,
    /// The keyholder has been silent.
    #[error("the keyholder has been silent for {ms} ms; it will dial again")]
    Silent {
        /// For how long.
        ms: u64,
    },
    /// A frame came while the arena is being wiped.
    #[error("a message arrived during a wipe and was dropped")]
    DuringWipe,
}

/// A grant that passed every check that needs no key.
#[derive(Debug, PartialEq, Eq)]
pub struct GrantToAdmit {
    /// The grant.
    pub grant: GrantId,
    /// The volume.
    pub volume: VolumeId,
    /// Key domain.
    pub domain: DomainId,
    /// Epoch of the domain's secret.
    pub epoch: VolumeEpoch,
    /// To be made durable before the key is admitted.
    pub fence: Fence,
    /// Length of the lease.
    pub lease_ms: u64,
    /// Label that clients know the volume by.
    pub label: String,
    /// What the volume is for.
    pub kind: VolumeKind,
    /// What its clients see when the key goes.
    pub on_seal: OnSeal,
    /// The state that its pool was last known in.
    pub known_state: Option<PoolState>,
    /// What to do where it is not in that or a later one.
    pub on_rollback: OnRollback,
    /// Value that the key must give.
    pub check: [u8; 16],
    /// HPKE envelope of the PRK, for [`crate::envelope::open`].
    pub envelope: Vec<u8>,
    /// `info` of the envelope: the session's transcript hash.
    pub info: [u8; 32],
    /// `aad` of the envelope.
    pub aad: Vec<u8>,
    /// Keys of other epochs that go with it.
    pub further: Vec<KeyToAdmit>,
}

/// The key of one epoch, in its envelope.
#[derive(Debug, PartialEq, Eq)]
pub struct KeyToAdmit {
    /// Epoch of the domain's secret.
    pub epoch: VolumeEpoch,
    /// Value that the key must give.
    pub check: [u8; 16],
    /// As in a grant.
    pub envelope: Vec<u8>,
    /// As in a grant.
    pub aad: Vec<u8>,
}

/// A new epoch of a volume whose key is in force.
#[derive(Debug, PartialEq, Eq)]
pub struct EpochToAdmit {
    /// The grant in force.
    pub grant: GrantId,
    /// The volume.
    pub volume: VolumeId,
    /// Key domain.
    pub domain: DomainId,
    /// The new epoch's key.
    pub key: KeyToAdmit,
    /// `info` of the envelope.
    pub info: [u8; 32],
}

impl GrantToAdmit {
    fn new(grant: Grant, transcript: [u8; 32]) -> Self {
        let aad = |epoch: VolumeEpoch| {
            grant_aad(grant.volume, grant.domain, epoch, grant.fence, grant.lease_ms, grant.grant)
        };
        let further = grant.further.iter().map(|key| KeyToAdmit {
            epoch: key.epoch,
            check: key.check,
            envelope: key.envelope.clone(),
            aad: aad(key.epoch),
        });
        let (further, aad) = (further.collect(), aad(grant.epoch));
        Self {
            grant: grant.grant,
            volume: grant.volume,
            domain: grant.domain,
            epoch: grant.epoch,
            fence: grant.fence,
            lease_ms: grant.lease_ms,
            label: grant.label,
            kind: grant.kind,
            on_seal: grant.on_seal,
            known_state: grant.known_state,
            on_rollback: grant.on_rollback,
            check: grant.check,
            envelope: grant.envelope,
            info: transcript,
            aad,
            further,
        }
    }
}

/// What the shell gathers for evidence.
#[derive(Debug)]
pub struct EvidenceInput {
    /// Hygiene report, JSON.
    pub hygiene: String,
    /// Made in the arena for this session.
    pub envelope_key: PublicEnvelopeKey,
    /// Whether a TPM is there to be asked for a statement.
    pub attests: bool,
}

/// How a wipe went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WipeReport {
    /// Why, when, and the generation after it.
    pub record: WipeRecord,
    /// How far it has come.
    pub stages: WipeStages,
    /// Whether the shell will report this wipe again, when it has come further.
    pub more: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The shell is admitting it.
    Admitting,
    /// In force.
    Active,
    /// The shell is still admitting it, and it is to be dropped once that is done.
    Cancelled(WipeCause),
    /// The shell is dropping it.
    Dropping,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    grant: GrantId,
    fence: Fence,
    lease_ms: u64,
    deadline: BootInstant,
    phase: Phase,
}

/// A key in force, for the node's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldStatus {
    /// The volume.
    pub volume: VolumeId,
    /// The grant.
    pub grant: GrantId,
    /// Its fence.
    pub fence: Fence,
    /// Length of its lease.
    pub lease_ms: u64,
    /// Its deadline, unless it is renewed.
    pub deadline: BootInstant,
}

/// What a node holds and until when. One per run of the program; shared by its sessions.
///
/// A copy is for a model checker, which goes every way from one state; a program has one.
#[derive(Clone, Debug)]
pub struct NodeLease {
    params: NodeParams,
    volumes: BTreeMap<VolumeId, VolumePresent>,
    states: Vec<PoolState>,
    epochs: Vec<EpochsInUse>,
    due: Vec<VolumeId>,
    held: BTreeMap<VolumeId, Held>,
    remembered: HashSet<GrantId>,
    remembered_in_order: VecDeque<GrantId>,
    last_wipe: Option<WipeRecord>,
    wipe_asked: bool,
    sessions: u64,
    current: Option<u64>,
    /// Sessions up to this one are ended by a wipe. They may not have heard of it yet.
    voided: u64,
}

impl NodeLease {
    /// A node that holds nothing.
    pub fn new(params: NodeParams) -> Self {
        Self {
            params,
            volumes: BTreeMap::new(),
            states: Vec::new(),
            epochs: Vec::new(),
            due: Vec::new(),
            held: BTreeMap::new(),
            remembered: HashSet::new(),
            remembered_in_order: VecDeque::new(),
            last_wipe: None,
            wipe_asked: false,
            sessions: 0,
            current: None,
            voided: 0,
        }
    }

    /// The grant-signing key that is pinned.
    pub fn pin(&self) -> Option<SigningPublicKey> {
        self.params.pin
    }

    /// Pins a grant-signing key, or none. If it is another one, sessions in progress end at their next message.
    pub fn set_pin(&mut self, pin: Option<SigningPublicKey>) {
        if self.params.pin != pin {
            self.params.pin = pin;
            self.current = None;
        }
    }

    /// Tells which volumes the pools hold; call it at start and after every create, delete and resize.
    ///
    /// A fence seen in this run stays seen, whatever the pool says.
    pub fn set_volumes(
        &mut self,
        volumes: impl IntoIterator<Item = VolumePresent>,
    ) -> Result<(), SessionError> {
        let mut present = BTreeMap::new();
        for mut volume in volumes {
            if let Some(known) = self.volumes.get(&volume.volume) {
                volume.fence = volume.fence.max(known.fence);
            }
            present.insert(volume.volume, volume);
        }
        if present.len() > VOLUMES_MAX {
            return Err(SessionError::OverLimit {
                what: "volumes on this node",
                actual: present.len(),
                limit: VOLUMES_MAX,
            });
        }
        self.volumes = present;
        Ok(())
    }

    /// Tells the durable states of the pools whose volumes are unlocked; call it before whatever may send them.
    pub fn set_states(&mut self, states: Vec<PoolState>) {
        self.states = states;
    }

    /// Tells what is left under which epochs, and which volumes' keys are due to be replaced; call it as [`Self::set_states`]. What
    /// is beyond the limits is not told.
    pub fn set_epochs(&mut self, mut epochs: Vec<EpochsInUse>, mut due: Vec<VolumeId>) {
        epochs.truncate(EPOCH_REPORTS_MAX);
        due.truncate(VOLUMES_MAX);
        (self.epochs, self.due) = (epochs, due);
    }

    /// The earliest deadline of all that is held.
    pub fn deadline(&self) -> Option<BootInstant> {
        self.held.values().map(|held| held.deadline).min()
    }

    /// The keys in force.
    pub fn held(&self) -> impl Iterator<Item = HeldStatus> + '_ {
        self.held.iter().filter(|(_, held)| held.phase == Phase::Active).map(|(volume, held)| HeldStatus {
            volume: *volume,
            grant: held.grant,
            fence: held.fence,
            lease_ms: held.lease_ms,
            deadline: held.deadline,
        })
    }

    /// Whether no key is on its way in or out. Evidence waits for that: what it does not list counts as gone.
    pub fn is_settled(&self) -> bool {
        self.held.values().all(|held| held.phase == Phase::Active)
    }

    /// The last wipe of this run.
    pub fn last_wipe(&self) -> Option<WipeRecord> {
        self.last_wipe
    }

    /// Whether a keyholder's session is established.
    pub fn has_session(&self) -> bool {
        self.current.is_some()
    }

    /// When [`Self::on_time`] has something to say; `None` while nothing is held.
    pub fn next_timeout(&self) -> Option<BootInstant> {
        if self.wipe_asked { None } else { self.deadline() }
    }

    /// Asks for the wipe once the earliest deadline is reached.
    pub fn on_time(&mut self, now: BootInstant) -> Vec<NodeEffect> {
        if self.wipe_asked || !self.is_overdue(now) {
            return Vec::new();
        }
        self.wipe_asked = true;
        vec![NodeEffect::Wipe(WipeCause::LeaseExpired)]
    }

    /// Records that the arena was wiped, for whatever cause, and returns the grants that ended.
    ///
    /// Every session is void after it: its envelope key is gone too.
    pub fn on_wiped(&mut self, record: WipeRecord) -> Vec<GrantId> {
        let ended: Vec<GrantId> = self.held.values().map(|held| held.grant).collect();
        self.held.clear();
        self.wipe_asked = false;
        self.current = None;
        self.voided = self.sessions;
        // A wipe of an empty arena must not hide the reason why it is empty; one that latches always counts.
        let latches = record.cause.repush_rule() == crate::message::RepushRule::Latched;
        if !ended.is_empty() || latches || self.last_wipe.is_none() {
            self.last_wipe = Some(record);
        }
        ended
    }

    /// Records that a volume's key was dropped, and returns the deadline that now holds.
    pub fn on_dropped(&mut self, volume: VolumeId, grant: GrantId) -> Option<BootInstant> {
        if self.held.get(&volume).is_some_and(|held| held.grant == grant) {
            self.held.remove(&volume);
        }
        self.deadline()
    }

    /// Whether the earliest deadline has been reached: from that instant on no key may be used.
    pub fn is_overdue(&self, now: BootInstant) -> bool {
        self.deadline().is_some_and(|deadline| now >= deadline)
    }

    fn open_session(&mut self) -> u64 {
        self.sessions += 1;
        self.sessions
    }

    /// A session has proven itself: it becomes the one, and what the former was admitting is cancelled.
    fn supersede(&mut self, session: u64) {
        self.current = Some(session);
        for held in self.held.values_mut().filter(|held| held.phase == Phase::Admitting) {
            held.phase = Phase::Cancelled(WipeCause::NotRenewed);
        }
    }

    fn is_current(&self, session: u64) -> bool {
        self.current == Some(session)
    }

    /// Whether a wipe has ended the session, which gets [`NodeSession::on_wiped`] then if it has not had it.
    fn is_voided(&self, session: u64) -> bool {
        session <= self.voided
    }

    fn end_session(&mut self, session: u64) {
        if self.is_current(session) {
            self.current = None;
        }
    }

    /// Judges a grant whose signature holds. `sent` is when the challenge was sent that it answers.
    fn judge(
        &self,
        now: BootInstant,
        grant: &Grant,
        sent: Option<BootInstant>,
    ) -> Result<BootInstant, GrantRefusal> {
        if self.remembered.contains(&grant.grant) {
            return Err(GrantRefusal::Replayed);
        }
        let present = self.volumes.get(&grant.volume).ok_or(GrantRefusal::WrongVolume)?;
        if let Some(held) = self.held.get(&grant.volume) {
            return Err(GrantRefusal::AlreadyHeld { by: held.grant });
        }
        if present.domain != grant.domain || present.epoch != grant.epoch {
            return Err(GrantRefusal::WrongDomain);
        }
        if present.check != grant.check {
            return Err(GrantRefusal::WrongCheck);
        }
        if grant.fence <= present.fence {
            return Err(GrantRefusal::OldFence { offered: grant.fence, highest: present.fence });
        }
        let limits = self.params.limits;
        if !limits.allow(grant.lease_ms) {
            return Err(GrantRefusal::LeaseOutOfRange {
                offered_ms: grant.lease_ms,
                min_ms: limits.min_ms.max(LeaseLimits::PROTOCOL.min_ms),
                max_ms: limits.max_ms.min(LeaseLimits::PROTOCOL.max_ms),
            });
        }
        if self.held.len() >= VOLUMES_MAX {
            return Err(GrantRefusal::TooManyKeys);
        }
        let sent = sent.ok_or(GrantRefusal::UnknownChallenge)?;
        let deadline = sent.saturating_add_ms(grant.lease_ms);
        if deadline <= now { Err(GrantRefusal::Expired) } else { Ok(deadline) }
    }

    /// Judges the key of a new epoch whose signature holds.
    fn judge_epoch(&self, key: &EpochKey) -> Result<Fence, GrantRefusal> {
        let present = self.volumes.get(&key.volume).ok_or(GrantRefusal::WrongVolume)?;
        let held = self.held.get(&key.volume).filter(|held| held.grant == key.grant);
        let held = held.filter(|held| held.phase == Phase::Active).ok_or(GrantRefusal::NotHeld)?;
        if present.domain != key.domain || key.key.epoch < present.epoch {
            return Err(GrantRefusal::WrongDomain);
        }
        // Said again, because the answer was lost: it is taken again.
        if key.key.epoch == present.epoch && key.key.check != present.check {
            return Err(GrantRefusal::WrongCheck);
        }
        Ok(held.fence)
    }

    /// Takes a grant that was judged good.
    fn begin_admission(&mut self, grant: &Grant, deadline: BootInstant) {
        self.remember(grant.grant);
        if let Some(present) = self.volumes.get_mut(&grant.volume) {
            present.fence = grant.fence;
        }
        self.held.insert(
            grant.volume,
            Held {
                grant: grant.grant,
                fence: grant.fence,
                lease_ms: grant.lease_ms,
                deadline,
                phase: Phase::Admitting,
            },
        );
    }

    fn remember(&mut self, grant: GrantId) {
        if self.remembered_in_order.len() >= GRANTS_REMEMBERED_MAX
            && let Some(oldest) = self.remembered_in_order.pop_front()
        {
            self.remembered.remove(&oldest);
        }
        self.remembered.insert(grant);
        self.remembered_in_order.push_back(grant);
    }

    /// Moves the deadlines of the grants that a renewal names, and drops those that it does not.
    fn renew(&mut self, sent: BootInstant, lease_ms: u64, grants: &[GrantId]) -> Vec<NodeEffect> {
        let named: HashSet<GrantId> = grants.iter().copied().collect();
        let mut effects = Vec::new();
        for (volume, held) in &mut self.held {
            match held.phase {
                Phase::Active | Phase::Admitting if named.contains(&held.grant) => {
                    held.deadline = held.deadline.max(sent.saturating_add_ms(lease_ms));
                    held.lease_ms = lease_ms;
                }
                Phase::Active => {
                    held.phase = Phase::Dropping;
                    effects.push(NodeEffect::DropVolume {
                        volume: *volume,
                        grant: held.grant,
                        cause: WipeCause::NotRenewed,
                    });
                }
                Phase::Admitting => held.phase = Phase::Cancelled(WipeCause::NotRenewed),
                Phase::Cancelled(_) | Phase::Dropping => {}
            }
        }
        effects.push(NodeEffect::SetDeadline(self.deadline()));
        effects
    }

    /// Begins to drop one volume's key. `None` where it is not held; an empty list while it is on its way in or
    /// out already.
    fn begin_drop(&mut self, volume: VolumeId, cause: WipeCause) -> Option<Vec<NodeEffect>> {
        let held = self.held.get_mut(&volume)?;
        match held.phase {
            Phase::Active => {
                held.phase = Phase::Dropping;
                Some(vec![NodeEffect::DropVolume { volume, grant: held.grant, cause }])
            }
            Phase::Admitting => {
                held.phase = Phase::Cancelled(cause);
                Some(Vec::new())
            }
            Phase::Cancelled(_) | Phase::Dropping => Some(Vec::new()),
        }
    }

    fn held_grants(&self) -> Vec<HeldGrant> {
        self.held()
            .map(|held| HeldGrant { grant: held.grant, volume: held.volume, fence: held.fence })
            .collect()
    }

    fn shortest_lease_ms(&self) -> Option<u64> {
        self.held.values().map(|held| held.lease_ms).min()
    }
}
