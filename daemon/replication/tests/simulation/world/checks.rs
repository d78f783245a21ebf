//! What an observer who sees everything checks.

use replication::{EpochKey, EpochName};

use super::{NODES, World};

impl World {
    /// An epoch was begun at a node: its writer was let in.
    pub(super) fn observe_begin(&mut self, node: usize, key: &EpochKey) {
        self.observe_writer(node, key);
        let seen = &mut self.seen[node];
        let last = seen.last_number.get(&key.generation).copied();
        seen.last_number.insert(key.generation, (key.number, key.snapshot));
        if last
            .is_some_and(|(number, id)| key.number < number || (key.number == number && key.snapshot != id))
        {
            self.breach(format!("node {node} begins {key:?} after {last:?}"));
        }
    }

    /// Nothing of a lower fence, and of one fence nothing of two writers.
    pub(super) fn observe_writer(&mut self, node: usize, key: &EpochKey) {
        let seen = &mut self.seen[node];
        let (highest, first) =
            (seen.highest_fence, *seen.generation_of.entry(key.fence).or_insert(key.generation));
        seen.highest_fence = highest.max(key.fence);
        if key.fence < highest {
            self.breach(format!("node {node} takes {key:?} after fence {highest}"));
        }
        if first != key.generation {
            self.breach(format!("node {node} takes {key:?} after {first:?} of the same fence"));
        }
    }

    /// An epoch became visible at a node: it is what the primary had at that barrier.
    pub(super) fn observe_commit(&mut self, node: usize, key: &EpochKey) {
        self.tally.note("arrived");
        self.observe_writer(node, key);
        self.seen[node].log.push(key.snapshot);
        let shown = self.nodes[node].disk.find(key.snapshot).map(|snapshot| snapshot.content);
        if shown.as_ref() != self.truth.get(&key.snapshot) {
            self.breach(format!("node {node} shows at {key:?} what no primary had"));
        }
    }

    pub(super) fn check_snapshots(&mut self) {
        for node in 0..NODES {
            let disk = &self.nodes[node].disk;
            let seen = &self.seen[node];
            if let Some(lost) = seen.locked.iter().find(|locked| disk.find(**locked).is_none()) {
                return self.breach(format!("node {node} has lost the locked snapshot {lost}"));
            }
            let place = |id| seen.log.iter().position(|other| *other == id);
            let newest = disk.newest().and_then(|newest| place(newest.id));
            let acknowledged = seen.acknowledged.and_then(place);
            if acknowledged > newest {
                return self.breach(format!("node {node} has acknowledged an epoch and lost it"));
            }
        }
    }

    /// Both sides have no more than the newest common epoch, the one before it, and what is locked.
    pub(super) fn is_deleted(&self) -> bool {
        (0..NODES).all(|node| self.needless(node) <= 2)
    }

    /// Epochs that are not locked.
    pub(super) fn needless(&self, node: usize) -> usize {
        let snapshots = self.nodes[node].disk.snapshots.iter();
        snapshots.filter(|snapshot| EpochName::read(snapshot.id).is_some() && !snapshot.is_locked).count()
    }

    pub(super) fn all_caught_up(&self) -> bool {
        let newest = |node: usize| self.nodes[node].disk.newest().map(|newest| newest.id);
        let senders = &self.nodes[self.holder].senders;
        let told = senders.values().all(|sender| {
            let progress = sender.progress(super::VOLUME);
            progress
                .is_some_and(|progress| progress.common == newest(self.holder) && progress.epochs_behind == 0)
        });
        let holder = &self.nodes[self.holder].disk;
        let shows = |node: usize| self.nodes[node].disk.newest().map(|newest| newest.content);
        let has_all = |node: usize| newest(node) == newest(self.holder) && shows(node) == Some(holder.live);
        told && (0..NODES).all(has_all)
    }
}
