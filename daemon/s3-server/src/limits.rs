//! Every limit of the S3 head, with the reason for its number. Those of the protocol are `objects::limits`.

use std::time::Duration;

/// Connections at once. Each costs a file descriptor and some tens of KiB; bodies are limited by [`BODY_BYTES_MAX`].
pub const CONNECTIONS_MAX: usize = 1_024;

/// Time for a TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time from a connection's being idle to the end of the next request head: also the keep-alive time. Longer than the
/// 60 s that most clients and proxies keep an idle connection, so that the client is the one who closes.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// Read buffer of an HTTP/1 connection, and so the longest request head: the longest key, percent-encoded (3 KiB),
/// signature, and 8 KiB of metadata, several times over; a body is read in pieces of up to this.
pub const CONNECTION_BUFFER_BYTES: usize = 128 * 1024;

/// Fields of an HTTP/2 request head.
pub const HEAD_LIST_BYTES_MAX: u32 = 64 * 1024;

/// What an HTTP/2 client may send ahead on a stream, and on a connection, before anybody reads it.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// See [`STREAM_WINDOW_BYTES`].
pub const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Header fields of a request.
pub const HEAD_FIELDS_MAX: usize = 128;

/// Streams of one HTTP/2 connection.
pub const STREAMS_MAX: u32 = 128;

/// Time between two pieces of a request body.
pub const BODY_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Time in which a client must take something of a response body.
pub const RESPONSE_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of bodies in memory at once, over all connections: what is above waits. A fifth of the 256 MiB that the node may
/// take; the rest is index cache, what sealing needs, connections and slack.
pub const BODY_BYTES_MAX: usize = 48 << 20;

/// Part of [`BODY_BYTES_MAX`] that only bodies in small chunks may use: so a few dozen clients that move large bodies, or
/// move them slowly, don't keep all others waiting.
pub const BODY_BYTES_FOR_SMALL_CHUNKS: usize = 16 << 20;

/// What is read from or written to the store at a time: large enough that changing to a thread that may block is cheap
/// against sealing and hashing.
pub const CHUNK_BYTES: usize = 512 * 1024;

/// The same when memory is short.
pub const SMALL_CHUNK_BYTES: usize = 64 * 1024;

/// Chunks being hashed, sealed, written or read at the same time: enough to keep a few cores and a deep device queue busy,
/// and a bound on the memory of the threads that do it.
pub const CHUNK_WORKERS_MAX: usize = 16;

/// Copies within the store at the same time.
pub const COPIES_MAX: usize = 4;

/// Bodies up to this size are gathered first and stored in one step.
pub const SMALL_BODY_BYTES: usize = 256 * 1024;

/// A file in a browser's form, which is held in memory until the form's policy has been compared with it.
pub const FORM_FILE_BYTES_MAX: u64 = 16 << 20;

/// Forms at the same time, for the same reason.
pub const FORMS_MAX: usize = 2;

/// XML in a request: DeleteObjects with 1,000 keys of 1,024 bytes, every one written as `&amp;`, and the tags around them.
pub const XML_BYTES_MAX: usize = 8 << 20;

/// A chunk of an `aws-chunked` body whose signature covers it must be held until it is checked. Clients use 64 KiB to 1
/// MiB.
pub const SIGNED_CHUNK_BYTES_MAX: u64 = 16 << 20;

/// Unsigned chunks are handed on in pieces of this size, however long the client makes them.
pub const UNSIGNED_PIECE_BYTES: u64 = 128 * 1024;

/// Line that begins an `aws-chunked` chunk.
pub const CHUNK_LINE_BYTES_MAX: usize = 1_024;

/// Longest validity of a presigned URL (S3: seven days).
pub const PRESIGNED_SECONDS_MAX: i64 = 7 * 24 * 3600;

/// Difference between the clocks of client and node.
pub const CLOCK_SKEW_SECONDS_MAX: u32 = 15 * 60;

/// What is still read of a request body after its request failed, so that the client gets to see why.
pub const DRAIN_BYTES_MAX: usize = 16 << 20;

/// Time for the same.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What clients are told to wait when the node is sealed.
pub const RETRY_AFTER_SECONDS: u32 = 5;

/// Time for the answers in flight to say so after the node was sealed; then every connection from before is closed, and what it
/// had in memory is dropped. Well under the second that a wipe may take in all.
pub const SEAL_GRACE: Duration = Duration::from_millis(300);

/// How often a connection is looked at for being idle or stalled.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(5);
