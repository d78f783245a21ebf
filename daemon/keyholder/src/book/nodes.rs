//! Nodes: adding, approving, latching.

use std::time::Duration;

use identity::{Endpoint, PeerName};
use lease::KeyFingerprint;
use lease::limits::{LEASE_MS_MAX, LEASE_MS_MIN};
use lease::message::SigningPublicKey;
use sha2::{Digest, Sha256};
use units::NodeId;

use super::{Book, NodeNow, latch_by, latch_entry};
use crate::api::{AddNode, ApproveNode, ChangeNode, Connection, KeyState, NodeEntry, PushPolicy, Target};
use crate::attest::Unproven;
use crate::clock;
use crate::error::KeyholderError;
use crate::ledger::{LatchCause, LatchRecord, Life, NodeRecord, Registry, TpmRecord};
use crate::records::{LeaseRecord, NOBODY};
use crate::store::{Room, StoreError};

/// Nodes that one keyholder looks after: a bound on connections and on the ledger.
const NODES_MAX: usize = 1024;

/// How often a latch is written anew when other keyholders change the ledger at the same time.
const LATCH_WRITES_MAX: usize = 8;

/// Latches that an act names one by one; people read it.
const LATCHES_NAMED_MAX: usize = 8;

/// What a dialler has to know about its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeTarget {
    pub(crate) name: PeerName,
    pub(crate) key_address: Endpoint,
    pub(crate) admin_address: Endpoint,
    pub(crate) pinned: Option<SigningPublicKey>,
}

impl Book {
    /// Every node, as the API shows it.
    pub(crate) fn node_entries(&self) -> Vec<NodeEntry> {
        let Some(open) = &self.open else { return Vec::new() };
        open.registry.nodes.iter().map(|node| self.node_entry(node)).collect()
    }

    fn node_entry(&self, record: &NodeRecord) -> NodeEntry {
        let unknown = NodeNow::default();
        let now = self.nodes.get(&record.node).unwrap_or(&unknown);
        let key = record.pinned.or(now.claimed);
        NodeEntry {
            name: record.name.to_string(),
            node: record.node,
            key_address: record.key_address.clone(),
            admin_address: record.admin_address.clone(),
            approved: record.pinned.is_some(),
            identity_key: key.map(hex::encode),
            fingerprint: key.map(|key| KeyFingerprint::of(&key).to_string()),
            push: record.push,
            lease_ms: record.lease_ms,
            latch: record.latch.as_ref().map(latch_entry),
            connection: now.connection,
            keyholder: None,
            last_error: now.last_error.clone(),
            awaits_push: self.awaits_push(record),
            boot: now.boot,
            last_wipe: now.last_wipe.map(|wipe| wipe.cause.name().to_owned()),
            hygiene: now.hygiene.clone(),
            tpm: self.tpm_entry(record.node),
        }
    }

    /// The entry of the node with this name.
    pub(crate) fn node_by_name(&self, name: &str) -> Result<NodeEntry, KeyholderError> {
        let record = self.registry()?.node_named(name);
        let record = record.ok_or_else(|| KeyholderError::NoSuchNode { name: name.to_owned() })?;
        Ok(self.node_entry(record))
    }

    /// The ids of all nodes.
    pub(crate) fn node_ids(&self) -> Vec<NodeId> {
        self.open.iter().flat_map(|open| open.registry.nodes.iter().map(|node| node.node)).collect()
    }

    /// What a dialler has to know; `None` once the node is gone.
    pub(crate) fn target(&self, node: NodeId) -> Option<NodeTarget> {
        let record = self.open.as_ref()?.registry.node(node)?;
        Some(NodeTarget {
            name: record.name.clone(),
            key_address: record.key_address.clone(),
            admin_address: record.admin_address.clone(),
            pinned: record.pinned,
        })
    }

    /// Adds a node. With its key it is approved at once; whoever asks has been found to be allowed that.
    pub(crate) fn add_node(&mut self, request: &AddNode, by: &str) -> Result<NodeEntry, KeyholderError> {
        let invalid = |what: String, next_step| KeyholderError::Invalid { what, next_step };
        let name: PeerName = request
            .name
            .parse()
            .map_err(|error| invalid(format!("{error}"), "give the name in the node's certificate"))?;
        let lease_ms = request.lease_ms.unwrap_or(self.lease_bounds.default_ms);
        self.check_lease(lease_ms)?;
        if request.node == NOBODY {
            return Err(invalid(
                "a node's id is not all zeros".to_owned(),
                "give the id that the node shows",
            ));
        }
        let pinned = match &request.identity_key {
            Some(text) => Some(parse_key(text)?),
            None => None,
        };
        self.refuse_suspect(&request.name, Some(request.node), pinned)?;
        // A node of this id may have been removed while its leases ran.
        if self.registry()?.node(request.node).is_none() {
            self.records.disown(&mut self.store, request.node)?;
        }
        let record = NodeRecord {
            name,
            node: request.node,
            key_address: request.key_address.clone(),
            admin_address: request.admin_address.clone(),
            pinned,
            push: request.push,
            lease_ms,
            latch: None,
            acknowledged: None,
        };
        self.commit(|registry| {
            if registry.nodes.len() >= NODES_MAX {
                let what = format!("this keyholder has {NODES_MAX} nodes already");
                return Err(invalid(what, "set up a second keyholder"));
            }
            if registry.node_named(record.name.as_str()).is_some() {
                return Err(KeyholderError::Exists { what: format!("a node named {}", record.name) });
            }
            if registry.node(record.node).is_some() {
                return Err(KeyholderError::Exists { what: format!("a node with id {}", record.node) });
            }
            registry.longest_lease_ms = registry.longest_lease_ms.max(lease_ms);
            registry.nodes.push(record.clone());
            Ok(())
        })?;
        let fields = [
            ("by", by.into()),
            ("node", record.name.to_string().into()),
            ("id", record.node.to_string().into()),
            ("approved", pinned.is_some().into()),
            ("push", serde_json::json!(record.push)),
        ];
        self.audit.record("node-added", fields)?;
        self.node_by_name(&request.name)
    }

    /// Changes what is known of a node. Whoever asks has been found to be allowed it.
    pub(crate) fn change_node(
        &mut self,
        name: &str,
        change: &ChangeNode,
        by: &str,
    ) -> Result<NodeEntry, KeyholderError> {
        let record = self.registry()?.node_named(name);
        let node = record.ok_or_else(|| KeyholderError::NoSuchNode { name: name.to_owned() })?.node;
        if let Some(lease_ms) = change.lease_ms {
            self.check_lease(lease_ms)?;
        }
        self.commit(|registry| {
            let longest = change.lease_ms.unwrap_or(0);
            registry.longest_lease_ms = registry.longest_lease_ms.max(longest);
            if let Some(record) = registry.node_mut(node) {
                record.key_address = change.key_address.clone().unwrap_or_else(|| record.key_address.clone());
                record.admin_address =
                    change.admin_address.clone().unwrap_or_else(|| record.admin_address.clone());
                record.push = change.push.unwrap_or(record.push);
                record.lease_ms = change.lease_ms.unwrap_or(record.lease_ms);
            }
            Ok(())
        })?;
        let fields = [("by", by.into()), ("node", name.into()), ("change", serde_json::json!(change))];
        self.audit.record("node-changed", fields)?;
        self.node_by_name(name)
    }

    /// Pins the key that the node claims, if its fingerprint is the one given; pins a whole key as it is. With it the TPM that
    /// speaks for the node, and the state that its machine is in.
    pub(crate) fn approve(
        &mut self,
        name: &str,
        request: &ApproveNode,
        by: &str,
    ) -> Result<NodeEntry, KeyholderError> {
        let record = self.registry()?.node_named(name);
        let record = record.ok_or_else(|| KeyholderError::NoSuchNode { name: name.to_owned() })?;
        let (node, pinned) = (record.node, record.pinned);
        let given = request.fingerprint.trim().to_ascii_lowercase();
        let key = if given.len() == 64 { parse_key(&given)? } else { self.claimed_key(record, &given)? };
        self.refuse_suspect(name, Some(node), Some(key))?;
        // What a TPM said belongs to the key that signed the session in which it did.
        let spoke = self.nodes.get(&node).and_then(|now| now.claimed).or(pinned) == Some(key);
        let tpm = self.tpm_to_approve(node, spoke, request.tpm.as_deref())?;
        let tpm_name = tpm.as_ref().map(|(name, _)| name.to_string());
        if pinned != Some(key) {
            // It is another machine, and the one before it may hold keys until its leases end.
            self.records.disown(&mut self.store, node)?;
        }
        self.commit_with_new_trail(node, by, |registry| {
            if let Some(record) = registry.node_mut(node) {
                record.pinned = Some(key);
            }
            // A node whose TPM says nothing today keeps the one that it was approved with.
            if let Some((_, approved)) = tpm {
                registry.tpms.retain(|tpm| tpm.node != node);
                let (by, at_unix_s) = (by.to_owned(), clock::unix_s());
                registry.tpms.push(TpmRecord { node, approved, by, at_unix_s });
            }
            Ok(())
        })?;
        let now = self.node_now(node);
        now.claimed = None;
        now.last_error = None;
        if !spoke {
            now.proof = Err(Unproven::NoTpm);
        }
        let fingerprint = KeyFingerprint::of(&key).to_string();
        let fields = [
            ("by", by.into()),
            ("node", name.into()),
            ("fingerprint", fingerprint.into()),
            ("tpm", tpm_name.into()),
        ];
        self.audit.record("node-approved", fields)?;
        self.node_by_name(name)
    }

    /// Commits a change after which the node's trail may be another one, as that of a node that was installed anew is: a person's
    /// word takes the place of the head that was followed so far, which the entry keeps.
    fn commit_with_new_trail(
        &mut self,
        node: NodeId,
        by: &str,
        change: impl FnOnce(&mut Registry) -> Result<(), KeyholderError>,
    ) -> Result<(), KeyholderError> {
        let followed = self.node_trails.remove(&node);
        let committed = self.commit(change);
        if committed.is_err() {
            self.node_trails.extend(followed.map(|head| (node, head)));
            return committed;
        }
        self.node_trails_broken.remove(&node);
        let Some(head) = followed else { return Ok(()) };
        let fields = [
            ("by", by.into()),
            ("node", node.to_string().into()),
            ("of_trail", head.trail.to_string().into()),
            ("of_seq", head.seq.into()),
            ("of_hash", head.hash.to_string().into()),
        ];
        self.audit.record("node-trail-forgotten", fields)?;
        Ok(())
    }

    fn claimed_key(&self, record: &NodeRecord, given: &str) -> Result<SigningPublicKey, KeyholderError> {
        let now = self.nodes.get(&record.node);
        let Some(claimed) = now.and_then(|now| now.claimed).or(record.pinned) else {
            let reason = now.and_then(|now| now.last_error.clone());
            let detail = reason.unwrap_or_else(|| "it is being dialled: try again in a moment".to_owned());
            return Err(KeyholderError::NothingClaimed { name: record.name.to_string(), detail });
        };
        let fingerprint = KeyFingerprint::of(&claimed).to_string();
        if given == fingerprint {
            return Ok(claimed);
        }
        Err(KeyholderError::OtherFingerprint {
            name: record.name.to_string(),
            claimed: fingerprint,
            given: given.to_owned(),
        })
    }

    /// Removes a node that has no volumes.
    pub(crate) fn remove_node(&mut self, name: &str, by: &str) -> Result<NodeId, KeyholderError> {
        let registry = self.registry()?;
        let record = registry.node_named(name);
        let node = record.ok_or_else(|| KeyholderError::NoSuchNode { name: name.to_owned() })?.node;
        let count = registry.volumes_of(node).count();
        if count > 0 {
            return Err(KeyholderError::NodeInUse { name: name.to_owned(), count });
        }
        self.commit_with_new_trail(node, by, |registry| {
            registry.nodes.retain(|record| record.node != node);
            registry.tpms.retain(|tpm| tpm.node != node);
            // What it had of other nodes' volumes keeps no secret any more.
            registry.epoch_reports.retain(|report| report.node != node);
            Ok(())
        })?;
        self.nodes.remove(&node);
        self.audit.record("node-removed", [("by", by.into()), ("node", name.into())])?;
        Ok(node)
    }

    /// The nodes that a target is about.
    pub(crate) fn nodes_of(&self, target: &Target) -> Result<Vec<NodeId>, KeyholderError> {
        let registry = self.registry()?;
        match target {
            Target::All => Ok(registry.nodes.iter().map(|node| node.node).collect()),
            Target::Node(name) => {
                let node = registry.node_named(name);
                Ok(vec![node.ok_or_else(|| KeyholderError::NoSuchNode { name: name.clone() })?.node])
            }
            Target::Volume(label) => {
                let volume = registry.volume_labelled(label);
                Ok(vec![volume.ok_or_else(|| KeyholderError::NoSuchVolume { label: label.clone() })?.node])
            }
        }
    }

    /// Latches what a revocation is about. In force when this returns; [`Self::write_latches`] makes it durable, so that a
    /// slow disk delays no revocation.
    pub(crate) fn latch(&mut self, target: &Target, by: &str) -> Result<(), KeyholderError> {
        let nodes = self.nodes_of(target)?;
        let latch = latch_by(LatchCause::Revoked, by);
        self.latches_unwritten = true;
        let Some(open) = &mut self.open else { return Ok(()) };
        match target {
            Target::Volume(label) => {
                for volume in open.registry.volumes.iter_mut().filter(|volume| volume.label == *label) {
                    volume.latch = Some(latch.clone());
                }
            }
            Target::Node(_) | Target::All => {
                for node in open.registry.nodes.iter_mut().filter(|node| nodes.contains(&node.node)) {
                    node.latch = Some(latch.clone());
                }
            }
        }
        Ok(())
    }

    /// Latches everything. In force when this returns, as [`Self::latch`].
    pub(crate) fn lock_down(&mut self, by: &str) -> Result<(), KeyholderError> {
        self.opened()?;
        self.latches_unwritten = true;
        if let Some(open) = &mut self.open {
            open.registry.lockdown.get_or_insert_with(|| latch_by(LatchCause::Lockdown, by));
        }
        Ok(())
    }

    /// Makes durable what was latched.
    pub(crate) fn write_latches(
        &mut self,
        event: &str,
        target: &Target,
        by: &str,
    ) -> Result<(), KeyholderError> {
        self.commit_latches()?;
        self.audit.record(event, [("by", by.into()), ("target", serde_json::json!(target))])?;
        Ok(())
    }

    /// Where another keyholder was quicker with the ledger, its ledger is latched too.
    fn commit_latches(&mut self) -> Result<(), KeyholderError> {
        for _ in 0..LATCH_WRITES_MAX {
            match self.commit_in(Room::Reserve, |_| Ok(())) {
                Err(KeyholderError::Store(StoreError::Changed)) => self.look_at_store()?,
                done => return done,
            }
        }
        self.commit_in(Room::Reserve, |_| Ok(()))
    }

    /// What lifting the latches of a target is, in words: an approval of it covers none that come later.
    pub(crate) fn unlatch_act(&self, target: &Target) -> Result<String, KeyholderError> {
        let nodes = self.nodes_of(target)?;
        let registry = self.registry()?;
        let mut latches = Vec::new();
        let mut note = |what: &str, latch: &Option<LatchRecord>| {
            if let Some(latch) = latch {
                let wipe = latch.wipe.map(|wipe| format!(", wipe {} of boot {}", wipe.at.0, wipe.boot));
                let wipe = wipe.unwrap_or_default();
                latches.push(format!("{what} ({} since {}{wipe})", latch.cause.name(), latch.since_unix_s));
            }
        };
        let what = match target {
            Target::Volume(label) => format!("volume {label}"),
            Target::Node(name) => format!("node {name}"),
            Target::All => {
                note("lockdown", &registry.lockdown);
                "everything".to_owned()
            }
        };
        if !matches!(target, Target::Volume(_)) {
            let nodes = registry.nodes.iter().filter(|node| nodes.contains(&node.node));
            nodes.for_each(|node| note(node.name.as_str(), &node.latch));
        }
        let of_target = |label: &str| *target == Target::All || *target == Target::Volume(label.to_owned());
        let volumes = registry.volumes.iter().filter(|volume| of_target(&volume.label));
        volumes.for_each(|volume| note(&volume.label, &volume.latch));
        let digest = hex::encode(Sha256::digest(latches.join("\n")));
        let more = latches.len().saturating_sub(LATCHES_NAMED_MAX);
        latches.truncate(LATCHES_NAMED_MAX);
        let mut named = if latches.is_empty() { "no latch".to_owned() } else { latches.join(", ") };
        if more > 0 {
            named += &format!(" and {more} more (all: SHA-256 {digest})");
        }
        Ok(format!("unlatch {what}: {named}"))
    }

    /// Lifts latches.
    pub(crate) fn unlatch(&mut self, target: &Target, by: &str) -> Result<(), KeyholderError> {
        let nodes = self.nodes_of(target)?;
        if *target != Target::All && self.registry()?.lockdown.is_some() {
            return Err(KeyholderError::Latched { what: "everything".to_owned(), cause: "lockdown" });
        }
        self.commit(|registry| {
            let all = *target == Target::All;
            if all {
                registry.lockdown = None;
            }
            if !matches!(target, Target::Volume(_)) {
                for node in registry.nodes.iter_mut().filter(|node| nodes.contains(&node.node)) {
                    if let Some(latch) = node.latch.take() {
                        node.acknowledged = latch.wipe.or(node.acknowledged);
                    }
                }
            }
            for volume in &mut registry.volumes {
                if all || matches!(target, Target::Volume(label) if volume.label == *label) {
                    volume.latch = None;
                }
            }
            Ok(())
        })?;
        self.audit.record("unlatch", [("by", by.into()), ("target", serde_json::json!(target))])?;
        Ok(())
    }

    /// Notes a person's approval of a push.
    pub(crate) fn approve_push(&mut self, target: &Target, by: &str) -> Result<(), KeyholderError> {
        let nodes = self.nodes_of(target)?;
        self.refuse_latched(target, &nodes)?;
        let until = clock::now().saturating_add_ms(super::APPROVAL_MS);
        let volumes: Vec<_> = self
            .registry()?
            .volumes
            .iter()
            .filter(|volume| match target {
                Target::Volume(label) => volume.label == *label,
                Target::Node(_) | Target::All => nodes.contains(&volume.node),
            })
            // What is in force needs no push, and an approval must not lie about for the next one.
            .filter(|volume| {
                self.volumes.get(&volume.volume).and_then(|now| now.key) != Some(KeyState::Unlocked)
            })
            .map(|volume| volume.volume)
            .collect();
        for volume in volumes {
            let now = self.volume_now(volume);
            now.approved_until = Some(until);
            now.attempts = 0;
            if now.by_policy {
                // Decided anew, with the approval.
                now.by_policy = false;
                now.key = None;
                now.reason = None;
            }
        }
        if !matches!(target, Target::Volume(_)) {
            // A person has looked at how these nodes came back.
            for node in &nodes {
                self.node_now(*node).came_back = crate::policy::CameBack::Holding;
            }
        }
        self.audit.record("push-approved", [("by", by.into()), ("target", serde_json::json!(target))])?;
        Ok(())
    }

    fn refuse_latched(&self, target: &Target, nodes: &[NodeId]) -> Result<(), KeyholderError> {
        let registry = self.registry()?;
        if registry.lockdown.is_some() {
            return Err(KeyholderError::Latched { what: "everything".to_owned(), cause: "lockdown" });
        }
        for node in nodes.iter().filter_map(|node| registry.node(*node)) {
            if node.pinned.is_none() && *target != Target::All {
                return Err(KeyholderError::NotApproved { name: node.name.to_string() });
            }
            if let Some(latch) = &node.latch
                && *target != Target::All
            {
                let what = format!("node {}", node.name);
                return Err(KeyholderError::Latched { what, cause: latch.cause.name() });
            }
        }
        if let Target::Volume(label) = target
            && let Some(latch) = registry.volume_labelled(label).and_then(|volume| volume.latch.as_ref())
        {
            let what = format!("volume {label}");
            return Err(KeyholderError::Latched { what, cause: latch.cause.name() });
        }
        Ok(())
    }

    fn awaits_push(&self, record: &NodeRecord) -> bool {
        let connected =
            self.nodes.get(&record.node).is_some_and(|now| now.connection == Connection::Connected);
        record.push == PushPolicy::Approve
            && connected
            && record.latch.is_none()
            && self.open.as_ref().is_some_and(|open| {
                open.registry.lockdown.is_none()
                    && open.registry.volumes_of(record.node).any(|volume| self.is_pushable(volume))
            })
    }

    /// The node's name; its id where it has none any more.
    pub(crate) fn node_name(&self, node: NodeId) -> String {
        let record = self.open.as_ref().and_then(|open| open.registry.node(node));
        record.map_or_else(|| node.to_string(), |record| record.name.to_string())
    }

    /// How the connection to a node stands.
    pub(crate) fn connection(&self, node: NodeId) -> Connection {
        self.nodes.get(&node).map_or(Connection::Idle, |now| now.connection)
    }

    /// What became of a push: `None` while it is under way, then whether the node holds every key it should.
    pub(crate) fn pushed(&self, node: NodeId, target: &Target) -> Option<Result<(), String>> {
        let open = self.open.as_ref()?;
        if let Some(barrier) = self.push_barrier(node) {
            return Some(Err(barrier));
        }
        let mut refusals = Vec::new();
        for volume in open.registry.volumes_of(node) {
            let wanted = match target {
                Target::Volume(label) => volume.label == *label,
                Target::Node(_) | Target::All => volume.latch.is_none() && volume.life == Life::Live,
            };
            let known = self.volumes.get(&volume.volume);
            match known.and_then(|known| known.key) {
                _ if !wanted => {}
                Some(KeyState::Unlocked) => {}
                Some(KeyState::Refused) => {
                    let reason = known.and_then(|known| known.reason.clone()).unwrap_or_default();
                    refusals.push(format!("{}: {reason}", volume.label));
                }
                _ => return None,
            }
        }
        Some(if refusals.is_empty() { Ok(()) } else { Err(refusals.join("; ")) })
    }

    /// Why no push to the node can come to an end before a person does something.
    fn push_barrier(&self, node: NodeId) -> Option<String> {
        let registry = self.open.as_ref().map(|open| &open.registry)?;
        if registry.lockdown.is_some() {
            return Some("everything is locked down; a security officer has to unlatch it".to_owned());
        }
        let record = registry.node(node)?;
        if record.pinned.is_none() {
            return Some("the node's key is not approved; compare its fingerprint and approve it".to_owned());
        }
        let latch = record.latch.as_ref()?;
        Some(format!("the node is latched ({}); a security officer has to unlatch it", latch.cause.name()))
    }

    /// Why a push has not come to an end yet.
    pub(crate) fn push_delay(&self, node: NodeId) -> String {
        if let Some(until) = self.wait_until {
            let ms = until.ms_since(clock::now());
            return format!("the record of earlier leases is lost; the push goes on by itself in {ms} ms");
        }
        let error = self.nodes.get(&node).and_then(|now| now.last_error.clone());
        error.unwrap_or_else(|| "the node has not answered yet; the push goes on by itself".to_owned())
    }

    /// How long a node may still hold keys, by the record.
    pub(crate) fn longest_remaining(&self, node: NodeId) -> Duration {
        let now = clock::now();
        let expiries = self.open.iter().flat_map(|open| {
            open.registry.volumes_of(node).filter_map(|volume| self.records.of(volume.volume)?.held_until())
        });
        // What was promoted away while it held the key counts too.
        let expiries = expiries.chain(self.records.of_node(node).filter_map(LeaseRecord::held_until));
        Duration::from_millis(expiries.map(|expires| expires.ms_since(now)).max().unwrap_or(0))
    }

    fn check_lease(&self, lease_ms: u64) -> Result<(), KeyholderError> {
        let longest_ms = self.lease_bounds.max_ms.min(LEASE_MS_MAX);
        if (LEASE_MS_MIN..=longest_ms).contains(&lease_ms) {
            return Ok(());
        }
        Err(KeyholderError::Invalid {
            what: format!("a lease of {lease_ms} ms is not one of {LEASE_MS_MIN} to {longest_ms} ms"),
            next_step: "give one of those; a longer one takes a larger `lease_ms_max` in the keyholder's configuration, and makes a \
                        restored keyholder wait for so long",
        })
    }
}

fn parse_key(text: &str) -> Result<SigningPublicKey, KeyholderError> {
    let mut key = [0; 32];
    hex::decode_to_slice(text.trim(), &mut key).map_err(|_| KeyholderError::Invalid {
        what: format!("`{text}` is not an Ed25519 public key"),
        next_step: "give the 64 hexadecimal digits that the node shows as its identity key",
    })?;
    Ok(key)
}
