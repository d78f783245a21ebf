//! One entry: a line of JSON whose last three fields are the chain's.
//!
//! ```text
//! {"v":2,"seq":…,"unix_ms":…,"boot":"…","boot_ns":…,"event":"…",…,"prev":"…","hash":"…","sig":"…"}
//! └───────────────────────── body, closed by } ─────────────────┘
//! ```

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use units::BootId;

use crate::chain::{Digest, Hash};

/// Version of the line.
pub(crate) const VERSION: u64 = 2;

/// Longest line: the largest real one names a few thousand volumes of a drill.
pub(crate) const LINE_BYTES_MAX: usize = 1 << 20;

/// When something happened, by two clocks that are not set together: the wall clock, and the time since the machine's boot,
/// which nobody sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// Which boot.
    pub boot: BootId,
    /// Nanoseconds of CLOCK_BOOTTIME.
    pub boot_ns: u64,
}

/// An entry as it was read. Whether it holds, a [`crate::Verifier`] says.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its number, from 1.
    pub seq: u64,
    /// When.
    pub at: Moment,
    /// What happened, one word.
    pub event: String,
    /// All fields but the chain's.
    pub fields: Map<String, Value>,
    /// Digest of the body.
    pub digest: Digest,
    /// Hash of the entry before, as the line claims.
    pub previous: Hash,
    /// Its own hash, as the line claims.
    pub hash: Hash,
    /// Signature over the hash.
    pub signature: [u8; 64],
}

/// A line is no entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an entry of version {VERSION}: {why}")]
pub struct MalformedEntry {
    /// What is wrong.
    pub why: &'static str,
}

impl Entry {
    /// Reads a line, with or without its line feed.
    pub fn parse(line: &str) -> Result<Self, MalformedEntry> {
        let malformed = |why| MalformedEntry { why };
        let line = line.trim_end_matches('\n');
        if line.len() > LINE_BYTES_MAX {
            return Err(malformed("it is too long"));
        }
        let (open, chain) = line.rsplit_once(",\"prev\":\"").ok_or(malformed("it is not whole"))?;
        let chain = chain.strip_suffix("\"}").ok_or(malformed("it is not whole"))?;
        let [previous, hash, signature] = chain
            .split("\",\"hash\":\"")
            .flat_map(|part| part.split("\",\"sig\":\""))
            .collect::<Vec<_>>()
            .try_into()
            .map_err(|_| malformed("its chain does not read"))?;
        let body = format!("{open}}}");
        let mut bytes = [0; 64];
        hex::decode_to_slice(signature, &mut bytes).map_err(|_| malformed("its signature does not read"))?;
        let fields: Map<String, Value> =
            serde_json::from_str(&body).map_err(|_| malformed("it is no JSON object"))?;
        let number = |name| fields.get(name).and_then(Value::as_u64).ok_or(malformed("a number is missing"));
        let text = |name| fields.get(name).and_then(Value::as_str).ok_or(malformed("a text is missing"));
        if number("v")? != VERSION {
            return Err(malformed("it is of another version"));
        }
        Ok(Self {
            seq: number("seq")?,
            at: Moment {
                unix_ms: number("unix_ms")?,
                boot: text("boot")?.parse().map_err(|_| malformed("its boot does not read"))?,
                boot_ns: number("boot_ns")?,
            },
            event: text("event")?.to_owned(),
            digest: digest(&body),
            previous: previous.parse().map_err(|_| malformed("its chain does not read"))?,
            hash: hash.parse().map_err(|_| malformed("its chain does not read"))?,
            signature: bytes,
            fields,
        })
    }

    /// A field's text; empty where there is none.
    pub fn text(&self, field: &str) -> &str {
        self.fields.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// Who did it, where it was somebody.
    pub fn actor(&self) -> Option<&str> {
        self.fields.get("by").and_then(Value::as_str)
    }

    /// A field of bytes in hex.
    pub(crate) fn bytes<const N: usize>(&self, field: &str) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        hex::decode_to_slice(self.fields.get(field)?.as_str()?, &mut bytes).ok()?;
        Some(bytes)
    }
}

/// What an entry says, without the chain.
pub(crate) fn body<'a>(
    seq: u64,
    at: Moment,
    event: &str,
    fields: impl IntoIterator<Item = (&'a str, Value)>,
) -> String {
    let mut body = String::new();
    // Writing to a String does not fail.
    let _ = write!(
        body,
        "{{\"v\":{VERSION},\"seq\":{seq},\"unix_ms\":{},\"boot\":\"{}\",\"boot_ns\":{},\"event\":{}",
        at.unix_ms,
        at.boot,
        at.boot_ns,
        Value::from(event)
    );
    for (name, value) in fields {
        let _ = write!(body, ",{}:{value}", Value::from(name));
    }
    body.push('}');
    body
}

/// The digest of a body.
pub(crate) fn digest(body: &str) -> Digest {
    Digest(Sha256::digest(body.as_bytes()).into())
}

/// The whole line, with its line feed.
pub(crate) fn line(body: &str, previous: Hash, hash: Hash, signature: &[u8; 64]) -> String {
    let open = body.strip_suffix('}').unwrap_or(body);
    format!("{open},\"prev\":\"{previous}\",\"hash\":\"{hash}\",\"sig\":\"{}\"}}\n", hex::encode(signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Moment = Moment { unix_ms: 1, boot: BootId([2; 16]), boot_ns: 3 };

    #[test]
    fn an_entry_reads_back_whatever_its_fields_say() {
        let nasty = "\",\"prev\":\"00\",\"hash\":\"11\",\"sig\":\"22\"}\n";
        let body =
            body(7, AT, "x", [("why", nasty.into()), ("list", serde_json::json!([1, {"prev": nasty}]))]);
        let line = line(&body, Hash([4; 32]), Hash([5; 32]), &[6; 64]);
        assert_eq!(line.matches('\n').count(), 1, "one line");
        let entry = Entry::parse(&line).unwrap();
        assert_eq!((entry.seq, entry.at, entry.event.as_str()), (7, AT, "x"));
        assert_eq!(entry.text("why"), nasty);
        assert_eq!((entry.previous, entry.hash, entry.signature), (Hash([4; 32]), Hash([5; 32]), [6; 64]));
        assert_eq!(entry.digest, digest(&body));
    }

    #[test]
    fn what_is_no_entry_is_told_apart() {
        let good = line(&body(1, AT, "x", []), Hash([4; 32]), Hash([5; 32]), &[6; 64]);
        assert!(Entry::parse(&good).is_ok());
        for end in 0..good.len() - 1 {
            assert!(Entry::parse(&good[..end]).is_err(), "cut at {end}");
        }
        for text in ["", "{}", "[]", "{\"v\":2}", &good.replace("\"v\":2", "\"v\":3")] {
            assert!(Entry::parse(text).is_err(), "{text}");
        }
        let long = "x".repeat(LINE_BYTES_MAX);
        assert!(Entry::parse(&good.replace("\"x\"", &format!("\"{long}\""))).is_err());
    }
}
