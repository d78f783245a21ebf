//! What can go wrong at the door, as a small kind to match on, with what was being done and where.

use std::fmt;

use keyring::KeyGone;
use pool::{PoolError, PoolErrorKind};
use units::{ByteLen, ByteOffset, Lba, VolumeEpoch, VolumeId};

use crate::clear::{Damage, UnsealError};

/// What a head has to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The key was wiped, dropped or its lease ran out. A head does **not** answer the request: the client holds it
    /// and sends it again after the next push.
    KeyGone,
    /// The range leaves the volume. Nothing was touched.
    OutOfRange,
    /// The pool has no room. What was there before is unharmed.
    NoSpace,
    /// The device failed this request, or what it gave is not what was written; others may succeed.
    Io,
    /// The pool has failed and stays failed until it is opened again (a failed flush is never retried into success).
    Failed,
    /// The snapshot that was named is none of the volume's, or has been deleted.
    NoSuchSnapshot,
}

/// The operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Volume::read`](crate::Volume::read).
    Read,
    /// [`Volume::write`](crate::Volume::write).
    Write,
    /// [`Volume::write_zeroes`](crate::Volume::write_zeroes).
    WriteZeroes,
    /// [`Volume::trim`](crate::Volume::trim).
    Trim,
    /// [`Volume::flush`](crate::Volume::flush).
    Flush,
    /// [`Volume::status`](crate::Volume::status).
    Status,
    /// [`Volume::changes_since`](crate::Volume::changes_since).
    Changes,
    /// [`Volume::move_next`](crate::Volume::move_next).
    Rekey,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write zeroes",
            Self::Trim => "trim",
            Self::Flush => "flush",
            Self::Status => "block status",
            Self::Changes => "comparison with a snapshot",
            Self::Rekey => "sealing anew",
        })
    }
}

/// A failed volume operation: kind, operation, range and cause.
#[derive(Debug, thiserror::Error)]
#[error("{operation} of {len} at {at} failed")]
pub struct VolumeError {
    operation: Operation,
    at: ByteOffset,
    len: ByteLen,
    #[source]
    cause: Cause,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    #[error(transparent)]
    KeyGone(#[from] KeyGone),
    #[error("the range ends past the volume's {volume}; the client must ask for its size again")]
    OutOfRange { volume: ByteLen },
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error("there is no snapshot {0} of the volume; `nightlatch snapshot list` shows those there are")]
    NoSuchSnapshot(VolumeId),
    #[error(
        "{first} is sealed under epoch {found}, and the key that was granted is of epoch {granted}; push that epoch's key"
    )]
    ForeignEpoch { first: Lba, found: VolumeEpoch, granted: VolumeEpoch },
    #[error(
        "{first} is not what was written: {damage}; restore it from a snapshot, a replica or a backup, and check the device"
    )]
    Damaged { first: Lba, damage: Damage },
    #[error(
        "the pool answered a read of {asked} sectors from {first} with {got}; restart the node to open the pool again"
    )]
    ShortAnswer { first: Lba, asked: u64, got: u64 },
}

impl Cause {
    /// Whether what the device gives of a sector is not what was written, or nothing: others may be as they should.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Pool(error) => matches!(error.kind(), PoolErrorKind::Damaged | PoolErrorKind::Io),
            _ => false,
        }
    }
}

impl From<UnsealError> for Cause {
    fn from(error: UnsealError) -> Self {
        match error {
            UnsealError::KeyGone(gone) => Self::KeyGone(gone),
            UnsealError::Damaged { first, damage } => Self::Damaged { first, damage },
        }
    }
}

impl VolumeError {
    pub(crate) fn new(operation: Operation, at: ByteOffset, len: ByteLen, cause: impl Into<Cause>) -> Self {
        Self { operation, at, len, cause: cause.into() }
    }

    /// What a head decides by.
    pub fn kind(&self) -> ErrorKind {
        match &self.cause {
            Cause::KeyGone(_) => ErrorKind::KeyGone,
            Cause::OutOfRange { .. } => ErrorKind::OutOfRange,
            Cause::ForeignEpoch { .. } | Cause::Damaged { .. } => ErrorKind::Io,
            Cause::ShortAnswer { .. } => ErrorKind::Failed,
            Cause::NoSuchSnapshot(_) => ErrorKind::NoSuchSnapshot,
            Cause::Pool(error) => match error.kind() {
                PoolErrorKind::NoSpace => ErrorKind::NoSpace,
                PoolErrorKind::OutOfRange => ErrorKind::OutOfRange,
                // A deleted volume does not come back either.
                PoolErrorKind::Failed | PoolErrorKind::NoSuchVolume => ErrorKind::Failed,
                _ => ErrorKind::Io,
            },
        }
    }

    /// The operation that failed.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// The range that was asked for.
    pub fn range(&self) -> (ByteOffset, ByteLen) {
        (self.at, self.len)
    }
}
