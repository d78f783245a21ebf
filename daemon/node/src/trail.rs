//! The node's own trail: which keys it took and gave up, its wipes, and who asked it for what. Signed by its identity key, so that
//! whoever has pinned that can compare it with what the keyholder says (`nightlatch audit verify --node`).
//!
//! Invariants:
//! - A key that is in force is in the trail before the keyholder has its receipt.
//! - A wipe waits for no disk: its entry follows it.
//! - What others can cause by being refused is written as long as it is seldom, and counted beyond.
//! - No label, no name of a bucket, a user or an object: volumes by their ids, acts by the endpoint's pattern.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use audit_log::{Digest, Limits, Moment, Page, Refusals, SignedHead, Trail, TrailError, TrailId};
use serde_json::Value;
use units::{BootId, NodeId};

use crate::boot_clock;
use crate::lock::lock;

/// The node's identity key, as a trail signs with it.
#[derive(Debug)]
struct Identity(Arc<dyn lease::Signer>);

impl audit_log::Signer for Identity {
    fn public(&self) -> [u8; 32] {
        self.0.public_key()
    }

    fn sign(&self, digest: &[u8; 32]) -> Option<[u8; 64]> {
        self.0.sign(digest).ok()
    }
}

/// The trail, for every thread.
#[derive(Debug)]
pub(crate) struct NodeTrail {
    boot: BootId,
    trail: Mutex<Trail<Identity>>,
    /// Number of the last entry that is known to be durable: one sync serves all who wait.
    synced: Mutex<u64>,
    refusals: Mutex<Refusals>,
}

impl NodeTrail {
    /// Opens the trail in the state directory.
    pub(crate) fn open(
        dir: &Path,
        node: NodeId,
        boot: BootId,
        identity: Arc<dyn lease::Signer>,
    ) -> Result<Self, TrailError> {
        // A node has one trail for its life, so its id names it.
        let id = TrailId(node.0);
        let fields = [("node", node.to_string().into()), ("version", env!("CARGO_PKG_VERSION").into())];
        let (trail, found) =
            Trail::open(dir, Identity(identity), id, moment(boot), Limits::default(), fields)?;
        if let Some(broken) = found.broken {
            tracing::error!("{broken}; keep a copy of the node's audit trail and find out who changed it");
        }
        let synced = trail.head().seq;
        Ok(Self { boot, trail: Mutex::new(trail), synced: Mutex::new(synced), refusals: Mutex::default() })
    }

    /// Appends an entry and returns when it is durable. One that cannot be written is in the log: what happened has happened.
    pub(crate) fn note<const N: usize>(&self, event: &str, fields: [(&str, Value); N]) {
        if let Err(error) = self.record(event, fields) {
            tracing::error!(%error, event, "the node's audit trail lacks an entry");
        }
    }

    /// As [`Self::note`], of a refusal: one entry each, as long as those of this event are few.
    pub(crate) fn note_refusal<const N: usize>(&self, event: &str, fields: [(&str, Value); N]) {
        let due = lock(&self.refusals).count(event, boot_clock::now());
        if due.unlisted > 0 {
            self.note("refused-more", [("refused", event.into()), ("count", due.unlisted.into())]);
        }
        if due.entry {
            self.note(event, fields);
        }
    }

    fn record<const N: usize>(&self, event: &str, fields: [(&str, Value); N]) -> Result<(), TrailError> {
        let seq = {
            let mut trail = lock(&self.trail);
            trail.append(moment(self.boot), event, fields)?;
            trail.head().seq
        };
        let mut synced = lock(&self.synced);
        if *synced < seq {
            let (last, file) = {
                let trail = lock(&self.trail);
                (trail.head().seq, trail.handle()?)
            };
            file.sync_data().map_err(|source| lock(&self.trail).failed("sync", source))?;
            *synced = last;
        }
        Ok(())
    }

    /// A part of the trail.
    pub(crate) fn page(&self, after: u64, count: usize) -> Result<Page, TrailError> {
        lock(&self.trail).page(after, count)
    }

    /// What a witness needs of it.
    pub(crate) fn digests(&self, after: u64, count: usize) -> Result<(SignedHead, Vec<Digest>), TrailError> {
        lock(&self.trail).digests(after, count)
    }
}

fn moment(boot: BootId) -> Moment {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment {
        unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
        boot,
        boot_ns: boot_clock::now().0,
    }
}
