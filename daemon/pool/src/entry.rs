//! Entries of the three tables, as they are on disk and as log records carry them.
//!
//! An entry says all there is to say of one volume, one snapshot, one extent or the holes of one place, so writing it
//! twice, or after a later one has been read back from the log, changes nothing.

use units::{DomainId, Fence, Lba, PoolId, SECTORS_MAX, SectorCount, VolumeEpoch, VolumeId};

use crate::bytes::{Decoder, Encoder};
use crate::layout::{EXTENT_ENTRY_HEADER_BYTES, Layout, VOLUME_ENTRY_BYTES};
use crate::presence::Presence;
use crate::{LEVELS_MAX, Limits, VolumeKind, VolumeSpec};

/// A line of history that extents are born into: that of a volume since it was made, cloned or rolled back. Numbers
/// are never reused: extents that name a branch which no volume or snapshot looks at are free, so deleting a volume is
/// writing one entry. Zero is no branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BranchId(pub(crate) u64);

impl BranchId {
    const NONE: Self = Self(0);
    /// The owner of the extents that hold the hole table.
    pub(crate) const HOLE_TABLE: Self = Self(u64::MAX);
}

/// A point in a branch's history; a snapshot ends one and begins the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Moment(pub(crate) u32);

impl Moment {
    pub(crate) const MAX: Self = Self((1 << MOMENT_BITS) - 1);
    /// From here on a volume is said to run out of moments: two years before it does, at one a second.
    pub(crate) const FEW_LEFT: Self = Self(Self::MAX.0 / 8 * 7);
    const _FITS: () = assert!(MOMENT_BITS + LOGICAL_BITS == 64 && SECTORS_MAX / 16 < 1 << LOGICAL_BITS);

    pub(crate) fn next(self) -> Option<Self> {
        (self < Self::MAX).then_some(Self(self.0 + 1))
    }
}

/// At one a second they last for seventeen years.
const MOMENT_BITS: u32 = 29;
const LOGICAL_BITS: u32 = 35;
/// Of a moment on disk these bits come on top, and what versions before 6 did not have below them.
const MOMENT_LOW_BITS: u32 = 24;

/// Which extent of a volume, and the moment it was born in. In order: all of one extent's history together, oldest
/// first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place(u64);

impl Place {
    pub(crate) fn new(logical: u64, moment: Moment) -> Self {
        debug_assert!(logical < 1 << LOGICAL_BITS && moment <= Moment::MAX);
        Self(logical << MOMENT_BITS | u64::from(moment.0))
    }

    pub(crate) fn logical(self) -> u64 {
        self.0 >> MOMENT_BITS
    }

    pub(crate) fn moment(self) -> Moment {
        Moment(u32::try_from(self.0 & u64::from(Moment::MAX.0)).unwrap_or(0))
    }

    /// On disk the moment comes on top, so that an entry of version 1, which has none, reads as the first. Its low bits come
    /// above its high ones, which entries before version 6 lack: there they are zero.
    fn to_disk(self) -> u64 {
        let moment = u64::from(self.moment().0);
        self.logical() | moment >> MOMENT_LOW_BITS << LOGICAL_BITS | moment << (u64::BITS - MOMENT_LOW_BITS)
    }

    fn from_disk(bits: u64) -> Self {
        let logical = bits & ((1 << LOGICAL_BITS) - 1);
        let high = bits >> LOGICAL_BITS & ((1 << (MOMENT_BITS - MOMENT_LOW_BITS)) - 1);
        let moment = high << MOMENT_LOW_BITS | bits >> (u64::BITS - MOMENT_LOW_BITS);
        Self(logical << MOMENT_BITS | moment)
    }
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

/// What the extent table says of an extent in use, and the hole table of an entry in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) branch: BranchId,
    pub(crate) place: Place,
    pub(crate) epoch: VolumeEpoch,
    /// In the extent table the sectors that hold something, in the hole table those that are holes although something
    /// older is below.
    pub(crate) sectors: Presence,
}

/// Writes entry `index` into `out`, which has the length of an entry. `None` is a free one.
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
            .u64(mapping.branch.0)
            .u64(mapping.place.to_disk())
            .bytes(&mapping.sectors.to_bitmap(layout.extent_sectors()));
    }
    put_checksum(pool, index, out);
}

/// Reads entry `index`; `None` where its checksum is wrong.
pub(crate) fn decode_extent(
    layout: Layout,
    pool: PoolId,
    index: u32,
    entry: &[u8],
) -> Option<Option<Mapping>> {
    let mut fields = Decoder::new(verified(pool, index, entry)?);
    let epoch = VolumeEpoch(fields.u32()?);
    let branch = BranchId(fields.u64()?);
    let place = Place::from_disk(fields.u64()?);
    if branch == BranchId::NONE {
        return Some(None);
    }
    let sectors = Presence::from_bitmap(fields.bytes(layout.bitmap_bytes())?, layout.extent_sectors());
    Some(Some(Mapping { branch, place, epoch, sectors }))
}

/// Bytes of an extent entry without the padding at its end: what a log record carries.
pub(crate) fn extent_record_bytes(layout: Layout) -> usize {
    EXTENT_ENTRY_HEADER_BYTES + layout.bitmap_bytes()
}

/// What the table says of a slot that has been used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeEntry {
    /// Never used for another life of this slot or any other. A volume's is its branch. Kept when it is deleted: the
    /// next one is above every one in the table.
    pub(crate) serial: BranchId,
    /// `None` once deleted.
    pub(crate) volume: Option<VolumeRecord>,
}

/// A volume or a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeRecord {
    pub(crate) spec: VolumeSpec,
    pub(crate) role: Role,
    /// What it shows: of each branch everything born up to a moment, the first level that has a sector before those
    /// below. At least one, at most [`LEVELS_MAX`], newer branches first. A volume's first level is its own branch and
    /// the moment that new extents are born in.
    pub(crate) levels: Vec<Level>,
    /// A snapshot's volume, a clone's snapshot.
    pub(crate) origin: Option<VolumeId>,
    /// Seconds since 1970, zero where nobody said.
    pub(crate) created_s: u64,
    /// Blocks encrypted under its domain and epoch that are counted here, and those reserved ahead.
    pub(crate) blocks: u64,
    /// A snapshot's retention lock, seconds; 0 for none.
    pub(crate) lock_s: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) branch: BranchId,
    pub(crate) moment: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Volume {
        fence: Fence,
        limits: Limits,
    },
    Snapshot,
    /// Takes what is sent to it, and nothing else.
    Replica {
        receiving: Option<Receiving>,
    },
}

/// A snapshot on its way to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receiving {
    pub(crate) snapshot: VolumeId,
    /// Everything before it has arrived.
    pub(crate) next: Lba,
}

/// Branch and moment of each.
const LEVELS_BYTES: usize = LEVELS_MAX * 12;

const STATE_REPLICA: u8 = 4;
const STATE_UNUSED: u8 = 0;
const STATE_VOLUME: u8 = 1;
const STATE_DELETED: u8 = 2;
const STATE_SNAPSHOT: u8 = 3;
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
        Some(VolumeEntry { serial, volume: Some(record) }) => encode_record(*serial, record, out),
    }
    put_checksum(pool, slot, out);
}

fn encode_record(serial: BranchId, record: &VolumeRecord, out: &mut [u8]) {
    let VolumeRecord { spec, role, levels, origin, created_s, blocks, lock_s } = record;
    let kind = match spec.kind {
        VolumeKind::Block => KIND_BLOCK,
        VolumeKind::Objects => KIND_OBJECTS,
    };
    let (state, fence, limits) = match role {
        Role::Replica { .. } => (STATE_REPLICA, Fence(0), Limits::default()),
        Role::Volume { fence, limits } => (STATE_VOLUME, *fence, *limits),
        Role::Snapshot => (STATE_SNAPSHOT, Fence(0), Limits::default()),
    };
    // A volume's own branch is its serial, so that an entry of version 1 reads as one that was never snapshotted.
    let (moment, below) = match (role, &levels[..]) {
        (Role::Snapshot, levels) => (0, levels),
        (_, [own, below @ ..]) => (own.moment.0, below),
        (_, []) => (0, &[][..]),
    };
    let (origin, of_role) = match role {
        Role::Volume { limits, .. } => (*origin, limits.ceilings.to_disk()),
        Role::Snapshot => (*origin, *created_s),
        Role::Replica { receiving: Some(receiving) } => (Some(receiving.snapshot), receiving.next.0),
        Role::Replica { receiving: None } => (None, 0),
    };
    let of_quota = match role {
        Role::Snapshot => *lock_s,
        _ => limits.quota.map_or(0, |quota| quota.0),
    };
    let mut out = Encoder::new(out);
    out.u32(0)
        .u8(state)
        .u8(kind)
        .bytes(&[0; 2])
        .u64(serial.0)
        .bytes(&spec.id.0)
        .bytes(&spec.domain.0)
        .bytes(&spec.check)
        .u64(spec.sectors.0)
        .u64(fence.0)
        .u32(spec.epoch.0)
        .u32(moment)
        .bytes(&origin.map_or([0; 16], |origin| origin.0))
        .u64(of_role)
        .u64(of_quota)
        .u64(limits.reserve.0);
    for level in below {
        out.u64(level.branch.0).u32(level.moment.0);
    }
    for _ in below.len()..LEVELS_MAX {
        out.u64(0).u32(0);
    }
    out.u64(*blocks);
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
    let serial = BranchId(fields.u64()?);
    // Before there are as many, the pool is dust; what names more was never written here.
    if serial.0 >= u64::MAX / 2 {
        return None;
    }
    match state {
        STATE_UNUSED => return Some(None),
        STATE_DELETED => return Some(Some(VolumeEntry { serial, volume: None })),
        STATE_VOLUME | STATE_SNAPSHOT | STATE_REPLICA => {}
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
    let moment = Moment(fields.u32()?);
    let origin = fields.array()?;
    let origin = (origin != [0; 16]).then_some(VolumeId(origin));
    let of_role = fields.u64()?;
    let of_quota = fields.u64()?;
    let limits = Limits::from_disk(of_role, of_quota, fields.u64()?);
    let lock_s = if state == STATE_SNAPSHOT { of_quota } else { 0 };
    let spec = VolumeSpec { id, sectors, domain, epoch, check, kind };
    let own = Some(Level { branch: serial, moment });
    let (role, own, origin, created_s) = match state {
        STATE_VOLUME => (Role::Volume { fence, limits }, own, origin, 0),
        STATE_REPLICA => {
            let receiving = origin.map(|snapshot| Receiving { snapshot, next: Lba(of_role) });
            (Role::Replica { receiving }, own, None, 0)
        }
        _ => (Role::Snapshot, None, origin, of_role),
    };
    let levels = decode_levels(serial, own, &mut Decoder::new(fields.bytes(LEVELS_BYTES)?))?;
    let blocks = fields.u64()?;
    let sound = serial != BranchId::NONE && spec.size_is_allowed();
    let record = VolumeRecord { spec, role, levels, origin, created_s, blocks, lock_s };
    sound.then_some(Some(VolumeEntry { serial, volume: Some(record) }))
}

/// Reads levels up to the first empty one. Each is older than the one above, so there is no circle.
fn decode_levels(serial: BranchId, own: Option<Level>, fields: &mut Decoder<'_>) -> Option<Vec<Level>> {
    let mut levels: Vec<Level> = own.into_iter().collect();
    while levels.len() < LEVELS_MAX {
        let level = Level { branch: BranchId(fields.u64()?), moment: Moment(fields.u32()?) };
        if level.branch == BranchId::NONE {
            break;
        }
        levels.push(level);
    }
    let older = |pair: &[Level]| pair[1].branch < pair[0].branch;
    let sound = levels.first().is_some_and(|first| first.branch <= serial)
        && levels.windows(2).all(older)
        && levels.iter().all(|level| level.moment <= Moment::MAX);
    sound.then_some(levels)
}

#[cfg(test)]
mod tests {
    use units::ByteLen;

    use super::*;
    use crate::Ceilings;

    const POOL: PoolId = PoolId([3; 16]);

    fn entry(state: Role, levels: usize) -> VolumeEntry {
        let spec = VolumeSpec {
            id: VolumeId([1; 16]),
            sectors: SectorCount(77),
            domain: DomainId([2; 16]),
            epoch: VolumeEpoch(5),
            check: [6; 16],
            kind: VolumeKind::Objects,
        };
        let levels = (0..levels as u64)
            .map(|nth| Level { branch: BranchId(100 - nth), moment: Moment::MAX })
            .collect();
        let created_s = if state == Role::Snapshot { 8 } else { 0 };
        let origin = (!matches!(state, Role::Replica { .. })).then_some(VolumeId([9; 16]));
        let lock_s = if state == Role::Snapshot { 7 * 86_400 } else { 0 };
        let record = VolumeRecord { spec, role: state, levels, origin, created_s, blocks: 1 << 43, lock_s };
        VolumeEntry { serial: BranchId(100), volume: Some(record) }
    }

    #[test]
    fn a_volume_and_a_snapshot_are_read_back_with_up_to_the_most_levels() {
        let ceilings = Ceilings { requests_per_s: Some(500), bytes_per_s: Some(ByteLen(3 << 20)) };
        let limits = Limits { quota: Some(ByteLen(1 << 40)), reserve: ByteLen(1 << 30), ceilings };
        let receiving = Some(Receiving { snapshot: VolumeId([5; 16]), next: Lba(77) });
        for role in [
            Role::Volume { fence: Fence(7), limits },
            Role::Snapshot,
            Role::Replica { receiving },
            Role::Replica { receiving: None },
        ] {
            for levels in 1..=LEVELS_MAX {
                let entry = entry(role, levels);
                let mut bytes = [0; VOLUME_ENTRY_BYTES];
                encode_volume(POOL, 4, Some(&entry), &mut bytes);
                assert_eq!(decode_volume(POOL, 4, &bytes), Ok(Some(entry)));
            }
        }
    }

    #[test]
    fn levels_that_could_go_in_a_circle_are_refused() {
        let mut circle = entry(Role::Snapshot, 3);
        if let Some(record) = &mut circle.volume {
            record.levels[2] = record.levels[0];
        }
        let mut bytes = [0; VOLUME_ENTRY_BYTES];
        encode_volume(POOL, 4, Some(&circle), &mut bytes);
        assert_eq!(decode_volume(POOL, 4, &bytes), Err(VolumeEntryFault::Fields));
    }

    #[test]
    fn places_are_in_the_order_of_an_extents_history_and_version_1_is_the_first_moment() {
        let last = Place::new((1 << LOGICAL_BITS) - 1, Moment::MAX);
        assert!(Place::new(1, Moment::MAX) < Place::new(2, Moment(0)));
        assert!(Place::new(1, Moment(1)) < Place::new(1, Moment(2)));
        assert_eq!((last.logical(), last.moment()), ((1 << LOGICAL_BITS) - 1, Moment::MAX));
        assert_eq!(Place::from_disk(last.to_disk()), last);
        assert_eq!(Place::from_disk(12345), Place::new(12345, Moment(0)));
    }

    /// What moments have more of since version 6 lies in bits that were zero.
    #[test]
    fn a_place_of_version_5_reads_as_it_did_and_each_bit_of_one_of_today_is_kept() {
        for moment in [0, 1, 77, (1 << MOMENT_LOW_BITS) - 1] {
            let place = Place::new(SECTORS_MAX / 16, Moment(moment));
            let before = SECTORS_MAX / 16 | u64::from(moment) << 40;
            assert_eq!((place.to_disk(), Place::from_disk(before)), (before, place));
        }
        for bit in 0..u64::BITS {
            let place = Place(1 << bit);
            assert_eq!(Place::from_disk(place.to_disk()), place);
            assert_eq!(place.to_disk().count_ones(), 1);
        }
    }
}
