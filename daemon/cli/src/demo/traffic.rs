//! Real clients' work: text through NBD, and its checksum when it is read again.

use std::time::Duration;

use indicatif::ProgressBar;
use nbd_server::client::{Client, Endpoint};
use sha2::{Digest, Sha256};

use crate::demo::site::{Site, VOLUME};
use crate::failure::{Done, Exit, Failure};

/// Stands in every line of the text: what is searched for on the disk.
pub(super) const NEEDLE: &str = "whoever can read this on the disk has found a bug";

/// One line of the text; with its number it is this long.
const LINE_BYTES: usize = 80;

/// Sent at once.
pub(super) const PIECE: usize = 1 << 20;

/// No answer for so long is no answer: a sealed node closes connections instead of answering.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes `from..from + len` of an endless text with numbered lines. `from` is a multiple of the line length.
pub(super) fn text(from: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + LINE_BYTES);
    let mut line = from / LINE_BYTES as u64;
    while bytes.len() < len {
        let start = format!("nightlatch {line:012}: {NEEDLE}");
        bytes.extend_from_slice(format!("{start:.<width$}\n", width = LINE_BYTES - 1).as_bytes());
        line += 1;
    }
    bytes.truncate(len);
    bytes
}

/// Piece `index` of the text. Its bytes depend on `run` too, so that two runs do not write the same.
pub(super) fn piece(run: u64, index: u64) -> Vec<u8> {
    // Pieces need not continue one another; each starts at a line of its own.
    let lines_a_piece = PIECE.div_ceil(LINE_BYTES) as u64;
    let line =
        run.wrapping_mul(1_000_003).wrapping_add(index.wrapping_mul(lines_a_piece)) % 1_000_000_000_000;
    text(line * LINE_BYTES as u64, PIECE)
}

fn endpoint(site: &Site) -> Endpoint {
    Endpoint::unix(&site.nbd_socket).with_timeout(TIMEOUT)
}

/// Writes `pieces` pieces to the volume, flushes, and gives their SHA-256.
pub(super) async fn write_volume(site: &Site, run: u64, pieces: u64, bar: ProgressBar) -> Done<[u8; 32]> {
    let endpoint = endpoint(site);
    blocking(move || {
        let mut client = Client::connect(&endpoint, VOLUME)?;
        let mut hash = Sha256::new();
        for index in 0..pieces {
            let piece = piece(run, index);
            client.write(index * PIECE as u64, &piece, false)?;
            hash.update(&piece);
            bar.inc(PIECE as u64);
        }
        client.flush()?;
        bar.finish();
        Ok(hash.finalize().into())
    })
    .await
}

/// Reads the pieces back and gives their SHA-256.
pub(super) async fn read_volume(site: &Site, pieces: u64, bar: ProgressBar) -> Done<[u8; 32]> {
    let endpoint = endpoint(site);
    blocking(move || {
        let mut client = Client::connect(&endpoint, VOLUME)?;
        let mut hash = Sha256::new();
        let mut piece = vec![0; PIECE];
        for index in 0..pieces {
            client.read(index * PIECE as u64, &mut piece)?;
            hash.update(&piece);
            bar.inc(PIECE as u64);
        }
        bar.finish();
        Ok(hash.finalize().into())
    })
    .await
}

/// Tries to open the volume; gives the refusal. Succeeding is the failure here.
pub(super) async fn refused_volume(site: &Site) -> Done<String> {
    let endpoint = endpoint(site);
    let opened = tokio::task::spawn_blocking(move || Client::connect(&endpoint, VOLUME).map(drop)).await;
    match opened {
        Ok(Err(error)) => Ok(error.to_string()),
        Ok(Ok(())) => {
            Err(Failure::local("a sealed node opened the volume", "report this: it must never happen"))
        }
        Err(error) => Err(Failure::local(format!("the NBD client failed: {error}"), "")),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, nbd_server::client::ClientError> + Send + 'static,
) -> Done<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            Err(Failure::new(Exit::Refused, "nbd", format!("NBD: {error}"), "see the node's log"))
        }
        Err(error) => Err(Failure::local(format!("the NBD client failed: {error}"), "")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_whole_numbered_lines_and_two_runs_differ() {
        let text = String::from_utf8(text(0, 10 * LINE_BYTES)).unwrap();
        assert_eq!(text.lines().count(), 10);
        assert!(text.lines().all(|line| line.len() == LINE_BYTES - 1 && line.contains(NEEDLE)), "{text}");
        assert!(text.starts_with("nightlatch 000000000000: "));
        assert_eq!(piece(1, 0).len(), PIECE);
        assert_ne!(piece(1, 0), piece(2, 0));
        assert_ne!(piece(1, 0), piece(1, 1));
    }
}
