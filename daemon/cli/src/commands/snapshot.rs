//! `nightlatch snapshot`: taken, listed and deleted at the node, which needs no key and no keyholder for it.

use admin::api::{CreateSnapshot, Done as NodeDone, SnapshotStatus};
use keyholder::api::VolumeEntry;
use units::{ByteLen, VolumeId};

use crate::args::SnapshotCommand;
use crate::commands::send;
use crate::commands::volume::entry_of;
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, moment, table};

pub(crate) fn run(command: &SnapshotCommand, connections: &Connections, output: Output) -> Done {
    match command {
        SnapshotCommand::Create { volume, node } => {
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
                Done::Ok(node.post("/v1/snapshots", &CreateSnapshot { volume }).await?)
            })??;
            output.show(&taken, || {
                format!("Took the snapshot {} of {}.", taken.snapshot, ByteLen(taken.size_bytes))
            })
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
            ]
        })
        .collect();
    table(
        &["SNAPSHOT", "VOLUME", "TAKEN", "SIZE", "SHOWS", "ALONE"],
        &rows,
        "no snapshots yet: take one with `nightlatch snapshot create`",
    )
}
