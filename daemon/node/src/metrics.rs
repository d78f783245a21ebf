//! The node's own metrics; the heads register theirs beside them.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use admin::api;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::boot_clock;
use crate::health_metrics::HealthMetrics;
use crate::node::Node;
use crate::stages::StageTimes;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SentLabel {
    peer: String,
    volume: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReplicaLabel {
    volume: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabel {
    version: &'static str,
}

/// Gauges that are brought up to date when somebody reads them.
#[derive(Debug, Default)]
pub(crate) struct NodeMetrics {
    sealed: Gauge<i64, AtomicI64>,
    lease_remaining_seconds: Gauge<f64, AtomicU64>,
    keys: Gauge<i64, AtomicI64>,
    key_promotions: Gauge<i64, AtomicI64>,
    wipes: Gauge<i64, AtomicI64>,
    last_wipe_seconds: Gauge<f64, AtomicU64>,
    pool_capacity_bytes: Family<PoolLabel, Gauge<i64, AtomicI64>>,
    pool_used_bytes: Family<PoolLabel, Gauge<i64, AtomicI64>>,
    pool_damaged: Family<PoolLabel, Gauge<i64, AtomicI64>>,
    pool_failed: Family<PoolLabel, Gauge<i64, AtomicI64>>,
    scrub_running: Family<PoolLabel, Gauge<i64, AtomicI64>>,
    scrub_done: Family<PoolLabel, Gauge<i64, AtomicI64>>,
    scrub_damaged: Family<PoolLabel, Gauge<i64, AtomicI64>>,
    scrub_last_end: Family<PoolLabel, Gauge<i64, AtomicI64>>,
    snapshots_locked: Gauge<i64, AtomicI64>,
    schedules_failing: Gauge<i64, AtomicI64>,
    rewrite_anomalies: Gauge<i64, AtomicI64>,
    rewritten_ratio: Gauge<f64, AtomicU64>,
    refused_full: Gauge<i64, AtomicI64>,
    rekey_volumes: Gauge<i64, AtomicI64>,
    rekey_running: Gauge<i64, AtomicI64>,
    rekey_left: Gauge<i64, AtomicI64>,
    rekey_failing: Gauge<i64, AtomicI64>,
    source_up: Family<SourceLabel, Gauge<i64, AtomicI64>>,
    source_active: Family<SourceLabel, Gauge<i64, AtomicI64>>,
    source_fired: Family<SourceLabel, Gauge<i64, AtomicI64>>,
    source_refused: Family<SourceLabel, Gauge<i64, AtomicI64>>,
    notifications_lost: Gauge<i64, AtomicI64>,
    replication_connected: Family<PeerLabel, Gauge<i64, AtomicI64>>,
    replication_lag_seconds: Family<SentLabel, Gauge<i64, AtomicI64>>,
    replication_lag_bytes: Family<SentLabel, Gauge<i64, AtomicI64>>,
    replication_lag_epochs: Family<SentLabel, Gauge<i64, AtomicI64>>,
    replication_stopped: Family<SentLabel, Gauge<i64, AtomicI64>>,
    replication_worst_lag_seconds: Gauge<i64, AtomicI64>,
    replication_peers_away: Gauge<i64, AtomicI64>,
    replication_volumes_stopped: Gauge<i64, AtomicI64>,
    replica_newest_age_seconds: Family<ReplicaLabel, Gauge<i64, AtomicI64>>,
    replica_unheard_seconds: Family<ReplicaLabel, Gauge<i64, AtomicI64>>,
    replica_epochs_refused: Family<ReasonLabel, Gauge<i64, AtomicI64>>,
    replica_worst_unheard_seconds: Gauge<i64, AtomicI64>,
    build: Family<BuildLabel, Gauge<i64, AtomicI64>>,
    health: HealthMetrics,
}

impl NodeMetrics {
    pub(crate) fn register(registry: &mut Registry, wipe_stages: &StageTimes) -> Self {
        let metrics = Self::default();
        let node = registry.sub_registry_with_prefix("nightlatch");
        node.register("sealed", "1 while no key is held", metrics.sealed.clone());
        node.register_with_unit(
            "lease_remaining",
            "Time until the lease ends, 0 while sealed",
            Unit::Seconds,
            metrics.lease_remaining_seconds.clone(),
        );
        node.register("keys", "Keys held", metrics.keys.clone());
        node.register(
            "key_promotions",
            "Keys opened into the hot set since the start: many a second mean more volumes in use than it holds",
            metrics.key_promotions.clone(),
        );
        node.register("key_generation", "Wipes since the start", metrics.wipes.clone());
        node.register_with_unit(
            "last_wipe_duration",
            "From the call to the last zero in memory, of the last wipe",
            Unit::Seconds,
            metrics.last_wipe_seconds.clone(),
        );
        node.register(
            "notifications_lost",
            "Events of buckets since the last push that nobody is told of: the pool was full, or too many waited",
            metrics.notifications_lost.clone(),
        );
        wipe_stages.register(node);
        let pool = node.sub_registry_with_prefix("pool");
        pool.register_with_unit(
            "capacity",
            "What volumes can hold",
            Unit::Bytes,
            metrics.pool_capacity_bytes.clone(),
        );
        pool.register_with_unit(
            "used",
            "What is allocated to volumes",
            Unit::Bytes,
            metrics.pool_used_bytes.clone(),
        );
        pool.register(
            "damaged_sectors",
            "Sectors read since the start that were not what was written, and were answered with an error",
            metrics.pool_damaged.clone(),
        );
        pool.register("failed", "1 once a flush or metadata write has failed", metrics.pool_failed.clone());
        metrics.register_scrub(pool);
        metrics.register_rekey(node);
        metrics.register_snapshots(node);
        metrics.register_sources(node);
        metrics.register_replication(node);
        metrics.health.register(node);
        registry.register("nightlatch_build", "The running version", metrics.build.clone());
        metrics.build.get_or_create(&BuildLabel { version: env!("CARGO_PKG_VERSION") }).set(1);
        metrics
    }

    fn register_scrub(&self, pool: &mut Registry) {
        let scrub = pool.sub_registry_with_prefix("scrub");
        scrub.register("running", "1 while a pass of scrubbing reads", self.scrub_running.clone());
        scrub.register_with_unit(
            "done",
            "What the pass on its way has compared",
            Unit::Bytes,
            self.scrub_done.clone(),
        );
        scrub.register(
            "damaged_sectors",
            "Sectors that were not what was written, of the pass on its way, or else of the last",
            self.scrub_damaged.clone(),
        );
        scrub.register(
            "last_end_timestamp_seconds",
            "When the last pass came to its end, seconds since 1970; 0 before the first",
            self.scrub_last_end.clone(),
        );
    }

    fn register_rekey(&self, node: &mut Registry) {
        let rekey = node.sub_registry_with_prefix("rekey");
        rekey.register(
            "volumes",
            "Volumes of which something lies under an older epoch of the key, their snapshots included",
            self.rekey_volumes.clone(),
        );
        rekey.register("running", "Volumes that are being sealed anew", self.rekey_running.clone());
        rekey.register_with_unit(
            "left",
            "What of volumes is still to be sealed anew",
            Unit::Bytes,
            self.rekey_left.clone(),
        );
        rekey.register(
            "failing",
            "Volumes of which sealing anew does not go on; `nightlatch volume rotate --show` says why",
            self.rekey_failing.clone(),
        );
    }

    fn register_snapshots(&self, node: &mut Registry) {
        node.register("snapshots_locked", "Snapshots whose lock is not over", self.snapshots_locked.clone());
        node.register(
            "snapshot_schedules_failing",
            "Snapshot schedules that do not do what they should",
            self.schedules_failing.clone(),
        );
        node.register(
            "snapshot_rewrite_anomalies",
            "Volumes of which an unusual part was rewritten from one snapshot to the next, and nobody has acknowledged it",
            self.rewrite_anomalies.clone(),
        );
        node.register(
            "snapshot_rewritten_ratio",
            "Largest part of what a schedule's last snapshot but one shows that the last shows otherwise",
            self.rewritten_ratio.clone(),
        );
        node.register(
            "replica_portions_refused_full",
            "Parts of snapshots that were not taken in for want of space, since the start",
            self.refused_full.clone(),
        );
    }

    fn register_sources(&self, node: &mut Registry) {
        let source = node.sub_registry_with_prefix("source");
        source.register("up", "1 while the source of triggers is heard", self.source_up.clone());
        source.register("active", "Conditions that are on", self.source_active.clone());
        source.register("fired", "Conditions that came on since the start", self.source_fired.clone());
        source.register(
            "refused",
            "Messages that were not what they claimed to be since the start",
            self.source_refused.clone(),
        );
    }

    fn register_replication(&self, node: &mut Registry) {
        let replication = node.sub_registry_with_prefix("replication");
        replication.register(
            "connected",
            "1 while this node is connected to the peer that it sends to",
            self.replication_connected.clone(),
        );
        replication.register_with_unit(
            "lag",
            "How old the state is that the peer has of the volume, 0 where it has all",
            Unit::Seconds,
            self.replication_lag_seconds.clone(),
        );
        replication.register_with_unit(
            "lag",
            "What was written to the volume since that state",
            Unit::Bytes,
            self.replication_lag_bytes.clone(),
        );
        replication.register(
            "lag_epochs",
            "Epochs that the peer has not, with the one that is not closed",
            self.replication_lag_epochs.clone(),
        );
        replication.register(
            "stopped",
            "1 while the peer or this node refuses the volume",
            self.replication_stopped.clone(),
        );
        replication.register_with_unit(
            "worst_lag",
            "The largest lag of any volume at any peer",
            Unit::Seconds,
            self.replication_worst_lag_seconds.clone(),
        );
        replication.register(
            "peers_away",
            "Peers that this node sends to and is not connected to",
            self.replication_peers_away.clone(),
        );
        replication.register(
            "volumes_stopped",
            "Volumes that a peer or this node refuses, each as often as it is",
            self.replication_volumes_stopped.clone(),
        );
        let replica = node.sub_registry_with_prefix("replica");
        replica.register_with_unit(
            "newest_age",
            "Time since the newest epoch of the replica arrived here, or since the start",
            Unit::Seconds,
            self.replica_newest_age_seconds.clone(),
        );
        replica.register_with_unit(
            "unheard",
            "Time since the peer that sends the replica was heard, or since the start: it is while it is connected, whether something is written or not",
            Unit::Seconds,
            self.replica_unheard_seconds.clone(),
        );
        replica.register_with_unit(
            "worst_unheard",
            "The longest of that of any replica here, 0 where there is none",
            Unit::Seconds,
            self.replica_worst_unheard_seconds.clone(),
        );
        replica.register(
            "epochs_refused",
            "Volumes and epochs that peers sent and this node refused since the start, by the reason",
            self.replica_epochs_refused.clone(),
        );
    }

    fn refresh_replication(&self, node: &Node) {
        // What is no longer sent is no longer shown.
        self.replication_lag_seconds.clear();
        self.replication_lag_bytes.clear();
        self.replication_lag_epochs.clear();
        self.replication_stopped.clear();
        let (mut worst, mut away, mut stopped) = (0, 0, 0);
        let api::Replication { peers, replicas } = node.replication_status();
        self.replica_newest_age_seconds.clear();
        self.replica_unheard_seconds.clear();
        let mut unheard = 0;
        for replica in replicas.into_iter().filter(|replica| replica.is_replica && replica.is_expected) {
            unheard = unheard.max(replica.unheard_s);
            let label = ReplicaLabel { volume: replica.volume.to_string() };
            self.replica_newest_age_seconds.get_or_create(&label).set(count(replica.newest_age_s));
            self.replica_unheard_seconds.get_or_create(&label).set(count(replica.unheard_s));
        }
        self.replica_worst_unheard_seconds.set(count(unheard));
        for (reason, refused) in node.replication.refused() {
            self.replica_epochs_refused.get_or_create(&ReasonLabel { reason }).set(count(refused));
        }
        for peer in peers.into_iter().filter(|peer| peer.address.is_some()) {
            away += i64::from(!peer.connected);
            let label = PeerLabel { peer: peer.name.clone() };
            self.replication_connected.get_or_create(&label).set(i64::from(peer.connected));
            for sent in peer.volumes {
                worst = worst.max(sent.lag_seconds);
                stopped += i64::from(sent.trouble.is_some());
                let label = SentLabel { peer: peer.name.clone(), volume: sent.volume.to_string() };
                self.replication_lag_seconds.get_or_create(&label).set(count(sent.lag_seconds));
                self.replication_lag_bytes.get_or_create(&label).set(count(sent.lag_bytes));
                self.replication_lag_epochs.get_or_create(&label).set(count(sent.lag_epochs));
                self.replication_stopped.get_or_create(&label).set(i64::from(sent.trouble.is_some()));
            }
        }
        self.replication_worst_lag_seconds.set(count(worst));
        self.replication_peers_away.set(away);
        self.replication_volumes_stopped.set(stopped);
    }

    pub(crate) fn refresh(&self, node: &Node) {
        for source in &node.sources {
            let label = SourceLabel { source: source.name().to_owned(), kind: source.kind() };
            self.source_up.get_or_create(&label).set(i64::from(!source.is_lost()));
            self.source_active.get_or_create(&label).set(count(source.active().count()));
            self.source_fired.get_or_create(&label).set(count(source.fired()));
            self.source_refused.get_or_create(&label).set(count(source.refused()));
        }
        self.refresh_rekey(node);
        self.refresh_snapshots(node);
        self.refresh_replication(node);
        self.health.refresh(node);
        let keyring = node.keyring.status();
        self.sealed.set(i64::from(node.is_sealed()));
        let remaining_ms = keyring.deadline.map_or(0, |deadline| deadline.ms_since(boot_clock::now()));
        self.lease_remaining_seconds.set(seconds(remaining_ms, 1e3));
        self.keys.set(count(keyring.keys));
        self.key_promotions.set(count(keyring.promotions));
        self.wipes.set(count(keyring.generation));
        if let Some(wipe) = node.wiper.last() {
            self.last_wipe_seconds.set(seconds(wipe.stages.keys_ns, 1e9));
        }
        self.notifications_lost.set(node.store().map_or(0, |store| count(store.events_lost())));
        for open in &node.pools {
            let info = open.pool.info();
            let label = PoolLabel { pool: info.id.to_string() };
            self.pool_capacity_bytes.get_or_create(&label).set(count(info.capacity.0));
            self.pool_used_bytes.get_or_create(&label).set(count(info.allocated.0));
            self.pool_damaged.get_or_create(&label).set(count(info.damaged));
            self.pool_failed.get_or_create(&label).set(i64::from(info.failed));
            let scrub = open.scrubber.status();
            let (pass, last) = (scrub.pass.as_ref(), scrub.last.as_ref());
            let damaged = pass.map(|pass| pass.damaged_sectors).or(last.map(|last| last.damaged_sectors));
            self.scrub_running.get_or_create(&label).set(i64::from(scrub.running));
            self.scrub_done.get_or_create(&label).set(count(pass.map_or(0, |pass| pass.bytes_done)));
            self.scrub_damaged.get_or_create(&label).set(count(damaged.unwrap_or(0)));
            self.scrub_last_end.get_or_create(&label).set(count(last.map_or(0, |last| last.ended_unix_s)));
        }
    }
}

impl NodeMetrics {
    fn refresh_rekey(&self, node: &Node) {
        let all: Vec<_> = node.pools.iter().flat_map(|open| open.rekeyer.statuses()).collect();
        let several = |status: &&admin::api::RekeyStatus| status.bytes_left > 0 || status.epochs.len() > 1;
        self.rekey_volumes.set(count(all.iter().filter(several).count()));
        self.rekey_running.set(count(all.iter().filter(|status| status.running).count()));
        self.rekey_left.set(count(all.iter().map(|status| status.bytes_left).sum::<u64>()));
        self.rekey_failing.set(count(all.iter().filter(|status| status.trouble.is_some()).count()));
    }

    fn refresh_snapshots(&self, node: &Node) {
        let schedules = node.schedules.status(node.retention.run_s());
        let troubled = schedules.iter().filter(|schedule| schedule.trouble.is_some());
        let unusual = schedules.iter().filter(|schedule| schedule.anomaly.is_some());
        let rewritten = schedules.iter().filter_map(|schedule| schedule.rewritten_percent).max();
        self.snapshots_locked.set(count(node.locked_snapshots()));
        self.schedules_failing.set(count(troubled.count()));
        self.rewrite_anomalies.set(count(unusual.count()));
        self.rewritten_ratio.set(f64::from(rewritten.unwrap_or(0)) / 100.0);
        self.refused_full.set(count(node.refused_full.load(Ordering::Relaxed)));
    }
}

/// Every count here is far below 2^63; a number past it would be shown as the largest there is.
fn count<N>(number: N) -> i64
where
    i64: TryFrom<N>,
{
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn seconds(number: u64, per_second: f64) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from) / per_second
}
