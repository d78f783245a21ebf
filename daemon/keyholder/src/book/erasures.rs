//! Erased volumes: what is still to be destroyed before an erasure is complete, and the certificate that says that it is.

use sha2::{Digest, Sha256};
use units::VolumeId;

use super::Book;
use crate::api::{ErasureCertificate, ErasureEntry, ErasureState, SignedErasure};
use crate::clock;
use crate::error::KeyholderError;
use crate::ledger::ErasureRecord;

/// Before what is signed.
const CONTEXT: &[u8] = b"nightlatch/erasure/1 certificate";

impl Book {
    /// Every erasure, the newest last.
    pub(crate) fn erasure_entries(&self) -> Result<Vec<ErasureEntry>, KeyholderError> {
        let registry = self.registry()?;
        Ok(registry.erasures.iter().map(|record| self.erasure_entry(record)).collect())
    }

    fn erasure_entry(&self, record: &ErasureRecord) -> ErasureEntry {
        ErasureEntry {
            volume: record.volume,
            label: record.label.clone(),
            by: record.by.clone(),
            at_unix_s: record.at_unix_s,
            state: self.erasure_state(record),
            destroy_backups_up_to_serial: self.unconfirmed(record),
            shared_with: self.sharers(record),
        }
    }

    /// Volumes that still have the domain's secret.
    fn sharers(&self, record: &ErasureRecord) -> Vec<String> {
        let Ok(registry) = self.registry() else { return Vec::new() };
        let sharers = registry.volumes.iter().filter(|volume| volume.domain == record.domain);
        sharers.map(|volume| volume.label.clone()).collect()
    }

    /// All erasures of the domain: a secret that several volumes shared is gone with the last of them, and its backups with theirs.
    fn of_domain(&self, record: &ErasureRecord) -> impl Iterator<Item = &ErasureRecord> {
        let domain = record.domain;
        let all = self.registry().map(|registry| registry.erasures.as_slice()).unwrap_or_default();
        all.iter().filter(move |other| other.domain == domain)
    }

    /// The last backup with the secret of which nobody has said yet that it is destroyed.
    fn unconfirmed(&self, record: &ErasureRecord) -> Option<u64> {
        let open = self.of_domain(record).filter(|other| other.confirmed.is_none());
        open.filter_map(|other| other.backups_up_to).max()
    }

    fn erasure_state(&self, record: &ErasureRecord) -> ErasureState {
        if !self.sharers(record).is_empty() {
            ErasureState::Shared
        } else if self.unconfirmed(record).is_some() {
            ErasureState::Pending
        } else {
            ErasureState::Complete
        }
    }

    fn find_erasure(&self, volume: VolumeId) -> Result<&ErasureRecord, KeyholderError> {
        let record = self.registry()?.erasures.iter().find(|record| record.volume == volume);
        record.ok_or_else(|| KeyholderError::NoSuchErasure { what: volume.to_string() })
    }

    /// Somebody answers for it that every backup which still has the secret is destroyed.
    pub(crate) fn confirm_erasure(
        &mut self,
        volume: VolumeId,
        destroyed_up_to: u64,
        by: &str,
    ) -> Result<ErasureEntry, KeyholderError> {
        let record = self.find_erasure(volume)?;
        let domain = record.domain;
        let needed = self
            .unconfirmed(record)
            .ok_or_else(|| KeyholderError::NoSuchErasure { what: record.label.clone() })?;
        if destroyed_up_to < needed {
            return Err(KeyholderError::Invalid {
                what: format!(
                    "backups up to serial {destroyed_up_to} are not all that have the secret: those up to {needed} do"
                ),
                next_step: "destroy those too, then confirm the higher number",
            });
        }
        let confirmed = (by.to_owned(), clock::unix_s());
        self.commit(|registry| {
            registry
                .erasures
                .iter_mut()
                .filter(|record| record.domain == domain && record.backups_up_to.is_some())
                .filter(|record| record.confirmed.is_none())
                .for_each(|record| record.confirmed = Some(confirmed.clone()));
            Ok(())
        })?;
        let fields = [
            ("by", by.into()),
            ("volume", volume.to_string().into()),
            ("destroyed_up_to", destroyed_up_to.into()),
        ];
        self.audit.record("erasure-confirmed", fields)?;
        self.find_erasure(volume).map(|record| self.erasure_entry(record))
    }

    /// The root's word that the secret is nowhere any more, as far as the keyholder and those who confirmed it know.
    pub(crate) fn certify_erasure(
        &mut self,
        volume: VolumeId,
        by: &str,
    ) -> Result<SignedErasure, KeyholderError> {
        let record = self.find_erasure(volume)?;
        match self.erasure_state(record) {
            ErasureState::Complete => {}
            ErasureState::Pending => {
                return Err(KeyholderError::Invalid {
                    what: format!("the erasure of {} waits for its backups", record.label),
                    next_step: "destroy them, then say so with `nightlatch erasure confirm`",
                });
            }
            ErasureState::Shared => {
                return Err(KeyholderError::Invalid {
                    what: format!(
                        "the key of {} lives on in {}",
                        record.label,
                        self.sharers(record).join(", ")
                    ),
                    next_step: "erase those too",
                });
            }
        }
        // What holds for the secret: the last of those that shared it counts.
        let last_backup = self.of_domain(record).max_by_key(|other| other.backups_up_to).unwrap_or(record);
        let without_since = self.of_domain(record).map(|other| other.without_since_serial).max();
        let certificate = ErasureCertificate {
            version: 1,
            keyholder: self.name.clone(),
            volume,
            domain: record.domain,
            label: record.label.clone(),
            erased_by: record.by.clone(),
            erased_unix_s: record.at_unix_s,
            ledger_without_since_serial: without_since.unwrap_or(record.without_since_serial),
            backups_destroyed_up_to_serial: last_backup.backups_up_to,
            backups_confirmed_by: last_backup.confirmed.as_ref().map(|(who, _)| who.clone()),
            issued_unix_s: clock::unix_s(),
            audit: self.audit.head(),
        };
        let text = serde_json::to_string(&certificate).unwrap_or_default();
        let mut digest = Sha256::new();
        digest.update(CONTEXT);
        digest.update(text.as_bytes());
        let (root_key, signature) = self.vault.sign_document(&digest.finalize().into())?;
        self.audit.record("erasure-certified", [("by", by.into()), ("volume", volume.to_string().into())])?;
        Ok(SignedErasure {
            certificate: text,
            root_key: hex::encode(root_key),
            signature: hex::encode(signature),
        })
    }
}
