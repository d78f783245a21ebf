//! What decides about requests, as it was read last: who signs with an access key, and the authority over a bucket. Without it
//! every request would read and parse them anew, on a thread of its own.
//!
//! Invariants:
//! - Nothing is believed that a change made untrue: an entry counts only in the generation of the store's settings that was
//!   asked before it was read, and a change begins a new generation before it is answered.
//! - It belongs to one serving and goes with it. Secrets are overwritten when they go.
//! - It is bounded, in entries and in what they were read from: a lifecycle alone may be 512 KiB.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use objects::{Credential, SecretAccessKey, Store, StoreError};
use s3s::{S3Error, S3Result, s3_error};

use crate::authority::document::Policy;
use crate::authority::{Asker, Authority};
use crate::documents;
use crate::error::from_store;
use crate::limits::{KNOWN_BYTES_MAX, KNOWN_MAX};
use crate::slot::Serving;

/// Who signs with an access key.
#[derive(Debug)]
pub(crate) struct Signer {
    pub(crate) user: String,
    secret: SecretAccessKey,
    expires: Option<SystemTime>,
    /// The policies that decide what the user may do, where they do.
    policies: Option<Vec<Policy>>,
    /// Bytes that it was read from.
    weight: usize,
}

impl Signer {
    fn of(credential: Credential) -> S3Result<Self> {
        let parse = |text: &String| Policy::parse(text.as_bytes(), None).map_err(documents::damaged);
        let policies = credential.policies.iter().map(parse).collect::<S3Result<Vec<_>>>()?;
        Ok(Self {
            user: credential.user,
            secret: credential.secret,
            expires: credential.key.expires,
            weight: credential.policies.iter().map(String::len).sum(),
            policies: credential.limited.then_some(policies),
        })
    }

    /// What signatures are checked with.
    pub(crate) fn secret(&self) -> &str {
        self.secret.expose()
    }

    pub(crate) fn asker(&self) -> Asker<'_> {
        Asker { user: Some(&self.user), policies: self.policies.as_deref() }
    }

    fn check_expiry(&self) -> S3Result<()> {
        match self.expires {
            Some(expires) if expires <= SystemTime::now() => Err(s3_error!(
                InvalidAccessKeyId,
                "the access key has expired: ask the operator for a new one"
            )),
            _ => Ok(()),
        }
    }
}

/// Entries of one generation.
#[derive(Debug)]
struct Entries<V> {
    generation: u64,
    by_name: HashMap<String, Arc<V>>,
    /// Bytes that they were read from.
    bytes: usize,
}

impl<V> Default for Entries<V> {
    fn default() -> Self {
        Self { generation: 0, by_name: HashMap::new(), bytes: 0 }
    }
}

impl<V> Entries<V> {
    fn find(&self, generation: u64, name: &str) -> Option<Arc<V>> {
        self.by_name.get(name).filter(|_| self.generation == generation).map(Arc::clone)
    }

    /// `weight`: bytes that it was read from.
    fn keep(&mut self, generation: u64, name: &str, value: &Arc<V>, weight: usize) {
        let is_full = self.by_name.len() >= KNOWN_MAX || self.bytes + weight > KNOWN_BYTES_MAX;
        if generation > self.generation || is_full {
            self.by_name.clear();
            self.bytes = 0;
            self.generation = self.generation.max(generation);
        }
        if generation == self.generation && weight <= KNOWN_BYTES_MAX {
            // One that two requests read at once is counted twice: that much too early the rest goes.
            self.by_name.insert(name.to_owned(), Arc::clone(value));
            self.bytes += weight;
        }
    }
}

/// What one serving knows.
#[derive(Default)]
pub(crate) struct Known {
    signers: Mutex<Entries<Signer>>,
    authorities: Mutex<Entries<Authority>>,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known").finish_non_exhaustive()
    }
}

impl Serving {
    /// Who signs with this access key.
    pub(crate) async fn signer(&self, access_key: &str) -> S3Result<Arc<Signer>> {
        let read = |store: &Store, id: &str| {
            let found = store.credential(id).map_err(|error| from_store(&error))?;
            let no_such_key = || s3_error!(InvalidAccessKeyId, "{}", StoreError::NoSuchAccessKey);
            Signer::of(found.ok_or_else(no_such_key)?)
        };
        let signer = self.known(|known| &known.signers, access_key, read, |signer| signer.weight).await?;
        signer.check_expiry()?;
        Ok(signer)
    }

    /// Who may do what with this bucket.
    pub(crate) async fn authority(&self, bucket: &str) -> S3Result<Arc<Authority>> {
        let read = |store: &Store, name: &str| {
            let (bucket, documents) =
                store.bucket_with_documents(name).map_err(|error| from_store(&error))?;
            Authority::read(bucket, &documents)
        };
        self.known(|known| &known.authorities, bucket, read, |authority| authority.weight).await
    }

    async fn known<V: Send + Sync + 'static>(
        &self,
        entries: impl Fn(&Known) -> &Mutex<Entries<V>>,
        name: &str,
        read: impl FnOnce(&Store, &str) -> Result<V, S3Error> + Send + 'static,
        weight: impl Fn(&V) -> usize,
    ) -> S3Result<Arc<V>> {
        let entries = entries(&self.known);
        let generation = self.store.settings_generation();
        let found = entries.lock().unwrap_or_else(PoisonError::into_inner).find(generation, name);
        if let Some(found) = found {
            // It was read while the key was there; it may be gone since.
            self.store.check().map_err(|error| from_store(&error))?;
            return Ok(found);
        }
        let asked = name.to_owned();
        let read = Arc::new(self.run(move |store| read(store, &asked)).await?);
        entries.lock().unwrap_or_else(PoisonError::into_inner).keep(generation, name, &read, weight(&read));
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_counts_in_its_own_generation_only() {
        let mut entries = Entries::default();
        entries.keep(3, "a", &Arc::new(1), 1);
        assert_eq!(entries.find(3, "a").as_deref(), Some(&1));
        assert_eq!(entries.find(4, "a"), None);
        // Read before the change, kept after it: too late.
        entries.keep(4, "b", &Arc::new(2), 1);
        entries.keep(3, "a", &Arc::new(1), 1);
        assert_eq!((entries.find(4, "a"), entries.find(3, "a")), (None, None));
        assert_eq!(entries.find(4, "b").as_deref(), Some(&2));
    }

    #[test]
    fn there_are_never_more_entries_than_the_limit() {
        let mut entries = Entries::default();
        for number in 0..KNOWN_MAX + 10 {
            entries.keep(1, &number.to_string(), &Arc::new(number), 1);
            assert!(entries.by_name.len() <= KNOWN_MAX);
        }
        assert!(entries.find(1, &(KNOWN_MAX + 9).to_string()).is_some());
    }
    #[test]
    fn what_they_were_read_from_is_never_more_than_the_limit() {
        let mut entries = Entries::default();
        let half = KNOWN_BYTES_MAX / 2;
        for (number, weight) in [half, half, 1, KNOWN_BYTES_MAX + 1, 1].into_iter().enumerate() {
            entries.keep(1, &number.to_string(), &Arc::new(number), weight);
            assert!(entries.bytes <= KNOWN_BYTES_MAX);
            let is_kept = entries.find(1, &number.to_string()).is_some();
            assert_eq!(is_kept, weight <= KNOWN_BYTES_MAX, "{number}");
        }
        assert!(entries.find(1, "1").is_none(), "it went when there was too much");
    }
}
