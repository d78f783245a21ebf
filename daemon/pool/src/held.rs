//! A sector of ciphertext in memory: a part of what it came with, which is not copied.
//!
//! What a write brought stays as a whole until nobody has a sector of it any more. How much may so stay beyond what is still of use
//! is bounded where it waits longest (`placement.rs`).

use std::sync::Arc;

use device::{Sealed, SealedSlice, SectorRecord};

/// One sector, with its record.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    of: Arc<Sealed>,
    nth: u64,
}

impl Held {
    /// The sector `nth` of these, which all have their records.
    pub(crate) fn new(of: &Arc<Sealed>, nth: u64) -> Self {
        debug_assert!(nth < of.sectors().0 && of.records().len() as u64 == of.sectors().0);
        Self { of: Arc::clone(of), nth }
    }

    pub(crate) fn record(&self) -> SectorRecord {
        self.as_slice().records().first().copied().unwrap_or_default()
    }

    pub(crate) fn as_slice(&self) -> SealedSlice<'_> {
        self.of.as_slice().sectors_in(self.nth..self.nth + 1)
    }

    /// Whether both are the same sector of the same write.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.of, &other.of) && self.nth == other.nth
    }

    /// Whether others came with it.
    pub(crate) fn is_one_of_many(&self) -> bool {
        self.of.sectors().0 > 1
    }

    /// These, one behind the other, in as few pieces as they lie in.
    pub(crate) fn pieces<'a>(each: impl IntoIterator<Item = &'a Self>) -> Vec<SealedSlice<'a>> {
        let mut runs: Vec<(&'a Self, u64)> = Vec::new();
        for held in each {
            match runs.last_mut() {
                Some((first, count))
                    if Arc::ptr_eq(&first.of, &held.of) && first.nth + *count == held.nth =>
                {
                    *count += 1
                }
                _ => runs.push((held, 1)),
            }
        }
        runs.into_iter()
            .map(|(first, count)| first.of.as_slice().sectors_in(first.nth..first.nth + count))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use device::SectorBuf;
    use units::SectorCount;

    use super::*;

    fn sealed(tags: std::ops::Range<u8>) -> Arc<Sealed> {
        let mut buf = SectorBuf::zeroed(SectorCount(tags.len() as u64));
        for (bytes, tag) in buf.as_mut_bytes().chunks_exact_mut(4096).zip(tags.clone()) {
            bytes.fill(tag);
        }
        let records = tags.map(|tag| SectorRecord { sequence: tag.into(), ..SectorRecord::default() });
        Arc::new(Sealed::from_cipher(buf, records.collect()))
    }

    #[test]
    fn neighbours_of_one_write_are_one_piece_and_each_keeps_its_record() {
        let (a, b) = (sealed(0..4), sealed(4..6));
        let held = [Held::new(&a, 1), Held::new(&a, 2), Held::new(&a, 0), Held::new(&b, 1), Held::new(&b, 0)];
        let pieces = Held::pieces(&held);
        let firsts: Vec<(u8, u64)> =
            pieces.iter().map(|piece| (piece.as_bytes()[0], piece.sectors().0)).collect();
        assert_eq!(firsts, [(1, 2), (0, 1), (5, 1), (4, 1)]);
        assert_eq!(held[3].record().sequence, 5);
        assert!(held[0].is(&Held::new(&a, 1)) && !held[0].is(&held[1]) && !held[0].is(&Held::new(&b, 1)));
    }
}
