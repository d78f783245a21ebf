//! The S3 head as its clients see it, over loopback, on a store in memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod clients;
mod protocol;
mod sealing;
mod server;
