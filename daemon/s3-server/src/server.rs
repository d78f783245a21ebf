//! The server: listeners that are handed in, connections, a watch over each, and a drain.
//!
//! Invariants:
//! - It opens no socket, reads no file and starts no runtime: the program that composes it does.
//! - There are never more connections than the limit; one more is closed at once.
//! - After a drain has begun no request is begun; when it ends no connection is left.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use nix::sys::socket::{setsockopt, sockopt};
use objects::Store;
use prometheus_client::registry::Registry;
use s3s::host::MultiDomain;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Peer;
use crate::activity::{Activity, State};
use crate::lifecycle;
use crate::limits::*;
use crate::metrics::Metrics;
use crate::policy::Rules;
use crate::service::Service;
use crate::slot::Slot;

/// Pause after an accept that failed: out of file descriptors, most likely, which passes when clients leave.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A peer that vanished without a word is noticed after `IDLE + COUNT × INTERVAL` seconds of silence.
const KEEPALIVE_IDLE_SECONDS: u32 = 60;
const KEEPALIVE_INTERVAL_SECONDS: u32 = 15;
const KEEPALIVE_COUNT: u32 = 4;

/// The S3 head. Cheap to clone: all clones are the same server.
#[derive(Clone, Debug)]
pub struct S3Server {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    slot: Arc<Slot>,
    service: Service,
    metrics: Arc<Metrics>,
    connection_slots: Arc<Semaphore>,
    connections: TaskTracker,
    /// The connections that may have something of the store that is served now.
    present: Mutex<TaskTracker>,
    draining: CancellationToken,
    abort: CancellationToken,
}

/// What a drain did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still busy at the deadline and were cut.
    pub cut: usize,
}

/// A name is not one of a domain, or part of another that is served.
#[derive(Debug, thiserror::Error)]
#[error("`{domains}` can't be served as virtual hosts: use host names of which none ends with another")]
pub struct InvalidDomains {
    domains: String,
}

impl S3Server {
    /// A sealed server for `region`, with buckets in paths only.
    pub fn new(region: impl Into<String>) -> Self {
        Self::build(Rules { region: region.into(), signature_v2: false }, None)
    }

    /// A sealed server as [`Self::new`] makes it, that also takes signatures of version 2 in headers: for old clients.
    pub fn with_signature_v2(region: impl Into<String>) -> Self {
        Self::build(Rules { region: region.into(), signature_v2: true }, None)
    }

    /// A sealed server that also takes `bucket.domain` for each of `domains`.
    ///
    /// # Errors
    /// [`InvalidDomains`].
    pub fn with_domains(region: impl Into<String>, domains: &[String]) -> Result<Self, InvalidDomains> {
        let hosts = MultiDomain::new(domains).map_err(|_| InvalidDomains { domains: domains.join(", ") })?;
        Ok(Self::build(Rules { region: region.into(), signature_v2: false }, Some(hosts)))
    }

    fn build(rules: Rules, domains: Option<MultiDomain>) -> Self {
        let slot = Arc::new(Slot::new());
        let metrics = Arc::new(Metrics::new());
        let service = Service::new(Arc::clone(&slot), rules, domains, Arc::clone(&metrics));
        Self {
            inner: Arc::new(Inner {
                slot,
                service,
                metrics,
                connection_slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
                connections: TaskTracker::new(),
                present: Mutex::new(TaskTracker::new()),
                draining: CancellationToken::new(),
                abort: CancellationToken::new(),
            }),
        }
    }

    /// Adds the server's metrics to `registry`, under `s3_`.
    pub fn register(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
    }

    /// Serves `store` from now on, or none: then every request is answered with 503 and Retry-After. What is in flight on
    /// the store before ends: requests with the same 503, bodies by the end of their connection.
    ///
    /// Returns at once. A store that is taken away is to be closed by the caller, on a thread that may wait
    /// ([`Store::close`]).
    pub fn set_store(&self, store: Option<Arc<Store>>) {
        self.inner.slot.set(store);
        self.inner.service.release_buffers();
    }

    /// The connections that are open now, to be waited for after the store was taken away: with the last of them everything
    /// is dropped that clients sent or were to be sent. To be called before [`Self::set_store`].
    pub fn leaving(&self) -> TaskTracker {
        let mut present = self.inner.present.lock().unwrap_or_else(PoisonError::into_inner);
        let leaving = std::mem::take(&mut *present);
        leaving.close();
        leaving
    }

    /// Carries out the lifecycles of buckets until a drain begins. `day` is how long a day takes: 24 hours, but for tests.
    pub async fn keep_lifecycles(&self, day: Duration) {
        tokio::select! {
            () = self.inner.draining.cancelled() => (),
            () = lifecycle::keep(&self.inner.slot, day) => (),
        }
    }

    /// Accepts clients from `listener` until a drain begins; with an acceptor, over TLS only.
    pub async fn serve(&self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.inner.draining.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted.and_then(|(stream, peer)| prepare(&stream).map(|()| (stream, peer))) {
                Ok((stream, peer)) => {
                    tracing::debug!(%peer, "connection accepted");
                    self.admit(stream, peer.ip(), tls.clone());
                }
                Err(error) => accept_failed(&error).await,
            }
        }
    }

    /// Ends service: no connection and no request is taken any more, what is in flight is finished and answered, and
    /// connections close. What is not finished after `limit` is cut. The server can't be used again.
    pub async fn drain(&self, limit: Duration) -> Drained {
        let inner = &self.inner;
        inner.draining.cancel();
        inner.connections.close();
        if tokio::time::timeout(limit, inner.connections.wait()).await.is_ok() {
            return Drained { cut: 0 };
        }
        let cut = inner.connections.len();
        inner.abort.cancel();
        inner.connections.wait().await;
        Drained { cut }
    }

    fn admit(&self, stream: TcpStream, address: IpAddr, tls: Option<TlsAcceptor>) {
        let metrics = &self.inner.metrics;
        metrics.connections_accepted.inc();
        let Ok(slot) = Arc::clone(&self.inner.connection_slots).try_acquire_owned() else {
            metrics.connections_refused.inc();
            tracing::info!(limit = CONNECTIONS_MAX, "connection refused: as many as are allowed are open");
            return;
        };
        let inner = Arc::clone(&self.inner);
        self.inner.connections.spawn(async move {
            let _slot = slot;
            inner.metrics.connections.inc();
            tokio::select! {
                biased;
                () = inner.abort.cancelled() => (),
                () = run(&inner, stream, address, tls) => (),
            }
            inner.metrics.connections.dec();
        });
    }
}

async fn run(inner: &Arc<Inner>, stream: TcpStream, address: IpAddr, tls: Option<TlsAcceptor>) {
    let peer = Peer { address, is_encrypted: tls.is_some() };
    let Some(acceptor) = tls else { return serve_connection(inner, stream, peer).await };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => serve_connection(inner, stream, peer).await,
        Ok(Err(error)) => {
            inner.metrics.handshakes_failed.inc();
            tracing::debug!(%error, "a TLS handshake failed");
        }
        Err(_) => {
            inner.metrics.handshakes_failed.inc();
            tracing::debug!("a TLS handshake took too long");
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(HEAD_FIELDS_MAX)
        .max_buf_size(CONNECTION_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(KEEPALIVE_INTERVAL_SECONDS.into()))
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_LIST_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(CHUNK_BYTES);
    builder
}

async fn serve_connection(
    inner: &Arc<Inner>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
) {
    // Dropped after the connection and everything it holds.
    let _present = inner.present.lock().unwrap_or_else(PoisonError::into_inner).token();
    let activity = Activity::new(inner.metrics.in_flight.clone());
    let service = {
        let (inner, activity) = (Arc::clone(inner), Arc::clone(&activity));
        service_fn(move |request| {
            let (inner, activity) = (Arc::clone(&inner), Arc::clone(&activity));
            async move { Ok::<_, Infallible>(inner.service.answer(request, &activity, peer).await) }
        })
    };
    let builder = builder();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut watch = pin!(watch_over(&activity, inner.slot.seals()));
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            () = inner.draining.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error = &*error, "a connection ended early");
                }
                return;
            }
            reason = watch.as_mut() => {
                tracing::debug!(reason, "a connection is closed");
                return;
            }
        }
    }
}

/// Returns, with the reason, when a connection is to be closed.
async fn watch_over(activity: &Activity, mut seals: watch::Receiver<u64>) -> &'static str {
    let mut ticks = tokio::time::interval(WATCH_INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => match activity.state() {
                State::Idle(since) if since > HEAD_TIMEOUT => return "idle",
                State::Sending(since) if since > RESPONSE_STALL_TIMEOUT => return "the client takes nothing",
                _ => {}
            },
            Ok(()) = seals.changed() => {
                // Answers that can still be given are given; then nothing of the store's may be left in memory.
                tokio::time::sleep(SEAL_GRACE).await;
                return "the node was sealed";
            }
        }
    }
}

/// Small answers leave at once, and a peer that lost power is noticed.
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
