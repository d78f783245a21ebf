//! Sector range locks: whoever reads shares, whoever writes is alone, and everybody waits in order of arrival.
//!
//! They make a sector atomic between calls: an overlapping or sub-sector write loses no other's update, and a reader
//! sees a sector from before or after a write, never a mixture of ciphertext blocks from both. A whole request holds
//! one range, so it never waits for a second one: no deadlock.
//!
//! The locks of a volume outlive any one grant: a write that was sealed before a wipe and is still on its way to the device
//! holds its range, so what a client sends again after the next push cannot be overtaken by it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use units::VolumeId;

/// The locks of one volume.
#[derive(Debug, Default)]
pub(crate) struct RangeLocks {
    queue: Mutex<Queue>,
    released: Condvar,
}

/// Requests that hold or want a range, oldest first. As many as a head lets in at once, so a scan is cheap.
#[derive(Debug, Default)]
struct Queue {
    next_ticket: u64,
    requests: Vec<Request>,
    /// How many wait: nobody is woken where nobody does.
    waiting: usize,
}

#[derive(Debug)]
struct Request {
    ticket: u64,
    sectors: Range<u64>,
    access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Shared,
    Exclusive,
}

impl Request {
    fn conflicts_with(&self, other: &Self) -> bool {
        let overlap = self.sectors.start < other.sectors.end && other.sectors.start < self.sectors.end;
        overlap && (self.access == Access::Exclusive || other.access == Access::Exclusive)
    }
}

impl Queue {
    /// Whether an older request stands in the way of `ticket`.
    fn must_wait(&self, ticket: u64) -> bool {
        let Some(mine) = self.requests.iter().position(|request| request.ticket == ticket) else {
            return false;
        };
        let (older, rest) = self.requests.split_at(mine);
        older.iter().any(|request| request.conflicts_with(&rest[0]))
    }
}

/// A held range.
#[derive(Debug)]
#[must_use = "a range is locked only as long as its guard lives"]
pub(crate) struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    ticket: u64,
}

impl RangeLocks {
    /// The locks of `volume`: the same for everyone in this process.
    pub(crate) fn of(volume: VolumeId) -> Arc<Self> {
        static VOLUMES: Mutex<Option<HashMap<VolumeId, Weak<RangeLocks>>>> = Mutex::new(None);
        let mut volumes = VOLUMES.lock().unwrap_or_else(PoisonError::into_inner);
        let volumes = volumes.get_or_insert_default();
        if let Some(locks) = volumes.get(&volume).and_then(Weak::upgrade) {
            return locks;
        }
        volumes.retain(|_, locks| locks.strong_count() > 0);
        let locks = Arc::new(Self::default());
        volumes.insert(volume, Arc::downgrade(&locks));
        locks
    }

    /// Waits until no older request overlaps `sectors` in conflict with `access`.
    pub(crate) fn lock(&self, sectors: Range<u64>, access: Access) -> RangeGuard<'_> {
        let mut queue = self.queue();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.requests.push(Request { ticket, sectors, access });
        if queue.must_wait(ticket) {
            queue.waiting += 1;
            let waited = self.released.wait_while(queue, |queue| queue.must_wait(ticket));
            waited.unwrap_or_else(PoisonError::into_inner).waiting -= 1;
        }
        RangeGuard { locks: self, ticket }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing in here can panic halfway through a change.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut queue = self.locks.queue();
        queue.requests.retain(|request| request.ticket != self.ticket);
        let anybody = queue.waiting > 0;
        drop(queue);
        if anybody {
            self.locks.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    fn would_wait(locks: &RangeLocks, sectors: Range<u64>, access: Access) -> bool {
        let mut queue = locks.queue();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.requests.push(Request { ticket, sectors, access });
        let waits = queue.must_wait(ticket);
        queue.requests.pop();
        waits
    }

    #[test]
    fn readers_share_and_writers_exclude_where_they_overlap() {
        let locks = RangeLocks::default();
        let reader = locks.lock(10..20, Access::Shared);
        assert!(!would_wait(&locks, 0..100, Access::Shared));
        assert!(would_wait(&locks, 19..20, Access::Exclusive));
        assert!(!would_wait(&locks, 20..30, Access::Exclusive));
        assert!(!would_wait(&locks, 0..10, Access::Exclusive));
        drop(reader);
        let writer = locks.lock(10..20, Access::Exclusive);
        assert!(would_wait(&locks, 0..11, Access::Shared));
        drop(writer);
        assert!(!would_wait(&locks, 0..100, Access::Exclusive));
    }

    #[test]
    fn a_waiting_writer_is_not_overtaken_by_later_readers() {
        let locks = RangeLocks::default();
        let _reader = locks.lock(0..10, Access::Shared);
        let mut queue = locks.queue();
        queue.requests.push(Request { ticket: 1, sectors: 5..6, access: Access::Exclusive });
        queue.next_ticket = 2;
        drop(queue);
        assert!(would_wait(&locks, 5..6, Access::Shared), "the writer came first");
        assert!(!would_wait(&locks, 0..5, Access::Shared));
    }

    #[test]
    fn increments_under_overlapping_locks_lose_nothing() {
        let locks = RangeLocks::default();
        let value = AtomicU64::new(0);
        thread::scope(|scope| {
            for thread in 0..4 {
                let (locks, value) = (&locks, &value);
                scope.spawn(move || {
                    for round in 0..500u64 {
                        let start = (thread + round) % 4;
                        let _held = locks.lock(start..5, Access::Exclusive);
                        // Deliberately not atomic as a whole: the lock on sector 4 makes it so.
                        value.store(value.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(value.into_inner(), 2000);
    }

    #[test]
    fn one_volume_has_one_set_of_locks_for_as_long_as_anyone_uses_it() {
        let id = VolumeId([7; 16]);
        let first = RangeLocks::of(id);
        let held = first.lock(3..4, Access::Exclusive);
        let second = RangeLocks::of(id);
        assert!(would_wait(&second, 3..4, Access::Shared));
        assert!(!would_wait(&RangeLocks::of(VolumeId([8; 16])), 3..4, Access::Shared));

        let (waiting, done) = (mpsc::channel(), mpsc::channel());
        thread::scope(|scope| {
            scope.spawn(move || {
                waiting.0.send(()).unwrap();
                drop(second.lock(3..4, Access::Shared));
                done.0.send(()).unwrap();
            });
            waiting.1.recv().unwrap();
            assert!(done.1.try_recv().is_err());
            drop(held);
            done.1.recv().unwrap();
        });
    }
}
