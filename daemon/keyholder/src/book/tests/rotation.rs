//! Whose word lets an old secret go, which keys are due, and two keyholders that rotate at once.

use lease::limits::EPOCHS_MAX;
use lease::message::EpochsInUse;
use units::VolumeEpoch;

use super::cluster::{Member, two};
use super::*;
use crate::cluster::kv::simulated::SimulatedStore;
use crate::store::StoreError;

const NODE: NodeId = NodeId([1; 16]);
const OTHER: NodeId = NodeId([2; 16]);

fn filled() -> (tempfile::TempDir, Book, Vec<SealedShare>) {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    let shares = ceremony(&mut book);
    fill(&mut book);
    (dir, book, shares)
}

fn id(book: &Book, label: &str) -> VolumeId {
    book.find_volume(label).unwrap().0
}

/// What a node says with a challenge.
fn say(book: &mut Book, node: NodeId, volume: VolumeId, epochs: &[u32]) {
    let epochs = epochs.iter().map(|epoch| VolumeEpoch(*epoch)).collect();
    book.note_epochs(node, &[EpochsInUse { volume, epochs }]).unwrap();
    book.retire_epochs().unwrap();
}

fn older(book: &Book, label: &str) -> Vec<u32> {
    let rotation = book.volume_by_label(label).unwrap().rotation;
    rotation.iter().flat_map(|rotation| &rotation.older).map(|epoch| epoch.0).collect()
}

fn waits_for(book: &Book, label: &str) -> Vec<String> {
    book.volume_by_label(label).unwrap().rotation.map(|rotation| rotation.waits_for).unwrap_or_default()
}

fn present(book: &Book, volume: VolumeId) -> VolumePresent {
    let record = book.registry().unwrap().volume(volume).unwrap();
    VolumePresent {
        volume,
        pool: units::PoolId([3; 16]),
        domain: record.domain,
        epoch: VolumeEpoch(1),
        check: [0; 16],
        size_bytes: record.size.0,
        fence: units::Fence(0),
    }
}

#[test]
fn an_old_secret_goes_with_the_word_of_the_volumes_node_about_the_newest_epoch_and_no_other() {
    let (_dir, mut book, _) = filled();
    let volume = id(&book, "db-1");
    book.begin_rotation("db-1", "test").unwrap();
    assert_eq!((older(&book, "db-1"), older(&book, "db-2")), (vec![1], vec![]));
    // Of another volume, of another node, about what was before, and that something is left.
    let other = id(&book, "db-2");
    for (node, of, epochs) in [(NODE, other, vec![2]), (NODE, volume, vec![1]), (NODE, volume, vec![1, 2])] {
        say(&mut book, node, of, &epochs);
        assert_eq!(older(&book, "db-1"), [1], "{epochs:?} of {of}");
    }
    // Two copies on one node are both to be thought of.
    let both = [&[2][..], &[1]].map(|epochs: &[u32]| {
        let epochs = epochs.iter().map(|epoch| VolumeEpoch(*epoch)).collect();
        EpochsInUse { volume, epochs }
    });
    book.note_epochs(NODE, &both).unwrap();
    book.retire_epochs().unwrap();
    assert_eq!(older(&book, "db-1"), [1]);
    say(&mut book, NODE, volume, &[2]);
    assert_eq!(older(&book, "db-1"), [0; 0]);
    // The word counts for the epoch that it was said in.
    book.note_written(volume, VolumeEpoch(2));
    book.begin_rotation("db-1", "test").unwrap();
    book.retire_epochs().unwrap();
    assert_eq!(older(&book, "db-1"), [2], "what was said before says nothing of the new one");
    say(&mut book, NODE, volume, &[2]);
    assert_eq!(older(&book, "db-1"), [2]);
}

#[test]
fn what_another_node_has_of_a_volume_keeps_its_epochs_over_a_restart_until_it_has_followed() {
    let (dir, mut book, shares) = filled();
    let volume = id(&book, "db-1");
    super::cluster::add_second_node(&mut book);
    // Its evidence names a replica; under which epoch that is, it has yet to say.
    let copy = present(&book, volume);
    book.node_now(OTHER).present.insert(volume, copy);
    book.note_copies(OTHER).unwrap();
    book.begin_rotation("db-1", "test").unwrap();
    say(&mut book, NODE, volume, &[2]);
    assert_eq!(waits_for(&book, "db-1"), ["db-1 on node-2"]);
    say(&mut book, OTHER, volume, &[1]);
    drop(book);
    let mut book = open(dir.path());
    unseal(&mut book, &shares);
    book.retire_epochs().unwrap();
    assert_eq!(waits_for(&book, "db-1"), ["db-1 on node-2"], "the ledger knows it");
    say(&mut book, OTHER, volume, &[1, 2]);
    assert_eq!(older(&book, "db-1"), [1]);
    say(&mut book, OTHER, volume, &[2]);
    assert_eq!(older(&book, "db-1"), [0; 0]);

    // The next one: a replica that is deleted keeps nothing, and neither does one that evidence does not name any more.
    book.note_written(volume, VolumeEpoch(2));
    for gone in [true, false] {
        let now = book.registry().unwrap().volume(volume).unwrap().epoch.0;
        book.begin_rotation("db-1", "test").unwrap();
        book.note_written(volume, VolumeEpoch(now + 1));
        say(&mut book, OTHER, volume, &[now]);
        say(&mut book, NODE, volume, &[now + 1]);
        assert_eq!(older(&book, "db-1"), [now]);
        if gone {
            say(&mut book, OTHER, volume, &[]);
        } else {
            book.note_copies(OTHER).unwrap();
            book.retire_epochs().unwrap();
        }
        assert_eq!(older(&book, "db-1"), [0; 0], "gone: {gone}");
    }
}

#[test]
fn after_a_promotion_what_the_volume_left_behind_keeps_its_epochs_too() {
    let (_dir, mut book, _) = filled();
    let volume = id(&book, "db-1");
    super::cluster::add_second_node(&mut book);
    book.begin_rotation("db-1", "test").unwrap();
    say(&mut book, NODE, volume, &[1, 2]);
    say(&mut book, OTHER, volume, &[1]);
    book.promoted(volume, OTHER, (None, 1 << 30), "test").unwrap();
    book.note_written(volume, VolumeEpoch(1));
    assert_eq!(waits_for(&book, "db-1"), ["db-1", "db-1 on node-1"]);
    // A grant names what the new node has, and brings the newest too.
    let planned = book.registry().unwrap().volume(volume).unwrap().clone();
    let (first, further) = book.epochs_for_grant(&planned);
    assert_eq!((first.epoch, further.len(), further[0].epoch), (VolumeEpoch(1), 1, VolumeEpoch(2)));
    say(&mut book, OTHER, volume, &[2]);
    assert_eq!(older(&book, "db-1"), [1]);
    say(&mut book, NODE, volume, &[]);
    assert_eq!(older(&book, "db-1"), [0; 0]);
}

#[test]
fn a_rotation_that_cannot_be_is_refused_and_makes_no_secret() {
    let (_dir, mut book, _) = filled();
    let key = CreateVolume {
        label: "key".to_owned(),
        node: "node-1".to_owned(),
        pool: None,
        kind: VolumeKind::Objects,
        size_bytes: lease::limits::NAMED_KEY_BYTES,
        on_seal: OnSeal::Hold,
        integrity: VolumeIntegrity::default(),
        limits: crate::api::VolumeLimits::default(),
    };
    let made = book.begin_volume(&key, "test").unwrap();
    let creating = book.begin_rotation("key", "test").unwrap_err();
    assert!(matches!(creating, KeyholderError::Busy { .. }), "{creating}");
    book.finish_volume(made.volume).unwrap();
    let refused = |book: &mut Book, label: &str| book.begin_rotation(label, "test").unwrap_err().to_string();
    assert!(refused(&mut book, "key").contains("named key"));
    assert!(refused(&mut book, "none").contains("none"));
    // The ledger is an older one than that by which the node was given its epoch.
    let volume = id(&book, "db-1");
    book.note_written(volume, VolumeEpoch(2));
    assert!(refused(&mut book, "db-1").contains("written under epoch 2"));
    assert!(book.registry().unwrap().older.is_empty());
    // An epoch that the node has yet to take is followed by none.
    book.note_written(volume, VolumeEpoch(1));
    for _ in 0..2 {
        book.begin_rotation("db-1", "test").unwrap();
        assert_eq!(book.volume_by_label("db-1").unwrap().epoch, VolumeEpoch(2));
    }
    for _ in 2..EPOCHS_MAX {
        let newest = book.volume_by_label("db-1").unwrap().epoch;
        book.note_written(volume, newest);
        book.begin_rotation("db-1", "test").unwrap();
    }
    let newest = book.volume_by_label("db-1").unwrap().epoch;
    book.note_written(volume, newest);
    assert!(refused(&mut book, "db-1").contains("the most"));
}

#[test]
fn a_key_is_due_by_its_age_or_by_what_it_has_encrypted_where_its_node_is_heard() {
    let (_dir, mut book, _) = filled();
    let volume = id(&book, "db-1");
    assert!(book.rotations_due(Some(0)).unwrap().is_empty(), "its node is not there");
    book.node_now(NODE).connection = Connection::Connected;
    assert!(book.rotations_due(None).unwrap().is_empty());
    assert!(book.rotations_due(Some(3_600)).unwrap().is_empty(), "they are new");
    assert_eq!(book.rotations_due(Some(0)).unwrap().len(), 2);
    book.note_due(OTHER, &[volume]).unwrap();
    assert!(book.rotations_due(None).unwrap().is_empty(), "not that node's to say");
    book.note_due(NODE, &[volume]).unwrap();
    let due = ("db-1".to_owned(), "blocks");
    assert_eq!(book.rotations_due(None).unwrap(), [due.clone()]);
    // Said of the key before, while the new one is on its way: it is rotated once.
    book.begin_rotation("db-1", "blocks").unwrap();
    book.note_due(NODE, &[volume]).unwrap();
    assert!(book.rotations_due(None).unwrap().is_empty());
    book.note_written(volume, VolumeEpoch(2));
    assert!(book.rotations_due(None).unwrap().is_empty());
    // A domain of a ledger that noted no beginnings counts from the first look.
    book.commit(|registry| {
        registry.epochs_began.clear();
        Ok(())
    })
    .unwrap();
    assert!(book.rotations_due(Some(3_600)).unwrap().is_empty());
    assert_eq!(book.registry().unwrap().epochs_began.len(), 2);
}

#[test]
fn what_a_grant_brings_is_what_the_ledger_has_when_it_is_signed() {
    let (_dir, mut book, _) = filled();
    let volume = id(&book, "db-1");
    book.begin_rotation("db-1", "test").unwrap();
    book.note_written(volume, VolumeEpoch(2));
    let planned = book.plan_push(NODE).unwrap();
    let order = &planned.iter().find(|planned| planned.order.volume == volume).unwrap().order;
    assert_eq!((order.epoch, order.further.len()), (VolumeEpoch(2), 1));
    let before = book.secrets_for(order).unwrap();
    // A fresh ledger key comes between: the secrets are wrapped anew.
    book.erase_volume(id(&book, "db-2"), "test").unwrap();
    let after = book.secrets_for(order).unwrap();
    assert_eq!((after[0].0.epoch, after[1].0.epoch), (VolumeEpoch(2), VolumeEpoch(1)));
    assert!(before.iter().zip(&after).all(|(before, after)| before.1 != after.1));
    // An epoch is gone: it is planned anew.
    say(&mut book, NODE, volume, &[2]);
    assert!(book.secrets_for(order).is_none());
}

fn is_changed<T>(result: &Result<T, KeyholderError>) -> bool {
    matches!(result, Err(KeyholderError::Store(StoreError::Changed)))
}

#[test]
fn of_two_keyholders_that_rotate_at_once_one_does_and_what_nodes_tell_either_counts() {
    let store = SimulatedStore::default();
    let ([mut first, mut second], _) = two(&store);
    let volume = id(&first.book, "db-1");
    first.book.begin_rotation("db-1", "test").unwrap();
    assert!(is_changed(&second.book.begin_rotation("db-1", "test")), "its ledger is an older one");
    second.look().unwrap();
    let records = |member: &Member| {
        let registry = member.book.registry().unwrap();
        (registry.volume(volume).unwrap().clone(), registry.older.clone())
    };
    assert!(records(&first) == records(&second), "one secret of the new epoch");
    // A replica's node speaks to the one, the volume's to the other.
    let copy = EpochsInUse { volume, epochs: vec![VolumeEpoch(1)] };
    second.book.note_epochs(OTHER, &[copy]).unwrap();
    assert!(is_changed(
        &first.book.note_epochs(NODE, &[EpochsInUse { volume, epochs: vec![VolumeEpoch(2)] }])
    ));
    first.look().unwrap();
    say(&mut first.book, NODE, volume, &[2]);
    assert_eq!(older(&first.book, "db-1"), [1]);
    second.look().unwrap();
    say(&mut second.book, OTHER, volume, &[2]);
    assert_eq!(older(&second.book, "db-1"), [0; 0]);
    first.look().unwrap();
    assert_eq!(older(&first.book, "db-1"), [0; 0]);
}
