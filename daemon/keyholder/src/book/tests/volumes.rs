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
fn a_secret_that_a_clone_shared_is_erased_when_the_backups_of_the_last_of_them_are_destroyed() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    ceremony(&mut book);
    fill(&mut book);
    let parent = book.find_volume("db-1").unwrap().0;
    let request = CloneVolume {
        label: "clone".to_owned(),
        snapshot: VolumeId([9; 16]),
        on_seal: OnSeal::Hold,
        limits: crate::api::VolumeLimits::default(),
    };
    let clone = book.begin_clone("db-1", &request, "test").unwrap().volume;
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
