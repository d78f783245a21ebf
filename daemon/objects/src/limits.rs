//! Every limit of the store, with the reason for its number. S3's own limits are those of the Amazon S3 User Guide,
//! "Amazon S3 objects", "Multipart upload limits" and "Bucket naming rules".

use units::ByteLen;

/// Longest object key in bytes of UTF-8 (S3).
pub const KEY_BYTES_MAX: usize = 1024;

/// Shortest and longest bucket name in bytes (S3).
pub const BUCKET_NAME_BYTES: std::ops::RangeInclusive<usize> = 3..=63;

/// Buckets in a store: ten times Amazon's default account quota. Listing them is one answer without pages.
pub const BUCKETS_MAX: u64 = 1_000;

/// Buckets of one user (Amazon's default quota of an account): nobody takes the places of all others.
pub const BUCKETS_PER_USER_MAX: usize = 100;

/// Sum of the bytes of all user metadata names and values of an object (S3).
pub const USER_METADATA_BYTES_MAX: usize = 2 * 1024;

/// Sum of the bytes of the standard headers kept with an object: what S3 leaves of its 8 KiB header budget.
pub const SYSTEM_METADATA_BYTES_MAX: usize = 6 * 1024;

/// Largest body of a single PUT, of a part, and of the source of a copy (S3).
pub const PUT_BYTES_MAX: u64 = 5 << 30;

/// Largest object (S3).
pub const OBJECT_BYTES_MAX: u64 = 5 << 40;

/// Smallest part but the last (S3).
pub const PART_BYTES_MIN: u64 = 5 << 20;

/// Highest part number (S3).
pub const PART_NUMBER_MAX: u16 = 10_000;

/// Entries in one page of any listing (S3).
pub const LIST_PAGE_MAX: usize = 1_000;

/// Keys in one DeleteObjects (S3).
pub const DELETE_KEYS_MAX: usize = 1_000;

/// Versions of a key that are looked at, within a commit, for the one that a completion made whose reply was lost: as many as can have
/// come in the time in which a client asks again. The id of an upload is the client's to make up, its time as well.
pub const LOST_REPLY_VERSIONS_MAX: usize = 100;

/// Longest delimiter: a key can't contain a longer one.
pub const DELIMITER_BYTES_MAX: usize = KEY_BYTES_MAX;

/// Tags of an object (S3).
pub const TAGS_MAX: usize = 10;

/// Tags of a bucket (S3).
pub const BUCKET_TAGS_MAX: usize = 50;

/// Longest name of a tag in characters (S3).
pub const TAG_NAME_CHARS_MAX: usize = 128;

/// Longest value of a tag in characters (S3).
pub const TAG_VALUE_CHARS_MAX: usize = 256;

/// Lines of an access control list (S3).
pub const GRANTS_MAX: usize = 100;

/// Longest default retention: a hundred years, as S3 has it.
pub const RETENTION_DAYS_MAX: u32 = 36_500;

/// Longest document that configures a bucket: S3's longest lifecycle has 1,000 rules, which fit.
pub const DOCUMENT_BYTES_MAX: usize = 512 * 1024;

/// Bodies up to this size live in the index row: a PUT then costs no data write at all, and a row of 1 KiB still lets
/// two objects share a 4 KiB page.
pub const INLINE_BYTES_MAX: usize = 1024;

/// Longest run: 16 GiB of sectors fit the 32-bit count of a run with room to spare, and no S3 body is longer than 5 GiB.
pub const RUN_SECTORS_MAX: u64 = (16 << 30) / 4096;

/// What a body of known length takes from the allocator at a time: large enough that the longest body has a few dozen runs, and all that
/// a client holds who declares a long body and sends none.
pub const KNOWN_LENGTH_STEP: ByteLen = ByteLen(256 << 20);

/// What a body of unknown length takes from the allocator at a time; the unused tail goes back.
pub const UNKNOWN_LENGTH_STEP: ByteLen = ByteLen(16 << 20);

/// Mutations in one index commit. Enough that 32 clients share two flushes; few enough that a commit stays short.
pub const COMMIT_BATCH_MAX: usize = 256;

/// Bytes of index rows in one commit, so that a batch never needs more new pages than the reserve has.
pub const COMMIT_BATCH_BYTES_MAX: usize = 1 << 20;

/// Pages of the index kept clear in memory.
pub const INDEX_CACHE_BYTES: usize = 48 << 20;

/// Index size up to which a commit also saves the index's allocator state, so that opening after a crash reads none of
/// it. The state is about 1/16,384 of the index: beyond this size saving it at every commit would cost more than the
/// commit itself, and opening after a crash walks the index instead.
pub const QUICK_REPAIR_INDEX_BYTES_MAX: u64 = 4 << 30;

/// Names of keys that are remembered in memory after they were taken back: as many as a node may be lent keys.
pub const NAMED_KEYS_REMEMBERED_MAX: usize = 4096;

/// Longest name of a key: a volume's label.
pub const KEY_NAME_BYTES_MAX: usize = 64;

/// Users, and access keys of one user: people and services, not customers.
pub const USERS_MAX: usize = 10_000;
/// Access keys of one user: one in use, one being rotated in, and slack.
pub const ACCESS_KEYS_PER_USER_MAX: usize = 8;

/// Longest user name.
pub const USER_NAME_BYTES_MAX: usize = 64;

/// Groups, and policies, of a store: people write them by hand.
pub const GROUPS_MAX: usize = 1_000;
/// See [`GROUPS_MAX`].
pub const POLICIES_MAX: usize = 1_000;

/// Policies attached to one user or group, and groups of one user: each is read for a request, and read by people (AWS: 10).
pub const ATTACHED_MAX: usize = 10;

/// Longest policy (S3's bucket policies).
pub const POLICY_BYTES_MAX: usize = 20 * 1024;

/// Events that wait for their destinations, dead letters included, in all: some 100 MiB of index.
pub const EVENTS_MAX: u64 = 200_000;

/// Events of one destination that are kept however many those of others are: one that nobody empties takes no other's place, and
/// one that is emptied needs no more. A node has 16 at most, which makes as many again as [`EVENTS_MAX`].
pub const EVENTS_ENSURED: u64 = 10_000;

/// Events that one commit takes from one queue to another.
pub const EVENTS_MOVED_MAX: usize = 1_000;

/// Longest name of a group or a policy.
pub const IDENTITY_NAME_BYTES_MAX: usize = 64;

/// Smallest volume that a store fits on.
pub const VOLUME_BYTES_MIN: u64 = 16 << 20;
