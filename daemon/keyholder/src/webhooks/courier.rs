//! One receiver's task: it follows the trail from the receiver's place, and does not go on before the receiver has an event or it is
//! a dead letter.

use std::sync::Arc;
use std::time::Duration;

use audit_log::{ENTRIES_MAX, Entry};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::receiver::{Undelivered, Webhook};
use super::shelf::{Again, Dead, Position, Shelf};
use super::{Webhooks, event, lock};
use crate::api::WaitingEvent;
use crate::clock;
use crate::durable::StorageError;
use crate::error::KeyholderError;
use crate::keyholder::Keyholder;

/// Between the first attempts; then twice as long each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// Between attempts at a receiver that has been away for long: it hears of everything within this time of its return.
const RETRY_MAX: Duration = Duration::from_secs(600);

/// Attempts at a receiver that reads an event and refuses it. A person has to look at that, and what comes after must not wait for it.
const REFUSALS_MAX: u32 = 5;

/// After the trail or the file could not be read or written.
const STORAGE_RETRY: Duration = Duration::from_secs(10);

/// What is sent.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    /// The same for every attempt, so that a receiver can tell a repetition.
    pub(super) id: String,
    pub(super) body: String,
    pub(super) event: &'static str,
    /// When it happened.
    pub(super) at_unix_s: u64,
}

impl Letter {
    /// That of an entry, where the receiver is told of it.
    fn of(keyholder: &Keyholder, webhook: &Webhook, entry: &Entry) -> Option<Self> {
        let (event, mut data) = event::of(entry).filter(|(event, _)| webhook.wants(event))?;
        // People know machines by their names; a sealed keyholder knows none.
        let node = data.get("node").and_then(Value::as_str).and_then(|node| node.parse().ok());
        if let Some(node) = node {
            data.insert("node_name".to_owned(), keyholder.node_name(node).into());
        }
        data.insert("entry".to_owned(), entry.seq.into());
        let id = format!("{}-{}", entry.seq, &entry.hash.to_string()[..16]);
        Some(Self::new(id, event, entry.at.unix_ms, &keyholder.name, data))
    }

    /// One that says nothing but that it was sent.
    pub(super) fn test(keyholder: &str) -> Result<Self, KeyholderError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|error| crate::vault::VaultError::Random(std::io::Error::other(error.to_string())))?;
        let id = format!("test-{}", hex::encode(random));
        Ok(Self::new(id, event::TEST, clock::unix_ms(), keyholder, Map::new()))
    }

    fn new(
        id: String,
        event: &'static str,
        unix_ms: u64,
        keyholder: &str,
        mut data: Map<String, Value>,
    ) -> Self {
        data.insert("keyholder".to_owned(), keyholder.into());
        let at = i128::from(unix_ms) * 1_000_000;
        let timestamp =
            OffsetDateTime::from_unix_timestamp_nanos(at).ok().and_then(|at| at.format(&Rfc3339).ok());
        let body = serde_json::json!({ "type": event, "timestamp": timestamp, "data": data }).to_string();
        Self { id, body, event, at_unix_s: unix_ms / 1_000 }
    }
}

/// Tells one receiver of everything until `stop`.
pub(super) async fn run(keyholder: Arc<Keyholder>, index: usize, stop: CancellationToken) {
    let courier = Courier { keyholder: &keyholder, index };
    stop.run_until_cancelled(courier.work()).await;
}

struct Courier<'a> {
    keyholder: &'a Keyholder,
    index: usize,
}

impl Courier<'_> {
    fn all(&self) -> &Webhooks {
        &self.keyholder.webhooks
    }

    fn webhook(&self) -> &Webhook {
        &self.all().all[self.index]
    }

    async fn work(&self) {
        let mut news = self.keyholder.told.subscribe();
        let mut asked = self.all().asked.subscribe();
        loop {
            news.mark_unchanged();
            asked.mark_unchanged();
            if let Err(error) = self.catch_up().await {
                tracing::error!(webhook = self.webhook().name(), %error, "a webhook is not told at the moment");
                tokio::time::sleep(STORAGE_RETRY).await;
                continue;
            }
            tokio::select! {
                _ = news.changed() => {}
                _ = asked.changed() => {}
            }
        }
    }

    /// Goes on to the trail's end.
    async fn catch_up(&self) -> Result<(), KeyholderError> {
        loop {
            self.send_again().await?;
            let from = self.position()?;
            let page = self.keyholder.audit(from, ENTRIES_MAX)?;
            let mut reached = from;
            for line in &page.lines {
                // What does not read is no event; the verification of the trail finds it.
                let Ok(entry) = Entry::parse(line) else { continue };
                reached = entry.seq;
                if let Some(letter) = Letter::of(self.keyholder, self.webhook(), &entry) {
                    let buried = self.settle(&letter, entry.seq, letter.at_unix_s).await;
                    self.note(|kept| {
                        kept.position.seq = entry.seq;
                        buried.into_iter().for_each(|dead| Shelf::bury(kept, dead));
                    })?;
                    self.send_again().await?;
                }
            }
            if reached == from {
                return Ok(());
            }
            self.note(|kept| kept.position.seq = reached)?;
        }
    }

    /// The receiver's place. One in another trail, or behind this one's end, is none any more.
    fn position(&self) -> Result<u64, KeyholderError> {
        let head = self.keyholder.book(|book| book.audit_head());
        let known = self.all().shelf().of(self.webhook().name()).position;
        let seq = if known.trail == head.trail { known.seq.min(head.seq) } else { 0 };
        let here = Position { trail: head.trail, seq };
        if here != known {
            self.note(|kept| kept.position = here)?;
        }
        Ok(seq)
    }

    /// What a person has asked for goes before what is new.
    async fn send_again(&self) -> Result<(), KeyholderError> {
        loop {
            let next = self.all().shelf().of(self.webhook().name()).again.first().copied();
            let Some(Again { entry: seq }) = next else { return Ok(()) };
            let page = self.keyholder.audit(seq.saturating_sub(1), 1)?;
            let entry = page.lines.first().and_then(|line| Entry::parse(line).ok());
            let letter = entry
                .filter(|entry| entry.seq == seq)
                .and_then(|entry| Letter::of(self.keyholder, self.webhook(), &entry));
            // One that retention has taken from the trail cannot be told any more.
            let buried = match letter {
                // Its time to give up begins with the person's word.
                Some(letter) => self.settle(&letter, seq, clock::unix_s()).await,
                None => None,
            };
            self.note(|kept| {
                kept.again.retain(|again| again.entry != seq);
                buried.into_iter().for_each(|dead| Shelf::bury(kept, dead));
            })?;
        }
    }

    /// Tries until the receiver has it, or it is a dead letter.
    async fn settle(&self, letter: &Letter, entry: u64, since_unix_s: u64) -> Option<Dead> {
        let webhook = self.webhook();
        let mut asked = self.all().asked.subscribe();
        let mut attempts = 0;
        let mut pause = RETRY_FIRST;
        loop {
            attempts += 1;
            let why = match webhook.send(letter).await {
                Ok(_) => {
                    let mut now = lock(&self.all().now);
                    now[self.index].delivered += 1;
                    now[self.index].waiting = None;
                    return None;
                }
                Err(why) => why,
            };
            if self.is_over(since_unix_s, &why, attempts) {
                lock(&self.all().now)[self.index].waiting = None;
                let (name, event) = (webhook.name(), letter.event);
                tracing::warn!(webhook = name, entry, event, attempts, %why, "a webhook's event is a dead letter now");
                let (event, why) = (letter.event.to_owned(), why.to_string());
                return Some(Dead { entry, event, at_unix_s: letter.at_unix_s, attempts, why });
            }
            lock(&self.all().now)[self.index].waiting = Some(WaitingEvent {
                entry,
                event: letter.event.to_owned(),
                since_unix_s,
                attempts,
                why: why.to_string(),
            });
            let again = Instant::now() + pause;
            pause = (pause * 2).min(RETRY_MAX);
            tokio::select! {
                () = tokio::time::sleep_until(again) => {}
                _ = asked.changed() => {}
            }
        }
    }

    fn is_over(&self, since_unix_s: u64, why: &Undelivered, attempts: u32) -> bool {
        let age_s = clock::unix_s().saturating_sub(since_unix_s);
        age_s >= self.webhook().give_up_after().as_secs() || (why.is_refusal() && attempts >= REFUSALS_MAX)
    }

    fn note(&self, change: impl FnOnce(&mut super::shelf::Kept)) -> Result<(), StorageError> {
        self.keyholder.blocking(|| self.all().shelf().change(self.webhook().name(), change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_says_what_and_when_and_nothing_of_who_reads_it() {
        let data = Map::from_iter([("by".to_owned(), "operator/anna".into())]);
        let letter = Letter::new("7-ab".to_owned(), "keys.revoked", 1_700_000_000_123, "compute-1", data);
        let body: Value = serde_json::from_str(&letter.body).unwrap();
        let expected = serde_json::json!({
            "type": "keys.revoked",
            "timestamp": "2023-11-14T22:13:20.123Z",
            "data": { "by": "operator/anna", "keyholder": "compute-1" },
        });
        assert_eq!((body, letter.at_unix_s), (expected, 1_700_000_000));
    }
}
