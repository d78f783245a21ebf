//! `nightlatch peer`: other nodes in a node's configuration.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use admin::api::{PeerStatus, Replication};
use config::{KeyHash, NodeConfig, PeerConfig};
use identity::{CertificateFacts, Role};
use serde::Serialize;

use crate::args::{PeerAdd, PeerCommand};
use crate::commands::{to_toml, wait};
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, table};

pub(crate) fn run(
    command: &PeerCommand,
    connections: impl FnOnce() -> Done<Connections>,
    output: Output,
) -> Done {
    match command {
        PeerCommand::Add(add) => self::add(add, output),
        PeerCommand::List(node) => {
            let connections = connections()?;
            let client = wait(connections.node(node.node.as_deref(), Ask::Read))??;
            let replication: Replication = wait(client.get("/v1/replication"))??;
            output.show(&replication.peers, || {
                let rows: Vec<_> = replication.peers.iter().map(row).collect();
                table(
                    &["PEER", "ADDRESS", "CONNECTION", "VOLUMES"],
                    &rows,
                    "no peers: add one with `nightlatch peer add`",
                )
            })
        }
        PeerCommand::Remove { name, config } => remove(name, config, output),
    }
}

fn row(peer: &PeerStatus) -> Vec<String> {
    let connection = match (&peer.address, peer.connected, &peer.trouble) {
        (None, ..) => "only sends here".to_owned(),
        (_, true, _) => "connected".to_owned(),
        (_, false, Some(trouble)) => trouble.clone(),
        (_, false, None) => "not connected".to_owned(),
    };
    let address = peer.address.clone().unwrap_or_else(|| "-".to_owned());
    vec![peer.name.clone(), address, connection, peer.volumes.len().to_string()]
}

#[derive(Serialize)]
struct Tables {
    peers: Vec<PeerConfig>,
}

fn add(add: &PeerAdd, output: Output) -> Done {
    let origin = add.certificate.display().to_string();
    let facts = CertificateFacts::load(&add.certificate)?;
    let id = facts.spiffe_id(&origin)?;
    if id.role != Role::Node {
        return Err(Failure::usage(
            format!("{origin} is the certificate of a {}, and a peer is a node", id.role),
            "give the other node's own, for example from `nightlatch pki issue node`",
        ));
    }
    let peer = PeerConfig {
        name: id.name.clone(),
        key_sha256: KeyHash(facts.spki_sha256),
        address: add.address.clone(),
        volumes: add.volumes.clone(),
        receive: !add.no_receive,
        residency: add.residency.clone(),
    };
    let tables = Tables { peers: vec![peer.clone()] };
    let text = to_toml(&tables)?;
    let Some(path) = &add.config else {
        return output.show(&peer, || format!("Add this to the node's configuration:\n\n{text}"));
    };
    change(path, |before| format!("{}\n\n{text}", before.trim_end()))?;
    output.show(&peer, || {
        format!("Added {} to {}; the node takes it at its next start.", peer.name, path.display())
    })
}

fn remove(name: &str, path: &Path, output: Output) -> Done {
    let config = NodeConfig::load(path)?;
    let Some(number) = config.peers.iter().position(|peer| peer.name.as_str() == name) else {
        return Err(Failure::usage(
            format!("{} names no peer {name}", path.display()),
            "look at its [[peers]] tables",
        ));
    };
    change(path, |before| without_table(before, number))?;
    output.show(&config.peers[number], || {
        format!("Removed {name} from {}; the node leaves it at its next start.", path.display())
    })
}

/// Whether a line begins a table, and which.
fn header(line: &str) -> Option<&str> {
    line.trim_start().starts_with('[').then(|| line.split('#').next().unwrap_or(line).trim())
}

/// The text without its `[[peers]]` table with this number, whatever else is in it.
fn without_table(text: &str, number: usize) -> String {
    let (mut seen, mut inside) = (0, false);
    let kept = text.lines().filter(|line| {
        if let Some(header) = header(line) {
            inside = header == "[[peers]]" && {
                seen += 1;
                seen == number + 1
            };
        }
        !inside
    });
    let mut kept: String = kept.flat_map(|line| [line, "\n"]).collect();
    kept.truncate(kept.trim_end().len());
    kept.push('\n');
    kept
}

/// Changes a configuration's text, once it is sure that the node would take it; in one step, with its owner, group and mode.
fn change(path: &Path, change: impl FnOnce(&str) -> String) -> Done {
    let before = std::fs::read_to_string(path).map_err(|error| Failure::file("read", path, &error))?;
    NodeConfig::parse(&before, path)?;
    let after = change(&before);
    NodeConfig::parse(&after, path)?;
    replace(path, after.as_bytes()).map_err(|error| Failure::file("write", path, &error))
}

/// Replaces a file by another with its owner, group and mode, durably: a cut leaves the old one or the new one. The new one is nobody
/// else's until it has them. Where they cannot be given to it, the old one stays.
///
/// Crash order: 1. The new file, durable. 2. Its name. 3. The directory.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A link stays one.
    let path = std::fs::canonicalize(path)?;
    let new = path.with_extension("toml.new");
    let written = write_like(&path, &new, bytes).and_then(|()| std::fs::rename(&new, &path));
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn write_like(old: &Path, new: &Path, bytes: &[u8]) -> io::Result<()> {
    let before = std::fs::metadata(old)?;
    match std::fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    file.write_all(bytes)?;
    fchown(&file, Some(before.uid()), Some(before.gid()))?;
    file.set_permissions(before.permissions())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn a_file_that_is_replaced_keeps_its_owner_group_mode_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("node.toml"), dir.path().join("link.toml"));
        std::fs::write(&file, "before").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&file, &link).unwrap();
        // Only root gives files away; others keep what is theirs.
        let others = chown(&file, Some(4321), Some(1234)).is_ok();
        // What an earlier attempt left is in nobody's way.
        std::fs::write(dir.path().join("node.toml.new"), "left").unwrap();
        replace(&link, b"after").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "after");
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        let now = std::fs::metadata(&file).unwrap();
        assert_eq!(now.mode() & 0o7777, 0o640);
        if others {
            assert_eq!((now.uid(), now.gid()), (4321, 1234));
        }
        assert!(!dir.path().join("node.toml.new").exists());
    }

    #[test]
    fn one_table_goes_and_everything_else_stays() {
        let text = "name = \"a\"\n\n[[peers]] # the first\nname = \"b\"\n\n[[peers]]\nname = \"c\"\n\n[scrub]\nevery_days = 1\n";
        assert_eq!(
            without_table(text, 0),
            "name = \"a\"\n\n[[peers]]\nname = \"c\"\n\n[scrub]\nevery_days = 1\n"
        );
        assert_eq!(
            without_table(text, 1),
            "name = \"a\"\n\n[[peers]] # the first\nname = \"b\"\n\n[scrub]\nevery_days = 1\n"
        );
    }
}
