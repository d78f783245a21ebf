//! What people point at an NBD server: qemu, libnbd's tools and fio, over the unix socket, TCP and TLS.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use harness::client::{Answer, client, run};
use harness::random::Random;
use harness::site::{DISK, Site, SiteSpec, VolumeKind};
use identity::TlsFloor;

const MIB: u64 = 1 << 20;

/// QEMU's option for a client certificate.
fn qemu_credentials(site: &Site) -> String {
    format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", site.nbd_certificates().display())
}

/// QEMU's name for an export over TLS.
fn qemu_tls_image(site: &Site, export: &str) -> String {
    let port = site.nbd_address().port();
    format!(
        "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1,file.server.port={port},\
         file.export={export},file.tls-creds=tls0,file.tls-hostname=localhost"
    )
}

/// A file of `bytes`, half of it random and the rest holes.
fn half_sparse(path: &Path, bytes: u64, seed: u64) {
    let mut random = Random::new(seed);
    let mut file = File::create(path).expect("a new file");
    for block in 0..bytes / MIB {
        if block % 2 == 0 {
            let words = (0..MIB / 8).flat_map(|_| random.bits().to_le_bytes());
            file.write_all(&words.collect::<Vec<u8>>()).expect("space for a test file");
        } else {
            std::io::Seek::seek_relative(&mut file, i64::try_from(MIB).expect("small"))
                .expect("a seekable file");
        }
    }
    file.set_len(bytes).expect("a file of a set length");
}

fn qemu_io(arguments: &[&str], commands: &[&str]) -> String {
    let mut command = client("qemu-io");
    command.args(arguments);
    for step in commands {
        command.args(["-c", step]);
    }
    let output = run(&mut command).expect_success();
    // qemu-io says so on its output and still ends with success.
    assert!(!output.contains("failed"), "{output}");
    output
}

/// Patterns at and around every boundary: sectors of 512 bytes inside 4 KiB ones, unaligned ends, zeroes and discards.
const PATTERNS: &[&str] = &[
    "write -P 0x11 0 1M",
    "write -P 0x22 512 512",
    "write -P 0x33 4096 8192",
    "write -P 0x44 1047040 2048",
    "write -z 131072 65536",
    "write -z -u 262144 65536",
    "discard 524288 131072",
    "flush",
    "write -P 0x55 -f 700k 3k",
    "aio_write -P 0x66 2M 512k",
    "aio_write -P 0x77 3M 512k",
    "aio_flush",
    "read -P 0x11 0 512",
    "read -P 0x22 512 512",
    "read -P 0x11 1024 3072",
    "read -P 0x33 4096 8192",
    "read -P 0x11 12288 118784",
    "read -P 0 131072 65536",
    "read -P 0 262144 65536",
    "read -P 0 524288 131072",
    "read -P 0x55 700k 3k",
    "read -P 0x44 1047040 2048",
    "read -P 0x66 2M 512k",
    "read -P 0x77 3M 512k",
    "read -P 0 5M 64k",
];

#[test]
fn qemu_io_reads_back_its_patterns_over_the_unix_socket_and_tls() {
    let site = Site::serving(SiteSpec::default());
    let uri = site.nbd_unix_uri(DISK);
    qemu_io(&["-f", "raw", &uri], PATTERNS);
    // What was written over the socket is there over TLS, and the other way round.
    let (credentials, image) = (qemu_credentials(&site), qemu_tls_image(&site, DISK));
    let tls = ["--object", credentials.as_str(), "--image-opts", image.as_str()];
    qemu_io(&tls, &["read -P 0x22 512 512", "read -P 0x77 3M 512k"]);
    qemu_io(&tls, &["discard 0 8M", "flush"]);
    qemu_io(&tls, PATTERNS);
    qemu_io(&["-f", "raw", &uri], &["read -P 0x33 4096 8192", "read -P 0x66 2M 512k"]);
}

#[test]
fn nbdcopy_makes_a_round_trip() {
    let site = Site::serving(SiteSpec::default());
    const BYTES: u64 = 96 * MIB;
    site.create_volume("copy", VolumeKind::Block, BYTES);
    site.wait_serving();
    let (source, target) = (site.dir().join("source"), site.dir().join("target"));
    half_sparse(&source, BYTES, 1);
    for (there, back) in [
        (site.nbd_unix_uri("copy"), site.nbd_tls_uri("copy")),
        (site.nbd_tls_uri("copy"), site.nbd_unix_uri("copy")),
    ] {
        run(client("nbdcopy").args(["--flush"]).arg(&source).arg(&there)).expect_success();
        File::create(&target).and_then(|file| file.set_len(BYTES)).expect("a target file");
        run(client("nbdcopy").arg(&back).arg(&target)).expect_success();
        run(Command::new("cmp").arg(&source).arg(&target)).expect_success();
        half_sparse(&source, BYTES, 2);
    }
}

#[test]
fn qemu_img_converts_and_compares() {
    let site = Site::serving(SiteSpec::default());
    const BYTES: u64 = 64 * MIB;
    site.create_volume("image", VolumeKind::Block, BYTES);
    site.wait_serving();
    let (raw, qcow) = (site.dir().join("raw"), site.dir().join("qcow2"));
    half_sparse(&raw, BYTES, 3);
    run(client("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&qcow))
        .expect_success();
    let (credentials, image) = (qemu_credentials(&site), qemu_tls_image(&site, "image"));
    let mut convert = client("qemu-img");
    convert.args(["convert", "-n", "--object", &credentials, "-f", "qcow2"]).arg(&qcow);
    run(convert.args(["--target-image-opts", &image])).expect_success();
    let uri = site.nbd_unix_uri("image");
    run(client("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(&raw).arg(&uri)).expect_success();
    let mut compare = client("qemu-img");
    compare.args(["compare", "--object", &credentials, "--image-opts"]);
    let local = format!("driver=qcow2,file.driver=file,file.filename={}", qcow.display());
    run(compare.arg(&local).arg(&image)).expect_success();
    // One byte differs: compare must see it, or it has compared nothing.
    qemu_io(&["-f", "raw", &uri], &["write -P 0xEE 33333 1"]);
    run(client("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(&raw).arg(&uri)).expect_failure();
    // Holes come back as holes.
    let map = run(client("qemu-img").args(["map", "--output=json", "-f", "raw"]).arg(&uri)).expect_success();
    assert!(map.contains("\"data\": false") && map.contains("\"data\": true"), "{map}");
}

/// fio writes at random with a checksum in every block and reads all of it back, from several connections at once.
fn fio_verifies(uri: &str) {
    let mut fio = client("fio");
    fio.args([
        "--name=verify",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bsrange=512-64k",
        "--blockalign=512",
        "--size=48M",
        "--offset_increment=64M",
        "--numjobs=4",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_backlog=256",
        "--do_verify=1",
        "--fsync=64",
        "--randrepeat=0",
        // No file of fio's own is left where it ran.
        "--verify_state_save=0",
        "--group_reporting",
    ]);
    let output = run(fio.arg(format!("--uri={uri}"))).expect_success();
    assert!(output.contains("err= 0"), "{output}");
}

#[test]
fn fio_finds_every_crc32c_it_wrote_over_the_unix_socket() {
    let site = Site::serving(SiteSpec::default());
    fio_verifies(&site.nbd_unix_uri(DISK));
}

/// fio takes no certificate directory in a URI, so over TCP it runs against a head without TLS.
#[test]
fn fio_finds_every_crc32c_it_wrote_over_tcp() {
    let site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
    fio_verifies(&format!("nbd://{}/{DISK}", site.nbd_address()));
}

#[test]
fn libnbd_sees_what_the_head_offers() {
    let site = Site::serving(SiteSpec::default());
    site.create_volume("second", VolumeKind::Block, 16 * MIB);
    site.wait_serving();
    let uri = site.nbd_tls_uri(DISK);
    let nbdinfo = |arguments: &[&str], uri: &str| run(client("nbdinfo").args(arguments).arg(uri));
    assert_eq!(nbdinfo(&["--size"], &uri).expect_success().trim(), (1_u64 << 30).to_string());
    for ability in ["flush", "fua", "trim", "zero", "multi-conn", "structured-reply"] {
        nbdinfo(&["--can", ability], &uri).expect_success();
    }
    nbdinfo(&["--is", "tls"], &uri).expect_success();
    nbdinfo(&["--is", "read-only"], &uri).expect_failure();
    let list = nbdinfo(&["--list"], &site.nbd_tls_uri("")).expect_success();
    assert!(list.contains(&format!("export=\"{DISK}\"")) && list.contains("export=\"second\""), "{list}");
    // The object store's volume is nobody's block device.
    assert!(!list.contains("objects"), "{list}");
    nbdinfo(&[], &site.nbd_tls_uri("objects")).expect_failure();
    nbdinfo(&[], &site.nbd_tls_uri("no-such-export")).expect_failure();
    let map = nbdinfo(&["--map"], &uri).expect_success();
    assert!(map.contains("hole"), "a new volume is one hole: {map}");
}

/// A libnbd that speaks extended headers, which the distribution's own may not yet.
#[test]
fn a_newer_libnbd_speaks_extended_headers() {
    let site = Site::serving(SiteSpec::default());
    const BYTES: u64 = 6 << 30;
    site.create_volume("large", VolumeKind::Block, BYTES);
    site.create_volume("copy", VolumeKind::Block, 32 * MIB);
    site.wait_serving();
    for uri in [site.nbd_unix_uri("large"), site.nbd_tls_uri("large")] {
        let said = run(client("nbdinfo-extended").arg(&uri)).expect_success();
        assert!(said.contains("using extended packets"), "{said}");
        // More than compact headers can name, in one run.
        let map = run(client("nbdinfo-extended").args(["--map", &uri])).expect_success();
        let words: Vec<&str> = map.split_whitespace().collect();
        assert_eq!(words[..3], ["0", BYTES.to_string().as_str(), "3"], "{map}");
    }
    let (source, target) = (site.dir().join("source"), site.dir().join("target"));
    half_sparse(&source, 32 * MIB, 5);
    for (there, back) in
        [(site.nbd_unix_uri(DISK), site.nbd_tls_uri(DISK)), (site.nbd_tls_uri(DISK), site.nbd_unix_uri(DISK))]
    {
        run(client("nbdcopy-extended").arg("--flush").arg(&source).arg(&there)).expect_success();
        run(client("nbdcopy-extended").arg(&back).arg(&target)).expect_success();
        let length = (32 * MIB).to_string();
        run(Command::new("cmp").args(["--bytes", &length]).arg(&source).arg(&target)).expect_success();
    }
}

#[test]
fn tls_wants_a_certificate_of_the_clients_issuer() {
    let mut site = Site::serving(SiteSpec::default());
    site.expect_log("TLS");
    let port = site.nbd_address().port();
    let clear = run(client("nbdinfo").arg(format!("nbd://localhost:{port}/{DISK}"))).expect_failure();
    assert!(!clear.contains("export-size"), "{clear}");
    let listed =
        run(client("nbdinfo").args(["--list", &format!("nbd://localhost:{port}/")])).expect_failure();
    assert!(!listed.contains(DISK), "a list in clear names the exports: {listed}");
    let with =
        |folder: &Path| format!("nbds://localhost:{port}/{DISK}?tls-certificates={}", folder.display());
    // Without a certificate.
    let bare = site.dir().join("bare");
    std::fs::create_dir(&bare).expect("a new folder");
    std::fs::copy(site.ca_bundle(), bare.join("ca-cert.pem")).expect("a copy");
    run(client("nbdinfo").arg(with(&bare))).expect_failure();
    // With the operator's.
    let operator = site.dir().join("operator");
    std::fs::create_dir(&operator).expect("a new folder");
    std::fs::copy(site.ca_bundle(), operator.join("ca-cert.pem")).expect("a copy");
    let leaf = site.authority().leaf_files(identity::Role::Operator, &"op".parse().expect("a name"));
    std::fs::copy(leaf.cert, operator.join("client-cert.pem")).expect("a copy");
    std::fs::copy(leaf.key, operator.join("client-key.pem")).expect("a copy");
    run(client("nbdinfo").arg(with(&operator))).expect_failure();
    // The right one still gets in.
    run(client("nbdinfo").arg(with(&site.nbd_certificates()))).expect_success();
}

/// A site whose NBD head takes TLS from a version on.
fn site_with_floor(floor: TlsFloor) -> Site {
    let mut site = Site::installed(SiteSpec::default());
    site.change_node_config(|config| config.tls.nbd_min = floor);
    site.start_keyholder();
    site.hold_ceremony();
    site.start_node();
    site.enrol_node();
    site.create_volume(DISK, VolumeKind::Block, 64 << 20);
    site.push_until_serving();
    site
}

/// It needs no device to list what there is.
fn nbd_client_lists(site: &Site) -> Answer {
    let certificates = site.nbd_certificates();
    let file = |name: &str| certificates.join(name).display().to_string();
    let mut nbd_client = client("nbd-client");
    nbd_client.args(["-l", "localhost", &site.nbd_address().port().to_string(), "-tlshostname", "localhost"]);
    nbd_client.args(["-cacertfile", &file("ca-cert.pem"), "-certfile", &file("client-cert.pem")]);
    nbd_client.args(["-keyfile", &file("client-key.pem")]);
    run(&mut nbd_client)
}

#[test]
fn the_kernels_client_which_has_tls_1_2_only_gets_in_where_that_is_let_in() {
    let strict = nbd_client_lists(&site_with_floor(TlsFloor::Tls13));
    // It reads on after the connection has ended, and says what lay in memory.
    assert!(!strict.stdout.contains(DISK), "{}", strict.describe());
    let lenient = nbd_client_lists(&site_with_floor(TlsFloor::Tls12)).expect_success();
    assert!(lenient.contains(DISK), "{lenient}");
}
