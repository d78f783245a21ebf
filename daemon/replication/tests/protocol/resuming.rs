//! What could not be read or was refused is sent later, from where it stopped; and what is the newest is sent, come what may.

use replication::{
    Halt, Local, Portion, Reason, Receiver, ReceiverEffect, Role, Sender, SenderEffect, State, Unreadable,
};
use units::{BootInstant, Lba, SectorCount};

use crate::support::{NOW, VOLUME, answered, epoch, key, manifest, one, receiver, said, sender};

/// A sender whose peer has epoch 1, and a clock.
struct Session {
    sender: Sender,
    receiver: Receiver,
    now: BootInstant,
    has: u64,
    receiving: Option<u64>,
}

impl Session {
    fn up_to_date() -> Self {
        let (mut sender, receiver) = (sender(), receiver());
        sender.close_epoch(VOLUME, epoch(1));
        sender.on_connected(NOW);
        let mut session = Self { sender, receiver, now: NOW, has: 1, receiving: None };
        session.talk();
        session.sender.on_found(VOLUME, key(1).snapshot, true);
        assert_eq!(session.state(), State::UpToDate);
        session.talk();
        session
    }

    fn state(&self) -> State {
        self.sender.progress(VOLUME).unwrap().state
    }

    /// Until neither says anything; what the sender asks of its shell meanwhile.
    fn talk(&mut self) -> Vec<SenderEffect> {
        let mut asked = Vec::new();
        loop {
            let (frames, effects) = said(&mut self.sender);
            asked.extend(effects);
            if frames.is_empty() {
                return asked;
            }
            for frame in frames {
                self.receiver.on_frame(&frame[replication::PREFIX_BYTES..]).unwrap();
                let (answers, wanted) = answered(&mut self.receiver);
                self.hear(&answers);
                if wanted.iter().any(|effect| matches!(effect, ReceiverEffect::Look { .. })) {
                    let of = |number: u64| key(number).snapshot;
                    let newest = Some(of(self.has));
                    let receiving = self.receiving.map(of);
                    self.receiver.on_local(VOLUME, Ok(Local { role: Role::Replica, newest, receiving }));
                    let (answers, _) = answered(&mut self.receiver);
                    self.hear(&answers);
                }
            }
        }
    }

    fn hear(&mut self, answers: &[Vec<u8>]) {
        for answer in answers {
            self.sender.on_frame(self.now, &answer[replication::PREFIX_BYTES..]).unwrap();
        }
    }

    /// The rest is over, and the volume is offered again.
    fn rested(&mut self) -> Vec<SenderEffect> {
        self.now = self.now.saturating_add_ms(6_000);
        self.sender.on_time(self.now).unwrap();
        let asked = self.talk();
        let found = SenderEffect::Find { volume: VOLUME, snapshot: key(self.has).snapshot };
        assert!(asked.contains(&found), "{asked:?}");
        self.sender.on_found(VOLUME, key(self.has).snapshot, true);
        self.talk()
    }

    /// The epoch begins, at a sector.
    fn begin(&mut self, number: u64, at: u64) {
        let manifest = replication::Manifest { sectors: SectorCount(24), ..manifest(number, Some(1)) };
        self.sender.on_manifest(VOLUME, Ok(manifest));
        self.receiving = Some(number);
        let begun = said(&mut self.sender).0;
        self.receiver.on_frame(one(&begun)).unwrap();
        self.receiver.on_begun(VOLUME, Ok(Lba(at)));
        let (answers, asked) = answered(&mut self.receiver);
        let begins = |effect: &ReceiverEffect| matches!(effect, ReceiverEffect::Begin { key: begun, .. } if *begun == key(number));
        assert!(asked.iter().any(begins), "{asked:?}");
        self.hear(&answers);
    }
}

fn reads(asked: &[SenderEffect], number: u64) -> bool {
    let manifest = SenderEffect::ReadManifest {
        volume: VOLUME,
        snapshot: key(number).snapshot,
        since: Some(key(1).snapshot),
    };
    asked.contains(&manifest)
}

#[test]
fn the_newest_epoch_is_read_again_where_it_could_not_be() {
    let mut session = Session::up_to_date();
    session.sender.close_epoch(VOLUME, epoch(2));
    assert!(reads(&session.talk(), 2));
    session.sender.on_manifest(VOLUME, Err(Unreadable::Failed));
    assert_eq!(session.state(), State::Stopped(Halt::Unreadable(Unreadable::Failed)));
    let asked = session.rested();
    assert!(reads(&asked, 2), "{asked:?}");
}

#[test]
fn an_epoch_that_a_peer_refused_comes_again() {
    for reason in
        [Reason::Diverged, Reason::NotAReplica, Reason::NotAuthorised, Reason::NoSpace, Reason::Failed]
    {
        let mut session = Session::up_to_date();
        session.sender.close_epoch(VOLUME, epoch(2));
        session.talk();
        session.sender.on_manifest(VOLUME, Ok(manifest(2, Some(1))));
        session.receiver.on_frame(one(&said(&mut session.sender).0)).unwrap();
        session.receiver.on_begun(VOLUME, Err(reason));
        // Of space it asks twice.
        session.receiver.on_begun(VOLUME, Err(reason));
        let (answers, _) = answered(&mut session.receiver);
        session.hear(&answers);
        assert_eq!(session.state(), State::Stopped(Halt::Refused(reason)));
        let asked = session.rested();
        assert!(reads(&asked, 2), "{reason:?}: {asked:?}");
    }
}

#[test]
fn a_damaged_sector_costs_nothing_of_what_arrived_and_is_told_until_it_is_healed() {
    let mut session = Session::up_to_date();
    session.sender.close_epoch(VOLUME, epoch(2));
    session.talk();
    let damaged = Halt::Unreadable(Unreadable::Damaged);
    session.begin(2, 0);
    for attempt in 0..2 {
        let (_, asked) = said(&mut session.sender);
        let from = Lba(if attempt == 0 { 0 } else { 12 });
        assert!(matches!(asked[..], [SenderEffect::ReadPortion { from: of, .. }] if of == from), "{asked:?}");
        if attempt == 0 {
            let portion = Portion { bytes: vec![7; 10], next: Lba(12) };
            session.sender.on_portion(VOLUME, key(2).snapshot, Lba(0), Ok(portion));
            let (frames, asked) = said(&mut session.sender);
            session.receiver.on_frame(one(&frames)).unwrap();
            session.receiver.on_took(VOLUME, Ok(Lba(12)));
            assert!(matches!(asked[..], [SenderEffect::ReadPortion { from: Lba(12), .. }]), "{asked:?}");
        }
        session.sender.on_portion(VOLUME, key(2).snapshot, Lba(12), Err(Unreadable::Damaged));
        assert_eq!(session.state(), State::Stopped(damaged));
        // Said once.
        let (_, told) = said(&mut session.sender);
        assert_eq!(told.is_empty(), attempt > 0, "{told:?}");
        let (answers, _) = answered(&mut session.receiver);
        session.hear(&answers);
        let asked = session.rested();
        assert!(reads(&asked, 2), "{asked:?}");
        // The replica still has what arrived.
        session.begin(2, 12);
        assert_eq!(session.sender.progress(VOLUME).unwrap().trouble, Some(damaged));
    }
    let (_, asked) = said(&mut session.sender);
    assert!(matches!(asked[..], [SenderEffect::ReadPortion { from: Lba(12), .. }]), "{asked:?}");
    let portion = Portion { bytes: vec![7; 10], next: Lba(24) };
    session.sender.on_portion(VOLUME, key(2).snapshot, Lba(12), Ok(portion));
    for frame in said(&mut session.sender).0 {
        session.receiver.on_frame(one(&[frame])).unwrap();
    }
    session.receiver.on_took(VOLUME, Ok(Lba(24)));
    session.receiver.on_committed(VOLUME, Ok(()));
    let (answers, _) = answered(&mut session.receiver);
    session.hear(&answers);
    let progress = session.sender.progress(VOLUME).unwrap();
    assert_eq!((progress.state, progress.trouble), (State::UpToDate, None));
}

#[test]
fn in_the_place_of_an_epoch_that_can_never_be_sent_another_is_wanted() {
    let mut session = Session::up_to_date();
    session.sender.close_epoch(VOLUME, epoch(2));
    session.talk();
    session.sender.on_manifest(VOLUME, Err(Unreadable::Gone));
    session.rested();
    assert_eq!(session.state(), State::Lacking);

    let mut session = Session::up_to_date();
    session.sender.close_epoch(VOLUME, epoch(2));
    session.talk();
    session.sender.on_manifest(VOLUME, Ok(manifest(2, Some(1))));
    session.receiver.on_frame(one(&said(&mut session.sender).0)).unwrap();
    session.receiver.on_begun(VOLUME, Err(Reason::NumberUsed));
    let (answers, _) = answered(&mut session.receiver);
    session.hear(&answers);
    session.rested();
    assert_eq!(session.state(), State::Lacking);
    assert!(session.sender.progress(VOLUME).unwrap().trouble.is_some());
    session.sender.close_epoch(VOLUME, epoch(3));
    assert!(reads(&session.talk(), 3));
}
