//! Asking for an address (RFC 2131), as much of it as a server with one interface at a time needs.
//!
//! Whoever answers can give a wrong address, and thereby keep the keyholder away: a denial of service, and no more. Nothing else
//! of an answer is used.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::{Address, Lease};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const FIXED_BYTES: usize = 236;
/// A whole message fits into the smallest datagram that every host takes (RFC 2131, section 2).
const MESSAGE_BYTES_MAX: usize = 1500;

const MASK: u8 = 1;
const ROUTER: u8 = 3;
const WANTED_ADDRESS: u8 = 50;
const VALID: u8 = 51;
const KIND: u8 = 53;
const SERVER: u8 = 54;
const WANTED_OPTIONS: u8 = 55;
const END: u8 = 255;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACKNOWLEDGE: u8 = 5;
const REFUSE: u8 = 6;

const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

/// A server that gives no time gives this; one that gives less is asked no more often than every few seconds.
const VALID_DEFAULT: Duration = Duration::from_secs(3600);

/// An address for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) lease: Lease,
    pub(super) valid: Duration,
}

/// What of an answer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    kind: u8,
    address: Ipv4Addr,
    server: Option<Ipv4Addr>,
    mask: Option<Ipv4Addr>,
    router: Option<Ipv4Addr>,
    valid: Option<u32>,
}

/// Who asks, and under which number.
#[derive(Clone, Copy, Debug)]
struct Asker {
    transaction: u32,
    hardware: [u8; 6],
}

impl Asker {
    fn message(self, kind: u8, options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; FIXED_BYTES];
        // A request, by Ethernet, with six bytes of address, and no relay so far.
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&self.transaction.to_be_bytes());
        // Answers by broadcast: there is no address yet at which they could arrive.
        bytes[10] = 0x80;
        bytes[28..34].copy_from_slice(&self.hardware);
        bytes.extend_from_slice(&COOKIE);
        let mut option = |code: u8, value: &[u8]| {
            bytes.extend_from_slice(&[code, u8::try_from(value.len()).unwrap_or(u8::MAX)]);
            bytes.extend_from_slice(value);
        };
        option(KIND, &[kind]);
        options.iter().for_each(|(code, value)| option(*code, value));
        option(WANTED_OPTIONS, &[MASK, ROUTER, VALID]);
        bytes.push(END);
        bytes
    }

    /// Reads an answer to this asker; anything else is none.
    fn read(self, bytes: &[u8]) -> Option<Answer> {
        let is_ours = bytes.get(..3)? == [2, 1, 6]
            && bytes.get(4..8)? == self.transaction.to_be_bytes()
            && bytes.get(28..34)? == self.hardware
            && bytes.get(FIXED_BYTES..FIXED_BYTES + 4)? == COOKIE;
        if !is_ours {
            return None;
        }
        let four = |value: &[u8]| -> Option<[u8; 4]> { value.get(..4)?.try_into().ok() };
        let address = Ipv4Addr::from(four(&bytes[16..])?);
        let mut answer = Answer { kind: 0, address, server: None, mask: None, router: None, valid: None };
        let mut rest = &bytes[FIXED_BYTES + 4..];
        while let Some((code, after)) = rest.split_first().filter(|(code, _)| **code != END) {
            if *code == 0 {
                rest = after;
                continue;
            }
            let (len, after) = after.split_first()?;
            let (value, after) = after.split_at_checked(usize::from(*len))?;
            rest = after;
            match *code {
                KIND => answer.kind = *value.first()?,
                SERVER => answer.server = four(value).map(Ipv4Addr::from),
                MASK => answer.mask = four(value).map(Ipv4Addr::from),
                ROUTER => answer.router = four(value).map(Ipv4Addr::from),
                VALID => answer.valid = four(value).map(u32::from_be_bytes),
                _ => {}
            }
        }
        Some(answer)
    }
}

fn prefix(mask: Ipv4Addr) -> Option<u8> {
    let bits = u32::from(mask);
    (bits.leading_ones() + bits.trailing_zeros() >= 32)
        .then(|| u8::try_from(bits.leading_ones()).unwrap_or(32))
}

impl Answer {
    fn granted(&self) -> Option<Granted> {
        let usable =
            !self.address.is_unspecified() && !self.address.is_broadcast() && !self.address.is_loopback();
        let prefix = self.mask.map_or(Some(24), prefix)?;
        usable.then(|| Granted {
            lease: Lease { address: Address { address: self.address, prefix }, gateway: self.router },
            valid: self.valid.map_or(VALID_DEFAULT, |seconds| Duration::from_secs(seconds.into())),
        })
    }
}

/// Asks on one interface for an address: for `known` where it has one already.
pub(super) fn ask(interface: &str, known: Option<Ipv4Addr>) -> io::Result<Granted> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{interface}/address"))?;
    let mut hardware = [0; 6];
    for (place, pair) in hardware.iter_mut().zip(text.trim().split(':')) {
        *place = u8::from_str_radix(pair, 16).map_err(io::Error::other)?;
    }
    let asker = Asker { transaction: transaction()?, hardware };
    let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
    socket.set_broadcast(true)?;
    setsockopt(&socket.as_fd(), sockopt::BindToDevice, &interface.into())?;
    let wanted = known.map(|address| address.octets());
    let wanted: Vec<(u8, &[u8])> =
        wanted.iter().map(|address| (WANTED_ADDRESS, address.as_slice())).collect();
    let offer = exchange(&socket, asker, &asker.message(DISCOVER, &wanted), OFFER)?;
    let (address, server) = (offer.address.octets(), offer.server.map(|server| server.octets()));
    let mut chosen: Vec<(u8, &[u8])> = vec![(WANTED_ADDRESS, &address)];
    chosen.extend(server.iter().map(|server| (SERVER, server.as_slice())));
    let answer = exchange(&socket, asker, &asker.message(REQUEST, &chosen), ACKNOWLEDGE)?;
    answer.granted().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "the server's answer gives no usable address")
    })
}

fn transaction() -> io::Result<u32> {
    use std::io::Read;
    let mut bytes = [0; 4];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

/// Sends a message and waits for an answer of this kind.
fn exchange(socket: &UdpSocket, asker: Asker, message: &[u8], kind: u8) -> io::Result<Answer> {
    socket.send_to(message, SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT))?;
    let begun = Instant::now();
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    loop {
        let left = ANSWER_PATIENCE.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no server answers"));
        }
        socket.set_read_timeout(Some(left))?;
        let len = match socket.recv(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            result => result?,
        };
        match asker.read(&buffer[..len]) {
            Some(answer) if answer.kind == kind => return Ok(answer),
            Some(answer) if answer.kind == REFUSE => {
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the server refuses"));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKER: Asker = Asker { transaction: 0x1234_5678, hardware: [2, 0, 0, 0, 0, 7] };

    fn answer(kind: u8, options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = ASKER.message(kind, options);
        bytes[0] = 2;
        bytes[16..20].copy_from_slice(&[192, 0, 2, 7]);
        bytes
    }

    #[test]
    fn an_answer_gives_address_network_router_and_time() {
        let bytes = answer(
            ACKNOWLEDGE,
            &[(MASK, &[255, 255, 240, 0]), (ROUTER, &[192, 0, 2, 1]), (VALID, &[0, 0, 1, 0])],
        );
        let granted = ASKER.read(&bytes).unwrap().granted().unwrap();
        let address = Address { address: Ipv4Addr::new(192, 0, 2, 7), prefix: 20 };
        let lease = Lease { address, gateway: Some(Ipv4Addr::new(192, 0, 2, 1)) };
        assert_eq!(granted, Granted { lease, valid: Duration::from_secs(256) });
    }

    #[test]
    fn what_is_not_for_this_asker_or_is_cut_off_is_no_answer() {
        let whole = answer(OFFER, &[(MASK, &[255, 255, 255, 0])]);
        assert!(ASKER.read(&whole).is_some());
        for len in 0..FIXED_BYTES + 4 {
            assert!(ASKER.read(&whole[..len]).is_none(), "{len} bytes");
        }
        // Cut inside an option: none; between two: an answer that says less.
        for len in FIXED_BYTES + 4..whole.len() {
            let _ = ASKER.read(&whole[..len]);
        }
        for (at, what) in
            [(0, "a request"), (4, "another transaction"), (28, "another interface"), (236, "no DHCP")]
        {
            let mut other = whole.clone();
            other[at] ^= 3;
            assert!(ASKER.read(&other).is_none(), "{what}");
        }
    }

    #[test]
    fn a_useless_address_is_none() {
        let mut bytes = answer(ACKNOWLEDGE, &[(MASK, &[255, 0, 255, 0])]);
        assert!(ASKER.read(&bytes).unwrap().granted().is_none(), "no mask of a network");
        bytes = answer(ACKNOWLEDGE, &[]);
        assert_eq!(ASKER.read(&bytes).unwrap().granted().unwrap().valid, VALID_DEFAULT);
        bytes[16..20].fill(0);
        assert!(ASKER.read(&bytes).unwrap().granted().is_none());
    }
}
