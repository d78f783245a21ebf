//! Creating, resizing and deleting, with a node that refuses, answers nonsense, or is away.

use identity::ClientError;
use keyholder::api::{
    CloneVolume, CreateVolume, Erasure, KeyState, LedgerBackup, OnSeal, ResizeVolume, RollBackVolume,
    VolumeEntry, VolumeErased, VolumeLimits,
};
use units::VolumeId;

use crate::site::{Site, create_volume, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_the_node_refuses_leaves_nothing_behind() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    node.refuse_next_creation(507);
    let refused = site.refused(&site.operator(), "/v1/volumes", &create_volume("db", 1)).await;
    assert_eq!(refused, (502, "node-refused".to_owned()));
    assert!(site.status().await.volumes.is_empty());
    assert_eq!(site.create("db", 1).await.key, KeyState::Unlocked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_whose_answer_was_lost_is_finished_by_repeating_it() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    node.refuse_next_creation(1);
    let refused = site.refused(&site.operator(), "/v1/volumes", &create_volume("db", 1)).await;
    assert_eq!(refused, (502, "node-unreachable".to_owned()));
    let begun = site.volume("db").await;
    assert!(begun.reason.as_ref().unwrap().contains("again"), "{begun:?}");
    assert_ne!(begun.key, KeyState::Unlocked);

    let other = CreateVolume { size_bytes: 2 << 30, ..create_volume("db", 1) };
    assert_eq!(site.refused(&site.operator(), "/v1/volumes", &other).await, (409, "conflict".to_owned()));
    let finished = site.create("db", 1).await;
    assert_eq!(finished.volume, begun.volume, "the same volume");
    assert_eq!(finished.key, KeyState::Unlocked);
    let again = site.refused(&site.operator(), "/v1/volumes", &create_volume("db", 1)).await;
    assert_eq!(again, (409, "exists".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_sizes_are_checked_at_their_limits() {
    let site = Site::new().await;
    site.ceremony().await;
    site.node(1).await;
    let bad = [
        CreateVolume { label: String::new(), ..create_volume("x", 1) },
        CreateVolume { label: "a/b".to_owned(), ..create_volume("x", 1) },
        CreateVolume { label: "x".repeat(65), ..create_volume("x", 1) },
        CreateVolume { size_bytes: 0, ..create_volume("x", 1) },
        CreateVolume { size_bytes: 4097, ..create_volume("x", 1) },
        CreateVolume { size_bytes: (128 << 40) + 4096, ..create_volume("x", 1) },
    ];
    for request in bad {
        let refused = site.refused(&site.operator(), "/v1/volumes", &request).await;
        assert_eq!(refused, (400, "invalid".to_owned()), "{request:?}");
    }
    let longest = "x".repeat(64);
    let at_limit = CreateVolume { size_bytes: 128 << 40, ..create_volume(&longest, 1) };
    let entry: VolumeEntry = site.operator().post("/v1/volumes", &at_limit).await.unwrap();
    assert_eq!(entry.size_bytes, 128 << 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resize_is_the_nodes_first() {
    let site = Site::new().await;
    site.ceremony().await;
    site.node(1).await;
    let made = site.create("db", 1).await;
    let bigger = ResizeVolume { size_bytes: made.size_bytes * 2, allow_shrink: false };
    let entry: VolumeEntry = site.operator().patch("/v1/volumes/db", &bigger).await.unwrap();
    assert_eq!(entry.size_bytes, made.size_bytes * 2);
    let smaller = ResizeVolume { size_bytes: made.size_bytes, allow_shrink: false };
    let refused = site.operator().patch::<VolumeEntry>("/v1/volumes/db", &smaller).await;
    assert_eq!(refusal(refused), (502, "node-refused".to_owned()));
    assert_eq!(site.volume("db").await.size_bytes, made.size_bytes * 2, "unchanged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_volume_is_revoked_removed_and_erased() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    let (gone, stays) = (site.create("gone", 1).await, site.create("stays", 1).await);
    let erased: VolumeErased = site.operator().delete("/v1/volumes/gone").await.unwrap();
    assert_eq!((erased.volume, erased.erasure), (gone.volume, Erasure::Complete));
    assert_eq!(node.volumes(), [stays.volume]);
    assert_eq!(node.keys().into_keys().collect::<Vec<_>>(), [stays.volume]);
    // What is left is under the fresh ledger key, and still opens.
    let prk = node.keys()[&stays.volume];
    node.wipe(lease::message::WipeCause::PowerLoss);
    node.wait("the survivor", |node| node.keys().get(&stays.volume) == Some(&prk)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_has_its_parents_key_and_the_secret_goes_with_the_last_of_them() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    let (db, other) = (site.create("db", 1).await, site.create("other", 1).await);
    let request = |label: &str, snapshot| CloneVolume {
        label: label.to_owned(),
        snapshot,
        on_seal: OnSeal::Hold,
        limits: VolumeLimits::default(),
    };
    let operator = site.operator();
    let clone: VolumeEntry =
        operator.post("/v1/volumes/db/clone", &request("test", db.volume)).await.unwrap();
    assert_eq!((clone.domain, clone.size_bytes), (db.domain, db.size_bytes));
    assert!(clone.volume != db.volume && clone.key == KeyState::Unlocked);
    assert_eq!(node.keys()[&clone.volume], node.keys()[&db.volume]);
    let taken = site.refused(&operator, "/v1/volumes/db/clone", &request("other", db.volume)).await;
    assert_eq!(taken, (409, "exists".to_owned()));
    let gone = site.refused(&operator, "/v1/volumes/db/clone", &request("x", VolumeId([9; 16]))).await;
    assert_eq!(gone, (502, "node-refused".to_owned()));
    // What it would have cloned is another domain's: no key of this one opens it.
    let foreign = site.refused(&operator, "/v1/volumes/db/clone", &request("x", other.volume)).await;
    assert_eq!(foreign, (400, "invalid".to_owned()));
    assert_eq!(site.status().await.volumes.len(), 3, "refusals leave nothing behind");
    assert_eq!(node.volumes().len(), 3);

    let erased: VolumeErased = operator.delete("/v1/volumes/db").await.unwrap();
    assert_eq!((erased.erasure, &erased.shared_with[..]), (Erasure::Shared, &["test".to_owned()][..]));
    let prk = node.keys()[&clone.volume];
    node.wipe(lease::message::WipeCause::PowerLoss);
    node.wait("the clone", |node| node.keys().get(&clone.volume) == Some(&prk)).await;
    let erased: VolumeErased = operator.delete("/v1/volumes/test").await.unwrap();
    assert_eq!((erased.erasure, erased.shared_with), (Erasure::Complete, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_rolled_back_has_the_snapshots_size() {
    let site = Site::new().await;
    site.ceremony().await;
    site.node(1).await;
    let made = site.create("db", 1).await;
    let request = RollBackVolume { snapshot: made.volume };
    let entry: VolumeEntry = site.operator().post("/v1/volumes/db/rollback", &request).await.unwrap();
    assert_eq!(entry.size_bytes, made.size_bytes / 2);
    assert_eq!(site.volume("db").await.size_bytes, made.size_bytes / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_is_pending_while_a_backup_still_has_the_secret() {
    let site = Site::new().await;
    site.ceremony().await;
    site.node(1).await;
    site.create("old", 1).await;
    let backup: LedgerBackup = site.operator().get("/v1/ledger/backup").await.unwrap();
    site.create("new", 1).await;
    let erased: VolumeErased = site.operator().delete("/v1/volumes/new").await.unwrap();
    assert_eq!(erased.erasure, Erasure::Complete, "no backup has it");
    let erased: VolumeErased = site.operator().delete("/v1/volumes/old").await.unwrap();
    assert_eq!(erased.erasure, Erasure::PendingBackups);
    assert_eq!(erased.destroy_backups_up_to_serial, Some(backup.serial));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_on_a_lost_node_is_erased_by_force_only() {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.node(1).await;
    site.create("db", 1).await;
    node.kill();
    node.is_away().await;
    let answer = site.operator().delete::<VolumeErased>("/v1/volumes/db").await;
    let Err(ClientError::Refused { problem, .. }) = answer else { panic!("{answer:?}") };
    assert_eq!(problem.kind, "node-unreachable");
    let erased: VolumeErased = site.operator().delete("/v1/volumes/db?force=true").await.unwrap();
    assert_eq!(erased.erasure, Erasure::Complete);
    assert!(site.status().await.volumes.is_empty());
}
