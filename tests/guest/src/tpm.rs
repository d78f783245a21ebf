//! A TPM 2.0 of a machine's own: swtpm, whose state lies in a folder and outlives the machine.

use std::path::{Path, PathBuf};

use harness::client::client;
use harness::process::{Process, listens, wait_for};
use harness::site::PATIENCE;
use tempfile::TempDir;

use crate::appliance::ApplianceBuilder;

/// A running one. It ends with its machine, and can be started again on the same state.
#[derive(Debug)]
pub struct Tpm {
    _process: Process,
    socket: PathBuf,
    _folder: TempDir,
}

impl Tpm {
    /// Starts one whose state is in `state`, a folder.
    ///
    /// # Panics
    /// Where swtpm is missing or does not come up.
    pub fn start(state: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let socket = folder.path().join("control");
        let mut command = client("swtpm");
        command
            .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
            .arg(format!("dir={}", state.display()));
        command.arg("--ctrl").arg(format!("type=unixio,path={}", socket.display()));
        let process = Process::start("swtpm", command);
        wait_for("a TPM", PATIENCE, || listens(&socket).then_some(()).ok_or_else(|| process.tail()));
        Self { _process: process, socket, _folder: folder }
    }

    /// Puts it into a machine.
    #[must_use]
    pub fn into_machine(&self, machine: ApplianceBuilder) -> ApplianceBuilder {
        machine
            .argument("-chardev")
            .argument(&format!("socket,id=tpm,path={}", self.socket.display()))
            .argument("-tpmdev")
            .argument("emulator,id=tpm,chardev=tpm")
            .argument("-device")
            .argument("tpm-tis,tpmdev=tpm")
    }
}
