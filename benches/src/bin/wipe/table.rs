//! What people read of the rounds: a table, and how many took how long.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use benches::folder;
use serde::Serialize;

use crate::rounds::{P999_US_MAX, Source, Times, US_MAX, percentile};

/// Rounds that took less than so many microseconds, and no less than the bucket before.
#[derive(Debug, Serialize)]
struct Bucket {
    below_us: f64,
    rounds: usize,
    /// Of these, the rounds in which the machine did not stand still.
    filtered: usize,
}

#[derive(Debug, Serialize)]
struct Histogram {
    source: &'static str,
    /// From the event to keys gone.
    keys: Vec<Bucket>,
}

/// Writes both, and prints the table.
pub(crate) fn publish(measured: &[(Source, Times)]) -> Result<()> {
    let table = table(measured);
    print!("{table}");
    let write = |name: &str, text: &str| {
        let path = folder().join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write("wipe.md", &table)?;
    let histograms: Vec<_> = measured
        .iter()
        .map(|(source, times)| Histogram { source: source.name(), keys: buckets(times) })
        .collect();
    let mut text = serde_json::to_string_pretty(&histograms)?;
    text.push('\n');
    write("wipe-histogram.json", &text)
}

fn table(measured: &[(Source, Times)]) -> String {
    let mut table = String::from(
        "| event | p50 | p99 | p99.9 | max | left out | unfiltered p99.9 | unfiltered max | target |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (source, times) in measured {
        let (clean, all) = (times.filtered(), times.all());
        let us = |sorted: &[f64], share| format!("{:.1} µs", percentile(sorted, share));
        let is_met = percentile(&clean, 0.999) <= P999_US_MAX && percentile(&clean, 1.0) <= US_MAX;
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {:.2} % | {} | {} | {} |",
            source.name(),
            us(&clean, 0.5),
            us(&clean, 0.99),
            us(&clean, 0.999),
            us(&clean, 1.0),
            100.0 * times.dropped_share(),
            us(&all, 0.999),
            us(&all, 1.0),
            if is_met { "met" } else { "NOT met" },
        );
    }
    table
}

/// A quarter of a power of two each, from 1 µs to the longest.
fn buckets(times: &Times) -> Vec<Bucket> {
    let (all, clean) = (times.all(), times.filtered());
    let longest = percentile(&all, 1.0);
    let mut buckets = Vec::new();
    let (mut rounds_before, mut filtered_before) = (0, 0);
    let mut exponent = 0.0_f64;
    while rounds_before < all.len() && longest.is_finite() {
        let below_us = exponent.exp2();
        let rounds = all.partition_point(|us| *us < below_us);
        let filtered = clean.partition_point(|us| *us < below_us);
        if rounds > 0 {
            let (rounds, filtered) = (rounds - rounds_before, filtered - filtered_before);
            buckets.push(Bucket { below_us, rounds, filtered });
        }
        (rounds_before, filtered_before) = (rounds, filtered);
        exponent += 0.25;
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_is_in_one_bucket_and_the_longest_in_the_last() {
        let times = Times::of(&[(0.5, false), (3.0, false), (3.1, true), (900.0, true)]);
        let buckets = buckets(&times);
        assert_eq!(buckets.iter().map(|bucket| bucket.rounds).sum::<usize>(), 4);
        assert_eq!(buckets.iter().map(|bucket| bucket.filtered).sum::<usize>(), 2);
        let last = buckets.last().expect("some");
        assert!((900.0..1100.0).contains(&last.below_us) && last.rounds == 1, "{last:?}");
    }

    #[test]
    fn a_table_says_which_source_misses_its_target_and_what_was_left_out() {
        let (fast, slow) = (Times::of(&[(10.0, false)]), Times::of(&[(150.0, false), (9.0, true)]));
        let table = table(&[(Source::Signal, fast), (Source::Gpio, slow)]);
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert!(lines[0].starts_with("| SIGPWR | 10.0 µs") && lines[0].ends_with("| met |"), "{table}");
        assert!(lines[1].contains("| 50.00 % |") && lines[1].ends_with("| NOT met |"), "{table}");
    }
}
