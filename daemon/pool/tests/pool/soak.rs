//! Twelve hours of a pool's life, a request a second, in simulated time: power cuts, restarts, devices that fail a request or have
//! no space, a scrub every hour, and bits that flip. Nothing flushed is lost, and nothing wrong is ever read.

use std::sync::Arc;
use std::time::Instant;

use device::{Errno, Fault, Operation, SimulatedDevice};
use pool::{OpenOptions, Pool, Scrub};
use units::ByteLen;

use crate::model::verify_metadata;
use crate::power_cuts::soak_time;
use crate::workload::{LOG, Random, Shape, Workload};

const HOUR: u64 = 3600;
const HOURS: u64 = 12;
/// Seconds between power cuts, errors of the device and restarts.
const CUT_EVERY: u64 = 600;
const FAULT_EVERY: u64 = 450;
const RESTART_EVERY: u64 = 1700;
/// Bits that are flipped each hour, each on a copy.
const FLIPS: u64 = 40;

#[derive(Debug, Default)]
struct Happened {
    cuts: u64,
    errors: u64,
    restarts: u64,
    scrubbed_sectors: u64,
    flips_noticed: u64,
    flips_harmless: u64,
}

/// A pool in use, and what it may hold.
struct Life {
    shape: Shape,
    random: Random,
    device: Arc<SimulatedDevice>,
    pool: Arc<Pool>,
    workload: Workload,
    happened: Happened,
}

impl Life {
    fn new(seed: u64) -> Self {
        let shape = [Shape::SMALL, Shape::LARGE, Shape::USED_BEFORE][usize::try_from(seed % 3).unwrap()];
        let device = shape.device();
        let pool = Pool::create(device.clone(), shape.create_options()).unwrap();
        let workload = Workload::new(seed, shape).growing(&device);
        Self { shape, random: Random::new(!seed), device, pool, workload, happened: Happened::default() }
    }

    fn second(&mut self, now: u64) -> Result<(), String> {
        if now.is_multiple_of(CUT_EVERY) {
            self.device.cut_power_at(self.device.operations() + self.random.below(30));
        }
        if now.is_multiple_of(FAULT_EVERY) {
            let fault = self.any_fault();
            self.device.inject(fault);
        }
        let failed = self.workload.step(&self.pool).is_err();
        if !self.device.has_power() {
            self.happened.cuts += 1;
            self.start(self.device.power_cut(now), now)?;
        } else if failed {
            self.happened.errors += 1;
            self.start(self.device.reopened(), now)?;
        } else if now.is_multiple_of(RESTART_EVERY) {
            self.happened.restarts += 1;
            self.start(self.device.reopened(), now)?;
        }
        if now.is_multiple_of(HOUR) {
            self.device.clear_faults();
            self.scrub()?;
            (0..FLIPS).try_for_each(|_| self.flip_a_bit())?;
        }
        Ok(())
    }

    fn any_fault(&mut self) -> Fault {
        let operations =
            [Operation::Read, Operation::Write, Operation::Flush, Operation::Reserve, Operation::Discard];
        let operation = operations[usize::try_from(self.random.below(5)).unwrap()];
        let errno = if self.random.below(2) == 0 { Errno::EIO } else { Errno::ENOSPC };
        Fault { operation, after: self.random.below(20), errno, lasting: false }
    }

    /// A node starts on what is there, finds what it may, and goes on.
    fn start(&mut self, device: Arc<SimulatedDevice>, now: u64) -> Result<(), String> {
        let mut model = std::mem::take(&mut self.workload.model);
        self.device = device;
        let options = OpenOptions { record_cache: ByteLen(8192), ..OpenOptions::default() };
        self.pool =
            Pool::open_with(self.device.clone(), options).map_err(|error| format!("opening: {error}"))?;
        model.verify_after_cut(&self.pool)?;
        verify_metadata(&self.pool)?;
        let resumed = Workload::resume(model, self.random.below(u64::MAX), now << 24, self.shape);
        self.workload = resumed.growing(&self.device);
        Ok(())
    }

    fn scrub(&mut self) -> Result<(), String> {
        let mut scrub = Scrub::starting_at(Arc::clone(&self.pool), 0);
        while let Some(step) = scrub.step().map_err(|error| format!("scrubbing: {error}"))? {
            self.happened.scrubbed_sectors += step.sectors.0;
            if !step.damaged.is_empty() {
                return Err(format!("scrubbing found {:?}", step.damaged));
            }
        }
        Ok(())
    }

    /// Of a copy, as a node would find it that starts now. The log is left out: what its last batch held, a rotten block takes
    /// away unnoticed but by a keyholder (FORMAT.md).
    fn flip_a_bit(&mut self) -> Result<(), String> {
        let copy = self.device.durable_copy();
        let log = (2 << 20) / 4096..((2 << 20) + LOG) / 4096;
        let sectors: Vec<u64> = copy
            .content()
            .into_iter()
            .map(|(sector, _)| sector)
            .filter(|sector| !log.contains(sector))
            .collect();
        let sector = sectors[usize::try_from(self.random.below(sectors.len() as u64)).unwrap()];
        let bit = usize::try_from(self.random.below(4096 * 8)).unwrap();
        copy.edit(sector, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
        let noticed = match Pool::open(copy) {
            Ok(pool) => self.workload.model.verify_damaged(&pool)? > 0 || pool.info().repaired.is_some(),
            Err(_) => true,
        };
        match noticed {
            true => self.happened.flips_noticed += 1,
            // In a part of a page that nothing is in.
            false => self.happened.flips_harmless += 1,
        }
        Ok(())
    }
}

#[test]
fn twelve_hours_with_everything_that_goes_wrong_lose_nothing() {
    let started = Instant::now();
    let mut seed = 0;
    while seed < 3 || started.elapsed() < soak_time() {
        let mut life = Life::new(seed);
        for now in 1..=HOURS * HOUR {
            life.second(now).unwrap_or_else(|wrong| panic!("seed {seed}, second {now}: {wrong}"));
        }
        println!("seed {seed}, {HOURS} hours, after {:?}: {:?}", started.elapsed(), life.happened);
        let Happened { cuts, errors, restarts, scrubbed_sectors, flips_noticed, .. } = life.happened;
        assert!(cuts > 50 && errors > 10 && restarts > 10 && scrubbed_sectors > 0 && flips_noticed > 100);
        seed += 1;
    }
}
