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
