//! A small S3 client: presigned URLs, streamed bodies, one request a connection unless said otherwise. Also for servers that are not Nightlatch.
//! What `mirror` asks for besides is in `transfers`.

mod transfers;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use admin::api::CreatedAccessKey;
use base64::Engine;
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
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

/// To be connected, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A server with which nothing moves for so long is given up. One that puts a large object together may say nothing for minutes.
const STALLED_AFTER: Duration = Duration::from_secs(300);

/// What is handed to a connection at a time: so much more or less tells whether a body moves.
const BODY_PIECE_BYTES: usize = 64 << 10;

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

/// Whether a URL names an object of this key. On its way to the server a segment `.` or `..` is resolved as in a path of a file system:
/// it would be another object, or one of another bucket. A key of nothing would be the bucket.
pub(crate) fn has_url(key: &str) -> bool {
    !key.is_empty() && key.split('/').all(|segment| !matches!(segment, "." | ".."))
}

/// Refuses a key that [`has_url`] does not hold for.
pub(crate) fn check_key(key: &str) -> Done {
    if has_url(key) {
        return Ok(());
    }
    let what =
        if key.is_empty() { "its key would be empty" } else { "its key has a segment \".\" or \"..\"" };
    Err(Failure::local(
        format!("{what}, and a URL cannot name it; give it another name"),
        "rename it with a program that sends keys as they are",
    ))
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
    /// For how long nothing may move.
    patience: Duration,
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
        let pieces = (0..content.len()).step_by(BODY_PIECE_BYTES).map(move |from| {
            let to = content.len().min(from + BODY_PIECE_BYTES);
            Ok(Frame::data(content.slice(from..to)))
        });
        let body = BodyExt::boxed(StreamBody::new(futures::stream::iter(pieces)));
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

fn stalled(what: &str, patience: Duration) -> Failure {
    failed(what, format!("nothing came for {} s", patience.as_secs_f32()))
}

/// The next bytes of an answer's body; `None` at its end.
async fn next_data(body: &mut Incoming, what: &str, patience: Duration) -> Done<Option<Bytes>> {
    loop {
        let Ok(frame) = tokio::time::timeout(patience, body.frame()).await else {
            return Err(stalled(what, patience));
        };
        let Some(frame) = frame else { return Ok(None) };
        // What is no data is what comes behind it.
        if let Ok(data) = frame.map_err(|error| failed(what, error))?.into_data() {
            return Ok(Some(data));
        }
    }
}

/// An answer's body, of so many bytes at most.
async fn whole(
    answer: Response<Incoming>,
    (what, bytes_max): (&str, usize),
    patience: Duration,
) -> Done<Bytes> {
    let mut body = answer.into_body();
    let announced = body.size_hint().exact().and_then(|len| usize::try_from(len).ok()).unwrap_or_default();
    let mut content = BytesMut::with_capacity(announced.min(bytes_max));
    while let Some(data) = next_data(&mut body, what, patience).await? {
        if data.len() > bytes_max - content.len() {
            return Err(failed(what, format!("it is longer than {bytes_max} bytes")));
        }
        content.extend_from_slice(&data);
    }
    Ok(content.freeze())
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
        Ok(Self { tls, bucket, credentials, idle: None, patience: STALLED_AFTER })
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
        Ok(Self { tls, bucket, credentials, idle: None, patience: STALLED_AFTER })
    }

    /// Puts an object, which the server takes only if it arrives whole.
    pub(crate) async fn put_whole(&self, key: &str, content: Bytes) -> Done<Result<(), Refusal>> {
        check_key(key)?;
        let url = self.bucket.put_object(Some(&self.credentials), key).sign(URL_LIFETIME);
        let answer = self.send(Method::PUT, &url, Sent::whole(content)).await?;
        if answer.status().is_success() { Ok(Ok(())) } else { Ok(Err(Self::refusal(answer).await)) }
    }

    /// Deletes an object. One that is not there is none the less deleted.
    pub(crate) async fn delete(&self, key: &str) -> Done<Result<(), Refusal>> {
        check_key(key)?;
        let url = self.bucket.delete_object(Some(&self.credentials), key).sign(URL_LIFETIME);
        let answer = self.send(Method::DELETE, &url, Sent::default()).await?;
        if answer.status().is_success() { Ok(Ok(())) } else { Ok(Err(Self::refusal(answer).await)) }
    }

    /// Streams `len` bytes into an object.
    pub(crate) async fn put(&self, key: &str, len: u64, body: Body) -> Done {
        check_key(key)?;
        let url = self.bucket.put_object(Some(&self.credentials), key).sign(URL_LIFETIME);
        let sent = Sent { body: Some((len, body)), headers: Vec::new() };
        let answer = self.send(Method::PUT, &url, sent).await?;
        if answer.status().is_success() { Ok(()) } else { Err(Self::refusal(answer).await.into()) }
    }

    /// Streams an object out, piece by piece into `each`; or the refusal.
    pub(crate) async fn get(&self, key: &str, mut each: impl FnMut(&[u8])) -> Done<Result<(), Refusal>> {
        check_key(key)?;
        let url = self.bucket.get_object(Some(&self.credentials), key).sign(URL_LIFETIME);
        let answer = self.send(Method::GET, &url, Sent::default()).await?;
        if !answer.status().is_success() {
            return Ok(Err(Self::refusal(answer).await));
        }
        let mut body = answer.into_body();
        while let Some(data) = next_data(&mut body, "the object's body", self.patience).await? {
            each(&data);
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
        let body = whole(answer, ("the list", LIST_BYTES_MAX), self.patience).await?;
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
        let body = whole(answer, ("the answer", ERROR_BYTES_MAX), STALLED_AFTER).await;
        let body = body.map(|body| String::from_utf8_lossy(&body).into_owned()).unwrap_or_default();
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
        let moved = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&moved);
        let body = body.map_frame(move |frame| {
            counted.fetch_add(1, Ordering::Relaxed);
            frame
        });
        let request = request.body(body.boxed()).map_err(|error| failed("the request", error))?;
        let mut sender = match self.idle_connection() {
            Some(sender) => sender,
            None => self.new_connection(url).await?,
        };
        let answer = self.answer(sender.send_request(request), &moved).await?;
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

    /// Waits for an answer for as long as the request's body moves, and a while longer.
    async fn answer(
        &self,
        answer: impl Future<Output = hyper::Result<Response<Incoming>>>,
        moved: &AtomicU64,
    ) -> Done<Response<Incoming>> {
        let mut answer = std::pin::pin!(answer);
        loop {
            let before = moved.load(Ordering::Relaxed);
            match tokio::time::timeout(self.patience, &mut answer).await {
                Ok(answer) => return answer.map_err(|error| failed("the request", error)),
                Err(_) if moved.load(Ordering::Relaxed) != before => {}
                Err(_) => return Err(stalled("the request", self.patience)),
            }
        }
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
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, self.connect(url)).await {
            Ok(stream) => stream?,
            Err(_) => return Err(stalled("cannot connect", CONNECT_TIMEOUT)),
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_a_url_cannot_name_is_refused() {
        for key in ["a", "a/b", "/a", "a//b", "...", ".a", "a..", "a/..b", "%2e%2e/a"] {
            assert!(has_url(key), "{key}");
        }
        for key in ["", ".", "..", "../a", "a/..", "a/./b", "a/../b"] {
            assert!(check_key(key).is_err(), "{key}");
        }
        // The one that it would have been.
        let bucket = Bucket::new("http://s3".parse().unwrap(), UrlStyle::Path, "b", "us-east-1").unwrap();
        for key in ["a", "/a", "a//b", "...", "a/..b", "%2e%2e/a", "a\\..\\b", "a/.\t./b"] {
            let path = bucket.object_url(key).path().to_owned();
            assert!(has_url(key) && path.starts_with("/b/"), "{path}");
            assert_eq!(path.matches('/').count(), 2 + key.matches('/').count(), "{path}");
        }
        assert_eq!(bucket.object_url("../a").path(), "/a");
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_is_given_up_and_one_that_takes_its_time_is_not() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        // In all it takes longer than nothing may move for; what the sockets hold of it does not.
        const SLOW_BYTES: usize = 64 << 20;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let bucket = Bucket::new(url, UrlStyle::Path, "b", "us-east-1").unwrap();
        let mut s3 = S3::with_credentials(bucket, Credentials::new("a", "b"), None).unwrap();
        s3.patience = Duration::from_secs(1);
        let server = async {
            // Says nothing.
            let (_silent, _) = listener.accept().await.unwrap();
            // Begins and says no more.
            let (mut begun, _) = listener.accept().await.unwrap();
            begun.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nh").await.unwrap();
            // Takes a body, slowly.
            let (mut slow, _) = listener.accept().await.unwrap();
            let (mut taken, mut piece) = (0, vec![0; 1 << 20]);
            while taken < SLOW_BYTES {
                tokio::time::sleep(Duration::from_millis(30)).await;
                taken += slow.read(&mut piece).await.unwrap();
            }
            slow.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            std::future::pending::<()>().await;
        };
        let client = async {
            for _ in 0..2 {
                let failure = s3.get("k", |_| ()).await.unwrap_err();
                assert!(failure.problem.message.contains("nothing came"), "{failure}");
            }
            s3.put_whole("k", vec![1; SLOW_BYTES].into()).await.unwrap().unwrap();
        };
        tokio::select! {
            () = server => unreachable!(),
            () = client => {}
        }
    }
}
