//! The image boots from a disk: sealed and reachable, then pushed, serving, and switched off by its power button.

use std::fs;

use harness::client::{client, run};
use harness::process::wait_for;
use harness::s3::{Method, presigned};
use harness::site::{DISK, PATIENCE, Site, SiteSpec};
use image_tests::node::{BootedSite, WAITING};
use image_tests::shared;

/// Stores a file over S3 and a pattern over NBD, and reads both back.
fn work(site: &Site) {
    let key = site.create_user("tester");
    site.create_bucket("bucket");
    let access = (key.access_key.as_str(), key.secret_key.as_str());
    let url = |method: &Method| presigned(&site.s3_endpoint(), "bucket", access, method, "object", &[]);
    let curl = || {
        let mut curl = client("curl");
        curl.args(["--silent", "--show-error", "--fail", "--cacert"]).arg(site.ca_bundle());
        curl
    };
    let (sent, received) = (site.dir().join("sent"), site.dir().join("received"));
    fs::write(&sent, vec![0x5A; 3 << 20]).expect("a file");
    run(curl().arg("--upload-file").arg(&sent).arg(url(&Method::PUT))).expect_success();
    run(curl().arg("--output").arg(&received).arg(url(&Method::GET))).expect_success();
    assert!(fs::read(&sent).expect("ours") == fs::read(&received).expect("ours"));
    let mut there = client("nbdcopy");
    fs::write(&sent, vec![0xA5; 8 << 20]).expect("a file");
    run(there.arg("--flush").arg(&sent).arg(site.nbd_tls_uri(DISK))).expect_success();
}

#[test]
fn the_image_boots_sealed_serves_when_pushed_and_wipes_before_it_powers_off() {
    let booted = BootedSite::new(SiteSpec::default(), &shared());
    let mut machine = booted.machine().start();
    let waiting = machine.wait_console(WAITING);
    println!("power-on to sealed and reachable: {waiting:.1?}");
    booted.give_volumes();
    println!("power-on to serving: {:.1?}", machine.since_start());
    let status = booted.site.status();
    let broken: Vec<_> = status.hygiene.iter().filter(|finding| finding.verdict == "broken").collect();
    assert!(broken.is_empty(), "the image lacks what a node requires: {broken:?}");
    work(&booted.site);
    machine.press_power_button();
    assert!(machine.wait_end().success());
    let console = machine.console();
    let place =
        |text: &str| console.find(text).unwrap_or_else(|| panic!("no `{text}` on the console\n{console}"));
    let pressed = place("the power button was pressed");
    let wiped = place("wiped: the node is sealed");
    let stopped = place("the node has stopped with status 0");
    let off = place("powering off");
    assert!(pressed < wiped && wiped < stopped && stopped < off, "{console}");
    wait_for("the keyholder's record of the wipe", PATIENCE, || {
        let trail = booted.site.keyholder_trail();
        let told = trail.iter().any(|line| line.to_string().contains("planned-stop"));
        if told { Ok(()) } else { Err(format!("{trail:?}")) }
    });
}
