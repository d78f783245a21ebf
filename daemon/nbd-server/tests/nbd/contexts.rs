//! What has changed since a snapshot, as a backup asks for it.

use nbd_server::client::Client;

use crate::raw::*;
use crate::rig::{MIB, Random, Rig, soak};

const SECTOR: u64 = 4096;

fn dirty(byte: u8) -> String {
    format!("nightlatch:dirty:{}", format!("{byte:02x}").repeat(16))
}

/// A connection to an export that has selected `contexts`, in one of the styles.
fn selected(rig: &Rig, label: &str, style: u32, contexts: &[&str]) -> Raw {
    let mut raw = Raw::greeted(&rig.socket);
    raw.option(style, &[]);
    assert_eq!(raw.option_reply().1, REP_ACK);
    raw.option(OPT_SET_META_CONTEXT, &queries(label, contexts));
    for _ in contexts {
        assert_eq!(raw.option_reply().1, REP_META_CONTEXT);
    }
    assert_eq!(raw.option_reply().1, REP_ACK);
    raw.option(OPT_GO, &go(label));
    while raw.option_reply().1 != REP_ACK {}
    raw
}

/// (context, runs of (bytes, flags)) for each chunk of a compact reply.
fn status(raw: &mut Raw, flags: u16, offset: u64, len: u32) -> Vec<(u32, Vec<(u64, u64)>)> {
    raw.request(BLOCK_STATUS, flags, 7, offset, len);
    let mut told = Vec::new();
    loop {
        let chunk = raw.chunk();
        assert_eq!((chunk.kind, chunk.cookie), (5, 7));
        let word = |at: usize| u32::from_be_bytes(chunk.payload[at..at + 4].try_into().unwrap());
        let runs = (4..chunk.payload.len()).step_by(8).map(|at| (word(at).into(), word(at + 4).into()));
        told.push((word(0), runs.collect()));
        if chunk.flags == 1 {
            return told;
        }
    }
}

/// As [`status`], of an extended reply to a request that names contexts or takes all.
fn wide_status(raw: &mut Raw, ids: &[u32], len: u64) -> Vec<(u32, Vec<(u64, u64)>)> {
    if ids.is_empty() {
        raw.extended_request(BLOCK_STATUS, 0, 7, 0, len);
    } else {
        raw.extended_request(BLOCK_STATUS, PAYLOAD_LEN, 7, 0, 8 + 4 * ids.len() as u64);
        raw.send(&len.to_be_bytes());
        ids.iter().for_each(|id| raw.send(&id.to_be_bytes()));
    }
    let mut told = Vec::new();
    loop {
        let (chunk, _) = raw.extended_chunk();
        assert_eq!((chunk.kind, chunk.cookie), (6, 7), "{chunk:?}");
        let word = |at: usize| u32::from_be_bytes(chunk.payload[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_be_bytes(chunk.payload[at..at + 8].try_into().unwrap());
        let runs: Vec<_> = (8..chunk.payload.len()).step_by(16).map(|at| (long(at), long(at + 8))).collect();
        assert_eq!(word(4) as usize, runs.len());
        told.push((word(0), runs));
        if chunk.flags == 1 {
            return told;
        }
    }
}

#[test]
fn each_context_tells_what_it_is_about_in_a_chunk_of_its_own() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.write(0, &[1; 64 << 10], true).unwrap();
    rig.snapshot(1);
    client.write(4096, &[2; 100], false).unwrap();
    rig.snapshot(2);
    client.trim(16 << 10, 4096, false).unwrap();
    client.write(MIB, &[3; 8192], false).unwrap();

    let (first, second) = (dirty(1), dirty(2));
    let mut raw = selected(&rig, "disk", OPT_STRUCTURED_REPLY, &["base:allocation", &first, &second]);
    let end = 2 * MIB - MIB - 8192;
    let hole = MIB - (64 << 10);
    let told = status(&mut raw, 0, 0, u32::try_from(2 * MIB).unwrap());
    let allocation =
        vec![(16 << 10, 0), (4096, 3), ((64 << 10) - (20 << 10), 0), (hole, 3), (8192, 0), (end, 3)];
    let since_first =
        vec![(4096, 0), (4096, 1), (8192, 0), (4096, 1), (MIB - (20 << 10), 0), (8192, 1), (end, 0)];
    let since_second = vec![(16 << 10, 0), (4096, 1), (MIB - (20 << 10), 0), (8192, 1), (end, 0)];
    assert_eq!(told, [(1, allocation), (2, since_first.clone()), (3, since_second.clone())]);
    // Not from the start of a sector, and no more than one run of each.
    let told = status(&mut raw, REQ_ONE, 4096 + 512, 8192);
    assert_eq!(told, [(1, vec![(8192, 0)]), (2, vec![(3584, 1)]), (3, vec![(8192, 0)])]);

    let mut raw = selected(&rig, "disk", OPT_EXTENDED_HEADERS, &[&first, &second]);
    let both = [(1, since_first), (2, since_second.clone())];
    assert_eq!(wide_status(&mut raw, &[], 2 * MIB), both);
    assert_eq!(wide_status(&mut raw, &[2, 1], 2 * MIB), both);
    assert_eq!(wide_status(&mut raw, &[2], 2 * MIB), [(2, since_second)]);
    // A snapshot is compared with an older one: with what nobody changes any more.
    let mut raw = selected(&rig, "disk@2", OPT_STRUCTURED_REPLY, &[&first]);
    assert_eq!(status(&mut raw, 0, 0, 16384), [(1, vec![(4096, 0), (4096, 1), (8192, 0)])]);
}

#[test]
fn a_snapshot_is_not_compared_with_itself_and_one_that_is_deleted_is_an_error_that_says_so() {
    let rig = Rig::new();
    rig.client().write(0, &[1; 8192], true).unwrap();
    rig.snapshot(1);
    rig.snapshot(2);
    let listed = |label: &str| {
        let mut raw = Raw::greeted(&rig.socket);
        raw.option(OPT_LIST_META_CONTEXT, &queries(label, &["nightlatch:"]));
        let mut names = Vec::new();
        loop {
            match raw.option_reply() {
                (_, REP_META_CONTEXT, data) => names.push(String::from_utf8(data[4..].to_vec()).unwrap()),
                (_, reply, _) => {
                    assert_eq!(reply, REP_ACK);
                    return names;
                }
            }
        }
    };
    assert_eq!(listed("disk"), [dirty(1), dirty(2)]);
    assert_eq!(listed("disk@2"), [dirty(1)]);

    let mut raw = selected(&rig, "disk", OPT_STRUCTURED_REPLY, &[&dirty(1)]);
    rig.delete_snapshot(1);
    raw.request(BLOCK_STATUS, 0, 1, 0, 4096);
    let chunk = raw.chunk();
    assert_eq!(chunk.errno(), Some(EINVAL));
    let message = String::from_utf8(chunk.payload[6..].to_vec()).unwrap();
    assert!(message.contains("deleted"), "{message}");
    raw.request(READ, 0, 2, 0, 512);
    assert_eq!(raw.chunk().payload[8..], [1; 512], "the connection goes on");
    assert_eq!(listed("disk"), [dirty(2)]);
}

/// Reads all of an export.
fn whole(rig: &Rig, label: &str, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    Client::connect(&rig.endpoint(), label).unwrap().read(0, &mut bytes).unwrap();
    bytes
}

/// Copies what is dirty, as a backup does, and counts the bytes.
fn copy_dirty(raw: &mut Raw, from: &[u8], to: &mut [u8]) -> u64 {
    let mut at = 0;
    let mut copied = 0;
    while at < from.len() {
        for (len, flags) in status(raw, 0, at as u64, u32::try_from(from.len() - at).unwrap())[0].1.clone() {
            let run = at..at + usize::try_from(len).unwrap();
            at = run.end;
            if flags == 1 {
                copied += len;
                to[run.clone()].copy_from_slice(&from[run]);
            }
        }
    }
    copied
}

#[test]
fn what_is_dirty_makes_an_older_copy_the_newer_one_and_nothing_else_is_dirty() {
    const LEN: u64 = 8 * MIB;
    let mut random = Random::seeded("incremental backups");
    let rig = Rig::new();
    let mut client = rig.client();
    let mut copy = vec![0; usize::try_from(LEN).unwrap()];
    // Ids below are others'.
    let mut rounds = 10;
    rig.snapshot(rounds);
    let deadline = std::time::Instant::now() + soak();
    while rounds < 15 || (rounds < 200 && std::time::Instant::now() < deadline) {
        let mut touched = std::collections::BTreeSet::new();
        for _ in 0..random.below(30) {
            let at = random.below(LEN - (256 << 10));
            let longest = if random.below(4) == 0 { 256 << 10 } else { 9000 };
            let len = 1 + random.below(longest);
            touched.extend(at / SECTOR..(at + len).div_ceil(SECTOR));
            match random.below(4) {
                0 => client.trim(at, len, false).unwrap(),
                1 => client.write_zeroes(at, len, Default::default()).unwrap(),
                _ => client.write(at, &random.bytes(usize::try_from(len).unwrap()), false).unwrap(),
            }
        }
        rounds += 1;
        rig.snapshot(rounds);
        let now = whole(&rig, &format!("disk@{rounds}"), LEN);
        let mut raw = selected(&rig, &format!("disk@{rounds}"), OPT_STRUCTURED_REPLY, &[&dirty(rounds - 1)]);
        let copied = copy_dirty(&mut raw, &now, &mut copy);
        assert!(copy == now, "round {rounds}: the copy is not what the snapshot shows");
        assert!(copied <= touched.len() as u64 * SECTOR, "round {rounds}: {copied} bytes of {touched:?}");
        rig.delete_snapshot(rounds - 1);
    }
}
