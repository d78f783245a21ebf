//! Epochs: when one is closed, and which are deleted.
//!
//! An epoch is closed where a peer that is to have the volume is connected, something was written since the last, and the interval is over
//! or so much was written that it ends early; and where such a peer lacks the newest, and none waits for it. Where folding in the pool
//! falls behind, epochs wait longer: each costs an extent for each that is written in it, until that is folded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use pool::{PoolInfo, SnapshotInfo, VolumeInfo};
use replication::{Epoch, EpochKey, EpochName, Generation, Progress, State, kept_for_others};
use tokio_util::sync::CancellationToken;
use units::{BootInstant, Fence, VolumeId};

use super::outgoing::Way;
use crate::boot_clock;
use crate::control::unix_seconds;
use crate::lock::lock;
use crate::node::{Node, OpenPool, snapshot_label};

/// How often it is looked whether an epoch is due.
const LOOK: Duration = Duration::from_millis(50);

/// Sectors in a MiB.
const SECTORS_PER_MIB: u64 = 256;

/// Least time between epochs while folding falls behind.
const BEHIND_INTERVAL_MS: u64 = 30_000;

/// Time from an epoch that could not be closed to the next attempt.
const RETRY_MS: u64 = 1_000;

/// Time from a volume that cannot be sent at all to the next attempt.
const RETRY_UNSENT_MS: u64 = 10_000;

/// Where so small a part of a pool is free, what is kept for a peer that has been away for so long is given up: clients go before it.
const SHORT_OF: u64 = 20;
const AWAY_MS: u64 = 60 * 60 * 1000;

/// Epochs whose moments are remembered: a peer that is further behind is further behind than an hour.
const MOMENTS_MAX: usize = 4_096;

/// When an epoch was closed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// What had been written to the volume in this run.
    pub(super) written: u64,
    /// When something was first written that the epoch before has not.
    pub(super) began: BootInstant,
}

/// What is known of a volume's epochs in this run.
#[derive(Debug)]
pub(super) struct Closed {
    fence: Fence,
    generation: Generation,
    /// What had been written when the last was closed, and when that was; `None` before the first.
    last: Option<(u64, BootInstant)>,
    /// When something was first written since.
    changed_at: Option<BootInstant>,
    /// By number.
    marks: BTreeMap<u64, Mark>,
    /// None can be closed: not before that.
    retry_at: Option<BootInstant>,
}

impl Closed {
    fn new(fence: Fence, generation: Generation) -> Self {
        let (last, changed_at, retry_at) = (None, None, None);
        Self { fence, generation, last, changed_at, marks: BTreeMap::new(), retry_at }
    }

    /// Notes whether something was written since the last epoch.
    fn look(&mut self, written: u64, now: BootInstant) {
        if self.last.is_none_or(|(then, _)| then != written) {
            self.changed_at.get_or_insert(now);
        }
    }

    fn close(&mut self, number: u64, written: u64, now: BootInstant) {
        let began = self.changed_at.take().unwrap_or(now);
        self.marks.insert(number, Mark { written, began });
        if self.marks.len() > MOMENTS_MAX
            && let Some(second) = self.marks.keys().nth(1).copied()
        {
            self.marks.remove(&second);
        }
        self.last = Some((written, now));
        self.retry_at = None;
    }

    /// The epoch with this number, where it was closed in this run.
    pub(super) fn mark(&self, number: u64) -> Option<Mark> {
        self.marks.get(&number).copied()
    }

    /// Since when there is something that a peer has not whose newest epoch has this number; `None` where there is nothing.
    pub(super) fn behind_since(&self, number: u64) -> Option<BootInstant> {
        let next = self.marks.range(number + 1..).next().map(|(_, mark)| mark.began);
        next.or(self.changed_at)
    }

    /// Whether something was written since the last epoch.
    pub(super) fn has_changed(&self, written: u64) -> bool {
        self.last.is_none_or(|(then, _)| then != written)
    }
}

/// Closes epochs until `stop`.
pub(crate) async fn keep(node: Arc<Node>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        let node = Arc::clone(&node);
        // A panic in there has ended the process.
        let _ = tokio::task::spawn_blocking(move || node.look_at_epochs()).await;
    }
}

/// Why nothing of a volume can be sent, or no epoch of it closed, whatever the peers say.
#[derive(Clone, Debug)]
pub(super) struct Unsent {
    pub(super) why: String,
    /// Not before that.
    retry_at: BootInstant,
}

/// Whether a pool has hardly any space left.
fn is_short(pool: &PoolInfo) -> bool {
    let free = pool.capacity.0.saturating_sub(pool.allocated.0 + pool.reserved.0);
    free < pool.capacity.0 / SHORT_OF
}

fn progress(way: &Way, volume: VolumeId) -> Option<Progress> {
    lock(&way.sender).progress(volume)
}

impl Node {
    fn look_at_epochs(&self) {
        let mut there = BTreeSet::new();
        let is_pruning_due = self.replication.is_pruning_due.swap(false, Ordering::Relaxed);
        for open in &self.pools {
            let info = open.pool.info();
            let (keeps_records, short) = (info.keeps_records, is_short(&info));
            let written_here = |info: &VolumeInfo| !info.replica && info.fence > Fence(0);
            for info in open.pool.volumes().into_iter().filter(written_here) {
                there.insert(info.id);
                if !keeps_records {
                    let why = "its pool keeps no records: copy the data to a volume of another pool, or name the volumes that the peer is to have";
                    self.replication.note_unsent(info.id, why.to_owned(), 0);
                    continue;
                }
                let closed = self.close_if_due(open, &info);
                let given_up = short && self.give_up_absent(info.id);
                if closed || is_pruning_due || given_up {
                    self.prune_sent(open, info.id);
                }
            }
        }
        self.replication.forget_others(&there);
    }

    /// Whether an epoch was closed.
    fn close_if_due(&self, open: &OpenPool, info: &VolumeInfo) -> bool {
        let volume = info.id;
        let replication = &self.replication;
        if replication.ways(volume).next().is_none() {
            return false;
        }
        let Ok(sealed) = open.pool.volume(volume) else { return false };
        let mut all = lock(&replication.closed);
        let known = all.get(&volume).is_some_and(|closed| closed.fence == info.fence);
        if !known {
            let resting = lock(&replication.unsent)
                .get(&volume)
                .is_some_and(|unsent| boot_clock::now() < unsent.retry_at);
            if resting || !self.begin_writer(open, info, &mut all) {
                return false;
            }
        }
        let Some(closed) = all.get_mut(&volume) else { return false };
        // Read before the snapshot is taken: what is counted is in it.
        let (written, now) = (sealed.written().0, boot_clock::now());
        closed.look(written, now);
        let connected = replication.ways(volume).filter(|(_, way)| lock(&way.sender).is_connected());
        let connected: Vec<_> = connected.filter_map(|(_, way)| progress(way, volume)).collect();
        // One on its way and one that waits are enough: what is written meanwhile is in the next.
        let takes = |progress: &Progress| {
            !matches!(progress.state, State::Stopped(_) | State::Away) && progress.epochs_behind < 2
        };
        if !connected.iter().any(takes) {
            return false;
        }
        // A peer that has not the newest, and for which none waits, gets an epoch though nothing is written.
        let is_lacking = |progress: &Progress| progress.state == State::Lacking;
        let is_due = closed.last.is_none_or(|(then, at)| {
            let (config, since_ms) = (&replication.config, now.ms_since(at));
            if open.folded.is_behind() && since_ms < BEHIND_INTERVAL_MS {
                return false;
            }
            let interval_over = since_ms >= u64::from(config.interval_ms);
            let much = u64::from(config.epoch_mib) * SECTORS_PER_MIB;
            (then != written && interval_over) || written.saturating_sub(then) >= much
        });
        if closed.retry_at.is_some_and(|at| now < at) || (!is_due && !connected.iter().any(is_lacking)) {
            return false;
        }
        let (fence, generation) = (closed.fence, closed.generation);
        // Nobody who looks how far it is waits for the disk.
        drop(all);
        let made = self.make_epoch(open, volume, fence, generation);
        let mut all = lock(&replication.closed);
        let Some(closed) = all.get_mut(&volume) else { return false };
        match made {
            Ok(epoch) => {
                closed.close(epoch.key.number, written, now);
                drop(all);
                lock(&replication.unsent).remove(&volume);
                replication.hand_over(volume, epoch);
                true
            }
            Err(error) => {
                closed.retry_at = Some(now.saturating_add_ms(RETRY_MS));
                drop(all);
                replication.note_unsent(volume, format!("no epoch of it can be closed: {error}"), RETRY_MS);
                // It may be that there are as many as the pool has room for.
                replication.is_pruning_due.store(true, Ordering::Relaxed);
                false
            }
        }
    }

    /// The volume is written under a fence that is new here.
    fn begin_writer(&self, open: &OpenPool, info: &VolumeInfo, all: &mut BTreeMap<VolumeId, Closed>) -> bool {
        let volume = info.id;
        let snapshots = open.pool.snapshots().into_iter().filter(|snapshot| snapshot.volume == volume);
        let mut epochs: Vec<_> = snapshots
            .filter_map(|snapshot| Some((EpochName::read(snapshot.id)?.number, snapshot.id)))
            .collect();
        epochs.sort_unstable();
        let used = epochs.last().map_or(0, |(number, _)| *number);
        let generation = match self.replication.state.writer(volume, info.fence, used) {
            Ok(generation) => generation,
            Err(error) => {
                let why = format!(
                    "its writer cannot be written down ({error}): look at the disk that holds the state directory"
                );
                self.replication.note_unsent(volume, why, RETRY_UNSENT_MS);
                return false;
            }
        };
        lock(&self.replication.unsent).remove(&volume);
        let is_first = !all.contains_key(&volume);
        for (_, way) in self.replication.ways(volume) {
            let mut sender = lock(&way.sender);
            sender.set_writer(volume, info.fence, generation);
            if is_first {
                let epoch = |(number, snapshot)| Epoch {
                    key: EpochKey { fence: info.fence, generation, number, snapshot },
                    closed_at: boot_clock::now(),
                };
                sender.restore(volume, epochs.iter().copied().map(epoch));
            }
            drop(sender);
            way.woken.notify_one();
        }
        match all.get_mut(&volume) {
            Some(closed) => (closed.fence, closed.generation) = (info.fence, generation),
            None => drop(all.insert(volume, Closed::new(info.fence, generation))),
        }
        true
    }

    fn make_epoch(
        &self,
        open: &OpenPool,
        volume: VolumeId,
        fence: Fence,
        generation: Generation,
    ) -> Result<Epoch, String> {
        let number = self.replication.state.next_number(volume).map_err(|error| error.to_string())?;
        let mut random = [0; 5];
        getrandom::fill(&mut random).map_err(|error| error.to_string())?;
        let snapshot = EpochName { number, random }.id().ok_or("its numbers are used up")?;
        let now = unix_seconds(SystemTime::now());
        open.pool.create_snapshot(volume, snapshot, now).map_err(|error| error.to_string())?;
        let key = EpochKey { fence, generation, number, snapshot };
        Ok(Epoch { key, closed_at: boot_clock::now() })
    }

    /// Space runs short: what is kept of a volume for peers that have long been away goes. Whether there was anything.
    fn give_up_absent(&self, volume: VolumeId) -> bool {
        let now = boot_clock::now();
        let mut given_up = false;
        for (peer, way) in self.replication.ways(volume) {
            let has = {
                let mut sender = lock(&way.sender);
                sender.away_ms(now) >= AWAY_MS && sender.give_up(volume)
            };
            if !has {
                continue;
            }
            given_up = true;
            let peer = peer.config.name.to_string();
            tracing::error!(%volume, peer, "space runs short: what was kept of a volume for a peer that is away is given up; when it comes back, its replica is deleted and seeded anew");
            let fields = [("volume", volume.to_string().into()), ("peer", peer.into())];
            self.trail.note("replication-given-up", fields);
        }
        given_up
    }

    /// Deletes the epochs of a volume that no peer needs any more, but for the newest.
    fn prune_sent(&self, open: &OpenPool, volume: VolumeId) {
        let needs: Option<Vec<_>> =
            self.replication.ways(volume).map(|(_, way)| lock(&way.sender).needs(volume)).collect();
        let Some(needs) = needs else { return };
        let needed: BTreeSet<_> = needs.into_iter().flatten().collect();
        self.prune_epochs(open, volume, |snapshot| !needed.contains(&snapshot));
    }

    /// Whether replication made a snapshot, and nobody has locked it, nor does a schedule keep it.
    pub(crate) fn is_free_epoch(&self, snapshot: &SnapshotInfo) -> bool {
        let SnapshotInfo { id, volume, lock_s, .. } = *snapshot;
        EpochName::read(id).is_some() && lock_s == 0 && !self.schedules.has(volume, id)
    }

    /// Deletes epochs that `goes` names: never the newest, one that is locked, one that a schedule keeps, or a person's.
    pub(super) fn prune_epochs(&self, open: &OpenPool, volume: VolumeId, goes: impl Fn(VolumeId) -> bool) {
        let newest = open.pool.last_snapshot(volume).map(|newest| newest.id);
        let snapshots = open.pool.snapshots().into_iter().filter(|snapshot| snapshot.volume == volume);
        let epochs: Vec<_> =
            snapshots.filter_map(|snapshot| Some((snapshot, EpochName::read(snapshot.id)?.number))).collect();
        let last = epochs.iter().max_by_key(|(_, number)| *number).map(|(snapshot, _)| snapshot.id);
        for (snapshot, _) in &epochs {
            let id = snapshot.id;
            let stays = Some(id) == newest || Some(id) == last || !self.is_free_epoch(snapshot);
            if stays || !goes(id) {
                continue;
            }
            let label = self.served().get(&volume).map(|served| served.label.clone());
            if let Some(label) = label {
                self.nbd.remove(&snapshot_label(&label, id));
            }
            if let Err(error) = open.pool.delete_snapshot(id) {
                tracing::info!(%volume, snapshot = %id, %error, "an epoch stays for now");
            }
        }
    }
}

impl super::Replication {
    /// A new epoch, to every peer that is to have it.
    fn hand_over(&self, volume: VolumeId, epoch: Epoch) {
        let number = |snapshot| EpochName::read(snapshot).map_or(0, |name| name.number);
        let common = |way: &Way| progress(way, volume).and_then(|progress| progress.common).map_or(0, number);
        let oldest = self.ways(volume).map(|(_, way)| common(way)).min().unwrap_or(0);
        if let Some(closed) = lock(&self.closed).get_mut(&volume) {
            closed.marks.retain(|number, _| *number >= oldest);
        }
        let needs: Vec<Vec<VolumeId>> =
            self.ways(volume).map(|(_, way)| lock(&way.sender).needs(volume).unwrap_or_default()).collect();
        for (nth, (_, way)) in self.ways(volume).enumerate() {
            let others = needs.iter().enumerate().filter(|(other, _)| *other != nth);
            let others: Vec<_> = others.map(|(_, needs)| needs.clone()).collect();
            let mut sender = lock(&way.sender);
            sender.keep(volume, kept_for_others(&others));
            sender.close_epoch(volume, epoch);
            drop(sender);
            way.woken.notify_one();
        }
    }

    /// Why nothing of a volume can be sent, where it is so.
    pub(super) fn unsent(&self, volume: VolumeId) -> Option<String> {
        lock(&self.unsent).get(&volume).map(|unsent| unsent.why.clone())
    }

    fn note_unsent(&self, volume: VolumeId, why: String, retry_ms: u64) {
        let retry_at = boot_clock::now().saturating_add_ms(retry_ms);
        let is_told = |before: &Unsent| before.why == why;
        let mut unsent = lock(&self.unsent);
        if !unsent.get(&volume).is_some_and(is_told) && self.ways(volume).next().is_some() {
            tracing::error!(%volume, why, "a volume is not replicated, or falls behind");
        }
        unsent.insert(volume, Unsent { why, retry_at });
    }

    /// Volumes that are no longer written here.
    fn forget_others(&self, there: &BTreeSet<VolumeId>) {
        lock(&self.unsent).retain(|volume, _| there.contains(volume));
        let mut closed = lock(&self.closed);
        let gone: Vec<_> = closed.keys().copied().filter(|volume| !there.contains(volume)).collect();
        for volume in gone {
            closed.remove(&volume);
            for (_, way) in self.ways(volume) {
                lock(&way.sender).remove(volume);
            }
        }
    }
}
