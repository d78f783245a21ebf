//! What is set once for the process, before there is a second thread.

use std::ffi::OsString;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// Variables whose only use is to put code of somebody's choice into a program (ld.so(8)). Not among them is
/// LD_LIBRARY_PATH, which every build tool sets for the programs that it starts.
const LOADER_VARIABLES: [&str; 2] = ["LD_PRELOAD", "LD_AUDIT"];

/// Why the process is not fit to hold a key.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum ProcessError {
    /// The kernel refused to rule something out.
    #[error("{what} could not be ruled out: {source}")]
    Refused {
        /// What.
        what: &'static str,
        /// Why.
        source: Errno,
    },
    /// Code that is not the program's own may have been loaded into it.
    #[error("{variable} puts foreign code into this program, which is to hold keys; unset it")]
    ForeignCode {
        /// The variable of the environment.
        variable: &'static str,
    },
}

/// Rules out core files, other programs of the same user reading this one, and new privileges; refuses a process into
/// which the loader was told to put foreign code, by the names in its `environment`.
///
/// Such code has run by now, and could have hidden itself: this catches what was left over or meant well. What it
/// cannot get past is a program without a loader (the image's) or a service manager that passes no such variable on.
pub fn before_threads(mut environment: impl Iterator<Item = OsString>) -> Result<(), ProcessError> {
    let foreign = environment.find_map(|name| LOADER_VARIABLES.into_iter().find(|known| name == **known));
    if let Some(variable) = foreign {
        return Err(ProcessError::ForeignCode { variable });
    }
    let ruled_out = |what| move |source| ProcessError::Refused { what, source };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(ruled_out("core files"))?;
    prctl::set_dumpable(false).map_err(ruled_out("being traced"))?;
    prctl::set_no_new_privs().map_err(ruled_out("gaining privileges"))
}
