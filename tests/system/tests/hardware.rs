//! The machine's parts, as a node watches them: what it finds in status, readiness and metrics, what the command line shows, and
//! the light at a disk's place.

use harness::client::{client, run};
use harness::hardware::{DiskSays, Machine, RECORDED_CARD, RECORDED_DISK};
use harness::process::{program, wait_for};
use harness::site::{PATIENCE, PushPolicy, Site, SiteSpec};
use serde_json::Value;

fn site() -> (Site, Machine) {
    let mut site = Site::serving(SiteSpec { push: PushPolicy::Approve, ..SiteSpec::default() });
    site.expect_log("needs looking after");
    let machine = Machine::at(site.dir());
    (site, machine)
}

fn page(site: &Site, page: &str) -> (u16, String) {
    let url = format!("http://{}/{page}", site.metrics_address());
    let mut curl = client("curl");
    curl.args(["--silent", "--write-out", "\n%{http_code}", &url]);
    let answer = run(&mut curl).expect_success();
    let (text, code) = answer.rsplit_once('\n').expect("a status code on a line of its own");
    (code.parse().expect("a status code"), text.to_owned())
}

/// Waits until the codes of what is found are these.
fn wait_found(site: &Site, codes: &[&str]) {
    wait_for(&format!("{codes:?} to be found"), PATIENCE, || {
        let found: Vec<&str> = site.status().findings.iter().map(|finding| finding.code.name()).collect();
        if found == codes { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

fn nightlatch(site: &Site, arguments: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(program("nightlatch"));
    command.args(arguments).arg("--profile").arg(site.profile());
    command
}

fn said(site: &Site, arguments: &[&str]) -> String {
    run(&mut nightlatch(site, arguments)).expect_success()
}

#[test]
fn what_is_found_is_in_status_readiness_and_metrics_and_goes_when_it_is_over() {
    let (site, machine) = site();
    wait_found(&site, &[]);
    assert_eq!(page(&site, "readyz"), (200, "ok\n".to_owned()));
    machine.disk_says(DiskSays { used_percent: 95, media_errors: 1, ..DiskSays::WELL });
    machine.disk_celsius(90);
    machine.uncorrected(1);
    machine.link(false);
    wait_found(&site, &["disk-wear", "disk-media-errors", "hot", "memory-uncorrected", "link-lost"]);
    let (code, text) = page(&site, "readyz");
    assert_eq!((code, text.lines().next()), (200, Some("ok")), "it serves: {text}");
    let wear = format!("note disk-wear: {RECORDED_DISK}: 95% of its endurance is used. ");
    assert!(text.lines().any(|line| line.starts_with(&wear)), "{text}");
    let metrics = page(&site, "metrics").1;
    for line in [
        format!("nightlatch_disk_replace{{disk=\"{RECORDED_DISK}\"}} 1"),
        format!("nightlatch_disk_endurance_used_ratio{{disk=\"{RECORDED_DISK}\"}} 0.95"),
        format!("nightlatch_link_up{{interface=\"{RECORDED_CARD}\"}} 0"),
        "nightlatch_memory_uncorrected_errors{controller=\"mc0\"} 1".to_owned(),
        "nightlatch_temperature_celsius{sensor=\"nvme-nvme0/Composite\"} 90.0".to_owned(),
        format!(
            "nightlatch_health_finding{{code=\"link-lost\",severity=\"page\",subject=\"{RECORDED_CARD}\"}} 1"
        ),
    ] {
        assert!(metrics.lines().any(|shown| shown == line), "no `{line}` in\n{metrics}");
    }
    assert!(said(&site, &["node", "status"]).contains(&format!("DISK-WEAR {RECORDED_DISK}: 95%")));
    // Another disk, a fan that turns again, the module exchanged, the cable back.
    machine.disk_says(DiskSays::WELL);
    machine.disk_celsius(38);
    machine.uncorrected(0);
    machine.link(true);
    wait_found(&site, &[]);
    let metrics = page(&site, "metrics").1;
    assert!(!metrics.lines().any(|line| line.starts_with("nightlatch_health_finding{")), "{metrics}");
    site.check_logs();
}

#[test]
fn a_disk_that_takes_no_writes_makes_a_node_unready_only_where_a_pool_is_on_it() {
    let (mut site, machine) = site();
    let read_only = DiskSays { critical_warning: 1 << 3, ..DiskSays::WELL };
    machine.disk_says(read_only);
    wait_found(&site, &["disk-read-only"]);
    let (code, text) = page(&site, "readyz");
    assert!(code == 200 && text.contains("\nnote disk-read-only: "), "{code}: {text}");
    // Which disks pools are on, a node looks up when it starts.
    site.stop_node();
    machine.holds(site.pool_file());
    site.start_node();
    site.push_until_serving();
    wait_found(&site, &["disk-read-only"]);
    let (code, text) = page(&site, "readyz");
    assert_eq!(code, 503, "{text}");
    assert!(text.starts_with(&format!("disk-read-only: {RECORDED_DISK}: ")), "{text}");
    machine.disk_says(DiskSays::WELL);
    wait_found(&site, &[]);
    assert_eq!(page(&site, "readyz"), (200, "ok\n".to_owned()));
}

#[test]
fn the_inventory_names_the_parts_and_a_disk_is_found_by_its_light() {
    let (site, machine) = site();
    let shown = said(&site, &["node", "inventory"]);
    for part in
        ["Recorded 1T", "R1", "Recorded CPU", "1 GiB of memory", "A1", RECORDED_CARD, "nvme-nvme0/Composite"]
    {
        assert!(shown.contains(part), "no `{part}` in\n{shown}");
    }
    let inventory: Value =
        serde_json::from_str(&said(&site, &["node", "inventory", "--json"])).expect("JSON");
    let disks = inventory["inventory"]["disks"].as_array().expect("disks");
    let located =
        |name: &str| disks.iter().find(|disk| disk["name"] == name).expect("the disk")["located"].clone();
    assert_eq!((located(RECORDED_DISK), located("sda")), (Value::Bool(false), Value::Null));
    assert!(!machine.is_lit());
    said(&site, &["node", "locate", RECORDED_DISK, "on"]);
    assert!(machine.is_lit());
    wait_for("the light in the inventory", PATIENCE, || {
        let shown = said(&site, &["node", "inventory"]);
        let line = shown.lines().find(|line| line.starts_with(RECORDED_DISK)).expect("the disk").to_owned();
        if line.contains(" ON ") { Ok(()) } else { Err(line) }
    });
    let located = said(&site, &["node", "locate", RECORDED_DISK, "off", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&located).expect("JSON")["on"], false);
    assert!(!machine.is_lit());
    let act = |entry: &Value| entry.to_string().contains("/v1/disks/{disk}/locate");
    assert!(site.node_trail().iter().any(act), "who switched it is in the trail");
    for (disk, why) in [("sda", "no light is known"), ("sdz", "has no disk"), ("../../x", "has no disk")] {
        let refused = run(&mut nightlatch(&site, &["node", "locate", disk, "on"])).expect_failure();
        assert!(refused.contains(why), "{disk}: {refused}");
    }
}

#[test]
fn every_worker_gives_signs_of_life_and_none_is_stalled() {
    let (site, _) = site();
    let status = site.status();
    let names: Vec<&str> = status.workers.iter().map(|worker| worker.name.as_str()).collect();
    assert_eq!(
        names,
        ["damage", "fold-0", "health", "pool-0", "refusals", "scrub-0", "snapshots", "write-back"]
    );
    assert!(status.workers.iter().all(|worker| !worker.stalled), "{:?}", status.workers);
    let beat = |name: &str| {
        let workers = site.status().workers;
        workers.into_iter().find(|worker| worker.name == name).expect("a worker").beat_boot_ns
    };
    for name in ["fold-0", "health", "pool-0", "refusals", "write-back"] {
        let before = beat(name);
        wait_for(&format!("another sign of life of {name}"), PATIENCE, || {
            if beat(name) > before { Ok(()) } else { Err("none yet".to_owned()) }
        });
    }
    let metrics = page(&site, "metrics").1;
    assert!(metrics.contains("nightlatch_worker_stalled{worker=\"scrub-0\"} 0\n"), "{metrics}");
}
