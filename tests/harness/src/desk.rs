//! An operator's machine: a directory with a public-key infrastructure in it, the command line, and the daemons that are
//! started there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::client::run;
use crate::process::{Process, program, wait_for};
use crate::site::free_port;

/// How long a command is tried that waits for something.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory, and the command line in it.
#[derive(Debug)]
pub struct Desk {
    /// Where everything is.
    pub dir: PathBuf,
}

impl Desk {
    /// `nightlatch` with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("nightlatch"));
        command.current_dir(&self.dir).env("NIGHTLATCH_PROFILE", self.dir.join("pki")).args(arguments);
        command
    }

    /// What it prints.
    pub fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments)).expect_success()
    }

    /// What it prints with `--json`.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[&["--json"], arguments].concat());
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output}"))
    }

    /// What it says where it fails.
    pub fn refused(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments)).expect_failure()
    }

    /// A daemon with this configuration.
    pub fn start(&self, name: &str, config: &Path) -> Process {
        let mut command = Command::new(program(name));
        command.current_dir(&self.dir).arg("--config").arg(config);
        Process::start(name, command)
    }

    /// Waits until a command succeeds.
    pub fn until(&self, arguments: &[&str]) -> String {
        wait_for(&format!("{arguments:?}"), PATIENCE, || {
            let answer = run(&mut self.command(arguments));
            if answer.success { Ok(answer.stdout) } else { Err(answer.describe()) }
        })
    }

    /// Two of three officers unseal the keyholder.
    pub fn unseal(&self) {
        for officer in ["anna", "clara"] {
            let share = format!("shares/{officer}.share");
            self.run(&[
                "key",
                "unseal",
                "--share",
                &share,
                "--officer-key",
                &format!("{officer}.officer-key"),
            ]);
        }
    }
}

/// Finds a member by name anywhere in a document: the guide promises the words, not the nesting.
pub fn find<'a>(document: &'a Value, name: &str) -> Option<&'a Value> {
    match document {
        Value::Object(members) => {
            members.get(name).or_else(|| members.values().find_map(|member| find(member, name)))
        }
        Value::Array(items) => items.iter().find_map(|item| find(item, name)),
        _ => None,
    }
}

/// As [`find`], of a text.
pub fn word(document: &Value, name: &str) -> String {
    let found = find(document, name).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no {name} in {document}")).to_owned()
}

/// `keyholder.toml`, with leases of ten seconds.
pub fn write_keyholder_config(desk: &Desk, admin: SocketAddr) {
    let config = format!(
        r#"name = "keyholder-1"
state_dir = "keyholder"
lease_ms = 10000
lease_ms_max = 20000
[listen]
admin = "{admin}"
[tls]
trust_domain = "storage.example.com"
cert = "pki/keyholder/keyholder-1/cert.pem"
key = "pki/keyholder/keyholder-1/key.pem"
people_issuer = "pki/issuers/people.pem"
machines_issuer = "pki/issuers/machines.pem"
clients_issuer = "pki/issuers/clients.pem"
"#
    );
    std::fs::write(desk.dir.join("keyholder.toml"), config).expect("a writable directory");
}

/// Moves the node's ports to free ones: the guide's own may be taken on this machine.
pub fn move_ports(config: &Path) -> toml::Table {
    let text = std::fs::read_to_string(config).expect("node init wrote it");
    let mut table: toml::Table = text.parse().expect("TOML");
    let listen = table["listen"].as_table_mut().expect("a table");
    for key in ["key", "admin", "metrics", "nbd", "s3"] {
        listen.insert(key.to_owned(), free_port().to_string().into());
    }
    std::fs::write(config, table.to_string()).expect("a writable directory");
    table["listen"].as_table().expect("a table").clone()
}
