//! The generation gate: how a use of a key finds out that it raced with a wipe.
//!
//! A wipe never waits for anyone, so a use of a key may run into zeros at any word. It is made harmless by order:
//!
//! wiper: 1. `begin`: bump the generation, fence   2. zero the keys   3. `finish`
//! use:   1. generation is the handle's   2. load keys   3. fence, generation is *still* the handle's
//! admit: 1. `enter`: no wipe is running, note the generation   2. store the key   3. fence, generation still the noted
//!        4. publish the slot   5. fence, generation still the noted
//!
//! What breaks when swapped:
//! - zero before bump: a use loads zeros, finds the old generation, and hands out what zeros encrypted.
//! - `enter` without waiting for `finish`: a key is stored under the new generation while the old wipe is still
//!   zeroing, and a use of it sees zeros under a valid generation.
//! - a use without its last check: as the first.
//! - publish before the check of step 3: a wipe may zero, then the key is stored and published, then the wipe frees the
//!   slot with the key still in it.
//!
//! `tests/gate.rs` runs this very file and `slots.rs` under loom, in this order and in each of the swapped ones.

use super::sync::{AtomicU64, Ordering, fence};

/// Counts wipes that began and wipes that finished.
#[derive(Debug)]
pub(crate) struct Gate {
    begun: AtomicU64,
    finished: AtomicU64,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self { begun: AtomicU64::new(0), finished: AtomicU64::new(0) }
    }

    /// The number of wipes that have begun: the generation that new keys belong to.
    pub(crate) fn generation(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// The generation under which a key may be stored now; `None` while a wipe is zeroing.
    ///
    /// `finished` never passes `begun`, so reading it first and finding both equal proves that at the second read
    /// nobody was between `begin` and `finish`.
    pub(crate) fn enter(&self) -> Option<u64> {
        let finished = self.finished.load(Ordering::SeqCst);
        let begun = self.begun.load(Ordering::SeqCst);
        (begun == finished).then_some(begun)
    }

    /// Whether no wipe has begun since `generation`. Every load of a key before the call happened before the answer:
    /// whoever loaded a zero that a wipe stored gets `false`.
    pub(crate) fn is_current(&self, generation: u64) -> bool {
        fence(Ordering::SeqCst);
        self.begun.load(Ordering::SeqCst) == generation
    }

    /// Step 1 of a wipe. Returns the generation that begins. No store after it can be seen by whoever does not see it.
    pub(crate) fn begin(&self) -> u64 {
        let generation = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        fence(Ordering::SeqCst);
        generation
    }

    /// Step 3 of a wipe: everything is zero.
    pub(crate) fn finish(&self) {
        fence(Ordering::SeqCst);
        self.finished.fetch_add(1, Ordering::SeqCst);
    }
}
