//! Who may hold a key, and for how long: promotions, lost records, renewals, grants on their way out.

use std::collections::BTreeMap;

use lease::message::{Receipt, Scope, StateVerdict, WipeCause, WipeReceipt, WipeStages};
use units::PoolId;

use super::*;

const FIRST: NodeId = NodeId([1; 16]);
const SECOND: NodeId = NodeId([2; 16]);

/// An unsealed book with two volumes on the first of two nodes.
fn two_nodes(dir: &Path) -> (Book, Vec<SealedShare>) {
    let mut book = open(dir);
    let shares = ceremony(&mut book);
    fill(&mut book);
    let second = AddNode {
        name: "node-2".to_owned(),
        node: SECOND,
        key_address: "https://127.0.0.1:7421".parse().unwrap(),
        admin_address: "https://127.0.0.1:7422".parse().unwrap(),
        identity_key: Some(hex::encode([8; 32])),
        push: PushPolicy::Auto,
        lease_ms: None,
    };
    book.add_node(&second, "test").unwrap();
    (book, shares)
}

/// What a node says of a wipe that it has not told of before.
fn wiped(scope: Scope, generation: u64) -> WipeReceipt {
    WipeReceipt {
        scope,
        record: WipeRecord { cause: WipeCause::PowerLoss, at: BootInstant(generation), generation },
        stages: WipeStages::keys(1),
        more: false,
        grants: Vec::new(),
        states: Vec::new(),
    }
}

fn receipt(volume: VolumeId, grant: GrantId) -> Receipt {
    let (fence, pool) = (units::Fence(1), PoolId([7; 16]));
    Receipt { grant, volume, fence, pool, verdict: StateVerdict::First, states: Vec::new() }
}

/// Pins this key for the first node.
pub(super) fn approve(book: &mut Book, key: [u8; 32]) -> Result<crate::api::NodeEntry, KeyholderError> {
    book.approve("node-1", &ApproveNode { fingerprint: hex::encode(key), tpm: None }, "test")
}

fn key_of(book: &Book, volume: VolumeId) -> Option<KeyState> {
    book.volumes.get(&volume).and_then(|now| now.key)
}

fn is_leased(book: &Book, volume: VolumeId) -> bool {
    book.records.of(volume).is_some_and(|record| record.expires.is_some())
}

#[test]
fn after_a_promotion_only_the_node_before_it_can_end_its_lease_early() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, _) = two_nodes(dir.path());
    let planned = book.plan_push(FIRST).unwrap();
    let (volume, grant) = (planned[0].order.volume, planned[0].order.grant);
    book.promoted(volume, SECOND, (None, 1 << 30), "test").unwrap();

    book.reconcile(SECOND, &BTreeMap::new()).unwrap();
    assert!(is_leased(&book, volume), "the new node's evidence says nothing about the old one");
    for scope in [Scope::Volume(volume), Scope::All] {
        book.on_wiped(SECOND, &wiped(scope, 1)).unwrap();
        assert!(is_leased(&book, volume), "{scope:?}");
    }
    assert!(book.plan_push(SECOND).unwrap().is_empty());

    let receipt = WipeReceipt { grants: vec![grant], ..wiped(Scope::Volume(volume), 1) };
    book.on_wiped(FIRST, &receipt).unwrap();
    assert!(!is_leased(&book, volume), "its own signed word ends the wait");
    let pushed = book.plan_push(SECOND).unwrap();
    assert_eq!(pushed.iter().map(|planned| planned.order.volume).collect::<Vec<_>>(), [volume]);
    assert!(pushed[0].order.grant != grant && pushed[0].order.fence > planned[0].order.fence);
}

#[test]
fn a_word_from_before_a_grant_does_not_end_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, _) = two_nodes(dir.path());
    let order = book.plan_push(FIRST).unwrap()[0].order.clone();
    // "Nothing is held", in answer to a revocation that was lifted since.
    for scope in [Scope::Volume(order.volume), Scope::All] {
        book.on_wiped(FIRST, &wiped(scope, 1)).unwrap();
        assert!(is_leased(&book, order.volume), "{scope:?}");
        assert_eq!(key_of(&book, order.volume), Some(KeyState::Pushing), "{scope:?}");
    }
    let receipt = WipeReceipt { grants: vec![order.grant], ..wiped(Scope::All, 2) };
    book.on_wiped(FIRST, &receipt).unwrap();
    assert!(!is_leased(&book, order.volume));
    assert_eq!(key_of(&book, order.volume), Some(KeyState::Sealed));
}

#[test]
fn evidence_of_the_node_before_a_promotion_ends_its_lease() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, _) = two_nodes(dir.path());
    let order = book.plan_push(FIRST).unwrap()[0].order.clone();
    book.promoted(order.volume, SECOND, (None, 1 << 30), "test").unwrap();
    let held = BTreeMap::from([(order.volume, order.grant)]);
    let revoke = book.reconcile(FIRST, &held).unwrap();
    assert!(revoke.iter().any(|(volume, _)| *volume == order.volume), "{revoke:?}");
    assert!(is_leased(&book, order.volume), "it still holds the key");
    book.reconcile(FIRST, &BTreeMap::new()).unwrap();
    assert!(!is_leased(&book, order.volume));
}

#[test]
fn a_receipt_that_arrives_after_a_promotion_prolongs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, _) = two_nodes(dir.path());
    let order = book.plan_push(FIRST).unwrap()[0].order.clone();
    book.promoted(order.volume, SECOND, (None, 1 << 30), "test").unwrap();
    let before = *book.records.of(order.volume).unwrap();
    book.on_receipt(FIRST, &receipt(order.volume, order.grant)).unwrap();
    for node in [FIRST, SECOND] {
        let (_, renewed) = book.renew(node, &[]).unwrap().unwrap();
        assert!(!renewed.contains(&order.grant), "{node}");
    }
    assert_eq!(*book.records.of(order.volume).unwrap(), before, "neither its expiry nor its pool");
    assert_eq!(events(dir.path(), "receipt").len(), 0);
}

#[test]
fn a_refusal_by_another_node_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, _) = two_nodes(dir.path());
    let order = book.plan_push(FIRST).unwrap()[0].order.clone();
    let refused = lease::message::GrantRefused {
        grant: GrantId([9; 16]),
        volume: order.volume,
        reason: lease::GrantRefusal::OldFence { offered: order.fence, highest: units::Fence(u64::MAX) },
    };
    assert!(!book.on_refused(SECOND, &refused).unwrap());
    assert_eq!(book.records.of(order.volume).unwrap().fence, order.fence);
    assert_eq!(key_of(&book, order.volume), Some(KeyState::Pushing));
}

#[test]
fn a_keyholder_without_lease_records_goes_on_waiting_after_a_restart_whatever_was_written_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, shares) = two_nodes(dir.path());
    let backup = book.backup("test").unwrap();
    let volume = book.find_volume("db-1").unwrap().0;
    drop(book);
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    book.restore(&backup, "test").unwrap();
    unseal(&mut book, &shares);
    assert!(book.grants_wait().is_some());
    // Each of these writes the file of the records.
    book.promoted(volume, SECOND, (None, 1 << 30), "test").unwrap();
    book.accept_state("db-2", "test").unwrap();
    drop(book);
    let mut book = open(dir.path());
    unseal(&mut book, &shares);
    for node in [FIRST, SECOND] {
        book.reconcile(node, &BTreeMap::new()).unwrap();
        book.on_wiped(node, &wiped(Scope::All, 1)).unwrap();
        assert!(book.plan_push(node).unwrap().is_empty(), "{node}");
        assert!(book.held_elsewhere_until(node).is_some(), "it goes on by itself");
    }
}

#[test]
fn the_lease_records_of_a_mistaken_ceremony_are_not_those_of_a_restored_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, shares) = two_nodes(dir.path());
    let backup = book.backup("test").unwrap();
    drop(book);
    let dir = tempfile::tempdir().unwrap();
    ceremony(&mut open(dir.path()));
    std::fs::remove_file(dir.path().join(LEDGER_FILE)).unwrap();
    let mut book = open(dir.path());
    book.restore(&backup, "test").unwrap();
    unseal(&mut book, &shares);
    assert!(book.grants_wait().is_some());
    assert!(book.plan_push(FIRST).unwrap().is_empty());
    // Also where it was restarted between the two.
    let dir = tempfile::tempdir().unwrap();
    ceremony(&mut open(dir.path()));
    std::fs::remove_file(dir.path().join(LEDGER_FILE)).unwrap();
    open(dir.path()).restore(&backup, "test").unwrap();
    let mut book = open(dir.path());
    unseal(&mut book, &shares);
    assert!(book.grants_wait().is_some());
}

#[test]
fn a_node_that_holds_an_earlier_key_does_not_end_its_lease_by_refusing_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, _) = two_nodes(dir.path());
    let order = book.plan_push(FIRST).unwrap()[0].order.clone();
    let reasons = [
        (lease::GrantRefusal::AlreadyHeld { by: GrantId([9; 16]) }, true),
        (lease::GrantRefusal::Replayed, true),
        (lease::GrantRefusal::WrongKey, false),
    ];
    for (reason, leased) in reasons {
        let refused = lease::message::GrantRefused { grant: order.grant, volume: order.volume, reason };
        book.on_refused(FIRST, &refused).unwrap();
        assert_eq!(is_leased(&book, order.volume), leased, "{reason}");
    }
}

#[test]
fn a_planned_grant_stays_here_when_something_was_latched_moved_or_sealed_before_it_left() {
    type Act = fn(&mut Book, &str);
    let acts: [(&str, Act); 6] = [
        ("volume", |book, label| book.latch(&Target::Volume(label.to_owned()), "test").unwrap()),
        ("node", |book, _| book.latch(&Target::Node("node-1".to_owned()), "test").unwrap()),
        ("lockdown", |book, _| book.lock_down("test").unwrap()),
        ("promotion", |book, label| {
            let volume = book.find_volume(label).unwrap().0;
            book.promoted(volume, SECOND, (None, 1 << 30), "test").unwrap();
        }),
        ("deletion", |book, label| book.begin_deletion(label, "test").map(|_| ()).unwrap()),
        ("session", |book, _| book.reconcile(FIRST, &BTreeMap::new()).map(|_| ()).unwrap()),
    ];
    for (what, act) in acts {
        let dir = tempfile::tempdir().unwrap();
        let (mut book, _) = two_nodes(dir.path());
        let planned = book.plan_push(FIRST).unwrap();
        let order = &planned[0].order;
        assert!(book.may_go_out(FIRST, order), "{what}");
        assert!(!book.may_go_out(SECOND, order), "{what}");
        act(&mut book, &order.label);
        assert!(!book.may_go_out(FIRST, order), "{what}");
        book.withdraw(order);
        assert!(!is_leased(&book, order.volume), "{what}: it never left");
        assert_ne!(key_of(&book, order.volume), Some(KeyState::Pushing), "{what}");
    }
}

#[test]
fn a_grant_that_counts_from_a_later_challenge_than_it_was_planned_after_waits_for_a_longer_record() {
    clock::simulated::set(BootInstant(1_000_000_000));
    let dir = tempfile::tempdir().unwrap();
    let (mut book, _) = two_nodes(dir.path());
    let order = book.plan_push(FIRST).unwrap()[0].order.clone();
    assert!(book.is_recorded(&order, clock::now()));
    let later = clock::now().saturating_add_ms(40);
    assert!(!book.is_recorded(&order, later), "it would end after its record");
    // Answered, it is recorded for as long.
    clock::simulated::set(later);
    book.renew(FIRST, &[]).unwrap().unwrap();
    assert!(book.is_recorded(&order, later));
    // A grant of before is none that the record is of.
    book.reconcile(FIRST, &BTreeMap::new()).unwrap();
    book.plan_push(FIRST).unwrap();
    assert!(!book.is_recorded(&order, clock::now()));
}

#[test]
fn a_renewal_is_no_longer_than_the_policy_allows_by_then() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, _) = two_nodes(dir.path());
    let order = book.plan_push(FIRST).unwrap()[0].order.clone();
    book.on_receipt(FIRST, &receipt(order.volume, order.grant)).unwrap();
    assert_eq!(book.renew(FIRST, &[]).unwrap().unwrap().0, 5_000);
    for (most, renewed_ms) in [("9000", 5_000), ("2000", 2_000)] {
        let policy = format!("version = 1\n[push]\nlease_ms_max = {most}\n");
        book.apply_policy(&policy, "test").unwrap();
        let before = *book.records.of(order.volume).unwrap();
        let (lease_ms, grants) = book.renew(FIRST, &[]).unwrap().unwrap();
        assert_eq!((lease_ms, grants.contains(&order.grant)), (renewed_ms, true));
        // The node may use what it was given before: neither this nor a reboot makes that shorter.
        let after = *book.records.of(order.volume).unwrap();
        assert_eq!(after == before, renewed_ms < 5_000, "{before:?} {after:?}");
    }
}

#[test]
fn another_machine_under_a_nodes_id_does_not_end_the_leases_of_the_one_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, _) = two_nodes(dir.path());
    let planned = book.plan_push(FIRST).unwrap();
    approve(&mut book, [7; 32]).unwrap();
    assert!(planned.iter().all(|planned| book.records.of(planned.order.volume).unwrap().node == FIRST));
    approve(&mut book, [9; 32]).unwrap();
    book.reconcile(FIRST, &BTreeMap::new()).unwrap();
    book.on_wiped(FIRST, &wiped(Scope::All, 1)).unwrap();
    for planned in &planned {
        assert!(is_leased(&book, planned.order.volume), "the machine before it may hold the key");
    }
    assert!(book.plan_push(FIRST).unwrap().is_empty());
}

#[test]
fn a_node_that_is_marked_as_compromised_ends_no_lease_by_its_word() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, _) = two_nodes(dir.path());
    let planned = book.plan_push(FIRST).unwrap();
    book.mark_compromised("node-1", "test").unwrap();
    let grants = planned.iter().map(|planned| planned.order.grant).collect();
    book.on_wiped(FIRST, &WipeReceipt { grants, ..wiped(Scope::All, 1) }).unwrap();
    book.reconcile(FIRST, &BTreeMap::new()).unwrap();
    for planned in &planned {
        assert!(is_leased(&book, planned.order.volume), "whoever has the node has its key");
        book.promoted(planned.order.volume, SECOND, (None, 1 << 30), "test").unwrap();
    }
    assert!(book.plan_push(SECOND).unwrap().is_empty());
}

#[test]
fn a_node_added_under_the_id_of_a_removed_one_does_not_end_its_leases() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, _) = two_nodes(dir.path());
    let planned = book.plan_push(FIRST).unwrap();
    for planned in &planned {
        book.promoted(planned.order.volume, SECOND, (None, 1 << 30), "test").unwrap();
    }
    book.remove_node("node-1", "test").unwrap();
    let again = AddNode {
        name: "node-1".to_owned(),
        node: FIRST,
        key_address: "https://127.0.0.1:7411".parse().unwrap(),
        admin_address: "https://127.0.0.1:7412".parse().unwrap(),
        identity_key: Some(hex::encode([9; 32])),
        push: PushPolicy::Auto,
        lease_ms: None,
    };
    book.add_node(&again, "test").unwrap();
    book.reconcile(FIRST, &BTreeMap::new()).unwrap();
    assert!(planned.iter().all(|planned| is_leased(&book, planned.order.volume)));
    assert!(book.plan_push(SECOND).unwrap().is_empty());
}

/// What a keyholder did after a backup, nobody knows who has only that: another node may have been given the key, for longer than any
/// lease that the backup knows.
#[test]
fn a_restored_backup_waits_for_the_longest_lease_that_its_successor_could_have_granted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, shares) = two_nodes(dir.path());
    let backup = book.backup("test").unwrap();
    let longest = crate::api::ChangeNode { lease_ms: Some(60_000), ..Default::default() };
    book.change_node("node-2", &longest, "test").unwrap();
    let volume = book.find_volume("db-1").unwrap().0;
    book.promoted(volume, SECOND, (None, 1 << 30), "test").unwrap();
    let of_second = book.plan_push(SECOND).unwrap();
    assert_eq!((of_second.len(), of_second[0].order.volume), (1, volume));
    let held_until = book.records.of(volume).unwrap().expires.unwrap();
    drop(book);

    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    book.restore(&backup, "test").unwrap();
    unseal(&mut book, &shares);
    assert!(book.grants_wait().unwrap() >= held_until);
    drop(book);
    // A restart does not make it shorter, and nothing that is granted goes before it.
    let mut book = open(dir.path());
    unseal(&mut book, &shares);
    assert!(book.plan_push(FIRST).unwrap().is_empty());
    assert!(book.held_elsewhere_until(FIRST).unwrap() >= held_until);
    // Longer than this no node is given.
    let longer = crate::api::ChangeNode { lease_ms: Some(60_001), ..Default::default() };
    let refused = book.change_node("node-2", &longer, "test").unwrap_err().to_string();
    assert!(refused.contains("lease_ms_max"), "{refused}");
}

/// Whoever has the keyholder's disk can write a record of his own with its checksum. What he gains is told in LEDGER.md: no fence goes
/// back by it, and a lost or damaged one is waited for.
#[test]
fn a_forged_lease_record_lowers_no_fence_and_a_damaged_one_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, shares) = two_nodes(dir.path());
    let order = book.plan_push(FIRST).unwrap()[0].order.clone();
    // The ledger notes fences at its next change.
    book.change_node("node-2", &crate::api::ChangeNode::default(), "test").unwrap();
    drop(book);
    let file = dir.path().join(LEASES_FILE);
    let (mut records, found) = LeaseRecords::load(&file, clock::boot_id().unwrap(), clock::now()).unwrap();
    assert_eq!(found, Found::Intact);
    let forged = |record: &mut LeaseRecord| (record.fence, record.expires) = (units::Fence(0), None);
    let mut store = Store::Files(Files::new(dir.path()));
    records.update(&mut store, |records| records.values_mut().for_each(forged)).unwrap();
    drop(records);
    let mut book = open(dir.path());
    unseal(&mut book, &shares);
    let again = book.plan_push(FIRST).unwrap();
    let again = again.iter().find(|planned| planned.order.volume == order.volume).unwrap();
    assert!(again.order.fence > order.fence, "{:?} after {:?}", again.order.fence, order.fence);
    drop(book);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let mut book = open(dir.path());
    unseal(&mut book, &shares);
    assert!(book.grants_wait().is_some() && book.plan_push(FIRST).unwrap().is_empty());
}
