//! A whole installation on this machine: authority, pool, node and keyholder, with the people's keys at hand.
//!
//! Everything is made through what an installation is made with: the authority's library, configuration files, the
//! programs, and their administrative interfaces over mutual TLS. The ports are chosen at the beginning and stay, so
//! that a node that was killed comes back where its clients and its keyholder look for it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use admin::api::{CreateBucket, CreateUser, CreatedAccessKey, NodeStatus, Wiped};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use config::{
    ControlTls, KeyholderConfig, KeyholderListen, NodeConfig, NodeKeys, NodeListen, NodeTls, PoolConfig,
    RekeyConfig, S3Config, ScrubConfig, ServerCertificate, SourcesConfig, TpmConfig,
};
use device::{FileDevice, OpenOptions};
use identity::pki::{Authority, LEAF_DAYS_DEFAULT};
use identity::{
    ClientError, Credentials, Endpoint, ExpectedPeer, HttpsClient, NodeKey, PeerName, Role, Trust,
    control_client,
};
use keyholder::api::{
    AddNode, ApproveNode, CeremonyRequest, CeremonyResult, Connection, CreateVolume, Done, KeyState,
    KeyholderStatus, LedgerBackup, Lockdown, NewPolicy, NodeEntry, Officer, Outcome, PolicyPreview, Target,
    TpmEntry, UnsealProgress, UnsealRequest, VolumeEntry,
};
pub use keyholder::api::{OnSeal, PushPolicy, TpmState, VolumeKind};
use keyholder::shares::SealedShare;
use lease::envelope;
use nix::sys::signal::Signal;
use pool::{CreateOptions, Pool};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use units::{ByteLen, NodeId};

use crate::hardware::Machine;
use crate::process::{Process, program, wait_for};

/// The block volume's label and export name.
pub const DISK: &str = "disk";

/// The object store's label.
pub const OBJECTS: &str = "objects";

/// How long a step of a test may take on a machine that is busy with something else.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Log lines of the node that belong to what the tests do on purpose.
const EXPECTED_LINES: &[&str] =
    &["wiped: the node is sealed", "sealed one volume", "an administrator wipes the node"];

/// What a site is to be like.
#[derive(Clone, Debug)]
pub struct SiteSpec {
    pub lease_ms: u64,
    pub drain_s: u64,
    /// Length of the pool's sparse file.
    pub pool_bytes: u64,
    pub disk_bytes: u64,
    pub on_seal: OnSeal,
    pub push: PushPolicy,
    /// Officers and how many of them unseal.
    pub officers: u8,
    pub threshold: u8,
    /// NBD over TCP and S3 without TLS.
    pub plain: bool,
    /// The socket of the node's TPM.
    pub tpm: Option<PathBuf>,
}

impl Default for SiteSpec {
    fn default() -> Self {
        Self {
            lease_ms: 30_000,
            drain_s: 2,
            pool_bytes: 64 << 30,
            disk_bytes: 1 << 30,
            on_seal: OnSeal::Hold,
            push: PushPolicy::Auto,
            officers: 3,
            threshold: 2,
            plain: false,
            tpm: None,
        }
    }
}

/// An officer's key and share.
#[expect(missing_debug_implementations, reason = "holds an officer's secret")]
pub struct OfficerKit {
    pub name: String,
    pub secret: [u8; envelope::SECRET_BYTES],
    pub share: Option<SealedShare>,
}

/// A running installation. Ends with the value.
#[expect(missing_debug_implementations, reason = "holds the officers' secrets")]
pub struct Site {
    // The processes end before the folder below them goes.
    node: Option<Process>,
    keyholder: Option<Process>,
    runtime: Runtime,
    authority: Authority,
    spec: SiteSpec,
    node_config: NodeConfig,
    keyholder_config: KeyholderConfig,
    expected_lines: Vec<String>,
    pub officers: Vec<OfficerKit>,
    dir: TempDir,
    /// The pool's own: a temporary directory may lie in memory, and is too small then.
    _disk_dir: TempDir,
}

/// A name of a certificate or program, checked.
fn name(text: &str) -> PeerName {
    text.parse().expect("a valid name")
}

/// A port of the loopback address that nobody has now, and that this process has not been given before.
///
/// It is none that the system gives to outgoing connections: what is to listen there binds it later, and again after each restart,
/// and one of those may be gone by then.
///
/// # Panics
/// Where there is none.
pub fn free_port() -> SocketAddr {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    /// Far more than a machine listens on.
    const TRIES: u32 = 10_000;
    let outgoing = first_outgoing_port();
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..TRIES {
        let mut random = [0; 2];
        getrandom::fill(&mut random).expect("the system's random source");
        let port = LOWEST_PORT + u16::from_le_bytes(random) % (outgoing - LOWEST_PORT);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if !given.contains(&port) && TcpListener::bind(address).is_ok() {
            given.insert(port);
            return address;
        }
    }
    panic!("no free port from {LOWEST_PORT} to {outgoing}")
}

/// Below are those of common services.
const LOWEST_PORT: u16 = 12_000;

/// Where the ports of outgoing connections begin; Linux's default where that cannot be read or leaves no room below.
fn first_outgoing_port() -> u16 {
    const DEFAULT: u16 = 32_768;
    const ROOM: u16 = 4_000;
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = range.split_whitespace().next().and_then(|word| word.parse::<u16>().ok());
    first.filter(|first| *first >= LOWEST_PORT + ROOM).unwrap_or(DEFAULT)
}

impl Site {
    /// Makes an installation and serves [`DISK`] and [`OBJECTS`] from it.
    ///
    /// # Panics
    /// Where any step fails.
    pub fn serving(spec: SiteSpec) -> Self {
        let mut site = Self::installed(spec);
        site.start_keyholder();
        site.hold_ceremony();
        site.start_node();
        site.enrol_node();
        site.create_volume(DISK, VolumeKind::Block, site.spec.disk_bytes);
        site.create_volume(OBJECTS, VolumeKind::Objects, 1 << 40);
        site.push_until_serving();
        site
    }

    /// Makes the files of an installation and starts nothing.
    ///
    /// # Panics
    /// Where any step fails.
    pub fn installed(spec: SiteSpec) -> Self {
        let prefixed = |folder: &Path| tempfile::Builder::new().prefix("nightlatch-").tempdir_in(folder);
        let dir = prefixed(&std::env::temp_dir()).expect("a temporary directory");
        let disk_dir = prefixed(program("nightlatchd").parent().expect("programs lie in a folder"))
            .expect("a directory on the disk that holds the build");
        let trust_domain = "test.nightlatch".parse().expect("a trust domain");
        let authority = Authority::create(&dir.path().join("pki"), &trust_domain).expect("an authority");
        let roles = [
            (Role::Operator, "op"),
            (Role::StorageAdmin, "storage"),
            (Role::SecurityOfficer, "officer"),
            (Role::Auditor, "auditor"),
            (Role::Monitor, "monitor"),
            (Role::Keyholder, "keyholder"),
            (Role::Node, "node"),
            (Role::NbdClient, "client"),
        ];
        for (role, holder) in roles {
            authority.issue(role, &name(holder), LEAF_DAYS_DEFAULT).expect("a certificate");
        }
        let hosts = ["localhost", "127.0.0.1"].map(str::to_owned);
        authority.issue_server(&name("node"), &hosts, LEAF_DAYS_DEFAULT).expect("host certificates");
        let node_config = node_config(dir.path(), disk_dir.path(), &authority, &spec);
        let keyholder_config = keyholder_config(dir.path(), &authority, &spec);
        create_pool(&node_config.pools[0].path, spec.pool_bytes);
        std::fs::create_dir_all(&node_config.state_dir).expect("a state directory");
        NodeKey::create(&node_config.identity_key_file()).expect("an identity key");
        let officers = (1..=spec.officers)
            .map(|number| {
                let mut secret = [0; envelope::SECRET_BYTES];
                getrandom::fill(&mut secret).expect("the system's random source");
                OfficerKit { name: format!("officer-{number}"), secret, share: None }
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let site = Self {
            node: None,
            keyholder: None,
            runtime,
            authority,
            spec,
            node_config,
            keyholder_config,
            expected_lines: EXPECTED_LINES.iter().map(|line| (*line).to_owned()).collect(),
            officers,
            dir,
            _disk_dir: disk_dir,
        };
        site.write_configs();
        site
    }

    fn write_configs(&self) {
        let write = |path: PathBuf, text: Result<String, toml::ser::Error>| {
            std::fs::write(path, text.expect("a configuration as TOML")).expect("a writable directory");
        };
        write(self.node_config_file(), toml::to_string(&self.node_config));
        write(self.keyholder_config_file(), toml::to_string(&self.keyholder_config));
    }

    /// The directory that holds all of it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// `node.toml`.
    pub fn node_config_file(&self) -> PathBuf {
        self.dir().join("node.toml")
    }

    /// `keyholder.toml`.
    pub fn keyholder_config_file(&self) -> PathBuf {
        self.dir().join("keyholder.toml")
    }

    /// The node's configuration; [`Self::change_node_config`] changes it.
    pub fn node_config(&self) -> &NodeConfig {
        &self.node_config
    }

    /// Changes the node's configuration for its next start.
    pub fn change_node_config(&mut self, change: impl FnOnce(&mut NodeConfig)) {
        change(&mut self.node_config);
        self.write_configs();
    }

    /// The keyholder's configuration; [`Self::change_keyholder_config`] changes it.
    pub fn keyholder_config(&self) -> &KeyholderConfig {
        &self.keyholder_config
    }

    /// Changes the keyholder's configuration for its next start.
    pub fn change_keyholder_config(&mut self, change: impl FnOnce(&mut KeyholderConfig)) {
        change(&mut self.keyholder_config);
        self.write_configs();
    }

    /// The pool's file.
    pub fn pool_file(&self) -> &Path {
        &self.node_config.pools[0].path
    }

    /// A warning or error that contains this text belongs to the test.
    pub fn expect_log(&mut self, text: &str) {
        self.expected_lines.push(text.to_owned());
    }

    // ---- processes ----

    /// Starts the node and waits until its ports are bound.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn start_node(&mut self) {
        self.start_node_by(self.node_command());
    }

    /// Starts the node by `command`, which runs or becomes the command of [`Self::node_command`].
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn start_node_by(&mut self, command: Command) {
        let ready = self.node_config.ready_file();
        let _ = std::fs::remove_file(&ready);
        let mut process = Process::start("nightlatchd", command);
        wait_for("a started node", PATIENCE, || {
            assert!(process.try_wait().is_none(), "the node ended\n{}", process.tail());
            ready.is_file().then_some(()).ok_or_else(|| process.tail())
        });
        self.node = Some(process);
    }

    /// The command that starts the node.
    pub fn node_command(&self) -> Command {
        let mut command = Command::new(program("nightlatchd"));
        command.arg("--config").arg(self.node_config_file());
        command
    }

    /// Starts the keyholder and waits until it answers.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn start_keyholder(&mut self) {
        self.start_keyholder_by(self.keyholder_command());
    }

    /// The command that starts the keyholder.
    pub fn keyholder_command(&self) -> Command {
        let mut command = Command::new(program("nightlatch-keyholder"));
        command.arg("--config").arg(self.keyholder_config_file());
        command
    }

    /// Starts the keyholder by `command`, which runs or becomes the command of [`Self::keyholder_command`].
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn start_keyholder_by(&mut self, command: Command) {
        let mut process = Process::start("nightlatch-keyholder", command);
        wait_for("a started keyholder", PATIENCE, || {
            assert!(process.try_wait().is_none(), "the keyholder ended\n{}", process.tail());
            self.try_keyholder_status().map(|_| ()).map_err(|error| error.to_string())
        });
        self.keyholder = Some(process);
    }

    /// The running node.
    ///
    /// # Panics
    /// Where there is none.
    pub fn node(&mut self) -> &mut Process {
        self.node.as_mut().expect("a node was started")
    }

    /// The running keyholder.
    ///
    /// # Panics
    /// Where there is none.
    pub fn keyholder(&mut self) -> &mut Process {
        self.keyholder.as_mut().expect("a keyholder was started")
    }

    /// Kills the node as a crash would, after a look at its log.
    ///
    /// # Panics
    /// Where the log holds a warning or an error that no test asked for.
    pub fn kill_node(&mut self) {
        self.node().kill();
        self.check_logs();
        self.node = None;
    }

    /// Stops the node with SIGTERM.
    ///
    /// # Panics
    /// Where it does not end in time or not with success.
    pub fn stop_node(&mut self) {
        let status = self.node().stop(PATIENCE);
        assert!(status.success(), "the node ended with {status}\n{}", self.node().tail());
        self.check_logs();
        self.node = None;
    }

    /// Stops the keyholder with SIGTERM.
    ///
    /// # Panics
    /// Where it does not end in time or not with success.
    pub fn stop_keyholder(&mut self) {
        let status = self.keyholder().stop(PATIENCE);
        assert!(status.success(), "the keyholder ended with {status}\n{}", self.keyholder().tail());
        self.check_logs();
        self.keyholder = None;
    }

    /// Fails on a warning or error in the logs that no test asked for.
    ///
    /// # Panics
    /// Where there is one.
    pub fn check_logs(&self) {
        let expected: Vec<&str> = self.expected_lines.iter().map(String::as_str).collect();
        for process in self.node.iter().chain(&self.keyholder) {
            let lines = process.unexpected_lines(&expected);
            assert!(lines.is_empty(), "unexpected in the log:\n{}\n{}", lines.join("\n"), process.tail());
        }
    }

    // ---- people and their interfaces ----

    /// A client of a control port under one of the site's certificates.
    ///
    /// # Panics
    /// Where the certificate was never issued.
    pub fn control(&self, role: Role, holder: &str, address: SocketAddr, expected: Role) -> HttpsClient {
        let leaf = self.authority.leaf_files(role, &name(holder));
        let credentials = Credentials::load(&leaf.cert, &leaf.key).expect("the site's certificate");
        let trust = Trust::load(&self.authority.trust_files()).expect("the site's issuers");
        let tls = control_client(&credentials, &trust, ExpectedPeer::role(expected)).expect("TLS settings");
        HttpsClient::new(Endpoint::from(address), tls).with_timeout(PATIENCE)
    }

    /// The node's administrative port as its operator.
    pub fn node_admin(&self) -> HttpsClient {
        self.control(Role::Operator, "op", self.node_config.listen.admin, Role::Node)
    }

    /// The keyholder under one of the site's certificates.
    pub fn keyholder_as(&self, role: Role, holder: &str) -> HttpsClient {
        self.control(role, holder, self.keyholder_config.listen.admin, Role::Keyholder)
    }

    /// Runs a request to its end.
    pub fn wait<T>(&self, request: impl Future<Output = T>) -> T {
        self.runtime.block_on(request)
    }

    /// A profile for the command line: the operator's certificate, and the node by its address.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn profile(&self) -> PathBuf {
        let trust = self.authority.trust_files();
        let operator = self.authority.leaf_files(Role::Operator, &name("op"));
        let text = format!(
            "trust_domain = \"{}\"\npeople_issuer = {:?}\nmachines_issuer = {:?}\nclients_issuer = {:?}\n\
             [[identities]]\nrole = \"operator\"\ncert = {:?}\nkey = {:?}\n\
             [[nodes]]\nname = \"node\"\nadmin = \"https://{}\"\n",
            trust.trust_domain,
            trust.people,
            trust.machines,
            trust.clients,
            operator.cert,
            operator.key,
            self.node_config.listen.admin
        );
        let path = self.dir().join("profile.toml");
        std::fs::write(&path, text).expect("a writable directory");
        path
    }

    /// The node's status.
    ///
    /// # Panics
    /// Where it does not answer.
    pub fn status(&self) -> NodeStatus {
        self.wait(self.node_admin().get("/v1/status")).expect("the node's status")
    }

    fn try_keyholder_status(&self) -> Result<KeyholderStatus, ClientError> {
        self.wait(self.keyholder_as(Role::Operator, "op").get("/v1/status"))
    }

    /// The keyholder's status.
    ///
    /// # Panics
    /// Where it does not answer.
    pub fn keyholder_status(&self) -> KeyholderStatus {
        self.try_keyholder_status().expect("the keyholder's status")
    }

    /// Makes a new root, hands each officer a share, and pins the grant-signing key at the node.
    ///
    /// # Panics
    /// Where the keyholder refuses.
    pub fn hold_ceremony(&mut self) {
        let officers = self.officers.iter().map(|officer| Officer {
            name: officer.name.clone(),
            public_key: BASE64
                .encode(envelope::keypair(&officer.secret).expect("an officer's key").as_bytes()),
        });
        let request = CeremonyRequest { threshold: self.spec.threshold, officers: officers.collect() };
        let client = self.keyholder_as(Role::SecurityOfficer, "officer");
        let made: CeremonyResult = self.wait(client.post("/v1/ceremony", &request)).expect("a ceremony");
        for (officer, share) in self.officers.iter_mut().zip(made.shares) {
            officer.share = Some(share);
        }
        let pin = self.node_config.keyholder_key_file();
        std::fs::write(pin, format!("{}\n", made.grant_signing_key)).expect("a pinned key");
    }

    /// The first officers submit their shares until the keyholder has its root.
    ///
    /// # Panics
    /// Where a share is refused, or the threshold does not unseal.
    pub fn unseal_keyholder(&self) {
        self.unseal_by_shares(&self.keyholder_as(Role::SecurityOfficer, "officer"));
    }

    /// The same with the keyholder that `client` speaks to as a security officer.
    ///
    /// # Panics
    /// As [`Self::unseal_keyholder`].
    pub fn unseal_by_shares(&self, client: &HttpsClient) {
        let mut last = None;
        for officer in self.officers.iter().take(usize::from(self.spec.threshold)) {
            let sealed = officer.share.as_ref().expect("a ceremony was held");
            let share = sealed.open(&officer.secret).expect("an officer opens the own share");
            let progress: UnsealProgress =
                self.wait(client.post("/v1/unseal", &UnsealRequest { share })).expect("a share is taken");
            last = Some(progress);
        }
        let last = last.expect("a threshold is at least one");
        assert_eq!(last.state, keyholder::api::SealState::Unsealed, "the threshold unseals: {last:?}");
    }

    /// Enrols the node under the identity key that was made for it.
    ///
    /// # Panics
    /// Where the keyholder refuses.
    pub fn enrol_node(&self) {
        self.enrol_node_at(self.node_config.listen.key);
    }

    /// As [`Self::enrol_node`], with a key port that the keyholder is to dial elsewhere.
    ///
    /// # Panics
    /// Where the keyholder refuses.
    pub fn enrol_node_at(&self, key_port: SocketAddr) {
        let key = NodeKey::load(&self.node_config.identity_key_file()).expect("the node's key");
        let request = AddNode {
            name: "node".to_owned(),
            node: self.node_config.node_id,
            key_address: Endpoint::from(key_port),
            admin_address: Endpoint::from(self.node_config.listen.admin),
            identity_key: Some(hex::encode(key.public())),
            push: self.spec.push,
            lease_ms: Some(self.spec.lease_ms),
        };
        let client = self.keyholder_as(Role::SecurityOfficer, "officer");
        let _: NodeEntry = self.wait(client.post("/v1/nodes", &request)).expect("an enrolled node");
    }

    /// What the keyholder knows of the node's TPM.
    pub fn tpm(&self) -> Option<TpmEntry> {
        self.keyholder_status().nodes.into_iter().next().and_then(|node| node.tpm)
    }

    /// Approves the node with the TPM that speaks for it, whose fingerprint a person has read from the machine.
    ///
    /// # Panics
    /// Where the keyholder refuses.
    pub fn approve_node(&self, tpm: Option<String>) -> NodeEntry {
        let key = NodeKey::load(&self.node_config.identity_key_file()).expect("the node's key");
        let request = ApproveNode { fingerprint: hex::encode(key.public()), tpm };
        let officer = self.keyholder_as(Role::SecurityOfficer, "officer");
        self.wait(officer.post("/v1/nodes/node/approve", &request)).expect("an approved node")
    }

    /// Puts a policy in force.
    ///
    /// # Panics
    /// Where it is refused.
    pub fn apply_policy(&self, text: &str) -> PolicyPreview {
        let officer = self.keyholder_as(Role::SecurityOfficer, "officer");
        self.wait(officer.post("/v1/policy", &NewPolicy { text: text.to_owned() })).expect("a policy")
    }

    /// Waits until a volume's key is kept back for a reason with these words, which also says what would be needed.
    ///
    /// # Panics
    /// Where that takes too long.
    pub fn wait_refused(&self, words: &str) {
        wait_for(words, PATIENCE, || {
            let volumes = self.keyholder_status().volumes;
            let is_reason = |reason: &String| reason.contains(words) && reason.contains("; would need ");
            let refused = volumes.iter().any(|volume| {
                volume.key == KeyState::Refused && volume.reason.as_ref().is_some_and(is_reason)
            });
            if refused { Ok(()) } else { Err(format!("{volumes:?}")) }
        });
    }

    /// Makes a volume through the keyholder.
    ///
    /// # Panics
    /// Where it is refused.
    pub fn create_volume(&self, label: &str, kind: VolumeKind, size_bytes: u64) -> VolumeEntry {
        self.try_create_volume(label, kind, size_bytes).expect("a new volume")
    }

    /// Makes a volume through the keyholder.
    ///
    /// # Errors
    /// Where it is refused.
    pub fn try_create_volume(
        &self,
        label: &str,
        kind: VolumeKind,
        size_bytes: u64,
    ) -> Result<VolumeEntry, ClientError> {
        let request = CreateVolume {
            label: label.to_owned(),
            node: "node".to_owned(),
            kind,
            size_bytes,
            on_seal: self.spec.on_seal,
            integrity: keyholder::api::VolumeIntegrity::default(),
            limits: keyholder::api::VolumeLimits::default(),
            pool: None,
        };
        self.wait(self.keyholder_as(Role::Operator, "op").post("/v1/volumes", &request))
    }

    /// Waits until every volume is served.
    ///
    /// # Panics
    /// Where that takes too long.
    pub fn wait_serving(&self) {
        wait_for("all volumes served", PATIENCE, || self.all_served());
    }

    /// Both have to say so: each hears of the other's news a moment later.
    fn all_served(&self) -> Result<(), String> {
        let status = self.keyholder_status();
        let locked: Vec<_> =
            status.volumes.iter().filter(|volume| volume.key != KeyState::Unlocked).collect();
        if status.volumes.is_empty() || !locked.is_empty() {
            return Err(format!("{locked:?} on {:?}", status.nodes));
        }
        let node: Result<NodeStatus, ClientError> = self.wait(self.node_admin().get("/v1/status"));
        let node = node.map_err(|error| error.to_string())?;
        if node.seal.sealed { Err(format!("the node itself: {:?}", node.seal)) } else { Ok(()) }
    }

    /// Waits until a push would do something: the keyholder has the node's evidence, and has heard of the wipe. One that still thinks
    /// that a key is in force approves nothing. `false` where everything is served.
    fn wait_push_wanted(&self) -> bool {
        wait_for("a node that waits for a push", PATIENCE, || {
            let nodes = self.keyholder_status().nodes;
            let waits = |node: &NodeEntry| node.connection == Connection::Connected && node.awaits_push;
            if nodes.iter().all(waits) { Ok(true) } else { self.all_served().map(|()| false) }
        })
    }

    /// Approves a push where the policy wants that, and waits until every volume is served.
    ///
    /// # Panics
    /// Where that takes too long.
    pub fn push_until_serving(&self) {
        if self.spec.push == PushPolicy::Approve && self.wait_push_wanted() {
            let outcome = self.act("/v1/push");
            assert!(outcome.nodes.iter().all(|node| node.confirmed), "a push was not confirmed: {outcome:?}");
        }
        self.wait_serving();
    }

    /// Waits until the node says that it is sealed, for `cause`.
    ///
    /// # Panics
    /// Where that takes too long.
    pub fn wait_sealed(&self, cause: &str) -> NodeStatus {
        wait_for("a sealed node", PATIENCE, || {
            let status = self.status();
            let as_expected = status.seal.sealed && status.seal.cause.as_deref() == Some(cause);
            if as_expected { Ok(status) } else { Err(format!("{:?}", status.seal)) }
        })
    }

    /// Does `event` and waits until the node has been wiped since: its status then. It may have keys again, as a keyholder that pushes
    /// by itself is back within a fraction of a second.
    ///
    /// # Panics
    /// Where that takes too long.
    pub fn wiped_by(&self, event: impl FnOnce(&Self)) -> NodeStatus {
        let since = self.status().now_boot_ns;
        event(self);
        wait_for("a wipe", PATIENCE, || {
            let status = self.status();
            let wiped = status.last_wipe.as_ref().is_some_and(|wipe| wipe.at_boot_ns >= since);
            if wiped { Ok(status) } else { Err(format!("{:?}", status.seal)) }
        })
    }

    /// Waits until the keyholder, too, knows that the node's keys are gone, and so whether that latches. The node's own status says
    /// so a moment earlier.
    ///
    /// # Panics
    /// Where that takes too long.
    pub fn wait_heard_of_wipe(&self) {
        wait_for("the keyholder to hear of the wipe", PATIENCE, || {
            let status = self.keyholder_status();
            let connected = status.nodes.iter().all(|node| node.connection == Connection::Connected);
            let is_gone = |volume: &VolumeEntry| matches!(volume.key, KeyState::Sealed | KeyState::Refused);
            let heard = connected && status.volumes.iter().all(is_gone);
            if heard { Ok(()) } else { Err(format!("{:?} on {:?}", status.volumes, status.nodes)) }
        });
    }

    /// SIGPWR: what a power supply's last message becomes.
    ///
    /// # Panics
    /// Where no node runs.
    pub fn lose_power(&self) {
        self.signal_node(Signal::SIGPWR);
    }

    /// Sends a signal to the node.
    ///
    /// # Panics
    /// Where no node runs.
    pub fn signal_node(&self, signal: Signal) {
        self.node.as_ref().expect("a node was started").signal(signal);
    }

    /// Sends a signal to the keyholder.
    ///
    /// # Panics
    /// Where no keyholder runs.
    pub fn signal_keyholder(&self, signal: Signal) {
        self.keyholder.as_ref().expect("a keyholder was started").signal(signal);
    }

    /// An act of the keyholder on everything.
    ///
    /// # Panics
    /// Where it is refused.
    pub fn act(&self, path: &str) -> Outcome {
        self.try_act(path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// An act of the keyholder on everything.
    ///
    /// # Errors
    /// Where it is refused.
    pub fn try_act(&self, path: &str) -> Result<Outcome, ClientError> {
        let client = self.keyholder_as(Role::SecurityOfficer, "officer");
        match path {
            "/v1/lockdown" => self.wait(client.post(path, &Lockdown {})),
            _ => self.wait(client.post(path, &Target::All)),
        }
    }

    /// Asks for a push that a latch must keep from happening.
    ///
    /// # Panics
    /// Where keys were pushed.
    pub fn expect_latched(&self) {
        self.wait_heard_of_wipe();
        match self.try_act("/v1/push") {
            Ok(outcome) => {
                assert!(outcome.nodes.iter().all(|node| !node.confirmed), "not latched: {outcome:?}")
            }
            Err(error) => assert!(error.to_string().contains("unlatch"), "the next step is missing: {error}"),
        }
        assert!(self.status().seal.sealed, "a latch holds until an officer lifts it");
    }

    /// An operator's wipe at the node itself.
    ///
    /// # Panics
    /// Where it is refused.
    pub fn wipe(&self) -> Wiped {
        self.wait(self.node_admin().post("/v1/wipe", &Done {})).expect("a wipe")
    }

    /// A backup of the ledger.
    ///
    /// # Panics
    /// Where it is refused.
    pub fn ledger_backup(&self) -> LedgerBackup {
        self.wait(self.keyholder_as(Role::Operator, "op").get("/v1/ledger/backup")).expect("a ledger backup")
    }

    /// Restores the ledger of a keyholder that has none.
    ///
    /// # Panics
    /// Where it is refused.
    pub fn restore_ledger(&self, backup: &LedgerBackup) {
        let client = self.keyholder_as(Role::SecurityOfficer, "officer");
        let _: KeyholderStatus =
            self.wait(client.post("/v1/ledger/restore", backup)).expect("a restored ledger");
    }

    /// Where the keyholder keeps its ledger.
    pub fn keyholder_state_dir(&self) -> &Path {
        &self.keyholder_config.state_dir
    }

    /// The keyholder's trail, line by line.
    ///
    /// # Panics
    /// Where a line is no JSON.
    pub fn keyholder_trail(&self) -> Vec<serde_json::Value> {
        trail_in(self.keyholder_state_dir())
    }

    /// The node's trail, line by line.
    ///
    /// # Panics
    /// Where a line is no JSON.
    pub fn node_trail(&self) -> Vec<serde_json::Value> {
        trail_in(&self.node_config.state_dir)
    }

    // ---- clients ----

    /// A new user with an access key.
    ///
    /// # Panics
    /// Where the node refuses.
    pub fn create_user(&self, user: &str) -> CreatedAccessKey {
        self.wait(self.node_admin().post("/v1/users", &CreateUser::new(user))).expect("a new user")
    }

    /// A new bucket.
    ///
    /// # Panics
    /// Where the node refuses.
    pub fn create_bucket(&self, bucket: &str) {
        let request = CreateBucket { name: bucket.to_owned() };
        let _: admin::api::Bucket =
            self.wait(self.node_admin().post("/v1/buckets", &request)).expect("a new bucket");
    }

    /// The S3 endpoint.
    ///
    /// # Panics
    /// Where the site has none.
    pub fn s3_endpoint(&self) -> String {
        let address = self.node_config.listen.s3.expect("the site serves S3");
        if self.spec.plain {
            format!("http://{address}")
        } else {
            format!("https://localhost:{}", address.port())
        }
    }

    /// Everything that S3 and NBD clients trust.
    pub fn ca_bundle(&self) -> PathBuf {
        self.authority.bundle()
    }

    /// The folder with an NBD client's certificate, under the names that libnbd and QEMU look for.
    ///
    /// # Panics
    /// Never: a certificate lies in a folder.
    pub fn nbd_certificates(&self) -> PathBuf {
        let leaf = self.authority.leaf_files(Role::NbdClient, &name("client"));
        leaf.cert.parent().expect("a certificate lies in a folder").to_path_buf()
    }

    /// The NBD head's unix socket.
    ///
    /// # Panics
    /// Where the site has none.
    pub fn nbd_socket(&self) -> &Path {
        self.node_config.listen.nbd_unix.as_deref().expect("the site has a unix socket")
    }

    /// The NBD head's TCP address.
    ///
    /// # Panics
    /// Where the site has none.
    pub fn nbd_address(&self) -> SocketAddr {
        self.node_config.listen.nbd.expect("the site serves NBD over TCP")
    }

    /// The URI of an export on the unix socket.
    pub fn nbd_unix_uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.nbd_socket().display())
    }

    /// The URI of an export over TLS, for libnbd's tools.
    pub fn nbd_tls_uri(&self, export: &str) -> String {
        let certificates = self.nbd_certificates();
        let port = self.nbd_address().port();
        format!("nbds://localhost:{port}/{export}?tls-certificates={}", certificates.display())
    }

    /// The health port's address.
    pub fn metrics_address(&self) -> SocketAddr {
        self.node_config.listen.metrics
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check_logs();
        }
    }
}

/// The whole lines of a trail: the last may be in the middle of being written.
fn trail_in(state_dir: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(state_dir.join("audit.jsonl")).expect("a trail");
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// The `[tls]` table of one of the site's machines.
pub(crate) fn control_tls(authority: &Authority, role: Role, holder: &str) -> ControlTls {
    let leaf = authority.leaf_files(role, &name(holder));
    let trust = authority.trust_files();
    ControlTls {
        trust_domain: trust.trust_domain,
        cert: leaf.cert,
        key: leaf.key,
        people_issuer: trust.people,
        machines_issuer: trust.machines,
        clients_issuer: trust.clients,
    }
}

fn node_config(dir: &Path, disk_dir: &Path, authority: &Authority, spec: &SiteSpec) -> NodeConfig {
    let control = control_tls(authority, Role::Node, "node");
    let servers = authority.server_files(&name("node"));
    let server =
        [servers.ecdsa, servers.rsa].map(|pair| ServerCertificate { cert: pair.cert, key: pair.key });
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("the system's random source");
    NodeConfig {
        node_id: NodeId(id),
        name: name("node"),
        state_dir: dir.join("node"),
        lease_ms_max: 300_000,
        drain_s: spec.drain_s,
        allow_mlock: false,
        listen: NodeListen {
            peers: None,
            key: free_port(),
            admin: free_port(),
            metrics: free_port(),
            nbd: Some(free_port()),
            nbd_unix: Some(dir.join("nbd.sock")),
            s3: Some(free_port()),
            s3_region: "us-east-1".to_owned(),
            nbd_plain: spec.plain,
            s3_plain: spec.plain,
            s3_day_s: 24 * 3600,
            s3_signature_v2: false,
        },
        tls: NodeTls {
            trust_domain: control.trust_domain,
            cert: control.cert,
            key: control.key,
            people_issuer: control.people_issuer,
            machines_issuer: control.machines_issuer,
            clients_issuer: control.clients_issuer,
            nbd_min: identity::TlsFloor::default(),
            s3_min: identity::TlsFloor::default(),
            server: server.to_vec(),
        },
        keys: NodeKeys::default(),
        pools: vec![PoolConfig { path: disk_dir.join("pool") }],
        sources: SourcesConfig::default(),
        watchdog: None,
        scrub: ScrubConfig::default(),
        rekey: RekeyConfig::default(),
        s3: S3Config::default(),
        tpm: spec
            .tpm
            .as_ref()
            .map(|socket| TpmConfig { device: socket.clone(), event_log: dir.join("event-log") }),
        peers: Vec::new(),
        replication: config::ReplicationConfig::default(),
        health: Machine::record(dir).config(),
        memory_overwrite: dir.join("memory-overwrite"),
    }
}

fn keyholder_config(dir: &Path, authority: &Authority, spec: &SiteSpec) -> KeyholderConfig {
    KeyholderConfig {
        dial_loopback_only: false,
        etcd: None,
        name: name("keyholder"),
        state_dir: dir.join("keyholder"),
        lease_ms: spec.lease_ms,
        lease_ms_max: spec.lease_ms,
        allow_mlock: false,
        listen: KeyholderListen { admin: free_port() },
        tls: control_tls(authority, Role::Keyholder, "keyholder"),
        oidc: None,
        webhooks: Vec::new(),
    }
}

/// A pool on a sparse file.
///
/// # Panics
/// Where it cannot be made.
pub fn create_pool(path: &Path, bytes: u64) {
    let options = OpenOptions { create_len: Some(ByteLen(bytes)), ..OpenOptions::default() };
    let device = Arc::new(FileDevice::open(path, options).expect("a pool's file"));
    Pool::create(device, CreateOptions::default()).expect("a new pool");
}
