//! What takes several boots: a power cut, a changed root, Secure Boot, a TPM. `make image-test` runs these.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use guest::appliance::{Appliance, Firmware};
use guest::tpm::Tpm;
use harness::client::{client, run};
use harness::process::{Process, program, wait_for};
use harness::random::Random;
use harness::s3::{Method, presigned};
use harness::site::{DISK, PATIENCE, PushPolicy, SiteSpec, TpmState, VolumeKind, free_port};
use image_build::{TrustedKey, verify};
use image_tests::node::{BootedSite, WAITING, write_disk};
use image_tests::{Image, shared};
use security_tests::image::search;
use security_tests::installation::{needles, recovered};

fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len / 8).flat_map(|_| random.bits().to_le_bytes()).collect()
}

#[test]
fn every_acknowledged_byte_is_there_after_the_power_was_cut() {
    let mut booted = BootedSite::new(SiteSpec::default(), &shared());
    for line in ["the session with the node ended", "cannot be reached", "unreachable"] {
        booted.site.expect_log(line);
    }
    let mut machine = booted.machine().start();
    machine.wait_console(WAITING);
    booted.give_volumes();
    let site = &booted.site;
    let key = site.create_user("tester");
    site.create_bucket("bucket");
    let access = (key.access_key.as_str(), key.secret_key.as_str());
    let url =
        |method: &Method, name: &str| presigned(&site.s3_endpoint(), "bucket", access, method, name, &[]);
    let curl = || {
        let mut curl = client("curl");
        curl.args(["--silent", "--show-error", "--fail", "--cacert"]).arg(site.ca_bundle());
        curl
    };
    let block = site.dir().join("block");
    fs::write(&block, random_bytes(1, 48 << 20)).expect("a file");
    fs::File::options().write(true).open(&block).and_then(|file| file.set_len(64 << 20)).expect("a file");
    run(client("nbdcopy").arg("--flush").arg(&block).arg(site.nbd_tls_uri(DISK))).expect_success();
    for number in 0..20 {
        let file = site.dir().join(format!("object-{number}"));
        fs::write(&file, random_bytes(100 + number, 64 << 10)).expect("a file");
        let name = format!("object-{number}");
        run(curl().arg("--upload-file").arg(&file).arg(url(&Method::PUT, &name))).expect_success();
    }
    machine.cut_power();

    let mut machine = booted.machine().start();
    let waiting = machine.wait_console(WAITING);
    println!("after the cut, power-on to sealed and reachable: {waiting:.1?}");
    site.push_until_serving();
    let back = site.dir().join("back");
    run(client("nbdcopy").arg(site.nbd_tls_uri(DISK)).arg(&back)).expect_success();
    assert!(fs::read(&block).expect("ours") == fs::read(&back).expect("ours"), "the volume has changed");
    for number in 0..20 {
        let name = format!("object-{number}");
        run(curl().arg("--output").arg(&back).arg(url(&Method::GET, &name))).expect_success();
        let sent = fs::read(site.dir().join(&name)).expect("ours");
        assert!(sent == fs::read(&back).expect("ours"), "{name} has changed");
    }
}

/// Flips one bit of a disk.
fn flip(disk: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(disk).expect("a disk");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 4], at).expect("a byte");
}

/// Where a partition begins, by its number, and its length.
fn partition(disk: &Path, number: u32) -> u64 {
    let report = run(client("sgdisk").arg(format!("--info={number}")).arg(disk)).expect_success();
    let line = report.lines().find_map(|line| line.strip_prefix("First sector: ")).expect("a first sector");
    line.split(' ').next().and_then(|word| word.parse::<u64>().ok()).expect("a number") * 512
}

#[test]
fn a_root_with_one_flipped_bit_is_not_entered() {
    let image = shared();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let disk = folder.path().join("disk");
    write_disk(&image, None, &disk);
    let root_bytes = fs::metadata(image.folder.join("root.erofs")).expect("a root").len();
    // In the middle of it, where a program lies.
    flip(&disk, partition(&disk, 2) + root_bytes / 2);
    let mut machine = Appliance::builder().disk(&disk, "boot").start();
    machine.wait_console("is not the one that this image was built with");
    let refused = machine.wait_console("the machine restarts in 10 seconds");
    println!("refused {refused:.1?} after power-on");
    assert!(!machine.console().contains("ready: sealed"));
}

#[test]
fn secure_boot_starts_the_signed_image_and_no_other() {
    let image = shared();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let signed = folder.path().join("signed");
    write_disk(&image, None, &signed);
    let mut machine = Appliance::builder().firmware(Firmware::SecureBoot).disk(&signed, "boot").start();
    let started = machine.wait_console("nightlatch: Nightlatch 0.0.0-test");
    println!("signed: started {started:.1?} after power-on");
    drop(machine);

    let unsigned = image_tests::without_signatures(&image, folder.path());
    let disk = folder.path().join("unsigned");
    write_disk(&unsigned, None, &disk);
    let mut machine = Appliance::builder().firmware(Firmware::SecureBoot).disk(&disk, "boot").start();
    machine.wait_console("Access Denied");
    assert!(!machine.console().contains("nightlatch:"), "{}", machine.console());
    drop(machine);

    // One bit of the signed one's kernel: no longer what was signed.
    let mut changed = fs::read(image.folder.join("signed/disk.efi")).expect("an image");
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let start = partition(&signed, 1);
    let disk = fs::read(&signed).expect("a disk");
    let kernel = fs::read(image.folder.join("signed/disk.efi")).expect("an image");
    let needle = &kernel[middle & !0xFFF..][..64];
    let found =
        disk.windows(64).skip(usize::try_from(start).expect("small")).position(|window| window == needle);
    let at = start + found.expect("the image lies on its disk") as u64;
    flip(&signed, at);
    let mut machine = Appliance::builder().firmware(Firmware::SecureBoot).disk(&signed, "boot").start();
    machine.wait_console("Access Denied");
    assert!(!machine.console().contains("nightlatch:"), "{}", machine.console());
}

/// What the console shows of a register.
fn register(console: &str, number: u8) -> String {
    let prefix = format!("nightlatch: PCR {number} ");
    let line = console.lines().find_map(|line| line.split(&prefix).nth(1));
    let line = line.unwrap_or_else(|| panic!("{console}"));
    line.split(' ').next().expect("a value").to_owned()
}

#[test]
fn a_tpm_proves_the_image_that_the_manifest_foretells_and_that_it_is_the_machine_which_was_approved() {
    let image = shared();
    let key = TrustedKey::load(&image.key.with_extension("pub")).expect("the key");
    let manifest = verify(&image.folder, &key).expect("a verified image").manifest;
    let expected = manifest.images.iter().find(|image| image.name == "disk.efi").expect("an image");
    let spec = SiteSpec { tpm: Some("/dev/tpmrm0".into()), ..SiteSpec::default() };
    let mut booted = BootedSite::new(spec, &image);
    for line in ["the session with the node ended", "what the node's TPM says proves nothing"] {
        booted.site.expect_log(line);
    }
    let state = tempfile::tempdir().expect("a temporary directory");
    let tpm = Tpm::start(state.path());
    let mut machine = tpm.into_machine(booted.machine()).start();
    let waiting = machine.wait_console(WAITING);
    println!("with a TPM, power-on to sealed and reachable: {waiting:.1?}");
    let console = machine.console();
    assert_eq!(register(&console, 11), expected.pcr11, "PCR 11 is not as predicted");
    assert_eq!(register(&console, 4), expected.pcr4, "PCR 4 is not as predicted");
    assert_ne!(register(&console, 12), "0".repeat(64), "the configuration beside the image was not measured");

    let site = &booted.site;
    let (pcr4, pcr11) = (&expected.pcr4, &expected.pcr11);
    site.apply_policy(&format!(
        "version = 1\n[push]\nattestation = \"required\"\nimages = [\"ours\"]\n\
         [[image]]\nname = \"ours\"\npcr4 = \"{pcr4}\"\npcr11 = \"{pcr11}\"\n"
    ));
    site.enrol_node();
    let claimed = wait_for("the TPM's word", PATIENCE, || site.tpm().ok_or_else(String::new));
    assert_eq!(claimed.state, TpmState::Claimed, "{claimed:?}");
    let fingerprint = claimed.fingerprint.clone().expect("a fingerprint");
    assert!(console.contains(&fingerprint), "the console shows what is to be compared: {console}");
    assert_eq!((claimed.pcr4.as_ref(), claimed.pcr11.as_ref()), (Some(pcr4), Some(pcr11)));
    // The firmware's own log says how the registers came to be, all of them.
    assert_eq!((claimed.secure_boot, claimed.unexplained.as_deref()), (Some(false), Some([].as_slice())));
    site.approve_node(Some(fingerprint));
    site.create_volume(DISK, VolumeKind::Block, 64 << 20);
    site.push_until_serving();
    machine.cut_power();
    drop(tpm);

    // The same image and the same machine, and another configuration beside the image.
    booted.site.change_node_config(|config| config.drain_s += 1);
    write_disk(&image, Some(&booted.site.node_config_file()), &booted.disk);
    let tpm = Tpm::start(state.path());
    let mut machine = tpm.into_machine(booted.machine()).start();
    machine.wait_console(WAITING);
    let other = machine.console();
    assert_eq!([4, 11].map(|number| register(&other, number)), [pcr4.clone(), pcr11.clone()]);
    assert_ne!(register(&other, 12), register(&console, 12));
    booted.site.wait_refused("what lies beside its image (configuration, command line)");
    // Which the person who changed it says.
    booted.site.approve_node(None);
    booted.site.push_until_serving();
}

#[test]
fn nothing_of_a_key_is_in_memory_once_the_power_button_has_done_its_work() {
    let spec = SiteSpec { push: PushPolicy::Approve, ..SiteSpec::default() };
    let mut booted = BootedSite::new(spec, &shared());
    booted.site.expect_log("the session with the node ended");
    let mut machine = booted.machine().keep_after_end().start();
    machine.wait_console(WAITING);
    booted.give_volumes();
    let keys = needles(&recovered(&booted.site));
    let held = machine.dump_memory("held");
    let found = search(&held, &keys).expect("a dump");
    assert!(!found.findings.is_empty(), "keys are held and not found: the search is blind");
    fs::remove_file(held).expect("our own");
    machine.press_power_button();
    machine.wait_console("powering off");
    wait_for("the machine's end", PATIENCE, || {
        if machine.is_switched_off() { Ok(()) } else { Err("it runs".to_owned()) }
    });
    let found = search(&machine.dump_memory("off"), &keys).expect("a dump");
    assert!(found.bytes_read > 512 << 20, "only {} bytes of memory", found.bytes_read);
    assert!(found.findings.is_empty(), "in memory after poweroff: {}", found.describe(20));
}

/// A boot server over published images, as people run it. Ends with the value.
struct BootServer {
    _process: Process,
    http: SocketAddr,
    tftp: SocketAddr,
}

fn boot_server(image: &Image, site: &Path) -> BootServer {
    let nightlatch = |verb: &[&str]| {
        let mut command = Command::new(program("nightlatch"));
        command.args(verb).arg("--key").arg(image.key.with_extension("pub"));
        command
    };
    run(nightlatch(&["image", "publish"]).arg(&image.folder).arg("--to").arg(site)).expect_success();
    let again =
        run(nightlatch(&["image", "publish"]).arg(&image.folder).arg("--to").arg(site)).expect_failure();
    assert!(again.contains("higher --sequence"), "{again}");
    let (http, tftp) = (free_port(), free_port());
    let mut command = nightlatch(&["provision", "serve", "--default", "qemu"]);
    command.arg("--site").arg(site).arg("--http").arg(http.to_string()).arg("--tftp").arg(tftp.to_string());
    let process = Process::start("the boot server", command);
    wait_for("the boot server", PATIENCE, || {
        if process.tail().contains("Serving by HTTP") { Ok(()) } else { Err(process.tail()) }
    });
    BootServer { _process: process, http, tftp }
}

#[test]
fn machines_without_a_disk_get_the_image_from_the_boot_server() {
    let image = shared();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let server = boot_server(&image, &folder.path().join("site"));
    let signed = fs::read(image.folder.join("signed/network.efi")).expect("an image");
    let got = folder.path().join("got");
    for url in [
        format!("http://{}/boot.efi", server.http),
        format!("http://{}/node/52:54:00:12:34:56/boot.efi", server.http),
        format!("tftp://{}/boot.efi", server.tftp),
    ] {
        let mut curl = client("curl");
        curl.args(["--silent", "--show-error", "--fail", "--tftp-blksize", "1428", "--output"]);
        run(curl.arg(&got).arg(&url)).expect_success();
        assert!(fs::read(&got).expect("a file") == signed, "{url}");
    }
    for path in ["qemu/manifest.sig", "..%2f..%2fetc%2fpasswd", ""] {
        let mut curl = client("curl");
        curl.args(["--silent", "--show-error", "--fail"]).arg(format!("http://{}/{path}", server.http));
        run(&mut curl).expect_failure();
    }

    // iPXE in a network card of the old kind: script, kernel and initramfs by HTTP; the root comes with them.
    let port = server.http.port();
    let option = format!("bootfile=http://10.0.2.2:{port}/boot.ipxe");
    let mut machine = Appliance::builder().firmware(Firmware::Bios).network_boot(&option).start();
    let booted = machine.wait_console("this machine has no configuration");
    println!("iPXE by HTTP: root entered {booted:.1?} after power-on");
    drop(machine);

    // UEFI's own network boot, from the emulated network's TFTP server.
    let tftp = folder.path().join("tftp");
    fs::create_dir(&tftp).expect("our own");
    fs::write(tftp.join("boot.efi"), &signed).expect("our own");
    let option = format!("tftp={},bootfile=boot.efi", tftp.display());
    let mut machine = Appliance::builder().firmware(Firmware::SecureBoot).network_boot(&option).start();
    let booted = machine.wait_console("this machine has no configuration");
    println!("UEFI by TFTP with Secure Boot: root entered {booted:.1?} after power-on");
}
