//! Where ciphertext rests: a raw disk, a partition or a file, read and written in whole sectors.
//!
//! Invariants:
//! - A device takes [`Sealed`] or [`Metadata`], never bytes: nothing readable can be written by mistake. A `Sealed`
//!   comes out of the cipher or out of a device, a `Metadata` out of the pool's encoder or out of a device.
//! - Every transfer is whole sectors of 4096 bytes at a sector boundary, from a buffer aligned to a sector, so that
//!   the same code runs with O_DIRECT.
//! - A call returns with everything transferred or with an error: short transfers and interrupted calls are
//!   finished here.
//! - What `flush` has not covered may be lost, kept, reordered or torn by a power cut. A failed flush is final:
//!   the kernel may have dropped what it could not write, so no later flush may report success.
//! - One process at a time: the device is locked for as long as it is open.
//!
//! All calls block; callers run them off the executor. This crate knows nothing of pools, keys or plaintext.

#![expect(
    unsafe_code,
    reason = "sector-aligned buffers, and the ioctls that ask a block device for its length"
)]

mod buffer;
mod error;
mod file;
mod memory;
mod ring;
#[cfg(any(test, feature = "simulated"))]
mod simulated;

use std::fmt;

use units::{ByteLen, ByteOffset, SectorCount};

pub use buffer::{Metadata, Sealed, SealedSlice, SectorBuf, SectorRecord};
pub use error::{DeviceError, DeviceErrorKind, Operation};
pub use file::{Direct, FileDevice, OpenOptions};
#[cfg(any(test, feature = "simulated"))]
pub use nix::errno::Errno;
#[cfg(any(test, feature = "simulated"))]
pub use simulated::{Fault, SimulatedDevice, Survivors};

/// A range of sectors that keeps what is written to it, as far as `flush` was called after the write.
///
/// Offsets and lengths are whole sectors; anything else, or anything past the end, is
/// [`DeviceErrorKind::OutOfRange`] and touches nothing.
#[expect(
    clippy::len_without_is_empty,
    reason = "a device of no length is refused where it matters, by the pool"
)]
pub trait Device: Send + Sync + fmt::Debug {
    /// Usable length: whole sectors, as of opening or of the last [`Device::refresh_len`].
    fn len(&self) -> ByteLen;

    /// Asks the system again how long the device is, for growth, and uses the answer from here on.
    fn refresh_len(&self) -> Result<ByteLen, DeviceError>;

    /// What the device is and how it is accessed, for status and messages.
    fn info(&self) -> DeviceInfo;

    /// Reads `count` sectors of ciphertext.
    fn read(&self, at: ByteOffset, count: SectorCount) -> Result<Sealed, DeviceError>;

    /// Reads `count` sectors of pool metadata.
    fn read_metadata(&self, at: ByteOffset, count: SectorCount) -> Result<Metadata, DeviceError>;

    /// Writes ciphertext. Durable only after a later [`Device::flush`].
    fn write(&self, at: ByteOffset, data: SealedSlice<'_>) -> Result<(), DeviceError>;

    /// Writes pool metadata. Durable only after a later [`Device::flush`].
    fn write_metadata(&self, at: ByteOffset, data: &Metadata) -> Result<(), DeviceError>;

    /// Writes pool metadata with ciphertext right behind it, in one transfer where the device can.
    fn write_metadata_before(
        &self,
        at: ByteOffset,
        front: &Metadata,
        behind: &[SealedSlice<'_>],
    ) -> Result<(), DeviceError> {
        self.write_metadata(at, &front.followed_by(behind))
    }

    /// Writes all of these, each made of pieces one behind the other, in any order, together where the device can: none lies over
    /// another. After an error any of them may have been written.
    fn write_many(&self, parts: &[(ByteOffset, Vec<SealedSlice<'_>>)]) -> Result<(), DeviceError> {
        parts
            .iter()
            .try_for_each(|(at, pieces)| self.write(*at, Sealed::gathered(pieces.iter().copied()).as_slice()))
    }

    /// As [`Device::write_many`], of metadata.
    fn write_metadata_many(&self, parts: &[(ByteOffset, Metadata)]) -> Result<(), DeviceError> {
        parts.iter().try_for_each(|(at, data)| self.write_metadata(*at, data))
    }

    /// Reads all of these, together where the device can; in the order asked.
    fn read_metadata_many(&self, parts: &[(ByteOffset, SectorCount)]) -> Result<Vec<Metadata>, DeviceError> {
        parts.iter().map(|(at, count)| self.read_metadata(*at, *count)).collect()
    }

    /// Makes every write that returned before this call durable. After a failure every write and flush fails with
    /// [`DeviceErrorKind::Failed`] until the device is opened again.
    fn flush(&self) -> Result<(), DeviceError>;

    /// Tells the device that the range holds nothing of worth. Its content is undefined afterwards.
    /// [`DeviceErrorKind::Unsupported`] where the device has no such operation.
    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError>;

    /// Asks for space behind a range of a sparse file, so that writing there cannot run out of it later. Content
    /// is unchanged. Where there is nothing to reserve, on a disk or on a file system without it, this does nothing.
    fn reserve(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError>;
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A regular file.
    File,
    /// A disk, partition or mapped block device.
    Block,
    /// Memory that loses power on demand; in tests.
    Simulated,
}

/// What a device is and how it is accessed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The path it was opened by.
    pub path: String,
    pub kind: DeviceKind,
    pub len: ByteLen,
    /// Whether transfers bypass the page cache (O_DIRECT).
    pub direct: bool,
    /// Whether what comes in batches is transferred together (io_uring).
    pub batched: bool,
}
