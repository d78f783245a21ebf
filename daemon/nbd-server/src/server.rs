//! The server: a table of exports, listeners that are handed in, connections, and a drain.
//!
//! Invariants:
//! - It opens no socket, reads no file and starts no runtime or thread: the program that composes it does.
//! - There are never more connections than the limit; one more is closed, so that a client sees an end and not a wait.
//! - After a drain has begun no request is begun; when it ends no connection is left.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use units::VolumeId;

use crate::access::{Access, Doorkeeper, Nobody};
use crate::connection::{self, House};
use crate::exports::{Export, ExportStatus, Exports, InvalidLabel};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::transmission::{Shared, Socket};

/// Pause after an accept that failed: out of file descriptors, most likely, which passes when clients leave.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A peer that vanished without a word is noticed after `IDLE + COUNT × INTERVAL` seconds of silence …
const KEEPALIVE_IDLE_SECONDS: u32 = 60;
const KEEPALIVE_INTERVAL_SECONDS: u32 = 15;
const KEEPALIVE_COUNT: u32 = 4;

/// The NBD head. Cheap to clone: all clones are the same server.
#[derive(Clone, Debug)]
pub struct NbdServer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    exports: Exports,
    doorkeeper: Arc<dyn Doorkeeper>,
    shared: Shared,
    metrics: Metrics,
    connection_slots: Arc<Semaphore>,
    connections: TaskTracker,
    abort: CancellationToken,
}

/// What a drain did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still busy at the deadline and were cut.
    pub cut: usize,
}

impl NbdServer {
    /// A server without exports that knows no client by its certificate.
    pub fn new(limits: Limits) -> Self {
        Self::with_doorkeeper(limits, Arc::new(Nobody))
    }

    /// A server without exports, and who tells its clients apart.
    pub fn with_doorkeeper(limits: Limits, doorkeeper: Arc<dyn Doorkeeper>) -> Self {
        let draining = CancellationToken::new();
        let shared = Shared { draining: draining.clone(), limits };
        Self {
            inner: Arc::new(Inner {
                exports: Exports::new(draining, &limits),
                doorkeeper,
                shared,
                metrics: Metrics::new(),
                connection_slots: Arc::new(Semaphore::new(limits.connections_max.max(1))),
                connections: TaskTracker::new(),
                abort: CancellationToken::new(),
            }),
        }
    }

    /// Adds the server's metrics to `registry`, under `nbd_`.
    pub fn register(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
    }

    /// Serves `export` under `label` from now on. An export that was there before is sealed as by [`Self::seal`]:
    /// its connections end the way its policy says.
    pub fn insert(&self, label: &str, export: Export) -> Result<(), InvalidLabel> {
        self.inner.exports.insert(label, export, &self.inner.metrics)
    }

    /// Takes one export away because its key is gone. Its connections end as its policy says, and the label is
    /// refused with "shutting down" until it is inserted again or removed.
    pub fn seal(&self, label: &str) {
        self.inner.exports.seal(label);
    }

    /// [`Self::seal`] for every export: what the node calls after a wipe. Returns the connections of each, to be waited
    /// for: with the last of them everything is dropped that clients sent or were to be sent.
    pub fn seal_all(&self) -> Vec<TaskTracker> {
        self.inner.exports.seal_all()
    }

    /// [`Self::seal`] for every export whose key is gone, and for no other: right at any time, and when news of a wipe
    /// comes late, after the next push has already inserted an export anew.
    pub fn seal_gone(&self) {
        self.inner.exports.seal_gone();
    }

    /// Takes one export away for good, because its volume was deleted: as [`Self::seal`], and the label is unknown
    /// from now on.
    pub fn remove(&self, label: &str) {
        self.inner.exports.remove(label);
    }

    /// Changes who may use a volume and its snapshots, as far as they are served, from now on: connections that may no more
    /// end, as at a seal, and every request of the others sees whether changes are refused. Blocks until what had begun
    /// before is done.
    pub fn set_access(&self, volume: VolumeId, access: &Access) {
        self.inner.exports.set_access(volume, access);
    }

    /// Every label that is known, in order.
    pub fn exports(&self) -> Vec<ExportStatus> {
        self.inner.exports.status()
    }

    /// Accepts clients from `listener` until a drain begins. With an acceptor TLS is required: nothing is told in
    /// clear. Which client certificates are good is the acceptor's matter.
    pub async fn serve_tcp(&self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.inner.shared.draining.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted.and_then(|(stream, peer)| prepare(&stream).map(|()| (stream, peer))) {
                Ok((stream, peer)) => {
                    tracing::debug!(%peer, "connection accepted");
                    self.admit(Either::Left(stream), tls.clone());
                }
                Err(error) => accept_failed(&error).await,
            }
        }
    }

    /// Accepts clients from `listener` until a drain begins. Who may connect is the matter of the socket file's
    /// permissions, and of the acceptor where one is given.
    pub async fn serve_unix(&self, listener: UnixListener, tls: Option<TlsAcceptor>) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.inner.shared.draining.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => self.admit(Either::Right(stream), tls.clone()),
                Err(error) => accept_failed(&error).await,
            }
        }
    }

    /// Ends service: no connection and no request is taken any more, what is in flight is finished and answered, and
    /// connections close. What is not finished after `limit` is cut. The server can't be used again.
    pub async fn drain(&self, limit: Duration) -> Drained {
        let inner = &self.inner;
        inner.shared.draining.cancel();
        inner.connections.close();
        if tokio::time::timeout(limit, inner.connections.wait()).await.is_ok() {
            return Drained { cut: 0 };
        }
        let cut = inner.connections.len();
        inner.abort.cancel();
        inner.connections.wait().await;
        Drained { cut }
    }

    fn admit(&self, stream: Socket, tls: Option<TlsAcceptor>) {
        let metrics = &self.inner.metrics;
        metrics.connections_accepted.inc();
        let Ok(slot) = Arc::clone(&self.inner.connection_slots).try_acquire_owned() else {
            metrics.connections_refused.inc();
            tracing::info!(
                limit = self.inner.shared.limits.connections_max,
                "connection refused: as many as are allowed are open"
            );
            return;
        };
        let inner = Arc::clone(&self.inner);
        self.inner.connections.spawn(async move {
            let _slot = slot;
            let _counted = Counted::new(&inner.metrics);
            let house = House { exports: &inner.exports, doorkeeper: &*inner.doorkeeper };
            let connection = connection::run(stream, tls, house, &inner.shared, &inner.metrics);
            tokio::select! {
                biased;
                () = inner.abort.cancelled() => (),
                () = connection => (),
            }
        });
    }
}

/// One open connection in the gauge, until dropped.
struct Counted<'a>(&'a Metrics);

impl<'a> Counted<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.connections.inc();
        Self(metrics)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// Small replies leave at once, and a peer that lost power is noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)?;
    Ok(())
}

async fn accept_failed(error: &io::Error) {
    // A client that left between the handshake of TCP and the accept is nobody's problem.
    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::NotConnected) {
        return;
    }
    tracing::warn!(
        error = error as &dyn std::error::Error,
        "a connection could not be accepted; raise the open-files limit if this repeats"
    );
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
