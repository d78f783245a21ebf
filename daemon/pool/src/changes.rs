//! What differs between two moments of a volume, found without reading a sector: what lies in the same place of an extent that
//! both show is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use units::{Lba, SectorCount, VolumeEpoch};

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

/// A sector, compared with what it was, and where it lies under another epoch of the key than then.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compared {
    Same,
    Written,
    /// It may hold what it held, sealed anew, or something else.
    UnderAnother,
    Unmapped,
}

impl From<Compared> for Change {
    fn from(compared: Compared) -> Self {
        match compared {
            Compared::Same => Self::Same,
            Compared::Written | Compared::UnderAnother => Self::Written,
            Compared::Unmapped => Self::Unmapped,
        }
    }
}

/// How much of what a snapshot shows was written anew or unmapped since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// What the snapshot shows.
    pub of: SectorCount,
    /// What of it is otherwise now. What lies under another epoch of the key now is not counted: it was sealed anew, and nobody can tell
    /// by its place whether it was written too.
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
            let then = older.compare(None, Lba(at), count)?;
            let held = |run: &&Run| run.1 == Compared::Written;
            let shown: u64 = then.iter().filter(held).map(|(run, _)| run.0).sum();
            rewritten.of.0 += shown;
            // What a shrinking has cut off is gone.
            let here = count.0.min(sectors.saturating_sub(at));
            let spared = match here {
                0 => 0,
                here => {
                    let now = self.compare(Some(older), Lba(at), SectorCount(here))?;
                    both(&then, held, &now, |run| matches!(run.1, Compared::Same | Compared::UnderAnother))
                }
            };
            rewritten.sectors.0 += shown - spared;
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
        let mut runs = Runs::default();
        for (count, compared) in self.compare(older, first, count)? {
            runs.push(count.0, Change::from(compared));
        }
        Ok(runs.0)
    }

    fn compare(&self, older: Option<&Self>, first: Lba, count: SectorCount) -> Result<Vec<Run>, PoolError> {
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
        let mut at = range.start;
        for logical in either {
            let part = self.state.part(logical, &range);
            let start = logical * u64::from(self.state.extent_sectors) + u64::from(part.start);
            runs.push(start - at, Compared::Same);
            at = start + part.len() as u64;
            let (now, then) = (layers_of(&now, logical), layers_of(&then, logical));
            if at <= then_sectors && same_extents(now, then) {
                runs.push(part.len() as u64, Compared::Same);
                continue;
            }
            let then = holders(then, part.clone()).into_iter().zip(start..);
            // Past its end it shows nothing, whatever its extents hold there.
            let then = then.map(|(holder, sector)| holder.filter(|_| sector < then_sectors));
            for (now, then) in holders(now, part).into_iter().zip(then) {
                let compared = match (now, then) {
                    (now, then) if now == then => Compared::Same,
                    (Some((_, epoch)), Some((_, before))) if epoch != before => Compared::UnderAnother,
                    (Some(_), _) => Compared::Written,
                    (None, _) => Compared::Unmapped,
                };
                runs.push(1, compared);
            }
        }
        runs.push(range.end - at, Compared::Same);
        Ok(runs.0)
    }
}

type Run = (SectorCount, Compared);

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

/// Which extent holds each sector of the part, and under which epoch.
fn holders(layers: &[Layer], part: Range<u32>) -> Vec<Option<(u32, VolumeEpoch)>> {
    let of_run = |(run, holder): (Range<u32>, Option<usize>)| {
        let extent = holder.map(|nth| (layers[nth].extent.index(), layers[nth].extent.epoch()));
        run.map(move |_| extent)
    };
    resolve(layers, part).into_iter().flat_map(of_run).collect()
}

struct Runs<T>(Vec<(SectorCount, T)>);

impl<T> Default for Runs<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: PartialEq> Runs<T> {
    fn push(&mut self, sectors: u64, what: T) {
        match self.0.last_mut() {
            _ if sectors == 0 => {}
            Some((run, same)) if *same == what => run.0 += sectors,
            _ => self.0.push((SectorCount(sectors), what)),
        }
    }
}
