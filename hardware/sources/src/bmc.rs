//! What the machine's management controller reports, by the kernel's IPMI device (`linux/ipmi.h`).
//!
//! The kernel hands over each event that the controller logs, as a record of the system event log (IPMI 2.0, table 32-1). What
//! counts is the power of the whole machine (sensor type 09h) and its chassis (05h); a single supply's loss of input
//! (08h) counts where the configuration says that there is no second one.
//!
//! Invariants:
//! - An event is what happened, not a level: not every controller says when a condition has ended.
//! - A record that tells of the end of a condition, of another sensor, or of a maker's own kind does nothing.
//! - The twin reads the same records from a unix socket.

use std::ffi::{c_int, c_long, c_short, c_uchar, c_uint, c_ushort};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use units::BootInstant;

use crate::condition::Condition;
use crate::monitor::Monitor;
use crate::{Fast, SourceError};

/// A record of the system event log.
pub const SEL_RECORD_BYTES: usize = 16;

/// Records that one call takes; what is left makes the descriptor ready again.
const RECORDS_PER_READ: usize = 16;

/// `IPMI_ASYNC_EVENT_RECV_TYPE`: not an answer to a question, of which none is asked.
const ASYNC_EVENT: c_int = 2;

/// The lengths as the kernel's structures have them.
const ADDRESS_BYTES: c_uint = 40;
const RECORD_LEN: c_ushort = 16;

/// `struct ipmi_addr`.
#[repr(C)]
struct Address {
    kind: c_int,
    channel: c_short,
    data: [c_uchar; 32],
}

/// `struct ipmi_msg`.
#[repr(C)]
struct Message {
    netfn: c_uchar,
    cmd: c_uchar,
    data_len: c_ushort,
    data: *mut c_uchar,
}

/// `struct ipmi_recv`.
#[repr(C)]
struct Received {
    kind: c_int,
    address: *mut Address,
    address_len: c_uint,
    id: c_long,
    message: Message,
}

// The size is part of the request's number; a field too many would be another ioctl.
const _: () = assert!(size_of::<Received>() == 48 && size_of::<Address>() == ADDRESS_BYTES as usize);
const _: () = assert!(SEL_RECORD_BYTES == RECORD_LEN as usize);

nix::ioctl_readwrite!(ipmi_receive_message, b'i', 11, Received);
nix::ioctl_read!(ipmi_set_gets_events, b'i', 16, c_int);

/// What an event means here.
fn condition(record: &[u8; SEL_RECORD_BYTES], single_supply: bool) -> Option<Condition> {
    const SYSTEM_EVENT: u8 = 0x02;
    const SENSOR_SPECIFIC: u8 = 0x6f;
    const ENDED: u8 = 0x80;
    let [_, _, kind, .., sensor, _, event, data, _, _] = *record;
    // The offset of an event is its first datum's lower half; the upper says what the others hold.
    if kind != SYSTEM_EVENT || event & ENDED != 0 || event != SENSOR_SPECIFIC {
        return None;
    }
    match (sensor, data & 0x0f) {
        // Power off, power cycle, 240 V, interlock, input lost, failure. Not: a refused command, a failure to come.
        (0x09, 0..=4 | 6) => Some(Condition::BmcPower),
        // Input lost; lost or out of range.
        (0x08, 3 | 4) if single_supply => Some(Condition::BmcPower),
        // Any way into the chassis, its drive bay, its cards, its processors. Not: the network cable, the dock, a fan.
        (0x05, 0..=3) => Some(Condition::Intrusion),
        _ => None,
    }
}

/// A record as a controller logs it, for twins: a sensor's own event `offset` has come.
pub fn sel_record(sensor_type: u8, offset: u8) -> [u8; SEL_RECORD_BYTES] {
    [1, 0, 0x02, 0, 0, 0, 0, 0x20, 0, 0x04, sensor_type, 1, 0x6f, offset, 0xff, 0xff]
}

#[derive(Debug)]
enum Events {
    Controller(File),
    /// With the bytes of a record that has come in part only. A file, and no socket: the thread that wipes may only read.
    Recorded(File, usize),
}

/// A management controller, or its twin.
pub struct Bmc {
    events: Events,
    single_supply: bool,
    buffer: [u8; SEL_RECORD_BYTES * RECORDS_PER_READ],
}

impl fmt::Debug for Bmc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bmc").field("events", &self.events).finish_non_exhaustive()
    }
}

impl Bmc {
    /// Asks the kernel for the events of the controller at `device` (`/dev/ipmi0`), for [`Condition::BmcPower`] and
    /// [`Condition::Intrusion`]. With `single_supply` the loss of one supply's input is the loss of power.
    ///
    /// # Errors
    /// Where the device cannot be opened or is none of a controller.
    pub fn open(device: &Path, single_supply: bool) -> Result<Self, SourceError> {
        let unavailable = |source| SourceError::unavailable(device, source);
        let file = OpenOptions::new().read(true).write(true).open(device).map_err(unavailable)?;
        let mut wanted: c_int = 1;
        // SAFETY: the kernel reads one `int`, which outlives the call.
        unsafe { ipmi_set_gets_events(file.as_raw_fd(), &raw mut wanted) }
            .map_err(|errno| unavailable(errno.into()))?;
        Ok(Self::over(Events::Controller(file), single_supply))
    }

    /// The twin: reads the same records from the unix socket at `path`.
    ///
    /// # Errors
    /// Where nobody listens there.
    pub fn recorded(path: &Path, single_supply: bool) -> Result<Self, SourceError> {
        let unavailable = |source| SourceError::unavailable(path, source);
        let socket = UnixStream::connect(path).map_err(unavailable)?;
        socket.set_nonblocking(true).map_err(unavailable)?;
        Ok(Self::over(Events::Recorded(OwnedFd::from(socket).into(), 0), single_supply))
    }

    const fn over(events: Events, single_supply: bool) -> Self {
        Self { events, single_supply, buffer: [0; SEL_RECORD_BYTES * RECORDS_PER_READ] }
    }
}

/// The next event of a controller, if it is one.
fn receive(device: &File) -> Result<Option<[u8; SEL_RECORD_BYTES]>, Errno> {
    let mut address = Address { kind: 0, channel: 0, data: [0; 32] };
    let mut record = [0; SEL_RECORD_BYTES];
    let mut received = Received {
        kind: 0,
        address: &raw mut address,
        address_len: ADDRESS_BYTES,
        id: 0,
        message: Message { netfn: 0, cmd: 0, data_len: RECORD_LEN, data: record.as_mut_ptr() },
    };
    // SAFETY: the structure is a whole `ipmi_recv`, its size asserted above; its two pointers are to memory of the lengths
    // beside them; all of it outlives the call.
    match unsafe { ipmi_receive_message(device.as_raw_fd(), &raw mut received) } {
        Ok(_) => {
            let is_event =
                received.kind == ASYNC_EVENT && usize::from(received.message.data_len) == SEL_RECORD_BYTES;
            Ok(is_event.then_some(record))
        }
        // Longer than a record: cut, and no event.
        Err(Errno::EMSGSIZE) => Ok(None),
        Err(errno) => Err(errno),
    }
}

impl Fast for Bmc {
    fn fd(&self) -> BorrowedFd<'_> {
        match &self.events {
            Events::Controller(file) | Events::Recorded(file, _) => file.as_fd(),
        }
    }

    fn read(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), Errno> {
        let single_supply = self.single_supply;
        let mut on_record = |record: &[u8; SEL_RECORD_BYTES]| {
            monitor.on_heard(now);
            if let Some(condition) = condition(record, single_supply) {
                monitor.on_event(condition);
            }
        };
        match &mut self.events {
            Events::Controller(device) => {
                for _ in 0..RECORDS_PER_READ {
                    match receive(device) {
                        Ok(Some(record)) => on_record(&record),
                        Ok(None) | Err(Errno::EINTR) => {}
                        Err(Errno::EAGAIN) => break,
                        Err(errno) => return Err(errno),
                    }
                }
            }
            Events::Recorded(socket, filled) => {
                let bytes = match socket.read(&mut self.buffer[*filled..]) {
                    Ok(0) => return Err(Errno::EPIPE),
                    Ok(bytes) => *filled + bytes,
                    Err(error) => {
                        return match error.raw_os_error().map(Errno::from_raw) {
                            Some(Errno::EAGAIN | Errno::EINTR) => Ok(()),
                            errno => Err(errno.unwrap_or(Errno::EIO)),
                        };
                    }
                };
                let (records, rest) = self.buffer[..bytes].as_chunks::<SEL_RECORD_BYTES>();
                records.iter().for_each(on_record);
                *filled = rest.len();
                self.buffer.copy_within(bytes - *filled..bytes, 0);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use crate::condition::Policy;

    use super::*;

    struct Twin {
        bmc: Bmc,
        monitor: Monitor,
    }

    fn twin(single_supply: bool) -> (Twin, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let policies = [(Condition::BmcPower, Policy::WIPE), (Condition::Intrusion, Policy::WIPE)];
        let monitor = Monitor::new("bmc", "bmc", true, &policies);
        (
            Twin { bmc: Bmc::over(Events::Recorded(OwnedFd::from(ours).into(), 0), single_supply), monitor },
            theirs,
        )
    }

    impl Twin {
        fn heard(&mut self) -> Option<Condition> {
            self.bmc.read(BootInstant(1), &mut self.monitor).unwrap();
            self.monitor.next_fired(BootInstant(1)).map(|fired| fired.condition)
        }
    }

    #[test]
    fn requests_have_the_kernels_numbers() {
        assert_eq!(nix::request_code_readwrite!(b'i', 11, size_of::<Received>()), 0xC030_690B);
        assert_eq!(nix::request_code_read!(b'i', 16, size_of::<c_int>()), 0x8004_6910);
    }

    #[test]
    fn power_and_the_chassis_fire_each_time_and_nothing_else_does() {
        let (mut twin, mut writer) = twin(false);
        assert_eq!(twin.heard(), None, "nothing to read is nothing");
        for sensor in 0..=u8::MAX {
            for offset in 0..16 {
                writer.write_all(&sel_record(sensor, offset)).unwrap();
                let expected = match (sensor, offset) {
                    (9, 0..=4 | 6) => Some(Condition::BmcPower),
                    (5, 0..=3) => Some(Condition::Intrusion),
                    _ => None,
                };
                assert_eq!(twin.heard(), expected, "sensor type {sensor:#x}, offset {offset}");
            }
        }
    }

    #[test]
    fn the_loss_of_a_supply_counts_where_there_is_one() {
        for (single, expected) in [(false, None), (true, Some(Condition::BmcPower))] {
            let (mut twin, mut writer) = twin(single);
            for offset in [3, 4] {
                // The upper half of the first datum says what the others are.
                writer.write_all(&sel_record(8, 0xa0 | offset)).unwrap();
                assert_eq!(twin.heard(), expected);
            }
            writer.write_all(&sel_record(8, 0)).unwrap();
            assert_eq!(twin.heard(), None, "it is there");
        }
    }

    #[test]
    fn an_end_a_threshold_and_a_makers_own_record_do_nothing() {
        let (mut twin, mut writer) = twin(true);
        for (at, value) in [(12, 0xef), (12, 0x01), (12, 0x70), (2, 0xc0), (2, 0xe0)] {
            let mut record = sel_record(9, 4);
            record[at] = value;
            writer.write_all(&record).unwrap();
            assert_eq!(twin.heard(), None, "byte {at} is {value:#x}");
        }
    }

    #[test]
    fn records_may_come_many_at_once_and_in_pieces() {
        let (mut twin, mut writer) = twin(false);
        let bytes = [sel_record(1, 0), sel_record(2, 0), sel_record(9, 4)].concat();
        writer.write_all(&bytes[..40]).unwrap();
        assert_eq!(twin.heard(), None);
        writer.write_all(&bytes[40..]).unwrap();
        assert_eq!(twin.heard(), Some(Condition::BmcPower));
    }

    #[test]
    fn what_is_no_controller_is_refused_with_its_path() {
        for path in ["/dev/null", "/nonexistent/ipmi0"] {
            let error = Bmc::open(Path::new(path), false).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
        let (mut twin, writer) = twin(false);
        drop(writer);
        assert_eq!(twin.bmc.read(BootInstant(1), &mut twin.monitor), Err(Errno::EPIPE));
    }
}
