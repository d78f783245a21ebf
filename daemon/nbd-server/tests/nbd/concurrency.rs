//! Many connections on one export at once: nothing tears, nothing is lost, everybody sees what was answered.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::raw::*;
use crate::rig::{MIB, Random, Rig, soak};

const SECTOR: usize = 4096;

#[test]
fn overlapping_and_sub_sector_writes_neither_tear_nor_get_lost() {
    // Each writer owns every eighth slice of 512 bytes: every sector is shared by all of them.
    const WRITERS: usize = 8;
    const SLICE: usize = SECTOR / WRITERS;
    const SECTORS: u64 = 16;
    let rig = Rig::new();
    let mut random = Random::seeded("sub-sector writes");
    let deadline = Instant::now() + soak();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let mut client = rig.client();
            let mut random = random.fork();
            scope.spawn(move || {
                let mut last = [0_u8; SECTORS as usize];
                let mut round = 0_u8;
                while Instant::now() < deadline {
                    round = round % 250 + 1;
                    let sector = random.below(SECTORS);
                    let at = sector * SECTOR as u64 + (writer * SLICE) as u64;
                    client.write(at, &[round; SLICE], random.below(50) == 0).unwrap();
                    last[usize::try_from(sector).unwrap()] = round;
                    let look = random.below(SECTORS);
                    let mut read = [0; SLICE];
                    client.read(look * SECTOR as u64 + (writer * SLICE) as u64, &mut read).unwrap();
                    assert_eq!(read, [last[usize::try_from(look).unwrap()]; SLICE], "an update was lost");
                }
            });
        }
        // Whole sectors of one colour, next door, against a reader that must never see two.
        for _ in 0..2 {
            let mut client = rig.client();
            let mut random = random.fork();
            scope.spawn(move || {
                while Instant::now() < deadline {
                    let sector = SECTORS + random.below(4);
                    let colour = u8::try_from(random.below(256)).unwrap();
                    client.write(sector * SECTOR as u64, &[colour; SECTOR], false).unwrap();
                }
            });
        }
        let mut client = rig.client();
        let mut random = random.fork();
        scope.spawn(move || {
            while Instant::now() < deadline {
                let mut read = [0; SECTOR];
                client.read((SECTORS + random.below(4)) * SECTOR as u64, &mut read).unwrap();
                assert!(read.iter().all(|byte| *byte == read[0]), "a sector of two colours");
            }
        });
    });
}

#[test]
fn what_one_connection_was_answered_every_other_sees() {
    let rig = Rig::new();
    let deadline = Instant::now() + soak() / 2;
    let answered = Arc::new(AtomicU64::new(0));
    std::thread::scope(|scope| {
        let mut writer = rig.client();
        let published = Arc::clone(&answered);
        scope.spawn(move || {
            let mut number = 0_u64;
            while Instant::now() < deadline {
                number += 1;
                writer.write(MIB + 1000, &number.to_be_bytes(), false).unwrap();
                published.store(number, Ordering::SeqCst);
            }
        });
        for _ in 0..3 {
            let mut reader = rig.client();
            let answered = Arc::clone(&answered);
            scope.spawn(move || {
                while Instant::now() < deadline {
                    let at_least = answered.load(Ordering::SeqCst);
                    let mut read = [0; 8];
                    reader.read(MIB + 1000, &mut read).unwrap();
                    assert!(u64::from_be_bytes(read) >= at_least, "a stale read");
                }
            });
        }
    });
}

#[test]
fn overlapping_requests_in_every_style_leave_whole_sectors_and_nothing_of_others() {
    const SECTORS: u64 = 48;
    /// What clients write into their own volume's neighbourhood; nobody writes it where the readers look.
    const FOREIGN: u8 = 0xf0;
    let rig = Rig::new();
    let mut random = Random::seeded("overlapping requests");
    rig.client().write(MIB, &[FOREIGN; MIB as usize], false).unwrap();
    let deadline = Instant::now() + soak();
    std::thread::scope(|scope| {
        for connect in
            [Raw::simple, Raw::structured, Raw::extended, Raw::simple, Raw::structured, Raw::extended]
        {
            let mut raw = connect(&rig.socket);
            let extended = std::ptr::fn_addr_eq(connect, Raw::extended as fn(&Path) -> Raw);
            let simple = std::ptr::fn_addr_eq(connect, Raw::simple as fn(&Path) -> Raw);
            let mut random = random.fork();
            scope.spawn(move || {
                while Instant::now() < deadline {
                    // A pipeline of eight, then its answers.
                    for _ in 0..8 {
                        let first = random.below(SECTORS);
                        let count = 1 + random.below(SECTORS - first);
                        let (offset, len) = (first * SECTOR as u64, count * SECTOR as u64);
                        let command =
                            *[WRITE, WRITE, WRITE, WRITE_ZEROES, TRIM].get(random.below(5) as usize).unwrap();
                        let colour = 1 + u8::try_from(random.below(100)).unwrap();
                        raw.send(&match (extended, command) {
                            (true, WRITE) => extended_request(command, PAYLOAD_LEN, 1, offset, len),
                            (true, _) => extended_request(command, 0, 1, offset, len),
                            (false, _) => request(command, 0, 1, offset, len as u32),
                        });
                        if command == WRITE {
                            raw.send(&vec![colour; len as usize]);
                        }
                    }
                    for _ in 0..8 {
                        if simple {
                            assert_eq!(raw.simple_reply(), (0, 1));
                        } else {
                            let chunk = if extended { raw.extended_chunk().0 } else { raw.chunk() };
                            assert_eq!((chunk.kind, chunk.payload.len()), (0, 0), "{chunk:?}");
                        }
                    }
                }
            });
        }
        for _ in 0..2 {
            let mut client = rig.client();
            scope.spawn(move || {
                let mut read = vec![0; (SECTORS as usize) * SECTOR];
                while Instant::now() < deadline {
                    client.read(0, &mut read).unwrap();
                    for (sector, bytes) in read.chunks(SECTOR).enumerate() {
                        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "sector {sector} is torn");
                        assert!(bytes[0] <= 100, "sector {sector} shows what was never written there");
                    }
                }
            });
        }
    });
}
