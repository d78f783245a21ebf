//! A lease that nobody renews ends by itself, on the node's own clock, however slow everyone else is.

use std::sync::atomic::{AtomicU64, Ordering};

use harness::process::wait_for;
use harness::s3::S3Client;
use harness::site::{DISK, PATIENCE, Site, SiteSpec};
use nbd_server::client::{Client, Endpoint};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

const LEASE_MS: u64 = 5_000;

/// Of a node that stands still: short, so that its end is soon waited for.
const STOPPED_LEASE_MS: u64 = 3_000;

/// How long after the deadline a request may still have been begun that was answered. When its answer was seen is the machine's
/// matter as well, which may have had no time for the client.
const LATEST_REQUEST_NS: u64 = 50_000_000;

/// So long before the deadline clients were still served, or they were not busy until the end.
const BUSY_UNTIL_NS: u64 = 2_000_000_000;

/// Now on the clock that leases are counted by.
fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the kernel has CLOCK_BOOTTIME");
    u64::try_from(now.tv_sec()).expect("after boot") * 1_000_000_000
        + u64::try_from(now.tv_nsec()).expect("below 10^9")
}

/// When the last request of each kind of client that succeeded was begun, on CLOCK_BOOTTIME.
#[derive(Default)]
struct LastSuccess {
    nbd: AtomicU64,
    s3: AtomicU64,
}

#[test]
fn an_unrenewed_lease_of_five_seconds_ends_on_time() {
    let mut site = Site::serving(SiteSpec { lease_ms: LEASE_MS, plain: true, ..SiteSpec::default() });
    let key = site.create_user("tester");
    site.create_bucket("bucket");
    let address = site.node_config().listen.s3.expect("the site serves S3");
    let s3 = || S3Client::new(address, "bucket", &key.access_key, &key.secret_key);
    s3().put("object", vec![7; 8192]).expect("an object is stored");
    let endpoint = Endpoint::unix(site.nbd_socket());
    let last = LastSuccess::default();
    // Without its keyholder the node gets no renewal.
    site.keyholder().signal(Signal::SIGSTOP);
    let (deadline, status) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Client::connect(&endpoint, DISK).expect("an unsealed export");
            let mut block = [0; 4096];
            for round in 0_u64.. {
                let begun = boot_ns();
                let answer = match round % 2 {
                    0 => client.write(0, &block, false),
                    _ => client.read(0, &mut block),
                };
                if answer.is_err() {
                    break;
                }
                last.nbd.store(begun, Ordering::SeqCst);
            }
        });
        scope.spawn(|| {
            let mut client = s3();
            loop {
                let begun = boot_ns();
                if !client.get("object").is_ok_and(|object| object.is_some()) {
                    break;
                }
                last.s3.store(begun, Ordering::SeqCst);
            }
        });
        // The deadline that the node itself names; a renewal that was under way may move it once more.
        let mut deadline = 0;
        let status = wait_for("the end of the lease", PATIENCE, || {
            let status = site.status();
            deadline = status.seal.lease_deadline_boot_ns.map_or(deadline, |named| deadline.max(named.0));
            // Keys are gone a moment before the status gives the cause.
            let over = status.seal.sealed && status.seal.cause.as_deref() == Some("lease-expired");
            if over { Ok(status) } else { Err(format!("{:?}", status.seal)) }
        });
        (deadline, status)
    });
    let wiped = status.last_wipe.expect("a wipe").at_boot_ns.0;
    let last_use = status.key_memory.last_use_boot_ns.expect("the key was used").0;
    let relative = |at: u64| (i128::from(at) - i128::from(deadline)) / 1_000;
    let (last_nbd, last_s3) = (last.nbd.load(Ordering::SeqCst), last.s3.load(Ordering::SeqCst));
    println!(
        "relative to the deadline, in µs: last key use {}, wipe {}, last answered over NBD {}, over S3 {}",
        relative(last_use),
        relative(wiped),
        relative(last_nbd),
        relative(last_s3)
    );
    assert!(last_use <= deadline, "a key was used {} µs after the deadline", relative(last_use));
    for (head, at) in [("NBD", last_nbd), ("S3", last_s3)] {
        assert!(at > deadline - BUSY_UNTIL_NS, "{head} was to be busy until the end: {} µs", relative(at));
        assert!(at <= deadline + LATEST_REQUEST_NS, "{head} answered {} µs after the deadline", relative(at));
    }
    site.keyholder().signal(Signal::SIGCONT);
    site.wait_serving();
    assert_eq!(s3().get("object").expect("an answer").expect("the object").len(), 8192);
}

/// A stop of the node's process, as SIGSTOP or a freezer would, that ends `past_ms` after its deadline. Its keyholder
/// goes on all the while, and the answers to its challenges wait in its socket; so does a client's write.
fn stopped_past_its_deadline(past_ms: u64) {
    let mut site = Site::serving(SiteSpec { lease_ms: STOPPED_LEASE_MS, plain: true, ..SiteSpec::default() });
    // The keyholder may dial anew before the node goes on, which then finds two sessions and keeps the newer.
    site.expect_log("a newer session took over");
    site.expect_log("a newer session with the keyholder has taken over");
    let endpoint = Endpoint::unix(site.nbd_socket());
    let mut client = Client::connect(&endpoint, DISK).expect("an unsealed export");
    client.write(0, &[1; 4096], true).expect("a durable write");
    let wipes = site.status().key_memory.generation;
    site.signal_node(Signal::SIGSTOP);
    // No renewal counts from later than this.
    let latest_deadline = boot_ns() + STOPPED_LEASE_MS * 1_000_000;
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| client.write(0, &[2; 4096], true));
        wait_for("the end of the lease", PATIENCE, || {
            let over = boot_ns() >= latest_deadline + past_ms * 1_000_000;
            if over { Ok(()) } else { Err("it runs".to_owned()) }
        });
        site.signal_node(Signal::SIGCONT);
        asked.join().expect("the client ends")
    });
    assert!(answer.is_err(), "a write was answered after a stop past the lease");
    assert!(site.status().key_memory.generation > wipes, "not wiped");
    // A status is no moment: its parts are read one after the other, the last wipe before the generation.
    let wipe = site.status().last_wipe.expect("a wipe");
    assert_eq!(wipe.cause, "lease-expired");
    site.wait_serving();
    let mut read = [0; 4096];
    Client::connect(&endpoint, DISK).and_then(|mut client| client.read(0, &mut read)).expect("a read");
    assert!(read == [1; 4096], "the write that was never answered was carried out past the lease");
    drop(site);
}

#[test]
fn a_node_that_was_stopped_past_its_lease_forgets_before_it_answers_anyone() {
    for past_ms in [1, 3_000] {
        stopped_past_its_deadline(past_ms);
    }
}

#[test]
fn a_stop_within_the_lease_delays_an_answer_and_nothing_else() {
    let site = Site::serving(SiteSpec { lease_ms: 30_000, plain: true, ..SiteSpec::default() });
    let mut client = Client::connect(&Endpoint::unix(site.nbd_socket()), DISK).expect("an unsealed export");
    site.signal_node(Signal::SIGSTOP);
    let stopped = boot_ns();
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| client.write(0, &[2; 4096], true));
        wait_for("a second", PATIENCE, || {
            if boot_ns() >= stopped + 1_000_000_000 { Ok(()) } else { Err("not yet".to_owned()) }
        });
        assert!(!asked.is_finished(), "a stopped node answers nobody");
        site.signal_node(Signal::SIGCONT);
        asked.join().expect("the client ends")
    });
    answer.expect("the node goes on where it was");
    assert!(!site.status().seal.sealed);
}
