//! A GUID partition table (UEFI specification, chapter 5): a protective record, a header, 128 entries, and both again at the end.

use crate::error::{ImageError, Result};

pub(crate) const SECTOR_BYTES: u64 = 512;

/// Partitions begin at multiples of this.
pub(crate) const ALIGNMENT_BYTES: u64 = 1 << 20;

const ENTRIES: usize = 128;
const ENTRY_BYTES: usize = 128;
const HEADER_BYTES: u32 = 92;
const TABLE_SECTORS: u64 = (ENTRIES * ENTRY_BYTES) as u64 / SECTOR_BYTES;
/// As the header has them.
const ENTRIES_FIELD: u32 = 128;
const ENTRY_BYTES_FIELD: u32 = 128;
const SECTOR_LEN: usize = 512;

/// A partition's type, as the Discoverable Partitions Specification names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    EfiSystem,
    Root,
    RootTree,
    State,
}

impl Kind {
    const fn guid(self) -> u128 {
        match self {
            Self::EfiSystem => 0xC12A_7328_F81F_11D2_BA4B_00A0_C93E_C93B,
            Self::Root => 0x4F68_BCE3_E8CD_4DB1_96E7_FBCA_F984_B709,
            Self::RootTree => 0x2C73_57ED_EBD2_46D9_AEC1_23D4_37EC_2BF5,
            Self::State => 0x4D21_B016_B534_45C2_A9FB_5C16_E091_FD2D,
        }
    }
}

/// One partition.
#[derive(Clone, Debug)]
pub(crate) struct Partition {
    pub(crate) kind: Kind,
    /// Up to 36 characters of ASCII.
    pub(crate) name: String,
    pub(crate) guid: u128,
    pub(crate) bytes: u64,
}

/// A table with its places.
#[derive(Debug)]
pub(crate) struct Table {
    /// Where each partition begins, in order.
    pub(crate) starts: Vec<u64>,
    /// The whole disk's length.
    pub(crate) disk_bytes: u64,
    /// What stands at the beginning and at the end.
    pub(crate) head: Vec<u8>,
    pub(crate) tail: Vec<u8>,
}

/// GUIDs are stored with their first three fields in little-endian order.
fn guid_bytes(guid: u128) -> [u8; 16] {
    let mut bytes = guid.to_be_bytes();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

/// Lays the partitions out one behind the other.
///
/// # Errors
/// Where there are more than a table takes, or one is empty.
pub(crate) fn lay_out(disk_guid: u128, partitions: &[Partition]) -> Result<Table> {
    if partitions.len() > ENTRIES {
        return Err(ImageError::TooLarge {
            what: "the partition table".to_owned(),
            bytes: partitions.len() as u64,
            limit: ENTRIES as u64,
        });
    }
    let mut entries = Vec::with_capacity(ENTRIES * ENTRY_BYTES);
    let mut starts = Vec::new();
    let mut next = ALIGNMENT_BYTES;
    for partition in partitions {
        starts.push(next);
        let end = next + partition.bytes;
        entries.extend_from_slice(&guid_bytes(partition.kind.guid()));
        entries.extend_from_slice(&guid_bytes(partition.guid));
        entries.extend_from_slice(&(next / SECTOR_BYTES).to_le_bytes());
        entries.extend_from_slice(&(end.div_ceil(SECTOR_BYTES) - 1).to_le_bytes());
        entries.extend_from_slice(&0_u64.to_le_bytes());
        let name: Vec<u8> = partition.name.encode_utf16().take(36).flat_map(u16::to_le_bytes).collect();
        entries.extend_from_slice(&name);
        entries.resize(entries.len().next_multiple_of(ENTRY_BYTES), 0);
        next = end.next_multiple_of(ALIGNMENT_BYTES);
    }
    entries.resize(ENTRIES * ENTRY_BYTES, 0);
    // Room for the second table, in an alignment of its own.
    let disk_bytes = next + ALIGNMENT_BYTES;
    let last = disk_bytes / SECTOR_BYTES - 1;
    let header = |own: u64, other: u64, table: u64| {
        let mut bytes = Vec::with_capacity(SECTOR_LEN);
        bytes.extend_from_slice(b"EFI PART");
        bytes.extend_from_slice(&0x0001_0000_u32.to_le_bytes());
        bytes.extend_from_slice(&HEADER_BYTES.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]); // its checksum, then nothing
        bytes.extend_from_slice(&own.to_le_bytes());
        bytes.extend_from_slice(&other.to_le_bytes());
        bytes.extend_from_slice(&(2 + TABLE_SECTORS).to_le_bytes());
        bytes.extend_from_slice(&(last - TABLE_SECTORS - 1).to_le_bytes());
        bytes.extend_from_slice(&guid_bytes(disk_guid));
        bytes.extend_from_slice(&table.to_le_bytes());
        bytes.extend_from_slice(&ENTRIES_FIELD.to_le_bytes());
        bytes.extend_from_slice(&ENTRY_BYTES_FIELD.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        let checksum = crc32fast::hash(&bytes);
        bytes[16..20].copy_from_slice(&checksum.to_le_bytes());
        bytes.resize(SECTOR_LEN, 0);
        bytes
    };
    let head = [protective_record(last), header(1, last, 2), entries.clone()].concat();
    let tail = [entries.clone(), header(last, 1, last - TABLE_SECTORS)].concat();
    Ok(Table { starts, disk_bytes, head, tail })
}

/// For programs that know no GPT: one partition over everything.
fn protective_record(last: u64) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR_LEN];
    let entry = &mut bytes[446..462];
    entry[1..4].copy_from_slice(&[0, 2, 0]);
    entry[4] = 0xEE;
    entry[5..8].copy_from_slice(&[0xFF; 3]);
    entry[8..12].copy_from_slice(&1_u32.to_le_bytes());
    entry[12..16].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    bytes[510..].copy_from_slice(&[0x55, 0xAA]);
    bytes
}
