//! The bytes of every message, committed. A difference is a new protocol version, not a new golden file.
//!
//! `NIGHTLATCH_BLESS=1` writes the files anew.

use std::path::PathBuf;

use lease::SessionError;
use lease::envelope;
use lease::keyholder::GrantOrder;
use lease::message::{
    Attestation, Credential, CredentialOpened, EpochsInUse, RevokeCause, Scope, StateVerdict, TpmStatement,
    WipeCause, WipeRecord, WipeStages,
};
use lease::node::{EvidenceInput, NodeEffect, NodeSession, WipeReport};
use units::{GrantId, VolumeEpoch};

use crate::support::{
    ENVELOPE_SECRET, LEASE_MS, PRK, Pair, VOLUME, admitted, envelope_key, epoch_order, keyholder_params, ms,
    node_lease, order, sent, unframe,
};

const G1: GrantId = GrantId([1; 16]);

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"))
}

fn committed(name: &str) -> Vec<u8> {
    hex::decode(std::fs::read_to_string(path(name)).unwrap().replace('\n', "")).unwrap()
}

fn evidence_input() -> EvidenceInput {
    let hygiene = r#"{"memory":"memfd-secret"}"#.to_owned();
    EvidenceInput { hygiene, envelope_key: envelope_key(), attests: false }
}

fn compare(name: &str, bytes: &[u8]) {
    let path = path(name);
    let lines: Vec<String> = bytes.chunks(32).map(hex::encode).collect();
    let text = lines.join("\n") + "\n";
    if std::env::var_os("NIGHTLATCH_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{name} is not what {} says", path.display());
}

#[test]
fn the_bytes_of_a_session_are_those_committed() {
    let mut pair = Pair::new(ms(0), node_lease(), keyholder_params());
    let hello = unframe(&pair.keyholder.start().unwrap());
    compare("01-hello", &hello);
    pair.deliver(ms(0), &hello).unwrap();
    let effects = pair.node.on_evidence(&mut pair.lease, ms(0), evidence_input()).unwrap();
    let evidence = sent(&effects).remove(0);
    compare("02-evidence", &evidence);
    pair.keyholder.on_frame(ms(0), &evidence).unwrap();

    let grant = pair.grant_frame(GrantOrder { further: vec![(VolumeEpoch(5), [0x55; 16])], ..order(1, 8) });
    compare("03-grant", &grant);
    let effects = pair.deliver(ms(1), &grant).unwrap();
    assert_eq!(admitted(&effects).grant, G1);
    let effects = pair.node.on_admitted(&mut pair.lease, ms(2), VOLUME, G1, Ok(StateVerdict::First));
    compare("04-receipt", &sent(&effects)[0]);
    pair.keyholder.on_frame(ms(2), &sent(&effects)[0]).unwrap();

    let low = pair.grant_frame(order(2, 3));
    let effects = pair.deliver(ms(3), &low).unwrap();
    compare("05-grant-refused", &sent(&effects)[0]);

    let epochs = vec![VolumeEpoch(1), VolumeEpoch(5)];
    pair.lease.set_epochs(vec![EpochsInUse { volume: VOLUME, epochs }], vec![VOLUME]);
    let request = unframe(&pair.keyholder.request_challenge().unwrap());
    compare("06-challenge-request", &request);
    let effects = pair.deliver(ms(4), &request).unwrap();
    compare("07-renewal-challenge", &sent(&effects)[0]);
    pair.keyholder.on_frame(ms(4), &sent(&effects)[0]).unwrap();
    let renewal = pair.renewal_frame(LEASE_MS, &[G1]);
    compare("08-renewal", &renewal);
    pair.deliver(ms(5), &renewal).unwrap();

    let epoch = pair.epoch_frame(epoch_order(1, 8, 2));
    compare("17-epoch-key", &epoch);
    assert!(matches!(pair.deliver(ms(5), &epoch).unwrap()[..], [NodeEffect::AdmitEpoch(_)]));
    let effects = pair.node.on_epoch_admitted(&pair.lease, (VOLUME, G1, VolumeEpoch(2)), Ok(()));
    compare("18-epoch-taken", &sent(&effects)[0]);
    pair.keyholder.on_frame(ms(5), &sent(&effects)[0]).unwrap();

    let revoke = unframe(&pair.keyholder.revoke(Scope::All, RevokeCause::Lockdown).unwrap());
    compare("09-revoke", &revoke);
    assert_eq!(pair.deliver(ms(6), &revoke).unwrap(), [NodeEffect::Wipe(WipeCause::Lockdown)]);
    let record = WipeRecord { cause: WipeCause::Lockdown, at: ms(7), generation: 1 };
    let ended = pair.lease.on_wiped(record);
    let report = WipeReport { record, stages: WipeStages::keys(23_000), more: false };
    let first = WipeReport { more: true, ..report };
    let effects = pair.node.on_wiped(&pair.lease, &first, ended.clone());
    compare("10-wipe-receipt", &sent(&effects)[0]);
    let stages = WipeStages { threads_ns: Some(180_000), memory_ns: Some(12_000_000), ..report.stages };
    let effects = pair.node.on_wiped(&pair.lease, &WipeReport { stages, ..report }, ended);
    compare("12-wipe-receipt-last", &sent(&effects)[0]);

    compare("11-refused", &unframe(&NodeSession::refusal(&SessionError::NotEnrolled)));
}

#[test]
fn the_bytes_of_what_a_tpm_says_are_those_committed() {
    let mut pair = Pair::new(ms(0), node_lease(), keyholder_params());
    let hello = unframe(&pair.keyholder.start().unwrap());
    pair.deliver(ms(0), &hello).unwrap();
    let input = EvidenceInput { attests: true, ..evidence_input() };
    let effects = pair.node.on_evidence(&mut pair.lease, ms(0), input).unwrap();
    compare("13-evidence-that-attests", &sent(&effects)[0]);
    pair.keyholder.on_frame(ms(0), &sent(&effects)[0]).unwrap();
    let statement = TpmStatement {
        endorsement_key: vec![1; 3],
        certificate: vec![2; 3],
        attestation_key: vec![3; 3],
        quote: vec![4; 3],
        signature: vec![5; 3],
        registers: vec![[6; 32]; 2],
        wipes_began_at: [0; 32],
        wipes: vec![WipeRecord { cause: WipeCause::PowerLine, at: ms(7), generation: 1 }],
        event_log: vec![8; 3],
    };
    let effects = pair.node.on_attestation(&pair.lease, &Attestation { statement: Ok(statement) });
    compare("14-attestation", &sent(&effects)[0]);
    pair.keyholder.on_frame(ms(0), &sent(&effects)[0]).unwrap();
    let credential = Credential { object: vec![9; 3], seed: vec![10; 3] };
    let credential = unframe(&pair.keyholder.credential(&credential).unwrap());
    compare("15-credential", &credential);
    pair.deliver(ms(1), &credential).unwrap();
    let effects = pair.node.on_credential_opened(&pair.lease, &CredentialOpened { secret: Ok([11; 32]) });
    compare("16-credential-opened", &sent(&effects)[0]);
    let quoted = pair.keyholder.quote_digest().unwrap();
    compare("quote-digest", &quoted);
    let wipe = WipeRecord { cause: WipeCause::PowerLine, at: ms(7), generation: 1 };
    compare("wipe-measurement", &wipe.measurement(units::BootId([0x99; 16])));
}

#[test]
fn the_bytes_of_an_envelope_are_those_committed() {
    let secret = [7; 32];
    let public = envelope::keypair(&secret).unwrap();
    compare("envelope-public-key", public.as_bytes());
    let sealed = envelope::seal(&public, b"info", b"aad", &[9; 32], &mut [8; 64]).unwrap();
    compare("envelope-sealed", &sealed);
}

/// A later program must also take what an earlier one sent.
#[test]
fn a_node_takes_the_committed_hello_and_grant() {
    let mut pair = Pair::new(ms(0), node_lease(), keyholder_params());
    pair.deliver(ms(0), &committed("01-hello")).unwrap();
    pair.node.on_evidence(&mut pair.lease, ms(0), evidence_input()).unwrap();
    let effects = pair.deliver(ms(1), &committed("03-grant")).unwrap();
    let admit = admitted(&effects);
    let mut prk = [0; 32];
    envelope::open(&ENVELOPE_SECRET, &admit.info, &admit.aad, &admit.envelope, &mut prk).unwrap();
    assert_eq!(prk, PRK);
}

#[test]
fn the_trigger_table_of_the_document_is_the_programs() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("TRIGGERS.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let table = lease::trigger::markdown();
    if std::env::var_os("NIGHTLATCH_BLESS").is_some() {
        let start = text.find("| cause |").unwrap_or(text.len());
        std::fs::write(&path, format!("{}{table}", &text[..start])).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.ends_with(&table), "the table is to be\n{table}");
}
