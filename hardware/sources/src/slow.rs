//! Sources that are asked now and then, or listened to, on a thread of their own.
//!
//! Invariants:
//! - A failure is the source's trouble from its first moment, visible in its state; what follows it is the policy of
//!   [`Condition::Lost`](crate::Condition::Lost), whose debounce is how long the source may be silent.
//! - After a failure the next attempt comes after the interval, never at once: a refusing peer is not hammered.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use units::BootInstant;

use crate::condition::Fired;
use crate::monitor::{Monitor, SourceState};

/// Shortest pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(200);

/// Why a source cannot be read. Each says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A file or device cannot be used.
    #[error("{}: {source}; correct the path, or give the node's user access to it", path.display())]
    Unavailable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel gives no socket for its events.
    #[error("the kernel's events cannot be listened to: {0}; allow AF_NETLINK in the unit")]
    Netlink(io::Error),
    /// The thread that was to ask could not give up its rights.
    #[error("the thread that asks cannot be confined; the log says why")]
    Unconfined,
    /// The thread that wipes does not answer.
    #[error("the thread that wipes does not answer; the watchdog is not fed, and will reset the machine")]
    WiperSilent,
    /// No supply can be watched.
    #[error(
        "{} shows no supply that brings mains; this machine cannot tell: use a UPS or a power-fail line",
        directory.display()
    )]
    NoSupply {
        /// Where.
        directory: PathBuf,
    },
    /// A named supply is not there.
    #[error("there is no supply {name} in {}; correct its name", directory.display())]
    NoSuchSupply {
        /// Its name.
        name: String,
        /// Where.
        directory: PathBuf,
    },
    /// No sensor for the chassis.
    #[error("{} shows no intrusion sensor; this machine cannot tell whether it is opened", directory.display())]
    NoIntrusionSensor {
        /// Where.
        directory: PathBuf,
    },
    /// A server cannot be reached or does not answer.
    #[error("{server}: {source}; look at the server and the way to it")]
    Unreachable {
        /// Its address.
        server: String,
        /// Why.
        source: io::Error,
    },
    /// A server said no.
    #[error("{server} refuses: {reason}; {advice}")]
    Refused {
        /// Its address.
        server: String,
        /// What it said.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// A server's answer makes no sense.
    #[error("{server} gave an answer that makes no sense ({what}); look at what listens there")]
    Malformed {
        /// Its address.
        server: String,
        /// What was being read.
        what: &'static str,
    },
}

impl SourceError {
    pub(crate) fn unavailable(path: &Path, source: io::Error) -> Self {
        Self::Unavailable { path: path.to_owned(), source }
    }
}

/// A source that is asked.
pub trait Slow: fmt::Debug + Send {
    /// How long to wait between two questions.
    fn interval(&self) -> Duration;

    /// Asks once and tells the monitor. Blocks for a few seconds at most.
    ///
    /// # Errors
    /// Where there was no answer.
    fn poll(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), SourceError>;

    /// Called once at an orderly stop.
    fn stopped(&mut self) {}
}

/// Ends waits early.
#[derive(Debug, Default)]
pub struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// From now on nobody waits any more.
    pub fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for so long, or until stopped. Returns whether it was.
    pub fn wait(&self, duration: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let end = self.changed.wait_timeout_while(stopped, duration, |stopped| !*stopped);
        *end.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Asks a source until stopped; `act` is called for what fires, in this thread.
pub fn watch(
    source: &mut dyn Slow,
    monitor: &mut Monitor,
    stop: &Stop,
    clock: &dyn Fn() -> BootInstant,
    act: &mut dyn FnMut(&SourceState, Fired),
) {
    let mut next_poll = Instant::now();
    loop {
        if Instant::now() >= next_poll {
            let result = source.poll(clock(), monitor);
            let now = clock();
            if result.is_ok() {
                monitor.on_heard(now);
            }
            let pause = if result.is_err() { PAUSE_MIN } else { Duration::ZERO };
            monitor.on_trouble(now, result.err().map(|error| error.to_string()));
            next_poll = Instant::now() + source.interval().max(pause);
        }
        let now = clock();
        while let Some(fired) = monitor.next_fired(now) {
            act(monitor.state(), fired);
        }
        let until_due = monitor.due().map(|due| Duration::from_nanos(due.0.saturating_sub(now.0)));
        let until_poll = next_poll.saturating_duration_since(Instant::now());
        if stop.wait(until_due.map_or(until_poll, |due| due.min(until_poll))) {
            source.stopped();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use crate::condition::{Condition, Policy};

    use super::*;

    /// Answers as the script says, then ends the watch.
    #[derive(Debug)]
    struct Script<'a> {
        answers: Vec<Option<bool>>,
        stop: &'a Stop,
    }

    impl Slow for Script<'_> {
        fn interval(&self) -> Duration {
            Duration::ZERO
        }

        fn poll(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), SourceError> {
            if self.answers.len() == 1 {
                self.stop.stop();
            }
            match self.answers.remove(0) {
                Some(on) => {
                    monitor.on_reading(now, Condition::UpsOnBattery, on);
                    Ok(())
                }
                None => Err(SourceError::unavailable(Path::new("/ups"), io::ErrorKind::NotFound.into())),
            }
        }
    }

    fn run(answers: Vec<Option<bool>>, policies: &[(Condition, Policy)]) -> (Vec<Condition>, Monitor) {
        let stop = Stop::default();
        let mut monitor = Monitor::new("ups", "test", true, policies);
        let ticks = AtomicU64::new(0);
        let clock = || BootInstant(ticks.fetch_add(1, Ordering::SeqCst));
        let mut fired = Vec::new();
        let mut act = |_: &SourceState, what: Fired| fired.push(what.condition);
        watch(&mut Script { answers, stop: &stop }, &mut monitor, &stop, &clock, &mut act);
        (fired, monitor)
    }

    #[test]
    fn what_is_read_fires_and_a_silent_source_is_lost_and_found() {
        let policies = [(Condition::UpsOnBattery, Policy::WIPE), (Condition::Lost, Policy::REPORT)];
        let (fired, monitor) = run(vec![Some(false), Some(true), Some(true), None, Some(false)], &policies);
        assert_eq!(fired, [Condition::UpsOnBattery, Condition::Lost]);
        assert!(!monitor.state().is_lost() && monitor.state().heard().is_some());
    }

    #[test]
    fn trouble_is_visible_from_its_first_moment() {
        let lost = Policy { debounce: Duration::from_secs(3600), ..Policy::WIPE };
        let (fired, monitor) = run(vec![Some(false), None], &[(Condition::Lost, lost)]);
        assert_eq!(fired, []);
        assert!(monitor.state().is_lost() && monitor.state().standing().is_none());
        assert!(monitor.state().trouble().unwrap().contains("/ups"));
    }
}
