//! Coverage-guided NBD streams: what a client may send, in the handshake and in transmission, against a second reading of
//! the protocol document.
//!
//! An input is a list of options and requests, well-formed ones, bent ones and plain bytes, or plain bytes alone. The
//! server's answers are read here with code of its own: each option reply must belong to the option whose turn it is, each
//! reply to the request whose turn it is, in the style that was negotiated, an error where the document wants one and none
//! where it does not. With `NIGHTLATCH_FUZZ_PLANT` set, what is expected is wrong on purpose.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use nbd_server::fuzzing::{EXPORT_BYTES, READ_BYTES_ANSWERED, Transmission, speak};

const PAYLOAD_MAX: u64 = 32 << 20;

/// The context of the one snapshot that there is.
const DIRTY: &str = "nightlatch:dirty:05050505050505050505050505050505";

fn planted() -> bool {
    static PLANTED: OnceLock<bool> = OnceLock::new();
    *PLANTED.get_or_init(|| std::env::var_os("NIGHTLATCH_FUZZ_PLANT").is_some())
}

fuzz_target!(|data: &[u8]| {
    let mut input = Unstructured::new(data);
    let Ok((stream, tls)) = stream(&mut input) else { return };
    let spoken = speak(&stream, tls);
    check_handshake(&spoken.handshake, &stream[..spoken.handshake_bytes]);
    if let Some(transmission) = spoken.transmission {
        check_transmission(&stream[spoken.handshake_bytes..], &transmission);
    }
});

/// What the client sends, and whether TLS is required.
fn stream(input: &mut Unstructured<'_>) -> Result<(Vec<u8>, bool)> {
    let tls = input.ratio(1, 8_u8)?;
    let mut stream = Vec::new();
    if input.ratio(1, 16_u8)? {
        return Ok((input.bytes(input.len())?.to_vec(), tls));
    }
    let flags = if input.ratio(1, 16_u8)? { input.arbitrary()? } else { 3_u32 };
    stream.extend(flags.to_be_bytes());
    if tls {
        stream.extend(option(5, &[]));
    }
    for _ in 0..input.int_in_range(0..=4_u8)? {
        let code = input.int_in_range(0..=12_u32)?;
        let data = option_data(code, input)?;
        stream.extend(option(code, &data));
    }
    let style = input.int_in_range(0..=2_u8)?;
    match style {
        0 => {}
        1 => stream.extend(option(8, &[])),
        _ => stream.extend(option(11, &[])),
    }
    match input.int_in_range(0..=3_u8)? {
        0 => {}
        1 => stream.extend(option(10, &queries("disk", &["base:allocation"]))),
        2 => stream.extend(option(10, &queries("disk", &[DIRTY]))),
        _ => stream.extend(option(10, &queries("disk", &[DIRTY, "base:allocation", DIRTY]))),
    }
    let label = if input.ratio(1, 4_u8)? { "archive" } else { "disk" };
    stream.extend(option(7, &[string(label), vec![0, 0]].concat()));
    while !input.is_empty() {
        request(style, input, &mut stream)?;
    }
    Ok((stream, tls))
}

fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).expect("an input of at most 4096 bytes");
    [b"IHAVEOPT".as_slice(), &code.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).expect("short").to_be_bytes(), text.as_bytes()].concat()
}

fn queries(label: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).expect("few").to_be_bytes();
    [string(label), count.to_vec(), queries.iter().flat_map(|query| string(query)).collect()].concat()
}

/// Right data for the option, bent in one byte, or anything.
fn option_data(code: u32, input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let label = *input.choose(&["disk", "archive", "asleep", "barred", "dusk", ""])?;
    let mut data = match code {
        1 => label.as_bytes().to_vec(),
        6 | 7 => [string(label), vec![0, 2, 0, 3, 0, 1]].concat(),
        9 | 10 => queries(label, &["base:", "base:allocation", "nightlatch:", DIRTY, "x-other:thing"]),
        _ => Vec::new(),
    };
    match input.int_in_range(0..=3_u8)? {
        0 if !data.is_empty() => {
            let at = input.choose_index(data.len())?;
            data[at] = input.arbitrary()?;
        }
        1 => {
            let len = input.int_in_range(0..=40_usize)?.min(input.len());
            data = input.bytes(len)?.to_vec();
        }
        _ => {}
    }
    Ok(data)
}

fn request(style: u8, input: &mut Unstructured<'_>, stream: &mut Vec<u8>) -> Result<()> {
    let extended = style == 2;
    let command = if input.ratio(1, 8_u8)? { input.arbitrary()? } else { input.int_in_range(0..=8_u16)? };
    let flags =
        if input.ratio(1, 4_u8)? { input.arbitrary()? } else { 1_u16 << input.int_in_range(0..=6_u16)? };
    let cookie: u64 = input.arbitrary()?;
    let offset = match input.int_in_range(0..=3_u8)? {
        0 => input.arbitrary()?,
        1 => EXPORT_BYTES - input.int_in_range(0..=5000_u64)?,
        _ => u64::from(input.arbitrary::<u16>()?),
    };
    let length = match input.int_in_range(0..=7_u8)? {
        0 => input.arbitrary()?,
        1 => PAYLOAD_MAX + input.int_in_range(0..=1_u64)?,
        2 => 8 + 4 * input.int_in_range(1..=17_u64)?,
        3 => (4 << 30) + input.int_in_range(0..=1_u64)?,
        _ => input.int_in_range(0..=600_u64)?,
    };
    stream.extend(if extended { 0x21e4_1c71_u32 } else { 0x2560_9513 }.to_be_bytes());
    stream.extend(flags.to_be_bytes());
    stream.extend(command.to_be_bytes());
    stream.extend(cookie.to_be_bytes());
    stream.extend(offset.to_be_bytes());
    let length = if extended { length } else { length & u64::from(u32::MAX) };
    stream.extend(&length.to_be_bytes()[if extended { 0 } else { 4 }..]);
    if command == 1 || (extended && flags & 32 != 0) {
        match length {
            12..=76 if command == 7 && length % 4 == 0 && input.arbitrary()? => {
                stream.extend(u64::from(input.arbitrary::<u16>()?).to_be_bytes());
                for _ in 0..(length - 8) / 4 {
                    stream.extend(input.int_in_range(0..=3_u32)?.to_be_bytes());
                }
            }
            0..=1000 => stream.extend(vec![0x77; usize::try_from(length).expect("short")]),
            // Cut, or taken for something else.
            _ => {}
        }
    }
    Ok(())
}

/// Takes integers off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: u64) -> &'a [u8] {
        let len = usize::try_from(len).expect("no reply is that long");
        let (taken, rest) = self.0.split_at_checked(len).expect("a reply that is cut");
        self.0 = rest;
        taken
    }

    fn number(&mut self, len: u64) -> u64 {
        self.bytes(len).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

/// Every reply belongs to the option whose turn it is; options are answered in order and to the end.
fn check_handshake(said: &[u8], asked: &[u8]) {
    let mut said = Reader(said);
    assert_eq!(said.bytes(18), b"NBDMAGICIHAVEOPT\x00\x03");
    if asked.len() < 4 {
        return;
    }
    let mut asked = Reader(&asked[4..]);
    while asked.0.starts_with(b"IHAVEOPT") && asked.0.len() >= 16 {
        asked.bytes(8);
        let (code, len) = (asked.number(4), asked.number(4));
        // What is too long is refused before its data comes.
        asked.bytes(if len > 65_536 { 0 } else { len.min(asked.0.len() as u64) });
        if code == 1 || said.0.is_empty() {
            // EXPORT_NAME has an answer of its own, and some sessions end without one.
            return;
        }
        loop {
            assert_eq!(said.number(8), 0x0003_e889_0455_65a9, "option reply magic");
            assert_eq!(said.number(4), code, "an answer to another option");
            let (reply, len) = (said.number(4), said.number(4));
            assert!(len <= 4096 + 4, "a reply of {len} bytes");
            said.bytes(len);
            assert!(reply <= 4 || (1 << 31..=(1 << 31) + 10).contains(&reply), "reply {reply:#x}");
            if reply == 1 || reply >> 31 != 0 {
                break;
            }
        }
    }
    assert!(said.0.is_empty() || said.0.len() >= 10, "bytes that answer nothing");
}

/// Reads the requests once more and holds each reply against what the document wants.
fn check_transmission(stream: &[u8], transmission: &Transmission) {
    let extended = transmission.style == 2;
    let mut asked = Reader(&stream[..transmission.taken_bytes]);
    let mut said = Reader(&transmission.replies);
    while !asked.0.is_empty() {
        assert_eq!(asked.number(4), if extended { 0x21e4_1c71 } else { 0x2560_9513 });
        let (flags, command, cookie, offset) =
            (asked.number(2), asked.number(2), asked.number(8), asked.number(8));
        let length = asked.number(if extended { 8 } else { 4 });
        let has_payload = command == 1 || (extended && flags & 32 != 0);
        assert!(command != 2, "a disconnect takes nothing with it");
        let payload = asked.bytes(if has_payload { length } else { 0 });
        let wanted = wanted(transmission, (flags, command, offset, length), payload);
        let contexts = asked_contexts(transmission, flags, payload);
        let errno = reply(&mut said, transmission.style, (command, cookie, offset, length), &contexts);
        let expected = if planted() { wanted.wrapping_add(1) } else { wanted };
        assert_eq!(errno, expected, "command {command} flags {flags:#x} at {offset:#x} of {length:#x}");
    }
    assert!(said.0.is_empty(), "replies to nothing");
}

/// The contexts that a block status is about, in the order of their ids.
fn asked_contexts(transmission: &Transmission, flags: u64, payload: &[u8]) -> Vec<u64> {
    if transmission.style != 2 || flags & 32 == 0 {
        return transmission.contexts.iter().copied().map(u64::from).collect();
    }
    let mut ids: Vec<u64> = payload
        .get(8..)
        .unwrap_or_default()
        .chunks(4)
        .map(|id| Reader(id).number(4.min(id.len() as u64)))
        .collect();
    ids.sort_unstable();
    ids
}

/// The error that the document wants, 0 for none.
fn wanted(
    transmission: &Transmission,
    (flags, command, offset, length): (u64, u64, u64, u64),
    payload: &[u8],
) -> u64 {
    const EPERM: u64 = 1;
    const EIO: u64 = 5;
    const EINVAL: u64 = 22;
    const ENOSPC: u64 = 28;
    const EOVERFLOW: u64 = 75;
    const ENOTSUP: u64 = 95;
    let (extended, in_chunks) = (transmission.style == 2, transmission.style > 0);
    let payload_flag = if extended { 32 } else { 0 };
    let taken = 1 | match command {
        0 if in_chunks => 4,
        1 => payload_flag,
        6 => 2 | 16,
        7 => 8 | payload_flag,
        _ => 0,
    };
    let outside = |length: u64| offset.checked_add(length).is_none_or(|end| end > EXPORT_BYTES);
    match command {
        8.. => EINVAL,
        _ if flags & !taken != 0 => EINVAL,
        1 | 4 | 6 if transmission.read_only => EPERM,
        0 if length > PAYLOAD_MAX => {
            if in_chunks {
                EOVERFLOW
            } else {
                EINVAL
            }
        }
        0 if outside(length) => EINVAL,
        0 if length > READ_BYTES_ANSWERED => EIO,
        1 if length > PAYLOAD_MAX => EINVAL,
        1 if outside(length) => ENOSPC,
        4 | 5 if outside(length) => EINVAL,
        6 if flags & 18 == 18 => ENOTSUP,
        6 if outside(length) => ENOSPC,
        6 if flags & 2 != 0 && length > 4 << 30 => EOVERFLOW,
        7 if transmission.contexts.is_empty() => EINVAL,
        7 if flags & 32 != 0 => {
            if !(12..=72).contains(&length) || length % 4 != 0 {
                return EINVAL;
            }
            let effect = Reader(payload).number(8);
            let ids = asked_contexts(transmission, flags, payload);
            let twice = ids.windows(2).any(|pair| pair[0] == pair[1]);
            let unknown =
                ids.iter().any(|id| !transmission.contexts.iter().any(|known| u64::from(*known) == *id));
            if twice || unknown || effect == 0 || outside(effect) { EINVAL } else { 0 }
        }
        7 if length == 0 || outside(length) => EINVAL,
        _ => 0,
    }
}

/// Reads one reply; its error, 0 for none. A block status has a chunk for each of `contexts`.
fn reply(
    said: &mut Reader<'_>,
    style: u8,
    (command, cookie, offset, length): (u64, u64, u64, u64),
    contexts: &[u64],
) -> u64 {
    if style == 0 {
        assert_eq!(said.number(4), 0x6744_6698, "simple reply magic");
        let errno = said.number(4);
        assert_eq!(said.number(8), cookie);
        if command == 0 && errno == 0 {
            said.bytes(length);
        }
        return errno;
    }
    for nth in 0.. {
        assert_eq!(said.number(4), if style == 2 { 0x6e8a_278c } else { 0x668e_33ef }, "chunk magic");
        let (done, kind) = (said.number(2), said.number(2));
        assert_eq!(said.number(8), cookie);
        if style == 2 {
            assert_eq!(said.number(8), offset, "the offset comes back");
        }
        let len = said.number(if style == 2 { 8 } else { 4 });
        let mut body = Reader(said.bytes(len));
        let last = match (kind, command) {
            (5 | 6, 7) => nth + 1 == contexts.len(),
            _ => true,
        };
        assert_eq!(done, u64::from(last), "the last chunk says so");
        match (kind, command) {
            (0, 1..=6) => assert_eq!(len, 0),
            // A data chunk of no bytes is forbidden.
            (0, 0) => assert_eq!((len, length), (0, 0)),
            (1, 0) => assert_eq!((body.number(8), len - 8), (offset, length)),
            (5, 7) if style == 1 => {
                assert_eq!((body.number(4), (len - 4) % 8, len > 4), (contexts[nth], 0, true));
            }
            (6, 7) if style == 2 => {
                assert_eq!((body.number(4), body.number(4) * 16 + 8, len > 8), (contexts[nth], len, true));
                while !body.0.is_empty() {
                    assert!(body.number(8) > 0, "a run of no bytes");
                    assert!(body.number(8) <= 3);
                }
            }
            (0x8001, _) => {
                let (errno, message) = (body.number(4), body.number(2));
                assert!(errno != 0 && message + 6 == len && message <= 4096);
                assert!(std::str::from_utf8(body.bytes(message)).is_ok());
                return errno;
            }
            _ => panic!("chunk {kind} of {len} bytes to command {command}"),
        }
        if last {
            break;
        }
    }
    0
}
