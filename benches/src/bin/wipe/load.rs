//! What keeps the machine busy: a whole site, a storage node and its keyholder, whose clients, two of each kind or as many as there
//! are cores, write and read over NBD and S3 as fast as they can; a thread on every core besides; and memory that is written over and
//! over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use benches::Figure;
use harness::process::wait_for;
use harness::s3::S3Client;
use harness::site::{DISK, Site, SiteSpec};
use nbd_server::client::{Client, Endpoint};

/// Power losses whose stages are read from the node itself.
const LOSSES: usize = 20;

/// Memory that is kept moving.
const PRESSURE_BYTES: usize = 512 << 20;

pub(crate) struct Load {
    site: Site,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    done: [Arc<AtomicU64>; 2],
}

impl Load {
    pub(crate) fn start() -> Self {
        let mut site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
        site.expect_log("what clients had in memory");
        let user = site.create_user("load");
        site.create_bucket("load");
        let stop = Arc::new(AtomicBool::new(false));
        let done = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let mut threads = Vec::new();
        let mut start = |work: Box<dyn FnOnce(&AtomicBool) + Send>| {
            let stop = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || work(&stop)));
        };
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        for number in 0..cores as u64 {
            let (endpoint, blocks) = (Endpoint::unix(site.nbd_socket()), Arc::clone(&done[0]));
            start(Box::new(move |stop| write_blocks(number, &endpoint, stop, &blocks)));
            let address: std::net::SocketAddr =
                site.s3_endpoint().trim_start_matches("http://").parse().expect("an address");
            let (key, secret) = (user.access_key.clone(), user.secret_key.clone());
            let objects = Arc::clone(&done[1]);
            start(Box::new(move |stop| {
                write_objects(number, || S3Client::new(address, "load", &key, &secret), stop, &objects)
            }));
            start(Box::new(burn));
        }
        start(Box::new(move_memory));
        Self { site, stop, threads, done }
    }

    /// The stages of real power losses, as the node tells them.
    pub(crate) fn stages(&self) -> Result<Vec<Figure>> {
        let (mut threads, mut memory) = (Vec::new(), Vec::new());
        for _ in 0..LOSSES {
            let before = self.done.each_ref().map(|count| count.load(Ordering::SeqCst));
            let waiting = Instant::now();
            while self
                .done
                .iter()
                .zip(before)
                .any(|(count, before)| count.load(Ordering::SeqCst) < before + 1)
            {
                ensure!(
                    waiting.elapsed() < Duration::from_secs(120),
                    "the clients got nowhere in two minutes"
                );
                std::thread::sleep(Duration::from_millis(5));
            }
            self.site.lose_power();
            let wipe = wait_for("the third stage", Duration::from_secs(20), || {
                let wipe = self.site.status().last_wipe.ok_or("no wipe yet")?;
                wipe.memory_ns.map(|memory| (wipe.threads_ns, memory)).ok_or_else(|| "not reached".to_owned())
            });
            threads.extend(wipe.0.map(us));
            memory.push(us(wipe.1));
            self.site.push_until_serving();
        }
        for times in [&mut threads, &mut memory] {
            times.sort_by(f64::total_cmp);
        }
        let at = |sorted: &[f64], share| crate::rounds::percentile(sorted, share);
        Ok(vec![
            Figure::new("a node's second stage, max", "SIGPWR", at(&threads, 1.0), "us").at_most(10_000.0),
            Figure::new("a node's third stage, p50", "SIGPWR", at(&memory, 0.5) / 1e3, "ms"),
            Figure::new("a node's third stage, max", "SIGPWR", at(&memory, 1.0) / 1e3, "ms").at_most(1_000.0),
        ])
    }

    pub(crate) fn stop(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let [blocks, objects] = self.done.map(|count| count.load(Ordering::SeqCst));
        println!("the load wrote and read {blocks} runs of blocks and {objects} objects");
    }
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a bench")]
fn us(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// Writes and reads 64 KiB at a time; connects again after a seal.
fn write_blocks(number: u64, endpoint: &Endpoint, stop: &AtomicBool, done: &AtomicU64) {
    let mut block = vec![0x5a; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut client) = Client::connect(endpoint, DISK) else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let mut at = number << 28;
        while !stop.load(Ordering::Relaxed) {
            at = (number << 28) + (at + (64 << 10)) % (128 << 20);
            if client.write(at, &block, false).and_then(|()| client.read(at, &mut block)).is_err() {
                break;
            }
            done.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn write_objects(number: u64, connect: impl Fn() -> S3Client, stop: &AtomicBool, done: &AtomicU64) {
    let mut client = connect();
    let mut round = 0u64;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let key = format!("object-{number}-{}", round % 100);
        let stored = client.put(&key, vec![0xa5; 256 << 10]).and_then(|_| client.get(&key));
        if stored.is_ok() {
            done.fetch_add(1, Ordering::SeqCst);
        } else {
            client = connect();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn burn(stop: &AtomicBool) {
    let mut number = 1u64;
    while !stop.load(Ordering::Relaxed) {
        number = std::hint::black_box(number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7));
    }
}

fn move_memory(stop: &AtomicBool) {
    let mut memory = vec![0u8; PRESSURE_BYTES];
    let mut value = 0u8;
    while !stop.load(Ordering::Relaxed) {
        value = value.wrapping_add(1);
        for page in memory.chunks_mut(4096) {
            page[0] = value;
        }
        std::hint::black_box(&mut memory);
    }
}
