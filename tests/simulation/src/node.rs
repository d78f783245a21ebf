//! A node in this process: pool, sealing and object store over a device that loses power on demand, key pushed in full.

use std::collections::BTreeSet;
use std::sync::Arc;

use device::{Device, SimulatedDevice};
use keyring::Integrity;
use keyring::simulated::{Keyholder, keyring};
use objects::simulated::SimulatedKey;
use objects::{
    BucketOptions, CompleteOptions, CompletedPart, Declared, DeleteRequest, ListRequest, NamedKeys,
    PutOptions, Store, StoreError, UploadOptions,
};
use pool::{CreateOptions, OpenOptions, Pool, StepHook, VolumeKind, VolumeSpec};
use sealing::{Durability, Volume, ZeroMode};
use units::{ByteLen, ByteOffset, DomainId, SectorCount, VolumeEpoch, VolumeId};

use crate::load::{Blocks, Interruption, Objects};

/// Length of the block volume.
pub const DISK_BYTES: u64 = 12 << 20;

/// Length of the object store's volume; thin.
const STORE_BYTES: u64 = 1 << 40;

/// Length of the simulated device.
const DEVICE_BYTES: u64 = 256 << 20;

/// Small, so that extents are allocated and freed all the time.
const EXTENT_BYTES: u64 = 64 * 1024;

/// Small, so that checkpoints come often.
const LOG_BYTES: u64 = 64 * 1024;

const BUCKET: &str = "bucket";
const DISK: VolumeId = VolumeId([1; 16]);
const STORE: VolumeId = VolumeId([2; 16]);
const EPOCH: VolumeEpoch = VolumeEpoch(1);

/// A key that objects may be encrypted under.
pub const NAMED_KEY: &str = "photos";

fn named_keys() -> Arc<NamedKeys> {
    let keys = Arc::new(NamedKeys::default());
    keys.lend(NAMED_KEY, SimulatedKey::new(7));
    keys
}

fn keyholder(volume: VolumeId) -> Keyholder {
    Keyholder::new(DomainId(volume.0), EPOCH)
}

/// The node.
#[derive(Debug)]
pub struct SimulatedNode {
    device: Arc<SimulatedDevice>,
    disk: Volume,
    store: Arc<Store>,
}

impl SimulatedNode {
    /// A fresh pool with both volumes on a fresh device.
    ///
    /// # Panics
    /// Where any of it fails.
    pub fn create() -> Self {
        Self::create_with_store(STORE_BYTES)
    }

    /// As [`Self::create`], with an object store on a volume of this length.
    ///
    /// # Panics
    /// Where any of it fails.
    pub fn create_with_store(store_bytes: u64) -> Self {
        let device = SimulatedDevice::new(ByteLen(DEVICE_BYTES));
        let options = CreateOptions {
            extent_len: ByteLen(EXTENT_BYTES),
            log_len: Some(ByteLen(LOG_BYTES)),
            ..CreateOptions::default()
        };
        let pool = Pool::create(Arc::clone(&device) as Arc<dyn Device>, options).expect("a pool");
        for (id, bytes, kind) in
            [(DISK, DISK_BYTES, VolumeKind::Block), (STORE, store_bytes, VolumeKind::Objects)]
        {
            let sectors = SectorCount(bytes / 4096);
            let check = keyholder(id).check();
            pool.create_volume(VolumeSpec { id, sectors, domain: DomainId(id.0), epoch: EPOCH, check, kind })
                .expect("a volume");
        }
        drop(pool);
        let node = Self::open(device, None).expect("a fresh node");
        node.store.create_bucket(BUCKET, BucketOptions::default()).expect("a bucket");
        node
    }

    /// Opens what is on `device` and pushes the keys. `on_step` hears of the pool's crash steps.
    ///
    /// # Errors
    /// Where the pool or the store does not open: after a crash that is a loss.
    ///
    /// # Panics
    /// Where there is no locked memory.
    pub fn open(device: Arc<SimulatedDevice>, on_step: Option<StepHook>) -> Result<Self, Interruption> {
        let wrong =
            |what: &str, error: &dyn std::fmt::Display| Interruption::Wrong(format!("{what}: {error}"));
        let pool = Pool::open_with(
            Arc::clone(&device) as Arc<dyn Device>,
            OpenOptions { on_step, ..OpenOptions::default() },
        )
        .map_err(|error| wrong("the pool does not open", &error))?;
        let keyring = keyring();
        // As a keyholder remembers it.
        let integrity = match pool.info().keeps_records {
            true => Integrity::Tagged,
            false => Integrity::Unverified,
        };
        let volume = |id| {
            let volume = pool.volume(id).map_err(|error| wrong("a volume is gone", &error))?;
            let key = keyholder(id)
                .promising(integrity)
                .push(&keyring)
                .map_err(|error| wrong("a key is refused", &error))?;
            Ok(Volume::open(volume, Arc::clone(&keyring), key.handle))
        };
        let disk = volume(DISK)?;
        let store = Store::open_with_keys(volume(STORE)?, named_keys())
            .map_err(|error| wrong("the object store does not open", &error))?;
        Ok(Self { device, disk, store })
    }

    /// A block client's connection.
    pub fn blocks(&self) -> impl Blocks + Send + 'static {
        NodeBlocks(self.disk.clone())
    }

    /// An object client's connection.
    pub fn objects(&self) -> impl Objects + Send + 'static {
        NodeObjects(Arc::clone(&self.store))
    }

    /// The object store itself, for what is not part of the common load.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Cuts the power. What survives is decided by `seed`.
    pub fn power_cut(self, seed: u64) -> Arc<SimulatedDevice> {
        let Self { device, disk, store } = self;
        // First the power, then whatever closing would still do.
        let survivor = device.power_cut(seed);
        drop((disk, store));
        survivor
    }
}

struct NodeBlocks(Volume);

fn unanswered(error: &dyn std::error::Error) -> Interruption {
    Interruption::Unanswered(error.to_string())
}

fn durability(durable: bool) -> Durability {
    if durable { Durability::Durable } else { Durability::Buffered }
}

impl Blocks for NodeBlocks {
    fn read(&mut self, at: u64, out: &mut [u8]) -> Result<(), Interruption> {
        self.0.read(ByteOffset(at), out).map_err(|error| unanswered(&error))
    }

    fn write(&mut self, at: u64, data: &[u8], durable: bool) -> Result<(), Interruption> {
        self.0.write(ByteOffset(at), data, durability(durable)).map_err(|error| unanswered(&error))
    }

    fn write_zeroes(&mut self, at: u64, len: u64, durable: bool) -> Result<(), Interruption> {
        // Every other place keeps its space, so that both ways are taken.
        let mode = if (at / 4096).is_multiple_of(2) { ZeroMode::MayUnmap } else { ZeroMode::KeepAllocated };
        self.0
            .write_zeroes(ByteOffset(at), ByteLen(len), mode, durability(durable))
            .map_err(|error| unanswered(&error))
    }

    fn trim(&mut self, at: u64, len: u64) -> Result<(), Interruption> {
        self.0.trim(ByteOffset(at), ByteLen(len), Durability::Buffered).map_err(|error| unanswered(&error))
    }

    fn flush(&mut self) -> Result<(), Interruption> {
        self.0.flush().map_err(|error| unanswered(&error))
    }
}

struct NodeObjects(Arc<Store>);

/// Bytes handed to the store at once, as a head would.
const CHUNK_BYTES: usize = 64 * 1024;

impl NodeObjects {
    fn try_put(&self, key: &str, body: &[u8]) -> Result<(), StoreError> {
        let mut writer = self.0.put_object(BUCKET, key, Some(body.len() as u64), None)?;
        for chunk in body.chunks(CHUNK_BYTES) {
            writer.append(chunk)?;
        }
        writer.finish(PutOptions::default()).map(|_| ())
    }

    fn try_put_in_parts(&self, key: &str, parts: &[&[u8]]) -> Result<(), StoreError> {
        let upload = self.0.create_upload(BUCKET, key, UploadOptions::default())?.id;
        let mut completed = Vec::new();
        for (number, part) in (1..).zip(parts) {
            let length = Some(part.len() as u64);
            let mut writer = self.0.upload_part((BUCKET, key), &upload, number, length, None)?;
            for chunk in part.chunks(CHUNK_BYTES) {
                writer.append(chunk)?;
            }
            let part = writer.finish(&Declared::default())?;
            completed.push(CompletedPart { number, etag: part.etag.to_string(), checksum: None });
        }
        self.0.complete_upload(BUCKET, key, &upload, completed, CompleteOptions::default()).map(|_| ())
    }

    fn try_get(&self, key: &str) -> Result<Vec<u8>, StoreError> {
        let object = self.0.object(BUCKET, key, None)?;
        let mut reader = object.reader(&(0..object.info().bytes));
        let mut body = Vec::new();
        while let Some(chunk) = reader.next_chunk(CHUNK_BYTES)? {
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn try_list(&self, prefix: &str) -> Result<BTreeSet<String>, StoreError> {
        let mut keys = BTreeSet::new();
        let mut after = None;
        loop {
            let request = ListRequest {
                prefix: prefix.to_owned(),
                delimiter: String::new(),
                after: after.take(),
                limit: 5,
                tags: false,
            };
            let page = self.0.list_objects(BUCKET, &request)?;
            keys.extend(page.objects.into_iter().map(|(key, _)| key));
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(keys),
            }
        }
    }
}

impl Objects for NodeObjects {
    fn put(&mut self, key: &str, body: &[u8]) -> Result<(), Interruption> {
        self.try_put(key, body).map_err(|error| unanswered(&error))
    }

    fn put_in_parts(&mut self, key: &str, parts: &[&[u8]]) -> Result<(), Interruption> {
        self.try_put_in_parts(key, parts).map_err(|error| unanswered(&error))
    }

    fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>, Interruption> {
        match self.try_get(key) {
            Ok(body) => Ok(Some(body)),
            Err(StoreError::NoSuchKey) => Ok(None),
            Err(error) => Err(unanswered(&error)),
        }
    }

    fn delete(&mut self, key: &str) -> Result<(), Interruption> {
        self.0.delete_object(BUCKET, DeleteRequest::of(key)).map(drop).map_err(|error| unanswered(&error))
    }

    fn list(&mut self, prefix: &str) -> Result<BTreeSet<String>, Interruption> {
        self.try_list(prefix).map_err(|error| unanswered(&error))
    }
}
