//! What the store needs from the volume below it: bytes at offsets, a flush, a trim, and the word whether the key
//! is still lent.
//!
//! [`sealing::Volume`] is the one that ships. The trait exists so that the store's crash tests can put a volume under it
//! that forgets, reorders and tears on purpose, without a key in the test.
//!
//! Invariants every implementation keeps:
//! - A `write` that returned is read back by every later `read`, from any thread.
//! - A `flush` that returned has made every write and trim that returned before it durable; one that failed makes every
//!   later flush fail.
//! - No call returns data, or success, after the key is gone.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use sealing::{Durability, ErrorKind, Presence, Volume, VolumeError, ZeroMode};
use units::{ByteLen, ByteOffset};

/// What the store has to tell apart when the volume fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockErrorKind {
    /// The key was wiped or its lease ran out.
    KeyGone,
    /// The pool has no room; what was there is unharmed.
    NoSpace,
    /// The device failed this request; others may succeed.
    Io,
    /// The volume failed and stays failed, or was asked for a range that it does not have.
    Failed,
}

/// A failed volume operation.
#[derive(Clone, Debug)]
pub struct BlockError {
    kind: BlockErrorKind,
    source: Arc<dyn Error + Send + Sync>,
}

impl BlockError {
    /// An error of `kind` that `source` explains.
    pub fn new(kind: BlockErrorKind, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind, source: Arc::from(source.into()) }
    }

    /// What to decide by.
    pub fn kind(&self) -> BlockErrorKind {
        self.kind
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            BlockErrorKind::KeyGone => "the volume's key is gone",
            BlockErrorKind::NoSpace => "the pool under the volume is full",
            BlockErrorKind::Io => "the device failed the request",
            BlockErrorKind::Failed => "the volume has failed",
        })
    }
}

impl Error for BlockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

impl From<VolumeError> for BlockError {
    fn from(error: VolumeError) -> Self {
        let kind = match error.kind() {
            ErrorKind::KeyGone => BlockErrorKind::KeyGone,
            ErrorKind::NoSpace => BlockErrorKind::NoSpace,
            ErrorKind::Io => BlockErrorKind::Io,
            // Nothing here names a snapshot.
            ErrorKind::OutOfRange | ErrorKind::Failed | ErrorKind::NoSuchSnapshot => BlockErrorKind::Failed,
        };
        Self::new(kind, error)
    }
}

/// A byte-addressed thin volume. Every call blocks.
pub trait BlockVolume: fmt::Debug + Send + Sync + 'static {
    /// Size now; a resize changes it.
    fn len(&self) -> ByteLen;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == ByteLen(0)
    }

    /// Fills `out` from `at`; what was never written reads as zeros.
    fn read(&self, at: ByteOffset, out: &mut [u8]) -> Result<(), BlockError>;

    /// Writes `data` at `at`; durable after the next flush.
    fn write(&self, at: ByteOffset, data: &[u8]) -> Result<(), BlockError>;

    /// Writes zeros that take up space in the pool.
    fn write_allocated_zeros(&self, at: ByteOffset, len: ByteLen) -> Result<(), BlockError>;

    /// Gives whole sectors back to the pool.
    fn trim(&self, at: ByteOffset, len: ByteLen) -> Result<(), BlockError>;

    /// Makes everything durable that was acknowledged before.
    fn flush(&self) -> Result<(), BlockError>;

    /// Which parts of the range take up space (`true`), in order, covering it exactly.
    fn allocated(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<(ByteLen, bool)>, BlockError>;

    /// Whether the key is still lent; cheap.
    fn check_key(&self) -> Result<(), BlockError>;
}

impl BlockVolume for Volume {
    fn len(&self) -> ByteLen {
        Volume::len(self)
    }

    fn read(&self, at: ByteOffset, out: &mut [u8]) -> Result<(), BlockError> {
        Ok(Volume::read(self, at, out)?)
    }

    fn write(&self, at: ByteOffset, data: &[u8]) -> Result<(), BlockError> {
        Ok(Volume::write(self, at, data, Durability::Buffered)?)
    }

    fn write_allocated_zeros(&self, at: ByteOffset, len: ByteLen) -> Result<(), BlockError> {
        Ok(self.write_zeroes(at, len, ZeroMode::KeepAllocated, Durability::Buffered)?)
    }

    fn trim(&self, at: ByteOffset, len: ByteLen) -> Result<(), BlockError> {
        Ok(Volume::trim(self, at, len, Durability::Buffered)?)
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(Volume::flush(self)?)
    }

    fn allocated(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<(ByteLen, bool)>, BlockError> {
        Ok(self
            .status(at, len)?
            .into_iter()
            .map(|(len, presence)| (len, presence == Presence::Data))
            .collect())
    }

    fn check_key(&self) -> Result<(), BlockError> {
        Volume::check_key(self).map_err(|gone| BlockError::new(BlockErrorKind::KeyGone, gone))
    }
}
