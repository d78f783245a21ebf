//! The client: as many connections as the cell has clients, each with one request at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::cells::{Cell, Operation};
use crate::servers::{BUCKET, Server};
use crate::signature::{PAYLOAD, Signer};

/// What one turn of a server in a cell came to.
pub(crate) struct Run {
    /// Requests a second.
    pub(crate) rate: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// One connection, signing for itself.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    signer: Signer,
    host: String,
}

impl Connection {
    async fn open(server: &Server) -> Result<Self> {
        let host = server.host();
        let stream = TcpStream::connect(&host).await.with_context(|| format!("connecting to {host}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, signer: Signer::new(server.access(), server.region(), &host), host })
    }

    /// One request to its end; the bytes of the answer's body.
    async fn ask(&mut self, method: &'static str, path: &str, query: &str, body: Bytes) -> Result<usize> {
        let (date, authorization) = self.signer.sign(method, path, query);
        let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let request = hyper::Request::builder()
            .method(method)
            .uri(uri)
            .header("host", &self.host)
            .header("x-amz-date", date)
            .header("x-amz-content-sha256", PAYLOAD)
            .header("authorization", authorization)
            .header("content-length", body.len())
            .body(Full::new(body))?;
        self.sender.ready().await?;
        let mut answer = self.sender.send_request(request).await?;
        let mut length = 0;
        let status = answer.status();
        let mut refusal = Vec::new();
        while let Some(frame) = answer.frame().await {
            if let Ok(data) = frame?.into_data() {
                length += data.len();
                if !status.is_success() {
                    refusal.extend_from_slice(&data);
                }
            }
        }
        ensure!(status.is_success(), "{method} {path}: {status} {}", String::from_utf8_lossy(&refusal));
        Ok(length)
    }

    async fn put(&mut self, key: &str, body: Bytes) -> Result<()> {
        self.ask("PUT", &format!("/{BUCKET}/{key}"), "", body).await.map(drop)
    }
}

/// Bytes that no compression makes shorter.
fn body(len: usize) -> Bytes {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    Bytes::from_iter(words).slice(..len)
}

fn key(cell: &Cell, number: usize) -> String {
    format!("{}/{:05}", cell.bytes, number % cell.ring())
}

/// Puts what the cells read.
pub(crate) async fn fill(server: &Server, cells: &[&Cell]) -> Result<()> {
    let mut connection = Connection::open(server).await?;
    if server.needs_bucket() {
        connection.ask("PUT", &format!("/{BUCKET}"), "", Bytes::new()).await?;
    }
    let mut done = Vec::new();
    for cell in cells.iter().filter(|cell| cell.operation != Operation::Delete) {
        if done.contains(&cell.bytes) {
            continue;
        }
        done.push(cell.bytes);
        let body = body(cell.bytes);
        let mut workers = JoinSet::new();
        for worker in 0..8 {
            let mut connection = Connection::open(server).await?;
            let (body, ring) = (body.clone(), cell.ring());
            let keys: Vec<String> = (worker..ring).step_by(8).map(|number| key(cell, number)).collect();
            workers.spawn(async move {
                for key in keys {
                    connection.put(&key, body.clone()).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
    }
    Ok(())
}

/// Objects that a client puts before it removes them.
const DELETES_AT_ONCE: usize = 50;

async fn work(
    server: Connection,
    cell: &'static Cell,
    next: Arc<AtomicUsize>,
    body: Bytes,
    (worker, length): (usize, Duration),
) -> Result<(Vec<f64>, Duration)> {
    let mut connection = server;
    let mut times = Vec::new();
    let mut counted = Duration::ZERO;
    while counted < length {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let path = format!("/{BUCKET}/{}", key(cell, number));
        if cell.operation == Operation::Delete {
            for object in 0..DELETES_AT_ONCE {
                connection.put(&format!("gone/{worker}/{object}"), body.clone()).await?;
            }
            for object in 0..DELETES_AT_ONCE {
                let began = Instant::now();
                let path = format!("/{BUCKET}/gone/{worker}/{object}");
                connection.ask("DELETE", &path, "", Bytes::new()).await?;
                times.push(began.elapsed().as_secs_f64() * 1e6);
                counted += began.elapsed();
            }
            continue;
        }
        let began = Instant::now();
        match cell.operation {
            Operation::List => {
                let query = format!("list-type=2&max-keys=1000&prefix={}%2F", cell.bytes);
                let length = connection.ask("GET", &format!("/{BUCKET}"), &query, Bytes::new()).await?;
                ensure!(length > 100_000, "a page of 1,000 keys has {length} bytes only");
            }
            Operation::Get => expect(cell, connection.ask("GET", &path, "", Bytes::new()).await?)?,
            Operation::Mixed if !number.is_multiple_of(3) => {
                expect(cell, connection.ask("GET", &path, "", Bytes::new()).await?)?;
            }
            _ => connection.ask("PUT", &path, "", body.clone()).await.map(drop)?,
        }
        times.push(began.elapsed().as_secs_f64() * 1e6);
        counted += began.elapsed();
    }
    Ok((times, counted))
}

fn expect(cell: &Cell, length: usize) -> Result<()> {
    ensure!(length == cell.bytes, "an object of {} bytes came back with {length}", cell.bytes);
    Ok(())
}

/// One turn of a server in a cell.
pub(crate) async fn run(server: &Server, cell: &'static Cell, seconds: f64) -> Result<Run> {
    let (next, body) = (Arc::new(AtomicUsize::new(0)), body(cell.bytes));
    let mut workers = JoinSet::new();
    let length = Duration::from_secs_f64(seconds);
    for worker in 0..cell.clients {
        let connection = Connection::open(server).await?;
        workers.spawn(work(connection, cell, Arc::clone(&next), body.clone(), (worker, length)));
    }
    let (mut times, mut rate) = (Vec::new(), 0.0);
    while let Some(ended) = workers.join_next().await {
        let (found, counted) = ended??;
        #[expect(clippy::cast_precision_loss, reason = "counts of one run stay far below 2^52")]
        let done = found.len() as f64;
        rate += done / counted.as_secs_f64();
        times.extend(found);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    Ok(Run { rate, p50_us: at(50), p99_us: at(99) })
}
