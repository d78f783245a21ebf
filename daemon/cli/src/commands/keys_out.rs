//! Giving keys to nodes and taking them away: push, revoke, lockdown, unlatch.

use identity::HttpsClient;
use keyholder::api::{Lockdown, Outcome, Target};

use crate::args::TargetArgs;
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Exit, Failure};
use crate::output::{Output, duration_ms, table};

impl From<&TargetArgs> for Target {
    fn from(arguments: &TargetArgs) -> Self {
        match (&arguments.volume, &arguments.node) {
            (Some(label), _) => Self::Volume(label.clone()),
            (None, Some(name)) => Self::Node(name.clone()),
            (None, None) => Self::All,
        }
    }
}

pub(crate) fn push(target: &TargetArgs, connections: &Connections, output: Output) -> Done {
    act(&connections.keyholder(Ask::Either)?, "/v1/push", &Target::from(target), output, "pushed")
}

pub(crate) fn revoke(target: &TargetArgs, connections: &Connections, output: Output) -> Done {
    act(&connections.keyholder(Ask::Either)?, "/v1/revoke", &Target::from(target), output, "revoked")
}

pub(crate) fn lockdown(connections: &Connections, output: Output) -> Done {
    act(&connections.keyholder(Ask::Either)?, "/v1/lockdown", &Lockdown {}, output, "wiped")
}

pub(crate) fn unlatch(target: &TargetArgs, connections: &Connections, output: Output) -> Done {
    act(&connections.keyholder(Ask::Decide)?, "/v1/unlatch", &Target::from(target), output, "unlatched")
}

fn act(
    keyholder: &HttpsClient,
    path: &str,
    body: &(impl serde::Serialize + Sync),
    output: Output,
    done: &str,
) -> Done {
    let outcome: Outcome = wait(keyholder.post(path, body))??;
    output.show(&outcome, || {
        let rows: Vec<_> = outcome
            .nodes
            .iter()
            .map(|node| {
                vec![
                    node.node.clone(),
                    if node.confirmed { done } else { "NOT CONFIRMED" }.to_owned(),
                    duration_ms(node.elapsed_ms),
                    node.detail.clone().unwrap_or_default(),
                ]
            })
            .collect();
        table(&["NODE", "OUTCOME", "AFTER", "REMARK"], &rows, "it concerns no node")
    })?;
    unconfirmed(&outcome)
}

/// A node that did not confirm is a failure for scripts, after the whole outcome was shown.
fn unconfirmed(outcome: &Outcome) -> Done {
    let open: Vec<_> =
        outcome.nodes.iter().filter(|node| !node.confirmed).map(|node| node.node.as_str()).collect();
    if open.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Refused,
        "unconfirmed",
        format!("not confirmed by {}", open.join(", ")),
        "see `nightlatch status`",
    ))
}

#[cfg(test)]
mod tests {
    use keyholder::api::NodeOutcome;

    use super::*;

    #[test]
    fn one_node_that_did_not_confirm_fails_the_command() {
        let node = |name: &str, confirmed| NodeOutcome {
            node: name.to_owned(),
            confirmed,
            elapsed_ms: 1,
            detail: None,
        };
        assert!(unconfirmed(&Outcome { nodes: vec![] }).is_ok());
        assert!(unconfirmed(&Outcome { nodes: vec![node("a", true)] }).is_ok());
        let failure = unconfirmed(&Outcome { nodes: vec![node("a", true), node("b", false)] }).unwrap_err();
        assert_eq!(failure.exit, Exit::Refused);
        assert!(failure.to_string().contains("by b"), "{failure}");
    }
}
