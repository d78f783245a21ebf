//! A replica for the random workloads to receive: its volume, two snapshots of it, and what each holds.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use device::SimulatedDevice;
use pool::{Manifest, Pool};
use units::{Lba, SectorCount, VolumeId};

use crate::model::{Content, EPOCH, read, sealed, spec};
use crate::workload::{DEVICE, create_options};

/// No random operation makes a volume or snapshot of these ids.
pub(crate) const VOLUME: VolumeId = VolumeId([250; 16]);
const SECTORS: u64 = 40;

pub(crate) struct Arriving {
    pub(crate) manifest: Manifest,
    content: Content,
}

/// Where the snapshots come from, the older before the newer.
pub(crate) struct Sender {
    pub(crate) pool: Arc<Pool>,
    pub(crate) snapshots: Vec<Arriving>,
}

pub(crate) static SENDER: LazyLock<Sender> = LazyLock::new(|| {
    let pool = Pool::create(SimulatedDevice::new(DEVICE), create_options()).unwrap();
    let volume = pool.create_volume(spec(VOLUME.0[0], SECTORS)).unwrap();
    let mut snapshots: Vec<Arriving> = Vec::new();
    for (id, first) in [(251, 1_u64 << 50), (252, 1 << 51)] {
        // In the second, sectors of the first are overwritten and unmapped.
        volume.write(Lba(first >> 50), EPOCH, sealed(first..first + 20)).unwrap();
        volume.unmap(Lba(30), SectorCount(4)).unwrap();
        volume.write(Lba(28), EPOCH, sealed(first + 100..first + 104)).unwrap();
        let id = VolumeId([id; 16]);
        pool.create_snapshot(VOLUME, id, 1).unwrap();
        let since = snapshots.last().map(|older| older.manifest.snapshot);
        let manifest = pool.manifest(id, since).unwrap();
        let content = read(&pool.snapshot(id).unwrap(), 0, SECTORS).unwrap();
        snapshots.push(Arriving { manifest, content });
    }
    Sender { pool, snapshots }
});

/// What has arrived is there, and what is there is what was sent.
pub(crate) fn verify(pool: &Pool, arrived: &BTreeSet<VolumeId>) -> Result<(), String> {
    for Arriving { manifest, content } in &SENDER.snapshots {
        let id = manifest.snapshot;
        let Ok(snapshot) = pool.snapshot(id) else {
            if arrived.contains(&id) {
                return Err(format!("snapshot {id} had arrived and is gone"));
            }
            continue;
        };
        let found = read(&snapshot, 0, SECTORS)?;
        if found != *content {
            return Err(format!("snapshot {id} of the replica: found {found:?}, sent {content:?}"));
        }
    }
    Ok(())
}
