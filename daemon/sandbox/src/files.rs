//! Landlock: which files may be opened, which ports bound and dialled from here on.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd,
    PathFdError, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use crate::Enforcement;

/// The newest rights that this program asks for; an older kernel enforces those it knows.
const RIGHTS: ABI = ABI::V6;

/// Why files could not be restricted.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A path that is to stay reachable is not there.
    #[error("{} cannot be allowed: {source}", .path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why it could not be opened.
        source: PathFdError,
    },
    /// The kernel refused the rules.
    #[error("the kernel refused the file rules: {0}")]
    Rules(#[from] RulesetError),
}

/// What may be done beneath a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read files and list directories.
    Read,
    /// Read, make, replace and remove files and directories; execute nothing.
    Change,
}

impl Access {
    fn rights(self, path: &Path) -> BitFlags<AccessFs> {
        let all = match self {
            Self::Read => AccessFs::from_read(RIGHTS) & !AccessFs::Execute,
            Self::Change => {
                AccessFs::from_all(RIGHTS) & !AccessFs::Execute & !AccessFs::MakeChar & !AccessFs::MakeBlock
            }
        };
        // The kernel takes no directory rights for a file.
        if path.is_dir() { all } else { all & AccessFs::from_file(RIGHTS) }
    }
}

/// Everything that stays reachable.
#[derive(Clone, Debug, Default)]
pub struct FileRules {
    paths: Vec<(PathBuf, Access)>,
    dialled: Vec<u16>,
    dials_anywhere: bool,
}

impl FileRules {
    /// Allows `access` to `path` and what is beneath it.
    #[must_use]
    pub fn allow(mut self, path: impl Into<PathBuf>, access: Access) -> Self {
        self.paths.push((path.into(), access));
        self
    }

    /// Allows TCP connections to every port.
    #[must_use]
    pub fn dial_anywhere(mut self) -> Self {
        self.dials_anywhere = true;
        self
    }

    /// Allows TCP connections to `port` of any host.
    #[must_use]
    pub fn dial(mut self, port: u16) -> Self {
        self.dialled.push(port);
        self
    }
}

/// Restricts the calling thread, and every thread it starts, to `rules`. Ports are bound already: no other can be.
pub fn restrict_files(rules: &FileRules) -> Result<Enforcement, FileError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(RIGHTS))?
        .handle_access(if rules.dials_anywhere {
            AccessNet::BindTcp.into()
        } else {
            AccessNet::BindTcp | AccessNet::ConnectTcp
        })?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    for (path, access) in &rules.paths {
        let opened = PathFd::new(path).map_err(|source| FileError::Path { path: path.clone(), source })?;
        ruleset = ruleset.add_rule(PathBeneath::new(opened, access.rights(path)))?;
    }
    for port in &rules.dialled {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Enforcement::Full,
        RulesetStatus::PartiallyEnforced => Enforcement::Partial,
        RulesetStatus::NotEnforced => Enforcement::None,
    })
}
