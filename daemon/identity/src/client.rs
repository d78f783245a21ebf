//! A small HTTPS client for JSON over the control plane: one request a connection, a time limit on all of it, and
//! errors that say whether the other side was unreachable, not the right one, or refused.

use std::error::Error as StdError;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tls::{ChannelBinding, handshake_advice};

/// Longest time from connecting to the last byte of the answer, unless set otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Largest answer that is read: status of a node with thousands of volumes is under 4 MiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The body of every error answer of the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable word for programs, as in `sealed` or `not-found`.
    pub kind: String,
    /// What is wrong, for people.
    pub message: String,
    /// What to do about it.
    pub next_step: String,
}

impl Problem {
    /// A problem from its three parts.
    pub fn new(kind: &str, message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), message: message.into(), next_step: next_step.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.next_step.is_empty() {
            write!(f, "; {}", self.next_step)?;
        }
        Ok(())
    }
}

/// Why a request had no good answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nothing answers at the address, or the connection broke.
    #[error(
        "cannot reach {endpoint}: {reason}; check that the program runs, its address, and the network between"
    )]
    Unreachable {
        /// Where to.
        endpoint: Endpoint,
        /// What the system said.
        reason: String,
    },
    /// The time limit passed.
    #[error("no answer from {endpoint} within {seconds} s; check its load and log before trying again")]
    Timeout {
        /// Where to.
        endpoint: Endpoint,
        /// The limit.
        seconds: u64,
    },
    /// One side does not accept the other's certificate, or their TLS does not fit.
    #[error("no trusted connection to {endpoint}: {reason}")]
    Untrusted {
        /// Where to.
        endpoint: Endpoint,
        /// Whose certificate, what is wrong with it, and what to do.
        reason: String,
    },
    /// The other side answered with an error.
    #[error("{problem}")]
    Refused {
        /// Where to.
        endpoint: Endpoint,
        /// The HTTP status.
        status: u16,
        /// What it said.
        problem: Problem,
    },
    /// The answer is not what this version expects.
    #[error(
        "{endpoint} gave an answer that this version cannot read ({reason}); check that both sides run the same version"
    )]
    Malformed {
        /// Where to.
        endpoint: Endpoint,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why an address could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address of the form https://HOST:PORT")]
pub struct InvalidEndpoint(String);

/// Where a control plane server listens: `https://host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// The host name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let invalid = || InvalidEndpoint(text.to_owned());
        let rest = text.strip_prefix("https://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = rest.rsplit_once(':').ok_or_else(invalid)?;
        let port: u16 = port.parse().map_err(|_| invalid())?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bare {
            Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => v6,
            Some(_) => return Err(invalid()),
            None => host,
        };
        let name = ServerName::try_from(host).map_err(|_| invalid())?;
        if port == 0 || (bare.is_none() && matches!(name, ServerName::IpAddress(_)) && host.contains(':')) {
            return Err(invalid());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl TryFrom<String> for Endpoint {
    type Error = InvalidEndpoint;
    fn try_from(text: String) -> Result<Self, InvalidEndpoint> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

/// A client for one server.
#[derive(Clone, Debug)]
pub struct HttpsClient {
    endpoint: Endpoint,
    tls: Arc<rustls::ClientConfig>,
    timeout: Duration,
    /// Sent with every request.
    bearer: Option<Bearer>,
}

/// A token that stands for a login; nobody is to see it in a log.
#[derive(Clone)]
struct Bearer(String);

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer")
    }
}

impl HttpsClient {
    /// A client whose connections use `tls`, which says who it is and whom it expects.
    pub fn new(endpoint: Endpoint, tls: Arc<rustls::ClientConfig>) -> Self {
        Self { endpoint, tls, timeout: TIMEOUT_DEFAULT, bearer: None }
    }

    /// Another time limit for each request.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sends this token with every request, as a login gave it.
    #[must_use]
    pub fn with_bearer(self, token: String) -> Self {
        Self { bearer: Some(Bearer(token)), ..self }
    }

    /// Where requests go.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// GET `path`.
    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.send(Method::GET, path, None).await
    }

    /// POST `body` to `path`.
    pub async fn post<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<A, ClientError> {
        self.send(Method::POST, path, Some(self.encode(body)?)).await
    }

    /// GET `path`, whose answer is not JSON.
    pub async fn get_bytes(&self, path: &str) -> Result<Bytes, ClientError> {
        self.answer(Method::GET, path, None).await
    }

    /// POST `body` to `path`, whose answer is not JSON.
    pub async fn post_for_bytes(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<Bytes, ClientError> {
        self.answer(Method::POST, path, Some(("application/json", self.encode(body)?))).await
    }

    /// POST `body` as it is to `path`.
    pub async fn post_bytes<A: DeserializeOwned>(&self, path: &str, body: Bytes) -> Result<A, ClientError> {
        let body = Some(("application/octet-stream", body));
        self.decode(&self.answer(Method::POST, path, body).await?)
    }

    /// POST to `path` what `make` makes for the connection that it is sent on.
    pub async fn post_bound<A: DeserializeOwned, B: Serialize>(
        &self,
        path: &str,
        make: impl FnOnce(ChannelBinding) -> B,
    ) -> Result<A, ClientError> {
        let exchange = async {
            let stream = self.connect().await?;
            let binding = ChannelBinding::of(stream.get_ref().1).map_err(|error| self.transport(&error))?;
            let body = Some(("application/json", self.encode(&make(binding))?));
            self.exchange_on(stream, Method::POST, path, body).await
        };
        self.decode(&self.accepted(exchange).await?)
    }

    /// PATCH `path` with `body`.
    pub async fn patch<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<A, ClientError> {
        self.send(Method::PATCH, path, Some(self.encode(body)?)).await
    }

    /// DELETE `path`.
    pub async fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.send(Method::DELETE, path, None).await
    }

    fn encode(&self, body: &impl Serialize) -> Result<Bytes, ClientError> {
        serde_json::to_vec(body).map(Bytes::from).map_err(|error| self.malformed(error))
    }

    async fn send<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<A, ClientError> {
        let body = body.map(|body| ("application/json", body));
        self.decode(&self.answer(method, path, body).await?)
    }

    fn decode<A: DeserializeOwned>(&self, answer: &[u8]) -> Result<A, ClientError> {
        let json = if answer.is_empty() { b"null".as_slice() } else { answer };
        serde_json::from_slice(json).map_err(|error| self.malformed(error))
    }

    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Bytes, ClientError> {
        let exchange = async {
            let stream = self.connect().await?;
            self.exchange_on(stream, method, path, body).await
        };
        self.accepted(exchange).await
    }

    /// The body of a good answer that came in time.
    async fn accepted(
        &self,
        exchange: impl Future<Output = Result<(StatusCode, Bytes), ClientError>>,
    ) -> Result<Bytes, ClientError> {
        let in_time = tokio::time::timeout(self.timeout, exchange).await;
        let (status, answer) = in_time.map_err(|_| ClientError::Timeout {
            endpoint: self.endpoint.clone(),
            seconds: self.timeout.as_secs(),
        })??;
        if status.is_success() { Ok(answer) } else { Err(self.refused(status, &answer)) }
    }

    async fn exchange_on(
        &self,
        stream: tokio_rustls::client::TlsStream<TcpStream>,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.endpoint.authority())
            .header(header::ACCEPT, "application/json")
            .header(header::CONNECTION, "close");
        if let Some((kind, _)) = &body {
            request = request.header(header::CONTENT_TYPE, *kind);
        }
        if let Some(Bearer(token)) = &self.bearer {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = Full::new(body.map(|(_, body)| body).unwrap_or_default());
        let request = request.body(body).map_err(|error| self.malformed(error))?;

        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.transport(&error))?;
        // The connection is driven here and not in a task of its own: it ends with the request, in every case.
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(|error| self.transport(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            body.map(|body| (status, body.to_bytes())).map_err(|error| self.transport(error.as_ref()))
        };
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            // The connection may end with the last byte of the answer still to be taken by `exchange`, which also
            // sees an error of the connection.
            ended = connection => match ended {
                Ok(()) => exchange.await,
                Err(error) => Err(self.transport(&error)),
            },
        }
    }

    async fn connect(&self) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ClientError> {
        let unreachable = |error: std::io::Error| self.transport(&error);
        let name = match self.endpoint.host.parse::<IpAddr>() {
            Ok(address) => ServerName::IpAddress(address.into()),
            Err(_) => {
                ServerName::try_from(self.endpoint.host.clone()).map_err(|error| self.malformed(error))?
            }
        };
        let stream = TcpStream::connect((self.endpoint.host.as_str(), self.endpoint.port))
            .await
            .map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        TlsConnector::from(self.tls.clone()).connect(name, stream).await.map_err(unreachable)
    }

    fn malformed(&self, error: impl fmt::Display) -> ClientError {
        ClientError::Malformed { endpoint: self.endpoint.clone(), reason: error.to_string() }
    }

    fn refused(&self, status: StatusCode, answer: &[u8]) -> ClientError {
        let problem = serde_json::from_slice(answer).unwrap_or_else(|_| {
            Problem::new("unexpected", format!("{} answered {status}", self.endpoint), "check its log")
        });
        ClientError::Refused { endpoint: self.endpoint.clone(), status: status.as_u16(), problem }
    }

    /// Finds the TLS error behind a broken connection, if there is one: with TLS 1.3 a server's refusal of the
    /// client's certificate arrives after the client has finished its handshake, as a failed read.
    fn transport(&self, error: &(dyn StdError + 'static)) -> ClientError {
        let endpoint = self.endpoint.clone();
        let mut innermost = error;
        let mut next = Some(error);
        while let Some(current) = next {
            let tls = current.downcast_ref::<rustls::Error>().or_else(|| {
                let io = current.downcast_ref::<std::io::Error>()?;
                io.get_ref()?.downcast_ref::<rustls::Error>()
            });
            if let Some(tls) = tls {
                let reason = handshake_advice(tls).unwrap_or_else(|| tls.to_string());
                return ClientError::Untrusted { endpoint, reason };
            }
            innermost = current;
            next = current.source();
        }
        ClientError::Unreachable { endpoint, reason: innermost.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_read_back_as_written() {
        for text in ["https://127.0.0.1:7411", "https://[::1]:7411", "https://node-1.example.com:7411"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!("node-1:7411/".parse::<Endpoint>().unwrap().to_string(), "https://node-1:7411");
    }

    #[test]
    fn half_an_address_is_refused() {
        for text in [
            "",
            "https://",
            "node-1",
            "node-1:",
            "node-1:0",
            "node-1:65536",
            "::1:7",
            "[x]:7",
            "http://a:7",
            "a b:7",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
