//! etcd by its JSON gateway: ranges, transactions and compactions as POST requests over mutual TLS, on one connection that stays.
//!
//! An answer that does not come within [`ATTEMPT_TIMEOUT`] is asked of the next member. After a failure writes fail at once, until
//! a read has succeeded: whoever writes holds the book, and renewals inside what is recorded must not wait for a store that is away.
//!
//! The connection is driven by a thread of its own. Callers block, and hold the book while they do: whoever waits for that blocks too,
//! and with all threads of the program's runtime blocked nobody would be left to read the answer, or to see that it does not come.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use identity::Endpoint;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio_rustls::TlsConnector;

use super::kv::{Item, Kv, KvError, Seen, Write, Written};

/// A member that is well answers within this, on a disk that is busy too.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);

/// All members together: a write holds the book for so long, once for each time that the store goes away.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// A call's answer is there by then, or there is nobody who gives it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Largest answer that is read: every value of 4096 volumes in base64, with room to spare.
const ANSWER_BYTES_MAX: usize = 128 << 20;

/// What gRPC calls "not now": deadline exceeded, unavailable.
const PASSING_CODES: [u64; 2] = [4, 14];

type Sender = SendRequest<Full<Bytes>>;

/// An etcd cluster, and the names in it that are ours.
pub(crate) struct Etcd {
    members: Arc<Members>,
    prefix: String,
    /// Where the members' thread takes calls. It is started with the first, when this program has given up its rights.
    calls: std::sync::Mutex<Option<mpsc::UnboundedSender<Call>>>,
    is_away: AtomicBool,
}

/// The members of the cluster.
struct Members {
    endpoints: Vec<Endpoint>,
    tls: Arc<rustls::ClientConfig>,
    connection: Mutex<Option<Sender>>,
    /// Which one is asked first.
    member: AtomicUsize,
}

/// One request, and where its answer is waited for.
struct Call {
    path: &'static str,
    body: Bytes,
    answer: std::sync::mpsc::SyncSender<Result<Answer, KvError>>,
}

/// What a member answered.
struct Answer {
    body: Bytes,
    /// Another one was sent the same before and did not answer: it may have done it.
    is_repeated: bool,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd")
            .field("endpoints", &self.members.endpoints)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Header {
    revision: Number,
}

/// A 64-bit number, which the gateway writes as text.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(try_from = "String")]
struct Number(u64);

impl TryFrom<String> for Number {
    type Error = std::num::ParseIntError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

#[derive(Deserialize)]
struct RangeAnswer {
    header: Header,
    #[serde(default)]
    kvs: Vec<KeyValue>,
    /// Of all in the range, also of those that are older than was asked for. Left out where it is zero.
    #[serde(default)]
    count: Number,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
    mod_revision: Number,
}

#[derive(Deserialize)]
struct TxnAnswer {
    header: Header,
    /// Left out where it is false.
    #[serde(default)]
    succeeded: bool,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
    #[serde(default)]
    code: u64,
}

impl Etcd {
    /// Connects when it is first asked. `prefix` goes before every name.
    pub(crate) fn new(endpoints: Vec<Endpoint>, tls: Arc<rustls::ClientConfig>, prefix: String) -> Self {
        let members = Members { endpoints, tls, connection: Mutex::new(None), member: AtomicUsize::new(0) };
        Self {
            members: Arc::new(members),
            prefix,
            calls: std::sync::Mutex::new(None),
            is_away: AtomicBool::new(false),
        }
    }

    fn name(&self, name: &str) -> String {
        BASE64.encode(format!("{}{name}", self.prefix))
    }

    /// Callers are where blocking is allowed.
    fn call<A: DeserializeOwned>(&self, path: &'static str, body: &Value) -> Result<(A, bool), KvError> {
        let nobody = |error: &dyn std::fmt::Display| KvError::Unavailable(format!("its thread: {error}"));
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let call = Call { path, body: Bytes::from(body.to_string()), answer };
        self.calls().map_err(|error| nobody(&error))?.send(call).map_err(|error| nobody(&error))?;
        let asked = answered.recv_timeout(ANSWER_TIMEOUT).unwrap_or_else(|error| Err(nobody(&error)));
        self.is_away.store(matches!(asked, Err(KvError::Unavailable(_))), Ordering::Relaxed);
        let Answer { body, is_repeated } = asked?;
        let answer = serde_json::from_slice(&body).map_err(|error| KvError::Malformed(error.to_string()))?;
        Ok((answer, is_repeated))
    }

    fn calls(&self) -> std::io::Result<mpsc::UnboundedSender<Call>> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(calls) = &*calls {
            return Ok(calls.clone());
        }
        let started = drive(Arc::clone(&self.members))?;
        *calls = Some(started.clone());
        Ok(started)
    }
}

/// Starts the thread that the members are asked from. It ends with the last sender.
fn drive(members: Arc<Members>) -> std::io::Result<mpsc::UnboundedSender<Call>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // No longer than there are callers: each waits for its answer.
    let (sender, mut calls) = mpsc::unbounded_channel::<Call>();
    let serve = async move {
        while let Some(call) = calls.recv().await {
            let members = Arc::clone(&members);
            tokio::spawn(async move {
                let asked = tokio::time::timeout(CALL_TIMEOUT, members.ask(call.path, call.body)).await;
                let asked =
                    asked.unwrap_or_else(|_| Err(KvError::Unavailable("no answer in time".to_owned())));
                // Whoever asked waits for longer than that.
                let _ = call.answer.send(asked);
            });
        }
    };
    std::thread::Builder::new().name("etcd".into()).spawn(move || runtime.block_on(serve))?;
    Ok(sender)
}

impl Members {
    async fn ask(&self, path: &str, body: Bytes) -> Result<Answer, KvError> {
        let mut connection = self.connection.lock().await;
        let mut failure = KvError::Unavailable("no member is configured".to_owned());
        let mut is_repeated = false;
        for _ in &self.endpoints {
            let endpoint = &self.endpoints[self.member.load(Ordering::Relaxed) % self.endpoints.len()];
            // Taken out, so that a call that is dropped on its way leaves no half read answer to the next.
            let kept = connection.take().filter(|sender| !sender.is_closed());
            let mut sent = false;
            let attempt = self.attempt(endpoint, kept, path, body.clone(), &mut sent);
            failure = match tokio::time::timeout(ATTEMPT_TIMEOUT, attempt).await {
                Ok(Ok((sender, body))) => {
                    *connection = Some(sender);
                    return Ok(Answer { body, is_repeated });
                }
                Ok(Err(error @ KvError::Unavailable(_))) => error,
                Ok(Err(error)) => return Err(error),
                Err(_) => KvError::Unavailable(format!("{endpoint} does not answer")),
            };
            is_repeated |= sent;
            self.member.fetch_add(1, Ordering::Relaxed);
        }
        Err(failure)
    }

    async fn attempt(
        &self,
        endpoint: &Endpoint,
        kept: Option<Sender>,
        path: &str,
        body: Bytes,
        sent: &mut bool,
    ) -> Result<(Sender, Bytes), KvError> {
        let unavailable =
            |error: &dyn std::fmt::Display| KvError::Unavailable(format!("{endpoint}: {error}"));
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect(endpoint).await.map_err(|error| unavailable(&error))?,
        };
        let request = Request::post(path)
            .header(header::HOST, format!("{}:{}", endpoint.host(), endpoint.port()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| KvError::Malformed(error.to_string()))?;
        *sent = true;
        let answer = sender.send_request(request).await.map_err(|error| unavailable(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| unavailable(&error))?.to_bytes();
        if status == StatusCode::OK { Ok((sender, body)) } else { Err(refusal(endpoint, status, &body)) }
    }

    async fn connect(&self, endpoint: &Endpoint) -> std::io::Result<Sender> {
        let host = ServerName::try_from(endpoint.host().to_owned()).map_err(std::io::Error::other)?;
        let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await?;
        stream.set_nodelay(true)?;
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(host, stream).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        // Ends with the sender, or with the member.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }
}

fn refusal(endpoint: &Endpoint, status: StatusCode, body: &[u8]) -> KvError {
    let Ok(Refusal { message, code }) = serde_json::from_slice(body) else {
        return KvError::Malformed(format!("{endpoint} answers {status}"));
    };
    let said = format!("{endpoint}: {message}");
    if PASSING_CODES.contains(&code) { KvError::Unavailable(said) } else { KvError::Refused(said) }
}

/// The first name past all that begin with `prefix`, whose last byte is no 255: it is ASCII.
fn past(prefix: &str) -> String {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    BASE64.encode(end)
}

impl Kv for Etcd {
    fn read(&self, since: u64) -> Result<Seen, KvError> {
        let range = json!({
            "key": BASE64.encode(&self.prefix),
            "range_end": past(&self.prefix),
            "min_mod_revision": (since + 1).to_string(),
        });
        let (answer, _): (RangeAnswer, _) = self.call("/v3/kv/range", &range)?;
        let malformed = |what: &str| KvError::Malformed(what.to_owned());
        let item = |found: KeyValue| {
            let name = BASE64.decode(found.key).map_err(|_| malformed("a name is not base64"))?;
            let name = String::from_utf8(name).map_err(|_| malformed("a name is no text"))?;
            let name =
                name.strip_prefix(&self.prefix).ok_or_else(|| malformed("a name of another prefix"))?;
            let value = BASE64.decode(found.value).map_err(|_| malformed("a value is not base64"))?;
            Ok(Item { name: name.to_owned(), value, revision: found.mod_revision.0 })
        };
        let items = answer.kvs.into_iter().map(item).collect::<Result<_, _>>()?;
        let count = usize::try_from(answer.count.0).map_err(|_| malformed("a count is too large"))?;
        Ok(Seen { items, revision: answer.header.revision.0, count })
    }

    fn write(&self, write: Write) -> Result<Written, KvError> {
        if self.is_away.load(Ordering::Relaxed) {
            return Err(KvError::Unavailable("it was away a moment ago".to_owned()));
        }
        let compare: Vec<_> = write
            .expected
            .iter()
            .map(|(name, revision)| {
                json!({"key": self.name(name), "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string()})
            })
            .collect();
        let puts = write.puts.iter().map(
            |(name, value)| json!({"request_put": {"key": self.name(name), "value": BASE64.encode(value)}}),
        );
        let deletes =
            write.deletes.iter().map(|name| json!({"request_delete_range": {"key": self.name(name)}}));
        let success: Vec<_> = puts.chain(deletes).collect();
        // What is done where the comparison fails counts to the request's size: a look for a long name that nothing has.
        let failure: Vec<_> = match write.ballast_bytes {
            0 => Vec::new(),
            bytes => vec![json!({"request_range": {"key": BASE64.encode(vec![0; bytes])}})],
        };
        let write = json!({"compare": compare, "success": success, "failure": failure});
        let (answer, is_repeated): (TxnAnswer, _) = self.call("/v3/kv/txn", &write)?;
        if answer.succeeded {
            Ok(Written::At(answer.header.revision.0))
        } else if is_repeated {
            // What it met may be itself, from the attempt before.
            Err(KvError::Unavailable("a write got no answer, and may have been done".to_owned()))
        } else {
            Ok(Written::Conflict)
        }
    }

    fn forget_before(&self, revision: u64) -> Result<(), KvError> {
        let compaction = json!({"revision": revision.to_string(), "physical": true});
        let _: (Value, _) = self.call("/v3/kv/compaction", &compaction)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two threads for all, and more who wait for the book than there are threads.
    #[test]
    fn an_answer_is_read_while_every_thread_of_the_program_waits() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let etcd = Etcd::new(
            vec![format!("https://{closed}").parse().unwrap()],
            identity::s3_client(&[rcgen::generate_simple_self_signed([]).unwrap().cert.der().clone()])
                .unwrap(),
            "/".to_owned(),
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let book = Arc::new(std::sync::Mutex::new(etcd));
        let (done, waited) = std::sync::mpsc::channel();
        for _ in 0..16 {
            let (book, done) = (Arc::clone(&book), done.clone());
            runtime.spawn(async move {
                let read = tokio::task::block_in_place(|| book.lock().unwrap().read(0));
                done.send(read).unwrap();
            });
        }
        for _ in 0..16 {
            let read = waited.recv_timeout(Duration::from_secs(60)).expect("nobody reads the answer");
            assert!(matches!(read, Err(KvError::Unavailable(_))), "{read:?}");
        }
    }

    /// A member that reads one request and answers with this body, or not at all.
    fn member(answer: Option<&'static str>) -> (Endpoint, rustls::pki_types::CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.der().clone(), made.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.clone()],
                rustls::pki_types::PrivateKeyDer::try_from(key).unwrap(),
            )
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
        std::thread::spawn(move || {
            let session = rustls::ServerConnection::new(Arc::new(config)).unwrap();
            let mut stream = rustls::StreamOwned::new(session, listener.accept().unwrap().0);
            let mut read = |count: usize| {
                let mut bytes = vec![0; count];
                std::io::Read::read_exact(&mut stream, &mut bytes).unwrap();
                bytes
            };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.extend(read(1));
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            read(length.parse().unwrap());
            match answer {
                Some(body) => {
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
                }
                None => std::thread::sleep(2 * CALL_TIMEOUT),
            }
        });
        (endpoint, certificate)
    }

    #[test]
    fn a_write_that_was_sent_twice_and_met_a_conflict_may_have_been_done() {
        let conflict = Some(r#"{"header":{"revision":"7"}}"#);
        let write = || Write { puts: vec![("a".to_owned(), Vec::new())], ..Write::default() };
        let (silent, of_silent) = member(None);
        let (other, of_other) = member(conflict);
        let tls = identity::s3_client(&[of_silent, of_other]).unwrap();
        let written = Etcd::new(vec![silent, other], tls, "/".to_owned()).write(write());
        assert!(
            matches!(&written, Err(KvError::Unavailable(why)) if why.contains("may have been done")),
            "{written:?}"
        );
        // Not so where the first could not be reached at all.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (other, of_other) = member(conflict);
        let endpoints = vec![format!("https://{closed}").parse().unwrap(), other];
        let etcd = Etcd::new(endpoints, identity::s3_client(&[of_other]).unwrap(), "/".to_owned());
        assert_eq!(etcd.write(write()), Ok(Written::Conflict));
    }

    #[test]
    fn a_prefix_ends_before_the_next_text() {
        assert_eq!(past("/nightlatch/"), BASE64.encode("/nightlatch0"));
    }

    #[test]
    fn what_passes_is_told_from_what_is_refused() {
        let endpoint: Endpoint = "https://127.0.0.1:2379".parse().unwrap();
        let answer = |body: &str| refusal(&endpoint, StatusCode::SERVICE_UNAVAILABLE, body.as_bytes());
        let lost = answer(r#"{"error":"etcdserver: no leader","message":"etcdserver: no leader","code":14}"#);
        assert!(matches!(lost, KvError::Unavailable(_)), "{lost}");
        let full = answer(r#"{"message":"etcdserver: mvcc: database space exceeded","code":8}"#);
        assert!(matches!(full, KvError::Refused(_)), "{full}");
        assert!(matches!(answer("<html>"), KvError::Malformed(_)));
    }

    #[test]
    fn answers_leave_out_what_is_zero_and_write_numbers_as_text() {
        let range: RangeAnswer = serde_json::from_str(r#"{"header":{"revision":"4"}}"#).unwrap();
        assert_eq!((range.header.revision.0, range.kvs.len(), range.count.0), (4, 0, 0));
        let txn: TxnAnswer = serde_json::from_str(r#"{"header":{"revision":"9"},"responses":[]}"#).unwrap();
        assert!(!txn.succeeded);
    }
}
