//! A node of a test's installation that boots from the image: keyholder, people and clients stay outside.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use config::{HealthConfig, TpmConfig};
use guest::appliance::{Appliance, ApplianceBuilder};
use harness::client::run;
use harness::process::program;
use harness::site::{DISK, OBJECTS, Site, SiteSpec, VolumeKind, create_pool};

use crate::{Image, workspace};

/// The pool's disk, by its serial number.
const POOL: &str = "/dev/disk/by-id/virtio-pool";

const POOL_BYTES: u64 = 256 << 20;

/// The firmware's memory-overwrite request, by its place in an image.
const MEMORY_OVERWRITE: &str =
    "/sys/firmware/efi/efivars/MemoryOverwriteRequestControl-e20939be-32d4-41be-a150-897f85d49829";

/// What the console says when the node waits for its key.
pub const WAITING: &str = "waiting for a keyholder to dial in";

/// An installation whose node's disk carries the image.
#[expect(missing_debug_implementations, reason = "holds the officers' secrets")]
pub struct BootedSite {
    /// The rest of it.
    pub site: Site,
    /// The disk that boots.
    pub disk: PathBuf,
    /// The pool's disk.
    pub pool: PathBuf,
}

impl BootedSite {
    /// Makes an installation, with a keyholder that runs, and the disks of its node.
    ///
    /// # Panics
    /// Where any step fails.
    pub fn new(spec: SiteSpec, image: &Image) -> Self {
        let mut site = Site::installed(spec);
        site.start_keyholder();
        site.hold_ceremony();
        let pool = site.dir().join("pool.img");
        create_pool(&pool, POOL_BYTES);
        site.change_node_config(|config| {
            let everywhere = |address: SocketAddr| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            let listen = &mut config.listen;
            listen.key = everywhere(listen.key);
            listen.admin = everywhere(listen.admin);
            listen.metrics = everywhere(listen.metrics);
            listen.nbd = listen.nbd.map(everywhere);
            listen.s3 = listen.s3.map(everywhere);
            listen.nbd_unix = None;
            config.pools[0].path = POOL.into();
            config.memory_overwrite = MEMORY_OVERWRITE.into();
            config.health = HealthConfig::default();
            config.tpm = config.tpm.take().map(|tpm| TpmConfig::with_device(tpm.device));
        });
        let disk = site.dir().join("boot.img");
        write_disk(image, Some(&site.node_config_file()), &disk);
        Self { site, disk, pool }
    }

    /// Its node's machine.
    pub fn machine(&self) -> ApplianceBuilder {
        let listen = &self.site.node_config().listen;
        let ports = [Some(listen.key), Some(listen.admin), Some(listen.metrics), listen.nbd, listen.s3];
        let builder = Appliance::builder().disk(&self.disk, "boot").disk(&self.pool, "pool");
        ports.into_iter().flatten().fold(builder, |builder, port| builder.forward(port.port()))
    }

    /// Enrols the node, which waits for its key, and gives it a block volume and an object store.
    ///
    /// # Panics
    /// Where the keyholder refuses.
    pub fn give_volumes(&self) {
        self.site.enrol_node();
        self.site.create_volume(DISK, VolumeKind::Block, 64 << 20);
        self.site.create_volume(OBJECTS, VolumeKind::Objects, 1 << 40);
        self.site.push_until_serving();
    }
}

/// Writes a disk with the program that people use for it.
///
/// # Panics
/// Where that fails.
pub fn write_disk(image: &Image, config: Option<&Path>, disk: &Path) {
    let mut command = Command::new(program("nightlatch"));
    command.args(["image", "disk"]).arg(&image.folder).arg("--key").arg(image.key.with_extension("pub"));
    command.arg("--sources").arg(workspace());
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    run(command.arg(disk)).expect_success();
}
