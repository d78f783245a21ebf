//! Frames on the wire: `length (u32 LE) ‖ version ‖ kind ‖ CRC-32C (u32 LE) ‖ session (u64 LE) ‖ sequence (u64 LE) ‖ body`.
//!
//! The length counts everything after itself; the checksum covers everything after itself. A `closed` frame has this layout and this
//! body in every version, so that either side can say "your version is not mine".
//!
//! Invariants: nothing is allocated from an unchecked length; a body that leaves bytes over is malformed; a frame is decoded only
//! after its version was found to be this program's.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::SessionError;
use crate::message::{Kind, Message, Reached};

/// The version that is spoken; PROTOCOL.md tells of the one before.
pub const PROTOCOL_VERSION: u8 = 2;

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// Longest frame: a portion of 1 MiB of ciphertext with its records and 65536 runs is 1.6 MiB.
pub const FRAME_BYTES_MAX: usize = 2 << 20;

const CHECKSUM_AT: usize = 2;
const CHECKED_AT: usize = 6;
const SESSION_AT: usize = 6;
const SEQUENCE_AT: usize = 14;
const HEADER_BYTES: usize = 22;

/// A frame that is whole and of this version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) session: u64,
    pub(crate) sequence: u64,
    pub(crate) message: Message,
}

impl Frame {
    /// Prefix included.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let (body, payload) = match &self.message {
            Message::Closed(body) => (encode(body), None),
            Message::Hello(body) => (encode(body), None),
            Message::Welcome(body) => (encode(body), None),
            Message::Offer(body) => (encode(body), None),
            Message::Standing(body) => (encode(body), None),
            Message::Begin(body) => (encode(body), None),
            Message::Begun(body) | Message::Took(body) => (encode(body), None),
            Message::Portion(body, payload) => (encode(body), Some(payload)),
            Message::End(body) | Message::Done(body) => (encode(body), None),
            Message::Refused(body) => (encode(body), None),
            Message::Alive => (Vec::new(), None),
        };
        let payload = payload.map_or(&[][..], Vec::as_slice);
        let length = HEADER_BYTES + body.len() + payload.len();
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + length);
        bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend([PROTOCOL_VERSION, self.message.kind().byte()]);
        bytes.extend([0; 4]);
        bytes.extend(self.session.to_le_bytes());
        bytes.extend(self.sequence.to_le_bytes());
        bytes.extend(body);
        bytes.extend(payload);
        let checksum = checksum(&bytes[PREFIX_BYTES..]);
        bytes[PREFIX_BYTES + CHECKSUM_AT..PREFIX_BYTES + CHECKED_AT].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Takes a frame (without its prefix) apart.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, SessionError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(SessionError::Oversize { bytes: bytes.len() as u64 });
        }
        let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(SessionError::Malformed)?;
        let [version, kind, ..] = *header;
        let kind = Kind::from_byte(kind);
        if version != PROTOCOL_VERSION && kind != Some(Kind::Closed) {
            return Err(SessionError::UnsupportedVersion { theirs: version, ours: PROTOCOL_VERSION });
        }
        let kind = kind.ok_or(SessionError::Malformed)?;
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(number)
        };
        if header[CHECKSUM_AT..CHECKED_AT] != checksum(bytes).to_le_bytes() {
            return Err(SessionError::Checksum);
        }
        let (session, sequence) = (number(SESSION_AT), number(SEQUENCE_AT));
        Ok(Self { session, sequence, message: decode_message(kind, body)? })
    }
}

fn decode_message(kind: Kind, body: &[u8]) -> Result<Message, SessionError> {
    Ok(match kind {
        Kind::Closed => Message::Closed(decode(body)?),
        Kind::Hello => Message::Hello(decode(body)?),
        Kind::Welcome => Message::Welcome(decode(body)?),
        Kind::Offer => Message::Offer(decode(body)?),
        Kind::Standing => Message::Standing(decode(body)?),
        Kind::Begin => Message::Begin(decode(body)?),
        Kind::Begun => Message::Begun(decode(body)?),
        Kind::Portion => {
            let (reached, payload): (Reached, _) =
                postcard::take_from_bytes(body).map_err(|_| SessionError::Malformed)?;
            Message::Portion(reached, payload.to_vec())
        }
        Kind::Took => Message::Took(decode(body)?),
        Kind::End => Message::End(decode(body)?),
        Kind::Done => Message::Done(decode(body)?),
        Kind::Refused => Message::Refused(decode(body)?),
        Kind::Alive if body.is_empty() => Message::Alive,
        Kind::Alive => return Err(SessionError::Malformed),
    })
}

/// Over session, sequence and body, and before them version and kind: a bit that turns in any of them is found.
fn checksum(frame: &[u8]) -> u32 {
    let head = frame.get(..CHECKSUM_AT).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c(head), frame.get(CHECKED_AT..).unwrap_or_default())
}

fn encode<B: Serialize>(body: &B) -> Vec<u8> {
    // Into memory, of fixed structures: nothing of it can fail.
    postcard::to_stdvec(body).unwrap_or_default()
}

fn decode<B: DeserializeOwned>(body: &[u8]) -> Result<B, SessionError> {
    match postcard::take_from_bytes(body) {
        Ok((decoded, [])) => Ok(decoded),
        Ok(_) | Err(_) => Err(SessionError::Malformed),
    }
}

/// Cuts a byte stream into frames. For shells that read whatever has arrived.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    taken: usize,
}

impl FrameBuffer {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame without its prefix, `None` while it has not all arrived.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, SessionError> {
        let pending = &self.bytes[self.taken..];
        let Some((prefix, rest)) = pending.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
        if length > FRAME_BYTES_MAX {
            return Err(SessionError::Oversize { bytes: length as u64 });
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        let frame = frame.to_vec();
        self.taken += PREFIX_BYTES + length;
        Ok(Some(frame))
    }
}

/// The sequence of one direction, and the session that both are of.
#[derive(Debug, Default)]
pub(crate) struct Numbering {
    pub(crate) session: u64,
    sent: u64,
    taken: u64,
}

impl Numbering {
    /// A frame to send, with the next number.
    pub(crate) fn frame(&mut self, message: Message) -> Vec<u8> {
        self.sent += 1;
        Frame { session: self.session, sequence: self.sent, message }.to_bytes()
    }

    /// Whether a frame is the next of this session.
    pub(crate) fn check(&mut self, session: u64, sequence: u64) -> Result<(), SessionError> {
        if session != self.session {
            return Err(SessionError::Replayed);
        }
        if crate::mutation::is_broken(crate::mutation::Mutation::ReuseSequence) {
            return Ok(());
        }
        match sequence.cmp(&(self.taken + 1)) {
            std::cmp::Ordering::Less => Err(SessionError::Repeated),
            std::cmp::Ordering::Greater => Err(SessionError::Reordered),
            std::cmp::Ordering::Equal => {
                self.taken = sequence;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use units::{Lba, NodeId, VolumeId};

    use super::*;
    use crate::message::Hello;

    fn portion() -> Frame {
        let reached = Reached { volume: VolumeId([1; 16]), snapshot: VolumeId([2; 16]), at: Lba(3) };
        Frame { session: 4, sequence: 5, message: Message::Portion(reached, vec![6; 100]) }
    }

    #[test]
    fn a_frame_is_read_back_and_any_turned_bit_is_found() {
        let bytes = portion().to_bytes();
        let frame = &bytes[PREFIX_BYTES..];
        assert_eq!(Frame::from_bytes(frame), Ok(portion()));
        for bit in 0..frame.len() * 8 {
            let mut turned = frame.to_vec();
            turned[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::from_bytes(&turned).is_err(), "bit {bit}");
        }
        for end in 0..frame.len() {
            assert!(Frame::from_bytes(&frame[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn another_version_is_told_and_a_refusal_is_understood_in_every_one() {
        let hello =
            Frame { session: 0, sequence: 1, message: Message::Hello(Hello { node: NodeId([9; 16]) }) };
        let mut bytes = hello.to_bytes()[PREFIX_BYTES..].to_vec();
        bytes[0] = PROTOCOL_VERSION + 1;
        assert_eq!(
            Frame::from_bytes(&bytes),
            Err(SessionError::UnsupportedVersion { theirs: PROTOCOL_VERSION + 1, ours: PROTOCOL_VERSION })
        );
        let error = SessionError::UnsupportedVersion { theirs: 1, ours: 2 };
        let closed = Frame { session: 0, sequence: 1, message: Message::Closed(error) };
        let mut bytes = closed.to_bytes()[PREFIX_BYTES..].to_vec();
        bytes[0] = PROTOCOL_VERSION + 1;
        let checksum = checksum(&bytes);
        bytes[CHECKSUM_AT..CHECKED_AT].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Frame::from_bytes(&bytes), Ok(closed));
    }

    #[test]
    fn a_stream_cut_anywhere_gives_the_same_frames_and_a_length_past_the_limit_is_refused() {
        let one = portion().to_bytes();
        let stream = [one.clone(), one.clone()].concat();
        for cut in 0..=stream.len() {
            let mut buffer = FrameBuffer::default();
            let mut frames = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                buffer.push(part);
                while let Some(frame) = buffer.next_frame().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, [&one[PREFIX_BYTES..], &one[PREFIX_BYTES..]], "cut at {cut}");
        }
        let limit = u32::try_from(FRAME_BYTES_MAX).unwrap();
        for (length, fits) in [(limit, true), (limit + 1, false)] {
            let mut buffer = FrameBuffer::default();
            buffer.push(&length.to_le_bytes());
            assert_eq!(buffer.next_frame().is_ok(), fits);
        }
    }
}
