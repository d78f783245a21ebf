//! A node's own configuration: its directory, keys, pools and sources. Taken once, by whoever may open them.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

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

/// A source of triggers, and what it reads.
#[derive(Clone, Debug)]
pub struct SourceCheck {
    /// Its name.
    pub name: String,
    /// The file, device or directory that it reads, where it reads one.
    pub path: Option<PathBuf>,
}

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
        let wrong: Vec<String> = self.sources.iter().filter_map(wrong_source).collect();
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

fn wrong_source(source: &SourceCheck) -> Option<String> {
    let path = source.path.as_ref()?;
    let error = match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::read_dir(path).err(),
        // Sockets cannot be opened, only dialled: being there is what can be told without disturbing anyone.
        Ok(metadata) if metadata.file_type().is_socket() => None,
        Ok(_) => fs::File::open(path).err(),
        Err(error) => Some(error),
    }?;
    Some(format!("{} ({}): {error}", source.name, path.display()))
}
