//! What an open pool keeps in memory for every extent that is mapped.

use std::sync::Arc;

use device::{Sealed, SectorBuf, SectorRecord, SimulatedDevice};
use pool::{OpenOptions, Pool};
use units::{ByteLen, Lba, SectorCount};

use crate::model::{EPOCH, spec};
use crate::workload::{EXTENT, create_options};

const EXTENTS: u64 = 1 << 14;
/// Pools that are opened beside each other before it is measured, and at most: they take what the heap has left from making the
/// device, until as many as this one after the other make the process larger.
const GROWING: usize = 4;
const OPEN_MAX: usize = 200;
const MEASURED: usize = 8;
/// Bytes for each extent, its part of the digests not among them.
const BYTES_MAX: u64 = 140;

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Sectors that the simulated device keeps at no cost.
fn zeros(count: u64) -> Sealed {
    let checksum = crc32c::crc32c(&[0; 4096]);
    let record = |sequence| SectorRecord { sequence, checksum, tag: [7; 16] };
    Sealed::from_cipher(SectorBuf::zeroed(SectorCount(count)), (1..=count).map(record).collect())
}

#[test]
fn a_mapped_extent_costs_no_more_memory_than_it_did() {
    let device = SimulatedDevice::new(ByteLen((EXTENTS + EXTENTS / 64 + 100) * EXTENT));
    let pool = Pool::create(device.clone(), create_options()).unwrap();
    let volume = pool.create_volume(spec(1, EXTENTS * 16)).unwrap();
    let sealed = Arc::new(zeros(1024));
    for first in (0..EXTENTS * 16).step_by(1024) {
        volume.write(Lba(first), EPOCH, Arc::clone(&sealed)).unwrap();
    }
    volume.flush().unwrap();
    drop((volume, pool));
    let open = || {
        let options = OpenOptions { record_cache: ByteLen(4096), ..OpenOptions::default() };
        Pool::open_with(device.clone(), options).unwrap()
    };
    let mut pools: Vec<Arc<Pool>> = Vec::new();
    let mut growing = 0;
    while growing < GROWING {
        assert!(pools.len() < OPEN_MAX, "the heap has room for more and more pools");
        let before = resident();
        pools.push(open());
        growing = if resident().saturating_sub(before) > EXTENTS * 40 { growing + 1 } else { 0 };
    }
    let before = resident();
    pools.extend((0..MEASURED).map(|_| open()));
    let bytes = (resident() - before) / (MEASURED as u64 * EXTENTS);
    println!(
        "after {} pools: {bytes} bytes for each of {EXTENTS} extents, all of whose sectors are present",
        pools.len()
    );
    assert!(pools.iter().all(|pool| pool.info().allocated == ByteLen(EXTENTS * EXTENT)));
    assert!(bytes <= BYTES_MAX, "{bytes} bytes for each extent");
}
