//! Requests of the transmission phase: a header becomes a request that can be carried out, or a refusal.
//!
//! Invariants:
//! - A [`Range`] lies inside the export, and a payload is at most [`PAYLOAD_BYTES_MAX`] long.
//! - [`Incoming::payload_bytes`] is what follows on the wire whether or not the request is accepted: the shell
//!   consumes it either way, or the stream would be read as headers from there on.
//!
//! It does no input or output.

use units::{ByteLen, ByteOffset};

use crate::limits::PAYLOAD_BYTES_MAX;
use crate::negotiation::{Features, Shape};
use crate::wire::{Command, Errno, RequestHeader, command_flag};

/// Bytes inside an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: ByteOffset,
    pub(crate) len: ByteLen,
}

/// A request that can be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Read {
        range: Range,
    },
    Write {
        range: Range,
        durable: bool,
    },
    Flush,
    Trim {
        range: Range,
        durable: bool,
    },
    Cache {
        range: Range,
    },
    WriteZeroes {
        range: Range,
        keep_allocated: bool,
        durable: bool,
    },
    BlockStatus {
        range: Range,
        /// One descriptor only.
        one: bool,
    },
}

impl Request {
    /// Bytes of payload that the request holds in memory while it is in flight, in either direction.
    pub(crate) fn payload_bytes(&self) -> u32 {
        match self {
            Self::Read { range } | Self::Write { range, .. } => {
                // Parsed against PAYLOAD_BYTES_MAX.
                u32::try_from(range.len.0).unwrap_or(PAYLOAD_BYTES_MAX)
            }
            _ => 0,
        }
    }
}

/// An error reply without a look at the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) message: &'static str,
}

/// What a header asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Disconnect,
    Accepted(Request),
    Refused(Refusal),
}

/// A header, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Incoming {
    pub(crate) cookie: u64,
    /// `None` where the command is unknown.
    pub(crate) command: Option<Command>,
    /// Bytes that follow the header.
    pub(crate) payload_bytes: u32,
    pub(crate) asked: Asked,
}

const fn refuse(errno: Errno, message: &'static str) -> Refusal {
    Refusal { errno, message }
}

impl Incoming {
    /// Holds `header` against the export and what was negotiated.
    pub(crate) fn parse(header: RequestHeader, shape: Shape, features: Features) -> Self {
        let command = Command::from_code(header.command);
        let asked = match command {
            Some(Command::Disconnect) => Asked::Disconnect,
            Some(command) => {
                parse(command, header, shape, features).map_or_else(Asked::Refused, Asked::Accepted)
            }
            None => Asked::Refused(refuse(Errno::Invalid, "unknown command")),
        };
        let payload_bytes = if command == Some(Command::Write) { header.length } else { 0 };
        Self { cookie: header.cookie, command, payload_bytes, asked }
    }
}

fn parse(
    command: Command,
    header: RequestHeader,
    shape: Shape,
    features: Features,
) -> Result<Request, Refusal> {
    // FUA is valid on every command and means nothing on those that do not write.
    if header.flags & !(command_flag::FUA | flags_of(command)) != 0 {
        return Err(refuse(Errno::Invalid, "a command flag that the command does not take"));
    }
    let flag = |bit: u16| header.flags & bit != 0;
    let durable = flag(command_flag::FUA);
    let writes = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes);
    if writes && shape.read_only {
        return Err(refuse(Errno::NotPermitted, "the export is read-only"));
    }
    let range = || range_of(command, header, shape);
    match command {
        // Told apart before this is called.
        Command::Disconnect => Err(refuse(Errno::Invalid, "disconnect takes no reply")),
        Command::Read => {
            if flag(command_flag::DF) && !features.structured_replies {
                return Err(refuse(Errno::Invalid, "DF needs structured replies"));
            }
            if header.length > PAYLOAD_BYTES_MAX {
                let errno = if features.structured_replies { Errno::Overflow } else { Errno::Invalid };
                return Err(refuse(errno, "longer than the advertised maximum of 32 MiB"));
            }
            Ok(Request::Read { range: range()? })
        }
        Command::Write => {
            if header.length > PAYLOAD_BYTES_MAX {
                return Err(refuse(Errno::Invalid, "longer than the advertised maximum of 32 MiB"));
            }
            Ok(Request::Write { range: range()?, durable })
        }
        Command::Flush => Ok(Request::Flush),
        Command::Trim => Ok(Request::Trim { range: range()?, durable }),
        Command::Cache => Ok(Request::Cache { range: range()? }),
        Command::WriteZeroes => {
            let keep_allocated = flag(command_flag::NO_HOLE);
            if keep_allocated && flag(command_flag::FAST_ZERO) {
                // Allocated zeroes are encrypted like any other data.
                return Err(refuse(Errno::NotSupported, "zeroes that stay allocated are not fast"));
            }
            Ok(Request::WriteZeroes { range: range()?, keep_allocated, durable })
        }
        Command::BlockStatus => {
            if !features.block_status {
                return Err(refuse(Errno::Invalid, "no metadata context was selected"));
            }
            if header.length == 0 {
                return Err(refuse(Errno::Invalid, "block status of nothing"));
            }
            Ok(Request::BlockStatus { range: range()?, one: flag(command_flag::REQ_ONE) })
        }
    }
}

/// Command flags beyond FUA.
const fn flags_of(command: Command) -> u16 {
    match command {
        Command::Read => command_flag::DF,
        Command::WriteZeroes => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        Command::BlockStatus => command_flag::REQ_ONE,
        _ => 0,
    }
}

fn range_of(command: Command, header: RequestHeader, shape: Shape) -> Result<Range, Refusal> {
    let end = header.offset.checked_add(u64::from(header.length));
    if end.is_none_or(|end| end > shape.len_bytes) {
        let errno = match command {
            Command::Write | Command::WriteZeroes => Errno::NoSpace,
            _ => Errno::Invalid,
        };
        return Err(refuse(errno, "past the end of the export"));
    }
    Ok(Range { offset: ByteOffset(header.offset), len: ByteLen(u64::from(header.length)) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXPORT_BYTES: u64 = 1 << 30;
    const WRITABLE: Shape = Shape { len_bytes: EXPORT_BYTES, read_only: false };
    const ALL: Features = Features { structured_replies: true, block_status: true };

    fn header(command: u16, flags: u16, offset: u64, length: u32) -> RequestHeader {
        RequestHeader { flags, command, cookie: 9, offset, length }
    }

    fn asked(command: Command, flags: u16, offset: u64, length: u32) -> Asked {
        Incoming::parse(header(command.code(), flags, offset, length), WRITABLE, ALL).asked
    }

    fn errno(asked: Asked) -> Option<Errno> {
        match asked {
            Asked::Refused(refusal) => Some(refusal.errno),
            _ => None,
        }
    }

    #[test]
    fn payload_at_the_limit_is_taken_and_one_more_is_not() {
        for command in [Command::Read, Command::Write] {
            assert!(matches!(asked(command, 0, 0, PAYLOAD_BYTES_MAX), Asked::Accepted(_)), "{command}");
        }
        assert_eq!(errno(asked(Command::Read, 0, 0, PAYLOAD_BYTES_MAX + 1)), Some(Errno::Overflow));
        assert_eq!(errno(asked(Command::Write, 0, 0, PAYLOAD_BYTES_MAX + 1)), Some(Errno::Invalid));
        let simple = Incoming::parse(header(0, 0, 0, PAYLOAD_BYTES_MAX + 1), WRITABLE, Features::default());
        assert_eq!(errno(simple.asked), Some(Errno::Invalid));
    }

    #[test]
    fn the_last_byte_is_inside_and_the_next_is_not() {
        for (command, past_the_end) in [
            (Command::Read, Errno::Invalid),
            (Command::Write, Errno::NoSpace),
            (Command::Trim, Errno::Invalid),
            (Command::Cache, Errno::Invalid),
            (Command::WriteZeroes, Errno::NoSpace),
            (Command::BlockStatus, Errno::Invalid),
        ] {
            assert!(matches!(asked(command, 0, EXPORT_BYTES - 512, 512), Asked::Accepted(_)), "{command}");
            for offset in [EXPORT_BYTES - 511, EXPORT_BYTES, u64::MAX, u64::MAX - 511] {
                assert_eq!(errno(asked(command, 0, offset, 512)), Some(past_the_end), "{command} {offset}");
            }
        }
    }

    #[test]
    fn commands_without_payload_may_span_4_gib() {
        let wide = Shape { len_bytes: 1 << 40, read_only: false };
        for command in [Command::Trim, Command::WriteZeroes, Command::BlockStatus, Command::Cache] {
            let incoming = Incoming::parse(header(command.code(), 0, 0, u32::MAX), wide, ALL);
            assert!(matches!(incoming.asked, Asked::Accepted(_)), "{command}");
            assert_eq!(incoming.payload_bytes, 0);
        }
    }

    #[test]
    fn a_refused_write_still_announces_its_payload() {
        let read_only = Shape { read_only: true, ..WRITABLE };
        for (shape, flags, length) in
            [(read_only, 0, 4096), (WRITABLE, 1 << 9, 4096), (WRITABLE, 0, u32::MAX)]
        {
            let incoming = Incoming::parse(header(1, flags, 0, length), shape, ALL);
            assert!(errno(incoming.asked).is_some());
            assert_eq!(incoming.payload_bytes, length);
        }
    }

    #[test]
    fn nothing_writes_to_a_read_only_export() {
        let read_only = Shape { read_only: true, ..WRITABLE };
        for command in [Command::Write, Command::Trim, Command::WriteZeroes] {
            let incoming = Incoming::parse(header(command.code(), 0, 0, 4096), read_only, ALL);
            assert_eq!(errno(incoming.asked), Some(Errno::NotPermitted), "{command}");
        }
        for command in [Command::Read, Command::Flush, Command::Cache, Command::BlockStatus] {
            let incoming = Incoming::parse(header(command.code(), 0, 0, 4096), read_only, ALL);
            assert!(matches!(incoming.asked, Asked::Accepted(_)), "{command}");
        }
    }

    #[test]
    fn each_command_takes_its_own_flags_and_fua() {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
        for (command, allowed) in [
            (Command::Read, FUA | DF),
            (Command::Write, FUA),
            (Command::Flush, FUA),
            (Command::Trim, FUA),
            (Command::Cache, FUA),
            (Command::WriteZeroes, FUA | NO_HOLE | FAST_ZERO),
            (Command::BlockStatus, FUA | REQ_ONE),
        ] {
            for bit in 0..16 {
                let flag = 1 << bit;
                let refused = errno(asked(command, flag, 0, 4096)) == Some(Errno::Invalid);
                assert_eq!(refused, allowed & flag == 0, "{command} {flag:#x}");
            }
        }
    }

    #[test]
    fn flags_that_need_a_feature_are_refused_without_it() {
        let plain = |command: Command, flags| {
            errno(Incoming::parse(header(command.code(), flags, 0, 512), WRITABLE, Features::default()).asked)
        };
        assert_eq!(plain(Command::Read, command_flag::DF), Some(Errno::Invalid));
        assert_eq!(plain(Command::BlockStatus, 0), Some(Errno::Invalid));
        assert_eq!(plain(Command::Read, 0), None);
    }

    #[test]
    fn fast_zeroes_are_refused_where_they_would_be_written_out() {
        use command_flag::{FAST_ZERO, NO_HOLE};
        assert_eq!(
            errno(asked(Command::WriteZeroes, FAST_ZERO | NO_HOLE, 0, 512)),
            Some(Errno::NotSupported)
        );
        assert_eq!(errno(asked(Command::WriteZeroes, FAST_ZERO, 0, 512)), None);
        assert_eq!(errno(asked(Command::WriteZeroes, NO_HOLE, 0, 512)), None);
    }

    #[test]
    fn unknown_commands_are_refused_and_disconnect_is_recognised() {
        for command in [8_u16, 9, u16::MAX] {
            let incoming = Incoming::parse(header(command, 0, 0, 77), WRITABLE, ALL);
            assert_eq!((incoming.command, incoming.payload_bytes), (None, 0));
            assert_eq!(errno(incoming.asked), Some(Errno::Invalid));
        }
        assert_eq!(asked(Command::Disconnect, u16::MAX, u64::MAX, 5), Asked::Disconnect);
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_lies_inside_the_export_and_the_limits(
            flags in prop_oneof![0_u16..32, any::<u16>()],
            command in prop_oneof![0_u16..10, any::<u16>()],
            offset in prop_oneof![0..EXPORT_BYTES + 9, any::<u64>()],
            length in prop_oneof![0_u32..9000, any::<u32>()],
            structured_replies in any::<bool>(),
            block_status in any::<bool>(),
            read_only in any::<bool>(),
        ) {
            let features = Features { structured_replies, block_status };
            let shape = Shape { len_bytes: EXPORT_BYTES, read_only };
            let incoming = Incoming::parse(header(command, flags, offset, length), shape, features);
            prop_assert_eq!(incoming.cookie, 9);
            let Asked::Accepted(request) = incoming.asked else { return Ok(()) };
            prop_assert!(request.payload_bytes() <= PAYLOAD_BYTES_MAX);
            if let Request::Read { range }
            | Request::Write { range, .. }
            | Request::Trim { range, .. }
            | Request::Cache { range }
            | Request::WriteZeroes { range, .. }
            | Request::BlockStatus { range, .. } = request
            {
                prop_assert!(range.offset.0 + range.len.0 <= EXPORT_BYTES);
            }
        }
    }
}
