//! What follows the first stage of a wipe: the second, on a thread of its own, and the times of all three.
//!
//! The thread waits, a hundred microseconds at a time, until nobody works with a wiped key any more. Batches are short, so
//! that is soon; but a thread that is to finish one may be waiting for a processor behind others. It is given a priority above
//! theirs then. One that is still not done holds registers full of keys for a reason nobody knows: the process ends.
//!
//! Looks are counted, not time: a process that was stopped in between is not at fault.

use std::sync::Weak;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use keyring::{Keyring, Straggler};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::wiper::{Wipe, Wiper};

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// Looks before a thread that is late is given priority: a batch takes a tenth of that.
const LOOKS_BEFORE_HURRY: u32 = 3;

/// Looks before the process ends: ten milliseconds.
const LOOKS_MAX: u32 = 100;

/// From 1 µs to 8 s, a factor of two each.
const BUCKETS_SECONDS: [f64; 24] = {
    let mut buckets = [1e-6; 24];
    let mut index = 1;
    while index < buckets.len() {
        buckets[index] = buckets[index - 1] * 2.0;
        index += 1;
    }
    buckets
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: &'static str,
}

/// How long each stage took from the call on, one histogram a stage.
#[derive(Clone, Debug)]
pub(crate) struct StageTimes(Family<StageLabel, Histogram>);

impl Default for StageTimes {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(BUCKETS_SECONDS)))
    }
}

impl StageTimes {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "From the call to the end of each stage: keys zeroed, threads clear of them, ordinary memory clear";
        registry.register_with_unit("wipe_stage_duration", help, Unit::Seconds, self.0.clone());
        for stage in ["keys", "threads", "memory"] {
            // Shown from the start: an empty histogram says that nothing was wiped yet.
            drop(self.0.get_or_create(&StageLabel { stage }));
        }
    }

    pub(crate) fn observe(&self, stage: &'static str, nanos: u64) {
        let seconds = Duration::from_nanos(nanos).as_secs_f64();
        self.0.get_or_create(&StageLabel { stage }).observe(seconds);
    }
}

/// Waits until nobody works with keys from before `generation`.
fn wait_for_threads(keyring: &Keyring, generation: u64) -> Result<(), Straggler> {
    // All of them: one may be waiting for another.
    let mut hurried: Vec<faults::Hurried> = Vec::new();
    for look in 0..LOOKS_MAX {
        let mut late = keyring.stragglers(generation).peekable();
        if late.peek().is_none() {
            return Ok(());
        }
        if look >= LOOKS_BEFORE_HURRY {
            for Straggler { thread } in late {
                if hurried.iter().all(|known| known.thread() != thread) {
                    hurried.extend(faults::hurry(thread));
                }
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
    keyring.stragglers(generation).next().map_or(Ok(()), Err)
}

/// The thread: carries each wipe that it hears of through its second stage, for as long as there is a wiper.
pub(crate) fn run(keyring: &Keyring, wiper: &Weak<Wiper>, wipes: &Receiver<Wipe>) {
    while let Ok(wipe) = wipes.recv() {
        if let Err(Straggler { thread }) = wait_for_threads(keyring, wipe.record.generation) {
            panic!(
                "thread {thread} still works with a key that was wiped 10 ms ago: the process ends, and its registers with it"
            );
        }
        let Some(wiper) = wiper.upgrade() else { return };
        wiper.on_threads_clear(&wipe);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keyring::WipeCause;
    use keyring::simulated::{Keyholder, keyring};
    use units::{DomainId, VolumeEpoch};

    use super::*;

    fn lent() -> (Arc<Keyring>, keyring::KeyHandle) {
        let keyring = keyring();
        let key = Keyholder::new(DomainId([1; 16]), VolumeEpoch(1)).push(&keyring).unwrap().handle;
        (keyring, key)
    }

    #[test]
    fn the_second_stage_waits_for_a_use_and_ends_with_it() {
        let (keyring, key) = lent();
        assert_eq!(wait_for_threads(&keyring, 1), Ok(()), "nobody is at work");
        let (began, has_begun) = std::sync::mpsc::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let keyring = &keyring;
            let user = scope.spawn(move || {
                keyring.with_key(key, |_| {
                    began.send(()).unwrap();
                    let _ = ends.recv();
                })
            });
            has_begun.recv().unwrap();
            let generation = keyring.wipe(WipeCause::PowerLoss).generation;
            let thread = keyring.stragglers(generation).next().unwrap().thread;
            assert_eq!(wait_for_threads(keyring, generation), Err(Straggler { thread }), "and not for ever");
            drop(end);
            assert_eq!(user.join().unwrap(), Err(keyring::KeyGone::Wiped));
            assert_eq!(wait_for_threads(keyring, generation), Ok(()));
        });
    }
}
