//! Memory for sector buffers, kept for the next one when it is let go of.
//!
//! What a node moves goes through buffers of a few sizes, thousands of times a second. The allocator would look for each anew and,
//! as the programs have it, wipe each on its return: for ciphertext that is work without a purpose, a fifth of all that a
//! write cost.
//!
//! Invariants:
//! - Memory is aligned to a sector and always initialised: zeros when new, what a buffer before held otherwise.
//! - Nothing clear comes here: who puts it into a buffer wipes it first (`sealing::Clear` does).
//! - What is kept is bounded, by size: [`KEPT_BYTES`] each.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::num::NonZero;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use units::SECTOR_BYTES;

/// A sector, as the address of no memory.
const ALIGNMENT: NonZero<usize> = NonZero::new(SECTOR_BYTES).expect("a sector is not empty");

/// Sizes that are kept: 1, 2, 4, … 256 sectors. The largest is what a request or a transfer takes at once; the others come up to
/// the next of them.
const SIZES: usize = 9;

/// Most that is kept of a size: what a deep queue of requests has in flight.
const KEPT_BYTES: usize = 8 << 20;

/// What nobody uses now, by size.
static KEPT: [Mutex<Vec<Kept>>; SIZES] = [const { Mutex::new(Vec::new()) }; SIZES];

/// The start of memory of one of the sizes, all of it initialised.
struct Kept(NonNull<u8>);

// SAFETY: it owns the memory, and nothing else points there.
unsafe impl Send for Kept {}

/// Initialised memory.
pub(crate) struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    is_new: bool,
}

// SAFETY: plain memory that this value alone owns; it has no interior mutability.
unsafe impl Send for Memory {}
// SAFETY: as above; a shared reference only ever reads.
unsafe impl Sync for Memory {}

/// Which of the sizes holds `bytes`, of those that are kept.
fn size_of(bytes: usize) -> Option<usize> {
    let nth = bytes.div_ceil(SECTOR_BYTES).checked_next_power_of_two()?.trailing_zeros() as usize;
    (nth < SIZES).then_some(nth)
}

fn kept(size: usize) -> MutexGuard<'static, Vec<Kept>> {
    // Whole at every moment.
    KEPT[size].lock().unwrap_or_else(PoisonError::into_inner)
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, SECTOR_BYTES).expect("a buffer fits the address space")
}

impl Memory {
    /// Memory for `bytes` at least.
    pub(crate) fn of(bytes: usize) -> Self {
        if bytes == 0 {
            return Self { start: NonNull::without_provenance(ALIGNMENT), bytes, is_new: true };
        }
        let size = size_of(bytes);
        let bytes = size.map_or(bytes, |nth| SECTOR_BYTES << nth);
        if let Some(Kept(start)) = size.and_then(|size| kept(size).pop()) {
            return Self { start, bytes, is_new: false };
        }
        let layout = layout(bytes);
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(memory) else { handle_alloc_error(layout) };
        Self { start, bytes, is_new: true }
    }

    /// Whether it holds zeros because nobody has used it.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        // SAFETY: `start` is valid for `bytes` initialised bytes (or dangling with zero) for the life of `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    pub(crate) fn as_mut_bytes(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        if let Some(size) = size_of(self.bytes) {
            let mut kept = kept(size);
            if kept.len() < KEPT_BYTES / self.bytes {
                kept.push(Kept(self.start));
                return;
            }
        }
        // SAFETY: allocated in `of` with this very layout, and not freed before.
        unsafe { dealloc(self.start.as_ptr(), layout(self.bytes)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_length_has_the_next_size_and_long_ones_their_own() {
        let sectors = |count: usize| Memory::of(count * SECTOR_BYTES).bytes / SECTOR_BYTES;
        assert_eq!([1, 2, 3, 64, 65, 256, 257].map(sectors), [1, 2, 4, 64, 128, 256, 257]);
        assert_eq!(Memory::of(0).as_bytes(), []);
    }

    /// Others run beside this one, so that only the bound can be told, not what is there.
    #[test]
    fn no_more_is_kept_than_the_bound() {
        const SIZE: usize = 5;
        let bytes = SECTOR_BYTES << SIZE;
        let many: Vec<Memory> = (0..2 * KEPT_BYTES / bytes).map(|_| Memory::of(bytes)).collect();
        drop(many);
        let there = kept(SIZE).len();
        assert!(there > 0 && there <= KEPT_BYTES / bytes, "{there}");
    }
}
