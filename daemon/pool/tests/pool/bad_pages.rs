//! A page of sector records that the device does not read any more: writes of its sectors go on, what it held waits for its
//! coming back, and no cut loses what was flushed meanwhile.

use std::sync::Arc;

use device::{SimulatedDevice, Survivors};
use pool::{OpenOptions, Pool, PoolError, PoolErrorKind, PoolVolume};
use units::{ByteLen, Fence, Lba, SectorCount};

use crate::model::{EPOCH, read, sealed, spec};
use crate::workload::{EXTENT, LOG, small_pool};

/// The first page of records: those of the first eight extents.
const PAGE: u64 = ((2 << 20) + LOG + 2 * EXTENT) / 4096;
/// Sectors of the volume, in 20 extents.
const SECTORS: u64 = 320;
/// Sectors that are written again while their page cannot be read, and what is written to them.
const AGAIN: std::ops::Range<u64> = 40..60;
const ANEW: u64 = 5000;

/// A closed pool with a full volume, whose records are all in their pages.
fn full() -> Arc<SimulatedDevice> {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, SECTORS)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(0..SECTORS)).unwrap();
    volume.flush().unwrap();
    wind(&pool, 1);
    drop((volume, pool));
    device
}

/// Takes the log round more than once.
fn wind(pool: &Pool, first: u64) {
    for fence in first..first + 40 {
        pool.raise_fence(spec(1, SECTORS).id, Fence(fence)).unwrap();
    }
}

/// As good as without a cache.
fn try_open(device: Arc<SimulatedDevice>) -> Result<(Arc<Pool>, Arc<PoolVolume>), PoolError> {
    let options = OpenOptions { record_cache: ByteLen(4096), ..OpenOptions::default() };
    let pool = Pool::open_with(device, options)?;
    let volume = pool.volume(spec(1, SECTORS).id)?;
    Ok((pool, volume))
}

fn open(device: Arc<SimulatedDevice>) -> (Arc<Pool>, Arc<PoolVolume>) {
    try_open(device).unwrap()
}

fn write_again(volume: &PoolVolume) {
    for sector in AGAIN {
        volume.write(Lba(sector), EPOCH, sealed([ANEW + sector])).unwrap();
        volume.flush().unwrap();
    }
}

fn holds(volume: &PoolVolume, sector: u64, tag: u64) {
    let found = read(volume, sector, 1).unwrap_or_else(|error| panic!("sector {sector}: {error}"));
    assert_eq!(found, [Some([tag; 8])], "sector {sector}");
}

#[test]
fn a_page_of_records_that_cannot_be_read_stops_nothing_and_loses_nothing() {
    let device = full();
    device.make_unreadable(PAGE);
    let (pool, volume) = open(device.clone());
    write_again(&volume);
    wind(&pool, 100);
    assert!(!pool.info().failed);
    drop((pool, volume));

    let device = device.reopened();
    let (pool, volume) = open(device.clone());
    for sector in 0..SECTORS {
        match sector {
            _ if AGAIN.contains(&sector) => holds(&volume, sector, ANEW + sector),
            // Eight extents of 16 sectors have their records there.
            0..128 => assert_eq!(
                volume.read(Lba(sector), SectorCount(1)).unwrap_err().kind(),
                PoolErrorKind::Io,
                "{sector}"
            ),
            _ => holds(&volume, sector, sector),
        }
    }
    wind(&pool, 200);
    device.make_readable(PAGE);
    wind(&pool, 300);
    drop((pool, volume));

    let (pool, volume) = open(device.reopened());
    (0..SECTORS).for_each(|sector| {
        holds(&volume, sector, if AGAIN.contains(&sector) { ANEW + sector } else { sector })
    });
    assert!(pool.check().unwrap().is_sound());
}

#[test]
fn no_cut_loses_what_was_flushed_while_a_page_of_records_cannot_be_read() {
    let pristine = full();
    let script = |device: &Arc<SimulatedDevice>| {
        let mut flushed = AGAIN.start;
        let Ok((pool, volume)) = try_open(device.clone()) else { return flushed };
        for sector in AGAIN {
            if volume.write(Lba(sector), EPOCH, sealed([ANEW + sector])).is_err() || volume.flush().is_err() {
                break;
            }
            flushed = sector + 1;
        }
        drop((pool, volume));
        flushed
    };
    let whole = pristine.durable_copy();
    whole.make_unreadable(PAGE);
    assert_eq!(script(&whole), AGAIN.end);
    for cut in 0..whole.operations() {
        let device = pristine.durable_copy();
        device.make_unreadable(PAGE);
        device.cut_power_at(cut);
        let flushed = script(&device);
        for survivors in [Survivors::Nothing, Survivors::All, Survivors::Random(cut)] {
            let (_pool, volume) = open(device.power_cut_leaving(survivors));
            (AGAIN.start..flushed).for_each(|sector| holds(&volume, sector, ANEW + sector));
        }
    }
}

/// A checkpoint is cut when the digest of a page of records is new already and the page itself is not. The page cannot be read
/// when the checkpoint is done again; it can later, when some of its sectors have been written once more.
#[test]
fn a_page_that_a_cut_checkpoint_could_not_use_again_is_used_as_soon_as_it_can_be() {
    const NEWEST: u64 = 9000;
    let pristine = full();
    let script = |device: &Arc<SimulatedDevice>| -> Option<()> {
        let (pool, volume) = try_open(device.clone()).ok()?;
        for sector in AGAIN {
            volume.write(Lba(sector), EPOCH, sealed([ANEW + sector])).ok()?;
        }
        volume.flush().ok()?;
        (100..140).try_for_each(|fence| pool.raise_fence(spec(1, SECTORS).id, Fence(fence))).ok()
    };
    let whole = pristine.durable_copy();
    script(&whole).unwrap();
    for cut in 0..whole.operations() {
        let device = pristine.durable_copy();
        device.cut_power_at(cut);
        let _ = script(&device);
        for survivors in [Survivors::Nothing, Survivors::All] {
            let device = device.power_cut_leaving(survivors);
            device.make_unreadable(PAGE);
            let (pool, volume) = open(device.clone());
            volume.write(Lba(AGAIN.start), EPOCH, sealed([NEWEST])).unwrap();
            wind(&pool, 200);
            drop((pool, volume));
            let device = device.reopened();
            let (pool, volume) = open(device.clone());
            device.make_readable(PAGE);
            let check = |volume: &PoolVolume| {
                holds(volume, AGAIN.start, NEWEST);
                for sector in (0..128).filter(|sector| *sector != AGAIN.start) {
                    let found = read(volume, sector, 1)
                        .unwrap_or_else(|error| panic!("cut {cut}, {survivors:?}, sector {sector}: {error}"));
                    let new = AGAIN.contains(&sector) && found == [Some([ANEW + sector; 8])];
                    assert!(new || found == [Some([sector; 8])], "sector {sector}: {found:?}");
                }
            };
            check(&volume);
            wind(&pool, 300);
            check(&volume);
            drop((pool, volume));
            check(&open(device.reopened()).1);
        }
    }
}

#[test]
fn more_records_without_a_page_than_the_log_keeps_room_for_are_an_error() {
    let device = full();
    (0..3).for_each(|page| device.make_unreadable(PAGE + page));
    let (pool, volume) = open(device.clone());
    let error = (0..SECTORS).try_for_each(|sector| {
        volume.write(Lba(sector), EPOCH, sealed([ANEW + sector]))?;
        volume.flush()
    });
    assert_eq!(error.unwrap_err().kind(), PoolErrorKind::Failed);
    drop((pool, volume));
    // The log still has them.
    (0..3).for_each(|page| device.make_readable(PAGE + page));
    let (pool, volume) = open(device.reopened());
    let written =
        (0..SECTORS).take_while(|sector| read(&volume, *sector, 1).unwrap() == [Some([ANEW + sector; 8])]);
    assert!(written.count() > 2 * 92, "two blocks of the log are room for as many");
    assert!(pool.check().unwrap().is_sound());
}
