//! The server: listeners that are handed in, connections, a watch over each, and a drain.
//!
//! Invariants:
//! - It opens no socket, reads no file and starts no runtime: the program that composes it does.
//! - There are never more connections than the limit; one more is closed at once.
//! - After a drain has begun no request is begun; when it ends no connection is left.

use std::collections::BTreeMap;
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
use tokio_rustls::rustls::{ProtocolVersion, ServerConnection};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{Peer, Tls};
use crate::access_log;
use crate::activity::{Activity, State};
use crate::lifecycle;
use crate::limits::*;
use crate::metrics::Metrics;
use crate::notifications::delivery::{self, Progress, Webhook, WebhookState};
use crate::policy::Rules;
use crate::rates::{Callers, Rates, Throttle, UnknownOperation};
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
    region: String,
    service: Service,
    metrics: Arc<Metrics>,
    webhooks: BTreeMap<String, Progress>,
    callers: Callers,
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

/// What a server is made with.
#[derive(Clone, Debug, Default)]
pub struct S3Options {
    /// The region that clients must name.
    pub region: String,
    /// Whether signatures of version 2 are taken: for old clients.
    pub signature_v2: bool,
    /// Domains under which buckets are host names too: `bucket.domain`.
    pub domains: Vec<String>,
    /// Most requests a second.
    pub rates: Rates,
    /// Most connections from one address, or from one network of 64 bits of IPv6; 0 is no limit but the one for all.
    pub connections_per_address: usize,
    /// Names of the webhooks that notifications can go to; each is kept by [`S3Server::keep_webhook`].
    pub webhooks: Vec<String>,
}

/// Why a server can't be made.
#[derive(Debug, thiserror::Error)]
pub enum InvalidOptions {
    /// A name is not one of a domain, or part of another that is served.
    #[error("`{domains}` can't be served as virtual hosts: use host names of which none ends with another")]
    Domains {
        /// Those that were given.
        domains: String,
    },
    /// A rate of something that is not done.
    #[error(transparent)]
    Rates(#[from] UnknownOperation),
}

impl S3Server {
    /// A sealed server for `region`, with buckets in paths only and without limits on rates.
    ///
    /// # Panics
    /// Never: there is nothing to be wrong.
    pub fn new(region: impl Into<String>) -> Self {
        let options = S3Options { region: region.into(), ..S3Options::default() };
        Self::with_options(options).expect("options that say nothing")
    }

    /// A sealed server.
    ///
    /// # Errors
    /// [`InvalidOptions`].
    pub fn with_options(options: S3Options) -> Result<Self, InvalidOptions> {
        let S3Options { region, signature_v2, domains, rates, connections_per_address, webhooks } = options;
        let rules = Rules { region: region.clone(), signature_v2 };
        let invalid = |_| InvalidOptions::Domains { domains: domains.join(", ") };
        let hosts = (!domains.is_empty()).then(|| MultiDomain::new(&domains).map_err(invalid)).transpose()?;
        let slot = Arc::new(Slot::new());
        let metrics = Arc::new(Metrics::new());
        let throttle = Throttle::new(&rates)?;
        let progress = webhooks.iter().map(|name| (name.clone(), Progress::default())).collect();
        let webhooks = webhooks.into();
        let service = Service::new(Arc::clone(&slot), rules, hosts, webhooks, throttle, Arc::clone(&metrics));
        Ok(Self {
            inner: Arc::new(Inner {
                slot,
                region,
                service,
                metrics,
                webhooks: progress,
                callers: Callers::new(connections_per_address),
                connection_slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
                connections: TaskTracker::new(),
                present: Mutex::new(TaskTracker::new()),
                draining: CancellationToken::new(),
                abort: CancellationToken::new(),
            }),
        })
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
        if let Some(store) = &store {
            store.keep_events_for(self.inner.webhooks.keys().cloned());
        }
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

    /// Delivers notifications to a webhook until a drain begins; one of [`S3Options::webhooks`].
    pub async fn keep_webhook(&self, webhook: Webhook) {
        let inner = &self.inner;
        let Some(progress) = inner.webhooks.get(&webhook.name) else { return };
        let present = || inner.present.lock().unwrap_or_else(PoisonError::into_inner).token();
        let to = (inner.region.as_str(), &*inner.metrics);
        tokio::select! {
            () = inner.draining.cancelled() => (),
            () = delivery::keep(&inner.slot, (&webhook, progress), to, present) => (),
        }
    }

    /// How it goes with each webhook, by name.
    pub fn webhooks(&self) -> BTreeMap<String, WebhookState> {
        self.inner.webhooks.iter().map(|(name, progress)| (name.clone(), progress.state())).collect()
    }

    /// Delivers access logs until a drain begins, every `interval` at the latest.
    pub async fn keep_access_logs(&self, interval: Duration) {
        let inner = &self.inner;
        tokio::select! {
            () = inner.draining.cancelled() => (),
            () = access_log::keep(&inner.slot, &inner.region, interval, &inner.metrics) => (),
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
        let mut cut = 0;
        if tokio::time::timeout(limit, inner.connections.wait()).await.is_err() {
            cut = inner.connections.len();
            inner.abort.cancel();
            inner.connections.wait().await;
        }
        if let Ok(serving) = inner.slot.serving() {
            let last = access_log::deliver(&serving, &inner.region, &inner.metrics);
            // What does not fit is lost, as the log may be; the keys are about to go.
            let _ = tokio::time::timeout(LOG_LAST_DELIVERY_TIMEOUT, last).await;
        }
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
        let Some(caller) = self.inner.callers.admit(address) else {
            metrics.connections_refused.inc();
            tracing::debug!(%address, "connection refused: its address has as many as it may have");
            return;
        };
        let inner = Arc::clone(&self.inner);
        self.inner.connections.spawn(async move {
            let (_slot, _caller) = (slot, caller);
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
    let Some(acceptor) = tls else {
        return serve_connection(inner, stream, Peer { address, tls: None }).await;
    };
    // The session's secrets are made here, and would stay on the stack for whatever is kept next.
    let handshake = thread_wipe::leaving_nothing(acceptor.accept(stream));
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => {
            let peer = Peer { address, tls: Some(negotiated(stream.get_ref().1)) };
            serve_connection(inner, stream, peer).await;
        }
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

/// What access logs say of it.
fn negotiated(tls: &ServerConnection) -> Tls {
    let suite = tls.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
    let version = match tls.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "-",
    };
    let suite = suite.map(|suite| suite.trim_start_matches("TLS13_").trim_start_matches("TLS_"));
    Tls { version, cipher: suite.unwrap_or("-") }
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
            // Boxed: the protocol code sets a place aside for it for as long as the connection lasts, and an idle one has none.
            Box::pin(async move { Ok::<_, Infallible>(inner.service.answer(request, &activity, peer).await) })
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
