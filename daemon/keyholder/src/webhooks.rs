//! Webhooks: receivers on the network that are told of what happens. WEBHOOKS.md has the events and what is sent.
//!
//! Invariants:
//! - What is told is an entry of the audit trail: it is durable before anybody hears of it, and nothing is kept twice. A receiver's
//!   place in the trail is on disk, so every event reaches it at least once, in order.
//! - Nobody waits for a receiver: each has a task of its own, which reads the trail beside the book.
//! - What was given up is a dead letter, kept until a person has it sent again or discards it.
//! - An event names machines, acts and actors, and nothing else: fields are chosen one by one ([`event`]).
//! - Where events go is in the configuration, which no request changes: nobody makes a keyholder connect somewhere by its interface.

mod courier;
mod event;
mod receiver;
mod shelf;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use self::courier::Letter;
pub(crate) use self::event::is_told;
pub use self::receiver::{Undelivered, Webhook, WebhookError, WebhookSecretError, create_secret};
use self::shelf::Shelf;
use crate::api::{DeadLetter, WaitingEvent, WebhookEntry, WebhookTested};
use crate::durable::StorageError;
use crate::error::KeyholderError;
use crate::keyholder::Keyholder;

/// The file with each receiver's place and dead letters.
pub(crate) const FILE: &str = "webhooks.json";

/// What is known of a receiver beside its place; gone at a restart.
#[derive(Clone, Debug, Default)]
struct Now {
    delivered: u64,
    waiting: Option<WaitingEvent>,
}

/// Every receiver, and how far each has come.
#[derive(Debug)]
pub(crate) struct Webhooks {
    all: Vec<Webhook>,
    shelf: Mutex<Shelf>,
    now: Mutex<Vec<Now>>,
    /// Counts what a person has asked for: letters again, or a try at once.
    asked: watch::Sender<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Webhooks {
    /// Reads how far each receiver has come. A new one begins at `head`: the past was not meant for it.
    pub(crate) fn open(
        all: Vec<Webhook>,
        file: PathBuf,
        head: audit_log::Head,
    ) -> Result<Self, StorageError> {
        let names = all.iter().map(Webhook::name);
        let shelf = Shelf::open(file, names, head)?;
        let now = vec![Now::default(); all.len()];
        Ok(Self { all, shelf: Mutex::new(shelf), now: Mutex::new(now), asked: watch::Sender::new(0) })
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        lock(&self.shelf)
    }

    fn find(&self, name: &str) -> Result<usize, KeyholderError> {
        let found = self.all.iter().position(|webhook| webhook.name() == name);
        found.ok_or_else(|| KeyholderError::NoSuchWebhook { name: name.to_owned() })
    }

    fn entry(&self, index: usize) -> WebhookEntry {
        let webhook = &self.all[index];
        let shelf = self.shelf();
        let kept = shelf.of(webhook.name());
        let Now { delivered, waiting } = lock(&self.now)[index].clone();
        let dead = kept.dead.iter().map(|letter| DeadLetter {
            entry: letter.entry,
            event: letter.event.clone(),
            at_unix_s: letter.at_unix_s,
            attempts: letter.attempts,
            why: letter.why.clone(),
        });
        WebhookEntry {
            name: webhook.name().to_owned(),
            address: webhook.address(),
            events: webhook.events().to_vec(),
            told_up_to_entry: kept.position.seq,
            delivered,
            waiting,
            dead_letters: dead.collect(),
            dropped_letters: kept.dropped,
        }
    }
}

impl Keyholder {
    /// Begins to tell the receivers. Once, where a runtime is there to run their tasks.
    pub fn tell_webhooks(self: &std::sync::Arc<Self>) {
        for index in 0..self.webhooks.all.len() {
            self.spawn(courier::run(std::sync::Arc::clone(self), index, self.until_stopped()));
        }
    }

    /// Every receiver.
    pub(crate) fn webhook_entries(&self) -> Vec<WebhookEntry> {
        (0..self.webhooks.all.len()).map(|index| self.webhooks.entry(index)).collect()
    }

    /// Sends a receiver an event that says nothing, once, and tells what it answered.
    pub(crate) async fn test_webhook(&self, name: &str, by: &str) -> Result<WebhookTested, KeyholderError> {
        let webhook = &self.webhooks.all[self.webhooks.find(name)?];
        self.note_webhook("webhook-tested", name, by, &[])?;
        let letter = Letter::test(&self.name)?;
        let begun = tokio::time::Instant::now();
        let sent = webhook.send(&letter).await;
        let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let failed = |why| KeyholderError::WebhookFailed { name: name.to_owned(), why };
        sent.map(|status| WebhookTested { status, elapsed_ms }).map_err(failed)
    }

    /// Has dead letters sent again, all of them where none are named, and tries at once what waits.
    pub(crate) fn replay_webhook(
        &self,
        name: &str,
        entries: &[u64],
        by: &str,
    ) -> Result<WebhookEntry, KeyholderError> {
        let index = self.webhooks.find(name)?;
        self.blocking(|| {
            let mut shelf = self.webhooks.shelf();
            check_letters(&shelf, name, entries)?;
            self.note_webhook("webhook-replayed", name, by, entries)?;
            Ok::<_, KeyholderError>(shelf.send_again(name, entries)?)
        })?;
        self.webhooks.asked.send_modify(|count| *count = count.wrapping_add(1));
        Ok(self.webhooks.entry(index))
    }

    /// Forgets dead letters, all of them where none are named. The trail still has what they told of.
    pub(crate) fn discard_letters(
        &self,
        name: &str,
        entries: &[u64],
        by: &str,
    ) -> Result<WebhookEntry, KeyholderError> {
        let index = self.webhooks.find(name)?;
        self.blocking(|| {
            let mut shelf = self.webhooks.shelf();
            check_letters(&shelf, name, entries)?;
            self.note_webhook("webhook-letters-discarded", name, by, entries)?;
            Ok::<_, KeyholderError>(shelf.discard(name, entries)?)
        })?;
        Ok(self.webhooks.entry(index))
    }

    fn note_webhook(&self, event: &str, name: &str, by: &str, entries: &[u64]) -> Result<(), KeyholderError> {
        let fields = [("by", by.into()), ("webhook", name.into()), ("entries", entries.to_vec().into())];
        Ok(self.book(|book| book.audit.record(event, fields))?)
    }
}

fn check_letters(shelf: &Shelf, name: &str, entries: &[u64]) -> Result<(), KeyholderError> {
    let dead = &shelf.of(name).dead;
    match entries.iter().find(|entry| !dead.iter().any(|letter| letter.entry == **entry)) {
        Some(entry) => Err(KeyholderError::NoSuchLetter { webhook: name.to_owned(), entry: *entry }),
        None => Ok(()),
    }
}
