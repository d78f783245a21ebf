//! Which hot slot holds which key, and who is using it.
//!
//! A hot slot is free, being filled by one thread, or holds the key of one admission's serial, with a count of uses. Only
//! a slot that nobody uses is taken for another key. Lock-free. A wipe does not touch it: a serial is never used again,
//! so a slot whose key was wiped is found by nobody and taken for another key once its last use has ended.
//!
//! Order, and what breaks when swapped:
//! promote:  1. `claim`   2. fill   3. generation still the noted one, else zero and `release`   4. `publish`
//!           5. serial still lent, else zero   (use)   6. `unpin`
//! withdraw: 1. end the serial   2. `pin_any`: a copy of it?   3. zero the copy   4. `unpin`
//! - publish before the check of 3: a wipe zeroes, then the slot is filled, and the key stays in the arena for good.
//! - without 5: a withdrawal looks for copies before the slot is published, and the key stays.
//! - zeroing an unpinned copy: the slot may hold another key by then, and a use of that would compute with zeros.

use super::sync::{AtomicU64, Ordering};

/// The low bits count uses.
const USES_MASK: u64 = 0x7fff;
/// Used since the hand last came by.
const RECENT: u64 = 0x8000;
const SERIAL_SHIFT: u32 = 16;

/// Serials below [`super::slots`]' first are states.
const FREE: u64 = 0;
const FILLING: u64 = 1 << SERIAL_SHIFT;

#[derive(Debug)]
pub(crate) struct HotSet<const COUNT: usize> {
    states: [AtomicU64; COUNT],
    /// Where the search for a slot to take goes on.
    hand: AtomicU64,
}

impl<const COUNT: usize> HotSet<COUNT> {
    pub(crate) fn new() -> Self {
        Self { states: std::array::from_fn(|_| AtomicU64::new(FREE)), hand: AtomicU64::new(0) }
    }

    /// Counts a use of `slot`, if it holds `serial`. From then on it holds it until [`HotSet::unpin`].
    pub(crate) fn pin(&self, slot: usize, serial: u64) -> bool {
        let Some(state) = self.states.get(slot) else { return false };
        let mut seen = state.load(Ordering::SeqCst);
        while seen >> SERIAL_SHIFT == serial {
            match state.compare_exchange(seen, (seen + 1) | RECENT, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Counts a use of whichever slot holds `serial`.
    pub(crate) fn pin_any(&self, serial: u64) -> Option<usize> {
        (0..COUNT).find(|slot| self.pin(*slot, serial))
    }

    /// Ends a use.
    pub(crate) fn unpin(&self, slot: usize) {
        self.states[slot].fetch_sub(1, Ordering::SeqCst);
    }

    /// Takes a slot that nobody uses, to fill it: one that was not used since the hand last came by, if there is one.
    /// `None` where all are in use or being filled.
    pub(crate) fn claim(&self) -> Option<usize> {
        // The second round meets what the first has marked as not recent.
        for _ in 0..2 * COUNT + 1 {
            let slot = usize::try_from(self.hand.fetch_add(1, Ordering::Relaxed)).unwrap_or(0) % COUNT;
            let state = &self.states[slot];
            let seen = state.load(Ordering::SeqCst);
            if seen == FILLING || seen & USES_MASK != 0 {
                continue;
            }
            let next = if seen & RECENT == 0 { FILLING } else { seen & !RECENT };
            let taken = state.compare_exchange(seen, next, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            if taken && next == FILLING {
                return Some(slot);
            }
        }
        None
    }

    /// Declares a claimed slot to hold `serial`, with one use: the caller's.
    pub(crate) fn publish(&self, slot: usize, serial: u64) {
        self.states[slot].store(serial << SERIAL_SHIFT | RECENT | 1, Ordering::SeqCst);
    }

    /// Gives a claimed slot back, which the caller has zeroed.
    pub(crate) fn release(&self, slot: usize) {
        self.states[slot].store(FREE, Ordering::SeqCst);
    }

    /// Slots in use or being filled.
    #[cfg(test)]
    pub(crate) fn busy(&self) -> usize {
        let busy = |seen: u64| seen == FILLING || seen & USES_MASK != 0;
        self.states.iter().filter(|state| busy(state.load(Ordering::SeqCst))).count()
    }
}
