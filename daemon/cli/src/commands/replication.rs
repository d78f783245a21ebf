//! `nightlatch replication`: how far volumes are at their peers.

use admin::api::{PeerStatus, ReplicaStatus, Replication, SentStatus};
use units::ByteLen;

use crate::args::ReplicationCommand;
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::Done;
use crate::output::{Output, moment, table, until};

pub(crate) fn run(command: &ReplicationCommand, connections: &Connections, output: Output) -> Done {
    let ReplicationCommand::Status(node) = command;
    let client = wait(connections.node(node.node.as_deref(), Ask::Read))??;
    let replication: Replication = wait(client.get("/v1/replication"))??;
    output.show(&replication, || text(&replication))
}

fn text(replication: &Replication) -> String {
    let Replication { peers, replicas } = replication;
    let rows: Vec<_> =
        peers.iter().flat_map(|peer| peer.volumes.iter().map(|sent| sent_row(peer, sent))).collect();
    let mut text = table(
        &["PEER", "VOLUME", "STATE", "LAG", "WRITTEN SINCE", "EPOCHS", "LAST ACKNOWLEDGED"],
        &rows,
        "nothing is sent to a peer: add one with `nightlatch peer add`",
    );
    for peer in peers.iter().filter(|peer| peer.address.is_some() && !peer.connected) {
        let trouble = peer.trouble.as_deref().unwrap_or("it is being dialled");
        text.push_str(&format!("  {} is NOT CONNECTED: {trouble}\n", peer.name));
    }
    let stopped = peers.iter().flat_map(|peer| peer.volumes.iter().map(move |sent| (peer, sent)));
    for (peer, sent) in stopped {
        if let Some(trouble) = &sent.trouble {
            text.push_str(&format!("  {} is not sent to {}: {trouble}\n", sent.volume, peer.name));
        }
    }
    if !replicas.is_empty() {
        let rows: Vec<_> = replicas.iter().map(replica_row).collect();
        text.push('\n');
        text.push_str(&table(&["SENT HERE", "IS", "FENCE", "EPOCH", "TAKEN"], &rows, ""));
    }
    text
}

fn sent_row(peer: &PeerStatus, sent: &SentStatus) -> Vec<String> {
    let state = match sent.progress_percent {
        Some(percent) => format!("{} ({percent} %)", sent.state),
        None => sent.state.clone(),
    };
    let lag = if sent.lag_epochs == 0 { "none".to_owned() } else { until(sent.lag_seconds) };
    let acknowledged = match (sent.acknowledged_epoch, sent.acknowledged_s_ago) {
        (Some(epoch), Some(ago)) => format!("{epoch}, closed {} ago", until(ago)),
        (Some(epoch), None) => epoch.to_string(),
        _ => "none".to_owned(),
    };
    vec![
        peer.name.clone(),
        sent.volume.to_string(),
        state,
        lag,
        ByteLen(sent.lag_bytes).to_string(),
        sent.lag_epochs.to_string(),
        acknowledged,
    ]
}

fn replica_row(replica: &ReplicaStatus) -> Vec<String> {
    vec![
        replica.volume.to_string(),
        if replica.is_replica { "a replica" } else { "no replica any more" }.to_owned(),
        replica.fence.to_string(),
        replica.newest_epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string()),
        replica.newest_unix_s.map_or_else(|| "-".to_owned(), moment),
    ]
}
