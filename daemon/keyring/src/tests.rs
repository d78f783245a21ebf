//! The keyring from outside: admission, lending, withdrawal, leases and wipes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aes_xts::{Direction, Kernel, SCHEDULE_WORDS, SCRATCH_WORDS, Scratch, Sectors, XtsSchedule};
use units::{BootInstant, DomainId, SECTOR_BYTES, VolumeEpoch};

use crate::simulated::{Keyholder, keyring, keyring_until};
use crate::{AdmitError, KEY_SLOTS, KeyGone, KeyHandle, Keyring, SealedGrant, WipeCause};

const SECTOR: Sectors = Sectors { first: 0, bytes: SECTOR_BYTES };

fn keyholder(number: u8) -> Keyholder {
    Keyholder::new(DomainId([number; 16]), VolumeEpoch(1))
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
        domain: DomainId([1; 16]),
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
        ("domain", SealedGrant { domain: DomainId([2; 16]), ..grant }),
        ("epoch", SealedGrant { epoch: VolumeEpoch(2), ..grant }),
        ("check", SealedGrant { check: [0; 16], ..grant }),
    ] {
        assert!(matches!(keyring.admit(&wrong), Err(AdmitError::WrongKey { .. })), "{name}");
    }
    assert_eq!(keyring.status().keys, 0);
    keyring.admit(&grant).unwrap();
}

#[test]
fn the_arena_takes_as_many_keys_as_it_has_slots_and_says_so() {
    let (keyring, keyholder) = (keyring(), keyholder(1));
    let handles: Vec<KeyHandle> = (0..KEY_SLOTS).map(|_| keyholder.push(&keyring).unwrap().handle).collect();
    assert!(matches!(keyholder.push(&keyring), Err(AdmitError::TooManyKeys { limit: KEY_SLOTS })));
    keyring.drop_key(handles[7]);
    let again = keyholder.push(&keyring).unwrap().handle;
    assert_eq!(encrypted(&keyring, again), Ok(expected(&keyholder)));
    assert_eq!(
        keyring.check(handles[7]),
        Err(KeyGone::Stale),
        "its slot has a new key; the old handle stays stale"
    );
    keyring.wipe(WipeCause::Admin);
    assert_eq!(keyring.status().keys, 0);
    assert!((0..KEY_SLOTS).all(|_| keyholder.push(&keyring).is_ok()));
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
    assert!((0..KEY_SLOTS).all(|_| keyholder.push(&keyring).is_ok()));
}
