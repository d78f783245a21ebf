//! Refusals in a trail: each of them, as long as they are few. Whoever is refused all the time must not be able to fill the disk.

use std::collections::BTreeMap;

use units::BootInstant;

/// Entries for one actor in a minute. A person comes nowhere near; a script in a loop is summed up.
pub const REFUSALS_PER_MINUTE: u32 = 30;

const WINDOW_MS: u64 = 60_000;

/// Actors that are remembered at once; certificates are issued by hand.
const ACTORS_MAX: usize = 1_024;

/// How often each actor was refused in the last minute. An actor is a person, or a way in for those who are nobody's.
#[derive(Debug, Default)]
pub struct Refusals {
    by: BTreeMap<String, Window>,
}

#[derive(Debug)]
struct Window {
    ends: BootInstant,
    count: u32,
}

/// What is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Whether this refusal has an entry of its own.
    pub entry: bool,
    /// Refusals of an earlier minute that have none: an entry `refused-more` says how many.
    pub unlisted: u32,
}

impl Refusals {
    /// Counts one, and says what is to be written because of it.
    pub fn count(&mut self, by: &str, now: BootInstant) -> Due {
        if self.by.len() >= ACTORS_MAX {
            self.by.retain(|_, window| now < window.ends);
        }
        let fresh = || Window { ends: now.saturating_add_ms(WINDOW_MS), count: 0 };
        let window = self.by.entry(by.to_owned()).or_insert_with(fresh);
        let mut unlisted = 0;
        if now >= window.ends {
            unlisted = window.count.saturating_sub(REFUSALS_PER_MINUTE);
            *window = fresh();
        }
        window.count = window.count.saturating_add(1);
        Due { entry: window.count <= REFUSALS_PER_MINUTE, unlisted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_summed_up_in_the_next_minute_and_others_are_not_affected() {
        let mut refusals = Refusals::default();
        let entries = (0..100).filter(|_| refusals.count("a", BootInstant(0)).entry).count();
        assert_eq!(entries, REFUSALS_PER_MINUTE as usize);
        assert_eq!(refusals.count("b", BootInstant(0)), Due { entry: true, unlisted: 0 });
        let later = BootInstant(0).saturating_add_ms(WINDOW_MS);
        assert_eq!(refusals.count("a", later), Due { entry: true, unlisted: 70 });
        assert_eq!(refusals.count("a", later), Due { entry: true, unlisted: 0 });
    }
}
