//! A bit that flips on the disk behind the node's back: an error to the client that reads it, and never wrong data.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use admin::api::{OrderScrub, PoolStatus, ScrubAction, ScrubReport, ScrubStatus, ShownBy};
use config::ScrubConfig;
use harness::client::{client, run};
use harness::process::wait_for;
use harness::random::{Random, seed};
use harness::s3::S3Client;
use harness::site::{DISK, OBJECTS, Site, SiteSpec};
use identity::{ClientError as HttpsError, Role};
use keyholder::api::{KeyState, VolumeEntry};
use nbd_server::Errno;
use nbd_server::client::{Client, ClientError, Endpoint};
use nix::unistd::{Whence, lseek64};

/// A pass of scrubbing over a pool of a few megabytes takes less.
const PATIENCE: Duration = Duration::from_secs(60);

const BLOCK_BYTES: usize = 4096;
/// Blocks that the tests write: longer than anything that the store writes beside a body.
const BLOCKS: usize = 256;

/// The blocks of a sparse file that hold anything.
fn blocks(path: &Path) -> BTreeMap<u64, Vec<u8>> {
    let file = std::fs::File::open(path).expect("the pool's file");
    let mut found = BTreeMap::new();
    let mut at = 0;
    while let Ok(start) = lseek64(&file, at, Whence::SeekData) {
        let end = lseek64(&file, start, Whence::SeekHole).expect("every file ends in a hole");
        for block in (start..end).step_by(BLOCK_BYTES) {
            let block = u64::try_from(block).expect("an offset");
            let mut content = vec![0; BLOCK_BYTES];
            file.read_exact_at(&mut content, block).expect("a readable file");
            found.insert(block, content);
        }
        at = end;
    }
    found
}

/// Blocks that differ since `before`, in the order of their places.
fn changed(path: &Path, before: &BTreeMap<u64, Vec<u8>>) -> Vec<u64> {
    blocks(path).into_iter().filter(|(at, now)| before.get(at) != Some(now)).map(|(at, _)| at).collect()
}

fn flip_a_bit(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("the pool's file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a readable file");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("a writable file");
    file.sync_all().expect("a written file");
}

fn random_bytes(len: usize) -> Vec<u8> {
    let mut random = Random::new(seed());
    std::iter::repeat_with(|| random.bits().to_le_bytes()).flatten().take(len).collect()
}

fn damaged_sectors(site: &Site) -> u64 {
    let mut curl = client("curl");
    let metrics =
        run(curl.args(["--silent", &format!("http://{}/metrics", site.metrics_address())])).expect_success();
    let line = metrics.lines().find(|line| line.starts_with("nightlatch_pool_damaged_sectors{"));
    let line = line.unwrap_or_else(|| panic!("no such metric in\n{metrics}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

/// The entries of the node's trail that are about damage, as soon as there are some.
fn damage_in_trail(site: &Site) -> Vec<serde_json::Value> {
    let path = site.node_config().state_dir.join("audit.jsonl");
    wait_for("damage in the node's trail", PATIENCE, || {
        let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
        let entries = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let damaged: Vec<_> = entries.filter(|entry| entry["event"] == "damaged").collect();
        if damaged.is_empty() { Err("there is none".to_owned()) } else { Ok(damaged) }
    })
}

/// Has the site's pool scrubbed: an order, and what comes of it.
fn order_scrub(site: &Site, action: ScrubAction) -> ScrubStatus {
    let pool = site.status().pools[0].pool;
    let client = site.node_admin();
    let path = format!("/v1/pools/{pool}/scrub");
    let status: PoolStatus =
        site.wait(client.post(&path, &OrderScrub { action })).expect("an operator's order");
    status.scrub
}

fn wait_for_pass(site: &Site, passes: u64) -> ScrubReport {
    wait_for("a pass of scrubbing", PATIENCE, || {
        let scrub = site.status().pools[0].scrub.clone();
        if scrub.passes >= passes {
            scrub.last.ok_or("no report".to_owned())
        } else {
            Err("it is not over".to_owned())
        }
    })
}

fn is_eio(answer: &Result<(), ClientError>) -> bool {
    answer.as_ref().is_err_and(|error| error.errno() == Some(Errno::Io))
}

#[test]
fn a_bit_flipped_on_the_disk_is_an_io_error_over_nbd_until_the_sector_is_written_again() {
    let mut site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
    site.expect_log("a damaged sector was read");
    site.expect_log("not what was written");
    let file = site.pool_file().to_path_buf();
    let before = blocks(&file);
    let endpoint = Endpoint::unix(site.nbd_socket());
    let mut disk = Client::connect(&endpoint, DISK).expect("an unsealed export");
    let written = random_bytes(BLOCKS * BLOCK_BYTES);
    disk.write(0, &written, true).expect("a write");
    // A first write of sectors goes straight to their places, one behind the other in an extent of their own.
    let places = changed(&file, &before);
    assert!(places.len() >= BLOCKS, "{} blocks changed", places.len());
    let run =
        places.windows(BLOCKS).find(|run| run[BLOCKS - 1] - run[0] == ((BLOCKS - 1) * BLOCK_BYTES) as u64);
    let first = run.expect("the extent that was written")[0];
    assert_eq!(damaged_sectors(&site), 0);

    flip_a_bit(&file, first + 3 * 4096 + 1234);
    let mut whole = vec![0; written.len()];
    let answer = disk.read(0, &mut whole);
    assert!(is_eio(&answer), "a flipped bit gave {answer:?}");
    let mut sector = vec![0; BLOCK_BYTES];
    for number in 0..BLOCKS {
        let at = number * BLOCK_BYTES;
        let answer = disk.read(at as u64, &mut sector);
        if number == 3 {
            assert!(is_eio(&answer), "a flipped bit gave {answer:?}");
        } else {
            answer.unwrap_or_else(|error| panic!("sector {number}, which nobody touched: {error}"));
            assert!(sector == written[at..at + BLOCK_BYTES], "sector {number} has changed");
        }
    }
    // Half a sector is read, changed and written: what can't be read must not be sealed again as if it were right.
    let answer = disk.write(3 * 4096, &[1; 512], true);
    assert!(is_eio(&answer), "a write of a part of it gave {answer:?}");
    assert!(damaged_sectors(&site) > 0);
    assert!(site.status().pools[0].damaged_sectors > 0);
    // The node's trail says which sector it was, once however often it was read.
    let entries = damage_in_trail(&site);
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0]["sector"], 3);
    assert!(entries[0]["fault"].as_str().is_some_and(|fault| !fault.is_empty()), "{entries:?}");

    // It is as damaged after a restart, and whole once it is written.
    drop(disk);
    site.stop_node();
    site.start_node();
    site.wait_serving();
    let mut disk = Client::connect(&endpoint, DISK).expect("an unsealed export");
    let answer = disk.read(3 * 4096, &mut sector);
    assert!(is_eio(&answer), "a flipped bit gave {answer:?} after a restart");
    disk.write(3 * 4096, &[7; BLOCK_BYTES], true).expect("a write of the whole sector");
    disk.read(3 * 4096, &mut sector).expect("what was written since");
    assert!(sector == [7; BLOCK_BYTES]);
}

#[test]
fn a_bit_flipped_in_an_objects_body_is_an_error_over_s3_and_the_others_are_served() {
    let mut site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
    site.expect_log("a damaged sector was read");
    site.expect_log("not what was written");
    let key = site.create_user("tester");
    site.create_bucket("bucket");
    let file = site.pool_file().to_path_buf();
    let address = site.node_config().listen.s3.expect("the site serves S3");
    let s3 = || S3Client::new(address, "bucket", &key.access_key, &key.secret_key);
    let body = random_bytes(BLOCKS * BLOCK_BYTES);
    s3().put("other", body.clone()).expect("an object is stored");
    let before = blocks(&file);
    s3().put("object", body.clone()).expect("an object is stored");
    let places = changed(&file, &before);
    // The longest run of blocks that changed together is the body.
    let follows = |a: &u64, b: &u64| a + BLOCK_BYTES as u64 == *b;
    let run = places.chunk_by(follows).max_by_key(|run| run.len()).expect("something changed");
    assert!(run.len() >= BLOCKS / 2, "the longest run has {} blocks", run.len());

    flip_a_bit(&file, run[run.len() / 2] + 99);
    let answer = s3().get("object");
    assert!(
        answer.is_err(),
        "a damaged body was served: {:?}",
        answer.map(|body| body.map(|body| body.len()))
    );
    assert!(damaged_sectors(&site) > 0);
    let other = s3().get("other").expect("an object that nobody touched").expect("it is there");
    assert!(other == body);
    s3().put("object", body.clone()).expect("an object is stored again");
    assert!(s3().get("object").expect("a whole object").is_some_and(|found| found == body));
}

#[test]
fn scrubbing_finds_a_flipped_bit_on_a_sealed_node_and_verifies_tags_on_an_unsealed_one() {
    let mut site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
    site.expect_log("scrubbing found a damaged sector");
    site.expect_log("a damaged sector was read");
    let file = site.pool_file().to_path_buf();
    let before = blocks(&file);
    let endpoint = Endpoint::unix(site.nbd_socket());
    let mut disk = Client::connect(&endpoint, DISK).expect("an unsealed export");
    disk.write(0, &random_bytes(BLOCKS * BLOCK_BYTES), true).expect("a write");
    order_scrub(&site, ScrubAction::Start);
    let sound = wait_for_pass(&site, 1);
    let written = (BLOCKS * BLOCK_BYTES) as u64;
    assert_eq!(sound.damaged_sectors, 0, "{sound:?}");
    assert!(sound.bytes_compared >= written && sound.bytes_verified >= written, "{sound:?}");

    let places = changed(&file, &before);
    let run =
        places.windows(BLOCKS).find(|run| run[BLOCKS - 1] - run[0] == ((BLOCKS - 1) * BLOCK_BYTES) as u64);
    let damaged_at = run.expect("the extent that was written")[0] + 9 * 4096;
    flip_a_bit(&file, damaged_at + 77);
    let volume = site.status().volumes.iter().find(|volume| volume.kind == "block").expect("a disk").volume;
    for (passes, verified) in [(2, true), (3, false)] {
        if !verified {
            site.wipe();
            site.wait_sealed("admin");
        }
        order_scrub(&site, ScrubAction::Start);
        let report = wait_for_pass(&site, passes);
        // By its checksum, and where there is a key once more by its tag.
        assert_eq!(report.damaged_sectors, 1 + u64::from(verified), "{report:?}");
        assert_eq!(report.bytes_verified > 0, verified, "{report:?}");
        assert_eq!(report.damaged[0].device_offset, Some(damaged_at));
        assert_eq!(report.damaged[0].shown_by, [ShownBy { volume, sector: 9 }]);
    }
}

#[test]
fn a_pass_of_scrubbing_stops_when_told_and_goes_on_where_it_was_after_a_restart() {
    let mut site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
    let mut disk = Client::connect(&Endpoint::unix(site.nbd_socket()), DISK).expect("an unsealed export");
    // An extent a second, of which the third is waited for: it is far from over when it is told to stop.
    const EXTENTS: u64 = 32;
    for nth in 0..EXTENTS {
        disk.write(nth << 20, &random_bytes(BLOCKS * BLOCK_BYTES), true).expect("a write");
    }
    drop(disk);
    site.stop_node();
    site.change_node_config(|config| config.scrub = ScrubConfig { mib_per_s: 1, ..config.scrub });
    site.start_node();
    order_scrub(&site, ScrubAction::Start);
    let next_extent = |site: &Site| site.status().pools[0].scrub.pass.as_ref().map(|pass| pass.next_extent);
    wait_for("the third extent", PATIENCE, || match next_extent(&site) {
        Some(next) if next >= 3 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    order_scrub(&site, ScrubAction::Stop);
    let stopped_at = next_extent(&site).expect("a pass that is not over");
    site.stop_node();
    site.change_node_config(|config| config.scrub = ScrubConfig::default());
    site.start_node();
    let scrub = site.status().pools[0].scrub.clone();
    assert!(scrub.stopped && !scrub.running, "{scrub:?}");
    assert!(next_extent(&site).expect("the same pass") >= stopped_at);
    let started = scrub.pass.expect("the same pass").started_unix_s;
    order_scrub(&site, ScrubAction::Start);
    let report = wait_for_pass(&site, 1);
    assert_eq!((report.started_unix_s, report.damaged_sectors), (started, 0));
    assert!(report.bytes_compared >= EXTENTS << 20, "{report:?}");
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("--sparse=always").args([from, to])).expect_success();
}

/// What the keyholder says about the disk's key.
fn disk_entry(site: &Site) -> VolumeEntry {
    let volumes = site.keyholder_status().volumes;
    volumes.into_iter().find(|volume| volume.label == DISK).expect("the disk")
}

/// Everything on the disk was true once: no checksum and no tag is wrong.
#[test]
fn a_disk_that_was_put_back_gets_no_key_until_a_security_officer_says_so() {
    let mut site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
    site.expect_log("the pool's state");
    site.expect_log("was refused");
    site.expect_log("grant refused");
    let endpoint = Endpoint::unix(site.nbd_socket());
    let write = |byte: u8| {
        let mut disk = Client::connect(&endpoint, DISK).expect("an unsealed export");
        disk.write(0, &[byte; BLOCK_BYTES], true).expect("a write");
    };
    let read = || {
        let mut disk = Client::connect(&endpoint, DISK).expect("an unsealed export");
        let mut block = [0; BLOCK_BYTES];
        disk.read(0, &mut block).expect("a read");
        assert!(block.iter().all(|byte| *byte == block[0]), "one write");
        block[0]
    };
    let file = site.pool_file().to_path_buf();
    let kept = file.with_extension("kept");
    write(1);
    site.stop_node();
    copy(&file, &kept);
    site.start_node();
    site.push_until_serving();
    assert_eq!(read(), 1, "a stop and a start are no attack");
    write(2);
    site.kill_node();
    site.start_node();
    site.push_until_serving();
    assert_eq!(read(), 2, "nor is a kill");
    site.stop_node();

    copy(&kept, &file);
    site.start_node();
    let reason = wait_for("a refusal", PATIENCE, || {
        if site.keyholder_status().nodes.iter().any(|node| node.awaits_push) {
            let _ = site.try_act("/v1/push");
        }
        let entry = disk_entry(&site);
        match (entry.key, entry.reason) {
            (KeyState::Refused, Some(reason)) => Ok(reason),
            // The keyholder may not have heard yet that the node has stopped.
            (KeyState::Unlocked, _) if !site.status().seal.sealed => {
                panic!("the node has taken a key for last week's disk")
            }
            other => Err(format!("{other:?}")),
        }
    });
    assert!(
        reason.contains("older than the last state known") && reason.contains("accept-state"),
        "{reason}"
    );
    assert!(site.status().seal.sealed);

    let officer = site.keyholder_as(Role::SecurityOfficer, "officer");
    for label in [DISK, OBJECTS] {
        let path = format!("/v1/volumes/{label}/accept-state");
        let operator = site.keyholder_as(Role::Operator, "op");
        let denied: Result<VolumeEntry, HttpsError> = site.wait(operator.post(&path, &serde_json::json!({})));
        assert!(matches!(denied, Err(HttpsError::Refused { status: 403, .. })), "{denied:?}");
        let entry: VolumeEntry =
            site.wait(officer.post(&path, &serde_json::json!({}))).expect("an officer's word");
        assert_eq!(entry.label, label);
    }
    site.act("/v1/push");
    site.wait_serving();
    assert_eq!(read(), 1, "what is there");
    write(3);
    site.stop_node();
    site.start_node();
    site.push_until_serving();
    assert_eq!(read(), 3, "and it goes on from there");
}
