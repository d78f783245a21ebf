//! A server with one export, `disk`, over the whole real path down to a device that can be stopped and cut.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use device::{Device, DeviceError, DeviceInfo, Metadata, Sealed, SealedSlice, SimulatedDevice};
use keyring::simulated::Keyholder;
use keyring::{KeyHandle, Keyring, WipeCause};
use nbd_server::client::{Client, Endpoint};
use nbd_server::{Access, Doorkeeper, Export, Limits, NbdServer, OnSeal};
use pool::{CreateOptions, Pool, VolumeKind, VolumeSpec};
use sealing::{Snapshots, Volume};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use units::{BootInstant, ByteLen, ByteOffset, DomainId, SectorCount, VolumeEpoch, VolumeId};

pub(crate) const MIB: u64 = 1 << 20;

/// So much, where nothing is, goes to the device at once; less may wait in memory for a flush.
pub(crate) const NOT_SMALL: usize = 128 << 10;

/// No step of a test takes longer, whatever else the machine does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A simulated device whose transfers of ciphertext can be held up.
pub(crate) struct GatedDevice {
    below: Arc<SimulatedDevice>,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Default)]
struct Gate {
    closed: bool,
    held: usize,
    panics: bool,
}

impl fmt::Debug for GatedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GatedDevice").field(&self.below).finish()
    }
}

impl GatedDevice {
    pub(crate) fn new(below: Arc<SimulatedDevice>) -> Arc<Self> {
        Arc::new(Self { below, gate: Mutex::default(), changed: Condvar::new() })
    }

    pub(crate) fn below(&self) -> &Arc<SimulatedDevice> {
        &self.below
    }

    /// From now on reads and writes of ciphertext wait.
    pub(crate) fn close(&self) {
        self.gate.lock().unwrap().closed = true;
    }

    pub(crate) fn open(&self) {
        self.gate.lock().unwrap().closed = false;
        self.changed.notify_all();
    }

    /// The next transfer panics, as a bug below would.
    pub(crate) fn panic_once(&self) {
        self.gate.lock().unwrap().panics = true;
    }

    /// Returns once `count` transfers wait.
    pub(crate) fn wait_held(&self, count: usize) {
        let gate = self.gate.lock().unwrap();
        let (gate, _) = self.changed.wait_timeout_while(gate, PATIENCE, |gate| gate.held < count).unwrap();
        assert!(gate.held >= count, "{} of {count} transfers came", gate.held);
    }

    fn pass(&self) {
        let mut gate = self.gate.lock().unwrap();
        if gate.closed {
            gate.held += 1;
            self.changed.notify_all();
            gate = self.changed.wait_while(gate, |gate| gate.closed).unwrap();
            gate.held -= 1;
        }
        let panics = std::mem::take(&mut gate.panics);
        drop(gate);
        assert!(!panics, "a bug in the device, planted by the test");
    }
}

impl Device for GatedDevice {
    fn len(&self) -> ByteLen {
        self.below.len()
    }
    fn refresh_len(&self) -> Result<ByteLen, DeviceError> {
        self.below.refresh_len()
    }
    fn info(&self) -> DeviceInfo {
        self.below.info()
    }
    fn read(&self, at: ByteOffset, count: SectorCount) -> Result<Sealed, DeviceError> {
        self.pass();
        self.below.read(at, count)
    }
    fn read_metadata(&self, at: ByteOffset, count: SectorCount) -> Result<Metadata, DeviceError> {
        self.below.read_metadata(at, count)
    }
    fn write(&self, at: ByteOffset, data: SealedSlice<'_>) -> Result<(), DeviceError> {
        self.pass();
        self.below.write(at, data)
    }
    fn write_metadata(&self, at: ByteOffset, data: &Metadata) -> Result<(), DeviceError> {
        self.below.write_metadata(at, data)
    }
    fn flush(&self) -> Result<(), DeviceError> {
        self.below.flush()
    }
    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.below.discard(at, len)
    }
    fn reserve(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.below.reserve(at, len)
    }
}

/// What a test wants to be different from the usual.
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) on_seal: OnSeal,
    pub(crate) read_only: bool,
    pub(crate) volume_bytes: u64,
    pub(crate) pool_bytes: u64,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) access: Access,
    pub(crate) doorkeeper: Option<Arc<dyn Doorkeeper>>,
    /// A lease that ends at this instant, on a clock that starts at zero and that the test moves.
    pub(crate) lease_until: Option<BootInstant>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            on_seal: OnSeal::Hold,
            read_only: false,
            volume_bytes: 256 * MIB,
            pool_bytes: 512 * MIB,
            tls: None,
            access: Access::default(),
            doorkeeper: None,
            lease_until: None,
        }
    }
}

pub(crate) struct Rig {
    pub(crate) server: NbdServer,
    pub(crate) device: Arc<GatedDevice>,
    /// Moves the lease's clock where the setup asked for one.
    pub(crate) clock: Arc<AtomicU64>,
    pub(crate) socket: PathBuf,
    on_seal: OnSeal,
    read_only: bool,
    access: Access,
    pool: Arc<Pool>,
    keyring: Arc<Keyring>,
    keyholder: Keyholder,
    key: Option<KeyHandle>,
    runtime: Option<Runtime>,
    _folder: tempfile::TempDir,
}

const VOLUME: VolumeId = VolumeId([7; 16]);
const DOMAIN: DomainId = DomainId([9; 16]);
const EPOCH: VolumeEpoch = VolumeEpoch(1);

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(Setup::default())
    }

    pub(crate) fn with(setup: Setup) -> Self {
        let keyholder = Keyholder::new(DOMAIN, EPOCH);
        let device = GatedDevice::new(SimulatedDevice::new(ByteLen(setup.pool_bytes)));
        let options = CreateOptions::default();
        let pool = Pool::create(Arc::clone(&device) as Arc<dyn Device>, options).expect("a pool");
        let sectors = ByteLen(setup.volume_bytes).whole_sectors();
        let (check, kind) = (keyholder.check(), VolumeKind::Block);
        let spec = VolumeSpec { id: VOLUME, sectors, domain: DOMAIN, epoch: EPOCH, check, kind };
        pool.create_volume(spec).expect("a volume");
        Self::serve(setup, device, pool, keyholder)
    }

    fn serve(setup: Setup, device: Arc<GatedDevice>, pool: Arc<Pool>, keyholder: Keyholder) -> Self {
        let (keyring, clock) = match setup.lease_until {
            Some(deadline) => keyring::simulated::keyring_until(deadline),
            None => (keyring::simulated::keyring(), Arc::default()),
        };
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("nbd.sock");
        let runtime = Runtime::new().expect("a runtime");
        let server = match setup.doorkeeper {
            Some(doorkeeper) => NbdServer::with_doorkeeper(setup.limits, doorkeeper),
            None => NbdServer::new(setup.limits),
        };
        let serving = server.clone();
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::bind(&socket).expect("a socket")
        };
        runtime.spawn(async move { serving.serve_unix(listener, setup.tls).await });
        let mut rig = Self {
            server,
            device,
            clock,
            socket,
            on_seal: setup.on_seal,
            read_only: setup.read_only,
            access: setup.access,
            pool,
            keyring,
            keyholder,
            key: None,
            runtime: Some(runtime),
            _folder: folder,
        };
        rig.push();
        rig
    }

    /// Lends the key, again or for the first time, and inserts the export.
    pub(crate) fn push(&mut self) {
        let handle = self.keyholder.push(&self.keyring).expect("a key").handle;
        if self.keyring.deadline().is_none() {
            self.keyring.set_deadline(BootInstant(u64::MAX));
        }
        self.key = Some(handle);
        self.server.insert("disk", self.export()).expect("a label");
    }

    /// The volume under the key that was lent last.
    pub(crate) fn export(&self) -> Export {
        let pool_volume = self.pool.volume(VOLUME).expect("the volume");
        let volume = Volume::open(pool_volume, Arc::clone(&self.keyring), self.key.expect("a key"));
        let snapshots = Snapshots::of(Arc::clone(&self.pool), VOLUME);
        let access = self.access.clone();
        Export { volume, snapshots, read_only: self.read_only, on_seal: self.on_seal, access }
    }

    /// Takes a snapshot, and exports it as `disk@` and the byte that its id is made of.
    pub(crate) fn snapshot(&self, byte: u8) {
        let id = VolumeId([byte; 16]);
        self.pool.create_snapshot(VOLUME, id, byte.into()).expect("a snapshot");
        let pool_volume = self.pool.snapshot(id).expect("the snapshot");
        let volume = Volume::open(pool_volume, Arc::clone(&self.keyring), self.key.expect("a key"));
        let export = Export { volume, read_only: true, ..self.export() };
        self.server.insert(&format!("disk@{byte}"), export).expect("a label");
    }

    pub(crate) fn delete_snapshot(&self, byte: u8) {
        self.pool.delete_snapshot(VolumeId([byte; 16])).expect("a snapshot");
    }

    /// Forgets the key, and nothing more: the server finds out by itself.
    pub(crate) fn wipe(&self) {
        self.keyring.wipe(WipeCause::PowerLoss);
    }

    /// What the node does: forgets the key and tells the server.
    pub(crate) fn seal(&self) {
        self.wipe();
        self.server.seal_all();
    }

    /// Cuts the power, and serves what is left from a new server.
    pub(crate) fn power_cut(mut self, seed: u64) -> Self {
        let below = self.device.below().power_cut(seed);
        self.stop();
        let device = GatedDevice::new(below);
        let pool = Pool::open(Arc::clone(&device) as Arc<dyn Device>).expect("the pool opens again");
        let setup = Setup { on_seal: self.on_seal, read_only: self.read_only, ..Setup::default() };
        Self::serve(setup, device, pool, Keyholder::new(DOMAIN, EPOCH))
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::unix(&self.socket).with_timeout(PATIENCE)
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.endpoint(), "disk").expect("a connection")
    }

    /// The URI of the export for libnbd and qemu.
    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket.display())
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("running")
    }

    pub(crate) fn connections(&self) -> usize {
        self.server.exports().iter().map(|export| export.connections).sum()
    }

    fn stop(&mut self) {
        self.device.open();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Asks until it is so. For what follows an event on the other side of a socket, where nothing can be waited on.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// Numbers that follow from a seed, printed by who draws it: a failing run is replayed with NIGHTLATCH_SEED.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn seeded(what: &str) -> Self {
        let seed = std::env::var("NIGHTLATCH_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
            now.as_secs() ^ u64::from(now.subsec_nanos()) << 20
        });
        println!("{what}: NIGHTLATCH_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}

/// How long randomised tests run: a second or two, or what NIGHTLATCH_SOAK_SECONDS says.
pub(crate) fn soak() -> Duration {
    let seconds = std::env::var("NIGHTLATCH_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

pub(crate) fn moved(clock: &AtomicU64, to: BootInstant) {
    clock.store(to.0, Ordering::SeqCst);
}
