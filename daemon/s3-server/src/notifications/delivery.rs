//! Events on their way to a webhook: one message at a time, in order, until it is taken. A message has as many events as wait, up to
//! a limit, so that a receiver far away keeps up.
//!
//! What answers with 2xx has taken a message. What answers otherwise, or not at all, is asked again with the same message, ever more
//! slowly. A message that a receiver refuses (4xx) is sent again event by event, so that one bad event stops no others. An event
//! becomes a dead letter when it was refused too often, or when it is too old.

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use objects::{Event, Store, StoreError, WaitingEvent};
use s3s::S3Result;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::message;
use crate::error::from_store;
use crate::limits::{
    WEBHOOK_BATCH, WEBHOOK_POLL_INTERVAL, WEBHOOK_REFUSALS_MAX, WEBHOOK_RETRY_MAX, WEBHOOK_SECRET_BYTES_MIN,
};
use crate::metrics::Metrics;
use crate::slot::{Serving, Slot};

/// A signed message, ready to be sent. Whoever holds it is waited for when the node is sealed.
pub struct WebhookMessage {
    /// Names in lower case, and values.
    pub headers: Vec<(&'static str, String)>,
    /// JSON.
    pub body: Vec<u8>,
    _present: TaskTrackerToken,
}

impl fmt::Debug for WebhookMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookMessage").field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

/// The status of an answer, or why there was none.
pub type Posted<'a> = Pin<Box<dyn Future<Output = Result<u16, String>> + Send + 'a>>;

/// Carries messages to one webhook. The program brings it: nothing here may dial.
pub trait WebhookTransport: Send + Sync {
    /// Sends a message. Dropped before it is done, it lets go of the message at once.
    fn post(&self, message: WebhookMessage) -> Posted<'_>;
}

/// What messages are signed with.
pub struct WebhookSecret(Vec<u8>);

/// Why a secret is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a webhook's secret is `whsec_` and at least {WEBHOOK_SECRET_BYTES_MIN} bytes in base64, as `echo whsec_$(openssl rand -base64 32)` makes"
)]
pub struct InvalidWebhookSecret;

impl WebhookSecret {
    /// Reads `whsec_` and base64, as Standard Webhooks writes secrets.
    ///
    /// # Errors
    /// [`InvalidWebhookSecret`].
    pub fn parse(text: &str) -> Result<Self, InvalidWebhookSecret> {
        use base64::Engine;
        let encoded = text.trim().strip_prefix("whsec_").ok_or(InvalidWebhookSecret)?;
        let secret = base64::engine::general_purpose::STANDARD.decode(encoded);
        let secret = secret.map_err(|_| InvalidWebhookSecret)?;
        if secret.len() < WEBHOOK_SECRET_BYTES_MIN { Err(InvalidWebhookSecret) } else { Ok(Self(secret)) }
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret")
    }
}

impl Drop for WebhookSecret {
    fn drop(&mut self) {
        self.0.fill(0);
        // Not left out as a write that nobody reads.
        std::hint::black_box(&self.0);
    }
}

/// A destination of notifications.
pub struct Webhook {
    /// What buckets' configurations call it.
    pub name: String,
    /// What messages are signed with.
    pub secret: WebhookSecret,
    /// Time after which a message that nobody takes is a dead letter.
    pub give_up_after: Duration,
    /// Time to the second attempt; each further one waits twice as long.
    pub retry_first: Duration,
    /// How messages get there.
    pub transport: Box<dyn WebhookTransport>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How it goes with a webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebhookState {
    /// Events that were taken since the program was started.
    pub delivered: u64,
    /// When one was taken last.
    pub last_delivered: Option<SystemTime>,
    /// Why the last attempt failed, if it did.
    pub trouble: Option<String>,
}

/// What a delivery shares with those who ask about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<Mutex<WebhookState>>);

impl Progress {
    pub(crate) fn state(&self) -> WebhookState {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn delivered(&self, events: usize) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.delivered += events as u64;
        state.last_delivered = Some(SystemTime::now());
        state.trouble = None;
    }

    /// Says so in the log where it is news.
    fn failed(&self, webhook: &str, trouble: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.trouble.as_deref() != Some(trouble) {
            tracing::warn!(
                webhook,
                trouble,
                "a webhook does not take its messages; they are kept and sent again"
            );
        }
        state.trouble = Some(trouble.to_owned());
    }
}

/// Delivers a webhook's messages for as long as it is polled. `present`: holds off what waits for messages that are under way.
pub(crate) async fn keep(
    slot: &Slot,
    (webhook, progress): (&Webhook, &Progress),
    (region, metrics): (&str, &Metrics),
    present: impl Fn() -> TaskTrackerToken,
) {
    loop {
        if let Ok(serving) = slot.serving() {
            let delivery =
                Delivery { serving: &serving, webhook, progress, region, metrics, present: &present };
            let mut delivered = pin!(delivery.run());
            tokio::select! {
                biased;
                () = serving.sealed.cancelled() => {}
                // Of the store; its own next attempt is soon.
                error = &mut delivered => {
                    if let Err(error) = error {
                        tracing::warn!(webhook = webhook.name, code = error.code().as_str(), "notifications wait");
                    }
                }
            }
        }
        tokio::time::sleep(WEBHOOK_POLL_INTERVAL).await;
    }
}

/// The delivery of one webhook's messages from one serving.
struct Delivery<'a, P> {
    serving: &'a Serving,
    webhook: &'a Webhook,
    progress: &'a Progress,
    region: &'a str,
    metrics: &'a Metrics,
    present: &'a P,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Taken,
    /// Refused, and it has several events.
    Split,
    Dead,
}

impl<P: Fn() -> TaskTrackerToken> Delivery<'_, P> {
    /// Goes on until the store fails.
    async fn run(&self) -> S3Result<()> {
        loop {
            let added = self.serving.store.events_added();
            let name = self.webhook.name.clone();
            let waiting = self.ask(move |store| store.waiting_events(&name, WEBHOOK_BATCH)).await?;
            if waiting.is_empty() {
                while self.serving.store.events_added() == added {
                    tokio::time::sleep(WEBHOOK_POLL_INTERVAL).await;
                }
                continue;
            }
            let waiting = &waiting[..message::together(&waiting)];
            match self.insist(waiting).await {
                Fate::Split => {
                    for event in waiting.chunks(1) {
                        let fate = self.insist(event).await;
                        self.settle(event, fate).await?;
                    }
                }
                fate => self.settle(waiting, fate).await?,
            }
        }
    }

    /// Sends a message again and again until it is taken, refused or given up.
    async fn insist(&self, events: &[WaitingEvent]) -> Fate {
        let mut wait = self.webhook.retry_first;
        let mut refusals = 0;
        loop {
            let Err(trouble) = self.attempt(events).await else { return Fate::Taken };
            let text = trouble.to_string();
            self.progress.failed(&self.webhook.name, &text);
            self.metrics.notifications_failed.inc();
            if trouble.is_refusal() && events.len() > 1 {
                return Fate::Split;
            }
            refusals += u32::from(trouble.is_refusal());
            if refusals >= WEBHOOK_REFUSALS_MAX || events.iter().all(|(_, event)| self.is_old(event)) {
                tracing::warn!(
                    webhook = self.webhook.name,
                    trouble = text,
                    "notifications became dead letters"
                );
                return Fate::Dead;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WEBHOOK_RETRY_MAX);
        }
    }

    fn is_old(&self, event: &Event) -> bool {
        let born = UNIX_EPOCH + Duration::from_millis(event.at_ms);
        born.elapsed().is_ok_and(|age| age >= self.webhook.give_up_after)
    }

    async fn attempt(&self, events: &[WaitingEvent]) -> Result<(), Trouble> {
        let body = message::body(events, self.region);
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let headers = message::headers(&self.webhook.secret.0, &message::id(events), now, &body);
        let message = WebhookMessage { headers, body, _present: (self.present)() };
        match self.webhook.transport.post(message).await {
            Ok(200..=299) => {
                self.progress.delivered(events.len());
                self.metrics.notifications_delivered.inc_by(events.len() as u64);
                Ok(())
            }
            Ok(status) => Err(Trouble::Status(status)),
            Err(reason) => Err(Trouble::Unreachable(reason)),
        }
    }

    /// A crash before this is durable sends the message again.
    async fn settle(&self, events: &[WaitingEvent], fate: Fate) -> S3Result<()> {
        let places: Vec<u64> = events.iter().map(|(place, _)| *place).collect();
        let (name, is_dead) = (self.webhook.name.clone(), fate == Fate::Dead);
        if is_dead {
            self.metrics.notifications_dead.inc_by(places.len() as u64);
        }
        self.ask(move |store| store.settle_events(&name, places, is_dead)).await
    }

    async fn ask<R: Send + 'static>(
        &self,
        ask: impl FnOnce(&Store) -> Result<R, StoreError> + Send + 'static,
    ) -> S3Result<R> {
        self.serving.run(move |store| ask(store).map_err(|error| from_store(&error))).await
    }
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Trouble {
    #[error("it answers with status {0}")]
    Status(u16),
    #[error("{0}")]
    Unreachable(String),
}

impl Trouble {
    /// Whether the receiver is there and will not have this message. 408 and 429 ask for patience.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Status(400..=407 | 409..=428 | 430..=499))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_long_enough_or_none() {
        assert!(WebhookSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").is_ok());
        for bad in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_!"] {
            assert_eq!(WebhookSecret::parse(bad).err(), Some(InvalidWebhookSecret), "{bad}");
        }
        assert!(!format!("{:?}", WebhookSecret(b"hidden".to_vec())).contains("104"));
    }

    #[test]
    fn only_a_receiver_that_is_there_refuses() {
        let refusals = [400, 401, 404, 410, 422, 499];
        assert!(refusals.into_iter().all(|status| Trouble::Status(status).is_refusal()));
        assert!([301, 408, 429, 500, 503].into_iter().all(|status| !Trouble::Status(status).is_refusal()));
        assert!(!Trouble::Unreachable("refused".to_owned()).is_refusal());
    }
}
