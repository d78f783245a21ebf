//! `nightlatch-keyholder`: reads its configuration, serves its administrative port, dials its nodes, ends on SIGTERM.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use config::KeyholderConfig;
use identity::{
    ServeLimits, TrustDomain, control_server, control_server_with_guests, private_client, serve_https,
};
use keyholder::oidc::Provider;
use keyholder::webhooks::Webhook;
use keyholder::{Keyholder, KeyholderParams, SharedStoreParams, access};
use locked_memory::Policy;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use sandbox::{Access, Enforcement, FileRules};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use zeroizing_alloc::ZeroAlloc;

/// Shares pass through ordinary memory on their way from TLS to the arena; what is freed there is zeroed.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<std::alloc::System> = ZeroAlloc(std::alloc::System);

/// Holds the root secret on the compute tier and lends keys to storage nodes.
#[derive(Parser, Debug)]
#[command(name = "nightlatch-keyholder", version)]
struct Args {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/nightlatch/keyholder.toml")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_env("NIGHTLATCH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that can be refused, and that takes rights: then they are given up, then the threads start that the network
/// can reach.
fn start(args: &Args) -> Result<()> {
    umask(Mode::from_bits_truncate(0o077));
    sandbox::before_threads(std::env::vars_os().map(|(name, _)| name))
        .context("cannot protect this process's memory")?;
    // Read by a thread of their own, so that no handler ever runs; blocked here for every thread to come.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().context("signals could not be blocked")?;
    let config = KeyholderConfig::load(&args.config)?;
    let prepared = prepare(&config)?;
    let last_act = Arc::clone(&prepared.keyholder);
    faults::install(move || last_act.last_act())?;
    // The C library installs its own handlers with the first thread, which the filter would refuse.
    let _ = std::thread::spawn(|| {}).join();
    confine(&config)?;
    let stop = CancellationToken::new();
    let asked = stop.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        // Waiting fails for no set that the kernel has taken above.
        let _ = signals.wait();
        asked.cancel();
    })?;
    // Files and the vault block their threads, so more than one is needed whatever the machine has.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(4, |count| count.get().max(4)))
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(run(prepared, stop))
}

/// A keyholder that has everything it needs, and serves nobody yet.
struct Prepared {
    keyholder: Arc<Keyholder>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    trust_domain: TrustDomain,
}

fn prepare(config: &KeyholderConfig) -> Result<Prepared> {
    let credentials = config.tls.credentials()?;
    let trust = config.tls.trust()?;
    let accepted =
        if config.etcd.is_some() { access::ACCEPTED_AMONG_KEYHOLDERS } else { access::ACCEPTED_ROLES };
    // Where nobody can log in without a certificate, nobody without one gets past the handshake.
    let accept = if config.oidc.is_some() { control_server_with_guests } else { control_server };
    let tls = accept(&credentials, &trust, accepted)?;
    let trust_domain = trust.trust_domain().clone();
    let memory = if config.allow_mlock { Policy::AllowMlock } else { Policy::RequireMemfdSecret };
    let bound = TcpListener::bind(config.listen.admin).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    let listener = bound.with_context(|| {
        format!(
            "cannot listen on {}; is another keyholder running, or the port taken? Choose another `listen.admin`",
            config.listen.admin
        )
    })?;
    let shared_store = match &config.etcd {
        Some(etcd) => Some(SharedStoreParams {
            endpoints: etcd.endpoints.clone(),
            tls: private_client(&etcd.ca, Some(&etcd.credentials()?))?,
            prefix: etcd.prefix.clone(),
            address: etcd.advertise.clone(),
            record_ahead_ms: etcd.record_ahead_ms,
        }),
        None => None,
    };
    let webhooks = config.webhooks.iter().map(Webhook::load).collect::<Result<_, _>>()?;
    let keyholder = Keyholder::open(KeyholderParams {
        name: config.name.to_string(),
        state_dir: config.state_dir.clone(),
        lease_ms: config.lease_ms,
        lease_ms_max: config.lease_ms_max,
        memory,
        credentials,
        trust,
        dial_loopback_only: config.dial_loopback_only,
        shared_store,
        oidc: config.oidc.as_ref().map(Provider::load).transpose()?,
        webhooks,
    })?;
    Ok(Prepared { keyholder, listener, tls, trust_domain })
}

/// Gives up every right that serving does not need.
fn confine(config: &KeyholderConfig) -> Result<()> {
    sandbox::drop_capabilities()?;
    let files = FileRules::default()
        .allow(&config.state_dir, Access::Change)
        .allow("/proc", Access::Read)
        // Where names of nodes are looked up.
        .allow("/etc", Access::Read)
        .dial_anywhere();
    let files = sandbox::restrict_files(&files)?;
    if files != Enforcement::Full {
        tracing::warn!(
            enforcement = ?files,
            "this kernel has no Landlock, or an old one: what the keyholder may open is bounded by the service manager alone"
        );
    }
    sandbox::restrict_calls(sandbox::Role::Keyholder)?;
    Ok(())
}

async fn run(prepared: Prepared, stop: CancellationToken) -> Result<()> {
    let Prepared { keyholder, listener, tls, trust_domain } = prepared;
    let listener = tokio::net::TcpListener::from_std(listener).context("cannot serve the bound port")?;
    let address = listener.local_addr().context("cannot read the bound address")?;
    keyholder.start();
    keyholder.tell_webhooks();
    let status = keyholder.status();
    tracing::info!(%address, name = status.name, state = ?status.state, memory = status.key_memory, "listening");
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    let stopping = async {
        stop.cancelled().await;
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    };
    serve_https(listener, tls, trust_domain, keyholder.router(), ServeLimits::default(), stopping).await;
    keyholder.shut_down().await;
    tracing::info!("the root is forgotten; nodes keep their keys until their leases end");
    Ok(())
}
