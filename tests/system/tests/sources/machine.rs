//! The machine itself: shutdown and sleep by logind, and the chassis.
//!
//! logind is a mock on a private bus (a real dbus-daemon); the chassis is a recorded tree of hardware monitors.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use config::{
    ChassisConfig, HygieneConfig, LogindConfig, Reaction, ReactionKind, SourcesConfig, WatchdogConfig,
};
use harness::client::{client, python_client};
use harness::process::{Process, wait_for};
use harness::site::PATIENCE;

use crate::{reaction, site_with, source, wait_source};

/// A private bus, and the mock that owns logind's name on it.
struct Logind {
    _bus: Process,
    mock: Child,
    orders: ChildStdin,
    said: PathBuf,
    socket: PathBuf,
}

impl Logind {
    fn start(dir: &Path) -> Self {
        let dir = dir.join("bus");
        std::fs::create_dir_all(&dir).expect("a directory");
        let socket = dir.join("socket");
        let config = dir.join("bus.conf");
        let text = format!(
            "<busconfig><type>custom</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow own=\"*\"/></policy></busconfig>\n",
            socket.display()
        );
        std::fs::write(&config, text).expect("a configuration");
        let mut command = client("dbus-daemon");
        command.args(["--nofork", "--nopidfile", "--config-file"]).arg(&config);
        let bus = Process::start("dbus-daemon", command);
        wait_for("a bus", PATIENCE, || socket.exists().then_some(()).ok_or_else(|| bus.tail()));
        let said = dir.join("said");
        let output = std::fs::File::create(&said).expect("a file");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/logind.py");
        let mut mock: Command = python_client("python");
        mock.arg("-B").arg(script).arg(format!("unix:path={}", socket.display()));
        let mut mock = mock.stdin(Stdio::piped()).stdout(output).spawn().expect("the mock of logind");
        let orders = mock.stdin.take().expect("the mock takes orders");
        let logind = Self { _bus: bus, mock, orders, said, socket };
        logind.wait_said("ready", 1);
        logind
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("the mock takes orders");
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.said).expect("what the mock said");
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until the mock has said something that begins so, so often.
    fn wait_said(&self, start: &str, times: usize) {
        wait_for(&format!("logind to say {start}"), PATIENCE, || {
            let lines = self.lines();
            let count = lines.iter().filter(|line| line.starts_with(start)).count();
            if count >= times { Ok(()) } else { Err(format!("{lines:?}")) }
        });
    }
}

impl Drop for Logind {
    fn drop(&mut self) {
        let _ = self.mock.kill();
        let _ = self.mock.wait();
    }
}

#[test]
fn the_machine_waits_for_the_node_to_forget_before_it_shuts_down_or_sleeps() {
    let mut logind = None;
    let site = site_with(|dir| {
        let started = Logind::start(dir);
        let config = LogindConfig {
            bus: started.socket.clone(),
            on_shutdown: reaction(ReactionKind::Drain, 0),
            on_sleep: Reaction::wipe(),
            on_lost: reaction(ReactionKind::Report, 100),
        };
        logind = Some(started);
        SourcesConfig { logind: Some(config), ..SourcesConfig::default() }
    });
    let mut logind = logind.expect("a mock was started");
    logind.wait_said("inhibited shutdown:sleep Nightlatch", 1);
    // Another program on the bus announces a shutdown: it is not logind.
    logind.order("forge shutdown true");
    wait_source(&site, "logind", "a refused announcement", |source| source.refused == 1);
    assert!(!site.status().seal.sealed && source(&site, "logind").fired == 0);
    logind.order("sleep true");
    site.wait_sealed("machine-sleep");
    logind.wait_said("released", 1);
    logind.order("sleep false");
    logind.wait_said("inhibited", 2);
    site.wait_serving();
    logind.order("shutdown true");
    wait_source(&site, "logind", "a shutdown", |source| source.active == ["machine-shutdown"]);
    assert_eq!(
        logind.lines().iter().filter(|line| *line == "released").count(),
        1,
        "not before the drain's end"
    );
    site.wait_sealed("machine-shutdown");
    logind.wait_said("released", 2);
    // Called off.
    logind.order("shutdown false");
    logind.wait_said("inhibited", 3);
    site.wait_serving();
    drop(logind);
    wait_source(&site, "logind", "a lost bus", |source| !source.up && source.active == ["source-lost"]);
}

#[test]
fn an_opened_chassis_wipes_and_latches_until_the_alarm_is_cleared_and_an_officer_agrees() {
    let mut alarm = PathBuf::new();
    let site = site_with(|dir| {
        let directory = dir.join("hwmon");
        alarm = directory.join("hwmon2/intrusion0_alarm");
        std::fs::create_dir_all(alarm.parent().expect("a folder")).expect("a recorded tree");
        std::fs::write(&alarm, "0\n").expect("a recorded tree");
        let chassis = ChassisConfig {
            directory,
            interval_ms: 100,
            on_intrusion: Reaction::wipe(),
            on_lost: Reaction::report(),
        };
        SourcesConfig { chassis: Some(chassis), ..SourcesConfig::default() }
    });
    std::fs::write(&alarm, "1\n").expect("a recorded tree");
    site.wait_sealed("intrusion");
    site.expect_latched();
    std::fs::write(&alarm, "0\n").expect("a recorded tree");
    wait_source(&site, "chassis", "a cleared alarm", |source| source.active.is_empty());
    site.expect_latched();
    site.act("/v1/unlatch");
    site.push_until_serving();
}

#[test]
fn hygiene_that_gets_worse_while_keys_are_held_wipes_and_latches() {
    let mut swaps = PathBuf::new();
    let mut site = site_with(|dir| {
        let root = dir.join("root");
        swaps = root.join("proc/swaps");
        std::fs::create_dir_all(root.join("proc")).expect("a recorded tree");
        std::fs::create_dir_all(root.join("sys")).expect("a recorded tree");
        std::fs::write(&swaps, "Filename\tType\n").expect("a recorded tree");
        let hygiene = HygieneConfig { interval_ms: 100, root, on_regression: Reaction::wipe() };
        SourcesConfig { hygiene, ..SourcesConfig::default() }
    });
    site.expect_log("memory hygiene got worse");
    assert!(source(&site, "hygiene").recorded, "a twin says that it is one");
    std::fs::write(&swaps, "Filename\tType\n/dev/sda2\tpartition\n").expect("a recorded tree");
    site.wait_sealed("hygiene");
    site.expect_latched();
    // An officer who has seen the evidence may push all the same: what is there now is the new measure.
    site.act("/v1/unlatch");
    site.push_until_serving();
}

#[test]
fn the_firmware_is_to_clear_memory_exactly_while_keys_are_held() {
    let mut variable = PathBuf::new();
    let mut site = site_with(|dir| {
        variable = dir.join("memory-overwrite");
        std::fs::write(&variable, [7, 0, 0, 0, 0]).expect("a recorded variable");
        SourcesConfig::default()
    });
    let wait_value = |wanted: u8| {
        wait_for("the firmware's variable", PATIENCE, || {
            let bytes = std::fs::read(&variable).expect("the variable");
            if bytes == [7, 0, 0, 0, wanted] { Ok(()) } else { Err(format!("{bytes:?}")) }
        });
    };
    wait_value(1);
    site.lose_power();
    site.wait_sealed("power-loss");
    wait_value(0);
    site.wait_serving();
    wait_value(1);
    // Nothing takes it back when the program dies: then it is wanted.
    site.kill_node();
    wait_value(1);
    site.start_node();
    site.wait_serving();
    site.stop_node();
    wait_value(0);
}

#[test]
fn a_watchdog_is_fed_while_the_wiper_answers_and_disarmed_when_the_node_stops() {
    let mut device = PathBuf::new();
    let mut site = site_with(|dir| {
        device = dir.join("watchdog");
        std::fs::write(&device, "").expect("a recorded watchdog");
        SourcesConfig::default()
    });
    site.stop_node();
    let path = device.clone();
    site.change_node_config(|config| {
        config.watchdog = Some(WatchdogConfig { device: path, timeout_s: 4, recorded: true });
    });
    site.start_node();
    site.wait_serving();
    let fed = || std::fs::read(&device).expect("the recorded watchdog");
    wait_for("three feeds", PATIENCE, || if fed().len() >= 3 { Ok(()) } else { Err(format!("{:?}", fed())) });
    assert!(source(&site, "watchdog").up && fed().iter().all(|byte| *byte == 0), "{:?}", fed());
    site.stop_node();
    assert_eq!(fed().last(), Some(&b'V'));
}
