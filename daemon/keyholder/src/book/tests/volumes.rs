//! What becomes of a volume's secret.

use super::*;
use crate::api::{CloneVolume, ErasureState};

fn create(label: &str) -> CreateVolume {
    CreateVolume {
        label: label.to_owned(),
        node: "node-1".to_owned(),
        pool: None,
        kind: VolumeKind::Block,
        size_bytes: 1 << 30,
        on_seal: OnSeal::Hold,
        integrity: VolumeIntegrity::Tag,
        limits: crate::api::VolumeLimits::default(),
    }
}

#[test]
fn of_two_requests_for_one_volume_the_refused_one_does_not_erase_what_the_other_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    fill(&mut book);
    let first = book.begin_volume(&create("new"), "one").unwrap().volume;
    let second = book.begin_volume(&create("new"), "two").unwrap().volume;
    assert_eq!(first, second, "a creation that was cut off goes on");
    book.finish_volume(first).unwrap();
    book.abandon_volume(second, "two").unwrap();
    assert!(book.check_live("new").is_ok());
    assert!(book.erasure_entries().unwrap().is_empty());
    // The other way round there is nothing left to finish.
    let third = book.begin_volume(&create("refused"), "one").unwrap().volume;
    book.abandon_volume(third, "one").unwrap();
    assert_eq!(book.finish_volume(third).unwrap_err().kind().1, 404);
    // And what is being deleted does not come to life again.
    let fourth = book.begin_volume(&create("deleted"), "one").unwrap().volume;
    book.begin_deletion("deleted", "one").unwrap();
    assert_eq!(book.finish_volume(fourth).unwrap_err().kind().1, 409);
}

#[test]
fn what_was_done_is_in_the_trail_also_where_its_lease_record_could_not_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    fill(&mut book);
    let [first, second] = ["db-1", "db-2"].map(|label| book.find_volume(label).unwrap().0);
    book.plan_push(NodeId([1; 16])).unwrap();
    std::fs::create_dir(dir.path().join("leases.new")).unwrap();
    book.promoted(first, NodeId([2; 16]), (None, 1 << 30), "test").unwrap_err();
    book.erase_volume(second, "test").unwrap_err();
    for event in ["volume-promoted", "volume-erased"] {
        assert_eq!(events(dir.path(), event).len(), 1, "{event}");
    }
}

fn clone_as(label: &str) -> CloneVolume {
    CloneVolume {
        label: label.to_owned(),
        snapshot: VolumeId([9; 16]),
        on_seal: OnSeal::Hold,
        limits: crate::api::VolumeLimits::default(),
    }
}

#[test]
fn a_clone_brings_back_no_key_that_was_revoked_and_goes_nowhere_where_its_volume_may_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    fill(&mut book);
    let node = NodeId([1; 16]);
    let clone = book.begin_clone("db-1", &clone_as("x"), "test").unwrap().volume;
    book.finish_volume(clone).unwrap();
    // By a rule that names the volume, and not its clone.
    let policy = "version = 1\n[[volume]]\nlabel = \"db-1\"\nnodes = [\"node-2\"]\n";
    let refused = book.preview_policy(policy).unwrap().would_refuse;
    assert_eq!(refused.iter().map(|one| one.volume.as_str()).collect::<Vec<_>>(), ["db-1", "x"]);
    let planned = book.plan_push(node).unwrap();
    assert_eq!(planned.len(), 3);
    assert_eq!(book.renew(node, &[]).unwrap().unwrap().1.len(), 3);
    book.apply_policy(policy, "test").unwrap();
    assert_eq!(book.renew(node, &[]).unwrap().unwrap().1.len(), 1);
    book.reconcile(node, &Default::default()).unwrap();
    let planned = book.plan_push(node).unwrap();
    assert_eq!(planned.iter().map(|grant| grant.order.label.as_str()).collect::<Vec<_>>(), ["db-2"]);
    // By a revocation, of the volume or of one that has the same key.
    for label in ["db-1", "x"] {
        let target = Target::Volume(label.to_owned());
        book.latch(&target, "test").unwrap();
        let refused = book.begin_clone("db-1", &clone_as("y"), "storage-admin/sam").unwrap_err();
        assert_eq!(refused.kind(), ("latched", 409), "{label}");
        book.unlatch(&target, "test").unwrap();
    }
    book.begin_clone("db-1", &clone_as("y"), "test").unwrap();
}

#[test]
fn a_secret_that_a_clone_shared_is_erased_when_the_backups_of_the_last_of_them_are_destroyed() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    fill(&mut book);
    let parent = book.find_volume("db-1").unwrap().0;
    let clone = book.begin_clone("db-1", &clone_as("clone"), "test").unwrap().volume;
    book.finish_volume(clone).unwrap();
    let state = |book: &Book, volume: VolumeId| {
        let entries = book.erasure_entries().unwrap();
        entries.into_iter().find(|entry| entry.volume == volume).map(|entry| entry.state).unwrap()
    };
    book.erase_volume(parent, "test").unwrap();
    assert_eq!(state(&book, parent), ErasureState::Shared);
    let backup = book.backup("test").unwrap().serial;
    book.erase_volume(clone, "test").unwrap();
    for volume in [parent, clone] {
        assert_eq!(state(&book, volume), ErasureState::Pending, "the backup opens both");
        assert!(book.certify_erasure(volume, "test").is_err());
    }
    assert!(book.confirm_erasure(parent, backup - 1, "test").is_err());
    book.confirm_erasure(parent, backup, "anna").unwrap();
    let without = book.registry().unwrap().erasures.iter().map(|one| one.without_since_serial).max();
    for volume in [parent, clone] {
        assert_eq!(state(&book, volume), ErasureState::Complete);
        let signed = book.certify_erasure(volume, "test").unwrap();
        let said: serde_json::Value = serde_json::from_str(&signed.certificate).unwrap();
        assert_eq!(said["backups_destroyed_up_to_serial"], backup);
        assert_eq!(said["backups_confirmed_by"], "anna");
        assert_eq!(said["ledger_without_since_serial"], without.unwrap());
    }
}
