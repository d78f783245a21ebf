//! Which extents of the device are free. In memory only: it follows from the extent table.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Hands out free extents, the lowest first, so that the tables stay short.
#[derive(Debug)]
pub(crate) struct Allocator {
    bits: Mutex<Bits>,
}

#[derive(Debug)]
struct Bits {
    /// One bit an extent, set where it is in use; bits past the end are set.
    used: Vec<u64>,
    extents: u32,
    allocated: u32,
    /// Every word before this one is full.
    first_not_full: usize,
}

impl Allocator {
    pub(crate) fn new(extents: u32) -> Arc<Self> {
        let mut bits = Bits { used: Vec::new(), extents: 0, allocated: 0, first_not_full: 0 };
        bits.extend_to(extents);
        Arc::new(Self { bits: Mutex::new(bits) })
    }

    fn bits(&self) -> MutexGuard<'_, Bits> {
        self.bits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lowest free extent, now in use.
    pub(crate) fn allocate(&self) -> Option<u32> {
        let mut bits = self.bits();
        let from = bits.first_not_full;
        let word = from + bits.used[from..].iter().position(|word| *word != u64::MAX)?;
        bits.first_not_full = word;
        let bit = bits.used[word].trailing_ones();
        bits.used[word] |= 1 << bit;
        bits.allocated += 1;
        u32::try_from(word * 64).ok()?.checked_add(bit)
    }

    /// Marks an extent in use; `false` where it already is, or there is no such extent.
    pub(crate) fn mark(&self, extent: u32) -> bool {
        let mut bits = self.bits();
        if extent >= bits.extents || bits.is_used(extent) {
            return false;
        }
        bits.used[extent as usize / 64] |= 1 << (extent % 64);
        bits.allocated += 1;
        true
    }

    fn release(&self, extent: u32) {
        let mut bits = self.bits();
        debug_assert!(bits.is_used(extent), "extent {extent} is freed twice");
        let word = extent as usize / 64;
        bits.used[word] &= !(1 << (extent % 64));
        bits.allocated -= 1;
        bits.first_not_full = bits.first_not_full.min(word);
    }

    pub(crate) fn is_used(&self, extent: u32) -> bool {
        self.bits().is_used(extent)
    }

    /// Adds the extents that a longer device has.
    pub(crate) fn extend_to(&self, extents: u32) {
        self.bits().extend_to(extents);
    }

    /// Extents in use, and extents there are.
    pub(crate) fn counts(&self) -> (u32, u32) {
        let bits = self.bits();
        (bits.allocated, bits.extents)
    }
}

impl Bits {
    fn is_used(&self, extent: u32) -> bool {
        self.used.get(extent as usize / 64).is_none_or(|word| word >> (extent % 64) & 1 == 1)
    }

    fn extend_to(&mut self, extents: u32) {
        debug_assert!(extents >= self.extents);
        if let Some(last) = self.used.last_mut() {
            *last &= !tail_mask(self.extents);
        }
        self.first_not_full = self.first_not_full.min(self.used.len().saturating_sub(1));
        // A zeroed vector costs memory only where it is touched.
        let mut used = vec![0; (extents as usize).div_ceil(64)];
        used[..self.used.len()].copy_from_slice(&self.used);
        self.used = used;
        self.extents = extents;
        if let Some(last) = self.used.last_mut() {
            *last |= tail_mask(extents);
        }
    }
}

/// The bits of the last word that are past the end.
fn tail_mask(extents: u32) -> u64 {
    match extents % 64 {
        0 => 0,
        used => u64::MAX << used,
    }
}

/// An extent in use. Dropping it frees the extent, so whoever may still touch it holds it.
#[derive(Debug)]
pub(crate) struct AllocatedExtent {
    index: u32,
    allocator: Arc<Allocator>,
}

impl AllocatedExtent {
    /// The extent `index`, already marked in use.
    pub(crate) fn new(index: u32, allocator: &Arc<Allocator>) -> Self {
        Self { index, allocator: Arc::clone(allocator) }
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for AllocatedExtent {
    fn drop(&mut self) {
        self.allocator.release(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_extent_is_handed_out_once_lowest_first_and_again_when_freed() {
        for extents in [1, 63, 64, 65, 1000] {
            let allocator = Allocator::new(extents);
            let all: Vec<_> = (0..extents)
                .map(|_| AllocatedExtent::new(allocator.allocate().unwrap(), &allocator))
                .collect();
            assert!(all.iter().map(AllocatedExtent::index).eq(0..extents));
            assert_eq!(allocator.allocate(), None);
            assert_eq!(allocator.counts(), (extents, extents));
            drop(all);
            assert_eq!(allocator.counts(), (0, extents));
            assert_eq!(allocator.allocate(), Some(0));
        }
    }

    #[test]
    fn growth_adds_free_extents_behind_full_ones() {
        let allocator = Allocator::new(70);
        for _ in 0..70 {
            allocator.allocate().unwrap();
        }
        allocator.extend_to(72);
        assert_eq!(
            (allocator.allocate(), allocator.allocate(), allocator.allocate()),
            (Some(70), Some(71), None)
        );
        allocator.extend_to(200);
        assert_eq!(allocator.allocate(), Some(72));
    }

    #[test]
    fn marking_twice_or_past_the_end_is_noticed() {
        let allocator = Allocator::new(10);
        assert!(allocator.mark(3));
        assert!(!allocator.mark(3));
        assert!(!allocator.mark(10));
        assert!(!allocator.mark(u32::MAX));
        assert!(allocator.is_used(3) && !allocator.is_used(4));
    }
}
