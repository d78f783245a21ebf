//! Memory for keys.
#![expect(unsafe_code, reason = "maps, locks and wipes memory, and switches stacks")]

mod arena;
mod error;
mod key_stack;
mod map;
mod secret;
mod wipe;

pub use arena::{ARENA_BYTES, ARENA_WORDS, Arena, Layout, Span, Spans};
pub use error::{LockedMemoryError, Step};
pub use key_stack::{KEY_STACK_BYTES, KeyStack};
pub use map::{MemoryKind, Policy};
pub use secret::SecretBytes;
