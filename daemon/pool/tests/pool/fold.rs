//! Folding: what an epoch each second leaves in many extents comes to lie in one, and nobody sees a sector change. The random
//! workloads and the power cuts have it among their operations.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use device::SimulatedDevice;
use pool::{CreateOptions, FoldStep, Limits, Pool, PoolVolume, Scrub};
use units::{ByteLen, ByteOffset, Lba, SectorCount, VolumeEpoch, VolumeId};

use crate::model::{Content, EPOCH, check_of, read, resealed, sealed, sealed_under, spec, verify_metadata};
use crate::workload::{DEVICE, EXTENT, Random, create_options, reopen, small_pool};

fn id(number: u8) -> VolumeId {
    spec(number, 1).id
}

fn extents(pool: &Pool) -> u64 {
    pool.info().allocated.0 / EXTENT
}

fn pool_of(extents: u64) -> (Arc<SimulatedDevice>, Arc<Pool>) {
    let device = SimulatedDevice::new(ByteLen(DEVICE.0 + (extents + extents / 64 + 2) * EXTENT));
    let pool = Pool::create(device.clone(), create_options()).unwrap();
    (device, pool)
}

fn tags(volume: &PoolVolume, first: u64, count: u64) -> Vec<Option<u64>> {
    read(volume, first, count).unwrap().into_iter().map(|sector| sector.map(|units| units[0])).collect()
}

/// Until there is nothing to fold; what that was.
fn fold_all(pool: &Pool) -> FoldStep {
    let mut all = FoldStep::default();
    loop {
        let step = pool.fold(SectorCount(8)).unwrap();
        all.moved.0 += step.moved.0;
        all.freed += step.freed;
        all.groups += step.groups;
        // What is found to be unseen is freed by the next flush.
        pool.flush().unwrap();
        if step.groups == 0 && !step.more {
            return all;
        }
    }
}

/// What replication does each second to a log that grows: without folding the pool is full after as many seconds as it has
/// extents.
#[test]
fn an_epoch_with_each_small_write_costs_no_more_than_its_sectors() {
    let (device, pool) = pool_of(64);
    let volume = pool.create_volume(spec(1, 16)).unwrap();
    let mut most = 0;
    let mut moved = 0;
    for round in 0..256 {
        volume.write(Lba(round % 16), EPOCH, sealed([round + 1])).unwrap();
        let name = |round: u64| VolumeId([100 + u8::try_from(round % 2).unwrap(); 16]);
        pool.create_snapshot(volume.id(), name(round), 0).unwrap();
        if round > 0 {
            pool.delete_snapshot(name(round - 1)).unwrap();
        }
        moved += fold_all(&pool).moved.0;
        most = most.max(extents(&pool));
    }
    println!("{most} extents at most, {moved} sectors moved for 256 written");
    assert!(most <= 3, "{most} extents for a volume of one");
    assert!(moved <= 256, "each sector is moved once at most");
    verify_metadata(&pool).unwrap();
    for pool in [&pool, &reopen(&device)] {
        let volume = pool.volume(id(1)).unwrap();
        assert_eq!(tags(&volume, 0, 16), (241..=256).map(Some).collect::<Vec<_>>());
    }
}

/// What there is to fold is found again when a pool is opened.
#[test]
fn what_was_not_folded_before_a_restart_is_behind_it() {
    let (device, pool) = pool_of(64);
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    for round in 0..10 {
        volume.write(Lba(round * 5), EPOCH, sealed([round + 1])).unwrap();
        pool.create_snapshot(volume.id(), id(100), 0).unwrap();
        pool.delete_snapshot(id(100)).unwrap();
    }
    assert_eq!(extents(&pool), 10, "one for each moment");
    drop((pool, volume));
    let pool = reopen(&device);
    let step = fold_all(&pool);
    assert_eq!((extents(&pool), step.freed), (3, 7));
    let volume = pool.volume(id(1)).unwrap();
    assert_eq!(tags(&volume, 0, 50).into_iter().flatten().collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    verify_metadata(&pool).unwrap();
}

/// What is seen apart stays apart: a snapshot, the origin of a clone, what is under another key.
#[test]
fn nothing_is_folded_over_a_moment_that_somebody_looks_at_nor_into_another_epoch() {
    let (_, pool) = pool_of(64);
    let volume = pool.create_volume(spec(1, 16)).unwrap();
    let write = |at: u64, tag: u64| volume.write(Lba(at), EPOCH, sealed([tag])).unwrap();
    write(0, 1);
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    write(0, 2);
    pool.create_snapshot(id(1), id(3), 0).unwrap();
    pool.clone_snapshot(id(3), id(4), Limits::default()).unwrap();
    pool.delete_snapshot(id(3)).unwrap();
    write(0, 3);
    pool.create_snapshot(id(1), id(5), 0).unwrap();
    write(1, 4);
    assert_eq!((fold_all(&pool).groups, extents(&pool)), (0, 4));
    let shown = |id: VolumeId| {
        let handle = pool.volume(id).or_else(|_| pool.snapshot(id)).unwrap();
        tags(&handle, 0, 2)
    };
    assert_eq!(shown(id(2)), [Some(1), None]);
    assert_eq!(shown(id(4)), [Some(2), None]);
    assert_eq!(shown(id(5)), [Some(3), None]);
    assert_eq!(shown(id(1)), [Some(3), Some(4)]);
    // What the clone alone kept apart.
    pool.delete_volume(id(4)).unwrap();
    fold_all(&pool);
    assert_eq!(extents(&pool), 3);

    let next = VolumeEpoch(EPOCH.0 + 1);
    pool.begin_epoch(id(1), next, check_of(spec(1, 1).domain, next)).unwrap();
    volume.write(Lba(2), next, sealed_under(next, [5])).unwrap();
    pool.delete_snapshot(id(5)).unwrap();
    pool.delete_snapshot(id(2)).unwrap();
    pool.end_moments_to_fold().unwrap();
    fold_all(&pool);
    assert_eq!(extents(&pool), 2, "one for each key");
    assert_eq!(tags(&volume, 0, 3), [Some(3), Some(4), Some(5)]);
    while let Some((first, count)) = volume.next_outdated(Lba(0), SectorCount(4)).unwrap() {
        volume.rewrite(first, count, next, |_, under, data| resealed(&data, under, next)).unwrap();
    }
    verify_metadata(&pool).unwrap();
    assert_eq!(extents(&pool), 1);
}

/// The extent that has most of what is shown stays, be it older or younger, and the others' sectors go there.
#[test]
fn the_fewest_sectors_are_moved() {
    for (older, younger, moved) in [(10, 1, 1), (1, 10, 1), (4, 5, 4)] {
        let (_, pool) = pool_of(64);
        let volume = pool.create_volume(spec(1, 16)).unwrap();
        volume.write(Lba(0), EPOCH, sealed((0..older).map(|at| 100 + at))).unwrap();
        pool.create_snapshot(id(1), id(2), 0).unwrap();
        volume.write(Lba(16 - younger), EPOCH, sealed((16 - younger..16).map(|at| 200 + at))).unwrap();
        pool.create_snapshot(id(1), id(3), 0).unwrap();
        pool.delete_snapshot(id(2)).unwrap();
        assert_eq!(fold_all(&pool).moved, SectorCount(moved));
        let expected = |at: u64| match at {
            at if at >= 16 - younger => Some(200 + at),
            at if at < older => Some(100 + at),
            _ => None,
        };
        assert_eq!(tags(&volume, 0, 16), (0..16).map(expected).collect::<Vec<_>>());
        assert_eq!(extents(&pool), 1);
    }
}

/// A hole over what an older extent has, and one that was written over again.
#[test]
fn holes_are_folded_with_what_they_hide() {
    let (device, pool) = pool_of(64);
    let volume = pool.create_volume(spec(1, 16)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=16)).unwrap();
    let mut expected: Vec<_> = (1..=16).map(Some).collect();
    pool.create_snapshot(id(1), id(99), 0).unwrap();
    let first = expected.clone();
    for round in 0..6_u8 {
        let at = u64::from(round);
        volume.unmap(Lba(at * 2), SectorCount(3)).unwrap();
        expected[usize::from(round) * 2..usize::from(round) * 2 + 3].fill(None);
        if round % 2 == 1 {
            volume.write(Lba(at * 2 + 1), EPOCH, sealed([100 + at])).unwrap();
            expected[usize::from(round) * 2 + 1] = Some(100 + at);
        }
        pool.create_snapshot(id(1), id(100 + round), 0).unwrap();
        if round > 0 {
            pool.delete_snapshot(id(99 + round)).unwrap();
        }
        fold_all(&pool);
        for pool in [&pool, &reopen(&device)] {
            assert_eq!(tags(&pool.volume(id(1)).unwrap(), 0, 16), expected, "round {round}");
            assert_eq!(tags(&pool.snapshot(id(99)).unwrap(), 0, 16), first, "round {round}");
        }
        assert!(extents(&pool) <= 3);
    }
    verify_metadata(&pool).unwrap();
}

/// Everything that volumes and snapshots show.
fn shown(pool: &Pool) -> Vec<(VolumeId, Content)> {
    let volumes = pool.volumes().into_iter().map(|info| pool.volume(info.id).unwrap());
    let snapshots = pool.snapshots().into_iter().map(|info| pool.snapshot(info.id).unwrap());
    let all = volumes.chain(snapshots);
    all.map(|view| (view.id(), read(&view, 0, view.sectors().0).unwrap())).collect()
}

/// Extents of 16 sectors in which each view shows something.
fn extents_shown(of: &[(VolumeId, Content)]) -> u64 {
    let in_view =
        |content: &Content| content.chunks(16).filter(|extent| extent.iter().any(Option::is_some)).count();
    of.iter().map(|(_, content)| in_view(content) as u64).sum()
}

/// Snapshots come and go every few writes. However long, what is allocated is no more than what all that are there would be if
/// they shared nothing.
#[test]
fn random_snapshots_for_ever_leak_nothing() {
    const SECTORS: u64 = 160;
    for seed in 0..6 {
        let (mut device, mut pool) = pool_of(400);
        let mut random = Random::new(seed);
        pool.create_volume(spec(1, SECTORS)).unwrap();
        let (mut tag, mut next) = (1, 0_u8);
        for round in 0..400_u64 {
            let volume = pool.volume(id(1)).unwrap();
            for _ in 0..random.below(4) {
                let first = random.below(SECTORS - 20);
                let count = 1 + random.below(20);
                if random.below(4) == 0 {
                    volume.unmap(Lba(first), SectorCount(count)).unwrap();
                } else {
                    volume.write(Lba(first), EPOCH, sealed(tag..tag + count)).unwrap();
                    tag += count;
                }
            }
            match random.below(8) {
                0..4 => {
                    // Ids of snapshots that are gone are used again.
                    while pool.snapshot(id(100 + next % 100)).is_ok() {
                        next = next.wrapping_add(1) % 100;
                    }
                    pool.create_snapshot(id(1), id(100 + next % 100), round).unwrap();
                    next = (next + 1) % 100;
                }
                // A branch above has what it overwrites beside what it inherits.
                4 if seed % 2 == 1 && random.below(3) == 0 => {
                    let snapshots = pool.snapshots();
                    if let Some(to) = snapshots.first() {
                        pool.roll_back(id(1), to.id)
                            .or_else(|error| match error {
                                pool::PoolError::TooManyLevels { .. } => Ok(()),
                                error => Err(error),
                            })
                            .unwrap();
                    }
                }
                _ => {}
            }
            let snapshots = pool.snapshots();
            if snapshots.len() > 3 {
                let goes = usize::try_from(random.below(snapshots.len() as u64)).unwrap();
                pool.delete_snapshot(snapshots[goes].id).unwrap();
            }
            let before = shown(&pool);
            let step = pool.fold(SectorCount(random.below(30))).unwrap();
            assert!(shown(&pool) == before, "seed {seed}, round {round}: {step:?}");
            if round % 40 == 39 {
                fold_all(&pool);
                pool.end_moments_to_fold().unwrap();
                fold_all(&pool);
                verify_metadata(&pool).unwrap();
                assert!(shown(&pool) == before, "seed {seed}, round {round}");
                let (allocated, most) = (extents(&pool), extents_shown(&before));
                let most = if seed % 2 == 1 { 10 * most } else { most };
                assert!(
                    allocated <= most,
                    "seed {seed}, round {round}: {allocated} extents, {most} are shown"
                );
                drop((volume, pool));
                device = if round % 80 == 79 { device.power_cut(round) } else { device.reopened() };
                pool = reopen(&device);
                assert!(shown(&pool) == before, "seed {seed}, round {round}, reopened");
                verify_metadata(&pool).unwrap();
            }
        }
        for snapshot in pool.snapshots() {
            pool.delete_snapshot(snapshot.id).unwrap();
        }
        let left = shown(&pool);
        fold_all(&pool);
        pool.end_moments_to_fold().unwrap();
        fold_all(&pool);
        assert!(shown(&pool) == left);
        println!("seed {seed}: {} extents", extents(&pool));
    }
}

/// Ending a moment has the next write to each extent take another one: not where there is none to take.
#[test]
fn no_moment_is_ended_where_overwriting_would_then_find_no_space() {
    let prepare = |pool: &Pool| {
        let volume = pool.create_volume(spec(1, 10 * 16)).unwrap();
        volume.write(Lba(0), EPOCH, sealed(1..161)).unwrap();
        pool.create_snapshot(id(1), id(2), 0).unwrap();
        volume.write(Lba(0), EPOCH, sealed([500])).unwrap();
        pool.delete_snapshot(id(2)).unwrap();
        fold_all(pool);
        assert_eq!(extents(pool), 11, "one waits for its moment to end");
        volume
    };
    let overwrite = |volume: &PoolVolume| {
        (0..160).for_each(|at| volume.write(Lba(at), EPOCH, sealed([900 + at])).unwrap());
        assert_eq!(tags(volume, 0, 160), (0..160).map(|at| Some(900 + at)).collect::<Vec<_>>());
    };
    // By what is free.
    let (_, pool) = pool_of(64);
    let volume = prepare(&pool);
    let free = (pool.info().capacity.0 - pool.info().allocated.0) / EXTENT;
    let other = pool.create_volume(spec(9, free * 16)).unwrap();
    (0..free - 10).for_each(|at| other.write(Lba(at * 16), EPOCH, sealed([1])).unwrap());
    assert_eq!(pool.end_moments_to_fold().unwrap(), 0);
    overwrite(&volume);
    // By the quota.
    let (_, pool) = pool_of(64);
    let volume = prepare(&pool);
    let limits = |extents: u64| Limits { quota: Some(ByteLen(extents * EXTENT)), ..Limits::default() };
    pool.set_limits(id(1), limits(21)).unwrap();
    assert_eq!(pool.end_moments_to_fold().unwrap(), 0);
    overwrite(&volume);
    // Where there is room.
    pool.set_limits(id(1), limits(22)).unwrap();
    assert_eq!(pool.end_moments_to_fold().unwrap(), 1);
    fold_all(&pool);
    assert_eq!(extents(&pool), 10);
    overwrite(&volume);
}

/// One that is not what was written is not moved: it stays as it is, for whoever heals it, and so does all about it.
#[test]
fn what_is_damaged_stays_where_it_is_until_it_is_healed() {
    let (device, pool) = pool_of(64);
    let volume = pool.create_volume(spec(1, 16)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=10)).unwrap();
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    volume.write(Lba(12), EPOCH, sealed([77, 78])).unwrap();
    pool.create_snapshot(id(1), id(3), 0).unwrap();
    pool.tend(std::time::Duration::ZERO).unwrap();
    pool.delete_snapshot(id(2)).unwrap();
    let of_77 = sealed([77]).as_bytes().to_vec();
    let sectors: Vec<u64> =
        device.content().into_iter().filter(|(_, bytes)| *bytes == of_77).map(|(sector, _)| sector).collect();
    let log = (2 << 20) / 4096..((2 << 20) + (64 << 10)) / 4096;
    let at = sectors.into_iter().find(|sector| !log.contains(sector)).unwrap();
    device.edit(at, |bytes| bytes[9] ^= 1);
    assert_eq!((fold_all(&pool).groups, extents(&pool)), (0, 2));
    let mut scrub = Scrub::starting_at(Arc::clone(&pool), 0);
    let mut damaged = Vec::new();
    while let Some(step) = scrub.step().unwrap() {
        damaged.extend(step.damaged);
    }
    assert_eq!(damaged.len(), 1);
    assert_eq!(damaged[0].shown_by, [(id(1), Lba(12)), (id(3), Lba(12))]);
    assert!(pool.heal(damaged[0].at, &of_77).unwrap());
    // It is found again with the next change of that extent, or when the pool is opened.
    drop((volume, pool, scrub));
    let pool = reopen(&device);
    assert_eq!(fold_all(&pool).groups, 1);
    let volume = pool.volume(id(1)).unwrap();
    assert_eq!(tags(&volume, 9, 5), [Some(10), None, None, Some(77), Some(78)]);
    assert_eq!(extents(&pool), 1);
}

/// What had been moved when a damaged sector was found lies in two extents, and shows nowhere but where it was.
#[test]
fn what_was_moved_before_a_damaged_sector_was_found_changes_nothing() {
    // The younger takes what the older has at both ends, or the older what the younger has there.
    for ends_are_older in [true, false] {
        let (device, pool) = pool_of(64);
        let volume = pool.create_volume(spec(1, 16)).unwrap();
        let write = |from: u64, to: u64, tag: u64| {
            volume.write(Lba(from), EPOCH, sealed((from..to).map(|at| tag + at))).unwrap();
        };
        write(0, 16, 100);
        pool.create_snapshot(id(1), id(2), 0).unwrap();
        if ends_are_older {
            write(3, 13, 200);
        } else {
            write(0, 3, 200);
            write(13, 16, 200);
        }
        pool.create_snapshot(id(1), id(3), 0).unwrap();
        pool.tend(std::time::Duration::ZERO).unwrap();
        pool.delete_snapshot(id(2)).unwrap();
        let whole = tags(&volume, 0, 16);
        let last = if ends_are_older { 115 } else { 215 };
        assert_eq!(whole[15], Some(last));
        let ciphertext = sealed([last]).as_bytes().to_vec();
        let log = (2 << 20) / 4096..((2 << 20) + (64 << 10)) / 4096;
        let places = device.content().into_iter().filter(|(_, bytes)| *bytes == ciphertext);
        let at = places.map(|(sector, _)| sector).find(|sector| !log.contains(sector)).unwrap();
        device.edit(at, |bytes| bytes[9] ^= 1);

        let step = pool.fold(SectorCount(100)).unwrap();
        assert_eq!((step.groups, step.moved, step.waiting), (0, SectorCount(3), 0));
        assert_eq!(tags(&volume, 0, 15), whole[..15]);
        pool.flush().unwrap();
        verify_metadata(&pool).unwrap();
        drop((volume, pool));
        let device = device.power_cut(7);
        let pool = reopen(&device);
        assert_eq!(tags(&pool.volume(id(1)).unwrap(), 0, 15), whole[..15]);
        assert_eq!(fold_all(&pool).groups, 0);
        assert_eq!(tags(&pool.volume(id(1)).unwrap(), 0, 15), whole[..15]);

        // Once it is healed, the rest follows.
        assert!(pool.heal(ByteOffset(at * 4096), &ciphertext).unwrap());
        drop(pool);
        let pool = reopen(&device);
        assert_eq!(fold_all(&pool).groups, 1);
        assert_eq!(tags(&pool.volume(id(1)).unwrap(), 0, 16), whole);
        verify_metadata(&pool).unwrap();
    }
}

/// However long extents are, a part of one is in memory at once.
#[test]
fn a_long_extent_is_folded_through_a_short_log() {
    const LONG: u64 = 1024;
    let device = SimulatedDevice::new(ByteLen(64 << 20));
    let options = CreateOptions {
        extent_len: ByteLen(LONG * 4096),
        log_len: Some(ByteLen(256 << 10)),
        ..create_options()
    };
    let pool = Pool::create(device.clone(), options).unwrap();
    let volume = pool.create_volume(spec(1, LONG)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=LONG)).unwrap();
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    // Over what is there, so that it goes through the log again when it is folded.
    for at in (0..LONG).step_by(128) {
        volume.write(Lba(at), EPOCH, sealed((at..at + 60).map(|at| 5000 + at))).unwrap();
    }
    pool.create_snapshot(id(1), id(3), 0).unwrap();
    pool.delete_snapshot(id(2)).unwrap();
    let expected: Vec<_> = (0..LONG).map(|at| Some(if at % 128 < 60 { 5000 + at } else { 1 + at })).collect();
    let step = pool.fold(SectorCount(1)).unwrap();
    assert_eq!((step.groups, step.freed, step.moved), (1, 1, SectorCount(480)));
    assert_eq!(tags(&volume, 0, LONG), expected);
    drop((volume, pool));
    let pool = reopen(&device.power_cut(3));
    assert_eq!(tags(&pool.volume(id(1)).unwrap(), 0, LONG), expected);
    assert_eq!(tags(&pool.snapshot(id(3)).unwrap(), 0, LONG), expected);
    verify_metadata(&pool).unwrap();
}

/// Beside writers, readers of snapshots, a scrub and snapshots that come and go: nobody loses a write, sees a snapshot change or
/// finds damage.
#[test]
fn folding_beside_everybody_else_changes_nothing_for_them() {
    for seed in 0..3 {
        let (_, pool) = pool_of(1000);
        let volume = pool.create_volume(spec(1, 64)).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for thread in 0..3_u64 {
                let (volume, done) = (&volume, &done);
                scope.spawn(move || {
                    let mut random = Random::new(seed << 8 | thread);
                    let mut current = [None; 21];
                    let mut tag = (thread + 1) << 32;
                    while !done.load(Ordering::Acquire) {
                        let nth = random.below(21);
                        let at = nth * 3 + thread;
                        let known = &mut current[usize::try_from(nth).unwrap()];
                        assert_eq!(tags(volume, at, 1)[0], *known, "thread {thread}");
                        if random.below(3) == 0 {
                            volume.unmap(Lba(at), SectorCount(1)).unwrap();
                            *known = None;
                        } else {
                            tag += 1;
                            volume.write(Lba(at), EPOCH, sealed([tag])).unwrap();
                            *known = Some(tag);
                        }
                    }
                });
            }
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    if pool.fold(SectorCount(3)).unwrap().groups == 0 {
                        pool.end_moments_to_fold().unwrap();
                        pool.tend(std::time::Duration::from_micros(50)).unwrap();
                    }
                }
            });
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let mut scrub = Scrub::starting_at(Arc::clone(&pool), 0);
                    while let Some(step) = scrub.step().unwrap() {
                        assert_eq!(step.damaged, [], "seed {seed}");
                    }
                }
            });
            let mut folded = 0;
            for round in 0..300_u64 {
                let name = |round: u64| id(100 + u8::try_from(round % 3).unwrap());
                if round >= 3 {
                    pool.delete_snapshot(name(round)).unwrap();
                }
                pool.create_snapshot(id(1), name(round), round).unwrap();
                let snapshot = pool.snapshot(name(round)).unwrap();
                let first = tags(&snapshot, 0, 64);
                thread::yield_now();
                assert_eq!(tags(&snapshot, 0, 64), first, "a snapshot has changed");
                folded += u64::from(extents(&pool) < 16);
            }
            done.store(true, Ordering::Release);
            println!("seed {seed}: at most 15 extents in {folded} of 300 rounds");
        });
        fold_all(&pool);
        pool.end_moments_to_fold().unwrap();
        fold_all(&pool);
        verify_metadata(&pool).unwrap();
        assert!(extents(&pool) <= 16, "{} extents for four views of four", extents(&pool));
    }
}

/// Deleting a snapshot looks at what was written beside it, and not at all that a volume has.
#[test]
fn deleting_a_snapshot_looks_at_what_it_can_free() {
    const EXTENTS: u64 = 5000;
    let (_, pool) = pool_of(EXTENTS + 1200);
    let volume = pool.create_volume(spec(1, EXTENTS * 16)).unwrap();
    for extent in 0..EXTENTS {
        volume.write(Lba(extent * 16), EPOCH, sealed([extent + 1])).unwrap();
    }
    volume.flush().unwrap();
    let name = |round: u64| id(100 + u8::try_from(round % 2).unwrap());
    for round in 0..20 {
        let before = pool.extents_looked_at();
        volume.write(Lba(round * 100), EPOCH, sealed([1 << 20 | round])).unwrap();
        pool.create_snapshot(id(1), name(round), 0).unwrap();
        if round > 0 {
            pool.delete_snapshot(name(round - 1)).unwrap();
        }
        fold_all(&pool);
        let looked_at = pool.extents_looked_at() - before;
        assert!(looked_at < 20, "{looked_at} of {EXTENTS} extents in round {round}");
    }
    verify_metadata(&pool).unwrap();
    assert!(extents(&pool) <= EXTENTS + 2);
    // And when a clone or a rollback lies above, which is what a promoted replica is.
    pool.create_snapshot(id(1), id(7), 0).unwrap();
    pool.roll_back(id(1), id(7)).unwrap();
    pool.clone_snapshot(id(7), id(8), Limits::default()).unwrap();
    let clone = pool.volume(id(8)).unwrap();
    for extent in 0..1000 {
        clone.write(Lba(extent * 16), EPOCH, sealed([extent + 1])).unwrap();
    }
    pool.flush().unwrap();
    for round in 20..40 {
        let before = pool.extents_looked_at();
        volume.write(Lba(round * 100), EPOCH, sealed([1 << 20 | round])).unwrap();
        pool.create_snapshot(id(1), name(round), 0).unwrap();
        pool.delete_snapshot(name(round - 1)).unwrap();
        fold_all(&pool);
        let looked_at = pool.extents_looked_at() - before;
        assert!(looked_at < 20 || round == 20, "{looked_at} of {EXTENTS} extents in round {round}");
    }
    verify_metadata(&pool).unwrap();
}

/// What a clone hides is freed with the last that sees it beside the clone, whichever that is.
#[test]
fn what_only_a_clone_hid_goes_with_the_last_snapshot_that_showed_it() {
    let bystanders: [&[u8]; 3] = [&[2, 3, 4], &[4, 3, 2], &[3, 2, 4]];
    for order in bystanders {
        let (_, pool) = pool_of(64);
        let volume = pool.create_volume(spec(1, 64)).unwrap();
        volume.write(Lba(0), EPOCH, sealed(1..=64)).unwrap();
        pool.create_snapshot(id(1), id(2), 0).unwrap();
        volume.write(Lba(0), EPOCH, sealed([101])).unwrap();
        pool.create_snapshot(id(1), id(3), 0).unwrap();
        let clone = pool.clone_snapshot(id(3), id(5), Limits::default()).unwrap();
        clone.write(Lba(0), EPOCH, sealed(201..=264)).unwrap();
        volume.write(Lba(20), EPOCH, sealed([102])).unwrap();
        pool.create_snapshot(id(1), id(4), 0).unwrap();
        pool.delete_volume(id(1)).unwrap();
        for number in order {
            pool.delete_snapshot(id(*number)).unwrap();
            fold_all(&pool);
        }
        verify_metadata(&pool).unwrap();
        assert_eq!(tags(&clone, 0, 64), (201..=264).map(Some).collect::<Vec<_>>());
        assert_eq!(extents(&pool), 4, "in the order {order:?}: only the clone's own");
    }
}

/// A portion looks no further than it has room for.
#[test]
fn a_portion_of_a_large_volume_costs_what_is_in_it() {
    const EXTENTS: u64 = 3000;
    let (_, pool) = pool_of(EXTENTS + 10);
    // Of a TiB.
    let volume = pool.create_volume(spec(1, 1 << 28)).unwrap();
    for extent in 0..EXTENTS {
        volume.write(Lba(extent * 16), EPOCH, sealed([extent + 1])).unwrap();
    }
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    let manifest = pool.manifest(id(2), None).unwrap();
    let (mut from, mut sent, mut portions) = (Lba(0), 0, 0);
    let before = pool.extents_looked_at();
    while sent < EXTENTS {
        let portion = pool.send(&manifest, from, SectorCount(16)).unwrap();
        (from, sent, portions) = (portion.next, sent + portion.written.0, portions + 1);
    }
    let looked_at = pool.extents_looked_at() - before;
    println!("{portions} portions looked at {looked_at} extents");
    assert!(looked_at < portions * 520, "8192 sectors are 512 extents");
    // One sector of all that differs, and the rest of the TiB goes in few portions.
    volume.write(Lba(77), EPOCH, sealed([1 << 30])).unwrap();
    pool.create_snapshot(id(1), id(3), 0).unwrap();
    let manifest = pool.manifest(id(3), Some(id(2))).unwrap();
    let (mut from, mut portions) = (Lba(0), 0);
    while from.0 < manifest.sectors.0 {
        let portion = pool.send(&manifest, from, SectorCount(256)).unwrap();
        assert!(portion.bytes.len() < 5000);
        (from, portions) = (portion.next, portions + 1);
    }
    assert_eq!(portions, 128, "8 GiB each");
}

#[test]
fn a_volume_has_moments_for_its_life_and_the_last_is_the_last() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    volume.write(Lba(0), EPOCH, sealed([1])).unwrap();
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    volume.write(Lba(1), EPOCH, sealed([2])).unwrap();
    // More than there were before version 6.
    pool.skip_moments(id(1), (1 << 24) + 5).unwrap();
    volume.write(Lba(2), EPOCH, sealed([3])).unwrap();
    volume.unmap(Lba(0), SectorCount(1)).unwrap();
    pool.create_snapshot(id(1), id(3), 0).unwrap();
    volume.write(Lba(3), EPOCH, sealed([4])).unwrap();
    pool.flush().unwrap();
    drop((pool, volume));
    let pool = reopen(&device.power_cut(1));
    let volume = pool.volume(id(1)).unwrap();
    assert_eq!(tags(&volume, 0, 5), [None, Some(2), Some(3), Some(4), None]);
    assert_eq!(tags(&pool.snapshot(id(2)).unwrap(), 0, 2), [Some(1), None]);
    assert_eq!(tags(&pool.snapshot(id(3)).unwrap(), 0, 4), [None, Some(2), Some(3), None]);
    verify_metadata(&pool).unwrap();
    pool.delete_snapshot(id(3)).unwrap();
    fold_all(&pool);
    pool.skip_moments(id(1), u32::MAX).unwrap();
    let none = pool.create_snapshot(id(1), id(4), 0).unwrap_err();
    assert!(matches!(none, pool::PoolError::TooManySnapshots), "{none}");
    // What the message says to do.
    pool.roll_back(id(1), id(2)).unwrap();
    pool.create_snapshot(id(1), id(4), 0).unwrap();
    assert_eq!(tags(&volume, 0, 2), [Some(1), None]);
}

/// Whoever asks what has been written is told of what was sealed anew, and of a new key.
#[test]
fn sealing_anew_counts_as_written() {
    let (_, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=20)).unwrap();
    let next = VolumeEpoch(EPOCH.0 + 1);
    let before = volume.written();
    pool.begin_epoch(id(1), next, check_of(spec(1, 1).domain, next)).unwrap();
    let begun = volume.written();
    assert!(begun > before);
    let rewrite = || {
        volume.rewrite(Lba(0), SectorCount(64), next, |_, under, data| resealed(&data, under, next)).unwrap()
    };
    assert_eq!(rewrite(), SectorCount(20));
    let rewritten = volume.written();
    assert_eq!(rewritten.0, begun.0 + 20);
    assert_eq!(
        (rewrite(), volume.written()),
        (SectorCount(0), rewritten),
        "nothing is left, and nothing counted"
    );
    // Folding changes nothing that anybody would have to be sent.
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    volume.write(Lba(3), next, sealed_under(next, [40])).unwrap();
    pool.delete_snapshot(id(2)).unwrap();
    let before = volume.written();
    assert_eq!(pool.end_moments_to_fold().unwrap(), 1);
    assert!(fold_all(&pool).groups > 0);
    assert_eq!(volume.written(), before);
}
