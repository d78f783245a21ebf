//! Random runs of node and keyholder over a network that delays, duplicates, reorders, drops and replays frames, with
//! two clocks that drift apart, slow shells, crashes of the node and restarts of the keyholder.
//!
//! The property: no key is usable on the node past the expiry that the keyholder has on record for its grant, by the
//! keyholder's clock. It is checked after every step for the whole future, by mapping the keyring's deadline from
//! the node's clock to the keyholder's. And a deadline moves later by a renewal only, by the same renewal once.
//!
//! A planted breach (a shell that counts a lease from the arrival of its renewal) must be found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lease::keyholder::{GrantOrder, KeyholderEvent, KeyholderSession, KeyholderSessionParams};
use lease::limits::{DRIFT_PPM, lease_with_drift_ms};
use lease::message::{RevokeCause, Scope, StateVerdict, VolumePresent, WipeCause, WipeRecord, WipeStages};
use lease::node::{EvidenceInput, NodeEffect, NodeLease, NodeSession, NodeSessionParams, WipeReport};
use lease::{GrantRefusal, SessionError};
use units::{BootInstant, Fence, GrantId, VolumeId};

use crate::support::{envelope_key, keyholder_params, node_lease, order, present, unframe};

const VOLUMES: [VolumeId; 3] = [VolumeId([0x22; 16]), VolumeId([0x23; 16]), VolumeId([0x24; 16])];

/// SplitMix64: small, and the whole run follows from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn bytes(&mut self) -> [u8; 32] {
        let words: Vec<u8> = (0..4).flat_map(|_| self.next().to_le_bytes()).collect();
        words.try_into().unwrap()
    }
}

/// A clock that runs off true time by some parts per million.
#[derive(Clone, Copy)]
struct Clock {
    offset: u64,
    rate_ppm: u64,
}

const PPM: u128 = 1_000_000;

impl Clock {
    fn at(&self, truth: u128) -> BootInstant {
        let elapsed = truth * u128::from(self.rate_ppm) / PPM;
        BootInstant(self.offset + u64::try_from(elapsed).unwrap())
    }

    /// The first true instant at which the clock shows `shown`, or later than it.
    fn truth(&self, shown: BootInstant) -> u128 {
        (u128::from(shown.0.saturating_sub(self.offset)) * PPM).div_ceil(u128::from(self.rate_ppm))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shell {
    Sound,
    /// Counts a lease from the arrival of what prolongs it.
    CountsFromArrival,
}

#[derive(Default, Debug)]
struct Tally {
    admitted: u64,
    renewed: u64,
    expired: u64,
    refused: u64,
    replays: u64,
    stale: u64,
}

enum Chore {
    Admit { session: usize, volume: VolumeId, grant: GrantId },
    Drop { session: usize, volume: VolumeId, grant: GrantId },
}

struct World {
    random: Random,
    shell: Shell,
    truth: u128,
    node_clock: Clock,
    keyholder_clock: Clock,

    lease: NodeLease,
    nodes: Vec<NodeSession>,
    keys: BTreeMap<VolumeId, GrantId>,
    deadline: Option<BootInstant>,
    fences_on_disk: BTreeMap<VolumeId, Fence>,
    chores: Vec<(u128, Chore)>,
    wipes: u64,

    keyholder: KeyholderSession,
    /// Durable: latest expiry of each grant ever sent, on the keyholder's clock.
    records: BTreeMap<GrantId, BootInstant>,
    current: BTreeMap<VolumeId, GrantId>,
    fences: BTreeMap<VolumeId, Fence>,

    to_node: Vec<(u128, Vec<u8>)>,
    to_keyholder: Vec<(u128, Vec<u8>)>,
    overheard: Vec<Vec<u8>>,
    prolonged_by: BTreeSet<Vec<u8>>,
    tally: Tally,
}

/// A key that would be usable after its recorded expiry.
#[derive(Debug)]
struct Breach(String);

impl World {
    fn new(seed: u64, shell: Shell) -> Self {
        let mut random = Random(seed);
        let clock = |random: &mut Random| Clock {
            offset: random.below(1 << 50),
            // Each is off by up to half of what two may be apart.
            rate_ppm: 1_000_000 - DRIFT_PPM / 2 + random.below(DRIFT_PPM + 1),
        };
        let (node_clock, keyholder_clock) = (clock(&mut random), clock(&mut random));
        let mut world = Self {
            keyholder: KeyholderSession::new(keyholder_clock.at(0), keyholder_params()),
            lease: node_lease(),
            random,
            shell,
            truth: 0,
            node_clock,
            keyholder_clock,
            nodes: Vec::new(),
            keys: BTreeMap::new(),
            deadline: None,
            fences_on_disk: BTreeMap::new(),
            chores: Vec::new(),
            wipes: 0,
            records: BTreeMap::new(),
            current: BTreeMap::new(),
            fences: BTreeMap::new(),
            to_node: Vec::new(),
            to_keyholder: Vec::new(),
            overheard: Vec::new(),
            prolonged_by: BTreeSet::new(),
            tally: Tally::default(),
        };
        world.start_node();
        world.connect();
        world
    }

    fn now_node(&self) -> BootInstant {
        self.node_clock.at(self.truth)
    }

    fn now_keyholder(&self) -> BootInstant {
        self.keyholder_clock.at(self.truth)
    }

    /// A fresh run of the node's program: memory empty, fences as the pool has them.
    fn start_node(&mut self) {
        self.lease = node_lease();
        let fences = &self.fences_on_disk;
        let volumes = VOLUMES.map(|volume| VolumePresent {
            fence: fences.get(&volume).copied().unwrap_or(Fence(0)),
            ..present(volume)
        });
        self.lease.set_volumes(volumes).unwrap();
        self.keys.clear();
        self.deadline = None;
        self.chores.clear();
        self.nodes.clear();
    }

    fn connect(&mut self) {
        let exporter = self.random.bytes();
        let challenge = self.random.bytes();
        let params = KeyholderSessionParams { exporter, challenge, ..keyholder_params() };
        self.keyholder = KeyholderSession::new(self.now_keyholder(), params);
        let params = NodeSessionParams { exporter, seed: self.random.bytes() };
        let now = self.now_node();
        self.nodes.push(NodeSession::new(&mut self.lease, now, params));
        // The old connection is gone, except for what an adversary kept.
        self.to_node.clear();
        self.to_keyholder.clear();
        let hello = self.keyholder.start().unwrap();
        self.transmit_to_node(&hello);
    }

    fn transmit_to_node(&mut self, bytes: &[u8]) {
        let frame = unframe(bytes);
        self.overheard.push(frame.clone());
        let copies = if self.random.chance(5) { 2 } else { 1 };
        for _ in 0..copies {
            if !self.random.chance(3) {
                let due = self.truth + u128::from(self.random.below(400_000_000));
                self.to_node.push((due, frame.clone()));
            }
        }
    }

    fn transmit_to_keyholder(&mut self, bytes: &[u8]) {
        let copies = if self.random.chance(5) { 2 } else { 1 };
        for _ in 0..copies {
            if !self.random.chance(3) {
                let due = self.truth + u128::from(self.random.below(400_000_000));
                self.to_keyholder.push((due, unframe(bytes)));
            }
        }
    }

    fn perform(&mut self, session: usize, effects: Vec<NodeEffect>) {
        let mut reconnect = false;
        for effect in effects {
            match effect {
                NodeEffect::Send(bytes) => self.transmit_to_keyholder(&bytes),
                NodeEffect::NeedEvidence => {
                    let input = EvidenceInput {
                        hygiene: String::new(),
                        envelope_key: envelope_key(),
                        attests: false,
                    };
                    let now = self.now_node();
                    match self.nodes[session].on_evidence(&mut self.lease, now, input) {
                        Ok(effects) => {
                            self.assert_evidence_lists_every_key();
                            self.perform(session, effects);
                        }
                        // As a shell does that does not wait: it closes, and the keyholder dials again.
                        Err(_) => reconnect = true,
                    }
                }
                NodeEffect::AdmitGrant(admit) => {
                    self.fences_on_disk.insert(admit.volume, admit.fence);
                    let due = self.truth + u128::from(self.random.below(300_000_000));
                    let chore = Chore::Admit { session, volume: admit.volume, grant: admit.grant };
                    self.chores.push((due, chore));
                }
                NodeEffect::SetDeadline(deadline) => self.set_deadline(deadline),
                NodeEffect::DropVolume { volume, grant, .. } => {
                    let due = self.truth + u128::from(self.random.below(100_000_000));
                    self.chores.push((due, Chore::Drop { session, volume, grant }));
                }
                NodeEffect::Wipe(cause) => self.wipe(cause),
                NodeEffect::NeedAttestation(_) | NodeEffect::OpenCredential(_) => unreachable!("no TPM here"),
                NodeEffect::AdmitEpoch(_) => unreachable!("one epoch here"),
                NodeEffect::Note(lease::node::NodeNote::StaleRenewal) => self.tally.stale += 1,
                NodeEffect::Note(_) => {}
                NodeEffect::Close => reconnect = true,
            }
        }
        if reconnect {
            self.connect();
        }
    }

    /// The keyholder takes what evidence does not list for gone.
    fn assert_evidence_lists_every_key(&self) {
        let listed: BTreeSet<GrantId> = self.lease.held().map(|held| held.grant).collect();
        assert!(
            self.keys.values().all(|grant| listed.contains(grant)),
            "a key is here that evidence leaves out"
        );
        let comes = self.chores.iter().any(|(_, chore)| matches!(chore, Chore::Admit { .. }));
        assert!(!comes, "a key comes after evidence that leaves it out");
    }

    fn set_deadline(&mut self, deadline: Option<BootInstant>) {
        self.deadline = match self.shell {
            Shell::Sound => deadline,
            Shell::CountsFromArrival => deadline.map(|_| self.now_node().saturating_add_ms(8_000)),
        };
    }

    fn wipe(&mut self, cause: WipeCause) {
        self.keys.clear();
        self.deadline = None;
        // The envelope's secret went with the arena: what was being admitted cannot be opened any more.
        self.chores.retain(|(_, chore)| !matches!(chore, Chore::Admit { .. }));
        self.wipes += 1;
        self.tally.expired += u64::from(cause == WipeCause::LeaseExpired);
        let record = WipeRecord { cause, at: self.now_node(), generation: self.wipes };
        let report = WipeReport { record, stages: WipeStages::keys(1), more: false };
        let ended = self.lease.on_wiped(record);
        let last = self.nodes.len() - 1;
        let effects = self.nodes[last].on_wiped(&self.lease, &report, ended);
        // The receipt is on its way before the connection is replaced, and may be lost with it.
        self.perform(last, effects);
    }

    fn run_chores(&mut self) {
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.chores).into_iter().partition(|(at, _)| *at <= self.truth);
        self.chores = later;
        for (_, chore) in due {
            let now = self.now_node();
            match chore {
                Chore::Admit { session, volume, grant } => {
                    let result = if self.random.chance(10) {
                        Err(GrantRefusal::WrongKey)
                    } else {
                        Ok(StateVerdict::First)
                    };
                    if result.is_ok() {
                        self.keys.insert(volume, grant);
                        self.tally.admitted += 1;
                    }
                    let Some(node) = self.nodes.get_mut(session) else { continue };
                    let effects = node.on_admitted(&mut self.lease, now, volume, grant, result);
                    self.perform(session, effects);
                }
                Chore::Drop { session, volume, grant } => {
                    if self.keys.get(&volume) == Some(&grant) {
                        self.keys.remove(&volume);
                    }
                    let record = WipeRecord { cause: WipeCause::Revoked, at: now, generation: self.wipes };
                    let report = WipeReport { record, stages: WipeStages::keys(1), more: false };
                    let Some(node) = self.nodes.get_mut(session) else { continue };
                    let effects = node.on_dropped(&mut self.lease, volume, grant, &report);
                    self.perform(session, effects);
                }
            }
        }
    }

    fn deliver_to_node(&mut self, frame: &[u8]) {
        let before: BTreeMap<GrantId, BootInstant> =
            self.lease.held().map(|held| (held.grant, held.deadline)).collect();
        let session = self.nodes.len() - 1;
        let now = self.now_node();
        let result = self.nodes[session].on_frame(&mut self.lease, now, frame);
        let prolonged =
            self.lease.held().any(|held| before.get(&held.grant).is_some_and(|old| held.deadline > *old));
        if prolonged {
            assert_eq!(frame[1], 8, "only a renewal prolongs");
            assert!(self.prolonged_by.insert(frame.to_vec()), "the same renewal prolonged twice");
            self.tally.renewed += 1;
        }
        match result {
            Ok(effects) => self.perform(session, effects),
            Err(error) => {
                self.tally.refused += 1;
                assert!(!matches!(error, SessionError::NotEnrolled), "{error}");
                self.connect();
            }
        }
    }

    fn deliver_to_keyholder(&mut self, frame: &[u8]) {
        let now = self.now_keyholder();
        let event = match self.keyholder.on_frame(now, frame) {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(_) => return self.connect(),
        };
        match event {
            KeyholderEvent::Evidence(evidence, None) => {
                let held: BTreeMap<_, _> = evidence.held.iter().map(|h| (h.volume, h.grant)).collect();
                self.current.retain(|volume, grant| held.get(volume) == Some(grant));
                for present in &evidence.volumes {
                    let fence = self.fences.entry(present.volume).or_default();
                    *fence = (*fence).max(present.fence);
                }
                self.grant_missing();
            }
            KeyholderEvent::Evidence(_, Some(_)) | KeyholderEvent::CredentialOpened(_) => {
                unreachable!("no TPM here")
            }
            KeyholderEvent::Challenged(challenged, _) => {
                if self.random.chance(15) {
                    return;
                }
                let lease_ms = 1_000 + self.random.below(7_000);
                let mut grants: Vec<GrantId> = self.current.values().copied().collect();
                if self.random.chance(5) {
                    grants.pop();
                }
                for grant in &grants {
                    self.record(*grant, lease_ms);
                }
                if let Ok(bytes) = self.keyholder.renewal(challenged, lease_ms, grants) {
                    self.transmit_to_node(&bytes);
                }
                self.grant_missing();
            }
            KeyholderEvent::GrantRefused(refused) => {
                self.current.retain(|_, grant| *grant != refused.grant);
            }
            KeyholderEvent::Wiped(receipt) => {
                self.current.retain(|_, grant| !receipt.grants.contains(grant));
            }
            KeyholderEvent::Receipt(_) | KeyholderEvent::NodeRefused(_) => {}
            KeyholderEvent::EpochTaken(_) => unreachable!("one epoch here"),
        }
    }

    /// What the keyholder makes durable before it sends.
    fn record(&mut self, grant: GrantId, lease_ms: u64) {
        let expiry = self.now_keyholder().saturating_add_ms(lease_with_drift_ms(lease_ms));
        let recorded = self.records.entry(grant).or_insert(expiry);
        *recorded = (*recorded).max(expiry);
    }

    fn grant_missing(&mut self) {
        for volume in VOLUMES {
            if self.current.contains_key(&volume) || self.random.chance(30) {
                continue;
            }
            let fence = self.fences.entry(volume).or_default();
            *fence = fence.next().unwrap();
            let mut grant = [0; 16];
            grant.copy_from_slice(&self.random.bytes()[..16]);
            let lease_ms = 1_000 + self.random.below(7_000);
            let fence = self.fences[&volume];
            let order = GrantOrder { grant: GrantId(grant), volume, fence, lease_ms, ..order(0, 0) };
            self.record(order.grant, lease_ms);
            let sealed =
                |_: &lease::keyholder::SealRequest<'_>| Ok::<_, std::convert::Infallible>(vec![0; 8]);
            if let Ok(bytes) = self.keyholder.grant(order.clone(), sealed) {
                self.current.insert(volume, order.grant);
                self.transmit_to_node(&bytes);
            }
        }
    }

    fn disturb(&mut self) {
        match self.random.below(400) {
            0 => {
                self.start_node();
                self.connect();
            }
            1 => self.connect(),
            2 => self.wipe(WipeCause::PowerLoss),
            3 => {
                let scope = if self.random.chance(50) { Scope::All } else { Scope::Volume(VOLUMES[0]) };
                if let Ok(bytes) = self.keyholder.revoke(scope, RevokeCause::Revoked) {
                    self.transmit_to_node(&bytes);
                }
            }
            4..=9 => {
                let pick = usize::try_from(self.random.below(self.overheard.len() as u64)).unwrap();
                let frame = self.overheard[pick].clone();
                self.tally.replays += 1;
                self.deliver_to_node(&frame);
            }
            10..=14 => {
                if let Ok(bytes) = self.keyholder.request_challenge() {
                    self.transmit_to_node(&bytes);
                }
            }
            _ => {}
        }
    }

    fn step(&mut self) -> Result<(), Breach> {
        self.truth += u128::from(self.random.below(60_000_000));
        self.disturb();
        for frame in take_due(&mut self.to_node, self.truth, &mut self.random) {
            self.deliver_to_node(&frame);
            self.check()?;
        }
        for frame in take_due(&mut self.to_keyholder, self.truth, &mut self.random) {
            self.deliver_to_keyholder(&frame);
        }
        self.run_chores();
        self.check()?;
        // Timers are late now and then; the keyring's own deadline does not wait for them.
        if !self.random.chance(20) {
            let now = self.now_node();
            let effects = self.lease.on_time(now);
            let last = self.nodes.len() - 1;
            self.perform(last, effects);
            let last = self.nodes.len() - 1;
            let effects = self.nodes[last].on_time(&mut self.lease, now);
            self.perform(last, effects);
            if self.keyholder.on_time(self.now_keyholder()).is_err() {
                self.connect();
            }
        }
        self.check()
    }

    /// Each key's last usable instant, mapped to the keyholder's clock, lies within the keyholder's record.
    fn check(&self) -> Result<(), Breach> {
        let Some(deadline) = self.deadline else { return Ok(()) };
        let last_use = self.keyholder_clock.at(self.node_clock.truth(deadline));
        for (volume, grant) in &self.keys {
            let recorded = self.records[grant];
            if last_use > recorded {
                return Err(Breach(format!(
                    "{volume} by {grant}: usable until {last_use:?}, recorded {recorded:?}"
                )));
            }
        }
        Ok(())
    }
}

/// What has arrived, in an order of the network's liking.
fn take_due(queue: &mut Vec<(u128, Vec<u8>)>, truth: u128, random: &mut Random) -> Vec<Vec<u8>> {
    let (mut due, later): (Vec<_>, Vec<_>) =
        std::mem::take(queue).into_iter().partition(|(at, _)| *at <= truth);
    *queue = later;
    due.sort_by_key(|(at, _)| *at);
    if due.len() > 1 && random.chance(20) {
        due.reverse();
    }
    due.into_iter().map(|(_, frame)| frame).collect()
}

fn run(seed: u64, shell: Shell, tally: &mut Tally) -> Result<(), Breach> {
    let mut world = World::new(seed, shell);
    let result = (0..1_500).try_for_each(|_| world.step());
    tally.admitted += world.tally.admitted;
    tally.renewed += world.tally.renewed;
    tally.expired += world.tally.expired;
    tally.refused += world.tally.refused;
    tally.replays += world.tally.replays;
    tally.stale += world.tally.stale;
    result
}

fn soak_time() -> Option<Duration> {
    let seconds = std::env::var("NIGHTLATCH_SOAK_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("NIGHTLATCH_SOAK_SECONDS is a number of seconds")))
}

/// The seed of one run, `NIGHTLATCH_SEED`, to replay it alone.
fn only_seed() -> Option<u64> {
    let seed = std::env::var("NIGHTLATCH_SEED").ok()?;
    Some(seed.parse().expect("NIGHTLATCH_SEED is a number"))
}

#[test]
fn no_key_outlives_the_expiry_on_record() {
    let mut tally = Tally::default();
    if let Some(seed) = only_seed() {
        run(seed, Shell::Sound, &mut tally).unwrap_or_else(|breach| panic!("seed {seed}: {}", breach.0));
        return;
    }
    let begun = std::time::Instant::now();
    let soak = soak_time();
    let mut seed = 0;
    while soak.map_or(seed < 60, |time| begun.elapsed() < time) {
        run(seed, Shell::Sound, &mut tally).unwrap_or_else(|breach| panic!("seed {seed}: {}", breach.0));
        seed += 1;
    }
    println!("{seed} runs: {tally:?}");
    // A simulation in which nothing happens proves nothing.
    let Tally { admitted, renewed, expired, refused, replays, stale } = tally;
    let least = [admitted, renewed, expired, refused, replays, stale].into_iter().min();
    assert!(least >= Some(50), "{tally:?}");
}

#[test]
fn a_shell_that_counts_from_arrival_is_found() {
    let mut tally = Tally::default();
    let found = (0..20).any(|seed| run(seed, Shell::CountsFromArrival, &mut tally).is_err());
    assert!(found, "the planted breach was not found");
}
