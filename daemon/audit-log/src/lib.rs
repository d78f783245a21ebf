//! The audit trail: what a program did, in a form and an order that nobody can change unnoticed. AUDIT.md has the bytes.
//!
//! - [`Trail`] writes: one JSON object a line, chained by hash, signed, in segments of bounded length.
//! - [`Verifier`] reads a trail and says what does not hold.
//! - [`Witness`] keeps heads only, in another place, and finds what no trail shows by itself: an end that was cut off, and a
//!   second trail in the place of the first.
//! - [`crosscheck()`] compares a keyholder's trail with a node's.
//! - [`Filter`], [`export`]: for reading. [`Refusals`]: how many of them are written.
//!
//! Invariants:
//! - An entry that was appended and synced is found by every later verification, or its absence is.
//! - The chain links digests, so a witness checks it without ever seeing what the entries say.
//! - Entries name actors, nodes, volumes by id and label, and nothing of what customers store.
//!
//! It holds no key (a [`Signer`] is handed in), reads no clock (a [`Moment`] is) and opens no connection.

mod chain;
mod crosscheck;
mod entry;
pub mod export;
mod refusals;
mod search;
mod trail;
mod v1;
mod verify;
mod witness;

pub use chain::{Digest, Hash, Head, Opening, Signer, TrailId, certificate_digest, head_digest, link};
pub use crosscheck::{Disagreement, crosscheck};
pub use entry::{Entry, MalformedEntry, Moment};
pub use refusals::{Due, REFUSALS_PER_MINUTE, Refusals};
pub use search::Filter;
pub use trail::{ENTRIES_MAX, Found, Limits, Page, Reader, Trail, TrailError, read_dir};
pub use verify::{Finding, Report, Session, Severity, Verifier};
pub use witness::{Observed, SignedHead, Suspicion, Witness};
