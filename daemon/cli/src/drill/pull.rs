//! A backup site's disk, made of what its node sends: the newest snapshot of each volume, in a pool of this machine's.
//!
//! It is ciphertext, taken in as a replica takes it in (STREAM.md) and promoted where nobody serves it. The pool goes with the drill.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use admin::api::{SnapshotManifest, SnapshotStatus, VolumeKind};
use device::{Device, FileDevice, OpenOptions};
use identity::HttpsClient;
use pool::{CreateOptions, Manifest, Pool};
use units::{ByteLen, SECTOR_BYTES, VolumeId};

use crate::commands::send::{manifest_of, portion_of, progress};
use crate::failure::{Done, Failure};
use crate::output::Output;

/// Room beside what the snapshots hold: the log, tables, and records. The file is sparse.
const ROOM: u64 = 1 << 30;

/// Makes the disk in `dir`.
pub(super) async fn pull(node: &HttpsClient, dir: &Path, output: Output) -> Done<PathBuf> {
    let snapshots: Vec<SnapshotStatus> = node.get("/v1/snapshots").await?;
    // They come by age.
    let newest: BTreeMap<VolumeId, &SnapshotStatus> =
        snapshots.iter().map(|snapshot| (snapshot.volume, snapshot)).collect();
    if newest.is_empty() {
        return Err(Failure::usage(
            "the node has no snapshots to drill with",
            "send it some, or take one there: `nightlatch snapshot --help`",
        ));
    }
    let held: u64 = newest.values().map(|snapshot| snapshot.referenced_bytes).sum();
    let len = (held + held / 16 + ROOM).next_multiple_of(1 << 20);
    let path = dir.join("pulled.img");
    let options = OpenOptions { create_len: Some(ByteLen(len)), ..OpenOptions::default() };
    let device: Arc<dyn Device> = Arc::new(FileDevice::open(&path, options)?);
    let pool = Pool::create(device, CreateOptions::default())?;
    for snapshot in newest.values() {
        take_in(node, &pool, snapshot.snapshot, output).await?;
    }
    pool.flush()?;
    Ok(path)
}

async fn take_in(node: &HttpsClient, pool: &Pool, snapshot: VolumeId, output: Output) -> Done {
    let told = manifest_of(node, snapshot, None).await?;
    let manifest = parsed(&told)?;
    let bar = progress(&told, output);
    let mut next = pool.begin_receiving(&manifest)?;
    while next.0 < manifest.sectors.0 {
        bar.set_position(next.0 * SECTOR_BYTES as u64);
        let portion = portion_of(node, &told, next.0).await?;
        next = pool.receive(manifest.volume, manifest.snapshot, &portion)?;
    }
    pool.end_receiving(&manifest)?;
    pool.promote(manifest.volume)?;
    bar.finish_and_clear();
    Ok(())
}

fn parsed(told: &SnapshotManifest) -> Done<Manifest> {
    let malformed = || Failure::local("the node sent no manifest", "compare the versions of both sides");
    let mut check = [0; 16];
    hex::decode_to_slice(&told.check, &mut check).map_err(|_| malformed())?;
    let size =
        Some(ByteLen(told.size_bytes)).filter(|size| size.is_sector_aligned()).ok_or_else(malformed)?;
    Ok(Manifest {
        volume: told.volume,
        snapshot: told.snapshot,
        since: told.since,
        created_s: told.created_unix_s,
        sectors: size.whole_sectors(),
        domain: told.domain,
        epoch: told.epoch,
        check,
        kind: match told.kind {
            VolumeKind::Block => pool::VolumeKind::Block,
            VolumeKind::Objects => pool::VolumeKind::Objects,
        },
        blocks: told.encrypted_blocks,
    })
}
