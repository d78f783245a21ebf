//! What goes wrong, and what people do about it.

use super::{CHAOS_MS, Disk, Halt, NODES, Reason, ReceiverEffect, SECTORS, Seen, State, VOLUME, World};

impl World {
    pub(super) fn faults(&mut self) {
        if self.random.once_in(400) {
            let node = self.random.index(NODES);
            self.crash(node);
        }
        if self.random.once_in(500) {
            let link = self.link();
            if self.cut.insert(link) {
                self.tally.note("fault: partition");
            }
        }
        if self.random.once_in(250)
            && let Some(link) = self.cut.iter().next().copied()
        {
            self.cut.remove(&link);
        }
        if self.random.once_in(500) {
            let link = self.link();
            if !self.slow.remove(&link) {
                self.slow.insert(link);
                self.tally.note("fault: slow link");
            }
        }
        if self.random.once_in(400) {
            let node = self.random.index(NODES);
            let disk = &mut self.nodes[node].disk;
            disk.is_full = !disk.is_full && disk.writer.is_none();
            if disk.is_full {
                self.tally.note("fault: disk full");
            }
        }
        if self.random.once_in(600) {
            let node = self.random.index(NODES);
            let sector = self.random.index(SECTORS);
            let disk = &mut self.nodes[node].disk;
            disk.unreadable = if disk.unreadable.is_none() { Some(sector) } else { None };
            if disk.unreadable.is_some() {
                self.tally.note("fault: unreadable sector");
            }
        }
        if self.random.once_in(300) {
            let node = self.random.index(NODES);
            self.nodes[node].disk.failing_reads = 1 + self.random.below(2);
            self.tally.note("fault: reads failed");
        }
        if self.random.once_in(700) && self.now > 1_000 {
            self.promote();
        }
        if self.random.once_in(300) {
            let node = self.random.index(NODES);
            self.nodes[node].saved = self.nodes[node].disk.writer.map(|_| self.nodes[node].disk.clone());
        }
        if self.random.once_in(700) {
            self.set_back();
        }
        if self.random.once_in(600) {
            self.lock();
        }
        if self.random.once_in(800) {
            self.settle_divergence();
        }
        debug_assert!(self.now < CHAOS_MS);
    }

    fn link(&mut self) -> (usize, usize) {
        [(0, 1), (0, 2), (1, 2)][self.random.index(3)]
    }

    /// What was durable stays; what was on its way to the disk may have reached it, in part too.
    fn crash(&mut self, node: usize) {
        if self.nodes[node].down_until.is_some() {
            return;
        }
        self.tally.note("fault: crash");
        let keys: Vec<_> =
            self.connections.keys().copied().filter(|(a, b)| *a == node || *b == node).collect();
        for key in keys {
            let busy = self.connections.get_mut(&key).and_then(|connection| connection.busy.take());
            match (busy, self.random.below(3)) {
                (Some((_, ReceiverEffect::Begin { key: epoch, .. })), 0)
                    if key.1 == node && self.nodes[node].disk.record(&epoch).is_ok() =>
                {
                    self.tally.note("fault: crash within a step");
                    self.observe_begin(node, &epoch);
                }
                (Some((_, effect)), 1) => {
                    self.tally.note("fault: crash after a step");
                    self.carry_out(key, effect, false);
                }
                (Some((_, effect)), _) if key.1 != node => self.carry_out(key, effect, false),
                _ => {}
            }
            self.disconnect(key);
        }
        let down = 200 + self.random.below(4_000);
        let crashed = &mut self.nodes[node];
        crashed.down_until = Some(self.now + down);
        crashed.senders.clear();
        if crashed.disk.writer.is_some()
            && self.random.once_in(2)
            && let Some(newest) = crashed.disk.newest().copied()
        {
            // Written and never made durable.
            crashed.disk.live = newest.content;
        }
    }

    /// A replica becomes the primary; the old one, wherever it is, hears nothing of it. Now and then the keyholder was set back
    /// itself, and gives the same fence again.
    fn promote(&mut self) {
        let writers = self.nodes.iter().filter(|node| node.disk.writer.is_some()).count();
        if writers > 1 {
            let old = (0..NODES).find(|node| *node != self.holder && self.nodes[*node].disk.writer.is_some());
            return old.into_iter().for_each(|old| self.make_replica(old));
        }
        let candidate = self.random.index(NODES);
        let node = &self.nodes[candidate];
        if node.disk.writer.is_some() || node.disk.newest().is_none() || node.down_until.is_some() {
            return;
        }
        let is_again = self.random.once_in(4);
        self.tally.note(if is_again { "fault: one fence twice" } else { "promoted" });
        let fence = if is_again { self.fence } else { self.fence + 1 };
        self.grant(candidate, fence);
    }

    /// A person deletes a copy, so that it is seeded again.
    fn make_replica(&mut self, node: usize) {
        self.tally.note("made a replica again");
        let keys: Vec<_> =
            self.connections.keys().copied().filter(|(a, b)| *a == node || *b == node).collect();
        keys.into_iter().for_each(|key| self.disconnect(key));
        let this = &mut self.nodes[node];
        this.senders.clear();
        this.saved = None;
        // Who has written is remembered beyond the copy.
        this.disk = Disk { histories: this.disk.histories.clone(), ..Disk::default() };
        let seen = &mut self.seen[node];
        seen.log.clear();
        seen.locked.clear();
        seen.acknowledged = None;
    }

    /// A primary's machine is restored from a copy of an earlier state.
    fn set_back(&mut self) {
        let node = self.random.index(NODES);
        let Some(saved) = self.nodes[node].saved.clone() else { return };
        let fence = |disk: &Disk| disk.writer.map(|writer| writer.fence);
        if fence(&saved) != fence(&self.nodes[node].disk) {
            return;
        }
        self.tally.note("fault: primary set back");
        self.crash(node);
        self.nodes[node].disk = saved;
        let seen = &mut self.seen[node];
        let there = &self.nodes[node].disk;
        seen.locked.retain(|id| there.find(*id).is_some_and(|snapshot| snapshot.is_locked));
        seen.log.retain(|id| there.find(*id).is_some());
        seen.acknowledged = None;
    }

    fn lock(&mut self) {
        let node = self.random.index(NODES);
        let count = self.nodes[node].disk.snapshots.len();
        if count == 0 {
            return;
        }
        let chosen = self.random.index(count);
        let snapshot = &mut self.nodes[node].disk.snapshots[chosen];
        snapshot.is_locked = true;
        self.seen[node].locked.insert(snapshot.id);
        self.tally.note("locked a snapshot");
    }

    /// A person decides for the primary wherever a replica has gone another way: what is newer there than what both have goes, its locks
    /// when their time is over.
    pub(super) fn settle_divergence(&mut self) {
        let holder = self.holder;
        for node in (0..NODES).filter(|node| *node != holder) {
            let sender = self.nodes[self.holder].senders.get(&node);
            let state = sender.and_then(|sender| sender.progress(VOLUME)).map(|progress| progress.state);
            match state {
                Some(State::Stopped(Halt::Refused(Reason::Diverged))) => {}
                // Two primaries: the other is made a replica.
                Some(State::Stopped(Halt::Refused(Reason::NotAReplica))) if !self.is_chaos => {
                    self.make_replica(node);
                    continue;
                }
                _ => continue,
            }
            if self.nodes[node].disk.writer.is_some() {
                continue;
            }
            let primary = &self.nodes[self.holder].disk;
            let snapshots = &self.nodes[node].disk.snapshots;
            let common = snapshots.iter().rposition(|snapshot| primary.find(snapshot.id).is_some());
            let Some(common) = common else {
                self.make_replica(node);
                continue;
            };
            self.tally.note("divergence settled");
            let disk = &mut self.nodes[node].disk;
            let gone: Vec<_> = disk.snapshots.drain(common + 1..).map(|snapshot| snapshot.id).collect();
            disk.receiving = None;
            let Seen { locked, log, acknowledged, .. } = &mut self.seen[node];
            locked.retain(|id| !gone.contains(id));
            log.retain(|id| !gone.contains(id));
            *acknowledged = None;
        }
    }

    /// Everything works again, and the keyholder says who writes.
    pub(super) fn heal(&mut self) {
        self.is_chaos = false;
        self.cut.clear();
        self.slow.clear();
        for node in &mut self.nodes {
            node.disk.is_full = false;
            node.disk.unreadable = None;
            node.down_until = node.down_until.map(|_| self.now);
        }
        let others: Vec<_> = (0..NODES)
            .filter(|node| *node != self.holder && self.nodes[*node].disk.writer.is_some())
            .collect();
        others.into_iter().for_each(|node| self.make_replica(node));
        self.grant(self.holder, self.fence + 1);
    }
}
