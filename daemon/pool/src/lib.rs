//! A pool: thin volumes of ciphertext, their snapshots and clones, on one device, without any key.
//!
//! Invariants:
//! - A sector is a hole until a write of it has returned, on disk until that write and its presence are durable. What an
//!   extent held before is never shown.
//! - `flush` covers every write that was replied to before it. A failed one is final for the pool and its volumes.
//! - Making a snapshot or a clone copies and walks nothing. What it shows never changes.
//! - An extent is given out again only when its unmapping is durable and its last reader gone.
//! - Metadata has its space from the first day: deleting, trimming, shrinking and rolling back work on
//!   a full pool.
//! - After a power cut at any step ([`CrashStep`]) the pool opens as it was at its last flush, or newer.
//! - What is wrong on the device is an error that says what to do next; nothing is written before all of it is read.
//!
//! FORMAT.md draws the bytes. This crate cannot hold a key, and volumes have no names here but their random ids.

mod allocator;
mod blocks;
mod branch;
mod bytes;
mod ceilings;
mod changes;
mod check;
mod checkpoint;
mod commit;
mod digest;
mod entry;
mod epochs;
mod error;
mod extent;
mod fold;
mod heal;
mod held;
mod history;
mod holes;
mod layout;
mod load;
mod log;
mod placement;
mod pool;
mod presence;
mod probe;
mod records;
mod scrub;
mod snapshot;
mod steps;
mod superblock;
mod transfer;
mod volume;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use device::DeviceInfo;
use units::{ByteLen, ByteOffset, DomainId, Fence, Lba, PoolId, SectorCount, VolumeEpoch, VolumeId};

pub use ceilings::Ceilings;
pub use changes::{Change, Rewritten};
pub use check::CheckReport;
pub use digest::StateHead;
pub use epochs::EpochUse;
pub use error::{Damage, PoolError, PoolErrorKind, SuperblockFault};
pub use fold::FoldStep;
pub use heal::WantedSector;
pub use history::{Verdict, Witness};
pub use load::Problem;
pub use pool::Pool;
pub use scrub::{DamagedSector, Scrub, ScrubStep, SectorFault};
pub use steps::CrashStep;
pub use transfer::{Manifest, Portion};
pub use volume::{Piece, PoolVolume};

/// The version of the on-disk format that this crate reads and writes (FORMAT.md).
pub const FORMAT_VERSION: u32 = 6;
/// The oldest version that it reads, and brings to the present one by opening.
pub const FORMAT_VERSION_MIN: u32 = 1;
/// Most volumes and snapshots in a pool.
pub const VOLUMES_MAX: u32 = 4096;
/// Most extents on a device.
pub const DEVICE_EXTENTS_MAX: u32 = 1 << 28;

/// Blocks encrypted under one domain and epoch from which on a new epoch is due.
pub const ENCRYPTED_BLOCKS_DUE: u64 = blocks::DUE;
/// And from which on nothing is written under it any more.
pub const ENCRYPTED_BLOCKS_MAX: u64 = blocks::USED_UP;

/// Most branches that one volume or snapshot is made of: clones of snapshots of clones.
pub const LEVELS_MAX: usize = 10;

/// What a volume is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    /// Served as a block device.
    Block,
    /// Holds an object store.
    Objects,
}

/// A volume to be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    pub id: VolumeId,
    pub sectors: SectorCount,
    pub domain: DomainId,
    pub epoch: VolumeEpoch,
    /// The key-check value of (domain, epoch): tells a right key from a wrong one, and tells nothing about it.
    pub check: [u8; 16],
    pub kind: VolumeKind,
}

/// How much space a volume may have, its snapshots counted with it, in whole extents; and how fast it may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// No more than this; rounded down.
    pub quota: Option<ByteLen>,
    /// Kept free for it, whatever others write; rounded up.
    pub reserve: ByteLen,
    pub ceilings: Ceilings,
}

impl Limits {
    /// Zero is no quota.
    fn from_disk(ceilings: u64, quota: u64, reserve: u64) -> Self {
        Self {
            quota: (quota != 0).then_some(ByteLen(quota)),
            reserve: ByteLen(reserve),
            ceilings: Ceilings::from_disk(ceilings),
        }
    }
}

/// How to make a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Unit of allocation: a power of two from 64 KiB to 64 MiB.
    pub extent_len: ByteLen,
    /// Length of the log; by default 1/64 of the device, from 64 KiB to 64 MiB.
    pub log_len: Option<ByteLen>,
    /// Destroy what the device holds, but for snapshots that are locked.
    pub force: bool,
    /// Destroy them too.
    pub destroy_locked: bool,
    /// The pool's id; by default a random one.
    pub id: Option<PoolId>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self { extent_len: ByteLen(1 << 20), log_len: None, force: false, destroy_locked: false, id: None }
    }
}

/// Called immediately before each step of the crash order, in the thread that takes it.
pub type StepHook = Arc<dyn Fn(CrashStep) + Send + Sync>;

/// A sector that was read and is not what was written.
#[derive(Clone, Copy)]
pub struct FoundDamage<'a> {
    pub pool: PoolId,
    /// Where it is on the device, where that is what was read.
    pub at: Option<ByteOffset>,
    /// The volumes and snapshots that show it, as far as is known, and which of their sectors it is.
    pub shown_by: &'a [(VolumeId, Lba)],
    pub fault: &'a dyn fmt::Display,
}

impl fmt::Debug for FoundDamage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FoundDamage")
            .field("pool", &self.pool)
            .field("at", &self.at)
            .field("shown_by", &self.shown_by)
            .field("fault", &format_args!("{}", self.fault))
            .finish()
    }
}

/// Called for every damaged sector, in the thread that found it.
pub type DamageHook = Arc<dyn Fn(&FoundDamage<'_>) + Send + Sync>;

/// How to open a pool.
#[derive(Clone)]
pub struct OpenOptions {
    /// Memory for the records of sectors that are read: 64 MiB, those of 8 GiB, by default. A read beyond it reads a page
    /// more.
    pub record_cache: ByteLen,
    /// Told of every step of the crash order: for tests that cut power at each of them.
    pub on_step: Option<StepHook>,
    /// Told of every damaged sector that is read.
    pub on_damage: Option<DamageHook>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { record_cache: records::CACHE_LEN_DEFAULT, on_step: None, on_damage: None }
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("record_cache", &self.record_cache)
            .field("on_step", &self.on_step.is_some())
            .field("on_damage", &self.on_damage.is_some())
            .finish()
    }
}

/// The state of a pool, for status and messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    pub id: PoolId,
    pub format_version: u32,
    pub device: DeviceInfo,
    /// The device's length as the pool uses it; less than `device.len` where the pool can grow.
    pub used_len: ByteLen,
    pub extent_len: ByteLen,
    /// What volumes can hold together.
    pub capacity: ByteLen,
    /// What is allocated to them.
    pub allocated: ByteLen,
    /// What of the rest is reserved for some of them.
    pub reserved: ByteLen,
    pub volumes: u64,
    pub snapshots: u64,
    /// The copy of the superblock that was damaged when the pool was opened, and was written again from the other.
    pub repaired: Option<RepairedSuperblock>,
    /// Whether it keeps a record of every sector, to verify each by.
    pub keeps_records: bool,
    /// Sectors that were read since it was opened and were not what was written.
    pub damaged: u64,
    /// Whether a flush or metadata write has failed.
    pub failed: bool,
}

/// A copy of the superblock that was found damaged and was written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairedSuperblock {
    /// Its sector on the device.
    pub sector: u64,
    pub fault: SuperblockFault,
}

/// The state of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    pub id: VolumeId,
    pub sectors: SectorCount,
    pub domain: DomainId,
    pub epoch: VolumeEpoch,
    pub check: [u8; 16],
    pub kind: VolumeKind,
    /// The highest fence seen in a grant.
    pub fence: Fence,
    /// Extents allocated to it and to its snapshots.
    pub allocated: ByteLen,
    pub limits: Limits,
    /// The snapshot that it is a clone of.
    pub clone_of: Option<VolumeId>,
    /// Whether it takes only what another pool sends it, until it is promoted.
    pub replica: bool,
    /// Blocks of the cipher that have been encrypted under its domain and epoch in this pool, at most.
    pub encrypted_blocks: u64,
}

/// The state of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub id: VolumeId,
    /// The volume it was taken of, which may be deleted by now.
    pub volume: VolumeId,
    /// Seconds since 1970, as whoever took it said.
    pub created_s: u64,
    /// How long it is locked from when that was set; 0 where it is not. What counts the time ends the lock
    /// ([`Pool::end_lock`]).
    pub lock_s: u64,
    pub sectors: SectorCount,
    pub domain: DomainId,
    pub epoch: VolumeEpoch,
    pub kind: VolumeKind,
}

/// What a volume or snapshot uses, in whole extents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What it shows something of.
    pub referenced: ByteLen,
    /// What of it nobody else does: deleting it gives this back.
    pub unique: ByteLen,
}

/// What volumes and snapshots use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolUsage {
    pub of: BTreeMap<VolumeId, Usage>,
    /// What is allocated and nobody shows: it is being freed by the next flushes.
    pub unseen: ByteLen,
}

impl Usage {
    /// What others show as well.
    pub fn shared(&self) -> ByteLen {
        ByteLen(self.referenced.0 - self.unique.0)
    }
}
