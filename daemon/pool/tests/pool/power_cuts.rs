//! Power cut at every device operation of a random workload, with what was not flushed kept, dropped, torn and in any order,
//! and again while the pool recovers.
//!
//! After every cut: what was flushed is there, what was not is old or new, what was never flushed as present is a hole
//! or new, the metadata is sound and no extent is leaked or used twice. Then the pool goes on, and is cut again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use device::{SimulatedDevice, Survivors};
use pool::{CrashStep, OpenOptions, Pool, PoolError, PoolVolume, StepHook};
use units::{ByteLen, Fence, Lba, SectorCount};

use crate::model::{EPOCH, Model, read, sealed, spec, verify_metadata};
use crate::workload::{DEVICE, EXTENT, EXTENTS, Random, Shape, Workload, create_options, small_pool};

const OPERATIONS: usize = 55;
const WORKLOADS: u64 = 3;
/// Ways in which each cut is continued that leave some of what was not flushed, beside the two that leave all and nothing.
const RANDOM_SURVIVORS: u64 = 5;
/// Cuts, each with its survivors, that a run must have had.
const CUTS_MIN: u64 = 20_000;

/// Counts at which step each cut hit.
#[derive(Clone, Default)]
struct Cuts {
    last: Arc<AtomicU8>,
    by_step: Arc<Mutex<BTreeMap<u8, u64>>>,
    /// The step at which the order is broken: what comes there misses the flush behind it.
    broken: Option<CrashStep>,
}

/// How many flushes what comes at a step misses, so that none that it needs covers it: between a sector's placing and the
/// flush of the tables there are those of the plans.
fn flushes_missed(step: CrashStep) -> u8 {
    if step == CrashStep::PlaceWrite { 3 } else { 1 }
}

impl Cuts {
    fn hook(&self, device: &Arc<SimulatedDevice>) -> StepHook {
        let (last, device, broken) = (Arc::clone(&self.last), Arc::clone(device), self.broken);
        Arc::new(move |step: CrashStep| {
            last.store(step.number(), Ordering::Relaxed);
            if Some(step) == broken {
                device.miss_flushes(flushes_missed(step));
            }
        })
    }

    fn options(&self, device: &Arc<SimulatedDevice>) -> OpenOptions {
        // Two pages: records come from the device as often as from the cache.
        OpenOptions {
            on_step: Some(self.hook(device)),
            record_cache: ByteLen(8192),
            ..OpenOptions::default()
        }
    }

    fn count(&self) {
        *self.by_step.lock().unwrap().entry(self.last.load(Ordering::Relaxed)).or_default() += 1;
    }
}

/// What a workload does, how often.
type Does = (fn(&mut Workload, &Pool) -> Result<(), PoolError>, usize);

const EVERYTHING: Does = (Workload::step, OPERATIONS);
/// An epoch each few writes, and what it leaves folded.
const FOLDING: Does = (Workload::step_folding, 12);

/// Runs a workload until it is through or the power is cut; what the pool may then hold, `None` where there is no
/// pool yet.
fn run(
    device: &Arc<SimulatedDevice>,
    (shape, does): (Shape, Does),
    seed: u64,
    cuts: &Cuts,
) -> (Option<Model>, bool) {
    let Ok(pool) = Pool::create_with(device.clone(), shape.create_options(), cuts.options(device)) else {
        return (None, true);
    };
    let mut workload = Workload::new(seed, shape).growing(device);
    for _ in 0..does.1 {
        if (does.0)(&mut workload, &pool).is_err() {
            return (Some(workload.model), true);
        }
        // A discard does not tell anyone that it failed.
        if !device.has_power() {
            break;
        }
    }
    let cut = !device.has_power();
    (Some(workload.model), cut)
}

/// Opens what survived, compares, goes on for a while, and cuts again.
fn recover(
    device: &Arc<SimulatedDevice>,
    model: Option<Model>,
    shape: Shape,
    seed: u64,
    cuts: &Cuts,
) -> Result<(), String> {
    let Some(mut model) = model else { return recover_creation(device, shape) };
    let mut random = Random::new(seed);
    // The power fails again while the pool is opened: at the flush, at the repair, or after both.
    device.cut_power_at(random.below(4));
    let mut device = Arc::clone(device);
    if Pool::open_with(device.clone(), cuts.options(&device)).is_err() {
        if device.has_power() {
            return Err("opening failed although there was power".into());
        }
        cuts.count();
    }
    device = device.power_cut(random.below(u64::MAX));
    for round in 0..2 {
        let pool = Pool::open_with(device.clone(), cuts.options(&device))
            .map_err(|error| format!("opening, round {round}: {error}"))?;
        model.verify_after_cut(&pool)?;
        verify_metadata(&pool)?;
        let resumed = Workload::resume(model, random.below(u64::MAX), 1 << 40 | round << 32, shape);
        let mut workload = resumed.growing(&device);
        for _ in 0..15 {
            workload.step(&pool).map_err(|error| format!("going on: {error}"))?;
        }
        model = workload.model;
        // Once as a killed process, with everything still in the device's cache, then by a cut.
        device = if round == 0 { device.reopened() } else { device.power_cut(random.below(u64::MAX)) };
    }
    let pool = Pool::open(device).map_err(|error| format!("opening at last: {error}"))?;
    model.verify_after_cut(&pool)?;
    verify_metadata(&pool)
}

/// A cut while the pool was being made: there is none, or a part of one that says so, or an empty one.
fn recover_creation(device: &Arc<SimulatedDevice>, shape: Shape) -> Result<(), String> {
    match Pool::open(device.clone()) {
        Ok(pool) if pool.volumes().is_empty() => verify_metadata(&pool),
        Ok(_) => Err("a new pool has volumes".into()),
        Err(PoolError::NoPool { .. } | PoolError::SuperblocksDamaged { .. }) => {
            let options = pool::CreateOptions { force: true, ..shape.create_options() };
            Pool::create(device.clone(), options).map(drop).map_err(|error| error.to_string())
        }
        Err(error) => Err(format!("opening after a cut in creation: {error}")),
    }
}

/// Cuts a workload at each of its device operations in turn; how many those were.
fn cut_everywhere(shape: Shape, does: Does, seed: u64, cuts: &Cuts) -> Result<u64, String> {
    for operation in 0.. {
        let device = shape.device();
        device.cut_power_at(operation);
        let (model, cut) = run(&device, (shape, does), seed, cuts);
        if !cut {
            return Ok(operation);
        }
        let step = cuts.last.load(Ordering::Relaxed);
        let random = (0..RANDOM_SURVIVORS).map(|nth| Survivors::Random(seed << 40 | operation << 8 | nth));
        for (nth, survivors) in (0..).zip([Survivors::All, Survivors::Nothing].into_iter().chain(random)) {
            cuts.last.store(step, Ordering::Relaxed);
            cuts.count();
            let recover_seed = seed << 40 | operation << 8 | nth;
            recover(&device.power_cut_leaving(survivors), model.clone(), shape, recover_seed, cuts).map_err(
                |wrong| format!("workload {seed}, cut at operation {operation}, {survivors:?}: {wrong}"),
            )?;
        }
    }
    unreachable!("the workload ends")
}

pub(crate) fn soak_time() -> Duration {
    let seconds = std::env::var("NIGHTLATCH_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

#[test]
fn nothing_flushed_is_lost_and_nothing_stale_shown_wherever_power_is_cut() {
    let cuts = Cuts::default();
    let started = Instant::now();
    let mut seed = 0;
    while seed < WORKLOADS || started.elapsed() < soak_time() {
        let shape = match seed % 3 {
            0 => Shape::SMALL,
            1 => Shape::LARGE,
            _ => Shape::USED_BEFORE,
        };
        for (does, what) in [(EVERYTHING, "everything"), (FOLDING, "folding")] {
            let operations = cut_everywhere(shape, does, seed, &cuts).unwrap();
            println!("workload {seed}, {what}, {shape:?}: cut at each of {operations} device operations");
        }
        seed += 1;
    }
    let by_step = cuts.by_step.lock().unwrap();
    for step in CrashStep::ALL {
        let count = by_step.get(&step.number()).copied().unwrap_or(0);
        println!("step {:2} {step:?}: {count} cuts", step.number());
    }
    let missed: Vec<_> = CrashStep::ALL.iter().filter(|step| !by_step.contains_key(&step.number())).collect();
    assert!(missed.is_empty(), "no cut at {missed:?}: the workload no longer reaches these steps");
    let total: u64 = by_step.values().sum();
    println!("{total} cuts");
    assert!(total >= CUTS_MIN);
}

/// A page of records that was never written may hold anything. A checkpoint that is cut before such pages reach the device is
/// done again from the log, though the log has more of their records than it could keep beside them.
#[test]
fn a_cut_on_a_device_that_was_used_before_leaves_a_pool_that_opens_and_loses_nothing() {
    /// Sectors whose records are in a page. All but one are written: the log alone would make up a full page.
    const PAGE: u64 = 128;
    for extents in [10, EXTENTS] {
        let sectors = extents * 16;
        let of = spec(1, sectors);
        let holds_all = |pool: &Pool, when: &str| {
            let volume = pool.volume(of.id).unwrap();
            let found = read(&volume, 0, sectors).unwrap_or_else(|error| panic!("{when}: {error}"));
            let expected = (0..sectors).map(|at| (at % PAGE != 0).then_some([at; 8]));
            assert!(expected.eq(found), "{when}");
        };
        let wind = |pool: &Pool, first: u64| {
            (first..first + 40).try_for_each(|fence| pool.raise_fence(of.id, Fence(fence)))
        };
        let full = Shape::USED_BEFORE.device();
        let pool = Pool::create(full.clone(), Shape::USED_BEFORE.create_options()).unwrap();
        let volume = pool.create_volume(of).unwrap();
        for page in (0..sectors).step_by(128) {
            volume.write(Lba(page + 1), EPOCH, sealed(page + 1..sectors.min(page + PAGE))).unwrap();
        }
        volume.flush().unwrap();
        drop((pool, volume));
        for nth in 0.. {
            let device = full.durable_copy();
            let pool = Pool::open(device.clone()).unwrap();
            device.cut_power_at(device.operations() + nth);
            if wind(&pool, 1).is_ok() {
                println!("{extents} extents: cut at each of {nth} device operations");
                break;
            }
            let when = format!("{extents} extents, cut at operation {nth}");
            let device = device.power_cut_leaving(Survivors::Nothing);
            let pool = Pool::open(device.clone()).unwrap_or_else(|error| panic!("{when}: {error}"));
            holds_all(&pool, &when);
            wind(&pool, 100).unwrap();
            drop(pool);
            holds_all(&Pool::open(device.reopened()).unwrap(), &when);
        }
    }
}

/// The crash order is checked by breaking it, step by step: what belongs there misses the flush behind it. A cut finds it, a kill
/// before a cut, or a look at what is not durable where it must be. But for the discard: nothing depends on what it
/// does, and what it must not come before is step 4.
#[test]
fn an_order_that_is_broken_at_any_step_is_found_out() {
    for step in CrashStep::ALL.into_iter().filter(|step| *step != CrashStep::Discard) {
        let broken = Some(step);
        let by_cut = || {
            let cuts = Cuts { broken, ..Cuts::default() };
            let found = |does| (0..4).find_map(|seed| cut_everywhere(Shape::SMALL, does, seed, &cuts).err());
            found(EVERYTHING).or_else(|| found(FOLDING))
        };
        let found = trace(broken).err().or_else(|| open_after_a_kill(broken).err());
        let by_folding = || (step == CrashStep::FoldWrite).then(|| fold_and_cut(broken).err()).flatten();
        let found = found.or_else(|| repair(broken).err()).or_else(by_folding).or_else(by_cut);
        let found = found.unwrap_or_else(|| panic!("nobody finds that {step:?} misses its flush"));
        println!("step {:2} {step:?}: {}", step.number(), found.lines().next().unwrap_or_default());
    }
}

/// The test above must be able to fail: a device that lies about its flushes loses what was flushed, be it volumes or
/// sectors, and the model says so, where opening the pool does not already.
#[test]
fn a_flush_that_does_nothing_is_found_out() {
    for sectors_only in [false, true] {
        let (mut by_opening, mut by_content, mut by_sector) = (0, 0, 0);
        for seed in 0..100 {
            let (device, pool) = small_pool();
            let mut workload = Workload::new(seed, Shape::SMALL);
            workload.step(&pool).unwrap();
            device.make_flush_a_noop();
            for _ in 0..40 {
                let first = workload.model.ids().first().copied();
                match first.filter(|_| sectors_only) {
                    Some(id) => workload.step_on(&pool, id).unwrap(),
                    None => workload.step(&pool).unwrap(),
                }
            }
            match Pool::open(device.power_cut(seed)) {
                Err(_) => by_opening += 1,
                Ok(pool) => match workload.model.verify_after_cut(&pool) {
                    Err(wrong) if wrong.contains("sector") => by_sector += 1,
                    Err(_) => by_content += 1,
                    Ok(()) => {}
                },
            }
        }
        println!(
            "sectors only: {sectors_only}: of 100 losses {by_opening} found by opening, {by_sector} by a sector, \
             {by_content} by a volume"
        );
        assert!(by_opening + by_content + by_sector > 80, "lost writes went unnoticed");
        assert!(!sectors_only || by_sector > 20, "lost sectors went unnoticed");
    }
}

/// Steps in the order taken, each with the device flushes done before it, and what these have left.
type Trace = Arc<Mutex<Vec<(CrashStep, u64, usize)>>>;

/// Whether the flushes of the crash order stand where `CrashStep` says, also where no cut of this simulation could tell: the
/// superblock is shorter than what its device writes whole.
fn trace(broken: Option<CrashStep>) -> Result<(), String> {
    let device = SimulatedDevice::new(Shape::LARGE.device_len());
    let trace = Trace::default();
    let on_step: StepHook = {
        let (device, trace) = (Arc::clone(&device), Arc::clone(&trace));
        Arc::new(move |step| {
            trace.lock().unwrap().push((step, device.flushes(), device.unflushed()));
            if Some(step) == broken {
                device.miss_flushes(flushes_missed(step));
            }
        })
    };
    let options = OpenOptions { on_step: Some(on_step), ..OpenOptions::default() };
    let pool = Pool::create_with(device, Shape::LARGE.create_options(), options).unwrap();
    let mut workload = Workload::new(3, Shape::LARGE);
    for nth in 0..600 {
        let done = if nth % 6 == 0 { workload.step_folding(&pool) } else { workload.step(&pool) };
        done.map_err(|error| error.to_string())?;
    }
    let trace = trace.lock().unwrap();
    // A step, the last step before it that must be durable, and how often both were seen.
    let mut pairs = [
        (CrashStep::LogWrite, CrashStep::DataWrite, 0),
        (CrashStep::LogWrite, CrashStep::FoldWrite, 0),
        (CrashStep::TableWrite, CrashStep::LogWrite, 0),
        (CrashStep::TableWrite, CrashStep::PlanWrite, 0),
        (CrashStep::FirstSuperblockWrite, CrashStep::TableWrite, 0),
        (CrashStep::SecondSuperblockWrite, CrashStep::FirstSuperblockWrite, 0),
        (CrashStep::LogWrite, CrashStep::SecondSuperblockWrite, 0),
        (CrashStep::Discard, CrashStep::LogWrite, 0),
        (CrashStep::PlaceWrite, CrashStep::LogWrite, 0),
        (CrashStep::FirstSuperblockWrite, CrashStep::PlaceWrite, 0),
        (CrashStep::FirstSuperblockWrite, CrashStep::CreateErase, 0),
    ];
    for (later, earlier, seen) in &mut pairs {
        for (index, (_, flushes, _)) in trace.iter().enumerate().filter(|(_, (step, ..))| step == later) {
            let before = trace[..index].iter().rfind(|(step, ..)| step == earlier);
            if let Some((_, flushes_before, _)) = before {
                if flushes_before >= flushes {
                    return Err(format!("no flush between {earlier:?} and {later:?}"));
                }
                *seen += 1;
            }
        }
        if *seen == 0 {
            return Err(format!("{earlier:?} never came before {later:?}"));
        }
    }
    if broken.is_none() {
        pairs
            .iter()
            .for_each(|(later, earlier, seen)| println!("{earlier:?} before {later:?}: {seen} times"));
    }
    // What comes right behind a flush finds nothing that is not durable: nobody else writes here.
    for around in trace.windows(2) {
        let [(flush, ..), (next, _, unflushed)] = around else { continue };
        let behind_flush = matches!(
            flush,
            CrashStep::TableFlush
                | CrashStep::FirstSuperblockFlush
                | CrashStep::SecondSuperblockFlush
                | CrashStep::CreateEraseFlush
        );
        if behind_flush && *unflushed > 0 {
            return Err(format!("{unflushed} writes before {flush:?} are not durable at {next:?}"));
        }
    }
    Ok(())
}

#[test]
fn between_steps_that_must_not_be_swapped_there_is_a_flush() {
    trace(None).unwrap();
}

/// Freed extents whose records fill the log: 506 in each of its 16 blocks.
const LOG_OF_FREES: u64 = 16 * 506;

/// A pool with one volume in `extents` extents.
fn many_extents(extents: u64) -> (Arc<SimulatedDevice>, Arc<Pool>, Arc<PoolVolume>) {
    let device =
        SimulatedDevice::new(ByteLen(DEVICE.0 + (extents + extents / 2048 + extents / 128 + 1) * EXTENT));
    let pool = Pool::create(device.clone(), create_options()).unwrap();
    let volume = pool.create_volume(spec(2, extents * 16)).unwrap();
    for extent in 0..extents {
        volume.write(Lba(extent * 16), EPOCH, sealed([extent + 1])).unwrap();
    }
    (device, pool, volume)
}

/// Every extent holds what was written to it, or nothing; how many hold something.
fn old_or_new(volume: &PoolVolume) -> u64 {
    let mut present = 0;
    for extent in 0..volume.sectors().0.div_ceil(16) {
        let count = (volume.sectors().0 - extent * 16).min(16);
        let found = read(volume, extent * 16, count).unwrap();
        assert!(found[0].is_none_or(|units| units == [extent + 1; 8]), "extent {extent}: {found:?}");
        assert!(found[1..].iter().all(Option::is_none), "extent {extent}: {found:?}");
        present += u64::from(found[0].is_some());
    }
    present
}

#[test]
fn a_commit_longer_than_the_log_is_old_or_new_at_every_batch() {
    const MANY: u64 = 9000;
    let (device, pool, volume) = many_extents(MANY);
    let before = device.operations();
    volume.flush().unwrap();
    let operations = device.operations() - before;
    pool.check().unwrap();
    let mut partly = 0;
    for nth in (0..operations).step_by(7) {
        let (device, _pool, volume) = many_extents(MANY);
        device.cut_power_at(device.operations() + nth);
        volume.flush().unwrap_err();
        let pool = Pool::open(device.power_cut(nth)).unwrap();
        let present = old_or_new(&pool.volume(volume.id()).unwrap());
        verify_metadata(&pool).unwrap();
        partly += u64::from(present > 0 && present < MANY);
    }
    println!("{operations} device operations; {partly} cuts left some batches durable and not others");
    assert!(partly > 0);
}

/// Shrinking whose unmappings take several batches, cut between them so that what is left takes several again; then
/// growing, cut as well: what was cut off never comes back.
#[test]
fn shrinking_cut_in_the_middle_shows_nothing_when_the_volume_grows_again() {
    const MANY: u64 = 2 * LOG_OF_FREES + 500;
    let (device, pool, volume) = many_extents(MANY);
    // Two sectors past the new end in an extent that stays.
    volume.write(Lba(20), EPOCH, sealed([77, 78])).unwrap();
    volume.flush().unwrap();
    let id = volume.id();
    drop((pool, volume));
    let mut unfinished = 0;
    for nth in 0.. {
        let device = device.durable_copy();
        let pool = Pool::open(device.clone()).unwrap();
        device.cut_power_at(device.operations() + nth);
        if pool.resize_volume(id, SectorCount(18)).is_ok() && device.has_power() {
            break;
        }
        let shrunk = device.power_cut(nth);
        if Pool::check_device(&*shrunk).unwrap().unfinished_unmaps <= LOG_OF_FREES || unfinished == 3 {
            continue;
        }
        unfinished += 1;
        for nth in 0.. {
            let device = shrunk.durable_copy();
            let pool = Pool::open(device.clone()).unwrap();
            assert_eq!(pool.volume(id).unwrap().sectors(), SectorCount(18));
            device.cut_power_at(device.operations() + nth);
            let grown = pool.resize_volume(id, SectorCount(MANY * 16)).is_ok() && device.has_power();
            let pool = Pool::open(device.power_cut(nth)).unwrap();
            let volume = pool.volume(id).unwrap();
            let runs = volume.presence(Lba(0), volume.sectors()).unwrap();
            let present: u64 = runs.iter().filter(|(_, present)| *present).map(|(run, _)| run.0).sum();
            assert_eq!(present, 2, "the first sectors of the two extents that stayed");
            verify_metadata(&pool).unwrap();
            assert_eq!(pool.info().allocated, ByteLen(2 * EXTENT));
            if grown {
                break;
            }
        }
    }
    println!("{unfinished} cuts left a shrinking unfinished");
    assert!(unfinished > 0);
}

/// A killed process is no power cut: what it wrote is still in the device's cache when the next one opens the pool,
/// and may be lost after that. Records it logged and did not flush must not be built upon before they are durable.
fn kill_and_cut(seed: u64) -> Result<(), String> {
    let (mut device, pool) = small_pool();
    let mut workload = Workload::new(seed, Shape::SMALL);
    let mut random = Random::new(!seed);
    for _ in 0..30 {
        workload.step(&pool).unwrap();
    }
    device.cut_power_at(device.operations() + random.below(20));
    while device.has_power() && workload.step(&pool).is_ok() {}
    drop(pool);
    device = device.reopened();
    let pool = Pool::open(device.clone()).map_err(|error| error.to_string())?;
    workload.model.verify_after_cut(&pool)?;
    for _ in 0..10 {
        workload.step(&pool).map_err(|error| error.to_string())?;
    }
    let pool = Pool::open(device.power_cut(seed)).map_err(|error| error.to_string())?;
    workload.model.verify_after_cut(&pool)?;
    verify_metadata(&pool)
}

/// A killed process had freed an extent, in a log that was written and not flushed. Its successor gives the extent away, writes
/// there, and power fails: what the extent held is whole, or freed.
fn open_after_a_kill(broken: Option<CrashStep>) -> Result<(), String> {
    let cuts = Cuts { broken, ..Cuts::default() };
    let mut reused = 0;
    for operation in 0..8 {
        for seed in 0..50 {
            let (device, pool) = small_pool();
            let volume = pool.create_volume(spec(1, 16)).unwrap();
            volume.write(Lba(0), EPOCH, sealed([1; 9])).unwrap();
            let other = pool.create_volume(spec(2, 64 * 16)).unwrap();
            // More than goes to the log: to its place. Until the pool is full.
            let write =
                |other: &PoolVolume, extent: u64| other.write(Lba(extent * 16), EPOCH, sealed([2; 9]));
            let full = (0..).find(|extent| write(&other, *extent).is_err()).unwrap();
            pool.flush().unwrap();
            volume.unmap(Lba(0), SectorCount(16)).unwrap();
            device.cut_power_at(device.operations() + operation);
            let _ = pool.flush();
            drop((volume, other, pool));
            let device = device.reopened();
            let pool = Pool::open_with(device.clone(), cuts.options(&device)).unwrap();
            reused += u64::from(write(&pool.volume(spec(2, 1).id).unwrap(), full).is_ok());
            let pool = Pool::open(device.power_cut(seed)).map_err(|error| error.to_string())?;
            let found = read(&pool.volume(spec(1, 1).id).unwrap(), 0, 9)?;
            let whole = found.iter().all(|found| found.is_none_or(|units| units == [1; 8]));
            if !whole {
                return Err(format!("killed at operation {operation}, cut {seed}: found {found:?}"));
            }
        }
    }
    assert!(reused > 0, "no successor was given the extent");
    Ok(())
}

/// What was folded is where it was moved to when the extents that it came from are free, whatever a cut leaves.
fn fold_and_cut(broken: Option<CrashStep>) -> Result<(), String> {
    let cuts = Cuts { broken, ..Cuts::default() };
    let mut moved = 0;
    for nth in 0.. {
        let (device, pool) = small_pool();
        drop(pool);
        let pool = Pool::open_with(device.clone(), cuts.options(&device)).unwrap();
        let volume = pool.create_volume(spec(1, 64)).unwrap();
        let id = |round: u64| spec(10 + u8::try_from(round).unwrap(), 1).id;
        for round in 0..4 {
            // In each extent of the volume a sector of its own.
            (0..4).for_each(|extent| {
                volume.write(Lba(extent * 16 + round), EPOCH, sealed([1 + round * 4 + extent])).unwrap();
            });
            pool.create_snapshot(volume.id(), id(round), 0).unwrap();
        }
        (0..3).for_each(|round| pool.delete_snapshot(id(round)).unwrap());
        device.cut_power_at(device.operations() + nth);
        let folded = pool.fold(SectorCount(u64::MAX));
        let whole = folded.is_ok() && pool.flush().is_ok() && device.has_power();
        moved = folded.map_or(0, |step| step.moved.0);
        // What is in the log and what was to be durable before it survive one without the other in some of them.
        let random = (0..24).map(|seed| Survivors::Random(nth << 8 | seed));
        for survivors in [Survivors::Nothing, Survivors::All].into_iter().chain(random) {
            let pool = Pool::open(device.power_cut_leaving(survivors)).map_err(|error| error.to_string())?;
            for view in [pool.volume(volume.id()).unwrap(), pool.snapshot(id(3)).unwrap()] {
                let found =
                    read(&view, 0, 64).map_err(|error| format!("cut {nth}, {survivors:?}: {error}"))?;
                let expected = |at: u64| (at % 16 < 4).then_some([1 + at % 16 * 4 + at / 16; 8]);
                if !(0..64).map(expected).eq(found.iter().copied()) {
                    return Err(format!("cut {nth}, {survivors:?}: found {found:?}"));
                }
            }
            verify_metadata(&pool)?;
        }
        if whole {
            break;
        }
    }
    assert_eq!(moved, 4 * 3, "nothing was folded");
    Ok(())
}

#[test]
fn what_is_folded_is_there_wherever_power_is_cut() {
    fold_and_cut(None).unwrap();
}

/// A copy of the superblock that was damaged is durable again when the pool is open.
fn repair(broken: Option<CrashStep>) -> Result<(), String> {
    let cuts = Cuts { broken, ..Cuts::default() };
    let (device, pool) = small_pool();
    drop(pool);
    let device = device.durable_copy();
    device.edit(0, |superblock| superblock[60] ^= 1);
    let pool = Pool::open_with(device.clone(), cuts.options(&device)).map_err(|error| error.to_string())?;
    assert!(pool.info().repaired.is_some());
    match device.unflushed() {
        0 => Ok(()),
        unflushed => Err(format!("{unflushed} writes of the repair are not durable when the pool is open")),
    }
}

#[test]
fn what_a_killed_process_freed_is_given_away_only_when_that_is_durable() {
    open_after_a_kill(None).unwrap();
}

#[test]
fn a_repaired_superblock_is_durable() {
    repair(None).unwrap();
}

#[test]
fn a_killed_process_and_then_a_cut_lose_nothing_flushed() {
    for seed in 0..300 {
        kill_and_cut(seed).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}
