//! Our own programs for an image.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Result;
use crate::store::run;

/// The programs of an image.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `nightlatchd`.
    pub node: PathBuf,
    /// `nightlatch-init`.
    pub init: PathBuf,
}

impl Programs {
    /// Those that were built into `folder`.
    pub fn in_folder(folder: &Path) -> Self {
        Self { node: folder.join("nightlatchd"), init: folder.join("nightlatch-init") }
    }
}

/// Builds them for release from the workspace at `workspace`, into a target folder of their own: no path of this machine stands
/// in them, and nothing of its settings.
///
/// # Errors
/// Where cargo fails.
pub fn build_programs(workspace: &Path, cargo_home: &Path, target: &Path) -> Result<Programs> {
    let mapped = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let mut flags = vec![mapped(workspace, "/nightlatch")];
    // Sources of crates lie in cargo's own folder, whose place is the user's.
    flags.push(mapped(cargo_home, "/cargo"));
    let mut command = Command::new("cargo");
    command.current_dir(workspace).args(["build", "--locked", "--release", "--quiet"]);
    command.args(["-p", "node", "-p", "appliance-init", "--bins", "--config", "profile.release.strip=true"]);
    command.arg("--target-dir").arg(target).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    run(&mut command, "cargo build")?;
    Ok(Programs::in_folder(&target.join("release")))
}
