//! `nightlatch snapshot send` and `receive`: ciphertext from node to node, or to a file and back, in portions. What breaks off
//! goes on where it was when the same is said again.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use admin::api::{Receive, Received, SnapshotManifest, SnapshotStatus};
use bytes::Bytes;
use identity::{ClientError, HttpsClient};
use indicatif::ProgressBar;
use pool::Portion;
use sha2::{Digest, Sha256};
use units::{ByteLen, PoolId, SECTOR_BYTES, VolumeId};

use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::Output;

/// What a portion is asked to hold: 16 MiB.
const PORTION_SECTORS: u64 = 4096;
/// No frame is longer.
const FRAME_BYTES_MAX: u64 = 64 << 20;

const MAGIC: [u8; 4] = *b"NLSF";
const MANIFEST: u32 = 1;
const PORTION: u32 = 2;
const END: u32 = 3;

/// Sends a snapshot from one node to another.
pub(crate) fn to_node(
    (snapshot, since, from): (VolumeId, Option<VolumeId>, Option<&str>),
    (to, pool): (&str, Option<PoolId>),
    connections: &Connections,
    output: Output,
) -> Done {
    let arrived = wait(async {
        let source = connections.node(from, Ask::Operate).await?;
        let target = connections.node(Some(to), Ask::Operate).await?;
        let since = match since {
            Some(since) => Some(since),
            None => common_snapshot(&source, &target, snapshot).await?,
        };
        let manifest = manifest_of(&source, snapshot, since).await?;
        let begin = Receive { pool, manifest: manifest.clone() };
        let mut received: Received = target.post("/v1/replicas", &begin).await?;
        let bar = progress(&manifest, output);
        while received.next_sector < sectors(&manifest) {
            bar.set_position(received.next_sector * SECTOR_BYTES as u64);
            let portion = portion_of(&source, &manifest, received.next_sector).await?;
            received = target.post_bytes(&replica_path(&manifest), portion).await?;
        }
        bar.finish_and_clear();
        let arrived: SnapshotStatus =
            target.post(&format!("{}/end", replica_path(&manifest)), &manifest).await?;
        Done::Ok(arrived)
    })??;
    output.show(&arrived, || format!("The snapshot {} has arrived on {to}.", arrived.snapshot))
}

/// Writes a snapshot to a file.
pub(crate) fn to_file(
    (snapshot, since, from): (VolumeId, Option<VolumeId>, Option<&str>),
    path: &Path,
    connections: &Connections,
    output: Output,
) -> Done {
    let failed = |error: std::io::Error| Failure::file("write", path, &error);
    let file = File::options().write(true).create_new(true).open(path).map_err(failed)?;
    let mut frames = Frames { inner: BufWriter::new(file), digest: Sha256::new() };
    let manifest = wait(async {
        let source = connections.node(from, Ask::Operate).await?;
        let manifest = manifest_of(&source, snapshot, since).await?;
        let encoded = serde_json::to_vec(&manifest).unwrap_or_default();
        frames.write(MANIFEST, &encoded).map_err(failed)?;
        let bar = progress(&manifest, output);
        let mut next = 0;
        while next < sectors(&manifest) {
            bar.set_position(next * SECTOR_BYTES as u64);
            let portion = portion_of(&source, &manifest, next).await?;
            next = end_of(&portion).filter(|end| *end > next).ok_or_else(|| malformed(path))?;
            frames.write(PORTION, &portion).map_err(failed)?;
        }
        bar.finish_and_clear();
        Done::Ok(manifest)
    })??;
    let digest = frames.digest.clone().finalize();
    frames.write(END, &digest).map_err(failed)?;
    let file = frames.inner.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    output.show(&manifest, || format!("Wrote the snapshot {snapshot} to {}.", path.display()))
}

/// Gives a snapshot from a file to a node. The file is read to its end first: one that is cut short is not begun with.
pub(crate) fn from_file(
    path: &Path,
    (to, pool): (Option<&str>, Option<PoolId>),
    connections: &Connections,
    output: Output,
) -> Done {
    let mut manifest: Option<SnapshotManifest> = None;
    read_frames(path, |kind, bytes| {
        if kind == MANIFEST {
            manifest = Some(serde_json::from_slice(bytes).map_err(|_| malformed(path))?);
        }
        Ok(())
    })?;
    let manifest = manifest.ok_or_else(|| malformed(path))?;
    let target = wait(connections.node(to, Ask::Operate))??;
    let begin = Receive { pool, manifest: manifest.clone() };
    let mut received: Received = wait(target.post("/v1/replicas", &begin))??;
    let bar = progress(&manifest, output);
    read_frames(path, |kind, bytes| {
        // What has arrived already is passed over.
        if kind == PORTION && end_of(bytes).is_none_or(|end| end > received.next_sector) {
            let portion = Bytes::copy_from_slice(bytes);
            received = wait(target.post_bytes(&replica_path(&manifest), portion))??;
            bar.set_position(received.next_sector * SECTOR_BYTES as u64);
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    let arrived: SnapshotStatus = wait(target.post(&format!("{}/end", replica_path(&manifest)), &manifest))??;
    output.show(&arrived, || format!("The snapshot {} has arrived.", arrived.snapshot))
}

/// The newest snapshot of the same volume that the target has, if the source has it too.
async fn common_snapshot(
    source: &HttpsClient,
    target: &HttpsClient,
    snapshot: VolumeId,
) -> Done<Option<VolumeId>> {
    let ours: Vec<SnapshotStatus> = source.get("/v1/snapshots").await?;
    let theirs: Vec<SnapshotStatus> = target.get("/v1/snapshots").await?;
    let volume = ours.iter().find(|found| found.snapshot == snapshot).map(|found| found.volume);
    // They come by age.
    let newest = theirs.iter().rfind(|found| Some(found.volume) == volume).map(|found| found.snapshot);
    match newest {
        Some(newest) if ours.iter().any(|found| found.snapshot == newest) => Ok(Some(newest)),
        Some(newest) => Err(Failure::usage(
            format!("the other node's newest snapshot of the volume, {newest}, is not on this one any more"),
            "delete the replica there and send a whole snapshot, or name an older one with --since if both have it as the newest",
        )),
        None => Ok(None),
    }
}

pub(crate) async fn manifest_of(
    source: &HttpsClient,
    snapshot: VolumeId,
    since: Option<VolumeId>,
) -> Result<SnapshotManifest, ClientError> {
    source.get(&format!("/v1/snapshots/{snapshot}/manifest{}", since_query(since, '?'))).await
}

pub(crate) async fn portion_of(
    source: &HttpsClient,
    manifest: &SnapshotManifest,
    from: u64,
) -> Result<Bytes, ClientError> {
    let (snapshot, since) = (manifest.snapshot, since_query(manifest.since, '&'));
    let path = format!("/v1/snapshots/{snapshot}/portion?from={from}&sectors={PORTION_SECTORS}{since}");
    source.get_bytes(&path).await
}

fn since_query(since: Option<VolumeId>, before: char) -> String {
    since.map_or_else(String::new, |since| format!("{before}since={since}"))
}

pub(crate) fn replica_path(manifest: &SnapshotManifest) -> String {
    format!("/v1/replicas/{}/{}", manifest.volume, manifest.snapshot)
}

pub(crate) fn sectors(manifest: &SnapshotManifest) -> u64 {
    ByteLen(manifest.size_bytes).whole_sectors().0
}

pub(crate) fn progress(manifest: &SnapshotManifest, output: Output) -> ProgressBar {
    output.progress(manifest.size_bytes, if manifest.since.is_some() { "what differs" } else { "snapshot" })
}

pub(crate) fn end_of(portion: &[u8]) -> Option<u64> {
    Portion::next_after(portion).map(|next| next.0)
}

fn malformed(path: &Path) -> Failure {
    Failure::local(
        format!("{} is no snapshot that was sent, or is cut short or damaged", path.display()),
        "write it again with `nightlatch snapshot send --output`",
    )
}

/// Frames of a file, and the digest of all of them.
struct Frames<F> {
    inner: F,
    digest: Sha256,
}

impl<F: Write> Frames<F> {
    fn write(&mut self, kind: u32, bytes: &[u8]) -> std::io::Result<()> {
        let mut head = [0; 16];
        head[..4].copy_from_slice(&MAGIC);
        head[4..8].copy_from_slice(&kind.to_le_bytes());
        head[8..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        for part in [&head[..], bytes] {
            self.digest.update(part);
            self.inner.write_all(part)?;
        }
        Ok(())
    }
}

/// Hands the frames of a file over in order. An error where it ends before its last, or its digest is not right.
fn read_frames(path: &Path, mut take: impl FnMut(u32, &[u8]) -> Done) -> Done {
    let file = File::open(path).map_err(|error| Failure::file("open", path, &error))?;
    let (mut file, mut digest) = (BufReader::new(file), Sha256::new());
    loop {
        let mut head = [0; 16];
        file.read_exact(&mut head).map_err(|_| malformed(path))?;
        let kind = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let len = u64::from_le_bytes([
            head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15],
        ]);
        if head[..4] != MAGIC || len > FRAME_BYTES_MAX {
            return Err(malformed(path));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        file.read_exact(&mut bytes).map_err(|_| malformed(path))?;
        if kind == END {
            return if bytes == digest.finalize()[..] { Ok(()) } else { Err(malformed(path)) };
        }
        digest.update(head);
        digest.update(&bytes);
        take(kind, &bytes)?;
    }
}
