//! A node of a test's installation inside a guest: keyholder, people and clients stay outside and reach it by forwarded ports.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use config::NodeConfig;
use harness::process::{program, wait_for};
use harness::site::{DISK, OBJECTS, PATIENCE, Site, SiteSpec, VolumeKind, create_pool};

use crate::machine::{Builder, Format, Guest};

/// The pool's device in the guest.
const POOL: &str = "/dev/vda";

const POOL_BYTES: u64 = 256 << 20;

/// An installation whose node runs in a guest, unsealed.
#[expect(missing_debug_implementations, reason = "holds the officers' secrets")]
pub struct GuestNode {
    /// The machine.
    pub guest: Guest,
    /// The rest.
    pub site: Site,
}

impl GuestNode {
    /// Makes an installation, boots a machine for its node and lends it the keys of a volume and an object store. The node's
    /// configuration is changed by `configure`, the machine by `equip`, the booted guest by `before`.
    ///
    /// # Panics
    /// Where any step fails.
    pub fn serving(
        spec: SiteSpec,
        configure: impl FnOnce(&mut NodeConfig),
        equip: impl FnOnce(Builder) -> Builder,
        before: impl FnOnce(&mut Guest),
    ) -> Self {
        let mut site = Site::installed(spec);
        site.start_keyholder();
        site.hold_ceremony();
        site.change_node_config(|config| {
            into_guest(config);
            configure(config);
        });
        let disk = site.dir().join("disk.qcow2");
        pool_disk(site.dir(), &disk);
        let config = site.node_config();
        let listen = &config.listen;
        let ports = [Some(listen.key), Some(listen.admin), Some(listen.metrics), listen.nbd, listen.s3];
        let mut builder = Guest::builder()
            .parameter("secretmem.enable=1")
            // As the image sets it: what is freed is zeroed.
            .parameter("init_on_free=1")
            .drive(&disk, Format::Qcow2)
            .program(&program("nightlatchd"), Path::new("/usr/bin/nightlatchd"));
        for port in ports.into_iter().flatten() {
            builder = builder.forward(port.port());
        }
        let own = [site.node_config_file(), site.dir().join("pki"), config.state_dir.clone()];
        let pin = config.keyholder_key_file();
        for path in own.iter().chain([&pin]) {
            builder = builder.copy(path, path);
        }
        let mut guest = equip(builder).boot();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        guest.run(&format!("date -u -s @{now}")).expect_success();
        before(&mut guest);
        let mut node = Self { guest, site };
        node.start();
        node.site.enrol_node();
        node.site.create_volume(DISK, VolumeKind::Block, 64 << 20);
        node.site.create_volume(OBJECTS, VolumeKind::Objects, 1 << 40);
        node.site.push_until_serving();
        node
    }

    /// Starts the node and waits until its ports are bound.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn start(&mut self) {
        let (config, ready) = (self.site.node_config_file(), self.site.node_config().ready_file());
        let line = format!(
            "rm -f {ready}; nightlatchd --config {config} > /run/node.log 2>&1 & echo $! > /run/node.pid",
            ready = ready.display(),
            config = config.display()
        );
        self.guest.run(&line).expect_success();
        let guest = &mut self.guest;
        wait_for("a started node in the guest", PATIENCE, || {
            let looked = guest.run(&format!("test -f {}", ready.display()));
            if looked.code == 0 { Ok(()) } else { Err(guest.run("cat /run/node.log").stdout) }
        });
    }

    /// The node's log.
    pub fn log(&mut self) -> String {
        self.guest.run("cat /run/node.log").expect_success()
    }
}

/// The guest's network is behind forwarded ports, and its disk is a device.
fn into_guest(config: &mut NodeConfig) {
    let everywhere = |address: SocketAddr| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    let listen = &mut config.listen;
    listen.key = everywhere(listen.key);
    listen.admin = everywhere(listen.admin);
    listen.metrics = everywhere(listen.metrics);
    listen.nbd = listen.nbd.map(everywhere);
    listen.s3 = listen.s3.map(everywhere);
    config.pools[0].path = POOL.into();
}

/// An empty pool as a disk that can be saved with the machine.
fn pool_disk(folder: &Path, disk: &Path) {
    let raw = folder.join("disk.raw");
    create_pool(&raw, POOL_BYTES);
    let mut convert = Command::new(harness::client::client("qemu-img").get_program());
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(disk);
    harness::client::run(&mut convert).expect_success();
    std::fs::remove_file(raw).expect("our own");
}
