//! Reads one connection's requests, on a thread that may wait, and sees to it that another reads on where one is held up.
//!
//! An operation that is likely to be quick ([`crate::pace`]) is carried out by the thread that read its request: no other has
//! to be woken. Meanwhile the reader lies in its [`Baton`]. If the operation does not come back in time, a supervisor sends
//! another thread, which takes the reader and reads on; the first one finds it gone and leaves.
//!
//! Invariants:
//! - At any time at most one thread has the reader. Whoever finds it gone touches the connection no more, but for the
//!   answer it owes.
//! - No reply is held back while the reader waits for anything.

use std::io;
use std::net::Shutdown;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use crate::exports::LiveExport;
use crate::lane::Job;
use crate::limits::{DISCARD_STEP_BYTES, QUICK_PAYLOAD_BYTES_MAX, TAKE_OVER_TIME};
use crate::negotiation::Features;
use crate::outbox::{Hold, Outbox};
use crate::reply::{Outcome, ReplyTo};
use crate::request::{Asked, FILTER_BYTES_MAX, Incoming, Request};
use crate::stream::{Source, Wire};
use crate::transmission::{Closed, Operation, Pending};
use crate::wire::{Command, EXTENDED_REQUEST_BYTES, RequestHeader};

/// The right to read a connection's requests, which lies here while its holder is busy with one.
#[derive(Debug)]
pub(crate) struct Baton {
    reader: Mutex<Option<Box<Reader>>>,
    /// How often the reader was put down.
    turns: AtomicU64,
    /// The command for which it was put down last.
    command: AtomicU16,
    /// The supervisor waits until somebody is busy again.
    asleep: AtomicBool,
    awake: Notify,
    stopping: AtomicBool,
    stopped: CancellationToken,
    /// Where a reader may wait, which [`Self::stop`] then ends.
    wire: Arc<Wire>,
}

impl Baton {
    pub(crate) fn new(wire: Arc<Wire>) -> Arc<Self> {
        Arc::new(Self {
            reader: Mutex::new(None),
            turns: AtomicU64::new(0),
            command: AtomicU16::new(0),
            asleep: AtomicBool::new(true),
            awake: Notify::new(),
            stopping: AtomicBool::new(false),
            stopped: CancellationToken::new(),
            wire,
        })
    }

    fn reader(&self) -> MutexGuard<'_, Option<Box<Reader>>> {
        // Nothing that can panic runs under the lock.
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_down(&self, reader: Box<Reader>, command: Command) {
        self.command.store(command.code(), Ordering::Relaxed);
        *self.reader() = Some(reader);
        self.turns.fetch_add(1, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.awake.notify_one();
        }
    }

    fn pick_up(&self) -> Option<Box<Reader>> {
        self.reader().take()
    }

    /// Starts reading with `reader`. Called inside a runtime, whose blocking threads it uses.
    pub(crate) fn start(self: &Arc<Self>, reader: Box<Reader>) {
        let baton = Arc::clone(self);
        drop(tokio::task::spawn_blocking(move || lead(&baton, reader)));
    }

    /// Sends another thread whenever one is held up. Never returns.
    pub(crate) async fn supervise(self: &Arc<Self>) {
        loop {
            self.awake.notified().await;
            let mut seen = self.turns.load(Ordering::SeqCst);
            loop {
                tokio::time::sleep(TAKE_OVER_TIME).await;
                let turns = self.turns.load(Ordering::SeqCst);
                if turns != seen {
                    seen = turns;
                } else if let Some(reader) = self.pick_up() {
                    if let Some(command) = Command::from_code(self.command.load(Ordering::Relaxed)) {
                        reader.export.pace.stuck(command);
                    }
                    self.start(reader);
                } else {
                    // Waits for requests, or is gone. Whoever is busy next says so, or was just before.
                    self.asleep.store(true, Ordering::SeqCst);
                    if self.turns.load(Ordering::SeqCst) == seen {
                        break;
                    }
                    self.asleep.store(false, Ordering::SeqCst);
                }
            }
        }
    }

    /// Nothing more is to be read. Whoever waits for requests returns; a reader that nobody has is dropped.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.stopped.cancel();
        self.wire.shutdown(Shutdown::Read);
        drop(self.pick_up());
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

/// Reads, and carries out or hands on, until the end or until somebody else does.
fn lead(baton: &Arc<Baton>, mut reader: Box<Reader>) {
    let outbox = Arc::clone(&reader.outbox);
    let export = Arc::clone(&reader.export);
    loop {
        let mut operation = match reader.next(baton) {
            Ok(Some(operation)) => operation,
            Ok(None) => continue,
            Err(closed) => {
                outbox.send_held_back();
                reader.end(closed);
                return;
            }
        };
        let command = operation.request.command();
        let short = operation.request.payload_bytes() <= QUICK_PAYLOAD_BYTES_MAX;
        if !short || !export.pace.is_quick(command) {
            export.lane.submit(operation);
            continue;
        }
        operation.pending.more_follows = reader.source.buffered() > 0;
        baton.put_down(reader, command);
        // It answers for its own panic.
        drop(catch_unwind(AssertUnwindSafe(|| operation.run())));
        match baton.pick_up() {
            Some(mine) => reader = mine,
            None => break,
        }
    }
    outbox.send_held_back();
}

/// What reading takes.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) source: Source,
    pub(crate) export: Arc<LiveExport>,
    pub(crate) features: Features,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) payload: Arc<Semaphore>,
    pub(crate) runtime: Handle,
    /// Told why reading ended.
    pub(crate) ended: Option<oneshot::Sender<Closed>>,
}

impl Reader {
    fn end(&mut self, closed: Closed) {
        if let Some(ended) = self.ended.take() {
            // Nobody asks any more where the connection is gone.
            let _ = ended.send(closed);
        }
    }

    /// Takes one request; `None` where it has been answered already.
    fn next(&mut self, baton: &Baton) -> Result<Option<Operation>, Closed> {
        let slot = self.acquire(&self.slots, 1, baton)?;
        let header = self.header(baton)?;
        let Incoming { cookie, offset, command, payload_bytes: announced, asked } =
            Incoming::parse(header, self.export.shape(), &self.features);
        let to = ReplyTo { cookie, offset };
        let hold = Hold { _slot: slot, payload: None };
        match asked {
            Asked::Disconnect => Err(Closed::Disconnected),
            Asked::Oversize => Err(Closed::Oversize),
            Asked::Filtered(status) => {
                let mut pending = self.pending(to, command, hold);
                let mut payload = [0; FILTER_BYTES_MAX];
                // Held against that length where it was parsed.
                let len = usize::try_from(announced).unwrap_or(FILTER_BYTES_MAX);
                let payload = &mut payload[..len.min(FILTER_BYTES_MAX)];
                self.fill(payload)?;
                match status.with_payload(payload) {
                    Ok(request) => {
                        self.hold(&request, &mut pending, baton)?;
                        return Ok(Some(Operation { pending, request, payload: None }));
                    }
                    Err(refusal) => pending.answer(Some(Outcome::Refused(refusal)), 0),
                }
                Ok(None)
            }
            Asked::Refused(refusal) => {
                let mut pending = self.pending(to, command, hold);
                self.discard(announced)?;
                pending.answer(Some(Outcome::Refused(refusal)), 0);
                Ok(None)
            }
            Asked::Accepted(request) => {
                let mut pending = self.pending(to, command, hold);
                self.hold(&request, &mut pending, baton)?;
                let payload = match request {
                    Request::Write { .. } => {
                        let len = usize::try_from(announced).unwrap_or(0);
                        let mut buffer = self.export.buffers.take(len);
                        self.fill(buffer.as_mut_bytes())?;
                        Some(buffer)
                    }
                    _ => None,
                };
                Ok(Some(Operation { pending, request, payload }))
            }
        }
    }

    /// Takes what the request and its reply hold out of the connection's budget.
    fn hold(&self, request: &Request, pending: &mut Pending, baton: &Baton) -> Result<(), Closed> {
        let held = request.held_bytes();
        if held > 0 {
            pending.hold_payload(self.acquire(&self.payload, held, baton)?);
        }
        Ok(())
    }

    fn pending(&self, to: ReplyTo, command: Option<Command>, hold: Hold) -> Pending {
        self.outbox.expect();
        Pending {
            to,
            command,
            export: Arc::clone(&self.export),
            outbox: Arc::clone(&self.outbox),
            hold: Some(hold),
            more_follows: false,
            began: self.export.metrics.of(command).begin(),
        }
    }

    fn header(&mut self, baton: &Baton) -> Result<RequestHeader, Closed> {
        let style = self.features.style;
        let mut bytes = [0; EXTENDED_REQUEST_BYTES];
        let header = &mut bytes[..style.request_bytes()];
        self.fill(header)?;
        if baton.is_stopping() {
            return Err(Closed::Drained);
        }
        RequestHeader::decode(header, style).ok_or(Closed::Malformed)
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), Closed> {
        if self.source.buffered() < out.len() {
            self.outbox.send_held_back();
        }
        match self.source.fill(out) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Closed::EndOfStream),
            Err(error) => Err(Closed::Broken(error)),
        }
    }

    /// Reads and drops `len` bytes.
    fn discard(&mut self, len: u32) -> Result<(), Closed> {
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        let mut step = vec![0; left.min(DISCARD_STEP_BYTES)];
        while left > 0 {
            let wanted = left.min(step.len());
            self.fill(&mut step[..wanted])?;
            left -= wanted;
        }
        Ok(())
    }

    fn acquire(
        &self,
        semaphore: &Arc<Semaphore>,
        permits: u32,
        baton: &Baton,
    ) -> Result<OwnedSemaphorePermit, Closed> {
        if let Ok(permit) = Arc::clone(semaphore).try_acquire_many_owned(permits) {
            return Ok(permit);
        }
        self.outbox.send_held_back();
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = baton.stopped.cancelled() => Err(Closed::Drained),
                // The semaphores are never closed.
                permit = Arc::clone(semaphore).acquire_many_owned(permits) => permit.map_err(|_closed| Closed::Drained),
            }
        })
    }
}
