//! Every bound of the lease protocol, with the reason for its number.

/// Version of the wire format and of the transcript. It is the first byte of every frame.
pub const PROTOCOL_VERSION: u8 = 6;

/// Longest frame after its length prefix: evidence of [`VOLUMES_MAX`] volumes, all held, with room to spare.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Volumes that a node may report and keys that it may hold; the number of keys an arena must be able to lend.
pub const VOLUMES_MAX: usize = 4096;

/// Epochs of one volume whose keys a node may hold: a rotation is over before the next begins, but for what snapshots keep.
pub const EPOCHS_MAX: usize = 16;

/// Volumes of which one challenge tells what lies under which epoch: a node with more tells of the others with the next ones, so that
/// what is sent every few seconds stays small.
pub const EPOCH_REPORTS_MAX: usize = 256;

/// Pools whose states a message may carry.
pub const POOLS_MAX: usize = 256;

/// Longest volume label, keyholder name: a DNS label's worth of bytes and some.
pub const NAME_BYTES_MAX: usize = 128;

/// Longest hygiene report (JSON).
pub const HYGIENE_BYTES_MAX: usize = 16 * 1024;

/// Longest certificate of a TPM's endorsement key: that of a P-256 key has about 1 KiB.
pub const CERTIFICATE_BYTES_MAX: usize = 4096;

/// Longest structure of a TPM (a public key, a quote, a signature, a credential): they have at most some 150 bytes.
pub const TPM_BYTES_MAX: usize = 512;

/// Longest log of the firmware. One of a server has 20 to 80 KiB; a longer one is left out.
pub const EVENT_LOG_BYTES_MAX: usize = 256 * 1024;

/// Registers that a quote may be over.
pub const REGISTERS_MAX: usize = 24;

/// Wipes of one start of the machine that a quote is told with: one a day for years. Past them it has to be started again.
pub const WIPES_MAX: usize = 1024;

/// Longest word on why there is no quote.
pub const FAILURE_BYTES_MAX: usize = 256;

/// Shortest lease that may be granted. Below a second, scheduling and one lost packet would seal a healthy node.
pub const LEASE_MS_MIN: u64 = 1_000;

/// Longest lease that may be granted: a day. A box that was carried away forgets within it.
pub const LEASE_MS_MAX: u64 = 24 * 60 * 60 * 1_000;

/// How much faster one machine's CLOCK_BOOTTIME may run than another's, in parts per million. Quartz is good for
/// 100, a clock that is being slewed by NTP for 500; the rest is margin.
pub const DRIFT_PPM: u64 = 1_000;

/// Renewal challenges that stay answerable. More than a few in flight means that the answers are late anyway.
pub const CHALLENGES_OUTSTANDING_MAX: usize = 8;

/// Grant ids that a node remembers to recognise a replay by. The fence refuses an older one regardless.
pub const GRANTS_REMEMBERED_MAX: usize = 8192;

/// A node asks for renewal this many times in each lease.
pub const CHALLENGES_PER_LEASE: u64 = 3;

/// Shortest time between two challenges.
pub const CHALLENGE_INTERVAL_MS_MIN: u64 = 200;

/// Longest time between two challenges, and the interval while no key is held: they show that the session lives.
pub const CHALLENGE_INTERVAL_MS_MAX: u64 = 5_000;

/// A session on which the peer has been silent for so long is closed by either side.
pub const SILENCE_MS_MAX: u64 = 20_000;

/// Time that a peer has for the opening exchange.
pub const HANDSHAKE_MS_MAX: u64 = 10_000;

/// The time that a lease of `lease_ms` may last by another machine's clock: `lease_ms × (1 + drift)`, rounded up.
pub const fn lease_with_drift_ms(lease_ms: u64) -> u64 {
    lease_ms.saturating_add(lease_ms.saturating_mul(DRIFT_PPM).div_ceil(1_000_000))
}

/// Size of a volume that is a named key: one of kind `objects` with a single sector, where no object store fits and none is
/// looked for. It holds nothing; its key, lent and taken back as any volume's, encrypts the keys of objects.
pub const NAMED_KEY_BYTES: u64 = units::SECTOR_BYTES as u64;

/// How often a node that holds a lease of `lease_ms` sends a challenge.
pub const fn challenge_interval_ms(lease_ms: u64) -> u64 {
    let interval = lease_ms / CHALLENGES_PER_LEASE;
    if interval < CHALLENGE_INTERVAL_MS_MIN {
        CHALLENGE_INTERVAL_MS_MIN
    } else if interval > CHALLENGE_INTERVAL_MS_MAX {
        CHALLENGE_INTERVAL_MS_MAX
    } else {
        interval
    }
}

// Four challenges' silence must fit before a session is given up, or a healthy one could be closed.
const _: () = assert!(SILENCE_MS_MAX >= 4 * CHALLENGE_INTERVAL_MS_MAX);
const _: () = assert!(LEASE_MS_MIN / CHALLENGES_PER_LEASE >= CHALLENGE_INTERVAL_MS_MIN);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_only_ever_lengthens_what_the_keyholder_waits() {
        assert_eq!(lease_with_drift_ms(1_000), 1_001);
        assert_eq!(lease_with_drift_ms(1), 2);
        assert_eq!(lease_with_drift_ms(LEASE_MS_MAX), 86_486_400);
        assert_eq!(lease_with_drift_ms(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_lease_is_renewed_three_times_in_its_length_within_bounds() {
        assert_eq!(challenge_interval_ms(LEASE_MS_MIN), 333);
        assert_eq!(challenge_interval_ms(6_000), 2_000);
        assert_eq!(challenge_interval_ms(LEASE_MS_MAX), CHALLENGE_INTERVAL_MS_MAX);
        assert_eq!(challenge_interval_ms(0), CHALLENGE_INTERVAL_MS_MIN);
    }
}
