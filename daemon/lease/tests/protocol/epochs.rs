//! Several epochs of one volume: keys that go with a grant, a new one in the middle of a lease, and what is left under which.

use lease::keyholder::{EpochOrder, GrantError, GrantOrder, KeyholderEvent};
use lease::limits::EPOCHS_MAX;
use lease::message::{EpochTaken, EpochsInUse, RevokeCause, Scope, VolumePresent};
use lease::node::{EpochToAdmit, NodeEffect, NodeNote};
use lease::{GrantRefusal, envelope};
use units::{DomainId, GrantId, VolumeEpoch, VolumeId};

use crate::support::*;

const G1: GrantId = GrantId([1; 16]);
const NEW: VolumeEpoch = VolumeEpoch(2);

/// A pair with the volume's grant in force.
fn held() -> Pair {
    let mut pair = Pair::established(ms(0));
    pair.grant(ms(1), order(1, 8));
    pair
}

fn given(effects: &[NodeEffect]) -> &EpochToAdmit {
    match effects {
        [NodeEffect::AdmitEpoch(given)] => given,
        other => panic!("no epoch to admit: {other:?}"),
    }
}

fn taken(pair: &mut Pair, effects: &[NodeEffect]) -> EpochTaken {
    match pair.keyholder.on_frame(ms(3), &sent(effects)[0]).unwrap() {
        Some(KeyholderEvent::EpochTaken(taken)) => taken,
        other => panic!("no answer: {other:?}"),
    }
}

fn opens(info: &[u8], aad: &[u8], sealed: &[u8]) -> bool {
    let mut prk = [0; 32];
    envelope::open(&ENVELOPE_SECRET, info, aad, sealed, &mut prk).is_ok() && prk == PRK
}

#[test]
fn a_new_epoch_comes_under_the_lease_that_runs_and_is_answered() {
    let mut pair = held();
    let frame = pair.epoch_frame(epoch_order(1, 8, 2));
    let deadline = pair.lease.deadline();
    let effects = pair.deliver(ms(2), &frame).unwrap();
    let new = given(&effects);
    assert_eq!((new.grant, new.volume, new.domain, new.key.epoch), (G1, VOLUME, DOMAIN, NEW));
    assert!(opens(&new.info, &new.key.aad, &new.key.envelope));
    let effects = pair.node.on_epoch_admitted(&pair.lease, (VOLUME, G1, NEW), Ok(()));
    assert_eq!(
        taken(&mut pair, &effects),
        EpochTaken { grant: G1, volume: VOLUME, epoch: NEW, result: Ok(()) }
    );
    assert_eq!(pair.lease.deadline(), deadline, "it has no lease of its own");

    // The answer may be lost: said again it is taken again.
    pair.lease.set_volumes([VolumePresent { epoch: NEW, check: [0x66; 16], ..present(VOLUME) }]).unwrap();
    let again = pair.epoch_frame(epoch_order(1, 8, 2));
    assert_eq!(given(&pair.deliver(ms(4), &again).unwrap()).key.epoch, NEW);
    let effects = pair.node.on_epoch_admitted(&pair.lease, (VOLUME, G1, NEW), Err(GrantRefusal::NoSpace));
    assert!(matches!(effects[0], NodeEffect::Note(NodeNote::KeyRefused { .. })));
    assert_eq!(pair.lease.held().count(), 1, "what is in force stays");
}

#[test]
fn an_epoch_that_does_not_fit_what_is_in_force_is_refused_and_changes_nothing() {
    let of = epoch_order(1, 8, 2);
    let refusals = [
        (EpochOrder { grant: GrantId([9; 16]), ..of }, GrantRefusal::NotHeld),
        (EpochOrder { volume: VolumeId([9; 16]), ..of }, GrantRefusal::WrongVolume),
        (EpochOrder { domain: DomainId([9; 16]), ..of }, GrantRefusal::WrongDomain),
        (EpochOrder { epoch: VolumeEpoch(0), ..of }, GrantRefusal::WrongDomain),
        (EpochOrder { epoch: EPOCH, ..of }, GrantRefusal::WrongCheck),
    ];
    for (order, reason) in refusals {
        let mut pair = held();
        let frame = pair.epoch_frame(order);
        let effects = pair.deliver(ms(2), &frame).unwrap();
        assert_eq!(taken(&mut pair, &effects).result, Err(reason), "{order:?}");
        assert_eq!(pair.lease.held().count(), 1);
    }
    // Nothing is in force, or not any more.
    let mut pair = Pair::established(ms(0));
    let frame = pair.epoch_frame(of);
    let effects = pair.deliver(ms(2), &frame).unwrap();
    assert_eq!(taken(&mut pair, &effects).result, Err(GrantRefusal::NotHeld));
    pair.keyholder.revoke(Scope::All, RevokeCause::Revoked).unwrap();
    let refused = pair.keyholder.epoch_key(of, |_| Ok::<_, std::convert::Infallible>(Vec::new()));
    assert!(matches!(refused, Err(GrantError::Revoked)));
}

#[test]
fn a_grant_brings_the_keys_of_all_epochs_each_bound_to_its_own() {
    let mut pair = Pair::established(ms(0));
    let further = vec![(VolumeEpoch(7), [7; 16]), (NEW, [2; 16])];
    let frame = pair.grant_frame(GrantOrder { further, ..order(1, 8) });
    let effects = pair.deliver(ms(1), &frame).unwrap();
    let admit = admitted(&effects);
    assert!(opens(&admit.info, &admit.aad, &admit.envelope));
    let [seventh, second] = &admit.further[..] else { panic!("{:?}", admit.further) };
    assert_eq!((seventh.epoch, seventh.check, second.epoch), (VolumeEpoch(7), [7; 16], NEW));
    assert!(opens(&admit.info, &seventh.aad, &seventh.envelope));
    assert!(opens(&admit.info, &second.aad, &second.envelope));
    assert!(!opens(&admit.info, &second.aad, &seventh.envelope), "of another epoch");

    // As many as a node may hold, and no more.
    let many = |count: usize| (0..count).map(|nth| (VolumeEpoch(10 + u32::try_from(nth).unwrap()), [0; 16]));
    for (count, fits) in [(EPOCHS_MAX - 1, true), (EPOCHS_MAX, false)] {
        let mut pair = Pair::established(ms(0));
        let sealed = |_: &lease::keyholder::SealRequest<'_>| Ok::<_, std::convert::Infallible>(vec![1]);
        let order = GrantOrder { further: many(count).collect(), ..order(1, 8) };
        match pair.keyholder.grant(order, sealed) {
            Ok(frame) => assert_eq!(pair.deliver(ms(1), &unframe(&frame)).is_ok(), fits),
            Err(error) => assert!(!fits, "{error}"),
        }
    }
}

#[test]
fn what_is_left_under_which_epoch_is_told_with_every_challenge() {
    let mut pair = held();
    let in_use = EpochsInUse { volume: VOLUME, epochs: vec![EPOCH, NEW] };
    pair.lease.set_epochs(vec![in_use.clone()], vec![VOLUME]);
    let due = pair.node.next_timeout(&pair.lease).unwrap();
    let effects = pair.node.on_time(&mut pair.lease, due);
    match pair.keyholder.on_frame(due, &sent(&effects)[0]).unwrap() {
        Some(KeyholderEvent::Challenged(_, told)) => {
            assert_eq!((told.epochs, told.states, told.due), (vec![in_use], vec![STATE], vec![VOLUME]));
        }
        other => panic!("no challenge: {other:?}"),
    }
}
