//! Alerts and dashboard against a real Prometheus that scrapes a real node: every metric that they name is one that is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::client::{client, run};
use harness::hardware::{DiskSays, Machine};
use harness::process::{Process, wait_for};
use harness::site::{PATIENCE, PushPolicy, Site, SiteSpec, free_port};
use serde_json::Value;

fn folder() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.ancestors().nth(2).expect("this crate lies two folders below the workspace root").join("monitoring")
}

/// The names of our metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = text.split(|letter| !is_name(letter));
    let is_ours = |word: &&str| ["nightlatch_", "nbd_", "s3_"].iter().any(|prefix| word.starts_with(prefix));
    words.filter(is_ours).map(str::to_owned).collect()
}

/// The expressions of the dashboard's panels.
fn dashboard_expressions() -> String {
    let text = fs::read_to_string(folder().join("dashboard.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("a dashboard in JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let expressions: Vec<&str> =
        targets.map(|target| target["expr"].as_str().expect("an expression")).collect();
    assert!(expressions.len() >= 15, "{expressions:?}");
    expressions.join("\n")
}

/// The expressions of the alerts.
fn alert_expressions() -> String {
    let text = fs::read_to_string(folder().join("alerts.yml")).expect("the alerts");
    let expressions: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
    assert!(expressions.len() >= 10, "{expressions:?}");
    expressions.join("\n")
}

struct Prometheus {
    address: String,
    _process: Process,
}

impl Prometheus {
    fn scraping(node: &str, folder: &Path) -> Self {
        let address = free_port().to_string();
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [\"{}\"]\nscrape_configs:\n  \
             - job_name: nightlatch\n    static_configs: [{{ targets: [\"{node}\"] }}]\n",
            self::folder().join("alerts.yml").display()
        );
        let file = folder.join("prometheus.yml");
        fs::write(&file, config).expect("a configuration");
        let mut command: Command = client("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("series").display()));
        command.arg(format!("--web.listen-address={address}"));
        Self { address, _process: Process::start("prometheus", command) }
    }

    fn ask(&self, path: &str) -> Option<Value> {
        let url = format!("http://{}/api/v1/{path}", self.address);
        let output = client("curl").args(["--silent", "--fail", &url]).output().expect("curl runs");
        serde_json::from_slice::<Value>(&output.stdout).ok().filter(|answer| answer["status"] == "success")
    }

    /// The state of an alert: `inactive`, `pending` or `firing`.
    fn alert(&self, name: &str) -> Option<String> {
        let answer = self.ask("rules")?;
        let rules = answer["data"]["groups"][0]["rules"].as_array()?.clone();
        let rule = rules.into_iter().find(|rule| rule["name"] == name)?;
        (rule["health"] == "ok").then(|| rule["state"].as_str().map(str::to_owned)).flatten()
    }

    fn wait_alert(&self, name: &str, state: &str) {
        wait_for(&format!("{name} to be {state}"), PATIENCE, || match self.alert(name) {
            Some(found) if found == state => Ok(()),
            found => Err(format!("{found:?}")),
        });
    }
}

#[test]
fn alerts_and_dashboard_name_what_a_node_shows_and_a_sealed_node_raises_its_alert() {
    run(client("promtool").args(["check", "rules"]).arg(folder().join("alerts.yml"))).expect_success();
    run(client("promtool").args(["test", "rules"]).arg(folder().join("alerts-test.yml"))).expect_success();
    let mut site = Site::serving(SiteSpec { push: PushPolicy::Approve, ..SiteSpec::default() });
    site.expect_log("needs looking after");
    // Findings are shown where there are some: a disk that is worn out.
    let worn = DiskSays { used_percent: 95, ..DiskSays::WELL };
    Machine::at(site.dir()).disk_says(worn);
    // Counters by label appear with the first that is counted: a request that nobody signed.
    let mut curl = client("curl");
    curl.args(["--silent", "--cacert"]).arg(site.ca_bundle()).arg(site.s3_endpoint());
    assert!(run(&mut curl).expect_success().contains("AccessDenied"));
    let folder = tempfile::tempdir().expect("a temporary directory");
    let prometheus = Prometheus::scraping(&site.metrics_address().to_string(), folder.path());
    prometheus.wait_alert("NightlatchSealed", "inactive");
    wait_for("a scraped node", PATIENCE, || {
        let answer = prometheus.ask("query?query=nightlatch_sealed");
        let seen = answer.is_some_and(|answer| answer["data"]["result"][0]["value"][1] == "0");
        if seen { Ok(()) } else { Err("not yet".to_owned()) }
    });
    let url = format!("http://{}/metrics", site.metrics_address());
    let shown = run(client("curl").args(["--silent", "--fail", &url])).expect_success();
    let known = metrics_in(&shown);
    let is_known = |name: &String| {
        let of_family = ["_total", "_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
        known.contains(name) || of_family.is_some_and(|family| known.contains(family))
    };
    // A drill writes its own, to a file for the node exporter (`daemon/cli/src/drill/metrics.rs`).
    let is_known = |name: &String| is_known(name) || name.starts_with("nightlatch_drill_");
    let named = metrics_in(&format!("{}\n{}", alert_expressions(), dashboard_expressions()));
    let unknown: Vec<&String> = named.iter().filter(|name| !is_known(name)).collect();
    assert!(unknown.is_empty(), "no node shows {unknown:?}; it shows {known:#?}");
    // Each would fire after its minutes; until then it is pending.
    for alert in ["NightlatchDiskToReplace", "NightlatchHardwareWarns"] {
        prometheus.wait_alert(alert, "pending");
    }
    prometheus.wait_alert("NightlatchHardwareFails", "inactive");
    site.lose_power();
    site.wait_sealed("power-loss");
    // It would fire after its minutes; until then it is pending.
    wait_for("the alert", PATIENCE, || match prometheus.alert("NightlatchSealed").as_deref() {
        Some("pending" | "firing") => Ok(()),
        found => Err(format!("{found:?}")),
    });
}
