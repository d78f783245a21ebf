//! Snapshots, clones, rollback, limits and usage: what they show, cost and give back.

use std::sync::Arc;

use device::SimulatedDevice;
use pool::{CreateOptions, LEVELS_MAX, Limits, Pool, PoolError, PoolErrorKind, PoolVolume, Usage};
use units::{ByteLen, Fence, Lba, SectorCount, VolumeId};

use crate::model::{EPOCH, read, sealed, spec, verify_metadata};
use crate::workload::{DEVICE, EXTENT, EXTENTS, LOG, create_options, reopen, small_pool};

fn id(number: u8) -> VolumeId {
    spec(number, 1).id
}

fn bytes(extents: u64) -> ByteLen {
    ByteLen(extents * EXTENT)
}

fn tags(volume: &PoolVolume, first: u64, count: u64) -> Vec<Option<u64>> {
    read(volume, first, count).unwrap().into_iter().map(|sector| sector.map(|units| units[0])).collect()
}

#[test]
fn a_snapshot_stays_as_it_was_while_its_volume_is_written_trimmed_resized_and_deleted() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=40)).unwrap();
    let info = pool.create_snapshot(id(1), id(2), 77).unwrap();
    assert_eq!((info.id, info.volume, info.created_s, info.sectors), (id(2), id(1), 77, SectorCount(64)));
    let before: Vec<_> = (1..=40).map(Some).chain([None; 24]).collect();
    volume.write(Lba(3), EPOCH, sealed([100])).unwrap();
    volume.unmap(Lba(8), SectorCount(20)).unwrap();
    assert_eq!(tags(&volume, 2, 3), [Some(3), Some(100), Some(5)]);
    assert_eq!(tags(&volume, 7, 3), [Some(8), None, None]);
    assert_eq!(tags(&volume, 27, 2), [None, Some(29)]);
    pool.resize_volume(id(1), SectorCount(4)).unwrap();
    pool.resize_volume(id(1), SectorCount(64)).unwrap();
    assert_eq!(tags(&volume, 0, 64)[4..], [None; 60], "what was cut off is a hole");
    for pool in [&pool, &reopen(&device)] {
        assert_eq!(tags(&pool.snapshot(id(2)).unwrap(), 0, 64), before);
        assert_eq!(
            tags(&pool.volume(id(1)).unwrap(), 0, 6),
            [Some(1), Some(2), Some(3), Some(100), None, None]
        );
        verify_metadata(pool).unwrap();
    }
    let pool = reopen(&device);
    pool.delete_volume(id(1)).unwrap();
    assert_eq!(tags(&pool.snapshot(id(2)).unwrap(), 0, 64), before);
    assert_eq!(pool.snapshots(), [info]);
    pool.delete_snapshot(id(2)).unwrap();
    verify_metadata(&pool).unwrap();
    assert_eq!(pool.info().allocated, ByteLen(0));
}

#[test]
fn a_snapshot_takes_no_writes_and_is_no_volume() {
    let (_, pool) = small_pool();
    pool.create_volume(spec(1, 64)).unwrap();
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    let snapshot = pool.snapshot(id(2)).unwrap();
    for result in [snapshot.write(Lba(0), EPOCH, sealed([1])), snapshot.unmap(Lba(0), SectorCount(1))] {
        assert_eq!(result.unwrap_err().kind(), PoolErrorKind::ReadOnly);
    }
    assert!(matches!(pool.volume(id(2)), Err(PoolError::NotAVolume(_))));
    assert!(matches!(pool.delete_volume(id(2)), Err(PoolError::NotAVolume(_))));
    assert!(matches!(pool.raise_fence(id(2), Fence(1)), Err(PoolError::NotAVolume(_))));
    assert!(matches!(pool.create_snapshot(id(2), id(3), 0), Err(PoolError::NotAVolume(_))));
    assert!(matches!(pool.snapshot(id(1)), Err(PoolError::NoSuchSnapshot(_))));
    assert!(matches!(pool.create_snapshot(id(1), id(2), 0), Err(PoolError::VolumeExists(_))));
    assert!(matches!(pool.delete_snapshot(id(1)), Err(PoolError::NoSuchSnapshot(_))));
    pool.delete_snapshot(id(2)).unwrap();
    assert_eq!(snapshot.read(Lba(0), SectorCount(1)).unwrap_err().kind(), PoolErrorKind::NoSuchVolume);
}

/// The costs that DESIGN promises, counted in operations of the device.
#[test]
fn a_snapshot_and_the_first_write_after_it_cost_one_write_and_one_flush_each() {
    let device = SimulatedDevice::new(DEVICE);
    let options = CreateOptions { log_len: Some(ByteLen(4 * LOG)), ..create_options() };
    let pool = Pool::create(device.clone(), options).unwrap();
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=64)).unwrap();
    volume.flush().unwrap();
    // The first of a pool takes an extent for the hole table.
    for number in 2..5 {
        let (writes, flushes) = (device.writes(), device.flushes());
        pool.create_snapshot(id(1), id(number), 0).unwrap();
        assert_eq!((device.writes() - writes, device.flushes() - flushes), (1, 1));
        let (writes, flushes) = (device.writes(), device.flushes());
        volume.write(Lba(20), EPOCH, sealed([99])).unwrap();
        volume.flush().unwrap();
        assert_eq!((device.writes() - writes, device.flushes() - flushes), (1, 1), "the log has the sector");
    }
}

#[test]
fn a_clone_begins_as_its_snapshot_and_goes_its_own_way() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=20)).unwrap();
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    volume.write(Lba(0), EPOCH, sealed([50])).unwrap();
    let clone = pool.clone_snapshot(id(2), id(3), Limits::default()).unwrap();
    let info = clone.info();
    assert_eq!((info.domain, info.check, info.clone_of), (spec(1, 1).domain, spec(1, 1).check, Some(id(2))));
    assert_eq!((info.sectors, info.fence, info.allocated), (SectorCount(64), Fence(0), ByteLen(0)));
    clone.write(Lba(1), EPOCH, sealed([60])).unwrap();
    clone.unmap(Lba(2), SectorCount(1)).unwrap();
    clone.unmap(Lba(16), SectorCount(16)).unwrap();
    clone.flush().unwrap();
    pool.delete_snapshot(id(2)).unwrap();
    pool.delete_volume(id(1)).unwrap();
    for pool in [&pool, &reopen(&device)] {
        let clone = pool.volume(id(3)).unwrap();
        assert_eq!(tags(&clone, 0, 4), [Some(1), Some(60), None, Some(4)]);
        assert_eq!(tags(&clone, 15, 10), [vec![Some(16)], vec![None; 9]].concat());
        verify_metadata(pool).unwrap();
    }
    let pool = reopen(&device);
    pool.delete_volume(id(3)).unwrap();
    assert_eq!(pool.info().allocated, ByteLen(0), "the last one takes what all of them shared");
}

#[test]
fn clones_of_clones_go_as_deep_as_the_format_and_no_deeper() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    volume.write(Lba(0), EPOCH, sealed([1])).unwrap();
    let deepest = u8::try_from(LEVELS_MAX).unwrap();
    for level in 1..deepest {
        pool.create_snapshot(id(level), id(100 + level), 0).unwrap();
        let clone = pool.clone_snapshot(id(100 + level), id(level + 1), Limits::default()).unwrap();
        clone.write(Lba(u64::from(level)), EPOCH, sealed([u64::from(level) + 1])).unwrap();
    }
    pool.create_snapshot(id(deepest), id(200), 0).unwrap();
    let refused = pool.clone_snapshot(id(200), id(201), Limits::default()).unwrap_err();
    assert!(matches!(refused, PoolError::TooManyLevels { .. }), "{refused}");
    assert!(pool.roll_back(id(deepest), id(200)).is_err());
    let pool = reopen(&device);
    let expected: Vec<_> = (1..=u64::from(deepest)).map(Some).chain([None]).collect();
    for deep in [pool.volume(id(deepest)).unwrap(), pool.snapshot(id(200)).unwrap()] {
        assert_eq!(tags(&deep, 0, u64::from(deepest) + 1), expected);
    }
    verify_metadata(&pool).unwrap();
}

#[test]
fn rolling_back_shows_the_snapshot_again_and_keeps_the_other_snapshots() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=32)).unwrap();
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    volume.write(Lba(0), EPOCH, sealed([101])).unwrap();
    pool.resize_volume(id(1), SectorCount(20)).unwrap();
    pool.create_snapshot(id(1), id(3), 1).unwrap();
    volume.write(Lba(1), EPOCH, sealed([102])).unwrap();
    pool.raise_fence(id(1), Fence(9)).unwrap();
    pool.roll_back(id(1), id(2)).unwrap();
    assert_eq!((volume.sectors(), volume.info().fence), (SectorCount(64), Fence(9)));
    assert_eq!(tags(&volume, 0, 33), (1..=32).map(Some).chain([None]).collect::<Vec<_>>());
    volume.write(Lba(2), EPOCH, sealed([103])).unwrap();
    // And forth again.
    pool.roll_back(id(1), id(3)).unwrap();
    assert_eq!(tags(&volume, 0, 3), [Some(101), Some(2), Some(3)]);
    for pool in [&pool, &reopen(&device)] {
        assert_eq!(tags(&pool.snapshot(id(2)).unwrap(), 0, 2), [Some(1), Some(2)]);
        assert_eq!(pool.volume(id(1)).unwrap().sectors(), SectorCount(20));
        verify_metadata(pool).unwrap();
    }
    let other = pool.create_volume(spec(4, 64)).unwrap();
    pool.create_snapshot(other.id(), id(5), 0).unwrap();
    assert!(matches!(pool.roll_back(id(1), id(5)), Err(PoolError::ForeignSnapshot { .. })));
}

#[test]
fn a_full_pool_still_trims_deletes_rolls_back_and_overwrites_what_is_its_own() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, EXTENTS * 16)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=10 * 16)).unwrap();
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    let mut next = 0;
    while volume.write(Lba(next * 16), EPOCH, sealed([500 + next])).is_ok() {
        next += 1;
    }
    assert_eq!(next, EXTENTS - 11, "one extent is the hole table's");
    assert_eq!(pool.info().allocated, pool.info().capacity);
    volume.flush().unwrap();
    // Overwriting what no snapshot shows needs nothing; what one shows cannot be overwritten, but it can be trimmed.
    volume.write(Lba(0), EPOCH, sealed([600])).unwrap();
    volume.unmap(Lba(1), SectorCount(15)).unwrap();
    assert_eq!(tags(&volume, 0, 3), [Some(600), None, None]);
    assert!(matches!(volume.write(Lba(next * 16), EPOCH, sealed([1])), Err(PoolError::NoSpace)));
    pool.roll_back(id(1), id(2)).unwrap();
    assert_eq!(tags(&volume, 0, 160), (1..=160).map(Some).collect::<Vec<_>>());
    assert_eq!(pool.info().allocated, bytes(10));
    while volume.write(Lba(next * 16), EPOCH, sealed([700 + next])).is_ok() {
        next = (next + 1) % EXTENTS;
    }
    volume.unmap(Lba(0), SectorCount(EXTENTS * 16)).unwrap();
    volume.flush().unwrap();
    assert_eq!(pool.info().allocated, bytes(10), "only the snapshot's");
    assert_eq!(tags(&volume, 0, EXTENTS * 16), vec![None; 24 * 16]);
    pool.delete_snapshot(id(2)).unwrap();
    verify_metadata(&pool).unwrap();
    assert_eq!(pool.info().allocated, ByteLen(0));
    verify_metadata(&reopen(&device)).unwrap();
}

#[test]
fn overwritten_extents_are_given_back_when_the_last_snapshot_of_them_goes() {
    let (_, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=64)).unwrap();
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    pool.create_snapshot(id(1), id(3), 0).unwrap();
    // The first as a whole, the second in part, the third trimmed; the fourth stays shared.
    volume.write(Lba(0), EPOCH, sealed(101..=117)).unwrap();
    volume.unmap(Lba(32), SectorCount(16)).unwrap();
    volume.flush().unwrap();
    let usage = |id| pool.usage().of[&id];
    assert_eq!(usage(id(2)), Usage { referenced: bytes(4), unique: ByteLen(0) });
    assert_eq!(usage(id(1)), Usage { referenced: bytes(4), unique: bytes(2) });
    assert_eq!(usage(id(1)).shared(), bytes(2));
    pool.delete_snapshot(id(2)).unwrap();
    assert_eq!((usage(id(3)).unique, pool.info().allocated), (bytes(2), bytes(6)));
    pool.delete_snapshot(id(3)).unwrap();
    verify_metadata(&pool).unwrap();
    assert_eq!(
        (usage(id(1)), pool.info().allocated),
        (Usage { referenced: bytes(4), unique: bytes(4) }, bytes(4))
    );
    // The rest of the second is overwritten: what it hid goes as well.
    volume.write(Lba(17), EPOCH, sealed(200..=214)).unwrap();
    verify_metadata(&pool).unwrap();
    assert_eq!(pool.info().allocated, bytes(3));
}

#[test]
fn a_quota_counts_snapshots_and_a_reserve_is_kept_from_others() {
    let (device, pool) = small_pool();
    let quota = Limits { quota: Some(bytes(3)), ..Limits::default() };
    let volume = pool.create_volume_within(spec(1, 160), quota).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=32)).unwrap();
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    volume.write(Lba(0), EPOCH, sealed([40])).unwrap();
    let refused = volume.write(Lba(16), EPOCH, sealed([41])).unwrap_err();
    assert!(matches!(refused, PoolError::Quota) && refused.kind() == PoolErrorKind::NoSpace);
    pool.set_limits(id(1), Limits { quota: Some(bytes(4)), reserve: bytes(6), ..Limits::default() }).unwrap();
    volume.write(Lba(16), EPOCH, sealed([41])).unwrap();
    volume.flush().unwrap();
    assert_eq!(pool.info().reserved, bytes(2));
    for pool in [&pool, &reopen(&device)] {
        assert_eq!(pool.info().reserved, bytes(2), "kept through a restart");
        assert_eq!(pool.volume(id(1)).unwrap().info().limits.reserve, bytes(6));
    }
    drop((pool, volume));
    let pool = reopen(&device);
    let too_much = Limits { reserve: bytes(EXTENTS), ..Limits::default() };
    assert!(matches!(pool.create_volume_within(spec(3, 16), too_much), Err(PoolError::NoSpace)));
    let other = pool.create_volume(spec(3, EXTENTS * 16)).unwrap();
    let taken = (0..).take_while(|nth| other.write(Lba(nth * 16), EPOCH, sealed([7])).is_ok()).count() as u64;
    assert_eq!(
        taken,
        EXTENTS - 1 - 4 - 2,
        "all but the hole table, what the first has and what is kept for it"
    );
    pool.set_limits(id(1), Limits { reserve: bytes(6), ..Limits::default() }).unwrap();
    let volume = pool.volume(id(1)).unwrap();
    volume.write(Lba(32), EPOCH, sealed(50..=81)).unwrap();
    assert!(matches!(volume.write(Lba(64), EPOCH, sealed([82])), Err(PoolError::NoSpace)));
    pool.delete_volume(id(1)).unwrap();
    assert_eq!(pool.info().reserved, ByteLen(0));
}

/// The hole table's first part has room for 1024 extents. Who has more reserved needs no more of it when others have taken
/// all that is left.
#[test]
fn a_reserve_is_there_though_the_hole_table_must_grow_for_it() {
    const EXTENTS: u64 = 1200;
    const RESERVED: u64 = 1100;
    let len = ByteLen(DEVICE.0 + (EXTENTS + EXTENTS / 128 + 3) * EXTENT);
    for snapshot_first in [true, false] {
        let device = SimulatedDevice::new(len);
        let pool = Pool::create(device.clone(), create_options()).unwrap();
        let volume = pool.create_volume(spec(1, EXTENTS * 16)).unwrap();
        let other = pool.create_volume(spec(2, 2 * EXTENTS * 16)).unwrap();
        let write = |volume: &PoolVolume, extent: u64| volume.write(Lba(extent * 16), EPOCH, sealed([7]));
        (0..10).for_each(|extent| write(&other, extent).unwrap());
        let limits = Limits { reserve: bytes(RESERVED), ..Limits::default() };
        let snapshot = || pool.create_snapshot(id(2), id(3), 0).unwrap();
        if snapshot_first {
            snapshot();
            pool.set_limits(id(1), limits).unwrap();
        } else {
            pool.set_limits(id(1), limits).unwrap();
            snapshot();
        }
        let taken = (0..).take_while(|extent| write(&other, *extent).is_ok()).count();
        assert!(matches!(write(&other, taken as u64), Err(PoolError::NoSpace)));
        for extent in 0..RESERVED {
            write(&volume, extent).unwrap_or_else(|error| panic!("extent {extent} of {RESERVED}: {error}"));
        }
        verify_metadata(&pool).unwrap();
        assert_eq!((pool.info().reserved, volume.info().allocated), (ByteLen(0), bytes(RESERVED)));
        // A trim of what the snapshot shows finds its room as well.
        other.unmap(Lba(0), other.sectors()).unwrap();
        verify_metadata(&pool).unwrap();
    }
}

/// A pool with a volume of `extents` extents, all written, and flushed; and room for as many again.
fn many(extents: u64) -> Arc<SimulatedDevice> {
    let device = SimulatedDevice::new(ByteLen(DEVICE.0 + 3 * (extents + extents / 64 + 2) * EXTENT));
    let pool = Pool::create(device.clone(), create_options()).unwrap();
    let volume = pool.create_volume(spec(1, extents * 16)).unwrap();
    for extent in 0..extents {
        volume.write(Lba(extent * 16), EPOCH, sealed([extent + 1])).unwrap();
    }
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    device.durable_copy()
}

/// What is done to a pool of many extents under a snapshot, and what the first sector of an extent may hold after a cut.
struct Change {
    what: &'static str,
    prepare: fn(&Pool, u64),
    run: fn(&Pool, u64) -> Result<(), PoolError>,
    allowed: fn(u64) -> [Option<u64>; 2],
    /// How many flushes of the device it takes at least, or it no longer is what it was.
    flushes_min: u64,
}

fn overwrite(pool: &Pool, extents: u64) -> Result<(), PoolError> {
    let volume = pool.volume(id(1))?;
    // More than such a log takes: to their places.
    (0..extents).try_for_each(|extent| volume.write(Lba(extent * 16), EPOCH, sealed([(1 << 20) + extent; 9])))
}

fn trim(pool: &Pool, extents: u64) -> Result<(), PoolError> {
    pool.volume(id(1))?.unmap(Lba(0), SectorCount(extents * 16))
}

/// Commits that are longer than the log, so that a cut leaves some of their batches: the order of their records decides
/// what is then seen. Each of the three would show something else if two kinds of records were swapped.
#[test]
fn whichever_batches_of_a_long_commit_survive_every_sector_is_old_or_new() {
    const MANY: u64 = 4000;
    let changes = [
        // Holes before the extents above them go: else the snapshot's sectors show.
        Change {
            what: "trim",
            prepare: |pool, extents| {
                overwrite(pool, extents).unwrap();
                pool.flush().unwrap();
            },
            run: |pool, extents| trim(pool, extents).and_then(|()| pool.flush()),
            allowed: |extent| [Some((1 << 20) + extent), None],
            flushes_min: 4,
        },
        // What hides before what is hidden goes: else sectors that were flushed are holes.
        Change {
            what: "overwrite and delete the snapshot",
            prepare: |_, _| {},
            run: |pool, extents| {
                overwrite(pool, extents)?;
                pool.delete_snapshot(id(2))?;
                pool.flush()
            },
            allowed: |extent| [Some(extent + 1), Some((1 << 20) + extent)],
            flushes_min: 4,
        },
        // What is hidden before the holes, which go with the next commit: else it is back.
        Change {
            what: "delete the snapshot of what is trimmed",
            prepare: |pool, extents| {
                trim(pool, extents).unwrap();
                pool.flush().unwrap();
            },
            run: |pool, _| pool.delete_snapshot(id(2)).and_then(|()| pool.flush()),
            allowed: |_| [None, None],
            flushes_min: 2,
        },
    ];
    let fresh = many(MANY);
    for Change { what, prepare, run, allowed, flushes_min } in changes {
        let device = fresh.durable_copy();
        prepare(&reopen(&device), MANY);
        let prepared = device.durable_copy();
        let (mut cuts, mut batches) = (0, 0);
        // The writes of sectors are left alone; other tests cut there. The records of those sectors make many batches.
        let (skipped, step) = if what.starts_with("overwrite") { (MANY, 11) } else { (0, 1) };
        for nth in (0..).step_by(step) {
            let device = prepared.durable_copy();
            let pool = reopen(&device);
            device.cut_power_at(device.operations() + skipped + nth);
            let flushes = device.flushes();
            if run(&pool, MANY).is_ok() && device.has_power() {
                batches = device.flushes() - flushes;
                break;
            }
            cuts += 1;
            let pool = Pool::open(device.power_cut(nth)).unwrap();
            let volume = pool.volume(id(1)).unwrap();
            for extent in 0..MANY {
                let found = tags(&volume, extent * 16, 1)[0];
                let allowed = allowed(extent);
                assert!(allowed.contains(&found), "{what}, cut {nth}: extent {extent} has {found:?}");
            }
            verify_metadata(&pool).unwrap();
        }
        println!("{what}: {cuts} cuts, {batches} flushes");
        assert!(cuts > 0, "{what} is over before the first cut");
        assert!(batches >= flushes_min, "{what} takes fewer commits or batches than it did");
    }
}

/// What hides something older is flushed, and then a part of it trimmed: wherever power is cut in the commit behind that,
/// which is longer than the log, the trimmed sector shows what it last held or nothing, and never what was hidden.
#[test]
fn a_trim_of_what_hides_something_older_never_shows_it() {
    const MANY: u64 = 2000;
    let prepared = many(MANY);
    let pool = reopen(&prepared);
    pool.delete_snapshot(id(2)).unwrap();
    // Whole, so that nobody sees the extents of the snapshot's moment any more, which the next commit would free.
    overwrite(&pool, MANY).unwrap();
    pool.flush().unwrap();
    let prepared = prepared.durable_copy();
    let mut flushes = 0;
    for nth in 0.. {
        let device = prepared.durable_copy();
        let pool = reopen(&device);
        let volume = pool.volume(id(1)).unwrap();
        for extent in 0..MANY {
            volume.unmap(Lba(extent * 16), SectorCount(1)).unwrap();
        }
        let before = device.flushes();
        device.cut_power_at(device.operations() + nth);
        let whole = pool.flush().is_ok() && device.has_power();
        if whole {
            flushes = device.flushes() - before;
        }
        drop((volume, pool));
        let pool = Pool::open(device.power_cut(nth)).unwrap();
        let volume = pool.volume(id(1)).unwrap();
        for extent in 0..MANY {
            let found = tags(&volume, extent * 16, 1)[0];
            let allowed = [Some((1 << 20) + extent), None];
            assert!(allowed.contains(&found), "cut {nth}: extent {extent} has {found:?}");
        }
        verify_metadata(&pool).unwrap();
        if whole {
            break;
        }
    }
    println!("{flushes} flushes");
    assert!(flushes > 3, "the commit no longer takes more than one batch");
}

#[test]
fn a_locked_snapshot_is_deleted_and_unlocked_by_nobody_but_whoever_counts_its_time() {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=40)).unwrap();
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    pool.create_snapshot(id(1), id(3), 0).unwrap();
    assert_eq!(pool.lock_snapshot(id(2), 60).unwrap().lock_s, 60);
    assert!(matches!(pool.lock_snapshot(id(9), 60), Err(PoolError::NoSuchSnapshot(_))));
    volume.write(Lba(0), EPOCH, sealed(101..=140)).unwrap();
    pool.roll_back(id(1), id(3)).unwrap();
    pool.delete_snapshot(id(3)).unwrap();
    pool.resize_volume(id(1), SectorCount(1)).unwrap();
    pool.delete_volume(id(1)).unwrap();
    drop(pool);
    let pool = reopen(&device);
    assert_eq!(pool.snapshots().iter().map(|info| (info.id, info.lock_s)).collect::<Vec<_>>(), [(id(2), 60)]);
    assert!(matches!(pool.delete_snapshot(id(2)), Err(PoolError::SnapshotLocked(_))));
    assert!(matches!(pool.lock_snapshot(id(2), 59), Err(PoolError::SnapshotLocked(_))));
    pool.lock_snapshot(id(2), 61).unwrap();
    // It was made longer meanwhile.
    assert!(matches!(pool.end_lock(id(2), 60), Err(PoolError::SnapshotLocked(_))));
    let shown: Vec<_> = (1..=40).map(Some).collect();
    assert_eq!(tags(&pool.snapshot(id(2)).unwrap(), 0, 40), shown);
    assert_eq!(pool.check().unwrap().locked_snapshots, 1);
    drop(pool);

    let forced = CreateOptions { force: true, ..create_options() };
    let device = device.reopened();
    let refused = Pool::create(device.clone(), forced).unwrap_err();
    assert!(matches!(refused, PoolError::HoldsLocked { snapshots: 1, .. }), "{refused}");
    let pool = reopen(&device);
    assert_eq!(tags(&pool.snapshot(id(2)).unwrap(), 0, 40), shown, "nothing was written");
    pool.end_lock(id(2), 61).unwrap();
    pool.delete_snapshot(id(2)).unwrap();
    pool.create_volume(spec(4, 64)).unwrap();
    pool.create_snapshot(id(4), id(5), 0).unwrap();
    pool.lock_snapshot(id(5), 60).unwrap();
    drop(pool);
    let named = CreateOptions { destroy_locked: true, ..forced };
    assert_eq!(Pool::create(device.reopened(), named).unwrap().info().snapshots, 0);
}

/// Whatever is written, a locked snapshot stays: what finds no room any more is refused.
#[test]
fn a_flood_of_rewrites_pushes_no_locked_snapshot_out() {
    let (_, pool) = small_pool();
    let volume = pool.create_volume(spec(1, 1000)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=16)).unwrap();
    pool.create_snapshot(id(1), id(2), 0).unwrap();
    pool.lock_snapshot(id(2), 60).unwrap();
    let refused = (0..1000).step_by(16).find_map(|at| {
        let written = volume.write(Lba(at), EPOCH, sealed((0..16).map(|nth| 5000 + at + nth)));
        written.and_then(|()| pool.flush()).err()
    });
    assert_eq!(refused.map(|error| error.kind()), Some(PoolErrorKind::NoSpace));
    let shown: Vec<_> = (1..=16).map(Some).collect();
    assert_eq!(tags(&pool.snapshot(id(2)).unwrap(), 0, 16), shown);
    assert!(matches!(pool.delete_snapshot(id(2)), Err(PoolError::SnapshotLocked(_))));
    verify_metadata(&pool).unwrap();
}
