//! Counters and latencies of the S3 head, per operation.

use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// 0.5 ms to a minute: from a HEAD out of the cache to a part over a slow line.
const LATENCY_BUCKETS_SECONDS: [f64; 14] =
    [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 20.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    operation: &'static str,
    status: u16,
}

/// All metrics of one server.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<OperationLabels, Counter>,
    errors: Family<ErrorLabels, Counter>,
    unfinished: Family<OperationLabels, Counter>,
    received: Family<OperationLabels, Counter>,
    sent: Family<OperationLabels, Counter>,
    latency: Family<OperationLabels, Histogram>,
    pub(crate) in_flight: Gauge,
    pub(crate) connections: Gauge,
    pub(crate) connections_accepted: Counter,
    pub(crate) connections_refused: Counter,
    pub(crate) handshakes_failed: Counter,
    pub(crate) log_lines: Counter,
    pub(crate) log_lines_lost: Counter,
    pub(crate) notifications_delivered: Counter,
    pub(crate) notifications_failed: Counter,
    pub(crate) notifications_dead: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            requests: Family::default(),
            errors: Family::default(),
            unfinished: Family::default(),
            received: Family::default(),
            sent: Family::default(),
            latency: Family::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS_SECONDS)),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            connections_accepted: Counter::default(),
            connections_refused: Counter::default(),
            handshakes_failed: Counter::default(),
            log_lines: Counter::default(),
            log_lines_lost: Counter::default(),
            notifications_delivered: Counter::default(),
            notifications_failed: Counter::default(),
            notifications_dead: Counter::default(),
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let s3 = registry.sub_registry_with_prefix("s3");
        s3.register("requests", "Requests answered", self.requests.clone());
        s3.register("errors", "Requests answered with an error, by HTTP status", self.errors.clone());
        s3.register(
            "unfinished",
            "Responses that ended early: the key was gone, the device failed, or the client left",
            self.unfinished.clone(),
        );
        s3.register_with_unit("received", "Bytes of request bodies", Unit::Bytes, self.received.clone());
        s3.register_with_unit("sent", "Bytes of response bodies", Unit::Bytes, self.sent.clone());
        s3.register_with_unit(
            "latency",
            "From the end of the request head to the end of the response",
            Unit::Seconds,
            self.latency.clone(),
        );
        s3.register("requests_in_flight", "Requests being carried out", self.in_flight.clone());
        s3.register("connections", "Connections open", self.connections.clone());
        s3.register("connections_accepted", "Connections accepted", self.connections_accepted.clone());
        s3.register(
            "connections_refused",
            "Connections closed at once because as many as are allowed were open",
            self.connections_refused.clone(),
        );
        s3.register("handshakes_failed", "TLS handshakes that failed", self.handshakes_failed.clone());
        s3.register("access_log_lines", "Lines of access logs that were delivered", self.log_lines.clone());
        s3.register(
            "access_log_lines_lost",
            "Lines of access logs that found no room, or could not be delivered",
            self.log_lines_lost.clone(),
        );
        let notifications = [
            ("notifications_delivered", "Notifications that webhooks took", &self.notifications_delivered),
            (
                "notifications_failed",
                "Attempts to deliver a notification that failed",
                &self.notifications_failed,
            ),
            ("notifications_dead", "Notifications that became dead letters", &self.notifications_dead),
        ];
        for (name, help, counter) in notifications {
            s3.register(name, help, counter.clone());
        }
    }

    /// A request was carried out, or given up on.
    pub(crate) fn finished(&self, request: &Finished) {
        let operation = OperationLabels { operation: request.operation };
        self.requests.get_or_create(&operation).inc();
        self.received.get_or_create(&operation).inc_by(request.received);
        self.sent.get_or_create(&operation).inc_by(request.sent);
        self.latency.get_or_create(&operation).observe(request.began.elapsed().as_secs_f64());
        if request.status >= 400 {
            let labels = ErrorLabels { operation: request.operation, status: request.status };
            self.errors.get_or_create(&labels).inc();
        }
        if !request.complete {
            self.unfinished.get_or_create(&operation).inc();
        }
    }
}

/// What a request came to.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The operation's name in S3; "unknown" for what never became one.
    pub(crate) operation: &'static str,
    pub(crate) status: u16,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) began: Instant,
    /// Whether the whole response was handed to the connection.
    pub(crate) complete: bool,
}

impl Finished {
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}
