//! One thread makes every change of the index durable, many changes at a time.
//!
//! While a commit runs, the next changes queue up and share the one after it: the more clients, the fewer flushes per
//! change, and a single client waits for nobody.
//!
//! Crash order of a PUT, numbered; `tests/power_cut.rs` cuts at every write and flush:
//!
//! 1. Sectors are reserved in memory. Cut here: nothing happened.
//! 2. The body is written into them. Cut here: the sectors take up space, no row refers to them, the sweep at the next
//!    opening gives them back.
//! 3. The rows are written to new index pages, with the slot of the new root; **flush**. The same flush makes the body of
//!    step 2 durable, because the caller had finished writing it before it queued the change. Cut here: the old root still
//!    counts.
//! 4. The root is switched; **flush**. Cut before the flush ended: old or new state, each whole. Were 3 and 4 one flush, a
//!    root could be durable whose pages or bodies are not.
//! 5. The reply. Before step 4 ended it would promise what a cut can take back.
//! 6. Runs that the old state referred to are trimmed, then free (see `space`). Before step 4 ended, the old object would
//!    lose bytes that a cut makes it need again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::StoreError;
use crate::index::{Changes, Index, Snapshot, Verdict};
use crate::limits::{COMMIT_BATCH_BYTES_MAX, COMMIT_BATCH_MAX};
use crate::named_key::NamedKeys;
use crate::records::{Body, BodyId, Run};
use crate::space::Space;
use crate::usage::Coming;
use crate::volume::BlockVolume;

/// Bodies that a change no longer refers to.
pub(crate) type Dropped = Vec<(BodyId, Vec<Run>)>;

/// One change of the index, together with its preconditions.
pub(crate) trait Mutation: Send + 'static {
    type Output: Send + 'static;

    /// Whether a store that is full refuses it. Deletes go through.
    const NEEDS_ROOM: bool;

    /// Whether it changes what decides about requests: settings of buckets, users, access keys, groups, policies.
    const CHANGES_SETTINGS: bool = false;

    /// Checks, then changes. An error that is no outage means that nothing was changed. May run again after a commit that
    /// did not happen.
    fn apply(&self, changes: &mut Changes<'_>, dropped: &mut Dropped) -> Result<Self::Output, StoreError>;

    /// The change is durable.
    fn committed(self);
}

/// What the store's front, its committer and its open bodies share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) volume: Arc<dyn BlockVolume>,
    pub(crate) index: Index,
    pub(crate) space: Arc<Space>,
    pub(crate) named_keys: Arc<NamedKeys>,
    next_body: AtomicU64,
    next_bucket: AtomicU64,
    queue: Mutex<Option<Sender<Box<dyn Job>>>>,
    /// Set once, never cleared: why nothing is served any more.
    ended: Mutex<Option<StoreError>>,
    commits: AtomicU64,
    changes: AtomicU64,
    settings: Arc<AtomicU64>,
    pub(crate) coming: Arc<Coming>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        (volume, named_keys): (Arc<dyn BlockVolume>, Arc<NamedKeys>),
        index: Index,
        space: Arc<Space>,
        next: (u64, u64),
        queue: Sender<Box<dyn Job>>,
    ) -> Self {
        Self {
            volume,
            index,
            space,
            named_keys,
            next_body: AtomicU64::new(next.0),
            next_bucket: AtomicU64::new(next.1),
            queue: Mutex::new(Some(queue)),
            ended: Mutex::new(None),
            commits: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            settings: Arc::default(),
            coming: Arc::default(),
        }
    }

    pub(crate) fn next_body(&self) -> BodyId {
        BodyId(self.next_body.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn next_bucket(&self) -> u64 {
        self.next_bucket.fetch_add(1, Ordering::Relaxed)
    }

    /// Commits made, and changes in them, since the store was opened.
    pub(crate) fn commit_counts(&self) -> (u64, u64) {
        (self.commits.load(Ordering::Relaxed), self.changes.load(Ordering::Relaxed))
    }

    /// Counts the commits that changed settings.
    pub(crate) fn settings_generation(&self) -> u64 {
        self.settings.load(Ordering::SeqCst)
    }

    /// The same count for a change that has to ask for it in its commit.
    pub(crate) fn settings_counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.settings)
    }

    /// Whether the store serves at all.
    pub(crate) fn ready(&self) -> Result<(), StoreError> {
        // The key first: a store that failed because its key went is sealed, not broken.
        self.volume.check_key()?;
        lock(&self.ended).clone().map_or(Ok(()), Err)
    }

    /// Remembers an error after which nothing can be served.
    pub(crate) fn note<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &result
            && error.is_final()
        {
            lock(&self.ended).get_or_insert_with(|| error.clone());
        }
        result
    }

    /// Reads one committed state of the index.
    pub(crate) fn read<R>(&self, read: impl Fn(&Snapshot) -> Result<R, StoreError>) -> Result<R, StoreError> {
        self.ready()?;
        let result = self.note(self.index.read(read))?;
        // What was read may have been in memory since before the key went.
        self.ready()?;
        Ok(result)
    }

    /// Queues `mutation`, returns once it is durable or refused.
    pub(crate) fn submit<M: Mutation>(&self, mutation: M) -> Result<M::Output, StoreError> {
        self.ready()?;
        let (reply, answer) = sync_channel(1);
        let job = Box::new(Queued { mutation, outcome: None, reply });
        match &*lock(&self.queue) {
            Some(queue) => queue.send(job).map_err(|_| StoreError::Closed)?,
            None => return Err(StoreError::Closed),
        }
        let output = answer.recv().map_err(|_| StoreError::Closed)??;
        self.ready()?;
        Ok(output)
    }

    /// Nothing is taken or served from here on.
    pub(crate) fn shut(&self) {
        lock(&self.ended).get_or_insert(StoreError::Closed);
        lock(&self.queue).take();
        self.space.stop();
    }

    /// The committer: runs until the queue is closed.
    pub(crate) fn run_committer(&self, queue: &Receiver<Box<dyn Job>>) {
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                match queue.recv() {
                    Ok(job) => waiting.push_back(job),
                    Err(_) => return,
                }
            }
            while waiting.len() < COMMIT_BATCH_MAX {
                match queue.try_recv() {
                    Ok(job) => waiting.push_back(job),
                    Err(_) => break,
                }
            }
            self.commit_some(&mut waiting);
        }
    }

    /// Commits as many of the waiting changes as fit one batch.
    fn commit_some(&self, waiting: &mut VecDeque<Box<dyn Job>>) {
        let has_room = self.ready().and_then(|()| self.index.has_room());
        match &has_room {
            Ok(true) => {}
            Ok(false) => settle_matching(waiting, &StoreError::NoSpace, |job| job.needs_room()),
            Err(error) => settle_matching(waiting, error, |_| true),
        }
        if waiting.is_empty() {
            return;
        }
        let (batch, result) = self.try_commit(waiting, has_room.is_ok_and(|has_room| has_room));
        match result {
            Err(StoreError::NoSpace) if batch.len() > 1 => self.commit_one_by_one(batch),
            result => settle_all(batch, &result),
        }
    }

    /// The pool was too full for the batch. What frees space may still fit, each by itself.
    fn commit_one_by_one(&self, batch: VecDeque<Box<dyn Job>>) {
        for job in batch {
            if job.needs_room() {
                job.settle(&Err(StoreError::NoSpace));
            } else {
                let (job, result) = self.try_commit(&mut VecDeque::from([job]), false);
                settle_all(job, &result);
            }
        }
    }

    /// Applies changes from the front of `waiting` and commits them. Returns those it took, and how the commit ended.
    /// `has_room`: for more than deletes.
    fn try_commit(
        &self,
        waiting: &mut VecDeque<Box<dyn Job>>,
        has_room: bool,
    ) -> (VecDeque<Box<dyn Job>>, Result<(), StoreError>) {
        let mut taken = VecDeque::with_capacity(waiting.len());
        let mut dropped = Dropped::new();
        let mut applied = 0;
        let result = self.index.write(|changes| {
            changes.takes_events = has_room;
            while let Some(mut job) = waiting.pop_front() {
                let mark = dropped.len();
                let outcome = job.apply(changes, &mut dropped);
                taken.push_back(job);
                match outcome {
                    Ok(true) => applied += 1,
                    Ok(false) => dropped.truncate(mark),
                    Err(error) => return Err(error),
                }
                if changes.written() >= COMMIT_BATCH_BYTES_MAX {
                    break;
                }
            }
            Ok(if applied > 0 { Verdict::Commit(()) } else { Verdict::Discard(()) })
        });
        if result.is_ok() && applied > 0 {
            self.commits.fetch_add(1, Ordering::Relaxed);
            self.changes.fetch_add(applied, Ordering::Relaxed);
            if taken.iter().any(|job| job.changes_settings()) {
                // Before anybody is told: what was read of them earlier counts no more.
                self.settings.fetch_add(1, Ordering::SeqCst);
            }
            self.space.committed(dropped);
        }
        (taken, self.note(result))
    }
}

/// Tells the bodies of a row that is about to go.
pub(crate) fn drop_body(
    changes: &mut Changes<'_>,
    body: Body,
    dropped: &mut Dropped,
) -> Result<(), StoreError> {
    match body {
        Body::Inline(_) => {}
        Body::Runs { id, runs } => dropped.push((id, runs)),
        Body::Parts { id } => {
            let manifest = changes.manifest(id)?;
            changes.remove_manifest(id)?;
            dropped.push((id, manifest.parts.into_iter().flat_map(|part| part.runs).collect()));
        }
    }
    Ok(())
}

fn settle_all(batch: VecDeque<Box<dyn Job>>, result: &Result<(), StoreError>) {
    batch.into_iter().for_each(|job| job.settle(result));
}

fn settle_matching(
    waiting: &mut VecDeque<Box<dyn Job>>,
    error: &StoreError,
    matches: impl Fn(&dyn Job) -> bool,
) {
    let (refused, kept) = waiting.drain(..).partition(|job| matches(&**job));
    *waiting = kept;
    settle_all(refused, &Err(error.clone()));
}

/// A queued change of any type.
pub(crate) trait Job: Send {
    fn needs_room(&self) -> bool;
    fn changes_settings(&self) -> bool;
    /// False if the change was refused. An error ends the whole batch.
    fn apply(&mut self, changes: &mut Changes<'_>, dropped: &mut Dropped) -> Result<bool, StoreError>;
    /// Answers whoever waits.
    fn settle(self: Box<Self>, commit: &Result<(), StoreError>);
}

struct Queued<M: Mutation> {
    mutation: M,
    outcome: Option<Result<M::Output, StoreError>>,
    reply: SyncSender<Result<M::Output, StoreError>>,
}

impl<M: Mutation> Job for Queued<M> {
    fn needs_room(&self) -> bool {
        M::NEEDS_ROOM
    }

    fn changes_settings(&self) -> bool {
        M::CHANGES_SETTINGS
    }

    fn apply(&mut self, changes: &mut Changes<'_>, dropped: &mut Dropped) -> Result<bool, StoreError> {
        let outcome = self.mutation.apply(changes, dropped);
        match &outcome {
            Err(error) if error.is_outage() => return Err(error.clone()),
            _ => {}
        }
        let applied = outcome.is_ok();
        self.outcome = Some(outcome);
        Ok(applied)
    }

    fn settle(self: Box<Self>, commit: &Result<(), StoreError>) {
        let Self { mutation, outcome, reply } = *self;
        let result = match (commit, outcome) {
            (Ok(()), Some(outcome)) => outcome,
            (Ok(()), None) => Err(StoreError::Closed),
            (Err(error), _) => Err(error.clone()),
        };
        if result.is_ok() {
            mutation.committed();
        }
        // Nobody waits if the caller's thread ended; the change is as durable as any.
        let _ = reply.send(result);
    }
}
