//! Addresses: as the node's measured configuration says, or by DHCP on every Ethernet interface. No name server is used.

mod dhcp;
mod netlink;

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::console::say;
use crate::drivers::Drivers;
use crate::root::CREDENTIALS;
use netlink::{Index, Link};

/// The name of the configuration beside the image.
const FILE: &str = "network.toml";

/// `ARPHRD_ETHER`.
const ETHERNET: &str = "1";

const RETRY: Duration = Duration::from_secs(2);

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Address {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
            Some(Self { address: address.parse().ok()?, prefix })
        });
        parsed.ok_or_else(|| format!("`{text}` is no address with a prefix, such as 192.0.2.7/24"))
    }
}

/// `network.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    #[serde(default, rename = "interface")]
    interfaces: Vec<Interface>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Interface {
    /// As six pairs of hexadecimal digits divided by colons.
    mac: String,
    address: Address,
    gateway: Option<Ipv4Addr>,
}

/// What one interface is to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) address: Address,
    pub(crate) gateway: Option<Ipv4Addr>,
}

/// Brings every interface up. Addresses by DHCP come when they come, in a thread an interface.
pub(crate) fn start(drivers: &mut Drivers) {
    let planned = match read(&Path::new(CREDENTIALS).join(FILE)) {
        Ok(planned) => planned,
        Err(error) => {
            say(&format!("{FILE} is not used, every interface asks for an address instead: {error}"));
            Vec::new()
        }
    };
    if let Err(error) = Link::open().and_then(|mut link| link.up(Index::of("lo")?)) {
        say(&format!("the loopback interface stays down: {error}"));
    }
    if ethernet_interfaces().is_empty() {
        drivers.settle();
    }
    let interfaces = ethernet_interfaces();
    if interfaces.is_empty() {
        say("there is no network interface whose driver this image has: nobody can reach this machine");
    }
    for name in interfaces {
        let mac = fs::read_to_string(format!("/sys/class/net/{name}/address")).unwrap_or_default();
        let plan = planned.iter().find(|plan| plan.mac.eq_ignore_ascii_case(mac.trim())).cloned();
        match plan {
            Some(plan) => {
                let lease = Lease { address: plan.address, gateway: plan.gateway };
                match Link::open().and_then(|mut link| configure(&mut link, &name, &lease)) {
                    Ok(()) => announce(&name, &lease, "as configured"),
                    Err(error) => say(&format!("{name} cannot be configured: {error}")),
                }
            }
            None if planned.is_empty() => {
                let thread = std::thread::Builder::new().name(format!("dhcp {name}"));
                if let Err(error) = thread.spawn(move || ask_for_ever(&name)) {
                    say(&format!("no thread for DHCP: {error}"));
                }
            }
            None => say(&format!("{name} ({}) is not in {FILE} and stays down", mac.trim())),
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Interface>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result?,
    };
    toml::from_str(&text).map(|network: Network| network.interfaces).map_err(io::Error::other)
}

fn ethernet_interfaces() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let ethernet = entries.filter(|entry| {
        fs::read_to_string(entry.path().join("type")).is_ok_and(|kind| kind.trim() == ETHERNET)
    });
    let mut names: Vec<String> = ethernet.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn configure(link: &mut Link, name: &str, lease: &Lease) -> io::Result<()> {
    let index = Index::of(name)?;
    link.up(index)?;
    link.add_address(index, lease.address)?;
    lease.gateway.map_or(Ok(()), |gateway| link.add_default_route(index, gateway))
}

fn announce(name: &str, lease: &Lease, how: &str) {
    let Lease { address: Address { address, prefix }, gateway } = lease;
    let gateway = gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    say(&format!("{name} has {address}/{prefix}{gateway} ({how})"));
}

/// Gets an address and keeps it, until the machine ends.
fn ask_for_ever(name: &str) {
    let mut told = String::new();
    let mut current: Option<Lease> = None;
    loop {
        let turn = || -> io::Result<dhcp::Granted> {
            Link::open()?.up(Index::of(name)?)?;
            dhcp::ask(name, current.map(|lease| lease.address.address))
        };
        let wait = match turn() {
            Ok(granted) => {
                if current != Some(granted.lease) {
                    let changed = Link::open().and_then(|mut link| {
                        if let Some(old) = current {
                            link.remove_address(Index::of(name)?, old.address)?;
                        }
                        configure(&mut link, name, &granted.lease)
                    });
                    match changed {
                        Ok(()) => announce(name, &granted.lease, "by DHCP"),
                        Err(error) => say(&format!("{name} cannot be given its address: {error}")),
                    }
                    current = Some(granted.lease);
                }
                told.clear();
                // At half of its time, as RFC 2131 has it.
                granted.valid / 2
            }
            Err(error) => {
                let text = format!("{name} gets no address by DHCP: {error}");
                if text != told {
                    say(&text);
                    told = text;
                }
                RETRY
            }
        };
        std::thread::sleep(wait.max(RETRY));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_parsed_or_refused() {
        let folder = std::env::temp_dir().join(format!("appliance-network-{}", std::process::id()));
        let text = "[[interface]]\nmac = \"52:54:00:12:34:56\"\naddress = \"192.0.2.7/24\"\ngateway = \"192.0.2.1\"\n";
        fs::write(&folder, text).unwrap();
        let interfaces = read(&folder).unwrap();
        assert_eq!(interfaces[0].address, Address { address: Ipv4Addr::new(192, 0, 2, 7), prefix: 24 });
        for wrong in ["192.0.2.7", "192.0.2.7/33", "192.0.2/24", ""] {
            fs::write(&folder, text.replace("192.0.2.7/24", wrong)).unwrap();
            assert!(read(&folder).unwrap_err().to_string().contains("such as"), "{wrong}");
        }
        fs::remove_file(&folder).unwrap();
        assert!(read(&folder).unwrap().is_empty(), "none is none");
    }
}
