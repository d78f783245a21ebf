//! Two keyholders, one store, two nodes and the network between them, all at random: cut off, paused, killed, answers lost, messages
//! late, what a node says as well as what it is told. Keys are rotated meanwhile, copies follow, and nodes tell what lies under which
//! epoch. An eye that sees everything checks after each step that no two nodes hold one volume's key, that no lease outlives what
//! is recorded of it, and that no secret is destroyed under which anything lies.

use std::collections::{BTreeSet, VecDeque};

use harness::random::{Random, SEED_VARIABLE};

use super::cluster::{AHEAD_MS, Member, two};
use super::*;
use crate::cluster::kv::simulated::{SimulatedStore, Weather};
use crate::cluster::wire::{self, LeaseValue, Named};
use lease::GrantRefusal;
use lease::keyholder::{EpochOrder, GrantOrder};
use lease::limits::lease_with_drift_ms;
use lease::message::{
    EpochTaken, EpochsInUse, GrantRefused, Receipt, Scope, StateVerdict, WipeCause, WipeReceipt, WipeRecord,
    WipeStages,
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
    Epoch(EpochOrder),
    Revoke { volume: VolumeId },
}

/// What a node sent.
#[derive(Clone, Debug)]
enum Word {
    Evidence { held: BTreeMap<VolumeId, GrantId>, written: BTreeMap<VolumeId, VolumeEpoch>, sent: u64 },
    Challenge { sent: u64, told: Vec<EpochsInUse> },
    Receipt(Receipt),
    Taken(EpochTaken),
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

/// What a node has of a volume, in its own right or as a copy.
#[derive(Clone, Debug)]
struct Disk {
    is_replica: bool,
    /// It has a state in common with what the other node writes, which keeps that.
    follows: bool,
    written: VolumeEpoch,
    in_use: BTreeSet<VolumeEpoch>,
}

impl Disk {
    fn new(is_replica: bool) -> Self {
        let written = VolumeEpoch(1);
        Self { is_replica, follows: is_replica, written, in_use: BTreeSet::from([written]) }
    }

    fn begin(&mut self, epoch: VolumeEpoch) {
        self.written = epoch;
        self.in_use.insert(epoch);
    }
}

#[derive(Debug)]
struct Node {
    id: NodeId,
    /// The keyholder at the other end of the newest session.
    current: Option<usize>,
    held: BTreeMap<VolumeId, (GrantId, u64)>,
    fences: BTreeMap<VolumeId, Fence>,
    disks: BTreeMap<VolumeId, Disk>,
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
    /// Older epochs that each keyholder knew of after the last step.
    older: [BTreeSet<(VolumeId, VolumeEpoch)>; 2],
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
    rotations: u32,
    destroyed: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let store = SimulatedStore::default();
        clock::simulated::set(BootInstant(1_000 * MS));
        let (mut members, shares) = two(&store);
        let volumes = ["db-1", "db-2"].map(|label| members[0].book.find_volume(label).unwrap().0);
        let node = |number: u8| Node {
            id: NodeId([number; 16]),
            current: None,
            held: BTreeMap::new(),
            fences: BTreeMap::new(),
            disks: volumes.into_iter().map(|volume| (volume, Disk::new(number == 2))).collect(),
            wipes: 0,
        };
        // The copies are known: one that no keyholder has ever heard of speaks for nobody.
        let copies = volumes.map(|volume| EpochsInUse { volume, epochs: vec![VolumeEpoch(1)] });
        members[0].book.note_epochs(NodeId([2; 16]), &copies).unwrap();
        members[1].look().unwrap();
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
            older: Default::default(),
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
        match self.random.below(64) {
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
            56 | 57 => self.rotate(of),
            58..=60 => self.follow(at),
            61..=63 => self.walk(at),
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
        let written = node.disks.iter().map(|(volume, disk)| (*volume, disk.written)).collect();
        self.sessions[of][at] = Some(Session {
            opened: clock::now(),
            judged: false,
            latest: now,
            arrived: clock::now(),
            planned: VecDeque::new(),
            to_node: VecDeque::new(),
            from_node: VecDeque::from([Word::Evidence { held, written, sent: now }]),
        });
    }

    fn challenge(&mut self, at: usize) {
        let sent = self.now;
        let told = self.nodes[at].disks.iter().map(|(volume, disk)| EpochsInUse {
            volume: *volume,
            epochs: disk.in_use.iter().copied().collect(),
        });
        let told = told.collect();
        self.say(at, Word::Challenge { sent, told });
    }

    /// The next word of the node reaches the keyholder.
    fn hear(&mut self, of: usize, at: usize) {
        let Some(session) = &mut self.sessions[of][at] else { return };
        let Some(word) = session.from_node.pop_front() else { return };
        let node = self.nodes[at].id;
        let book = &mut self.members[of].book;
        match word {
            Word::Evidence { held, written, sent } => {
                self.counts.late_evidence += u32::from(sent < self.now);
                if book.was_granted_since(node, session.opened) {
                    return self.end(of, at);
                }
                let present = |(volume, epoch): (VolumeId, VolumeEpoch)| (volume, present(volume, epoch));
                let now = book.node_now(node);
                (now.present, now.copies_noted) = (written.into_iter().map(present).collect(), false);
                let Ok(revoke) = book.reconcile(node, &held) else { return self.end(of, at) };
                drop(book.note_copies(node));
                (session.judged, session.arrived) = (true, clock::now());
                revoke.into_iter().for_each(|(volume, _)| self.tell(of, at, Message::Revoke { volume }));
                self.push(of, at);
            }
            Word::Challenge { sent, told } => {
                (session.latest, session.arrived) = (sent, clock::now());
                if !session.judged {
                    return;
                }
                let Ok(answer) = book.renew(node, &[]) else { return self.end(of, at) };
                if let Some((lease_ms, grants)) = answer {
                    self.tell(of, at, Message::Renewal { grants, lease_ms, challenged: sent });
                }
                let book = &mut self.members[of].book;
                let noted = book.note_copies(node).and_then(|()| book.note_epochs(node, &told));
                drop(noted.and_then(|()| book.retire_epochs_if_due()));
                self.give_epochs(of, at);
                if self.random.once_in(2) {
                    self.push(of, at);
                }
            }
            Word::Receipt(receipt) => drop(book.on_receipt(node, &receipt)),
            Word::Taken(taken) => drop(book.on_epoch_taken(node, &taken)),
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
        if book.may_go_out(self.nodes[at].id, &order)
            && book.is_recorded(&order, session.arrived)
            && book.secrets_for(&order).is_some()
        {
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
            Message::Epoch(order) => self.take_epoch(at, order),
            Message::Revoke { volume } => self.drop_key(at, volume),
        }
    }

    fn give_epochs(&mut self, of: usize, at: usize) {
        if self.is_judged(of, at) {
            let planned = self.members[of].book.plan_epochs(self.nodes[at].id).unwrap_or_default();
            planned.into_iter().for_each(|planned| self.tell(of, at, Message::Epoch(planned.order)));
        }
    }

    fn take_epoch(&mut self, at: usize, order: EpochOrder) {
        let EpochOrder { grant, volume, epoch, .. } = order;
        let node = &mut self.nodes[at];
        let is_held = node.held.get(&volume).is_some_and(|(by, _)| *by == grant);
        let disk = node.disks.get_mut(&volume).unwrap();
        let result = match (is_held, epoch >= disk.written) {
            (false, _) => Err(GrantRefusal::NotHeld),
            (true, false) => Err(GrantRefusal::WrongDomain),
            (true, true) => Ok(disk.begin(epoch)),
        };
        self.say(at, Word::Taken(EpochTaken { grant, volume, epoch, result }));
    }

    fn rotate(&mut self, of: usize) {
        let label = *self.random.choose(&["db-1", "db-2"]);
        let before = self.members[of].book.volume_by_label(label).ok().map(|entry| entry.epoch);
        if self.members[of].book.begin_rotation(label, "test").is_ok() {
            let after = self.members[of].book.volume_by_label(label).ok().map(|entry| entry.epoch);
            self.counts.rotations += u32::from(before < after);
        }
        for at in 0..2 {
            self.give_epochs(of, at);
        }
    }

    /// A node that holds a volume's key seals some of it anew. What its copy on the other node has in common with it stays.
    fn walk(&mut self, at: usize) {
        for volume in self.nodes[at].held.keys().copied().collect::<Vec<_>>() {
            let copy = &self.nodes[1 - at].disks[&volume];
            let kept = if copy.follows { copy.in_use.clone() } else { BTreeSet::new() };
            let disk = self.nodes[at].disks.get_mut(&volume).unwrap();
            disk.in_use.retain(|epoch| *epoch == disk.written || kept.contains(epoch));
        }
    }

    /// A node's copies get what the other node has, which holds the keys.
    fn follow(&mut self, at: usize) {
        let other = 1 - at;
        let id = self.nodes[at].id;
        for volume in self.nodes[other].held.keys().copied().collect::<Vec<_>>() {
            let is_elsewhere = |member: &Member| {
                member
                    .book
                    .registry()
                    .is_ok_and(|registry| registry.volume(volume).is_some_and(|of| of.node != id))
            };
            let is_demoted = self.members.iter().all(is_elsewhere);
            let written = self.nodes[other].disks[&volume].written;
            let held = self.nodes[at].held.contains_key(&volume);
            let disk = self.nodes[at].disks.get_mut(&volume).unwrap();
            if held || (!disk.is_replica && !is_demoted) {
                continue;
            }
            (disk.is_replica, disk.follows) = (true, true);
            if disk.written == written {
                disk.in_use = BTreeSet::from([written]);
            }
            disk.begin(written);
        }
    }

    fn admit(&mut self, at: usize, order: &GrantOrder, challenged: u64) {
        let GrantOrder { volume, grant, fence, .. } = *order;
        let node = &mut self.nodes[at];
        let deadline = challenged + order.lease_ms * MS;
        let highest = node.fences.get(&volume).copied().unwrap_or_default();
        let disk = node.disks.get_mut(&volume).unwrap();
        let refusal = match node.held.get(&volume) {
            _ if disk.is_replica => Some(GrantRefusal::WrongVolume),
            _ if disk.written != order.epoch => Some(GrantRefusal::WrongDomain),
            Some((by, _)) => Some(GrantRefusal::AlreadyHeld { by: *by }),
            None if fence <= highest => Some(GrantRefusal::OldFence { offered: fence, highest }),
            None if deadline <= self.now => Some(GrantRefusal::Expired),
            None => None,
        };
        if let Some(reason) = refusal {
            return self.say(at, Word::Refused(GrantRefused { grant, volume, reason }));
        }
        assert!(self.recorded[&(volume, grant)] >= deadline, "a grant outlives its record");
        let brought: BTreeSet<VolumeEpoch> =
            order.further.iter().map(|(epoch, _)| *epoch).chain([order.epoch]).collect();
        assert!(disk.in_use.is_subset(&brought), "a grant lacks an epoch: {disk:?}, {order:?}");
        // Mostly there is room for the newest.
        if let Some(newest) = brought.last().filter(|newest| **newest > disk.written)
            && !self.random.once_in(4)
        {
            disk.begin(*newest);
        }
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
        let to = usize::from(node == self.nodes[0].id);
        // First on the node, which takes nothing in from then on.
        let disk = self.nodes[to].disks.get_mut(&volume).unwrap();
        (disk.is_replica, disk.follows) = (false, false);
        if book.promoted(volume, self.nodes[to].id, (None, 1 << 30), "test").is_ok() {
            book.note_written(volume, disk.written);
            self.counts.moves += 1;
        }
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

    fn check(&mut self) {
        for of in 0..2 {
            let Ok(registry) = self.members[of].book.registry() else { continue };
            let of_domain = |domain| registry.volumes.iter().find(move |volume| volume.domain == domain);
            let known = registry
                .older
                .iter()
                .filter_map(|older| Some((of_domain(older.domain)?.volume, older.epoch)));
            let older: BTreeSet<_> = known.collect();
            for (volume, epoch) in self.older[of].difference(&older) {
                for node in &self.nodes {
                    let disk = &node.disks[volume];
                    assert!(
                        !disk.in_use.contains(epoch),
                        "the secret of epoch {epoch} of {volume} is gone, and {} has {disk:?}",
                        node.id
                    );
                }
                self.counts.destroyed += 1;
            }
            self.older[of] = older;
        }
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
        self.heal_rotations();
    }

    /// And every rotation comes to its end.
    fn heal_rotations(&mut self) {
        for _ in 0..12 {
            for at in 0..2 {
                self.turn_to(at);
                drop(self.members[at].look());
                (0..2).for_each(|_| self.follow(at));
                self.walk(at);
                self.challenge(at);
                while self.sessions[at][at].as_ref().is_some_and(|session| {
                    !session.from_node.is_empty()
                        || !session.planned.is_empty()
                        || !session.to_node.is_empty()
                }) {
                    self.hear(at, at);
                    self.sign(at, at);
                    self.write_down();
                    self.deliver(at, at);
                    self.check();
                }
            }
            self.now += 1_000 * MS;
        }
        self.turn_to(0);
        drop(self.members[0].look());
        let older = &self.members[0].book.registry().unwrap().older;
        assert!(older.is_empty(), "{older:?}, {:?}", self.nodes);
    }
}

fn present(volume: VolumeId, epoch: VolumeEpoch) -> VolumePresent {
    VolumePresent {
        volume,
        pool: PoolId([7; 16]),
        domain: units::DomainId([0; 16]),
        epoch,
        check: [0; 16],
        size_bytes: 1 << 30,
        fence: Fence(0),
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
        total.rotations += counts.rotations;
        total.destroyed += counts.destroyed;
    }
    // A simulation in which nothing happens proves nothing.
    let Counts { grants, moves, renewals, late_evidence, unlatched, rotations, destroyed } = total;
    let least =
        [grants, moves, renewals, late_evidence, unlatched, rotations, destroyed].into_iter().min().unwrap();
    assert!(least > 100, "{total:?}");
}
