//! Installations that live on this machine's loopback addresses for as long as this program runs.
//!
//! Invariants:
//! - The node and the keyholder end when this program ends, however it ends.
//! - Nobody else reaches them, and they reach nobody else.

pub(crate) mod install;
pub(crate) mod ports;
pub(crate) mod processes;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;

use tokio::signal::unix::{SignalKind, signal};

use crate::commands::random_id;
use crate::failure::{Done, Failure};

/// An address of this machine that nobody else reaches.
pub(crate) fn at(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A directory with a name that nobody could have foreseen.
pub(crate) fn temporary_dir() -> Done<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = std::env::temp_dir().join(format!("nightlatch-{}", hex::encode(&random_id()?[..6])));
    fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|error| Failure::file("make", &dir, &error))?;
    Ok(dir)
}

/// Resolves with SIGINT or SIGTERM.
pub(crate) type Stopped = Pin<Box<dyn Future<Output = ()>>>;

/// Runs `work` to its end. It gets a future that resolves when a signal asks this program to stop, and has to stop what
/// it started.
pub(crate) fn run(work: impl AsyncFnOnce(Stopped) -> Done) -> Done {
    // One thread, the main one: the children's parent-death signal is tied to the thread that starts them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local(format!("the runtime cannot be started: {error}"), ""))?;
    let result = runtime.block_on(async {
        // Before anything is started, so that no signal ends this program without its clean end.
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::local(format!("signals cannot be caught: {error}"), ""))
        };
        let (mut interrupt, mut terminate) =
            (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        work(Box::pin(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }))
        .await
    });
    runtime.shutdown_background();
    result
}
