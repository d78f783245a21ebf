//! The superblock: what the pool is, and from where its log is read. FORMAT.md draws it.
//!
//! Invariants:
//! - Both copies are written with every change, the second only when the first is durable. So a torn write leaves the
//!   other, and between changes either copy alone opens the pool as it is.
//! - The fields up to the pool id keep their place in every future version, so that an older program can tell a newer
//!   pool from damage.
//! - Of the devices that a pool is moved between, their superblocks alone say which is the pool ([`Moving`]).

use device::{Device, Metadata, SectorBuf};
use units::{ByteLen, ByteOffset, PoolId, SECTOR_BYTES, SectorCount};

use crate::bytes::{Decoder, Encoder};
use crate::digest::{Root, StateHead};
use crate::layout::{Layout, SECTOR, SUPERBLOCK_SECTORS, SectorRecords};
use crate::log::Link;
use crate::{FORMAT_VERSION, FORMAT_VERSION_MIN, PoolError, RepairedSuperblock, SuperblockFault, probe};

const MAGIC: [u8; 8] = *b"NLATCHPL";
/// Where the checksum stands; it covers the whole sector with these bytes zero.
const CHECKSUM_AT: usize = 8;

/// Sectors have records: without them a pool is laid out otherwise.
const INCOMPAT_RECORDS: u64 = 1;
/// Pages of records have digests: without them a pool is laid out otherwise, and its state has no head.
const INCOMPAT_DIGESTS: u64 = 2;
/// The pool is being moved from or to this device, or has been moved away: it may not be what counts.
const INCOMPAT_MOVING: u64 = 4;
/// Features that a program must know to read the pool.
const INCOMPAT_KNOWN: u64 = INCOMPAT_RECORDS | INCOMPAT_DIGESTS | INCOMPAT_MOVING;
/// Features that a program must know to write to the pool. None so far.
const RO_COMPAT_KNOWN: u64 = 0;

/// Bytes of the other device's path that are kept, for messages.
const OTHER_PATH_BYTES: usize = 128;

/// A device's part in moving the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MovingStage {
    /// The pool is being copied to this device and is not whole here: it never opens from here.
    Incoming {
        /// Extents before this one, and all metadata but the log, are here durably as far as they are on the other device.
        next_extent: u32,
    },
    /// The pool is here, and everything that is written here is written to the other device too.
    Copying,
    /// The pool is on the other device, if that says so; it is here, if that is still incoming.
    HandingOver,
    /// The pool is on the other device.
    Moved,
}

/// That a pool is being moved, or has been moved away. A device that says nothing of it and holds the pool is the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moving {
    pub(crate) stage: MovingStage,
    /// Random; the same on both devices.
    pub(crate) copy: [u8; 16],
    /// The path of the other device, for messages: as much of it as there is room for, zeros behind it.
    other: [u8; OTHER_PATH_BYTES],
}

impl Moving {
    pub(crate) fn new(stage: MovingStage, copy: [u8; 16], other_path: &str) -> Self {
        let mut end = other_path.len().min(OTHER_PATH_BYTES);
        while !other_path.is_char_boundary(end) {
            end -= 1;
        }
        let mut other = [0; OTHER_PATH_BYTES];
        other[..end].copy_from_slice(&other_path.as_bytes()[..end]);
        Self { stage, copy, other }
    }

    pub(crate) fn at(self, stage: MovingStage) -> Self {
        Self { stage, ..self }
    }

    /// The path of the other device, as it was called when this was written.
    pub(crate) fn other_path(&self) -> String {
        let end = self.other.iter().position(|byte| *byte == 0).unwrap_or(OTHER_PATH_BYTES);
        String::from_utf8_lossy(&self.other[..end]).into_owned()
    }

    fn encode(moving: Option<&Self>) -> (u32, u32, [u8; 16], [u8; OTHER_PATH_BYTES]) {
        let Some(moving) = moving else { return (0, 0, [0; 16], [0; OTHER_PATH_BYTES]) };
        let (stage, next_extent) = match moving.stage {
            MovingStage::Incoming { next_extent } => (1, next_extent),
            MovingStage::Copying => (2, 0),
            MovingStage::HandingOver => (3, 0),
            MovingStage::Moved => (4, 0),
        };
        (stage, next_extent, moving.copy, moving.other)
    }

    /// `None` where the fields are out of range.
    fn decode(is_moving: bool, fields: &mut Decoder<'_>) -> Option<Option<Self>> {
        let (stage, next_extent) = (fields.u32()?, fields.u32()?);
        let (copy, other) = (fields.array()?, fields.array()?);
        if !is_moving {
            // Older programs wrote zeros here, and what newer ones write is not ours to judge.
            return Some(None);
        }
        let stage = match stage {
            1 => MovingStage::Incoming { next_extent },
            2 => MovingStage::Copying,
            3 => MovingStage::HandingOver,
            4 => MovingStage::Moved,
            _ => return None,
        };
        Some(Some(Self { stage, copy, other }))
    }
}

/// The superblock's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// What it was written as: an older one is brought up to date by opening the pool.
    pub(crate) version: u32,
    pub(crate) pool: PoolId,
    /// One higher with every change; of two good copies the higher one counts.
    pub(crate) generation: u64,
    pub(crate) layout: Layout,
    /// The device length in use.
    pub(crate) device_len: ByteLen,
    /// Features that a program need not know: kept as found.
    pub(crate) compat: u64,
    /// The first block of the log that counts.
    pub(crate) log_start: u64,
    /// What that block must name as the one before it.
    pub(crate) log_link: Link,
    /// Pages of the extent table that have been written; the others are not read.
    pub(crate) extent_pages: u64,
    /// Pages of the volume table that have been written; the others are not read.
    pub(crate) volume_pages: u64,
    /// Pages of the hole table that have been written; the others are not read.
    pub(crate) hole_pages: u64,
    /// No write that the tables or records know of had this sequence or a higher one; those that the log knows of may.
    pub(crate) next_sequence: u64,
    /// Pages of digests that have been written; the others are not read.
    pub(crate) digest_pages: u64,
    /// The state at the first block of the log that counts.
    pub(crate) state: StateHead,
    /// What the tables and digests are then.
    pub(crate) root: Root,
    /// Whether the pool is being moved, or has been moved away.
    pub(crate) moving: Option<Moving>,
}

/// A superblock whose checksum is right, not necessarily one this program understands.
enum Found {
    Understood(Superblock),
    NewerFormat(u32),
    UnknownFeatures { incompat: u64, ro_compat: u64 },
}

impl Superblock {
    pub(crate) fn encode(&self) -> Metadata {
        let mut buf = SectorBuf::zeroed(SectorCount(1));
        let bytes = buf.as_mut_bytes();
        let moving = if self.moving.is_some() { INCOMPAT_MOVING } else { 0 };
        let layout = match (self.layout.has_records(), self.layout.has_digests()) {
            (true, true) => INCOMPAT_RECORDS | INCOMPAT_DIGESTS,
            (true, false) => INCOMPAT_RECORDS,
            (false, _) => 0,
        };
        let (stage, next_extent, copy, other) = Moving::encode(self.moving.as_ref());
        Encoder::new(bytes)
            .bytes(&MAGIC)
            .u32(0)
            .u32(self.version)
            .u64(self.compat)
            .u64(RO_COMPAT_KNOWN)
            .u64(layout | moving)
            .bytes(&self.pool.0)
            .u64(self.generation)
            .u64(self.device_len.0)
            .u64(SECTOR)
            .u64(self.layout.extent_len().0)
            .u64(self.layout.log_len().0)
            .u64(self.log_start)
            .u64(self.log_link.session)
            .u32(self.log_link.checksum)
            .u32(0)
            .u64(self.extent_pages)
            .u64(self.volume_pages)
            .u64(self.hole_pages)
            .u64(self.next_sequence)
            .u64(self.digest_pages)
            .u64(self.state.count)
            .bytes(&self.state.chain)
            .bytes(&self.root.0)
            .u32(stage)
            .u32(next_extent)
            .bytes(&copy)
            .bytes(&other);
        let checksum = crc32c::crc32c(bytes);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
        Metadata::from_encoding(buf)
    }

    fn decode(bytes: &[u8; SECTOR_BYTES]) -> Result<Found, SuperblockFault> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(SuperblockFault::Empty);
        }
        let mut fields = Decoder::new(bytes);
        if fields.array() != Some(MAGIC) {
            return Err(SuperblockFault::Magic);
        }
        let checksum = fields.u32().ok_or(SuperblockFault::Fields)?;
        let mut covered = *bytes;
        covered[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
        if crc32c::crc32c(&covered) != checksum {
            return Err(SuperblockFault::Checksum);
        }
        Self::decode_fields(&mut fields).ok_or(SuperblockFault::Fields)
    }

    fn decode_fields(fields: &mut Decoder<'_>) -> Option<Found> {
        let version = fields.u32()?;
        if version > FORMAT_VERSION {
            return Some(Found::NewerFormat(version));
        }
        let (compat, ro_compat, incompat) = (fields.u64()?, fields.u64()?, fields.u64()?);
        if incompat & !INCOMPAT_KNOWN != 0 || ro_compat & !RO_COMPAT_KNOWN != 0 {
            return Some(Found::UnknownFeatures {
                incompat: incompat & !INCOMPAT_KNOWN,
                ro_compat: ro_compat & !RO_COMPAT_KNOWN,
            });
        }
        let pool = PoolId(fields.array()?);
        let generation = fields.u64()?;
        let device_len = ByteLen(fields.u64()?);
        let sector_bytes = fields.u64()?;
        let records = match (incompat & INCOMPAT_RECORDS != 0, incompat & INCOMPAT_DIGESTS != 0) {
            (false, false) => SectorRecords::Absent,
            (true, false) => SectorRecords::Kept,
            (true, true) => SectorRecords::Digested,
            (false, true) => return None,
        };
        let layout = Layout::new(ByteLen(fields.u64()?), ByteLen(fields.u64()?), records).ok()?;
        let log_start = fields.u64()?;
        let session = fields.u64()?;
        let log_link = Link { session, checksum: fields.u32()? };
        let _reserved = fields.u32()?;
        let (extent_pages, volume_pages) = (fields.u64()?, fields.u64()?);
        // Zero in version 1.
        let hole_pages = fields.u64()?;
        // Zero before version 3.
        let next_sequence = fields.u64()?;
        // Zero before version 5.
        let digest_pages = fields.u64()?;
        let state = StateHead { count: fields.u64()?, chain: fields.array()? };
        let root = Root(fields.array()?);
        // Zero, and not looked at, where the pool is not being moved.
        let moving = Moving::decode(incompat & INCOMPAT_MOVING != 0, fields)?;
        let extents = layout.extents_on(device_len).ok()?;
        let pages_max = u64::from(extents.div_ceil(layout.extent_entries_per_page()));
        let sound = version >= FORMAT_VERSION_MIN
            && sector_bytes == SECTOR
            && extents > 0
            && extent_pages <= pages_max
            && volume_pages <= Layout::volume_pages_max()
            && hole_pages <= u64::from(extents) * layout.hole_pages_per_chunk()
            && generation < u64::MAX
            && log_start < u64::MAX / 2
            && next_sequence < u64::MAX / 2
            && digest_pages <= layout.digest_pages_max(extents)
            && state.count < u64::MAX / 2;
        sound.then_some(Found::Understood(Self {
            version,
            pool,
            generation,
            layout,
            device_len,
            compat,
            log_start,
            log_link,
            extent_pages,
            volume_pages,
            hole_pages,
            next_sequence,
            digest_pages,
            state,
            root,
            moving,
        }))
    }
}

/// What the two copies of the superblock say together.
#[derive(Debug)]
pub(crate) struct Superblocks {
    /// The newer good one.
    pub(crate) current: Superblock,
    /// The copy that is not the same as `current`, by number, and what is wrong with it: `None` where it is merely one
    /// change behind, as after a power cut between the two.
    pub(crate) behind: Option<(usize, Option<SuperblockFault>)>,
}

impl Superblocks {
    /// Reads both copies and decides which one counts. Writes nothing.
    pub(crate) fn read(device: &dyn Device) -> Result<Self, PoolError> {
        let name = || device.info().path;
        let copies = [read_copy(device, 0), read_copy(device, 1)];
        for copy in &copies {
            match *copy {
                Ok(Found::NewerFormat(found)) => {
                    return Err(PoolError::NewerFormat { device: name(), found });
                }
                Ok(Found::UnknownFeatures { incompat, ro_compat }) => {
                    return Err(PoolError::UnknownFeatures { device: name(), incompat, ro_compat });
                }
                Ok(Found::Understood(_)) | Err(_) => {}
            }
        }
        let [first, second] = copies.map(|copy| match copy {
            Ok(Found::Understood(superblock)) => Ok(superblock),
            Ok(_) => Err(SuperblockFault::Fields),
            Err(fault) => Err(fault),
        });
        match (first, second) {
            (Ok(first), Ok(second)) if first.pool != second.pool => {
                Err(PoolError::SuperblocksDisagree { device: name(), first: first.pool, second: second.pool })
            }
            (Ok(first), Ok(second)) if first == second => Ok(Self { current: first, behind: None }),
            (Ok(first), Ok(second)) if first.generation >= second.generation => {
                Ok(Self { current: first, behind: Some((1, None)) })
            }
            (Ok(_), Ok(second)) => Ok(Self { current: second, behind: Some((0, None)) }),
            (Ok(first), Err(fault)) => Ok(Self { current: first, behind: Some((1, Some(fault))) }),
            (Err(fault), Ok(second)) => Ok(Self { current: second, behind: Some((0, Some(fault))) }),
            (Err(first), Err(second)) => Err(no_superblock(device, first, second)),
        }
    }
}

impl Superblocks {
    /// The copy that is damaged, not merely behind.
    pub(crate) fn damaged(&self) -> Option<RepairedSuperblock> {
        let (copy, fault) = self.behind?;
        fault.map(|fault| RepairedSuperblock { sector: SUPERBLOCK_SECTORS[copy], fault })
    }
}

/// Tells a device that never held a pool from one whose superblock is lost.
fn no_superblock(device: &dyn Device, first: SuperblockFault, second: SuperblockFault) -> PoolError {
    let name = device.info().path;
    let never_one = |fault| matches!(fault, SuperblockFault::Empty | SuperblockFault::Magic);
    let found = match probe::contents(device) {
        Ok(found) => found,
        Err(error) => return error,
    };
    match found {
        None => PoolError::NoPool { device: name },
        Some(found) if never_one(first) && never_one(second) && found != probe::UNKNOWN => {
            PoolError::HoldsOtherData { device: name, found }
        }
        Some(_) => PoolError::SuperblocksDamaged {
            device: name,
            first,
            second,
            second_sector: SUPERBLOCK_SECTORS[1],
        },
    }
}

fn read_copy(device: &dyn Device, copy: usize) -> Result<Found, SuperblockFault> {
    let sector =
        device.read_metadata(superblock_at(copy), SectorCount(1)).map_err(|_| SuperblockFault::Unreadable)?;
    let bytes = sector.as_bytes().first_chunk().ok_or(SuperblockFault::Unreadable)?;
    Superblock::decode(bytes)
}

/// Where copy `copy` (0 or 1) lies.
pub(crate) fn superblock_at(copy: usize) -> ByteOffset {
    ByteOffset(SUPERBLOCK_SECTORS[copy] * SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Tables;

    const COPY: [u8; 16] = [7; 16];

    fn superblock(moving: Option<Moving>) -> Superblock {
        let log = ByteLen(64 << 10);
        Superblock {
            version: FORMAT_VERSION,
            pool: PoolId([3; 16]),
            generation: 9,
            layout: Layout::new(ByteLen(64 << 10), log, SectorRecords::Digested).unwrap(),
            device_len: ByteLen(16 << 20),
            compat: 0,
            log_start: 5,
            log_link: Link { session: 1, checksum: 2 },
            extent_pages: 0,
            volume_pages: 0,
            hole_pages: 0,
            next_sequence: 1,
            digest_pages: 0,
            state: StateHead::BEGINNING,
            root: Tables::default().root(),
            moving,
        }
    }

    fn decoded(bytes: &[u8]) -> Result<Superblock, SuperblockFault> {
        match Superblock::decode(bytes.first_chunk().unwrap())? {
            Found::Understood(superblock) => Ok(superblock),
            Found::NewerFormat(_) | Found::UnknownFeatures { .. } => panic!("it is understood"),
        }
    }

    /// What FORMAT.md says of a pool that is being moved, byte for byte.
    #[test]
    fn each_stage_of_a_move_has_its_bytes_and_none_has_no_trace() {
        let stages = [
            (MovingStage::Incoming { next_extent: 0x0102_0304 }, [1, 0, 0, 0, 4, 3, 2, 1]),
            (MovingStage::Copying, [2, 0, 0, 0, 0, 0, 0, 0]),
            (MovingStage::HandingOver, [3, 0, 0, 0, 0, 0, 0, 0]),
            (MovingStage::Moved, [4, 0, 0, 0, 0, 0, 0, 0]),
        ];
        for (stage, golden) in stages {
            let written = superblock(Some(Moving::new(stage, COPY, "/dev/disk")));
            let encoded = written.encode();
            let bytes = encoded.as_bytes();
            assert_eq!(bytes[32..40], [7, 0, 0, 0, 0, 0, 0, 0], "records, digests, moving");
            assert_eq!(bytes[232..240], golden);
            assert_eq!(bytes[240..256], COPY);
            assert_eq!(&bytes[256..265], b"/dev/disk");
            assert!(bytes[265..].iter().all(|byte| *byte == 0));
            assert_eq!(decoded(bytes), Ok(written));
        }
        let encoded = superblock(None).encode();
        assert_eq!(encoded.as_bytes()[32], 3);
        assert!(encoded.as_bytes()[232..].iter().all(|byte| *byte == 0));
        assert_eq!(decoded(encoded.as_bytes()), Ok(superblock(None)));
    }

    #[test]
    fn a_stage_that_is_not_known_is_no_superblock() {
        let encoded = superblock(Some(Moving::new(MovingStage::Copying, COPY, ""))).encode();
        for stage in [0, 5, 255] {
            let mut bytes = encoded.as_bytes().to_vec();
            bytes[232] = stage;
            bytes[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
            let checksum = crc32c::crc32c(&bytes);
            bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
            assert_eq!(decoded(&bytes), Err(SuperblockFault::Fields), "{stage}");
        }
    }

    #[test]
    fn a_long_path_is_cut_between_two_letters() {
        let path = format!("/dev/{}", "\u{e4}".repeat(100));
        let moving = Moving::new(MovingStage::Moved, COPY, &path);
        assert_eq!(moving.other_path(), format!("/dev/{}", "\u{e4}".repeat(61)));
        assert_eq!(Moving::new(MovingStage::Moved, COPY, "").other_path(), "");
    }
}
