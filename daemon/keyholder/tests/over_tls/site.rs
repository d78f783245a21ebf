//! An installation in one directory: authority, people, a keyholder, nodes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use config::OidcConfig;
use identity::pki::{Authority, guest_files};
use identity::{
    ClientError, Credentials, Endpoint, ExpectedPeer, GuestKey, HttpsClient, PeerName, Role, ServeLimits,
    Trust, control_client, control_server, control_server_with_guests, serve_https,
};
use keyholder::api::{
    AddNode, CeremonyRequest, CeremonyResult, CreateVolume, KeyholderStatus, NodeEntry, Officer, OnSeal,
    PushPolicy, SealState, UnsealProgress, UnsealRequest, VolumeEntry, VolumeKind,
};
use keyholder::oidc::Provider;
use keyholder::shares::SealedShare;
use keyholder::{Keyholder, KeyholderParams, access};
use lease::envelope;
use locked_memory::Policy;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use units::NodeId;

use crate::fake_node::{Disk, FakeNode, Machine, NodeSetup, Ports, reserved_port};

/// Short, so that a test that waits for a lease's end waits briefly. One that wants a key to stay where it is has a longer one.
pub(crate) const LEASE_MS: u64 = 3_000;

/// How long what must come may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The secret of the officer with this number.
pub(crate) fn officer_secret(number: u8) -> [u8; 32] {
    [0xc0 + number; 32]
}

pub(crate) struct Site {
    dir: tempfile::TempDir,
    authority: Authority,
    running: Option<Running>,
    admin: SocketAddr,
    /// The administrative port, also while the keyholder is stopped.
    _reserved: TcpSocket,
    lease_ms: u64,
    /// For the next start.
    pub(crate) dial_loopback_only: bool,
    pub(crate) lease_ms_max: u64,
    pub(crate) oidc: Option<OidcConfig>,
}

struct Running {
    keyholder: Arc<Keyholder>,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

fn name(text: &str) -> PeerName {
    text.parse().unwrap()
}

impl Site {
    /// A running keyholder with nothing in it.
    pub(crate) async fn new() -> Self {
        Self::with_lease(LEASE_MS).await
    }

    /// The same, whose nodes are given leases of this length.
    pub(crate) async fn with_lease(lease_ms: u64) -> Self {
        let _ = tracing_subscriber::fmt().with_test_writer().with_max_level(tracing::Level::INFO).try_init();
        let dir = tempfile::tempdir().unwrap();
        let domain = "test.example".parse().unwrap();
        let authority = Authority::create(&dir.path().join("pki"), &domain).unwrap();
        let reserved = reserved_port();
        let admin = reserved.local_addr().unwrap();
        let mut site = Self {
            dir,
            authority,
            running: None,
            admin,
            _reserved: reserved,
            lease_ms,
            dial_loopback_only: false,
            lease_ms_max: lease_ms + 1_000,
            oidc: None,
        };
        site.start().await;
        site
    }

    fn credentials(&self, role: Role, holder: &str) -> Credentials {
        let files = self.authority.leaf_files(role, &name(holder));
        if !files.cert.exists() {
            self.authority.issue(role, &name(holder), 1).unwrap();
        }
        Credentials::load(&files.cert, &files.key).unwrap()
    }

    fn trust(&self) -> Trust {
        Trust::load(&self.authority.trust_files()).unwrap()
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("keyholder")
    }

    pub(crate) fn params(&self, state_dir: &Path) -> KeyholderParams {
        KeyholderParams {
            dial_loopback_only: self.dial_loopback_only,
            shared_store: None,
            name: "compute-1".to_owned(),
            state_dir: state_dir.to_owned(),
            lease_ms: self.lease_ms,
            lease_ms_max: self.lease_ms_max,
            oidc: self.oidc.as_ref().map(|config| Provider::load(config).unwrap()),
            webhooks: Vec::new(),
            memory: Policy::AllowMlock,
            credentials: self.credentials(Role::Keyholder, "compute-1"),
            trust: self.trust(),
        }
    }

    /// Starts the keyholder on what is in its state directory.
    pub(crate) async fn start(&mut self) {
        let keyholder = Keyholder::open(self.params(&self.state_dir())).unwrap();
        let credentials = self.credentials(Role::Keyholder, "compute-1");
        let accept = if self.oidc.is_some() { control_server_with_guests } else { control_server };
        let tls = accept(&credentials, &self.trust(), access::ACCEPTED_ROLES).unwrap();
        let listener = TcpListener::bind(self.admin).await.unwrap();
        let stop = CancellationToken::new();
        let (router, domain, until) = (keyholder.router(), self.trust().trust_domain().clone(), stop.clone());
        let served = tokio::spawn(async move {
            serve_https(listener, tls, domain, router, ServeLimits::default(), until.cancelled()).await;
        });
        self.running = Some(Running { keyholder, stop, served });
    }

    /// Stops it as SIGTERM does.
    pub(crate) async fn stop(&mut self) {
        let Running { keyholder, stop, served } = self.running.take().unwrap();
        stop.cancel();
        served.await.unwrap();
        keyholder.shut_down().await;
        // The lock on the state directory goes with the last reference.
        let gone = Arc::downgrade(&keyholder);
        drop(keyholder);
        assert_eq!(gone.strong_count(), 0, "something still holds the stopped keyholder");
    }

    /// Removes one of the keyholder's files, as a lost disk would.
    pub(crate) fn lose(&self, file: &str) {
        std::fs::remove_file(self.state_dir().join(file)).unwrap();
    }

    pub(crate) fn client(&self, role: Role, holder: &str) -> HttpsClient {
        let expected = ExpectedPeer::named(Role::Keyholder, name("compute-1"));
        let tls = control_client(&self.credentials(role, holder), &self.trust(), expected).unwrap();
        HttpsClient::new(Endpoint::from(self.admin), tls).with_timeout(PATIENCE)
    }

    /// Somebody without a certificate of a role, by the key of this name.
    pub(crate) fn guest(&self, key: &str) -> (HttpsClient, GuestKey) {
        let files = guest_files(&self.dir.path().join("guests").join(key)).unwrap();
        let credentials = Credentials::load(&files.cert, &files.key).unwrap();
        let expected = ExpectedPeer::named(Role::Keyholder, name("compute-1"));
        let tls = control_client(&credentials, &self.trust(), expected).unwrap();
        let client = HttpsClient::new(Endpoint::from(self.admin), tls).with_timeout(PATIENCE);
        (client, GuestKey { spki_sha256: credentials.facts().spki_sha256 })
    }

    pub(crate) fn operator(&self) -> HttpsClient {
        self.client(Role::Operator, "op")
    }

    pub(crate) fn officer(&self) -> HttpsClient {
        self.client(Role::SecurityOfficer, "alice")
    }

    pub(crate) async fn status(&self) -> KeyholderStatus {
        self.operator().get("/v1/status").await.unwrap()
    }

    /// A root shared two of three ways.
    pub(crate) async fn ceremony(&self) -> CeremonyResult {
        self.officer().post("/v1/ceremony", &ceremony_request(2, 3)).await.unwrap()
    }

    /// Submits a share as its officer would.
    pub(crate) async fn submit(
        &self,
        shares: &[SealedShare],
        number: u8,
    ) -> Result<UnsealProgress, ClientError> {
        let share = shares[usize::from(number) - 1].open(&officer_secret(number)).unwrap();
        self.officer().post("/v1/unseal", &UnsealRequest { share }).await
    }

    pub(crate) async fn unseal(&self, shares: &[SealedShare]) {
        self.submit(shares, 3).await.unwrap();
        let progress = self.submit(shares, 1).await.unwrap();
        assert_eq!(progress.state, SealState::Unsealed);
    }

    /// A node, running and not yet known to the keyholder.
    pub(crate) async fn fake_node(&self, number: u8) -> FakeNode {
        self.fake_node_on(number, Disk::default(), None, Machine::default()).await
    }

    /// The same, on a certain machine.
    pub(crate) async fn fake_node_in(&self, number: u8, machine: Machine) -> FakeNode {
        self.fake_node_on(number, Disk::default(), None, machine).await
    }

    /// The same node's program started again, on its old disk and ports.
    pub(crate) async fn restart_node(&self, number: u8, old: &FakeNode) -> FakeNode {
        self.restart_node_in(number, old, Machine::default()).await
    }

    /// The same, on a certain machine.
    pub(crate) async fn restart_node_in(&self, number: u8, old: &FakeNode, machine: Machine) -> FakeNode {
        old.kill();
        // Its listeners are closed by their tasks in a moment.
        tokio::time::timeout(PATIENCE, async {
            while TcpListener::bind(old.key_address).await.is_err()
                || TcpListener::bind(old.admin_address).await.is_err()
            {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        self.fake_node_on(number, old.disk(), Some(old.ports.clone()), machine).await
    }

    async fn fake_node_on(&self, number: u8, disk: Disk, ports: Option<Ports>, machine: Machine) -> FakeNode {
        FakeNode::start(NodeSetup {
            id: NodeId([number; 16]),
            identity_seed: [0x10 + number; 32],
            disk,
            credentials: self.credentials(Role::Node, &node_name(number)),
            trust: self.trust(),
            ports,
            machine,
        })
        .await
    }

    /// A node that is enrolled, approved and pushed to without asking.
    pub(crate) async fn node(&self, number: u8) -> FakeNode {
        let node = self.fake_node(number).await;
        node.pin(self.grant_signing_key().await);
        let request =
            AddNode { identity_key: Some(hex::encode(node.identity_key())), ..add_node(number, &node) };
        let _: NodeEntry = self.officer().post("/v1/nodes", &request).await.unwrap();
        node
    }

    pub(crate) async fn grant_signing_key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        hex::decode_to_slice(self.status().await.grant_signing_key.unwrap(), &mut key).unwrap();
        key
    }

    pub(crate) async fn create(&self, label: &str, node: u8) -> VolumeEntry {
        self.operator().post("/v1/volumes", &create_volume(label, node)).await.unwrap()
    }

    pub(crate) async fn volume(&self, label: &str) -> VolumeEntry {
        self.status().await.volumes.into_iter().find(|volume| volume.label == label).unwrap()
    }

    pub(crate) async fn node_entry(&self, number: u8) -> NodeEntry {
        self.status().await.nodes.into_iter().find(|node| node.name == node_name(number)).unwrap()
    }

    /// Asks for the status until `done`.
    pub(crate) async fn wait(&self, what: &str, done: impl Fn(&KeyholderStatus) -> bool) -> KeyholderStatus {
        let operator = self.operator();
        let last = std::sync::Mutex::new(None);
        let reached = async {
            loop {
                let status: KeyholderStatus = operator.get("/v1/status").await.unwrap();
                if done(&status) {
                    return status;
                }
                *last.lock().unwrap() = Some(status);
                // Each question is a handshake: what is waited for needs the processor too.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, reached).await {
            Ok(status) => status,
            Err(_) => panic!("waited in vain for {what}: {:#?}", last.lock().unwrap()),
        }
    }

    /// What was refused, as (status, kind).
    pub(crate) async fn refused<B: Serialize + Sync>(
        &self,
        client: &HttpsClient,
        path: &str,
        body: &B,
    ) -> (u16, String) {
        refusal(client.post::<serde_json::Value>(path, body).await)
    }
}

pub(crate) fn refusal<T: DeserializeOwned + std::fmt::Debug>(
    answer: Result<T, ClientError>,
) -> (u16, String) {
    match answer.unwrap_err() {
        ClientError::Refused { status, problem, .. } => {
            assert!(!problem.next_step.is_empty(), "no next step: {problem:?}");
            (status, problem.kind)
        }
        other => panic!("not a refusal: {other}"),
    }
}

pub(crate) fn node_name(number: u8) -> String {
    format!("node-{number}")
}

pub(crate) fn ceremony_request(threshold: u8, officers: u8) -> CeremonyRequest {
    let officer = |number| Officer {
        name: format!("officer-{number}"),
        public_key: BASE64.encode(envelope::keypair(&officer_secret(number)).unwrap().as_bytes()),
    };
    CeremonyRequest { threshold, officers: (1..=officers).map(officer).collect() }
}

pub(crate) fn add_node(number: u8, node: &FakeNode) -> AddNode {
    AddNode {
        name: node_name(number),
        node: node.id(),
        key_address: Endpoint::from(node.key_address),
        admin_address: Endpoint::from(node.admin_address),
        identity_key: None,
        push: PushPolicy::Auto,
        lease_ms: None,
    }
}

pub(crate) fn create_volume(label: &str, node: u8) -> CreateVolume {
    CreateVolume {
        label: label.to_owned(),
        node: node_name(node),
        pool: None,
        kind: VolumeKind::Block,
        size_bytes: 1 << 30,
        on_seal: OnSeal::Hold,
        integrity: keyholder::api::VolumeIntegrity::default(),
        limits: keyholder::api::VolumeLimits::default(),
    }
}
