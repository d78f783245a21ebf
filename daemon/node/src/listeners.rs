//! Every port, bound before anything is served, so that a port in use is found at once and named.
//!
//! The configuration says what is served where. A service manager may have bound some of it already, and pass the sockets on
//! (sd_listen_fds(3)): each under the name that the node's status has for it, and with the address in the configuration. So a
//! port below 1024 needs no privilege, and clients that come while the node starts again wait instead of being refused.

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use config::NodeConfig;
use listenfd::ListenFd;
use serde::Serialize;

/// Members of the socket's group may connect, and nobody else: the unix socket carries no certificate.
const SOCKET_MODE: u32 = 0o660;

/// Why a port could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for listen.{key}: {source}; {}", next_step(source))]
pub(crate) struct BindError {
    key: &'static str,
    address: String,
    source: std::io::Error,
}

/// Why a socket that was passed on is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassedError {
    #[error(
        "the service manager passes a socket named `{name}`, and the node has no such listener: name it nbd, nbd-unix, s3, key, admin or metrics (FileDescriptorName=), and set listen.{key} in the configuration"
    )]
    Uncalled { name: String, key: String },
    #[error(
        "the socket named `{name}` that the service manager passes is no listening stream socket of its kind: {source}; correct the socket unit"
    )]
    WrongKind { name: &'static str, source: std::io::Error },
    #[error(
        "the service manager passes a socket on {found} for `{name}`, and the configuration says {expected}: make them agree"
    )]
    WrongAddress { name: &'static str, found: String, expected: String },
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Passed(#[from] PassedError),
}

/// Sockets that the service manager has bound, each under a name.
pub struct Passed {
    sockets: ListenFd,
    /// `None` once taken.
    names: Vec<Option<String>>,
}

impl fmt::Debug for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passed").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Passed {
    /// What the environment tells of. To be called before there is a second thread: it takes the variables out.
    pub fn from_environment() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let sockets = ListenFd::from_env();
        let names = names.split(':').chain(std::iter::repeat(""));
        let names = names.take(sockets.len()).map(|name| Some(name.to_owned())).collect();
        Self { sockets, names }
    }

    /// The number of the socket with this name.
    fn find(&mut self, name: &str) -> Option<usize> {
        let nth = self.names.iter().position(|passed| passed.as_deref() == Some(name))?;
        self.names[nth] = None;
        Some(nth)
    }

    fn tcp(&mut self, name: &'static str, expected: SocketAddr) -> Result<Option<TcpListener>, PassedError> {
        let Some(nth) = self.find(name) else { return Ok(None) };
        let wrong_kind = |source| PassedError::WrongKind { name, source };
        let Some(listener) = self.sockets.take_tcp_listener(nth).map_err(wrong_kind)? else {
            return Ok(None);
        };
        listener.set_nonblocking(true).map_err(wrong_kind)?;
        let found = listener.local_addr().map_err(wrong_kind)?;
        if found == expected {
            return Ok(Some(listener));
        }
        let (found, expected) = (found.to_string(), expected.to_string());
        Err(PassedError::WrongAddress { name, found, expected })
    }

    fn unix(&mut self, name: &'static str, expected: &Path) -> Result<Option<UnixListener>, PassedError> {
        let Some(nth) = self.find(name) else { return Ok(None) };
        let wrong_kind = |source| PassedError::WrongKind { name, source };
        let Some(listener) = self.sockets.take_unix_listener(nth).map_err(wrong_kind)? else {
            return Ok(None);
        };
        listener.set_nonblocking(true).map_err(wrong_kind)?;
        let found = listener.local_addr().map_err(wrong_kind)?;
        if found.as_pathname() == Some(expected) {
            return Ok(Some(listener));
        }
        let found =
            found.as_pathname().map_or_else(|| "no path".to_owned(), |path| path.display().to_string());
        Err(PassedError::WrongAddress { name, found, expected: expected.display().to_string() })
    }

    /// Nothing may be left: what was passed for a listener that is not there would be a port that nobody answers.
    fn refuse_rest(self) -> Result<(), PassedError> {
        match self.names.into_iter().flatten().next() {
            Some(name) => Err(PassedError::Uncalled { key: name.replace('-', "_"), name }),
            None => Ok(()),
        }
    }
}

fn next_step(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another program has it (`ss -ltnp` shows which): stop that one, or choose another port in the configuration"
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address: correct it in the configuration"
        }
        std::io::ErrorKind::PermissionDenied => {
            "the node may not bind it: choose a port above 1023, or a directory that it may write"
        }
        _ => "correct the address in the configuration",
    }
}

/// Every bound port.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) key: TcpListener,
    pub(crate) admin: TcpListener,
    pub(crate) metrics: TcpListener,
    pub(crate) peers: Option<TcpListener>,
    pub(crate) nbd: Option<TcpListener>,
    pub(crate) nbd_unix: Option<(UnixListener, PathBuf)>,
    pub(crate) s3: Option<TcpListener>,
}

/// The addresses as programs read them from `ready.json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ready {
    key: SocketAddr,
    admin: SocketAddr,
    metrics: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    peers: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbd: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbd_unix: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    s3: Option<SocketAddr>,
    pid: u32,
}

impl Listeners {
    /// Takes from `passed` and binds what the configuration names.
    pub(crate) fn open(config: &NodeConfig, mut passed: Passed) -> Result<Self, ListenError> {
        let listen = &config.listen;
        let mut tcp = |name: &'static str, address: SocketAddr| -> Result<TcpListener, ListenError> {
            match passed.tcp(name, address)? {
                Some(listener) => Ok(listener),
                None => Ok(bind(name, address)?),
            }
        };
        let (key, admin) = (tcp("key", listen.key)?, tcp("admin", listen.admin)?);
        let metrics = tcp("metrics", listen.metrics)?;
        let peers = listen.peers.map(|address| tcp("peers", address)).transpose()?;
        let nbd = listen.nbd.map(|address| tcp("nbd", address)).transpose()?;
        let s3 = listen.s3.map(|address| tcp("s3", address)).transpose()?;
        let nbd_unix = match &listen.nbd_unix {
            Some(path) => {
                let listener = match passed.unix("nbd-unix", path)? {
                    Some(listener) => listener,
                    None => bind_unix(path)?,
                };
                Some((listener, path.clone()))
            }
            None => None,
        };
        passed.refuse_rest()?;
        Ok(Self { key, admin, metrics, peers, nbd, nbd_unix, s3 })
    }

    /// What was bound.
    pub(crate) fn ready(&self) -> std::io::Result<Ready> {
        Ok(Ready {
            key: self.key.local_addr()?,
            admin: self.admin.local_addr()?,
            metrics: self.metrics.local_addr()?,
            peers: self.peers.as_ref().map(TcpListener::local_addr).transpose()?,
            nbd: self.nbd.as_ref().map(TcpListener::local_addr).transpose()?,
            nbd_unix: self.nbd_unix.as_ref().map(|(_, path)| path.clone()),
            s3: self.s3.as_ref().map(TcpListener::local_addr).transpose()?,
            pid: std::process::id(),
        })
    }
}

impl Ready {
    /// Replaces the file in one step: a reader sees the old one or all of the new one.
    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        let new = path.with_extension("json.new");
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&new, path)
    }

    /// The addresses as status shows them.
    pub(crate) fn listening(&self, config: &NodeConfig) -> Vec<admin::api::Listening> {
        let entry =
            |head: &str, address: String, tls| admin::api::Listening { head: head.into(), address, tls };
        let mut all = vec![
            entry("key", self.key.to_string(), true),
            entry("admin", self.admin.to_string(), true),
            entry("metrics", self.metrics.to_string(), false),
        ];
        all.extend(self.peers.map(|address| entry("peers", address.to_string(), true)));
        all.extend(self.nbd.map(|address| entry("nbd", address.to_string(), !config.listen.nbd_plain)));
        all.extend(self.nbd_unix.as_ref().map(|path| entry("nbd-unix", path.display().to_string(), false)));
        all.extend(self.s3.map(|address| entry("s3", address.to_string(), !config.listen.s3_plain)));
        all
    }
}

/// std sets SO_REUSEADDR: a restart does not wait for the former connections to time out.
fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|source| BindError { key, address: address.to_string(), source })
}

/// Binds a unix socket. One that a killed node left behind is replaced; one that answers is another program's.
fn bind_unix(path: &Path) -> Result<UnixListener, BindError> {
    let error = |source| BindError { key: "nbd_unix", address: path.display().to_string(), source };
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(error(std::io::ErrorKind::AddrInUse.into()));
        }
        std::fs::remove_file(path).map_err(error)?;
    }
    let listener = UnixListener::bind(path).map_err(error)?;
    listener.set_nonblocking(true).map_err(error)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE)).map_err(error)?;
    Ok(listener)
}
