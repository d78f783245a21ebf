//! The NBD protocol's numbers and byte layouts, shared by the server's codec and the client.
//!
//! Source: "The NBD protocol", NetworkBlockDevice/nbd doc/proto.md, and its branch extension-ext-header for the
//! messages of 32 bytes. All integers are big-endian.
//!
//! Invariants:
//! - A raw code becomes an enum here and nowhere else; a code that no variant stands for is `None`, never a panic.
//! - Nothing here reads a length and allocates from it: [`Cursor`] only slices what has already arrived.
//!
//! This module does no input or output and keeps no state.

use std::fmt;

/// First eight bytes of every session, `NBDMAGIC`.
pub(crate) const SESSION_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Precedes the server's handshake flags and every option, `IHAVEOPT`.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Precedes every option reply.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Precedes every request in the transmission phase, where headers are compact.
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Precedes every request where headers are extended.
pub(crate) const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Precedes a simple reply.
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Precedes a chunk of a structured reply.
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Precedes a chunk of an extended reply.
pub(crate) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Session magic, option magic, handshake flags.
pub(crate) const GREETING_BYTES: usize = 18;
/// The client's flags, its first message.
pub(crate) const CLIENT_FLAGS_BYTES: usize = 4;
/// Option magic, option code, data length.
pub(crate) const OPTION_HEADER_BYTES: usize = 16;
/// Option reply magic, option code, reply code, data length.
pub(crate) const OPTION_REPLY_HEADER_BYTES: usize = 20;
/// Zero bytes that follow the answer to `EXPORT_NAME` unless the client declined them.
pub(crate) const EXPORT_NAME_PADDING_BYTES: usize = 124;
/// Magic, flags, command, cookie, offset, length of 32 bits.
pub(crate) const REQUEST_BYTES: usize = 28;
/// Magic, flags, command, cookie, offset, length of 64 bits.
pub(crate) const EXTENDED_REQUEST_BYTES: usize = 32;
/// Magic, error, cookie.
pub(crate) const SIMPLE_REPLY_BYTES: usize = 16;
/// Magic, flags, chunk type, cookie, payload length of 32 bits.
pub(crate) const CHUNK_HEADER_BYTES: usize = 20;
/// Magic, flags, chunk type, cookie, the request's offset, payload length of 64 bits.
pub(crate) const EXTENDED_CHUNK_HEADER_BYTES: usize = 32;

/// Handshake flags of the server and, bit for bit, the client flags that accept them.
pub(crate) mod handshake_flag {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(crate) const NO_ZEROES: u16 = 1 << 1;
}

/// Transmission flags: what an export can do.
pub(crate) mod transmission_flag {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
    pub(crate) const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Command flags of a request.
pub(crate) mod command_flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
    pub(crate) const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Chunk flag and chunk types of structured replies.
pub(crate) mod chunk {
    pub(crate) const FLAG_DONE: u16 = 1 << 0;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const BLOCK_STATUS_EXT: u16 = 6;
    pub(crate) const ERROR: u16 = (1 << 15) + 1;
    /// Any type with this bit is an error chunk.
    pub(crate) const ERROR_BIT: u16 = 1 << 15;
}

/// State bits of the `base:allocation` context.
pub(crate) mod allocation {
    pub(crate) const HOLE: u32 = 1 << 0;
    pub(crate) const ZERO: u32 = 1 << 1;
}

/// State bit of a `nightlatch:dirty:` context, as `qemu:dirty-bitmap:` has it.
pub(crate) mod dirty {
    pub(crate) const DIRTY: u32 = 1 << 0;
}

/// Information types of `INFO` and `GO`.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// The metadata context that says what is allocated. The client selects no other.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";

macro_rules! codes {
    ($(#[$doc:meta])* $vis:vis enum $name:ident($raw:ty) { $($(#[$variant_doc:meta])* $variant:ident = $code:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $vis enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// The number on the wire.
            $vis const fn code(self) -> $raw {
                match self { $(Self::$variant => $code,)* }
            }

            /// What the number on the wire stands for; `None` where this implementation does not know it.
            $vis fn from_code(code: $raw) -> Option<Self> {
                [$(Self::$variant,)*].into_iter().find(|known| known.code() == code)
            }
        }
    };
}

codes! {
    /// Options of the handshake phase that this implementation answers with more than "unsupported".
    pub(crate) enum OptionCode(u32) {
        ExportName = 1,
        Abort = 2,
        List = 3,
        StartTls = 5,
        Info = 6,
        Go = 7,
        StructuredReply = 8,
        ListMetaContext = 9,
        SetMetaContext = 10,
        ExtendedHeaders = 11,
    }
}

codes! {
    /// Replies to options.
    pub(crate) enum ReplyCode(u32) {
        Ack = 1,
        Server = 2,
        Info = 3,
        MetaContext = 4,
        ErrUnsupported = OPTION_ERROR_BIT + 1,
        ErrPolicy = OPTION_ERROR_BIT + 2,
        ErrInvalid = OPTION_ERROR_BIT + 3,
        ErrTlsRequired = OPTION_ERROR_BIT + 5,
        ErrUnknown = OPTION_ERROR_BIT + 6,
        ErrShutdown = OPTION_ERROR_BIT + 7,
        ErrTooBig = OPTION_ERROR_BIT + 9,
        ErrExtendedHeadersActive = OPTION_ERROR_BIT + 10,
    }
}

/// Every option reply code with this bit is an error.
pub(crate) const OPTION_ERROR_BIT: u32 = 1 << 31;

codes! {
    /// Commands of the transmission phase.
    pub(crate) enum Command(u16) {
        Read = 0,
        Write = 1,
        Disconnect = 2,
        Flush = 3,
        Trim = 4,
        Cache = 5,
        WriteZeroes = 6,
        BlockStatus = 7,
    }
}

codes! {
    /// Error numbers that the protocol allows in a reply.
    pub enum Errno(u32) {
        /// Not permitted: a write to a read-only export.
        NotPermitted = 1,
        /// The device failed.
        Io = 5,
        /// Out of memory.
        NoMemory = 12,
        /// The request is malformed or outside the export.
        Invalid = 22,
        /// The pool is full, or a write reaches past the end of the export.
        NoSpace = 28,
        /// The request is longer than the server takes in one piece.
        Overflow = 75,
        /// A fast zero that would not be fast.
        NotSupported = 95,
        /// The export is sealed or the server is going down.
        Shutdown = 108,
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPermitted => "EPERM",
            Self::Io => "EIO",
            Self::NoMemory => "ENOMEM",
            Self::Invalid => "EINVAL",
            Self::NoSpace => "ENOSPC",
            Self::Overflow => "EOVERFLOW",
            Self::NotSupported => "ENOTSUP",
            Self::Shutdown => "ESHUTDOWN",
        })
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Disconnect => "disconnect",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::Cache => "cache",
            Self::WriteZeroes => "write zeroes",
            Self::BlockStatus => "block status",
        })
    }
}

/// Which messages the transmission phase is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Style {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, replies in chunks.
    Structured,
    /// Requests and replies of 32 bytes, lengths of 64 bits.
    Extended,
}

impl Style {
    /// Whether replies come in chunks.
    pub(crate) fn in_chunks(self) -> bool {
        self != Self::Simple
    }

    /// Length of a request's header.
    pub(crate) fn request_bytes(self) -> usize {
        match self {
            Self::Simple | Self::Structured => REQUEST_BYTES,
            Self::Extended => EXTENDED_REQUEST_BYTES,
        }
    }
}

/// A request header as it stands on the wire, before anything in it is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestHeader {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl RequestHeader {
    /// The header in `bytes`; `None` where the magic is wrong and the stream can't be followed any further.
    pub(crate) fn decode(bytes: &[u8], style: Style) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let magic = if style == Style::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        if cursor.u32()? != magic {
            return None;
        }
        Some(Self {
            flags: cursor.u16()?,
            command: cursor.u16()?,
            cookie: cursor.u64()?,
            offset: cursor.u64()?,
            length: if style == Style::Extended { cursor.u64()? } else { u64::from(cursor.u32()?) },
        })
    }

    /// The compact form; `None` where the length needs more than its 32 bits.
    pub(crate) fn encode(&self) -> Option<[u8; REQUEST_BYTES]> {
        let length = u32::try_from(self.length).ok()?;
        let mut bytes = [0; REQUEST_BYTES];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&length.to_be_bytes());
        Some(bytes)
    }
}

/// A chunk header of a structured reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkHeader {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) length: u32,
}

impl ChunkHeader {
    pub(crate) fn encode(&self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut bytes = [0; CHUNK_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// The form where headers are extended; `offset` is that of the request.
    pub(crate) fn encode_extended(&self, offset: u64) -> [u8; EXTENDED_CHUNK_HEADER_BYTES] {
        let mut bytes = [0; EXTENDED_CHUNK_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&offset.to_be_bytes());
        bytes[24..32].copy_from_slice(&u64::from(self.length).to_be_bytes());
        bytes
    }
}

/// An option header: magic, code, length of the data that follows.
pub(crate) fn encode_option_header(option: OptionCode, data_len: u32) -> [u8; OPTION_HEADER_BYTES] {
    let mut bytes = [0; OPTION_HEADER_BYTES];
    bytes[0..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[8..12].copy_from_slice(&option.code().to_be_bytes());
    bytes[12..16].copy_from_slice(&data_len.to_be_bytes());
    bytes
}

/// Takes integers and slices off the front of received bytes; `None` where too few are left.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string that a 32-bit length precedes; `None` too where it is not UTF-8.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.u32()?).ok()?;
        std::str::from_utf8(self.take(len)?).ok()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_header_has_the_published_layout() {
        let header = RequestHeader {
            flags: command_flag::FUA,
            command: Command::Write.code(),
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1000,
            length: 0x200,
        };
        let bytes = header.encode().unwrap();
        assert_eq!(
            bytes,
            [
                0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0,
                2, 0
            ]
        );
        assert_eq!(RequestHeader::decode(&bytes, Style::Simple), Some(header));
        assert_eq!(RequestHeader { length: 1 << 32, ..header }.encode(), None);
    }

    #[test]
    fn extended_headers_have_the_published_layout() {
        let bytes = [
            0x21, 0xe4, 0x1c, 0x71, 0, 33, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0,
            9, 0, 0, 2, 0,
        ];
        let header = RequestHeader {
            flags: command_flag::FUA | command_flag::PAYLOAD_LEN,
            command: Command::Write.code(),
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1000,
            length: (9 << 32) + 0x200,
        };
        assert_eq!(RequestHeader::decode(&bytes, Style::Extended), Some(header));
        assert_eq!(RequestHeader::decode(&bytes, Style::Structured), None, "the compact magic is another");
        let chunk =
            ChunkHeader { flags: 1, kind: chunk::BLOCK_STATUS_EXT, cookie: header.cookie, length: 0x18 };
        let bytes = [
            0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0,
            0, 0, 0, 0, 0x18,
        ];
        assert_eq!(chunk.encode_extended(0x1000), bytes);
    }

    #[test]
    fn a_header_with_another_magic_is_no_header() {
        let header = RequestHeader { flags: 0, command: 0, cookie: 0, offset: 0, length: 0 };
        let mut bytes = header.encode().unwrap();
        bytes[3] ^= 1;
        assert_eq!(RequestHeader::decode(&bytes, Style::Simple), None);
        bytes[0..4].copy_from_slice(&EXTENDED_REQUEST_MAGIC.to_be_bytes());
        assert_eq!(
            RequestHeader::decode(&bytes, Style::Structured),
            None,
            "extended headers were not negotiated"
        );
    }

    #[test]
    fn codes_read_back_and_unknown_ones_are_none() {
        assert_eq!(Command::from_code(7), Some(Command::BlockStatus));
        assert_eq!(Command::from_code(8), None);
        assert_eq!(OptionCode::from_code(4), None);
        assert_eq!(Errno::from_code(108), Some(Errno::Shutdown));
        assert_eq!(ReplyCode::from_code(OPTION_ERROR_BIT + 7), Some(ReplyCode::ErrShutdown));
    }

    #[test]
    fn cursor_never_reads_past_what_arrived() {
        let mut cursor = Cursor::new(&[0, 0, 0, 5, b'a', b'b']);
        assert_eq!(cursor.string(), None);
        assert_eq!(Cursor::new(&[0, 0, 0, 1, 0xff]).string(), None, "not UTF-8");
        assert_eq!(Cursor::new(&[0, 0, 0, 2, b'o', b'k', 9]).string(), Some("ok"));
        assert_eq!(Cursor::new(&[1, 2, 3]).u32(), None);
    }
}
