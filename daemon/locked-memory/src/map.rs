//! Address space for secrets: a locked, undumpable mapping between two guard pages.

use std::io;
use std::ptr::{self, NonNull};

use crate::error::{LockedMemoryError, Step};

/// `mseal(2)`, Linux 6.10: the same number on every architecture.
const SYS_MSEAL: libc::c_long = 462;

/// What stands behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryKind {
    /// `memfd_secret(2)`: pages outside the kernel's direct map; no debugger, core dump or `/proc/PID/mem` reads them, and
    /// the kernel zeroes them when the process is killed.
    MemfdSecret,
    /// Anonymous memory under `mlock(2)`: not swapped and not in core dumps, but readable by root, and freed pages are
    /// zeroed only when the kernel runs with `init_on_free=1`.
    Mlock,
}

impl MemoryKind {
    /// Name used in status and evidence.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MemfdSecret => "memfd_secret",
            Self::Mlock => "mlock",
        }
    }
}

/// What to do on a machine without secret memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Refuse. The default.
    RequireMemfdSecret,
    /// Use `mlock` there, because the operator allowed it by name.
    AllowMlock,
    /// Use `mlock` even where there is secret memory, so that a scanner outside of the process can see what a wipe leaves.
    MlockForInspection,
}

/// A locked read-write mapping of whole pages with an inaccessible page on either side.
///
/// Owned: unmapped on drop unless the kernel has sealed it.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// First usable byte, one page above the reservation's start.
    base: NonNull<u8>,
    len: usize,
    page: usize,
    kind: MemoryKind,
}

// SAFETY: the mapping is plain memory, valid from any thread; how it may be accessed concurrently is the business of
// its two users, `Arena` (atomics only) and `KeyStack` (one thread at a time under a mutex).
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` itself gives out only its base and length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps at least `len` bytes, rounded up to whole pages, zeroed.
    pub(crate) fn new(len: usize, policy: Policy) -> Result<Self, LockedMemoryError> {
        let page = page_bytes();
        let len = len.next_multiple_of(page);
        let reservation = reserve(len + 2 * page)?;
        // SAFETY: the reservation is two pages longer than `len`, so one page in is still inside it.
        let base = unsafe { reservation.add(page) };
        let mut mapping = Self { base, len, page, kind: MemoryKind::MemfdSecret };
        let secret = match policy {
            Policy::MlockForInspection => None,
            Policy::RequireMemfdSecret | Policy::AllowMlock => Some(mapping.map_secret()),
        };
        match secret {
            Some(Ok(())) => {}
            Some(Err(LockedMemoryError::NoSecretMemory(_))) if policy == Policy::AllowMlock => {
                mapping.lock_anonymous()?;
            }
            Some(Err(error)) => return Err(error),
            None => mapping.lock_anonymous()?,
        }
        mapping.advise(libc::MADV_DONTDUMP)?;
        mapping.advise(libc::MADV_DONTFORK)?;
        Ok(mapping)
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn kind(&self) -> MemoryKind {
        self.kind
    }

    /// Asks the kernel to refuse every later change of the mapping, guard pages included; says whether it did. A sealed
    /// mapping lasts until the process ends.
    pub(crate) fn seal(&self) -> bool {
        let (start, len) = self.reservation();
        // SAFETY: the system call reads its integer arguments only; the range is ours.
        unsafe { libc::syscall(SYS_MSEAL, start, len, 0) == 0 }
    }

    fn reservation(&self) -> (*mut u8, usize) {
        // SAFETY: the reservation begins one page below `base`.
        let start = unsafe { self.base.as_ptr().sub(self.page) };
        (start, self.len + 2 * self.page)
    }

    fn map_secret(&self) -> Result<(), LockedMemoryError> {
        // The manual says FD_CLOEXEC; the kernel takes O_CLOEXEC and answers EINVAL to the other.
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
        let Ok(fd) = libc::c_int::try_from(fd) else {
            return Err(LockedMemoryError::NoSecretMemory(io::Error::last_os_error()));
        };
        if fd < 0 {
            return Err(LockedMemoryError::NoSecretMemory(io::Error::last_os_error()));
        }
        let mapped = self.map_fd(fd);
        // Closed at once: whoever may steal descriptors (pidfd_getfd) finds none to map a second time.
        // SAFETY: `fd` was made above and nobody else knows it.
        unsafe { libc::close(fd) };
        mapped
    }

    fn map_fd(&self, fd: libc::c_int) -> Result<(), LockedMemoryError> {
        let Ok(len) = libc::off_t::try_from(self.len) else {
            return Err(self.system(Step::Resize, io::Error::from(io::ErrorKind::InvalidInput)));
        };
        // SAFETY: no pointers are passed.
        if unsafe { libc::ftruncate(fd, len) } != 0 {
            return Err(self.system(Step::Resize, io::Error::last_os_error()));
        }
        self.map_over(libc::MAP_SHARED, fd)
    }

    fn lock_anonymous(&mut self) -> Result<(), LockedMemoryError> {
        self.kind = MemoryKind::Mlock;
        self.map_over(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
        // SAFETY: the range was mapped just above.
        if unsafe { libc::mlock(self.base.as_ptr().cast(), self.len) } != 0 {
            return Err(self.system(Step::Lock, io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Replaces the middle of the reservation, which nobody has a reference into yet.
    fn map_over(&self, flags: libc::c_int, fd: libc::c_int) -> Result<(), LockedMemoryError> {
        // SAFETY: MAP_FIXED replaces pages of our own reservation only.
        let mapped = unsafe {
            libc::mmap(
                self.base.as_ptr().cast(),
                self.len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_FIXED,
                fd,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(self.system(Step::Map, io::Error::last_os_error()));
        }
        Ok(())
    }

    fn advise(&self, advice: libc::c_int) -> Result<(), LockedMemoryError> {
        // SAFETY: the range is mapped and ours; neither advice used here changes its contents.
        if unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, advice) } != 0 {
            return Err(self.system(Step::Advise, io::Error::last_os_error()));
        }
        Ok(())
    }

    fn system(&self, step: Step, source: io::Error) -> LockedMemoryError {
        system_error(step, self.len, source)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (start, len) = self.reservation();
        // A sealed mapping answers EPERM and stays until the process ends, zeroed by its owner: nothing to do about it.
        // SAFETY: the owner is being dropped, so no reference into the range is left.
        unsafe { libc::munmap(start.cast(), len) };
    }
}

fn reserve(len: usize) -> Result<NonNull<u8>, LockedMemoryError> {
    // SAFETY: a fresh inaccessible range at an address of the kernel's choosing.
    let start = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(system_error(Step::Reserve, len, io::Error::last_os_error()));
    }
    NonNull::new(start.cast())
        .ok_or_else(|| system_error(Step::Reserve, len, io::Error::from(io::ErrorKind::Other)))
}

fn system_error(step: Step, bytes: usize, source: io::Error) -> LockedMemoryError {
    // Secret memory counts as locked: over the limit, mmap answers EAGAIN, and mlock ENOMEM or EPERM.
    match (step, source.raw_os_error()) {
        (Step::Map, Some(libc::EAGAIN)) | (Step::Lock, Some(libc::ENOMEM | libc::EPERM | libc::EAGAIN)) => {
            LockedMemoryError::Limit { bytes, source }
        }
        _ => LockedMemoryError::System { step, bytes, source },
    }
}

pub(crate) fn page_bytes() -> usize {
    // SAFETY: no pointers are passed.
    let answer = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(answer).unwrap_or(4096)
}
