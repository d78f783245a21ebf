//! Whatever arrives: a value or an error, never a panic.
#![expect(clippy::unwrap_used, reason = "tests: a failed unwrap is a failed test")]

use attestation::{
    EventLog, KeyRole, PublicKey, QUOTED, Quote, Registers, attestation_template, endorsement_template,
};
use proptest::prelude::*;

/// Bytes of any kind, and good ones with a few changed, cut or added.
fn hostile(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = good.len();
    let changed = (
        prop::collection::vec((0..length, any::<u8>()), 0..4),
        0..=length,
        prop::collection::vec(any::<u8>(), 0..8),
    )
        .prop_map(move |(changes, end, more)| {
            let mut bytes = good.clone();
            for (at, value) in changes {
                bytes[at] = value;
            }
            bytes.truncate(end);
            bytes.extend(more);
            bytes
        });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..600), changed]
}

fn key() -> PublicKey {
    PublicKey::parse(KeyRole::Attestation, &attestation_template()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn public_areas(area in hostile(endorsement_template())) {
        let endorsement = PublicKey::parse(KeyRole::Endorsement, &area);
        prop_assert!(endorsement.is_err() || area.len() == endorsement_template().len() || area.len() < 122);
        let _ = PublicKey::parse(KeyRole::Attestation, &area);
    }

    #[test]
    fn quotes(statement in hostile(vec![0xff; 145]), signature in hostile(vec![0; 72])) {
        let quote = Quote { statement: &statement, signature: &signature, registers: Registers([[0; 32]; QUOTED.len()]) };
        prop_assert!(quote.verify(&key(), &[0; 32]).is_err());
    }

    #[test]
    fn event_logs(log in hostile([
        &[0, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20], &[33, 0, 0, 0], b"Spec ID Event03\0", &[0; 8], &[1, 0, 0, 0, 11, 0, 32, 0, 0],
        &[4, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 11, 0], &[1; 32], &[3, 0, 0, 0, 1, 2, 3],
    ].concat())) {
        if let Ok(log) = EventLog::parse(&log) {
            prop_assert!(!log.judged_by(&Registers([[0xee; 32]; QUOTED.len()])).unexplained.is_empty());
        }
    }
}
