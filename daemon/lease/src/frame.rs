//! Frames on the wire: `length (u32 LE) ‖ version ‖ kind ‖ transcript (32) ‖ signature (64) ‖ body (postcard)`.
//!
//! The length counts everything after itself. A `refused` frame has no transcript and no signature, and its
//! layout is the same in every version, so that either side can say "your version is not mine".
//!
//! Invariants: nothing is allocated from an unchecked length; a body that leaves bytes over is malformed; a frame
//! is decoded only after its version was found to be this program's.

use crate::error::SessionError;
use crate::limits::{FRAME_BYTES_MAX, PROTOCOL_VERSION};
use crate::message::{Body, Kind, Refused};

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

const TRANSCRIPT_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;
const HEADER_BYTES: usize = 2;
const SIGNED_HEADER_BYTES: usize = HEADER_BYTES + TRANSCRIPT_BYTES + SIGNATURE_BYTES;

/// The length that a prefix announces, once it is known to be allowed.
pub fn announced_length(prefix: [u8; PREFIX_BYTES]) -> Result<usize, SessionError> {
    let bytes = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if bytes > FRAME_BYTES_MAX {
        return Err(SessionError::Oversize { bytes, limit: FRAME_BYTES_MAX });
    }
    Ok(bytes)
}

/// A frame taken apart; nothing in it is trusted yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawFrame<'a> {
    pub(crate) kind: Kind,
    pub(crate) transcript: [u8; TRANSCRIPT_BYTES],
    pub(crate) signature: [u8; SIGNATURE_BYTES],
    pub(crate) body: &'a [u8],
}

/// What a frame is.
#[derive(Debug)]
pub(crate) enum Incoming<'a> {
    Signed(RawFrame<'a>),
    Refused(Refused),
}

/// Takes a frame (without its prefix) apart.
pub(crate) fn parse(frame: &[u8]) -> Result<Incoming<'_>, SessionError> {
    if frame.len() > FRAME_BYTES_MAX {
        return Err(SessionError::Oversize { bytes: frame.len(), limit: FRAME_BYTES_MAX });
    }
    let [version, kind, rest @ ..] = frame else {
        return Err(SessionError::Malformed { what: "frame header" });
    };
    if *kind == Kind::Refused.byte() {
        return decode_exactly(rest, Kind::Refused.label()).map(Incoming::Refused);
    }
    if *version != PROTOCOL_VERSION {
        return Err(SessionError::UnsupportedVersion { theirs: *version, ours: PROTOCOL_VERSION });
    }
    let kind = Kind::from_byte(*kind).ok_or(SessionError::UnexpectedKind { kind: *kind })?;
    let cut = || SessionError::Malformed { what: kind.label() };
    let (transcript, rest) = rest.split_first_chunk().ok_or_else(cut)?;
    let (signature, body) = rest.split_first_chunk().ok_or_else(cut)?;
    Ok(Incoming::Signed(RawFrame { kind, transcript: *transcript, signature: *signature, body }))
}

/// Decodes a body and checks its limits.
pub(crate) fn decode<B: Body>(body: &[u8]) -> Result<B, SessionError> {
    let decoded: B = decode_exactly(body, B::KIND.label())?;
    decoded.check()?;
    Ok(decoded)
}

fn decode_exactly<'de, T: serde::Deserialize<'de>>(
    bytes: &'de [u8],
    what: &'static str,
) -> Result<T, SessionError> {
    match postcard::take_from_bytes(bytes) {
        Ok((decoded, [])) => Ok(decoded),
        Ok(_) | Err(_) => Err(SessionError::Malformed { what }),
    }
}

/// Encodes a body. Fails only where a body of ours is over a limit of ours.
pub(crate) fn encode_body<B: Body>(body: &B) -> Result<Vec<u8>, SessionError> {
    body.check()?;
    postcard::to_stdvec(body).map_err(|_| SessionError::Malformed { what: B::KIND.label() })
}

/// Puts a signed frame together, prefix included.
pub(crate) fn assemble(
    kind: Kind,
    transcript: &[u8; TRANSCRIPT_BYTES],
    signature: &[u8; SIGNATURE_BYTES],
    body: &[u8],
) -> Result<Vec<u8>, SessionError> {
    let length = SIGNED_HEADER_BYTES + body.len();
    let mut frame = with_header(kind, length)?;
    frame.extend_from_slice(transcript);
    frame.extend_from_slice(signature);
    frame.extend_from_slice(body);
    Ok(frame)
}

/// The whole bytes of a `refused` frame.
pub(crate) fn assemble_refused(refused: &Refused) -> Vec<u8> {
    // A refusal is a handful of bytes: neither the encoding nor the limit can fail.
    let body = postcard::to_stdvec(refused).unwrap_or_default();
    let mut frame = with_header(Kind::Refused, HEADER_BYTES + body.len()).unwrap_or_default();
    frame.extend_from_slice(&body);
    frame
}

fn with_header(kind: Kind, length: usize) -> Result<Vec<u8>, SessionError> {
    let oversize = || SessionError::Oversize { bytes: length, limit: FRAME_BYTES_MAX };
    if length > FRAME_BYTES_MAX {
        return Err(oversize());
    }
    let prefix = u32::try_from(length).map_err(|_| oversize())?;
    let mut frame = Vec::with_capacity(PREFIX_BYTES + length);
    frame.extend_from_slice(&prefix.to_le_bytes());
    frame.extend_from_slice(&[PROTOCOL_VERSION, kind.byte()]);
    Ok(frame)
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
        let length = announced_length(*prefix)?;
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        let frame = frame.to_vec();
        self.taken += PREFIX_BYTES + length;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SessionRefusal;
    use crate::message::ChallengeRequest;

    #[test]
    fn length_prefix_is_refused_one_past_the_limit() {
        let limit = u32::try_from(FRAME_BYTES_MAX).unwrap();
        assert_eq!(announced_length(limit.to_le_bytes()), Ok(FRAME_BYTES_MAX));
        assert_eq!(
            announced_length((limit + 1).to_le_bytes()),
            Err(SessionError::Oversize { bytes: FRAME_BYTES_MAX + 1, limit: FRAME_BYTES_MAX })
        );
    }

    #[test]
    fn a_stream_cut_anywhere_gives_the_same_frames() {
        let body = encode_body(&ChallengeRequest {}).unwrap();
        let one = assemble(Kind::ChallengeRequest, &[1; 32], &[2; 64], &body).unwrap();
        let two = assemble_refused(&Refused { reason: SessionRefusal::NotEnrolled });
        let stream = [one.clone(), two.clone()].concat();
        for cut in 0..=stream.len() {
            let mut buffer = FrameBuffer::default();
            let mut frames = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                buffer.push(part);
                while let Some(frame) = buffer.next_frame().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, [&one[PREFIX_BYTES..], &two[PREFIX_BYTES..]], "cut at {cut}");
        }
    }

    #[test]
    fn other_versions_unknown_kinds_and_leftovers_are_told_apart() {
        let parse_err = |frame: &[u8]| parse(frame).unwrap_err();
        assert_eq!(parse_err(&[]), SessionError::Malformed { what: "frame header" });
        assert_eq!(
            parse_err(&[9, 1]),
            SessionError::UnsupportedVersion { theirs: 9, ours: PROTOCOL_VERSION }
        );
        assert_eq!(parse_err(&[PROTOCOL_VERSION, 99]), SessionError::UnexpectedKind { kind: 99 });
        assert_eq!(parse_err(&[PROTOCOL_VERSION, 3, 0]), SessionError::Malformed { what: "grant" });
        assert_eq!(
            decode::<ChallengeRequest>(&[0]),
            Err(SessionError::Malformed { what: "challenge-request" })
        );
        // A refusal is understood whatever the version says.
        let mut refused =
            assemble_refused(&Refused { reason: SessionRefusal::UnsupportedVersion { supported: 7 } });
        refused[PREFIX_BYTES] = 7;
        assert!(matches!(parse(&refused[PREFIX_BYTES..]), Ok(Incoming::Refused(_))));
    }
}
