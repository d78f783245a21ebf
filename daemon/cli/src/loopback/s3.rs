//! A small S3 client: presigned URLs, streamed bodies, one request a connection.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use admin::api::CreatedAccessKey;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use rusty_s3::actions::{ListObjectsV2, S3Action};
use rusty_s3::{Bucket, Credentials, UrlStyle};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::failure::{Done, Exit, Failure};

/// How long a presigned URL is good.
const URL_LIFETIME: Duration = Duration::from_secs(600);

/// What an error answer may say.
const ERROR_BYTES_MAX: usize = 4096;

/// A page of a list: a thousand keys of a kilobyte, each escaped at worst.
const LIST_BYTES_MAX: usize = 16 << 20;

/// A request's body.
pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

/// What a list says of an object.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) key: String,
    pub(crate) bytes: u64,
    pub(crate) etag: String,
}

/// A stream in clear or under TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A client of one bucket.
pub(crate) struct S3 {
    address: SocketAddr,
    tls: Option<Arc<rustls::ClientConfig>>,
    bucket: Bucket,
    credentials: Credentials,
}

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<String>,
    body: String,
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
    /// A client of `bucket` at `address`. With a file of trusted certificates it speaks TLS.
    pub(crate) fn new(
        address: SocketAddr,
        trusted: Option<&Path>,
        bucket: &str,
        region: &str,
        key: &CreatedAccessKey,
    ) -> Done<Self> {
        let scheme = if trusted.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{address}").parse().map_err(|error| failed("its URL", error))?;
        let bucket = Bucket::new(url, UrlStyle::Path, bucket.to_owned(), region.to_owned())
            .map_err(|error| failed("its bucket", error))?;
        let tls = trusted.map(|path| Ok::<_, Failure>(identity::s3_client(&roots(path)?)?)).transpose()?;
        let credentials = Credentials::new(key.access_key.clone(), key.secret_key.clone());
        Ok(Self { address, tls, bucket, credentials })
    }

    /// Streams `len` bytes into an object.
    pub(crate) async fn put(&self, key: &str, len: u64, body: Body) -> Done {
        let url = self.bucket.put_object(Some(&self.credentials), key).sign(URL_LIFETIME);
        let answer = self.send(Method::PUT, &url, Some((len, body))).await?;
        if answer.status().is_success() { Ok(()) } else { Err(Self::refusal(answer).await.into()) }
    }

    /// Streams an object out, piece by piece into `each`; or the refusal.
    pub(crate) async fn get(&self, key: &str, mut each: impl FnMut(&[u8])) -> Done<Result<(), Refusal>> {
        let url = self.bucket.get_object(Some(&self.credentials), key).sign(URL_LIFETIME);
        let answer = self.send(Method::GET, &url, None).await?;
        if !answer.status().is_success() {
            return Ok(Err(Self::refusal(answer).await));
        }
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| failed("the object's body", error))?;
            if let Some(data) = frame.data_ref() {
                each(data);
            }
        }
        Ok(Ok(()))
    }

    /// A page of the bucket's objects in order, and where the next one begins.
    pub(crate) async fn list(&self, from: Option<String>) -> Done<(Vec<Listed>, Option<String>)> {
        let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
        if let Some(token) = &from {
            action.with_continuation_token(token.clone());
        }
        let url = action.sign(URL_LIFETIME);
        let answer = self.send(Method::GET, &url, None).await?;
        if !answer.status().is_success() {
            return Err(Self::refusal(answer).await.into());
        }
        let body = http_body_util::Limited::new(answer.into_body(), LIST_BYTES_MAX).collect().await;
        let body = body.map_err(|error| failed("the list", error))?.to_bytes();
        let text = std::str::from_utf8(&body).map_err(|error| failed("the list", error))?;
        let parsed = ListObjectsV2::parse_response(text).map_err(|error| failed("the list", error))?;
        let listed = parsed.contents.into_iter().map(|entry| Listed {
            key: entry.key,
            bytes: entry.size.unwrap_or_default(),
            etag: entry.etag.unwrap_or_default().trim_matches('"').to_owned(),
        });
        Ok((listed.collect(), parsed.next_continuation_token))
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
