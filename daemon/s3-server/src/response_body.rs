//! A response body on its way to the connection: counted, and cut off when the node is sealed. The key is asked for again before
//! each piece leaves: what was read while it was there may be waited for until it is gone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use s3s::StdError;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::access_log::Entry;
use crate::activity::InFlight;
use crate::metrics::{Finished, Metrics};
use crate::resources::Room;
use crate::slot::Serving;

/// The node was sealed while the body was being sent; the connection ends without the rest.
#[derive(Debug, thiserror::Error)]
#[error("the node was sealed")]
struct SealedMeanwhile;

/// A body and the accounts that close with it.
pub(crate) struct ResponseBody {
    inner: s3s::Body,
    serving: Option<Serving>,
    /// Waited for only by bodies that are still being read.
    sealed: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    in_flight: InFlight,
    metrics: Arc<Metrics>,
    finished: Finished,
    /// The request's line in its bucket's access log.
    entry: Option<Box<Entry>>,
    /// Memory that was set aside for it.
    _room: Option<Room>,
}

impl ResponseBody {
    pub(crate) fn new(
        inner: s3s::Body,
        serving: Option<Serving>,
        mut in_flight: InFlight,
        metrics: Arc<Metrics>,
        finished: Finished,
        (entry, room): (Option<Box<Entry>>, Option<Room>),
    ) -> Self {
        let streams = inner.bytes().is_none();
        if streams {
            in_flight.body_began();
        }
        let sealed =
            serving.as_ref().filter(|_| streams).map(|serving| serving.sealed.clone().cancelled_owned());
        Self {
            inner,
            serving,
            sealed: sealed.map(Box::pin),
            in_flight,
            metrics,
            finished,
            entry,
            _room: room,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        this.in_flight.progressed();
        if let Some(sealed) = &mut this.sealed
            && sealed.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(SealedMeanwhile.into())));
        }
        let frame = Pin::new(&mut this.inner).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if this.serving.as_ref().is_some_and(|serving| serving.store.check().is_err()) {
                    return Poll::Ready(Some(Err(SealedMeanwhile.into())));
                }
                this.finished.sent += frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
            }
            Poll::Ready(None) => this.finished.complete = true,
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.finished.complete |= self.inner.is_end_stream();
        self.metrics.finished(&self.finished);
        if let Some(entry) = self.entry.take() {
            entry.finish(&self.finished);
        }
        tracing::debug!(
            operation = self.finished.operation,
            status = self.finished.status,
            bytes = self.finished.sent,
            elapsed = ?self.finished.elapsed(),
            "request finished"
        );
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use objects::Store;
    use objects::simulated::SimulatedVolume;
    use units::ByteLen;

    use super::*;
    use crate::activity::Activity;

    fn body(serving: &Serving) -> ResponseBody {
        let metrics = Arc::new(Metrics::new());
        let in_flight = Activity::new(metrics.in_flight.clone()).begin();
        let began = std::time::Instant::now();
        let finished =
            Finished { operation: "GetObject", status: 200, received: 0, sent: 0, began, complete: false };
        let piece = s3s::Body::from(Bytes::from_static(b"value"));
        ResponseBody::new(piece, Some(serving.clone()), in_flight, metrics, finished, (None, None))
    }

    #[tokio::test]
    async fn a_body_in_one_piece_does_not_leave_once_the_key_is_gone() {
        let volume = SimulatedVolume::new(ByteLen(1 << 30));
        let opened = volume.clone();
        let store = tokio::task::spawn_blocking(move || Store::open(opened).unwrap()).await.unwrap();
        let serving = Serving::of(store);
        let sent = body(&serving).collect().await.unwrap().to_bytes();
        assert_eq!(sent, "value");
        let held = body(&serving);
        volume.wipe_key();
        assert!(held.collect().await.is_err());
        let store = serving.store;
        tokio::task::spawn_blocking(move || store.close()).await.unwrap();
    }
}
