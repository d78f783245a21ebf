//! One client's transmission phase: requests are read, carried out side by side, and answered as they finish.
//!
//! The connection's task reads; the export's [`crate::lane`] carries requests out on threads that may wait for a
//! device; the [`crate::outbox`] sends what comes of it. No executor thread waits for a device.
//!
//! Invariants:
//! - What a connection holds is bounded: a request takes a slot before its header is read, and its payload's bytes
//!   before a buffer is made; both return when the last byte of the reply has left. A client that does not read its
//!   replies is not read from, and nobody else notices.
//! - A write reaches the volume only when its whole payload is there. A refused write's payload is consumed.
//! - Once the key is gone, a connection of a holding export ends at once and nothing more is answered.
//! - After `DISC`, the client's end of stream, a malformed header or a drain nothing more is read, and what is in
//!   flight is answered.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use crate::exports::{LiveExport, OnSeal};
use crate::lane::Job;
use crate::limits::{DISCARD_STEP_BYTES, Limits, PAYLOAD_BYTES_MAX, READ_AHEAD_BYTES, SEAL_ANSWER_TIME};
use crate::metrics::Ended;
use crate::negotiation::Features;
use crate::operation::{execute, refusal_of};
use crate::outbox::{Hold, Outbox, PlainSink, Sink};
use crate::reply::{Outcome, ReplyTo};
use crate::request::{Asked, FILTER_BYTES, Incoming, Refusal, Request};
use crate::wire::{Command, EXTENDED_REQUEST_BYTES, Errno, RequestHeader};

/// An accepted socket.
pub(crate) type Socket = Either<TcpStream, UnixStream>;

/// A connection, in clear or under TLS.
pub(crate) enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

type Source = Box<dyn AsyncRead + Send + Sync + Unpin>;

impl Stream {
    fn split(self) -> (Source, Sink) {
        match self {
            Self::Plain(Either::Left(stream)) => {
                let (source, sink) = stream.into_split();
                (Box::new(source), Sink::Plain(Arc::new(PlainSink::Tcp(sink))))
            }
            Self::Plain(Either::Right(stream)) => {
                let (source, sink) = stream.into_split();
                (Box::new(source), Sink::Plain(Arc::new(PlainSink::Unix(sink))))
            }
            Self::Tls(stream) => {
                let (source, sink) = tokio::io::split(*stream);
                (Box::new(source), Sink::Tls(Box::new(sink)))
            }
        }
    }
}

/// Why a transmission phase ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Closed {
    #[error("the client disconnected")]
    Disconnected,
    #[error("the client closed the connection without a disconnect request")]
    EndOfStream,
    #[error("the client sent a request that does not start with the request magic")]
    Malformed,
    #[error("the client announced a payload that is longer than a server has to skip")]
    Oversize,
    #[error("the server is draining")]
    Drained,
    #[error("the export was sealed")]
    Sealed,
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    #[error("the client went without reading its last replies")]
    Lingered,
}

/// What a connection shares with the others of the server.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) draining: CancellationToken,
    pub(crate) limits: Limits,
}

/// Serves `export` until the connection ends.
pub(crate) async fn serve(
    stream: Stream,
    export: Arc<LiveExport>,
    features: Features,
    shared: &Shared,
) -> Closed {
    let _counted = export.connect();
    let (source, sink) = stream.split();
    let outbox = Arc::new(Outbox::new(Arc::clone(&export), features.style, &sink));
    let _closed_at_the_end = CloseOnDrop(Arc::clone(&outbox));
    let reader = Reader {
        stream: BufReader::with_capacity(READ_AHEAD_BYTES, source),
        export: Arc::clone(&export),
        features,
        outbox: Arc::clone(&outbox),
        slots: Arc::new(Semaphore::new(shared.limits.requests_in_flight_max.max(1))),
        payload: Arc::new(Semaphore::new(payload_budget(&shared.limits))),
    };
    let both = read_and_answer(reader, sink, &outbox, shared);
    match export.on_seal {
        OnSeal::Fail => tokio::select! {
            biased;
            () = sealed_for(&export, SEAL_ANSWER_TIME) => Closed::Sealed,
            closed = both => closed,
        },
        OnSeal::Hold => tokio::select! {
            biased;
            () = export.sealed() => Closed::Sealed,
            closed = both => closed,
        },
    }
}

async fn sealed_for(export: &LiveExport, time: Duration) {
    export.sealed().await;
    tokio::time::sleep(time).await;
}

/// However the connection ends, dropped in the middle included: operations that still run hold the outbox, and must
/// not hold the socket.
struct CloseOnDrop(Arc<Outbox>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// At least one request of the longest kind must fit, or it would wait for ever.
fn payload_budget(limits: &Limits) -> usize {
    usize::try_from(limits.bytes_in_flight_max.max(PAYLOAD_BYTES_MAX)).unwrap_or(usize::MAX)
}

/// Reads until there is nothing more to read, then until the last answer has left.
async fn read_and_answer(mut reader: Reader, sink: Sink, outbox: &Outbox, shared: &Shared) -> Closed {
    let mut sending = pin!(outbox.run(sink));
    let closed = tokio::select! {
        biased;
        sent = &mut sending => return sent.err().unwrap_or(Closed::Disconnected),
        () = shared.draining.cancelled() => Closed::Drained,
        closed = reader.run() => closed,
    };
    outbox.reading_done();
    // An operation may take its time. Once the last is done, the client has the linger time to read the answers.
    let mut all_answered = false;
    loop {
        match tokio::time::timeout(shared.limits.linger_time_max, &mut sending).await {
            Ok(Ok(())) => return closed,
            Ok(Err(error)) => return error,
            Err(_elapsed) if all_answered => return Closed::Lingered,
            Err(_elapsed) => all_answered = outbox.all_answered(),
        }
    }
}

struct Reader {
    stream: BufReader<Source>,
    export: Arc<LiveExport>,
    features: Features,
    outbox: Arc<Outbox>,
    slots: Arc<Semaphore>,
    payload: Arc<Semaphore>,
}

impl Reader {
    async fn run(&mut self) -> Closed {
        loop {
            if let Err(closed) = self.one().await {
                return closed;
            }
        }
    }

    /// Takes one request and sets it going.
    async fn one(&mut self) -> Result<(), Closed> {
        let slot = acquire(&self.slots, 1).await?;
        let header = self.header().await?;
        let incoming = Incoming::parse(header, self.export.shape(), self.features);
        let hold = Hold { _slot: slot, payload: None };
        match incoming.asked {
            Asked::Disconnect => return Err(Closed::Disconnected),
            Asked::Oversize => return Err(Closed::Oversize),
            Asked::Filtered(status) => {
                let mut pending = self.pending(&incoming, hold);
                let mut payload = [0; FILTER_BYTES];
                self.fill(&mut payload).await?;
                match status.with_payload(&payload) {
                    Ok(request) => {
                        self.export.lane.submit(Operation { pending, request, payload: Vec::new() });
                    }
                    Err(refusal) => pending.answer(Some(Outcome::Refused(refusal)), 0),
                }
            }
            Asked::Refused(refusal) => {
                let mut pending = self.pending(&incoming, hold);
                self.discard(incoming.payload_bytes).await?;
                pending.answer(Some(Outcome::Refused(refusal)), 0);
            }
            Asked::Accepted(request) => {
                let mut pending = self.pending(&incoming, hold);
                let payload_bytes = request.payload_bytes();
                if payload_bytes > 0 {
                    pending.hold_payload(acquire(&self.payload, payload_bytes).await?);
                }
                let payload = self.payload(incoming.payload_bytes).await?;
                self.export.lane.submit(Operation { pending, request, payload });
            }
        }
        Ok(())
    }

    fn pending(&self, incoming: &Incoming, hold: Hold) -> Pending {
        self.outbox.expect();
        Pending {
            to: ReplyTo { cookie: incoming.cookie, offset: incoming.offset },
            command: incoming.command,
            export: Arc::clone(&self.export),
            outbox: Arc::clone(&self.outbox),
            hold: Some(hold),
            began: self.export.metrics.of(incoming.command).begin(),
        }
    }

    async fn header(&mut self) -> Result<RequestHeader, Closed> {
        let style = self.features.style;
        let mut bytes = [0; EXTENDED_REQUEST_BYTES];
        let header = &mut bytes[..style.request_bytes()];
        self.fill(header).await?;
        RequestHeader::decode(header, style).ok_or(Closed::Malformed)
    }

    async fn fill(&mut self, out: &mut [u8]) -> Result<(), Closed> {
        match self.stream.read_exact(out).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Closed::EndOfStream),
            Err(error) => Err(Closed::Broken(error)),
        }
    }

    /// The whole payload. Its length was held against the limit and the budget.
    async fn payload(&mut self, len: u32) -> Result<Vec<u8>, Closed> {
        let len = usize::try_from(len).unwrap_or(0);
        let mut payload = Vec::with_capacity(len);
        while payload.len() < len {
            let missing = len - payload.len();
            if self.stream.read_buf(&mut (&mut payload).limit(missing)).await? == 0 {
                return Err(Closed::EndOfStream);
            }
        }
        Ok(payload)
    }

    /// Reads and drops `len` bytes.
    async fn discard(&mut self, len: u32) -> Result<(), Closed> {
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(());
        }
        let mut step = vec![0; left.min(DISCARD_STEP_BYTES)];
        while left > 0 {
            let wanted = left.min(step.len());
            match self.stream.read(&mut step[..wanted]).await? {
                0 => return Err(Closed::EndOfStream),
                read => left -= read,
            }
        }
        Ok(())
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> Result<OwnedSemaphorePermit, Closed> {
    // The semaphores are never closed.
    Arc::clone(semaphore).acquire_many_owned(permits).await.map_err(|_closed| Closed::Drained)
}

/// An accepted request on its way through a thread that may wait for the device.
#[derive(Debug)]
pub(crate) struct Operation {
    pending: Pending,
    request: Request,
    payload: Vec<u8>,
}

impl Job for Operation {
    fn run(self) {
        let Self { mut pending, request, payload } = self;
        let outcome = carry_out(&pending.export, request, &payload);
        drop(payload);
        pending.answer(outcome, request.payload_bytes());
    }
}

/// Runs the operation; `None` where the key was gone.
fn carry_out(export: &LiveExport, request: Request, payload: &[u8]) -> Option<Outcome> {
    if export.is_sealed() {
        return None;
    }
    let error = match execute(&export.volume, request, payload) {
        Ok(outcome) => return Some(outcome),
        Err(error) => error,
    };
    let refusal = refusal_of(&error, request)?;
    if let (Errno::Io, Some(failures)) = (refusal.errno, export.count_failure()) {
        tracing::error!(
            export = %export.label,
            failures,
            error = &error as &dyn std::error::Error,
            "the volume failed a request"
        );
    }
    Some(Outcome::Refused(refusal))
}

/// A request that has no answer yet. One that is dropped without an answer has panicked, which the client sees as an
/// input/output error, or was cut, which it does not see.
#[derive(Debug)]
struct Pending {
    to: ReplyTo,
    command: Option<Command>,
    export: Arc<LiveExport>,
    outbox: Arc<Outbox>,
    /// Gone once the answer is on its way.
    hold: Option<Hold>,
    began: Instant,
}

impl Pending {
    fn hold_payload(&mut self, permit: OwnedSemaphorePermit) {
        if let Some(hold) = &mut self.hold {
            hold.payload = Some(permit);
        }
    }

    fn answer(&mut self, outcome: Option<Outcome>, payload_bytes: u32) {
        let Some(mut hold) = self.hold.take() else { return };
        if !matches!(outcome, Some(Outcome::Data(_))) {
            hold.payload = None;
        }
        let ended = match outcome {
            Some(Outcome::Refused(_)) => Ended::Refused,
            Some(_) => Ended::Answered { payload_bytes },
            None => Ended::Unanswered,
        };
        self.export.metrics.of(self.command).end(self.began, ended);
        self.outbox.answer(self.to, outcome, hold);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.hold.is_none() {
            return;
        }
        if std::thread::panicking() {
            let refusal = Refusal { errno: Errno::Io, message: "the server failed; see its log" };
            self.answer(Some(Outcome::Refused(refusal)), 0);
        } else {
            self.export.metrics.of(self.command).end(self.began, Ended::Unanswered);
            self.outbox.withdraw();
        }
    }
}
