//! `make bench-wipe`: how long after an event a node has forgotten, while the machine is busy.
//!
//! The wiper is the node's own (`node::rehearsal`): its thread, its sources, its second stage, with threads that use keys all
//! the time. Beside it a whole site of real programs serves NBD and S3 to clients on all cores, and memory is short. An
//! event's time is taken right before it is caused, CLOCK_BOOTTIME, and the end of the first stage right after the last
//! zero was flushed.
//!
//! Results, in `target/bench`: `wipe.json` (every figure, with its target and whether it was met), `wipe-histogram.json` (all rounds
//! of each source), `wipe.md` (a table) and `wipe.svg` (the picture, with what ATX leaves).
//!
//! A control thread at the wiper's priority wakes every 50 µs. Where it was late by more than that, the machine itself (a
//! hypervisor, an interrupt) took the processor away: such rounds are left out of the filtered figures, which carry the targets.
//! Unfiltered figures and the share left out stand beside them; and how late that thread woke at all, since nobody of that
//! priority hears of an event sooner.

mod active;
mod chart;
mod control;
mod load;
mod rounds;
mod table;

use anyhow::{Context, Result, ensure};
use benches::{Figure, folder, publish};

use rounds::{Source, Times};

/// Share of rounds that may be left out.
const DROPPED_SHARE_MAX: f64 = 0.05;

fn main() -> Result<()> {
    // Before any thread: signals are the wiper's to read.
    node::block_signals().context("signals could not be blocked")?;
    // As in a node: whatever breaks is named.
    faults::install(|| {})?;
    let rounds: usize = match std::env::var("NIGHTLATCH_WIPE_ROUNDS") {
        Ok(text) => text.parse().context("NIGHTLATCH_WIPE_ROUNDS is no number")?,
        Err(_) => 10_000,
    };
    let mut figures = active::measure()?;
    let load = load::Load::start();
    let measured = rounds::run(rounds)?;
    figures.extend(load.stages()?);
    load.stop();
    for (case, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
        let late = rounds::percentile(&measured.wakes, share);
        figures.push(Figure::new(&format!("control thread wakes late, {case}"), "the machine", late, "us"));
    }
    for (source, times) in &measured.sources {
        figures.extend(of_source(*source, times));
    }
    std::fs::create_dir_all(folder())?;
    let chart = folder().join("wipe.svg");
    std::fs::write(&chart, chart::draw(&measured.sources))
        .with_context(|| format!("writing {}", chart.display()))?;
    table::publish(&measured.sources)?;
    publish("wipe", &figures)?;
    for (source, times) in &measured.sources {
        ensure!(
            times.dropped_share() <= DROPPED_SHARE_MAX,
            "{}: {:.1}% of the rounds had to be left out, so that the rest says nothing: try a machine that stands still less",
            source.name(),
            100.0 * times.dropped_share(),
        );
    }
    Ok(())
}

fn of_source(source: Source, times: &Times) -> Vec<Figure> {
    let name = source.name();
    let clean = times.filtered();
    let all = times.all();
    let at = |sorted: &[f64], share: f64| rounds::percentile(sorted, share);
    let mut figures = Vec::new();
    for (case, share) in [("p50", 0.5), ("p99", 0.99)] {
        figures.push(Figure::new(&format!("event to keys gone, {case}"), name, at(&clean, share), "us"));
    }
    figures.push(
        Figure::new("event to keys gone, p99.9", name, at(&clean, 0.999), "us").at_most(rounds::P999_US_MAX),
    );
    figures.push(Figure::new("event to keys gone, max", name, at(&clean, 1.0), "us").at_most(rounds::US_MAX));
    for (case, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
        figures.push(Figure::new(&format!("unfiltered, {case}"), name, at(&all, share), "us"));
    }
    figures.push(
        Figure::new("rounds left out", name, 100.0 * times.dropped_share(), "%")
            .at_most(100.0 * DROPPED_SHARE_MAX),
    );
    let (threads, all_threads) = (times.filtered_threads(), times.all_threads());
    figures.push(Figure::new("second stage, p99.9", name, at(&threads, 0.999), "us"));
    figures.push(Figure::new("second stage, max", name, at(&threads, 1.0), "us").at_most(10_000.0));
    figures.push(Figure::new("second stage, unfiltered max", name, at(&all_threads, 1.0), "us"));
    #[expect(clippy::cast_precision_loss, reason = "ten thousand rounds")]
    figures.push(Figure::new("rounds", name, all.len() as f64, "1"));
    figures
}
