//! The ledger: which volumes there are, under which secrets, on which nodes. LEDGER.md has the bytes.
//!
//! Invariants:
//! - Everything but the header is encrypted under the ledger key, which is wrapped by the root; so a ledger file or a
//!   backup of it tells its serial number, the officers' names and nothing else, and nobody can alter it unnoticed
//!   without the root.
//! - Each domain secret is wrapped on its own as well: a decrypted registry in memory still has no secret in it.
//! - A file is replaced whole and durably; its serial number grows with every change.

use identity::{Endpoint, PeerName};
use lease::message::{OnSeal, SigningPublicKey, VolumeKind, WipeCause};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use units::{BootId, BootInstant, ByteLen, DomainId, Fence, NodeId, VolumeEpoch, VolumeId};

use crate::api::{PushPolicy, VolumeIntegrity};
use crate::attest::Approved;
use crate::book::{PersonRecord, TokenRecord};
use crate::shares::ShareSet;
use crate::vault::{Key, SecretOf, Vault, VaultError, Wrapped};

/// Largest ledger: 4096 volumes take about 1 MiB.
pub(crate) const LEDGER_BYTES_MAX: u64 = 32 << 20;

/// Version of the file. A change of anything below is a new one, with its migration and a golden sample.
pub(crate) const LEDGER_VERSION: u32 = 4;

const MAGIC: &[u8; 8] = b"NLLEDGER";
const CHECKSUM_BYTES: usize = 32;

/// What is readable without the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Grows with every change.
    pub(crate) serial: u64,
    /// The shares that restore the root.
    pub(crate) share_set: ShareSet,
    /// The key that nodes have pinned.
    pub(crate) grant_signing_key: SigningPublicKey,
    /// The ledger key, wrapped by the root.
    pub(crate) ledger_key: Wrapped,
}

/// What is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registry {
    pub(crate) nodes: Vec<NodeRecord>,
    pub(crate) volumes: Vec<VolumeRecord>,
    /// Set while everything is locked down.
    pub(crate) lockdown: Option<LatchRecord>,
    /// Serial of the ledger when it was last backed up.
    pub(crate) backup_serial: Option<u64>,
    /// Longest lease that was ever allowed: what a keyholder waits that has lost its records.
    pub(crate) longest_lease_ms: u64,
    /// How far the audit trail had come when this was written; nobody shortens it unnoticed without the root.
    pub(crate) audit: Option<audit_log::Head>,
    /// How far the nodes' own trails had come.
    pub(crate) node_trails: Vec<(NodeId, audit_log::Head)>,
    /// The policy in force; `None` where there never was one.
    pub(crate) policy: Option<PolicyRecord>,
    /// Who has a second factor.
    pub(crate) people: Vec<PersonRecord>,
    /// What became of the secrets of deleted volumes.
    pub(crate) erasures: Vec<ErasureRecord>,
    /// Nodes that are not trusted any more.
    pub(crate) suspicions: Vec<SuspicionRecord>,
    /// What people's programs log in with.
    pub(crate) tokens: Vec<TokenRecord>,
    /// TPMs that nodes were approved with.
    pub(crate) tpms: Vec<TpmRecord>,
    /// Epochs that volumes are not written under any more, and that something may still lie under.
    pub(crate) older: Vec<OlderEpoch>,
    /// What nodes have said lies under which epochs: of their own volumes in domains that have older ones, and of the copies that
    /// they have of other nodes' volumes.
    pub(crate) epoch_reports: Vec<EpochReport>,
    /// When the newest epoch of a domain began, or was first looked at, in seconds since 1970.
    pub(crate) epochs_began: Vec<(DomainId, u64)>,
}

/// A node's word for what of a volume lies in one of its pools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EpochReport {
    pub(crate) node: NodeId,
    pub(crate) volume: VolumeId,
    /// The epochs that anything lies under, ascending; `None` while it has something and has not said under which.
    pub(crate) epochs: Option<Vec<VolumeEpoch>>,
}

/// An epoch of a key domain before the one that its volumes' records name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OlderEpoch {
    pub(crate) domain: DomainId,
    pub(crate) epoch: VolumeEpoch,
    /// Its secret under the ledger key.
    pub(crate) secret: Wrapped,
    pub(crate) check: [u8; 16],
}

impl OlderEpoch {
    pub(crate) fn secret_of(&self) -> SecretOf {
        SecretOf { domain: self.domain, epoch: self.epoch }
    }
}

/// A node's TPM, and the state of its machine, as a person approved them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TpmRecord {
    pub(crate) node: NodeId,
    pub(crate) approved: Approved,
    pub(crate) by: String,
    pub(crate) at_unix_s: u64,
}

/// A policy as it was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PolicyRecord {
    /// The file's text.
    pub(crate) text: String,
    /// Counts the policies.
    pub(crate) serial: u64,
    pub(crate) by: String,
    pub(crate) at_unix_s: u64,
}

/// A volume whose secret left the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ErasureRecord {
    pub(crate) volume: VolumeId,
    pub(crate) domain: DomainId,
    pub(crate) label: String,
    pub(crate) by: String,
    pub(crate) at_unix_s: u64,
    /// Serial of the ledger that first was without it.
    pub(crate) without_since_serial: u64,
    /// Backups up to this serial still have it; `None` where none was made.
    pub(crate) backups_up_to: Option<u64>,
    /// Labels of volumes that keep the domain's secret alive.
    pub(crate) shared_with: Vec<String>,
    /// Who says that every such backup is destroyed, and when.
    pub(crate) confirmed: Option<(String, u64)>,
}

/// A node that somebody may have had in their hands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SuspicionRecord {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    /// The identity key that is forbidden for good.
    pub(crate) key: Option<SigningPublicKey>,
    pub(crate) since_unix_s: u64,
    pub(crate) by: String,
    /// What it may have held: volume, label, domain and epoch.
    pub(crate) exposed: Vec<(VolumeId, String, DomainId, VolumeEpoch)>,
}

/// What was encrypted in version 1.
#[derive(Debug, Serialize, Deserialize)]
struct RegistryV1 {
    nodes: Vec<NodeRecord>,
    volumes: Vec<VolumeRecordV2>,
    lockdown: Option<LatchRecord>,
    backup_serial: Option<u64>,
    longest_lease_ms: u64,
}

/// What was encrypted in version 2.
#[derive(Debug, Serialize, Deserialize)]
struct RegistryV2 {
    nodes: Vec<NodeRecord>,
    volumes: Vec<VolumeRecordV2>,
    lockdown: Option<LatchRecord>,
    backup_serial: Option<u64>,
    longest_lease_ms: u64,
    audit: Option<audit_log::Head>,
    node_trails: Vec<(NodeId, audit_log::Head)>,
    policy: Option<PolicyRecord>,
    people: Vec<PersonRecord>,
    erasures: Vec<ErasureRecord>,
    suspicions: Vec<SuspicionRecord>,
    tokens: Vec<TokenRecord>,
}

/// What was encrypted in version 3.
#[derive(Debug, Serialize, Deserialize)]
struct RegistryV3 {
    nodes: Vec<NodeRecord>,
    volumes: Vec<VolumeRecord>,
    lockdown: Option<LatchRecord>,
    backup_serial: Option<u64>,
    longest_lease_ms: u64,
    audit: Option<audit_log::Head>,
    node_trails: Vec<(NodeId, audit_log::Head)>,
    policy: Option<PolicyRecord>,
    people: Vec<PersonRecord>,
    erasures: Vec<ErasureRecord>,
    suspicions: Vec<SuspicionRecord>,
    tokens: Vec<TokenRecord>,
    tpms: Vec<TpmRecord>,
}

impl From<RegistryV3> for Registry {
    fn from(old: RegistryV3) -> Self {
        Self {
            nodes: old.nodes,
            volumes: old.volumes,
            lockdown: old.lockdown,
            backup_serial: old.backup_serial,
            longest_lease_ms: old.longest_lease_ms,
            audit: old.audit,
            node_trails: old.node_trails,
            policy: old.policy,
            people: old.people,
            erasures: old.erasures,
            suspicions: old.suspicions,
            tokens: old.tokens,
            tpms: old.tpms,
            ..Self::default()
        }
    }
}

impl From<RegistryV2> for Registry {
    fn from(old: RegistryV2) -> Self {
        Self {
            nodes: old.nodes,
            volumes: old.volumes.into_iter().map(VolumeRecord::from).collect(),
            lockdown: old.lockdown,
            backup_serial: old.backup_serial,
            longest_lease_ms: old.longest_lease_ms,
            audit: old.audit,
            node_trails: old.node_trails,
            policy: old.policy,
            people: old.people,
            erasures: old.erasures,
            suspicions: old.suspicions,
            tokens: old.tokens,
            ..Self::default()
        }
    }
}

impl From<RegistryV1> for Registry {
    fn from(old: RegistryV1) -> Self {
        let RegistryV1 { nodes, volumes, lockdown, backup_serial, longest_lease_ms } = old;
        let volumes = volumes.into_iter().map(VolumeRecord::from).collect();
        Self { nodes, volumes, lockdown, backup_serial, longest_lease_ms, ..Self::default() }
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    pub(crate) name: PeerName,
    pub(crate) node: NodeId,
    pub(crate) key_address: Endpoint,
    pub(crate) admin_address: Endpoint,
    /// Its identity key, once a person has approved it.
    pub(crate) pinned: Option<SigningPublicKey>,
    pub(crate) push: PushPolicy,
    pub(crate) lease_ms: u64,
    pub(crate) latch: Option<LatchRecord>,
    /// The last latching wipe that an officer has lifted.
    pub(crate) acknowledged: Option<WipeId>,
}

/// Names one wipe of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WipeId {
    pub(crate) boot: BootId,
    pub(crate) at: BootInstant,
}

/// Why nothing is pushed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LatchRecord {
    pub(crate) cause: LatchCause,
    pub(crate) since_unix_s: u64,
    /// Who did it, where it was a person.
    pub(crate) by: Option<String>,
    /// The wipe that goes with it, where one is known.
    pub(crate) wipe: Option<WipeId>,
}

/// The causes of a latch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LatchCause {
    Revoked,
    Lockdown,
    /// The node was wiped for this.
    Wipe(WipeCause),
}

impl LatchCause {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Lockdown => "lockdown",
            Self::Wipe(cause) => cause.name(),
        }
    }
}

/// Where a volume is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Life {
    /// In the ledger, not yet known to be on the node.
    Creating,
    /// On the node.
    Live,
    /// Being deleted; never pushed again.
    Deleting,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeRecord {
    pub(crate) label: String,
    pub(crate) volume: VolumeId,
    pub(crate) domain: DomainId,
    pub(crate) epoch: VolumeEpoch,
    /// The domain's secret under the ledger key.
    pub(crate) secret: Wrapped,
    pub(crate) check: [u8; 16],
    pub(crate) size: ByteLen,
    pub(crate) kind: VolumeKind,
    pub(crate) on_seal: OnSeal,
    /// What it was promised when it was made, as its key-check value says.
    pub(crate) integrity: VolumeIntegrity,
    pub(crate) node: NodeId,
    pub(crate) life: Life,
    pub(crate) latch: Option<LatchRecord>,
    /// The fence when the ledger was last written: a floor for a keyholder that has lost its lease records.
    pub(crate) fence_floor: Fence,
    /// Serial of the ledger that first held it.
    pub(crate) since_serial: u64,
}

/// A volume in versions 1 and 2, when there was no choice of integrity.
#[derive(Debug, Serialize, Deserialize)]
struct VolumeRecordV2 {
    label: String,
    volume: VolumeId,
    domain: DomainId,
    epoch: VolumeEpoch,
    secret: Wrapped,
    check: [u8; 16],
    size: ByteLen,
    kind: VolumeKind,
    on_seal: OnSeal,
    node: NodeId,
    life: Life,
    latch: Option<LatchRecord>,
    fence_floor: Fence,
    since_serial: u64,
}

impl From<VolumeRecordV2> for VolumeRecord {
    fn from(old: VolumeRecordV2) -> Self {
        Self {
            label: old.label,
            volume: old.volume,
            domain: old.domain,
            epoch: old.epoch,
            secret: old.secret,
            check: old.check,
            size: old.size,
            kind: old.kind,
            on_seal: old.on_seal,
            integrity: VolumeIntegrity::Tag,
            node: old.node,
            life: old.life,
            latch: old.latch,
            fence_floor: old.fence_floor,
            since_serial: old.since_serial,
        }
    }
}

impl VolumeRecord {
    pub(crate) fn secret_of(&self) -> SecretOf {
        SecretOf { domain: self.domain, epoch: self.epoch }
    }
}

impl Registry {
    pub(crate) fn node(&self, id: NodeId) -> Option<&NodeRecord> {
        self.nodes.iter().find(|node| node.node == id)
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> Option<&mut NodeRecord> {
        self.nodes.iter_mut().find(|node| node.node == id)
    }

    pub(crate) fn node_named(&self, name: &str) -> Option<&NodeRecord> {
        self.nodes.iter().find(|node| node.name.as_str() == name)
    }

    pub(crate) fn tpm_of(&self, node: NodeId) -> Option<&Approved> {
        self.tpms.iter().find(|tpm| tpm.node == node).map(|tpm| &tpm.approved)
    }

    /// Whether nobody has decided anything yet that a new ledger would forget.
    pub(crate) fn is_blank(&self) -> bool {
        self.nodes.is_empty()
            && self.volumes.is_empty()
            && self.lockdown.is_none()
            && self.policy.is_none()
            && self.people.is_empty()
            && self.erasures.is_empty()
            && self.suspicions.is_empty()
            && self.tokens.is_empty()
            && self.tpms.is_empty()
    }

    pub(crate) fn volume(&self, id: VolumeId) -> Option<&VolumeRecord> {
        self.volumes.iter().find(|volume| volume.volume == id)
    }

    pub(crate) fn volume_mut(&mut self, id: VolumeId) -> Option<&mut VolumeRecord> {
        self.volumes.iter_mut().find(|volume| volume.volume == id)
    }

    pub(crate) fn volume_labelled(&self, label: &str) -> Option<&VolumeRecord> {
        self.volumes.iter().find(|volume| volume.label == label)
    }

    /// The epochs of a domain that its volumes were written under before.
    pub(crate) fn older_of(&self, domain: DomainId) -> impl Iterator<Item = &OlderEpoch> {
        self.older.iter().filter(move |older| older.domain == domain)
    }

    pub(crate) fn volumes_in(&self, domain: DomainId) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.iter().filter(move |volume| volume.domain == domain)
    }

    /// What a node has said of a volume.
    pub(crate) fn epoch_report(&self, node: NodeId, volume: VolumeId) -> Option<&EpochReport> {
        self.epoch_reports.iter().find(|report| (report.node, report.volume) == (node, volume))
    }

    /// When the newest epoch of a domain began, as far as that is known.
    pub(crate) fn epoch_began(&self, domain: DomainId) -> Option<u64> {
        self.epochs_began.iter().find(|(of, _)| *of == domain).map(|(_, began)| *began)
    }

    pub(crate) fn note_epoch_began(&mut self, domain: DomainId, unix_s: u64) {
        self.epochs_began.retain(|(of, _)| *of != domain);
        self.epochs_began.push((domain, unix_s));
    }

    pub(crate) fn volumes_of(&self, node: NodeId) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.iter().filter(move |volume| volume.node == node)
    }
}

/// Why a ledger cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Not a ledger, cut, or altered by accident.
    #[error("the ledger is damaged ({what}); restore it from a backup with `nightlatch key restore`")]
    Damaged {
        /// What does not hold.
        what: &'static str,
    },
    /// Made by a later program.
    #[error(
        "the ledger has format version {found}, this program reads up to {LEDGER_VERSION}; use the newer program"
    )]
    Newer {
        /// Its version.
        found: u32,
    },
    /// The root does not open it, or it was altered on purpose.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// A ledger whose registry is still encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SealedLedger {
    version: u32,
    pub(crate) header: Header,
    /// From the magic to the end of the header: what the registry's encryption is bound to.
    bound: Vec<u8>,
    registry: Vec<u8>,
}

impl SealedLedger {
    /// How long its file is.
    pub(crate) fn file_bytes(&self) -> usize {
        self.bound.len() + self.registry.len() + CHECKSUM_BYTES
    }

    /// Reads a file's bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, LedgerError> {
        let damaged = |what| LedgerError::Damaged { what };
        let rest = bytes.strip_prefix(MAGIC).ok_or(damaged("it does not begin like one"))?;
        let (version, rest) = rest.split_first_chunk().ok_or(damaged("it was cut"))?;
        let version = u32::from_le_bytes(*version);
        if version > LEDGER_VERSION {
            return Err(LedgerError::Newer { found: version });
        }
        let (content, checksum) = bytes
            .len()
            .checked_sub(CHECKSUM_BYTES)
            .and_then(|end| bytes.split_at_checked(end))
            .ok_or(damaged("it was cut"))?;
        if Sha256::digest(content).as_slice() != checksum {
            return Err(damaged("its checksum does not match"));
        }
        let (header_length, _) = rest.split_first_chunk().ok_or(damaged("it was cut"))?;
        let header_start = MAGIC.len() + 4 + 4;
        let header_end = usize::try_from(u32::from_le_bytes(*header_length))
            .ok()
            .and_then(|length| header_start.checked_add(length))
            .filter(|end| *end <= content.len())
            .ok_or(damaged("its header does not fit"))?;
        let header = match postcard::take_from_bytes::<Header>(&content[header_start..header_end]) {
            Ok((header, [])) if header.share_set.check().is_ok() => header,
            _ => return Err(damaged("its header does not decode")),
        };
        let (bound, registry) = content.split_at(header_end);
        Ok(Self { version, header, bound: bound.to_vec(), registry: registry.to_vec() })
    }

    /// Decrypts the registry. The vault has the root.
    pub(crate) fn open(&self, vault: &Vault) -> Result<Registry, LedgerError> {
        vault.open_ledger_key(self.header.share_set.set, &self.header.ledger_key)?;
        let plain = vault.decrypt_registry(&self.bound, &self.registry)?;
        let registry = match self.version {
            0 | 1 => whole::<RegistryV1>(&plain).map(Registry::from),
            2 => whole::<RegistryV2>(&plain).map(Registry::from),
            3 => whole::<RegistryV3>(&plain).map(Registry::from),
            _ => whole(&plain),
        };
        registry.ok_or(LedgerError::Damaged { what: "its registry does not decode" })
    }
}

fn whole<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

/// A ledger file's bytes, encrypted under the chosen ledger key.
pub(crate) fn encode(
    vault: &Vault,
    key: Key,
    header: &Header,
    registry: &Registry,
) -> Result<Vec<u8>, LedgerError> {
    let unencodable = |_| LedgerError::Damaged { what: "it does not encode" };
    let encoded_header = postcard::to_stdvec(header).map_err(unencodable)?;
    let header_length = u32::try_from(encoded_header.len())
        .map_err(|_| LedgerError::Damaged { what: "its header is too long" })?;
    let mut bytes = Vec::new();
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&LEDGER_VERSION.to_le_bytes());
    bytes.extend_from_slice(&header_length.to_le_bytes());
    bytes.extend_from_slice(&encoded_header);
    let plain = postcard::to_stdvec(registry).map_err(unencodable)?;
    let sealed = vault.encrypt_registry(key, &bytes, &plain)?;
    bytes.extend_from_slice(&sealed);
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    Ok(bytes)
}
