//! Side-by-side benches: our parts beside their peers, on the machine at hand, in one run.
//!
//! Invariants:
//! - Subjects take turns, round by round, so that a busy neighbour slows all of them alike; a figure is the
//!   median over the rounds.
//! - Results go to `target/bench/NAME.json` as one array of [`Figure`]s, and to standard output for people.
//! - A figure with a target says whether it was met; a missed target is no failure. A run that cannot be trusted is one.
//!
//! No figure here belongs into a document without the command that made it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

/// Rounds in which every subject has one turn. Odd, so that the median is a measured value.
pub const ROUNDS: usize = 5;

/// One measured value.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub case: String,
    pub subject: String,
    pub value: f64,
    pub unit: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

impl Figure {
    /// A figure without a target.
    pub fn new(case: &str, subject: &str, value: f64, unit: &str) -> Self {
        let (case, subject, unit) = (case.to_owned(), subject.to_owned(), unit.to_owned());
        Self { case, subject, value, unit, target: None, met: None }
    }

    /// The same figure, to be at least `target`.
    #[must_use]
    pub fn at_least(self, target: f64) -> Self {
        let met = self.value >= target;
        Self { target: Some(target), met: Some(met), ..self }
    }

    /// The same figure, to be at most `target`.
    #[must_use]
    pub fn at_most(self, target: f64) -> Self {
        let met = self.value <= target;
        Self { target: Some(target), met: Some(met), ..self }
    }
}

/// The middle of `values`.
///
/// # Panics
/// Where there are none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Repeats `step`, which says how many operations it did, until `slice` has passed; operations per second.
///
/// # Errors
/// The first error of `step`.
pub fn rate(slice: Duration, mut step: impl FnMut() -> Result<u64>) -> Result<f64> {
    let start = Instant::now();
    let mut done = 0_u64;
    while start.elapsed() < slice {
        done += step()?;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of one bench run stay far below 2^52")]
    let done = done as f64;
    Ok(done / start.elapsed().as_secs_f64())
}

/// Where results and scratch data of the benches lie.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("bench")
}

/// Writes `target/bench/NAME.json` and prints one line a figure.
///
/// # Errors
/// Where the folder or the file cannot be written.
pub fn publish(name: &str, figures: &[Figure]) -> Result<()> {
    let path = folder().join(format!("{name}.json"));
    std::fs::create_dir_all(folder()).with_context(|| format!("making {}", folder().display()))?;
    let mut text = serde_json::to_string_pretty(figures)?;
    text.push('\n');
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    for figure in figures {
        let verdict = match figure.met {
            Some(true) => "  met",
            Some(false) => "  NOT met",
            None => "",
        };
        println!("{:32} {:12} {:>14.2} {}{verdict}", figure.case, figure.subject, figure.value, figure.unit);
    }
    println!("written to {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_measured_value_in_the_middle() {
        assert!((median(vec![9.0, 1.0, 5.0]) - 5.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_figure_without_a_target_claims_nothing() {
        let json = serde_json::to_value(Figure::new("gets", "redb", 2.0, "1/s")).unwrap();
        assert_eq!(json, serde_json::json!({"case": "gets", "subject": "redb", "value": 2.0, "unit": "1/s"}));
        let json = serde_json::to_value(Figure::new("gets", "redb", 2.0, "1/s").at_least(3.0)).unwrap();
        assert_eq!((&json["target"], &json["met"]), (&serde_json::json!(3.0), &serde_json::json!(false)));
    }
}
