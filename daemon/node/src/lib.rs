//! `nightlatchd`, the storage node: composes pools, keys and heads, and forgets on time.
//!
//! ```text
//!   key_port (lease sessions) ──┐                    ┌── NBD, S3
//!   control (administration) ───┼── node (state) ────┤
//!   wiper (thread) ── events ───┘                    └── pools
//!     └ sources of triggers         attestor (thread) ── TPM
//!                                   health_watch (thread) ── the machine's parts
//! ```
//!
//! Invariants:
//! - Keys are gone before anything else learns of a wipe ([`wiper`]).
//! - A node without keys runs: pools are open, health and status answer, and a keyholder can dial in.
//! - Nothing is served before every part of the configuration has been accepted ([`startup`]).

mod attestor;
mod boot_clock;
mod cipher;
mod claims;
mod control;
mod damage;
mod exports;
mod health_metrics;
mod health_watch;
mod heartbeat;
mod hygiene_watch;
mod key_port;
mod listeners;
mod lock;
mod metrics;
mod node;
mod readiness;
#[cfg(feature = "rehearsal")]
pub mod rehearsal;
mod rekey;
mod replication;
mod retention;
mod schedule;
mod scrub;
mod snapshots;
mod sources;
mod stages;
mod startup;
mod state_file;
mod threads;
mod trail;
mod transfer;
mod webhooks;
mod wipe_log;
mod wiper;

pub use listeners::Passed;
pub use startup::{Prepared, prepare};
pub use threads::runtime;
pub use wiper::block_signals;
