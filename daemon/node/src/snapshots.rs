//! Snapshots, as the administrative port asks for them.

use std::time::SystemTime;

use admin::{ControlError, ErrorKind, api};
use pool::{Pool, SnapshotInfo, Usage};
use units::{PoolId, VolumeId};

use crate::control::{pool_error, pool_limits, unix_seconds, unknown_volume};
use crate::node::{Node, OpenPool, snapshot_label};
use crate::retention::LOCK_MAX_S;

impl Node {
    pub(crate) fn snapshots(&self) -> Vec<api::SnapshotStatus> {
        let of_pool = |open: &OpenPool| {
            let usage = open.pool.usage().of;
            let id = open.pool.info().id;
            let status = |info: &SnapshotInfo| self.snapshot_status(id, info, usage.get(&info.id).copied());
            open.pool.snapshots().iter().map(status).collect::<Vec<_>>()
        };
        self.pools.iter().flat_map(of_pool).collect()
    }

    /// Takes a snapshot, locked for so many seconds where that is wanted.
    pub(crate) fn create_snapshot(
        &self,
        volume: VolumeId,
        lock_s: Option<u64>,
    ) -> Result<api::SnapshotStatus, ControlError> {
        if lock_s.is_some_and(|lock_s| !(1..=LOCK_MAX_S).contains(&lock_s)) {
            let message = format!("a lock is for 1 second to {LOCK_MAX_S} seconds");
            return Err(ControlError::new(ErrorKind::Invalid, message, ""));
        }
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
        if let Some(lock_s) = lock_s {
            return self.lock_snapshot(info.id, lock_s);
        }
        let usage = open.pool.usage().of.get(&info.id).copied();
        Ok(self.snapshot_status(open.pool.info().id, &info, usage))
    }

    pub(crate) fn delete_snapshot(&self, snapshot: VolumeId) -> Result<(), ControlError> {
        let pool = self.pool_with_snapshot(snapshot)?;
        let found = pool.snapshots().into_iter().find(|found| found.id == snapshot);
        if let Some(left_s) = found.and_then(|found| self.retention.left_s(pool.info().id, &found)) {
            return Err(ControlError::new(
                ErrorKind::Conflict,
                format!("the snapshot is locked for another {left_s} s, and nobody deletes it before"),
                "wait; `nightlatch snapshot list` says how long. Nothing makes a lock shorter",
            ));
        }
        let of = found.map(|found| found.volume);
        let label = of.and_then(|volume| self.served().get(&volume).map(|served| served.label.clone()));
        if let Some(label) = label {
            self.nbd.remove(&snapshot_label(&label, snapshot));
        }
        pool.delete_snapshot(snapshot).map_err(|error| pool_error(&error))?;
        tracing::warn!(%snapshot, "deleted a snapshot");
        Ok(())
    }

    pub(crate) fn clone_snapshot(
        &self,
        snapshot: VolumeId,
        request: api::CloneSnapshot,
    ) -> Result<api::VolumeStatus, ControlError> {
        let pool = self.pool_with_snapshot(snapshot)?;
        let of = pool.snapshots().into_iter().find(|found| found.id == snapshot).map(|found| found.volume);
        // A clone holds what its origin held: it is for the same clients, before anybody can ask for it.
        let access = of.map_or_else(api::VolumeAccess::nobody, |of| self.exports.of(of));
        self.write_access(request.volume, access)?;
        let clone = pool
            .clone_snapshot(snapshot, request.volume, pool_limits(request.limits))
            .inspect_err(|_| drop(self.exports.forget(request.volume)))
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

    pub(crate) fn snapshot_status(
        &self,
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
            locked_s: self.retention.left_s(pool, info),
            epoch: self.is_free_epoch(info),
        }
    }
}
