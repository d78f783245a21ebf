//! Who may hold key material in registers and scratch at this moment, for the wipe's second stage.
//!
//! A thread writes down the generation it works in before it looks whether that is still current, and takes the note back
//! after its last load of a key, with registers and scratch cleared. A wipe bumps the generation before it reads the notes. So
//! of a use and a wipe at least one sees the other: a use that the second stage does not see finds itself stale before it
//! loads anything.

use super::sync::{AtomicU64, Ordering};

/// One note for each place where keys are worked with.
#[derive(Debug)]
pub(crate) struct Users<const COUNT: usize> {
    places: [Place; COUNT],
}

#[derive(Debug)]
struct Place {
    /// One more than the generation of the work; zero where there is none.
    since: AtomicU64,
    thread: AtomicU64,
}

/// Work that has not ended, a panic included.
pub(crate) struct User<'a>(&'a AtomicU64);

/// A thread that still works with keys of a generation that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Straggler {
    /// Its number for the kernel (`gettid`).
    pub thread: u64,
}

impl<const COUNT: usize> Users<COUNT> {
    pub(crate) fn new() -> Self {
        let place = |_| Place { since: AtomicU64::new(0), thread: AtomicU64::new(0) };
        Self { places: std::array::from_fn(place) }
    }

    /// Notes that `thread` works at `place`, which is its alone, with keys of `generation`.
    pub(crate) fn enter(&self, place: usize, generation: u64, thread: u64) -> User<'_> {
        let place = &self.places[place];
        place.thread.store(thread, Ordering::Relaxed);
        place.since.store(generation + 1, Ordering::SeqCst);
        User(&place.since)
    }

    /// Who still works with keys from before `generation`. To be asked after the bump to it.
    pub(crate) fn before(&self, generation: u64) -> impl Iterator<Item = Straggler> + '_ {
        self.places.iter().filter_map(move |place| {
            let since = place.since.load(Ordering::SeqCst);
            (1..=generation)
                .contains(&since)
                .then(|| Straggler { thread: place.thread.load(Ordering::Relaxed) })
        })
    }

    /// How many work now.
    pub(crate) fn count(&self) -> usize {
        self.places.iter().filter(|place| place.since.load(Ordering::SeqCst) != 0).count()
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::SeqCst);
    }
}
