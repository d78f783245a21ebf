//! What each side keeps for a peer that is away, and what it does not.

use replication::{Halt, Local, Reason, Receiver, ReceiverEffect, Role, SessionError, kept_for_others};
use units::{Lba, VolumeId};

use crate::support::{NOW, VOLUME, answered, epoch, key, manifest, one, receiver, said, sender};

fn ids(numbers: impl IntoIterator<Item = u64>) -> Vec<VolumeId> {
    numbers.into_iter().map(|number| key(number).snapshot).collect()
}

#[test]
fn for_a_peer_that_was_not_heard_in_this_run_stays_what_an_earlier_run_left() {
    let mut sender = sender();
    sender.restore(VOLUME, (1..=3).map(epoch));
    for number in 4..300 {
        sender.close_epoch(VOLUME, epoch(number));
        let needs = sender.needs(VOLUME).unwrap();
        assert!(needs.starts_with(&ids(1..=3)) && needs.contains(&key(number).snapshot), "{needs:?}");
        assert!(needs.len() <= 3 + 4, "{number}: {needs:?}");
    }
    assert_eq!(sender.needs(VolumeId([9; 16])), None);
}

#[test]
fn for_a_peer_that_is_given_up_only_the_newest_epoch_stays() {
    let mut sender = sender();
    sender.restore(VOLUME, (1..=3).map(epoch));
    sender.close_epoch(VOLUME, epoch(4));
    assert_eq!(sender.away_ms(NOW.saturating_add_ms(5_000)), 5_000);
    assert!(sender.give_up(VOLUME));
    let needs = sender.needs(VOLUME).unwrap();
    assert!(needs.iter().all(|id| *id == key(4).snapshot), "{needs:?}");
    assert!(!sender.give_up(VOLUME));
    // Nor does more come together.
    sender.close_epoch(VOLUME, epoch(5));
    assert_eq!(sender.needs(VOLUME).unwrap(), [key(5).snapshot]);
    assert!(!sender.give_up(VOLUME));
    // It goes on with that when the peer has it, and is told to have gone another way where it has not.
    let mut receiver = receiver();
    let later = NOW.saturating_add_ms(6_000);
    sender.on_connected(later);
    for _ in 0..2 {
        receiver.on_frame(one(&said(&mut sender).0)).unwrap();
        let local = Local { role: Role::Replica, newest: Some(key(1).snapshot), receiving: None };
        receiver.on_local(VOLUME, Ok(local));
        sender.on_frame(later, one(&answered(&mut receiver).0)).unwrap();
    }
    assert_eq!(sender.away_ms(later.saturating_add_ms(1)), 0);
    assert!(!sender.give_up(VOLUME), "it is there");
    sender.on_found(VOLUME, key(1).snapshot, false);
    assert_eq!(sender.progress(VOLUME).unwrap().trouble, Some(Halt::Refused(Reason::Diverged)));
}

#[test]
fn of_very_many_runs_the_oldest_and_the_newest_epochs_stay() {
    let mut sender = sender();
    sender.restore(VOLUME, (0..100).map(epoch));
    let needs = sender.needs(VOLUME).unwrap();
    let expected = ids((0..32).chain(68..100));
    assert_eq!(needs[..64], expected);
    assert_eq!(needs[64..], expected);
}

#[test]
fn what_the_other_peers_have_goes_before_what_waits_for_them() {
    let needs = [ids([1, 7, 8, 9]), ids([2, 8, 9]), ids([2])];
    assert_eq!(kept_for_others(&needs), ids([1, 2, 7, 8, 9]));
    let many: Vec<_> = (0..20).map(|peer| ids(peer..peer + 3)).collect();
    assert_eq!(kept_for_others(&many), ids(0..16));
}

/// A receiver to which an epoch was begun that keeps `keep`.
fn begun(keep: Vec<VolumeId>) -> Result<Receiver, SessionError> {
    let (mut sender, mut receiver) = (sender(), receiver());
    sender.on_connected(NOW);
    for _ in 0..2 {
        receiver.on_frame(one(&said(&mut sender).0))?;
        let local = Local { role: Role::Replica, newest: Some(key(1).snapshot), receiving: None };
        receiver.on_local(VOLUME, Ok(local));
        sender.on_frame(NOW, one(&answered(&mut receiver).0)).unwrap();
    }
    sender.on_found(VOLUME, key(1).snapshot, true);
    sender.keep(VOLUME, keep);
    sender.close_epoch(VOLUME, epoch(2));
    sender.on_manifest(VOLUME, Ok(manifest(2, Some(1))));
    receiver.on_frame(one(&said(&mut sender).0))?;
    Ok(receiver)
}

fn asked(receiver: &mut Receiver) -> Vec<ReceiverEffect> {
    answered(receiver).1
}

#[test]
fn a_replica_deletes_what_nobody_needs_as_soon_as_an_epoch_has_begun_and_nothing_before() {
    let keep = ids([1, 7]);
    let mut receiver = begun(keep.clone()).unwrap();
    let begin = ReceiverEffect::Begin { key: key(2), manifest: manifest(2, Some(1)) };
    assert_eq!(asked(&mut receiver), [begin]);
    receiver.on_begun(VOLUME, Ok(Lba(0)));
    let prune = ReceiverEffect::Prune { key: key(2), volume: VOLUME, keep };
    assert_eq!(asked(&mut receiver), [prune]);

    let mut receiver = begun(ids([1])).unwrap();
    asked(&mut receiver);
    receiver.on_begun(VOLUME, Err(Reason::LowerFence));
    let left = asked(&mut receiver);
    assert!(left.iter().all(|effect| matches!(effect, ReceiverEffect::Refused { .. })), "{left:?}");
}

#[test]
fn what_finds_no_space_is_done_once_more_when_what_can_go_has_gone() {
    let keep = ids([1]);
    let prune = ReceiverEffect::Prune { key: key(2), volume: VOLUME, keep: keep.clone() };
    let begin = ReceiverEffect::Begin { key: key(2), manifest: manifest(2, Some(1)) };
    let mut receiver = begun(keep.clone()).unwrap();
    asked(&mut receiver);
    receiver.on_begun(VOLUME, Err(Reason::NoSpace));
    assert_eq!(asked(&mut receiver), [prune, begin]);
    receiver.on_begun(VOLUME, Err(Reason::NoSpace));
    assert_eq!(answered(&mut receiver).0.len(), 1, "a refusal");

    let mut receiver = begun(keep).unwrap();
    receiver.on_begun(VOLUME, Ok(Lba(8)));
    asked(&mut receiver);
    let end = end_of(2);
    receiver.on_frame(&end).unwrap();
    let commit = ReceiverEffect::Commit { key: key(2), manifest: manifest(2, Some(1)) };
    assert_eq!(asked(&mut receiver), std::slice::from_ref(&commit));
    receiver.on_committed(VOLUME, Err(Reason::NoSpace));
    let again = asked(&mut receiver);
    assert!(matches!(&again[..], [ReceiverEffect::Prune { .. }, last] if *last == commit), "{again:?}");
    receiver.on_committed(VOLUME, Ok(()));
    assert!(matches!(asked(&mut receiver)[..], [ReceiverEffect::Prune { .. }]));
}

/// The frame that says that all of an epoch was sent.
fn end_of(number: u64) -> Vec<u8> {
    let (mut sender, mut receiver) = (sender(), receiver());
    sender.on_connected(NOW);
    for _ in 0..2 {
        receiver.on_frame(one(&said(&mut sender).0)).unwrap();
        let local = Local { role: Role::Replica, newest: Some(key(1).snapshot), receiving: None };
        receiver.on_local(VOLUME, Ok(local));
        sender.on_frame(NOW, one(&answered(&mut receiver).0)).unwrap();
    }
    sender.on_found(VOLUME, key(1).snapshot, true);
    sender.close_epoch(VOLUME, epoch(number));
    sender.on_manifest(VOLUME, Ok(manifest(number, Some(1))));
    receiver.on_frame(one(&said(&mut sender).0)).unwrap();
    receiver.on_begun(VOLUME, Ok(Lba(8)));
    sender.on_frame(NOW, one(&answered(&mut receiver).0)).unwrap();
    one(&said(&mut sender).0).to_vec()
}
