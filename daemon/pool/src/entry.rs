//! Entries of the two tables, as they are on disk and as log records carry them.
//!
//! An entry says all there is to say of one volume or one extent, so writing it twice, or after a later one has been
//! read back from the log, changes nothing.

use units::{DomainId, Fence, PoolId, SectorCount, VolumeEpoch, VolumeId};

use crate::bytes::{Decoder, Encoder};
use crate::layout::{EXTENT_ENTRY_HEADER_BYTES, Layout, VOLUME_ENTRY_BYTES};
use crate::presence::Presence;
use crate::{VolumeKind, VolumeSpec};

/// Tells one life of a volume slot from the next. Never reused: extents that name a serial no live volume has are
/// free, so deleting a volume is writing one entry. Zero is no volume's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct VolumeSerial(pub(crate) u64);

impl VolumeSerial {
    const NONE: Self = Self(0);
}

/// The checksum of an entry covers the pool and the entry's number, so that one in the wrong place is noticed.
fn checksum(pool: PoolId, index: u32, bytes: &[u8]) -> u32 {
    let seed = crc32c::crc32c_append(crc32c::crc32c(&pool.0), &index.to_le_bytes());
    crc32c::crc32c_append(seed, bytes)
}

/// Splits off the leading checksum of an entry and verifies it.
fn verified(pool: PoolId, index: u32, entry: &[u8]) -> Option<&[u8]> {
    let (stored, fields) = entry.split_first_chunk()?;
    (checksum(pool, index, fields) == u32::from_le_bytes(*stored)).then_some(fields)
}

fn put_checksum(pool: PoolId, index: u32, entry: &mut [u8]) {
    let sum = checksum(pool, index, &entry[4..]);
    entry[..4].copy_from_slice(&sum.to_le_bytes());
}

/// What the table says of an extent that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) volume: VolumeSerial,
    /// Which extent of the volume this is.
    pub(crate) logical: u64,
    pub(crate) epoch: VolumeEpoch,
    pub(crate) presence: Presence,
}

/// Writes the entry of extent `index` into `out`, which has the length of an entry. `None` is a free extent.
pub(crate) fn encode_extent(
    layout: Layout,
    pool: PoolId,
    index: u32,
    mapping: Option<&Mapping>,
    out: &mut [u8],
) {
    out.fill(0);
    if let Some(mapping) = mapping {
        Encoder::new(out)
            .u32(0)
            .u32(mapping.epoch.0)
            .u64(mapping.volume.0)
            .u64(mapping.logical)
            .bytes(&mapping.presence.to_bitmap(layout.extent_sectors()));
    }
    put_checksum(pool, index, out);
}

/// Reads the entry of extent `index`; `None` where its checksum is wrong.
pub(crate) fn decode_extent(
    layout: Layout,
    pool: PoolId,
    index: u32,
    entry: &[u8],
) -> Option<Option<Mapping>> {
    let mut fields = Decoder::new(verified(pool, index, entry)?);
    let epoch = VolumeEpoch(fields.u32()?);
    let volume = VolumeSerial(fields.u64()?);
    let logical = fields.u64()?;
    if volume == VolumeSerial::NONE {
        return Some(None);
    }
    let presence = Presence::from_bitmap(fields.bytes(layout.bitmap_bytes())?, layout.extent_sectors());
    Some(Some(Mapping { volume, logical, epoch, presence }))
}

/// Bytes of an extent entry without the padding at its end: what a log record carries.
pub(crate) fn extent_record_bytes(layout: Layout) -> usize {
    EXTENT_ENTRY_HEADER_BYTES + layout.bitmap_bytes()
}

/// What the table says of a slot that has been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VolumeEntry {
    /// Kept when the volume is deleted: the next serial is above every serial in the table.
    pub(crate) serial: VolumeSerial,
    /// `None` once deleted.
    pub(crate) volume: Option<VolumeRecord>,
}

/// A live volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VolumeRecord {
    pub(crate) spec: VolumeSpec,
    pub(crate) fence: Fence,
}

const STATE_UNUSED: u8 = 0;
const STATE_LIVE: u8 = 1;
const STATE_DELETED: u8 = 2;
const KIND_BLOCK: u8 = 1;
const KIND_OBJECTS: u8 = 2;

/// Writes the entry of volume slot `slot`. `None` is a slot that was never used.
pub(crate) fn encode_volume(pool: PoolId, slot: u32, entry: Option<&VolumeEntry>, out: &mut [u8]) {
    out.fill(0);
    match entry {
        None => {}
        Some(VolumeEntry { serial, volume: None }) => {
            Encoder::new(out).u32(0).u8(STATE_DELETED).bytes(&[0; 3]).u64(serial.0);
        }
        Some(VolumeEntry { serial, volume: Some(VolumeRecord { spec, fence }) }) => {
            let kind = match spec.kind {
                VolumeKind::Block => KIND_BLOCK,
                VolumeKind::Objects => KIND_OBJECTS,
            };
            Encoder::new(out)
                .u32(0)
                .u8(STATE_LIVE)
                .u8(kind)
                .bytes(&[0; 2])
                .u64(serial.0)
                .bytes(&spec.id.0)
                .bytes(&spec.domain.0)
                .bytes(&spec.check)
                .u64(spec.sectors.0)
                .u64(fence.0)
                .u32(spec.epoch.0);
        }
    }
    put_checksum(pool, slot, out);
}

/// Why a volume entry cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VolumeEntryFault {
    Checksum,
    Fields,
}

/// Reads the entry of volume slot `slot`.
pub(crate) fn decode_volume(
    pool: PoolId,
    slot: u32,
    entry: &[u8],
) -> Result<Option<VolumeEntry>, VolumeEntryFault> {
    debug_assert_eq!(entry.len(), VOLUME_ENTRY_BYTES);
    let fields = verified(pool, slot, entry).ok_or(VolumeEntryFault::Checksum)?;
    decode_volume_fields(&mut Decoder::new(fields)).ok_or(VolumeEntryFault::Fields)
}

fn decode_volume_fields(fields: &mut Decoder<'_>) -> Option<Option<VolumeEntry>> {
    let state = fields.u8()?;
    let kind = fields.u8()?;
    let _reserved = fields.array::<2>()?;
    let serial = VolumeSerial(fields.u64()?);
    match state {
        STATE_UNUSED => return Some(None),
        STATE_DELETED => return Some(Some(VolumeEntry { serial, volume: None })),
        STATE_LIVE => {}
        _ => return None,
    }
    let kind = match kind {
        KIND_BLOCK => VolumeKind::Block,
        KIND_OBJECTS => VolumeKind::Objects,
        _ => return None,
    };
    let (id, domain, check) = (VolumeId(fields.array()?), DomainId(fields.array()?), fields.array()?);
    let sectors = SectorCount(fields.u64()?);
    let fence = Fence(fields.u64()?);
    let epoch = VolumeEpoch(fields.u32()?);
    let spec = VolumeSpec { id, sectors, domain, epoch, check, kind };
    let sound = serial != VolumeSerial::NONE && spec.size_is_allowed();
    sound.then_some(Some(VolumeEntry { serial, volume: Some(VolumeRecord { spec, fence }) }))
}
