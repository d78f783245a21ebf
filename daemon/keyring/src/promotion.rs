//! Lent keys between shelf and hot set.
//!
//! A use holds its key in a hot slot, or brings it in: opened on the promotion stack, checked, stored, published, in the order
//! that `hot.rs` gives. One thread at a time promotes, so a key is never in two slots. Nothing is written back when a slot is
//! taken for another key: the shelf has every key.

use std::sync::atomic::Ordering;

use crate::hot::HotSet;
use crate::shelf::{self, ExpandedKey, WrappedKey};
use crate::{HOT_KEYS, KeyGone, KeyHandle, Keyring, hot_span};

/// A key in its hot slot, which is not taken for another as long as this lives.
pub(crate) struct Hot<'a> {
    set: &'a HotSet<HOT_KEYS>,
    slot: usize,
    key: ExpandedKey<'a>,
}

impl<'a> Hot<'a> {
    pub(crate) fn key(&self) -> ExpandedKey<'a> {
        self.key
    }
}

impl Drop for Hot<'_> {
    fn drop(&mut self) {
        self.set.unpin(self.slot);
    }
}

impl Keyring {
    /// Holds `key` in a hot slot. The caller has noted its use and has checked the key since.
    pub(crate) fn hold(&self, key: KeyHandle, scratch: usize) -> Result<Hot<'_>, KeyGone> {
        let hint = usize::from(self.hints[usize::from(key.slot)].load(Ordering::Relaxed));
        let slot = if self.hot.pin(hint, key.serial) {
            hint
        } else {
            self.promotion_stack.run(|| self.promote(key, scratch))?
        };
        Ok(Hot { set: &self.hot, slot, key: self.hot_key(slot) })
    }

    /// Brings `key` into a hot slot, counting the caller's use.
    fn promote(&self, key: KeyHandle, scratch: usize) -> Result<usize, KeyGone> {
        // Another use may have brought it in while this one waited for its turn.
        let slot = match self.hot.pin_any(key.serial) {
            Some(slot) => slot,
            None => self.bring_in(key, scratch)?,
        };
        if let Ok(hint) = u16::try_from(slot) {
            self.hints[usize::from(key.slot)].store(hint, Ordering::Relaxed);
        }
        Ok(slot)
    }

    fn bring_in(&self, key: KeyHandle, scratch: usize) -> Result<usize, KeyGone> {
        let slot = self.free_hot_slot();
        let mut wrapped = WrappedKey::empty();
        self.shelf.take_copy(key.slot, &mut wrapped);
        let slot_key = self.slot_key();
        let cipher = self.cipher(slot_key, scratch);
        let intact = shelf::unwrap(cipher, slot_key.tag(), key.serial, &wrapped, self.hot_key(slot));
        if !intact || !self.gate.is_current(key.generation) {
            self.arena.zero_span(hot_span(slot));
            self.hot.release(slot);
            // A wipe or a withdrawal explains it. If not, memory has changed: that copy opens for nobody any more.
            self.check(key)?;
            self.withdraw(key.slot, key.serial);
            return Err(KeyGone::Damaged);
        }
        self.hot.publish(slot, key.serial);
        if !self.slots.holds(key.slot, key.serial) {
            self.arena.zero_span(hot_span(slot));
            self.hot.unpin(slot);
            return self.check(key).and(Err(KeyGone::Stale));
        }
        self.promotions.fetch_add(1, Ordering::Relaxed);
        Ok(slot)
    }

    /// A hot slot for this thread to fill. There are more than uses and withdrawals at a time, so this ends soon.
    fn free_hot_slot(&self) -> usize {
        loop {
            if let Some(slot) = self.hot.claim() {
                return slot;
            }
            std::thread::yield_now();
        }
    }

    fn hot_key(&self, slot: usize) -> ExpandedKey<'_> {
        ExpandedKey::over(self.arena.words(hot_span(slot)))
    }
}
