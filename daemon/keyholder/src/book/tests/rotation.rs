//! Whose word lets an old secret go, which keys are due, and two keyholders that rotate at once.

use lease::keyholder::GrantOrder;
use lease::limits::EPOCHS_MAX;
use lease::message::{EpochsInUse, Receipt, StateVerdict};
use units::VolumeEpoch;

use super::cluster::{Member, two};
use super::*;
use crate::cluster::kv::simulated::SimulatedStore;
use crate::store::StoreError;

const NODE: NodeId = NodeId([1; 16]);
const OTHER: NodeId = NodeId([2; 16]);

/// With two volumes that its node serves.
fn filled() -> (tempfile::TempDir, Book, Vec<SealedShare>) {
    let (dir, mut book, shares) = unserved();
    serve(&mut book, NODE);
    (dir, book, shares)
}

fn unserved() -> (tempfile::TempDir, Book, Vec<SealedShare>) {
    let dir = tempfile::tempdir().unwrap();
    let mut book = open(dir.path());
    let shares = ceremony(&mut book);
    fill(&mut book);
    (dir, book, shares)
}

fn id(book: &Book, label: &str) -> VolumeId {
    book.find_volume(label).unwrap().0
}

/// The node takes the keys of all that is its to serve.
fn serve(book: &mut Book, node: NodeId) {
    for planned in book.plan_push(node).unwrap() {
        take(book, node, &planned.order);
    }
}

fn take(book: &mut Book, node: NodeId, order: &GrantOrder) {
    let GrantOrder { grant, volume, fence, .. } = *order;
    let (pool, verdict) = (units::PoolId([3; 16]), StateVerdict::First);
    book.on_receipt(node, &Receipt { grant, volume, fence, pool, verdict, states: Vec::new() }).unwrap();
}

/// What a node says with a challenge.
fn say(book: &mut Book, node: NodeId, volume: VolumeId, epochs: &[u32]) {
    let epochs = epochs.iter().map(|epoch| VolumeEpoch(*epoch)).collect();
    book.note_epochs(node, &[EpochsInUse { volume, epochs }]).unwrap();
    book.retire_epochs().unwrap();
}

/// What its evidence names is compared with what is known.
fn note_copies(book: &mut Book, node: NodeId) {
    book.node_now(node).copies_noted = false;
    book.note_copies(node).unwrap();
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
    note_copies(&mut book, OTHER);
    book.begin_rotation("db-1", "test").unwrap();
    say(&mut book, NODE, volume, &[2]);
    assert_eq!(waits_for(&book, "db-1"), ["db-1 on node-2"]);
    say(&mut book, OTHER, volume, &[1]);
    drop(book);
    let mut book = open(dir.path());
    unseal(&mut book, &shares);
    book.retire_epochs().unwrap();
    assert_eq!(waits_for(&book, "db-1"), ["db-1 on node-2"], "the ledger knows it");
    let grant = book.records.of(volume).unwrap().grant;
    book.reconcile(NODE, &BTreeMap::from([(volume, grant)])).unwrap();
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
            note_copies(&mut book, OTHER);
            book.retire_epochs().unwrap();
        }
        assert_eq!(older(&book, "db-1"), [0; 0], "gone: {gone}");
    }
}

#[test]
fn after_a_promotion_what_the_volume_left_behind_keeps_its_epochs_too() {
    clock::simulated::set(BootInstant(1_000_000_000));
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
    // What the other says before it has the key is of the replica that it was.
    say(&mut book, NODE, volume, &[]);
    say(&mut book, OTHER, volume, &[2]);
    assert_eq!(waits_for(&book, "db-1"), ["db-1"]);
    clock::simulated::set(BootInstant(1_000_000_000_000));
    serve(&mut book, OTHER);
    say(&mut book, OTHER, volume, &[2]);
    assert_eq!(older(&book, "db-1"), [0; 0]);
    // The next rotation waits for what is left at the first, which has told nothing of it.
    book.note_written(volume, VolumeEpoch(2));
    book.begin_rotation("db-1", "test").unwrap();
    book.note_written(volume, VolumeEpoch(3));
    book.promoted(volume, NODE, (None, 1 << 30), "test").unwrap();
    assert_eq!(waits_for(&book, "db-1"), ["db-1", "db-1 on node-2"]);
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
    let began = |book: &mut Book, began: u64| {
        book.commit(|registry| {
            registry.epochs_began.iter_mut().for_each(|(_, at)| *at = began);
            Ok(())
        })
        .unwrap();
    };
    let days_ago = |days: u64| clock::unix_s() - days * 86_400;
    began(&mut book, days_ago(31));
    book.policy = Policy::parse(
        "version = 1\n[rotation]\nevery_days = 90\n[[volume]]\nlabel = \"db-1\"\nrotate_every_days = 30",
    )
    .unwrap();
    assert!(book.rotations_due().unwrap().is_empty(), "its node is not there");
    book.node_now(NODE).connection = Connection::Connected;
    let scheduled = ("db-1".to_owned(), "schedule");
    assert_eq!(book.rotations_due().unwrap(), [scheduled], "the shortest time counts");
    began(&mut book, days_ago(29));
    assert!(book.rotations_due().unwrap().is_empty(), "they are newer than that");
    began(&mut book, days_ago(90));
    assert_eq!(book.rotations_due().unwrap().len(), 2);
    book.policy = Policy::default();
    assert!(book.rotations_due().unwrap().is_empty());
    book.note_due(OTHER, &[volume]).unwrap();
    assert!(book.rotations_due().unwrap().is_empty(), "not that node's to say");
    book.note_due(NODE, &[volume]).unwrap();
    let due = ("db-1".to_owned(), "blocks");
    assert_eq!(book.rotations_due().unwrap(), [due.clone()]);
    // Said of the key before, while the new one is on its way: it is rotated once.
    book.begin_rotation("db-1", "blocks").unwrap();
    book.note_due(NODE, &[volume]).unwrap();
    assert!(book.rotations_due().unwrap().is_empty());
    book.note_written(volume, VolumeEpoch(2));
    assert!(book.rotations_due().unwrap().is_empty());
    // A domain of a ledger that noted no beginnings counts from the first look, and so does one that began in the future.
    book.policy = Policy::parse("version = 1\n[rotation]\nevery_days = 1").unwrap();
    for (lost, at) in [(true, 0), (false, clock::unix_s() + 30 * 86_400)] {
        began(&mut book, at);
        book.commit(|registry| {
            registry.epochs_began.retain(|_| !lost);
            Ok(())
        })
        .unwrap();
        assert!(book.rotations_due().unwrap().is_empty());
        let noted = &book.registry().unwrap().epochs_began;
        assert!(noted.len() == 2 && noted.iter().all(|(_, began)| *began <= clock::unix_s()), "{noted:?}");
    }
}

/// An epoch that is one too many is refused for what a schedule wants, not for what the key needs.
#[test]
fn a_key_that_has_encrypted_enough_takes_the_epochs_that_a_schedule_leaves() {
    let (_dir, mut book, _) = filled();
    let volume = id(&book, "db-1");
    book.node_now(NODE).connection = Connection::Connected;
    for written in 2..EPOCHS_MAX {
        book.begin_rotation("db-1", "test").unwrap();
        book.note_written(volume, VolumeEpoch(u32::try_from(written).unwrap()));
    }
    book.commit(|registry| {
        registry.epochs_began.iter_mut().for_each(|(_, at)| *at = 0);
        Ok(())
    })
    .unwrap();
    book.policy = Policy::parse("version = 1\n[[volume]]\nlabel = \"db-1\"\nrotate_every_days = 1").unwrap();
    assert!(book.rotations_due().unwrap().is_empty(), "snapshots keep nearly as many as there can be");
    book.note_due(NODE, &[volume]).unwrap();
    assert_eq!(book.rotations_due().unwrap(), [("db-1".to_owned(), "blocks")]);
}

#[test]
fn a_node_is_given_no_more_keys_than_it_can_hold() {
    let (_dir, mut book, _) = filled();
    let first = book.registry().unwrap().volumes[0].clone();
    book.commit(|registry| {
        // One key of each, and two volumes that have them already.
        for nth in 2..lease::limits::VOLUMES_MAX {
            let mut id = [9; 16];
            id[..8].copy_from_slice(&(nth as u64).to_le_bytes());
            let (volume, domain) = (VolumeId(id), units::DomainId(id));
            let label = format!("more-{nth}");
            registry.volumes.push(crate::ledger::VolumeRecord { label, volume, domain, ..first.clone() });
        }
        Ok(())
    })
    .unwrap();
    let refused = book.begin_rotation("db-1", "test").unwrap_err().to_string();
    assert!(refused.contains("4096 keys"), "{refused}");
    book.commit(|registry| {
        registry.volumes.pop();
        Ok(())
    })
    .unwrap();
    book.begin_rotation("db-1", "test").unwrap();
}

#[test]
fn what_a_grant_brings_is_what_the_ledger_has_when_it_is_signed() {
    let (_dir, mut book, _) = unserved();
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
    take(&mut book, NODE, order);
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
    serve(&mut first.book, NODE);
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
