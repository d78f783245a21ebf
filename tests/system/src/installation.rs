//! An installation that the command line alone has made.

use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::desk::{Desk, move_ports, word, write_keyholder_config};
use harness::process::Process;
use harness::site::free_port;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// The bucket in it, whose name belongs to the customers.
pub const BUCKET: &str = "holiday-pictures";

/// An installation made by the command line alone: an unsealed keyholder, a node, an object store served on it.
#[derive(Debug)]
pub struct Installation {
    pub desk: Desk,
    pub keyholder: Process,
    pub node: Process,
    pub node_config: PathBuf,
    _dir: tempfile::TempDir,
}

impl Installation {
    /// Makes and starts it.
    ///
    /// # Panics
    /// Where a step fails.
    pub fn serving() -> Self {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let desk = Desk { dir: parent.path().to_path_buf() };
        let admin = free_port();
        let url = format!("https://{admin}");
        desk.run(&["pki", "init", "./pki", "--trust-domain", "storage.example.com", "--keyholder", &url]);
        desk.run(&["pki", "issue", "keyholder", "keyholder-1", "--pki", "./pki"]);
        desk.run(&["pki", "issue", "node", "node-1", "--pki", "./pki"]);
        desk.run(&["pki", "issue", "server", "node-1", "--host", "127.0.0.1", "--pki", "./pki"]);
        for role in ["auditor", "monitor"] {
            desk.run(&["pki", "issue", role, role, "--pki", "./pki"]);
            let table = format!(
                "\n[[identities]]\nrole = \"{role}\"\ncert = \"{role}/{role}/cert.pem\"\nkey = \"{role}/{role}/key.pem\"\n"
            );
            let profile = desk.dir.join("pki/profile.toml");
            let text = std::fs::read_to_string(&profile).expect("a profile");
            std::fs::write(&profile, text + &table).expect("a writable profile");
        }
        write_keyholder_config(&desk, admin);
        let keyholder = desk.start("nightlatch-keyholder", Path::new("keyholder.toml"));
        desk.until(&["key", "status"]);
        for officer in ["anna", "ben", "clara"] {
            desk.run(&["key", "officer", officer]);
        }
        let ceremony = ["key", "ceremony", "--threshold", "2", "--out", "shares"];
        let officers = ["anna.officer", "ben.officer", "clara.officer"];
        let made = desk.json(&[&ceremony[..], &officers].concat());
        let pin = word(&made, "grant_signing_key");
        desk.run(&["pool", "create", "pool.img", "--size", "1G"]);
        let init =
            ["node", "init", "--dir", "./node", "--name", "node-1", "--pki", "./pki", "--pool", "pool.img"];
        let made = desk.json(&[&init[..], &["--listen", "127.0.0.1", "--keyholder-key", &pin]].concat());
        let node_config = desk.dir.join("node/node.toml");
        let listen = move_ports(&node_config);
        let address = |key: &str| listen[key].as_str().expect("an address").to_owned();
        let node = desk.start("nightlatchd", &node_config);
        let (identity, id) = (word(&made, "identity_key"), word(&made, "node"));
        let addresses =
            ["--key-address", &address("key"), "--admin-address", &address("admin")].map(str::to_owned);
        let mut add: Vec<&str> =
            vec!["node", "add", "node-1", "--id", &id, "--auto-push", "--identity-key", &identity];
        add.extend(addresses.iter().map(String::as_str));
        desk.run(&add);
        // Nobody has waited for the node yet.
        desk.until(&["volume", "create", "store", "--node", "node-1", "--kind", "objects", "--size", "1G"]);
        desk.until(&["bucket", "create", BUCKET, "--node", "node-1"]);
        Self { desk, keyholder, node, node_config, _dir: parent }
    }

    /// Where the keyholder keeps its files.
    pub fn state(&self) -> PathBuf {
        self.desk.dir.join("keyholder")
    }

    /// Where the node does.
    ///
    /// # Panics
    /// Where its configuration does not read.
    pub fn node_state(&self) -> PathBuf {
        let text = std::fs::read_to_string(&self.node_config).expect("a configuration");
        let table: toml::Table = text.parse().expect("TOML");
        self.node_config.parent().expect("a folder").join(table["state_dir"].as_str().expect("a path"))
    }

    /// Stops the keyholder and starts it again, sealed.
    pub fn restart_keyholder(&mut self) {
        self.desk.until(&["key", "status"]);
        let _ = self.keyholder.stop(PATIENCE);
        self.keyholder = self.desk.start("nightlatch-keyholder", Path::new("keyholder.toml"));
        self.desk.until(&["key", "status"]);
    }

    /// Entries of the audit trail.
    ///
    /// # Panics
    /// Where the command fails.
    pub fn search(&self, arguments: &[&str]) -> Vec<Value> {
        let found = self.desk.json(&[&["audit", "search"], arguments].concat());
        found.as_array().expect("a list").clone()
    }

    /// Every event in the trail.
    pub fn events(&self) -> Vec<String> {
        self.search(&["--last", "100000"]).iter().map(|entry| word(entry, "event")).collect()
    }
}
