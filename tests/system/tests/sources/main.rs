//! Every source of triggers end to end: an unsealed node, an event, the right cause, and keys back as the table says.
//!
//! Kernel events are the kernel's own, asked for through a device's `uevent` file, which takes root. A GPIO chip is not to
//! be had here: its line is a twin that sends recorded line events over a socket. Supplies are a recorded tree.

mod machine;
mod ups;

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use admin::api::SourceStatus;
use config::{
    GpioConfig, KernelEventConfig, LineBias, LineLevel, PowerSupplyConfig, Reaction, ReactionKind,
    SourcesConfig,
};
use harness::client::{client, run};
use harness::process::wait_for;
use harness::site::{DISK, PATIENCE, Site, SiteSpec};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, sendto, socket,
};

/// An unsealed node with these sources.
fn site_with(sources: impl FnOnce(&Path) -> SourcesConfig) -> Site {
    site_of(SiteSpec::default(), sources)
}

/// The same in another installation than the default one.
fn site_of(spec: SiteSpec, sources: impl FnOnce(&Path) -> SourcesConfig) -> Site {
    let mut site = Site::serving(spec);
    site.expect_log("a source fired");
    site.expect_log("still stands");
    site.stop_node();
    let sources = sources(site.dir());
    site.change_node_config(|config| config.sources = sources);
    site.start_node();
    site.push_until_serving();
    site
}

fn source(site: &Site, name: &str) -> SourceStatus {
    let status = site.status();
    let found = status.sources.iter().find(|source| source.name == name).cloned();
    found.unwrap_or_else(|| panic!("no source {name}: {:?}", status.sources))
}

/// Waits until a source's status is as wanted.
fn wait_source(site: &Site, name: &str, what: &str, wanted: impl Fn(&SourceStatus) -> bool) -> SourceStatus {
    wait_for(what, PATIENCE, || {
        let status = source(site, name);
        if wanted(&status) { Ok(status) } else { Err(format!("{status:?}")) }
    })
}

/// Waits until the keyholder has offered a key in vain, because the trigger stands.
fn wait_refused(site: &Site, cause: &str) {
    wait_for("a grant that is refused while the trigger stands", PATIENCE, || {
        let volumes = site.keyholder_status().volumes;
        let disk = volumes.iter().find(|volume| volume.label == DISK).expect("the disk");
        match &disk.reason {
            Some(reason) if reason.contains(&format!("{cause} still stands")) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert!(site.status().seal.sealed, "no key comes in while {cause} stands");
}

/// A reaction after `debounce_ms`.
fn reaction(action: ReactionKind, debounce_ms: u64) -> Reaction {
    Reaction { action, drain_s: 1, debounce_ms }
}

// ---- the GPIO twin ----

/// The socket on which the twin of a line's events listens.
struct Line {
    listener: UnixListener,
    events: Option<UnixStream>,
    sequence: u32,
}

impl Line {
    fn listen(path: &Path) -> Self {
        Self { listener: UnixListener::bind(path).expect("a socket"), events: None, sequence: 0 }
    }

    fn set(&mut self, active: bool) {
        self.sequence += 1;
        let record = sources::event_record(active, self.sequence, 0);
        let events =
            self.events.get_or_insert_with(|| self.listener.accept().expect("the node dials at its start").0);
        events.write_all(&record).expect("the node listens");
    }

    fn hang_up(&mut self) {
        self.events.get_or_insert_with(|| self.listener.accept().expect("the node dials at its start").0);
        self.events = None;
    }
}

fn gpio(chip: PathBuf, on_active: Reaction, on_lost: Reaction) -> GpioConfig {
    GpioConfig {
        name: "line".into(),
        chip,
        line: 4,
        active: LineLevel::Low,
        bias: LineBias::AsIs,
        recorded: true,
        on_active,
        on_lost,
    }
}

fn line_site(on_active: Reaction, on_lost: Reaction) -> (Site, Line) {
    let mut line = None;
    let site = site_with(|dir| {
        let path = dir.join("line.sock");
        line = Some(Line::listen(&path));
        SourcesConfig { gpio: vec![gpio(path, on_active, on_lost)], ..SourcesConfig::default() }
    });
    (site, line.expect("the line listens"))
}

#[test]
fn a_power_fail_line_wipes_keeps_keys_away_while_it_is_active_and_lets_them_back_after() {
    let (site, mut line) = line_site(Reaction::wipe(), Reaction::report());
    assert!(source(&site, "line").recorded, "a twin says that it is one");
    line.set(true);
    let status = site.wait_sealed("power-line");
    assert_eq!(status.key_memory.keys, 0);
    wait_refused(&site, "power-line");
    assert_eq!(source(&site, "line").active, ["power-line"]);
    line.set(false);
    site.wait_serving();
    assert_eq!((source(&site, "line").active.len(), source(&site, "line").fired), (0, 1));
}

#[test]
fn a_drain_ends_in_a_wipe_at_its_time_and_not_before() {
    let (site, mut line) = line_site(reaction(ReactionKind::Drain, 0), Reaction::report());
    line.set(true);
    let heard = wait_source(&site, "line", "the line's event", |source| source.fired == 1).heard_boot_ns;
    let status = site.wait_sealed("power-line");
    let wiped = status.last_wipe.expect("a wipe").at_boot_ns;
    let drained_ms = wiped.ms_since(heard.expect("the source was heard"));
    // The node's own drain, of 2 s, is another. How soon after its end keys are gone is measured by the bench.
    assert!((1_000..2_000).contains(&drained_ms), "wiped after {drained_ms} ms of a drain of 1 s");
    line.set(false);
    site.wait_serving();
}

#[test]
fn a_bounce_that_is_shorter_than_the_debounce_does_nothing() {
    let (site, mut line) = line_site(reaction(ReactionKind::Wipe, 60_000), Reaction::report());
    line.set(true);
    line.set(false);
    wait_source(&site, "line", "the line's events", |source| source.heard_boot_ns.is_some());
    assert_eq!(source(&site, "line").fired, 0);
    assert!(!site.status().seal.sealed);
}

#[test]
fn a_source_that_ends_is_reported_and_by_policy_wipes_and_latches() {
    for (on_lost, wipes) in [(Reaction::report(), false), (Reaction::wipe(), true)] {
        let (site, mut line) = line_site(Reaction::wipe(), on_lost);
        line.hang_up();
        let lost = wait_source(&site, "line", "the line's end", |source| !source.up);
        assert!(lost.trouble.as_ref().is_some_and(|trouble| trouble.contains("ended")), "{lost:?}");
        assert!(metric(&site, "nightlatch_source_up").iter().any(|line| line.ends_with(" 0")));
        if wipes {
            site.wait_sealed("source-lost");
            site.expect_latched();
        } else {
            wait_source(&site, "line", "a report", |source| source.active == ["source-lost"]);
            assert!(!site.status().seal.sealed, "only reported");
        }
    }
}

#[test]
fn a_source_that_cannot_be_opened_is_shown_and_does_not_stop_the_node() {
    let mut site = Site::serving(SiteSpec::default());
    site.expect_log("a source of triggers is not heard");
    site.expect_log("a source fired");
    site.stop_node();
    let chip =
        GpioConfig { recorded: false, ..gpio("/dev/null".into(), Reaction::wipe(), Reaction::report()) };
    site.change_node_config(|config| config.sources.gpio = vec![chip]);
    site.start_node();
    site.wait_serving();
    let status = source(&site, "line");
    assert!(!status.up && status.trouble.as_ref().is_some_and(|trouble| trouble.contains("/dev/null")));
}

// ---- the machine's supplies ----

#[test]
fn supplies_that_go_offline_wipe_and_keys_come_back_with_the_mains() {
    let mut online = PathBuf::new();
    let site = site_with(|dir| {
        let directory = dir.join("power_supply");
        let supply = directory.join("AC0");
        std::fs::create_dir_all(&supply).expect("a recorded tree");
        std::fs::write(supply.join("type"), "Mains\n").expect("a recorded tree");
        online = supply.join("online");
        std::fs::write(&online, "1\n").expect("a recorded tree");
        let supply = PowerSupplyConfig {
            supplies: Vec::new(),
            directory,
            interval_ms: 100,
            on_offline: Reaction::wipe(),
            on_lost: Reaction::report(),
        };
        SourcesConfig { power_supply: Some(supply), ..SourcesConfig::default() }
    });
    for name in ["power-supply", "power-supply-files"] {
        wait_source(&site, name, "supplies that are read", |source| source.up);
    }
    std::fs::write(&online, "0\n").expect("a recorded tree");
    site.wait_sealed("power-supply");
    wait_refused(&site, "power-supply");
    std::fs::write(&online, "1\n").expect("a recorded tree");
    site.wait_serving();
}

// ---- the kernel's events ----

fn metric(site: &Site, name: &str) -> Vec<String> {
    let mut curl = client("curl");
    let answer = run(curl.arg("--silent").arg(format!("http://{}/metrics", site.metrics_address())));
    let text = answer.expect_success();
    text.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
}

/// Sends what a program could: a well-made event to the group that only the kernel should send to.
fn spoof_event() {
    let spoofer = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkKObjectUEvent,
    )
    .expect("a netlink socket");
    bind(spoofer.as_raw_fd(), &NetlinkAddr::new(0, 0)).expect("a netlink port");
    let event = b"change@/devices/virtual/mem/null\0ACTION=change\0SUBSYSTEM=mem\0DEVNAME=null\0SEQNUM=1\0";
    let group = NetlinkAddr::new(0, 1);
    sendto(spoofer.as_raw_fd(), event, &group, MsgFlags::empty()).expect("only root may send events");
}

#[test]
fn an_event_of_the_kernel_wipes_and_latches_and_a_spoofed_one_is_refused_and_recorded() {
    let pairs = [("ACTION", "change"), ("SUBSYSTEM", "mem"), ("DEVNAME", "null")];
    let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let site = site_with(|_| {
        let event = KernelEventConfig {
            name: "device".into(),
            synthetic: true,
            pairs,
            on_event: Reaction::wipe(),
            on_lost: Reaction::report(),
        };
        SourcesConfig { kernel_event: vec![event], ..SourcesConfig::default() }
    });
    spoof_event();
    wait_source(&site, "device", "a refused event", |source| source.refused > 0);
    assert_eq!(source(&site, "device").fired, 0);
    assert!(!site.status().seal.sealed, "a spoofed event does nothing");
    let refused = metric(&site, "nightlatch_source_refused");
    assert!(refused.iter().any(|line| line.contains("device") && !line.ends_with(" 0")), "{refused:?}");
    wait_for("the trail's entry", PATIENCE, || {
        let trail = site.node_trail();
        let is_it =
            |entry: &serde_json::Value| entry["event"] == "source-refused" && entry["source"] == "device";
        if trail.iter().any(is_it) { Ok(()) } else { Err(format!("{trail:?}")) }
    });
    std::fs::write("/sys/class/mem/null/uevent", "change").expect("only root may ask for an event");
    site.wait_sealed("kernel-event");
    site.expect_latched();
    site.act("/v1/unlatch");
    site.push_until_serving();
}
