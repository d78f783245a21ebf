//! A machine that swaps, though it should not: what of a node it takes to its disk.

use std::path::Path;

use guest::Format;
use guest::node::GuestNode;
use harness::process::{program, wait_for};
use harness::site::{PATIENCE, SiteSpec};
use security_tests::image;
use security_tests::installation::{needles, recovered};
use security_tests::needles::Needles;

const PLANTED: [u8; 32] = *b"in ordinary memory of a program.";

/// Holds [`PLANTED`], with nothing done to keep it from being swapped.
const HOLD: &str = "mkdir /sys/fs/cgroup/held && \
                    sh -c 'echo $$ > /sys/fs/cgroup/held/cgroup.procs; \
                           tail -f /run/held | planted > /run/planted.log 2>&1' > /dev/null 2>&1 &";

#[test]
fn a_node_put_under_pressure_leaves_no_key_in_swap_in_the_guest() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let swap = folder.path().join("swap");
    std::fs::File::create(&swap).and_then(|file| file.set_len(512 << 20)).expect("a disk");
    let planted = program("planted");
    let equip = |machine: guest::Builder| {
        machine.drive(&swap, Format::Raw).program(&planted, Path::new("/usr/bin/planted"))
    };
    // Before the node starts, which would take it for a regression otherwise.
    let turn_on = |guest: &mut guest::Guest| {
        // What is started from here on is in a group of its own: its memory can be taken, and nobody else's.
        let group = "mkswap /dev/vdb && swapon /dev/vdb && mount -t cgroup2 cgroup /sys/fs/cgroup && \
                     echo +memory > /sys/fs/cgroup/cgroup.subtree_control && mkdir /sys/fs/cgroup/node && \
                     echo 1 > /sys/fs/cgroup/node/cgroup.procs";
        guest.run(group).expect_success();
        let held = format!("echo {} > /run/held; {HOLD}", hex::encode(PLANTED));
        guest.run(&held).expect_success();
        wait_for("a program that holds it", PATIENCE, || {
            let said = guest.run("cat /run/planted.log").stdout;
            if said.contains("held") { Ok(()) } else { Err(said) }
        });
    };
    let spec = SiteSpec { lease_ms: 120_000, ..SiteSpec::default() };
    let mut node = GuestNode::serving(spec, |_| {}, equip, turn_on);
    let keys = needles(&recovered(&node.site));
    let mut control = Needles::new();
    control.add_secret("planted", &PLANTED);
    let pressed = node.guest.run(
        "for group in node held; do echo 256M > /sys/fs/cgroup/$group/memory.reclaim; done; sync; \
         grep VmSwap /proc/$(cat /run/node.pid)/status; cat /proc/swaps",
    );
    println!("{}{}", pressed.stdout, pressed.stderr);
    let swapped = pressed.stdout.lines().find_map(|line| line.strip_prefix("VmSwap:"));
    let swapped: u64 =
        swapped.and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok()).expect("a number");
    assert!(swapped > 1024, "the node was not swapped: {swapped} kB");
    let found = image::search(&swap, &control).expect("the disk");
    assert!(!found.findings.is_empty(), "what a program held is not in swap: the search is blind");
    let found = image::search(&swap, &keys).expect("the disk");
    assert!(found.findings.is_empty(), "in swap, keys held: {}", found.describe(20));
    node.guest.run("kill -PWR $(cat /run/node.pid)").expect_success();
    wait_for("the third stage", PATIENCE, || {
        let wipe = node.site.status().last_wipe;
        if wipe.as_ref().is_some_and(|wipe| wipe.memory_ns.is_some()) {
            Ok(())
        } else {
            Err(format!("{wipe:?}"))
        }
    });
    let found = image::search(&swap, &keys).expect("the disk");
    assert!(found.findings.is_empty(), "in swap, after the wipe: {}", found.describe(20));
}
