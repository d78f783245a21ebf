//! A node's own configuration: its directory, keys, pools and sources. Taken once, by whoever may open them.

use std::fmt::Display;
use std::fs;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::{Finding, Probe};

/// What a node is installed with.
#[derive(Clone, Debug, Default)]
pub struct Installation {
    /// The state directory.
    pub state_dir: PathBuf,
    /// Files with private keys or passwords.
    pub key_files: Vec<PathBuf>,
    /// The pools' devices and files.
    pub pools: Vec<PathBuf>,
    /// The sources of triggers.
    pub sources: Vec<SourceCheck>,
}

/// A source of triggers, and how it is heard.
#[derive(Clone, Debug)]
pub struct SourceCheck {
    /// Its name.
    pub name: String,
    /// What has to be there for it.
    pub hearing: Hearing,
    /// Whether it tells that power is going.
    pub warns_of_power: bool,
}

/// What a source needs to be heard.
#[derive(Clone, Debug, Default)]
pub struct Hearing {
    /// The file, device or directory that it reads, where it reads one.
    pub path: Option<PathBuf>,
    /// The server that it asks, as `host:port`.
    pub server: Option<String>,
    /// Whether it listens to the kernel's events.
    pub kernel_events: bool,
}

/// How long all servers together may take to be reached: who waits for the report is a person, or a node that starts.
const SERVERS_LIMIT: Duration = Duration::from_secs(2);

impl Installation {
    pub(crate) fn findings(&self) -> Vec<Finding> {
        vec![self.state_dir(), self.key_files(), self.pools(), self.sources()]
    }

    fn state_dir(&self) -> Finding {
        let path = self.state_dir.display();
        match fs::metadata(&self.state_dir) {
            // The node makes it with the right mode.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Finding::good(Probe::StateDir, format!("{path} is made at the first start"))
            }
            Err(error) => Finding::bad(Probe::StateDir, format!("{path}: {error}")),
            Ok(metadata) if !metadata.is_dir() => {
                Finding::bad(Probe::StateDir, format!("{path} is no directory"))
            }
            Ok(metadata) if metadata.mode() & 0o077 != 0 => {
                Finding::bad(Probe::StateDir, format!("{path} has mode {:04o}", metadata.mode() & 0o7777))
            }
            Ok(_) => Finding::good(Probe::StateDir, path.to_string()),
        }
    }

    fn key_files(&self) -> Finding {
        let wrong: Vec<String> = self.key_files.iter().filter_map(|path| wrong_key_file(path)).collect();
        if wrong.is_empty() {
            Finding::good(Probe::KeyFiles, format!("{} files, nobody else's to read", self.key_files.len()))
        } else {
            Finding::bad(Probe::KeyFiles, wrong.join("; "))
        }
    }

    fn pools(&self) -> Finding {
        let wrong: Vec<String> = self.pools.iter().filter_map(|path| wrong_pool(path)).collect();
        if wrong.is_empty() {
            Finding::good(Probe::Pools, format!("{} can be opened", self.pools.len()))
        } else {
            Finding::bad(Probe::Pools, wrong.join("; "))
        }
    }

    fn sources(&self) -> Finding {
        if self.sources.is_empty() {
            return Finding::bad(Probe::Sources, "none; only signals are heard");
        }
        let until = Instant::now() + SERVERS_LIMIT;
        let wrong: Vec<String> =
            self.sources.iter().filter_map(|source| wrong_source(source, until)).collect();
        if wrong.is_empty() {
            let names: Vec<_> = self.sources.iter().map(|source| source.name.as_str()).collect();
            Finding::good(Probe::Sources, names.join(", "))
        } else {
            Finding::bad(Probe::Sources, wrong.join("; "))
        }
    }
}

fn wrong_key_file(path: &Path) -> Option<String> {
    match fs::metadata(path) {
        Err(error) => Some(format!("{}: {error}", path.display())),
        Ok(metadata) if metadata.mode() & 0o077 != 0 => {
            Some(format!("{} has mode {:04o}", path.display(), metadata.mode() & 0o7777))
        }
        Ok(_) => None,
    }
}

fn wrong_pool(path: &Path) -> Option<String> {
    match fs::OpenOptions::new().read(true).write(true).open(path).and_then(|file| file.metadata()) {
        Err(error) => Some(format!("{}: {error}", path.display())),
        Ok(metadata) if !metadata.is_file() && !metadata.file_type().is_block_device() => {
            Some(format!("{} is neither a file nor a block device", path.display()))
        }
        Ok(_) => None,
    }
}

fn wrong_source(source: &SourceCheck, until: Instant) -> Option<String> {
    let Hearing { path, server, kernel_events } = &source.hearing;
    let wrong = |what: &dyn Display, error| format!("{} ({what}): {error}", source.name);
    let path = path.as_ref().and_then(|path| Some(wrong(&path.display(), unreadable(path)?)));
    let server = || server.as_ref().and_then(|server| Some(wrong(server, dial(server, until).err()?)));
    let kernel =
        || kernel_events.then(kernel_events_socket).and_then(|error| Some(wrong(&"netlink", error?)));
    path.or_else(server).or_else(kernel)
}

fn unreadable(path: &Path) -> Option<io::Error> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::read_dir(path).err(),
        // Sockets cannot be opened, only dialled: being there is what can be told without disturbing anyone.
        Ok(metadata) if metadata.file_type().is_socket() => None,
        Ok(_) => fs::File::open(path).err(),
        Err(error) => Some(error),
    }
}

/// Whether somebody takes connections there. Says nothing to them.
fn dial(server: &str, until: Instant) -> io::Result<()> {
    let mut outcome = Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
    for address in server.to_socket_addrs()? {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        outcome = TcpStream::connect_timeout(&address, left).map(drop);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn kernel_events_socket() -> Option<io::Error> {
    let made = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkKObjectUEvent,
    );
    made.err().map(io::Error::from)
}
