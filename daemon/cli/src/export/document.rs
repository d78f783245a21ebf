//! What is in a bucket: names of objects, and the manifest of an exported snapshot. EXPORT.md has the format.

use admin::api::SnapshotManifest;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use units::{ByteLen, VolumeId};

use crate::args::Place;

const VERSION: u32 = 1;
/// What the line of the digest begins with.
const DIGEST: &str = "sha256 ";
/// Longest portion: what a node takes in one request.
const PORTION_BYTES_MAX: u64 = 64 << 20;
/// Longest manifest: of some 40 TiB of ciphertext.
pub(super) const MANIFEST_BYTES_MAX: usize = 256 << 20;

/// A portion (STREAM.md) that is an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortionObject {
    pub(super) first: u64,
    pub(super) end: u64,
    pub(super) bytes: u64,
    pub(super) sha256: [u8; 32],
}

impl PortionObject {
    pub(super) fn of(first: u64, end: u64, content: &[u8]) -> Self {
        Self { first, end, bytes: content.len() as u64, sha256: Sha256::digest(content).into() }
    }

    fn name(&self) -> String {
        format!("{:010x}-{:010x}-{}", self.first, self.end, hex::encode(self.sha256))
    }

    fn from_name(name: &str, bytes: u64) -> Option<Self> {
        let mut words = name.split('-');
        let number = |word: Option<&str>| {
            word.filter(|word| word.len() == 10).and_then(|word| u64::from_str_radix(word, 16).ok())
        };
        let (first, end) = (number(words.next())?, number(words.next())?);
        let mut sha256 = [0; 32];
        hex::decode_to_slice(words.next()?, &mut sha256).ok()?;
        (words.next().is_none() && first < end).then_some(Self { first, end, bytes, sha256 })
    }

    /// Why this is not what was written, if it is not.
    pub(super) fn misfit(&self, content: &[u8]) -> Option<&'static str> {
        if content.len() as u64 != self.bytes {
            return Some("has another length than it was written with");
        }
        (Sha256::digest(content)[..] != self.sha256).then_some("has another digest than it was written with")
    }
}

/// An exported snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Export {
    pub(super) snapshot: SnapshotManifest,
    pub(super) written_unix_s: u64,
    /// From sector 0 to the snapshot's end.
    pub(super) portions: Vec<PortionObject>,
}

/// The manifest's line. A portion is its end, its length in bytes and its digest: it begins where the one before ends.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    version: u32,
    written_unix_s: u64,
    snapshot: SnapshotManifest,
    portions: Vec<(u64, u64, String)>,
}

/// Of which version a manifest is, whatever else it says.
#[derive(Deserialize)]
struct OfVersion {
    version: u32,
}

impl Export {
    pub(super) fn stored_bytes(&self) -> u64 {
        self.portions.iter().map(|portion| portion.bytes).sum()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let portions = self.portions.iter();
        let line = Line {
            version: VERSION,
            written_unix_s: self.written_unix_s,
            snapshot: self.snapshot.clone(),
            portions: portions
                .map(|portion| (portion.end, portion.bytes, hex::encode(portion.sha256)))
                .collect(),
        };
        // Strings and numbers: nothing that could fail.
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        let digest = hex::encode(Sha256::digest(&text));
        text.extend(format!("{DIGEST}{digest}\n").bytes());
        text
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        const DAMAGED: &str = "is no manifest, or is cut short or damaged";
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(DAMAGED)? + 1;
        let (line, rest) = bytes.split_at(end);
        if rest != format!("{DIGEST}{}\n", hex::encode(Sha256::digest(line))).as_bytes() {
            return Err(DAMAGED);
        }
        let OfVersion { version } = serde_json::from_slice(line).map_err(|_| DAMAGED)?;
        if version != VERSION {
            return Err("is of another version; use the release that wrote it, or a newer one");
        }
        let line: Line = serde_json::from_slice(line).map_err(|_| DAMAGED)?;
        let (mut at, mut portions) = (0, Vec::with_capacity(line.portions.len()));
        for (end, bytes, digest) in line.portions {
            let mut sha256 = [0; 32];
            hex::decode_to_slice(&digest, &mut sha256).map_err(|_| DAMAGED)?;
            if end <= at || bytes > PORTION_BYTES_MAX {
                return Err(DAMAGED);
            }
            portions.push(PortionObject { first: at, end, bytes, sha256 });
            at = end;
        }
        if at != ByteLen(line.snapshot.size_bytes).whole_sectors().0 {
            return Err(DAMAGED);
        }
        Ok(Self { snapshot: line.snapshot, written_unix_s: line.written_unix_s, portions })
    }
}

/// Where in the bucket things are.
impl Place {
    /// What the manifests' keys begin with.
    pub(super) fn manifests(&self) -> String {
        format!("{}manifests/", self.prefix)
    }

    pub(super) fn manifest(&self, volume: VolumeId, snapshot: VolumeId) -> String {
        format!("{}{volume}/{snapshot}", self.manifests())
    }

    /// What the portions' keys begin with.
    pub(super) fn portions(&self) -> String {
        format!("{}portions/", self.prefix)
    }

    /// Those of a snapshot, whatever it was exported since.
    pub(super) fn portions_of(&self, volume: VolumeId, snapshot: VolumeId) -> String {
        format!("{}{volume}/{snapshot}/", self.portions())
    }

    /// Those of an export, which are made for what it is since.
    pub(super) fn portions_since(&self, snapshot: &SnapshotManifest) -> String {
        let since = snapshot.since.map_or_else(|| "all".to_owned(), |since| since.to_string());
        format!("{}{since}/", self.portions_of(snapshot.volume, snapshot.snapshot))
    }

    pub(super) fn portion(&self, snapshot: &SnapshotManifest, portion: &PortionObject) -> String {
        format!("{}{}", self.portions_since(snapshot), portion.name())
    }
}

/// Volume and snapshot of what is under `manifests/` or `portions/`.
pub(super) fn named(key: &str, under: &str) -> Option<(VolumeId, VolumeId)> {
    let mut words = key.strip_prefix(under)?.split('/');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// The portions of a list that follow each other from sector 0 on: what an export that broke off has written.
pub(super) fn in_order(listed: impl Iterator<Item = (String, u64)>, under: &str) -> Vec<PortionObject> {
    let mut found: Vec<_> =
        listed.filter_map(|(key, bytes)| PortionObject::from_name(key.strip_prefix(under)?, bytes)).collect();
    // Of two that begin at the same sector the longer one.
    found.sort_unstable_by_key(|portion| (portion.first, std::cmp::Reverse(portion.end)));
    let mut at = 0;
    found.retain(|portion| {
        let follows = portion.first == at;
        at = if follows { portion.end } else { at };
        follows
    });
    found
}

#[cfg(test)]
mod tests {
    use admin::api::VolumeKind;
    use units::{DomainId, VolumeEpoch};

    use super::*;

    const GOLDEN: &[u8] = include_bytes!("../../tests/golden/export-1/manifest");

    fn export() -> Export {
        let snapshot = SnapshotManifest {
            volume: VolumeId([1; 16]),
            snapshot: VolumeId([2; 16]),
            since: Some(VolumeId([3; 16])),
            created_unix_s: 1_700_000_000,
            size_bytes: 64 << 20,
            domain: DomainId([4; 16]),
            epoch: VolumeEpoch(5),
            check: "06".repeat(16),
            kind: VolumeKind::Block,
            encrypted_blocks: 7,
        };
        let portions = vec![PortionObject::of(0, 4096, b"first"), PortionObject::of(4096, 16384, b"second")];
        Export { snapshot, written_unix_s: 1_700_000_060, portions }
    }

    #[test]
    fn the_golden_manifest_is_read_and_written_byte_for_byte() {
        assert_eq!(Export::decode(GOLDEN), Ok(export()));
        assert_eq!(export().encode(), GOLDEN);
    }

    #[test]
    fn a_manifest_that_is_damaged_anywhere_is_refused() {
        for at in 0..GOLDEN.len() {
            let mut damaged = GOLDEN.to_vec();
            damaged[at] ^= 1;
            assert!(Export::decode(&damaged).is_err(), "byte {at}");
            assert!(Export::decode(&GOLDEN[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn what_a_whole_manifest_must_not_say_is_refused() {
        let refused = |change: &dyn Fn(&mut Export)| {
            let mut export = export();
            change(&mut export);
            Export::decode(&export.encode()).unwrap_err()
        };
        refused(&|export| {
            let _ = export.portions.pop();
        });
        refused(&|export| export.portions[0].end = 0);
        refused(&|export| export.portions[1].bytes = PORTION_BYTES_MAX + 1);
        refused(&|export| export.snapshot.size_bytes += 4096);
        let text = String::from_utf8(GOLDEN.to_vec()).unwrap().replace("\"version\":1", "\"version\":2");
        let line = text.split_inclusive('\n').next().unwrap();
        let newer = format!("{line}{DIGEST}{}\n", hex::encode(Sha256::digest(line)));
        assert!(Export::decode(newer.as_bytes()).unwrap_err().contains("another version"));
    }

    #[test]
    fn keys_say_what_is_where_and_an_export_goes_on_behind_what_follows_from_the_start() {
        let place: Place = "s3://bucket/backup".parse().unwrap();
        let export = export();
        let under = place.portions_since(&export.snapshot);
        let key = |nth: usize| place.portion(&export.snapshot, &export.portions[nth]);
        assert_eq!(named(&key(0), &place.portions()), Some((VolumeId([1; 16]), VolumeId([2; 16]))));
        let manifest = place.manifest(export.snapshot.volume, export.snapshot.snapshot);
        assert_eq!(named(&manifest, &place.manifests()), Some((VolumeId([1; 16]), VolumeId([2; 16]))));
        let listed = |keys: Vec<String>| in_order(keys.into_iter().zip([5, 6, 6, 6]), &under);
        assert_eq!(listed(vec![key(0), key(1)]), export.portions);
        assert_eq!(listed(vec![]), []);
        let behind_a_gap = PortionObject::of(16385, 16390, b"gapped");
        let shorter = PortionObject::of(0, 100, b"short");
        let more = vec![key(0), key(1), place.portion(&export.snapshot, &behind_a_gap)];
        assert_eq!(listed(more), export.portions);
        assert_eq!(listed(vec![key(0), place.portion(&export.snapshot, &shorter)]), export.portions[..1]);
        assert_eq!(listed(vec![format!("{under}else"), key(1)]), []);
    }

    #[test]
    fn content_is_compared_by_length_and_digest() {
        let portion = PortionObject::of(0, 1, b"content");
        assert_eq!(portion.misfit(b"content"), None);
        assert!(portion.misfit(b"content2").is_some() && portion.misfit(b"Content").is_some());
    }
}
