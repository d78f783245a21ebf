//! Forgetting on purpose, and who may end it.

use std::time::Instant;

use keyholder::api::{KeyState, Lockdown, Outcome, Target};
use lease::message::WipeCause;

use crate::site::{Site, node_name};

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_volume_is_gone_alone_and_stays_gone_until_an_officer_unlatches_it() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    let (a, b) = (site.create("a", 1).await, site.create("b", 1).await);
    assert_eq!(node.keys().len(), 2);

    let target = Target::Volume("a".to_owned());
    let outcome: Outcome = site.operator().post("/v1/revoke", &target).await.unwrap();
    assert!(outcome.nodes[0].confirmed, "{outcome:?}");
    assert_eq!(node.keys().into_keys().collect::<Vec<_>>(), [b.volume]);
    assert_eq!(site.volume("a").await.latch.unwrap().by.as_deref(), Some("operator/op"));

    // A wipe and a new session do not bring it back; the other volume comes.
    node.wipe(WipeCause::PowerLoss);
    node.wait("the other volume", |node| node.keys().contains_key(&b.volume)).await;
    site.wait("its receipt", |status| status.volumes[1].key == KeyState::Unlocked).await;
    assert!(!node.keys().contains_key(&a.volume));
    assert_eq!(site.refused(&site.operator(), "/v1/push", &target).await, (409, "latched".to_owned()));
    assert_eq!(site.refused(&site.operator(), "/v1/unlatch", &target).await, (403, "forbidden".to_owned()));
    let _: Outcome = site.officer().post("/v1/unlatch", &target).await.unwrap();
    node.wait("the volume", |node| node.keys().contains_key(&a.volume)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lockdown_reaches_every_node_at_once_and_nothing_comes_back_by_itself() {
    let site = Site::new().await;
    site.ceremony().await;
    let mut nodes = Vec::new();
    for number in 1..=6 {
        let node = site.node(number).await;
        site.create(&format!("v{number}"), number).await;
        assert_eq!(node.keys().len(), 1);
        nodes.push(node);
    }
    let begun = Instant::now();
    let outcome: Outcome = site.operator().post("/v1/lockdown", &Lockdown {}).await.unwrap();
    println!("lockdown of {} nodes confirmed in {} ms", nodes.len(), begun.elapsed().as_millis());
    assert_eq!(outcome.nodes.len(), nodes.len());
    assert!(outcome.nodes.iter().all(|node| node.confirmed), "{outcome:?}");
    assert!(nodes.iter().all(|node| node.keys().is_empty()));

    let status = site
        .wait("new sessions", |status| {
            status.nodes.iter().all(|node| node.last_wipe.as_deref() == Some("lockdown"))
        })
        .await;
    assert!(status.lockdown.is_some());
    let one = Target::Node(node_name(1));
    assert_eq!(site.refused(&site.operator(), "/v1/push", &one).await, (409, "latched".to_owned()));
    assert_eq!(site.refused(&site.officer(), "/v1/unlatch", &one).await, (409, "latched".to_owned()));
    assert!(nodes.iter().all(|node| node.keys().is_empty()));

    let _: Outcome = site.officer().post("/v1/unlatch", &Target::All).await.unwrap();
    for node in &nodes {
        node.wait("its key", |node| node.keys().len() == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lockdown_outlives_the_keyholder_and_a_node_that_was_away_is_wiped_when_it_is_back() {
    let mut site = Site::new().await;
    let shares = site.ceremony().await.shares;
    let node = site.node(1).await;
    site.create("db", 1).await;
    // The keyholder comes back locked down, while the node still holds its key.
    let _: Outcome = site.operator().post("/v1/lockdown", &Lockdown {}).await.unwrap();
    assert!(node.keys().is_empty());
    site.stop().await;
    site.start().await;
    site.unseal(&shares).await;
    let status = site.wait("the node", |status| status.nodes[0].boot.is_some()).await;
    assert!(status.lockdown.is_some());
    assert!(node.keys().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wipe_by_an_administrator_of_the_node_latches_and_once_lifted_is_not_latched_again() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    site.create("db", 1).await;
    node.wipe(WipeCause::Admin);
    let status = site.wait("the latch", |status| status.nodes[0].latch.is_some()).await;
    assert_eq!(status.nodes[0].latch.as_ref().unwrap().cause, "admin");
    site.wait("a new session", |status| status.nodes[0].last_wipe.as_deref() == Some("admin")).await;
    assert!(node.keys().is_empty());

    let target = Target::Node(node_name(1));
    let _: Outcome = site.officer().post("/v1/unlatch", &target).await.unwrap();
    node.wait("the key", |node| !node.keys().is_empty()).await;
    assert!(site.node_entry(1).await.latch.is_none());

    // A second one is another.
    node.wipe(WipeCause::Intrusion);
    let status = site.wait("the second latch", |status| status.nodes[0].latch.is_some()).await;
    assert_eq!(status.nodes[0].latch.as_ref().unwrap().cause, "intrusion");
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_a_node_out_of_reach_says_when_its_lease_ends_and_holds_when_it_is_back() {
    // The lease still runs when it is revoked.
    let site = Site::with_lease(60_000).await;
    site.ceremony().await;
    let node = site.node(1).await;
    let volume = site.create("db", 1).await;
    node.kill();
    site.wait("the loss", |status| status.volumes[0].key != KeyState::Unlocked).await;
    let target = Target::Node(node_name(1));
    let outcome: Outcome = site.operator().post("/v1/revoke", &target).await.unwrap();
    let line = &outcome.nodes[0];
    assert!(!line.confirmed && line.detail.as_ref().unwrap().contains("lease"), "{line:?}");

    let node = site.restart_node(1, &node).await;
    node.pin(site.grant_signing_key().await);
    site.wait("the node", |status| status.nodes[0].boot == Some(node.boot())).await;
    assert!(!node.keys().contains_key(&volume.volume));
}
