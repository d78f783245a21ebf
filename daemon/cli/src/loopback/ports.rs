//! Six loopback ports that stay free until both programs have bound them, and stay the same afterwards.
//!
//! A port that the system hands out (port 0) is from its ephemeral range: once released, the next outgoing connection
//! of any program may take it. So ports are taken from outside that range, in blocks. A block is reserved by binding an
//! abstract unix socket of its name: exclusive over the whole machine, without a file, and released by the kernel
//! however the program ends.

use std::net::TcpListener;
use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use serde::{Deserialize, Serialize};

use crate::commands::random_id;
use crate::failure::{Done, Failure};
use crate::loopback::at;

/// Ports in a block; six are used.
const BLOCK: u32 = 8;

/// Blocks tried before giving up: with most of the machine's ports taken, something else is wrong.
const TRIES: u32 = 200;

/// Below are well-known ports and those of common services.
const LOWEST: u32 = 10_240;

/// Linux's default, where the range cannot be read.
const EPHEMERAL_DEFAULT: Range<u32> = 32_768..61_000;

/// The loopback ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ports {
    pub(crate) keyholder: u16,
    pub(crate) key: u16,
    pub(crate) admin: u16,
    pub(crate) metrics: u16,
    pub(crate) nbd: u16,
    pub(crate) s3: u16,
}

/// Keeps other demonstrations off a block for as long as it lives.
#[derive(Debug)]
pub(crate) struct Reservation(#[expect(dead_code, reason = "holding it is all it is for")] UnixListener);

impl Ports {
    /// Takes a block that no demonstration has reserved and whose ports nobody has bound.
    pub(crate) fn take() -> Done<(Self, Reservation)> {
        let range = outside(&ephemeral());
        let blocks = (range.end - range.start) / BLOCK;
        let random = u32::from_le_bytes(random_id()?.first_chunk().copied().unwrap_or_default());
        for attempt in 0..TRIES.min(blocks) {
            let start = range.start + (random.wrapping_add(attempt) % blocks) * BLOCK;
            let Some(ports) = u16::try_from(start).ok().and_then(Self::from_block) else { continue };
            if let Some(reservation) = ports.reserve()
                && ports.are_free()
            {
                return Ok((ports, reservation));
            }
        }
        Err(Failure::local("no free ports on the loopback address", "look at `ss -ltn`"))
    }

    fn from_block(start: u16) -> Option<Self> {
        Some(Self {
            keyholder: start,
            key: start.checked_add(1)?,
            admin: start.checked_add(2)?,
            metrics: start.checked_add(3)?,
            nbd: start.checked_add(4)?,
            s3: start.checked_add(5)?,
        })
    }

    /// Reserves the block; `None` where another demonstration has it.
    pub(crate) fn reserve(self) -> Option<Reservation> {
        let name = format!("nightlatch-demo-ports-{}", self.keyholder);
        let address = SocketAddr::from_abstract_name(name.as_bytes()).ok()?;
        UnixListener::bind_addr(&address).ok().map(Reservation)
    }

    fn are_free(self) -> bool {
        [self.keyholder, self.key, self.admin, self.metrics, self.nbd, self.s3]
            .into_iter()
            .all(|port| TcpListener::bind(at(port)).is_ok())
    }
}

/// The ports that outgoing connections use.
fn ephemeral() -> Range<u32> {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| {
            let mut ends = text.split_whitespace().map(|end| end.parse::<u32>().ok());
            Some(ends.next()??..ends.next()?? + 1)
        })
        .unwrap_or(EPHEMERAL_DEFAULT)
}

/// The larger of the two ranges beside the ephemeral one; everything where that leaves no room.
fn outside(ephemeral: &Range<u32>) -> Range<u32> {
    let below = LOWEST..ephemeral.start.clamp(LOWEST, 65_536);
    let above = ephemeral.end.clamp(LOWEST, 65_536)..65_536;
    let larger = if below.len() >= above.len() { below } else { above };
    if larger.end - larger.start >= TRIES * BLOCK { larger } else { LOWEST..65_536 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_several_demonstrations_never_overlap() {
        let taken: Vec<_> = (0..50).map(|_| Ports::take().unwrap()).collect();
        let mut starts: Vec<_> = taken.iter().map(|(ports, _)| ports.keyholder).collect();
        starts.sort_unstable();
        assert!(starts.windows(2).all(|pair| u32::from(pair[1] - pair[0]) >= BLOCK), "{starts:?}");
        let range = ephemeral();
        assert!(starts.iter().all(|start| !range.contains(&u32::from(*start))), "{range:?} {starts:?}");
    }

    #[test]
    fn a_block_is_free_again_when_its_demonstration_ends() {
        let (ports, reservation) = Ports::take().unwrap();
        assert!(ports.reserve().is_none());
        drop(reservation);
        assert!(ports.reserve().is_some());
    }

    #[test]
    fn ports_come_from_the_larger_side_and_from_anywhere_where_neither_is_left() {
        assert_eq!(outside(&(32_768..61_000)), 10_240..32_768);
        assert_eq!(outside(&(1_024..20_000)), 20_000..65_536);
        assert_eq!(outside(&(1_024..65_536)), 10_240..65_536);
    }
}
