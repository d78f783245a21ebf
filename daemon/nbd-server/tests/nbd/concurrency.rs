//! Many connections on one export at once: nothing tears, nothing is lost, everybody sees what was answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

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
