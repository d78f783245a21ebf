//! A volume with ceilings: no faster than they say, and nobody who waits for a turn keeps clear data past a wipe.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::thread;
use std::time::{Duration, Instant};

use device::SimulatedDevice;
use pool::{Ceilings, Limits, VolumeKind};
use sealing::simulated::SimulatedNode;
use sealing::{Durability, ErrorKind};
use units::{ByteLen, ByteOffset};

fn node(ceilings: Ceilings) -> SimulatedNode {
    let device = SimulatedDevice::new(ByteLen(64 << 20));
    let node = SimulatedNode::create(device, ByteLen(8 << 20), VolumeKind::Block);
    node.pool().set_limits(node.pool_volume().id(), Limits { ceilings, ..Limits::default() }).unwrap();
    node
}

#[test]
fn requests_of_many_clients_together_keep_to_the_ceiling() {
    let node = node(Ceilings { requests_per_s: Some(200), bytes_per_s: None });
    let began = Instant::now();
    thread::scope(|scope| {
        for client in 0..4 {
            let volume = node.volume();
            scope.spawn(move || {
                let mut out = [0; 512];
                (0..40).for_each(|nth| volume.read(ByteOffset((client * 40 + nth) * 512), &mut out).unwrap());
            });
        }
    });
    // 160 requests, of which a tenth of a second's worth, and one, need not wait.
    assert!(began.elapsed() >= Duration::from_millis(690), "{:?}", began.elapsed());
}

#[test]
fn bytes_keep_to_the_ceiling_and_holes_cost_none() {
    let node = node(Ceilings { requests_per_s: None, bytes_per_s: Some(ByteLen(4 << 20)) });
    let volume = node.volume();
    let began = Instant::now();
    (0..8).for_each(|nth| volume.write(ByteOffset(nth << 18), &[1; 1 << 18], Durability::Buffered).unwrap());
    // 2 MiB at 4 MiB a second, less what was saved up and the last, after which nobody waits.
    assert!(began.elapsed() >= Duration::from_millis(330), "{:?}", began.elapsed());
    volume.trim(ByteOffset(0), ByteLen(8 << 20), Durability::Buffered).unwrap();
    // Counted, what is a hole now would have the second of these wait for hours.
    let ceilings = Ceilings { requests_per_s: None, bytes_per_s: Some(ByteLen(1 << 10)) };
    node.pool().set_limits(node.pool_volume().id(), Limits { ceilings, ..Limits::default() }).unwrap();
    for _ in 0..2 {
        volume.trim(ByteOffset(0), ByteLen(8 << 20), Durability::Buffered).unwrap();
    }
}

#[test]
fn who_waits_for_a_turn_lets_go_when_the_key_goes() {
    let node = node(Ceilings { requests_per_s: None, bytes_per_s: Some(ByteLen(1 << 10)) });
    let volume = node.volume();
    volume.read(ByteOffset(0), &mut [0; 1 << 20]).unwrap();
    let waiting = thread::spawn(move || volume.read(ByteOffset(0), &mut [0; 512]).unwrap_err().kind());
    thread::sleep(Duration::from_millis(50));
    assert!(!waiting.is_finished());
    let _ = node.wipe();
    let began = Instant::now();
    assert_eq!(waiting.join().unwrap(), ErrorKind::KeyGone);
    assert!(began.elapsed() < Duration::from_secs(60), "its turn would have been in a quarter of an hour");
}
