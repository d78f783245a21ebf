//! A small blocking S3 client over plain HTTP, for tests that must know of every request whether it was answered.
//!
//! The real clients retry and hide that. This one sends a request once, on one connection that it makes again when it
//! breaks, with presigned URLs.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
pub use hyper::Method;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rusty_s3::actions::ListObjectsV2;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

/// How long a presigned URL is good for.
const SIGNED_FOR: Duration = Duration::from_secs(600);

/// Why there is no good answer.
#[derive(Debug)]
pub enum S3Error {
    /// The connection broke or was refused: the request may or may not have been carried out.
    Unanswered(String),
    /// The server answered with an error.
    Refused { status: u16, retry_after: Option<String>, body: String },
}

impl fmt::Display for S3Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unanswered(reason) => write!(f, "unanswered: {reason}"),
            Self::Refused { status, body, .. } => write!(f, "refused with {status}: {body}"),
        }
    }
}

/// An answer's body.
pub type Answer = Result<Bytes, S3Error>;

/// The URL of a request that is signed already, for clients that sign nothing: with `headers`, which they then have to send.
///
/// # Panics
/// Where a name is none of S3's, or the request is none of GET, PUT and POST, which begins an upload in parts.
pub fn presigned(
    endpoint: &str,
    bucket: &str,
    access: (&str, &str),
    method: &Method,
    key: &str,
    headers: &[(&str, &str)],
) -> String {
    let endpoint = endpoint.parse().expect("an endpoint is a URL");
    let bucket =
        Bucket::new(endpoint, UrlStyle::Path, bucket.to_owned(), "us-east-1").expect("a bucket name");
    let credentials = Credentials::new(access.0, access.1);
    match *method {
        Method::GET => sign(bucket.get_object(Some(&credentials), key), headers),
        Method::PUT => sign(bucket.put_object(Some(&credentials), key), headers),
        Method::POST => sign(bucket.create_multipart_upload(Some(&credentials), key), headers),
        _ => panic!("{method}: only GET, PUT and POST are signed here"),
    }
}

fn sign<'a>(mut action: impl S3Action<'a>, headers: &[(&'a str, &'a str)]) -> String {
    for (name, value) in headers {
        action.headers_mut().insert(*name, *value);
    }
    action.sign(SIGNED_FOR).to_string()
}

/// A client of one bucket.
#[expect(missing_debug_implementations, reason = "holds an access key")]
pub struct S3Client {
    address: SocketAddr,
    bucket: Bucket,
    credentials: Credentials,
    runtime: Runtime,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl S3Client {
    /// A client of `bucket` at a plain HTTP `address`.
    ///
    /// # Panics
    /// Where the name is no bucket's.
    pub fn new(address: SocketAddr, bucket: &str, access_key: &str, secret_key: &str) -> Self {
        let endpoint = format!("http://{address}").parse().expect("an address makes a URL");
        let bucket =
            Bucket::new(endpoint, UrlStyle::Path, bucket.to_owned(), "us-east-1").expect("a bucket name");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let credentials = Credentials::new(access_key, secret_key);
        Self { address, bucket, credentials, runtime, connection: None }
    }

    /// Ends the connection: the next request begins another one. After a seal the server closes those of before, and what is sent over
    /// one of them at that moment is not answered.
    pub fn hang_up(&mut self) {
        self.connection = None;
    }

    /// Stores an object.
    ///
    /// # Errors
    /// Where it was refused or not answered.
    pub fn put(&mut self, key: &str, body: Vec<u8>) -> Answer {
        let url = self.bucket.put_object(Some(&self.credentials), key).sign(SIGNED_FOR);
        self.send(Method::PUT, url.as_str(), body)
    }

    /// Reads an object; `None` where there is none.
    ///
    /// # Errors
    /// Where it was refused or not answered.
    pub fn get(&mut self, key: &str) -> Result<Option<Bytes>, S3Error> {
        let url = self.bucket.get_object(Some(&self.credentials), key).sign(SIGNED_FOR);
        match self.send(Method::GET, url.as_str(), Vec::new()) {
            Ok(body) => Ok(Some(body)),
            Err(S3Error::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes an object.
    ///
    /// # Errors
    /// Where it was refused or not answered.
    pub fn delete(&mut self, key: &str) -> Answer {
        let url = self.bucket.delete_object(Some(&self.credentials), key).sign(SIGNED_FOR);
        self.send(Method::DELETE, url.as_str(), Vec::new())
    }

    /// Stores an object in parts.
    ///
    /// # Errors
    /// Where a request was refused or not answered.
    ///
    /// # Panics
    /// Where an answer makes no sense.
    pub fn put_in_parts(&mut self, key: &str, parts: Vec<Vec<u8>>) -> Answer {
        let create = self.bucket.create_multipart_upload(Some(&self.credentials), key).sign(SIGNED_FOR);
        let created = self.send(Method::POST, create.as_str(), Vec::new())?;
        let created = rusty_s3::actions::CreateMultipartUpload::parse_response(
            std::str::from_utf8(&created).expect("an answer in UTF-8"),
        );
        let upload = created.expect("an upload id").upload_id().to_owned();
        let mut etags = Vec::new();
        for (number, part) in (1..).zip(parts) {
            // The ETag of a part is its MD5; the server is asked for it instead of computing it here.
            let url = self.bucket.upload_part(Some(&self.credentials), key, number, &upload).sign(SIGNED_FOR);
            etags.push(self.send_for_etag(url.as_str(), part)?);
        }
        let action = self.bucket.complete_multipart_upload(
            Some(&self.credentials),
            key,
            &upload,
            etags.iter().map(String::as_str),
        );
        let url = action.sign(SIGNED_FOR);
        self.send(Method::POST, url.as_str(), action.body().into_bytes())
    }

    /// Every key with this prefix.
    ///
    /// # Errors
    /// Where a request was refused or not answered.
    ///
    /// # Panics
    /// Where an answer makes no sense.
    pub fn list(&mut self, prefix: &str) -> Result<BTreeSet<String>, S3Error> {
        let mut keys = BTreeSet::new();
        let mut token = None;
        loop {
            let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
            action.with_prefix(prefix);
            if let Some(token) = token.take() {
                action.with_continuation_token(token);
            }
            let page = self.send(Method::GET, action.sign(SIGNED_FOR).as_str(), Vec::new())?;
            let page = ListObjectsV2::parse_response(&String::from_utf8_lossy(&page)).expect("a listing");
            keys.extend(page.contents.into_iter().map(|entry| entry.key));
            match page.next_continuation_token {
                Some(next) => token = Some(next),
                None => return Ok(keys),
            }
        }
    }

    fn send(&mut self, method: Method, url: &str, body: Vec<u8>) -> Answer {
        self.exchange(method, url, body).map(|(body, _)| body)
    }

    fn send_for_etag(&mut self, url: &str, body: Vec<u8>) -> Result<String, S3Error> {
        let (_, etag) = self.exchange(Method::PUT, url, body)?;
        etag.ok_or_else(|| S3Error::Unanswered("an answer without an ETag".to_owned()))
    }

    fn exchange(
        &mut self,
        method: Method,
        url: &str,
        body: Vec<u8>,
    ) -> Result<(Bytes, Option<String>), S3Error> {
        let path = url.splitn(4, '/').nth(3).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("/{path}"))
            .header(header::HOST, self.address.to_string())
            .body(Full::new(Bytes::from(body)))
            .expect("a request of valid parts");
        let connection = self.connection.take();
        let address = self.address;
        let sent = self.runtime.block_on(async {
            let unanswered = |error: &dyn fmt::Display| S3Error::Unanswered(error.to_string());
            // The connection's driver runs only in here: let it see what the server did meanwhile, such as closing.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            let mut connection = match connection {
                Some(connection) if connection.is_ready() && !connection.is_closed() => connection,
                _ => {
                    let stream = TcpStream::connect(address).await.map_err(|error| unanswered(&error))?;
                    stream.set_nodelay(true).map_err(|error| unanswered(&error))?;
                    let (sender, driver) =
                        handshake(TokioIo::new(stream)).await.map_err(|error| unanswered(&error))?;
                    tokio::spawn(driver);
                    sender
                }
            };
            connection.ready().await.map_err(|error| unanswered(&error))?;
            let answer = connection.send_request(request).await.map_err(|error| unanswered(&error))?;
            let (head, body) = answer.into_parts();
            let body = body.collect().await.map_err(|error| unanswered(&error))?.to_bytes();
            Ok((connection, head, body))
        });
        let (connection, head, body) = sent?;
        self.connection = Some(connection);
        let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if head.status == StatusCode::OK || head.status == StatusCode::NO_CONTENT {
            return Ok((body, text(header::ETAG)));
        }
        Err(S3Error::Refused {
            status: head.status.as_u16(),
            retry_after: text(header::RETRY_AFTER),
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}
