//! What can go wrong in a pool. Messages say what to do next.

use std::sync::Arc;

use device::{DeviceError, DeviceErrorKind};
use units::{ByteLen, ByteOffset, Fence, Lba, PoolId, SectorCount, VolumeEpoch, VolumeId};

use crate::{DEVICE_EXTENTS_MAX, FORMAT_VERSION, LEVELS_MAX, VOLUMES_MAX};

/// An error of a pool or of a volume in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The device reported an error; nothing was acknowledged.
    #[error(transparent)]
    Device(DeviceError),

    /// An earlier flush or metadata write failed. Final for this pool and every volume in it until it is opened again.
    #[error(
        "the pool has failed and takes nothing more: what was written since the last flush may be lost. Check the \
         device (kernel log, smartctl), then restart nightlatchd to open the pool again; everything flushed before is \
         on the device. First failure: {0}"
    )]
    Failed(Arc<PoolError>),

    /// A thread ended in the middle of a metadata write; nobody knows how far it came.
    #[error("a thread ended in the middle of a metadata write; this is a bug, please report it with the log")]
    Interrupted,

    /// Every extent is in use.
    #[error("the pool is full: delete or trim volumes, or enlarge the device and run `nightlatch pool grow`")]
    NoSpace,

    #[error(
        "the volume has all the space that its quota allows: raise the quota, trim it, or delete snapshots of it"
    )]
    Quota,

    #[error("{0} is a snapshot, and snapshots take no writes: clone it and write to the clone")]
    ReadOnly(VolumeId),

    #[error(
        "{0} is a replica and takes only what is sent to it: promote it first, with `nightlatch volume promote`, when what \
         it is a replica of is gone or given up"
    )]
    Replica(VolumeId),

    #[error(
        "the key of {0} has encrypted 2^44 blocks, which is the most that it may: nothing more is written under it. Give \
         the volume a new one: `nightlatch volume rotate`"
    )]
    KeyUsedUp(VolumeId),

    #[error(
        "no snapshot has arrived whole in the replica {0}: promoted it would be empty. Nothing was changed; bring the volume \
         back from where it came from, or delete the replica"
    )]
    NothingArrived(VolumeId),

    #[error("{0} is no replica: what is sent is taken by a replica, or by a pool that has no such volume")]
    NotAReplica(VolumeId),

    #[error(
        "{volume} lacks the snapshot {since} that was sent from: send from one that both have, or the whole"
    )]
    NoCommonSnapshot { volume: VolumeId, since: VolumeId },

    #[error("what was sent does not fit {volume}: {what}. Nothing of it was taken; send it again")]
    BadPortion { volume: VolumeId, what: &'static str },

    #[error("{volume} receives nothing now, or another snapshot: begin again")]
    NotReceiving { volume: VolumeId },

    #[error(
        "{sector} of {volume} is not what was written and is not sent: restore it from the replica or a backup, or write \
         it anew and take another snapshot"
    )]
    DamagedSector { volume: VolumeId, sector: Lba },

    #[error("what was sent to heal the sector at {at} is not what its record says: nothing was written")]
    UnfitToHeal { at: ByteOffset },

    #[error(
        "{0} keeps no records and can send nothing that could be verified: copy the data to a new volume"
    )]
    NoRecords(PoolId),

    #[error("{0} is a snapshot: this is done to volumes. `nightlatch volume list` shows those there are")]
    NotAVolume(VolumeId),

    #[error("there is no snapshot {0} in the pool: `nightlatch snapshot list` shows those there are")]
    NoSuchSnapshot(VolumeId),

    #[error(
        "the snapshot {0} is locked: it is not deleted, and its lock not made shorter, before its time is over. `nightlatch \
         snapshot list` says when that is"
    )]
    SnapshotLocked(VolumeId),

    #[error(
        "{device} holds the pool {pool} with {snapshots} locked snapshots, whose time is not over. If they are to be destroyed \
         all the same, say so with `nightlatch pool create --force --destroy-locked-snapshots`"
    )]
    HoldsLocked { device: String, pool: PoolId, snapshots: u64 },

    #[error(
        "{snapshot} is no snapshot of {volume}: a volume is rolled back to its own; clone this one instead"
    )]
    ForeignSnapshot { volume: VolumeId, snapshot: VolumeId },

    #[error(
        "{snapshot} already is a clone of a clone, {} deep, which is the most: copy what is in it to a volume of its own",
        LEVELS_MAX
    )]
    TooManyLevels { snapshot: VolumeId },

    #[error(
        "the volume has had 16777216 snapshots in its life, which is the most: roll it back to a last one, or go on with \
         a clone"
    )]
    TooManySnapshots,

    #[error("{device} is empty: make a pool on it with `nightlatch pool create`")]
    NoPool { device: String },

    #[error(
        "{device} holds {found}, not a pool. If nothing on it is needed any more, make a pool there with `nightlatch \
         pool create --force`, which destroys what it holds"
    )]
    HoldsOtherData { device: String, found: &'static str },

    #[error(
        "{device} already holds the pool {pool}: open it, or, if nothing in it is needed any more, replace it with \
         `nightlatch pool create --force`"
    )]
    HoldsPool { device: String, pool: PoolId },

    #[error(
        "both copies of the superblock of {device} are damaged (first: {first}; second: {second}). Nothing was written. \
         Check that this is the right device and that it is healthy, and keep an image of it; then restore sector 0 \
         or sector {second_sector} from a backup of the first MiB, or recover the volumes from the replica"
    )]
    SuperblocksDamaged { device: String, first: SuperblockFault, second: SuperblockFault, second_sector: u64 },

    #[error(
        "the two copies of the superblock of {device} name different pools, {first} and {second}. Nothing was written. \
         Was one device copied over the start of another? Restore the right copy from a backup of the first MiB"
    )]
    SuperblocksDisagree { device: String, first: PoolId, second: PoolId },

    #[error(
        "{device} holds a pool of format version {found}, and this nightlatchd reads up to version {FORMAT_VERSION}. \
         Nothing was written: install the release that wrote it, or a newer one"
    )]
    NewerFormat { device: String, found: u32 },

    #[error(
        "{device} holds a pool with features this nightlatchd does not know (incompatible {incompat:#x}, read-only \
         compatible {ro_compat:#x}). Nothing was written: install the release that wrote it, or a newer one"
    )]
    UnknownFeatures { device: String, incompat: u64, ro_compat: u64 },

    #[error(
        "{device} has become shorter: the pool needs {recorded} and finds {found}. Nothing was written: give the \
         device its former length again, or recover the volumes from the replica"
    )]
    DeviceShrunk { device: String, recorded: ByteLen, found: ByteLen },

    #[error("{device} is too small for a pool: it has {found}, and {needed} is the least with these extents")]
    DeviceTooSmall { device: String, found: ByteLen, needed: ByteLen },

    #[error(
        "the device has more than {DEVICE_EXTENTS_MAX} extents of {extent}: choose larger extents when creating the pool"
    )]
    TooManyExtents { extent: ByteLen },

    #[error("{0} is no extent size: choose a power of two from 64K to 64M")]
    ExtentLen(ByteLen),

    #[error("{0} is no log size: choose whole sectors from 64K to 256M")]
    LogLen(ByteLen),

    #[error(
        "pool metadata is damaged: {what} at {at} of {device}. Nothing was written. Check the device (kernel log, \
         smartctl) and keep an image of it; `nightlatch pool check` lists everything that is wrong; recover the volumes \
         from the replica"
    )]
    MetadataDamaged { device: String, what: Damage, at: ByteOffset },

    #[error("there already is a volume {0} in the pool: volume ids are random and never reused")]
    VolumeExists(VolumeId),

    #[error("there is no volume {0} in the pool: `nightlatch volume list` shows those there are")]
    NoSuchVolume(VolumeId),

    #[error(
        "the pool holds {VOLUMES_MAX} volumes and snapshots, which is the most: delete one, or use another pool"
    )]
    TooManyVolumes,

    #[error("{} sectors is no volume size: choose 4 KiB to 1 PiB", .0.0)]
    VolumeSize(SectorCount),

    #[error("{first} and the next {} reach past the end of the volume, which has {} sectors", .count.0, .sectors.0)]
    OutOfRange { first: Lba, count: SectorCount, sectors: SectorCount },

    #[error("the volume is written under epoch {expected}, and this write was sealed under {given}")]
    WrongEpoch { expected: VolumeEpoch, given: VolumeEpoch },

    #[error(
        "volume {volume} is written under epoch {present} already, with another key: a volume's epochs only grow. Look whether \
         the keyholder's ledger was put back from an old backup"
    )]
    OldEpoch { volume: VolumeId, present: VolumeEpoch },

    #[error(
        "snapshot {snapshot} is sealed under more than one key, for its volume is being given a new one, and cannot be sent: \
         send one that is taken after `nightlatch volume rotate --show` says that nothing is left under an older one"
    )]
    TwoEpochs { snapshot: VolumeId },

    #[error(
        "fence {given} of volume {volume} is stale: {highest} has been seen. A newer grant exists; ask the keyholder for \
         its state"
    )]
    StaleFence { volume: VolumeId, given: Fence, highest: Fence },

    #[error(
        "the record of a sector is damaged, at {at} of {device}: the sector cannot be told from a forged one and is not \
         given out. Check the device (kernel log, smartctl); write the sector again, or recover it from the replica"
    )]
    RecordDamaged { device: String, at: ByteOffset },

    #[error(
        "a page of sector records, at {at} of {device}, is not the one that was last written there: it was put back from an \
         older state, or has been damaged. What it is about is not given out. Check the device (kernel log, smartctl) and who \
         could write to it; recover the sectors from the replica, or write them again"
    )]
    RecordsReplaced { device: String, at: ByteOffset },

    #[error("the log has no room left for a checkpoint; this is a bug, please report it with the log")]
    LogFull,

    #[error("the system's random source failed: {0}")]
    Random(getrandom::Error),
}

/// What is wrong with a copy of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockFault {
    #[error("all zero")]
    Empty,
    #[error("not a superblock")]
    Magic,
    #[error("wrong checksum")]
    Checksum,
    #[error("fields out of range")]
    Fields,
    #[error("the device could not read it")]
    Unreadable,
}

/// Which piece of metadata is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    #[error("an entry of the extent table with a wrong checksum")]
    ExtentEntry,
    #[error("an entry of the volume table with a wrong checksum")]
    VolumeEntry,
    #[error("an entry of the volume table with fields out of range")]
    VolumeFields,
    #[error("two volumes of the same id")]
    VolumeTwice,
    #[error("two extents for the same place in a volume")]
    ExtentTwice,
    #[error("a hole table that lacks a part")]
    HoleTable,
    #[error("a log block that was written whole once, for later ones follow it")]
    LogBlock,
    #[error("a log record that cannot be")]
    LogRecord,
    #[error("an extent of a volume that is held for free in memory")]
    ExtentFree,
    #[error("tables or digests that are not those of the last checkpoint")]
    Root,
    #[error("a page that a power cut left neither as it was nor as it was to become")]
    Page,
}

impl PoolError {
    /// What became of the request, for the layers that answer clients.
    pub fn kind(&self) -> PoolErrorKind {
        match self {
            Self::Failed(_) => PoolErrorKind::Failed,
            Self::NoSpace | Self::Quota => PoolErrorKind::NoSpace,
            Self::OutOfRange { .. } => PoolErrorKind::OutOfRange,
            Self::NoSuchVolume(_) | Self::NoSuchSnapshot(_) => PoolErrorKind::NoSuchVolume,
            Self::ReadOnly(_) => PoolErrorKind::ReadOnly,
            Self::SnapshotLocked(_) => PoolErrorKind::Locked,
            Self::StaleFence { .. } => PoolErrorKind::StaleFence,
            Self::RecordDamaged { .. } | Self::RecordsReplaced { .. } | Self::DamagedSector { .. } => {
                PoolErrorKind::Damaged
            }
            Self::Device(error) => match error.kind() {
                DeviceErrorKind::NoSpace => PoolErrorKind::NoSpace,
                DeviceErrorKind::Failed => PoolErrorKind::Failed,
                _ => PoolErrorKind::Io,
            },
            _ => PoolErrorKind::Refused,
        }
    }
}

impl From<DeviceError> for PoolError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoolErrorKind {
    /// Final: the pool takes nothing more until it is opened again.
    Failed,
    /// No extent is free, the quota is used up, or the file system below is full.
    NoSpace,
    /// Past the end of the volume.
    OutOfRange,
    /// Never was, or has been deleted.
    NoSuchVolume,
    /// A snapshot.
    ReadOnly,
    /// A grant older than one already seen.
    StaleFence,
    /// A snapshot whose time is not over.
    Locked,
    /// The device failed this transfer.
    Io,
    /// What the device holds of this sector is not what was written.
    Damaged,
    /// The request or the device's content was refused as it is; the message says why.
    Refused,
}
