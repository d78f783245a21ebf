//! A disk that is replaced while its pool is in use: served, sealed, and through a restart of the node.

use std::path::Path;
use std::process::Command;

use admin::api::{PoolStatus, ReplaceState};
use harness::client::{client, run};
use harness::process::{program, wait_for};
use harness::random::{Random, seed};
use harness::site::{DISK, OBJECTS, PATIENCE, Site, SiteSpec, VolumeKind};
use nbd_server::client::{Client, Endpoint};

const MIB: usize = 1 << 20;
const POOL_BYTES: u64 = 256 << 20;
const DISK_BYTES: usize = 24 * MIB;

fn nightlatch(site: &Site, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("nightlatch"));
    command.args(arguments).arg("--profile").arg(site.profile());
    command
}

fn said(site: &Site, arguments: &[&str]) -> String {
    run(&mut nightlatch(site, arguments)).expect_success()
}

fn pool(site: &Site) -> PoolStatus {
    site.status().pools.remove(0)
}

fn wait_for_state(site: &Site, state: ReplaceState) -> PoolStatus {
    wait_for(&format!("a move that is {state:?}"), PATIENCE, || {
        let pool = pool(site);
        match &pool.replacement {
            Some(replacement) if replacement.state == state => Ok(pool),
            other => Err(format!("{other:?}")),
        }
    })
}

fn connect(site: &Site) -> Client {
    Client::connect(&Endpoint::unix(site.nbd_socket()), DISK).expect("an unsealed export")
}

/// What the disk must hold.
struct Content(Vec<u8>);

impl Content {
    fn write(&mut self, disk: &mut Client, random: &mut Random, from: usize, len: usize) {
        let part = &mut self.0[from..from + len];
        part.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.bits().to_le_bytes()));
        for (nth, part) in part.chunks(MIB).enumerate() {
            disk.write((from + nth * MIB) as u64, part, true).expect("a write");
        }
    }

    fn verify(&self, site: &Site, when: &str) {
        let mut disk = connect(site);
        for (nth, kept) in self.0.chunks(MIB).enumerate() {
            let mut found = vec![0; kept.len()];
            disk.read((nth * MIB) as u64, &mut found).expect("a read");
            assert!(found == kept, "{when}: MiB {nth} is not what was written");
        }
    }
}

fn serving(spare: &Path) -> Site {
    std::fs::File::create(spare).and_then(|file| file.set_len(POOL_BYTES + (1 << 20))).expect("a spare");
    let mut site = Site::installed(SiteSpec {
        pool_bytes: POOL_BYTES,
        disk_bytes: DISK_BYTES as u64,
        ..SiteSpec::default()
    });
    site.change_node_config(|config| config.spares.push(spare.to_owned()));
    site.start_keyholder();
    site.hold_ceremony();
    site.start_node();
    site.enrol_node();
    site.create_volume(DISK, VolumeKind::Block, DISK_BYTES as u64);
    site.create_volume(OBJECTS, VolumeKind::Objects, 1 << 40);
    site.push_until_serving();
    site
}

#[test]
fn a_disk_is_replaced_while_clients_write_through_a_restart_and_the_node_opens_the_new_one() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let spare = folder.path().join("spare");
    let spare_name = spare.display().to_string();
    let mut site = serving(&spare);
    site.expect_log("the pool was moved to another device");
    let mut random = Random::new(seed());
    let mut content = Content(vec![0; DISK_BYTES]);
    content.write(&mut connect(&site), &mut random, 0, 16 * MIB);
    let id = pool(&site).pool.to_string();

    let mut unknown = nightlatch(&site, &["pool", "replace", &id, "/dev/nightlatch-none"]);
    let refused = run(&mut unknown).expect_failure();
    assert!(refused.contains(&spare_name), "it names those there are: {refused}");
    said(&site, &["pool", "replace", &id, &spare_name, "--rate", "4M"]);
    let status = wait_for_state(&site, ReplaceState::Copying);
    assert_eq!(status.configured_path, None);
    let again = run(&mut nightlatch(&site, &["pool", "replace", &id, &spare_name])).expect_failure();
    assert!(again.contains("in use"), "{again}");
    content.write(&mut connect(&site), &mut random, 12 * MIB, 8 * MIB);
    let shown = said(&site, &["pool", "status", &id]);
    assert!(shown.contains(&format!("Moving to {spare_name}")) && shown.contains("left"), "{shown}");

    // It goes on by itself, without a key.
    site.kill_node();
    site.start_node();
    let status = wait_for_state(&site, ReplaceState::Done);
    let replacement = status.replacement.expect("it is there");
    assert_eq!((replacement.unreadable_sectors, replacement.trouble.as_str()), (0, ""));
    assert_eq!(status.path, spare_name);
    let old = status.configured_path.expect("the configuration names the old one");
    assert_eq!(old, site.pool_file().display().to_string());
    site.push_until_serving();
    content.verify(&site, "moved");
    content.write(&mut connect(&site), &mut random, 3 * MIB, 4 * MIB);
    let ready = run(client("curl").args(["--silent", &format!("http://{}/readyz", site.metrics_address())]));
    let ready = ready.expect_success();
    assert!(ready.contains("note pool-moved") && ready.contains(&spare_name), "{ready}");
    site.expect_sound_pool(&spare_name);

    // Though the configuration still names the old one.
    site.stop_node();
    site.start_node();
    assert_eq!(pool(&site).path, spare_name);
    site.push_until_serving();
    content.verify(&site, "after a restart");
    site.stop_node();
    let refused = run(&mut nightlatch(&site, &["pool", "check", &old])).expect_failure();
    assert!(refused.contains("is not on") && refused.contains(&spare_name), "{refused}");

    // As the guide says; and back again.
    site.change_node_config(|config| {
        let old = std::mem::replace(&mut config.pools[0].path, spare.clone());
        config.spares = vec![old];
    });
    site.start_node();
    site.push_until_serving();
    assert_eq!(pool(&site).configured_path, None);
    let refused = run(&mut nightlatch(&site, &["pool", "replace", &id, &old])).expect_failure();
    assert!(refused.contains("--force"), "{refused}");
    let moved = said(&site, &["pool", "replace", &id, &old, "--force", "--wait"]);
    assert!(moved.contains("Moved from"), "{moved}");
    content.verify(&site, "moved back");
    site.expect_sound_pool(&old);
    site.check_logs();
}

#[test]
fn a_move_that_is_cancelled_leaves_the_pool_where_it_is_and_the_spare_free() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let spare = folder.path().join("spare");
    let spare_name = spare.display().to_string();
    let site = serving(&spare);
    let mut random = Random::new(seed());
    let mut content = Content(vec![0; DISK_BYTES]);
    content.write(&mut connect(&site), &mut random, 0, 16 * MIB);
    let before = pool(&site);
    let id = before.pool.to_string();
    said(&site, &["pool", "replace", &id, &spare_name, "--rate", "2M"]);
    wait_for_state(&site, ReplaceState::Copying);
    said(&site, &["pool", "replace", &id, "--cancel"]);
    let status = wait_for_state(&site, ReplaceState::Cancelled);
    assert_eq!((status.path, status.configured_path), (before.path, None));
    content.write(&mut connect(&site), &mut random, 8 * MIB, 4 * MIB);
    content.verify(&site, "cancelled");
    let refused = run(&mut nightlatch(&site, &["pool", "replace", &id, "--cancel"])).expect_failure();
    assert!(refused.contains("not being moved"), "{refused}");
    let moved = said(&site, &["pool", "replace", &id, &spare_name, "--wait"]);
    assert!(moved.contains("Moved from"), "{moved}");
    content.verify(&site, "moved");
    site.check_logs();
}
