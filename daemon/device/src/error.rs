//! What can go wrong at a device: a small kind to match on, with operation, place, path and errno beside it.

use std::fmt;
use std::sync::Arc;

use nix::errno::Errno;
use units::{ByteLen, ByteOffset};

/// What the caller can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceErrorKind {
    /// Another process holds the device, or it is mounted.
    InUse,
    /// No such file or device.
    NotFound,
    /// A file was to be created where there already is something.
    AlreadyExists,
    /// The system does not let this process open the device.
    PermissionDenied,
    /// The path names a directory, a socket or something else that cannot hold sectors.
    NotADevice,
    /// Unaligned, or past the end.
    OutOfRange,
    /// No space behind a sparse file or a thin device.
    NoSpace,
    /// The device is shorter than it was when it was opened.
    UnexpectedEnd,
    /// The device or the file system does not have this operation.
    Unsupported,
    /// An earlier flush failed: what was written since the one before it may be gone.
    Failed,
    /// The transfer failed.
    Io,
}

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Open,
    Lock,
    MeasureLength,
    Read,
    Write,
    Flush,
    Discard,
    Reserve,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Open => "open",
            Self::Lock => "lock",
            Self::MeasureLength => "measure the length of",
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::Reserve => "reserve",
        })
    }
}

/// A failed operation, with all that is known of where and why.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceError {
    kind: DeviceErrorKind,
    operation: Operation,
    path: Arc<str>,
    range: Option<(ByteOffset, ByteLen)>,
    errno: Option<Errno>,
}

impl DeviceError {
    pub(crate) fn new(kind: DeviceErrorKind, operation: Operation, path: &Arc<str>) -> Self {
        Self { kind, operation, path: Arc::clone(path), range: None, errno: None }
    }

    /// An error the system reported; the kind follows from the errno.
    pub(crate) fn from_errno(errno: Errno, operation: Operation, path: &Arc<str>) -> Self {
        let kind = match errno {
            Errno::ENOENT | Errno::ENXIO | Errno::ENODEV | Errno::ENOTDIR => DeviceErrorKind::NotFound,
            Errno::EEXIST => DeviceErrorKind::AlreadyExists,
            Errno::EACCES | Errno::EPERM | Errno::EROFS => DeviceErrorKind::PermissionDenied,
            Errno::EBUSY | Errno::EWOULDBLOCK => DeviceErrorKind::InUse,
            Errno::EISDIR => DeviceErrorKind::NotADevice,
            Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => DeviceErrorKind::NoSpace,
            Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::ENOSYS => DeviceErrorKind::Unsupported,
            _ => DeviceErrorKind::Io,
        };
        Self { errno: Some(errno), ..Self::new(kind, operation, path) }
    }

    pub(crate) fn with_kind(self, kind: DeviceErrorKind) -> Self {
        Self { kind, ..self }
    }

    pub(crate) fn at(self, at: ByteOffset, len: ByteLen) -> Self {
        Self { range: Some((at, len)), ..self }
    }

    pub(crate) fn caused_by(self, errno: Errno) -> Self {
        Self { errno: Some(errno), ..self }
    }

    /// What the caller can tell apart.
    pub fn kind(&self) -> DeviceErrorKind {
        self.kind
    }

    /// What was being done.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// Where on the device, for transfers.
    pub fn range(&self) -> Option<(ByteOffset, ByteLen)> {
        self.range
    }

    /// The system's error number, where the system reported one.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.errno.map(|errno| errno as i32)
    }

    fn advice(&self) -> &'static str {
        match self.kind {
            DeviceErrorKind::InUse => {
                "it is already opened by another process, mounted, or has a loop device over it: stop that nightlatchd, unmount \
                 it or detach the loop device (`fuser -v`, `lsblk` or `losetup -j` shows who), or name another device"
            }
            DeviceErrorKind::NotFound => "there is no such device: check the path and the cabling",
            DeviceErrorKind::AlreadyExists => {
                "there already is a file of that name: leave out the size to use it, or choose another name"
            }
            DeviceErrorKind::PermissionDenied => {
                "run as a user who may write to the device, or give the service access to it"
            }
            DeviceErrorKind::NotADevice => "name a regular file, a disk or a partition",
            DeviceErrorKind::OutOfRange => {
                "the range is unaligned or past the end of the device; nothing was transferred"
            }
            DeviceErrorKind::NoSpace => {
                "no space is left behind the device: free space on the file system that holds it"
            }
            DeviceErrorKind::UnexpectedEnd => {
                "the device has become shorter: restore its former length before opening it again"
            }
            DeviceErrorKind::Unsupported => "the device or its file system does not support the operation",
            DeviceErrorKind::Failed => {
                "an earlier flush failed, so what was written before it may be lost: check the device (kernel log, \
                 smartctl), then restart nightlatchd to open it again"
            }
            DeviceErrorKind::Io => "check the device (kernel log, smartctl)",
        }
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} ", self.operation)?;
        if let Some((at, len)) = self.range {
            write!(f, "{len} at {at} of ")?;
        }
        f.write_str(&self.path)?;
        if let Some(errno) = self.errno {
            write!(f, ": {} ({errno:?})", errno.desc())?;
        }
        write!(f, "; {}", self.advice())
    }
}

impl fmt::Debug for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceError({:?}: {self})", self.kind)
    }
}

impl std::error::Error for DeviceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.errno.as_ref().map(|errno| errno as _)
    }
}
