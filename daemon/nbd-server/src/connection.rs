//! One accepted connection from greeting to end: negotiation, TLS upgrade, transmission.
//!
//! Invariants:
//! - During the negotiation nothing is read ahead: bytes that a man in the middle puts behind `STARTTLS` in clear
//!   reach the TLS handshake, which they break, and never the option parser.
//! - From accept to the choice of export a client has a limited time, however many bytes it sends.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::access::{Doorkeeper, Peer};
use crate::exports::{Exports, LiveExport, Visit};
use crate::metrics::Metrics;
use crate::negotiation::{CloseReason, Features, Negotiation, Step, Tls};
use crate::transmission::{Closed, Shared, Socket, Stream, serve};

/// Why a connection never got an export.
#[derive(Debug, thiserror::Error)]
enum NotNegotiated {
    #[error("the negotiation ended")]
    Ended(#[from] CloseReason),
    #[error("the connection broke during the negotiation")]
    Broken(#[source] io::Error),
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error("the client did not choose an export in time")]
    TooSlow,
}

struct Negotiated {
    stream: Stream,
    export: Arc<LiveExport>,
    features: Features,
    peer: Peer,
}

/// What a client may ask for, and who says who it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct House<'a> {
    pub(crate) exports: &'a Exports,
    pub(crate) doorkeeper: &'a dyn Doorkeeper,
}

/// Serves one client until it or the export goes.
pub(crate) async fn run(
    stream: Socket,
    tls: Option<TlsAcceptor>,
    house: House<'_>,
    shared: &Shared,
    metrics: &Metrics,
) {
    let negotiation = tokio::time::timeout(shared.limits.negotiation_time_max, negotiate(stream, tls, house));
    let negotiated = tokio::select! {
        biased;
        negotiated = negotiation => negotiated.unwrap_or(Err(NotNegotiated::TooSlow)),
        () = shared.draining.cancelled() => return,
    };
    let Negotiated { stream, export, features, peer } = match negotiated {
        Ok(negotiated) => negotiated,
        Err(NotNegotiated::Ended(CloseReason::Aborted)) => return,
        Err(error) => {
            metrics.negotiations_failed.inc();
            tracing::info!(error = &error as &dyn std::error::Error, "no export was negotiated");
            return;
        }
    };
    // Dropped after the stream and everything that belongs to it.
    let _present = export.present.token();
    tracing::debug!(export = %export.label, ?features, "transmission begins");
    let closed = serve(stream, Arc::clone(&export), features, &peer, shared).await;
    match &closed {
        Closed::Malformed | Closed::Oversize | Closed::Lingered | Closed::Sealed | Closed::ShutOut => {
            tracing::info!(export = %export.label, reason = %closed, "connection closed");
        }
        Closed::Disconnected | Closed::EndOfStream | Closed::Drained | Closed::Broken(_) => {
            tracing::debug!(export = %export.label, reason = &closed as &dyn std::error::Error, "connection closed");
        }
    }
}

async fn negotiate(
    mut socket: Socket,
    tls: Option<TlsAcceptor>,
    house: House<'_>,
) -> Result<Negotiated, NotNegotiated> {
    let mut peer = Peer { address: address_of(&socket).map_err(NotNegotiated::Broken)?, client: None };
    let mut machine = Negotiation::new(if tls.is_some() { Tls::Required } else { Tls::Unavailable });
    write(&mut socket, &Negotiation::greeting()).await?;
    let acceptor = match (options(&mut socket, &mut machine, house, &peer).await?, tls) {
        (Choice::Export(export, features), _) => {
            return Ok(Negotiated { stream: Stream::Plain(socket), export, features, peer });
        }
        (Choice::StartTls, Some(acceptor)) => acceptor,
        // The machine starts TLS only where it is required.
        (Choice::StartTls, None) => return Err(CloseReason::Aborted.into()),
    };
    // The session's secrets are made here, and would stay on the stack for whatever is kept next.
    let handshake = thread_wipe::leaving_nothing(acceptor.accept(socket));
    let mut stream = Box::new(handshake.await.map_err(NotNegotiated::Tls)?);
    machine.tls_started();
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    peer.client = certificate.and_then(|certificate| house.doorkeeper.client(certificate));
    match options(&mut *stream, &mut machine, house, &peer).await? {
        Choice::Export(export, features) => {
            Ok(Negotiated { stream: Stream::Tls(stream), export, features, peer })
        }
        // The machine refuses to start it twice.
        Choice::StartTls => Err(CloseReason::Aborted.into()),
    }
}

fn address_of(socket: &Socket) -> io::Result<Option<IpAddr>> {
    match socket {
        Socket::Left(tcp) => tcp.peer_addr().map(|peer| Some(peer.ip())),
        Socket::Right(_) => Ok(None),
    }
}

enum Choice {
    Export(Arc<LiveExport>, Features),
    StartTls,
}

/// Drives the machine to its next decision.
async fn options<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    machine: &mut Negotiation,
    house: House<'_>,
    peer: &Peer,
) -> Result<Choice, NotNegotiated> {
    let visit = Visit { exports: house.exports, peer, doorkeeper: house.doorkeeper };
    let mut received = Vec::new();
    let mut replies = Vec::new();
    loop {
        // Bounded by the machine: never more than one option of the longest kind.
        received.resize(machine.wants(), 0);
        stream.read_exact(&mut received).await.map_err(NotNegotiated::Broken)?;
        let step = machine.on_bytes(&received, &visit, &mut replies);
        write(stream, &replies).await?;
        replies.clear();
        match step {
            Step::Continue => (),
            Step::StartTls => return Ok(Choice::StartTls),
            Step::Transmission(export, features) => return Ok(Choice::Export(export, features)),
            Step::Close(reason) => {
                // A courtesy to a client that is leaving anyway.
                drop(stream.shutdown().await);
                return Err(reason.into());
            }
        }
    }
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Result<(), NotNegotiated> {
    stream.write_all(bytes).await.map_err(NotNegotiated::Broken)?;
    stream.flush().await.map_err(NotNegotiated::Broken)
}
