//! A device in the file system: a regular file, a disk or a partition.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, Metadata as FileMetadata};
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, Flock, FlockArg, OFlag, fallocate, fcntl};
use nix::sys::uio::{pread, pwrite, pwritev};
use nix::unistd::{fdatasync, fsync};
use units::{ByteLen, ByteOffset, SECTOR_BYTES, SectorCount};

use crate::ring::{PIECES_AT_ONCE, Ring, Stop};
use crate::{
    Device, DeviceError, DeviceErrorKind, DeviceInfo, DeviceKind, Metadata, Operation, Sealed, SealedSlice,
    SectorBuf,
};

/// Whether transfers bypass the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// O_DIRECT where the device takes it in units of a sector, the page cache otherwise.
    #[default]
    Auto,
    /// Always through the page cache.
    Never,
}

/// How to open a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    pub direct: Direct,
    /// Create a sparse regular file of this length, which must not exist yet (an empty one may).
    pub create_len: Option<ByteLen>,
    /// Open a regular file though a loop device is over it, through which it may be mounted. A block device that is mounted or
    /// part of an array is never opened.
    pub behind_loop: bool,
}

mod ioctl {
    //! linux/fs.h.
    nix::ioctl_read!(block_length, 0x12, 114, u64);
    nix::ioctl_write_ptr_bad!(block_discard, nix::request_code_none!(0x12, 119), [u64; 2]);
}

/// An open file, disk or partition, locked against other processes for as long as it is open.
pub struct FileDevice {
    file: Flock<File>,
    path: Arc<str>,
    kind: DeviceKind,
    direct: bool,
    len_bytes: AtomicU64,
    /// For what comes in batches; without it they are done one by one.
    ring: Option<Ring>,
    /// The errno of the flush that failed. Set once, never cleared.
    failed_flush: OnceLock<Errno>,
}

impl fmt::Debug for FileDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileDevice").field("info", &self.info()).finish_non_exhaustive()
    }
}

impl FileDevice {
    /// Opens `path`, which is locked until the device is dropped.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self, DeviceError> {
        let shown: Arc<str> = path.as_ref().to_string_lossy().into();
        let device = Self::open_locked(path.as_ref(), &shown, options)?;
        if let Some(len) = options.create_len {
            device.create(path.as_ref(), len)?;
        }
        device.refresh_len()?;
        let mut device = match options.direct {
            Direct::Auto => device.with_direct_transfers()?,
            Direct::Never => device,
        };
        device.ring = Ring::new(&device.file);
        Ok(device)
    }

    fn open_locked(path: &Path, shown: &Arc<str>, options: OpenOptions) -> Result<Self, DeviceError> {
        // O_EXCL on a block device refuses one that is mounted or part of an array; on a file it means something
        // else, so the path is looked at first.
        let is_block = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
        let mut how = std::fs::OpenOptions::new();
        how.read(true)
            .write(true)
            .create(options.create_len.is_some() && !is_block)
            .truncate(false)
            .mode(0o600)
            .custom_flags(if is_block { libc::O_EXCL } else { 0 });
        let deadline = Instant::now() + LET_GO_TIMEOUT;
        let file = while_held(deadline, || how.open(path), |error| errno_of(error) == Errno::EBUSY).map_err(
            |error| {
                let operation =
                    if options.create_len.is_some() { Operation::Create } else { Operation::Open };
                DeviceError::from_errno(errno_of(&error), operation, shown)
            },
        )?;
        let metadata = file
            .metadata()
            .map_err(|error| DeviceError::from_errno(errno_of(&error), Operation::Open, shown))?;
        let kind = kind_of(&metadata)
            .ok_or_else(|| DeviceError::new(DeviceErrorKind::NotADevice, Operation::Open, shown))?;
        if kind == DeviceKind::File && !options.behind_loop && is_behind_loop(&metadata) {
            return Err(DeviceError::new(DeviceErrorKind::InUse, Operation::Open, shown));
        }
        let mut unlocked = Some(file);
        let lock = || {
            let file = unlocked.take().ok_or(Errno::EBADF)?;
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(file, errno)| {
                unlocked = Some(file);
                errno
            })
        };
        let file = while_held(deadline, lock, |errno| *errno == Errno::EAGAIN)
            .map_err(|errno| DeviceError::from_errno(errno, Operation::Lock, shown))?;
        Ok(Self {
            file,
            path: Arc::clone(shown),
            kind,
            direct: false,
            len_bytes: AtomicU64::new(0),
            ring: None,
            failed_flush: OnceLock::new(),
        })
    }

    /// Gives a new file its length, and makes file and name durable.
    fn create(&self, path: &Path, len: ByteLen) -> Result<(), DeviceError> {
        let failed = |errno| DeviceError::from_errno(errno, Operation::Create, &self.path);
        let found = self.file.metadata().map_err(|error| failed(errno_of(&error)))?;
        if self.kind != DeviceKind::File || found.len() != 0 {
            return Err(DeviceError::new(DeviceErrorKind::AlreadyExists, Operation::Create, &self.path));
        }
        self.file.set_len(len.0).map_err(|error| failed(errno_of(&error)))?;
        fsync(&*self.file).map_err(failed)?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = File::open(parent).map_err(|error| failed(errno_of(&error)))?;
        fsync(&directory).map_err(failed)
    }

    /// Turns O_DIRECT on, and off again where the device does not take transfers of one sector with it.
    fn with_direct_transfers(mut self) -> Result<Self, DeviceError> {
        if self.len() < ByteLen(SECTOR_BYTES as u64) {
            return Ok(self);
        }
        let failed = |errno| DeviceError::from_errno(errno, Operation::Open, &self.path);
        let flags = OFlag::from_bits_retain(fcntl(&*self.file, FcntlArg::F_GETFL).map_err(failed)?);
        if fcntl(&*self.file, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT)).is_err() {
            return Ok(self);
        }
        let mut probe = SectorBuf::zeroed(SectorCount(1));
        if pread(&*self.file, probe.as_mut_bytes(), 0) == Err(Errno::EINVAL) {
            fcntl(&*self.file, FcntlArg::F_SETFL(flags)).map_err(failed)?;
            return Ok(self);
        }
        self.direct = true;
        Ok(self)
    }

    /// The range as byte numbers, or the error that says that it is not one of this device's.
    fn check_range(&self, at: ByteOffset, len: ByteLen, operation: Operation) -> Result<(), DeviceError> {
        let inside = at.checked_add(len).is_some_and(|end| end.0 <= self.len().0);
        if inside && at.is_sector_aligned() && len.is_sector_aligned() {
            return Ok(());
        }
        Err(DeviceError::new(DeviceErrorKind::OutOfRange, operation, &self.path).at(at, len))
    }

    fn check_not_failed(&self, operation: Operation) -> Result<(), DeviceError> {
        match self.failed_flush.get() {
            None => Ok(()),
            Some(errno) => {
                Err(DeviceError::new(DeviceErrorKind::Failed, operation, &self.path).caused_by(*errno))
            }
        }
    }

    fn read_into_new(&self, at: ByteOffset, count: SectorCount) -> Result<SectorBuf, DeviceError> {
        let len = count.byte_len().unwrap_or(ByteLen(u64::MAX));
        self.check_range(at, len, Operation::Read)?;
        let mut buf = SectorBuf::to_fill(count);
        let bytes = buf.as_mut_bytes();
        transfer_all(at, bytes.len(), |done, offset| pread(&*self.file, &mut bytes[done..], offset))
            .map_err(|stop| self.transfer_error(&stop, Operation::Read, at, len))?;
        Ok(buf)
    }

    fn write_all(&self, at: ByteOffset, bytes: &[u8]) -> Result<(), DeviceError> {
        let len = ByteLen(bytes.len() as u64);
        self.check_not_failed(Operation::Write)?;
        self.check_range(at, len, Operation::Write)?;
        transfer_all(at, bytes.len(), |done, offset| pwrite(&*self.file, &bytes[done..], offset))
            .map_err(|stop| self.transfer_error(&stop, Operation::Write, at, len))
    }

    /// As [`Self::write_all`], of pieces one behind the other.
    fn write_gathered(&self, at: ByteOffset, pieces: &[&[u8]]) -> Result<(), DeviceError> {
        let len = len_of(pieces);
        self.check_not_failed(Operation::Write)?;
        self.check_range(at, len, Operation::Write)?;
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut left = &mut slices[..];
        let mut moved = 0;
        // What is longer than the system takes at once comes in several.
        transfer_all(at, usize::try_from(len.0).unwrap_or(usize::MAX), |_, offset| {
            IoSlice::advance_slices(&mut left, moved);
            moved = pwritev(&*self.file, &left[..left.len().min(PIECES_AT_ONCE)], offset)?;
            Ok(moved)
        })
        .map_err(|stop| self.transfer_error(&stop, Operation::Write, at, len))
    }

    fn write_all_of(&self, parts: &[(ByteOffset, Vec<&[u8]>)]) -> Result<(), DeviceError> {
        let Some(ring) = self.ring.as_ref().filter(|_| parts.len() > 1) else {
            return parts.iter().try_for_each(|(at, pieces)| self.write_gathered(*at, pieces));
        };
        self.check_not_failed(Operation::Write)?;
        parts.iter().try_for_each(|(at, pieces)| self.check_range(*at, len_of(pieces), Operation::Write))?;
        ring.write(parts).map_err(|(nth, stop)| {
            let (at, pieces) = &parts[nth];
            self.transfer_error(&stop, Operation::Write, *at, len_of(pieces))
        })
    }

    fn transfer_error(&self, stop: &Stop, operation: Operation, at: ByteOffset, len: ByteLen) -> DeviceError {
        match stop {
            Stop::Errno(errno) => DeviceError::from_errno(*errno, operation, &self.path),
            Stop::End => DeviceError::new(DeviceErrorKind::UnexpectedEnd, operation, &self.path),
        }
        .at(at, len)
    }
}

/// The kernel takes the ring of a process that has ended apart a moment later, and until its last transfer is over the file
/// stays held: it is waited for this long.
const LET_GO_TIMEOUT: Duration = Duration::from_secs(2);

/// Tries again until `deadline` while it fails because the file is held.
fn while_held<T, E>(
    deadline: Instant,
    mut attempt: impl FnMut() -> Result<T, E>,
    is_held: impl Fn(&E) -> bool,
) -> Result<T, E> {
    loop {
        match attempt() {
            Err(error) if is_held(&error) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            outcome => return outcome,
        }
    }
}

fn len_of(pieces: &[&[u8]]) -> ByteLen {
    ByteLen(pieces.iter().map(|piece| piece.len() as u64).sum())
}

/// Repeats `transfer(bytes done, file offset)` until `len` bytes are done: the system may transfer less than it was
/// asked to, or be interrupted by a signal.
fn transfer_all(
    at: ByteOffset,
    len: usize,
    mut transfer: impl FnMut(usize, libc::off_t) -> nix::Result<usize>,
) -> Result<(), Stop> {
    let mut done = 0;
    while done < len {
        let offset = i64::try_from(at.0 + done as u64).map_err(|_| Stop::Errno(Errno::EFBIG))?;
        match transfer(done, offset) {
            Ok(0) => return Err(Stop::End),
            Ok(moved) => done += moved,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Stop::Errno(errno)),
        }
    }
    Ok(())
}

impl Device for FileDevice {
    fn len(&self) -> ByteLen {
        ByteLen(self.len_bytes.load(Ordering::Acquire))
    }

    fn refresh_len(&self) -> Result<ByteLen, DeviceError> {
        let failed = |errno| DeviceError::from_errno(errno, Operation::MeasureLength, &self.path);
        let found = if self.kind == DeviceKind::Block {
            let mut len = 0;
            // SAFETY: the descriptor is open, and the kernel writes one u64 to the address of `len`.
            unsafe { ioctl::block_length(self.file.as_raw_fd(), &raw mut len) }.map_err(failed)?;
            len
        } else {
            self.file.metadata().map_err(|error| failed(errno_of(&error)))?.len()
        };
        let len = found - found % SECTOR_BYTES as u64;
        self.len_bytes.store(len, Ordering::Release);
        Ok(ByteLen(len))
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            path: self.path.to_string(),
            kind: self.kind,
            len: self.len(),
            direct: self.direct,
            batched: self.ring.is_some(),
        }
    }

    fn read(&self, at: ByteOffset, count: SectorCount) -> Result<Sealed, DeviceError> {
        self.read_into_new(at, count).map(Sealed::from_device)
    }

    fn read_metadata(&self, at: ByteOffset, count: SectorCount) -> Result<Metadata, DeviceError> {
        self.read_into_new(at, count).map(Metadata::from_device)
    }

    fn write(&self, at: ByteOffset, data: SealedSlice<'_>) -> Result<(), DeviceError> {
        self.write_all(at, data.as_bytes())
    }

    fn write_metadata(&self, at: ByteOffset, data: &Metadata) -> Result<(), DeviceError> {
        self.write_all(at, data.as_bytes())
    }

    fn write_metadata_before(
        &self,
        at: ByteOffset,
        front: &Metadata,
        behind: &[SealedSlice<'_>],
    ) -> Result<(), DeviceError> {
        let pieces: Vec<&[u8]> =
            std::iter::once(front.as_bytes()).chain(behind.iter().map(|piece| piece.as_bytes())).collect();
        self.write_gathered(at, &pieces)
    }

    fn write_many(&self, parts: &[(ByteOffset, Vec<SealedSlice<'_>>)]) -> Result<(), DeviceError> {
        let parts =
            parts.iter().map(|(at, pieces)| (*at, pieces.iter().map(|piece| piece.as_bytes()).collect()));
        self.write_all_of(&parts.collect::<Vec<_>>())
    }

    fn write_metadata_many(&self, parts: &[(ByteOffset, Metadata)]) -> Result<(), DeviceError> {
        self.write_all_of(&parts.iter().map(|(at, data)| (*at, vec![data.as_bytes()])).collect::<Vec<_>>())
    }

    fn read_metadata_many(&self, parts: &[(ByteOffset, SectorCount)]) -> Result<Vec<Metadata>, DeviceError> {
        let Some(ring) = self.ring.as_ref().filter(|_| parts.len() > 1) else {
            return parts.iter().map(|(at, count)| self.read_metadata(*at, *count)).collect();
        };
        let len = |count: SectorCount| count.byte_len().unwrap_or(ByteLen(u64::MAX));
        parts.iter().try_for_each(|(at, count)| self.check_range(*at, len(*count), Operation::Read))?;
        let mut bufs: Vec<SectorBuf> = parts.iter().map(|(_, count)| SectorBuf::to_fill(*count)).collect();
        let mut targets: Vec<(ByteOffset, &mut [u8])> =
            parts.iter().zip(&mut bufs).map(|((at, _), buf)| (*at, buf.as_mut_bytes())).collect();
        ring.read(&mut targets).map_err(|(nth, stop)| {
            let (at, count) = parts[nth];
            self.transfer_error(&stop, Operation::Read, at, len(count))
        })?;
        Ok(bufs.into_iter().map(Metadata::from_device).collect())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.check_not_failed(Operation::Flush)?;
        loop {
            match fdatasync(&*self.file) {
                // Two flushes may run at once, and the kernel reports a lost write to one of them only.
                Ok(()) => return self.check_not_failed(Operation::Flush),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    let first = *self.failed_flush.get_or_init(|| errno);
                    return Err(DeviceError::from_errno(first, Operation::Flush, &self.path)
                        .with_kind(DeviceErrorKind::Failed));
                }
            }
        }
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.check_not_failed(Operation::Discard)?;
        self.check_range(at, len, Operation::Discard)?;
        if len == ByteLen(0) {
            return Ok(());
        }
        let result = if self.kind == DeviceKind::Block {
            let range = [at.0, len.0];
            // SAFETY: the descriptor is open, and the kernel reads two u64 from the address of `range`.
            unsafe { ioctl::block_discard(self.file.as_raw_fd(), &raw const range) }.map(drop)
        } else {
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate_range(&self.file, punch, at, len)
        };
        result.map_err(|errno| DeviceError::from_errno(errno, Operation::Discard, &self.path).at(at, len))
    }

    fn reserve(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.check_not_failed(Operation::Reserve)?;
        self.check_range(at, len, Operation::Reserve)?;
        if self.kind == DeviceKind::Block || len == ByteLen(0) {
            return Ok(());
        }
        match fallocate_range(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, at, len) {
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
            Err(errno) => Err(DeviceError::from_errno(errno, Operation::Reserve, &self.path).at(at, len)),
        }
    }
}

fn fallocate_range(file: &File, flags: FallocateFlags, at: ByteOffset, len: ByteLen) -> nix::Result<()> {
    let too_big = |_| Errno::EFBIG;
    fallocate(file, flags, i64::try_from(at.0).map_err(too_big)?, i64::try_from(len.0).map_err(too_big)?)
}

fn kind_of(metadata: &FileMetadata) -> Option<DeviceKind> {
    let kind = metadata.file_type();
    if kind.is_file() {
        Some(DeviceKind::File)
    } else if kind.is_block_device() {
        Some(DeviceKind::Block)
    } else {
        None
    }
}

/// Whether a loop device is over this file. Where the system does not say, none is.
fn is_behind_loop(file: &FileMetadata) -> bool {
    let Ok(disks) = std::fs::read_dir("/sys/block") else { return false };
    disks.flatten().any(|disk| {
        let Ok(mut path) = std::fs::read(disk.path().join("loop/backing_file")) else { return false };
        path.pop_if(|last| *last == b'\n');
        let backing = std::fs::metadata(Path::new(OsStr::from_bytes(&path)));
        backing.is_ok_and(|backing| (backing.dev(), backing.ino()) == (file.dev(), file.ino()))
    })
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: ByteLen = ByteLen(1 << 20);

    fn create(path: &Path) -> FileDevice {
        FileDevice::open(path, OpenOptions { create_len: Some(MIB), ..OpenOptions::default() }).unwrap()
    }

    fn sealed(sectors: u64, fill: u8) -> Sealed {
        let mut buf = SectorBuf::zeroed(SectorCount(sectors));
        buf.as_mut_bytes().fill(fill);
        Sealed::from_device(buf)
    }

    #[test]
    fn what_is_written_is_read_back_direct_and_buffered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pool");
        drop(create(&path));
        for direct in [Direct::Auto, Direct::Never] {
            let device = FileDevice::open(&path, OpenOptions { direct, ..OpenOptions::default() }).unwrap();
            assert!(direct == Direct::Auto || !device.info().direct);
            let data = sealed(3, 0x5a);
            device.write(ByteOffset(8192), data.as_slice()).unwrap();
            device.flush().unwrap();
            assert_eq!(device.read(ByteOffset(8192), SectorCount(3)).unwrap().as_bytes(), data.as_bytes());
            assert_eq!(device.read(ByteOffset(4096), SectorCount(1)).unwrap().as_bytes(), [0; SECTOR_BYTES]);
            device.discard(ByteOffset(8192), ByteLen(4096)).unwrap();
            assert_eq!(device.read(ByteOffset(8192), SectorCount(1)).unwrap().as_bytes(), [0; SECTOR_BYTES]);
        }
    }

    #[test]
    fn a_new_file_is_sparse_private_and_of_the_length_asked_for() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pool");
        let len = ByteLen(1 << 40);
        let options = OpenOptions { create_len: Some(len), ..OpenOptions::default() };
        let device = FileDevice::open(&path, options).unwrap();
        assert_eq!(device.len(), len);
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert!(metadata.blocks() < 64);
    }

    #[test]
    fn creating_over_a_file_with_content_is_refused_and_leaves_it_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pool");
        std::fs::write(&path, b"precious").unwrap();
        let options = OpenOptions { create_len: Some(MIB), ..OpenOptions::default() };
        let error = FileDevice::open(&path, options).unwrap_err();
        assert_eq!(error.kind(), DeviceErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_second_opener_is_told_that_the_device_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pool");
        let first = create(&path);
        let error = FileDevice::open(&path, OpenOptions::default()).unwrap_err();
        assert_eq!(error.kind(), DeviceErrorKind::InUse);
        assert!(error.to_string().contains("already opened by another process"), "{error}");
        drop(first);
        FileDevice::open(&path, OpenOptions::default()).unwrap();
    }

    #[test]
    fn ranges_outside_or_unaligned_touch_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let device = create(&directory.path().join("pool"));
        let data = sealed(2, 1);
        for at in [MIB.0, MIB.0 - 4096, 512, u64::MAX - 4095] {
            let error = device.write(ByteOffset(at), data.as_slice()).unwrap_err();
            assert_eq!((error.kind(), error.operation()), (DeviceErrorKind::OutOfRange, Operation::Write));
            assert_eq!(
                device.read(ByteOffset(at), SectorCount(2)).unwrap_err().kind(),
                DeviceErrorKind::OutOfRange
            );
        }
        device.write(ByteOffset(MIB.0 - 8192), data.as_slice()).unwrap();
        assert!(device.read(ByteOffset(0), SectorCount(u64::MAX)).is_err());
    }

    #[test]
    fn growth_and_shrinking_are_seen_when_the_length_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pool");
        let device = create(&path);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(2 * MIB.0 + 5).unwrap();
        assert_eq!(device.len(), MIB);
        assert_eq!(device.refresh_len().unwrap(), ByteLen(2 * MIB.0));
        file.set_len(MIB.0 / 2).unwrap();
        let error = device.read(ByteOffset(MIB.0), SectorCount(1)).unwrap_err();
        assert_eq!(error.kind(), DeviceErrorKind::UnexpectedEnd);
        assert_eq!(device.refresh_len().unwrap(), ByteLen(MIB.0 / 2));
    }

    #[test]
    fn paths_that_cannot_hold_sectors_are_named_as_such() {
        let directory = tempfile::tempdir().unwrap();
        let open = |path: &Path| FileDevice::open(path, OpenOptions::default()).unwrap_err().kind();
        assert_eq!(open(&directory.path().join("absent")), DeviceErrorKind::NotFound);
        assert_eq!(open(directory.path()), DeviceErrorKind::NotADevice);
        assert_eq!(open(Path::new("/dev/null")), DeviceErrorKind::NotADevice);
    }

    /// A loop device, and the file that it is over; gone when dropped.
    struct LoopDevice(String, std::path::PathBuf);

    impl LoopDevice {
        /// `None` where this user may not make one.
        fn over(file: &Path) -> Option<Self> {
            let made =
                std::process::Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
            let disk = || String::from_utf8(made.stdout).unwrap().trim().to_owned();
            made.status.success().then(|| Self(disk(), file.to_owned()))
        }
    }

    impl Drop for LoopDevice {
        fn drop(&mut self) {
            let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
            // Whoever looks at every new disk may have it open: it goes when he is done.
            let deadline = Instant::now() + Duration::from_secs(60);
            let is_there = || std::fs::metadata(&self.1).is_ok_and(|file| is_behind_loop(&file));
            while is_there() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn a_block_device_is_measured_written_and_held_exclusively() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        File::create(&path).unwrap().set_len(MIB.0).unwrap();
        let Some(disk) = LoopDevice::over(&path) else {
            println!("not run: making a loop device takes root and losetup");
            return;
        };
        let device = FileDevice::open(&disk.0, OpenOptions::default()).unwrap();
        assert_eq!((device.len(), device.info().kind), (MIB, DeviceKind::Block));
        let second = FileDevice::open(&disk.0, OpenOptions::default()).unwrap_err();
        assert_eq!(second.kind(), DeviceErrorKind::InUse);
        let created =
            FileDevice::open(&disk.0, OpenOptions { create_len: Some(MIB), ..OpenOptions::default() });
        assert!(created.is_err());
        let data = sealed(2, 0x77);
        device.write(ByteOffset(4096), data.as_slice()).unwrap();
        device.flush().unwrap();
        assert_eq!(device.read(ByteOffset(4096), SectorCount(2)).unwrap().as_bytes(), data.as_bytes());
        device.reserve(ByteOffset(0), MIB).unwrap();
        device.discard(ByteOffset(4096), ByteLen(4096)).unwrap();
        assert_eq!(device.read(ByteOffset(8192), SectorCount(1)).unwrap().as_bytes()[0], 0x77);
        drop(device);
        FileDevice::open(&disk.0, OpenOptions::default()).unwrap();
    }

    #[test]
    fn a_file_that_a_loop_device_is_over_is_opened_by_force_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        drop(create(&path));
        let Some(disk) = LoopDevice::over(&path) else {
            println!("not run: making a loop device takes root and losetup");
            return;
        };
        let error = FileDevice::open(&path, OpenOptions::default()).unwrap_err();
        assert_eq!(error.kind(), DeviceErrorKind::InUse);
        assert!(error.to_string().contains("losetup -j"), "{error}");
        let by_force = OpenOptions { behind_loop: true, ..OpenOptions::default() };
        drop(FileDevice::open(&path, by_force).unwrap());
        drop(disk);
        FileDevice::open(&path, OpenOptions::default()).unwrap();
    }

    #[test]
    fn short_and_interrupted_transfers_are_finished() {
        let mut answers = vec![Ok(4096), Err(Errno::EINTR), Ok(512), Ok(3584)].into_iter();
        let mut calls = Vec::new();
        let result = transfer_all(ByteOffset(100 * 4096), 8192, |done, offset| {
            calls.push((done, offset));
            answers.next().unwrap()
        });
        assert_eq!(result, Ok(()));
        assert_eq!(calls, [(0, 409_600), (4096, 413_696), (4096, 413_696), (4608, 414_208)]);
        assert_eq!(transfer_all(ByteOffset(0), 1, |_, _| Ok(0)), Err(Stop::End));
        let failed = transfer_all(ByteOffset(0), 1, |_, _| Err(Errno::EIO));
        assert_eq!(failed, Err(Stop::Errno(Errno::EIO)));
    }
}
