//! One receiver: where it is, what signs for it, and one attempt to tell it something.
//!
//! Signed as the Standard Webhooks specification has it (standardwebhooks.com, "Signature scheme"): HMAC-SHA-256 over
//! `id.timestamp.body`, so receivers have a library for it in any language.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use config::WebhookConfig;
use hmac::{Hmac, KeyInit, Mac};
use identity::{IdentityError, PrivateFile};
use sha2::Sha256;
use url::Url;
use zeroize::Zeroizing;

use super::courier::Letter;
use super::event;
use crate::clock;
use crate::outgoing::{Outgoing, OutgoingError};

/// What a secret's text begins with, as the specification has it.
const SECRET_PREFIX: &str = "whsec_";

/// Bytes of a secret, as the specification has it.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Secrets of one receiver: the new one and the old one while both are in use.
const SECRETS_MAX: usize = 2;

/// Why a receiver cannot be told anything, found at the start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebhookError {
    /// Its secret's file or its authorities.
    #[error("webhook {name}: {source}")]
    Identity {
        /// Its name.
        name: String,
        /// What cannot be read.
        #[source]
        source: IdentityError,
    },
    /// The file holds something else.
    #[error(
        "webhook {name}: its secret file holds no secret; write one with `nightlatch webhook secret FILE` (one line, or \
         two while the receiver changes from one to the other)"
    )]
    NoSecret {
        /// Its name.
        name: String,
    },
    /// An event that never happens.
    #[error("webhook {name}: `{event}` is no event; there are {}", names.join(", "))]
    NoEvent {
        /// Its name.
        name: String,
        /// What stands in the configuration.
        event: String,
        /// What could.
        names: Vec<&'static str>,
    },
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undelivered {
    /// It answered nothing.
    #[error(transparent)]
    Outgoing(#[from] OutgoingError),
    /// It answered something else than that it has taken the event.
    #[error("it answered {0}")]
    Answered(u16),
}

impl Undelivered {
    /// Whether the receiver has read the event and does not want it: trying for a day helps little, and holds up what comes after.
    pub(super) const fn is_refusal(&self) -> bool {
        matches!(self, Self::Answered(400..=499)) && !matches!(self, Self::Answered(408 | 425 | 429))
    }
}

/// A receiver, ready to be told.
pub struct Webhook {
    name: String,
    url: Url,
    events: Vec<String>,
    secrets: Vec<Zeroizing<Vec<u8>>>,
    outgoing: Outgoing,
    give_up_after: Duration,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Webhook {
    /// Reads its secret and authorities.
    pub fn load(config: &WebhookConfig) -> Result<Self, WebhookError> {
        let name = config.name.to_string();
        let identity = |source| WebhookError::Identity { name: name.clone(), source };
        let file = PrivateFile::read(&config.secret, "webhook secret").map_err(identity)?;
        let secrets = read_secrets(&file).ok_or_else(|| WebhookError::NoSecret { name: name.clone() })?;
        if let Some(event) = config.events.iter().find(|wanted| !event::is_known(wanted)) {
            return Err(WebhookError::NoEvent { name, event: event.clone(), names: event::names() });
        }
        let outgoing = Outgoing::for_url(&config.url, &config.ca).map_err(identity)?;
        Ok(Self {
            name,
            url: config.url.clone(),
            events: config.events.clone(),
            secrets,
            outgoing,
            give_up_after: Duration::from_secs(config.give_up_after_s),
        })
    }

    /// What people call it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where it is, without path and query: those may be its secrets.
    pub(super) fn address(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    /// Which events it wants.
    pub(super) fn events(&self) -> &[String] {
        &self.events
    }

    pub(super) fn give_up_after(&self) -> Duration {
        self.give_up_after
    }

    pub(super) fn wants(&self, event: &str) -> bool {
        self.events.iter().any(|wanted| event::is_meant(wanted, event))
    }

    /// One attempt; the status that says it was taken.
    pub(super) async fn send(&self, letter: &Letter) -> Result<u16, Undelivered> {
        let at = clock::unix_s();
        let request = Request::builder()
            .method(Method::POST)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("nightlatch-keyholder/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", &letter.id)
            .header("webhook-timestamp", at)
            .header("webhook-signature", signatures(&self.secrets, letter, at))
            .body(Body::from(letter.body.clone()))
            .map_err(|error| OutgoingError::Unreachable(error.to_string()))?;
        let status = self.outgoing.deliver(&self.url, request).await?;
        if (200..300).contains(&status) { Ok(status) } else { Err(Undelivered::Answered(status)) }
    }
}

/// One secret a line; a second one while the receiver changes from one to the other.
fn read_secrets(file: &[u8]) -> Option<Vec<Zeroizing<Vec<u8>>>> {
    let lines = std::str::from_utf8(file).ok()?.split_whitespace();
    let secret = |line: &str| {
        let bytes = Zeroizing::new(BASE64.decode(line.strip_prefix(SECRET_PREFIX)?).ok()?);
        SECRET_BYTES.contains(&bytes.len()).then_some(bytes)
    };
    let secrets: Vec<_> = lines.map(secret).collect::<Option<_>>()?;
    (1..=SECRETS_MAX).contains(&secrets.len()).then_some(secrets)
}

fn signatures(secrets: &[Zeroizing<Vec<u8>>], letter: &Letter, at_unix_s: u64) -> String {
    let sign = |secret: &Zeroizing<Vec<u8>>| {
        // HMAC takes keys of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
        mac.update(format!("{}.{at_unix_s}.", letter.id).as_bytes());
        mac.update(letter.body.as_bytes());
        Some(format!("v1,{}", BASE64.encode(mac.finalize().into_bytes())))
    };
    secrets.iter().filter_map(sign).collect::<Vec<_>>().join(" ")
}

/// Writes a new secret.
pub fn create_secret(path: &Path) -> Result<(), WebhookSecretError> {
    let mut random = Zeroizing::new([0; 32]);
    getrandom::fill(random.as_mut_slice()).map_err(WebhookSecretError::Random)?;
    let text = Zeroizing::new(format!("{SECRET_PREFIX}{}\n", BASE64.encode(random.as_slice())));
    Ok(PrivateFile::create(path, text.as_bytes())?)
}

/// Why there is no new secret.
#[derive(Debug, thiserror::Error)]
pub enum WebhookSecretError {
    /// The system has no random bytes.
    #[error("there are no random bytes: {0}; try again")]
    Random(getrandom::Error),
    /// The file cannot be written.
    #[error(transparent)]
    File(#[from] IdentityError),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference libraries (their test suites have it).
    #[test]
    fn a_signature_is_that_of_the_specification() {
        let secrets = read_secrets(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let letter = Letter {
            id: "msg_p5jXN8AQM9LWM0D4loKWxJek".to_owned(),
            body: r#"{"test": 2432232314}"#.to_owned(),
            event: event::TEST,
            at_unix_s: 0,
        };
        assert_eq!(
            signatures(&secrets, &letter, 1_614_265_330),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn two_secrets_sign_side_by_side_and_nothing_else_is_a_secret() {
        let line = |bytes: usize| format!("{SECRET_PREFIX}{}\n", BASE64.encode(vec![7; bytes]));
        for (text, count) in [
            (line(24), Some(1)),
            (line(64), Some(1)),
            (line(24) + &line(32), Some(2)),
            (line(23), None),
            (line(65), None),
            (line(32).repeat(3), None),
            (String::new(), None),
            ("whsec_".to_owned(), None),
            (BASE64.encode([7; 32]), None),
        ] {
            assert_eq!(read_secrets(text.as_bytes()).map(|secrets| secrets.len()), count, "{text}");
        }
    }

    #[test]
    fn a_secret_that_is_made_is_one_and_is_written_over_by_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create_secret(&path).unwrap();
        assert!(read_secrets(&std::fs::read(&path).unwrap()).is_some());
        assert!(create_secret(&path).is_err());
    }

    #[test]
    fn what_a_receiver_has_read_and_refused_is_told_from_what_may_pass() {
        for (failure, refusal) in [
            (Undelivered::Answered(400), true),
            (Undelivered::Answered(410), true),
            (Undelivered::Answered(408), false),
            (Undelivered::Answered(429), false),
            (Undelivered::Answered(500), false),
            (Undelivered::Answered(302), false),
            (OutgoingError::Timeout.into(), false),
        ] {
            assert_eq!(failure.is_refusal(), refusal, "{failure}");
        }
    }
}
