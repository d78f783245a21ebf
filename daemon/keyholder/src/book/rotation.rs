//! New epochs of volumes' key domains: made, given to nodes, and the old ones destroyed once nothing lies under them.
//!
//! Invariants:
//! - A secret is in the ledger, durable, before a node hears of its epoch; nothing could lie under a key that nobody has.
//! - An epoch belongs to a domain, and so to every volume in it: clones rotate with what they are clones of.
//! - A secret is destroyed only when every volume of its domain is served by a node that has said, in this run of the keyholder and
//!   since it was last connected, that nothing in the volume's pool is left under it. Whoever has not said so keeps it alive.

use std::collections::BTreeSet;

use lease::keyholder::EpochOrder;
use lease::limits::EPOCHS_MAX;
use lease::message::{EpochTaken, EpochsInUse};
use units::{DomainId, NodeId, VolumeEpoch, VolumeId};

use super::Book;
use super::volumes::{integrity_of, no_such};
use crate::api::{KeyState, Rotation};
use crate::error::KeyholderError;
use crate::ledger::{OlderEpoch, VolumeRecord};
use crate::vault::{SecretOf, Wrapped};

/// The key of a new epoch for a node that serves the volume under an older one.
#[derive(Debug)]
pub(crate) struct PlannedEpoch {
    pub(crate) order: EpochOrder,
    pub(crate) wrapped: Wrapped,
}

impl Book {
    /// First step: a fresh secret for the volume's domain, durable. One that the node has not taken yet is not followed by
    /// another: it is offered again. The nodes of all volumes in the domain.
    pub(crate) fn begin_rotation(&mut self, label: &str, by: &str) -> Result<Vec<NodeId>, KeyholderError> {
        self.check_live(label)?;
        let registry = self.registry()?;
        let record = registry.volume_labelled(label).ok_or_else(|| no_such(label))?.clone();
        let domain = record.domain;
        let of_domain: Vec<&VolumeRecord> =
            registry.volumes.iter().filter(|volume| volume.domain == domain).collect();
        let nodes: BTreeSet<NodeId> = of_domain.iter().map(|volume| volume.node).collect();
        let ids: Vec<VolumeId> = of_domain.iter().map(|volume| volume.volume).collect();
        let written = self.present_epoch(&record);
        for volume in &ids {
            self.volume_now(*volume).epoch_offered = None;
        }
        if written != Some(record.epoch) {
            // Unknown, or under an older one: what there is already is to be taken first.
            return match written {
                Some(_) => Ok(nodes.into_iter().collect()),
                None => Err(KeyholderError::Invalid {
                    what: format!(
                        "it is not known under which epoch {label} is written: its node has not been heard"
                    ),
                    next_step: "bring the node back, then rotate",
                }),
            };
        }
        let older = self.registry()?.older.iter().filter(|older| older.domain == domain).count();
        if older + 1 >= EPOCHS_MAX {
            return Err(KeyholderError::Invalid {
                what: format!("{label} has {} epochs, which is the most", older + 1),
                next_step: "delete the snapshots that keep the older ones: `nightlatch volume rotate --show` names them",
            });
        }
        let epoch = VolumeEpoch(record.epoch.0 + 1);
        let (secret, check) =
            self.vault.make_secret(SecretOf { domain, epoch }, integrity_of(record.integrity))?;
        let before = OlderEpoch { domain, epoch: record.epoch, secret: record.secret, check: record.check };
        self.commit(|registry| {
            registry.older.push(before);
            for volume in registry.volumes.iter_mut().filter(|volume| volume.domain == domain) {
                (volume.epoch, volume.secret, volume.check) = (epoch, secret, check);
            }
            Ok(())
        })?;
        let fields = [
            ("by", by.into()),
            ("label", label.into()),
            ("volume", record.volume.to_string().into()),
            ("domain", domain.to_string().into()),
            ("epoch", epoch.0.into()),
        ];
        self.audit.record("epoch-begun", fields)?;
        Ok(nodes.into_iter().collect())
    }

    /// What the volume's node writes it under, as far as it is known.
    fn present_epoch(&self, volume: &VolumeRecord) -> Option<VolumeEpoch> {
        let now = self.nodes.get(&volume.node)?;
        now.present.get(&volume.volume).map(|present| present.epoch)
    }

    /// Whether the node writes the volume under the newest epoch.
    pub(crate) fn is_rotated(&self, label: &str) -> bool {
        let Ok(registry) = self.registry() else { return false };
        let Some(record) = registry.volume_labelled(label) else { return false };
        self.present_epoch(record) == Some(record.epoch)
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
        let of_domain = registry.volumes.iter().filter(|other| other.domain == volume.domain);
        let waiting = of_domain.filter(|other| older.iter().any(|epoch| self.may_need(other, *epoch)));
        let waits_for: Vec<String> = waiting.map(|other| other.label.clone()).collect();
        let refused = self.volumes.get(&volume.volume).and_then(|now| now.epoch_refused.clone());
        Some(Rotation { older, written: self.present_epoch(volume), waits_for, refused })
    }

    /// Under which epoch a grant is made, with which secret, and what else goes with it: the node has the volume under one that
    /// the ledger may know as an older one.
    pub(super) fn epochs_for_grant(&self, volume: &VolumeRecord) -> (OlderEpoch, Vec<OlderEpoch>) {
        let newest = OlderEpoch {
            domain: volume.domain,
            epoch: volume.epoch,
            secret: volume.secret,
            check: volume.check,
        };
        let older = self.registry().ok().into_iter().flat_map(|registry| registry.older_of(volume.domain));
        let mut all: Vec<OlderEpoch> = std::iter::once(newest.clone()).chain(older.cloned()).collect();
        let written = self.present_epoch(volume).unwrap_or(volume.epoch);
        // One that the ledger does not know is refused by the node, which says why.
        let at = all.iter().position(|one| one.epoch == written).unwrap_or(0);
        let present = all.remove(at);
        (present, all)
    }

    /// What is to be given to the node: new epochs of what it serves under an older one, each once in a session.
    pub(crate) fn plan_epochs(&mut self, node: NodeId) -> Result<Vec<PlannedEpoch>, KeyholderError> {
        let registry = self.registry()?;
        let latched = registry.node(node).is_none_or(|record| record.latch.is_some());
        if registry.lockdown.is_some() || latched {
            return Ok(Vec::new());
        }
        let mut planned = Vec::new();
        for volume in registry.volumes_of(node).filter(|volume| volume.latch.is_none()) {
            let Some(now) = self.volumes.get(&volume.volume) else { continue };
            let in_force = now.grant.filter(|_| now.key == Some(KeyState::Unlocked));
            let behind = self.present_epoch(volume).is_some_and(|written| written < volume.epoch);
            let (Some(grant), true) = (in_force, behind && now.epoch_offered != Some(volume.epoch)) else {
                continue;
            };
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
            let now = self.volume_now(order.volume);
            (now.epoch_offered, now.epoch_refused) = (Some(order.epoch), None);
        }
        Ok(planned)
    }

    /// What came of a new epoch at its node.
    pub(crate) fn on_epoch_taken(&mut self, node: NodeId, taken: &EpochTaken) -> Result<(), KeyholderError> {
        let EpochTaken { grant, volume, epoch, result } = *taken;
        let record = self.registry()?.volume(volume).cloned();
        let in_force = self.volumes.get(&volume).is_some_and(|now| now.grant == Some(grant));
        let Some(record) = record.filter(|record| record.node == node && in_force) else { return Ok(()) };
        match result {
            Ok(()) => {
                let check = record.check;
                if let Some(present) = self.node_now(node).present.get_mut(&volume)
                    && record.epoch == epoch
                {
                    (present.epoch, present.check) = (epoch, check);
                }
                self.volume_now(volume).epoch_refused = None;
            }
            Err(reason) => self.volume_now(volume).epoch_refused = Some(reason.to_string()),
        }
        let fields = [
            ("volume", volume.to_string().into()),
            ("node", node.to_string().into()),
            ("epoch", epoch.0.into()),
            ("why", result.err().map(|reason| reason.to_string()).into()),
        ];
        let event = if result.is_ok() { "epoch-taken" } else { "epoch-refused" };
        self.audit.record(event, fields)?;
        Ok(())
    }

    /// Notes what a node says is left under which epochs: of its own volumes, and of those whose key it has.
    pub(crate) fn note_epochs(&mut self, node: NodeId, told: &[EpochsInUse]) -> Result<(), KeyholderError> {
        let own: BTreeSet<VolumeId> = self.registry()?.volumes_of(node).map(|volume| volume.volume).collect();
        for EpochsInUse { volume, epochs } in told.iter().filter(|told| own.contains(&told.volume)) {
            let now = self.volume_now(*volume);
            if now.key == Some(KeyState::Unlocked) {
                now.epochs_in_use = Some(epochs.iter().copied().collect());
            }
        }
        Ok(())
    }

    /// Whether something of the volume may lie under this epoch, as far as is known.
    fn may_need(&self, volume: &VolumeRecord, epoch: VolumeEpoch) -> bool {
        let now = self.volumes.get(&volume.volume).filter(|now| now.key == Some(KeyState::Unlocked));
        let in_use = now.and_then(|now| now.epochs_in_use.as_ref());
        // What the volume is written under is in use, whatever was said before it was.
        in_use.is_none_or(|in_use| in_use.contains(&epoch) || !in_use.contains(&volume.epoch))
            || self.present_epoch(volume) != Some(volume.epoch)
    }

    /// Last step: destroys the secrets of epochs under which nothing lies any more, and carries the others over to a fresh ledger
    /// key.
    pub(crate) fn retire_epochs(&mut self) -> Result<(), KeyholderError> {
        let registry = self.registry()?;
        let needed = |older: &OlderEpoch| {
            let mut volumes = registry.volumes.iter().filter(|volume| volume.domain == older.domain);
            volumes.any(|volume| self.may_need(volume, older.epoch))
        };
        let retired: Vec<(DomainId, VolumeEpoch)> = registry
            .older
            .iter()
            .filter(|older| !needed(older))
            .map(|older| (older.domain, older.epoch))
            .collect();
        if retired.is_empty() {
            return Ok(());
        }
        let of_domain = |domain: DomainId| {
            let volumes = registry.volumes.iter().filter(|volume| volume.domain == domain);
            volumes.map(|volume| volume.label.clone()).collect::<Vec<_>>()
        };
        let labels: Vec<Vec<String>> = retired.iter().map(|(domain, _)| of_domain(*domain)).collect();
        let backups = registry.backup_serial;
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
        Ok(())
    }
}
