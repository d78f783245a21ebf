//! A power-fail line on a GPIO chip, by the kernel's line events (`linux/gpio.h`, uAPI version 2).
//!
//! A supply's AC-loss or power-good output, or an early-warning comparator, tells of the mains' end milliseconds before
//! the rails go. The line is requested with edge detection on both edges; an event record has 48 bytes.
//!
//! Invariants:
//! - "Active" means that power fails, whatever the electrical level: the request says so to the kernel, and records of
//!   rising edges are then the bad news.
//! - The level is read once after the request, so that a line that is active from the start is not missed; and again
//!   after a gap in the sequence numbers, since the kernel has dropped records then.
//! - The twin reads the same records from a unix socket. What is not a record ends it.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use units::BootInstant;

use crate::condition::Condition;
use crate::monitor::Monitor;
use crate::{Fast, SourceError};

/// `struct gpio_v2_line_event`.
pub const EVENT_BYTES: usize = 48;

/// Records that one read takes: as many as the kernel queues for one line.
const EVENTS_PER_READ: usize = 16;

const EDGE_RISING: u32 = 1;
const EDGE_FALLING: u32 = 2;

/// What a line is called in `gpioinfo`.
const CONSUMER: &[u8] = b"nightlatch power-fail";

/// `GPIO_V2_LINE_FLAG_*`.
mod flag {
    pub(super) const ACTIVE_LOW: u64 = 1 << 1;
    pub(super) const INPUT: u64 = 1 << 2;
    pub(super) const EDGE_RISING: u64 = 1 << 4;
    pub(super) const EDGE_FALLING: u64 = 1 << 5;
    pub(super) const BIAS_PULL_UP: u64 = 1 << 8;
    pub(super) const BIAS_PULL_DOWN: u64 = 1 << 9;
    pub(super) const BIAS_DISABLED: u64 = 1 << 10;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LineAttribute {
    id: u32,
    padding: u32,
    value: u64,
    mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LineConfig {
    flags: u64,
    num_attrs: u32,
    padding: [u32; 5],
    attrs: [LineAttribute; 10],
}

#[repr(C)]
struct LineRequest {
    offsets: [u32; 64],
    consumer: [u8; 32],
    config: LineConfig,
    num_lines: u32,
    event_buffer_size: u32,
    padding: [u32; 5],
    fd: i32,
}

#[repr(C)]
struct LineValues {
    bits: u64,
    mask: u64,
}

// The sizes are part of the request numbers; a field too many would be another ioctl.
const _: () = assert!(size_of::<LineRequest>() == 592 && size_of::<LineValues>() == 16);

nix::ioctl_readwrite!(gpio_v2_get_line, 0xB4, 0x07, LineRequest);
nix::ioctl_readwrite!(gpio_v2_line_get_values, 0xB4, 0x0E, LineValues);

/// Which level means that power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActiveLevel {
    /// High.
    High,
    /// Low, as of a power-good output.
    Low,
}

/// What pulls an undriven line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// As the firmware left it.
    AsIs,
    /// Nothing.
    Disabled,
    /// To high.
    PullUp,
    /// To low.
    PullDown,
}

/// A line and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineSpec {
    /// Its number on the chip.
    pub line: u32,
    /// The level that means that power fails.
    pub active: ActiveLevel,
    /// Its bias.
    pub bias: Bias,
}

impl LineSpec {
    fn flags(self) -> u64 {
        let active = match self.active {
            ActiveLevel::High => 0,
            ActiveLevel::Low => flag::ACTIVE_LOW,
        };
        let bias = match self.bias {
            Bias::AsIs => 0,
            Bias::Disabled => flag::BIAS_DISABLED,
            Bias::PullUp => flag::BIAS_PULL_UP,
            Bias::PullDown => flag::BIAS_PULL_DOWN,
        };
        flag::INPUT | flag::EDGE_RISING | flag::EDGE_FALLING | active | bias
    }

    fn request(self) -> LineRequest {
        let attribute = LineAttribute { id: 0, padding: 0, value: 0, mask: 0 };
        let config =
            LineConfig { flags: self.flags(), num_attrs: 0, padding: [0; 5], attrs: [attribute; 10] };
        let mut request = LineRequest {
            offsets: [0; 64],
            consumer: [0; 32],
            config,
            num_lines: 1,
            event_buffer_size: 0,
            padding: [0; 5],
            fd: -1,
        };
        request.offsets[0] = self.line;
        request.consumer[..CONSUMER.len()].copy_from_slice(CONSUMER);
        request
    }
}

/// An event record's part that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Event {
    rising: bool,
    sequence: u32,
}

impl Event {
    /// `timestamp_ns u64, id u32, offset u32, seqno u32, line_seqno u32, padding`, in the machine's byte order.
    fn parse(record: &[u8; EVENT_BYTES]) -> Option<Self> {
        let word = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&record[at..at + 4]);
            u32::from_ne_bytes(bytes)
        };
        let rising = match word(8) {
            EDGE_RISING => true,
            EDGE_FALLING => false,
            _ => return None,
        };
        Some(Self { rising, sequence: word(20) })
    }
}

/// A record as the kernel writes it, for twins.
pub fn event_record(rising: bool, sequence: u32, timestamp_ns: u64) -> [u8; EVENT_BYTES] {
    let mut record = [0; EVENT_BYTES];
    record[..8].copy_from_slice(&timestamp_ns.to_ne_bytes());
    record[8..12].copy_from_slice(&if rising { EDGE_RISING } else { EDGE_FALLING }.to_ne_bytes());
    record[16..20].copy_from_slice(&sequence.to_ne_bytes());
    record[20..24].copy_from_slice(&sequence.to_ne_bytes());
    record
}

/// A requested line, or its twin.
pub struct GpioLine {
    events: File,
    buffer: [u8; EVENT_BYTES * EVENTS_PER_READ],
    /// Bytes of a record that has come in part only; a socket may cut one, the kernel never does.
    filled: usize,
    sequence: Option<u32>,
    is_line: bool,
}

impl fmt::Debug for GpioLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpioLine").field("is_line", &self.is_line).finish_non_exhaustive()
    }
}

impl GpioLine {
    /// Requests a line of the chip at `chip`, for [`Condition::PowerLine`].
    ///
    /// # Errors
    /// Where the chip cannot be opened or does not give the line.
    pub fn request(chip: &Path, spec: LineSpec, monitor: &mut Monitor) -> Result<Self, SourceError> {
        let unavailable = |source| SourceError::unavailable(chip, source);
        let file = File::open(chip).map_err(unavailable)?;
        let mut request = spec.request();
        // SAFETY: the request is a whole `gpio_v2_line_request`, its size asserted above, and outlives the call.
        unsafe { gpio_v2_get_line(file.as_raw_fd(), &raw mut request) }
            .map_err(|errno| unavailable(errno.into()))?;
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        let events = unsafe { OwnedFd::from_raw_fd(request.fd) };
        let line = Self::over(events, true).map_err(|errno| unavailable(errno.into()))?;
        let active = line.value().map_err(|errno| unavailable(errno.into()))?;
        monitor.on_reading(BootInstant(0), Condition::PowerLine, active);
        Ok(line)
    }

    /// The twin: reads the same records from the unix socket at `path`.
    ///
    /// # Errors
    /// Where nobody listens there.
    pub fn recorded(path: &Path) -> Result<Self, SourceError> {
        let unavailable = |source| SourceError::unavailable(path, source);
        let socket = UnixStream::connect(path).map_err(unavailable)?;
        Self::over(socket.into(), false).map_err(|errno| unavailable(errno.into()))
    }

    fn over(events: OwnedFd, is_line: bool) -> Result<Self, Errno> {
        use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
        fcntl(&events, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        fcntl(&events, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        let buffer = [0; EVENT_BYTES * EVENTS_PER_READ];
        Ok(Self { events: events.into(), buffer, filled: 0, sequence: None, is_line })
    }

    /// Whether the line is active now.
    fn value(&self) -> Result<bool, Errno> {
        let mut values = LineValues { bits: 0, mask: 1 };
        // SAFETY: the values are a whole `gpio_v2_line_values`, its size asserted above, and outlive the call.
        unsafe { gpio_v2_line_get_values(self.events.as_raw_fd(), &raw mut values) }?;
        Ok(values.bits & 1 != 0)
    }

    fn on_records(&mut self, now: BootInstant, bytes: usize, monitor: &mut Monitor) -> Result<(), Errno> {
        let (records, _) = self.buffer[..bytes].as_chunks::<EVENT_BYTES>();
        for record in records {
            let Some(event) = Event::parse(record) else {
                monitor.on_refused();
                return Err(Errno::EPROTO);
            };
            let gap = self.sequence.is_some_and(|last| last.wrapping_add(1) != event.sequence);
            self.sequence = Some(event.sequence);
            // A bounce may lie in what was dropped; the level now is what counts.
            let active = if gap && self.is_line { self.value()? } else { event.rising };
            monitor.on_reading(now, Condition::PowerLine, active);
        }
        let left = bytes % EVENT_BYTES;
        self.buffer.copy_within(bytes - left..bytes, 0);
        self.filled = left;
        Ok(())
    }
}

impl Fast for GpioLine {
    fn fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn read(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), Errno> {
        match self.events.read(&mut self.buffer[self.filled..]) {
            Ok(0) => Err(Errno::EPIPE),
            Ok(bytes) => {
                monitor.on_heard(now);
                self.on_records(now, self.filled + bytes, monitor)
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN | Errno::EINTR) => Ok(()),
                errno => Err(errno.unwrap_or(Errno::EIO)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use crate::condition::Policy;

    use super::*;

    fn monitor() -> Monitor {
        Monitor::new("line", "gpio", true, &[(Condition::PowerLine, Policy::WIPE)])
    }

    struct Twin {
        line: GpioLine,
        monitor: Monitor,
    }

    fn twin() -> (Twin, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Twin { line: GpioLine::over(ours.into(), false).unwrap(), monitor: monitor() }, theirs)
    }

    impl Twin {
        fn read(&mut self) -> Result<(), Errno> {
            self.line.read(BootInstant(1), &mut self.monitor)
        }

        fn fires(&mut self) -> bool {
            self.read().unwrap();
            self.monitor.next_fired(BootInstant(1)).is_some()
        }
    }

    #[test]
    fn requests_have_the_kernels_numbers() {
        assert_eq!(nix::request_code_readwrite!(0xB4, 0x07, size_of::<LineRequest>()), 0xC250_B407);
        assert_eq!(nix::request_code_readwrite!(0xB4, 0x0E, size_of::<LineValues>()), 0xC010_B40E);
    }

    #[test]
    fn a_request_asks_for_both_edges_of_one_input_and_says_who_asks() {
        let request = LineSpec { line: 17, active: ActiveLevel::Low, bias: Bias::PullUp }.request();
        assert_eq!((request.offsets[0], request.num_lines), (17, 1));
        assert_eq!(request.config.flags, 0b1_0011_0110);
        assert!(request.consumer.starts_with(CONSUMER) && request.consumer.ends_with(&[0]));
        let high = LineSpec { line: 0, active: ActiveLevel::High, bias: Bias::AsIs };
        assert_eq!(high.flags(), 0b11_0100);
    }

    #[test]
    fn a_rising_record_fires_and_a_falling_one_ends_it() {
        let (mut line, mut writer) = twin();
        assert!(!line.fires(), "nothing to read is nothing");
        for round in 0..3 {
            writer.write_all(&event_record(true, 2 * round + 1, 5)).unwrap();
            assert!(line.fires());
            assert_eq!(line.monitor.state().standing(), Some(Condition::PowerLine));
            writer.write_all(&event_record(false, 2 * round + 2, 6)).unwrap();
            assert!(!line.fires());
            assert_eq!(line.monitor.state().standing(), None);
        }
    }

    #[test]
    fn records_may_come_many_at_once_and_in_pieces() {
        let (mut line, mut writer) = twin();
        let mut bytes: Vec<u8> = (1..=5).flat_map(|n| event_record(n % 2 == 1, n, 0)).collect();
        let rest = bytes.split_off(bytes.len() - 7);
        writer.write_all(&bytes).unwrap();
        assert!(!line.fires(), "the last whole record is a falling edge");
        writer.write_all(&rest).unwrap();
        assert!(line.fires(), "the fifth is a rising one");
    }

    #[test]
    fn what_is_no_record_ends_the_source_and_counts() {
        let (mut line, mut writer) = twin();
        writer.write_all(&[7; EVENT_BYTES]).unwrap();
        assert_eq!(line.read(), Err(Errno::EPROTO));
        assert_eq!(line.monitor.state().refused(), 1);
    }

    #[test]
    fn a_closed_twin_has_ended() {
        let (mut line, writer) = twin();
        drop(writer);
        assert_eq!(line.read(), Err(Errno::EPIPE));
    }

    #[test]
    fn what_is_no_chip_is_refused_with_its_path() {
        let spec = LineSpec { line: 0, active: ActiveLevel::Low, bias: Bias::AsIs };
        for path in ["/dev/null", "/nonexistent/gpiochip0"] {
            let error = GpioLine::request(Path::new(path), spec, &mut monitor()).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
    }
}
