//! Volumes: creating, resizing, deleting, each as steps around what the node does.

use key_hierarchy::Integrity;
use lease::limits::VOLUMES_MAX;
use lease::message::VolumeKind;
use units::{ByteLen, DomainId, Fence, NodeId, VolumeEpoch, VolumeId};

use super::{Book, Grave, latch_by, latch_entry};
use crate::api::{
    CloneVolume, CreateVolume, Erasure, KeyState, ResizeVolume, VolumeEntry, VolumeErased, VolumeIntegrity,
};
use crate::clock;
use crate::error::KeyholderError;
use crate::ledger::{EpochReport, ErasureRecord, LatchCause, Life, VolumeRecord};
use crate::records::LeaseRecord;
use crate::store::Room;
use crate::vault::SecretOf;

/// Largest volume: one key domain's worth at 2^44 blocks of cipher with room for overwrites (DESIGN section 5).
const VOLUME_BYTES_MAX: u64 = 128 << 40;

/// Longest label; it is an NBD export name and a metric label.
const LABEL_BYTES_MAX: usize = 64;

const SECTOR_BYTES: u64 = units::SECTOR_BYTES as u64;

/// What the node is asked to create.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VolumeToCreate {
    pub(crate) volume: VolumeId,
    pub(crate) node: NodeId,
    pub(crate) domain: DomainId,
    pub(crate) epoch: VolumeEpoch,
    pub(crate) check: [u8; 16],
    pub(crate) kind: VolumeKind,
    pub(crate) size: ByteLen,
}

impl From<&VolumeRecord> for VolumeToCreate {
    fn from(record: &VolumeRecord) -> Self {
        Self {
            volume: record.volume,
            node: record.node,
            domain: record.domain,
            epoch: record.epoch,
            check: record.check,
            kind: record.kind,
            size: record.size,
        }
    }
}

impl Book {
    /// Every volume, as the API shows it.
    pub(crate) fn volume_entries(&self) -> Vec<VolumeEntry> {
        let Some(open) = &self.open else { return Vec::new() };
        open.registry.volumes.iter().map(|volume| self.volume_entry(volume)).collect()
    }

    /// The entry of the volume with this label.
    pub(crate) fn volume_by_label(&self, label: &str) -> Result<VolumeEntry, KeyholderError> {
        let record = self.registry()?.volume_labelled(label);
        Ok(self.volume_entry(record.ok_or_else(|| no_such(label))?))
    }

    /// The id and node of the volume with this label.
    pub(crate) fn find_volume(&self, label: &str) -> Result<(VolumeId, NodeId), KeyholderError> {
        let record = self.registry()?.volume_labelled(label).ok_or_else(|| no_such(label))?;
        Ok((record.volume, record.node))
    }

    fn volume_entry(&self, record: &VolumeRecord) -> VolumeEntry {
        let now = clock::now();
        let lease = self.records.of(record.volume);
        let remaining =
            lease.and_then(LeaseRecord::held_until).map(|expires| expires.ms_since(now)).filter(|ms| *ms > 0);
        let known = self.volumes.get(&record.volume);
        let key = self.key_state(record, remaining.is_some());
        let node = self.open.as_ref().and_then(|open| open.registry.node(record.node));
        let reason = known.and_then(|known| known.reason.clone()).or_else(|| match record.life {
            Life::Creating => Some(
                "the node has not confirmed that it created the volume; create it again, or delete it"
                    .to_owned(),
            ),
            Life::Deleting => Some("the volume is being deleted; delete it again to finish".to_owned()),
            Life::Live => None,
        });
        VolumeEntry {
            label: record.label.clone(),
            volume: record.volume,
            domain: record.domain,
            epoch: record.epoch,
            size_bytes: record.size.0,
            kind: record.kind,
            on_seal: record.on_seal,
            integrity: record.integrity,
            node: node.map(|node| node.name.to_string()).unwrap_or_default(),
            fence: lease.map_or(record.fence_floor, |lease| lease.fence.max(record.fence_floor)),
            latch: record.latch.as_ref().map(latch_entry),
            key,
            lease_remaining_ms: remaining,
            reason: if key == KeyState::Unlocked { None } else { reason },
            rotation: self.rotation(record),
        }
    }

    fn key_state(&self, record: &VolumeRecord, lease_runs: bool) -> KeyState {
        let unheard = if lease_runs { KeyState::Unknown } else { KeyState::Sealed };
        match self.volumes.get(&record.volume).and_then(|known| known.key) {
            // What was last heard is true only as long as the lease can run.
            Some(KeyState::Unlocked | KeyState::Pushing | KeyState::Unknown) if !lease_runs => {
                KeyState::Sealed
            }
            Some(state) => state,
            None => unheard,
        }
    }

    /// First step: a fresh secret for the volume, in the ledger, durable. A creation that was cut off goes on.
    pub(crate) fn begin_volume(
        &mut self,
        request: &CreateVolume,
        by: &str,
    ) -> Result<VolumeToCreate, KeyholderError> {
        check_label(&request.label)?;
        check_size(request.size_bytes)?;
        let registry = self.registry()?;
        let node = registry
            .node_named(&request.node)
            .ok_or_else(|| KeyholderError::NoSuchNode { name: request.node.clone() })?;
        if node.pinned.is_none() {
            return Err(KeyholderError::NotApproved { name: request.node.clone() });
        }
        let node = node.node;
        if let Some(existing) = registry.volume_labelled(&request.label) {
            return resume(existing, request, node);
        }
        self.check_room_on(node)?;
        let domain = DomainId(random_id()?);
        let epoch = VolumeEpoch(1);
        let integrity = integrity_of(request.integrity);
        let (secret, check) = self.vault.make_secret(SecretOf { domain, epoch }, integrity)?;
        let record = VolumeRecord {
            label: request.label.clone(),
            volume: VolumeId(random_id()?),
            domain,
            epoch,
            secret,
            check,
            size: ByteLen(request.size_bytes),
            kind: request.kind,
            on_seal: request.on_seal,
            integrity: request.integrity,
            node,
            life: Life::Creating,
            latch: None,
            fence_floor: Fence(0),
            since_serial: self.opened()?.header.serial + 1,
        };
        let created = VolumeToCreate::from(&record);
        let id = record.volume.to_string();
        self.commit(|registry| {
            registry.volumes.push(record);
            registry.note_epoch_began(domain, clock::unix_s());
            Ok(())
        })?;
        let fields = [
            ("by", by.into()),
            ("label", request.label.clone().into()),
            ("volume", id.into()),
            ("node", request.node.clone().into()),
            ("size_bytes", request.size_bytes.into()),
        ];
        self.audit.record("volume-creating", fields)?;
        Ok(created)
    }

    /// A node's evidence names no more volumes than the protocol lets it.
    fn check_room_on(&self, node: NodeId) -> Result<(), KeyholderError> {
        if self.registry()?.volumes_of(node).count() < VOLUMES_MAX {
            return Ok(());
        }
        Err(KeyholderError::Invalid {
            what: format!("{} has {VOLUMES_MAX} volumes, and that is the most", self.node_name(node)),
            next_step: "delete what is not needed any more, or take another node",
        })
    }

    /// First step of a clone: a further volume in the domain of the one labelled `of`, durable. A clone that was cut
    /// off is deleted and made again: whether the node made it, and of which snapshot, nobody knows.
    pub(crate) fn begin_clone(
        &mut self,
        of: &str,
        request: &CloneVolume,
        by: &str,
    ) -> Result<VolumeToCreate, KeyholderError> {
        check_label(&request.label)?;
        self.check_live(of)?;
        let registry = self.registry()?;
        if let Some(existing) = registry.volume_labelled(&request.label) {
            return Err(match existing.life {
                Life::Live => {
                    KeyholderError::Exists { what: format!("a volume labelled {}", existing.label) }
                }
                Life::Creating | Life::Deleting => busy(existing),
            });
        }
        let parent = registry.volume_labelled(of).ok_or_else(|| no_such(of))?;
        // What was revoked is the key, whatever volume it is of.
        let of_key = registry.volumes.iter().filter(|volume| volume.domain == parent.domain);
        if let Some((volume, latch)) =
            of_key.filter_map(|volume| Some((volume, volume.latch.as_ref()?))).next()
        {
            let what = format!("volume {}", volume.label);
            return Err(KeyholderError::Latched { what, cause: latch.cause.name() });
        }
        self.check_room_on(parent.node)?;
        let record = VolumeRecord {
            label: request.label.clone(),
            volume: VolumeId(random_id()?),
            on_seal: request.on_seal,
            life: Life::Creating,
            latch: None,
            fence_floor: Fence(0),
            // Domain and secret are the parent's, and as old as there.
            ..parent.clone()
        };
        let created = VolumeToCreate::from(&record);
        let id = record.volume.to_string();
        self.commit(|registry| {
            registry.volumes.push(record);
            Ok(())
        })?;
        let fields = [
            ("by", by.into()),
            ("label", request.label.clone().into()),
            ("volume", id.into()),
            ("of", of.into()),
            ("snapshot", request.snapshot.to_string().into()),
        ];
        self.audit.record("volume-cloning", fields)?;
        Ok(created)
    }

    /// The node has made the volume what its snapshot shows.
    pub(crate) fn rolled_back(
        &mut self,
        volume: VolumeId,
        snapshot: VolumeId,
        size_bytes: u64,
        by: &str,
    ) -> Result<(), KeyholderError> {
        self.commit(|registry| {
            if let Some(record) = registry.volume_mut(volume) {
                record.size = ByteLen(size_bytes);
            }
            Ok(())
        })?;
        let fields = [
            ("by", by.into()),
            ("volume", volume.to_string().into()),
            ("snapshot", snapshot.to_string().into()),
            ("size_bytes", size_bytes.into()),
        ];
        self.audit.record("volume-rolled-back", fields)?;
        Ok(())
    }

    /// The volume and the node that has its replica.
    pub(crate) fn check_promotion(
        &self,
        label: &str,
        to: &str,
    ) -> Result<(VolumeId, NodeId), KeyholderError> {
        let (volume, from) = self.check_live(label)?;
        let node = self.registry()?.node_named(to);
        let node = node.ok_or_else(|| KeyholderError::NoSuchNode { name: to.to_owned() })?;
        if node.pinned.is_none() {
            return Err(KeyholderError::NotApproved { name: to.to_owned() });
        }
        self.check_room_on(node.node)?;
        if node.node == from {
            return Err(KeyholderError::Invalid {
                what: format!("{label} is on {to} already"),
                next_step: "name the node that has its replica",
            });
        }
        Ok((volume, node.node))
    }

    /// Whether what a node has under the volume's id is of the volume's key: another is not promoted in its place.
    pub(crate) fn check_replica(
        &self,
        label: &str,
        node: &str,
        there: Option<&admin::api::VolumeStatus>,
    ) -> Result<(), KeyholderError> {
        let record = self.registry()?.volume_labelled(label).ok_or_else(|| no_such(label))?;
        let invalid = |what: String, next_step| KeyholderError::Invalid { what, next_step };
        let there = there.ok_or_else(|| {
            let next_step = "send it a snapshot first: `nightlatch snapshot send`";
            invalid(format!("{node} has no replica of {label}"), next_step)
        })?;
        let key = (there.domain, there.epoch, there.check.as_str());
        // A replica that has not followed a rotation is under an epoch before, which is still there as long as something needs it.
        let is_older = self
            .registry()?
            .older_of(record.domain)
            .any(|older| key == (older.domain, older.epoch, hex::encode(older.check).as_str()));
        if !is_older && key != (record.domain, record.epoch, hex::encode(record.check).as_str()) {
            let next_step = "delete it there, and send the volume's own snapshots";
            return Err(invalid(
                format!("what {node} has in the place of {label} is of another key"),
                next_step,
            ));
        }
        Ok(())
    }

    /// The replica on `to` is the volume from now on. What the node before it holds is revoked when it is heard of.
    pub(crate) fn promoted(
        &mut self,
        volume: VolumeId,
        to: NodeId,
        (snapshot, size_bytes): (Option<VolumeId>, u64),
        by: &str,
    ) -> Result<(), KeyholderError> {
        let before = self.registry()?.volume(volume).map(|record| record.node);
        self.commit(|registry| {
            if let Some(record) = registry.volume_mut(volume) {
                record.node = to;
                record.size = ByteLen(size_bytes);
            }
            // What was said of the replica says nothing of the volume, and what that leaves behind lies under epochs that its node
            // has yet to name.
            registry.epoch_reports.retain(|report| (report.node, report.volume) != (to, volume));
            if let Some(node) = before
                && registry.epoch_report(node, volume).is_none()
            {
                registry.epoch_reports.push(EpochReport { node, volume, epochs: None });
            }
            Ok(())
        })?;
        self.volumes.remove(&volume);
        // It is in another pool now.
        self.records.forget_pool(volume);
        let fields = [
            ("by", by.into()),
            ("volume", volume.to_string().into()),
            ("from", before.map(|node| node.to_string()).into()),
            ("to", to.to_string().into()),
            ("snapshot", snapshot.map(|snapshot| snapshot.to_string()).into()),
            ("size_bytes", size_bytes.into()),
        ];
        // It is done by now: the trail has it, whatever becomes of the record.
        self.audit.record("volume-promoted", fields)?;
        self.flush_records()
    }

    /// What accepting a state is, in words: an approval of it covers no other pool, and nothing that the node finds later.
    pub(crate) fn accept_act(&self, label: &str) -> Result<String, KeyholderError> {
        let (volume, node) = self.find_volume(label)?;
        let present = self.nodes.get(&node).and_then(|now| now.present.get(&volume));
        let pool =
            present.map_or_else(|| "a pool not heard of".to_owned(), |there| format!("pool {}", there.pool));
        let found = self.volumes.get(&volume).and_then(|now| now.found);
        let found = found.map_or_else(|| "not judged yet".to_owned(), |verdict| verdict.to_string());
        let node = self.node_name(node);
        Ok(format!("accept the state of volume {label} ({volume}) in {pool} on {node} as it is: {found}"))
    }

    /// A person takes the state that the volume's pool is in for the one to go on from.
    pub(crate) fn accept_state(&mut self, label: &str, by: &str) -> Result<VolumeEntry, KeyholderError> {
        let (volume, node) = self.find_volume(label)?;
        let said = self.nodes.get(&node).and_then(|now| now.present.get(&volume)).map(|present| present.pool);
        self.records.forget_state(&mut self.store, volume, said)?;
        let now = self.volume_now(volume);
        (now.attempts, now.accepts_state, now.found) = (0, true, None);
        self.audit.record("state-accepted", [("by", by.into()), ("volume", volume.to_string().into())])?;
        self.volume_by_label(label)
    }

    /// Last step: the node has the volume.
    pub(crate) fn finish_volume(&mut self, volume: VolumeId) -> Result<(), KeyholderError> {
        let record = self.registry()?.volume(volume).ok_or_else(|| no_such(&volume.to_string()))?;
        match record.life {
            // By another request for the same.
            Life::Live => return Ok(()),
            Life::Deleting => return Err(busy(record)),
            Life::Creating => {}
        }
        self.commit(|registry| {
            if let Some(record) = registry.volume_mut(volume) {
                record.life = Life::Live;
            }
            Ok(())
        })?;
        self.audit.record("volume-created", [("volume", volume.to_string().into())])?;
        Ok(())
    }

    /// The node has another size.
    pub(crate) fn resized(
        &mut self,
        volume: VolumeId,
        size_bytes: u64,
        by: &str,
    ) -> Result<(), KeyholderError> {
        self.commit(|registry| {
            if let Some(record) = registry.volume_mut(volume) {
                record.size = ByteLen(size_bytes);
            }
            Ok(())
        })?;
        let fields =
            [("by", by.into()), ("volume", volume.to_string().into()), ("size_bytes", size_bytes.into())];
        self.audit.record("volume-resized", fields)?;
        Ok(())
    }

    /// Checks a new size before the node is asked. What lets it cut content off takes others; without that the node refuses.
    pub(crate) fn allow_resize(
        &mut self,
        label: &str,
        request: &ResizeVolume,
        by: &str,
    ) -> Result<(VolumeId, NodeId), KeyholderError> {
        check_size(request.size_bytes)?;
        let (volume, node) = self.check_live(label)?;
        let found = self.registry()?.volume(volume);
        if found.is_some_and(|found| {
            is_named_key(found.kind, found.size.0) || is_named_key(found.kind, request.size_bytes)
        }) {
            return Err(KeyholderError::Invalid {
                what: format!("{label} is a named key, or would become one: a key has no size"),
                next_step: "make keys with `nightlatch key create NAME` and volumes with `nightlatch volume create`",
            });
        }
        if request.allow_shrink {
            let act = format!("shrink volume {label} ({volume}) to {} bytes", request.size_bytes);
            self.require_others(Grave::Overwrite, &act, by)?;
        }
        Ok((volume, node))
    }

    /// The id and node of a volume that is neither being made nor being deleted.
    pub(crate) fn check_live(&self, label: &str) -> Result<(VolumeId, NodeId), KeyholderError> {
        let record = self.registry()?.volume_labelled(label).ok_or_else(|| no_such(label))?;
        if record.life != Life::Live {
            return Err(busy(record));
        }
        Ok((record.volume, record.node))
    }

    /// Whether others have to agree first. A deletion that has begun goes on without asking again.
    pub(crate) fn allow_deletion(&mut self, label: &str, by: &str) -> Result<(), KeyholderError> {
        let record = self.registry()?.volume_labelled(label).ok_or_else(|| no_such(label))?;
        if record.life != Life::Live {
            return Ok(());
        }
        let act = format!("erase volume {label} ({})", record.volume);
        self.require_others(Grave::Erase, &act, by)
    }

    /// First step of a deletion: from now on the volume is never pushed again, durably.
    pub(crate) fn begin_deletion(
        &mut self,
        label: &str,
        by: &str,
    ) -> Result<(VolumeId, NodeId), KeyholderError> {
        let (volume, node) = self.find_volume(label)?;
        let latch = latch_by(LatchCause::Revoked, by);
        self.commit_in(Room::Reserve, |registry| {
            if let Some(record) = registry.volume_mut(volume) {
                record.life = Life::Deleting;
                record.latch = Some(latch);
            }
            Ok(())
        })?;
        let fields = [("by", by.into()), ("label", label.into()), ("volume", volume.to_string().into())];
        self.audit.record("volume-deleting", fields)?;
        Ok((volume, node))
    }

    /// Forgets a volume that its node would not make. One that another request for the same has finished meanwhile stays: what may
    /// have content is erased by a deletion alone.
    pub(crate) fn abandon_volume(&mut self, volume: VolumeId, by: &str) -> Result<(), KeyholderError> {
        match self.registry()?.volume(volume) {
            Some(record) if record.life == Life::Creating => self.erase_volume(volume, by).map(|_| ()),
            Some(_) | None => Ok(()),
        }
    }

    /// Last step: the secret leaves the ledger, and the rest is carried over to a fresh ledger key.
    pub(crate) fn erase_volume(
        &mut self,
        volume: VolumeId,
        by: &str,
    ) -> Result<VolumeErased, KeyholderError> {
        let registry = self.registry()?;
        let Some(record) = registry.volume(volume) else {
            return Err(no_such(&volume.to_string()));
        };
        let label = record.label.clone();
        let shares = |other: &&VolumeRecord| other.volume != volume && other.domain == record.domain;
        let shared_with: Vec<String> =
            registry.volumes.iter().filter(shares).map(|other| other.label.clone()).collect();
        // A backup taken before the secret was made cannot contain it.
        let backups = registry.backup_serial.filter(|serial| *serial >= record.since_serial);
        // A shared store keeps what was written to it in its log and snapshots for a while: that is a backup like any other.
        let backups = self
            .store
            .shared()
            .map(|_| self.opened().map(|open| open.header.serial))
            .transpose()?
            .or(backups);
        let erasure = ErasureRecord {
            volume,
            domain: record.domain,
            label: label.clone(),
            by: by.to_owned(),
            at_unix_s: clock::unix_s(),
            without_since_serial: self.opened()?.header.serial + 1,
            backups_up_to: backups,
            shared_with: shared_with.clone(),
            confirmed: None,
        };
        let domain = record.domain;
        let alone = shared_with.is_empty();
        self.commit_erasure(|registry| {
            registry.volumes.retain(|record| record.volume != volume);
            registry.epoch_reports.retain(|report| report.volume != volume);
            registry.older.retain(|older| !alone || older.domain != domain);
            registry.epochs_began.retain(|(of, _)| !alone || *of != domain);
            registry.erasures.push(erasure);
            Ok(())
        })?;
        self.volumes.remove(&volume);
        self.records.remove(volume);
        let erasure = match (&shared_with[..], backups) {
            ([], None) => Erasure::Complete,
            ([], Some(_)) => Erasure::PendingBackups,
            _ => Erasure::Shared,
        };
        let fields = [
            ("by", by.into()),
            ("label", label.clone().into()),
            ("volume", volume.to_string().into()),
            ("erasure", serde_json::json!(erasure)),
        ];
        // It is done by now: the trail has it, whatever becomes of the record.
        self.audit.record("volume-erased", fields)?;
        self.flush_records()?;
        let destroy_backups_up_to_serial = backups.filter(|_| erasure == Erasure::PendingBackups);
        Ok(VolumeErased { label, volume, erasure, destroy_backups_up_to_serial, shared_with })
    }
}

fn resume(
    existing: &VolumeRecord,
    request: &CreateVolume,
    node: NodeId,
) -> Result<VolumeToCreate, KeyholderError> {
    let same = existing.node == node
        && existing.kind == request.kind
        && existing.on_seal == request.on_seal
        && existing.integrity == request.integrity
        && existing.size.0 == request.size_bytes;
    match existing.life {
        Life::Creating if same => Ok(VolumeToCreate::from(existing)),
        Life::Creating | Life::Deleting => Err(busy(existing)),
        Life::Live => Err(KeyholderError::Exists { what: format!("a volume labelled {}", existing.label) }),
    }
}

fn busy(record: &VolumeRecord) -> KeyholderError {
    let (state, next_step) = match record.life {
        Life::Creating => ("created", "create it again with the same values to finish, or delete it"),
        Life::Deleting => ("deleted", "delete it again to finish"),
        Life::Live => ("used", "try again"),
    };
    KeyholderError::Busy { label: record.label.clone(), state, next_step }
}

/// What the key of a volume that was promised this says.
pub(super) fn integrity_of(promised: VolumeIntegrity) -> Integrity {
    match promised {
        VolumeIntegrity::Tag => Integrity::Tagged,
        VolumeIntegrity::Checksum => Integrity::Checksummed,
    }
}

pub(super) fn no_such(label: &str) -> KeyholderError {
    KeyholderError::NoSuchVolume { label: label.to_owned() }
}

fn check_label(label: &str) -> Result<(), KeyholderError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let valid = label.starts_with(|c: char| c.is_ascii_alphanumeric())
        && label.len() <= LABEL_BYTES_MAX
        && label.chars().all(allowed);
    if valid {
        return Ok(());
    }
    Err(KeyholderError::Invalid {
        what: format!("`{label}` is not a volume label"),
        next_step: "use 1 to 64 letters, digits, `.`, `-` or `_`, starting with a letter or digit",
    })
}

/// A named key is a volume of one sector for objects, which none fits on.
pub(super) fn is_named_key(kind: VolumeKind, size_bytes: u64) -> bool {
    kind == VolumeKind::Objects && size_bytes == lease::limits::NAMED_KEY_BYTES
}

fn check_size(size_bytes: u64) -> Result<(), KeyholderError> {
    if size_bytes > 0 && size_bytes.is_multiple_of(SECTOR_BYTES) && size_bytes <= VOLUME_BYTES_MAX {
        return Ok(());
    }
    Err(KeyholderError::Invalid {
        what: format!("{size_bytes} bytes is not a volume size"),
        next_step: "give a multiple of 4096 bytes, at most 128 TiB",
    })
}

fn random_id() -> Result<[u8; 16], KeyholderError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| {
        KeyholderError::Vault(crate::vault::VaultError::Random(std::io::Error::other(error.to_string())))
    })?;
    Ok(id)
}
