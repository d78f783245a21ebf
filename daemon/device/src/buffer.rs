//! Sector buffers, and the two kinds of content that a device takes.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::num::NonZero;
use std::ops::Range;
use std::ptr::NonNull;

use units::{SECTOR_BYTES, SectorCount};

/// A sector, as the address of a buffer without memory.
const ALIGNMENT: NonZero<usize> = NonZero::new(SECTOR_BYTES).expect("a sector is not empty");

/// Raw memory of whole sectors, aligned to a sector, zero when new. It says nothing of what it holds: the types
/// around it do.
pub struct SectorBuf {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the buffer is plain memory that this value alone owns; it has no interior mutability.
unsafe impl Send for SectorBuf {}
// SAFETY: as above; a shared reference only ever reads.
unsafe impl Sync for SectorBuf {}

impl SectorBuf {
    /// `count` sectors of zeros. The caller bounds `count`: like any allocation this ends the process where there
    /// is no memory.
    ///
    /// # Panics
    ///
    /// Where the length does not fit the address space.
    pub fn zeroed(count: SectorCount) -> Self {
        let bytes = usize::try_from(count.0)
            .ok()
            .and_then(|sectors| sectors.checked_mul(SECTOR_BYTES))
            .expect("a buffer fits the address space");
        if bytes == 0 {
            return Self { start: NonNull::without_provenance(ALIGNMENT), bytes };
        }
        let layout = Self::layout(bytes);
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(memory) else { handle_alloc_error(layout) };
        Self { start, bytes }
    }

    /// A copy of `bytes`; `None` where they are not whole sectors.
    pub fn copied_from(bytes: &[u8]) -> Option<Self> {
        if !bytes.len().is_multiple_of(SECTOR_BYTES) {
            return None;
        }
        let mut buf = Self::zeroed(sectors_in(bytes));
        buf.as_mut_bytes().copy_from_slice(bytes);
        Some(buf)
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, SECTOR_BYTES).expect("a buffer fits the address space")
    }

    /// Everything in the buffer.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: `start` is valid for `bytes` initialised bytes (or dangling with zero) for the life of `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// Everything in the buffer, to change.
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// Sectors in the buffer.
    pub fn sectors(&self) -> SectorCount {
        sectors_in(self.as_bytes())
    }
}

impl Drop for SectorBuf {
    fn drop(&mut self) {
        if self.bytes != 0 {
            // SAFETY: allocated in `zeroed` with this very layout, and not freed before.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.bytes)) };
        }
    }
}

impl fmt::Debug for SectorBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SectorBuf({} sectors)", self.sectors().0)
    }
}

fn sectors_in(bytes: &[u8]) -> SectorCount {
    SectorCount((bytes.len() / SECTOR_BYTES) as u64)
}

/// Whole sectors of ciphertext. Holding one proves that the content came out of the cipher or off a device, not
/// that it is whole or of any particular volume.
#[derive(Debug)]
pub struct Sealed(SectorBuf);

impl Sealed {
    /// Declares the content of `buf` ciphertext. Only the `sealing` crate, whose cipher wrote it, may call this; the
    /// architecture test fails on any other caller.
    pub fn from_cipher(buf: SectorBuf) -> Self {
        Self(buf)
    }

    /// Declares the content of `buf` as just read off a device.
    pub(crate) fn from_device(buf: SectorBuf) -> Self {
        Self(buf)
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The buffer itself, to decrypt in place.
    pub fn into_buf(self) -> SectorBuf {
        self.0
    }

    pub fn sectors(&self) -> SectorCount {
        self.0.sectors()
    }

    /// All of it, borrowed.
    pub fn as_slice(&self) -> SealedSlice<'_> {
        SealedSlice(self.0.as_bytes())
    }
}

/// Some whole sectors of a [`Sealed`], borrowed.
#[derive(Clone, Copy)]
pub struct SealedSlice<'a>(&'a [u8]);

impl<'a> SealedSlice<'a> {
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    pub fn sectors(self) -> SectorCount {
        sectors_in(self.0)
    }

    /// The sectors `range` of this slice, counted from its start.
    ///
    /// # Panics
    ///
    /// Where the range reaches past the end.
    pub fn sectors_in(self, range: Range<u64>) -> Self {
        let byte = |sector: u64| {
            usize::try_from(sector)
                .ok()
                .and_then(|sector| sector.checked_mul(SECTOR_BYTES))
                .expect("a range inside a buffer fits the address space")
        };
        Self(&self.0[byte(range.start)..byte(range.end)])
    }
}

impl<'a> From<&'a Sealed> for SealedSlice<'a> {
    fn from(sealed: &'a Sealed) -> Self {
        sealed.as_slice()
    }
}

impl fmt::Debug for SealedSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedSlice({} sectors)", self.sectors().0)
    }
}

/// Whole sectors of pool metadata: numbers, random identifiers and check values, never content of a volume.
#[derive(Debug)]
pub struct Metadata(SectorBuf);

impl Metadata {
    /// Declares the content of `buf` pool metadata. Only the `pool` crate, whose encoder wrote it, may call this; the
    /// architecture test fails on any other caller.
    pub fn from_encoding(buf: SectorBuf) -> Self {
        Self(buf)
    }

    pub(crate) fn from_device(buf: SectorBuf) -> Self {
        Self(buf)
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The buffer itself, to encode into again.
    pub fn into_buf(self) -> SectorBuf {
        self.0
    }

    pub fn sectors(&self) -> SectorCount {
        self.0.sectors()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_aligned_and_whole_sectors() {
        for sectors in [0, 1, 3, 257] {
            let buf = SectorBuf::zeroed(SectorCount(sectors));
            assert_eq!(buf.sectors(), SectorCount(sectors));
            assert_eq!(buf.as_bytes().as_ptr().addr() % SECTOR_BYTES, 0);
            assert!(buf.as_bytes().iter().all(|byte| *byte == 0));
        }
        assert!(SectorBuf::copied_from(&[0; SECTOR_BYTES + 1]).is_none());
        assert_eq!(SectorBuf::copied_from(&[7; 2 * SECTOR_BYTES]).unwrap().as_bytes()[4097], 7);
    }

    #[test]
    fn a_slice_of_sealed_sectors_is_whole_sectors() {
        let mut buf = SectorBuf::zeroed(SectorCount(4));
        buf.as_mut_bytes()[2 * SECTOR_BYTES] = 9;
        let sealed = Sealed::from_cipher(buf);
        let part = sealed.as_slice().sectors_in(2..4);
        assert_eq!((part.sectors(), part.as_bytes()[0]), (SectorCount(2), 9));
    }

    #[test]
    fn debug_output_shows_no_content() {
        let mut buf = SectorBuf::zeroed(SectorCount(1));
        buf.as_mut_bytes().fill(b'x');
        assert_eq!(format!("{:?}", Sealed::from_cipher(buf)), "Sealed(SectorBuf(1 sectors))");
    }
}
