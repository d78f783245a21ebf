//! `nightlatch snapshot export`, `import`, `exports` and `prune`: sealed snapshots in a bucket of any S3 server, and back.
//!
//! What is written is what travels between nodes (STREAM.md): ciphertext and its records, without any key. EXPORT.md says
//! what lies where in the bucket.
//!
//! Crash order: 1. portions, each whole or not there; 2. the manifest, which makes them an export. Pruning goes the other way.

mod bucket;
mod document;

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use admin::api::{Receive, Received, SnapshotManifest, SnapshotStatus};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use identity::HttpsClient;
use serde::Serialize;
use units::{ByteLen, SECTOR_BYTES, VolumeId};

use self::bucket::{Bucket, Exports};
use self::document::{Export, PortionObject, named};
use crate::args::{BucketArg, SnapshotExport, SnapshotImport, SnapshotName};
use crate::commands::send::{end_of, manifest_of, portion_of, progress, replica_path, sectors};
use crate::commands::{id_of, wait};
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, moment, table};

/// Portions that are on their way to or from the bucket at a time: each has up to 16 MiB in memory.
const AT_ONCE: usize = 4;

/// An export, as it is listed.
#[derive(Debug, Serialize)]
struct Listed {
    volume: VolumeId,
    snapshot: VolumeId,
    since: Option<VolumeId>,
    created_unix_s: u64,
    written_unix_s: u64,
    size_bytes: u64,
    stored_bytes: u64,
    portions: usize,
    /// What is wrong with it, where that was looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
}

impl Listed {
    fn of(export: &Export) -> Self {
        let SnapshotManifest { volume, snapshot, since, created_unix_s, size_bytes, .. } = export.snapshot;
        Self {
            volume,
            snapshot,
            since,
            created_unix_s,
            written_unix_s: export.written_unix_s,
            size_bytes,
            stored_bytes: export.stored_bytes(),
            portions: export.portions.len(),
            damage: None,
        }
    }
}

/// Writes a snapshot to a bucket.
pub(crate) fn export(arguments: &SnapshotExport, connections: &Connections, output: Output) -> Done {
    let SnapshotExport { snapshot: name, bucket, node, since, full } = arguments;
    let bucket = Bucket::open(bucket)?;
    let volume = wanted_volume(name, connections)?;
    let export = wait(async {
        let node = connections.node(node.node.as_deref(), Ask::Operate).await?;
        let found = SnapshotOnNode::find(&node, name.snapshot).await?;
        found.refuse_other(volume)?;
        if let Some(there) = bucket.export(found.volume, name.snapshot).await? {
            output.note("It is in the bucket already.");
            return Ok(there);
        }
        let since = match (since, full) {
            (Some(since), _) => Some(*since),
            (None, true) => None,
            (None, false) => found.newest_exported(&bucket).await?,
        };
        if let Some(since) = since
            && bucket.export(found.volume, since).await?.is_none()
        {
            return Err(Failure::usage(
                format!("{since} is not in the bucket: what differs from it would be of no use there"),
                "export it first, or give --full",
            ));
        }
        let manifest = manifest_of(&node, name.snapshot, since).await?;
        write(&node, &bucket, manifest, output).await
    })??;
    let listed = Listed::of(&export);
    output.show(&listed, || {
        format!(
            "Exported {}{}: {} in {} objects.",
            listed.snapshot,
            listed.since.map(|since| format!(" since {since}")).unwrap_or_default(),
            ByteLen(listed.stored_bytes),
            listed.portions
        )
    })
}

/// The volume that a snapshot has to be of, where its name says so.
fn wanted_volume(name: &SnapshotName, connections: &Connections) -> Done<Option<VolumeId>> {
    name.volume.as_deref().map(|volume| id_of(volume, connections)).transpose()
}

/// A snapshot, and those before it of the same volume.
struct SnapshotOnNode {
    volume: VolumeId,
    before: Vec<VolumeId>,
}

impl SnapshotOnNode {
    async fn find(node: &HttpsClient, snapshot: VolumeId) -> Done<Self> {
        // By volume and age.
        let all: Vec<SnapshotStatus> = node.get("/v1/snapshots").await?;
        let at = all.iter().position(|found| found.snapshot == snapshot).ok_or_else(|| {
            Failure::usage(
                format!("there is no snapshot {snapshot} on the node"),
                "`nightlatch snapshot list` shows those there are",
            )
        })?;
        let volume = all[at].volume;
        let before = all[..at].iter().filter(|found| found.volume == volume).map(|found| found.snapshot);
        Ok(Self { volume, before: before.collect() })
    }

    fn refuse_other(&self, wanted: Option<VolumeId>) -> Done {
        match wanted {
            Some(wanted) if wanted != self.volume => Err(Failure::usage(
                format!("the snapshot is one of {}, not of {wanted}", self.volume),
                "`nightlatch snapshot list` shows which is of which volume",
            )),
            _ => Ok(()),
        }
    }

    async fn newest_exported(&self, bucket: &Bucket) -> Done<Option<VolumeId>> {
        for before in self.before.iter().rev() {
            if bucket.export(self.volume, *before).await?.is_some() {
                return Ok(Some(*before));
            }
        }
        Ok(None)
    }
}

/// Writes what is not there yet, and the manifest at the end.
async fn write(
    node: &HttpsClient,
    bucket: &Bucket,
    snapshot: SnapshotManifest,
    output: Output,
) -> Done<Export> {
    let mut portions = bucket.begun(&snapshot).await?;
    let begin = portions.last().map_or(0, |last| last.end);
    let bar = progress(&snapshot, output);
    let (end, manifest) = (sectors(&snapshot), &snapshot);
    let read = stream::try_unfold(begin, move |at| async move {
        if at >= end {
            return Ok(None);
        }
        let content = portion_of(node, manifest, at).await?;
        let next = end_of(&content).filter(|next| *next > at && *next <= end).ok_or_else(|| {
            Failure::local("the node sent no portion of the snapshot", "compare the versions of both sides")
        })?;
        Done::Ok(Some(((PortionObject::of(at, next, &content), content), next)))
    });
    let bar_of = &bar;
    let written = read.map_ok(move |(portion, content): (PortionObject, Bytes)| async move {
        bucket.put(&bucket.place.portion(manifest, &portion), content).await?;
        bar_of.set_position(portion.end * SECTOR_BYTES as u64);
        Done::Ok(portion)
    });
    portions.extend(written.try_buffered(AT_ONCE).try_collect::<Vec<_>>().await?);
    bar.finish_and_clear();
    let written_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let export = Export { snapshot, written_unix_s, portions };
    let encoded = export.encode();
    if encoded.len() > document::MANIFEST_BYTES_MAX {
        return Err(Failure::local(
            "the snapshot is too large for one export",
            "export more often, since the one before",
        ));
    }
    let key = bucket.place.manifest(export.snapshot.volume, export.snapshot.snapshot);
    bucket.put(&key, encoded.into()).await?;
    Ok(export)
}

/// Gives a snapshot to a node, and before it those that it was exported since and the node has not.
pub(crate) fn import(arguments: &SnapshotImport, connections: &Connections, output: Output) -> Done {
    let SnapshotImport { snapshot: name, bucket, node, pool } = arguments;
    let bucket = Bucket::open(bucket)?;
    let wanted = wanted_volume(name, connections)?;
    let arrived = wait(async {
        let node = connections.node(node.node.as_deref(), Ask::Operate).await?;
        let exports = bucket.exports().await?;
        let is_it = |export: &&Export| {
            export.snapshot.snapshot == name.snapshot
                && wanted.is_none_or(|volume| export.snapshot.volume == volume)
        };
        let last = exports.values().find(is_it).ok_or_else(|| missing(name.snapshot))?;
        let there: Vec<SnapshotStatus> = node.get("/v1/snapshots").await?;
        let has = |snapshot: VolumeId| {
            there.iter().any(|found| (found.volume, found.snapshot) == (last.snapshot.volume, snapshot))
        };
        let mut chain = vec![last];
        while let Some(since) = chain[chain.len() - 1].snapshot.since.filter(|since| !has(*since)) {
            let base = exports.get(&(last.snapshot.volume, since)).ok_or_else(|| missing(since))?;
            if chain.iter().any(|export| export.snapshot.snapshot == since) {
                return Err(Failure::local("the exports are each since another in a circle", ""));
            }
            chain.push(base);
        }
        let mut arrived = Vec::new();
        for export in chain.into_iter().rev() {
            let begin = Receive { pool: *pool, manifest: export.snapshot.clone() };
            arrived.push(read(&node, &bucket, export, &begin, output).await?);
        }
        Done::Ok(arrived)
    })??;
    output.show(&arrived, || {
        let ids: Vec<_> = arrived.iter().map(|arrived| arrived.snapshot.to_string()).collect();
        format!("Arrived: {}.", ids.join(", "))
    })
}

fn missing(snapshot: VolumeId) -> Failure {
    Failure::usage(
        format!("the snapshot {snapshot} is not in the bucket, or not to its end"),
        "`nightlatch snapshot exports` shows those there are",
    )
}

/// Gives an export to a node, from where that is.
async fn read(
    node: &HttpsClient,
    bucket: &Bucket,
    export: &Export,
    begin: &Receive,
    output: Output,
) -> Done<SnapshotStatus> {
    let snapshot = &export.snapshot;
    let received: Received = node.post("/v1/replicas", begin).await?;
    let bar = progress(snapshot, output);
    let left = export.portions.iter().filter(|portion| portion.end > received.next_sector);
    let mut contents = stream::iter(left.map(|portion| bucket.portion(snapshot, portion))).buffered(AT_ONCE);
    while let Some(content) = contents.try_next().await? {
        let received: Received = node.post_bytes(&replica_path(snapshot), content).await?;
        bar.set_position(received.next_sector * SECTOR_BYTES as u64);
    }
    bar.finish_and_clear();
    Ok(node.post(&format!("{}/end", replica_path(snapshot)), snapshot).await?)
}

/// Lists what is in a bucket, and reads it where that is wanted.
pub(crate) fn list(arguments: &BucketArg, verify: bool, output: Output) -> Done {
    let bucket = Bucket::open(arguments)?;
    let listed = wait(async {
        let exports = bucket.exports().await?;
        let mut listed = Vec::new();
        for export in exports.values() {
            let mut entry = Listed::of(export);
            if verify {
                entry.damage = damage(&bucket, export, &exports, output).await?;
            }
            listed.push(entry);
        }
        listed.sort_by_key(|entry| (entry.volume, entry.created_unix_s));
        Done::Ok(listed)
    })??;
    output.show(&listed, || list_table(&listed, verify))?;
    let damaged = listed.iter().filter(|entry| entry.damage.is_some()).count();
    match damaged {
        0 => Ok(()),
        damaged => Err(Failure::local(
            format!("{damaged} of {} exports are damaged", listed.len()),
            "prune them and export the snapshots again, while the node has them",
        )),
    }
}

/// What is wrong with an export: everything of it is read.
async fn damage(bucket: &Bucket, export: &Export, all: &Exports, output: Output) -> Done<Option<String>> {
    let snapshot = &export.snapshot;
    if let Some(since) = snapshot.since
        && !all.contains_key(&(snapshot.volume, since))
    {
        return Ok(Some(format!("{since}, which it is since, is not there")));
    }
    let bar = output.progress(export.stored_bytes(), &snapshot.snapshot.to_string());
    let reading = export.portions.iter().map(|portion| bucket.portion(snapshot, portion));
    let mut reading = stream::iter(reading).buffered(AT_ONCE);
    let mut damage = None;
    while let Some(content) = reading.next().await {
        match content {
            Ok(content) => bar.inc(content.len() as u64),
            // A server that cannot be reached says nothing about what it has.
            Err(failure) if failure.exit != crate::failure::Exit::Failed => return Err(failure),
            Err(failure) => {
                damage = Some(failure.problem.message);
                break;
            }
        }
    }
    bar.finish_and_clear();
    Ok(damage)
}

fn list_table(listed: &[Listed], verified: bool) -> String {
    let rows: Vec<_> = listed
        .iter()
        .map(|entry| {
            vec![
                entry.snapshot.to_string(),
                entry.volume.to_string(),
                moment(entry.created_unix_s),
                ByteLen(entry.size_bytes).to_string(),
                ByteLen(entry.stored_bytes).to_string(),
                entry.since.map_or_else(|| "all of it".to_owned(), |since| since.to_string()),
                match (&entry.damage, verified) {
                    (Some(damage), _) => format!("DAMAGED: {damage}"),
                    (None, true) => "good".to_owned(),
                    (None, false) => "not read".to_owned(),
                },
            ]
        })
        .collect();
    table(
        &["SNAPSHOT", "VOLUME", "TAKEN", "SIZE", "STORED", "SINCE", "CONTENT"],
        &rows,
        "nothing is exported there yet: see `nightlatch snapshot export`",
    )
}

/// What is deleted from a bucket.
#[derive(Debug, Serialize)]
struct Pruned {
    exports: Vec<Listed>,
    objects: usize,
}

/// Deletes the oldest exports, but none that one which is kept needs.
pub(crate) fn prune(
    arguments: &BucketArg,
    keep: u32,
    (unfinished, yes): (bool, bool),
    output: Output,
) -> Done {
    let bucket = Bucket::open(arguments)?;
    let (exports, keys) = wait(async {
        let exports = bucket.exports().await?;
        let kept = needed(&exports, usize::try_from(keep).unwrap_or(usize::MAX));
        let mut keys = Vec::new();
        // Without its manifest an export is none: that goes first.
        let gone: Vec<_> = exports.keys().filter(|id| !kept.contains(*id)).copied().collect();
        keys.extend(gone.iter().map(|(volume, snapshot)| bucket.place.manifest(*volume, *snapshot)));
        for (volume, snapshot) in &gone {
            let portions = bucket.list(&bucket.place.portions_of(*volume, *snapshot)).await?;
            keys.extend(portions.into_iter().map(|(key, _)| key));
        }
        if unfinished {
            let under = bucket.place.portions();
            let left = bucket.list(&under).await?.into_iter().map(|(key, _)| key);
            let is_left = |key: &String| named(key, &under).is_some_and(|id| !exports.contains_key(&id));
            keys.extend(left.filter(is_left));
        }
        let exports = exports.iter().filter(|(id, _)| gone.contains(*id));
        Done::Ok((exports.map(|(_, export)| Listed::of(export)).collect::<Vec<_>>(), keys))
    })??;
    if !keys.is_empty() {
        let question = format!("Delete {} exports, {} objects, from the bucket?", exports.len(), keys.len());
        output.confirm(yes, &question)?;
    }
    wait(async {
        for key in &keys {
            bucket.delete(key).await?;
        }
        Done::Ok(())
    })??;
    let pruned = Pruned { exports, objects: keys.len() };
    output.show(&pruned, || format!("Deleted {} exports, {} objects.", pruned.exports.len(), pruned.objects))
}

/// The newest of each volume, and what they are since.
fn needed(exports: &Exports, keep: usize) -> BTreeSet<(VolumeId, VolumeId)> {
    let mut needed = BTreeSet::new();
    let volumes: BTreeSet<VolumeId> = exports.keys().map(|(volume, _)| *volume).collect();
    for volume in volumes {
        let mut of_volume: Vec<_> = exports.iter().filter(|((of, _), _)| *of == volume).collect();
        of_volume.sort_by_key(|(_, export)| {
            std::cmp::Reverse((export.snapshot.created_unix_s, export.written_unix_s))
        });
        for (id, export) in of_volume.into_iter().take(keep) {
            let (mut id, mut since) = (*id, export.snapshot.since);
            while needed.insert(id)
                && let Some(base) = since
            {
                id = (volume, base);
                since = exports.get(&id).and_then(|export| export.snapshot.since);
            }
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use admin::api::VolumeKind;
    use units::{DomainId, VolumeEpoch};

    use super::*;

    fn id(tag: u8) -> VolumeId {
        VolumeId([tag; 16])
    }

    fn exports(of: &[(u8, u8, Option<u8>)]) -> Exports {
        let export = |(volume, snapshot, since): &(u8, u8, Option<u8>)| {
            let manifest = SnapshotManifest {
                volume: id(*volume),
                snapshot: id(*snapshot),
                since: since.map(id),
                created_unix_s: u64::from(*snapshot),
                size_bytes: 0,
                domain: DomainId([0; 16]),
                epoch: VolumeEpoch(1),
                check: String::new(),
                kind: VolumeKind::Block,
                encrypted_blocks: 0,
            };
            let export = Export { snapshot: manifest, written_unix_s: 0, portions: Vec::new() };
            ((id(*volume), id(*snapshot)), export)
        };
        of.iter().map(export).collect()
    }

    #[test]
    fn what_a_kept_export_is_since_is_kept_with_it() {
        let all = exports(&[
            (1, 10, None),
            (1, 11, Some(10)),
            (1, 12, None),
            (1, 13, Some(12)),
            (1, 14, Some(13)),
            (2, 20, None),
            (2, 21, None),
        ]);
        let kept = |keep| needed(&all, keep).into_iter().map(|(_, id)| id.0[0]).collect::<Vec<_>>();
        assert_eq!(kept(1), [12, 13, 14, 21]);
        assert_eq!(kept(4), [10, 11, 12, 13, 14, 20, 21]);
        // Each since the other: damaged, and no endless loop.
        assert_eq!(needed(&exports(&[(1, 10, Some(11)), (1, 11, Some(10))]), 1).len(), 2);
    }
}
