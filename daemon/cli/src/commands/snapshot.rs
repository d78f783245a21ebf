//! `nightlatch snapshot`: taken, listed and deleted at the node, which needs no key and no keyholder for it.

use admin::api::{CreateSnapshot, Done as NodeDone, SnapshotStatus};
use keyholder::api::VolumeEntry;
use units::{ByteLen, VolumeId};

use crate::args::SnapshotCommand;
use crate::commands::volume::entry_of;
use crate::commands::wait;
use crate::commands::{schedule, send};
use crate::connect::{Ask, Connections};
use crate::export;
use crate::failure::{Done, Failure};
use crate::output::{Output, moment, table, until};

pub(crate) fn run(command: &SnapshotCommand, connections: &Connections, output: Output) -> Done {
    match command {
        SnapshotCommand::Create { volume, lock, node } => {
            // An id needs no keyholder, which may be out of reach when a snapshot is wanted most.
            let (volume, node) = match volume.parse::<VolumeId>() {
                Ok(id) => (id, node.node.clone()),
                Err(_) => {
                    let VolumeEntry { volume, node, .. } = entry_of(volume, connections)?;
                    (volume, Some(node))
                }
            };
            let taken: SnapshotStatus = wait(async {
                let node = connections.node(node.as_deref(), Ask::Operate).await?;
                Done::Ok(
                    node.post("/v1/snapshots", &CreateSnapshot { volume, lock_s: lock.map(|lock| lock.0) })
                        .await?,
                )
            })??;
            output.show(&taken, || {
                format!("Took the snapshot {} of {}.", taken.snapshot, ByteLen(taken.size_bytes))
            })
        }
        SnapshotCommand::Lock { snapshot, lock, node } => {
            schedule::lock(*snapshot, *lock, node.node.as_deref(), connections, output)
        }
        SnapshotCommand::Schedule(arguments) => schedule::run(arguments, connections, output),
        SnapshotCommand::Export(arguments) => export::export(arguments, connections, output),
        SnapshotCommand::Import(arguments) => export::import(arguments, connections, output),
        SnapshotCommand::Exports { bucket, verify } => export::list(bucket, *verify, output),
        SnapshotCommand::Prune { bucket, keep, unfinished, yes } => {
            export::prune(bucket, *keep, (*unfinished, *yes), output)
        }
        SnapshotCommand::Send { snapshot, node, since, to_node, pool, output: file } => {
            let what = (*snapshot, *since, node.node.as_deref());
            match (to_node, file) {
                (Some(to), _) => send::to_node(what, (to, *pool), connections, output),
                (None, Some(file)) => send::to_file(what, file, connections, output),
                (None, None) => {
                    Err(Failure::usage("it is not said where to", "give --to-node NAME or --output FILE"))
                }
            }
        }
        SnapshotCommand::Receive { file, node, pool } => {
            send::from_file(file, (node.node.as_deref(), *pool), connections, output)
        }
        SnapshotCommand::List(node) => {
            let snapshots: Vec<SnapshotStatus> = wait(async {
                let node = connections.node(node.node.as_deref(), Ask::Read).await?;
                Done::Ok(node.get("/v1/snapshots").await?)
            })??;
            output.show(&snapshots, || snapshot_table(&snapshots))
        }
        SnapshotCommand::Delete { snapshot, node, yes } => {
            output.confirm(*yes, &format!("Delete the snapshot {snapshot}?"))?;
            let done: NodeDone = wait(async {
                let node = connections.node(node.node.as_deref(), Ask::Operate).await?;
                Done::Ok(node.delete(&format!("/v1/snapshots/{snapshot}")).await?)
            })??;
            output.show(&done, || format!("Deleted the snapshot {snapshot}."))
        }
    }
}

/// A volume by its name or its id.
pub(crate) fn id_of(volume: &str, connections: &Connections) -> Done<VolumeId> {
    match volume.parse::<VolumeId>() {
        Ok(id) => Ok(id),
        Err(_) => Ok(entry_of(volume, connections)?.volume),
    }
}

fn snapshot_table(snapshots: &[SnapshotStatus]) -> String {
    let rows: Vec<_> = snapshots
        .iter()
        .map(|snapshot| {
            vec![
                snapshot.snapshot.to_string(),
                snapshot.volume.to_string(),
                moment(snapshot.created_unix_s),
                ByteLen(snapshot.size_bytes).to_string(),
                ByteLen(snapshot.referenced_bytes).to_string(),
                ByteLen(snapshot.unique_bytes).to_string(),
                snapshot.locked_s.map_or_else(String::new, |left| format!("for {}", until(left))),
            ]
        })
        .collect();
    table(
        &["SNAPSHOT", "VOLUME", "TAKEN", "SIZE", "SHOWS", "ALONE", "LOCKED"],
        &rows,
        "no snapshots yet: take one with `nightlatch snapshot create`",
    )
}
