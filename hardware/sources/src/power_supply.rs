//! The machine's own supplies, as the kernel's power_supply class shows them.
//!
//! Two readers of one fact: [`SupplyEvents`] hears the kernel's event the moment the driver notices, on the thread that
//! wipes; [`SupplyFiles`] reads `online` of each supply now and then, for drivers that announce nothing.
//!
//! Invariants:
//! - The condition is on when every watched supply is offline: of two redundant supplies one may be unplugged.
//! - Watched are those that are named, otherwise all of the types Mains and USB that there are; a machine with none
//!   cannot be watched, and that is an error and not silence.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use units::BootInstant;

use crate::condition::Condition;
use crate::monitor::Monitor;
use crate::slow::Slow;
use crate::uevent::{Received, Socket, value};
use crate::{Fast, SourceError};

/// Datagrams in one turn, so that a flood does not keep the thread from its timers.
const DATAGRAMS_PER_TURN: usize = 64;

/// A supply, and whether it had mains when last heard of.
#[derive(Debug)]
struct Supply {
    name: String,
    /// Its `online` file, kept open: the thread that wipes may open none.
    file: Option<fs::File>,
    online: bool,
}

/// Reads the supplies under `directory`: those in `names`, or all that bring mains.
fn read(directory: &Path, names: &[String]) -> Result<Vec<Supply>, SourceError> {
    let unavailable = |source| SourceError::unavailable(directory, source);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(unavailable)? {
        let entry = entry.map_err(unavailable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let text =
            |file: &str| fs::read_to_string(entry.path().join(file)).map(|text| text.trim().to_owned());
        let wanted = if names.is_empty() {
            matches!(text("type").as_deref(), Ok("Mains" | "USB"))
        } else {
            names.contains(&name)
        };
        if wanted {
            let path = entry.path().join("online");
            let online = text("online").map_err(|source| SourceError::unavailable(&path, source))?;
            let file = fs::File::open(&path).map_err(|source| SourceError::unavailable(&path, source))?;
            found.push(Supply { name, file: Some(file), online: online != "0" });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(missing) = names.iter().find(|name| !found.iter().any(|supply| supply.name == **name)) {
        return Err(SourceError::NoSuchSupply { name: missing.clone(), directory: directory.to_owned() });
    }
    if found.is_empty() {
        return Err(SourceError::NoSupply { directory: directory.to_owned() });
    }
    Ok(found)
}

fn all_offline(supplies: &[Supply]) -> bool {
    supplies.iter().all(|supply| !supply.online)
}

/// Hears of supplies by kernel events.
pub struct SupplyEvents {
    socket: Socket,
    supplies: Vec<Supply>,
}

impl std::fmt::Debug for SupplyEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SupplyEvents").field("supplies", &self.supplies).finish_non_exhaustive()
    }
}

impl SupplyEvents {
    /// Listens for the supplies under `directory` (`/sys/class/power_supply`), for [`Condition::PowerSupply`].
    ///
    /// # Errors
    /// Where there is no socket, or no supply to watch.
    pub fn open(directory: &Path, names: &[String], monitor: &mut Monitor) -> Result<Self, SourceError> {
        // The socket first: what changes after the reading is heard.
        let socket = Socket::open()?;
        let supplies = read(directory, names)?;
        let events = Self { socket, supplies };
        events.judge(BootInstant(0), monitor);
        Ok(events)
    }

    fn judge(&self, now: BootInstant, monitor: &mut Monitor) {
        monitor.on_reading(now, Condition::PowerSupply, all_offline(&self.supplies));
    }

    /// Takes in an event of the kernel.
    fn on_event(supplies: &mut [Supply], event: &[u8]) {
        if value(event, "SUBSYSTEM") != Some(b"power_supply") {
            return;
        }
        let Some(name) = value(event, "POWER_SUPPLY_NAME") else { return };
        let Some(supply) = supplies.iter_mut().find(|supply| supply.name.as_bytes() == name) else { return };
        let removed = value(event, "ACTION") == Some(b"remove");
        match value(event, "POWER_SUPPLY_ONLINE") {
            _ if removed => supply.online = false,
            Some(online) => supply.online = online != b"0",
            None => {}
        }
    }

    /// Looks for itself. A supply that cannot be read brings no mains.
    fn look(&mut self) {
        use std::os::unix::fs::FileExt;
        for supply in &mut self.supplies {
            let mut first = [0; 1];
            let read = supply.file.as_ref().map(|file| file.read_at(&mut first, 0));
            supply.online = matches!(read, Some(Ok(1))) && first != *b"0";
        }
    }
}

impl Fast for SupplyEvents {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    fn read(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), Errno> {
        for _ in 0..DATAGRAMS_PER_TURN {
            match self.socket.receive()? {
                Received::Event(length) => {
                    monitor.on_heard(now);
                    Self::on_event(&mut self.supplies, self.socket.bytes(length));
                }
                Received::Foreign => monitor.on_refused(),
                Received::Overrun => self.look(),
                Received::Nothing => break,
            }
            self.judge(now, monitor);
        }
        Ok(())
    }
}

/// Reads the supplies now and then.
#[derive(Debug)]
pub struct SupplyFiles {
    directory: PathBuf,
    names: Vec<String>,
    interval: Duration,
}

impl SupplyFiles {
    /// Reads those under `directory` each `interval`.
    pub fn new(directory: &Path, names: &[String], interval: Duration) -> Self {
        Self { directory: directory.to_owned(), names: names.to_vec(), interval }
    }
}

impl Slow for SupplyFiles {
    fn interval(&self) -> Duration {
        self.interval
    }

    fn poll(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), SourceError> {
        let supplies = read(&self.directory, &self.names)?;
        monitor.on_reading(now, Condition::PowerSupply, all_offline(&supplies));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::condition::Policy;
    use crate::uevent::tests::event;

    use super::*;

    /// A recorded tree: a laptop's adapter and battery, or a server's two supplies.
    fn tree(supplies: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, kind, online) in supplies {
            let supply = dir.path().join(name);
            fs::create_dir(&supply).unwrap();
            fs::write(supply.join("type"), format!("{kind}\n")).unwrap();
            if !online.is_empty() {
                fs::write(supply.join("online"), format!("{online}\n")).unwrap();
            }
        }
        dir
    }

    fn monitor() -> Monitor {
        Monitor::new("mains", "power-supply", true, &[(Condition::PowerSupply, Policy::WIPE)])
    }

    fn polled(dir: &Path, names: &[String]) -> Result<bool, SourceError> {
        let mut monitor = monitor();
        SupplyFiles::new(dir, names, Duration::ZERO).poll(BootInstant(1), &mut monitor)?;
        Ok(monitor.next_fired(BootInstant(1)).is_some())
    }

    #[test]
    fn power_is_gone_when_every_supply_is_offline() {
        let battery = ("BAT0", "Battery", "");
        for (first, second, gone) in
            [("1", "1", false), ("0", "1", false), ("1", "0", false), ("0", "0", true), ("2", "0", false)]
        {
            let dir = tree(&[("AC0", "Mains", first), ("PSU1", "Mains", second), battery]);
            assert_eq!(polled(dir.path(), &[]).unwrap(), gone, "{first} {second}");
        }
        let dir = tree(&[("AC0", "Mains", "0"), ("PSU1", "Mains", "1")]);
        assert!(polled(dir.path(), &["AC0".to_owned()]).unwrap(), "the named one counts alone");
    }

    #[test]
    fn nothing_to_watch_is_an_error() {
        let dir = tree(&[("BAT0", "Battery", "")]);
        assert!(matches!(polled(dir.path(), &[]), Err(SourceError::NoSupply { .. })));
        let missing = polled(dir.path(), &["AC0".to_owned()]);
        assert!(matches!(missing, Err(SourceError::NoSuchSupply { .. })), "{missing:?}");
        assert!(polled(&dir.path().join("none"), &[]).is_err());
        let dir = tree(&[("AC0", "Mains", "")]);
        assert!(polled(dir.path(), &[]).is_err(), "a supply that does not say is not online");
    }

    #[test]
    fn an_event_of_a_watched_supply_counts_and_no_other() {
        let mut supplies = ["AC0", "AC1"].map(|name| Supply { name: name.into(), file: None, online: true });
        let said = |name, online| {
            event(&[
                ("ACTION", "change"),
                ("SUBSYSTEM", "power_supply"),
                ("POWER_SUPPLY_NAME", name),
                ("POWER_SUPPLY_ONLINE", online),
            ])
        };
        SupplyEvents::on_event(&mut supplies, &said("AC0", "0"));
        SupplyEvents::on_event(&mut supplies, &said("BAT0", "0"));
        assert!(!all_offline(&supplies) && !supplies[0].online);
        let other =
            event(&[("SUBSYSTEM", "usb"), ("POWER_SUPPLY_NAME", "AC1"), ("POWER_SUPPLY_ONLINE", "0")]);
        SupplyEvents::on_event(&mut supplies, &other);
        SupplyEvents::on_event(&mut supplies, &event(&[("SUBSYSTEM", "power_supply")]));
        assert!(!all_offline(&supplies));
        let removed =
            event(&[("ACTION", "remove"), ("SUBSYSTEM", "power_supply"), ("POWER_SUPPLY_NAME", "AC1")]);
        SupplyEvents::on_event(&mut supplies, &removed);
        assert!(all_offline(&supplies), "a supply that was pulled out brings nothing");
        SupplyEvents::on_event(&mut supplies, &said("AC0", "1"));
        assert!(!all_offline(&supplies));
    }

    #[test]
    fn a_machine_that_starts_without_mains_fires_at_once_and_an_overrun_is_looked_after() {
        let dir = tree(&[("AC0", "Mains", "0")]);
        let mut monitor = monitor();
        let mut events = SupplyEvents::open(dir.path(), &[], &mut monitor).unwrap();
        assert!(monitor.next_fired(BootInstant(0)).is_some());
        fs::write(dir.path().join("AC0/online"), "1\n").unwrap();
        events.look();
        events.judge(BootInstant(1), &mut monitor);
        assert_eq!(monitor.state().standing(), None);
        fs::write(dir.path().join("AC0/online"), "").unwrap();
        events.look();
        events.judge(BootInstant(2), &mut monitor);
        assert!(monitor.next_fired(BootInstant(2)).is_some());
    }
}
