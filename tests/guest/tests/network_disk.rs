//! Machines whose disks are volumes: the kernel's own NBD client, and a virtual disk that the hypervisor connects.
//!
//! The node is on this machine, so that it can be killed and sealed under them. The guest has the distribution's nbd-client,
//! mkfs.xfs, xfs_repair and fio.

use std::path::{Path, PathBuf};
use std::time::Duration;

use guest::Guest;
use harness::client::client;
use harness::process::wait_for;
use harness::site::{DISK, PATIENCE, PushPolicy, Site, SiteSpec, VolumeKind};
use harness::slice::SOAK_VARIABLE;

/// The volume that the hypervisor connects.
const VIRTUAL: &str = "virtual";

/// Where the guest sees this machine.
const HOST: &str = "10.0.2.2";

/// A command ends with the first of its parts that fails.
const SHELL: &str = "set -e; ";

fn path_of(program: &str) -> PathBuf {
    client(program).get_program().into()
}

fn spec() -> SiteSpec {
    SiteSpec { push: PushPolicy::Approve, plain: true, ..SiteSpec::default() }
}

/// A guest whose `/dev/vda` is [`VIRTUAL`], with what it takes to connect [`DISK`] itself.
fn boot(site: &Site) -> Guest {
    let drive = format!(
        "driver=nbd,node-name=virtual,server.type=unix,server.path={},export={VIRTUAL},reconnect-delay=300",
        site.nbd_socket().display()
    );
    let mut builder = Guest::builder()
        .memory_mib(768)
        .module("crc32c_generic")
        .module("virtio_blk")
        .module("ext4")
        .module("xfs")
        .module("nbd")
        .argument("-blockdev")
        .argument(&drive)
        .argument("-device")
        .argument("virtio-blk-pci,drive=virtual");
    for program in ["nbd-client", "mkfs.xfs", "xfs_repair", "mkfs.ext4", "e2fsck", "fio"] {
        builder = builder.program(&path_of(program), &Path::new("/usr/bin").join(program));
    }
    let mut guest = builder.boot();
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    guest.run(&format!("date -u -s @{now}")).expect_success();
    guest
}

/// The command that connects the kernel's client, over two connections. Without a timeout the kernel lets what is in flight wait
/// for half a minute before it finds the connection dead.
fn connect(site: &Site) -> String {
    format!("nbd-client {HOST} {} /dev/nbd0 -N {DISK} -C 2 -timeout 10", site.nbd_address().port())
}

/// Starts a writer that appends numbers to `file`, each durable before it is written down in memory as acknowledged.
fn start_writer(guest: &mut Guest, file: &str, acknowledged: &str) {
    let line = format!(
        "echo 0 > {acknowledged}; (n=1; while [ ! -e {acknowledged}.stop ] && \
         echo $n | dd of={file} oflag=append conv=notrunc,fsync 2>/dev/null; \
         do echo $n > {acknowledged}; n=$((n+1)); done; echo ended > {acknowledged}.end) > /dev/null 2>&1 &"
    );
    guest.run(&line).expect_success();
}

fn number_in(guest: &mut Guest, file: &str) -> u64 {
    // The writer empties the file before it writes the next number.
    wait_for("a number", PATIENCE, || {
        let text = guest.run(&format!("cat {file}")).expect_success();
        text.trim().parse().map_err(|_| format!("in {file}: {text}"))
    })
}

fn wait_for_writes(guest: &mut Guest, acknowledged: &str, at_least: u64) {
    wait_for("writes in the guest", PATIENCE, || {
        let now = number_in(guest, acknowledged);
        if now >= at_least { Ok(()) } else { Err(format!("{now} of {at_least}")) }
    });
}

fn wait_for_end(guest: &mut Guest, acknowledged: &str) {
    wait_for("the writer's end", PATIENCE, || {
        let ended = guest.run(&format!("cat {acknowledged}.end"));
        if ended.code == 0 { Ok(()) } else { Err(guest.run("dmesg | tail").stdout) }
    });
}

/// Every number up to `last` stands in the file, in order; more may.
fn assert_holds_up_to(guest: &mut Guest, file: &str, last: u64) {
    let text = guest.run(&format!("cat {file}")).expect_success();
    let lines = text.lines().take(usize::try_from(last).expect("few"));
    let numbers: Vec<u64> = lines.map(|line| line.parse().unwrap_or(0)).collect();
    assert_eq!(numbers, (1..=last).collect::<Vec<_>>(), "what was acknowledged is there, whole and in order");
}

fn fio(arguments: &str) -> String {
    format!(
        "fio --directory=/mnt --name=verified --rw=randwrite --bsrange=512-32k --blockalign=512 --size=8M \
         --ioengine=psync --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=7 {arguments}"
    )
}

/// The kernel's client, XFS on it, and a node that dies in the middle.
fn kernel_client_survives_a_killed_node(site: &mut Site, guest: &mut Guest) {
    let connect = connect(site);
    guest
        .run(&format!("{SHELL}{connect}; mkfs.xfs -q /dev/nbd0; mkdir -p /mnt; mount -t xfs /dev/nbd0 /mnt"))
        .expect_success();
    let said = guest.run(&fio("--do_verify=1 --end_fsync=1")).expect_success();
    assert!(said.contains("err= 0"), "{said}");
    start_writer(guest, "/mnt/numbers", "/run/numbers");
    wait_for_writes(guest, "/run/numbers", 20);
    site.kill_node();
    wait_for_end(guest, "/run/numbers");
    let acknowledged = number_in(guest, "/run/numbers");
    site.start_node();
    site.push_until_serving();
    // As the guide says: the file system has given up; the device is connected anew.
    guest
        .run(&format!("{SHELL}umount /mnt; nbd-client -d /dev/nbd0; {connect}; mount -t xfs /dev/nbd0 /mnt"))
        .expect_success();
    assert!(acknowledged >= 20);
    assert_holds_up_to(guest, "/mnt/numbers", acknowledged);
    let said = guest.run(&fio("--verify_only")).expect_success();
    assert!(said.contains("err= 0"), "{said}");
    guest
        .run(&format!("{SHELL}umount /mnt; xfs_repair -n /dev/nbd0; nbd-client -d /dev/nbd0"))
        .expect_success();
}

/// How long a node stays sealed under a mounted file system.
fn sealed_for() -> Duration {
    Duration::from_secs(if std::env::var_os(SOAK_VARIABLE).is_some() { 30 } else { 6 })
}

/// A virtual disk over NBD, ext4 on it, and a node that loses its keys and gets them back.
fn virtual_disk_rides_through_a_seal(site: &Site, guest: &mut Guest) {
    guest.run(&format!("{SHELL}mkfs.ext4 -q /dev/vda; mount -t ext4 /dev/vda /mnt")).expect_success();
    start_writer(guest, "/mnt/numbers", "/run/virtual");
    wait_for_writes(guest, "/run/virtual", 20);
    site.lose_power();
    site.wait_sealed("power-loss");
    let before = number_in(guest, "/run/virtual");
    std::thread::sleep(sealed_for());
    // One write was on its way, and waits.
    assert!(
        number_in(guest, "/run/virtual") <= before + 1,
        "nothing is acknowledged while the node is sealed"
    );
    site.push_until_serving();
    wait_for_writes(guest, "/run/virtual", before + 20);
    let log = guest.run("dmesg").expect_success();
    assert!(!log.contains("I/O error, dev vda") && !log.contains("EXT4-fs error"), "{log}");
    guest.run("touch /run/virtual.stop").expect_success();
    wait_for_end(guest, "/run/virtual");
    let acknowledged = number_in(guest, "/run/virtual");
    assert_holds_up_to(guest, "/mnt/numbers", acknowledged);
    guest.run(&format!("{SHELL}umount /mnt; e2fsck -fn /dev/vda")).expect_success();
}

#[test]
fn the_kernels_client_survives_a_killed_node_and_a_virtual_disk_rides_through_a_seal_in_the_guest() {
    let mut site = Site::serving(spec());
    site.create_volume(VIRTUAL, VolumeKind::Block, 256 << 20);
    site.push_until_serving();
    let mut guest = boot(&site);
    kernel_client_survives_a_killed_node(&mut site, &mut guest);
    virtual_disk_rides_through_a_seal(&site, &mut guest);
}
