//! Every endpoint and every role.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use identity::{ClientError, PeerIdentity, Role};
use keyholder::Keyholder;
use keyholder::access::{Proof, TABLE};
use keyholder::api::{ChangeNode, NodeEntry, PushPolicy};
use tower::ServiceExt;

use crate::site::{Site, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn each_endpoint_lets_in_the_roles_of_the_table_and_no_other() {
    let site = Site::new().await;
    let dir = tempfile::tempdir().unwrap();
    let keyholder = Keyholder::open(site.params(dir.path())).unwrap();
    for rule in TABLE {
        for role in Role::ALL {
            let method = rule.verb.as_str();
            let path = ["{name}", "{label}", "{role}", "{id}", "{volume}"]
                .iter()
                .fold(rule.path.to_owned(), |path, parameter| path.replace(parameter, "x"));
            let mut request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
            let peer = PeerIdentity { role, name: "someone".parse().unwrap(), spki_sha256: [0; 32] };
            request.extensions_mut().insert(peer);
            let status = keyholder.router().oneshot(request).await.unwrap().status();
            let refused = status == StatusCode::FORBIDDEN;
            assert_eq!(refused, !rule.roles.contains(&role), "{method} {} as {role}: {status}", rule.path);
        }
        let request = Request::builder().uri("/v1/status").body(Body::empty()).unwrap();
        let status = keyholder.router().oneshot(request).await.unwrap().status();
        assert_eq!(status, StatusCode::UNAUTHORIZED, "without a certificate");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_and_clients_are_not_even_let_into_a_conversation() {
    let site = Site::new().await;
    for role in [Role::NbdClient, Role::Node, Role::Keyholder] {
        let answer = site.client(role, "someone").get::<serde_json::Value>("/v1/status").await;
        assert!(matches!(answer, Err(ClientError::Untrusted { .. })), "{role}: {answer:?}");
    }
    for role in [Role::Operator, Role::StorageAdmin, Role::SecurityOfficer, Role::Auditor, Role::Monitor] {
        site.client(role, "someone").get::<serde_json::Value>("/v1/status").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_officer_adds_a_node_with_its_key() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.fake_node(1).await;
    let request = keyholder::api::AddNode {
        identity_key: Some(hex::encode(node.identity_key())),
        ..crate::site::add_node(1, &node)
    };
    assert_eq!(site.refused(&site.operator(), "/v1/nodes", &request).await, (403, "forbidden".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_officer_lets_a_node_be_pushed_to_without_approval() {
    let site = Site::new().await;
    site.ceremony().await;
    site.node(1).await;
    let careless = crate::site::add_node(2, &site.fake_node(2).await);
    assert_eq!(site.refused(&site.operator(), "/v1/nodes", &careless).await, (403, "forbidden".to_owned()));
    let careful = keyholder::api::AddNode { push: PushPolicy::Approve, ..careless };
    let _: NodeEntry = site.operator().post("/v1/nodes", &careful).await.unwrap();
    let careful =
        ChangeNode { push: Some(PushPolicy::Approve), lease_ms: Some(4_000), ..ChangeNode::default() };
    let entry: NodeEntry = site.operator().patch("/v1/nodes/node-1", &careful).await.unwrap();
    assert_eq!((entry.push, entry.lease_ms), (PushPolicy::Approve, 4_000));
    let careless = ChangeNode { push: Some(PushPolicy::Auto), ..ChangeNode::default() };
    let refused = site.operator().patch::<NodeEntry>("/v1/nodes/node-1", &careless).await;
    assert_eq!(refusal(refused), (403, "forbidden".to_owned()));
    let entry: NodeEntry = site.officer().patch("/v1/nodes/node-1", &careless).await.unwrap();
    assert_eq!((entry.push, entry.lease_ms), (PushPolicy::Auto, 4_000), "what is absent stays");
    let endless = ChangeNode { lease_ms: Some(site.lease_ms_max + 1), ..ChangeNode::default() };
    let refused = site.operator().patch::<NodeEntry>("/v1/nodes/node-1", &endless).await;
    assert_eq!(refusal(refused), (400, "invalid".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused_with_what_is_wrong() {
    let site = Site::new().await;
    for body in [serde_json::json!({}), serde_json::json!({"threshold": 1, "officers": [], "more": 1})] {
        let refused = site.refused(&site.officer(), "/v1/ceremony", &body).await;
        assert_eq!(refused, (400, "invalid".to_owned()));
    }
    let unknown = site.operator().get::<serde_json::Value>("/v1/nothing").await;
    assert_eq!(refusal(unknown), (404, "not-found".to_owned()));
}

#[test]
fn the_openapi_document_lists_exactly_the_endpoints_with_their_roles_and_proofs() {
    let document: serde_json::Value = serde_json::from_str(include_str!("../../openapi.json")).unwrap();
    let mut documented = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, endpoint) in methods.as_object().unwrap() {
            let roles: Vec<_> =
                endpoint["x-roles"].as_array().unwrap().iter().map(|role| role.as_str().unwrap()).collect();
            documented.push(format!(
                "{method} {path} {} {}",
                roles.join(","),
                endpoint["x-proof"].as_str().unwrap()
            ));
        }
    }
    let mut served: Vec<String> = TABLE
        .iter()
        .map(|rule| {
            let roles: Vec<_> = rule.roles.iter().map(|role| role.as_str()).collect();
            let proof = match rule.proof {
                Proof::Certificate => "certificate",
                Proof::Share => "share",
                Proof::SecondFactor => "second-factor",
                Proof::IdToken => "id-token",
            };
            format!("{} {} {} {proof}", rule.verb.as_str().to_lowercase(), rule.path, roles.join(","))
        })
        .collect();
    documented.sort();
    served.sort();
    assert_eq!(documented, served);
}
