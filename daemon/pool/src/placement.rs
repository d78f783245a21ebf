//! Ciphertext that is durable in the log and not yet in its place.
//!
//! It goes there unless the log says meanwhile that nothing is there any more, or something newer: then somebody else may be
//! writing to the place, and it is forgotten here before they may. Until it is there, its extent has it in memory for readers
//! (`extent.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use device::Sealed;

use crate::extent::{Content, Extent};
use crate::presence::Presence;
use crate::records::SectorId;

/// A sector on its way to its place.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) extent: Arc<Extent>,
    pub(crate) sealed: Arc<Sealed>,
}

/// By place, the newest of each sector.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    sectors: BTreeMap<SectorId, Waiting>,
    /// Where the next placing goes on, so that all get their turn.
    next: SectorId,
}

/// Sectors that are being placed, in the order of their places.
#[derive(Debug)]
pub(crate) struct PlacementBatch(Vec<(SectorId, Waiting)>);

impl Placement {
    pub(crate) fn new(sectors: BTreeMap<SectorId, Waiting>) -> Self {
        Self { sectors, next: SectorId::default() }
    }

    pub(crate) fn sectors(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// The log has this.
    pub(crate) fn add(&mut self, of: SectorId, waiting: Waiting) {
        self.sectors.insert(of, waiting);
    }

    /// The log has something newer, which is in its place.
    pub(crate) fn forget_sector(&mut self, of: SectorId) {
        self.sectors.remove(&of);
    }

    /// The log says that this is what is present in the extent.
    pub(crate) fn keep(&mut self, extent: u32, present: &Presence) {
        let of = self.sectors.range(SectorId::all_of(extent)).map(|(of, _)| *of);
        let gone: Vec<SectorId> = of.filter(|of| !present.contains(of.sector)).collect();
        for sector in gone {
            self.sectors.remove(&sector);
        }
    }

    /// The log says that the extent is nobody's.
    pub(crate) fn forget(&mut self, extent: u32) {
        let of: Vec<SectorId> = self.sectors.range(SectorId::all_of(extent)).map(|(of, _)| *of).collect();
        for sector in of {
            self.sectors.remove(&sector);
        }
    }

    /// Takes up to `most` sectors out, for [`PlacementBatch::let_go`] once they are in their places.
    pub(crate) fn take(&mut self, most: u64) -> PlacementBatch {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(self.sectors.len());
        let behind = self.sectors.range(self.next..).map(|(of, _)| *of);
        let before = self.sectors.range(..self.next).map(|(of, _)| *of);
        let mut taken: Vec<SectorId> = behind.chain(before).take(most).collect();
        self.next = taken.last().map_or(self.next, |last| SectorId { sector: last.sector + 1, ..*last });
        taken.sort_unstable();
        let with_content = |of: SectorId| self.sectors.remove(&of).map(|waiting| (of, waiting));
        PlacementBatch(taken.into_iter().filter_map(with_content).collect())
    }
}

impl PlacementBatch {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sectors that lie one behind the other, each run from its first on.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (SectorId, Sealed)> {
        let follows = |(a, _): &(SectorId, Waiting), (b, _): &(SectorId, Waiting)| {
            a.extent == b.extent && a.sector + 1 == b.sector
        };
        self.0.chunk_by(follows).filter_map(|run| {
            let first = run.first()?.0;
            Some((first, Sealed::gathered(run.iter().map(|(_, waiting)| waiting.sealed.as_slice()))))
        })
    }

    /// They are in their places: readers find them there.
    pub(crate) fn let_go(self) {
        for (of, Waiting { extent, sealed }) in self.0 {
            extent.state().forget(of.sector, &Content::InMemory(sealed));
        }
    }
}
