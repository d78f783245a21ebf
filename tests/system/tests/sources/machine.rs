//! The machine itself: shutdown and sleep by logind, the chassis, its clock, its power button and its management controller.
//!
//! logind is a mock on a private bus (a real dbus-daemon); the chassis is a recorded tree of hardware monitors, clock, button
//! and controller are twins. The real ones are in tests/guest.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use config::{
    BmcConfig, ButtonConfig, ChassisConfig, ClockConfig, HygieneConfig, LogindConfig, Reaction, ReactionKind,
    SourcesConfig, WatchdogConfig,
};
use harness::battery_clock::BatteryClock;
use harness::bus::Bus;
use harness::client::python_client;
use harness::process::wait_for;
use harness::site::{PATIENCE, PushPolicy, SiteSpec};

use crate::{reaction, site_of, site_with, source, wait_source};

/// A private bus, and the mock that owns logind's name on it.
struct Logind {
    _bus: Bus,
    mock: Child,
    orders: ChildStdin,
    said: PathBuf,
    socket: PathBuf,
}

impl Logind {
    fn start(dir: &Path) -> Self {
        let bus = Bus::start(dir);
        let (dir, socket) = (bus.folder().to_owned(), bus.socket().to_owned());
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
        // The last may be in the middle of being written.
        let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        whole.map(str::to_owned).collect()
    }

    /// When each inhibitor was let go of, on CLOCK_BOOTTIME, nanoseconds.
    fn released(&self) -> Vec<u64> {
        let lines = self.lines();
        let moments = lines.iter().filter_map(|line| line.strip_prefix("released "));
        moments.map(|moment| moment.parse().expect("a number")).collect()
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
    let asleep = site.wait_sealed("machine-sleep").last_wipe.expect("a wipe").at_boot_ns;
    logind.wait_said("released", 1);
    logind.order("sleep false");
    logind.wait_said("inhibited", 2);
    site.wait_serving();
    logind.order("shutdown true");
    wait_source(&site, "logind", "a shutdown", |source| source.active == ["machine-shutdown"]);
    let down = site.wait_sealed("machine-shutdown").last_wipe.expect("a wipe").at_boot_ns;
    logind.wait_said("released", 2);
    let released = logind.released();
    assert!(
        released.iter().zip([asleep.0, down.0]).all(|(released, wiped)| *released >= wiped),
        "let go of at {released:?}, before the wipes at {asleep:?} and, at the drain's end, {down:?}"
    );
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
    // Keys that come back by themselves may be back before anybody has looked.
    let approved = SiteSpec { push: PushPolicy::Approve, ..SiteSpec::default() };
    let mut site = site_of(approved, |dir| {
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
    site.push_until_serving();
    wait_value(1);
    // Nothing takes it back when the program dies: then it is wanted.
    site.kill_node();
    wait_value(1);
    site.start_node();
    site.push_until_serving();
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

#[test]
fn a_simulated_battery_backed_clock_that_went_on_alone_wipes_and_latches() {
    let mut clock = None;
    let site = site_with(|dir| {
        let rtc = dir.join("since_epoch");
        clock = Some(BatteryClock::start(rtc.clone()));
        let config = ClockConfig {
            rtc,
            interval_ms: 100,
            tolerance_ms: 5_000,
            on_disagreement: Reaction::wipe(),
            on_lost: Reaction::report(),
        };
        SourcesConfig { clock: Some(config), ..SourcesConfig::default() }
    });
    let clock = clock.expect("the twin ticks");
    let heard = wait_source(&site, "clock", "a clock that is read", |source| source.heard_boot_ns.is_some());
    assert!(heard.recorded && heard.fired == 0, "{heard:?}");
    // As after a minute in which the machine stood still.
    clock.go_ahead(60);
    site.wait_sealed("clock");
    site.expect_latched();
    site.act("/v1/unlatch");
    site.push_until_serving();
    assert_eq!(source(&site, "clock").fired, 1, "from there on the two agree again");
    drop(site);
}

#[test]
fn a_simulated_management_controller_wipes_as_power_goes_and_latches_as_the_chassis_opens() {
    let mut listener = None;
    let mut site = site_with(|dir| {
        let device = dir.join("bmc.sock");
        listener = Some(UnixListener::bind(&device).expect("a socket"));
        let bmc = BmcConfig {
            device,
            recorded: true,
            single_supply: false,
            on_power: Reaction::wipe(),
            on_intrusion: Reaction::wipe(),
            on_lost: Reaction::report(),
        };
        SourcesConfig { bmc: Some(bmc), ..SourcesConfig::default() }
    });
    let (mut controller, _) = listener.expect("a twin").accept().expect("the node dials at its start");
    // One supply of several lost its input; then the power unit did.
    let status = site.wiped_by(|_| {
        controller.write_all(&sources::sel_record(0x08, 3)).expect("the node listens");
        controller.write_all(&sources::sel_record(0x09, 4)).expect("the node listens");
    });
    assert_eq!(status.last_wipe.expect("it was wiped").cause, "bmc-power");
    site.wait_serving();
    assert_eq!(source(&site, "bmc").fired, 1, "a supply among several is not the machine's power");
    controller.write_all(&sources::sel_record(0x05, 0)).expect("the node listens");
    site.wait_sealed("intrusion");
    site.expect_latched();
    site.stop_node();
}

#[test]
fn a_simulated_press_of_the_power_button_drains_then_wipes_and_keys_come_back() {
    let mut listener = None;
    let mut site = site_with(|dir| {
        let device = dir.join("button.sock");
        listener = Some(UnixListener::bind(&device).expect("a socket"));
        let button = ButtonConfig {
            name: "power-button".into(),
            device,
            recorded: true,
            on_press: reaction(ReactionKind::Drain, 0),
            on_lost: Reaction::report(),
        };
        SourcesConfig { button: vec![button], ..SourcesConfig::default() }
    });
    let (mut button, _) = listener.expect("a twin").accept().expect("the node dials at its start");
    let status = site.wiped_by(|_| {
        button.write_all(&sources::power_key_record(true)).expect("the node listens");
        button.write_all(&sources::power_key_record(false)).expect("the node listens");
    });
    assert_eq!(status.last_wipe.expect("it was wiped").cause, "machine-shutdown");
    site.wait_serving();
    assert_eq!(source(&site, "power-button").fired, 1);
    site.stop_node();
}
