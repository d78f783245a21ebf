//! Counters, gauges and latencies of the NBD head, per volume and operation.
//!
//! Metrics are read without a certificate: they name volumes by their random ids, never by the labels of exports.
//! An export's handles are looked up once, when it is inserted: a request looks up no label.

use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use units::VolumeId;

use crate::wire::Command;

/// 20 µs to 5 s: from a cached read on an idle machine to a flush behind a full disk queue.
const LATENCY_BUCKETS_SECONDS: [f64; 15] = [
    0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    volume: String,
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExportLabels {
    volume: String,
}

/// All metrics of one server.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<OperationLabels, Counter>,
    bytes: Family<OperationLabels, Counter>,
    errors: Family<OperationLabels, Counter>,
    unanswered: Family<OperationLabels, Counter>,
    slow: Family<OperationLabels, Counter>,
    in_flight: Family<OperationLabels, Gauge>,
    latency: Family<OperationLabels, Histogram>,
    export_connections: Family<ExportLabels, Gauge>,
    access_refused: Family<ExportLabels, Counter>,
    /// Connections now, negotiating ones included.
    pub(crate) connections: Gauge,
    /// Connections accepted since the start.
    pub(crate) connections_accepted: Counter,
    /// Connections closed at once because the limit was reached.
    pub(crate) connections_refused: Counter,
    /// Connections that ended without a choice of export, other than by the client's wish.
    pub(crate) negotiations_failed: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            requests: Family::default(),
            bytes: Family::default(),
            errors: Family::default(),
            unanswered: Family::default(),
            slow: Family::default(),
            in_flight: Family::default(),
            latency: Family::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS_SECONDS)),
            export_connections: Family::default(),
            access_refused: Family::default(),
            connections: Gauge::default(),
            connections_accepted: Counter::default(),
            connections_refused: Counter::default(),
            negotiations_failed: Counter::default(),
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let nbd = registry.sub_registry_with_prefix("nbd");
        nbd.register("requests", "Requests carried out or refused", self.requests.clone());
        nbd.register_with_unit("payload", "Bytes read or written", Unit::Bytes, self.bytes.clone());
        nbd.register("errors", "Requests refused or failed", self.errors.clone());
        nbd.register(
            "unanswered",
            "Requests dropped without an answer: the key was gone, or the client",
            self.unanswered.clone(),
        );
        nbd.register(
            "slow_requests",
            "Requests that took longer than is called slow; the log names some",
            self.slow.clone(),
        );
        nbd.register("requests_in_flight", "Requests being carried out", self.in_flight.clone());
        nbd.register_with_unit(
            "request_duration",
            "Time from a request's arrival to its answer being ready",
            Unit::Seconds,
            self.latency.clone(),
        );
        nbd.register(
            "export_connections",
            "Connections that have chosen the export",
            self.export_connections.clone(),
        );
        nbd.register(
            "access_refused",
            "Times that a client asked for the export and its access did not admit it",
            self.access_refused.clone(),
        );
        nbd.register("connections", "Connections, negotiating ones included", self.connections.clone());
        nbd.register(
            "connections_accepted",
            "Connections accepted since the start",
            self.connections_accepted.clone(),
        );
        nbd.register(
            "connections_refused",
            "Connections closed because the limit was reached",
            self.connections_refused.clone(),
        );
        nbd.register(
            "negotiations_failed",
            "Connections that ended without a choice of export, other than by the client's wish",
            self.negotiations_failed.clone(),
        );
    }

    pub(crate) fn for_export(&self, volume: VolumeId) -> ExportMetrics {
        let of = |operation| {
            let labels = OperationLabels { volume: volume.to_string(), operation };
            OperationMetrics {
                requests: self.requests.get_or_create_owned(&labels),
                bytes: self.bytes.get_or_create_owned(&labels),
                errors: self.errors.get_or_create_owned(&labels),
                unanswered: self.unanswered.get_or_create_owned(&labels),
                slow: self.slow.get_or_create_owned(&labels),
                in_flight: self.in_flight.get_or_create_owned(&labels),
                latency: self.latency.get_or_create_owned(&labels),
            }
        };
        let export = ExportLabels { volume: volume.to_string() };
        ExportMetrics {
            connections: self.export_connections.get_or_create_owned(&export),
            refused: self.access_refused.get_or_create_owned(&export),
            read: of("read"),
            write: of("write"),
            flush: of("flush"),
            trim: of("trim"),
            cache: of("cache"),
            write_zeroes: of("write_zeroes"),
            block_status: of("block_status"),
            unknown: of("unknown"),
        }
    }
}

/// The handles of one export.
#[derive(Debug)]
pub(crate) struct ExportMetrics {
    pub(crate) connections: Gauge,
    pub(crate) refused: Counter,
    read: OperationMetrics,
    write: OperationMetrics,
    flush: OperationMetrics,
    trim: OperationMetrics,
    cache: OperationMetrics,
    write_zeroes: OperationMetrics,
    block_status: OperationMetrics,
    unknown: OperationMetrics,
}

impl ExportMetrics {
    /// The handles for a command; `None` stands for a command that is not known.
    pub(crate) fn of(&self, command: Option<Command>) -> &OperationMetrics {
        match command {
            Some(Command::Read) => &self.read,
            Some(Command::Write) => &self.write,
            Some(Command::Flush) => &self.flush,
            Some(Command::Trim) => &self.trim,
            Some(Command::Cache) => &self.cache,
            Some(Command::WriteZeroes) => &self.write_zeroes,
            Some(Command::BlockStatus) => &self.block_status,
            Some(Command::Disconnect) | None => &self.unknown,
        }
    }
}

/// The handles of one operation on one export.
#[derive(Clone, Debug)]
pub(crate) struct OperationMetrics {
    requests: Counter,
    bytes: Counter,
    errors: Counter,
    unanswered: Counter,
    slow: Counter,
    in_flight: Gauge,
    latency: Histogram,
}

/// How a request ended, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Answered { payload_bytes: u32 },
    Refused,
    Unanswered,
}

impl OperationMetrics {
    pub(crate) fn count_slow(&self) {
        self.slow.inc();
    }

    pub(crate) fn begin(&self) -> Instant {
        self.in_flight.inc();
        Instant::now()
    }

    pub(crate) fn end(&self, began: Instant, ended: Ended) {
        self.in_flight.dec();
        match ended {
            Ended::Answered { payload_bytes } => {
                self.requests.inc();
                self.bytes.inc_by(u64::from(payload_bytes));
            }
            Ended::Refused => {
                self.requests.inc();
                self.errors.inc();
            }
            Ended::Unanswered => {
                self.unanswered.inc();
                return;
            }
        }
        let elapsed: Duration = began.elapsed();
        self.latency.observe(elapsed.as_secs_f64());
    }
}
