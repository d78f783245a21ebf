//! Reads all of a pool's metadata and says what it finds. Writes nothing.

use device::Device;
use units::PoolId;

use crate::extent::ExtentKind;
use crate::load::{Loaded, Problem};
use crate::superblock::superblock_at;
use crate::{Damage, Pool, PoolError, RepairedSuperblock};

/// What checking a pool found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    pub pool: PoolId,
    pub volumes: u64,
    pub snapshots: u64,
    /// Those of them that are locked.
    pub locked_snapshots: u64,
    /// Extents that belong to a volume.
    pub mapped_extents: u64,
    /// Sectors that hold something.
    pub present_sectors: u64,
    /// Table entries of deleted volumes: free, and overwritten when their extent is used again.
    pub stale_entries: u64,
    /// Extents past the end of their volume, from a shrinking that did not finish. Opening the pool frees them.
    pub unfinished_unmaps: u64,
    /// Extents that hold the hole table: the pool's own.
    pub hole_table_extents: u64,
    /// A copy of the superblock that is damaged. Opening the pool writes it again.
    pub damaged_superblock: Option<RepairedSuperblock>,
    /// Everything that is wrong, up to a limit, and how many more there are.
    pub problems: Vec<Problem>,
    pub problems_unlisted: u64,
}

impl CheckReport {
    /// Whether the pool can be opened and nothing in its metadata is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    fn of(loaded: &Loaded) -> Self {
        let sectors = loaded.superblocks.current.layout.extent_sectors();
        let data = loaded.extents.iter().filter(|extent| extent.kind == ExtentKind::Data);
        let (past_end, mapped): (Vec<_>, Vec<_>) =
            data.partition(|extent| loaded.is_past_end(&extent.mapping));
        let volumes = loaded.volume_count();
        let mut problems = loaded.problems.clone();
        if loaded.is_altered() {
            problems.push(Problem { damage: Damage::Root, at: superblock_at(0) });
        }
        Self {
            pool: loaded.superblocks.current.pool,
            volumes,
            snapshots: loaded.records().count() as u64 - volumes,
            locked_snapshots: loaded.records().filter(|(_, _, record)| record.lock_s > 0).count() as u64,
            mapped_extents: mapped.len() as u64,
            present_sectors: mapped
                .iter()
                .map(|extent| u64::from(extent.mapping.sectors.count(sectors)))
                .sum(),
            stale_entries: loaded.stale_entries,
            unfinished_unmaps: past_end.len() as u64,
            hole_table_extents: loaded.hole_chunks.len() as u64,
            damaged_superblock: loaded.superblocks.damaged(),
            problems,
            problems_unlisted: loaded.problems_unlisted,
        }
    }
}

impl Pool {
    /// Checks the pool on a device that is not open otherwise. An error is something without which nothing can be
    /// read: no superblock, a newer format, a device that has become shorter.
    pub fn check_device(device: &dyn Device) -> Result<CheckReport, PoolError> {
        device.refresh_len()?;
        Loaded::read(device).map(|loaded| CheckReport::of(&loaded))
    }

    /// Checks this pool while it serves: what is durable now, also against what is in memory. Metadata writes wait
    /// meanwhile.
    pub fn check(&self) -> Result<CheckReport, PoolError> {
        let loaded = self.core.load_again()?;
        let mut report = CheckReport::of(&loaded);
        // Whatever the table names is held until the unmapping is durable: a free one would be given out twice.
        let data = loaded.extents.iter().filter(|extent| extent.kind == ExtentKind::Data);
        for index in data.map(|extent| &extent.index).chain(&loaded.hole_chunks) {
            if !self.core.allocator.is_used(*index) {
                report.problems.push(Problem {
                    damage: Damage::ExtentFree,
                    at: loaded.superblocks.current.layout.sector_at(*index, 0),
                });
            }
        }
        Ok(report)
    }
}
