//! What happens on one connection, for the watch over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;

/// Shared by a connection's requests and the task that watches it.
#[derive(Debug)]
pub(crate) struct Activity {
    began: Instant,
    /// Requests whose response is not yet handed over in full.
    requests: AtomicUsize,
    /// Of these, responses whose body is being sent.
    bodies: AtomicUsize,
    /// Milliseconds from `began` to the last sign of life.
    last_ms: AtomicU64,
    gauge: Gauge,
}

/// What the watch has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// No request since then.
    Idle(Duration),
    /// Requests are being carried out.
    Working,
    /// Responses are being sent, and the client has taken nothing since then.
    Sending(Duration),
}

impl Activity {
    pub(crate) fn new(gauge: Gauge) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            requests: AtomicUsize::new(0),
            bodies: AtomicUsize::new(0),
            last_ms: AtomicU64::new(0),
            gauge,
        })
    }

    fn touch(&self) {
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    pub(crate) fn state(&self) -> State {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        let since = self.began.elapsed().saturating_sub(last);
        match (self.requests.load(Ordering::Relaxed), self.bodies.load(Ordering::Relaxed)) {
            (0, _) => State::Idle(since),
            (_, 0) => State::Working,
            _ => State::Sending(since),
        }
    }

    /// A request began.
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.gauge.inc();
        self.touch();
        InFlight { activity: Arc::clone(self), sends_body: false }
    }
}

/// One request, from its head to the end of its response.
#[derive(Debug)]
pub(crate) struct InFlight {
    activity: Arc<Activity>,
    sends_body: bool,
}

impl InFlight {
    pub(crate) fn body_began(&mut self) {
        self.sends_body = true;
        self.activity.bodies.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn progressed(&self) {
        self.activity.touch();
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.sends_body {
            self.activity.bodies.fetch_sub(1, Ordering::Relaxed);
        }
        self.activity.requests.fetch_sub(1, Ordering::Relaxed);
        self.activity.gauge.dec();
        self.activity.touch();
    }
}
