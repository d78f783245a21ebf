//! Scrubbing: what is damaged is found, named and nothing else, without a key and while others write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use device::SimulatedDevice;
use pool::{DamagedSector, OpenOptions, Pool, Scrub, SectorFault};
use units::{ByteLen, Lba, SectorCount, VolumeId};

use crate::model::{EPOCH, sealed, spec};
use crate::workload::{EXTENT, LOG, create_options, small_pool};

/// The first extent of the device, and the page of its records, in sectors.
const DATA: u64 = ((2 << 20) + LOG + 3 * EXTENT) / 4096;
const RECORDS: u64 = ((2 << 20) + LOG + 2 * EXTENT) / 4096;
const PER_EXTENT: u64 = EXTENT / 4096;

/// A whole pass: sectors that were read, and what was found.
fn pass(pool: &Arc<Pool>) -> (u64, Vec<DamagedSector>) {
    let mut scrub = Scrub::starting_at(Arc::clone(pool), 0);
    let (mut sectors, mut damaged) = (0, Vec::new());
    while let Some(step) = scrub.step().unwrap() {
        sectors += step.sectors.0;
        damaged.extend(step.damaged);
    }
    assert_eq!(scrub.position(), scrub.extents());
    (sectors, damaged)
}

/// A volume of ten extents, closed, everything in its place.
fn written() -> Arc<SimulatedDevice> {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 10 * PER_EXTENT)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(0..10 * PER_EXTENT)).unwrap();
    volume.flush().unwrap();
    for fence in 1..40 {
        pool.raise_fence(volume.id(), units::Fence(fence)).unwrap();
    }
    drop((pool, volume));
    device
}

fn open(device: &Arc<SimulatedDevice>) -> Arc<Pool> {
    let options = OpenOptions { record_cache: ByteLen(4096), ..OpenOptions::default() };
    Pool::open_with(device.clone(), options).unwrap()
}

#[test]
fn a_sound_pool_is_read_whole_and_once_and_nothing_is_found() {
    let pool = open(&written());
    assert_eq!(pass(&pool), (160, vec![]));
    // What volume and snapshot share is read once; what only one of them shows as well.
    pool.create_snapshot(VolumeId([1; 16]), VolumeId([9; 16]), 0).unwrap();
    let volume = pool.volume(VolumeId([1; 16])).unwrap();
    volume.write(Lba(0), EPOCH, sealed(500..516)).unwrap();
    volume.unmap(Lba(32), SectorCount(16)).unwrap();
    volume.flush().unwrap();
    pool.tend(Duration::ZERO).unwrap();
    assert_eq!(pass(&pool), (176, vec![]));
    pool.delete_snapshot(VolumeId([9; 16])).unwrap();
    pool.flush().unwrap();
    assert_eq!(pass(&pool), (144, vec![]));
    assert_eq!(pool.info().damaged, 0);
}

#[test]
fn every_kind_of_damage_is_found_and_named() {
    let device = written();
    let volume = VolumeId([1; 16]);
    device.edit(DATA + 5, |sector| sector[100] ^= 1);
    device.make_unreadable(DATA + 17);
    // The first page of records is of the extents 0 to 7, the second of 8 and 9.
    device.make_unreadable(RECORDS + 1);
    let pool = open(&device);
    let (sectors, damaged) = pass(&pool);
    assert_eq!(sectors, 160);
    let found: Vec<_> = damaged.iter().map(|damaged| (damaged.at.0 / 4096 - DATA, damaged.fault)).collect();
    let mut expected = vec![(5, SectorFault::Checksum), (17, SectorFault::Unreadable)];
    expected.extend((128..160).map(|sector| (sector, SectorFault::RecordUnreadable)));
    assert_eq!(found, expected);
    for (damaged, (sector, _)) in damaged.iter().zip(expected) {
        assert_eq!(damaged.shown_by, [(volume, Lba(sector))]);
    }
    assert_eq!(pool.info().damaged, 34);
    assert!(!pool.info().failed);
}

#[test]
fn a_page_of_records_that_is_not_the_last_one_speaks_for_none_of_its_sectors() {
    let device = written();
    // The record of sector 40: 32 bytes each, 128 in a page.
    device.edit(RECORDS, |page| page[40 * 32 + 20] ^= 1);
    let pool = open(&device);
    let (sectors, damaged) = pass(&pool);
    assert_eq!(sectors, 160);
    let found: Vec<_> = damaged.iter().map(|damaged| (damaged.at.0 / 4096 - DATA, damaged.fault)).collect();
    assert_eq!(found, (0..128).map(|sector| (sector, SectorFault::RecordsReplaced)).collect::<Vec<_>>());
}

#[test]
fn damage_is_named_for_everyone_who_shows_it_and_for_nobody_else() {
    let device = written();
    let (volume, snapshot, clone) = (VolumeId([1; 16]), VolumeId([8; 16]), VolumeId([7; 16]));
    let pool = open(&device);
    pool.create_snapshot(volume, snapshot, 0).unwrap();
    pool.clone_snapshot(snapshot, clone, pool::Limits::default()).unwrap();
    pool.volume(volume).unwrap().write(Lba(3), EPOCH, sealed([700])).unwrap();
    pool.volume(clone).unwrap().unmap(Lba(4), SectorCount(1)).unwrap();
    pool.flush().unwrap();
    device.edit(DATA + 3, |sector| sector[0] ^= 1);
    device.edit(DATA + 4, |sector| sector[0] ^= 1);
    let mut shown: Vec<_> = pass(&pool).1.into_iter().map(|damaged| damaged.shown_by).collect();
    shown.iter_mut().for_each(|by| by.sort());
    assert_eq!(
        shown,
        [vec![(clone, Lba(3)), (snapshot, Lba(3))], vec![(volume, Lba(4)), (snapshot, Lba(4))]]
    );
}

#[test]
fn a_pass_goes_on_where_an_earlier_one_stopped() {
    let device = written();
    device.edit(DATA + 5, |sector| sector[100] ^= 1);
    device.edit(DATA + 7 * PER_EXTENT, |sector| sector[100] ^= 1);
    let pool = open(&device);
    let mut first = Scrub::starting_at(Arc::clone(&pool), 0);
    for _ in 0..3 {
        first.step().unwrap().unwrap();
    }
    // The third may not be done, so it is done again.
    assert_eq!(first.position(), 2);
    let mut second = Scrub::starting_at(pool, first.position());
    let (mut sectors, mut damaged) = (0, 0);
    while let Some(step) = second.step().unwrap() {
        sectors += step.sectors.0;
        damaged += step.damaged.len();
    }
    assert_eq!((sectors, damaged), (8 * PER_EXTENT, 1));
}

#[test]
fn what_is_written_trimmed_and_deleted_meanwhile_is_not_called_damaged() {
    let device = SimulatedDevice::new(crate::workload::DEVICE);
    let pool = Pool::create(device.clone(), create_options()).unwrap();
    let volumes: Vec<_> = (1..4).map(|tag| pool.create_volume(spec(tag, 5 * PER_EXTENT)).unwrap()).collect();
    let stop = AtomicBool::new(false);
    let mut checked = 0;
    thread::scope(|scope| {
        for (nth, volume) in volumes.iter().enumerate() {
            let stop = &stop;
            scope.spawn(move || {
                let mut at = nth as u64;
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    at = (at * 31 + 7) % (5 * PER_EXTENT - 4);
                    match round % 7 {
                        0 => volume.unmap(Lba(at), SectorCount(3)).unwrap(),
                        _ => volume.write(Lba(at), EPOCH, sealed(round..round + 4)).unwrap(),
                    }
                    if round % 3 == 0 {
                        volume.flush().unwrap();
                    }
                }
            });
        }
        let (tender, stop) = (Arc::clone(&pool), &stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                tender.tend(Duration::from_millis(1)).unwrap();
            }
        });
        let until = std::time::Instant::now() + Duration::from_secs(2);
        while checked <= 1000 || std::time::Instant::now() < until {
            let (sectors, damaged) = pass(&pool);
            assert_eq!(damaged, []);
            checked += sectors;
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{checked} sectors compared");
}
