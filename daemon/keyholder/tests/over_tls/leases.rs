//! Pushing, renewing, losing and resuming.

use std::time::{Duration, Instant};

use identity::Endpoint;
use keyholder::api::{
    ApproveNode, ChangeNode, Connection, KeyState, KeyholderStatus, NodeEntry, Outcome, PushPolicy, Target,
};
use lease::KeyFingerprint;
use lease::message::WipeCause;

use crate::fake_node::boot_now;
use crate::site::{Site, add_node, create_volume, node_name, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn a_created_volume_is_pushed_renewed_and_comes_back_after_a_power_loss_before_its_lease_is_over() {
    const LEASE_MS: u64 = 20_000;
    let site = Site::with_lease(LEASE_MS).await;
    site.ceremony().await;
    let node = site.node(1).await;
    let volume = site.create("db", 1).await;
    assert_eq!(volume.key, KeyState::Unlocked);
    assert!(volume.lease_remaining_ms.is_some_and(|ms| ms <= LEASE_MS + LEASE_MS / 100));
    let prk = node.keys()[&volume.volume];

    let granted = node.held()[0].deadline;
    node.wait("a renewal", |node| node.held().first().is_some_and(|held| held.deadline > granted)).await;
    let held = node.held();
    assert_eq!(held.len(), 1);
    assert_eq!(node.sessions(), 1, "in one session");

    let lost = Instant::now();
    node.wipe(WipeCause::PowerLoss);
    node.wait("the key to come back", |node| !node.keys().is_empty()).await;
    let took = lost.elapsed();
    println!("sealed to a key in force: {} ms", took.as_millis());
    assert!(boot_now() < held[0].deadline, "{took:?}: its old lease would have been over");
    assert_eq!(node.keys()[&volume.volume], prk);
    assert!(node.held()[0].fence > held[0].fence, "by a new grant");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_keyholder_wipes_at_its_deadline_and_one_that_is_back_in_time_goes_on() {
    // Long enough for the keyholder to be back in time on a busy machine.
    let mut site = Site::with_lease(12_000).await;
    let shares = site.ceremony().await.shares;
    let node = site.node(1).await;
    site.create("db", 1).await;
    let grant = node.held()[0].grant;

    site.stop().await;
    assert_eq!(node.held()[0].grant, grant, "stopping revokes nothing");
    site.start().await;
    site.unseal(&shares).await;
    site.wait("the node", |status| status.volumes[0].key == KeyState::Unlocked).await;
    assert_eq!(node.held()[0].grant, grant, "the same grant goes on");
    let before = node.held()[0].deadline;
    node.wait("a renewal", |node| node.held().first().is_some_and(|held| held.deadline > before)).await;
    assert_eq!(node.held()[0].grant, grant, "renewed by the keyholder that came back");

    site.stop().await;
    let deadline = node.held()[0].deadline;
    node.wait("the deadline", |node| node.last_wipe().is_some()).await;
    assert!(node.keys().is_empty());
    let wipe = node.last_wipe().unwrap();
    println!("wiped {} ms after the deadline", wipe.at.ms_since(deadline));
    assert!(wipe.cause == WipeCause::LeaseExpired && wipe.at >= deadline, "{wipe:?}, {deadline:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_vanished_without_a_word_is_pushed_again_by_its_policy() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    let volume = site.create("db", 1).await;
    let prk = node.keys()[&volume.volume];
    let node = {
        let restarted = site.restart_node(1, &node).await;
        restarted.pin(site.grant_signing_key().await);
        restarted
    };
    node.wait("the key", |node| node.keys().get(&volume.volume) == Some(&prk)).await;
    let status = site.wait("the receipt", |status| status.volumes[0].key == KeyState::Unlocked).await;
    assert_eq!(status.nodes[0].boot, Some(node.boot()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_approved_by_the_fingerprint_that_it_claims_and_by_no_other() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.fake_node(1).await;
    node.pin(site.grant_signing_key().await);
    let entry: NodeEntry = site.officer().post("/v1/nodes", &add_node(1, &node)).await.unwrap();
    assert!(!entry.approved);
    let path = format!("/v1/nodes/{}/approve", node_name(1));
    let asks = |status: &KeyholderStatus| {
        status.nodes[0].last_error.as_ref().is_some_and(|error| error.contains("approve"))
    };
    let status = site.wait("its claim", asks).await;
    let claimed = KeyFingerprint::of(&node.identity_key()).to_string();
    assert_eq!(status.nodes[0].fingerprint.as_ref(), Some(&claimed));

    let refused = site.refused(&site.operator(), "/v1/volumes", &create_volume("db", 1)).await;
    assert_eq!(refused, (409, "not-approved".to_owned()));
    let wrong = ApproveNode { fingerprint: "00".repeat(8), tpm: None };
    assert_eq!(site.refused(&site.officer(), &path, &wrong).await, (409, "other-fingerprint".to_owned()));
    let right = ApproveNode { fingerprint: claimed, tpm: None };
    assert_eq!(site.refused(&site.operator(), &path, &right).await, (403, "forbidden".to_owned()));
    let entry: NodeEntry = site.officer().post(&path, &right).await.unwrap();
    assert!(entry.approved);
    assert_eq!(site.create("db", 1).await.key, KeyState::Unlocked);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_machine_under_the_nodes_name_gets_no_key() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.fake_node(1).await;
    node.pin(site.grant_signing_key().await);
    let pinned_elsewhere =
        keyholder::api::AddNode { identity_key: Some(hex::encode([7; 32])), ..add_node(1, &node) };
    let _: NodeEntry = site.officer().post("/v1/nodes", &pinned_elsewhere).await.unwrap();
    let status = site
        .wait("the refusal", |status| {
            status.nodes[0].last_error.as_ref().is_some_and(|error| error.contains("pinned"))
        })
        .await;
    assert_ne!(status.nodes[0].connection, Connection::Connected);
    assert!(node.keys().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_enrolled_elsewhere_refuses_and_says_so() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    node.pin([9; 32]);
    node.wipe(WipeCause::PowerLoss);
    let reason = site
        .wait("the refusal", |status| {
            status.nodes[0].last_error.as_ref().is_some_and(|error| error.contains("enrol"))
        })
        .await;
    assert!(reason.nodes[0].last_error.as_ref().unwrap().contains("grant-signing key"));
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_a_person_approves_each_push_and_one_approval_is_one_push() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.fake_node(1).await;
    node.pin(site.grant_signing_key().await);
    let request = keyholder::api::AddNode {
        identity_key: Some(hex::encode(node.identity_key())),
        push: PushPolicy::default(),
        ..add_node(1, &node)
    };
    let _: NodeEntry = site.officer().post("/v1/nodes", &request).await.unwrap();
    let volume = site.create("db", 1).await;
    assert_ne!(volume.key, KeyState::Unlocked);
    site.wait("the wish for approval", |status| status.nodes[0].awaits_push).await;
    assert!(node.keys().is_empty());

    let target = Target::Node(node_name(1));
    let outcome: Outcome = site.operator().post("/v1/push", &target).await.unwrap();
    assert!(outcome.nodes[0].confirmed, "{outcome:?}");
    assert_eq!(node.keys().len(), 1);
    let outcome: Outcome = site.operator().post("/v1/push", &target).await.unwrap();
    assert!(outcome.nodes[0].confirmed, "there was nothing left to push");

    node.wipe(WipeCause::PowerLoss);
    site.wait("the next wish", |status| status.nodes[0].awaits_push).await;
    assert!(node.keys().is_empty(), "the approval was spent, and the second one approved nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_lease_records_make_a_keyholder_wait_the_longest_lease_before_it_grants() {
    // Long enough for the node to be seen before the wait is over.
    const LEASE_MS: u64 = 8_000;
    let mut site = Site::with_lease(LEASE_MS).await;
    let shares = site.ceremony().await.shares;
    let node = site.node(1).await;
    site.create("db", 1).await;
    site.stop().await;
    site.lose("leases");
    node.wipe(WipeCause::PowerLoss);
    site.start().await;
    let unsealed = Instant::now();
    site.unseal(&shares).await;
    let status = site.wait("the node", |status| status.nodes[0].connection == Connection::Connected).await;
    assert!(status.grants_wait_ms.is_some(), "{status:?}");
    assert!(node.keys().is_empty());
    node.wait("the push after the wait", |node| !node.keys().is_empty()).await;
    assert!(unsealed.elapsed() >= Duration::from_millis(LEASE_MS), "{:?}", unsealed.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_moved_is_found_at_its_new_address_and_keeps_its_key_meanwhile() {
    let site = Site::with_lease(60_000).await;
    site.ceremony().await;
    let node = site.node(1).await;
    let volume = site.create("db", 1).await;
    let other = site.fake_node(2).await;
    let away = ChangeNode { key_address: Some(Endpoint::from(other.key_address)), ..ChangeNode::default() };
    let _: NodeEntry = site.operator().patch("/v1/nodes/node-1", &away).await.unwrap();
    // What answers there has another name in its certificate.
    let refused = |status: &KeyholderStatus| {
        status.nodes[0].last_error.as_ref().is_some_and(|error| error.contains("node-2"))
    };
    site.wait("the refusal of another node", refused).await;
    let back = ChangeNode { key_address: Some(Endpoint::from(node.key_address)), ..ChangeNode::default() };
    let _: NodeEntry = site.operator().patch("/v1/nodes/node-1", &back).await.unwrap();
    site.wait("the node", |status| status.volumes[0].key == KeyState::Unlocked).await;
    assert_eq!(node.held()[0].volume, volume.volume);
    assert_eq!(node.held()[0].fence, volume.fence, "by the same grant");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_named() {
    let site = Site::new().await;
    let missing = Target::Node("nobody".to_owned());
    assert_eq!(site.refused(&site.operator(), "/v1/push", &missing).await, (409, "no-ledger".to_owned()));
    site.ceremony().await;
    assert_eq!(site.refused(&site.operator(), "/v1/push", &missing).await, (404, "not-found".to_owned()));
    let missing = Target::Volume("nothing".to_owned());
    assert_eq!(site.refused(&site.operator(), "/v1/revoke", &missing).await, (404, "not-found".to_owned()));
    let gone = site.operator().delete::<serde_json::Value>("/v1/volumes/nothing").await;
    assert_eq!(refusal(gone), (404, "not-found".to_owned()));
}
