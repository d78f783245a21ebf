//! Power cuts under mixed NBD and S3 load: whatever was acknowledged is there after the next push.
//!
//! The device drops, reorders and tears (at 512 bytes) every write since its last flush. The node above it is the real
//! one: pool, sealing with real keys, object store.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use harness::random::{Random, SEED_VARIABLE, seed};
use harness::slice::Slice;
use pool::CrashStep;
use simulation_tests::life::{Coverage, Cut, Heads, Life};

/// Power cuts that the suite makes at least.
const CUTS_MIN: u64 = 1_000;

/// Cuts that one pool lives through before the next starts empty.
const CUTS_A_POOL: u64 = 40;

/// Seconds of `make test` that the random part takes.
const SLICE_SECONDS: u64 = 100;

/// Lives that once broke a promise, kept for good: seeds of [`Life::new`].
const REGRESSIONS: &[u64] = &[];

fn live(seed: u64, coverage: &Arc<Coverage>) {
    let mut life = Life::new(seed, Heads::Both, coverage);
    let outcome = (0..CUTS_A_POOL).try_for_each(|_| life.cut(Cut::Anywhere)).and_then(|()| life.check());
    if let Err(broken) = outcome {
        panic!("{broken}\nthis life's seed is {seed}: add it to REGRESSIONS");
    }
}

#[test]
fn what_was_acknowledged_survives_every_power_cut() {
    let seed = seed();
    println!("{SEED_VARIABLE}={seed}");
    let mut random = Random::new(seed);
    let coverage = Arc::new(Coverage::default());
    for seed in REGRESSIONS {
        live(*seed, &coverage);
    }
    let mut slice = Slice::new("pools", SLICE_SECONDS, CUTS_MIN / CUTS_A_POOL);
    while slice.another() {
        live(random.bits(), &coverage);
    }
    slice.report(&coverage.describe());
    let cuts = coverage.cuts.load(Ordering::Relaxed);
    assert!(cuts >= CUTS_MIN, "only {cuts} power cuts");
}

/// The steps of the pool's crash order that happen under load and at opening. Those of creation and repair have tests of
/// their own beside the pool.
const STEPS: [CrashStep; 13] = [
    CrashStep::DataWrite,
    CrashStep::DataFlush,
    CrashStep::LogWrite,
    CrashStep::LogFlush,
    CrashStep::TableWrite,
    CrashStep::TableFlush,
    CrashStep::FirstSuperblockWrite,
    CrashStep::FirstSuperblockFlush,
    CrashStep::SecondSuperblockWrite,
    CrashStep::SecondSuperblockFlush,
    CrashStep::Discard,
    CrashStep::OpenFlush,
    CrashStep::PlaceWrite,
];

#[test]
fn what_was_acknowledged_survives_a_cut_at_each_numbered_step() {
    let coverage = Arc::new(Coverage::default());
    for (seed, step) in (1..).zip(STEPS) {
        let mut life = Life::new(seed, Heads::Both, &coverage);
        for nth in [1, 2, 5] {
            // Opening passes each of its steps once.
            let nth = if step == CrashStep::OpenFlush { 1 } else { nth };
            let outcome = life.cut(Cut::At(step, nth)).and_then(|()| life.check());
            outcome.unwrap_or_else(|broken| {
                panic!("a cut at {step:?}, occurrence {nth}, seed {seed}: {broken}")
            });
        }
    }
    println!("{}", coverage.describe());
    let went_after = coverage.went_after();
    for step in STEPS {
        assert!(went_after.get(&step).copied().unwrap_or(0) >= 3, "{step:?} was not cut at: {went_after:?}");
    }
}

/// A device that only says that it flushes must be caught, on each head by itself: otherwise nothing above proves
/// anything.
fn lying_device_is_caught(heads: Heads, what_is_lost: &str) {
    const LIVES: u64 = 16;
    // Most are caught by the pool's not opening; with threads in a life, how many by a head is never the same.
    const LIVES_MAX: u64 = 16 * LIVES;
    let coverage = Arc::new(Coverage::default());
    let mut found: Vec<String> = Vec::new();
    let mut lives = 0;
    while lives < LIVES || (lives < LIVES_MAX && !found.iter().any(|broken| broken.contains(what_is_lost))) {
        lives += 1;
        let seed = lives;
        let mut life = Life::new(seed, heads, &coverage);
        life.flush_is_noop = true;
        let outcome = (0..5).try_for_each(|_| life.cut(Cut::Anywhere)).and_then(|()| life.check());
        found.extend(outcome.err());
    }
    println!("{} of {lives} lives on a lying device were caught, first: {:?}", found.len(), found.first());
    assert!(found.iter().any(|broken| broken.contains(what_is_lost)), "no loss was found: {found:?}");
    assert!(found.len() as u64 > lives / 2, "only {} of {lives} lives were caught: {found:?}", found.len());
}

#[test]
fn with_flush_a_noop_lost_writes_are_found() {
    lying_device_is_caught(Heads::Blocks, "block client");
}

#[test]
fn with_flush_a_noop_lost_objects_are_found() {
    lying_device_is_caught(Heads::Objects, "object");
}
