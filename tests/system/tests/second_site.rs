//! Two nodes and one keyholder, by the command line: snapshots of a volume travel from the one to the other without a key there,
//! and when the first is lost the second serves what had arrived.

use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::client::{client, run};
use harness::desk::{Desk, find, move_ports, word, write_keyholder_config};
use harness::process::{Process, wait_for};
use harness::site::free_port;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(90);

struct Node {
    name: &'static str,
    config: PathBuf,
    nbd: String,
}

/// Issues, makes, starts and enrols a node that is pushed to without asking.
fn add_node(desk: &Desk, name: &'static str, pin: &str) -> (Node, Process) {
    desk.run(&["pki", "issue", "node", name, "--pki", "./pki"]);
    desk.run(&["pki", "issue", "server", name, "--host", "127.0.0.1", "--pki", "./pki"]);
    let (dir, pool) = (format!("./{name}"), format!("{name}.img"));
    desk.run(&["pool", "create", &pool, "--size", "2G"]);
    let init = ["node", "init", "--dir", &dir, "--name", name, "--pki", "./pki", "--pool", &pool];
    let made = desk.json(&[&init[..], &["--listen", "127.0.0.1", "--keyholder-key", pin]].concat());
    let config = desk.dir.join(name).join("node.toml");
    let listen = move_ports(&config);
    let address = |key: &str| listen[key].as_str().expect("an address").to_owned();
    let daemon = desk.start("nightlatchd", &config);
    let (key, admin) = (address("key"), address("admin"));
    let identity = word(&made, "identity_key");
    let id = word(&made, "node");
    let add = ["node", "add", name, "--id", &id, "--key-address", &key, "--admin-address", &admin];
    desk.run(&[&add[..], &["--auto-push", "--identity-key", &identity]].concat());
    (Node { name, config, nbd: address("nbd") }, daemon)
}

struct Sites {
    desk: Desk,
    first: Node,
    second: Node,
    _keyholder: Process,
}

impl Sites {
    fn uri(&self, node: &Node, volume: &str) -> String {
        let certificates = self.desk.dir.join("pki/nbd-client/web-3");
        format!("nbds://{}/{volume}?tls-certificates={}", node.nbd, certificates.display())
    }

    fn write(&self, node: &Node, fill: u8) {
        let file = self.desk.dir.join("written");
        std::fs::write(&file, vec![fill; 3 << 20]).expect("space for a test file");
        wait_for("a served volume", PATIENCE, || {
            let answer = run(client("nbdcopy").arg("--flush").arg(&file).arg(self.uri(node, "db")));
            if answer.success { Ok(()) } else { Err(answer.describe()) }
        });
    }

    fn holds(&self, node: &Node, fill: u8) {
        let back = self.desk.dir.join("back");
        wait_for("a served volume", PATIENCE, || {
            let _ = std::fs::remove_file(&back);
            let answer = run(client("nbdcopy").arg(self.uri(node, "db")).arg(&back));
            if answer.success { Ok(()) } else { Err(answer.describe()) }
        });
        let content = std::fs::read(&back).expect("a copy of the volume");
        assert!(content[..3 << 20].iter().all(|byte| *byte == fill), "it holds {}", content[0]);
        assert!(content[3 << 20..].iter().all(|byte| *byte == 0));
    }

    fn snapshot(&self) -> String {
        word(&self.desk.json(&["snapshot", "create", "db"]), "snapshot")
    }

    fn send(&self, snapshot: &str) {
        let (from, to) = (self.first.name, self.second.name);
        self.desk.run(&["snapshot", "send", snapshot, "--node", from, "--to-node", to]);
    }

    fn status(&self, node: &Node) -> Value {
        self.desk.json(&["node", "status", node.name])
    }
}

fn two_sites(parent: &Path) -> (Sites, Process, Process) {
    let desk = Desk { dir: parent.to_path_buf() };
    let admin = free_port();
    let url = format!("https://{admin}");
    desk.run(&["pki", "init", "./pki", "--trust-domain", "storage.example.com", "--keyholder", &url]);
    desk.run(&["pki", "issue", "keyholder", "keyholder-1", "--pki", "./pki"]);
    desk.run(&["pki", "issue", "nbd-client", "web-3", "--pki", "./pki"]);
    for officer in ["anna", "ben", "clara"] {
        desk.run(&["key", "officer", officer]);
    }
    write_keyholder_config(&desk, admin);
    let keyholder = desk.start("nightlatch-keyholder", Path::new("keyholder.toml"));
    desk.until(&["key", "status"]);
    std::fs::create_dir_all(desk.dir.join("shares")).expect("a writable directory");
    let officers = ["anna.officer", "ben.officer", "clara.officer"];
    desk.run(&[&["key", "ceremony", "--threshold", "2"], &officers[..], &["--out", "./shares"]].concat());
    let pin = word(&desk.json(&["key", "status"]), "grant_signing_key");
    let (first, first_daemon) = add_node(&desk, "node-1", &pin);
    let (second, second_daemon) = add_node(&desk, "node-2", &pin);
    desk.until(&["volume", "create", "db", "--node", "node-1", "--size", "64M"]);
    (Sites { desk, first, second, _keyholder: keyholder }, first_daemon, second_daemon)
}

#[test]
fn the_second_site_holds_ciphertext_without_a_key_and_serves_when_the_first_is_lost() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (sites, mut first_daemon, _second_daemon) = two_sites(parent.path());
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
    let (sites, _first_daemon, _second_daemon) = two_sites(parent.path());
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
    sites.holds(&sites.second, 0x66);
}
