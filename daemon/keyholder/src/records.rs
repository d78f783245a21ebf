//! The lease records: for each volume the last grant, its fence, and until when a node may still hold its key.
//!
//! Invariants:
//! - A record is durable before the grant or the renewal that it allows leaves (PROTOCOL.md, "The keyholder's record").
//! - An expiry only moves later, until a signed receipt or signed evidence says that the key is gone.
//! - Expiries are on CLOCK_BOOTTIME. After a reboot of the keyholder they mean nothing, so each lease is counted anew from
//!   the start, in full.
//! - A file that is missing or damaged is *lost*, not empty: the caller waits the longest lease.
//!
//! - In a store that keyholders share an expiry is a time from its writing. Whoever reads it counts that in full from the reading,
//!   by a clock of its own, which ends later than the writer's; so no clocks need to agree. Each keyholder gives leases under a
//!   record that it wrote itself, and records further ahead than it gives.
//!
//! Apart from the ledger, because it changes several times in each lease and holds nothing that needs the root.

use std::collections::BTreeMap;
use std::path::Path;

use lease::limits::lease_with_drift_ms;
use lease::message::PoolState;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use units::{BootId, BootInstant, Fence, GrantId, NodeId, PoolId, VolumeId};

use crate::cluster::shared::Shared;
use crate::cluster::wire::LeaseValue;
use crate::durable::{self, StorageError};
use crate::store::{Store, StoreError};

const MAGIC: &[u8; 8] = b"NLLEASES";
const VERSION: u32 = 2;
const CHECKSUM_BYTES: usize = 32;
const BYTES_MAX: u64 = 16 << 20;

/// In place of the node where nobody knows which one may hold the key: no node's word ends that lease.
pub(crate) const NOBODY: NodeId = NodeId([0; 16]);

/// What is known about a volume's last grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    pub(crate) node: NodeId,
    pub(crate) grant: GrantId,
    pub(crate) fence: Fence,
    pub(crate) lease_ms: u64,
    /// The node may hold the key until then, as far as is recorded; `None` once it is known to be gone.
    pub(crate) expires: Option<BootInstant>,
    /// The pool that it was served from last.
    pub(crate) pool: Option<PoolId>,
    /// Where this keyholder wrote the record: the end of the last lease under it that anybody can have been given. Nobody else gives
    /// one without writing a record of its own.
    #[serde(skip)]
    pub(crate) given: Option<BootInstant>,
    /// Where another keyholder wrote the record: when that was seen here.
    #[serde(skip)]
    pub(crate) seen: Option<BootInstant>,
}

impl LeaseRecord {
    /// Until when the key may be held.
    pub(crate) fn held_until(&self) -> Option<BootInstant> {
        self.expires.map(|expires| self.given.unwrap_or(expires))
    }

    /// Whether whoever reads this in the store need not read the other: it is the same, and of the same keyholder where that is this
    /// one. What another wrote may have been promised away there, so that it has to be written over before anything is given under it.
    pub(crate) fn is_recorded_as(&self, other: &Self) -> bool {
        let told = |record: &Self| Self { given: None, seen: None, ..*record };
        told(self) == told(other) && (self.given.is_some() || other.given.is_none())
    }
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Body {
    boot: BootId,
    pub(crate) records: BTreeMap<VolumeId, LeaseRecord>,
    /// The last known state of each pool.
    pub(crate) states: BTreeMap<PoolId, PoolState>,
}

impl Body {
    /// Nothing is known.
    pub(crate) fn empty(boot: BootId) -> Self {
        Self { boot, records: BTreeMap::new(), states: BTreeMap::new() }
    }

    /// Whether a reader would find anything else in the other.
    pub(crate) fn differs_from(&self, other: &Self) -> bool {
        let same = |(left, right): ((&VolumeId, &LeaseRecord), (&VolumeId, &LeaseRecord))| {
            left.0 == right.0 && left.1.is_recorded_as(right.1)
        };
        self.states != other.states
            || self.records.len() != other.records.len()
            || !self.records.iter().zip(&other.records).all(same)
    }
}

/// As version 1 had them: without pools and their states.
#[derive(Deserialize)]
struct BodyOfVersion1 {
    boot: BootId,
    records: BTreeMap<VolumeId, LeaseRecordOfVersion1>,
}

#[derive(Deserialize)]
struct LeaseRecordOfVersion1 {
    node: NodeId,
    grant: GrantId,
    fence: Fence,
    lease_ms: u64,
    expires: Option<BootInstant>,
}

impl From<BodyOfVersion1> for Body {
    fn from(body: BodyOfVersion1) -> Self {
        let record = |record: LeaseRecordOfVersion1| {
            let LeaseRecordOfVersion1 { node, grant, fence, lease_ms, expires } = record;
            LeaseRecord { node, grant, fence, lease_ms, expires, pool: None, given: None, seen: None }
        };
        let records = body.records.into_iter().map(|(volume, old)| (volume, record(old))).collect();
        Self { boot: body.boot, records, states: BTreeMap::new() }
    }
}

/// The records. Where they are kept is the [`Store`]'s to know.
#[derive(Debug)]
pub(crate) struct LeaseRecords {
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
    /// Nothing is known yet.
    pub(crate) fn empty(boot: BootId) -> Self {
        Self { body: Body::empty(boot) }
    }

    /// Reads the records from their file.
    pub(crate) fn load(path: &Path, boot: BootId, now: BootInstant) -> Result<(Self, Found), StorageError> {
        let content = durable::read(path, BYTES_MAX)?;
        let Some(mut body) = content.as_deref().and_then(decode) else {
            return Ok((Self::empty(boot), Found::Lost));
        };
        if body.boot != boot {
            body.boot = boot;
            for record in body.records.values_mut().filter(|record| record.expires.is_some()) {
                record.expires = Some(now.saturating_add_ms(lease_with_drift_ms(record.lease_ms)));
            }
        }
        Ok((Self { body }, Found::Intact))
    }

    /// All of it.
    pub(crate) fn body(&self) -> &Body {
        &self.body
    }

    /// Takes in a record that another keyholder wrote: what it leaves to the node counts from now, in full.
    pub(crate) fn observe(&mut self, volume: VolumeId, value: &LeaseValue, now: BootInstant) -> LeaseRecord {
        let record = LeaseRecord {
            node: value.node,
            grant: value.grant,
            fence: value.fence,
            lease_ms: value.lease_ms,
            expires: value.left_ms.map(|left_ms| now.saturating_add_ms(lease_with_drift_ms(left_ms))),
            pool: value.pool,
            given: None,
            seen: Some(now),
        };
        self.body.records.insert(volume, record);
        record
    }

    /// Takes a record for what is known. In memory, as [`Self::release`].
    pub(crate) fn note(&mut self, volume: VolumeId, record: LeaseRecord) {
        self.body.records.insert(volume, record);
    }

    /// Takes in a pool's state as another keyholder wrote it.
    pub(crate) fn observe_state(&mut self, state: PoolState) {
        self.body.states.insert(state.pool, state);
    }

    /// Nothing is known any more. In memory.
    pub(crate) fn clear(&mut self) {
        self.body.records.clear();
        self.body.states.clear();
    }

    /// What is known about a volume's last grant.
    pub(crate) fn of(&self, volume: VolumeId) -> Option<&LeaseRecord> {
        self.body.records.get(&volume)
    }

    /// What is known about a node's last grants.
    pub(crate) fn of_node(&self, node: NodeId) -> impl Iterator<Item = &LeaseRecord> {
        self.body.records.values().filter(move |record| record.node == node)
    }

    /// Changes records and makes them durable. On an error nothing has changed in memory; what is on disk is the old
    /// or the new, and the new never promises less than the old.
    pub(crate) fn update(
        &mut self,
        store: &mut Store,
        change: impl FnOnce(&mut BTreeMap<VolumeId, LeaseRecord>),
    ) -> Result<(), StoreError> {
        self.commit(store, |body| change(&mut body.records))
    }

    /// Begins anew, with nothing granted.
    pub(crate) fn forget(&mut self, store: &mut Store) -> Result<(), StoreError> {
        self.commit_where_kept(store, |body| body.records.clear())
    }

    /// Writes down what is assumed of leases that nobody knows.
    pub(crate) fn assume(
        &mut self,
        store: &mut Store,
        change: impl FnOnce(&mut BTreeMap<VolumeId, LeaseRecord>),
    ) -> Result<(), StoreError> {
        self.commit_where_kept(store, |body| change(&mut body.records))
    }

    /// A shared store that is still empty gets the records with its first ledger.
    fn commit_where_kept(
        &mut self,
        store: &mut Store,
        change: impl FnOnce(&mut Body),
    ) -> Result<(), StoreError> {
        if store.shared().is_some_and(Shared::is_empty) {
            change(&mut self.body);
            return Ok(());
        }
        self.commit(store, change)
    }

    /// Makes durable what was noted in memory.
    pub(crate) fn flush(&mut self, store: &mut Store) -> Result<(), StoreError> {
        store.put_leases(&self.body)
    }

    fn commit(&mut self, store: &mut Store, change: impl FnOnce(&mut Body)) -> Result<(), StoreError> {
        let mut body = self.body.clone();
        change(&mut body);
        store.put_leases(&body)?;
        self.body = body;
        Ok(())
    }

    /// Forgets everything, durably: the next start finds the records lost.
    pub(crate) fn lose(&mut self, store: &mut Store) -> Result<(), StoreError> {
        store.lose_leases()?;
        self.clear();
        Ok(())
    }

    /// The last known state of a pool.
    pub(crate) fn state_of(&self, pool: PoolId) -> Option<PoolState> {
        self.body.states.get(&pool).copied()
    }

    /// Notes states that a node reports of pools that it has unlocked: later ones than are known. In memory; the next update
    /// takes them to disk, before anything is granted or renewed by it. Returns whether there was any.
    pub(crate) fn note_states(&mut self, states: &[PoolState]) -> bool {
        let known = |state: &&PoolState| {
            self.body.states.get(&state.pool).is_none_or(|known| known.count < state.count)
        };
        let later: Vec<PoolState> = states.iter().filter(known).copied().collect();
        self.set_states(&later);
        !later.is_empty()
    }

    /// Notes the states found at an unlocking, whatever was known before: the node has judged them, or was told not to.
    pub(crate) fn set_states(&mut self, states: &[PoolState]) {
        self.body.states.extend(states.iter().map(|state| (state.pool, *state)));
    }

    /// Notes which pool a volume is served from.
    pub(crate) fn note_pool(&mut self, volume: VolumeId, pool: PoolId) {
        if let Some(record) = self.body.records.get_mut(&volume) {
            record.pool = Some(pool);
        }
    }

    /// Notes that a volume is in another pool from now on, nobody knows which. In memory, as [`Self::release`].
    pub(crate) fn forget_pool(&mut self, volume: VolumeId) {
        if let Some(record) = self.body.records.get_mut(&volume) {
            record.pool = None;
        }
    }

    /// Forgets a volume that is no more. In memory, as [`Self::release`].
    pub(crate) fn remove(&mut self, volume: VolumeId) {
        self.body.records.remove(&volume);
    }

    /// Forgets a pool's state. In memory, as [`Self::release`].
    pub(crate) fn remove_state(&mut self, pool: PoolId) {
        self.body.states.remove(&pool);
    }

    /// Forgets where a volume was served from, and what that pool and the one it is said to be in now were known to be. Durable
    /// when it returns.
    pub(crate) fn forget_state(
        &mut self,
        store: &mut Store,
        volume: VolumeId,
        said: Option<PoolId>,
    ) -> Result<(), StoreError> {
        let known = self.of(volume).and_then(|record| record.pool);
        self.commit(store, |body| {
            if let Some(record) = body.records.get_mut(&volume) {
                record.pool = None;
            }
            for pool in known.into_iter().chain(said) {
                body.states.remove(&pool);
            }
        })
    }

    /// Whether this is the last grant of the volume, and was given to this node.
    pub(crate) fn is_granted(&self, node: NodeId, volume: VolumeId, grant: GrantId) -> bool {
        self.of(volume).is_some_and(|record| record.node == node && record.grant == grant)
    }

    /// Whether no key may be held of what the node was granted last, of those volumes that `in_scope` names.
    pub(crate) fn is_released(&self, node: NodeId, in_scope: impl Fn(VolumeId) -> bool) -> bool {
        let of_node =
            self.body.records.iter().filter(|(volume, record)| record.node == node && in_scope(**volume));
        of_node.into_iter().all(|(_, record)| record.expires.is_none())
    }

    /// Notes that the node holds none of the keys that it was granted last, of those volumes that `is_gone` names. In memory, as
    /// [`Self::release`]. Returns whether that is news.
    pub(crate) fn release_of_node(&mut self, node: NodeId, is_gone: impl Fn(VolumeId) -> bool) -> bool {
        let mut news = false;
        let of_node = self.body.records.iter_mut().filter(|(_, record)| record.node == node);
        for (_, record) in of_node.filter(|(volume, _)| is_gone(**volume)) {
            news |= record.expires.take().is_some();
        }
        news
    }

    /// Notes that these grants of the node are over, wherever their volumes are now. In memory, as [`Self::release`]. Returns whether
    /// that is news.
    pub(crate) fn release_grants(&mut self, node: NodeId, ended: &[GrantId]) -> bool {
        let mut news = false;
        let of_node = self.body.records.values_mut().filter(|record| record.node == node);
        for record in of_node.filter(|record| ended.contains(&record.grant)) {
            news |= record.expires.take().is_some();
        }
        news
    }

    /// Notes how far a lease has been given that is inside the record. In memory: the record does not change.
    pub(crate) fn note_given(&mut self, volume: VolumeId, ends: BootInstant) {
        if let Some(record) = self.body.records.get_mut(&volume) {
            record.given = record.given.map(|given| given.max(ends));
        }
    }

    /// Notes that the node has seen a higher fence. In memory, as [`Self::release`].
    pub(crate) fn raise_fence(&mut self, volume: VolumeId, highest: Fence) {
        if let Some(record) = self.body.records.get_mut(&volume) {
            record.fence = record.fence.max(highest);
        }
    }

    /// Takes the records of a node whose leases may still run from its id, durably: another machine may answer under that from now
    /// on, and its word says nothing about them.
    pub(crate) fn disown(&mut self, store: &mut Store, node: NodeId) -> Result<(), StoreError> {
        let runs = |record: &&mut LeaseRecord| record.node == node && record.expires.is_some();
        if !self.of_node(node).any(|record| record.expires.is_some()) {
            return Ok(());
        }
        self.update(store, |records| {
            records.values_mut().filter(runs).for_each(|record| record.node = NOBODY)
        })
    }

    /// Notes that a key is gone. In memory; the next update takes it to disk, and until then a restart only waits longer.
    pub(crate) fn release(&mut self, volume: VolumeId, grant: GrantId) {
        if let Some(record) = self.body.records.get_mut(&volume).filter(|record| record.grant == grant) {
            record.expires = None;
        }
    }
}

/// The file's bytes.
pub(crate) fn encode(body: &Body) -> Vec<u8> {
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
    let (version, body) = rest.split_first_chunk()?;
    match u32::from_le_bytes(*version) {
        1 => whole::<BodyOfVersion1>(body).map(Body::from),
        VERSION => whole(body),
        _ => None,
    }
}

fn whole<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((body, [])) => Some(body),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::store::Files;

    const VOLUME: VolumeId = VolumeId([1; 16]);
    const BOOT: BootId = BootId([2; 16]);

    fn record(expires: u64) -> LeaseRecord {
        LeaseRecord {
            node: NodeId([3; 16]),
            grant: GrantId([4; 16]),
            fence: Fence(5),
            lease_ms: 10_000,
            expires: Some(BootInstant(expires)),
            pool: Some(PoolId([6; 16])),
            given: None,
            seen: None,
        }
    }

    fn files(dir: &tempfile::TempDir) -> Store {
        Store::Files(Files::new(dir.path()))
    }

    fn stored() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases");
        let (mut records, found) = LeaseRecords::load(&path, BOOT, BootInstant(0)).unwrap();
        assert_eq!(found, Found::Lost);
        records
            .update(&mut files(&dir), |records| {
                records.insert(VOLUME, record(77));
            })
            .unwrap();
        (dir, path)
    }

    #[test]
    fn records_survive_a_restart_of_the_program() {
        let (_dir, path) = stored();
        let (records, found) = LeaseRecords::load(&path, BOOT, BootInstant(0)).unwrap();
        assert_eq!(found, Found::Intact);
        assert_eq!(records.of(VOLUME), Some(&record(77)));
    }

    #[test]
    fn after_a_reboot_each_lease_is_counted_anew_and_in_full() {
        let (_dir, path) = stored();
        let (records, found) = LeaseRecords::load(&path, BootId([9; 16]), BootInstant(1_000)).unwrap();
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
    fn records_of_version_1_are_taken_over() {
        let golden = include_bytes!("../tests/golden/leases-version-1");
        let body = decode(golden).unwrap();
        assert_eq!(body.records[&VOLUME], LeaseRecord { pool: None, ..record(77) });
        assert!(body.states.is_empty());
    }

    #[test]
    fn a_pools_state_only_goes_forward_but_for_an_unlocking_and_a_word_of_people() {
        let (dir, path) = stored();
        let mut store = files(&dir);
        let (mut records, _) = LeaseRecords::load(&path, BOOT, BootInstant(0)).unwrap();
        let state = |count| PoolState { pool: PoolId([6; 16]), count, chain: [7; 32] };
        let other = PoolState { chain: [8; 32], ..state(10) };
        records.note_states(&[state(10)]);
        records.note_states(&[state(9), other]);
        assert_eq!(records.state_of(PoolId([6; 16])), Some(state(10)));
        records.set_states(&[state(3)]);
        records.flush(&mut store).unwrap();
        let (mut records, _) = LeaseRecords::load(&path, BOOT, BootInstant(0)).unwrap();
        assert_eq!(records.state_of(PoolId([6; 16])), Some(state(3)));
        records.forget_state(&mut store, VOLUME, None).unwrap();
        let (records, _) = LeaseRecords::load(&path, BOOT, BootInstant(0)).unwrap();
        assert_eq!((records.state_of(PoolId([6; 16])), records.of(VOLUME).unwrap().pool), (None, None));
    }

    #[test]
    fn a_released_grant_is_not_that_of_another() {
        let (_dir, path) = stored();
        let (mut records, _) = LeaseRecords::load(&path, BOOT, BootInstant(0)).unwrap();
        records.release(VOLUME, GrantId([8; 16]));
        assert!(records.of(VOLUME).unwrap().expires.is_some());
        records.release(VOLUME, GrantId([4; 16]));
        assert_eq!(records.of(VOLUME).unwrap().expires, None);
    }
}
