//! A request body on its way from the connection to the protocol code: counted, never waited for without end, and in
//! pieces that don't grow with what the client says.
//!
//! The protocol code gathers a whole `aws-chunked` chunk before it hands it on, and clients may make a chunk as long as the
//! body. Unsigned chunks are therefore cut into small ones here; a signed chunk can't be, so its length is limited.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use s3s::StdError;
use tokio::time::{Instant, Sleep};

use crate::limits::{
    BODY_RATE_MIN, BODY_STALL_TIMEOUT, CHUNK_LINE_BYTES_MAX, FORM_PIECE_BYTES, SIGNED_CHUNK_BYTES_MAX,
    UNSIGNED_PIECE_BYTES,
};

/// Why a body ended that the client did not end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("{}", Self::STALLED)]
    Stalled,
    #[error("{}", Self::CHUNK_TOO_LARGE)]
    ChunkTooLarge,
    #[error("the line of a chunk can't be read")]
    Malformed,
    #[error(transparent)]
    Connection(#[from] hyper::Error),
}

impl BodyError {
    // The protocol code wraps errors in private types that keep only the text.
    pub(crate) const STALLED: &'static str = "no byte of the body within the time limit";
    pub(crate) const CHUNK_TOO_LARGE: &'static str = "a signed chunk is longer than allowed";
}

/// What the request's handler and the server share about a body.
#[derive(Debug, Default)]
pub(crate) struct BodyShare {
    /// Length as the connection has it; `None` where it says nothing of it.
    length: Option<u64>,
    received: AtomicU64,
    /// When the whole body must have arrived, where there is a limit.
    ends: OnceLock<Instant>,
    ended_early: AtomicBool,
    /// When the last byte came.
    ended: OnceLock<Instant>,
    /// The rest of a body that was given up.
    rest: Mutex<Option<Incoming>>,
}

impl BodyShare {
    pub(crate) fn of(incoming: &Incoming) -> Self {
        Self { length: incoming.size_hint().exact(), ..Self::default() }
    }

    pub(crate) fn length(&self) -> Option<u64> {
        self.length
    }

    /// Gives the whole body so long from now.
    pub(crate) fn must_end_within(&self, time: Duration) {
        // A body is read for one purpose: nobody sets it twice.
        let _ = self.ends.set(Instant::now() + time);
    }

    /// Whether it was not waited for any longer.
    pub(crate) fn ended_early(&self) -> bool {
        self.ended_early.load(Ordering::Relaxed)
    }

    /// When the last byte came, once it has.
    pub(crate) fn ended(&self) -> Option<std::time::Instant> {
        self.ended.get().map(|ended| ended.into_std())
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// What the handler left unread.
    pub(crate) fn take_rest(&self) -> Option<Incoming> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// How the protocol code reads a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// As it comes.
    Plain,
    /// It is `aws-chunked`.
    Chunked,
    /// It is a browser's form.
    Form,
}

/// The body as the protocol code sees it.
pub(crate) struct RequestBody {
    incoming: Option<Incoming>,
    share: Arc<BodyShare>,
    stall: Pin<Box<Sleep>>,
    patience: Patience,
    shape: Shape,
    framing: Framing,
    ready: VecDeque<Bytes>,
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming, share: Arc<BodyShare>, shape: Shape) -> Self {
        Self {
            incoming: Some(incoming),
            share,
            stall: Box::pin(tokio::time::sleep(BODY_STALL_TIMEOUT)),
            patience: Patience::default(),
            shape,
            framing: Framing::default(),
            ready: VecDeque::new(),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take().filter(|incoming| !incoming.is_end_stream()) {
            *self.share.rest.lock().unwrap_or_else(PoisonError::into_inner) = Some(incoming);
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            let this = &mut *self;
            let Some(incoming) = &mut this.incoming else { return Poll::Ready(None) };
            let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
                let patient_until = this.patience.until(Instant::now(), this.share.received());
                let ends = this.share.ends.get().map_or(patient_until, |ends| patient_until.min(*ends));
                if this.stall.deadline() != ends {
                    this.stall.as_mut().reset(ends);
                }
                ready!(this.stall.as_mut().poll(cx));
                this.share.ended_early.store(true, Ordering::Relaxed);
                return Poll::Ready(Some(Err(BodyError::Stalled.into())));
            };
            this.patience.came(Instant::now());
            let frame = frame.transpose().map_err(BodyError::from)?;
            if frame.is_none() || incoming.is_end_stream() {
                // The first time counts.
                let _ = this.share.ended.set(Instant::now());
            }
            let mut bytes = match frame {
                None => {
                    this.incoming = None;
                    continue;
                }
                Some(frame) => match frame.into_data() {
                    Ok(bytes) => bytes,
                    // HTTP trailers mean nothing to S3.
                    Err(_) => continue,
                },
            };
            this.share.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            match this.shape {
                Shape::Plain => this.ready.push_back(bytes),
                Shape::Chunked => this.framing.push(bytes, &mut this.ready)?,
                Shape::Form => {
                    while !bytes.is_empty() {
                        this.ready.push_back(bytes.split_to(bytes.len().min(FORM_PIECE_BYTES)));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match (self.shape, &self.incoming) {
            (Shape::Plain, Some(incoming)) => incoming.size_hint(),
            (Shape::Plain, None) => SizeHint::with_exact(0),
            (Shape::Chunked | Shape::Form, _) => SizeHint::new(),
        }
    }
}

/// How long a client is waited for: for the next piece, and on average.
#[derive(Debug, Default)]
struct Patience {
    /// Since when nothing has come.
    since: Option<Instant>,
    /// How long the client was waited for before that.
    waited: Duration,
}

impl Patience {
    /// Until when to wait for the next piece, having received so many bytes.
    fn until(&mut self, now: Instant, received: u64) -> Instant {
        let since = *self.since.get_or_insert(now);
        let earned =
            BODY_STALL_TIMEOUT + Duration::from_millis(received.saturating_mul(1000) / BODY_RATE_MIN);
        since + earned.saturating_sub(self.waited).min(BODY_STALL_TIMEOUT)
    }

    /// A piece has come.
    fn came(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.waited += now.saturating_duration_since(since);
        }
    }
}

/// Cuts unsigned `aws-chunked` chunks into pieces and limits signed ones.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    state: State,
    line: BytesMut,
}

#[derive(Debug, Default)]
enum State {
    /// In the line that begins a chunk.
    #[default]
    Line,
    /// In the data of a chunk: what is left of it, and of the piece that was announced.
    Data { chunk: u64, piece: u64 },
    /// Before the line end that closes a chunk's data, this many bytes of it left.
    End { left: usize },
    /// After the last chunk: trailers.
    Trailers,
}

impl Framing {
    fn push(&mut self, mut bytes: Bytes, out: &mut VecDeque<Bytes>) -> Result<(), BodyError> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Line => self.push_line(&mut bytes, out)?,
                State::Data { chunk, piece } => {
                    let len = usize::try_from(*piece).unwrap_or(usize::MAX).min(bytes.len());
                    out.push_back(bytes.split_to(len));
                    *chunk -= len as u64;
                    *piece -= len as u64;
                    if *chunk == 0 {
                        self.state = State::End { left: 2 };
                    } else if *piece == 0 {
                        *piece = (*chunk).min(UNSIGNED_PIECE_BYTES);
                        out.push_back(Bytes::from(format!("\r\n{piece:x}\r\n")));
                    }
                }
                State::End { left } => {
                    let len = (*left).min(bytes.len());
                    out.push_back(bytes.split_to(len));
                    *left -= len;
                    if *left == 0 {
                        self.state = State::Line;
                    }
                }
                State::Trailers => {
                    out.push_back(bytes);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn push_line(&mut self, bytes: &mut Bytes, out: &mut VecDeque<Bytes>) -> Result<(), BodyError> {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
            self.line.extend_from_slice(bytes);
            bytes.clear();
            return if self.line.len() > CHUNK_LINE_BYTES_MAX { Err(BodyError::Malformed) } else { Ok(()) };
        };
        self.line.extend_from_slice(&bytes[..=end]);
        bytes.advance(end + 1);
        let line = self.line.split().freeze();
        if line.len() > CHUNK_LINE_BYTES_MAX {
            return Err(BodyError::Malformed);
        }
        let text = std::str::from_utf8(&line).map_err(|_| BodyError::Malformed)?;
        let (size, signed) = match text.trim_end().split_once(';') {
            Some((size, _)) => (size, true),
            None => (text.trim_end(), false),
        };
        let well_formed = (1..=16).contains(&size.len()) && size.bytes().all(|byte| byte.is_ascii_hexdigit());
        let size =
            well_formed.then(|| u64::from_str_radix(size, 16).ok()).flatten().ok_or(BodyError::Malformed)?;
        self.state = match size {
            0 => State::Trailers,
            size if signed && size > SIGNED_CHUNK_BYTES_MAX => return Err(BodyError::ChunkTooLarge),
            size if signed => State::Data { chunk: size, piece: size },
            size => State::Data { chunk: size, piece: size.min(UNSIGNED_PIECE_BYTES) },
        };
        match self.state {
            State::Data { piece, .. } if !signed => out.push_back(Bytes::from(format!("{piece:x}\r\n"))),
            _ => out.push_back(line),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `body` through the framing in pieces of `step` bytes.
    fn reframed(body: &[u8], step: usize) -> Result<Vec<Bytes>, BodyError> {
        let mut framing = Framing::default();
        let mut out = VecDeque::new();
        for piece in body.chunks(step) {
            framing.push(Bytes::copy_from_slice(piece), &mut out)?;
        }
        Ok(out.into())
    }

    /// What the chunks of an unsigned body hold, the longest of them, and what follows the last.
    fn decode(mut body: &[u8]) -> (Vec<u8>, usize, Vec<u8>) {
        let (mut data, mut longest) = (Vec::new(), 0);
        loop {
            let end = body.iter().position(|byte| *byte == b'\n').unwrap();
            let size = usize::from_str_radix(std::str::from_utf8(&body[..end - 1]).unwrap(), 16).unwrap();
            body = &body[end + 1..];
            if size == 0 {
                return (data, longest, body.to_vec());
            }
            data.extend_from_slice(&body[..size]);
            longest = longest.max(size);
            assert_eq!(&body[size..size + 2], b"\r\n");
            body = &body[size + 2..];
        }
    }

    #[test]
    fn a_chunk_as_long_as_the_body_comes_out_in_pieces_with_the_same_bytes() {
        let data: Vec<u8> = (0..700_001_u32).map(|n| (n % 251) as u8).collect();
        let mut body = format!("{:x}\r\n", data.len()).into_bytes();
        body.extend_from_slice(&data);
        body.extend_from_slice(b"\r\n3\r\nabc\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n");
        for step in [1, 7, 1_000, 65_536, body.len()] {
            let (found, longest, trailers) = decode(&reframed(&body, step).unwrap().concat());
            assert!(found[..data.len()] == data && found[data.len()..] == *b"abc", "in steps of {step}");
            assert_eq!(longest as u64, UNSIGNED_PIECE_BYTES);
            assert_eq!(trailers, b"x-amz-checksum-crc32:AAAAAA==\r\n\r\n");
        }
    }

    #[test]
    fn signed_chunks_pass_as_they_are_up_to_their_limit() {
        let signature = "0".repeat(64);
        let body = format!("5;chunk-signature={signature}\r\nhello\r\n0;chunk-signature={signature}\r\n\r\n");
        for step in [1, 10, 1_000] {
            assert_eq!(reframed(body.as_bytes(), step).unwrap().concat(), body.as_bytes());
        }
        let line = |size: u64| format!("{size:x};chunk-signature={signature}\r\n");
        assert!(reframed(line(SIGNED_CHUNK_BYTES_MAX).as_bytes(), 9).is_ok());
        let result = reframed(line(SIGNED_CHUNK_BYTES_MAX + 1).as_bytes(), 9);
        assert!(matches!(result, Err(BodyError::ChunkTooLarge)));
    }

    #[tokio::test]
    async fn a_body_ends_in_its_time_however_it_trickles() {
        use http_body_util::BodyExt;
        use tokio::io::AsyncWriteExt;

        let (mut client, server) = tokio::io::duplex(1024);
        let (report, ended) = tokio::sync::oneshot::channel();
        let report = Mutex::new(Some(report));
        let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
            let report = report.lock().unwrap().take().unwrap();
            async move {
                let share = Arc::new(BodyShare::of(request.body()));
                share.must_end_within(Duration::from_millis(200));
                let body = RequestBody::new(request.into_body(), Arc::clone(&share), Shape::Plain);
                let error = body.collect().await.err().map(|error| error.to_string());
                report.send((error, share.length(), share.ended_early())).unwrap();
                Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
            }
        });
        let io = hyper_util::rt::TokioIo::new(server);
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        client.write_all(b"PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
        let trickle = async {
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            std::future::pending::<()>().await;
        };
        let (error, length, ended_early) = tokio::select! {
            ended = ended => ended.unwrap(),
            () = trickle => unreachable!(),
        };
        assert_eq!(error.as_deref(), Some(BodyError::STALLED));
        assert_eq!((length, ended_early), (Some(1_000_000), true));
    }

    #[test]
    fn a_client_is_waited_for_as_long_as_it_sends_at_the_slowest_rate() {
        let start = Instant::now();
        let minute = BODY_STALL_TIMEOUT;
        // A byte every half a minute: the first minute, and then no more.
        let mut patience = Patience::default();
        assert_eq!(patience.until(start, 0), start + minute);
        assert_eq!(patience.until(start + minute / 4, 0), start + minute, "asked again, it is the same wait");
        patience.came(start + minute / 2);
        assert!(patience.until(start + minute / 2, 1) < start + minute + Duration::from_millis(10));
        // At the slowest rate it goes on.
        let mut patience = Patience::default();
        for second in 0..1_000 {
            let now = start + Duration::from_secs(second);
            assert!(patience.until(now, second * BODY_RATE_MIN) >= now + minute);
            patience.came(now + Duration::from_secs(1));
        }
        // Time in which nobody waits for the client does not count.
        let mut patience = Patience::default();
        let _ = patience.until(start, 0);
        patience.came(start + Duration::from_secs(1));
        let late = start + Duration::from_secs(10_000);
        assert!(patience.until(late, 1) >= late + minute - Duration::from_secs(1));
    }

    #[test]
    fn a_line_that_is_none_is_an_error() {
        for bad in ["\r\n", "xyz\r\n", "-1\r\n", "+5\r\n", "11111111111111111\r\n", &"1".repeat(2_000)] {
            assert!(matches!(reframed(bad.as_bytes(), 100), Err(BodyError::Malformed)), "{bad:.20}");
        }
    }
}
