//! How fast a volume may be used, whatever the device could do.

use std::time::{Duration, Instant};

use units::ByteLen;

/// What may be saved up while nobody asks: a tenth of a second's worth.
const BURST: Duration = Duration::from_millis(100);

/// Most requests and bytes a second, of all clients together. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ceilings {
    pub requests_per_s: Option<u32>,
    /// In whole KiB, rounded up.
    pub bytes_per_s: Option<ByteLen>,
}

impl Ceilings {
    /// Requests, then KiB; zero is none.
    pub(crate) fn from_disk(encoded: u64) -> Self {
        let [r0, r1, r2, r3, k0, k1, k2, k3] = encoded.to_le_bytes();
        let (requests, kib) = (u32::from_le_bytes([r0, r1, r2, r3]), u32::from_le_bytes([k0, k1, k2, k3]));
        Self {
            requests_per_s: (requests != 0).then_some(requests),
            bytes_per_s: (kib != 0).then_some(ByteLen(u64::from(kib) << 10)),
        }
    }

    pub(crate) fn to_disk(self) -> u64 {
        let kib = self.bytes_per_s.map_or(0, |bytes| bytes.0.div_ceil(1 << 10));
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        u64::from(self.requests_per_s.unwrap_or(0)) | u64::from(kib) << 32
    }
}

/// When the next request and the next byte have their turn. Requests get theirs in the order in which they ask.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    request: Option<Instant>,
    byte: Option<Instant>,
}

impl Pace {
    /// How long a request of so many bytes must wait. Its turn is taken.
    pub(crate) fn take_turn(&mut self, ceilings: Ceilings, bytes: ByteLen, now: Instant) -> Duration {
        let requests = turn(&mut self.request, ceilings.requests_per_s.map(u64::from), 1, now);
        requests.max(turn(&mut self.byte, ceilings.bytes_per_s.map(|bytes| bytes.0), bytes.0, now))
    }
}

fn turn(next: &mut Option<Instant>, per_s: Option<u64>, amount: u64, now: Instant) -> Duration {
    let Some(per_s) = per_s.filter(|per_s| *per_s > 0) else {
        *next = None;
        return Duration::ZERO;
    };
    let saved_up = now.checked_sub(BURST).unwrap_or(now);
    let turn = next.map_or(saved_up, |next| next.max(saved_up));
    let nanos = u128::from(amount) * 1_000_000_000 / u128::from(per_s);
    *next = turn.checked_add(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
    turn.saturating_duration_since(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The moments at which requests of `bytes` that all ask at once have their turn.
    fn turns(ceilings: Ceilings, bytes: u64, count: usize) -> Vec<Duration> {
        let (mut pace, now) = (Pace::default(), Instant::now());
        (0..count).map(|_| pace.take_turn(ceilings, ByteLen(bytes), now)).collect()
    }

    #[test]
    fn requests_are_spaced_once_the_burst_is_used_up() {
        let ceilings = Ceilings { requests_per_s: Some(1000), bytes_per_s: None };
        let turns = turns(ceilings, 1 << 20, 1101);
        assert!(turns[..100].iter().all(Duration::is_zero));
        assert_eq!((turns[101], turns[1100]), (Duration::from_millis(1), Duration::from_millis(1000)));
    }

    #[test]
    fn bytes_bind_where_they_are_what_there_is_too_much_of() {
        let ceilings = Ceilings { requests_per_s: Some(1000), bytes_per_s: Some(ByteLen(10 << 20)) };
        let turns = turns(ceilings, 1 << 20, 12);
        // The first two begin before what was saved up is gone.
        assert!(turns[..2].iter().all(Duration::is_zero));
        assert_eq!((turns[2], turns[11]), (Duration::from_millis(100), Duration::from_millis(1000)));
    }

    #[test]
    fn nothing_more_than_the_burst_is_saved_up_and_no_ceiling_is_no_wait() {
        let ceilings = Ceilings { requests_per_s: Some(100), bytes_per_s: None };
        let (mut pace, start) = (Pace::default(), Instant::now());
        let later = start + Duration::from_secs(3600);
        pace.take_turn(ceilings, ByteLen(0), start);
        let free = (0..50).filter(|_| pace.take_turn(ceilings, ByteLen(0), later).is_zero()).count();
        assert_eq!(free, 11);
        assert_eq!(pace.take_turn(Ceilings::default(), ByteLen(u64::MAX), later), Duration::ZERO);
    }

    #[test]
    fn the_disk_has_whole_kib_and_zero_for_none() {
        for ceilings in [
            Ceilings::default(),
            Ceilings { requests_per_s: Some(7), bytes_per_s: None },
            Ceilings {
                requests_per_s: Some(u32::MAX),
                bytes_per_s: Some(ByteLen(u64::from(u32::MAX) << 10)),
            },
        ] {
            assert_eq!(Ceilings::from_disk(ceilings.to_disk()), ceilings);
        }
        let odd = Ceilings { requests_per_s: None, bytes_per_s: Some(ByteLen(1025)) };
        assert_eq!(Ceilings::from_disk(odd.to_disk()).bytes_per_s, Some(ByteLen(2048)));
    }
}
