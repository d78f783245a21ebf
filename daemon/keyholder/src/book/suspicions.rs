//! After a suspicion: a node that somebody may have had in their hands. Its identity is forbidden for good, and what it may have
//! seen is listed, so that it can be given new keys first.

use std::collections::BTreeMap;

use audit_log::{Entry, Reader, TrailError};
use units::{DomainId, NodeId, VolumeEpoch, VolumeId};

use super::{Book, latch_by};
use crate::api::{Compromise, Exposed};
use crate::clock;
use crate::error::KeyholderError;
use crate::ledger::{LatchCause, Registry, SuspicionRecord, VolumeRecord};
use crate::store::Room;

/// When the keyholder's trail first and last says that a node had a key.
pub(crate) type Span = (u64, u64);

/// A volume, its label, domain and epoch, as the ledger notes them.
type Exposure = (VolumeId, String, DomainId, VolumeEpoch);

/// Further words about the same identity add what it may have seen since the first.
fn note(suspicions: &mut Vec<SuspicionRecord>, suspicion: SuspicionRecord) {
    let same = |known: &&mut SuspicionRecord| {
        known.node == suspicion.node && (suspicion.key.is_none() || known.key == suspicion.key)
    };
    match suspicions.iter_mut().find(same) {
        Some(known) => extend(&mut known.exposed, suspicion.exposed),
        None => suspicions.push(suspicion),
    }
}

fn extend(known: &mut Vec<Exposure>, more: Vec<Exposure>) {
    for exposure in more {
        if !known.iter().any(|(volume, _, _, epoch)| (*volume, *epoch) == (exposure.0, exposure.3)) {
            known.push(exposure);
        }
    }
}

/// What of a volume a node that has its keys may see: all its epochs.
fn exposures(registry: &Registry, volume: &VolumeRecord) -> Vec<Exposure> {
    let older = registry.older_of(volume.domain).map(|older| older.epoch);
    let epochs = std::iter::once(volume.epoch).chain(older);
    epochs.map(|epoch| (volume.volume, volume.label.clone(), volume.domain, epoch)).collect()
}

/// A node that has been marked.
#[derive(Debug)]
pub(crate) struct Marked {
    pub(crate) node: NodeId,
    name: String,
}

/// What the trail says of each volume's key: from its first grant to the node, to the last word about it.
pub(crate) fn spans(trail: Reader, node: NodeId) -> Result<BTreeMap<VolumeId, Span>, TrailError> {
    let id = node.to_string();
    let mut spans: BTreeMap<VolumeId, Span> = BTreeMap::new();
    trail.each_line(|line| {
        let Ok(entry) = Entry::parse(&line) else { return };
        if entry.text("node") != id {
            return;
        }
        let at = entry.at.unix_ms;
        if entry.event == "wiped" {
            spans.values_mut().for_each(|span| span.1 = span.1.max(at));
        }
        if matches!(entry.event.as_str(), "grant" | "receipt")
            && let Ok(volume) = entry.text("volume").parse()
        {
            let span = spans.entry(volume).or_insert((at, at));
            span.1 = span.1.max(at);
        }
    })?;
    Ok(spans)
}

impl Book {
    /// Marks a node: nothing is pushed to it, renewed or approved any more, under this id or this key. In force and durable when this
    /// returns; the caller takes back what it holds, and finds out what it ever had.
    pub(crate) fn mark_compromised(&mut self, name: &str, by: &str) -> Result<Marked, KeyholderError> {
        let registry = self.registry()?;
        let record = registry.node_named(name);
        let record = record.ok_or_else(|| KeyholderError::NoSuchNode { name: name.to_owned() })?.clone();
        let suspicion = SuspicionRecord {
            node: record.node,
            name: name.to_owned(),
            key: record.pinned,
            since_unix_s: clock::unix_s(),
            by: by.to_owned(),
            exposed: registry
                .volumes_of(record.node)
                .flat_map(|volume| exposures(registry, volume))
                .collect(),
        };
        let latch = latch_by(LatchCause::Revoked, by);
        // Whoever has the node has its word too: what it holds by now ends with its lease, and with nothing that it says.
        self.records.disown(&mut self.store, record.node)?;
        self.commit_in(Room::Reserve, |registry| {
            note(&mut registry.suspicions, suspicion);
            if let Some(node) = registry.node_mut(record.node) {
                node.latch = Some(latch);
                node.pinned = None;
            }
            Ok(())
        })?;
        let fields = [("by", by.into()), ("node", record.node.to_string().into()), ("name", name.into())];
        self.audit.record("node-compromised", fields)?;
        Ok(Marked { node: record.node, name: name.to_owned() })
    }

    /// Notes what a marked node may have seen: what is on it now, and what it ever had, wherever that is today.
    pub(crate) fn note_exposed(
        &mut self,
        marked: &Marked,
        spans: &BTreeMap<VolumeId, Span>,
        by: &str,
    ) -> Result<Compromise, KeyholderError> {
        let seen = |volume: &&VolumeRecord| volume.node == marked.node || spans.contains_key(&volume.volume);
        let registry = self.registry()?;
        let seen = registry.volumes.iter().filter(seen);
        let exposed: Vec<_> = seen.flat_map(|volume| exposures(registry, volume)).collect();
        let known = exposed.clone();
        self.commit(|registry| {
            // The last word about this node, which is the one that was just marked.
            if let Some(suspicion) = registry.suspicions.iter_mut().rfind(|one| one.node == marked.node) {
                extend(&mut suspicion.exposed, known);
            }
            Ok(())
        })?;
        let labels: Vec<_> = exposed.iter().map(|(_, label, _, _)| label.clone()).collect();
        let fields = [
            ("by", by.into()),
            ("node", marked.node.to_string().into()),
            ("name", marked.name.as_str().into()),
            ("exposed", labels.into()),
        ];
        self.audit.record("node-exposed", fields)?;
        let exposed = exposed.into_iter().map(|(volume, label, domain, epoch)| {
            let span = spans.get(&volume);
            Exposed {
                volume,
                label,
                domain,
                epoch,
                first_unix_s: span.map(|(first, _)| first / 1_000),
                last_unix_s: span.map(|(_, last)| last / 1_000),
            }
        });
        Ok(Compromise { node: marked.name.clone(), exposed: exposed.collect() })
    }

    /// Refuses an identity that was marked.
    pub(super) fn refuse_suspect(
        &self,
        name: &str,
        node: Option<NodeId>,
        key: Option<[u8; 32]>,
    ) -> Result<(), KeyholderError> {
        let marked = self.registry()?.suspicions.iter().any(|suspicion| {
            Some(suspicion.node) == node || (suspicion.key.is_some() && suspicion.key == key)
        });
        if marked { Err(KeyholderError::Compromised { name: name.to_owned() }) } else { Ok(()) }
    }
}
