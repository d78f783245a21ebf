//! What the machine itself says: the hypervisor presses the power button, ACPI tells the kernel, the kernel's input device
//! tells the node; a management controller logs an event, the kernel's IPMI driver fetches it, its device tells the node.

use std::path::Path;

use guest::Guest;
use guest::node::GuestNode;
use harness::client::client;
use harness::process::wait_for;
use harness::site::{PATIENCE, SiteSpec};

/// Where the test finds the device, whose number depends on what else the machine has.
const BUTTON: &str = "/dev/power-button";

const CONTROLLER: &str = "/dev/ipmi0";

/// What QEMU's controller has to tell of: a power unit (sensor type 09h), whose events are on.
const POWER_UNIT: [u8; 40] = [
    0x01, 0x00, 0x51, 0x02, 35, 0x20, 0x00, 0x01, 0x13, 0x01, 0x63, 0x00, 0x09, 0x6f, 0xff, 0x00, 0x00, 0x00,
    0xff, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xc8, b'P', b'o', b'w',
    b'e', b'r', b' ', b' ', b' ',
];

/// Has the controller log that the power unit has lost its input ("Set Sensor Reading" of sensor 1, IPMI 2.0, 35.17).
const LOSE_INPUT: &str = "ipmitool raw 0x04 0x30 0x01 0x50 0x00 0x10 0x00 0x00 0x00 0x04 0xff 0xff";

fn find_devices(guest: &mut Guest) {
    let found = guest.run(&format!(
        "for device in /sys/class/input/event*; do \
             grep -q 'Power Button' $device/device/name && ln -s /dev/input/${{device##*/}} {BUTTON}; \
         done; test -c {BUTTON}"
    ));
    assert_eq!(found.code, 0, "no power button: {}", guest.run("cat /proc/bus/input/devices").stdout);
    wait_for("the controller's device", PATIENCE, || {
        let found = guest.run(&format!("test -c {CONTROLLER}"));
        if found.code == 0 { Ok(()) } else { Err(guest.run("dmesg | grep -i ipmi").stdout) }
    });
}

/// Waits for the next wipe, and says what for.
fn wiped_for(node: &mut GuestNode, event: impl FnOnce(&mut Guest)) -> String {
    let GuestNode { guest, site } = node;
    site.wiped_by(|_| event(guest)).last_wipe.expect("it was wiped").cause
}

#[test]
fn the_management_controller_and_the_power_button_are_heard_in_the_guest() {
    let configure = |config: &mut config::NodeConfig| {
        let text = format!("name = \"power-button\"\ndevice = \"{BUTTON}\"");
        config.sources.button = vec![toml::from_str(&text).expect("a button")];
        config.sources.bmc =
            Some(toml::from_str(&format!("device = \"{CONTROLLER}\"")).expect("a controller"));
    };
    let folder = tempfile::tempdir().expect("a temporary directory");
    let sensors = folder.path().join("sensors");
    std::fs::write(&sensors, POWER_UNIT).expect("a file");
    let equip = |machine: guest::Builder| {
        machine
            .module("button")
            .module("evdev")
            .module("ipmi_si")
            .module("ipmi_devintf")
            .argument("-device")
            .argument(&format!("ipmi-bmc-sim,id=bmc,sdrfile={}", sensors.display()))
            .argument("-device")
            .argument("isa-ipmi-kcs,bmc=bmc")
            .program(Path::new(client("ipmitool").get_program()), Path::new("/usr/bin/ipmitool"))
    };
    let mut node = GuestNode::serving(SiteSpec::default(), configure, equip, find_devices);
    node.site.expect_log("the session with the node ended");
    for name in ["power-button", "bmc"] {
        let source = node.site.status().sources.into_iter().find(|source| source.name == name);
        let source = source.expect("a source of this name");
        assert!(source.trouble.is_none() && !source.recorded, "{source:?}");
    }
    let cause = wiped_for(&mut node, |guest| {
        guest.run(LOSE_INPUT).expect_success();
    });
    assert_eq!(cause, "bmc-power");
    node.site.push_until_serving();
    assert_eq!(wiped_for(&mut node, Guest::press_power_button), "machine-shutdown");
    let log = node.log();
    assert!(log.contains("a source fired: wiping soon"), "a press drains first\n{log}");
}
