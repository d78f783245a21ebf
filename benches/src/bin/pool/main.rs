//! The pool beside the device below it: what records, the log and the map cost.
//!
//! Every subject has a file of its own on the same disk, written over once before anything is measured, and does the same:
//! the device by itself, the pool (ciphertext and records), and a volume of another pool under its key (encrypted, tagged,
//! verified). A queue depth is so many threads with one request each. `NIGHTLATCH_BENCH_DIR` names another folder.

mod stores;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use benches::{Figure, ROUNDS, folder, median, publish, rate};
use stores::{Content, Raw, Site, Store};
use units::{ByteLen, VolumeId};

/// Sectors of each subject: 1 GiB.
const SECTORS: u64 = 1 << 18;

/// Memory for records that holds all of them, and memory that holds an eighth.
const CACHE_ALL: ByteLen = ByteLen(64 << 20);
const CACHE_EIGHTH: ByteLen = ByteLen(SECTORS / 8 * 32);

/// How long one subject's turn at one case lasts.
const TURN: Duration = Duration::from_millis(1000);

/// Writes between two flushes of a thread that does not flush each.
const CADENCE: u64 = 64;

const DEPTH: usize = 32;

/// Snapshots taken, and writes after each, for the cost of both.
const SNAPSHOTS: u8 = 100;

/// What a thread does in a case, with a number that never comes again.
struct Case {
    name: &'static str,
    threads: usize,
    step: fn(&dyn Store, &Contents, u64) -> Result<()>,
    /// Bytes of a step, where throughput is the figure; otherwise steps are.
    bytes: Option<u64>,
    /// The share of the device's figure that the pool is to reach.
    target: f64,
}

struct Contents {
    sector: Content,
    mebibyte: Content,
}

/// Scatters numbers over the sectors.
fn scattered(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^= mixed >> 31;
    mixed.wrapping_mul(0x94d0_49bb_1331_11eb) >> 32
}

fn read_one(store: &dyn Store, _: &Contents, number: u64) -> Result<()> {
    store.read(scattered(number) % SECTORS, 1)
}

fn write_one(store: &dyn Store, contents: &Contents, number: u64) -> Result<()> {
    store.write(scattered(number) % SECTORS, &contents.sector)?;
    if number % CADENCE == CADENCE - 1 { store.flush() } else { Ok(()) }
}

fn write_and_flush(store: &dyn Store, contents: &Contents, number: u64) -> Result<()> {
    store.write(scattered(number) % SECTORS, &contents.sector)?;
    store.flush()
}

fn read_mebibyte(store: &dyn Store, _: &Contents, number: u64) -> Result<()> {
    store.read(number * 256 % SECTORS, 256)
}

fn write_mebibyte(store: &dyn Store, contents: &Contents, number: u64) -> Result<()> {
    store.write(number * 256 % SECTORS, &contents.mebibyte)?;
    if number % CADENCE == CADENCE - 1 { store.flush() } else { Ok(()) }
}

const CASES: &[Case] = &[
    Case { name: "read 4 KiB, QD1", threads: 1, step: read_one, bytes: None, target: 0.95 },
    Case { name: "read 4 KiB, QD32", threads: DEPTH, step: read_one, bytes: None, target: 0.95 },
    Case { name: "write 4 KiB, QD1", threads: 1, step: write_one, bytes: None, target: 0.5 },
    Case { name: "write 4 KiB, QD32", threads: DEPTH, step: write_one, bytes: None, target: 0.5 },
    Case { name: "write and flush, QD1", threads: 1, step: write_and_flush, bytes: None, target: 1.0 / 1.2 },
    Case {
        name: "write and flush, QD32",
        threads: DEPTH,
        step: write_and_flush,
        bytes: None,
        target: 1.0 / 1.2,
    },
    Case { name: "read 1 MiB", threads: 1, step: read_mebibyte, bytes: Some(1 << 20), target: 0.95 },
    Case { name: "overwrite 1 MiB", threads: 1, step: write_mebibyte, bytes: Some(1 << 20), target: 0.5 },
];

/// Steps per second of all threads together.
fn run(case: &Case, store: &dyn Store, contents: &Contents, next: &AtomicU64) -> Result<f64> {
    let begin = Instant::now();
    let work =
        || rate(TURN, || (case.step)(store, contents, next.fetch_add(1, Ordering::Relaxed)).map(|()| 1));
    let rates: Vec<Result<f64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..case.threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    // What is left over is not the next subject's to pay for.
    store.flush()?;
    let rates = rates.into_iter().sum::<Result<f64>>()?;
    anyhow::ensure!(begin.elapsed() < TURN * 20, "{} on {} does not come to an end", case.name, store.name());
    Ok(rates)
}

/// The case on every subject in turns: the figures, and the shares of the first.
fn compare(case: &Case, name: &str, stores: &[&dyn Store], contents: &Contents) -> Result<Vec<Figure>> {
    let next = AtomicU64::new(0);
    let mut rates = vec![Vec::new(); stores.len()];
    for _ in 0..ROUNDS {
        for (store, rates) in stores.iter().zip(&mut rates) {
            rates.push(run(case, *store, contents, &next)?);
        }
    }
    let rates: Vec<f64> = rates.into_iter().map(median).collect();
    let mut figures = Vec::new();
    for (store, rate) in stores.iter().zip(&rates) {
        figures.push(match case.bytes {
            #[expect(clippy::cast_precision_loss, reason = "a mebibyte")]
            Some(bytes) => Figure::new(name, store.name(), rate * bytes as f64 / f64::from(1 << 20), "MiB/s"),
            None => Figure::new(name, store.name(), *rate, "1/s"),
        });
    }
    for (store, rate) in stores.iter().zip(&rates).skip(1) {
        let share = Figure::new(name, store.name(), rate / rates[0], "of the device");
        figures.push(if store.name() == "pool" { share.at_least(case.target) } else { share });
    }
    Ok(figures)
}

fn fill(store: &dyn Store, contents: &Contents) -> Result<()> {
    for first in (0..SECTORS).step_by(256) {
        store.write(first, &contents.mebibyte)?;
    }
    store.flush()
}

/// Milliseconds, ascending.
fn timed(count: u32, mut work: impl FnMut(u32) -> Result<()>) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for nth in 0..count {
        let begin = Instant::now();
        work(nth)?;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// What a snapshot takes beside a write and flush of the device, and the first write after it beside another.
fn snapshots(raw: &Raw, site: &Site, contents: &Contents) -> Result<Vec<Figure>> {
    let store = site.sealed_store();
    let (mut device, mut snapshot, mut first, mut second) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for number in 0..SNAPSHOTS {
        let sector = scattered(u64::from(number)) % SECTORS;
        device.extend(timed(1, |_| write_and_flush(raw, contents, u64::from(number)))?);
        let id = VolumeId([number + 10; 16]);
        snapshot.extend(timed(1, |_| {
            site.pool.create_snapshot(site.volume.id(), id, 0).map(drop).map_err(Into::into)
        })?);
        for times in [&mut first, &mut second] {
            times.extend(timed(1, |_| {
                store.write(sector, &contents.sector)?;
                store.flush()
            })?);
        }
    }
    for number in 0..SNAPSHOTS {
        site.pool.delete_snapshot(VolumeId([number + 10; 16]))?;
    }
    let p99 = |times: &[f64]| {
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        times[times.len() * 99 / 100]
    };
    let ratio = p99(&first) / p99(&second);
    let (device, snapshot) = (median(device), median(snapshot));
    Ok(vec![
        Figure::new("write and flush", "device", device, "ms"),
        Figure::new("snapshot", "pool", snapshot, "ms").at_most(device + 1.0),
        Figure::new("first write after it, flushed, p99", "pool", p99(&first), "ms"),
        Figure::new("another write, flushed, p99", "pool", p99(&second), "ms"),
        Figure::new("first write after it, p99", "pool", ratio, "times another").at_most(3.0),
    ])
}

fn scratch() -> Result<tempfile::TempDir> {
    let at = std::env::var_os("NIGHTLATCH_BENCH_DIR").map_or_else(folder, PathBuf::from);
    std::fs::create_dir_all(&at)?;
    Ok(tempfile::tempdir_in(at)?)
}

fn main() -> Result<()> {
    let scratch = scratch()?;
    let at = |name: &str| -> PathBuf { Path::join(scratch.path(), name) };
    let raw = Raw::create(&at("device"), SECTORS * 4096)?;
    let contents = Contents { sector: Content::new(&raw, 1)?, mebibyte: Content::new(&raw, 256)? };
    let [all, clear, eighth] = [("pool", CACHE_ALL), ("volume", CACHE_ALL), ("eighth", CACHE_EIGHTH)]
        .map(|(name, cache)| Site::create(&at(name), SECTORS, cache));
    let (all, clear, eighth) = (all?, clear?, eighth?);
    let (sealed, clear, eighth) = (all.sealed_store(), clear.clear_store()?, eighth.sealed_store());
    let stores: [&dyn Store; 3] = [&raw, &sealed, &clear];
    for store in stores.into_iter().chain([&eighth as &dyn Store]) {
        fill(store, &contents)?;
    }
    let mut figures = Vec::new();
    for case in CASES {
        eprintln!("{} ...", case.name);
        figures.extend(compare(case, case.name, &stores, &contents)?);
    }
    for case in CASES.iter().take(2) {
        let name = format!("{}, 8 x the cache", case.name);
        // At most one more read each.
        let case = Case { target: 0.475, ..*case };
        figures.extend(compare(&case, &name, &[&raw, &eighth], &contents)?);
    }
    figures.extend(snapshots(&raw, &all, &contents)?);
    publish("pool", &figures)
}
