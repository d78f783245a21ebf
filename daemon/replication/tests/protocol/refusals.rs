//! Forged, replayed, reordered and cross-volume frames, from a peer that is let in for one volume.

use replication::{
    Allowed, Halt, Local, Reason, Receiver, ReceiverEffect, ReceiverParams, Role, SenderEffect, SessionError,
    State,
};
use units::{Fence, Lba, NodeId, VolumeId};

use crate::support::{
    GENERATION, NOW, PRIMARY, REPLICA, SESSION, VOLUME, answered, epoch, key, manifest, one, receiver, said,
    sender,
};

const OTHER: VolumeId = VolumeId([0x99; 16]);

/// A session up to where the volume stands, and the frames that the sender said.
fn standing() -> (replication::Sender, Receiver, Vec<Vec<u8>>) {
    let (mut sender, mut receiver) = (sender(), receiver());
    let mut frames = Vec::new();
    sender.on_connected(NOW);
    for _ in 0..2 {
        let (said, _) = said(&mut sender);
        receiver.on_frame(one(&said)).unwrap();
        frames.extend(said);
        receiver.on_local(VOLUME, Ok(Local { role: Role::Absent, newest: None, receiving: None }));
        let (answer, _) = answered(&mut receiver);
        sender.on_frame(NOW, one(&answer)).unwrap();
    }
    (sender, receiver, frames)
}

fn audited(receiver: &mut Receiver) -> Vec<SessionError> {
    let (_, rest) = answered(receiver);
    let audits = rest.into_iter().filter_map(|effect| match effect {
        ReceiverEffect::AuditSession(error) => Some(error),
        _ => None,
    });
    audits.collect()
}

#[test]
fn a_frame_of_another_session_a_second_time_or_before_its_turn_ends_the_session_and_is_audited() {
    let (_, mut receiver, frames) = standing();
    assert_eq!(receiver.on_frame(one(&frames[1..])), Err(SessionError::Repeated));
    assert_eq!(audited(&mut receiver), [SessionError::Repeated]);
    // And nothing more is taken.
    assert!(receiver.on_frame(one(&frames[1..])).is_err());

    let (mut sender, mut receiver, _) = standing();
    sender.close_epoch(VOLUME, epoch(1));
    sender.on_manifest(VOLUME, Ok(manifest(1, None)));
    let (begin, _) = said(&mut sender);
    let params = ReceiverParams { node: REPLICA, peer: PRIMARY, allowed: Allowed::Any, session: SESSION + 1 };
    let mut later = Receiver::new(params);
    later.on_frame(one(&frames[..1])).unwrap();
    assert_eq!(later.on_frame(one(&begin)), Err(SessionError::Replayed));
    assert_eq!(audited(&mut later), [SessionError::Replayed]);

    // The frame before it did not come.
    receiver.on_frame(one(&begin)).unwrap();
    receiver.on_begun(VOLUME, Ok(Lba(0)));
    sender.on_frame(NOW, one(&answered(&mut receiver).0)).unwrap();
    let portion = replication::Portion { bytes: vec![1], next: Lba(8) };
    said(&mut sender);
    sender.on_portion(VOLUME, key(1).snapshot, Lba(0), Ok(portion));
    let (frames, _) = said(&mut sender);
    assert_eq!(receiver.on_frame(one(&frames[1..])), Err(SessionError::Reordered));
    assert_eq!(audited(&mut receiver), [SessionError::Reordered]);
}

#[test]
fn a_volume_that_the_peer_may_not_send_is_refused_and_audited_and_others_go_on() {
    let (mut sender, mut receiver, _) = standing();
    sender.set_writer(OTHER, Fence(1), GENERATION);
    receiver.on_frame(one(&said(&mut sender).0)).unwrap();
    let (refused, rest) = answered(&mut receiver);
    let expected = ReceiverEffect::Refused { volume: OTHER, reason: Reason::NotAuthorised };
    assert_eq!(rest, [expected]);
    sender.on_frame(NOW, one(&refused)).unwrap();
    let (_, rest) = said(&mut sender);
    let why = Halt::Refused(Reason::NotAuthorised);
    assert_eq!(rest, [SenderEffect::Stopped { volume: OTHER, why }]);
    assert_eq!(sender.progress(OTHER).unwrap().state, State::Stopped(why));
    assert_eq!(sender.progress(VOLUME).unwrap().state, State::Lacking);
}

#[test]
fn an_epoch_of_a_volume_that_was_not_offered_or_under_a_false_name_ends_the_session() {
    let begin = |manifest| {
        let (mut sender, receiver, _) = standing();
        sender.close_epoch(VOLUME, epoch(1));
        sender.on_manifest(VOLUME, Ok(manifest));
        (said(&mut sender).0, receiver)
    };
    let cross = replication::Manifest { volume: OTHER, ..manifest(1, None) };
    let (frames, mut receiver) = begin(cross);
    assert_eq!(receiver.on_frame(one(&frames)), Err(SessionError::NotBegun(OTHER)));
    assert_eq!(audited(&mut receiver), [SessionError::NotBegun(OTHER)]);
    // A number that is not the one in the snapshot's name.
    let (mut sender, mut receiver, _) = standing();
    let mut lies = epoch(1);
    lies.key.number = 2;
    sender.close_epoch(VOLUME, lies);
    sender.on_manifest(VOLUME, Ok(manifest(1, None)));
    assert_eq!(receiver.on_frame(one(&said(&mut sender).0)), Err(SessionError::Malformed));
}

#[test]
fn whoever_is_not_whom_the_certificate_names_is_shown_out() {
    let mut liar =
        replication::Sender::new(NodeId([1; 16]), REPLICA, replication::SenderLimits::default(), NOW);
    liar.on_connected(NOW);
    let mut receiver = receiver();
    assert_eq!(receiver.on_frame(one(&said(&mut liar).0)), Err(SessionError::WrongNode));
    assert_eq!(audited(&mut receiver), [SessionError::WrongNode]);
}

#[test]
fn a_superseded_writer_is_refused_and_audited_and_asks_again_later() {
    let (mut sender, mut receiver, _) = standing();
    sender.close_epoch(VOLUME, epoch(1));
    sender.on_manifest(VOLUME, Ok(manifest(1, None)));
    receiver.on_frame(one(&said(&mut sender).0)).unwrap();
    receiver.on_begun(VOLUME, Err(Reason::LowerFence));
    let (refused, rest) = answered(&mut receiver);
    let expected = ReceiverEffect::Refused { volume: VOLUME, reason: Reason::LowerFence };
    assert_eq!(rest.last(), Some(&expected));
    sender.on_frame(NOW, one(&refused)).unwrap();
    assert_eq!(sender.progress(VOLUME).unwrap().state, State::Stopped(Halt::Refused(Reason::LowerFence)));
    assert_eq!(said(&mut sender).0, Vec::<Vec<u8>>::new());
    sender.on_time(NOW.saturating_add_ms(4_999)).unwrap();
    assert!(said(&mut sender).0.iter().all(|frame| frame[5] == replication::Kind::Alive.byte()));
    sender.on_time(NOW.saturating_add_ms(5_001)).unwrap();
    assert!(said(&mut sender).0.iter().any(|frame| frame[5] == replication::Kind::Offer.byte()));
}

#[test]
fn an_epoch_that_ends_before_all_of_it_came_is_not_made_visible() {
    let (mut sender, mut receiver, _) = standing();
    sender.close_epoch(VOLUME, epoch(1));
    sender.on_manifest(VOLUME, Ok(manifest(1, None)));
    receiver.on_frame(one(&said(&mut sender).0)).unwrap();
    receiver.on_begun(VOLUME, Ok(Lba(0)));
    sender.on_frame(NOW, one(&answered(&mut receiver).0)).unwrap();
    said(&mut sender);
    let portion = replication::Portion { bytes: vec![1], next: Lba(8) };
    sender.on_portion(VOLUME, key(1).snapshot, Lba(0), Ok(portion));
    for frame in &said(&mut sender).0 {
        receiver.on_frame(one(std::slice::from_ref(frame))).unwrap();
    }
    answered(&mut receiver);
    // The disk says that only half of it is there.
    receiver.on_took(VOLUME, Ok(Lba(4)));
    let (_, rest) = answered(&mut receiver);
    let expected = ReceiverEffect::Refused { volume: VOLUME, reason: Reason::Damaged };
    assert_eq!(rest, [expected]);
}
