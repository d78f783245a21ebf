//! The node: pools that are always there, and volumes that are served while their keys are lent.
//!
//! Invariants:
//! - The lease machine is the only record of what is held; the heads are brought in line with it, never the reverse.
//! - A key is dropped before its head is told, and a head is filled only after the key is in force. A named key's users are told why
//!   first.
//! - Heads are filled and emptied under `served`, and filled only with a key that is in force then: what a wipe or a newer grant
//!   overtook displaces nothing.
//! - Lock order: `lease`, `opening`, `served`, then what heads and named keys have of their own. Of these only `opening` is held over
//!   what waits for a device.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use admin::api::Listening;
use hygiene::Subject;
use keyring::{AdmitError, EnvelopeKeyError, KeyGone, Keyring, SealedGrant};
use lease::GrantRefusal;
use lease::limits::{EPOCH_REPORTS_MAX, EPOCHS_MAX, NAMED_KEY_BYTES};
use lease::message::{
    EpochsInUse, OnRollback, OnSeal, PoolState, StateVerdict, VolumeKind, VolumePresent, WipeCause,
    WipeRecord, WipeStages,
};
use lease::node::{EpochToAdmit, EvidenceInput, GrantToAdmit, NodeLease, WipeReport};
use memory_overwrite::MemoryOverwrite;
use nbd_server::{Access, Export, NbdServer};
use objects::{KeyAway, NamedKeys, Store};
use pool::{Pool, PoolError, PoolErrorKind, PoolVolume, StateHead, VolumeInfo};
use s3_server::S3Server;
use sealing::{Bound, KeyFunction, KeyWitness, Snapshots, Volume, VolumeKeys};
use sources::SourceState;
use tokio::sync::broadcast;
use tokio_util::task::TaskTracker;
use units::{BootId, BootInstant, ByteLen, Fence, GrantId, NodeId, PoolId, VolumeEpoch, VolumeId};

use crate::attestor::Attestor;
use crate::boot_clock;
use crate::claims::Claims;
use crate::exports::ExportAccess;
use crate::health_watch::HealthWatch;
use crate::heartbeat::Heartbeats;
use crate::hygiene_watch::HygieneWatch;
use crate::lock::lock;
use crate::rekey::{self, Rekeyer};
use crate::replication::Replication;
use crate::retention::Retention;
use crate::schedule::Schedules;
use crate::scrub::Scrubber;
use crate::sources::cause;
use crate::trail::NodeTrail;
use crate::wiper::{Wipe, Wiper};

/// Sessions and waiting wipes are few; a session that lags behind this many wipes has been void for long.
const WIPE_BACKLOG: usize = 16;

/// An open pool and where it is.
#[derive(Debug)]
pub(crate) struct OpenPool {
    pub(crate) path: String,
    pub(crate) pool: Arc<Pool>,
    pub(crate) scrubber: Arc<Scrubber>,
    pub(crate) rekeyer: Arc<Rekeyer>,
}

/// A volume, or a snapshot of it, that can be decrypted.
#[derive(Debug)]
pub(crate) struct Unsealed {
    pub(crate) volume: Volume,
    pub(crate) sealed: Arc<PoolVolume>,
    /// What came next in the volume's life, and shows in part the same sectors.
    pub(crate) newer: Option<Arc<PoolVolume>>,
}

/// A volume whose key is held.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) label: String,
    kind: VolumeKind,
    grant: GrantId,
    fence: Fence,
    keys: Arc<VolumeKeys>,
    on_seal: nbd_server::OnSeal,
    /// Whether it is a named key and nothing else.
    is_named_key: bool,
}

/// What serves a volume, before it does.
enum Head {
    Key(KeyFunction),
    Disk(Export),
    Store(Arc<Store>),
}

/// What clients name a snapshot of a disk.
pub(crate) fn snapshot_label(volume: &str, snapshot: VolumeId) -> String {
    format!("{volume}@{snapshot}")
}

/// When the node was last sealed or unsealed, and why.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SealChange {
    pub(crate) since_boot: BootInstant,
    pub(crate) since_unix_s: u64,
    /// `None` before the first key of this run.
    pub(crate) cause: Option<WipeCause>,
}

impl SealChange {
    fn now(cause: Option<WipeCause>) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { since_boot: boot_clock::now(), since_unix_s: unix.as_secs(), cause }
    }
}

/// A wipe, as the sessions hear of it.
#[derive(Clone, Debug)]
pub(crate) struct WipeNotice {
    pub(crate) report: WipeReport,
    pub(crate) ended: Vec<GrantId>,
}

/// What the node is made of; see [`crate::startup`] for how it comes to be.
pub(crate) struct Parts {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) boot: BootId,
    pub(crate) listening: Vec<Listening>,
    pub(crate) keyholder_key_file: PathBuf,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) wiper: Arc<Wiper>,
    pub(crate) sources: Vec<Arc<SourceState>>,
    pub(crate) subject: Subject,
    pub(crate) hygiene_watch: Arc<HygieneWatch>,
    pub(crate) health_watch: Arc<HealthWatch>,
    pub(crate) heartbeats: Arc<Heartbeats>,
    pub(crate) memory_overwrite: Option<MemoryOverwrite>,
    pub(crate) lease: NodeLease,
    pub(crate) pools: Vec<OpenPool>,
    pub(crate) nbd: NbdServer,
    pub(crate) exports: ExportAccess,
    pub(crate) s3: S3Server,
    pub(crate) trail: NodeTrail,
    pub(crate) attestor: Option<Attestor>,
    pub(crate) retention: Retention,
    pub(crate) schedules: Schedules,
    pub(crate) replication: Replication,
}

/// The firmware's memory-overwrite request, and how many keys are on their way in.
struct OverwriteRequest {
    variable: MemoryOverwrite,
    arriving: usize,
}

impl OverwriteRequest {
    fn set(&self, clear: bool) {
        if let Err(error) = self.variable.request(clear) {
            tracing::error!(%error, clear, "the firmware's memory-overwrite request could not be changed");
        }
    }
}

/// A key on its way in: until it is served or refused nobody takes the request back.
struct Arriving<'a>(Option<&'a Mutex<OverwriteRequest>>);

impl<'a> Arriving<'a> {
    fn announce(request: Option<&'a Mutex<OverwriteRequest>>) -> Self {
        if let Some(request) = request {
            let mut request = lock(request);
            request.arriving += 1;
            request.set(true);
        }
        Self(request)
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.0 {
            lock(request).arriving -= 1;
        }
    }
}

/// The running node.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) boot: BootId,
    pub(crate) listening: Vec<Listening>,
    keyholder_key_file: PathBuf,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) wiper: Arc<Wiper>,
    pub(crate) sources: Vec<Arc<SourceState>>,
    pub(crate) subject: Subject,
    hygiene_watch: Arc<HygieneWatch>,
    pub(crate) health_watch: Arc<HealthWatch>,
    pub(crate) heartbeats: Arc<Heartbeats>,
    memory_overwrite: Option<Mutex<OverwriteRequest>>,
    pub(crate) pools: Vec<OpenPool>,
    pub(crate) nbd: NbdServer,
    pub(crate) exports: ExportAccess,
    pub(crate) s3: S3Server,
    pub(crate) trail: NodeTrail,
    pub(crate) attestor: Option<Attestor>,
    pub(crate) retention: Retention,
    pub(crate) schedules: Arc<Schedules>,
    pub(crate) replication: Replication,
    /// Portions of snapshots that were not taken in for want of space, since the start.
    pub(crate) refused_full: AtomicU64,
    lease: Mutex<NodeLease>,
    served: Mutex<BTreeMap<VolumeId, Served>>,
    /// From before one looks whether a volume is served until one has made it so, or it is gone.
    pub(crate) claims: Claims,
    store: Mutex<Option<Arc<Store>>>,
    /// From before one looks whether a store is served until another is.
    opening: Mutex<()>,
    named_keys: Arc<NamedKeys>,
    /// Named keys that came in since the last wipe, whether or not they are still here.
    keys_come: Mutex<BTreeSet<VolumeId>>,
    seal_change: Mutex<SealChange>,
    /// Pools whose state a key has found good in this run, with its count then: this program alone has changed them since.
    judged: Mutex<BTreeMap<PoolId, u64>>,
    /// Where in the list of what lies under which epoch the next challenge begins.
    epochs_turn: AtomicUsize,
    wipes: broadcast::Sender<WipeNotice>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Node {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts {
            id,
            name,
            boot,
            listening,
            keyholder_key_file,
            keyring,
            wiper,
            sources,
            subject,
            hygiene_watch,
            health_watch,
            heartbeats,
            memory_overwrite,
            lease,
            pools,
            nbd,
            exports,
            s3,
            trail,
            attestor,
            retention,
            schedules,
            replication,
        } = parts;
        let (wipes, _) = broadcast::channel(WIPE_BACKLOG);
        let node = Arc::new(Self {
            id,
            name,
            boot,
            listening,
            keyholder_key_file,
            keyring,
            wiper,
            sources,
            subject,
            hygiene_watch,
            health_watch,
            heartbeats,
            memory_overwrite: memory_overwrite
                .map(|variable| Mutex::new(OverwriteRequest { variable, arriving: 0 })),
            pools,
            nbd,
            exports,
            s3,
            trail,
            attestor,
            retention,
            schedules: Arc::new(schedules),
            replication,
            refused_full: AtomicU64::new(0),
            lease: Mutex::new(lease),
            served: Mutex::new(BTreeMap::new()),
            claims: Claims::default(),
            store: Mutex::new(None),
            opening: Mutex::default(),
            named_keys: Arc::default(),
            keys_come: Mutex::default(),
            seal_change: Mutex::new(SealChange::now(None)),
            judged: Mutex::default(),
            epochs_turn: AtomicUsize::new(0),
            wipes,
        });
        node.count_keys_to_come(|_| ());
        node
    }

    /// Says how many named keys are to come in still, after a change of which have.
    fn count_keys_to_come(&self, change: impl FnOnce(&mut BTreeSet<VolumeId>)) {
        let mut come = lock(&self.keys_come);
        change(&mut come);
        let volumes = self.pools.iter().flat_map(|open| open.pool.volumes());
        self.named_keys.set_awaited(keys_to_come(volumes, &come));
    }

    /// The lease machine.
    pub(crate) fn lease(&self) -> MutexGuard<'_, NodeLease> {
        lock(&self.lease)
    }

    /// The volumes whose keys are held.
    pub(crate) fn served(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Served>> {
        lock(&self.served)
    }

    /// The object store, while its key is held.
    pub(crate) fn store(&self) -> Option<Arc<Store>> {
        lock(&self.store).clone()
    }

    /// When and why the node was last sealed or unsealed.
    pub(crate) fn seal_change(&self) -> SealChange {
        let noted = *lock(&self.seal_change);
        match self.wiper.last() {
            // Served without a key: a wipe has just happened, and what follows it has not.
            Some(wipe) if !self.served().is_empty() && self.keyring.status().keys == 0 => SealChange {
                since_boot: wipe.record.at,
                cause: Some(wipe.record.cause),
                ..SealChange::now(None)
            },
            _ => noted,
        }
    }

    /// Whether no key is held.
    pub(crate) fn is_sealed(&self) -> bool {
        self.served().is_empty() || self.keyring.status().keys == 0
    }

    /// Hears of every wipe from now on.
    pub(crate) fn subscribe_wipes(&self) -> broadcast::Receiver<WipeNotice> {
        self.wipes.subscribe()
    }

    /// The pool that holds a volume, and the volume.
    pub(crate) fn find_volume(&self, volume: VolumeId) -> Option<(&OpenPool, Arc<PoolVolume>)> {
        self.pools.iter().find_map(|open| open.pool.volume(volume).ok().map(|found| (open, found)))
    }

    /// What of a pool can be decrypted: the volumes whose keys are held and, behind each, its snapshots from the newest to the
    /// oldest.
    pub(crate) fn unsealed(&self, pool: usize) -> Vec<Unsealed> {
        let Some(open) = self.pools.get(pool) else { return Vec::new() };
        let held: Vec<_> = self.served().iter().map(|(id, served)| (*id, Arc::clone(&served.keys))).collect();
        let snapshots = open.pool.snapshots();
        let mut unsealed = Vec::new();
        for (id, keys) in held {
            let Ok(volume) = open.pool.volume(id) else { continue };
            let of_volume = snapshots.iter().rev().filter(|snapshot| snapshot.volume == id);
            let snapshots = of_volume.filter_map(|snapshot| open.pool.snapshot(snapshot.id).ok());
            let mut newer = None;
            for sealed in std::iter::once(volume).chain(snapshots) {
                let volume = Volume::open_with(Arc::clone(&sealed), Arc::clone(&keys));
                let newer = newer.replace(Arc::clone(&sealed));
                unsealed.push(Unsealed { volume, sealed, newer });
            }
        }
        unsealed
    }

    /// The volumes of a pool whose keys are held.
    pub(crate) fn served_in(&self, pool: usize) -> Vec<rekey::Served> {
        let Some(open) = self.pools.get(pool) else { return Vec::new() };
        let served = self.served();
        let of_pool = served.iter().filter_map(|(id, served)| {
            let (sealed, keys) = (open.pool.volume(*id).ok()?, Arc::clone(&served.keys));
            Some(rekey::Served { id: *id, sealed, keys })
        });
        of_pool.collect()
    }

    /// The pool with this id.
    pub(crate) fn find_pool(&self, pool: PoolId) -> Option<&OpenPool> {
        self.pools.iter().find(|open| open.pool.info().id == pool)
    }

    /// Tells the lease machine which volumes there are now.
    pub(crate) fn volumes_changed(&self) {
        if let Err(error) = self.lease().set_volumes(volumes_present(&self.pools)) {
            tracing::error!(%error, "some volumes cannot be granted keys");
        }
        self.count_keys_to_come(|_| ());
    }

    /// Brings the keyring's deadline in line with the lease machine's.
    pub(crate) fn apply_deadline(&self) {
        let lease = self.lease();
        let set = self.wiper.set_deadline(lease.deadline());
        drop(lease);
        if let Err(errno) = set {
            // Each use of a key still checks the deadline; but nothing would take the keys away at it.
            self.wiper.wipe(WipeCause::Fault);
            tracing::error!(%errno, "the lease's timer could not be set; wiped");
        }
    }

    /// Brings the pinned grant-signing key in line with its file, so that enrolment needs no restart and the arena has
    /// it again after a wipe. Blocks for the reading.
    pub(crate) fn refresh_pin(&self) {
        let pin = match self.keyring.pinned_grant_key() {
            Some(pin) => Some(pin),
            None => config::read_public_key(&self.keyholder_key_file)
                .inspect(|pin| self.keyring.pin_grant_key(pin))
                .inspect_err(
                    |error| tracing::warn!(%error, "no keyholder is enrolled: no grant will be taken"),
                )
                .ok(),
        };
        let mut lease = self.lease();
        if lease.pin() != pin {
            lease.set_pin(pin);
        }
    }

    /// What a session sends as evidence. Blocks for the making of a key pair.
    pub(crate) fn evidence(&self) -> Result<EvidenceInput, EnvelopeKeyError> {
        let envelope_key = self.keyring.fresh_envelope_key()?;
        if self.is_sealed() {
            // What the keyholder now judges is what may not get worse.
            self.hygiene_watch.accept();
        }
        let hygiene = serde_json::to_string(&self.subject.report()).unwrap_or_default();
        Ok(EvidenceInput { hygiene, envelope_key, attests: self.attestor.is_some() })
    }

    /// Takes a key in and serves its volume. Blocks on the pool.
    pub(crate) fn admit(&self, grant: &GrantToAdmit) -> Result<StateVerdict, GrantRefusal> {
        let _claim = self.claims.for_grant(grant.volume).ok_or_else(|| {
            tracing::warn!(volume = %grant.volume, "a key came while the volume was being deleted or rolled back");
            GrantRefusal::VolumeFailed
        })?;
        let (open, volume) = self.find_volume(grant.volume).ok_or(GrantRefusal::WrongVolume)?;
        // What fires from here on wipes the envelope key too, and the grant then does not open.
        if let Some(condition) = self.sources.iter().find_map(|source| source.standing()) {
            return Err(GrantRefusal::TriggerStanding(cause(condition)));
        }
        // Before the key is there: a reset from here on makes the firmware clear memory.
        let _arriving = Arriving::announce(self.memory_overwrite.as_ref());
        // 1. The fence is durable before the key is opened: after a crash no older grant can come in.
        raise_fence(&open.pool, grant.volume, grant.fence)?;
        // 2. The keys are checked against their check values and kept.
        let keys = self.admit_keys(grant)?;
        // 3. What the device holds is what it was last known to hold, or came of it.
        let verdict = self.judge_state(open, &volume, grant, &keys).inspect_err(|_| keys.drop_all())?;
        self.begin_newest_epoch(open, &volume, grant, &keys);
        // 4. The heads serve it.
        self.serve(open, volume, grant, &keys).inspect_err(|_| keys.drop_all())?;
        tracing::info!(
            label = grant.label, volume = %grant.volume, grant = %grant.grant, fence = %grant.fence, state = %verdict, "unsealed"
        );
        Ok(verdict)
    }

    /// Serves a volume whose key has come in, unless a wipe or a newer grant came meanwhile. Blocks on the pool.
    fn serve(
        &self,
        open: &OpenPool,
        volume: Arc<PoolVolume>,
        grant: &GrantToAdmit,
        keys: &Arc<VolumeKeys>,
    ) -> Result<(), GrantRefusal> {
        let on_seal = match grant.on_seal {
            OnSeal::Hold => nbd_server::OnSeal::Hold,
            OnSeal::Fail => nbd_server::OnSeal::Fail,
        };
        let is_named_key = is_named_key(grant.kind, volume.info().sectors.byte_len());
        let (label, kind, fence) = (grant.label.clone(), grant.kind, grant.fence);
        let served =
            Served { label, kind, grant: grant.grant, fence, keys: Arc::clone(keys), on_seal, is_named_key };
        // Of two stores that come at once the second finds the first.
        let is_store = kind == VolumeKind::Objects && !is_named_key;
        let _opening = is_store.then(|| lock(&self.opening));
        let head = self.make_head(&open.pool, volume, grant, &served)?;
        let of_volume = open.pool.snapshots().into_iter().filter(|snapshot| snapshot.volume == grant.volume);
        let snapshots: Vec<_> =
            of_volume.filter_map(|found| self.snapshot_export(&open.pool, &served, found.id)).collect();

        let mut all = self.served();
        let newest = all.get(&grant.volume).map(|newest| newest.fence);
        if let Some(why) = overtaken(keys.check(), fence, newest) {
            drop(all);
            tracing::warn!(label = served.label, volume = %grant.volume, grant = %grant.grant, why, "a key came too late");
            if let Head::Store(store) = head {
                store.close();
            }
            return Err(GrantRefusal::Wiped);
        }
        match head {
            Head::Key(function) => self.named_keys.lend(&served.label, function),
            Head::Disk(export) => self.exports.insert(&self.nbd, &served.label, export).map_err(|error| {
                tracing::error!(label = served.label, %error, "a volume cannot be exported under its label");
                GrantRefusal::VolumeFailed
            })?,
            Head::Store(store) => {
                *lock(&self.store) = Some(Arc::clone(&store));
                self.s3.set_store(Some(store));
            }
        }
        snapshots.into_iter().for_each(|(label, export)| self.insert_snapshot(&label, export));
        if all.is_empty() {
            *lock(&self.seal_change) = SealChange::now(None);
        }
        let several = served.keys.epochs().len() > 1 && !is_named_key;
        all.insert(grant.volume, served);
        if is_named_key {
            // Under the same lock as a wipe's clearing of it.
            self.count_keys_to_come(|come| {
                come.insert(grant.volume);
            });
        }
        drop(all);
        if several {
            open.rekeyer.begin(grant.volume);
        }
        Ok(())
    }

    /// Takes in the keys of a grant: all, or none.
    fn admit_keys(&self, grant: &GrantToAdmit) -> Result<Arc<VolumeKeys>, GrantRefusal> {
        let keys = VolumeKeys::new(Arc::clone(&self.keyring), []);
        let present = (grant.epoch, grant.check, &grant.aad, &grant.envelope);
        let further = grant.further.iter().map(|key| (key.epoch, key.check, &key.aad, &key.envelope));
        for (epoch, check, aad, envelope) in std::iter::once(present).chain(further) {
            let domain = grant.domain;
            let sealed = SealedGrant { domain, epoch, check, info: &grant.info, aad, envelope };
            match self.keyring.admit(&sealed) {
                Ok(admitted) => keys.add(epoch, admitted.handle),
                Err(error) => {
                    keys.drop_all();
                    return Err(refusal(&error));
                }
            }
        }
        Ok(keys)
    }

    /// Writes the volume under the newest epoch that came with its grant. Where that cannot be, it is served as it was, and the
    /// keyholder gives the epoch again.
    fn begin_newest_epoch(
        &self,
        open: &OpenPool,
        volume: &PoolVolume,
        grant: &GrantToAdmit,
        keys: &Arc<VolumeKeys>,
    ) {
        if is_named_key(grant.kind, volume.info().sectors.byte_len()) {
            return;
        }
        let newest = grant.further.iter().max_by_key(|key| key.epoch).filter(|key| key.epoch > grant.epoch);
        let Some(newest) = newest else { return };
        let begun = self.begin_key_epoch(open, volume, keys, (newest.epoch, newest.check));
        if let Err(error) = begun {
            tracing::warn!(label = grant.label, epoch = %newest.epoch, %error, "the volume is not written under its new epoch yet");
        }
    }

    /// From when this returns the volume is written under an epoch whose key is held, durably, and that key vouches for it.
    fn begin_key_epoch(
        &self,
        open: &OpenPool,
        volume: &PoolVolume,
        keys: &Arc<VolumeKeys>,
        (epoch, check): (VolumeEpoch, [u8; 16]),
    ) -> Result<(), PoolError> {
        open.pool.begin_epoch(volume.id(), epoch, check)?;
        if let Some(key) = keys.of(epoch) {
            let bound = Bound { domain: volume.info().domain, epoch };
            volume.set_witness(Arc::new(KeyWitness::new(Arc::clone(&self.keyring), key, bound)))?;
        }
        self.volumes_changed();
        Ok(())
    }

    /// Takes in the key of a new epoch of a volume that is served, and writes it under that from now on. Blocks on the pool.
    pub(crate) fn admit_epoch(&self, given: &EpochToAdmit) -> Result<(), GrantRefusal> {
        let EpochToAdmit { grant, volume: id, domain, key, info } = given;
        let _claim = self.claims.for_grant(*id).ok_or(GrantRefusal::VolumeFailed)?;
        let (open, volume) = self.find_volume(*id).ok_or(GrantRefusal::WrongVolume)?;
        let keys = self.keys_of(*id, *grant).ok_or(GrantRefusal::NotHeld)?;
        if self.served().get(id).is_some_and(|served| served.is_named_key) {
            return Err(GrantRefusal::OneEpoch);
        }
        if keys.of(key.epoch).is_none() {
            let (epoch, check) = (key.epoch, key.check);
            let sealed =
                SealedGrant { domain: *domain, epoch, check, info, aad: &key.aad, envelope: &key.envelope };
            let admitted = self.keyring.admit(&sealed).map_err(|error| refusal(&error))?;
            keys.add(key.epoch, admitted.handle);
            // Whoever has taken the volume's keys back meanwhile did not know of this one.
            if self.keys_of(*id, *grant).is_none() {
                keys.drop_all();
                return Err(GrantRefusal::NotHeld);
            }
        }
        self.begin_key_epoch(open, &volume, &keys, (key.epoch, key.check)).map_err(|error| {
            tracing::error!(volume = %id, epoch = %key.epoch, %error, "a new epoch could not begin");
            match error.kind() {
                PoolErrorKind::NoSpace => GrantRefusal::NoSpace,
                _ => GrantRefusal::VolumeFailed,
            }
        })?;
        open.rekeyer.begin(*id);
        tracing::info!(volume = %id, epoch = %key.epoch, "written under a new epoch");
        Ok(())
    }

    fn keys_of(&self, volume: VolumeId, grant: GrantId) -> Option<Arc<VolumeKeys>> {
        let served = self.served();
        served.get(&volume).filter(|served| served.grant == grant).map(|served| Arc::clone(&served.keys))
    }

    /// Writes down what became of a new epoch. Blocks until that is durable.
    pub(crate) fn note_epoch(&self, given: &EpochToAdmit, refused: Option<&GrantRefusal>) {
        let fields = [
            ("volume", given.volume.to_string().into()),
            ("grant", given.grant.to_string().into()),
            ("epoch", given.key.epoch.0.into()),
            ("why", refused.map(ToString::to_string).into()),
        ];
        match refused {
            None => self.trail.note("epoch-taken", fields),
            // It is given again and again.
            Some(_) => self.trail.note_refusal("epoch-refused", fields),
        }
    }

    /// Compares the pool's state with the one in the grant, and has the key vouch for it and for what comes.
    fn judge_state(
        &self,
        open: &OpenPool,
        volume: &PoolVolume,
        grant: &GrantToAdmit,
        keys: &VolumeKeys,
    ) -> Result<StateVerdict, GrantRefusal> {
        let witness = |epoch: VolumeEpoch| {
            let bound = Bound { domain: grant.domain, epoch };
            keys.of(epoch).map(|key| KeyWitness::new(Arc::clone(&self.keyring), key, bound))
        };
        // Any of its keys may have been the one that vouched then.
        let any: Vec<KeyWitness> = keys.epochs().into_iter().filter_map(witness).collect();
        let witness = witness(grant.epoch).ok_or(GrantRefusal::WrongKey)?;
        let pool = open.pool.info().id;
        let verdict = match grant.known_state {
            Some(known) if known.pool != pool => StateVerdict::OtherPool,
            known => {
                let told = known.map(|known| StateHead { count: known.count, chain: known.chain });
                state_verdict(
                    volume.judge_state(told, |state, word| any.iter().any(|one| one.is_word(state, word))),
                )
            }
        };
        // What was on its way when the keys went is written without one.
        let is_our_own =
            |known: PoolState| lock(&self.judged).get(&pool).is_some_and(|count| *count <= known.count);
        let verdict = match verdict {
            StateVerdict::Unvouched { .. } | StateVerdict::Unconnected
                if grant.known_state.is_some_and(is_our_own) =>
            {
                StateVerdict::Continues
            }
            verdict => verdict,
        };
        if !verdict.is_good() {
            tracing::error!(label = grant.label, %pool, state = %verdict, known = ?grant.known_state, "the pool's state");
            if verdict.is_rollback() && grant.on_rollback == OnRollback::Refuse {
                return Err(GrantRefusal::RolledBack(verdict));
            }
        }
        volume.set_witness(Arc::new(witness)).map_err(|error| {
            tracing::error!(label = grant.label, %error, "the pool's state could not be vouched for");
            GrantRefusal::VolumeFailed
        })?;
        if let Some(state) = open.pool.tell_state() {
            lock(&self.judged).entry(pool).or_insert(state.count);
        }
        Ok(verdict)
    }

    /// The lease machine, with the pools' states as they are now for what it may send.
    pub(crate) fn lease_to_tell(&self) -> MutexGuard<'_, NodeLease> {
        let states = self.pool_states();
        // A volume in one pool, and a replica of it in another, are one to whoever asks what the node still has.
        let of_pools = self.pools.iter().map(|open| open.rekeyer.in_use(&open.pool));
        let told = |(volume, epochs): (VolumeId, BTreeSet<VolumeEpoch>)| EpochsInUse {
            volume,
            epochs: epochs.into_iter().collect(),
        };
        let mut epochs: Vec<EpochsInUse> = in_use_of_all(of_pools).into_iter().map(told).collect();
        if epochs.len() > EPOCH_REPORTS_MAX {
            // The others with the next challenges.
            let turn = self.epochs_turn.fetch_add(EPOCH_REPORTS_MAX, Ordering::Relaxed);
            let first = turn % epochs.len();
            epochs.rotate_left(first);
        }
        let due = self.pools.iter().flat_map(|open| open.rekeyer.due(&open.pool)).collect();
        let mut lease = self.lease();
        lease.set_states(states);
        lease.set_epochs(epochs, due);
        lease
    }

    /// The durable states of the pools that a key has found good in this run, also while they are sealed again: what changes
    /// them then, this program does.
    fn pool_states(&self) -> Vec<PoolState> {
        let judged = lock(&self.judged).clone();
        let state = |open: &OpenPool| {
            let pool = open.pool.info().id;
            let StateHead { count, chain } =
                judged.contains_key(&pool).then(|| open.pool.tell_state()).flatten()?;
            Some(PoolState { pool, count, chain })
        };
        self.pools.iter().filter_map(state).take(lease::limits::POOLS_MAX).collect()
    }

    /// Makes what is to serve a volume, and fills no head yet.
    fn make_head(
        &self,
        pool: &Arc<Pool>,
        volume: Arc<PoolVolume>,
        grant: &GrantToAdmit,
        served: &Served,
    ) -> Result<Head, GrantRefusal> {
        let Served { label, kind, on_seal, is_named_key, keys, .. } = served;
        if *is_named_key {
            // It has one epoch for its life: what it made is under that one.
            let key = keys.of(grant.epoch).ok_or(GrantRefusal::WrongKey)?;
            let bound = Bound { domain: grant.domain, epoch: grant.epoch };
            return Ok(Head::Key(KeyFunction::new(Arc::clone(&self.keyring), key, bound)));
        }
        let volume = Volume::open_with(volume, Arc::clone(keys));
        if *kind == VolumeKind::Block {
            let snapshots = Snapshots::of(Arc::clone(pool), volume.id());
            let (on_seal, access) = (*on_seal, Access::default());
            return Ok(Head::Disk(Export { volume, snapshots, read_only: false, on_seal, access }));
        }
        // The head has one store. Named keys are of its kind, and may well have come first.
        let is_another = |(id, other): (&VolumeId, &Served)| {
            let is_store = other.kind == VolumeKind::Objects && !other.is_named_key;
            (*id != volume.id() && is_store).then(|| other.label.clone())
        };
        if let Some(other) = self.served().iter().find_map(is_another) {
            tracing::error!(
                label,
                other,
                "this node serves another object store already; promote one of them to another node"
            );
            return Err(GrantRefusal::VolumeFailed);
        }
        let store = Store::open_with_keys(volume, Arc::clone(&self.named_keys)).map_err(|error| {
            tracing::error!(label, %error, "the object store cannot be opened");
            GrantRefusal::VolumeFailed
        })?;
        Ok(Head::Store(store))
    }

    /// Serves a snapshot of a disk that is served, to read.
    pub(crate) fn export_snapshot(&self, pool: &Arc<Pool>, served: &Served, snapshot: VolumeId) {
        if let Some((label, export)) = self.snapshot_export(pool, served, snapshot) {
            self.insert_snapshot(&label, export);
        }
    }

    fn snapshot_export(
        &self,
        pool: &Arc<Pool>,
        served: &Served,
        snapshot: VolumeId,
    ) -> Option<(String, Export)> {
        if served.kind != VolumeKind::Block {
            return None;
        }
        // It may have been deleted meanwhile.
        let found = pool.snapshot(snapshot).ok()?;
        let snapshots = Snapshots::of(Arc::clone(pool), found.origin()?);
        let volume = Volume::open_with(found, Arc::clone(&served.keys));
        let label = snapshot_label(&served.label, snapshot);
        let (on_seal, access) = (served.on_seal, Access::default());
        Some((label, Export { volume, snapshots, read_only: true, on_seal, access }))
    }

    fn insert_snapshot(&self, label: &str, export: Export) {
        if let Err(error) = self.exports.insert(&self.nbd, label, export) {
            tracing::error!(label, %error, "a snapshot cannot be exported");
        }
    }

    /// Writes down what became of a grant. Blocks until that is durable.
    pub(crate) fn note_grant(&self, grant: &GrantToAdmit, refused: Option<&GrantRefusal>) {
        let event = if refused.is_none() { "key-taken" } else { "key-refused" };
        let fields = [
            ("volume", grant.volume.to_string().into()),
            ("grant", grant.grant.to_string().into()),
            ("fence", grant.fence.0.into()),
            ("why", refused.map(ToString::to_string).into()),
        ];
        self.trail.note(event, fields);
    }

    /// Writes down a grant that the protocol refused: replayed, old, or made for something else. Blocks until that is durable.
    pub(crate) fn note_refused_grant(&self, volume: VolumeId, grant: GrantId, reason: GrantRefusal) {
        let fields = [
            ("volume", volume.to_string().into()),
            ("grant", grant.to_string().into()),
            ("why", reason.to_string().into()),
        ];
        self.trail.note_refusal("key-refused", fields);
    }

    /// Takes back one volume's key and stops serving it; `true` where it was held. Blocks shortly, and for no disk:
    /// [`Self::note_drop`] writes it down.
    pub(crate) fn drop_volume(
        &self,
        volume: VolumeId,
        grant: GrantId,
        cause: WipeCause,
    ) -> (WipeReport, bool) {
        let started = boot_clock::now();
        let mut all = self.served();
        let is_held = all.get(&volume).is_some_and(|served| served.grant == grant);
        let dropped = is_held.then(|| all.remove(&volume)).flatten();
        let left = all.len();
        let store = dropped.as_ref().and_then(|served| self.stop_serving(volume, served, cause));
        drop(all);
        if let Some(store) = store {
            // It waits for its threads and lets go of the index and its cache.
            store.close();
        }
        let was_held = dropped.is_some();
        if let Some(served) = dropped {
            self.pools.iter().for_each(|open| open.rekeyer.forget(volume));
            if left == 0 {
                *lock(&self.seal_change) = SealChange::now(Some(cause));
            }
            tracing::warn!(label = served.label, %volume, %cause, "sealed one volume");
        }
        let at = boot_clock::now();
        let generation = self.keyring.status().generation;
        let record = WipeRecord { cause, at, generation };
        let stages = WipeStages::keys(at.0.saturating_sub(started.0));
        (WipeReport { record, stages, more: false }, was_held)
    }

    /// Writes down that one volume's key was taken back. Blocks until that is durable.
    pub(crate) fn note_drop(&self, volume: VolumeId, grant: GrantId, cause: WipeCause) {
        let fields = [
            ("volume", volume.to_string().into()),
            ("grant", grant.to_string().into()),
            ("cause", cause.name().into()),
        ];
        self.trail.note("key-dropped", fields);
    }

    /// Memory is clear: the firmware need not do it. Only after the last stage of the last wipe, and only where no push has
    /// come in since. Blocks shortly: the variable is a file.
    pub(crate) fn take_back_overwrite_request(&self, wipe: &Wipe) {
        let Some(request) = &self.memory_overwrite else { return };
        let request = lock(request);
        let is_last = self.wiper.last().is_some_and(|last| last.record == wipe.record);
        if is_last && self.wiper.stages_of(wipe).reached() == 3 && request.arriving == 0 && self.is_sealed() {
            request.set(false);
        }
    }

    /// Drops a volume's key and tells its head. A store that served it is to be closed.
    fn stop_serving(&self, volume: VolumeId, served: &Served, cause: WipeCause) -> Option<Arc<Store>> {
        if served.is_named_key {
            self.named_keys.take_back(&served.label, key_away(cause));
            served.keys.drop_all();
            return None;
        }
        served.keys.drop_all();
        match served.kind {
            VolumeKind::Block => {
                self.nbd.seal(&served.label);
                let snapshots = self.pools.iter().flat_map(|open| open.pool.snapshots());
                snapshots
                    .filter(|snapshot| snapshot.volume == volume)
                    .for_each(|snapshot| self.nbd.seal(&snapshot_label(&served.label, snapshot.id)));
                None
            }
            VolumeKind::Objects => {
                // Clients are refused first.
                self.s3.set_store(None);
                lock(&self.store).take()
            }
        }
    }

    /// What follows a wipe at once, without waiting for anyone: heads are closed and sessions told. Returns who is leaving.
    pub(crate) fn seal(&self, wipe: &Wipe) -> Leaving {
        let mut all = self.served();
        let mut connections = self.nbd.seal_all();
        connections.push(self.s3.leaving());
        self.s3.set_store(None);
        self.named_keys.take_all_back();
        self.count_keys_to_come(BTreeSet::clear);
        let store = lock(&self.store).take();
        let served = std::mem::take(&mut *all);
        drop(all);
        // The wipe took them, unless this news is late and a push has come in between: then they go now.
        served.values().for_each(|served| served.keys.drop_all());
        for open in &self.pools {
            served.keys().for_each(|volume| open.rekeyer.forget(*volume));
        }
        let cause = wipe.record.cause;
        let mut lease = self.lease();
        let ended = lease.on_wiped(wipe.record);
        // The machine knows whether this wipe is the reason for the seal, or found the node sealed already.
        if lease.last_wipe() == Some(wipe.record) {
            *lock(&self.seal_change) = SealChange::now(Some(cause));
        }
        drop(lease);
        self.apply_deadline();
        let wipe_ns = wipe.stages.keys_ns;
        tracing::warn!(%cause, keys = wipe.keys, wipe_ns, volumes = served.len(), "wiped: the node is sealed");
        self.tell(wipe, &ended, true);
        let scrubbers = self.pools.iter().map(|open| Arc::clone(&open.scrubber)).collect();
        let rekeyers = self.pools.iter().map(|open| Arc::clone(&open.rekeyer)).collect();
        Leaving { connections, store, scrubbers, rekeyers, ended }
    }

    /// The last word on a wipe: how far it came. Blocks shortly.
    pub(crate) fn after_wipe(&self, wipe: &Wipe, ended: &[GrantId]) {
        self.tell(wipe, ended, false);
        let stages = self.wiper.stages_of(wipe);
        let fields = [
            ("cause", wipe.record.cause.name().into()),
            ("at_boot_ns", wipe.record.at.0.into()),
            ("generation", wipe.record.generation.into()),
            ("keys", wipe.keys.into()),
            ("stage", stages.reached().into()),
            ("wipe_ns", stages.keys_ns.into()),
        ];
        self.trail.note("wiped", fields);
    }

    fn tell(&self, wipe: &Wipe, ended: &[GrantId], more: bool) {
        let report = WipeReport { record: wipe.record, stages: self.wiper.stages_of(wipe), more };
        // No session is listening before the first keyholder has dialled.
        let _ = self.wipes.send(WipeNotice { report, ended: ended.to_vec() });
    }
}

/// Who still has something of a sealed volume in memory.
#[derive(Debug)]
pub(crate) struct Leaving {
    connections: Vec<TaskTracker>,
    store: Option<Arc<Store>>,
    scrubbers: Vec<Arc<Scrubber>>,
    rekeyers: Vec<Arc<Rekeyer>>,
    /// The grants that the wipe ended.
    pub(crate) ended: Vec<GrantId>,
}

impl Leaving {
    /// Returns once nobody has: the last connection has ended, and the store has let go of its index and its cache. What is
    /// freed is zeroed by the allocator.
    pub(crate) async fn gone(self) {
        let store = self.store.map(|store| tokio::task::spawn_blocking(move || store.close()));
        // Each lets go as soon as it wakes, and then its thread is wiped, for which the others wait. Its lock may wait for a disk.
        let woken = tokio::task::spawn_blocking(move || {
            self.scrubbers.iter().for_each(|scrubber| scrubber.wake());
            self.rekeyers.iter().for_each(|rekeyer| rekeyer.wake());
        });
        for connections in &self.connections {
            connections.wait().await;
        }
        if let Some(store) = store {
            // A panic in there has ended the process.
            let _ = store.await;
        }
        let _ = woken.await;
    }
}

/// What the users of a named key are told that goes for this cause: only what a person did is for good.
fn key_away(cause: WipeCause) -> KeyAway {
    match cause {
        WipeCause::Revoked | WipeCause::Deleted => KeyAway::Revoked,
        _ => KeyAway::Sealed,
    }
}

/// Why a key that was taken in is not served any more, if it is not: a wipe took it, or a newer grant of the same volume is served.
fn overtaken(key: Result<(), KeyGone>, fence: Fence, newest: Option<Fence>) -> Option<&'static str> {
    match key {
        Err(_) => Some("it went with a wipe or its lease"),
        Ok(()) => newest.is_some_and(|newest| newest > fence).then_some("a newer grant is served"),
    }
}

/// How many of these volumes are named keys that are to come in: those of replicas do not, and of those that have come some may have
/// been taken back.
fn keys_to_come(volumes: impl Iterator<Item = VolumeInfo>, come: &BTreeSet<VolumeId>) -> usize {
    let is_key = |info: &VolumeInfo| {
        let is_objects = info.kind == pool::VolumeKind::Objects;
        is_objects && info.sectors.byte_len() == Some(ByteLen(NAMED_KEY_BYTES)) && !info.replica
    };
    volumes.filter(|info| is_key(info) && !come.contains(&info.id)).count()
}

/// Whether a volume is a named key: no store fits on it.
pub(crate) fn is_named_key(kind: VolumeKind, size: Option<ByteLen>) -> bool {
    kind == VolumeKind::Objects && size == Some(ByteLen(NAMED_KEY_BYTES))
}

/// The volumes of all pools, as the lease machine wants them.
pub(crate) fn volumes_present(pools: &[OpenPool]) -> Vec<VolumePresent> {
    let of_pool = |open: &OpenPool| {
        let pool_id = open.pool.info().id;
        open.pool.volumes().into_iter().map(move |info| (pool_id, info))
    };
    let volumes = pools.iter().flat_map(of_pool);
    volumes
        .filter_map(|(pool_id, info)| {
            Some(VolumePresent {
                volume: info.id,
                pool: pool_id,
                domain: info.domain,
                epoch: info.epoch,
                check: info.check,
                size_bytes: info.sectors.byte_len()?,
                fence: info.fence,
            })
        })
        .collect()
}

/// What each volume has under which epochs in all pools together, where each of them that has something of it knows that.
fn in_use_of_all(
    pools: impl Iterator<Item = BTreeMap<VolumeId, Option<BTreeSet<VolumeEpoch>>>>,
) -> BTreeMap<VolumeId, BTreeSet<VolumeEpoch>> {
    let mut all: BTreeMap<VolumeId, Option<BTreeSet<VolumeEpoch>>> = BTreeMap::new();
    for (volume, epochs) in pools.flatten() {
        let known = all.entry(volume).or_insert_with(|| Some(BTreeSet::new()));
        *known = known.take().zip(epochs).map(|(known, epochs)| &known | &epochs);
    }
    // What is under more epochs than there can be is told when it is not any more: until then it keeps all of them.
    let told = all.into_iter().filter_map(|(volume, epochs)| Some((volume, epochs?)));
    told.filter(|(_, epochs)| epochs.len() <= EPOCHS_MAX).collect()
}

fn state_verdict(verdict: pool::Verdict) -> StateVerdict {
    match verdict {
        pool::Verdict::NotKept => StateVerdict::NotKept,
        pool::Verdict::First => StateVerdict::First,
        pool::Verdict::Continues => StateVerdict::Continues,
        pool::Verdict::Unvouched { batches } => StateVerdict::Unvouched { batches },
        pool::Verdict::Unconnected => StateVerdict::Unconnected,
        pool::Verdict::Older => StateVerdict::Older,
        pool::Verdict::Other => StateVerdict::Other,
        pool::Verdict::Altered => StateVerdict::Altered,
    }
}

fn raise_fence(pool: &Pool, volume: VolumeId, fence: Fence) -> Result<(), GrantRefusal> {
    pool.raise_fence(volume, fence).map_err(|error| match error {
        pool::PoolError::StaleFence { given, highest, .. } => {
            GrantRefusal::OldFence { offered: given, highest }
        }
        error if error.kind() == PoolErrorKind::NoSuchVolume => GrantRefusal::WrongVolume,
        error => {
            tracing::error!(%volume, %fence, %error, "the fence of a grant could not be recorded");
            GrantRefusal::FenceNotDurable
        }
    })
}

fn refusal(error: &AdmitError) -> GrantRefusal {
    tracing::warn!(%error, "a granted key was not taken");
    match error {
        AdmitError::NoEnvelopeKey | AdmitError::Envelope(_) | AdmitError::Random(_) => {
            GrantRefusal::Unopenable
        }
        AdmitError::WrongKey { .. } | AdmitError::EqualHalves => GrantRefusal::WrongKey,
        AdmitError::TooManyKeys { .. } => GrantRefusal::TooManyKeys,
        AdmitError::Wiped => GrantRefusal::Wiped,
    }
}

#[cfg(test)]
mod tests {
    use units::{DomainId, SectorCount, VolumeEpoch};

    use super::*;

    #[test]
    fn a_grant_that_was_overtaken_displaces_nothing() {
        let (older, newer) = (Fence(1), Fence(2));
        assert_eq!(overtaken(Ok(()), newer, None), None);
        assert_eq!(overtaken(Ok(()), newer, Some(older)), None);
        assert!(overtaken(Ok(()), older, Some(newer)).is_some());
        assert!(overtaken(Err(KeyGone::Wiped), newer, None).is_some());
        assert!(overtaken(Err(KeyGone::Stale), newer, Some(older)).is_some());
    }

    #[test]
    fn a_volume_is_told_of_once_every_pool_that_has_it_has_counted() {
        let (first, second) = (VolumeId([1; 16]), VolumeId([2; 16]));
        let epochs = |of: &[u32]| of.iter().map(|epoch| VolumeEpoch(*epoch)).collect::<BTreeSet<_>>();
        let pools = |there: Option<BTreeSet<VolumeEpoch>>| {
            [
                BTreeMap::from([(first, Some(epochs(&[2]))), (second, Some(epochs(&[])))]),
                BTreeMap::from([(first, there)]),
            ]
        };
        let told = in_use_of_all(pools(Some(epochs(&[1, 2]))).into_iter());
        assert_eq!(told, BTreeMap::from([(first, epochs(&[1, 2])), (second, epochs(&[]))]));
        let told = in_use_of_all(pools(None).into_iter());
        assert_eq!(told, BTreeMap::from([(second, epochs(&[]))]), "one pool alone would let an epoch go");
        let many = epochs(&(1..=u32::try_from(EPOCHS_MAX).unwrap() + 1).collect::<Vec<_>>());
        assert!(!in_use_of_all(pools(Some(many)).into_iter()).contains_key(&first));
    }

    #[test]
    fn keys_are_awaited_that_are_here_and_have_not_come() {
        let volume = |id: u8, kind, sectors: u64, replica| VolumeInfo {
            id: VolumeId([id; 16]),
            sectors: SectorCount(sectors),
            domain: DomainId([id; 16]),
            epoch: VolumeEpoch(1),
            check: [0; 16],
            kind,
            fence: Fence(0),
            allocated: ByteLen(0),
            limits: Default::default(),
            clone_of: None,
            replica,
            encrypted_blocks: 0,
        };
        let volumes = || {
            [
                volume(1, pool::VolumeKind::Objects, 1, false),
                volume(2, pool::VolumeKind::Objects, 1, false),
                volume(3, pool::VolumeKind::Objects, 1, true),
                volume(4, pool::VolumeKind::Objects, 1 << 20, false),
                volume(5, pool::VolumeKind::Block, 1, false),
            ]
            .into_iter()
        };
        let mut come = BTreeSet::new();
        assert_eq!(keys_to_come(volumes(), &come), 2);
        come.insert(VolumeId([2; 16]));
        assert_eq!(keys_to_come(volumes(), &come), 1);
    }

    #[test]
    fn only_what_a_person_took_back_is_revoked() {
        for cause in WipeCause::ALL {
            let is_revoked = matches!(cause, WipeCause::Revoked | WipeCause::Deleted);
            assert_eq!(key_away(*cause) == KeyAway::Revoked, is_revoked, "{cause}");
        }
    }
}
