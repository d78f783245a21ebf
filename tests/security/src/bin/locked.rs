//! Holds a key where a node holds its keys, for scanners to look into: the positive control of dumps.
//!
//! `locked ordinary` takes locked memory that is excluded from cores, `locked secret` the kernel's secret memory. It reads
//! one line of hex from standard input, keeps the 32 bytes there and nowhere else, says `held KIND`, and waits for the end
//! of its input; then it zeroes the arena and says `wiped`, waits for another line, and ends.

use std::io::{self, BufRead, Write};

use locked_memory::{Arena, Layout, Policy, Span};

const LAYOUT: (Layout, Span<4>) = Layout::new().take();

fn main() -> io::Result<()> {
    let policy = match std::env::args().nth(1).as_deref() {
        Some("ordinary") => Policy::MlockForInspection,
        Some("secret") => Policy::RequireMemfdSecret,
        other => return Err(io::Error::other(format!("ordinary or secret, not {other:?}"))),
    };
    let arena = Arena::new(policy).map_err(io::Error::other)?;
    let mut lines = io::stdin().lock().lines();
    let mut next = || lines.next().unwrap_or_else(|| Ok(String::new()));
    let mut key = [0; 32];
    hex::decode_to_slice(next()?.trim(), &mut key).map_err(io::Error::other)?;
    arena.secret(LAYOUT.1).write_from(&mut key);
    say(&format!("held {}", arena.kind().name()))?;
    next()?;
    arena.zero();
    say("wiped")?;
    next()?;
    Ok(())
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}
