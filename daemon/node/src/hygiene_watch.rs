//! Watches the machine's memory hygiene while keys are held: what was good when they came and is not any more fires.
//!
//! Invariants:
//! - What counts as before is what was there when the node last sent evidence while sealed: what the keyholder judged. A
//!   new session with keys in force does not move it.
//! - Only probes of ways for memory to leave the machine count; a watchdog that stops is no reason to forget.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hygiene::{Live, Report, Subject};
use sources::{Condition, Monitor, Slow, SourceError};
use units::BootInstant;

/// What is watched, and what it was.
#[derive(Debug)]
pub(crate) struct HygieneWatch {
    subject: Subject,
    before: Mutex<Option<Report>>,
}

impl HygieneWatch {
    /// Watches the machine's files below `root`.
    pub(crate) fn new(root: &Path, live: Live) -> Arc<Self> {
        Arc::new(Self { subject: Subject::recorded(root, live), before: Mutex::new(None) })
    }

    /// From now on what is there now counts as before.
    pub(crate) fn accept(&self) {
        let report = self.subject.report();
        *self.before.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }

    /// What has become worse, in a few words each.
    fn regressions(&self) -> Vec<String> {
        let now = self.subject.report();
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let regressions = before.iter().flat_map(|before| now.regressions(before));
        regressions
            .filter(|finding| finding.probe.guards_memory())
            .map(|finding| format!("{}: {}", finding.probe.name(), finding.found))
            .collect()
    }
}

/// Looks now and then.
#[derive(Debug)]
pub(crate) struct HygieneSource {
    watch: Arc<HygieneWatch>,
    interval: Duration,
    said: Vec<String>,
}

impl HygieneSource {
    pub(crate) fn new(watch: Arc<HygieneWatch>, interval: Duration) -> Self {
        Self { watch, interval, said: Vec::new() }
    }
}

impl Slow for HygieneSource {
    fn interval(&self) -> Duration {
        self.interval
    }

    fn poll(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), SourceError> {
        let regressions = self.watch.regressions();
        monitor.on_reading(now, Condition::Hygiene, !regressions.is_empty());
        if regressions != self.said {
            for regression in &regressions {
                tracing::warn!(regression, "memory hygiene got worse since the node was judged");
            }
            self.said = regressions;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sources::Policy;

    use super::*;

    #[test]
    fn only_what_got_worse_since_it_was_accepted_fires() {
        let dir = tempfile::tempdir().unwrap();
        let swaps = dir.path().join("proc/swaps");
        std::fs::create_dir_all(dir.path().join("proc")).unwrap();
        let write = |text: &str| std::fs::write(&swaps, text).unwrap();
        write("Filename Type\n");
        let watch = HygieneWatch::new(dir.path(), Live::read());
        let mut source = HygieneSource::new(Arc::clone(&watch), Duration::ZERO);
        let mut monitor = Monitor::new("hygiene", "hygiene", true, &[(Condition::Hygiene, Policy::WIPE)]);
        let mut fires = || {
            source.poll(BootInstant(1), &mut monitor).unwrap();
            monitor.next_fired(BootInstant(1)).is_some()
        };
        assert!(!fires(), "nothing was accepted yet");
        watch.accept();
        assert!(!fires());
        write("Filename Type\n/dev/sda2 partition\n");
        assert!(fires());
        assert!(!fires(), "once");
        // People pushed all the same: that is the new measure.
        watch.accept();
        assert!(!fires());
    }
}
