//! The wipe protocol under loom: every interleaving that the memory model allows, on the very sources of gate and slots.
//!
//! Key words are 1 for the first key, 2 for the second and 0 once wiped. A use may be refused; a use that is handed out
//! must have seen one whole key. Each swapped order must fail, or the model would prove nothing.

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
}

#[path = "../src/gate.rs"]
mod gate;
#[path = "../src/slots.rs"]
mod slots;

use gate::Gate;
use loom::sync::Arc;
use slots::Slots;
use sync::{AtomicU64, Ordering};

/// What the arena holds besides hot keys (the slot key, the envelope key) and the slots of lent keys, reduced to one slot of
/// two words. `hot_set.rs` has the rest.
struct Model {
    gate: Gate,
    slots: Slots<1>,
    words: [AtomicU64; 2],
}

#[derive(Clone, Copy)]
struct Handle {
    generation: u64,
    serial: u64,
}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            gate: Gate::new(),
            slots: Slots::new(),
            words: [AtomicU64::new(0), AtomicU64::new(0)],
        })
    }

    fn store(&self, key: u64) {
        for word in &self.words {
            word.store(key, Ordering::Relaxed);
        }
    }

    fn load(&self) -> [u64; 2] {
        [&self.words[0], &self.words[1]].map(|word| word.load(Ordering::Relaxed))
    }

    fn check(&self, handle: Handle) -> bool {
        self.gate.is_current(handle.generation) && self.slots.holds(0, handle.serial)
    }

    fn with_key(&self, handle: Handle) -> Option<[u64; 2]> {
        if !self.check(handle) {
            return None;
        }
        let result = self.load();
        self.check(handle).then_some(result)
    }

    fn wipe(&self) {
        self.gate.begin();
        self.store(0);
        self.slots.free_all();
        self.gate.finish();
    }

    fn drop_key(&self, handle: Handle) {
        if self.gate.is_current(handle.generation) {
            self.slots.withdraw(0, handle.serial, || self.store(0));
        }
    }

    fn admit(&self, key: u64) -> Option<Handle> {
        let generation = self.gate.enter()?;
        let (slot, serial) = self.slots.claim()?;
        self.store(key);
        if !self.gate.is_current(generation) {
            self.store(0);
            self.slots.release(slot);
            return None;
        }
        self.slots.publish(slot, serial);
        if !self.gate.is_current(generation) {
            self.slots.withdraw(slot, serial, || self.store(0));
            return None;
        }
        Some(Handle { generation, serial })
    }
}

fn in_another_thread(
    model: &Arc<Model>,
    work: impl FnOnce(&Model) + 'static,
) -> loom::thread::JoinHandle<()> {
    let model = Arc::clone(model);
    loom::thread::spawn(move || work(&model))
}

#[test]
fn a_use_that_raced_with_a_wipe_is_discarded() {
    loom::model(|| {
        let model = Model::new();
        let handle = model.admit(1).unwrap();
        let wiper = in_another_thread(&model, Model::wipe);
        if let Some(seen) = model.with_key(handle) {
            assert_eq!(seen, [1, 1]);
        }
        wiper.join().unwrap();
        assert_eq!(model.with_key(handle), None);
        assert_eq!(model.load(), [0, 0]);
    });
}

#[test]
fn a_use_that_raced_with_a_withdrawal_and_the_slots_next_key_is_discarded() {
    loom::model(|| {
        let model = Model::new();
        let handle = model.admit(1).unwrap();
        let other = in_another_thread(&model, move |model| {
            model.drop_key(handle);
            let next = model.admit(2).unwrap();
            assert_eq!(model.with_key(next), Some([2, 2]));
        });
        if let Some(seen) = model.with_key(handle) {
            assert_eq!(seen, [1, 1]);
        }
        other.join().unwrap();
        assert_eq!(model.with_key(handle), None);
    });
}

#[test]
fn a_key_admitted_around_a_wipe_is_whole_or_gone() {
    loom::model(|| {
        let model = Model::new();
        let wiper = in_another_thread(&model, Model::wipe);
        let handle = model.admit(2);
        let seen = handle.and_then(|handle| model.with_key(handle));
        assert!(seen.is_none_or(|seen| seen == [2, 2]), "{seen:?}");
        wiper.join().unwrap();
        match handle {
            Some(handle) if model.check(handle) => assert_eq!(model.load(), [2, 2]),
            _ => assert_eq!(model.load(), [0, 0], "nothing of a refused or wiped key stays"),
        }
        assert!(model.slots.held() == 1 || model.slots.claim().is_some(), "no slot is lost");
    });
}

#[test]
fn two_wipes_at_once_leave_nothing_and_let_the_next_key_in() {
    loom::model(|| {
        let model = Model::new();
        model.admit(1).unwrap();
        let other = in_another_thread(&model, Model::wipe);
        model.wipe();
        other.join().unwrap();
        assert_eq!(model.load(), [0, 0]);
        let handle = model.admit(2).unwrap();
        assert_eq!(model.with_key(handle), Some([2, 2]));
    });
}

#[test]
#[should_panic(expected = "left: ")]
fn zeroing_before_the_bump_is_caught() {
    loom::model(|| {
        let model = Model::new();
        let handle = model.admit(1).unwrap();
        let wiper = in_another_thread(&model, |model| {
            model.store(0);
            model.gate.begin();
            model.slots.free_all();
            model.gate.finish();
        });
        if let Some(seen) = model.with_key(handle) {
            assert_eq!(seen, [1, 1]);
        }
        wiper.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "left: ")]
fn a_use_without_its_last_check_is_caught() {
    loom::model(|| {
        let model = Model::new();
        let handle = model.admit(1).unwrap();
        let wiper = in_another_thread(&model, Model::wipe);
        if model.check(handle) {
            assert_eq!(model.load(), [1, 1]);
        }
        wiper.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "left: ")]
fn admitting_while_a_wipe_is_zeroing_is_caught() {
    loom::model(|| {
        let model = Model::new();
        let wiper = in_another_thread(&model, Model::wipe);
        let generation = model.gate.generation();
        let (slot, serial) = model.slots.claim().unwrap();
        model.store(2);
        model.slots.publish(slot, serial);
        if let Some(seen) = model.with_key(Handle { generation, serial }) {
            assert_eq!(seen, [2, 2]);
        }
        wiper.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "nothing of a refused key stays")]
fn publishing_before_the_check_is_caught() {
    loom::model(|| {
        let model = Model::new();
        let wiper = in_another_thread(&model, Model::wipe);
        let Some(generation) = model.gate.enter() else { return };
        let (slot, serial) = model.slots.claim().unwrap();
        model.store(2);
        model.slots.publish(slot, serial);
        let kept = model.gate.is_current(generation);
        if !kept {
            model.slots.withdraw(slot, serial, || model.store(0));
        }
        wiper.join().unwrap();
        if !kept {
            assert_eq!(model.load(), [0, 0], "nothing of a refused key stays");
        }
    });
}
