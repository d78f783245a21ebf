//! Two nodes and one keyholder, by the command line: snapshots of a volume travel from the one to the other without a key there,
//! and when the first is lost the second serves what had arrived.

use harness::desk::{find, word};
use harness::process::wait_for;
use harness::sites::{PATIENCE, two_sites};
use serde_json::Value;

#[test]
fn the_second_site_holds_ciphertext_without_a_key_and_serves_when_the_first_is_lost() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (sites, mut first_daemon, _second_daemon) = two_sites(parent.path(), "2G");
    sites.write(&sites.first, 0x11);
    let one = sites.snapshot();
    sites.send(&one);
    sites.write(&sites.first, 0x22);
    let two = sites.snapshot();
    sites.send(&two);
    // Said again it is there already.
    sites.send(&two);

    // There it is a replica: no key was given, and none is asked for.
    let status = sites.status(&sites.second);
    assert_eq!(find(&status, "sealed"), Some(&Value::Bool(true)), "{status}");
    assert_eq!(find(&status, "replica"), Some(&Value::Bool(true)), "{status}");
    assert_eq!(status["key_memory"]["keys"], 0, "{status}");
    assert!(sites.desk.run(&["node", "status", "node-2"]).contains("a replica"));
    let plain = vec![0x22; 4096];
    let disk = std::fs::read(sites.desk.dir.join("node-2.img")).expect("the second site's disk");
    assert!(!disk.chunks_exact(4096).any(|block| block == plain), "plaintext on the second site's disk");
    drop(disk);

    // Written after the last snapshot that arrived: lost with the first site.
    sites.write(&sites.first, 0x33);
    let there = sites.desk.refused(&["volume", "promote", "db", "--node", "node-1", "--yes"]);
    assert!(there.contains("already"), "{there}");
    first_daemon.kill();
    let promoted = sites.desk.json(&["volume", "promote", "db", "--node", "node-2", "--yes"]);
    assert_eq!(word(&promoted, "node"), "node-2", "{promoted}");
    // Who may use it there nobody has said yet.
    let access = sites.desk.json(&["volume", "access", "db"]);
    assert_eq!(access["nobody"], Value::Bool(true), "{access}");
    sites.desk.run(&["volume", "access", "db", "--anyone"]);
    sites.holds(&sites.second, 0x22);
    sites.write(&sites.second, 0x44);
    sites.holds(&sites.second, 0x44);

    // The first site comes back, and gets no key for what is served elsewhere.
    let _first_daemon = sites.desk.start("nightlatchd", &sites.first.config);
    wait_for("the first site", PATIENCE, || {
        let list = sites.desk.json(&["node", "list"]);
        let nodes = list.as_array().cloned().unwrap_or_default();
        let first = nodes.iter().find(|node| node["name"] == "node-1").cloned().unwrap_or_default();
        if word(&first, "connection") == "connected" { Ok(()) } else { Err(first.to_string()) }
    });
    let status = sites.status(&sites.first);
    assert_eq!(status["key_memory"]["keys"], 0, "{status}");
    // What it has is older than what is served, and no replica: it is not promoted in its place.
    let older = sites.desk.refused(&["volume", "promote", "db", "--node", "node-1", "--yes"]);
    assert!(older.contains("no replica"), "{older}");
    sites.holds(&sites.second, 0x44);
}

#[test]
fn a_snapshot_travels_by_file_and_a_file_that_is_cut_short_or_damaged_is_refused() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (sites, _first_daemon, _second_daemon) = two_sites(parent.path(), "2G");
    sites.write(&sites.first, 0x55);
    let one = sites.snapshot();
    let file = sites.desk.dir.join("one.snapshot");
    let path = file.display().to_string();
    let desk = &sites.desk;
    desk.run(&["snapshot", "send", &one, "--node", "node-1", "--output", &path]);
    let written = std::fs::read(&file).expect("the file");
    assert!(written.len() > 3 << 20 && !written.windows(64).any(|window| window == [0x55; 64]));
    let broken = desk.dir.join("broken.snapshot");
    let broken_path = broken.display().to_string();
    let mut flipped = written.clone();
    flipped[written.len() / 2] ^= 1;
    for bad in [&written[..written.len() - 1], &written[..written.len() / 2], &flipped, &[]] {
        std::fs::write(&broken, bad).expect("space for a test file");
        let refused = desk.refused(&["snapshot", "receive", &broken_path, "--node", "node-2"]);
        assert!(refused.contains("cut short or damaged"), "{refused}");
    }
    let none = desk.json(&["snapshot", "list", "--node", "node-2"]);
    assert_eq!(none, Value::Array(Vec::new()));
    desk.run(&["snapshot", "receive", &path, "--node", "node-2"]);
    // And the next by file too, since the first.
    sites.write(&sites.first, 0x66);
    let two = sites.snapshot();
    let second = desk.dir.join("two.snapshot").display().to_string();
    desk.run(&["snapshot", "send", &two, "--since", &one, "--node", "node-1", "--output", &second]);
    desk.run(&["snapshot", "receive", &second, "--node", "node-2"]);
    desk.run(&["revoke", "--volume", "db"]);
    desk.run(&["volume", "promote", "db", "--node", "node-2", "--yes"]);
    desk.run(&["unlatch", "--volume", "db"]);
    desk.run(&["volume", "access", "db", "--anyone"]);
    sites.holds(&sites.second, 0x66);
}
