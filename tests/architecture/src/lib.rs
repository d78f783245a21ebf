//! The architecture as rules that a machine can check: who may depend on whom, and what may stand in which source.
//!
//! ARCHITECTURE.md draws three sides and one door. The tests of this crate read `cargo metadata` and every source
//! file of the workspace and fail on an edge or a line that breaks the drawing. Each rule has a planted breach
//! that it must find, so that a rule which stopped looking fails too.
//!
//! Invariants:
//! - A rule that names a crate or a type which no longer exists is itself a breach.
//! - Sources are read as tokens: comments and string literals never match, macro bodies do.
//!
//! This crate checks shape. What the code does is the other suites' business.

pub mod graph;
pub mod source;

use std::path::{Path, PathBuf};

/// The workspace's top folder.
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("this crate lies two folders below the workspace root")
        .to_path_buf()
}
