//! Damaged sectors, on their way from where they are found to the node's trail: the day it began is what somebody will ask for.
//!
//! Invariants:
//! - Whoever reads a sector waits for no trail: what is found goes to a thread, and is counted where that does not keep up.
//! - A disk that is going cannot fill the trail: a sector is in it once an hour, with how often it was found since, and no more
//!   than so many sectors an hour, with how many there were beside them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use pool::{DamageHook, FoundDamage};
use serde_json::Value;
use units::{ByteOffset, PoolId, VolumeId};

use crate::node::Node;

/// Findings that may wait for the thread.
const WAITING_MAX: usize = 1024;
/// How long one entry stands for a sector.
const HOUR: Duration = Duration::from_secs(3600);
/// Sectors that the trail names in that time.
const NAMED_MAX: usize = 1000;

/// Where a sector is: in a volume, or, where a scrub found one that nobody shows any more, on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Shown { volume: VolumeId, sector: u64 },
    Unshown { at: ByteOffset },
}

#[derive(Debug)]
struct Found {
    pool: PoolId,
    place: Place,
    fault: String,
}

/// Findings that nobody has looked at yet.
#[derive(Debug)]
pub(crate) struct Findings {
    waiting: Receiver<Found>,
    /// For which there was no room.
    missed: Arc<AtomicU64>,
}

/// What pools call, and what comes of it.
pub(crate) fn findings() -> (DamageHook, Findings) {
    let (found, waiting): (SyncSender<Found>, _) = sync_channel(WAITING_MAX);
    let missed = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&missed);
    let hook: DamageHook = Arc::new(move |damage: &FoundDamage<'_>| {
        let shown =
            damage.shown_by.iter().map(|(volume, sector)| Place::Shown { volume: *volume, sector: sector.0 });
        let unshown = damage.at.filter(|_| damage.shown_by.is_empty()).map(|at| Place::Unshown { at });
        for place in shown.chain(unshown) {
            let one = Found { pool: damage.pool, place, fault: damage.fault.to_string() };
            if let Err(TrySendError::Full(_)) = found.try_send(one) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    (hook, Findings { waiting, missed })
}

impl Findings {
    /// Starts the thread that writes them down, as long as the node is there.
    pub(crate) fn start(self, node: &Arc<Node>) -> std::io::Result<()> {
        let heart = node.heartbeats.worker("damage");
        let node = Arc::downgrade(node);
        std::thread::Builder::new().name("damage".to_owned()).spawn(move || {
            let mut sightings = Sightings::new(Instant::now());
            loop {
                heart.beat(HOUR);
                let found = match self.waiting.recv_timeout(HOUR) {
                    Ok(found) => Some(found),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                let Some(node) = node.upgrade() else { return };
                let now = Instant::now();
                sightings.unnamed += self.missed.swap(0, Ordering::Relaxed);
                if let Some(unnamed) = sightings.next_hour(now) {
                    node.trail.note("damaged-unnamed", [("found", unnamed.into())]);
                }
                if let Some(Found { pool, place, fault }) = found
                    && let Some(times) = sightings.see((pool, place))
                {
                    let (volume, sector, device_offset): (Value, Value, Value) = match place {
                        Place::Shown { volume, sector } => {
                            (volume.to_string().into(), sector.into(), Value::Null)
                        }
                        Place::Unshown { at } => (Value::Null, Value::Null, at.0.into()),
                    };
                    let fields = [
                        ("pool", pool.to_string().into()),
                        ("volume", volume),
                        ("sector", sector),
                        ("device_offset", device_offset),
                        ("fault", fault.into()),
                        ("found", times.into()),
                    ];
                    node.trail.note("damaged", fields);
                }
            }
        })?;
        Ok(())
    }
}

/// What is in the trail already.
#[derive(Debug)]
struct Sightings {
    hour: Instant,
    /// Sectors that were named this hour, and how often each was found since.
    named: BTreeMap<(PoolId, Place), u64>,
    /// The same of the hour before: an entry says how often its sector was found since the last.
    before: BTreeMap<(PoolId, Place), u64>,
    /// Findings that no entry is about.
    unnamed: u64,
}

impl Sightings {
    fn new(now: Instant) -> Self {
        Self { hour: now, named: BTreeMap::new(), before: BTreeMap::new(), unnamed: 0 }
    }

    /// Where an hour is over, how many findings of it no entry was about.
    fn next_hour(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.hour) < HOUR {
            return None;
        }
        self.hour = now;
        self.before = std::mem::take(&mut self.named);
        let unnamed = std::mem::take(&mut self.unnamed);
        (unnamed > 0).then_some(unnamed)
    }

    /// A sector was found damaged: how often since its last entry, if it is to have one now.
    fn see(&mut self, sector: (PoolId, Place)) -> Option<u64> {
        if let Some(again) = self.named.get_mut(&sector) {
            *again += 1;
            return None;
        }
        if self.named.len() >= NAMED_MAX {
            self.unnamed += 1;
            return None;
        }
        self.named.insert(sector, 0);
        Some(1 + self.before.remove(&sector).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use units::Lba;

    use super::*;

    const POOL: PoolId = PoolId([1; 16]);
    const VOLUME: VolumeId = VolumeId([2; 16]);

    fn sector(sector: u64) -> (PoolId, Place) {
        (POOL, Place::Shown { volume: VOLUME, sector })
    }

    #[test]
    fn a_sector_is_named_once_an_hour_with_how_often_it_was_found() {
        let start = Instant::now();
        let mut sightings = Sightings::new(start);
        assert_eq!(sightings.see(sector(1)), Some(1));
        (0..4).for_each(|_| assert_eq!(sightings.see(sector(1)), None));
        assert_eq!(sightings.see(sector(2)), Some(1));
        assert_eq!(sightings.next_hour(start + HOUR - Duration::from_secs(1)), None);
        assert_eq!(sightings.see(sector(1)), None);
        assert_eq!(sightings.next_hour(start + HOUR), None);
        assert_eq!(sightings.see(sector(1)), Some(6), "five again, and this one");
        assert_eq!(sightings.see(sector(2)), Some(1));
    }

    #[test]
    fn a_disk_that_is_going_fills_no_trail() {
        let start = Instant::now();
        let mut sightings = Sightings::new(start);
        let named = (0..5 * NAMED_MAX as u64).filter(|nth| sightings.see(sector(*nth)).is_some()).count();
        assert_eq!(named, NAMED_MAX);
        assert_eq!(sightings.next_hour(start + HOUR), Some(4 * NAMED_MAX as u64));
        assert_eq!(sightings.next_hour(start + HOUR), None);
    }

    #[test]
    fn whoever_finds_more_than_can_wait_does_not_wait() {
        let (hook, findings) = findings();
        let shown_by = [(VOLUME, Lba(1)), (VolumeId([3; 16]), Lba(1))];
        let damage = FoundDamage { pool: POOL, at: None, shown_by: &shown_by, fault: &"rot" };
        (0..WAITING_MAX).for_each(|_| hook(&damage));
        assert_eq!(findings.missed.load(Ordering::Relaxed), WAITING_MAX as u64);
        assert_eq!(findings.waiting.try_iter().count(), WAITING_MAX);
        hook(&FoundDamage { at: Some(ByteOffset(4096)), shown_by: &[], ..damage });
        let found = findings.waiting.recv().unwrap();
        assert_eq!(found.place, Place::Unshown { at: ByteOffset(4096) });
    }
}
