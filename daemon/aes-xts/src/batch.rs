//! The interface: a run of sectors, in place or from one buffer into another.

use crate::kernel::Kernel;
use crate::schedule::XtsSchedule;
use crate::scratch::Scratch;

/// Bytes in an AES block.
pub const BLOCK_BYTES: usize = 16;

/// Smallest data unit: what the oldest disks call a sector.
pub const SECTOR_BYTES_MIN: usize = 512;

/// Largest data unit. IEEE 1619 allows 16 MiB; nobody here needs more than a large page, and the bound keeps a sector's
/// time in microseconds.
pub const SECTOR_BYTES_MAX: usize = 64 * 1024;

/// Which way a batch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Clear to sealed.
    Encrypt,
    /// Sealed to clear.
    Decrypt,
}

/// How a run of bytes is divided: data units of `bytes` bytes, the first of which has the number `first`.
///
/// Numbers count up and wrap at 2^128; the tweak is the number as 128 bits, little-endian (IEEE 1619-2018, 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sectors {
    /// Number of the first sector.
    pub first: u128,
    /// Bytes in each: 512 to 65,536, a multiple of 16. There is no ciphertext stealing.
    pub bytes: usize,
}

/// Why a batch was refused. Nothing was read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The sector size is no multiple of the block: that would need ciphertext stealing, which is left out on purpose.
    #[error(
        "a sector of {0} bytes is not a multiple of 16: use whole blocks, there is no ciphertext stealing"
    )]
    BrokenBlock(usize),
    /// The sector size is out of bounds.
    #[error("a sector of {0} bytes is out of bounds: use 512 to 65536")]
    SectorSize(usize),
    /// The data are not whole sectors.
    #[error("{bytes} bytes are not whole sectors of {sector}: pad or split them")]
    BrokenSector {
        /// Bytes given.
        bytes: usize,
        /// Bytes in a sector.
        sector: usize,
    },
    /// There is not one sequence and one record for every sector.
    #[error("{given} sequences or records were given for {sectors} sectors: give one for each")]
    Records {
        /// Number given.
        given: usize,
        /// Number of sectors.
        sectors: usize,
    },
    /// Source and destination differ in length.
    #[error("the source has {from} bytes and the destination {into}: give the same number")]
    Lengths {
        /// Bytes of the source.
        from: usize,
        /// Bytes of the destination.
        into: usize,
    },
}

/// A checked batch, as the kernels take it.
pub(crate) struct Job<'a> {
    pub(crate) schedule: &'a XtsSchedule,
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(dead_code, reason = "the portable kernel keeps tweaks in registers")
    )]
    pub(crate) scratch: &'a Scratch,
    pub(crate) encrypt: bool,
    pub(crate) first_sector: u128,
    pub(crate) sector_bytes: usize,
    pub(crate) sectors: usize,
    /// Readable for `sectors * sector_bytes`; equal to `target` or apart from it.
    pub(crate) source: *const u8,
    /// Writable for as much.
    pub(crate) target: *mut u8,
}

impl Job<'_> {
    /// `count` sectors from the one at `begin`.
    ///
    /// # Safety
    /// The job has them.
    pub(crate) unsafe fn part(&self, begin: usize, count: usize) -> Self {
        let at = begin * self.sector_bytes;
        Self {
            first_sector: self.first_sector.wrapping_add(begin as u128),
            sectors: count,
            source: self.source.wrapping_add(at),
            target: self.target.wrapping_add(at),
            ..*self
        }
    }

    /// Round keys of the data in the order of use, for the kernels' machine code.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) fn data_keys(&self) -> *const u8 {
        if self.encrypt {
            self.schedule.cipher_encrypt().as_ptr()
        } else {
            self.schedule.cipher_decrypt().as_ptr()
        }
    }
}

/// A key as it is lent: schedule, scratch and the kernel to use, together for the length of one use.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "a key has nothing to print")]
pub struct Cipher<'a> {
    pub(crate) kernel: Kernel,
    schedule: &'a XtsSchedule,
    scratch: &'a Scratch,
}

impl<'a> Cipher<'a> {
    /// Puts the three together. The scratch is this use's alone.
    pub fn new(kernel: Kernel, schedule: &'a XtsSchedule, scratch: &'a Scratch) -> Self {
        Self { kernel, schedule, scratch }
    }

    /// A batch from what was asked, if its lengths are right. `source` is readable and `target` writable for `len`, the same
    /// or apart: every caller has slices of that length.
    pub(crate) fn job(
        self,
        direction: Direction,
        sectors: Sectors,
        (source, target, len): (*const u8, *mut u8, usize),
    ) -> Result<Job<'a>, BatchError> {
        if !sectors.bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(BatchError::BrokenBlock(sectors.bytes));
        }
        if !(SECTOR_BYTES_MIN..=SECTOR_BYTES_MAX).contains(&sectors.bytes) {
            return Err(BatchError::SectorSize(sectors.bytes));
        }
        if !len.is_multiple_of(sectors.bytes) {
            return Err(BatchError::BrokenSector { bytes: len, sector: sectors.bytes });
        }
        Ok(Job {
            schedule: self.schedule,
            scratch: self.scratch,
            encrypt: direction == Direction::Encrypt,
            first_sector: sectors.first,
            sector_bytes: sectors.bytes,
            sectors: len / sectors.bytes,
            source,
            target,
        })
    }

    /// As [`Kernel::apply`].
    ///
    /// # Errors
    /// As [`Kernel::apply`].
    pub fn apply(self, direction: Direction, sectors: Sectors, data: &mut [u8]) -> Result<u64, BatchError> {
        self.kernel.apply(direction, self.schedule, self.scratch, sectors, data)
    }

    /// As [`Kernel::apply_into`].
    ///
    /// # Errors
    /// As [`Kernel::apply_into`].
    pub fn apply_into(
        self,
        direction: Direction,
        sectors: Sectors,
        from_into: (&[u8], &mut [u8]),
    ) -> Result<u64, BatchError> {
        self.kernel.apply_into(direction, self.schedule, self.scratch, sectors, from_into)
    }
}

/// Where a batch is read and written, and how long it is.
pub(crate) fn ends(source: &[u8], target: &mut [u8]) -> Result<(*const u8, *mut u8, usize), BatchError> {
    if source.len() != target.len() {
        return Err(BatchError::Lengths { from: source.len(), into: target.len() });
    }
    Ok((source.as_ptr(), target.as_mut_ptr(), target.len()))
}

impl Kernel {
    /// Encrypts or decrypts `data` in place. Returns the number of blocks that went through the cipher, for the count that
    /// bounds a key's use.
    ///
    /// # Errors
    /// Lengths that [`Sectors`] excludes.
    pub fn apply(
        self,
        direction: Direction,
        schedule: &XtsSchedule,
        scratch: &Scratch,
        sectors: Sectors,
        data: &mut [u8],
    ) -> Result<u64, BatchError> {
        let target = data.as_mut_ptr();
        self.checked(direction, schedule, scratch, sectors, (target, target, data.len()))
    }

    /// As [`Kernel::apply`], from `source` into `target` of the same length.
    ///
    /// # Errors
    /// As [`Kernel::apply`], and different lengths.
    pub fn apply_into(
        self,
        direction: Direction,
        schedule: &XtsSchedule,
        scratch: &Scratch,
        sectors: Sectors,
        (source, target): (&[u8], &mut [u8]),
    ) -> Result<u64, BatchError> {
        self.checked(direction, schedule, scratch, sectors, ends(source, target)?)
    }

    /// `source` readable and `target` writable for `len`, the same or apart: both callers have slices of that length.
    fn checked(
        self,
        direction: Direction,
        schedule: &XtsSchedule,
        scratch: &Scratch,
        sectors: Sectors,
        ends: (*const u8, *mut u8, usize),
    ) -> Result<u64, BatchError> {
        let job = Cipher::new(self, schedule, scratch).job(direction, sectors, ends)?;
        if job.sectors > 0 {
            self.run(&job);
        }
        Ok((ends.2 / BLOCK_BYTES) as u64)
    }
}
