//! Holds whatever it is handed in ordinary memory, for the scanner to find: its positive control.
//!
//! Reads one line of hex from standard input, decodes it into the heap, says `held` and waits for the end of
//! its input.

use std::hint::black_box;
use std::io::{self, BufRead, Read, Write};

fn main() -> io::Result<()> {
    let mut input = io::stdin().lock();
    let mut line = String::new();
    input.read_line(&mut line)?;
    let held = hex::decode(line.trim()).map_err(io::Error::other)?;
    // An odd address: a secret inside some other structure is aligned to nothing.
    let mut padded = vec![0xA5_u8; 1];
    padded.extend_from_slice(&held);
    drop(held);
    writeln!(io::stdout(), "held")?;
    io::stdout().flush()?;
    io::copy(&mut input.by_ref().take(u64::MAX), &mut io::sink())?;
    black_box(padded);
    Ok(())
}
