//! Healing: a damaged sector gets what was written to it again, from another pool that has it. Needs no key.
//!
//! Invariants:
//! - What is put back is what the sector's own record says: same sequence, same tag, and ciphertext of its checksum. So nothing
//!   older and nothing else ever takes its place, whoever sent it. A sector whose record is damaged too is not healed.
//! - It goes the way of every overwrite, through the log (`extent.rs`). It is put there only while the sector still has that
//!   record and nobody writes it: what is newer stays.

use std::sync::Arc;

use device::{Sealed, SectorBuf, SectorRecord};
use units::{ByteOffset, Lba, SECTOR_BYTES, SectorCount, VolumeId};

use crate::branch::{Branch, Written};
use crate::commit::lock;
use crate::entry::Place;
use crate::extent::{Content, Extent, Route};
use crate::held::Held;
use crate::scrub::{judge, records};
use crate::{Piece, Pool, PoolError, PoolVolume};

/// A damaged sector, and what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedSector {
    /// Where it is on the device.
    pub at: ByteOffset,
    pub record: SectorRecord,
    /// The volumes that show it, themselves or in a snapshot, and which of their sectors it is. Empty where nobody does.
    pub volumes: Vec<(VolumeId, Lba)>,
}

/// A sector of an extent that is mapped.
struct Found {
    branch: Arc<Branch>,
    place: Place,
    extent: Arc<Extent>,
    sector: u32,
}

impl Pool {
    /// What a sector of the device should be, if it is damaged and its record is not.
    pub fn wanted(&self, at: ByteOffset) -> Result<Option<WantedSector>, PoolError> {
        self.core.check_not_failed()?;
        let Some(found) = self.locate(at) else { return Ok(None) };
        let Some(record) = self.expected(&found)? else { return Ok(None) };
        let shown_by = self.shown_by(&found.extent, found.place, found.sector);
        let states = lock(&self.volumes);
        let volume_of = |id: VolumeId| {
            let snapshot = states.live.get(&id).filter(|state| state.is_snapshot());
            snapshot.and_then(|state| state.origin()).unwrap_or(id)
        };
        let mut volumes: Vec<_> = shown_by.into_iter().map(|(id, sector)| (volume_of(id), sector)).collect();
        volumes.sort_unstable();
        volumes.dedup();
        Ok(Some(WantedSector { at, record, volumes }))
    }

    /// The ciphertext of a sector with exactly this record, as the volume or one of its snapshots shows it; `None` where none
    /// does, or what does is damaged.
    pub fn find_sector(
        &self,
        volume: VolumeId,
        sector: Lba,
        record: &SectorRecord,
    ) -> Result<Option<Sealed>, PoolError> {
        self.core.check_not_failed()?;
        let states: Vec<_> = {
            let volumes = lock(&self.volumes);
            let is_of = |id: VolumeId, origin: Option<VolumeId>, snapshot: bool| {
                id == volume || (snapshot && origin == Some(volume))
            };
            let live = volumes.live.values();
            live.filter(|state| is_of(state.id(), state.origin(), state.is_snapshot())).cloned().collect()
        };
        let shown = states.iter().filter_map(|state| {
            // Too short, deleted meanwhile, or damaged here as well: not this one.
            let pieces = PoolVolume::new(&self.core, state).read(sector, SectorCount(1)).ok()?;
            pieces.into_iter().find_map(|piece| match piece {
                Piece::Sealed { data, .. } => Some(data),
                Piece::Hole(_) => None,
            })
        });
        let mut fitting = shown.filter(|data| data.records() == [*record] && data.first_misfit().is_none());
        Ok(fitting.next())
    }

    /// Puts a damaged sector's ciphertext back, durably: whether it did. It does not where the sector is not damaged, not any
    /// more, or its record is; what does not fit its record is [`PoolError::UnfitToHeal`].
    pub fn heal(&self, at: ByteOffset, ciphertext: &[u8]) -> Result<bool, PoolError> {
        self.core.check_not_failed()?;
        let Some(found) = self.locate(at) else { return Ok(false) };
        let Some(record) = self.expected(&found)? else { return Ok(false) };
        let whole = Some(ciphertext).filter(|ciphertext| ciphertext.len() == SECTOR_BYTES);
        let sealed = whole
            .and_then(SectorBuf::copied_from)
            .and_then(|buf| Sealed::from_frame(buf, vec![record]).ok())
            .ok_or(PoolError::UnfitToHeal { at })?;
        self.core.make_room(1)?;
        let Found { branch, place, extent, sector } = &found;
        let part = *sector..*sector + 1;
        let Some(joined) = branch.join(*place) else { return Ok(false) };
        // From here on nobody writes the sector, and what was being written before is there.
        joined.begin_ways(part.clone(), Route::Buffered);
        let still =
            Arc::ptr_eq(&joined, extent) && self.expected(&found).is_ok_and(|now| now == Some(record));
        let written = match still {
            true => Written::Healed(*sector, Content::InMemory(Held::new(&Arc::new(sealed), 0))),
            false => Written::Nothing,
        };
        if !branch.end_write(&self.core, *place, &joined, (part.clone(), written)) {
            return Ok(false);
        }
        self.core.buffered(1);
        self.core.flush()?;
        self.core.place(u64::MAX)?;
        // A device that does not take it keeps nothing.
        let left = judge(&self.core, extent, part)?.1;
        tracing::warn!(pool = %self.core.pool, device_offset = at.0, healed = left.is_empty(), "a damaged sector was written again");
        Ok(left.is_empty())
    }

    /// The sector that lies there, of an extent that some branch has.
    fn locate(&self, at: ByteOffset) -> Option<Found> {
        let extents = self.core.allocator.counts().extents;
        let (index, sector) = self.core.layout.sector_of(at, extents)?;
        self.mapped(index..index + 1).into_iter().find_map(|mapped| {
            let (branch, extent) = mapped.branch.upgrade().zip(mapped.extent.upgrade())?;
            Some(Found { branch, place: mapped.place, extent, sector })
        })
    }

    /// The record of a sector that is damaged; `None` where it is not, or where the record is.
    fn expected(&self, found: &Found) -> Result<Option<SectorRecord>, PoolError> {
        let Found { extent, sector, .. } = found;
        let part = *sector..*sector + 1;
        if judge(&self.core, extent, part.clone())?.1.is_empty() {
            return Ok(None);
        }
        let record = records(&self.core, extent, part)?.pop();
        Ok(record.and_then(Result::ok).flatten())
    }
}
