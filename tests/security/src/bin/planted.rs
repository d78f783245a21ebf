//! Holds whatever it is handed in ordinary memory, for scanners and attackers to find: their positive control.
//!
//! Reads one line of hex from standard input, decodes it into the heap, says `held ADDRESS DESCRIPTOR` (the bytes'
//! address in hex, and an open memory file that holds them too) and waits for the end of its input.
//!
//! `planted USER` becomes that user first. It protects itself from nothing: it may be traced by its user's programs, and
//! may leave a core file.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsRawFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

fn main() -> io::Result<()> {
    if let Some(user) = std::env::args().nth(1) {
        become_user(user.parse().map_err(io::Error::other)?)?;
    }
    let (_, most) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, most, most)?;
    let mut input = io::stdin().lock();
    let mut line = String::new();
    input.read_line(&mut line)?;
    let held = hex::decode(line.trim()).map_err(io::Error::other)?;
    // An odd address: a secret inside some other structure is aligned to nothing.
    let mut padded = vec![0xA5_u8; 1];
    padded.extend_from_slice(&held);
    let mut file = File::from(memfd_create(c"planted", MFdFlags::empty())?);
    file.write_all(&held)?;
    drop(held);
    writeln!(io::stdout(), "held {:x} {}", padded[1..].as_ptr().addr(), file.as_raw_fd())?;
    io::stdout().flush()?;
    io::copy(&mut input.by_ref().take(u64::MAX), &mut io::sink())?;
    black_box((padded, file));
    Ok(())
}

fn become_user(user: u32) -> io::Result<()> {
    setgroups(&[])?;
    setgid(Gid::from_raw(user))?;
    setuid(Uid::from_raw(user))?;
    // Whoever changes its user is untraceable and dumps no core until it says otherwise.
    prctl::set_dumpable(true)?;
    Ok(())
}
