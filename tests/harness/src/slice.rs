//! How long a randomised suite runs, and that it did not end before it had covered enough.

use std::time::{Duration, Instant};

/// Seconds that each randomised suite takes instead of its own slice: `make soak` sets it.
pub const SOAK_VARIABLE: &str = "NIGHTLATCH_SOAK_SECONDS";

/// A share of the test run's time. The suite goes on until the slice is over and its floor is reached.
#[derive(Debug)]
pub struct Slice {
    start: Instant,
    length: Duration,
    floor: u64,
    done: u64,
    what: &'static str,
}

impl Slice {
    /// A slice of `seconds` in which at least `floor` of `what` must be done, however long that takes.
    pub fn new(what: &'static str, seconds: u64, floor: u64) -> Self {
        let seconds = std::env::var(SOAK_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(seconds);
        Self { start: Instant::now(), length: Duration::from_secs(seconds), floor, done: 0, what }
    }

    /// Whether another one is due; counts it.
    pub fn another(&mut self) -> bool {
        let due = self.done < self.floor || self.start.elapsed() < self.length;
        self.done += u64::from(due);
        due
    }

    /// How many were begun.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Says what the suite covered.
    pub fn report(&self, details: &str) {
        println!("{} {} in {:.1} s: {details}", self.done, self.what, self.start.elapsed().as_secs_f64());
    }
}
