//! Another program on the node's machine that wants its memory: one attempt, and what came of it.
//!
//! `attacker USER WAY PID ADDRESS` becomes `USER`, tries `WAY` on process `PID` (an address in hex, or a descriptor's
//! number for `pidfd-getfd`) and says `got HEX` or `refused ERROR`. `hold` attaches as a debugger would, says so, and
//! stays until its input ends.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid, setgid, setgroups, setuid};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// A window of the scanner's is eight bytes; so is a word that ptrace reads.
const BYTES: usize = 8;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [user, way, pid, place] = arguments.as_slice() else { bail!("attacker USER WAY PID ADDRESS") };
    become_user(user.parse()?)?;
    let pid = Pid::from_raw(pid.parse()?);
    let address = u64::from_str_radix(place, 16).context("an address in hex");
    let outcome = match way.as_str() {
        "ptrace" => by_ptrace(pid, address?),
        "process-vm-readv" => by_process_vm_readv(pid, address?),
        "proc-mem" => by_proc_mem(pid, address?),
        "pidfd-getfd" => by_pidfd_getfd(pid, place.parse()?),
        "proc-maps" => {
            std::fs::read(format!("/proc/{pid}/maps")).map(first_bytes).map_err(|error| errno(&error))
        }
        "proc-environ" => {
            std::fs::read(format!("/proc/{pid}/environ")).map(first_bytes).map_err(|error| errno(&error))
        }
        "hold" => hold(pid),
        _ => bail!("no such way: {way}"),
    };
    match outcome {
        Ok(bytes) => println!("got {}", hex::encode(bytes)),
        Err(errno) => println!("refused {errno:?}"),
    }
    Ok(())
}

fn become_user(user: u32) -> Result<()> {
    if user != 0 {
        setgroups(&[]).context("only root can become another user")?;
        setgid(Gid::from_raw(user))?;
        setuid(Uid::from_raw(user))?;
    }
    Ok(())
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

fn first_bytes(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(BYTES);
    bytes
}

/// Attaches, reads one word, lets go.
fn by_ptrace(pid: Pid, address: u64) -> Result<Vec<u8>, Errno> {
    ptrace::attach(pid)?;
    waitpid(pid, None)?;
    let word = ptrace::read(pid, address as ptrace::AddressType);
    ptrace::detach(pid, None)?;
    word.map(|word| word.to_le_bytes().to_vec())
}

fn by_process_vm_readv(pid: Pid, address: u64) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; BYTES];
    let base = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
    let remote = [RemoteIoVec { base, len: BYTES }];
    process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &remote)?;
    Ok(bytes)
}

fn by_proc_mem(pid: Pid, address: u64) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; BYTES];
    let memory = File::open(format!("/proc/{pid}/mem")).map_err(|error| errno(&error))?;
    memory.read_exact_at(&mut bytes, address).map_err(|error| errno(&error))?;
    Ok(bytes)
}

/// Takes a copy of a descriptor and reads what it is of.
fn by_pidfd_getfd(pid: Pid, descriptor: i32) -> Result<Vec<u8>, Errno> {
    let from_rustix = |error: rustix::io::Errno| Errno::from_raw(error.raw_os_error());
    let process = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(Errno::ESRCH)?;
    let process = pidfd_open(process, PidfdFlags::empty()).map_err(from_rustix)?;
    let stolen: OwnedFd = pidfd_getfd(&process, descriptor, PidfdGetfdFlags::empty()).map_err(from_rustix)?;
    let mut bytes = vec![0; BYTES];
    File::from(stolen).read_exact_at(&mut bytes, 0).map_err(|error| errno(&error))?;
    Ok(bytes)
}

/// Attaches without stopping the process: a debugger that waits for its moment.
fn hold(pid: Pid) -> Result<Vec<u8>, Errno> {
    ptrace::seize(pid, ptrace::Options::empty())?;
    println!("attached");
    io::stdout().flush().map_err(|error| errno(&error))?;
    io::stdin().read_to_end(&mut Vec::new()).map_err(|error| errno(&error))?;
    // A running process cannot be let go of; the attacker's end does it.
    Ok(Vec::new())
}
