//! The endpoints that move ciphertext from node to node: snapshots in portions, and single sectors that one of them has lost.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use units::{PoolId, VolumeId};

use crate::api;
use crate::control::{ControlError, ErrorKind, NodeControl};
use crate::routes::{Answer, Body, parsed};

/// Most sectors of ciphertext in one portion: 32 MiB, half of what a request's body may have.
const PORTION_SECTORS_MAX: u64 = 8192;

/// What of a snapshot is asked for.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    /// An older snapshot.
    #[serde(default)]
    since: Option<VolumeId>,
    /// The sector to begin with.
    #[serde(default)]
    from: u64,
    /// Most sectors of ciphertext.
    #[serde(default)]
    sectors: Option<u64>,
}

pub(crate) async fn manifest<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(snapshot): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Answer<api::SnapshotManifest> {
    match parsed(&snapshot) {
        Ok(snapshot) => Answer(node.snapshot_manifest(snapshot, wanted.since).await),
        Err(error) => Answer(Err(error)),
    }
}

pub(crate) async fn portion<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(snapshot): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Response {
    let snapshot = match parsed(&snapshot) {
        Ok(snapshot) => snapshot,
        Err(error) => return Answer::<api::Done>(Err(error)).into_response(),
    };
    let sectors = wanted.sectors.unwrap_or(PORTION_SECTORS_MAX).min(PORTION_SECTORS_MAX);
    in_bytes(node.snapshot_portion(snapshot, wanted.since, wanted.from, sectors).await)
}

fn in_bytes(answer: Result<Vec<u8>, ControlError>) -> Response {
    match answer {
        Ok(bytes) => ([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response(),
        Err(error) => Answer::<api::Done>(Err(error)).into_response(),
    }
}

pub(crate) async fn wanted<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(pool): Path<String>,
) -> Answer<Vec<api::WantedSector>> {
    match parsed::<PoolId>(&pool) {
        Ok(pool) => Answer(node.wanted_sectors(pool).await),
        Err(error) => Answer(Err(error)),
    }
}

pub(crate) async fn find<N: NodeControl>(
    State(node): State<Arc<N>>,
    Body(request): Body<api::FindSector>,
) -> Response {
    in_bytes(node.find_sector(request).await)
}

pub(crate) async fn heal<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path((pool, offset)): Path<(String, String)>,
    ciphertext: Bytes,
) -> Answer<api::Healed> {
    let place = parsed::<PoolId>(&pool).and_then(|pool| {
        let offset = offset.parse::<u64>().map_err(|_| {
            let message = "the offset on the device is no number";
            ControlError::new(ErrorKind::Invalid, message, "send it as `wanted` gives it")
        })?;
        Ok((pool, offset))
    });
    match place {
        Ok((pool, offset)) => Answer(node.heal_sector(pool, offset, ciphertext).await),
        Err(error) => Answer(Err(error)),
    }
}

pub(crate) async fn begin<N: NodeControl>(
    State(node): State<Arc<N>>,
    Body(request): Body<api::Receive>,
) -> Answer<api::Received> {
    Answer(node.begin_receiving(request).await)
}

pub(crate) async fn receive<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path((volume, snapshot)): Path<(String, String)>,
    portion: Bytes,
) -> Answer<api::Received> {
    match parsed(&volume).and_then(|volume| Ok((volume, parsed(&snapshot)?))) {
        Ok((volume, snapshot)) => Answer(node.receive(volume, snapshot, portion).await),
        Err(error) => Answer(Err(error)),
    }
}

pub(crate) async fn end<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path((_volume, _snapshot)): Path<(String, String)>,
    Body(manifest): Body<api::SnapshotManifest>,
) -> Answer<api::SnapshotStatus> {
    Answer(node.end_receiving(manifest).await)
}

pub(crate) async fn promote<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(volume): Path<String>,
) -> Answer<api::Promoted> {
    match parsed(&volume) {
        Ok(volume) => Answer(node.promote(volume).await),
        Err(error) => Answer(Err(error)),
    }
}
