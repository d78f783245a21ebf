//! After each way of forgetting, a scanner outside the node finds no secret and no round key in it.
//!
//! The keys are recovered from officers' shares and a ledger backup, and proved to be the right ones: what lies on the
//! node's disk is what they encrypt to. So an empty scan means something.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use harness::random::Random;
use harness::s3::S3Client;
use harness::site::{DISK, OBJECTS, PushPolicy, Site, SiteSpec};
use nbd_server::client::{Client, Endpoint};
use nix::sys::signal::Signal;
use security_tests::installation::{keys_of, needles, recovered};
use security_tests::memory::{OF_A_KEYHOLDER, OF_A_NODE, Scan, scan};
use security_tests::needles::Needles;
use security_tests::recovery::{Recovered, VolumeKeys};
use security_tests::{image, polyval};
use xts_mode::{Xts128, get_tweak_default};

const SECTOR: usize = 4096;

/// A sector of the volume that the test knows.
const KNOWN_SECTOR: u64 = 12_345;

/// Sequences that the known sector's record may have: every sector that was written to the pool before took one.
const SEQUENCES: u64 = 1 << 14;

/// Short, so that expiry is one of the ways, and longer than the node stands still for a scan.
const LEASE_MS: u64 = 10_000;

fn known_sector() -> Vec<u8> {
    let mut random = Random::new(KNOWN_SECTOR);
    (0..SECTOR / 8).flat_map(|_| random.bits().to_le_bytes()).collect()
}

/// Whether the pool's file holds this ciphertext at some sector.
fn is_on_disk(pool: &Path, ciphertext: &[u8]) -> bool {
    let file = File::open(pool).expect("the pool's file");
    let len = file.metadata().expect("a file").len();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let read = file.read_at(&mut buffer, at).expect("the pool's file");
        if buffer[..read].chunks_exact(SECTOR).any(|sector| sector == ciphertext) {
            return true;
        }
        at += read as u64;
    }
    false
}

/// A sector's tag by TAG.md.
fn tag(keys: &VolumeKeys, address: u64, sequence: u64, ciphertext: &[u8]) -> [u8; 16] {
    let mut header = [0; 64];
    header[..8].copy_from_slice(b"nl-tag 1");
    header[8..16].copy_from_slice(&(ciphertext.len() as u64).to_le_bytes());
    header[16..32].copy_from_slice(&keys.domain);
    header[32..40].copy_from_slice(&address.to_le_bytes());
    header[48..56].copy_from_slice(&sequence.to_le_bytes());
    header[56..60].copy_from_slice(&keys.epoch.to_le_bytes());
    let mut block = polyval::hash(&keys.tag_hash_key, &[&header, ciphertext].concat()).into();
    Aes256::new_from_slice(&keys.tag_prf_key).expect("a key of 32 bytes").encrypt_block(&mut block);
    block.into()
}

/// The recovered keys are those that the node works with.
fn prove_keys(site: &Site, recovered: &Recovered) {
    let keys = keys_of(recovered, DISK);
    let half = |key: &[u8; 32]| Aes256::new_from_slice(key).expect("a key of 32 bytes");
    let xts = Xts128::new(half(&keys.data_key), half(&keys.tweak_key));
    let mut sector = known_sector();
    assert!(!is_on_disk(site.pool_file(), &sector), "the disk holds plaintext");
    xts.encrypt_area(&mut sector, SECTOR, u128::from(KNOWN_SECTOR), get_tweak_default);
    assert!(
        is_on_disk(site.pool_file(), &sector),
        "the disk does not hold what the recovered key encrypts to"
    );
    let mut tags = Needles::new();
    for sequence in 0..SEQUENCES {
        tags.add_text("tag", &tag(keys, KNOWN_SECTOR, sequence, &sector)[..8]);
    }
    let found = image::search(site.pool_file(), &tags).expect("the pool's file").findings;
    assert!(!found.is_empty(), "the disk does not hold the sector's tag by the recovered keys");
}

/// Scans the stopped node, so that nothing moves meanwhile.
fn scan_node(site: &mut Site, needles: &Needles) -> Scan {
    site.node().signal(Signal::SIGSTOP);
    let scan = scan(site.node().pid(), needles).expect("the node can be scanned");
    site.node().signal(Signal::SIGCONT);
    scan
}

/// Reads and writes on both heads until they are gone, so that keys are in use at the moment of the event.
fn with_load(site: &Site, access: &(String, String), event: impl FnOnce()) {
    let started = [AtomicBool::new(false), AtomicBool::new(false)];
    let address = site.node_config().listen.s3.expect("the site serves S3");
    std::thread::scope(|scope| {
        let block = scope.spawn(|| {
            let mut client =
                Client::connect(&Endpoint::unix(site.nbd_socket()), DISK).expect("an unsealed export");
            let mut block = vec![0x3C; 256 * 1024];
            while client.write(0, &block, false).and_then(|()| client.read(0, &mut block)).is_ok() {
                started[0].store(true, Ordering::SeqCst);
            }
        });
        let object = scope.spawn(|| {
            let mut client = S3Client::new(address, "bucket", &access.0, &access.1);
            while client.put("object", vec![0x5A; 300_000]).is_ok() && client.get("object").is_ok() {
                started[1].store(true, Ordering::SeqCst);
            }
        });
        while !started.iter().all(|started| started.load(Ordering::SeqCst)) {
            assert!(!block.is_finished() && !object.is_finished(), "the load ended before the event");
            std::thread::yield_now();
        }
        event();
    });
}

#[test]
fn nothing_is_left_after_each_way_of_forgetting() {
    let mut site = Site::serving(SiteSpec {
        lease_ms: LEASE_MS,
        pool_bytes: 1 << 30,
        disk_bytes: 256 << 20,
        push: PushPolicy::Approve,
        plain: true,
        ..SiteSpec::default()
    });
    let key = site.create_user("tester");
    site.create_bucket("bucket");
    let access = (key.access_key, key.secret_key);
    let mut client = Client::connect(&Endpoint::unix(site.nbd_socket()), DISK).expect("an unsealed export");
    client.write(KNOWN_SECTOR * SECTOR as u64, &known_sector(), true).expect("a durable write");
    drop(client);
    let recovered = recovered(&site);
    assert!([DISK, OBJECTS].iter().all(|label| keys_of(&recovered, label).prk != [0; 32]));
    prove_keys(&site, &recovered);
    let needles = needles(&recovered);
    println!("looking for {} windows of eight bytes", needles.len());
    // The scanner sees this very process: what it must have in ordinary memory is found there.
    let mut known = Needles::new();
    known.add_secret("the pool's path", site.pool_file().as_os_str().as_encoded_bytes());
    assert!(!scan_node(&mut site, &known).findings.is_empty(), "the scanner is blind to the node's memory");
    scan_node(&mut site, &needles).assert_clean("while serving, outside the arena", OF_A_NODE);

    type Event = fn(&Site);
    let ways: [(&str, Event); 6] = [
        ("power-loss", |site| site.signal_node(Signal::SIGPWR)),
        ("admin", |site| {
            site.wipe();
        }),
        ("revoked", |site| {
            site.act("/v1/revoke");
        }),
        ("lockdown", |site| {
            site.act("/v1/lockdown");
        }),
        ("lease-expired", |site| site.signal_keyholder(Signal::SIGSTOP)),
        ("not-renewed", |site| drop(site.apply_policy("version = 1\n[push]\nlisted_nodes_only = true\n"))),
    ];
    site.expect_log("not renewed");
    site.expect_log("listed_nodes_only");
    for (cause, event) in ways {
        with_load(&site, &access, || event(&site));
        let status = site.wait_sealed(cause);
        assert_eq!(status.key_memory.keys, 0);
        scan_node(&mut site, &needles).assert_clean(&format!("after {cause}"), OF_A_NODE);
        site.signal_keyholder(Signal::SIGCONT);
        site.wait_heard_of_wipe();
        if let Err(error) = site.try_act("/v1/unlatch") {
            println!("nothing to unlatch after {cause}: {error}");
        }
        if cause == "not-renewed" {
            site.apply_policy("version = 1\n");
        }
        site.push_until_serving();
    }
    // A planned stop leaves no process to scan: what the kernel frees it zeroes before it gives it out again.
    site.stop_node();
    site.start_node();
    scan_node(&mut site, &needles).assert_clean("after a restart, sealed", OF_A_NODE);
}

/// The compute tier is held to the same: the root is in its arena and nowhere else.
#[test]
fn the_keyholders_root_is_in_locked_memory_only() {
    let mut site = Site::serving(SiteSpec::default());
    let needles = needles(&recovered(&site));
    let scan_keyholder = |site: &mut Site, when: &str| {
        let scan = scan(site.keyholder().pid(), &needles).expect("the keyholder can be scanned");
        scan.assert_clean(when, OF_A_KEYHOLDER);
    };
    scan_keyholder(&mut site, "a keyholder after its ceremony");
    site.stop_keyholder();
    site.start_keyholder();
    site.unseal_keyholder();
    site.wait_serving();
    scan_keyholder(&mut site, "a keyholder that was unsealed");
}
