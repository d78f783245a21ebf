//! A small S3 client for the demonstration: presigned URLs, streamed bodies, one request a connection.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use indicatif::ProgressBar;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use rusty_s3::actions::S3Action;
use rusty_s3::{Bucket, Credentials, UrlStyle};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::demo::setup;
use crate::demo::site::{BUCKET, REGION, Site};
use crate::demo::traffic::{self, PIECE};
use crate::failure::{Done, Exit, Failure};

/// How long a presigned URL is good.
const URL_LIFETIME: Duration = Duration::from_secs(600);

/// What an error answer may say.
const ERROR_BYTES_MAX: usize = 4096;

type Body = BoxBody<Bytes, std::io::Error>;

/// A stream in clear or under TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A client of the demonstration's bucket.
pub(super) struct S3 {
    address: std::net::SocketAddr,
    tls: Option<Arc<rustls::ClientConfig>>,
    bucket: Bucket,
    credentials: Credentials,
}

/// An answer that is no success.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<String>,
    body: String,
}

/// The S3 head's URL.
pub(super) fn endpoint(site: &Site) -> String {
    let scheme = if site.s3_plain { "http" } else { "https" };
    format!("{scheme}://{}", Site::at(site.ports.s3))
}

fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Unreachable, "s3", format!("S3: {what}: {error}"), "see the node's log")
}

/// The certificates that clients of the heads trust.
fn roots(bundle: &Path) -> Done<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(bundle)
        .and_then(Iterator::collect)
        .map_err(|error| Failure::local(format!("cannot read {}: {error}", bundle.display()), ""))
}

impl S3 {
    /// A client with the demonstration's access key.
    pub(super) fn new(site: &Site) -> Done<Self> {
        let url = endpoint(site).parse().map_err(|error| failed("its URL", error))?;
        let bucket =
            Bucket::new(url, UrlStyle::Path, BUCKET, REGION).map_err(|error| failed("its bucket", error))?;
        let key = setup::access_key(site)?;
        let tls = if site.s3_plain {
            None
        } else {
            Some(identity::s3_client(&roots(&site.path("pki/ca-cert.pem"))?)?)
        };
        Ok(Self {
            address: Site::at(site.ports.s3),
            tls,
            bucket,
            credentials: Credentials::new(key.access_key, key.secret_key),
        })
    }

    /// Streams `pieces` pieces of text into an object and gives their SHA-256.
    pub(super) async fn put(&self, key: &str, run: u64, pieces: u64, bar: ProgressBar) -> Done<[u8; 32]> {
        let url = self.bucket.put_object(Some(&self.credentials), key).sign(URL_LIFETIME);
        let hash = Arc::new(std::sync::Mutex::new(Sha256::new()));
        let hashed = Arc::clone(&hash);
        let progress = bar.clone();
        let frames = (0..pieces).map(move |index| {
            let piece = traffic::piece(run, index);
            if let Ok(mut hash) = hashed.lock() {
                hash.update(&piece);
            }
            progress.inc(PIECE as u64);
            Ok(Frame::data(Bytes::from(piece)))
        });
        let body = BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)));
        let answer = self.send(Method::PUT, &url, Some((pieces * PIECE as u64, body))).await?;
        let status = answer.status();
        if !status.is_success() {
            return Err(Self::refusal(answer).await.into());
        }
        bar.finish();
        let hash = hash.lock().map_err(|error| failed("its checksum", error))?.clone();
        Ok(hash.finalize().into())
    }

    /// Streams an object out and gives its SHA-256, or the refusal.
    pub(super) async fn get(&self, key: &str, bar: &ProgressBar) -> Done<Result<[u8; 32], Refusal>> {
        let url = self.bucket.get_object(Some(&self.credentials), key).sign(URL_LIFETIME);
        let answer = self.send(Method::GET, &url, None).await?;
        if !answer.status().is_success() {
            return Ok(Err(Self::refusal(answer).await));
        }
        let mut body = answer.into_body();
        let mut hash = Sha256::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| failed("the object's body", error))?;
            if let Some(data) = frame.data_ref() {
                hash.update(data);
                bar.inc(data.len() as u64);
            }
        }
        bar.finish();
        Ok(Ok(hash.finalize().into()))
    }

    async fn refusal(answer: Response<Incoming>) -> Refusal {
        let status = answer.status();
        let retry_after = answer
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let body = http_body_util::Limited::new(answer.into_body(), ERROR_BYTES_MAX).collect().await;
        let body =
            body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default();
        Refusal { status, retry_after, body }
    }

    async fn send(
        &self,
        method: Method,
        url: &url::Url,
        body: Option<(u64, Body)>,
    ) -> Done<Response<Incoming>> {
        let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, host)
            .header(header::CONNECTION, "close");
        let body = match body {
            Some((len, body)) => {
                request = request.header(header::CONTENT_LENGTH, len);
                body
            }
            None => Empty::new().map_err(|never| match never {}).boxed(),
        };
        let request = request.body(body).map_err(|error| failed("the request", error))?;
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed("the connection", error))?;
        // Ends with the answer's body. What went wrong is seen by whoever reads that.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|error| failed("the request", error))
    }

    async fn connect(&self) -> Done<Box<dyn Stream>> {
        let stream =
            TcpStream::connect(self.address).await.map_err(|error| failed("cannot connect", error))?;
        stream.set_nodelay(true).map_err(|error| failed("cannot connect", error))?;
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some(tls) => {
                let name = ServerName::IpAddress(self.address.ip().into());
                let stream = TlsConnector::from(Arc::clone(tls))
                    .connect(name, stream)
                    .await
                    .map_err(|error| failed("no trusted connection", error))?;
                Ok(Box::new(stream))
            }
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let message = format!("S3 answered {}: {}", refusal.status, refusal.body.trim());
        Self::new(Exit::Refused, "s3", message, "see the node's log")
    }
}
