//! What is set once for the process, before there is a second thread.

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// What the kernel refused to rule out.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{what} could not be ruled out: {source}")]
pub struct ProcessError {
    what: &'static str,
    source: Errno,
}

/// Rules out core files, other programs of the same user reading this one, and new privileges.
pub fn before_threads() -> Result<(), ProcessError> {
    let ruled_out = |what| move |source| ProcessError { what, source };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(ruled_out("core files"))?;
    prctl::set_dumpable(false).map_err(ruled_out("being traced"))?;
    prctl::set_no_new_privs().map_err(ruled_out("gaining privileges"))
}
