//! A pool: thin volumes on one device, without any key.
mod error;
use std::sync::Arc;

use device::{Device, DeviceInfo, Sealed};
use units::{ByteLen, DomainId, Fence, Lba, PoolId, SectorCount, VolumeEpoch, VolumeId};

pub use error::{Damage, PoolError, PoolErrorKind, SuperblockFault};

/// The version of the on-disk format that this crate reads and writes (FORMAT.md).
pub const FORMAT_VERSION: u32 = 1;
/// Most volumes in a pool.
pub const VOLUMES_MAX: u32 = 4096;
/// Most extents on a device.
pub const DEVICE_EXTENTS_MAX: u32 = 1 << 28;

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

/// How to make a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Unit of allocation: a power of two from 64 KiB to 64 MiB.
    pub extent_len: ByteLen,
    /// Length of the metadata log; by default 1/256 of the device, from 64 KiB to 16 MiB.
    pub log_len: Option<ByteLen>,
    /// Destroy what the device holds.
    pub force: bool,
    /// The pool's id; by default a random one.
    pub id: Option<PoolId>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self { extent_len: ByteLen(1 << 20), log_len: None, force: false, id: None }
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
    pub volumes: u64,
    /// The copy of the superblock that was damaged when the pool was opened, and was written again from the other.
    pub repaired: Option<RepairedSuperblock>,
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
    /// Extents allocated to it.
    pub allocated: ByteLen,
}

/// An open pool.
#[derive(Debug)]
pub struct Pool {}

#[expect(unused_variables, clippy::missing_errors_doc, reason = "interface ahead of its body")]
impl Pool {
    pub fn create(device: Arc<dyn Device>, options: CreateOptions) -> Result<Arc<Self>, PoolError> {
        unimplemented!()
    }
    pub fn open(device: Arc<dyn Device>) -> Result<Arc<Self>, PoolError> {
        unimplemented!()
    }
    pub fn info(&self) -> PoolInfo {
        unimplemented!()
    }
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        unimplemented!()
    }
    pub fn volume(&self, id: VolumeId) -> Result<Arc<PoolVolume>, PoolError> {
        unimplemented!()
    }
    pub fn create_volume(&self, spec: VolumeSpec) -> Result<Arc<PoolVolume>, PoolError> {
        unimplemented!()
    }
    pub fn delete_volume(&self, id: VolumeId) -> Result<(), PoolError> {
        unimplemented!()
    }
    pub fn resize_volume(&self, id: VolumeId, sectors: SectorCount) -> Result<(), PoolError> {
        unimplemented!()
    }
    /// Durable when it returns; refuses a fence that is not above the highest seen with `StaleFence`.
    pub fn raise_fence(&self, id: VolumeId, fence: Fence) -> Result<(), PoolError> {
        unimplemented!()
    }
    /// Uses what the device has become longer by. Returns the length in use.
    pub fn grow(&self) -> Result<ByteLen, PoolError> {
        unimplemented!()
    }
    pub fn flush(&self) -> Result<(), PoolError> {
        unimplemented!()
    }
}

/// Part of the answer to a read.
#[derive(Debug)]
pub enum Piece {
    /// Never written, or unmapped: reads as zeros.
    Hole(SectorCount),
    /// Ciphertext of consecutive sectors.
    Sealed { first: Lba, epoch: VolumeEpoch, data: Sealed },
}

/// An open volume: sectors of ciphertext.
#[derive(Debug)]
pub struct PoolVolume {}

#[expect(unused_variables, clippy::missing_errors_doc, reason = "interface ahead of its body")]
impl PoolVolume {
    pub fn id(&self) -> VolumeId {
        unimplemented!()
    }
    pub fn info(&self) -> VolumeInfo {
        unimplemented!()
    }
    pub fn sectors(&self) -> SectorCount {
        unimplemented!()
    }
    pub fn read(&self, first: Lba, count: SectorCount) -> Result<Vec<Piece>, PoolError> {
        unimplemented!()
    }
    pub fn write(&self, first: Lba, epoch: VolumeEpoch, data: &Sealed) -> Result<(), PoolError> {
        unimplemented!()
    }
    pub fn unmap(&self, first: Lba, count: SectorCount) -> Result<(), PoolError> {
        unimplemented!()
    }
    pub fn flush(&self) -> Result<(), PoolError> {
        unimplemented!()
    }
    /// Runs of (sectors, present) that cover the range in order.
    pub fn presence(&self, first: Lba, count: SectorCount) -> Result<Vec<(SectorCount, bool)>, PoolError> {
        unimplemented!()
    }
}
