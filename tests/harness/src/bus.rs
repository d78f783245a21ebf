//! A private message bus: a real dbus-daemon that lets everybody do everything.

use std::path::{Path, PathBuf};

use crate::client::client;
use crate::process::{Process, listens, wait_for};
use crate::site::PATIENCE;

/// The bus; it ends with the value.
#[derive(Debug)]
pub struct Bus {
    _daemon: Process,
    folder: PathBuf,
    socket: PathBuf,
}

impl Bus {
    /// Starts it in a folder of its own below `dir`.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start(dir: &Path) -> Self {
        let folder = dir.join("bus");
        std::fs::create_dir_all(&folder).expect("a directory");
        let socket = folder.join("socket");
        let config = folder.join("bus.conf");
        let text = format!(
            "<busconfig><type>custom</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow own=\"*\"/></policy></busconfig>\n",
            socket.display()
        );
        std::fs::write(&config, text).expect("a configuration");
        let mut command = client("dbus-daemon");
        command.args(["--nofork", "--nopidfile", "--config-file"]).arg(&config);
        let daemon = Process::start("dbus-daemon", command);
        wait_for("a bus", PATIENCE, || listens(&socket).then_some(()).ok_or_else(|| daemon.tail()));
        Self { _daemon: daemon, folder, socket }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}
