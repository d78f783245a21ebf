//! The handshake phase as a state machine: bytes go in, replies and one decision come out.
//!
//! The shell asks [`Negotiation::wants`] how many bytes the machine needs next, hands in exactly that many, sends
//! what was written to `out`, and acts on the [`Step`].
//!
//! Invariants:
//! - The machine never wants more than [`OPTION_BYTES_MAX`] bytes at once, and no more than [`OPTIONS_MAX`] options.
//! - While TLS is required and not active, only `STARTTLS` and `ABORT` do anything, and no export is looked up.
//! - `STARTTLS` forgets everything negotiated in clear.
//! - The empty export name names nothing: which volume it would mean changes with every grant.
//!
//! It does no input or output, knows no clock, and holds no volume: exports are looked up through [`Directory`].

use std::collections::BTreeSet;

use units::VolumeId;

use crate::context::{Context, Selection};
use crate::limits::{
    BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, LABEL_BYTES_MAX, OPTION_BYTES_MAX, OPTIONS_MAX, PAYLOAD_BYTES_MAX,
};
use crate::wire::{
    CLIENT_FLAGS_BYTES, Cursor, EXPORT_NAME_PADDING_BYTES, GREETING_BYTES, OPTION_HEADER_BYTES, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, OptionCode, ReplyCode, SESSION_MAGIC, Style, handshake_flag, info, transmission_flag,
};

/// Where the machine finds exports.
pub(crate) trait Directory {
    type Export;

    /// The export under `label`, ready to serve.
    fn find(&self, label: &str) -> Result<Self::Export, Unavailable>;

    /// What the client is told about it.
    fn shape(&self, export: &Self::Export) -> Shape;

    /// The snapshots that it can be compared with, the oldest first.
    fn snapshots(&self, export: &Self::Export) -> Vec<VolumeId>;

    /// The labels of all exports that would be served to this client.
    fn labels(&self) -> Result<Vec<String>, Unavailable>;
}

/// What a client must know of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) len_bytes: u64,
    pub(crate) read_only: bool,
}

/// Why an export can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unavailable {
    /// No such label.
    Unknown,
    /// Its key is gone, or the server is going down.
    Shutdown,
    /// It is not for this client.
    Forbidden,
}

/// Where TLS stands on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    /// The listener has no certificate: everything goes in clear.
    Unavailable,
    /// Nothing but the upgrade is done in clear.
    Required,
    /// The upgrade has happened.
    Active,
}

/// What a client may use in the transmission phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    pub(crate) style: Style,
    /// What was selected for the export that was chosen.
    pub(crate) contexts: Selection,
    /// The client was told so, and it stays so on this connection whatever the export is made later.
    pub(crate) read_only: bool,
}

/// What the shell does after it sent the replies.
#[derive(Debug)]
pub(crate) enum Step<E> {
    /// Read on.
    Continue,
    /// Run the TLS handshake, then carry on with [`Negotiation::tls_started`].
    StartTls,
    /// Serve the export.
    Transmission(E, Features),
    /// Close.
    Close(CloseReason),
}

/// Why a negotiation ended without an export.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CloseReason {
    #[error("the client ended the negotiation")]
    Aborted,
    #[error("client flags {0:#x} are not ones that were offered")]
    ClientFlags(u32),
    #[error("an option does not start with the option magic: this is no NBD client")]
    OptionMagic,
    #[error("an option of {0} bytes is longer than the {OPTION_BYTES_MAX} that are taken")]
    OptionTooLong(u32),
    #[error("more than {OPTIONS_MAX} options without a choice of export")]
    TooManyOptions,
    #[error("the client speaks unfixed newstyle, where only EXPORT_NAME is allowed, and sent option {0}")]
    Unfixed(u32),
    #[error("EXPORT_NAME in clear where TLS is required")]
    ExportNameInClear,
    #[error("EXPORT_NAME for an export that is unknown")]
    ExportNameUnknown,
    #[error("EXPORT_NAME for an export that is sealed")]
    ExportNameSealed,
    #[error("EXPORT_NAME for an export that is not for this client")]
    ExportNameForbidden,
    #[error("EXPORT_NAME after extended headers, which need GO")]
    ExportNameExtended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaiting {
    ClientFlags,
    OptionHeader,
    OptionData { code: u32, len: usize },
}

/// One client's handshake.
#[derive(Debug)]
pub(crate) struct Negotiation {
    awaiting: Awaiting,
    tls: Tls,
    options_seen: u32,
    fixed_newstyle: bool,
    no_zeroes: bool,
    style: Style,
    /// The contexts that were selected, and the export that they were selected for.
    selected: Option<(String, Selection)>,
}

impl Negotiation {
    pub(crate) fn new(tls: Tls) -> Self {
        Self {
            awaiting: Awaiting::ClientFlags,
            tls,
            options_seen: 0,
            fixed_newstyle: false,
            no_zeroes: false,
            style: Style::Simple,
            selected: None,
        }
    }

    /// What the server says first.
    pub(crate) fn greeting() -> [u8; GREETING_BYTES] {
        let mut bytes = [0; GREETING_BYTES];
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        bytes[0..8].copy_from_slice(&SESSION_MAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[16..18].copy_from_slice(&flags.to_be_bytes());
        bytes
    }

    /// How many bytes the next call of [`Self::on_bytes`] takes; never 0, never above the option limit.
    pub(crate) fn wants(&self) -> usize {
        match self.awaiting {
            Awaiting::ClientFlags => CLIENT_FLAGS_BYTES,
            Awaiting::OptionHeader => OPTION_HEADER_BYTES,
            Awaiting::OptionData { len, .. } => len,
        }
    }

    /// TLS is up: what was negotiated in clear no longer counts.
    pub(crate) fn tls_started(&mut self) {
        self.tls = Tls::Active;
        self.style = Style::Simple;
        self.selected = None;
    }

    /// Takes the bytes that [`Self::wants`] asked for and appends replies to `out`.
    pub(crate) fn on_bytes<D: Directory>(
        &mut self,
        bytes: &[u8],
        directory: &D,
        out: &mut Vec<u8>,
    ) -> Step<D::Export> {
        debug_assert_eq!(bytes.len(), self.wants(), "the shell hands in what was asked for");
        match self.awaiting {
            Awaiting::ClientFlags => self.on_client_flags(bytes),
            Awaiting::OptionHeader => self.on_option_header(bytes, directory, out),
            Awaiting::OptionData { code, .. } => {
                self.awaiting = Awaiting::OptionHeader;
                self.on_option(code, bytes, directory, out)
            }
        }
    }

    fn on_client_flags<E>(&mut self, bytes: &[u8]) -> Step<E> {
        const FIXED_NEWSTYLE: u32 = handshake_flag::FIXED_NEWSTYLE as u32;
        const NO_ZEROES: u32 = handshake_flag::NO_ZEROES as u32;
        let flags = Cursor::new(bytes).u32().unwrap_or(u32::MAX);
        if flags & !(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
            return Step::Close(CloseReason::ClientFlags(flags));
        }
        self.fixed_newstyle = flags & FIXED_NEWSTYLE != 0;
        self.no_zeroes = flags & NO_ZEROES != 0;
        self.awaiting = Awaiting::OptionHeader;
        Step::Continue
    }

    fn on_option_header<D: Directory>(
        &mut self,
        bytes: &[u8],
        directory: &D,
        out: &mut Vec<u8>,
    ) -> Step<D::Export> {
        let mut cursor = Cursor::new(bytes);
        let (Some(OPTION_MAGIC), Some(code), Some(len)) = (cursor.u64(), cursor.u32(), cursor.u32()) else {
            return Step::Close(CloseReason::OptionMagic);
        };
        self.options_seen += 1;
        if self.options_seen > OPTIONS_MAX {
            return Step::Close(CloseReason::TooManyOptions);
        }
        match usize::try_from(len) {
            Ok(0) => self.on_option(code, &[], directory, out),
            Ok(len_bytes) if len <= OPTION_BYTES_MAX => {
                self.awaiting = Awaiting::OptionData { code, len: len_bytes };
                Step::Continue
            }
            _ => {
                reply_error(out, code, ReplyCode::ErrTooBig, "the option is longer than this server takes");
                Step::Close(CloseReason::OptionTooLong(len))
            }
        }
    }

    fn on_option<D: Directory>(
        &mut self,
        code: u32,
        data: &[u8],
        directory: &D,
        out: &mut Vec<u8>,
    ) -> Step<D::Export> {
        let option = OptionCode::from_code(code);
        if !self.fixed_newstyle && option != Some(OptionCode::ExportName) {
            return Step::Close(CloseReason::Unfixed(code));
        }
        match option {
            Some(OptionCode::Abort) => {
                reply(out, code, ReplyCode::Ack, &[]);
                return Step::Close(CloseReason::Aborted);
            }
            Some(OptionCode::StartTls) => return self.on_start_tls(data, out),
            Some(OptionCode::ExportName) => return self.on_export_name(data, directory, out),
            _ if self.tls == Tls::Required => {
                reply_error(out, code, ReplyCode::ErrTlsRequired, "this server talks over TLS only");
            }
            Some(OptionCode::Go) => return self.on_go(data, directory, out),
            Some(OptionCode::Info) => {
                self.describe(OptionCode::Info, data, directory, out);
            }
            Some(OptionCode::List) => list(data, directory, out),
            Some(OptionCode::StructuredReply) => self.on_style(OptionCode::StructuredReply, data, out),
            Some(OptionCode::ExtendedHeaders) => self.on_style(OptionCode::ExtendedHeaders, data, out),
            Some(OptionCode::ListMetaContext) => list_contexts(data, directory, out),
            Some(OptionCode::SetMetaContext) => self.on_set_meta_context(data, directory, out),
            None => reply_error(out, code, ReplyCode::ErrUnsupported, "this server does not know the option"),
        }
        Step::Continue
    }

    fn on_start_tls<E>(&mut self, data: &[u8], out: &mut Vec<u8>) -> Step<E> {
        let code = OptionCode::StartTls.code();
        match self.tls {
            _ if !data.is_empty() => {
                reply_error(out, code, ReplyCode::ErrInvalid, "STARTTLS takes no data");
            }
            Tls::Unavailable => {
                reply_error(out, code, ReplyCode::ErrPolicy, "this listener does not offer TLS");
            }
            Tls::Active => reply_error(out, code, ReplyCode::ErrInvalid, "TLS is already active"),
            Tls::Required => {
                reply(out, code, ReplyCode::Ack, &[]);
                return Step::StartTls;
            }
        }
        Step::Continue
    }

    /// Structured replies or extended headers. There is no way back from the latter.
    fn on_style(&mut self, option: OptionCode, data: &[u8], out: &mut Vec<u8>) {
        let code = option.code();
        let wanted = if option == OptionCode::ExtendedHeaders { Style::Extended } else { Style::Structured };
        if !data.is_empty() {
            reply_error(out, code, ReplyCode::ErrInvalid, "the option takes no data");
        } else if self.style == Style::Extended && wanted == Style::Structured {
            let message = "extended headers were negotiated, which contain structured replies";
            reply_error(out, code, ReplyCode::ErrExtendedHeadersActive, message);
        } else {
            self.style = wanted;
            reply(out, code, ReplyCode::Ack, &[]);
        }
    }

    fn on_export_name<D: Directory>(&self, data: &[u8], directory: &D, out: &mut Vec<u8>) -> Step<D::Export> {
        if self.tls == Tls::Required {
            return Step::Close(CloseReason::ExportNameInClear);
        }
        if self.style == Style::Extended {
            return Step::Close(CloseReason::ExportNameExtended);
        }
        let Ok(label) = std::str::from_utf8(data) else {
            return Step::Close(CloseReason::ExportNameUnknown);
        };
        let export = match find(directory, label) {
            Ok(export) => export,
            Err(Unavailable::Unknown) => return Step::Close(CloseReason::ExportNameUnknown),
            Err(Unavailable::Shutdown) => return Step::Close(CloseReason::ExportNameSealed),
            Err(Unavailable::Forbidden) => return Step::Close(CloseReason::ExportNameForbidden),
        };
        let shape = directory.shape(&export);
        out.extend_from_slice(&shape.len_bytes.to_be_bytes());
        out.extend_from_slice(&self.transmission_flags(shape, label).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; EXPORT_NAME_PADDING_BYTES]);
        }
        Step::Transmission(export, self.features(label, shape))
    }

    fn on_go<D: Directory>(&self, data: &[u8], directory: &D, out: &mut Vec<u8>) -> Step<D::Export> {
        match self.describe(OptionCode::Go, data, directory, out) {
            Some((label, export, shape)) => Step::Transmission(export, self.features(label, shape)),
            None => Step::Continue,
        }
    }

    /// Answers `INFO` or `GO`; the export, as it was described, where the answer was a success.
    fn describe<'a, D: Directory>(
        &self,
        option: OptionCode,
        data: &'a [u8],
        directory: &D,
        out: &mut Vec<u8>,
    ) -> Option<(&'a str, D::Export, Shape)> {
        let code = option.code();
        let Some((label, wants_name)) = parse_info(data) else {
            reply_error(out, code, ReplyCode::ErrInvalid, "the option's data does not parse");
            return None;
        };
        let export = match find(directory, label) {
            Ok(export) => export,
            Err(unavailable) => {
                reply_unavailable(out, code, unavailable);
                return None;
            }
        };
        let shape = directory.shape(&export);
        let mut payload = Vec::with_capacity(16);
        payload.extend_from_slice(&info::EXPORT.to_be_bytes());
        payload.extend_from_slice(&shape.len_bytes.to_be_bytes());
        payload.extend_from_slice(&self.transmission_flags(shape, label).to_be_bytes());
        reply(out, code, ReplyCode::Info, &payload);

        payload.clear();
        payload.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        for block_bytes in [BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, PAYLOAD_BYTES_MAX] {
            payload.extend_from_slice(&block_bytes.to_be_bytes());
        }
        reply(out, code, ReplyCode::Info, &payload);

        if wants_name {
            payload.clear();
            payload.extend_from_slice(&info::NAME.to_be_bytes());
            payload.extend_from_slice(label.as_bytes());
            reply(out, code, ReplyCode::Info, &payload);
        }
        reply(out, code, ReplyCode::Ack, &[]);
        Some((label, export, shape))
    }

    fn on_set_meta_context<D: Directory>(&mut self, data: &[u8], directory: &D, out: &mut Vec<u8>) {
        let code = OptionCode::SetMetaContext.code();
        // Replaces the earlier selection even where it fails.
        self.selected = None;
        if !self.style.in_chunks() {
            let message = "negotiate structured replies or extended headers first";
            reply_error(out, code, ReplyCode::ErrInvalid, message);
            return;
        }
        let Some((label, queries)) = parse_queries(data) else {
            reply_error(out, code, ReplyCode::ErrInvalid, "the option's data does not parse");
            return;
        };
        let export = match find(directory, label) {
            Ok(export) => export,
            Err(unavailable) => return reply_unavailable(out, code, unavailable),
        };
        let Ok(selected) = Selection::of(Context::all(directory.snapshots(&export)), &queries) else {
            let message = "more contexts than one connection may select";
            return reply_error(out, code, ReplyCode::ErrTooBig, message);
        };
        selected.iter().for_each(|(id, context)| reply_context(out, code, id, context));
        self.selected = Some((label.to_owned(), selected));
        reply(out, code, ReplyCode::Ack, &[]);
    }

    fn features(&self, label: &str, shape: Shape) -> Features {
        let selected = self.selected.as_ref().filter(|(of, _)| of == label);
        Features {
            style: self.style,
            contexts: selected.map(|(_, contexts)| contexts.clone()).unwrap_or_default(),
            read_only: shape.read_only,
        }
    }

    fn transmission_flags(&self, shape: Shape, label: &str) -> u16 {
        use transmission_flag::{
            BLOCK_STATUS_PAYLOAD, CAN_MULTI_CONN, HAS_FLAGS, READ_ONLY, SEND_CACHE, SEND_DF, SEND_FAST_ZERO,
            SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES,
        };
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
        flags |= if shape.read_only { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO };
        if self.style.in_chunks() {
            flags |= SEND_DF;
        }
        if self.style == Style::Extended && !self.features(label, shape).contexts.is_empty() {
            flags |= BLOCK_STATUS_PAYLOAD;
        }
        flags
    }
}

fn find<D: Directory>(directory: &D, label: &str) -> Result<D::Export, Unavailable> {
    if label.is_empty() || label.len() > LABEL_BYTES_MAX {
        return Err(Unavailable::Unknown);
    }
    directory.find(label)
}

fn list<D: Directory>(data: &[u8], directory: &D, out: &mut Vec<u8>) {
    let code = OptionCode::List.code();
    if !data.is_empty() {
        reply_error(out, code, ReplyCode::ErrInvalid, "LIST takes no data");
        return;
    }
    match directory.labels() {
        Ok(labels) => {
            for label in labels {
                // Labels were held against LABEL_BYTES_MAX when they were inserted.
                let len = u32::try_from(label.len()).unwrap_or(0);
                let mut payload = len.to_be_bytes().to_vec();
                payload.extend_from_slice(label.as_bytes());
                reply(out, code, ReplyCode::Server, &payload);
            }
            reply(out, code, ReplyCode::Ack, &[]);
        }
        Err(unavailable) => reply_unavailable(out, code, unavailable),
    }
}

fn list_contexts<D: Directory>(data: &[u8], directory: &D, out: &mut Vec<u8>) {
    let code = OptionCode::ListMetaContext.code();
    let Some((label, queries)) = parse_queries(data) else {
        reply_error(out, code, ReplyCode::ErrInvalid, "the option's data does not parse");
        return;
    };
    let export = match find(directory, label) {
        Ok(export) => export,
        Err(unavailable) => return reply_unavailable(out, code, unavailable),
    };
    let listed = Context::all(directory.snapshots(&export)).filter(|context| context.is_listed(&queries));
    // The id is reserved in a listing.
    listed.for_each(|context| reply_context(out, code, 0, context));
    reply(out, code, ReplyCode::Ack, &[]);
}

/// Name and whether the canonical name was asked for. Block sizes are sent unasked.
fn parse_info(data: &[u8]) -> Option<(&str, bool)> {
    let mut cursor = Cursor::new(data);
    let label = cursor.string()?;
    let count = cursor.u16()?;
    let mut wants_name = false;
    for _ in 0..count {
        wants_name |= cursor.u16()? == info::NAME;
    }
    cursor.is_empty().then_some((label, wants_name))
}

/// Export name and queries. The count is believed only as far as the data goes.
fn parse_queries(data: &[u8]) -> Option<(&str, BTreeSet<&str>)> {
    let mut cursor = Cursor::new(data);
    let label = cursor.string()?;
    let count = cursor.u32()?;
    let mut queries = BTreeSet::new();
    for _ in 0..count {
        queries.insert(cursor.string()?);
    }
    cursor.is_empty().then_some((label, queries))
}

fn reply(out: &mut Vec<u8>, option: u32, code: ReplyCode, data: &[u8]) {
    // Replies are made here from bounded parts: labels, fixed texts.
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&code.code().to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(data);
}

fn reply_error(out: &mut Vec<u8>, option: u32, code: ReplyCode, message: &str) {
    reply(out, option, code, message.as_bytes());
}

fn reply_unavailable(out: &mut Vec<u8>, option: u32, unavailable: Unavailable) {
    match unavailable {
        Unavailable::Unknown => reply_error(out, option, ReplyCode::ErrUnknown, "no export of this name"),
        Unavailable::Shutdown => {
            reply_error(out, option, ReplyCode::ErrShutdown, "sealed: the key is not here; try again later");
        }
        Unavailable::Forbidden => {
            let message = "not for this client: see `nightlatch volume access`";
            reply_error(out, option, ReplyCode::ErrPolicy, message);
        }
    }
}

fn reply_context(out: &mut Vec<u8>, option: u32, id: u32, context: Context) {
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend_from_slice(context.name().as_bytes());
    reply(out, option, ReplyCode::MetaContext, &payload);
}

#[cfg(test)]
mod tests;
