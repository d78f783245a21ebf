//! Binding every port before anything is served, so that a port in use is found at once and named.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use config::NodeConfig;
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
    nbd: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbd_unix: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    s3: Option<SocketAddr>,
    pid: u32,
}

impl Listeners {
    /// Binds what the configuration names.
    pub(crate) fn bind(config: &NodeConfig) -> Result<Self, BindError> {
        let listen = &config.listen;
        let nbd_unix = match &listen.nbd_unix {
            Some(path) => Some((bind_unix(path)?, path.clone())),
            None => None,
        };
        Ok(Self {
            key: bind("key", listen.key)?,
            admin: bind("admin", listen.admin)?,
            metrics: bind("metrics", listen.metrics)?,
            nbd: listen.nbd.map(|address| bind("nbd", address)).transpose()?,
            nbd_unix,
            s3: listen.s3.map(|address| bind("s3", address)).transpose()?,
        })
    }

    /// What was bound.
    pub(crate) fn ready(&self) -> std::io::Result<Ready> {
        Ok(Ready {
            key: self.key.local_addr()?,
            admin: self.admin.local_addr()?,
            metrics: self.metrics.local_addr()?,
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
