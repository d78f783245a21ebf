//! Bodies on their way in: gathered into chunks, each handed to a thread that may block while the next one arrives.

use bytes::Bytes;
use futures::StreamExt;
use objects::{ChecksumAlgorithm, Declared, ObjectWriter, PartWriter, Store, StoreError};
use s3s::dto::StreamingBlob;
use s3s::stream::ByteStream;
use s3s::{S3Error, S3ErrorCode, S3Result, TrailingHeaders};
use tokio::task::JoinHandle;

use crate::convert::{ChecksumFields, algorithm, parse_checksum, parse_md5};
use crate::error::{from_body, from_store};
use crate::limits::SMALL_BODY_BYTES;
use crate::resources::{ChunkBuffer, ChunkLength, Resources};
use crate::slot::Serving;

/// An object or a part being written.
pub(crate) trait Writer: Send + 'static {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError>;
}

impl Writer for ObjectWriter {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        ObjectWriter::append(self, bytes)
    }
}

impl Writer for PartWriter {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        PartWriter::append(self, bytes)
    }
}

/// A request body with everything the client says about it.
pub(crate) struct Upload {
    pub(crate) body: Option<StreamingBlob>,
    pub(crate) length: Option<i64>,
    pub(crate) md5: Option<String>,
    pub(crate) checksums: ChecksumFields,
    /// `x-amz-sdk-checksum-algorithm`.
    pub(crate) algorithm: Option<String>,
    /// `x-amz-trailer`: names of checksums that follow the body.
    pub(crate) announced: Option<String>,
    pub(crate) trailers: Option<TrailingHeaders>,
}

/// A body that is checked for form and ready to be received.
pub(crate) struct Receiver {
    body: Option<StreamingBlob>,
    length: u64,
    declared: Declared,
    /// The checksum to compute while receiving.
    pub(crate) algorithm: Option<ChecksumAlgorithm>,
    trailer: Option<ChecksumAlgorithm>,
    trailers: Option<TrailingHeaders>,
}

const TRAILER_PREFIX: &str = "x-amz-checksum-";

impl Upload {
    pub(crate) fn check(self) -> S3Result<Receiver> {
        let declared = self.length.and_then(|length| u64::try_from(length).ok());
        // A body in signed or trailed chunks has no Content-Length where HTTP chunks it as well: it says how long it is
        // in `x-amz-decoded-content-length`, which the protocol code has made the stream's own length.
        let streamed = || self.body.as_ref()?.remaining_length().exact().map(|length| length as u64);
        let length = declared.or_else(streamed).ok_or(S3Error::new(S3ErrorCode::MissingContentLength))?;
        let md5 = self.md5.as_deref().map(parse_md5).transpose()?;
        let checksum = self.checksums.checksum()?;
        let trailer = self
            .announced
            .as_deref()
            .and_then(|names| names.split(',').find_map(|name| name.trim().strip_prefix(TRAILER_PREFIX)))
            .map(algorithm)
            .transpose()?;
        let asked = self.algorithm.as_deref().map(algorithm).transpose()?;
        let algorithm = checksum.as_ref().map(|checksum| checksum.algorithm).or(trailer).or(asked);
        let declared = Declared { md5, checksum };
        Ok(Receiver { body: self.body, length, declared, algorithm, trailer, trailers: self.trailers })
    }
}

impl Receiver {
    /// Receives the body into what `open` opens, then ends it with `finish`, both where they may block.
    pub(crate) async fn receive<W: Writer, R: Send + 'static>(
        mut self,
        serving: &Serving,
        resources: &Resources,
        open: impl FnOnce(&Store, u64) -> Result<W, StoreError> + Send + 'static,
        finish: impl FnOnce(&Store, W, Declared) -> S3Result<R> + Send + 'static,
    ) -> S3Result<R> {
        let length = self.length;
        let small = usize::try_from(length).ok().filter(|length| *length <= SMALL_BODY_BYTES);
        if let Some(length) = small {
            let _memory = resources.reserve(length).await;
            let mut gathered = Vec::with_capacity(length);
            while let Some(bytes) = self.next_bytes().await? {
                if gathered.len() + bytes.len() > length {
                    return Err(S3Error::new(S3ErrorCode::IncompleteBody));
                }
                gathered.extend_from_slice(&bytes);
            }
            let declared = self.declared()?;
            return serving
                .run(move |store| {
                    let mut writer = open(store, length as u64).map_err(|error| from_store(&error))?;
                    writer.append(&gathered).map_err(|error| from_store(&error))?;
                    finish(store, writer, declared)
                })
                .await;
        }
        let writer =
            serving.run(move |store| open(store, length).map_err(|error| from_store(&error))).await?;
        let (_memory, chunk) = resources.reserve_two_chunks().await;
        let writer = self.pump(writer, chunk, resources).await?;
        let declared = self.declared()?;
        serving.run(move |store| finish(store, writer, declared)).await
    }

    /// Moves the body into the writer, one chunk being written while the next arrives.
    async fn pump<W: Writer>(
        &mut self,
        writer: W,
        length: ChunkLength,
        resources: &Resources,
    ) -> S3Result<W> {
        let mut writing = Writing::Idle(writer, resources.buffer(length));
        let mut chunk = resources.buffer(length);
        while let Some(mut bytes) = self.next_bytes().await? {
            while !bytes.is_empty() {
                let part = bytes.split_to(bytes.len().min(length.0 - chunk.bytes.len()));
                chunk.bytes.extend_from_slice(&part);
                if chunk.bytes.len() == length.0 {
                    (writing, chunk) = writing.write(chunk, resources).await?;
                }
            }
        }
        let (writing, _) = writing.write(chunk, resources).await?;
        let (writer, _) = writing.finished().await?;
        Ok(writer)
    }

    async fn next_bytes(&mut self) -> S3Result<Option<Bytes>> {
        let Some(body) = &mut self.body else { return Ok(None) };
        body.next().await.transpose().map_err(|error| from_body(&error))
    }

    /// What the client declared, trailer included; to be asked at the end of the body.
    fn declared(&self) -> S3Result<Declared> {
        let mut declared = self.declared.clone();
        if let Some(algorithm) = self.trailer {
            let name = format!("{TRAILER_PREFIX}{}", crate::convert::algorithm_name(algorithm).as_str());
            let text = self.trailers.as_ref().and_then(|trailers| {
                trailers.read(|headers| {
                    headers
                        .get(name.to_ascii_lowercase().as_str())
                        .and_then(|value| value.to_str().ok().map(str::to_owned))
                })
            });
            let text = text.flatten().ok_or_else(|| {
                S3Error::with_message(
                    S3ErrorCode::InvalidRequest,
                    "the announced checksum did not follow the body",
                )
            })?;
            declared.checksum = Some(parse_checksum(algorithm, &text)?);
        }
        Ok(declared)
    }
}

/// A writer, and a buffer that can be filled again; or both on a thread that writes.
enum Writing<W> {
    Idle(W, ChunkBuffer),
    Busy(JoinHandle<(W, ChunkBuffer, Result<(), StoreError>)>),
}

impl<W: Writer> Writing<W> {
    /// Starts writing `chunk` once the one before it is written; gives an empty buffer for the next.
    async fn write(self, chunk: ChunkBuffer, resources: &Resources) -> S3Result<(Self, ChunkBuffer)> {
        let (mut writer, mut buffer) = self.finished().await?;
        buffer.clear();
        let worker = resources.worker().await;
        let busy = tokio::task::spawn_blocking(move || {
            let result = writer.append(&chunk.bytes);
            drop(worker);
            (writer, chunk, result)
        });
        Ok((Self::Busy(busy), buffer))
    }

    async fn finished(self) -> S3Result<(W, ChunkBuffer)> {
        match self {
            Self::Idle(writer, buffer) => Ok((writer, buffer)),
            Self::Busy(busy) => {
                let (writer, buffer, result) = busy.await.map_err(S3Error::internal_error)?;
                result.map_err(|error| from_store(&error))?;
                Ok((writer, buffer))
            }
        }
    }
}
