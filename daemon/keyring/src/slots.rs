//! Which slot for a lent key belongs to which admission.
//!
//! A slot is free, busy (being filled or emptied, by one thread), or held under a serial number that is never used
//! again. Lock-free: a wipe empties held slots from any thread; a busy slot is left to the thread that works on it,
//! which finds out about the wipe by itself.

use super::sync::{AtomicU64, Ordering, fence};

const FREE: u64 = 0;
const BUSY: u64 = 1;
const FIRST_SERIAL: u64 = 2;

#[derive(Debug)]
pub(crate) struct Slots<const COUNT: usize> {
    states: [AtomicU64; COUNT],
    next_serial: AtomicU64,
}

impl<const COUNT: usize> Slots<COUNT> {
    pub(crate) fn new() -> Self {
        const { assert!(COUNT < u16::MAX as usize, "slot numbers are 16 bits") };
        Self {
            states: std::array::from_fn(|_| AtomicU64::new(FREE)),
            next_serial: AtomicU64::new(FIRST_SERIAL),
        }
    }

    /// Takes a free slot to fill it, and the serial that it will be held under.
    pub(crate) fn claim(&self) -> Option<(u16, u64)> {
        let slot = (0u16..).zip(&self.states).find_map(|(slot, state)| {
            let free = state.load(Ordering::Relaxed) == FREE
                && state.compare_exchange(FREE, BUSY, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            free.then_some(slot)
        })?;
        Some((slot, self.next_serial.fetch_add(1, Ordering::SeqCst)))
    }

    /// Declares a claimed slot held under the serial that came with it.
    pub(crate) fn publish(&self, slot: u16, serial: u64) {
        self.state(slot).store(serial, Ordering::SeqCst);
    }

    /// Gives a claimed slot back, which the caller has emptied.
    pub(crate) fn release(&self, slot: u16) {
        fence(Ordering::SeqCst);
        self.state(slot).store(FREE, Ordering::SeqCst);
    }

    /// Whether the slot is still held under `serial`. To be asked after the last load of the key, behind a fence.
    pub(crate) fn holds(&self, slot: u16, serial: u64) -> bool {
        self.state(slot).load(Ordering::SeqCst) == serial
    }

    /// Ends `serial`, runs `zero`, and frees the slot, in this order: whoever loads a zero finds the serial gone, and
    /// nobody fills the slot while it is being zeroed. Does nothing where the slot is not held under `serial`.
    pub(crate) fn withdraw(&self, slot: u16, serial: u64, zero: impl FnOnce()) {
        let state = self.state(slot);
        if state.compare_exchange(serial, BUSY, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            fence(Ordering::SeqCst);
            zero();
            self.release(slot);
        }
    }

    /// Frees every held slot; the caller has zeroed them. Returns how many there were.
    pub(crate) fn free_all(&self) -> usize {
        let mut freed = 0;
        for state in &self.states {
            let serial = state.load(Ordering::SeqCst);
            let held = serial >= FIRST_SERIAL;
            if held && state.compare_exchange(serial, FREE, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                freed += 1;
            }
        }
        freed
    }

    /// Number of held slots.
    pub(crate) fn held(&self) -> usize {
        self.states.iter().filter(|state| state.load(Ordering::SeqCst) >= FIRST_SERIAL).count()
    }

    fn state(&self, slot: u16) -> &AtomicU64 {
        &self.states[usize::from(slot)]
    }
}
