//! Clients that break the rules harm themselves only: after each of them the next one is served.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use nbd_server::Limits;

use crate::metrics::counter;
use crate::raw::*;
use crate::rig::{MIB, NOT_SMALL, PATIENCE, Random, Rig, Setup, eventually, soak};

/// The next client is served, and nothing was overwritten.
pub(crate) fn still_serves(rig: &Rig) {
    let mut client = rig.client();
    let mut read = [9; 4096];
    client.read(0, &mut read).unwrap();
    assert_eq!(read, [0; 4096]);
    client.disconnect().unwrap();
}

#[test]
fn malformed_handshakes_end_their_session_only() {
    let rig = Rig::new();
    let mut flags = Raw::silent(&rig.socket);
    flags.take::<18>();
    flags.send(&u32::MAX.to_be_bytes());
    flags.expect_end();

    let mut http = Raw::greeted(&rig.socket);
    http.send(b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n");
    http.rest();

    let mut long = Raw::greeted(&rig.socket);
    long.option_header(OPT_GO, u32::MAX);
    assert_eq!(long.option_reply().1, REP_ERR_TOO_BIG);
    long.expect_end();

    let mut cut = Raw::greeted(&rig.socket);
    cut.option_header(OPT_GO, 100);
    cut.send(b"half");
    drop(cut);

    let mut talkative = Raw::greeted(&rig.socket);
    for _ in 0..128 {
        talkative.option(OPT_LIST, &[]);
        while talkative.option_reply().1 != REP_ACK {}
    }
    talkative.option(OPT_LIST, &[]);
    talkative.expect_end();

    still_serves(&rig);
}

#[test]
fn options_at_the_length_limit_are_answered() {
    let rig = Rig::new();
    let mut raw = Raw::greeted(&rig.socket);
    raw.option(99, &vec![0; 64 << 10]);
    assert_eq!(raw.option_reply().1, (1 << 31) + 1, "unsupported");
    raw.option(OPT_GO, &go("disk"));
    while raw.option_reply().1 != REP_ACK {}
    raw.request(READ, 0, 1, 0, 512);
    assert_eq!(raw.simple_reply(), (0, 1));
}

#[test]
fn a_handshake_has_a_time_limit_however_busy_it_looks() {
    // As long as those need who are to be let in.
    let limits = Limits { negotiation_time_max: Duration::from_secs(5), ..Limits::default() };
    let rig = Rig::with(Setup { limits, ..Setup::default() });
    let mut silent = Raw::silent(&rig.socket);
    let mut half = Raw::greeted(&rig.socket);
    half.option_header(OPT_GO, 100);
    // A byte a millisecond: 64 seconds for this option, if it were let.
    let mut busy = Raw::greeted(&rig.socket);
    let began = Instant::now();
    busy.option_header(99, 64 << 10);
    while busy.stream.write(&[0]).is_ok() {
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
    busy.expect_end();
    assert_eq!(silent.rest(), 18, "the greeting and no more");
    half.expect_end();
    still_serves(&rig);
}

#[test]
fn one_connection_too_many_is_closed_and_a_free_place_is_taken() {
    let limits = Limits { connections_max: 2, ..Limits::default() };
    let rig = Rig::with(Setup { limits, ..Setup::default() });
    let first = rig.client();
    let negotiating = Raw::greeted(&rig.socket);
    Raw::silent(&rig.socket).expect_end();
    drop(negotiating);
    eventually("a place is free", || {
        let Ok(client) = nbd_server::client::Client::connect(&rig.endpoint(), "disk") else { return false };
        client.disconnect().is_ok()
    });
    drop(first);
}

#[test]
fn malformed_requests_are_answered_and_their_payload_is_consumed() {
    let rig = Rig::new();
    let mut raw = Raw::structured(&rig.socket);
    let cases: &[(u16, u16, u64, u32, u32)] = &[
        (WRITE, 0, 256 * MIB - 100, 4096, ENOSPC),
        (WRITE, 1 << 7, 0, 4096, EINVAL),
        (WRITE, 0, u64::MAX, 100_000, ENOSPC),
        (WRITE, 0, 0, (32 << 20) + 1, EINVAL),
        (READ, 0, 256 * MIB, 1, EINVAL),
        (READ, 0, u64::MAX - 5, 10, EINVAL),
        (READ, 0, 0, u32::MAX, EOVERFLOW),
        (READ, 1 << 15, 0, 512, EINVAL),
        (TRIM, 0, 256 * MIB - 1, 2, EINVAL),
        (WRITE_ZEROES, 0, 256 * MIB - 1, 2, ENOSPC),
        (WRITE_ZEROES, 1 << 4 | 1 << 1, 0, 512, ENOTSUP),
        (CACHE, 0, 256 * MIB, 512, EINVAL),
        (BLOCK_STATUS, 0, 256 * MIB, 512, EINVAL),
        (FLUSH, 1 << 1, 0, 0, EINVAL),
        (8, 0, 0, 0, EINVAL),
        (u16::MAX, 0, 0, 4096, EINVAL),
    ];
    for (cookie, (command, flags, offset, len, errno)) in (1..).zip(cases) {
        raw.request(*command, *flags, cookie, *offset, *len);
        if *command == WRITE {
            raw.send(&vec![0xee; *len as usize]);
        }
        let chunk = raw.chunk();
        assert_eq!((chunk.errno(), chunk.cookie), (Some(*errno), cookie), "command {command}");
    }
    raw.request(READ, 0, 99, 0, 4096);
    assert_eq!(raw.chunk().payload[8..], [0; 4096], "the stream is still in step");
    still_serves(&rig);
}

#[test]
fn a_request_with_the_wrong_magic_ends_the_connection_after_what_is_in_flight() {
    let rig = Rig::new();
    rig.client().write(MIB, &[5; NOT_SMALL], false).unwrap();
    rig.device.close();
    let mut raw = Raw::structured(&rig.socket);
    raw.request(READ, 0, 1, MIB, 4096);
    rig.device.wait_held(1);
    raw.send(&[0x41; 28]);
    raw.send_what_goes(&request(WRITE, 0, 2, 0, 0));
    rig.device.open();
    assert_eq!(raw.chunk().payload[8..], [5; 4096]);
    raw.rest();
    still_serves(&rig);
}

#[test]
fn a_payload_that_is_cut_leaves_the_old_data() {
    let rig = Rig::new();
    let old = vec![3; 1 << 20];
    rig.client().write(MIB, &old, false).unwrap();
    for sent in [0, 1, 4096, 500_000, (1 << 20) - 1] {
        let mut raw = Raw::structured(&rig.socket);
        raw.request(WRITE, 0, 1, MIB, 1 << 20);
        raw.send(&vec![4; sent]);
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        raw.expect_end();
    }
    let mut read = vec![0; 1 << 20];
    rig.client().read(MIB, &mut read).unwrap();
    assert!(read == old);
}

#[test]
fn announced_payloads_occupy_nothing_until_they_come() {
    let rig = Rig::new();
    let before = resident_bytes();
    let mut stalled = Vec::new();
    for _ in 0..100 {
        let mut raw = Raw::structured(&rig.socket);
        raw.request(WRITE, 0, 1, 0, 32 << 20);
        raw.send(&[1; 100]);
        stalled.push(raw);
    }
    still_serves(&rig);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes for 3.2 GB announced");
}

#[test]
fn a_client_that_never_reads_stalls_itself_only_in_bounded_memory() {
    const READ_BYTES: u32 = 1 << 20;
    let rig = Rig::new();
    let mut raw = Raw::structured(&rig.socket);
    let before = resident_bytes();
    // Far more than the server takes up: 4 GiB of replies. The socket takes a few more requests than the server.
    raw.stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut asked = 0_u64;
    let stalled = loop {
        match raw.stream.write_all(&request(READ, 0, asked, 4 * MIB, READ_BYTES)) {
            Ok(()) if asked < 4096 => asked += 1,
            Ok(()) => break false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
            Err(error) => panic!("{error}"),
        }
    };
    // 64 of them fill the connection's budget; a reply or two wait in the socket.
    let label = r#"operation="read""#;
    eventually("the budget is used up", || counter(&rig, "nbd_requests_total", label) >= 64);
    for _ in 0..20 {
        still_serves(&rig);
    }
    let done = counter(&rig, "nbd_requests_total", label) - 20;
    assert!((64..=66).contains(&done), "{done} reads were carried out ahead of the client");
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "{grown} bytes held for one client");

    // And when it reads at last, it gets everything it asked for.
    let whole = if stalled { asked } else { asked + 1 };
    for _ in 0..whole.min(200) {
        assert_eq!(raw.chunk().payload.len(), 8 + READ_BYTES as usize);
    }
}

#[test]
fn a_client_that_reads_byte_by_byte_costs_what_one_costs_that_never_reads() {
    const READ_BYTES: u32 = 1 << 20;
    const CLIENTS: u64 = 8;
    let limits = Limits { bytes_in_flight_max: 32 << 20, ..Limits::default() };
    let rig = Rig::with(Setup { limits, ..Setup::default() });
    let before = resident_bytes();
    let mut slow: Vec<Raw> = (0..CLIENTS)
        .map(|_| {
            let mut raw = Raw::structured(&rig.socket);
            (0..200).for_each(|cookie| raw.request(READ, 0, cookie, 4 * MIB, READ_BYTES));
            raw
        })
        .collect();
    let done = || counter(&rig, "nbd_requests_total", r#"operation="read""#);
    eventually("the budgets are used up", || done() >= CLIENTS * 32);
    for round in 0..20 {
        for raw in &mut slow {
            let mut byte = [0; 1];
            raw.stream.read_exact(&mut byte).unwrap();
        }
        still_serves(&rig);
        let own = done() - round - 1;
        assert!(own <= CLIENTS * 34, "{own} reads were carried out for {} bytes read", CLIENTS * 20);
    }
    let grown = resident_bytes().saturating_sub(before);
    let bound = CLIENTS * (32 << 20) + (128 << 20);
    assert!(grown < bound, "{grown} bytes held for {CLIENTS} clients");
}

#[test]
fn a_client_that_leaves_without_reading_its_answers_is_given_up() {
    let limits = Limits { linger_time_max: Duration::from_millis(100), ..Limits::default() };
    let rig = Rig::with(Setup { limits, ..Setup::default() });
    let mut raw = Raw::structured(&rig.socket);
    for cookie in 0..16 {
        raw.request(READ, 0, cookie, 0, 1 << 20);
    }
    raw.request(DISC, 0, 0, 0, 0);
    eventually("the server closes", || counter(&rig, "nbd_connections", "") == 0);
    assert!(raw.rest() < 16 << 20);
    still_serves(&rig);
}

#[test]
fn more_requests_than_may_be_in_flight_wait_their_turn() {
    let limits = Limits { requests_in_flight_max: 4, ..Limits::default() };
    let rig = Rig::with(Setup { limits, ..Setup::default() });
    rig.client().write(MIB, &[5; NOT_SMALL], false).unwrap();
    rig.device.close();
    let mut raw = Raw::structured(&rig.socket);
    for cookie in 0..16 {
        raw.request(READ, 0, cookie, MIB + cookie * 4096, 4096);
    }
    rig.device.wait_held(4);
    let label = r#"operation="read""#;
    assert_eq!(counter(&rig, "nbd_requests_in_flight", label), 4);
    rig.device.open();
    let mut cookies: Vec<u64> = (0..16).map(|_| raw.chunk().cookie).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..16).collect::<Vec<_>>());
}

#[test]
fn random_bytes_in_either_phase_harm_nobody() {
    let rig = Rig::new();
    let mut random = Random::seeded("random bytes");
    let deadline = Instant::now() + soak();
    while Instant::now() < deadline {
        let len = usize::try_from(random.below(3000)).unwrap();
        let mut bytes = random.bytes(len);
        let mut raw = match random.below(5) {
            0 => Raw::silent(&rig.socket),
            1 => Raw::greeted(&rig.socket),
            2 => Raw::simple(&rig.socket),
            3 => Raw::extended(&rig.socket),
            _ => Raw::structured(&rig.socket),
        };
        // Half of them look right at first: an option header, or a request that changes nothing at sector 0.
        if random.below(2) == 0 {
            let command = u16::try_from(random.below(8)).unwrap();
            let flags = u16::try_from(random.below(64)).unwrap();
            let mut front = if random.below(2) == 0 {
                request(command, flags, 1, 8192, 512)
            } else {
                extended_request(command, flags, 1, 8192, 512)
            };
            front.append(&mut bytes);
            bytes = front;
        }
        raw.send_what_goes(&bytes);
        drop(raw.stream.shutdown(std::net::Shutdown::Write));
        raw.rest();
    }
    still_serves(&rig);
    eventually("nobody is left behind", || counter(&rig, "nbd_connections", "") == 0);
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}
