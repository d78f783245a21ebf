//! From a configuration to a running node, and from a signal to a clean end.
//!
//! Order at start: what can be refused is refused before anything is served (certificates, memory, pools, ports); then
//! the rights that this took are given up; then threads start that listen.
//! Order at the end: clients finish (as long as `drain_s`), pools flush, keys are wiped, sessions send their receipts,
//! ports close.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use config::NodeConfig;
use device::{Device, FileDevice, OpenOptions};
use hygiene::{Live, Subject};
use identity::{NodeKey, Role, ServeLimits, TlsFloor, serve_http, serve_https};
use keyring::{Clock, Keyring};
use lease::LocalSigner;
use lease::message::{LeaseLimits, WipeCause};
use lease::node::{NodeLease, NodeParams};
use locked_memory::Policy;
use memory_overwrite::MemoryOverwrite;
use nbd_server::NbdServer;
use pool::{DamageHook, Pool};
use prometheus_client::registry::Registry;
use s3_server::{Rates, S3Options, S3Server, Webhook};
use sandbox::{Access, Enforcement, FileRules};
use sources::{Action, SourceState, Stop};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use units::BootId;

use crate::attestor::Attestor;
use crate::control::Handle;
use crate::damage::{Findings, findings};
use crate::exports::{self, ExportAccess, Porter, Refusals};
use crate::health_watch::HealthWatch;
use crate::heartbeat::{Heart, Heartbeats};
use crate::hygiene_watch::HygieneWatch;
use crate::listeners::{Listeners, Passed, Ready};
use crate::metrics::NodeMetrics;
use crate::node::{Node, OpenPool, Parts, volumes_present};
use crate::rekey::Rekeyer;
use crate::replication::{self, Replication};
use crate::retention::Retention;
use crate::schedule::Schedules;
use crate::scrub::Scrubber;
use crate::sources::{Feeder, Sources};
use crate::trail::NodeTrail;
use crate::wiper::{Event, Notice, Wipe, Wiper};
use crate::{attestor, boot_clock, key_port};

/// Receipts of the last wipe are one frame a session; they get this long to leave.
const RECEIPTS_TIMEOUT: Duration = Duration::from_secs(2);

/// The third stage of a wipe is over by then, or reported as not reached.
const MEMORY_CLEAR_TIMEOUT: Duration = Duration::from_secs(1);

/// A TPM extends a register within this.
const MEASUREMENT_TIMEOUT: Duration = Duration::from_secs(2);

/// What clients wrote and never flushed is made durable after this long, as an operating system's write-back would.
const WRITE_BACK_INTERVAL: Duration = Duration::from_secs(5);

/// What was not what it claimed to be is in the trail after this long.
const FORGERIES_INTERVAL: Duration = Duration::from_secs(1);

/// What little waits for its place in a pool at rest is put there after this long.
const TENDING_PATIENCE: Duration = Duration::from_secs(1);

/// A node that has everything it needs, and serves nobody yet.
#[derive(Debug)]
pub struct Prepared {
    config: NodeConfig,
    node: Arc<Node>,
    /// Speaks with the TPM once it runs.
    tpm: Option<attestor::Worker>,
    findings: Findings,
    events: mpsc::UnboundedReceiver<Event>,
    stop_sources: Arc<Stop>,
    /// Disarms the watchdog when the node ends in order, or could not begin.
    feeder: Option<Feeder>,
    listeners: Listeners,
    ready: Ready,
    heads: Heads,
    registry: Registry,
    metrics: NodeMetrics,
    refusals: Refusals,
    /// Each has its thread, and nobody sends anything yet.
    webhooks: Vec<Webhook>,
}

/// Takes everything that can be refused: memory for keys, pools, certificates, ports, those of which that the service manager
/// has bound from `passed`. Starts the wiper's thread and those of
/// the sources of triggers; each confines itself.
pub fn prepare(config: NodeConfig, passed: Passed) -> anyhow::Result<Prepared> {
    boot_clock::check().context("this kernel has no CLOCK_BOOTTIME; Nightlatch needs Linux 5.14 or later")?;
    prepare_state_dir(&config.state_dir)?;
    crate::wiper::allow_priorities();
    let (events_in, events) = mpsc::unbounded_channel();
    let keyring = open_keyring(&config)?;
    let last_act = Arc::clone(&keyring);
    faults::install(move || {
        let _ = last_act.wipe(WipeCause::Fault);
    })?;
    let live = Live::read();
    let subject = Subject::this_machine().with_installation(&config.installation());
    let hygiene_watch = HygieneWatch::new(&config.sources.hygiene.root, live);
    let Hearing { wiper, sources, stop: stop_sources } =
        start_hearing(&config, &keyring, &hygiene_watch, events_in)?;
    let heartbeats = Arc::new(Heartbeats::default());
    let (health_watch, health_reader) = HealthWatch::open(&config)?;
    health_reader
        .start(heartbeats.worker("health"))
        .context("the thread that reads the machine's parts could not be started")?;
    let (on_damage, findings) = findings();
    let pools = open_pools(&config, &on_damage)?;
    let heads = Heads::from_config(&config)?;
    let identity = open_identity(&config)?;
    let trail = NodeTrail::open(&config.state_dir, config.node_id, boot_id()?, Arc::clone(&identity) as _)
        .context("the node's audit trail cannot be opened")?;
    let lease = open_lease(&config, &pools, identity)?;
    let boot = boot_id()?;
    let (attestor, tpm) = config.tpm.as_ref().map(|tpm| Attestor::open(tpm, &config.state_dir, boot)).unzip();
    let listeners = Listeners::open(&config, passed)?;
    let ready = listeners.ready().context("the bound addresses could not be read")?;

    let watchdog = config.watchdog.as_ref().map(crate::sources::watchdog_monitor);
    let mut sources = sources;
    sources.extend(watchdog.iter().map(|monitor| Arc::clone(monitor.state())));

    let mut registry = Registry::default();
    let (porter, refusals) = Porter::new(config.tls.trust_domain.clone());
    let nbd = NbdServer::with_doorkeeper(nbd_server::Limits::default(), porter);
    let volumes = pools
        .iter()
        .flat_map(|open| open.pool.volumes())
        .filter(|volume| !volume.replica && volume.kind == pool::VolumeKind::Block);
    let volumes: Vec<_> = volumes.map(|volume| volume.id).collect();
    let exports =
        ExportAccess::open(&config.state_dir, &volumes).context("who may use which disk is not known")?;
    let s3 = open_s3(&config)?;
    let webhooks = crate::webhooks::open(&config.s3.webhooks)?;
    nbd.register(&mut registry);
    s3.register(&mut registry);
    let metrics = NodeMetrics::register(&mut registry, wiper.times());
    let parts = Parts {
        id: config.node_id,
        name: config.name.to_string(),
        boot,
        listening: ready.listening(&config),
        keyholder_key_file: config.keyholder_key_file(),
        keyring,
        wiper,
        sources,
        subject,
        hygiene_watch,
        health_watch,
        heartbeats,
        memory_overwrite: open_memory_overwrite(&config.memory_overwrite),
        lease,
        pools,
        nbd,
        exports,
        s3,
        trail,
        attestor,
        retention: Retention::open(&config.state_dir),
        schedules: Schedules::open(&config.state_dir).context("which snapshots are due is not known")?,
        replication: Replication::open(&config, &config.tls.credentials()?, &config.tls.trust()?)?,
    };
    let node = Node::new(parts);
    let armed = config.watchdog.as_ref().zip(watchdog);
    let feeder = armed
        .map(|(config, monitor)| crate::sources::start_watchdog(config, monitor, &node.wiper))
        .transpose()
        .context("the watchdog's thread could not be started")?;
    Ok(Prepared {
        config,
        node,
        tpm,
        findings,
        events,
        stop_sources,
        feeder,
        listeners,
        ready,
        heads,
        registry,
        metrics,
        refusals,
        webhooks,
    })
}

impl Prepared {
    /// Gives up, in this thread and those it starts, every right that serving does not need.
    pub fn confine(&self) -> anyhow::Result<()> {
        sandbox::drop_capabilities()?;
        let files = sandbox::restrict_files(&self.file_rules())?;
        if files != Enforcement::Full {
            tracing::warn!(
                enforcement = ?files,
                "this kernel has no Landlock, or an old one: what the node may open is bounded by the service manager alone"
            );
        }
        sandbox::restrict_calls(sandbox::Role::Node)?;
        Ok(())
    }

    /// The node's own files, and what the hygiene probes read.
    fn file_rules(&self) -> FileRules {
        let config = &self.config;
        let mut rules = FileRules::default()
            .allow(&config.state_dir, Access::Change)
            .allow("/proc", Access::Read)
            .allow("/sys", Access::Read);
        // The key may be written after the start, so its directory is what has to stay readable.
        rules = allow_parent(rules, &config.keyholder_key_file(), Access::Read);
        match &config.listen.nbd_unix {
            // The socket is removed at the end.
            Some(socket) => allow_parent(rules, socket, Access::Change),
            None => rules,
        }
    }

    /// Serves until the node is told to stop.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self { config, node, tpm, findings, events, stop_sources, feeder, .. } = self;
        let Self { listeners, ready, heads, registry, metrics, refusals, webhooks, .. } = self;
        let stop = CancellationToken::new();
        tpm.map_or(Ok(()), attestor::Worker::start).context("the TPM's thread could not be started")?;
        tokio::spawn(
            stop.clone().run_until_cancelled_owned(exports::keep_account(Arc::clone(&node), refusals)),
        );
        let servers = serve(&node, listeners, heads, &config, (registry, metrics), &stop)
            .context("the bound ports could not be handed to the runtime")?;
        for webhook in webhooks {
            let s3 = node.s3.clone();
            tokio::spawn(async move { s3.keep_webhook(webhook).await });
        }
        start_tending(&node).context("the thread that tends a pool could not be started")?;
        (0..node.pools.len())
            .try_for_each(|number| Scrubber::start(number, &node))
            .context("the thread that scrubs a pool could not be started")?;
        (0..node.pools.len())
            .try_for_each(|number| Rekeyer::start(number, &node))
            .context("the thread that seals a pool's volumes anew could not be started")?;
        Schedules::start(&node).context("the thread that takes snapshots could not be started")?;
        findings.start(&node).context("the thread that writes down damage could not be started")?;
        announce(&ready, &config)?;
        keep_running(&node, events, Duration::from_secs(config.drain_s)).await;
        tracing::info!("stopped");
        stop.cancel();
        stop_sources.stop();
        let _ = tokio::time::timeout(RECEIPTS_TIMEOUT, servers.join_all()).await;
        node.retention.keep_time();
        let _ = std::fs::remove_file(config.ready_file());
        drop(feeder);
        Ok(())
    }
}

fn allow_parent(rules: FileRules, file: &Path, access: Access) -> FileRules {
    match file.parent() {
        Some(dir) if dir.is_dir() => rules.allow(dir, access),
        _ => rules,
    }
}

/// The wiper, and what it hears.
struct Hearing {
    wiper: Arc<Wiper>,
    sources: Vec<Arc<SourceState>>,
    /// Ends the slow sources' threads.
    stop: Arc<Stop>,
}

/// Starts the wiper with the sources that it reads, and a thread for each that must be asked.
fn start_hearing(
    config: &NodeConfig,
    keyring: &Arc<Keyring>,
    hygiene_watch: &Arc<HygieneWatch>,
    events: mpsc::UnboundedSender<Event>,
) -> anyhow::Result<Hearing> {
    let opened = Sources::open(&config.sources, keyring, hygiene_watch);
    let sources = opened.states();
    let wiper = Wiper::start(Arc::clone(keyring), opened.fast, events)
        .context("the wiper's thread could not be started")?;
    let stop = Arc::new(Stop::default());
    crate::sources::start_slow(opened.slow, &wiper, &stop)
        .context("a source's thread could not be started")?;
    Ok(Hearing { wiper, sources, stop })
}

/// The firmware's request to clear memory, where there is one that this program may write.
fn open_memory_overwrite(path: &Path) -> Option<MemoryOverwrite> {
    match MemoryOverwrite::open(path) {
        Ok(variable) => Some(variable),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            let path = path.display();
            tracing::info!(%path, %error, "the firmware will not be asked to clear memory after a sudden reset");
            None
        }
    }
}

fn prepare_state_dir(dir: &Path) -> anyhow::Result<()> {
    const MODE: u32 = 0o700;
    if !dir.is_dir() {
        DirBuilder::new().recursive(true).mode(MODE).create(dir).with_context(|| {
            format!("cannot make the state directory {}; make it, or correct state_dir", dir.display())
        })?;
    }
    std::fs::set_permissions(dir, Permissions::from_mode(MODE)).with_context(|| {
        format!("{} is not this program's own; correct its owner, or state_dir", dir.display())
    })
}

fn open_s3(config: &NodeConfig) -> anyhow::Result<S3Server> {
    S3Server::with_options(S3Options {
        region: config.listen.s3_region.clone(),
        signature_v2: config.listen.s3_signature_v2,
        domains: config.s3.domains.clone(),
        rates: Rates {
            per_address: config.s3.requests_per_address,
            per_key: config.s3.requests_per_key,
            operations: config.s3.requests_per_operation.clone(),
        },
        connections_per_address: config.s3.connections_per_address,
        webhooks: config.s3.webhooks.iter().map(|webhook| webhook.name.clone()).collect(),
    })
    .context("the [s3] table of the configuration cannot be used")
}

fn open_keyring(config: &NodeConfig) -> anyhow::Result<Arc<Keyring>> {
    let policy = if config.allow_mlock { Policy::AllowMlock } else { Policy::RequireMemfdSecret };
    locked_memory::check_budget(keyring::LOCKED_BYTES).context("no memory for keys")?;
    let keyring =
        Keyring::new(policy, Clock::Boot, crate::cipher::chosen()?).context("no memory for keys")?;
    if !keyring.seal_stacks() {
        tracing::info!("this kernel cannot seal the mappings of the key stacks (mseal, Linux 6.10)");
    }
    Ok(keyring)
}

fn open_pools(config: &NodeConfig, on_damage: &DamageHook) -> anyhow::Result<Vec<OpenPool>> {
    config
        .pools
        .iter()
        .map(|pool| {
            let path = pool.path.display().to_string();
            let device: Arc<dyn Device> = Arc::new(
                FileDevice::open(&pool.path, OpenOptions::default())
                    .with_context(|| format!("pool {path} cannot be opened"))?,
            );
            let options =
                pool::OpenOptions { on_damage: Some(Arc::clone(on_damage)), ..pool::OpenOptions::default() };
            let pool = Pool::open_with(device, options).with_context(|| format!("pool {path} cannot be opened"))?;
            let info = pool.info();
            if let Some(repaired) = &info.repaired {
                let sector = repaired.sector;
                tracing::warn!(path, sector, fault = %repaired.fault, "one copy of the superblock was damaged and has been written again; check the device's health");
            }
            tracing::info!(path, pool = %info.id, volumes = info.volumes, capacity = %info.capacity, allocated = %info.allocated, direct = info.device.direct, "opened a pool");
            let scrubber = Arc::new(Scrubber::new(config.scrub, &config.state_dir, &pool));
            let rekeyer = Arc::new(Rekeyer::new(config.rekey));
            Ok(OpenPool { path, pool, scrubber, rekeyer })
        })
        .collect()
}

fn open_identity(config: &NodeConfig) -> anyhow::Result<Arc<LocalSigner>> {
    let identity = NodeKey::load(&config.identity_key_file())?;
    // What a security officer compares before approving the node.
    let fingerprint = lease::KeyFingerprint::of(&identity.public());
    tracing::info!(node = %config.node_id, name = %config.name, %fingerprint, "this node's identity key");
    Ok(Arc::new(LocalSigner::from_seed(identity.signing_key().as_bytes())))
}

fn open_lease(
    config: &NodeConfig,
    pools: &[OpenPool],
    identity: Arc<LocalSigner>,
) -> anyhow::Result<NodeLease> {
    let limits = LeaseLimits { max_ms: config.lease_ms_max, ..LeaseLimits::PROTOCOL };
    let mut lease = NodeLease::new(NodeParams {
        node: config.node_id,
        boot: boot_id()?,
        image: None,
        identity,
        limits,
        pin: None,
    });
    lease.set_volumes(volumes_present(pools))?;
    Ok(lease)
}

fn boot_id() -> anyhow::Result<BootId> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text =
        std::fs::read_to_string(PATH).with_context(|| format!("{PATH} cannot be read; mount /proc"))?;
    text.trim().replace('-', "").parse().with_context(|| format!("{PATH} holds no boot id"))
}

/// The TLS settings of every port.
struct Heads {
    key: Arc<rustls::ServerConfig>,
    peers: Arc<rustls::ServerConfig>,
    admin: Arc<rustls::ServerConfig>,
    nbd: Option<TlsAcceptor>,
    s3: Option<TlsAcceptor>,
}

impl std::fmt::Debug for Heads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heads").finish_non_exhaustive()
    }
}

impl Heads {
    fn from_config(config: &NodeConfig) -> anyhow::Result<Self> {
        let tls = &config.tls;
        let (credentials, trust, servers) = (tls.credentials()?, tls.trust()?, tls.server_credentials()?);
        let listen = &config.listen;
        let nbd = (listen.nbd.is_some() && !listen.nbd_plain)
            .then(|| identity::nbd_server(&servers, &trust, tls.nbd_min))
            .transpose()?;
        let floor: TlsFloor = tls.s3_min;
        let s3 = (listen.s3.is_some() && !listen.s3_plain)
            .then(|| identity::s3_server(&servers, floor, &identity::S3_ALPN))
            .transpose()?;
        Ok(Self {
            key: identity::control_server(&credentials, &trust, &[Role::Keyholder])?,
            peers: identity::control_server(&credentials, &trust, &[Role::Node])?,
            admin: identity::control_server(&credentials, &trust, admin::access::ACCEPTED_ROLES)?,
            nbd: nbd.map(TlsAcceptor::from),
            s3: s3.map(TlsAcceptor::from),
        })
    }
}

/// Starts a task for each port. NBD and S3 end by their drains, the others with `stop`.
fn serve(
    node: &Arc<Node>,
    listeners: Listeners,
    heads: Heads,
    config: &NodeConfig,
    (registry, metrics): (Registry, NodeMetrics),
    stop: &CancellationToken,
) -> std::io::Result<JoinSet<()>> {
    let mut servers = JoinSet::new();
    let control = Arc::new(Handle(Arc::clone(node)));
    let heart = |name| node.heartbeats.worker(name);
    servers.spawn(write_back(Arc::clone(node), heart("write-back"), stop.clone()));
    servers.spawn(note_forgeries(Arc::clone(node), heart("refusals"), stop.clone()));
    let stopped = |stop: &CancellationToken| stop.clone().cancelled_owned();
    servers.spawn(key_port::serve(
        Arc::clone(node),
        TcpListener::from_std(listeners.key)?,
        heads.key,
        stop.clone(),
    ));
    if let Some(listener) = listeners.peers.map(TcpListener::from_std).transpose()? {
        servers.spawn(replication::serve(Arc::clone(node), listener, heads.peers, stop.clone()));
    }
    for peer in node.replication.dialled() {
        servers.spawn(replication::keep_peer(Arc::clone(node), Arc::clone(peer), stop.clone()));
    }
    servers.spawn(replication::keep_epochs(Arc::clone(node), stop.clone()));
    servers.spawn(serve_https(
        TcpListener::from_std(listeners.admin)?,
        heads.admin,
        config.tls.trust_domain.clone(),
        admin::control_router(Arc::clone(&control)),
        ServeLimits::default(),
        stopped(stop),
    ));
    let measured = Arc::clone(node);
    let health = admin::health_router(control, registry, move || metrics.refresh(&measured));
    let health_port = TcpListener::from_std(listeners.metrics)?;
    servers.spawn(serve_http(health_port, health, ServeLimits::default(), stopped(stop)));
    if let Some(listener) = listeners.nbd.map(TcpListener::from_std).transpose()? {
        let nbd = node.nbd.clone();
        servers.spawn(async move { nbd.serve_tcp(listener, heads.nbd).await });
    }
    if let Some(listener) =
        listeners.nbd_unix.map(|(listener, _)| UnixListener::from_std(listener)).transpose()?
    {
        let nbd = node.nbd.clone();
        servers.spawn(async move { nbd.serve_unix(listener, None).await });
    }
    if let Some(listener) = listeners.s3.map(TcpListener::from_std).transpose()? {
        let (s3, lifecycles, logs) = (node.s3.clone(), node.s3.clone(), node.s3.clone());
        servers.spawn(async move { s3.serve(listener, heads.s3).await });
        let day = Duration::from_secs(config.listen.s3_day_s.max(1));
        servers.spawn(async move { lifecycles.keep_lifecycles(day).await });
        let interval = Duration::from_secs(config.s3.access_log_s);
        servers.spawn(async move { logs.keep_access_logs(interval).await });
    }
    Ok(servers)
}

/// Tells whoever waits (systemd, scripts) that the ports are bound.
fn announce(ready: &Ready, config: &NodeConfig) -> anyhow::Result<()> {
    let path = config.ready_file();
    ready.write(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    tracing::info!(node = %config.node_id, "ready: sealed, and waiting for a keyholder to dial in");
    Ok(())
}

/// Reacts to wipes and to the watchdog until told to stop; then drains and wipes.
async fn keep_running(node: &Arc<Node>, mut events: mpsc::UnboundedReceiver<Event>, drain: Duration) {
    let mut watchdog = watchdog_interval().map(tokio::time::interval);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::Wiped(wipe)) => after_wipe(node, wipe).await,
                Some(Event::Fired(notice)) => on_fired(node, &notice),
                Some(Event::Stop) | None => break,
            },
            () = tick(&mut watchdog) => {
                // A node whose wiper hangs is as good as dead: the service manager ends it.
                let wiper = Arc::clone(&node.wiper);
                if tokio::task::spawn_blocking(move || wiper.answers()).await.unwrap_or(false) {
                    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]);
                }
            }
        }
    }
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    tracing::info!(drain_s = drain.as_secs(), "stopping: clients finish, then the keys are wiped");
    tokio::select! {
        () = drain_heads(node, drain) => {}
        // Power loss, expiry or a revoke while draining: nothing is left to drain.
        () = wiped_meanwhile(node, &mut events) => {}
    }
    node.wiper.wipe(WipeCause::PlannedStop);
    // What a source said meanwhile may stand before it.
    wiped_meanwhile(node, &mut events).await;
}

/// A source has fired. Its wipe, where it asked for one, has happened, and its drain will end without our help.
fn on_fired(node: &Arc<Node>, notice: &Notice) {
    let Notice { source, condition, action, trouble } = notice;
    let condition = condition.name();
    match action {
        Action::Wipe => tracing::warn!(source, condition, trouble, "a source fired: wiped"),
        Action::Report => tracing::warn!(source, condition, trouble, "a source fired: reported only"),
        Action::Drain(limit) => {
            tracing::warn!(
                source,
                condition,
                trouble,
                drain_s = limit.as_secs(),
                "a source fired: wiping soon"
            );
            // What clients wrote and never flushed is safe before the keys go.
            let node = Arc::clone(node);
            tokio::spawn(async move { flush_pools(&node).await });
        }
    }
}

/// Carries a wipe through its third stage, and tells the sessions how far it came.
async fn after_wipe(node: &Arc<Node>, wipe: Wipe) {
    // Before anybody can begin a session in which the TPM says that there was none.
    let measured = node.attestor.as_ref().map(|attestor| attestor.measure(wipe.record));
    let leaving = node.seal(&wipe);
    let ended = leaving.ended.clone();
    let worker = Arc::clone(node);
    let clearing = tokio::spawn(async move {
        tokio::join!(worker.wiper.threads_clear(wipe.record.generation), leaving.gone());
        crate::threads::wipe_all(wipe.record.generation).await;
        worker.wiper.on_memory_clear(&wipe);
        let _ = tokio::task::spawn_blocking(move || worker.take_back_overwrite_request(&wipe)).await;
    });
    // It goes on where it takes longer: status tells when it is done.
    if tokio::time::timeout(MEMORY_CLEAR_TIMEOUT, clearing).await.is_err() {
        tracing::error!(
            "what clients had in memory is not all dropped a second after the wipe: a connection or a device holds it; the keys are gone"
        );
    }
    let node = Arc::clone(node);
    // The trail is a file.
    let _ = tokio::task::spawn_blocking(move || node.after_wipe(&wipe, &ended)).await;
    // A program that ends takes what it has not measured with it.
    if let Some(measured) = measured
        && tokio::time::timeout(MEASUREMENT_TIMEOUT, measured).await.is_err()
    {
        tracing::warn!("the TPM takes long over measuring the wipe; until it has, it attests nothing");
    }
}

async fn wiped_meanwhile(node: &Arc<Node>, events: &mut mpsc::UnboundedReceiver<Event>) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Wiped(wipe) => return after_wipe(node, wipe).await,
            Event::Fired(notice) => on_fired(node, &notice),
            Event::Stop => {}
        }
    }
}

async fn drain_heads(node: &Arc<Node>, drain: Duration) {
    let _ = tokio::join!(node.nbd.drain(drain), node.s3.drain(drain));
    flush_pools(node).await;
}

/// Flushes every pool. A failure is final for its pool, which logs it and says so to every client from then on.
async fn flush_pools(node: &Arc<Node>) {
    let node = Arc::clone(node);
    let flush = move || node.pools.iter().for_each(|open| drop(open.pool.flush()));
    let _ = tokio::task::spawn_blocking(flush).await;
}

/// Starts a thread for each pool that moves ciphertext from the log to its place, so that no client's flush has to.
fn start_tending(node: &Node) -> std::io::Result<()> {
    for (number, open) in node.pools.iter().enumerate() {
        let pool = Arc::downgrade(&open.pool);
        let heart = node.heartbeats.worker(format!("pool-{number}"));
        std::thread::Builder::new().name(format!("pool-{number}")).spawn(move || {
            while let Some(pool) = pool.upgrade() {
                heart.beat(TENDING_PATIENCE);
                if pool.tend(TENDING_PATIENCE).is_err() {
                    // The pool has said so and tells every client.
                    return;
                }
            }
        })?;
    }
    Ok(())
}

async fn write_back(node: Arc<Node>, heart: Heart, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(WRITE_BACK_INTERVAL)).await.is_some() {
        flush_pools(&node).await;
        heart.beat(WRITE_BACK_INTERVAL);
    }
}

/// Writes down what sources refused. They only count it: nothing of a source's thread waits for a disk.
async fn note_forgeries(node: Arc<Node>, heart: Heart, stop: CancellationToken) {
    let mut noted = vec![0; node.sources.len()];
    while stop.run_until_cancelled(tokio::time::sleep(FORGERIES_INTERVAL)).await.is_some() {
        heart.beat(FORGERIES_INTERVAL);
        for (source, noted) in node.sources.iter().zip(&mut noted) {
            let refused = source.refused();
            let more = refused - *noted;
            if more == 0 {
                continue;
            }
            *noted = refused;
            let (node, source) = (Arc::clone(&node), source.name().to_owned());
            let note = move || {
                let fields = [("source", source.into()), ("messages", more.into())];
                node.trail.note_refusal("source-refused", fields);
            };
            // A panic in there has ended the process.
            let _ = tokio::task::spawn_blocking(note).await;
        }
    }
}

fn watchdog_interval() -> Option<Duration> {
    let mut limit_us = 0;
    // Twice as often as asked, so that one late tick is none missed.
    sd_notify::watchdog_enabled(false, &mut limit_us).then(|| Duration::from_micros(limit_us / 2))
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
