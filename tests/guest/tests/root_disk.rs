//! Machines that live on a volume: their root is one, over QEMU's NBD client and over the kernel's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use guest::{Builder, Guest};
use harness::client::{client, run};
use harness::site::{PushPolicy, Site, SiteSpec, VolumeKind};

/// The volume with the root.
const ROOT: &str = "root";

const ROOT_BYTES: u64 = 256 << 20;

/// Where the guest sees this machine.
const HOST: &str = "10.0.2.2";

/// Long enough for the node to be sealed under a running machine.
const SEALED_FOR: Duration = Duration::from_secs(3);

fn path_of(program: &str) -> PathBuf {
    client(program).get_program().into()
}

/// What both machines are made of: the kernel's client lies in the root too.
fn machine() -> Builder {
    Guest::builder()
        .module("crc32c_generic")
        .module("virtio_blk")
        .module("ext4")
        .module("nbd")
        .program(&path_of("nbd-client"), Path::new("/usr/bin/nbd-client"))
}

/// The volume as QEMU's options name it, as the guide does.
fn over_qemu(site: &Site) -> String {
    format!("driver=nbd,server.type=unix,server.path={},export={ROOT}", site.nbd_socket().display())
}

/// Puts a root into the volume by the guide's command.
fn write_root(site: &Site) {
    let image = site.dir().join("root.raw");
    machine().root_image(&image, ROOT_BYTES);
    let mut convert = client("qemu-img");
    convert.args(["convert", "-n", "-f", "raw"]).arg(&image);
    run(convert.args(["--target-image-opts", &over_qemu(site)])).expect_success();
}

fn assert_root_is(guest: &mut Guest, device: &str) {
    let mounts = guest.run("cat /proc/mounts").expect_success();
    assert!(mounts.lines().any(|line| line.starts_with(&format!("{device} / ext4 rw"))), "{mounts}");
}

#[test]
fn a_machine_whose_root_is_a_volume_boots_by_qemu_and_by_the_kernels_client_in_the_guest() {
    let mut site = Site::serving(SiteSpec { push: PushPolicy::Approve, plain: true, ..SiteSpec::default() });
    site.create_volume(ROOT, VolumeKind::Block, ROOT_BYTES);
    site.push_until_serving();
    write_root(&site);

    // A virtual disk; the node loses its keys under the running machine and gets them back.
    let mut guest = machine()
        .argument("-blockdev")
        .argument(&format!("{},node-name=root,reconnect-delay=300", over_qemu(&site)))
        .argument("-device")
        .argument("virtio-blk-pci,drive=root")
        .parameter("guest_root=/dev/vda")
        .boot();
    assert_root_is(&mut guest, "/dev/vda");
    guest.run("echo first > /kept; sync").expect_success();
    site.lose_power();
    site.wait_sealed("power-loss");
    guest.run("(echo second >> /kept; sync; echo ended > /run/ended) > /dev/null 2>&1 &").expect_success();
    std::thread::sleep(SEALED_FOR);
    site.push_until_serving();
    guest.run("while [ ! -e /run/ended ]; do sleep 0.2; done").expect_success();
    let log = guest.run("dmesg").expect_success();
    assert!(!log.contains("I/O error, dev vda") && !log.contains("EXT4-fs error"), "{log}");
    assert_eq!(guest.run("cat /kept").expect_success(), "first\nsecond\n");
    // The machine is cut off, the node killed.
    drop(guest);
    site.kill_node();
    site.start_node();
    site.push_until_serving();

    // The same root by the kernel's client, which the initial root connects.
    let connect = format!("nbd-client {HOST} {} /dev/nbd0 -N {ROOT}", site.nbd_address().port());
    let mut guest =
        machine().parameter("guest_root=/dev/nbd0").parameter(&format!("\"guest_connect={connect}\"")).boot();
    assert_root_is(&mut guest, "/dev/nbd0");
    assert_eq!(guest.run("cat /kept").expect_success(), "first\nsecond\n");
    guest.run("echo third >> /kept; sync; cat /kept").expect_success();
}
