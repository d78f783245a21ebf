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

mod leases;
mod nodes;
#[cfg(test)]
mod tests;
mod volumes;

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use lease::envelope::PublicEnvelopeKey;
use lease::message::{VolumePresent, WipeRecord};
use locked_memory::MemoryKind;
use units::{BootId, BootInstant, GrantId, NodeId, RootEpoch, VolumeId};

pub(crate) use self::leases::{Judgement, PlannedGrant};
pub(crate) use self::nodes::NodeTarget;
use crate::api::{
    CeremonyRequest, CeremonyResult, Connection, Drill, DrillReport, KeyState, KeyholderStatus, Latch,
    LedgerBackup, SealState, ShareCount, UnsealProgress,
};
use crate::audit::Audit;
use crate::clock;
use crate::drill;
use crate::durable::{self, OldContent, StateDir};
use crate::error::KeyholderError;
use crate::ledger::{self, Header, LEDGER_BYTES_MAX, LatchCause, LatchRecord, Registry, SealedLedger};
use crate::records::{Found, LeaseRecords};
use crate::shares::Share;
use crate::vault::{Gathered, Key, Vault};

const LEDGER_FILE: &str = "ledger";
const LEASES_FILE: &str = "leases";
const AUDIT_FILE: &str = "audit.jsonl";

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
    /// When it last proved, signed, that it holds nothing.
    empty_since: Option<BootInstant>,
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
            empty_since: None,
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
}

#[derive(Debug)]
struct OpenLedger {
    header: Header,
    registry: Registry,
}

/// Everything that the keyholder knows.
#[derive(Debug)]
pub(crate) struct Book {
    name: String,
    dir: StateDir,
    vault: Arc<Vault>,
    sealed: Option<SealedLedger>,
    open: Option<OpenLedger>,
    records: LeaseRecords,
    records_found: Found,
    /// Nothing is granted before.
    wait_until: Option<BootInstant>,
    nodes: BTreeMap<NodeId, NodeNow>,
    volumes: BTreeMap<VolumeId, VolumeNow>,
    lease_ms_default: u64,
    last_drill: Option<Drill>,
    audit: Audit,
}

impl Book {
    /// Reads what is in the state directory. The vault is empty.
    pub(crate) fn open(
        name: String,
        dir: StateDir,
        vault: Arc<Vault>,
        lease_ms_default: u64,
    ) -> Result<Self, KeyholderError> {
        let boot = clock::boot_id().map_err(|source| KeyholderError::System { what: "boot id", source })?;
        let sealed = match durable::read(&dir.file(LEDGER_FILE), LEDGER_BYTES_MAX)? {
            Some(bytes) => Some(SealedLedger::decode(&bytes)?),
            None => None,
        };
        let (records, records_found) = LeaseRecords::load(dir.file(LEASES_FILE), boot, clock::now())?;
        let (mut audit, chain) = Audit::open(&dir.file(AUDIT_FILE))?;
        if let Err(broken) = chain {
            tracing::error!("{broken}");
        }
        let last_drill = drill::load(&dir.file(drill::FILE))?;
        audit.record("start", [("version", env!("CARGO_PKG_VERSION").into())])?;
        tracing::info!(audit = hex::encode(audit.last_hash()), "state directory opened");
        Ok(Self {
            name,
            dir,
            vault,
            sealed,
            open: None,
            records,
            records_found,
            wait_until: None,
            nodes: BTreeMap::new(),
            volumes: BTreeMap::new(),
            lease_ms_default,
            last_drill,
            audit,
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
            grants_wait_ms: self.wait_until.map(|until| until.ms_since(now)).filter(|ms| *ms > 0),
            nodes: self.node_entries(),
            volumes: self.volume_entries(),
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

    /// Makes a root, its shares and an empty ledger. Can be repeated while there is no volume, for shares that got
    /// lost on their way.
    pub(crate) fn ceremony(
        &mut self,
        request: &CeremonyRequest,
        by: &str,
    ) -> Result<CeremonyResult, KeyholderError> {
        match (&self.open, &self.sealed) {
            (Some(open), _) if open.registry.volumes.is_empty() && open.registry.nodes.is_empty() => {}
            (None, None) => {}
            _ => return Err(KeyholderError::LedgerExists),
        }
        let mut officers = Vec::with_capacity(request.officers.len());
        for officer in &request.officers {
            officers.push((officer.name.clone(), public_key(&officer.name, &officer.public_key)?));
        }
        self.vault.wipe();
        self.open = None;
        let result = self.begin_ledger(request.threshold, &officers);
        if result.is_err() {
            self.vault.wipe();
        }
        let result = result?;
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
        let header = Header { serial: 1, share_set: share_set.clone(), grant_signing_key, ledger_key };
        let registry = Registry::default();
        let bytes = ledger::encode(&self.vault, Key::Next, &header, &registry)?;
        // The records first: a ledger without them would make its keyholder wait for leases that never were.
        self.records.update(|records| records.clear())?;
        self.records_found = Found::Intact;
        durable::replace(&self.dir.file(LEDGER_FILE), &bytes, OldContent::Overwrite)?;
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
            self.unseal(by)?;
        }
        Ok(UnsealProgress { state: self.state(), shares: self.share_count(set.threshold) })
    }

    fn unseal(&mut self, by: &str) -> Result<(), KeyholderError> {
        let sealed = self.sealed.as_ref().ok_or(KeyholderError::NoLedger)?;
        let registry = sealed.open(&self.vault).inspect_err(|_| self.vault.wipe())?;
        let header = sealed.header.clone();
        if self.records_found == Found::Lost && registry.longest_lease_ms > 0 {
            let longest_ms = lease::limits::lease_with_drift_ms(registry.longest_lease_ms);
            self.wait_until = Some(clock::now().saturating_add_ms(longest_ms));
            tracing::warn!(
                longest_ms,
                "the record of earlier leases is lost: nothing is granted before they are over"
            );
            self.audit.record("lease-records-lost", [("wait_ms", longest_ms.into())])?;
        }
        self.open = Some(OpenLedger { header, registry });
        self.audit.record("unsealed", [("by", by.into())])?;
        Ok(())
    }

    /// Forgets the root and all that was decrypted with it.
    pub(crate) fn seal(&mut self) {
        self.vault.wipe();
        self.open = None;
        self.nodes.clear();
        self.volumes.clear();
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
        let sealed = SealedLedger::decode(&bytes)?;
        durable::replace(&self.dir.file(LEDGER_FILE), &bytes, OldContent::Leave)?;
        let serial = sealed.header.serial;
        self.sealed = Some(sealed);
        self.audit.record("ledger-restored", [("by", by.into()), ("serial", serial.into())])?;
        Ok(())
    }

    /// Notes the outcome of a drill: in the trail for good, in status until the next.
    pub(crate) fn note_drill(&mut self, report: &DrillReport, by: &str) -> Result<(), KeyholderError> {
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

    fn registry(&self) -> Result<&Registry, KeyholderError> {
        self.opened().map(|open| &open.registry)
    }

    /// Changes the registry and makes it durable. On an error nothing has changed in memory.
    fn commit<T>(
        &mut self,
        change: impl FnOnce(&mut Registry) -> Result<T, KeyholderError>,
    ) -> Result<T, KeyholderError> {
        let open = self.opened()?;
        let mut registry = open.registry.clone();
        let made = change(&mut registry)?;
        self.raise_fence_floors(&mut registry);
        let header = Header { serial: open.header.serial + 1, ..open.header.clone() };
        let bytes = ledger::encode(&self.vault, Key::Current, &header, &registry)?;
        self.write_ledger(&bytes, header, registry, OldContent::Leave)?;
        Ok(made)
    }

    /// Changes the registry and carries what is left over to a fresh ledger key, so that what was removed cannot be
    /// decrypted from the file any more. The old file is overwritten.
    fn commit_erasure(
        &mut self,
        change: impl FnOnce(&mut Registry) -> Result<(), KeyholderError>,
    ) -> Result<(), KeyholderError> {
        let open = self.opened()?;
        let mut registry = open.registry.clone();
        change(&mut registry)?;
        self.raise_fence_floors(&mut registry);
        let ledger_key = self.vault.next_ledger_key(open.header.share_set.set)?;
        for volume in &mut registry.volumes {
            volume.secret = self.vault.rewrap(volume.secret_of(), &volume.secret)?;
        }
        let header = Header { serial: open.header.serial + 1, ledger_key, ..open.header.clone() };
        let bytes = ledger::encode(&self.vault, Key::Next, &header, &registry)?;
        self.write_ledger(&bytes, header, registry, OldContent::Overwrite)?;
        // Only now: had the write failed, the old key would still be the one that opens the file.
        self.vault.adopt_ledger_key()?;
        Ok(())
    }

    fn write_ledger(
        &mut self,
        bytes: &[u8],
        header: Header,
        registry: Registry,
        old: OldContent,
    ) -> Result<(), KeyholderError> {
        let sealed = SealedLedger::decode(bytes)?;
        durable::replace(&self.dir.file(LEDGER_FILE), bytes, old)?;
        self.sealed = Some(sealed);
        self.open = Some(OpenLedger { header, registry });
        Ok(())
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
