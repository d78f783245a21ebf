//! How long a sparse pool of 1 TiB takes to make and to open. Printed, not asserted: machines differ.

use std::sync::Arc;
use std::time::Instant;

use device::{FileDevice, OpenOptions};
use pool::{CreateOptions, Pool};
use units::{ByteLen, Lba};

use crate::model::{EPOCH, sealed, spec};

#[test]
fn a_sparse_tebibyte_opens_in_a_moment() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let start = Instant::now();
    let options = OpenOptions { create_len: Some(ByteLen(1 << 40)), ..OpenOptions::default() };
    let device = FileDevice::open(&path, options).unwrap();
    let pool = Pool::create(Arc::new(device), CreateOptions::default()).unwrap();
    println!("created in {:?}", start.elapsed());
    let volume = pool.create_volume(spec(1, (64 << 40) / 4096)).unwrap();
    let start = Instant::now();
    for nth in 0..2000 {
        volume.write(Lba(nth * 100_000), EPOCH, sealed([nth + 1])).unwrap();
    }
    volume.flush().unwrap();
    println!("2000 first writes, each in an extent of its own, and a flush in {:?}", start.elapsed());
    drop((volume, pool));
    let start = Instant::now();
    let device = FileDevice::open(&path, OpenOptions::default()).unwrap();
    let info = device::Device::info(&device);
    let pool = Pool::open(Arc::new(device)).unwrap();
    println!("opened in {:?} (O_DIRECT: {})", start.elapsed(), info.direct);
    assert_eq!(pool.info().allocated, ByteLen(2000 << 20));
}
