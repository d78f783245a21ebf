//! The machine's own shutdown and sleep, as systemd-logind announces them on the system bus.
//!
//! The node holds a *delay inhibitor*: logind then tells everyone (`PrepareForShutdown`, `PrepareForSleep`) and waits, a few
//! seconds at most (`InhibitDelayMaxSec`), until the inhibitor is let go. The node lets go when it is sealed.
//!
//! Invariants:
//! - A signal counts only when it comes from the connection that owns logind's name, on logind's path and interface; the
//!   bus itself vouches for the sender. An announcement of anyone else is refused and counted.
//! - An inhibitor is taken before anything is awaited, and taken anew after a shutdown that was called off and after a
//!   sleep. It is let go when [`Gate::is_open`] says so, when the source is dropped, or when the process ends.
//! - A bus that goes away is a failure, and is dialled again.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use units::BootInstant;

use crate::condition::Condition;
use crate::dbus::{Bus, BusError, Message};
use crate::monitor::Monitor;
use crate::slow::{Slow, SourceError};

const LOGIND: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const INTERFACE: &str = "org.freedesktop.login1.Manager";
const BUS: &str = "org.freedesktop.DBus";

/// How long one turn waits for a signal.
const TURN: Duration = Duration::from_millis(250);

/// Says whether the machine may go on to its end.
pub trait Gate: Send {
    /// Whether no key is held any more.
    fn is_open(&self) -> bool;
}

/// Listens to logind.
pub struct Logind {
    address: PathBuf,
    /// `None` where nothing is done that the machine should wait for.
    gate: Option<Box<dyn Gate>>,
    session: Option<Session>,
}

struct Session {
    bus: Bus,
    /// The unique name of the connection that is logind.
    owner: String,
    inhibitor: Option<OwnedFd>,
    /// Something was announced and has not been called off or slept through.
    announced: bool,
}

impl fmt::Debug for Logind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logind").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What a message means.
enum Meaning {
    /// Something begins, or has passed.
    Announced(Condition, bool),
    /// An announcement that is not logind's.
    Forged,
    /// Another connection is logind now: ours and its inhibitor are void.
    OwnerChanged,
    Nothing,
}

impl Session {
    fn open(address: &Path, hold: bool) -> Result<Self, BusError> {
        let mut bus = Bus::connect(address)?;
        bus.add_match(&format!("type='signal',sender='{LOGIND}',interface='{INTERFACE}',path='{PATH}'"))?;
        bus.add_match(&format!(
            "type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{LOGIND}'"
        ))?;
        let owner = bus.name_owner(LOGIND)?;
        let mut session = Self { bus, owner, inhibitor: None, announced: false };
        if hold {
            session.inhibit()?;
        }
        Ok(session)
    }

    fn inhibit(&mut self) -> Result<(), BusError> {
        let arguments = ["shutdown:sleep", "Nightlatch", "wipe keys before the machine goes", "delay"];
        self.inhibitor = Some(self.bus.call_for_descriptor(LOGIND, PATH, INTERFACE, "Inhibit", &arguments)?);
        Ok(())
    }

    fn meaning(&self, message: &Message) -> Meaning {
        if !message.is_signal() {
            return Meaning::Nothing;
        }
        let sender = message.sender.as_deref();
        let condition = match message.member.as_deref() {
            Some("PrepareForShutdown") => Condition::Shutdown,
            Some("PrepareForSleep") => Condition::Sleep,
            Some("NameOwnerChanged") if sender == Some(BUS) => return Meaning::OwnerChanged,
            _ => return Meaning::Nothing,
        };
        let from_logind = sender == Some(self.owner.as_str())
            && message.interface.as_deref() == Some(INTERFACE)
            && message.path.as_deref() == Some(PATH);
        match message.boolean() {
            Some(begins) if from_logind => Meaning::Announced(condition, begins),
            _ => Meaning::Forged,
        }
    }
}

impl Logind {
    /// Listens on the bus whose socket is at `address` (`/run/dbus/system_bus_socket`). With a gate the machine waits for
    /// it to open.
    pub fn new(address: &Path, gate: Option<Box<dyn Gate>>) -> Self {
        Self { address: address.to_owned(), gate, session: None }
    }

    fn turn(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), BusError> {
        let hold = self.gate.is_some();
        let Some(session) = &mut self.session else {
            self.session = Some(Session::open(&self.address, hold)?);
            return Ok(());
        };
        if session.announced && self.gate.as_ref().is_none_or(|gate| gate.is_open()) {
            session.inhibitor = None;
        }
        let Some(message) = session.bus.next(TURN)? else { return Ok(()) };
        match session.meaning(&message) {
            Meaning::Announced(condition, begins) => {
                monitor.on_reading(now, condition, begins);
                session.announced = begins;
                if !begins && hold && session.inhibitor.is_none() {
                    session.inhibit()?;
                }
            }
            Meaning::Forged => monitor.on_refused(),
            Meaning::OwnerChanged => return Err(BusError::Refused("logind has gone or was replaced".into())),
            Meaning::Nothing => {}
        }
        Ok(())
    }
}

impl Slow for Logind {
    fn interval(&self) -> Duration {
        // The turn itself waits.
        Duration::ZERO
    }

    fn poll(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), SourceError> {
        self.turn(now, monitor).map_err(|error| {
            self.session = None;
            let server = self.address.display().to_string();
            match error {
                BusError::Io(source) => SourceError::Unreachable { server, source },
                BusError::Malformed(what) => SourceError::Malformed { server, what },
                BusError::Refused(reason) => SourceError::Refused {
                    server,
                    reason,
                    advice: "systemd-logind must run, and polkit must let the node's user inhibit shutdown",
                },
            }
        })
    }
}

impl From<io::Error> for BusError {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}
