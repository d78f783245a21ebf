//! One HTTP request to somebody else's server: a receiver of webhooks, the provider that people log in at.
//!
//! Over TLS, or in clear to a loopback address; no redirect is followed, and time and answer are bounded.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use futures::StreamExt;
use hyper_util::rt::TokioIo;
use identity::{IdentityError, private_client};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::{Host, Position, Url};

/// From connecting to the answer's last byte.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Longest answer that is read: a provider's keys are a few KiB.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutgoingError {
    /// Nobody there, or not the right one.
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("it did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// An answer that does not end.
    #[error("its answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
}

/// What of an answer is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Everything,
    Status,
}

/// Who is believed at the other end.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// None for addresses of this machine.
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Outgoing {
    /// For `url` and others like it: over TLS with the authorities in `ca`, or in clear where `url` is.
    pub fn for_url(url: &Url, ca: &Path) -> Result<Self, IdentityError> {
        let tls = if url.scheme() == "https" { Some(private_client(ca, None)?) } else { None };
        Ok(Self { tls })
    }

    /// Sends `request`, whose path and host come from `url`, and reads the answer; its status and body.
    pub async fn send(&self, url: &Url, request: Request<Body>) -> Result<(u16, Bytes), OutgoingError> {
        self.ask(url, request, Wanted::Everything).await
    }

    /// As [`Self::send`], but only the status is waited for: servers end bodies that nobody reads as they like.
    pub async fn deliver(&self, url: &Url, request: Request<Body>) -> Result<u16, OutgoingError> {
        self.ask(url, request, Wanted::Status).await.map(|(status, _)| status)
    }

    async fn ask(
        &self,
        url: &Url,
        request: Request<Body>,
        wanted: Wanted,
    ) -> Result<(u16, Bytes), OutgoingError> {
        let exchange = async {
            let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
            let port = url.port_or_known_default().unwrap_or(443);
            let name = server_name(url)?;
            if self.tls.is_some() != (url.scheme() == "https") || (self.tls.is_none() && !is_loopback(&name))
            {
                let what = format!("{} is not reached by TLS", url.origin().ascii_serialization());
                return Err(OutgoingError::Unreachable(what));
            }
            let stream = TcpStream::connect((host, port)).await.map_err(unreachable)?;
            match &self.tls {
                Some(tls) => {
                    let connector = TlsConnector::from(Arc::clone(tls));
                    exchange(
                        connector.connect(name, stream).await.map_err(unreachable)?,
                        url,
                        request,
                        wanted,
                    )
                    .await
                }
                None => exchange(stream, url, request, wanted).await,
            }
        };
        tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| OutgoingError::Timeout)?
    }
}

fn unreachable(error: impl std::fmt::Display) -> OutgoingError {
    OutgoingError::Unreachable(error.to_string())
}

fn server_name(url: &Url) -> Result<ServerName<'static>, OutgoingError> {
    match url.host() {
        Some(Host::Ipv4(address)) => Ok(ServerName::IpAddress(IpAddr::V4(address).into())),
        Some(Host::Ipv6(address)) => Ok(ServerName::IpAddress(IpAddr::V6(address).into())),
        Some(Host::Domain(name)) => ServerName::try_from(name.to_owned()).map_err(unreachable),
        None => Err(unreachable("its address has no host")),
    }
}

fn is_loopback(name: &ServerName<'_>) -> bool {
    matches!(name, ServerName::IpAddress(address) if IpAddr::from(*address).is_loopback())
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &Url,
    mut request: Request<Body>,
    wanted: Wanted,
) -> Result<(u16, Bytes), OutgoingError> {
    let headers = request.headers_mut();
    let host = url[Position::BeforeHost..Position::AfterPort].parse().map_err(unreachable)?;
    headers.insert(header::HOST, host);
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    *request.uri_mut() = url[Position::BeforePath..Position::AfterQuery].parse().map_err(unreachable)?;
    let stream = TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(unreachable)?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(unreachable)?;
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        if wanted == Wanted::Status {
            return Ok((status, Bytes::new()));
        }
        let mut parts = Body::new(answer.into_body()).into_data_stream();
        while let Some(part) = parts.next().await {
            body.extend_from_slice(&part.map_err(unreachable)?);
            if body.len() > ANSWER_BYTES_MAX {
                return Err(OutgoingError::TooLong);
            }
        }
        Ok((status, Bytes::from(body)))
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // The connection may end with the last byte of the answer still to be taken.
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(unreachable(error)),
        },
    }
}
