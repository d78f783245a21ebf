//! What a replica remembers of the writers of each volume, whatever becomes of the connection, the process or the volume.
//!
//! The shell keeps it durably: what [`Histories::accept`] changes is written down before anything of the epoch is taken in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use units::{Fence, VolumeId};

use crate::epoch::{EpochKey, Generation};
use crate::error::Reason;
use crate::mutation::{Mutation, is_broken};

/// How far ahead of what was seen a number or a fence may be. Numbers grow by one an epoch, ten a second at most: thirteen years of
/// epochs that were sent elsewhere. Without a limit one epoch of a peer that lies uses all of them up, and no later writer has one.
const AHEAD_MAX: u64 = 1 << 32;

/// For each volume the last epoch that was begun here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histories {
    last: BTreeMap<VolumeId, EpochKey>,
}

/// What comes of an epoch that is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on that was begun last.
    Continues,
    /// It is the next; to be written down first.
    Next,
}

impl Histories {
    /// The last epoch that was begun.
    pub fn last(&self, volume: VolumeId) -> Option<&EpochKey> {
        self.last.get(&volume)
    }

    /// The highest fence seen, with that of the volume itself where it is one that keys are granted for.
    pub fn fence(&self, volume: VolumeId, own: Fence) -> Fence {
        self.last.get(&volume).map_or(own, |last| last.fence.max(own))
    }

    /// Whether a writer may send at all.
    pub fn check_writer(
        &self,
        volume: VolumeId,
        own: Fence,
        (fence, generation): (Fence, Generation),
    ) -> Result<(), Reason> {
        let highest = self.fence(volume, own);
        if fence < highest && !is_broken(Mutation::AcceptLowerFence) {
            return Err(Reason::LowerFence);
        }
        if fence.0 > highest.0.saturating_add(AHEAD_MAX) {
            return Err(Reason::TooFarAhead);
        }
        let same_fence = self.last(volume).filter(|last| last.fence == fence);
        if same_fence.is_some_and(|last| last.generation != generation)
            && !is_broken(Mutation::IgnoreGeneration)
        {
            return Err(Reason::OtherGeneration);
        }
        Ok(())
    }

    /// Whether an epoch may be begun, or gone on with.
    pub fn judge(&self, volume: VolumeId, own: Fence, key: &EpochKey) -> Result<Verdict, Reason> {
        self.check_writer(volume, own, (key.fence, key.generation))?;
        match self.last(volume) {
            Some(last) if last == key => Ok(Verdict::Continues),
            Some(last)
                if (last.fence, last.generation) == (key.fence, key.generation)
                    && key.number <= last.number
                    && !is_broken(Mutation::ReuseNumber) =>
            {
                Err(Reason::NumberUsed)
            }
            last if key.number > last.map_or(0, |last| last.number).saturating_add(AHEAD_MAX) => {
                Err(Reason::TooFarAhead)
            }
            _ => Ok(Verdict::Next),
        }
    }

    /// Takes down what [`Histories::judge`] allowed.
    pub fn accept(&mut self, volume: VolumeId, key: EpochKey) {
        self.last.insert(volume, key);
    }

    /// Whether an epoch is the one that was begun last: nothing of another is taken in, nor made visible.
    pub fn is_current(&self, volume: VolumeId, key: &EpochKey) -> bool {
        self.last(volume) == Some(key)
    }

    /// Every volume that was ever sent here.
    pub fn volumes(&self) -> impl Iterator<Item = (&VolumeId, &EpochKey)> {
        self.last.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::NUMBER_MAX;

    const V: VolumeId = VolumeId([1; 16]);

    fn key(fence: u64, generation: u8, number: u64) -> EpochKey {
        let snapshot = VolumeId([u8::try_from(number).unwrap(); 16]);
        EpochKey { fence: Fence(fence), generation: Generation([generation; 16]), number, snapshot }
    }

    #[test]
    fn one_writer_at_a_time_and_no_number_twice() {
        let mut histories = Histories::default();
        let judge = |histories: &Histories, key| histories.judge(V, Fence(0), &key);
        assert_eq!(judge(&histories, key(2, 1, 5)), Ok(Verdict::Next));
        histories.accept(V, key(2, 1, 5));
        assert_eq!(judge(&histories, key(2, 1, 5)), Ok(Verdict::Continues));
        assert_eq!(judge(&histories, key(2, 1, 6)), Ok(Verdict::Next));
        assert_eq!(judge(&histories, key(2, 1, 4)), Err(Reason::NumberUsed));
        let other_snapshot = EpochKey { snapshot: V, ..key(2, 1, 5) };
        assert_eq!(judge(&histories, other_snapshot), Err(Reason::NumberUsed));
        assert_eq!(judge(&histories, key(2, 2, 6)), Err(Reason::OtherGeneration));
        assert_eq!(judge(&histories, key(1, 1, 6)), Err(Reason::LowerFence));
        // A new grant begins anew, whatever its numbers.
        assert_eq!(judge(&histories, key(3, 2, 1)), Ok(Verdict::Next));
        histories.accept(V, key(3, 2, 1));
        assert!(histories.is_current(V, &key(3, 2, 1)) && !histories.is_current(V, &key(2, 1, 5)));
        assert_eq!(judge(&histories, key(2, 1, 6)), Err(Reason::LowerFence));
        // Nobody comes so far in a life.
        let far = EpochKey { fence: Fence(3 + AHEAD_MAX + 1), ..key(3, 2, 2) };
        assert_eq!(judge(&histories, far), Err(Reason::TooFarAhead));
        let far = EpochKey { number: 1 + AHEAD_MAX + 1, ..key(3, 2, 2) };
        assert_eq!(judge(&histories, far), Err(Reason::TooFarAhead));
        assert_eq!(judge(&histories, EpochKey { number: 1 + AHEAD_MAX, ..far }), Ok(Verdict::Next));
        assert_eq!(
            judge(&histories, EpochKey { number: NUMBER_MAX, ..key(4, 3, 2) }),
            Err(Reason::TooFarAhead)
        );
        assert_eq!(
            Histories::default().judge(V, Fence(0), &EpochKey { number: AHEAD_MAX + 1, ..far }),
            Err(Reason::TooFarAhead)
        );
        // The volume here was granted a key itself.
        assert_eq!(histories.judge(V, Fence(4), &key(3, 2, 2)), Err(Reason::LowerFence));
    }
}
