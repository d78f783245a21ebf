//! An extent of a volume, in memory.

use std::sync::{Mutex, MutexGuard};

use units::VolumeEpoch;

use crate::allocator::AllocatedExtent;
use crate::commit::lock;
use crate::presence::Presence;

/// An extent in a volume's map, or one that was there when somebody looked. The device space is freed with the last
/// holder.
#[derive(Debug)]
pub(crate) struct Extent {
    space: AllocatedExtent,
    /// What its ciphertext is sealed under.
    epoch: VolumeEpoch,
    state: Mutex<ExtentState>,
}

#[derive(Debug)]
pub(crate) struct ExtentState {
    /// Sectors whose write has returned and that were not unmapped since.
    pub(crate) presence: Presence,
    /// Writes on their way: while there are any, the extent stays in the map though nothing in it is present.
    pub(crate) writers: u32,
    /// Whether it is on the dirty list.
    pub(crate) dirty: bool,
    /// Whether the table may name it.
    pub(crate) recorded: bool,
}

impl Extent {
    /// A new extent, for one writer.
    pub(crate) fn for_first_write(space: AllocatedExtent, epoch: VolumeEpoch) -> Self {
        let state = ExtentState { presence: Presence::None, writers: 1, dirty: false, recorded: false };
        Self { space, epoch, state: Mutex::new(state) }
    }

    /// An extent that the table names.
    pub(crate) fn recorded(space: AllocatedExtent, epoch: VolumeEpoch, presence: Presence) -> Self {
        let state = ExtentState { presence, writers: 0, dirty: false, recorded: true };
        Self { space, epoch, state: Mutex::new(state) }
    }

    pub(crate) fn index(&self) -> u32 {
        self.space.index()
    }

    pub(crate) fn epoch(&self) -> VolumeEpoch {
        self.epoch
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, ExtentState> {
        lock(&self.state)
    }
}
