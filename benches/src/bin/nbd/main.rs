//! `make bench-nbd`: our NBD head, encrypted, beside other servers in clear and under LUKS, in one interleaved run.
//!
//! Every server serves the same number of bytes, written once before, to the same client (fio's nbd engine) over the same
//! transport; round by round each has its turn in every cell. nbdkit's null plugin, which does nothing, shows what the client
//! can take on cores that it shares with the server: a target is a ratio or 95 % of that ceiling, whichever is lower, and
//! a ratio within 3 % is a tie. Before our server goes, one bit is flipped in its file: what it was measured at verifies what it reads.
//!
//! Environment: NIGHTLATCH_NBD_ROUNDS (3), NIGHTLATCH_NBD_SECONDS for each run (2), NIGHTLATCH_NBD_CELLS and
//! NIGHTLATCH_NBD_SECTIONS (words, one of which a case or section has to contain; all).

mod cells;
mod client;
mod cost;
mod integrity;
mod ours;
mod pki;
mod rivals;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use benches::{Figure, median, publish};

use cells::{CELLS, Cell};
use client::Run;
use rivals::{Section, Server, Subject};

/// As in the node: what is freed is zeroed.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

/// Ratios this close are ties.
const TIE: f64 = 0.97;
/// Share of the client's ceiling that counts as all of it.
const CEILING_SHARE: f64 = 0.95;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(ours::SERVE) {
        return ours::serve(&arguments.collect::<Vec<_>>());
    }
    let rounds: usize = setting("NIGHTLATCH_NBD_ROUNDS", 3)?;
    let seconds: f64 = setting("NIGHTLATCH_NBD_SECONDS", 2.0)?;
    let scratch = tempfile::tempdir()?;
    let pki = pki::Pki::make(scratch.path())?;
    let mut figures = Vec::new();
    for section in rivals::SECTIONS.iter().filter(|section| chosen("NIGHTLATCH_NBD_SECTIONS", section.name)) {
        figures.extend(measure(section, &pki, rounds, seconds)?);
    }
    publish("nbd", &figures)
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

/// All runs of one subject in one cell.
type Runs = BTreeMap<(usize, Subject), Vec<Run>>;

fn measure(section: &Section, pki: &pki::Pki, rounds: usize, seconds: f64) -> Result<Vec<Figure>> {
    let servers: Vec<Server> = section
        .subjects
        .iter()
        .map(|subject| Server::start(*subject, section, pki))
        .collect::<Result<_>>()?;
    for server in &servers {
        client::fill(server, pki).with_context(|| format!("filling {}", server.subject.name()))?;
    }
    let mut runs = Runs::new();
    for round in 0..rounds {
        for (index, cell) in CELLS.iter().enumerate() {
            if !chosen("NIGHTLATCH_NBD_CELLS", cell.name) {
                continue;
            }
            // Nobody always comes first.
            for turn in 0..servers.len() {
                let server = &servers[(turn + round) % servers.len()];
                let run = client::run(server, cell, pki, seconds).with_context(|| {
                    format!("{}, {} on {}", cell.name, server.subject.name(), section.name)
                })?;
                runs.entry((index, server.subject)).or_default().push(run);
            }
        }
    }
    let mut figures = Vec::new();
    for server in servers.iter().filter(|server| server.subject == Subject::Ours) {
        let refused = integrity::flip(server, pki)
            .with_context(|| format!("flipping a bit below ours on {}", section.name))?;
        let case = format!("{} reads refused for a flipped bit", section.name);
        figures.push(Figure::new(&case, server.subject.name(), refused, "EIO").at_least(1.0));
    }
    drop(servers);
    let cost = cost::Cost::measure()?;
    let case = format!("{} sealing 4 KiB of 64", section.name);
    figures.push(Figure::new(&case, Subject::Ours.name(), cost.of_bytes_us(64 << 10) / 16.0, "us"));
    for (index, cell) in CELLS.iter().enumerate() {
        figures.extend(judge(section, cell, &runs_of(&runs, index), &cost));
    }
    Ok(figures)
}

fn runs_of(runs: &Runs, cell: usize) -> BTreeMap<Subject, &[Run]> {
    runs.iter()
        .filter(|((index, _), _)| *index == cell)
        .map(|((_, subject), runs)| (*subject, &runs[..]))
        .collect()
}

/// The figures of one cell, those of ours with their targets.
fn judge(section: &Section, cell: &Cell, runs: &BTreeMap<Subject, &[Run]>, cost: &cost::Cost) -> Vec<Figure> {
    let middle = |subject: Subject, of: fn(&Run) -> f64| -> Option<f64> {
        runs.get(&subject).map(|runs| median(runs.iter().map(of).collect()))
    };
    let case = |what: &str| format!("{} {} {what}", section.name, cell.name);
    let mut figures = Vec::new();
    for &subject in runs.keys() {
        let name = subject.name();
        let Some(rate) = middle(subject, |run| run.rate) else { continue };
        let mut rate = Figure::new(&case(""), name, cell.shown(rate), cell.unit());
        let mut tail =
            Figure::new(&case("p99"), name, middle(subject, |run| run.p99_us).unwrap_or(0.0), "us");
        let p999 = middle(subject, |run| run.p999_us).unwrap_or(0.0);
        let spent = middle(subject, |run| run.cpu_us).unwrap_or(0.0);
        let mut spent = Figure::new(&case("server CPU/request"), name, spent, "us");
        if subject == Subject::Ours {
            let rate_of = |subject| middle(subject, |run| run.rate).map(|rate| cell.shown(rate));
            if let Some(target) = target(section, cell, &rate_of) {
                rate.met = Some(rate.value >= TIE * target);
                rate.target = Some(target);
            }
            if let Some(peer) = middle(section.plain_peer, |run| run.p99_us) {
                tail.met = Some(tail.value <= peer / TIE);
                tail.target = Some(peer);
            }
            if let Some(peer) = middle(section.plain_peer, |run| run.cpu_us) {
                let allowed = peer + cost.of_bytes_us(cell.block_bytes);
                spent.met = Some(spent.value <= allowed / TIE);
                spent.target = Some(allowed);
            }
        }
        figures.extend([rate, tail, Figure::new(&case("p99.9"), name, p999, "us"), spent]);
    }
    figures
}

/// What ours has to reach: the highest of the ratios that apply, or what the client can take.
fn target(section: &Section, cell: &Cell, rate: &dyn Fn(Subject) -> Option<f64>) -> Option<f64> {
    let ratios = section.ratios.iter().filter(|ratio| (ratio.applies)(cell));
    let wanted = ratios.filter_map(|ratio| Some(ratio.factor * rate(ratio.to)?)).reduce(f64::max)?;
    Some(rate(Subject::Null).map_or(wanted, |ceiling| wanted.min(CEILING_SHARE * ceiling)))
}
