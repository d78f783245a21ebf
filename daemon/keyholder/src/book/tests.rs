//! The book on files, without a network.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use lease::envelope;
use lease::message::{OnSeal, VolumeKind};
use locked_memory::Policy;
use sha2::{Digest, Sha256};
use units::NodeId;

use super::*;
use crate::api::{AddNode, CreateVolume, Officer, PushPolicy, Target};
use crate::durable::StateDir;
use crate::shares::SealedShare;

fn open(dir: &Path) -> Book {
    let vault = Arc::new(Vault::new(Policy::AllowMlock).unwrap());
    Book::open("compute-1".to_owned(), StateDir::open(dir).unwrap(), vault, 5_000).unwrap()
}

fn ceremony(book: &mut Book) -> Vec<SealedShare> {
    let officer = |number: u8| Officer {
        name: format!("officer-{number}"),
        public_key: BASE64.encode(envelope::keypair(&[number; 32]).unwrap().as_bytes()),
    };
    let request = CeremonyRequest { threshold: 2, officers: (1..=3).map(officer).collect() };
    book.ceremony(&request, "test").unwrap().shares
}

fn unseal(book: &mut Book, shares: &[SealedShare]) {
    for number in [1, 3] {
        let share = shares[usize::from(number) - 1].open(&[number; 32]).unwrap();
        book.submit_share(&share, "test").unwrap();
    }
    assert_eq!(book.state(), SealState::Unsealed);
}

fn fill(book: &mut Book) {
    let node = AddNode {
        name: "node-1".to_owned(),
        node: NodeId([1; 16]),
        key_address: "https://127.0.0.1:7411".parse().unwrap(),
        admin_address: "https://127.0.0.1:7412".parse().unwrap(),
        identity_key: Some(hex::encode([7; 32])),
        push: PushPolicy::Auto,
        lease_ms: None,
    };
    book.add_node(&node, "test").unwrap();
    for label in ["db-1", "db-2"] {
        let request = CreateVolume {
            label: label.to_owned(),
            node: "node-1".to_owned(),
            pool: None,
            kind: VolumeKind::Block,
            size_bytes: 1 << 30,
            on_seal: OnSeal::Hold,
            limits: crate::api::VolumeLimits::default(),
        };
        let made = book.begin_volume(&request, "test").unwrap();
        book.finish_volume(made.volume).unwrap();
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// In whole, in eight-byte words and in hex: neither root nor ledger key nor label is in any file.
#[test]
fn no_file_holds_a_secret_or_a_label() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    let shares = ceremony(&mut book);
    fill(&mut book);
    book.plan_push(NodeId([1; 16])).unwrap();
    book.latch(&Target::All, "test").unwrap();
    book.write_latches("revoke", &Target::All, "test").unwrap();
    let secrets = book.vault.secrets_for_test();
    assert!(secrets.iter().all(|secret| *secret != [0; 32]));
    let share = serde_json::to_value(shares[0].open(&[1; 32]).unwrap()).unwrap();
    let value = BASE64.decode(share["value"].as_str().unwrap()).unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let path = file.unwrap().path();
        let content = std::fs::read(&path).unwrap();
        for secret in &secrets {
            assert!(!contains(&content, hex::encode(secret).as_bytes()), "{}", path.display());
            for word in secret.chunks(8) {
                assert!(!contains(&content, word), "{}", path.display());
            }
        }
        assert!(!contains(&content, &value), "a share in {}", path.display());
        // The trail names labels: it is for people. The ledger does not.
        if !path.ends_with("audit.jsonl") {
            assert!(!contains(&content, b"db-1"), "{}", path.display());
        }
    }
    // The same search finds what is there.
    let ledger = std::fs::read(dir.path().join(LEDGER_FILE)).unwrap();
    assert!(contains(&ledger, b"officer-1"));
}

#[test]
fn after_an_erasure_the_old_ledger_file_is_overwritten_and_the_secret_is_in_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    let shares = ceremony(&mut book);
    fill(&mut book);
    let mut old = std::fs::File::open(dir.path().join(LEDGER_FILE)).unwrap();
    let volume = book.find_volume("db-1").unwrap().0;
    let wrapped = postcard::to_stdvec(&book.registry().unwrap().volume(volume).unwrap().secret).unwrap();
    book.begin_deletion("db-1", "test").unwrap();
    let mut deleting = std::fs::File::open(dir.path().join(LEDGER_FILE)).unwrap();
    book.erase_volume(volume, "test").unwrap();

    let read = |file: &mut std::fs::File| {
        let mut content = Vec::new();
        std::io::Read::read_to_end(file, &mut content).unwrap();
        content
    };
    // The file that was replaced by the erasure is zeros; the one before it was replaced by a plain change.
    assert!(read(&mut deleting).iter().all(|byte| *byte == 0));
    assert!(!read(&mut old).is_empty());
    drop(book);
    let mut book = open(dir.path());
    unseal(&mut book, &shares);
    assert!(book.registry().unwrap().volume(volume).is_none());
    let plain = postcard::to_stdvec(book.registry().unwrap()).unwrap();
    assert!(!contains(&plain, &wrapped));
    assert_eq!(book.registry().unwrap().volumes.len(), 1, "the other one is still there");
    let survivor = book.registry().unwrap().volumes[0].clone();
    book.vault.next_ledger_key(book.header().unwrap().share_set.set).unwrap();
    book.vault.rewrap(survivor.secret_of(), &survivor.secret).unwrap();
}

#[test]
fn a_changed_header_or_registry_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    let shares = ceremony(&mut book);
    fill(&mut book);
    drop(book);
    let path = dir.path().join(LEDGER_FILE);
    let good = std::fs::read(&path).unwrap();
    // Somebody who can compute a checksum raises the threshold's neighbour, the serial number.
    let mut forged = good.clone();
    forged[16] ^= 1;
    let end = forged.len() - 32;
    let checksum: [u8; 32] = Sha256::digest(&forged[..end]).into();
    forged[end..].copy_from_slice(&checksum);
    std::fs::write(&path, &forged).unwrap();
    let mut book = open(dir.path());
    let first = shares[0].open(&[1; 32]).unwrap();
    let second = shares[1].open(&[2; 32]).unwrap();
    book.submit_share(&first, "test").unwrap();
    let error = book.submit_share(&second, "test").unwrap_err();
    assert_eq!(error.kind().0, "wrong-root", "{error}");
    assert_eq!(book.state(), SealState::Sealed);
    assert!(book.vault.secrets_for_test().iter().all(|secret| *secret == [0; 32]), "the root is gone again");
}

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// `NIGHTLATCH_BLESS=1` makes a new sample: only together with a new format version.
#[test]
fn the_committed_ledger_of_version_1_opens_with_its_shares() {
    let golden = Path::new(GOLDEN);
    if std::env::var_os("NIGHTLATCH_BLESS").is_some() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = open(dir.path());
        let shares = ceremony(&mut book);
        fill(&mut book);
        std::fs::copy(dir.path().join(LEDGER_FILE), golden.join("ledger-v1.bin")).unwrap();
        std::fs::write(golden.join("shares-v1.json"), serde_json::to_vec_pretty(&shares).unwrap()).unwrap();
        let checks: Vec<_> = book.registry().unwrap().volumes.iter().map(|v| hex::encode(v.check)).collect();
        std::fs::write(golden.join("checks-v1.txt"), checks.join("\n") + "\n").unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden.join("ledger-v1.bin"), dir.path().join(LEDGER_FILE)).unwrap();
    let shares: Vec<SealedShare> =
        serde_json::from_slice(&std::fs::read(golden.join("shares-v1.json")).unwrap()).unwrap();
    let mut book = open(dir.path());
    unseal(&mut book, &shares);
    let registry = book.registry().unwrap();
    assert_eq!(registry.nodes[0].name.as_str(), "node-1");
    assert_eq!(registry.nodes[0].pinned, Some([7; 32]));
    let labels: Vec<_> = registry.volumes.iter().map(|volume| volume.label.as_str()).collect();
    assert_eq!(labels, ["db-1", "db-2"]);
    let checks: Vec<_> = registry.volumes.iter().map(|volume| hex::encode(volume.check)).collect();
    let committed = std::fs::read_to_string(golden.join("checks-v1.txt")).unwrap();
    assert_eq!(checks, committed.lines().collect::<Vec<_>>());
    assert!(book.wait_until.is_some(), "its lease records are not here");
}

#[test]
fn a_grant_is_recorded_before_it_is_handed_out_and_its_fence_only_rises() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    let shares = ceremony(&mut book);
    fill(&mut book);
    let node = NodeId([1; 16]);
    let first = book.plan_push(node).unwrap();
    assert_eq!(first.len(), 2);
    assert!(book.plan_push(node).unwrap().is_empty(), "they are on their way");
    // As if the program had died with the grants just sent.
    drop(book);
    let mut book = open(dir.path());
    unseal(&mut book, &shares);
    for planned in &first {
        let record = book.records.of(planned.order.volume).unwrap();
        assert_eq!((record.grant, record.fence), (planned.order.grant, planned.order.fence));
        assert!(record.expires.is_some_and(|expires| expires > clock::now()));
    }
    let again = book.plan_push(node).unwrap();
    for (planned, before) in again.iter().zip(&first) {
        assert!(planned.order.fence > before.order.fence);
        assert_ne!(planned.order.grant, before.order.grant);
    }
}

#[test]
fn another_node_gets_a_key_only_after_the_lease_of_the_first_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    fill(&mut book);
    let node = NodeId([1; 16]);
    let planned = book.plan_push(node).unwrap();
    let volume = book.registry().unwrap().volume(planned[0].order.volume).unwrap().clone();
    let expires = book.records.of(volume.volume).unwrap().expires.unwrap();
    let other = NodeId([2; 16]);
    let before = BootInstant(expires.0 - 1);
    assert!(book.next_fence(other, &volume, before).unwrap_err().contains("another node"));
    assert!(book.next_fence(other, &volume, expires).is_ok());
    assert!(book.next_fence(node, &volume, before).is_ok(), "the same node excludes itself");
    // A signed receipt ends the wait.
    book.records.release(volume.volume, planned[0].order.grant);
    assert!(book.next_fence(other, &volume, before).is_ok());
}

#[test]
fn a_node_cannot_report_the_key_of_another_nodes_volume_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    fill(&mut book);
    let (node, liar) = (NodeId([1; 16]), NodeId([2; 16]));
    let volume = book.plan_push(node).unwrap()[0].order.volume;
    let receipt = |scope| lease::message::WipeReceipt {
        scope,
        record: WipeRecord { cause: lease::message::WipeCause::PowerLoss, at: BootInstant(1), generation: 1 },
        stages: lease::message::WipeStages::keys(1),
        more: false,
        grants: Vec::new(),
    };
    for scope in [lease::message::Scope::Volume(volume), lease::message::Scope::All] {
        book.on_wiped(liar, &receipt(scope)).unwrap();
        assert!(book.records.of(volume).unwrap().expires.is_some(), "{scope:?}");
    }
    book.on_wiped(node, &receipt(lease::message::Scope::Volume(volume))).unwrap();
    assert_eq!(book.records.of(volume).unwrap().expires, None);
}

#[test]
fn a_fence_far_ahead_of_the_ledger_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    fill(&mut book);
    let node = NodeId([1; 16]);
    let volume = book.registry().unwrap().volumes[0].clone();
    let present = |fence: u64| lease::message::VolumePresent {
        volume: volume.volume,
        domain: volume.domain,
        epoch: volume.epoch,
        check: volume.check,
        size_bytes: volume.size,
        fence: units::Fence(fence),
    };
    book.node_now(node).present.insert(volume.volume, present(1 << 32));
    assert_eq!(book.next_fence(node, &volume, clock::now()).unwrap().0, (1 << 32) + 1);
    book.node_now(node).present.insert(volume.volume, present((1 << 32) + 1));
    assert!(book.next_fence(node, &volume, clock::now()).unwrap_err().contains("look at the node's pool"));
}

#[test]
fn every_error_says_what_to_do_next() {
    let errors = [
        KeyholderError::NoLedger,
        KeyholderError::LedgerExists,
        KeyholderError::OfficerOnly { act: "a" },
        KeyholderError::NoSuchNode { name: "n".to_owned() },
        KeyholderError::NotApproved { name: "n".to_owned() },
        KeyholderError::Latched { what: "w".to_owned(), cause: "c" },
        crate::vault::VaultError::Sealed { missing: 1 }.into(),
        crate::vault::VaultError::AlreadyUnsealed.into(),
        crate::vault::VaultError::WrongRoot.into(),
        crate::vault::VaultError::ImpossibleSet.into(),
        crate::vault::VaultError::Unwrap { what: "w" }.into(),
        crate::ledger::LedgerError::Newer { found: 2 }.into(),
        crate::ledger::LedgerError::Damaged { what: "w" }.into(),
    ];
    for error in errors {
        assert!(!error.problem().next_step.is_empty(), "{error}");
    }
}
