//! New epochs of a volume's key: made, given to the node that serves it, and destroyed once the node says that nothing needs them.

use identity::HttpsClient;
use keyholder::api::{CloneVolume, KeyState, OnSeal, VolumeEntry, VolumeLimits};
use units::{VolumeEpoch, VolumeId};

use crate::site::Site;

async fn rotate(client: &HttpsClient, label: &str) -> VolumeEntry {
    client.post(&format!("/v1/volumes/{label}/rotate"), &serde_json::json!({})).await.unwrap()
}

/// The events of the trail that have to do with epochs.
async fn events(site: &Site) -> Vec<String> {
    let page: audit_log::Page = site.officer().get("/v1/audit").await.unwrap();
    let entries = page.lines.iter().map(|line| audit_log::Entry::parse(line).unwrap().event);
    entries.filter(|event| event.starts_with("epoch-")).collect()
}

fn older(entry: &VolumeEntry) -> Vec<u32> {
    entry.rotation.iter().flat_map(|rotation| &rotation.older).map(|epoch| epoch.0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_epoch_goes_to_the_serving_node_and_the_old_secret_when_the_node_says_so() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    let created = site.create("db", 1).await;
    assert_eq!((created.epoch, &created.rotation), (VolumeEpoch(1), &None));
    let (volume, first) = (created.volume, node.keys()[&created.volume]);
    let grant = node.held()[0].grant;

    let rotated = rotate(&site.operator(), "db").await;
    assert_eq!((rotated.epoch, rotated.key), (VolumeEpoch(2), KeyState::Unlocked));
    let rotation = rotated.rotation.clone().unwrap();
    assert_eq!((older(&rotated), rotation.written), (vec![1], Some(VolumeEpoch(2))));
    assert_eq!(rotation.waits_for, ["db"], "it has not said anything yet");
    assert_ne!(node.keys()[&volume], first, "the key of the new epoch");
    assert_eq!(node.held()[0].grant, grant, "under the lease that runs");

    // As long as something lies under the first, its secret stays: also for a node that starts again.
    node.tell_epochs(volume, &[1, 2]);
    node.sends_challenges(2).await;
    assert_eq!(older(&site.volume("db").await), [1]);
    node.tell_epochs(volume, &[2]);
    site.wait("the end of the first epoch", |status| status.volumes[0].rotation.is_none()).await;
    assert_eq!(events(&site).await, ["epoch-begun", "epoch-taken", "epoch-retired"]);

    // The next one is another.
    let again = rotate(&site.operator(), "db").await;
    assert_eq!((again.epoch, older(&again)), (VolumeEpoch(3), vec![2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_again_gets_every_epoch_that_may_be_needed() {
    let mut site = Site::new().await;
    let shares = site.ceremony().await.shares;
    let node = site.node(1).await;
    let volume = site.create("db", 1).await.volume;
    rotate(&site.operator(), "db").await;
    let node = site.restart_node(1, &node).await;
    node.pin(site.grant_signing_key().await);
    node.wait("its keys", |node| node.keys().contains_key(&volume)).await;
    assert_eq!(node.epochs_held(volume), [1, 2]);

    // The keyholder is started again, and destroys nothing until it is told that it may.
    node.tell_epochs(volume, &[1, 2]);
    site.stop().await;
    site.start().await;
    site.unseal(&shares).await;
    site.wait("the lease to go on", |status| status.volumes[0].key == KeyState::Unlocked).await;
    assert_eq!(older(&site.volume("db").await), [1]);
    node.tell_epochs(volume, &[2]);
    site.wait("the end of the first epoch", |status| status.volumes[0].rotation.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_the_node_does_not_take_is_offered_again_and_is_the_same() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    site.create("db", 1).await;
    node.refuse_epochs(true);
    let refused = rotate(&site.operator(), "db").await;
    let rotation = refused.rotation.clone().unwrap();
    assert_eq!((refused.epoch, rotation.written), (VolumeEpoch(2), Some(VolumeEpoch(1))));
    assert!(rotation.refused.unwrap().contains("no room"));
    node.refuse_epochs(false);
    let taken = rotate(&site.operator(), "db").await;
    let rotation = taken.rotation.clone().unwrap();
    assert_eq!(
        (taken.epoch, rotation.written, rotation.refused),
        (VolumeEpoch(2), Some(VolumeEpoch(2)), None)
    );
    assert_eq!(older(&taken), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_rotates_with_its_parent_and_keeps_the_old_secret_until_it_has_moved_too() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    let parent = site.create("db", 1).await.volume;
    let request = CloneVolume {
        label: "copy".to_owned(),
        snapshot: VolumeId(parent.0),
        on_seal: OnSeal::Hold,
        limits: VolumeLimits::default(),
    };
    let clone: VolumeEntry = site.operator().post("/v1/volumes/db/clone", &request).await.unwrap();
    let rotated = rotate(&site.operator(), "db").await;
    site.wait("both", |status| {
        let written = |volume: &VolumeEntry| volume.rotation.as_ref().and_then(|rotation| rotation.written);
        status.volumes.iter().all(|volume| written(volume) == Some(rotated.epoch))
    })
    .await;
    node.tell_epochs(parent, &[2]);
    site.wait("the parent's word", |status| {
        let rotation = status.volumes.iter().find(|volume| volume.label == "db").unwrap().rotation.as_ref();
        rotation.is_some_and(|rotation| rotation.waits_for == ["copy"])
    })
    .await;
    node.tell_epochs(clone.volume, &[2]);
    site.wait("the clone's word", |status| status.volumes.iter().all(|volume| volume.rotation.is_none()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_on_another_node_keeps_the_old_secret_until_it_has_followed() {
    let site = Site::new().await;
    site.ceremony().await;
    let (node, other) = (site.node(1).await, site.node(2).await);
    let volume = site.create("db", 1).await.volume;
    other.tell_epochs(volume, &[1]);
    other.sends_challenges(2).await;
    rotate(&site.operator(), "db").await;
    node.tell_epochs(volume, &[2]);
    site.wait("the replica to be what is waited for", |status| {
        let rotation = status.volumes[0].rotation.as_ref();
        rotation.is_some_and(|rotation| rotation.waits_for == ["db on node-2"])
    })
    .await;
    other.tell_epochs(volume, &[2]);
    site.wait("the end of the first epoch", |status| status.volumes[0].rotation.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_a_node_began_by_itself_with_its_grant_is_known_without_anybodys_doing() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    let volume = site.create("db", 1).await.volume;
    node.refuse_epochs(true);
    rotate(&site.operator(), "db").await;
    // Started again it gets both keys, and is still under the first; the epoch is given under the new lease.
    let node = site.restart_node(1, &node).await;
    node.pin(site.grant_signing_key().await);
    site.wait("the new epoch to be taken", |status| {
        let rotation = status.volumes[0].rotation.as_ref();
        rotation.is_some_and(|rotation| rotation.written == Some(VolumeEpoch(2)))
    })
    .await;
    assert_eq!(node.epochs_held(volume), [1, 2]);
}
