//! What the keyholder knows, and the rules by which it changes: nodes, volumes, grants, latches.
//!
//! Invariants:
//! - A change is on disk before it is in force: the ledger before a volume exists, the lease record before a grant leaves.
//!   Latches are the one exception: they are in force at once, then written, then confirmed.
//! - Nothing is granted to a node that is not approved, to anything latched, during a lockdown, or while the record of
//!   earlier leases is lost and the longest of them may still run.
//! - Everything that a person does, every grant, refusal and receipt is in the audit trail.
//!
//! Synchronous and without sockets; callers hold its mutex and run it where blocking is allowed.

mod approvals;
mod erasures;
mod joins;
mod leases;
mod machines;
mod nodes;
mod people;
mod refusals;
mod rotation;
mod rules;
mod shared;
pub(crate) mod suspicions;
#[cfg(test)]
mod tests;
mod tokens;
mod volumes;

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use lease::envelope::PublicEnvelopeKey;
use lease::message::{StateVerdict, VolumePresent, WipeRecord};
use locked_memory::MemoryKind;
use units::{BootId, BootInstant, GrantId, NodeId, RootEpoch, VolumeEpoch, VolumeId};

pub(crate) use self::approvals::Grave;
pub(crate) use self::leases::{Judgement, PlannedGrant};
pub(crate) use self::nodes::NodeTarget;
pub(crate) use self::people::{PersonRecord, who};
pub(crate) use self::rotation::PlannedEpoch;
pub(crate) use self::shared::News;
pub(crate) use self::tokens::TokenRecord;
use crate::api::{
    BreakGlass, CeremonyRequest, CeremonyResult, Connection, Drill, DrillReport, KeyState, KeyholderStatus,
    Latch, LedgerBackup, SealState, ShareCount, UnsealProgress,
};
use crate::attest::{Proven, Unproven};
use crate::audit::Audit;
use crate::clock;
use crate::cluster::shared::{Access, Shared};
use crate::drill;
use crate::durable::{self, OldContent, StateDir};
use crate::error::KeyholderError;
use crate::heads::NodeTrailError;
use crate::ledger::{
    self, Header, LEDGER_BYTES_MAX, LatchCause, LatchRecord, Registry, SealedLedger, VolumeRecord,
};
use crate::policy::{CameBack, Policy};
use crate::records::{Body, Found, LeaseRecord, LeaseRecords, NOBODY};
use crate::shares::Share;
use crate::store::{Files, LEASES_FILE, LEDGER_FILE, RESERVE_BYTES, Room, Store};
use crate::vault::{Gathered, Key, Vault};

/// A person's approval of a push is good for so long. Longer, and it would be forgotten that it was given.
const APPROVAL_MS: u64 = 10 * 60 * 1_000;

/// What is known of a node beyond the ledger; gone at a restart.
#[derive(Debug)]
struct NodeNow {
    connection: Connection,
    last_error: Option<String>,
    /// The identity key that it claims, where none is pinned.
    claimed: Option<[u8; 32]>,
    boot: Option<BootId>,
    last_wipe: Option<WipeRecord>,
    hygiene: Option<serde_json::Value>,
    /// Volumes that it reported, by its latest evidence.
    present: BTreeMap<VolumeId, VolumePresent>,
    /// What of other nodes' volumes is among those is in the ledger.
    copies_noted: bool,
    /// When it last proved, signed, that it holds nothing.
    empty_since: Option<BootInstant>,
    /// Wipes of everything that it told of since its machine was started, the last ones.
    told_wipes: Vec<WipeRecord>,
    /// How it came to be without a key.
    came_back: CameBack,
    /// What its TPM proved in its latest session.
    proof: Result<Proven, Unproven>,
    /// Its leases ended without a word of it, and that has been said.
    lost: bool,
}

impl Default for NodeNow {
    fn default() -> Self {
        Self {
            connection: Connection::Dialling,
            last_error: None,
            claimed: None,
            boot: None,
            last_wipe: None,
            hygiene: None,
            present: BTreeMap::new(),
            copies_noted: false,
            empty_since: None,
            told_wipes: Vec::new(),
            came_back: CameBack::default(),
            proof: Err(Unproven::NoTpm),
            lost: false,
        }
    }
}

/// What is known of a volume's key beyond the ledger and the lease records.
#[derive(Debug, Default)]
struct VolumeNow {
    key: Option<KeyState>,
    grant: Option<GrantId>,
    reason: Option<String>,
    /// A person approved a push until then.
    approved_until: Option<BootInstant>,
    /// Pushes in a row that were refused for a passing reason.
    attempts: u32,
    /// A person takes whatever state its pool is in.
    accepts_state: bool,
    /// How the node found its pool when it refused a key for that.
    found: Option<StateVerdict>,
    /// The policy keeps the key back at the moment.
    by_policy: bool,
    /// What its node writes it under, by the node's latest word.
    written: Option<VolumeEpoch>,
    /// A new epoch that the node was given in this session, and when.
    epoch_offered: Option<(VolumeEpoch, BootInstant)>,
    /// Why it did not take it.
    epoch_refused: Option<String>,
    /// Its key has encrypted so much that a new one is due.
    key_is_due: bool,
}

#[derive(Debug)]
struct OpenLedger {
    header: Header,
    registry: Registry,
}

/// What the configuration says of leases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseBounds {
    /// Of nodes that are added without one.
    pub(crate) default_ms: u64,
    /// Of any node.
    pub(crate) max_ms: u64,
}

/// Everything that the keyholder knows.
#[derive(Debug)]
pub(crate) struct Book {
    name: String,
    dir: StateDir,
    store: Store,
    vault: Arc<Vault>,
    sealed: Option<SealedLedger>,
    open: Option<OpenLedger>,
    records: LeaseRecords,
    records_found: Found,
    /// Nothing is granted before.
    wait_until: Option<BootInstant>,
    /// Something was latched that no ledger has yet: one of another keyholder does not lift it.
    latches_unwritten: bool,
    /// Something would have been granted had the shared store been there.
    pushes_wait_for_store: bool,
    /// What looks at the shared store have brought, and nobody has acted on yet.
    news: News,
    nodes: BTreeMap<NodeId, NodeNow>,
    volumes: BTreeMap<VolumeId, VolumeNow>,
    lease_bounds: LeaseBounds,
    last_drill: Option<Drill>,
    pub(crate) audit: Audit,
    refusals: audit_log::Refusals,
    policy: Policy,
    unseals: rules::Unseals,
    people: people::People,
    joins: joins::Joins,
    retiring: rotation::Retiring,
    approvals: Vec<approvals::Request>,
    last_break_glass: Option<BreakGlass>,
    /// How far each node's own trail had come when it was last followed.
    pub(crate) node_trails: BTreeMap<NodeId, audit_log::Head>,
    /// What of a node's trail was found broken, and has been said.
    pub(crate) node_trails_broken: BTreeMap<NodeId, std::mem::Discriminant<NodeTrailError>>,
    /// How often in a row a node's trail could not be had in a session with it.
    pub(crate) node_trails_missed: BTreeMap<NodeId, u32>,
}

impl Book {
    /// Reads what is in the state directory. The vault is empty. With `access` ledger and lease records are in a store that several
    /// keyholders share; it is not asked yet.
    pub(crate) fn open(
        name: String,
        dir: StateDir,
        vault: Arc<Vault>,
        lease_bounds: LeaseBounds,
        access: Option<Access>,
    ) -> Result<Self, KeyholderError> {
        let boot = clock::boot_id().map_err(|source| KeyholderError::System { what: "boot id", source })?;
        durable::discard_unfinished(&dir.file(LEDGER_FILE))?;
        let sealed = match durable::read(&dir.file(LEDGER_FILE), LEDGER_BYTES_MAX)? {
            Some(bytes) => Some(SealedLedger::decode(&bytes)?),
            None => None,
        };
        let store = match access {
            Some(access) => {
                Store::Shared(Box::new(Shared::open(access, &name, dir.path(), Body::empty(boot))?))
            }
            None => Store::Files(Files::new(dir.path())),
        };
        let (records, records_found) = match store.shared() {
            Some(shared) if shared.has_mark() => {
                // Of before there was a store, where an earlier program left it.
                durable::remove(&dir.file(LEASES_FILE))?;
                (LeaseRecords::empty(boot), Found::Intact)
            }
            _ => LeaseRecords::load(&dir.file(LEASES_FILE), boot, clock::now())?,
        };
        let (audit, found) = Audit::open(dir.path(), &vault, boot)?;
        if let Some(broken) = found.broken {
            tracing::error!("{broken}; keep a copy of the audit trail and find out who changed it");
        }
        let last_drill = drill::load(&dir.file(drill::FILE))?;
        let head = audit.head();
        tracing::info!(audit = %head.hash, seq = head.seq, "state directory opened");
        Ok(Self {
            name,
            dir,
            store,
            vault,
            sealed,
            open: None,
            records,
            records_found,
            wait_until: None,
            latches_unwritten: false,
            pushes_wait_for_store: false,
            news: News::default(),
            nodes: BTreeMap::new(),
            volumes: BTreeMap::new(),
            lease_bounds,
            last_drill,
            audit,
            refusals: audit_log::Refusals::default(),
            policy: Policy::default(),
            unseals: rules::Unseals::default(),
            people: people::People::default(),
            joins: joins::Joins::default(),
            retiring: rotation::Retiring::default(),
            approvals: Vec::new(),
            last_break_glass: None,
            node_trails: BTreeMap::new(),
            node_trails_broken: BTreeMap::new(),
            node_trails_missed: BTreeMap::new(),
        })
    }

    /// What the keyholder can do.
    pub(crate) fn state(&self) -> SealState {
        match (&self.open, &self.sealed) {
            (Some(_), _) => SealState::Unsealed,
            (None, Some(_)) => SealState::Sealed,
            (None, None) => SealState::Empty,
        }
    }

    /// Everything that is not secret.
    pub(crate) fn status(&self) -> KeyholderStatus {
        let now = clock::now();
        let header = self.header();
        let open = self.open.as_ref();
        KeyholderStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.name.clone(),
            state: self.state(),
            shares: header.map(|header| self.share_count(header.share_set.threshold)),
            share_set: header.map(|header| header.share_set.clone()),
            grant_signing_key: header.map(|header| hex::encode(header.grant_signing_key)),
            key_memory: memory_name(self.vault.memory()).to_owned(),
            ledger_serial: header.map(|header| header.serial),
            backup_serial: open.and_then(|open| open.registry.backup_serial),
            last_drill: self.last_drill.clone(),
            lockdown: open.and_then(|open| open.registry.lockdown.as_ref()).map(latch_entry),
            policy_serial: open.and_then(|open| open.registry.policy.as_ref()).map(|policy| policy.serial),
            approvals_wanted: self.approvals.len(),
            last_break_glass: self.last_break_glass.clone(),
            grants_wait_ms: self.wait_until.map(|until| until.ms_since(now)).filter(|ms| *ms > 0),
            nodes: self.node_entries(),
            volumes: self.volume_entries(),
            cluster: None,
        }
    }

    fn header(&self) -> Option<&Header> {
        self.open.as_ref().map(|open| &open.header).or(self.sealed.as_ref().map(|sealed| &sealed.header))
    }

    /// Which root the grant-signing key comes from.
    pub(crate) fn root_epoch(&self) -> RootEpoch {
        self.header().map(|header| header.share_set.root_epoch).unwrap_or_default()
    }

    fn share_count(&self, need: u8) -> ShareCount {
        match self.vault.gathered() {
            Gathered::Root => ShareCount { have: need, need },
            Gathered::Waiting { have, .. } => ShareCount { have, need },
        }
    }

    /// Makes a root, its shares and an empty ledger. Can be repeated while nothing is in it, for shares that got lost on their way.
    pub(crate) fn ceremony(
        &mut self,
        request: &CeremonyRequest,
        by: &str,
    ) -> Result<CeremonyResult, KeyholderError> {
        match (&self.open, &self.sealed) {
            (Some(open), _) if open.registry.is_blank() => {}
            (None, None) => {}
            _ => return Err(KeyholderError::LedgerExists),
        }
        let mut officers = Vec::with_capacity(request.officers.len());
        for officer in &request.officers {
            officers.push((officer.name.clone(), public_key(&officer.name, &officer.public_key)?));
        }
        self.vault.wipe();
        self.open = None;
        let begun = self.begin_ledger(request.threshold, &officers);
        let begun = begun.and_then(|result| self.audit.certify(&self.vault).map(|()| result));
        let begun = begun.and_then(|result| self.found_store().map(|_| result));
        let result = begun.inspect_err(|_| {
            self.vault.wipe();
            self.open = None;
        })?;
        let set = result.share_set.set.to_string();
        let named = officers.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let fields = [
            ("by", by.into()),
            ("set", set.into()),
            ("threshold", request.threshold.into()),
            ("officers", named.into()),
        ];
        self.audit.record("ceremony", fields)?;
        Ok(result)
    }

    fn begin_ledger(
        &mut self,
        threshold: u8,
        officers: &[(String, PublicEnvelopeKey)],
    ) -> Result<CeremonyResult, KeyholderError> {
        let (share_set, shares) = self.vault.ceremony(threshold, officers)?;
        let grant_signing_key = self.vault.signing_public_key()?;
        let ledger_key = self.vault.next_ledger_key(share_set.set)?;
        let before = self.store.shared().and_then(|_| self.header()).map_or(0, |header| header.serial);
        let header =
            Header { serial: before + 1, share_set: share_set.clone(), grant_signing_key, ledger_key };
        let registry = Registry::default();
        let bytes = ledger::encode(&self.vault, Key::Next, &header, &registry)?;
        // The records first: a ledger without them would make its keyholder wait for leases that never were.
        self.records.forget(&mut self.store)?;
        self.records_found = Found::Intact;
        self.store.put_first_ledger(&bytes)?;
        self.vault.adopt_ledger_key()?;
        self.sealed = Some(SealedLedger::decode(&bytes)?);
        self.open = Some(OpenLedger { header, registry });
        Ok(CeremonyResult { share_set, grant_signing_key: hex::encode(grant_signing_key), shares })
    }

    /// Takes one officer's share; with the last one needed the ledger is opened.
    pub(crate) fn submit_share(&mut self, share: &Share, by: &str) -> Result<UnsealProgress, KeyholderError> {
        let sealed = self.sealed.as_ref().ok_or(KeyholderError::NoLedger)?;
        let set = sealed.header.share_set.clone();
        let gathered = match self.vault.submit(&set, share) {
            Ok(gathered) => gathered,
            Err(error) => {
                let fields =
                    [("by", by.into()), ("index", share.index.into()), ("why", error.to_string().into())];
                self.audit.record("share-refused", fields)?;
                return Err(error.into());
            }
        };
        self.audit.record("share-submitted", [("by", by.into()), ("index", share.index.into())])?;
        if gathered == Gathered::Root {
            self.unseal_or_forget(by)?;
        }
        Ok(UnsealProgress { state: self.state(), shares: self.share_count(set.threshold) })
    }

    /// Half open is sealed: the root goes, and can be given again.
    fn unseal_or_forget(&mut self, by: &str) -> Result<(), KeyholderError> {
        self.unseal(by).inspect_err(|_| {
            self.vault.wipe();
            self.open = None;
        })
    }

    fn unseal(&mut self, by: &str) -> Result<(), KeyholderError> {
        let sealed = self.sealed.as_ref().ok_or(KeyholderError::NoLedger)?;
        let registry = sealed.open(&self.vault)?;
        let header = sealed.header.clone();
        // Of a store that has not been heard yet nothing is known, and nothing is granted by it.
        if self.store.shared().is_none() {
            self.account_for_lost(&header, &registry)?;
        }
        let known = self.known_head(&registry);
        // It was checked before it was written; a program that reads less of it than the one that wrote it says so and stays sealed.
        self.policy = match &registry.policy {
            Some(record) => Policy::parse(&record.text)?,
            None => Policy::default(),
        };
        self.node_trails = registry.node_trails.iter().copied().collect();
        self.open = Some(OpenLedger { header, registry });
        self.audit.certify(&self.vault)?;
        self.audit.record("unsealed", [("by", by.into())])?;
        self.account_for_missing()?;
        self.check_trail(known)
    }

    /// Where the lease records are lost, nothing is granted before the longest lease is over.
    fn account_for_lost(&mut self, header: &Header, registry: &Registry) -> Result<(), KeyholderError> {
        let lease_ms = self.longest_lease_ms(header, registry);
        if self.records_found != Found::Lost || lease_ms == 0 {
            return Ok(());
        }
        let longest_ms = lease::limits::lease_with_drift_ms(lease_ms);
        let until = clock::now().saturating_add_ms(longest_ms);
        self.assume_leased(registry, lease_ms, until)?;
        self.wait_until = Some(until);
        tracing::warn!(
            longest_ms,
            "the record of earlier leases is lost: nothing is granted before they are over"
        );
        self.audit.record("lease-records-lost", [("wait_ms", longest_ms.into())])?;
        Ok(())
    }

    /// The longest lease that may be running. A ledger that is as it was backed up may have had a successor, which gave a node what it
    /// liked, up to what this installation allows.
    fn longest_lease_ms(&self, header: &Header, registry: &Registry) -> u64 {
        let is_backup = registry.backup_serial == Some(header.serial);
        let of_successor = if is_backup { self.lease_bounds.max_ms } else { 0 };
        registry.longest_lease_ms.max(of_successor)
    }

    /// Writes down that somebody may hold every key until then: whatever is written next must not look like a whole record, and
    /// a restart must not forget that it has to wait.
    fn assume_leased(
        &mut self,
        registry: &Registry,
        lease_ms: u64,
        until: BootInstant,
    ) -> Result<(), KeyholderError> {
        let assumed = |volume: &VolumeRecord| LeaseRecord {
            node: NOBODY,
            grant: GrantId([0; 16]),
            fence: volume.fence_floor,
            lease_ms,
            expires: Some(until),
            pool: None,
            given: None,
            seen: None,
        };
        self.records.assume(&mut self.store, |records| {
            records.extend(registry.volumes.iter().map(|volume| (volume.volume, assumed(volume))));
        })?;
        self.records_found = Found::Intact;
        Ok(())
    }

    /// The ledger, which nobody changes without the root, remembers how far the trail had come.
    fn check_trail(&mut self, known: Option<audit_log::Head>) -> Result<(), KeyholderError> {
        let Some(known) = known else { return Ok(()) };
        if self.audit.passes_through(known)? {
            return Ok(());
        }
        let found = self.audit.head();
        let fields = [
            ("known_trail", known.trail.to_string().into()),
            ("known_seq", known.seq.into()),
            ("known_hash", known.hash.to_string().into()),
        ];
        // On another machine, or after the loss of this one's disk: nothing has changed the ledger since it came from a backup.
        let OpenLedger { header, registry } = self.opened()?;
        let is_backup = registry.backup_serial == Some(header.serial);
        if known.trail != found.trail && is_backup && self.audit.says_restored(header.serial)? {
            tracing::info!(
                known = known.seq,
                "the audit trail begins anew with the ledger that was restored"
            );
            self.audit.record("audit-begun-anew", fields)?;
            return Ok(());
        }
        tracing::error!(
            known = known.seq,
            found = found.seq,
            "the audit trail is not the one that the ledger remembers: its end was cut off, or it was exchanged; keep a copy"
        );
        self.audit.record("audit-truncated", fields)?;
        Ok(())
    }

    /// Forgets the root and all that was decrypted with it.
    pub(crate) fn seal(&mut self) {
        self.vault.wipe();
        self.open = None;
        self.nodes.clear();
        self.volumes.clear();
        self.people = people::People::default();
        self.joins = joins::Joins::default();
        self.approvals.clear();
        self.latches_unwritten = false;
        if let Err(error) = self.audit.record("stop", []) {
            tracing::error!(%error, "the audit trail lacks this stop");
        }
    }

    /// The ledger file as it is, after noting in it that it was backed up.
    pub(crate) fn backup(&mut self, by: &str) -> Result<LedgerBackup, KeyholderError> {
        let serial = self.opened()?.header.serial + 1;
        self.commit(|registry| {
            registry.backup_serial = Some(serial);
            Ok(())
        })?;
        self.audit.record("ledger-backup", [("by", by.into()), ("serial", serial.into())])?;
        let bytes =
            durable::read(&self.dir.file(LEDGER_FILE), LEDGER_BYTES_MAX)?.ok_or(KeyholderError::NoLedger)?;
        let root_epoch = self.opened()?.header.share_set.root_epoch;
        Ok(LedgerBackup { serial, root_epoch, ledger: BASE64.encode(bytes) })
    }

    /// Puts a backup into an empty keyholder. The officers' shares open it.
    pub(crate) fn restore(&mut self, backup: &LedgerBackup, by: &str) -> Result<(), KeyholderError> {
        if self.state() != SealState::Empty {
            return Err(KeyholderError::LedgerExists);
        }
        let bytes = BASE64.decode(&backup.ledger).map_err(|_| KeyholderError::Invalid {
            what: "the ledger backup is not base64".to_owned(),
            next_step: "send the file that `nightlatch key backup` wrote",
        })?;
        check_ledger_size(&bytes, Room::Reserve)?;
        let sealed = SealedLedger::decode(&bytes)?;
        // The records first: those that are here are of another ledger and know nothing of this one's leases.
        self.records.lose(&mut self.store)?;
        self.records_found = Found::Lost;
        // Beside a shared store it waits here for the shares, and becomes that store's with the first of its records.
        durable::replace(&self.dir.file(LEDGER_FILE), &bytes, OldContent::Leave)?;
        let serial = sealed.header.serial;
        self.sealed = Some(sealed);
        self.audit.record("ledger-restored", [("by", by.into()), ("serial", serial.into())])?;
        Ok(())
    }

    /// Notes the outcome of a drill: in the trail for good, in status until the next.
    pub(crate) fn note_drill(&mut self, report: &DrillReport, by: &str) -> Result<(), KeyholderError> {
        self.registry()?;
        drill::check(report)?;
        let at_unix_s = clock::unix_s();
        let drill = Drill { at_unix_s, by: by.to_owned(), passed: report.passed(), report: report.clone() };
        let volumes = serde_json::json!(report.volumes);
        let fields = [
            ("by", by.into()),
            ("node", report.node.as_str().into()),
            ("serial", report.ledger_serial.into()),
            ("passed", drill.passed.into()),
            ("volumes", volumes),
        ];
        self.audit.record("drill", fields)?;
        drill::save(&self.dir.file(drill::FILE), &drill)?;
        self.last_drill = Some(drill);
        Ok(())
    }

    fn opened(&self) -> Result<&OpenLedger, KeyholderError> {
        if let Some(open) = &self.open {
            return Ok(open);
        }
        let Some(sealed) = &self.sealed else { return Err(KeyholderError::NoLedger) };
        let count = self.share_count(sealed.header.share_set.threshold);
        let missing = count.need.saturating_sub(count.have);
        Err(crate::vault::VaultError::Sealed { missing }.into())
    }

    pub(crate) fn registry(&self) -> Result<&Registry, KeyholderError> {
        self.opened().map(|open| &open.registry)
    }

    /// Changes the registry and makes it durable. On an error nothing has changed in memory.
    fn commit<T>(
        &mut self,
        change: impl FnOnce(&mut Registry) -> Result<T, KeyholderError>,
    ) -> Result<T, KeyholderError> {
        self.commit_in(Room::Ordinary, change)
    }

    /// As [`Self::commit`]. What takes keys away, or makes room, finds room where there is none for anything else.
    fn commit_in<T>(
        &mut self,
        room: Room,
        change: impl FnOnce(&mut Registry) -> Result<T, KeyholderError>,
    ) -> Result<T, KeyholderError> {
        // The ledger remembers how far the trail has come: a crash may not leave it more of that than there is.
        self.audit.sync()?;
        let open = self.opened()?;
        let mut registry = open.registry.clone();
        let made = change(&mut registry)?;
        self.note_trails(&mut registry);
        self.raise_fence_floors(&mut registry);
        let header = Header { serial: open.header.serial + 1, ..open.header.clone() };
        let bytes = ledger::encode(&self.vault, Key::Current, &header, &registry)?;
        self.write_ledger(&bytes, header, registry, room)?;
        Ok(made)
    }

    /// Changes the registry and carries what is left over to a fresh ledger key, so that what was removed cannot be
    /// decrypted from the file any more.
    fn commit_erasure(
        &mut self,
        change: impl FnOnce(&mut Registry) -> Result<(), KeyholderError>,
    ) -> Result<(), KeyholderError> {
        self.audit.sync()?;
        let open = self.opened()?;
        let mut registry = open.registry.clone();
        change(&mut registry)?;
        self.note_trails(&mut registry);
        self.raise_fence_floors(&mut registry);
        let ledger_key = self.vault.next_ledger_key(open.header.share_set.set)?;
        for volume in &mut registry.volumes {
            volume.secret = self.vault.rewrap(volume.secret_of(), &volume.secret)?;
        }
        for older in &mut registry.older {
            older.secret = self.vault.rewrap(older.secret_of(), &older.secret)?;
        }
        for person in &mut registry.people {
            person.secret = self.vault.rewrap_person(&person.who, &person.secret)?;
        }
        let header = Header { serial: open.header.serial + 1, ledger_key, ..open.header.clone() };
        let bytes = ledger::encode(&self.vault, Key::Next, &header, &registry)?;
        self.write_ledger(&bytes, header, registry, Room::Reserve)?;
        // Only now: had the write failed, the old key would still be the one that opens the file.
        self.vault.adopt_ledger_key()?;
        if let Err(error) = self.store.forget_history() {
            // What it kept counts as a backup, with or without this.
            tracing::warn!(%error, "the store's own history still has the ledger from before the erasure");
        }
        Ok(())
    }

    fn write_ledger(
        &mut self,
        bytes: &[u8],
        header: Header,
        registry: Registry,
        room: Room,
    ) -> Result<(), KeyholderError> {
        let grows = self.sealed.as_ref().is_none_or(|before| before.file_bytes() < bytes.len());
        let room = if grows { room } else { Room::Reserve };
        check_ledger_size(bytes, room)?;
        let sealed = SealedLedger::decode(bytes)?;
        self.store.put_ledger(bytes, room)?;
        self.sealed = Some(sealed);
        self.open = Some(OpenLedger { header, registry });
        self.latches_unwritten = false;
        Ok(())
    }

    fn note_trails(&self, registry: &mut Registry) {
        registry.audit = Some(self.audit.head());
        registry.node_trails = self.node_trails.iter().map(|(node, head)| (*node, *head)).collect();
        if self.store.shared().is_some() {
            let own = shared::trail_of_keyholder(&self.name);
            registry.node_trails.retain(|(of, _)| *of != own);
            registry.node_trails.push((own, self.audit.head()));
        }
    }

    fn raise_fence_floors(&self, registry: &mut Registry) {
        for volume in &mut registry.volumes {
            if let Some(record) = self.records.of(volume.volume) {
                volume.fence_floor = volume.fence_floor.max(record.fence);
            }
        }
    }

    fn node_now(&mut self, node: NodeId) -> &mut NodeNow {
        self.nodes.entry(node).or_default()
    }

    /// Removes what of the trail is older than the policy wants it kept.
    pub(crate) fn prune_trail(&mut self) -> Result<(), KeyholderError> {
        if let Some(days) = self.policy.audit.keep_days
            && self.open.is_some()
        {
            self.audit.prune(days)?;
        }
        Ok(())
    }

    fn volume_now(&mut self, volume: VolumeId) -> &mut VolumeNow {
        self.volumes.entry(volume).or_default()
    }
}

/// The memory's name in statuses.
fn memory_name(kind: MemoryKind) -> &'static str {
    match kind {
        MemoryKind::MemfdSecret => "memfd-secret",
        MemoryKind::Mlock => "mlock",
    }
}

/// A ledger that the next start would not read is not written.
fn check_ledger_size(bytes: &[u8], room: Room) -> Result<(), KeyholderError> {
    let reserve = if room == Room::Ordinary { RESERVE_BYTES as u64 } else { 0 };
    let most = LEDGER_BYTES_MAX - reserve;
    if bytes.len() as u64 <= most {
        return Ok(());
    }
    Err(KeyholderError::Invalid {
        what: format!("the ledger would have {} bytes, and {most} is the most", bytes.len()),
        next_step: "remove what is not needed any more: tokens, nodes, volumes",
    })
}

fn latch_entry(latch: &LatchRecord) -> Latch {
    Latch { cause: latch.cause.name().to_owned(), since_unix_s: latch.since_unix_s, by: latch.by.clone() }
}

fn latch_by(cause: LatchCause, by: &str) -> LatchRecord {
    LatchRecord { cause, since_unix_s: clock::unix_s(), by: Some(by.to_owned()), wipe: None }
}

fn public_key(officer: &str, text: &str) -> Result<PublicEnvelopeKey, KeyholderError> {
    let invalid = || KeyholderError::Invalid {
        what: format!("the public key of officer {officer} is not one"),
        next_step: "take the public file that `nightlatch key officer` wrote",
    };
    let bytes = BASE64.decode(text.trim()).map_err(|_| invalid())?;
    PublicEnvelopeKey::from_bytes(&bytes).map_err(|_| invalid())
}
