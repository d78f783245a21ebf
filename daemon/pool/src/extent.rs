//! An extent of a volume, in memory, and an entry of the hole table, which is an extent without space of its own.

use std::sync::{Mutex, MutexGuard};

use units::VolumeEpoch;

use crate::allocator::Allocated;
use crate::commit::lock;
use crate::presence::Presence;

/// What an entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExtentKind {
    /// An extent of the device.
    Data,
    /// An entry of the hole table.
    Holes,
}

/// An extent in a branch's map, or one that was there when somebody looked. Its space is freed with the last holder.
#[derive(Debug)]
pub(crate) struct Extent {
    space: Allocated,
    /// What its ciphertext is sealed under.
    epoch: VolumeEpoch,
    kind: ExtentKind,
    state: Mutex<ExtentState>,
}

#[derive(Debug)]
pub(crate) struct ExtentState {
    /// Sectors whose write has returned and that were not unmapped since; of the hole table, sectors that are holes.
    pub(crate) sectors: Presence,
    /// Writes on their way: while there are any, the extent stays in the map though nothing in it is present.
    pub(crate) writers: u32,
    /// Whether it is on the dirty list.
    pub(crate) dirty: bool,
    /// Whether the table may name it.
    pub(crate) recorded: bool,
}

impl Extent {
    /// A new extent, for one writer.
    pub(crate) fn for_first_write(space: Allocated, epoch: VolumeEpoch) -> Self {
        let state = ExtentState { sectors: Presence::None, writers: 1, dirty: false, recorded: false };
        Self { space, epoch, kind: ExtentKind::Data, state: Mutex::new(state) }
    }

    /// A new entry of the hole table, without a hole yet.
    pub(crate) fn for_first_hole(space: Allocated) -> Self {
        let state = ExtentState { sectors: Presence::None, writers: 0, dirty: false, recorded: false };
        Self { space, epoch: VolumeEpoch(0), kind: ExtentKind::Holes, state: Mutex::new(state) }
    }

    /// One that its table names.
    pub(crate) fn recorded(
        space: Allocated,
        kind: ExtentKind,
        epoch: VolumeEpoch,
        sectors: Presence,
    ) -> Self {
        let state = ExtentState { sectors, writers: 0, dirty: false, recorded: true };
        Self { space, epoch, kind, state: Mutex::new(state) }
    }

    pub(crate) fn index(&self) -> u32 {
        self.space.index()
    }

    pub(crate) fn epoch(&self) -> VolumeEpoch {
        self.epoch
    }

    pub(crate) fn kind(&self) -> ExtentKind {
        self.kind
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, ExtentState> {
        lock(&self.state)
    }
}

/// An extent that no map holds any more.
#[derive(Debug)]
pub(crate) struct Retired {
    pub(crate) extent: std::sync::Arc<Extent>,
    /// Whether the table may name it for a branch that lives on, and must be told.
    pub(crate) needs_record: bool,
}

impl Retired {
    /// An extent whose branch lives on.
    pub(crate) fn of_living(extent: std::sync::Arc<Extent>) -> Self {
        let needs_record = extent.state().recorded;
        Self { extent, needs_record }
    }
}
