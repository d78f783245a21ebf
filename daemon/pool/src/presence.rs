//! Which sectors of an extent hold something.

use std::ops::Range;

/// One bit a sector, without memory where all bits are alike: most extents of a full pool are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    None,
    All,
    /// Some sectors, not all: little-endian words of 64 sectors.
    Some(Box<[u64]>),
}

impl Presence {
    /// Reads an on-disk bitmap of `sectors` bits, least significant first.
    pub(crate) fn from_bitmap(bitmap: &[u8], sectors: u32) -> Self {
        let mut words = vec![0_u64; (sectors as usize).div_ceil(64)].into_boxed_slice();
        for (index, byte) in bitmap.iter().enumerate() {
            words[index / 8] |= u64::from(*byte) << (index % 8 * 8);
        }
        Self::Some(words).simplified(sectors)
    }

    /// The on-disk bitmap: `sectors / 8` bytes.
    pub(crate) fn to_bitmap(&self, sectors: u32) -> Vec<u8> {
        let bytes = sectors as usize / 8;
        match self {
            Self::None => vec![0; bytes],
            Self::All => vec![0xff; bytes],
            Self::Some(words) => words.iter().flat_map(|word| word.to_le_bytes()).take(bytes).collect(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    /// How many of `sectors` are present.
    pub(crate) fn count(&self, sectors: u32) -> u32 {
        match self {
            Self::None => 0,
            Self::All => sectors,
            Self::Some(words) => words.iter().map(|word| word.count_ones()).sum(),
        }
    }

    /// Adds `range`; whether that changed anything.
    pub(crate) fn insert(&mut self, range: Range<u32>, sectors: u32) -> bool {
        self.change(range, sectors, true)
    }

    /// Adds all that `other` has.
    pub(crate) fn add(&mut self, other: &Self, sectors: u32) {
        match (&mut *self, other) {
            (Self::All, _) | (_, Self::None) => {}
            (Self::None, other) => *self = other.clone(),
            (_, Self::All) => *self = Self::All,
            (Self::Some(words), Self::Some(others)) => {
                words.iter_mut().zip(others).for_each(|(word, other)| *word |= other);
                *self = std::mem::replace(self, Self::None).simplified(sectors);
            }
        }
    }

    /// Takes `range` away; whether that changed anything.
    pub(crate) fn remove(&mut self, range: Range<u32>, sectors: u32) -> bool {
        self.change(range, sectors, false)
    }

    fn change(&mut self, range: Range<u32>, sectors: u32, present: bool) -> bool {
        if range.is_empty() {
            return false;
        }
        match self {
            Self::None if !present => return false,
            Self::All if present => return false,
            Self::None | Self::All if range == (0..sectors) => {
                *self = if present { Self::All } else { Self::None };
                return true;
            }
            _ => {}
        }
        let mut words = match std::mem::replace(self, Self::None) {
            Self::None => vec![0; (sectors as usize).div_ceil(64)].into_boxed_slice(),
            Self::All => full(sectors),
            Self::Some(words) => words,
        };
        let mut changed = false;
        for (word, mask) in masks(range) {
            let before = words[word];
            words[word] = if present { before | mask } else { before & !mask };
            changed |= words[word] != before;
        }
        *self = Self::Some(words).simplified(sectors);
        changed
    }

    fn simplified(self, sectors: u32) -> Self {
        match self.count(sectors) {
            0 => Self::None,
            all if all == sectors => Self::All,
            _ => self,
        }
    }

    /// Whether every sector of `self` is in one of `others`.
    pub(crate) fn is_within(&self, others: &[Self], sectors: u32) -> bool {
        if self.is_empty() || others.iter().any(|other| matches!(other, Self::All)) {
            return true;
        }
        (0..sectors).all(|sector| !self.contains(sector) || others.iter().any(|other| other.contains(sector)))
    }

    pub(crate) fn contains(&self, sector: u32) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(words) => words[sector as usize / 64] >> (sector % 64) & 1 == 1,
        }
    }

    /// Runs of sectors that are alike, in order, covering `range`.
    pub(crate) fn runs(&self, range: Range<u32>) -> Vec<(Range<u32>, bool)> {
        let mut runs: Vec<(Range<u32>, bool)> = Vec::new();
        if let Self::None | Self::All = self {
            let present = matches!(self, Self::All);
            return if range.is_empty() { runs } else { vec![(range, present)] };
        }
        for sector in range {
            let present = self.contains(sector);
            match runs.last_mut() {
                Some((run, same)) if *same == present => run.end = sector + 1,
                _ => runs.push((sector..sector + 1, present)),
            }
        }
        runs
    }
}

/// Words with the first `sectors` bits set.
fn full(sectors: u32) -> Box<[u64]> {
    let mut words = vec![0; (sectors as usize).div_ceil(64)].into_boxed_slice();
    for (word, mask) in masks(0..sectors) {
        words[word] = mask;
    }
    words
}

/// The words that `range` touches, each with the bits of it in that word.
fn masks(range: Range<u32>) -> impl Iterator<Item = (usize, u64)> {
    (range.start / 64..range.end.div_ceil(64)).map(move |word| {
        let first = range.start.saturating_sub(word * 64).min(64);
        let last = (range.end - word * 64).min(64);
        let below = |bits: u32| if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        (word as usize, below(last) & !below(first))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_range(presence: &Presence, range: Range<u32>, sectors: u32) -> Presence {
        let mut added = Presence::None;
        added.insert(range, sectors);
        let mut both = presence.clone();
        both.add(&added, sectors);
        both
    }

    /// Every change and every answer, against one bool a sector.
    #[test]
    fn it_behaves_as_one_bool_a_sector() {
        for sectors in [16, 64, 256, 512] {
            let mut presence = Presence::None;
            let mut model = vec![false; sectors as usize];
            let mut state = 0x1234_5678_u32 ^ sectors;
            for _ in 0..2000 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let start = (state >> 8) % sectors;
                let end = start + (state >> 20) % (sectors - start + 1);
                let present = state >> 31 == 0;
                let changed = model[start as usize..end as usize].iter().any(|bit| *bit != present);
                model[start as usize..end as usize].fill(present);
                let said = if present {
                    presence.insert(start..end, sectors)
                } else {
                    presence.remove(start..end, sectors)
                };
                assert_eq!(said, changed);
                assert_eq!(presence.count(sectors) as usize, model.iter().filter(|bit| **bit).count());
                assert_eq!(presence.is_empty(), !model.contains(&true));
                assert_eq!(matches!(presence, Presence::All), !model.contains(&false));
                let spread: Vec<bool> = presence
                    .runs(0..sectors)
                    .into_iter()
                    .flat_map(|(run, present)| run.map(move |_| present))
                    .collect();
                assert_eq!(spread, model);
                let rest =
                    model.iter().rposition(|bit| *bit).map_or(0, |last| u32::try_from(last).unwrap() + 1);
                let mut lacking = Presence::None;
                lacking.insert(0..rest.saturating_sub(1), sectors);
                assert_eq!(presence.is_within(&[lacking.clone()], sectors), presence.is_empty());
                assert!(presence.is_within(&[lacking, presence.clone()], sectors));
                assert_eq!(Presence::from_bitmap(&presence.to_bitmap(sectors), sectors), presence);
                let mut both = with_range(&presence, start..end, sectors);
                assert!(
                    (0..sectors)
                        .all(|at| both.contains(at) == (model[at as usize] || (start..end).contains(&at)))
                );
                both.add(&Presence::All, sectors);
                assert_eq!(both, Presence::All);
            }
        }
    }
}
