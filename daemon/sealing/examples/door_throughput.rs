//! What the door costs on one core, over a device in memory:
//! `cargo run --release -p sealing --features simulated --example door_throughput`.

use std::time::{Duration, Instant};

use device::SimulatedDevice;
use pool::VolumeKind;
use sealing::simulated::SimulatedNode;
use sealing::{Durability, VolumeError};
use units::{ByteLen, ByteOffset};

const RUN: Duration = Duration::from_millis(700);
const VOLUME_BYTES: u64 = 256 << 20;

/// Calls per second of `work`, which gets a growing number.
fn per_second(mut work: impl FnMut(u64) -> Result<(), VolumeError>) -> Result<f64, VolumeError> {
    work(0)?;
    let start = Instant::now();
    let mut calls = 0u32;
    while start.elapsed() < RUN {
        work(u64::from(calls))?;
        calls += 1;
    }
    Ok(f64::from(calls) / start.elapsed().as_secs_f64())
}

fn main() -> Result<(), VolumeError> {
    let device = SimulatedDevice::new(ByteLen(2 * VOLUME_BYTES));
    let mut node = SimulatedNode::create(device, ByteLen(VOLUME_BYTES), VolumeKind::Block);
    let volume = node.volume();
    println!("{:>9}  {:>12}  {:>12}   MiB/s (device in memory, one thread)", "request", "write", "read");
    for request_bytes in [512u64, 4096, 65_536, 1 << 20] {
        let data = vec![7; usize::try_from(request_bytes).unwrap_or(usize::MAX)];
        let mut out = data.clone();
        let at = |call: u64| ByteOffset(call * request_bytes % (VOLUME_BYTES / 8));
        let write = per_second(|call| volume.write(at(call), &data, Durability::Buffered))?;
        volume.flush()?;
        let read = per_second(|call| volume.read(at(call), &mut out))?;
        let mib = request_bytes as f64 / f64::from(1 << 20);
        println!("{request_bytes:>9}  {:>12.0}  {:>12.0}", write * mib, read * mib);
    }
    let checks = per_second(|_| {
        // A thousand at a time, to leave the clock of this measurement out of it.
        (0..1000).for_each(|_| assert!(volume.check_key().is_ok()));
        Ok(())
    })?;
    println!("key check: {:.0} ns", 1e9 / (checks * 1000.0));

    let mut wipes = Vec::new();
    for _ in 0..1000 {
        wipes.push(node.wipe().nanos);
        node.push();
    }
    wipes.sort_unstable();
    println!("wipe, first stage: p50 {} us, p99 {} us", wipes[500] / 1000, wipes[990] / 1000);
    let pushes = per_second(|_| {
        node.wipe();
        node.push();
        Ok(())
    })?;
    println!("one-time key, grant and admission: {:.1} ms", 1e3 / pushes);
    Ok(())
}
