//! A software TPM (swtpm) as a node's own. Its state lies in a folder and outlives it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::client::client;
use crate::process::{Process, wait_for};
use crate::site::PATIENCE;

/// A running one, just started: its registers are zero. Ends with the value.
#[derive(Debug)]
pub struct SoftwareTpm {
    _process: Process,
    socket: PathBuf,
    _folder: TempDir,
}

impl SoftwareTpm {
    /// Starts one whose state is in `state`, an existing folder: seeds, and so keys, are those of that folder.
    ///
    /// # Panics
    /// Where swtpm is missing or does not come up.
    pub fn start(state: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let socket = folder.path().join("tpm");
        let mut command = client("swtpm");
        command.args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"]);
        command.arg("--tpmstate").arg(format!("dir={}", state.display()));
        command.arg("--server").arg(format!("type=unixio,path={}", socket.display()));
        let process = Process::start("swtpm", command);
        wait_for("the TPM's socket", PATIENCE, || {
            // The file is there a moment before anybody listens.
            UnixStream::connect(&socket).map(drop).map_err(|error| format!("{error}\n{}", process.tail()))
        });
        Self { _process: process, socket, _folder: folder }
    }

    /// Where it is asked. It answers one user at a time.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}
