//! A connection's replies on their way out: whoever finishes a request sends its reply, and a task takes over when
//! the socket is full.
//!
//! At any time at most one party sends: a thread that has just finished an operation, or the connection's own task.
//! Replies that come in meanwhile are picked up by the one that sends, many in one system call.
//!
//! Invariants:
//! - The key is asked for again before every write to the socket. Once it is gone, a connection of a holding export
//!   ends and nothing more leaves; on a failing one only `ESHUTDOWN` leaves, and a reply with data that is partly
//!   out ends the connection.
//! - After [`Outbox::close`] nothing is sent and the socket is not held open, whatever operations are still running.

use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::exports::{Guest, LiveExport, OnSeal};
use crate::limits::REPLIES_HELD_BACK_MAX;
use crate::reply::{Batch, Outcome, ReplyTo, SEALED};
use crate::stream::Wire;
use crate::transmission::Closed;
use crate::wire::Style;

/// What one request of a connection occupies until its reply has left.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) _slot: OwnedSemaphorePermit,
    pub(crate) payload: Option<OwnedSemaphorePermit>,
}

/// How far sending came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    All,
    /// There may be room for more.
    Part,
    /// The socket is full.
    Full,
}

#[derive(Debug)]
pub(crate) struct Outbox {
    export: Arc<LiveExport>,
    /// Whom its replies are for.
    pub(crate) guest: Guest,
    /// Operations that still run hold the outbox, and a buffer each.
    _present: TaskTrackerToken,
    style: Style,
    state: Mutex<State>,
    /// Something changed that the task must look at.
    task: Notify,
}

#[derive(Debug)]
struct State {
    /// Replies that nobody has taken to send yet.
    waiting: Batch<Hold>,
    /// Somebody sends.
    sending: bool,
    /// The task is to take the sending over.
    handed_over: bool,
    /// Requests that have been taken and not been answered.
    unanswered: usize,
    /// More requests may come.
    reading: bool,
    /// Where any thread may send; gone when closed.
    wire: Option<Arc<Wire>>,
    /// Why the connection has to end; nothing is sent any more.
    ended: Option<Closed>,
    closed: bool,
}

impl Outbox {
    pub(crate) fn new(export: Arc<LiveExport>, guest: Guest, style: Style, wire: Arc<Wire>) -> Self {
        let state = State {
            waiting: Batch::new(style),
            sending: false,
            handed_over: false,
            unanswered: 0,
            reading: true,
            wire: Some(wire),
            ended: None,
            closed: false,
        };
        let _present = export.present.token();
        Self { export, guest, _present, style, state: Mutex::new(state), task: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request was taken; an answer or [`Self::withdraw`] follows.
    pub(crate) fn expect(&self) {
        self.state().unanswered += 1;
    }

    /// A request gets no answer.
    pub(crate) fn withdraw(&self) {
        let mut state = self.state();
        state.unanswered -= 1;
        self.notify_if_done(&state);
    }

    /// No request follows.
    pub(crate) fn reading_done(&self) {
        let mut state = self.state();
        state.reading = false;
        self.notify_if_done(&state);
    }

    /// Whether every request that was taken has its answer, sent or not.
    pub(crate) fn all_answered(&self) -> bool {
        self.state().unanswered == 0
    }

    /// Ends it all: what has not left does not leave.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.wire = None;
        let unsent = mem::replace(&mut state.waiting, Batch::new(self.style));
        drop(state);
        drop(unsent);
    }

    /// Answers a request; `None` where the key was gone. Called on the thread that carried it out. With `hold_back` the
    /// reply may wait for others, until [`Self::send_held_back`].
    pub(crate) fn answer(&self, to: ReplyTo, outcome: Option<Outcome>, hold: Hold, hold_back: bool) {
        let outcome = match (outcome, self.export.on_seal) {
            (Some(outcome), _) => Some(outcome),
            (None, OnSeal::Fail) => Some(Outcome::Refused(SEALED)),
            (None, OnSeal::Hold) => None,
        };
        let mut state = self.state();
        state.unanswered -= 1;
        if state.closed || state.ended.is_some() {
            return;
        }
        let Some(outcome) = outcome else {
            state.ended = Some(Closed::Sealed);
            self.task.notify_one();
            return;
        };
        state.waiting.push(to, outcome, hold);
        if !hold_back || state.waiting.len() >= REPLIES_HELD_BACK_MAX {
            self.send_waiting(state);
        }
    }

    /// Sends what was held back.
    pub(crate) fn send_held_back(&self) {
        let state = self.state();
        if !state.waiting.is_empty() {
            self.send_waiting(state);
        }
    }

    /// Sends what waits, unless somebody does already.
    fn send_waiting(&self, mut state: MutexGuard<'_, State>) {
        if state.sending || state.closed || state.ended.is_some() {
            return;
        }
        let Some(wire) = state.wire.clone() else { return };
        state.sending = true;
        let batch = mem::replace(&mut state.waiting, Batch::new(self.style));
        drop(state);
        self.send_here(batch, &wire);
    }

    /// Sends until nothing waits or the socket is full.
    fn send_here(&self, mut batch: Batch<Hold>, wire: &Wire) {
        loop {
            match self.send_some(&mut batch, wire) {
                Ok(Sent::All) if self.take_more(&mut batch) => {}
                Ok(Sent::All) => return,
                Ok(Sent::Part) => {}
                Ok(Sent::Full) => {
                    let mut state = self.state();
                    if !state.closed {
                        state.waiting.prepend(batch);
                        state.handed_over = true;
                        self.task.notify_one();
                    }
                    return;
                }
                Err(closed) => {
                    self.state().ended.get_or_insert(closed);
                    self.task.notify_one();
                    return;
                }
            }
        }
    }

    /// Sends what there is room for now, if the key is still there.
    fn send_some(&self, batch: &mut Batch<Hold>, wire: &Wire) -> Result<Sent, Closed> {
        if batch.is_empty() {
            // It has left, or sits in the TLS session and can't be taken back: where the key goes meanwhile, the connection ends.
            return match wire.try_flush()? {
                true => Ok(Sent::All),
                false if self.export.key_gone() => Err(Closed::Sealed),
                false => Ok(Sent::Full),
            };
        }
        self.clear_to_send(batch)?;
        match wire.try_write(&batch.slices()) {
            Ok(0) => Err(Closed::Broken(io::ErrorKind::WriteZero.into())),
            Ok(sent) => {
                batch.advance(sent);
                Ok(Sent::Part)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Sent::Full),
            Err(error) => Err(Closed::Broken(error)),
        }
    }

    /// What has come in since; `false`, and nobody sends any more, where that is nothing.
    fn take_more(&self, batch: &mut Batch<Hold>) -> bool {
        let mut state = self.state();
        if state.closed {
            return false;
        }
        if state.waiting.is_empty() {
            state.sending = false;
            self.notify_if_done(&state);
            return false;
        }
        mem::swap(batch, &mut state.waiting);
        true
    }

    /// Asks for the key again. Nothing that took it to learn may leave once it is gone.
    fn clear_to_send(&self, batch: &mut Batch<Hold>) -> Result<(), Closed> {
        if !self.export.key_gone() {
            return Ok(());
        }
        match self.export.on_seal {
            OnSeal::Fail if batch.refuse() => Ok(()),
            OnSeal::Fail | OnSeal::Hold => Err(Closed::Sealed),
        }
    }

    fn notify_if_done(&self, state: &State) {
        if state.is_done() {
            self.task.notify_one();
        }
    }

    /// The connection's task: sends when others can't, and returns once the last reply has left.
    pub(crate) async fn run(&self, wire: &Wire) -> Result<(), Closed> {
        loop {
            let handed_over = {
                let mut state = self.state();
                if let Some(ended) = state.ended.take() {
                    state.closed = true;
                    return Err(ended);
                }
                if mem::take(&mut state.handed_over) {
                    Some(mem::replace(&mut state.waiting, Batch::new(self.style)))
                } else if state.is_done() {
                    break;
                } else {
                    None
                }
            };
            match handed_over {
                Some(batch) => self.send_in_task(batch, wire).await?,
                None => self.task.notified().await,
            }
        }
        wire.end_session();
        while !wire.try_flush()? {
            wire.writable().await?;
        }
        Ok(())
    }

    async fn send_in_task(&self, mut batch: Batch<Hold>, wire: &Wire) -> Result<(), Closed> {
        // Once an export is sealed for good, every wait for that would end at once.
        let mut seal_seen = false;
        loop {
            match self.send_some(&mut batch, wire)? {
                Sent::All if self.take_more(&mut batch) => {}
                Sent::All => return Ok(()),
                Sent::Part => {}
                // The key is asked for after the wait.
                Sent::Full => {
                    seal_seen |= self.export.is_sealed();
                    tokio::select! {
                        biased;
                        writable = wire.writable() => writable?,
                        () = self.export.sealed(), if !seal_seen => {}
                    }
                }
            }
        }
    }
}

impl State {
    /// Every request has been answered and every answer has left.
    fn is_done(&self) -> bool {
        !self.reading && self.unanswered == 0 && !self.sending && self.waiting.is_empty()
    }
}
