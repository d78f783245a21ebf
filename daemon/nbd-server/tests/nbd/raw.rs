//! A socket and the protocol's bytes, written down a second time and independently of the crate: a client that may do
//! anything.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::rig::PATIENCE;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1 << 0;
pub(crate) const NO_HOLE: u16 = 1 << 1;
pub(crate) const DF: u16 = 1 << 2;
pub(crate) const REQ_ONE: u16 = 1 << 3;
pub(crate) const FAST_ZERO: u16 = 1 << 4;
pub(crate) const PAYLOAD_LEN: u16 = 1 << 5;

pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_LIST: u32 = 3;
pub(crate) const OPT_STARTTLS: u32 = 5;
pub(crate) const OPT_INFO: u32 = 6;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(crate) const OPT_LIST_META_CONTEXT: u32 = 9;
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;
pub(crate) const OPT_EXTENDED_HEADERS: u32 = 11;

pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_SERVER: u32 = 2;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
pub(crate) const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
pub(crate) const REP_ERR_POLICY: u32 = (1 << 31) + 2;
pub(crate) const REP_ERR_INVALID: u32 = (1 << 31) + 3;
pub(crate) const REP_ERR_TLS_REQD: u32 = (1 << 31) + 5;
pub(crate) const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
pub(crate) const REP_ERR_SHUTDOWN: u32 = (1 << 31) + 7;
pub(crate) const REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;
pub(crate) const REP_ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const EOVERFLOW: u32 = 75;
pub(crate) const ENOTSUP: u32 = 95;
pub(crate) const ESHUTDOWN: u32 = 108;

pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
}

/// One structured chunk.
#[derive(Debug, PartialEq)]
pub(crate) struct Chunk {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) payload: Vec<u8>,
}

impl Chunk {
    /// The error number of an error chunk.
    pub(crate) fn errno(&self) -> Option<u32> {
        (self.kind == 0x8001).then(|| u32::from_be_bytes(self.payload[..4].try_into().unwrap()))
    }
}

impl Raw {
    /// A socket, and nothing said on it.
    pub(crate) fn silent(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }

    /// Up to and with the client's flags.
    pub(crate) fn greeted(socket: &Path) -> Self {
        let mut raw = Self::silent(socket);
        assert_eq!(&raw.take::<18>(), b"NBDMAGICIHAVEOPT\x00\x03");
        raw.send(&3_u32.to_be_bytes());
        raw
    }

    /// In transmission on `disk`, with simple replies.
    pub(crate) fn simple(socket: &Path) -> Self {
        let mut raw = Self::greeted(socket);
        raw.option(OPT_EXPORT_NAME, b"disk");
        raw.take::<10>();
        raw
    }

    /// In transmission on `disk`, with structured replies and block status.
    pub(crate) fn structured(socket: &Path) -> Self {
        Self::in_chunks(socket, OPT_STRUCTURED_REPLY)
    }

    /// In transmission on `disk`, with extended headers and block status.
    pub(crate) fn extended(socket: &Path) -> Self {
        Self::in_chunks(socket, OPT_EXTENDED_HEADERS)
    }

    fn in_chunks(socket: &Path, style: u32) -> Self {
        let mut raw = Self::greeted(socket);
        raw.option(style, &[]);
        assert_eq!(raw.option_reply().1, REP_ACK);
        raw.option(OPT_SET_META_CONTEXT, &queries("disk", &["base:allocation"]));
        while raw.option_reply().1 != REP_ACK {}
        raw.option(OPT_GO, &go("disk"));
        while raw.option_reply().1 != REP_ACK {}
        raw
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends what the server lets through before it hangs up.
    pub(crate) fn send_what_goes(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes));
    }

    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub(crate) fn take_bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The server hangs up without another byte.
    pub(crate) fn expect_end(&mut self) {
        assert_eq!(self.rest(), 0, "bytes before the end");
    }

    /// How many bytes still come before the server hangs up.
    pub(crate) fn rest(&mut self) -> usize {
        let mut bytes = vec![0; 1 << 16];
        let mut count = 0;
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return count,
                Ok(read) => count += read,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return count,
                Err(error) => panic!("no end of the connection: {error}"),
            }
        }
    }

    pub(crate) fn option(&mut self, code: u32, data: &[u8]) {
        self.option_header(code, u32::try_from(data.len()).unwrap());
        self.send_what_goes(data);
    }

    pub(crate) fn option_header(&mut self, code: u32, len: u32) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend_from_slice(&code.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        self.send(&bytes);
    }

    /// (option, reply, data)
    pub(crate) fn option_reply(&mut self) -> (u32, u32, Vec<u8>) {
        let header = self.take::<20>();
        assert_eq!(header[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let data = self.take_bytes(word(16) as usize);
        (word(8), word(12), data)
    }

    pub(crate) fn request(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, len: u32) {
        self.send(&request(command, flags, cookie, offset, len));
    }

    pub(crate) fn extended_request(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, len: u64) {
        self.send(&extended_request(command, flags, cookie, offset, len));
    }

    /// A chunk with extended headers, and the offset that it repeats.
    pub(crate) fn extended_chunk(&mut self) -> (Chunk, u64) {
        let header = self.take::<32>();
        assert_eq!(header[..4], 0x6e8a_278c_u32.to_be_bytes(), "extended chunk magic");
        let long = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap());
        let payload = self.take_bytes(long(24) as usize);
        let chunk = Chunk {
            flags: u16::from_be_bytes(header[4..6].try_into().unwrap()),
            kind: u16::from_be_bytes(header[6..8].try_into().unwrap()),
            cookie: long(8),
            payload,
        };
        (chunk, long(16))
    }

    /// (error, cookie) of a simple reply.
    pub(crate) fn simple_reply(&mut self) -> (u32, u64) {
        let header = self.take::<16>();
        assert_eq!(header[..4], 0x6744_6698_u32.to_be_bytes(), "simple reply magic");
        (
            u32::from_be_bytes(header[4..8].try_into().unwrap()),
            u64::from_be_bytes(header[8..].try_into().unwrap()),
        )
    }

    pub(crate) fn chunk(&mut self) -> Chunk {
        let header = self.take::<20>();
        assert_eq!(header[..4], 0x668e_33ef_u32.to_be_bytes(), "chunk magic");
        let payload = self.take_bytes(u32::from_be_bytes(header[16..].try_into().unwrap()) as usize);
        Chunk {
            flags: u16::from_be_bytes(header[4..6].try_into().unwrap()),
            kind: u16::from_be_bytes(header[6..8].try_into().unwrap()),
            cookie: u64::from_be_bytes(header[8..16].try_into().unwrap()),
            payload,
        }
    }
}

pub(crate) fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

pub(crate) fn extended_request(command: u16, flags: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = 0x21e4_1c71_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

/// An option, header and all.
pub(crate) fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn queries(label: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = name(label);
    data.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
    data.extend(queries.iter().flat_map(|query| name(query)));
    data
}

pub(crate) fn name(label: &str) -> Vec<u8> {
    let mut data = u32::try_from(label.len()).unwrap().to_be_bytes().to_vec();
    data.extend_from_slice(label.as_bytes());
    data
}

/// The data of GO without information requests.
pub(crate) fn go(label: &str) -> Vec<u8> {
    let mut data = name(label);
    data.extend_from_slice(&0_u16.to_be_bytes());
    data
}
