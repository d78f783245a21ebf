//! Memory for keys: an arena that a wipe empties in microseconds, and a stack that cryptographic code runs on.
//!
//! Invariants:
//! - Secret memory is `memfd_secret` between guard pages, its descriptor closed, kept out of dumps and children. Where the
//!   kernel has none, nothing is handed out unless the caller's [`Policy`] names `mlock`.
//! - The arena is words of atomics: any thread may zero it at any moment without a data race.
//! - Zeroing writes the zeros back to DRAM, allocates nothing, takes no lock and cannot fail.
//! - What ran on the [`KeyStack`] leaves nothing on any stack, whether it returned or panicked.
//! - The arena's division is fixed at compile time and needs no allocator.
//!
//! It knows no keys and no generations: who may read a word when is `keyring`'s business. It is no general allocator and
//! no place for I/O buffers (the kernel refuses direct I/O on secret memory). UNSAFE.md lists every unsafe block's reason.
#![expect(unsafe_code, reason = "maps, locks and wipes memory, and switches stacks")]

mod arena;
mod budget;
mod error;
mod key_stack;
mod map;
mod secret;
#[cfg(test)]
mod tests;
mod wipe;

pub use arena::{ARENA_BYTES, ARENA_WORDS, Arena, Layout, Span, Spans};
pub use budget::check_budget;
pub use error::{LockedMemoryError, Step};
pub use key_stack::{KEY_STACK_BYTES, KeyStack};
pub use map::{MemoryKind, Policy};
pub use secret::SecretBytes;
