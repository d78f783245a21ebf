//! Who may use an export: whoever the listener lets in, or those only whom a list names.
//!
//! Invariants:
//! - A list that is not empty admits what it names and nothing else: what is not known of a client matches no entry.
//! - A client of the unix socket has neither address nor certificate. Where there is a list, [`Access::local`] alone decides
//!   about it.
//!
//! What the lists say is held against every lookup of an export, and against every connection when it changes.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use units::VolumeId;

use crate::limits::{ACCESS_ADDRESSES_MAX, ACCESS_CLIENTS_MAX};

/// Who may use an export. The default is whoever the listener lets in, to read and to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    nobody: bool,
    clients: Vec<ClientRule>,
    addresses: Vec<AddressRange>,
    local: bool,
    read_only: bool,
}

/// A certificate that is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientRule {
    /// By the name in it.
    Name(String),
    /// By its key: SHA-256 of the SubjectPublicKeyInfo, which stays when a certificate is renewed.
    Key([u8; 32]),
}

/// Addresses that are let in: the first so many bits of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    network: IpAddr,
    bits: u8,
}

/// Why a list of clients or addresses can't be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAccess {
    /// It is neither a name nor a key.
    #[error(
        "`{0}` is no client: give the name in its certificate, or sha256: and the 64 hexadecimal digits of its key"
    )]
    Client(String),
    /// It is no address or network.
    #[error("`{0}` is no address or network: give one as in 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32")]
    Address(String),
    /// Bits of the address are set that the network does not have.
    #[error("`{given}` is an address inside of a network; write {network}")]
    HostBits {
        /// What was given.
        given: String,
        /// What was meant, most likely.
        network: AddressRange,
    },
    /// More than are taken.
    #[error(
        "{count} clients are more than the {ACCESS_CLIENTS_MAX} that an export may name; give them addresses in common"
    )]
    TooManyClients {
        /// How many were given.
        count: usize,
    },
    /// More than are taken.
    #[error(
        "{count} addresses are more than the {ACCESS_ADDRESSES_MAX} that an export may name; give networks instead"
    )]
    TooManyAddresses {
        /// How many were given.
        count: usize,
    },
}

impl Access {
    /// Lists that are empty admit everybody. `local` says whether clients of the unix socket are let in where a list is not
    /// empty; `read_only` whether every change is refused.
    pub fn new(
        clients: Vec<ClientRule>,
        addresses: Vec<AddressRange>,
        local: bool,
        read_only: bool,
    ) -> Result<Self, InvalidAccess> {
        if clients.len() > ACCESS_CLIENTS_MAX {
            return Err(InvalidAccess::TooManyClients { count: clients.len() });
        }
        if addresses.len() > ACCESS_ADDRESSES_MAX {
            return Err(InvalidAccess::TooManyAddresses { count: addresses.len() });
        }
        Ok(Self { nobody: false, clients, addresses, local, read_only })
    }

    /// Lets nobody in.
    pub fn nobody() -> Self {
        Self { nobody: true, ..Self::default() }
    }

    /// Whether every change is refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn admits(&self, peer: &Peer) -> bool {
        if self.nobody {
            return false;
        }
        if self.clients.is_empty() && self.addresses.is_empty() {
            return true;
        }
        let Some(address) = peer.address else { return self.local };
        let certified = |client: &Client| self.clients.iter().any(|rule| rule.matches(client));
        (self.addresses.is_empty() || self.addresses.iter().any(|range| range.contains(address)))
            && (self.clients.is_empty() || peer.client.as_ref().is_some_and(certified))
    }
}

impl ClientRule {
    fn matches(&self, client: &Client) -> bool {
        match self {
            Self::Name(name) => *name == client.name,
            Self::Key(key) => *key == client.key,
        }
    }
}

impl FromStr for ClientRule {
    type Err = InvalidAccess;

    fn from_str(text: &str) -> Result<Self, InvalidAccess> {
        let invalid = || InvalidAccess::Client(text.to_owned());
        match text.split_once(':') {
            Some(("sha256", digits)) => {
                let mut key = [0; 32];
                hex::decode_to_slice(digits, &mut key).map_err(|_| invalid())?;
                Ok(Self::Key(key))
            }
            Some(_) => Err(invalid()),
            // As names stand in certificates: anything else would match none.
            None if !text.is_empty()
                && text.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)) =>
            {
                Ok(Self::Name(text.to_owned()))
            }
            None => Err(invalid()),
        }
    }
}

impl fmt::Display for ClientRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Key(key) => write!(f, "sha256:{}", hex::encode(key)),
        }
    }
}

impl AddressRange {
    fn contains(&self, address: IpAddr) -> bool {
        // A listener for both families sees an IPv4 client under an address of IPv6.
        let address = address.to_canonical();
        address.is_ipv4() == self.network.is_ipv4() && masked(address, self.bits) == self.network
    }
}

/// The address with only the first `bits` bits kept.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits.into())).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits.into())).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

impl FromStr for AddressRange {
    type Err = InvalidAccess;

    fn from_str(text: &str) -> Result<Self, InvalidAccess> {
        let invalid = || InvalidAccess::Address(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        // Clients are compared by their canonical address: one of this form would match none.
        if address != address.to_canonical() {
            return Err(invalid());
        }
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= longest).ok_or_else(invalid)?,
            None => longest,
        };
        let range = Self { network: masked(address, bits), bits };
        if range.network != address {
            return Err(InvalidAccess::HostBits { given: text.to_owned(), network: range });
        }
        Ok(range)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let longest = if self.network.is_ipv4() { 32 } else { 128 };
        if self.bits == longest { self.network.fmt(f) } else { write!(f, "{}/{}", self.network, self.bits) }
    }
}

/// Who a certificate says that a client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The name in it.
    pub name: String,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key: [u8; 32],
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// `None` on the unix socket.
    pub(crate) address: Option<IpAddr>,
    /// Known once TLS is up.
    pub(crate) client: Option<Client>,
}

/// A client that asked for an export that is not for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The export's volume or snapshot.
    pub volume: VolumeId,
    /// Where the client is; `None` on the unix socket.
    pub address: Option<IpAddr>,
    /// Who it is; `None` without TLS.
    pub client: Option<Client>,
}

/// What the program that composes the server knows of certificates, and wants to know of refusals.
pub trait Doorkeeper: fmt::Debug + Send + Sync + 'static {
    /// Whose certificate this is. The TLS acceptor has verified it.
    fn client(&self, certificate: &CertificateDer<'_>) -> Option<Client>;

    /// A client was refused. Called by an executor thread: it must not wait.
    fn refused(&self, refused: Refused);
}

/// Knows nobody, and keeps no account.
#[derive(Debug)]
pub(crate) struct Nobody;

impl Doorkeeper for Nobody {
    fn client(&self, _: &CertificateDer<'_>) -> Option<Client> {
        None
    }

    fn refused(&self, _: Refused) {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn access(clients: &[&str], addresses: &[&str], local: bool) -> Access {
        let clients = clients.iter().map(|text| text.parse().unwrap()).collect();
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Access::new(clients, addresses, local, false).unwrap()
    }

    fn peer(address: &str, name: &str) -> Peer {
        let client = (!name.is_empty())
            .then(|| Client { name: name.to_owned(), key: [u8::try_from(name.len()).unwrap(); 32] });
        Peer { address: (!address.is_empty()).then(|| address.parse().unwrap()), client }
    }

    #[test]
    fn without_a_list_everybody_is_admitted() {
        for local in [false, true] {
            for peer in [peer("", ""), peer("192.0.2.7", ""), peer("2001:db8::1", "db")] {
                assert!(access(&[], &[], local).admits(&peer), "{peer:?}");
            }
        }
    }

    #[test]
    fn a_list_admits_what_it_names_and_both_must_where_there_are_both() {
        let key = format!("sha256:{}", "02".repeat(32));
        for (clients, addresses, admitted, refused) in [
            (
                vec!["db", key.as_str()],
                vec![],
                vec![peer("192.0.2.7", "db"), peer("198.51.100.1", "xy")],
                vec![peer("192.0.2.7", "web"), peer("192.0.2.7", ""), peer("", "db"), peer("", "")],
            ),
            (
                vec![],
                vec!["192.0.2.0/24", "2001:db8::/32"],
                vec![peer("192.0.2.255", ""), peer("::ffff:192.0.2.9", "web"), peer("2001:db8:1::2", "")],
                vec![peer("192.0.3.0", ""), peer("2001:db9::", "db"), peer("::192.0.2.9", ""), peer("", "")],
            ),
            (
                vec!["db"],
                vec!["192.0.2.7"],
                vec![peer("192.0.2.7", "db")],
                vec![peer("192.0.2.8", "db"), peer("192.0.2.7", "web"), peer("192.0.2.7", "")],
            ),
        ] {
            let lists = access(&clients, &addresses, false);
            assert!(admitted.iter().all(|peer| lists.admits(peer)), "{lists:?}");
            assert!(!refused.iter().any(|peer| lists.admits(peer)), "{lists:?}");
            assert!(
                access(&clients, &addresses, true).admits(&peer("", "")),
                "the unix socket, where it may"
            );
        }
    }

    #[test]
    fn what_names_no_client_or_network_is_refused() {
        for text in
            ["", "a b", "sha256:", "sha256:00", "md5:00", "db/1", "ä", &format!("sha256:{}", "0g".repeat(32))]
        {
            assert!(text.parse::<ClientRule>().is_err(), "{text}");
        }
        for text in [
            "",
            "192.0.2",
            "192.0.2.0/33",
            "::/129",
            "192.0.2.0/",
            "/8",
            "192.0.2.7/x",
            "::ffff:192.0.2.0/120",
        ] {
            assert!(text.parse::<AddressRange>().is_err(), "{text}");
        }
        let inside = "192.0.2.7/24".parse::<AddressRange>().unwrap_err();
        assert!(inside.to_string().contains("write 192.0.2.0/24"), "{inside}");
        for text in ["0.0.0.0/0", "::/0", "192.0.2.7", "2001:db8::/32"] {
            assert_eq!(text.parse::<AddressRange>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn lists_are_taken_up_to_their_limits() {
        let client = |_| "db".parse().unwrap();
        let address = |_| "192.0.2.7".parse().unwrap();
        let made = |clients, addresses| {
            let clients = (0..clients).map(client).collect();
            Access::new(clients, (0..addresses).map(address).collect(), false, false)
        };
        assert!(made(ACCESS_CLIENTS_MAX, ACCESS_ADDRESSES_MAX).is_ok());
        assert!(made(ACCESS_CLIENTS_MAX + 1, 0).is_err());
        assert!(made(0, ACCESS_ADDRESSES_MAX + 1).is_err());
    }

    proptest! {
        #[test]
        fn a_network_contains_what_shares_its_first_bits(a: u32, b: u32, bits in 0_u8..=32) {
            let range = AddressRange { network: masked(IpAddr::V4(a.into()), bits), bits };
            let shared = (a ^ b).leading_zeros() >= u32::from(bits);
            prop_assert_eq!(range.contains(IpAddr::V4(b.into())), shared);
            prop_assert_eq!(range.to_string().parse::<AddressRange>().unwrap(), range);
        }

        #[test]
        fn a_network_of_ipv6_contains_what_shares_its_first_bits(a: u128, flip in 0_u32..128, bits in 0_u8..=128) {
            // One of the mapped addresses would be compared as IPv4.
            let a = a | 1 << 127;
            let range = AddressRange { network: masked(IpAddr::V6(a.into()), bits), bits };
            let b = a ^ (1 << 127 >> flip);
            prop_assert_eq!(range.contains(IpAddr::V6(b.into())), flip >= u32::from(bits));
        }
    }
}
