//! Metrics of the machine's parts, and of what works in the background.
//!
//! Invariant: a part that is gone takes its numbers with it; whoever watches sees no last value for ever.

use std::sync::atomic::{AtomicI64, AtomicU64};

use admin::api::Hardware;
use health::{DiskState, Finding, ReadDisk};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::boot_clock;
use crate::node::Node;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FindingLabel {
    code: &'static str,
    severity: &'static str,
    subject: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DiskLabel {
    disk: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SensorLabel {
    sensor: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ControllerLabel {
    controller: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InterfaceLabel {
    interface: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabel {
    worker: String,
}

type Whole<L> = Family<L, Gauge<i64, AtomicI64>>;
type Real<L> = Family<L, Gauge<f64, AtomicU64>>;

/// Gauges that are brought up to date when somebody reads them.
#[derive(Debug, Default)]
pub(crate) struct HealthMetrics {
    findings: Whole<FindingLabel>,
    disk_replace: Whole<DiskLabel>,
    disk_asked: Real<DiskLabel>,
    disk_celsius: Whole<DiskLabel>,
    disk_used: Real<DiskLabel>,
    disk_spare: Real<DiskLabel>,
    disk_media_errors: Whole<DiskLabel>,
    disk_reallocated: Whole<DiskLabel>,
    disk_pending: Whole<DiskLabel>,
    celsius: Real<SensorLabel>,
    corrected: Whole<ControllerLabel>,
    uncorrected: Whole<ControllerLabel>,
    link_up: Whole<InterfaceLabel>,
    link_errors: Whole<InterfaceLabel>,
    worker_beat: Real<WorkerLabel>,
    worker_stalled: Whole<WorkerLabel>,
}

impl HealthMetrics {
    pub(crate) fn register(&self, node: &mut Registry) {
        node.register(
            "health_finding",
            "1 for each part of the machine that somebody should look after, by what is the matter with it",
            self.findings.clone(),
        );
        self.register_disks(node.sub_registry_with_prefix("disk"));
        node.register_with_unit("temperature", "What a sensor feels", Unit::Celsius, self.celsius.clone());
        let memory = node.sub_registry_with_prefix("memory");
        memory.register(
            "corrected_errors",
            "Errors that memory corrected since the boot",
            self.corrected.clone(),
        );
        memory.register(
            "uncorrected_errors",
            "Errors that memory did not correct since the boot",
            self.uncorrected.clone(),
        );
        let link = node.sub_registry_with_prefix("link");
        link.register("up", "1 while a network card has a link", self.link_up.clone());
        link.register("errors", "Packets that came in broken or could not be sent", self.link_errors.clone());
        let worker = node.sub_registry_with_prefix("worker");
        worker.register_with_unit(
            "heartbeat_age",
            "Since the last sign of life of what works in the background",
            Unit::Seconds,
            self.worker_beat.clone(),
        );
        worker.register("stalled", "1 where the next sign of life is overdue", self.worker_stalled.clone());
    }

    fn register_disks(&self, disk: &mut Registry) {
        disk.register(
            "replace",
            "1 where a disk is to be replaced before it fails",
            self.disk_replace.clone(),
        );
        disk.register_with_unit(
            "smart_age",
            "Since the disk last said how it fares",
            Unit::Seconds,
            self.disk_asked.clone(),
        );
        disk.register_with_unit(
            "temperature",
            "What the disk feels",
            Unit::Celsius,
            self.disk_celsius.clone(),
        );
        disk.register("endurance_used_ratio", "Endurance used", self.disk_used.clone());
        disk.register("spare_left_ratio", "Spare left", self.disk_spare.clone());
        disk.register(
            "media_errors",
            "Times that data could not be given back as written, in the disk's life",
            self.disk_media_errors.clone(),
        );
        disk.register(
            "reallocated_sectors",
            "Sectors that were replaced by others, in the disk's life",
            self.disk_reallocated.clone(),
        );
        disk.register("pending_sectors", "Sectors that cannot be read", self.disk_pending.clone());
    }

    pub(crate) fn refresh(&self, node: &Node) {
        self.refresh_workers(node);
        let Some(read) = node.health_watch.last() else { return };
        self.findings.clear();
        for Finding { code, subject, severity, .. } in &read.findings {
            let label =
                FindingLabel { code: code.name(), severity: severity.name(), subject: subject.clone() };
            self.findings.get_or_create(&label).set(1);
        }
        self.refresh_disks(&read);
        self.celsius.clear();
        for read in &read.readings.temperatures {
            if let Some(millicelsius) = read.millicelsius {
                let label = SensorLabel { sensor: read.sensor.clone() };
                self.celsius.get_or_create(&label).set(real(millicelsius) / 1e3);
            }
        }
        self.corrected.clear();
        self.uncorrected.clear();
        for read in &read.readings.memory {
            let label = ControllerLabel { controller: read.name.clone() };
            self.corrected.get_or_create(&label).set(whole(read.corrected));
            self.uncorrected.get_or_create(&label).set(whole(read.uncorrected));
        }
        self.link_up.clear();
        self.link_errors.clear();
        for read in read.readings.interfaces.iter().filter(|interface| interface.physical) {
            let label = InterfaceLabel { interface: read.name.clone() };
            self.link_up.get_or_create(&label).set(i64::from(read.up));
            let errors = read.receive_errors.saturating_add(read.send_errors);
            self.link_errors.get_or_create(&label).set(whole(errors));
        }
    }

    fn refresh_workers(&self, node: &Node) {
        self.worker_beat.clear();
        self.worker_stalled.clear();
        let now = boot_clock::now();
        for worker in node.heartbeats.status() {
            let label = WorkerLabel { worker: worker.name };
            let age_ms = whole(now.ms_since(worker.beat_boot_ns));
            self.worker_beat.get_or_create(&label).set(real(age_ms) / 1e3);
            self.worker_stalled.get_or_create(&label).set(i64::from(worker.stalled));
        }
    }

    fn refresh_disks(&self, read: &Hardware) {
        let counts = [
            &self.disk_replace,
            &self.disk_celsius,
            &self.disk_media_errors,
            &self.disk_reallocated,
            &self.disk_pending,
        ];
        counts.into_iter().for_each(Family::clear);
        [&self.disk_asked, &self.disk_used, &self.disk_spare].into_iter().for_each(Family::clear);
        for ReadDisk { disk, smart } in &read.readings.disks {
            let label = DiskLabel { disk: disk.name.clone() };
            let calls =
                |finding: &Finding| finding.subject == disk.name && finding.code.calls_for_replacement();
            self.disk_replace.get_or_create(&label).set(i64::from(read.findings.iter().any(calls)));
            let DiskState::Read { asked_boot_ns, health } = smart else { continue };
            let age_ms = whole(read.read_boot_ns.ms_since(*asked_boot_ns));
            self.disk_asked.get_or_create(&label).set(real(age_ms) / 1e3);
            let set = |family: &Whole<DiskLabel>, count: Option<i64>| {
                if let Some(count) = count {
                    family.get_or_create(&label).set(count);
                }
            };
            set(&self.disk_celsius, health.celsius);
            set(&self.disk_media_errors, health.media_errors.map(whole));
            set(&self.disk_reallocated, health.reallocated_sectors.map(whole));
            set(&self.disk_pending, health.pending_sectors.map(whole));
            let part = |family: &Real<DiskLabel>, percent: Option<u8>| {
                if let Some(percent) = percent {
                    family.get_or_create(&label).set(f64::from(percent) / 100.0);
                }
            };
            part(&self.disk_used, health.used_percent);
            part(&self.disk_spare, health.spare_percent);
        }
    }
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a gauge")]
fn real(count: i64) -> f64 {
    count as f64
}
