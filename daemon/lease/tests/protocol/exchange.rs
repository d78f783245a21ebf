//! The exchange, step by step, and everything that must be refused, each by an error of its own.

use lease::envelope;
use lease::keyholder::{GrantError, GrantOrder, KeyholderEvent, KeyholderSession, KeyholderSessionParams};
use lease::limits::{
    CHALLENGES_OUTSTANDING_MAX, HANDSHAKE_MS_MAX, LEASE_MS_MAX, LEASE_MS_MIN, SILENCE_MS_MAX,
};
use lease::message::{LeaseLimits, RevokeCause, Scope, StateVerdict, WipeCause, WipeRecord, WipeStages};
use lease::node::{
    EvidenceInput, NodeEffect, NodeLease, NodeNote, NodeParams, NodeSession, NodeSessionParams, WipeReport,
};
use lease::{GrantRefusal, KeyFingerprint, LocalSigner, SessionError, SessionRefusal, Signer};
use units::{BootId, BootInstant, DomainId, Fence, GrantId, NodeId, VolumeEpoch, VolumeId};

use crate::support::*;

const G1: GrantId = GrantId([1; 16]);

fn report(cause: WipeCause, at: BootInstant) -> WipeReport {
    WipeReport {
        record: WipeRecord { cause, at, generation: 1 },
        stages: WipeStages::keys(5_000),
        more: false,
    }
}

fn refusal(effects: &[NodeEffect]) -> GrantRefusal {
    effects
        .iter()
        .find_map(|effect| match effect {
            NodeEffect::Note(NodeNote::GrantRefused { reason, .. } | NodeNote::KeyRefused { reason, .. }) => {
                Some(*reason)
            }
            _ => None,
        })
        .expect("a refusal")
}

#[test]
fn a_grant_is_admitted_under_the_deadline_that_counts_from_the_challenge() {
    let mut pair = Pair::established(ms(1_000));
    // The grant takes three seconds to arrive: the deadline does not move with it.
    let frame = pair.grant_frame(order(1, 8));
    let effects = pair.deliver(ms(4_000), &frame).unwrap();
    assert_eq!(effects[0], NodeEffect::SetDeadline(Some(ms(1_000 + LEASE_MS))), "before the key");
    let admit = admitted(&effects);
    let mut prk = [0; 32];
    envelope::open(&ENVELOPE_SECRET, &admit.info, &admit.aad, &admit.envelope, &mut prk).unwrap();
    assert_eq!(prk, PRK);

    let effects = pair.node.on_admitted(&mut pair.lease, ms(4_001), VOLUME, G1, Ok(StateVerdict::First));
    let receipt = pair.keyholder.on_frame(ms(4_002), &sent(&effects)[0]).unwrap();
    assert!(matches!(receipt, Some(KeyholderEvent::Receipt(receipt)) if receipt.fence == Fence(8)));
    assert_eq!(pair.lease.held().count(), 1);
}

#[test]
fn without_a_renewal_the_wipe_is_asked_for_at_the_deadline_and_not_before() {
    let mut pair = Pair::established(ms(1_000));
    pair.grant(ms(1_001), order(1, 8));
    let deadline = pair.lease.next_timeout().unwrap();
    assert_eq!(deadline, ms(1_000 + LEASE_MS));
    assert_eq!(pair.lease.on_time(BootInstant(deadline.0 - 1)), []);
    assert_eq!(pair.lease.on_time(deadline), [NodeEffect::Wipe(WipeCause::LeaseExpired)]);
    assert_eq!(pair.lease.on_time(deadline), [], "once");

    let wiped = report(WipeCause::LeaseExpired, deadline);
    let ended = pair.lease.on_wiped(wiped.record);
    let effects = pair.node.on_wiped(&pair.lease, &wiped, ended);
    assert_eq!(effects.last(), Some(&NodeEffect::Close));
    let event = pair.keyholder.on_frame(deadline, &sent(&effects)[0]).unwrap();
    assert!(matches!(event, Some(KeyholderEvent::Wiped(receipt)) if receipt.grants == [G1]));
}

#[test]
fn renewals_keep_a_key_and_count_from_their_challenge() {
    let mut pair = Pair::established(ms(0));
    pair.grant(ms(1), order(1, 8));
    for _ in 0..100 {
        let sent_at = pair.challenge();
        let frame = pair.renewal_frame(LEASE_MS, &[G1]);
        let arrival = sent_at.saturating_add_ms(900);
        assert_eq!(pair.lease.on_time(arrival), []);
        let effects = pair.deliver(arrival, &frame).unwrap();
        assert_eq!(effects, [NodeEffect::SetDeadline(Some(sent_at.saturating_add_ms(LEASE_MS)))]);
    }
}

#[test]
fn a_renewal_sent_twice_or_overtaken_changes_nothing() {
    let mut pair = Pair::established(ms(0));
    pair.grant(ms(1), order(1, 8));
    pair.challenge();
    let early = pair.renewal_frame(LEASE_MS, &[G1]);
    pair.challenge();
    let late = pair.renewal_frame(LEASE_MS, &[G1]);
    pair.deliver(ms(4_000), &late).unwrap();
    let deadline = pair.lease.deadline();
    for frame in [&early, &late] {
        assert_eq!(pair.deliver(ms(4_100), frame).unwrap(), [NodeEffect::Note(NodeNote::StaleRenewal)]);
    }
    assert_eq!(pair.lease.deadline(), deadline);
}

#[test]
fn a_renewal_that_arrives_after_the_deadline_finds_nothing_to_prolong() {
    let mut pair = Pair::established(ms(0));
    pair.grant(ms(1), order(1, 8));
    pair.challenge();
    let frame = pair.renewal_frame(LEASE_MS, &[G1]);
    let deadline = pair.lease.deadline().unwrap();
    assert_eq!(pair.deliver(deadline, &frame).unwrap(), [NodeEffect::Wipe(WipeCause::LeaseExpired)]);
    assert_eq!(pair.deliver(deadline, &frame).unwrap(), [NodeEffect::Note(NodeNote::DuringWipe)]);
    assert_eq!(pair.lease.deadline(), Some(deadline));
}

#[test]
fn a_challenge_pushed_out_by_newer_ones_is_not_answerable() {
    let mut pair = Pair::established(ms(0));
    pair.grant(ms(1), order(1, 8));
    pair.challenge();
    let frame = pair.renewal_frame(LEASE_MS, &[G1]);
    for _ in 0..CHALLENGES_OUTSTANDING_MAX {
        let request = unframe(&pair.keyholder.request_challenge().unwrap());
        assert_eq!(sent(&pair.deliver(ms(1_700), &request).unwrap()).len(), 1);
    }
    assert_eq!(pair.deliver(ms(1_800), &frame).unwrap(), [NodeEffect::Note(NodeNote::StaleRenewal)]);
}

#[test]
fn a_grant_that_a_renewal_does_not_name_is_dropped() {
    let mut pair = Pair::established(ms(0));
    pair.grant(ms(1), order(1, 8));
    pair.challenge();
    let frame = pair.renewal_frame(LEASE_MS, &[]);
    let effects = pair.deliver(ms(2_000), &frame).unwrap();
    let cause = WipeCause::NotRenewed;
    assert_eq!(effects[0], NodeEffect::DropVolume { volume: VOLUME, grant: G1, cause });
    assert_eq!(effects[1], NodeEffect::SetDeadline(Some(ms(LEASE_MS))), "not prolonged while it goes");
    let effects = pair.node.on_dropped(&mut pair.lease, VOLUME, G1, &report(cause, ms(2_001)));
    assert_eq!(effects[0], NodeEffect::SetDeadline(None));
    let event = pair.keyholder.on_frame(ms(2_002), &sent(&effects)[0]).unwrap();
    assert!(matches!(event, Some(KeyholderEvent::Wiped(receipt)) if receipt.scope == Scope::Volume(VOLUME)));
}

#[test]
fn a_renewal_outside_the_lease_limits_changes_nothing() {
    let mut pair = Pair::established(ms(0));
    pair.grant(ms(1), order(1, 8));
    for offered_ms in [0, LEASE_MS_MIN - 1, LEASE_MS_MAX + 1, u64::MAX] {
        pair.challenge();
        let frame = pair.renewal_frame(offered_ms, &[G1]);
        assert_eq!(
            pair.deliver(ms(2_000), &frame).unwrap(),
            [NodeEffect::Note(NodeNote::RenewalOutOfRange { offered_ms })]
        );
    }
    assert_eq!(pair.lease.deadline(), Some(ms(LEASE_MS)));
}

#[test]
fn every_bad_grant_is_refused_by_its_own_reason() {
    let cases = [
        (order(1, 7), GrantRefusal::OldFence { offered: Fence(7), highest: Fence(7) }),
        (order(1, 0), GrantRefusal::OldFence { offered: Fence(0), highest: Fence(7) }),
        (GrantOrder { volume: VolumeId([9; 16]), ..order(1, 8) }, GrantRefusal::WrongVolume),
        (GrantOrder { domain: DomainId([9; 16]), ..order(1, 8) }, GrantRefusal::WrongDomain),
        (GrantOrder { epoch: VolumeEpoch(2), ..order(1, 8) }, GrantRefusal::WrongDomain),
        (GrantOrder { check: [0; 16], ..order(1, 8) }, GrantRefusal::WrongCheck),
        (GrantOrder { lease_ms: LEASE_MS_MIN - 1, ..order(1, 8) }, out_of_range(LEASE_MS_MIN - 1)),
        (GrantOrder { lease_ms: LEASE_MS_MAX + 1, ..order(1, 8) }, out_of_range(LEASE_MS_MAX + 1)),
    ];
    for (order, expected) in cases {
        let mut pair = Pair::established(ms(0));
        let frame = pair.grant_frame(order);
        let effects = pair.deliver(ms(1), &frame).unwrap();
        assert_eq!(refusal(&effects), expected);
        assert!(!expected.to_string().is_empty());
        let event = pair.keyholder.on_frame(ms(2), &sent(&effects)[0]).unwrap();
        assert!(matches!(event, Some(KeyholderEvent::GrantRefused(refused)) if refused.reason == expected));
        assert_eq!(pair.lease.deadline(), None, "nothing is held");
    }
}

fn out_of_range(offered_ms: u64) -> GrantRefusal {
    GrantRefusal::LeaseOutOfRange { offered_ms, min_ms: LEASE_MS_MIN, max_ms: LEASE_MS_MAX }
}

#[test]
fn the_shortest_and_the_longest_lease_are_taken() {
    for lease_ms in [LEASE_MS_MIN, LEASE_MS_MAX] {
        let mut pair = Pair::established(ms(0));
        pair.grant(ms(1), GrantOrder { lease_ms, ..order(1, 8) });
        assert_eq!(pair.lease.deadline(), Some(ms(lease_ms)));
    }
}

#[test]
fn a_grant_received_twice_is_a_replay_and_its_refusal_does_not_hide_the_receipt() {
    let mut pair = Pair::established(ms(0));
    let frame = pair.grant_frame(order(1, 8));
    let first = pair.deliver(ms(1), &frame).unwrap();
    assert_eq!(admitted(&first).grant, G1);
    let again = pair.deliver(ms(2), &frame).unwrap();
    assert_eq!(refusal(&again), GrantRefusal::Replayed);
    assert_eq!(pair.keyholder.on_frame(ms(3), &sent(&again)[0]).unwrap(), None);
    let receipt = pair.node.on_admitted(&mut pair.lease, ms(4), VOLUME, G1, Ok(StateVerdict::First));
    assert!(matches!(
        pair.keyholder.on_frame(ms(5), &sent(&receipt)[0]).unwrap(),
        Some(KeyholderEvent::Receipt(_))
    ));
}

#[test]
fn a_grant_of_an_earlier_session_is_void_in_a_later_one() {
    let mut first = Pair::established(ms(0));
    let frame = first.grant_frame(order(1, 8));
    let other_session = SessionError::OtherSession { what: "grant" };

    let mut params = keyholder_params();
    params.challenge = [0xcd; 32];
    let mut second = Pair::new(ms(1), node_lease(), params);
    second.establish(ms(1)).unwrap();
    assert_eq!(second.deliver(ms(2), &frame), Err(other_session.clone()), "other challenge");

    let mut params = keyholder_params();
    params.exporter = [0x56; 32];
    let mut third = Pair::new(ms(1), node_lease(), params);
    third.establish(ms(1)).unwrap();
    assert_eq!(third.deliver(ms(2), &frame), Err(other_session.clone()), "other TLS connection");
    assert_eq!(other_session.refusal(), SessionRefusal::OtherSession);
}

#[test]
fn a_grant_that_took_longer_than_its_lease_is_expired() {
    let mut pair = Pair::established(ms(0));
    let frame = pair.grant_frame(order(1, 8));
    assert_eq!(refusal(&pair.deliver(ms(LEASE_MS), &frame).unwrap()), GrantRefusal::Expired);
}

#[test]
fn a_volume_that_is_held_takes_no_second_grant() {
    let mut pair = Pair::established(ms(0));
    pair.grant(ms(1), order(1, 8));
    let frame = pair.grant_frame(order(2, 9));
    assert_eq!(refusal(&pair.deliver(ms(2), &frame).unwrap()), GrantRefusal::AlreadyHeld { by: G1 });
}

#[test]
fn a_fence_seen_once_refuses_lower_ones_even_if_the_key_was_not_taken() {
    let mut pair = Pair::established(ms(0));
    let frame = pair.grant_frame(order(1, 20));
    pair.deliver(ms(1), &frame).unwrap();
    let effects = pair.node.on_admitted(&mut pair.lease, ms(2), VOLUME, G1, Err(GrantRefusal::WrongKey));
    assert_eq!(effects[0], NodeEffect::SetDeadline(None));
    let event = pair.keyholder.on_frame(ms(2), &sent(&effects)[0]).unwrap();
    assert!(matches!(event, Some(KeyholderEvent::GrantRefused(r)) if r.reason == GrantRefusal::WrongKey));
    pair.lease.set_volumes([present(VOLUME)]).unwrap();
    let frame = pair.grant_frame(order(2, 20));
    let expected = GrantRefusal::OldFence { offered: Fence(20), highest: Fence(20) };
    assert_eq!(refusal(&pair.deliver(ms(3), &frame).unwrap()), expected);
}

#[test]
fn several_grants_share_the_earliest_deadline() {
    let second = VolumeId([0x23; 16]);
    let mut lease = node_lease();
    lease.set_volumes([present(VOLUME), present(second)]).unwrap();
    let mut pair = Pair::new(ms(0), lease, keyholder_params());
    pair.establish(ms(0)).unwrap();
    pair.grant(ms(1), order(1, 8));
    pair.challenge();
    let frame = pair.grant_frame(GrantOrder { volume: second, ..order(2, 8) });
    let effects = pair.deliver(ms(2_000), &frame).unwrap();
    assert_eq!(effects[0], NodeEffect::SetDeadline(Some(ms(LEASE_MS))), "the first one's");
}

#[test]
fn a_node_without_a_pin_or_with_another_refuses_before_it_says_anything() {
    let mut lease = node_lease();
    lease.set_pin(None);
    let mut pair = Pair::new(ms(0), lease, keyholder_params());
    assert_eq!(pair.establish(ms(0)).unwrap_err(), SessionError::NotEnrolled);

    let foreign = LocalSigner::from_seed(&[1; 32]).public_key();
    let mut lease = node_lease();
    lease.set_pin(Some(foreign));
    let mut pair = Pair::new(ms(0), lease, keyholder_params());
    let error = pair.establish(ms(0)).unwrap_err();
    let (offered, pinned) = (KeyFingerprint::of(&grant_signer().public_key()), KeyFingerprint::of(&foreign));
    assert_eq!(error, SessionError::ForeignSigningKey { offered, pinned });

    let told = unframe(&NodeSession::refusal(&error));
    let event = pair.keyholder.on_frame(ms(1), &told).unwrap();
    let expected = SessionRefusal::ForeignSigningKey { pinned };
    assert_eq!(event, Some(KeyholderEvent::NodeRefused(expected)));
    assert!(expected.to_string().contains("enrol"), "the next step: {expected}");
}

#[test]
fn a_hello_signed_by_another_key_or_over_another_connection_is_refused() {
    // Says that it has the pinned key and signs with another.
    #[derive(Debug)]
    struct Liar(LocalSigner);
    impl Signer for Liar {
        fn public_key(&self) -> [u8; 32] {
            grant_signer().public_key()
        }
        fn sign(&self, digest: &[u8; 32]) -> Result<[u8; 64], lease::SignerGone> {
            self.0.sign(digest)
        }
    }
    let signer = std::sync::Arc::new(Liar(LocalSigner::from_seed(&[5; 32])));
    let mut pair = Pair::new(ms(0), node_lease(), KeyholderSessionParams { signer, ..keyholder_params() });
    assert_eq!(pair.establish(ms(0)).unwrap_err(), SessionError::BadSignature { what: "hello" });

    let mut pair = Pair::new(ms(0), node_lease(), keyholder_params());
    let params = NodeSessionParams { exporter: [0; 32], seed: [0; 32] };
    pair.node = NodeSession::new(&mut pair.lease, ms(0), params);
    assert_eq!(pair.establish(ms(0)).unwrap_err(), SessionError::OtherSession { what: "hello" });
}

#[test]
fn a_hello_for_another_node_is_refused() {
    let wanted = NodeId([0x12; 16]);
    let mut pair =
        Pair::new(ms(0), node_lease(), KeyholderSessionParams { node: wanted, ..keyholder_params() });
    assert_eq!(pair.establish(ms(0)).unwrap_err(), SessionError::WrongNode { wanted, reached: NODE });
}

#[test]
fn evidence_of_another_identity_key_is_refused_and_unpinned_evidence_gets_no_grant() {
    let other = LocalSigner::from_seed(&[3; 32]).public_key();
    let params = KeyholderSessionParams { pinned: Some(other), ..keyholder_params() };
    let mut pair = Pair::new(ms(0), node_lease(), params);
    assert!(matches!(pair.establish(ms(0)), Err(SessionError::ForeignIdentity { .. })));

    let mut pair =
        Pair::new(ms(0), node_lease(), KeyholderSessionParams { pinned: None, ..keyholder_params() });
    let KeyholderEvent::Evidence(evidence, None) = pair.establish(ms(0)).unwrap() else { panic!("evidence") };
    assert_eq!(evidence.identity_key, identity().public_key());
    let granted = pair.keyholder.grant(order(1, 8), |_| Ok::<_, std::convert::Infallible>(Vec::new()));
    assert!(matches!(granted, Err(GrantError::NotPinned)));
}

#[test]
fn a_flipped_bit_or_a_cut_anywhere_is_refused() {
    let mut flawless = Pair::established(ms(0));
    let frame = flawless.grant_frame(order(1, 8));
    // Every bit of header, transcript and signature, and every 13th of the body.
    let bits = (0..98 * 8).chain((98 * 8..frame.len() * 8).step_by(13));
    for bit in bits {
        let mut pair = Pair::established(ms(0));
        let mut altered = frame.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        let error = pair.deliver(ms(1), &altered).expect_err("an altered frame");
        let expected = matches!(
            error,
            SessionError::BadSignature { .. }
                | SessionError::OtherSession { .. }
                | SessionError::UnsupportedVersion { .. }
                | SessionError::UnexpectedKind { .. }
                | SessionError::OutOfOrder { .. }
                | SessionError::Malformed { .. }
        );
        assert!(expected, "bit {bit}: {error}");
        assert_eq!(pair.deliver(ms(2), &frame), Err(SessionError::Closed), "the session is over");
    }
    for cut in (0..frame.len()).step_by(17) {
        let mut pair = Pair::established(ms(0));
        assert!(pair.deliver(ms(1), &frame[..cut]).is_err(), "cut at {cut}");
    }
    assert_eq!(admitted(&flawless.deliver(ms(1), &frame).unwrap()).grant, G1);
}

#[test]
fn altered_evidence_is_refused_by_the_keyholder() {
    let mut pair = Pair::new(ms(0), node_lease(), keyholder_params());
    let hello = unframe(&pair.keyholder.start().unwrap());
    pair.deliver(ms(0), &hello).unwrap();
    let input = EvidenceInput { hygiene: "{}".to_owned(), envelope_key: envelope_key(), attests: false };
    let effects = pair.node.on_evidence(&mut pair.lease, ms(0), input).unwrap();
    let evidence = sent(&effects).remove(0);
    let fresh = || {
        let mut keyholder = KeyholderSession::new(ms(0), keyholder_params());
        keyholder.start().unwrap();
        keyholder
    };
    for bit in (0..98 * 8).chain((98 * 8..evidence.len() * 8).step_by(13)) {
        let mut altered = evidence.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(fresh().on_frame(ms(1), &altered).is_err(), "bit {bit}");
    }
    assert!(matches!(fresh().on_frame(ms(1), &evidence), Ok(Some(KeyholderEvent::Evidence(_, None)))));
}

#[test]
fn another_version_is_named_and_both_sides_understand_the_refusal() {
    let mut pair = Pair::new(ms(0), node_lease(), keyholder_params());
    let mut hello = unframe(&pair.keyholder.start().unwrap());
    hello[0] = 1;
    let error = pair.deliver(ms(0), &hello).unwrap_err();
    assert_eq!(error, SessionError::UnsupportedVersion { theirs: 1, ours: 6 });
    let event = pair.keyholder.on_frame(ms(0), &unframe(&NodeSession::refusal(&error))).unwrap();
    let reason = SessionRefusal::UnsupportedVersion { supported: 6 };
    assert_eq!(event, Some(KeyholderEvent::NodeRefused(reason)));
}

#[test]
fn messages_out_of_order_are_refused() {
    let mut pair = Pair::established(ms(0));
    let grant = pair.grant_frame(order(1, 8));
    let hello = unframe(&Pair::new(ms(0), node_lease(), keyholder_params()).keyholder.start().unwrap());

    let mut fresh = Pair::new(ms(0), node_lease(), keyholder_params());
    assert!(matches!(fresh.deliver(ms(0), &grant), Err(SessionError::OutOfOrder { got: "grant", .. })));

    let mut asked = Pair::new(ms(0), node_lease(), keyholder_params());
    asked.deliver(ms(0), &hello).unwrap();
    assert!(matches!(asked.deliver(ms(0), &grant), Err(SessionError::OutOfOrder { got: "grant", .. })));

    assert!(matches!(pair.deliver(ms(1), &hello), Err(SessionError::OutOfOrder { got: "hello", .. })));
}

#[test]
fn what_only_a_node_may_send_is_refused_by_a_node() {
    let mut pair = Pair::established(ms(0));
    let refused = unframe(&NodeSession::refusal(&SessionError::Closed));
    assert!(matches!(pair.deliver(ms(1), &refused), Err(SessionError::UnexpectedKind { .. })));
    // A node's own message, sent back to it: signed with the wrong key for its direction.
    let mut pair = Pair::established(ms(0));
    let effects = pair.grant(ms(1), order(1, 8));
    let receipt = sent(&effects).remove(0);
    assert_eq!(pair.deliver(ms(2), &receipt), Err(SessionError::BadSignature { what: "receipt" }));
}

#[test]
fn revoking_one_volume_drops_it_and_answers_with_a_receipt_held_or_not() {
    let mut pair = Pair::established(ms(0));
    pair.grant(ms(1), order(1, 8));
    let scope = Scope::Volume(VOLUME);
    let frame = unframe(&pair.keyholder.revoke(scope, RevokeCause::Revoked).unwrap());
    let effects = pair.deliver(ms(2), &frame).unwrap();
    let cause = WipeCause::Revoked;
    assert_eq!(effects, [NodeEffect::DropVolume { volume: VOLUME, grant: G1, cause }]);
    let effects = pair.node.on_dropped(&mut pair.lease, VOLUME, G1, &report(cause, ms(3)));
    let event = pair.keyholder.on_frame(ms(3), &sent(&effects)[0]).unwrap();
    assert!(matches!(event, Some(KeyholderEvent::Wiped(receipt)) if receipt.grants == [G1]));
    assert_eq!(pair.lease.deadline(), None);

    let effects = pair.deliver(ms(4), &frame).unwrap();
    let event = pair.keyholder.on_frame(ms(5), &sent(&effects)[0]).unwrap();
    assert!(matches!(event, Some(KeyholderEvent::Wiped(receipt)) if receipt.grants.is_empty()));
}

#[test]
fn a_volume_revoked_while_its_key_is_being_admitted_is_dropped_once_it_is_in() {
    let mut pair = Pair::established(ms(0));
    let frame = pair.grant_frame(order(1, 8));
    pair.deliver(ms(1), &frame).unwrap();
    let revoke = unframe(&pair.keyholder.revoke(Scope::Volume(VOLUME), RevokeCause::Revoked).unwrap());
    assert_eq!(pair.deliver(ms(2), &revoke).unwrap(), []);
    let effects = pair.node.on_admitted(&mut pair.lease, ms(3), VOLUME, G1, Ok(StateVerdict::First));
    let cause = WipeCause::Revoked;
    assert_eq!(effects, [NodeEffect::DropVolume { volume: VOLUME, grant: G1, cause }]);
    assert_eq!(pair.lease.held().count(), 0);
}

#[test]
fn lockdown_wipes_and_nothing_is_taken_in_the_same_session_afterwards() {
    let mut pair = Pair::established(ms(0));
    pair.grant(ms(1), order(1, 8));
    let second = pair.grant_frame(order(2, 9));
    let frame = unframe(&pair.keyholder.revoke(Scope::All, RevokeCause::Lockdown).unwrap());
    assert_eq!(pair.deliver(ms(2), &frame).unwrap(), [NodeEffect::Wipe(WipeCause::Lockdown)]);
    assert_eq!(pair.deliver(ms(2), &second).unwrap(), [NodeEffect::Note(NodeNote::DuringWipe)]);
    let wiped = report(WipeCause::Lockdown, ms(3));
    let ended = pair.lease.on_wiped(wiped.record);
    let effects = pair.node.on_wiped(&pair.lease, &wiped, ended);
    let event = pair.keyholder.on_frame(ms(3), &sent(&effects)[0]).unwrap();
    assert!(matches!(event, Some(KeyholderEvent::Wiped(receipt)) if receipt.scope == Scope::All));
    assert_eq!(pair.deliver(ms(4), &second), Err(SessionError::Closed));
    let granted = pair.keyholder.grant(order(3, 10), |_| Ok::<_, std::convert::Infallible>(Vec::new()));
    assert!(granted.is_err());
}

#[test]
fn a_key_that_arrives_in_the_keyring_after_a_wipe_is_dropped() {
    let mut pair = Pair::established(ms(0));
    let frame = pair.grant_frame(order(1, 8));
    pair.deliver(ms(1), &frame).unwrap();
    pair.lease.on_wiped(report(WipeCause::PowerLoss, ms(2)).record);
    let effects = pair.node.on_admitted(&mut pair.lease, ms(3), VOLUME, G1, Ok(StateVerdict::First));
    assert!(matches!(effects[..], [NodeEffect::DropVolume { volume: VOLUME, .. }]));
}

#[test]
fn a_session_that_has_not_heard_of_its_wipe_yet_still_sends_the_receipt() {
    let mut pair = Pair::established(ms(0));
    let request = unframe(&pair.keyholder.request_challenge().unwrap());
    let wiped = report(WipeCause::PowerLoss, ms(2));
    let ended = pair.lease.on_wiped(wiped.record);
    // What arrives, or falls due, between the wipe and the news of it ends nothing.
    assert_eq!(pair.deliver(ms(2), &request).unwrap(), [NodeEffect::Note(NodeNote::DuringWipe)]);
    assert_eq!(pair.node.next_timeout(&pair.lease), None);
    assert_eq!(pair.node.on_time(&mut pair.lease, ms(1_000_000)), []);
    let effects = pair.node.on_wiped(&pair.lease, &wiped, ended);
    let event = pair.keyholder.on_frame(ms(3), &sent(&effects)[0]).unwrap();
    assert!(matches!(event, Some(KeyholderEvent::Wiped(receipt)) if receipt.scope == Scope::All));
}

#[test]
fn news_of_a_wipe_from_before_does_not_end_a_session() {
    let mut pair = Pair::established(ms(0));
    let wiped = report(WipeCause::PowerLoss, ms(2));
    let ended = pair.lease.on_wiped(wiped.record);
    let mut pair = Pair::new(ms(3), pair.lease, keyholder_params());
    pair.establish(ms(3)).unwrap();
    assert_eq!(pair.node.on_wiped(&pair.lease, &wiped, ended), []);
    pair.grant(ms(4), order(1, 8));
}

#[test]
fn a_newer_session_takes_over_with_what_is_held_and_the_older_one_ends() {
    let mut pair = Pair::established(ms(0));
    pair.grant(ms(1), order(1, 8));
    let late = pair.renewal_frame(LEASE_MS, &[G1]);
    let Pair { lease, node: mut old, keyholder: _ } = pair;

    let params = KeyholderSessionParams { challenge: [0xce; 32], exporter: [0x57; 32], ..keyholder_params() };
    let mut pair = Pair::new(ms(1_000), lease, params);
    let KeyholderEvent::Evidence(evidence, None) = pair.establish(ms(1_000)).unwrap() else {
        panic!("evidence")
    };
    assert_eq!(evidence.held.iter().map(|held| held.grant).collect::<Vec<_>>(), [G1]);
    assert_eq!(old.on_frame(&mut pair.lease, ms(1_001), &late), Err(SessionError::Superseded));

    let frame = pair.renewal_frame(LEASE_MS, &[G1]);
    pair.deliver(ms(1_002), &frame).unwrap();
    assert_eq!(pair.lease.deadline(), Some(ms(1_000 + LEASE_MS)), "renewed by the new session");
}

#[test]
fn a_key_that_an_older_session_was_admitting_is_dropped_by_a_newer_one_and_evidence_waits_for_that() {
    let mut pair = Pair::established(ms(0));
    let frame = pair.grant_frame(order(1, 8));
    pair.deliver(ms(1), &frame).unwrap();
    let Pair { lease, node: mut old, keyholder: _ } = pair;
    let mut pair =
        Pair::new(ms(2), lease, KeyholderSessionParams { challenge: [1; 32], ..keyholder_params() });
    assert_eq!(pair.establish(ms(2)).err(), Some(SessionError::Unsettled), "it would be left out");
    let effects = old.on_admitted(&mut pair.lease, ms(3), VOLUME, G1, Ok(StateVerdict::First));
    let cause = WipeCause::NotRenewed;
    assert_eq!(effects, [NodeEffect::DropVolume { volume: VOLUME, grant: G1, cause }]);
    assert!(!pair.lease.is_settled(), "it is on its way out");
    assert_eq!(pair.lease.on_dropped(VOLUME, G1), None);
    let params = KeyholderSessionParams { challenge: [2; 32], ..keyholder_params() };
    let mut pair = Pair::new(ms(4), pair.lease, params);
    let KeyholderEvent::Evidence(evidence, None) = pair.establish(ms(4)).unwrap() else { panic!("evidence") };
    assert_eq!(evidence.held, []);
}

#[test]
fn an_unauthenticated_connection_supersedes_nothing() {
    let mut pair = Pair::established(ms(0));
    let params = NodeSessionParams { exporter: [9; 32], seed: [9; 32] };
    let mut intruder = NodeSession::new(&mut pair.lease, ms(1), params);
    assert!(intruder.on_frame(&mut pair.lease, ms(1), b"\x01\x01nonsense").is_err());
    pair.grant(ms(2), order(1, 8));
}

#[test]
fn silence_ends_a_session_and_keeps_the_key_until_its_deadline() {
    let mut pair = Pair::established(ms(0));
    pair.grant(ms(1), GrantOrder { lease_ms: LEASE_MS_MAX, ..order(1, 8) });
    let (at, effects) = loop {
        let now = pair.node.next_timeout(&pair.lease).unwrap();
        let effects = pair.node.on_time(&mut pair.lease, now);
        if !matches!(effects[..], [NodeEffect::Send(_)]) {
            break (now, effects);
        }
    };
    assert_eq!(at, ms(1 + SILENCE_MS_MAX));
    assert_eq!(effects[1], NodeEffect::Close);
    assert_eq!(pair.lease.deadline(), Some(ms(LEASE_MS_MAX)));
    assert!(!pair.lease.has_session());

    let timeout = pair.keyholder.next_timeout().unwrap();
    assert!(pair.keyholder.on_time(BootInstant(timeout.0 - 1)).is_ok());
    assert!(matches!(pair.keyholder.on_time(timeout), Err(SessionError::Silent { .. })));
}

#[test]
fn an_opening_exchange_that_stalls_is_given_up() {
    let mut pair = Pair::new(ms(0), node_lease(), keyholder_params());
    assert_eq!(pair.node.on_time(&mut pair.lease, ms(HANDSHAKE_MS_MAX - 1)), []);
    let effects = pair.node.on_time(&mut pair.lease, ms(HANDSHAKE_MS_MAX));
    assert_eq!(effects, [NodeEffect::Note(NodeNote::HandshakeTimeout), NodeEffect::Close]);
}

#[test]
fn the_last_wipe_that_latches_is_not_hidden_by_one_of_an_empty_arena() {
    let mut lease = node_lease();
    lease.on_wiped(report(WipeCause::Admin, ms(1)).record);
    lease.on_wiped(report(WipeCause::PowerLoss, ms(2)).record);
    assert_eq!(lease.last_wipe().map(|wipe| wipe.cause), Some(WipeCause::Admin));
    lease.on_wiped(report(WipeCause::Intrusion, ms(3)).record);
    assert_eq!(lease.last_wipe().map(|wipe| wipe.cause), Some(WipeCause::Intrusion));
}

#[test]
fn the_node_refuses_leases_outside_its_own_limits() {
    let limits = LeaseLimits { min_ms: 2_000, max_ms: 4_000 };
    let mut narrow = NodeLease::new(NodeParams {
        node: NODE,
        boot: BootId([0; 16]),
        image: None,
        identity: identity(),
        limits,
        pin: Some(grant_signer().public_key()),
    });
    narrow.set_volumes([present(VOLUME)]).unwrap();
    let mut pair = Pair::new(ms(0), narrow, keyholder_params());
    pair.establish(ms(0)).unwrap();
    let frame = pair.grant_frame(order(1, 8));
    let expected = GrantRefusal::LeaseOutOfRange { offered_ms: LEASE_MS, min_ms: 2_000, max_ms: 4_000 };
    assert_eq!(refusal(&pair.deliver(ms(1), &frame).unwrap()), expected);
}

#[test]
fn a_wipe_is_told_at_its_first_stage_and_again_at_its_last_which_ends_the_session() {
    let mut pair = Pair::established(ms(0));
    let wiped = WipeReport { more: true, ..report(WipeCause::PowerLoss, ms(2)) };
    let ended = pair.lease.on_wiped(wiped.record);
    let request = unframe(&pair.keyholder.request_challenge().unwrap());
    let effects = pair.node.on_wiped(&pair.lease, &wiped, ended.clone());
    assert!(!effects.contains(&NodeEffect::Close), "{effects:?}");
    let Some(KeyholderEvent::Wiped(first)) = pair.keyholder.on_frame(ms(2), &sent(&effects)[0]).unwrap()
    else {
        panic!("a receipt")
    };
    assert_eq!((first.stages.reached(), first.more), (1, true));
    assert_eq!(pair.keyholder.request_challenge(), Err(SessionError::Closed), "nothing more is asked for");
    // What was on its way is not acted upon.
    assert!(sent(&pair.deliver(ms(3), &request).unwrap()).is_empty());

    let stages = WipeStages { threads_ns: Some(6_000), memory_ns: Some(7_000), ..wiped.stages };
    let last = WipeReport { stages, more: false, ..wiped };
    let effects = pair.node.on_wiped(&pair.lease, &last, ended);
    assert_eq!(effects.last(), Some(&NodeEffect::Close));
    let Some(KeyholderEvent::Wiped(second)) = pair.keyholder.on_frame(ms(3), &sent(&effects)[0]).unwrap()
    else {
        panic!("a receipt")
    };
    assert_eq!((second.record, second.stages.reached(), second.more), (first.record, 3, false));
    let incomplete = WipeStages { threads_ns: None, ..stages };
    assert_eq!(incomplete.reached(), 1, "a stage does not count before the one below it");
}
