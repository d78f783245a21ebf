//! New epochs of volumes' key domains: made, given to nodes, and the old ones destroyed once nothing lies under them.
//!
//! Invariants:
//! - A secret is in the ledger, durable, before a node hears of its epoch; nothing could lie under a key that nobody has.
//! - An epoch belongs to a domain, and so to every volume in it: clones rotate with what they are clones of.
//! - A secret is destroyed only when the node of every volume of its domain has said, serving it and since the newest epoch began, that
//!   nothing in the volume's pool is left under it, and no other node that is known to have a copy of one of them, a replica or what it was
//!   before a promotion, has said otherwise or nothing yet. Whoever has not said so keeps it alive.
//! - What nodes say is in the ledger: it counts for every keyholder of a cluster, and after a restart.
//! - Everything here is decided over one state of the ledger and written over that one only: of two keyholders that rotate at once
//!   one does, and the other is told that nothing was done.

use std::collections::{BTreeMap, BTreeSet};

use lease::keyholder::{EpochOrder, GrantOrder};
use lease::limits::{EPOCHS_MAX, VOLUMES_MAX};
use lease::message::{EpochTaken, EpochsInUse};
use units::{BootInstant, DomainId, NodeId, VolumeEpoch, VolumeId};

use super::Book;
use super::volumes::{integrity_of, is_named_key, no_such};
use crate::api::{Connection, KeyState, Rotation};
use crate::clock;
use crate::error::KeyholderError;
use crate::ledger::{EpochReport, Life, OlderEpoch, Registry, VolumeRecord};
use crate::vault::{SecretOf, Wrapped};

/// A node that did not take a new epoch, or whose answer was lost, is given it again after this.
const OFFER_AGAIN_MS: u64 = 60_000;

const DAY_S: u64 = 86_400;

/// Epochs that a schedule leaves to those that somebody asks for, or that a key needs because it has encrypted as much as it should.
const EPOCHS_KEPT_FREE: usize = 2;

/// Secrets are destroyed together, so often at most: each time all the others are carried over to a fresh ledger key.
const RETIRED_EVERY_MS: u64 = 5_000;

/// What is remembered between two answers of nodes.
#[derive(Debug)]
pub(super) struct Retiring {
    /// Somebody has said something new since it was last looked at.
    is_due: bool,
    looked_at: Option<BootInstant>,
}

impl Default for Retiring {
    fn default() -> Self {
        // What was said before a start, and not acted on.
        Self { is_due: true, looked_at: None }
    }
}

/// The key of a new epoch for a node that serves the volume under an older one.
#[derive(Debug)]
pub(crate) struct PlannedEpoch {
    pub(crate) order: EpochOrder,
    pub(crate) wrapped: Wrapped,
}

impl Book {
    /// The nodes of all volumes in the domain of this one.
    pub(crate) fn nodes_of_domain(&self, label: &str) -> Result<Vec<NodeId>, KeyholderError> {
        let registry = self.registry()?;
        let record = registry.volume_labelled(label).ok_or_else(|| no_such(label))?;
        let nodes: BTreeSet<NodeId> = registry.volumes_in(record.domain).map(|volume| volume.node).collect();
        Ok(nodes.into_iter().collect())
    }

    /// First step: a fresh secret for the volume's domain, durable. One that the node has not taken yet is not followed by
    /// another: it is offered again.
    pub(crate) fn begin_rotation(&mut self, label: &str, by: &str) -> Result<(), KeyholderError> {
        self.check_live(label)?;
        let registry = self.registry()?;
        let record = registry.volume_labelled(label).ok_or_else(|| no_such(label))?.clone();
        let domain = record.domain;
        if is_named_key(record.kind, record.size.0) {
            return Err(invalid(
                format!(
                    "{label} is a named key, which has one epoch for its life: what it wrapped lies in a store that names none"
                ),
                "make another with `nightlatch key create`, and have clients name that one from now on",
            ));
        }
        let ids: Vec<VolumeId> = registry.volumes_in(domain).map(|volume| volume.volume).collect();
        let older = registry.older_of(domain).count();
        match self.written_epoch(&record) {
            Some(written) if written == record.epoch => {}
            Some(written) if written < record.epoch => {
                self.offer_again(&ids);
                return Ok(());
            }
            Some(written) => {
                return Err(invalid(
                    format!(
                        "{label} is written under epoch {written} of its key, and this ledger has none after {}",
                        record.epoch
                    ),
                    "it is an older ledger than the one that made that epoch: restore a newer backup of it",
                ));
            }
            None => {
                return Err(invalid(
                    format!(
                        "it is not known under which epoch {label} is written: its node has not been heard"
                    ),
                    "bring the node back, then rotate",
                ));
            }
        }
        self.check_room_for_epoch(domain)?;
        if older + 1 >= EPOCHS_MAX {
            return Err(invalid(
                format!("{label} has {} epochs, which is the most", older + 1),
                "delete the snapshots that keep the older ones: `nightlatch volume rotate --show` names them",
            ));
        }
        let epoch = VolumeEpoch(record.epoch.0.saturating_add(1));
        let (secret, check) =
            self.vault.make_secret(SecretOf { domain, epoch }, integrity_of(record.integrity))?;
        let before = OlderEpoch { domain, epoch: record.epoch, secret: record.secret, check: record.check };
        self.commit(|registry| {
            registry.older.push(before);
            for volume in registry.volumes.iter_mut().filter(|volume| volume.domain == domain) {
                (volume.epoch, volume.secret, volume.check) = (epoch, secret, check);
            }
            // What their nodes said is of what there was before.
            let own = |report: &EpochReport| {
                registry.volumes.iter().any(|volume| {
                    volume.domain == domain && (volume.volume, volume.node) == (report.volume, report.node)
                })
            };
            registry.epoch_reports.retain(|report| !own(report));
            registry.note_epoch_began(domain, clock::unix_s());
            Ok(())
        })?;
        self.offer_again(&ids);
        let fields = [
            ("by", by.into()),
            ("label", label.into()),
            ("volume", record.volume.to_string().into()),
            ("domain", domain.to_string().into()),
            ("epoch", epoch.0.into()),
        ];
        self.audit.record("epoch-begun", fields)?;
        Ok(())
    }

    /// A node holds as many keys as it may have volumes: a grant that brings one too many would be refused, and the volume not served.
    fn check_room_for_epoch(&self, domain: DomainId) -> Result<(), KeyholderError> {
        let registry = self.registry()?;
        let mut older: BTreeMap<DomainId, usize> = BTreeMap::new();
        registry.older.iter().for_each(|epoch| *older.entry(epoch.domain).or_default() += 1);
        let mut keys: BTreeMap<NodeId, usize> = BTreeMap::new();
        for volume in &registry.volumes {
            let more = usize::from(volume.domain == domain);
            *keys.entry(volume.node).or_default() +=
                1 + more + older.get(&volume.domain).copied().unwrap_or_default();
        }
        let of_domain: BTreeSet<NodeId> = registry.volumes_in(domain).map(|volume| volume.node).collect();
        match of_domain.into_iter().find(|node| keys.get(node).is_some_and(|keys| *keys > VOLUMES_MAX)) {
            None => Ok(()),
            Some(node) => Err(invalid(
                format!("{} would hold more than {VOLUMES_MAX} keys", self.node_name(node)),
                "let the rotations there come to their end first: `nightlatch volume list` says which volumes are being rotated",
            )),
        }
    }

    fn offer_again(&mut self, volumes: &[VolumeId]) {
        for volume in volumes {
            let now = self.volume_now(*volume);
            (now.epoch_offered, now.epoch_refused, now.key_is_due) = (None, None, false);
        }
    }

    /// Notes what a node wrote a volume under when it was last asked.
    pub(crate) fn note_written(&mut self, volume: VolumeId, epoch: VolumeEpoch) {
        self.volume_now(volume).written = Some(epoch);
    }

    /// What the volume's node writes it under, as far as it is known. Where the domain has had one epoch there is no other.
    fn written_epoch(&self, volume: &VolumeRecord) -> Option<VolumeEpoch> {
        let said = self.volumes.get(&volume.volume).and_then(|now| now.written);
        let only = || {
            let registry = self.registry().ok()?;
            registry.older_of(volume.domain).next().is_none().then_some(volume.epoch)
        };
        said.or_else(only)
    }

    /// Whether the node writes the volume under the newest epoch.
    pub(crate) fn is_rotated(&self, label: &str) -> bool {
        let Ok(registry) = self.registry() else { return false };
        let Some(record) = registry.volume_labelled(label) else { return false };
        self.written_epoch(record) == Some(record.epoch)
    }

    /// Whether the node has said of the newest epoch that it does not take it.
    pub(crate) fn epoch_refusal(&self, label: &str) -> Option<String> {
        let record = self.registry().ok()?.volume_labelled(label)?;
        self.volumes.get(&record.volume)?.epoch_refused.clone()
    }

    /// Where the rotation of a volume's key is; `None` where nothing is left of an older one.
    pub(super) fn rotation(&self, volume: &VolumeRecord) -> Option<Rotation> {
        let registry = self.registry().ok()?;
        let older: Vec<VolumeEpoch> = registry.older_of(volume.domain).map(|older| older.epoch).collect();
        if older.is_empty() {
            return None;
        }
        let waits_for: BTreeSet<String> =
            older.iter().flat_map(|epoch| self.needs_of(registry, volume.domain, *epoch)).collect();
        let waits_for = waits_for.into_iter().collect();
        let refused = self.volumes.get(&volume.volume).and_then(|now| now.epoch_refused.clone());
        let began_unix_s = registry.epoch_began(volume.domain);
        Some(Rotation { older, written: self.written_epoch(volume), waits_for, refused, began_unix_s })
    }

    /// Under which epoch a grant is made, with which secret, and what else goes with it: the node has the volume under one that
    /// the ledger may know as an older one.
    pub(super) fn epochs_for_grant(&self, volume: &VolumeRecord) -> (OlderEpoch, Vec<OlderEpoch>) {
        let older = self.registry().ok().into_iter().flat_map(|registry| registry.older_of(volume.domain));
        let mut all: Vec<OlderEpoch> = std::iter::once(newest_of(volume)).chain(older.cloned()).collect();
        let written = self.written_epoch(volume).unwrap_or(volume.epoch);
        // One that the ledger does not know is refused by the node, which says why.
        let at = all.iter().position(|one| one.epoch == written).unwrap_or(0);
        let present = all.remove(at);
        (present, all)
    }

    /// The secrets that a grant brings, as the ledger has them now: a fresh ledger key may have come since it was planned. `None` where
    /// it has one of them no more.
    pub(crate) fn secrets_for(&self, order: &GrantOrder) -> Option<Vec<(SecretOf, Wrapped)>> {
        let registry = self.registry().ok()?;
        let record = registry.volume(order.volume).filter(|record| record.domain == order.domain)?;
        let newest = newest_of(record);
        let known = |epoch: VolumeEpoch, check: [u8; 16]| {
            let mut all = std::iter::once(&newest).chain(registry.older_of(order.domain));
            let found = all.find(|one| (one.epoch, one.check) == (epoch, check))?;
            Some((found.secret_of(), found.secret))
        };
        let wanted = std::iter::once((order.epoch, order.check)).chain(order.further.iter().copied());
        wanted.map(|(epoch, check)| known(epoch, check)).collect()
    }

    /// What is to be given to the node: new epochs of what it serves under an older one.
    pub(crate) fn plan_epochs(&mut self, node: NodeId) -> Result<Vec<PlannedEpoch>, KeyholderError> {
        let registry = self.registry()?;
        let latched = registry.node(node).is_none_or(|record| record.latch.is_some());
        if registry.lockdown.is_some() || latched {
            return Ok(Vec::new());
        }
        let moment = clock::now();
        let mut planned = Vec::new();
        for volume in registry.volumes_of(node).filter(|volume| volume.latch.is_none()) {
            let Some(now) = self.volumes.get(&volume.volume) else { continue };
            let in_force = now.grant.filter(|_| now.key == Some(KeyState::Unlocked));
            let behind = self.written_epoch(volume).is_some_and(|written| written < volume.epoch);
            let was_offered = now
                .epoch_offered
                .is_some_and(|(epoch, at)| epoch == volume.epoch && moment.ms_since(at) < OFFER_AGAIN_MS);
            let (Some(grant), true, false) = (in_force, behind, was_offered) else { continue };
            let record = self.records.of(volume.volume).filter(|record| record.grant == grant);
            let Some(fence) = record.map(|record| record.fence) else { continue };
            let order = EpochOrder {
                grant,
                volume: volume.volume,
                domain: volume.domain,
                fence,
                epoch: volume.epoch,
                check: volume.check,
            };
            planned.push(PlannedEpoch { order, wrapped: volume.secret });
        }
        for PlannedEpoch { order, .. } in &planned {
            self.volume_now(order.volume).epoch_offered = Some((order.epoch, moment));
        }
        Ok(planned)
    }

    /// What came of a new epoch at its node.
    pub(crate) fn on_epoch_taken(&mut self, node: NodeId, taken: &EpochTaken) -> Result<(), KeyholderError> {
        let EpochTaken { grant, volume, epoch, result } = *taken;
        let record = self.registry()?.volume(volume).cloned();
        let in_force = self.volumes.get(&volume).is_some_and(|now| now.grant == Some(grant));
        let Some(record) = record.filter(|record| record.node == node && in_force) else { return Ok(()) };
        let now = self.volume_now(volume);
        let refused = result.err().map(|reason| reason.to_string());
        let is_news = now.epoch_refused != refused || result.is_ok();
        now.epoch_refused.clone_from(&refused);
        if result.is_ok() {
            now.written = now.written.max(Some(epoch.min(record.epoch)));
        }
        // It is given again and again: an entry for each answer that is another one.
        if !is_news {
            return Ok(());
        }
        let fields = [
            ("volume", volume.to_string().into()),
            ("node", node.to_string().into()),
            ("epoch", epoch.0.into()),
            ("why", refused.into()),
        ];
        let event = if result.is_ok() { "epoch-taken" } else { "epoch-refused" };
        self.audit.record(event, fields)?;
        Ok(())
    }

    /// Compares the copies of other nodes' volumes that are known with what a node's evidence names: one that is new has something of a
    /// volume under an epoch that it will tell, one that is gone needs none. Where that is written down already nothing is done.
    pub(crate) fn note_copies(&mut self, node: NodeId) -> Result<(), KeyholderError> {
        if self.nodes.get(&node).is_none_or(|now| now.copies_noted) {
            return Ok(());
        }
        let present: BTreeSet<VolumeId> =
            self.nodes.get(&node).map(|now| now.present.keys().copied().collect()).unwrap_or_default();
        let registry = self.registry()?;
        let is_gone = |report: &EpochReport| report.node == node && !present.contains(&report.volume);
        let known: BTreeSet<VolumeId> = registry
            .epoch_reports
            .iter()
            .filter(|report| report.node == node)
            .map(|report| report.volume)
            .collect();
        let is_new = |volume: &&VolumeRecord| {
            let id = &volume.volume;
            volume.node != node && present.contains(id) && !known.contains(id)
        };
        let new: Vec<VolumeId> = registry.volumes.iter().filter(is_new).map(|volume| volume.volume).collect();
        if new.is_empty() && !registry.epoch_reports.iter().any(is_gone) {
            self.node_now(node).copies_noted = true;
            return Ok(());
        }
        self.retiring.is_due = true;
        self.commit(|registry| {
            registry.epoch_reports.retain(|report| !is_gone(report));
            let new = new.iter().map(|volume| EpochReport { node, volume: *volume, epochs: None });
            registry.epoch_reports.extend(new);
            Ok(())
        })?;
        self.node_now(node).copies_noted = true;
        Ok(())
    }

    /// Notes what a node says is left under which epochs, of its own volumes and of its copies of others'. In the ledger, where it is
    /// not what was known.
    pub(crate) fn note_epochs(&mut self, node: NodeId, told: &[EpochsInUse]) -> Result<(), KeyholderError> {
        let registry = self.registry()?;
        // A node that says two things of one volume has both.
        let mut said: BTreeMap<VolumeId, BTreeSet<VolumeEpoch>> = BTreeMap::new();
        for EpochsInUse { volume, epochs } in told {
            said.entry(*volume).or_default().extend(epochs.iter().copied());
        }
        // This comes with every challenge of every node: each list is gone through once.
        let records: BTreeMap<VolumeId, &VolumeRecord> = registry
            .volumes
            .iter()
            .filter(|record| said.contains_key(&record.volume))
            .map(|record| (record.volume, record))
            .collect();
        let known: BTreeMap<VolumeId, &EpochReport> = registry
            .epoch_reports
            .iter()
            .filter(|report| report.node == node)
            .map(|report| (report.volume, report))
            .collect();
        let rotating: BTreeSet<DomainId> = registry.older.iter().map(|older| older.domain).collect();
        let mut changes: BTreeMap<VolumeId, Option<Vec<VolumeEpoch>>> = BTreeMap::new();
        for (volume, epochs) in said {
            let Some(record) = records.get(&volume) else { continue };
            let known = known.get(&volume);
            let epochs: Vec<VolumeEpoch> = epochs.into_iter().collect();
            if record.node == node && (!rotating.contains(&record.domain) || !self.serves(node, volume)) {
                // Nothing waits for it, or it may be from before the volume came here.
                continue;
            }
            let is_gone = record.node != node && epochs.is_empty();
            match (is_gone, known) {
                (true, None) => {}
                (true, Some(_)) => drop(changes.insert(volume, None)),
                (false, Some(known)) if known.epochs.as_ref() == Some(&epochs) => {}
                (false, _) => drop(changes.insert(volume, Some(epochs))),
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.retiring.is_due = true;
        self.commit(|registry| {
            registry
                .epoch_reports
                .retain(|report| report.node != node || !changes.contains_key(&report.volume));
            let said = changes.iter().filter_map(|(volume, epochs)| {
                Some(EpochReport { node, volume: *volume, epochs: Some(epochs.clone()?) })
            });
            registry.epoch_reports.extend(said);
            Ok(())
        })
    }

    /// Notes which of its volumes' keys a node says have encrypted so much that new ones are due.
    pub(crate) fn note_due(&mut self, node: NodeId, due: &[VolumeId]) -> Result<(), KeyholderError> {
        let registry = self.registry()?;
        let at_newest = registry
            .volumes_of(node)
            .filter(|volume| self.written_epoch(volume) == Some(volume.epoch))
            .map(|volume| volume.volume);
        let at_newest: Vec<VolumeId> = at_newest.filter(|volume| due.contains(volume)).collect();
        for volume in at_newest {
            self.volume_now(volume).key_is_due = true;
        }
        Ok(())
    }

    /// Whether the node has the volume's key by a grant that this keyholder has a receipt of.
    fn serves(&self, node: NodeId, volume: VolumeId) -> bool {
        let now = self.volumes.get(&volume).filter(|now| now.key == Some(KeyState::Unlocked));
        let grant = now.and_then(|now| now.grant);
        let record = self.records.of(volume).filter(|record| record.node == node);
        record.is_some_and(|record| Some(record.grant) == grant)
    }

    /// What may still need an epoch, in words.
    fn needs_of(&self, registry: &Registry, domain: DomainId, epoch: VolumeEpoch) -> Vec<String> {
        let own = registry.volumes_in(domain).filter(|volume| {
            let said = registry.epoch_report(volume.node, volume.volume);
            let said = said.and_then(|report| report.epochs.as_ref());
            // What the volume is written under is in use: an answer without it is of what was before.
            said.is_none_or(|in_use| in_use.contains(&epoch) || !in_use.contains(&volume.epoch))
        });
        let own = own.map(|volume| volume.label.clone());
        let volumes: BTreeMap<VolumeId, &VolumeRecord> =
            registry.volumes_in(domain).map(|volume| (volume.volume, volume)).collect();
        let copies = registry.epoch_reports.iter().filter_map(|report| {
            let volume = volumes.get(&report.volume)?;
            let is_copy = volume.node != report.node;
            let needs = report.epochs.as_ref().is_none_or(|in_use| in_use.contains(&epoch));
            (is_copy && needs).then(|| format!("{} on {}", volume.label, self.node_name(report.node)))
        });
        own.chain(copies).collect()
    }

    /// [`Self::retire_epochs`] after a node's answer: where one has said something new, and not with each of many answers.
    pub(crate) fn retire_epochs_if_due(&mut self) -> Result<(), KeyholderError> {
        let now = clock::now();
        let rests = self.retiring.looked_at.is_some_and(|at| now.ms_since(at) < RETIRED_EVERY_MS);
        if !self.retiring.is_due || rests {
            return Ok(());
        }
        self.retire_epochs()
    }

    /// Last step: destroys the secrets of epochs under which nothing lies any more, and carries the others over to a fresh ledger
    /// key.
    pub(crate) fn retire_epochs(&mut self) -> Result<(), KeyholderError> {
        let registry = self.registry()?;
        let retired = unneeded(registry);
        if retired.is_empty() {
            self.retiring = Retiring { is_due: false, looked_at: self.retiring.looked_at };
            return Ok(());
        }
        let labels = |domain: DomainId| {
            registry.volumes_in(domain).map(|volume| volume.label.clone()).collect::<Vec<_>>()
        };
        let labels: Vec<Vec<String>> = retired.iter().map(|(domain, _)| labels(*domain)).collect();
        // As with an erasure: a shared store keeps what was written to it for a while.
        let serial = self.opened()?.header.serial;
        let backups = self.store.shared().map(|_| serial).or(registry.backup_serial);
        self.commit_erasure(|registry| {
            registry.older.retain(|older| !retired.contains(&(older.domain, older.epoch)));
            Ok(())
        })?;
        for ((domain, epoch), labels) in retired.iter().zip(labels) {
            tracing::info!(%domain, %epoch, ?labels, "nothing lies under this epoch any more: its secret is destroyed");
            let fields = [
                ("domain", domain.to_string().into()),
                ("epoch", epoch.0.into()),
                ("labels", labels.into()),
                ("backups_up_to", backups.into()),
            ];
            self.audit.record("epoch-retired", fields)?;
        }
        self.retiring = Retiring { is_due: false, looked_at: Some(clock::now()) };
        Ok(())
    }

    /// One volume of each domain whose key is to be rotated without anybody's asking, of nodes that this keyholder talks to: it has
    /// encrypted as much as it should, or its epoch is older than the policy lets it be.
    pub(crate) fn rotations_due(&mut self) -> Result<Vec<(String, &'static str)>, KeyholderError> {
        let now = clock::unix_s();
        if self.policy.rotates() {
            self.note_beginnings(now)?;
        }
        let registry = self.registry()?;
        if registry.lockdown.is_some() {
            return Ok(Vec::new());
        }
        let mut older: BTreeMap<DomainId, usize> = BTreeMap::new();
        registry.older.iter().for_each(|epoch| *older.entry(epoch.domain).or_default() += 1);
        let began: BTreeMap<DomainId, u64> = registry.epochs_began.iter().copied().collect();
        let mut due: BTreeMap<DomainId, (String, &'static str)> = BTreeMap::new();
        for volume in &registry.volumes {
            let is_served = volume.life == Life::Live
                && volume.latch.is_none()
                && self.connection(volume.node) == Connection::Connected
                && !is_named_key(volume.kind, volume.size.0);
            let older = older.get(&volume.domain).copied().unwrap_or_default();
            if !is_served || older + 1 >= EPOCHS_MAX || self.written_epoch(volume) != Some(volume.epoch) {
                continue;
            }
            let is_old = || {
                let every_s =
                    self.policy.rotate_every_days(&volume.label).map(|days| u64::from(days) * DAY_S);
                let age_s = began.get(&volume.domain).map(|began| now.saturating_sub(*began));
                every_s.zip(age_s).is_some_and(|(every_s, age_s)| age_s >= every_s)
            };
            let why = match self.volumes.get(&volume.volume).is_some_and(|now| now.key_is_due) {
                true => "blocks",
                false if older + 1 + EPOCHS_KEPT_FREE < EPOCHS_MAX && is_old() => "schedule",
                false => continue,
            };
            due.entry(volume.domain).or_insert_with(|| (volume.label.clone(), why));
        }
        Ok(due.into_values().collect())
    }

    /// Domains from before their beginnings were noted count from now, and so do those that began in the future: the clock was wrong
    /// then, or is now.
    fn note_beginnings(&mut self, now: u64) -> Result<(), KeyholderError> {
        let registry = self.registry()?;
        let began: BTreeMap<DomainId, u64> = registry.epochs_began.iter().copied().collect();
        let is_known = |domain: &DomainId| began.get(domain).is_some_and(|began| *began <= now + DAY_S);
        let unknown: BTreeSet<DomainId> =
            registry.volumes.iter().map(|volume| volume.domain).filter(|domain| !is_known(domain)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        self.commit(|registry| {
            registry.epochs_began.retain(|(domain, _)| !unknown.contains(domain));
            registry.epochs_began.extend(unknown.iter().map(|domain| (*domain, now)));
            Ok(())
        })
    }
}

/// Epochs before the newest of their domains that nobody needs any more: as [`Book::needs_of`], for all at once.
fn unneeded(registry: &Registry) -> Vec<(DomainId, VolumeEpoch)> {
    let mut left: BTreeMap<DomainId, BTreeSet<VolumeEpoch>> = BTreeMap::new();
    for older in &registry.older {
        left.entry(older.domain).or_default().insert(older.epoch);
    }
    if left.is_empty() {
        return Vec::new();
    }
    let volumes: BTreeMap<VolumeId, &VolumeRecord> =
        registry.volumes.iter().map(|volume| (volume.volume, volume)).collect();
    let mut heard = BTreeSet::new();
    for report in &registry.epoch_reports {
        let Some(volume) = volumes.get(&report.volume) else { continue };
        let Some(left) = left.get_mut(&volume.domain) else { continue };
        let is_own = volume.node == report.node;
        match &report.epochs {
            Some(in_use) if is_own && !in_use.contains(&volume.epoch) => {}
            Some(in_use) => {
                left.retain(|epoch| !in_use.contains(epoch));
                if is_own {
                    heard.insert(volume.volume);
                }
            }
            None => left.clear(),
        }
    }
    // A node that has not said what lies under which needs all of them.
    for volume in registry.volumes.iter().filter(|volume| !heard.contains(&volume.volume)) {
        left.remove(&volume.domain);
    }
    left.into_iter()
        .flat_map(|(domain, epochs)| epochs.into_iter().map(move |epoch| (domain, epoch)))
        .collect()
}

/// The newest epoch of a volume's domain, as the older ones are kept.
fn newest_of(volume: &VolumeRecord) -> OlderEpoch {
    let VolumeRecord { domain, epoch, secret, check, .. } = *volume;
    OlderEpoch { domain, epoch, secret, check }
}

fn invalid(what: String, next_step: &'static str) -> KeyholderError {
    KeyholderError::Invalid { what, next_step }
}
