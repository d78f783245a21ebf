//! Every command in each of the three styles of messages, right and wrong: after each of them the next is understood.

use crate::abuse::still_serves;
use crate::raw::*;
use crate::rig::{MIB, Random, Rig, Setup};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Style {
    Simple,
    Structured,
    Extended,
}

const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

/// A connection that speaks one of them.
struct Speaker {
    raw: Raw,
    style: Style,
    cookie: u64,
}

/// What came back, whatever the style.
#[derive(Debug, PartialEq)]
enum Answer {
    Done,
    Error(u32),
    Data(Vec<u8>),
    /// (bytes, flags)
    Status(Vec<(u64, u64)>),
}

impl Speaker {
    fn new(rig: &Rig, style: Style) -> Self {
        let raw = match style {
            Style::Simple => Raw::simple(&rig.socket),
            Style::Structured => Raw::structured(&rig.socket),
            Style::Extended => Raw::extended(&rig.socket),
        };
        Self { raw, style, cookie: 0xc00c_1e00_0000_0000 }
    }

    /// Sends one request and takes its answer.
    fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u64, payload: &[u8]) -> Answer {
        self.cookie += 1;
        let header = match self.style {
            Style::Extended => extended_request(command, flags, self.cookie, offset, len),
            _ => request(command, flags, self.cookie, offset, u32::try_from(len).unwrap()),
        };
        self.raw.send(&header);
        self.raw.send(payload);
        if self.style == Style::Simple {
            let (error, cookie) = self.raw.simple_reply();
            assert_eq!(cookie, self.cookie);
            return match (error, command) {
                (0, READ) => Answer::Data(self.raw.take_bytes(len as usize)),
                (0, _) => Answer::Done,
                _ => Answer::Error(error),
            };
        }
        let chunk = if self.style == Style::Extended {
            let (chunk, repeated) = self.raw.extended_chunk();
            assert_eq!(repeated, offset, "the request's offset comes back");
            chunk
        } else {
            self.raw.chunk()
        };
        assert_eq!((chunk.flags, chunk.cookie), (1, self.cookie), "one chunk is the whole reply");
        let long = |at: usize| u64::from_be_bytes(chunk.payload[at..at + 8].try_into().unwrap());
        let word = |at: usize| u64::from(u32::from_be_bytes(chunk.payload[at..at + 4].try_into().unwrap()));
        match (chunk.kind, self.style) {
            (0, _) => Answer::Done,
            (1, _) => {
                assert_eq!(long(0), offset);
                Answer::Data(chunk.payload[8..].to_vec())
            }
            (5, Style::Structured) => {
                assert_eq!(word(0), 1, "the context's id");
                Answer::Status(
                    (4..chunk.payload.len()).step_by(8).map(|at| (word(at), word(at + 4))).collect(),
                )
            }
            (6, Style::Extended) => {
                assert_eq!((word(0), word(4) as usize), (1, (chunk.payload.len() - 8) / 16), "id and count");
                Answer::Status(
                    (8..chunk.payload.len()).step_by(16).map(|at| (long(at), long(at + 8))).collect(),
                )
            }
            (0x8001, _) => {
                let message = &chunk.payload[6..];
                assert_eq!(
                    usize::from(u16::from_be_bytes([chunk.payload[4], chunk.payload[5]])),
                    message.len()
                );
                assert!(std::str::from_utf8(message).is_ok_and(|message| !message.is_empty()));
                Answer::Error(word(0) as u32)
            }
            _ => panic!("chunk of type {} in style {:?}", chunk.kind, self.style),
        }
    }

    fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> Answer {
        let said = if self.style == Style::Extended { PAYLOAD_LEN } else { 0 };
        self.ask(WRITE, flags | said, offset, data.len() as u64, data)
    }

    fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        match self.ask(READ, 0, offset, len, &[]) {
            Answer::Data(data) => data,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_command_does_what_it_says_in_every_style_and_fua_is_taken_on_all() {
    for style in STYLES {
        for fua in [0, FUA] {
            let rig = Rig::new();
            let mut speaker = Speaker::new(&rig, style);
            let data = Random::seeded("every command").bytes(40_000);
            assert_eq!(speaker.write(fua, 4000, &data), Answer::Done);
            assert_eq!(speaker.ask(FLUSH, fua, 0, 0, &[]), Answer::Done);
            assert_eq!(speaker.ask(READ, fua, 4000, 40_000, &[]), Answer::Data(data.clone()));
            assert_eq!(speaker.ask(CACHE, fua, 0, MIB, &[]), Answer::Done);
            assert_eq!(speaker.ask(TRIM, fua, 4096, 8192, &[]), Answer::Done);
            assert_eq!(speaker.ask(WRITE_ZEROES, fua, 16_384, 4096, &[]), Answer::Done);
            assert_eq!(speaker.ask(WRITE_ZEROES, fua | NO_HOLE, 20_480, 4096, &[]), Answer::Done);
            assert_eq!(speaker.ask(WRITE_ZEROES, fua | FAST_ZERO, 24_576, 4096, &[]), Answer::Done);
            assert_eq!(
                speaker.ask(WRITE_ZEROES, fua | FAST_ZERO | NO_HOLE, 28_672, 4096, &[]),
                Answer::Error(ENOTSUP)
            );
            let mut expected = [vec![0; 4000], data.clone()].concat();
            expected[4096..12_288].fill(0);
            expected[16_384..28_672].fill(0);
            assert!(speaker.read(0, 44_000) == expected, "{style:?}");
            let status = speaker.ask(BLOCK_STATUS, fua, 0, MIB, &[]);
            let runs = [(4096, 0), (8192, 3), (4096, 0), (4096, 3), (4096, 0), (4096, 3), (16_384, 0)];
            let rest = (MIB - runs.iter().map(|(len, _)| len).sum::<u64>(), 3);
            match style {
                Style::Simple => assert_eq!(status, Answer::Error(EINVAL), "needs replies in chunks"),
                _ => assert_eq!(status, Answer::Status([runs.as_slice(), &[rest]].concat())),
            }
            speaker.raw.send(&match style {
                Style::Extended => extended_request(DISC, fua, 0, 0, 0),
                _ => request(DISC, fua, 0, 0, 0),
            });
            speaker.raw.expect_end();
        }
    }
}

#[test]
fn df_and_req_one_are_kept_where_replies_come_in_chunks() {
    let rig = Rig::new();
    rig.client().write(4096, &[7; 4096], false).unwrap();
    for style in STYLES {
        let mut speaker = Speaker::new(&rig, style);
        let read = speaker.ask(READ, DF, 0, MIB, &[]);
        let status = speaker.ask(BLOCK_STATUS, REQ_ONE, 0, MIB, &[]);
        if style == Style::Simple {
            assert_eq!((read, status), (Answer::Error(EINVAL), Answer::Error(EINVAL)));
            continue;
        }
        // Hole, data and hole in one chunk.
        let expected = [vec![0; 4096], vec![7; 4096], vec![0; (MIB - 8192) as usize]].concat();
        assert!(read == Answer::Data(expected));
        assert_eq!(status, Answer::Status(vec![(4096, 3)]));
        assert_eq!(speaker.ask(BLOCK_STATUS, REQ_ONE, 5000, 512, &[]), Answer::Status(vec![(512, 0)]));
    }
}

#[test]
fn wrong_requests_are_answered_in_every_style_and_the_stream_stays_in_step() {
    const END: u64 = 256 * MIB;
    let rig = Rig::new();
    for style in STYLES {
        let in_chunks = style != Style::Simple;
        let mut speaker = Speaker::new(&rig, style);
        let mut cases = vec![
            (READ, 0, END, 1, EINVAL),
            (READ, 0, END - 1, 2, EINVAL),
            (READ, 0, u64::MAX, 1, EINVAL),
            (READ, 0, u64::MAX, u64::from(u32::MAX), if in_chunks { EOVERFLOW } else { EINVAL }),
            (READ, 0, 0, (32 << 20) + 1, if in_chunks { EOVERFLOW } else { EINVAL }),
            (TRIM, 0, END, 1, EINVAL),
            (TRIM, 0, u64::MAX - 4095, 4096, EINVAL),
            (CACHE, 0, END - 511, 512, EINVAL),
            (WRITE_ZEROES, 0, END, 4096, ENOSPC),
            (WRITE_ZEROES, NO_HOLE, u64::MAX, 4096, ENOSPC),
            (BLOCK_STATUS, 0, END, 4096, EINVAL),
            (8, 0, 0, 0, EINVAL),
            (0x4242, 0, 0, 0, EINVAL),
            (u16::MAX, 0, u64::MAX, u64::from(u32::MAX), EINVAL),
        ];
        // Each flag on each command that does not take it.
        for bit in (1..16).map(|bit| 1_u16 << bit) {
            for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS] {
                let taken = match command {
                    READ => DF,
                    WRITE_ZEROES => NO_HOLE | FAST_ZERO,
                    BLOCK_STATUS => REQ_ONE,
                    _ => 0,
                };
                let payload = style == Style::Extended && bit == PAYLOAD_LEN;
                if taken & bit == 0 && !payload {
                    cases.push((command, bit, 0, 512, EINVAL));
                }
            }
        }
        for (command, flags, offset, len, errno) in cases {
            let answer = speaker.ask(command, flags, offset, len, &[]);
            assert_eq!(answer, Answer::Error(errno), "{style:?} {command} {flags:#x} {offset:#x} {len:#x}");
        }
        assert_eq!(speaker.write(0, END - 511, &[1; 512]), Answer::Error(ENOSPC));
        assert_eq!(speaker.write(0, u64::MAX - 5, &[1; 512]), Answer::Error(ENOSPC));
        assert_eq!(speaker.write(1 << 9, 0, &[1; 512]), Answer::Error(EINVAL));
        assert_eq!(speaker.read(0, 4096), [0; 4096]);
    }
    still_serves(&rig);
}

#[test]
fn extended_lengths_overflow_nothing() {
    let rig = Rig::new();
    let mut speaker = Speaker::new(&rig, Style::Extended);
    for command in [TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, READ] {
        for (offset, len) in
            [(0, u64::MAX), (1, u64::MAX), (u64::MAX, u64::MAX), (4096, 1 << 63), (0, 1 << 32)]
        {
            let errno = match command {
                WRITE_ZEROES => ENOSPC,
                READ => EOVERFLOW,
                _ => EINVAL,
            };
            let answer = speaker.ask(command, 0, offset, len, &[]);
            assert_eq!(answer, Answer::Error(errno), "{command} {offset:#x} {len:#x}");
        }
    }
    assert_eq!(speaker.read(0, 512), [0; 512]);
}

#[test]
fn extended_headers_reach_over_4_gib_in_one_request() {
    const VOLUME: u64 = 16 << 40;
    let rig = Rig::with(Setup { volume_bytes: VOLUME, ..Setup::default() });
    let mut speaker = Speaker::new(&rig, Style::Extended);
    assert_eq!(speaker.write(0, 9 << 40, &[5; 8192]), Answer::Done);
    assert_eq!(speaker.ask(BLOCK_STATUS, 0, (9 << 40) - (6 << 30), 10 << 30, &[]), {
        Answer::Status(vec![(6 << 30, 3), (8192, 0), ((4 << 30) - 8192, 3)])
    });
    // A hole that is longer than one look at it.
    assert_eq!(speaker.ask(BLOCK_STATUS, REQ_ONE, 0, VOLUME, &[]), Answer::Status(vec![(256 << 30, 3)]));
    assert_eq!(speaker.ask(CACHE, 0, 0, VOLUME, &[]), Answer::Done);
    assert_eq!(speaker.ask(TRIM, 0, 0, 9 << 40, &[]), Answer::Done);
    assert_eq!(speaker.read(9 << 40, 4096), [5; 4096]);
    assert_eq!(speaker.ask(WRITE_ZEROES, FAST_ZERO, (9 << 40) - 4096, 6 << 40, &[]), Answer::Done);
    assert_eq!(speaker.read(9 << 40, 8192), [0; 8192]);
    let long = (4 << 30) + 4096;
    assert_eq!(speaker.ask(WRITE_ZEROES, NO_HOLE, 0, long, &[]), Answer::Error(EOVERFLOW));
}

#[test]
fn a_payload_filter_names_the_one_context_or_is_refused_and_consumed() {
    let rig = Rig::new();
    rig.client().write(4096, &[7; 4096], false).unwrap();
    let mut speaker = Speaker::new(&rig, Style::Extended);
    let filter = |len: u64, contexts: &[u32]| {
        let mut payload = len.to_be_bytes().to_vec();
        payload.extend(contexts.iter().flat_map(|context| context.to_be_bytes()));
        payload
    };
    let mut ask = |flags: u16, offset: u64, payload: &[u8]| {
        speaker.ask(BLOCK_STATUS, flags | PAYLOAD_LEN, offset, payload.len() as u64, payload)
    };
    let whole = Answer::Status(vec![(4096, 3), (4096, 0), (MIB - 8192, 3)]);
    assert_eq!(ask(0, 0, &filter(MIB, &[1])), whole);
    assert_eq!(ask(REQ_ONE, 0, &filter(MIB, &[1])), Answer::Status(vec![(4096, 3)]));
    for payload in [
        filter(MIB, &[]),
        filter(MIB, &[0]),
        filter(MIB, &[2]),
        filter(MIB, &[1, 1]),
        filter(MIB, &[1, 2]),
        filter(MIB, &vec![1; 1000]),
        filter(0, &[1]),
        filter(u64::MAX, &[1]),
        filter(256 * MIB + 1, &[1]),
        vec![1],
        vec![9; 13],
        vec![9; 1 << 20],
    ] {
        assert_eq!(ask(0, 0, &payload), Answer::Error(EINVAL), "{} bytes", payload.len());
    }
    assert_eq!(ask(0, u64::MAX, &filter(512, &[1])), Answer::Error(EINVAL));
    assert_eq!(ask(0, 0, &filter(MIB, &[1])), whole, "the stream is still in step");
}

#[test]
fn payloads_that_no_command_asked_for_are_consumed_and_vast_ones_end_the_connection() {
    let rig = Rig::new();
    let mut speaker = Speaker::new(&rig, Style::Extended);
    for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, 8, 99, u16::MAX] {
        let payload = vec![0xee; 5000];
        assert_eq!(speaker.ask(command, PAYLOAD_LEN, 0, 5000, &payload), Answer::Error(EINVAL), "{command}");
    }
    // QEMU up to 10 says nothing of a write's payload and sends it.
    assert_eq!(speaker.ask(WRITE, FUA, 8192, 4096, &[3; 4096]), Answer::Done);
    assert_eq!(speaker.read(8192, 4096), [3; 4096]);
    for (command, flags) in [(WRITE, PAYLOAD_LEN), (WRITE, 0), (TRIM, PAYLOAD_LEN), (77, PAYLOAD_LEN)] {
        for len in [(32 << 20) + 1, 1 << 32, u64::MAX] {
            let mut raw = Raw::extended(&rig.socket);
            raw.extended_request(command, flags, 1, 0, len);
            raw.expect_end();
        }
    }
    still_serves(&rig);
}

#[test]
fn the_longest_payload_is_carried_in_every_style() {
    let rig = Rig::new();
    let data = Random::seeded("the longest payload").bytes(32 << 20);
    for (style, offset) in STYLES.into_iter().zip([1, 4096, 77_777]) {
        let mut speaker = Speaker::new(&rig, style);
        assert_eq!(speaker.write(0, offset, &data), Answer::Done);
        assert!(speaker.read(offset, 32 << 20) == data, "{style:?}");
    }
}

#[test]
fn a_header_of_another_style_ends_the_connection() {
    let rig = Rig::new();
    for style in STYLES {
        let mut speaker = Speaker::new(&rig, style);
        speaker.raw.send(&match style {
            Style::Extended => [request(READ, 0, 1, 0, 512), vec![0; 4]].concat(),
            _ => extended_request(READ, 0, 1, 0, 512),
        });
        speaker.raw.rest();
        let mut speaker = Speaker::new(&rig, style);
        speaker.raw.send(&[option(OPT_GO, &go("disk")), vec![0; 32]].concat());
        speaker.raw.rest();
    }
    still_serves(&rig);
}

#[test]
fn cookies_are_the_clients_and_may_repeat() {
    let rig = Rig::new();
    let mut raw = Raw::extended(&rig.socket);
    for offset in 0..32_u64 {
        raw.extended_request(READ, 0, u64::MAX, offset * 4096, 4096);
    }
    let mut offsets: Vec<u64> = (0..32)
        .map(|_| {
            let (chunk, offset) = raw.extended_chunk();
            assert_eq!((chunk.cookie, chunk.payload.len()), (u64::MAX, 8 + 4096));
            offset / 4096
        })
        .collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (0..32).collect::<Vec<_>>());
}

#[test]
fn requests_sent_in_one_piece_and_byte_by_byte_get_the_same_answers() {
    let rig = Rig::new();
    rig.client().write(0, &[6; 8192], false).unwrap();
    for style in STYLES {
        let ask = |command, flags, cookie, offset, len: u32| match style {
            Style::Extended => extended_request(command, flags, cookie, offset, len.into()),
            _ => request(command, flags, cookie, offset, len),
        };
        let said = if style == Style::Extended { PAYLOAD_LEN } else { 0 };
        let mut script = Vec::new();
        script.extend(ask(WRITE, said, 1, 8192, 300));
        script.extend([8; 300]);
        script.extend(ask(WRITE, 1 << 12, 2, 0, 77));
        script.extend([9; 77]);
        script.extend(ask(READ, 0, 3, 100, 512));
        script.extend(ask(FLUSH, 0, 4, 0, 0));
        script.extend(ask(99, 0, 5, 0, 0));
        script.extend(ask(BLOCK_STATUS, 0, 6, 0, 4096));
        script.extend(ask(DISC, 0, 7, 0, 0));
        let run = |pieces: usize| {
            let mut speaker = Speaker::new(&rig, style);
            for piece in script.chunks(pieces) {
                speaker.raw.send(piece);
            }
            speaker.raw.rest()
        };
        let whole = run(script.len());
        for pieces in [1, 7, 31] {
            assert_eq!(run(pieces), whole, "{style:?} in pieces of {pieces}");
        }
    }
}

#[test]
fn a_session_may_break_off_after_any_byte() {
    let rig = Rig::new();
    for style in STYLES {
        let ask = |command, flags, offset, len: u32| match style {
            Style::Extended => extended_request(command, flags, 1, offset, len.into()),
            _ => request(command, flags, 1, offset, len),
        };
        let said = if style == Style::Extended { PAYLOAD_LEN } else { 0 };
        // Sector 0 stays as it is; the write is not to be seen unless all of it came.
        let mut script = ask(READ, 0, 0, 4096);
        script.extend(ask(WRITE, said, 8192, 100));
        script.extend([1; 100]);
        for cut in 0..script.len() {
            let mut speaker = Speaker::new(&rig, style);
            speaker.raw.send(&script[..cut]);
            drop(speaker);
        }
    }
    still_serves(&rig);
    let mut read = [9; 100];
    rig.client().read(8192, &mut read).unwrap();
    assert_eq!(read, [0; 100]);
}
