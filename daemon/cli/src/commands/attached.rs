//! Becoming a program that ends when its starter does.
//!
//! The parent-death signal (prctl(2), PR_SET_PDEATHSIG) survives execve, so it is set here and the program takes this
//! process over, under the same process id.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

use crate::failure::{Done, Failure};

pub(crate) fn run(parent: i32, command: &[OsString]) -> Done {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Failure::usage("no program is named", "give a program and its arguments"));
    };
    prctl::set_pdeathsig(Signal::SIGTERM)
        .map_err(|error| Failure::local(format!("the parent-death signal cannot be set: {error}"), ""))?;
    // The parent may have died before the signal was set; then nobody would send it.
    if getppid().as_raw() != parent {
        return Err(Failure::local("the program that started this one has ended", ""));
    }
    let error = Command::new(program).args(arguments).exec();
    Err(Failure::local(
        format!("cannot start {}: {error}", program.to_string_lossy()),
        "build or install it beside `nightlatch`",
    ))
}
