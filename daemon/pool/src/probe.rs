//! What a device holds that is not a pool, so that nobody's data is overwritten by mistake.

use device::Device;
use units::{ByteLen, ByteOffset, SECTOR_BYTES, SectorCount};

use crate::PoolError;
use crate::layout::SECTOR;

/// How much of the start is looked at: every file system in use puts something in its first MiB.
const START_BYTES: u64 = 1 << 20;
/// How much of the end: the second GPT, and array superblocks of the older kind.
const END_BYTES: u64 = 128 << 10;

/// A signature: what it is of, where it stands, what it is.
type Signature = (&'static str, usize, &'static [u8]);

/// From util-linux's libblkid and the projects' own headers. The more telling come first: a partition table's boot
/// sector is also the start of some file systems.
const SIGNATURES: &[Signature] = &[
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("an XFS file system", 0, b"XFSB"),
    ("a Ceph BlueStore device", 0, b"bluestore block device"),
    ("a squashfs image", 0, b"hsqs"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 1024, b"LABELONE"),
    ("an LVM physical volume", 1536, b"LABELONE"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("a BitLocker volume", 3, b"-FVE-FS-"),
    ("a partition table (GPT)", 512, b"EFI PART"),
    ("a partition table (GPT)", 4096, b"EFI PART"),
    ("an ext2, ext3 or ext4 file system", 1080, b"\x53\xef"),
    ("an F2FS file system", 1024, b"\x10\x20\xf5\xf2"),
    ("an EROFS file system", 1024, b"\xe2\xe1\xf5\xe0"),
    ("a Linux RAID member", 0, b"\xfc\x4e\x2b\xa9"),
    ("a Linux RAID member", 4096, b"\xfc\x4e\x2b\xa9"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("an ISO 9660 image", 32769, b"CD001"),
    ("a btrfs file system", 65600, b"_BHRfS_M"),
    ("a bcachefs or bcache device", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    ("a ZFS member", 131_072, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
    ("a qcow2 disk image", 0, b"QFI\xfb"),
    ("a boot sector or partition table", 510, b"\x55\xaa"),
];

/// The answer where there is something, and no signature says what.
pub(crate) const UNKNOWN: &str = "data of an unknown kind";

/// Names what is on the device; `None` where start and end are all zeros.
pub(crate) fn contents(device: &dyn Device) -> Result<Option<&'static str>, PoolError> {
    let len = device.len().0;
    let start = read(device, 0, START_BYTES.min(len))?;
    for (name, at, magic) in SIGNATURES {
        if start.get(*at..at + magic.len()) == Some(*magic) {
            return Ok(Some(name));
        }
    }
    let end_at = len.saturating_sub(END_BYTES);
    let end = read(device, end_at, len - end_at)?;
    let blank = start.iter().chain(&end).all(|byte| *byte == 0);
    Ok(if blank { None } else { Some(UNKNOWN) })
}

fn read(device: &dyn Device, at: u64, len: u64) -> Result<Vec<u8>, PoolError> {
    let count = SectorCount(len / SECTOR);
    debug_assert!(ByteLen(len).is_sector_aligned() && SECTOR_BYTES == 4096);
    Ok(device.read(ByteOffset(at), count)?.as_bytes().to_vec())
}
