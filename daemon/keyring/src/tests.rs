//! The keyring from outside: admission, lending, withdrawal, leases and wipes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aes_xts::{Direction, Kernel, SCHEDULE_WORDS, SCRATCH_WORDS, Scratch, Sectors, XtsSchedule};
use units::{BootInstant, DomainId, SECTOR_BYTES, VolumeEpoch};

use crate::simulated::{Keyholder, keyring, keyring_until};
use crate::{AdmitError, HOT_KEYS, KeyGone, KeyHandle, Keyring, LENT_KEYS_MAX, SealedGrant, WipeCause};

const SECTOR: Sectors = Sectors { first: 0, bytes: SECTOR_BYTES };

fn domain(number: u16) -> DomainId {
    let mut domain = [0; 16];
    domain[..2].copy_from_slice(&number.to_le_bytes());
    DomainId(domain)
}

fn keyholder(number: u16) -> Keyholder {
    Keyholder::new(domain(number), VolumeEpoch(1))
}

/// Pushes `count` keys, every one of a domain of its own.
fn push_many(keyring: &Keyring, count: usize) -> Vec<(Keyholder, KeyHandle)> {
    let recipient = keyring.fresh_envelope_key().unwrap();
    (0..count)
        .map(|number| {
            let keyholder = keyholder(u16::try_from(number).unwrap());
            let envelope = keyholder.seal_to(&recipient, b"info", b"aad");
            let handle = keyholder.admit(keyring, &envelope).unwrap().handle;
            (keyholder, handle)
        })
        .collect()
}

/// A sector of zeros, encrypted without a keyring.
fn expected(keyholder: &Keyholder) -> Vec<u8> {
    let words: [AtomicU64; SCHEDULE_WORDS] = std::array::from_fn(|_| AtomicU64::new(0));
    let schedule = XtsSchedule::over(&words);
    schedule.expand(&keyholder.xts_key()).unwrap();
    let mut sector = vec![0; SECTOR_BYTES];
    let scratch: [AtomicU64; SCRATCH_WORDS] = std::array::from_fn(|_| AtomicU64::new(0));
    let kernel = Kernel::fastest();
    kernel.apply(Direction::Encrypt, schedule, Scratch::over(&scratch), SECTOR, &mut sector).unwrap();
    sector
}

fn encrypted(keyring: &Keyring, key: KeyHandle) -> Result<Vec<u8>, KeyGone> {
    let mut sector = vec![0; SECTOR_BYTES];
    keyring.with_key(key, |key| key.cipher.apply(Direction::Encrypt, SECTOR, &mut sector).unwrap())?;
    Ok(sector)
}

#[test]
fn a_granted_key_encrypts_as_the_hierarchy_says() {
    let (keyring, keyholder) = (keyring(), keyholder(1));
    let admitted = keyholder.push(&keyring).unwrap();
    assert_eq!(encrypted(&keyring, admitted.handle), Ok(expected(&keyholder)));
    assert_eq!(keyring.status().keys, 1);
    assert_eq!(keyring.in_flight(), 0);
}

#[test]
fn several_grants_open_with_one_envelope_key_until_it_is_retired() {
    let keyring = keyring();
    let recipient = keyring.fresh_envelope_key().unwrap();
    let keyholders = [keyholder(1), keyholder(2), keyholder(3)];
    let handles = keyholders.each_ref().map(|keyholder| {
        let envelope = keyholder.seal_to(&recipient, b"info", b"aad");
        keyholder.admit(&keyring, &envelope).unwrap().handle
    });
    keyring.retire_envelope_key();
    let late = keyholders[0].seal_to(&recipient, b"info", b"aad");
    assert!(matches!(keyholders[0].admit(&keyring, &late), Err(AdmitError::NoEnvelopeKey)));
    for (keyholder, handle) in keyholders.iter().zip(handles) {
        assert_eq!(encrypted(&keyring, handle), Ok(expected(keyholder)));
    }
}

#[test]
fn a_newer_envelope_key_replaces_the_older() {
    let (keyring, keyholder) = (keyring(), keyholder(1));
    let older = keyring.fresh_envelope_key().unwrap();
    let newer = keyring.fresh_envelope_key().unwrap();
    assert_ne!(older, newer);
    let envelope = keyholder.seal_to(&older, b"info", b"aad");
    assert!(matches!(keyholder.admit(&keyring, &envelope), Err(AdmitError::Envelope(_))));
    let envelope = keyholder.seal_to(&newer, b"info", b"aad");
    keyholder.admit(&keyring, &envelope).unwrap();
}

#[test]
fn a_refused_grant_takes_no_slot() {
    let (keyring, keyholder) = (keyring(), keyholder(1));
    let envelope_of =
        |keyring: &Keyring| keyholder.seal_to(&keyring.fresh_envelope_key().unwrap(), b"info", b"aad");
    let envelope = envelope_of(&keyring);
    let grant = SealedGrant {
        domain: domain(1),
        epoch: VolumeEpoch(1),
        check: keyholder.check(),
        info: b"info",
        aad: b"aad",
        envelope: &envelope,
    };
    for (name, wrong) in [
        ("info", SealedGrant { info: b"other", ..grant }),
        ("aad", SealedGrant { aad: b"other", ..grant }),
        ("cut envelope", SealedGrant { envelope: &envelope[1..], ..grant }),
        ("no envelope", SealedGrant { envelope: &[], ..grant }),
    ] {
        assert!(matches!(keyring.admit(&wrong), Err(AdmitError::Envelope(_))), "{name}");
    }
    for (name, wrong) in [
        ("domain", SealedGrant { domain: domain(2), ..grant }),
        ("epoch", SealedGrant { epoch: VolumeEpoch(2), ..grant }),
        ("check", SealedGrant { check: [0; 16], ..grant }),
    ] {
        assert!(matches!(keyring.admit(&wrong), Err(AdmitError::WrongKey { .. })), "{name}");
    }
    assert_eq!(keyring.status().keys, 0);
    keyring.admit(&grant).unwrap();
}

#[test]
fn as_many_keys_are_lent_as_the_protocol_allows_and_not_one_more() {
    let keyring = keyring();
    let mut lent = push_many(&keyring, LENT_KEYS_MAX);
    let one_more = keyholder(u16::MAX);
    assert!(matches!(one_more.push(&keyring), Err(AdmitError::TooManyKeys { limit: LENT_KEYS_MAX })));
    let (_, dropped) = lent.swap_remove(7);
    keyring.drop_key(dropped);
    let again = one_more.push(&keyring).unwrap().handle;
    lent.push((one_more, again));
    for (keyholder, handle) in lent.iter().rev() {
        assert_eq!(encrypted(&keyring, *handle), Ok(expected(keyholder)));
    }
    assert_eq!(
        keyring.check(dropped),
        Err(KeyGone::Stale),
        "its slot has a new key; the old handle stays stale"
    );
    let status = keyring.status();
    assert_eq!((status.keys, status.key_slots, status.hot_slots), (LENT_KEYS_MAX, LENT_KEYS_MAX, HOT_KEYS));
    assert!(status.promotions >= LENT_KEYS_MAX as u64, "every one was brought in: {}", status.promotions);

    let report = keyring.wipe(WipeCause::Admin);
    assert_eq!((report.keys, keyring.status().keys), (LENT_KEYS_MAX, 0));
    assert!(lent.iter().all(|(_, handle)| encrypted(&keyring, *handle) == Err(KeyGone::Wiped)));
    keyring.set_deadline(BootInstant(u64::MAX));
    let (keyholder, handle) = push_many(&keyring, 1).remove(0);
    assert_eq!(encrypted(&keyring, handle), Ok(expected(&keyholder)));
}

#[test]
fn a_key_that_is_used_again_and_again_is_brought_in_once() {
    let keyring = keyring();
    let lent = push_many(&keyring, HOT_KEYS);
    for _ in 0..3 {
        for (keyholder, handle) in &lent {
            assert_eq!(encrypted(&keyring, *handle), Ok(expected(keyholder)));
        }
    }
    assert_eq!(keyring.status().promotions, HOT_KEYS as u64);
}

#[test]
fn threads_that_want_more_keys_than_are_hot_each_get_their_own() {
    let keyring = keyring();
    let lent = push_many(&keyring, 3 * HOT_KEYS);
    let right: Vec<Vec<u8>> = lent.iter().map(|(keyholder, _)| expected(keyholder)).collect();
    thread::scope(|scope| {
        for stride in [1, 5, 11, 17, 23, 31] {
            let (keyring, lent, right) = (&keyring, &lent, &right);
            scope.spawn(move || {
                for step in 0..10 * lent.len() {
                    let index = step * stride % lent.len();
                    assert!(encrypted(keyring, lent[index].1).unwrap() == right[index], "key {index}");
                }
            });
        }
    });
    assert!(keyring.status().promotions > lent.len() as u64, "keys gave way to each other");
    assert_eq!((keyring.in_flight(), keyring.hot.busy()), (0, 0));
}

#[test]
fn a_key_in_use_stays_where_it_is_while_others_come_and_go() {
    let keyring = keyring();
    let mut lent = push_many(&keyring, 3 * HOT_KEYS);
    let (keyholder, handle) = lent.remove(0);
    let mut sector = vec![0; SECTOR_BYTES];
    let used = keyring.with_key(handle, |key| {
        thread::scope(|scope| {
            let others = || lent.iter().for_each(|(_, other)| drop(encrypted(&keyring, *other).unwrap()));
            scope.spawn(others).join().unwrap();
        });
        key.cipher.apply(Direction::Encrypt, SECTOR, &mut sector).unwrap();
    });
    assert_eq!((used, sector), (Ok(()), expected(&keyholder)));
}

#[test]
fn a_wrapped_key_that_was_changed_does_not_open_and_is_given_up() {
    let keyring = keyring();
    let lent = push_many(&keyring, 2);
    let [(_, changed), (keyholder, other)] = &lent[..] else { unreachable!() };
    keyring.shelf.spoil(changed.slot);
    assert_eq!(encrypted(&keyring, *changed), Err(KeyGone::Damaged));
    assert_eq!(encrypted(&keyring, *changed), Err(KeyGone::Stale));
    assert_eq!(encrypted(&keyring, *other), Ok(expected(keyholder)));
    assert_eq!((keyring.status().keys, keyring.hot.busy()), (1, 0));
}

#[test]
fn a_wrapped_key_opens_under_its_own_serial_and_generation_only() {
    let keyring = keyring();
    let lent = push_many(&keyring, 2);
    let mut copy = crate::shelf::WrappedKey::empty();
    keyring.shelf.take_copy(lent[0].1.slot, &mut copy);
    // Where the other key was: another serial.
    keyring.shelf.put(lent[1].1.slot, &copy);
    assert_eq!(encrypted(&keyring, lent[1].1), Err(KeyGone::Damaged));
    // Where the next generation's key is: another slot key.
    keyring.wipe(WipeCause::Admin);
    keyring.set_deadline(BootInstant(u64::MAX));
    let (keyholder, handle) = push_many(&keyring, 1).remove(0);
    assert_eq!(encrypted(&keyring, handle), Ok(expected(&keyholder)));
    let (_, next) = push_many(&keyring, 1).remove(0);
    keyring.shelf.put(next.slot, &copy);
    assert_eq!(encrypted(&keyring, next), Err(KeyGone::Damaged));
}

#[test]
fn who_still_works_with_a_wiped_key_is_known_by_name_until_it_has_ended() {
    let keyring = keyring();
    let [(_, handle)] = &push_many(&keyring, 1)[..] else { unreachable!() };
    let me = u64::try_from(nix::unistd::gettid().as_raw()).unwrap();
    let refused = keyring.with_key(*handle, |_| {
        let report = keyring.wipe(WipeCause::PowerLoss);
        let late: Vec<_> = keyring.stragglers(report.generation).collect();
        assert_eq!(late, [crate::Straggler { thread: me }]);
    });
    assert_eq!(refused, Err(KeyGone::Wiped));
    assert_eq!(keyring.stragglers(1).count(), 0);
    // Work with keys from after the wipe is nobody's concern.
    keyring.set_deadline(BootInstant(u64::MAX));
    let (_, next) = push_many(&keyring, 1).remove(0);
    assert_eq!(keyring.with_key(next, |_| keyring.stragglers(1).count()), Ok(0));
}

#[test]
fn a_withdrawn_key_is_stale_and_the_others_stay() {
    let keyring = keyring();
    let [first, second] = [keyholder(1), keyholder(2)];
    let [one, two] = [first.push(&keyring).unwrap().handle, second.push(&keyring).unwrap().handle];
    keyring.drop_key(one);
    keyring.drop_key(one);
    assert_eq!(encrypted(&keyring, one), Err(KeyGone::Stale));
    assert_eq!(encrypted(&keyring, two), Ok(expected(&second)));
}

#[test]
fn a_wipe_takes_everything_and_the_next_push_works() {
    let (keyring, keyholder) = (keyring(), keyholder(1));
    keyring.pin_grant_key(&[9; 32]);
    assert_eq!(keyring.pinned_grant_key(), Some([9; 32]));
    let handle = keyholder.push(&keyring).unwrap().handle;
    let recipient = keyring.fresh_envelope_key().unwrap();

    let report = keyring.wipe(WipeCause::PowerLoss);
    assert_eq!((report.generation, report.keys, report.in_flight), (1, 1, 0));
    assert_eq!(report.record().cause, WipeCause::PowerLoss);
    assert_eq!(keyring.check(handle), Err(KeyGone::Wiped));
    assert_eq!(keyring.deadline(), None);
    assert_eq!(keyring.pinned_grant_key(), None);
    let envelope = keyholder.seal_to(&recipient, b"info", b"aad");
    assert!(matches!(keyholder.admit(&keyring, &envelope), Err(AdmitError::NoEnvelopeKey)));
    assert_eq!(keyring.wipe(WipeCause::PowerLoss).keys, 0, "again does no harm");

    let again = keyholder.push(&keyring).unwrap();
    assert_eq!(again.generation, 2);
    assert_eq!(
        keyring.check(again.handle),
        Err(KeyGone::Expired { deadline: BootInstant(0) }),
        "no lease yet"
    );
    keyring.set_deadline(BootInstant(u64::MAX));
    assert_eq!(encrypted(&keyring, again.handle), Ok(expected(&keyholder)));
    assert_eq!(keyring.check(handle), Err(KeyGone::Wiped));
}

#[test]
fn a_key_is_usable_until_the_deadline_and_not_at_it() {
    let (keyring, now) = keyring_until(BootInstant(1000));
    let handle = keyholder(1).push(&keyring).unwrap().handle;
    let expired = |deadline| Err(KeyGone::Expired { deadline: BootInstant(deadline) });
    now.store(999, Ordering::SeqCst);
    assert_eq!(keyring.check(handle), Ok(()));
    now.store(1000, Ordering::SeqCst);
    assert_eq!(keyring.check(handle), expired(1000));
    keyring.set_deadline(BootInstant(1001));
    assert_eq!(keyring.check(handle), Ok(()), "a renewal brings it back as long as nobody wiped");
    keyring.clear_deadline();
    assert_eq!((keyring.check(handle), keyring.deadline()), (expired(0), None));
}

#[test]
fn a_use_that_outlasts_its_lease_or_meets_a_wipe_or_a_withdrawal_yields_nothing() {
    let (keyring, now) = keyring_until(BootInstant(1000));
    let keyholder = keyholder(1);
    let mut handle = keyholder.push(&keyring).unwrap().handle;
    assert_eq!(keyring.with_key(handle, |_| keyring.in_flight()), Ok(1));
    let late = keyring.with_key(handle, |_| now.store(1000, Ordering::SeqCst));
    assert_eq!(late, Err(KeyGone::Expired { deadline: BootInstant(1000) }));
    keyring.set_deadline(BootInstant(u64::MAX));
    assert_eq!(keyring.with_key(handle, |_| keyring.drop_key(handle)), Err(KeyGone::Stale));
    handle = keyholder.push(&keyring).unwrap().handle;
    let mut seen = 0;
    let wiped = keyring.with_key(handle, |_| seen = keyring.wipe(WipeCause::Admin).in_flight);
    assert_eq!((wiped, seen), (Err(KeyGone::Wiped), 1));
    let mut touched = false;
    assert_eq!(keyring.with_key(handle, |_| touched = true), Err(KeyGone::Wiped));
    assert!(!touched, "a key that is gone is not touched");
}

#[test]
fn a_panic_while_a_key_is_lent_is_not_counted_for_ever() {
    let keyring = keyring();
    let handle = keyholder(1).push(&keyring).unwrap().handle;
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        keyring.with_key(handle, |_| panic!("on purpose"))
    }));
    assert!(panic.is_err());
    assert_eq!((keyring.in_flight(), keyring.check(handle)), (0, Ok(())));
}

/// Threads encrypt, one thread wipes and pushes again, for a while: whatever is handed out is right.
#[test]
fn under_wipes_every_result_is_right_or_refused() {
    let seconds = std::env::var("NIGHTLATCH_SOAK_SECONDS").map_or(2, |text| text.parse().unwrap());
    let (keyring, keyholder) = (keyring(), keyholder(1));
    let right = expected(&keyholder);
    let pushed = std::sync::Mutex::new(keyholder.push(&keyring).unwrap().handle);
    let (stop, used, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let encrypt_until_stopped = || {
        while !stop.load(Ordering::Relaxed) {
            let handle = *pushed.lock().unwrap();
            match encrypted(&keyring, handle) {
                Ok(sector) => {
                    assert!(sector == right, "handed out what a wiped key encrypted");
                    used.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| {
        let users: Vec<_> = (0..4).map(|_| scope.spawn(encrypt_until_stopped)).collect();
        let failed = || users.iter().any(thread::ScopedJoinHandle::is_finished);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds) && !failed() {
            keyring.wipe(WipeCause::PowerLoss);
            keyring.set_deadline(BootInstant(u64::MAX));
            *pushed.lock().unwrap() = keyholder.push(&keyring).unwrap().handle;
            // Waits for a use, not for time: every key is used.
            let before = used.load(Ordering::Relaxed);
            while used.load(Ordering::Relaxed) == before && !failed() {
                thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!(
        "{} uses, {} refused, {} wipes",
        used.into_inner(),
        refused.into_inner(),
        keyring.status().generation
    );
}

/// Pushes and wipes at once: a push ends in a usable key, or in an error and an empty slot.
#[test]
fn pushes_that_meet_wipes_lose_no_slot() {
    let (keyring, keyholder) = (keyring(), keyholder(1));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                keyring.wipe(WipeCause::PowerLoss);
                thread::yield_now();
            }
        });
        for _ in 0..200 {
            let Ok(recipient) = keyring.fresh_envelope_key() else { continue };
            let envelope = keyholder.seal_to(&recipient, b"info", b"aad");
            match keyholder.admit(&keyring, &envelope) {
                Ok(_) | Err(AdmitError::Wiped | AdmitError::NoEnvelopeKey) => {}
                Err(other) => panic!("{other}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    keyring.wipe(WipeCause::PowerLoss);
    assert_eq!((keyring.status().keys, keyring.in_flight()), (0, 0));
    assert!((0..HOT_KEYS).all(|_| keyholder.push(&keyring).is_ok()), "slots came back");
    assert_eq!(keyring.slots.claim().map(|(slot, _)| usize::from(slot)), Some(HOT_KEYS), "and none was lost");
}
