//! The machines under a network that loses, repeats and reorders, disks that fill, programs that die at any step, and primaries that do
//! not know that they are none any more. A seed replays to the byte: `NIGHTLATCH_SEED=17 cargo test -p replication --test simulation`.
#![expect(clippy::unwrap_used, reason = "tests: a failed unwrap is a failed test")]
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "how long a soak lasts is outside the machines"
)]

use std::time::{Duration, Instant};

use replication::{Mutation, break_rule};

use crate::world::{Breach, Tally, World};

mod disk;
mod random;
mod world;

const SEEDS: u64 = 500;
/// A broken rule is found within so many.
const SEEDS_FOR_MUTATIONS: u64 = 200;

/// Faults that were caused and states that were reached; a run in which one never was proves nothing of it.
const EXPECTED: &[&str] = &[
    "acknowledged",
    "an epoch without a write",
    "arrived",
    "audited: Checksum",
    "audited: Reordered",
    "audited: Repeated",
    "audited: Replayed",
    "audited: lower-fence",
    "audited: number-used",
    "audited: other-generation",
    "barrier",
    "connected",
    "divergence settled",
    "everybody caught up",
    "fault: bit flipped",
    "fault: crash",
    "fault: crash after a step",
    "fault: crash within a step",
    "fault: disk full",
    "fault: duplicate",
    "fault: frame of another session",
    "fault: loss",
    "fault: one fence twice",
    "fault: partition",
    "fault: primary set back",
    "fault: reads failed",
    "fault: reordered",
    "fault: slow link",
    "fault: unreadable sector",
    "fell to catch-up",
    "locked a snapshot",
    "made a replica again",
    "promoted",
    "resumed inside an epoch",
    "sender ended: Silent",
    "stopped: damaged-here",
    "stopped: diverged",
    "stopped: failed-here",
    "stopped: lower-fence",
    "stopped: no-space",
    "stopped: not-a-replica",
    "stopped: number-used",
    "stopped: other-generation",
];

fn run(seed: u64, tally: &mut Tally) -> Result<u64, Breach> {
    let mut world = World::new(seed);
    let result = world.run();
    tally.add(&world.tally);
    result.map(|()| world.digest)
}

fn soak_time() -> Option<Duration> {
    let seconds = std::env::var("NIGHTLATCH_SOAK_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("NIGHTLATCH_SOAK_SECONDS is a number of seconds")))
}

#[test]
fn a_replica_is_always_at_a_barrier_and_everybody_catches_up() {
    let mut tally = Tally::default();
    if let Ok(seed) = std::env::var("NIGHTLATCH_SEED") {
        let seed = seed.parse().expect("NIGHTLATCH_SEED is a number");
        run(seed, &mut tally).unwrap_or_else(|breach| panic!("seed {seed}: {}", breach.0));
        println!("{tally:#?}");
        return;
    }
    let (begun, soak) = (Instant::now(), soak_time());
    let mut seed = 0;
    while seed < SEEDS || soak.is_some_and(|time| begun.elapsed() < time) {
        run(seed, &mut tally).unwrap_or_else(|breach| panic!("NIGHTLATCH_SEED={seed}: {}", breach.0));
        seed += 1;
    }
    println!("{seed} seeds in {:?}: {tally:#?}", begun.elapsed());
    for expected in EXPECTED {
        assert!(tally.0.contains_key(*expected), "never once: {expected}");
    }
}

#[test]
fn one_peer_that_is_away_costs_the_others_nothing() {
    for seed in 0..5 {
        let mut world = World::new(seed);
        world.run_with_one_away(300).unwrap_or_else(|breach| panic!("seed {seed}: {}", breach.0));
    }
}

#[test]
fn a_seed_replays_to_the_byte() {
    for seed in [3, 77, 1_234] {
        let (mut first, mut again) = (Tally::default(), Tally::default());
        let digests = (run(seed, &mut first).unwrap(), run(seed, &mut again).unwrap());
        assert_eq!(digests.0, digests.1, "seed {seed}");
        assert_eq!(first, again);
    }
    let digest = |seed| run(seed, &mut Tally::default()).unwrap();
    assert_ne!(digest(3), digest(77));
}

#[test]
fn every_broken_rule_is_found() {
    let mutations = [
        Mutation::AcknowledgeBeforeDurable,
        Mutation::ClearOnSend,
        Mutation::ApplyHalfAnEpoch,
        Mutation::AcceptLowerFence,
        Mutation::IgnoreGeneration,
        Mutation::ReuseSequence,
        Mutation::ReuseNumber,
    ];
    for mutation in mutations {
        break_rule(Some(mutation));
        let found = (0..SEEDS_FOR_MUTATIONS)
            .find_map(|seed| run(seed, &mut Tally::default()).err().map(|breach| (seed, breach.0)));
        break_rule(None);
        let (seed, breach) = found.unwrap_or_else(|| panic!("{mutation:?} was not found"));
        println!("{mutation:?}: seed {seed}, {breach}");
    }
}
