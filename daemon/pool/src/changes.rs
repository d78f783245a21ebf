//! What differs between two moments of a volume, found without reading a sector: what lies in the same place of an extent that
//! both show is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use units::{Lba, SectorCount};

use crate::branch::{Layer, resolve};
use crate::{PoolError, PoolVolume};

/// Sectors whose map is looked at at once: 1 GiB.
const AT_ONCE: u64 = 1 << 18;

/// A sector, compared with what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// As it was.
    Same,
    /// Holds something, written since.
    Written,
    /// A hole, where there was something.
    Unmapped,
}

/// How much of what a snapshot shows was written anew or unmapped since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// What the snapshot shows.
    pub of: SectorCount,
    /// What of it is otherwise now.
    pub sectors: SectorCount,
}

impl PoolVolume {
    /// How much of what `older`, a snapshot in the same pool, shows is otherwise here. Reads no sector.
    pub fn rewritten_since(&self, older: &Self) -> Result<Rewritten, PoolError> {
        let mut rewritten = Rewritten::default();
        let (sectors, end) = (self.sectors().0, older.sectors().0);
        let mut at = 0;
        while at < end {
            let count = SectorCount(AT_ONCE.min(end - at));
            let then = older.changes_since(None, Lba(at), count)?;
            let held = |run: &&(SectorCount, Change)| run.1 == Change::Written;
            let shown: u64 = then.iter().filter(held).map(|(run, _)| run.0).sum();
            rewritten.of.0 += shown;
            // What a shrinking has cut off is gone.
            let here = count.0.min(sectors.saturating_sub(at));
            let same = match here {
                0 => 0,
                here => {
                    let now = self.changes_since(Some(older), Lba(at), SectorCount(here))?;
                    both(&then, held, &now, |run| run.1 == Change::Same)
                }
            };
            rewritten.sectors.0 += shown - same;
            at += count.0;
        }
        Ok(rewritten)
    }

    /// How each sector of the range differs from what `older`, a snapshot in the same pool, shows there, or from nothing at
    /// all: runs that cover the range in order. What `older` is too short for was a hole.
    ///
    /// A sector that was written with what it held counts as written. Of a volume that is written meanwhile any moment since
    /// the call may be told; a snapshot stays as it is.
    pub fn changes_since(
        &self,
        older: Option<&Self>,
        first: Lba,
        count: SectorCount,
    ) -> Result<Vec<(SectorCount, Change)>, PoolError> {
        let (view, range) = {
            let head = self.state.head();
            (head.view.clone(), self.state.range(&head, first, count)?)
        };
        let logical = self.state.logical(&range);
        let now = view.layers(logical.clone());
        let (then, then_sectors) = match older {
            Some(older) => {
                let head = older.state.head();
                (head.view.layers(logical), head.sectors.0)
            }
            None => (BTreeMap::new(), 0),
        };
        let mut runs = Runs::default();
        let either: BTreeSet<u64> = now.keys().chain(then.keys()).copied().collect();
        self.core.looked_at(either.len());
        let mut at = range.start;
        for logical in either {
            let part = self.state.part(logical, &range);
            let start = logical * u64::from(self.state.extent_sectors) + u64::from(part.start);
            runs.push(start - at, Change::Same);
            at = start + part.len() as u64;
            let (now, then) = (layers_of(&now, logical), layers_of(&then, logical));
            if at <= then_sectors && same_extents(now, then) {
                runs.push(part.len() as u64, Change::Same);
                continue;
            }
            let then = holders(then, part.clone()).into_iter().zip(start..);
            // Past its end it shows nothing, whatever its extents hold there.
            let then = then.map(|(holder, sector)| holder.filter(|_| sector < then_sectors));
            for (now, then) in holders(now, part).into_iter().zip(then) {
                let change = match now {
                    now if now == then => Change::Same,
                    Some(_) => Change::Written,
                    None => Change::Unmapped,
                };
                runs.push(1, change);
            }
        }
        runs.push(range.end - at, Change::Same);
        Ok(runs.0)
    }
}

type Run = (SectorCount, Change);

/// How many sectors are in a run of `a` that is wanted and in one of `b` that is: both begin at the same sector.
fn both(a: &[Run], wanted_a: impl Fn(&&Run) -> bool, b: &[Run], wanted_b: impl Fn(&&Run) -> bool) -> u64 {
    let (mut a, mut b) = (a.iter(), b.iter());
    let (mut of_a, mut of_b) = (a.next().map(|run| (run, run.0.0)), b.next().map(|run| (run, run.0.0)));
    let mut count = 0;
    while let (Some((run_a, left_a)), Some((run_b, left_b))) = (of_a, of_b) {
        let step = left_a.min(left_b);
        if wanted_a(&run_a) && wanted_b(&run_b) {
            count += step;
        }
        of_a = if left_a > step { Some((run_a, left_a - step)) } else { a.next().map(|run| (run, run.0.0)) };
        of_b = if left_b > step { Some((run_b, left_b - step)) } else { b.next().map(|run| (run, run.0.0)) };
    }
    count
}

fn layers_of(layers: &BTreeMap<u64, Vec<Layer>>, logical: u64) -> &[Layer] {
    layers.get(&logical).map_or(&[], Vec::as_slice)
}

fn same_extents(a: &[Layer], b: &[Layer]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(&a.extent, &b.extent))
}

/// Which extent holds each sector of the part.
fn holders(layers: &[Layer], part: Range<u32>) -> Vec<Option<u32>> {
    let of_run = |(run, holder): (Range<u32>, Option<usize>)| {
        let extent = holder.map(|nth| layers[nth].extent.index());
        run.map(move |_| extent)
    };
    resolve(layers, part).into_iter().flat_map(of_run).collect()
}

#[derive(Default)]
struct Runs(Vec<(SectorCount, Change)>);

impl Runs {
    fn push(&mut self, sectors: u64, change: Change) {
        match self.0.last_mut() {
            _ if sectors == 0 => {}
            Some((run, same)) if *same == change => run.0 += sectors,
            _ => self.0.push((SectorCount(sectors), change)),
        }
    }
}
