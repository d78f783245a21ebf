//! The bucket that snapshots are exported to, at whatever S3 server. What fails for a passing reason is tried again.

use std::collections::BTreeMap;

use bytes::Bytes;
use rusty_s3::UrlStyle;
use units::VolumeId;

use super::document::{Export, MANIFEST_BYTES_MAX, PortionObject, in_order, named};
use crate::args::{BucketArg, Place};
use crate::failure::{Done, Failure};
use crate::s3::{S3, persist};

/// Exports by their volume and snapshot.
pub(super) type Exports = BTreeMap<(VolumeId, VolumeId), Export>;

/// A bucket and a prefix in it.
pub(super) struct Bucket {
    s3: S3,
    pub(super) place: Place,
}

impl Bucket {
    pub(super) fn open(arguments: &BucketArg) -> Done<Self> {
        let style = if arguments.virtual_host { UrlStyle::VirtualHost } else { UrlStyle::Path };
        let Place { bucket, .. } = arguments.place.clone();
        let bucket =
            rusty_s3::Bucket::new(arguments.endpoint.clone(), style, bucket, arguments.region.clone())
                .map_err(|error| {
                    Failure::usage(
                        format!("{} is no S3 server's URL: {error}", arguments.endpoint),
                        "give --endpoint as https://HOST or https://HOST:PORT",
                    )
                })?;
        let s3 = S3::of_environment(bucket, arguments.ca.as_deref())?;
        Ok(Self { s3, place: arguments.place.clone() })
    }

    pub(super) async fn put(&self, key: &str, content: Bytes) -> Done {
        persist(async || self.s3.put_whole(key, content.clone()).await).await
    }

    pub(super) async fn delete(&self, key: &str) -> Done {
        persist(async || self.s3.delete(key).await).await
    }

    /// An object of no more than so many bytes; `None` where there is none.
    async fn read(&self, key: &str, bytes_max: usize) -> Done<Option<Vec<u8>>> {
        persist(async || {
            let mut content = Vec::new();
            let answer = self.s3.get(key, |piece| {
                // One too long is none of ours: its length tells.
                if content.len() <= bytes_max {
                    content.extend_from_slice(piece);
                }
            });
            Ok(match answer.await? {
                Ok(()) => Ok(Some(content)),
                Err(refusal) if refusal.status == http::StatusCode::NOT_FOUND => Ok(None),
                Err(refusal) => Err(refusal),
            })
        })
        .await
    }

    /// Keys that begin with `prefix`, and how long the objects are.
    pub(super) async fn list(&self, prefix: &str) -> Done<Vec<(String, u64)>> {
        let (mut listed, mut next) = (Vec::new(), None);
        loop {
            let (page, more) = persist(async || self.s3.list_under(prefix, next.clone()).await).await?;
            listed.extend(page.into_iter().map(|object| (object.key, object.bytes)));
            next = more;
            if next.is_none() {
                return Ok(listed);
            }
        }
    }

    /// The manifest of a snapshot; `None` where it is not exported, or not to its end.
    pub(super) async fn export(&self, volume: VolumeId, snapshot: VolumeId) -> Done<Option<Export>> {
        let key = self.place.manifest(volume, snapshot);
        let Some(bytes) = self.read(&key, MANIFEST_BYTES_MAX).await? else { return Ok(None) };
        let export = Export::decode(&bytes).map_err(|what| unusable(&key, what))?;
        match (export.snapshot.volume, export.snapshot.snapshot) == (volume, snapshot) {
            true => Ok(Some(export)),
            false => Err(unusable(&key, "is of another snapshot")),
        }
    }

    /// All exports that are whole.
    pub(super) async fn exports(&self) -> Done<Exports> {
        let under = self.place.manifests();
        let mut exports = Exports::new();
        for (key, _) in self.list(&under).await? {
            if let Some((volume, snapshot)) = named(&key, &under)
                && let Some(export) = self.export(volume, snapshot).await?
            {
                exports.insert((volume, snapshot), export);
            }
        }
        Ok(exports)
    }

    /// What an export that broke off has written.
    pub(super) async fn begun(&self, snapshot: &admin::api::SnapshotManifest) -> Done<Vec<PortionObject>> {
        let under = self.place.portions_since(snapshot);
        Ok(in_order(self.list(&under).await?.into_iter(), &under))
    }

    /// A portion, compared with its digest.
    pub(super) async fn portion(
        &self,
        snapshot: &admin::api::SnapshotManifest,
        portion: &PortionObject,
    ) -> Done<Bytes> {
        let key = self.place.portion(snapshot, portion);
        let len = usize::try_from(portion.bytes).unwrap_or(usize::MAX);
        let content =
            self.read(&key, len).await?.ok_or_else(|| unusable(&key, "is not in the bucket any more"))?;
        match portion.misfit(&content) {
            None => Ok(content.into()),
            Some(what) => Err(unusable(&key, what)),
        }
    }
}

fn unusable(key: &str, what: &str) -> Failure {
    Failure::local(
        format!("{key} {what}"),
        "take another snapshot from the bucket, or export this one again after `nightlatch snapshot prune`",
    )
}
