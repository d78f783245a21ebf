//! A response body on its way to the connection: counted, and cut off when the node is sealed.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use s3s::StdError;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::activity::InFlight;
use crate::metrics::{Finished, Metrics};

/// The node was sealed while the body was being sent; the connection ends without the rest.
#[derive(Debug, thiserror::Error)]
#[error("the node was sealed")]
struct SealedMeanwhile;

/// A body and the accounts that close with it.
pub(crate) struct ResponseBody {
    inner: s3s::Body,
    /// Waited for only by bodies that are still being read.
    sealed: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    in_flight: InFlight,
    metrics: Arc<Metrics>,
    finished: Finished,
}

impl ResponseBody {
    pub(crate) fn new(
        inner: s3s::Body,
        sealed: Option<WaitForCancellationFutureOwned>,
        mut in_flight: InFlight,
        metrics: Arc<Metrics>,
        finished: Finished,
    ) -> Self {
        let streams = inner.bytes().is_none();
        if streams {
            in_flight.body_began();
        }
        Self { inner, sealed: sealed.filter(|_| streams).map(Box::pin), in_flight, metrics, finished }
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
        tracing::debug!(
            operation = self.finished.operation,
            status = self.finished.status,
            bytes = self.finished.sent,
            elapsed = ?self.finished.elapsed(),
            "request finished"
        );
    }
}
