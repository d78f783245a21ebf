//! The drill's installation: a directory that goes away, a keyholder from the backup, a node on the copied disks.

use std::fs;
use std::path::{Path, PathBuf};

use config::NodeListen;
use identity::pki::{Authority, LEAF_DAYS_DEFAULT};
use identity::{ClientError, Endpoint, HttpsClient, NodeKey, Role};
use keyholder::api::{
    ApproveNode, ChangeNode, KeyState, KeyholderStatus, LedgerBackup, NodeEntry, Outcome, PushPolicy,
    SealState, Target, UnsealProgress, UnsealRequest, VolumeEntry,
};
use keyholder::shares::SealedShare;
use tokio::time::{Duration, Instant};

use crate::args::KeyDrill;
use crate::commands::{OfficerKey, PlannedNode, open_share, random_id, read_json};
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::loopback::install::{self, PlannedKeyholder, grant_signing_key};
use crate::loopback::ports::{Ports, Reservation};
use crate::loopback::processes::{POLL, Processes};
use crate::loopback::{at, temporary_dir};
use crate::output::{Output, duration_ms};
use crate::profile::{PROFILE_FILE, Profile};

const KEYHOLDER: &str = "drill-keyholder";

/// The lease while the drill lasts, whatever the node's real one is.
const LEASE_MS: u64 = 30_000;

/// How long a volume may take to open once keys may be granted: recovery of a large object store.
const OPEN_TIMEOUT: Duration = Duration::from_secs(300);

/// A volume whose key stays refused for so long does not open.
const REFUSED_FOR_GOOD: Duration = Duration::from_secs(5);

/// Region of the S3 head; only the drill's own client signs for it.
pub(super) const REGION: &str = "us-east-1";

/// The drill's installation.
pub(super) struct Site {
    dir: PathBuf,
    ports: Ports,
    processes: Processes,
    /// What the drill's people are called: nobody in the ledger is.
    people: String,
    /// Which of its officers acts.
    officer: usize,
    _ports: Reservation,
}

/// A volume of the node, and why it did not open if it didn't.
pub(super) struct Opened {
    pub(super) volume: VolumeEntry,
    pub(super) failure: Option<String>,
}

impl Site {
    pub(super) fn new(arguments: &KeyDrill) -> Done<Self> {
        for disk in &arguments.disks {
            // Said now rather than by the node after the wait.
            fs::metadata(disk).map_err(|error| Failure::file("read", disk, &error))?;
        }
        let dir = temporary_dir()?;
        let (ports, reservation) = Ports::take()?;
        let processes = Processes::new(&dir.join("logs"))?;
        let people = format!("drill-{}", &hex::encode(random_id()?)[..8]);
        Ok(Self { dir, ports, processes, people, officer: 0, _ports: reservation })
    }

    /// Stops both programs and removes everything that was made.
    pub(super) async fn end(&mut self) {
        self.processes.stop().await;
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// The NBD head's socket.
    pub(super) fn nbd_socket(&self) -> PathBuf {
        self.dir.join("nbd.sock")
    }

    /// The port of the S3 head.
    pub(super) fn s3_port(&self) -> u16 {
        self.ports.s3
    }

    /// A directory for what the drill makes beside its programs.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn connections(&self) -> Done<Connections> {
        self.officer(self.officer)
    }

    /// With the certificate of one of the drill's officers, which is made when it is first wanted.
    pub(super) fn officer(&self, number: usize) -> Done<Connections> {
        let mut profile = Profile::load(Some(&self.dir))?;
        let authority = Authority::open(&self.dir.join("pki"))?;
        let name = install::name(&format!("{}-{number}", self.people))?;
        let files = authority.leaf_files(Role::SecurityOfficer, &name);
        if !files.cert.exists() {
            authority.issue(Role::SecurityOfficer, &name, LEAF_DAYS_DEFAULT)?;
        }
        let officers = profile.identities.iter_mut().filter(|own| own.role == Role::SecurityOfficer);
        officers.for_each(|own| (own.cert, own.key) = (files.cert.clone(), files.key.clone()));
        Ok(Connections::of(profile))
    }

    /// From now on this officer acts.
    pub(super) fn use_officer(&mut self, number: usize) -> Done {
        self.officer = number;
        self.officer(number).map(drop)
    }

    fn keyholder(&self, ask: Ask) -> Done<HttpsClient> {
        self.connections()?.keyholder(ask)
    }

    /// The node's administrative port.
    pub(super) async fn node_client(&self, ask: Ask) -> Done<HttpsClient> {
        self.connections()?.node(None, ask).await
    }

    /// Starts an empty keyholder and gives it the backup.
    pub(super) async fn start_keyholder(&mut self, arguments: &KeyDrill, output: Output) -> Done {
        let backup: LedgerBackup = read_json(&arguments.backup, "a ledger backup")?;
        output.note(&format!("Starting a keyholder with ledger serial {} and nothing else.", backup.serial));
        // The certificates name the node only once the ledger has told its name; the keyholder needs none of them.
        let authority =
            install::make_authority(&self.dir.join("pki"), "drill.nightlatch", KEYHOLDER, "node")?;
        install::write_profile(&self.dir.join(PROFILE_FILE), &authority, &self.ports, "node")?;
        let planned = PlannedKeyholder {
            dir: &self.dir.join("keyholder"),
            name: KEYHOLDER,
            authority: &authority,
            admin: at(self.ports.keyholder),
            lease_ms: LEASE_MS,
        };
        let client = self.keyholder(Ask::Read)?;
        install::start_keyholder(&mut self.processes, &planned, &client).await?;
        let restored: Result<KeyholderStatus, ClientError> =
            self.keyholder(Ask::Decide)?.post("/v1/ledger/restore", &backup).await;
        restored.map(drop).map_err(|error| Failure::from(error).during("restoring the ledger backup"))
    }

    /// Submits the shares until they suffice; gives the officers' names.
    pub(super) async fn unseal(&self, arguments: &KeyDrill, output: Output) -> Done<Vec<String>> {
        let keys =
            arguments.officer_keys.iter().map(|path| OfficerKey::load(path)).collect::<Done<Vec<_>>>()?;
        let client = self.keyholder(Ask::Decide)?;
        let mut officers = Vec::new();
        let mut need = 0;
        for path in &arguments.shares {
            let share: SealedShare = read_json(path, "a share")?;
            let key = keys.iter().find(|key| key.name == share.officer).ok_or_else(|| {
                Failure::usage(
                    format!("no key of {} was given for {}", share.officer, path.display()),
                    "give the officer's key file with --officer-key",
                )
            })?;
            let request = UnsealRequest { share: open_share(&share, key)? };
            let progress: UnsealProgress = client.post("/v1/unseal", &request).await.map_err(|error| {
                Failure::from(error).during(&format!("submitting the share of {}", key.name))
            })?;
            officers.push(key.name.clone());
            if progress.state == SealState::Unsealed {
                output.note(&format!("The shares of {} give the root back.", officers.join(" and ")));
                return Ok(officers);
            }
            need = progress.shares.need;
        }
        Err(Failure::usage(
            format!("{} shares were given and {need} are needed", officers.len()),
            "give more with --share and --officer-key",
        ))
    }

    /// Which node's disks were copied.
    pub(super) async fn find_node(&self, wanted: Option<&str>) -> Done<NodeEntry> {
        let client = self.keyholder(Ask::Read)?;
        let mut nodes: Vec<NodeEntry> = client.get("/v1/nodes").await?;
        let volumes: Vec<VolumeEntry> = client.get("/v1/volumes").await?;
        nodes.retain(|node| match wanted {
            Some(wanted) => node.name == wanted,
            None => volumes.iter().any(|volume| volume.node == node.name),
        });
        match (nodes.pop(), nodes.is_empty()) {
            (Some(only), true) => Ok(only),
            (None, _) => Err(Failure::usage(
                "the ledger knows no such node, or none with volumes",
                "compare --node with `nightlatch node list`, and the backup's age",
            )),
            (Some(_), false) => Err(Failure::usage(
                "the ledger has several nodes with volumes",
                "say with --node whose disks were copied",
            )),
        }
    }

    /// Starts a node in the place of the real one: its name and id, the drill's address and identity key.
    pub(super) async fn start_node(&mut self, entry: &NodeEntry, disks: &[PathBuf], output: Output) -> Done {
        output.note(&format!("Starting a node in the place of {}, on the copied disks.", entry.name));
        let node = install::name(&entry.name)?;
        let authority = self.authority_for(&entry.name)?;
        let disks = disks
            .iter()
            .map(|disk| std::path::absolute(disk).map_err(|error| Failure::file("find", disk, &error)))
            .collect::<Done<Vec<_>>>()?;
        let dir = self.dir.join("node");
        let planned = PlannedNode {
            dir: &dir,
            name: &node,
            id: entry.node,
            authority: &authority,
            pools: &disks,
            listen: self.listen(),
            drain_s: 2,
            tpm: None,
        };
        let pin = grant_signing_key(&self.keyholder(Ask::Read)?).await?;
        install::start_node(&mut self.processes, &planned, &pin).await?;
        let key = NodeKey::load(&planned.config().identity_key_file())?;
        let officer = self.keyholder(Ask::Decide)?;
        let change = ChangeNode {
            key_address: Some(Endpoint::from(at(self.ports.key))),
            admin_address: Some(Endpoint::from(at(self.ports.admin))),
            push: Some(PushPolicy::Auto),
            lease_ms: Some(LEASE_MS),
        };
        let _: NodeEntry = officer.patch(&format!("/v1/nodes/{}", entry.name), &change).await?;
        let approve = ApproveNode { fingerprint: hex::encode(key.public()), tpm: None };
        let _: NodeEntry = officer.post(&format!("/v1/nodes/{}/approve", entry.name), &approve).await?;
        Ok(())
    }

    /// The authority, with certificates for a node of this name.
    fn authority_for(&self, node: &str) -> Done<Authority> {
        let authority = Authority::open(&self.dir.join("pki"))?;
        if !authority.leaf_files(Role::Node, &install::name(node)?).cert.exists() {
            install::issue_node(&authority, node)?;
        }
        install::write_profile(&self.dir.join(PROFILE_FILE), &authority, &self.ports, node)?;
        Ok(authority)
    }

    fn listen(&self) -> NodeListen {
        NodeListen {
            peers: None,
            key: at(self.ports.key),
            admin: at(self.ports.admin),
            metrics: at(self.ports.metrics),
            nbd: None,
            nbd_unix: Some(self.nbd_socket()),
            s3: Some(at(self.ports.s3)),
            s3_region: REGION.to_owned(),
            nbd_plain: false,
            // Loopback only, and the client is this program.
            s3_plain: true,
            s3_day_s: 24 * 3600,
            s3_signature_v2: false,
        }
    }

    /// Serial of the restored ledger.
    pub(super) async fn ledger_serial(&self) -> Done<u64> {
        let status: KeyholderStatus = self.keyholder(Ask::Read)?.get("/v1/status").await?;
        Ok(status.ledger_serial.unwrap_or_default())
    }

    /// Lifts what was latched when the backup was made, and waits until each of the node's volumes is open or refused.
    pub(super) async fn push(&mut self, node: &NodeEntry, output: Output) -> Done<Vec<Opened>> {
        let _: Outcome = self.keyholder(Ask::Decide)?.post("/v1/unlatch", &Target::All).await?;
        // An officer of the drill's own: an operator of the ledger's may be of the same name as the drill's.
        let client = self.keyholder(Ask::Decide)?;
        let _: Outcome = client.post("/v1/push", &Target::All).await?;
        let status: KeyholderStatus = client.get("/v1/status").await?;
        let wait = Duration::from_millis(status.grants_wait_ms.unwrap_or_default());
        if !wait.is_zero() {
            let wait_ms = status.grants_wait_ms.unwrap_or_default();
            output.note(&format!(
                "Waiting {}: a keyholder without its lease records grants nothing sooner.",
                duration_ms(wait_ms)
            ));
        }
        let deadline = Instant::now() + wait + OPEN_TIMEOUT;
        let mut refused_since = None;
        loop {
            let mut volumes: Vec<VolumeEntry> = client.get("/v1/volumes").await?;
            volumes.retain(|volume| volume.node == node.name);
            let count = |key| volumes.iter().filter(|volume| volume.key == key).count();
            let (open, refused) = (count(KeyState::Unlocked), count(KeyState::Refused));
            // What is refused for a passing reason is granted again soon.
            refused_since = match refused_since {
                Some(since) if open + refused == volumes.len() => Some(since),
                _ => (open + refused == volumes.len()).then(Instant::now),
            };
            let is_settled = refused_since.is_some_and(|since| since.elapsed() >= REFUSED_FOR_GOOD);
            if open == volumes.len() || is_settled || Instant::now() >= deadline {
                return Ok(volumes.into_iter().map(Opened::from).collect());
            }
            if let Some(running) = &mut self.processes.node {
                running.check()?;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl From<VolumeEntry> for Opened {
    fn from(volume: VolumeEntry) -> Self {
        let failure = (volume.key != KeyState::Unlocked)
            .then(|| volume.reason.clone().unwrap_or_else(|| "the key did not arrive".to_owned()));
        Self { volume, failure }
    }
}
