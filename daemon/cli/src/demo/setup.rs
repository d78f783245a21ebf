//! Making the installation, step by step as an operator would, and bringing it up again later.
//!
//! Each step looks whether it is done already, so that an interrupted first run goes on where it stopped. What cannot be
//! made in one step (the authority) is made beside its place and renamed.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use admin::api::{Bucket, CreateBucket, CreateUser, CreatedAccessKey, NodeStatus};
use device::{Device, FileDevice, OpenOptions};
use identity::pki::Authority;
use identity::{ClientError, Endpoint, HttpsClient, NodeKey, PrivateFile};
use keyholder::api::{
    AddNode, CeremonyRequest, CeremonyResult, CreateVolume, KeyState, KeyholderStatus, NodeEntry, OnSeal,
    Outcome, PushPolicy, ResizeVolume, SealState, Target, UnsealProgress, UnsealRequest, VolumeEntry,
    VolumeKind,
};
use keyholder::shares::SealedShare;
use pool::{CreateOptions, Pool};
use serde::Deserialize;
use units::ByteLen;

use crate::commands::{OfficerKey, PlannedNode, make_private_dir, open_share};
use crate::connect::{Ask, Connections};
use crate::demo::disk;
use crate::demo::site::{BUCKET, KEYHOLDER, NODE, OBJECTS, Site, USER, VOLUME, VOLUME_SIZE_DEFAULT};
use crate::failure::{Done, Exit, Failure};
use crate::loopback::at;
use crate::loopback::install::{self, PlannedKeyholder, grant_signing_key, name, replace};
use crate::loopback::processes::{POLL, START_TIMEOUT};
use crate::output::Output;
use crate::profile::{PROFILE_FILE, Profile};

/// The officers, of whom any two unseal the keyholder.
const OFFICERS: [&str; 3] = ["anna", "ben", "clara"];
const THRESHOLD: u8 = 2;

/// The lease. Long enough for a laptop under load, short enough to watch it count.
const LEASE_MS: u64 = 30_000;

/// Room in the pool's file beside the volume: a few large objects. The file is sparse.
const OBJECT_ROOM: u64 = 32 << 30;

/// Logical size of the object store; thin.
const OBJECTS_BYTES: u64 = 64 << 40;

/// Brings the installation up: programs running, keyholder unsealed, node enrolled, volumes and user made.
pub(super) async fn run(site: &mut Site, output: Output) -> Done {
    let authority = make_authority(site, output)?;
    make_pool(site, output)?;
    let profile = site.path(PROFILE_FILE);
    install::write_profile(&profile, &authority, &site.ports, NODE)?;
    start_keyholder(site, &authority).await?;
    unseal_keyholder(site, output).await?;
    start_node(site, &authority).await?;
    enrol_node(site, output).await?;
    make_volumes(site, output).await?;
    make_user(site, output).await
}

/// Connections with the profile that `nightlatch --profile DIR` uses.
pub(super) fn connections(site: &Site) -> Done<Connections> {
    Ok(Connections::of(Profile::load(Some(&site.dir))?))
}

fn make_authority(site: &Site, output: Output) -> Done<Authority> {
    let dir = site.path("pki");
    if dir.exists() {
        return Ok(Authority::open(&dir)?);
    }
    output.note("Making a certificate authority, and a certificate for each role.");
    install::make_authority(&dir, "demo.nightlatch", KEYHOLDER, NODE)
}

fn make_pool(site: &Site, output: Output) -> Done {
    let done = site.path("pool.made");
    if done.exists() {
        return Ok(());
    }
    let volume = site.volume_size.unwrap_or(VOLUME_SIZE_DEFAULT);
    let len = ByteLen(volume.0.saturating_mul(2).saturating_add(OBJECT_ROOM));
    let create_len = (!site.device).then_some(len);
    output.note(&format!("Making a pool on {}.", site.pool.display()));
    if !site.device && site.pool.exists() {
        // Left by a first run that was interrupted here: the mark below is written only when the pool is whole.
        fs::remove_file(&site.pool).map_err(|error| Failure::file("remove", &site.pool, &error))?;
    }
    let options = OpenOptions { create_len, ..OpenOptions::default() };
    let device: Arc<dyn Device> = Arc::new(FileDevice::open(&site.pool, options)?);
    let create =
        CreateOptions { extent_len: disk::EXTENT, log_len: Some(disk::LOG), ..CreateOptions::default() };
    let pool = Pool::create(device, create)?;
    PrivateFile::create(&done, format!("{}\n", pool.info().id).as_bytes())?;
    Ok(())
}

async fn start_keyholder(site: &mut Site, authority: &Authority) -> Done {
    let planned = PlannedKeyholder {
        dir: &site.path("keyholder"),
        name: KEYHOLDER,
        authority,
        admin: at(site.ports.keyholder),
        lease_ms: LEASE_MS,
    };
    let client = connections(site)?.keyholder(Ask::Read)?;
    install::start_keyholder(&mut site.processes, &planned, &client).await
}

async fn unseal_keyholder(site: &Site, output: Output) -> Done {
    let client = connections(site)?.keyholder(Ask::Decide)?;
    let status: KeyholderStatus = client.get("/v1/status").await?;
    match status.state {
        SealState::Unsealed => Ok(()),
        SealState::Empty => {
            output.note(&format!(
                "Holding a ceremony: a new root secret in the keyholder's memory, shared among {}; any {THRESHOLD} unseal it.",
                OFFICERS.join(", ")
            ));
            hold_ceremony(site, &client).await
        }
        SealState::Sealed => {
            output.note(&format!(
                "Unsealing the keyholder with the shares of {} and {}.",
                OFFICERS[0], OFFICERS[1]
            ));
            submit_shares(site, &client).await
        }
    }
}

async fn hold_ceremony(site: &Site, client: &HttpsClient) -> Done {
    let dir = site.path("officers");
    make_private_dir(&dir)?;
    let mut officers = Vec::new();
    for officer in OFFICERS {
        let path = dir.join(format!("{officer}.officer-key"));
        let key = if path.exists() {
            OfficerKey::load(&path)?
        } else {
            let key = OfficerKey::generate(officer)?;
            key.create(&path)?;
            key
        };
        officers.push(key.public()?);
    }
    let request = CeremonyRequest { threshold: THRESHOLD, officers };
    let made: CeremonyResult = client.post("/v1/ceremony", &request).await?;
    for share in &made.shares {
        let text = serde_json::to_string_pretty(share)
            .map_err(|error| Failure::local(format!("a share cannot be written: {error}"), ""))?;
        replace(&dir.join(format!("{}.share", share.officer)), &text)?;
    }
    Ok(())
}

async fn submit_shares(site: &Site, client: &HttpsClient) -> Done {
    let dir = site.path("officers");
    for officer in OFFICERS {
        let key = OfficerKey::load(&dir.join(format!("{officer}.officer-key")))?;
        let path = dir.join(format!("{officer}.share"));
        let share: SealedShare = read_json(&path)?;
        let request = UnsealRequest { share: open_share(&share, &key)? };
        let progress: UnsealProgress = client.post("/v1/unseal", &request).await?;
        if progress.state == SealState::Unsealed {
            return Ok(());
        }
    }
    Err(Failure::local(
        "the officers' shares do not unseal the keyholder",
        "start in a new directory with --dir",
    ))
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Done<T> {
    let text = PrivateFile::read(path, "demonstration file")?;
    serde_json::from_slice(&text).map_err(|error| {
        Failure::local(
            format!("{} is damaged: {error}", path.display()),
            "start in a new directory with --dir",
        )
    })
}

async fn start_node(site: &mut Site, authority: &Authority) -> Done {
    let dir = site.path("node");
    let node = name(NODE)?;
    let pools = [site.pool.clone()];
    let planned = PlannedNode {
        dir: &dir,
        name: &node,
        id: site.node,
        authority,
        pools: &pools,
        listen: site.listen(),
        drain_s: 2,
        tpm: None,
    };
    let pin = grant_signing_key(&connections(site)?.keyholder(Ask::Read)?).await?;
    install::start_node(&mut site.processes, &planned, &pin).await
}

async fn enrol_node(site: &Site, output: Output) -> Done {
    let connections = connections(site)?;
    let nodes: Vec<NodeEntry> = connections.keyholder(Ask::Read)?.get("/v1/nodes").await?;
    if nodes.iter().any(|node| node.name == NODE) {
        return Ok(());
    }
    output.note("Enrolling the node: the keyholder pins its identity key.");
    let key = NodeKey::load(&site.path("node/state/identity.key"))?;
    let request = AddNode {
        name: NODE.to_owned(),
        node: site.node,
        key_address: Endpoint::from(at(site.ports.key)),
        admin_address: Endpoint::from(at(site.ports.admin)),
        identity_key: Some(hex::encode(key.public())),
        // As for every node without a TPM: a person approves each push, which here is a step of the story.
        push: PushPolicy::Approve,
        lease_ms: Some(LEASE_MS),
    };
    let _: NodeEntry = connections.keyholder(Ask::Decide)?.post("/v1/nodes", &request).await?;
    Ok(())
}

async fn make_volumes(site: &Site, output: Output) -> Done {
    let client = connections(site)?.keyholder(Ask::Operate)?;
    let volumes: Vec<VolumeEntry> = client.get("/v1/volumes").await?;
    let created = site.volume_size.unwrap_or(VOLUME_SIZE_DEFAULT).0;
    for (label, kind, size_bytes) in
        [(VOLUME, VolumeKind::Block, created), (OBJECTS, VolumeKind::Objects, OBJECTS_BYTES)]
    {
        if volumes.iter().any(|volume| volume.label == label) {
            continue;
        }
        output.note(&format!("Making {label} ({}): a key domain of its own.", ByteLen(size_bytes)));
        let request = CreateVolume {
            label: label.to_owned(),
            node: NODE.to_owned(),
            pool: None,
            kind,
            size_bytes,
            on_seal: OnSeal::Hold,
            integrity: keyholder::api::VolumeIntegrity::default(),
            limits: keyholder::api::VolumeLimits::default(),
        };
        let _: VolumeEntry = client.post("/v1/volumes", &request).await?;
    }
    let found = volumes.iter().find(|volume| volume.label == VOLUME);
    if let (Some(found), Some(asked)) = (found, site.volume_size) {
        resize_volume(found, asked, &client).await?;
    }
    Ok(())
}

/// Brings an existing volume to the size that was asked for. What it holds is never cut off.
async fn resize_volume(found: &VolumeEntry, asked: ByteLen, client: &HttpsClient) -> Done {
    if found.size_bytes > asked.0 {
        return Err(Failure::usage(
            format!(
                "the volume {VOLUME} has {} and would lose what lies past {asked}",
                ByteLen(found.size_bytes)
            ),
            "leave --volume-size out, or give another directory with --dir",
        ));
    }
    if found.size_bytes < asked.0 {
        let request = ResizeVolume { size_bytes: asked.0, allow_shrink: false };
        let _: VolumeEntry = client.patch(&format!("/v1/volumes/{VOLUME}"), &request).await?;
    }
    Ok(())
}

/// The volume's size as the keyholder has it.
pub(super) async fn volume_len(site: &Site) -> Done<ByteLen> {
    let volumes: Vec<VolumeEntry> = connections(site)?.keyholder(Ask::Read)?.get("/v1/volumes").await?;
    let found = volumes.iter().find(|volume| volume.label == VOLUME);
    Ok(found.map(|volume| ByteLen(volume.size_bytes)).unwrap_or_default())
}

/// Pushes the keys and waits until every volume is served; says how long that took.
///
/// Pushes only what lacks its key: an approval that nothing needs would stay, and stand for the next wipe's.
pub(super) async fn push(site: &mut Site) -> Done<Duration> {
    let client = connections(site)?.keyholder(Ask::Either)?;
    let started = Instant::now();
    let deadline = started + START_TIMEOUT;
    let mut approved = false;
    loop {
        let nodes: Vec<NodeEntry> = client.get("/v1/nodes").await?;
        let volumes: Vec<VolumeEntry> = client.get("/v1/volumes").await?;
        let unlocked = volumes.iter().all(|volume| volume.key == KeyState::Unlocked);
        if unlocked && node_status(site).await?.volumes.iter().all(|volume| volume.unsealed) {
            return Ok(started.elapsed());
        }
        // Not before the keyholder has reached the node, and once: each approval is for one push.
        if !approved && nodes.iter().any(|node| node.awaits_push) {
            let _: Outcome = client
                .post("/v1/push", &Target::All)
                .await
                .map_err(|error| Failure::from(error).during("pushing the keys"))?;
            approved = true;
        }
        if let Some(node) = &mut site.processes.node {
            node.check()?;
        }
        if Instant::now() >= deadline {
            return Err(not_pushed(&volumes));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn not_pushed(volumes: &[VolumeEntry]) -> Failure {
    let reasons: Vec<_> = volumes
        .iter()
        .filter(|volume| volume.key != KeyState::Unlocked)
        .map(|volume| format!("{}: {}", volume.label, volume.reason.as_deref().unwrap_or("no answer")))
        .collect();
    Failure::new(
        Exit::Sealed,
        "sealed",
        format!("the keys did not arrive ({})", reasons.join("; ")),
        "look at the logs of both programs",
    )
}

/// The node's own account of itself.
pub(super) async fn node_status(site: &Site) -> Done<NodeStatus> {
    Ok(connections(site)?.node(Some(NODE), Ask::Read).await?.get("/v1/status").await?)
}

/// Makes the bucket and the S3 user, once.
async fn make_user(site: &mut Site, output: Output) -> Done {
    let path = site.path("access-key.json");
    if path.exists() {
        return Ok(());
    }
    push(site).await?;
    output.note("Making a bucket, and a user with an access key.");
    let client = connections(site)?.node(Some(NODE), Ask::Operate).await?;
    let request = CreateBucket { name: BUCKET.to_owned() };
    let made: Result<Bucket, ClientError> = client.post("/v1/buckets", &request).await;
    match made {
        Ok(_) => {}
        // A first run that was interrupted here.
        Err(ClientError::Refused { problem, .. }) if problem.kind == "conflict" => {}
        Err(error) => return Err(error.into()),
    }
    let key: CreatedAccessKey = client.post("/v1/users", &CreateUser::new(USER)).await?;
    let text = serde_json::to_string_pretty(&key)
        .map_err(|error| Failure::local(format!("the access key cannot be written: {error}"), ""))?;
    replace(&path, &text)
}

/// The S3 user's access key.
pub(super) fn access_key(site: &Site) -> Done<CreatedAccessKey> {
    read_json(&site.path("access-key.json"))
}
