//! The firmware is asked to clear memory from before a key arrives until a wipe has come to its end, and no sooner: a machine that
//! is reset in between, or whose node dies in between, has something in memory that nobody has seen go.

use std::path::PathBuf;

use harness::process::wait_for;
use harness::site::{PATIENCE, PushPolicy, Site, SiteSpec};
use security_tests::held::Held;

/// What a node says when the third stage is not reached in its time.
const NOT_REACHED: &str = "what clients had in memory is not all dropped a second after the wipe";

/// The twin of the firmware's variable: its attributes, and whether memory is to be cleared, in the lowest bit.
struct Variable(PathBuf);

impl Variable {
    fn is_set(&self) -> bool {
        let bytes = std::fs::read(&self.0).expect("the variable");
        match bytes[..] {
            [7, 0, 0, 0, value @ (0x10 | 0x11)] => value == 0x11,
            _ => panic!("the variable's other bits have changed: {bytes:?}"),
        }
    }

    fn wait_taken_back(&self) {
        wait_for("a request that is taken back", PATIENCE, || {
            if self.is_set() { Err("it stands".to_owned()) } else { Ok(()) }
        });
    }
}

fn prepared() -> (Site, Variable) {
    // Keys that come back by themselves may be back before anybody has looked.
    let mut site = Site::serving(SiteSpec { push: PushPolicy::Approve, ..SiteSpec::default() });
    site.stop_node();
    let variable = Variable(site.node_config().memory_overwrite.clone());
    std::fs::write(&variable.0, [7, 0, 0, 0, 0x10]).expect("a recorded variable");
    site.change_node_config(|config| {
        // A tracer is there on purpose.
        config.sources.hygiene.interval_ms = 60_000;
    });
    site.expect_log(NOT_REACHED);
    site.start_node();
    assert!(!variable.is_set(), "nobody has a key yet");
    site.push_until_serving();
    assert!(variable.is_set(), "it is asked for before the key is there");
    (site, variable)
}

/// Has power fail while one of the node's threads cannot run, and so cannot be wiped: the third stage waits for it.
fn lose_power_and_stop_at_the_second_stage(site: &mut Site) -> Held {
    let before = times_not_reached(site);
    let held = Held::at_rest(site.node().pid());
    site.lose_power();
    wait_for("a third stage that is not reached", PATIENCE, || {
        if times_not_reached(site) > before { Ok(()) } else { Err(site.node().tail()) }
    });
    let wipe = site.status().last_wipe.expect("it was wiped");
    assert!(wipe.threads_ns.is_some() && wipe.memory_ns.is_none(), "{wipe:?}");
    held
}

fn times_not_reached(site: &mut Site) -> usize {
    site.node().log().iter().filter(|line| line.contains(NOT_REACHED)).count()
}

#[test]
fn the_request_stands_until_the_third_stage_is_reached_however_long_that_takes() {
    let (mut site, variable) = prepared();
    let held = lose_power_and_stop_at_the_second_stage(&mut site);
    assert!(variable.is_set(), "taken back before memory was clear");
    held.release();
    variable.wait_taken_back();
    let wipe = site.status().last_wipe.expect("it was wiped");
    assert!(wipe.memory_ns.is_some(), "taken back before the third stage was said to be reached: {wipe:?}");
    site.push_until_serving();
    assert!(variable.is_set(), "the next key asks for it again");
    site.stop_node();
    assert!(!variable.is_set(), "a planned stop ends in a wipe");
}

#[test]
fn the_request_outlives_a_node_that_dies_between_its_keys_end_and_the_end_of_the_wipe() {
    let (mut site, variable) = prepared();
    let held = lose_power_and_stop_at_the_second_stage(&mut site);
    // Killed.
    drop(held);
    site.kill_node();
    assert!(variable.is_set(), "a node that is dead has taken it back");
    site.start_node();
    assert!(
        site.status().seal.sealed && variable.is_set(),
        "no wipe of this run has shown that memory is clear"
    );
    site.push_until_serving();
    site.lose_power();
    site.wait_sealed("power-loss");
    variable.wait_taken_back();
    site.stop_node();

    // What is no such variable is left alone, and people are told.
    std::fs::write(&variable.0, [7, 0, 0]).expect("a file of another form");
    site.start_node();
    site.push_until_serving();
    assert_eq!(std::fs::read(&variable.0).expect("the file"), [7, 0, 0]);
    let log = site.node().log().join("\n");
    assert!(log.contains("the firmware will not be asked to clear memory"), "{log}");
    site.stop_node();
}
