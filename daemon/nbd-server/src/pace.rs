//! How long an export's operations take, so that a reader knows which it may carry out itself.
//!
//! An operation that finds its sectors in memory is done before another thread has woken up for it; one that waits for a
//! disk must not hold up the requests behind it. Which of the two an export does is seen, not configured.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::limits::QUICK_OPERATION_MAX;
use crate::wire::Command;

/// Estimates in nanoseconds, one for each command. Races lose a sample, which does no harm.
#[derive(Debug)]
pub(crate) struct Pace {
    estimates: [AtomicU32; 8],
}

impl Pace {
    /// Everything counts as quick until seen otherwise.
    pub(crate) fn new() -> Self {
        Self { estimates: [const { AtomicU32::new(0) }; 8] }
    }

    fn estimate(&self, command: Command) -> &AtomicU32 {
        &self.estimates[usize::from(command.code()) % self.estimates.len()]
    }

    /// Whether the next one is likely to be done at once.
    pub(crate) fn is_quick(&self, command: Command) -> bool {
        Duration::from_nanos(self.estimate(command).load(Ordering::Relaxed).into()) <= QUICK_OPERATION_MAX
    }

    /// Learns from one. Follows what is quicker within a few samples and what is slower within some dozens: being
    /// interrupted makes a quick operation look slow, and nothing makes a slow one look quick.
    pub(crate) fn record(&self, command: Command, took: Duration) {
        let took = u32::try_from(took.as_nanos()).unwrap_or(u32::MAX);
        let estimate = self.estimate(command);
        let before = estimate.load(Ordering::Relaxed);
        let after = if took < before { before - (before - took) / 4 } else { before + (took - before) / 32 };
        estimate.store(after, Ordering::Relaxed);
    }

    /// One has not come back.
    pub(crate) fn stuck(&self, command: Command) {
        let slow = QUICK_OPERATION_MAX * 16;
        self.estimate(command)
            .fetch_max(u32::try_from(slow.as_nanos()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_disk_is_noticed_and_so_is_a_quick_one() {
        let pace = Pace::new();
        assert!(pace.is_quick(Command::Read));
        let slow = QUICK_OPERATION_MAX * 2;
        for _ in 0..32 {
            pace.record(Command::Read, slow);
        }
        assert!(!pace.is_quick(Command::Read));
        assert!(pace.is_quick(Command::Write), "each command for itself");
        for _ in 0..16 {
            pace.record(Command::Read, QUICK_OPERATION_MAX / 4);
        }
        assert!(pace.is_quick(Command::Read));
    }

    #[test]
    fn one_interruption_changes_nothing_and_one_that_hangs_does() {
        let pace = Pace::new();
        pace.record(Command::Write, QUICK_OPERATION_MAX * 16);
        assert!(pace.is_quick(Command::Write));
        pace.stuck(Command::Write);
        assert!(!pace.is_quick(Command::Write));
    }
}
