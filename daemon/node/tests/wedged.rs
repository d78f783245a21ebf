//! The wipe needs nobody's help: it happens with the executor stopped, every disk thread stuck, memory exhausted, and all
//! cores busy.
//!
//! Each case is a process of its own, this very program again: it takes a key, wedges itself, and then the event comes. The
//! parent learns only from the child's answers. What is asserted is that the wipe happened, and that the wedge held before
//! and after it; how long it took is for `make bench-wipe`.
//!
//! The harness is this file's own: signals have to be blocked before there is a second thread, and cargo's starts one.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use config::{GpioConfig, LineBias, LineLevel, Reaction, SourcesConfig};
use device::{Device, DeviceError, DeviceInfo, Metadata, Sealed, SealedSlice, SimulatedDevice};
use keyring::simulated::{Keyholder, keyring};
use keyring::{KeyGone, KeyHandle, Keyring};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use node::rehearsal::Rehearsal;
use pool::{CreateOptions, Pool, VolumeKind, VolumeSpec};
use sealing::{Durability, Volume};
use units::{BootInstant, ByteLen, ByteOffset, DomainId, SectorCount, VolumeEpoch, VolumeId};

const CHILD_VARIABLE: &str = "NIGHTLATCH_WEDGED_CHILD";
/// Marks the child's answers among what the test harness prints.
const ANSWER: &str = "wedged-child ";

/// Far more than a wipe takes: without one the child gives up here.
const PATIENCE: Duration = Duration::from_secs(20);

type StillWedged = Box<dyn Fn() -> bool>;

// ---- the child ----

fn child(case: &str) {
    let (wedge, event) = case.split_once(' ').unwrap();
    node::block_signals().unwrap();
    let keyring = keyring();
    let dir = tempfile::tempdir().unwrap();
    let chip = dir.path().join("line.sock");
    let twin = UnixListener::bind(&chip).unwrap();
    let rehearsal = Rehearsal::start(&keyring, &with_a_line(chip)).unwrap();
    let (mut line, _) = twin.accept().unwrap();
    let keyholder = Keyholder::new(DomainId([1; 16]), VolumeEpoch(1));
    let key = keyholder.push(&keyring).unwrap().handle;
    assert_eq!(keyring.check(key), Ok(()));
    let still_wedged = match wedge {
        "executor" => stop_the_executor(),
        "disk" => fill_the_disk_queue(&keyring, &keyholder, key),
        "memory" => exhaust_memory(),
        "processors" => burn_every_core(),
        other => panic!("{other}"),
    };
    assert!(still_wedged(), "wedged before the event");
    match event {
        "signal" => kill(nix::unistd::getpid(), Signal::SIGPWR).unwrap(),
        "stop" => kill(nix::unistd::getpid(), Signal::SIGTERM).unwrap(),
        "order" => rehearsal.wipe(),
        "line" => line.write_all(&sources::event_record(true, 1, 0)).unwrap(),
        "lease" => rehearsal.set_deadline(BootInstant(keyring.now().0 + 1_000_000)).unwrap(),
        other => panic!("{other}"),
    }
    wait_for("the wipe", || keyring.status().generation > 0);
    assert_eq!(keyring.check(key), Err(KeyGone::Wiped));
    assert!(still_wedged(), "wedged after the wipe");
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{ANSWER}wiped").unwrap();
    out.flush().unwrap();
    // Nothing of the wedge is taken apart.
    std::process::exit(0);
}

/// The twin of a power-fail line.
fn with_a_line(chip: PathBuf) -> SourcesConfig {
    let line = GpioConfig {
        name: "line".into(),
        chip,
        line: 4,
        active: LineLevel::Low,
        bias: LineBias::AsIs,
        recorded: true,
        on_active: Reaction::wipe(),
        on_lost: Reaction::report(),
    };
    SourcesConfig { gpio: vec![line], ..SourcesConfig::default() }
}

/// A runtime whose every worker waits for what never comes.
fn stop_the_executor() -> StillWedged {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let stuck = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new((Mutex::new(()), Condvar::new()));
    for _ in 0..2 {
        let (stuck, gate) = (Arc::clone(&stuck), Arc::clone(&gate));
        runtime.spawn(async move {
            stuck.fetch_add(1, Ordering::SeqCst);
            let closed = gate.0.lock().unwrap();
            let _never = gate.1.wait_while(closed, |()| true);
        });
    }
    wait_for("both workers are stuck", || stuck.load(Ordering::SeqCst) == 2);
    // A task that would run, if any worker did.
    let ran = Arc::new(AtomicBool::new(false));
    let runs = Arc::clone(&ran);
    runtime.spawn(async move { runs.store(true, Ordering::SeqCst) });
    std::mem::forget(runtime);
    Box::new(move || !ran.load(Ordering::SeqCst))
}

/// Every write waits in the device for ever, with sealed data in hand and locks held.
fn fill_the_disk_queue(keyring: &Arc<Keyring>, keyholder: &Keyholder, key: KeyHandle) -> StillWedged {
    const WRITERS: u64 = 64;
    let device = Arc::new(Stuck {
        inner: SimulatedDevice::new(ByteLen(1 << 30)),
        is_stuck: AtomicBool::new(false),
        waiting: AtomicUsize::new(0),
    });
    let pool = Pool::create(Arc::clone(&device) as Arc<dyn Device>, CreateOptions::default()).unwrap();
    let spec = VolumeSpec {
        id: VolumeId([2; 16]),
        sectors: SectorCount(64 * 256),
        domain: DomainId([1; 16]),
        epoch: VolumeEpoch(1),
        check: keyholder.check(),
        kind: VolumeKind::Block,
    };
    let volume = Volume::open(pool.create_volume(spec).unwrap(), Arc::clone(keyring), key);
    device.is_stuck.store(true, Ordering::SeqCst);
    for writer in 0..WRITERS {
        let volume = volume.clone();
        thread::spawn(move || volume.write(ByteOffset(writer << 20), &[7; 1 << 16], Durability::Durable));
    }
    wait_for("a write waits in the device", || device.waiting.load(Ordering::SeqCst) > 0);
    Box::new(move || device.waiting.load(Ordering::SeqCst) > 0)
}

/// No page can be had any more.
fn exhaust_memory() -> StillWedged {
    let mapped = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = mapped.split(' ').next().unwrap().parse().unwrap();
    setrlimit(Resource::RLIMIT_AS, pages * 4096, pages * 4096).unwrap();
    let is_exhausted = || Vec::<u8>::new().try_reserve_exact(1 << 20).is_err();
    // What the allocator already has in hand goes too, but for the crumbs that this test itself needs.
    let mut taken: Vec<Vec<u8>> = Vec::with_capacity(256);
    for size in [1 << 20, 1 << 16, 1 << 14] {
        while taken.len() < taken.capacity() {
            let mut block = Vec::new();
            if block.try_reserve_exact(size).is_err() {
                break;
            }
            taken.push(block);
        }
    }
    std::mem::forget(taken);
    Box::new(is_exhausted)
}

/// Eight threads a core at normal priority that never give way.
fn burn_every_core() -> StillWedged {
    let threads = 8 * thread::available_parallelism().unwrap().get();
    let turns = Arc::new(AtomicUsize::new(0));
    for _ in 0..threads {
        let turns = Arc::clone(&turns);
        thread::spawn(move || {
            loop {
                turns.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    Box::new(move || {
        let before = turns.load(Ordering::Relaxed);
        wait_for("the cores are busy", || turns.load(Ordering::Relaxed) > before);
        true
    })
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let waiting = Instant::now();
    while !condition() {
        assert!(waiting.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        thread::yield_now();
    }
}

/// A device whose writes and flushes never come back, once it is stuck.
#[derive(Debug)]
struct Stuck {
    inner: Arc<SimulatedDevice>,
    is_stuck: AtomicBool,
    waiting: AtomicUsize,
}

impl Stuck {
    fn pass(&self) {
        if self.is_stuck.load(Ordering::SeqCst) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            loop {
                thread::park();
            }
        }
    }
}

impl Device for Stuck {
    fn len(&self) -> ByteLen {
        self.inner.len()
    }

    fn refresh_len(&self) -> Result<ByteLen, DeviceError> {
        self.inner.refresh_len()
    }

    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }

    fn read(&self, at: ByteOffset, count: SectorCount) -> Result<Sealed, DeviceError> {
        self.inner.read(at, count)
    }

    fn read_metadata(&self, at: ByteOffset, count: SectorCount) -> Result<Metadata, DeviceError> {
        self.inner.read_metadata(at, count)
    }

    fn write(&self, at: ByteOffset, data: SealedSlice<'_>) -> Result<(), DeviceError> {
        self.pass();
        self.inner.write(at, data)
    }

    fn write_metadata(&self, at: ByteOffset, data: &Metadata) -> Result<(), DeviceError> {
        self.pass();
        self.inner.write_metadata(at, data)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.pass();
        self.inner.flush()
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.pass();
        self.inner.discard(at, len)
    }

    fn reserve(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.inner.reserve(at, len)
    }
}

// ---- the parent ----

/// Runs one case; returns whether the child said that it wiped, and how it ended.
fn run(wedge: &str, event: &str) -> (bool, ExitStatus) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(CHILD_VARIABLE, format!("{wedge} {event}"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let answers = BufReader::new(child.stdout.take().unwrap());
    let wiped = answers.lines().map_while(Result::ok).any(|line| line == format!("{ANSWER}wiped"));
    (wiped, child.wait().unwrap())
}

fn assert_wipes(wedge: &str) {
    for event in ["signal", "lease", "stop", "order", "line"] {
        let (wiped, ended) = run(wedge, event);
        assert!(wiped && ended.success(), "{wedge}, {event}: wiped {wiped}, {ended}");
    }
}

const TESTS: [(&str, &str); 4] = [
    ("a_wipe_happens_with_the_executor_stopped", "executor"),
    ("a_wipe_happens_with_every_disk_thread_stuck", "disk"),
    ("a_wipe_happens_with_memory_exhausted", "memory"),
    ("a_wipe_happens_with_every_core_busy_at_normal_priority", "processors"),
];

/// Understands what cargo and nextest ask of a test program: `--list`, `--ignored`, `--exact`, a name.
fn main() {
    if let Ok(case) = std::env::var(CHILD_VARIABLE) {
        return child(&case);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let filter = arguments.iter().find(|argument| !argument.starts_with('-') && *argument != "terse");
    let wanted = |name: &str| match filter {
        _ if has("--ignored") => false,
        Some(filter) if has("--exact") => name == filter,
        Some(filter) => name.contains(filter.as_str()),
        None => true,
    };
    for (name, wedge) in TESTS.into_iter().filter(|(name, _)| wanted(name)) {
        if has("--list") {
            println!("{name}: test");
        } else {
            assert_wipes(wedge);
            println!("{name}: ok");
        }
    }
}
