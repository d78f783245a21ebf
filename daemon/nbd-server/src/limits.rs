//! Every limit of the NBD head, each with the reason for its number.
//!
//! Invariant: no length, count or duration that a client can name is used before it was held against one of these.

use std::time::Duration;

/// Smallest block that is advertised. Disks and file systems speak 512-byte sectors, and no client that the head was
/// tried with sends less. Requests of any alignment are served all the same: a client that never asked for block
/// sizes may assume 1.
pub const BLOCK_BYTES_MIN: u32 = 512;

/// The block size that avoids read-modify-write: the sector that is encrypted as one unit.
pub const BLOCK_BYTES_PREFERRED: u32 = 4096;

/// Longest payload of one read or write: 32 MiB, the length that the protocol obliges a server to carry and the most
/// that common clients send.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// Longest data of one option: 64 KiB holds a 4 KiB name (the protocol's limit for strings) and a thousand queries.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;

/// Options one client may send before it must have chosen an export: the most talkative client seen sends 8, and a
/// tool that walks a list of exports sends two for each.
pub const OPTIONS_MAX: u32 = 128;

/// Longest export name, the protocol's limit for strings.
pub const LABEL_BYTES_MAX: usize = 4096;

/// Metadata contexts that one connection may select: a backup compares with one snapshot or two. One more is refused.
pub const CONTEXTS_MAX: usize = 16;

/// Clients that an export's access may name, and addresses: each is looked at when a client asks for an export.
pub const ACCESS_CLIENTS_MAX: usize = 64;
/// See [`ACCESS_CLIENTS_MAX`].
pub const ACCESS_ADDRESSES_MAX: usize = 64;

/// Descriptors in one block status reply, shared by the contexts that are asked for: 128 KiB of reply at most. The protocol lets
/// a client ask again for the rest.
pub const STATUS_DESCRIPTORS_MAX: usize = 8192;

/// Bytes of one descriptor, of 64 bits, and of what comes of it in a reply.
pub const STATUS_DESCRIPTOR_BYTES: u32 = 2 * 16;

/// Bytes that a block status takes of its connection's budget while it is made and until its reply has left.
pub const STATUS_BYTES_HELD: u32 = 8192 * STATUS_DESCRIPTOR_BYTES;
const _: () = assert!(STATUS_DESCRIPTORS_MAX == 8192);

/// Bytes whose presence is looked up in the first step while a block status is put together: 64 MiB of 4 KiB sectors are at most 16,384
/// runs.
pub const STATUS_WINDOW_BYTES_MIN: u64 = 64 << 20;

/// The same in a later step: each step over few runs is followed by one over twice as much.
pub const STATUS_WINDOW_BYTES_MAX: u64 = 1 << 30;

/// Runs up to which a step was one over few.
pub const STATUS_RUNS_FEW: usize = 1024;

/// Runs that one block status looks at, shared by the contexts that are asked for: runs of the same state are one descriptor, so that
/// a reply may be short and its making long. Some milliseconds; the protocol lets a client ask again for the rest.
pub const STATUS_RUNS_MAX: usize = 65_536;

/// Bytes over which one block status looks at most: 256 GiB, 256 steps. With lengths of 64 bits a client may ask for
/// all of a volume; the protocol lets it ask again for the rest.
pub const STATUS_BYTES_MAX: u64 = 256 << 30;

/// Longest run of zeroes that is written out in one request: 4 GiB, what compact headers can ask for.
pub const SEALED_ZEROES_BYTES_MAX: u64 = 4 << 30;

/// Zeroes that are written out in one turn: 16 MiB, some dozens of milliseconds. Then the request stands at the end of its
/// connection's queue again, and others have their turn.
pub const SEALED_ZEROES_STEP_BYTES: u64 = 16 << 20;

/// Longest message in an error reply. They are fixed texts; the protocol allows 4096.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 256;

/// Bytes read ahead of the request that is being parsed: seven 4 KiB writes in one system call, while most of a long
/// payload still goes straight into its own buffer.
pub const READ_AHEAD_BYTES: usize = 32 << 10;

/// The same of a connection under TLS, as it comes from the socket: a 64 KiB write in two system calls.
pub const TLS_READ_AHEAD_BYTES: usize = 64 << 10;

/// An operation that is likely to take no longer is carried out by the thread that read its request: less than waking
/// another thread and having it scheduled costs on a busy machine, and far less than any disk takes.
pub const QUICK_OPERATION_MAX: Duration = Duration::from_micros(60);

/// Longest payload of an operation that the reading thread carries out itself: a longer one is worth a thread of its own.
pub const QUICK_PAYLOAD_BYTES_MAX: u32 = 256 << 10;

/// How long such an operation may take before another thread reads on in its place: the longest that it holds up other
/// requests of its connection, twice at most.
pub const TAKE_OVER_TIME: Duration = Duration::from_millis(4);

/// Replies that may wait for the next requests, which have arrived already, so that all leave in one system call.
pub const REPLIES_HELD_BACK_MAX: usize = 16;

/// Longest payload of a reply that may wait.
pub const HELD_BACK_PAYLOAD_BYTES_MAX: u32 = 16 << 10;

/// Bytes of payload buffers that an export with connections keeps for the next requests: 16 MiB, a queue of 16 at 1 MiB.
pub const BUFFERS_KEPT_BYTES_MAX: usize = 16 << 20;

/// At most one line about slow operations of an export in this time; it says how many were left out.
pub const SLOW_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Bytes by which a payload that is not wanted is read and dropped.
pub const DISCARD_STEP_BYTES: usize = 64 << 10;

/// Replies that one system call may carry: two slices each stay well under the kernel's 1024.
pub const REPLIES_PER_WRITE_MAX: usize = 64;

/// How long `on-seal = fail` answers requests on connections from before the seal. Then they close too: a wipe leaves nothing of
/// them in memory after a second.
pub const SEAL_ANSWER_TIME: Duration = Duration::from_millis(500);

/// What an operator may set; the defaults carry their reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, negotiating ones included. 128 clients, or 32 that use four connections each. One more is
    /// closed as soon as it is accepted.
    pub connections_max: usize,
    /// Bytes of payload in flight on one connection, read or to be written, until the reply has left. 64 MiB is two
    /// requests of the longest kind, or a queue of 256 at 256 KiB. A connection at its limit is not read from.
    pub bytes_in_flight_max: u32,
    /// Requests in flight on one connection. 256 is twice the deepest queue of common clients.
    pub requests_in_flight_max: usize,
    /// Operations that are inside volumes at once, all connections together, beyond the one that every export is
    /// always allowed: each holds one blocking thread of the runtime. 64 keep an NVMe device busy and leave most of
    /// the runtime's 512 threads to the other heads.
    pub operations_max: usize,
    /// From accept to the start of transmission, TLS included. Longer than a loaded client over a bad line needs,
    /// short enough that sitting on connections is no attack.
    pub negotiation_time_max: Duration,
    /// How long a client that disconnected may take to read the answers that it is still owed, at most twice that.
    /// Not counted while operations are still running.
    pub linger_time_max: Duration,
    /// An operation that takes this long from its arrival to its answer is counted as slow and named in the log. A second:
    /// clients begin to complain, and no healthy disk takes it.
    pub slow_operation: Duration,
    /// [`SEAL_ANSWER_TIME`], and no more where it counts that a wipe leaves nothing: longer for tests of what is answered.
    pub seal_answer_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 128,
            bytes_in_flight_max: 2 * PAYLOAD_BYTES_MAX,
            requests_in_flight_max: 256,
            operations_max: 64,
            negotiation_time_max: Duration::from_secs(15),
            linger_time_max: Duration::from_secs(30),
            slow_operation: Duration::from_secs(1),
            seal_answer_time: SEAL_ANSWER_TIME,
        }
    }
}
