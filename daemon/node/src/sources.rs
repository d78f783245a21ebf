//! The node's sources of triggers: made from the configuration, run, and shown.
//!
//! Invariants:
//! - A source that cannot be opened is lost, not left out: it is in status and metrics, and its policy for that applies.
//! - Nothing here wipes: fast sources are read by the wiper's own thread, slow ones call [`Wiper::on_fired`] from theirs.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use config::{
    ApcupsdConfig, BmcConfig, ButtonConfig, ChassisConfig, ClockConfig, GpioConfig, HygieneConfig,
    KernelEventConfig, LineBias, LineLevel, LogindConfig, NutConfig, PowerSupplyConfig, Reaction,
    ReactionKind, SourcesConfig, WatchdogConfig,
};
use keyring::Keyring;
use lease::message::WipeCause;
use sandbox::{Access, FileRules};
use sources::{
    Action, ActiveLevel, Apcupsd, ApcupsdSpec, Bias, Bmc, Chassis, ClockWatch, Condition, Fast, Gate,
    GpioLine, KernelEvents, LineSpec, Logind, Monitor, Nut, NutLogin, NutSpec, Pattern, Policy, PowerButton,
    Slow, SourceError, SourceState, Stop, SupplyEvents, SupplyFiles, Vital, Watchdog,
};
use units::BootInstant;

use crate::boot_clock;
use crate::hygiene_watch::{HygieneSource, HygieneWatch};
use crate::wiper::Wiper;

/// A source for the wiper's own thread; `fast` is gone once it cannot be read.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) fast: Option<Box<dyn Fast>>,
    pub(crate) monitor: Monitor,
}

/// A source that a thread of its own asks.
#[derive(Debug)]
pub(crate) struct Asked {
    slow: Box<dyn Slow>,
    monitor: Monitor,
    reach: Reach,
}

/// What a thread that dials or asks may reach once it is confined.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reach {
    files: Vec<PathBuf>,
    changed: Vec<PathBuf>,
    port: Option<u16>,
}

/// For connecting to one address of a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the C library looks names up.
const NAME_FILES: [&str; 7] = [
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/run/systemd/resolve",
];

impl Reach {
    pub(crate) fn files(files: &[&Path]) -> Self {
        Self { files: files.iter().map(|file| file.to_path_buf()).collect(), ..Self::default() }
    }

    /// Files that may be written to as well.
    pub(crate) fn and_change(mut self, files: impl Iterator<Item = PathBuf>) -> Self {
        self.changed.extend(files);
        self
    }

    /// A server by its `host:port`.
    pub(crate) fn server(server: &str) -> Self {
        let port = server.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        Self { files: NAME_FILES.map(PathBuf::from).to_vec(), port, ..Self::default() }
    }

    /// Gives up in this thread what the source does not need.
    pub(crate) fn confine(self) -> anyhow::Result<()> {
        sandbox::drop_capabilities()?;
        // What is not there now cannot be allowed; the source then says that it cannot read it.
        let read = self.files.into_iter().map(|file| (file, Access::Read));
        let changed = self.changed.into_iter().map(|file| (file, Access::Change));
        let there = read.chain(changed).filter(|(file, _)| file.exists());
        let rules = there.fold(FileRules::default(), |rules, (file, access)| rules.allow(file, access));
        sandbox::restrict_files(&self.port.into_iter().fold(rules, FileRules::dial))?;
        sandbox::restrict_calls(sandbox::Role::Source)?;
        Ok(())
    }
}

/// A connection to the first address of a server that takes one, from a thread that may dial it.
pub(crate) fn connect(server: impl ToSocketAddrs) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::NotFound.into();
    for address in server.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What the configuration asks to be heard.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) fast: Vec<Watched>,
    pub(crate) slow: Vec<Asked>,
}

/// The cause of a wipe that follows a condition.
pub(crate) const fn cause(condition: Condition) -> WipeCause {
    match condition {
        Condition::PowerLine => WipeCause::PowerLine,
        Condition::PowerSupply => WipeCause::PowerSupply,
        Condition::KernelEvent => WipeCause::KernelEvent,
        Condition::UpsOnBattery => WipeCause::UpsOnBattery,
        Condition::UpsLowBattery => WipeCause::UpsLowBattery,
        Condition::UpsForcedShutdown => WipeCause::UpsForcedShutdown,
        Condition::Shutdown => WipeCause::MachineShutdown,
        Condition::Sleep => WipeCause::MachineSleep,
        Condition::Intrusion => WipeCause::Intrusion,
        Condition::BmcPower => WipeCause::BmcPower,
        Condition::Clock => WipeCause::Clock,
        Condition::Hygiene => WipeCause::Hygiene,
        Condition::Lost => WipeCause::SourceLost,
    }
}

fn policy(reaction: &Reaction) -> Policy {
    let action = match reaction.action {
        ReactionKind::Wipe => Action::Wipe,
        ReactionKind::Drain => Action::Drain(Duration::from_secs(reaction.drain_s)),
        ReactionKind::Report => Action::Report,
    };
    Policy { action, debounce: Duration::from_millis(reaction.debounce_ms) }
}

impl Sources {
    /// Opens what the configuration names.
    pub(crate) fn open(
        config: &SourcesConfig,
        keyring: &Arc<Keyring>,
        hygiene_watch: &Arc<HygieneWatch>,
    ) -> Self {
        let mut sources = Self::default();
        config.gpio.iter().for_each(|gpio| sources.add_gpio(gpio));
        config.button.iter().for_each(|button| sources.add_button(button));
        config.bmc.iter().for_each(|bmc| sources.add_bmc(bmc));
        config.kernel_event.iter().for_each(|event| sources.add_kernel_event(event));
        config.power_supply.iter().for_each(|supply| sources.add_power_supply(supply));
        config.nut.iter().for_each(|nut| sources.add_nut(nut));
        config.apcupsd.iter().for_each(|ups| sources.add_apcupsd(ups));
        config.logind.iter().for_each(|logind| sources.add_logind(logind, keyring));
        config.chassis.iter().for_each(|chassis| sources.add_chassis(chassis));
        config.clock.iter().for_each(|clock| sources.add_clock(clock));
        sources.add_hygiene(&config.hygiene, hygiene_watch);
        sources
    }

    fn add_gpio(&mut self, gpio: &GpioConfig) {
        let policies =
            [(Condition::PowerLine, policy(&gpio.on_active)), (Condition::Lost, policy(&gpio.on_lost))];
        let monitor = Monitor::new(&gpio.name, "gpio", gpio.recorded, &policies);
        let active = match gpio.active {
            LineLevel::High => ActiveLevel::High,
            LineLevel::Low => ActiveLevel::Low,
        };
        let bias = match gpio.bias {
            LineBias::AsIs => Bias::AsIs,
            LineBias::Disabled => Bias::Disabled,
            LineBias::PullUp => Bias::PullUp,
            LineBias::PullDown => Bias::PullDown,
        };
        let spec = LineSpec { line: gpio.line, active, bias };
        self.add_fast(monitor, |monitor| {
            if gpio.recorded {
                GpioLine::recorded(&gpio.chip).map(boxed)
            } else {
                GpioLine::request(&gpio.chip, spec, monitor).map(boxed)
            }
        });
    }

    fn add_button(&mut self, button: &ButtonConfig) {
        let policies =
            [(Condition::Shutdown, policy(&button.on_press)), (Condition::Lost, policy(&button.on_lost))];
        let monitor = Monitor::new(&button.name, "button", button.recorded, &policies);
        self.add_fast(monitor, |_| {
            if button.recorded {
                PowerButton::recorded(&button.device).map(boxed)
            } else {
                PowerButton::open(&button.device).map(boxed)
            }
        });
    }

    fn add_bmc(&mut self, bmc: &BmcConfig) {
        let policies = [
            (Condition::BmcPower, policy(&bmc.on_power)),
            (Condition::Intrusion, policy(&bmc.on_intrusion)),
            (Condition::Lost, policy(&bmc.on_lost)),
        ];
        let open = if bmc.recorded { Bmc::recorded } else { Bmc::open };
        self.add_fast(Monitor::new("bmc", "bmc", bmc.recorded, &policies), |_| {
            open(&bmc.device, bmc.single_supply).map(boxed)
        });
    }

    fn add_kernel_event(&mut self, event: &KernelEventConfig) {
        let policies =
            [(Condition::KernelEvent, policy(&event.on_event)), (Condition::Lost, policy(&event.on_lost))];
        let monitor = Monitor::new(&event.name, "kernel-event", false, &policies);
        let pairs = event.pairs.clone().into_iter().collect();
        let pattern = Pattern { pairs, synthetic: event.synthetic };
        self.add_fast(monitor, |_| KernelEvents::open(pattern).map(boxed));
    }

    fn add_power_supply(&mut self, supply: &PowerSupplyConfig) {
        let policies = [
            (Condition::PowerSupply, policy(&supply.on_offline)),
            (Condition::Lost, policy(&supply.on_lost)),
        ];
        let monitor = |name: &str| Monitor::new(name, "power-supply", false, &policies);
        self.add_fast(monitor("power-supply"), |monitor| {
            SupplyEvents::open(&supply.directory, &supply.supplies, monitor).map(boxed)
        });
        let interval = Duration::from_millis(supply.interval_ms);
        let files = SupplyFiles::new(&supply.directory, &supply.supplies, interval);
        // The class is links into the tree of devices.
        let reach = Reach::files(&[&supply.directory, Path::new("/sys")]);
        self.add_slow(files, monitor("power-supply-files"), reach);
    }

    fn add_nut(&mut self, nut: &NutConfig) {
        let policies = [
            (Condition::UpsForcedShutdown, policy(&nut.on_forced_shutdown)),
            (Condition::UpsLowBattery, policy(&nut.on_low_battery)),
            (Condition::UpsOnBattery, policy(&nut.on_battery)),
            (Condition::Lost, policy(&nut.on_lost)),
        ];
        let login = nut.user.clone().zip(nut.password_file.clone());
        let spec = NutSpec {
            server: nut.server.clone(),
            ups: nut.ups.clone(),
            login: login.map(|(user, password_file)| NutLogin { user, password_file }),
            interval: Duration::from_millis(nut.interval_ms),
        };
        let mut reach = Reach::server(&nut.server);
        reach.files.extend(nut.password_file.clone());
        self.add_slow(Nut::new(spec), Monitor::new(&nut.name, "nut", false, &policies), reach);
    }

    fn add_apcupsd(&mut self, ups: &ApcupsdConfig) {
        let policies = [
            (Condition::UpsForcedShutdown, policy(&ups.on_forced_shutdown)),
            (Condition::UpsLowBattery, policy(&ups.on_low_battery)),
            (Condition::UpsOnBattery, policy(&ups.on_battery)),
            (Condition::Lost, policy(&ups.on_lost)),
        ];
        let interval = Duration::from_millis(ups.interval_ms);
        let spec = ApcupsdSpec { server: ups.server.clone(), interval };
        let monitor = Monitor::new(&ups.name, "apcupsd", false, &policies);
        self.add_slow(Apcupsd::new(spec), monitor, Reach::server(&ups.server));
    }

    fn add_logind(&mut self, logind: &LogindConfig, keyring: &Arc<Keyring>) {
        let reactions = [
            (Condition::Shutdown, policy(&logind.on_shutdown)),
            (Condition::Sleep, policy(&logind.on_sleep)),
            (Condition::Lost, policy(&logind.on_lost)),
        ];
        // The machine need not wait for a line in the log.
        let wipes = reactions[..2].iter().any(|(_, policy)| policy.action != Action::Report);
        let gate = wipes.then(|| Box::new(SealedGate(Arc::clone(keyring))) as Box<dyn Gate>);
        let monitor = Monitor::new("logind", "logind", false, &reactions);
        self.add_slow(Logind::new(&logind.bus, gate), monitor, Reach::default());
    }

    fn add_chassis(&mut self, chassis: &ChassisConfig) {
        let policies = [
            (Condition::Intrusion, policy(&chassis.on_intrusion)),
            (Condition::Lost, policy(&chassis.on_lost)),
        ];
        let source = Chassis::new(&chassis.directory, Duration::from_millis(chassis.interval_ms));
        let monitor = Monitor::new("chassis", "chassis", false, &policies);
        self.add_slow(source, monitor, Reach::files(&[&chassis.directory, Path::new("/sys")]));
    }

    fn add_clock(&mut self, clock: &ClockConfig) {
        let policies =
            [(Condition::Clock, policy(&clock.on_disagreement)), (Condition::Lost, policy(&clock.on_lost))];
        let interval = Duration::from_millis(clock.interval_ms);
        let source = ClockWatch::new(&clock.rtc, interval, Duration::from_millis(clock.tolerance_ms));
        let monitor = Monitor::new("clock", "clock", !clock.rtc.starts_with("/sys"), &policies);
        // The class is links into the tree of devices.
        let directory = clock.rtc.parent().unwrap_or(Path::new("/sys"));
        self.add_slow(source, monitor, Reach::files(&[directory, Path::new("/sys")]));
    }

    fn add_hygiene(&mut self, hygiene: &HygieneConfig, watch: &Arc<HygieneWatch>) {
        let root = hygiene.root.as_path();
        let policies = [(Condition::Hygiene, policy(&hygiene.on_regression))];
        let monitor = Monitor::new("hygiene", "hygiene", root != Path::new("/"), &policies);
        let reach = Reach::files(&[&root.join("proc"), &root.join("sys")]);
        let source = HygieneSource::new(Arc::clone(watch), Duration::from_millis(hygiene.interval_ms));
        self.add_slow(source, monitor, reach);
    }

    fn add_slow(&mut self, slow: impl Slow + 'static, monitor: Monitor, reach: Reach) {
        self.slow.push(Asked { slow: Box::new(slow), monitor, reach });
    }

    fn add_fast(
        &mut self,
        mut monitor: Monitor,
        open: impl FnOnce(&mut Monitor) -> Result<Box<dyn Fast>, SourceError>,
    ) {
        let fast = open(&mut monitor)
            .inspect_err(|error| {
                tracing::error!(source = monitor.state().name(), %error, "a source of triggers is not heard");
                monitor.on_trouble(boot_clock::now(), Some(error.to_string()));
            })
            .ok();
        self.fast.push(Watched { fast, monitor });
    }

    /// What everyone may see of each.
    pub(crate) fn states(&self) -> Vec<Arc<SourceState>> {
        let fast = self.fast.iter().map(|watched| &watched.monitor);
        let slow = self.slow.iter().map(|asked| &asked.monitor);
        fast.chain(slow).map(|monitor| Arc::clone(monitor.state())).collect()
    }
}

/// Starts a thread for each slow source.
pub(crate) fn start_slow(slow: Vec<Asked>, wiper: &Arc<Wiper>, stop: &Arc<Stop>) -> std::io::Result<()> {
    slow.into_iter().try_for_each(|asked| start_one(asked, wiper, stop).map(drop))
}

fn start_one(asked: Asked, wiper: &Arc<Wiper>, stop: &Arc<Stop>) -> std::io::Result<JoinHandle<()>> {
    let Asked { mut slow, mut monitor, reach } = asked;
    let (wiper, stop) = (Arc::clone(wiper), Arc::clone(stop));
    let name = format!("source {}", monitor.state().name());
    std::thread::Builder::new().name(name).spawn(move || {
        if let Err(error) = reach.confine() {
            let source = monitor.state().name();
            tracing::error!(source, %error, "a source's thread cannot be confined, and does not run");
            slow.stopped();
            slow = Box::new(Unconfined);
        }
        let mut act = |state: &SourceState, fired| wiper.on_fired(state, fired);
        sources::watch(slow.as_mut(), &mut monitor, &stop, &boot_clock::now, &mut act);
    })
}

/// In place of a source whose thread cannot be confined: lost from the start.
#[derive(Debug)]
struct Unconfined;

impl Slow for Unconfined {
    fn interval(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn poll(&mut self, _: BootInstant, _: &mut Monitor) -> Result<(), SourceError> {
        Err(SourceError::Unconfined)
    }
}

/// Lets the machine go on to its end once no key is held.
struct SealedGate(Arc<Keyring>);

impl Gate for SealedGate {
    fn is_open(&self) -> bool {
        self.0.status().keys == 0
    }
}

/// The wiper, as the watchdog asks it.
struct AskedWiper(Arc<Wiper>);

impl Vital for AskedWiper {
    fn answers(&self) -> bool {
        self.0.answers()
    }
}

/// The thread that feeds the watchdog. Dropping this disarms it.
#[derive(Debug)]
pub(crate) struct Feeder {
    thread: Option<JoinHandle<()>>,
    stop: Arc<Stop>,
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.stop.stop();
        // The process must not end before the watchdog is disarmed; a turn takes a second at most.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Arms the watchdog and starts to feed it. Last of all: from here on a node that dies resets the machine.
pub(crate) fn start_watchdog(
    config: &WatchdogConfig,
    mut monitor: Monitor,
    wiper: &Arc<Wiper>,
) -> std::io::Result<Feeder> {
    let timeout = Duration::from_secs(config.timeout_s);
    let vital = Box::new(AskedWiper(Arc::clone(wiper)));
    let armed = if config.recorded {
        Watchdog::recorded(&config.device, timeout, vital)
    } else {
        Watchdog::arm(&config.device, timeout, vital)
    };
    let stop = Arc::new(Stop::default());
    let thread = match armed {
        Ok(watchdog) => {
            let asked = Asked { slow: Box::new(watchdog), monitor, reach: Reach::default() };
            Some(start_one(asked, wiper, &stop)?)
        }
        Err(error) => {
            tracing::error!(%error, "the watchdog is not armed");
            monitor.on_trouble(boot_clock::now(), Some(error.to_string()));
            None
        }
    };
    Ok(Feeder { thread, stop })
}

/// How status shows the watchdog.
pub(crate) fn watchdog_monitor(config: &WatchdogConfig) -> Monitor {
    Monitor::new("watchdog", "watchdog", config.recorded, &[(Condition::Lost, Policy::REPORT)])
}

fn boxed<F: Fast + 'static>(fast: F) -> Box<dyn Fast> {
    Box::new(fast)
}

impl Watched {
    /// Reads the source. One that has ended is lost from now on, and given back: it can still be waited for, and not read.
    /// A source that goes on takes no lock here.
    pub(crate) fn read(&mut self, now: BootInstant) -> Option<Box<dyn Fast>> {
        let errno = self.fast.as_mut()?.read(now, &mut self.monitor).err()?;
        let trouble = format!("it has ended ({errno}); mend it and restart the node");
        self.monitor.on_trouble(now, Some(trouble));
        self.fast.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The defaults of the configuration are those of the trigger table.
    #[test]
    fn what_is_not_configured_follows_the_trigger_table() {
        let table =
            |condition| lease::trigger::row(cause(condition)).map(|row| (row.action, row.configurable));
        let gpio = r#"name = "a"
            chip = "c"
            line = 1
            active = "low""#;
        let gpio: config::GpioConfig = toml::from_str(gpio).unwrap();
        let supply: config::PowerSupplyConfig = toml::from_str("").unwrap();
        let event: config::KernelEventConfig = toml::from_str("name = \"a\"\nmatch = {}").unwrap();
        let nut: config::NutConfig = toml::from_str("name = \"a\"\nups = \"a\"").unwrap();
        let apcupsd: config::ApcupsdConfig = toml::from_str("name = \"a\"").unwrap();
        let logind: config::LogindConfig = toml::from_str("").unwrap();
        let chassis: config::ChassisConfig = toml::from_str("").unwrap();
        let clock: config::ClockConfig = toml::from_str("").unwrap();
        let button: config::ButtonConfig = toml::from_str("name = \"a\"\ndevice = \"d\"").unwrap();
        let defaults = [
            (Condition::UpsOnBattery, nut.on_battery),
            (Condition::UpsLowBattery, nut.on_low_battery),
            (Condition::UpsForcedShutdown, nut.on_forced_shutdown),
            (Condition::Lost, nut.on_lost),
            (Condition::UpsOnBattery, apcupsd.on_battery),
            (Condition::UpsLowBattery, apcupsd.on_low_battery),
            (Condition::UpsForcedShutdown, apcupsd.on_forced_shutdown),
            (Condition::Lost, apcupsd.on_lost),
            (Condition::Shutdown, logind.on_shutdown),
            (Condition::Sleep, logind.on_sleep),
            (Condition::Lost, logind.on_lost),
            (Condition::Intrusion, chassis.on_intrusion),
            (Condition::Hygiene, HygieneConfig::default().on_regression),
            (Condition::Lost, chassis.on_lost),
            (Condition::Clock, clock.on_disagreement),
            (Condition::Lost, clock.on_lost),
            (Condition::Shutdown, button.on_press),
            (Condition::Lost, button.on_lost),
            (Condition::PowerLine, gpio.on_active),
            (Condition::Lost, gpio.on_lost),
            (Condition::PowerSupply, supply.on_offline),
            (Condition::Lost, supply.on_lost),
            (Condition::KernelEvent, event.on_event),
            (Condition::Lost, event.on_lost),
        ];
        for (condition, reaction) in defaults {
            let action = match reaction.action {
                ReactionKind::Wipe => lease::trigger::Action::Wipe,
                ReactionKind::Drain => lease::trigger::Action::DrainThenWipe,
                ReactionKind::Report => lease::trigger::Action::Report,
            };
            assert_eq!(table(condition), Some((action, true)), "{condition:?}");
        }
    }
}
