//! The hole table's room: entries for holes that hide something older, and the extents that hold them.
//!
//! Its extents are the pool's own, taken when snapshots first need them and kept. A snapshot, a clone or a write that
//! could come to need more entries takes the room first, or is refused: one for each extent that a branch has or
//! inherits, and as many again for a rollback. A reserve takes the room for its extents too, so that their writes need none. So
//! a trim finds room on a full pool. What can exhaust it is trimming other parts of the same extents after each of many
//! snapshots; such a trim takes an extent more, and is refused where none is free that nobody was promised.

use std::sync::{Arc, Mutex};

use crate::allocator::{Account, Allocated, Allocator};
use crate::commit::lock;

#[derive(Debug)]
pub(crate) struct HoleTable {
    entries: Arc<Allocator>,
    per_chunk: u32,
    state: Mutex<State>,
    /// Held while the table grows, which may wait for a flush.
    pub(crate) growing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The extents that hold it, in order.
    chunks: Vec<Arc<Allocated>>,
    /// Places in which branches may need holes over what they inherit.
    inherited: u64,
    /// Whether there are snapshots or clones: without them nothing can be hidden.
    in_use: bool,
}

impl HoleTable {
    pub(crate) fn new(per_chunk: u32) -> Self {
        Self { entries: Allocator::new(0), per_chunk, state: Mutex::default(), growing: Mutex::default() }
    }

    /// Adds an extent to the table; which chunk of it this is.
    pub(crate) fn add_chunk(&self, space: Allocated) -> u64 {
        let mut state = lock(&self.state);
        state.chunks.push(Arc::new(space));
        state.in_use = true;
        let chunks = u32::try_from(state.chunks.len()).unwrap_or(u32::MAX);
        self.entries.extend_to(self.per_chunk.saturating_mul(chunks));
        u64::from(chunks) - 1
    }

    /// The extents that hold the table.
    pub(crate) fn chunks(&self) -> Vec<u32> {
        lock(&self.state).chunks.iter().map(|chunk| chunk.index()).collect()
    }

    /// A free entry.
    pub(crate) fn allocate(&self) -> Option<Allocated> {
        let index = self.entries.allocate(Account::POOL).ok()?;
        Some(Allocated::new(index, Account::POOL, &self.entries))
    }

    /// The entry `index`, which its table names; `None` where two do, or there is no such entry.
    pub(crate) fn mark(&self, index: u32) -> Option<Allocated> {
        let marked = self.entries.mark(index, Account::POOL);
        marked.then(|| Allocated::new(index, Account::POOL, &self.entries))
    }

    /// Counts what a new branch inherits.
    pub(crate) fn expect_inherited(&self, extents: u64) {
        lock(&self.state).inherited += extents;
    }

    pub(crate) fn forget_inherited(&self, extents: u64) {
        lock(&self.state).inherited -= extents;
    }

    /// Whether writers must see to it that there is room.
    pub(crate) fn in_use(&self) -> bool {
        lock(&self.state).in_use
    }

    /// Whether there are so many entries, and one for all that is inherited.
    pub(crate) fn has_room_for(&self, entries: u64) -> bool {
        let state = lock(&self.state);
        u64::from(self.entries.counts().extents) >= entries + state.inherited
    }
}
