//! Requests of the transmission phase: a header becomes a request that can be carried out, or a refusal.
//!
//! Invariants:
//! - A [`Range`] lies inside the export, and a payload is at most [`PAYLOAD_BYTES_MAX`] long.
//! - [`Incoming::payload_bytes`] is what follows on the wire whether or not the request is accepted: the shell
//!   consumes it either way, or the stream would be read as headers from there on. The one that is longer than any
//!   server has to follow is [`Asked::Oversize`].
//!
//! It does no input or output.

use units::{ByteLen, ByteOffset, SECTOR_BYTES};

use crate::buffers::buffer_bytes;
use crate::context::{Context, Selection};
use crate::limits::{
    CONTEXTS_MAX, PAYLOAD_BYTES_MAX, SEALED_ZEROES_BYTES_MAX, SEALED_ZEROES_STEP_BYTES, STATUS_BYTES_HELD,
    STATUS_DESCRIPTOR_BYTES,
};
use crate::negotiation::{Features, Shape};
use crate::wire::{Command, Cursor, Errno, RequestHeader, Style, command_flag};

/// Bytes inside an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: ByteOffset,
    pub(crate) len: ByteLen,
}

impl Range {
    /// Whether it is something, and no whole sector.
    fn is_within_sectors(self) -> bool {
        const SECTOR: u64 = SECTOR_BYTES as u64;
        let first_whole = self.offset.0.next_multiple_of(SECTOR);
        let end = self.offset.0.saturating_add(self.len.0);
        self.len.0 > 0 && end / SECTOR * SECTOR <= first_whole
    }
}

/// A request that can be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        /// One descriptor of each context only.
        one: bool,
        /// What is asked for, each under its id; never empty.
        contexts: Vec<(u32, Context)>,
    },
}

impl Request {
    /// What it was made of.
    pub(crate) fn command(&self) -> Command {
        match self {
            Self::Read { .. } => Command::Read,
            Self::Write { .. } => Command::Write,
            Self::Flush => Command::Flush,
            Self::Trim { .. } => Command::Trim,
            Self::Cache { .. } => Command::Cache,
            Self::WriteZeroes { .. } => Command::WriteZeroes,
            Self::BlockStatus { .. } => Command::BlockStatus,
        }
    }

    /// The bytes it is about; `None` for a flush.
    pub(crate) fn range(&self) -> Option<Range> {
        match self {
            Self::Read { range }
            | Self::Write { range, .. }
            | Self::Trim { range, .. }
            | Self::Cache { range }
            | Self::WriteZeroes { range, .. }
            | Self::BlockStatus { range, .. } => Some(*range),
            Self::Flush => None,
        }
    }

    /// Whether it changes what the volume holds.
    pub(crate) fn changes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Trim { .. } | Self::WriteZeroes { .. })
    }

    /// Cuts what takes long down to what others may wait for, and says what is left to do afterwards.
    pub(crate) fn put_off_rest(&mut self) -> Option<Self> {
        let Self::WriteZeroes { range, keep_allocated: true, durable } = self else { return None };
        let step = (range.offset.0 / SEALED_ZEROES_STEP_BYTES + 1) * SEALED_ZEROES_STEP_BYTES;
        let first = step.saturating_sub(range.offset.0);
        let left = range.len.0.checked_sub(first).filter(|left| *left > 0)?;
        let rest = Range { offset: ByteOffset(step), len: ByteLen(left) };
        let rest = Self::WriteZeroes { range: rest, keep_allocated: true, durable: *durable };
        range.len = ByteLen(first);
        // The last step makes all of them durable.
        *durable = false;
        Some(rest)
    }

    /// Bytes of memory that the request holds until its reply has left, beyond what every request does.
    pub(crate) fn held_bytes(&self) -> u32 {
        match self {
            Self::BlockStatus { one: true, contexts, .. } => {
                let few = u32::try_from(contexts.len()).unwrap_or(u32::MAX);
                few.saturating_mul(STATUS_DESCRIPTOR_BYTES)
            }
            Self::BlockStatus { .. } => STATUS_BYTES_HELD,
            _ => {
                // At most PAYLOAD_BYTES_MAX, which is a buffer's size.
                let payload = usize::try_from(self.payload_bytes()).unwrap_or(usize::MAX);
                u32::try_from(buffer_bytes(payload)).unwrap_or(u32::MAX)
            }
        }
    }

    /// Bytes of payload that the request carries, in either direction.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Disconnect,
    Accepted(Request),
    /// Length and contexts are in the payload.
    Filtered(FilteredStatus),
    Refused(Refusal),
    /// A payload, announced under extended headers, that no server has to take or to skip: up to 16 EiB.
    Oversize,
}

/// A header, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incoming {
    pub(crate) cookie: u64,
    /// As it stood in the header: extended replies repeat it, whatever became of the request.
    pub(crate) offset: u64,
    /// `None` where the command is unknown.
    pub(crate) command: Option<Command>,
    /// Bytes that follow the header.
    pub(crate) payload_bytes: u32,
    pub(crate) asked: Asked,
}

/// A block status whose payload has not been read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilteredStatus {
    offset: u64,
    one: bool,
    shape: Shape,
    selected: Selection,
}

/// The longest payload of a block status: its length, and the ids of the contexts that are asked for. A longer list names
/// one twice, or one that was not selected.
pub(crate) const FILTER_BYTES_MAX: usize = 8 + 4 * CONTEXTS_MAX;

impl FilteredStatus {
    /// The request, now that its payload is there.
    pub(crate) fn with_payload(&self, payload: &[u8]) -> Result<Request, Refusal> {
        let mut cursor = Cursor::new(payload);
        let length = cursor.u64().unwrap_or(u64::MAX);
        let ids: Vec<u32> = std::iter::from_fn(|| cursor.u32()).collect();
        match self.selected.narrowed(&ids) {
            Some(contexts) => block_status(self.offset, length, self.shape, self.one, contexts),
            None => Err(refuse(Errno::Invalid, "a metadata context that was not selected, or named twice")),
        }
    }
}

const fn refuse(errno: Errno, message: &'static str) -> Refusal {
    Refusal { errno, message }
}

/// To a change of an export that takes none.
pub(crate) const READ_ONLY: Refusal = refuse(Errno::NotPermitted, "the export is read-only");

const TOO_LONG: &str = "longer than the advertised maximum of 32 MiB";

impl Incoming {
    /// Holds `header` against the export and what was negotiated.
    pub(crate) fn parse(header: RequestHeader, shape: Shape, features: &Features) -> Self {
        let command = Command::from_code(header.command);
        // A write carries its payload whether or not it says so: QEMU (seen up to 10.0) negotiates extended headers and
        // leaves the flag out.
        let says_so = features.style == Style::Extended && header.flags & command_flag::PAYLOAD_LEN != 0;
        let carries_payload = says_so || command == Some(Command::Write);
        // A length is 32 bits long, or has a limit.
        let payload_bytes =
            if carries_payload { u32::try_from(header.length).unwrap_or(u32::MAX) } else { 0 };
        let oversize = features.style == Style::Extended && payload_bytes > PAYLOAD_BYTES_MAX;
        let asked = match command {
            Some(Command::Disconnect) => Asked::Disconnect,
            _ if oversize => Asked::Oversize,
            Some(command) => parse(command, header, shape, features).unwrap_or_else(Asked::Refused),
            None => Asked::Refused(refuse(Errno::Invalid, "unknown command")),
        };
        Self { cookie: header.cookie, offset: header.offset, command, payload_bytes, asked }
    }
}

fn parse(
    command: Command,
    header: RequestHeader,
    shape: Shape,
    features: &Features,
) -> Result<Asked, Refusal> {
    // FUA is valid on every command and means nothing on those that do not write.
    if header.flags & !(command_flag::FUA | flags_of(command, features)) != 0 {
        return Err(refuse(Errno::Invalid, "a command flag that the command does not take"));
    }
    let flag = |bit: u16| header.flags & bit != 0;
    let durable = flag(command_flag::FUA);
    let writes = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes);
    if writes && (shape.read_only || features.read_only) {
        return Err(READ_ONLY);
    }
    let range = || range_of(command, header.offset, header.length, shape);
    let too_long = header.length > u64::from(PAYLOAD_BYTES_MAX);
    let request = match command {
        // Told apart before this is called.
        Command::Disconnect => return Err(refuse(Errno::Invalid, "disconnect takes no reply")),
        Command::Read if too_long => {
            let errno = if features.style.in_chunks() { Errno::Overflow } else { Errno::Invalid };
            return Err(refuse(errno, TOO_LONG));
        }
        Command::Read => Request::Read { range: range()? },
        Command::Write if too_long => return Err(refuse(Errno::Invalid, TOO_LONG)),
        Command::Write => Request::Write { range: range()?, durable },
        Command::Flush => Request::Flush,
        Command::Trim => Request::Trim { range: range()?, durable },
        Command::Cache => Request::Cache { range: range()? },
        Command::WriteZeroes => {
            let keep_allocated = flag(command_flag::NO_HOLE);
            if keep_allocated && flag(command_flag::FAST_ZERO) {
                // Allocated zeroes are encrypted like any other data.
                return Err(refuse(Errno::NotSupported, "zeroes that stay allocated are not fast"));
            }
            let range = range()?;
            if flag(command_flag::FAST_ZERO) && range.is_within_sectors() {
                // Read, zeroed in part and written again.
                return Err(refuse(Errno::NotSupported, "zeroes that cover no whole sector are not fast"));
            }
            if keep_allocated && range.len.0 > SEALED_ZEROES_BYTES_MAX {
                return Err(refuse(
                    Errno::Overflow,
                    "allocated zeroes are written out: at most 4 GiB at once",
                ));
            }
            Request::WriteZeroes { range, keep_allocated, durable }
        }
        Command::BlockStatus => {
            let one = flag(command_flag::REQ_ONE);
            let selected = &features.contexts;
            if selected.is_empty() {
                return Err(refuse(Errno::Invalid, "no metadata context was selected"));
            }
            if !flag(command_flag::PAYLOAD_LEN) {
                block_status(header.offset, header.length, shape, one, selected.iter().collect())?
            } else if is_filter_length(header.length) {
                let (offset, selected) = (header.offset, selected.clone());
                return Ok(Asked::Filtered(FilteredStatus { offset, one, shape, selected }));
            } else {
                return Err(refuse(Errno::Invalid, "a list of contexts that can't be had"));
            }
        }
    };
    Ok(Asked::Accepted(request))
}

/// A length and at least one id.
fn is_filter_length(len: u64) -> bool {
    (12..=FILTER_BYTES_MAX as u64).contains(&len) && len.is_multiple_of(4)
}

fn block_status(
    offset: u64,
    length: u64,
    shape: Shape,
    one: bool,
    contexts: Vec<(u32, Context)>,
) -> Result<Request, Refusal> {
    if length == 0 {
        return Err(refuse(Errno::Invalid, "block status of nothing"));
    }
    Ok(Request::BlockStatus { range: range_of(Command::BlockStatus, offset, length, shape)?, one, contexts })
}

/// Command flags beyond FUA.
fn flags_of(command: Command, features: &Features) -> u16 {
    let extended = features.style == Style::Extended;
    let payload = if extended { command_flag::PAYLOAD_LEN } else { 0 };
    match command {
        Command::Read if features.style.in_chunks() => command_flag::DF,
        Command::Write => payload,
        Command::WriteZeroes => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        Command::BlockStatus => command_flag::REQ_ONE | payload,
        _ => 0,
    }
}

fn range_of(command: Command, offset: u64, length: u64, shape: Shape) -> Result<Range, Refusal> {
    if offset.checked_add(length).is_none_or(|end| end > shape.len_bytes) {
        let errno = match command {
            Command::Write | Command::WriteZeroes => Errno::NoSpace,
            _ => Errno::Invalid,
        };
        return Err(refuse(errno, "past the end of the export"));
    }
    Ok(Range { offset: ByteOffset(offset), len: ByteLen(length) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::context::allocation;

    const EXPORT_BYTES: u64 = 1 << 30;
    const WRITABLE: Shape = Shape { len_bytes: EXPORT_BYTES, read_only: false };

    fn all() -> Features {
        Features { style: Style::Structured, contexts: allocation(), ..Features::default() }
    }

    fn all_extended() -> Features {
        Features { style: Style::Extended, contexts: allocation(), ..Features::default() }
    }

    fn header(command: u16, flags: u16, offset: u64, length: u32) -> RequestHeader {
        RequestHeader { flags, command, cookie: 9, offset, length: length.into() }
    }

    fn extended(command: Command, flags: u16, offset: u64, length: u64) -> Incoming {
        let header = RequestHeader { flags, command: command.code(), cookie: 9, offset, length };
        Incoming::parse(header, Shape { len_bytes: 1 << 60, read_only: false }, &all_extended())
    }

    fn asked(command: Command, flags: u16, offset: u64, length: u32) -> Asked {
        Incoming::parse(header(command.code(), flags, offset, length), WRITABLE, &all()).asked
    }

    #[expect(clippy::needless_pass_by_value, reason = "takes what a call gives")]
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
        let simple = Incoming::parse(header(0, 0, 0, PAYLOAD_BYTES_MAX + 1), WRITABLE, &Features::default());
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
            let incoming = Incoming::parse(header(command.code(), 0, 0, u32::MAX), wide, &all());
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
            let incoming = Incoming::parse(header(1, flags, 0, length), shape, &all());
            assert!(errno(incoming.asked).is_some());
            assert_eq!(incoming.payload_bytes, length);
        }
    }

    #[test]
    fn nothing_writes_to_a_read_only_export() {
        let read_only = Shape { read_only: true, ..WRITABLE };
        for command in [Command::Write, Command::Trim, Command::WriteZeroes] {
            let incoming = Incoming::parse(header(command.code(), 0, 0, 4096), read_only, &all());
            assert_eq!(errno(incoming.asked), Some(Errno::NotPermitted), "{command}");
        }
        for command in [Command::Read, Command::Flush, Command::Cache, Command::BlockStatus] {
            let incoming = Incoming::parse(header(command.code(), 0, 0, 4096), read_only, &all());
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
            errno(
                Incoming::parse(header(command.code(), flags, 0, 512), WRITABLE, &Features::default()).asked,
            )
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
        let fast = |offset, length| errno(asked(Command::WriteZeroes, FAST_ZERO, offset, length));
        for (offset, length) in [(0, 4096), (0, 4097), (4095, 4097), (512, 8192), (0, 0), (77, 0)] {
            assert_eq!(fast(offset, length), None, "{offset} {length}");
        }
        for (offset, length) in [(0, 512), (0, 4095), (1, 4096), (4095, 4096), (512, 7679)] {
            assert_eq!(fast(offset, length), Some(Errno::NotSupported), "{offset} {length}");
        }
        assert_eq!(errno(asked(Command::WriteZeroes, NO_HOLE, 0, 512)), None);
    }

    #[test]
    fn long_zeroes_are_written_in_steps_that_cover_them_exactly() {
        let zeroes = |offset, len, durable| Request::WriteZeroes {
            range: Range { offset: ByteOffset(offset), len: ByteLen(len) },
            keep_allocated: true,
            durable,
        };
        for (offset, len) in
            [(0, 1), (512, SEALED_ZEROES_STEP_BYTES), (77, SEALED_ZEROES_BYTES_MAX), (0, 5 << 24)]
        {
            let mut at = offset;
            let mut left = Some(zeroes(offset, len, true));
            while let Some(mut step) = left {
                left = step.put_off_rest();
                let done = step.range().unwrap();
                assert!(
                    done.offset.0 == at && (1..=SEALED_ZEROES_STEP_BYTES).contains(&done.len.0),
                    "{done:?}"
                );
                assert!(matches!(step, Request::WriteZeroes { durable, .. } if durable == left.is_none()));
                at += done.len.0;
            }
            assert_eq!(at, offset + len);
        }
        let mut holes =
            Request::Trim { range: Range { offset: ByteOffset(0), len: ByteLen(1 << 40) }, durable: true };
        assert_eq!(holes.put_off_rest(), None, "holes are made at once");
    }

    #[test]
    fn unknown_commands_are_refused_and_disconnect_is_recognised() {
        for command in [8_u16, 9, u16::MAX] {
            let incoming = Incoming::parse(header(command, 0, 0, 77), WRITABLE, &all());
            assert_eq!((incoming.command, incoming.payload_bytes), (None, 0));
            assert_eq!(errno(incoming.asked), Some(Errno::Invalid));
        }
        assert_eq!(asked(Command::Disconnect, u16::MAX, u64::MAX, 5), Asked::Disconnect);
    }

    #[test]
    fn extended_headers_carry_64_bits_where_there_is_no_payload() {
        const LONG: u64 = 5 << 40;
        for command in [Command::Trim, Command::Cache, Command::WriteZeroes, Command::BlockStatus] {
            let incoming = extended(command, 0, 1 << 50, LONG);
            let Asked::Accepted(
                Request::Trim { range, .. }
                | Request::Cache { range }
                | Request::WriteZeroes { range, .. }
                | Request::BlockStatus { range, .. },
            ) = incoming.asked
            else {
                panic!("{command}: {:?}", incoming.asked);
            };
            assert_eq!((range.len.0, incoming.payload_bytes), (LONG, 0), "{command}");
        }
        assert_eq!(errno(extended(Command::Read, 0, 0, LONG).asked), Some(Errno::Overflow));
        assert_eq!(errno(extended(Command::Trim, 0, 1 << 60, 1).asked), Some(Errno::Invalid));
        assert_eq!(errno(extended(Command::Trim, 0, 1, u64::MAX).asked), Some(Errno::Invalid));
    }

    #[test]
    fn zeroes_that_are_written_out_have_a_limit() {
        let zeroes = |length| extended(Command::WriteZeroes, command_flag::NO_HOLE, 0, length).asked;
        assert_eq!(errno(zeroes(SEALED_ZEROES_BYTES_MAX)), None);
        assert_eq!(errno(zeroes(SEALED_ZEROES_BYTES_MAX + 1)), Some(Errno::Overflow));
    }

    #[test]
    fn under_extended_headers_a_write_or_the_flag_announces_a_payload() {
        use command_flag::PAYLOAD_LEN;
        for flags in [PAYLOAD_LEN, 0] {
            let write = extended(Command::Write, flags, 0, 512);
            assert!(matches!(write.asked, Asked::Accepted(Request::Write { .. })));
            assert_eq!(write.payload_bytes, 512);
        }
        for command in [Command::Read, Command::Flush, Command::Trim, Command::Cache, Command::WriteZeroes] {
            let uncalled = extended(command, PAYLOAD_LEN, 0, 512);
            assert_eq!(
                (errno(uncalled.asked), uncalled.payload_bytes),
                (Some(Errno::Invalid), 512),
                "{command}"
            );
        }
        let longest = u64::from(PAYLOAD_BYTES_MAX);
        assert!(matches!(extended(Command::Write, PAYLOAD_LEN, 0, longest).asked, Asked::Accepted(_)));
        for length in [longest + 1, 1 << 32, u64::MAX] {
            assert_eq!(extended(Command::Write, PAYLOAD_LEN, 0, length).asked, Asked::Oversize);
            assert_eq!(extended(Command::Trim, PAYLOAD_LEN, 0, length).asked, Asked::Oversize);
        }
        let unknown = RequestHeader { flags: PAYLOAD_LEN, command: 77, cookie: 0, offset: 0, length: 40 };
        let unknown = Incoming::parse(unknown, WRITABLE, &all_extended());
        assert_eq!((errno(unknown.asked), unknown.payload_bytes), (Some(Errno::Invalid), 40));
        let compact = Incoming::parse(header(1, PAYLOAD_LEN, 0, 512), WRITABLE, &all());
        assert_eq!((errno(compact.asked), compact.payload_bytes), (Some(Errno::Invalid), 512));
    }

    #[test]
    fn a_block_status_may_name_its_context_in_a_payload() {
        use command_flag::{PAYLOAD_LEN, REQ_ONE};
        let asked = |flags, length| extended(Command::BlockStatus, flags, 4096, length).asked;
        let Asked::Filtered(status) = asked(PAYLOAD_LEN | REQ_ONE, 12) else { panic!("not taken") };
        let payload =
            |length: u64, context: u32| [length.to_be_bytes().as_slice(), &context.to_be_bytes()].concat();
        let range = Range { offset: ByteOffset(4096), len: ByteLen(7 << 40) };
        let contexts = vec![(1, Context::Allocation)];
        let request = status.with_payload(&payload(7 << 40, 1));
        assert_eq!(request, Ok(Request::BlockStatus { range, one: true, contexts }));
        for wrong in
            [payload(4096, 0), payload(4096, 2), payload(0, 1), payload(u64::MAX, 1), payload(1 << 60, 1)]
        {
            assert_eq!(status.with_payload(&wrong).unwrap_err().errno, Errno::Invalid, "{wrong:?}");
        }
        let longest = FILTER_BYTES_MAX as u64;
        assert!(matches!(asked(PAYLOAD_LEN, longest), Asked::Filtered(_)));
        for length in [1, 8, 11, 13, longest - 1, longest + 4, 4096] {
            assert_eq!(errno(asked(PAYLOAD_LEN, length)), Some(Errno::Invalid), "{length}");
        }
        let none = Features { style: Style::Extended, ..Features::default() };
        let unselected = Incoming::parse(header(7, PAYLOAD_LEN, 0, 12), WRITABLE, &none);
        assert_eq!((errno(unselected.asked), unselected.payload_bytes), (Some(Errno::Invalid), 12));
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_lies_inside_the_export_and_the_limits(
            flags in prop_oneof![0_u16..32, any::<u16>()],
            command in prop_oneof![0_u16..10, any::<u16>()],
            offset in prop_oneof![0..EXPORT_BYTES + 9, any::<u64>()],
            length in prop_oneof![0_u64..9000, any::<u32>().prop_map(u64::from), any::<u64>()],
            payload in proptest::collection::vec(any::<u8>(), 0..=FILTER_BYTES_MAX),
            style in prop_oneof![Just(Style::Simple), Just(Style::Structured), Just(Style::Extended)],
            block_status in any::<bool>(),
            read_only in any::<bool>(),
        ) {
            let contexts = if block_status { allocation() } else { Selection::default() };
            let features = Features { style, contexts, read_only: false };
            let shape = Shape { len_bytes: EXPORT_BYTES, read_only };
            let length = if style == Style::Extended { length } else { length & u64::from(u32::MAX) };
            let header = RequestHeader { flags, command, cookie: 9, offset, length };
            let incoming = Incoming::parse(header, shape, &features);
            prop_assert_eq!((incoming.cookie, incoming.offset), (9, offset));
            let request = match incoming.asked {
                Asked::Accepted(request) => request,
                Asked::Filtered(status) => match status.with_payload(&payload) {
                    Ok(request) => request,
                    Err(_) => return Ok(()),
                },
                _ => return Ok(()),
            };
            prop_assert!(request.payload_bytes() <= PAYLOAD_BYTES_MAX);
            if let Some(range) = request.range() {
                prop_assert!(range.offset.0 + range.len.0 <= EXPORT_BYTES);
            }
        }
    }
}
