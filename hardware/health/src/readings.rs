//! Everything that is read at once.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::{Disk, DiskState, disks};
use crate::link::{Interface, interfaces};
use crate::memory::{Controller, controllers};
use crate::temperature::{Temperature, temperatures};
use crate::tree::Tree;

/// Where everything is read: the machine's own, or recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// `/sys`.
    pub sys: Tree,
    /// `/proc`.
    pub proc: Tree,
    /// The directory of captures.
    pub captures: Tree,
}

impl Roots {
    /// The kernel's trees below `root`, captures in a directory of their own.
    pub fn new(root: &Path, captures: &Path) -> Self {
        Self {
            sys: Tree::new(&root.join("sys")),
            proc: Tree::new(&root.join("proc")),
            captures: Tree::new(captures),
        }
    }
}

/// A disk, and what is known of its health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadDisk {
    /// The disk.
    pub disk: Disk,
    /// Its health.
    pub smart: DiskState,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readings {
    /// The disks.
    pub disks: Vec<ReadDisk>,
    /// The sensors of temperature.
    pub temperatures: Vec<Temperature>,
    /// The memory controllers.
    pub memory: Vec<Controller>,
    /// The network interfaces.
    pub interfaces: Vec<Interface>,
}

impl Readings {
    /// Reads everything, once.
    pub fn take(roots: &Roots) -> Self {
        let read = |disk: Disk| ReadDisk { smart: disk.state(&roots.captures), disk };
        Self {
            disks: disks(&roots.sys).into_iter().map(read).collect(),
            temperatures: temperatures(&roots.sys),
            memory: controllers(&roots.sys),
            interfaces: interfaces(&roots.sys),
        }
    }
}
