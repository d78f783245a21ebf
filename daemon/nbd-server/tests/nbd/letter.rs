//! The handshake to the letter: every option, right and wrong, in and out of order, in pieces and cut; after each the
//! server still serves.

use std::net::Shutdown;

use crate::abuse::still_serves;
use crate::raw::*;
use crate::rig::{Rig, eventually};

/// Replies to one option, to its end.
fn replies(raw: &mut Raw, code: u32) -> Vec<u32> {
    let mut found = Vec::new();
    loop {
        let (option, reply, _) = raw.option_reply();
        assert_eq!(option, code, "an answer to another option");
        found.push(reply);
        if reply == REP_ACK || reply & (1 << 31) != 0 {
            return found;
        }
    }
}

fn infos(label: &str, asked: &[u16]) -> Vec<u8> {
    let mut data = name(label);
    data.extend_from_slice(&u16::try_from(asked.len()).unwrap().to_be_bytes());
    data.extend(asked.iter().flat_map(|info| info.to_be_bytes()));
    data
}

/// (option, data, replies), none of which ends the negotiation.
fn cases() -> Vec<(u32, Vec<u8>, Vec<u32>)> {
    let lying = |mut data: Vec<u8>, at: usize, value: u32| {
        data[at..at + 4].copy_from_slice(&value.to_be_bytes());
        data
    };
    let context = "base:allocation";
    let mut cases = vec![
        (OPT_LIST, vec![], vec![REP_SERVER, REP_ACK]),
        (OPT_LIST, vec![0], vec![REP_ERR_INVALID]),
        (4, vec![], vec![REP_ERR_UNSUP]),
        (4, name("disk"), vec![REP_ERR_UNSUP]),
        (OPT_STARTTLS, vec![], vec![REP_ERR_POLICY]),
        (OPT_STARTTLS, vec![1], vec![REP_ERR_INVALID]),
        // Before structured replies there are no contexts to set, but some to list.
        (OPT_SET_META_CONTEXT, queries("disk", &[context]), vec![REP_ERR_INVALID]),
        (OPT_LIST_META_CONTEXT, queries("disk", &[]), vec![REP_META_CONTEXT, REP_ACK]),
        (OPT_STRUCTURED_REPLY, vec![1, 2, 3], vec![REP_ERR_INVALID]),
        (OPT_STRUCTURED_REPLY, vec![], vec![REP_ACK]),
        (OPT_STRUCTURED_REPLY, vec![], vec![REP_ACK]),
        (OPT_SET_META_CONTEXT, queries("disk", &[context]), vec![REP_META_CONTEXT, REP_ACK]),
        (OPT_SET_META_CONTEXT, queries("disk", &[context, context]), vec![REP_META_CONTEXT, REP_ACK]),
        (OPT_SET_META_CONTEXT, queries("disk", &[]), vec![REP_ACK]),
        (OPT_SET_META_CONTEXT, queries("disk", &["base:"]), vec![REP_ACK]),
        (OPT_SET_META_CONTEXT, queries("disk", &["qemu:dirty-bitmap:b", "x-a:b", ":", ""]), vec![REP_ACK]),
        (OPT_SET_META_CONTEXT, queries("dusk", &[context]), vec![REP_ERR_UNKNOWN]),
        (OPT_SET_META_CONTEXT, queries("", &[context]), vec![REP_ERR_UNKNOWN]),
        (OPT_SET_META_CONTEXT, lying(queries("disk", &[context]), 8, 2), vec![REP_ERR_INVALID]),
        (OPT_SET_META_CONTEXT, lying(queries("disk", &[context]), 8, u32::MAX), vec![REP_ERR_INVALID]),
        (OPT_SET_META_CONTEXT, lying(queries("disk", &[context]), 12, 16), vec![REP_ERR_INVALID]),
        (OPT_SET_META_CONTEXT, lying(queries("disk", &[context]), 0, u32::MAX), vec![REP_ERR_INVALID]),
        (OPT_LIST_META_CONTEXT, queries("disk", &["base:"]), vec![REP_META_CONTEXT, REP_ACK]),
        (OPT_LIST_META_CONTEXT, queries("disk", &["base:", context]), vec![REP_META_CONTEXT, REP_ACK]),
        (OPT_LIST_META_CONTEXT, queries("disk", &["base:nothing"]), vec![REP_ACK]),
        (OPT_LIST_META_CONTEXT, queries("dusk", &[]), vec![REP_ERR_UNKNOWN]),
        (OPT_LIST_META_CONTEXT, queries("disk", &["base:"; 1000]), vec![REP_META_CONTEXT, REP_ACK]),
        (OPT_EXTENDED_HEADERS, vec![0], vec![REP_ERR_INVALID]),
        (OPT_EXTENDED_HEADERS, vec![], vec![REP_ACK]),
        (OPT_EXTENDED_HEADERS, vec![], vec![REP_ACK]),
        (OPT_STRUCTURED_REPLY, vec![], vec![REP_ERR_EXT_HEADER_REQD]),
        (OPT_INFO, infos("disk", &[]), vec![REP_INFO, REP_INFO, REP_ACK]),
        (OPT_INFO, infos("disk", &[0, 1, 2, 3, 4, 0xffff]), vec![REP_INFO, REP_INFO, REP_INFO, REP_ACK]),
        (OPT_INFO, infos("", &[]), vec![REP_ERR_UNKNOWN]),
        (12, vec![], vec![REP_ERR_UNSUP]),
        (0, vec![7; 100], vec![REP_ERR_UNSUP]),
        (u32::MAX, vec![7; 64 << 10], vec![REP_ERR_UNSUP]),
    ];
    for option in [OPT_INFO, OPT_GO] {
        cases.extend([
            (option, vec![], vec![REP_ERR_INVALID]),
            (option, name("disk"), vec![REP_ERR_INVALID]),
            (option, [infos("disk", &[3]), vec![0]].concat(), vec![REP_ERR_INVALID]),
            (option, infos("disk", &[3])[..11].to_vec(), vec![REP_ERR_INVALID]),
            (option, lying(infos("disk", &[3]), 0, 9), vec![REP_ERR_INVALID]),
            (option, lying(infos("disk", &[3]), 0, u32::MAX), vec![REP_ERR_INVALID]),
            (option, b"\0\0\0\x02\xff\xfe\0\0".to_vec(), vec![REP_ERR_INVALID]),
            (option, infos("dusk", &[3]), vec![REP_ERR_UNKNOWN]),
            (option, infos(&"x".repeat(4097), &[]), vec![REP_ERR_UNKNOWN]),
        ]);
    }
    cases
}

#[test]
fn every_option_is_answered_and_whatever_came_before_go_still_works() {
    let rig = Rig::new();
    let mut raw = Raw::greeted(&rig.socket);
    for (code, data, expected) in cases() {
        raw.option(code, &data);
        assert_eq!(replies(&mut raw, code), expected, "option {code} with {} bytes", data.len());
    }
    raw.option(OPT_GO, &infos("disk", &[3]));
    assert_eq!(replies(&mut raw, OPT_GO), [REP_INFO, REP_INFO, REP_ACK]);
    raw.extended_request(READ, 0, 1, 0, 512);
    assert_eq!(raw.extended_chunk().0.payload[8..], [0; 512]);
    still_serves(&rig);
}

#[test]
fn options_sent_all_at_once_or_byte_by_byte_are_answered_alike() {
    let rig = Rig::new();
    let mut script = 3_u32.to_be_bytes().to_vec();
    for (code, data, _) in cases().into_iter().filter(|(_, data, _)| data.len() < 1000) {
        script.extend(option(code, &data));
    }
    script.extend(option(OPT_ABORT, b"and goodbye"));
    let run = |pieces: usize| {
        let mut raw = Raw::silent(&rig.socket);
        for piece in script.chunks(pieces) {
            raw.send(piece);
        }
        raw.rest()
    };
    let whole = run(script.len());
    for pieces in [1, 5, 17] {
        assert_eq!(run(pieces), whole, "in pieces of {pieces}");
    }
}

#[test]
fn a_handshake_may_break_off_after_any_byte() {
    let rig = Rig::new();
    let mut script = 3_u32.to_be_bytes().to_vec();
    script.extend(option(OPT_EXTENDED_HEADERS, &[]));
    script.extend(option(OPT_SET_META_CONTEXT, &queries("disk", &["base:allocation"])));
    script.extend(option(OPT_INFO, &infos("disk", &[1, 3])));
    script.extend(option(OPT_GO, &infos("disk", &[3])));
    for cut in 0..=script.len() {
        let mut raw = Raw::silent(&rig.socket);
        raw.send(&script[..cut]);
        if cut % 2 == 0 {
            raw.stream.shutdown(Shutdown::Write).unwrap();
            raw.rest();
        }
    }
    still_serves(&rig);
    eventually("nobody is left behind", || rig.connections() == 0);
}

#[test]
fn thousands_of_options_without_a_choice_end_the_session_in_bounded_time() {
    let rig = Rig::new();
    for data in [vec![], name("disk"), vec![0; 60_000]] {
        for code in [OPT_LIST, OPT_INFO, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, 77] {
            let mut raw = Raw::greeted(&rig.socket);
            // Nobody reads the answers meanwhile: the server must not gather them.
            let mut writer = raw.stream.try_clone().unwrap();
            let flood = option(code, &data);
            let flooding = std::thread::spawn(move || {
                for _ in 0..5000 {
                    if std::io::Write::write_all(&mut writer, &flood).is_err() {
                        break;
                    }
                }
            });
            raw.rest();
            flooding.join().unwrap();
        }
    }
    still_serves(&rig);
}

#[test]
fn messages_of_the_wrong_phase_end_their_session_only() {
    let rig = Rig::new();
    // A request where an option is due.
    for bytes in [request(READ, 0, 1, 0, 512), extended_request(READ, 0, 1, 0, 512)] {
        let mut raw = Raw::greeted(&rig.socket);
        raw.send_what_goes(&bytes);
        raw.rest();
    }
    // An option before the client's flags; flags twice; a magic that is nearly right.
    let mut raw = Raw::silent(&rig.socket);
    raw.send_what_goes(&option(OPT_GO, &go("disk")));
    raw.rest();
    let mut raw = Raw::greeted(&rig.socket);
    raw.send_what_goes(&[3_u32.to_be_bytes().to_vec(), option(OPT_LIST, &[])].concat());
    raw.rest();
    let mut raw = Raw::greeted(&rig.socket);
    raw.send_what_goes(b"IHAVEOPS\0\0\0\x03\0\0\0\0");
    raw.expect_end();
    // A second choice of export is no request.
    for choice in [option(OPT_GO, &go("disk")), option(OPT_EXPORT_NAME, b"disk")] {
        let mut raw = Raw::simple(&rig.socket);
        raw.send_what_goes(&[choice, vec![0; 28]].concat());
        raw.rest();
    }
    // EXPORT_NAME cannot say no, but close.
    for label in [b"dusk".as_slice(), b"", b"\xff", &[b'x'; 5000]] {
        let mut raw = Raw::greeted(&rig.socket);
        raw.option(OPT_EXPORT_NAME, label);
        raw.expect_end();
    }
    let mut raw = Raw::greeted(&rig.socket);
    raw.option(OPT_EXTENDED_HEADERS, &[]);
    assert_eq!(raw.option_reply().1, REP_ACK);
    raw.option(OPT_EXPORT_NAME, b"disk");
    raw.expect_end();
    still_serves(&rig);
}

#[test]
fn client_flags_decide_what_follows() {
    let rig = Rig::new();
    for flags in [4_u32, 7, 1 << 16, u32::MAX] {
        let mut raw = Raw::silent(&rig.socket);
        raw.take::<18>();
        raw.send(&flags.to_be_bytes());
        raw.expect_end();
    }
    // (flags, bytes that EXPORT_NAME brings)
    for (flags, len) in [(0_u32, 134), (1, 134), (2, 10), (3, 10)] {
        let mut raw = Raw::silent(&rig.socket);
        raw.take::<18>();
        raw.send(&flags.to_be_bytes());
        raw.option(OPT_EXPORT_NAME, b"disk");
        let answer = raw.take_bytes(len);
        assert!(answer[10..].iter().all(|byte| *byte == 0), "padding");
        raw.request(READ, 0, 1, 0, 512);
        assert_eq!(raw.simple_reply(), (0, 1), "flags {flags}");
    }
    // Not fixed: nothing but EXPORT_NAME.
    for code in [OPT_LIST, OPT_GO, OPT_ABORT, OPT_STARTTLS, 99] {
        let mut raw = Raw::silent(&rig.socket);
        raw.take::<18>();
        raw.send(&0_u32.to_be_bytes());
        raw.option(code, &[]);
        raw.expect_end();
    }
    still_serves(&rig);
}

#[test]
fn abort_is_acknowledged_and_a_client_that_does_not_wait_harms_nobody() {
    let rig = Rig::new();
    let mut raw = Raw::greeted(&rig.socket);
    raw.option(OPT_ABORT, b"with data");
    assert_eq!(raw.option_reply(), (OPT_ABORT, REP_ACK, vec![]));
    raw.expect_end();
    let mut raw = Raw::greeted(&rig.socket);
    raw.option(OPT_ABORT, &[]);
    drop(raw);
    still_serves(&rig);
    eventually("nobody is left behind", || rig.connections() == 0);
}
