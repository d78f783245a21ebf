//! `nightlatchd`, the storage node: composes pools, keys and heads, and forgets on time.
//!
//! ```text
//!   key_port (lease sessions) ──┐                    ┌── NBD, S3
//!   control (administration) ───┼── node (state) ────┤
//!   wiper (thread) ── events ───┘                    └── pools
//!     └ sources of triggers
//! ```
//!
//! Invariants:
//! - Keys are gone before anything else learns of a wipe ([`wiper`]).
//! - A node without keys runs: pools are open, health and status answer, and a keyholder can dial in.
//! - Nothing is served before every part of the configuration has been accepted ([`startup`]).

mod boot_clock;
mod cipher;
mod control;
mod hygiene_watch;
mod key_port;
mod listeners;
mod metrics;
mod node;
#[cfg(feature = "rehearsal")]
pub mod rehearsal;
mod scrub;
mod sources;
mod stages;
mod startup;
mod threads;
mod transfer;
mod wiper;

pub use startup::{Prepared, prepare};
pub use threads::runtime;
pub use wiper::block_signals;
