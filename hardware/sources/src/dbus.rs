//! As much of D-Bus as one listener needs: connect, authenticate, call three methods, hear signals.
//!
//! Own code instead of a library: `zbus` would bring 27 further crates (a tenth of the node's) and an executor with threads
//! of its own into the program that holds keys, for one method and two signals. D-Bus specification 0.43.
//!
//! Invariants:
//! - A message has at most [`MESSAGE_BYTES_MAX`]; lengths are checked before anything is allocated or sliced.
//! - Only messages in the machine's own byte order are read: a local bus sends no others.
//! - Descriptors that come with a message nobody asked one for are closed.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// What logind and the bus send is some hundred bytes; the bus's own limit is 128 MiB.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// For the answer to a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Descriptors with one message.
const DESCRIPTORS_MAX: usize = 4;

/// Signals that came while an answer was awaited.
const QUEUE_MAX: usize = 64;

/// A message's fixed part.
const HEADER_BYTES: usize = 16;

const ENDIAN: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Header fields by their code.
mod field {
    pub(super) const PATH: u8 = 1;
    pub(super) const INTERFACE: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const ERROR_NAME: u8 = 4;
    pub(super) const REPLY_SERIAL: u8 = 5;
    pub(super) const DESTINATION: u8 = 6;
    pub(super) const SENDER: u8 = 7;
    pub(super) const SIGNATURE: u8 = 8;
}

/// Why the bus cannot be used.
#[derive(Debug)]
pub(crate) enum BusError {
    Io(io::Error),
    Malformed(&'static str),
    Refused(String),
}

/// A message that came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    kind: u8,
    reply_serial: Option<u32>,
    pub(crate) path: Option<String>,
    pub(crate) interface: Option<String>,
    pub(crate) member: Option<String>,
    pub(crate) sender: Option<String>,
    error_name: Option<String>,
    signature: String,
    body: Vec<u8>,
}

impl Message {
    pub(crate) fn is_signal(&self) -> bool {
        self.kind == SIGNAL
    }

    /// The body, where it is one boolean.
    pub(crate) fn boolean(&self) -> Option<bool> {
        let bytes = self.body.first_chunk::<4>().filter(|_| self.signature == "b")?;
        match u32::from_ne_bytes(*bytes) {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    /// The body, where it begins with a string.
    fn text(&self) -> Option<String> {
        self.signature.starts_with('s').then(|| Reader { bytes: &self.body, at: 0 }.string()).flatten()
    }

    /// From the fixed part, the fields and the body of a whole message.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let fields_end = HEADER_BYTES.checked_add(usize::try_from(word(bytes, 12)?).ok()?)?;
        let body_start = fields_end.checked_next_multiple_of(8)?;
        let mut message =
            Self { kind: *bytes.get(1)?, body: bytes.get(body_start..)?.to_vec(), ..Self::default() };
        let mut reader = Reader { bytes: bytes.get(..fields_end)?, at: HEADER_BYTES };
        while reader.at < fields_end {
            reader.align(8)?;
            let code = reader.byte()?;
            let signature = reader.signature()?;
            match (code, signature.as_str()) {
                (field::REPLY_SERIAL, "u") => message.reply_serial = Some(reader.word()?),
                (field::PATH, "o") => message.path = Some(reader.string()?),
                (field::INTERFACE, "s") => message.interface = Some(reader.string()?),
                (field::MEMBER, "s") => message.member = Some(reader.string()?),
                (field::SENDER, "s") => message.sender = Some(reader.string()?),
                (field::ERROR_NAME, "s") => message.error_name = Some(reader.string()?),
                (field::SIGNATURE, "g") => message.signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.string()?),
                (_, "u") => drop(reader.word()?),
                (_, "g") => drop(reader.signature()?),
                // No message of a bus has a field of another type.
                _ => return None,
            }
        }
        Some(message)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

/// Takes values out of a message, each at its alignment.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) -> Option<()> {
        self.at = self.at.checked_next_multiple_of(to)?;
        (self.at <= self.bytes.len()).then_some(())
    }

    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn word(&mut self) -> Option<u32> {
        self.align(4)?;
        self.take(4).and_then(|bytes| word(bytes, 0))
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        (self.byte()? == 0).then_some(text)
    }

    fn string(&mut self) -> Option<String> {
        let length = usize::try_from(self.word()?).ok()?;
        self.text(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        self.text(length)
    }
}

/// Puts values into a message, each at its alignment.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn word(&mut self, word: u32) {
        self.align(4);
        self.bytes.extend_from_slice(&word.to_ne_bytes());
    }

    fn string(&mut self, text: &str) {
        // Ours are names and rules of at most some hundred bytes.
        self.word(u32::try_from(text.len()).unwrap_or(0));
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.bytes.push(u8::try_from(text.len()).unwrap_or(0));
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    fn field(&mut self, code: u8, signature: &str, text: &str) {
        self.align(8);
        self.bytes.push(code);
        self.signature(signature);
        if signature == "g" { self.signature(text) } else { self.string(text) }
    }
}

/// A method to call; every argument is a string.
struct Call<'a> {
    destination: &'a str,
    path: &'a str,
    interface: &'a str,
    member: &'a str,
    arguments: &'a [&'a str],
}

impl Call<'_> {
    fn encode(&self, serial: u32) -> Vec<u8> {
        let mut body = Writer::default();
        self.arguments.iter().for_each(|argument| body.string(argument));
        let mut message = Writer::default();
        message.bytes.extend_from_slice(&[ENDIAN, METHOD_CALL, 0, 1]);
        message.word(u32::try_from(body.bytes.len()).unwrap_or(0));
        message.word(serial);
        message.word(0);
        message.field(field::PATH, "o", self.path);
        message.field(field::DESTINATION, "s", self.destination);
        message.field(field::INTERFACE, "s", self.interface);
        message.field(field::MEMBER, "s", self.member);
        if !self.arguments.is_empty() {
            message.field(field::SIGNATURE, "g", &"s".repeat(self.arguments.len()));
        }
        let fields = u32::try_from(message.bytes.len() - HEADER_BYTES).unwrap_or(0);
        message.bytes[12..16].copy_from_slice(&fields.to_ne_bytes());
        message.align(8);
        message.bytes.extend_from_slice(&body.bytes);
        message.bytes
    }
}

/// A connection to a bus.
pub(crate) struct Bus {
    stream: UnixStream,
    serial: u32,
    /// Bytes of a message that has come in part.
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    queue: VecDeque<Message>,
}

impl Bus {
    /// Connects to the bus at `address`, and proves by the socket's own credentials who this is.
    pub(crate) fn connect(address: &Path) -> Result<Self, BusError> {
        let mut stream = UnixStream::connect(address)?;
        stream.set_read_timeout(Some(CALL_TIMEOUT))?;
        stream.set_write_timeout(Some(CALL_TIMEOUT))?;
        let user = nix::unistd::geteuid().as_raw().to_string();
        let hex: String = user.bytes().map(|byte| format!("{byte:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        expect_line(&mut stream, "OK ")?;
        stream.write_all(b"NEGOTIATE_UNIX_FD\r\n")?;
        expect_line(&mut stream, "AGREE_UNIX_FD")?;
        stream.write_all(b"BEGIN\r\n")?;
        let (bytes, descriptors, queue) = (Vec::new(), Vec::new(), VecDeque::new());
        let mut bus = Self { stream, serial: 0, bytes, descriptors, queue };
        bus.call_bus("Hello", &[])?;
        Ok(bus)
    }

    /// Asks for signals that match `rule`.
    pub(crate) fn add_match(&mut self, rule: &str) -> Result<(), BusError> {
        self.call_bus("AddMatch", &[rule]).map(drop)
    }

    /// The unique name of the connection that owns `name`.
    pub(crate) fn name_owner(&mut self, name: &str) -> Result<String, BusError> {
        let answer = self.call_bus("GetNameOwner", &[name])?;
        answer.text().ok_or(BusError::Malformed("a name's owner"))
    }

    /// Calls a method that answers with one descriptor.
    pub(crate) fn call_for_descriptor(
        &mut self,
        destination: &str,
        path: &str,
        interface: &str,
        member: &str,
        arguments: &[&str],
    ) -> Result<OwnedFd, BusError> {
        let answer = self.call(&Call { destination, path, interface, member, arguments })?;
        if answer.signature != "h" {
            return Err(BusError::Malformed("a descriptor"));
        }
        self.descriptors.pop().ok_or(BusError::Malformed("a descriptor"))
    }

    /// The next message that is no answer, within `limit`.
    pub(crate) fn next(&mut self, limit: Duration) -> Result<Option<Message>, BusError> {
        if let Some(message) = self.queue.pop_front() {
            return Ok(Some(message));
        }
        let message = self.receive(Instant::now() + limit)?;
        self.descriptors.clear();
        Ok(message)
    }

    fn call_bus(&mut self, member: &str, arguments: &[&str]) -> Result<Message, BusError> {
        let (destination, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
        self.call(&Call { destination, path, interface: destination, member, arguments })
    }

    fn call(&mut self, call: &Call<'_>) -> Result<Message, BusError> {
        self.serial += 1;
        self.descriptors.clear();
        self.stream.write_all(&call.encode(self.serial))?;
        let end = Instant::now() + CALL_TIMEOUT;
        loop {
            let Some(message) = self.receive(end)? else {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            };
            match message.kind {
                METHOD_RETURN if message.reply_serial == Some(self.serial) => return Ok(message),
                ERROR if message.reply_serial == Some(self.serial) => {
                    let name = message.error_name.clone().unwrap_or_default();
                    return Err(BusError::Refused(message.text().unwrap_or(name)));
                }
                SIGNAL if self.queue.len() < QUEUE_MAX => self.queue.push_back(message),
                _ => {}
            }
        }
    }

    /// One whole message, or `None` at `end`.
    fn receive(&mut self, end: Instant) -> Result<Option<Message>, BusError> {
        loop {
            if let Some(length) = whole_length(&self.bytes)? {
                let message = Message::parse(&self.bytes[..length]);
                self.bytes.drain(..length);
                return message.map(Some).ok_or(BusError::Malformed("a message"));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            self.read_some()?;
        }
    }

    fn read_some(&mut self) -> Result<(), BusError> {
        let mut buffer = [0; 4096];
        let mut control = nix::cmsg_space!([std::os::fd::RawFd; DESCRIPTORS_MAX]);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(self.stream.as_raw_fd(), &mut slices, Some(&mut control), flags);
        let length = match received {
            Ok(message) => {
                for control in message.cmsgs().map_err(io::Error::from)? {
                    if let ControlMessageOwned::ScmRights(descriptors) = control {
                        // SAFETY: the kernel has just made these for us with this message; nobody else has them.
                        let owned = descriptors.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) });
                        self.descriptors.extend(owned);
                    }
                }
                message.bytes
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(io::Error::from(errno).into()),
        };
        if length == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.bytes.extend_from_slice(&buffer[..length]);
        Ok(())
    }
}

/// The length of the first message, once all of it is there.
fn whole_length(bytes: &[u8]) -> Result<Option<usize>, BusError> {
    if bytes.len() < HEADER_BYTES {
        return Ok(None);
    }
    if bytes[0] != ENDIAN {
        return Err(BusError::Malformed("a message's byte order"));
    }
    let lengths = word(bytes, 4).zip(word(bytes, 12));
    let length = lengths.and_then(|(body, fields)| {
        let fields = HEADER_BYTES.checked_add(usize::try_from(fields).ok()?)?.checked_next_multiple_of(8)?;
        fields.checked_add(usize::try_from(body).ok()?)
    });
    match length {
        Some(length) if length <= MESSAGE_BYTES_MAX => Ok((bytes.len() >= length).then_some(length)),
        _ => Err(BusError::Malformed("a message's length")),
    }
}

fn expect_line(stream: &mut UnixStream, start: &str) -> Result<(), BusError> {
    let mut line = Vec::new();
    let mut byte = [0; 1];
    while !line.ends_with(b"\r\n") {
        if line.len() > 256 {
            return Err(BusError::Malformed("an answer to the authentication"));
        }
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    let line = String::from_utf8_lossy(&line);
    if line.starts_with(start) { Ok(()) } else { Err(BusError::Refused(line.trim_end().to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A signal as the bus passes it on: the same layout as a call, with other fields.
    fn signal(sender: &str, body: u32) -> Vec<u8> {
        let mut message = Writer::default();
        message.bytes.extend_from_slice(&[ENDIAN, SIGNAL, 0, 1]);
        message.word(4);
        message.word(7);
        message.word(0);
        message.field(field::PATH, "o", "/a/b");
        message.field(field::INTERFACE, "s", "a.b.C");
        message.field(field::MEMBER, "s", "Gone");
        message.field(field::SENDER, "s", sender);
        message.field(field::SIGNATURE, "g", "b");
        let fields = u32::try_from(message.bytes.len() - HEADER_BYTES).unwrap();
        message.bytes[12..16].copy_from_slice(&fields.to_ne_bytes());
        message.align(8);
        message.word(body);
        message.bytes
    }

    #[test]
    fn a_signal_is_parsed_field_by_field() {
        let bytes = signal(":1.7", 1);
        assert_eq!(whole_length(&bytes).unwrap(), Some(bytes.len()));
        let message = Message::parse(&bytes).unwrap();
        assert!(message.is_signal());
        assert_eq!(message.sender.as_deref(), Some(":1.7"));
        assert_eq!((message.path.as_deref(), message.interface.as_deref()), (Some("/a/b"), Some("a.b.C")));
        assert_eq!((message.member.as_deref(), message.boolean()), (Some("Gone"), Some(true)));
        assert_eq!(Message::parse(&signal(":1.7", 0)).unwrap().boolean(), Some(false));
        assert_eq!(Message::parse(&signal(":1.7", 2)).unwrap().boolean(), None);
    }

    #[test]
    fn messages_that_are_cut_or_altered_do_no_harm() {
        let whole = signal(":1.7", 1);
        for length in 0..whole.len() {
            assert!(!matches!(whole_length(&whole[..length]), Ok(Some(_))), "cut at {length}");
            let _ = Message::parse(&whole[..length]);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut altered = whole.clone();
                altered[at] = value;
                if let Ok(Some(length)) = whole_length(&altered) {
                    let _ = Message::parse(&altered[..length.min(altered.len())]);
                }
            }
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused_before_it_is_read() {
        let mut bytes = signal(":1.7", 1);
        bytes[4..8].copy_from_slice(&u32::try_from(MESSAGE_BYTES_MAX).unwrap().to_ne_bytes());
        assert!(matches!(whole_length(&bytes), Err(BusError::Malformed(_))));
        bytes[0] = b'X';
        assert!(matches!(whole_length(&bytes), Err(BusError::Malformed(_))));
    }

    #[test]
    fn a_call_reads_back_as_it_was_written() {
        let arguments = ["one", "two"];
        let call =
            Call { destination: "a.b", path: "/a", interface: "a.b.C", member: "Do", arguments: &arguments };
        let bytes = call.encode(9);
        assert_eq!(whole_length(&bytes).unwrap(), Some(bytes.len()));
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_deref()), (METHOD_CALL, Some("Do")));
        assert_eq!((message.signature.as_str(), message.text().as_deref()), ("ss", Some("one")));
    }
}
