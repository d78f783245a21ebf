//! Making and starting the parts of an installation: authority, profile, keyholder, node.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use config::{ControlTls, KeyholderConfig, KeyholderListen};
use identity::pki::{Authority, LEAF_DAYS_DEFAULT};
use identity::{ClientError, Endpoint, HttpsClient, NodeKey, PeerName, PrivateFile, Role};
use keyholder::api::KeyholderStatus;
use tokio::time::Instant;

use crate::commands::{PlannedNode, make_private_dir, to_toml};
use crate::failure::{Done, Failure};
use crate::loopback::at;
use crate::loopback::ports::Ports;
use crate::loopback::processes::{KEYHOLDER_PROGRAM, NODE_PROGRAM, POLL, Processes, START_TIMEOUT};
use crate::profile::{Profile, ProfileIdentity, ProfileNode};

/// The people who have a certificate.
const PEOPLE: [(Role, &str); 4] = [
    (Role::Operator, "operator"),
    (Role::SecurityOfficer, "officer"),
    (Role::Auditor, "auditor"),
    (Role::Monitor, "monitor"),
];

/// A keyholder before its files exist.
pub(crate) struct PlannedKeyholder<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) name: &'a str,
    pub(crate) authority: &'a Authority,
    pub(crate) admin: SocketAddr,
    pub(crate) lease_ms: u64,
}

/// A name in a certificate.
pub(crate) fn name(text: &str) -> Done<PeerName> {
    Ok(text.parse().map_err(identity::IdentityError::Name)?)
}

/// Writes a file in one step, in place of the last run's.
pub(crate) fn replace(path: &Path, text: &str) -> Done {
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    PrivateFile::create(&new, text.as_bytes())?;
    fs::rename(&new, path).map_err(|error| Failure::file("rename", &new, &error))
}

/// An authority in `dir` with a certificate for everyone. Made beside its place, so that there is never half of one.
pub(crate) fn make_authority(dir: &Path, domain: &str, keyholder: &str, node: &str) -> Done<Authority> {
    let new = dir.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(|error| Failure::file("remove", &new, &error))?;
    }
    let trust_domain = domain.parse().map_err(identity::IdentityError::Name)?;
    let authority = Authority::create(&new, &trust_domain)?;
    let machines = [(Role::Keyholder, keyholder), (Role::Node, node), (Role::NbdClient, "demo")];
    for (role, holder) in PEOPLE.into_iter().chain(machines) {
        authority.issue(role, &name(holder)?, LEAF_DAYS_DEFAULT)?;
    }
    issue_server(&authority, node)?;
    fs::rename(&new, dir).map_err(|error| Failure::file("rename", &new, &error))?;
    Ok(Authority::open(dir)?)
}

/// Certificates for one more node.
pub(crate) fn issue_node(authority: &Authority, node: &str) -> Done {
    authority.issue(Role::Node, &name(node)?, LEAF_DAYS_DEFAULT)?;
    issue_server(authority, node)
}

fn issue_server(authority: &Authority, node: &str) -> Done {
    let hosts = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    authority.issue_server(&name(node)?, &hosts, LEAF_DAYS_DEFAULT)?;
    Ok(())
}

/// Writes the profile that people's commands use.
pub(crate) fn write_profile(path: &Path, authority: &Authority, ports: &Ports, node: &str) -> Done {
    let trust = authority.trust_files();
    let mut identities = Vec::new();
    for (role, holder) in PEOPLE {
        let files = authority.leaf_files(role, &name(holder)?);
        identities.push(ProfileIdentity { role, cert: files.cert, key: files.key });
    }
    let profile = Profile {
        trust_domain: trust.trust_domain,
        people_issuer: trust.people,
        machines_issuer: trust.machines,
        clients_issuer: trust.clients,
        keyholder: Some(Endpoint::from(at(ports.keyholder))),
        identities,
        nodes: vec![ProfileNode { name: node.to_owned(), admin: Endpoint::from(at(ports.admin)) }],
        file: PathBuf::new(),
    };
    replace(path, &profile.to_text()?)
}

/// Starts a keyholder and waits until it answers `client`.
pub(crate) async fn start_keyholder(
    processes: &mut Processes,
    planned: &PlannedKeyholder<'_>,
    client: &HttpsClient,
) -> Done {
    let trust = planned.authority.trust_files();
    let files = planned.authority.leaf_files(Role::Keyholder, &name(planned.name)?);
    make_private_dir(planned.dir)?;
    let config = KeyholderConfig {
        name: name(planned.name)?,
        state_dir: planned.dir.join("state"),
        lease_ms: planned.lease_ms,
        lease_ms_max: planned.lease_ms,
        allow_mlock: false,
        dial_loopback_only: true,
        etcd: None,
        listen: KeyholderListen { admin: planned.admin },
        tls: ControlTls {
            trust_domain: trust.trust_domain,
            cert: files.cert,
            key: files.key,
            people_issuer: trust.people,
            machines_issuer: trust.machines,
            clients_issuer: trust.clients,
        },
        oidc: None,
        webhooks: Vec::new(),
    };
    let path = planned.dir.join("keyholder.toml");
    replace(&path, &to_toml(&config)?)?;
    let mut running = processes.start(KEYHOLDER_PROGRAM, &path)?;
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        running.check()?;
        let answer: Result<KeyholderStatus, ClientError> = client.get("/v1/status").await;
        match answer {
            Ok(_) => break,
            Err(ClientError::Unreachable { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(POLL).await;
            }
            Err(error) => return Err(Failure::from(error).during("waiting for the keyholder")),
        }
    }
    processes.keyholder = Some(running);
    Ok(())
}

/// The key that a keyholder signs grants with.
pub(crate) async fn grant_signing_key(keyholder: &HttpsClient) -> Done<String> {
    let status: KeyholderStatus = keyholder.get("/v1/status").await?;
    status
        .grant_signing_key
        .ok_or_else(|| Failure::local("the keyholder shows no grant-signing key", "look at its log"))
}

/// Starts a node that takes grants signed by `pin`, and waits until its ports are bound.
pub(crate) async fn start_node(processes: &mut Processes, planned: &PlannedNode<'_>, pin: &str) -> Done {
    let config = planned.config();
    make_private_dir(&config.state_dir)?;
    if !config.identity_key_file().exists() {
        NodeKey::create(&config.identity_key_file())?;
    }
    // The heads may be wanted with or without TLS from one run to the next.
    replace(&planned.config_file(), &to_toml(&config)?)?;
    replace(&config.keyholder_key_file(), &format!("{pin}\n"))?;
    let ready = config.ready_file();
    let _ = fs::remove_file(&ready);
    let mut running = processes.start(NODE_PROGRAM, &planned.config_file())?;
    let deadline = Instant::now() + START_TIMEOUT;
    while !ready.exists() {
        running.check()?;
        if Instant::now() >= deadline {
            return Err(Failure::local("the node does not come up", "look at its log"));
        }
        tokio::time::sleep(POLL).await;
    }
    processes.node = Some(running);
    Ok(())
}
