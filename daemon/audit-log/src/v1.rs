//! Trails of version 1: one JSON object a line whose last fields are `prev` and `hash`, without signatures. Such a trail is set
//! aside when a later program opens it, and the first entry of the new one says where it ended and whether it held.

use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// How a trail of version 1 ended.
pub(crate) struct Ended {
    pub(crate) lines: u64,
    pub(crate) last: [u8; 32],
    /// The first line that does not hold.
    pub(crate) broken_at: Option<u64>,
}

/// Whether the file begins as version 1 did.
pub(crate) fn is_v1(first_line: &str) -> bool {
    serde_json::from_str::<Value>(first_line)
        .is_ok_and(|line| line.get("v").is_none() && line.get("hash").is_some() && line.get("seq").is_some())
}

/// Walks the chain to its end.
pub(crate) fn walk(path: &Path) -> std::io::Result<Ended> {
    let mut reader = BufReader::new(std::fs::File::open(path)?);
    let mut ended = Ended { lines: 0, last: [0; 32], broken_at: None };
    let (mut seq, mut line) = (0_u64, Vec::new());
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(ended);
        }
        ended.lines += 1;
        match read_line(&line, &ended.last) {
            Some((line_seq, hash)) if seq.checked_add(1) == Some(line_seq) => {
                (seq, ended.last) = (line_seq, hash)
            }
            _ => {
                ended.broken_at.get_or_insert(ended.lines);
                if let Some((line_seq, hash)) = claimed(&line) {
                    (seq, ended.last) = (line_seq, hash);
                }
            }
        }
    }
}

fn read_line(line: &[u8], previous: &[u8; 32]) -> Option<(u64, [u8; 32])> {
    let text = std::str::from_utf8(line).ok()?.trim_end();
    let (open, _) = text.rsplit_once(",\"hash\":")?;
    let (seq, hash) = claimed(line)?;
    let actual: [u8; 32] = Sha256::digest(format!("{open}}}").as_bytes()).into();
    let chained = open.ends_with(&format!("\"prev\":\"{}\"", hex::encode(previous)));
    (chained && actual == hash).then_some((seq, hash))
}

fn claimed(line: &[u8]) -> Option<(u64, [u8; 32])> {
    let value: Value = serde_json::from_slice(line).ok()?;
    let mut hash = [0; 32];
    hex::decode_to_slice(value.get("hash")?.as_str()?, &mut hash).ok()?;
    Some((value.get("seq")?.as_u64()?, hash))
}
