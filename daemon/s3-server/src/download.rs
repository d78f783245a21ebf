//! Bodies on their way out: one chunk being read while the one before it is sent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use objects::{ObjectReader, StoreError};
use s3s::dto::StreamingBlob;
use s3s::stream::{ByteStream, RemainingLength};
use s3s::{Body, StdError};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinError, JoinHandle};

use crate::resources::{ChunkBuffer, ChunkLength, Resources};

type Chunk = (ObjectReader, Result<Option<Bytes>, StoreError>);

/// The next chunk of `reader`; `None` at its end. Blocks.
pub(crate) fn read_chunk(
    reader: &mut ObjectReader,
    mut buffer: ChunkBuffer,
    length: ChunkLength,
) -> Result<Option<Bytes>, StoreError> {
    Ok(reader.read_chunk(&mut buffer.bytes, length.0)?.then(|| Bytes::from_owner(buffer)))
}

/// The body of a response, its first chunk read already: so an object that can't be read is an error and not a broken
/// body, and a small object leaves in one piece with its headers.
pub(crate) fn body(
    resources: Resources,
    first: Bytes,
    reader: ObjectReader,
    (memory, length): (OwnedSemaphorePermit, ChunkLength),
) -> StreamingBlob {
    if reader.remaining() == 0 {
        return StreamingBlob::from(Body::from(first));
    }
    let remaining = first.len() as u64 + reader.remaining();
    let first = Some(first);
    let next = Next::Idle(Some(reader));
    StreamingBlob::new(Chunks { resources, first, next, remaining, length, _memory: memory })
}

enum Next {
    Idle(Option<ObjectReader>),
    Reading(JoinHandle<Result<Chunk, JoinError>>),
}

struct Chunks {
    resources: Resources,
    first: Option<Bytes>,
    next: Next,
    /// Bytes not yet handed out.
    remaining: u64,
    length: ChunkLength,
    _memory: OwnedSemaphorePermit,
}

impl Chunks {
    fn start_reading(&mut self) {
        if let Next::Idle(reader) = &mut self.next
            && let Some(mut reader) = reader.take_if(|reader| reader.remaining() > 0)
        {
            let (resources, length) = (self.resources.clone(), self.length);
            self.next = Next::Reading(tokio::spawn(async move {
                let worker = resources.worker().await;
                let buffer = resources.buffer(length);
                tokio::task::spawn_blocking(move || {
                    let chunk = read_chunk(&mut reader, buffer, length);
                    drop(worker);
                    (reader, chunk)
                })
                .await
            }));
        }
    }

    fn hand_out(&mut self, chunk: Bytes) -> Bytes {
        self.remaining = self.remaining.saturating_sub(chunk.len() as u64);
        chunk
    }
}

impl Stream for Chunks {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.start_reading();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(this.hand_out(first))));
        }
        let Next::Reading(reading) = &mut this.next else { return Poll::Ready(None) };
        let finished = ready!(Pin::new(reading).poll(cx));
        this.next = Next::Idle(None);
        let (reader, chunk) = finished??;
        match chunk? {
            Some(chunk) => {
                this.next = Next::Idle(Some(reader));
                Poll::Ready(Some(Ok(this.hand_out(chunk))))
            }
            None => Poll::Ready(None),
        }
    }
}

impl ByteStream for Chunks {
    fn remaining_length(&self) -> RemainingLength {
        usize::try_from(self.remaining)
            .map_or_else(|_| RemainingLength::unknown(), RemainingLength::new_exact)
    }
}
