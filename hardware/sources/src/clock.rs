//! Whether the machine's clock runs as its battery-backed one does.
//!
//! Leases are counted on CLOCK_BOOTTIME. Whoever owns a virtual machine can stop that clock: by stopping the processors, or by
//! winding the whole machine back to a snapshot. The emulated battery-backed clock usually goes on with the host's, so the two
//! disagree afterwards.
//!
//! Invariants:
//! - What counts is the sum of all disagreements, less what two honest clocks may drift apart ([`DRIFT_DIVISOR`]): many
//!   short stops are seen as one long one is.
//! - Once fired the sum starts again at nothing.
//!
//! What it is not: proof. A host that stops both clocks, or that shows the guest a clock of its choice, is not seen; and what is
//! seen is seen at the next look, up to an interval after the machine goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use units::BootInstant;

use crate::condition::Condition;
use crate::monitor::Monitor;
use crate::slow::{Slow, SourceError};

/// Two clocks that drift apart by one part in so many are honest: 500 ppm, five times what a cheap quartz does.
const DRIFT_DIVISOR: i64 = 2_000;

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// Both clocks at one moment, nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Moment {
    battery: i64,
    boot: i64,
}

/// The machine's clock beside its battery-backed one.
#[derive(Debug)]
pub struct ClockWatch {
    file: PathBuf,
    interval: Duration,
    tolerance: i64,
    last: Option<Moment>,
    /// By how much the battery-backed clock has run ahead, nanoseconds.
    ahead: i64,
}

impl ClockWatch {
    /// Reads the seconds in `file` (`/sys/class/rtc/rtc0/since_epoch`) each `interval`; a disagreement of more than `tolerance`
    /// fires. It has to be more than the second that such a clock counts in.
    pub fn new(file: &Path, interval: Duration, tolerance: Duration) -> Self {
        let tolerance = i64::try_from(tolerance.as_nanos()).unwrap_or(i64::MAX);
        Self { file: file.to_owned(), interval, tolerance, last: None, ahead: 0 }
    }

    fn read(&self) -> Result<i64, SourceError> {
        let unavailable = |source| SourceError::unavailable(&self.file, source);
        let text = fs::read_to_string(&self.file).map_err(unavailable)?;
        let seconds =
            text.trim().parse::<i64>().ok().and_then(|seconds| seconds.checked_mul(NANOS_PER_SECOND));
        seconds.ok_or_else(|| unavailable(std::io::ErrorKind::InvalidData.into()))
    }

    /// Takes one look; whether the disagreement is more than is tolerated.
    fn look(&mut self, moment: Moment) -> bool {
        let Some(last) = self.last.replace(moment) else { return false };
        let passed = moment.boot.saturating_sub(last.boot);
        let ahead =
            self.ahead.saturating_add(moment.battery.saturating_sub(last.battery).saturating_sub(passed));
        let drift = passed.max(0) / DRIFT_DIVISOR;
        self.ahead = ahead.signum() * ahead.saturating_abs().saturating_sub(drift).max(0);
        if self.ahead.saturating_abs() <= self.tolerance {
            return false;
        }
        self.ahead = 0;
        true
    }
}

impl Slow for ClockWatch {
    fn interval(&self) -> Duration {
        self.interval
    }

    fn poll(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), SourceError> {
        let moment = Moment { battery: self.read()?, boot: i64::try_from(now.0).unwrap_or(i64::MAX) };
        if self.look(moment) {
            monitor.on_event(Condition::Clock);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::condition::Policy;

    use super::*;

    fn watch() -> ClockWatch {
        ClockWatch::new(Path::new("/none"), Duration::from_secs(1), Duration::from_secs(5))
    }

    /// Looks at a battery-backed clock of `battery_ms` (it counts seconds) and a boot clock of `boot_ms`.
    fn look(watch: &mut ClockWatch, battery_ms: i64, boot_ms: i64) -> bool {
        let moment = Moment {
            battery: battery_ms.div_euclid(1000) * NANOS_PER_SECOND,
            boot: boot_ms * (NANOS_PER_SECOND / 1000),
        };
        watch.look(moment)
    }

    #[test]
    fn a_clock_that_stood_still_or_went_back_is_seen_once() {
        for boot_after in [10_000, 3_000] {
            let mut watch = watch();
            for second in 0..10 {
                assert!(!look(&mut watch, 500_000 + second * 1000, second * 1000));
            }
            // Outside a minute has passed.
            assert!(look(&mut watch, 570_000, boot_after));
            for second in 1..100 {
                assert!(!look(&mut watch, 570_000 + second * 1000, boot_after + second * 1000));
            }
        }
    }

    #[test]
    fn a_battery_backed_clock_that_is_set_is_seen_in_either_direction() {
        for set in [-3_600_000, 3_600_000] {
            let mut watch = watch();
            assert!(!look(&mut watch, 7_200_000, 0));
            assert!(look(&mut watch, 7_200_000 + set, 1000));
        }
    }

    #[test]
    fn many_short_stops_add_up() {
        let mut watch = watch();
        // Of each eleven seconds one is stolen.
        let seen = (0..60).position(|round| look(&mut watch, round * 11_000, round * 10_000));
        assert!(seen.is_some_and(|round| round <= 7), "{seen:?}");
    }

    #[test]
    fn honest_clocks_may_drift_for_ever() {
        for ppm in [-400, 400] {
            let mut watch = watch();
            for second in 0..200_000_i64 {
                let boot_ms = second * 1000;
                assert!(
                    !look(&mut watch, 1_000_000_500 + boot_ms + boot_ms * ppm / 1_000_000, boot_ms),
                    "{second}"
                );
            }
        }
    }

    #[test]
    fn what_the_kernel_shows_is_read_and_what_is_no_number_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("since_epoch");
        let mut monitor = Monitor::new("clock", "clock", true, &[(Condition::Clock, Policy::WIPE)]);
        let mut watch = ClockWatch::new(&file, Duration::ZERO, Duration::from_secs(5));
        assert!(watch.poll(BootInstant(0), &mut monitor).is_err(), "no such file");
        fs::write(&file, "noon\n").unwrap();
        assert!(watch.poll(BootInstant(0), &mut monitor).unwrap_err().to_string().contains("since_epoch"));
        for (text, now, fires) in
            [("100\n", 0, false), ("101\n", 1, false), ("140\n", 2, true), ("141\n", 3, false)]
        {
            fs::write(&file, text).unwrap();
            let now = BootInstant(now * 1_000_000_000);
            watch.poll(now, &mut monitor).unwrap();
            assert_eq!(monitor.next_fired(now).is_some(), fires, "{text}");
        }
    }
}
