//! The lease records: for each volume the last grant, its fence, and until when a node may still hold its key.
//!
//! Invariants:
//! - A record is durable before the grant or the renewal that it allows leaves (PROTOCOL.md, "The keyholder's record").
//! - An expiry only moves later, until a signed receipt or signed evidence says that the key is gone.
//! - Expiries are on CLOCK_BOOTTIME. After a reboot of the keyholder they mean nothing, so each lease is counted anew from
//!   the start, in full.
//! - A file that is missing or damaged is *lost*, not empty: the caller waits the longest lease.
//!
//! Apart from the ledger, because it changes several times in each lease and holds nothing that needs the root.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lease::limits::lease_with_drift_ms;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use units::{BootId, BootInstant, Fence, GrantId, NodeId, VolumeId};

use crate::durable::{self, OldContent, StorageError};

const MAGIC: &[u8; 8] = b"NLLEASES";
const VERSION: u32 = 1;
const CHECKSUM_BYTES: usize = 32;
const BYTES_MAX: u64 = 16 << 20;

/// What is known about a volume's last grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    pub(crate) node: NodeId,
    pub(crate) grant: GrantId,
    pub(crate) fence: Fence,
    pub(crate) lease_ms: u64,
    /// The node may hold the key until then; `None` once it is known to be gone.
    pub(crate) expires: Option<BootInstant>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Body {
    boot: BootId,
    records: BTreeMap<VolumeId, LeaseRecord>,
}

/// The records, and their file.
#[derive(Debug)]
pub(crate) struct LeaseRecords {
    path: PathBuf,
    body: Body,
}

/// What was found at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The records as they were left.
    Intact,
    /// There is no file, or it does not read.
    Lost,
}

impl LeaseRecords {
    /// Reads the records.
    pub(crate) fn load(path: PathBuf, boot: BootId, now: BootInstant) -> Result<(Self, Found), StorageError> {
        let content = durable::read(&path, BYTES_MAX)?;
        let Some(mut body) = content.as_deref().and_then(decode) else {
            return Ok((Self { path, body: Body { boot, records: BTreeMap::new() } }, Found::Lost));
        };
        if body.boot != boot {
            body.boot = boot;
            for record in body.records.values_mut().filter(|record| record.expires.is_some()) {
                record.expires = Some(now.saturating_add_ms(lease_with_drift_ms(record.lease_ms)));
            }
        }
        Ok((Self { path, body }, Found::Intact))
    }

    /// What is known about a volume's last grant.
    pub(crate) fn of(&self, volume: VolumeId) -> Option<&LeaseRecord> {
        self.body.records.get(&volume)
    }

    /// Changes records and makes them durable. On an error nothing has changed in memory; what is on disk is the old
    /// or the new, and the new never promises less than the old.
    pub(crate) fn update(
        &mut self,
        change: impl FnOnce(&mut BTreeMap<VolumeId, LeaseRecord>),
    ) -> Result<(), StorageError> {
        let mut body = Body { boot: self.body.boot, records: self.body.records.clone() };
        change(&mut body.records);
        durable::replace(&self.path, &encode(&body), OldContent::Leave)?;
        self.body = body;
        Ok(())
    }

    /// Notes that a key is gone. In memory; the next update takes it to disk, and until then a restart only waits longer.
    pub(crate) fn release(&mut self, volume: VolumeId, grant: GrantId) {
        if let Some(record) = self.body.records.get_mut(&volume).filter(|record| record.grant == grant) {
            record.expires = None;
        }
    }
}

fn encode(body: &Body) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    // Plain numbers in a vector: nothing that could fail.
    bytes.extend(postcard::to_stdvec(body).unwrap_or_default());
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Body> {
    let (content, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_BYTES)?)?;
    if Sha256::digest(content).as_slice() != checksum {
        return None;
    }
    let rest = content.strip_prefix(MAGIC)?;
    let body = rest.strip_prefix(&VERSION.to_le_bytes())?;
    match postcard::take_from_bytes(body) {
        Ok((body, [])) => Some(body),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([1; 16]);
    const BOOT: BootId = BootId([2; 16]);

    fn record(expires: u64) -> LeaseRecord {
        LeaseRecord {
            node: NodeId([3; 16]),
            grant: GrantId([4; 16]),
            fence: Fence(5),
            lease_ms: 10_000,
            expires: Some(BootInstant(expires)),
        }
    }

    fn stored() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases");
        let (mut records, found) = LeaseRecords::load(path.clone(), BOOT, BootInstant(0)).unwrap();
        assert_eq!(found, Found::Lost);
        records
            .update(|records| {
                records.insert(VOLUME, record(77));
            })
            .unwrap();
        (dir, path)
    }

    #[test]
    fn records_survive_a_restart_of_the_program() {
        let (_dir, path) = stored();
        let (records, found) = LeaseRecords::load(path, BOOT, BootInstant(0)).unwrap();
        assert_eq!(found, Found::Intact);
        assert_eq!(records.of(VOLUME), Some(&record(77)));
    }

    #[test]
    fn after_a_reboot_each_lease_is_counted_anew_and_in_full() {
        let (_dir, path) = stored();
        let (records, found) = LeaseRecords::load(path, BootId([9; 16]), BootInstant(1_000)).unwrap();
        assert_eq!(found, Found::Intact);
        let expires = records.of(VOLUME).unwrap().expires;
        assert_eq!(expires, Some(BootInstant(1_000).saturating_add_ms(10_010)));
    }

    #[test]
    fn any_altered_byte_or_cut_is_a_loss() {
        let (_dir, path) = stored();
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(decode(&bad).is_none(), "byte {at}");
            assert!(decode(&good[..at]).is_none(), "cut at {at}");
        }
        assert!(decode(&good).is_some());
    }

    #[test]
    fn a_released_grant_is_not_that_of_another() {
        let (_dir, path) = stored();
        let (mut records, _) = LeaseRecords::load(path, BOOT, BootInstant(0)).unwrap();
        records.release(VOLUME, GrantId([8; 16]));
        assert!(records.of(VOLUME).unwrap().expires.is_some());
        records.release(VOLUME, GrantId([4; 16]));
        assert_eq!(records.of(VOLUME).unwrap().expires, None);
    }
}
