//! The snapshots that a volume, or one of its snapshots, can be compared with.
//!
//! None of it takes a key. That it is told to nobody else than whoever may read the volume is
//! [`Volume::changes_since`](crate::Volume::changes_since)'s to see to, which asks for the key as every call does.

use std::sync::Arc;

use pool::{Pool, PoolVolume};
use units::VolumeId;

/// The snapshots of one volume. Cheap to clone; each call looks anew.
#[derive(Clone, Debug)]
pub struct Snapshots {
    pool: Arc<Pool>,
    volume: VolumeId,
}

impl Snapshots {
    /// Those of `volume`, which is in `pool`.
    pub fn of(pool: Arc<Pool>, volume: VolumeId) -> Self {
        Self { pool, volume }
    }

    /// The volume that they are of.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Which there are now, the oldest first.
    pub fn ids(&self) -> Vec<VolumeId> {
        let all = self.pool.snapshots().into_iter();
        all.filter(|snapshot| snapshot.volume == self.volume).map(|snapshot| snapshot.id).collect()
    }

    /// Opens one. `None` where it is another volume's, or no more.
    pub(crate) fn open(&self, id: VolumeId) -> Option<Arc<PoolVolume>> {
        let found = self.pool.snapshot(id).ok()?;
        (found.origin() == Some(self.volume)).then_some(found)
    }
}
