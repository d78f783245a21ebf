//! A small S3 client: presigned URLs, streamed bodies, one request a connection unless said otherwise. Also for servers that are not Nightlatch.
//! What `mirror` asks for besides is in `transfers`.

mod transfers;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use admin::api::CreatedAccessKey;
use base64::Engine;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use md5::{Digest, Md5};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use rusty_s3::actions::{ListObjectsV2, S3Action};
use rusty_s3::{Bucket, Credentials, UrlStyle};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub(crate) use self::transfers::{Fetched, Part};
use crate::failure::{Done, Exit, Failure};

/// How long a presigned URL is good.
const URL_LIFETIME: Duration = Duration::from_secs(600);

/// What an error answer may say.
const ERROR_BYTES_MAX: usize = 4096;

/// A page of a list: a thousand keys of a kilobyte, each escaped at worst.
const LIST_BYTES_MAX: usize = 16 << 20;

/// Connections that wait for the next request.
const IDLE_MAX: usize = 16;

/// A request is tried so often, and each time waited for three times as long as the time before: 13 s in all.
const TRIES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(333);

/// A request's body.
pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

/// What a list says of an object.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) key: String,
    pub(crate) bytes: u64,
    pub(crate) etag: String,
    /// When it was written, as the server says it.
    pub(crate) modified: String,
}

/// Does it again while it fails for a reason that may pass.
pub(crate) async fn persist<T>(mut attempt: impl AsyncFnMut() -> Done<Result<T, Refusal>>) -> Done<T> {
    let mut wait = FIRST_WAIT;
    for _ in 1..TRIES {
        match attempt().await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(refusal)) if !refusal.is_passing() => return Err(refusal.into()),
            Err(failure) if failure.exit != Exit::Unreachable => return Err(failure),
            Ok(Err(_)) | Err(_) => tokio::time::sleep(wait).await,
        }
        wait *= 3;
    }
    attempt().await?.map_err(Failure::from)
}

/// A stream in clear or under TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A client of one bucket.
pub(crate) struct S3 {
    tls: Option<Arc<rustls::ClientConfig>>,
    bucket: Bucket,
    credentials: Credentials,
    /// Where connections are used again: those that wait.
    idle: Option<Arc<Mutex<Vec<SendRequest<Body>>>>>,
}

/// What a request sends besides its URL.
#[derive(Default)]
struct Sent {
    body: Option<(u64, Body)>,
    /// Those that are signed have been given to the URL's signature as well.
    headers: Vec<(String, String)>,
}

impl Sent {
    fn whole(content: Bytes) -> Self {
        let md5 = base64::engine::general_purpose::STANDARD.encode(Md5::digest(&content));
        let len = content.len() as u64;
        let body = http_body_util::Full::new(content).map_err(|never| match never {}).boxed();
        Self { body: Some((len, body)), headers: vec![("content-md5".to_owned(), md5)] }
    }
}

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<String>,
    body: String,
}

fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Unreachable, "s3", format!("S3: {what}: {error}"), "see the server's log")
}

/// Where systems keep the certificates that they trust: Debian and its kin, Red Hat and its kin.
const SYSTEM_ROOTS: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// The certificates that clients of the heads trust.
fn roots(bundle: &Path) -> Done<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(bundle)
        .and_then(Iterator::collect)
        .map_err(|error| Failure::local(format!("cannot read {}: {error}", bundle.display()), ""))
}

/// Those of the system, as far as they are of use.
fn system_roots() -> Done<Vec<CertificateDer<'static>>> {
    let given = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    let known = SYSTEM_ROOTS.iter().map(std::path::PathBuf::from);
    let bundle = given.into_iter().chain(known).find(|path| path.exists()).ok_or_else(|| {
        Failure::usage(
            "this system has no file of trusted certificates",
            "name one that the S3 server's is trusted by with --ca",
        )
    })?;
    let is_of_use = |root: &CertificateDer<'static>| rustls::RootCertStore::empty().add(root.clone()).is_ok();
    Ok(roots(&bundle)?.into_iter().filter(is_of_use).collect())
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
        Ok(Self { tls, bucket, credentials, idle: None })
    }

    /// A client of a bucket of any server, with the access key that the environment has. Trusts the certificates in `ca`, or
    /// those of the system.
    pub(crate) fn of_environment(bucket: Bucket, ca: Option<&Path>) -> Done<Self> {
        let credentials = Credentials::from_env().ok_or_else(|| {
            Failure::usage(
                "there is no access key for the S3 server",
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN where the key needs it",
            )
        })?;
        Self::with_credentials(bucket, credentials, ca)
    }

    /// The same with this access key.
    pub(crate) fn with_credentials(
        bucket: Bucket,
        credentials: Credentials,
        ca: Option<&Path>,
    ) -> Done<Self> {
        let tls = match (bucket.base_url().scheme(), ca) {
            ("http", _) => None,
            (_, Some(ca)) => Some(identity::s3_client(&roots(ca)?)?),
            (_, None) => Some(identity::s3_client(&system_roots()?)?),
        };
        Ok(Self { tls, bucket, credentials, idle: None })
    }

    /// Puts an object, which the server takes only if it arrives whole.
    pub(crate) async fn put_whole(&self, key: &str, content: Bytes) -> Done<Result<(), Refusal>> {
        let url = self.bucket.put_object(Some(&self.credentials), key).sign(URL_LIFETIME);
        let answer = self.send(Method::PUT, &url, Sent::whole(content)).await?;
        if answer.status().is_success() { Ok(Ok(())) } else { Ok(Err(Self::refusal(answer).await)) }
    }

    /// Deletes an object. One that is not there is none the less deleted.
    pub(crate) async fn delete(&self, key: &str) -> Done<Result<(), Refusal>> {
        let url = self.bucket.delete_object(Some(&self.credentials), key).sign(URL_LIFETIME);
        let answer = self.send(Method::DELETE, &url, Sent::default()).await?;
        if answer.status().is_success() { Ok(Ok(())) } else { Ok(Err(Self::refusal(answer).await)) }
    }

    /// Streams `len` bytes into an object.
    pub(crate) async fn put(&self, key: &str, len: u64, body: Body) -> Done {
        let url = self.bucket.put_object(Some(&self.credentials), key).sign(URL_LIFETIME);
        let sent = Sent { body: Some((len, body)), headers: Vec::new() };
        let answer = self.send(Method::PUT, &url, sent).await?;
        if answer.status().is_success() { Ok(()) } else { Err(Self::refusal(answer).await.into()) }
    }

    /// Streams an object out, piece by piece into `each`; or the refusal.
    pub(crate) async fn get(&self, key: &str, mut each: impl FnMut(&[u8])) -> Done<Result<(), Refusal>> {
        let url = self.bucket.get_object(Some(&self.credentials), key).sign(URL_LIFETIME);
        let answer = self.send(Method::GET, &url, Sent::default()).await?;
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
        self.list_under("", from).await?.map_err(Failure::from)
    }

    /// As [`Self::list`], of keys that begin with `prefix`; or the refusal.
    pub(crate) async fn list_under(
        &self,
        prefix: &str,
        from: Option<String>,
    ) -> Done<Result<(Vec<Listed>, Option<String>), Refusal>> {
        let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
        if !prefix.is_empty() {
            action.with_prefix(prefix);
        }
        if let Some(token) = &from {
            action.with_continuation_token(token.clone());
        }
        let url = action.sign(URL_LIFETIME);
        let answer = self.send(Method::GET, &url, Sent::default()).await?;
        if !answer.status().is_success() {
            return Ok(Err(Self::refusal(answer).await));
        }
        let body = http_body_util::Limited::new(answer.into_body(), LIST_BYTES_MAX).collect().await;
        let body = body.map_err(|error| failed("the list", error))?.to_bytes();
        let text = std::str::from_utf8(&body).map_err(|error| failed("the list", error))?;
        let parsed = ListObjectsV2::parse_response(text).map_err(|error| failed("the list", error))?;
        let listed = parsed.contents.into_iter().map(|entry| Listed {
            key: entry.key,
            bytes: entry.size.unwrap_or_default(),
            etag: entry.etag.unwrap_or_default().trim_matches('"').to_owned(),
            modified: entry.last_modified.unwrap_or_default(),
        });
        Ok(Ok((listed.collect(), parsed.next_continuation_token)))
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

    async fn send(&self, method: Method, url: &url::Url, sent: Sent) -> Done<Response<Incoming>> {
        let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
        let mut request = Request::builder().method(method).uri(target).header(header::HOST, host);
        if self.idle.is_none() {
            request = request.header(header::CONNECTION, "close");
        }
        for (name, value) in &sent.headers {
            request = request.header(name, value);
        }
        let body = match sent.body {
            Some((len, body)) => {
                request = request.header(header::CONTENT_LENGTH, len);
                body
            }
            None => Empty::new().map_err(|never| match never {}).boxed(),
        };
        let request = request.body(body).map_err(|error| failed("the request", error))?;
        let mut sender = match self.idle_connection() {
            Some(sender) => sender,
            None => self.new_connection(url).await?,
        };
        let answer = sender.send_request(request).await.map_err(|error| failed("the request", error))?;
        if let Some(idle) = self.idle.clone() {
            tokio::spawn(async move {
                // Once the answer's body has been read, or the connection has ended.
                if sender.ready().await.is_ok() {
                    let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
                    if idle.len() < IDLE_MAX {
                        idle.push(sender);
                    }
                }
            });
        }
        Ok(answer)
    }

    /// Uses connections again. One that the server ends meanwhile fails a request: for what is done with [`persist`].
    pub(crate) fn reusing_connections(self) -> Self {
        Self { idle: Some(Arc::default()), ..self }
    }

    fn idle_connection(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    async fn new_connection(&self, url: &url::Url) -> Done<SendRequest<Body>> {
        let stream = self.connect(url).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed("the connection", error))?;
        // Ends with the last sender. What went wrong is seen by whoever reads an answer.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn connect(&self, url: &url::Url) -> Done<Box<dyn Stream>> {
        let host = url.host().ok_or_else(|| failed("its URL", "it names no host"))?.to_owned();
        let port = url.port_or_known_default().unwrap_or(443);
        let connected = match &host {
            url::Host::Domain(name) => TcpStream::connect((name.as_str(), port)).await,
            url::Host::Ipv4(address) => TcpStream::connect((*address, port)).await,
            url::Host::Ipv6(address) => TcpStream::connect((*address, port)).await,
        };
        let stream = connected.map_err(|error| failed("cannot connect", error))?;
        stream.set_nodelay(true).map_err(|error| failed("cannot connect", error))?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = match host {
            url::Host::Domain(name) => {
                ServerName::try_from(name).map_err(|error| failed("its host name", error))?
            }
            url::Host::Ipv4(address) => ServerName::IpAddress(std::net::IpAddr::V4(address).into()),
            url::Host::Ipv6(address) => ServerName::IpAddress(std::net::IpAddr::V6(address).into()),
        };
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await;
        Ok(Box::new(stream.map_err(|error| failed("no trusted connection", error))?))
    }
}

impl Refusal {
    /// Whether it may be otherwise the next time.
    pub(crate) fn is_passing(&self) -> bool {
        self.status.is_server_error()
            || matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let message = format!("S3 answered {}: {}", refusal.status, refusal.body.trim());
        Self::new(Exit::Refused, "s3", message, "see the server's log")
    }
}
