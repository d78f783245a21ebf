//! Kernel events over netlink (`NETLINK_KOBJECT_UEVENT`), of which the configuration names those that matter.
//!
//! A datagram is `action@devpath` and `KEY=VALUE` pairs, each ended by a zero byte. Programs can send such datagrams
//! too, to a process or to the kernel's group.
//!
//! Invariants:
//! - Only what the kernel itself sent counts: netlink port 0, group 1, and credentials of process 0 and user 0 attached
//!   by the kernel. Everything else is refused and counted.
//! - An event that somebody asked the kernel to repeat (by writing to a `uevent` file) carries `SYNTH_UUID`; it counts
//!   only where the configuration says so.
//! - When the kernel drops events because the queue was full, the reader is told: it must look for itself.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType,
    UnixCredentials, bind, recvmsg, setsockopt, socket, sockopt,
};
use units::BootInstant;

use crate::condition::Condition;
use crate::monitor::Monitor;
use crate::{Fast, SourceError};

/// The kernel's own buffer for one event is 2048 bytes of environment and its header; longer ones do not exist.
const DATAGRAM_BYTES: usize = 8192;

/// The multicast group that the kernel sends to; udev's is 2.
const KERNEL_GROUP: u32 = 1;

/// Events that wait until they are read. The default of most machines (208 KiB) holds a hundred; a dock full of devices
/// sends more. Without privilege the kernel gives what `net.core.rmem_max` allows.
const QUEUE_BYTES: usize = 1 << 20;

/// Datagrams in one turn, so that a flood does not keep the thread from its timers.
const DATAGRAMS_PER_TURN: usize = 64;

/// Where a datagram came from, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin {
    port: u32,
    groups: u32,
    process: Option<i32>,
    user: Option<u32>,
}

impl Origin {
    fn is_kernel(self) -> bool {
        self == Self { port: 0, groups: KERNEL_GROUP, process: Some(0), user: Some(0) }
    }
}

/// What came of waiting for an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// An event of this many bytes from the kernel.
    Event(usize),
    /// A datagram that is not the kernel's.
    Foreign,
    /// The kernel dropped events.
    Overrun,
    /// Nothing more.
    Nothing,
}

/// The netlink socket.
pub(crate) struct Socket {
    socket: OwnedFd,
    buffer: Box<[u8; DATAGRAM_BYTES]>,
    control: Vec<u8>,
}

impl Socket {
    pub(crate) fn open() -> Result<Self, SourceError> {
        Self::bound(KERNEL_GROUP).map_err(|errno| SourceError::Netlink(errno.into()))
    }

    fn bound(groups: u32) -> Result<Self, Errno> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        // Root may exceed the machine's limit; for others it is what it is, and an overrun is noticed.
        if setsockopt(&socket, sockopt::RcvBufForce, &QUEUE_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &QUEUE_BYTES)?;
        }
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        let control = nix::cmsg_space!(UnixCredentials);
        Ok(Self { socket, buffer: Box::new([0; DATAGRAM_BYTES]), control })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn bytes(&self, length: usize) -> &[u8] {
        &self.buffer[..length.min(DATAGRAM_BYTES)]
    }

    /// Neither blocks nor allocates.
    pub(crate) fn receive(&mut self) -> Result<Received, Errno> {
        let mut slices = [IoSliceMut::new(&mut self.buffer[..])];
        let descriptor = self.socket.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<NetlinkAddr>(descriptor, &mut slices, Some(&mut self.control), flags) {
            Ok(message) => message,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Received::Nothing),
            Err(Errno::ENOBUFS) => return Ok(Received::Overrun),
            Err(errno) => return Err(errno),
        };
        let mut origin = Origin { port: u32::MAX, groups: 0, process: None, user: None };
        if let Some(address) = message.address {
            origin = Origin { port: address.pid(), groups: address.groups(), ..origin };
        }
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmCredentials(credentials) = control {
                origin.process = Some(credentials.pid());
                origin.user = Some(credentials.uid());
            }
        }
        let whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
        Ok(if origin.is_kernel() && whole { Received::Event(message.bytes) } else { Received::Foreign })
    }
}

/// The pairs of an event, its header left out.
pub(crate) fn pairs(event: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    event.split(|byte| *byte == 0).skip(1).filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        Some((&pair[..at], &pair[at + 1..]))
    })
}

/// The value of one key.
pub(crate) fn value<'a>(event: &'a [u8], key: &str) -> Option<&'a [u8]> {
    pairs(event).find(|(found, _)| *found == key.as_bytes()).map(|(_, value)| value)
}

/// An event that the configuration names: all of the pairs, and maybe repeated ones too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Keys with the values that they must have; a value that ends in `*` is a beginning.
    pub pairs: Vec<(String, String)>,
    /// Whether an event counts that somebody asked the kernel to repeat.
    pub synthetic: bool,
}

impl Pattern {
    fn matches(&self, event: &[u8]) -> bool {
        let allowed = self.synthetic || value(event, "SYNTH_UUID").is_none();
        allowed
            && self.pairs.iter().all(|(key, wanted)| {
                value(event, key).is_some_and(|found| match wanted.strip_suffix('*') {
                    Some(start) => found.starts_with(start.as_bytes()),
                    None => found == wanted.as_bytes(),
                })
            })
    }
}

/// Waits for one sort of kernel event.
pub struct KernelEvents {
    socket: Socket,
    pattern: Pattern,
}

impl std::fmt::Debug for KernelEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelEvents").field("pattern", &self.pattern).finish_non_exhaustive()
    }
}

impl KernelEvents {
    /// Listens for events that match, for [`Condition::KernelEvent`].
    ///
    /// # Errors
    /// Where the kernel gives no such socket.
    pub fn open(pattern: Pattern) -> Result<Self, SourceError> {
        Ok(Self { socket: Socket::open()?, pattern })
    }
}

impl Fast for KernelEvents {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    fn read(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), Errno> {
        for _ in 0..DATAGRAMS_PER_TURN {
            match self.socket.receive()? {
                Received::Event(length) => {
                    monitor.on_heard(now);
                    if self.pattern.matches(self.socket.bytes(length)) {
                        monitor.on_event(Condition::KernelEvent);
                    }
                }
                Received::Foreign => monitor.on_refused(),
                // The one that mattered may have been among those dropped.
                Received::Overrun => monitor.on_event(Condition::KernelEvent),
                Received::Nothing => break,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use nix::sys::socket::{getsockname, sendto};

    use crate::condition::Policy;

    use super::*;

    /// A datagram as the kernel lays it out.
    pub(crate) fn event(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut event = b"change@/devices/virtual/test\0".to_vec();
        for (key, value) in pairs {
            event.extend_from_slice(format!("{key}={value}\0").as_bytes());
        }
        event
    }

    fn pattern(pairs: &[(&str, &str)], synthetic: bool) -> Pattern {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Pattern { pairs, synthetic }
    }

    #[test]
    fn a_pattern_wants_all_of_its_pairs() {
        let event = event(&[("ACTION", "remove"), ("SUBSYSTEM", "block"), ("DEVNAME", "loop3")]);
        assert!(pattern(&[("ACTION", "remove"), ("SUBSYSTEM", "block")], false).matches(&event));
        assert!(pattern(&[("DEVNAME", "loop*")], false).matches(&event));
        for wrong in [[("ACTION", "add")], [("DEVNAME", "loop")], [("ID", "*")], [("CTION", "remove")]] {
            assert!(!pattern(&wrong, false).matches(&event), "{wrong:?}");
        }
    }

    #[test]
    fn a_repeated_event_counts_only_where_that_is_said() {
        let event = event(&[("ACTION", "change"), ("SYNTH_UUID", "0")]);
        assert!(!pattern(&[("ACTION", "change")], false).matches(&event));
        assert!(pattern(&[("ACTION", "change")], true).matches(&event));
    }

    #[test]
    fn broken_datagrams_match_nothing_and_do_no_harm() {
        let wanted = pattern(&[("ACTION", "change")], true);
        for bytes in
            [&b""[..], b"\0", b"\0\0=\0", b"change@/x", b"x\0ACTION", b"x\0=change\0", b"ACTION=change"]
        {
            assert!(!wanted.matches(bytes), "{bytes:?}");
        }
    }

    #[test]
    fn only_port_zero_group_one_and_the_kernels_credentials_are_the_kernel() {
        let kernel = Origin { port: 0, groups: 1, process: Some(0), user: Some(0) };
        assert!(kernel.is_kernel());
        let others = [
            Origin { port: 4711, ..kernel },
            Origin { groups: 2, ..kernel },
            Origin { groups: 0, ..kernel },
            Origin { process: Some(1), ..kernel },
            Origin { process: None, ..kernel },
            Origin { user: Some(1000), ..kernel },
            Origin { user: None, ..kernel },
        ];
        for other in others {
            assert!(!other.is_kernel(), "{other:?}");
        }
    }

    fn listening(pairs: &[(&str, &str)]) -> (KernelEvents, Monitor) {
        let policies = [(Condition::KernelEvent, Policy::WIPE)];
        let monitor = Monitor::new("test", "kernel-event", false, &policies);
        (KernelEvents::open(pattern(pairs, true)).unwrap(), monitor)
    }

    /// As root, which both need. In one test: a forgery to the kernel's group reaches every listener of the machine, and the other one
    /// counts what is refused.
    #[test]
    fn a_spoofed_event_is_refused_and_counted_and_a_real_one_of_the_kernel_fires() {
        a_spoofed_event_is_refused_and_counted();
        a_real_event_of_the_kernel_fires();
    }

    /// To the listener's own port, and to the kernel's group.
    fn a_spoofed_event_is_refused_and_counted() {
        let (mut events, mut monitor) = listening(&[("DEVNAME", "mem")]);
        let port = getsockname::<NetlinkAddr>(events.socket.socket.as_raw_fd()).unwrap().pid();
        let spoofer = Socket::bound(0).unwrap();
        let forged = event(&[("DEVNAME", "mem")]);
        assert!(events.pattern.matches(&forged), "the forgery is a good one");
        for to in [NetlinkAddr::new(port, 0), NetlinkAddr::new(0, KERNEL_GROUP)] {
            let before = monitor.state().refused();
            sendto(spoofer.socket.as_raw_fd(), &forged, &to, MsgFlags::empty()).unwrap();
            events.read(BootInstant(1), &mut monitor).unwrap();
            assert!(monitor.state().refused() > before, "{to:?}");
            assert_eq!(monitor.next_fired(BootInstant(1)), None, "{to:?}");
        }
    }

    /// Asked for through the device's `uevent` file.
    fn a_real_event_of_the_kernel_fires() {
        let wanted = [("SUBSYSTEM", "mem"), ("DEVNAME", "null"), ("ACTION", "change")];
        let (mut events, mut monitor) = listening(&wanted);
        std::fs::write("/sys/class/mem/null/uevent", "change").expect("only root may ask for an event");
        events.read(BootInstant(1), &mut monitor).unwrap();
        assert!(monitor.next_fired(BootInstant(1)).is_some());
        assert_eq!(monitor.state().refused(), 0);
    }
}
