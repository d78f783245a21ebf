//! AES-256-XTS over key schedules that stay where they were expanded.
//!
//! Invariants:
//! - A schedule is never held by value. It is words of the arena seen through a reference, expanded in place, and read
//!   a round key at a time.
//! - Its words are relaxed atomics: another thread may zero them at any moment without a data race. The result is then
//!   garbage, which the caller must find out and discard (the keyring's generation).
//! - No table lookup and no branch depends on a key, a tweak or data.
//! - On return neither registers nor the stack below the caller hold a round key, a tweak or cipher state.
//!
//! It knows no volumes, addresses or leases. Only `keyring` expands schedules and only `sealing` encrypts with them.
//! Ciphertext stealing is left out: sectors are whole blocks.
#![expect(unsafe_code, reason = "views arena words as a schedule and clears registers")]

mod schedule;
mod scrub;
mod xts;

pub use schedule::{SCHEDULE_WORDS, XtsKeyError, XtsSchedule};
pub use xts::{BLOCK_BYTES, decrypt, encrypt};
