//! A node without disks: the real lease machine and real TLS, a map for a keyring, and the four endpoints of the
//! administrative port that a keyholder calls.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing};
use identity::{Credentials, Problem, Role, ServeLimits, Trust, control_server, serve_https};
use key_hierarchy::{KeyCheck, promised};
use lease::envelope;
use lease::frame::FrameBuffer;
use lease::message::{
    Attestation, Credential, CredentialOpened, EpochsInUse, LeaseLimits, StateVerdict, VolumePresent,
    WipeCause, WipeRecord, WipeStages,
};
use lease::node::{
    EpochToAdmit, EvidenceInput, GrantToAdmit, HeldStatus, NodeEffect, NodeLease, NodeParams, NodeSession,
    NodeSessionParams, WipeReport,
};
use lease::{EXPORTER_BYTES, EXPORTER_LABEL, GrantRefusal, LocalSigner, Signer};
use nix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use units::{BootId, BootInstant, ByteLen, Fence, GrantId, NodeId, PoolId, VolumeEpoch, VolumeId};

use crate::site::PATIENCE;

pub(crate) fn boot_now() -> BootInstant {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap();
    BootInstant(
        u64::try_from(time.tv_sec()).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap(),
    )
}

#[derive(Clone, Debug)]
struct WipeNotice {
    report: WipeReport,
    ended: Vec<GrantId>,
}

/// A port of this machine that nobody else is given for as long as this lives: bound, and not listening. Whoever it is for listens
/// there all the same.
pub(crate) fn reserved_port() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    socket
}

/// The key port and the administrative port.
#[derive(Clone)]
pub(crate) struct Ports(Arc<[TcpSocket; 2]>);

impl Ports {
    fn new() -> Self {
        Self(Arc::new([reserved_port(), reserved_port()]))
    }
}

/// What the node remembers over a restart of its program: its disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<BTreeMap<VolumeId, VolumePresent>>>);

/// The machine's TPM, and whoever sits before it.
pub(crate) trait SpeaksForMachine: Send {
    fn attest(&mut self, for_whom: [u8; 32]) -> Attestation;
    fn open(&mut self, credential: Credential) -> CredentialOpened;
}

struct Inner {
    id: NodeId,
    identity_seed: [u8; 32],
    boot: BootId,
    disk: Disk,
    lease: Mutex<NodeLease>,
    /// The keyring: PRK and deadline.
    keys: Mutex<BTreeMap<VolumeId, [u8; 32]>>,
    deadline: Mutex<Option<BootInstant>>,
    envelope_secret: Mutex<[u8; 32]>,
    wipes: broadcast::Sender<WipeNotice>,
    changed: watch::Sender<u64>,
    generation: Mutex<u64>,
    sessions: AtomicUsize,
    /// Status that the next creation is refused with; 0 for none. 1 closes the connection after creating.
    refuse_creation: AtomicU16,
    /// New epochs are refused, as by a pool that is full.
    refuses_epochs: AtomicBool,
    /// The epochs of each volume that it has a key of, oldest first.
    epochs_held: Mutex<BTreeMap<VolumeId, Vec<u32>>>,
    told_epochs: Mutex<Vec<EpochsInUse>>,
    /// Frames that were sent because the time had come: challenges.
    challenges: AtomicUsize,
    tpm: Mutex<Option<Box<dyn SpeaksForMachine>>>,
    stop: CancellationToken,
}

/// A running node.
#[derive(Clone)]
pub(crate) struct FakeNode {
    inner: Arc<Inner>,
    pub(crate) ports: Ports,
    pub(crate) key_address: SocketAddr,
    pub(crate) admin_address: SocketAddr,
}

pub(crate) struct NodeSetup {
    pub(crate) id: NodeId,
    pub(crate) identity_seed: [u8; 32],
    pub(crate) disk: Disk,
    pub(crate) credentials: Credentials,
    pub(crate) trust: Trust,
    /// Those of the program before; `None` takes new ones.
    pub(crate) ports: Option<Ports>,
    pub(crate) machine: Machine,
}

/// What a program finds where it is started.
#[derive(Default)]
pub(crate) struct Machine {
    /// That of an earlier program, where the machine was not started since.
    pub(crate) boot: Option<BootId>,
    pub(crate) tpm: Option<Box<dyn SpeaksForMachine>>,
}

impl FakeNode {
    pub(crate) async fn start(setup: NodeSetup) -> Self {
        let ports = setup.ports.unwrap_or_else(Ports::new);
        let [key_address, admin_address] = ports.0.each_ref().map(|port| port.local_addr().unwrap());
        let keys = TcpListener::bind(key_address).await.unwrap();
        let admin = TcpListener::bind(admin_address).await.unwrap();
        let Machine { boot, tpm } = setup.machine;
        let boot = boot.unwrap_or_else(|| {
            let mut boot = [0; 16];
            getrandom::fill(&mut boot).unwrap();
            BootId(boot)
        });
        let lease = NodeLease::new(NodeParams {
            node: setup.id,
            boot,
            image: None,
            identity: Arc::new(LocalSigner::from_seed(&setup.identity_seed)),
            limits: LeaseLimits::PROTOCOL,
            pin: None,
        });
        let inner = Arc::new(Inner {
            id: setup.id,
            identity_seed: setup.identity_seed,
            boot,
            disk: setup.disk,
            lease: Mutex::new(lease),
            keys: Mutex::default(),
            deadline: Mutex::default(),
            envelope_secret: Mutex::default(),
            wipes: broadcast::channel(16).0,
            changed: watch::Sender::new(0),
            generation: Mutex::default(),
            sessions: AtomicUsize::new(0),
            refuse_creation: AtomicU16::new(0),
            refuses_epochs: AtomicBool::new(false),
            epochs_held: Mutex::default(),
            told_epochs: Mutex::default(),
            challenges: AtomicUsize::new(0),
            tpm: Mutex::new(tpm),
            stop: CancellationToken::new(),
        });
        inner.refresh_volumes();
        let key_tls = control_server(&setup.credentials, &setup.trust, &[Role::Keyholder]).unwrap();
        tokio::spawn(serve_keys(Arc::clone(&inner), keys, TlsAcceptor::from(key_tls)));
        let admin_tls = control_server(&setup.credentials, &setup.trust, &[Role::Keyholder]).unwrap();
        let router = Router::new()
            .route("/v1/volumes", routing::post(create).get(list))
            .route("/v1/volumes/{volume}", routing::delete(delete).patch(resize))
            .route("/v1/volumes/{volume}/rollback", routing::post(roll_back))
            .route("/v1/snapshots/{snapshot}/clone", routing::post(clone))
            .with_state(Arc::clone(&inner));
        let stop = inner.stop.clone();
        let domain = setup.trust.trust_domain().clone();
        tokio::spawn(async move {
            serve_https(admin, admin_tls, domain, router, ServeLimits::default(), stop.cancelled()).await;
        });
        tokio::spawn(watch_deadline(Arc::clone(&inner)));
        Self { inner, ports, key_address, admin_address }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.inner.id
    }

    pub(crate) fn boot(&self) -> BootId {
        self.inner.boot
    }

    pub(crate) fn identity_key(&self) -> [u8; 32] {
        LocalSigner::from_seed(&self.inner.identity_seed).public_key()
    }

    pub(crate) fn disk(&self) -> Disk {
        self.inner.disk.clone()
    }

    /// Enrols the node: whose grants it takes.
    pub(crate) fn pin(&self, key: [u8; 32]) {
        self.inner.lease.lock().unwrap().set_pin(Some(key));
    }

    /// The last wipe of this run.
    pub(crate) fn last_wipe(&self) -> Option<WipeRecord> {
        self.inner.lease.lock().unwrap().last_wipe()
    }

    /// The keys that it holds, usable now.
    pub(crate) fn keys(&self) -> BTreeMap<VolumeId, [u8; 32]> {
        self.inner.keys.lock().unwrap().clone()
    }

    pub(crate) fn held(&self) -> Vec<HeldStatus> {
        self.inner.lease.lock().unwrap().held().collect()
    }

    pub(crate) fn volumes(&self) -> Vec<VolumeId> {
        self.inner.disk.0.lock().unwrap().keys().copied().collect()
    }

    pub(crate) fn sessions(&self) -> usize {
        self.inner.sessions.load(Ordering::SeqCst)
    }

    pub(crate) fn refuse_next_creation(&self, status: u16) {
        self.inner.refuse_creation.store(status, Ordering::SeqCst);
    }

    /// Takes no new epoch, or takes them again.
    pub(crate) fn refuse_epochs(&self, refuses: bool) {
        self.inner.refuses_epochs.store(refuses, Ordering::SeqCst);
    }

    /// What it says with its challenges from now on: these are in use.
    pub(crate) fn tell_epochs(&self, volume: VolumeId, epochs: &[u32]) {
        let epochs = epochs.iter().map(|epoch| VolumeEpoch(*epoch)).collect();
        let mut told = self.inner.told_epochs.lock().unwrap();
        told.retain(|of| of.volume != volume);
        told.push(EpochsInUse { volume, epochs });
        self.inner.lease.lock().unwrap().set_epochs(told.clone(), Vec::new());
    }

    pub(crate) fn epochs_held(&self, volume: VolumeId) -> Vec<u32> {
        self.inner.epochs_held.lock().unwrap().get(&volume).cloned().unwrap_or_default()
    }

    /// Waits until so many challenges more have been sent, so that what the first told has been heard.
    pub(crate) async fn sends_challenges(&self, more: usize) {
        let until = self.inner.challenges.load(Ordering::SeqCst) + more;
        self.wait("its challenges", |node| node.inner.challenges.load(Ordering::SeqCst) >= until).await;
    }

    /// Loses every key for this cause, as after SIGPWR.
    pub(crate) fn wipe(&self, cause: WipeCause) {
        self.inner.wipe(cause);
    }

    /// Ends the program without a word: connections break, nothing is sent.
    pub(crate) fn kill(&self) {
        self.inner.stop.cancel();
    }

    /// Waits until nothing listens on its ports any more: its listeners end with their tasks, a moment after it was killed.
    pub(crate) async fn is_away(&self) {
        let closing = async {
            for address in [self.key_address, self.admin_address] {
                while TcpStream::connect(address).await.is_ok() {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, closing).await.unwrap();
    }

    /// Waits until `done`.
    pub(crate) async fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let mut changes = self.inner.changed.subscribe();
        let reached = async {
            loop {
                changes.mark_unchanged();
                if done(self) {
                    return;
                }
                changes.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(PATIENCE, reached).await;
        assert!(waited.is_ok(), "waited in vain for {what}; held: {:?}", self.held());
    }
}

impl Inner {
    fn changed(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn refresh_volumes(&self) {
        let volumes: Vec<VolumePresent> = self.disk.0.lock().unwrap().values().copied().collect();
        self.lease.lock().unwrap().set_volumes(volumes).unwrap();
    }

    fn wipe(&self, cause: WipeCause) {
        self.keys.lock().unwrap().clear();
        *self.deadline.lock().unwrap() = None;
        *self.envelope_secret.lock().unwrap() = [0; 32];
        let mut generation = self.generation.lock().unwrap();
        *generation += 1;
        let record = WipeRecord { cause, at: boot_now(), generation: *generation };
        drop(generation);
        let ended = self.lease.lock().unwrap().on_wiped(record);
        let report = WipeReport { record, stages: WipeStages::keys(1_000), more: false };
        let _ = self.wipes.send(WipeNotice { report, ended });
        self.changed();
    }

    fn admit(&self, grant: &GrantToAdmit) -> Result<StateVerdict, GrantRefusal> {
        {
            let mut disk = self.disk.0.lock().unwrap();
            let present = disk.get_mut(&grant.volume).ok_or(GrantRefusal::WrongVolume)?;
            if grant.fence <= present.fence {
                return Err(GrantRefusal::FenceNotDurable);
            }
            present.fence = grant.fence;
        }
        let secret = *self.envelope_secret.lock().unwrap();
        let mut prk = [0; 32];
        envelope::open(&secret, &grant.info, &grant.aad, &grant.envelope, &mut prk)
            .map_err(|_| GrantRefusal::Unopenable)?;
        if promised(&prk, &grant.domain, grant.epoch, KeyCheck(grant.check)).is_none() {
            return Err(GrantRefusal::WrongKey);
        }
        let mut epochs = vec![grant.epoch.0];
        for key in &grant.further {
            let mut prk = [0; 32];
            envelope::open(&secret, &grant.info, &key.aad, &key.envelope, &mut prk)
                .map_err(|_| GrantRefusal::Unopenable)?;
            if promised(&prk, &grant.domain, key.epoch, KeyCheck(key.check)).is_none() {
                return Err(GrantRefusal::WrongKey);
            }
            epochs.push(key.epoch.0);
        }
        epochs.sort_unstable();
        self.epochs_held.lock().unwrap().insert(grant.volume, epochs);
        self.keys.lock().unwrap().insert(grant.volume, prk);
        Ok(StateVerdict::NotKept)
    }

    /// As a node does: the key is checked, and the disk says the new epoch from then on.
    fn admit_epoch(&self, given: &EpochToAdmit) -> Result<(), GrantRefusal> {
        let secret = *self.envelope_secret.lock().unwrap();
        let mut prk = [0; 32];
        envelope::open(&secret, &given.info, &given.key.aad, &given.key.envelope, &mut prk)
            .map_err(|_| GrantRefusal::Unopenable)?;
        if promised(&prk, &given.domain, given.key.epoch, KeyCheck(given.key.check)).is_none() {
            return Err(GrantRefusal::WrongKey);
        }
        if self.refuses_epochs.load(Ordering::SeqCst) {
            return Err(GrantRefusal::NoSpace);
        }
        {
            let mut disk = self.disk.0.lock().unwrap();
            let present = disk.get_mut(&given.volume).ok_or(GrantRefusal::WrongVolume)?;
            (present.epoch, present.check) = (given.key.epoch, given.key.check);
        }
        self.refresh_volumes();
        self.keys.lock().unwrap().insert(given.volume, prk);
        Ok(())
    }

    fn perform(&self, machine: &mut NodeSession, effects: Vec<NodeEffect>, out: &mut Vec<u8>) -> bool {
        let mut close = false;
        for effect in effects {
            let more = match effect {
                NodeEffect::Send(bytes) => {
                    out.extend(bytes);
                    Vec::new()
                }
                NodeEffect::NeedEvidence => {
                    let mut secret = [0; 32];
                    getrandom::fill(&mut secret).unwrap();
                    *self.envelope_secret.lock().unwrap() = secret;
                    let envelope_key = envelope::keypair(&secret).unwrap();
                    let hygiene = r#"{"memory":"pretended"}"#.to_owned();
                    let input =
                        EvidenceInput { hygiene, envelope_key, attests: self.tpm.lock().unwrap().is_some() };
                    let mut lease = self.lease.lock().unwrap();
                    machine.on_evidence(&mut lease, boot_now(), input).unwrap_or_default()
                }
                NodeEffect::AdmitGrant(grant) => {
                    let result = self.admit(&grant);
                    let mut lease = self.lease.lock().unwrap();
                    machine.on_admitted(&mut lease, boot_now(), grant.volume, grant.grant, result)
                }
                NodeEffect::AdmitEpoch(given) => {
                    let result = self.admit_epoch(&given);
                    let lease = self.lease.lock().unwrap();
                    machine.on_epoch_admitted(&lease, (given.volume, given.grant, given.key.epoch), result)
                }
                NodeEffect::SetDeadline(deadline) => {
                    *self.deadline.lock().unwrap() = deadline;
                    Vec::new()
                }
                NodeEffect::DropVolume { volume, grant, cause } => {
                    self.keys.lock().unwrap().remove(&volume);
                    let generation = *self.generation.lock().unwrap();
                    let record = WipeRecord { cause, at: boot_now(), generation };
                    let report = WipeReport { record, stages: WipeStages::keys(1), more: false };
                    machine.on_dropped(&mut self.lease.lock().unwrap(), volume, grant, &report)
                }
                NodeEffect::Wipe(cause) => {
                    self.wipe(cause);
                    Vec::new()
                }
                NodeEffect::NeedAttestation(for_whom) => {
                    let said = self.tpm.lock().unwrap().as_mut().unwrap().attest(for_whom);
                    machine.on_attestation(&self.lease.lock().unwrap(), &said)
                }
                NodeEffect::OpenCredential(credential) => {
                    let opened = self.tpm.lock().unwrap().as_mut().unwrap().open(credential);
                    machine.on_credential_opened(&self.lease.lock().unwrap(), &opened)
                }
                NodeEffect::Note(_) => Vec::new(),
                NodeEffect::Close => {
                    close = true;
                    Vec::new()
                }
            };
            close |= self.perform(machine, more, out);
        }
        self.changed();
        close
    }
}

async fn watch_deadline(node: Arc<Inner>) {
    let mut changes = node.changed.subscribe();
    loop {
        let deadline = *node.deadline.lock().unwrap();
        let wait = deadline.map_or(Duration::from_secs(3600), |deadline| {
            Duration::from_nanos(deadline.0.saturating_sub(boot_now().0))
        });
        tokio::select! {
            () = node.stop.cancelled() => return,
            _ = changes.changed() => {}
            () = tokio::time::sleep(wait) => {
                let effects = node.lease.lock().unwrap().on_time(boot_now());
                if effects == [NodeEffect::Wipe(WipeCause::LeaseExpired)] {
                    node.wipe(WipeCause::LeaseExpired);
                }
            }
        }
    }
}

async fn serve_keys(node: Arc<Inner>, listener: TcpListener, acceptor: TlsAcceptor) {
    loop {
        tokio::select! {
            () = node.stop.cancelled() => return,
            accepted = listener.accept() => {
                let (stream, _) = accepted.unwrap();
                let (node, acceptor) = (Arc::clone(&node), acceptor.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        session(node, stream).await;
                    }
                });
            }
        }
    }
}

async fn session(node: Arc<Inner>, mut stream: TlsStream<TcpStream>) {
    node.sessions.fetch_add(1, Ordering::SeqCst);
    let exporter =
        stream.get_ref().1.export_keying_material([0; EXPORTER_BYTES], EXPORTER_LABEL, None).unwrap();
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).unwrap();
    let params = NodeSessionParams { exporter, seed };
    let mut wipes = node.wipes.subscribe();
    let mut machine = NodeSession::new(&mut node.lease.lock().unwrap(), boot_now(), params);
    let mut incoming = FrameBuffer::default();
    let mut chunk = vec![0; 4096];
    loop {
        let timeout = machine.next_timeout(&node.lease.lock().unwrap());
        let wait = timeout
            .map_or(Duration::from_secs(60), |at| Duration::from_nanos(at.0.saturating_sub(boot_now().0)));
        let mut out = Vec::new();
        let mut close = false;
        tokio::select! {
            biased;
            () = node.stop.cancelled() => return,
            Ok(notice) = wipes.recv() => {
                let effects = machine.on_wiped(&node.lease.lock().unwrap(), &notice.report, notice.ended);
                close = node.perform(&mut machine, effects, &mut out);
            }
            read = stream.read(&mut chunk) => {
                let Ok(count @ 1..) = read else { break };
                incoming.push(&chunk[..count]);
                while let Ok(Some(frame)) = incoming.next_frame() {
                    let result = machine.on_frame(&mut node.lease.lock().unwrap(), boot_now(), &frame);
                    match result {
                        Ok(effects) => close |= node.perform(&mut machine, effects, &mut out),
                        Err(error) => {
                            out.extend(NodeSession::refusal(&error));
                            close = true;
                            break;
                        }
                    }
                }
            }
            () = tokio::time::sleep(wait) => {
                let effects = machine.on_time(&mut node.lease.lock().unwrap(), boot_now());
                node.challenges.fetch_add(1, Ordering::SeqCst);
                node.changed.send_modify(|count| *count += 1);
                close = node.perform(&mut machine, effects, &mut out);
            }
        }
        if stream.write_all(&out).await.is_err() || stream.flush().await.is_err() || close {
            break;
        }
    }
    machine.on_closed(&mut node.lease.lock().unwrap());
    let _ = stream.shutdown().await;
}

fn refusal(status: u16, kind: &str) -> Response {
    let problem = Problem::new(kind, "the node does not", "do something about it");
    (StatusCode::from_u16(status).unwrap(), Json(problem)).into_response()
}

async fn create(State(node): State<Arc<Inner>>, Json(request): Json<admin::api::CreateVolume>) -> Response {
    let refuse = node.refuse_creation.swap(0, Ordering::SeqCst);
    if refuse >= 400 {
        return refusal(refuse, "full");
    }
    let mut check = [0; 16];
    hex::decode_to_slice(&request.check, &mut check).unwrap();
    {
        let mut disk = node.disk.0.lock().unwrap();
        if disk.contains_key(&request.volume) {
            return refusal(409, "conflict");
        }
        let present = VolumePresent {
            volume: request.volume,
            pool: PoolId([7; 16]),
            domain: request.domain,
            epoch: request.epoch,
            check,
            size_bytes: ByteLen(request.size_bytes),
            fence: Fence(0),
        };
        disk.insert(request.volume, present);
    }
    node.refresh_volumes();
    if refuse == 1 {
        // Done, and the answer is lost: what is read back makes no sense.
        return "not json".into_response();
    }
    Json(serde_json::json!({})).into_response()
}

async fn list(State(node): State<Arc<Inner>>) -> Json<Vec<admin::api::VolumeStatus>> {
    let disk = node.disk.0.lock().unwrap();
    Json(disk.values().map(status).collect())
}

fn status(present: &VolumePresent) -> admin::api::VolumeStatus {
    admin::api::VolumeStatus {
        volume: present.volume,
        label: None,
        pool: units::PoolId([0; 16]),
        kind: "block".to_owned(),
        size_bytes: present.size_bytes.0,
        used_bytes: 0,
        quota_bytes: None,
        reserve_bytes: 0,
        requests_per_second: None,
        bytes_per_second: None,
        clone_of: None,
        replica: false,
        encrypted_blocks: 0,
        domain: present.domain,
        epoch: present.epoch,
        check: hex::encode(present.check),
        fence: present.fence,
        unsealed: false,
        rekey: None,
    }
}

/// Its snapshots have the ids of their volumes.
async fn clone(
    State(node): State<Arc<Inner>>,
    Path(snapshot): Path<String>,
    Json(request): Json<admin::api::CloneSnapshot>,
) -> Response {
    let made = {
        let mut disk = node.disk.0.lock().unwrap();
        let Some(of) = disk.get(&snapshot.parse().unwrap()).copied() else {
            return refusal(404, "not-found");
        };
        let clone = VolumePresent { volume: request.volume, fence: Fence(0), ..of };
        disk.insert(request.volume, clone);
        status(&clone)
    };
    node.refresh_volumes();
    Json(made).into_response()
}

/// Snapshots were taken when volumes were half as long.
async fn roll_back(
    State(node): State<Arc<Inner>>,
    Path(volume): Path<String>,
    Json(_): Json<admin::api::RollBack>,
) -> Response {
    let mut disk = node.disk.0.lock().unwrap();
    let Some(present) = disk.get_mut(&volume.parse().unwrap()) else { return refusal(404, "not-found") };
    present.size_bytes = ByteLen(present.size_bytes.0 / 2);
    Json(status(present)).into_response()
}

async fn delete(State(node): State<Arc<Inner>>, Path(volume): Path<String>) -> Response {
    let removed = node.disk.0.lock().unwrap().remove(&volume.parse().unwrap());
    node.refresh_volumes();
    if removed.is_some() { Json(serde_json::json!({})).into_response() } else { refusal(404, "not-found") }
}

async fn resize(
    State(node): State<Arc<Inner>>,
    Path(volume): Path<String>,
    Json(request): Json<admin::api::ResizeVolume>,
) -> Response {
    let mut disk = node.disk.0.lock().unwrap();
    match disk.get_mut(&volume.parse().unwrap()) {
        Some(present) if request.size_bytes < present.size_bytes.0 && !request.allow_shrink => {
            refusal(400, "invalid")
        }
        Some(present) => {
            present.size_bytes = ByteLen(request.size_bytes);
            Json(serde_json::json!({})).into_response()
        }
        None => refusal(404, "not-found"),
    }
}
