//! A core of a live process, taken from outside by a debugger: with what the process excluded from cores, or without.

use std::path::{Path, PathBuf};

use harness::client::{client, run};

/// Which mappings a core holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Those that a core has by itself.
    Ordinary,
    /// All of them, excluded ones too: the debugger ignores the process's filter and MADV_DONTDUMP.
    Everything,
}

/// Takes a core of `pid` into `folder`. The process is stopped meanwhile, and goes on.
///
/// # Panics
/// Where there is no debugger, or it may not attach (run the tests as root).
pub fn take(pid: u32, extent: Extent, folder: &Path) -> PathBuf {
    let file = folder.join(format!("core-{extent:?}"));
    let (filter, excluded) = match extent {
        Extent::Ordinary => ("on", "off"),
        Extent::Everything => ("off", "on"),
    };
    let mut gdb = client("gdb");
    // Symbols of a program with debugging information take longer to read than its memory.
    gdb.args(["--nx", "--batch", "--readnever"]);
    for command in [
        format!("set use-coredump-filter {filter}"),
        format!("set dump-excluded-mappings {excluded}"),
        format!("attach {pid}"),
        format!("gcore {}", file.display()),
        "detach".to_owned(),
    ] {
        gdb.args(["-ex", &command]);
    }
    let answer = run(&mut gdb);
    assert!(file.is_file(), "no core was made\n{}", answer.describe());
    file
}
