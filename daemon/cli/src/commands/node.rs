//! `nightlatch node`: preparing, enrolling, looking at and wiping storage nodes.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use admin::api::{NodeStatus, Wiped};
use config::{
    HealthConfig, NodeConfig, NodeKeys, NodeListen, NodeTls, PoolConfig, RekeyConfig, ReplicationConfig,
    S3Config, ScrubConfig, ServerCertificate, SourcesConfig, TpmConfig, memory_overwrite_default,
};
use identity::pki::{Authority, Issued};
use identity::{NodeKey, PeerName, Role, TlsFloor};
use keyholder::api::{
    AddNode, ApproveNode, ChangeNode, Compromised, Connection, Done as Removed, NodeEntry, PushPolicy,
    TpmState,
};
use lease::KeyFingerprint;
use units::{ByteLen, NodeId};

use crate::args::{LightArg, NodeAdd, NodeChange, NodeCommand, NodeInit, PushArg};
use crate::commands::schedule::troubles;
use crate::commands::{hardware, keys_out, wait};
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, duration_ms, moment, table};

/// Default ports, as in the example configuration.
const KEY_PORT: u16 = 7410;
const ADMIN_PORT: u16 = 7411;
const METRICS_PORT: u16 = 7412;
const NBD_PORT: u16 = 10809;
const S3_PORT: u16 = 7480;

pub(crate) fn run(
    command: &NodeCommand,
    connections: impl FnOnce() -> Done<Connections>,
    output: Output,
) -> Done {
    match command {
        NodeCommand::Init(init) => initialise(init, output),
        NodeCommand::Add(add) => enrol(add, &connections()?, output),
        NodeCommand::List => list(&connections()?, output),
        NodeCommand::Approve { name, fingerprint, tpm } => {
            approve(name, fingerprint, tpm.as_deref(), &connections()?, output)
        }
        NodeCommand::Change(change) => change_node(change, &connections()?, output),
        NodeCommand::Revoke { name, compromised, yes } => {
            revoke(name, *compromised, *yes, &connections()?, output)
        }
        NodeCommand::Remove { name, yes } => remove(name, *yes, &connections()?, output),
        NodeCommand::Status { name } => status(name.as_ref(), &connections()?, output),
        NodeCommand::Inventory { name } => hardware::inventory(name.as_ref(), &connections()?, output),
        NodeCommand::Locate { disk, light, node } => {
            let on = matches!(light, LightArg::On);
            hardware::locate(disk, on, node.node.as_deref(), &connections()?, output)
        }
        NodeCommand::Wipe { name } => wipe(name.as_ref(), &connections()?, output),
    }
}

/// What a node is to be like, before its files exist.
#[derive(Debug)]
pub(crate) struct PlannedNode<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) name: &'a PeerName,
    pub(crate) id: NodeId,
    pub(crate) authority: &'a Authority,
    pub(crate) pools: &'a [PathBuf],
    pub(crate) listen: NodeListen,
    pub(crate) drain_s: u64,
    /// The machine's TPM.
    pub(crate) tpm: Option<PathBuf>,
}

/// Where a node's files are.
#[derive(Debug)]
pub(crate) struct NodeFiles {
    pub(crate) config: PathBuf,
    pub(crate) parsed: NodeConfig,
}

impl PlannedNode<'_> {
    /// The configuration of the node.
    pub(crate) fn config(&self) -> NodeConfig {
        let trust = self.authority.trust_files();
        let machine = self.authority.leaf_files(Role::Node, self.name);
        let heads = self.authority.server_files(self.name);
        let server = |pair: Issued| ServerCertificate { cert: pair.cert, key: pair.key };
        NodeConfig {
            node_id: self.id,
            name: self.name.clone(),
            state_dir: self.dir.join("state"),
            lease_ms_max: 300_000,
            drain_s: self.drain_s,
            allow_mlock: false,
            listen: self.listen.clone(),
            tls: NodeTls {
                trust_domain: trust.trust_domain,
                cert: machine.cert,
                key: machine.key,
                people_issuer: trust.people,
                machines_issuer: trust.machines,
                clients_issuer: trust.clients,
                nbd_min: TlsFloor::default(),
                s3_min: TlsFloor::Tls13,
                server: vec![server(heads.ecdsa), server(heads.rsa)],
            },
            keys: NodeKeys::default(),
            pools: self.pools.iter().map(|path| PoolConfig { path: path.clone() }).collect(),
            sources: SourcesConfig::default(),
            watchdog: None,
            health: HealthConfig::default(),
            scrub: ScrubConfig::default(),
            rekey: RekeyConfig::default(),
            s3: S3Config::default(),
            tpm: self.tpm.clone().map(TpmConfig::with_device),
            peers: Vec::new(),
            replication: ReplicationConfig::default(),
            memory_overwrite: memory_overwrite_default(),
        }
    }

    /// Where the configuration goes.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.join("node.toml")
    }

    /// Makes state directory, identity key and configuration; nothing is replaced.
    pub(crate) fn create(&self) -> Done<(NodeFiles, NodeKey)> {
        let path = self.config_file();
        let config = self.config();
        if path.exists() {
            return Err(identity::IdentityError::Exists { path }.into());
        }
        make_private_dir(&config.state_dir)?;
        let key = NodeKey::create(&config.identity_key_file())?;
        identity::PrivateFile::create(&path, to_toml(&config)?.as_bytes())?;
        // What was written is what the node will read.
        let parsed = NodeConfig::load(&path)?;
        Ok((NodeFiles { config: path, parsed }, key))
    }
}

/// A configuration's text.
pub(crate) fn to_toml(config: &impl serde::Serialize) -> Done<String> {
    toml::to_string(config)
        .map_err(|error| Failure::local(format!("the configuration cannot be written: {error}"), ""))
}

/// Makes a directory that only its owner may enter.
pub(crate) fn make_private_dir(dir: &Path) -> Done {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Failure::file("make", dir, &error))
}

/// Makes random identifiers.
pub(crate) fn random_id() -> Done<[u8; 16]> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| {
        Failure::local(format!("the system's random source failed: {error}"), "check this machine")
    })?;
    Ok(id)
}

fn listen_on(address: IpAddr) -> NodeListen {
    let at = |port| SocketAddr::new(address, port);
    NodeListen {
        peers: None,
        key: at(KEY_PORT),
        admin: at(ADMIN_PORT),
        metrics: SocketAddr::from(([127, 0, 0, 1], METRICS_PORT)),
        nbd: Some(at(NBD_PORT)),
        nbd_unix: None,
        s3: Some(at(S3_PORT)),
        s3_region: "us-east-1".to_owned(),
        nbd_plain: false,
        s3_plain: false,
        s3_day_s: 24 * 3600,
        s3_signature_v2: false,
    }
}

fn initialise(init: &NodeInit, output: Output) -> Done {
    let authority = Authority::open(&absolute(&init.pki)?)?;
    let dir = absolute(&init.dir)?;
    let pools = init.pools.iter().map(|path| absolute(path)).collect::<Done<Vec<_>>>()?;
    let planned = PlannedNode {
        dir: &dir,
        name: &init.name,
        id: NodeId(random_id()?),
        authority: &authority,
        pools: &pools,
        listen: listen_on(init.listen),
        drain_s: 10,
        tpm: init.tpm.clone(),
    };
    // Refused before anything is made: a node without certificates could not start.
    let config = planned.config();
    let missing = [&config.tls.cert, &config.tls.server[0].cert].into_iter().find(|path| !path.exists());
    if let Some(path) = missing {
        return Err(Failure::local(
            format!("there is no certificate {}", path.display()),
            format!(
                "issue it first: `nightlatch pki issue node {0} --pki {1}` and `nightlatch pki issue server {0} --host \
                 HOST --pki {1}`",
                init.name,
                init.pki.display()
            ),
        ));
    }
    if let Some(hex) = &init.keyholder_key {
        check_public_key(hex)?;
    }
    let (files, key) = planned.create()?;
    if let Some(hex) = &init.keyholder_key {
        let path = files.parsed.keyholder_key_file();
        fs::write(&path, format!("{hex}\n")).map_err(|error| Failure::file("write", &path, &error))?;
    }
    let public = hex::encode(key.public());
    let fingerprint = KeyFingerprint::of(&key.public()).to_string();
    let made = serde_json::json!({
        "config": files.config,
        "node": planned.id,
        "name": init.name,
        "identity_key": public,
        "fingerprint": fingerprint,
    });
    output.show(&made, || {
        let pin = match init.keyholder_key {
            Some(_) => String::new(),
            None => format!(
                "Write the grant-signing key that `nightlatch key status` shows to {}.\n",
                files.parsed.keyholder_key_file().display()
            ),
        };
        format!(
            "Made the node {name}: {config}\nIts identity key's fingerprint: {fingerprint}\n{pin}Start it:\n  nightlatchd --config {config}\nEnrol it, from where the \
             keyholder's profile is:\n  nightlatch node add {name} --id {id} --identity-key {public} --key-address \
             HOST:{KEY_PORT} --admin-address HOST:{ADMIN_PORT}",
            name = init.name,
            config = files.config.display(),
            id = planned.id
        )
    })
}

fn absolute(path: &Path) -> Done<PathBuf> {
    std::path::absolute(path).map_err(|error| Failure::file("find", path, &error))
}

fn check_public_key(hex_text: &str) -> Done {
    let mut key = [0; 32];
    hex::decode_to_slice(hex_text, &mut key).map_err(|_| {
        Failure::usage(format!("`{hex_text}` is not a public key"), "give 64 hexadecimal digits")
    })
}

fn enrol(add: &NodeAdd, connections: &Connections, output: Output) -> Done {
    if let Some(key) = &add.identity_key {
        check_public_key(key)?;
    }
    // Naming the key approves the node, and pushing without approval decides about every push: a security officer's to do.
    let ask = if add.identity_key.is_some() || add.auto_push { Ask::Decide } else { Ask::Either };
    let request = AddNode {
        name: add.name.to_string(),
        node: add.id,
        key_address: add.key_address.clone(),
        admin_address: add.admin_address.clone(),
        identity_key: add.identity_key.clone(),
        push: if add.auto_push { PushPolicy::Auto } else { PushPolicy::Approve },
        lease_ms: add.lease_ms,
    };
    let entry: NodeEntry = wait(connections.keyholder(ask)?.post("/v1/nodes", &request))??;
    output.show(&entry, || {
        if entry.approved {
            format!("Added {} and pinned its key.", entry.name)
        } else {
            format!(
                "Added {}. When it has been dialled, compare the fingerprint in `nightlatch node list` with the one \
                 on the node's console, then: nightlatch node approve {} --fingerprint FINGERPRINT",
                entry.name, entry.name
            )
        }
    })
}

fn list(connections: &Connections, output: Output) -> Done {
    let nodes: Vec<NodeEntry> = wait(connections.keyholder(Ask::Read)?.get("/v1/nodes"))??;
    output.show(&nodes, || node_table(&nodes))
}

/// The nodes as the keyholder sees them.
pub(crate) fn node_table(nodes: &[NodeEntry]) -> String {
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            let connection = match node.connection {
                Connection::Connected => "connected",
                Connection::Dialling => "dialling",
                Connection::Idle => "idle",
            };
            vec![
                node.name.clone(),
                connection.to_owned(),
                if node.approved { "approved" } else { "not approved" }.to_owned(),
                node.fingerprint.clone().unwrap_or_else(|| "-".to_owned()),
                node_remark(node),
            ]
        })
        .collect();
    table(
        &["NODE", "CONNECTION", "KEY", "FINGERPRINT", "REMARK"],
        &rows,
        "no nodes yet: add one with `nightlatch node add`",
    )
}

fn node_remark(node: &NodeEntry) -> String {
    if let Some(latch) = &node.latch {
        return format!("latched ({}): `nightlatch unlatch --node {}`", latch.cause, node.name);
    }
    if !node.approved && node.fingerprint.is_some() {
        return "compare the fingerprint, then `nightlatch node approve`".to_owned();
    }
    if let Some(problem) = node.tpm.as_ref().and_then(|tpm| tpm.problem.as_ref()) {
        return problem.clone();
    }
    if node.approved && node.tpm.as_ref().is_some_and(|tpm| tpm.state == TpmState::Claimed) {
        return "has a TPM that is not approved: `nightlatch node approve` again".to_owned();
    }
    if node.awaits_push {
        return format!("waits for a push: `nightlatch push --node {}`", node.name);
    }
    node.last_error.clone().unwrap_or_default()
}

fn approve(
    name: &PeerName,
    fingerprint: &str,
    tpm: Option<&str>,
    connections: &Connections,
    output: Output,
) -> Done {
    let request = ApproveNode { fingerprint: fingerprint.to_owned(), tpm: tpm.map(str::to_owned) };
    let keyholder = connections.keyholder(Ask::Decide)?;
    let entry: NodeEntry = wait(keyholder.post(&format!("/v1/nodes/{name}/approve"), &request))??;
    output.show(&entry, || {
        let tpm = entry.tpm.as_ref().and_then(|tpm| tpm.fingerprint.as_ref()).map(|tpm| {
            format!(
                "Pinned its TPM {tpm} and the state that its machine is in; the machine's console shows the same fingerprint.\n"
            )
        });
        let tpm = tpm.unwrap_or_default();
        format!("Pinned the key of {name}.\n{tpm}Give it its keys: nightlatch push --node {name}")
    })
}

fn change_node(change: &NodeChange, connections: &Connections, output: Output) -> Done {
    let NodeChange { name, what } = change;
    let push = what.push.map(|push| match push {
        PushArg::Approve => PushPolicy::Approve,
        PushArg::Auto => PushPolicy::Auto,
    });
    // Doing without a person's approval is a security officer's to allow.
    let ask = if push == Some(PushPolicy::Auto) { Ask::Decide } else { Ask::Either };
    let request = ChangeNode {
        key_address: what.key_address.clone(),
        admin_address: what.admin_address.clone(),
        push,
        lease_ms: what.lease_ms,
    };
    let entry: NodeEntry = wait(connections.keyholder(ask)?.patch(&format!("/v1/nodes/{name}"), &request))??;
    output.show(&entry, || {
        let pushed = match entry.push {
            PushPolicy::Approve => "when a person approves it",
            PushPolicy::Auto => "whenever it is there",
        };
        format!(
            "{name} is dialled at {} and administered at {}; keys are pushed {pushed}, for leases of {}.",
            entry.key_address,
            entry.admin_address,
            duration_ms(entry.lease_ms)
        )
    })
}

/// Takes a node's keys away. A compromised one loses its identity with them.
fn revoke(name: &PeerName, compromised: bool, yes: bool, connections: &Connections, output: Output) -> Done {
    if !compromised {
        let target = crate::args::TargetArgs { volume: None, node: Some(name.to_string()), all: false };
        return keys_out::revoke(&target, connections, output);
    }
    output.confirm(yes, &format!("Forbid the identity of {name} for good and take its keys away?"))?;
    let keyholder = connections.keyholder(Ask::Either)?;
    let path = format!("/v1/nodes/{name}/compromised");
    let marked: Compromised = wait(keyholder.post(&path, &serde_json::json!({})))??;
    output.show(&marked, || {
        let exposed = &marked.compromise.exposed;
        let rows: Vec<_> = exposed
            .iter()
            .map(|exposed| {
                let when = |unix_s: Option<u64>| unix_s.map(crate::output::moment).unwrap_or_default();
                let (first, last) = (when(exposed.first_unix_s), when(exposed.last_unix_s));
                vec![exposed.label.clone(), exposed.epoch.to_string(), first, last]
            })
            .collect();
        let told = marked.outcome.nodes.iter().map(|node| match &node.detail {
            None => format!("{} has confirmed that it holds nothing.\n", node.node),
            Some(detail) => format!("{}: {detail}\n", node.node),
        });
        let table = table(&["EXPOSED", "EPOCH", "FROM", "TO"], &rows, "it never held a key");
        format!(
            "{}{table}Its identity is forbidden; give the machine a new one before it is enrolled again.\n",
            told.collect::<String>()
        )
    })
}

fn remove(name: &PeerName, yes: bool, connections: &Connections, output: Output) -> Done {
    output.confirm(yes, &format!("Remove the node {name} and its pinned key from the keyholder?"))?;
    let keyholder = connections.keyholder(Ask::Either)?;
    let _: Removed = wait(keyholder.delete(&format!("/v1/nodes/{name}")))??;
    output.show(&serde_json::json!({ "removed": name }), || format!("Removed {name}."))
}

fn status(name: Option<&PeerName>, connections: &Connections, output: Output) -> Done {
    let node = wait(connections.node(name.map(PeerName::as_str), Ask::Read))??;
    let status: NodeStatus = wait(node.get("/v1/status"))??;
    output.show(&status, || describe(&status))
}

/// A node's own account of itself.
pub(crate) fn describe(status: &NodeStatus) -> String {
    let seal = &status.seal;
    let mut text = if seal.sealed {
        format!(
            "Node {} is SEALED ({}) since {}\n",
            status.name,
            seal.cause.as_deref().unwrap_or("cause unknown"),
            moment(seal.since_unix_s)
        )
    } else {
        format!(
            "Node {} is unsealed since {}; its lease has {} left\n",
            status.name,
            moment(seal.since_unix_s),
            seal.lease_remaining_ms.map_or_else(|| "no time".to_owned(), duration_ms)
        )
    };
    text.push_str(&format!(
        "  version {}, {} by {} at {} MiB/s a core, keys in {} memory ({} of {} held)\n",
        status.version,
        status.cipher.algorithm,
        status.cipher.kernel,
        status.cipher.mib_per_second,
        status.key_memory.memory,
        status.key_memory.keys,
        status.key_memory.key_slots
    ));
    if status.key_memory.memory == "mlock" {
        text.push_str("  warning: mlocked memory is readable by root, and a kill does not wipe it\n");
    }
    if let Some(wipe) = &status.last_wipe {
        let stage = |what: &str, nanos: Option<u64>| match nanos {
            Some(nanos) => format!(", {what} clear after {} µs", nanos / 1000),
            None => format!(", {what} NOT clear"),
        };
        text.push_str(&format!(
            "  last wipe: {}, {} keys gone in {} µs{}{} (stage {} of 3)\n",
            wipe.cause,
            wipe.keys,
            wipe.wipe_ns / 1000,
            stage("threads", wipe.threads_ns),
            stage("memory", wipe.memory_ns),
            wipe.stage
        ));
    }
    text.push_str(&source_lines(status));
    text.push_str(&pool_lines(status));
    text.push_str(&volume_lines(status));
    status.schedules.iter().for_each(|schedule| text.push_str(&troubles(schedule)));
    text.push_str(&hardware::finding_lines(&status.findings, "  "));
    for worker in status.workers.iter().filter(|worker| worker.stalled) {
        text.push_str(&format!(
            "  STALLED {}: it has given no sign of life for long; look at the node's log and its disks\n",
            worker.name
        ));
    }
    for finding in status.hygiene.iter().filter(|finding| finding.verdict == "broken") {
        text.push_str(&format!("  BROKEN {}: {}. {}\n", finding.probe, finding.found, finding.advice));
    }
    let count = |verdict| status.hygiene.iter().filter(|finding| finding.verdict == verdict).count();
    let (weak, unknown) = (count("weak"), count("unknown"));
    if weak + unknown > 0 {
        let explained = "`nightlatch doctor` on the node explains";
        text.push_str(&format!("  hygiene: {weak} could be better, {unknown} cannot be told; {explained}\n"));
    }
    text
}

fn source_lines(status: &NodeStatus) -> String {
    let line = |source: &admin::api::SourceStatus| {
        let state = match &source.trouble {
            Some(trouble) => format!("NOT HEARD: {trouble}"),
            None if source.active.is_empty() => "quiet".to_owned(),
            None => source.active.join(", ").to_uppercase(),
        };
        let recorded = if source.recorded { " (recorded events, not the machine's)" } else { "" };
        let refused = match source.refused {
            0 => String::new(),
            refused => format!("; refused {refused} messages that were not what they claimed to be"),
        };
        format!("  source {} [{}]{recorded}: {state}{refused}\n", source.name, source.kind)
    };
    status.sources.iter().map(line).collect()
}

fn pool_lines(status: &NodeStatus) -> String {
    let line = |pool: &admin::api::PoolStatus| {
        let failed = if pool.failed { "  FAILED: check the device, then restart the node" } else { "" };
        let damaged = match pool.damaged_sectors {
            0 => String::new(),
            1 => "  DAMAGED: a sector was read that is not what was written; the node's log names it"
                .to_owned(),
            many => format!(
                "  DAMAGED: {many} reads found sectors that are not what was written; the node's log names them"
            ),
        };
        let unverified = if pool.keeps_records { "" } else { ", sectors without records" };
        format!(
            "  pool {} on {}: {} of {} in use{unverified}{damaged}{failed}\n",
            pool.pool,
            pool.path,
            ByteLen(pool.used_bytes),
            ByteLen(pool.capacity_bytes)
        )
    };
    status.pools.iter().map(line).collect()
}

fn volume_lines(status: &NodeStatus) -> String {
    let line = |volume: &admin::api::VolumeStatus| {
        let due = match volume.encrypted_blocks {
            blocks if blocks < pool::ENCRYPTED_BLOCKS_DUE => "",
            _ if volume.replica => "; its key is nearly used up",
            _ => {
                "; ITS KEY IS NEARLY USED UP: `nightlatch volume rotate`, if the keyholder does not by itself"
            }
        };
        let rekey = match &volume.rekey {
            Some(rekey) if rekey.trouble.is_some() => "; sealing it anew DOES NOT GO ON",
            Some(rekey) if rekey.bytes_left > 0 => "; it is being sealed anew",
            _ => "",
        };
        format!(
            "  volume {} ({}, {}): {}{rekey}{due}\n",
            volume.volume,
            volume.kind,
            ByteLen(volume.size_bytes),
            match &volume.label {
                Some(label) => format!("served as {label}"),
                None if volume.replica => "a replica".to_owned(),
                None => "sealed".to_owned(),
            }
        )
    };
    status.volumes.iter().map(line).collect()
}

fn wipe(name: Option<&PeerName>, connections: &Connections, output: Output) -> Done {
    let node = wait(connections.node(name.map(PeerName::as_str), Ask::Either))??;
    let wiped: Wiped = wait(node.post("/v1/wipe", &serde_json::json!({})))??;
    output.show(&wiped, || {
        format!(
            "{} keys gone in {} µs. They come back when a security officer has unlatched the node: `nightlatch unlatch \
             --node NAME`, then `nightlatch push --node NAME`.",
            wiped.keys,
            wiped.wipe_ns / 1000
        )
    })
}
