//! Tests of `slots.rs`, apart from it because loom's model includes that file.

use crate::slots::Slots;

#[test]
fn a_slot_is_claimed_once_and_its_serial_never_returns() {
    let slots = Slots::<2>::new();
    let [(first, old), (second, _)] = [slots.claim().unwrap(), slots.claim().unwrap()];
    assert_ne!(first, second);
    assert_eq!(slots.claim(), None);
    slots.publish(first, old);
    slots.withdraw(first, old, || assert!(!slots.holds(first, old), "stale before it is zeroed"));
    let (again, new) = slots.claim().unwrap();
    assert_eq!(again, first);
    slots.publish(first, new);
    assert!(new > old && slots.holds(first, new) && !slots.holds(first, old));
    slots.withdraw(first, old, || panic!("a stale serial withdraws nothing"));
    assert!(slots.holds(first, new));
}

#[test]
fn freeing_all_leaves_a_busy_slot_to_its_owner() {
    let slots = Slots::<3>::new();
    let (held, serial) = slots.claim().unwrap();
    slots.publish(held, serial);
    let (busy, _) = slots.claim().unwrap();
    assert_eq!(slots.free_all(), 1);
    assert!(!slots.holds(held, serial));
    let claimed = || slots.claim().map(|(slot, _)| slot);
    assert_eq!((claimed(), claimed(), claimed()), (Some(0), Some(2), None), "{busy} stays busy");
}
