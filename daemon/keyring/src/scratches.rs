//! Which scratch is taken. One word, claimed by compare-and-swap: no lock, no queue, no allocation.

use crate::sync::{AtomicU64, Ordering};

/// `N` pieces of scratch, at most 64.
pub(crate) struct Scratches<const N: usize> {
    /// A bit for each that is taken.
    taken: AtomicU64,
}

/// One of them, until it is dropped, a panic included.
pub(crate) struct Claim<'a> {
    taken: &'a AtomicU64,
    index: u32,
}

impl<const N: usize> Scratches<N> {
    const ALL: u64 = {
        assert!(0 < N && N <= 64, "a word has 64 bits");
        u64::MAX >> (64 - N)
    };

    pub(crate) fn new() -> Self {
        Self { taken: AtomicU64::new(0) }
    }

    /// Takes one. Where all are taken it gives way until one is free: who has one computes for microseconds and waits for
    /// nobody, so this ends.
    pub(crate) fn claim(&self) -> Claim<'_> {
        let mut taken = self.taken.load(Ordering::Relaxed);
        loop {
            if taken == Self::ALL {
                std::thread::yield_now();
                taken = self.taken.load(Ordering::Relaxed);
                continue;
            }
            let index = taken.trailing_ones();
            // Acquire: what the last owner wrote there comes before what this one writes.
            match self.taken.compare_exchange_weak(
                taken,
                taken | 1 << index,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Claim { taken: &self.taken, index },
                Err(now) => taken = now,
            }
        }
    }
}

impl Claim<'_> {
    pub(crate) fn index(&self) -> usize {
        self.index as usize
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.taken.fetch_and(!(1 << self.index), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    #[test]
    fn a_scratch_has_one_owner_at_a_time_and_comes_back_after_a_panic() {
        const N: usize = 3;
        let scratches = Scratches::<N>::new();
        let owners: [AtomicUsize; N] = std::array::from_fn(|_| AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let claim = scratches.claim();
                        assert_eq!(owners[claim.index()].fetch_add(1, Ordering::SeqCst), 0);
                        owners[claim.index()].fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        let panicked = thread::scope(|scope| {
            scope.spawn(|| std::panic::resume_unwind(Box::new(scratches.claim().index()))).join()
        });
        assert!(panicked.is_err());
        let all: Vec<_> = (0..N).map(|_| scratches.claim()).collect();
        assert_eq!(all.iter().map(Claim::index).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
