//! Power cut at every device operation of a random workload, and again while the pool recovers.
//!
//! After every cut: what was flushed is there, what was not is old or new, what was never flushed as present is a hole
//! or new, the metadata is sound and no extent is leaked or used twice. Then the pool goes on, and is cut again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use device::SimulatedDevice;
use pool::{CrashStep, OpenOptions, Pool, PoolError, StepHook};

use crate::model::{Model, verify_metadata};
use crate::workload::{DEVICE, Random, Workload, create_options, small_pool};

const OPERATIONS: usize = 60;
const WORKLOADS: u64 = 6;

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
        OpenOptions { on_step: Some(self.hook()) }
    }

    fn count(&self) {
        *self.by_step.lock().unwrap().entry(self.last.load(Ordering::Relaxed)).or_default() += 1;
    }
}

/// Runs a workload until it is through or the power is cut; what the pool may then hold, `None` where there is no
/// pool yet.
fn run(device: &Arc<SimulatedDevice>, seed: u64, cuts: &Cuts) -> (Option<Model>, bool) {
    let Ok(pool) = Pool::create_with(device.clone(), create_options(), cuts.options()) else {
        return (None, true);
    };
    let mut workload = Workload::new(seed);
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
    seed: u64,
    cuts: &Cuts,
) -> Result<(), String> {
    let Some(mut model) = model else { return recover_creation(device) };
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
        let mut workload = Workload::resume(model, random.below(u64::MAX), 1 << 40 | round << 32);
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
fn recover_creation(device: &Arc<SimulatedDevice>) -> Result<(), String> {
    match Pool::open(device.clone()) {
        Ok(pool) if pool.volumes().is_empty() => verify_metadata(&pool),
        Ok(_) => Err("a new pool has volumes".into()),
        Err(PoolError::NoPool { .. } | PoolError::SuperblocksDamaged { .. }) => {
            let options = pool::CreateOptions { force: true, ..create_options() };
            Pool::create(device.clone(), options).map(drop).map_err(|error| error.to_string())
        }
        Err(error) => Err(format!("opening after a cut in creation: {error}")),
    }
}

/// Cuts a workload at each of its device operations in turn. The first thing found wrong, if any.
fn cut_everywhere(seed: u64, lying_flush: bool, cuts: &Cuts) -> Result<u64, String> {
    for operation in 0.. {
        let device = SimulatedDevice::new(DEVICE);
        if lying_flush {
            device.make_flush_a_noop();
        }
        device.cut_power_at(operation);
        let (model, cut) = run(&device, seed, cuts);
        if !cut {
            return Ok(operation);
        }
        cuts.count();
        let cut_seed = seed << 32 | operation;
        recover(&device.power_cut(cut_seed), model, cut_seed, cuts)
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
        let operations = cut_everywhere(seed, false, &cuts).unwrap();
        println!("workload {seed}: cut at each of {operations} device operations");
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

/// The test above must be able to fail: a device that lies about its flushes loses data, and the model says so.
#[test]
fn a_flush_that_does_nothing_is_found_out() {
    let found = (0..3).find_map(|seed| cut_everywhere(seed, true, &Cuts::default()).err());
    println!("found: {found:?}");
    assert!(found.is_some(), "lost writes went unnoticed");
}

/// As many volumes' worth of records as need several batches of the log, cut between and in them.
#[test]
fn a_commit_longer_than_the_log_is_whole_or_old_at_every_batch() {
    use crate::model::{EPOCH, sealed, spec};
    use units::{Lba, SectorCount};
    // 2500 extents of 64 KiB, with records of 34 bytes in the log: more than 16 blocks hold.
    let sectors = 2500 * 16;
    let prepare = || {
        let len = units::ByteLen(DEVICE.0 + 2500 * (64 << 10));
        let device = SimulatedDevice::new(len);
        let pool = Pool::create(device.clone(), create_options()).unwrap();
        let volume = pool.create_volume(spec(2, sectors)).unwrap();
        for extent in 0..2500 {
            volume.write(Lba(extent * 16), EPOCH, &sealed([extent + 1])).unwrap();
        }
        (device, pool, volume)
    };
    let (device, pool, volume) = prepare();
    let before = device.operations();
    volume.flush().unwrap();
    let flushing = device.operations() - before;
    println!("{flushing} device operations for one flush");
    assert!(flushing > 8, "the commit no longer needs several batches");
    pool.check().unwrap();
    for nth in 0..flushing {
        let (device, _pool, volume) = prepare();
        device.cut_power_at(device.operations() + nth);
        volume.flush().unwrap_err();
        let pool = Pool::open(device.power_cut(nth)).unwrap();
        let volume = pool.volume(spec(2, 1).id).unwrap();
        for extent in 0..2500 {
            let found = crate::model::read(&volume, extent * 16, 16).unwrap();
            let whole = found[0].is_none_or(|units| units.iter().all(|unit| *unit == extent + 1));
            assert!(whole && found[1..].iter().all(Option::is_none), "extent {extent}: {found:?}");
        }
        verify_metadata(&pool).unwrap();
        // Shrinking is as long; whichever size is there afterwards, what it leaves reads as before.
        drop(pool.resize_volume(spec(2, 1).id, SectorCount(16)));
        verify_metadata(&pool).unwrap();
    }
}

/// A killed process is no power cut: what it wrote is still in the device's cache when the next one opens the pool,
/// and may be lost after that. Records it logged and did not flush must not be built upon before they are durable.
#[test]
fn a_killed_process_and_then_a_cut_lose_nothing_flushed() {
    for seed in 0..300 {
        let (mut device, pool) = small_pool();
        let mut workload = Workload::new(seed);
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
