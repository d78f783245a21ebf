//! Two keyholders, one store, two nodes and the network between them, all at random: cut off, paused, killed, answers lost, messages
//! late. An eye that sees everything checks after each step that no two nodes hold one volume's key, and that no lease outlives what
//! is recorded of it.

use harness::random::{Random, SEED_VARIABLE};

use super::cluster::{AHEAD_MS, Member, two};
use super::*;
use crate::cluster::kv::simulated::{SimulatedStore, Weather};
use crate::cluster::wire::{self, LeaseValue, Named};
use lease::limits::lease_with_drift_ms;
use lease::message::{Receipt, StateVerdict};
use units::{Fence, PoolId};

const SEEDS: u64 = 40;
const STEPS: usize = 400;
const MS: u64 = 1_000_000;

/// What a keyholder sent.
#[derive(Clone, Debug)]
enum Message {
    Grant { volume: VolumeId, grant: GrantId, fence: Fence, lease_ms: u64 },
    Renewal { grants: Vec<GrantId>, lease_ms: u64 },
}

#[derive(Debug)]
struct Node {
    id: NodeId,
    /// The keyholder at the other end of the newest session.
    session: Option<usize>,
    /// On its way in that session, with the moment of the challenge that it answers.
    incoming: Vec<(u64, Message)>,
    held: BTreeMap<VolumeId, (GrantId, u64)>,
    fences: BTreeMap<VolumeId, Fence>,
}

struct World {
    store: SimulatedStore,
    members: [Member; 2],
    shares: Vec<SealedShare>,
    nodes: [Node; 2],
    now: u64,
    random: Random,
    seen_revision: u64,
    /// Until when the store's records let each grant be held, as somebody knows who wrote them all down.
    recorded: BTreeMap<(VolumeId, GrantId), u64>,
    /// How often each thing happened that the simulation is about.
    grants: u32,
    moves: u32,
    renewals: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let store = SimulatedStore::default();
        clock::simulated::set(BootInstant(1_000 * MS));
        let (members, shares) = two(&store);
        let node = |number| Node {
            id: NodeId([number; 16]),
            session: None,
            incoming: Vec::new(),
            held: BTreeMap::new(),
            fences: BTreeMap::new(),
        };
        Self {
            store,
            members,
            shares,
            nodes: [node(1), node(2)],
            now: 1_000 * MS,
            random: Random::new(seed),
            seen_revision: 0,
            recorded: BTreeMap::new(),
            grants: 0,
            moves: 0,
            renewals: 0,
        }
    }

    /// The keyholder's own clock: of its own beginning, and as fast as quartz lets it be.
    fn turn_to(&mut self, of: usize) {
        let own = match of {
            0 => self.now + self.now / 2_500,
            _ => 77_000_000 * MS + self.now - self.now / 2_500,
        };
        clock::simulated::set(BootInstant(own));
    }

    fn step(&mut self) {
        let (of, at) = (self.random.below(2) as usize, self.random.below(2) as usize);
        self.turn_to(of);
        match self.random.below(24) {
            0..=3 => drop(self.members[of].look()),
            4 | 5 => self.connect(of, at),
            6..=8 | 20..=22 => self.challenge(at),
            9..=12 | 23 => self.deliver(at),
            13 => self.promote(of),
            14 => self.nodes[at].session = None,
            15 => {
                let choices = [Weather::Fair, Weather::Fair, Weather::CutOff, Weather::AnswersLost];
                self.members[of].kv.set_weather(*self.random.choose(&choices));
            }
            16 if self.random.once_in(4) => self.crash(of),
            17 if self.random.once_in(3) => {
                // The node is started again.
                let node = &mut self.nodes[at];
                node.session = None;
                node.incoming.clear();
                node.held.clear();
            }
            _ => self.now += self.random.between(1, 2_500) * MS,
        }
        self.write_down();
        self.check();
    }

    fn crash(&mut self, of: usize) {
        self.members[of].crash();
        unseal(&mut self.members[of].book, &self.shares);
    }

    /// A new session: the one before is void, with all that was on its way in it.
    fn connect(&mut self, of: usize, at: usize) {
        let now = self.now;
        let node = &mut self.nodes[at];
        node.session = Some(of);
        node.incoming.clear();
        node.held.retain(|_, (_, deadline)| *deadline > now);
        let held = node.held.iter().map(|(volume, (grant, _))| (*volume, *grant)).collect();
        let Ok(revoke) = self.members[of].book.reconcile(node.id, &held) else { return };
        for (volume, _) in revoke {
            node.held.remove(&volume);
        }
        self.push(of, at);
    }

    fn push(&mut self, of: usize, at: usize) {
        let node = &mut self.nodes[at];
        let Ok(planned) = self.members[of].book.plan_push(node.id) else {
            node.session = None;
            return;
        };
        for PlannedGrant { order, .. } in planned {
            let (volume, grant, fence) = (order.volume, order.grant, order.fence);
            node.incoming.push((self.now, Message::Grant { volume, grant, fence, lease_ms: order.lease_ms }));
        }
    }

    fn challenge(&mut self, at: usize) {
        let Some(of) = self.nodes[at].session else { return };
        self.turn_to(of);
        let node = &mut self.nodes[at];
        match self.members[of].book.renew(node.id, &[]) {
            Ok((lease_ms, grants)) => node.incoming.push((self.now, Message::Renewal { grants, lease_ms })),
            Err(_) => {
                node.session = None;
                self.members[of].book.on_disconnected(node.id, None);
            }
        }
        if self.random.once_in(2) && self.nodes[at].session.is_some() {
            self.push(of, at);
        }
    }

    fn deliver(&mut self, at: usize) {
        let now = self.now;
        let node = &mut self.nodes[at];
        let Some(of) = node.session.filter(|_| !node.incoming.is_empty()) else { return };
        let (challenged, message) = node.incoming.remove(0);
        node.held.retain(|_, (_, deadline)| *deadline > now);
        match message {
            Message::Renewal { grants, lease_ms } => {
                let deadline = challenged + lease_ms * MS;
                for (volume, (grant, until)) in &mut node.held {
                    if grants.contains(grant) {
                        *until = deadline.max(*until);
                        self.renewals += 1;
                        assert!(self.recorded[&(*volume, *grant)] >= *until, "a renewal outlives its record");
                    }
                }
            }
            Message::Grant { volume, grant, fence, lease_ms } => {
                let deadline = challenged + lease_ms * MS;
                let highest = node.fences.get(&volume).copied().unwrap_or_default();
                if deadline <= now || fence <= highest || node.held.contains_key(&volume) {
                    return;
                }
                assert!(self.recorded[&(volume, grant)] >= deadline, "a grant outlives its record");
                node.fences.insert(volume, fence);
                node.held.insert(volume, (grant, deadline));
                self.grants += 1;
                if self.random.once_in(3) {
                    return;
                }
                let receipt = Receipt {
                    grant,
                    volume,
                    fence,
                    pool: PoolId([7; 16]),
                    verdict: StateVerdict::First,
                    states: Vec::new(),
                };
                let id = node.id;
                self.turn_to(of);
                drop(self.members[of].book.on_receipt(id, &receipt));
            }
        }
    }

    fn promote(&mut self, of: usize) {
        let label = *self.random.choose(&["db-1", "db-2"]);
        let book = &mut self.members[of].book;
        let Ok((volume, node)) = book.find_volume(label) else { return };
        let to = if node == self.nodes[0].id { self.nodes[1].id } else { self.nodes[0].id };
        self.moves += u32::from(book.promoted(volume, to, (None, 1 << 30), "test").is_ok());
    }

    /// What was written to the store in this step was written now.
    fn write_down(&mut self) {
        let (items, revision) = self.store.since(self.seen_revision);
        self.seen_revision = revision;
        for item in items {
            let Named::Lease(volume) = Named::of(&item.name) else { continue };
            let value: LeaseValue = wire::decode(&item.value).unwrap();
            let Some(left_ms) = value.left_ms else { continue };
            let until = self.now + lease_with_drift_ms(left_ms) * MS;
            let known = self.recorded.entry((volume, value.grant)).or_insert(until);
            *known = until.max(*known);
        }
    }

    fn check(&self) {
        let mut holders: BTreeMap<VolumeId, Vec<NodeId>> = BTreeMap::new();
        for node in &self.nodes {
            let held = node.held.iter().filter(|(_, (_, deadline))| *deadline > self.now);
            held.for_each(|(volume, _)| holders.entry(*volume).or_default().push(node.id));
        }
        for (volume, nodes) in holders {
            assert!(nodes.len() < 2, "{volume} is held by {nodes:?} at {}", self.now);
        }
    }

    /// Everything works again: every volume comes back.
    fn heal(&mut self) {
        for of in 0..2 {
            self.members[of].kv.set_weather(Weather::Fair);
        }
        self.now += (AHEAD_MS + 3 * 5_000) * MS;
        for round in 0..6 {
            for of in 0..2 {
                self.turn_to(of);
                drop(self.members[of].look());
            }
            for at in 0..2 {
                self.turn_to(at);
                self.connect(at, at);
                self.write_down();
                while !self.nodes[at].incoming.is_empty() {
                    self.deliver(at);
                    self.check();
                }
            }
            self.now += (round + 1) * 1_000 * MS;
        }
        let held: usize = self.nodes.iter().map(|node| node.held.len()).sum();
        assert_eq!(held, 2, "not everything came back");
    }
}

#[test]
fn no_two_nodes_hold_a_key_and_no_lease_outlives_its_record_whatever_happens_to_keyholders_and_store() {
    let seeds = match std::env::var(SEED_VARIABLE) {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..SEEDS).collect(),
    };
    let (mut grants, mut moves, mut renewals) = (0, 0, 0);
    for seed in seeds {
        let failed = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.heal();
            (world.grants, world.moves, world.renewals)
        });
        let counts = failed.unwrap_or_else(|panic| {
            eprintln!("replay with {}={seed}", SEED_VARIABLE);
            std::panic::resume_unwind(panic)
        });
        grants += counts.0;
        moves += counts.1;
        renewals += counts.2;
    }
    // A simulation in which nothing happens proves nothing.
    assert!(
        grants > 100 && moves > 100 && renewals > 100,
        "{grants} grants, {moves} moves, {renewals} renewals"
    );
}
