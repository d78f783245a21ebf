//! Each command does what the protocol says, with simple and with structured replies.

use nbd_server::client::{Client, ClientError, Endpoint, Extent, RefusalKind, ZeroOptions};
use nbd_server::{Errno, InvalidLabel};

use crate::raw::*;
use crate::rig::{MIB, NOT_SMALL, Random, Rig, Setup};

#[test]
fn what_is_written_is_read_back_at_any_alignment() {
    let rig = Rig::new();
    let mut client = rig.client();
    assert_eq!(client.info().len_bytes, 256 * MIB);
    assert!(client.info().can_multi_conn() && client.info().block_status && !client.info().read_only());
    let mut random = Random::seeded("alignments");
    let mut model = vec![0; 64 << 10];
    for _ in 0..200 {
        let offset = usize::try_from(random.below(model.len() as u64)).unwrap();
        let len = usize::try_from(random.below((model.len() - offset) as u64)).unwrap();
        let data = random.bytes(len);
        client.write(offset as u64, &data, false).unwrap();
        model[offset..offset + len].copy_from_slice(&data);
        let mut read = vec![0; model.len() - offset];
        client.read(offset as u64, &mut read).unwrap();
        assert!(read == model[offset..], "after a write of {len} at {offset}");
    }
    client.disconnect().unwrap();
}

#[test]
fn the_longest_payload_and_requests_beyond_it() {
    let rig = Rig::new();
    let mut client = rig.client();
    let data = Random::seeded("payload").bytes(40 << 20);
    client.write(3, &data, true).unwrap();
    let mut read = vec![0; data.len()];
    client.read(3, &mut read).unwrap();
    assert!(read == data, "40 MiB in pieces of 32");

    let mut raw = Raw::structured(&rig.socket);
    raw.request(READ, 0, 1, 0, 32 << 20);
    let chunk = raw.chunk();
    assert_eq!((chunk.flags, chunk.kind, chunk.cookie), (1, 1, 1));
    assert!(chunk.payload[8 + 3..] == data[..(32 << 20) - 3], "32 MiB in one piece");
    raw.request(READ, 0, 2, 0, (32 << 20) + 1);
    assert_eq!(raw.chunk().errno(), Some(EOVERFLOW));
}

#[test]
fn old_clients_get_simple_replies() {
    let rig = Rig::new();
    let mut raw = Raw::simple(&rig.socket);
    raw.request(WRITE, 0, 77, 4096, 512);
    raw.send(&[0xab; 512]);
    assert_eq!(raw.simple_reply(), (0, 77));
    raw.request(READ, 0, 78, 4096, 1024);
    assert_eq!(raw.simple_reply(), (0, 78));
    assert_eq!(raw.take::<1024>(), [[0xab; 512], [0; 512]].concat().as_slice());
    raw.request(READ, 0, 79, 256 * MIB, 1);
    assert_eq!(raw.simple_reply(), (EINVAL, 79), "an error and no data");
    raw.request(BLOCK_STATUS, 0, 80, 0, 4096);
    assert_eq!(raw.simple_reply(), (EINVAL, 80), "needs structured replies");
    raw.request(READ, 4, 81, 0, 4096);
    assert_eq!(raw.simple_reply(), (EINVAL, 81), "DF needs structured replies");
    raw.request(FLUSH, 0, 82, 0, 0);
    assert_eq!(raw.simple_reply(), (0, 82));
    raw.request(DISC, 0, 0, 0, 0);
    raw.expect_end();
}

#[test]
fn trim_zeroes_cache_and_block_status() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.write(0, &[1; 64 << 10], false).unwrap();
    let hole = |len_bytes| Extent { len_bytes, hole: true, zero: true };
    let data = |len_bytes| Extent { len_bytes, hole: false, zero: false };
    assert_eq!(client.block_status(0, MIB).unwrap(), [data(64 << 10), hole(MIB - (64 << 10))]);

    client.trim(8 << 10, 8 << 10, false).unwrap();
    client.write_zeroes(32 << 10, 4 << 10, ZeroOptions::default()).unwrap();
    let kept = ZeroOptions { keep_allocated: true, ..ZeroOptions::default() };
    client.write_zeroes(48 << 10, 4 << 10, kept).unwrap();
    client.cache(0, MIB).unwrap();
    let mut read = vec![9; 64 << 10];
    client.read(0, &mut read).unwrap();
    for (index, byte) in read.iter().enumerate() {
        let zero =
            [(8, 16), (32, 36), (48, 52)].iter().any(|(from, to)| (from << 10..to << 10).contains(&index));
        assert_eq!(*byte, u8::from(!zero), "byte {index}");
    }
    let expected = [data(8 << 10), hole(8 << 10), data(16 << 10), hole(4 << 10), data(28 << 10)];
    assert_eq!(client.block_status(0, 64 << 10).unwrap(), expected);
    // From the middle of a sector to the middle of another.
    assert_eq!(client.block_status((8 << 10) - 1, 4098).unwrap(), [data(1), hole(4097)]);

    let fast = ZeroOptions { fast: true, durable: true, ..ZeroOptions::default() };
    client.write_zeroes(0, 64 << 10, fast).unwrap();
    assert_eq!(client.block_status(0, MIB).unwrap(), [hole(MIB)]);
    let slow = ZeroOptions { keep_allocated: true, fast: true, durable: false };
    assert_eq!(client.write_zeroes(0, 4096, slow).unwrap_err().errno(), Some(Errno::NotSupported));
}

#[test]
fn one_descriptor_where_one_is_asked_for_and_a_limit_where_not() {
    // 10,000 sectors in turns: more descriptors than fit one reply.
    let rig = Rig::new();
    let mut client = rig.client();
    client.write(0, &vec![1; 10_000 * 4096], false).unwrap();
    for sector in (0..10_000).step_by(2) {
        client.trim(sector * 4096, 4096, false).unwrap();
    }
    let first = client.block_status(0, 10_000 * 4096).unwrap();
    assert_eq!(first.len(), 8192);
    assert!(first.iter().all(|extent| extent.len_bytes == 4096));
    assert_eq!(client.block_status(8192 * 4096, 1808 * 4096).unwrap().len(), 1808);

    let mut raw = Raw::structured(&rig.socket);
    raw.request(BLOCK_STATUS, 8, 5, 10_000 * 4096, 100 << 20);
    let chunk = raw.chunk();
    assert_eq!((chunk.flags, chunk.kind, chunk.cookie), (1, 5, 5));
    let mut expected = 1_u32.to_be_bytes().to_vec();
    expected.extend_from_slice(&(100_u32 << 20).to_be_bytes());
    expected.extend_from_slice(&3_u32.to_be_bytes());
    assert_eq!(chunk.payload, expected, "one hole of 100 MiB");
}

#[test]
fn block_status_of_a_vast_volume_is_one_hole() {
    let rig = Rig::with(Setup { volume_bytes: 16 << 40, ..Setup::default() });
    let mut client = rig.client();
    let len = u64::from(u32::MAX);
    assert_eq!(
        client.block_status(5 << 40, len).unwrap(),
        [Extent { len_bytes: len, hole: true, zero: true }]
    );
    assert!(matches!(client.block_status(0, 1 << 32), Err(ClientError::TooLong { .. })));
}

#[test]
fn requests_of_no_bytes_are_harmless() {
    let rig = Rig::new();
    let mut raw = Raw::structured(&rig.socket);
    for (cookie, command) in (1..).zip([READ, WRITE, TRIM, CACHE, WRITE_ZEROES]) {
        raw.request(command, 0, cookie, 4096, 0);
        let chunk = raw.chunk();
        assert_eq!((chunk.kind, chunk.cookie, chunk.payload.len()), (0, cookie, 0), "command {command}");
    }
    raw.request(BLOCK_STATUS, 0, 9, 4096, 0);
    assert_eq!(raw.chunk().errno(), Some(EINVAL));
}

#[test]
fn a_read_only_export_refuses_every_change_and_consumes_payloads() {
    let rig = Rig::with(Setup { read_only: true, ..Setup::default() });
    let mut raw = Raw::structured(&rig.socket);
    raw.request(WRITE, 0, 1, 0, 4096);
    raw.send(&[1; 4096]);
    raw.request(TRIM, 0, 2, 0, 4096);
    raw.request(WRITE_ZEROES, 0, 3, 0, 4096);
    for cookie in 1..=3 {
        let chunk = raw.chunk();
        assert_eq!((chunk.errno(), chunk.cookie), (Some(EPERM), cookie));
    }
    raw.request(READ, 0, 4, 0, 4096);
    assert_eq!(raw.chunk().payload[8..], [0; 4096]);
    assert!(rig.client().info().read_only());
}

#[test]
fn exports_are_listed_and_unknown_ones_refused() {
    let rig = Rig::new();
    assert_eq!(Client::list(&rig.endpoint()).unwrap(), ["disk"]);
    for label in ["dusk", ""] {
        let refused = Client::connect(&rig.endpoint(), label).unwrap_err();
        assert!(
            matches!(refused, ClientError::Refused { kind: RefusalKind::Unknown, .. }),
            "{label}: {refused}"
        );
    }
    let nobody = Endpoint::unix(rig.socket.with_extension("none"));
    assert!(matches!(Client::connect(&nobody, "disk"), Err(ClientError::Connect { .. })));
}

#[test]
fn labels_are_held_against_their_limits() {
    assert_eq!(insert(""), Err(InvalidLabel::Empty));
    assert_eq!(insert(&"x".repeat(4096)), Ok(()));
    assert_eq!(insert(&"x".repeat(4097)), Err(InvalidLabel::TooLong(4097)));
    assert!(matches!(insert("new\nline"), Err(InvalidLabel::ControlCharacter(_))));
    assert_eq!(insert("büro/disk 1"), Ok(()));
}

fn insert(label: &str) -> Result<(), InvalidLabel> {
    let rig = Rig::new();
    rig.server.insert(label, rig.export())?;
    assert!(Client::list(&rig.endpoint()).unwrap().contains(&label.to_owned()));
    Client::connect(&rig.endpoint(), label).unwrap().disconnect().unwrap();
    rig.server.remove(label);
    let refused = Client::connect(&rig.endpoint(), label).unwrap_err();
    assert!(matches!(refused, ClientError::Refused { kind: RefusalKind::Unknown, .. }), "{refused}");
    Ok(())
}

#[test]
fn replies_come_as_requests_finish() {
    let rig = Rig::new();
    rig.client().write(0, &[5; NOT_SMALL], false).unwrap();
    rig.device.close();
    let mut raw = Raw::structured(&rig.socket);
    raw.request(READ, 0, 1, 0, 4096);
    rig.device.wait_held(1);
    raw.request(READ, 0, 2, MIB, 4096);
    let overtaking = raw.chunk();
    assert_eq!(
        (overtaking.cookie, &overtaking.payload[8..]),
        (2, [0; 4096].as_slice()),
        "a hole needs no device"
    );
    rig.device.open();
    let late = raw.chunk();
    assert_eq!((late.cookie, &late.payload[8..]), (1, [5; 4096].as_slice()));
}

#[test]
fn a_disconnect_answers_everything_in_flight_and_so_does_a_closed_half() {
    for disconnect in [true, false] {
        let rig = Rig::new();
        rig.client().write(0, &[5; NOT_SMALL], false).unwrap();
        rig.device.close();
        let mut raw = Raw::structured(&rig.socket);
        for cookie in 0..16 {
            raw.request(READ, 0, cookie, cookie * 4096, 4096);
        }
        raw.request(WRITE, 0, 16, MIB, u32::try_from(NOT_SMALL).unwrap());
        raw.send(&[6; NOT_SMALL]);
        if disconnect {
            raw.request(DISC, 0, 17, 0, 0);
        } else {
            raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        rig.device.wait_held(17);
        rig.device.open();
        let mut cookies: Vec<u64> = (0..17).map(|_| raw.chunk().cookie).collect();
        cookies.sort_unstable();
        assert_eq!(cookies, (0..17).collect::<Vec<_>>());
        raw.expect_end();
    }
}

#[test]
fn a_failing_device_is_an_error_and_the_connection_goes_on() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.write(0, &[5; NOT_SMALL], false).unwrap();
    rig.device.below().inject(device::Fault {
        operation: device::Operation::Read,
        after: 0,
        errno: device::Errno::EIO,
        lasting: false,
    });
    let mut read = [0; 4096];
    let failed = client.read(0, &mut read).unwrap_err();
    assert_eq!(failed.errno(), Some(Errno::Io));
    assert!(!failed.outcome_unknown());
    assert!(failed.to_string().contains("see its log"), "{failed}");
    client.read(0, &mut read).unwrap();
    assert_eq!(read, [5; 4096]);
}

#[test]
fn a_bug_below_is_an_error_and_the_connection_goes_on() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.write(0, &[5; NOT_SMALL], false).unwrap();
    rig.device.panic_once();
    let mut read = [0; 4096];
    assert_eq!(client.read(0, &mut read).unwrap_err().errno(), Some(Errno::Io));
    client.read(0, &mut read).unwrap();
    assert_eq!(read, [5; 4096]);
}

#[test]
fn a_full_pool_is_enospc_and_what_was_there_stays() {
    let rig = Rig::with(Setup { pool_bytes: 8 * MIB, volume_bytes: 64 * MIB, ..Setup::default() });
    let mut client = rig.client();
    let mut written = 0;
    let full = loop {
        match client.write(written * MIB, &[7; MIB as usize], false) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full.errno(), Some(Errno::NoSpace), "{full}");
    assert!(written > 0 && written < 8);
    let mut read = vec![0; MIB as usize];
    for index in 0..written {
        client.read(index * MIB, &mut read).unwrap();
        assert!(read.iter().all(|byte| *byte == 7), "MiB {index}");
    }
    client.trim(0, MIB, true).unwrap();
    let mut raw = Raw::structured(&rig.socket);
    raw.request(WRITE, 0, 1, 64 * MIB - 1, 2);
    raw.send(&[1; 2]);
    assert_eq!(raw.chunk().errno(), Some(ENOSPC), "past the end");
}

#[test]
fn a_drain_finishes_what_is_in_flight_and_takes_nothing_more() {
    let rig = Rig::new();
    rig.client().write(0, &[5; NOT_SMALL], false).unwrap();
    rig.device.close();
    let mut raw = Raw::structured(&rig.socket);
    raw.request(READ, 0, 1, 0, 4096);
    rig.device.wait_held(1);
    let mut negotiating = Raw::greeted(&rig.socket);
    let mut idle = Raw::structured(&rig.socket);
    let server = rig.server.clone();
    let drain = rig.runtime().spawn(async move { server.drain(crate::rig::PATIENCE).await });
    negotiating.expect_end();
    idle.expect_end();
    rig.device.open();
    assert_eq!(raw.chunk().payload[8..], [5; 4096]);
    raw.expect_end();
    assert_eq!(rig.runtime().block_on(drain).unwrap(), nbd_server::Drained { cut: 0 });
    // Nobody accepts any more; the backlog may still take the connection.
    if let Ok(late) = std::os::unix::net::UnixStream::connect(&rig.socket) {
        late.set_read_timeout(Some(crate::rig::PATIENCE)).unwrap();
        Raw { stream: late }.expect_end();
    }
}

#[test]
fn a_drain_cuts_what_does_not_finish() {
    let rig = Rig::new();
    rig.client().write(0, &[5; NOT_SMALL], false).unwrap();
    rig.device.close();
    let mut raw = Raw::structured(&rig.socket);
    raw.request(READ, 0, 1, 0, 4096);
    rig.device.wait_held(1);
    let server = rig.server.clone();
    let limit = std::time::Duration::from_millis(50);
    let drained = rig.runtime().block_on(async move { server.drain(limit).await });
    assert_eq!(drained, nbd_server::Drained { cut: 1 });
    raw.expect_end();
}
