use pool::{PoolError, PoolVolume};
use sealing::Clear;
use units::{Lba, SectorCount, VolumeEpoch};

fn store(volume: &PoolVolume) -> Result<(), PoolError> {
    let clear = Clear::zeroed(SectorCount(1));
    volume.write(Lba(0), VolumeEpoch(1), clear)
}

fn main() {
    let _ = store;
}
