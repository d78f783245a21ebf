//! Chassis intrusion, as hardware monitors show it (`intrusionN_alarm` in the kernel's hwmon class).
//!
//! Invariants:
//! - An alarm stays on until somebody clears it in the kernel (by writing 0 to it, as root) or in the firmware: the board
//!   remembers an opening that happened while the machine was off. It must be cleared before keys can come back.
//! - A machine without such a sensor cannot be watched, and that is an error and not silence.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use units::BootInstant;

use crate::condition::Condition;
use crate::monitor::Monitor;
use crate::slow::{Slow, SourceError};

/// The chassis's sensors.
#[derive(Debug)]
pub struct Chassis {
    directory: PathBuf,
    interval: Duration,
}

/// The alarms under `directory` (`/sys/class/hwmon`), and whether each is on.
pub fn intrusion_alarms(directory: &Path) -> std::io::Result<Vec<(PathBuf, bool)>> {
    let mut alarms = Vec::new();
    for monitor in fs::read_dir(directory)? {
        for file in fs::read_dir(monitor?.path())? {
            let file = file?;
            let name = file.file_name();
            let name = name.to_string_lossy();
            let number = name.strip_prefix("intrusion").and_then(|rest| rest.strip_suffix("_alarm"));
            if number.is_some_and(|number| number.chars().all(|c| c.is_ascii_digit())) {
                let on = fs::read_to_string(file.path())?.trim() != "0";
                alarms.push((file.path(), on));
            }
        }
    }
    Ok(alarms)
}

impl Chassis {
    /// Reads the alarms under `directory` each `interval`.
    pub fn new(directory: &Path, interval: Duration) -> Self {
        Self { directory: directory.to_owned(), interval }
    }
}

impl Slow for Chassis {
    fn interval(&self) -> Duration {
        self.interval
    }

    fn poll(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), SourceError> {
        let alarms = intrusion_alarms(&self.directory)
            .map_err(|source| SourceError::unavailable(&self.directory, source))?;
        if alarms.is_empty() {
            return Err(SourceError::NoIntrusionSensor { directory: self.directory.clone() });
        }
        monitor.on_reading(now, Condition::Intrusion, alarms.iter().any(|(_, on)| *on));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::condition::Policy;

    use super::*;

    fn polled(files: &[(&str, &str)]) -> Result<bool, SourceError> {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mut monitor = Monitor::new("chassis", "chassis", true, &[(Condition::Intrusion, Policy::WIPE)]);
        Chassis::new(dir.path(), Duration::ZERO).poll(BootInstant(1), &mut monitor)?;
        Ok(monitor.next_fired(BootInstant(1)).is_some())
    }

    #[test]
    fn any_alarm_that_is_on_is_an_intrusion() {
        let other = ("hwmon0/temp1_alarm", "1\n");
        assert!(!polled(&[other, ("hwmon1/intrusion0_alarm", "0\n")]).unwrap());
        assert!(polled(&[("hwmon1/intrusion0_alarm", "0\n"), ("hwmon2/intrusion1_alarm", "1\n")]).unwrap());
        assert!(
            polled(&[("hwmon1/intrusion0_alarm", "")]).unwrap(),
            "a sensor that says nothing is not quiet"
        );
    }

    #[test]
    fn a_machine_without_a_sensor_is_an_error() {
        for files in [&[("hwmon0/temp1_alarm", "1\n")][..], &[("hwmon0/intrusion0_beep", "1\n")], &[]] {
            assert!(matches!(polled(files), Err(SourceError::NoIntrusionSensor { .. })), "{files:?}");
        }
    }
}
