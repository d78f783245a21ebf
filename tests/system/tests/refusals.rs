//! What must be refused: a clear error with the next step in it, and nothing lost.
//!
//! A wrong key, another volume's grant, an old fence and a replayed grant are refused by the lease machine and the keyring,
//! and tested there; here is what only whole programs can show.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use harness::client::{client, run};
use harness::process::{Process, wait_for};
use harness::s3::{S3Client, S3Error};
use harness::site::{DISK, OBJECTS, PATIENCE, Site, SiteSpec, VolumeKind, create_pool, free_port};
use identity::pki::{Authority, LEAF_DAYS_DEFAULT};
use identity::{
    ClientError, Credentials, Endpoint, ExpectedPeer, HttpsClient, NodeKey, Role, Trust, control_client,
};
use nbd_server::client::{Client, Endpoint as NbdEndpoint};

const SECTOR: u64 = 4096;

/// Where the two copies of the superblock lie (pool/FORMAT.md).
const SUPERBLOCKS: [u64; 2] = [0, 16 * SECTOR];

/// Byte offsets in a superblock: its checksum, and behind it the format version.
const CHECKSUM_AT: u64 = 8;
const VERSION_AT: u64 = 12;

/// A site with something to lose.
fn with_data() -> Site {
    let spec =
        SiteSpec { pool_bytes: 256 << 20, disk_bytes: 64 << 20, lease_ms: 5_000, ..SiteSpec::default() };
    let site = Site::serving(spec);
    let mut client = nbd(&site);
    client.write(1 << 20, &[0xA7; 128 * 1024], true).expect("a durable write");
    site
}

fn nbd(site: &Site) -> Client {
    Client::connect(&NbdEndpoint::unix(site.nbd_socket()), DISK).expect("an unsealed export")
}

fn check_data(site: &Site) {
    let mut read = vec![0; 128 * 1024];
    nbd(site).read(1 << 20, &mut read).expect("a read");
    assert!(read.iter().all(|byte| *byte == 0xA7), "nothing may be lost");
}

/// Starts the node, which must end with an error, and returns its log.
fn refused_start(site: &Site) -> String {
    refused_command(site.node_command())
}

fn refused_command(command: std::process::Command) -> String {
    let mut process = Process::start("nightlatchd", command);
    let status = process.wait_end(PATIENCE);
    let log = process.log().join("\n");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    log
}

#[track_caller]
fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

fn restart(site: &mut Site) {
    site.start_node();
    site.wait_serving();
    check_data(site);
}

#[test]
fn a_port_in_use_is_named() {
    let mut site = with_data();
    site.stop_node();
    for (key, address) in
        [("admin", site.node_config().listen.admin), ("s3", site.node_config().listen.s3.expect("S3"))]
    {
        let taken = TcpListener::bind(address).expect("a free port");
        assert_says(
            &refused_start(&site),
            &[&address.to_string(), &format!("listen.{key}"), "choose another port"],
        );
        drop(taken);
    }
    restart(&mut site);
}

#[test]
fn a_second_daemon_on_one_device_is_refused() {
    let mut site = with_data();
    // Another node's configuration that names the same device.
    let other = site.dir().join("other.toml");
    let text = std::fs::read_to_string(site.node_config_file()).expect("a configuration");
    let mut config: toml::Table = text.parse().expect("TOML");
    let listen = config["listen"].as_table_mut().expect("a table");
    for key in ["key", "admin", "metrics", "nbd", "s3"] {
        listen.insert(key.to_owned(), free_port().to_string().into());
    }
    listen.insert("nbd_unix".to_owned(), site.dir().join("other.sock").display().to_string().into());
    std::fs::write(&other, config.to_string()).expect("a writable directory");
    let mut command = std::process::Command::new(harness::process::program("nightlatchd"));
    command.arg("--config").arg(&other);
    let mut process = Process::start("second nightlatchd", command);
    let status = process.wait_end(PATIENCE);
    let log = process.log().join("\n");
    assert_eq!(status.code(), Some(1), "{log}");
    assert_says(
        &log,
        &[
            &site.pool_file().display().to_string(),
            "already opened by another process",
            "stop that nightlatchd",
        ],
    );
    check_data(&site);
    // A stale lock of a killed node keeps nobody out.
    site.kill_node();
    restart(&mut site);
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("the pool's file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("a byte");
}

fn keep(path: &Path, at: u64, len: usize) -> Vec<u8> {
    let mut kept = vec![0; len];
    File::open(path).and_then(|file| file.read_exact_at(&mut kept, at)).expect("the pool's file");
    kept
}

fn put_back(path: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("the pool's file");
    file.write_all_at(bytes, at).expect("the pool's file");
}

#[test]
fn a_damaged_superblock_is_mended_from_the_other_copy_and_two_are_refused() {
    let mut site = with_data();
    site.expect_log("copy of the superblock was damaged and has been written again");
    let pool = site.pool_file().to_path_buf();
    for copy in SUPERBLOCKS {
        for damage in ["flipped", "torn"] {
            site.stop_node();
            match damage {
                "flipped" => flip(&pool, copy + 200),
                _ => put_back(&pool, copy + 512, &[0xFF; 3584]),
            }
            restart(&mut site);
            assert!(
                site.node().log().iter().any(|line| line.contains("one copy of the superblock")),
                "a mended superblock is said: {}",
                site.node().tail()
            );
            // Mended means: the next start finds nothing to mend.
            site.stop_node();
            restart(&mut site);
            assert!(!site.node().log().iter().any(|line| line.contains("one copy of the superblock")));
        }
    }
    site.stop_node();
    let kept = keep(&pool, 0, 17 * 4096);
    for copy in SUPERBLOCKS {
        flip(&pool, copy + 40);
    }
    let damaged = keep(&pool, 0, 17 * 4096);
    assert_says(&refused_start(&site), &["both copies of the superblock", "Nothing was written", "restore"]);
    assert!(keep(&pool, 0, 17 * 4096) == damaged, "a refused pool is left as it is");
    put_back(&pool, 0, &kept);
    restart(&mut site);
}

#[test]
fn a_cipher_kernel_that_is_not_there_is_refused_and_another_is_taken() {
    let mut site = with_data();
    site.stop_node();
    let with = |kernel: &str| {
        let mut command = site.node_command();
        command.env("NIGHTLATCH_CIPHER", kernel);
        command
    };
    let said = refused_command(with("rot13"));
    assert_says(&said, &["NIGHTLATCH_CIPHER", "no cipher kernel is called", "rot13", "portable"]);
    let portable = with("portable");
    site.start_node_by(portable);
    site.wait_serving();
    check_data(&site);
    assert_eq!(site.status().cipher.kernel, "portable");
}

#[test]
fn a_pool_of_a_newer_format_is_left_alone() {
    let mut site = with_data();
    site.stop_node();
    let pool = site.pool_file().to_path_buf();
    let kept = keep(&pool, 0, 17 * 4096);
    let newer = pool::FORMAT_VERSION + 1;
    for copy in SUPERBLOCKS {
        let mut sector = keep(&pool, copy, 4096);
        let checksum = usize::try_from(CHECKSUM_AT).expect("small");
        let version = usize::try_from(VERSION_AT).expect("small");
        sector[version..version + 4].copy_from_slice(&newer.to_le_bytes());
        sector[checksum..checksum + 4].fill(0);
        let sum = crc32c::crc32c(&sector);
        sector[checksum..checksum + 4].copy_from_slice(&sum.to_le_bytes());
        put_back(&pool, copy, &sector);
    }
    let version = format!("format version {newer}");
    assert_says(&refused_start(&site), &[&version, "install the release that wrote it"]);
    put_back(&pool, 0, &kept);
    restart(&mut site);
}

#[test]
fn a_shrunk_or_truncated_device_is_refused_and_comes_back_whole() {
    let mut site = with_data();
    site.stop_node();
    let pool = site.pool_file().to_path_buf();
    let whole = site.dir().join("whole");
    let copied = std::process::Command::new("cp").args(["--sparse=always"]).arg(&pool).arg(&whole).status();
    assert!(copied.is_ok_and(|status| status.success()));
    let truncate =
        |len| OpenOptions::new().write(true).open(&pool).and_then(|file| file.set_len(len)).expect("a file");
    for (len, words) in [
        (128 << 20, ["has become shorter", "give the device its former length"]),
        // Cut inside the first superblock.
        (2048, ["", ""]),
        (0, ["is empty", "pool create"]),
    ] {
        truncate(len);
        let log = refused_start(&site);
        assert_says(&log, &words);
        assert_says(&log, &[&pool.display().to_string()]);
        assert_eq!(pool.metadata().expect("a file").len(), len, "a refused device is left as it is");
        std::fs::copy(&whole, &pool).expect("a copy");
    }
    restart(&mut site);
}

#[test]
fn a_device_without_a_pool_is_refused() {
    let mut site = Site::installed(SiteSpec::default());
    let foreign = site.dir().join("foreign");
    std::fs::write(&foreign, vec![0x42; 4 << 20]).expect("space for a test file");
    site.change_node_config(|config| config.pools[0].path.clone_from(&foreign));
    assert_says(&refused_start(&site), &[&foreign.display().to_string(), "this is the right device"]);
    let missing = site.dir().join("missing");
    site.change_node_config(|config| config.pools[0].path.clone_from(&missing));
    assert_says(&refused_start(&site), &[&missing.display().to_string()]);
    assert!(!missing.exists(), "a misspelt path makes no file");
}

#[test]
fn a_full_pool_says_so_and_loses_nothing() {
    let mut site = Site::serving(SiteSpec {
        pool_bytes: 160 << 20,
        disk_bytes: 512 << 20,
        plain: true,
        ..SiteSpec::default()
    });
    site.expect_log("full");
    let key = site.create_user("tester");
    site.create_bucket("bucket");
    let address = site.node_config().listen.s3.expect("the site serves S3");
    let mut s3 = S3Client::new(address, "bucket", &key.access_key, &key.secret_key);
    s3.put("kept", vec![3; 1 << 20]).expect("an object is stored");
    let mut disk = nbd(&site);
    let block = vec![0x5C; 1 << 20];
    let mut written = 0_u64;
    let full = loop {
        match disk.write(written << 20, &block, false) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 512, "the pool takes more than it has");
    };
    assert_eq!(full.errno(), Some(nbd_server::Errno::NoSpace), "{full}");
    disk.flush().expect("what was acknowledged can still be made durable");
    match s3.put("late", vec![4; 4 << 20]) {
        Err(S3Error::Refused { status, body, .. }) => {
            println!("S3 says {status}: {body}");
            assert!(matches!(status, 503 | 507), "{status}: {body}");
        }
        other => panic!("a full pool took an object: {:?}", other.map(|_| ())),
    }
    assert!(s3.get("late").expect("an answer").is_none(), "a refused object is not there");
    let check = |disk: &mut Client, s3: &mut S3Client| {
        let mut read = vec![0; 1 << 20];
        for at in 0..written {
            disk.read(at << 20, &mut read).expect("a read");
            assert!(read == block, "block {at} of {written}");
        }
        assert_eq!(s3.get("kept").expect("an answer").expect("the object").len(), 1 << 20);
    };
    check(&mut disk, &mut s3);
    // Full survives a restart, and what is given back can be used.
    site.stop_node();
    site.start_node();
    site.wait_serving();
    let mut disk = nbd(&site);
    check(&mut disk, &mut s3);
    s3.delete("kept").expect("a delete works on a full pool");
    disk.trim(0, 16 << 20, true).expect("a trim works on a full pool");
    wait_for("freed space", PATIENCE, || s3.put("late", vec![4; 4 << 20]).map_err(|error| error.to_string()));
    assert_eq!(s3.get("late").expect("an answer").expect("the object").len(), 4 << 20);
}

/// Signs a certificate that ended an hour ago, with the site's own issuer of that class.
fn expired(site: &Site, class: &str, role: &str, name: &str) -> (PathBuf, PathBuf) {
    let pki = site.dir().join("pki/issuers");
    let read = |name: String| std::fs::read_to_string(pki.join(name)).expect("an issuer's file");
    let issuer_key = rcgen::KeyPair::from_pem(&read(format!("{class}.key"))).expect("a key");
    let issuer_cert = read(format!("{class}.pem"));
    let issuer = rcgen::Issuer::from_ca_cert_pem(&issuer_cert, issuer_key).expect("an issuer");
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(30);
    params.not_after = now - time::Duration::hours(1);
    let uri = format!("spiffe://test.nightlatch/{role}/{name}").try_into().expect("ASCII");
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    let folder = site.dir().join("expired").join(role);
    std::fs::create_dir_all(&folder).expect("a writable directory");
    let (cert_file, key_file) = (folder.join("client-cert.pem"), folder.join("client-key.pem"));
    std::fs::write(&cert_file, certificate.pem() + &issuer_cert).expect("a writable directory");
    identity::PrivateFile::create(&key_file, key.serialize_pem().as_bytes()).expect("a writable directory");
    (cert_file, key_file)
}

/// What the node's administrative port says to these credentials.
fn admin_refusal(site: &Site, cert: &Path, key: &Path) -> ClientError {
    let credentials = Credentials::load(cert, key).expect("credentials");
    let trust = Trust::load(&site.authority().trust_files()).expect("issuers");
    let tls = control_client(&credentials, &trust, ExpectedPeer::role(Role::Node)).expect("TLS settings");
    let client = HttpsClient::new(Endpoint::from(site.node_config().listen.admin), tls);
    let answer: Result<serde_json::Value, ClientError> = site.wait(client.get("/v1/status"));
    answer.expect_err("a certificate that must be refused")
}

#[test]
fn expired_and_foreign_certificates_are_refused_by_name() {
    let mut site = with_data();
    site.expect_log("TLS");
    site.expect_log("certificate");
    // Its own program tells an operator before anything is sent.
    let (cert, key) = expired(&site, "people", "operator", "op");
    let error = Credentials::load(&cert, &key).expect_err("an expired certificate");
    assert_says(&error.to_string(), &["expired", &cert.display().to_string()]);
    // A foreign program sends it, and the head refuses.
    let (cert, _) = expired(&site, "clients", "nbd-client", "client");
    let folder = cert.parent().expect("a folder");
    std::fs::copy(site.ca_bundle(), folder.join("ca-cert.pem")).expect("a copy");
    let nbdinfo = |folder: &Path| {
        let port = site.nbd_address().port();
        let uri = format!("nbds://localhost:{port}/{DISK}?tls-certificates={}", folder.display());
        run(client("nbdinfo").args(["--size", &uri]))
    };
    let answer = nbdinfo(folder).expect_failure();
    println!("an expired NBD client hears: {answer}");
    nbdinfo(&site.nbd_certificates()).expect_success();
    // The same organisation's name, another authority.
    let foreign = Authority::create(&site.dir().join("foreign"), site.authority().trust_domain())
        .expect("an authority");
    let name = "op".parse().expect("a name");
    let leaf = foreign.issue(Role::Operator, &name, LEAF_DAYS_DEFAULT).expect("a certificate");
    let error = admin_refusal(&site, &leaf.cert, &leaf.key);
    assert!(matches!(error, ClientError::Untrusted { .. }), "{error}");
    // An NBD client's certificate is good for nothing here.
    let leaf = site.authority().leaf_files(Role::NbdClient, &"client".parse().expect("a name"));
    let error = admin_refusal(&site, &leaf.cert, &leaf.key);
    assert!(matches!(error, ClientError::Untrusted { .. }), "{error}");
    // A monitor may look and not touch.
    let monitor = site.control(Role::Monitor, "monitor", site.node_config().listen.admin, Role::Node);
    let _: serde_json::Value = site.wait(monitor.get("/v1/status")).expect("a monitor reads the status");
    let wipe: Result<serde_json::Value, _> = site.wait(monitor.post("/v1/wipe", &serde_json::json!({})));
    assert!(matches!(wipe, Err(ClientError::Refused { status: 403, .. })), "{wipe:?}");
    check_data(&site);
}

#[test]
fn a_node_with_another_identity_gets_no_key() {
    let mut site = with_data();
    site.expect_log("");
    site.stop_node();
    let key_file = site.node_config().identity_key_file();
    let kept = site.dir().join("kept.key");
    std::fs::rename(&key_file, &kept).expect("a writable directory");
    // Right name, right certificate, right disk: a box that somebody else prepared.
    NodeKey::create(&key_file).expect("another identity");
    site.start_node();
    // What went wrong last was before that that nobody listened.
    let is_told = |error: &String| error.contains("identity") || error.contains("pinned");
    let reason = wait_for("a refusal", PATIENCE, || {
        let node = site.keyholder_status().nodes.remove(0);
        node.last_error.clone().filter(is_told).ok_or_else(|| format!("{node:?}"))
    });
    println!("the keyholder says: {reason}");
    assert!(site.status().seal.sealed, "no key for a stranger");
    site.stop_node();
    std::fs::rename(&kept, &key_file).expect("a writable directory");
    restart(&mut site);
}

#[test]
fn a_restored_ledger_and_two_shares_open_every_volume_again() {
    let mut site = with_data();
    site.expect_log("the record of earlier leases is lost");
    let backup = site.ledger_backup();
    site.create_volume("later", VolumeKind::Block, 16 << 20);
    site.wait_serving();
    let backup_with_later = site.ledger_backup();
    assert!(backup_with_later.serial > backup.serial);
    // The keyholder's machine is lost, with everything on it.
    site.keyholder().kill();
    std::fs::remove_dir_all(site.keyholder_state_dir()).expect("a keyholder's directory");
    site.stop_node();
    site.start_keyholder();
    site.restore_ledger(&backup_with_later);
    assert_eq!(site.keyholder_status().state, keyholder::api::SealState::Sealed);
    site.unseal_keyholder();
    site.start_node();
    site.wait_serving();
    check_data(&site);
    let labels: Vec<_> = site.keyholder_status().volumes.into_iter().map(|volume| volume.label).collect();
    for label in [DISK, OBJECTS, "later"] {
        assert!(labels.iter().any(|found| found == label), "{label} is not in {labels:?}");
    }
}

#[test]
fn a_restarted_keyholder_knows_nothing_until_enough_officers_come() {
    let mut site = with_data();
    site.expect_log("a request failed");
    site.stop_keyholder();
    site.start_keyholder();
    assert_eq!(site.keyholder_status().state, keyholder::api::SealState::Sealed);
    let error = site.try_create_volume("early", VolumeKind::Block, 16 << 20).expect_err("a sealed keyholder");
    assert_says(&error.to_string(), &["share"]);
    site.unseal_keyholder();
    site.wait_serving();
    check_data(&site);
}

#[test]
fn a_pool_is_not_made_over_another_by_mistake() {
    let site = Site::installed(SiteSpec::default());
    let path = site.pool_file().to_path_buf();
    let before = keep(&path, 0, 1 << 20);
    let again = std::panic::catch_unwind(|| create_pool(&path, 1 << 30));
    assert!(again.is_err(), "a device that holds a pool is refused");
    assert!(keep(&path, 0, 1 << 20) == before);
}

#[test]
fn a_second_object_store_on_a_node_is_refused_and_takes_nothing_from_the_first() {
    let mut site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
    let key = site.create_user("tester");
    site.create_bucket("bucket");
    let address = site.node_config().listen.s3.expect("the site serves S3");
    let mut s3 = S3Client::new(address, "bucket", &key.access_key, &key.secret_key);
    s3.put("object", vec![7; 1 << 20]).expect("an object is stored");

    site.expect_log("serves another object store already");
    site.expect_log("could not open the volume");
    site.create_volume("more", VolumeKind::Objects, 1 << 30);
    wait_for("a refusal", PATIENCE, || {
        let volumes = site.keyholder_status().volumes;
        let more = volumes.iter().find(|volume| volume.label == "more").expect("it is in the ledger");
        let is_told = more.reason.as_ref().is_some_and(|reason| reason.contains("could not open the volume"));
        if is_told { Ok(()) } else { Err(format!("{more:?}")) }
    });
    let stored = s3.get("object").expect("the first store answers").expect("the object");
    assert!(stored.len() == 1 << 20 && stored.iter().all(|byte| *byte == 7));
}
