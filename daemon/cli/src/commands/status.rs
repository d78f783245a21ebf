//! `nightlatch status`: everything in one place, also when parts of it are down.

use admin::api::NodeStatus;
use identity::{ClientError, Problem};
use keyholder::api::KeyholderStatus;
use serde::Serialize;

use crate::commands::{key, node, volume, wait};
use crate::connect::{Ask, Connections, with_those_of_the_keyholder};
use crate::failure::{Done, Failure};
use crate::output::Output;

/// The answer, or why there is none.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Found<T> {
    Status(T),
    Problem(Problem),
}

#[derive(Debug, Serialize)]
struct NodeFound {
    name: String,
    #[serde(flatten)]
    found: Found<NodeStatus>,
}

#[derive(Debug, Serialize)]
struct Overview {
    keyholder: Option<Found<KeyholderStatus>>,
    nodes: Vec<NodeFound>,
}

/// Shows what answers. Fails, with the first failure, when nothing does.
pub(crate) fn run(connections: &Connections, output: Output) -> Done {
    let mut failures = Vec::new();
    let keyholder = connections.profile.keyholder.is_some().then(|| {
        let asked = connections.keyholder(Ask::Read).and_then(|client| {
            let answer: Result<KeyholderStatus, ClientError> = wait(client.get("/v1/status"))?;
            Ok(answer?)
        });
        found(asked, &mut failures)
    });
    let known = match &keyholder {
        Some(Found::Status(status)) => with_those_of_the_keyholder(&connections.profile.nodes, &status.nodes),
        _ => connections.profile.nodes.clone(),
    };
    let mut nodes = Vec::new();
    for node in &known {
        let asked = connections.client_of(node, Ask::Read).and_then(|client| {
            let answer: Result<NodeStatus, ClientError> = wait(client.get("/v1/status"))?;
            Ok(answer?)
        });
        nodes.push(NodeFound { name: node.name.clone(), found: found(asked, &mut failures) });
    }
    if keyholder.is_none() && nodes.is_empty() {
        return Err(Failure::usage(
            "the profile names neither a keyholder nor a node",
            "add `keyholder = \"https://HOST:PORT\"` and [[nodes]] tables to it",
        ));
    }
    let asked = usize::from(keyholder.is_some()) + nodes.len();
    let overview = Overview { keyholder, nodes };
    output.show(&overview, || describe(&overview))?;
    match failures.into_iter().next() {
        Some(failure) if overview_failures(&overview) == asked => Err(failure),
        _ => Ok(()),
    }
}

fn found<T>(asked: Done<T>, failures: &mut Vec<Failure>) -> Found<T> {
    match asked {
        Ok(status) => Found::Status(status),
        Err(failure) => {
            let problem = failure.problem.clone();
            failures.push(failure);
            Found::Problem(problem)
        }
    }
}

fn overview_failures(overview: &Overview) -> usize {
    let keyholder = matches!(overview.keyholder, Some(Found::Problem(_)));
    let nodes = overview.nodes.iter().filter(|node| matches!(node.found, Found::Problem(_))).count();
    usize::from(keyholder) + nodes
}

fn describe(overview: &Overview) -> String {
    let mut text = String::new();
    match &overview.keyholder {
        Some(Found::Status(status)) => {
            text.push_str(&key::describe(status));
            if !status.nodes.is_empty() {
                text.push_str(&format!("\n{}", node::node_table(&status.nodes)));
            }
            if !status.volumes.is_empty() {
                text.push_str(&format!("\n{}", volume::volume_table(&status.volumes)));
            }
        }
        Some(Found::Problem(problem)) => text.push_str(&format!("Keyholder: {problem}\n")),
        None => {}
    }
    for node in &overview.nodes {
        match &node.found {
            Found::Status(status) => text.push_str(&format!("\n{}", node::describe(status))),
            Found::Problem(problem) => text.push_str(&format!("\nNode {}: {problem}\n", node.name)),
        }
    }
    text
}
