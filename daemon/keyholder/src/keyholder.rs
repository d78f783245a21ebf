//! The keyholder as a whole: the book, the vault, one dialler per node, and the acts that need all three.

mod cluster;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use identity::{
    ClientError, Credentials, Endpoint, ExpectedPeer, GuestKey, HttpsClient, NodeKey, PeerIdentity, Role,
    Trust, control_client,
};
use lease::message::{RevokeCause, Scope};
use locked_memory::Policy;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use units::{BootInstant, Fence, NodeId, RootEpoch, VolumeId};

use crate::access::Rule;
use crate::api::{
    AddNode, ApproveNode, AuditDigests, CeremonyRequest, CeremonyResult, ChangeNode, CloneVolume,
    Compromised, Connection, CreateVolume, DrillReport, KeyState, KeyholderStatus, LedgerBackup, NodeEntry,
    NodeOutcome, OidcLoggedIn, OidcProvider, Outcome, PolicyPreview, PromoteVolume, PushPolicy, ResizeVolume,
    RollBackVolume, SealState, Target, UnsealProgress, UnsealRequest, VolumeEntry, VolumeErased,
};
use crate::book::{Book, Grave, LeaseBounds, suspicions};
use crate::clock;
use crate::cluster::etcd::Etcd;
use crate::cluster::links::Links;
use crate::cluster::run as cluster_run;
use crate::cluster::shared::Access;
use crate::durable::{StateDir, StorageError};
use crate::error::KeyholderError;
use crate::heads;
use crate::link::{self, COMMANDS_MAX, Command};
use crate::oidc::{OidcError, Provider};
use crate::requests::{self, Requests};
use crate::vault::{Vault, VaultError};
use crate::webhooks::{self, Webhook, Webhooks};

/// How long an act waits for the nodes' signed receipts before it answers without them.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a node's full queue may hold up an order to forget. The latch is written after it.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a creation or a push waits for the node to serve the volume.
const PUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is looked whether a key is due for a new epoch: a key that has encrypted 2^43 blocks has as many again to go, which
/// take days.
const ROTATIONS_LOOKED_FOR_EVERY: Duration = Duration::from_secs(60);

/// The store that this keyholder shares with others.
#[derive(Debug)]
pub struct SharedStoreParams {
    /// etcd's members.
    pub endpoints: Vec<Endpoint>,
    /// How they are told from others, and what this keyholder shows them.
    pub tls: Arc<rustls::ClientConfig>,
    /// What the name of every value begins with.
    pub prefix: String,
    /// This keyholder's administrative port, as people and other keyholders reach it.
    pub address: Endpoint,
    /// How much further than a lease is recorded that a key may be held.
    pub record_ahead_ms: u64,
}

/// What a keyholder is started with.
#[derive(Debug)]
pub struct KeyholderParams {
    /// Its name, as in its certificate.
    pub name: String,
    /// Where its ledger, lease records and audit trail are.
    pub state_dir: PathBuf,
    /// Lease of nodes that are added without one.
    pub lease_ms: u64,
    /// Longest lease of any node.
    pub lease_ms_max: u64,
    /// Which memory the root may be in.
    pub memory: Policy,
    /// Its certificate and key.
    pub credentials: Credentials,
    /// The issuers it believes.
    pub trust: Trust,
    /// Whether it dials nodes on this machine only, whatever its ledger says.
    pub dial_loopback_only: bool,
    /// The store that it shares with other keyholders; `None` keeps everything in its own directory.
    pub shared_store: Option<SharedStoreParams>,
    /// Where people may log in who have no certificate.
    pub oidc: Option<Provider>,
    /// Who is told of what happens.
    pub webhooks: Vec<Webhook>,
}

#[derive(Debug)]
struct Link {
    commands: mpsc::Sender<Command>,
    stop: CancellationToken,
}

/// A running keyholder. Needs a multi-threaded tokio runtime: files and the vault block.
#[derive(Debug)]
pub struct Keyholder {
    pub(crate) name: String,
    pub(crate) vault: Arc<Vault>,
    pub(crate) credentials: Credentials,
    pub(crate) trust: Trust,
    pub(crate) dial_loopback_only: bool,
    pub(crate) requests: Arc<Requests>,
    oidc: Option<Provider>,
    pub(crate) webhooks: Webhooks,
    /// Changes with every entry of the trail that webhooks may tell of.
    pub(crate) told: Arc<watch::Sender<u64>>,
    book: Mutex<Book>,
    /// Held by whoever reads the trail, which is never done under the book.
    reading: Mutex<()>,
    links: Mutex<BTreeMap<NodeId, Link>>,
    /// Who dials which node, where several keyholders share a store.
    shared_links: Option<Mutex<Links>>,
    /// What this keyholder asks another one for the root with.
    identity: NodeKey,
    /// Why it has not got it, the last time that it asked.
    join_refusal: Mutex<Option<String>>,
    /// Counts looks at the shared store.
    looks: watch::Sender<u64>,
    changed: watch::Sender<u64>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Keyholder {
    /// Opens the state directory. Nodes are dialled from the unseal on.
    pub fn open(params: KeyholderParams) -> Result<Arc<Self>, KeyholderError> {
        let vault = Arc::new(Vault::new(params.memory).map_err(KeyholderError::Memory)?);
        let dir = StateDir::open(&params.state_dir)?;
        let access = params.shared_store.map(|store| Access {
            kv: Arc::new(Etcd::new(store.endpoints, store.tls, store.prefix)),
            address: store.address.to_string(),
            ahead_ms: store.record_ahead_ms,
        });
        let webhooks_file = dir.file(webhooks::FILE);
        let requests = Requests::open(dir.file(requests::FILE))?;
        let leases = LeaseBounds { default_ms: params.lease_ms, max_ms: params.lease_ms_max };
        let book = Book::open(params.name.clone(), dir, Arc::clone(&vault), leases, access)?;
        let webhooks = Webhooks::open(params.webhooks, webhooks_file, book.audit_head())?;
        let identity = cluster::identity_key(&params.state_dir)?;
        let links = |incarnation| Mutex::new(Links::new(params.name.clone(), incarnation));
        let shared_links = book.shared().map(|shared| links(shared.incarnation()));
        Ok(Arc::new(Self {
            name: params.name,
            vault,
            credentials: params.credentials,
            trust: params.trust,
            dial_loopback_only: params.dial_loopback_only,
            requests: Arc::new(requests),
            oidc: params.oidc,
            webhooks,
            told: book.audit.told(),
            book: Mutex::new(book),
            reading: Mutex::new(()),
            links: Mutex::new(BTreeMap::new()),
            shared_links,
            identity,
            join_refusal: Mutex::new(None),
            looks: watch::Sender::new(0),
            changed: watch::Sender::new(0),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Begins what is done without anybody's asking: looks at the shared store, where there is one, and rotation of keys that are due.
    pub fn start(self: &Arc<Self>) {
        self.tasks.spawn(rotate_when_due(Arc::clone(self), self.stop.child_token()));
        if self.shared_links.is_some() {
            self.tasks.spawn(cluster_run::run(Arc::clone(self), self.stop.child_token()));
        }
    }

    /// Ends every session, revoking nothing, and forgets the root. Nodes keep their keys until their leases end, and
    /// a keyholder that is back and unsealed by then finds them in force.
    pub async fn shut_down(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.book(Book::seal);
    }

    /// Overwrites the root before the program breaks: no lock, no allocation, from any thread and from a signal handler.
    /// Whatever is computed from the root at the same time is garbage, which no longer matters.
    pub fn last_act(&self) {
        self.vault.zero();
    }

    /// Everything that is not secret.
    pub fn status(&self) -> KeyholderStatus {
        let status = self.book(|book| book.status());
        self.with_cluster(status)
    }

    pub(crate) fn seal_state(&self) -> SealState {
        self.book(|book| book.state())
    }

    /// Runs `work` where blocking is allowed.
    pub(crate) fn blocking<T>(&self, work: impl FnOnce() -> T) -> T {
        tokio::task::block_in_place(work)
    }

    /// Works with the book, and tells those who wait for a change.
    pub(crate) fn book<T>(&self, work: impl FnOnce(&mut Book) -> T) -> T {
        self.blocking(|| {
            let made = work(&mut self.lock_book());
            self.changed.send_modify(|count| *count = count.wrapping_add(1));
            made
        })
    }

    fn lock_book(&self) -> MutexGuard<'_, Book> {
        // A panic inside the book cannot leave it half changed on disk, and in memory changes are whole.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn root_epoch(&self) -> RootEpoch {
        self.lock_book().root_epoch()
    }

    /// Makes a root and its shares.
    pub fn ceremony(
        self: &Arc<Self>,
        request: &CeremonyRequest,
        by: &str,
    ) -> Result<CeremonyResult, KeyholderError> {
        let result = self.book(|book| book.ceremony(request, by))?;
        self.sync_links();
        Ok(result)
    }

    /// Takes one share.
    pub fn unseal(
        self: &Arc<Self>,
        request: &UnsealRequest,
        by: &str,
    ) -> Result<UnsealProgress, KeyholderError> {
        let progress = self.book(|book| book.submit_share(&request.share, by))?;
        if progress.state == SealState::Unsealed {
            self.after_unseal();
        }
        Ok(progress)
    }

    fn after_unseal(self: &Arc<Self>) {
        self.sync_links();
        self.tasks.spawn(prune_daily(Arc::clone(self), self.stop.child_token()));
    }

    /// Adds a node and begins to dial it.
    pub fn add_node(self: &Arc<Self>, request: &AddNode, by: &str) -> Result<NodeEntry, KeyholderError> {
        let entry = self.book(|book| book.add_node(request, by))?;
        self.sync_links();
        Ok(entry)
    }

    /// Pins a node's key.
    pub async fn approve_node(
        self: &Arc<Self>,
        name: &str,
        request: &ApproveNode,
        by: &str,
    ) -> Result<NodeEntry, KeyholderError> {
        let node = self.book(|book| book.node_by_name(name))?.node;
        self.bring_link(node).await?;
        let entry = self.book(|book| book.approve(name, request, by))?;
        self.command(entry.node, Command::Redial).await;
        Ok(entry)
    }

    /// Changes what is known of a node, and dials it anew.
    pub async fn change_node(
        &self,
        name: &str,
        change: &ChangeNode,
        by: &str,
    ) -> Result<NodeEntry, KeyholderError> {
        let entry = self.book(|book| book.change_node(name, change, by))?;
        self.command(entry.node, Command::Redial).await;
        Ok(entry)
    }

    /// Removes a node that has no volumes.
    pub fn remove_node(self: &Arc<Self>, name: &str, by: &str) -> Result<(), KeyholderError> {
        self.book(|book| book.remove_node(name, by))?;
        self.sync_links();
        Ok(())
    }

    /// Creates a volume: secret in the ledger, volume on the node, key pushed.
    ///
    /// 1. The secret is durable in the ledger (else the node could have a volume whose key is lost).
    /// 2. The node creates the volume.
    /// 3. The ledger says so; from now on the volume is pushed.
    /// 4. The key is pushed, where the node's policy lets it.
    pub async fn create_volume(
        self: &Arc<Self>,
        request: &CreateVolume,
        by: &str,
    ) -> Result<VolumeEntry, KeyholderError> {
        let created = self.book(|book| book.begin_volume(request, by))?;
        let (client, node) = self.node_client(created.node)?;
        let body = admin::api::CreateVolume {
            volume: created.volume,
            pool: request.pool,
            kind: match created.kind {
                lease::message::VolumeKind::Block => admin::api::VolumeKind::Block,
                lease::message::VolumeKind::Objects => admin::api::VolumeKind::Objects,
            },
            size_bytes: created.size.0,
            domain: created.domain,
            epoch: created.epoch,
            check: hex::encode(created.check),
            limits: request.limits,
        };
        let answer: Result<serde_json::Value, ClientError> = client.post("/v1/volumes", &body).await;
        match answer {
            Ok(_) => {}
            Err(ClientError::Refused { status, problem, .. }) => {
                // From an earlier attempt whose answer was lost: ids are random, so it is this volume. Where the node does not say,
                // nothing is known.
                let is_there = status == 409
                    && node_has(&client, created.volume)
                        .await
                        .map_err(|source| unreachable(node.clone(), source))?;
                if !is_there {
                    self.book(|book| book.abandon_volume(created.volume, by))?;
                    return Err(KeyholderError::NodeRefused { name: node, problem });
                }
            }
            Err(source) => return Err(unreachable(node, source)),
        }
        self.book(|book| {
            book.finish_volume(created.volume)?;
            book.note_written(created.volume, created.epoch);
            Ok::<_, KeyholderError>(())
        })?;
        self.push_new(created.node, &request.label).await
    }

    /// Makes a volume of a snapshot of the volume `of`. Its secret is that volume's: the ledger holds it for both.
    pub async fn clone_volume(
        self: &Arc<Self>,
        of: &str,
        request: &CloneVolume,
        by: &str,
    ) -> Result<VolumeEntry, KeyholderError> {
        let created = self.book(|book| book.begin_clone(of, request, by))?;
        let (client, node) = self.node_client(created.node)?;
        let body = admin::api::CloneSnapshot { volume: created.volume, limits: request.limits };
        let path = format!("/v1/snapshots/{}/clone", request.snapshot);
        let answer: Result<admin::api::VolumeStatus, ClientError> = client.post(&path, &body).await;
        let made = match answer {
            Ok(made) => made,
            Err(ClientError::Refused { problem, .. }) => {
                self.book(|book| book.abandon_volume(created.volume, by))?;
                return Err(KeyholderError::NodeRefused { name: node, problem });
            }
            Err(source) => return Err(unreachable(node, source)),
        };
        // A snapshot of another volume would be a clone that no key of this domain opens.
        if made.domain != created.domain {
            let _: Result<serde_json::Value, ClientError> =
                client.delete(&format!("/v1/volumes/{}", created.volume)).await;
            self.book(|book| book.abandon_volume(created.volume, by))?;
            return Err(KeyholderError::Invalid {
                what: format!("the snapshot {} is not one of {of}", request.snapshot),
                next_step: "`nightlatch snapshot list` shows which volume each snapshot is of",
            });
        }
        self.book(|book| {
            book.resized(created.volume, made.size_bytes, by)?;
            book.finish_volume(created.volume)?;
            book.note_written(created.volume, made.epoch);
            Ok::<_, KeyholderError>(())
        })?;
        self.push_new(created.node, &request.label).await
    }

    /// Makes a volume what its snapshot shows, on the node, and keeps the size it then has.
    pub async fn roll_back_volume(
        &self,
        label: &str,
        request: &RollBackVolume,
        by: &str,
    ) -> Result<VolumeEntry, KeyholderError> {
        let (volume, node) = self.book(|book| {
            let (volume, node) = book.check_live(label)?;
            let act = format!("roll volume {label} ({volume}) back to snapshot {}", request.snapshot);
            book.require_others(Grave::Overwrite, &act, by)?;
            Ok::<_, KeyholderError>((volume, node))
        })?;
        let (client, name) = self.node_client(node)?;
        let body = admin::api::RollBack { snapshot: request.snapshot };
        let answer: Result<admin::api::VolumeStatus, ClientError> =
            client.post(&format!("/v1/volumes/{volume}/rollback"), &body).await;
        match answer {
            Ok(now) => {
                self.book(|book| book.rolled_back(volume, request.snapshot, now.size_bytes, by))?;
                self.book(|book| book.volume_by_label(label))
            }
            Err(ClientError::Refused { problem, .. }) => Err(KeyholderError::NodeRefused { name, problem }),
            Err(source) => Err(unreachable(name, source)),
        }
    }

    /// Makes the replica of a volume on another node the volume: the node gives it the content of its newest snapshot, and from
    /// then on the key goes there, with a higher fence, once the lease of the node before it is over.
    pub async fn promote_volume(
        self: &Arc<Self>,
        label: &str,
        request: &PromoteVolume,
        by: &str,
    ) -> Result<VolumeEntry, KeyholderError> {
        let (volume, to) = self.book(|book| book.check_promotion(label, &request.node))?;
        let (client, name) = self.node_client(to)?;
        let volumes: Result<Vec<admin::api::VolumeStatus>, ClientError> = client.get("/v1/volumes").await;
        let volumes = volumes.map_err(|source| unreachable(name.clone(), source))?;
        let there = volumes.into_iter().find(|present| present.volume == volume);
        self.book(|book| {
            book.check_replica(label, &request.node, there.as_ref())?;
            let act = format!("promote the replica of volume {label} ({volume}) on {}", request.node);
            book.require_others(Grave::Overwrite, &act, by)
        })?;
        let path = format!("/v1/replicas/{volume}/promote");
        let answer: Result<admin::api::Promoted, ClientError> =
            client.post(&path, &serde_json::json!({})).await;
        let (promoted, epoch) = match answer {
            Ok(promoted) => ((Some(promoted.snapshot), promoted.volume.size_bytes), promoted.volume.epoch),
            Err(ClientError::Refused { status, problem, .. }) => {
                // A conflict may be an answer that was lost on the way: a volume that no grant has reached yet has been a replica.
                // One that has been served is where the volume was before, and older than what is served now.
                let there = there.filter(|_| status == 409);
                let promoted = there.filter(|there| !there.replica && there.fence == Fence(0));
                let promoted = promoted.ok_or(KeyholderError::NodeRefused { name, problem })?;
                ((None, promoted.size_bytes), promoted.epoch)
            }
            Err(source) => return Err(unreachable(name, source)),
        };
        self.book(|book| {
            book.promoted(volume, to, promoted, by)?;
            book.note_written(volume, epoch);
            Ok::<_, KeyholderError>(())
        })?;
        self.push_new(to, label).await
    }

    /// Goes on from whatever state a volume's pool is in: what it was known to be is forgotten.
    pub async fn accept_state(
        self: &Arc<Self>,
        label: &str,
        by: &str,
    ) -> Result<VolumeEntry, KeyholderError> {
        let (_, node) = self.book(|book| book.find_volume(label))?;
        self.bring_link(node).await?;
        self.book(|book| {
            let act = book.accept_act(label)?;
            book.require_others(Grave::Overwrite, &act, by)?;
            book.accept_state(label, by)
        })
    }

    /// Gives the volume's key domain a new epoch: a secret in the ledger, its key to the nodes that serve the domain's volumes, and
    /// from when they say so writes are under it. What is there is sealed anew by and by; the old secret goes when nothing needs it.
    pub async fn rotate_volume(
        self: &Arc<Self>,
        label: &str,
        by: &str,
    ) -> Result<VolumeEntry, KeyholderError> {
        let (_, node) = self.book(|book| book.find_volume(label))?;
        self.bring_link(node).await?;
        self.book(|book| book.begin_rotation(label, by))?;
        // Those that another keyholder dials are given it by that one, which sees the ledger.
        for node in self.book(|book| book.nodes_of_domain(label))? {
            self.command(node, Command::Push).await;
        }
        let answered = |book: &Book| book.is_rotated(label) || book.epoch_refusal(label).is_some();
        if self.book(|book| book.volume_by_label(label))?.key == KeyState::Unlocked {
            self.wait(PUSH_TIMEOUT, answered).await;
        }
        self.book(|book| book.volume_by_label(label))
    }

    /// Rotates what is due without anybody's asking.
    async fn rotate_due(self: &Arc<Self>) {
        if self.seal_state() != SealState::Unsealed {
            return;
        }
        // What was said before a start, or of what is gone meanwhile, and no answer has come after.
        let due = self.book(|book| {
            book.retire_epochs()?;
            book.rotations_due()
        });
        let due = match due {
            Ok(due) => due,
            Err(error) => return not_rotated(&error, None),
        };
        for (label, why) in due {
            tracing::info!(label, why, "the volume's key is given a new epoch");
            // The others are not made to wait by one that cannot be.
            if let Err(error) = self.rotate_volume(&label, why).await {
                not_rotated(&error, Some(&label));
            }
        }
    }

    /// Gives a new volume its key where that needs nobody's approval.
    async fn push_new(self: &Arc<Self>, node: NodeId, label: &str) -> Result<VolumeEntry, KeyholderError> {
        self.bring_link(node).await?;
        self.command(node, Command::Push).await;
        let name = self.book(|book| book.node_name(node));
        let automatic = self.book(|book| book.node_by_name(&name))?.push == PushPolicy::Auto;
        if automatic {
            let target = Target::Volume(label.to_owned());
            self.wait(PUSH_TIMEOUT, |book| book.pushed(node, &target).is_some()).await;
        }
        self.book(|book| book.volume_by_label(label))
    }

    /// Changes a volume's size, on the node first.
    pub async fn resize_volume(
        &self,
        label: &str,
        request: &ResizeVolume,
        by: &str,
    ) -> Result<VolumeEntry, KeyholderError> {
        let (volume, node) = self.book(|book| book.allow_resize(label, request, by))?;
        let (client, name) = self.node_client(node)?;
        let body =
            admin::api::ResizeVolume { size_bytes: request.size_bytes, allow_shrink: request.allow_shrink };
        let answer: Result<serde_json::Value, ClientError> =
            client.patch(&format!("/v1/volumes/{volume}"), &body).await;
        match answer {
            Ok(_) => {}
            Err(ClientError::Refused { problem, .. }) => {
                return Err(KeyholderError::NodeRefused { name, problem });
            }
            Err(source) => return Err(unreachable(name, source)),
        }
        self.book(|book| book.resized(volume, request.size_bytes, by))?;
        self.book(|book| book.volume_by_label(label))
    }

    /// Before anything is taken back. What replication made goes with its volume. Where the node cannot be asked, it refuses by itself in
    /// the end.
    async fn refuse_snapshots(&self, label: &str) -> Result<(), KeyholderError> {
        let (volume, node) = self.book(|book| book.find_volume(label))?;
        let (client, _) = self.node_client(node)?;
        let snapshots: Result<Vec<admin::api::SnapshotStatus>, ClientError> =
            client.get("/v1/snapshots").await;
        let counts = |one: &&admin::api::SnapshotStatus| one.volume == volume && !one.epoch;
        let count = snapshots.map_or(0, |all| all.iter().filter(counts).count());
        if count > 0 { Err(KeyholderError::HasSnapshots { label: label.to_owned(), count }) } else { Ok(()) }
    }

    /// Deletes a volume: key taken back, volume off the node, secret out of the ledger. With `force` a node that
    /// cannot be reached is passed over: without its secret what is on its disk is noise.
    pub async fn delete_volume(
        self: &Arc<Self>,
        label: &str,
        force: bool,
        by: &str,
    ) -> Result<VolumeErased, KeyholderError> {
        self.refuse_snapshots(label).await?;
        let (_, node) = self.book(|book| book.find_volume(label))?;
        self.bring_link(node).await?;
        let (volume, node) = self.book(|book| {
            book.allow_deletion(label, by)?;
            book.begin_deletion(label, by)
        })?;
        let since = clock::now();
        let revoke = Command::Revoke { scope: Scope::Volume(volume), cause: RevokeCause::Deleted };
        if self.is_connected(node) {
            self.command(node, revoke).await;
            self.wait(RECEIPT_TIMEOUT, |book| book.is_forgotten(node, Some(volume), since)).await;
        }
        let (client, name) = self.node_client(node)?;
        let answer: Result<serde_json::Value, ClientError> =
            client.delete(&format!("/v1/volumes/{volume}")).await;
        match answer {
            Ok(_) | Err(ClientError::Refused { status: 404, .. }) => {}
            Err(error) if force => {
                tracing::warn!(%error, %volume, "the node did not delete the volume; its secret is erased all the same");
            }
            Err(ClientError::Refused { problem, .. }) => {
                return Err(KeyholderError::NodeRefused { name, problem });
            }
            Err(source) => return Err(unreachable(name, source)),
        }
        self.book(|book| book.erase_volume(volume, by))
    }

    /// Pushes, with a person's approval.
    pub async fn push(self: &Arc<Self>, target: &Target, by: &str) -> Result<Outcome, KeyholderError> {
        let begun = Instant::now();
        let nodes = self.book(|book| book.nodes_of(target))?;
        for node in &nodes {
            self.bring_link(*node).await?;
        }
        self.book(|book| book.approve_push(target, by))?;
        let outcomes = nodes.into_iter().map(|node| async move {
            self.command(node, Command::Push).await;
            let served = |book: &Book| book.pushed(node, target).is_some();
            self.wait(PUSH_TIMEOUT, served).await;
            self.book(|book| {
                let failure = match book.pushed(node, target) {
                    Some(Ok(())) => None,
                    Some(Err(reason)) => Some(reason),
                    None => Some(book.push_delay(node)),
                };
                outcome(book, node, begun, failure)
            })
        });
        Ok(Outcome { nodes: join_all(outcomes).await })
    }

    /// Takes keys back and latches: nothing is pushed again before a security officer has unlatched it.
    pub async fn revoke(self: &Arc<Self>, target: &Target, by: &str) -> Result<Outcome, KeyholderError> {
        let (keyholder, target, by) = (Arc::clone(self), target.clone(), by.to_owned());
        self.to_its_end(async move { keyholder.revoke_to_its_end(&target, &by).await }).await
    }

    /// Goes on where whoever asked hangs up: what is latched in memory must reach the disk.
    async fn to_its_end<T: Send + 'static>(
        &self,
        act: impl Future<Output = Result<T, KeyholderError>> + Send + 'static,
    ) -> Result<T, KeyholderError> {
        match self.tasks.spawn(act).await {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(KeyholderError::Invalid {
                what: "this keyholder is stopping".to_owned(),
                next_step: "ask again when it is back",
            }),
        }
    }

    async fn revoke_to_its_end(
        self: &Arc<Self>,
        target: &Target,
        by: &str,
    ) -> Result<Outcome, KeyholderError> {
        self.book(|book| book.latch(target, by))?;
        let nodes = self.book(|book| book.nodes_of(target))?;
        let volume = match target {
            Target::Volume(label) => Some(self.book(|book| book.find_volume(label))?.0),
            Target::Node(_) | Target::All => None,
        };
        let told = self.tell_to_forget(nodes, volume, RevokeCause::Revoked).await;
        let written = self.book(|book| book.write_latches("revoke", target, by));
        self.dial_where_others_are_not_told(&told, &written);
        let outcome = self.await_receipts(told).await;
        written.map(|()| outcome)
    }

    /// Takes every key back from every node at once.
    pub async fn lock_down(self: &Arc<Self>, by: &str) -> Result<Outcome, KeyholderError> {
        let (keyholder, by) = (Arc::clone(self), by.to_owned());
        self.to_its_end(async move { keyholder.lock_down_to_its_end(&by).await }).await
    }

    async fn lock_down_to_its_end(self: &Arc<Self>, by: &str) -> Result<Outcome, KeyholderError> {
        self.book(|book| book.lock_down(by))?;
        let nodes = self.book(|book| book.node_ids());
        let told = self.tell_to_forget(nodes, None, RevokeCause::Lockdown).await;
        let written = self.book(|book| book.write_latches("lockdown", &Target::All, by));
        self.dial_where_others_are_not_told(&told, &written);
        let outcome = self.await_receipts(told).await;
        written.map(|()| outcome)
    }

    /// First the nodes, then the disk: neither a full nor a slow one may stand in the way of forgetting.
    async fn tell_to_forget(&self, nodes: Vec<NodeId>, volume: Option<VolumeId>, cause: RevokeCause) -> Told {
        let (begun, since) = (Instant::now(), clock::now());
        let scope = volume.map_or(Scope::All, Scope::Volume);
        // All at once, and none for long: a node whose queue is full gets its keys' end from the latch, with its next challenge.
        let told = join_all(nodes.into_iter().map(|node| async move {
            let connected = self.is_connected(node);
            if connected {
                let tell = self.command(node, Command::Revoke { scope, cause });
                let _ = tokio::time::timeout(TELL_TIMEOUT, tell).await;
            }
            (node, connected)
        }));
        Told { begun, since, volume, nodes: told.await }
    }

    /// The keyholders that dial the other nodes learn of a latch from the ledger. Where that cannot be written, this one dials the
    /// nodes itself: each takes the newest session, and hears that it may hold nothing.
    fn dial_where_others_are_not_told(self: &Arc<Self>, told: &Told, written: &Result<(), KeyholderError>) {
        if self.shared_links.is_none() || written.is_ok() {
            return;
        }
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        for (node, _) in &told.nodes {
            links.entry(*node).or_insert_with(|| self.dial(*node));
        }
    }

    async fn await_receipts(&self, told: Told) -> Outcome {
        let Told { begun, since, volume, nodes } = told;
        let shares_store = self.shared_links.is_some();
        // What other keyholders granted until now. Where the store is away, what was known of it has to do.
        let _ = tokio::time::timeout(RECEIPT_TIMEOUT, self.looked_again()).await;
        let outcomes = nodes.into_iter().map(|(node, connected)| async move {
            if connected || shares_store {
                self.wait(RECEIPT_TIMEOUT, |book| book.is_forgotten(node, volume, since)).await;
            }
            self.book(|book| {
                let left = book.longest_remaining(node).as_millis();
                let failure = if book.is_forgotten(node, volume, since) || left == 0 {
                    None
                } else {
                    let why = if connected { "gave no receipt in time" } else { "is not connected" };
                    Some(format!("the node {why}; its keys end with their lease, in {left} ms at the latest"))
                };
                outcome(book, node, begun, failure)
            })
        });
        Outcome { nodes: join_all(outcomes).await }
    }

    /// Lifts latches; what policy lets be pushed is pushed.
    pub async fn unlatch(&self, target: &Target, by: &str) -> Result<Outcome, KeyholderError> {
        let begun = Instant::now();
        self.book(|book| {
            let act = book.unlatch_act(target)?;
            book.require_others(Grave::Unlatch, &act, by)?;
            book.unlatch(target, by)
        })?;
        let nodes = self.book(|book| book.nodes_of(target))?;
        for node in &nodes {
            self.nudge(*node, Command::Push);
        }
        let lifted = |node: &NodeId| self.book(|book| outcome(book, *node, begun, None));
        Ok(Outcome { nodes: nodes.iter().map(lifted).collect() })
    }

    /// The ledger, encrypted.
    pub fn backup(&self, by: &str) -> Result<LedgerBackup, KeyholderError> {
        self.book(|book| book.backup(by))
    }

    /// Puts a backup into an empty keyholder.
    pub fn restore(&self, backup: &LedgerBackup, by: &str) -> Result<KeyholderStatus, KeyholderError> {
        self.book(|book| book.restore(backup, by))?;
        Ok(self.status())
    }

    fn is_connected(&self, node: NodeId) -> bool {
        self.book(|book| book.connection(node) == Connection::Connected)
    }

    /// A client for the node's administrative port, and the node's name.
    pub(crate) fn node_client(&self, node: NodeId) -> Result<(HttpsClient, String), KeyholderError> {
        let target = self.book(|book| book.target(node));
        let target = target.ok_or_else(|| KeyholderError::NoSuchNode { name: node.to_string() })?;
        let peer = ExpectedPeer::named(Role::Node, target.name.clone());
        let name = target.name.to_string();
        self.may_dial(&target.admin_address)?;
        let tls = control_client(&self.credentials, &self.trust, peer)
            .map_err(|source| KeyholderError::Identity { name: name.clone(), source: Box::new(source) })?;
        Ok((HttpsClient::new(target.admin_address, tls), name))
    }

    /// Exchanges heads of audit trails with a node for as long as its session lasts.
    pub(crate) fn exchange_heads(self: &Arc<Self>, node: NodeId) -> DropGuard {
        let stop = self.stop.child_token();
        self.tasks.spawn(heads::exchange(Arc::clone(self), node, stop.clone()));
        stop.drop_guard()
    }

    /// Whether this keyholder's configuration lets it connect to `address`.
    pub(crate) fn may_dial(&self, address: &Endpoint) -> Result<(), KeyholderError> {
        let is_loopback = address.host().parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if self.dial_loopback_only && !is_loopback {
            return Err(KeyholderError::NotDialled { address: address.to_string() });
        }
        Ok(())
    }

    /// A part of the audit trail.
    pub fn audit(&self, after: u64, count: usize) -> Result<audit_log::Page, KeyholderError> {
        self.read_trail(|trail| trail.page(after, count))
    }

    /// What a witness needs of it.
    pub fn audit_digests(&self, after: u64, count: usize) -> Result<AuditDigests, KeyholderError> {
        let (head, digests) = self.read_trail(|trail| trail.digests(after, count))?;
        Ok(AuditDigests { head, digests })
    }

    /// Reads the trail beside the book: a long one must not keep a lockdown waiting. One reader at a time, each has a page in memory.
    fn read_trail<T>(
        &self,
        read: impl FnOnce(audit_log::Reader) -> Result<T, audit_log::TrailError>,
    ) -> Result<T, KeyholderError> {
        self.blocking(|| {
            let _one = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
            let reader = self.lock_book().audit.reader()?;
            Ok(read(reader).map_err(StorageError::from)?)
        })
    }

    /// Whether the peer may go on with what takes more than a certificate.
    pub(crate) fn check_second_factor(
        &self,
        peer: &PeerIdentity,
        token: Option<&str>,
        rule: &Rule,
    ) -> Result<(), KeyholderError> {
        self.blocking(|| self.lock_book().check_second_factor(peer, token, rule))
    }

    /// Who a guest is, by an earlier login.
    pub(crate) fn guest(&self, guest: &GuestKey, token: &str) -> Option<PeerIdentity> {
        self.blocking(|| self.lock_book().guest(guest, token))
    }

    /// Where people may log in who have no certificate.
    pub(crate) fn oidc_provider(&self) -> Result<OidcProvider, KeyholderError> {
        Ok(self.oidc.as_ref().ok_or(OidcError::NoProvider)?.public())
    }

    /// Logs in whoever the OpenID provider's token vouches for.
    pub(crate) async fn log_in_by_provider(
        &self,
        guest: &GuestKey,
        token: &str,
        role: Option<Role>,
    ) -> Result<OidcLoggedIn, KeyholderError> {
        let provider = self.oidc.as_ref().ok_or(OidcError::NoProvider)?;
        let claims = provider.claims(token, guest).await?;
        self.book(|book| book.log_in_by_provider(guest, &claims, role))
    }

    /// Forgets somebody's second factor.
    pub(crate) fn forget_factor(&self, of: &str, by: &str) -> Result<(), KeyholderError> {
        self.book(|book| {
            book.check_person(of)?;
            book.require_others(Grave::People, &format!("forget the second factor of {of}"), by)?;
            book.forget_factor(of, by)
        })
    }

    /// Puts a policy in force; what it lets go now is pushed, what it keeps back is not renewed.
    pub(crate) async fn apply_policy(&self, text: &str, by: &str) -> Result<PolicyPreview, KeyholderError> {
        let preview = self.book(|book| book.apply_policy(text, by))?;
        self.book(|book| book.prune_trail())?;
        let nodes = self.book(|book| book.node_ids());
        for node in nodes {
            self.nudge(node, Command::Push);
        }
        Ok(preview)
    }

    /// Marks a node as one that somebody may have had in their hands, and takes back what it holds.
    pub(crate) async fn mark_compromised(
        self: &Arc<Self>,
        name: &str,
        by: &str,
    ) -> Result<Compromised, KeyholderError> {
        let (keyholder, name, by) = (Arc::clone(self), name.to_owned(), by.to_owned());
        self.to_its_end(async move { keyholder.mark_to_its_end(&name, &by).await }).await
    }

    async fn mark_to_its_end(&self, name: &str, by: &str) -> Result<Compromised, KeyholderError> {
        // Before its key is forgotten: the session that it has is the one that can be told.
        let nodes = self.book(|book| book.nodes_of(&Target::Node(name.to_owned())))?;
        self.book(|book| book.latch(&Target::Node(name.to_owned()), by))?;
        let told = self.tell_to_forget(nodes, None, RevokeCause::Revoked).await;
        let marked = self.book(|book| book.mark_compromised(name, by))?;
        let outcome = self.await_receipts(told).await;
        // Only now: a trail of years takes a while, and nothing waits for it.
        let spans = self.read_trail(|trail| suspicions::spans(trail, marked.node))?;
        let compromise = self.book(|book| book.note_exposed(&marked, &spans, by))?;
        Ok(Compromised { compromise, outcome })
    }

    /// Notes that somebody was refused something.
    pub(crate) fn note_refusal(&self, by: &str, rule: &Rule, status: u16, kind: &str) {
        let act = format!("{} {}", rule.verb.as_str(), rule.path);
        if let Err(error) = self.blocking(|| self.lock_book().note_refusal(by, &act, status, kind)) {
            tracing::error!(%error, by, act, "the audit trail lacks this refusal");
        }
    }

    /// Notes the outcome of a drill.
    pub fn note_drill(&self, report: &DrillReport, by: &str) -> Result<KeyholderStatus, KeyholderError> {
        self.book(|book| book.note_drill(report, by))?;
        Ok(self.status())
    }

    /// Runs a task of the keyholder's own, which ends when its token is cancelled.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Cancelled when the keyholder stops.
    pub(crate) fn until_stopped(&self) -> CancellationToken {
        self.stop.child_token()
    }

    /// What people call the node.
    pub(crate) fn node_name(&self, node: NodeId) -> String {
        self.blocking(|| self.lock_book().node_name(node))
    }

    /// Begins to dial new nodes, and stops dialling those that are gone.
    pub(crate) fn sync_links(self: &Arc<Self>) {
        let mut nodes = self.book(|book| book.node_ids());
        if let Some(shared) = self.links_machine() {
            nodes.retain(|node| shared.is_linked_here(*node));
        }
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|node, link| {
            let stays = nodes.contains(node);
            if !stays {
                link.stop.cancel();
            }
            stays
        });
        for node in nodes {
            links.entry(node).or_insert_with(|| self.dial(node));
        }
    }

    fn dial(self: &Arc<Self>, node: NodeId) -> Link {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let stop = self.stop.child_token();
        self.tasks.spawn(link::run(Arc::clone(self), node, receiver, stop.clone()));
        Link { commands, stop }
    }

    pub(crate) async fn command(&self, node: NodeId, command: Command) {
        let sender = {
            let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.get(&node).map(|link| link.commands.clone())
        };
        if let Some(sender) = sender {
            // Closed only when the dialler has stopped, and then there is nothing to command.
            let _ = sender.send(command).await;
        }
    }

    /// As [`Self::command`], for what a session finds out by itself if it never hears it: nobody waits for a node that takes nothing.
    pub(crate) fn nudge(&self, node: NodeId, command: Command) {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&node)
            && link.commands.try_send(command).is_err()
        {
            tracing::debug!(%node, ?command, "its queue is full, or it is dialled no more");
        }
    }

    /// Waits until `done` holds, or `timeout` is over.
    async fn wait(&self, timeout: Duration, done: impl Fn(&Book) -> bool) {
        let mut changes = self.changed.subscribe();
        let reached = async {
            loop {
                changes.mark_unchanged();
                if self.blocking(|| done(&self.lock_book())) {
                    return;
                }
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(timeout, reached).await;
    }
}

/// Removes what of the trail is older than the policy wants it kept, at once and every day.
async fn prune_daily(keyholder: Arc<Keyholder>, stop: CancellationToken) {
    let every_day = async {
        loop {
            if let Err(error) = keyholder.book(|book| book.prune_trail()) {
                tracing::error!(%error, "old segments of the audit trail were not removed");
            }
            tokio::time::sleep(Duration::from_secs(86_400)).await;
        }
    };
    stop.run_until_cancelled(every_day).await;
}

/// It is looked again after a while.
fn not_rotated(error: &KeyholderError, label: Option<&str>) {
    match error {
        KeyholderError::Store(_) | KeyholderError::Vault(VaultError::Sealed { .. }) => {
            tracing::debug!(label, %error, "new epochs that are due wait for the store");
        }
        error => tracing::warn!(label, %error, "a new epoch that is due could not begin"),
    }
}

/// Gives new epochs to the keys that are due for one, until `stop`.
async fn rotate_when_due(keyholder: Arc<Keyholder>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(ROTATIONS_LOOKED_FOR_EVERY)).await.is_some() {
        if stop.run_until_cancelled(keyholder.rotate_due()).await.is_none() {
            return;
        }
    }
}

/// Nodes that were told to forget, and when.
struct Told {
    begun: Instant,
    since: BootInstant,
    volume: Option<VolumeId>,
    nodes: Vec<(NodeId, bool)>,
}

async fn node_has(client: &HttpsClient, volume: VolumeId) -> Result<bool, ClientError> {
    let volumes: Vec<admin::api::VolumeStatus> = client.get("/v1/volumes").await?;
    Ok(volumes.iter().any(|present| present.volume == volume))
}

fn unreachable(name: String, source: ClientError) -> KeyholderError {
    KeyholderError::NodeUnreachable { name, source: Box::new(source) }
}

fn outcome(book: &Book, node: NodeId, begun: Instant, failure: Option<String>) -> NodeOutcome {
    NodeOutcome {
        node: book.node_name(node),
        confirmed: failure.is_none(),
        elapsed_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        detail: failure,
    }
}
