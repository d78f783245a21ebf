//! An extent of a volume, in memory, and an entry of the hole table, which is an extent without space of its own.
//!
//! What is written to a sector goes one of two ways. **Directly** to its place, where nothing durable says that the place
//! holds anything: a power cut then leaves a sector that is not there. Otherwise into memory, from there to the log, and
//! only when the log has it to its place: a power cut then leaves the old sector or the new one, each with its record.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use device::SectorRecord;
use units::VolumeEpoch;

use crate::allocator::Allocated;
use crate::commit::lock;
use crate::held::Held;
use crate::presence::Presence;

/// What an entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    sectors: Presence,
    /// Whether it is on the dirty list.
    pub(crate) dirty: bool,
    /// Whether the table may name it.
    pub(crate) recorded: bool,
    /// Whether it was found that nobody sees it any more: the next commit frees it, and nothing is moved into it.
    pub(crate) unseen: bool,
    /// There while the extent is in use or not all of it is on the device: an open pool has millions that are at rest.
    busy: Option<Box<Busy>>,
}

/// What there is to know of an extent that is not at rest.
#[derive(Debug)]
struct Busy {
    /// Sectors whose place may hold what a table or the log says is there: never written directly. At rest those that are
    /// present.
    on_device: Presence,
    /// Sectors that are being written, in no order. Whoever would write them too waits.
    writing: Vec<Range<u32>>,
    /// What is newer than the place or than the record that is on the device.
    pending: BTreeMap<u32, Pending>,
    /// Writes on their way: while there are any, the extent stays in the map though nothing in it is present.
    writers: u32,
    /// A write has ended: made by the first who waits for that.
    ended: Option<Arc<Condvar>>,
}

/// A sector of which the device does not have everything yet.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) content: Content,
    /// Whether a commit has taken it to the log.
    taken: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// Its ciphertext is in its place.
    Placed(SectorRecord),
    InMemory(Held),
}

impl Content {
    pub(crate) fn record(&self) -> SectorRecord {
        match self {
            Self::Placed(record) => *record,
            Self::InMemory(held) => held.record(),
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Placed(a), Self::Placed(b)) => a == b,
            (Self::InMemory(a), Self::InMemory(b)) => a.is(b),
            _ => false,
        }
    }
}

/// Which way consecutive sectors go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Direct,
    Buffered,
}

/// How the ways of a write are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Directly where nothing durable says that the place holds anything.
    ByPlace,
    /// All through memory.
    Buffered,
    /// All directly: a pool without records has no log of ciphertext either.
    Direct,
}

impl ExtentState {
    fn new(sectors: Presence, writers: u32, recorded: bool) -> Self {
        let mut state = Self { sectors, dirty: false, recorded, unseen: false, busy: None };
        if writers > 0 {
            state.busy().writers = writers;
        }
        state
    }

    /// Sectors whose write has returned and that were not unmapped since; of the hole table, sectors that are holes.
    pub(crate) fn sectors(&self) -> &Presence {
        &self.sectors
    }

    fn busy(&mut self) -> &mut Busy {
        let sectors = &self.sectors;
        self.busy.get_or_insert_with(|| {
            let on_device = sectors.clone();
            Box::new(Busy {
                on_device,
                writing: Vec::new(),
                pending: BTreeMap::new(),
                writers: 0,
                ended: None,
            })
        })
    }

    /// Forgets what nobody needs to know of an extent at rest.
    fn rest(&mut self) {
        let at_rest = |busy: &Busy| {
            busy.writers == 0
                && busy.writing.is_empty()
                && busy.pending.is_empty()
                && busy.on_device == self.sectors
        };
        if self.busy.as_deref().is_some_and(at_rest) {
            self.busy = None;
        }
    }

    fn on_device(&self) -> &Presence {
        self.busy.as_ref().map_or(&self.sectors, |busy| &busy.on_device)
    }

    /// Counts a write on its way.
    pub(crate) fn add_writer(&mut self) {
        self.busy().writers += 1;
    }

    pub(crate) fn has_writers(&self) -> bool {
        self.busy.as_ref().is_some_and(|busy| busy.writers > 0)
    }

    /// What of `sectors` the device does not have yet.
    pub(crate) fn pending(&self, sectors: Range<u32>) -> impl Iterator<Item = (u32, &Content)> {
        let pending = self.busy.iter().flat_map(move |busy| busy.pending.range(sectors.clone()));
        pending.map(|(sector, pending)| (*sector, &pending.content))
    }

    /// Whether a sector is present and in its place, with its record on the device.
    pub(crate) fn rests(&self, sector: u32) -> bool {
        self.sectors.contains(sector) && self.pending(sector..sector + 1).next().is_none()
    }

    /// Makes sectors present; whether that changed anything.
    pub(crate) fn insert(&mut self, part: Range<u32>, extent_sectors: u32) -> bool {
        self.busy();
        self.sectors.insert(part, extent_sectors)
    }

    /// Makes sectors present with this content.
    pub(crate) fn hold(&mut self, sector: u32, content: Content, extent_sectors: u32) {
        self.busy().pending.insert(sector, Pending { content, taken: false });
        self.sectors.insert(sector..sector + 1, extent_sectors);
    }

    /// Takes sectors away; whether any was there.
    pub(crate) fn remove(&mut self, part: Range<u32>, extent_sectors: u32) -> bool {
        self.busy().pending.retain(|sector, _| !part.contains(sector));
        let changed = self.sectors.remove(part, extent_sectors);
        self.rest();
        changed
    }

    /// What the log lacks: sectors that a commit takes now, and whether the table says something else than `sectors`.
    pub(crate) fn take(&mut self, extent_sectors: u32) -> (Vec<(u32, Content)>, bool) {
        let changed = !self.recorded || *self.on_device() != self.sectors;
        self.recorded = true;
        let Some(busy) = &mut self.busy else { return (Vec::new(), changed) };
        let untaken = busy.pending.iter_mut().filter(|(_, pending)| !pending.taken);
        let taken = untaken.map(|(sector, pending)| {
            pending.taken = true;
            (*sector, pending.content.clone())
        });
        let taken = taken.collect();
        busy.on_device.add(&self.sectors, extent_sectors);
        (taken, changed)
    }

    /// Sectors whose place may hold something that is not among these, in runs.
    pub(crate) fn on_device_without(&self, present: &Presence, extent_sectors: u32) -> Vec<Range<u32>> {
        let mut rest = self.on_device().clone();
        for (run, _) in present.runs(0..extent_sectors).into_iter().filter(|(_, present)| *present) {
            rest.remove(run, extent_sectors);
        }
        let runs = rest.runs(0..extent_sectors).into_iter();
        runs.filter(|(_, held)| *held).map(|(run, _)| run).collect()
    }

    /// The log has `sectors` as this extent's presence, durably.
    pub(crate) fn settle(&mut self, sectors: Presence) {
        if self.sectors != sectors || self.busy.is_some() {
            self.busy().on_device = sectors;
        }
        self.rest();
    }

    /// The log has these records, durably, and where it has the ciphertext too it stays in memory until it is placed.
    pub(crate) fn forget_placed(&mut self, logged: &[(u32, Content)]) {
        for (sector, content) in logged.iter().filter(|(_, content)| matches!(content, Content::Placed(_))) {
            self.forget(*sector, content);
        }
    }

    /// Lets go of what the device now has, unless it is something newer.
    pub(crate) fn forget(&mut self, sector: u32, content: &Content) {
        let Some(busy) = &mut self.busy else { return };
        if busy.pending.get(&sector).is_some_and(|pending| pending.content.is(content)) {
            busy.pending.remove(&sector);
            self.rest();
        }
    }

    /// As opening finds it in the log.
    pub(crate) fn restore(&mut self, sector: u32, held: Held) {
        self.busy().pending.insert(sector, Pending { content: Content::InMemory(held), taken: true });
    }

    fn way(&self, sector: u32) -> Way {
        match self.sectors.contains(sector) || self.on_device().contains(sector) {
            true => Way::Buffered,
            false => Way::Direct,
        }
    }
}

impl Extent {
    /// A new extent, for one writer.
    pub(crate) fn for_first_write(space: Allocated, epoch: VolumeEpoch) -> Self {
        Self::with(space, ExtentKind::Data, epoch, ExtentState::new(Presence::None, 1, false))
    }

    /// A new entry of the hole table, without a hole yet.
    pub(crate) fn for_first_hole(space: Allocated) -> Self {
        Self::with(space, ExtentKind::Holes, VolumeEpoch(0), ExtentState::new(Presence::None, 0, false))
    }

    /// One that its table names.
    pub(crate) fn recorded(
        space: Allocated,
        kind: ExtentKind,
        epoch: VolumeEpoch,
        sectors: Presence,
    ) -> Self {
        Self::with(space, kind, epoch, ExtentState::new(sectors, 0, true))
    }

    fn with(space: Allocated, kind: ExtentKind, epoch: VolumeEpoch, state: ExtentState) -> Self {
        Self { space, epoch, kind, state: Mutex::new(state) }
    }

    /// Decides which way each sector of `part` goes, and keeps other writes of these sectors waiting until
    /// [`Extent::end_write`]. Waits for those that came before.
    pub(crate) fn begin_ways(&self, part: Range<u32>, route: Route) -> Vec<(Range<u32>, Way)> {
        let overlaps = |state: &ExtentState| {
            let mut writing = state.busy.iter().flat_map(|busy| &busy.writing);
            writing.any(|other| other.start < part.end && part.start < other.end)
        };
        let mut state = self.state();
        while overlaps(&state) {
            let ended = Arc::clone(state.busy().ended.get_or_insert_default());
            state = ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.busy().writing.push(part.clone());
        match route {
            Route::Buffered => return vec![(part, Way::Buffered)],
            Route::Direct => return vec![(part, Way::Direct)],
            Route::ByPlace => {}
        }
        let mut runs: Vec<(Range<u32>, Way)> = Vec::new();
        for sector in part {
            let way = state.way(sector);
            match runs.last_mut() {
                Some((run, same)) if *same == way => run.end = sector + 1,
                _ => runs.push((sector..sector + 1, way)),
            }
        }
        runs
    }

    /// Takes a writer off and lets others write `part`. `state` is this extent's.
    pub(crate) fn end_write(state: &mut ExtentState, part: &Range<u32>) {
        let busy = state.busy();
        busy.writers -= 1;
        busy.writing.retain(|run| run != part);
        if let Some(ended) = &busy.ended {
            ended.notify_all();
        }
        state.rest();
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
