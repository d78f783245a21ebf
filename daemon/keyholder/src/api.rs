//! The keyholder's administrative API: bodies of requests and answers, in JSON over mutual TLS.
//!
//! The program and the command line share these types. Errors are [`identity::Problem`]. Byte strings are base64 or,
//! where people compare them, lower-case hex. Who may call what stands in [`crate::access::TABLE`].
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | GET /v1/status | | [`KeyholderStatus`] |
//! | POST /v1/ceremony | [`CeremonyRequest`] | [`CeremonyResult`] |
//! | POST /v1/unseal | [`UnsealRequest`] | [`UnsealProgress`] |
//! | GET /v1/nodes | | `[`[`NodeEntry`]`]` |
//! | POST /v1/nodes | [`AddNode`] | [`NodeEntry`] |
//! | POST /v1/nodes/{name}/approve | [`ApproveNode`] | [`NodeEntry`] |
//! | PATCH /v1/nodes/{name} | [`ChangeNode`] | [`NodeEntry`] |
//! | DELETE /v1/nodes/{name} | | [`Done`] |
//! | GET /v1/volumes | | `[`[`VolumeEntry`]`]` |
//! | POST /v1/volumes | [`CreateVolume`] | [`VolumeEntry`] |
//! | PATCH /v1/volumes/{label} | [`ResizeVolume`] | [`VolumeEntry`] |
//! | DELETE /v1/volumes/{label}?force=BOOL | | [`VolumeErased`] |
//! | POST /v1/volumes/{label}/clone | [`CloneVolume`] | [`VolumeEntry`] |
//! | POST /v1/volumes/{label}/rollback | [`RollBackVolume`] | [`VolumeEntry`] |
//! | POST /v1/volumes/{label}/promote | [`PromoteVolume`] | [`VolumeEntry`] |
//! | POST /v1/volumes/{label}/accept-state | | [`VolumeEntry`] |
//! | POST /v1/volumes/{label}/rotate | | [`VolumeEntry`] |
//! | POST /v1/push | [`Target`] | [`Outcome`] |
//! | POST /v1/revoke | [`Target`] | [`Outcome`] |
//! | POST /v1/lockdown | [`Lockdown`] | [`Outcome`] |
//! | POST /v1/unlatch | [`Target`] | [`Outcome`] |
//! | GET /v1/ledger/backup | | [`LedgerBackup`] |
//! | POST /v1/ledger/restore | [`LedgerBackup`] | [`KeyholderStatus`] |
//! | POST /v1/drills | [`DrillReport`] | [`KeyholderStatus`] |
//! | POST /v1/nodes/{name}/compromised | [`Done`] | [`Compromised`] |
//! | GET /v1/policy | | [`PolicyStatus`] |
//! | POST /v1/policy | [`NewPolicy`] | [`PolicyPreview`] |
//! | POST /v1/policy/check | [`NewPolicy`] | [`PolicyPreview`] |
//! | GET /v1/people | | `[`[`PersonEntry`]`]` |
//! | POST /v1/people/me/second-factor | [`Done`] | [`EnrolledFactor`] |
//! | POST /v1/people/me/second-factor/confirm | [`Code`] | [`Done`] |
//! | DELETE /v1/people/{role}/{name}/second-factor | | [`Done`] |
//! | POST /v1/login | [`Code`] | [`Login`] |
//! | GET /v1/login/oidc | | [`OidcProvider`] |
//! | POST /v1/login/oidc | [`OidcLogin`] | [`OidcLoggedIn`] |
//! | POST /v1/logout | [`Done`] | [`Done`] |
//! | GET /v1/approvals | | `[`[`Approval`]`]` |
//! | POST /v1/approvals/{id}/approve | [`Done`] | [`Approval`] |
//! | POST /v1/approvals/{id}/refuse | [`Done`] | [`Done`] |
//! | POST /v1/approvals/{id}/break-glass | [`Reason`] | [`Approval`] |
//! | GET /v1/tokens | | `[`[`TokenEntry`]`]` |
//! | POST /v1/tokens | [`CreateToken`] | [`CreatedToken`] |
//! | DELETE /v1/tokens/{id} | | [`Done`] |
//! | GET /v1/erasures | | `[`[`ErasureEntry`]`]` |
//! | POST /v1/erasures/{volume}/confirm | [`ConfirmErasure`] | [`ErasureEntry`] |
//! | POST /v1/erasures/{volume}/certificate | [`Done`] | [`SignedErasure`] |
//! | POST /v1/keyholders/{name}/join | [`Done`] | [`JoinApproved`] |
//! | POST /v1/root | a request of JOIN.md | its answer |
//! | GET /v1/webhooks | | `[`[`WebhookEntry`]`]` |
//! | POST /v1/webhooks/{name}/test | [`Done`] | [`WebhookTested`] |
//! | POST /v1/webhooks/{name}/replay | [`Letters`] | [`WebhookEntry`] |
//! | POST /v1/webhooks/{name}/discard | [`Letters`] | [`WebhookEntry`] |
//! | GET /v1/audit?after=SEQ&count=N | | [`audit_log::Page`] |
//! | GET /v1/audit/digests?after=SEQ&count=N | | [`AuditDigests`] |

mod oidc;
mod webhooks;

pub use admin::api::VolumeLimits;
use identity::Endpoint;
use serde::{Deserialize, Serialize};
use units::{BootId, DomainId, Fence, NodeId, PoolId, RootEpoch, VolumeEpoch, VolumeId};

pub use lease::message::{OnSeal, VolumeKind};

pub use self::oidc::{OidcLoggedIn, OidcLogin, OidcProvider};
pub use self::webhooks::{DeadLetter, Letters, WaitingEvent, WebhookEntry, WebhookTested};

use crate::shares::{SealedShare, Share, ShareSet};

/// What the keyholder can do at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SealState {
    /// It has neither a ledger nor a root: hold a ceremony, or restore a ledger backup.
    Empty,
    /// It has a ledger and waits for shares.
    Sealed,
    /// The root is in its memory.
    Unsealed,
}

/// Everything about the keyholder that is not secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyholderStatus {
    /// Program version.
    pub version: String,
    /// Its name, as in its certificate.
    pub name: String,
    /// What it can do.
    pub state: SealState,
    /// Shares that are here and that are needed; `None` while there is no share set.
    pub shares: Option<ShareCount>,
    /// The share set that opens the root; public.
    pub share_set: Option<ShareSet>,
    /// The Ed25519 key that signs grants, hex: nodes pin it at enrolment. Known from the first unseal on.
    pub grant_signing_key: Option<String>,
    /// Where the root lives while unsealed: `memfd-secret` or `mlock`.
    pub key_memory: String,
    /// Serial number of the ledger: it grows with every change.
    pub ledger_serial: Option<u64>,
    /// Serial of the ledger when it was last backed up; `None` where it never was.
    pub backup_serial: Option<u64>,
    /// The last drill that was reported; `None` where none was.
    #[serde(default)]
    pub last_drill: Option<Drill>,
    /// Set while everything is locked down.
    pub lockdown: Option<Latch>,
    /// Number of the policy in force; `None` where there never was one.
    #[serde(default)]
    pub policy_serial: Option<u64>,
    /// Requests that wait for other people's approval.
    #[serde(default)]
    pub approvals_wanted: usize,
    /// The last time one person went on alone with what takes several, since the start.
    #[serde(default)]
    pub last_break_glass: Option<BreakGlass>,
    /// Nothing is granted for so long, because the record of earlier leases was lost; milliseconds.
    pub grants_wait_ms: Option<u64>,
    /// The nodes; empty while sealed.
    pub nodes: Vec<NodeEntry>,
    /// The volumes; empty while sealed.
    pub volumes: Vec<VolumeEntry>,
    /// The keyholders that share a store; `null` where this one is alone.
    #[serde(default)]
    pub cluster: Option<ClusterStatus>,
}

/// What a drill found: whether shares, a ledger backup and a copy of a disk give the data back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillReport {
    /// Serial of the ledger backup that was used.
    pub ledger_serial: u64,
    /// Officers whose shares were used.
    pub officers: Vec<String>,
    /// The node whose disks were copied.
    pub node: String,
    /// Its volumes, those that did not open included.
    pub volumes: Vec<DrilledVolume>,
}

impl DrillReport {
    /// Whether every volume opened and could be read.
    pub fn passed(&self) -> bool {
        !self.volumes.is_empty() && self.volumes.iter().all(|volume| volume.error.is_none())
    }
}

/// One volume in a drill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrilledVolume {
    /// Its label.
    pub label: String,
    /// Bytes of data that were read.
    pub bytes_read: u64,
    /// Objects that were read, in an object store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects_read: Option<u64>,
    /// Its file system and how that was found, on a disk that has one which could be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<String>,
    /// Why it did not open or could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A drill as it was reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drill {
    /// When, seconds since 1970.
    pub at_unix_s: u64,
    /// Who reported it.
    pub by: String,
    /// Whether every volume could be read.
    pub passed: bool,
    /// What it found.
    pub report: DrillReport,
}

/// Shares that are here and that are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareCount {
    /// Submitted so far.
    pub have: u8,
    /// Needed.
    pub need: u8,
}

/// Asks for a new root, shared among officers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CeremonyRequest {
    /// Shares needed to restore the root.
    pub threshold: u8,
    /// Who receives one each.
    pub officers: Vec<Officer>,
}

/// An officer who receives a share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Officer {
    /// Name, for people.
    pub name: String,
    /// The officer's envelope public key (X-Wing, 1216 bytes), base64.
    pub public_key: String,
}

/// The new root's shares. The root itself is in the keyholder's memory and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CeremonyResult {
    /// The set, public.
    pub share_set: ShareSet,
    /// The Ed25519 key that signs grants, hex: nodes pin it at enrolment.
    pub grant_signing_key: String,
    /// One for each officer, encrypted to that officer, in the order of the request.
    pub shares: Vec<SealedShare>,
}

/// One share, decrypted by its officer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnsealRequest {
    /// The share.
    pub share: Share,
}

impl std::fmt::Debug for UnsealRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UnsealRequest")
    }
}

/// How far unsealing has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnsealProgress {
    /// What the keyholder can do now.
    pub state: SealState,
    /// Shares that are here and that are needed.
    pub shares: ShareCount,
}

/// When a key is pushed to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PushPolicy {
    /// A person approves each push (`POST /v1/push`). Without a TPM evidence is only a claim.
    #[default]
    Approve,
    /// Whenever the node is there, unless something is latched.
    Auto,
}

/// Adds a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddNode {
    /// Its name, as in its certificate.
    pub name: String,
    /// Its id, as in its configuration.
    pub node: NodeId,
    /// Its key port.
    pub key_address: Endpoint,
    /// Its administrative port.
    pub admin_address: Endpoint,
    /// Its Ed25519 identity key, hex, where it is known already: the node is approved at once. That takes a security
    /// officer's certificate. Otherwise the node is dialled, and what it claims is shown for comparison.
    #[serde(default)]
    pub identity_key: Option<String>,
    /// When keys are pushed to it.
    #[serde(default)]
    pub push: PushPolicy,
    /// Length of its leases; the keyholder's default where absent.
    #[serde(default)]
    pub lease_ms: Option<u64>,
}

/// Changes what is known of a node; what is absent stays. Letting it be pushed to without approval, `auto`, takes a
/// security officer's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeNode {
    /// Its key port.
    #[serde(default)]
    pub key_address: Option<Endpoint>,
    /// Its administrative port.
    #[serde(default)]
    pub admin_address: Option<Endpoint>,
    /// When keys are pushed to it.
    #[serde(default)]
    pub push: Option<PushPolicy>,
    /// Length of its leases, from the next grant or renewal on.
    #[serde(default)]
    pub lease_ms: Option<u64>,
}

/// Pins a node's identity key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproveNode {
    /// The key's fingerprint as the node's own console or log shows it, 16 hex digits; it must be that of the key that
    /// the node claims. The whole key, 64 hex digits, is taken as well.
    pub fingerprint: String,
    /// The fingerprint of the machine's TPM, as its console or log shows it: it must be that of the TPM that speaks for the node.
    /// Where absent, the TPM that speaks for it is approved as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm: Option<String>,
}

/// Why nothing is pushed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latch {
    /// `revoked`, `lockdown`, or the cause of a wipe that latches.
    pub cause: String,
    /// Seconds since 1970.
    pub since_unix_s: u64,
    /// Who did it, where it was a person.
    pub by: Option<String>,
}

/// How the keyholder's connection to a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connection {
    /// No connection; it is being dialled.
    Dialling,
    /// Connected, evidence verified.
    Connected,
    /// Not dialled by this keyholder: it is sealed or is stopping, or another one dials the node.
    Idle,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its name.
    pub name: String,
    /// Its id.
    pub node: NodeId,
    /// Its key port.
    pub key_address: Endpoint,
    /// Its administrative port.
    pub admin_address: Endpoint,
    /// Whether its identity key is pinned.
    pub approved: bool,
    /// The pinned identity key, hex, or the claimed one while it is not approved.
    pub identity_key: Option<String>,
    /// That key's fingerprint, for people to compare.
    pub fingerprint: Option<String>,
    /// When keys are pushed to it.
    pub push: PushPolicy,
    /// Length of its leases.
    pub lease_ms: u64,
    /// Set while nothing is pushed to it.
    pub latch: Option<Latch>,
    /// The connection.
    pub connection: Connection,
    /// The keyholder that dials it, where several share a store.
    #[serde(default)]
    pub keyholder: Option<String>,
    /// What went wrong last, with the next step.
    pub last_error: Option<String>,
    /// Whether a push waits for a person's approval.
    pub awaits_push: bool,
    /// This boot of the node.
    pub boot: Option<BootId>,
    /// The cause of its last wipe.
    pub last_wipe: Option<String>,
    /// Its hygiene report, as it sent it.
    pub hygiene: Option<serde_json::Value>,
    /// What its TPM says; `null` where it has none.
    #[serde(default)]
    pub tpm: Option<TpmEntry>,
}

/// The keyholders that share a root and a store, and how the store stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The store.
    pub store: StoreStatus,
    /// The keyholders, this one included.
    pub members: Vec<MemberEntry>,
    /// This keyholder's identity key, hex: what a policy that lets it join names.
    pub identity_key: String,
    /// Why it has not got the root from another keyholder, where it has asked.
    pub join: Option<String>,
}

/// A keyholder may have the root from one that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinApproved {
    /// Which one.
    pub keyholder: String,
    /// It has to ask within this time; it asks every few seconds.
    pub within_ms: u64,
}

/// How the store that keyholders share stands to this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum StoreStatus {
    /// It answers.
    Reachable,
    /// No quorum of it answers: keys in force are renewed as far as is recorded, everything else waits.
    Away {
        /// What happened.
        why: String,
    },
    /// It is not the one that this keyholder knew: nothing is granted.
    Distrusted {
        /// What is wrong with it.
        why: String,
    },
}

/// A keyholder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberEntry {
    /// Its name, as in its certificate.
    pub name: String,
    /// Its administrative port.
    pub address: String,
    /// The version of its program.
    pub version: String,
    /// Whether it has been heard of in the last seconds.
    pub alive: bool,
    /// Whether it has the root.
    pub unsealed: bool,
    /// How many nodes it dials.
    pub nodes: usize,
}

/// How a node's TPM stands to what people approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TpmState {
    /// It speaks for the node, and nobody has approved it.
    Claimed,
    /// It is the one that was approved, and what it proves is as it was approved.
    Approved,
    /// What it says proves nothing, or something else than what was approved: nothing is pushed.
    Refused,
}

/// A node's TPM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmEntry {
    /// How it stands to what was approved.
    pub state: TpmState,
    /// Of its endorsement key, 16 hex digits: the machine's console and log show the same.
    pub fingerprint: Option<String>,
    /// SHA-256 of the certificate that its maker gave it, hex. The keyholder does not look at who that is.
    pub certificate: Option<String>,
    /// What the firmware started, hex.
    pub pcr4: Option<String>,
    /// The image, hex.
    pub pcr11: Option<String>,
    /// Whether the firmware checks what it starts, by its log, as far as the TPM bears that out.
    pub secure_boot: Option<bool>,
    /// Registers that the firmware's log does not explain; `null` where there is no log.
    pub unexplained: Option<Vec<u8>>,
    /// Wipes since the machine was started.
    pub wipes: Option<usize>,
    /// What does not hold, and what would put it right.
    pub problem: Option<String>,
}

/// What became of a volume's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyState {
    /// The node holds no key, as far as is known.
    Sealed,
    /// A grant was sent and not yet answered.
    Pushing,
    /// The node holds the key.
    Unlocked,
    /// The node refused the last grant.
    Refused,
    /// The node is out of reach and may hold the key until the lease ends.
    Unknown,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeEntry {
    /// The label that clients know it by.
    pub label: String,
    /// Its id; the only name on disk.
    pub volume: VolumeId,
    /// Its key domain.
    pub domain: DomainId,
    /// Epoch of the domain's secret.
    pub epoch: VolumeEpoch,
    /// Logical size in bytes.
    pub size_bytes: u64,
    /// What it is for.
    pub kind: VolumeKind,
    /// What its clients see when the key goes.
    pub on_seal: OnSeal,
    /// What tells a sector that is not what was written.
    pub integrity: VolumeIntegrity,
    /// The name of the node that has it.
    pub node: String,
    /// Fence of the last grant.
    pub fence: Fence,
    /// Set while nothing is pushed.
    pub latch: Option<Latch>,
    /// What became of its key.
    pub key: KeyState,
    /// Milliseconds until the node's lease is over by the keyholder's own record; `None` where none runs.
    pub lease_remaining_ms: Option<u64>,
    /// Why the node refused it, or why it is not pushed, with the next step.
    pub reason: Option<String>,
    /// What is left of its key's older epochs; `None` where nothing is.
    #[serde(default)]
    pub rotation: Option<Rotation>,
}

/// A key that is being replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Epochs whose secrets are kept because something may still lie under them, oldest first.
    pub older: Vec<VolumeEpoch>,
    /// What the node writes the volume under; `None` while that is not known.
    pub written: Option<VolumeEpoch>,
    /// Volumes of which their nodes have not said that nothing lies under an older epoch, and copies that other nodes have of them, as
    /// `VOLUME on NODE`.
    pub waits_for: Vec<String>,
    /// Why the node did not take the newest epoch.
    pub refused: Option<String>,
    /// When the newest epoch began.
    pub began_unix_s: Option<u64>,
}

/// Creates a volume on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// The label, unique.
    pub label: String,
    /// The name of the node.
    pub node: String,
    /// The node's pool; the one with most free space where absent.
    #[serde(default)]
    pub pool: Option<PoolId>,
    /// What it is for.
    pub kind: VolumeKind,
    /// Logical size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// What its clients see when the key goes.
    #[serde(default)]
    pub on_seal: OnSeal,
    /// What tells a sector that is not what was written. Never changed afterwards.
    #[serde(default)]
    pub integrity: VolumeIntegrity,
    /// What it may hold and what is kept for it, snapshots counted with it.
    #[serde(default)]
    pub limits: VolumeLimits,
}

/// What tells a volume's sector that is not what was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeIntegrity {
    /// A checksum, and a tag under the volume's key: rot and tampering.
    #[default]
    Tag,
    /// A checksum alone: rot.
    Checksum,
}

/// Makes a volume that begins as a snapshot of another is. It has that volume's key domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneVolume {
    /// The clone's label, unique.
    pub label: String,
    /// The snapshot, of the volume that is cloned.
    pub snapshot: VolumeId,
    /// What its clients see when the key goes.
    #[serde(default)]
    pub on_seal: OnSeal,
    /// What it may hold beside what it shares, and what is kept for it.
    #[serde(default)]
    pub limits: VolumeLimits,
}

/// Makes a volume what one of its snapshots shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollBackVolume {
    /// The snapshot.
    pub snapshot: VolumeId,
}

/// Makes the replica of a volume on another node the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromoteVolume {
    /// The node that has the replica.
    pub node: String,
}

/// Changes a volume's size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// New logical size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// Has to be set for a smaller size: what lies past it is gone.
    #[serde(default)]
    pub allow_shrink: bool,
}

/// How far a deleted volume's secret is erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Erasure {
    /// No copy of the secret is left that this keyholder ever made.
    Complete,
    /// Ledger backups from before the deletion still contain it, wrapped; destroy them.
    PendingBackups,
    /// Other volumes have the same key domain, clones or what it was cloned from: its secret stays with them.
    Shared,
}

/// A volume is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeErased {
    /// Its label.
    pub label: String,
    /// Its id.
    pub volume: VolumeId,
    /// How far its secret is erased.
    pub erasure: Erasure,
    /// Where pending: backups with this serial number or a lower one have to be destroyed.
    pub destroy_backups_up_to_serial: Option<u64>,
    /// Where shared: the volumes that have the same key domain, by label.
    #[serde(default)]
    pub shared_with: Vec<String>,
}

/// What an act is about. Exactly one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The volume with this label.
    Volume(String),
    /// The node with this name and all its volumes.
    Node(String),
    /// Everything.
    All,
}

/// Locks down every node. The body is an empty object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lockdown {}

/// What came of an act, node by node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// One line for each node that it concerns.
    pub nodes: Vec<NodeOutcome>,
}

/// What came of an act at one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOutcome {
    /// The node's name.
    pub node: String,
    /// Whether the node confirmed it.
    pub confirmed: bool,
    /// From the request to the node's signed receipt, milliseconds.
    pub elapsed_ms: u64,
    /// Where it was not confirmed: why, and by when the node's lease ends it anyway.
    pub detail: Option<String>,
}

/// The whole ledger, encrypted under the root: safe to keep anywhere, useless without the shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerBackup {
    /// Its serial number.
    pub serial: u64,
    /// Root epoch that opens it.
    pub root_epoch: RootEpoch,
    /// The file's bytes, base64.
    pub ledger: String,
}

/// Somebody went on alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakGlass {
    /// When, seconds since 1970.
    pub at_unix_s: u64,
    /// Who.
    pub by: String,
    /// With what.
    pub act: String,
    /// Why, in their own words.
    pub reason: String,
}

/// A policy's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPolicy {
    /// The file, as it is.
    pub text: String,
}

/// The policy in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// The file, as it was applied; `None` where there never was one.
    pub text: Option<String>,
    /// Counts the policies.
    pub serial: u64,
    /// Who applied it.
    pub by: Option<String>,
    /// When, seconds since 1970.
    pub at_unix_s: Option<u64>,
    /// What it says, with what it leaves unsaid.
    pub policy: crate::policy::Policy,
}

/// What a policy changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPreview {
    /// Setting by setting.
    pub differences: Vec<crate::policy::Difference>,
    /// Keys that may not be where they are under it; they are not renewed.
    pub would_refuse: Vec<WouldRefuse>,
}

/// A key that a policy does not want where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WouldRefuse {
    /// The volume's label.
    pub volume: String,
    /// The node's name.
    pub node: String,
    /// Why, and what would be needed.
    pub why: String,
}

/// A person with a second factor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonEntry {
    /// Role and name.
    pub who: String,
    /// Since when, seconds since 1970.
    pub enrolled_unix_s: u64,
    /// Whether a login of theirs is good at the moment.
    pub logged_in: bool,
}

/// A new second factor, shown once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolledFactor {
    /// The secret in base32, to be typed.
    pub secret: String,
    /// The same as an `otpauth` URI, to be scanned.
    pub uri: String,
}

impl std::fmt::Debug for EnrolledFactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EnrolledFactor")
    }
}

/// A code from an authenticator.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Code {
    /// Six digits.
    pub code: String,
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Code")
    }
}

/// A login: sent with each request as `Authorization: Bearer TOKEN`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// The token; the keyholder keeps its hash.
    pub token: String,
    /// How long it is good, milliseconds.
    pub lasts_ms: u64,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login")
    }
}

/// Asks for a token that a program uses instead of its maker's login, with its maker's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What it is for.
    pub name: String,
    /// Endpoints that it is good for, as in `POST /v1/push`.
    pub scopes: Vec<String>,
    /// Days until it ends, at most 365.
    pub days: u32,
}

/// A new token, shown once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedToken {
    /// Its id, to revoke it by.
    pub id: String,
    /// Sent as `Authorization: Bearer TOKEN`; the keyholder keeps its hash.
    pub token: String,
    /// When it ends, seconds since 1970.
    pub expires_unix_s: u64,
}

impl std::fmt::Debug for CreatedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CreatedToken")
    }
}

/// A token that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenEntry {
    /// Its id.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// Who made it and may use it.
    pub who: String,
    /// Endpoints that it is good for.
    pub scopes: Vec<String>,
    /// When it was made, seconds since 1970.
    pub made_unix_s: u64,
    /// When it ends, seconds since 1970.
    pub expires_unix_s: u64,
}

/// How a request for approval stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApprovalState {
    /// Others have to approve.
    Wanted,
    /// Who asked may say it again.
    Approved,
    /// A security officer goes on alone.
    GlassBroken,
}

/// Something that takes more than one person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Its id.
    pub id: String,
    /// What was asked for.
    pub act: String,
    /// By whom.
    pub by: String,
    /// How many people it takes, who asks included.
    pub need: u8,
    /// Who has approved.
    pub approved_by: Vec<String>,
    /// How it stands.
    pub state: ApprovalState,
    /// When it was asked for, seconds since 1970.
    pub asked_unix_s: u64,
    /// It lapses in so many milliseconds.
    pub lapses_ms: u64,
}

/// Why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// In a person's own words.
    pub reason: String,
}

/// A node that is not trusted any more, and what it may have seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compromise {
    /// The node's name.
    pub node: String,
    /// What it may have held.
    pub exposed: Vec<Exposed>,
}

/// A key that a node may have given away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposed {
    /// The volume.
    pub volume: VolumeId,
    /// Its label.
    pub label: String,
    /// Its key domain.
    pub domain: DomainId,
    /// The epoch whose secret is exposed.
    pub epoch: VolumeEpoch,
    /// When the trail first says that the node was granted it, seconds since 1970.
    pub first_unix_s: Option<u64>,
    /// The last word about it.
    pub last_unix_s: Option<u64>,
}

/// A node was marked, and its keys taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compromised {
    /// What it may have seen.
    pub compromise: Compromise,
    /// What became of its keys.
    pub outcome: Outcome,
}

/// How far an erasure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErasureState {
    /// Other volumes keep the secret alive.
    Shared,
    /// Backups of the ledger still have it.
    Pending,
    /// No copy is left that anybody knows of.
    Complete,
}

/// A volume that was erased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasureEntry {
    /// The volume.
    pub volume: VolumeId,
    /// The label that it had.
    pub label: String,
    /// Who erased it.
    pub by: String,
    /// When, seconds since 1970.
    pub at_unix_s: u64,
    /// How far it is.
    pub state: ErasureState,
    /// Where pending: backups with this serial number or a lower one have to be destroyed.
    pub destroy_backups_up_to_serial: Option<u64>,
    /// Where shared: with these volumes.
    pub shared_with: Vec<String>,
}

/// Backups were destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfirmErasure {
    /// All of them up to this serial number.
    pub destroyed_up_to_serial: u64,
}

/// What is certified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasureCertificate {
    /// 1.
    pub version: u32,
    /// Which keyholder says so.
    pub keyholder: String,
    /// The volume.
    pub volume: VolumeId,
    /// Its key domain, whose secret is erased.
    pub domain: DomainId,
    /// The label that it had.
    pub label: String,
    /// Who erased it.
    pub erased_by: String,
    /// When, seconds since 1970.
    pub erased_unix_s: u64,
    /// Ledgers with this serial number or a higher one are without it.
    pub ledger_without_since_serial: u64,
    /// Backups that had it, up to this serial; `None` where there was none.
    pub backups_destroyed_up_to_serial: Option<u64>,
    /// Who answers for their destruction.
    pub backups_confirmed_by: Option<String>,
    /// When this was issued, seconds since 1970.
    pub issued_unix_s: u64,
    /// Where the keyholder's trail was then.
    pub audit: audit_log::Head,
}

/// A certificate with its signature: Ed25519 by `root_key` over SHA-256 of `nightlatch/erasure/1 certificate` and the text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedErasure {
    /// An [`ErasureCertificate`] in JSON, byte for byte what was signed.
    pub certificate: String,
    /// The root's audit key, hex.
    pub root_key: String,
    /// The signature, hex.
    pub signature: String,
}

/// What a witness needs: how far the trail has come, and digests to follow it there. Nothing of what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditDigests {
    /// The head, signed.
    pub head: audit_log::SignedHead,
    /// Digests of the entries after the number that was asked for, oldest first.
    pub digests: Vec<audit_log::Digest>,
}

/// An empty answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}
