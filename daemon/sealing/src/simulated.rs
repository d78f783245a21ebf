//! A node in one value, for tests: a simulated device, a pool with one volume on it, a keyring, and the keyholder's part.
//! Loses power and forgets on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use device::{Device, SimulatedDevice};
use keyring::simulated::{Keyholder, keyring};
use keyring::{KeyHandle, Keyring, WipeCause, WipeReport};
use pool::{CreateOptions, Pool, PoolVolume, VolumeKind, VolumeSpec};
use units::{BootInstant, ByteLen, DomainId, VolumeEpoch, VolumeId};

use crate::Volume;

/// A node with one volume. Everything about it follows from what it is given, except the random one-time keys.
#[derive(Debug)]
pub struct SimulatedNode {
    device: Arc<SimulatedDevice>,
    pool: Arc<Pool>,
    volume: Arc<PoolVolume>,
    keyring: Arc<Keyring>,
    keyholder: Keyholder,
    key: KeyHandle,
}

impl SimulatedNode {
    /// A volume of `volume_len` bytes (whole sectors) in a fresh pool on `device`, key pushed.
    ///
    /// # Panics
    /// If any part of it fails: this is a test's fixture.
    pub fn create(device: Arc<SimulatedDevice>, volume_len: ByteLen, kind: VolumeKind) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let number =
            u128::from(NEXT_ID.fetch_add(1, Ordering::Relaxed)) << 64 | u128::from(std::process::id());
        let (id, domain) = (VolumeId(number.to_be_bytes()), DomainId((!number).to_be_bytes()));
        let keyholder = Keyholder::new(domain, VolumeEpoch(1));
        let pool =
            Pool::create(Arc::clone(&device) as Arc<dyn Device>, CreateOptions::default()).expect("a pool");
        let (sectors, epoch, check) = (volume_len.whole_sectors(), VolumeEpoch(1), keyholder.check());
        let spec = VolumeSpec { id, sectors, domain, epoch, check, kind };
        let volume = pool.create_volume(spec).expect("a volume");
        let keyring = keyring();
        let key = keyholder.push(&keyring).expect("a key").handle;
        Self { device, pool, volume, keyring, keyholder, key }
    }

    /// The volume under the key that was pushed last.
    pub fn volume(&self) -> Volume {
        Volume::open(Arc::clone(&self.volume), Arc::clone(&self.keyring), self.key)
    }

    /// Forgets every key.
    pub fn wipe(&self) -> WipeReport {
        self.keyring.wipe(WipeCause::PowerLoss)
    }

    /// Lends the key again, after a wipe, and returns the volume under it.
    ///
    /// # Panics
    /// If the push fails.
    pub fn push(&mut self) -> Volume {
        self.key = self.keyholder.push(&self.keyring).expect("a key").handle;
        self.keyring.set_deadline(BootInstant(u64::MAX));
        self.volume()
    }

    /// Cuts the power: the device keeps, drops, reorders or tears what was not flushed as `seed` says; then the node starts
    /// from what is left and gets its key pushed.
    ///
    /// # Panics
    /// If the pool does not open again: what was flushed must be enough for that.
    pub fn power_cut(self, seed: u64) -> Self {
        let device = self.device.power_cut(seed);
        self.restart_on(device)
    }

    /// Kills the process and starts it again: the device loses nothing, but what only the process knew is gone, and what
    /// was not flushed may still be lost to the next power cut.
    ///
    /// # Panics
    /// If the pool does not open again.
    pub fn killed(self) -> Self {
        let device = self.device.reopened();
        self.restart_on(device)
    }

    fn restart_on(self, device: Arc<SimulatedDevice>) -> Self {
        let id = self.volume.info().id;
        let keyholder = self.keyholder;
        drop((self.volume, self.pool, self.device));
        let pool =
            Pool::open(Arc::clone(&device) as Arc<dyn Device>).expect("the pool opens after a power cut");
        let volume = pool.volume(id).expect("the volume is there");
        let keyring = keyring();
        let key = keyholder.push(&keyring).expect("a key").handle;
        Self { device, pool, volume, keyring, keyholder, key }
    }

    /// The device below, to inject faults and to look at the ciphertext.
    pub fn device(&self) -> &Arc<SimulatedDevice> {
        &self.device
    }

    /// The pool.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The volume as the pool sees it: ciphertext.
    pub fn pool_volume(&self) -> &Arc<PoolVolume> {
        &self.volume
    }

    /// Who lends the key.
    pub fn keyholder(&self) -> &Keyholder {
        &self.keyholder
    }

    /// The keyring.
    pub fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }
}
