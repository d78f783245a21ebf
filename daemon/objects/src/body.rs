//! Bodies on their way in and out: whole sectors to and from the volume, a bounded buffer in between.

use std::ops::Range;
use std::sync::Arc;

use units::{ByteLen, ByteOffset};

use crate::checksum::{BodyDigest, BodyDigests, Checksum, ChecksumAlgorithm};
use crate::commit::Shared;
use crate::customer_key::BodyCipher;
use crate::error::StoreError;
use crate::layout::SECTOR;
use crate::limits::{INLINE_BYTES_MAX, KNOWN_LENGTH_STEP, UNKNOWN_LENGTH_STEP};
use crate::records::{Body, Run};
use crate::space::{Pin, Reservation};
use crate::volume::BlockErrorKind;

const SECTOR_LEN: usize = 4096;

/// What a client said about a body that it has sent in full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// `Content-MD5`.
    pub md5: Option<[u8; 16]>,
    /// `x-amz-checksum-*`, from the head or the trailer of the request.
    pub checksum: Option<Checksum>,
}

/// A body being received. Sectors go to the volume as they fill up; dropped unfinished, they are given back.
pub(crate) struct BodyWriter {
    shared: Arc<Shared>,
    digest: BodyDigest,
    limit: u64,
    declared: Option<u64>,
    received: u64,
    reservation: Reservation,
    /// Sectors written so far; those reserved beyond are still free to use.
    written: u64,
    reserved: u64,
    /// Bytes that don't fill a sector yet.
    pending: Vec<u8>,
    cipher: Option<BodyCipher>,
}

/// A body that has arrived whole and matches what was declared.
pub(crate) struct FinishedBody {
    pub(crate) bytes: u64,
    pub(crate) digests: BodyDigests,
    /// Empty for a body that fits the index row.
    pub(crate) reservation: Reservation,
    pub(crate) inline: Vec<u8>,
}

impl BodyWriter {
    pub(crate) fn new(
        shared: Arc<Shared>,
        declared: Option<u64>,
        limit: u64,
        algorithm: Option<ChecksumAlgorithm>,
    ) -> Result<Self, StoreError> {
        shared.ready()?;
        if declared.is_some_and(|declared| declared > limit) {
            return Err(StoreError::TooLarge { limit: ByteLen(limit) });
        }
        let reservation = shared.space.reservation();
        Ok(Self {
            shared,
            digest: BodyDigest::new(algorithm),
            limit,
            declared,
            received: 0,
            reservation,
            written: 0,
            reserved: 0,
            pending: Vec::new(),
            cipher: None,
        })
    }

    /// What is appended from here on is encrypted; to be called before anything is.
    pub(crate) fn encrypt(&mut self, cipher: BodyCipher) {
        self.cipher = Some(cipher);
    }

    /// Whether what encrypts it still does. A key that was erased since the last bytes would make an object that nobody can read.
    pub(crate) fn check_cipher(&self) -> Result<(), StoreError> {
        match &self.cipher {
            Some(BodyCipher::Sealed(key, _)) => self.shared.named_keys.open(&key.sealed).map(drop),
            Some(BodyCipher::Held(_)) | None => Ok(()),
        }
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let offset = self.received;
        self.received += bytes.len() as u64;
        if self.received > self.declared.unwrap_or(u64::MAX) {
            return Err(self.length_mismatch());
        }
        if self.received > self.limit {
            return Err(StoreError::TooLarge { limit: ByteLen(self.limit) });
        }
        self.digest.update(bytes);
        match &self.cipher {
            None => self.place(bytes),
            Some(cipher) => {
                let mut encrypted = bytes.to_vec();
                cipher.apply(offset, &mut encrypted)?;
                self.place(&encrypted)
            }
        }
    }

    /// Writes whole sectors, keeps the rest for the next bytes.
    fn place(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        if !self.pending.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(SECTOR_LEN - self.pending.len()));
            self.pending.extend_from_slice(head);
            bytes = rest;
            if self.pending.len() == SECTOR_LEN {
                let sector = std::mem::take(&mut self.pending);
                self.write_sectors(&sector)?;
            }
        }
        let (whole, rest) = bytes.split_at(bytes.len() / SECTOR_LEN * SECTOR_LEN);
        self.write_sectors(whole)?;
        self.pending.extend_from_slice(rest);
        Ok(())
    }

    /// Ends the body: checks length and digests, writes the last sector.
    pub(crate) fn finish(
        mut self,
        expected: &Declared,
        may_inline: bool,
    ) -> Result<FinishedBody, StoreError> {
        if self.declared.is_some_and(|declared| declared != self.received) {
            return Err(self.length_mismatch());
        }
        let digests = std::mem::replace(&mut self.digest, BodyDigest::new(None)).finish();
        digests.verify(expected.md5, expected.checksum.as_ref())?;
        let mut pending = std::mem::take(&mut self.pending);
        let mut inline = Vec::new();
        if self.written == 0 && may_inline && pending.len() <= INLINE_BYTES_MAX {
            inline = pending;
        } else if !pending.is_empty() {
            pending.resize(SECTOR_LEN, 0);
            self.write_sectors(&pending)?;
        }
        self.reservation.shrink_to(self.written);
        Ok(FinishedBody { bytes: self.received, digests, reservation: self.reservation, inline })
    }

    fn length_mismatch(&self) -> StoreError {
        StoreError::LengthMismatch {
            declared: ByteLen(self.declared.unwrap_or_default()),
            received: ByteLen(self.received),
        }
    }

    fn write_sectors(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            let run = self.next_sectors((bytes.len() / SECTOR_LEN) as u64)?;
            let len = usize::try_from(run.byte_len().0).expect("not longer than the buffer");
            let (head, rest) = bytes.split_at(len);
            self.write(run.position(), head)?;
            self.written += run.sectors;
            bytes = rest;
        }
        Ok(())
    }

    /// Up to `sectors` consecutive sectors that are reserved and not yet written.
    fn next_sectors(&mut self, sectors: u64) -> Result<Run, StoreError> {
        if self.written == self.reserved {
            let ahead = match self.declared {
                Some(declared) => {
                    (declared.div_ceil(SECTOR) - self.reserved).min(KNOWN_LENGTH_STEP.0 / SECTOR)
                }
                None => UNKNOWN_LENGTH_STEP.0 / SECTOR,
            };
            let run = match self.reservation.extend(ahead.max(sectors)) {
                Some(run) => run,
                // The address space is used up; what was deleted may still be on its way to being free.
                None if self.shared.space.wait_for_reaper() => {
                    self.reservation.extend(ahead.max(sectors)).ok_or(StoreError::NoSpace)?
                }
                None => return Err(StoreError::NoSpace),
            };
            self.reserved += run.sectors;
        }
        // The next free sector lies in the last run: those before it are full.
        let last = *self.reservation.runs().last().ok_or(StoreError::NoSpace)?;
        let left = self.reserved - self.written;
        Ok(Run { start: last.end() - left, sectors: left.min(sectors) })
    }

    fn write(&self, at: ByteOffset, bytes: &[u8]) -> Result<(), StoreError> {
        match self.shared.volume.write(at, bytes) {
            Err(error) if error.kind() == BlockErrorKind::NoSpace && self.shared.space.wait_for_reaper() => {
                // What was deleted is trimmed by now; a flush makes it the pool's again.
                self.shared.volume.flush()?;
                Ok(self.shared.volume.write(at, bytes)?)
            }
            result => Ok(result?),
        }
    }
}

impl FinishedBody {
    /// The body as the index row names it, and the reservation to keep once the row is durable.
    pub(crate) fn into_body(self, shared: &Shared) -> (Body, Reservation) {
        let body = match self.reservation.runs() {
            [] => Body::Inline(self.inline),
            runs => Body::Runs { id: shared.next_body(), runs: runs.to_vec() },
        };
        (body, self.reservation)
    }
}

/// The bytes of a range of a body in reading order.
#[derive(Debug)]
pub(crate) enum Source {
    Inline(Vec<u8>, Cipher),
    /// Positions on the volume, as far as they are wanted.
    Volume(Vec<Piece>),
}

/// What decrypts a piece of a body, where a customer's key or a named one is needed for it.
#[derive(Clone, Debug, Default)]
pub(crate) enum Cipher {
    /// It is not encrypted under a key of its own.
    #[default]
    None,
    /// It is, and the key was not given.
    Locked,
    /// It is encrypted under a named key that does not open it, and why.
    Away(Arc<StoreError>),
    Open(Arc<BodyCipher>),
}

impl Cipher {
    fn apply(&self, offset: u64, bytes: &mut [u8]) -> Result<(), StoreError> {
        match self {
            Self::None => Ok(()),
            Self::Locked => Err(StoreError::CustomerKeyNeeded),
            Self::Away(why) => Err(StoreError::clone(why)),
            Self::Open(cipher) => cipher.apply(offset, bytes),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Piece {
    at: u64,
    len: u64,
    /// Where it lies within what was encrypted as one.
    offset: u64,
    cipher: Cipher,
}

/// What of `wanted` is in `runs`, which hold the bytes `held` of an object, encrypted as one.
pub(crate) fn pieces(
    runs: &[Run],
    held: &Range<u64>,
    wanted: &Range<u64>,
    cipher: &Cipher,
) -> impl Iterator<Item = Piece> {
    let mut begin = held.start;
    runs.iter().filter_map(move |run| {
        let end = held.end.min(begin + run.byte_len().0);
        let (from, to) = (wanted.start.max(begin), wanted.end.min(end));
        let piece = (from < to).then(|| Piece {
            at: run.position().0 + (from - begin),
            len: to - from,
            offset: from - held.start,
            cipher: cipher.clone(),
        });
        begin = end;
        piece
    })
}

/// Reads a range of an object, chunk by chunk. The bytes stay in place for as long as it lives, whatever happens to the
/// object meanwhile.
#[derive(Debug)]
pub struct ObjectReader {
    shared: Arc<Shared>,
    _pin: Option<Arc<Pin>>,
    inline: Vec<u8>,
    inline_cipher: Cipher,
    inline_offset: u64,
    pieces: std::collections::VecDeque<Piece>,
    left: u64,
}

impl ObjectReader {
    pub(crate) fn new(
        shared: Arc<Shared>,
        pin: Option<Arc<Pin>>,
        source: Source,
        range: &Range<u64>,
    ) -> Self {
        let left = range.end.saturating_sub(range.start);
        let mut reader = Self {
            shared,
            _pin: pin,
            inline: Vec::new(),
            inline_cipher: Cipher::None,
            inline_offset: range.start,
            pieces: Default::default(),
            left,
        };
        match source {
            Source::Inline(bytes, cipher) => {
                reader.inline_cipher = cipher;
                let position = |offset| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                reader.inline = bytes[position(range.start)..position(range.end)].to_vec();
            }
            Source::Volume(pieces) => reader.pieces = pieces.into(),
        }
        reader
    }

    /// Bytes still to come.
    pub fn remaining(&self) -> u64 {
        self.left
    }

    /// The next bytes, at most `max` of them; `None` at the end.
    ///
    /// # Errors
    /// [`StoreError::Sealed`] once the key is gone: what was read before is still true, nothing follows it.
    pub fn next_chunk(&mut self, max: usize) -> Result<Option<Vec<u8>>, StoreError> {
        let mut chunk = Vec::new();
        Ok(self.read_chunk(&mut chunk, max)?.then_some(chunk))
    }

    /// The next bytes, at most `max` of them, in place of what is in `chunk`; false at the end. On an error `chunk` holds
    /// nothing of use.
    ///
    /// # Errors
    /// As [`ObjectReader::next_chunk`].
    pub fn read_chunk(&mut self, chunk: &mut Vec<u8>, max: usize) -> Result<bool, StoreError> {
        self.shared.ready()?;
        chunk.clear();
        if self.left == 0 {
            return Ok(false);
        }
        if !self.inline.is_empty() {
            let len = self.inline.len().min(max);
            chunk.extend(self.inline.drain(..len));
            self.inline_cipher.apply(self.inline_offset, chunk)?;
            self.inline_offset += len as u64;
            self.left -= len as u64;
            return Ok(true);
        }
        let wanted = usize::try_from(self.left).unwrap_or(max).min(max);
        chunk.resize(wanted, 0);
        let mut filled = 0;
        while filled < wanted {
            let damaged = StoreError::Corrupt { what: "an object's runs are shorter than its size" };
            let piece = self.pieces.front_mut().ok_or(damaged)?;
            let len = usize::try_from(piece.len).unwrap_or(wanted).min(wanted - filled);
            let place = &mut chunk[filled..filled + len];
            self.shared.volume.read(ByteOffset(piece.at), place)?;
            piece.cipher.apply(piece.offset, place)?;
            filled += len;
            piece.at += len as u64;
            piece.offset += len as u64;
            piece.len -= len as u64;
            if piece.len == 0 {
                self.pieces.pop_front();
            }
        }
        self.left -= wanted as u64;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_takes_the_pieces_that_it_touches_and_no_others() {
        let runs: Vec<Run> = (0..10_000).map(|number| Run { start: number * 10, sectors: 2 }).collect();
        // What comes before it in the object is another part.
        let held = 1_000_000..1_000_000 + 10_000 * 8192 - 100;
        let found = |from: u64, to: u64| pieces(&runs, &held, &(from..to), &Cipher::None).collect::<Vec<_>>();
        assert_eq!(found(0, u64::MAX).len(), 10_000);
        assert_eq!(found(0, u64::MAX).iter().map(|piece| piece.len).sum::<u64>(), held.end - held.start);
        let middle = found(1_000_000 + 8192 * 5_000 - 10, 1_000_000 + 8192 * 5_000 + 10);
        let places: Vec<_> = middle.iter().map(|piece| (piece.at, piece.len, piece.offset)).collect();
        let (last, first) = (4_999 * 10 * 4096 + 8182, 5_000 * 10 * 4096);
        assert_eq!(places, [(last, 10, 8192 * 5_000 - 10), (first, 10, 8192 * 5_000)]);
        assert!(found(0, 1_000_000).is_empty() && found(held.end, u64::MAX).is_empty());
        assert_eq!(found(held.end - 1, held.end).len(), 1);
    }
}
