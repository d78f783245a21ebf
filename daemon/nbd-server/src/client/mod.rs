//! A small blocking NBD client: one connection, one request at a time. The demo, the crash tests and the harness use
//! it; it makes no claim to speed.
//!
//! Invariants:
//! - An error says whether the outcome is known: [`ClientError::Failed`] is an answer, [`ClientError::Closed`] is
//!   none.
//! - Nothing is allocated from a length that the server names unless it was asked for or is below a limit.

mod error;
mod handshake;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

pub use error::{ClientError, RefusalKind};

use crate::wire::{
    Command, Cursor, RequestHeader, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
    allocation, chunk, command_flag, transmission_flag,
};

/// Longest error message or list of block descriptors that is taken from a server: 2^20 descriptors, the most that
/// one should send.
const REPLY_BYTES_MAX: usize = (8 << 20) + 64;

/// Payload of one request where the server does not say: what every server must take.
const PAYLOAD_BYTES_DEFAULT: u32 = 32 << 20;

/// Where a server listens, and how to talk to it.
#[derive(Clone)]
pub struct Endpoint {
    address: Address,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    timeout: Option<Duration>,
}

#[derive(Clone, Debug)]
enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Endpoint {
    /// A Unix socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self { address: Address::Unix(path.into()), tls: None, timeout: None }
    }

    /// A TCP socket.
    pub fn tcp(address: SocketAddr) -> Self {
        Self { address: Address::Tcp(address), tls: None, timeout: None }
    }

    /// Upgrade to TLS before anything is asked; the server must be `name`.
    #[must_use]
    pub fn with_tls(mut self, config: Arc<ClientConfig>, name: ServerName<'static>) -> Self {
        self.tls = Some((config, name));
        self
    }

    /// Give up on a read or write of the socket after `timeout`; the outcome of the request is then unknown.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    fn connect(&self) -> Result<Box<dyn Transport>, ClientError> {
        let failed = |source| ClientError::Connect { endpoint: self.clone(), source };
        match &self.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(failed)?;
                stream.set_read_timeout(self.timeout).map_err(failed)?;
                stream.set_write_timeout(self.timeout).map_err(failed)?;
                Ok(Box::new(stream))
            }
            Address::Tcp(address) => {
                let stream = match self.timeout {
                    Some(timeout) => TcpStream::connect_timeout(address, timeout),
                    None => TcpStream::connect(address),
                }
                .map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                stream.set_read_timeout(self.timeout).map_err(failed)?;
                stream.set_write_timeout(self.timeout).map_err(failed)?;
                Ok(Box::new(stream))
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Unix(path) => write!(f, "{}", path.display()),
            Address::Tcp(address) => write!(f, "{address}"),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("address", &self.address).field("tls", &self.tls.is_some()).finish()
    }
}

/// A connected socket, in clear or under TLS.
trait Transport: Read + Write + Send {}
impl<S: Read + Write + Send> Transport for S {}

/// What the server said of the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes.
    pub len_bytes: u64,
    /// Transmission flags as on the wire.
    pub flags: u16,
    /// Longest payload of one request.
    pub payload_bytes_max: u32,
    /// Whether [`Client::block_status`] can be asked.
    pub block_status: bool,
}

impl ExportInfo {
    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.flags & transmission_flag::READ_ONLY != 0
    }

    /// Whether several connections may be used at once.
    pub fn can_multi_conn(&self) -> bool {
        self.flags & transmission_flag::CAN_MULTI_CONN != 0
    }
}

/// How [`Client::write_zeroes`] may go about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroOptions {
    /// Durable before the answer.
    pub durable: bool,
    /// The space stays allocated.
    pub keep_allocated: bool,
    /// Rather fail than be slow.
    pub fast: bool,
}

/// A run of bytes in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length.
    pub len_bytes: u64,
    /// Not allocated.
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

/// A connection to one export.
pub struct Client {
    stream: Box<dyn Transport>,
    info: ExportInfo,
    next_cookie: u64,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects and chooses the export `label`.
    pub fn connect(endpoint: &Endpoint, label: &str) -> Result<Self, ClientError> {
        let mut stream = handshake::open(endpoint)?;
        let info = handshake::go(&mut *stream, label)?;
        Ok(Self { stream, info, next_cookie: 1 })
    }

    /// The labels that the server lists.
    pub fn list(endpoint: &Endpoint) -> Result<Vec<String>, ClientError> {
        let mut stream = handshake::open(endpoint)?;
        let labels = handshake::list(&mut *stream)?;
        handshake::abort(&mut *stream);
        Ok(labels)
    }

    /// What the server said of the export.
    pub fn info(&self) -> ExportInfo {
        self.info
    }

    /// Fills `out` from `offset`, in as many requests as it takes.
    pub fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), ClientError> {
        let mut at = offset;
        for piece in out.chunks_mut(self.payload_step()) {
            self.request(Command::Read, 0, at, piece.len() as u64, &[])?;
            self.read_reply(at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes `data` at `offset`, in as many requests as it takes; `durable` asks for each to be durable before its
    /// answer.
    pub fn write(&mut self, offset: u64, data: &[u8], durable: bool) -> Result<(), ClientError> {
        let mut at = offset;
        for piece in data.chunks(self.payload_step()) {
            self.request(Command::Write, fua(durable), at, piece.len() as u64, piece)?;
            self.plain_reply(Command::Write)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes durable what was answered before.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.request(Command::Flush, 0, 0, 0, &[])?;
        self.plain_reply(Command::Flush)
    }

    /// Gives a range back, below 4 GiB.
    pub fn trim(&mut self, offset: u64, len: u64, durable: bool) -> Result<(), ClientError> {
        self.request(Command::Trim, fua(durable), offset, len, &[])?;
        self.plain_reply(Command::Trim)
    }

    /// Asks for a range, below 4 GiB, to be read ahead.
    pub fn cache(&mut self, offset: u64, len: u64) -> Result<(), ClientError> {
        self.request(Command::Cache, 0, offset, len, &[])?;
        self.plain_reply(Command::Cache)
    }

    /// Makes a range, below 4 GiB, read as zeroes.
    pub fn write_zeroes(&mut self, offset: u64, len: u64, options: ZeroOptions) -> Result<(), ClientError> {
        let mut flags = fua(options.durable);
        if options.keep_allocated {
            flags |= command_flag::NO_HOLE;
        }
        if options.fast {
            flags |= command_flag::FAST_ZERO;
        }
        self.request(Command::WriteZeroes, flags, offset, len, &[])?;
        self.plain_reply(Command::WriteZeroes)
    }

    /// How the start of a range, below 4 GiB, is stored: at least one run, perhaps not all of it.
    pub fn block_status(&mut self, offset: u64, len: u64) -> Result<Vec<Extent>, ClientError> {
        self.request(Command::BlockStatus, 0, offset, len, &[])?;
        let mut extents = Vec::new();
        self.replies(Command::BlockStatus, |client, reply| {
            if reply.kind == chunk::BLOCK_STATUS {
                extents = client.extents(reply.length)?;
            }
            Ok(reply.kind == chunk::BLOCK_STATUS)
        })?;
        Ok(extents)
    }

    /// Says goodbye: the server answers all it has, then closes.
    pub fn disconnect(mut self) -> Result<(), ClientError> {
        self.request(Command::Disconnect, 0, 0, 0, &[])
    }

    fn payload_step(&self) -> usize {
        usize::try_from(self.info.payload_bytes_max).unwrap_or(usize::MAX).max(1)
    }

    fn request(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u64,
        payload: &[u8],
    ) -> Result<(), ClientError> {
        self.next_cookie += 1;
        let header =
            RequestHeader { flags, command: command.code(), cookie: self.next_cookie, offset, length: len };
        let header =
            header.encode().ok_or_else(|| ClientError::TooLong { command: command.to_string(), len })?;
        let sent = self.stream.write_all(&header).and_then(|()| self.stream.write_all(payload));
        sent.and_then(|()| self.stream.flush()).map_err(|source| ClientError::closed(Some(command), source))
    }

    /// The answer to a command that carries no data back.
    fn plain_reply(&mut self, command: Command) -> Result<(), ClientError> {
        self.replies(command, |_, _| Ok(false))
    }

    fn read_reply(&mut self, offset: u64, out: &mut [u8]) -> Result<(), ClientError> {
        let mut filled = 0;
        self.replies(Command::Read, |client, reply| {
            match reply.kind {
                chunk::OFFSET_DATA => {
                    let at = client.chunk_offset(offset)?;
                    let data_len = reply.length.saturating_sub(8);
                    client.fill(slice(out, at, data_len)?, Command::Read)?;
                    filled += data_len;
                }
                chunk::OFFSET_HOLE => {
                    let at = client.chunk_offset(offset)?;
                    let hole = client.array::<4>(Command::Read).map(u32::from_be_bytes)?;
                    let hole = usize::try_from(hole).unwrap_or(usize::MAX);
                    slice(out, at, hole)?.fill(0);
                    filled += hole;
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if filled == out.len() {
            Ok(())
        } else {
            Err(ClientError::Protocol("a read was answered with too little data"))
        }
    }

    /// Takes replies to their end. `content` takes the chunks that carry something and says whether it did. An error
    /// chunk fails the command once the last chunk is in, so that the next request finds the stream in step.
    fn replies(
        &mut self,
        command: Command,
        mut content: impl FnMut(&mut Self, &Chunk) -> Result<bool, ClientError>,
    ) -> Result<(), ClientError> {
        let mut failed = None;
        loop {
            let reply = self.chunk(command)?;
            if !content(self, &reply)? {
                failed = failed.or(self.other_chunk(command, &reply)?);
            }
            if reply.done {
                return failed.map_or(Ok(()), Err);
            }
        }
    }

    /// Where in the request a content chunk starts.
    fn chunk_offset(&mut self, request_offset: u64) -> Result<usize, ClientError> {
        let offset = u64::from_be_bytes(self.array::<8>(Command::Read)?);
        offset
            .checked_sub(request_offset)
            .and_then(|at| usize::try_from(at).ok())
            .ok_or(ClientError::Protocol("a data chunk lies outside the request"))
    }

    fn extents(&mut self, length: usize) -> Result<Vec<Extent>, ClientError> {
        let body = self.body(Command::BlockStatus, length)?;
        let mut cursor = Cursor::new(&body);
        cursor.u32().ok_or(ClientError::Protocol("a block status without a context"))?;
        let mut extents = Vec::new();
        while let (Some(len), Some(flags)) = (cursor.u32(), cursor.u32()) {
            extents.push(Extent {
                len_bytes: u64::from(len),
                hole: flags & allocation::HOLE != 0,
                zero: flags & allocation::ZERO != 0,
            });
        }
        Ok(extents)
    }

    /// A chunk that carries no content: the end, or an error.
    fn other_chunk(&mut self, command: Command, reply: &Chunk) -> Result<Option<ClientError>, ClientError> {
        match reply.kind {
            chunk::NONE if reply.length == 0 => {
                Ok(reply.error.map(|code| ClientError::failed(command, code, &[])))
            }
            kind if kind & chunk::ERROR_BIT != 0 => {
                let body = self.body(command, reply.length)?;
                let mut cursor = Cursor::new(&body);
                let (Some(code), Some(len)) = (cursor.u32(), cursor.u16()) else {
                    return Err(ClientError::Protocol("an error chunk without an error"));
                };
                let message = cursor.take(usize::from(len)).unwrap_or_default();
                Ok(Some(ClientError::failed(command, code, message)))
            }
            _ => Err(ClientError::Protocol("a chunk that does not fit the request")),
        }
    }

    /// The next chunk's header. A simple reply, which a server may send where there is no data, reads as a last chunk
    /// without content.
    fn chunk(&mut self, command: Command) -> Result<Chunk, ClientError> {
        let bytes: [u8; SIMPLE_REPLY_BYTES] = self.array(command)?;
        let mut cursor = Cursor::new(&bytes);
        let (magic, middle, cookie) = (cursor.u32(), cursor.u32().unwrap_or(0), cursor.u64());
        if cookie != Some(self.next_cookie) {
            return Err(ClientError::Protocol("an answer to a request that was not made"));
        }
        match magic {
            Some(SIMPLE_REPLY_MAGIC) => {
                let error = (middle != 0).then_some(middle);
                Ok(Chunk { kind: chunk::NONE, done: true, length: 0, error })
            }
            Some(STRUCTURED_REPLY_MAGIC) => {
                let [flags_high, flags_low, kind_high, kind_low] = middle.to_be_bytes();
                let flags = u16::from_be_bytes([flags_high, flags_low]);
                let kind = u16::from_be_bytes([kind_high, kind_low]);
                let length = u32::from_be_bytes(self.array(command)?);
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                Ok(Chunk { kind, done: flags & chunk::FLAG_DONE != 0, length, error: None })
            }
            _ => Err(ClientError::Protocol("a reply with the wrong magic")),
        }
    }

    fn body(&mut self, command: Command, length: usize) -> Result<Vec<u8>, ClientError> {
        if length > REPLY_BYTES_MAX {
            return Err(ClientError::Protocol("a reply that is too long to be believed"));
        }
        let mut body = vec![0; length];
        self.fill(&mut body, command)?;
        Ok(body)
    }

    fn array<const N: usize>(&mut self, command: Command) -> Result<[u8; N], ClientError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, command)?;
        Ok(bytes)
    }

    fn fill(&mut self, out: &mut [u8], command: Command) -> Result<(), ClientError> {
        self.stream.read_exact(out).map_err(|source| ClientError::closed(Some(command), source))
    }
}

struct Chunk {
    kind: u16,
    done: bool,
    length: usize,
    /// The error number of a simple reply.
    error: Option<u32>,
}

fn fua(durable: bool) -> u16 {
    if durable { command_flag::FUA } else { 0 }
}

fn slice(out: &mut [u8], at: usize, len: usize) -> Result<&mut [u8], ClientError> {
    at.checked_add(len)
        .and_then(|end| out.get_mut(at..end))
        .ok_or(ClientError::Protocol("a data chunk lies outside the request"))
}

/// Runs the TLS handshake to its end.
fn upgrade(
    mut stream: Box<dyn Transport>,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<Box<dyn Transport>, ClientError> {
    let failed = |source| ClientError::closed(None, source);
    let mut session = ClientConnection::new(config, name).map_err(|error| failed(io::Error::other(error)))?;
    while session.is_handshaking() {
        session.complete_io(&mut stream).map_err(failed)?;
    }
    Ok(Box::new(StreamOwned::new(session, stream)))
}
