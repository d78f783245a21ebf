//! Folding: what lies in several extents of the device, though nobody can tell any more which of them is older, comes to lie in
//! one. Needs no key.
//!
//! The first write to an extent of a volume behind a snapshot takes an extent of the device, whatever there is to write. Once the
//! snapshot is gone, both are seen together or not at all: they are a **group**. So are holes, and whatever else was born between
//! two neighbouring moments that are seen, of one epoch. Of a group one place stays, that of the extent which has most of
//! what is shown. What the others have goes there, and they are freed.
//!
//! Invariants:
//! - Only what is no longer written is folded: moments that have ended, and whose requests are through.
//! - What a group shows is the same before, at every step and behind. A sector goes with its record, which binds it to nothing
//!   that changes. One that is not what was written is not moved, and what has it stays.
//! - What is put into the extent that stays is hidden there by the extent that it came from, or is what was shown anyway. So it may
//!   be there, in memory and in the log, whether or not the others ever go.
//! - Where the place of a sector in the extent that stays holds something, that is hidden by what takes its place, from
//!   everybody. It is overwritten as by a write, through the log, and not before the last read that began when somebody could
//!   see it has ended (`Core::has_old_reads`).
//! - The others leave the map in one instant, with the holes that they leave. In the log what was put into the extent that stays
//!   is durable before the first of them is freed. They are freed from the oldest on, holes before the extent of the same moment,
//!   however many groups they were of since the last commit: so whichever of them a cut leaves say what they said before, or
//!   nothing.
//! - What is found to be unseen is freed as it is: nothing is moved into it.
//! - One step runs at a time. Nothing but a step changes what is present in a moment that has ended.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use device::{DeviceErrorKind, Sealed};
use units::SectorCount;

use crate::branch::{Branch, Map};
use crate::commit::{Core, lock};
use crate::entry::{BranchId, Moment, Place};
use crate::extent::{Content, Extent, ExtentKind, Retired, Route, Way};
use crate::held::Held;
use crate::presence::Presence;
use crate::scrub::records;
use crate::{CrashStep, Pool, PoolError, PoolErrorKind};

/// Sectors that are read at once: 1 MiB.
const AT_ONCE: u32 = 256;
/// Most groups that are folded before a flush.
const GROUPS_AT_ONCE: u64 = 64;

/// What a step of folding has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FoldStep {
    /// Sectors that were moved.
    pub moved: SectorCount,
    /// Extents of the device that were freed.
    pub freed: u64,
    /// Groups that have become one place.
    pub groups: u64,
    /// Whether it stopped because this was enough for a step, or because reads that began before must end first.
    pub more: bool,
    /// Extents of volumes that were left for later.
    pub waiting: u64,
}

/// What was born in one moment for one extent of the volume.
#[derive(Debug)]
struct Member {
    place: Place,
    extent: Option<Arc<Extent>>,
    holes: Option<Arc<Extent>>,
}

/// Oldest first.
type Group = Vec<Member>;

/// What a place had that was folded into another.
#[derive(Debug)]
pub(crate) struct Emptied {
    pub(crate) branch: Arc<Branch>,
    pub(crate) place: Place,
    pub(crate) retired: Retired,
}

impl Emptied {
    /// In the order in which they must be freed.
    pub(crate) fn sort(folded: &mut [Self]) {
        folded.sort_by_key(|Self { branch, place, retired }| {
            (branch.id, *place, retired.extent.kind() == ExtentKind::Data)
        });
    }
}

/// How trying to fold an extent of a volume has ended.
enum Outcome {
    Folded,
    /// Worth another try.
    Later,
    /// As [`Outcome::Later`], and nothing else can be folded before either.
    ReadsFirst,
    /// Something in it is damaged.
    Stays,
}

/// Who holds a sector of a group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    Nobody,
    Hole,
    Member(usize),
}

/// What is to become of a group.
struct Plan {
    /// The member that stays.
    target: usize,
    /// What the others have that is shown.
    moves: Vec<(usize, Range<u32>)>,
    /// What a hole of the group hides.
    holes: Vec<Range<u32>>,
}

impl Pool {
    /// Folds until it has moved `most` sectors or a little more, or is through: for a thread that does so beside the others, with
    /// rests. Works on a full pool. What has become free is free, durably, when it returns.
    pub fn fold(&self, most: SectorCount) -> Result<FoldStep, PoolError> {
        self.core.check_not_failed()?;
        let _alone = lock(&self.folding);
        let mut step = FoldStep::default();
        if !self.core.layout.has_records() || !self.core.is_folding_due() {
            return Ok(step);
        }
        let mut result = Ok(());
        for (branch, ended) in self.branches_to_fold() {
            let mut later = Vec::new();
            while !step.more && result.is_ok() {
                let Some(logical) = branch.next_to_fold(ended) else { break };
                match self.fold_extent(&branch, (logical, ended), &mut step) {
                    Ok(Outcome::Folded | Outcome::Stays) => {}
                    Ok(Outcome::Later) => later.push(logical),
                    Ok(Outcome::ReadsFirst) => {
                        later.push(logical);
                        step.more = true;
                    }
                    // A place that the device does not take, or give, holds up no other.
                    Err(error) if error.kind() == PoolErrorKind::Io => {
                        tracing::warn!(pool = %self.info().id, logical, %error, "an extent could not be folded and stays as it is");
                    }
                    Err(error) => {
                        later.push(logical);
                        result = Err(error);
                    }
                }
                step.more |= step.moved >= most || step.groups >= GROUPS_AT_ONCE;
            }
            step.waiting += branch.fold_later(&later);
        }
        if step.waiting > 0 {
            self.core.note_folding();
        }
        if step.groups > 0 {
            self.core.flush()?;
        }
        result.map(|()| step)
    }

    /// Ends the moment of each volume in which something waits for that to be folded: a snapshot of it is gone, and it has written
    /// since what the extents of before could hold. How many those were; fewer where there is no room for holes. Each costs one of
    /// the moments that a volume has: this is for now and then.
    ///
    /// What is written afterwards takes a new extent the first time, wherever it is. So a volume is left alone for which there are not
    /// as many extents more as it has, by its quota, its reserve and what is free: overwriting takes no space there.
    pub fn end_moments_to_fold(&self) -> Result<u64, PoolError> {
        self.core.check_not_failed()?;
        if !self.core.layout.has_records() {
            // Nothing is folded there.
            return Ok(0);
        }
        let _changing = lock(&self.changing);
        let states: Vec<_> = lock(&self.volumes).live.values().cloned().collect();
        let mut ended = 0;
        for state in states.iter().filter(|state| !state.is_snapshot()) {
            let (view, spec) = (state.head().view.clone(), state.spec());
            let waits = view.branch.map().to_fold.range((view.moment, 0)..).next().is_some();
            let has_room = self.core.allocator.may_double(view.branch.account);
            if !waits || !has_room || view.moment >= Moment::FEW_LEFT {
                continue;
            }
            // Before there is anything to hide: a trim on a full pool must find room for its holes.
            match self.core.reserve_holes(0) {
                Err(PoolError::NoSpace) => break,
                reserved => reserved?,
            }
            let (before, writing, _) = state.begin_epoch(&self.core, (spec.epoch, spec.check), None)?;
            writing.wait();
            before.detach(&self.core);
            ended += 1;
        }
        if ended > 0 {
            self.core.note_folding();
            self.core.flush()?;
        }
        Ok(ended)
    }

    /// Those in which something is to be folded, each with the moment before which all have ended; `None` where nobody writes.
    fn branches_to_fold(&self) -> Vec<(Arc<Branch>, Option<Moment>)> {
        // Whoever ends a moment holds this until the requests of the moment are through.
        let _changing = lock(&self.changing);
        let mut found: BTreeMap<BranchId, (Arc<Branch>, Option<Moment>)> = BTreeMap::new();
        for state in lock(&self.volumes).live.values() {
            let head = state.head();
            for (nth, (branch, moment)) in head.view.levels().enumerate() {
                let (_, ended) = found.entry(branch.id).or_insert_with(|| (Arc::clone(branch), None));
                if nth == 0 && !state.is_snapshot() {
                    *ended = Some(moment);
                }
            }
        }
        found.into_values().filter(|(branch, _)| !branch.map().to_fold.is_empty()).collect()
    }

    /// Folds each group of an extent of a volume.
    fn fold_extent(
        &self,
        branch: &Arc<Branch>,
        (logical, ended): (u64, Option<Moment>),
        step: &mut FoldStep,
    ) -> Result<Outcome, PoolError> {
        loop {
            let group = branch.map().group(logical, ended);
            // With what is being written it may be one.
            let Some(group) = group else { return Ok(Outcome::Later) };
            // Behind looking for the group: what made it one has left its reads behind before.
            if self.core.has_old_reads() {
                return Ok(Outcome::ReadsFirst);
            }
            match self.core.fold_group(branch, &group, step)? {
                Outcome::Folded => step.groups += 1,
                outcome => {
                    self.core.collect_again(branch, logical);
                    return Ok(outcome);
                }
            }
        }
    }
}

impl Core {
    fn fold_group(
        &self,
        branch: &Arc<Branch>,
        group: &Group,
        step: &mut FoldStep,
    ) -> Result<Outcome, PoolError> {
        // One that shows nothing is unseen, and freed as it is.
        let Some(plan) = Plan::of(group, self.layout.extent_sectors()) else { return Ok(Outcome::Later) };
        let target = &group[plan.target];
        let mut moving = None;
        if let Some(extent) = &target.extent {
            let Some(taken) = Moving::begin(branch, target.place, extent) else { return Ok(Outcome::Later) };
            for (member, run) in &plan.moves {
                let Some(source) = &group[*member].extent else { continue };
                for start in run.clone().step_by(AT_ONCE as usize) {
                    let part = start..run.end.min(start + AT_ONCE);
                    let sectors = part.len() as u64;
                    if !self.move_part(source, part, &taken)? {
                        return Ok(Outcome::Stays);
                    }
                    step.moved.0 += sectors;
                }
            }
            moving = Some(taken);
        }
        let Some(freed) = branch.switch(self, group, &plan) else { return Ok(Outcome::Later) };
        drop(moving);
        self.unmapped();
        step.freed += freed;
        Ok(Outcome::Folded)
    }

    /// Who looked for what nobody sees passed over an extent that something was being moved to.
    fn collect_again(&self, branch: &Arc<Branch>, logical: u64) {
        let unseen = branch.collect(logical);
        if !unseen.is_empty() {
            lock(&self.dirty).unseen.extend(unseen);
            self.unmapped();
        }
    }

    /// Puts sectors where they are to lie: there as far as nothing is there, or else into memory for the log. `false` where one is
    /// not what was written.
    fn move_part(&self, source: &Extent, part: Range<u32>, moving: &Moving<'_>) -> Result<bool, PoolError> {
        self.make_room(part.len() as u64)?;
        let Some(read) = self.read_to_move(source, part)? else { return Ok(false) };
        let (mut contents, mut in_memory) = (Vec::new(), 0);
        for (first, data) in read {
            let end = first + u32::try_from(data.sectors().0).unwrap_or(0);
            for (of_way, way) in &moving.ways {
                let part = of_way.start.max(first)..of_way.end.min(end);
                if part.is_empty() {
                    continue;
                }
                let slice =
                    data.as_slice().sectors_in(u64::from(part.start - first)..u64::from(part.end - first));
                match way {
                    Way::Direct => {
                        self.step(CrashStep::FoldWrite);
                        let at = self.layout.sector_at(moving.extent.index(), part.start);
                        self.device.write(at, slice)?;
                        // Before it is present: whoever finds that finds the write counted.
                        self.data_written();
                        contents
                            .extend(part.zip(slice.records().iter().map(|record| Content::Placed(*record))));
                    }
                    Way::Buffered => {
                        in_memory += part.len() as u64;
                        // Of its own, so that nothing stays in memory with it.
                        let sealed = Arc::new(Sealed::gathered(std::iter::once(slice)));
                        let held = (0..).map(|nth| Content::InMemory(Held::new(&sealed, nth)));
                        contents.extend(part.zip(held));
                    }
                }
            }
        }
        moving.put(self, contents);
        self.buffered(in_memory);
        Ok(true)
    }

    /// Sectors with their records, in parts, each from its first on; `None` where one is not what was written.
    fn read_to_move(
        &self,
        source: &Extent,
        part: Range<u32>,
    ) -> Result<Option<Vec<(u32, Sealed)>>, PoolError> {
        let in_memory: Vec<(u32, Held)> = {
            let state = source.state();
            let held = |(sector, content): (u32, &Content)| match content {
                Content::InMemory(held) => Some((sector, held.clone())),
                Content::Placed(_) => None,
            };
            state.pending(part.clone()).filter_map(held).collect()
        };
        let (mut read, mut at) = (Vec::new(), part.start);
        for run in in_memory.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
            let Some((first, _)) = run.first() else { continue };
            if at < *first {
                let Some(data) = self.read_placed(source, at..*first)? else { return Ok(None) };
                read.push((at, data));
            }
            let pieces = Held::pieces(run.iter().map(|(_, held)| held));
            read.push((*first, Sealed::gathered(pieces.into_iter())));
            at = first + u32::try_from(run.len()).unwrap_or(0);
        }
        if at < part.end {
            let Some(data) = self.read_placed(source, at..part.end)? else { return Ok(None) };
            read.push((at, data));
        }
        Ok(Some(read))
    }

    fn read_placed(&self, source: &Extent, run: Range<u32>) -> Result<Option<Sealed>, PoolError> {
        let at = self.layout.sector_at(source.index(), run.start);
        for _ in 0..2 {
            let data = match self.device.read(at, SectorCount(run.len() as u64)) {
                Ok(data) => data,
                Err(error) if error.kind() == DeviceErrorKind::Io => continue,
                Err(error) => return Err(error.into()),
            };
            let found = records(self, source, run.clone())?.into_iter();
            let Some(whole) = found.map(|record| record.ok().flatten()).collect::<Option<Vec<_>>>() else {
                continue;
            };
            let data = data.with_records(whole);
            if data.first_misfit().is_none() {
                return Ok(Some(data));
            }
        }
        // Scrubbing says so. It stays where it is, for healing to find.
        tracing::debug!(pool = %self.pool, device_offset = at.0, "an extent with a damaged sector is not folded");
        Ok(None)
    }
}

impl Plan {
    /// `None` where extents of the group show nothing.
    fn of(group: &Group, extent_sectors: u32) -> Option<Self> {
        // What decides first comes first.
        let layers: Vec<(Holder, Presence)> = group
            .iter()
            .enumerate()
            .rev()
            .flat_map(|(nth, member)| {
                let extent = member.extent.iter().map(move |extent| (Holder::Member(nth), extent));
                extent.chain(member.holes.iter().map(|holes| (Holder::Hole, holes)))
            })
            .map(|(holder, extent)| (holder, extent.state().sectors().clone()))
            .collect();
        let mut runs: Vec<(Range<u32>, Holder)> = Vec::new();
        for sector in 0..extent_sectors {
            let holder = layers.iter().find(|(_, sectors)| sectors.contains(sector));
            let holder = holder.map_or(Holder::Nobody, |(holder, _)| *holder);
            match runs.last_mut() {
                Some((run, same)) if *same == holder => run.end = sector + 1,
                _ => runs.push((sector..sector + 1, holder)),
            }
        }
        let held = |nth: usize| -> usize {
            let of_it = runs.iter().filter(|(_, holder)| *holder == Holder::Member(nth));
            of_it.map(|(run, _)| run.len()).sum()
        };
        let extents = (0..group.len()).filter(|nth| group[*nth].extent.is_some());
        let target = extents.max_by_key(|nth| held(*nth));
        if target.is_some_and(|target| held(target) == 0) {
            return None;
        }
        let target = target.unwrap_or(0);
        let (mut moves, mut holes) = (Vec::new(), Vec::new());
        for (run, holder) in runs {
            match holder {
                Holder::Member(nth) if nth != target => moves.push((nth, run)),
                Holder::Hole => holes.push(run),
                Holder::Member(_) | Holder::Nobody => {}
            }
        }
        Some(Self { target, moves, holes })
    }
}

/// While it is there, nobody writes the extent, it stays in the map, and nobody finds it unseen.
struct Moving<'a> {
    branch: &'a Arc<Branch>,
    place: Place,
    extent: Arc<Extent>,
    part: Range<u32>,
    /// Which way what is moved there goes.
    ways: Vec<(Range<u32>, Way)>,
}

impl<'a> Moving<'a> {
    /// `None` where the extent is no longer there, or about to go.
    fn begin(branch: &'a Arc<Branch>, place: Place, extent: &Arc<Extent>) -> Option<Self> {
        let part = 0..branch.extent_sectors;
        {
            let map = branch.map();
            map.extents.get(&place).filter(|found| Arc::ptr_eq(found, extent))?;
            let mut state = extent.state();
            if state.unseen {
                return None;
            }
            state.add_writer();
        }
        let ways = extent.begin_ways(part.clone(), Route::ByPlace);
        Some(Self { branch, place, extent: Arc::clone(extent), part, ways })
    }

    /// Makes present what has been moved.
    fn put(&self, core: &Core, contents: Vec<(u32, Content)>) {
        let _map = self.branch.map();
        let mut state = self.extent.state();
        for (sector, content) in contents {
            state.hold(sector, content, self.branch.extent_sectors);
        }
        self.branch.mark_dirty(core, self.place, ExtentKind::Data, &mut state);
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        Extent::end_write(&mut self.extent.state(), &self.part);
    }
}

impl Branch {
    /// An extent of the volume that may have a group whose second member was born before `ended`.
    fn next_to_fold(&self, ended: Option<Moment>) -> Option<u64> {
        let mut map = self.map_mut();
        let first = map.to_fold.first().copied()?;
        if ended.is_some_and(|ended| first.0 >= ended) {
            return None;
        }
        map.to_fold.remove(&first);
        Some(first.1)
    }

    /// Notes that these extents of the volume are to be tried again, where they still have a group; how many wait then.
    fn fold_later(&self, logicals: &[u64]) -> u64 {
        let mut map = self.map_mut();
        let again: Vec<_> = logicals.iter().filter_map(|logical| map.to_fold(*logical)).collect();
        map.to_fold.extend(again);
        map.to_fold.len() as u64
    }

    /// Takes all members of a group but the one that stays out of the map, all at once; how many extents those had. `None`, and
    /// nothing has changed, where the group is not what it was or there is no room for its holes.
    fn switch(self: &Arc<Self>, core: &Core, group: &Group, plan: &Plan) -> Option<u64> {
        let _whole = core.not_committing();
        let mut map = self.map_mut();
        if !map.still_has(group) {
            return None;
        }
        let target = &group[plan.target];
        if !plan.holes.is_empty() {
            let holes = match &target.holes {
                Some(holes) => Arc::clone(holes),
                None => {
                    let holes = Arc::new(Extent::for_first_hole(core.holes.allocate()?));
                    map.holes.insert(target.place, Arc::clone(&holes));
                    map.index(target.place);
                    holes
                }
            };
            let mut state = holes.state();
            for run in &plan.holes {
                state.insert(run.clone(), self.extent_sectors);
            }
            self.mark_dirty(core, target.place, ExtentKind::Holes, &mut state);
        }
        if let Some(extent) = &target.extent {
            let mut state = extent.state();
            for run in &plan.holes {
                state.remove(run.clone(), self.extent_sectors);
            }
            self.mark_dirty(core, target.place, ExtentKind::Data, &mut state);
        }
        let mut extents = 0;
        for (_, member) in group.iter().enumerate().filter(|(nth, _)| *nth != plan.target) {
            for kind in [ExtentKind::Holes, ExtentKind::Data] {
                let Some(retired) = map.take_out(member.place, kind) else { continue };
                extents += u64::from(kind == ExtentKind::Data);
                let emptied = Emptied { branch: Arc::clone(self), place: member.place, retired };
                lock(&core.dirty).folded.push(emptied);
            }
        }
        Some(extents)
    }
}

impl Map {
    /// Everything of an extent of the volume that was born before a moment, oldest first.
    fn history(&self, logical: u64, before: Option<Moment>) -> Group {
        let end = before.map_or(Place::new(logical + 1, Moment(0)), |before| Place::new(logical, before));
        let range = Place::new(logical, Moment(0))..end;
        let mut members: BTreeMap<Place, Member> = BTreeMap::new();
        for (place, extent) in self.extents.range(range.clone()) {
            let extent = Some(Arc::clone(extent));
            members.insert(*place, Member { place: *place, extent, holes: None });
        }
        for (place, holes) in self.holes.range(range) {
            let member = members.entry(*place);
            member.or_insert(Member { place: *place, extent: None, holes: None }).holes =
                Some(Arc::clone(holes));
        }
        members.into_values().collect()
    }

    /// The first group of an extent of the volume, of what was born before a moment.
    fn group(&self, logical: u64, before: Option<Moment>) -> Option<Group> {
        let (mut group, mut epoch) = (Group::new(), None);
        for next in self.history(logical, before) {
            let of_next = next.extent.as_ref().map(|extent| extent.epoch());
            let other_key = of_next.is_some() && epoch.is_some() && of_next != epoch;
            let between = |last: &Member| self.seen.range(last.place.moment()..next.place.moment()).next();
            if other_key || group.last().and_then(between).is_some() {
                if group.len() > 1 {
                    return Some(group);
                }
                (group, epoch) = (Group::new(), None);
            }
            epoch = epoch.or(of_next);
            group.push(next);
        }
        (group.len() > 1).then_some(group)
    }

    /// As a branch notes it where an extent of the volume has a group.
    pub(crate) fn to_fold(&self, logical: u64) -> Option<(Moment, u64)> {
        let range = Place::new(logical, Moment(0))..Place::new(logical + 1, Moment(0));
        let members = self.extents.range(range.clone()).chain(self.holes.range(range)).take(2).count();
        if members < 2 {
            return None;
        }
        let group = self.group(logical, None)?;
        Some((group.get(1)?.place.moment(), logical))
    }

    fn still_has(&self, group: &Group) -> bool {
        let is = |found: Option<&Arc<Extent>>, expected: &Option<Arc<Extent>>| match (found, expected) {
            (Some(found), Some(expected)) => Arc::ptr_eq(found, expected),
            (found, expected) => found.is_none() && expected.is_none(),
        };
        let there = |member: &Member| {
            is(self.extents.get(&member.place), &member.extent)
                && is(self.holes.get(&member.place), &member.holes)
        };
        group.iter().all(there)
    }
}

#[cfg(test)]
mod tests {
    use units::VolumeEpoch;

    use super::*;
    use crate::allocator::{Account, Allocated, Allocator};

    /// A place that was folded into another and then further may be on the device as it was before the first: it must be gone before
    /// what is younger, which alone hides what it had then.
    #[test]
    fn what_one_commit_frees_goes_from_the_oldest_on_whatever_it_was_folded_into() {
        let allocator = Allocator::new(8);
        let emptied = |branch: u64, logical: u64, moment: u32, kind: ExtentKind| {
            let index = allocator.allocate(Account::POOL).unwrap();
            let space = Allocated::new(index, Account::POOL, &allocator);
            let extent = match kind {
                ExtentKind::Data => Extent::for_first_write(space, VolumeEpoch(1)),
                ExtentKind::Holes => Extent::for_first_hole(space),
            };
            let branch = Branch::new(BranchId(branch), Account::POOL, None, 16);
            let place = Place::new(logical, Moment(moment));
            Emptied { branch, place, retired: Retired::of_living(Arc::new(extent)) }
        };
        let (data, holes) = (ExtentKind::Data, ExtentKind::Holes);
        // The youngest into the middle, then that into the oldest; and another extent of the volume between.
        let mut folded = [
            emptied(2, 5, 7, data),
            emptied(1, 5, 9, data),
            emptied(2, 4, 8, data),
            emptied(2, 5, 3, data),
            emptied(2, 5, 3, holes),
        ];
        Emptied::sort(&mut folded);
        let order = folded.each_ref().map(|Emptied { branch, place, retired }| {
            (branch.id.0, place.logical(), place.moment().0, retired.extent.kind())
        });
        assert_eq!(
            order,
            [(1, 5, 9, data), (2, 4, 8, data), (2, 5, 3, holes), (2, 5, 3, data), (2, 5, 7, data)]
        );
    }
}
