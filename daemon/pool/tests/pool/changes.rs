//! What differs between a volume and its snapshots: against every sector read and compared, over random histories.

use std::sync::Arc;

use pool::{Change, Limits, Pool, PoolError, PoolVolume, Rewritten};
use units::{Lba, SectorCount, VolumeId};

use crate::model::{EPOCH, read, sealed, spec};
use crate::workload::{Random, small_pool};

const SECTORS: u64 = 100;

fn id(tag: u8) -> VolumeId {
    VolumeId([tag; 16])
}

/// One for each sector.
fn changes(of: &PoolVolume, older: Option<&PoolVolume>, first: u64, count: u64) -> Vec<Change> {
    let runs = of.changes_since(older, Lba(first), SectorCount(count)).unwrap();
    assert!(runs.windows(2).all(|pair| pair[0].1 != pair[1].1), "neighbours differ: {runs:?}");
    let each: Vec<Change> = runs
        .into_iter()
        .flat_map(|(run, change)| std::iter::repeat_n(change, usize::try_from(run.0).unwrap()))
        .collect();
    assert_eq!(each.len() as u64, count);
    each
}

#[test]
fn what_was_written_and_unmapped_since_a_snapshot_is_told_and_nothing_else() {
    let (_device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, SECTORS)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(0..40)).unwrap();
    pool.create_snapshot(id(1), id(9), 0).unwrap();
    let snapshot = pool.snapshot(id(9)).unwrap();
    assert_eq!(changes(&volume, Some(&snapshot), 0, SECTORS), vec![Change::Same; 100]);
    volume.write(Lba(7), EPOCH, sealed([7, 8])).unwrap();
    volume.write(Lba(50), EPOCH, sealed([50])).unwrap();
    volume.unmap(Lba(20), SectorCount(3)).unwrap();
    // There was nothing.
    volume.unmap(Lba(90), SectorCount(3)).unwrap();
    let expected: Vec<Change> = (0..SECTORS)
        .map(|sector| match sector {
            7 | 8 | 50 => Change::Written,
            20..23 => Change::Unmapped,
            _ => Change::Same,
        })
        .collect();
    assert_eq!(changes(&volume, Some(&snapshot), 0, SECTORS), expected);
    assert_eq!(changes(&volume, Some(&snapshot), 6, 15), expected[6..21]);
    // And the other way round.
    let back = changes(&snapshot, Some(&volume), 0, SECTORS);
    assert!((0..100).all(|nth| (back[nth] == Change::Same) == (expected[nth] == Change::Same)));
    assert_eq!((back[50], back[21]), (Change::Unmapped, Change::Written));
    let all = changes(&volume, None, 0, SECTORS);
    assert_eq!(all.iter().filter(|change| **change == Change::Written).count(), 38);
    // Of the forty that the snapshot shows five are otherwise; what was written beside them rewrites nothing.
    let rewritten = Rewritten { of: SectorCount(40), sectors: SectorCount(5) };
    assert_eq!(volume.rewritten_since(&snapshot).unwrap(), rewritten);
    pool.resize_volume(id(1), SectorCount(10)).unwrap();
    let rewritten = Rewritten { sectors: SectorCount(32), ..rewritten };
    assert_eq!(volume.rewritten_since(&snapshot).unwrap(), rewritten);
    pool.roll_back(id(1), id(9)).unwrap();
    assert_eq!(changes(&pool.volume(id(1)).unwrap(), Some(&snapshot), 0, SECTORS), vec![Change::Same; 100]);
}

/// A snapshot that is shorter than what its extents hold shows nothing past its end.
#[test]
fn what_an_older_snapshot_was_too_short_for_is_told() {
    let (_device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, SECTORS)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(0..SECTORS)).unwrap();
    pool.create_snapshot(id(1), id(9), 0).unwrap();
    // In the middle of an extent, and far before others.
    pool.resize_volume(id(1), SectorCount(20)).unwrap();
    pool.create_snapshot(id(1), id(8), 0).unwrap();
    pool.roll_back(id(1), id(9)).unwrap();
    pool.create_snapshot(id(1), id(7), 0).unwrap();
    let (short, long) = (pool.snapshot(id(8)).unwrap(), pool.snapshot(id(7)).unwrap());
    let told = changes(&long, Some(&short), 0, SECTORS);
    assert!(told[..20].iter().all(|change| *change == Change::Same), "{told:?}");
    assert!(told[20..].iter().all(|change| *change == Change::Written), "{told:?}");
}

/// Applying what is told to what the older shows gives what the newer shows.
#[test]
fn changes_between_any_two_moments_carry_the_one_over_to_the_other() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let (_device, pool) = small_pool();
        pool.create_volume(spec(1, SECTORS)).unwrap();
        let mut volume = id(1);
        let mut snapshots = Vec::new();
        for nth in 0..60 {
            let target = pool.volume(volume).unwrap();
            let at = random.below(SECTORS - 12);
            let count = 1 + random.below(12);
            match random.below(10) {
                0..5 => match target.write(Lba(at), EPOCH, sealed(nth * 100..nth * 100 + count)) {
                    Ok(()) | Err(PoolError::NoSpace) => {}
                    Err(error) => panic!("{error}"),
                },
                5..7 => target.unmap(Lba(at), SectorCount(count)).unwrap(),
                7 if snapshots.len() < 5 => {
                    let snapshot = id(100 + u8::try_from(nth).unwrap());
                    pool.create_snapshot(volume, snapshot, 0).unwrap();
                    snapshots.push(snapshot);
                }
                8 if !snapshots.is_empty() => {
                    let from = snapshots[usize::try_from(random.below(snapshots.len() as u64)).unwrap()];
                    if pool
                        .snapshots()
                        .iter()
                        .any(|snapshot| snapshot.id == from && snapshot.volume == volume)
                    {
                        pool.roll_back(volume, from).unwrap();
                    }
                }
                9 if !snapshots.is_empty() && pool.volumes().len() < 3 => {
                    let from = snapshots[usize::try_from(random.below(snapshots.len() as u64)).unwrap()];
                    let clone = id(190 + u8::try_from(nth).unwrap());
                    pool.clone_snapshot(from, clone, Limits::default()).unwrap();
                    volume = clone;
                }
                _ => pool.flush().unwrap(),
            }
        }
        let moments: Vec<Arc<PoolVolume>> = snapshots
            .iter()
            .map(|snapshot| pool.snapshot(*snapshot).unwrap())
            .chain(pool.volumes().iter().map(|info| pool.volume(info.id).unwrap()))
            .collect();
        for newer in &moments {
            check(&pool, newer, None);
            moments.iter().for_each(|older| check(&pool, newer, Some(older)));
        }
    }
}

fn check(pool: &Pool, newer: &PoolVolume, older: Option<&PoolVolume>) {
    let now = read(newer, 0, SECTORS).unwrap();
    let then = older.map_or_else(|| vec![None; now.len()], |older| read(older, 0, SECTORS).unwrap());
    let told = changes(newer, older, 0, SECTORS);
    for (sector, change) in told.iter().enumerate() {
        let place = format!("sector {sector} of {} since {:?}", newer.id(), older.map(PoolVolume::id));
        match change {
            Change::Same => assert_eq!(now[sector], then[sector], "{place}"),
            Change::Written => assert!(now[sector].is_some(), "{place}"),
            Change::Unmapped => assert!(now[sector].is_none() && then[sector].is_some(), "{place}"),
        }
    }
    // What is the same is not told again but where it was written again.
    assert!(!pool.info().failed);
}
