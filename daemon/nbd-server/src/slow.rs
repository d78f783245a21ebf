//! Says which operations took long, and not so often that a slow disk fills the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::SLOW_LOG_INTERVAL;

/// Watches one export.
#[derive(Debug)]
pub(crate) struct SlowLog {
    limit: Duration,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    last: Option<Instant>,
    /// Not said since.
    skipped: u64,
}

impl SlowLog {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, said: Mutex::default() }
    }

    pub(crate) fn is_slow(&self, took: Duration) -> bool {
        took >= self.limit
    }

    /// A slow one ended `now`. Whether to say so, and how many went unsaid since the last time.
    pub(crate) fn note(&self, now: Instant) -> Option<u64> {
        // Every change is one assignment: a panicking holder leaves nothing half done.
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.last.is_some_and(|last| now.saturating_duration_since(last) < SLOW_LOG_INTERVAL) {
            said.skipped += 1;
            return None;
        }
        said.last = Some(now);
        Some(std::mem::take(&mut said.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_slow_and_less_is_not() {
        let log = SlowLog::new(Duration::from_secs(1));
        assert!(log.is_slow(Duration::from_secs(1)));
        assert!(!log.is_slow(Duration::from_micros(999_999)));
    }

    #[test]
    fn one_line_an_interval_counts_what_it_leaves_out() {
        let log = SlowLog::new(Duration::from_secs(1));
        let start = Instant::now();
        assert_eq!(log.note(start), Some(0));
        for _ in 0..5 {
            assert_eq!(log.note(start + SLOW_LOG_INTERVAL / 2), None);
        }
        assert_eq!(log.note(start + SLOW_LOG_INTERVAL), Some(5));
        assert_eq!(log.note(start + SLOW_LOG_INTERVAL * 2), Some(0));
    }
}
