//! What a session with a node asks of the book: judging evidence, planning pushes, recording leases, noting receipts.

use std::collections::BTreeMap;

use lease::GrantRefusal;
use lease::keyholder::GrantOrder;
use lease::limits::{DRIFT_PPM, LEASE_MS_MIN, lease_with_drift_ms};
use lease::message::{
    Evidence, GrantRefused, OnRollback, PoolState, Receipt, RepushRule, RevokeCause, Scope, WipeCause,
    WipeReceipt, WipeRecord,
};
use units::{BootInstant, Fence, GrantId, NodeId, PoolId, VolumeId};

use super::rules::labels_of_key;
use super::{Book, NodeNow, VolumeNow};
use crate::api::{Connection, KeyState, PushPolicy};
use crate::attest::{Proven, Unproven};
use crate::clock;
use crate::error::KeyholderError;
use crate::ledger::{LatchCause, LatchRecord, Life, NodeRecord, VolumeRecord, WipeId};
use crate::policy::CameBack;
use crate::records::LeaseRecord;
use crate::store::{Room, StoreError};

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
}

impl Book {
    /// Takes in verified evidence.
    pub(crate) fn on_evidence(
        &mut self,
        node: NodeId,
        evidence: &Evidence,
        proof: Result<Proven, Unproven>,
    ) -> Result<Judgement, KeyholderError> {
        let registry = self.registry()?;
        let Some(record) = registry.node(node) else { return Ok(Judgement::RevokeAll(RevokeCause::Revoked)) };
        let pinned = record.pinned.is_some();
        let lockdown = registry.lockdown.is_some();
        let came_back = self.came_back(node, evidence);
        let proof = self.with_known_wipes(node, evidence, proof);
        // What the TPM has measured counts more than what a program says that may have been started since.
        let measured = proof.as_ref().ok().and_then(|proven| latching(proven.wipes()));
        let now = self.node_now(node);
        if now.boot != Some(evidence.boot) {
            now.told_wipes.clear();
        }
        now.tell_wipes(evidence.last_wipe);
        now.boot = Some(evidence.boot);
        let before = std::mem::replace(&mut now.came_back, came_back);
        now.last_wipe = evidence.last_wipe;
        now.proof = proof;
        now.hygiene = serde_json::from_str(&evidence.hygiene).ok();
        now.present = evidence.volumes.iter().map(|volume| (volume.volume, *volume)).collect();
        if !pinned {
            now.claimed = Some(evidence.identity_key);
            return Ok(Judgement::AwaitApproval);
        }
        now.connection = Connection::Connected;
        now.last_error = None;
        now.lost = false;
        if evidence.held.is_empty() {
            now.empty_since = Some(clock::now());
        }
        // Once, however often it dials before it has keys again.
        if came_back == CameBack::Vanished && before != CameBack::Vanished {
            let fields = [("node", node.to_string().into()), ("boot", evidence.boot.to_string().into())];
            self.audit.record("node-vanished", fields)?;
        }
        for wipe in measured.into_iter().chain(evidence.last_wipe) {
            self.note_wipe(node, wipe)?;
        }
        let held: BTreeMap<VolumeId, GrantId> =
            evidence.held.iter().map(|held| (held.volume, held.grant)).collect();
        let revoke = self.reconcile(node, &held)?;
        self.node_now(node).copies_noted = false;
        if let Err(error) = self.note_copies(node) {
            // It is tried again with each of its challenges.
            tracing::info!(%node, %error, "what the node has of other nodes' volumes is not written down yet");
        }
        let latched = self.registry()?.node(node).is_some_and(|record| record.latch.is_some());
        Ok(match (lockdown, latched) {
            (true, _) if !held.is_empty() => Judgement::RevokeAll(RevokeCause::Lockdown),
            (_, true) if !held.is_empty() => Judgement::RevokeAll(RevokeCause::Revoked),
            _ => Judgement::Serve { revoke },
        })
    }

    /// A proof that leaves out a wipe which the node itself has told, now or in an earlier session of this start, is none.
    fn with_known_wipes(
        &self,
        node: NodeId,
        evidence: &Evidence,
        proof: Result<Proven, Unproven>,
    ) -> Result<Proven, Unproven> {
        let before = self.nodes.get(&node).filter(|now| now.boot == Some(evidence.boot));
        let told =
            before.into_iter().flat_map(|now| now.told_wipes.iter().copied()).chain(evidence.last_wipe);
        // Another TPM is that before anything else.
        let approved = self.open.as_ref().and_then(|open| open.registry.tpm_of(node));
        proof.and_then(|proven| match approved {
            Some(approved) if !proven.is_of(approved) => Ok(proven),
            _ => proven.after(told),
        })
    }

    /// How the node comes to hold what it holds. Before the records are released that say what it held.
    fn came_back(&self, node: NodeId, evidence: &Evidence) -> CameBack {
        if !evidence.held.is_empty() {
            return CameBack::Holding;
        }
        let records: Vec<_> = self.records.of_node(node).collect();
        // The run that was wiped says so itself; a record without an expiry was released by a receipt.
        let accounted = evidence.last_wipe.is_some() || records.iter().all(|record| record.expires.is_none());
        match (records.is_empty(), accounted) {
            (true, _) => CameBack::First,
            (false, true) => CameBack::Receipted,
            (false, false) => CameBack::Vanished,
        }
    }

    /// Whether another keyholder has recorded a lease of the node's at or after this moment, when a session with it was opened here:
    /// then evidence of that session may be older than the lease, and says nothing about it.
    pub(crate) fn was_granted_since(&self, node: NodeId, opened: BootInstant) -> bool {
        self.records.of_node(node).any(|record| record.seen.is_some_and(|seen| seen >= opened))
    }

    /// Compares what a node holds with what it should; returns what it has to give up.
    pub(super) fn reconcile(
        &mut self,
        node: NodeId,
        held: &BTreeMap<VolumeId, GrantId>,
    ) -> Result<Vec<(VolumeId, RevokeCause)>, KeyholderError> {
        let mut revoke = Vec::new();
        let volumes: Vec<VolumeRecord> = self.registry()?.volumes_of(node).cloned().collect();
        for record in &volumes {
            // A new session is a new try, for a reason that may have gone with the old one.
            let said = self.nodes.get(&node).and_then(|now| now.present.get(&record.volume));
            let written = said.map(|present| present.epoch);
            let now = self.volume_now(record.volume);
            now.attempts = 0;
            (now.epoch_offered, now.written) = (None, written);
            // A record of another node's lease is none of this node's: a promotion may have come between.
            let known = self.records.of(record.volume).filter(|known| known.node == node);
            let known = known.map(|known| known.grant);
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
                None => self.set_key(record.volume, KeyState::Sealed, None),
            }
        }
        // Signed evidence that it is not held is as good as a receipt, also of a volume that is another node's by now.
        self.records.release_of_node(node, |volume| !held.contains_key(&volume));
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
        self.commit_in(Room::Reserve, |registry| {
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

    fn is_approved(&self, volume: &VolumeRecord, now: BootInstant) -> bool {
        let known = self.volumes.get(&volume.volume);
        known.and_then(|known| known.approved_until).is_some_and(|until: BootInstant| now < until)
    }

    fn is_allowed(&self, node: &NodeRecord, volume: &VolumeRecord, now: BootInstant) -> bool {
        let attempts = self.volumes.get(&volume.volume).map_or(0, |known: &VolumeNow| known.attempts);
        attempts < ATTEMPTS_MAX && (node.push == PushPolicy::Auto || self.is_approved(volume, now))
    }

    /// Of what could be pushed, what the policy lets go, or a person has approved where that is a person's to decide.
    fn let_go(
        &mut self,
        node: &NodeRecord,
        candidates: Vec<VolumeRecord>,
        now: BootInstant,
    ) -> Result<Vec<VolumeRecord>, KeyholderError> {
        let mut chosen = Vec::new();
        let mut return_accepted = false;
        for volume in candidates {
            let approved = self.is_approved(&volume, now);
            match self.judge(node, &volume, now) {
                Ok(()) => return_accepted = true,
                Err(refusal) if refusal.approvable && approved => {}
                Err(refusal) => {
                    self.note_policy_refusal(node.node, volume.volume, &refusal)?;
                    continue;
                }
            }
            self.volume_now(volume.volume).by_policy = false;
            chosen.push(volume);
        }
        let came_back = self.node_now(node.node).came_back;
        if !chosen.is_empty() && came_back != CameBack::Holding {
            self.unseals.note(now, node.node);
            if return_accepted {
                // What is pushed from now on in this session comes on top.
                self.node_now(node.node).came_back = CameBack::Holding;
            }
        }
        Ok(chosen)
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
        if self.store.may_grant().is_err() {
            self.pushes_wait_for_store = true;
            return Ok(Vec::new());
        }
        let now = clock::now();
        let registry = self.registry()?;
        let Some(record) = registry.node(node) else { return Ok(Vec::new()) };
        if registry.lockdown.is_some() || record.latch.is_some() || record.pinned.is_none() {
            return Ok(Vec::new());
        }
        let record = record.clone();
        let lease_ms = record.lease_ms;
        let candidates: Vec<VolumeRecord> = registry
            .volumes_of(node)
            .filter(|volume| self.is_pushable(volume) && self.is_allowed(&record, volume, now))
            .cloned()
            .collect();
        let chosen = self.let_go(&record, candidates, now)?;
        let mut planned = Vec::new();
        for volume in &chosen {
            match self.next_fence(node, volume, now) {
                Ok(fence) => planned.push(self.planned(node, volume, fence, lease_ms)?),
                Err(reason) => self.volume_now(volume.volume).reason = Some(reason),
            }
        }
        if planned.is_empty() {
            return Ok(planned);
        }
        // Before any of them leaves.
        if let Err(error) = self.record_grants(node, &planned, lease_ms, now) {
            let is_passing = matches!(error, StoreError::Away { .. } | StoreError::Changed);
            if !is_passing || self.store.shared().is_none() {
                return Err(error.into());
            }
            // The session goes on renewing what is in force; what waits is pushed when the store is back.
            for PlannedGrant { order, .. } in &planned {
                self.volume_now(order.volume).reason = Some(error.to_string());
            }
            self.pushes_wait_for_store = true;
            return Ok(Vec::new());
        }
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

    fn record_grants(
        &mut self,
        node: NodeId,
        planned: &[PlannedGrant],
        lease_ms: u64,
        now: BootInstant,
    ) -> Result<(), StoreError> {
        let ends = now.saturating_add_ms(lease_with_drift_ms(lease_ms));
        let ahead_ms = self.store.ahead_ms();
        self.records.update(&mut self.store, |records| {
            for PlannedGrant { order, .. } in planned {
                let before = records.get(&order.volume);
                let pool = before.and_then(|record| record.pool);
                // What another keyholder may have given under an earlier grant does not end with this one.
                let given = before.and_then(LeaseRecord::held_until).map_or(ends, |held| held.max(ends));
                let (grant, fence) = (order.grant, order.fence);
                let expires = Some(given.max(ends.saturating_add_ms(ahead_ms)));
                let given = Some(given);
                let record = LeaseRecord { node, grant, fence, lease_ms, expires, pool, given, seen: None };
                records.insert(order.volume, record);
            }
        })
    }

    /// Whether a grant that was planned may still leave: nothing has been latched, moved or granted anew since.
    pub(crate) fn may_go_out(&self, node: NodeId, order: &GrantOrder) -> bool {
        let Ok(registry) = self.registry() else { return false };
        let node_may =
            registry.node(node).is_some_and(|record| record.latch.is_none() && record.pinned.is_some());
        let volume_may = registry
            .volume(order.volume)
            .is_some_and(|volume| volume.life == Life::Live && volume.latch.is_none());
        let is_pushing = self.volumes.get(&order.volume).is_some_and(|now| now.grant == Some(order.grant));
        registry.lockdown.is_none()
            && node_may
            && volume_may
            && is_pushing
            && self.is_in_order(node, order.volume, order.grant)
    }

    /// Whether the record reaches to the end of a lease that counts from a challenge which arrived then.
    pub(crate) fn is_recorded(&self, order: &GrantOrder, challenged: BootInstant) -> bool {
        let ends = challenged.saturating_add_ms(lease_with_drift_ms(order.lease_ms));
        let record = self.records.of(order.volume).filter(|record| record.grant == order.grant);
        record.and_then(LeaseRecord::held_until).is_some_and(|held| ends <= held)
    }

    /// Takes a planned grant back that was never signed: nobody can hold its key.
    pub(crate) fn withdraw(&mut self, order: &GrantOrder) {
        self.records.release(order.volume, order.grant);
        if self.volumes.get(&order.volume).is_some_and(|now| now.grant == Some(order.grant)) {
            self.set_key(order.volume, KeyState::Sealed, None);
        }
    }

    /// When the first of the node's volumes comes free whose key another node may still hold: a push is due then.
    pub(crate) fn held_elsewhere_until(&self, node: NodeId) -> Option<BootInstant> {
        let now = clock::now();
        let volumes = self.registry().ok()?.volumes_of(node).filter(|volume| self.is_pushable(volume));
        let elsewhere = volumes.filter_map(|volume| {
            let record = self.records.of(volume.volume).filter(|record| record.node != node)?;
            record.held_until().filter(|held| now < *held)
        });
        elsewhere.min()
    }

    /// Notes the states of pools that volumes of the node are in: it speaks for no other's. Whether there was news.
    fn note_states(&mut self, node: NodeId, states: &[PoolState]) -> bool {
        let Ok(registry) = self.registry() else { return false };
        let of = |volume: &VolumeRecord| self.records.of(volume.volume).and_then(|record| record.pool);
        let pools: Vec<PoolId> = registry.volumes_of(node).filter_map(of).collect();
        let own: Vec<PoolState> =
            states.iter().filter(|state| pools.contains(&state.pool)).copied().collect();
        self.records.note_states(&own)
    }

    /// The state that a volume's pool was last known in: the pool it was served from, or the one that the node says it is in.
    fn known_state(&self, node: NodeId, volume: VolumeId) -> Option<PoolState> {
        let said = || Some(self.nodes.get(&node)?.present.get(&volume)?.pool);
        let pool = self.records.of(volume).and_then(|record| record.pool).or_else(said)?;
        self.records.state_of(pool)
    }

    fn planned(
        &self,
        node: NodeId,
        volume: &VolumeRecord,
        fence: Fence,
        lease_ms: u64,
    ) -> Result<PlannedGrant, KeyholderError> {
        let mut grant = [0; 16];
        getrandom::fill(&mut grant)
            .map_err(|error| crate::vault::VaultError::Random(std::io::Error::other(error.to_string())))?;
        let (present, further) = self.epochs_for_grant(volume);
        let order = GrantOrder {
            grant: GrantId(grant),
            volume: volume.volume,
            domain: volume.domain,
            epoch: present.epoch,
            fence,
            lease_ms,
            label: volume.label.clone(),
            kind: volume.kind,
            on_seal: volume.on_seal,
            known_state: self.known_state(node, volume.volume),
            on_rollback: match self.volumes.get(&volume.volume) {
                Some(now) if now.accepts_state => OnRollback::Warn,
                _ => OnRollback::Refuse,
            },
            check: present.check,
            further: further.iter().map(|further| (further.epoch, further.check)).collect(),
        };
        Ok(PlannedGrant { order })
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
            && let Some(held) = record.held_until().filter(|held| now < *held)
        {
            return Err(format!(
                "another node may hold the key for {} ms more; it is pushed after that",
                held.ms_since(now)
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

    /// What a challenge of the node is answered with: the lease, and the grants that go on, durably recorded. `None` where the challenge
    /// is better not answered yet.
    pub(crate) fn renew(
        &mut self,
        node: NodeId,
        states: &[PoolState],
    ) -> Result<Option<(u64, Vec<GrantId>)>, KeyholderError> {
        // Durable with the renewal, or by itself.
        let news = self.note_states(node, states);
        let registry = self.registry()?;
        let Some(record) = registry.node(node) else {
            return Err(KeyholderError::NoSuchNode { name: node.to_string() });
        };
        // What is in force is shortened to what the policy allows by now.
        let longest_ms = self.policy.push.lease_ms_max.unwrap_or(record.lease_ms).max(LEASE_MS_MIN);
        let lease_ms = record.lease_ms.min(longest_ms);
        if registry.lockdown.is_some() || record.latch.is_some() {
            return Ok(Some((lease_ms, Vec::new())));
        }
        let machine = self.machine(node);
        // What the policy does not want there any more ends with the lease that runs.
        let may_hold = |volume: &VolumeRecord| {
            labels_of_key(registry, volume)
                .all(|label| self.policy.may_hold(record.name.as_str(), &machine, label).is_ok())
        };
        let renewed: Vec<(VolumeId, GrantId)> = registry
            .volumes_of(node)
            .filter(|volume| volume.latch.is_none() && may_hold(volume))
            .filter_map(|volume| {
                let now = self.volumes.get(&volume.volume)?;
                let in_force = matches!(now.key, Some(KeyState::Unlocked | KeyState::Pushing));
                let grant = now.grant.filter(|_| in_force)?;
                self.records.is_granted(node, volume.volume, grant).then_some((volume.volume, grant))
            })
            .collect();
        if renewed.is_empty() {
            if news {
                self.flush_records()?;
            }
            return Ok(Some((lease_ms, Vec::new())));
        }
        self.record_renewals(&renewed, lease_ms, news)
    }

    /// Records that these grants go on, where that is not recorded yet; returns for how long they do. Where the store is away, that is as
    /// long as it had been recorded before.
    fn record_renewals(
        &mut self,
        renewed: &[(VolumeId, GrantId)],
        lease_ms: u64,
        news: bool,
    ) -> Result<Option<(u64, Vec<GrantId>)>, KeyholderError> {
        let now = clock::now();
        let ends = now.saturating_add_ms(lease_with_drift_ms(lease_ms));
        let ahead_ms = self.store.ahead_ms();
        // Half of what is ahead is left for a store that does not answer at once.
        let enough = ends.saturating_add_ms(ahead_ms / 2);
        let is_due = |record: &LeaseRecord| {
            record.given.is_none() || record.expires.is_none_or(|expires| expires < enough)
        };
        let due = renewed.iter().any(|(volume, _)| self.records.of(*volume).is_some_and(is_due));
        if due || (news && ahead_ms == 0) {
            let written = self.records.update(&mut self.store, |records| {
                for (volume, _) in renewed {
                    if let Some(record) = records.get_mut(volume) {
                        let held = record.held_until();
                        // A shorter lease does not end the longer one that runs: after a reboot that one is counted.
                        if held.is_none_or(|held| held <= ends) {
                            record.lease_ms = lease_ms;
                        }
                        let given = held.map_or(ends, |held| held.max(ends));
                        record.given = Some(given);
                        let recorded = ends.saturating_add_ms(ahead_ms).max(given);
                        record.expires = Some(record.expires.map_or(recorded, |known| known.max(recorded)));
                    }
                }
            });
            match written {
                Ok(()) => {}
                Err(error @ (StoreError::File(_) | StoreError::Changed)) => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(%error, "renewing inside what is recorded");
                    return Ok(self.renew_inside_the_record(renewed, lease_ms, now));
                }
            }
        }
        renewed.iter().for_each(|(volume, _)| self.records.note_given(*volume, ends));
        Ok(Some((lease_ms, renewed.iter().map(|(_, grant)| *grant).collect())))
    }

    /// What can be renewed without another word to the store, and for how long. The node drops what an answer does not name: where all
    /// that runs is by another keyholder's record there is none, and it ends with its lease, if the store is not back before.
    fn renew_inside_the_record(
        &mut self,
        renewed: &[(VolumeId, GrantId)],
        lease_ms: u64,
        now: BootInstant,
    ) -> Option<(u64, Vec<GrantId>)> {
        let left = |volume: &VolumeId| {
            let record = self.records.of(*volume).filter(|record| record.given.is_some())?;
            let lease_ms = lease_within_ms(record.expires?.ms_since(now));
            (lease_ms >= LEASE_MS_MIN).then_some(lease_ms)
        };
        let inside: Vec<_> =
            renewed.iter().filter_map(|(volume, grant)| Some((*volume, *grant, left(volume)?))).collect();
        let is_anothers = |record: &LeaseRecord| {
            record.given.is_none() && record.expires.is_some_and(|expires| now < expires)
        };
        let leaves_out = renewed.iter().any(|(volume, _)| self.records.of(*volume).is_some_and(is_anothers));
        if leaves_out && inside.is_empty() {
            return None;
        }
        let lease_ms = inside
            .iter()
            .map(|(_, _, left_ms)| *left_ms)
            .min()
            .map_or(lease_ms, |left_ms| left_ms.min(lease_ms));
        let ends = now.saturating_add_ms(lease_with_drift_ms(lease_ms));
        inside.iter().for_each(|(volume, ..)| self.records.note_given(*volume, ends));
        Some((lease_ms, inside.into_iter().map(|(_, grant, _)| grant).collect()))
    }

    /// Makes durable what was noted of leases. Where a shared store cannot take it now, it is kept in memory for the next time: until
    /// then others only wait longer.
    pub(crate) fn flush_records(&mut self) -> Result<(), KeyholderError> {
        match self.records.flush(&mut self.store) {
            Err(error @ (StoreError::Away { .. } | StoreError::Changed)) => {
                tracing::debug!(%error, "lease records wait for the store");
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Whether the volume is the node's, and this its last grant: a word about any other one changes nothing.
    fn is_in_order(&self, node: NodeId, volume: VolumeId, grant: GrantId) -> bool {
        let placed = self.registry().ok().and_then(|registry| registry.volume(volume));
        placed.is_some_and(|record| record.node == node) && self.records.is_granted(node, volume, grant)
    }

    /// A key is in force.
    pub(crate) fn on_receipt(&mut self, node: NodeId, receipt: &Receipt) -> Result<(), KeyholderError> {
        if !self.is_in_order(node, receipt.volume, receipt.grant) {
            // It was on its way when the volume was promoted. No renewal names it, so the node drops it again.
            let fields = [
                ("volume", receipt.volume.to_string().into()),
                ("node", node.to_string().into()),
                ("grant", receipt.grant.to_string().into()),
            ];
            self.audit.append("receipt-out-of-order", fields)?;
            return Ok(());
        }
        self.set_key(receipt.volume, KeyState::Unlocked, Some(receipt.grant));
        let now = self.volume_now(receipt.volume);
        (now.accepts_state, now.found) = (false, None);
        self.records.note_pool(receipt.volume, receipt.pool);
        // What the node has just judged is what counts from now on; of its other pools, what is later.
        let judged: Vec<PoolState> =
            receipt.states.iter().filter(|state| state.pool == receipt.pool).copied().collect();
        self.records.set_states(&judged);
        self.note_states(node, &receipt.states);
        self.flush_records()?;
        let fields = [
            ("volume", receipt.volume.to_string().into()),
            ("node", node.to_string().into()),
            ("grant", receipt.grant.to_string().into()),
            ("state", receipt.verdict.to_string().into()),
        ];
        self.audit.append("receipt", fields)?;
        Ok(())
    }

    /// A key was not taken. Returns whether it is worth another try by itself.
    pub(crate) fn on_refused(
        &mut self,
        node: NodeId,
        refused: &GrantRefused,
    ) -> Result<bool, KeyholderError> {
        let in_order = self.is_in_order(node, refused.volume, refused.grant);
        // In these two the node does hold a key, by this grant or an earlier one.
        if !matches!(refused.reason, GrantRefusal::AlreadyHeld { .. } | GrantRefusal::Replayed) {
            self.records.release(refused.volume, refused.grant);
        }
        if let GrantRefusal::OldFence { highest, .. } = refused.reason
            && in_order
        {
            self.records.raise_fence(refused.volume, highest);
            self.flush_records()?;
        }
        let fields = [
            ("volume", refused.volume.to_string().into()),
            ("node", node.to_string().into()),
            ("grant", refused.grant.to_string().into()),
            ("why", refused.reason.to_string().into()),
        ];
        self.audit.record("grant-refused", fields)?;
        if !in_order {
            return Ok(false);
        }
        let passing = is_passing(&refused.reason);
        let now = self.volume_now(refused.volume);
        now.key = Some(KeyState::Refused);
        now.grant = None;
        now.reason = Some(refused.reason.to_string());
        if let GrantRefusal::RolledBack(verdict) = refused.reason {
            now.found = Some(verdict);
        }
        now.attempts = match refused.reason {
            // A power cut lasts as long as it lasts, and keys are wanted after it.
            GrantRefusal::TriggerStanding(_) => now.attempts,
            _ if passing => now.attempts.saturating_add(1),
            _ => ATTEMPTS_MAX,
        };
        now.approved_until = now.approved_until.filter(|_| passing);
        Ok(passing)
    }

    /// Keys are gone.
    pub(crate) fn on_wiped(&mut self, node: NodeId, receipt: &WipeReceipt) -> Result<(), KeyholderError> {
        let stages = receipt.stages;
        if self.note_states(node, &receipt.states)
            && let Err(error) = self.flush_records()
        {
            // Forgetting waits for no disk. What is known is older for it.
            tracing::error!(%error, "the states of pools at a wipe could not be recorded");
        }
        let boot = self.node_now(node).boot.map(|boot| boot.to_string());
        let fields = [
            ("node", node.to_string().into()),
            ("cause", receipt.record.cause.name().into()),
            ("node_boot", boot.into()),
            ("node_boot_ns", receipt.record.at.0.into()),
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
        let in_scope =
            |volume: VolumeId| receipt.scope == Scope::All || receipt.scope == Scope::Volume(volume);
        // A node speaks for what was granted to itself, wherever that volume is now: its word about another's lease would let
        // that volume be granted twice. And only of the grants that it names: another may have been planned since it spoke, and
        // what becomes of that is told by its own answer or by the next evidence.
        let released = self.records.release_grants(node, &receipt.grants);
        let is_over = |volume: &VolumeId| {
            let grant = self.volumes.get(volume).and_then(|now| now.grant);
            in_scope(*volume) && grant.is_none_or(|grant| receipt.grants.contains(&grant))
        };
        let volumes: Vec<VolumeId> =
            self.registry()?.volumes_of(node).map(|volume| volume.volume).filter(is_over).collect();
        let news = receipt.scope == Scope::All
            || released
            || volumes
                .iter()
                .any(|volume| self.volumes.get(volume).and_then(|now| now.key) != Some(KeyState::Sealed));
        if !news {
            return Ok(());
        }
        for volume in volumes {
            self.set_key(volume, KeyState::Sealed, None);
        }
        self.audit.record("wiped", fields)?;
        if receipt.scope == Scope::All {
            let now = self.node_now(node);
            now.empty_since = Some(clock::now());
            now.tell_wipes([receipt.record]);
            self.note_wipe(node, receipt.record)?;
        } else if receipt.record.cause == WipeCause::NotRenewed {
            tracing::warn!(%node, "the node dropped a key that was not renewed");
        }
        Ok(())
    }

    /// The connection is gone; what the node held it may hold until its lease ends.
    pub(crate) fn on_disconnected(&mut self, node: NodeId, error: Option<String>) {
        let Some(open) = self.open.as_ref().filter(|open| open.registry.node(node).is_some()) else { return };
        let volumes: Vec<VolumeId> = open.registry.volumes_of(node).map(|volume| volume.volume).collect();
        for volume in volumes {
            let now = self.volume_now(volume);
            if matches!(now.key, Some(KeyState::Unlocked | KeyState::Pushing)) {
                now.key = Some(KeyState::Unknown);
            }
            // Another keyholder may give it a new epoch meanwhile.
            (now.written, now.key_is_due) = (None, false);
        }
        let now = self.node_now(node);
        now.connection = Connection::Dialling;
        if error.is_some() {
            now.last_error = error;
        }
        if let Err(error) = self.note_lost(node) {
            tracing::error!(%node, %error, "the audit trail lacks that this node is lost");
        }
    }

    /// Says once that a node is away and all that it held has ended with its lease.
    fn note_lost(&mut self, node: NodeId) -> Result<(), KeyholderError> {
        let now = clock::now();
        let leases: Vec<_> = self.records.of_node(node).filter_map(|record| record.expires).collect();
        let is_lost = !leases.is_empty() && leases.iter().all(|expires| *expires <= now);
        if is_lost && !std::mem::replace(&mut self.node_now(node).lost, true) {
            self.audit.record("node-lost", [("node", node.to_string().into())])?;
        }
        Ok(())
    }

    /// Whether the node has proved, since `since`, that it holds nothing of what a revocation named.
    pub(crate) fn is_forgotten(&self, node: NodeId, volume: Option<VolumeId>, since: BootInstant) -> bool {
        let placed = self.registry().into_iter().flat_map(|registry| registry.volumes_of(node));
        let placed: Vec<VolumeId> = match volume {
            Some(volume) => vec![volume],
            None => placed.map(|volume| volume.volume).collect(),
        };
        // Whoever was granted it last: it may have been promoted a moment ago, or nobody knows who has it.
        let now = clock::now();
        let runs = |record: &&LeaseRecord| record.held_until().is_some_and(|held| now < held);
        let elsewhere =
            |volume| self.records.of(volume).filter(runs).is_some_and(|record| record.node != node);
        if placed.iter().any(|volume| elsewhere(*volume)) {
            return false;
        }
        let emptied =
            self.nodes.get(&node).and_then(|now| now.empty_since).is_some_and(|emptied| emptied >= since);
        if self.shared().is_some() && self.connection(node) != Connection::Connected && !emptied {
            // Another keyholder dials it, and takes from the store's records what the node no longer holds.
            let in_scope = |of: VolumeId| volume.is_none_or(|volume| volume == of);
            return self.records.is_released(node, in_scope);
        }
        match volume {
            None => emptied,
            Some(volume) => {
                let key = self.volumes.get(&volume).and_then(|now| now.key);
                emptied || key == Some(KeyState::Sealed)
            }
        }
    }
}

/// The longest lease that is over by another machine's clock within so many milliseconds.
const fn lease_within_ms(left_ms: u64) -> u64 {
    left_ms.saturating_sub(left_ms.saturating_mul(DRIFT_PPM) / 1_000_000).saturating_sub(1)
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
        | GrantRefusal::RolledBack(_)
        | GrantRefusal::NotHeld
        | GrantRefusal::NoSpace
        | GrantRefusal::OneEpoch
        | GrantRefusal::VolumeFailed => false,
    }
}

/// Wipes of one start that are remembered from sessions before; a TPM's log has more.
const TOLD_WIPES_MAX: usize = 64;

impl NodeNow {
    /// Remembers what the node has told, for as long as its machine runs: a later session that is silent about it does not undo it.
    fn tell_wipes(&mut self, wipes: impl IntoIterator<Item = WipeRecord>) {
        for wipe in wipes {
            if !self.told_wipes.contains(&wipe) {
                self.told_wipes.push(wipe);
            }
        }
        let over = self.told_wipes.len().saturating_sub(TOLD_WIPES_MAX);
        self.told_wipes.drain(..over);
    }
}

/// The last of these wipes that only people lift.
fn latching(wipes: &[WipeRecord]) -> Option<WipeRecord> {
    wipes.iter().rfind(|wipe| wipe.cause.repush_rule() == RepushRule::Latched).copied()
}
