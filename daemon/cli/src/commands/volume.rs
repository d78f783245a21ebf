//! `nightlatch volume`: made and erased through the keyholder, which keeps their names and keys.

use admin::api::{SnapshotStatus, VolumeAccess, VolumeStatus};
use keyholder::api::{
    CloneVolume, CreateVolume, Erasure, KeyState, OnSeal, PromoteVolume, ResizeVolume, RollBackVolume,
    VolumeEntry, VolumeErased, VolumeIntegrity, VolumeKind, VolumeLimits,
};
use lease::limits::NAMED_KEY_BYTES;
use units::ByteLen;

use crate::args::{AccessArgs, IntegrityArg, KindArg, LimitArgs, OnSealArg, VolumeCommand};
use crate::commands::{rotate, wait};
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, duration_ms, table};

pub(crate) fn run(command: &VolumeCommand, connections: &Connections, output: Output) -> Done {
    match command {
        VolumeCommand::Create { label, node, pool, size, kind, on_seal, integrity, limits } => {
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
                on_seal: on_seal_of(*on_seal),
                integrity: match integrity {
                    IntegrityArg::Tag => VolumeIntegrity::Tag,
                    IntegrityArg::Checksum => VolumeIntegrity::Checksum,
                },
                limits: limits_of(*limits),
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
        VolumeCommand::Clone { snapshot, label, node, on_seal, limits } => {
            let request = CloneVolume {
                label: label.clone(),
                snapshot: *snapshot,
                on_seal: on_seal_of(*on_seal),
                limits: limits_of(*limits),
            };
            clone(&request, node.node.as_deref(), connections, output)
        }
        VolumeCommand::Rollback { label, snapshot, yes } => {
            let path = format!("{}/rollback", path(label)?);
            output.confirm(*yes, &format!("Give up what was written to {label} since that snapshot?"))?;
            let request = RollBackVolume { snapshot: *snapshot };
            let entry: VolumeEntry = wait(connections.keyholder(Ask::Operate)?.post(&path, &request))??;
            output.show(&entry, || {
                format!("{label} is what the snapshot shows, {} of it.", ByteLen(entry.size_bytes))
            })
        }
        VolumeCommand::Promote { label, node, yes } => {
            let path = format!("{}/promote", path(label)?);
            output.confirm(
                *yes,
                &format!("Serve {label} from {node}, as its newest snapshot there shows it?"),
            )?;
            let request = PromoteVolume { node: node.clone() };
            let entry: VolumeEntry = wait(connections.keyholder(Ask::Decide)?.post(&path, &request))??;
            output.show(&entry, || match &entry.reason {
                Some(reason) => format!("{label} is on {node} now; {reason}."),
                None => format!("{label} is on {node} now."),
            })
        }
        VolumeCommand::AcceptState { label, yes } => {
            let path = format!("{}/accept-state", path(label)?);
            output.confirm(
                *yes,
                &format!("Serve {label} from what is on the device now, although it is not what was known to be there?"),
            )?;
            let entry: VolumeEntry =
                wait(connections.keyholder(Ask::Decide)?.post(&path, &serde_json::json!({})))??;
            output.show(&entry, || {
                format!(
                    "What the pool of {label} was known to hold is forgotten, for every volume in it. Push it: nightlatch push \
                     --volume {label}"
                )
            })
        }
        VolumeCommand::Rotate { label, show, wait } => {
            rotate::run(label, (*show, *wait), connections, output)
        }
        VolumeCommand::Limit { label, limits } => {
            let entry = entry_of(label, connections)?;
            let path = format!("/v1/volumes/{}/limits", entry.volume);
            let status: VolumeStatus = wait(async {
                let node = connections.node(Some(&entry.node), Ask::Operate).await?;
                Done::Ok(node.post(&path, &limits_of(*limits)).await?)
            })??;
            output.show(&status, || {
                let quota = status
                    .quota_bytes
                    .map_or_else(|| "no quota".to_owned(), |quota| format!("a quota of {}", ByteLen(quota)));
                let iops = status.requests_per_second.map(|most| format!("{most} requests"));
                let bandwidth = status.bytes_per_second.map(|most| ByteLen(most).to_string());
                let ceilings: Vec<String> = iops.into_iter().chain(bandwidth).collect();
                let pace = match &ceilings[..] {
                    [] => "as fast as it can".to_owned(),
                    _ => format!("at most {} a second", ceilings.join(" and ")),
                };
                let reserve = ByteLen(status.reserve_bytes);
                format!("{label} has {quota}, {reserve} is kept for it, and it is served {pace}.")
            })
        }
        VolumeCommand::Access { label, access } => set_access(label, access, connections, output),
        VolumeCommand::Delete { label, yes } => delete(label, *yes, connections, output),
    }
}

fn set_access(label: &str, given: &AccessArgs, connections: &Connections, output: Output) -> Done {
    let AccessArgs { clients, addresses, local, anyone, read_only } = given.clone();
    let asks = clients.is_empty() && addresses.is_empty() && !local && !anyone && !read_only;
    if local && clients.is_empty() && addresses.is_empty() {
        return Err(Failure::usage(
            "--local says that the unix socket may too, and nothing says who else may not",
            "name clients or addresses, or leave it out: without them everybody may",
        ));
    }
    let entry = entry_of(label, connections)?;
    let path = format!("/v1/volumes/{}/access", entry.volume);
    let access: VolumeAccess = wait(async {
        let node = connections.node(Some(&entry.node), if asks { Ask::Read } else { Ask::Operate }).await?;
        if asks {
            return Done::Ok(node.get(&path).await?);
        }
        Ok(node.post(&path, &VolumeAccess { clients, addresses, local, read_only, nobody: false }).await?)
    })??;
    output.show(&access, || access_text(label, &access))
}

fn access_text(label: &str, access: &VolumeAccess) -> String {
    let VolumeAccess { clients, addresses, local, read_only, nobody } = access;
    if *nobody {
        return format!(
            "{label}: nobody may use it. It was promoted on its node, or the node's lists are lost: say who may, or --anyone."
        );
    }
    let who = match (&clients[..], &addresses[..]) {
        ([], []) => "every client that the node lets in".to_owned(),
        (clients, []) => clients.join(", "),
        ([], addresses) => format!("whoever connects from {}", addresses.join(", ")),
        (clients, addresses) => format!("{}, from {}", clients.join(", "), addresses.join(", ")),
    };
    let socket = if *local { ", and whoever reaches the node's unix socket" } else { "" };
    let what = if *read_only { "read it; nobody may change anything" } else { "use it" };
    format!("{label}: {who}{socket} may {what}.")
}

fn on_seal_of(given: OnSealArg) -> OnSeal {
    match given {
        OnSealArg::Hold => OnSeal::Hold,
        OnSealArg::Fail => OnSeal::Fail,
    }
}

fn limits_of(given: LimitArgs) -> VolumeLimits {
    VolumeLimits {
        quota_bytes: given.quota.map(|quota| quota.0),
        reserve_bytes: given.reserve.0,
        requests_per_second: given.iops,
        bytes_per_second: given.bandwidth.map(|bytes| bytes.0),
    }
}

/// What the keyholder knows of the volume with this label.
pub(crate) fn entry_of(label: &str, connections: &Connections) -> Done<VolumeEntry> {
    let volumes: Vec<VolumeEntry> = wait(connections.keyholder(Ask::Read)?.get("/v1/volumes"))??;
    volumes.into_iter().find(|volume| volume.label == label).ok_or_else(|| {
        Failure::usage(
            format!("there is no volume {label}"),
            "`nightlatch volume list` shows those there are",
        )
    })
}

fn clone(request: &CloneVolume, node: Option<&str>, connections: &Connections, output: Output) -> Done {
    path(&request.label)?;
    let snapshots: Vec<SnapshotStatus> =
        wait(async { Done::Ok(connections.node(node, Ask::Read).await?.get("/v1/snapshots").await?) })??;
    let snapshot = snapshots.iter().find(|found| found.snapshot == request.snapshot).ok_or_else(|| {
        Failure::usage(
            format!("there is no snapshot {}", request.snapshot),
            "`nightlatch snapshot list` shows those there are",
        )
    })?;
    let volumes: Vec<VolumeEntry> = wait(connections.keyholder(Ask::Read)?.get("/v1/volumes"))??;
    let of = volumes.iter().find(|volume| volume.volume == snapshot.volume).ok_or_else(|| {
        Failure::usage(
            format!("the keyholder knows no volume {}", snapshot.volume),
            "without its key nobody can read the snapshot; delete it with `nightlatch snapshot delete`",
        )
    })?;
    let path = format!("{}/clone", path(&of.label)?);
    let entry: VolumeEntry = wait(connections.keyholder(Ask::Operate)?.post(&path, request))??;
    output.show(&entry, || {
        let next = match entry.key {
            KeyState::Unlocked => "It is served.".to_owned(),
            _ => format!("Give the node its key: nightlatch push --volume {}", entry.label),
        };
        format!(
            "Made {} of a snapshot of {}, on {}. {next}\nBoth have one key domain: its secret is erased with the last of them.",
            entry.label, of.label, entry.node
        )
    })
}

fn whole_sectors(size: ByteLen) -> Done<u64> {
    if size.0 > 0 && size.is_sector_aligned() {
        Ok(size.0)
    } else {
        Err(Failure::usage(format!("{size} is not a multiple of 4096 bytes"), "round it up, as in 100G"))
    }
}

/// The path of a volume. A label goes into it as it is, so it may hold only what needs no escaping.
pub(crate) fn path(label: &str) -> Done<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '~');
    if label.is_empty() || !label.chars().all(plain) || label.starts_with('.') {
        return Err(Failure::usage(
            format!("`{label}` is not a volume's label"),
            "labels have letters, digits, `.`, `-`, `_` and `~`; `nightlatch volume list` shows those there are",
        ));
    }
    Ok(format!("/v1/volumes/{label}"))
}

pub(crate) fn create(request: &CreateVolume, connections: &Connections, output: Output) -> Done {
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
                    VolumeKind::Objects if volume.size_bytes == NAMED_KEY_BYTES => "key",
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
                    None => volume.reason.clone().or_else(|| rotation(volume)).unwrap_or_default(),
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

/// That a volume's key is being rotated.
fn rotation(volume: &VolumeEntry) -> Option<String> {
    let rotation = volume.rotation.as_ref()?;
    Some(match rotation.refused {
        Some(_) if rotation.written != Some(volume.epoch) => {
            format!("its new key was not taken: `nightlatch volume rotate {} --show`", volume.label)
        }
        _ => format!("its key is being rotated: `nightlatch volume rotate {} --show`", volume.label),
    })
}

pub(crate) fn key_state(state: KeyState) -> &'static str {
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
        (Erasure::Shared, _) => format!(
            "Deleted {label}. Its key domain's secret is not erased: {} has it too.",
            erased.shared_with.join(", ")
        ),
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
