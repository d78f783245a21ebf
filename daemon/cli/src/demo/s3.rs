//! The demonstration's object: text in, and its checksum when it is read again.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};

use crate::demo::setup;
use crate::demo::site::{BUCKET, REGION, Site};
use crate::demo::traffic::{self, PIECE};
use crate::failure::Done;
use crate::loopback::at;
use crate::s3::{Refusal, S3};

/// The S3 head's URL.
pub(super) fn endpoint(site: &Site) -> String {
    let scheme = if site.s3_plain { "http" } else { "https" };
    format!("{scheme}://{}", at(site.ports.s3))
}

/// A client of the demonstration's bucket, with its access key.
pub(super) fn client(site: &Site) -> Done<S3> {
    let bundle = site.path("pki/ca-cert.pem");
    let trusted = (!site.s3_plain).then_some(bundle.as_path());
    S3::new(at(site.ports.s3), trusted, BUCKET, REGION, &setup::access_key(site)?)
}

/// Streams `pieces` pieces of text into an object and gives their SHA-256.
pub(super) async fn put(s3: &S3, key: &str, run: u64, pieces: u64, bar: ProgressBar) -> Done<[u8; 32]> {
    let hash = Arc::new(Mutex::new(Sha256::new()));
    let (hashed, progress) = (Arc::clone(&hash), bar.clone());
    let frames = futures::stream::iter(0..pieces).map(move |index| {
        let piece = traffic::piece(run, index);
        hashed.lock().unwrap_or_else(PoisonError::into_inner).update(&piece);
        progress.inc(PIECE as u64);
        Ok(Frame::data(Bytes::from(piece)))
    });
    s3.put(key, pieces * PIECE as u64, BodyExt::boxed(StreamBody::new(frames))).await?;
    bar.finish();
    let hash = hash.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(hash.finalize().into())
}

/// Streams an object out and gives its SHA-256, or the refusal.
pub(super) async fn get(s3: &S3, key: &str, bar: &ProgressBar) -> Done<Result<[u8; 32], Refusal>> {
    let mut hash = Sha256::new();
    let got = s3
        .get(key, |data| {
            hash.update(data);
            bar.inc(data.len() as u64);
        })
        .await?;
    bar.finish();
    Ok(got.map(|()| hash.finalize().into()))
}
