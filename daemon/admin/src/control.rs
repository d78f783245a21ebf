//! What the administrative interface asks of the node.

use std::future::Future;

use bytes::Bytes;
use identity::Problem;
use units::{PoolId, VolumeId};

use crate::api;

/// What kind of refusal it is; decides the HTTP status and the word for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request makes no sense as it is.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// It exists already, or its state does not allow this.
    Conflict,
    /// A key is needed and the node has none.
    Sealed,
    /// No space is left.
    Full,
    /// The device or the store failed.
    Failed,
}

impl ErrorKind {
    /// The stable word for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::Sealed => "sealed",
            Self::Full => "full",
            Self::Failed => "failed",
        }
    }

    pub(crate) const fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Sealed => 503,
            Self::Full => 507,
            Self::Failed => 500,
        }
    }
}

/// Why the node did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlError {
    /// What kind of refusal.
    pub kind: ErrorKind,
    /// What is wrong.
    pub message: String,
    /// What to do about it; empty where the message says it.
    pub next_step: String,
}

impl ControlError {
    /// A refusal from its parts.
    pub fn new(kind: ErrorKind, message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { kind, message: message.into(), next_step: next_step.into() }
    }

    pub(crate) fn problem(self) -> Problem {
        Problem::new(self.kind.name(), self.message, self.next_step)
    }
}

/// Who asked for what. Nothing in it names what customers store: of the path's parameters only ids are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// Role and name.
    pub by: String,
    /// Method and the endpoint's pattern.
    pub endpoint: String,
    /// Ids of volumes, snapshots and pools in the path.
    pub about: Vec<String>,
    /// The answer's HTTP status.
    pub status: u16,
}

/// Something that somebody should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The stable word for programs.
    pub code: String,
    /// What is the matter, and what to do.
    pub text: String,
}

impl Reason {
    /// From its parts.
    pub fn new(code: impl Into<String>, text: impl Into<String>) -> Self {
        Self { code: code.into(), text: text.into() }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

/// Whether clients are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Why they are not.
    pub refusal: Option<Reason>,
    /// What does not keep them from being served, yet.
    pub notes: Vec<Reason>,
}

/// The node, as far as this interface knows it.
pub trait NodeControl: Send + Sync + 'static {
    /// Whether the process makes progress: its own threads answer.
    fn is_alive(&self) -> bool;

    /// Whether clients are served, and what somebody should know.
    fn readiness(&self) -> Readiness;

    /// Everything that is not secret.
    fn status(&self) -> impl Future<Output = api::NodeStatus> + Send;

    /// What the machine is and how its parts fare.
    fn hardware(&self) -> impl Future<Output = Result<api::Hardware, ControlError>> + Send;

    /// Switches the light at a disk's place.
    fn locate(
        &self,
        disk: String,
        request: api::Locate,
    ) -> impl Future<Output = Result<api::Located, ControlError>> + Send;

    /// Takes the device's new size into use.
    fn grow_pool(&self, pool: PoolId) -> impl Future<Output = Result<api::PoolStatus, ControlError>> + Send;

    /// Moves a pool to another device while it serves, or gives that up.
    fn replace_pool(
        &self,
        pool: PoolId,
        action: api::ReplaceAction,
    ) -> impl Future<Output = Result<api::PoolStatus, ControlError>> + Send;

    /// Reads all of a pool's metadata and says what is wrong with it.
    fn check_pool(&self, pool: PoolId) -> impl Future<Output = Result<api::PoolCheck, ControlError>> + Send;

    /// Begins, goes on with or stops scrubbing.
    fn scrub_pool(
        &self,
        pool: PoolId,
        action: api::ScrubAction,
    ) -> impl Future<Output = Result<api::PoolStatus, ControlError>> + Send;

    /// The sectors that the last scrub found damaged and whose records are good.
    fn wanted_sectors(
        &self,
        pool: PoolId,
    ) -> impl Future<Output = Result<Vec<api::WantedSector>, ControlError>> + Send;

    /// The ciphertext of a sector with exactly this record.
    fn find_sector(
        &self,
        request: api::FindSector,
    ) -> impl Future<Output = Result<Vec<u8>, ControlError>> + Send;

    /// Puts the ciphertext of a damaged sector back.
    fn heal_sector(
        &self,
        pool: PoolId,
        device_offset: u64,
        ciphertext: Bytes,
    ) -> impl Future<Output = Result<api::Healed, ControlError>> + Send;

    /// What a snapshot is, to be sent whole or since an older one.
    fn snapshot_manifest(
        &self,
        snapshot: VolumeId,
        since: Option<VolumeId>,
    ) -> impl Future<Output = Result<api::SnapshotManifest, ControlError>> + Send;

    /// A part of a snapshot, from a sector on, with no more than so many sectors of ciphertext.
    fn snapshot_portion(
        &self,
        snapshot: VolumeId,
        since: Option<VolumeId>,
        from_sector: u64,
        sectors: u64,
    ) -> impl Future<Output = Result<Vec<u8>, ControlError>> + Send;

    /// Makes ready to take a snapshot in.
    fn begin_receiving(
        &self,
        request: api::Receive,
    ) -> impl Future<Output = Result<api::Received, ControlError>> + Send;

    /// Takes a part of a snapshot in.
    fn receive(
        &self,
        volume: VolumeId,
        snapshot: VolumeId,
        portion: Bytes,
    ) -> impl Future<Output = Result<api::Received, ControlError>> + Send;

    /// All of the snapshot has arrived.
    fn end_receiving(
        &self,
        manifest: api::SnapshotManifest,
    ) -> impl Future<Output = Result<api::SnapshotStatus, ControlError>> + Send;

    /// Makes a replica a volume like others.
    fn promote(&self, volume: VolumeId) -> impl Future<Output = Result<api::Promoted, ControlError>> + Send;

    /// How far volumes are at this node's peers, and theirs here.
    fn replication(&self) -> impl Future<Output = Result<api::Replication, ControlError>> + Send;

    /// Makes a volume.
    fn create_volume(
        &self,
        request: api::CreateVolume,
    ) -> impl Future<Output = Result<api::VolumeStatus, ControlError>> + Send;

    /// Changes a volume's size.
    fn resize_volume(
        &self,
        volume: VolumeId,
        request: api::ResizeVolume,
    ) -> impl Future<Output = Result<api::VolumeStatus, ControlError>> + Send;

    /// Removes a volume and everything on it.
    fn delete_volume(&self, volume: VolumeId) -> impl Future<Output = Result<(), ControlError>> + Send;

    /// Changes what a volume may hold and what is kept for it.
    fn limit_volume(
        &self,
        volume: VolumeId,
        limits: api::VolumeLimits,
    ) -> impl Future<Output = Result<api::VolumeStatus, ControlError>> + Send;

    /// Who may use a disk over NBD.
    fn volume_access(
        &self,
        volume: VolumeId,
    ) -> impl Future<Output = Result<api::VolumeAccess, ControlError>> + Send;

    /// Says who may use a disk over NBD, from now on.
    fn set_volume_access(
        &self,
        volume: VolumeId,
        access: api::VolumeAccess,
    ) -> impl Future<Output = Result<api::VolumeAccess, ControlError>> + Send;

    /// Makes a volume that is not served what one of its snapshots shows.
    fn roll_back_volume(
        &self,
        volume: VolumeId,
        request: api::RollBack,
    ) -> impl Future<Output = Result<api::VolumeStatus, ControlError>> + Send;

    /// The snapshots, by volume and age.
    fn snapshots(&self) -> impl Future<Output = Result<Vec<api::SnapshotStatus>, ControlError>> + Send;

    /// Takes a snapshot.
    fn create_snapshot(
        &self,
        request: api::CreateSnapshot,
    ) -> impl Future<Output = Result<api::SnapshotStatus, ControlError>> + Send;

    /// Removes a snapshot.
    fn delete_snapshot(&self, snapshot: VolumeId) -> impl Future<Output = Result<(), ControlError>> + Send;

    /// Locks a snapshot, or for longer than it is.
    fn lock_snapshot(
        &self,
        snapshot: VolumeId,
        lock: api::LockSnapshot,
    ) -> impl Future<Output = Result<api::SnapshotStatus, ControlError>> + Send;

    /// Sets when snapshots of a volume are taken and which are kept.
    fn set_schedule(
        &self,
        volume: VolumeId,
        schedule: api::SnapshotSchedule,
    ) -> impl Future<Output = Result<api::ScheduleStatus, ControlError>> + Send;

    /// Takes no more snapshots of a volume by schedule. Those there are stay.
    fn remove_schedule(&self, volume: VolumeId) -> impl Future<Output = Result<(), ControlError>> + Send;

    /// What was unusual is all right: snapshots of the volume are pruned again.
    fn acknowledge_rewrite(
        &self,
        volume: VolumeId,
    ) -> impl Future<Output = Result<api::ScheduleStatus, ControlError>> + Send;

    /// Makes a volume of a snapshot.
    fn clone_snapshot(
        &self,
        snapshot: VolumeId,
        request: api::CloneSnapshot,
    ) -> impl Future<Output = Result<api::VolumeStatus, ControlError>> + Send;

    /// The buckets, by name.
    fn buckets(&self) -> impl Future<Output = Result<Vec<api::Bucket>, ControlError>> + Send;

    /// Makes a bucket.
    fn create_bucket(&self, name: String) -> impl Future<Output = Result<api::Bucket, ControlError>> + Send;

    /// Removes an empty bucket.
    fn delete_bucket(&self, name: String) -> impl Future<Output = Result<(), ControlError>> + Send;

    /// The access keys of all users.
    fn access_keys(&self) -> impl Future<Output = Result<Vec<api::AccessKey>, ControlError>> + Send;

    /// Makes an access key, and its user where there is none.
    fn create_access_key(
        &self,
        request: api::CreateUser,
    ) -> impl Future<Output = Result<api::CreatedAccessKey, ControlError>> + Send;

    /// Removes a user with all access keys, at once.
    fn delete_user(&self, user: String) -> impl Future<Output = Result<(), ControlError>> + Send;

    /// Removes one access key, at once.
    fn delete_access_key(&self, access_key: String) -> impl Future<Output = Result<(), ControlError>> + Send;

    /// Users, groups and policies.
    fn identities(&self) -> impl Future<Output = Result<api::Identities, ControlError>> + Send;

    /// Changes one of them, at once.
    fn change_identity(
        &self,
        change: api::IdentityChange,
    ) -> impl Future<Output = Result<(), ControlError>> + Send;

    /// Where notifications go, and how many wait for it.
    fn webhooks(&self) -> impl Future<Output = Result<Vec<api::Webhook>, ControlError>> + Send;

    /// Decides about notifications that nobody took.
    fn change_webhook(
        &self,
        change: api::WebhookChange,
    ) -> impl Future<Output = Result<api::WebhookChanged, ControlError>> + Send;

    /// Writes down who asked for what, and what was answered.
    fn note_act(&self, act: Act) -> impl Future<Output = ()> + Send;

    /// A part of the node's audit trail.
    fn audit(
        &self,
        after: u64,
        count: usize,
    ) -> impl Future<Output = Result<audit_log::Page, ControlError>> + Send;

    /// What a witness needs of it.
    fn audit_digests(
        &self,
        after: u64,
        count: usize,
    ) -> impl Future<Output = Result<api::AuditDigests, ControlError>> + Send;

    /// Keeps the head of another trail in the node's own: `of` vouches for it.
    fn witness(&self, of: String, head: audit_log::Head) -> impl Future<Output = ()> + Send;

    /// Forgets every key, now. `who` asked for it.
    fn wipe(&self, who: String) -> impl Future<Output = api::Wiped> + Send;
}
