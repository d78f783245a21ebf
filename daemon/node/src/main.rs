//! `nightlatchd`: the storage node.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use config::NodeConfig;
use node::Passed;

/// Freed memory is zeroed: what clients sent and received does not stay behind in the heap.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

/// The Nightlatch storage node: serves encrypted volumes and objects while a keyholder lends it their keys.
///
/// It starts sealed, and waits on its key port for a keyholder to dial in. SIGTERM drains clients, wipes the keys and
/// ends; SIGPWR wipes at once and keeps running, sealed.
#[derive(Debug, Parser)]
#[command(
    name = "nightlatchd",
    version,
    after_help = "Example:\n  nightlatchd --config /etc/nightlatch/node.toml\n\nExit status: 0 after a clean stop, 1 when it could not start or run, 2 for a wrong command line.\nLog level: RUST_LOG=debug"
)]
struct Arguments {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration, say what is wrong with it, and end
    #[arg(long)]
    check_config: bool,
    /// Write the log as JSON lines
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log(arguments.log_json);
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let filter = match s3_server::LOG_DIRECTIVE.parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    if json {
        log.json().init();
    } else {
        log.init();
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = NodeConfig::load(&arguments.config)?;
    if arguments.check_config {
        return Ok(());
    }
    // Before there is a second thread.
    let passed = Passed::from_environment();
    harden()?;
    let node = node::prepare(config, passed)?;
    // Whatever the network brings is met without the rights that the start took.
    node.confine()?;
    let runtime = node::runtime().context("the runtime could not be started")?;
    let result = runtime.block_on(node.run());
    // A thread that waits for a dead device must not hold up the end: every key is gone by now.
    runtime.shutdown_background();
    result
}

/// Before any thread or key exists: no core file, no reading by other programs of the same user, no signal handler but
/// those for faults.
fn harden() -> anyhow::Result<()> {
    sandbox::before_threads(std::env::vars_os().map(|(name, _)| name))?;
    node::block_signals().context("signals could not be blocked")
}
