//! Two keyholders, one store, two nodes and the network between them, all at random: cut off, paused, killed, answers lost, messages
//! late, what a node says as well as what it is told. An eye that sees everything checks after each step that no two nodes hold one volume's key, and that no lease outlives what
//! is recorded of it.

use std::collections::VecDeque;

use harness::random::{Random, SEED_VARIABLE};

use super::cluster::{AHEAD_MS, Member, two};
use super::*;
use crate::cluster::kv::simulated::{SimulatedStore, Weather};
use crate::cluster::wire::{self, LeaseValue, Named};
use lease::GrantRefusal;
use lease::keyholder::GrantOrder;
use lease::limits::lease_with_drift_ms;
use lease::message::{
    GrantRefused, Receipt, Scope, StateVerdict, WipeCause, WipeReceipt, WipeRecord, WipeStages,
};
use units::{Fence, PoolId};

const SEEDS: u64 = 40;
const STEPS: usize = 500;
const MS: u64 = 1_000_000;

/// What a keyholder sent, and the moment of the challenge that it answers.
#[derive(Clone, Debug)]
enum Message {
    Grant { order: Box<GrantOrder>, challenged: u64 },
    Renewal { grants: Vec<GrantId>, lease_ms: u64, challenged: u64 },
    Revoke { volume: VolumeId },
}

/// What a node sent.
#[derive(Clone, Debug)]
enum Word {
    Evidence { held: BTreeMap<VolumeId, GrantId>, sent: u64 },
    Challenge { sent: u64 },
    Receipt(Receipt),
    Refused(GrantRefused),
    Wiped(WipeReceipt),
    Superseded,
}

/// One keyholder's session with one node, as that keyholder has it. What was sent in it arrives in order, and late.
#[derive(Debug)]
struct Session {
    opened: BootInstant,
    judged: bool,
    /// When the last challenge was sent that has arrived, and when it arrived by the keyholder's clock.
    latest: u64,
    arrived: BootInstant,
    planned: VecDeque<GrantOrder>,
    to_node: VecDeque<Message>,
    from_node: VecDeque<Word>,
}

#[derive(Debug)]
struct Node {
    id: NodeId,
    /// The keyholder at the other end of the newest session.
    current: Option<usize>,
    held: BTreeMap<VolumeId, (GrantId, u64)>,
    fences: BTreeMap<VolumeId, Fence>,
    wipes: u64,
}

struct World {
    store: SimulatedStore,
    members: [Member; 2],
    shares: Vec<SealedShare>,
    nodes: [Node; 2],
    /// By keyholder, then by node.
    sessions: [[Option<Session>; 2]; 2],
    now: u64,
    random: Random,
    seen_revision: u64,
    /// Until when the store's records let each grant be held, as somebody knows who wrote them all down.
    recorded: BTreeMap<(VolumeId, GrantId), u64>,
    counts: Counts,
}

/// How often each thing happened that the simulation is about.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    grants: u32,
    moves: u32,
    renewals: u32,
    late_evidence: u32,
    unlatched: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let store = SimulatedStore::default();
        clock::simulated::set(BootInstant(1_000 * MS));
        let (members, shares) = two(&store);
        let node = |number| Node {
            id: NodeId([number; 16]),
            current: None,
            held: BTreeMap::new(),
            fences: BTreeMap::new(),
            wipes: 0,
        };
        Self {
            store,
            members,
            shares,
            nodes: [node(1), node(2)],
            sessions: Default::default(),
            now: 1_000 * MS,
            random: Random::new(seed),
            seen_revision: 0,
            recorded: BTreeMap::new(),
            counts: Counts::default(),
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
        match self.random.below(56) {
            0..=3 => self.look(of),
            4 | 5 => self.connect(of, at),
            6..=8 => self.challenge(at),
            9..=44 => self.carry(of, at),
            45 => self.promote(of),
            46 => self.revoke(of),
            47 | 48 => self.unlatch(of),
            49 => self.end(of, at),
            50 => {
                let choices = [Weather::Fair, Weather::Fair, Weather::CutOff, Weather::AnswersLost];
                self.members[of].kv.set_weather(*self.random.choose(&choices));
            }
            54 => self.overtake(of, at),
            51 if self.random.once_in(4) => self.crash(of),
            52 if self.random.once_in(3) => {
                // The node is started again.
                self.nodes[at].current = None;
                self.nodes[at].held.clear();
            }
            53 if self.random.once_in(3) => self.wipe(at),
            _ => self.now += self.random.between(1, 1_500) * MS,
        }
        self.write_down();
        self.check();
    }

    /// Something arrives, mostly in the newest session, and in the others late.
    fn carry(&mut self, of: usize, at: usize) {
        let newest = self.nodes[at].current.filter(|_| !self.random.once_in(4));
        let of = newest.unwrap_or(of);
        self.turn_to(of);
        for _ in 0..self.random.between(2, 5) {
            match self.random.below(4) {
                0 | 1 => self.hear(of, at),
                2 => self.sign(of, at),
                _ => self.deliver(of, at),
            }
            self.write_down();
            self.check();
        }
    }

    /// What a node said in a session here arrives only after another keyholder has granted it something, and that was seen.
    fn overtake(&mut self, of: usize, at: usize) {
        let (other, elsewhere) = (1 - of, 1 - at);
        let session = |world: &mut Self, of: usize, at: usize| {
            world.turn_to(of);
            world.hear(of, at);
            for _ in 0..2 {
                world.sign(of, at);
                world.write_down();
                world.deliver(of, at);
            }
        };
        self.connect(of, at);
        self.turn_to(other);
        self.look(other);
        self.connect(other, at);
        session(self, other, at);
        self.now += MS;
        self.turn_to(of);
        self.look(of);
        self.hear(of, at);
        self.promote(of);
        self.connect(of, elsewhere);
        session(self, of, elsewhere);
    }

    fn crash(&mut self, of: usize) {
        self.members[of].crash();
        unseal(&mut self.members[of].book, &self.shares);
        self.sessions[of] = Default::default();
    }

    fn look(&mut self, of: usize) {
        let Ok(news) = self.members[of].look() else { return };
        for at in 0..2 {
            if news.ledger && self.is_judged(of, at) {
                if let Judgement::Serve { revoke } = self.members[of].book.latched_since(self.nodes[at].id) {
                    revoke.into_iter().for_each(|(volume, _)| self.tell(of, at, Message::Revoke { volume }));
                }
                self.push(of, at);
            }
        }
    }

    fn is_judged(&self, of: usize, at: usize) -> bool {
        self.sessions[of][at].as_ref().is_some_and(|session| session.judged)
    }

    fn tell(&mut self, of: usize, at: usize, message: Message) {
        if let Some(session) = &mut self.sessions[of][at] {
            session.to_node.push_back(message);
        }
    }

    /// A node says it in its newest session.
    fn say(&mut self, at: usize, word: Word) {
        if let Some(of) = self.nodes[at].current
            && let Some(session) = &mut self.sessions[of][at]
        {
            session.from_node.push_back(word);
        }
    }

    fn end(&mut self, of: usize, at: usize) {
        if self.sessions[of][at].take().is_some() {
            self.members[of].book.on_disconnected(self.nodes[at].id, None);
        }
    }

    /// A new session: the one before is void, with all that is on its way to the node in it. What the node said is not.
    fn connect(&mut self, of: usize, at: usize) {
        self.end(of, at);
        let now = self.now;
        let node = &mut self.nodes[at];
        node.current = Some(of);
        node.held.retain(|_, (_, deadline)| *deadline > now);
        let held = node.held.iter().map(|(volume, (grant, _))| (*volume, *grant)).collect();
        self.sessions[of][at] = Some(Session {
            opened: clock::now(),
            judged: false,
            latest: now,
            arrived: clock::now(),
            planned: VecDeque::new(),
            to_node: VecDeque::new(),
            from_node: VecDeque::from([Word::Evidence { held, sent: now }]),
        });
    }

    fn challenge(&mut self, at: usize) {
        let sent = self.now;
        self.say(at, Word::Challenge { sent });
    }

    /// The next word of the node reaches the keyholder.
    fn hear(&mut self, of: usize, at: usize) {
        let Some(session) = &mut self.sessions[of][at] else { return };
        let Some(word) = session.from_node.pop_front() else { return };
        let node = self.nodes[at].id;
        let book = &mut self.members[of].book;
        match word {
            Word::Evidence { held, sent } => {
                self.counts.late_evidence += u32::from(sent < self.now);
                if book.was_granted_since(node, session.opened) {
                    return self.end(of, at);
                }
                let Ok(revoke) = book.reconcile(node, &held) else { return self.end(of, at) };
                (session.judged, session.arrived) = (true, clock::now());
                revoke.into_iter().for_each(|(volume, _)| self.tell(of, at, Message::Revoke { volume }));
                self.push(of, at);
            }
            Word::Challenge { sent } => {
                (session.latest, session.arrived) = (sent, clock::now());
                if !session.judged {
                    return;
                }
                let Ok(answer) = book.renew(node, &[]) else { return self.end(of, at) };
                if let Some((lease_ms, grants)) = answer {
                    self.tell(of, at, Message::Renewal { grants, lease_ms, challenged: sent });
                }
                if self.random.once_in(2) {
                    self.push(of, at);
                }
            }
            Word::Receipt(receipt) => drop(book.on_receipt(node, &receipt)),
            Word::Refused(refused) => drop(book.on_refused(node, &refused)),
            Word::Wiped(receipt) => {
                drop(book.on_wiped(node, &receipt));
                if receipt.scope == Scope::All {
                    return self.end(of, at);
                }
                self.push(of, at);
            }
            Word::Superseded => self.end(of, at),
        }
    }

    fn push(&mut self, of: usize, at: usize) {
        let Some(session) = self.sessions[of][at].as_mut().filter(|session| session.judged) else { return };
        match self.members[of].book.plan_push(self.nodes[at].id) {
            Ok(planned) => session.planned.extend(planned.into_iter().map(|planned| planned.order)),
            Err(_) => self.end(of, at),
        }
    }

    /// The next planned grant leaves.
    fn sign(&mut self, of: usize, at: usize) {
        let Some(session) = &mut self.sessions[of][at] else { return };
        let Some(order) = session.planned.pop_front() else { return };
        let book = &mut self.members[of].book;
        if book.may_go_out(self.nodes[at].id, &order) && book.is_recorded(&order, session.arrived) {
            let (order, challenged) = (Box::new(order), session.latest);
            session.to_node.push_back(Message::Grant { order, challenged });
        } else {
            book.withdraw(&order);
        }
    }

    /// The next message of the keyholder reaches the node.
    fn deliver(&mut self, of: usize, at: usize) {
        let now = self.now;
        let Some(message) = self.sessions[of][at].as_mut().and_then(|session| session.to_node.pop_front())
        else {
            return;
        };
        let node = &mut self.nodes[at];
        if node.current != Some(of) {
            if let Some(session) = &mut self.sessions[of][at] {
                session.to_node.clear();
                session.from_node.push_back(Word::Superseded);
            }
            return;
        }
        node.held.retain(|_, (_, deadline)| *deadline > now);
        match message {
            Message::Renewal { grants, lease_ms, challenged } => {
                let deadline = challenged + lease_ms * MS;
                let mut dropped = Vec::new();
                for (volume, (grant, until)) in &mut node.held {
                    if grants.contains(grant) {
                        *until = deadline.max(*until);
                        self.counts.renewals += 1;
                        assert!(self.recorded[&(*volume, *grant)] >= *until, "a renewal outlives its record");
                    } else {
                        dropped.push(*volume);
                    }
                }
                dropped.into_iter().for_each(|volume| self.drop_key(at, volume));
            }
            Message::Grant { order, challenged } => self.admit(at, &order, challenged),
            Message::Revoke { volume } => self.drop_key(at, volume),
        }
    }

    fn admit(&mut self, at: usize, order: &GrantOrder, challenged: u64) {
        let GrantOrder { volume, grant, fence, .. } = *order;
        let node = &mut self.nodes[at];
        let deadline = challenged + order.lease_ms * MS;
        let highest = node.fences.get(&volume).copied().unwrap_or_default();
        let refusal = match node.held.get(&volume) {
            Some((by, _)) => Some(GrantRefusal::AlreadyHeld { by: *by }),
            None if fence <= highest => Some(GrantRefusal::OldFence { offered: fence, highest }),
            None if deadline <= self.now => Some(GrantRefusal::Expired),
            None => None,
        };
        if let Some(reason) = refusal {
            return self.say(at, Word::Refused(GrantRefused { grant, volume, reason }));
        }
        assert!(self.recorded[&(volume, grant)] >= deadline, "a grant outlives its record");
        node.fences.insert(volume, fence);
        node.held.insert(volume, (grant, deadline));
        self.counts.grants += 1;
        let (pool, verdict) = (PoolId([7; 16]), StateVerdict::First);
        self.say(at, Word::Receipt(Receipt { grant, volume, fence, pool, verdict, states: Vec::new() }));
    }

    /// A revocation is answered in any case.
    fn drop_key(&mut self, at: usize, volume: VolumeId) {
        let ended = self.nodes[at].held.remove(&volume).map(|(grant, _)| grant);
        self.say_wiped(at, Scope::Volume(volume), ended.into_iter().collect());
    }

    fn say_wiped(&mut self, at: usize, scope: Scope, grants: Vec<GrantId>) {
        let node = &mut self.nodes[at];
        node.wipes += 1;
        let cause = WipeCause::PowerLoss;
        let record = WipeRecord { cause, at: BootInstant(node.wipes), generation: node.wipes };
        let (stages, more, states) = (WipeStages::keys(1), false, Vec::new());
        self.say(at, Word::Wiped(WipeReceipt { scope, record, stages, more, grants, states }));
    }

    /// Everything goes, and the session with it.
    fn wipe(&mut self, at: usize) {
        let ended = std::mem::take(&mut self.nodes[at].held);
        self.say_wiped(at, Scope::All, ended.into_values().map(|(grant, _)| grant).collect());
        self.nodes[at].current = None;
    }

    fn revoke(&mut self, of: usize) {
        let label = *self.random.choose(&["db-1", "db-2"]);
        let book = &mut self.members[of].book;
        let Ok((volume, node)) = book.find_volume(label) else { return };
        let target = Target::Volume(label.to_owned());
        if book.latch(&target, "test").is_ok() {
            drop(book.write_latches("revoke", &target, "test"));
            let at = usize::from(node != self.nodes[0].id);
            if self.is_judged(of, at) {
                self.tell(of, at, Message::Revoke { volume });
            }
        }
    }

    fn unlatch(&mut self, of: usize) {
        for label in ["db-1", "db-2"] {
            let book = &mut self.members[of].book;
            let Some(volume) = book.registry().ok().and_then(|registry| registry.volume_labelled(label))
            else {
                continue;
            };
            let (node, is_latched) = (volume.node, volume.latch.is_some());
            if is_latched && book.unlatch(&Target::Volume(label.to_owned()), "test").is_ok() {
                self.counts.unlatched += 1;
                self.push(of, usize::from(node != self.nodes[0].id));
            }
        }
    }

    fn promote(&mut self, of: usize) {
        let label = *self.random.choose(&["db-1", "db-2"]);
        let book = &mut self.members[of].book;
        let Ok((volume, node)) = book.find_volume(label) else { return };
        let to = if node == self.nodes[0].id { self.nodes[1].id } else { self.nodes[0].id };
        self.counts.moves += u32::from(book.promoted(volume, to, (None, 1 << 30), "test").is_ok());
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
        self.sessions = Default::default();
        // What one of them has latched and could not write is in the ledger, and lifted by somebody who has seen it.
        for of in [0, 1, 0] {
            self.turn_to(of);
            (0..4).for_each(|_| drop(self.members[of].look()));
            drop(self.members[of].book.write_latches("revoke", &Target::All, "test"));
        }
        self.unlatch(0);
        for round in 0..6 {
            for of in 0..2 {
                self.turn_to(of);
                drop(self.members[of].look());
            }
            for at in 0..2 {
                self.turn_to(at);
                self.connect(at, at);
                while let Some(session) = &self.sessions[at][at] {
                    if session.from_node.is_empty()
                        && session.planned.is_empty()
                        && session.to_node.is_empty()
                    {
                        break;
                    }
                    self.hear(at, at);
                    self.sign(at, at);
                    self.write_down();
                    self.deliver(at, at);
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
    let mut total = Counts::default();
    for seed in seeds {
        let failed = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.heal();
            world.counts
        });
        let counts = failed.unwrap_or_else(|panic| {
            eprintln!("replay with {}={seed}", SEED_VARIABLE);
            std::panic::resume_unwind(panic)
        });
        total.grants += counts.grants;
        total.moves += counts.moves;
        total.renewals += counts.renewals;
        total.late_evidence += counts.late_evidence;
        total.unlatched += counts.unlatched;
    }
    // A simulation in which nothing happens proves nothing.
    let Counts { grants, moves, renewals, late_evidence, unlatched } = total;
    let least = [grants, moves, renewals, late_evidence, unlatched].into_iter().min().unwrap();
    assert!(least > 100, "{total:?}");
}
