//! The only door between clear and sealed bytes.

mod error;

use std::fmt;
use std::sync::Arc;

use keyring::{KeyHandle, Keyring};
use units::{ByteLen, ByteOffset};

pub use error::{ErrorKind, Operation, VolumeError};

/// When an acknowledged write must survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Durability {
    /// After the next successful [`Volume::flush`].
    Buffered,
    /// Before the call returns (FUA).
    Durable,
}

/// What [`Volume::write_zeroes`] may do with the space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroMode {
    /// Whole sectors become holes; the provider sees which.
    MayUnmap,
    /// Sealed zeros are written: space stays allocated and nothing is shown.
    KeepAllocated,
}

/// Whether a range holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Presence {
    /// Never written or unmapped: reads as zeros.
    Hole,
    /// Written.
    Data,
}

/// A volume with a lent key: the plaintext side's only way to storage. Cheap to clone; every call blocks and belongs
/// on a thread that may wait for a device. Any byte alignment is allowed.
#[derive(Clone)]
pub struct Volume {
    inner: Arc<Inner>,
}

struct Inner {
    keyring: Arc<Keyring>,
    key: KeyHandle,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume").field("key", &self.inner.key).finish_non_exhaustive()
    }
}

impl Volume {
    /// Size of the volume now; a resize changes it.
    pub fn len(&self) -> ByteLen {
        ByteLen(0)
    }

    /// Whether the volume has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == ByteLen(0)
    }

    /// Fills `out` from `at`. Holes read as zeros. On an error `out` holds nothing of use.
    pub fn read(&self, at: ByteOffset, out: &mut [u8]) -> Result<(), VolumeError> {
        self.checked(Operation::Read, at, ByteLen(out.len() as u64))
    }

    /// Writes `data` at `at`. Whole sectors are replaced atomically against other calls; a part of a sector is merged.
    pub fn write(&self, at: ByteOffset, data: &[u8], _durability: Durability) -> Result<(), VolumeError> {
        self.checked(Operation::Write, at, ByteLen(data.len() as u64))
    }

    /// Makes the range read as zeros.
    pub fn write_zeroes(
        &self,
        at: ByteOffset,
        len: ByteLen,
        _mode: ZeroMode,
        _durability: Durability,
    ) -> Result<(), VolumeError> {
        self.checked(Operation::WriteZeroes, at, len)
    }

    /// Gives whole sectors of the range back to the pool; they read as zeros. Partial sectors at the edges stay as they
    /// are: a trim is advice.
    pub fn trim(&self, at: ByteOffset, len: ByteLen, _durability: Durability) -> Result<(), VolumeError> {
        self.checked(Operation::Trim, at, len)
    }

    /// Returns once every write that was acknowledged before the call is durable.
    pub fn flush(&self) -> Result<(), VolumeError> {
        self.checked(Operation::Flush, ByteOffset(0), ByteLen(0))
    }

    /// Holes and data over the range, in order, covering it exactly.
    pub fn status(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<(ByteLen, Presence)>, VolumeError> {
        self.checked(Operation::Status, at, len)?;
        Ok(vec![(len, Presence::Hole)])
    }

    /// Whether the key is still lent; heads ask again before a reply leaves.
    pub fn check_key(&self) -> Result<(), keyring::KeyGone> {
        self.inner.keyring.check(self.inner.key)
    }

    fn checked(&self, operation: Operation, at: ByteOffset, len: ByteLen) -> Result<(), VolumeError> {
        self.check_key().map_err(|gone| VolumeError::new(operation, at, len, gone))?;
        let volume = self.len();
        match at.checked_add(len) {
            Some(end) if end.0 <= volume.0 => Ok(()),
            _ => Err(VolumeError::new(operation, at, len, error::Cause::OutOfRange { volume })),
        }
    }
}
