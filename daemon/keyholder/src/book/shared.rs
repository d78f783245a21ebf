//! The book beside a store that other keyholders write to as well: taking in what they wrote, founding the store, and what of it
//! people are shown.

use identity::Role;
use lease::limits::{LEASE_MS_MAX, LEASE_MS_MIN, lease_with_drift_ms};
use lease::message::RevokeCause;
use sha2::{Digest, Sha256};
use units::{GrantId, NodeId, VolumeId};

use super::{Book, Judgement, OpenLedger};
use crate::api::{KeyState, StoreStatus};
use crate::clock;
use crate::cluster::kv::{Item, KvError, Seen};
use crate::cluster::shared::Shared;
use crate::cluster::wire::{self, LeaseValue, LinkValue, Named, StateValue};
use crate::durable;
use crate::error::KeyholderError;
use crate::ledger::{LEDGER_BYTES_MAX, Life, Registry, SealedLedger, VolumeRecord};
use crate::policy::Policy;
use crate::records::{Found, LeaseRecord, NOBODY};
use crate::store::{LEDGER_FILE, StoreError};

/// What a look at the store brought, for those beside the book.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Another keyholder changed the ledger: nodes, latches and volumes may be others.
    pub(crate) ledger: bool,
    /// Pushes that waited for the store may go on.
    pub(crate) may_push: bool,
    /// Keyholders, and who dials which node.
    pub(crate) items: Vec<(Named, Item)>,
}

/// The place of a keyholder's own trail among those that the ledger follows: no node has such an id by chance.
pub(super) fn trail_of_keyholder(name: &str) -> NodeId {
    let digest = Sha256::digest(
        [b"nightlatch/trail/1 ".as_slice(), Role::Keyholder.as_str().as_bytes(), b"/", name.as_bytes()]
            .concat(),
    );
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    NodeId(id)
}

impl Book {
    /// How far this keyholder's own trail had come, by the ledger. Beside others the ledger's own note is of whoever wrote last.
    pub(super) fn known_head(&self, registry: &Registry) -> Option<audit_log::Head> {
        if self.store.shared().is_none() {
            return registry.audit;
        }
        let own = trail_of_keyholder(&self.name);
        let followed = registry.node_trails.iter().find(|(of, _)| *of == own).map(|(_, head)| *head);
        followed.or(registry.audit.filter(|head| head.trail == self.audit.head().trail))
    }

    /// The view of the shared store, where there is one.
    pub(crate) fn shared(&self) -> Option<&Shared> {
        self.store.shared()
    }

    /// Tells the others that this keyholder lives, and whether it has the root.
    pub(crate) fn beat(&mut self) -> Result<(), KeyholderError> {
        let unsealed = self.open.is_some();
        let Some(shared) = self.store.shared_mut() else { return Ok(()) };
        Ok(shared.beat(unsealed)?)
    }

    /// Tells the others that this keyholder is about to forget the root.
    pub(crate) fn say_farewell(&mut self) -> Result<(), KeyholderError> {
        let Some(shared) = self.store.shared_mut() else { return Ok(()) };
        Ok(shared.beat(false)?)
    }

    /// Writes who dials a node, over what was last seen of it.
    pub(crate) fn put_link(&mut self, node: NodeId, link: &LinkValue) -> Result<(), KeyholderError> {
        let Some(shared) = self.store.shared_mut() else { return Ok(()) };
        Ok(shared.put_link(node, link)?)
    }

    /// The store did not answer.
    pub(crate) fn note_store_away(&mut self, error: &KvError) {
        if let Some(shared) = self.store.shared_mut() {
            if shared.away_reason().is_none() {
                tracing::warn!(%error, "the store that keyholders share is away; keys in force are renewed as far as is recorded");
            }
            shared.note_away(error);
        }
    }

    /// Looks at the store now.
    pub(crate) fn look_at_store(&mut self) -> Result<(), KeyholderError> {
        let Some(shared) = self.store.shared() else { return Ok(()) };
        let (kv, since) = shared.to_read();
        match kv.read(since) {
            Ok(seen) => self.take_in(since, seen),
            Err(error) => {
                self.note_store_away(&error);
                Err(StoreError::Away { why: error.to_string() }.into())
            }
        }
    }

    /// What looks at the store have brought since this was asked last: a look that failed half way, or that somebody took who only
    /// wanted to write, has seen what no later one shows.
    pub(crate) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// Takes in what a look at the store found.
    pub(crate) fn take_in(&mut self, since: u64, seen: Seen) -> Result<(), KeyholderError> {
        let Some(shared) = self.store.shared_mut() else { return Ok(()) };
        let was_joined = shared.is_joined();
        let fresh = shared.take_in(since, seen)?;
        if shared.is_joined() && !was_joined {
            // What this keyholder knew by its own file is what it was before there was a store.
            self.records.clear();
            self.records_found = Found::Intact;
        }
        let is_any_gone = !fresh.gone.is_empty();
        for named in fresh.gone {
            match named {
                Named::Lease(volume) => self.records.remove(volume),
                Named::State(pool) => self.records.remove_state(pool),
                _ => {}
            }
        }
        for (named, item) in fresh.items {
            match named {
                Named::Lease(volume) => self.observe_lease(volume, &item.value),
                Named::State(_) => self.observe_state(&item.value),
                named => self.news.items.push((named, item)),
            }
        }
        let mut is_other_ledger = false;
        if let Some(bytes) = fresh.ledger {
            is_other_ledger = self.follow_or_distrust(&bytes)?;
            self.news.ledger |= is_other_ledger;
        }
        let joined = self.store.shared().is_some_and(Shared::is_joined);
        if joined && (is_other_ledger || is_any_gone || !was_joined) {
            self.account_for_missing()?;
        }
        if joined {
            self.flush_records()?;
        } else {
            self.found_store()?;
        }
        if self.pushes_wait_for_store && self.store.may_grant().is_ok() {
            self.pushes_wait_for_store = false;
            self.news.may_push = true;
        }
        Ok(())
    }

    /// Whoever cannot follow a ledger does not know of the latches in it, and would write over it: it is as good as a wrong one.
    fn follow_or_distrust(&mut self, bytes: &[u8]) -> Result<bool, KeyholderError> {
        let followed = self.follow_ledger(bytes);
        if let Err(error) = &followed
            && let Some(shared) = self.store.shared_mut()
            && shared.distrust_reason().is_none()
        {
            return Err(shared.distrust(format!("its ledger cannot be followed: {error}")).into());
        }
        followed
    }

    /// A record that does not read may be one of a lease that runs.
    fn observe_lease(&mut self, volume: VolumeId, value: &[u8]) {
        let longest_ms = self.open.as_ref().map_or(0, |open| open.registry.longest_lease_ms);
        let value = wire::decode::<LeaseValue>(value).unwrap_or_else(|wire::Unreadable| {
            tracing::error!(%volume, "a lease record in the shared store does not read; the longest lease is waited for");
            let lost = self.records.of(volume);
            LeaseValue {
                node: NOBODY,
                grant: GrantId([0; 16]),
                fence: lost.map_or_else(Default::default, |record| record.fence),
                lease_ms: longest_ms.max(LEASE_MS_MIN),
                left_ms: Some(if longest_ms == 0 { LEASE_MS_MAX } else { longest_ms }),
                pool: lost.and_then(|record| record.pool),
                by: String::new(),
            }
        });
        let record = self.records.observe(volume, &value, clock::now());
        if let Some(shared) = self.store.shared_mut() {
            shared.stored_mut().records.insert(volume, record);
        }
    }

    fn observe_state(&mut self, value: &[u8]) {
        let Ok(state) = wire::decode::<StateValue>(value) else {
            return tracing::error!("a pool's state in the shared store does not read");
        };
        self.records.observe_state(state);
        if let Some(shared) = self.store.shared_mut() {
            shared.stored_mut().states.insert(state.pool, state);
        }
    }

    /// Goes on from the ledger that another keyholder wrote. Returns whether it is another than the one known.
    fn follow_ledger(&mut self, bytes: &[u8]) -> Result<bool, KeyholderError> {
        let distrust = |book: &mut Self, why: String| match book.store.shared_mut() {
            Some(shared) => shared.distrust(why).into(),
            None => KeyholderError::NoLedger,
        };
        let sealed = match SealedLedger::decode(bytes) {
            Ok(sealed) => sealed,
            Err(error) => return Err(distrust(self, format!("its ledger does not read: {error}"))),
        };
        if let Some(known) = self.header() {
            let (had, has) = (known.serial, sealed.header.serial);
            if known.grant_signing_key != sealed.header.grant_signing_key {
                return Err(distrust(self, "its ledger is of another root".to_owned()));
            }
            if has < had {
                let why = format!("its ledger has serial {has}, and {had} was seen before: it was set back");
                return Err(distrust(self, why));
            }
            if has == had {
                if self.sealed.as_ref() == Some(&sealed) {
                    return Ok(false);
                }
                return Err(distrust(
                    self,
                    format!("its ledger with serial {has} is another one than was seen"),
                ));
            }
        }
        if self.open.is_some() {
            let registry = match sealed.open(&self.vault) {
                Ok(registry) => registry,
                Err(error) => return Err(distrust(self, format!("its ledger does not open: {error}"))),
            };
            self.go_on_from(&sealed, registry)?;
        }
        if let Some(shared) = self.store.shared() {
            shared.keep_copy(bytes)?;
        }
        let serial = sealed.header.serial;
        self.sealed = Some(sealed);
        self.audit.append("ledger-followed", [("serial", serial.into())])?;
        Ok(true)
    }

    fn go_on_from(&mut self, sealed: &SealedLedger, mut registry: Registry) -> Result<(), KeyholderError> {
        self.policy = match &registry.policy {
            Some(record) => Policy::parse(&record.text)?,
            None => Policy::default(),
        };
        if self.latches_unwritten
            && let Some(open) = &self.open
        {
            keep_latches(&open.registry, &mut registry);
        }
        for (of, head) in &registry.node_trails {
            let known = self.node_trails.entry(*of).or_insert(*head);
            if known.trail != head.trail || known.seq < head.seq {
                *known = *head;
            }
        }
        self.open = Some(OpenLedger { header: sealed.header.clone(), registry });
        Ok(())
    }

    /// A volume that was granted before and has no record of it: somebody took that out of the store, and the longest lease is waited for.
    pub(super) fn account_for_missing(&mut self) -> Result<(), KeyholderError> {
        if !self.store.shared().is_some_and(Shared::is_joined) {
            return Ok(());
        }
        let Some(open) = &self.open else { return Ok(()) };
        let longest_ms = lease_with_drift_ms(open.registry.longest_lease_ms);
        let expires = Some(clock::now().saturating_add_ms(longest_ms));
        let is_missing =
            |volume: &&VolumeRecord| volume.fence_floor.0 > 0 && self.records.of(volume.volume).is_none();
        let missing: Vec<_> = open
            .registry
            .volumes
            .iter()
            .filter(is_missing)
            .map(|volume| (volume.volume, volume.fence_floor))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        tracing::error!(
            volumes = missing.len(),
            "lease records are missing from the shared store; the longest lease is waited for"
        );
        let lease_ms = open.registry.longest_lease_ms;
        for (volume, fence) in &missing {
            let grant = GrantId([0; 16]);
            let record = LeaseRecord {
                node: NOBODY,
                grant,
                fence: *fence,
                lease_ms,
                expires,
                pool: None,
                given: None,
                seen: None,
            };
            self.records.note(*volume, record);
        }
        self.audit.record("lease-records-missing", [("volumes", missing.len().into())])?;
        self.flush_records()
    }

    /// Brings an empty shared store its first ledger: that of this keyholder, once it has the root. Returns whether it did.
    pub(super) fn found_store(&mut self) -> Result<bool, KeyholderError> {
        if self.open.is_none() || !self.store.shared().is_some_and(Shared::is_empty) {
            return Ok(false);
        }
        let registry = self.registry()?.clone();
        let header = self.opened()?.header.clone();
        self.account_for_lost(&header, &registry)?;
        let ledger =
            durable::read(&self.dir.file(LEDGER_FILE), LEDGER_BYTES_MAX)?.ok_or(KeyholderError::NoLedger)?;
        let Some(shared) = self.store.shared_mut() else { return Ok(false) };
        shared.found(&ledger, self.records.body())?;
        self.records_found = Found::Intact;
        let serial = self.opened()?.header.serial;
        tracing::info!(serial, "the shared store has its first ledger");
        self.audit.record("store-founded", [("serial", serial.into())])?;
        Ok(true)
    }

    /// How the store stands, for people.
    pub(crate) fn store_status(&self) -> Option<StoreStatus> {
        let shared = self.store.shared()?;
        Some(match (shared.distrust_reason(), shared.away_reason()) {
            (Some(why), _) => StoreStatus::Distrusted { why: why.to_owned() },
            (None, Some(why)) => StoreStatus::Away { why: why.to_owned() },
            (None, None) => StoreStatus::Reachable,
        })
    }

    /// What of a node's keys has to be taken back by what the ledger says now, after another keyholder changed it.
    pub(crate) fn latched_since(&self, node: NodeId) -> Judgement {
        let nothing = Judgement::Serve { revoke: Vec::new() };
        let Ok(registry) = self.registry() else { return nothing };
        let may_hold = |volume: &&VolumeRecord| {
            self.volumes.get(&volume.volume).and_then(|now| now.key) != Some(KeyState::Sealed)
        };
        let held: Vec<&VolumeRecord> = registry.volumes_of(node).filter(may_hold).collect();
        if held.is_empty() {
            return nothing;
        }
        if registry.lockdown.is_some() {
            return Judgement::RevokeAll(RevokeCause::Lockdown);
        }
        if registry.node(node).is_none_or(|record| record.latch.is_some()) {
            return Judgement::RevokeAll(RevokeCause::Revoked);
        }
        let cause = |volume: &VolumeRecord| match volume.life {
            Life::Deleting => RevokeCause::Deleted,
            Life::Creating | Life::Live => RevokeCause::Revoked,
        };
        let latched = held.into_iter().filter(|volume| volume.latch.is_some());
        Judgement::Serve { revoke: latched.map(|volume| (volume.volume, cause(volume))).collect() }
    }
}

/// What was latched here and is not in any ledger yet stays latched.
fn keep_latches(here: &Registry, registry: &mut Registry) {
    if registry.lockdown.is_none() {
        registry.lockdown = here.lockdown.clone();
    }
    for node in &mut registry.nodes {
        if node.latch.is_none() {
            node.latch = here.node(node.node).and_then(|known| known.latch.clone());
        }
    }
    for volume in &mut registry.volumes {
        if volume.latch.is_none() {
            volume.latch = here.volume(volume.volume).and_then(|known| known.latch.clone());
        }
    }
}
