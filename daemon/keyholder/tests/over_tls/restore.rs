//! Shares, restarts and backups.

use std::path::Path;
use std::time::{Duration, Instant};

use keyholder::api::{
    AddNode, KeyState, KeyholderStatus, LedgerBackup, NodeEntry, SealState, ShareCount, UnsealRequest,
};
use keyholder::shares::{SealedShare, Share, ShareError};
use keyholder::{Keyholder, KeyholderError};

use crate::site::{LEASE_MS, Site, add_node, ceremony_request, officer_secret, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn shares_restore_the_root_and_each_bad_one_is_named() {
    let mut site = Site::new().await;
    let made = site.ceremony().await;
    let foreign = {
        let other = Site::new().await;
        other.ceremony().await.shares
    };
    site.stop().await;
    site.start().await;
    let status = site.status().await;
    assert_eq!(status.state, SealState::Sealed);
    assert_eq!(status.grant_signing_key, Some(made.grant_signing_key), "known while sealed");

    assert_eq!(refusal(site.submit(&foreign, 1).await), (400, "foreign-set".to_owned()));
    let progress = site.submit(&made.shares, 2).await.unwrap();
    assert_eq!(progress.shares, ShareCount { have: 1, need: 2 });
    assert_eq!(refusal(site.submit(&made.shares, 2).await), (409, "duplicate-share".to_owned()));
    let altered = altered_share(&made.shares[0]);
    let refused = site.officer().post::<serde_json::Value>("/v1/unseal", &altered).await;
    assert_eq!(refusal(refused), (400, "wrong-share".to_owned()));
    let sealed = site.operator().get::<LedgerBackup>("/v1/ledger/backup").await;
    assert_eq!(refusal(sealed), (503, "sealed".to_owned()), "too few shares");

    let progress = site.submit(&made.shares, 3).await.unwrap();
    assert_eq!(progress.state, SealState::Unsealed);
    assert_eq!(refusal(site.submit(&made.shares, 1).await), (409, "unsealed".to_owned()));
}

/// The officer's share with one bit of its value flipped.
fn altered_share(sealed: &SealedShare) -> UnsealRequest {
    let share = sealed.open(&officer_secret(sealed.index)).unwrap();
    let mut json = serde_json::to_value(&share).unwrap();
    let value = json["value"].as_str().unwrap().to_owned();
    let first = if value.starts_with('A') { "B" } else { "A" };
    json["value"] = format!("{first}{}", &value[1..]).into();
    let share: Share = serde_json::from_value(json).unwrap();
    assert!(matches!(share.check(), Err(ShareError::Wrong { .. })));
    UnsealRequest { share }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_opens_with_its_officers_key_only() {
    let site = Site::new().await;
    let shares = site.ceremony().await.shares;
    assert!(matches!(shares[0].open(&officer_secret(2)), Err(ShareError::OtherKey { .. })));
    let mut damaged = shares[0].clone();
    damaged.envelope.replace_range(40..41, if &damaged.envelope[40..41] == "A" { "B" } else { "A" });
    assert!(matches!(damaged.open(&officer_secret(1)), Err(ShareError::Envelope(_))));
    let mut relabelled = shares[0].clone();
    relabelled.share_set.threshold = 1;
    assert!(matches!(relabelled.open(&officer_secret(1)), Err(ShareError::Envelope(_))), "bound to its set");
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_and_a_ledger_backup_open_every_volume_again_on_an_empty_keyholder() {
    let mut site = Site::new().await;
    let shares = site.ceremony().await.shares;
    let node = site.node(1).await;
    for label in ["a", "b", "c"] {
        site.create(label, 1).await;
    }
    let keys = node.keys();
    let backup: LedgerBackup = site.operator().get("/v1/ledger/backup").await.unwrap();
    site.stop().await;
    for file in ["ledger", "leases", "audit.jsonl"] {
        site.lose(file);
    }
    node.wait("the lease's end", |node| node.keys().is_empty()).await;

    site.start().await;
    assert_eq!(site.status().await.state, SealState::Empty);
    assert_eq!(refusal(site.submit(&shares, 1).await), (409, "no-ledger".to_owned()));
    let status: KeyholderStatus = site.officer().post("/v1/ledger/restore", &backup).await.unwrap();
    assert_eq!(status.state, SealState::Sealed);
    let unsealed = Instant::now();
    site.unseal(&shares).await;
    node.wait("every volume", |node| node.keys() == keys).await;
    assert!(unsealed.elapsed() >= Duration::from_millis(LEASE_MS), "after the longest lease");
    let status =
        site.wait("receipts", |status| status.volumes.iter().all(|v| v.key == KeyState::Unlocked)).await;
    assert!(status.volumes.iter().all(|volume| volume.fence.0 > 1), "above what the node has seen");

    let again = site.refused(&site.officer(), "/v1/ledger/restore", &backup).await;
    assert_eq!(again, (409, "exists".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_newer_ledger_is_named() {
    let mut site = Site::new().await;
    site.ceremony().await;
    site.stop().await;
    let path = site.state_dir().join("ledger");
    let good = std::fs::read(&path).unwrap();
    let open = || Keyholder::open(site.params(&site.state_dir())).map(drop).unwrap_err();
    for at in [0, 9, 20, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        // The lowest version byte counts as newer before anything else is looked at.
        std::fs::write(&path, &bad).unwrap();
        let error = open();
        assert!(matches!(error.kind().0, "ledger-damaged"), "byte {at}: {error}");
    }
    let mut newer = good.clone();
    newer[8] += 1;
    std::fs::write(&path, &newer).unwrap();
    let error = open();
    assert!(error.to_string().contains("newer program"), "{error}");
    for cut in [0, 8, 15, good.len() - 33] {
        std::fs::write(&path, &good[..cut]).unwrap();
        assert_eq!(open().kind().0, "ledger-damaged", "cut at {cut}");
    }
    std::fs::write(&path, &good).unwrap();
    assert!(Keyholder::open(site.params(&site.state_dir())).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_keyholder_on_the_same_directory_is_refused() {
    let site = Site::new().await;
    let error = Keyholder::open(site.params(&site.state_dir())).map(drop).unwrap_err();
    assert!(matches!(error, KeyholderError::StateDir(_)), "{error}");
    assert!(error.to_string().contains("in use"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ceremonies_with_impossible_numbers_are_refused_and_a_second_one_only_while_nothing_hangs_on_the_first()
 {
    let site = Site::new().await;
    for (threshold, officers) in [(0, 3), (4, 3), (1, 0), (2, 17)] {
        let request = ceremony_request(threshold, officers);
        let refused = site.refused(&site.officer(), "/v1/ceremony", &request).await;
        assert_eq!(refused, (400, "invalid".to_owned()), "{threshold} of {officers}");
    }
    let mut twice = ceremony_request(2, 3);
    twice.officers[1].public_key = twice.officers[0].public_key.clone();
    assert_eq!(site.refused(&site.officer(), "/v1/ceremony", &twice).await, (400, "invalid".to_owned()));

    let first = site.ceremony().await;
    let second = site.ceremony().await;
    assert_ne!(first.grant_signing_key, second.grant_signing_key);
    site.node(1).await;
    let refused = site.refused(&site.officer(), "/v1/ceremony", &ceremony_request(1, 1)).await;
    assert_eq!(refused, (409, "exists".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyholder_kept_to_its_machine_dials_nobody_else_and_says_so() {
    let mut site = Site::new().await;
    let made = site.ceremony().await;
    let node = site.fake_node(1).await;
    let elsewhere = AddNode {
        // TEST-NET-1: nobody answers there, and a dial would time out instead of being refused at once.
        key_address: "192.0.2.1:7410".parse().unwrap(),
        ..add_node(1, &node)
    };
    site.officer().post::<NodeEntry>("/v1/nodes", &elsewhere).await.unwrap();
    site.stop().await;
    site.dial_loopback_only = true;
    site.start().await;
    site.submit(&made.shares, 1).await.unwrap();
    site.submit(&made.shares, 2).await.unwrap();
    // The first word about it: a dial would have ended with another.
    let status = site.wait("a refused dial", |status| status.nodes[0].last_error.is_some()).await;
    let error = status.nodes[0].last_error.as_ref().unwrap();
    assert!(error.contains("192.0.2.1") && error.contains("dial_loopback_only"), "{error}");
}

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

#[tokio::test(flavor = "multi_thread")]
async fn the_committed_ledger_of_version_2_opens_with_its_shares() {
    let golden = Path::new(GOLDEN);
    let mut site = Site::new().await;
    site.stop().await;
    std::fs::copy(golden.join("ledger-v2.bin"), site.state_dir().join("ledger")).unwrap();
    site.start().await;
    let shares = std::fs::read(golden.join("shares-v2.json")).unwrap();
    site.unseal(&serde_json::from_slice::<Vec<SealedShare>>(&shares).unwrap()).await;
    let status = site.status().await;
    let labels: Vec<_> = status.volumes.iter().map(|volume| volume.label.as_str()).collect();
    assert_eq!((labels, status.policy_serial), (vec!["db-1"], Some(1)));
    assert_eq!((status.nodes[0].name.as_str(), status.nodes[0].approved), ("node-1", false), "it was marked");
    let erasures: Vec<keyholder::api::ErasureEntry> = site.officer().get("/v1/erasures").await.unwrap();
    assert_eq!(erasures[0].label, "db-2");
    let policy: keyholder::api::PolicyStatus = site.officer().get("/v1/policy").await.unwrap();
    assert_eq!(policy.policy.quorum.erase, 2);
    // The trail that it remembers was another machine's.
    let page: audit_log::Page = site.officer().get("/v1/audit").await.unwrap();
    assert!(page.lines.iter().any(|line| line.contains("\"audit-truncated\"")));
}
