//! Ciphertext on its way between nodes, snapshots and single sectors: what the administrative port asks of the pools.

use std::sync::atomic::Ordering;

use admin::{ControlError, ErrorKind, api};
use device::SectorRecord;
use pool::{Manifest, PoolError, PoolErrorKind};
use units::{ByteLen, ByteOffset, Lba, PoolId, SectorCount, VolumeId};

use crate::control::{pool_error, unknown_volume};
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

fn record_in_json(record: &SectorRecord) -> api::SectorRecord {
    let SectorRecord { sequence, checksum, tag } = *record;
    api::SectorRecord { sequence, checksum, tag: hex::encode(tag) }
}

fn record_from_json(record: &api::SectorRecord) -> Result<SectorRecord, ControlError> {
    let mut tag = [0; 16];
    hex::decode_to_slice(&record.tag, &mut tag).map_err(|_| {
        let message = "the record's tag is not 32 hexadecimal digits";
        ControlError::new(ErrorKind::Invalid, message, "send the record as the other node gave it")
    })?;
    Ok(SectorRecord { sequence: record.sequence, checksum: record.checksum, tag })
}

impl Node {
    /// What the last scrub, or the one on its way, found damaged and another node may have.
    pub(crate) fn wanted_sectors(&self, pool: PoolId) -> Result<Vec<api::WantedSector>, ControlError> {
        let open = self.pool_or_refuse(pool)?;
        let mut wanted = Vec::new();
        for at in open.scrubber.damaged_places() {
            let found = open.pool.wanted(ByteOffset(at)).map_err(|error| pool_error(&error))?;
            wanted.extend(found.map(|found| {
                api::WantedSector {
                    device_offset: at,
                    volumes: found
                        .volumes
                        .iter()
                        .map(|(volume, sector)| api::ShownBy { volume: *volume, sector: sector.0 })
                        .collect(),
                    record: record_in_json(&found.record),
                }
            }));
        }
        Ok(wanted)
    }

    pub(crate) fn find_sector(&self, request: &api::FindSector) -> Result<Vec<u8>, ControlError> {
        let record = record_from_json(&request.record)?;
        for open in &self.pools {
            let found = open.pool.find_sector(request.volume, Lba(request.sector), &record);
            if let Some(found) = found.map_err(|error| pool_error(&error))? {
                return Ok(found.as_bytes().to_vec());
            }
        }
        let message = "no volume or snapshot on this node holds what the sector's record says";
        Err(ControlError::new(ErrorKind::NotFound, message, "ask another node, or restore it from a backup"))
    }

    pub(crate) fn heal_sector(
        &self,
        pool: PoolId,
        device_offset: u64,
        ciphertext: &[u8],
    ) -> Result<api::Healed, ControlError> {
        let open = self.pool_or_refuse(pool)?;
        let healed =
            open.pool.heal(ByteOffset(device_offset), ciphertext).map_err(|error| pool_error(&error))?;
        if healed {
            open.scrubber.note_healed(device_offset);
        }
        Ok(api::Healed { healed })
    }

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
        let received = open.pool.receive(volume, snapshot, portion);
        if received.as_ref().is_err_and(|error| error.kind() == PoolErrorKind::NoSpace) {
            self.refused_full.fetch_add(1, Ordering::Relaxed);
        }
        let next = received.map_err(|error| refused(&error))?;
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
        self.schedules.wake();
        Ok(self.snapshot_status(open.pool.info().id, &info, open.pool.usage().of.get(&info.id).copied()))
    }

    pub(crate) fn promote(&self, volume: VolumeId) -> Result<api::Promoted, ControlError> {
        let (open, found) = self.find_volume(volume).ok_or_else(|| unknown_volume(volume))?;
        let snapshot = open.pool.promote(volume).map_err(|error| refused(&error))?;
        self.volumes_changed();
        tracing::warn!(%volume, %snapshot, "promoted a replica");
        Ok(api::Promoted { snapshot, volume: self.volume_status(open, &found.info()) })
    }

    pub(crate) fn roomiest_pool(&self) -> Result<&OpenPool, ControlError> {
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
