//! The client's side of the negotiation: TLS first where it is wanted, then structured replies, the allocation
//! context and the export.

use super::{
    ClientError, Endpoint, ExportInfo, PAYLOAD_BYTES_DEFAULT, REPLY_BYTES_MAX, RefusalKind, Transport,
    upgrade,
};
use crate::wire::{
    BASE_ALLOCATION, Cursor, GREETING_BYTES, OPTION_ERROR_BIT, OPTION_MAGIC, OPTION_REPLY_HEADER_BYTES,
    OPTION_REPLY_MAGIC, OptionCode, ReplyCode, SESSION_MAGIC, encode_option_header, handshake_flag, info,
};

/// Replies to one option that are taken: a listing of more exports than any node has keys for.
const REPLIES_MAX: usize = 16 << 10;

/// Connects, greets and, where the endpoint asks for it, upgrades.
pub(super) fn open(endpoint: &Endpoint) -> Result<Box<dyn Transport>, ClientError> {
    let mut stream = endpoint.connect()?;
    let mut greeting = [0; GREETING_BYTES];
    fill(&mut *stream, &mut greeting)?;
    let mut cursor = Cursor::new(&greeting);
    let (Some(SESSION_MAGIC), Some(OPTION_MAGIC), Some(flags)) = (cursor.u64(), cursor.u64(), cursor.u16())
    else {
        return Err(ClientError::Protocol("this is no NBD server"));
    };
    let wanted = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    if flags & handshake_flag::FIXED_NEWSTYLE == 0 {
        return Err(ClientError::Protocol("the server does not speak fixed newstyle"));
    }
    send(&mut *stream, &u32::from(flags & wanted).to_be_bytes())?;
    if let Some((config, name)) = &endpoint.tls {
        option(&mut *stream, OptionCode::StartTls, &[])?;
        stream = upgrade(stream, config.clone(), name.clone())?;
    }
    Ok(stream)
}

/// Structured replies, the allocation context, the export.
pub(super) fn go(stream: &mut dyn Transport, label: &str) -> Result<ExportInfo, ClientError> {
    option(stream, OptionCode::StructuredReply, &[])?;
    let mut data = string(label);
    data.extend_from_slice(&1_u32.to_be_bytes());
    data.extend_from_slice(&string(BASE_ALLOCATION));
    let contexts = option(stream, OptionCode::SetMetaContext, &data)?;

    let mut data = string(label);
    data.extend_from_slice(&1_u16.to_be_bytes());
    data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
    let mut export = None;
    let mut payload_bytes_max = PAYLOAD_BYTES_DEFAULT;
    for (code, data) in option(stream, OptionCode::Go, &data)? {
        let mut cursor = Cursor::new(&data);
        match (code, cursor.u16()) {
            (ReplyCode::Info, Some(info::EXPORT)) => export = cursor.u64().zip(cursor.u16()),
            (ReplyCode::Info, Some(info::BLOCK_SIZE)) => {
                let sizes = (cursor.u32(), cursor.u32(), cursor.u32());
                payload_bytes_max = sizes.2.unwrap_or(PAYLOAD_BYTES_DEFAULT).min(PAYLOAD_BYTES_DEFAULT);
            }
            _ => (),
        }
    }
    let (len_bytes, flags) = export.ok_or(ClientError::Protocol("the export was not described"))?;
    let block_status = contexts.iter().any(|(code, _)| *code == ReplyCode::MetaContext);
    Ok(ExportInfo { len_bytes, flags, payload_bytes_max, block_status })
}

pub(super) fn list(stream: &mut dyn Transport) -> Result<Vec<String>, ClientError> {
    let mut labels = Vec::new();
    for (_, data) in option(stream, OptionCode::List, &[])? {
        let label = Cursor::new(&data).string().ok_or(ClientError::Protocol("a label that is no text"))?;
        labels.push(label.to_owned());
    }
    Ok(labels)
}

/// Goodbye; the server closes whether or not this reaches it.
pub(super) fn abort(stream: &mut dyn Transport) {
    drop(send(stream, &encode_option_header(OptionCode::Abort, 0)));
}

/// Sends an option and takes replies up to the acknowledgement.
fn option(
    stream: &mut dyn Transport,
    option: OptionCode,
    data: &[u8],
) -> Result<Vec<(ReplyCode, Vec<u8>)>, ClientError> {
    let length =
        u32::try_from(data.len()).map_err(|_| ClientError::Protocol("a label of more than 4 GiB"))?;
    let mut message = encode_option_header(option, length).to_vec();
    message.extend_from_slice(data);
    send(stream, &message)?;
    let mut replies = Vec::new();
    while replies.len() < REPLIES_MAX {
        let (code, data) = reply(stream, option)?;
        match ReplyCode::from_code(code) {
            Some(ReplyCode::Ack) => return Ok(replies),
            Some(known) if code & OPTION_ERROR_BIT == 0 => replies.push((known, data)),
            None if code & OPTION_ERROR_BIT == 0 => {
                return Err(ClientError::Protocol("an option reply of an unknown kind"));
            }
            known => return Err(refused(known, &data)),
        }
    }
    Err(ClientError::Protocol("replies to an option without an end"))
}

fn reply(stream: &mut dyn Transport, option: OptionCode) -> Result<(u32, Vec<u8>), ClientError> {
    let mut header = [0; OPTION_REPLY_HEADER_BYTES];
    fill(stream, &mut header)?;
    let mut cursor = Cursor::new(&header);
    let (Some(OPTION_REPLY_MAGIC), Some(answered), Some(code), Some(length)) =
        (cursor.u64(), cursor.u32(), cursor.u32(), cursor.u32())
    else {
        return Err(ClientError::Protocol("an option reply with the wrong magic"));
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if answered != option.code() || length > REPLY_BYTES_MAX {
        return Err(ClientError::Protocol("an option reply that does not fit the option"));
    }
    let mut data = vec![0; length];
    fill(stream, &mut data)?;
    Ok((code, data))
}

fn refused(code: Option<ReplyCode>, message: &[u8]) -> ClientError {
    let kind = match code {
        Some(ReplyCode::ErrUnknown) => RefusalKind::Unknown,
        Some(ReplyCode::ErrShutdown) => RefusalKind::Shutdown,
        Some(ReplyCode::ErrTlsRequired) => RefusalKind::TlsRequired,
        Some(ReplyCode::ErrPolicy) => RefusalKind::Policy,
        _ => RefusalKind::Other,
    };
    ClientError::Refused { kind, message: String::from_utf8_lossy(message).into_owned() }
}

fn string(text: &str) -> Vec<u8> {
    // A label of more than 4 GiB is refused when the option is sent.
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn send(stream: &mut dyn Transport, bytes: &[u8]) -> Result<(), ClientError> {
    stream.write_all(bytes).and_then(|()| stream.flush()).map_err(|source| ClientError::closed(None, source))
}

fn fill(stream: &mut dyn Transport, out: &mut [u8]) -> Result<(), ClientError> {
    stream.read_exact(out).map_err(|source| ClientError::closed(None, source))
}
