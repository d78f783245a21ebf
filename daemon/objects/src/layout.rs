//! Where things lie on the volume, and the sectors that say so. FORMAT.md draws it.
//!
//! ```text
//! 0        header            4 KiB   written when the volume is formatted, and by an upgrade
//! 4 KiB    header copy       4 KiB
//! 8 KiB    index length A    4 KiB   written in turn, see `IndexLength`
//! 12 KiB   index length B    4 KiB
//! 1 MiB    reserve           space that deletes use when the pool is full
//! ...      index             a redb file
//! ...      data              runs of sectors: the bodies
//! ```
//!
//! Invariants:
//! - A header is written last when a volume is formatted, after a flush of everything else: a volume with a header has
//!   a complete, empty store at the least.
//! - Every region begins and ends on a MiB; regions don't overlap; data reaches to the end of the volume, so a volume may
//!   grow.

use units::{ByteLen, ByteOffset};

use crate::error::StoreError;
use crate::limits::VOLUME_BYTES_MIN;
use crate::volume::{BlockError, BlockVolume};

/// Version of everything the store writes: header, index rows, meaning of runs.
pub const FORMAT_VERSION: u32 = 5;

pub(crate) const SECTOR: u64 = 4096;
const SECTOR_LEN: usize = 4096;
const MIB: u64 = 1 << 20;

const HEADER_MAGIC: [u8; 8] = *b"NLOBJSTR";
const LENGTH_MAGIC: [u8; 8] = *b"NLIDXLEN";
const HEADER_AT: [u64; 2] = [0, SECTOR];
const LENGTH_AT: [u64; 2] = [2 * SECTOR, 3 * SECTOR];
const RESERVE_AT: u64 = MIB;

/// Share of the volume that the reserve takes, and its bounds.
const RESERVE_SHARE: u64 = 64;
const RESERVE_BYTES_MIN: u64 = MIB;
const RESERVE_BYTES_MAX: u64 = 32 * MIB;

/// Share of the volume's address space that the index may grow into. The volume is thin: what the index doesn't use costs
/// nothing, and with many small objects the index is most of what there is.
const INDEX_SHARE: u64 = 4;
const INDEX_BYTES_MIN: u64 = 8 * MIB;
const INDEX_BYTES_MAX: u64 = 4 << 40;

/// Checksum of a sector, in its last four bytes.
const CHECKSUM_AT: usize = SECTOR_LEN - 4;

type Sector = [u8; SECTOR_LEN];

/// A region of the volume in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) at: u64,
    pub(crate) len: u64,
}

impl Region {
    pub(crate) fn end(self) -> u64 {
        self.at + self.len
    }

    /// Position `offset` of the region on the volume.
    pub(crate) fn position(self, offset: u64) -> ByteOffset {
        ByteOffset(self.at + offset)
    }
}

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Format version that the volume has.
    pub(crate) version: u32,
    pub(crate) store_id: [u8; 16],
    pub(crate) reserve: Region,
    pub(crate) index: Region,
    /// First byte of the data region.
    pub(crate) data_at: u64,
}

impl Layout {
    /// The layout that a volume of `len` gets.
    pub(crate) fn plan(len: ByteLen, store_id: [u8; 16]) -> Result<Self, StoreError> {
        if len.0 < VOLUME_BYTES_MIN {
            return Err(StoreError::VolumeTooSmall { found: len, needed: ByteLen(VOLUME_BYTES_MIN) });
        }
        let reserve_len = (len.0 / RESERVE_SHARE / MIB * MIB).clamp(RESERVE_BYTES_MIN, RESERVE_BYTES_MAX);
        let reserve = Region { at: RESERVE_AT, len: reserve_len };
        // A power of two, because redb doubles its file; its own header comes on top.
        let index_len = (1 << (len.0 / INDEX_SHARE).ilog2()).clamp(INDEX_BYTES_MIN, INDEX_BYTES_MAX) + MIB;
        let index = Region { at: reserve.end(), len: index_len };
        Ok(Self { version: FORMAT_VERSION, store_id, reserve, index, data_at: index.end() })
    }

    /// The data region of a volume that has `len` now, in sectors counted from the volume's start.
    pub(crate) fn data_sectors(&self, len: ByteLen) -> std::ops::Range<u64> {
        self.data_at / SECTOR..len.0 / SECTOR
    }

    fn encode(&self) -> Box<Sector> {
        let mut sector = blank_sector();
        sector[..8].copy_from_slice(&HEADER_MAGIC);
        sector[8..12].copy_from_slice(&self.version.to_le_bytes());
        // 12..16: incompatible feature flags, none yet.
        sector[16..32].copy_from_slice(&self.store_id);
        let numbers = [self.reserve.at, self.reserve.len, self.index.at, self.index.len, self.data_at];
        for (field, number) in sector[32..].chunks_exact_mut(8).zip(numbers) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        put_checksum(&mut sector);
        sector
    }

    /// `None`: not a header, or not an intact one.
    fn decode(sector: &Sector) -> Result<Option<Self>, StoreError> {
        if sector[..8] != HEADER_MAGIC || !checksum_matches(sector) {
            return Ok(None);
        }
        let version = u32_at(sector, 8);
        if version > FORMAT_VERSION || u32_at(sector, 12) != 0 {
            return Err(StoreError::NewerFormat {
                found: version.max(FORMAT_VERSION + 1),
                known: FORMAT_VERSION,
            });
        }
        let mut store_id = [0; 16];
        store_id.copy_from_slice(&sector[16..32]);
        let layout = Self {
            version,
            store_id,
            reserve: Region { at: u64_at(sector, 32), len: u64_at(sector, 40) },
            index: Region { at: u64_at(sector, 48), len: u64_at(sector, 56) },
            data_at: u64_at(sector, 64),
        };
        Ok(layout.is_sound().then_some(layout))
    }

    fn is_sound(&self) -> bool {
        let in_order = self.reserve.at >= RESERVE_AT
            && self.reserve.at.checked_add(self.reserve.len).is_some_and(|end| end <= self.index.at)
            && self.index.at.checked_add(self.index.len).is_some_and(|end| end <= self.data_at);
        let aligned = [self.reserve.at, self.reserve.len, self.index.at, self.index.len, self.data_at];
        in_order && self.index.len > 0 && aligned.iter().all(|number| number.is_multiple_of(MIB))
    }

    /// Says that rows of this program's version may follow. Earlier programs refuse the volume from here on.
    ///
    /// 1. The index has its new tables, durable: a header that promises them would be wrong before.
    /// 2. The second copy, flush. Cut here: the first copy counts, nothing was written that it does not know.
    /// 3. The first copy, flush. Torn: the second one counts. Only then may a row of the new version be written.
    pub(crate) fn upgrade(mut self, volume: &dyn BlockVolume) -> Result<Self, BlockError> {
        tracing::info!(from = self.version, to = FORMAT_VERSION, "upgrading the object store's format");
        self.version = FORMAT_VERSION;
        let sector = self.encode();
        for at in HEADER_AT.into_iter().rev() {
            volume.write(ByteOffset(at), &sector[..])?;
            volume.flush()?;
        }
        Ok(self)
    }

    /// Reads the header; `None` on a volume that holds no store yet.
    pub(crate) fn read(volume: &dyn BlockVolume) -> Result<Option<Self>, StoreError> {
        let len = volume.len();
        if len.0 < VOLUME_BYTES_MIN {
            return Err(StoreError::VolumeTooSmall { found: len, needed: ByteLen(VOLUME_BYTES_MIN) });
        }
        let sectors = [read_sector(volume, HEADER_AT[0])?, read_sector(volume, HEADER_AT[1])?];
        for (at, sector) in HEADER_AT.into_iter().zip(&sectors) {
            if let Some(layout) = Self::decode(sector)? {
                if at != HEADER_AT[0] {
                    tracing::warn!(
                        "the first copy of the object store's header is damaged: using the second"
                    );
                }
                // At least one sector of data, or the volume was cut short.
                let needed = ByteLen(layout.data_at + SECTOR);
                if len < needed {
                    return Err(StoreError::VolumeTooSmall { found: len, needed });
                }
                return Ok(Some(layout));
            }
        }
        if sectors.iter().any(|sector| sector[..8] == HEADER_MAGIC) {
            return Err(StoreError::HeaderDamaged);
        }
        let untouched = sectors.iter().all(|sector| sector.iter().all(|byte| *byte == 0));
        if untouched && (formatting_was_cut(volume)? || nothing_is_written(volume)?) {
            return Ok(None);
        }
        Err(StoreError::NotAStore)
    }

    /// Step 1 of formatting: everything the header will vouch for but the index itself, durable.
    pub(crate) fn prepare(&self, volume: &dyn BlockVolume) -> Result<(), BlockError> {
        // The length sector goes first: it tells a formatting that was cut short from a volume with other data.
        IndexLength::fresh(volume)?;
        volume.flush()?;
        volume.trim(self.index.position(0), ByteLen(volume.len().0 - self.index.at))?;
        volume.flush()
    }

    /// Last step of formatting: the volume is a store from here on.
    pub(crate) fn publish(&self, volume: &dyn BlockVolume) -> Result<(), BlockError> {
        volume.flush()?;
        let sector = self.encode();
        for at in HEADER_AT {
            volume.write(ByteOffset(at), &sector[..])?;
        }
        volume.flush()
    }
}

/// How much of the index region the index file has: redb asks for a length and must find it again.
///
/// Two sectors written in turn. The one that the last flush made durable is never written before the next flush, so a
/// torn write always leaves the other; several changes between two flushes go to the same sector.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndexLength {
    bytes: u64,
    generation: u64,
    /// Which of the two sectors holds the last length known to be durable.
    durable: usize,
    /// Whether the other one was written since.
    pending: bool,
}

impl IndexLength {
    fn fresh(volume: &dyn BlockVolume) -> Result<Self, BlockError> {
        let mut length = Self { bytes: 0, generation: 0, durable: 1, pending: false };
        length.set(volume, 0)?;
        volume.write(ByteOffset(LENGTH_AT[1]), &blank_sector()[..])?;
        Ok(length)
    }

    /// Reads the newer intact sector.
    pub(crate) fn read(volume: &dyn BlockVolume) -> Result<Self, StoreError> {
        let mut newest: Option<Self> = None;
        for (durable, at) in LENGTH_AT.into_iter().enumerate() {
            let sector = read_sector(volume, at)?;
            if sector[..8] == LENGTH_MAGIC && checksum_matches(&sector) {
                let found = Self {
                    bytes: u64_at(&sector, 16),
                    generation: u64_at(&sector, 8),
                    durable,
                    pending: false,
                };
                if newest.is_none_or(|newest| newest.generation < found.generation) {
                    newest = Some(found);
                }
            }
        }
        newest.ok_or(StoreError::HeaderDamaged)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn set(&mut self, volume: &dyn BlockVolume, bytes: u64) -> Result<(), BlockError> {
        let mut sector = blank_sector();
        sector[..8].copy_from_slice(&LENGTH_MAGIC);
        sector[8..16].copy_from_slice(&(self.generation + 1).to_le_bytes());
        sector[16..24].copy_from_slice(&bytes.to_le_bytes());
        put_checksum(&mut sector);
        volume.write(ByteOffset(LENGTH_AT[1 - self.durable]), &sector[..])?;
        self.generation += 1;
        self.bytes = bytes;
        self.pending = true;
        Ok(())
    }

    /// What was set before a flush began is durable once it ended; `generation` is from before it.
    pub(crate) fn flushed(&mut self, generation: u64) {
        if self.pending && self.generation == generation {
            self.durable = 1 - self.durable;
            self.pending = false;
        }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }
}

fn formatting_was_cut(volume: &dyn BlockVolume) -> Result<bool, StoreError> {
    Ok(LENGTH_AT
        .into_iter()
        .map(|at| read_sector(volume, at))
        .collect::<Result<Vec<_>, _>>()?
        .iter()
        .any(|sector| sector[..8] == LENGTH_MAGIC))
}

fn nothing_is_written(volume: &dyn BlockVolume) -> Result<bool, StoreError> {
    let whole = ByteLen(volume.len().0 / SECTOR * SECTOR);
    Ok(volume.allocated(ByteOffset(0), whole)?.iter().all(|(_, allocated)| !allocated))
}

fn blank_sector() -> Box<Sector> {
    Box::new([0; SECTOR_LEN])
}

fn read_sector(volume: &dyn BlockVolume, at: u64) -> Result<Box<Sector>, BlockError> {
    let mut sector = blank_sector();
    volume.read(ByteOffset(at), &mut sector[..])?;
    Ok(sector)
}

fn put_checksum(sector: &mut Sector) {
    let checksum = crc32c::crc32c(&sector[..CHECKSUM_AT]);
    sector[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
}

fn checksum_matches(sector: &Sector) -> bool {
    u32_at(sector, CHECKSUM_AT) == crc32c::crc32c(&sector[..CHECKSUM_AT])
}

fn u32_at(sector: &Sector, at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&sector[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn u64_at(sector: &Sector, at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&sector[at..at + 8]);
    u64::from_le_bytes(bytes)
}
