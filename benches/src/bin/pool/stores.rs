//! What takes part: the device by itself, the pool on it, and a volume of the pool under its key.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use device::{Device, FileDevice, OpenOptions, Sealed, SectorRecord};
use keyring::simulated::Keyholder;
use keyring::{Clock, Kernel, Keyring};
use locked_memory::Policy;
use pool::{CreateOptions, Pool, PoolVolume, VolumeKind, VolumeSpec};
use sealing::{Durability, Volume};
use units::{
    BootInstant, ByteLen, ByteOffset, DomainId, Lba, SECTOR_BYTES, SectorCount, VolumeEpoch, VolumeId,
};

const EPOCH: VolumeEpoch = VolumeEpoch(1);
const SECTOR: u64 = SECTOR_BYTES as u64;

/// Sectors that can be read and written, by many threads at once.
pub(crate) trait Store: Send + Sync {
    fn name(&self) -> &'static str;
    fn read(&self, first: u64, count: u64) -> Result<()>;
    fn write(&self, first: u64, content: &Content) -> Result<()>;
    fn flush(&self) -> Result<()>;
}

/// What is written, in the form that each store takes.
pub(crate) struct Content {
    clear: Vec<u8>,
    sealed: Arc<Sealed>,
}

impl Content {
    pub(crate) fn new(of: &Raw, count: u64) -> Result<Self> {
        let sealed = of.0.read(ByteOffset(0), SectorCount(count))?;
        let clear = sealed.as_bytes().to_vec();
        let records = (0..count).map(|_| SectorRecord { sequence: 1, checksum: 2, tag: [3; 16] });
        Ok(Self { clear, sealed: Arc::new(sealed.with_records(records.collect())) })
    }
}

pub(crate) struct Raw(Arc<FileDevice>);

impl Raw {
    pub(crate) fn create(path: &Path, len: u64) -> Result<Self> {
        let options = OpenOptions { create_len: Some(ByteLen(len)), ..OpenOptions::default() };
        Ok(Self(Arc::new(FileDevice::open(path, options)?)))
    }
}

impl Store for Raw {
    fn name(&self) -> &'static str {
        "device"
    }
    fn read(&self, first: u64, count: u64) -> Result<()> {
        let read = self.0.read(ByteOffset(first * SECTOR), SectorCount(count))?;
        std::hint::black_box(read);
        Ok(())
    }
    fn write(&self, first: u64, content: &Content) -> Result<()> {
        Ok(self.0.write(ByteOffset(first * SECTOR), content.sealed.as_slice())?)
    }
    fn flush(&self) -> Result<()> {
        Ok(self.0.flush()?)
    }
}

/// A pool with one volume, and what opens it again.
pub(crate) struct Site {
    pub(crate) pool: Arc<Pool>,
    pub(crate) volume: Arc<PoolVolume>,
    keyholder: Keyholder,
}

impl Site {
    /// A volume of `sectors` in a pool on a new file, with this much memory for records.
    pub(crate) fn create(path: &Path, sectors: u64, record_cache: ByteLen) -> Result<Self> {
        let len = (sectors * SECTOR * 5 / 4).next_multiple_of(1 << 20) + (128 << 20);
        let options = OpenOptions { create_len: Some(ByteLen(len)), ..OpenOptions::default() };
        let device = Arc::new(FileDevice::open(path, options)?);
        let open = pool::OpenOptions { record_cache, ..pool::OpenOptions::default() };
        let pool = Pool::create_with(device, CreateOptions::default(), open)?;
        let (id, domain) = (VolumeId([1; 16]), DomainId([2; 16]));
        let keyholder = Keyholder::new(domain, EPOCH);
        let check = keyholder.check();
        let sectors = SectorCount(sectors);
        let spec = VolumeSpec { id, sectors, domain, epoch: EPOCH, check, kind: VolumeKind::Block };
        let volume = pool.create_volume(spec)?;
        tend(&pool);
        Ok(Self { pool, volume, keyholder })
    }

    pub(crate) fn sealed_store(&self) -> SealedStore {
        SealedStore(Arc::clone(&self.volume))
    }

    pub(crate) fn clear_store(&self) -> Result<ClearStore> {
        let keyring = Keyring::new(Policy::AllowMlock, Clock::Boot, Kernel::fastest())?;
        keyring.set_deadline(BootInstant(u64::MAX));
        let key = self.keyholder.push(&keyring)?.handle;
        Ok(ClearStore(Volume::open(Arc::clone(&self.volume), keyring, key)))
    }
}

/// As the node does beside its clients.
fn tend(pool: &Arc<Pool>) {
    let pool = Arc::downgrade(pool);
    std::thread::spawn(move || {
        while let Some(pool) = pool.upgrade() {
            if pool.tend(Duration::from_secs(1)).is_err() {
                return;
            }
        }
    });
}

/// Ciphertext in and out, with records that nobody compares.
pub(crate) struct SealedStore(Arc<PoolVolume>);

impl Store for SealedStore {
    fn name(&self) -> &'static str {
        "pool"
    }
    fn read(&self, first: u64, count: u64) -> Result<()> {
        std::hint::black_box(self.0.read(Lba(first), SectorCount(count))?);
        Ok(())
    }
    fn write(&self, first: u64, content: &Content) -> Result<()> {
        Ok(self.0.write(Lba(first), EPOCH, Arc::clone(&content.sealed))?)
    }
    fn flush(&self) -> Result<()> {
        Ok(self.0.flush()?)
    }
}

/// Encrypted and tagged when written, verified and decrypted when read.
pub(crate) struct ClearStore(Volume);

impl Store for ClearStore {
    fn name(&self) -> &'static str {
        "volume"
    }
    fn read(&self, first: u64, count: u64) -> Result<()> {
        let len = usize::try_from(count * SECTOR)?;
        let mut out = vec![0; len];
        self.0.read(ByteOffset(first * SECTOR), &mut out)?;
        std::hint::black_box(out);
        Ok(())
    }
    fn write(&self, first: u64, content: &Content) -> Result<()> {
        Ok(self.0.write(ByteOffset(first * SECTOR), &content.clear, Durability::Buffered)?)
    }
    fn flush(&self) -> Result<()> {
        Ok(self.0.flush()?)
    }
}
