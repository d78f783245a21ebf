//! Many threads at once: nobody's acknowledged write is lost, whatever the others do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use device::SimulatedDevice;
use pool::{CreateOptions, Pool, PoolErrorKind, PoolVolume};
use units::{ByteLen, Lba, SectorCount};

use crate::model::{EPOCH, read, sealed, spec, verify_metadata};
use crate::workload::{DEVICE, Random, create_options, small_pool};

const THREADS: u64 = 8;
/// Sectors that belong to each thread: every sixteenth, so that all of them share every extent.
const OWN_SECTORS: u64 = 20;

/// One thread's sectors of a shared volume, and what it last did to each.
struct Owner {
    number: u64,
    random: Random,
    next_tag: u64,
    current: Vec<Option<u64>>,
    flushed: Vec<Vec<Option<u64>>>,
}

impl Owner {
    fn new(number: u64, seed: u64) -> Self {
        Self {
            number,
            random: Random::new(seed << 8 | number),
            next_tag: (number + 1) << 32,
            current: vec![None; usize::try_from(OWN_SECTORS).unwrap()],
            flushed: vec![vec![None]; usize::try_from(OWN_SECTORS).unwrap()],
        }
    }

    fn sector(&self, nth: u64) -> Lba {
        Lba(nth * 16 + self.number)
    }

    /// One operation; `false` once the device is gone.
    fn step(&mut self, volume: &PoolVolume) -> bool {
        let nth = self.random.below(OWN_SECTORS);
        let index = usize::try_from(nth).unwrap();
        let result = match self.random.below(10) {
            0..5 => {
                self.next_tag += 1;
                self.flushed[index].push(Some(self.next_tag));
                let result = volume.write(self.sector(nth), EPOCH, sealed([self.next_tag]));
                if result.is_ok() {
                    self.current[index] = Some(self.next_tag);
                }
                result
            }
            5..7 => {
                self.flushed[index].push(None);
                let result = volume.unmap(self.sector(nth), SectorCount(1));
                if result.is_ok() {
                    self.current[index] = None;
                }
                result
            }
            7..9 => {
                let Ok(found) = read(volume, self.sector(nth).0, 1) else { return false };
                assert_eq!(found[0], self.current[index].map(|tag| [tag; 8]), "thread {}", self.number);
                Ok(())
            }
            _ => {
                let result = volume.flush();
                if result.is_ok() {
                    for (flushed, current) in self.flushed.iter_mut().zip(&self.current) {
                        *flushed = vec![*current];
                    }
                }
                result
            }
        };
        match result {
            Err(error) if error.kind() == PoolErrorKind::NoSpace => {
                // Nothing was written: the sector had no extent.
                self.flushed[index].pop();
                true
            }
            result => result.is_ok(),
        }
    }

    fn verify_after_cut(&self, volume: &PoolVolume) {
        for (nth, allowed) in (0..).zip(&self.flushed) {
            let found = read(volume, self.sector(nth).0, 1).unwrap()[0];
            let right = match found {
                None => allowed.contains(&None),
                Some(units) => units.iter().all(|unit| allowed.contains(&Some(*unit))),
            };
            assert!(right, "thread {}, sector {nth}: found {found:?}, allowed {allowed:?}", self.number);
        }
    }
}

/// Starts a thread that puts to its place what waits, as a node has one, until the pool is gone. Half of the seeds have one:
/// the others leave it to the flushes.
fn tend_if(wanted: bool, pool: &Arc<Pool>) {
    let pool = Arc::downgrade(pool);
    let tend = move || {
        while let Some(pool) = pool.upgrade() {
            if pool.tend(Duration::from_micros(50)).is_err() {
                return;
            }
        }
    };
    if wanted {
        thread::spawn(tend);
    }
}

fn run(volume: &Arc<PoolVolume>, seed: u64, steps: u64) -> Vec<Owner> {
    let workers: Vec<_> = (0..THREADS)
        .map(|number| {
            let volume = Arc::clone(volume);
            thread::spawn(move || {
                let mut owner = Owner::new(number, seed);
                let _ = (0..steps).all(|_| owner.step(&volume));
                owner
            })
        })
        .collect();
    workers.into_iter().map(|worker| worker.join().unwrap()).collect()
}

#[test]
fn threads_on_shared_extents_lose_nothing() {
    for seed in 0..10 {
        let (device, pool) = small_pool();
        tend_if(seed % 2 == 1, &pool);
        let volume = pool.create_volume(spec(1, OWN_SECTORS * 16)).unwrap();
        let done = Arc::new(AtomicBool::new(false));
        // Meanwhile other volumes come, fill up and go, so that extents change hands.
        let churn = {
            let (pool, done) = (Arc::clone(&pool), Arc::clone(&done));
            thread::spawn(move || {
                let mut rounds = 0;
                while !done.load(Ordering::Acquire) {
                    let other = pool.create_volume(spec(2, 64)).unwrap();
                    for extent in 0..4 {
                        drop(other.write(Lba(extent * 16), EPOCH, sealed([rounds + 1])));
                    }
                    pool.check().unwrap();
                    pool.delete_volume(other.id()).unwrap();
                    rounds += 1;
                }
            })
        };
        let owners = run(&volume, seed, 400);
        done.store(true, Ordering::Release);
        churn.join().unwrap();
        for owner in &owners {
            owner.verify_after_cut(&volume);
        }
        verify_metadata(&pool).unwrap();
        drop((pool, volume));
        let pool = Pool::open(device).unwrap();
        let volume = pool.volume(spec(1, 1).id).unwrap();
        for mut owner in owners {
            // Everything was flushed by `verify_metadata`.
            owner.flushed = owner.current.iter().map(|current| vec![*current]).collect();
            owner.verify_after_cut(&volume);
        }
    }
}

#[test]
fn a_power_cut_under_load_loses_nothing_that_any_thread_flushed() {
    let cut_late = AtomicU64::new(0);
    for seed in 0..100 {
        let (device, pool) = small_pool();
        tend_if(seed % 2 == 1, &pool);
        let volume = pool.create_volume(spec(1, OWN_SECTORS * 16)).unwrap();
        device.cut_power_at(device.operations() + 20 + Random::new(seed).below(600));
        let owners = run(&volume, seed, 200);
        if !device.has_power() {
            cut_late.fetch_add(1, Ordering::Relaxed);
        }
        let pool = Pool::open(device.power_cut(seed)).unwrap();
        let volume = pool.volume(volume.id()).unwrap();
        owners.iter().for_each(|owner| owner.verify_after_cut(&volume));
        verify_metadata(&pool).unwrap();
    }
    println!("{cut_late:?} of 100 runs were cut in the middle");
    assert!(cut_late.into_inner() > 50);
}

/// Requests that span two extents, beside snapshots: each snapshot has every request whole or not at all, and shows the
/// same ever after.
#[test]
fn a_snapshot_under_load_splits_no_request_and_never_changes() {
    let (_, pool) = small_pool();
    tend_if(true, &pool);
    let volume = pool.create_volume(spec(1, 64)).unwrap();
    let done = AtomicBool::new(false);
    let pairs = |volume: &PoolVolume| -> Vec<_> {
        let content = read(volume, 0, 64).unwrap();
        (0..4).map(|thread| (content[15 - thread], content[16 + thread])).collect()
    };
    let mut different = 0;
    let written = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..4 {
            let (volume, done, written) = (&volume, &done, &written);
            scope.spawn(move || {
                let mut tag = (thread + 1) << 32;
                while !done.load(Ordering::Acquire) {
                    tag += 1;
                    // From 15 - thread to 16 + thread, alike at both ends. Threads overlap, as clients that share a disk do.
                    let count = 2 + 2 * thread;
                    volume.write(Lba(15 - thread), EPOCH, sealed((0..count).map(|_| tag))).unwrap();
                    written.fetch_add(u64::from(thread == 3), Ordering::AcqRel);
                }
            });
        }
        for round in 0..200 {
            let before = written.load(Ordering::Acquire);
            while written.load(Ordering::Acquire) == before {
                thread::yield_now();
            }
            let id = |round: u8| units::VolumeId([100 + round % 2; 16]);
            pool.create_snapshot(volume.id(), id(round), 0).unwrap();
            let snapshot = pool.snapshot(id(round)).unwrap();
            let first = pairs(&snapshot);
            // The widest write is thread 3's, and nobody else writes its ends.
            assert_eq!(first[3].0, first[3].1, "a request was split");
            assert_eq!(pairs(&snapshot), first, "a snapshot has changed");
            if round > 0 {
                let before = pool.snapshot(id(round - 1)).unwrap();
                different += u64::from(pairs(&before) != first);
                pool.delete_snapshot(id(round - 1)).unwrap();
            }
        }
        done.store(true, Ordering::Release);
    });
    println!("{different} of 199 snapshots differed from the one before");
    assert!(different > 0);
    verify_metadata(&pool).unwrap();
}

/// One flush may answer many callers, and none too early.
#[test]
fn concurrent_flushers_share_device_flushes() {
    let device = SimulatedDevice::new(ByteLen(DEVICE.0 + (8 << 20)));
    // A log that is not full before everybody is through: what empties it flushes as well.
    let options = CreateOptions { log_len: Some(ByteLen(8 << 20)), ..create_options() };
    let pool = Pool::create(device.clone(), options).unwrap();
    let volume = pool.create_volume(spec(1, 16 * THREADS)).unwrap();
    volume.write(Lba(0), EPOCH, sealed(1..=16 * THREADS)).unwrap();
    volume.flush().unwrap();
    let before = device.flushes();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let volume = &volume;
            scope.spawn(move || {
                for round in 0..50 {
                    volume.write(Lba(thread * 16), EPOCH, sealed([(thread + 1) << 16 | round])).unwrap();
                    volume.flush().unwrap();
                }
            });
        }
    });
    let flushes = device.flushes() - before;
    println!("{} flushes asked for, {flushes} of the device", 50 * THREADS);
    assert!(flushes <= 50 * THREADS);
    let pool = Pool::open(device.power_cut(9)).unwrap();
    let volume = pool.volume(volume.id()).unwrap();
    for thread in 0..THREADS {
        assert_eq!(read(&volume, thread * 16, 1).unwrap(), [Some([(thread + 1) << 16 | 49; 8])]);
    }
}
