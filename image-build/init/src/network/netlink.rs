//! Orders to the kernel about interfaces, addresses and routes (rtnetlink(7)).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use super::Address;

const HEADER_BYTES: usize = 16;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
/// A request that is acknowledged.
const REQUEST: u16 = 1 | 4;
/// Makes what is not there, replaces what is.
const CREATE: u16 = 0x400 | 0x100;
const AF_INET: u8 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

/// The kernel's number for an interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Index(u32);

impl Index {
    pub(super) fn of(name: &str) -> io::Result<Self> {
        Ok(Self(nix::net::if_::if_nametoindex(name)?))
    }
}

/// A socket to the kernel.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX);
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    // Sequence number and port: one question at a time, and the kernel knows who asks.
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(body);
    bytes
}

impl Link {
    pub(super) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Sends an order and waits for the kernel's word on it.
    fn order(&mut self, message: &[u8]) -> io::Result<()> {
        send(self.0.as_raw_fd(), message, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let len = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let answer = answer.get(..len).filter(|answer| answer.len() >= HEADER_BYTES + 4);
        let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
        if u16::from_ne_bytes([answer[4], answer[5]]) != NLMSG_ERROR {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        }
    }

    pub(super) fn up(&mut self, Index(index): Index) -> io::Result<()> {
        // Family, padding, type; index; flags; which flags change.
        let mut body = vec![0; 4];
        body.extend_from_slice(&index.to_ne_bytes());
        body.extend_from_slice(&IFF_UP.to_ne_bytes());
        body.extend_from_slice(&IFF_UP.to_ne_bytes());
        self.order(&message(RTM_NEWLINK, REQUEST, &body))
    }

    fn address(&mut self, kind: u16, flags: u16, Index(index): Index, address: Address) -> io::Result<()> {
        // Family, prefix, flags, scope; index.
        let mut body = vec![AF_INET, address.prefix, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        body.extend_from_slice(&attribute(IFA_LOCAL, &address.address.octets()));
        body.extend_from_slice(&attribute(IFA_ADDRESS, &address.address.octets()));
        self.order(&message(kind, REQUEST | flags, &body))
    }

    pub(super) fn add_address(&mut self, index: Index, address: Address) -> io::Result<()> {
        self.address(RTM_NEWADDR, CREATE, index, address)
    }

    pub(super) fn remove_address(&mut self, index: Index, address: Address) -> io::Result<()> {
        self.address(RTM_DELADDR, 0, index, address)
    }

    pub(super) fn add_default_route(&mut self, Index(index): Index, gateway: Ipv4Addr) -> io::Result<()> {
        // Family, lengths of both prefixes, type of service; table, who made it, scope, kind; flags.
        let mut body = vec![AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0, 0, 0, 0];
        body.extend_from_slice(&attribute(RTA_GATEWAY, &gateway.octets()));
        body.extend_from_slice(&attribute(RTA_OIF, &index.to_ne_bytes()));
        self.order(&message(RTM_NEWROUTE, REQUEST | CREATE, &body))
    }
}
