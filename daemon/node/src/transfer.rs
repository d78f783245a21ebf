//! Snapshots on their way between nodes: what the administrative port asks of the pools.

use admin::{ControlError, ErrorKind, api};
use pool::{Manifest, PoolError};
use units::{ByteLen, Lba, SectorCount, VolumeId};

use crate::control::{pool_error, snapshot_status, unknown_volume};
use crate::node::{Node, OpenPool};

fn refused(error: &PoolError) -> ControlError {
    let kind = match error {
        PoolError::VolumeExists(_)
        | PoolError::NotAReplica(_)
        | PoolError::NothingArrived(_)
        | PoolError::NoCommonSnapshot { .. }
        | PoolError::NotReceiving { .. } => ErrorKind::Conflict,
        error => return pool_error(error),
    };
    ControlError::new(kind, error.to_string(), "")
}

fn in_json(manifest: &Manifest) -> api::SnapshotManifest {
    api::SnapshotManifest {
        volume: manifest.volume,
        snapshot: manifest.snapshot,
        since: manifest.since,
        created_unix_s: manifest.created_s,
        size_bytes: manifest.sectors.byte_len().map_or(u64::MAX, |len| len.0),
        domain: manifest.domain,
        epoch: manifest.epoch,
        check: hex::encode(manifest.check),
        kind: match manifest.kind {
            pool::VolumeKind::Block => api::VolumeKind::Block,
            pool::VolumeKind::Objects => api::VolumeKind::Objects,
        },
        encrypted_blocks: manifest.blocks,
    }
}

fn from_json(manifest: &api::SnapshotManifest) -> Result<Manifest, ControlError> {
    let invalid = |what: &str| {
        ControlError::new(ErrorKind::Invalid, what, "send the manifest as the other node gave it")
    };
    let mut check = [0; 16];
    hex::decode_to_slice(&manifest.check, &mut check)
        .map_err(|_| invalid("the key-check value is not 32 hexadecimal digits"))?;
    let size = ByteLen(manifest.size_bytes);
    if !size.0.is_multiple_of(4096) {
        return Err(invalid("the size is not a multiple of 4096 bytes"));
    }
    Ok(Manifest {
        volume: manifest.volume,
        snapshot: manifest.snapshot,
        since: manifest.since,
        created_s: manifest.created_unix_s,
        sectors: size.whole_sectors(),
        domain: manifest.domain,
        epoch: manifest.epoch,
        check,
        kind: match manifest.kind {
            api::VolumeKind::Block => pool::VolumeKind::Block,
            api::VolumeKind::Objects => pool::VolumeKind::Objects,
        },
        blocks: manifest.encrypted_blocks,
    })
}

impl Node {
    pub(crate) fn snapshot_manifest(
        &self,
        snapshot: VolumeId,
        since: Option<VolumeId>,
    ) -> Result<api::SnapshotManifest, ControlError> {
        let pool = self.pool_with_snapshot(snapshot)?;
        pool.manifest(snapshot, since).map(|manifest| in_json(&manifest)).map_err(|error| refused(&error))
    }

    pub(crate) fn snapshot_portion(
        &self,
        snapshot: VolumeId,
        since: Option<VolumeId>,
        from: u64,
        sectors: u64,
    ) -> Result<Vec<u8>, ControlError> {
        let pool = self.pool_with_snapshot(snapshot)?;
        let portion = pool
            .manifest(snapshot, since)
            .and_then(|manifest| pool.send(&manifest, Lba(from), SectorCount(sectors)));
        portion.map(|portion| portion.bytes).map_err(|error| refused(&error))
    }

    pub(crate) fn begin_receiving(&self, request: &api::Receive) -> Result<api::Received, ControlError> {
        let manifest = from_json(&request.manifest)?;
        let open = match (self.find_volume(manifest.volume), request.pool) {
            // There is a replica: it goes on where it is.
            (Some((open, _)), _) => open,
            (None, Some(pool)) => self.pool_or_refuse(pool)?,
            (None, None) => self.roomiest_pool()?,
        };
        let next = open.pool.begin_receiving(&manifest).map_err(|error| refused(&error))?;
        self.volumes_changed();
        tracing::info!(volume = %manifest.volume, snapshot = %manifest.snapshot, next = next.0, "receiving a snapshot");
        Ok(api::Received { next_sector: next.0 })
    }

    pub(crate) fn receive(
        &self,
        volume: VolumeId,
        snapshot: VolumeId,
        portion: &[u8],
    ) -> Result<api::Received, ControlError> {
        let (open, _) = self.find_volume(volume).ok_or_else(|| unknown_volume(volume))?;
        let next = open.pool.receive(volume, snapshot, portion).map_err(|error| refused(&error))?;
        Ok(api::Received { next_sector: next.0 })
    }

    pub(crate) fn end_receiving(
        &self,
        manifest: &api::SnapshotManifest,
    ) -> Result<api::SnapshotStatus, ControlError> {
        let manifest = from_json(manifest)?;
        let (open, _) = self.find_volume(manifest.volume).ok_or_else(|| unknown_volume(manifest.volume))?;
        let info = open.pool.end_receiving(&manifest).map_err(|error| refused(&error))?;
        tracing::info!(volume = %manifest.volume, snapshot = %info.id, "a snapshot has arrived");
        Ok(snapshot_status(open.pool.info().id, &info, open.pool.usage().of.get(&info.id).copied()))
    }

    pub(crate) fn promote(&self, volume: VolumeId) -> Result<api::Promoted, ControlError> {
        let (open, found) = self.find_volume(volume).ok_or_else(|| unknown_volume(volume))?;
        let snapshot = open.pool.promote(volume).map_err(|error| refused(&error))?;
        self.volumes_changed();
        tracing::warn!(%volume, %snapshot, "promoted a replica");
        Ok(api::Promoted { snapshot, volume: self.volume_status(open, &found.info()) })
    }

    fn roomiest_pool(&self) -> Result<&OpenPool, ControlError> {
        let room = |open: &&OpenPool| {
            let info = open.pool.info();
            info.capacity.0.saturating_sub(info.allocated.0 + info.reserved.0)
        };
        let keeping = self.pools.iter().filter(|open| open.pool.info().keeps_records);
        keeping.max_by_key(room).ok_or_else(|| {
            let message = "this node has no pool that could verify what it receives";
            ControlError::new(
                ErrorKind::Conflict,
                message,
                "make one with `nightlatch pool create` and add it to its configuration",
            )
        })
    }
}
