//! `nightlatch-keyholder`: reads its configuration, serves its administrative port, dials its nodes, ends on SIGTERM.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use config::KeyholderConfig;
use identity::{ServeLimits, control_server, serve_https};
use keyholder::{Keyholder, KeyholderParams, access};
use locked_memory::Policy;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
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

fn start(args: &Args) -> Result<()> {
    harden().context("cannot protect this process's memory")?;
    let config = KeyholderConfig::load(&args.config)?;
    // Files and the vault block their threads, so more than one is needed whatever the machine has.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(4, |count| count.get().max(4)))
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(run(config))
}

/// No core file, no ptrace and no /proc/PID/mem by the same user, no file that others can read.
fn harden() -> Result<(), nix::Error> {
    umask(Mode::from_bits_truncate(0o077));
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    nix::sys::prctl::set_dumpable(false)
}

async fn run(config: KeyholderConfig) -> Result<()> {
    // First, so that a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;

    let credentials = config.tls.credentials()?;
    let trust = config.tls.trust()?;
    let tls = control_server(&credentials, &trust, access::ACCEPTED_ROLES)?;
    let trust_domain = trust.trust_domain().clone();
    let memory = if config.allow_mlock { Policy::AllowMlock } else { Policy::RequireMemfdSecret };
    let listener = TcpListener::bind(config.listen.admin).await.with_context(|| {
        format!(
            "cannot listen on {}; is another keyholder running, or the port taken? Choose another `listen.admin`",
            config.listen.admin
        )
    })?;
    let address = listener.local_addr().context("cannot read the bound address")?;
    let keyholder = Keyholder::open(KeyholderParams {
        name: config.name.to_string(),
        state_dir: config.state_dir,
        lease_ms: config.lease_ms,
        memory,
        credentials,
        trust,
        dial_loopback_only: config.dial_loopback_only,
    })?;
    let status = keyholder.status();
    tracing::info!(%address, name = status.name, state = ?status.state, memory = status.key_memory, "listening");
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);

    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    };
    serve_https(listener, tls, trust_domain, keyholder.router(), ServeLimits::default(), stop).await;
    keyholder.shut_down().await;
    tracing::info!("the root is forgotten; nodes keep their keys until their leases end");
    Ok(())
}
