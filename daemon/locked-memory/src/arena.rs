//! The arena: 64 KiB of 64-bit words in secret memory, divided once and for all when the program is compiled.
//!
//! Words are atomics. A wipe stores zeros while other threads may be loading keys, and with relaxed atomics that is no
//! data race: a loader gets a word from before or zero, and finds out afterwards, through the keyring's generation,
//! that its result is worthless.

use std::fmt;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU64;

use crate::error::LockedMemoryError;
use crate::map::{Mapping, MemoryKind, Policy};
use crate::secret::SecretBytes;
use crate::wipe::Flush;

/// Size of the arena. Small, so that zeroing and flushing it stays under 100 µs.
pub const ARENA_BYTES: usize = 64 * 1024;

/// Words in the arena.
pub const ARENA_WORDS: usize = ARENA_BYTES / 8;

/// Words in a cache line; spans begin on one, so that zeroing one never touches another.
const LINE_WORDS: usize = 8;

/// `N` words at a fixed place of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<const N: usize> {
    start: usize,
}

/// `COUNT` spans of `N` words each, side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spans<const N: usize, const COUNT: usize> {
    start: usize,
}

impl<const N: usize, const COUNT: usize> Spans<N, COUNT> {
    /// How many there are.
    pub const COUNT: usize = COUNT;

    /// The span number `index`, `None` past the last.
    pub const fn at(self, index: usize) -> Option<Span<N>> {
        if index < COUNT { Some(Span { start: self.start + index * stride(N) }) } else { None }
    }
}

/// Divides an arena at compile time; running out of room does not compile.
///
/// ```
/// use locked_memory::{Layout, Span, Spans};
/// const LAYOUT: (Layout, Span<4>) = Layout::new().take();
/// const ROOT: Span<4> = LAYOUT.1;
/// const KEYS: Spans<90, 64> = LAYOUT.0.take_many().1;
/// # let _ = (ROOT, KEYS);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    next: usize,
}

impl Layout {
    /// An undivided arena.
    pub const fn new() -> Self {
        Self { next: 0 }
    }

    /// The next `N` words.
    pub const fn take<const N: usize>(self) -> (Self, Span<N>) {
        let (rest, spans) = self.take_many::<N, 1>();
        (rest, Span { start: spans.start })
    }

    /// The next `COUNT` spans of `N` words.
    pub const fn take_many<const N: usize, const COUNT: usize>(self) -> (Self, Spans<N, COUNT>) {
        let start = self.next;
        let next = start + COUNT * stride(N);
        assert!(next <= ARENA_WORDS, "the arena is too small for this layout");
        (Self { next }, Spans { start })
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self::new()
    }
}

const fn stride(words: usize) -> usize {
    words.next_multiple_of(LINE_WORDS)
}

/// 64 KiB of secret memory between guard pages: not dumped, not inherited by children, unreachable by descriptor, and
/// sealed against unmapping where the kernel can.
pub struct Arena {
    words: NonNull<AtomicU64>,
    mapping: Mapping,
    flush: Flush,
    sealed: bool,
}

// SAFETY: the arena is a slice of atomics that it owns through `mapping`.
unsafe impl Send for Arena {}
// SAFETY: it is only ever accessed as `&[AtomicU64]`.
unsafe impl Sync for Arena {}

impl fmt::Debug for Arena {
    /// Says where and what, never the contents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("kind", &self.kind())
            .field("sealed", &self.sealed)
            .finish_non_exhaustive()
    }
}

impl Arena {
    /// A fresh arena, all zeros.
    pub fn new(policy: Policy) -> Result<Self, LockedMemoryError> {
        let mapping = Mapping::new(ARENA_BYTES, policy)?;
        let sealed = mapping.seal();
        let arena = Self { words: mapping.base().cast(), mapping, flush: Flush::detect(), sealed };
        // The first store to each page makes it resident: a wipe must not wait for the page allocator.
        arena.zero();
        Ok(arena)
    }

    /// What the arena is made of.
    pub fn kind(&self) -> MemoryKind {
        self.mapping.kind()
    }

    /// Whether the kernel refuses every later change of the mapping (`mseal`).
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// The words of `span`.
    pub fn words<const N: usize>(&self, span: Span<N>) -> &[AtomicU64; N] {
        // A `Span` is only made by a `Layout`, so it lies inside.
        let words = &self.all()[span.start..][..N];
        // SAFETY: the slice above has exactly N elements, and an array is laid out like the slice of its elements.
        unsafe { &*words.as_ptr().cast::<[AtomicU64; N]>() }
    }

    /// The words of `span` as one secret of `8 * N` bytes.
    pub fn secret<const N: usize>(&self, span: Span<N>) -> &SecretBytes<N> {
        SecretBytes::over(self.words(span))
    }

    /// Zeroes `span` and returns when the zeros are in memory.
    pub fn zero_span<const N: usize>(&self, span: Span<N>) {
        self.flush.zero(self.words(span));
    }

    /// Zeroes everything and returns when the zeros are in memory. Allocates nothing, takes no lock, cannot fail; callable
    /// from any thread and from a signal handler, any number of times at once.
    pub fn zero(&self) {
        self.flush.zero(self.all());
    }

    fn all(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is ARENA_BYTES long, page-aligned, readable and writable for as long as `self` lives;
        // any bits are valid for atomics.
        unsafe { slice::from_raw_parts(self.words.as_ptr(), ARENA_WORDS) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.zero();
    }
}
