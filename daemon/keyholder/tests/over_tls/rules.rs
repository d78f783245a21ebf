//! The policy in force, on nodes that hold keys.

use keyholder::api::{
    Compromised, Done, KeyState, NewPolicy, NodeEntry, Outcome, PolicyPreview, PolicyStatus, Target,
};
use serde_json::Value;

use crate::site::{Site, add_node, refusal};

async fn apply(site: &Site, text: &str) -> PolicyPreview {
    site.officer().post("/v1/policy", &NewPolicy { text: text.to_owned() }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_policy_keeps_back_says_why_and_comes_once_a_person_approves() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    site.create("db", 1).await;
    apply(&site, "version = 1\n[push]\nreboots = \"receipted\"\n").await;
    // It vanishes with its key, and comes back without a receipt.
    let node = site.restart_node(1, &node).await;
    node.pin(site.grant_signing_key().await);
    let status = site
        .wait("the refusal", |status| {
            status.volumes[0].reason.as_deref().is_some_and(|why| why.contains("vanished with its keys"))
        })
        .await;
    let why = status.volumes[0].reason.clone().unwrap();
    assert!(why.starts_with("refused because ") && why.contains("would need"), "{why}");
    assert!(node.keys().is_empty());
    let _: Outcome = site.operator().post("/v1/push", &Target::Node("node-1".to_owned())).await.unwrap();
    site.wait("the key", |status| status.volumes[0].key == KeyState::Unlocked).await;
    let page: audit_log::Page = site.officer().get("/v1/audit").await.unwrap();
    let refusals = page.lines.iter().filter(|line| line.contains("\"push-refused\"")).count();
    assert_eq!(refusals, 1, "once for each reason");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_does_not_want_there_any_more_ends_with_its_lease() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    site.create("db", 1).await;
    site.create("open", 1).await;
    let strict = "version = 1\n[[volume]]\nlabel = \"db\"\nnodes = [\"node-2\"]\n";
    let preview: PolicyPreview =
        site.officer().post("/v1/policy/check", &NewPolicy { text: strict.to_owned() }).await.unwrap();
    assert_eq!(preview.would_refuse.len(), 1);
    assert!(preview.would_refuse[0].why.contains("may be on node-2 only"), "{preview:?}");
    let before: PolicyStatus = site.officer().get("/v1/policy").await.unwrap();
    assert_eq!((before.serial, before.text), (0, None), "a check changes nothing");
    apply(&site, strict).await;
    node.wait("the lease's end", |node| node.keys().len() == 1).await;
    site.wait("the reason", |status| {
        let unlocked = |label: &str| {
            let volume = status.volumes.iter().find(|volume| volume.label == label).unwrap();
            volume.key == KeyState::Unlocked
        };
        unlocked("open") && !unlocked("db")
    })
    .await;
    let status: PolicyStatus = site.officer().get("/v1/policy").await.unwrap();
    assert_eq!((status.serial, status.text.as_deref()), (1, Some(strict)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_outlives_a_restart_and_travels_with_the_ledgers_backup() {
    let mut site = Site::new().await;
    let shares = site.ceremony().await.shares;
    apply(&site, "version = 1\n[quorum]\nerase = 3\n").await;
    let backup: keyholder::api::LedgerBackup = site.operator().get("/v1/ledger/backup").await.unwrap();
    site.stop().await;
    for file in ["ledger", "leases"] {
        site.lose(file);
    }
    site.start().await;
    let _: Value = site.officer().post("/v1/ledger/restore", &backup).await.unwrap();
    site.unseal(&shares).await;
    let status: PolicyStatus = site.officer().get("/v1/policy").await.unwrap();
    assert_eq!((status.serial, status.policy.quorum.erase), (1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compromised_node_loses_its_keys_and_its_identity_for_good() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    site.create("db", 1).await;
    let marked: Compromised = site.operator().post("/v1/nodes/node-1/compromised", &Done {}).await.unwrap();
    assert_eq!(marked.compromise.exposed.len(), 1);
    let exposed = &marked.compromise.exposed[0];
    assert_eq!(exposed.label, "db");
    assert!(exposed.first_unix_s.is_some() && exposed.last_unix_s >= exposed.first_unix_s, "{exposed:?}");
    assert!(marked.outcome.nodes[0].confirmed, "{marked:?}");
    assert!(node.keys().is_empty());
    // Neither by its old key, nor by unlatching, nor under another name.
    let key = hex::encode(node.identity_key());
    let approve = keyholder::api::ApproveNode { fingerprint: key.clone(), tpm: None };
    let refused = site.officer().post::<NodeEntry>("/v1/nodes/node-1/approve", &approve).await;
    assert_eq!(refusal(refused), (403, "compromised".to_owned()));
    let _: Outcome = site.officer().post("/v1/unlatch", &Target::All).await.unwrap();
    let again = keyholder::api::AddNode {
        name: "innocent".to_owned(),
        node: units::NodeId([99; 16]),
        identity_key: Some(key),
        ..add_node(1, &node)
    };
    let refused = site.officer().post::<NodeEntry>("/v1/nodes", &again).await;
    assert_eq!(refusal(refused), (403, "compromised".to_owned()));
    assert!(node.keys().is_empty());
}
