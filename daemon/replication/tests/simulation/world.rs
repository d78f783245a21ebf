//! A primary, two replicas, a network and a person, in one thread and simulated time; and what an all-seeing observer checks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use replication::{
    Allowed, Epoch, EpochKey, EpochName, Generation, Halt, Reason, Receiver, ReceiverEffect, ReceiverParams,
    Sender, SenderEffect, SenderLimits, State, kept_for_others,
};
use units::{BootInstant, Fence, NodeId, VolumeId};

use crate::disk::{Content, Disk, SECTORS, Snapshot, VOLUME, Writer};
use crate::random::Random;

pub(crate) const NODES: usize = 3;
/// Most sectors in a portion.
const PORTION: usize = 4;
const STEP_MS: u64 = 5;
const CHAOS_MS: u64 = 40_000;
/// Everybody has caught up this long after everything was healed.
const HEAL_MS: u64 = 60_000;
const PREFIX_BYTES: usize = 4;

/// What the observer found.
#[derive(Debug)]
pub(crate) struct Breach(pub(crate) String);

/// How often each thing happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally(pub(crate) BTreeMap<String, u64>);

impl Tally {
    pub(crate) fn note(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what.clone()).or_default() += count;
        }
    }
}

struct Connection {
    session: u64,
    receiver: Receiver,
    to_receiver: Vec<(u64, Vec<u8>)>,
    to_sender: Vec<(u64, Vec<u8>)>,
    inbox: VecDeque<Vec<u8>>,
    /// What the receiver's shell is at, and until when.
    busy: Option<(u64, ReceiverEffect)>,
    accepted: BTreeSet<u64>,
}

#[derive(Default)]
struct Node {
    down_until: Option<u64>,
    disk: Disk,
    /// An older copy of the machine, to which it may be set back.
    saved: Option<Disk>,
    senders: BTreeMap<usize, Sender>,
    redial_at: BTreeMap<usize, u64>,
    barrier_at: u64,
    /// What was written to the volume in this run, and how much of it when the last epoch was closed.
    written: u64,
    closed: Option<u64>,
}

/// What the observer remembers of a node.
#[derive(Default)]
struct Seen {
    highest_fence: Fence,
    generation_of: BTreeMap<Fence, Generation>,
    last_number: BTreeMap<Generation, (u64, VolumeId)>,
    /// Epochs in the order in which they became visible.
    log: Vec<VolumeId>,
    acknowledged: Option<VolumeId>,
    locked: BTreeSet<VolumeId>,
}

pub(crate) struct World {
    random: Random,
    now: u64,
    nodes: [Node; NODES],
    connections: BTreeMap<(usize, usize), Connection>,
    cut: BTreeSet<(usize, usize)>,
    slow: BTreeSet<(usize, usize)>,
    /// What the primary had at each barrier.
    truth: BTreeMap<VolumeId, Content>,
    seen: [Seen; NODES],
    holder: usize,
    fence: u64,
    /// Whether things go wrong.
    is_chaos: bool,
    writes: bool,
    /// The next epoch is deleted before anything of it is read.
    deletes_next: bool,
    /// Of sessions that are over.
    recorded: Vec<Vec<u8>>,
    pub(crate) tally: Tally,
    /// Over everything that was sent: two runs of a seed have the same.
    pub(crate) digest: u64,
    breach: Option<Breach>,
}

fn node_id(node: usize) -> NodeId {
    NodeId([u8::try_from(node).unwrap() + 1; 16])
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = Self {
            random: Random::new(seed),
            now: 0,
            nodes: Default::default(),
            connections: BTreeMap::new(),
            cut: BTreeSet::new(),
            slow: BTreeSet::new(),
            truth: BTreeMap::new(),
            seen: Default::default(),
            holder: 0,
            fence: 0,
            is_chaos: true,
            writes: true,
            deletes_next: false,
            recorded: Vec::new(),
            tally: Tally::default(),
            digest: 0xcbf2_9ce4_8422_2325,
            breach: None,
        };
        world.nodes[0].disk.is_there = true;
        world.grant(0, 1);
        world
    }

    pub(crate) fn run(&mut self) -> Result<(), Breach> {
        while self.now < CHAOS_MS {
            self.faults();
            self.step()?;
        }
        self.heal();
        let end = self.now + HEAL_MS;
        let settled = self.now + 5_000;
        let mut rounds = 3;
        while self.now < end {
            self.writes = self.now < settled;
            if self.now.is_multiple_of(500) {
                self.settle_divergence();
            }
            self.step()?;
            // Nothing is written any more, so nothing else brings along what was left out.
            if !self.writes && self.all_caught_up() {
                if rounds == 0 {
                    if self.is_deleted() {
                        self.tally.note("everybody caught up");
                        return Ok(());
                    }
                    continue;
                }
                rounds -= 1;
                self.write(self.holder);
                // The last thing that was written is what cannot be read at first, or is deleted by a person before it is sent.
                match rounds {
                    1 => self.deletes_next = true,
                    rounds => self.nodes[self.holder].disk.failing_reads = rounds,
                }
            }
        }
        Err(self.not_caught_up())
    }

    fn not_caught_up(&self) -> Breach {
        let states: Vec<_> =
            self.nodes[self.holder].senders.values().map(|sender| sender.progress(VOLUME)).collect();
        let epochs: Vec<_> = (0..NODES).map(|node| self.needless(node)).collect();
        Breach(format!(
            "not everybody has caught up {HEAL_MS} ms after healing, or epochs are left: {states:?}, {epochs:?}"
        ))
    }

    /// The last node is away for so many epochs while the others go on, on disks with room for few snapshots; then it is there.
    /// Nothing else goes wrong, but that the primary is restarted now and then.
    pub(crate) fn run_with_one_away(&mut self, barriers: u64) -> Result<(), Breach> {
        // As many as one may have kept for others, its newest, the one before, and a new one.
        const SLOTS: usize = 19;
        const AWAY: usize = NODES - 1;
        self.is_chaos = false;
        for node in &mut self.nodes {
            node.disk.slots = Some(SLOTS);
        }
        while self.now < CHAOS_MS / 4 {
            self.step()?;
        }
        self.cut = (0..AWAY).map(|node| (node, AWAY)).collect();
        let barriers_made = |world: &Self| world.tally.0.get("barrier").copied().unwrap_or(0);
        let begun = barriers_made(self);
        while barriers_made(self) < begun + barriers {
            let before = self.seen[1].log.len();
            let stretch = self.now + 20_000;
            while self.now < stretch {
                self.step()?;
                for node in 0..AWAY {
                    let kept = self.needless(node);
                    if kept >= SLOTS {
                        return Err(Breach(format!("node {node} keeps {kept} epochs for one that is away")));
                    }
                }
            }
            if self.seen[1].log.len() <= before + 5 {
                return Err(Breach("the replica that is there gets nothing more".to_owned()));
            }
            if barriers_made(self) > begun + barriers / 2 && !self.tally.0.contains_key("restarted") {
                self.tally.note("restarted");
                self.start_senders(self.holder);
            }
        }
        self.cut.clear();
        self.writes = false;
        let end = self.now + HEAL_MS;
        while self.now < end {
            self.step()?;
            if self.all_caught_up() {
                return Ok(());
            }
        }
        Err(self.not_caught_up())
    }

    fn step(&mut self) -> Result<(), Breach> {
        self.now += STEP_MS;
        for node in 0..NODES {
            if self.nodes[node].down_until.is_some_and(|until| until <= self.now) {
                self.nodes[node].down_until = None;
                self.start_senders(node);
            }
            if self.nodes[node].down_until.is_none() && self.nodes[node].disk.writer.is_some() {
                if self.random.once_in(8) && self.writes {
                    self.write(node);
                }
                if self.now >= self.nodes[node].barrier_at {
                    self.nodes[node].barrier_at = self.now + 300 + self.random.below(900);
                    if self.is_barrier_due(node) {
                        self.barrier(node);
                    }
                }
                self.dial(node);
                self.pass_time(node);
            }
        }
        let keys: Vec<_> = self.connections.keys().copied().collect();
        for key in keys {
            self.deliver(key);
        }
        self.check_snapshots();
        match self.breach.take() {
            Some(Breach(what)) => Err(Breach(format!("at {} ms: {what}", self.now))),
            None => Ok(()),
        }
    }

    fn instant(&self) -> BootInstant {
        BootInstant(self.now * 1_000_000)
    }

    fn breach(&mut self, what: String) {
        self.breach.get_or_insert(Breach(what));
    }

    // The primary.

    /// A key grant: from now on the node writes, and sends.
    fn grant(&mut self, node: usize, fence: u64) {
        let generation = Generation(self.random.bytes());
        let disk = &mut self.nodes[node].disk;
        let begun = disk.histories.last(VOLUME).map_or(0, |last| last.number);
        let named = disk.newest().and_then(|newest| EpochName::read(newest.id)).map_or(0, |name| name.number);
        let before = disk.writer.map_or(0, |writer| writer.next_number);
        let next_number = before.max(begun + 1).max(named + 1);
        if disk.writer.is_none() {
            disk.live = disk.newest().map_or([0; SECTORS], |newest| newest.content);
            disk.receiving = None;
        }
        disk.writer = Some(Writer { fence: Fence(fence), generation, next_number });
        self.nodes[node].saved = None;
        self.fence = self.fence.max(fence);
        self.holder = node;
        let seen = &mut self.seen[node];
        seen.highest_fence = seen.highest_fence.max(Fence(fence));
        self.start_senders(node);
    }

    fn start_senders(&mut self, node: usize) {
        let Some(writer) = self.nodes[node].disk.writer else { return };
        let now = self.instant();
        let limits = SenderLimits {
            window_bytes: 100,
            epochs_waiting: 3,
            silence_ms: 3_000,
            alive_ms: 500,
            retry_ms: 1_000,
            bytes_per_s: (node == 1).then_some(4_000),
        };
        let epochs: Vec<Epoch> = self.nodes[node]
            .disk
            .snapshots
            .iter()
            .filter_map(|snapshot| {
                let number = EpochName::read(snapshot.id)?.number;
                let Writer { fence, generation, .. } = writer;
                let key = EpochKey { fence, generation, number, snapshot: snapshot.id };
                Some(Epoch { key, closed_at: now })
            })
            .collect();
        self.nodes[node].closed = None;
        for peer in (0..NODES).filter(|peer| *peer != node) {
            self.disconnect((node, peer));
            let mut sender = Sender::new(node_id(node), node_id(peer), limits, now);
            sender.set_writer(VOLUME, writer.fence, writer.generation);
            sender.restore(VOLUME, epochs.iter().copied());
            self.nodes[node].senders.insert(peer, sender);
        }
    }

    fn write(&mut self, node: usize) {
        for _ in 0..=self.random.below(6) {
            let (sector, value) = (self.random.index(SECTORS), self.random.bits());
            self.nodes[node].disk.live[sector] = value;
            self.nodes[node].written += 1;
        }
    }

    /// Where a peer is there to take an epoch: when something was written since the last, or the peer lacks that. Now and then a person
    /// takes one without a peer.
    fn is_barrier_due(&mut self, node: usize) -> bool {
        let is_by_hand = self.is_chaos && self.random.once_in(4);
        let this = &self.nodes[node];
        let has_changed = this.closed.is_none_or(|closed| closed != this.written);
        let progress = this.senders.values().filter_map(|sender| sender.progress(VOLUME));
        let takes = |state| !matches!(state, State::Stopped(_) | State::Away);
        let open: Vec<_> =
            progress.filter(|progress| takes(progress.state) && progress.epochs_behind < 2).collect();
        let is_lacking = open.iter().any(|progress| progress.state == State::Lacking);
        if is_lacking && !has_changed {
            self.tally.note("an epoch without a write");
        }
        (!open.is_empty() && (has_changed || is_lacking)) || (is_by_hand && has_changed)
    }

    fn barrier(&mut self, node: usize) {
        let now = self.instant();
        let random = self.random.bytes();
        let Some(writer) = &mut self.nodes[node].disk.writer else { return };
        let number = writer.next_number;
        writer.next_number += 1;
        let Writer { fence, generation, .. } = *writer;
        let snapshot = EpochName { number, random }.id().unwrap();
        let Node { disk, senders, written, closed, .. } = &mut self.nodes[node];
        *closed = Some(*written);
        disk.snapshots.push(Snapshot { id: snapshot, content: disk.live, is_locked: false });
        self.truth.insert(snapshot, disk.live);
        self.seen[node].log.push(snapshot);
        let key = EpochKey { fence, generation, number, snapshot };
        for sender in senders.values_mut() {
            sender.close_epoch(VOLUME, Epoch { key, closed_at: now });
        }
        let needs: BTreeMap<usize, Vec<VolumeId>> =
            senders.iter().filter_map(|(peer, sender)| Some((*peer, sender.needs(VOLUME)?))).collect();
        for (peer, sender) in senders.iter_mut() {
            let others = needs.iter().filter(|(other, _)| *other != peer).map(|(_, needs)| needs.clone());
            sender.keep(VOLUME, kept_for_others(&others.collect::<Vec<_>>()));
            if sender.progress(VOLUME).is_some_and(|progress| progress.is_catching_up) {
                self.tally.note("fell to catch-up");
            }
        }
        let needed: BTreeSet<_> = needs.into_values().flatten().collect();
        disk.prune(|id| !needed.contains(&id));
        if std::mem::take(&mut self.deletes_next) {
            disk.snapshots.pop();
            self.seen[node].log.pop();
        }
        self.tally.note("barrier");
        for peer in 0..NODES {
            self.drain_sender(node, peer);
        }
    }

    fn dial(&mut self, node: usize) {
        for peer in 0..NODES {
            let due = self.nodes[node].redial_at.get(&peer).is_none_or(|at| *at <= self.now);
            let key = (node, peer);
            let reachable = self.nodes[peer].down_until.is_none() && !self.is_cut(key);
            if !self.nodes[node].senders.contains_key(&peer)
                || self.connections.contains_key(&key)
                || !due
                || !reachable
            {
                continue;
            }
            let session = self.random.bits();
            let receiver = Receiver::new(ReceiverParams {
                node: node_id(peer),
                peer: node_id(node),
                allowed: Allowed::These([VOLUME].into()),
                session,
            });
            let connection = Connection {
                session,
                receiver,
                to_receiver: Vec::new(),
                to_sender: Vec::new(),
                inbox: VecDeque::new(),
                busy: None,
                accepted: BTreeSet::new(),
            };
            self.connections.insert(key, connection);
            self.tally.note("connected");
            let now = self.instant();
            if let Some(sender) = self.nodes[node].senders.get_mut(&peer) {
                sender.on_connected(now);
            }
            self.drain_sender(node, peer);
        }
    }

    fn pass_time(&mut self, node: usize) {
        let now = self.instant();
        for peer in 0..NODES {
            let Some(sender) = self.nodes[node].senders.get_mut(&peer) else { continue };
            if let Err(error) = sender.on_time(now) {
                self.tally.note(format!("sender ended: {error:?}"));
                self.disconnect((node, peer));
            }
            self.drain_sender(node, peer);
        }
    }

    fn drain_sender(&mut self, node: usize, peer: usize) {
        loop {
            let Node { disk, senders, .. } = &mut self.nodes[node];
            let Some(sender) = senders.get_mut(&peer) else { return };
            let Some(effect) = sender.poll() else { return };
            match effect {
                SenderEffect::Send(bytes) => self.transmit((node, peer), true, bytes),
                SenderEffect::Find { volume, snapshot } => {
                    sender.on_found(volume, snapshot, disk.find(snapshot).is_some());
                }
                SenderEffect::ReadManifest { volume, snapshot, since } => {
                    sender.on_manifest(volume, disk.manifest(snapshot, since));
                }
                SenderEffect::ReadPortion { manifest, from } => {
                    let portion = disk.send(&manifest, from, PORTION);
                    sender.on_portion(manifest.volume, manifest.snapshot, from, portion);
                }
                SenderEffect::Acknowledged { epoch, .. } => self.on_acknowledged(peer, &epoch),
                SenderEffect::Stopped { why, .. } => self.tally.note(format!("stopped: {}", why.label())),
            }
        }
    }

    fn on_acknowledged(&mut self, peer: usize, epoch: &Epoch) {
        self.tally.note("acknowledged");
        let snapshot = epoch.key.snapshot;
        let seen = &mut self.seen[peer];
        let Some(place) = seen.log.iter().position(|id| *id == snapshot) else {
            return self.breach(format!("{:?} was acknowledged and node {peer} never had it", epoch.key));
        };
        let before = seen.acknowledged.and_then(|id| seen.log.iter().position(|other| *other == id));
        if before.is_none_or(|before| before < place) {
            seen.acknowledged = Some(snapshot);
        }
    }

    // The network.

    fn is_cut(&self, (a, b): (usize, usize)) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn transmit(&mut self, key: (usize, usize), up: bool, mut bytes: Vec<u8>) {
        for byte in &bytes {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let is_slow = self.slow.contains(&(key.0.min(key.1), key.0.max(key.1)));
        let mut delay = 1 + self.random.below(20);
        if is_slow {
            delay *= 20;
        }
        if self.is_cut(key) {
            return;
        }
        let mut copies = 1;
        let mut overtakes = false;
        if self.is_chaos {
            match self.random.below(2_000) {
                0..4 => {
                    self.tally.note("fault: loss");
                    return;
                }
                4..8 => {
                    self.tally.note("fault: duplicate");
                    copies = 2;
                }
                8..14 => {
                    self.tally.note("fault: reordered");
                    overtakes = true;
                }
                14..16 => {
                    self.tally.note("fault: bit flipped");
                    let byte = PREFIX_BYTES + self.random.index(bytes.len() - PREFIX_BYTES);
                    bytes[byte] ^= 1 << self.random.below(8);
                }
                16..18 if !self.recorded.is_empty() => {
                    self.tally.note("fault: frame of another session");
                    let old = self.random.index(self.recorded.len());
                    bytes = self.recorded[old].clone();
                }
                _ => {}
            }
        }
        if up && self.random.once_in(40) && self.recorded.len() < 500 {
            self.recorded.push(bytes.clone());
        }
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let queue = if up { &mut connection.to_receiver } else { &mut connection.to_sender };
        let last = queue.iter().map(|(at, _)| *at).max().unwrap_or(0);
        let at = if overtakes { self.now + 1 } else { last.max(self.now + delay) };
        for _ in 0..copies {
            match overtakes {
                true => queue.insert(0, (at, bytes.clone())),
                false => queue.push((at, bytes.clone())),
            }
        }
    }

    fn deliver(&mut self, key: (usize, usize)) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let due = |queue: &mut Vec<(u64, Vec<u8>)>| {
            let (due, later): (Vec<_>, Vec<_>) =
                std::mem::take(queue).into_iter().partition(|(at, _)| *at <= now);
            *queue = later;
            due.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>()
        };
        let (up, down) = (due(&mut connection.to_receiver), due(&mut connection.to_sender));
        connection.inbox.extend(up);
        for bytes in down {
            let instant = self.instant();
            let Some(sender) = self.nodes[key.0].senders.get_mut(&key.1) else { return };
            if !self.connections.contains_key(&key) {
                return;
            }
            if let Err(error) = sender.on_frame(instant, &bytes[PREFIX_BYTES..]) {
                self.tally.note(format!("sender ended: {error:?}"));
                self.disconnect(key);
                return;
            }
            self.drain_sender(key.0, key.1);
        }
        self.run_receiver(key);
    }

    /// The replica's shell: one thing after the other, each of which takes its time.
    fn run_receiver(&mut self, key: (usize, usize)) {
        loop {
            let Some(connection) = self.connections.get_mut(&key) else { return };
            match connection.busy.take() {
                Some((until, effect)) if until > self.now => {
                    connection.busy = Some((until, effect));
                    return;
                }
                Some((_, effect)) => self.carry_out(key, effect, true),
                None => {}
            }
            let Some(connection) = self.connections.get_mut(&key) else { return };
            match connection.receiver.poll() {
                Some(ReceiverEffect::Send(bytes)) => self.transmit(key, false, bytes),
                Some(ReceiverEffect::Refused { reason, .. }) => {
                    let heard = if reason.is_suspicious() { "audited" } else { "refused" };
                    self.tally.note(format!("{heard}: {}", reason.label()));
                }
                Some(ReceiverEffect::AuditSession(error)) => self.tally.note(format!("audited: {error:?}")),
                Some(effect) => {
                    let until = self.now + self.random.below(40);
                    connection.busy = Some((until, effect));
                }
                None => {
                    let Some(bytes) = connection.inbox.pop_front() else { return };
                    let session = connection.session;
                    match connection.receiver.on_frame(&bytes[PREFIX_BYTES..]) {
                        Ok(()) => {
                            let sequence = u64::from_le_bytes(
                                bytes[PREFIX_BYTES + 14..PREFIX_BYTES + 22].try_into().unwrap(),
                            );
                            if !connection.accepted.insert(sequence) {
                                self.breach(format!(
                                    "frame {sequence} of session {session:x} was taken twice"
                                ));
                            }
                        }
                        Err(error) => {
                            self.tally.note(format!("receiver ended: {error:?}"));
                            while let Some(effect) = connection.receiver.poll() {
                                if let ReceiverEffect::AuditSession(error) = effect {
                                    self.tally.note(format!("audited: {error:?}"));
                                }
                            }
                            self.disconnect(key);
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Does what the receiver asked for; its answer is heard only where the process still runs.
    fn carry_out(&mut self, key: (usize, usize), effect: ReceiverEffect, is_heard: bool) {
        let disk = &mut self.nodes[key.1].disk;
        let connection = self.connections.get_mut(&key).filter(|_| is_heard);
        let receiver = connection.map(|connection| &mut connection.receiver);
        match effect {
            ReceiverEffect::Look { volume, fence, generation } => {
                let local = disk.look(fence, generation);
                if let Some(receiver) = receiver {
                    receiver.on_local(volume, local);
                }
            }
            ReceiverEffect::Begin { key: epoch, manifest } => {
                let recorded = disk.record(&epoch);
                let begun = recorded.and_then(|()| disk.begin(&manifest));
                if begun.is_ok_and(|next| next.0 > 0 && next.0 < SECTORS as u64) {
                    self.tally.note("resumed inside an epoch");
                }
                if let Some(receiver) = receiver {
                    receiver.on_begun(manifest.volume, begun);
                }
                if recorded.is_ok() {
                    self.observe_begin(key.1, &epoch);
                }
            }
            ReceiverEffect::Take { key: epoch, volume, portion } => {
                let took = disk.take(&epoch, &portion);
                if took.is_ok() {
                    self.observe_writer(key.1, &epoch);
                }
                let connection = self.connections.get_mut(&key).filter(|_| is_heard);
                if let Some(connection) = connection {
                    connection.receiver.on_took(volume, took);
                }
            }
            ReceiverEffect::Commit { key: epoch, manifest } => {
                let was_there = disk.find(epoch.snapshot).is_some();
                let committed = disk.commit(&epoch);
                if let Some(receiver) = receiver {
                    receiver.on_committed(manifest.volume, committed);
                }
                if committed.is_ok() && !was_there {
                    self.observe_commit(key.1, &epoch);
                }
            }
            ReceiverEffect::Prune { key: epoch, keep, .. } => {
                if disk.histories.is_current(VOLUME, &epoch) && disk.writer.is_none() {
                    disk.prune(|id| !keep.contains(&id));
                }
            }
            ReceiverEffect::Send(_) | ReceiverEffect::Refused { .. } | ReceiverEffect::AuditSession(_) => {}
        }
    }

    fn disconnect(&mut self, key: (usize, usize)) {
        let busy = self.connections.get_mut(&key).and_then(|connection| connection.busy.take());
        // What the replica is at it ends; nobody hears of it.
        if let Some((_, effect)) = busy {
            self.carry_out(key, effect, false);
        }
        self.connections.remove(&key);
        let redial = self.now + 50 + self.random.below(500);
        self.nodes[key.0].redial_at.insert(key.1, redial);
        if let Some(sender) = self.nodes[key.0].senders.get_mut(&key.1) {
            sender.disconnect();
        }
    }
}

mod checks;
mod people;
