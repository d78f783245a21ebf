//! The keyholder's trail: [`audit_log::Trail`] with this machine's clocks and a key that lives in the vault for one run.
//!
//! What a person does is written and synced before it is answered. Grants of one push are synced together before any of
//! them leaves; receipts with whatever comes next.

use std::path::Path;
use std::sync::Arc;

use audit_log::{
    Entry, Finding, Found, Head, Limits, Moment, Reader, Severity, Trail, TrailError, TrailId, Verifier,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use units::BootId;

use crate::clock;
use crate::durable::StorageError;
use crate::error::KeyholderError;
use crate::vault::{AuditSigner, Vault, VaultError};
use crate::webhooks;

/// Longest fields of one event: an entry is a line of at most 1 MiB, with hashes and a signature beside them.
const FIELDS_BYTES_MAX: usize = (1 << 20) - (4 << 10);

/// The trail, open for appending.
#[derive(Debug)]
pub(crate) struct Audit {
    trail: Trail<AuditSigner>,
    boot: BootId,
    /// The last entry that webhooks may tell of.
    told: Arc<watch::Sender<u64>>,
}

impl From<TrailError> for StorageError {
    fn from(error: TrailError) -> Self {
        Self { operation: error.operation, path: error.path, source: error.source }
    }
}

impl Audit {
    /// Opens the trail in the state directory and checks the part that is written on. A broken one is continued, and says so.
    pub(crate) fn open(
        dir: &Path,
        vault: &Arc<Vault>,
        boot: BootId,
    ) -> Result<(Self, Found), KeyholderError> {
        let signer = AuditSigner::new(Arc::clone(vault))?;
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|error| VaultError::Random(std::io::Error::other(error.to_string())))?;
        let fields = [("version", env!("CARGO_PKG_VERSION").into())];
        let opened = Trail::open(dir, signer, TrailId(id), moment(boot), Limits::default(), fields);
        let (trail, found) = opened.map_err(StorageError::from)?;
        let told = Arc::new(watch::Sender::new(trail.head().seq));
        Ok((Self { trail, boot, told }, found))
    }

    /// How far it has come.
    pub(crate) fn head(&self) -> Head {
        self.trail.head()
    }

    /// Changes with every entry that webhooks may tell of.
    pub(crate) fn told(&self) -> Arc<watch::Sender<u64>> {
        Arc::clone(&self.told)
    }

    /// The root certifies the key of this run.
    pub(crate) fn certify(&mut self, vault: &Vault) -> Result<(), KeyholderError> {
        let (root_key, signature) = vault.certify_audit(&self.trail.certificate_digest())?;
        self.trail.certify(moment(self.boot), root_key, signature).map_err(StorageError::from)?;
        Ok(())
    }

    /// Appends one event and syncs.
    pub(crate) fn record<const N: usize>(
        &mut self,
        event: &str,
        fields: [(&str, Value); N],
    ) -> Result<(), StorageError> {
        self.append(event, fields)?;
        self.sync()
    }

    /// Makes durable what was appended.
    pub(crate) fn sync(&mut self) -> Result<(), StorageError> {
        Ok(self.trail.sync()?)
    }

    /// Appends one event; it is durable with the next sync. For what comes in hundreds. What is too long for an entry is told by its
    /// digest: what has been done must not lack its entry.
    pub(crate) fn append<const N: usize>(
        &mut self,
        event: &str,
        fields: [(&str, Value); N],
    ) -> Result<(), StorageError> {
        let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.to_string().len()).sum();
        if bytes <= FIELDS_BYTES_MAX {
            self.trail.append(moment(self.boot), event, fields)?;
            if webhooks::is_told(event) {
                self.told.send_replace(self.head().seq);
            }
            return Ok(());
        }
        let mut digest = Sha256::new();
        fields.iter().for_each(|(name, value)| digest.update(format!("{name}={value}\n")));
        let by = fields.into_iter().find(|(name, _)| *name == "by").map(|(_, by)| by);
        let fields = [
            ("by", by.unwrap_or_default()),
            ("left_out_bytes", bytes.into()),
            ("left_out_sha256", hex::encode(digest.finalize()).into()),
        ];
        Ok(self.trail.append(moment(self.boot), event, fields)?)
    }

    /// The trail as it is now, to be read without keeping anybody waiting.
    pub(crate) fn reader(&self) -> Result<Reader, StorageError> {
        Ok(self.trail.reader()?)
    }

    /// Removes what is older than so many days; nothing before the root has certified this run, because nobody else's word for it
    /// counts.
    pub(crate) fn prune(&mut self, keep_days: u32) -> Result<Option<u64>, StorageError> {
        if self.trail.signed_head().certificate.is_none() {
            return Ok(None);
        }
        let now = moment(self.boot);
        let before = now.unix_ms.saturating_sub(u64::from(keep_days).saturating_mul(86_400_000));
        Ok(self.trail.prune(now, before)?)
    }

    /// Whether the trail passes through a head that the ledger remembers. Where it does not, its end was cut off or it is another
    /// one.
    pub(crate) fn passes_through(&self, known: Head) -> Result<bool, StorageError> {
        let head = self.trail.head();
        if known.trail != head.trail || known.seq > head.seq {
            return Ok(false);
        }
        if known.seq == head.seq {
            return Ok(known.hash == head.hash);
        }
        let after = self.trail.page(known.seq, 1)?;
        let next = after.lines.first().and_then(|line| Entry::parse(line).ok());
        match next.filter(|next| next.seq == known.seq + 1) {
            Some(next) => Ok(next.previous == known.hash),
            None => self.accounts_for(known),
        }
    }

    /// The same by the whole trail, where the entry behind that head is not to be had: it may have been pruned after its time, which
    /// only a run counts for that the root has certified.
    fn accounts_for(&self, known: Head) -> Result<bool, StorageError> {
        let mut root = [0; 32];
        match self.trail.signed_head().root_key.map(|text| hex::decode_to_slice(text, &mut root)) {
            Some(Ok(())) => {}
            _ => return Ok(false),
        }
        let mut verifier = Verifier::new(&[root]).witnessed_at([known]);
        self.trail.each_line(|line| verifier.line(&line))?;
        // A run of an earlier root is certified by that.
        let is_breach = |finding: &Finding| {
            finding.severity() == Severity::Broken && !matches!(finding, Finding::FalseCertificate { .. })
        };
        Ok(!verifier.finish().findings.iter().any(is_breach))
    }

    /// Whether the trail says that the ledger with this serial number came from a backup.
    pub(crate) fn says_restored(&self, serial: u64) -> Result<bool, StorageError> {
        let mut found = false;
        self.trail.each_line(|line| {
            found |= Entry::parse(&line).is_ok_and(|entry| {
                entry.event == "ledger-restored"
                    && entry.fields.get("serial").and_then(Value::as_u64) == Some(serial)
            });
        })?;
        Ok(found)
    }
}

fn moment(boot: BootId) -> Moment {
    Moment { unix_ms: clock::unix_ms(), boot, boot_ns: clock::now().0 }
}
