//! The policy in force: applying one, explaining it, and what it says about a push.

use std::collections::VecDeque;

use units::{BootInstant, NodeId, VolumeId};

use super::Book;
use crate::api::{PolicyPreview, PolicyStatus, WouldRefuse};
use crate::clock;
use crate::error::KeyholderError;
use crate::ledger::{NodeRecord, PolicyRecord, Registry, VolumeRecord};
use crate::policy::{Minute, Policy, Push, Refusal, differences, loosenings};

const HOUR_MS: u64 = 3_600_000;

/// Unseals that are remembered: more than any budget allows in an hour on a thousand nodes.
const UNSEALS_MAX: usize = 16_384;

/// Longest description of one change of the policy in the trail.
const CHANGE_BYTES_MAX: usize = 1_024;

/// When nodes without keys were given some, within the last hour. Gone at a restart, after which people have just been there.
#[derive(Debug, Default)]
pub(super) struct Unseals(VecDeque<(BootInstant, NodeId)>);

impl Unseals {
    fn count(&mut self, now: BootInstant, node: NodeId) -> (u32, u32) {
        while self.0.front().is_some_and(|(at, _)| at.saturating_add_ms(HOUR_MS) <= now) {
            self.0.pop_front();
        }
        let of_node = self.0.iter().filter(|(_, other)| *other == node).count();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        (count(of_node), count(self.0.len()))
    }

    pub(super) fn note(&mut self, now: BootInstant, node: NodeId) {
        if self.0.len() < UNSEALS_MAX {
            self.0.push_back((now, node));
        }
    }
}

/// What a change is called in the trail: a list of a thousand nodes is told by its beginning and its digest.
fn shortened(change: String) -> String {
    if change.len() <= CHANGE_BYTES_MAX {
        return change;
    }
    let begin: String = change.chars().take(CHANGE_BYTES_MAX / 4).collect();
    let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(change.as_bytes()));
    format!("{begin}... ({} bytes, SHA-256 {digest})", change.len())
}

/// Every label that the volume's key goes by: a clone has the key of its volume, and what is said of one holds for the other.
pub(super) fn labels_of_key<'a>(
    registry: &'a Registry,
    volume: &'a VolumeRecord,
) -> impl Iterator<Item = &'a str> {
    let kin = registry.volumes.iter().filter(|other| other.domain == volume.domain);
    kin.map(|other| other.label.as_str())
}

impl Book {
    /// The policy in force.
    pub(crate) fn policy_status(&self) -> Result<PolicyStatus, KeyholderError> {
        let record = self.registry()?.policy.as_ref();
        Ok(PolicyStatus {
            text: record.map(|record| record.text.clone()),
            serial: record.map_or(0, |record| record.serial),
            by: record.map(|record| record.by.clone()),
            at_unix_s: record.map(|record| record.at_unix_s),
            policy: self.policy.clone(),
        })
    }

    /// What a policy would change, and which keys would not go where they are now.
    pub(crate) fn preview_policy(&self, text: &str) -> Result<PolicyPreview, KeyholderError> {
        let policy = Policy::parse(text)?;
        let registry = self.registry()?;
        let mut would_refuse = Vec::new();
        for volume in &registry.volumes {
            let Some(node) = registry.node(volume.node) else { continue };
            let machine = self.machine(node.node);
            let may_hold = |label: &str| policy.may_hold(node.name.as_str(), &machine, label);
            if let Err(refusal) = labels_of_key(registry, volume).try_for_each(may_hold) {
                would_refuse.push(WouldRefuse {
                    volume: volume.label.clone(),
                    node: node.name.to_string(),
                    why: refusal.to_string(),
                });
            }
        }
        Ok(PolicyPreview { differences: differences(&self.policy, &policy), would_refuse })
    }

    /// Puts a policy in force. Where it asks for less than the one before, others have approved that.
    pub(crate) fn apply_policy(&mut self, text: &str, by: &str) -> Result<PolicyPreview, KeyholderError> {
        let preview = self.preview_policy(text)?;
        let policy = Policy::parse(text)?;
        let looser: Vec<String> =
            loosenings(&self.policy, &policy).into_iter().map(|difference| difference.setting).collect();
        if !looser.is_empty() {
            let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(text.as_bytes()));
            let act = format!("apply policy {digest}, which asks for less in {}", looser.join(", "));
            self.require_others(super::Grave::Loosen, &act, by)?;
        }
        let serial = self.registry()?.policy.as_ref().map_or(0, |record| record.serial) + 1;
        let record =
            PolicyRecord { text: text.to_owned(), serial, by: by.to_owned(), at_unix_s: clock::unix_s() };
        self.commit(|registry| {
            registry.policy = Some(record);
            Ok(())
        })?;
        self.policy = policy;
        let changed: Vec<_> = preview
            .differences
            .iter()
            .map(|change| format!("{}: {} -> {}", change.setting, change.before, change.after))
            .map(shortened)
            .collect();
        let fields = [
            ("by", by.into()),
            ("serial", serial.into()),
            ("changed", changed.into()),
            ("asks_for_less_in", looser.into()),
        ];
        self.audit.record("policy-applied", fields)?;
        Ok(preview)
    }

    /// Whether the policy lets this key go there now.
    pub(super) fn judge(
        &mut self,
        node: &NodeRecord,
        volume: &VolumeRecord,
        now: BootInstant,
    ) -> Result<(), Refusal> {
        let (unseals_of_node, unseals_of_all) = self.unseals.count(now, node.node);
        let known = self.nodes.get(&node.node);
        let machine = self.machine(node.node);
        let Some(open) = &self.open else { return Ok(()) };
        labels_of_key(&open.registry, volume).try_for_each(|label| {
            self.policy.judge(&Push {
                node: node.name.as_str(),
                volume: label,
                machine: &machine,
                lease_ms: node.lease_ms,
                came_back: known.map(|known| known.came_back).unwrap_or_default(),
                unseals_of_node,
                unseals_of_all,
                now: Minute::of_unix_s(clock::unix_s()),
            })
        })
    }

    /// Notes that the policy keeps a key back, once for each reason.
    pub(super) fn note_policy_refusal(
        &mut self,
        node: NodeId,
        volume: VolumeId,
        refusal: &Refusal,
    ) -> Result<(), KeyholderError> {
        let why = refusal.to_string();
        let now = self.volume_now(volume);
        now.by_policy = true;
        now.key = Some(crate::api::KeyState::Refused);
        let is_news = now.reason.as_deref() != Some(why.as_str());
        if !is_news {
            return Ok(());
        }
        now.reason = Some(why.clone());
        let fields =
            [("node", node.to_string().into()), ("volume", volume.to_string().into()), ("why", why.into())];
        self.audit.record("push-refused", fields)?;
        Ok(())
    }

    /// Whether the policy keeps back a key of this node: what it wants may come about by itself, with time.
    pub(crate) fn is_kept_back(&self, node: NodeId) -> bool {
        let Ok(registry) = self.registry() else { return false };
        let kept = |volume: &VolumeRecord| self.volumes.get(&volume.volume).is_some_and(|now| now.by_policy);
        registry.volumes_of(node).any(kept)
    }
}
