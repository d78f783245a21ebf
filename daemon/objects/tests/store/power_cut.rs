//! Power cuts at any write, trim or flush: what was acknowledged is there byte for byte, what was not is old or new, whole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::workload::{budget, content, first_seed, get, length, list_all, multipart, put};
use objects::simulated::{SimulatedVolume, SplitMix64};
use objects::{BucketOptions, Condition, DeleteRequest, ListRequest, Store, StoreError};
use units::ByteLen;

const VOLUME: ByteLen = ByteLen(32 << 20);
const BUCKET: &str = "ledger";
const CLIENTS: u64 = 4;
const KEYS_PER_CLIENT: u64 = 5;

/// What a client may find under a key. `None`: nothing.
type Content = Option<(u64, usize)>;

/// One key as its only client knows it.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    acknowledged: Content,
    /// The request that was not answered.
    attempted: Option<Content>,
}

type Knowledge = BTreeMap<String, Known>;

fn bytes_of(content_of: Content) -> Option<Vec<u8>> {
    content_of.map(|(tag, len)| content(tag, len))
}

/// Sends random requests on the client's own keys until one is not answered.
fn run_client(store: &Store, mut known: Knowledge, mut random: SplitMix64) -> Knowledge {
    let keys: Vec<String> = known.keys().cloned().collect();
    loop {
        let key = &keys[random.below(keys.len() as u64) as usize];
        let state = known.get_mut(key).unwrap();
        let next = (random.next_u64(), length(&mut random));
        let (attempted, result) = match random.below(10) {
            0..=5 => {
                let bytes = content(next.0, next.1);
                (Some(next), put(store, BUCKET, key, &bytes, Condition::default(), &mut random).map(drop))
            }
            6..=7 => (Some(next), multipart(store, BUCKET, key, &[content(next.0, next.1)]).map(drop)),
            _ => (None, store.delete_object(BUCKET, DeleteRequest::of(key)).map(drop)),
        };
        match result {
            Ok(()) => state.acknowledged = attempted,
            Err(error) => {
                assert!(error.is_outage(), "the load is correct, yet it was refused: {error}");
                state.attempted = Some(attempted);
                return known;
            }
        }
    }
}

/// Loads the store from several clients until the power is gone.
fn load_until_cut(store: &Arc<Store>, knowledge: &Knowledge, seed: u64) -> Knowledge {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let known = knowledge.iter().filter(|(key, _)| key.starts_with(&format!("{client}/")));
                let known = known.map(|(key, known)| (key.clone(), *known)).collect();
                scope.spawn(move || run_client(store, known, SplitMix64(seed ^ (client << 32))))
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}

/// Compares every key with what its client knows; what it finds is known from here on.
fn verify(store: &Store, knowledge: &mut Knowledge) -> Result<(), String> {
    for (key, known) in knowledge.iter_mut() {
        let found = match get(store, BUCKET, key) {
            Ok(bytes) => Some(bytes),
            Err(StoreError::NoSuchKey) => None,
            Err(error) => return Err(format!("{key} can't be read: {error}")),
        };
        if found == bytes_of(known.acknowledged) {
            known.attempted = None;
        } else if known.attempted.is_some_and(|attempted| found == bytes_of(attempted)) {
            *known = Known { acknowledged: known.attempted.take().unwrap(), attempted: None };
        } else {
            return Err(format!("{key}: neither what was acknowledged nor what was attempted ({known:?})"));
        }
    }
    let request = ListRequest { limit: 7, ..ListRequest::default() };
    let listed = list_all(store, BUCKET, &request).map_err(|error| error.to_string())?.0;
    let expected = knowledge.iter().filter(|(_, known)| known.acknowledged.is_some()).map(|(key, _)| key);
    if listed.iter().eq(expected) {
        Ok(())
    } else {
        Err("the listing differs from what can be read".to_owned())
    }
}

/// One life after another, each ended by a power cut, some of them while the store still opens.
fn lives(seed: u64, flush_is_noop: bool, cuts: u64) -> Result<(), String> {
    let mut random = SplitMix64(seed);
    let mut knowledge: Knowledge = (0..CLIENTS)
        .flat_map(|client| (0..KEYS_PER_CLIENT).map(move |key| (format!("{client}/{key}"), Known::default())))
        .collect();
    let mut volume = SimulatedVolume::new(VOLUME);
    let store = Store::open(volume.clone()).map_err(|error| error.to_string())?;
    store.create_bucket(BUCKET, BucketOptions::default()).unwrap();
    drop(store);
    // From here on: a store that is formatted and durable, so that what goes missing is what clients were promised.
    volume.set_flush_is_noop(flush_is_noop);
    for _ in 0..cuts {
        if random.below(4) == 0 {
            volume.cut_at(volume.steps() + 1 + random.below(40));
            let _ = Store::open(volume.clone());
            volume = volume.power_cut(random.next_u64());
            volume.set_flush_is_noop(flush_is_noop);
        }
        let store =
            Store::open(volume.clone()).map_err(|error| format!("the store does not open: {error}"))?;
        verify(&store, &mut knowledge)?;
        match random.below(2) {
            0 => volume.cut_at(volume.steps() + 1 + random.below(1_500)),
            _ => volume.cut_at_flush(1 + random.below(50)),
        }
        knowledge = load_until_cut(&store, &knowledge, random.next_u64());
        store.close();
        volume = volume.power_cut(random.next_u64());
        volume.set_flush_is_noop(flush_is_noop);
    }
    let store = Store::open(volume).map_err(|error| format!("the store does not open: {error}"))?;
    verify(&store, &mut knowledge)
}

#[test]
fn nothing_acknowledged_is_lost_in_a_power_cut() {
    let deadline = budget(Duration::from_secs(8));
    let (mut seed, mut count) = (first_seed(), 0);
    while count == 0 || Instant::now() < deadline {
        println!("NIGHTLATCH_SEED={seed}");
        lives(seed, false, 10).unwrap();
        (seed, count) = (seed + 1, count + 10);
    }
    println!("{count} power cuts");
}

/// The positive control: were a flush only a promise, this test would have to notice.
#[test]
fn with_flushes_that_do_nothing_the_loss_is_noticed() {
    let seed = first_seed();
    println!("NIGHTLATCH_SEED={seed}");
    let noticed = (0..20).any(|round| {
        let lost = std::panic::catch_unwind(|| lives(seed + round, true, 3));
        // redb may find its own pages torn and refuse, or panic: either is noticing.
        lost.map_or(true, |result| result.is_err())
    });
    assert!(noticed, "20 rounds without flushes and nothing was missed");
}

/// A short history cut at each of its steps in turn.
#[test]
fn a_cut_at_every_single_step_leaves_old_or_new() {
    let history = |volume: &SimulatedVolume| -> (usize, Option<StoreError>) {
        let mut done = 0;
        let mut random = SplitMix64(7);
        let mut run = || -> Result<(), StoreError> {
            let store = Store::open(volume.clone())?;
            store.create_bucket(BUCKET, BucketOptions::default())?;
            done = 1;
            put(&store, BUCKET, "k", &content(1, 9_000), Condition::default(), &mut random)?;
            done = 2;
            put(&store, BUCKET, "k", &content(2, 9_500), Condition::default(), &mut random)?;
            done = 3;
            multipart(&store, BUCKET, "k", &[content(3, 20_000)])?;
            done = 4;
            put(&store, BUCKET, "k", &content(4, 10), Condition::default(), &mut random)?;
            done = 5;
            store.delete_object(BUCKET, DeleteRequest::of("k"))?;
            done = 6;
            put(&store, BUCKET, "k", &content(5, 9_000), Condition::default(), &mut random)?;
            done = 7;
            Ok(())
        };
        let error = run().err();
        (done, error)
    };
    // What "k" holds after each number of finished operations; the bucket may be missing before the first.
    let states = [
        None,
        None,
        Some((1, 9_000)),
        Some((2, 9_500)),
        Some((3, 20_000)),
        Some((4, 10)),
        None,
        Some((5, 9_000)),
    ];
    let whole = SimulatedVolume::new(VOLUME);
    assert_eq!(history(&whole).0, 7);
    let steps = whole.steps();
    assert!(steps > 50, "the history has steps to cut at");
    // The sweep of the reaper shifts steps a little between runs: a few beyond the last are cut too. Writing the empty
    // reserve is most of the steps before the first operation: every 16th of those will do.
    for cut in (1..steps + 5).filter(|cut| *cut > 270 || cut % 16 == 1) {
        let volume = SimulatedVolume::new(VOLUME);
        volume.cut_at(cut);
        let (done, _) = history(&volume);
        for seed in 0..3 {
            let left = volume.power_cut(seed * 1_000_003 + cut);
            let store =
                Store::open(left).unwrap_or_else(|error| panic!("cut at {cut}, seed {seed}: {error}"));
            let found = match get(&store, BUCKET, "k") {
                Ok(bytes) => Some(bytes),
                Err(StoreError::NoSuchKey) => None,
                Err(StoreError::NoSuchBucket) if done == 0 => None,
                Err(error) => panic!("cut at {cut}, seed {seed}: {error}"),
            };
            let allowed = [bytes_of(states[done]), bytes_of(*states.get(done + 1).unwrap_or(&states[done]))];
            assert!(allowed.contains(&found), "cut at {cut} after {done} operations, seed {seed}");
        }
    }
}
