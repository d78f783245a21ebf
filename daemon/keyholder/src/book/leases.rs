//! What a session with a node asks of the book: judging evidence, planning pushes, recording leases, noting receipts.

use std::collections::BTreeMap;

use lease::GrantRefusal;
use lease::keyholder::GrantOrder;
use lease::limits::lease_with_drift_ms;
use lease::message::{
    Evidence, GrantRefused, Receipt, RepushRule, RevokeCause, Scope, WipeCause, WipeReceipt, WipeRecord,
};
use units::{BootInstant, Fence, GrantId, NodeId, VolumeId};

use super::{Book, VolumeNow};
use crate::api::{Connection, KeyState, PushPolicy};
use crate::clock;
use crate::error::KeyholderError;
use crate::ledger::{LatchCause, LatchRecord, Life, NodeRecord, VolumeRecord, WipeId};
use crate::records::LeaseRecord;
use crate::vault::{SecretOf, Wrapped};

/// How far ahead of the ledger a fence reported by a node may be. More is no restored backup but nonsense, and would
/// use up the numbers.
const FENCE_LEAP_MAX: u64 = 1 << 32;

/// Pushes of one volume in a row that a node may refuse for a passing reason before a person is asked.
const ATTEMPTS_MAX: u32 = 10;

/// What follows from a node's evidence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// Its key is not pinned: show what it claims and end the session.
    AwaitApproval,
    /// It may hold nothing.
    RevokeAll(RevokeCause),
    /// It may go on, except with these.
    Serve { revoke: Vec<(VolumeId, RevokeCause)> },
}

/// A grant whose latest expiry is on disk.
#[derive(Debug)]
pub(crate) struct PlannedGrant {
    pub(crate) order: GrantOrder,
    pub(crate) of: SecretOf,
    pub(crate) wrapped: Wrapped,
}

impl Book {
    /// Takes in verified evidence.
    pub(crate) fn on_evidence(
        &mut self,
        node: NodeId,
        evidence: &Evidence,
    ) -> Result<Judgement, KeyholderError> {
        let registry = self.registry()?;
        let Some(record) = registry.node(node) else { return Ok(Judgement::RevokeAll(RevokeCause::Revoked)) };
        let pinned = record.pinned.is_some();
        let lockdown = registry.lockdown.is_some();
        let now = self.node_now(node);
        now.boot = Some(evidence.boot);
        now.last_wipe = evidence.last_wipe;
        now.hygiene = serde_json::from_str(&evidence.hygiene).ok();
        now.present = evidence.volumes.iter().map(|volume| (volume.volume, *volume)).collect();
        if !pinned {
            now.claimed = Some(evidence.identity_key);
            return Ok(Judgement::AwaitApproval);
        }
        now.connection = Connection::Connected;
        now.last_error = None;
        if evidence.held.is_empty() {
            now.empty_since = Some(clock::now());
        }
        if let Some(wipe) = evidence.last_wipe {
            self.note_wipe(node, wipe)?;
        }
        let held: BTreeMap<VolumeId, GrantId> =
            evidence.held.iter().map(|held| (held.volume, held.grant)).collect();
        let revoke = self.reconcile(node, &held)?;
        let latched = self.registry()?.node(node).is_some_and(|record| record.latch.is_some());
        Ok(match (lockdown, latched) {
            (true, _) if !held.is_empty() => Judgement::RevokeAll(RevokeCause::Lockdown),
            (_, true) if !held.is_empty() => Judgement::RevokeAll(RevokeCause::Revoked),
            _ => Judgement::Serve { revoke },
        })
    }

    /// Compares what a node holds with what it should; returns what it has to give up.
    fn reconcile(
        &mut self,
        node: NodeId,
        held: &BTreeMap<VolumeId, GrantId>,
    ) -> Result<Vec<(VolumeId, RevokeCause)>, KeyholderError> {
        let mut revoke = Vec::new();
        let volumes: Vec<VolumeRecord> = self.registry()?.volumes_of(node).cloned().collect();
        for record in &volumes {
            // A new session is a new try, for a reason that may have gone with the old one.
            self.volume_now(record.volume).attempts = 0;
            let known = self.records.of(record.volume).map(|record| record.grant);
            match held.get(&record.volume) {
                Some(grant) if record.latch.is_some() => {
                    let cause = if record.life == Life::Deleting {
                        RevokeCause::Deleted
                    } else {
                        RevokeCause::Revoked
                    };
                    revoke.push((record.volume, cause));
                    self.set_key(record.volume, KeyState::Unlocked, Some(*grant));
                }
                Some(grant) if known == Some(*grant) => {
                    self.set_key(record.volume, KeyState::Unlocked, Some(*grant));
                }
                Some(_) => {
                    revoke.push((record.volume, RevokeCause::UnknownGrant));
                    self.set_key(record.volume, KeyState::Unknown, None);
                }
                None => {
                    // Signed evidence that it is not held is as good as a receipt.
                    if let Some(grant) = known {
                        self.records.release(record.volume, grant);
                    }
                    self.set_key(record.volume, KeyState::Sealed, None);
                }
            }
        }
        let strangers = held.keys().filter(|held| !volumes.iter().any(|volume| volume.volume == **held));
        revoke.extend(strangers.map(|volume| (*volume, RevokeCause::UnknownGrant)));
        Ok(revoke)
    }

    fn set_key(&mut self, volume: VolumeId, key: KeyState, grant: Option<GrantId>) {
        let now = self.volume_now(volume);
        now.key = Some(key);
        now.grant = grant;
        if key == KeyState::Unlocked {
            now.reason = None;
            now.attempts = 0;
            // Spent: the next push wants a new one.
            now.approved_until = None;
        }
    }

    /// A wipe that latches is latched here too, unless an officer has lifted that very one.
    fn note_wipe(&mut self, node: NodeId, wipe: WipeRecord) -> Result<(), KeyholderError> {
        self.node_now(node).last_wipe = Some(wipe);
        if wipe.cause.repush_rule() != RepushRule::Latched {
            return Ok(());
        }
        let Some(boot) = self.node_now(node).boot else { return Ok(()) };
        let id = WipeId { boot, at: wipe.at };
        let record = self.registry()?.node(node);
        let known = record.is_none_or(|record| {
            record.acknowledged == Some(id)
                || record.latch.as_ref().is_some_and(|latch| latch.wipe == Some(id))
        });
        if known {
            return Ok(());
        }
        self.commit(|registry| {
            if let Some(record) = registry.node_mut(node) {
                let latch = record.latch.get_or_insert(LatchRecord {
                    cause: LatchCause::Wipe(wipe.cause),
                    since_unix_s: clock::unix_s(),
                    by: None,
                    wipe: None,
                });
                latch.wipe = Some(id);
            }
            Ok(())
        })?;
        let fields = [("node", node.to_string().into()), ("cause", wipe.cause.name().into())];
        self.audit.record("latched-by-wipe", fields)?;
        Ok(())
    }

    /// Whether a push of the volume would be in order, policy and approval apart.
    pub(super) fn is_pushable(&self, volume: &VolumeRecord) -> bool {
        let key = self.volumes.get(&volume.volume).and_then(|now| now.key);
        volume.life == Life::Live
            && volume.latch.is_none()
            && !matches!(key, Some(KeyState::Unlocked | KeyState::Pushing | KeyState::Unknown))
    }

    fn is_allowed(&self, node: &NodeRecord, volume: &VolumeRecord, now: BootInstant) -> bool {
        let known = self.volumes.get(&volume.volume);
        let approved =
            known.and_then(|known| known.approved_until).is_some_and(|until: BootInstant| now < until);
        let attempts = known.map_or(0, |known: &VolumeNow| known.attempts);
        attempts < ATTEMPTS_MAX && (node.push == PushPolicy::Auto || approved)
    }

    /// When pushes that wait for lost lease records may go on; `None` where they need not wait.
    pub(crate) fn grants_wait(&mut self) -> Option<BootInstant> {
        self.wait_until = self.wait_until.filter(|until| clock::now() < *until);
        self.wait_until
    }

    /// Chooses what is to be pushed to the node, and records each grant durably before it is handed out.
    pub(crate) fn plan_push(&mut self, node: NodeId) -> Result<Vec<PlannedGrant>, KeyholderError> {
        if self.grants_wait().is_some() {
            return Ok(Vec::new());
        }
        let now = clock::now();
        let registry = self.registry()?;
        let Some(record) = registry.node(node) else { return Ok(Vec::new()) };
        if registry.lockdown.is_some() || record.latch.is_some() || record.pinned.is_none() {
            return Ok(Vec::new());
        }
        let lease_ms = record.lease_ms;
        let chosen: Vec<VolumeRecord> = registry
            .volumes_of(node)
            .filter(|volume| self.is_pushable(volume) && self.is_allowed(record, volume, now))
            .cloned()
            .collect();
        let mut planned = Vec::new();
        for volume in &chosen {
            match self.next_fence(node, volume, now) {
                Ok(fence) => planned.push(self.planned(volume, fence, lease_ms)?),
                Err(reason) => self.volume_now(volume.volume).reason = Some(reason),
            }
        }
        if planned.is_empty() {
            return Ok(planned);
        }
        let expires = Some(now.saturating_add_ms(lease_with_drift_ms(lease_ms)));
        // Before any of them leaves.
        self.records.update(|records| {
            for PlannedGrant { order, .. } in &planned {
                let record = LeaseRecord { node, grant: order.grant, fence: order.fence, lease_ms, expires };
                records.insert(order.volume, record);
            }
        })?;
        for PlannedGrant { order, .. } in &planned {
            self.set_key(order.volume, KeyState::Pushing, Some(order.grant));
            let fields = [
                ("volume", order.volume.to_string().into()),
                ("node", node.to_string().into()),
                ("grant", order.grant.to_string().into()),
                ("fence", order.fence.0.into()),
                ("lease_ms", lease_ms.into()),
            ];
            self.audit.append("grant", fields)?;
        }
        self.audit.sync()?;
        Ok(planned)
    }

    /// When the first of the node's volumes comes free whose key another node may still hold: a push is due then.
    pub(crate) fn held_elsewhere_until(&self, node: NodeId) -> Option<BootInstant> {
        let now = clock::now();
        let volumes = self.registry().ok()?.volumes_of(node).filter(|volume| self.is_pushable(volume));
        let elsewhere = volumes.filter_map(|volume| {
            let record = self.records.of(volume.volume).filter(|record| record.node != node)?;
            record.expires.filter(|expires| now < *expires)
        });
        elsewhere.min()
    }

    fn planned(
        &self,
        volume: &VolumeRecord,
        fence: Fence,
        lease_ms: u64,
    ) -> Result<PlannedGrant, KeyholderError> {
        let mut grant = [0; 16];
        getrandom::fill(&mut grant)
            .map_err(|error| crate::vault::VaultError::Random(std::io::Error::other(error.to_string())))?;
        let order = GrantOrder {
            grant: GrantId(grant),
            volume: volume.volume,
            domain: volume.domain,
            epoch: volume.epoch,
            fence,
            lease_ms,
            label: volume.label.clone(),
            kind: volume.kind,
            on_seal: volume.on_seal,
            check: volume.check,
        };
        Ok(PlannedGrant { order, of: volume.secret_of(), wrapped: volume.secret })
    }

    /// The fence of the next grant: above the record, the ledger and what the node has seen.
    pub(super) fn next_fence(
        &self,
        node: NodeId,
        volume: &VolumeRecord,
        now: BootInstant,
    ) -> Result<Fence, String> {
        let record = self.records.of(volume.volume);
        // The key lease is the fence: another node may have it until its lease is over.
        if let Some(record) = record.filter(|record| record.node != node)
            && let Some(expires) = record.expires.filter(|expires| now < *expires)
        {
            return Err(format!(
                "another node may hold the key for {} ms more; it is pushed after that",
                expires.ms_since(now)
            ));
        }
        let ours = record.map_or(Fence(0), |record| record.fence).max(volume.fence_floor);
        let seen = self.nodes.get(&node).and_then(|now| now.present.get(&volume.volume));
        let theirs = seen.map_or(Fence(0), |seen| seen.fence);
        if theirs.0.saturating_sub(ours.0) > FENCE_LEAP_MAX {
            return Err(format!(
                "the node reports fence {theirs} where the ledger has {ours}; look at the node's pool before pushing"
            ));
        }
        ours.max(theirs)
            .next()
            .ok_or_else(|| "the volume's fences are used up; copy it to a new one".to_owned())
    }

    /// What a challenge of the node is answered with: the lease, and the grants that go on, durably recorded.
    pub(crate) fn renew(&mut self, node: NodeId) -> Result<(u64, Vec<GrantId>), KeyholderError> {
        let registry = self.registry()?;
        let Some(record) = registry.node(node) else {
            return Err(KeyholderError::NoSuchNode { name: node.to_string() });
        };
        let lease_ms = record.lease_ms;
        if registry.lockdown.is_some() || record.latch.is_some() {
            return Ok((lease_ms, Vec::new()));
        }
        let renewed: Vec<(VolumeId, GrantId)> = registry
            .volumes_of(node)
            .filter(|volume| volume.latch.is_none())
            .filter_map(|volume| {
                let now = self.volumes.get(&volume.volume)?;
                let in_force = matches!(now.key, Some(KeyState::Unlocked | KeyState::Pushing));
                now.grant.filter(|_| in_force).map(|grant| (volume.volume, grant))
            })
            .collect();
        if !renewed.is_empty() {
            let expires = clock::now().saturating_add_ms(lease_with_drift_ms(lease_ms));
            self.records.update(|records| {
                for (volume, grant) in &renewed {
                    if let Some(record) = records.get_mut(volume).filter(|record| record.grant == *grant) {
                        record.expires = record.expires.max(Some(expires));
                        record.lease_ms = lease_ms;
                    }
                }
            })?;
        }
        Ok((lease_ms, renewed.into_iter().map(|(_, grant)| grant).collect()))
    }

    /// A key is in force.
    pub(crate) fn on_receipt(&mut self, receipt: &Receipt) -> Result<(), KeyholderError> {
        self.set_key(receipt.volume, KeyState::Unlocked, Some(receipt.grant));
        let fields =
            [("volume", receipt.volume.to_string().into()), ("grant", receipt.grant.to_string().into())];
        self.audit.append("receipt", fields)?;
        Ok(())
    }

    /// A key was not taken. Returns whether it is worth another try by itself.
    pub(crate) fn on_refused(&mut self, refused: &GrantRefused) -> Result<bool, KeyholderError> {
        self.records.release(refused.volume, refused.grant);
        if let GrantRefusal::OldFence { highest, .. } = refused.reason {
            self.records.update(|records| {
                if let Some(record) = records.get_mut(&refused.volume) {
                    record.fence = record.fence.max(highest);
                }
            })?;
        }
        let passing = is_passing(&refused.reason);
        let now = self.volume_now(refused.volume);
        now.key = Some(KeyState::Refused);
        now.grant = None;
        now.reason = Some(refused.reason.to_string());
        now.attempts = match refused.reason {
            // A power cut lasts as long as it lasts, and keys are wanted after it.
            GrantRefusal::TriggerStanding(_) => now.attempts,
            _ if passing => now.attempts.saturating_add(1),
            _ => ATTEMPTS_MAX,
        };
        now.approved_until = now.approved_until.filter(|_| passing);
        let fields = [
            ("volume", refused.volume.to_string().into()),
            ("grant", refused.grant.to_string().into()),
            ("why", refused.reason.to_string().into()),
        ];
        self.audit.record("grant-refused", fields)?;
        Ok(passing)
    }

    /// Keys are gone.
    pub(crate) fn on_wiped(&mut self, node: NodeId, receipt: &WipeReceipt) -> Result<(), KeyholderError> {
        let stages = receipt.stages;
        let fields = [
            ("node", node.to_string().into()),
            ("cause", receipt.record.cause.name().into()),
            ("scope", serde_json::json!(receipt.scope)),
            ("stage", stages.reached().into()),
            ("wipe_ns", stages.keys_ns.into()),
            ("threads_ns", stages.threads_ns.into()),
            ("memory_ns", stages.memory_ns.into()),
        ];
        if receipt.scope == Scope::All && self.node_now(node).last_wipe == Some(receipt.record) {
            // Told before, and has come further.
            self.audit.record("wiped-further", fields)?;
            return Ok(());
        }
        let registry = self.registry()?;
        // A node speaks for its own volumes: its word about another's would let that one be granted twice.
        let volumes: Vec<VolumeId> = registry
            .volumes_of(node)
            .map(|volume| volume.volume)
            .filter(|volume| receipt.scope == Scope::All || receipt.scope == Scope::Volume(*volume))
            .collect();
        let news = receipt.scope == Scope::All
            || volumes
                .iter()
                .any(|volume| self.volumes.get(volume).and_then(|now| now.key) != Some(KeyState::Sealed));
        if !news {
            return Ok(());
        }
        for volume in volumes {
            if let Some(grant) = self.records.of(volume).map(|record| record.grant) {
                self.records.release(volume, grant);
            }
            self.set_key(volume, KeyState::Sealed, None);
        }
        self.audit.record("wiped", fields)?;
        if receipt.scope == Scope::All {
            self.node_now(node).empty_since = Some(clock::now());
            self.note_wipe(node, receipt.record)?;
        } else if receipt.record.cause == WipeCause::NotRenewed {
            tracing::warn!(%node, "the node dropped a key that was not renewed");
        }
        Ok(())
    }

    /// The connection is gone; what the node held it may hold until its lease ends.
    pub(crate) fn on_disconnected(&mut self, node: NodeId, error: Option<String>) {
        let Some(open) = &self.open else { return };
        let volumes: Vec<VolumeId> = open.registry.volumes_of(node).map(|volume| volume.volume).collect();
        for volume in volumes {
            let now = self.volume_now(volume);
            if matches!(now.key, Some(KeyState::Unlocked | KeyState::Pushing)) {
                now.key = Some(KeyState::Unknown);
            }
        }
        let now = self.node_now(node);
        now.connection = Connection::Dialling;
        if error.is_some() {
            now.last_error = error;
        }
    }

    /// Whether the node has proved, since `since`, that it holds nothing of what a revocation named.
    pub(crate) fn is_forgotten(&self, node: NodeId, volume: Option<VolumeId>, since: BootInstant) -> bool {
        let emptied =
            self.nodes.get(&node).and_then(|now| now.empty_since).is_some_and(|emptied| emptied >= since);
        match volume {
            None => emptied,
            Some(volume) => {
                let key = self.volumes.get(&volume).and_then(|now| now.key);
                emptied || key == Some(KeyState::Sealed)
            }
        }
    }
}

/// Whether trying again can help without anyone doing anything.
fn is_passing(reason: &GrantRefusal) -> bool {
    match reason {
        GrantRefusal::OldFence { .. }
        | GrantRefusal::Expired
        | GrantRefusal::UnknownChallenge
        | GrantRefusal::Unopenable
        | GrantRefusal::AlreadyHeld { .. }
        | GrantRefusal::Replayed
        | GrantRefusal::Wiped
        | GrantRefusal::TriggerStanding(_) => true,
        GrantRefusal::WrongVolume
        | GrantRefusal::WrongDomain
        | GrantRefusal::WrongCheck
        | GrantRefusal::WrongKey
        | GrantRefusal::LeaseOutOfRange { .. }
        | GrantRefusal::TooManyKeys
        | GrantRefusal::NoSecretMemory
        | GrantRefusal::FenceNotDurable
        | GrantRefusal::VolumeFailed => false,
    }
}
