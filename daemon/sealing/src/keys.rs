//! The keys of a volume: one for each epoch of its key domain that something of it lies under.
//!
//! Invariants:
//! - A sector is sealed and unsealed under the key of its own epoch and no other.
//! - Everybody who has the volume open has the same keys: one that is added is there for all at once.
//! - An epoch that was retired here stays so; what its key could open is not on the device any more.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use keyring::{KeyGone, KeyHandle, Keyring};
use units::VolumeEpoch;

/// The lent keys of one volume.
pub struct VolumeKeys {
    pub(crate) keyring: Arc<Keyring>,
    of: RwLock<BTreeMap<VolumeEpoch, KeyHandle>>,
}

impl fmt::Debug for VolumeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeKeys").field("of", &*self.read()).finish_non_exhaustive()
    }
}

impl VolumeKeys {
    /// A volume's keys, each with the epoch that it was admitted for.
    pub fn new(keyring: Arc<Keyring>, keys: impl IntoIterator<Item = (VolumeEpoch, KeyHandle)>) -> Arc<Self> {
        Arc::new(Self { keyring, of: RwLock::new(keys.into_iter().collect()) })
    }

    /// One more. Where there is one for this epoch already that one stays, for it is in use, and the other is withdrawn.
    pub fn add(&self, epoch: VolumeEpoch, key: KeyHandle) {
        let stays = *self.write().entry(epoch).or_insert(key);
        if stays != key {
            self.keyring.drop_key(key);
        }
    }

    /// Withdraws the key of an epoch under which nothing lies any more. The last one stays.
    pub fn retire(&self, epoch: VolumeEpoch) {
        let retired = {
            let mut of = self.write();
            if of.len() > 1 { of.remove(&epoch) } else { None }
        };
        if let Some(retired) = retired {
            self.keyring.drop_key(retired);
        }
    }

    /// Withdraws all of them.
    pub fn drop_all(&self) {
        // They stay listed: whoever still has the volume open finds a key that is gone, and not that none was given.
        self.read().values().for_each(|key| self.keyring.drop_key(*key));
    }

    /// Whether the newest may be used now: they come and go together, but for those that are retired.
    pub fn check(&self) -> Result<(), KeyGone> {
        let newest = self.read().last_key_value().map(|(_, key)| *key);
        newest.map_or(Err(KeyGone::Stale), |newest| self.keyring.check(newest))
    }

    /// The epochs that there is a key for, oldest first.
    pub fn epochs(&self) -> Vec<VolumeEpoch> {
        self.read().keys().copied().collect()
    }

    /// The key of an epoch.
    pub fn of(&self, epoch: VolumeEpoch) -> Option<KeyHandle> {
        self.read().get(&epoch).copied()
    }

    pub(crate) fn newest(&self) -> VolumeEpoch {
        self.read().last_key_value().map_or(VolumeEpoch(0), |(epoch, _)| *epoch)
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<VolumeEpoch, KeyHandle>> {
        // Each change is one operation on the map, whole or not there.
        self.of.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<VolumeEpoch, KeyHandle>> {
        self.of.write().unwrap_or_else(PoisonError::into_inner)
    }
}
