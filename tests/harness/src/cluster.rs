//! What several keyholders need: an etcd of three members over mutual TLS, and a keyholder beside the site's own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use config::{EtcdConfig, KeyholderConfig};
use identity::{ClientError, Endpoint, HttpsClient, PeerName, Role};
use keyholder::api::{KeyholderStatus, StoreStatus};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::client::{client, run};
use crate::process::{Process, program, wait_for};
use crate::site::{PATIENCE, Site, control_tls, free_port};

const MEMBERS: usize = 3;

/// Three members on this machine, each of which takes clients with a certificate of their issuer only. Ends with the value.
#[derive(Debug)]
pub struct Etcd {
    members: [Option<Process>; MEMBERS],
    ports: [(SocketAddr, SocketAddr); MEMBERS],
    dir: TempDir,
}

impl Etcd {
    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// Where etcd is missing or does not come up.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("nightlatch-etcd-").tempdir().expect("a directory");
        make_certificates(dir.path());
        let ports = [(); MEMBERS].map(|()| (free_port(), free_port()));
        let mut etcd = Self { members: [const { None }; MEMBERS], ports, dir };
        (0..MEMBERS).for_each(|member| etcd.start_member(member));
        etcd.wait_healthy();
        etcd
    }

    /// Starts a member that does not run.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn start_member(&mut self, member: usize) {
        let url = |scheme: &str, address: SocketAddr| format!("{scheme}://{address}");
        let (clients, peers) = self.ports[member];
        let all: Vec<_> = self
            .ports
            .iter()
            .enumerate()
            .map(|(at, ports)| format!("m{at}={}", url("http", ports.1)))
            .collect();
        let mut command = client("etcd");
        command.arg("--name").arg(format!("m{member}")).arg("--data-dir").arg(self.data_dir(member));
        for (option, value) in [
            ("--listen-client-urls", url("https", clients)),
            ("--advertise-client-urls", url("https", clients)),
            ("--listen-peer-urls", url("http", peers)),
            ("--initial-advertise-peer-urls", url("http", peers)),
            ("--initial-cluster", all.join(",")),
            ("--initial-cluster-token", "nightlatch-test".to_owned()),
            ("--initial-cluster-state", "new".to_owned()),
            ("--logger", "zap".to_owned()),
            ("--log-level", "error".to_owned()),
        ] {
            command.arg(option).arg(value);
        }
        command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(self.file("ca.pem"));
        command
            .arg("--cert-file")
            .arg(self.file("member.pem"))
            .arg("--key-file")
            .arg(self.file("member.key"));
        self.members[member] = Some(Process::start("etcd", command));
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data_dir(&self, member: usize) -> PathBuf {
        self.file(&format!("m{member}"))
    }

    /// A command line that asks all members.
    ///
    /// # Panics
    /// Where etcdctl is missing.
    pub fn control(&self) -> Command {
        let mut command = client("etcdctl");
        let endpoints: Vec<_> = self.endpoints().iter().map(ToString::to_string).collect();
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(endpoints.join(","));
        command.arg("--cacert").arg(self.file("ca.pem"));
        command.arg("--cert").arg(self.file("keyholder.pem")).arg("--key").arg(self.file("keyholder.key"));
        command
    }

    /// Waits until a quorum answers.
    ///
    /// # Panics
    /// Where that takes too long.
    pub fn wait_healthy(&self) {
        wait_for("a quorum of etcd", PATIENCE, || {
            let mut command = self.control();
            command.args(["get", "nothing"]);
            let answer = run(&mut command);
            if answer.success { Ok(()) } else { Err(answer.describe()) }
        });
    }

    /// Where the members are asked.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.ports.iter().map(|(clients, _)| Endpoint::from(*clients)).collect()
    }

    /// What a keyholder at `admin` is configured with.
    pub fn config(&self, admin: SocketAddr, record_ahead_ms: u64) -> EtcdConfig {
        EtcdConfig {
            endpoints: self.endpoints(),
            ca: self.file("ca.pem"),
            cert: self.file("keyholder.pem"),
            key: self.file("keyholder.key"),
            prefix: "/nightlatch/".to_owned(),
            advertise: Endpoint::from(admin),
            record_ahead_ms,
        }
    }

    /// Sends a member a signal.
    ///
    /// # Panics
    /// Where it does not run.
    pub fn signal(&self, member: usize, signal: Signal) {
        self.members[member].as_ref().expect("a running member").signal(signal);
    }

    /// Kills a member.
    pub fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].take() {
            process.kill();
        }
    }

    /// Kills all members, copies what they have on disk, and starts them again.
    ///
    /// # Panics
    /// Where that does not work.
    pub fn back_up(&mut self) -> TempDir {
        let backup = tempfile::tempdir().expect("a directory");
        (0..MEMBERS).for_each(|member| self.kill(member));
        for member in 0..MEMBERS {
            copy(&self.data_dir(member), backup.path());
        }
        (0..MEMBERS).for_each(|member| self.start_member(member));
        self.wait_healthy();
        backup
    }

    /// Kills all members, puts a backup in the place of what they have, and starts them again.
    ///
    /// # Panics
    /// Where that does not work.
    pub fn restore(&mut self, backup: &Path) {
        (0..MEMBERS).for_each(|member| self.kill(member));
        for member in 0..MEMBERS {
            std::fs::remove_dir_all(self.data_dir(member)).expect("a member's directory");
            copy(&backup.join(format!("m{member}")), self.dir.path());
        }
        (0..MEMBERS).for_each(|member| self.start_member(member));
        self.wait_healthy();
    }
}

fn copy(from: &Path, into: &Path) {
    let mut command = client("cp");
    command.arg("-a").arg(from).arg(into);
    let answer = run(&mut command);
    assert!(answer.success, "{}", answer.describe());
}

/// An issuer of its own, a certificate for the members and one for the keyholders. A member asks itself, so its own is a client's too.
fn make_certificates(dir: &Path) {
    let config = dir.join("openssl.cnf");
    std::fs::write(&config, "[req]\ndistinguished_name = name\n[name]\n").expect("a writable directory");
    let make = |name: &str, issuer: Option<&str>, extensions: &[&str]| {
        let mut command = client("openssl");
        command.args(["req", "-x509", "-nodes", "-days", "30", "-newkey", "ec", "-pkeyopt"]);
        command.arg("ec_paramgen_curve:P-256").arg("-config").arg(&config);
        command.arg("-subj").arg(format!("/CN={name}"));
        command.arg("-keyout").arg(dir.join(format!("{name}.key")));
        command.arg("-out").arg(dir.join(format!("{name}.pem")));
        if let Some(issuer) = issuer {
            command.arg("-CA").arg(dir.join(format!("{issuer}.pem")));
            command.arg("-CAkey").arg(dir.join(format!("{issuer}.key")));
        }
        for extension in extensions {
            command.arg("-addext").arg(extension);
        }
        let answer = run(&mut command);
        assert!(answer.success, "{}", answer.describe());
    };
    let leaf = "basicConstraints=critical,CA:FALSE";
    make("ca", None, &["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]);
    let usages = "extendedKeyUsage=serverAuth,clientAuth";
    make("member", Some("ca"), &[leaf, usages, "subjectAltName=IP:127.0.0.1,DNS:localhost"]);
    make("keyholder", Some("ca"), &[leaf, "extendedKeyUsage=clientAuth"]);
}

/// A keyholder beside the site's own, over the same store.
#[derive(Debug)]
pub struct OtherKeyholder {
    process: Option<Process>,
    config: KeyholderConfig,
    config_file: PathBuf,
}

impl OtherKeyholder {
    /// Makes its certificate and configuration and starts nothing.
    ///
    /// # Panics
    /// Where that does not work.
    pub fn installed(site: &Site, name: &str, etcd: &Etcd, record_ahead_ms: u64) -> Self {
        let peer: PeerName = name.parse().expect("a valid name");
        site.authority().issue(Role::Keyholder, &peer, 30).expect("a certificate");
        let own = site.keyholder_config();
        let admin = free_port();
        let config = KeyholderConfig {
            name: peer,
            state_dir: site.dir().join(name),
            listen: config::KeyholderListen { admin },
            tls: control_tls(site.authority(), Role::Keyholder, name),
            etcd: Some(etcd.config(admin, record_ahead_ms)),
            ..own.clone()
        };
        let config_file = site.dir().join(format!("{name}.toml"));
        std::fs::write(&config_file, toml::to_string(&config).expect("TOML")).expect("a writable directory");
        Self { process: None, config, config_file }
    }

    /// Starts it and waits until it answers and has heard of the store.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn start(&mut self, site: &Site) {
        self.start_unheard();
        wait_for("a started keyholder that sees the store", PATIENCE, || {
            assert!(self.process().try_wait().is_none(), "the keyholder ended\n{}", self.process().tail());
            sees_store(&self.try_status(site)).map_err(|state| format!("{state}\n{}", self.process().tail()))
        });
    }

    /// Starts it and waits for nothing.
    pub fn start_unheard(&mut self) {
        let mut command = Command::new(program("nightlatch-keyholder"));
        command.arg("--config").arg(&self.config_file);
        self.process = Some(Process::start(self.config.name.as_str(), command));
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.config.name.as_str()
    }

    /// A client of it under one of the site's certificates.
    pub fn client(&self, site: &Site, role: Role, holder: &str) -> HttpsClient {
        site.control(role, holder, self.config.listen.admin, Role::Keyholder)
    }

    /// Its status.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn try_status(&self, site: &Site) -> Result<KeyholderStatus, ClientError> {
        site.wait(self.client(site, Role::Operator, "op").get("/v1/status"))
    }

    /// Its status.
    ///
    /// # Panics
    /// Where it does not answer.
    pub fn status(&self, site: &Site) -> KeyholderStatus {
        self.try_status(site).expect("the keyholder's status")
    }

    /// The first officers submit their shares.
    ///
    /// # Panics
    /// Where they do not unseal it.
    pub fn unseal(&self, site: &Site) {
        site.unseal_by_shares(&self.client(site, Role::SecurityOfficer, "officer"));
    }

    /// The running program.
    ///
    /// # Panics
    /// Where there is none.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("a started keyholder")
    }

    /// Where it keeps its files.
    pub fn state_dir(&self) -> &Path {
        &self.config.state_dir
    }
}

/// Whether a keyholder has heard of the store that it is to share.
///
/// # Errors
/// What it says instead.
pub fn sees_store(status: &Result<KeyholderStatus, ClientError>) -> Result<(), String> {
    let status = status.as_ref().map_err(ToString::to_string)?;
    match status.cluster.as_ref().map(|cluster| &cluster.store) {
        Some(StoreStatus::Reachable) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
