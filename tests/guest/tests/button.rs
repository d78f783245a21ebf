//! The machine's power button: the hypervisor presses it, ACPI tells the kernel, the kernel's input device tells the node.

use guest::Guest;
use guest::node::GuestNode;
use harness::site::SiteSpec;

/// Where the test finds the device, whose number depends on what else the machine has.
const BUTTON: &str = "/dev/power-button";

fn find_button(guest: &mut Guest) {
    let found = guest.run(&format!(
        "for device in /sys/class/input/event*; do \
             grep -q 'Power Button' $device/device/name && ln -s /dev/input/${{device##*/}} {BUTTON}; \
         done; test -c {BUTTON}"
    ));
    assert_eq!(found.code, 0, "no power button: {}", guest.run("cat /proc/bus/input/devices").stdout);
}

#[test]
fn a_press_of_the_power_button_drains_and_wipes_in_the_guest() {
    let configure = |config: &mut config::NodeConfig| {
        let text = format!("name = \"power-button\"\ndevice = \"{BUTTON}\"");
        config.sources.button = vec![toml::from_str(&text).expect("a button")];
    };
    let equip = |machine: guest::Builder| machine.module("button").module("evdev");
    let mut node = GuestNode::serving(SiteSpec::default(), configure, equip, find_button);
    node.site.expect_log("the session with the node ended");
    let source = node.site.status().sources.into_iter().find(|source| source.name == "power-button");
    let source = source.expect("a source of this name");
    assert!(source.trouble.is_none() && !source.recorded, "{source:?}");
    let generation = node.site.status().key_memory.generation;
    node.guest.press_power_button();
    harness::process::wait_for("a wipe", harness::site::PATIENCE, || {
        let status = node.site.status();
        let wiped = status.key_memory.generation > generation;
        if wiped { Ok(()) } else { Err(format!("{:?}", status.seal)) }
    });
    let wipe = node.site.status().last_wipe.expect("it was wiped");
    assert_eq!(wipe.cause, "machine-shutdown");
    let log = node.log();
    assert!(log.contains("a source fired: wiping soon"), "a press drains first\n{log}");
}
