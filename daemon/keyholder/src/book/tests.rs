//! The book on files, without a network.

mod cluster;
mod leases;
mod limits;
mod rotation;
mod simulation;
mod volumes;

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use lease::envelope;
use lease::message::{OnSeal, VolumeKind};
use locked_memory::Policy;
use sha2::{Digest, Sha256};
use units::NodeId;

use super::*;
use crate::api::{AddNode, ApproveNode, CreateVolume, Officer, PushPolicy, Target, VolumeIntegrity};
use crate::durable::StateDir;
use crate::shares::SealedShare;
use crate::vault::SecretOf;

pub(super) fn open(dir: &Path) -> Book {
    let vault = Arc::new(Vault::new(Policy::AllowMlock).unwrap());
    let leases = LeaseBounds { default_ms: 5_000, max_ms: 60_000 };
    Book::open("compute-1".to_owned(), StateDir::open(dir).unwrap(), vault, leases, None).unwrap()
}

pub(super) fn ceremony(book: &mut Book) -> Vec<SealedShare> {
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
            integrity: VolumeIntegrity::default(),
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
    // The file that was replaced by the erasure, and the one before it, which a plain change replaced.
    for file in [&mut deleting, &mut old] {
        let content = read(file);
        assert!(!content.is_empty() && content.iter().all(|byte| *byte == 0));
    }
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

/// The golden ledger of a version, opened with its shares. Its volumes have the keys that they had.
fn open_golden(version: u32) -> (tempfile::TempDir, Book) {
    let golden = Path::new(GOLDEN);
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden.join(format!("ledger-v{version}.bin")), dir.path().join(LEDGER_FILE)).unwrap();
    let shares = std::fs::read(golden.join(format!("shares-v{version}.json"))).unwrap();
    let shares: Vec<SealedShare> = serde_json::from_slice(&shares).unwrap();
    let mut book = open(dir.path());
    unseal(&mut book, &shares);
    let registry = book.registry().unwrap();
    assert_eq!(registry.nodes[0].name.as_str(), "node-1");
    assert_eq!(registry.nodes[0].pinned, Some([7; 32]));
    let checks: Vec<_> = registry.volumes.iter().map(|volume| hex::encode(volume.check)).collect();
    let committed = std::fs::read_to_string(golden.join(format!("checks-v{version}.txt"))).unwrap();
    assert_eq!(checks, committed.lines().collect::<Vec<_>>());
    (dir, book)
}

#[test]
fn the_committed_ledger_of_version_1_opens_with_its_shares_and_is_written_as_the_newest() {
    let (dir, mut book) = open_golden(1);
    let registry = book.registry().unwrap();
    let labels: Vec<_> = registry.volumes.iter().map(|volume| volume.label.as_str()).collect();
    assert_eq!(labels, ["db-1", "db-2"]);
    assert_eq!((&registry.audit, &registry.policy, registry.people.len()), (&None, &None, 0));
    assert!(book.wait_until.is_some(), "its lease records are not here");
    let file = dir.path().join(LEDGER_FILE);
    assert_eq!(std::fs::read(&file).unwrap()[8], 1, "reading changes nothing");
    book.resized(book.registry().unwrap().volumes[0].volume, 2 << 30, "test").unwrap();
    assert_eq!(u32::from(std::fs::read(&file).unwrap()[8]), ledger::LEDGER_VERSION);
    assert!(book.registry().unwrap().audit.is_some());
}

/// Makes the sample of the newest version: only together with a new format version.
fn bless() {
    let golden = Path::new(GOLDEN);
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    let shares = ceremony(&mut book);
    fill(&mut book);
    let node = NodeId([1; 16]);
    let approved = crate::attest::sample();
    let record = crate::ledger::TpmRecord { node, approved, by: "test".to_owned(), at_unix_s: 1 };
    let first = book.registry().unwrap().volumes[0].clone();
    let newer = SecretOf { domain: first.domain, epoch: VolumeEpoch(2) };
    let (secret, check) = book.vault.make_secret(newer, key_hierarchy::Integrity::Tagged).unwrap();
    book.commit(|registry| {
        registry.tpms.push(record);
        let volume = &mut registry.volumes[0];
        (volume.epoch, volume.secret, volume.check) = (newer.epoch, secret, check);
        let crate::ledger::VolumeRecord { domain, epoch, secret, check, .. } = first;
        registry.older.push(crate::ledger::OlderEpoch { domain, epoch, secret, check });
        let (node, epochs) = (NodeId([2; 16]), Some(vec![epoch]));
        registry.epoch_reports.push(crate::ledger::EpochReport { node, volume: first.volume, epochs });
        Ok(())
    })
    .unwrap();
    let checks = book.registry().unwrap().volumes.iter().map(|volume| hex::encode(volume.check) + "\n");
    std::fs::write(golden.join("checks-v4.txt"), checks.collect::<String>()).unwrap();
    std::fs::copy(dir.path().join(LEDGER_FILE), golden.join("ledger-v4.bin")).unwrap();
    std::fs::write(golden.join("shares-v4.json"), serde_json::to_vec_pretty(&shares).unwrap()).unwrap();
}

/// `NIGHTLATCH_BLESS=1` makes it anew.
#[test]
fn the_committed_ledger_of_version_4_has_the_epochs_that_volumes_were_written_under_before() {
    if std::env::var_os("NIGHTLATCH_BLESS").is_some() {
        bless();
    }
    let (_dir, mut book) = open_golden(4);
    let registry = book.registry().unwrap();
    let (volume, other) = (registry.volumes[0].clone(), registry.volumes[1].clone());
    let older: Vec<_> = registry.older_of(volume.domain).cloned().collect();
    assert_eq!((volume.epoch, older.len()), (VolumeEpoch(2), 1));
    assert_eq!((older[0].epoch, older[0].check == volume.check), (VolumeEpoch(1), false));
    assert_eq!(registry.older_of(other.domain).count(), 0);
    let told = registry.epoch_report(NodeId([2; 16]), volume.volume).unwrap();
    assert_eq!(told.epochs, Some(vec![VolumeEpoch(1)]));
    assert!(registry.epoch_began(volume.domain).is_some() && registry.epoch_began(other.domain).is_some());
    // All of them are carried over to a fresh ledger key, and what goes is gone.
    let before = older[0].secret;
    book.erase_volume(other.volume, "test").unwrap();
    let registry = book.registry().unwrap();
    let carried: Vec<_> = registry.older_of(volume.domain).map(|older| older.secret).collect();
    assert!(carried.len() == 1 && carried[0] != before);
    book.erase_volume(volume.volume, "test").unwrap();
    let registry = book.registry().unwrap();
    assert!(registry.older.is_empty(), "erased with the last volume of its domain");
    assert!(registry.epoch_reports.is_empty() && registry.epochs_began.is_empty());
}

#[test]
fn the_committed_ledger_of_version_3_has_the_tpms_that_nodes_were_approved_with() {
    let (_dir, book) = open_golden(3);
    assert!(book.registry().unwrap().older.is_empty());
    let registry = book.registry().unwrap();
    assert_eq!(registry.tpm_of(NodeId([1; 16])), Some(&crate::attest::sample()));
    assert_eq!(registry.tpm_of(NodeId([2; 16])), None);
}

/// The ledger remembers the trail: who has the disk and not the root cannot shorten it unnoticed.
#[test]
fn a_trail_that_was_cut_off_is_found_when_the_ledger_opens() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    let shares = ceremony(&mut book);
    fill(&mut book);
    book.seal();
    drop(book);
    let path = dir.path().join("audit.jsonl");
    let whole = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let says = |kept: usize| {
        std::fs::write(&path, lines[..kept].join("\n") + "\n").unwrap();
        let mut book = open(dir.path());
        unseal(&mut book, &shares);
        drop(book);
        std::fs::read_to_string(&path).unwrap().contains("\"audit-truncated\"")
    };
    // What stands after the ledger's last change is for the witnesses to remember.
    let last_change = lines.iter().rposition(|line| line.contains("\"volume-created\"")).unwrap();
    for kept in 1..last_change {
        assert!(says(kept), "cut to {kept} lines");
    }
    assert!(!says(lines.len()));
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
    let order = book.plan_push(node).unwrap()[0].order.clone();
    let volume = order.volume;
    let receipt = |scope| lease::message::WipeReceipt {
        scope,
        record: WipeRecord { cause: lease::message::WipeCause::PowerLoss, at: BootInstant(1), generation: 1 },
        stages: lease::message::WipeStages::keys(1),
        more: false,
        grants: vec![order.grant],
        states: Vec::new(),
    };
    for scope in [lease::message::Scope::Volume(volume), lease::message::Scope::All] {
        book.on_wiped(liar, &receipt(scope)).unwrap();
        assert!(book.records.of(volume).unwrap().expires.is_some(), "{scope:?}");
    }
    book.on_wiped(node, &receipt(lease::message::Scope::Volume(volume))).unwrap();
    assert_eq!(book.records.of(volume).unwrap().expires, None);
}

#[test]
fn a_node_that_keeps_back_a_trail_which_was_followed_is_told_of_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    fill(&mut book);
    let node = NodeId([1; 16]);
    let error = KeyholderError::NoSuchNode { name: "no such endpoint".to_owned() };
    let miss = |book: &mut Book| (0..5).for_each(|_| book.note_heads_exchanged(node, Some(&error)).unwrap());
    let told = || events(dir.path(), "node-trail-unavailable").len();
    miss(&mut book);
    assert_eq!(told(), 0, "it may never have had one");
    let head = audit_log::Head { trail: audit_log::TrailId([1; 16]), seq: 4, hash: audit_log::Hash([4; 32]) };
    book.note_node_trail(node, Ok(head)).unwrap();
    miss(&mut book);
    assert_eq!(told(), 1);
    book.note_heads_exchanged(node, None).unwrap();
    miss(&mut book);
    assert_eq!(told(), 2);
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
        pool: units::PoolId([7; 16]),
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

fn events(dir: &Path, event: &str) -> Vec<audit_log::Entry> {
    let lines = audit_log::read_dir(dir).unwrap();
    let entries = lines.iter().filter_map(|line| audit_log::Entry::parse(line).ok());
    entries.filter(|entry| entry.event == event).collect()
}

#[test]
fn a_nodes_broken_trail_is_said_once_and_forgotten_with_a_persons_word() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    let shares = ceremony(&mut book);
    fill(&mut book);
    let (node, other) = (NodeId([1; 16]), NodeId([2; 16]));
    let added = AddNode {
        name: "node-2".to_owned(),
        node: other,
        key_address: "https://127.0.0.1:7421".parse().unwrap(),
        admin_address: "https://127.0.0.1:7422".parse().unwrap(),
        identity_key: Some(hex::encode([8; 32])),
        push: PushPolicy::Auto,
        lease_ms: None,
    };
    book.add_node(&added, "test").unwrap();
    let head = audit_log::Head { trail: audit_log::TrailId([1; 16]), seq: 9, hash: audit_log::Hash([3; 32]) };
    for node in [node, other] {
        book.note_node_trail(node, Ok(head)).unwrap();
    }
    for end in 1..4 {
        book.note_node_trail(node, Err(NodeTrailError::Truncated { end, known: 9 })).unwrap();
    }
    assert_eq!(events(dir.path(), "node-trail-broken").len(), 1, "one that grows is the same one");
    book.note_node_trail(node, Err(NodeTrailError::Forked { known: 9 })).unwrap();
    assert_eq!(events(dir.path(), "node-trail-broken").len(), 2, "this is another finding");
    assert_eq!(book.known_node_trail(node).1, Some(head), "it is not given up by itself");
    // The ledger has it.
    book.latch(&Target::All, "test").unwrap();
    book.write_latches("revoke", &Target::All, "test").unwrap();
    let key = ApproveNode { fingerprint: hex::encode([7; 32]), tpm: None };
    book.approve("node-1", &key, "test").unwrap();
    book.remove_node("node-2", "test").unwrap();
    let forgotten = events(dir.path(), "node-trail-forgotten");
    assert_eq!(forgotten.len(), 2);
    assert!(forgotten.iter().all(|entry| entry.fields["of_seq"] == 9 && entry.text("by") == "test"));
    // Its last word came late.
    book.note_node_trail(other, Ok(head)).unwrap();
    assert_eq!(book.known_node_trail(other).1, None);
    drop(book);
    let mut book = open(dir.path());
    unseal(&mut book, &shares);
    for node in [node, other] {
        assert_eq!(book.known_node_trail(node).1, None);
    }
    // What is found after a person's word is new.
    book.note_node_trail(node, Err(NodeTrailError::Unsigned)).unwrap();
    assert_eq!(events(dir.path(), "node-trail-broken").len(), 3);
}

/// A directory with a filled ledger, the shares that open it, and the head that it remembers.
fn remembered(dir: &Path) -> (Vec<SealedShare>, audit_log::Head) {
    let mut book = open(dir);
    let shares = ceremony(&mut book);
    fill(&mut book);
    let known = book.registry().unwrap().audit.unwrap();
    assert!(book.audit.head().seq > known.seq, "something follows it");
    (shares, known)
}

#[test]
fn a_trail_without_its_past_is_not_the_one_that_the_ledger_remembers() {
    let dir = tempfile::tempdir().unwrap();
    let (shares, known) = remembered(dir.path());
    unseal(&mut open(dir.path()), &shares);
    assert!(events(dir.path(), "audit-truncated").is_empty());
    let path = dir.path().join("audit.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    // The second run is left, whose first entry names the trail: in order by itself, and nothing of what the ledger knows.
    let lines: Vec<&str> = text.lines().collect();
    let event = |line: &str| audit_log::Entry::parse(line).unwrap().event;
    let start = lines.iter().rposition(|line| event(line) == "start").unwrap();
    assert!(start as u64 > known.seq);
    std::fs::write(&path, lines[start..].join("\n") + "\n").unwrap();
    unseal(&mut open(dir.path()), &shares);
    assert_eq!(events(dir.path(), "audit-truncated").len(), 1);
    // The entry behind the one that the ledger knows does not read.
    let behind = lines[usize::try_from(known.seq).unwrap()];
    std::fs::write(&path, text.replace(behind, "nothing")).unwrap();
    unseal(&mut open(dir.path()), &shares);
    assert_eq!(events(dir.path(), "audit-truncated").len(), 1);
}

#[test]
fn a_restored_ledger_may_begin_a_trail_anew_also_after_a_restart_and_no_other_may() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    let shares = ceremony(&mut book);
    fill(&mut book);
    let backup = book.backup("test").unwrap();
    drop(book);
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    book.restore(&backup, "test").unwrap();
    // Restarted before it is unsealed, and again before anything changes the ledger.
    drop(book);
    for run in 1..=2 {
        unseal(&mut open(dir.path()), &shares);
        assert_eq!(events(dir.path(), "audit-begun-anew").len(), run);
        assert!(events(dir.path(), "audit-truncated").is_empty());
    }
    // From its first change on the ledger knows the new trail.
    let mut book = open(dir.path());
    unseal(&mut book, &shares);
    book.write_latches("revoke", &Target::All, "test").unwrap();
    drop(book);
    unseal(&mut open(dir.path()), &shares);
    assert_eq!(events(dir.path(), "audit-begun-anew").len(), 3);
    std::fs::remove_file(dir.path().join("audit.jsonl")).unwrap();
    unseal(&mut open(dir.path()), &shares);
    assert!(events(dir.path(), "audit-begun-anew").is_empty());
    assert_eq!(events(dir.path(), "audit-truncated").len(), 1);
}

#[test]
fn what_a_certified_run_pruned_is_not_missed_by_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let (shares, known) = remembered(dir.path());
    // As if the segment had been full.
    let closed = dir.path().join("audit-000000000001.jsonl");
    std::fs::rename(dir.path().join("audit.jsonl"), &closed).unwrap();
    let mut book = open(dir.path());
    assert_eq!(book.audit.prune(0).unwrap(), None, "nobody's word before the root is there");
    unseal(&mut book, &shares);
    assert!(book.audit.prune(0).unwrap().is_some_and(|to| to > known.seq));
    assert!(!closed.exists());
    drop(book);
    unseal(&mut open(dir.path()), &shares);
    assert!(events(dir.path(), "audit-truncated").is_empty());
    assert!(events(dir.path(), "audit-chain-broken").is_empty());
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
