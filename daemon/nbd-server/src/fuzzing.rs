//! The sans-IO half of the head for the fuzz target: a client's whole stream goes in, the server's whole stream comes
//! out. No socket, no volume: requests that are taken are answered from nothing, in order.
//!
//! Behind the feature `fuzzing`; no program is built with it.

use std::sync::Arc;

use units::VolumeId;

use crate::buffers::Buffers;
use crate::context::Context;
use crate::negotiation::{Directory, Features, Negotiation, Shape, Step, Tls, Unavailable};
use crate::reply::{Batch, Outcome, ReplyTo, Status, StatusRun};
use crate::request::{Asked, Incoming, Refusal, Request};
use crate::wire::{Errno, RequestHeader, Style};

/// The one snapshot that each export can be compared with.
const SNAPSHOT: VolumeId = VolumeId([5; 16]);

/// Bytes of the export `disk`, and of the read-only `archive`.
pub const EXPORT_BYTES: u64 = 1 << 40;

/// Reads up to this length are answered with data, longer ones with an error, so that an input stays quick.
pub const READ_BYTES_ANSWERED: u64 = 4096;

/// What a stream led to.
#[derive(Debug)]
pub struct Spoken {
    /// Everything the server sent before transmission.
    pub handshake: Vec<u8>,
    /// Bytes of the input that the handshake took.
    pub handshake_bytes: usize,
    /// How transmission began, if it did.
    pub transmission: Option<Transmission>,
}

/// A transmission phase to its end.
#[derive(Debug)]
pub struct Transmission {
    /// 0 simple, 1 structured, 2 extended.
    pub style: u8,
    /// The ids of the metadata contexts that were selected.
    pub contexts: Vec<u32>,
    /// Whether the export refuses changes.
    pub read_only: bool,
    /// Everything the server sent.
    pub replies: Vec<u8>,
    /// Bytes of the input that were taken as whole requests.
    pub taken_bytes: usize,
}

struct Shelf;

impl Directory for Shelf {
    type Export = Shape;

    fn find(&self, label: &str) -> Result<Shape, Unavailable> {
        match label {
            "disk" => Ok(Shape { len_bytes: EXPORT_BYTES, read_only: false }),
            "archive" => Ok(Shape { len_bytes: EXPORT_BYTES, read_only: true }),
            "asleep" => Err(Unavailable::Shutdown),
            "barred" => Err(Unavailable::Forbidden),
            _ => Err(Unavailable::Unknown),
        }
    }

    fn shape(&self, export: &Shape) -> Shape {
        *export
    }

    fn snapshots(&self, _: &Shape) -> Vec<VolumeId> {
        vec![SNAPSHOT]
    }

    fn labels(&self) -> Result<Vec<String>, Unavailable> {
        Ok(["archive", "disk"].map(str::to_owned).to_vec())
    }
}

/// Takes `input` as everything that a client sends; with `tls` the listener requires TLS, which then starts at once.
pub fn speak(input: &[u8], tls: bool) -> Spoken {
    let mut machine = Negotiation::new(if tls { Tls::Required } else { Tls::Unavailable });
    let mut spoken =
        Spoken { handshake: Negotiation::greeting().to_vec(), handshake_bytes: 0, transmission: None };
    let mut rest = input;
    while let Some((bytes, after)) = rest.split_at_checked(machine.wants()) {
        rest = after;
        spoken.handshake_bytes = input.len() - rest.len();
        match machine.on_bytes(bytes, &Shelf, &mut spoken.handshake) {
            Step::Continue => {}
            Step::StartTls => machine.tls_started(),
            Step::Close(_) => break,
            Step::Transmission(shape, features) => {
                spoken.transmission = Some(transmission(rest, shape, &features));
                break;
            }
        }
    }
    spoken
}

fn transmission(input: &[u8], shape: Shape, features: &Features) -> Transmission {
    let mut rest = input;
    let mut batch = Batch::new(features.style);
    let mut replies = Vec::new();
    let mut taken_bytes = 0;
    while let Some((header, after)) = rest.split_at_checked(features.style.request_bytes()) {
        let Some(header) = RequestHeader::decode(header, features.style) else { break };
        let incoming = Incoming::parse(header, shape, features);
        let announced = usize::try_from(incoming.payload_bytes).unwrap_or(usize::MAX);
        let outcome = match incoming.asked {
            Asked::Disconnect | Asked::Oversize => break,
            asked => {
                let Some((payload, after)) = after.split_at_checked(announced) else { break };
                rest = after;
                answer(asked, payload)
            }
        };
        batch.push(ReplyTo { cookie: incoming.cookie, offset: incoming.offset }, outcome, ());
        // In two writes, the first of which the socket takes in part.
        let sent: Vec<u8> = batch.slices().iter().flat_map(|slice| slice.iter().copied()).collect();
        replies.extend_from_slice(&sent);
        batch.advance(sent.len() / 2);
        batch.advance(sent.len() - sent.len() / 2);
        taken_bytes = input.len() - rest.len();
    }
    let style = match features.style {
        Style::Simple => 0,
        Style::Structured => 1,
        Style::Extended => 2,
    };
    let contexts = features.contexts.iter().map(|(id, _)| id).collect();
    Transmission { style, contexts, read_only: shape.read_only, replies, taken_bytes }
}

fn answer(asked: Asked, payload: &[u8]) -> Outcome {
    let request = match asked {
        Asked::Accepted(request) => request,
        Asked::Refused(refusal) => return Outcome::Refused(refusal),
        Asked::Filtered(status) => match status.with_payload(payload) {
            Ok(request) => request,
            Err(refusal) => return Outcome::Refused(refusal),
        },
        Asked::Disconnect | Asked::Oversize => unreachable!("told apart before"),
    };
    match request {
        Request::Read { range } if range.len.0 <= READ_BYTES_ANSWERED => {
            Outcome::Data(Arc::<Buffers>::default().take(usize::try_from(range.len.0).unwrap_or(0)))
        }
        Request::Read { .. } => Outcome::Refused(Refusal { errno: Errno::Io, message: "not answered" }),
        Request::BlockStatus { range, one, contexts } => {
            let first = if one { range.len.0 } else { range.len.0.div_ceil(2) };
            let run = |len_bytes, flags| StatusRun { len_bytes, flags };
            let status = |(id, context)| {
                let flags = if context == Context::Allocation { 3 } else { 1 };
                let runs = [run(first, flags), run(range.len.0 - first, 0)].into_iter();
                Status { id, runs: runs.filter(|run| run.len_bytes > 0).collect() }
            };
            Outcome::Status(contexts.into_iter().map(status).collect())
        }
        Request::Write { range, .. } => {
            assert_eq!(range.len.0, payload.len() as u64, "a write without its payload");
            Outcome::Done
        }
        Request::Flush | Request::Trim { .. } | Request::Cache { .. } | Request::WriteZeroes { .. } => {
            Outcome::Done
        }
    }
}
