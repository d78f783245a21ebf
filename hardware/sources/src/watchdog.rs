//! The hardware watchdog: a timer outside the program's reach that resets the machine unless it is fed.
//!
//! Invariants:
//! - It is fed only when the one that wipes has just answered ([`Vital::answers`]): a machine whose wiper hangs is reset, and
//!   what keys it held die with it.
//! - It is disarmed in an orderly stop only, by the magic `V`; where the driver was built without that (nowayout) the machine
//!   is reset after a stop, and the log says so at the start.
//! - Opening arms it. So it is opened last, when nothing can fail any more.
//! - The twin is any file that can be written: what is fed stands there, byte by byte.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use units::BootInstant;

use crate::monitor::Monitor;
use crate::slow::{Slow, SourceError};

/// What is written to feed it; any byte but the magic one.
const FOOD: &[u8] = b"\0";

/// What disarms it when the file is closed next.
const DISARM: &[u8] = b"V";

/// It is fed this often in its time, so that a late turn is no reset.
const TURNS: u32 = 4;

nix::ioctl_readwrite!(wdioc_settimeout, b'W', 6, libc::c_int);

/// The thread that must live.
pub trait Vital: Send {
    /// Whether it has answered within a moment.
    fn answers(&self) -> bool;
}

/// The armed watchdog.
pub struct Watchdog {
    path: PathBuf,
    file: File,
    interval: Duration,
    vital: Box<dyn Vital>,
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Watchdog {
    /// Opens the device at `path` and sets its time.
    ///
    /// # Errors
    /// Where it cannot be opened, or does not take such a time; it is disarmed again then.
    pub fn arm(path: &Path, timeout: Duration, vital: Box<dyn Vital>) -> Result<Self, SourceError> {
        let armed = Self::recorded(path, timeout, vital)?;
        let mut seconds = libc::c_int::try_from(timeout.as_secs()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the kernel reads and writes one `int`, which outlives the call.
        let set = unsafe { wdioc_settimeout(armed.file.as_raw_fd(), &raw mut seconds) };
        if let Err(errno) = set {
            let _ = (&armed.file).write_all(DISARM);
            return Err(SourceError::unavailable(path, errno.into()));
        }
        Ok(armed)
    }

    /// The twin: feeds the file at `path`.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn recorded(path: &Path, timeout: Duration, vital: Box<dyn Vital>) -> Result<Self, SourceError> {
        let file = OpenOptions::new().write(true).open(path);
        let file = file.map_err(|source| SourceError::unavailable(path, source))?;
        Ok(Self { path: path.to_owned(), file, interval: timeout / TURNS, vital })
    }
}

impl Slow for Watchdog {
    fn interval(&self) -> Duration {
        self.interval
    }

    fn poll(&mut self, _: BootInstant, _: &mut Monitor) -> Result<(), SourceError> {
        if !self.vital.answers() {
            return Err(SourceError::WiperSilent);
        }
        self.file.write_all(FOOD).map_err(|source: io::Error| SourceError::unavailable(&self.path, source))
    }

    fn stopped(&mut self) {
        // Nobody is left to tell; what could not be disarmed resets the machine, which is safe.
        let _ = self.file.write_all(DISARM);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Pulse(Arc<AtomicBool>);

    impl Vital for Pulse {
        fn answers(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn twin() -> (tempfile::NamedTempFile, Arc<AtomicBool>, Watchdog) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let alive = Arc::new(AtomicBool::new(true));
        let vital = Box::new(Pulse(Arc::clone(&alive)));
        let watchdog = Watchdog::recorded(file.path(), Duration::from_secs(30), vital).unwrap();
        (file, alive, watchdog)
    }

    #[test]
    fn it_is_fed_while_the_wiper_answers_and_disarmed_at_an_orderly_stop_only() {
        let (file, alive, mut watchdog) = twin();
        let mut monitor = Monitor::new("watchdog", "watchdog", true, &[]);
        let mut poll = |watchdog: &mut Watchdog| watchdog.poll(BootInstant(1), &mut monitor);
        assert!(watchdog.interval() < Duration::from_secs(10));
        poll(&mut watchdog).unwrap();
        poll(&mut watchdog).unwrap();
        alive.store(false, Ordering::SeqCst);
        assert!(matches!(poll(&mut watchdog), Err(SourceError::WiperSilent)));
        assert_eq!(std::fs::read(file.path()).unwrap(), b"\0\0", "a hung wiper starves it");
        alive.store(true, Ordering::SeqCst);
        poll(&mut watchdog).unwrap();
        watchdog.stopped();
        drop(watchdog);
        assert_eq!(std::fs::read(file.path()).unwrap(), b"\0\0\0V");
    }

    #[test]
    fn a_watchdog_that_is_dropped_stays_armed() {
        let (file, _, watchdog) = twin();
        drop(watchdog);
        assert_eq!(std::fs::read(file.path()).unwrap(), b"");
    }

    #[test]
    fn what_is_no_watchdog_is_refused_and_disarmed() {
        let (file, _, _) = twin();
        let vital = Box::new(Pulse(Arc::new(AtomicBool::new(true))));
        let error = Watchdog::arm(file.path(), Duration::from_secs(30), vital).unwrap_err();
        assert!(error.to_string().contains(&file.path().display().to_string()));
        assert_eq!(std::fs::read(file.path()).unwrap(), b"V");
    }

    #[test]
    fn the_ioctl_has_the_kernels_number() {
        assert_eq!(nix::request_code_readwrite!(b'W', 6, size_of::<libc::c_int>()), 0xC004_5706);
    }
}
