//! What an epoch is called: in the pool, where its snapshot must be told from a person's, and in the protocol.

use serde::{Deserialize, Serialize};
use units::{Fence, VolumeId};

/// The first bytes of the id of every snapshot that replication makes. Ids of a person's snapshots are random: one of them begins so
/// once in 2^48.
const MARK: [u8; 6] = *b"NLepch";

const NUMBER_BYTES: usize = 5;

/// The highest number of an epoch: one a second for 34,000 years.
pub const NUMBER_MAX: u64 = (1 << (8 * NUMBER_BYTES)) - 1;

/// One writer's life: from when it first sent under a fence. A copy of a primary's machine that is given the same fence has another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub [u8; 16]);

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Generation({:02x}{:02x}{:02x}{:02x})", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// Which epoch, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochKey {
    pub fence: Fence,
    pub generation: Generation,
    /// Grows within a generation; gaps are of no matter.
    pub number: u64,
    pub snapshot: VolumeId,
}

/// An epoch's number as the id of its snapshot tells it: mark 6, number 5 (big-endian, so that ids sort as epochs), random 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochName {
    pub number: u64,
    /// Lets two epochs of one number, of a primary that was set back to an earlier state, be two snapshots.
    pub random: [u8; 5],
}

impl EpochName {
    /// The snapshot's id. Of a number above [`NUMBER_MAX`] there is none.
    pub fn id(self) -> Option<VolumeId> {
        if self.number > NUMBER_MAX {
            return None;
        }
        let mut id = [0; 16];
        let (mark, rest) = id.split_at_mut(MARK.len());
        let (number, random) = rest.split_at_mut(NUMBER_BYTES);
        mark.copy_from_slice(&MARK);
        number.copy_from_slice(&self.number.to_be_bytes()[8 - NUMBER_BYTES..]);
        random.copy_from_slice(&self.random);
        Some(VolumeId(id))
    }

    /// What an id tells; `None` of a snapshot that replication did not make.
    pub fn read(id: VolumeId) -> Option<Self> {
        let rest = id.0.strip_prefix(&MARK)?;
        let (number, random) = rest.split_first_chunk::<NUMBER_BYTES>()?;
        let number = number.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        Some(Self { number, random: random.try_into().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back_and_sorts_by_number_and_no_other_id_is_one() {
        let name = |number| EpochName { number, random: [7; 5] };
        for number in [0, 1, 255, 256, NUMBER_MAX] {
            assert_eq!(EpochName::read(name(number).id().unwrap()), Some(name(number)));
        }
        assert_eq!(name(NUMBER_MAX + 1).id(), None);
        assert!(name(255).id() < name(256).id());
        assert_eq!(EpochName::read(VolumeId([0x4e; 16])), None);
    }
}
