//! Replies: outcomes become bytes, and a batch of them leaves in as few writes as the socket takes.
//!
//! Invariants:
//! - A read's data is never copied: header and data are two slices of one vectored write.
//! - What each reply holds (its share of the connection's budget) is released when its last byte has left.
//! - Once the key is gone, [`Batch::refuse`] turns every reply that has not begun to leave into `ESHUTDOWN` and
//!   drops its data.
//!
//! It does no input or output.

use std::collections::VecDeque;
use std::io::IoSlice;

use crate::buffers::Buffer;
use crate::limits::{ERROR_MESSAGE_BYTES_MAX, REPLIES_PER_WRITE_MAX};
use crate::request::Refusal;
use crate::wire::{
    ChunkHeader, EXTENDED_CHUNK_HEADER_BYTES, Errno, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC, Style, chunk,
};

/// A run of bytes in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StatusRun {
    pub(crate) len_bytes: u64,
    /// In the meaning of the context.
    pub(crate) flags: u32,
}

/// What one context tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// Of the context.
    pub(crate) id: u32,
    pub(crate) runs: Vec<StatusRun>,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    Done,
    /// All that a read asked for.
    Data(Buffer),
    /// Of each context that was asked for; at least one.
    Status(Vec<Status>),
    Refused(Refusal),
}

/// An extended chunk header and an offset: the longest head there is.
const HEAD_BYTES_MAX: usize = EXTENDED_CHUNK_HEADER_BYTES + 8;

/// What a reply repeats of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyTo {
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
}

/// The refusal of everything once the key is gone.
pub(crate) const SEALED: Refusal =
    Refusal { errno: Errno::Shutdown, message: "sealed: the key is gone; reconnect after the next push" };

#[derive(Debug)]
enum Body {
    Empty,
    Data(Buffer),
    Owned(Vec<u8>),
    Fixed(&'static [u8]),
}

impl Body {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Empty => &[],
            Self::Data(buffer) => buffer.as_bytes(),
            Self::Owned(bytes) => bytes,
            Self::Fixed(bytes) => bytes,
        }
    }
}

/// One reply in wire form, and what it holds until it has left.
#[derive(Debug)]
struct Encoded<H> {
    to: ReplyTo,
    head: [u8; HEAD_BYTES_MAX],
    head_len: usize,
    body: Body,
    /// An error tells nothing that took a key to learn: it may leave after a seal.
    refusal: bool,
    /// Released with the reply.
    _hold: H,
}

impl<H> Encoded<H> {
    fn len(&self) -> usize {
        self.head_len + self.body.as_bytes().len()
    }

    fn set(&mut self, parts: &[&[u8]], body: Body) {
        self.head_len = 0;
        for part in parts {
            self.head[self.head_len..self.head_len + part.len()].copy_from_slice(part);
            self.head_len += part.len();
        }
        self.body = body;
    }

    fn set_simple(&mut self, error: u32, body: Body) {
        let mut head = [0; SIMPLE_REPLY_BYTES];
        head[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        head[4..8].copy_from_slice(&error.to_be_bytes());
        head[8..16].copy_from_slice(&self.to.cookie.to_be_bytes());
        self.set(&[&head], body);
    }

    /// One chunk that is the whole reply; `fields` come between the chunk header and the body.
    fn set_chunk(&mut self, style: Style, kind: u16, fields: &[&[u8]], body: Body) {
        let len: usize = fields.iter().map(|field| field.len()).sum::<usize>() + body.as_bytes().len();
        // Payloads are bounded by the limits, far below 4 GiB.
        let length = u32::try_from(len).unwrap_or(u32::MAX);
        let header = ChunkHeader { flags: chunk::FLAG_DONE, kind, cookie: self.to.cookie, length };
        let (compact, extended) = (header.encode(), header.encode_extended(self.to.offset));
        let header: &[u8] = if style == Style::Extended { &extended } else { &compact };
        let mut parts: [&[u8]; 3] = [header, &[], &[]];
        for (part, field) in parts[1..].iter_mut().zip(fields) {
            *part = field;
        }
        self.set(&parts, body);
    }

    /// A chunk for each context; the last is the end of the reply.
    fn set_status(&mut self, style: Style, contexts: &[Status]) {
        let mut body = Vec::new();
        for (nth, Status { id, runs }) in (1..).zip(contexts) {
            let flags = if nth == contexts.len() { chunk::FLAG_DONE } else { 0 };
            // As many runs as the limits allow, far below 2³² bytes.
            let fits = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
            if style == Style::Extended {
                let length = fits(8 + 16 * runs.len());
                let header =
                    ChunkHeader { flags, kind: chunk::BLOCK_STATUS_EXT, cookie: self.to.cookie, length };
                body.extend_from_slice(&header.encode_extended(self.to.offset));
                body.extend_from_slice(&id.to_be_bytes());
                body.extend_from_slice(&fits(runs.len()).to_be_bytes());
                for run in runs {
                    body.extend_from_slice(&run.len_bytes.to_be_bytes());
                    body.extend_from_slice(&u64::from(run.flags).to_be_bytes());
                }
            } else {
                let length = fits(4 + 8 * runs.len());
                let header = ChunkHeader { flags, kind: chunk::BLOCK_STATUS, cookie: self.to.cookie, length };
                body.extend_from_slice(&header.encode());
                body.extend_from_slice(&id.to_be_bytes());
                for run in runs {
                    // No longer than the request, whose length had 32 bits.
                    body.extend_from_slice(&u32::try_from(run.len_bytes).unwrap_or(u32::MAX).to_be_bytes());
                    body.extend_from_slice(&run.flags.to_be_bytes());
                }
            }
        }
        self.set(&[], Body::Owned(body));
    }

    fn encode(&mut self, outcome: Outcome, style: Style) {
        self.refusal = matches!(outcome, Outcome::Refused(_));
        match (outcome, style.in_chunks()) {
            (Outcome::Done, false) => self.set_simple(0, Body::Empty),
            (Outcome::Done, true) => self.set_chunk(style, chunk::NONE, &[], Body::Empty),
            (Outcome::Data(data), false) => self.set_simple(0, Body::Data(data)),
            // A data chunk of no bytes is forbidden.
            (Outcome::Data(data), true) if data.as_bytes().is_empty() => {
                self.set_chunk(style, chunk::NONE, &[], Body::Empty);
            }
            (Outcome::Data(data), true) => {
                let offset = self.to.offset.to_be_bytes();
                self.set_chunk(style, chunk::OFFSET_DATA, &[&offset], Body::Data(data));
            }
            (Outcome::Status(contexts), true) => self.set_status(style, &contexts),
            // Block status is parsed only where structured replies were negotiated.
            (Outcome::Status(_), false) => self.set_simple(Errno::Invalid.code(), Body::Empty),
            (Outcome::Refused(refusal), false) => self.set_simple(refusal.errno.code(), Body::Empty),
            (Outcome::Refused(refusal), true) => {
                let message = refusal.message.as_bytes();
                let message = &message[..message.len().min(ERROR_MESSAGE_BYTES_MAX)];
                let message_len = u16::try_from(message.len()).unwrap_or(0);
                let errno = refusal.errno.code().to_be_bytes();
                self.set_chunk(
                    style,
                    chunk::ERROR,
                    &[&errno, &message_len.to_be_bytes()],
                    Body::Fixed(message),
                );
            }
        }
    }
}

/// Replies on their way out, in order. `H` is what a reply holds until it has left.
#[derive(Debug)]
pub(crate) struct Batch<H> {
    style: Style,
    replies: VecDeque<Encoded<H>>,
    /// Bytes of the first reply that have left.
    front_sent: usize,
}

impl<H> Batch<H> {
    pub(crate) fn new(style: Style) -> Self {
        Self { style, replies: VecDeque::new(), front_sent: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Replies in it.
    pub(crate) fn len(&self) -> usize {
        self.replies.len()
    }

    /// Puts `earlier` in front, of which a part may have left; of `self` nothing has.
    pub(crate) fn prepend(&mut self, mut earlier: Self) {
        debug_assert_eq!(self.front_sent, 0, "two replies can't both be partly out");
        earlier.replies.append(&mut self.replies);
        *self = earlier;
    }

    pub(crate) fn push(&mut self, to: ReplyTo, outcome: Outcome, hold: H) {
        let mut encoded = Encoded {
            to,
            head: [0; HEAD_BYTES_MAX],
            head_len: 0,
            body: Body::Empty,
            refusal: false,
            _hold: hold,
        };
        encoded.encode(outcome, self.style);
        self.replies.push_back(encoded);
    }

    /// What is left to send, as slices for one vectored write.
    pub(crate) fn slices(&self) -> Vec<IoSlice<'_>> {
        let count = self.replies.len().min(REPLIES_PER_WRITE_MAX);
        let mut slices = Vec::with_capacity(2 * count);
        let mut skip = self.front_sent;
        for reply in self.replies.iter().take(count) {
            for part in [&reply.head[..reply.head_len], reply.body.as_bytes()] {
                let rest = &part[skip.min(part.len())..];
                skip -= part.len() - rest.len();
                if !rest.is_empty() {
                    slices.push(IoSlice::new(rest));
                }
            }
        }
        slices
    }

    /// `len` bytes have left.
    pub(crate) fn advance(&mut self, len: usize) {
        self.front_sent += len;
        while let Some(front) = self.replies.front() {
            let front_len = front.len();
            if self.front_sent < front_len {
                return;
            }
            self.front_sent -= front_len;
            self.replies.pop_front();
        }
        debug_assert_eq!(self.front_sent, 0, "no more can leave than was there");
    }

    /// The key is gone: every reply that tells something becomes `ESHUTDOWN`. `false` where one of them is partly
    /// out, which only closing the connection can end.
    pub(crate) fn refuse(&mut self) -> bool {
        if self.front_sent > 0 && self.replies.front().is_some_and(|front| !front.refusal) {
            return false;
        }
        for reply in self.replies.iter_mut().filter(|reply| !reply.refusal) {
            reply.encode(Outcome::Refused(SEALED), self.style);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::buffers::Buffers;

    fn bytes_of<H>(batch: &Batch<H>) -> Vec<u8> {
        batch.slices().iter().flat_map(|slice| slice.to_vec()).collect()
    }

    fn one(style: Style, outcome: Outcome) -> Vec<u8> {
        let mut batch = Batch::new(style);
        batch.push(ReplyTo { cookie: 0x0807_0605_0403_0201, offset: 512 }, outcome, ());
        bytes_of(&batch)
    }

    fn buffer(bytes: &[u8]) -> Buffer {
        let mut buffer = Arc::new(Buffers::default()).take(bytes.len());
        buffer.as_mut_bytes().copy_from_slice(bytes);
        buffer
    }

    fn to(cookie: u64) -> ReplyTo {
        ReplyTo { cookie, offset: 0 }
    }

    const COOKIE: [u8; 8] = [8, 7, 6, 5, 4, 3, 2, 1];

    #[test]
    fn simple_replies_have_the_published_layout() {
        let head = |error: u8| [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, error], COOKIE.as_slice()].concat();
        assert_eq!(one(Style::Simple, Outcome::Done), head(0));
        let data = Outcome::Data(buffer(&[7, 7]));
        assert_eq!(one(Style::Simple, data), [head(0), vec![7, 7]].concat());
        let refused = Outcome::Refused(Refusal { errno: Errno::NoSpace, message: "full" });
        assert_eq!(one(Style::Simple, refused), head(28), "a simple error carries no message");
    }

    #[test]
    fn structured_replies_have_the_published_layout() {
        let head = |kind: [u8; 2], len: u8| {
            [&[0x66, 0x8e, 0x33, 0xef, 0, 1, kind[0], kind[1]], COOKIE.as_slice(), &[0, 0, 0, len]].concat()
        };
        assert_eq!(one(Style::Structured, Outcome::Done), head([0, 0], 0));
        let data = Outcome::Data(buffer(&[7, 7]));
        assert_eq!(
            one(Style::Structured, data),
            [head([0, 1], 10), vec![0, 0, 0, 0, 0, 0, 2, 0, 7, 7]].concat()
        );
        let nothing = Outcome::Data(buffer(&[]));
        assert_eq!(one(Style::Structured, nothing), head([0, 0], 0), "no data chunk without data");
        let refused = Outcome::Refused(Refusal { errno: Errno::NoSpace, message: "full" });
        assert_eq!(
            one(Style::Structured, refused),
            [head([0x80, 1], 10), b"\0\0\0\x1c\0\x04full".to_vec()].concat()
        );
        let runs = vec![StatusRun { len_bytes: 4096, flags: 3 }, StatusRun { len_bytes: 512, flags: 0 }];
        let body = [0, 0, 0, 1, 0, 0, 0x10, 0, 0, 0, 0, 3, 0, 0, 2, 0, 0, 0, 0, 0];
        let first = Status { id: 1, runs };
        let status = Outcome::Status(vec![first.clone()]);
        assert_eq!(one(Style::Structured, status), [head([0, 5], 20), body.to_vec()].concat());
        // Of two contexts the last chunk alone is the end.
        let second = Status { id: 2, runs: vec![StatusRun { len_bytes: 4608, flags: 1 }] };
        let mut not_done = head([0, 5], 20);
        not_done[5] = 0;
        let two = [not_done, body.to_vec(), head([0, 5], 12), vec![0, 0, 0, 2, 0, 0, 0x12, 0, 0, 0, 0, 1]];
        assert_eq!(one(Style::Structured, Outcome::Status(vec![first, second])), two.concat());
    }

    #[test]
    fn extended_replies_have_the_published_layout_and_repeat_the_offset() {
        let head = |kind: [u8; 2], len: u8| {
            let start = [0x6e, 0x8a, 0x27, 0x8c, 0, 1, kind[0], kind[1]];
            [start.as_slice(), &COOKIE, &[0, 0, 0, 0, 0, 0, 2, 0], &[0, 0, 0, 0, 0, 0, 0, len]].concat()
        };
        assert_eq!(one(Style::Extended, Outcome::Done), head([0, 0], 0));
        let data = [head([0, 1], 10), vec![0, 0, 0, 0, 0, 0, 2, 0, 7, 7]].concat();
        assert_eq!(one(Style::Extended, Outcome::Data(buffer(&[7, 7]))), data);
        let refused = Outcome::Refused(Refusal { errno: Errno::NoSpace, message: "full" });
        let error = [head([0x80, 1], 10), b"\0\0\0\x1c\0\x04full".to_vec()].concat();
        assert_eq!(one(Style::Extended, refused), error);
        let runs = vec![StatusRun { len_bytes: 3 << 40, flags: 3 }, StatusRun { len_bytes: 512, flags: 0 }];
        let body = [
            [0, 0, 0, 1, 0, 0, 0, 2].as_slice(),
            &(3_u64 << 40).to_be_bytes(),
            &3_u64.to_be_bytes(),
            &512_u64.to_be_bytes(),
            &0_u64.to_be_bytes(),
        ];
        let status = Outcome::Status(vec![Status { id: 1, runs }]);
        assert_eq!(one(Style::Extended, status), [head([0, 6], 40), body.concat()].concat());
    }

    fn outcome() -> impl Strategy<Value = (bool, usize)> {
        (any::<bool>(), 0_usize..100)
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_stream_is_the_same_and_holds_go_with_the_last_byte(
            style in prop_oneof![Just(Style::Simple), Just(Style::Structured), Just(Style::Extended)],
            replies in proptest::collection::vec(outcome(), 1..20),
            cuts in proptest::collection::vec(1_usize..60, 1..200),
        ) {
            let mut batch = Batch::new(style);
            let mut ends = Vec::new();
            let mut held = Vec::new();
            for (cookie, (with_data, len)) in (0_u8..).zip(replies) {
                let hold = Rc::new(());
                held.push(Rc::downgrade(&hold));
                let outcome = if with_data {
                    Outcome::Data(buffer(&vec![cookie; len]))
                } else {
                    Outcome::Done
                };
                batch.push(to(u64::from(cookie)), outcome, hold);
                ends.push(bytes_of(&batch).len());
            }
            let whole = bytes_of(&batch);
            let mut sent = Vec::new();
            for cut in cuts.iter().cycle() {
                if batch.is_empty() {
                    break;
                }
                let left = bytes_of(&batch);
                let step = (*cut).min(left.len());
                sent.extend_from_slice(&left[..step]);
                batch.advance(step);
                for (end, hold) in ends.iter().zip(&held) {
                    prop_assert_eq!(hold.upgrade().is_none(), sent.len() >= *end);
                }
            }
            prop_assert_eq!(sent, whole);
        }
    }

    #[test]
    fn refusing_leaves_no_data_behind() {
        let mut batch = Batch::new(Style::Structured);
        batch.push(to(1), Outcome::Data(buffer(&[0xaa; 64])), ());
        batch.push(to(2), Outcome::Done, ());
        let invalid = Refusal { errno: Errno::Invalid, message: "no" };
        batch.push(to(3), Outcome::Refused(invalid), ());
        assert!(batch.refuse());
        let bytes = bytes_of(&batch);
        assert!(!bytes.contains(&0xaa));
        let mut expected = Batch::new(Style::Structured);
        for (cookie, refusal) in [(1, SEALED), (2, SEALED), (3, invalid)] {
            expected.push(to(cookie), Outcome::Refused(refusal), ());
        }
        assert_eq!(bytes, bytes_of(&expected));
    }

    #[test]
    fn a_reply_that_is_partly_out_cannot_be_refused_unless_it_is_a_refusal() {
        let mut batch = Batch::new(Style::Simple);
        batch.push(to(1), Outcome::Data(buffer(&[0xaa; 64])), ());
        batch.advance(20);
        assert!(!batch.refuse());

        let mut batch = Batch::new(Style::Structured);
        batch.push(to(1), Outcome::Refused(SEALED), ());
        batch.push(to(2), Outcome::Done, ());
        let whole = bytes_of(&batch);
        batch.advance(20);
        assert!(batch.refuse());
        assert_eq!(bytes_of(&batch)[..26], whole[20..46], "the one that is partly out goes on unchanged");
    }
}
