//! Pools on the kernel's RAID: a mirror and a RAID-6 whose disks fail while clients write, and are rebuilt onto others.
//!
//! The arrays are made through sysfs and keep no metadata of their own: what is tested is what the kernel does with flushes,
//! discards, failures and rebuilding below a pool. Clients are outside, over TLS.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use guest::node::GuestNode;
use guest::{Builder, Format, Guest};
use harness::client::{client, run};
use harness::process::{program, wait_for};
use harness::random::Random;
use harness::site::{PATIENCE, Site, SiteSpec, VolumeKind};

const MIB: usize = 1 << 20;
const SECTOR: usize = 4096;

/// What of each disk an array uses.
const MEMBER_KIB: usize = 48 << 10;
const VOLUME_BYTES: usize = 24 * MIB;
/// Clients that write at once, each to a part of its own, and what each does while disks fail.
const WRITERS: usize = 3;
const WRITES: usize = 60;

/// An array and the pool on it.
struct Array {
    name: &'static str,
    level: &'static str,
    /// Words of sysfs that this level needs more.
    shape: &'static [(&'static str, &'static str)],
    members: &'static [&'static str],
    /// Those that take the place of as many members.
    spares: &'static [&'static str],
}

const MIRROR: Array =
    Array { name: "md0", level: "raid1", shape: &[], members: &["vdb", "vdc"], spares: &["vdd"] };

const RAID6: Array = Array {
    name: "md1",
    level: "raid6",
    shape: &[("chunk_size", "65536"), ("layout", "2")],
    members: &["vde", "vdf", "vdg", "vdh"],
    spares: &["vdi", "vdj"],
};

impl Array {
    fn device(&self) -> String {
        format!("/dev/{}", self.name)
    }

    fn file(&self, name: &str) -> String {
        format!("/sys/block/{}/md/{name}", self.name)
    }

    fn read(&self, guest: &mut Guest, name: &str) -> String {
        guest.run(&format!("cat {}", self.file(name))).expect_success().trim().to_owned()
    }

    fn write(&self, guest: &mut Guest, name: &str, word: &str) {
        let file = self.file(name);
        let done = guest.run(&format!("echo {word} > {file}"));
        assert!(done.code == 0, "{word} to {file}: {}{}", done.stderr, guest.run("dmesg | tail -20").stdout);
    }

    /// Adds a disk, which holds whatever it holds.
    fn add(&self, guest: &mut Guest, disk: &str) {
        let number = guest.run(&format!("cat /sys/block/{disk}/dev")).expect_success();
        self.write(guest, "new_dev", number.trim());
        self.write(guest, &format!("dev-{disk}/size"), &MEMBER_KIB.to_string());
    }

    /// Every disk is full of zeros, so that they agree.
    fn start(&self, guest: &mut Guest) {
        guest.run(&format!("echo {} > /sys/module/md_mod/parameters/new_array", self.name)).expect_success();
        self.write(guest, "level", self.level);
        self.write(guest, "raid_disks", &self.members.len().to_string());
        self.shape.iter().for_each(|(name, word)| self.write(guest, name, word));
        self.write(guest, "component_size", &MEMBER_KIB.to_string());
        for (slot, member) in self.members.iter().enumerate() {
            self.add(guest, member);
            self.write(guest, &format!("dev-{member}/slot"), &slot.to_string());
        }
        self.write(guest, "resync_start", "none");
        self.write(guest, "array_state", "active");
        assert_eq!(self.read(guest, "degraded"), "0");
    }

    fn fail(&self, guest: &mut Guest, disk: &str) {
        self.write(guest, &format!("dev-{disk}/state"), "faulty");
    }

    fn wait_idle(&self, guest: &mut Guest) {
        wait_for("the array at rest", PATIENCE, || {
            let (action, degraded) = (self.read(guest, "sync_action"), self.read(guest, "degraded"));
            if action == "idle" { Ok(()) } else { Err(format!("{action}, degraded {degraded}")) }
        });
    }

    /// Puts each spare in the place of a failed disk.
    fn rebuild(&self, guest: &mut Guest, failed: &[&str]) {
        for disk in failed {
            // The kernel lets go of it when nothing of it is on its way any more.
            let state = self.file(&format!("dev-{disk}/state"));
            wait_for("a failed disk that can be taken out", PATIENCE, || {
                let removed = guest.run(&format!("echo remove > {state}"));
                if removed.code == 0 { Ok(()) } else { Err(removed.stderr) }
            });
        }
        for spare in self.spares {
            self.add(guest, spare);
        }
        self.write(guest, "sync_action", "recover");
        wait_for("a rebuilt array", PATIENCE, || {
            let (action, degraded) = (self.read(guest, "sync_action"), self.read(guest, "degraded"));
            if action == "idle" && degraded == "0" {
                Ok(())
            } else {
                Err(format!("{action}, degraded {degraded}"))
            }
        });
    }

    /// Reads all disks and compares them with each other.
    fn compare_disks(&self, guest: &mut Guest) {
        self.write(guest, "sync_action", "check");
        self.wait_idle(guest);
        assert_eq!(self.read(guest, "mismatch_cnt"), "0", "{}: the disks do not agree", self.name);
    }

    /// Writes, discards and flushes so far (Documentation/block/stat.rst of the kernel).
    fn counts(&self, guest: &mut Guest) -> [u64; 3] {
        let text = guest.run(&format!("cat /sys/block/{}/stat", self.name)).expect_success();
        let numbers: Vec<u64> = text.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        [numbers[4], numbers[11], numbers[15]]
    }
}

/// A volume, and what it must hold.
struct Disk<'a> {
    site: &'a Site,
    export: &'static str,
    bytes: Vec<u8>,
}

impl Disk<'_> {
    fn qemu_image(&self) -> (String, String) {
        let credentials =
            format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", self.site.nbd_certificates().display());
        let image = format!(
            "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1,file.server.port={},\
             file.export={},file.tls-creds=tls0,file.tls-hostname=localhost",
            self.site.nbd_address().port(),
            self.export
        );
        (credentials, image)
    }

    /// Fills all of it.
    fn fill(&mut self, folder: &Path, random: &mut Random) {
        self.bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.bits().to_le_bytes()));
        let file = folder.join(self.export);
        std::fs::write(&file, &self.bytes).expect("space");
        run(client("nbdcopy").arg("--flush").arg(&file).arg(self.site.nbd_tls_uri(self.export)))
            .expect_success();
    }

    /// Compares every byte.
    fn verify(&self, folder: &Path, when: &str) {
        let file = folder.join(format!("{}.found", self.export));
        let _ = std::fs::remove_file(&file);
        run(client("nbdcopy").arg(self.site.nbd_tls_uri(self.export)).arg(&file)).expect_success();
        let found = std::fs::read(&file).expect("our own");
        assert_eq!(found.len(), self.bytes.len(), "{}", self.export);
        let sectors = found.chunks(SECTOR).zip(self.bytes.chunks(SECTOR));
        let wrong: Vec<usize> =
            sectors.enumerate().filter(|(_, (found, kept))| found != kept).map(|(nth, _)| nth).collect();
        assert!(wrong.is_empty(), "{} {when}: {} sectors differ: {wrong:?}", self.export, wrong.len());
    }

    /// Writes and discards in several parts at once, flushes in between, and does `meanwhile` beside that.
    fn work(&mut self, seed: u64, meanwhile: impl FnOnce()) {
        let (credentials, image) = self.qemu_image();
        let part_len = self.bytes.len() / WRITERS / SECTOR * SECTOR;
        std::thread::scope(|scope| {
            let parts = self.bytes.chunks_mut(part_len).take(WRITERS).enumerate();
            for (nth, part) in parts {
                let mut command = client("qemu-io");
                command.args(["--object", &credentials, "--image-opts", &image]);
                let begin = nth * part_len;
                for step in steps(&mut Random::new(seed + nth as u64), part, begin) {
                    command.arg("-c").arg(step);
                }
                scope.spawn(move || {
                    let said = run(&mut command).expect_success();
                    assert!(!said.contains("failed"), "{said}");
                });
            }
            meanwhile();
        });
    }
}

/// What a client does to its part of a disk, which begins there; `part` becomes what it then holds.
fn steps(random: &mut Random, part: &mut [u8], begin: usize) -> Vec<String> {
    let mut below = |bound: usize| usize::try_from(random.bits() % bound as u64).expect("small");
    let mut steps = Vec::new();
    for nth in 0..WRITES {
        let sectors = part.len() / SECTOR;
        let first = below(sectors);
        let count = (1 + below(40)).min(sectors - first);
        let range: Range<usize> = first * SECTOR..(first + count) * SECTOR;
        let (at, len) = (begin + range.start, range.len());
        if below(6) == 0 {
            part[range].fill(0);
            steps.push(format!("discard {at} {len}"));
        } else {
            let fill = u8::try_from(1 + below(250)).expect("a byte");
            part[range].fill(fill);
            steps.push(format!("write -P {fill} {at} {len}"));
        }
        if nth % 8 == 7 {
            steps.push("flush".to_owned());
        }
    }
    steps.push("flush".to_owned());
    steps
}

/// Sixteen MiB that lie together are discarded and come back as zeros.
fn discard(disk: &mut Disk<'_>) {
    let (credentials, image) = disk.qemu_image();
    let range = 4 * MIB..20 * MIB;
    let step = format!("discard {} {}", range.start, range.len());
    let mut command = client("qemu-io");
    command.args(["--object", &credentials, "--image-opts", &image, "-c", &step, "-c", "flush"]);
    let said = run(&mut command).expect_success();
    assert!(!said.contains("failed"), "{said}");
    disk.bytes[range].fill(0);
}

/// A machine with a disk for each member and spare, and what makes pools.
fn equip(folder: &Path, machine: Builder) -> Builder {
    let disks = [&MIRROR, &RAID6].into_iter().flat_map(|array| array.members.iter().chain(array.spares));
    let machine = machine
        .memory_mib(512)
        .module("crc32c_generic")
        .module("raid1")
        .module("raid456")
        .program(&program("nightlatch"), Path::new("/usr/bin/nightlatch"));
    disks.fold(machine, |machine, disk| {
        let file = folder.join(disk);
        std::fs::File::create(&file)
            .and_then(|file| file.set_len((MEMBER_KIB << 10) as u64 + (1 << 20)))
            .expect("a disk");
        machine.drive(&file, Format::Raw)
    })
}

/// Fails `lost` while clients write, rebuilds, and then lives from what was rebuilt alone, `last` having failed as well.
fn survives(
    array: &Array,
    lost: &[&str],
    last: &[&str],
    (disk, guest): (&mut Disk<'_>, &mut Guest),
    folder: &Path,
) {
    let (site, device) = (disk.site, array.device());
    disk.fill(folder, &mut Random::new(5));
    let [_, discards, flushes] = array.counts(guest);
    discard(disk);
    disk.verify(folder, "after discarding");
    let [_, discarded, flushed] = array.counts(guest);
    println!("{device}: {} discards, {} flushes", discarded - discards, flushed - flushes);
    assert!(flushed > flushes, "{device}: no flush has come to the array");
    // RAID-6 passes none on by itself: it would have to trust what disks do with them.
    assert_eq!(discarded > discards, array.level == "raid1", "{device}");

    disk.work(100, || {
        let [before, ..] = array.counts(guest);
        let wait_for_writes = |guest: &mut Guest, from: u64| {
            wait_for("writes to the array", Duration::from_secs(60), || {
                let [now, ..] = array.counts(guest);
                if now > from + 3 { Ok(()) } else { Err(format!("{now}")) }
            });
        };
        wait_for_writes(guest, before);
        for disk in lost {
            array.fail(guest, disk);
            let [now, ..] = array.counts(guest);
            wait_for_writes(guest, now);
        }
    });
    assert_eq!(array.read(guest, "degraded"), lost.len().to_string());
    disk.verify(folder, "degraded");
    disk.work(200, || array.rebuild(guest, lost));
    disk.verify(folder, "rebuilt");
    array.compare_disks(guest);
    site.expect_sound_pool(&device);
    // Half of what is read now has to come from the disks that were rebuilt.
    last.iter().for_each(|disk| array.fail(guest, disk));
    disk.verify(folder, "from what was rebuilt");
    site.expect_sound_pool(&device);
}

#[test]
fn pools_on_raid_1_and_raid_6_survive_failing_disks_and_their_rebuilding_in_the_guest() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let configure = |config: &mut config::NodeConfig| {
        let arrays = [&MIRROR, &RAID6].map(|array| config::PoolConfig { path: array.device().into() });
        config.pools.extend(arrays);
    };
    let make = |guest: &mut Guest| {
        for array in [&MIRROR, &RAID6] {
            array.start(guest);
            guest.run(&format!("nightlatch pool create {}", array.device())).expect_success();
        }
    };
    let spec = SiteSpec { lease_ms: 120_000, ..SiteSpec::default() };
    let node = GuestNode::serving(spec, configure, |machine| equip(folder.path(), machine), make);
    let GuestNode { mut guest, site } = node;
    for (array, label) in [(&MIRROR, "mirror"), (&RAID6, "raid6")] {
        site.create_volume_on(&array.device(), label, VolumeKind::Block, VOLUME_BYTES as u64);
    }
    site.push_until_serving();
    let disk = |export| Disk { site: &site, export, bytes: vec![0; VOLUME_BYTES] };
    survives(&MIRROR, &["vdb"], &["vdc"], (&mut disk("mirror"), &mut guest), folder.path());
    survives(&RAID6, &["vde", "vdg"], &["vdf", "vdh"], (&mut disk("raid6"), &mut guest), folder.path());
    let log = guest.run("cat /run/node.log").expect_success();
    assert!(!log.contains("ERROR"), "{log}");
}
