//! Against a software TPM: what one part of it says, the other side verifies; and what must not verify.
#![expect(clippy::unwrap_used, reason = "tests: a failed unwrap is a failed test")]

use std::time::Duration;

use attestation::{
    CredentialRandom, KeyRole, Name, PublicKey, Quote, QuoteError, Quoted, Register, Registers, WIPES,
    extended, make_credential, secrets_match,
};
use harness::tpm::SoftwareTpm;
use tpm::{SignedQuote, Tpm, TpmError};
use zeroize::Zeroizing;

fn started(state: &tempfile::TempDir) -> (SoftwareTpm, Tpm) {
    let software = SoftwareTpm::start(state.path());
    let tpm = Tpm::open(software.socket()).unwrap();
    (software, tpm)
}

fn verified(quote: &SignedQuote, key: &PublicKey, expected: &[u8; 32]) -> Result<Quoted, QuoteError> {
    let SignedQuote { statement, signature, registers } = quote;
    Quote { statement, signature, registers: *registers }.verify(key, expected)
}

#[test]
fn a_register_takes_what_it_is_extended_with() {
    let state = tempfile::tempdir().unwrap();
    let (_software, mut tpm) = started(&state);
    assert_eq!(tpm.read_pcr(WIPES).unwrap(), [0; 32]);
    tpm.extend(WIPES, &[1; 32]).unwrap();
    tpm.extend(WIPES, &[2; 32]).unwrap();
    let expected = extended(extended([0; 32], [1; 32]), [2; 32]);
    assert_eq!(tpm.read_pcr(WIPES).unwrap(), expected);
    assert_eq!(tpm.read_pcr(Register::IMAGE).unwrap(), [0; 32], "no other");
}

#[test]
fn keys_are_the_same_after_every_start_and_what_they_sign_verifies_for_one_session() {
    let state = tempfile::tempdir().unwrap();
    let (software, mut tpm) = started(&state);
    let endorsement = tpm.endorsement_key().unwrap();
    let attestation = tpm.attestation_key().unwrap();
    assert!(PublicKey::parse(KeyRole::Endorsement, &endorsement.public).is_ok());
    let key = PublicKey::parse(KeyRole::Attestation, &attestation.public).unwrap();
    tpm.extend(Register::IMAGE, &[7; 32]).unwrap();
    let quote = tpm.quote(&attestation, &[9; 32]).unwrap();
    let quoted = verified(&quote, &key, &[9; 32]).unwrap();
    assert_eq!(quoted.registers.of(Register::IMAGE), Some(extended([0; 32], [7; 32])));

    assert_eq!(verified(&quote, &key, &[8; 32]), Err(QuoteError::OtherSession));
    let mut other = quote.clone();
    other.registers = Registers([[0; 32]; attestation::QUOTED.len()]);
    assert_eq!(verified(&other, &key, &[9; 32]), Err(QuoteError::OtherRegisters));
    for byte in 0..quote.statement.len() {
        let mut other = quote.clone();
        other.statement[byte] ^= 1;
        assert_eq!(
            verified(&other, &key, &[9; 32]),
            Err(QuoteError::Signature),
            "byte {byte} of what was signed"
        );
    }
    for byte in 0..quote.signature.len() {
        let mut other = quote.clone();
        other.signature[byte] ^= 1;
        assert!(verified(&other, &key, &[9; 32]).is_err(), "byte {byte} of the signature");
    }

    drop((software, tpm));
    let (_software, mut tpm) = started(&state);
    assert_eq!(tpm.endorsement_key().unwrap().public, endorsement.public);
    let again = tpm.attestation_key().unwrap();
    assert_eq!(again.public, attestation.public);
    let later = verified(&tpm.quote(&again, &[9; 32]).unwrap(), &key, &[9; 32]).unwrap();
    assert_eq!(later.registers.of(Register::IMAGE), Some([0; 32]));
    assert_eq!(later.clock.resets, quoted.clock.resets + 1, "the machine was started once more");
}

#[test]
fn another_tpms_quote_is_not_signed_by_this_key() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_first, mut tpm) = started(&one);
    let attestation = tpm.attestation_key().unwrap();
    let quote = tpm.quote(&attestation, &[9; 32]).unwrap();
    let (_second, mut other) = started(&two);
    let foreign = other.attestation_key().unwrap();
    assert_ne!(Name::of(&foreign.public), Name::of(&attestation.public));
    let key = PublicKey::parse(KeyRole::Attestation, &foreign.public).unwrap();
    assert_eq!(verified(&quote, &key, &[9; 32]), Err(QuoteError::Signature));
}

#[test]
fn a_credential_opens_in_its_tpm_for_its_key_and_nowhere_else() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_first, mut tpm) = started(&one);
    let (endorsement, attestation) = (tpm.endorsement_key().unwrap(), tpm.attestation_key().unwrap());
    let public = PublicKey::parse(KeyRole::Endorsement, &endorsement.public).unwrap();
    let random = CredentialRandom { scalar: Zeroizing::new([3; 32]), secret: Zeroizing::new([4; 32]) };
    let name = Name::of(&attestation.public);
    let credential = make_credential(&public, name, &random).unwrap();
    let found = tpm.activate(&attestation, &endorsement, &credential).unwrap();
    assert!(secrets_match(&found, &random.secret));
    assert!(!secrets_match(&found, &[5; 32]));

    let for_another_key = make_credential(&public, Name([1; 32]), &random).unwrap();
    let refused = tpm.activate(&attestation, &endorsement, &for_another_key);
    assert!(matches!(refused, Err(TpmError::Refused { command: "ActivateCredential", .. })), "{refused:?}");
    let (_second, mut other) = started(&two);
    let (theirs, their_key) = (other.endorsement_key().unwrap(), other.attestation_key().unwrap());
    assert!(other.activate(&their_key, &theirs, &credential).is_err());
    // Failures leave no session behind: there is room for three.
    for _ in 0..8 {
        assert!(tpm.activate(&attestation, &endorsement, &for_another_key).is_err());
    }
    assert!(tpm.activate(&attestation, &endorsement, &credential).is_ok());
}

#[test]
fn keys_that_were_flushed_leave_their_place() {
    let state = tempfile::tempdir().unwrap();
    let (_software, mut tpm) = started(&state);
    for _ in 0..8 {
        let key = tpm.attestation_key().unwrap();
        tpm.flush(&key).unwrap();
        assert!(matches!(tpm.quote(&key, &[0; 32]), Err(TpmError::Refused { command: "Quote", .. })));
    }
    assert_eq!(tpm.endorsement_certificate().unwrap(), None, "this one's maker is a test");
}

#[test]
fn a_tpm_that_is_gone_is_an_error_and_no_wait() {
    let state = tempfile::tempdir().unwrap();
    let (software, tpm) = started(&state);
    // A wait would be one for longer than a test may take.
    let mut tpm = tpm.with_patience(Duration::from_secs(3600));
    drop(software);
    assert!(tpm.extend(WIPES, &[1; 32]).is_err());
    assert!(matches!(tpm.extend(WIPES, &[1; 32]), Err(TpmError::Lost)));
    let missing = Tpm::open(&state.path().join("nothing")).unwrap_err().to_string();
    assert!(missing.contains("cannot be opened"), "{missing}");
}

#[test]
fn what_a_run_that_was_killed_had_loaded_is_forgotten_by_the_next() {
    let state = tempfile::tempdir().unwrap();
    let (software, mut tpm) = started(&state);
    // As many as there is room for.
    while tpm.endorsement_key().is_ok() {}
    drop(tpm);
    let mut tpm = Tpm::open(software.socket()).unwrap();
    assert!(tpm.attestation_key().is_err());
    tpm.forget_leftovers().unwrap();
    tpm.attestation_key().unwrap();
}
