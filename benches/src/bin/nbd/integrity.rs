//! What was measured verifies: one bit that flips on the device surfaces as an error of the read that meets it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Result, bail, ensure};

use crate::client::read_all;
use crate::pki::Pki;
use crate::rivals::{SIZE_BYTES, Server};

/// Places that are tried, and where the first lies: behind a pool's log, where a client's data lies, or records of it.
const TRIES: u64 = 16;
const FROM: u64 = 72 << 20;

/// Flips a bit of our server's pool, reads all of the volume, and puts the bit back: how many of the places were refused.
///
/// # Errors
/// Where a read fails before any bit is flipped or after all are put back, where it fails otherwise than by EIO, or where no
/// flipped bit was seen.
pub(crate) fn flip(server: &Server, pki: &Pki) -> Result<f64> {
    read_all(server, pki)?;
    let pool = File::options().read(true).write(true).open(server.pool())?;
    let mut refused = 0.0;
    for place in 0..TRIES {
        let at = FROM + SIZE_BYTES / TRIES * place + 1000;
        let mut byte = [0];
        pool.read_exact_at(&mut byte, at)?;
        pool.write_all_at(&[byte[0] ^ 1], at)?;
        let answer = read_all(server, pki);
        pool.write_all_at(&byte, at)?;
        match answer {
            // Nothing lies there.
            Ok(()) => {}
            Err(error) if error.to_string().contains("Input/output error") => refused += 1.0,
            Err(error) => bail!("a flipped bit at {at} is no EIO: {error}"),
        }
    }
    ensure!(refused > 0.0, "no read met any of {TRIES} flipped bits");
    read_all(server, pki)?;
    Ok(refused)
}
