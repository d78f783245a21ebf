//! Moving a pool to another device: while it is written to, with power cut at every device operation of both, with devices that
//! fail, and with one of the two missing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use device::{Device, Errno, Fault, Operation, SimulatedDevice, Survivors};
use pool::{CrashStep, CreateOptions, OpenOptions, Pool, PoolError, PoolErrorKind, Scrub, StepHook};
use units::{ByteLen, ByteOffset, Fence, Lba};

use crate::model::{EPOCH, Model, read, sealed, spec, verify_metadata};
use crate::workload::{DEVICE, EXTENT, LOG, Random, Shape, Workload, create_options, small_pool};

/// Operations before a move begins, and behind its end.
const BEFORE: usize = 45;
const BEHIND: usize = 8;
/// Ways in which each cut is continued, beside the two that leave all and nothing of what was not flushed.
const RANDOM_SURVIVORS: u64 = 1;

/// What the device is called that a pool is moved to.
const NEW: &str = "the new device";

/// A device that somebody else has used, on the supply of `old` and a little longer.
fn new_device(old: &SimulatedDevice) -> Arc<SimulatedDevice> {
    let device = SimulatedDevice::filled_with_noise(ByteLen(old.len().0 + 5 * 4096), 0x0ddd).named(NEW);
    device.share_power_with(old);
    device
}

fn among(new: &Arc<SimulatedDevice>) -> [Arc<dyn Device>; 1] {
    [new.clone()]
}

fn copy_all(pool: &Pool) {
    while pool.copy_step().unwrap().is_some() {}
}

/// A volume with something in every other extent, and a snapshot of what it was before.
fn filled() -> (Arc<SimulatedDevice>, Arc<Pool>) {
    let (device, pool) = small_pool();
    let volume = pool.create_volume(spec(2, 160)).unwrap();
    volume.write(Lba(0), EPOCH, &sealed(1000..1040)).unwrap();
    pool.create_snapshot(spec(2, 1).id, spec(9, 1).id, 1).unwrap();
    for extent in (0..10).step_by(2) {
        volume.write(Lba(extent * 16), EPOCH, &sealed(extent * 16..extent * 16 + 12)).unwrap();
    }
    volume.flush().unwrap();
    (device, pool)
}

/// What [`filled`] has.
fn verify_filled(pool: &Arc<Pool>) {
    let volume = pool.volume(spec(2, 1).id).unwrap();
    let found = read(&volume, 0, 160).unwrap();
    for (sector, found) in (0..).zip(found) {
        let expected = match (sector / 16 % 2, sector % 16, sector) {
            (0, 0..12, _) => Some(sector),
            (_, _, 0..40) => Some(1000 + sector),
            _ => None,
        };
        assert_eq!(found, expected.map(|tag| [tag; 8]), "sector {sector}");
    }
    verify_metadata(pool).unwrap();
}

#[test]
fn a_pool_is_moved_while_it_serves_and_opens_from_the_new_device_alone() {
    let (old, pool) = filled();
    let new = new_device(&old);
    pool.begin_replacing(new.clone(), true).unwrap();
    let volume = pool.volume(spec(2, 1).id).unwrap();
    let mut written = 0;
    while pool.copy_step().unwrap().is_some() {
        // In front of the copying, behind it, and where it is.
        volume.write(Lba(100 + written % 60), EPOCH, &sealed([5000 + written])).unwrap();
        written += 1;
        if written % 3 == 0 {
            volume.flush().unwrap();
        }
    }
    assert!(written > 10);
    let status = pool.replacing().unwrap();
    assert!(status.copied_all && !status.failed && status.copied == status.total && status.unreadable == 0);
    let replaced = pool.finish_replacing().unwrap();
    assert!(replaced.not_retired.is_none());
    assert_eq!((replaced.from, replaced.unreadable), (old.info().path, 0));
    assert!(pool.replacing().is_none());
    let operations = old.writes();
    volume.write(Lba(7), EPOCH, &sealed([7777])).unwrap();
    volume.flush().unwrap();
    assert_eq!(old.writes(), operations, "nothing goes to the old device any more");
    drop((volume, pool));

    let pool = Pool::open(new.reopened()).unwrap();
    let found = read(&pool.volume(spec(2, 1).id).unwrap(), 0, 160).unwrap();
    assert_eq!(found[7], Some([7777; 8]));
    for nth in written.saturating_sub(60)..written {
        let sector = 100 + nth % 60;
        assert_eq!(found[usize::try_from(sector).unwrap()], Some([5000 + nth; 8]), "sector {sector}");
    }
    assert!(found[..7].iter().zip(0..).all(|(found, sector)| *found == Some([sector; 8])));
    verify_metadata(&pool).unwrap();
    // What it is longer by comes with growing.
    assert_eq!(pool.info().used_len, DEVICE);
    assert_eq!(pool.grow().unwrap(), new.len());
    drop(pool);
    let refused = Pool::open(old.reopened()).unwrap_err();
    assert!(matches!(refused, PoolError::MovedAway { .. }), "{refused}");
}

#[test]
fn a_move_goes_on_after_a_restart_where_it_was() {
    let (old, pool) = filled();
    let new = new_device(&old);
    pool.begin_replacing(new.clone(), true).unwrap();
    let mut steps = 0;
    // A few extents: how far that is has been saved by then.
    while pool.replacing().unwrap().copied < ByteLen(6 * EXTENT) {
        pool.copy_step().unwrap();
        steps += 1;
    }
    drop(pool);
    let (old, new) = (old.reopened(), new.reopened());
    let pool = Pool::open_among(old.clone(), &among(&new), OpenOptions::default()).unwrap();
    let status = pool.replacing().unwrap();
    assert!(status.copied >= ByteLen(3 * EXTENT), "{status:?}");
    let mut more = 0;
    while pool.copy_step().unwrap().is_some() {
        more += 1;
    }
    assert!(more < steps + 12, "{steps} steps before, {more} behind");
    pool.finish_replacing().unwrap();
    drop(pool);
    verify_filled(&Pool::open(new.reopened()).unwrap());
}

#[test]
fn a_pool_opened_without_the_new_device_is_whole_and_the_move_begins_anew() {
    let (old, pool) = filled();
    let new = new_device(&old);
    pool.begin_replacing(new.clone(), true).unwrap();
    copy_all(&pool);
    drop(pool);
    let (old, new) = (old.reopened(), new.reopened());
    let pool = Pool::open(old.clone()).unwrap();
    assert!(pool.replacing().is_none());
    // What the copy lacks.
    pool.volume(spec(2, 1).id).unwrap().write(Lba(1), EPOCH, &sealed([4321])).unwrap();
    pool.flush().unwrap();
    drop(pool);
    let (old, new) = (old.reopened(), new.reopened());
    assert!(matches!(Pool::open(new.clone()).unwrap_err(), PoolError::IncompleteCopy { .. }));
    let pool = Pool::open_among(old.clone(), &among(&new), OpenOptions::default()).unwrap();
    assert!(pool.replacing().is_none(), "the copy is not taken for whole again");
    // What was left there is no reason to refuse the device.
    pool.begin_replacing(new.clone(), false).unwrap();
    copy_all(&pool);
    pool.finish_replacing().unwrap();
    drop(pool);
    let pool = Pool::open(new.reopened()).unwrap();
    assert_eq!(read(&pool.volume(spec(2, 1).id).unwrap(), 0, 2).unwrap(), [Some([0; 8]), Some([4321; 8])]);
}

#[test]
fn a_move_that_is_cancelled_leaves_the_pool_and_a_copy_that_never_opens() {
    let (old, pool) = filled();
    let new = new_device(&old);
    pool.begin_replacing(new.clone(), true).unwrap();
    for _ in 0..9 {
        pool.copy_step().unwrap();
    }
    pool.cancel_replacing().unwrap();
    assert!(pool.replacing().is_none());
    assert!(matches!(pool.copy_step(), Err(PoolError::NotReplacing(_))));
    assert!(matches!(pool.finish_replacing(), Err(PoolError::NotReplacing(_))));
    assert!(matches!(pool.cancel_replacing(), Err(PoolError::NotReplacing(_))));
    let written = new.writes();
    verify_filled(&pool);
    assert_eq!(new.writes(), written);
    drop(pool);
    let (old, new) = (old.reopened(), new.reopened());
    assert!(matches!(Pool::open(new.clone()).unwrap_err(), PoolError::IncompleteCopy { .. }));
    let pool = Pool::open_among(old, &among(&new), OpenOptions::default()).unwrap();
    assert!(pool.replacing().is_none());
    verify_filled(&pool);
}

#[test]
fn a_device_that_is_too_short_or_holds_something_is_refused_and_left_alone() {
    let (_old, pool) = filled();
    let short = SimulatedDevice::new(ByteLen(DEVICE.0 - 4096));
    let refused = pool.begin_replacing(short.clone(), true).unwrap_err();
    assert!(matches!(refused, PoolError::ReplacementTooSmall { .. }), "{refused}");
    let (other, of_other) = small_pool();
    drop(of_other);
    let other = other.reopened();
    let refused = pool.begin_replacing(other.clone(), false).unwrap_err();
    assert!(matches!(refused, PoolError::ReplacementHoldsPool { .. }), "{refused}");
    let noise = SimulatedDevice::filled_with_noise(DEVICE, 1);
    let refused = pool.begin_replacing(noise.clone(), false).unwrap_err();
    assert!(matches!(refused, PoolError::ReplacementHoldsData { .. }), "{refused}");
    assert_eq!((short.writes(), other.writes(), noise.writes()), (0, 0, 0));
    assert!(pool.replacing().is_none());

    pool.begin_replacing(other, true).unwrap();
    let refused = pool.begin_replacing(SimulatedDevice::new(DEVICE), false).unwrap_err();
    assert!(matches!(refused, PoolError::AlreadyReplacing(_)), "{refused}");
    assert!(matches!(pool.grow(), Err(PoolError::AlreadyReplacing(_))));
    assert!(matches!(pool.finish_replacing(), Err(PoolError::NotCopied(_))));
    assert_eq!(pool.finish_replacing().unwrap_err().kind(), PoolErrorKind::Refused);
}

#[test]
fn locked_snapshots_on_the_new_device_are_never_destroyed() {
    let (_old, pool) = filled();
    let (other, of_other) = small_pool();
    of_other.create_volume(spec(2, 16)).unwrap();
    of_other.create_snapshot(spec(2, 1).id, spec(3, 1).id, 1).unwrap();
    of_other.lock_snapshot(spec(3, 1).id, 3600).unwrap();
    drop(of_other);
    let refused = pool.begin_replacing(other.reopened(), true).unwrap_err();
    assert!(matches!(refused, PoolError::HoldsLocked { .. }), "{refused}");
}

/// The new device fails at any of its writes or flushes: clients notice nothing, and the copy is never taken for whole.
#[test]
fn a_new_device_that_fails_ends_the_move_and_nothing_else() {
    for operation in [Operation::Write, Operation::Flush, Operation::Reserve] {
        let mut failures = 0;
        for after in (0..).step_by(3) {
            let (old, pool) = filled();
            let new = SimulatedDevice::new(DEVICE);
            let fault = Fault { operation, after, errno: Errno::EIO, lasting: true };
            new.inject(fault);
            let moved = pool.begin_replacing(new.clone(), false).and_then(|()| {
                let volume = pool.volume(spec(2, 1).id)?;
                let mut nth = 0;
                while pool.copy_step()?.is_some() {
                    nth += 1;
                    volume.write(Lba(150), EPOCH, &sealed([nth]))?;
                    volume.flush()?;
                }
                pool.finish_replacing()
            });
            if moved.is_ok() {
                break;
            }
            failures += 1;
            if pool.info().failed {
                // Nobody knows what the new device says of itself, nor can it be made to say nothing: a person has to.
                drop(pool);
                let old = old.power_cut_leaving(Survivors::Nothing);
                assert!(
                    matches!(Pool::open(old.clone()).unwrap_err(), PoolError::HandedOver { .. }),
                    "{moved:?}"
                );
                assert!(Pool::keep_on(&*old).unwrap());
                let pool = Pool::open(old).unwrap();
                let found = read(&pool.volume(spec(2, 1).id).unwrap(), 0, 12).unwrap();
                assert!((0..12).map(|sector| Some([sector; 8])).eq(found));
                continue;
            }
            // What is acknowledged now is not in the copy.
            let volume = pool.volume(spec(2, 1).id).unwrap();
            volume.write(Lba(159), EPOCH, &sealed([99])).unwrap();
            volume.flush().unwrap();
            new.clear_faults();
            let (old, new) =
                (old.power_cut_leaving(Survivors::Nothing), new.power_cut_leaving(Survivors::All));
            let pool = Pool::open_among(old, &among(&new), OpenOptions::default()).unwrap();
            assert!(pool.replacing().is_none(), "{operation:?} after {after}");
            let found = read(&pool.volume(spec(2, 1).id).unwrap(), 159, 1).unwrap();
            assert_eq!(found, [Some([99; 8])]);
            verify_metadata(&pool).unwrap();
        }
        println!("{operation:?}: {failures} failures");
        assert!(failures > 2);
    }
}

#[test]
fn a_sector_that_the_old_device_does_not_read_is_an_error_on_the_new_one_and_nothing_else_is() {
    let (old, pool) = filled();
    // Of the first extent that was taken: the snapshot shows it.
    let new = new_device(&old);
    let data = ByteOffset((2 << 20) + LOG + 3 * EXTENT);
    let lost = data.0 / 4096 + 5;
    old.make_unreadable(lost);
    pool.begin_replacing(new.clone(), true).unwrap();
    copy_all(&pool);
    assert_eq!(pool.replacing().unwrap().unreadable, 1);
    assert_eq!(pool.finish_replacing().unwrap().unreadable, 1);
    drop(pool);
    let pool = Pool::open(new.reopened()).unwrap();
    let mut scrub = Scrub::starting_at(Arc::clone(&pool), 0);
    let steps = std::iter::from_fn(|| scrub.step().unwrap());
    let damaged: Vec<_> = steps.flat_map(|step| step.damaged).map(|damaged| damaged.at).collect();
    assert_eq!(damaged, [ByteOffset(lost * 4096)]);
    verify_metadata(&pool).unwrap();
}

#[test]
fn a_table_that_the_old_device_does_not_read_ends_the_move_and_one_never_written_does_not() {
    const VOLUMES: u64 = (1 << 20) / 4096;
    const EXTENTS: u64 = ((2 << 20) + LOG) / 4096;
    const DIGESTS: u64 = EXTENTS + EXTENT / 4096;
    let (old, pool) = filled();
    // Round the log, so that tables are written.
    (1..60).for_each(|fence| pool.raise_fence(spec(2, 1).id, Fence(fence)).unwrap());
    for written in [VOLUMES, EXTENTS, DIGESTS] {
        old.make_unreadable(written);
        pool.begin_replacing(new_device(&old), true).unwrap();
        let failed = loop {
            match pool.copy_step() {
                Ok(step) => assert!(step.is_some(), "sector {written}"),
                Err(error) => break error,
            }
        };
        assert!(matches!(failed, PoolError::Device(_)), "{failed}");
        pool.cancel_replacing().unwrap();
        old.make_readable(written);
    }
    [VOLUMES + 200, EXTENTS + 9, DIGESTS + 15].into_iter().for_each(|never| old.make_unreadable(never));
    let new = new_device(&old);
    pool.begin_replacing(new.clone(), true).unwrap();
    copy_all(&pool);
    assert_eq!(pool.finish_replacing().unwrap().unreadable, 0);
    drop(pool);
    verify_filled(&Pool::open(new.reopened()).unwrap());
}

/// Which device a pool is on is asked of a person only where nobody can know: between the old device's last word and the new
/// one's first, with the new one missing.
#[test]
fn a_device_that_was_handing_over_opens_with_the_other_or_by_a_persons_word() {
    let (old, pool) = small_pool();
    drop(pool);
    let old = old.reopened();
    let hooked: Arc<Mutex<Option<Arc<SimulatedDevice>>>> = Arc::default();
    let on_step: StepHook = {
        let hooked = Arc::clone(&hooked);
        Arc::new(move |step| {
            let device = hooked.lock().unwrap();
            if let Some(device) = device.as_ref().filter(|_| step == CrashStep::SuccessorWrite) {
                device.cut_power_at(device.operations());
            }
        })
    };
    let options = OpenOptions { on_step: Some(on_step), ..OpenOptions::default() };
    let pool = Pool::open_with(old.clone(), options).unwrap();
    let new = new_device(&old);
    *hooked.lock().unwrap() = Some(new.clone());
    pool.create_volume(spec(2, 160)).unwrap().write(Lba(3), EPOCH, &sealed([33])).unwrap();
    pool.flush().unwrap();
    pool.begin_replacing(new.clone(), true).unwrap();
    copy_all(&pool);
    pool.finish_replacing().unwrap_err();
    drop(pool);
    for survivors in [Survivors::Nothing, Survivors::All] {
        let cut = || (old.power_cut_leaving(survivors), new.power_cut_leaving(survivors));
        let holds = |pool: &Pool| {
            let found = read(&pool.volume(spec(2, 1).id).unwrap(), 3, 1).unwrap();
            assert_eq!(found, [Some([33; 8])]);
        };
        let (old, new) = cut();
        let refused = Pool::open(old.clone()).unwrap_err();
        assert!(matches!(refused, PoolError::HandedOver { .. }), "{refused}");
        assert!(refused.to_string().contains(NEW), "it names the other one: {refused}");
        let pool = Pool::open_among(old.clone(), &among(&new), OpenOptions::default()).unwrap();
        holds(&pool);
        match survivors {
            Survivors::All => {
                assert!(pool.replacing().is_none(), "the new one was the pool");
                drop(pool);
                assert!(matches!(Pool::open(old.reopened()).unwrap_err(), PoolError::MovedAway { .. }));
                holds(&Pool::open(new.reopened()).unwrap());
            }
            _ => {
                assert!(pool.replacing().is_some(), "the old one was");
                drop(pool);
                // From then on it is known again.
                holds(&Pool::open(old.reopened()).unwrap());
            }
        }
        let (old, _) = cut();
        assert!(Pool::keep_on(&*old).unwrap());
        assert!(!Pool::keep_on(&*old).unwrap(), "once");
        holds(&Pool::open(old).unwrap());
    }
}

#[test]
fn a_pool_that_was_moved_twice_is_found_from_its_first_device() {
    let (first, pool) = filled();
    let (second, third) = (new_device(&first), new_device(&first));
    for device in [&second, &third] {
        pool.begin_replacing(device.clone(), true).unwrap();
        copy_all(&pool);
        pool.finish_replacing().unwrap();
    }
    drop(pool);
    let (first, second, third) = (first.reopened(), second.reopened(), third.reopened());
    let others: [Arc<dyn Device>; 2] = [second, third];
    let pool = Pool::open_among(first, &others, OpenOptions::default()).unwrap();
    verify_filled(&pool);
}

/// Counts at which step each cut hit.
#[derive(Clone, Default)]
struct Cuts {
    last: Arc<AtomicU8>,
    by_step: Arc<Mutex<BTreeMap<u8, u64>>>,
    ended: Arc<AtomicU64>,
    /// The step at which the order is broken: the new device's next flush does nothing.
    broken: Option<CrashStep>,
}

impl Cuts {
    fn options(&self, new: &Arc<SimulatedDevice>) -> OpenOptions {
        let (last, broken, new) = (Arc::clone(&self.last), self.broken, new.clone());
        let on_step: StepHook = Arc::new(move |step: CrashStep| {
            last.store(step.number(), Ordering::Relaxed);
            if Some(step) == broken {
                new.miss_flushes(1);
            }
        });
        OpenOptions { on_step: Some(on_step), record_cache: ByteLen(8192), ..OpenOptions::default() }
    }

    fn count(&self) {
        *self.by_step.lock().unwrap().entry(self.last.load(Ordering::Relaxed)).or_default() += 1;
    }
}

/// Copies and works in turns, finishes, and works on; an error is one that ends the pool.
fn move_and_work(pool: &Pool, workload: &mut Workload) -> Result<(), PoolError> {
    loop {
        let step = pool.copy_step()?;
        for _ in 0..workload.random.below(2) {
            workload.step(pool)?;
        }
        if step.is_none() {
            break;
        }
    }
    pool.finish_replacing()?;
    (0..BEHIND).try_for_each(|_| workload.step(pool))
}

/// A pool that was worked on and is closed, what it holds, and the device that it is to be moved to.
fn prepared(shape: Shape, seed: u64) -> (Arc<SimulatedDevice>, Workload) {
    let device = shape.device();
    let pool = Pool::create(device.clone(), shape.create_options()).unwrap();
    let mut workload = Workload::new(seed, shape);
    (0..BEFORE).for_each(|_| workload.step(&pool).unwrap());
    pool.flush().unwrap();
    workload.model.flushed();
    drop(pool);
    (device, workload)
}

/// Opens what survived, compares, goes on with the move, and loses power again.
fn recover(
    (old, new): (Arc<SimulatedDevice>, Arc<SimulatedDevice>),
    model: Model,
    shape: Shape,
    seed: u64,
    cuts: &Cuts,
) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut model = model;
    let (mut old, mut new) = (old, new);
    new.share_power_with(&old);
    // The power fails again while the pool is opened, or soon after.
    old.cut_power_at(random.below(12));
    if let Ok(pool) = Pool::open_among(old.clone(), &among(&new), cuts.options(&new)) {
        while old.has_power() && pool.copy_step().is_ok_and(|step| step.is_some()) {}
        let _ = pool.finish_replacing();
    } else if old.has_power() {
        return Err("opening failed although there was power".into());
    }
    cuts.count();
    (old, new) = (old.power_cut(random.below(u64::MAX)), new.power_cut(random.below(u64::MAX)));
    for round in 0..2 {
        new.share_power_with(&old);
        let pool = Pool::open_among(old.clone(), &among(&new), cuts.options(&new))
            .map_err(|error| format!("opening, round {round}: {error}"))?;
        model.verify_after_cut(&pool)?;
        verify_metadata(&pool)?;
        let mut workload = Workload::resume(model, random.below(u64::MAX), 1 << 40 | round << 32, shape);
        let going_on = |error: PoolError| format!("going on, round {round}: {error}");
        if pool.replacing().is_none() && pool.info().device.path != NEW {
            pool.begin_replacing(new.clone(), true).map_err(going_on)?;
        }
        for _ in 0..6 {
            workload.step(&pool).map_err(going_on)?;
        }
        if pool.replacing().is_some() {
            if random.below(8) == 0 {
                pool.cancel_replacing().map_err(going_on)?;
            } else {
                move_and_work(&pool, &mut workload).map_err(going_on)?;
                cuts.ended.fetch_add(1, Ordering::Relaxed);
            }
        }
        verify_metadata(&pool)?;
        model = workload.model;
        drop(pool);
        // Once as a killed process, with everything still in the devices' caches, then by a cut.
        (old, new) = if round == 0 {
            (old.reopened(), new.reopened())
        } else {
            (old.power_cut(random.below(u64::MAX)), new.power_cut(random.below(u64::MAX)))
        };
    }
    let pool = Pool::open_among(old, &among(&new), OpenOptions::default())
        .map_err(|error| format!("opening at last: {error}"))?;
    model.verify_after_cut(&pool)?;
    verify_metadata(&pool)
}

/// Cuts a move at each of its device operations in turn; how many those were.
fn cut_everywhere(shape: Shape, seed: u64, cuts: &Cuts) -> Result<u64, String> {
    let (prepared, workload) = prepared(shape, seed);
    for operation in 0.. {
        let (old, mut workload) = (prepared.durable_copy(), workload.clone());
        let new = new_device(&old);
        let pool = Pool::open_with(old.clone(), cuts.options(&new)).unwrap();
        old.cut_power_at(old.operations() + operation);
        let done = pool.begin_replacing(new.clone(), true).and_then(|()| move_and_work(&pool, &mut workload));
        drop(pool);
        if old.has_power() {
            done.map_err(|error| format!("workload {seed}: {error}"))?;
            return Ok(operation);
        }
        let step = cuts.last.load(Ordering::Relaxed);
        let random = (0..RANDOM_SURVIVORS).map(|nth| Survivors::Random(seed << 40 | operation << 8 | nth));
        for (nth, survivors) in (0..).zip([Survivors::All, Survivors::Nothing].into_iter().chain(random)) {
            cuts.last.store(step, Ordering::Relaxed);
            cuts.count();
            let other = match survivors {
                Survivors::Random(seed) => Survivors::Random(!seed),
                same => same,
            };
            let devices = (old.power_cut_leaving(survivors), new.power_cut_leaving(other));
            let recover_seed = seed << 40 | operation << 8 | nth;
            recover(devices, workload.model.clone(), shape, recover_seed, cuts).map_err(|wrong| {
                format!("workload {seed}, cut at operation {operation}, step {step}, {survivors:?}: {wrong}")
            })?;
        }
    }
    unreachable!("the move ends")
}

#[test]
fn nothing_flushed_is_lost_wherever_power_is_cut_in_a_move() {
    let cuts = Cuts::default();
    for (seed, shape) in [(11, Shape::SMALL), (12, Shape::USED_BEFORE)] {
        let operations = cut_everywhere(shape, seed, &cuts).unwrap();
        println!("workload {seed}, {shape:?}: cut at each of {operations} device operations");
    }
    let by_step = cuts.by_step.lock().unwrap();
    let missed: Vec<_> = CrashStep::REPLACING
        .iter()
        // It is only the word for the change of a superblock that follows.
        .filter(|step| **step != CrashStep::HandOver && !by_step.contains_key(&step.number()))
        .collect();
    for step in CrashStep::REPLACING {
        let count = by_step.get(&step.number()).copied().unwrap_or(0);
        println!("step {:2} {step:?}: {count} cuts", step.number());
    }
    assert!(missed.is_empty(), "no cut at {missed:?}");
    let total: u64 = by_step.values().sum();
    let ended = cuts.ended.load(Ordering::Relaxed);
    println!("{total} cuts; {ended} interrupted moves came to their end");
    assert!(total > 600 && ended > 200);
}

/// The order is checked by breaking it where something depends on it. Tables are flushed on both devices before the old one's log is
/// given up, the copy before it is said to be there, and that it is the pool before the old device says that it is not.
#[test]
fn an_order_that_is_broken_in_a_move_is_found_out() {
    for step in [CrashStep::TableFlush, CrashStep::CopyFlush, CrashStep::SuccessorFlush] {
        let cuts = Cuts { broken: Some(step), ..Cuts::default() };
        let found = (20..26).find_map(|seed| cut_everywhere(Shape::SMALL, seed, &cuts).err());
        let found =
            found.unwrap_or_else(|| panic!("nobody finds that {step:?} does nothing on the new device"));
        println!("step {:2} {step:?}: {}", step.number(), found.lines().next().unwrap_or_default());
    }
}

#[test]
fn many_writers_and_a_move_at_once_lose_nothing() {
    const WRITERS: u64 = 4;
    const SECTORS: u64 = 64;
    let len = ByteLen(DEVICE.0 + 64 * EXTENT);
    let old = SimulatedDevice::new(len);
    let pool = Pool::create(old.clone(), CreateOptions { ..create_options() }).unwrap();
    let volume = pool.create_volume(spec(2, WRITERS * SECTORS)).unwrap();
    volume.write(Lba(0), EPOCH, &sealed(0..WRITERS * SECTORS)).unwrap();
    volume.flush().unwrap();
    let devices: Vec<_> = (0..6).map(|_| SimulatedDevice::new(len)).collect();
    let rounds = AtomicU64::new(0);
    let wrote: Vec<BTreeMap<u64, u64>> = std::thread::scope(|scope| {
        let (volume, rounds) = (&volume, &rounds);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn(move || {
                    let mut random = Random::new(writer);
                    let mut wrote = BTreeMap::new();
                    let mut tag = (writer + 1) << 32;
                    while rounds.load(Ordering::Acquire) < 6 {
                        let first = random.below(SECTORS);
                        let count = (1 + random.below(20)).min(SECTORS - first);
                        let at = writer * SECTORS + first;
                        volume.write(Lba(at), EPOCH, &sealed(tag..tag + count)).unwrap();
                        wrote.extend((at..at + count).zip(tag..));
                        tag += count;
                        if random.below(5) == 0 {
                            volume.flush().unwrap();
                        }
                    }
                    wrote
                })
            })
            .collect();
        for device in &devices {
            pool.begin_replacing(device.clone(), false).unwrap();
            copy_all(&pool);
            pool.finish_replacing().unwrap();
            rounds.fetch_add(1, Ordering::Release);
        }
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    volume.flush().unwrap();
    verify_metadata(&pool).unwrap();
    drop((volume, pool));
    let last = devices.last().unwrap().power_cut_leaving(Survivors::Nothing);
    let pool = Pool::open(last).unwrap();
    let found = read(&pool.volume(spec(2, 1).id).unwrap(), 0, WRITERS * SECTORS).unwrap();
    for (at, tag) in wrote.into_iter().flatten() {
        assert_eq!(found[usize::try_from(at).unwrap()], Some([tag; 8]), "sector {at}");
    }
}
