//! Which sectors of the data region are free, and when a freed one may be used again.
//!
//! The free map lives in memory only: it is what the index does not refer to, found by reading the index once when the
//! store opens. So a crash can't leak a sector, and there is no second record that could disagree.
//!
//! Invariants:
//! - A sector is in exactly one state: free, reserved by a body being written, referred to by the index, or retired.
//! - A run that a commit dropped is retired with that commit's epoch. It becomes free only after every reader that entered
//!   before the epoch has left, and nobody has its body pinned: such a reader may have read the dropped row, but one that
//!   enters later can't.
//! - A run is trimmed before it becomes free, never after.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use units::{ByteLen, ByteOffset};

use crate::error::StoreError;
use crate::layout::SECTOR;
use crate::limits::RUN_SECTORS_MAX;
use crate::records::{BodyId, Run};
use crate::volume::{BlockError, BlockErrorKind, BlockVolume};

/// Free space looked through in one step of the sweep after opening.
const SWEEP_STEP_SECTORS: u64 = (1 << 40) / SECTOR;

impl Run {
    pub(crate) fn end(self) -> u64 {
        self.start + self.sectors
    }

    pub(crate) fn position(self) -> ByteOffset {
        ByteOffset(self.start * SECTOR)
    }

    pub(crate) fn byte_len(self) -> ByteLen {
        ByteLen(self.sectors * SECTOR)
    }
}

/// Free extents, found by place and by size.
#[derive(Debug, Default)]
struct FreeMap {
    by_start: BTreeMap<u64, u64>,
    by_size: BTreeSet<(u64, u64)>,
    sectors: u64,
}

impl FreeMap {
    fn insert(&mut self, run: Run) {
        let mut merged = run;
        if let Some((&start, &sectors)) = self.by_start.range(..run.start).next_back() {
            assert!(start + sectors <= run.start, "sectors were freed twice");
            if start + sectors == run.start {
                self.remove(Run { start, sectors });
                merged = Run { start, sectors: sectors + merged.sectors };
            }
        }
        if let Some((&start, &sectors)) = self.by_start.range(run.start..).next() {
            assert!(run.end() <= start, "sectors were freed twice");
            if run.end() == start {
                self.remove(Run { start, sectors });
                merged.sectors += sectors;
            }
        }
        self.by_start.insert(merged.start, merged.sectors);
        self.by_size.insert((merged.sectors, merged.start));
        self.sectors += merged.sectors;
    }

    fn remove(&mut self, run: Run) {
        self.by_start.remove(&run.start);
        self.by_size.remove(&(run.sectors, run.start));
        self.sectors -= run.sectors;
    }

    /// Up to `sectors` consecutive ones: the smallest extent that holds them all, else the largest there is.
    fn allocate(&mut self, sectors: u64) -> Option<Run> {
        let wanted = sectors.min(RUN_SECTORS_MAX);
        let &(found, start) = self.by_size.range((wanted, 0)..).next().or_else(|| self.by_size.last())?;
        let extent = Run { start, sectors: found };
        self.remove(extent);
        let run = Run { start, sectors: wanted.min(found) };
        if run.sectors < found {
            self.insert(Run { start: run.end(), sectors: found - run.sectors });
        }
        Some(run)
    }

    /// Takes whatever is free inside `range`.
    fn take_within(&mut self, range: &Range<u64>) -> Vec<Run> {
        let first = self.by_start.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
        let touching: Vec<Run> = self
            .by_start
            .range(first..range.end)
            .map(|(&start, &sectors)| Run { start, sectors })
            .filter(|extent| extent.end() > range.start)
            .collect();
        let mut taken = Vec::with_capacity(touching.len());
        for extent in touching {
            self.remove(extent);
            let start = extent.start.max(range.start);
            let end = extent.end().min(range.end);
            if extent.start < start {
                self.insert(Run { start: extent.start, sectors: start - extent.start });
            }
            if end < extent.end() {
                self.insert(Run { start: end, sectors: extent.end() - end });
            }
            taken.push(Run { start, sectors: end - start });
        }
        taken
    }
}

/// Collects the runs in use while the index is read, and turns them into the free map.
pub(crate) struct Census {
    runs: Vec<Run>,
    /// Runs from which on the next pass of merging pays.
    merge_at: usize,
}

/// Runs gathered before neighbours are merged: a store that was filled in order stays at a few entries, and the worst
/// case pays one sort per doubling.
const CENSUS_MERGE_MIN: usize = 1 << 18;

impl Census {
    pub(crate) fn new() -> Self {
        Self { runs: Vec::new(), merge_at: CENSUS_MERGE_MIN }
    }

    pub(crate) fn add(&mut self, runs: &[Run]) -> Result<(), StoreError> {
        self.runs.extend_from_slice(runs);
        if self.runs.len() >= self.merge_at {
            self.merge()?;
            self.merge_at = CENSUS_MERGE_MIN.max(2 * self.runs.len());
        }
        Ok(())
    }

    fn merge(&mut self) -> Result<(), StoreError> {
        self.runs.sort_unstable();
        let mut overlap = false;
        self.runs.dedup_by(|next, previous| {
            let end = previous.start.saturating_add(previous.sectors);
            overlap |= next.start < end;
            let adjoins = next.start == end;
            if adjoins {
                previous.sectors += next.sectors;
            }
            adjoins
        });
        if overlap {
            return Err(StoreError::Corrupt { what: "two objects claim the same sectors" });
        }
        Ok(())
    }

    fn into_free(mut self, data: Range<u64>) -> Result<FreeMap, StoreError> {
        self.merge()?;
        let mut free = FreeMap::default();
        let mut next = data.start;
        for run in self.runs {
            if run.start < next || run.start.checked_add(run.sectors).is_none_or(|end| end > data.end) {
                return Err(StoreError::Corrupt { what: "an object claims sectors outside the data region" });
            }
            if run.start > next {
                free.insert(Run { start: next, sectors: run.start - next });
            }
            next = run.end();
        }
        if next < data.end {
            free.insert(Run { start: next, sectors: data.end - next });
        }
        Ok(free)
    }
}

#[derive(Debug)]
struct Retired {
    epoch: u64,
    body: Option<BodyId>,
    runs: Vec<Run>,
}

#[derive(Debug)]
struct State {
    free: FreeMap,
    /// Number of commits whose effects are visible to readers that enter now.
    epoch: u64,
    /// Readers by the epoch in which they entered.
    readers: BTreeMap<u64, usize>,
    pins: HashMap<BodyId, usize>,
    /// Ordered by epoch.
    retired: VecDeque<Retired>,
    /// Retired, past their epoch, but pinned.
    parked: HashMap<BodyId, Vec<Run>>,
    /// Being trimmed right now.
    trimming: usize,
    stopped: bool,
}

/// The data region's sectors, shared by writers, readers, the committer and the reaper.
#[derive(Debug)]
pub(crate) struct Space {
    state: Mutex<State>,
    /// Something may have become ready to trim, or was trimmed.
    changed: Condvar,
}

/// Sectors taken for a body that no commit refers to yet. Dropped, they are trimmed and become free again.
#[derive(Debug)]
pub(crate) struct Reservation {
    space: Arc<Space>,
    runs: Vec<Run>,
}

/// Keeps every run that was referred to when it was made.
#[derive(Debug)]
pub(crate) struct ReadGuard {
    space: Arc<Space>,
    epoch: u64,
}

/// Keeps the runs of one body for as long as somebody reads them.
#[derive(Debug)]
pub(crate) struct Pin {
    space: Arc<Space>,
    body: BodyId,
}

impl Space {
    pub(crate) fn new(census: Census, data: Range<u64>) -> Result<Arc<Self>, StoreError> {
        let state = State {
            free: census.into_free(data)?,
            epoch: 1,
            readers: BTreeMap::new(),
            pins: HashMap::new(),
            retired: VecDeque::new(),
            parked: HashMap::new(),
            trimming: 0,
            stopped: false,
        };
        Ok(Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sectors that a new body could take.
    pub(crate) fn free_sectors(&self) -> u64 {
        self.lock().free.sectors
    }

    /// An empty reservation.
    pub(crate) fn reservation(self: &Arc<Self>) -> Reservation {
        Reservation { space: Arc::clone(self), runs: Vec::new() }
    }

    /// To be entered before the index is read for runs.
    pub(crate) fn enter(self: &Arc<Self>) -> ReadGuard {
        let mut state = self.lock();
        let epoch = state.epoch;
        *state.readers.entry(epoch).or_default() += 1;
        ReadGuard { space: Arc::clone(self), epoch }
    }

    /// A commit is durable and visible: `dropped` are the bodies it no longer refers to.
    pub(crate) fn committed(&self, dropped: Vec<(BodyId, Vec<Run>)>) {
        let mut state = self.lock();
        state.epoch += 1;
        let epoch = state.epoch;
        state.retired.extend(dropped.into_iter().map(|(body, runs)| Retired {
            epoch,
            body: Some(body),
            runs,
        }));
        drop(state);
        self.changed.notify_all();
    }

    /// Ends the reaper, and whoever waits for it.
    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits until everything that can become free now is free. False if the reaper ended.
    pub(crate) fn wait_for_reaper(&self) -> bool {
        let mut state = self.lock();
        while !state.stopped && (state.trimming > 0 || state.next_is_ready()) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.stopped
    }

    /// The reaper: trims what is no longer referred to and makes it free, until [`Space::stop`] or until the key is gone.
    pub(crate) fn reap(&self, volume: &dyn BlockVolume) {
        let result = self.sweep(volume).and_then(|()| {
            while let Some(runs) = self.next_to_trim() {
                self.trim_and_free(volume, runs)?;
            }
            Ok(())
        });
        if let Err(error) = result {
            tracing::debug!(%error, "the object store stops reclaiming space");
        }
        self.stop();
    }

    /// Gives back what a crash left behind: sectors that take up space and that no row refers to.
    fn sweep(&self, volume: &dyn BlockVolume) -> Result<(), BlockError> {
        let mut cursor = 0;
        while let Some(extent) = self.free_extent_at(cursor) {
            cursor = extent.end();
            let mut at = extent.start;
            for (len, allocated) in volume.allocated(extent.position(), extent.byte_len())? {
                let range = at..at + len.0 / SECTOR;
                at = range.end;
                if allocated {
                    // Taken out of the map first: what a writer reserved meanwhile is not touched.
                    let mut state = self.lock();
                    let runs = state.free.take_within(&range);
                    state.trimming += runs.len();
                    drop(state);
                    self.trim_and_free(volume, runs)?;
                }
            }
        }
        Ok(())
    }

    fn free_extent_at(&self, cursor: u64) -> Option<Run> {
        let state = self.lock();
        if state.stopped {
            return None;
        }
        let before = state
            .free
            .by_start
            .range(..=cursor)
            .next_back()
            .filter(|(start, sectors)| *start + *sectors > cursor);
        let (&start, &sectors) = before.or_else(|| state.free.by_start.range(cursor..).next())?;
        let from = start.max(cursor);
        Some(Run { start: from, sectors: (start + sectors - from).min(SWEEP_STEP_SECTORS) })
    }

    fn next_to_trim(&self) -> Option<Vec<Run>> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(runs) = state.take_ready() {
                state.trimming += runs.len();
                return Some(runs);
            }
            // Nothing left: whoever waits for the reaper may go on.
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn trim_and_free(&self, volume: &dyn BlockVolume, runs: Vec<Run>) -> Result<(), BlockError> {
        let mut failure = None;
        for run in &runs {
            match volume.trim(run.position(), run.byte_len()) {
                // A trim is advice: a run whose trim failed is as free as any other, it only takes up space longer.
                Err(error)
                    if error.kind() == BlockErrorKind::KeyGone || error.kind() == BlockErrorKind::Failed =>
                {
                    failure = Some(error);
                    break;
                }
                _ => {}
            }
        }
        let mut state = self.lock();
        state.trimming -= runs.len();
        if failure.is_none() {
            runs.into_iter().for_each(|run| state.free.insert(run));
        }
        drop(state);
        self.changed.notify_all();
        failure.map_or(Ok(()), Err)
    }
}

impl State {
    fn oldest_reader(&self) -> u64 {
        self.readers.first_key_value().map_or(u64::MAX, |(epoch, _)| *epoch)
    }

    fn next_is_ready(&self) -> bool {
        self.retired.front().is_some_and(|retired| retired.epoch <= self.oldest_reader())
    }

    /// The next body that nobody can be reading any more; pinned ones on the way are parked.
    fn take_ready(&mut self) -> Option<Vec<Run>> {
        while self.next_is_ready() {
            let retired = self.retired.pop_front()?;
            match retired.body.filter(|body| self.pins.contains_key(body)) {
                Some(body) => drop(self.parked.insert(body, retired.runs)),
                None => return Some(retired.runs),
            }
        }
        None
    }
}

impl Reservation {
    /// Takes up to `sectors` more; `None` when the data region is full.
    pub(crate) fn extend(&mut self, sectors: u64) -> Option<Run> {
        let run = self.space.lock().free.allocate(sectors)?;
        self.runs.push(run);
        Some(run)
    }

    /// Gives back what lies beyond the first `sectors` and was never written.
    pub(crate) fn shrink_to(&mut self, sectors: u64) {
        let mut excess = self.runs.iter().map(|run| run.sectors).sum::<u64>().saturating_sub(sectors);
        let mut state = self.space.lock();
        while excess > 0 {
            let Some(run) = self.runs.last_mut() else { break };
            let cut = excess.min(run.sectors);
            run.sectors -= cut;
            state.free.insert(Run { start: run.end(), sectors: cut });
            excess -= cut;
            if run.sectors == 0 {
                self.runs.pop();
            }
        }
    }

    /// What was taken so far, in the order of the body.
    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// A commit refers to the runs now.
    pub(crate) fn keep(mut self) {
        self.runs.clear();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.runs.is_empty() {
            return;
        }
        let runs = std::mem::take(&mut self.runs);
        // Never visible to anyone: ready at once.
        self.space.lock().retired.push_front(Retired { epoch: 0, body: None, runs });
        self.space.changed.notify_all();
    }
}

impl ReadGuard {
    /// Keeps `body`, which a row read under this guard refers to, beyond the guard.
    pub(crate) fn pin(&self, body: BodyId) -> Pin {
        *self.space.lock().pins.entry(body).or_default() += 1;
        Pin { space: Arc::clone(&self.space), body }
    }
}

impl Drop for ReadGuard {
    fn drop(&mut self) {
        let mut state = self.space.lock();
        if let Some(count) = state.readers.get_mut(&self.epoch) {
            *count -= 1;
            if *count == 0 {
                state.readers.remove(&self.epoch);
            }
        }
        let ready = state.next_is_ready();
        drop(state);
        if ready {
            self.space.changed.notify_all();
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.space.lock();
        let Some(count) = state.pins.get_mut(&self.body) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        state.pins.remove(&self.body);
        if let Some(runs) = state.parked.remove(&self.body) {
            state.retired.push_front(Retired { epoch: 0, body: None, runs });
            drop(state);
            self.space.changed.notify_all();
        }
    }
}
