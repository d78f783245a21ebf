//! FORMAT.md's table of what somebody who can write to the device may try, row by row: what is noticed when the sector is
//! read is an error that says what is wrong, the neighbours are as they were, and a whole new write mends the sector.
#![expect(clippy::unwrap_used, reason = "a test")]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::error::Error;

use device::{Device, Sealed, SectorBuf, SectorRecord, SimulatedDevice};
use keyring::Integrity;
use pool::{Piece, VolumeKind};
use sealing::simulated::SimulatedNode;
use sealing::{Bound, Clear, Damage, Durability, ErrorKind, UnsealError, seal, unseal};
use support::{Random, index, seed};
use units::{ByteLen, ByteOffset, DomainId, Fence, Lba, SECTOR_BYTES, SectorCount, VolumeEpoch};

const SECTOR: u64 = SECTOR_BYTES as u64;
const SECTORS: u64 = 48;
const RECORD_BYTES: usize = 32;
/// The superblocks, the volume table and a log of 1 MiB: what lies behind them are tables, records and ciphertext.
const METADATA_SECTORS: u64 = (3 << 20) / SECTOR;

/// A restarted node whose volume holds `content`, in its places, with every record in its page.
struct Disk {
    node: SimulatedNode,
    content: Vec<u8>,
}

/// A sector of the device.
type Page = u64;

impl Disk {
    fn new(random: &mut Random) -> Self {
        let device = SimulatedDevice::new(ByteLen(64 << 20));
        let node = SimulatedNode::create(device, ByteLen(2 << 20), VolumeKind::Block);
        let content = random.bytes(SECTORS * SECTOR);
        node.volume().write(ByteOffset(0), &content, Durability::Durable).unwrap();
        let disk = Self { node, content };
        disk.fill_log();
        disk.restarted()
    }

    /// Until the log has been emptied into the tables at least once.
    fn fill_log(&self) {
        let volume = self.node.pool_volume();
        let fence = volume.info().fence.0;
        for nth in 1..=300 {
            self.node.pool().raise_fence(volume.id(), Fence(fence + nth)).unwrap();
        }
    }

    fn restarted(self) -> Self {
        Self { node: self.node.killed(), ..self }
    }

    fn device(&self) -> &SimulatedDevice {
        self.node.device()
    }

    /// Where the ciphertext of a sector of the volume lies, and its record: page and offset in it.
    fn places(&self, sector: u64) -> (Page, (Page, usize)) {
        let pieces = self.node.pool_volume().read(Lba(sector), SectorCount(1)).unwrap();
        let [Piece::Sealed { data, .. }] = &pieces[..] else { panic!("one sector: {pieces:?}") };
        let tag = data.records()[0].tag;
        let (mut ciphertext, mut record) = (Vec::new(), Vec::new());
        for (page, bytes) in self.device().content().into_iter().filter(|(page, _)| *page >= METADATA_SECTORS)
        {
            if bytes == data.as_bytes() {
                ciphertext.push(page);
            }
            let tags = bytes.chunks_exact(RECORD_BYTES).enumerate();
            record.extend(
                tags.filter(|(_, stored)| stored[16..] == tag).map(|(nth, _)| (page, nth * RECORD_BYTES)),
            );
        }
        assert!(ciphertext.len() == 1 && record.len() == 1, "sector {sector}: {ciphertext:?}, {record:?}");
        (ciphertext[0], record[0])
    }

    /// Changes a record and puts its own checksum right, as somebody who knows the format can.
    fn forge(&self, sector: u64, (page, at): (Page, usize), change: impl FnOnce(&mut [u8])) {
        let pool = self.node.pool().info().id;
        self.device().edit(page, |bytes| {
            let record = &mut bytes[at..at + RECORD_BYTES];
            change(record);
            // The volume is the first of its pool, so its sectors lie in the first extents, of 256 sectors.
            let (extent, in_extent) =
                (u32::try_from(sector / 256).unwrap(), u32::try_from(sector % 256).unwrap());
            let covered =
                [&pool.0[..], &extent.to_le_bytes(), &in_extent.to_le_bytes(), &record[..12], &record[16..]]
                    .concat();
            let own = crc32c::crc32c(&covered);
            record[12..16].copy_from_slice(&own.to_le_bytes());
        });
    }

    /// After a restart every sector is as it was but `damaged`, and those are an error that says `why`; writing one anew mends
    /// it.
    fn expect(self, damaged: &[u64], why: &str) {
        let disk = self.restarted();
        let volume = disk.node.volume();
        let mut found = vec![0; SECTOR_BYTES];
        for sector in 0..SECTORS {
            let at = ByteOffset(sector * SECTOR);
            let written = &disk.content[index(at.0)..][..SECTOR_BYTES];
            let read = volume.read(at, &mut found);
            if !damaged.contains(&sector) {
                read.unwrap();
                assert!(found == written, "sector {sector} reads otherwise");
                continue;
            }
            let error = read.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            let said = error.source().map(ToString::to_string).unwrap_or_default();
            assert!(said.contains(why), "sector {sector}: {said}");
            assert!(found.iter().all(|byte| *byte == 0), "something was given out");
            // What must keep the rest of a sector cannot; what replaces it can.
            assert_eq!(volume.write(at, &[1], Durability::Buffered).unwrap_err().kind(), ErrorKind::Io);
            volume.write(at, written, Durability::Durable).unwrap();
            volume.read(at, &mut found).unwrap();
            assert!(found == written);
        }
        assert_eq!(disk.node.pool().info().damaged, 2 * damaged.len() as u64);
    }
}

const CHECKSUM: &str = "does not match its checksum";
/// A page of records that was changed speaks for none of its sectors.
const REPLACED: &str = "is not the one that was last written";

fn all() -> Vec<u64> {
    (0..SECTORS).collect()
}

/// Who chose checksums alone chose this: rot is noticed, and what brings its checksum along is not.
#[test]
fn of_a_volume_with_checksums_rot_is_noticed_and_a_missing_record_too() {
    let keyring = keyring::simulated::keyring();
    let bound = Bound { domain: DomainId([3; 16]), epoch: VolumeEpoch(1) };
    let holder =
        |integrity| keyring::simulated::Keyholder::new(bound.domain, bound.epoch).promising(integrity);
    let key = holder(Integrity::Checksummed).push(&keyring).unwrap().handle;
    assert_eq!(key.integrity(), Integrity::Checksummed);
    let content = Random(seed()).bytes(4 * SECTOR);
    let mut clear = Clear::zeroed(SectorCount(4));
    clear.as_mut_bytes().copy_from_slice(&content);
    let sealed = seal(clear, (&keyring, key), bound, (Lba(5), 70)).unwrap();
    assert!(
        sealed
            .records()
            .iter()
            .zip(70..)
            .all(|(record, nth)| record.sequence == nth && record.tag == [0; 16])
    );
    let open = |sealed: &Sealed, key| {
        let mut out = vec![0; content.len()];
        unseal(sealed, (&keyring, key), bound, Lba(5), &mut out).map(|()| out)
    };
    assert!(open(&sealed, key).unwrap() == content);
    // Its key is that of a volume with tags, whose holder takes no sector without one.
    let tagged = holder(Integrity::Tagged).push(&keyring).unwrap().handle;
    assert!(matches!(open(&sealed, tagged), Err(UnsealError::Damaged { damage: Damage::Tag, .. })));

    let changed = |records: Vec<SectorRecord>| {
        let mut bytes = sealed.as_bytes().to_vec();
        bytes[2 * SECTOR_BYTES + 77] ^= 4;
        Sealed::from_cipher(SectorBuf::copied_from(&bytes).unwrap(), records)
    };
    let rotten = open(&changed(sealed.records().to_vec()), key).unwrap_err();
    assert_eq!(rotten, UnsealError::Damaged { first: Lba(7), damage: Damage::Checksum });
    let mut forged = sealed.records().to_vec();
    let with_bit = changed(forged.clone());
    forged[2].checksum = crc32c::crc32c(&with_bit.as_bytes()[2 * SECTOR_BYTES..3 * SECTOR_BYTES]);
    assert!(open(&changed(forged), key).unwrap() != content);
    let bare = SimulatedDevice::new(ByteLen(1 << 20));
    let unrecorded = bare.read(ByteOffset(0), SectorCount(4)).unwrap();
    assert_eq!(
        open(&unrecorded, key).unwrap_err(),
        UnsealError::Damaged { first: Lba(5), damage: Damage::NoRecord }
    );
}

#[test]
fn nothing_is_noticed_where_nothing_was_done() {
    Disk::new(&mut Random(seed())).expect(&[], "");
}

#[test]
fn any_flipped_bit_of_ciphertext_is_noticed() {
    let mut random = Random(seed());
    for _ in 0..8 {
        let disk = Disk::new(&mut random);
        let sectors = [random.below(SECTORS / 2), SECTORS / 2 + random.below(SECTORS / 2)];
        for sector in sectors {
            let (page, _) = disk.places(sector);
            let bit = random.below(8 * SECTOR);
            disk.device().edit(page, |bytes| bytes[index(bit / 8)] ^= 1 << (bit % 8));
        }
        disk.expect(&sectors, CHECKSUM);
    }
}

#[test]
fn any_flipped_bit_of_a_record_is_noticed() {
    let mut random = Random(seed());
    let disk = Disk::new(&mut random);
    let sectors: Vec<u64> = (0..SECTORS).step_by(2).collect();
    for sector in &sectors {
        let (_, (page, at)) = disk.places(*sector);
        let bit = random.below(8 * RECORD_BYTES as u64);
        disk.device().edit(page, |bytes| bytes[at + index(bit / 8)] ^= 1 << (bit % 8));
    }
    disk.expect(&all(), REPLACED);
}

#[test]
fn a_record_that_is_gone_is_noticed() {
    let disk = Disk::new(&mut Random(seed()));
    let (_, (page, at)) = disk.places(7);
    disk.device().edit(page, |bytes| bytes[at..at + RECORD_BYTES].fill(0));
    disk.expect(&all(), REPLACED);
}

#[test]
fn ciphertext_changed_with_its_checksum_is_noticed() {
    let disk = Disk::new(&mut Random(seed()));
    let (page, record_at) = disk.places(5);
    let mut checksum = [0; 4];
    disk.device().edit(page, |bytes| {
        bytes[17] ^= 4;
        checksum = crc32c::crc32c(bytes).to_le_bytes();
    });
    disk.forge(5, record_at, |record| record[8..12].copy_from_slice(&checksum));
    disk.expect(&all(), REPLACED);
}

#[test]
fn another_sequence_under_the_same_tag_is_noticed() {
    let disk = Disk::new(&mut Random(seed()));
    let (_, record_at) = disk.places(9);
    disk.forge(9, record_at, |record| record[0] ^= 1);
    disk.expect(&all(), REPLACED);
}

#[test]
fn sectors_swapped_with_their_records_are_noticed() {
    let disk = Disk::new(&mut Random(seed()));
    let [first, second] = [3, 30].map(|sector| {
        let (page, (record_page, at)) = disk.places(sector);
        let mut copy = (Vec::new(), Vec::new());
        disk.device().edit(page, |bytes| copy.0.extend_from_slice(bytes));
        disk.device().edit(record_page, |bytes| copy.1.extend_from_slice(&bytes[at..at + RECORD_BYTES]));
        (sector, (page, (record_page, at)), copy)
    });
    for (sector, (page, record_at), (ciphertext, record)) in
        [(first.0, first.1, &second.2), (second.0, second.1, &first.2)]
    {
        disk.device().edit(page, |bytes| bytes.copy_from_slice(ciphertext));
        disk.forge(sector, record_at, |stored| stored.copy_from_slice(record));
    }
    disk.expect(&all(), REPLACED);
}

/// The log of a pool with records has what one without cannot have.
#[test]
fn a_pool_that_says_that_it_has_no_records_is_not_opened() {
    let disk = Disk::new(&mut Random(seed()));
    for copy in [0, 16] {
        disk.device().edit(copy, |superblock| {
            superblock[32] &= !3;
            // Nor digests, nor a state.
            superblock[152..232].fill(0);
            superblock[8..12].fill(0);
            let checksum = crc32c::crc32c(superblock).to_le_bytes();
            superblock[8..12].copy_from_slice(&checksum);
        });
    }
    let error = pool::Pool::open(disk.device().durable_copy()).unwrap_err();
    assert!(error.to_string().contains("a log record that cannot be"), "{error}");
}

#[test]
fn a_sector_put_back_with_the_record_it_then_had_is_noticed() {
    let disk = Disk::new(&mut Random(seed()));
    let (page, (record_page, at)) = disk.places(11);
    let mut then = (Vec::new(), Vec::new());
    disk.device().edit(page, |bytes| then.0.extend_from_slice(bytes));
    disk.device().edit(record_page, |bytes| then.1.extend_from_slice(&bytes[at..at + RECORD_BYTES]));
    disk.node.volume().write(ByteOffset(11 * SECTOR), &[9; SECTOR_BYTES], Durability::Durable).unwrap();
    disk.fill_log();
    let disk = disk.restarted();
    disk.device().edit(page, |bytes| bytes.copy_from_slice(&then.0));
    disk.device().edit(record_page, |bytes| bytes[at..at + RECORD_BYTES].copy_from_slice(&then.1));
    disk.expect(&all(), REPLACED);
}
