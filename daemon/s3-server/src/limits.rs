//! Every limit of the S3 head, with the reason for its number. Those of the protocol are `objects::limits`.

use std::time::Duration;

/// Connections at once: ten thousand clients that keep theirs, and room. Each costs a file descriptor and some KiB, some more under TLS;
/// bodies are limited by [`BODY_BYTES_MAX`].
pub const CONNECTIONS_MAX: usize = 12_000;

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

/// Slowest average of a request body in bytes a second, once it has had [`BODY_STALL_TIMEOUT`]: no line is slower, and a client that sends a
/// byte now and then would keep its place for days. Only the time counts in which the node waits for the client.
pub const BODY_RATE_MIN: u64 = 1024;

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

/// Documents that are gathered from requests, and pages of listings, in memory at once: two of the longest documents, or four of the
/// longest pages. Not part of [`BODY_BYTES_MAX`]: bodies may take as long as they keep coming, and nobody could list meanwhile.
pub const DOCUMENTS_BYTES_MAX: usize = 32 << 20;

/// An entry of a listing while it is made: its row with the longest key, the same encoded, and the XML around it. Of a page, this much is
/// set aside for each entry out of [`DOCUMENTS_BYTES_MAX`] until it is known how long the page is.
pub const LISTED_BYTES: usize = 8 * 1024;

/// Copies within the store at the same time.
pub const COPIES_MAX: usize = 4;

/// Bodies up to this size are gathered first and stored in one step.
pub const SMALL_BODY_BYTES: usize = 256 * 1024;

/// A file in a browser's form, which is held in memory until the form's policy has been compared with it.
pub const FORM_FILE_BYTES_MAX: u64 = 16 << 20;

/// All fields of a form before the file, and one of them: a policy, at most as long as a bucket's, in base64, and the metadata
/// that an object may have. They are in memory before anybody is asked for rights.
pub const FORM_FIELDS_BYTES_MAX: usize = 64 * 1024;
/// See [`FORM_FIELDS_BYTES_MAX`].
pub const FORM_FIELD_BYTES_MAX: usize = 32 * 1024;

/// A form is handed on in pieces of this size: the protocol code counts whole pieces against the limit of the fields, the beginning of
/// the file included.
pub const FORM_PIECE_BYTES: usize = 8 * 1024;

/// Fields of a form: S3's own, and some dozens of metadata.
pub const FORM_PARTS_MAX: usize = 100;

/// Forms at the same time, for the same reason.
pub const FORMS_MAX: usize = 2;

/// XML in a request: DeleteObjects with 1,000 keys of 1,024 bytes, every one written as `&amp;`, and the tags around them.
pub const XML_BYTES_MAX: usize = 8 << 20;

/// The list that completes an upload: 10,000 parts with number, entity tag and a SHA-256, and the tags around them.
pub const PARTS_XML_BYTES_MAX: usize = 4 << 20;

/// A lifecycle of 1,000 rules: what the store keeps of one, and as much again for spaces and line ends.
pub const LIFECYCLE_XML_BYTES_MAX: usize = 1 << 20;

/// 100 notification configurations, each with a prefix and a suffix of 1,024 bytes.
pub const NOTIFICATION_XML_BYTES_MAX: usize = 512 * 1024;

/// Any other document in a request: S3's longest are CORS rules (64 KiB); a list of 100 grants, or a policy, has half of that.
pub const DOCUMENT_XML_BYTES_MAX: usize = 64 * 1024;

/// Time for the whole of a body that is gathered before its operation begins: [`XML_BYTES_MAX`] at 1.2 Mbit/s.
pub const GATHER_TIMEOUT: Duration = Duration::from_secs(60);

/// Time for the whole of a form: [`FORM_FILE_BYTES_MAX`] at 1.2 Mbit/s. There are few places for forms.
pub const FORM_TIMEOUT: Duration = Duration::from_secs(120);

/// A chunk of an `aws-chunked` body whose signature covers it must be held until it is checked. Clients use 64 KiB to 1
/// MiB.
pub const SIGNED_CHUNK_BYTES_MAX: u64 = 16 << 20;

/// Unsigned chunks are handed on in pieces of this size, however long the client makes them.
pub const UNSIGNED_PIECE_BYTES: u64 = 128 * 1024;

/// Line that begins an `aws-chunked` chunk.
pub const CHUNK_LINE_BYTES_MAX: usize = 1_024;

/// Longest validity of a presigned URL (S3: seven days).
pub const PRESIGNED_SECONDS_MAX: i64 = 7 * 24 * 3600;

/// Addresses, and access keys, whose requests are counted where there is a limit: some tens of bytes each.
pub const RATES_TRACKED_MAX: usize = 10_000;

/// Access keys, and buckets, of which it is remembered what decides about their requests: some KiB each, mostly.
pub const KNOWN_MAX: usize = 1_024;

/// Bytes that the remembered ones of either kind were read from. Parsed they take a few times as many.
pub const KNOWN_BYTES_MAX: usize = 4 << 20;

/// Lines of access logs that wait for their delivery, in all: a few tens of thousands.
pub const LOG_BYTES_MAX: usize = 8 << 20;

/// So many bytes of lines are delivered at once, however short the time since the last delivery.
pub const LOG_DELIVERY_BYTES: usize = 2 << 20;

/// Longest log object.
pub const LOG_OBJECT_BYTES_MAX: usize = 1 << 20;

/// Longest field of a line of an access log: what a client sends of a URL or of itself may be as long as a request's head.
pub const LOG_FIELD_BYTES_MAX: usize = 4096;

/// Time for the last delivery of access logs when the node stops.
pub const LOG_LAST_DELIVERY_TIMEOUT: Duration = Duration::from_secs(2);

/// Notification configurations of a bucket (S3).
pub const NOTIFICATION_RULES_MAX: usize = 100;

/// Messages to a webhook that are read at once, and settled in one commit.
pub const WEBHOOK_BATCH: usize = 64;

/// How often it is looked whether there is a message: a counter in memory.
pub const WEBHOOK_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Longest time between two attempts.
pub const WEBHOOK_RETRY_MAX: Duration = Duration::from_secs(300);

/// So often a receiver that is there refuses an event before it is a dead letter: those behind it wait for a quarter of a minute.
pub const WEBHOOK_REFUSALS_MAX: u32 = 5;

/// Shortest secret: Standard Webhooks wants 24 to 64 bytes.
pub const WEBHOOK_SECRET_BYTES_MIN: usize = 24;

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
