//! Two nodes and one keyholder of an operator's desk: a first site that serves a volume, and a second.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::client::{client, run};
use crate::desk::{Desk, move_ports, word, write_keyholder_config};
use crate::process::{Process, wait_for};
use crate::site::free_port;

/// How long a node is waited for.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// One of the nodes.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: &'static str,
    /// Its configuration.
    pub config: PathBuf,
    /// The address of each of its ports, by their names in the configuration.
    listen: toml::Table,
}

impl Node {
    /// The address of a port.
    ///
    /// # Panics
    /// Where the configuration has none of that name.
    pub fn address(&self, port: &str) -> &str {
        self.listen[port].as_str().expect("an address")
    }

    /// What its metrics say of one without labels.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let url = format!("http://{}/metrics", self.address("metrics"));
        let shown = run(client("curl").args(["--silent", "--fail", &url]));
        let line = shown.stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.parse().ok()
    }

    /// Its state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.config.with_file_name("state")
    }
}

/// Issues, makes, starts and enrols a node that is pushed to without asking.
fn add_node(desk: &Desk, name: &'static str, pool_size: &str, pin: &str) -> (Node, Process) {
    desk.run(&["pki", "issue", "node", name, "--pki", "./pki"]);
    desk.run(&["pki", "issue", "server", name, "--host", "127.0.0.1", "--pki", "./pki"]);
    let (dir, pool) = (format!("./{name}"), format!("{name}.img"));
    desk.run(&["pool", "create", &pool, "--size", pool_size]);
    let init = ["node", "init", "--dir", &dir, "--name", name, "--pki", "./pki", "--pool", &pool];
    let made = desk.json(&[&init[..], &["--listen", "127.0.0.1", "--keyholder-key", pin]].concat());
    let config = desk.dir.join(name).join("node.toml");
    let node = Node { name, listen: move_ports(&config), config };
    let daemon = desk.start("nightlatchd", &node.config);
    let (key, admin) = (node.address("key"), node.address("admin"));
    let identity = word(&made, "identity_key");
    let id = word(&made, "node");
    let add = ["node", "add", name, "--id", &id, "--key-address", key, "--admin-address", admin];
    desk.run(&[&add[..], &["--auto-push", "--identity-key", &identity]].concat());
    (node, daemon)
}

/// The desk, the keyholder and both nodes.
#[derive(Debug)]
pub struct Sites {
    /// Where all of it is.
    pub desk: Desk,
    /// Serves the volume `db` at first.
    pub first: Node,
    /// Serves nothing.
    pub second: Node,
    _keyholder: Process,
}

impl Sites {
    fn uri(&self, node: &Node, volume: &str) -> String {
        let certificates = self.desk.dir.join("pki/nbd-client/web-3");
        format!("nbds://{}/{volume}?tls-certificates={}", node.address("nbd"), certificates.display())
    }

    /// Writes a file to the beginning of `db`.
    ///
    /// # Panics
    /// Where the node does not serve it.
    pub fn write_file(&self, node: &Node, file: &Path) {
        wait_for("a served volume", PATIENCE, || {
            let answer = run(client("nbdcopy").arg("--flush").arg(file).arg(self.uri(node, "db")));
            if answer.success { Ok(()) } else { Err(answer.describe()) }
        });
    }

    /// Writes what a file holds, but not its holes, to a volume.
    ///
    /// # Panics
    /// As [`Self::write_file`].
    pub fn write_over(&self, node: &Node, volume: &str, file: &Path) {
        wait_for("a served volume", PATIENCE, || {
            let mut copy = client("nbdcopy");
            copy.args(["--flush", "--destination-is-zero"]).arg(file).arg(self.uri(node, volume));
            let answer = run(&mut copy);
            if answer.success { Ok(()) } else { Err(answer.describe()) }
        });
    }

    /// Fills the beginning of `db`.
    ///
    /// # Panics
    /// As [`Self::write_file`].
    pub fn write_len(&self, node: &Node, fill: u8, len: usize) {
        let file = self.desk.dir.join("written");
        std::fs::write(&file, vec![fill; len]).expect("space for a test file");
        self.write_file(node, &file);
    }

    /// Fills the first 3 MiB of `db`.
    ///
    /// # Panics
    /// As [`Self::write_file`].
    pub fn write(&self, node: &Node, fill: u8) {
        self.write_len(node, fill, 3 << 20);
    }

    /// Copies a volume to a file.
    ///
    /// # Panics
    /// As [`Self::write_file`].
    pub fn read_back(&self, node: &Node, volume: &str, file: &Path) {
        wait_for("a served volume", PATIENCE, || {
            let _ = std::fs::remove_file(file);
            let answer = run(client("nbdcopy").arg(self.uri(node, volume)).arg(file));
            if answer.success { Ok(()) } else { Err(answer.describe()) }
        });
    }

    /// What `db` holds.
    ///
    /// # Panics
    /// Where the node does not serve it.
    pub fn read(&self, node: &Node) -> Vec<u8> {
        let back = self.desk.dir.join("back");
        self.read_back(node, "db", &back);
        std::fs::read(&back).expect("a copy of the volume")
    }

    /// Says that the first 3 MiB hold that, and everything behind them nothing.
    ///
    /// # Panics
    /// Where it is not so.
    pub fn holds(&self, node: &Node, fill: u8) {
        let content = self.read(node);
        assert!(content[..3 << 20].iter().all(|byte| *byte == fill), "it holds {}", content[0]);
        assert!(content[3 << 20..].iter().all(|byte| *byte == 0));
    }

    /// Takes a snapshot of `db`.
    pub fn snapshot(&self) -> String {
        word(&self.desk.json(&["snapshot", "create", "db"]), "snapshot")
    }

    /// Sends one from the first node to the second.
    pub fn send(&self, snapshot: &str) {
        let (from, to) = (self.first.name, self.second.name);
        self.desk.run(&["snapshot", "send", snapshot, "--node", from, "--to-node", to]);
    }

    /// A node's own account of itself.
    pub fn status(&self, node: &Node) -> Value {
        self.desk.json(&["node", "status", node.name])
    }

    /// The snapshots on a node, by volume and age.
    pub fn snapshots(&self, node: &Node) -> Vec<Value> {
        let list = self.desk.json(&["snapshot", "list", "--node", node.name]);
        list.as_array().cloned().unwrap_or_default()
    }
}

/// Both sites, with the volume `db` of 64 MiB on the first; the second's pool is so large.
///
/// # Panics
/// Where one of the commands that make them fails.
pub fn two_sites(parent: &Path, second_pool: &str) -> (Sites, Process, Process) {
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
    let (first, first_daemon) = add_node(&desk, "node-1", "2G", &pin);
    let (second, second_daemon) = add_node(&desk, "node-2", second_pool, &pin);
    // Nobody waits for a daemon that was just started, and the first command of a test may be for either.
    desk.until(&["node", "status", "node-1"]);
    desk.until(&["node", "status", "node-2"]);
    desk.until(&["volume", "create", "db", "--node", "node-1", "--size", "64M"]);
    (Sites { desk, first, second, _keyholder: keyholder }, first_daemon, second_daemon)
}
