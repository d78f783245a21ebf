//! `nightlatch volume`: made and erased through the keyholder, which keeps their names and keys.

use keyholder::api::{
    CreateVolume, Erasure, KeyState, OnSeal, ResizeVolume, VolumeEntry, VolumeErased, VolumeKind,
};
use units::ByteLen;

use crate::args::{KindArg, OnSealArg, VolumeCommand};
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, duration_ms, table};

pub(crate) fn run(command: &VolumeCommand, connections: &Connections, output: Output) -> Done {
    match command {
        VolumeCommand::Create { label, node, pool, size, kind, on_seal } => {
            let node = match &node.node {
                Some(node) => node.clone(),
                None => wait(connections.find_node(None))??.name,
            };
            let request = CreateVolume {
                label: label.clone(),
                node,
                pool: *pool,
                kind: match kind {
                    KindArg::Block => VolumeKind::Block,
                    KindArg::Objects => VolumeKind::Objects,
                },
                size_bytes: whole_sectors(*size)?,
                on_seal: match on_seal {
                    OnSealArg::Hold => OnSeal::Hold,
                    OnSealArg::Fail => OnSeal::Fail,
                },
            };
            create(&request, connections, output)
        }
        VolumeCommand::List => {
            let volumes: Vec<VolumeEntry> = wait(connections.keyholder(Ask::Read)?.get("/v1/volumes"))??;
            output.show(&volumes, || volume_table(&volumes))
        }
        VolumeCommand::Resize { label, size, allow_shrink } => {
            let request = ResizeVolume { size_bytes: whole_sectors(*size)?, allow_shrink: *allow_shrink };
            let client = connections.keyholder(Ask::Operate)?;
            let entry: VolumeEntry = wait(client.patch(&path(label)?, &request))??;
            output.show(&entry, || format!("{label} is {} now.", ByteLen(entry.size_bytes)))
        }
        VolumeCommand::Delete { label, yes } => delete(label, *yes, connections, output),
    }
}

fn whole_sectors(size: ByteLen) -> Done<u64> {
    if size.0 > 0 && size.is_sector_aligned() {
        Ok(size.0)
    } else {
        Err(Failure::usage(format!("{size} is not a multiple of 4096 bytes"), "round it up, as in 100G"))
    }
}

/// The path of a volume. A label goes into it as it is, so it may hold only what needs no escaping.
fn path(label: &str) -> Done<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '~');
    if label.is_empty() || !label.chars().all(plain) || label.starts_with('.') {
        return Err(Failure::usage(
            format!("`{label}` is not a volume's label"),
            "labels have letters, digits, `.`, `-`, `_` and `~`; `nightlatch volume list` shows those there are",
        ));
    }
    Ok(format!("/v1/volumes/{label}"))
}

fn create(request: &CreateVolume, connections: &Connections, output: Output) -> Done {
    path(&request.label)?;
    let entry: VolumeEntry = wait(connections.keyholder(Ask::Operate)?.post("/v1/volumes", request))??;
    output.show(&entry, || {
        let next = match entry.key {
            KeyState::Unlocked => "It is served.".to_owned(),
            _ => format!("Give the node its key: nightlatch push --volume {}", entry.label),
        };
        format!(
            "Made {} ({}) on {}. {next}\nIts key domain is new in the ledger: save the ledger with `nightlatch key backup FILE`.",
            entry.label,
            ByteLen(entry.size_bytes),
            entry.node
        )
    })
}

/// The volumes as the keyholder sees them.
pub(crate) fn volume_table(volumes: &[VolumeEntry]) -> String {
    let rows: Vec<_> = volumes
        .iter()
        .map(|volume| {
            vec![
                volume.label.clone(),
                match volume.kind {
                    VolumeKind::Block => "block",
                    VolumeKind::Objects => "objects",
                }
                .to_owned(),
                ByteLen(volume.size_bytes).to_string(),
                volume.node.clone(),
                key_state(volume.key).to_owned(),
                volume.lease_remaining_ms.map_or_else(|| "-".to_owned(), duration_ms),
                match &volume.latch {
                    Some(latch) => {
                        format!("latched ({}): `nightlatch unlatch --volume {}`", latch.cause, volume.label)
                    }
                    None => volume.reason.clone().unwrap_or_default(),
                },
            ]
        })
        .collect();
    table(
        &["VOLUME", "KIND", "SIZE", "NODE", "KEY", "LEASE", "REMARK"],
        &rows,
        "no volumes yet: make one with `nightlatch volume create`",
    )
}

fn key_state(state: KeyState) -> &'static str {
    match state {
        KeyState::Sealed => "sealed",
        KeyState::Pushing => "pushing",
        KeyState::Unlocked => "unlocked",
        KeyState::Refused => "refused",
        KeyState::Unknown => "unknown",
    }
}

fn delete(label: &str, yes: bool, connections: &Connections, output: Output) -> Done {
    let path = path(label)?;
    output.confirm(yes, &format!("Erase the volume {label} with everything on it?"))?;
    let client = connections.keyholder(Ask::Operate)?;
    let erased: VolumeErased = wait(client.delete(&path))??;
    output.show(&erased, || match (erased.erasure, erased.destroy_backups_up_to_serial) {
        (Erasure::Complete, _) => format!("Erased {label}: no copy of its secret is left."),
        (Erasure::PendingBackups, Some(serial)) => format!(
            "Erased {label} here. Ledger backups with serial {serial} or lower still hold its secret, wrapped: destroy them."
        ),
        (Erasure::PendingBackups, None) => {
            format!("Erased {label} here. Ledger backups from before still hold its secret, wrapped: destroy them.")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_would_change_the_path_is_refused() {
        for label in ["", "..", ".x", "a/b", "a?b", "a#b", "a%2fb", "a b", "é"] {
            assert!(path(label).is_err(), "{label}");
        }
        assert_eq!(path("db-1.main_x~").unwrap(), "/v1/volumes/db-1.main_x~");
    }

    #[test]
    fn sizes_are_whole_sectors() {
        assert_eq!(whole_sectors(ByteLen(8192)).unwrap(), 8192);
        for bytes in [0, 1, 4095, 4097] {
            assert!(whole_sectors(ByteLen(bytes)).is_err(), "{bytes}");
        }
    }
}
