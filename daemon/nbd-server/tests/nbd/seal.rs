//! What clients see when the key goes: silence on a holding export, ESHUTDOWN on a failing one, never data and never
//! an input/output error; and everything that was acknowledged after the next push.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use nbd_server::client::{Client, ClientError, RefusalKind};
use nbd_server::{Errno, Limits, OnSeal};
use units::BootInstant;

use crate::metrics::counter;
use crate::raw::*;
use crate::rig::{MIB, NOT_SMALL, PATIENCE, Random, Rig, Setup, eventually, moved, soak};

fn rig(on_seal: OnSeal) -> Rig {
    // What is asked after a seal is answered, however busy the machine is.
    let limits = Limits { seal_answer_time: PATIENCE, ..Limits::default() };
    let rig = Rig::with(Setup { on_seal, limits, ..Setup::default() });
    rig.client().write(0, &[5; 256 << 10], true).unwrap();
    rig
}

fn refused_as_sealed(rig: &Rig, label: &str) {
    let refused = Client::connect(&rig.endpoint(), label).unwrap_err();
    assert!(
        matches!(refused, ClientError::Refused { kind: RefusalKind::Shutdown, .. }),
        "{label}: {refused}"
    );
}

#[test]
fn hold_closes_without_answering_what_is_in_flight() {
    let mut rig = rig(OnSeal::Hold);
    rig.device.close();
    let mut raw = Raw::structured(&rig.socket);
    raw.request(READ, 0, 1, 0, 4096);
    raw.request(WRITE, 0, 2, MIB, u32::try_from(NOT_SMALL).unwrap());
    raw.send(&[6; NOT_SMALL]);
    let mut idle = Raw::simple(&rig.socket);
    let mut half = Raw::structured(&rig.socket);
    half.request(WRITE, 0, 3, MIB, 4096);
    half.send(&[6; 100]);
    rig.device.wait_held(2);
    rig.seal();
    // Closed while the operations still hang.
    raw.expect_end();
    idle.expect_end();
    half.expect_end();
    assert_eq!(rig.server.exports()[0].connections, 0);
    assert!(rig.server.exports()[0].sealed);

    refused_as_sealed(&rig, "disk");
    refused_as_sealed(&rig, "whatever a sealed node does not know");
    assert!(matches!(
        Client::list(&rig.endpoint()).unwrap_err(),
        ClientError::Refused { kind: RefusalKind::Shutdown, .. }
    ));
    // An old client, which can't be told why.
    let mut old = Raw::greeted(&rig.socket);
    old.option(OPT_EXPORT_NAME, b"disk");
    old.expect_end();

    rig.device.open();
    rig.push();
    let mut read = [0; 4096];
    let mut client = rig.client();
    client.read(0, &mut read).unwrap();
    assert_eq!(read, [5; 4096]);
    client.read(MIB, &mut read).unwrap();
    assert!(read == [0; 4096] || read == [6; 4096], "old or new, whole");
}

#[test]
fn fail_answers_what_is_in_flight_and_what_follows() {
    let mut rig = rig(OnSeal::Fail);
    rig.device.close();
    let mut raw = Raw::structured(&rig.socket);
    for cookie in 0..8 {
        raw.request(READ, 0, cookie, cookie * 4096, 4096);
    }
    rig.device.wait_held(8);
    rig.seal();
    rig.device.open();
    let mut cookies = Vec::new();
    for _ in 0..8 {
        let chunk = raw.chunk();
        assert_eq!(chunk.errno(), Some(ESHUTDOWN));
        cookies.push(chunk.cookie);
    }
    cookies.sort_unstable();
    assert_eq!(cookies, (0..8).collect::<Vec<_>>());
    for (cookie, command) in (10..).zip([READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS]) {
        raw.request(command, 0, cookie, 0, 4096);
        if command == WRITE {
            raw.send(&[9; 4096]);
        }
        let chunk = raw.chunk();
        assert_eq!((chunk.errno(), chunk.cookie), (Some(ESHUTDOWN), cookie), "command {command}");
    }
    refused_as_sealed(&rig, "disk");
    raw.request(DISC, 0, 0, 0, 0);
    raw.expect_end();

    rig.push();
    let mut read = [0; 4096];
    rig.client().read(0, &mut read).unwrap();
    assert_eq!(read, [5; 4096]);
}

#[test]
fn a_connection_of_a_sealed_export_stays_sealed_after_the_next_push() {
    let mut rig = rig(OnSeal::Fail);
    let mut old = rig.client();
    rig.seal();
    rig.push();
    assert_eq!(old.read(0, &mut [0; 512]).unwrap_err().errno(), Some(Errno::Shutdown));
    rig.client().read(0, &mut [0; 512]).unwrap();
}

#[test]
fn the_server_finds_out_by_itself_that_the_key_is_gone() {
    let hold = rig(OnSeal::Hold);
    let mut client = hold.client();
    hold.wipe();
    let closed = client.read(0, &mut [0; 4096]).unwrap_err();
    assert!(closed.outcome_unknown(), "{closed}");
    refused_as_sealed(&hold, "disk");

    let fail = rig(OnSeal::Fail);
    let mut client = fail.client();
    fail.wipe();
    for _ in 0..3 {
        let failed = client.write(0, &[1; 4096], false).unwrap_err();
        assert_eq!(failed.errno(), Some(Errno::Shutdown), "{failed}");
    }
    refused_as_sealed(&fail, "disk");
}

#[test]
fn an_expired_lease_ends_service_as_a_wipe_does() {
    let until = BootInstant(1_000_000);
    let rig = Rig::with(Setup { lease_until: Some(until), ..Setup::default() });
    let mut client = rig.client();
    client.write(0, &[1; 4096], false).unwrap();
    moved(&rig.clock, BootInstant(until.0 - 1));
    client.read(0, &mut [0; 4096]).unwrap();
    moved(&rig.clock, until);
    let closed = client.read(0, &mut [0; 4096]).unwrap_err();
    assert!(closed.outcome_unknown(), "{closed}");
    refused_as_sealed(&rig, "disk");
}

#[test]
fn a_failing_device_below_a_wiped_key_is_no_input_output_error() {
    for on_seal in [OnSeal::Hold, OnSeal::Fail] {
        let rig = rig(on_seal);
        let mut client = rig.client();
        rig.device.below().inject(device::Fault {
            operation: device::Operation::Read,
            after: 0,
            errno: device::Errno::EIO,
            lasting: true,
        });
        rig.wipe();
        let error = client.read(0, &mut [0; 4096]).unwrap_err();
        assert_ne!(error.errno(), Some(Errno::Io), "{error}");
        assert!(error.errno() == Some(Errno::Shutdown) || error.outcome_unknown(), "{error}");
    }
}

#[test]
fn a_reply_that_waits_for_a_slow_client_does_not_leave_after_the_seal() {
    for (on_seal, told) in
        [(OnSeal::Hold, true), (OnSeal::Hold, false), (OnSeal::Fail, true), (OnSeal::Fail, false)]
    {
        let rig = Rig::with(Setup { on_seal, ..Setup::default() });
        rig.client().write(0, &vec![5; 8 << 20], false).unwrap();
        let mut raw = Raw::structured(&rig.socket);
        raw.request(READ, 0, 1, 0, 8 << 20);
        raw.request(READ, 0, 2, 0, 8 << 20);
        // The first is on its way out.
        raw.take::<20>();
        if told {
            rig.seal();
            eventually("the connection is closed", || counter(&rig, "nbd_connections", "") == 0);
        } else {
            // The server finds out when the client reads on.
            rig.wipe();
        }
        let received = raw.rest();
        assert!(received < 8 << 20, "{received} bytes came although only the socket's buffer had left");
    }
}

#[test]
fn a_negotiation_that_outlives_the_key_is_refused() {
    let rig = rig(OnSeal::Hold);
    let mut raw = Raw::greeted(&rig.socket);
    rig.seal();
    raw.option(OPT_GO, &go("disk"));
    assert_eq!(raw.option_reply().1, REP_ERR_SHUTDOWN);
    raw.option(OPT_GO, &go("disk"));
    assert_eq!(raw.option_reply().1, REP_ERR_SHUTDOWN, "and the client may go on asking");
}

#[test]
fn one_export_is_sealed_and_the_others_serve() {
    let rig = rig(OnSeal::Hold);
    rig.server.insert("second", rig.export()).unwrap();
    let mut first = rig.client();
    let mut second = Client::connect(&rig.endpoint(), "second").unwrap();
    rig.server.seal("disk");
    assert!(first.flush().unwrap_err().outcome_unknown());
    second.flush().unwrap();
    refused_as_sealed(&rig, "disk");
    let unknown = Client::connect(&rig.endpoint(), "third").unwrap_err();
    assert!(matches!(unknown, ClientError::Refused { kind: RefusalKind::Unknown, .. }), "{unknown}");
    assert_eq!(Client::list(&rig.endpoint()).unwrap(), ["second"]);
    rig.server.remove("second");
    assert!(second.flush().unwrap_err().outcome_unknown());
    let labels: Vec<_> =
        rig.server.exports().into_iter().map(|export| (export.label, export.sealed)).collect();
    assert_eq!(labels, [("disk".to_owned(), true)]);
}

#[test]
fn late_news_of_a_wipe_does_not_hit_the_next_push() {
    let mut rig = rig(OnSeal::Hold);
    let mut old = rig.client();
    rig.wipe();
    rig.push();
    let mut new = rig.client();
    rig.server.seal_gone();
    assert!(old.flush().unwrap_err().outcome_unknown());
    new.flush().unwrap();
    rig.wipe();
    rig.server.seal_gone();
    assert!(new.flush().unwrap_err().outcome_unknown());
    assert!(rig.server.exports()[0].sealed);
}

/// Clients that write, are cut off by seals at random moments, reconnect and write again: whatever was acknowledged
/// is there, and whatever was not is old or new.
#[test]
fn acknowledged_writes_survive_any_number_of_seals() {
    const WRITERS: u64 = 4;
    const SLOTS: u64 = 8;
    const SEALS_MIN: u32 = 6;
    let mut random = Random::seeded("seals under load");
    let rig = Mutex::new(rig(OnSeal::Hold));
    let endpoint = rig.lock().unwrap().endpoint();
    let deadline = Instant::now() + soak();
    let seals = std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (mut random, endpoint) = (random.fork(), endpoint.clone());
            scope.spawn(move || {
                // Per slot: the last acknowledged number and those that may have come after it.
                let mut certain = [0_u64; SLOTS as usize];
                let mut possible: [Vec<u64>; SLOTS as usize] = Default::default();
                let mut number = 0_u64;
                while number == 0 || Instant::now() < deadline {
                    let Ok(mut client) = Client::connect(&endpoint, "disk") else { continue };
                    loop {
                        let slot = random.below(SLOTS);
                        let index = usize::try_from(slot).unwrap();
                        let at = (1 + writer) * MIB + slot * 9000;
                        if random.below(3) == 0 {
                            let mut read = [0; 9000];
                            match client.read(at, &mut read) {
                                Ok(()) => {
                                    let seen = u64::from_be_bytes(read[..8].try_into().unwrap());
                                    let fits = seen == certain[index] || possible[index].contains(&seen);
                                    assert!(fits, "{seen} where {} was acknowledged", certain[index]);
                                    (certain[index], possible[index]) = (seen, Vec::new());
                                }
                                Err(error) => {
                                    assert!(error.outcome_unknown(), "{error}");
                                    break;
                                }
                            }
                            continue;
                        }
                        number += 1;
                        let data: Vec<u8> = number.to_be_bytes().into_iter().cycle().take(9000).collect();
                        possible[index].push(number);
                        match client.write(at, &data, false) {
                            Ok(()) => (certain[index], possible[index]) = (number, Vec::new()),
                            Err(error) => {
                                assert!(error.outcome_unknown(), "{error}");
                                break;
                            }
                        }
                        if Instant::now() >= deadline {
                            break;
                        }
                    }
                }
            });
        }
        let mut seals = 0;
        while seals < SEALS_MIN || Instant::now() < deadline {
            let until = Instant::now() + Duration::from_micros(500 + random.below(20_000));
            while Instant::now() < until {
                std::thread::yield_now();
            }
            let mut rig = rig.lock().unwrap();
            // Half of them are noticed before the node says so.
            rig.wipe();
            if random.below(2) == 0 {
                std::thread::yield_now();
            }
            rig.server.seal_all();
            rig.push();
            seals += 1;
        }
        seals
    });
    println!("{seals} seals");
}
