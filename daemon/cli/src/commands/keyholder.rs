//! `nightlatch keyholder`: the keyholders that share a root and a store.

use identity::PeerName;
use keyholder::api::{
    ClusterStatus, Done as Empty, JoinApproved, KeyholderStatus, MemberEntry, SealState, StoreStatus,
};

use crate::args::KeyholderCommand;
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::Done;
use crate::output::{Output, table};

pub(crate) fn run(command: &KeyholderCommand, connections: &Connections, output: Output) -> Done {
    match command {
        KeyholderCommand::Status => {
            let status = ask(connections)?;
            let shown = serde_json::json!({
                "name": status.name,
                "state": status.state,
                "ledger_serial": status.ledger_serial,
                "cluster": status.cluster,
            });
            output.show(&shown, || describe(&status))
        }
        KeyholderCommand::Members => {
            let members = ask(connections)?.cluster.map(|cluster| cluster.members).unwrap_or_default();
            output.show(&members, || member_table(&members))
        }
        KeyholderCommand::Join { name } => join(name, connections, output),
    }
}

fn ask(connections: &Connections) -> Done<KeyholderStatus> {
    Ok(wait(connections.keyholder(Ask::Read)?.get("/v1/status"))??)
}

fn join(name: &PeerName, connections: &Connections, output: Output) -> Done {
    let path = format!("/v1/keyholders/{name}/join");
    let approved: JoinApproved = wait(connections.keyholder(Ask::Decide)?.post(&path, &Empty {}))??;
    output.show(&approved, || {
        format!(
            "{} may have the root within the next {} minutes; it asks by itself. `nightlatch keyholder members` shows \
             when it has it.\n",
            approved.keyholder,
            approved.within_ms / 60_000
        )
    })
}

fn describe(status: &KeyholderStatus) -> String {
    let state = match status.state {
        SealState::Unsealed => "unsealed",
        SealState::Sealed => "sealed",
        SealState::Empty => "without a ledger: hold a ceremony, or restore one",
    };
    let mut text = format!("{}: {state}\n", status.name);
    let Some(cluster) = &status.cluster else {
        return text + "It shares no store: an `[etcd]` table in its configuration names one.\n";
    };
    text += &format!("store: {}\n", store(cluster));
    text += &format!("identity key: {}\n", cluster.identity_key);
    if let Some(why) = cluster.join.as_ref().filter(|_| status.state == SealState::Sealed) {
        text += &format!("no root from another keyholder yet: {why}\n");
    }
    text
}

fn store(cluster: &ClusterStatus) -> String {
    match &cluster.store {
        StoreStatus::Reachable => "reachable".to_owned(),
        StoreStatus::Away { why } => {
            format!("AWAY ({why}): keys in force are renewed as far as is recorded, everything else waits")
        }
        StoreStatus::Distrusted { why } => {
            format!("NOT TRUSTED: {why}. Nothing is granted or changed until the right store is back")
        }
    }
}

fn member_table(members: &[MemberEntry]) -> String {
    let rows: Vec<_> = members
        .iter()
        .map(|member| {
            let state = match (member.alive, member.unsealed) {
                (false, _) => "SILENT",
                (true, true) => "unsealed",
                (true, false) => "sealed",
            };
            vec![
                member.name.clone(),
                state.to_owned(),
                member.nodes.to_string(),
                member.address.clone(),
                member.version.clone(),
            ]
        })
        .collect();
    table(&["KEYHOLDER", "STATE", "NODES", "ADDRESS", "VERSION"], &rows, "this keyholder is alone")
}
