//! Ciphertext that is durable in the log and not yet in its place.
//!
//! It goes there unless the log says meanwhile that nothing is there any more, or something newer: then somebody else may be
//! writing to the place, and it is forgotten here before they may. Until it is there, its extent has it in memory for readers
//! (`extent.rs`).
//!
//! Invariants:
//! - One batch is on its way at a time, and of an extent that a batch is of nothing is forgotten before it has ended: so a place
//!   is never written late, over what somebody wrote there since. Whoever waits for that holds no extent's lock, which the
//!   batch takes at its end.
//! - What a batch could not put to its place waits again: the log is not given up while it alone has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use device::SealedSlice;

use crate::commit::lock;
use crate::extent::{Content, Extent};
use crate::held::Held;
use crate::presence::Presence;
use crate::records::SectorId;

/// Sectors that are worth placing: enough to keep a disk's queue full.
const WORTHWHILE: usize = 64;

/// A sector on its way to its place.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) extent: Arc<Extent>,
    pub(crate) held: Held,
}

#[derive(Debug, Default)]
pub(crate) struct Placement {
    state: Mutex<State>,
    /// There is more to do, or a batch has ended.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// By place, the newest of each sector.
    sectors: BTreeMap<SectorId, Waiting>,
    /// Sectors that wait no more, while others that came with them may wait still. Back at nothing when nobody waits.
    of_no_use: u64,
    /// Memory fills with what waits for a commit.
    commit_wanted: bool,
    /// Where the next batch goes on, so that all get their turn.
    next: SectorId,
    /// Extents of the batch that is on its way.
    on_its_way: Option<BTreeSet<u32>>,
}

/// Sectors that are being placed, in the order of their places.
#[derive(Debug)]
pub(crate) struct PlacementBatch<'a> {
    of: &'a Placement,
    sectors: Vec<(SectorId, Waiting)>,
}

impl Placement {
    pub(crate) fn new(sectors: BTreeMap<SectorId, Waiting>) -> Self {
        Self { state: Mutex::new(State { sectors, ..State::default() }), changed: Condvar::new() }
    }

    /// How many wait.
    pub(crate) fn sectors(&self) -> u64 {
        lock(&self.state).sectors.len() as u64
    }

    /// How many sectors there may be in memory for those that wait: with what came with them and is not of use any more.
    pub(crate) fn in_memory(&self) -> u64 {
        let state = lock(&self.state);
        state.sectors.len() as u64 + state.of_no_use
    }

    /// The log has this.
    pub(crate) fn add(&self, of: SectorId, waiting: Waiting) {
        let mut state = lock(&self.state);
        state.remove(&of);
        state.sectors.insert(of, waiting);
        if state.sectors.len() == WORTHWHILE {
            self.changed.notify_all();
        }
    }

    /// The log has something newer, which is in its place.
    pub(crate) fn forget_sector(&self, of: SectorId) {
        let mut state = self.settled(of.extent);
        state.remove(&of);
    }

    /// The log says that the extent is nobody's.
    pub(crate) fn forget(&self, extent: u32) {
        self.keep(extent, &Presence::None);
    }

    /// The log says that this is what is present in the extent.
    pub(crate) fn keep(&self, extent: u32, present: &Presence) {
        let mut state = self.settled(extent);
        let of = state.sectors.range(SectorId::all_of(extent)).map(|(of, _)| *of);
        let gone: Vec<SectorId> = of.filter(|of| !present.contains(of.sector)).collect();
        for sector in gone {
            state.remove(&sector);
        }
    }

    /// While no batch is of this extent.
    fn settled(&self, extent: u32) -> MutexGuard<'_, State> {
        let of_it =
            |state: &mut State| state.on_its_way.as_ref().is_some_and(|extents| extents.contains(&extent));
        self.changed.wait_while(lock(&self.state), of_it).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something worth placing or a commit is wanted, or until `patience` is over; whether one is.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let idle = |state: &mut State| state.sectors.len() < WORTHWHILE && !state.commit_wanted;
        let woken = self.changed.wait_timeout_while(lock(&self.state), patience, idle);
        let (mut state, _) = woken.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.commit_wanted)
    }

    /// Has whoever waits commit: what comes next is to find room in memory without waiting for it.
    pub(crate) fn want_commit(&self) {
        lock(&self.state).commit_wanted = true;
        self.changed.notify_all();
    }

    /// Takes up to `most` sectors out, once no other batch is on its way. Nothing waits and nothing is on its way when an
    /// empty one comes of a `most` above 0.
    pub(crate) fn take(&self, most: usize) -> PlacementBatch<'_> {
        let busy = |state: &mut State| state.on_its_way.is_some();
        let mut state =
            self.changed.wait_while(lock(&self.state), busy).unwrap_or_else(PoisonError::into_inner);
        let most = most.min(state.sectors.len());
        let behind = state.sectors.range(state.next..).map(|(of, _)| *of);
        let before = state.sectors.range(..state.next).map(|(of, _)| *of);
        let mut taken: Vec<SectorId> = behind.chain(before).take(most).collect();
        state.next = taken.last().map_or(state.next, |last| SectorId { sector: last.sector + 1, ..*last });
        taken.sort_unstable();
        state.on_its_way = Some(taken.iter().map(|of| of.extent).collect());
        let with_content = |of: SectorId| state.sectors.remove(&of).map(|waiting| (of, waiting));
        let sectors = taken.into_iter().filter_map(with_content).collect();
        drop(state);
        PlacementBatch { of: self, sectors }
    }
}

impl State {
    fn remove(&mut self, of: &SectorId) {
        if let Some(older) = self.sectors.remove(of) {
            self.of_no_use += u64::from(older.held.is_one_of_many());
        }
    }
}

impl PlacementBatch<'_> {
    pub(crate) fn len(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// Sectors that lie one behind the other, each run from its first on.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (SectorId, Vec<SealedSlice<'_>>)> {
        let follows = |(a, _): &(SectorId, Waiting), (b, _): &(SectorId, Waiting)| {
            a.extent == b.extent && a.sector + 1 == b.sector
        };
        self.sectors.chunk_by(follows).filter_map(|run| {
            let first = run.first()?.0;
            Some((first, Held::pieces(run.iter().map(|(_, waiting)| &waiting.held))))
        })
    }

    /// They are in their places: readers find them there.
    pub(crate) fn let_go(mut self) {
        for (of, Waiting { extent, held }) in self.sectors.drain(..) {
            extent.state().forget(of.sector, &Content::InMemory(held));
        }
    }
}

impl Drop for PlacementBatch<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.of.state);
        for (of, waiting) in self.sectors.drain(..) {
            state.sectors.entry(of).or_insert(waiting);
        }
        state.on_its_way = None;
        if state.sectors.is_empty() {
            state.of_no_use = 0;
        }
        drop(state);
        self.of.changed.notify_all();
    }
}
