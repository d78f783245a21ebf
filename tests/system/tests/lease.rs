//! A lease that nobody renews ends by itself, on the node's own clock, however slow everyone else is.

use std::sync::atomic::{AtomicU64, Ordering};

use harness::process::wait_for;
use harness::s3::S3Client;
use harness::site::{DISK, PATIENCE, Site, SiteSpec};
use nbd_server::client::{Client, Endpoint};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

const LEASE_MS: u64 = 5_000;

/// How long after the deadline a client may still see an answer arrive: the way from the last check to the client.
const LATEST_ANSWER_NS: u64 = 50_000_000;

/// Now on the clock that leases are counted by.
fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the kernel has CLOCK_BOOTTIME");
    u64::try_from(now.tv_sec()).expect("after boot") * 1_000_000_000
        + u64::try_from(now.tv_nsec()).expect("below 10^9")
}

/// When the last success of each kind of client was seen, on CLOCK_BOOTTIME.
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
            while client.write(0, &block, false).and_then(|()| client.read(0, &mut block)).is_ok() {
                last.nbd.store(boot_ns(), Ordering::SeqCst);
            }
        });
        scope.spawn(|| {
            let mut client = s3();
            while client.get("object").is_ok_and(|object| object.is_some()) {
                last.s3.store(boot_ns(), Ordering::SeqCst);
            }
        });
        // The deadline that the node itself names; a renewal that was under way may move it once more.
        let mut deadline = 0;
        let status = wait_for("the end of the lease", PATIENCE, || {
            let status = site.status();
            deadline = status.seal.lease_deadline_boot_ns.map_or(deadline, |named| deadline.max(named.0));
            if status.seal.sealed { Ok(status) } else { Err(format!("{:?}", status.seal)) }
        });
        (deadline, status)
    });
    assert_eq!(status.seal.cause.as_deref(), Some("lease-expired"));
    let wiped = status.last_wipe.expect("a wipe").at_boot_ns.0;
    let last_use = status.key_memory.last_use_boot_ns.expect("the key was used").0;
    let relative = |at: u64| (i128::from(at) - i128::from(deadline)) / 1_000;
    let (last_nbd, last_s3) = (last.nbd.load(Ordering::SeqCst), last.s3.load(Ordering::SeqCst));
    println!(
        "relative to the deadline, in µs: last key use {}, wipe {}, last NBD answer {}, last S3 answer {}",
        relative(last_use),
        relative(wiped),
        relative(last_nbd),
        relative(last_s3)
    );
    assert!(last_use <= deadline, "a key was used {} µs after the deadline", relative(last_use));
    for (head, at) in [("NBD", last_nbd), ("S3", last_s3)] {
        assert!(at > deadline - 1_000_000_000, "{head} was to be busy until the end: {} µs", relative(at));
        assert!(at <= deadline + LATEST_ANSWER_NS, "{head} answered {} µs after the deadline", relative(at));
    }
    site.keyholder().signal(Signal::SIGCONT);
    site.wait_serving();
    assert_eq!(s3().get("object").expect("an answer").expect("the object").len(), 8192);
}

/// A stop of the node's process, as SIGSTOP or a freezer would, that ends `past_ms` after its deadline. Its keyholder
/// goes on all the while, and the answers to its challenges wait in its socket; so does a client's write.
fn stopped_past_its_deadline(past_ms: u64) {
    let mut site = Site::serving(SiteSpec { lease_ms: 2_000, plain: true, ..SiteSpec::default() });
    // The keyholder may dial anew before the node goes on, which then finds two sessions and keeps the newer.
    site.expect_log("a newer session took over");
    let endpoint = Endpoint::unix(site.nbd_socket());
    let mut client = Client::connect(&endpoint, DISK).expect("an unsealed export");
    client.write(0, &[1; 4096], true).expect("a durable write");
    let wipes = site.status().key_memory.generation;
    site.signal_node(Signal::SIGSTOP);
    // No renewal counts from later than this.
    let latest_deadline = boot_ns() + 2_000 * 1_000_000;
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
    let status = site.status();
    assert!(status.key_memory.generation > wipes, "not wiped");
    let wipe = status.last_wipe.expect("a wipe");
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
