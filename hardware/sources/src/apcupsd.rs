//! A UPS by way of apcupsd: the client's side of its Network Information Server, over TCP.
//!
//! A message is a length (u16, big-endian) and so many bytes; a message of length 0 ends an answer. To `status` the server
//! answers with lines `KEY      : value`, of which `STATFLAG` (a word of flags in hexadecimal) says it all and `STATUS` says it
//! in words.
//!
//! Invariants:
//! - An answer has at most [`MESSAGES_MAX`] messages and [`ANSWER_BYTES_MAX`] bytes; more ends the connection.
//! - `COMMLOST` is a failure: a UPS that apcupsd cannot hear is not heard. So is a status that names no known state.
//! - Each question is a connection of its own: the server closes idle ones.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use units::BootInstant;

use crate::condition::Condition;
use crate::monitor::Monitor;
use crate::slow::{Slow, SourceError};

/// A status has some fifty lines.
const MESSAGES_MAX: usize = 200;

/// Of some sixty bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// For connecting, and for each answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// `STATFLAG`, from apcupsd's `defines.h`.
mod flag {
    pub(super) const ONLINE: u32 = 0x0000_0008;
    pub(super) const ON_BATTERY: u32 = 0x0000_0010;
    pub(super) const LOW_BATTERY: u32 = 0x0000_0040;
    pub(super) const COMM_LOST: u32 = 0x0000_0100;
    pub(super) const SHUTDOWN: u32 = 0x0000_0200;
}

/// Where to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApcupsdSpec {
    /// `host:port`; the port is 3551 where apcupsd has its usual one.
    pub server: String,
    /// How often to ask.
    pub interval: Duration,
}

/// What a status says that matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Status {
    on_battery: bool,
    low_battery: bool,
    shutdown: bool,
}

/// Why a status says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoStatus {
    CommLost,
    Malformed,
}

impl Status {
    /// From the lines of a status.
    fn parse(text: &str) -> Result<Self, NoStatus> {
        let value = |key: &str| {
            let pairs = text.lines().filter_map(|line| line.split_once(':'));
            pairs.map(|(key, value)| (key.trim(), value.trim())).find(|(found, _)| *found == key)
        };
        let (_, flags) = value("STATFLAG").ok_or(NoStatus::Malformed)?;
        let flags = flags.split_ascii_whitespace().next().unwrap_or_default();
        let flags = flags.strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let flags = flags.ok_or(NoStatus::Malformed)?;
        if flags & flag::COMM_LOST != 0 {
            return Err(NoStatus::CommLost);
        }
        if flags & (flag::ONLINE | flag::ON_BATTERY | flag::SHUTDOWN) == 0 {
            return Err(NoStatus::Malformed);
        }
        let on_battery = flags & flag::ON_BATTERY != 0;
        Ok(Self {
            on_battery,
            // A battery that is low while mains is there takes nobody down.
            low_battery: on_battery && flags & flag::LOW_BATTERY != 0,
            shutdown: flags & flag::SHUTDOWN != 0,
        })
    }
}

/// Sends `status` and reads the answer's messages as one text.
fn ask(stream: &mut (impl Read + Write)) -> io::Result<String> {
    stream.write_all(b"\0\x06status")?;
    let mut text = Vec::new();
    for _ in 0..MESSAGES_MAX {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let length = usize::from(u16::from_be_bytes(length));
        if length == 0 {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        let start = text.len();
        if start + length > ANSWER_BYTES_MAX {
            break;
        }
        text.resize(start + length, 0);
        stream.read_exact(&mut text[start..])?;
        if text.last() != Some(&b'\n') {
            text.push(b'\n');
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// A UPS at apcupsd.
#[derive(Debug)]
pub struct Apcupsd {
    spec: ApcupsdSpec,
}

impl Apcupsd {
    /// Nothing is asked yet.
    pub fn new(spec: ApcupsdSpec) -> Self {
        Self { spec }
    }

    fn answer(&self) -> io::Result<String> {
        let mut last = io::ErrorKind::NotFound.into();
        for address in self.spec.server.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, TIMEOUT) {
                Ok(mut stream) => {
                    stream.set_read_timeout(Some(TIMEOUT))?;
                    stream.set_write_timeout(Some(TIMEOUT))?;
                    return ask(&mut stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Slow for Apcupsd {
    fn interval(&self) -> Duration {
        self.spec.interval
    }

    fn poll(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), SourceError> {
        let server = || self.spec.server.clone();
        let text = self.answer().map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => SourceError::Malformed { server: server(), what: "a status" },
            _ => SourceError::Unreachable { server: server(), source },
        })?;
        let status = Status::parse(&text).map_err(|why| match why {
            NoStatus::CommLost => SourceError::Refused {
                server: server(),
                reason: "it has lost its UPS".to_owned(),
                advice: "look at the UPS's cable and apcupsd's log",
            },
            NoStatus::Malformed => SourceError::Malformed { server: server(), what: "a status" },
        })?;
        monitor.on_reading(now, Condition::UpsForcedShutdown, status.shutdown);
        monitor.on_reading(now, Condition::UpsLowBattery, status.low_battery);
        monitor.on_reading(now, Condition::UpsOnBattery, status.on_battery);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use crate::condition::Policy;

    use super::*;

    /// A status as apcupsd 3.14 gives it, shortened.
    fn status(flags: &str) -> String {
        format!(
            "APC      : 001,036,0876\nHOSTNAME : rack\nSTATUS   : ONLINE \nBCHARGE  : 100.0 Percent\nSTATFLAG : {flags}\nEND APC  : 2026-01-01 00:00:00 +0000  \n"
        )
    }

    fn messages(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for line in text.lines() {
            let line = format!("{line}\n");
            bytes.extend(u16::try_from(line.len()).unwrap().to_be_bytes());
            bytes.extend(line.as_bytes());
        }
        bytes.extend([0, 0]);
        bytes
    }

    #[test]
    fn flags_become_conditions() {
        let found = |on_battery, low_battery, shutdown| Ok(Status { on_battery, low_battery, shutdown });
        for (flags, expected) in [
            ("0x05000008", found(false, false, false)),
            ("0x05000008 Status Flag", found(false, false, false)),
            ("0x05000010", found(true, false, false)),
            ("0x05060050", found(true, true, false)),
            ("0x05000048", found(false, false, false)),
            ("0x05000210", found(true, false, true)),
            ("0x05000108", Err(NoStatus::CommLost)),
            ("0x05000000", Err(NoStatus::Malformed)),
            ("5000008", Err(NoStatus::Malformed)),
            ("0xzz", Err(NoStatus::Malformed)),
            ("", Err(NoStatus::Malformed)),
        ] {
            assert_eq!(Status::parse(&status(flags)), expected, "{flags}");
        }
        assert_eq!(Status::parse("STATUS : ONLINE\n"), Err(NoStatus::Malformed));
    }

    /// Both directions of a connection as two pieces of memory.
    struct Pipe {
        answer: io::Cursor<Vec<u8>>,
        sent: Vec<u8>,
    }

    impl Read for Pipe {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.answer.read(buffer)
        }
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.sent.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn answered(answer: Vec<u8>) -> io::Result<String> {
        let mut pipe = Pipe { answer: io::Cursor::new(answer), sent: Vec::new() };
        let text = ask(&mut pipe);
        assert_eq!(pipe.sent, b"\0\x06status");
        text
    }

    #[test]
    fn an_answer_is_its_messages_put_together() {
        let text = status("0x05000008");
        assert_eq!(answered(messages(&text)).unwrap(), text);
        assert_eq!(answered(vec![0, 1, b'a', 0, 1, b'b', 0, 0]).unwrap(), "a\nb\n");
    }

    #[test]
    fn answers_that_are_cut_or_endless_are_refused() {
        let whole = messages(&status("0x05000008"));
        for length in 0..whole.len() {
            assert!(answered(whole[..length].to_vec()).is_err(), "cut at {length}");
        }
        let long = [&[0xff, 0xff][..], &[b'x'; 0xffff]].concat();
        assert_eq!(answered(long.repeat(2)).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let many = [0, 1, b'x'].repeat(MESSAGES_MAX + 1);
        assert_eq!(answered(many).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_status_over_tcp_fires_and_an_absent_server_is_an_error() {
        let policies = [(Condition::UpsOnBattery, Policy::WIPE), (Condition::UpsLowBattery, Policy::WIPE)];
        let mut monitor = Monitor::new("ups", "apcupsd", true, &policies);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let twin = std::thread::spawn(move || {
            for flags in ["0x05000010", "0x05000050", "0x05000108"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 8];
                stream.read_exact(&mut request).unwrap();
                stream.write_all(&messages(&status(flags))).unwrap();
            }
        });
        let mut apcupsd = Apcupsd::new(ApcupsdSpec { server, interval: Duration::ZERO });
        for expected in [Condition::UpsOnBattery, Condition::UpsLowBattery] {
            apcupsd.poll(BootInstant(1), &mut monitor).unwrap();
            let fired = monitor.next_fired(BootInstant(1)).unwrap();
            assert_eq!((fired.condition, monitor.next_fired(BootInstant(1))), (expected, None));
        }
        let error = apcupsd.poll(BootInstant(1), &mut monitor).unwrap_err();
        assert!(error.to_string().contains("lost its UPS"), "{error}");
        twin.join().unwrap();
        // A port that the system gives to nobody.
        let server = "127.0.0.1:1".to_owned();
        let mut apcupsd = Apcupsd::new(ApcupsdSpec { server: server.clone(), interval: Duration::ZERO });
        let error = apcupsd.poll(BootInstant(1), &mut monitor).unwrap_err();
        assert!(matches!(&error, SourceError::Unreachable { .. }) && error.to_string().contains(&server));
    }
}
