//! Files by TFTP, read only: RFC 1350 with the options for the length of blocks and of the file (RFC 2347, 2348, 2349).
//!
//! Each transfer has a socket of its own and a bound on its time; a client that falls silent is forgotten.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

use super::offer::Offer;

const READ: u16 = 1;
const DATA: u16 = 3;
const ACKNOWLEDGE: u16 = 4;
const ERROR: u16 = 5;
const OPTIONS: u16 = 6;

const NOT_FOUND: u16 = 1;
const ILLEGAL: u16 = 4;

/// Without the option a block has 512 bytes; larger than a frame of Ethernet they would be cut into pieces.
const BLOCK_BYTES_DEFAULT: usize = 512;
const BLOCK_BYTES: std::ops::RangeInclusive<usize> = 8..=1468;

/// A rack that is switched on at once.
const TRANSFERS_MAX: usize = 128;
const REQUEST_BYTES_MAX: usize = 512;
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
const TRIES: usize = 6;

/// A request to read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    path: String,
    block_bytes: Option<usize>,
    wants_length: bool,
}

impl Request {
    /// Reads a datagram; anything but a request to read in binary mode is none.
    fn parse(datagram: &[u8]) -> Option<Self> {
        let (code, rest) = datagram.split_first_chunk::<2>()?;
        let rest = rest.strip_suffix(&[0])?;
        if u16::from_be_bytes(*code) != READ {
            return None;
        }
        let mut words = rest.split(|byte| *byte == 0).map(|word| std::str::from_utf8(word).ok());
        let path = words.next()??.to_owned();
        if !words.next()??.eq_ignore_ascii_case("octet") {
            return None;
        }
        let mut request = Self { path, block_bytes: None, wants_length: false };
        while let Some(name) = words.next() {
            let (name, value) = (name?.to_ascii_lowercase(), words.next()??);
            match name.as_str() {
                "blksize" => {
                    let asked: usize = value.parse().ok()?;
                    // Smaller than the smallest is a mistake; larger than ours gets ours.
                    request.block_bytes =
                        Some(asked.min(*BLOCK_BYTES.end())).filter(|bytes| BLOCK_BYTES.contains(bytes));
                }
                "tsize" => request.wants_length = true,
                _ => {}
            }
        }
        Some(request)
    }

    /// The options that are agreed to, as an answer; none where none was asked for.
    fn agreement(&self, file: &Bytes) -> Option<Vec<u8>> {
        let mut answer = OPTIONS.to_be_bytes().to_vec();
        let mut option =
            |name: &str, value: usize| answer.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
        if let Some(bytes) = self.block_bytes {
            option("blksize", bytes);
        }
        if self.wants_length {
            option("tsize", file.len());
        }
        (answer.len() > 2).then_some(answer)
    }
}

fn block(file: &Bytes, number: usize, bytes: usize) -> Vec<u8> {
    let from = (number - 1).saturating_mul(bytes).min(file.len());
    let to = from.saturating_add(bytes).min(file.len());
    // Numbers begin again at zero after 65,535, as every client of large files expects.
    let low = u16::try_from(number & 0xFFFF).unwrap_or_default();
    [&DATA.to_be_bytes(), &low.to_be_bytes(), &file[from..to]].concat()
}

fn refusal(code: u16, text: &str) -> Vec<u8> {
    [&ERROR.to_be_bytes(), &code.to_be_bytes(), text.as_bytes(), &[0]].concat()
}

pub(super) async fn serve(socket: UdpSocket, offer: Arc<Offer>) {
    let permits = Arc::new(Semaphore::new(TRANSFERS_MAX));
    let mut datagram = [0; REQUEST_BYTES_MAX];
    loop {
        let Ok((len, client)) = socket.recv_from(&mut datagram).await else { continue };
        let Some(request) = Request::parse(&datagram[..len]) else {
            let _ = socket
                .send_to(&refusal(ILLEGAL, "files are read in binary mode here, and nothing else"), client)
                .await;
            continue;
        };
        let Some(file) = offer.find(&request.path) else {
            let _ = socket.send_to(&refusal(NOT_FOUND, "there is no such file"), client).await;
            continue;
        };
        // Whoever finds no place asks again by itself.
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            tokio::spawn(async move {
                let _ = transfer(client, &request, &file).await;
                drop(permit);
            });
        }
    }
}

async fn transfer(client: SocketAddr, request: &Request, file: &Bytes) -> std::io::Result<()> {
    let any: SocketAddr = match client {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(client).await?;
    if let Some(agreement) = request.agreement(file) {
        send_until_acknowledged(&socket, &agreement, 0).await?;
    }
    let bytes = request.block_bytes.unwrap_or(BLOCK_BYTES_DEFAULT);
    // The last block is shorter than the others, if need be empty.
    for number in 1..=file.len() / bytes + 1 {
        send_until_acknowledged(&socket, &block(file, number, bytes), number).await?;
    }
    Ok(())
}

async fn send_until_acknowledged(socket: &UdpSocket, message: &[u8], number: usize) -> std::io::Result<()> {
    let expected = u16::try_from(number & 0xFFFF).unwrap_or_default().to_be_bytes();
    for _ in 0..TRIES {
        socket.send(message).await?;
        let answered = async {
            let mut answer = [0; REQUEST_BYTES_MAX];
            loop {
                let len = socket.recv(&mut answer).await?;
                match answer[..len] {
                    [high, low, first, second, ..] if [high, low] == ACKNOWLEDGE.to_be_bytes() => {
                        // An earlier block's, repeated, is passed over: answering it would double every block from there.
                        if [first, second] == expected {
                            return Ok(());
                        }
                    }
                    _ => return Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted)),
                }
            }
        };
        if let Ok(result) = tokio::time::timeout(ANSWER_PATIENCE, answered).await {
            return result;
        }
    }
    Err(std::io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_parsed_or_refused() {
        let parse = |text: &str| Request::parse(&[&READ.to_be_bytes(), text.as_bytes()].concat());
        let plain = parse("boot.efi\0octet\0").unwrap();
        assert_eq!(plain, Request { path: "boot.efi".to_owned(), block_bytes: None, wants_length: false });
        let options = parse("boot.efi\0OCTET\0tsize\x000\0blksize\x009000\0").unwrap();
        assert!(options.wants_length && options.block_bytes == Some(1468));
        assert_eq!(parse("boot.efi\0octet\0blksize\x001\0").unwrap().block_bytes, None);
        for wrong in
            ["boot.efi\0netascii\0", "boot.efi", "boot.efi\0octet", "", "\0", "boot.efi\0octet\0blksize\0"]
        {
            assert!(parse(wrong).is_none(), "{wrong:?}");
        }
        assert!(Request::parse(b"\0\x02boot.efi\0octet\0").is_none(), "a request to write");
    }

    #[test]
    fn blocks_cover_a_file_and_the_last_is_short() {
        let file = Bytes::from(vec![7; 1024]);
        assert_eq!(block(&file, 1, 512).len(), 4 + 512);
        assert_eq!(block(&file, 2, 512).len(), 4 + 512);
        assert_eq!(block(&file, 3, 512), [0, 3, 0, 3], "a file of whole blocks ends with an empty one");
        assert_eq!(block(&file, 65_536, 512)[..4], [0, 3, 0, 0]);
    }
}
