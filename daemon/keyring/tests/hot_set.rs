//! The hot set and the second stage of a wipe under loom, on the very sources of gate, slots, hot set and users.
//!
//! Two keys, 1 and 2, wrapped outside of the arena; the arena holds the slot key and one hot slot of two words. What is
//! modelled is one whole I/O: bump, zero, promote, encrypt, verify, submit, withdraw, acknowledge. A use may be refused;
//! what it hands out to be submitted must come of one whole key, the handle's. Each order that the sources forbid is run too
//! and must fail, or the model would prove nothing.

#![expect(clippy::unwrap_used, reason = "a test")]

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
}

#[path = "../src/gate.rs"]
#[expect(dead_code, reason = "admission is modelled in gate.rs")]
mod gate;
#[path = "../src/hot.rs"]
mod hot;
#[path = "../src/slots.rs"]
#[expect(dead_code, reason = "nobody asks how many are held")]
mod slots;
#[path = "../src/users.rs"]
#[expect(unreachable_pub, reason = "public in the keyring")]
mod users;

use gate::Gate;
use hot::HotSet;
use loom::sync::Arc;
use loom::thread::JoinHandle;
use slots::Slots;
use sync::{AtomicU64, Ordering, fence};
use users::Users;

/// A tag binds what is wrapped to its serial.
const TAG_SHIFT: u32 = 8;

/// What to do otherwise than the sources say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Right,
    ZeroBeforeBump,
    PromoteWithoutGenerationCheck,
    PromoteWithoutSerialCheck,
    UseWithoutPin,
    UseWithoutLastCheck,
    WithdrawWithoutPin,
    NoteAfterCheck,
}

struct Model {
    order: Order,
    gate: Gate,
    lent: Slots<2>,
    hot: HotSet<1>,
    users: Users<2>,
    slot_key: AtomicU64,
    words: [AtomicU64; 2],
    wrapped: [AtomicU64; 2],
    /// Set by a wiper whose second stage saw nobody.
    acknowledged: AtomicU64,
}

#[derive(Clone, Copy)]
struct Handle {
    slot: u16,
    generation: u64,
    serial: u64,
}

impl Handle {
    /// The first key lies in the first slot.
    fn key(self) -> u64 {
        u64::from(self.slot) + 1
    }
}

impl Model {
    /// A keyring with both keys lent.
    fn new(order: Order) -> (Arc<Self>, [Handle; 2]) {
        let model = Arc::new(Self {
            order,
            gate: Gate::new(),
            lent: Slots::new(),
            hot: HotSet::new(),
            users: Users::new(),
            slot_key: AtomicU64::new(1),
            words: [AtomicU64::new(0), AtomicU64::new(0)],
            wrapped: [AtomicU64::new(0), AtomicU64::new(0)],
            acknowledged: AtomicU64::new(0),
        });
        let handles = [1, 2].map(|key| {
            let (slot, serial) = model.lent.claim().unwrap();
            model.lent.publish(slot, serial);
            model.wrapped[usize::from(slot)].store(serial << TAG_SHIFT | key, Ordering::Relaxed);
            Handle { slot, generation: 0, serial }
        });
        (model, handles)
    }

    fn store(&self, key: u64) {
        self.words.iter().for_each(|word| word.store(key, Ordering::Relaxed));
    }

    fn load(&self) -> [u64; 2] {
        [&self.words[0], &self.words[1]].map(|word| word.load(Ordering::Relaxed))
    }

    fn check(&self, handle: Handle) -> bool {
        self.gate.is_current(handle.generation) && self.lent.holds(handle.slot, handle.serial)
    }

    /// What the wrapped copy holds, if the slot key is there and the tag is right.
    fn unwrap(&self, handle: Handle) -> Option<u64> {
        let wrapped = self.wrapped[usize::from(handle.slot)].load(Ordering::Relaxed);
        let opens = self.slot_key.load(Ordering::Relaxed) == 1 && wrapped >> TAG_SHIFT == handle.serial;
        opens.then(|| {
            self.key_in_registers();
            wrapped & ((1 << TAG_SHIFT) - 1)
        })
    }

    /// This thread has loaded key material.
    fn key_in_registers(&self) {
        assert_eq!(self.acknowledged.load(Ordering::SeqCst), 0, "no key in registers once acknowledged");
    }

    fn promote(&self, handle: Handle) -> Option<usize> {
        let slot = self.hot.claim()?;
        let Some(key) = self.unwrap(handle) else {
            self.hot.release(slot);
            return None;
        };
        self.store(key);
        if self.order != Order::PromoteWithoutGenerationCheck && !self.gate.is_current(handle.generation) {
            self.store(0);
            self.hot.release(slot);
            return None;
        }
        self.hot.publish(slot, handle.serial);
        if self.order != Order::PromoteWithoutSerialCheck && !self.lent.holds(handle.slot, handle.serial) {
            self.store(0);
            self.hot.unpin(slot);
            return None;
        }
        Some(slot)
    }

    /// Encrypts: the ciphertext is the key that was seen.
    fn with_key(&self, handle: Handle, place: usize) -> Option<[u64; 2]> {
        let late = self.order == Order::NoteAfterCheck;
        let mut user = (!late).then(|| self.users.enter(place, handle.generation, 0));
        if !self.check(handle) {
            return None;
        }
        if late {
            user = Some(self.users.enter(place, handle.generation, 0));
        }
        let slot = match self.hot.pin_any(handle.serial) {
            Some(slot) => slot,
            None => self.promote(handle)?,
        };
        if self.order == Order::UseWithoutPin {
            self.hot.unpin(slot);
        }
        let result = self.load();
        if result != [0, 0] {
            self.key_in_registers();
        }
        if self.order != Order::UseWithoutPin {
            self.hot.unpin(slot);
        }
        drop(user);
        (self.order == Order::UseWithoutLastCheck || self.check(handle)).then_some(result)
    }

    /// An I/O up to its submission. What is submitted must be the handle's key's.
    fn submit(&self, handle: Handle, place: usize) {
        if let Some(sealed) = self.with_key(handle, place) {
            assert_eq!(sealed, [handle.key(); 2], "submitted");
        }
    }

    fn zero(&self) {
        self.slot_key.store(0, Ordering::Relaxed);
        self.store(0);
    }

    /// Its second stage is one look.
    fn wipe(&self) {
        if self.order == Order::ZeroBeforeBump {
            self.zero();
        }
        let generation = self.gate.begin();
        self.zero();
        self.lent.free_all();
        self.gate.finish();
        fence(Ordering::SeqCst);
        if self.users.before(generation).next().is_none() {
            self.acknowledged.store(1, Ordering::SeqCst);
        }
    }

    fn withdraw(&self, handle: Handle) {
        if !self.gate.is_current(handle.generation) {
            return;
        }
        self.lent.withdraw(handle.slot, handle.serial, || {
            if let Some(slot) = self.hot.pin_any(handle.serial) {
                if self.order == Order::WithdrawWithoutPin {
                    self.hot.unpin(slot);
                }
                self.store(0);
                if self.order != Order::WithdrawWithoutPin {
                    self.hot.unpin(slot);
                }
            }
            self.wrapped[usize::from(handle.slot)].store(0, Ordering::Relaxed);
        });
    }
}

fn in_another_thread(model: &Arc<Model>, work: impl FnOnce(&Model) + 'static) -> JoinHandle<()> {
    let model = Arc::clone(model);
    loom::thread::spawn(move || work(&model))
}

/// A promotion, a use and a submission meet a wipe.
fn use_meets_wipe(order: Order) {
    loom::model(move || {
        let (model, [one, _]) = Model::new(order);
        let wiper = in_another_thread(&model, Model::wipe);
        model.submit(one, 0);
        wiper.join().unwrap();
        assert_eq!(model.load(), [0, 0], "nothing is left in the arena");
        assert!(model.with_key(one, 0).is_none(), "gone for good");
        assert_eq!(model.users.count(), 0, "everybody has left");
    });
}

#[test]
fn a_promotion_and_its_use_that_meet_a_wipe_are_discarded_and_leave_nothing() {
    use_meets_wipe(Order::Right);
}

#[test]
#[should_panic(expected = "submitted")]
fn zeroing_before_the_bump_is_caught() {
    use_meets_wipe(Order::ZeroBeforeBump);
}

#[test]
#[should_panic(expected = "nothing is left in the arena")]
fn a_promotion_that_does_not_look_at_the_generation_is_caught() {
    use_meets_wipe(Order::PromoteWithoutGenerationCheck);
}

#[test]
#[should_panic(expected = "submitted")]
fn a_submission_without_the_last_check_is_caught() {
    use_meets_wipe(Order::UseWithoutLastCheck);
}

#[test]
#[should_panic(expected = "no key in registers once acknowledged")]
fn a_note_after_the_check_is_caught() {
    use_meets_wipe(Order::NoteAfterCheck);
}

/// Two keys want the one hot slot at the same time.
fn two_keys_one_slot(order: Order) {
    loom::model(move || {
        let (model, [one, two]) = Model::new(order);
        let other = in_another_thread(&model, move |model| model.submit(one, 0));
        model.submit(two, 1);
        other.join().unwrap();
        assert!(model.hot.busy() == 0, "no slot is lost");
        model.submit(one, 0);
    });
}

#[test]
fn a_slot_in_use_is_not_taken_for_another_key() {
    two_keys_one_slot(Order::Right);
}

#[test]
#[should_panic(expected = "submitted")]
fn a_use_that_is_not_counted_is_caught() {
    two_keys_one_slot(Order::UseWithoutPin);
}

/// One key is withdrawn while it is promoted.
fn promotion_meets_withdrawal(order: Order) {
    loom::model(move || {
        let (model, [one, two]) = Model::new(order);
        let other = in_another_thread(&model, move |model| model.withdraw(one));
        model.submit(one, 0);
        other.join().unwrap();
        assert_eq!(model.load(), [0, 0], "nothing of a withdrawn key stays");
        assert_eq!(model.with_key(two, 0), Some([2, 2]));
    });
}

#[test]
fn a_promotion_that_meets_a_withdrawal_leaves_nothing() {
    promotion_meets_withdrawal(Order::Right);
}

#[test]
#[should_panic(expected = "nothing of a withdrawn key stays")]
fn a_promotion_that_does_not_look_at_the_serial_again_is_caught() {
    promotion_meets_withdrawal(Order::PromoteWithoutSerialCheck);
}

/// One key is withdrawn from its hot slot while another key wants that slot.
fn withdrawal_meets_eviction(order: Order) {
    loom::model(move || {
        let (model, [one, two]) = Model::new(order);
        model.submit(one, 0);
        let other = in_another_thread(&model, move |model| model.withdraw(one));
        model.submit(two, 1);
        other.join().unwrap();
        model.submit(two, 1);
    });
}

#[test]
fn a_withdrawal_never_zeroes_another_key() {
    withdrawal_meets_eviction(Order::Right);
}

#[test]
#[should_panic(expected = "submitted")]
fn a_withdrawal_that_does_not_hold_the_slot_is_caught() {
    withdrawal_meets_eviction(Order::WithdrawWithoutPin);
}

/// The promoted key's slot is taken again and wiped: a wipe in the middle of two uses.
#[test]
fn two_uses_and_a_wipe_submit_nothing_wrong_and_leave_nothing() {
    let mut bounded = loom::model::Builder::new();
    // Three threads: every schedule with up to two preemptions.
    bounded.preemption_bound = Some(2);
    bounded.check(|| {
        let (model, [one, two]) = Model::new(Order::Right);
        let wiper = in_another_thread(&model, Model::wipe);
        let other = in_another_thread(&model, move |model| model.submit(one, 0));
        model.submit(two, 1);
        wiper.join().unwrap();
        other.join().unwrap();
        assert_eq!(model.load(), [0, 0], "nothing is left in the arena");
    });
}
