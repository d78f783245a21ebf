//! A branch of history: the extents that volumes and snapshots share, and what of them somebody still sees.
//!
//! A write goes to an extent that was born in the branch's present moment, made where there is none. Taking a snapshot
//! ends the moment; nothing is copied and nothing walked. A sector is **present** where the youngest extent that knows
//! it says so, a **hole** where the hole table says so for a moment at least as young, and otherwise **inherited**: from
//! older extents of the branch, then from the branches below it, and a hole where nothing is below.
//!
//! Invariants:
//! - Extents and holes born before the present moment do not change, but for writes that were on their way when it
//!   ended: those are waited for before the snapshot is there.
//! - What no volume or snapshot sees stays unseen: views are made of views, so it is free for good. `collect` finds it, the
//!   snapshot of the next commit takes it out of the map, and its record is freed behind the records of what hides it
//!   (`commit.rs`). Until then it is in the map, so that whoever trims what hides it makes a hole there. Nothing is moved into
//!   it any more (`fold.rs`).
//! - Whoever looks at a branch looks at one of its `seen` moments. What was born between two neighbouring ones is seen together
//!   or not at all, and when the earlier of the two is seen no more, what that changes lies in the places that were born up to
//!   the later one: `born` has them.
//! - Within one moment presence wins over holes, so neither has to be changed with the other.
//! - Locks are taken in the order volume, branch, branches below it, extent, dirty list. None is held across device input or
//!   output.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use units::VolumeEpoch;

use crate::LEVELS_MAX;
use crate::allocator::{Account, Allocated};
use crate::commit::{Core, lock};
use crate::entry::{BranchId, Level, Mapping, Moment, Place};
use crate::extent::{Content, Extent, ExtentKind, ExtentState, Retired};
use crate::presence::Presence;

/// Extents of a volume that are looked at under one lock while walking a branch, so that writers wait for
/// microseconds.
const WALK_EXTENTS: usize = 1024;

/// A branch's part of an open pool.
#[derive(Debug)]
pub(crate) struct Branch {
    pub(crate) id: BranchId,
    /// Whom its extents are counted for.
    pub(crate) account: Account,
    /// What it inherits from, nearest first.
    below: Vec<(Arc<Branch>, Moment)>,
    /// Extents that were in the branches below when this one was made: in so many places it may need holes.
    pub(crate) inherited: u64,
    pub(crate) extent_sectors: u32,
    map: RwLock<Map>,
}

/// An extent or holes that nobody sees, still in the map.
#[derive(Debug)]
pub(crate) struct Unseen {
    /// The branch through which alone it could be seen.
    above: Arc<Branch>,
    branch: Arc<Branch>,
    place: Place,
    extent: Arc<Extent>,
}

#[derive(Debug, Default)]
pub(crate) struct Map {
    pub(crate) extents: BTreeMap<Place, Arc<Extent>>,
    pub(crate) holes: BTreeMap<Place, Arc<Extent>>,
    /// The moments that volumes, snapshots and the branches above look at.
    pub(crate) seen: BTreeMap<Moment, Seen>,
    /// Places born later than the first of these: by moment, and which extent of the volume.
    born: BTreeSet<(Moment, u64)>,
    /// Extents of the volume that have several places where one would do, by the moment of the last that is known to be so.
    pub(crate) to_fold: BTreeSet<(Moment, u64)>,
}

#[derive(Debug)]
pub(crate) struct Seen {
    views: u32,
    /// The first extent of the volume that is past the end for all of them. A branch above that has become longer has holes
    /// there (`hide_past_end`).
    end: u64,
}

/// A branch up to a moment, and all that is below it: what a volume or a snapshot shows.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) branch: Arc<Branch>,
    pub(crate) moment: Moment,
}

/// A moment of a branch that a view no longer looks at.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) branch: Arc<Branch>,
    pub(crate) moment: Moment,
    /// Whether anybody else does.
    pub(crate) still_seen: bool,
    /// The moments before and after it that are seen.
    pub(crate) before: Option<Moment>,
    pub(crate) after: Option<Moment>,
    /// Extents of the volume of which less may be seen now.
    pub(crate) logicals: Vec<u64>,
}

/// An extent, or holes, that a view has for one extent of the volume.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) extent: Arc<Extent>,
    /// Whether it is the one that a write of today goes to.
    pub(crate) present_moment: bool,
}

impl Layer {
    pub(crate) fn kind(&self) -> ExtentKind {
        self.extent.kind()
    }
}

/// What became of a dirty extent.
#[derive(Debug)]
pub(crate) enum Taken {
    Used {
        extent: Arc<Extent>,
        /// What the table must say; `None` where it does.
        mapping: Option<Mapping>,
        /// Sectors whose record, or more, the log lacks.
        contents: Vec<(u32, Content)>,
    },
    Emptied(Retired),
}

/// What a write that has ended has put into an extent.
#[derive(Debug)]
pub(crate) enum Written {
    Nothing,
    /// These sectors, in their places, of a pool that keeps no records.
    WithoutRecords(Range<u32>),
    Sectors(Vec<(u32, Content)>),
    /// What a damaged sector should hold: only if it is still there and nothing newer is.
    Healed(u32, Content),
}

/// Consecutive sectors of one extent of the volume that are alike: held by which layer, or a hole.
pub(crate) type Run = (Range<u32>, Option<usize>);

impl View {
    /// Nearest first.
    pub(crate) fn levels(&self) -> impl DoubleEndedIterator<Item = (&Arc<Branch>, Moment)> {
        let below = self.branch.below.iter().map(|(branch, moment)| (branch, *moment));
        std::iter::once((&self.branch, self.moment)).chain(below)
    }

    /// As entries name them.
    pub(crate) fn recorded_levels(&self) -> Vec<Level> {
        self.levels().map(|(branch, moment)| Level { branch: branch.id, moment }).collect()
    }

    /// Counts one more that looks at this, as far as the extent `end`.
    pub(crate) fn attach(&self, end: u64) {
        // From below, and away from above: nobody may seem to be the only one who looks at something.
        for (branch, moment) in self.levels().rev() {
            let mut map = branch.map_mut();
            let seen = map.seen.entry(moment).or_insert(Seen { views: 0, end: u64::MAX });
            seen.views += 1;
            if branch.id == self.branch.id {
                seen.end = end;
            }
        }
    }

    /// The volume now ends before the extent `end`: gives what is past it to the next commit to free.
    pub(crate) fn shorten(&self, core: &Core, end: u64) {
        if let Some(seen) = self.branch.map_mut().seen.get_mut(&self.moment) {
            seen.end = end;
        }
        self.branch.collect_from(core, end);
        core.unmapped();
    }

    /// The volume now ends before the extent `end`, later than before. What that could show has been hidden.
    pub(crate) fn lengthen(&self, end: u64) {
        if let Some(seen) = self.branch.map_mut().seen.get_mut(&self.moment) {
            seen.end = end;
        }
    }

    /// Counts one fewer, and gives what nobody sees any more to the next commit to free. What that was; what branches above
    /// hide of it is the caller's to look for.
    pub(crate) fn detach(&self, core: &Core) -> Vec<Left> {
        let left: Vec<Left> =
            self.levels().filter_map(|(branch, moment)| branch.leave(core, moment)).collect();
        // Behind all of it: who looks at something through a branch alone is counted in that and in those below.
        left.iter().for_each(|left| left.branch.look_at(core, &left.logicals));
        core.unmapped();
        left
    }

    /// What the view has of each of these extents of the volume that it has anything of, what hides before what is
    /// hidden.
    pub(crate) fn layers(&self, logical: Range<u64>) -> BTreeMap<u64, Vec<Layer>> {
        let mut layers: BTreeMap<u64, Vec<Layer>> = BTreeMap::new();
        if logical.is_empty() {
            return layers;
        }
        for (branch, until) in self.levels() {
            let layer = |place: Place, extent: &Arc<Extent>| Layer {
                extent: Arc::clone(extent),
                present_moment: branch.id == self.branch.id && place.moment() == self.moment,
            };
            let map = branch.map();
            if map.holes.is_empty() {
                for (place, extent) in map.extents.range(places(&logical)).rev() {
                    if place.moment() <= until {
                        layers.entry(place.logical()).or_default().push(layer(*place, extent));
                    }
                }
                continue;
            }
            let mut both: Vec<(Place, &Arc<Extent>)> = map
                .extents
                .range(places(&logical))
                .chain(map.holes.range(places(&logical)))
                .filter(|(place, _)| place.moment() <= until)
                .map(|(place, extent)| (*place, extent))
                .collect();
            // Stable: of one place the extent stays before the holes.
            both.sort_by_key(|(place, _)| std::cmp::Reverse(*place));
            for (place, extent) in both {
                layers.entry(place.logical()).or_default().push(layer(place, extent));
            }
        }
        layers
    }
}

/// Where each sector of `part` comes from, in runs that cover it in order.
pub(crate) fn resolve(layers: &[Layer], part: Range<u32>) -> Vec<Run> {
    if let [Layer { extent, .. }] = layers
        && extent.kind() == ExtentKind::Data
    {
        let runs = extent.state().sectors().runs(part);
        return runs.into_iter().map(|(run, present)| (run, present.then_some(0))).collect();
    }
    let sectors: Vec<Presence> = layers.iter().map(|layer| layer.extent.state().sectors().clone()).collect();
    let mut runs: Vec<Run> = Vec::new();
    for sector in part {
        let decided = sectors.iter().position(|sectors| sectors.contains(sector));
        let holder = decided.filter(|nth| layers[*nth].kind() == ExtentKind::Data);
        match runs.last_mut() {
            Some((run, same)) if *same == holder => run.end = sector + 1,
            _ => runs.push((sector..sector + 1, holder)),
        }
    }
    runs
}

/// The whole history of these extents of the volume.
fn places(logical: &Range<u64>) -> Range<Place> {
    Place::new(logical.start, Moment(0))..Place::new(logical.end, Moment(0))
}

impl Branch {
    pub(crate) fn new(
        id: BranchId,
        account: Account,
        below: Option<&View>,
        extent_sectors: u32,
    ) -> Arc<Self> {
        let below: Vec<_> = below
            .into_iter()
            .flat_map(View::levels)
            .map(|(branch, moment)| (Arc::clone(branch), moment))
            .collect();
        debug_assert!(below.len() < LEVELS_MAX);
        let inherited = below.iter().map(|(branch, _)| branch.extents()).sum();
        Arc::new(Self { id, account, below, inherited, extent_sectors, map: RwLock::default() })
    }

    pub(crate) fn map(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn map_mut(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts in what the tables name, in the order of its places: a map that is made at once has no gaps.
    pub(crate) fn fill(&self, recorded: Vec<(Place, Arc<Extent>)>) {
        let is_hole = |(_, extent): &(Place, Arc<Extent>)| extent.kind() == ExtentKind::Holes;
        let (holes, extents): (Vec<_>, Vec<_>) = recorded.into_iter().partition(is_hole);
        let mut map = self.map_mut();
        map.extents = extents.into_iter().collect();
        map.holes = holes.into_iter().collect();
    }

    /// One looks at this moment no more. `None` where nobody is left who looks at the branch: all of it is given to the next
    /// commit.
    fn leave(self: &Arc<Self>, core: &Core, moment: Moment) -> Option<Left> {
        let mut map = self.map_mut();
        let seen = map.seen.get_mut(&moment)?;
        seen.views -= 1;
        let (still_seen, end) = (seen.views > 0, seen.end);
        if !still_seen {
            map.seen.remove(&moment);
        }
        if map.seen.is_empty() {
            // No record each: entries that name a branch nobody looks at are free.
            let Map { extents, holes, .. } = std::mem::take(&mut *map);
            let retired = extents.into_values().chain(holes.into_values());
            let retired = retired.map(|extent| Retired { extent, needs_record: false });
            lock(&core.dirty).cut.extend(retired);
            drop(map);
            core.holes.forget_inherited(self.inherited);
            return None;
        }
        let before = map.seen.range(..moment).next_back().map(|(moment, _)| *moment);
        let after = moment.next().and_then(|next| map.seen.range(next..).next()).map(|(moment, _)| *moment);
        let logicals =
            if still_seen { Vec::new() } else { map.changed_between(before, (moment, end), after) };
        map.forget_first();
        Some(Left { branch: Arc::clone(self), moment, still_seen, before, after, logicals })
    }

    /// The extent at `place`, if there is one, with one writer more.
    pub(crate) fn join(&self, place: Place) -> Option<Arc<Extent>> {
        let map = self.map();
        let extent = map.extents.get(&place)?;
        extent.state().add_writer();
        Some(Arc::clone(extent))
    }

    /// Makes an extent of `space` at `place`, for one writer; where another was faster its extent is joined and `space`
    /// goes back.
    pub(crate) fn insert_or_join(
        &self,
        core: &Core,
        place: Place,
        space: Allocated,
        epoch: VolumeEpoch,
    ) -> Arc<Extent> {
        let mut map = self.map_mut();
        if let Some(extent) = map.extents.get(&place) {
            extent.state().add_writer();
            return Arc::clone(extent);
        }
        let extent = Arc::new(Extent::for_first_write(space, epoch));
        map.extents.insert(place, Arc::clone(&extent));
        if map.note_born(place) {
            core.note_folding();
        }
        extent
    }

    /// Takes one writer off `extent`, which is or was at `place`, lets others write `part` of it, and makes present what has
    /// been written: whether that was anything.
    pub(crate) fn end_write(
        self: &Arc<Self>,
        core: &Core,
        place: Place,
        extent: &Extent,
        (part, written): (Range<u32>, Written),
    ) -> bool {
        let _map = self.map();
        let mut state = extent.state();
        let changed = match written {
            Written::Nothing => false,
            Written::WithoutRecords(part) => state.insert(part, self.extent_sectors),
            Written::Sectors(sectors) => {
                let any = !sectors.is_empty();
                for (sector, content) in sectors {
                    state.hold(sector, content, self.extent_sectors);
                }
                any
            }
            Written::Healed(sector, content) => {
                let rests = state.rests(sector);
                if rests {
                    state.hold(sector, content, self.extent_sectors);
                }
                rests
            }
        };
        Extent::end_write(&mut state, &part);
        let empty = state.sectors().is_empty();
        // An extent that stays empty because its first write failed is on the list so that it is given back.
        if changed || empty {
            self.mark_dirty(core, place, ExtentKind::Data, &mut state);
        }
        if empty {
            core.unmapped();
        }
        changed
    }

    /// Takes sectors of the extent at `place` away; whether any was there.
    pub(crate) fn remove(self: &Arc<Self>, core: &Core, place: Place, part: Range<u32>) -> bool {
        let map = self.map();
        let Some(extent) = map.extents.get(&place) else { return false };
        let mut state = extent.state();
        let changed = state.remove(part, self.extent_sectors);
        if changed {
            self.mark_dirty(core, place, ExtentKind::Data, &mut state);
        }
        changed
    }

    /// Makes sectors at `place` holes. `None` where the hole table has no room.
    pub(crate) fn add_holes(self: &Arc<Self>, core: &Core, place: Place, parts: &[Range<u32>]) -> Option<()> {
        let mut map = self.map_mut();
        let extent = match map.holes.get(&place) {
            Some(extent) => Arc::clone(extent),
            None => {
                let extent = Arc::new(Extent::for_first_hole(core.holes.allocate()?));
                map.holes.insert(place, Arc::clone(&extent));
                if map.note_born(place) {
                    core.note_folding();
                }
                extent
            }
        };
        let mut state = extent.state();
        for part in parts {
            state.insert(part.clone(), self.extent_sectors);
        }
        self.mark_dirty(core, place, ExtentKind::Holes, &mut state);
        Some(())
    }

    /// Takes every extent of the present moment from `logical` on out of the map.
    pub(crate) fn cut(&self, logical: u64, moment: Moment) -> Vec<Retired> {
        let mut map = self.map_mut();
        let from = Place::new(logical, Moment(0));
        let cut: Vec<Place> = map
            .extents
            .range(from..)
            .map(|(place, _)| *place)
            .filter(|place| place.moment() == moment)
            .collect();
        cut.iter().filter_map(|place| map.take_out(*place, ExtentKind::Data)).collect()
    }

    /// Puts an extent on the dirty list, once.
    pub(crate) fn mark_dirty(
        self: &Arc<Self>,
        core: &Core,
        place: Place,
        kind: ExtentKind,
        state: &mut ExtentState,
    ) {
        if !std::mem::replace(&mut state.dirty, true) {
            lock(&core.dirty).extents.push((Arc::clone(self), place, kind));
        }
    }

    /// Takes an extent off the dirty list for a commit: what is to be recorded of it, if anything. An extent in which
    /// nothing is present and which nobody writes to leaves the map.
    pub(crate) fn take_dirty(&self, place: Place, kind: ExtentKind) -> Option<Taken> {
        let mut map = self.map_mut();
        let extent = Arc::clone(map.of_kind(kind).get(&place)?);
        let mut state = extent.state();
        if !std::mem::take(&mut state.dirty) {
            return None;
        }
        if state.sectors().is_empty() && !state.has_writers() {
            drop(state);
            return map.take_out(place, kind).map(Taken::Emptied);
        }
        if state.sectors().is_empty() && !state.recorded {
            // Its first writer is still on its way and marks it again.
            return None;
        }
        let (contents, changed) = state.take(self.extent_sectors);
        let sectors = state.sectors().clone();
        let mapping = changed.then(|| Mapping { branch: self.id, place, epoch: extent.epoch(), sectors });
        drop(state);
        Some(Taken::Used { extent, mapping, contents })
    }

    /// What nobody sees of the extent `logical` of the volume, here and in the branches below.
    pub(crate) fn collect(self: &Arc<Self>, logical: u64) -> Vec<Unseen> {
        self.collect_in(&self.map(), logical)
    }

    /// Gives all that nobody sees, here and in the branches below, to the next commit to free.
    pub(crate) fn collect_all(self: &Arc<Self>, core: &Core) {
        self.collect_from(core, 0);
    }

    /// As [`Self::collect_all`], from this extent of the volume on.
    fn collect_from(self: &Arc<Self>, core: &Core, first: u64) {
        let mut from = Place::new(first, Moment(0));
        loop {
            let logicals = {
                let map = self.map();
                let of = |places: &BTreeMap<Place, Arc<Extent>>| -> Vec<u64> {
                    places.range(from..).take(WALK_EXTENTS).map(|(place, _)| place.logical()).collect()
                };
                let mut logicals = [of(&map.extents), of(&map.holes)].concat();
                logicals.sort_unstable();
                logicals.dedup();
                logicals.truncate(WALK_EXTENTS);
                logicals
            };
            let Some(last) = logicals.last() else { return };
            from = Place::new(last + 1, Moment(0));
            self.look_at(core, &logicals);
        }
    }

    /// Gives what nobody sees of these extents of the volume, here and in the branches below, to the next commit to free, and
    /// notes which of them are to be folded.
    pub(crate) fn look_at(self: &Arc<Self>, core: &Core, logicals: &[u64]) {
        for part in logicals.chunks(WALK_EXTENTS) {
            core.looked_at(part.len());
            let (garbage, to_fold) = {
                let map = self.map();
                let garbage: Vec<Unseen> =
                    part.iter().flat_map(|logical| self.collect_in(&map, *logical)).collect();
                let to_fold: Vec<_> = part.iter().filter_map(|logical| map.to_fold(*logical)).collect();
                (garbage, to_fold)
            };
            lock(&core.dirty).unseen.extend(garbage);
            if !to_fold.is_empty() {
                self.map_mut().to_fold.extend(to_fold);
                core.note_folding();
            }
        }
    }

    /// Whether all who look at `below` up to `until` do so through this branch.
    pub(crate) fn is_alone_above(&self, below: &Self, until: Moment) -> bool {
        let views: u32 = self.map().seen.values().map(|seen| seen.views).sum();
        below.map().seen.get(&until).is_some_and(|seen| seen.views == views)
    }

    fn collect_in(self: &Arc<Self>, map: &Map, logical: u64) -> Vec<Unseen> {
        let history = places(&(logical..logical + 1));
        let unseen = |(place, extent): (&Place, &Arc<Extent>)| Unseen {
            above: Arc::clone(self),
            branch: Arc::clone(self),
            place: *place,
            extent: Arc::clone(extent),
        };
        // Extents before holes, those below first: freeing a hole must not show what it hid.
        let mut garbage = self.collect_below(map, logical);
        let extents = map.extents.range(history.clone());
        let extents = extents.filter(|(place, extent)| {
            let mut state = extent.state();
            let found = self.is_unseen_extent(map, **place, &state);
            state.unseen |= found;
            found
        });
        garbage.extend(extents.map(unseen));
        let holes = map.holes.range(history);
        let holes = holes.filter(|(place, holes)| self.are_unseen_holes(map, **place, &holes.state()));
        garbage.extend(holes.map(unseen));
        garbage
    }

    /// What of the branches below is seen through this one alone, and hidden here from all who look.
    fn collect_below(self: &Arc<Self>, map: &Map, logical: u64) -> Vec<Unseen> {
        let mut garbage = Vec::new();
        let Some((first, _)) = map.seen.first_key_value() else { return garbage };
        let views: u32 = map.seen.values().map(|seen| seen.views).sum();
        let history = places(&(logical..logical + 1));
        let mut hidden = map.sectors_up_to(logical, *first);
        for (branch, until) in &self.below {
            let below = branch.map();
            if below.seen.get(until).is_some_and(|seen| seen.views == views) {
                let unseen = below.extents.range(history.clone()).filter(|(place, extent)| {
                    let mut state = extent.state();
                    let found = below.is_hidden(**place, &state, (*until, &hidden), self.extent_sectors);
                    state.unseen |= found;
                    found
                });
                garbage.extend(unseen.map(|(place, extent)| Unseen {
                    above: Arc::clone(self),
                    branch: Arc::clone(branch),
                    place: *place,
                    extent: Arc::clone(extent),
                }));
            }
            hidden.extend(below.sectors_up_to(logical, *until));
        }
        garbage
    }

    fn is_unseen_extent(&self, map: &Map, place: Place, state: &ExtentState) -> bool {
        match map.first_seen(place) {
            // A write on its way ends in an extent that is still there.
            _ if state.has_writers() => false,
            None => true,
            // One that is empty and might be seen is the commit's to take.
            Some(_) if state.sectors().is_empty() => false,
            Some(seen) => state.sectors().is_within(&map.younger(place, seen), self.extent_sectors),
        }
    }

    fn are_unseen_holes(&self, map: &Map, place: Place, state: &ExtentState) -> bool {
        // Not before it is recorded: what it hides goes behind its record, and what it took the place of before that.
        if state.dirty {
            return false;
        }
        let Some(seen) = map.first_seen(place) else { return true };
        let first = Place::new(place.logical(), Moment(0));
        let hide_nothing =
            map.extents.range(first..place).next().is_none() && !self.inherits_at(place.logical());
        hide_nothing || state.sectors().is_within(&map.younger(place, seen), self.extent_sectors)
    }

    /// Whether the branches below have anything of the extent `logical`.
    fn inherits_at(&self, logical: u64) -> bool {
        let history = places(&(logical..logical + 1));
        self.below.iter().any(|(branch, until)| {
            branch.map().extents.range(history.clone()).any(|(place, _)| place.moment() <= *until)
        })
    }

    /// After opening: puts what needs it on the dirty lists: unseen and empty extents, and of `head`, a volume's present moment
    /// and its size, what a shrinking that did not finish left past the end.
    pub(crate) fn mark_leftovers(self: &Arc<Self>, core: &Core, head: Option<(Moment, u64)>) {
        let per_extent = u64::from(self.extent_sectors);
        if let Some((moment, sectors)) = head {
            let cut = self.cut(sectors.div_ceil(per_extent), moment);
            lock(&core.dirty).cut.extend(cut);
            let kept = u32::try_from(sectors % per_extent).unwrap_or(0);
            if kept != 0 {
                self.remove(core, Place::new(sectors / per_extent, moment), kept..self.extent_sectors);
            }
        }
        self.map_mut().index_all();
        self.collect_all(core);
        let map = self.map();
        for (place, extent) in &map.extents {
            let mut state = extent.state();
            if state.sectors().is_empty() {
                self.mark_dirty(core, *place, ExtentKind::Data, &mut state);
            }
        }
    }

    /// Tells for every extent of the device in the branch in which moments it is seen.
    pub(crate) fn for_each_extent(&self, mut visit: impl FnMut(&Extent, &[Moment])) {
        let map = self.map();
        for (place, extent) in &map.extents {
            let sectors = extent.state().sectors().clone();
            // What hides it only grows with time.
            let seen: Vec<Moment> = map
                .seen_in(*place)
                .take_while(|moment| !sectors.is_within(&map.younger(*place, *moment), self.extent_sectors))
                .collect();
            visit(extent, &seen);
        }
    }

    /// Whether this extent of the device is the one at `place`.
    pub(crate) fn has(&self, place: Place, extent: &Arc<Extent>) -> bool {
        self.map().extents.get(&place).is_some_and(|found| Arc::ptr_eq(found, extent))
    }

    /// Shows every extent of the device in the branch.
    pub(crate) fn visit_extents(&self, mut visit: impl FnMut(Place, &Arc<Extent>)) {
        self.map().extents.iter().for_each(|(place, extent)| visit(*place, extent));
    }

    /// Extents of the device in the branch.
    pub(crate) fn extents(&self) -> u64 {
        self.map().extents.len() as u64
    }
}

impl Unseen {
    /// Takes it out of its branch's map, unless it has left that already, or is holes and more were added to it.
    pub(crate) fn take(&self) -> Option<Retired> {
        let mut map = self.branch.map_mut();
        let kind = self.extent.kind();
        map.of_kind(kind).get(&self.place).filter(|found| Arc::ptr_eq(found, &self.extent))?;
        let goes = match kind {
            ExtentKind::Data => true,
            ExtentKind::Holes => self.branch.are_unseen_holes(&map, self.place, &self.extent.state()),
        };
        if goes { map.take_out(self.place, kind) } else { None }
    }

    /// What else nobody sees at its place once it is gone: holes that hid it.
    pub(crate) fn collect_again(&self) -> Vec<Unseen> {
        self.above.collect(self.place.logical())
    }
}

impl Map {
    fn of_kind(&self, kind: ExtentKind) -> &BTreeMap<Place, Arc<Extent>> {
        match kind {
            ExtentKind::Data => &self.extents,
            ExtentKind::Holes => &self.holes,
        }
    }

    pub(crate) fn take_out(&mut self, place: Place, kind: ExtentKind) -> Option<Retired> {
        let (of_kind, other) = match kind {
            ExtentKind::Data => (&mut self.extents, &self.holes),
            ExtentKind::Holes => (&mut self.holes, &self.extents),
        };
        let extent = of_kind.remove(&place)?;
        if !other.contains_key(&place) {
            self.born.remove(&(place.moment(), place.logical()));
        }
        Some(Retired::of_living(extent))
    }

    /// A place is new: whether with one that was born before, and is not seen apart from it, it is to be folded.
    fn note_born(&mut self, place: Place) -> bool {
        let (moment, logical) = (place.moment(), place.logical());
        self.index(place);
        let seen = self.seen.range(..moment).next_back().and_then(|(before, _)| before.next());
        let beside = Place::new(logical, seen.unwrap_or(Moment(0)))..place;
        let is_second = self.extents.range(beside.clone()).chain(self.holes.range(beside)).next().is_some();
        let group = if is_second { self.to_fold(logical) } else { None };
        group.is_some_and(|group| self.to_fold.insert(group))
    }

    /// Notes when a place was born, where that may ever be asked for.
    pub(crate) fn index(&mut self, place: Place) {
        if self.seen.first_key_value().is_some_and(|(first, _)| place.moment() > *first) {
            self.born.insert((place.moment(), place.logical()));
        }
    }

    /// What need not be known to have been born, for nobody looks at anything before it.
    fn forget_first(&mut self) {
        let Some((first, _)) = self.seen.first_key_value() else { return };
        while self.born.first().is_some_and(|(moment, _)| moment <= first) {
            self.born.pop_first();
        }
    }

    /// After opening, when all who look are there.
    fn index_all(&mut self) {
        let Some((first, _)) = self.seen.first_key_value() else { return };
        let places = self.extents.keys().chain(self.holes.keys());
        let later = places.filter(|place| place.moment() > *first);
        self.born = later.map(|place| (place.moment(), place.logical())).collect();
    }

    /// The extents of the volume of which less may be seen when `moment`, which saw as far as `end`, is seen no more: those that
    /// something was born of up to the next that is seen, or that lie past its end. Where there is no next, nobody sees what was
    /// born after the one before.
    fn changed_between(
        &self,
        before: Option<Moment>,
        (moment, end): (Moment, u64),
        after: Option<Moment>,
    ) -> Vec<u64> {
        let behind = |moment: Moment| Bound::Excluded((moment, u64::MAX));
        let born = match (before, after) {
            (_, Some(after)) => self.born.range((behind(moment), behind(after))),
            (Some(before), None) => self.born.range((behind(before), Bound::Unbounded)),
            (None, None) => return Vec::new(),
        };
        let mut logicals: Vec<u64> = born.map(|(_, logical)| *logical).collect();
        let end_after = after.and_then(|after| self.seen.get(&after)).map_or(end, |seen| seen.end);
        if end_after < end {
            let past_end = Place::new(end_after, Moment(0))..;
            let extents = self.extents.range(past_end.clone());
            logicals.extend(extents.chain(self.holes.range(past_end)).map(|(place, _)| place.logical()));
        }
        logicals.sort_unstable();
        logicals.dedup();
        logicals
    }

    /// The moments in which somebody looks at `place`, oldest first.
    fn seen_in(&self, place: Place) -> impl Iterator<Item = Moment> {
        let seen = self.seen.range(place.moment()..).filter(move |(_, seen)| place.logical() < seen.end);
        seen.map(|(moment, _)| *moment)
    }

    fn first_seen(&self, place: Place) -> Option<Moment> {
        self.seen_in(place).next()
    }

    /// Whether nobody sees the extent at `place`, if those who look at `until` have `above` before it.
    fn is_hidden(
        &self,
        place: Place,
        state: &ExtentState,
        (until, above): (Moment, &[Presence]),
        extent_sectors: u32,
    ) -> bool {
        let hidden_from = |moment: Moment| {
            let mut hiding = self.younger(place, moment);
            if moment == until {
                hiding.extend_from_slice(above);
            }
            state.sectors().is_within(&hiding, extent_sectors)
        };
        // Of those who look later, the nearest has least before it.
        let later = self.seen_in(place).find(|moment| *moment > until);
        !state.has_writers()
            && !state.sectors().is_empty()
            && self.first_seen(place) == Some(until)
            && hidden_from(until)
            && later.is_none_or(hidden_from)
    }

    /// What of an extent of the volume is decided here for those who look at `moment`.
    fn sectors_up_to(&self, logical: u64, moment: Moment) -> Vec<Presence> {
        let until = Place::new(logical, Moment(0))..=Place::new(logical, moment);
        let extents = self.extents.range(until.clone());
        extents.chain(self.holes.range(until)).map(|(_, extent)| extent.state().sectors().clone()).collect()
    }

    /// What hides sectors of the extent or holes at `place` from those who look at `seen`.
    fn younger(&self, place: Place, seen: Moment) -> Vec<Presence> {
        let Some(next) = place.moment().next() else { return Vec::new() };
        let younger = Place::new(place.logical(), next)..=Place::new(place.logical(), seen);
        if younger.is_empty() {
            return Vec::new();
        }
        let extents = self.extents.range(younger.clone());
        extents.chain(self.holes.range(younger)).map(|(_, extent)| extent.state().sectors().clone()).collect()
    }
}
