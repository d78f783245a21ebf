//! The NBD head from outside: an in-process server over a sealed volume on a simulated device, against raw sockets that
//! break every rule, the crate's own client, and real clients.
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panicking")]

mod abuse;
mod access;
mod clients;
mod commands;
mod concurrency;
mod contexts;
mod durability;
mod letter;
mod metrics;
mod raw;
mod rig;
mod seal;
mod styles;
mod tls;
