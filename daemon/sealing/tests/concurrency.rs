//! Many callers at once: no lost update, no mixed sector, and no use of a key that is gone.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use device::{
    Device, DeviceError, DeviceInfo, Fault, Metadata, Sealed, SealedSlice, SectorRecord, SimulatedDevice,
};
use keyring::WipeCause;
use keyring::simulated::{Keyholder, keyring};
use pool::{CreateOptions, Pool, PoolVolume, VolumeKind, VolumeSpec};
use sealing::simulated::SimulatedNode;
use sealing::{Durability, ErrorKind, Volume, ZeroMode};
use support::{Random, index, seed, soak};
use units::{BootInstant, ByteLen, ByteOffset, DomainId, SECTOR_BYTES, SectorCount, VolumeEpoch, VolumeId};

const SECTOR: u64 = SECTOR_BYTES as u64;
const THREADS: u64 = 4;
const THREAD_SLOTS: usize = 4;

fn node(volume_bytes: u64) -> SimulatedNode {
    SimulatedNode::create(SimulatedDevice::new(ByteLen(64 << 20)), ByteLen(volume_bytes), VolumeKind::Block)
}

/// A volume in a fresh pool on `device`, and who holds its key.
fn volume_on(device: Arc<dyn Device>, sectors: SectorCount) -> (Arc<PoolVolume>, Keyholder) {
    let (id, domain, epoch) = (VolumeId([3; 16]), DomainId([4; 16]), VolumeEpoch(1));
    let keyholder = Keyholder::new(domain, epoch);
    let pool = Pool::create(device, CreateOptions::default()).unwrap();
    let spec = VolumeSpec { id, sectors, domain, epoch, check: keyholder.check(), kind: VolumeKind::Block };
    (pool.create_volume(spec).unwrap(), keyholder)
}

/// Each thread owns every fourth stripe of an odd length, so that sectors have several owners; each sees its own stripes
/// as if it were alone.
#[test]
fn neighbours_in_one_sector_lose_no_update() {
    const STRIPE: u64 = 1001;
    const STRIPES: u64 = 64;
    let seed = seed();
    let node = node((STRIPE * STRIPES * THREADS).next_multiple_of(SECTOR));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let volume = node.volume();
            scope.spawn(move || {
                let mut random = Random(seed + thread);
                let mut mine = vec![vec![0u8; index(STRIPE)]; index(STRIPES)];
                let start = Instant::now();
                while start.elapsed() < soak(2) {
                    let stripe = random.below(STRIPES);
                    let (from, to) = (random.below(STRIPE), random.below(STRIPE));
                    let (from, to) = (from.min(to), from.max(to) + 1);
                    let (from, to) = (from, to.min(STRIPE));
                    let origin = (stripe * THREADS + thread) * STRIPE;
                    let stripe = &mut mine[index(stripe)];
                    let data = random.bytes(to - from);
                    volume.write(ByteOffset(origin + from), &data, Durability::Buffered).unwrap();
                    stripe[index(from)..index(to)].copy_from_slice(&data);
                    let mut out = vec![0; index(STRIPE)];
                    volume.read(ByteOffset(origin), &mut out).unwrap();
                    assert!(out == *stripe, "thread {thread} lost an update");
                }
            });
        }
    });
}

#[test]
fn a_reader_never_sees_two_writes_in_one_sector() {
    const SECTORS: u64 = 80;
    let seed = seed();
    let device = AwkwardDevice::new(true);
    let (pool_volume, keyholder) = volume_on(device, SectorCount(SECTORS));
    let keyring = keyring();
    let key = keyholder.push(&keyring).unwrap().handle;
    let volume = Volume::open(pool_volume, keyring, key);
    let stop = AtomicBool::new(false);
    let write_until_stopped = |thread: u64| {
        let mut random = Random(seed + thread);
        while !stop.load(Ordering::Relaxed) {
            let first = random.below(SECTORS);
            let count = 1 + random.below(SECTORS - first);
            let (at, len) = (ByteOffset(first * SECTOR), ByteLen(count * SECTOR));
            match random.below(6) {
                0 => volume.trim(at, len, Durability::Buffered).unwrap(),
                1 => volume.write_zeroes(at, len, ZeroMode::MayUnmap, Durability::Buffered).unwrap(),
                _ => {
                    let byte = random.next().to_le_bytes()[0];
                    volume.write(at, &vec![byte; index(len.0)], Durability::Buffered).unwrap();
                }
            }
        }
    };
    thread::scope(|scope| {
        let write_until_stopped = &write_until_stopped;
        let writers: Vec<_> = (0..3).map(|thread| scope.spawn(move || write_until_stopped(thread))).collect();
        let start = Instant::now();
        let mut out = vec![0; index(SECTORS * SECTOR)];
        let mut mixed = 0;
        while start.elapsed() < soak(2) && mixed == 0 && !writers.iter().any(|writer| writer.is_finished()) {
            volume.read(ByteOffset(0), &mut out).unwrap();
            let is_mixed = |sector: &&[u8]| sector.iter().any(|byte| *byte != sector[0]);
            mixed = out.chunks_exact(SECTOR_BYTES).filter(is_mixed).count();
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(mixed, 0, "sectors of two writes");
    });
}

/// Writers count up in their own sectors under wipes and pushes; whoever was told yes finds his number, or a later one
/// of his, afterwards; and no sector ever holds anything but a number that was written there.
#[test]
fn wipes_under_load_lose_nothing_acknowledged_and_write_no_garbage() {
    let mut node = node(THREADS * SECTOR);
    let current = RwLock::new(node.volume());
    let acknowledged: [AtomicU64; THREAD_SLOTS] = std::array::from_fn(|_| AtomicU64::new(0));
    let (stop, refused) = (AtomicBool::new(false), AtomicU64::new(0));
    let count_up = |thread: u64| {
        let acknowledged = &acknowledged[index(thread)];
        let at = ByteOffset(thread * SECTOR);
        let mut next = 1u64;
        while !stop.load(Ordering::Relaxed) {
            let volume = current.read().unwrap().clone();
            let sector = next.to_le_bytes().repeat(SECTOR_BYTES / 8);
            match volume.write(at, &sector, Durability::Buffered) {
                Ok(()) => {
                    acknowledged.store(next, Ordering::Relaxed);
                    next += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::KeyGone, "{error}");
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            let mut out = vec![0; SECTOR_BYTES];
            if volume.read(at, &mut out).is_ok() {
                let seen = number_in(&out);
                assert!(
                    seen + 1 == next || seen == next,
                    "sector {thread}: {seen}, expected {next} or before"
                );
            }
        }
    };
    thread::scope(|scope| {
        let count_up = &count_up;
        let writers: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || count_up(thread))).collect();
        let failed = || writers.iter().any(thread::ScopedJoinHandle::is_finished);
        let start = Instant::now();
        while start.elapsed() < soak(3) && !failed() {
            node.wipe();
            *current.write().unwrap() = node.push();
            let before = acknowledged.each_ref().map(|count| count.load(Ordering::Relaxed));
            let stuck = || {
                acknowledged.iter().zip(before).any(|(count, before)| count.load(Ordering::Relaxed) == before)
            };
            while stuck() && !failed() {
                thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    for (thread, acknowledged) in acknowledged.iter().enumerate() {
        let mut out = vec![0; SECTOR_BYTES];
        node.volume().read(ByteOffset(thread as u64 * SECTOR), &mut out).unwrap();
        let (seen, acknowledged) = (number_in(&out), acknowledged.load(Ordering::Relaxed));
        assert!(
            seen == acknowledged || seen == acknowledged + 1,
            "{seen} after {acknowledged} was acknowledged"
        );
    }
    println!("{} wipes, {} refused", node.keyring().status().generation, refused.into_inner());
}

fn number_in(sector: &[u8]) -> u64 {
    let number = u64::from_le_bytes(sector[..8].try_into().unwrap());
    assert!(sector.chunks_exact(8).all(|chunk| chunk == number.to_le_bytes()), "not what anyone wrote");
    number
}

#[test]
fn after_a_wipe_every_call_says_that_the_key_is_gone_and_touches_nothing() {
    let node = node(16 * SECTOR);
    let volume = node.volume();
    volume.write(ByteOffset(0), &[7; 3 * SECTOR_BYTES], Durability::Durable).unwrap();
    node.wipe();
    let operations = node.device().operations();
    let (at, len) = (ByteOffset(100), ByteLen(2 * SECTOR));
    let mut out = vec![0xee; index(len.0)];
    let errors = [
        volume.read(at, &mut out).unwrap_err(),
        volume.write(at, &[1; 5000], Durability::Durable).unwrap_err(),
        volume.write_zeroes(at, len, ZeroMode::MayUnmap, Durability::Durable).unwrap_err(),
        volume.write_zeroes(at, len, ZeroMode::KeepAllocated, Durability::Durable).unwrap_err(),
        volume.trim(at, len, Durability::Durable).unwrap_err(),
        volume.flush().unwrap_err(),
        volume.status(at, len).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::KeyGone, "{error}");
    }
    assert!(out.iter().all(|byte| *byte == 0), "the caller's buffer holds nothing");
    assert_eq!(node.device().operations(), operations, "nothing was written");
}

#[test]
fn device_errors_and_a_full_pool_are_told_apart_and_a_failed_flush_stays_failed() {
    let node =
        SimulatedNode::create(SimulatedDevice::new(ByteLen(16 << 20)), ByteLen(64 << 20), VolumeKind::Block);
    let volume = node.volume();
    // More than may wait in memory.
    volume.write(ByteOffset(0), &[1; 32 * SECTOR_BYTES], Durability::Durable).unwrap();
    let fault = |operation, errno| Fault { operation, after: 0, errno, lasting: false };

    node.device().inject(fault(device::Operation::Read, nix::errno::Errno::EIO));
    assert_eq!(volume.read(ByteOffset(0), &mut [0; 8]).unwrap_err().kind(), ErrorKind::Io);
    volume.read(ByteOffset(0), &mut [0; 8]).unwrap();

    let full =
        (0..64u64).find_map(|mib| volume.write(ByteOffset(mib << 20), &[2; 10], Durability::Buffered).err());
    assert_eq!(full.expect("64 MiB do not fit 16").kind(), ErrorKind::NoSpace);
    let mut out = [0; 8];
    volume.read(ByteOffset(0), &mut out).unwrap();
    assert_eq!(out[0], 2, "what was there is unharmed");

    node.device().inject(fault(device::Operation::Flush, nix::errno::Errno::EIO));
    assert_eq!(volume.flush().unwrap_err().kind(), ErrorKind::Failed);
    assert_eq!(volume.flush().unwrap_err().kind(), ErrorKind::Failed);
    assert_eq!(
        volume.write(ByteOffset(0), &[3], Durability::Buffered).unwrap_err().kind(),
        ErrorKind::Failed
    );
}

/// A device that does what a disk may: lets a write wait, and lets a read see the first half of each sector from before a
/// write and the second half from after it.
struct AwkwardDevice {
    device: Arc<SimulatedDevice>,
    tears_reads: bool,
    held: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

impl fmt::Debug for AwkwardDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AwkwardDevice")
    }
}

impl AwkwardDevice {
    fn new(tears_reads: bool) -> Arc<Self> {
        let device = SimulatedDevice::new(ByteLen(32 << 20));
        Arc::new(Self { device, tears_reads, held: Mutex::new(None) })
    }

    /// Lets the next write of ciphertext wait. Returns how to learn that it has arrived, and how to let it go.
    fn hold_next_write(&self) -> (Receiver<()>, Sender<()>) {
        let (arrived, go) = (channel(), channel());
        *self.held.lock().unwrap() = Some((arrived.0, go.1));
        (arrived.1, go.0)
    }
}

impl Device for AwkwardDevice {
    fn len(&self) -> ByteLen {
        self.device.len()
    }
    fn refresh_len(&self) -> Result<ByteLen, DeviceError> {
        self.device.refresh_len()
    }
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }
    fn read(&self, at: ByteOffset, count: SectorCount) -> Result<Sealed, DeviceError> {
        let before = self.device.read(at, count)?;
        if !self.tears_reads {
            return Ok(before);
        }
        thread::yield_now();
        let mut mixed = self.device.read(at, count)?.into_buf();
        let sectors = mixed.as_mut_bytes().chunks_exact_mut(SECTOR_BYTES);
        for (sector, before) in sectors.zip(before.as_bytes().chunks_exact(SECTOR_BYTES)) {
            let half = SECTOR_BYTES / 2;
            sector[..half].copy_from_slice(&before[..half]);
        }
        let unknown = vec![SectorRecord::default(); index(count.0)];
        Ok(Sealed::from_cipher(mixed, unknown))
    }
    fn read_metadata(&self, at: ByteOffset, count: SectorCount) -> Result<Metadata, DeviceError> {
        self.device.read_metadata(at, count)
    }
    fn write(&self, at: ByteOffset, data: SealedSlice<'_>) -> Result<(), DeviceError> {
        let held = self.held.lock().unwrap().take();
        if let Some((arrived, go)) = held {
            arrived.send(()).unwrap();
            go.recv().unwrap();
        }
        self.device.write(at, data)
    }
    fn write_metadata(&self, at: ByteOffset, data: &Metadata) -> Result<(), DeviceError> {
        self.device.write_metadata(at, data)
    }
    fn flush(&self) -> Result<(), DeviceError> {
        self.device.flush()
    }
    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.device.discard(at, len)
    }
    fn reserve(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.device.reserve(at, len)
    }
}

/// A write that hangs in the device while its key is wiped, the key is pushed again and the client writes anew: the
/// late one must not land on top.
#[test]
fn a_write_from_before_a_wipe_never_lands_on_one_from_after_it() {
    let device = AwkwardDevice::new(false);
    let (pool_volume, keyholder) = volume_on(Arc::clone(&device) as Arc<dyn Device>, SectorCount(256));
    let keyring = keyring();
    let open = || {
        keyring.set_deadline(BootInstant(u64::MAX));
        let key = keyholder.push(&keyring).unwrap().handle;
        Volume::open(Arc::clone(&pool_volume), Arc::clone(&keyring), key)
    };
    let old = open();
    // So much goes to the device at once, where nothing was before.
    const LEN: usize = 32 * SECTOR_BYTES;
    thread::scope(|scope| {
        let (arrived, go) = device.hold_next_write();
        let late = scope.spawn(|| old.write(ByteOffset(0), &[2; LEN], Durability::Buffered));
        arrived.recv().unwrap();
        keyring.wipe(WipeCause::PowerLoss);
        let new = open();
        let (done, is_done) = channel();
        scope.spawn(move || {
            new.write(ByteOffset(0), &[3; LEN], Durability::Buffered).unwrap();
            done.send(()).unwrap();
        });
        assert!(is_done.recv_timeout(Duration::from_millis(100)).is_err(), "overtook the write under way");
        go.send(()).unwrap();
        is_done.recv().unwrap();
        assert_eq!(late.join().unwrap().unwrap_err().kind(), ErrorKind::KeyGone, "not acknowledged");
    });
    let mut out = vec![0; LEN];
    open().read(ByteOffset(0), &mut out).unwrap();
    assert_eq!(out, [3; LEN]);
}
