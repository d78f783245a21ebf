//! What the administrative interface asks of this node.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use admin::{Act, ControlError, ErrorKind, NodeControl, Readiness, api};
use bytes::Bytes;
use hygiene::{Report, Verdict};
use lease::limits::NAMED_KEY_BYTES;
use lease::message::WipeCause;
use locked_memory::MemoryKind;
use objects::{GroupInfo, NewAccessKey, PolicyInfo, Principal, Quota, QuotaOf, Store, StoreError, UserInfo};
use pool::{Ceilings, CheckReport, Limits, PoolError, PoolErrorKind, Problem, VolumeInfo, VolumeSpec};
use sources::SourceState;
use units::{ByteLen, Fence, PoolId, VolumeId};

use crate::boot_clock;
use crate::claims::Claim;
use crate::exports::SetError;
use crate::lock::lock;
use crate::node::{Node, OpenPool};
use crate::webhooks;

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
        PoolErrorKind::Locked => ErrorKind::Conflict,
        PoolErrorKind::Refused | PoolErrorKind::StaleFence | PoolErrorKind::OutOfRange => ErrorKind::Invalid,
        _ => ErrorKind::Failed,
    };
    ControlError::new(kind, error.to_string(), "")
}

fn trail_error(error: &audit_log::TrailError) -> ControlError {
    ControlError::new(ErrorKind::Failed, error.to_string(), "")
}

fn store_error(error: &StoreError) -> ControlError {
    let kind = match error {
        StoreError::Sealed | StoreError::Closed => return sealed(),
        StoreError::NoSuchBucket
        | StoreError::NoSuchUser
        | StoreError::NoSuchAccessKey
        | StoreError::NoSuchGroup
        | StoreError::NoSuchPolicy => ErrorKind::NotFound,
        StoreError::BucketExists
        | StoreError::BucketNotEmpty
        | StoreError::UserExists
        | StoreError::GroupExists
        | StoreError::PolicyInUse
        | StoreError::Conflict => ErrorKind::Conflict,
        StoreError::NoSpace => ErrorKind::Full,
        error if error.is_outage() => ErrorKind::Failed,
        _ => ErrorKind::Invalid,
    };
    ControlError::new(kind, error.to_string(), "")
}

/// A further key for a user there is, a first one for a new user.
fn create_access_key(store: &Store, request: &api::CreateUser) -> Result<NewAccessKey, StoreError> {
    let made = match store.create_user(&request.name) {
        Err(StoreError::UserExists) => store.create_access_key(&request.name),
        made => made,
    }?;
    // Nobody has been told the key yet.
    if request.expires_in_s.is_some() {
        store.set_access_key_expiry(&made.id, from_now(request.expires_in_s))?;
    }
    Ok(made)
}

/// The moment that is so many seconds from now; none where nothing ends, or not in any time that there is.
fn from_now(seconds: Option<u64>) -> Option<SystemTime> {
    seconds.and_then(|seconds| SystemTime::now().checked_add(Duration::from_secs(seconds)))
}

fn identities(store: &Store) -> Result<api::Identities, StoreError> {
    let user = |user: UserInfo| api::User {
        name: user.name,
        limited: user.limited,
        groups: user.groups,
        policies: user.policies,
        access_keys: user.access_keys.into_iter().map(|key| key.id).collect(),
    };
    let group =
        |group: GroupInfo| api::Group { name: group.name, policies: group.policies, members: group.members };
    let quota = |(of, quota): (QuotaOf, Quota)| api::Quota {
        of: match of {
            QuotaOf::Bucket(name) => api::QuotaOf::Bucket(name),
            QuotaOf::User(name) => api::QuotaOf::User(name),
        },
        bytes: quota.bytes,
        objects: quota.objects,
    };
    let policy = |policy: PolicyInfo| api::Policy { name: policy.name, document: policy.text };
    Ok(api::Identities {
        users: store.users()?.into_iter().map(user).collect(),
        groups: store.groups()?.into_iter().map(group).collect(),
        policies: store.policies()?.into_iter().map(policy).collect(),
        quotas: store.quotas()?.into_iter().map(quota).collect(),
    })
}

fn change_identity(store: &Store, change: api::IdentityChange) -> Result<(), StoreError> {
    use api::IdentityChange as Change;
    match change {
        Change::CreateGroup { group } => store.create_group(&group),
        Change::DeleteGroup { group } => store.delete_group(&group),
        Change::SetMember { user, group, member } => store.set_membership(&user, &group, member),
        Change::PutPolicy { policy, document } => store.put_policy(&policy, &document),
        Change::DeletePolicy { policy } => store.delete_policy(&policy),
        Change::Attach { policy, to, attached } => {
            let to = match to {
                api::Attached::User(user) => Principal::User(user),
                api::Attached::Group(group) => Principal::Group(group),
            };
            store.set_attached(&policy, to, attached)
        }
        Change::SetQuota { of, bytes, objects } => {
            let of = match of {
                api::QuotaOf::Bucket(name) => QuotaOf::Bucket(name),
                api::QuotaOf::User(name) => QuotaOf::User(name),
            };
            let quota = (bytes.is_some() || objects.is_some()).then_some(Quota { bytes, objects });
            store.set_quota(of, quota)
        }
        Change::Expire { access_key, in_s } => store.set_access_key_expiry(&access_key, from_now(in_s)),
    }
}

fn bucket(store: &Store, info: objects::BucketInfo) -> Result<api::Bucket, StoreError> {
    let usage = store.usage(&info.name)?;
    Ok(api::Bucket {
        name: info.name,
        created_unix_s: unix_seconds(info.created),
        owner: info.owner,
        bytes: usage.bytes,
        objects: usage.objects,
    })
}

fn buckets(store: &Store) -> Result<Vec<api::Bucket>, StoreError> {
    let described = store.buckets()?.into_iter().map(|info| bucket(store, info));
    // One that was deleted meanwhile is none.
    described.filter(|bucket| !matches!(bucket, Err(StoreError::NoSuchBucket))).collect()
}

pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
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
                pool::VolumeKind::Objects
                    if info.sectors.byte_len().is_some_and(|len| len.0 == NAMED_KEY_BYTES) =>
                {
                    "key".into()
                }
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
            rekey: open.rekeyer.status(info.id),
        }
    }

    pub(crate) fn seal_state(&self) -> api::SealState {
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
        // Whoever the listeners let in may use a new disk; the node knows it before anybody can ask for it.
        if spec.kind == pool::VolumeKind::Block {
            self.write_access(request.volume, api::VolumeAccess::default())?;
        }
        let volume = open
            .pool
            .create_volume_within(spec, pool_limits(request.limits))
            .inspect_err(|_| drop(self.exports.forget(request.volume)))
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
        if len.whole_sectors() < found.sectors() {
            self.refuse_connected(volume)?;
        }
        open.pool.resize_volume(volume, len.whole_sectors()).map_err(|error| pool_error(&error))?;
        self.volumes_changed();
        tracing::info!(%volume, size = %len, "resized a volume");
        Ok(self.volume_status(open, &found.info()))
    }

    /// Clients learn a size when they connect: from a volume that shrinks under them they would lose what they believe to have.
    fn refuse_connected(&self, volume: VolumeId) -> Result<(), ControlError> {
        let label = self.served().get(&volume).map(|served| served.label.clone());
        let exports = self.nbd.exports();
        let connections: usize = exports
            .iter()
            .filter(|export| Some(&export.label) == label.as_ref())
            .map(|export| export.connections)
            .sum();
        if connections == 0 {
            return Ok(());
        }
        Err(ControlError::new(
            ErrorKind::Conflict,
            format!(
                "{connections} connections of NBD clients are open to the volume, which would lose its end"
            ),
            "disconnect the clients, shrink it, and let them connect again",
        ))
    }

    fn delete(&self, volume: VolumeId) -> Result<(), ControlError> {
        let (open, _) = self.find_volume(volume).ok_or_else(|| unknown_volume(volume))?;
        let _claim = self.claim(volume)?;
        self.refuse_served(volume, "revoke its key first; `nightlatch volume delete` does both in order")?;
        // No epoch arrives meanwhile that nobody would have asked for, and that would be left without its volume.
        let turn = self.replication.turn(volume);
        let _turn = lock(&turn);
        let all = open.pool.snapshots().into_iter().filter(|snapshot| snapshot.volume == volume);
        // What replication made is nobody's, unless somebody has locked it.
        let (epochs, others): (Vec<_>, Vec<_>) = all.partition(|snapshot| self.is_free_epoch(snapshot));
        let snapshots = others.len();
        if snapshots > 0 {
            return Err(ControlError::new(
                ErrorKind::Conflict,
                format!("the volume has {snapshots} snapshots, which nobody could read without its key"),
                "delete them first with `nightlatch snapshot delete`; then delete the volume again",
            ));
        }
        let fence = open.pool.volume(volume).map_or(Fence(0), |found| found.info().fence);
        self.replication.remember_fence(volume, fence).map_err(|error| {
            ControlError::new(
                ErrorKind::Failed,
                format!("the fence of the volume could not be written down: {error}"),
                "nothing was deleted; look at the disk that holds the state directory",
            )
        })?;
        for epoch in epochs {
            open.pool.delete_snapshot(epoch.id).map_err(|error| pool_error(&error))?;
        }
        open.pool.delete_volume(volume).map_err(|error| pool_error(&error))?;
        self.volumes_changed();
        if let Err(error) = self.exports.forget(volume) {
            tracing::warn!(%volume, %error, "the list of who may use a deleted volume is still written down");
        }
        // It had none, or it is tried for a volume that there is not, which status tells.
        let _ = self.remove_schedule(volume);
        tracing::warn!(%volume, "deleted a volume");
        Ok(())
    }

    /// No key comes in for the volume meanwhile.
    fn claim(&self, volume: VolumeId) -> Result<Claim<'_>, ControlError> {
        self.claims.for_change(volume).ok_or_else(|| {
            let message = "a key for the volume is being taken in, or it is being changed already";
            ControlError::new(
                ErrorKind::Conflict,
                message,
                "wait a moment and look at `nightlatch volume list`",
            )
        })
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

    fn access(&self, volume: VolumeId) -> Result<api::VolumeAccess, ControlError> {
        self.find_disk(volume)?;
        Ok(self.exports.of(volume))
    }

    fn set_access(
        &self,
        volume: VolumeId,
        access: api::VolumeAccess,
    ) -> Result<api::VolumeAccess, ControlError> {
        self.find_disk(volume)?;
        tracing::info!(%volume, ?access, "said who may use a volume");
        self.write_access(volume, access)?;
        Ok(self.exports.of(volume))
    }

    pub(crate) fn write_access(
        &self,
        volume: VolumeId,
        access: api::VolumeAccess,
    ) -> Result<(), ControlError> {
        self.exports.set(&self.nbd, volume, access).map_err(|error| match error {
            SetError::Invalid(error) => ControlError::new(ErrorKind::Invalid, error.to_string(), ""),
            SetError::NotWritten(_) => {
                let next = "nothing has changed; look at the disk that holds the state directory";
                ControlError::new(ErrorKind::Failed, error.to_string(), next)
            }
        })
    }

    /// The object store is used over S3, where users and policies say who may do what.
    fn find_disk(&self, volume: VolumeId) -> Result<(), ControlError> {
        let (_, found) = self.find_volume(volume).ok_or_else(|| unknown_volume(volume))?;
        match found.info().kind {
            pool::VolumeKind::Block => Ok(()),
            pool::VolumeKind::Objects => Err(ControlError::new(
                ErrorKind::Invalid,
                "the volume holds objects, which nobody reaches over NBD",
                "say who may do what with users and policies: `nightlatch user --help`",
            )),
        }
    }

    /// Clients of a volume believe in what they have read: one that is served is not rolled back under them.
    fn roll_back(&self, volume: VolumeId, request: api::RollBack) -> Result<api::VolumeStatus, ControlError> {
        let (open, found) = self.find_volume(volume).ok_or_else(|| unknown_volume(volume))?;
        let _claim = self.claim(volume)?;
        self.refuse_served(
            volume,
            "stop its clients and revoke its key with `nightlatch revoke --volume`; roll back; unlatch and push it again",
        )?;
        open.pool.roll_back(volume, request.snapshot).map_err(|error| pool_error(&error))?;
        self.volumes_changed();
        tracing::warn!(%volume, snapshot = %request.snapshot, "rolled a volume back");
        Ok(self.volume_status(open, &found.info()))
    }

    pub(crate) fn pool_or_refuse(&self, pool: PoolId) -> Result<&OpenPool, ControlError> {
        self.find_pool(pool).ok_or_else(|| {
            let message = format!("there is no pool {pool} on this node");
            ControlError::new(ErrorKind::NotFound, message, "`nightlatch pool list` shows those there are")
        })
    }
}

pub(crate) fn pool_limits(limits: api::VolumeLimits) -> Limits {
    Limits {
        quota: limits.quota_bytes.map(ByteLen),
        reserve: ByteLen(limits.reserve_bytes),
        ceilings: Ceilings {
            requests_per_s: limits.requests_per_second,
            bytes_per_s: limits.bytes_per_second.map(ByteLen),
        },
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

    fn readiness(&self) -> Readiness {
        self.0.readiness()
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
            schedules: node.schedules.status(node.retention.run_s()),
            findings: node.health_watch.last().map_or_else(Vec::new, |last| last.findings.clone()),
            workers: node.heartbeats.status(),
        }
    }

    async fn replication(&self) -> Result<api::Replication, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || Ok(node.replication_status())).await
    }

    async fn hardware(&self) -> Result<api::Hardware, ControlError> {
        let last = self.0.health_watch.last();
        last.map(|last| api::Hardware::clone(&last)).ok_or_else(|| {
            ControlError::new(
                ErrorKind::Failed,
                "the machine's parts have not been read yet",
                "ask again in a moment",
            )
        })
    }

    async fn locate(&self, disk: String, request: api::Locate) -> Result<api::Located, ControlError> {
        let located = self.0.health_watch.locate(disk, request.on).await?;
        tracing::info!(disk = located.disk, on = located.on, "a disk's light was switched");
        Ok(located)
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

    async fn wanted_sectors(&self, pool: PoolId) -> Result<Vec<api::WantedSector>, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.wanted_sectors(pool)).await
    }

    async fn find_sector(&self, request: api::FindSector) -> Result<Vec<u8>, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.find_sector(&request)).await
    }

    async fn heal_sector(
        &self,
        pool: PoolId,
        device_offset: u64,
        ciphertext: Bytes,
    ) -> Result<api::Healed, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.heal_sector(pool, device_offset, &ciphertext)).await
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

    async fn volume_access(&self, volume: VolumeId) -> Result<api::VolumeAccess, ControlError> {
        self.0.access(volume)
    }

    async fn set_volume_access(
        &self,
        volume: VolumeId,
        access: api::VolumeAccess,
    ) -> Result<api::VolumeAccess, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.set_access(volume, access)).await
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
        blocking(move || node.create_snapshot(request.volume, request.lock_s)).await
    }

    async fn delete_snapshot(&self, snapshot: VolumeId) -> Result<(), ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.delete_snapshot(snapshot)).await
    }

    async fn lock_snapshot(
        &self,
        snapshot: VolumeId,
        lock: api::LockSnapshot,
    ) -> Result<api::SnapshotStatus, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.lock_snapshot(snapshot, lock.for_s)).await
    }

    async fn set_schedule(
        &self,
        volume: VolumeId,
        schedule: api::SnapshotSchedule,
    ) -> Result<api::ScheduleStatus, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.set_schedule(volume, schedule)).await
    }

    async fn remove_schedule(&self, volume: VolumeId) -> Result<(), ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.remove_schedule(volume)).await
    }

    async fn acknowledge_rewrite(&self, volume: VolumeId) -> Result<api::ScheduleStatus, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.acknowledge_rewrite(volume)).await
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
        self.0.with_store(buckets).await
    }

    async fn create_bucket(&self, name: String) -> Result<api::Bucket, ControlError> {
        let create = move |store: &Store| {
            store.create_bucket(&name, objects::BucketOptions::default())?;
            bucket(store, store.bucket(&name)?)
        };
        self.0.with_store(create).await
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
                expires_unix_s: key.expires.map(unix_seconds),
            })
        });
        Ok(keys.collect())
    }

    async fn create_access_key(
        &self,
        request: api::CreateUser,
    ) -> Result<api::CreatedAccessKey, ControlError> {
        let made = self.0.with_store(move |store| create_access_key(store, &request)).await?;
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

    async fn identities(&self) -> Result<api::Identities, ControlError> {
        self.0.with_store(identities).await
    }

    async fn change_identity(&self, change: api::IdentityChange) -> Result<(), ControlError> {
        if let api::IdentityChange::PutPolicy { document, .. } = &change {
            s3_server::check_user_policy(document).map_err(|error| {
                let next =
                    "policies are written as those of AWS IAM users are; docs/operating.md has examples";
                ControlError::new(ErrorKind::Invalid, error.to_string(), next)
            })?;
        }
        self.0.with_store(move |store| change_identity(store, change)).await
    }

    async fn webhooks(&self) -> Result<Vec<api::Webhook>, ControlError> {
        let states = self.0.s3.webhooks();
        self.0.with_store(move |store| webhooks::list(store, &states)).await
    }

    async fn change_webhook(&self, change: api::WebhookChange) -> Result<api::WebhookChanged, ControlError> {
        let states = self.0.s3.webhooks();
        self.0.with_store(move |store| webhooks::change(store, &states, &change)).await
    }

    async fn note_act(&self, act: Act) {
        let node = Arc::clone(&self.0);
        let noted = tokio::task::spawn_blocking(move || {
            let fields = [
                ("by", act.by.into()),
                ("act", act.endpoint.into()),
                ("about", act.about.into()),
                ("status", act.status.into()),
            ];
            node.trail.note(if act.status == 403 { "refused" } else { "act" }, fields);
        });
        // A panic in there has ended the process.
        let _ = noted.await;
    }

    async fn audit(&self, after: u64, count: usize) -> Result<audit_log::Page, ControlError> {
        let node = Arc::clone(&self.0);
        blocking(move || node.trail.page(after, count).map_err(|error| trail_error(&error))).await
    }

    async fn audit_digests(&self, after: u64, count: usize) -> Result<api::AuditDigests, ControlError> {
        let node = Arc::clone(&self.0);
        let read = move || node.trail.digests(after, count).map_err(|error| trail_error(&error));
        let (head, digests) = blocking(read).await?;
        Ok(api::AuditDigests { head, digests })
    }

    async fn witness(&self, of: String, head: audit_log::Head) {
        let node = Arc::clone(&self.0);
        let noted = tokio::task::spawn_blocking(move || {
            let fields = [
                ("by", of.into()),
                ("of_trail", head.trail.to_string().into()),
                ("of_seq", head.seq.into()),
                ("of_hash", head.hash.to_string().into()),
            ];
            node.trail.note("witnessed", fields);
        });
        let _ = noted.await;
    }

    async fn wipe(&self, who: String) -> api::Wiped {
        tracing::warn!(who, "an administrator wipes the node");
        let wipe = self.0.wiper.wipe(WipeCause::Admin);
        api::Wiped { keys: wipe.keys, wipe_ns: wipe.stages.keys_ns, generation: wipe.record.generation }
    }
}
