//! Sealing anew in the background: what of a served volume lies under an older epoch of its key is put under the present one, and
//! what is left under which epoch is counted, for the keyholder to destroy the secrets of those that nothing lies under. Counting
//! needs no key: what the pool has besides, replicas and what is sealed, is counted too, and keeps its epochs until it has followed.
//!
//! What a peer of the volume lacks comes first: as long as that lies under two epochs nothing of the volume is sent there.
//!
//! How far it is needs no file: each sector says itself what it is under, so that a walk that was killed goes on with what is left.
//!
//! It takes a share of its own thread's time and no more than so many bytes a second, as scrubbing does (`scrub.rs`). What it works
//! with is clear in its thread's memory, so a wipe ends its rest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use admin::api::{EpochStatus, RekeyStatus};
use config::RekeyConfig;
use pool::{Change, ENCRYPTED_BLOCKS_DUE, EpochUse, Pool, PoolError, PoolVolume, VolumeInfo};
use sealing::{ErrorKind, Moved, Volume, VolumeKeys};
use units::{ByteLen, DomainId, Lba, SectorCount, VolumeEpoch, VolumeId};

use crate::heartbeat::Heart;
use crate::lock::lock;
use crate::node::Node;
use crate::threads::{self, OfItsOwn};

/// How often it is looked whether there is something to do, in the midst of a walk too.
const LOOKS_EVERY: Duration = Duration::from_secs(5);
/// How often it is counted anew where only snapshots keep an older epoch: counting looks at every extent.
const COUNTED_EVERY: Duration = Duration::from_secs(20);
/// And no more than one part in so many of the time, however many extents there are.
const COUNTED_SHARE: u32 = 50;
/// And where what is left is damaged, and was read in vain.
const DAMAGED_READ_EVERY: Duration = Duration::from_secs(3600);
/// A piece of work takes less, however slow the device is.
const STEP_WITHIN: Duration = Duration::from_secs(60);
/// After a volume that could not be gone on with, such as for want of space.
const AFTER_AN_ERROR: Duration = Duration::from_secs(30);
/// Sectors of which it is asked at once what was written since a snapshot: 8 GiB.
const REACH: u64 = 1 << 21;
/// What has been moved is made durable and what it lay in freed, so often.
const FLUSHED_EVERY: ByteLen = ByteLen(64 << 20);

const NO_ROOM: &str =
    "the pool has no room to move to, or the volume's quota is used up: free some space or raise the quota";

/// What is known of a volume whose key has had several epochs.
#[derive(Clone, Debug, Default)]
struct Progress {
    running: bool,
    /// What was left when the walk began.
    left: u64,
    moved: u64,
    bytes_per_s: f64,
    damaged: u64,
    trouble: Option<String>,
    uses: Vec<EpochUse>,
    /// Durably nothing else.
    in_use: Option<BTreeSet<VolumeEpoch>>,
    /// When it is counted next; as soon as can be where nothing says so.
    next_count: Option<Instant>,
}

impl Progress {
    fn status(&self) -> RekeyStatus {
        let left = self.left.saturating_sub(self.moved);
        let rate = as_u64(self.bytes_per_s);
        RekeyStatus {
            running: self.running,
            bytes_left: left,
            bytes_moved: self.moved,
            bytes_per_second: if self.running { rate } else { 0 },
            eta_s: if self.running { left.checked_div(rate) } else { None },
            damaged_sectors: self.damaged,
            trouble: self.trouble.clone(),
            epochs: self.uses.iter().map(epoch_status).collect(),
        }
    }
}

/// What lies in the pool of a volume without a key: a replica, one that is sealed, one that is gone.
#[derive(Clone, Debug)]
struct Keyless {
    domain: DomainId,
    /// Durably nothing else.
    in_use: BTreeSet<VolumeEpoch>,
}

/// Moves the volumes of one pool.
#[derive(Debug)]
pub(crate) struct Rekeyer {
    config: RekeyConfig,
    volumes: Mutex<BTreeMap<VolumeId, Progress>>,
    keyless: Mutex<BTreeMap<VolumeId, Keyless>>,
    /// Volumes whose keys have encrypted so much that new ones are due, with the epochs that have.
    due: Mutex<Vec<(VolumeId, VolumeEpoch)>>,
    /// When the pool's other volumes are counted next.
    next_look: Mutex<Option<Instant>>,
    changed: Condvar,
    /// The thread's, once it runs.
    heart: OnceLock<Heart>,
}

/// Why a walk does not go on.
enum Halt {
    /// The node was wiped, or the volume's key taken back.
    Sealed,
    NodeGone,
    Failed(String),
}

/// Where a rekeyer works.
struct Place {
    number: usize,
    pool: Arc<Pool>,
    node: Weak<Node>,
}

/// A served volume.
pub(crate) struct Served {
    pub(crate) id: VolumeId,
    pub(crate) sealed: Arc<PoolVolume>,
    pub(crate) keys: Arc<VolumeKeys>,
}

impl Rekeyer {
    pub(crate) fn new(config: RekeyConfig) -> Self {
        Self {
            config,
            volumes: Mutex::default(),
            keyless: Mutex::default(),
            due: Mutex::default(),
            next_look: Mutex::default(),
            changed: Condvar::new(),
            heart: OnceLock::new(),
        }
    }

    fn beat(&self, within: Duration) {
        self.heart.get().into_iter().for_each(|heart| heart.beat(within));
    }

    fn volumes(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Progress>> {
        lock(&self.volumes)
    }

    /// The volume is served with keys of several epochs from now on: what was known before may not be so any more.
    pub(crate) fn begin(&self, volume: VolumeId) {
        self.volumes().insert(volume, Progress::default());
        self.changed.notify_all();
    }

    /// Its key is gone, and with it what could be said of it.
    pub(crate) fn forget(&self, volume: VolumeId) {
        self.volumes().remove(&volume);
    }

    /// A wipe has happened: whoever rests wakes and looks.
    pub(crate) fn wake(&self) {
        // Under the lock, so that nobody is between looking and resting.
        drop(self.volumes());
        self.changed.notify_all();
    }

    /// What is left under which epochs of each volume that the pool has, or had in this run; `None` while that is not known.
    pub(crate) fn in_use(&self, pool: &Pool) -> BTreeMap<VolumeId, Option<BTreeSet<VolumeEpoch>>> {
        let there: BTreeMap<VolumeId, VolumeEpoch> =
            pool.volumes().into_iter().map(|info| (info.id, info.epoch)).collect();
        let keyless = lock(&self.keyless);
        let volumes = self.volumes();
        let without = keyless.iter().map(|(volume, keyless)| {
            // Counted before a replica was given something under another epoch, it says nothing of now.
            let is_of_now = there.get(volume).is_none_or(|epoch| keyless.in_use.contains(epoch));
            (*volume, is_of_now.then(|| keyless.in_use.clone()))
        });
        let held = volumes.iter().map(|(volume, progress)| (*volume, progress.in_use.clone()));
        // What comes later says more.
        let mut all: BTreeMap<_, _> = there.keys().map(|volume| (*volume, None)).collect();
        all.extend(without);
        all.extend(held);
        all
    }

    /// Volumes whose keys are due to be replaced. One that was meanwhile is not.
    pub(crate) fn due(&self, pool: &Pool) -> Vec<VolumeId> {
        let due = lock(&self.due).clone();
        let is_so = |(id, epoch): &(VolumeId, VolumeEpoch)| {
            pool.volume(*id).is_ok_and(|volume| volume.epoch() == *epoch)
        };
        due.into_iter().filter(is_so).map(|(id, _)| id).collect()
    }

    pub(crate) fn status(&self, volume: VolumeId) -> Option<RekeyStatus> {
        self.volumes().get(&volume).map(Progress::status)
    }

    /// Of every volume of which there is one.
    pub(crate) fn statuses(&self) -> Vec<RekeyStatus> {
        self.volumes().values().map(Progress::status).collect()
    }

    /// Starts a thread that moves what is to be moved as long as the node is there.
    pub(crate) fn start(number: usize, node: &Arc<Node>) -> std::io::Result<()> {
        let _ = node.pools[number].rekeyer.heart.set(node.heartbeats.worker(format!("rekey-{number}")));
        let node = Arc::downgrade(node);
        std::thread::Builder::new().name(format!("rekey-{number}")).spawn(move || {
            let _own = OfItsOwn::begin();
            let Some(pool) = node.upgrade().map(|node| Arc::clone(&node.pools[number].pool)) else { return };
            let place = Place { number, pool, node };
            loop {
                let Some(strong) = place.node.upgrade() else { return };
                let rekeyer = Arc::clone(&strong.pools[number].rekeyer);
                let served = strong.served_in(number);
                drop(strong);
                rekeyer.beat(STEP_WITHIN);
                let mut rest = LOOKS_EVERY;
                rekeyer.look_if_due(&place);
                for volume in served {
                    match rekeyer.look_after(&place, &volume) {
                        Ok(()) => {}
                        Err(Halt::NodeGone) => return,
                        Err(Halt::Sealed) => break,
                        Err(Halt::Failed(trouble)) => {
                            tracing::warn!(volume = %volume.id, trouble, "sealing a volume anew does not go on for now");
                            rekeyer.note(volume.id, |progress| progress.trouble = Some(trouble));
                            rest = AFTER_AN_ERROR;
                        }
                    }
                }
                rekeyer.rest(rest, &place.node);
            }
        })?;
        Ok(())
    }

    fn note(&self, volume: VolumeId, note: impl FnOnce(&mut Progress)) {
        // One that was forgotten meanwhile stays so.
        if let Some(progress) = self.volumes().get_mut(&volume) {
            note(progress);
        }
    }

    /// [`Self::look_at_others`], now and then.
    fn look_if_due(&self, place: &Place) {
        if lock(&self.next_look).is_some_and(|at| Instant::now() < at) {
            return;
        }
        let Some(served) = place.node.upgrade().map(|node| node.served_in(place.number)) else { return };
        let began = Instant::now();
        if let Err(error) = self.look_at_others(&place.pool, &served) {
            tracing::debug!(%error, "what lies under which epoch is not known for now");
        }
        *lock(&self.next_look) = Some(Instant::now() + LOOKS_EVERY.max(began.elapsed() * COUNTED_SHARE));
    }

    /// Counts what the pool has without a key, and which keys are due.
    fn look_at_others(&self, pool: &Pool, served: &[Served]) -> Result<(), PoolError> {
        let served: BTreeSet<VolumeId> = served.iter().map(|served| served.id).collect();
        let is_served = |id: VolumeId| served.contains(&id);
        let infos = pool.volumes();
        let is_due = |info: &&VolumeInfo| is_served(info.id) && info.encrypted_blocks >= ENCRYPTED_BLOCKS_DUE;
        *lock(&self.due) = infos.iter().filter(is_due).map(|info| (info.id, info.epoch)).collect();
        let there = infos.iter().map(|info| (info.id, info.domain));
        let before = lock(&self.keyless).clone();
        // One that is gone is counted too: it keeps nothing, and that has to be said.
        let known = before.iter().map(|(id, keyless)| (*id, keyless.domain));
        let mut keyless: BTreeMap<VolumeId, DomainId> = known.chain(there).collect();
        keyless.retain(|id, _| !is_served(*id));
        let mut in_use: BTreeMap<DomainId, BTreeSet<VolumeEpoch>> = BTreeMap::new();
        for domain in keyless.values() {
            if !in_use.contains_key(domain) {
                self.beat(STEP_WITHIN);
                let known = before.values().find(|before| before.domain == *domain);
                in_use.insert(*domain, still_in_use(pool, &infos, *domain, known)?);
            }
        }
        let told = |(id, domain): (VolumeId, DomainId)| {
            (id, Keyless { domain, in_use: in_use.get(&domain).cloned().unwrap_or_default() })
        };
        *lock(&self.keyless) = keyless.into_iter().map(told).collect();
        Ok(())
    }

    /// Rests until the time is over or somebody wakes it, and wipes its thread where a wipe was the reason.
    fn rest(&self, time: Duration, node: &Weak<Node>) {
        self.beat(time);
        let volumes = self.volumes();
        match wiped_since(node) {
            Some(generation) => {
                drop(volumes);
                threads::visit(generation);
            }
            None => drop(self.changed.wait_timeout(volumes, time)),
        }
    }

    /// Moves what of a volume is to be moved, counts what is left, and withdraws the keys of epochs that nothing is left under.
    fn look_after(&self, place: &Place, served: &Served) -> Result<(), Halt> {
        if !self.is_due(served) {
            return Ok(());
        }
        let failed = |error: PoolError| Halt::Failed(error.to_string());
        let left = served.sealed.outdated().map_err(failed)?;
        if left.0 > 0 {
            let left = left.byte_len().map_or(u64::MAX, |len| len.0);
            tracing::info!(volume = %served.id, epoch = %served.sealed.epoch(), left, "sealing anew");
            self.note(served.id, |progress| {
                let before = std::mem::take(progress);
                *progress = Progress { running: true, left, uses: before.uses, ..Progress::default() };
            });
            let walked = Walk::new(self, place, served).run();
            self.note(served.id, |progress| progress.running = false);
            walked?;
        }
        // What the first finds to be hidden for good, the second frees.
        for _ in 0..2 {
            place.pool.flush().map_err(failed)?;
        }
        self.count(&place.pool, served)
    }

    /// Whether there may be something to do for a volume: it was not looked after since it had several keys, or something still
    /// keeps an older epoch and may be gone by now.
    fn is_due(&self, served: &Served) -> bool {
        let volumes = self.volumes();
        let Some(progress) = volumes.get(&served.id) else { return false };
        // What was counted before a newer epoch began says nothing of that.
        let present = served.sealed.epoch();
        let in_use = progress.in_use.as_ref();
        let done = in_use.is_some_and(|in_use| in_use.len() == 1 && in_use.contains(&present));
        !done && progress.next_count.is_none_or(|at| Instant::now() >= at)
    }

    fn count(&self, pool: &Arc<Pool>, served: &Served) -> Result<(), Halt> {
        let failed = |error: PoolError| Halt::Failed(error.to_string());
        let domain = served.sealed.info().domain;
        let began = Instant::now();
        let uses = pool.epochs(domain);
        let in_use = pool.epochs_in_use(domain).map_err(failed)?;
        // A newer key may have come that nothing is written under yet.
        let present = served.sealed.epoch();
        let retired = served.keys.epochs().into_iter();
        let retired: Vec<VolumeEpoch> =
            retired.filter(|epoch| *epoch < present && !in_use.contains(epoch)).collect();
        self.note(served.id, |progress| {
            progress.trouble = None;
            progress.uses = uses;
            progress.in_use = Some(in_use);
            let all_damaged = progress.damaged > 0 && progress.moved == 0;
            let again = if all_damaged { DAMAGED_READ_EVERY } else { COUNTED_EVERY };
            progress.next_count = Some(Instant::now() + again.max(began.elapsed() * COUNTED_SHARE));
        });
        for epoch in retired {
            tracing::info!(volume = %served.id, %epoch, "nothing lies under this epoch any more: its key is withdrawn");
            served.keys.retire(epoch);
        }
        Ok(())
    }

    /// After a piece of work: notes it, and rests as long as is due.
    fn throttle(
        &self,
        volume: VolumeId,
        began: Instant,
        (moved, damaged): (ByteLen, u64),
        node: &Weak<Node>,
    ) -> Result<(), Halt> {
        let share = f64::from(self.config.share_percent.clamp(1, 100)) / 100.0;
        let by_bandwidth = as_f64(moved.0) / (f64::from(self.config.mib_per_s.max(1)) * f64::from(1 << 20));
        let period = Duration::from_secs_f64((began.elapsed().as_secs_f64() / share).max(by_bandwidth));
        let until = began + period;
        self.note(volume, |progress| {
            progress.moved += moved.0;
            progress.damaged += damaged;
            if moved.0 > 0 && !period.is_zero() {
                let now = as_f64(moved.0) / period.as_secs_f64();
                // Of the last hundred pieces or so.
                let weight = if progress.bytes_per_s == 0.0 { 1.0 } else { 100.0 };
                progress.bytes_per_s += (now - progress.bytes_per_s) / weight;
            }
        });
        let mut volumes = self.volumes();
        loop {
            if node.strong_count() == 0 {
                return Err(Halt::NodeGone);
            }
            if wiped_since(node).is_some() {
                return Err(Halt::Sealed);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.beat(STEP_WITHIN);
            let waited = self.changed.wait_timeout(volumes, left.min(Duration::from_secs(1)));
            volumes = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// One walk over what of a volume lies under older epochs.
struct Walk<'a> {
    rekeyer: &'a Rekeyer,
    place: &'a Place,
    served: &'a Served,
    volume: Volume,
    unflushed: ByteLen,
    next_look: Instant,
    /// Snapshots of peers since which everything was moved.
    followed: BTreeSet<VolumeId>,
}

impl<'a> Walk<'a> {
    fn new(rekeyer: &'a Rekeyer, place: &'a Place, served: &'a Served) -> Self {
        let volume = Volume::open_with(Arc::clone(&served.sealed), Arc::clone(&served.keys));
        let (unflushed, next_look, followed) = (ByteLen(0), Instant::now(), BTreeSet::new());
        Self { rekeyer, place, served, volume, unflushed, next_look, followed }
    }

    fn run(mut self) -> Result<(), Halt> {
        let mut from = Lba(0);
        loop {
            if Instant::now() >= self.next_look {
                self.next_look = Instant::now() + LOOKS_EVERY;
                self.rekeyer.look_if_due(self.place);
                self.move_what_peers_lack()?;
            }
            match self.step(from)? {
                Some(next) => from = next,
                None => break,
            }
        }
        self.volume.flush().map_err(|error| stopped(&error))
    }

    /// Moves the next piece; where the one after it begins.
    fn step(&mut self, from: Lba) -> Result<Option<Lba>, Halt> {
        let began = Instant::now();
        self.rekeyer.beat(STEP_WITHIN);
        let moved = self.volume.move_next(from).map_err(|error| stopped(&error))?;
        let Some(Moved { next, moved, damaged }) = moved else { return Ok(None) };
        self.unflushed.0 += moved.0;
        if self.unflushed >= FLUSHED_EVERY {
            self.volume.flush().map_err(|error| stopped(&error))?;
            self.unflushed = ByteLen(0);
        }
        self.rekeyer.throttle(self.served.id, began, (moved, damaged), &self.place.node)?;
        Ok(Some(next))
    }

    /// What was written before the new epoch began, and since the newest snapshot that a peer has.
    fn move_what_peers_lack(&mut self) -> Result<(), Halt> {
        let Some(node) = self.place.node.upgrade() else { return Err(Halt::NodeGone) };
        let held_back = node.replication.held_back_since(self.served.id);
        drop(node);
        for since in held_back {
            // Once is enough: what is written from now on is under the new epoch.
            if self.followed.insert(since) {
                tracing::debug!(volume = %self.served.id, %since, "what a peer lacks is sealed anew first");
                self.move_changed(since)?;
            }
        }
        Ok(())
    }

    fn move_changed(&mut self, since: VolumeId) -> Result<(), Halt> {
        let Ok(older) = self.place.pool.snapshot(since) else { return Ok(()) };
        let sealed = Arc::clone(&self.served.sealed);
        let (mut at, sectors) = (0, sealed.sectors().0);
        while at < sectors {
            let reach = SectorCount(REACH.min(sectors - at));
            self.rekeyer.beat(STEP_WITHIN);
            // Where it was shrunk, or the snapshot is gone meanwhile, the rest comes in its turn.
            let Ok(changes) = sealed.changes_since(Some(&older), Lba(at), reach) else { return Ok(()) };
            for (run, change) in changes {
                let end = at + run.0;
                while at < end && change == Change::Written {
                    let outdated = sealed.next_outdated(Lba(at), SectorCount(1));
                    let outdated = outdated.map_err(|error| Halt::Failed(error.to_string()))?;
                    let Some((first, _)) = outdated.filter(|(first, _)| first.0 < end) else { break };
                    let Some(next) = self.step(first)? else { break };
                    at = next.0;
                }
                at = end;
            }
        }
        Ok(())
    }
}

fn stopped(error: &sealing::VolumeError) -> Halt {
    match error.kind() {
        ErrorKind::KeyGone => Halt::Sealed,
        ErrorKind::NoSpace => Halt::Failed(NO_ROOM.to_owned()),
        _ => {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            Halt::Failed(cause.unwrap_or_else(|| error.to_string()))
        }
    }
}

/// As [`Pool::epochs_in_use`], without its flush where nothing has changed.
fn still_in_use(
    pool: &Pool,
    infos: &[VolumeInfo],
    domain: DomainId,
    known: Option<&Keyless>,
) -> Result<BTreeSet<VolumeEpoch>, PoolError> {
    let written = infos.iter().filter(|info| info.domain == domain).map(|info| info.epoch);
    let now: BTreeSet<VolumeEpoch> = pool.epochs(domain).iter().map(|of| of.epoch).chain(written).collect();
    match known {
        Some(known) if known.in_use == now => Ok(now),
        _ => pool.epochs_in_use(domain),
    }
}

fn epoch_status(of: &EpochUse) -> EpochStatus {
    EpochStatus {
        epoch: of.epoch,
        allocated_bytes: of.allocated.0,
        shown_by: of.shown_by.iter().copied().collect(),
    }
}

/// The generation of a wipe that this thread has not been wiped after.
fn wiped_since(node: &Weak<Node>) -> Option<u64> {
    let generation = node.upgrade()?.keyring.status().generation;
    threads::is_late(generation).then_some(generation)
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn as_f64(number: u64) -> f64 {
    number as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
fn as_u64(number: f64) -> u64 {
    number as u64
}
