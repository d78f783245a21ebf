//! Which volumes are served under which labels, and what becomes of their connections when the key goes.
//!
//! Invariants:
//! - An export that was sealed never comes back to life: a new push inserts a new one, and connections of the old
//!   one stay sealed.
//! - A label whose key is gone is refused with "shutting down", not with "unknown", for as long as it is not removed.
//!   While nothing at all is served every label is: a sealed node does not know the labels, the keyholder does.
//! - What an export's access does not admit can neither list nor choose it, and a connection that a change of the access
//!   shuts out ends.
//!
//! All calls are short and block on nothing but a mutex: the node calls them right after a wipe.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use sealing::{Snapshots, Volume};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use units::VolumeId;

use crate::access::{Access, Doorkeeper, Peer, Refused};
use crate::buffers::Buffers;
use crate::lane::Lane;
use crate::limits::{LABEL_BYTES_MAX, Limits};
use crate::metrics::{ExportMetrics, Metrics};
use crate::negotiation::{Directory, Shape, Unavailable};
use crate::pace::Pace;
use crate::slow::SlowLog;
use crate::transmission::Operation;

/// What clients of an export see when its key goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnSeal {
    /// Connections close without answering what is in flight: a reconnecting client holds its requests and sends them
    /// again after the next push.
    Hold,
    /// What is in flight and what follows is answered with `ESHUTDOWN`: the client sees an error at once.
    Fail,
}

/// A volume to be served.
#[derive(Clone, Debug)]
pub struct Export {
    /// The volume with its lent key.
    pub volume: Volume,
    /// What it can be compared with.
    pub snapshots: Snapshots,
    /// Whether it is one that nobody may change, whatever its access says: a snapshot.
    pub read_only: bool,
    /// What clients see when the key goes.
    pub on_seal: OnSeal,
    /// Who may use it.
    pub access: Access,
}

/// A label that can't name an export.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLabel {
    /// The empty name is what clients send that name nothing.
    #[error("an export needs a label: give the volume a name")]
    Empty,
    /// The protocol limits strings.
    #[error("the label is {0} bytes long; NBD allows {LABEL_BYTES_MAX}")]
    TooLong(usize),
    /// Clients show labels on terminals and pass them in URIs.
    #[error("the label `{}` has a control character in it; rename the volume", .0.escape_debug())]
    ControlCharacter(String),
}

/// An export as status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportStatus {
    /// Its label.
    pub label: String,
    /// Whether its key is gone.
    pub sealed: bool,
    /// Connections that have chosen it.
    pub connections: usize,
}

/// An export with what its connections share.
pub(crate) struct LiveExport {
    pub(crate) label: String,
    pub(crate) volume: Volume,
    pub(crate) snapshots: Snapshots,
    /// Of its own, or by its access: asked for every request.
    read_only: AtomicBool,
    is_snapshot: bool,
    access: watch::Sender<Access>,
    /// Goes up with each change of the access, after it.
    access_version: AtomicU64,
    /// Held to read by operations that change something, to write by who waits for those that began before a change.
    changes: RwLock<()>,
    pub(crate) on_seal: OnSeal,
    pub(crate) metrics: ExportMetrics,
    pub(crate) lane: Arc<Lane<Operation>>,
    pub(crate) pace: Pace,
    pub(crate) slow: SlowLog,
    pub(crate) buffers: Arc<Buffers>,
    sealed: CancellationToken,
    /// As `sealed` says; asked for twice a request.
    is_sealed: AtomicBool,
    /// Connections and what they hold.
    pub(crate) present: TaskTracker,
    failures: AtomicU64,
    connections: AtomicU64,
}

impl fmt::Debug for LiveExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveExport").field("label", &self.label).finish_non_exhaustive()
    }
}

impl LiveExport {
    /// Whether anything may still be told that took the key to learn.
    pub(crate) fn key_gone(&self) -> bool {
        self.is_sealed() || self.volume.check_key().is_err()
    }

    /// Whether the export was taken away for good.
    pub(crate) fn is_sealed(&self) -> bool {
        self.is_sealed.load(Ordering::SeqCst)
    }

    /// Returns once the export is taken away.
    pub(crate) async fn sealed(&self) {
        self.sealed.cancelled().await;
    }

    pub(crate) fn shape(&self) -> Shape {
        Shape { len_bytes: self.volume.len().0, read_only: self.read_only.load(Ordering::Relaxed) }
    }

    fn admits(&self, peer: &Peer) -> bool {
        self.access.borrow().admits(peer)
    }

    fn set_access(&self, access: Access) {
        self.read_only.store(self.is_snapshot || access.read_only(), Ordering::Relaxed);
        self.access.send_replace(access);
        self.access_version.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether `guest` may still use the export. Cheap where nothing has changed.
    pub(crate) fn still_admits(&self, guest: &Guest) -> bool {
        let version = self.access_version.load(Ordering::SeqCst);
        if guest.admitted_at.load(Ordering::Relaxed) == version {
            return true;
        }
        let admitted = self.admits(&guest.peer);
        if admitted {
            guest.admitted_at.store(version, Ordering::Relaxed);
        }
        admitted
    }

    /// To be held while something is changed: what an access refuses is looked at under it.
    pub(crate) fn change(&self) -> RwLockReadGuard<'_, ()> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when every change that began before the call has ended.
    fn settle(&self) {
        drop(self.changes.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns once the export is no more for `peer`.
    pub(crate) async fn shut_out(&self, peer: &Peer) {
        let mut access = self.access.subscribe();
        // The sender is this export's own: the wait never fails.
        drop(access.wait_for(|access| !access.admits(peer)).await);
    }

    /// Counts a failure of the volume and says whether it is one to log: the 1st, 2nd, 4th, 8th … so that a dead
    /// device does not fill the log.
    pub(crate) fn count_failure(&self) -> Option<u64> {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        failures.is_power_of_two().then_some(failures)
    }

    pub(crate) fn connect(self: &Arc<Self>) -> Connected {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.metrics.connections.inc();
        Connected(Arc::clone(self))
    }
}

/// A client that has chosen an export, and the version of its access that last admitted it; none yet.
#[derive(Debug)]
pub(crate) struct Guest {
    peer: Peer,
    admitted_at: AtomicU64,
}

impl Guest {
    pub(crate) fn new(peer: Peer) -> Self {
        Self { peer, admitted_at: AtomicU64::new(0) }
    }
}

/// One connection that has chosen an export; counted until dropped.
#[derive(Debug)]
pub(crate) struct Connected(Arc<LiveExport>);

impl Drop for Connected {
    fn drop(&mut self) {
        if self.0.connections.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.buffers.release();
        }
        self.0.metrics.connections.dec();
    }
}

#[derive(Debug)]
enum Entry {
    Live(Arc<LiveExport>),
    Sealed,
}

impl Entry {
    /// Returns what to wait for until the last connection is gone with everything it held.
    fn seal(&mut self) -> Option<TaskTracker> {
        let Self::Live(live) = self else { return None };
        live.is_sealed.store(true, Ordering::SeqCst);
        live.sealed.cancel();
        live.buffers.close();
        live.present.close();
        let leaving = live.present.clone();
        *self = Self::Sealed;
        Some(leaving)
    }
}

/// The table of exports.
#[derive(Debug)]
pub(crate) struct Exports {
    entries: Mutex<BTreeMap<String, Entry>>,
    draining: CancellationToken,
    /// Threads beyond the first of each export.
    extra_threads: Arc<Semaphore>,
    slow_operation: Duration,
}

impl Exports {
    pub(crate) fn new(draining: CancellationToken, limits: &Limits) -> Self {
        let extra_threads = Arc::new(Semaphore::new(limits.operations_max));
        let slow_operation = limits.slow_operation;
        Self { entries: Mutex::new(BTreeMap::new()), draining, extra_threads, slow_operation }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // Every change is one insertion or removal: a panicking holder leaves nothing half done.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, label: &str, export: Export, metrics: &Metrics) -> Result<(), InvalidLabel> {
        match label {
            "" => return Err(InvalidLabel::Empty),
            _ if label.len() > LABEL_BYTES_MAX => return Err(InvalidLabel::TooLong(label.len())),
            _ if label.chars().any(char::is_control) => {
                return Err(InvalidLabel::ControlCharacter(label.to_owned()));
            }
            _ => (),
        }
        let live = Arc::new(LiveExport {
            label: label.to_owned(),
            metrics: metrics.for_export(export.volume.id()),
            volume: export.volume,
            snapshots: export.snapshots,
            read_only: AtomicBool::new(export.read_only || export.access.read_only()),
            is_snapshot: export.read_only,
            access: watch::Sender::new(export.access),
            access_version: AtomicU64::new(1),
            changes: RwLock::new(()),
            on_seal: export.on_seal,
            lane: Arc::new(Lane::new(Arc::clone(&self.extra_threads))),
            pace: Pace::new(),
            slow: SlowLog::new(self.slow_operation),
            buffers: Arc::default(),
            sealed: CancellationToken::new(),
            is_sealed: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            present: TaskTracker::new(),
        });
        if let Some(mut replaced) = self.entries().insert(label.to_owned(), Entry::Live(live)) {
            replaced.seal();
        }
        Ok(())
    }

    pub(crate) fn seal(&self, label: &str) {
        if let Some(entry) = self.entries().get_mut(label) {
            entry.seal();
        }
    }

    pub(crate) fn seal_all(&self) -> Vec<TaskTracker> {
        self.entries().values_mut().filter_map(Entry::seal).collect()
    }

    pub(crate) fn seal_gone(&self) {
        for entry in self.entries().values_mut() {
            if matches!(entry, Entry::Live(live) if live.key_gone()) {
                entry.seal();
            }
        }
    }

    pub(crate) fn remove(&self, label: &str) {
        if let Some(mut entry) = self.entries().remove(label) {
            entry.seal();
        }
    }

    /// Changes who may use a volume and its snapshots, where they are served. When it returns nothing that the change refuses
    /// is still being carried out.
    pub(crate) fn set_access(&self, volume: VolumeId, access: &Access) {
        let of_volume = |entry: &Entry| match entry {
            Entry::Live(live) if live.snapshots.volume() == volume => Some(Arc::clone(live)),
            Entry::Live(_) | Entry::Sealed => None,
        };
        let changed: Vec<_> = self.entries().values().filter_map(of_volume).collect();
        changed.iter().for_each(|live| live.set_access(access.clone()));
        changed.iter().for_each(|live| live.settle());
    }

    pub(crate) fn status(&self) -> Vec<ExportStatus> {
        let status = |(label, entry): (&String, &Entry)| {
            let (sealed, connections) = match entry {
                Entry::Live(live) => (live.key_gone(), live.connections.load(Ordering::Relaxed)),
                Entry::Sealed => (true, 0),
            };
            let connections = usize::try_from(connections).unwrap_or(usize::MAX);
            ExportStatus { label: label.clone(), sealed, connections }
        };
        self.entries().iter().map(status).collect()
    }
}

/// The exports as one client sees them.
#[derive(Debug)]
pub(crate) struct Visit<'a> {
    pub(crate) exports: &'a Exports,
    pub(crate) peer: &'a Peer,
    pub(crate) doorkeeper: &'a dyn Doorkeeper,
}

impl Directory for Visit<'_> {
    type Export = Arc<LiveExport>;

    fn find(&self, label: &str) -> Result<Arc<LiveExport>, Unavailable> {
        let live = self.exports.find(label)?;
        if live.admits(self.peer) {
            return Ok(live);
        }
        live.metrics.refused.inc();
        let Peer { address, client } = self.peer.clone();
        self.doorkeeper.refused(Refused { volume: live.volume.id(), address, client });
        Err(Unavailable::Forbidden)
    }

    fn shape(&self, export: &Arc<LiveExport>) -> Shape {
        export.shape()
    }

    fn snapshots(&self, export: &Arc<LiveExport>) -> Vec<VolumeId> {
        let own = export.volume.id();
        export.snapshots.ids().into_iter().filter(|id| *id != own).collect()
    }

    fn labels(&self) -> Result<Vec<String>, Unavailable> {
        let live = self.exports.live()?;
        let admitted = live.iter().filter(|live| live.admits(self.peer));
        let labels: Vec<String> = admitted.map(|live| live.label.clone()).collect();
        if labels.is_empty() { Err(Unavailable::Forbidden) } else { Ok(labels) }
    }
}

impl Exports {
    fn find(&self, label: &str) -> Result<Arc<LiveExport>, Unavailable> {
        if self.draining.is_cancelled() {
            return Err(Unavailable::Shutdown);
        }
        let entries = self.entries();
        match entries.get(label) {
            Some(Entry::Live(live)) if !live.key_gone() => Ok(Arc::clone(live)),
            Some(_) => Err(Unavailable::Shutdown),
            None if entries.values().any(|entry| matches!(entry, Entry::Live(_))) => {
                Err(Unavailable::Unknown)
            }
            None => Err(Unavailable::Shutdown),
        }
    }

    /// Everything that is served, by label; there is something.
    fn live(&self) -> Result<Vec<Arc<LiveExport>>, Unavailable> {
        if self.draining.is_cancelled() {
            return Err(Unavailable::Shutdown);
        }
        let live = |entry: &Entry| match entry {
            Entry::Live(live) if !live.key_gone() => Some(Arc::clone(live)),
            Entry::Live(_) | Entry::Sealed => None,
        };
        let all: Vec<_> = self.entries().values().filter_map(live).collect();
        if all.is_empty() { Err(Unavailable::Shutdown) } else { Ok(all) }
    }
}
