//! What the administrative interface asks of this node.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use admin::{ControlError, ErrorKind, NodeControl, api};
use bytes::Bytes;
use hygiene::{Report, Verdict};
use lease::message::WipeCause;
use locked_memory::MemoryKind;
use objects::{NewAccessKey, Store, StoreError};
use pool::{
    Ceilings, CheckReport, Limits, Pool, PoolError, PoolErrorKind, Problem, SnapshotInfo, Usage, VolumeInfo,
    VolumeSpec,
};
use sources::SourceState;
use units::{ByteLen, PoolId, VolumeId};

use crate::boot_clock;
use crate::node::{Node, OpenPool, snapshot_label};

/// The work of a request that waits for a device, off the executor.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ControlError> + Send + 'static,
) -> Result<T, ControlError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(ControlError::new(
            ErrorKind::Failed,
            "the node gave up on the request",
            "look at the node's log, and report what it says",
        )),
    }
}

fn sealed() -> ControlError {
    ControlError::new(
        ErrorKind::Sealed,
        "the object store's key is not on this node",
        "push it with `nightlatch push`; `nightlatch status` says why the node is sealed",
    )
}

pub(crate) fn pool_error(error: &PoolError) -> ControlError {
    let kind = match error.kind() {
        PoolErrorKind::NoSpace => ErrorKind::Full,
        PoolErrorKind::NoSuchVolume => ErrorKind::NotFound,
        PoolErrorKind::Refused | PoolErrorKind::StaleFence | PoolErrorKind::OutOfRange => ErrorKind::Invalid,
        _ => ErrorKind::Failed,
    };
    ControlError::new(kind, error.to_string(), "")
}

fn store_error(error: &StoreError) -> ControlError {
    let kind = match error {
        StoreError::Sealed | StoreError::Closed => return sealed(),
        StoreError::NoSuchBucket | StoreError::NoSuchUser | StoreError::NoSuchAccessKey => {
            ErrorKind::NotFound
        }
        StoreError::BucketExists
        | StoreError::BucketNotEmpty
        | StoreError::UserExists
        | StoreError::Conflict => ErrorKind::Conflict,
        StoreError::NoSpace => ErrorKind::Full,
        error if error.is_outage() => ErrorKind::Failed,
        _ => ErrorKind::Invalid,
    };
    ControlError::new(kind, error.to_string(), "")
}

/// A further key for a user there is, a first one for a new user.
fn create_access_key(store: &Store, user: &str) -> Result<NewAccessKey, StoreError> {
    match store.create_user(user) {
        Err(StoreError::UserExists) => store.create_access_key(user),
        made => made,
    }
}

fn bucket(info: objects::BucketInfo) -> api::Bucket {
    api::Bucket { name: info.name, created_unix_s: unix_seconds(info.created) }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

pub(crate) fn unknown_volume(volume: VolumeId) -> ControlError {
    ControlError::new(
        ErrorKind::NotFound,
        format!("there is no volume {volume} on this node"),
        "`nightlatch volume list` says which node holds it",
    )
}

impl Node {
    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let store = self.store().ok_or_else(sealed)?;
        blocking(move || work(&store).map_err(|error| store_error(&error))).await
    }

    pub(crate) fn volume_status(&self, open: &OpenPool, info: &VolumeInfo) -> api::VolumeStatus {
        let label = self.served().get(&info.id).map(|served| served.label.clone());
        api::VolumeStatus {
            volume: info.id,
            unsealed: label.is_some(),
            label,
            pool: open.pool.info().id,
            kind: match info.kind {
                pool::VolumeKind::Block => "block".into(),
                pool::VolumeKind::Objects => "objects".into(),
            },
            size_bytes: info.sectors.byte_len().map_or(0, |len| len.0),
            used_bytes: info.allocated.0,
            quota_bytes: info.limits.quota.map(|quota| quota.0),
            reserve_bytes: info.limits.reserve.0,
            requests_per_second: info.limits.ceilings.requests_per_s,
            bytes_per_second: info.limits.ceilings.bytes_per_s.map(|bytes| bytes.0),
            clone_of: info.clone_of,
            replica: info.replica,
            encrypted_blocks: info.encrypted_blocks,
            domain: info.domain,
            epoch: info.epoch,
            check: hex::encode(info.check),
            fence: info.fence,
        }
    }

    fn seal_state(&self) -> api::SealState {
        let change = self.seal_change();
        let sealed = self.is_sealed();
        let deadline = self.keyring.status().deadline.filter(|_| !sealed);
        let cause = change.cause.map_or_else(|| "never-unsealed".to_owned(), |cause| cause.name().to_owned());
        api::SealState {
            sealed,
            since_unix_s: change.since_unix_s,
            since_boot_ns: change.since_boot,
            cause: sealed.then_some(cause),
            lease_deadline_boot_ns: deadline,
            lease_remaining_ms: deadline.map(|deadline| deadline.ms_since(boot_clock::now())),
        }
    }

    fn key_memory(&self) -> api::KeyMemory {
        let status = self.keyring.status();
        api::KeyMemory {
            memory: match status.memory {
                MemoryKind::MemfdSecret => "memfd-secret".into(),
                MemoryKind::Mlock => "mlock".into(),
            },
            keys: status.keys,
            key_slots: status.key_slots,
            generation: status.generation,
            last_use_boot_ns: status.last_use,
        }
    }

    fn create(&self, request: &api::CreateVolume) -> Result<api::VolumeStatus, ControlError> {
        let invalid = |message: &str, next: &str| ControlError::new(ErrorKind::Invalid, message, next);
        let len = ByteLen(request.size_bytes);
        if !len.is_sector_aligned() {
            return Err(invalid("the size is not a multiple of 4096 bytes", "round it up"));
        }
        let mut check = [0; 16];
        hex::decode_to_slice(&request.check, &mut check).map_err(|_| {
            invalid("`check` is not 32 hexadecimal digits", "send the key-check value in hex")
        })?;
        let open = match request.pool {
            Some(pool) => self.pool_or_refuse(pool)?,
            None => self
                .pools
                .iter()
                .filter(|open| open.pool.info().keeps_records)
                .max_by_key(|open| {
                    let info = open.pool.info();
                    info.capacity.0.saturating_sub(info.allocated.0)
                })
                .ok_or_else(|| {
                    invalid(
                        "this node has no pool for new volumes",
                        "make one and add it to its configuration",
                    )
                })?,
        };
        if !open.pool.info().keeps_records {
            return Err(invalid(
                "the pool was made in an older format, without sector records, and could not verify the volume",
                "create the volume in a pool that `nightlatch pool create` makes now",
            ));
        }
        let spec = VolumeSpec {
            id: request.volume,
            sectors: len.whole_sectors(),
            domain: request.domain,
            epoch: request.epoch,
            check,
            kind: match request.kind {
                api::VolumeKind::Block => pool::VolumeKind::Block,
                api::VolumeKind::Objects => pool::VolumeKind::Objects,
            },
        };
        let volume = open
            .pool
            .create_volume_within(spec, pool_limits(request.limits))
            .map_err(|error| pool_error(&error))?;
        self.volumes_changed();
        tracing::info!(volume = %request.volume, size = %len, "created a volume");
        Ok(self.volume_status(open, &volume.info()))
    }

    fn resize(
        &self,
        volume: VolumeId,
        request: &api::ResizeVolume,
    ) -> Result<api::VolumeStatus, ControlError> {
        let (open, found) = self.find_volume(volume).ok_or_else(|| unknown_volume(volume))?;
        let len = ByteLen(request.size_bytes);
        if !len.is_sector_aligned() {
            let message = "the size is not a multiple of 4096 bytes";
            return Err(ControlError::new(ErrorKind::Invalid, message, "round it up"));
        }
        if len.whole_sectors() < found.sectors() && !request.allow_shrink {
            return Err(ControlError::new(
                ErrorKind::Invalid,
                format!("{len} is less than the volume has; what lies past it would be lost"),
                "say so with `--allow-shrink` if that is meant",
            ));
        }
        open.pool.resize_volume(volume, len.whole_sectors()).map_err(|error| pool_error(&error))?;
        self.volumes_changed();
        tracing::info!(%volume, size = %len, "resized a volume");
        Ok(self.volume_status(open, &found.info()))
    }

    fn delete(&self, volume: VolumeId) -> Result<(), ControlError> {
        let (open, _) = self.find_volume(volume).ok_or_else(|| unknown_volume(volume))?;
        self.refuse_served(volume, "revoke its key first; `nightlatch volume delete` does both in order")?;
        let snapshots = open.pool.snapshots().iter().filter(|snapshot| snapshot.volume == volume).count();
        if snapshots > 0 {
            return Err(ControlError::new(
                ErrorKind::Conflict,
                format!("the volume has {snapshots} snapshots, which nobody could read without its key"),
                "delete them first with `nightlatch snapshot delete`; then delete the volume again",
            ));
        }
        open.pool.delete_volume(volume).map_err(|error| pool_error(&error))?;
        self.volumes_changed();
        tracing::warn!(%volume, "deleted a volume");
        Ok(())
    }

    fn refuse_served(&self, volume: VolumeId, next_step: &str) -> Result<(), ControlError> {
        if self.served().contains_key(&volume) {
            let message = "the volume's key is held and the volume is served";
            return Err(ControlError::new(ErrorKind::Conflict, message, next_step));
        }
        Ok(())
    }

    fn limit(&self, volume: VolumeId, limits: api::VolumeLimits) -> Result<api::VolumeStatus, ControlError> {
        let (open, found) = self.find_volume(volume).ok_or_else(|| unknown_volume(volume))?;
        open.pool.set_limits(volume, pool_limits(limits)).map_err(|error| pool_error(&error))?;
        tracing::info!(%volume, ?limits, "limited a volume");
        Ok(self.volume_status(open, &found.info()))
    }

    /// Clients of a volume believe in what they have read: one that is served is not rolled back under them.
    fn roll_back(&self, volume: VolumeId, request: api::RollBack) -> Result<api::VolumeStatus, ControlError> {
        let (open, found) = self.find_volume(volume).ok_or_else(|| unknown_volume(volume))?;
        self.refuse_served(
            volume,
            "stop its clients and revoke its key with `nightlatch revoke --volume`; roll back; unlatch and push it again",
        )?;
        open.pool.roll_back(volume, request.snapshot).map_err(|error| pool_error(&error))?;
        self.volumes_changed();
        tracing::warn!(%volume, snapshot = %request.snapshot, "rolled a volume back");
        Ok(self.volume_status(open, &found.info()))
    }

    fn snapshots(&self) -> Vec<api::SnapshotStatus> {
        let of_pool = |open: &OpenPool| {
            let usage = open.pool.usage().of;
            let id = open.pool.info().id;
            let status = |info: &SnapshotInfo| snapshot_status(id, info, usage.get(&info.id).copied());
            open.pool.snapshots().iter().map(status).collect::<Vec<_>>()
        };
        self.pools.iter().flat_map(of_pool).collect()
    }

    fn create_snapshot(&self, volume: VolumeId) -> Result<api::SnapshotStatus, ControlError> {
        let (open, _) = self.find_volume(volume).ok_or_else(|| unknown_volume(volume))?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| {
            let message = format!("the system's random source failed: {error}");
            ControlError::new(ErrorKind::Failed, message, "look at the kernel's log")
        })?;
        let now = unix_seconds(SystemTime::now());
        let info =
            open.pool.create_snapshot(volume, VolumeId(id), now).map_err(|error| pool_error(&error))?;
        tracing::info!(%volume, snapshot = %info.id, "took a snapshot");
        if let Some(served) = self.served().get(&volume) {
            self.export_snapshot(&open.pool, served, info.id);
        }
        let usage = open.pool.usage().of.get(&info.id).copied();
        Ok(snapshot_status(open.pool.info().id, &info, usage))
    }

    fn delete_snapshot(&self, snapshot: VolumeId) -> Result<(), ControlError> {
        let pool = self.pool_with_snapshot(snapshot)?;
        let of = pool.snapshots().into_iter().find(|found| found.id == snapshot).map(|found| found.volume);
        let label = of.and_then(|volume| self.served().get(&volume).map(|served| served.label.clone()));
        if let Some(label) = label {
            self.nbd.remove(&snapshot_label(&label, snapshot));
        }
        pool.delete_snapshot(snapshot).map_err(|error| pool_error(&error))?;
        tracing::warn!(%snapshot, "deleted a snapshot");
        Ok(())
    }

    fn clone_snapshot(
        &self,
        snapshot: VolumeId,
        request: api::CloneSnapshot,
    ) -> Result<api::VolumeStatus, ControlError> {
        let pool = self.pool_with_snapshot(snapshot)?;
        let clone = pool
            .clone_snapshot(snapshot, request.volume, pool_limits(request.limits))
            .map_err(|error| pool_error(&error))?;
        self.volumes_changed();
        tracing::info!(%snapshot, volume = %request.volume, "cloned a snapshot");
        let open = self.pool_or_refuse(pool.info().id)?;
        Ok(self.volume_status(open, &clone.info()))
    }

    pub(crate) fn pool_with_snapshot(&self, snapshot: VolumeId) -> Result<&Pool, ControlError> {
        let found = self.pools.iter().find(|open| open.pool.snapshot(snapshot).is_ok());
        found.map(|open| &*open.pool).ok_or_else(|| {
            let message = format!("there is no snapshot {snapshot} on this node");
            ControlError::new(
                ErrorKind::NotFound,
                message,
                "`nightlatch snapshot list` shows those there are",
            )
        })
    }

    pub(crate) fn pool_or_refuse(&self, pool: PoolId) -> Result<&OpenPool, ControlError> {
        self.find_pool(pool).ok_or_else(|| {
            let message = format!("there is no pool {pool} on this node");
            ControlError::new(ErrorKind::NotFound, message, "`nightlatch pool list` shows those there are")
        })
    }
}

fn pool_limits(limits: api::VolumeLimits) -> Limits {
    Limits {
        quota: limits.quota_bytes.map(ByteLen),
        reserve: ByteLen(limits.reserve_bytes),
        ceilings: Ceilings {
            requests_per_s: limits.requests_per_second,
            bytes_per_s: limits.bytes_per_second.map(ByteLen),
        },
    }
}

pub(crate) fn snapshot_status(
    pool: PoolId,
    info: &SnapshotInfo,
    usage: Option<Usage>,
) -> api::SnapshotStatus {
    let usage = usage.unwrap_or_default();
    api::SnapshotStatus {
        snapshot: info.id,
        volume: info.volume,
        pool,
        created_unix_s: info.created_s,
        size_bytes: info.sectors.byte_len().map_or(0, |len| len.0),
        referenced_bytes: usage.referenced.0,
        unique_bytes: usage.unique.0,
    }
}

fn check_report(report: &CheckReport) -> api::PoolCheck {
    let problem = |problem: &Problem| api::PoolProblem {
        what: problem.damage.to_string(),
        device_offset: problem.at.0,
    };
    api::PoolCheck {
        pool: report.pool,
        sound: report.is_sound(),
        volumes: report.volumes,
        snapshots: report.snapshots,
        mapped_extents: report.mapped_extents,
        present_sectors: report.present_sectors,
        unfinished_unmaps: report.unfinished_unmaps,
        damaged_superblock: report.damaged_superblock.map(|copy| copy.sector),
        problems: report.problems.iter().map(problem).collect(),
        problems_unlisted: report.problems_unlisted,
    }
}

fn pool_status(open: &OpenPool) -> api::PoolStatus {
    let info = open.pool.info();
    api::PoolStatus {
        pool: info.id,
        path: open.path.clone(),
        capacity_bytes: info.capacity.0,
        used_bytes: info.allocated.0,
        reserved_bytes: info.reserved.0,
        extent_bytes: info.extent_len.0,
        keeps_records: info.keeps_records,
        damaged_sectors: info.damaged,
        failed: info.failed,
        scrub: open.scrubber.status(),
    }
}

fn source_status(source: &SourceState) -> api::SourceStatus {
    api::SourceStatus {
        name: source.name().to_owned(),
        kind: source.kind().to_owned(),
        up: !source.is_lost(),
        recorded: source.is_twin(),
        active: source.active().map(|condition| condition.name().to_owned()).collect(),
        fired: source.fired(),
        refused: source.refused(),
        heard_boot_ns: source.heard(),
        trouble: source.trouble(),
    }
}

fn hygiene_findings(report: Report) -> Vec<api::HygieneFinding> {
    let findings = report.findings.into_iter();
    findings
        .map(|finding| api::HygieneFinding {
            probe: finding.probe.name().to_owned(),
            verdict: finding.verdict.name().to_owned(),
            found: finding.found,
            advice: match finding.verdict {
                Verdict::Good => String::new(),
                _ => format!("{} {}", finding.probe.why(), finding.probe.mend()),
            },
        })
        .collect()
}

/// The node as the administrative interface holds it.
#[derive(Debug)]
pub(crate) struct Handle(pub(crate) Arc<Node>);

impl NodeControl for Handle {
    fn is_alive(&self) -> bool {
        self.0.wiper.is_watching()
    }

    fn readiness(&self) -> Result<(), String> {
        let node = &self.0;
        if let Some(open) = node.pools.iter().find(|open| open.pool.info().failed) {
            return Err(format!(
                "the pool {} has failed; check its device, then restart the node",
                open.path
            ));
        }
        let seal = node.seal_state();
        match seal.cause {
            Some(cause) => Err(format!("sealed: {cause}; push the key to serve again")),
            None => Ok(()),
        }
    }

    async fn status(&self) -> api::NodeStatus {
        let node = &self.0;
        let volumes = node.pools.iter().flat_map(|open| {
            let volumes = open.pool.volumes();
            volumes.into_iter().map(|info| node.volume_status(open, &info)).collect::<Vec<_>>()
        });
        api::NodeStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            node: node.id,
            name: node.name.clone(),
            boot: node.boot,
            now_boot_ns: boot_clock::now(),
            seal: node.seal_state(),
            last_wipe: node.wiper.last().map(|wipe| api::LastWipe {
                cause: wipe.record.cause.name().into(),
                at_boot_ns: wipe.record.at,
                wipe_ns: wipe.stages.keys_ns,
                keys: wipe.keys,
                stage: wipe.stages.reached(),
                threads_ns: wipe.stages.threads_ns,
                memory_ns: wipe.stages.memory_ns,
            }),
            key_memory: node.key_memory(),
            cipher: crate::cipher::status(node.keyring.kernel()),
            pools: node.pools.iter().map(pool_status).collect(),
            volumes: volumes.collect(),
            listening: node.listening.clone(),
            sources: node.sources.iter().map(|source| source_status(source)).collect(),
            hygiene: hygiene_findings(node.subject.report()),
        }
    }

    async fn grow_pool(&self, pool: PoolId) -> Result<api::PoolStatus, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || {
            let open = node.pool_or_refuse(pool)?;
            let len = open.pool.grow().map_err(|error| pool_error(&error))?;
            tracing::info!(path = open.path, size = %len, "the pool uses its device's new size");
            Ok(pool_status(open))
        })
        .await
    }

    async fn check_pool(&self, pool: PoolId) -> Result<api::PoolCheck, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || {
            let report = node.pool_or_refuse(pool)?.pool.check().map_err(|error| pool_error(&error))?;
            Ok(check_report(&report))
        })
        .await
    }

    async fn scrub_pool(
        &self,
        pool: PoolId,
        action: api::ScrubAction,
    ) -> Result<api::PoolStatus, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || {
            let open = node.pool_or_refuse(pool)?;
            open.scrubber.order(action);
            tracing::info!(path = open.path, ?action, "scrubbing was ordered");
            Ok(pool_status(open))
        })
        .await
    }

    async fn snapshot_manifest(
        &self,
        snapshot: VolumeId,
        since: Option<VolumeId>,
    ) -> Result<api::SnapshotManifest, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.snapshot_manifest(snapshot, since)).await
    }

    async fn snapshot_portion(
        &self,
        snapshot: VolumeId,
        since: Option<VolumeId>,
        from_sector: u64,
        sectors: u64,
    ) -> Result<Vec<u8>, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.snapshot_portion(snapshot, since, from_sector, sectors)).await
    }

    async fn begin_receiving(&self, request: api::Receive) -> Result<api::Received, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.begin_receiving(&request)).await
    }

    async fn receive(
        &self,
        volume: VolumeId,
        snapshot: VolumeId,
        portion: Bytes,
    ) -> Result<api::Received, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.receive(volume, snapshot, &portion)).await
    }

    async fn end_receiving(
        &self,
        manifest: api::SnapshotManifest,
    ) -> Result<api::SnapshotStatus, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.end_receiving(&manifest)).await
    }

    async fn promote(&self, volume: VolumeId) -> Result<api::Promoted, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.promote(volume)).await
    }

    async fn create_volume(&self, request: api::CreateVolume) -> Result<api::VolumeStatus, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.create(&request)).await
    }

    async fn resize_volume(
        &self,
        volume: VolumeId,
        request: api::ResizeVolume,
    ) -> Result<api::VolumeStatus, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.resize(volume, &request)).await
    }

    async fn delete_volume(&self, volume: VolumeId) -> Result<(), ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.delete(volume)).await
    }

    async fn limit_volume(
        &self,
        volume: VolumeId,
        limits: api::VolumeLimits,
    ) -> Result<api::VolumeStatus, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.limit(volume, limits)).await
    }

    async fn roll_back_volume(
        &self,
        volume: VolumeId,
        request: api::RollBack,
    ) -> Result<api::VolumeStatus, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.roll_back(volume, request)).await
    }

    async fn snapshots(&self) -> Result<Vec<api::SnapshotStatus>, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || Ok(node.snapshots())).await
    }

    async fn create_snapshot(
        &self,
        request: api::CreateSnapshot,
    ) -> Result<api::SnapshotStatus, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.create_snapshot(request.volume)).await
    }

    async fn delete_snapshot(&self, snapshot: VolumeId) -> Result<(), ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.delete_snapshot(snapshot)).await
    }

    async fn clone_snapshot(
        &self,
        snapshot: VolumeId,
        request: api::CloneSnapshot,
    ) -> Result<api::VolumeStatus, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.clone_snapshot(snapshot, request)).await
    }

    async fn buckets(&self) -> Result<Vec<api::Bucket>, ControlError> {
        let buckets = self.0.with_store(Store::buckets).await?;
        Ok(buckets.into_iter().map(bucket).collect())
    }

    async fn create_bucket(&self, name: String) -> Result<api::Bucket, ControlError> {
        let create = move |store: &Store| {
            store.create_bucket(&name, objects::BucketOptions::default()).and_then(|()| store.bucket(&name))
        };
        self.0.with_store(create).await.map(bucket)
    }

    async fn delete_bucket(&self, name: String) -> Result<(), ControlError> {
        self.0.with_store(move |store| store.delete_bucket(&name)).await
    }

    async fn access_keys(&self) -> Result<Vec<api::AccessKey>, ControlError> {
        let users = self.0.with_store(Store::users).await?;
        let keys = users.into_iter().flat_map(|user| {
            let name = user.name;
            user.access_keys.into_iter().map(move |key| api::AccessKey {
                user: name.clone(),
                access_key: key.id,
                created_unix_s: unix_seconds(key.created),
            })
        });
        Ok(keys.collect())
    }

    async fn create_access_key(&self, user: String) -> Result<api::CreatedAccessKey, ControlError> {
        let made = self.0.with_store(move |store| create_access_key(store, &user)).await?;
        tracing::info!(user = made.user, access_key = made.id, "made an access key");
        Ok(api::CreatedAccessKey {
            user: made.user,
            access_key: made.id,
            secret_key: made.secret.expose().to_owned(),
        })
    }

    async fn delete_user(&self, user: String) -> Result<(), ControlError> {
        self.0.with_store(move |store| store.delete_user(&user)).await
    }

    async fn delete_access_key(&self, access_key: String) -> Result<(), ControlError> {
        self.0.with_store(move |store| store.delete_access_key(&access_key)).await
    }

    async fn wipe(&self, who: String) -> api::Wiped {
        tracing::warn!(who, "an administrator wipes the node");
        let wipe = self.0.wiper.wipe(WipeCause::Admin);
        api::Wiped { keys: wipe.keys, wipe_ns: wipe.stages.keys_ns, generation: wipe.record.generation }
    }
}
