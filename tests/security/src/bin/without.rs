//! `without CALL PROGRAM ARGUMENTS...`: runs a program on a kernel that lacks a system call, as far as the program can tell.
//!
//! A filter answers ENOSYS, as an older kernel would; then this process becomes the program, which inherits it.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [call, program, rest @ ..] = arguments.as_slice() else { bail!("without CALL PROGRAM ARGUMENTS...") };
    let call = match call.as_str() {
        "memfd_secret" => libc::SYS_memfd_secret,
        other => bail!("no such call: {other}"),
    };
    let missing = SeccompAction::Errno(u32::try_from(libc::ENOSYS)?);
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let calls = BTreeMap::from([(call, Vec::new())]);
    let filter: BpfProgram = SeccompFilter::new(calls, SeccompAction::Allow, missing, arch)?.try_into()?;
    apply_filter(&filter)?;
    Err(Command::new(program).args(rest).exec()).with_context(|| format!("becoming {program}"))
}
