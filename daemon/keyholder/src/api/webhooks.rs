//! Receivers of events, and what they did not take.

use serde::{Deserialize, Serialize};

/// A receiver of events, as the keyholder's configuration has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookEntry {
    /// Its name.
    pub name: String,
    /// Scheme, host and port: path and query may be the receiver's secrets.
    pub address: String,
    /// Which events it is told of: names, or the beginning of one followed by `*`.
    pub events: Vec<String>,
    /// It has been told, or given up on, all up to this entry of the trail.
    pub told_up_to_entry: u64,
    /// Events that it took since the keyholder was started.
    pub delivered: u64,
    /// What it is tried with again and again.
    pub waiting: Option<WaitingEvent>,
    /// What was given up, oldest first.
    pub dead_letters: Vec<DeadLetter>,
    /// Dead letters that had no room any more.
    pub dropped_letters: u64,
}

/// An event that a receiver has not taken yet; what comes after it waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingEvent {
    /// Its entry in the trail.
    pub entry: u64,
    /// Its name.
    pub event: String,
    /// Since when, seconds since 1970.
    pub since_unix_s: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub why: String,
}

/// An event that a receiver did not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Its entry in the trail.
    pub entry: u64,
    /// Its name.
    pub event: String,
    /// When it happened, seconds since 1970.
    pub at_unix_s: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub why: String,
}

/// Names dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Letters {
    /// By their entries in the trail; all of them where empty.
    #[serde(default)]
    pub entries: Vec<u64>,
}

/// A receiver took the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookTested {
    /// The HTTP status of its answer.
    pub status: u16,
    /// How long it took, milliseconds.
    pub elapsed_ms: u64,
}
