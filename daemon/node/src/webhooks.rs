//! Webhooks: a thread for each, the only ones of the node that dial for the S3 head, and only where the configuration says.
//!
//! The S3 head puts messages together and signs them on the runtime's threads, which may not dial. A thread here has neither the store
//! nor a key: it is confined as a source's is, to one port and the files in which names are looked up.
//!
//! Invariants:
//! - A message is handed over once the connection is there, and a request is one connection: a wipe finds no message, no TLS state
//!   and no answer with a thread that waits.
//! - Whoever gives up on a message ends its connection at once, and takes back what was not handed over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use admin::api;
use anyhow::Context;
use config::{S3WebhookConfig, WebhookUrl};
use objects::{Store, StoreError};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use s3_server::{Posted, Webhook, WebhookMessage, WebhookSecret, WebhookState, WebhookTransport};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::control::unix_seconds;
use crate::lock::lock;
use crate::sources::{self, Reach};

/// For each read and write.
const IO_TIMEOUT: Duration = Duration::from_secs(10);

/// For all of them: a receiver that answers byte by byte holds up nobody's queue but for so long.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// What is read of an answer: its first line is all that counts.
const ANSWER_BYTES_MAX: usize = 8 * 1024;

/// Time to the second attempt.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// The bytes of a secret in its file, with room for a line's end.
const SECRET_FILE_BYTES_MAX: u64 = 1024;

/// Reads what each webhook needs and starts its thread.
pub(crate) fn open(webhooks: &[S3WebhookConfig]) -> anyhow::Result<Vec<Webhook>> {
    webhooks.iter().map(open_one).collect()
}

fn open_one(webhook: &S3WebhookConfig) -> anyhow::Result<Webhook> {
    let S3WebhookConfig { name, url, secret_file, ca, give_up_after_s } = webhook;
    let secret = read_secret(secret_file)
        .with_context(|| format!("the secret of the webhook {name} ({})", secret_file.display()))?;
    let tls = url
        .has_tls
        .then(|| identity::private_client(ca, None))
        .transpose()
        .with_context(|| format!("the issuers for the webhook {name}; name the receiver's with `ca`"))?;
    let transport = Transport::start(name, url.clone(), tls)
        .with_context(|| format!("the thread of the webhook {name} could not be started"))?;
    Ok(Webhook {
        name: name.clone(),
        secret,
        give_up_after: Duration::from_secs(*give_up_after_s),
        retry_first: RETRY_FIRST,
        transport: Box::new(transport),
    })
}

fn read_secret(path: &std::path::Path) -> anyhow::Result<WebhookSecret> {
    use std::os::unix::fs::PermissionsExt;
    const OTHERS: u32 = 0o077;
    let file = std::fs::File::open(path)?;
    if file.metadata()?.permissions().mode() & OTHERS != 0 {
        anyhow::bail!("others may read it: chmod 600 it, and make another secret");
    }
    let capacity = usize::try_from(SECRET_FILE_BYTES_MAX).unwrap_or_default();
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    file.take(SECRET_FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(WebhookSecret::parse(&text)?)
}

/// Every webhook that is configured, or that something waits for.
pub(crate) fn list(
    store: &Store,
    states: &BTreeMap<String, WebhookState>,
) -> Result<Vec<api::Webhook>, StoreError> {
    let counts: BTreeMap<_, _> = store.event_counts()?.into_iter().collect();
    let names: BTreeSet<&String> = states.keys().chain(counts.keys()).collect();
    let webhook = |name: &String| {
        let state = states.get(name).cloned();
        let counts = counts.get(name).copied().unwrap_or_default();
        let configured = state.is_some();
        let WebhookState { delivered, last_delivered, trouble } = state.unwrap_or_default();
        api::Webhook {
            name: name.clone(),
            configured,
            waiting: counts.waiting,
            dead: counts.dead,
            delivered,
            last_delivered_unix_s: last_delivered.map(unix_seconds),
            trouble,
        }
    };
    Ok(names.into_iter().map(webhook).collect())
}

pub(crate) fn change(
    store: &Store,
    states: &BTreeMap<String, WebhookState>,
    change: &api::WebhookChange,
) -> Result<api::WebhookChanged, StoreError> {
    let notifications = match change {
        api::WebhookChange::Retry { webhook } => store.retry_events(webhook)?,
        api::WebhookChange::Discard { webhook } => {
            store.discard_events(webhook, !states.contains_key(webhook))?
        }
    };
    Ok(api::WebhookChanged { notifications })
}

/// A message between those who want it sent and the thread that sends it.
#[derive(Default)]
struct Handover {
    /// Until the connection is there.
    message: Option<WebhookMessage>,
    /// While the message is on it.
    connection: Option<TcpStream>,
    /// Nobody wants it sent any more.
    given_up: bool,
}

struct Job {
    handover: Arc<Mutex<Handover>>,
    answer: oneshot::Sender<Result<u16, String>>,
}

/// Dropped, it gives up on a message that was not answered.
struct Interest(Arc<Mutex<Handover>>);

impl Drop for Interest {
    fn drop(&mut self) {
        let mut handover = lock(&self.0);
        handover.given_up = true;
        handover.message = None;
        if let Some(connection) = handover.connection.take() {
            // One that is closed already need not be.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// The way to one webhook.
struct Transport {
    jobs: Mutex<Sender<Job>>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

impl WebhookTransport for Transport {
    fn post(&self, message: WebhookMessage) -> Posted<'_> {
        let handover = Arc::new(Mutex::new(Handover { message: Some(message), ..Handover::default() }));
        let (answer, answered) = oneshot::channel();
        let interest = Interest(Arc::clone(&handover));
        let sent = lock(&self.jobs).send(Job { handover, answer });
        Box::pin(async move {
            let _interest = interest;
            let ended = || Err("the thread that sends has ended; the log says why".to_owned());
            match sent {
                Ok(()) => answered.await.unwrap_or_else(|_| ended()),
                Err(_) => ended(),
            }
        })
    }
}

impl Transport {
    fn start(name: &str, url: WebhookUrl, tls: Option<Arc<ClientConfig>>) -> io::Result<Self> {
        let (jobs, receiver) = channel();
        let webhook = name.to_owned();
        std::thread::Builder::new().name(format!("webhook {name}")).spawn(move || {
            if let Err(error) = Reach::server(&url.authority()).confine() {
                tracing::error!(webhook, %error, "a webhook's thread cannot be confined, and does not run");
                return;
            }
            run(&receiver, &url, tls.as_ref());
        })?;
        Ok(Self { jobs: Mutex::new(jobs) })
    }
}

/// Sends what is asked for, until nobody asks any more.
fn run(jobs: &Receiver<Job>, url: &WebhookUrl, tls: Option<&Arc<ClientConfig>>) {
    for Job { handover, answer } in jobs {
        let status = post(url, tls, &handover);
        lock(&handover).connection = None;
        // Nobody waits who has given up.
        let _ = answer.send(status.map_err(|error| format!("{}: {error}", url.authority())));
        thread_wipe::this_thread();
    }
}

fn post(url: &WebhookUrl, tls: Option<&Arc<ClientConfig>>, handover: &Mutex<Handover>) -> io::Result<u16> {
    let tcp = connect(url)?;
    let other = tcp.try_clone()?;
    {
        let mut handover = lock(handover);
        if handover.given_up {
            return Err(io::ErrorKind::Interrupted.into());
        }
        handover.connection = Some(other);
    }
    let plain = Plain { stream: tcp, until: Instant::now() + EXCHANGE_TIMEOUT };
    match tls {
        None => exchange(plain, url, handover),
        Some(config) => {
            let name = ServerName::try_from(url.host.clone()).map_err(io::Error::other)?;
            let mut session = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
            let mut plain = plain;
            while session.is_handshaking() {
                session.complete_io(&mut plain)?;
            }
            exchange(StreamOwned::new(session, plain), url, handover)
        }
    }
}

fn connect(url: &WebhookUrl) -> io::Result<TcpStream> {
    let stream = sources::connect((url.host.as_str(), url.port))?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    Ok(stream)
}

/// A stream that writes one piece at a time: the thread may make no other call. It ends at its time, however much moves.
struct Plain {
    stream: TcpStream,
    until: Instant,
}

impl Plain {
    fn in_time(&self) -> io::Result<()> {
        if Instant::now() < self.until { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}

impl Read for Plain {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.in_time()?;
        self.stream.read(bytes)
    }
}

impl Write for Plain {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.in_time()?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes the message over, sends it, and reads the status of the answer.
fn exchange(mut stream: impl Read + Write, url: &WebhookUrl, handover: &Mutex<Handover>) -> io::Result<u16> {
    let message = lock(handover).message.take().ok_or(io::ErrorKind::Interrupted)?;
    let mut head =
        format!("POST {} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", url.path, url.authority());
    for (name, value) in &message.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("user-agent: Nightlatch\r\ncontent-length: {}\r\n\r\n", message.body.len()));
    stream.write_all(head.as_bytes())?;
    stream.write_all(&message.body)?;
    stream.flush()?;
    read_status(stream)
}

/// The status of the final answer (RFC 9112, section 4); informational ones go before it.
fn read_status(mut stream: impl Read) -> io::Result<u16> {
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    loop {
        while let Some(end) = find(&answer, b"\r\n\r\n") {
            let status = status_of(&answer).ok_or(io::ErrorKind::InvalidData)?;
            if status >= 200 {
                return Ok(status);
            }
            answer.drain(..end + 4);
        }
        // A receiver may close without the blank line: the first line is enough then.
        let read = stream.read(&mut piece)?;
        answer.extend_from_slice(&piece[..read]);
        if read == 0 || answer.len() > ANSWER_BYTES_MAX {
            let status = status_of(&answer).filter(|status| *status >= 200);
            return status.ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn status_of(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(&answer[..find(answer, b"\r\n")?]).ok()?;
    let status = line.strip_prefix("HTTP/1.")?.get(2..5)?;
    status.parse().ok().filter(|status| (100..=599).contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_drips_is_given_up_at_its_time() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let drips = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let stream = TcpStream::connect(address).unwrap();
        let until = Instant::now() + Duration::from_millis(300);
        let status = read_status(Plain { stream, until });
        assert_eq!(status.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drips.join().unwrap();
    }

    #[test]
    fn the_final_status_of_an_answer_counts() {
        let status = |text: &str| read_status(text.as_bytes());
        assert_eq!(status("HTTP/1.1 204 No Content\r\n\r\n").unwrap(), 204);
        assert_eq!(status("HTTP/1.0 500 \r\ncontent-length: 3\r\n\r\nbad").unwrap(), 500);
        assert_eq!(status("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\na: b\r\n\r\n").unwrap(), 200);
        assert_eq!(status("HTTP/1.1 200 OK\r\n").unwrap(), 200, "closed in its head");
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(10 * ANSWER_BYTES_MAX));
        assert_eq!(status(&endless).unwrap(), 200, "no more is read than it takes");
        for bad in [
            "",
            "HTTP/1.1 200 OK",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 9\r\n\r\n",
            "HTTP/1.1 100 C\r\n\r\n",
            "ok\r\n\r\n",
        ] {
            assert!(status(bad).is_err(), "{bad:?}");
        }
    }
}
