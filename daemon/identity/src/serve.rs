//! Serving an axum router over TLS (control plane) or in clear (health and metrics), with a limit on everything a
//! peer can make the server hold: connections, handshake and header time, header and body size, request time.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode};
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thread_wipe::on_clean_stack;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::certificate::{GuestKey, PeerIdentity};
use crate::client::Problem;
use crate::handshakes::{HandshakePlace, Handshakes};
use crate::spiffe::TrustDomain;
use crate::tls::{ChannelBinding, handshake_advice};

/// What one listener lets its peers use up.
#[derive(Clone, Copy, Debug)]
pub struct ServeLimits {
    /// Connections at once. A control plane has a handful of peers. In clear, further ones wait in the kernel's queue; over TLS those
    /// count that have shown a certificate, and further ones wait for a place.
    pub connections_max: usize,
    /// A TLS handshake or a request's head may take this long; an idle connection is closed after it.
    pub head_timeout: Duration,
    /// A request may take this long from its head to its answer.
    pub request_timeout: Duration,
    /// Largest request body; the largest real one is a ledger restore of a few MiB.
    pub body_bytes_max: usize,
    /// At shutdown, requests under way get this long.
    pub drain_timeout: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections_max: 256,
            head_timeout: Duration::from_secs(15),
            request_timeout: Duration::from_secs(120),
            body_bytes_max: 64 << 20,
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// Largest request head: cookies and tokens play no part here, so URLs and a few headers are all there is.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// Most header lines in a request.
const HEADERS_MAX: usize = 64;

/// Handshakes at once: what strangers may keep open. For a later one the oldest is closed.
const HANDSHAKES_MAX: usize = 128;

/// How long to wait after `accept` failed for want of file descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves `router` over TLS until `shutdown` ends. Every request carries the peer's [`PeerIdentity`], the connection's
/// [`ChannelBinding`] and `ConnectInfo<SocketAddr>` as extensions; a guest's ([`crate::control_server_with_guests`]) has a [`GuestKey`]
/// instead of the first. `tls` must come from [`crate::control_server`] or that.
pub async fn serve_https(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    trust_domain: TrustDomain,
    router: Router,
    limits: ServeLimits,
    shutdown: impl Future<Output = ()> + Send,
) {
    serve(listener, Front::new(router, limits, Some((TlsAcceptor::from(tls), trust_domain))), shutdown).await;
}

/// Serves `router` in clear until `shutdown` ends: for health and metrics, which say nothing secret.
pub async fn serve_http(
    listener: TcpListener,
    router: Router,
    limits: ServeLimits,
    shutdown: impl Future<Output = ()> + Send,
) {
    serve(listener, Front::new(router, limits, None), shutdown).await;
}

/// Whose certificate it was.
enum Shown {
    Peer(PeerIdentity),
    Guest(GuestKey),
}

struct Front {
    router: Router,
    limits: ServeLimits,
    tls: Option<(TlsAcceptor, TrustDomain)>,
    permits: Arc<Semaphore>,
}

/// A connection may outlive a wipe of what other tasks of the same threads worked with: it takes nothing of that along.
async fn serve(listener: TcpListener, front: Arc<Front>, shutdown: impl Future<Output = ()> + Send) {
    let mut handshakes = Handshakes::new(HANDSHAKES_MAX);
    let draining = CancellationToken::new();
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_finished) = connections.join_next() => continue,
            accepted = front.accept(&listener) => accepted,
        };
        match accepted {
            Ok((stream, peer, Some(permit))) => {
                let (front, draining) = (front.clone(), draining.clone());
                connections.spawn(on_clean_stack(async move {
                    front.requests(stream, peer, None, draining).await;
                    drop(permit);
                }));
            }
            Ok((stream, peer, None)) => {
                let (front, draining, place) = (front.clone(), draining.clone(), handshakes.begin());
                let connection = async move { front.connection(stream, peer, place, draining).await };
                connections.spawn(on_clean_stack(connection));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; check the limit on open files");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    draining.cancel();
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(front.limits.drain_timeout, drained).await.is_err() {
        tracing::info!("requests still under way after the drain time are cut off");
        connections.shutdown().await;
    }
}

impl Front {
    fn new(router: Router, limits: ServeLimits, tls: Option<(TlsAcceptor, TrustDomain)>) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(limits.connections_max));
        Arc::new(Self { router, limits, tls, permits })
    }

    /// The next connection; in clear with its permit, because nothing tells one peer from another there.
    async fn accept(
        &self,
        listener: &TcpListener,
    ) -> io::Result<(TcpStream, SocketAddr, Option<OwnedSemaphorePermit>)> {
        let permit = match self.tls {
            None => Some(self.permits.clone().acquire_owned().await.map_err(io::Error::other)?),
            Some(_) => None,
        };
        let (stream, peer) = listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, peer, permit))
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        place: HandshakePlace,
        draining: CancellationToken,
    ) {
        let Some((acceptor, trust_domain)) = &self.tls else { return };
        // A connection still in its handshake has nothing to drain.
        let handshake = place.run(tokio::time::timeout(self.limits.head_timeout, acceptor.accept(stream)));
        let stream = match draining.run_until_cancelled(handshake).await {
            None => return,
            Some(None) => return tracing::debug!(%peer, "a handshake gave way to later ones"),
            Some(Some(Err(_))) => return tracing::debug!(%peer, "TLS handshake took too long"),
            Some(Some(Ok(Err(error)))) => return log_handshake_failure(peer, &error),
            Some(Some(Ok(Ok(stream)))) => stream,
        };
        let shown = match GuestKey::from_connection(stream.get_ref().1) {
            Some(guest) => Shown::Guest(guest),
            None => {
                match PeerIdentity::from_connection(stream.get_ref().1, trust_domain, &peer.to_string()) {
                    Ok(identity) => Shown::Peer(identity),
                    Err(error) => return tracing::warn!(%peer, %error, "connection refused"),
                }
            }
        };
        let binding = match ChannelBinding::of(stream.get_ref().1) {
            Ok(binding) => binding,
            Err(error) => return tracing::warn!(%peer, %error, "connection refused"),
        };
        let place = tokio::time::timeout(self.limits.head_timeout, self.permits.clone().acquire_owned());
        match draining.run_until_cancelled(place).await {
            Some(Ok(Ok(_permit))) => self.requests(stream, peer, Some((shown, binding)), draining).await,
            // The server ends.
            None => {}
            Some(_) => tracing::warn!(%peer, "too many connections; closed one"),
        }
    }

    async fn requests(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: SocketAddr,
        shown: Option<(Shown, ChannelBinding)>,
        draining: CancellationToken,
    ) {
        let service = service_fn(|request: Request<Incoming>| {
            let mut request = request.map(|body| Body::new(Limited::new(body, self.limits.body_bytes_max)));
            request.extensions_mut().insert(ConnectInfo(peer));
            if let Some((shown, binding)) = &shown {
                let extensions = request.extensions_mut();
                match shown {
                    Shown::Peer(identity) => drop(extensions.insert(identity.clone())),
                    Shown::Guest(guest) => drop(extensions.insert(*guest)),
                }
                extensions.insert(*binding);
            }
            answer(self.router.clone(), request, self.limits.request_timeout)
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_timeout)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = draining.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%peer, %error, "connection ended early");
        }
    }
}

async fn answer(
    router: Router,
    request: Request<Body>,
    request_timeout: Duration,
) -> Result<Response, Infallible> {
    match tokio::time::timeout(request_timeout, router.oneshot(request)).await {
        Ok(answer) => answer,
        Err(_) => {
            let problem = Problem::new(
                "timeout",
                format!("the request was not answered within {} s", request_timeout.as_secs()),
                "look at the state before trying again: the request may still take effect",
            );
            Ok((StatusCode::GATEWAY_TIMEOUT, axum::Json(problem)).into_response())
        }
    }
}

fn log_handshake_failure(peer: SocketAddr, error: &io::Error) {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls.map(|tls| (tls, handshake_advice(tls))) {
        Some((_, Some(advice))) => tracing::warn!(%peer, "connection refused: {advice}"),
        Some((tls, None)) => tracing::warn!(%peer, error = %tls, "connection refused"),
        // Port scans and health probes that only connect: not worth a warning.
        None => tracing::debug!(%peer, %error, "connection ended in its handshake"),
    }
}
