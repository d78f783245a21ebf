//! The S3 head as its clients see it, over loopback, on a store in memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod access_log;
mod client;
mod clients;
mod named_keys;
mod notifications;
mod protocol;
mod rights;
mod sealing;
mod server;
mod strangers;
