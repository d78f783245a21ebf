//! One client's transmission phase: requests are read, carried out side by side, and answered as they finish.
//!
//! A thread that may wait reads ([`crate::reader`]) and carries out what is quick; the export's [`crate::lane`] carries out
//! the rest, on threads that may wait for a device; the [`crate::outbox`] sends what comes of it. No executor thread waits
//! for a device.
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
use std::net::Shutdown;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use crate::access::Peer;
use crate::buffers::Buffer;
use crate::exports::{Guest, LiveExport, OnSeal};
use crate::lane::Job;
use crate::limits::{HELD_BACK_PAYLOAD_BYTES_MAX, Limits, PAYLOAD_BYTES_MAX};
use crate::metrics::Ended;
use crate::negotiation::Features;
use crate::operation::{execute, refusal_of};
use crate::outbox::{Hold, Outbox};
use crate::reader::{Baton, Reader};
use crate::reply::{Outcome, ReplyTo};
use crate::request::{READ_ONLY, Refusal, Request};
use crate::stream::{Source, Wire};
use crate::wire::{Command, Errno};

/// An accepted socket.
pub(crate) type Socket = Either<TcpStream, UnixStream>;

/// A connection, in clear or under TLS.
pub(crate) enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    fn into_wire(self) -> io::Result<Wire> {
        match self {
            Self::Plain(socket) => Wire::new(socket, None),
            Self::Tls(stream) => {
                let (socket, session) = stream.into_inner();
                Wire::new(socket, Some(session))
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
    #[error("the export is no more for this client")]
    ShutOut,
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
    peer: &Peer,
    shared: &Shared,
) -> Closed {
    let _counted = export.connect();
    let wire = match stream.into_wire() {
        Ok(wire) => Arc::new(wire),
        Err(error) => return Closed::Broken(error),
    };
    let guest = Guest::new(peer.clone());
    let outbox = Arc::new(Outbox::new(Arc::clone(&export), guest, features.style, Arc::clone(&wire)));
    let baton = Baton::new(Arc::clone(&wire));
    let (ended, reading_ended) = oneshot::channel();
    let _ends = EndOnDrop { outbox: Arc::clone(&outbox), baton: Arc::clone(&baton), wire: Arc::clone(&wire) };
    baton.start(Box::new(Reader {
        source: Source::new(Arc::clone(&wire)),
        export: Arc::clone(&export),
        features,
        outbox: Arc::clone(&outbox),
        slots: Arc::new(Semaphore::new(shared.limits.requests_in_flight_max.max(1))),
        payload: Arc::new(Semaphore::new(payload_budget(&shared.limits))),
        runtime: Handle::current(),
        ended: Some(ended),
    }));
    let both = read_and_answer(&baton, reading_ended, &wire, &outbox, shared);
    match export.on_seal {
        OnSeal::Fail => tokio::select! {
            biased;
            () = sealed_for(&export, shared.limits.seal_answer_time) => Closed::Sealed,
            () = export.shut_out(peer) => Closed::ShutOut,
            closed = both => closed,
        },
        OnSeal::Hold => tokio::select! {
            biased;
            () = export.sealed() => Closed::Sealed,
            () = export.shut_out(peer) => Closed::ShutOut,
            closed = both => closed,
        },
    }
}

async fn sealed_for(export: &LiveExport, time: Duration) {
    export.sealed().await;
    tokio::time::sleep(time).await;
}

/// However the connection ends, dropped in the middle included: operations that still run hold the outbox, and must
/// not hold the socket; a thread that waits for requests must not wait any longer.
struct EndOnDrop {
    outbox: Arc<Outbox>,
    baton: Arc<Baton>,
    wire: Arc<Wire>,
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.outbox.close();
        self.baton.stop();
        self.wire.shutdown(Shutdown::Both);
    }
}

/// At least one request of the longest kind must fit, or it would wait for ever.
fn payload_budget(limits: &Limits) -> usize {
    usize::try_from(limits.bytes_in_flight_max.max(PAYLOAD_BYTES_MAX)).unwrap_or(usize::MAX)
}

/// Reads until there is nothing more to read, then until the last answer has left.
async fn read_and_answer(
    baton: &Arc<Baton>,
    mut reading_ended: oneshot::Receiver<Closed>,
    wire: &Wire,
    outbox: &Outbox,
    shared: &Shared,
) -> Closed {
    let mut sending = pin!(outbox.run(wire));
    let mut supervising = pin!(baton.supervise());
    let mut drained = false;
    let closed = loop {
        tokio::select! {
            biased;
            sent = &mut sending => return sent.err().unwrap_or(Closed::Disconnected),
            () = shared.draining.cancelled(), if !drained => {
                // The reader ends with the request that it is at.
                drained = true;
                baton.stop();
            }
            // A reader that was dropped has ended, too.
            closed = &mut reading_ended => break if drained { Closed::Drained } else { closed.unwrap_or(Closed::Drained) },
            () = &mut supervising => {}
        }
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

/// An accepted request on its way through a thread that may wait for the device.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) pending: Pending,
    pub(crate) request: Request,
    /// The data of a write.
    pub(crate) payload: Option<Buffer>,
}

impl Job for Operation {
    fn connection(&self) -> usize {
        Arc::as_ptr(&self.pending.outbox).addr()
    }

    fn run(mut self) {
        let rest = self.request.put_off_rest();
        let Self { mut pending, request, payload } = self;
        let began = Instant::now();
        let payload_bytes = payload.as_ref().map_or(&[][..], Buffer::as_bytes);
        let outcome = carry_out(&pending.export, &pending.outbox.guest, &request, payload_bytes);
        let took = began.elapsed();
        pending.export.pace.record(request.command(), took);
        let waited = began.saturating_duration_since(pending.began);
        if pending.export.slow.is_slow(waited + took) {
            tell_slow(&pending.export, &request, waited, took);
        }
        drop(payload);
        match (rest, &outcome) {
            (Some(rest), Some(Outcome::Done)) => {
                // Its answer comes with the last of it, whatever is read meanwhile.
                pending.more_follows = false;
                let lane = Arc::clone(&pending.export.lane);
                lane.submit(Self { pending, request: rest, payload: None });
            }
            _ => pending.answer(outcome, request.payload_bytes()),
        }
    }
}

fn tell_slow(export: &LiveExport, request: &Request, waited: Duration, took: Duration) {
    export.metrics.of(Some(request.command())).count_slow();
    if let Some(left_out) = export.slow.note(Instant::now()) {
        let (offset, len) = request.range().map_or((0, 0), |range| (range.offset.0, range.len.0));
        tracing::warn!(
            export = %export.label,
            operation = %request.command(),
            offset,
            len,
            ?waited,
            ?took,
            left_out,
            "a slow operation: `waited` is for its payload and a thread, `took` is the volume's; see the disk"
        );
    }
}

/// Runs the operation; `None` where the key was gone, or the client is shut out. Its access may have changed since the header
/// was read: a payload takes its time.
fn carry_out(export: &LiveExport, guest: &Guest, request: &Request, payload: &[u8]) -> Option<Outcome> {
    let _changing = request.changes().then(|| export.change());
    if export.is_sealed() || !export.still_admits(guest) {
        return None;
    }
    if request.changes() && export.shape().read_only {
        return Some(Outcome::Refused(READ_ONLY));
    }
    let error = match execute(export, request, payload) {
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
pub(crate) struct Pending {
    pub(crate) to: ReplyTo,
    pub(crate) command: Option<Command>,
    pub(crate) export: Arc<LiveExport>,
    pub(crate) outbox: Arc<Outbox>,
    /// Gone once the answer is on its way.
    pub(crate) hold: Option<Hold>,
    /// The thread that carries it out has another request to read: the answer may wait for that one's.
    pub(crate) more_follows: bool,
    pub(crate) began: Instant,
}

impl Pending {
    pub(crate) fn hold_payload(&mut self, permit: OwnedSemaphorePermit) {
        if let Some(hold) = &mut self.hold {
            hold.payload = Some(permit);
        }
    }

    pub(crate) fn answer(&mut self, outcome: Option<Outcome>, payload_bytes: u32) {
        let Some(mut hold) = self.hold.take() else { return };
        if !matches!(outcome, Some(Outcome::Data(_) | Outcome::Status(_))) {
            hold.payload = None;
        }
        let ended = match outcome {
            Some(Outcome::Refused(_)) => Ended::Refused,
            Some(_) => Ended::Answered { payload_bytes },
            None => Ended::Unanswered,
        };
        self.export.metrics.of(self.command).end(self.began, ended);
        let hold_back = self.more_follows && payload_bytes <= HELD_BACK_PAYLOAD_BYTES_MAX;
        self.outbox.answer(self.to, outcome, hold, hold_back);
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
