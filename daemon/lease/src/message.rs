//! The bodies of the messages. PROTOCOL.md gives each field's meaning and the order of the exchange.
//!
//! Bodies are postcard: fields in the order written here, enum variants by the order written here. Adding,
//! removing or reordering any of them is a new protocol version; tests/golden.rs holds the bytes.

use serde::{Deserialize, Serialize};
use units::{
    BootId, BootInstant, ByteLen, DomainId, Fence, GrantId, NodeId, PoolId, RootEpoch, VolumeEpoch, VolumeId,
};

use crate::envelope::PublicEnvelopeKey;
use crate::error::{GrantRefusal, SessionError, SessionRefusal};
use crate::limits::{
    CERTIFICATE_BYTES_MAX, EPOCH_REPORTS_MAX, EPOCHS_MAX, EVENT_LOG_BYTES_MAX, FAILURE_BYTES_MAX,
    HYGIENE_BYTES_MAX, LEASE_MS_MAX, LEASE_MS_MIN, NAME_BYTES_MAX, POOLS_MAX, REGISTERS_MAX, TPM_BYTES_MAX,
    VOLUMES_MAX, WIPES_MAX,
};

/// 32 random bytes that must come back.
pub type Nonce = [u8; 32];

/// An Ed25519 public key.
pub type SigningPublicKey = [u8; 32];

/// A message body: what kind it is, and the limits that a valid encoding can still exceed.
pub trait Body: Serialize + for<'de> Deserialize<'de> {
    /// Its kind byte in the frame.
    const KIND: Kind;

    /// Checks the limits that the encoding cannot express.
    fn check(&self) -> Result<(), SessionError> {
        Ok(())
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal;)*) => {
        /// The kinds of message, by their byte in the frame.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $name = $number,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The kind with this byte.
            pub fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($number => Some(Self::$name),)* _ => None }
            }

            /// Its byte.
            pub const fn byte(self) -> u8 {
                match self { $(Self::$name => $number,)* }
            }

            /// Its name, which is also its label in signatures.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

kinds! {
    /// Keyholder to node, first.
    Hello = 1, "hello";
    /// Node to keyholder, the answer.
    Evidence = 2, "evidence";
    /// Keyholder to node: one key.
    Grant = 3, "grant";
    /// Node to keyholder: the key is in force.
    Receipt = 4, "receipt";
    /// Node to keyholder: the key was not taken.
    GrantRefused = 5, "grant-refused";
    /// Keyholder to node: send a challenge now.
    ChallengeRequest = 6, "challenge-request";
    /// Node to keyholder: prove that the lease goes on.
    RenewalChallenge = 7, "renewal-challenge";
    /// Keyholder to node: the proof.
    Renewal = 8, "renewal";
    /// Keyholder to node: forget.
    Revoke = 9, "revoke";
    /// Node to keyholder: forgotten.
    WipeReceipt = 10, "wipe-receipt";
    /// Node to keyholder: why the session ends. Not signed.
    Refused = 11, "refused";
    /// Node to keyholder, after evidence that announced it: what the machine's TPM says.
    Attestation = 12, "attestation";
    /// Keyholder to node: something that only one TPM can open.
    Credential = 13, "credential";
    /// Node to keyholder: what the TPM found in it.
    CredentialOpened = 14, "credential-opened";
    /// Keyholder to node: the key of a new epoch of a volume whose key is in force.
    EpochKey = 15, "epoch-key";
    /// Node to keyholder: what came of it.
    EpochTaken = 16, "epoch-taken";
}

/// The keyholder introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Whom it means to reach.
    pub node: NodeId,
    /// Its name, as in its certificate.
    pub keyholder: String,
    /// The key that it signs grants with; the node has it pinned.
    pub signing_key: SigningPublicKey,
    /// Which root that key comes from.
    pub root_epoch: RootEpoch,
    /// Fresh for this session.
    pub challenge: Nonce,
}

impl Body for Hello {
    const KIND: Kind = Kind::Hello;
    fn check(&self) -> Result<(), SessionError> {
        within("keyholder name bytes", self.keyholder.len(), NAME_BYTES_MAX)
    }
}

/// What the node says about itself, signed with its identity key over the session's transcript.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The node.
    pub node: NodeId,
    /// Its identity key, pinned by the keyholder at enrolment.
    pub identity_key: SigningPublicKey,
    /// The kernel's boot id.
    pub boot: BootId,
    /// Measurement of the booted image, where there is one.
    pub image: Option<[u8; 32]>,
    /// What the machine does with memory, as JSON.
    pub hygiene: String,
    /// The last wipe since the program started; `None` after a fresh start.
    pub last_wipe: Option<WipeRecord>,
    /// One-time key; its secret half is in the node's arena.
    pub envelope_key: PublicEnvelopeKey,
    /// Every volume on the node's pools.
    pub volumes: Vec<VolumePresent>,
    /// The grants in force, from an earlier session of the same run.
    pub held: Vec<HeldGrant>,
    /// Leases that the node takes.
    pub lease_limits: LeaseLimits,
    /// The first renewal challenge; grants in this session count from its sending.
    pub challenge: Nonce,
    /// Whether a statement of the machine's TPM about this very session follows.
    pub attests: bool,
}

impl Body for Evidence {
    const KIND: Kind = Kind::Evidence;
    fn check(&self) -> Result<(), SessionError> {
        within("hygiene report bytes", self.hygiene.len(), HYGIENE_BYTES_MAX)?;
        within("volumes", self.volumes.len(), VOLUMES_MAX)?;
        within("held grants", self.held.len(), VOLUMES_MAX)
    }
}

/// What the machine's TPM says about it, made for this session: the quote is over its transcript.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestation {
    /// What it says, or why it says nothing.
    pub statement: Result<TpmStatement, String>,
}

impl Body for Attestation {
    const KIND: Kind = Kind::Attestation;
    fn check(&self) -> Result<(), SessionError> {
        match &self.statement {
            Ok(statement) => statement.check(),
            Err(why) => within("bytes of a TPM's failure", why.len(), FAILURE_BYTES_MAX),
        }
    }
}

/// A TPM's statement. `attestation/ATTESTATION.md` says what each part is; nothing of it is trusted here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmStatement {
    /// Public area of its endorsement key.
    pub endorsement_key: Vec<u8>,
    /// The maker's certificate for that key, DER; empty where there is none.
    pub certificate: Vec<u8>,
    /// Public area of the key that the quote is signed with.
    pub attestation_key: Vec<u8>,
    /// What was signed.
    pub quote: Vec<u8>,
    /// The signature.
    pub signature: Vec<u8>,
    /// What the quoted registers hold, in the order of their numbers.
    pub registers: Vec<[u8; 32]>,
    /// What the register of wipes held when the node was first started after the machine was.
    pub wipes_began_at: [u8; 32],
    /// Every wipe since then, in the order in which the register was extended with them.
    pub wipes: Vec<WipeRecord>,
    /// The firmware's log; empty where there is none.
    pub event_log: Vec<u8>,
}

impl TpmStatement {
    fn check(&self) -> Result<(), SessionError> {
        for part in [&self.endorsement_key, &self.attestation_key, &self.quote, &self.signature] {
            within("bytes of a TPM's structure", part.len(), TPM_BYTES_MAX)?;
        }
        within("bytes of a certificate", self.certificate.len(), CERTIFICATE_BYTES_MAX)?;
        within("registers", self.registers.len(), REGISTERS_MAX)?;
        within("wipes", self.wipes.len(), WIPES_MAX)?;
        within("bytes of the firmware's log", self.event_log.len(), EVENT_LOG_BYTES_MAX)
    }
}

/// A secret that only the TPM with a certain endorsement key finds, and only while it holds a certain attestation key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// The secret, encrypted and authenticated.
    pub object: Vec<u8>,
    /// What the endorsement key finds the key of that with.
    pub seed: Vec<u8>,
}

impl Body for Credential {
    const KIND: Kind = Kind::Credential;
    fn check(&self) -> Result<(), SessionError> {
        within("bytes of a credential", self.object.len().max(self.seed.len()), TPM_BYTES_MAX)
    }
}

/// What came of a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialOpened {
    /// What the TPM found, or why it found nothing.
    pub secret: Result<[u8; 32], String>,
}

impl Body for CredentialOpened {
    const KIND: Kind = Kind::CredentialOpened;
    fn check(&self) -> Result<(), SessionError> {
        within(
            "bytes of a TPM's failure",
            self.secret.as_ref().map_or_else(String::len, |_| 0),
            FAILURE_BYTES_MAX,
        )
    }
}

/// A volume as the node's pool knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumePresent {
    /// The volume.
    pub volume: VolumeId,
    /// The pool that it is in.
    pub pool: PoolId,
    /// Key domain it is sealed under.
    pub domain: DomainId,
    /// Epoch of the domain's secret.
    pub epoch: VolumeEpoch,
    /// Key-check value on disk.
    pub check: [u8; 16],
    /// Logical size.
    pub size_bytes: ByteLen,
    /// Highest fence that the node has seen for it.
    pub fence: Fence,
}

/// A grant in force on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldGrant {
    /// The grant.
    pub grant: GrantId,
    /// Its volume.
    pub volume: VolumeId,
    /// Its fence.
    pub fence: Fence,
}

/// Shortest and longest lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseLimits {
    /// Shortest, milliseconds.
    pub min_ms: u64,
    /// Longest, milliseconds.
    pub max_ms: u64,
}

impl LeaseLimits {
    /// What the protocol allows at all.
    pub const PROTOCOL: Self = Self { min_ms: LEASE_MS_MIN, max_ms: LEASE_MS_MAX };

    /// Whether `lease_ms` is allowed, by these limits and by the protocol's.
    pub const fn allow(&self, lease_ms: u64) -> bool {
        lease_ms >= self.min_ms
            && lease_ms <= self.max_ms
            && lease_ms >= LEASE_MS_MIN
            && lease_ms <= LEASE_MS_MAX
    }
}

impl Default for LeaseLimits {
    fn default() -> Self {
        Self::PROTOCOL
    }
}

/// What a volume is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    /// Served as a block device.
    Block,
    /// Holds the object store.
    Objects,
}

/// What clients of a volume see when its key goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnSeal {
    /// Requests in flight stay unanswered; reconnecting clients resend them.
    #[default]
    Hold,
    /// Requests in flight fail.
    Fail,
}

/// Which state a pool is in: `pool/FORMAT.md`, "State", says what that covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PoolState {
    /// The pool.
    pub pool: PoolId,
    /// Higher than that of every state before.
    pub count: u64,
    /// Hash over this state and all before it.
    pub chain: [u8; 32],
}

/// How the pool that a node finds stands to the state that the keyholder knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum StateVerdict {
    /// The pool's format keeps no state.
    #[error("the pool keeps no state that could be compared")]
    NotKept,
    /// The keyholder knew none.
    #[error("no earlier state was known")]
    First,
    /// It is that state, or came of it with the volume's key at hand.
    #[error("it continues the last state known")]
    Continues,
    /// It came of it, but the volume's data was changed without its key.
    #[error("since the last state known {batches} batches changed the volume's data without its key")]
    Unvouched {
        /// How often.
        batches: u64,
    },
    /// It is later, and nothing connects the two.
    #[error("it is later than the last state known, and nothing connects the two")]
    Unconnected,
    /// It is older.
    #[error("it is older than the last state known: the device was wound back, or has lost what was durable")]
    Older,
    /// What was known is not in its past.
    #[error("the last state known is not in its past: the device holds another history")]
    Other,
    /// Tables or digests are not what was last written.
    #[error("its tables or digests are not those that were last written")]
    Altered,
    /// The volume was last seen in another pool.
    #[error("the volume was last seen in another pool")]
    OtherPool,
}

impl StateVerdict {
    /// Whether nothing speaks against serving.
    pub const fn is_good(self) -> bool {
        matches!(self, Self::NotKept | Self::First | Self::Continues)
    }

    /// Whether what is there cannot have come of what was known. Else it can: what a node did while it was sealed, and then
    /// lost its memory of, looks like what somebody else did.
    pub const fn is_rollback(self) -> bool {
        matches!(self, Self::Older | Self::Other | Self::Altered | Self::OtherPool)
    }
}

/// What a node does with a key whose pool is not in the state that it should be in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRollback {
    /// Refuses it where what is there cannot have come of what was known.
    #[default]
    Refuse,
    /// Serves the volume, and the receipt says what was found.
    Warn,
}

/// One key for one volume for one lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Random, never used again.
    pub grant: GrantId,
    /// The volume.
    pub volume: VolumeId,
    /// Its key domain.
    pub domain: DomainId,
    /// Epoch of the domain's secret.
    pub epoch: VolumeEpoch,
    /// Above every fence granted for the volume before.
    pub fence: Fence,
    /// Counted from the sending of the challenge named by `nonce`.
    pub lease_ms: u64,
    /// The node's challenge that this answers.
    pub nonce: Nonce,
    /// The label that clients know the volume by.
    pub label: String,
    /// What it is for.
    pub kind: VolumeKind,
    /// What its clients see when the key goes.
    pub on_seal: OnSeal,
    /// The state that its pool was last known in.
    pub known_state: Option<PoolState>,
    /// What is done where it is not in that or a later one.
    pub on_rollback: OnRollback,
    /// Key-check value that the key must give.
    pub check: [u8; 16],
    /// The PRK of the key hierarchy, 32 bytes, in an HPKE envelope.
    pub envelope: Vec<u8>,
    /// Keys of the domain's other epochs: of older ones, under which some of the volume lies, and of a newer one that the
    /// volume is to be written under from now on.
    pub further: Vec<EnvelopedKey>,
}

impl Body for Grant {
    const KIND: Kind = Kind::Grant;
    fn check(&self) -> Result<(), SessionError> {
        within("label bytes", self.label.len(), NAME_BYTES_MAX)?;
        within("epochs", self.further.len() + 1, EPOCHS_MAX)
    }
}

/// The key of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvelopedKey {
    /// Epoch of the domain's secret.
    pub epoch: VolumeEpoch,
    /// Key-check value that the key must give.
    pub check: [u8; 16],
    /// As in a grant.
    pub envelope: Vec<u8>,
}

/// A new epoch of a volume whose key is in force. It ends with the lease that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochKey {
    /// The grant in force.
    pub grant: GrantId,
    /// Its volume.
    pub volume: VolumeId,
    /// Its key domain.
    pub domain: DomainId,
    /// The new epoch's key.
    pub key: EnvelopedKey,
}

impl Body for EpochKey {
    const KIND: Kind = Kind::EpochKey;
}

/// The volume is written under a new epoch, durably, or why it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochTaken {
    /// The grant in force.
    pub grant: GrantId,
    /// Its volume.
    pub volume: VolumeId,
    /// The new epoch.
    pub epoch: VolumeEpoch,
    /// What came of it.
    pub result: Result<(), GrantRefusal>,
}

impl Body for EpochTaken {
    const KIND: Kind = Kind::EpochTaken;
}

/// The epochs of a volume's key domain under which anything is left in its pool, in the volume or in what shares the domain with
/// it, snapshots included; and the one that it is written under. None, where the volume is gone with all that shared its domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochsInUse {
    /// A volume, unlocked or not, or the replica of one.
    pub volume: VolumeId,
    /// What no power cut takes back: an epoch that is not among these never comes back.
    pub epochs: Vec<VolumeEpoch>,
}

/// The key of a grant is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The grant.
    pub grant: GrantId,
    /// Its volume.
    pub volume: VolumeId,
    /// Its fence, durable on the node's pool.
    pub fence: Fence,
    /// The pool that it is in.
    pub pool: PoolId,
    /// How the pool stands to the state named in the grant.
    pub verdict: StateVerdict,
    /// The states of the pools whose volumes are unlocked, this one included.
    pub states: Vec<PoolState>,
}

impl Body for Receipt {
    const KIND: Kind = Kind::Receipt;
    fn check(&self) -> Result<(), SessionError> {
        within("pool states", self.states.len(), POOLS_MAX)
    }
}

/// The key of a grant was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRefused {
    /// The grant.
    pub grant: GrantId,
    /// Its volume.
    pub volume: VolumeId,
    /// Why.
    pub reason: GrantRefusal,
}

impl Body for GrantRefused {
    const KIND: Kind = Kind::GrantRefused;
}

/// Asks for a challenge at once, so that a grant made now counts from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChallengeRequest {}

impl Body for ChallengeRequest {
    const KIND: Kind = Kind::ChallengeRequest;
}

/// The node asks whether it may keep its keys; it counts from the sending of this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewalChallenge {
    /// Unpredictable and used once.
    pub nonce: Nonce,
    /// The durable states of the pools whose volumes are unlocked.
    pub states: Vec<PoolState>,
    /// Of volumes that hold keys of several epochs, once it has been looked after, and of what the pools have without a key.
    pub epochs: Vec<EpochsInUse>,
    /// Volumes whose keys have encrypted so much that new ones are due.
    pub due: Vec<VolumeId>,
}

impl Body for RenewalChallenge {
    const KIND: Kind = Kind::RenewalChallenge;
    fn check(&self) -> Result<(), SessionError> {
        within("pool states", self.states.len(), POOLS_MAX)?;
        within("volumes", self.epochs.len(), EPOCH_REPORTS_MAX)?;
        within("volumes", self.due.len(), VOLUMES_MAX)?;
        self.epochs.iter().try_for_each(|of| within("epochs", of.epochs.len(), EPOCHS_MAX))
    }
}

/// It may, for so long, and these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// The challenge that this answers.
    pub nonce: Nonce,
    /// Counted from the sending of that challenge.
    pub lease_ms: u64,
    /// The grants that go on. One that the node holds and that is not named here ends now.
    pub grants: Vec<GrantId>,
}

impl Body for Renewal {
    const KIND: Kind = Kind::Renewal;
    fn check(&self) -> Result<(), SessionError> {
        within("renewed grants", self.grants.len(), VOLUMES_MAX)
    }
}

/// Which keys go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// All of them, by wiping the arena.
    All,
    /// That of one volume.
    Volume(VolumeId),
}

/// Why the keyholder takes a key back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RevokeCause {
    /// A person revoked it.
    Revoked,
    /// A person locked everything down.
    Lockdown,
    /// The volume is being deleted.
    Deleted,
    /// The node holds a grant that the keyholder has no record of.
    UnknownGrant,
}

/// Forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoke {
    /// Which keys.
    pub scope: Scope,
    /// Why.
    pub cause: RevokeCause,
}

impl Body for Revoke {
    const KIND: Kind = Kind::Revoke;
}

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// What made a key go. TRIGGERS.md says for each what is done and how keys come back.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum WipeCause { $($(#[$doc])* $name,)* }

        impl WipeCause {
            /// Every cause, in the order of their numbers on the wire.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name in logs, statuses and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

causes! {
    /// SIGPWR.
    PowerLoss = "power-loss";
    /// The program was told to stop.
    PlannedStop = "planned-stop";
    /// The lease ran out.
    LeaseExpired = "lease-expired";
    /// The keyholder revoked it.
    Revoked = "revoked";
    /// The keyholder locked everything down.
    Lockdown = "lockdown";
    /// An administrator on the node asked for it.
    Admin = "admin";
    /// The chassis was opened.
    Intrusion = "intrusion";
    /// A watchdog fired.
    Watchdog = "watchdog";
    /// The machine's memory hygiene got worse.
    Hygiene = "hygiene";
    /// The program found itself broken.
    Fault = "fault";
    /// The clock was stopped or changed under the program.
    Clock = "clock";
    /// The volume was deleted.
    Deleted = "deleted";
    /// The grant was not named in a renewal, or a newer session replaced the one it came by.
    NotRenewed = "not-renewed";
    /// The power-fail line went active.
    PowerLine = "power-line";
    /// The machine's supplies lost mains.
    PowerSupply = "power-supply";
    /// A kernel event that the node's configuration names.
    KernelEvent = "kernel-event";
    /// The UPS runs on its battery.
    UpsOnBattery = "ups-on-battery";
    /// The UPS's battery is nearly empty.
    UpsLowBattery = "ups-low-battery";
    /// The UPS's master ordered everyone down.
    UpsForcedShutdown = "ups-forced-shutdown";
    /// The machine shuts down or restarts.
    MachineShutdown = "machine-shutdown";
    /// The machine goes to sleep.
    MachineSleep = "machine-sleep";
    /// The management controller reported the power going.
    BmcPower = "bmc-power";
    /// A source of triggers could not be heard any more.
    SourceLost = "source-lost";
}

impl WipeCause {
    /// What follows a wipe for this cause, by the trigger table.
    pub fn repush_rule(self) -> RepushRule {
        // A cause without a row cannot be (a test counts them); latched is the safe answer.
        crate::trigger::row(self).map_or(RepushRule::Latched, |row| row.repush)
    }
}

/// Whether a key comes back by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepushRule {
    /// As the node's reboot policy says.
    Policy,
    /// Not before a security officer has unlatched it.
    Latched,
}

impl std::fmt::Display for WipeCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl From<RevokeCause> for WipeCause {
    fn from(cause: RevokeCause) -> Self {
        match cause {
            RevokeCause::Revoked => Self::Revoked,
            RevokeCause::Lockdown => Self::Lockdown,
            RevokeCause::Deleted => Self::Deleted,
            RevokeCause::UnknownGrant => Self::NotRenewed,
        }
    }
}

/// One wipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WipeRecord {
    /// Why.
    pub cause: WipeCause,
    /// When, on the node's CLOCK_BOOTTIME.
    pub at: BootInstant,
    /// The keyring's generation after it; with the boot id it names this wipe.
    pub generation: u64,
}

impl WipeRecord {
    /// What a TPM's register of wipes is extended with for this one, on a machine whose start has this id.
    pub fn measurement(&self, boot: BootId) -> [u8; 32] {
        crate::transcript::wipe_measurement(self, boot)
    }
}

/// How far a wipe has come (DESIGN section 7), and when, from the event on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WipeStages {
    /// First: keys zeroed in the arena and flushed to memory, nanoseconds.
    pub keys_ns: u64,
    /// Second: no thread has anything of them in registers, in scratch or on a stack, nanoseconds.
    pub threads_ns: Option<u64>,
    /// Third: what was clear in ordinary memory is dropped and zeroed, nanoseconds.
    pub memory_ns: Option<u64>,
}

impl WipeStages {
    /// The first stage alone.
    pub const fn keys(keys_ns: u64) -> Self {
        Self { keys_ns, threads_ns: None, memory_ns: None }
    }

    /// The stage that was reached, 1 to 3: the last before one that was not.
    pub const fn reached(&self) -> u8 {
        match (self.threads_ns, self.memory_ns) {
            (None, _) => 1,
            (Some(_), None) => 2,
            (Some(_), Some(_)) => 3,
        }
    }
}

/// Forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WipeReceipt {
    /// Which keys.
    pub scope: Scope,
    /// Why and when.
    pub record: WipeRecord,
    /// How far it has come.
    pub stages: WipeStages,
    /// Whether another receipt of this wipe follows, with more stages.
    pub more: bool,
    /// The grants that ended.
    pub grants: Vec<GrantId>,
    /// The durable states of the pools whose volumes were unlocked.
    pub states: Vec<PoolState>,
}

impl Body for WipeReceipt {
    const KIND: Kind = Kind::WipeReceipt;
    fn check(&self) -> Result<(), SessionError> {
        within("ended grants", self.grants.len(), VOLUMES_MAX)?;
        within("pool states", self.states.len(), POOLS_MAX)
    }
}

/// Why the node ends the session. Its layout is the same in every version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The reason.
    pub reason: SessionRefusal,
}

fn within(what: &'static str, actual: usize, limit: usize) -> Result<(), SessionError> {
    if actual > limit { Err(SessionError::OverLimit { what, actual, limit }) } else { Ok(()) }
}
