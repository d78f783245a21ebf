//! The only door between clear and sealed bytes.
//!
//! Invariants:
//! - Nothing clear reaches a device: [`Clear`] and `device::Sealed` are different types, and [`seal`] is the only way
//!   from one to the other. It consumes the clear buffer.
//! - What was computed while the key went is discarded: never written, never returned.
//! - The tweak of a sector is its number inside the key domain, whatever place the pool gives it: ciphertext can be moved
//!   without a key.
//! - Between calls a sector changes as a whole; overlapping and sub-sector writes lose no update.
//! - Every call checks the key before it does anything and again before its answer leaves.
//!
//! It has no thread, socket or cache of its own, and it knows no lease: only that a key is gone.

mod clear;
mod error;
mod function;
mod keys;
mod locks;
mod rekey;
#[cfg(feature = "simulated")]
pub mod simulated;
mod snapshots;
mod volume;
mod witness;

pub use clear::{Bound, Clear, Damage, UnsealError, seal, unseal};
pub use error::{ErrorKind, Operation, VolumeError};
pub use function::{FUNCTION_INPUT_BYTES, KeyFunction};
pub use keyring::KeyGone;
pub use keys::VolumeKeys;
pub use rekey::Moved;
pub use snapshots::Snapshots;
pub use volume::{Durability, Presence, Volume, ZeroMode};
pub use witness::KeyWitness;
