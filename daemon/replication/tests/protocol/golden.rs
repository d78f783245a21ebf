//! The bytes of every message, committed. A difference is a new protocol version, not a new golden file.
//!
//! `NIGHTLATCH_BLESS=1` writes the files anew.

use std::path::PathBuf;

use replication::{Kind, Local, PROTOCOL_VERSION, Portion, ReceiverEffect, Role, SenderEffect, SessionError};
use units::Lba;

use crate::support::{NOW, VOLUME, answered, epoch, key, manifest, one, receiver, said, sender};

fn compare(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"));
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
    let (mut sender, mut receiver) = (sender(), receiver());
    let local = |newest, receiving| Ok(Local { role: Role::Replica, newest, receiving });

    sender.on_connected(NOW);
    let (hello, _) = said(&mut sender);
    compare("01-hello", one(&hello));
    receiver.on_frame(one(&hello)).unwrap();
    let (welcome, _) = answered(&mut receiver);
    compare("02-welcome", one(&welcome));
    sender.on_frame(NOW, one(&welcome)).unwrap();

    let (offer, _) = said(&mut sender);
    compare("03-offer", one(&offer));
    receiver.on_frame(one(&offer)).unwrap();
    receiver.on_local(VOLUME, local(Some(key(1).snapshot), Some(key(2).snapshot)));
    let (standing, looked) = answered(&mut receiver);
    assert!(matches!(looked[..], [ReceiverEffect::Look { .. }]));
    compare("04-standing", one(&standing));
    sender.keep(VOLUME, vec![key(1).snapshot]);
    sender.close_epoch(VOLUME, epoch(2));
    sender.on_frame(NOW, one(&standing)).unwrap();
    sender.on_found(VOLUME, key(1).snapshot, true);
    sender.on_manifest(VOLUME, Ok(manifest(2, Some(1))));

    let (begin, _) = said(&mut sender);
    compare("05-begin", one(&begin));
    receiver.on_frame(one(&begin)).unwrap();
    receiver.on_begun(VOLUME, Ok(Lba(4)));
    let (begun, _) = answered(&mut receiver);
    compare("06-begun", one(&begun));
    sender.on_frame(NOW, one(&begun)).unwrap();
    let (_, read) = said(&mut sender);
    assert!(matches!(read[..], [SenderEffect::ReadPortion { from: Lba(4), .. }]));
    let portion = Portion { bytes: b"as STREAM.md says".to_vec(), next: Lba(8) };
    sender.on_portion(VOLUME, key(2).snapshot, Lba(4), Ok(portion));

    let (frames, _) = said(&mut sender);
    compare("07-portion", one(&frames[..1]));
    compare("08-end", one(&frames[1..]));
    receiver.on_frame(one(&frames[..1])).unwrap();
    receiver.on_frame(one(&frames[1..])).unwrap();
    receiver.on_took(VOLUME, Ok(Lba(8)));
    receiver.on_committed(VOLUME, Ok(()));
    let (frames, asked) = answered(&mut receiver);
    compare("09-took", one(&frames[..1]));
    compare("10-done", one(&frames[1..]));
    let prune = |effect: &ReceiverEffect| matches!(effect, ReceiverEffect::Prune { keep, .. } if keep[..] == [key(1).snapshot]);
    assert!(asked.last().is_some_and(prune), "{asked:?}");
    for frame in &frames {
        sender.on_frame(NOW, one(std::slice::from_ref(frame))).unwrap();
    }
    let (_, asked) = said(&mut sender);
    assert!(matches!(asked[..], [SenderEffect::Acknowledged { .. }]), "{asked:?}");

    compare("11-alive", &receiver.alive()[replication::PREFIX_BYTES..]);
}

#[test]
fn the_bytes_of_refusals_are_those_committed() {
    let (mut sender, mut receiver) = (sender(), receiver());
    sender.on_connected(NOW);
    receiver.on_frame(one(&said(&mut sender).0)).unwrap();
    sender.on_frame(NOW, one(&answered(&mut receiver).0)).unwrap();
    receiver.on_frame(one(&said(&mut sender).0)).unwrap();
    receiver.on_local(VOLUME, Err(replication::Reason::LowerFence));
    let (refused, _) = answered(&mut receiver);
    compare("12-refused", one(&refused));
    sender.on_frame(NOW, one(&refused)).unwrap();
    receiver.end(replication::SessionError::UnsupportedVersion { theirs: 2, ours: 1 });
    compare("13-closed", one(&answered(&mut receiver).0));
}

#[test]
fn version_1_is_shown_out_and_understands_why() {
    let golden = |name: &str| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(name);
        hex::decode(std::fs::read_to_string(path).unwrap().replace('\n', "")).unwrap()
    };
    let mut receiver = receiver();
    let expected = Err(SessionError::UnsupportedVersion { theirs: 1, ours: PROTOCOL_VERSION });
    assert_eq!(receiver.on_frame(&golden("01-hello.hex")), expected);
    let (closed, audited) = answered(&mut receiver);
    assert_eq!((one(&closed)[1], &audited[..]), (Kind::Closed.byte(), &[][..]));
    // What an older receiver answers is read here.
    let mut sender = sender();
    sender.on_connected(NOW);
    let told = SessionError::UnsupportedVersion { theirs: 2, ours: 1 };
    assert_eq!(sender.on_frame(NOW, &golden("13-closed.hex")), Err(told));
}
