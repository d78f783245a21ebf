//! What a TPM says travels with the evidence it is about, and for that session only.

use lease::SessionError;
use lease::keyholder::{KeyholderEvent, KeyholderSessionParams};
use lease::limits::{EVENT_LOG_BYTES_MAX, TPM_BYTES_MAX, WIPES_MAX};
use lease::message::{
    Attestation, Credential, CredentialOpened, RevokeCause, Scope, TpmStatement, WipeCause, WipeRecord,
    WipeStages,
};
use lease::node::{EvidenceInput, NodeEffect, WipeReport};

use crate::support::{LEASE_MS, Pair, envelope_key, keyholder_params, ms, node_lease, sent, unframe};

fn statement() -> TpmStatement {
    TpmStatement {
        endorsement_key: vec![1; TPM_BYTES_MAX],
        certificate: Vec::new(),
        attestation_key: vec![3; 9],
        quote: vec![4; 9],
        signature: vec![5; 9],
        registers: vec![[6; 32]; 8],
        wipes_began_at: [0; 32],
        wipes: Vec::new(),
        event_log: vec![8; EVENT_LOG_BYTES_MAX],
    }
}

/// A session whose evidence has arrived and whose statement has not, and the digest that the TPM was asked to sign.
fn announced(params: KeyholderSessionParams) -> (Pair, [u8; 32]) {
    let mut pair = Pair::new(ms(0), node_lease(), params);
    let hello = unframe(&pair.keyholder.start().unwrap());
    pair.deliver(ms(0), &hello).unwrap();
    let input = EvidenceInput { hygiene: "{}".to_owned(), envelope_key: envelope_key(), attests: true };
    let effects = pair.node.on_evidence(&mut pair.lease, ms(0), input).unwrap();
    let [NodeEffect::Send(_), NodeEffect::NeedAttestation(digest)] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(
        pair.keyholder.on_frame(ms(0), &sent(&effects)[0]),
        Ok(None),
        "evidence waits for the statement"
    );
    (pair, *digest)
}

fn attest(pair: &mut Pair, attestation: &Attestation) -> Result<Option<KeyholderEvent>, SessionError> {
    let effects = pair.node.on_attestation(&pair.lease, attestation);
    pair.keyholder.on_frame(ms(1), &sent(&effects)[0])
}

#[test]
fn evidence_is_reported_with_the_statement_that_it_announced() {
    let (mut pair, digest) = announced(keyholder_params());
    assert_eq!(pair.keyholder.quote_digest(), None);
    let attestation = Attestation { statement: Ok(statement()) };
    let event = attest(&mut pair, &attestation).unwrap();
    let Some(KeyholderEvent::Evidence(evidence, Some(said))) = event else { panic!("{event:?}") };
    assert!(evidence.attests && *said == attestation);
    assert_eq!(pair.keyholder.quote_digest(), Some(digest), "both ends ask for the same");
}

#[test]
fn nothing_is_granted_before_the_statement() {
    let (mut pair, _) = announced(keyholder_params());
    assert!(!pair.keyholder.is_established());
    let sealed = |_: &lease::keyholder::SealRequest<'_>| Ok::<_, std::convert::Infallible>(vec![0; 8]);
    assert!(pair.keyholder.grant(crate::support::order(1, 8), sealed).is_err());
    assert!(attest(&mut pair, &Attestation { statement: Err("no TPM answers".to_owned()) }).is_ok());
    assert!(pair.keyholder.is_established(), "that there is none is for the policy to judge");
}

#[test]
fn a_quote_of_another_connection_challenge_or_evidence_is_over_another_digest() {
    let (_, digest) = announced(keyholder_params());
    let (_, same) = announced(keyholder_params());
    assert_eq!(digest, same);
    let (_, relayed) = announced(KeyholderSessionParams { exporter: [0x56; 32], ..keyholder_params() });
    let (_, replayed) = announced(KeyholderSessionParams { challenge: [0xcd; 32], ..keyholder_params() });
    assert!(digest != relayed && digest != replayed && relayed != replayed);
}

#[test]
fn the_node_may_ask_for_its_lease_and_be_wiped_before_its_tpm_has_answered() {
    let (mut pair, _) = announced(keyholder_params());
    let effects = pair.node.on_time(&mut pair.lease, ms(LEASE_MS));
    assert_eq!(sent(&effects).len(), 1, "a challenge");
    assert_eq!(pair.keyholder.on_frame(ms(LEASE_MS), &sent(&effects)[0]), Ok(None));
    let record = WipeRecord { cause: WipeCause::PowerLine, at: ms(6_000), generation: 1 };
    let ended = pair.lease.on_wiped(record);
    let report = WipeReport { record, stages: WipeStages::keys(1), more: false };
    let effects = pair.node.on_wiped(&pair.lease, &report, ended);
    let event = pair.keyholder.on_frame(ms(6_000), &sent(&effects)[0]);
    assert!(matches!(event, Ok(Some(KeyholderEvent::Wiped(_)))), "{event:?}");
    let late = pair.node.on_attestation(&pair.lease, &Attestation { statement: Ok(statement()) });
    assert_eq!(late, [], "its session is over");
}

/// Else a copy of the node would be granted keys by what an earlier session had proven.
#[test]
fn a_receipt_for_one_volume_does_not_stand_in_for_the_statement() {
    let (mut pair, _) = announced(keyholder_params());
    let record = WipeRecord { cause: WipeCause::NotRenewed, at: ms(1), generation: 0 };
    let report = WipeReport { record, stages: WipeStages::keys(1), more: false };
    let (volume, grant) = (crate::support::VOLUME, units::GrantId([1; 16]));
    let effects = pair.node.on_dropped(&mut pair.lease, volume, grant, &report);
    let event = pair.keyholder.on_frame(ms(1), &sent(&effects)[0]);
    assert!(matches!(event, Ok(Some(KeyholderEvent::Wiped(_)))), "{event:?}");
    assert!(!pair.keyholder.is_established());
    let effects = pair.node.on_time(&mut pair.lease, ms(LEASE_MS));
    assert_eq!(pair.keyholder.on_frame(ms(LEASE_MS), &sent(&effects)[0]), Ok(None));
    let sealed = |_: &lease::keyholder::SealRequest<'_>| Ok::<_, std::convert::Infallible>(vec![0; 8]);
    assert!(pair.keyholder.grant(crate::support::order(1, 8), sealed).is_err());
    let event = attest(&mut pair, &Attestation { statement: Ok(statement()) });
    assert!(matches!(event, Ok(Some(KeyholderEvent::Evidence(_, Some(_))))), "it is still waited for");
}

#[test]
fn anything_else_in_place_of_the_statement_ends_the_session() {
    let (mut pair, _) = announced(keyholder_params());
    let effects = pair.node.on_credential_opened(&pair.lease, &CredentialOpened { secret: Ok([1; 32]) });
    let expected = SessionError::OutOfOrder { got: "credential-opened", expected: "attestation" };
    assert_eq!(pair.keyholder.on_frame(ms(1), &sent(&effects)[0]), Err(expected));
}

#[test]
fn a_credential_goes_there_and_what_was_found_comes_back() {
    let (mut pair, _) = announced(keyholder_params());
    attest(&mut pair, &Attestation { statement: Ok(statement()) }).unwrap();
    let credential = Credential { object: vec![7; 9], seed: vec![8; 9] };
    let frame = unframe(&pair.keyholder.credential(&credential).unwrap());
    assert_eq!(pair.deliver(ms(2), &frame), Ok(vec![NodeEffect::OpenCredential(credential)]));
    let opened = CredentialOpened { secret: Ok([9; 32]) };
    let effects = pair.node.on_credential_opened(&pair.lease, &opened);
    let event = pair.keyholder.on_frame(ms(3), &sent(&effects)[0]);
    assert_eq!(event, Ok(Some(KeyholderEvent::CredentialOpened(opened))));
    // Nothing of this is taken from the other side.
    let revoke = unframe(&pair.keyholder.revoke(Scope::All, RevokeCause::Revoked).unwrap());
    assert!(pair.keyholder.on_frame(ms(3), &revoke).is_err());
}

#[test]
fn a_statement_over_a_limit_is_not_sent() {
    let record = WipeRecord { cause: WipeCause::Admin, at: ms(1), generation: 1 };
    for over in [
        TpmStatement { quote: vec![0; TPM_BYTES_MAX + 1], ..statement() },
        TpmStatement { event_log: vec![0; EVENT_LOG_BYTES_MAX + 1], ..statement() },
        TpmStatement { wipes: vec![record; WIPES_MAX + 1], ..statement() },
        TpmStatement { registers: vec![[0; 32]; 25], ..statement() },
    ] {
        let (pair, _) = announced(keyholder_params());
        assert_eq!(pair.node.on_attestation(&pair.lease, &Attestation { statement: Ok(over) }), []);
    }
    let (mut pair, _) = announced(keyholder_params());
    let most = TpmStatement { wipes: vec![record; WIPES_MAX], ..statement() };
    assert!(attest(&mut pair, &Attestation { statement: Ok(most) }).is_ok());
}
