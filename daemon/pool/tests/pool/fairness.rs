//! A volume with a flood of writes does not keep another's small write waiting for more than what was before it.
//!
//! Counted are batches of the log, and not time: once there were as many as a write and its flush may have to wait for, the next
//! is held until the write is through. One that needed more would hold itself. A batch that begins while the writer could run, and
//! only was given no processor, is none that the pool made it wait for.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use device::SimulatedDevice;
use pool::{CrashStep, CreateOptions, OpenOptions, Pool, StepHook};
use units::{ByteLen, Lba};

use crate::model::{EPOCH, sealed, spec};

/// A write may find the buffer full and wait for a round that has begun and one of its own, its flush for two more; each is a batch,
/// or two where it checkpoints.
const BATCHES_MAX: u64 = 8;
/// The buffer is half of it: 512 sectors.
const LOG: ByteLen = ByteLen(4 << 20);
const FLOODS: u64 = 3;
/// Sectors of each flood, and of each of its writes.
const REACH: u64 = 512;
const AT_ONCE: u64 = 32;
const SMALL_WRITES: u64 = 60;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Counted {
    /// Whether the small write is on its way, and how many batches there were since.
    waiting: bool,
    batches: u64,
    starved: bool,
}

struct Gate {
    /// What the kernel says of the thread that makes the small writes.
    writer: PathBuf,
    counted: Mutex<Counted>,
    changed: Condvar,
}

impl Gate {
    /// For small writes of the thread that calls.
    fn new() -> Self {
        let thread = std::fs::read_link("/proc/thread-self").unwrap();
        let writer = Path::new("/proc").join(thread).join("stat");
        Self { writer, counted: Mutex::default(), changed: Condvar::new() }
    }

    fn writer_sleeps(&self) -> bool {
        let stat = std::fs::read_to_string(&self.writer).unwrap();
        let (_, behind_name) = stat.rsplit_once(") ").unwrap();
        !behind_name.starts_with('R')
    }

    fn hook(self: &Arc<Self>) -> StepHook {
        let gate = Arc::clone(self);
        Arc::new(move |step| {
            let mut counted = gate.counted.lock().unwrap();
            if step != CrashStep::LogFlush || !counted.waiting || !gate.writer_sleeps() {
                return;
            }
            counted.batches += 1;
            if counted.batches > BATCHES_MAX {
                let is_waiting = |counted: &mut Counted| counted.waiting;
                let (mut counted, held) =
                    gate.changed.wait_timeout_while(counted, PATIENCE, is_waiting).unwrap();
                counted.starved |= held.timed_out();
            }
        })
    }

    fn begin(&self) {
        let mut counted = self.counted.lock().unwrap();
        (counted.waiting, counted.batches) = (true, 0);
    }

    fn end(&self) -> u64 {
        let mut counted = self.counted.lock().unwrap();
        counted.waiting = false;
        self.changed.notify_all();
        assert!(!counted.starved, "a small write waits for more than what was before it");
        counted.batches
    }
}

#[test]
fn a_small_flushed_write_waits_for_a_bounded_number_of_batches_whatever_another_volume_writes() {
    let gate = Arc::new(Gate::new());
    let device = SimulatedDevice::new(ByteLen(64 << 20));
    let create =
        CreateOptions { extent_len: ByteLen(64 << 10), log_len: Some(LOG), ..CreateOptions::default() };
    let open = OpenOptions { on_step: Some(gate.hook()), ..OpenOptions::default() };
    let pool = Pool::create_with(device, create, open).unwrap();
    let flooded = pool.create_volume(spec(1, FLOODS * REACH)).unwrap();
    let small = pool.create_volume(spec(2, 16)).unwrap();
    // From here on everything is overwritten, and waits in the buffer.
    for first in (0..FLOODS * REACH).step_by(64) {
        flooded.write(Lba(first), EPOCH, sealed(first..first + 64)).unwrap();
    }
    small.write(Lba(0), EPOCH, sealed(0..16)).unwrap();
    pool.flush().unwrap();

    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut most = 0;
    thread::scope(|scope| {
        for flood in 0..FLOODS {
            let (flooded, stop, written) = (&flooded, &stop, &written);
            scope.spawn(move || {
                let mut nth = 0;
                while !stop.load(Ordering::Relaxed) {
                    let first = flood * REACH + nth * AT_ONCE % REACH;
                    flooded.write(Lba(first), EPOCH, sealed(nth..nth + AT_ONCE)).unwrap();
                    written.fetch_add(AT_ONCE, Ordering::Relaxed);
                    nth += 1;
                }
            });
        }
        for nth in 0..SMALL_WRITES {
            // Behind a flood that is on its way.
            let before = written.load(Ordering::Relaxed);
            while written.load(Ordering::Relaxed) < before + REACH {
                thread::yield_now();
            }
            gate.begin();
            small.write(Lba(nth % 16), EPOCH, sealed([nth])).unwrap();
            small.flush().unwrap();
            most = most.max(gate.end());
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!(
        "{} sectors of the flood; at most {most} batches began while a small write was on its way",
        written.load(Ordering::Relaxed)
    );
    assert!(written.load(Ordering::Relaxed) > SMALL_WRITES * REACH);
}
