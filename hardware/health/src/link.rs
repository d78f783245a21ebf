//! Network interfaces and whether their links are up (`/sys/class/net`, Documentation/ABI/testing/sysfs-class-net).

use serde::{Deserialize, Serialize};

use crate::tree::Tree;

/// Interfaces in a namespace of containers can be many; a machine's own are not.
const INTERFACES_MAX: usize = 256;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it is a card or port, and not made by software.
    pub physical: bool,
    /// It is set up.
    pub enabled: bool,
    /// The link is there.
    pub up: bool,
    /// Megabits a second; `None` while there is no link, or where it has no speed.
    pub speed_mbit: Option<u64>,
    /// Both directions at once.
    pub full_duplex: Option<bool>,
    /// Its hardware address.
    pub address: Option<String>,
    /// The driver.
    pub driver: Option<String>,
    /// Times the link came or went.
    pub carrier_changes: u64,
    /// Packets that came in broken.
    pub receive_errors: u64,
    /// Packets that could not be sent.
    pub send_errors: u64,
}

/// Every interface but the loopback.
pub fn interfaces(sys: &Tree) -> Vec<Interface> {
    let names = sys.names("class/net").into_iter().filter(|name| name != "lo");
    names.filter_map(|name| interface(sys, name)).take(INTERFACES_MAX).collect()
}

fn interface(sys: &Tree, name: String) -> Option<Interface> {
    let of = |what: &str| format!("class/net/{name}/{what}");
    // A file of the bonding driver lies among the interfaces.
    let state = sys.text(&of("operstate"))?;
    let count = |what: &str| sys.number(&of(what)).unwrap_or(0);
    Some(Interface {
        physical: sys.exists(&of("device")),
        // The kernel refuses to read the carrier of an interface that is not set up.
        enabled: sys.text(&of("carrier")).is_some(),
        up: sys.text(&of("carrier")).as_deref() == Some("1") && state != "down",
        // -1 where it is unknown.
        speed_mbit: sys.number(&of("speed")).filter(|speed| *speed > 0 && *speed < u64::from(u32::MAX)),
        full_duplex: match sys.text(&of("duplex")).as_deref() {
            Some("full") => Some(true),
            Some("half") => Some(false),
            _ => None,
        },
        address: sys.text(&of("address")),
        driver: sys.real_name(&of("device/driver")),
        carrier_changes: count("carrier_changes"),
        receive_errors: count("statistics/rx_errors"),
        send_errors: count("statistics/tx_errors"),
        name,
    })
}
