//! AES-256-XTS, and the sector record's tag, over key schedules that stay where they were expanded.
//!
//! Invariants:
//! - A schedule is never held by value. It is words of the arena seen through a reference, expanded in place, and read
//!   a round key at a time.
//! - Its words are relaxed atomics: another thread may zero them at any moment without a data race. The result is then
//!   garbage, which the caller must find out and discard (the keyring's generation).
//! - A sector's tag is AES over a keyed hash and never a hash under a mask: sequences repeat. TAG.md has the bounds.
//! - No table lookup and no branch depends on a key, a tweak or data.
//! - On return neither registers nor the stack below the caller hold a round key, a tweak or cipher state, and the
//!   scratch is zero. The kernels in machine code write the destination and the scratch and nothing else.
//! - A [`Kernel`] that exists can run on this processor. Choosing one by name is the program's business: nothing here
//!   reads the environment.
//!
//! It knows no volumes, addresses or leases. Only `keyring` expands schedules and only `sealing` encrypts with them.
//! Ciphertext stealing is left out: sectors are whole blocks.
#![expect(unsafe_code, reason = "kernels in machine code, and views of arena words")]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod batch;
mod kernel;
mod polyval;
mod portable;
mod schedule;
mod scratch;
mod scrub;
mod sealed;
mod tag;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use batch::{BLOCK_BYTES, BatchError, Cipher, Direction, SECTOR_BYTES_MAX, SECTOR_BYTES_MIN, Sectors};
pub use kernel::{Kernel, KernelError};
pub use schedule::{SCHEDULE_WORDS, XtsKeyError, XtsSchedule};
pub use scratch::{SCRATCH_WORDS, Scratch};
pub use tag::{Binding, Record, TAG_BYTES, TAG_BYTES_MIN, TAG_WORDS, Tag, TagError, TagSchedule};
