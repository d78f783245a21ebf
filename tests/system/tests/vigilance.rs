//! What a second site does without a key: it keeps what it was told to keep, whoever asks, and says when something is unusual.

use std::path::PathBuf;

use harness::client::run;
use harness::process::wait_for;
use harness::sites::{Node, PATIENCE, Sites, two_sites};
use serde_json::Value;

/// How long they are locked: longer than a test takes.
const LOCK_S: u64 = 15 * 60;

/// How long a snapshot is still locked there.
fn locked_s(sites: &Sites, node: &Node, snapshot: &str) -> Option<u64> {
    let snapshots = sites.snapshots(node);
    let found = snapshots.iter().find(|found| found["snapshot"] == snapshot);
    found.unwrap_or_else(|| panic!("{snapshot} is gone: {snapshots:?}"))["locked_s"].as_u64()
}

fn schedule(sites: &Sites, node: &Node) -> Value {
    sites.desk.json(&["snapshot", "schedule", "--node", node.name])[0].clone()
}

fn wait_kept(sites: &Sites, node: &Node, snapshots: &[&str]) {
    wait_for("kept snapshots", PATIENCE, || {
        let schedule = schedule(sites, node);
        if schedule["snapshots"] == serde_json::json!(snapshots) { Ok(()) } else { Err(schedule.to_string()) }
    });
}

fn wait_metric(node: &Node, name: &str, least: f64) {
    wait_for(name, PATIENCE, || match node.metric(name) {
        Some(value) if value >= least => Ok(()),
        value => Err(format!("{value:?}")),
    });
}

fn refuses_to_delete(sites: &Sites, snapshot: &str) {
    let refused = sites.desk.refused(&["snapshot", "delete", snapshot, "--node", "node-2", "--yes"]);
    assert!(refused.contains("locked for another"), "{refused}");
}

#[test]
fn what_a_replica_has_locked_outlives_the_primary_the_operator_and_the_count_of_its_time() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (sites, _first_daemon, mut second_daemon) = two_sites(parent.path(), "2G");
    let (desk, second) = (&sites.desk, &sites.second);
    sites.write(&sites.first, 0x11);
    let one = sites.snapshot();
    sites.send(&one);
    let set =
        ["snapshot", "schedule", "db", "--node", "node-2", "--every", "1s", "--keep", "1", "--lock", "15m"];
    desk.run(&set);
    wait_kept(&sites, second, &[&one]);
    assert!(locked_s(&sites, second, &one).is_some_and(|left| (LOCK_S - 600..=LOCK_S).contains(&left)));

    // Whoever has the primary, and an operator's certificate.
    refuses_to_delete(&sites, &one);
    let shorter = desk.refused(&["snapshot", "lock", &one, "--for", "1s", "--node", "node-2"]);
    assert!(shorter.contains("never shorter"), "{shorter}");
    let set = ["snapshot", "schedule", "db", "--node", "node-2", "--every", "1s", "--keep", "1"];
    desk.run(&set);
    refuses_to_delete(&sites, &one);

    // All of it rewritten: unusual. Nothing is pruned until somebody has said that it is all right.
    sites.write(&sites.first, 0x22);
    let two = sites.snapshot();
    sites.send(&two);
    wait_metric(second, "nightlatch_snapshot_rewrite_anomalies", 1.0);
    assert_eq!(second.metric("nightlatch_snapshot_rewritten_ratio"), Some(1.0));
    let status = desk.run(&["node", "status", "node-2"]);
    assert!(status.contains("UNUSUAL: 100 %") && status.contains(&one), "{status}");
    let trail = std::fs::read_to_string(second.state_dir().join("audit.jsonl")).expect("the node's trail");
    assert!(trail.contains("\"event\":\"rewrite-anomaly\""), "{trail}");
    sites.write(&sites.first, 0x33);
    let three = sites.snapshot();
    sites.send(&three);
    wait_kept(&sites, second, &[&one, &two, &three]);
    desk.run(&["snapshot", "schedule", "db", "--node", "node-2", "--acknowledge"]);
    wait_kept(&sites, second, &[&one, &three]);
    assert_eq!(second.metric("nightlatch_snapshot_rewrite_anomalies"), Some(0.0));

    // A lock that is over is over, and one that is not is not, through a restart; where the file is gone it begins anew.
    desk.run(&["snapshot", "lock", &three, "--for", "2s", "--node", "node-2"]);
    wait_for("the end of a short lock", PATIENCE, || match locked_s(&sites, second, &three) {
        None => Ok(()),
        left => Err(format!("{left:?}")),
    });
    let before = locked_s(&sites, second, &one).expect("it is locked");
    assert!(second_daemon.stop(PATIENCE).success());
    let refused = desk.refused(&["pool", "create", "node-2.img", "--force"]);
    assert!(refused.contains("locked snapshots"), "{refused}");
    let mut second_daemon = desk.start("nightlatchd", &second.config);
    desk.until(&["node", "status", "node-2"]);
    let after = locked_s(&sites, second, &one).expect("it is locked");
    assert!(after <= before && after + 600 > before, "{before} s before, {after} s after");
    refuses_to_delete(&sites, &one);
    assert!(second_daemon.stop(PATIENCE).success());
    std::fs::remove_file(second.state_dir().join("retention.json")).expect("what was counted");
    let second_daemon = desk.start("nightlatchd", &second.config);
    desk.until(&["node", "status", "node-2"]);
    wait_for("a lock that begins anew", PATIENCE, || {
        let log = second_daemon.log().join("\n");
        if log.contains("it begins anew") { Ok(()) } else { Err(log) }
    });
    // All that had run before is given back, and that is more than has run since.
    let anew = locked_s(&sites, second, &one).expect("it is locked");
    assert!(anew > after, "{after} s before, {anew} s anew");
    refuses_to_delete(&sites, &one);
}

#[test]
fn a_flood_of_rewrites_is_refused_when_what_is_locked_has_taken_the_space() {
    const LEN: usize = 24 << 20;
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (sites, _first_daemon, _second_daemon) = two_sites(parent.path(), "96M");
    let (desk, second) = (&sites.desk, &sites.second);
    sites.write_len(&sites.first, 0x11, LEN);
    let good = sites.snapshot();
    sites.send(&good);
    let set =
        ["snapshot", "schedule", "db", "--node", "node-2", "--every", "1s", "--keep", "1", "--lock", "15m"];
    desk.run(&set);
    wait_kept(&sites, second, &[&good]);
    let mut kept = vec![good.clone()];
    let refused = (0..8).find_map(|fill| {
        sites.write_len(&sites.first, 0x20 + fill, LEN);
        let flood = sites.snapshot();
        let send = ["snapshot", "send", &flood, "--node", "node-1", "--to-node", "node-2"];
        let answer = run(&mut desk.command(&send));
        if !answer.success {
            return Some(answer.describe());
        }
        kept.push(flood);
        wait_kept(&sites, second, &kept.iter().map(String::as_str).collect::<Vec<_>>());
        None
    });
    let refused = refused.expect("the pool is full before eight times its third");
    assert!(refused.contains("full"), "{refused}");
    println!("{} snapshots were taken in", kept.len());
    wait_metric(second, "nightlatch_replica_portions_refused_full", 1.0);
    // Every sector of the first is read and compared.
    let whole = desk.dir.join("good.snapshot").display().to_string();
    desk.run(&["snapshot", "send", &good, "--node", "node-2", "--output", &whole]);
    assert!(std::fs::metadata(&whole).expect("a file").len() > LEN as u64);
    refuses_to_delete(&sites, &good);
}

#[test]
fn a_volume_is_snapshotted_by_schedule_sealed_or_not_and_the_oldest_are_pruned() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (sites, _first_daemon, _second_daemon) = two_sites(parent.path(), "2G");
    let (desk, first) = (&sites.desk, &sites.first);
    sites.write(first, 0x11);
    desk.run(&["snapshot", "schedule", "db", "--every", "1s", "--keep", "2"]);
    let taken = || -> Vec<String> {
        let kept = schedule(&sites, first)["snapshots"].as_array().cloned().unwrap_or_default();
        kept.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect()
    };
    let rotates = |what: &str| {
        let before = taken();
        wait_for(what, PATIENCE, || {
            let now = taken();
            let is_new = now.len() == 2 && now.iter().all(|id| !before.contains(id));
            if is_new { Ok(()) } else { Err(format!("{before:?}, then {now:?}")) }
        });
    };
    rotates("two newer snapshots");
    desk.run(&["revoke", "--volume", "db"]);
    rotates("two newer snapshots of a sealed volume");
    assert_eq!(first.metric("nightlatch_snapshot_schedules_failing"), Some(0.0));
    desk.run(&["snapshot", "schedule", "db", "--remove"]);
    assert_eq!(desk.json(&["snapshot", "schedule", "--node", "node-1"]), Value::Array(Vec::new()));
    let left = sites.snapshots(first).len();
    assert!((2..=3).contains(&left), "{left} are left");
}

/// A block of ciphertext that both disks have, and where it is on the one: the last, as the log in front may have it as well.
fn common_block(one: &[u8], other: &[u8]) -> usize {
    let is_ciphertext = |block: &[u8]| {
        let mut seen = [false; 256];
        block.iter().for_each(|byte| seen[usize::from(*byte)] = true);
        seen.iter().filter(|seen| **seen).count() > 240
    };
    let is_used = |block: &&[u8]| block[..64] != [0; 64];
    let others = other.chunks_exact(4096).filter(is_used);
    let blocks: std::collections::BTreeSet<&[u8]> = others.filter(|block| is_ciphertext(block)).collect();
    let found = one.chunks_exact(4096).rposition(|block| is_used(&block) && blocks.contains(block));
    found.expect("ciphertext that both have") * 4096
}

fn image(sites: &Sites, node: &Node) -> PathBuf {
    sites.desk.dir.join(format!("{}.img", node.name))
}

fn pool_of(sites: &Sites, node: &Node) -> String {
    let pools = sites.desk.json(&["pool", "list", "--node", node.name]);
    pools[0]["pool"].as_str().expect("an id").to_owned()
}

#[test]
fn a_replica_gets_a_damaged_sector_from_its_primary_and_the_primary_from_its_replica() {
    use std::os::unix::fs::FileExt;
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (sites, first_daemon, second_daemon) = two_sites(parent.path(), "2G");
    let desk = &sites.desk;
    sites.write(&sites.first, 0x11);
    let one = sites.snapshot();
    sites.send(&one);
    let pools = [pool_of(&sites, &sites.first), pool_of(&sites, &sites.second)];
    let mut daemons = [first_daemon, second_daemon];
    let nodes = [&sites.first, &sites.second];
    for (damaged, other) in [(1, 0), (0, 1)] {
        let (node, from) = (nodes[damaged], nodes[other].name);
        // Everything is in its place once the node has ended.
        assert!(daemons[0].stop(PATIENCE).success() && daemons[1].stop(PATIENCE).success());
        let [mine, others] =
            [node, nodes[other]].map(|node| std::fs::read(image(&sites, node)).expect("a disk"));
        let at = common_block(&mine, &others);
        let disk = std::fs::File::options().write(true).open(image(&sites, node)).expect("a disk");
        disk.write_all_at(&[!mine[at + 100]], at as u64 + 100).expect("a writable disk");
        daemons = [0, 1].map(|nth| desk.start("nightlatchd", &nodes[nth].config));
        desk.until(&["node", "status", "node-1"]);
        desk.until(&["node", "status", "node-2"]);
        let scrub = ["pool", "scrub", &pools[damaged], "--restart", "--wait", "--node", node.name];
        let found = desk.refused(&scrub);
        // Where the key is there, the volume and its snapshot are read by it too.
        assert!(found.contains("sectors are not what was written"), "{found}");
        let heal = ["pool", "heal", &pools[damaged], "--node", node.name, "--from", from];
        let healed = desk.json(&heal);
        assert_eq!(healed["healed"], serde_json::json!([at]), "{healed}");
        assert_eq!(desk.json(&heal)["healed"], serde_json::json!([]), "nothing is left to heal");
        desk.run(&scrub);
        assert!(daemons[damaged].stop(PATIENCE).success());
        let back = std::fs::read(image(&sites, node)).expect("a disk");
        assert!(back[at..at + 4096] == mine[at..at + 4096], "{} is not what it was", node.name);
        daemons[damaged] = desk.start("nightlatchd", &node.config);
    }
    // The volume is served as before.
    sites.holds(&sites.first, 0x11);
}
