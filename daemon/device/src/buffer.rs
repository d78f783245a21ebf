//! Sector buffers, and the two kinds of content that a device takes.

use std::fmt;
use std::ops::Range;

use units::{SECTOR_BYTES, SectorCount};

use crate::memory::Memory;

/// Raw memory of whole sectors, aligned to a sector. It says nothing of what it holds: the types around it do. Whoever puts
/// something clear into one wipes it before it is dropped: its memory is used again as it is.
pub struct SectorBuf {
    memory: Memory,
    bytes: usize,
}

impl SectorBuf {
    /// `count` sectors of zeros. The caller bounds `count`: like any allocation this ends the process where there
    /// is no memory.
    ///
    /// # Panics
    ///
    /// Where the length does not fit the address space.
    pub fn zeroed(count: SectorCount) -> Self {
        let mut buf = Self::to_fill(count);
        if !buf.memory.is_new() {
            buf.as_mut_bytes().fill(0);
        }
        buf
    }

    /// As [`Self::zeroed`], of what some buffer before held: for whoever fills all of it.
    ///
    /// # Panics
    ///
    /// Where the length does not fit the address space.
    pub fn to_fill(count: SectorCount) -> Self {
        let bytes = usize::try_from(count.0)
            .ok()
            .and_then(|sectors| sectors.checked_mul(SECTOR_BYTES))
            .expect("a buffer fits the address space");
        Self { memory: Memory::of(bytes), bytes }
    }

    /// A copy of `bytes`; `None` where they are not whole sectors.
    pub fn copied_from(bytes: &[u8]) -> Option<Self> {
        if !bytes.len().is_multiple_of(SECTOR_BYTES) {
            return None;
        }
        let mut buf = Self::to_fill(sectors_in(bytes));
        buf.as_mut_bytes().copy_from_slice(bytes);
        Some(buf)
    }

    /// Everything in the buffer.
    pub fn as_bytes(&self) -> &[u8] {
        &self.memory.as_bytes()[..self.bytes]
    }

    /// Everything in the buffer, to change.
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        &mut self.memory.as_mut_bytes()[..self.bytes]
    }

    /// Sectors in the buffer.
    pub fn sectors(&self) -> SectorCount {
        sectors_in(self.as_bytes())
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

/// What is kept beside a sector of ciphertext, and is what the sector is compared with whenever it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SectorRecord {
    /// Which write of the sector this was; a later one has a higher number, but after a crash a number may return.
    pub sequence: u64,
    /// CRC-32C of the ciphertext: tells rot, without a key.
    pub checksum: u32,
    /// Keyed tag over ciphertext, key domain, address, epoch and sequence: tells tampering. This side stores it and never
    /// looks into it.
    pub tag: [u8; 16],
}

/// Whole sectors of ciphertext, with the record of each where they are known. Holding one proves that the content came out
/// of the cipher or off a device, not that it is whole or of any particular volume.
#[derive(Debug)]
pub struct Sealed {
    buf: SectorBuf,
    /// One a sector, or none at all.
    records: Vec<SectorRecord>,
}

impl Sealed {
    /// Declares the content of `buf` ciphertext, and these its records. Only the `sealing` crate, whose cipher wrote it, may
    /// call this; the architecture test fails on any other caller.
    ///
    /// # Panics
    ///
    /// Where there is not one record a sector.
    pub fn from_cipher(buf: SectorBuf, records: Vec<SectorRecord>) -> Self {
        Self { buf, records: Vec::new() }.with_records(records)
    }

    /// Takes in what another pool has sent: ciphertext that its records' checksums fit. The sector that does not fit, where
    /// there is one, or the first without a record.
    pub fn from_frame(buf: SectorBuf, records: Vec<SectorRecord>) -> Result<Self, u64> {
        let sealed = Self { buf, records };
        match sealed.first_misfit() {
            None if sealed.records.len() as u64 == sealed.sectors().0 => Ok(sealed),
            misfit => Err(misfit.unwrap_or(sealed.records.len() as u64)),
        }
    }

    /// The first sector whose record has another checksum; without a key it is how rot shows.
    pub fn first_misfit(&self) -> Option<u64> {
        let mut each = self.as_bytes().chunks_exact(SECTOR_BYTES).zip(&self.records);
        let misfit = each.position(|(sector, record)| crc32c::crc32c(sector) != record.checksum);
        misfit.map(|nth| nth as u64)
    }

    /// Declares the content of `buf` as just read off a device.
    pub(crate) fn from_device(buf: SectorBuf) -> Self {
        Self { buf, records: Vec::new() }
    }

    /// The same sectors, with the records that are kept for them.
    ///
    /// # Panics
    ///
    /// Where there is not one record a sector.
    #[must_use]
    pub fn with_records(self, records: Vec<SectorRecord>) -> Self {
        assert_eq!(records.len() as u64, self.sectors().0, "a record for every sector");
        Self { records, ..self }
    }

    /// Copies sectors together.
    ///
    /// # Panics
    ///
    /// Where some of the parts have records and others none.
    pub fn gathered<'a>(parts: impl Iterator<Item = SealedSlice<'a>> + Clone) -> Self {
        let sectors = parts.clone().map(|part| part.sectors().0).sum();
        let mut buf = SectorBuf::to_fill(SectorCount(sectors));
        let mut records = Vec::new();
        let mut at = 0;
        for part in parts {
            let end = at + part.bytes.len();
            buf.as_mut_bytes()[at..end].copy_from_slice(part.bytes);
            records.extend_from_slice(part.records);
            at = end;
        }
        assert!(records.is_empty() || records.len() as u64 == sectors, "a record for every sector, or none");
        Self { buf, records }
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.buf.as_bytes()
    }

    /// What is kept beside each sector; empty where nothing is known of them.
    pub fn records(&self) -> &[SectorRecord] {
        &self.records
    }

    /// The buffer itself, to decrypt in place.
    pub fn into_buf(self) -> SectorBuf {
        self.buf
    }

    pub fn sectors(&self) -> SectorCount {
        self.buf.sectors()
    }

    /// All of it, borrowed.
    pub fn as_slice(&self) -> SealedSlice<'_> {
        SealedSlice { bytes: self.buf.as_bytes(), records: &self.records }
    }
}

/// Some whole sectors of a [`Sealed`], borrowed.
#[derive(Clone, Copy)]
pub struct SealedSlice<'a> {
    bytes: &'a [u8],
    records: &'a [SectorRecord],
}

impl<'a> SealedSlice<'a> {
    pub fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// As [`Sealed::records`].
    pub fn records(self) -> &'a [SectorRecord] {
        self.records
    }

    pub fn sectors(self) -> SectorCount {
        sectors_in(self.bytes)
    }

    /// The sectors `range` of this slice, counted from its start.
    ///
    /// # Panics
    ///
    /// Where the range reaches past the end.
    pub fn sectors_in(self, range: Range<u64>) -> Self {
        let index =
            |sector: u64| usize::try_from(sector).expect("a range inside a buffer fits the address space");
        let range = index(range.start)..index(range.end);
        let bytes = &self.bytes[range.start * SECTOR_BYTES..range.end * SECTOR_BYTES];
        let records = if self.records.is_empty() { self.records } else { &self.records[range] };
        Self { bytes, records }
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

    /// A copy with ciphertext behind it.
    pub(crate) fn followed_by(&self, behind: &[SealedSlice<'_>]) -> Self {
        let more: u64 = behind.iter().map(|slice| slice.sectors().0).sum();
        let mut buf = SectorBuf::to_fill(SectorCount(self.sectors().0 + more));
        let mut rest = buf.as_mut_bytes();
        for bytes in std::iter::once(self.as_bytes()).chain(behind.iter().map(|slice| slice.bytes)) {
            let (to, left) = rest.split_at_mut(bytes.len());
            to.copy_from_slice(bytes);
            rest = left;
        }
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
        // The second time memory is used again, in which there are ones.
        for sectors in [0, 1, 3, 257, 0, 1, 3, 257] {
            let mut buf = SectorBuf::zeroed(SectorCount(sectors));
            assert_eq!(buf.sectors(), SectorCount(sectors));
            assert_eq!(buf.as_bytes().as_ptr().addr() % SECTOR_BYTES, 0);
            assert!(buf.as_bytes().iter().all(|byte| *byte == 0));
            buf.as_mut_bytes().fill(1);
        }
        assert!(SectorBuf::copied_from(&[0; SECTOR_BYTES + 1]).is_none());
        assert_eq!(SectorBuf::copied_from(&[7; 2 * SECTOR_BYTES]).unwrap().as_bytes()[4097], 7);
    }

    #[test]
    fn a_slice_of_sealed_sectors_is_whole_sectors() {
        let mut buf = SectorBuf::zeroed(SectorCount(4));
        buf.as_mut_bytes()[2 * SECTOR_BYTES] = 9;
        let records: Vec<SectorRecord> =
            (1..=4).map(|sequence| SectorRecord { sequence, ..SectorRecord::default() }).collect();
        let sealed = Sealed::from_cipher(buf, records);
        let part = sealed.as_slice().sectors_in(2..4);
        assert_eq!((part.sectors(), part.as_bytes()[0], part.records()[0].sequence), (SectorCount(2), 9, 3));
        let copy = Sealed::gathered([part, part.sectors_in(1..2)].into_iter());
        assert_eq!((copy.sectors(), copy.as_bytes()[0], copy.as_bytes()[8192]), (SectorCount(3), 9, 0));
        assert_eq!(copy.records().iter().map(|record| record.sequence).collect::<Vec<_>>(), [3, 4, 4]);
    }

    #[test]
    fn debug_output_shows_no_content() {
        let mut buf = SectorBuf::zeroed(SectorCount(1));
        buf.as_mut_bytes().fill(b'x');
        let sealed = Sealed::from_cipher(buf, vec![SectorRecord::default()]);
        assert!(!format!("{sealed:?}").contains("120"), "{sealed:?}");
    }
}
