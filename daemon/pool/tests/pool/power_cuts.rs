//! Power cut at every device operation of a random workload, and again while the pool recovers.
//!
//! After every cut: what was flushed is there, what was not is old or new, what was never flushed as present is a hole
//! or new, the metadata is sound and no extent is leaked or used twice. Then the pool goes on, and is cut again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use device::SimulatedDevice;
use pool::{CrashStep, OpenOptions, Pool, PoolError, PoolVolume, StepHook};
use units::{ByteLen, Lba, SectorCount};

use crate::model::{EPOCH, Model, read, sealed, spec, verify_metadata};
use crate::workload::{DEVICE, EXTENT, Random, Shape, Workload, create_options, small_pool};

const OPERATIONS: usize = 80;
const WORKLOADS: u64 = 10;

/// Counts at which step each cut hit.
#[derive(Clone, Default)]
struct Cuts {
    last: Arc<AtomicU8>,
    by_step: Arc<Mutex<BTreeMap<u8, u64>>>,
}

impl Cuts {
    fn hook(&self) -> StepHook {
        let last = Arc::clone(&self.last);
        Arc::new(move |step: CrashStep| last.store(step.number(), Ordering::Relaxed))
    }

    fn options(&self) -> OpenOptions {
        // Two pages: records come from the device as often as from the cache.
        OpenOptions { on_step: Some(self.hook()), record_cache: ByteLen(8192) }
    }

    fn count(&self) {
        *self.by_step.lock().unwrap().entry(self.last.load(Ordering::Relaxed)).or_default() += 1;
    }
}

/// Runs a workload until it is through or the power is cut; what the pool may then hold, `None` where there is no
/// pool yet.
fn run(device: &Arc<SimulatedDevice>, shape: Shape, seed: u64, cuts: &Cuts) -> (Option<Model>, bool) {
    let Ok(pool) = Pool::create_with(device.clone(), shape.create_options(), cuts.options()) else {
        return (None, true);
    };
    let mut workload = Workload::new(seed, shape);
    for _ in 0..OPERATIONS {
        if workload.step(&pool).is_err() {
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
    if Pool::open_with(device.clone(), cuts.options()).is_err() {
        if device.has_power() {
            return Err("opening failed although there was power".into());
        }
        cuts.count();
    }
    device = device.power_cut(random.below(u64::MAX));
    for round in 0..2 {
        let pool = Pool::open(device.clone()).map_err(|error| format!("opening, round {round}: {error}"))?;
        model.verify_after_cut(&pool)?;
        verify_metadata(&pool)?;
        let mut workload = Workload::resume(model, random.below(u64::MAX), 1 << 40 | round << 32, shape);
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
fn cut_everywhere(shape: Shape, seed: u64, cuts: &Cuts) -> Result<u64, String> {
    for operation in 0.. {
        let device = SimulatedDevice::new(shape.device_len());
        device.cut_power_at(operation);
        let (model, cut) = run(&device, shape, seed, cuts);
        if !cut {
            return Ok(operation);
        }
        cuts.count();
        let cut_seed = seed << 32 | operation;
        recover(&device.power_cut(cut_seed), model, shape, cut_seed, cuts)
            .map_err(|wrong| format!("workload {seed}, cut at operation {operation}: {wrong}"))?;
    }
    unreachable!("the workload ends")
}

fn soak_time() -> Duration {
    let seconds = std::env::var("NIGHTLATCH_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

#[test]
fn nothing_flushed_is_lost_and_nothing_stale_shown_wherever_power_is_cut() {
    let cuts = Cuts::default();
    let started = Instant::now();
    let mut seed = 0;
    while seed < WORKLOADS || started.elapsed() < soak_time() {
        let shape = if seed % 2 == 0 { Shape::SMALL } else { Shape::LARGE };
        let operations = cut_everywhere(shape, seed, &cuts).unwrap();
        println!("workload {seed}, {shape:?}: cut at each of {operations} device operations");
        seed += 1;
    }
    let by_step = cuts.by_step.lock().unwrap();
    for step in CrashStep::ALL {
        let count = by_step.get(&step.number()).copied().unwrap_or(0);
        println!("step {:2} {step:?}: {count} cuts", step.number());
    }
    let missed: Vec<_> = CrashStep::ALL.iter().filter(|step| !by_step.contains_key(&step.number())).collect();
    assert!(missed.is_empty(), "no cut at {missed:?}: the workload no longer reaches these steps");
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

/// Steps in the order taken, each with the device flushes done before it.
type Trace = Arc<Mutex<Vec<(CrashStep, u64)>>>;

/// The flushes of the crash order stand where `CrashStep` says, also where no cut of this simulation could tell: the
/// superblock is shorter than what its device writes whole.
#[test]
fn between_steps_that_must_not_be_swapped_there_is_a_flush() {
    let device = SimulatedDevice::new(Shape::LARGE.device_len());
    let trace = Trace::default();
    let on_step: StepHook = {
        let (device, trace) = (Arc::clone(&device), Arc::clone(&trace));
        Arc::new(move |step| trace.lock().unwrap().push((step, device.flushes())))
    };
    let options = OpenOptions { on_step: Some(on_step), ..OpenOptions::default() };
    let pool = Pool::create_with(device, Shape::LARGE.create_options(), options).unwrap();
    let mut workload = Workload::new(3, Shape::LARGE);
    for _ in 0..600 {
        workload.step(&pool).unwrap();
    }
    let trace = trace.lock().unwrap();
    // A step, the last step before it that must be durable, and how often both were seen.
    let mut pairs = [
        (CrashStep::LogWrite, CrashStep::DataWrite, 0),
        (CrashStep::TableWrite, CrashStep::LogWrite, 0),
        (CrashStep::FirstSuperblockWrite, CrashStep::TableWrite, 0),
        (CrashStep::SecondSuperblockWrite, CrashStep::FirstSuperblockWrite, 0),
        (CrashStep::LogWrite, CrashStep::SecondSuperblockWrite, 0),
        (CrashStep::Discard, CrashStep::LogWrite, 0),
        (CrashStep::PlaceWrite, CrashStep::LogWrite, 0),
        (CrashStep::FirstSuperblockWrite, CrashStep::PlaceWrite, 0),
        (CrashStep::FirstSuperblockWrite, CrashStep::CreateErase, 0),
    ];
    for (later, earlier, seen) in &mut pairs {
        for (index, (_, flushes)) in trace.iter().enumerate().filter(|(_, (step, _))| step == later) {
            let before = trace[..index].iter().rfind(|(step, _)| step == earlier);
            if let Some((_, flushes_before)) = before {
                assert!(flushes_before < flushes, "no flush between {earlier:?} and {later:?}");
                *seen += 1;
            }
        }
        println!("{earlier:?} before {later:?}: {seen} times");
        assert!(*seen > 0);
    }
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
        volume.write(Lba(extent * 16), EPOCH, &sealed([extent + 1])).unwrap();
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
    volume.write(Lba(20), EPOCH, &sealed([77, 78])).unwrap();
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
#[test]
fn a_killed_process_and_then_a_cut_lose_nothing_flushed() {
    for seed in 0..300 {
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
        let pool = Pool::open(device.clone()).unwrap();
        workload.model.verify_after_cut(&pool).unwrap();
        for _ in 0..10 {
            workload.step(&pool).unwrap();
        }
        let pool = Pool::open(device.power_cut(seed)).unwrap();
        workload.model.verify_after_cut(&pool).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        verify_metadata(&pool).unwrap();
    }
}
