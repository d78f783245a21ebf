//! Certificates, connections and files of the identity crate, from outside.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod files;
mod handshake;
mod https;
mod support;
