//! The handshake against the published layouts, every refusal, and random bytes.

use proptest::prelude::*;

use super::*;
use crate::context::allocation;
use crate::limits::CONTEXTS_MAX;
use crate::wire::{OPTION_ERROR_BIT, OPTION_REPLY_HEADER_BYTES, encode_option_header};

const FIXED: u32 = 1;
const NO_ZEROES: u32 = 2;
const DISK_BYTES: u64 = 1 << 30;

/// One live export `disk` with two snapshots, one read-only `archive`, one sealed `asleep`, one `barred` for the client.
struct Shelf;

impl Directory for Shelf {
    type Export = &'static str;

    fn find(&self, label: &str) -> Result<Self::Export, Unavailable> {
        match label {
            "disk" => Ok("disk"),
            "archive" => Ok("archive"),
            "asleep" => Err(Unavailable::Shutdown),
            "barred" => Err(Unavailable::Forbidden),
            "" => panic!("the empty name must not reach the directory"),
            _ => Err(Unavailable::Unknown),
        }
    }

    fn shape(&self, export: &Self::Export) -> Shape {
        Shape { len_bytes: DISK_BYTES, read_only: *export == "archive" }
    }

    fn snapshots(&self, export: &Self::Export) -> Vec<VolumeId> {
        if *export == "disk" { vec![VolumeId([1; 16]), VolumeId([2; 16])] } else { Vec::new() }
    }

    fn labels(&self) -> Result<Vec<String>, Unavailable> {
        Ok(vec!["archive".to_owned(), "disk".to_owned()])
    }
}

#[derive(Debug, PartialEq)]
enum Ended {
    Transmission(&'static str, Features),
    StartTls,
    Closed(CloseReason),
    WantsMore,
}

/// Feeds `input` until it runs out or the machine decides.
fn run(machine: &mut Negotiation, mut input: &[u8]) -> (Vec<u8>, Ended) {
    let mut out = Vec::new();
    loop {
        let wants = machine.wants();
        assert!(wants > 0 && wants <= OPTION_BYTES_MAX as usize, "wants {wants}");
        let Some((bytes, rest)) = input.split_at_checked(wants) else { return (out, Ended::WantsMore) };
        input = rest;
        match machine.on_bytes(bytes, &Shelf, &mut out) {
            Step::Continue => (),
            Step::StartTls => return (out, Ended::StartTls),
            Step::Transmission(export, features) => return (out, Ended::Transmission(export, features)),
            Step::Close(reason) => return (out, Ended::Closed(reason)),
        }
    }
}

fn started(tls: Tls) -> Negotiation {
    let mut machine = Negotiation::new(tls);
    let (out, ended) = run(&mut machine, &(FIXED | NO_ZEROES).to_be_bytes());
    assert_eq!((out.as_slice(), ended), ([].as_slice(), Ended::WantsMore));
    machine
}

fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn go_data(label: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = string(label);
    data.extend_from_slice(&u16::try_from(infos.len()).unwrap().to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

fn queries(label: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(label);
    data.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
    data.extend(queries.iter().flat_map(|query| string(query)));
    data
}

/// The replies in `out` as (option, reply code, data).
fn replies(mut out: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut found = Vec::new();
    while !out.is_empty() {
        let (header, rest) = out.split_at(OPTION_REPLY_HEADER_BYTES);
        let mut cursor = Cursor::new(header);
        assert_eq!(cursor.u64(), Some(OPTION_REPLY_MAGIC));
        let (option, code) = (cursor.u32().unwrap(), cursor.u32().unwrap());
        let (data, rest) = rest.split_at(cursor.u32().unwrap() as usize);
        found.push((option, code, data.to_vec()));
        out = rest;
    }
    found
}

fn codes(out: &[u8]) -> Vec<ReplyCode> {
    replies(out).into_iter().map(|(_, code, _)| ReplyCode::from_code(code).unwrap()).collect()
}

fn one_option(tls: Tls, code: OptionCode, data: &[u8]) -> (Vec<u8>, Ended) {
    run(&mut started(tls), &option(code.code(), data))
}

#[test]
fn greeting_is_fixed_newstyle() {
    assert_eq!(&Negotiation::greeting(), b"NBDMAGICIHAVEOPT\x00\x03");
    assert_eq!(encode_option_header(OptionCode::Go, 5), option(7, &[0; 5])[..16]);
}

#[test]
fn client_flags_that_were_not_offered_end_the_session() {
    for flags in [4_u32, 1 << 31, u32::MAX] {
        let (out, ended) = run(&mut Negotiation::new(Tls::Unavailable), &flags.to_be_bytes());
        assert_eq!((out.len(), ended), (0, Ended::Closed(CloseReason::ClientFlags(flags))));
    }
}

#[test]
fn go_describes_the_export_and_starts_transmission() {
    let (out, ended) = one_option(Tls::Unavailable, OptionCode::Go, &go_data("disk", &[info::NAME, 77]));
    assert_eq!(ended, Ended::Transmission("disk", Features::default()));
    let replies = replies(&out);
    let flags: u16 = 0b1101_0110_1101;
    let mut export = vec![0, 0];
    export.extend_from_slice(&DISK_BYTES.to_be_bytes());
    export.extend_from_slice(&flags.to_be_bytes());
    assert_eq!(replies[0], (7, 3, export), "size and flags");
    assert_eq!(replies[1], (7, 3, vec![0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0]), "512, 4096, 32 MiB");
    assert_eq!(replies[2], (7, 3, b"\x00\x01disk".to_vec()));
    assert_eq!(replies[3], (7, 1, vec![]));
    assert_eq!(replies.len(), 4);
}

#[test]
fn a_read_only_export_offers_nothing_that_writes() {
    let (out, _) = one_option(Tls::Unavailable, OptionCode::Go, &go_data("archive", &[]));
    let flags = u16::from_be_bytes(replies(&out)[0].2[10..12].try_into().unwrap());
    assert_ne!(flags & transmission_flag::READ_ONLY, 0);
    let writing = transmission_flag::SEND_TRIM
        | transmission_flag::SEND_WRITE_ZEROES
        | transmission_flag::SEND_FAST_ZERO;
    assert_eq!(flags & writing, 0);
}

#[test]
fn info_leaves_the_negotiation_open() {
    let mut machine = started(Tls::Unavailable);
    let (out, ended) = run(&mut machine, &option(6, &go_data("disk", &[])));
    assert_eq!(ended, Ended::WantsMore);
    assert_eq!(codes(&out), [ReplyCode::Info, ReplyCode::Info, ReplyCode::Ack]);
    let (_, ended) = run(&mut machine, &option(7, &go_data("disk", &[])));
    assert!(matches!(ended, Ended::Transmission("disk", _)));
}

#[test]
fn exports_that_cannot_be_had_are_refused_and_the_client_may_go_on() {
    for (label, code) in [
        ("nothing", ReplyCode::ErrUnknown),
        ("", ReplyCode::ErrUnknown),
        ("asleep", ReplyCode::ErrShutdown),
        ("barred", ReplyCode::ErrPolicy),
        (&"x".repeat(LABEL_BYTES_MAX + 1), ReplyCode::ErrUnknown),
    ] {
        for option in [OptionCode::Go, OptionCode::Info] {
            let (out, ended) = one_option(Tls::Unavailable, option, &go_data(label, &[]));
            assert_eq!((codes(&out), ended), (vec![code], Ended::WantsMore), "{label}");
        }
    }
}

#[test]
fn export_name_serves_old_clients() {
    let mut machine = Negotiation::new(Tls::Unavailable);
    let mut input = 0_u32.to_be_bytes().to_vec();
    input.extend(option(1, b"disk"));
    let (out, ended) = run(&mut machine, &input);
    assert_eq!(ended, Ended::Transmission("disk", Features::default()));
    assert_eq!(out.len(), 8 + 2 + 124);
    assert_eq!(out[..8], DISK_BYTES.to_be_bytes());

    let (out, _) = one_option(Tls::Unavailable, OptionCode::ExportName, b"disk");
    assert_eq!(out.len(), 8 + 2, "padding was declined");

    for (label, reason) in [
        (b"nothing".as_slice(), CloseReason::ExportNameUnknown),
        (b"asleep", CloseReason::ExportNameSealed),
        (b"barred", CloseReason::ExportNameForbidden),
        (b"", CloseReason::ExportNameUnknown),
        (b"\xff\xfe", CloseReason::ExportNameUnknown),
    ] {
        let (out, ended) = one_option(Tls::Unavailable, OptionCode::ExportName, label);
        assert_eq!((out.len(), ended), (0, Ended::Closed(reason)));
    }
}

#[test]
fn unfixed_newstyle_may_only_name_an_export() {
    let mut input = 0_u32.to_be_bytes().to_vec();
    input.extend(option(3, &[]));
    let (out, ended) = run(&mut Negotiation::new(Tls::Unavailable), &input);
    assert_eq!((out.len(), ended), (0, Ended::Closed(CloseReason::Unfixed(3))));
}

#[test]
fn list_names_every_export() {
    let (out, ended) = one_option(Tls::Unavailable, OptionCode::List, &[]);
    assert_eq!(ended, Ended::WantsMore);
    assert_eq!(
        replies(&out),
        [
            (3, 2, b"\x00\x00\x00\x07archive".to_vec()),
            (3, 2, b"\x00\x00\x00\x04disk".to_vec()),
            (3, 1, vec![])
        ]
    );
    let (out, _) = one_option(Tls::Unavailable, OptionCode::List, b"x");
    assert_eq!(codes(&out), [ReplyCode::ErrInvalid]);
}

#[test]
fn nothing_but_the_upgrade_works_in_clear_where_tls_is_required() {
    for code in (0..=12).chain([u32::MAX]) {
        let data = go_data("disk", &[]);
        let data = if code == 5 { &[] } else { data.as_slice() };
        let (out, ended) = run(&mut started(Tls::Required), &option(code, data));
        match OptionCode::from_code(code) {
            Some(OptionCode::ExportName) => {
                assert_eq!((out.len(), ended), (0, Ended::Closed(CloseReason::ExportNameInClear)));
            }
            Some(OptionCode::Abort) => assert_eq!(ended, Ended::Closed(CloseReason::Aborted)),
            Some(OptionCode::StartTls) => {
                assert_eq!((codes(&out), ended), (vec![ReplyCode::Ack], Ended::StartTls));
            }
            _ => {
                assert_eq!(
                    (codes(&out), ended),
                    (vec![ReplyCode::ErrTlsRequired], Ended::WantsMore),
                    "{code}"
                );
            }
        }
    }
}

#[test]
fn starttls_is_refused_where_it_makes_no_sense() {
    for (tls, data, code) in [
        (Tls::Unavailable, [].as_slice(), ReplyCode::ErrPolicy),
        (Tls::Active, &[], ReplyCode::ErrInvalid),
        (Tls::Required, b"x", ReplyCode::ErrInvalid),
    ] {
        let (out, ended) = one_option(tls, OptionCode::StartTls, data);
        assert_eq!((codes(&out), ended), (vec![code], Ended::WantsMore), "{tls:?}");
    }
}

#[test]
fn the_upgrade_forgets_what_was_negotiated_before() {
    let mut machine = started(Tls::Unavailable);
    let mut input = option(8, &[]);
    input.extend(option(10, &queries("disk", &["base:allocation"])));
    run(&mut machine, &input);
    machine.tls_started();
    let (_, ended) = run(&mut machine, &option(7, &go_data("disk", &[])));
    assert_eq!(ended, Ended::Transmission("disk", Features::default()));
}

#[test]
fn allocation_context_is_selected_for_one_export() {
    let mut machine = started(Tls::Unavailable);
    let mut input = option(8, &[]);
    input.extend(option(10, &queries("disk", &["x-unknown:thing", "base:", "base:allocation"])));
    let (out, _) = run(&mut machine, &input);
    assert_eq!(codes(&out), [ReplyCode::Ack, ReplyCode::MetaContext, ReplyCode::Ack]);
    assert_eq!(replies(&out)[1].2, b"\x00\x00\x00\x01base:allocation");
    let (_, ended) = run(&mut machine, &option(7, &go_data("disk", &[])));
    let both = Features { style: Style::Structured, contexts: allocation(), ..Features::default() };
    assert_eq!(ended, Ended::Transmission("disk", both));

    let mut machine = started(Tls::Unavailable);
    run(&mut machine, &input);
    let (_, ended) = run(&mut machine, &option(7, &go_data("archive", &[])));
    let structured = Features { style: Style::Structured, read_only: true, ..Features::default() };
    assert_eq!(ended, Ended::Transmission("archive", structured.clone()), "selected for another export");

    let mut machine = started(Tls::Unavailable);
    run(&mut machine, &input);
    let (out, _) = run(&mut machine, &option(10, &queries("asleep", &["base:allocation"])));
    assert_eq!(codes(&out), [ReplyCode::ErrShutdown]);
    let (_, ended) = run(&mut machine, &option(7, &go_data("disk", &[])));
    assert_eq!(
        ended,
        Ended::Transmission("disk", Features { read_only: false, ..structured }),
        "a failed selection selects nothing"
    );
}

#[test]
fn contexts_need_structured_replies_and_listing_knows_the_wildcard() {
    let (out, _) =
        one_option(Tls::Unavailable, OptionCode::SetMetaContext, &queries("disk", &["base:allocation"]));
    assert_eq!(codes(&out), [ReplyCode::ErrInvalid]);

    for (asked, found) in [
        ([].as_slice(), 3),
        (&["base:"], 1),
        (&["base:allocation"], 1),
        (&["nightlatch:"], 2),
        (&["nightlatch:dirty:", "base:"], 3),
        (&[&dirty(1), &dirty(9)], 1),
        (&["base:dirty", "qemu:", "nocolon"], 0),
    ] {
        let (out, _) = one_option(Tls::Unavailable, OptionCode::ListMetaContext, &queries("disk", asked));
        assert_eq!(replies(&out).len(), found + 1, "{asked:?}");
    }
}

/// The context of the snapshot that has this byte for its id.
fn dirty(byte: u8) -> String {
    format!("nightlatch:dirty:{}", format!("{byte:02x}").repeat(16))
}

#[test]
fn contexts_of_snapshots_are_selected_by_name_beside_or_without_the_allocation() {
    let select = |names: &[&str]| {
        let mut machine = started(Tls::Unavailable);
        let mut input = option(8, &[]);
        input.extend(option(10, &queries("disk", names)));
        let (out, _) = run(&mut machine, &input);
        let (_, ended) = run(&mut machine, &option(7, &go_data("disk", &[])));
        let Ended::Transmission(_, features) = ended else { panic!("{ended:?}") };
        (replies(&out).split_off(1), features.contexts)
    };
    let (first, second) = (dirty(1), dirty(2));
    let named = |id: u32, name: &str| (10, 4, [id.to_be_bytes().as_slice(), name.as_bytes()].concat());
    let ack = (10, 1, vec![]);
    let (out, selected) = select(&[&second, "base:allocation", &first, &first]);
    assert_eq!(out, [named(1, "base:allocation"), named(2, &first), named(3, &second), ack.clone()]);
    assert_eq!(selected.iter().count(), 3);
    let (out, selected) = select(&[&second]);
    assert_eq!(out, [named(1, &second), ack.clone()]);
    assert_eq!(selected.iter().collect::<Vec<_>>(), [(1, Context::Dirty(VolumeId([2; 16])))]);
    let (out, selected) = select(&["nightlatch:dirty:", "nightlatch:", &dirty(9)]);
    assert_eq!((out, selected.is_empty()), (vec![ack], true));
}

/// An export with so many snapshots.
struct Crowded(usize);

impl Directory for Crowded {
    type Export = ();

    fn find(&self, _: &str) -> Result<(), Unavailable> {
        Ok(())
    }

    fn shape(&self, (): &()) -> Shape {
        Shape { len_bytes: DISK_BYTES, read_only: false }
    }

    fn snapshots(&self, (): &()) -> Vec<VolumeId> {
        (0..self.0).map(|nth| VolumeId([u8::try_from(nth).unwrap(); 16])).collect()
    }

    fn labels(&self) -> Result<Vec<String>, Unavailable> {
        Ok(Vec::new())
    }
}

#[test]
fn as_many_contexts_as_the_limit_are_selected_and_one_more_is_refused() {
    let names: Vec<String> = (0..=CONTEXTS_MAX).map(|nth| dirty(u8::try_from(nth).unwrap())).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (count, answer) in
        [(CONTEXTS_MAX, vec![ReplyCode::MetaContext; CONTEXTS_MAX]), (CONTEXTS_MAX + 1, vec![])]
    {
        let mut machine = started(Tls::Unavailable);
        run(&mut machine, &option(8, &[]));
        let mut out = Vec::new();
        let selection = option(10, &queries("disk", &names[..count]));
        let (header, data) = selection.split_at(machine.wants());
        machine.on_bytes(header, &Crowded(CONTEXTS_MAX + 1), &mut out);
        machine.on_bytes(data, &Crowded(CONTEXTS_MAX + 1), &mut out);
        let end = if answer.is_empty() { ReplyCode::ErrTooBig } else { ReplyCode::Ack };
        assert_eq!(codes(&out), [answer, vec![end]].concat());
    }
}

#[test]
fn option_data_that_does_not_parse_is_refused() {
    let mut too_many = string("disk");
    too_many.extend_from_slice(&u16::MAX.to_be_bytes());
    let mut trailing = go_data("disk", &[]);
    trailing.push(0);
    for data in [vec![], vec![0xff; 4], b"\x00\x00\x00\x02\xff\xff\x00\x00".to_vec(), too_many, trailing] {
        let (out, ended) = one_option(Tls::Unavailable, OptionCode::Go, &data);
        assert_eq!((codes(&out), ended), (vec![ReplyCode::ErrInvalid], Ended::WantsMore), "{data:?}");
    }
    let mut billions = string("disk");
    billions.extend_from_slice(&u32::MAX.to_be_bytes());
    let (out, _) = one_option(Tls::Unavailable, OptionCode::ListMetaContext, &billions);
    assert_eq!(codes(&out), [ReplyCode::ErrInvalid], "a count beyond the data");
}

#[test]
fn unknown_options_are_unsupported_and_their_data_is_consumed() {
    let mut input = option(4, &[]);
    input.extend(option(0xdead, &[7; 1000]));
    input.extend(option(3, &[]));
    let (out, _) = run(&mut started(Tls::Unavailable), &input);
    let codes = codes(&out);
    assert_eq!(codes[..2], [ReplyCode::ErrUnsupported, ReplyCode::ErrUnsupported]);
    assert_eq!(codes[2..], [ReplyCode::Server, ReplyCode::Server, ReplyCode::Ack]);
    assert_ne!(replies(&out)[0].1 & OPTION_ERROR_BIT, 0);
}

#[test]
fn option_length_at_the_limit_is_taken_and_one_more_is_not() {
    let (out, ended) = run(&mut started(Tls::Unavailable), &option(99, &vec![0; OPTION_BYTES_MAX as usize]));
    assert_eq!((codes(&out), ended), (vec![ReplyCode::ErrUnsupported], Ended::WantsMore));

    for len in [OPTION_BYTES_MAX + 1, u32::MAX] {
        let mut header = OPTION_MAGIC.to_be_bytes().to_vec();
        header.extend_from_slice(&7_u32.to_be_bytes());
        header.extend_from_slice(&len.to_be_bytes());
        let (out, ended) = run(&mut started(Tls::Unavailable), &header);
        assert_eq!(codes(&out), [ReplyCode::ErrTooBig]);
        assert_eq!(ended, Ended::Closed(CloseReason::OptionTooLong(len)));
    }
}

#[test]
fn option_count_at_the_limit_is_taken_and_one_more_is_not() {
    let input = option(3, &[]).repeat(OPTIONS_MAX as usize);
    let mut machine = started(Tls::Unavailable);
    let (_, ended) = run(&mut machine, &input);
    assert_eq!(ended, Ended::WantsMore);
    let (out, ended) = run(&mut machine, &option(3, &[]));
    assert_eq!((out.len(), ended), (0, Ended::Closed(CloseReason::TooManyOptions)));
}

#[test]
fn abort_is_acknowledged_whatever_it_carries() {
    let (out, ended) = one_option(Tls::Unavailable, OptionCode::Abort, b"goodbye");
    assert_eq!((codes(&out), ended), (vec![ReplyCode::Ack], Ended::Closed(CloseReason::Aborted)));
}

#[test]
fn extended_headers_take_precedence_over_structured_replies() {
    let mut machine = started(Tls::Unavailable);
    let (out, _) = run(&mut machine, &option(11, b"x"));
    assert_eq!(codes(&out), [ReplyCode::ErrInvalid], "it takes no data");
    let mut input = option(8, &[]);
    input.extend(option(11, &[]));
    input.extend(option(8, &[]));
    input.extend(option(11, &[]));
    let (out, _) = run(&mut machine, &input);
    let refused = ReplyCode::ErrExtendedHeadersActive;
    assert_eq!(codes(&out), [ReplyCode::Ack, ReplyCode::Ack, refused, ReplyCode::Ack]);
    assert_eq!(refused.code(), (1 << 31) + 10);

    let flags = |out: &[u8]| u16::from_be_bytes(replies(out)[0].2[10..12].try_into().unwrap());
    let (out, _) = run(&mut machine, &option(6, &go_data("disk", &[])));
    assert_eq!(flags(&out) & transmission_flag::BLOCK_STATUS_PAYLOAD, 0, "no context is selected");
    assert_ne!(flags(&out) & transmission_flag::SEND_DF, 0);
    let (out, _) = run(&mut machine, &option(10, &queries("disk", &["base:allocation"])));
    assert_eq!(codes(&out), [ReplyCode::MetaContext, ReplyCode::Ack]);
    let (out, ended) = run(&mut machine, &option(7, &go_data("disk", &[])));
    assert_ne!(flags(&out) & transmission_flag::BLOCK_STATUS_PAYLOAD, 0);
    let features = Features { style: Style::Extended, contexts: allocation(), ..Features::default() };
    assert_eq!(ended, Ended::Transmission("disk", features));
}

#[test]
fn export_name_is_no_way_into_extended_headers() {
    let mut machine = started(Tls::Unavailable);
    let mut input = option(11, &[]);
    input.extend(option(1, b"disk"));
    let (_, ended) = run(&mut machine, &input);
    assert_eq!(ended, Ended::Closed(CloseReason::ExportNameExtended));
}

#[test]
fn the_upgrade_forgets_extended_headers() {
    let mut machine = started(Tls::Unavailable);
    run(&mut machine, &option(11, &[]));
    machine.tls_started();
    let (_, ended) = run(&mut machine, &option(7, &go_data("disk", &[])));
    assert_eq!(ended, Ended::Transmission("disk", Features::default()));
}

fn tls() -> impl Strategy<Value = Tls> {
    prop_oneof![Just(Tls::Unavailable), Just(Tls::Required), Just(Tls::Active)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn random_bytes_never_panic(tls in tls(), input in proptest::collection::vec(any::<u8>(), 0..2000)) {
        run(&mut Negotiation::new(tls), &input);
        run(&mut started(tls), &input);
    }

    /// Well-framed options with random content get past the magic and into every parser.
    #[test]
    fn random_options_never_panic_and_every_reply_parses(
        tls in tls(),
        options in proptest::collection::vec(
            (0_u32..13, proptest::collection::vec(any::<u8>(), 0..64)), 0..40),
        label in prop_oneof![Just("disk"), Just("asleep"), Just("")],
    ) {
        let mut machine = started(tls);
        for (code, mut data) in options {
            if code % 2 == 0 {
                // Half of them start with a real name.
                data.splice(0..0, string(label));
            }
            let (out, ended) = run(&mut machine, &option(code, &data));
            match ended {
                Ended::Transmission(..) => return Ok(()),
                Ended::Closed(_) => { replies(&out); return Ok(()) }
                Ended::StartTls => machine.tls_started(),
                Ended::WantsMore => { replies(&out); }
            }
        }
    }
}
