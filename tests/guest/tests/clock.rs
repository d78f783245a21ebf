//! Whoever owns a virtual machine can stop the clock that leases are counted on. What that does to a lease is measured here,
//! and what the comparison with the battery-backed clock makes of it.

use std::time::{Duration, Instant};

use guest::node::GuestNode;
use harness::process::wait_for;
use harness::site::{PATIENCE, PushPolicy, SiteSpec};

const LEASE: Duration = Duration::from_secs(10);

/// Longer than the lease, and than the clocks may disagree.
const STOPPED: Duration = Duration::from_secs(16);

fn spec() -> SiteSpec {
    let lease_ms = u64::try_from(LEASE.as_millis()).expect("seconds");
    SiteSpec { lease_ms, push: PushPolicy::Approve, ..SiteSpec::default() }
}

/// CLOCK_BOOTTIME as the guest has it.
fn boot_clock(node: &mut GuestNode) -> Duration {
    let text = node.guest.run("cat /proc/uptime").expect_success();
    let seconds = text.split_whitespace().next().and_then(|word| word.parse().ok()).expect("seconds");
    Duration::from_secs_f64(seconds)
}

/// Stops the machine for longer than a lease; says how much of that time its clock has seen.
fn stand_still(node: &mut GuestNode) -> (Duration, Duration) {
    let (before, begun) = (boot_clock(node), Instant::now());
    node.guest.stop();
    std::thread::sleep(STOPPED);
    node.guest.go_on();
    let inside = boot_clock(node).saturating_sub(before);
    (begun.elapsed(), inside)
}

fn push_again(node: &GuestNode) {
    node.site.wait_heard_of_wipe();
    node.site.act("/v1/unlatch");
    node.site.push_until_serving();
}

/// No test of a promise, but of its limit, which SECURITY.md names: without the comparison the lease outlives its time.
#[test]
fn a_hypervisor_that_stops_the_machine_stretches_a_lease_in_the_guest() {
    let mut node = GuestNode::serving(spec(), |_| {}, |machine| machine, |_| {});
    node.site.expect_log("the session with the node ended");
    let (outside, inside) = stand_still(&mut node);
    let status = node.site.status();
    println!("outside {outside:.1?}, inside {inside:.1?}, sealed {}", status.seal.sealed);
    assert!(outside >= STOPPED && inside < LEASE, "the clock stood still: {outside:?}, {inside:?}");
    assert!(!status.seal.sealed, "by its own clock the lease is not over");
}

#[test]
fn a_stop_and_a_restored_snapshot_wipe_where_the_battery_backed_clock_went_on_in_the_guest() {
    let watched = |config: &mut config::NodeConfig| {
        config.sources.clock = Some(toml::from_str("").expect("all defaults"));
    };
    let mut node = GuestNode::serving(spec(), watched, |machine| machine, |_| {});
    for line in ["the session with the node ended", "peer has been silent"] {
        node.site.expect_log(line);
    }
    let source = node.site.status().sources.into_iter().find(|source| source.name == "clock");
    let source = source.expect("a source of this name");
    assert!(source.trouble.is_none() && !source.recorded, "{source:?}");
    // Ordinary life is no disagreement.
    std::thread::sleep(Duration::from_secs(3));
    assert!(!node.site.status().seal.sealed);

    stand_still(&mut node);
    let begun = Instant::now();
    node.site.wait_sealed("clock");
    println!("stopped: wiped within {:.1?} of going on", begun.elapsed());
    push_again(&node);

    // A snapshot of a machine that holds keys is a snapshot of the keys.
    node.guest.save("unsealed");
    std::thread::sleep(STOPPED);
    node.guest.run("kill -PWR $(cat /run/node.pid)").expect_success();
    wait_for("a wipe", PATIENCE, || {
        if node.site.status().seal.sealed { Ok(()) } else { Err("keys are held".to_owned()) }
    });
    node.guest.restore("unsealed");
    let begun = Instant::now();
    node.site.wait_sealed("clock");
    println!("restored: wiped within {:.1?}", begun.elapsed());
}
