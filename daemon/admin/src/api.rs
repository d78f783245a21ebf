//! The bodies of requests and answers, in JSON. openapi.json describes them for other languages.

mod hardware;

pub use hardware::{Hardware, Locate, Located, WorkerStatus};
use serde::{Deserialize, Serialize};
use units::{BootId, BootInstant, DomainId, Fence, NodeId, PoolId, VolumeEpoch, VolumeId};

/// Whether the node holds keys, since when, and why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealState {
    /// No key is held.
    pub sealed: bool,
    /// Since when it is so, seconds since 1970 by the wall clock.
    pub since_unix_s: u64,
    /// The same moment on the node's CLOCK_BOOTTIME, nanoseconds.
    pub since_boot_ns: BootInstant,
    /// Why it is sealed: `never-unsealed` after a start, otherwise the cause of the last wipe; `null` while unsealed.
    pub cause: Option<String>,
    /// When the lease ends on CLOCK_BOOTTIME, nanoseconds; `null` while sealed.
    pub lease_deadline_boot_ns: Option<BootInstant>,
    /// Milliseconds until then.
    pub lease_remaining_ms: Option<u64>,
}

/// The last wipe since the program started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWipe {
    /// Its cause.
    pub cause: String,
    /// When, on CLOCK_BOOTTIME, nanoseconds.
    pub at_boot_ns: BootInstant,
    /// From the call to the last zero in memory, nanoseconds.
    pub wipe_ns: u64,
    /// Keys that were lent.
    pub keys: usize,
    /// The stage it has reached: 1 keys zeroed, 2 no thread has any in registers or on a stack, 3 what was clear in ordinary
    /// memory is dropped and zeroed.
    pub stage: u8,
    /// From the call to the end of the second stage, nanoseconds; `null` while not reached.
    pub threads_ns: Option<u64>,
    /// From the call to the end of the third stage, nanoseconds; `null` while not reached.
    pub memory_ns: Option<u64>,
}

/// The key memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyMemory {
    /// `memfd-secret`, or `mlock` where the operator allowed it by name.
    pub memory: String,
    /// Keys held.
    pub keys: usize,
    /// Keys that can be held.
    pub key_slots: usize,
    /// Wipes so far.
    pub generation: u64,
    /// The last use of any key, on CLOCK_BOOTTIME, nanoseconds.
    pub last_use_boot_ns: Option<BootInstant>,
}

/// Everything about a node that is not secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Program version.
    pub version: String,
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// This boot.
    pub boot: BootId,
    /// Now, on CLOCK_BOOTTIME, nanoseconds.
    pub now_boot_ns: BootInstant,
    /// Sealed or not.
    pub seal: SealState,
    /// The last wipe.
    pub last_wipe: Option<LastWipe>,
    /// Where keys live.
    pub key_memory: KeyMemory,
    /// The cipher and how fast it is here.
    pub cipher: CipherStatus,
    /// The pools.
    pub pools: Vec<PoolStatus>,
    /// The volumes on them.
    pub volumes: Vec<VolumeStatus>,
    /// Bound addresses of the heads, as in `nbd` or `s3`.
    pub listening: Vec<Listening>,
    /// Where the node hears that power, trust or the machine is going.
    pub sources: Vec<SourceStatus>,
    /// What the machine does with memory.
    pub hygiene: Vec<HygieneFinding>,
    /// Snapshot schedules, by volume.
    #[serde(default)]
    pub schedules: Vec<ScheduleStatus>,
    /// Parts of the machine that somebody should look after.
    #[serde(default)]
    pub findings: Vec<health::Finding>,
    /// What works in the background.
    #[serde(default)]
    pub workers: Vec<WorkerStatus>,
}

/// The cipher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CipherStatus {
    /// `AES-256-XTS`.
    pub algorithm: String,
    /// The implementation in use, by instruction set: what NIGHTLATCH_CIPHER would name.
    pub kernel: String,
    /// Its speed on one core, in 4 KiB sectors, measured when the node started.
    pub mib_per_second: u64,
}

/// One source of triggers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Its kind, as in `gpio`.
    pub kind: String,
    /// It is heard.
    pub up: bool,
    /// It reads recorded events, not the machine's.
    pub recorded: bool,
    /// The conditions that are on.
    pub active: Vec<String>,
    /// How often a condition came on since the start.
    pub fired: u64,
    /// Messages that were not what they claimed to be, since the start.
    pub refused: u64,
    /// When it was last heard, on CLOCK_BOOTTIME, nanoseconds.
    pub heard_boot_ns: Option<BootInstant>,
    /// Why it is not heard.
    pub trouble: Option<String>,
}

/// One bound address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// Which head or port.
    pub head: String,
    /// `host:port` or a path.
    pub address: String,
    /// Whether it speaks TLS.
    pub tls: bool,
}

/// One hygiene probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HygieneFinding {
    /// The probe.
    pub probe: String,
    /// `good`, `weak`, `broken` or `unknown`.
    pub verdict: String,
    /// What was found.
    pub found: String,
    /// Why it matters and how to mend it; empty where it is good.
    pub advice: String,
}

/// What a witness of the audit trail needs: how far it has come, and digests to follow it there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditDigests {
    /// The head, signed.
    pub head: audit_log::SignedHead,
    /// Digests of the entries after the number that was asked for, oldest first.
    pub digests: Vec<audit_log::Digest>,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// The pool.
    pub pool: PoolId,
    /// Its device.
    pub path: String,
    /// Bytes that volumes can hold in all.
    pub capacity_bytes: u64,
    /// Bytes of extents in use.
    pub used_bytes: u64,
    /// Bytes that are free and kept for the volumes that reserved them.
    pub reserved_bytes: u64,
    /// Extent size in bytes.
    pub extent_bytes: u64,
    /// Whether every sector has a record that each read is verified by; a pool that was made in format 1 or 2 has none.
    pub keeps_records: bool,
    /// Sectors read since the start that were not what was written.
    pub damaged_sectors: u64,
    /// A flush or write failed: nothing is acknowledged any more until the device is mended and the node restarted.
    pub failed: bool,
    /// How far it is scrubbed.
    pub scrub: ScrubStatus,
}

/// What reading all of a pool's metadata found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCheck {
    /// The pool.
    pub pool: PoolId,
    /// Nothing is wrong, but for what opening the pool mends.
    pub sound: bool,
    /// Volumes and replicas.
    pub volumes: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Extents that belong to a volume or snapshot.
    pub mapped_extents: u64,
    /// Sectors that hold something.
    pub present_sectors: u64,
    /// Extents past the end of their volume, from a shrinking that a power cut interrupted: opening frees them.
    pub unfinished_unmaps: u64,
    /// The sector of a copy of the superblock that is damaged: opening writes it again from the other.
    pub damaged_superblock: Option<u64>,
    /// What is wrong, and where on the device; the first of it.
    pub problems: Vec<PoolProblem>,
    /// How many more there are.
    pub problems_unlisted: u64,
}

/// Something that is wrong in a pool's metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolProblem {
    /// What it is.
    pub what: String,
    /// Where it is on the device, in bytes.
    pub device_offset: u64,
}

/// Scrubbing of a pool: every sector is read and compared with what was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// A pass is reading now.
    pub running: bool,
    /// A person has stopped it: no pass begins or goes on by itself.
    pub stopped: bool,
    /// How fast it reads, of late.
    pub bytes_per_second: u64,
    /// Seconds to the end of the phase at this rate.
    pub eta_s: Option<u64>,
    /// The pass that is on its way.
    pub pass: Option<ScrubPass>,
    /// Passes that came to their end.
    pub passes: u64,
    /// The last of them.
    pub last: Option<ScrubReport>,
    /// When the next begins by itself, seconds since 1970; a time gone by is now.
    pub next_unix_s: Option<u64>,
}

/// What a pass compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScrubPhase {
    /// Everything, with its checksum; needs no key.
    Checksums,
    /// Volumes whose key is held, with their tags.
    Tags,
}

/// A pass that is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubPass {
    /// When it began, seconds since 1970.
    pub started_unix_s: u64,
    /// What it compares with now.
    pub phase: ScrubPhase,
    /// The extent of the device that comes next.
    pub next_extent: u32,
    /// Bytes compared with their checksums.
    pub bytes_done: u64,
    /// Bytes of extents that there are: no more than so many.
    pub bytes_total: u64,
    /// Bytes verified by their tags.
    pub bytes_verified: u64,
    /// Sectors that are not what was written, so far.
    pub damaged_sectors: u64,
    /// The first of them.
    pub damaged: Vec<DamagedSector>,
}

/// A pass that has come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// When it began, seconds since 1970.
    pub started_unix_s: u64,
    /// When it ended.
    pub ended_unix_s: u64,
    /// Bytes compared with their checksums.
    pub bytes_compared: u64,
    /// Bytes verified by their tags.
    pub bytes_verified: u64,
    /// Sectors that were not what was written.
    pub damaged_sectors: u64,
    /// The first hundred of them.
    pub damaged: Vec<DamagedSector>,
}

/// A sector that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedSector {
    /// Where it is on the device; `null` where only a volume's tag tells.
    pub device_offset: Option<u64>,
    /// What is wrong with it.
    pub fault: String,
    /// The volumes and snapshots that show it.
    pub shown_by: Vec<ShownBy>,
}

/// A sector of a volume or snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownBy {
    /// The volume or snapshot.
    pub volume: VolumeId,
    /// Which of its sectors of 4096 bytes.
    pub sector: u64,
}

/// Asks for a pool to be scrubbed, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderScrub {
    /// What to do.
    pub action: ScrubAction,
}

/// What to do about scrubbing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScrubAction {
    /// Begin now, or go on.
    Start,
    /// Stop where it is.
    Stop,
    /// Begin at the beginning.
    Restart,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// The volume.
    pub volume: VolumeId,
    /// The name its clients use; known only while its key is held.
    pub label: Option<String>,
    /// Its pool.
    pub pool: PoolId,
    /// `block` or `objects`.
    pub kind: String,
    /// Logical size in bytes.
    pub size_bytes: u64,
    /// Bytes of extents that it and its snapshots hold.
    pub used_bytes: u64,
    /// Most bytes that it and its snapshots may hold.
    pub quota_bytes: Option<u64>,
    /// Bytes that are kept for it.
    pub reserve_bytes: u64,
    /// Most requests a second.
    pub requests_per_second: Option<u32>,
    /// Most bytes a second.
    pub bytes_per_second: Option<u64>,
    /// The snapshot that it was cloned from.
    pub clone_of: Option<VolumeId>,
    /// It takes only what is sent to it, until it is promoted.
    pub replica: bool,
    /// Blocks of the cipher, of 16 bytes, that have been encrypted under its key on this node, at most: from 2^43 on a new key is
    /// due, from 2^44 on nothing is written under it.
    pub encrypted_blocks: u64,
    /// Key domain.
    pub domain: DomainId,
    /// Epoch of the domain's secret.
    pub epoch: VolumeEpoch,
    /// Key-check value of domain and epoch, 32 hex digits.
    pub check: String,
    /// Highest fence seen.
    pub fence: Fence,
    /// Its key is held and it is served.
    pub unsealed: bool,
    /// How far sealing it anew is, where it is served with keys of several epochs.
    #[serde(default)]
    pub rekey: Option<RekeyStatus>,
}

/// What of a volume lies under older epochs of its key, and how fast it is sealed anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RekeyStatus {
    /// Whether it is being sealed anew now.
    pub running: bool,
    /// Bytes of the volume that are still under an older epoch, its snapshots aside.
    pub bytes_left: u64,
    /// Bytes that were sealed anew since this walk began.
    pub bytes_moved: u64,
    /// How fast that goes.
    pub bytes_per_second: u64,
    /// When it will be through at that pace, in seconds.
    pub eta_s: Option<u64>,
    /// Sectors that are not what was written: they stay under their epoch until they are written anew.
    pub damaged_sectors: u64,
    /// Why it does not go on.
    pub trouble: Option<String>,
    /// What lies under each epoch of the key domain in the pool, as last counted.
    pub epochs: Vec<EpochStatus>,
}

/// What lies under one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochStatus {
    /// The epoch.
    pub epoch: VolumeEpoch,
    /// In whole extents, bytes.
    pub allocated_bytes: u64,
    /// The volumes and snapshots that show something of it, and so keep it.
    pub shown_by: Vec<VolumeId>,
}

/// Asks for a volume. Only the keyholder can: it made the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// A new random id.
    pub volume: VolumeId,
    /// The pool; the one with most free space where absent.
    #[serde(default)]
    pub pool: Option<PoolId>,
    /// `block` or `objects`.
    pub kind: VolumeKind,
    /// Logical size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// Key domain.
    pub domain: DomainId,
    /// Epoch of the domain's secret.
    pub epoch: VolumeEpoch,
    /// Key-check value, 32 hex digits.
    pub check: String,
    /// What it may hold and what is kept for it.
    #[serde(default)]
    pub limits: VolumeLimits,
}

/// How much space a volume may have, its snapshots counted with it, in effect whole extents; and how fast it may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeLimits {
    /// No more than this; no limit where absent.
    #[serde(default)]
    pub quota_bytes: Option<u64>,
    /// Kept free for it, whatever other volumes write.
    #[serde(default)]
    pub reserve_bytes: u64,
    /// Most requests a second, of all its clients together; no ceiling where absent.
    #[serde(default)]
    pub requests_per_second: Option<u32>,
    /// Most bytes a second, in whole KiB.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
}

/// Who may use a disk and its snapshots over NBD: whoever its listeners let in where both lists are empty, else whom they name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeAccess {
    /// Names in certificates, or `sha256:` and the 64 hexadecimal digits of a certificate's key.
    #[serde(default)]
    pub clients: Vec<String>,
    /// Addresses and networks, as in `192.0.2.7` and `2001:db8::/32`.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Whether clients of the unix socket may too, where there is a list: they have neither certificate nor address.
    #[serde(default)]
    pub local: bool,
    /// Nobody may change anything.
    #[serde(default)]
    pub read_only: bool,
    /// Nobody may at all: of a volume that this node was not told about, because it was promoted here or because the lists are lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nobody: bool,
}

impl VolumeAccess {
    /// Nobody may.
    pub fn nobody() -> Self {
        Self { nobody: true, ..Self::default() }
    }
}

/// A damaged sector that another node may have as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedSector {
    /// Where it is on the device, bytes.
    pub device_offset: u64,
    /// The volumes that show it, themselves or in a snapshot.
    pub volumes: Vec<ShownBy>,
    /// What its record says.
    pub record: SectorRecord,
}

/// What was written to a sector: as its record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SectorRecord {
    /// Which write it was.
    pub sequence: u64,
    /// CRC-32C of the ciphertext.
    pub checksum: u32,
    /// Tag, 32 hex digits.
    pub tag: String,
}

/// Asks for the ciphertext of a sector with exactly this record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FindSector {
    /// The volume; its snapshots are looked through too.
    pub volume: VolumeId,
    /// The sector.
    pub sector: u64,
    /// Its record.
    pub record: SectorRecord,
}

/// What became of a damaged sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healed {
    /// Whether it holds again what was written; otherwise it is not damaged any more, or the device did not take it.
    pub healed: bool,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// The snapshot.
    pub snapshot: VolumeId,
    /// The volume that it was taken of.
    pub volume: VolumeId,
    /// Its pool.
    pub pool: PoolId,
    /// When it was taken, seconds since 1970.
    pub created_unix_s: u64,
    /// Logical size in bytes.
    pub size_bytes: u64,
    /// Bytes of extents that it shows something of.
    pub referenced_bytes: u64,
    /// Bytes of extents that only it shows something of: deleting it gives them back.
    pub unique_bytes: u64,
    /// How many seconds it is still locked, of this node's running; absent where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_s: Option<u64>,
    /// Whether replication made it, and nobody has locked it or keeps it: it goes by itself, and with its volume.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub epoch: bool,
}

/// Asks for a snapshot of a volume as it is. Needs no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// The volume.
    pub volume: VolumeId,
    /// For how many seconds nobody can delete it; absent where anybody may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock_s: Option<u64>,
}

/// Asks for a snapshot to be locked, or for longer than it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockSnapshot {
    /// For how many seconds from now on, of this node's running.
    pub for_s: u64,
}

/// When snapshots of a volume are taken, or adopted of a replica, and which are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotSchedule {
    /// Seconds from one to the next, of this node's running.
    pub every_s: u64,
    /// How many are kept; what is locked is kept beside them.
    pub keep: u32,
    /// For how many seconds each is locked; 0 for not at all.
    #[serde(default)]
    pub lock_s: u64,
    /// From which part of what a snapshot shows, in percent, its being rewritten in the next is unusual.
    #[serde(default = "alert_rewritten_percent")]
    pub alert_rewritten_percent: u8,
}

fn alert_rewritten_percent() -> u8 {
    50
}

/// A snapshot schedule, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleStatus {
    /// The volume or replica.
    pub volume: VolumeId,
    /// What was asked for.
    pub schedule: SnapshotSchedule,
    /// The snapshots that it keeps, oldest first.
    pub snapshots: Vec<VolumeId>,
    /// When it took or adopted the last, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_unix_s: Option<u64>,
    /// How many seconds of running until the next.
    pub next_in_s: u64,
    /// Which part of what the last but one shows the last shows otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewritten_percent: Option<u8>,
    /// What was unusual and nobody has acknowledged: nothing is pruned meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anomaly: Option<RewriteAnomaly>,
    /// Why it does not do what it should; absent where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// How far volumes are at this node's peers, and theirs here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replication {
    /// The peers, as the configuration names them.
    pub peers: Vec<PeerStatus>,
    /// The volumes that were ever sent here.
    pub replicas: Vec<ReplicaStatus>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Where it is dialled; absent of a peer that only sends here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether this node is connected to it.
    pub connected: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The volumes that are sent to it.
    pub volumes: Vec<SentStatus>,
}

/// A volume on its way to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentStatus {
    /// The volume.
    pub volume: VolumeId,
    /// `up-to-date`, `sending`, `asking`, `waiting`, `away`, `stopped`, `refused`.
    pub state: String,
    /// Why the peer or this node refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// How old the state is that the peer has; 0 where it has all.
    pub lag_seconds: u64,
    /// What was written since, each sector as often as it was; where that is not known, what the volume holds.
    pub lag_bytes: u64,
    /// Epochs that it has not, with the one that is not closed.
    pub lag_epochs: usize,
    /// The number of the newest epoch that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_epoch: Option<u64>,
    /// How long ago that epoch was closed, seconds; absent where that was in an earlier run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_s_ago: Option<u64>,
    /// How much of the epoch on its way is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_percent: Option<u8>,
    /// Whether the peer is sent the difference to the newest epoch, because it was away or too slow for each.
    pub is_catching_up: bool,
}

/// A volume that a peer sends here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// The volume.
    pub volume: VolumeId,
    /// Whether it is still a replica: not promoted, not deleted.
    pub is_replica: bool,
    /// The highest fence of a writer seen; one with a lower is refused.
    pub fence: Fence,
    /// The newest snapshot that has arrived whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_snapshot: Option<VolumeId>,
    /// Its epoch's number, where replication made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_epoch: Option<u64>,
    /// When the primary took it, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_unix_s: Option<u64>,
    /// How long ago it arrived here, seconds; where that was in an earlier run, how long this one is.
    #[serde(default)]
    pub newest_age_s: u64,
    /// How long ago the peer that sends it was heard, seconds: that it is, while it is connected and may send, whether something is
    /// written or not. Where it was not in this run, how long that is.
    #[serde(default)]
    pub unheard_s: u64,
    /// Whether the configuration names a peer that may send it.
    #[serde(default)]
    pub is_expected: bool,
}

/// An unusual part of a volume was rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewriteAnomaly {
    /// The last snapshot before it.
    pub before: VolumeId,
    /// The first that shows it.
    pub snapshot: VolumeId,
    /// Which part.
    pub percent: u8,
    /// When it was noticed, seconds since 1970.
    pub at_unix_s: u64,
}

/// Asks for a volume that begins as a snapshot is, in the same key domain. Only the keyholder can: it keeps the name and
/// the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneSnapshot {
    /// A new random id.
    pub volume: VolumeId,
    /// What it may hold beside what it shares, and what is kept for it.
    #[serde(default)]
    pub limits: VolumeLimits,
}

/// What a snapshot is that is sent from one pool to another (STREAM.md of the pool).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotManifest {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot.
    pub snapshot: VolumeId,
    /// An older one, of which only the difference is sent.
    #[serde(default)]
    pub since: Option<VolumeId>,
    /// When it was taken, seconds since 1970.
    pub created_unix_s: u64,
    /// Logical size in bytes.
    pub size_bytes: u64,
    /// Key domain.
    pub domain: DomainId,
    /// Epoch of the domain's secret.
    pub epoch: VolumeEpoch,
    /// Key-check value, 32 hex digits.
    pub check: String,
    /// What the volume is for.
    pub kind: VolumeKind,
    /// Blocks of the cipher that have been encrypted under the domain and epoch.
    #[serde(default)]
    pub encrypted_blocks: u64,
}

/// Asks a pool to make ready for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receive {
    /// The pool for a new replica; the one with most free space where absent.
    #[serde(default)]
    pub pool: Option<PoolId>,
    /// What is to come.
    pub manifest: SnapshotManifest,
}

/// How far a snapshot has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// The sector that the next portion begins with; the size in sectors when all is there.
    pub next_sector: u64,
}

/// A replica that is a volume now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoted {
    /// The snapshot that it holds.
    pub snapshot: VolumeId,
    /// The volume.
    pub volume: VolumeStatus,
}

/// Asks for a volume to be what one of its snapshots shows. Needs no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// The snapshot.
    pub snapshot: VolumeId,
}

/// What a volume is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    /// A block device.
    Block,
    /// The object store.
    Objects,
}

/// Asks for another size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// Logical size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// Confirms that a smaller size discards what lies past it.
    #[serde(default)]
    pub allow_shrink: bool,
}

/// One bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// When it was made, seconds since 1970.
    pub created_unix_s: u64,
    /// The user who owns it; empty where all users share it.
    pub owner: String,
    /// Bytes of all versions and of unfinished uploads.
    pub bytes: u64,
    /// Versions of objects, delete markers counted.
    pub objects: u64,
}

/// Asks for a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateBucket {
    /// Its name, as S3 allows it.
    pub name: String,
}

/// A user's access key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessKey {
    /// The user.
    pub user: String,
    /// The key's public half.
    pub access_key: String,
    /// When it was made, seconds since 1970.
    pub created_unix_s: u64,
    /// When it ends, seconds since 1970; absent where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_s: Option<u64>,
}

/// Asks for a user with an access key, or for a further key of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateUser {
    /// The user's name.
    pub name: String,
    /// Seconds from now until the key ends; absent where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_s: Option<u64>,
}

impl CreateUser {
    /// For a key that does not end.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), expires_in_s: None }
    }
}

/// A new access key. The secret is shown here and never again.
#[derive(Clone, Serialize, Deserialize)]
pub struct CreatedAccessKey {
    /// The user.
    pub user: String,
    /// The key's public half.
    pub access_key: String,
    /// Its secret half.
    pub secret_key: String,
}

impl std::fmt::Debug for CreatedAccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedAccessKey").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// Who there is in the object store, and what they may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identities {
    /// Users, by name.
    pub users: Vec<User>,
    /// Groups, by name.
    pub groups: Vec<Group>,
    /// Policies, by name.
    pub policies: Vec<Policy>,
    /// Quotas of buckets and users.
    pub quotas: Vec<Quota>,
}

/// What a bucket, or everything that a user owns, may hold at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Whose.
    pub of: QuotaOf,
    /// Bytes; absent where that is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Versions of objects; absent where that is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<u64>,
}

/// Whose quota it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuotaOf {
    /// A bucket's.
    Bucket(String),
    /// That of all buckets that a user owns together.
    User(String),
}

/// A user of the object store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Name.
    pub name: String,
    /// Whether policies decide what the user may do; else it is what the user owns.
    pub limited: bool,
    /// Groups that the user belongs to.
    pub groups: Vec<String>,
    /// Policies attached to the user alone.
    pub policies: Vec<String>,
    /// Access keys, oldest first.
    pub access_keys: Vec<String>,
}

/// A group of users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Policies attached to it.
    pub policies: Vec<String>,
    /// Users who belong to it.
    pub members: Vec<String>,
}

/// A policy that can be attached to users and groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Name.
    pub name: String,
    /// The document, in the language of AWS.
    pub document: String,
}

/// A change of users, groups or policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case", deny_unknown_fields)]
pub enum IdentityChange {
    /// Makes an empty group.
    CreateGroup {
        /// Its name.
        group: String,
    },
    /// Deletes a group; its members stay users.
    DeleteGroup {
        /// Its name.
        group: String,
    },
    /// Makes a user a member of a group, or no longer.
    SetMember {
        /// The user.
        user: String,
        /// The group.
        group: String,
        /// Whether the user is to belong to it.
        member: bool,
    },
    /// Makes or replaces a policy.
    PutPolicy {
        /// Its name.
        policy: String,
        /// The document, in the language of AWS.
        document: String,
    },
    /// Deletes a policy that is attached to nobody.
    DeletePolicy {
        /// Its name.
        policy: String,
    },
    /// Attaches a policy to a user or a group, or takes it off.
    Attach {
        /// The policy.
        policy: String,
        /// To whom.
        to: Attached,
        /// Whether it is to be attached.
        attached: bool,
    },
    /// Sets a quota; without bytes and objects there is none any more.
    SetQuota {
        /// Whose.
        of: QuotaOf,
        /// Bytes at most.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
        /// Versions of objects at most.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        objects: Option<u64>,
    },
    /// Sets when an access key ends.
    Expire {
        /// The key's public half.
        access_key: String,
        /// Seconds from now; absent for never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        in_s: Option<u64>,
    },
}

/// Whom a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attached {
    /// A user.
    User(String),
    /// Every member of a group.
    Group(String),
}

/// Where notifications of buckets go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// What buckets' configurations call it.
    pub name: String,
    /// Whether the node's configuration still names it; nothing is sent where not.
    pub configured: bool,
    /// Notifications that are to be delivered.
    pub waiting: u64,
    /// Notifications that nobody took.
    pub dead: u64,
    /// Notifications that were delivered since the node was started.
    pub delivered: u64,
    /// When one was delivered last; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_delivered_unix_s: Option<u64>,
    /// Why the last attempt failed; absent where it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What to do with notifications that nobody took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case", deny_unknown_fields)]
pub enum WebhookChange {
    /// Delivers them once more.
    Retry {
        /// The webhook.
        webhook: String,
    },
    /// Drops them; of a webhook that is configured no more, those that wait as well.
    Discard {
        /// The webhook.
        webhook: String,
    },
}

/// What became of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookChanged {
    /// How many there were.
    pub notifications: u64,
}

/// What a wipe did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wiped {
    /// Keys that were lent.
    pub keys: usize,
    /// From the call to the last zero in memory, nanoseconds.
    pub wipe_ns: u64,
    /// Wipes so far.
    pub generation: u64,
}

/// An empty answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}
