//! The machine's power button, as the kernel's input devices tell it (`linux/input.h`).
//!
//! On a machine without logind nobody else hears it: pressed once it asks for an orderly stop, held it takes the power.
//!
//! Invariants:
//! - A press of the key for power fires; its release, its repetition and other keys do not.
//! - The twin reads the same records from a unix socket. What is no record ends it only by its length: an input device tells
//!   of more than keys.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use units::BootInstant;

use crate::condition::Condition;
use crate::monitor::Monitor;
use crate::{Fast, SourceError};

/// `struct input_event` of a 64-bit kernel: seconds and microseconds, eight bytes each; type, code and value.
pub const INPUT_EVENT_BYTES: usize = 24;

const _: () = assert!(size_of::<libc::input_event>() == INPUT_EVENT_BYTES);

/// Records that one read takes.
const EVENTS_PER_READ: usize = 16;

const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;

/// A record as the kernel writes it, for twins: the key for power, pressed or released.
pub fn power_key_record(pressed: bool) -> [u8; INPUT_EVENT_BYTES] {
    let mut record = [0; INPUT_EVENT_BYTES];
    record[16..18].copy_from_slice(&EV_KEY.to_ne_bytes());
    record[18..20].copy_from_slice(&KEY_POWER.to_ne_bytes());
    record[20..24].copy_from_slice(&i32::from(pressed).to_ne_bytes());
    record
}

fn is_press(record: &[u8; INPUT_EVENT_BYTES]) -> bool {
    let half = |at: usize| u16::from_ne_bytes([record[at], record[at + 1]]);
    let value = i32::from_ne_bytes([record[20], record[21], record[22], record[23]]);
    (half(16), half(18), value) == (EV_KEY, KEY_POWER, PRESSED)
}

/// An input device with a key for power, or its twin.
pub struct PowerButton {
    events: File,
    buffer: [u8; INPUT_EVENT_BYTES * EVENTS_PER_READ],
    /// Bytes of a record that has come in part only; a socket may cut one, the kernel never does.
    filled: usize,
}

impl fmt::Debug for PowerButton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PowerButton").finish_non_exhaustive()
    }
}

impl PowerButton {
    /// Listens to the input device at `device` (`/dev/input/eventN`), for [`Condition::Shutdown`].
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn open(device: &Path) -> Result<Self, SourceError> {
        let opened = OpenOptions::new().read(true).open(device).map(OwnedFd::from);
        Self::over(device, opened)
    }

    /// The twin: reads the same records from the unix socket at `path`.
    ///
    /// # Errors
    /// Where nobody listens there.
    pub fn recorded(path: &Path) -> Result<Self, SourceError> {
        Self::over(path, UnixStream::connect(path).map(OwnedFd::from))
    }

    fn over(path: &Path, opened: io::Result<OwnedFd>) -> Result<Self, SourceError> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let unavailable = |source| SourceError::unavailable(path, source);
        let events = opened.map_err(unavailable)?;
        fcntl(&events, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| unavailable(errno.into()))?;
        Ok(Self { events: events.into(), buffer: [0; INPUT_EVENT_BYTES * EVENTS_PER_READ], filled: 0 })
    }
}

impl Fast for PowerButton {
    fn fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn read(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), Errno> {
        let bytes = match self.events.read(&mut self.buffer[self.filled..]) {
            Ok(0) => return Err(Errno::EPIPE),
            Ok(bytes) => self.filled + bytes,
            Err(error) => {
                return match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN | Errno::EINTR) => Ok(()),
                    errno => Err(errno.unwrap_or(Errno::EIO)),
                };
            }
        };
        monitor.on_heard(now);
        let (records, rest) = self.buffer[..bytes].as_chunks::<INPUT_EVENT_BYTES>();
        if records.iter().any(is_press) {
            monitor.on_event(Condition::Shutdown);
        }
        self.filled = rest.len();
        self.buffer.copy_within(bytes - self.filled..bytes, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use crate::condition::Policy;

    use super::*;

    struct Twin {
        button: PowerButton,
        monitor: Monitor,
    }

    fn twin() -> (Twin, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let button = PowerButton::over(Path::new("twin"), Ok(ours.into())).unwrap();
        let monitor = Monitor::new("button", "button", true, &[(Condition::Shutdown, Policy::WIPE)]);
        (Twin { button, monitor }, theirs)
    }

    impl Twin {
        fn fires(&mut self) -> bool {
            self.button.read(BootInstant(1), &mut self.monitor).unwrap();
            self.monitor.next_fired(BootInstant(1)).is_some()
        }
    }

    #[test]
    fn a_press_fires_each_time_and_nothing_else_does() {
        let (mut twin, mut writer) = twin();
        assert!(!twin.fires(), "nothing to read is nothing");
        for _ in 0..3 {
            writer.write_all(&power_key_record(true)).unwrap();
            assert!(twin.fires());
            // The key comes up; then what ends every report of an input device.
            writer.write_all(&power_key_record(false)).unwrap();
            writer.write_all(&[0; INPUT_EVENT_BYTES]).unwrap();
            assert!(!twin.fires());
        }
        let mut other = power_key_record(true);
        other[18..20].copy_from_slice(&30_u16.to_ne_bytes());
        writer.write_all(&other).unwrap();
        assert!(!twin.fires(), "another key");
        let mut held = power_key_record(true);
        held[20] = 2;
        writer.write_all(&held).unwrap();
        assert!(!twin.fires(), "repeated while held");
    }

    #[test]
    fn a_record_may_come_in_pieces_and_among_others() {
        let (mut twin, mut writer) = twin();
        let bytes = [[0; INPUT_EVENT_BYTES], power_key_record(true), [0; INPUT_EVENT_BYTES]].concat();
        writer.write_all(&bytes[..40]).unwrap();
        assert!(!twin.fires());
        writer.write_all(&bytes[40..]).unwrap();
        assert!(twin.fires());
    }

    #[test]
    fn a_device_that_is_gone_has_ended() {
        let (mut twin, writer) = twin();
        drop(writer);
        assert_eq!(twin.button.read(BootInstant(1), &mut twin.monitor), Err(Errno::EPIPE));
        assert!(PowerButton::open(Path::new("/nonexistent/event0")).is_err());
    }
}
