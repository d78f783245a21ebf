//! The `[sources]` tables of `node.toml`: where the node hears that power, trust or the machine is going.
//!
//! Every reaction has a default, which is that of the trigger table (daemon/lease/TRIGGERS.md); what is written here is
//! what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use hygiene::{Hearing, SourceCheck};
use serde::{Deserialize, Serialize};

use crate::error::Invalid;
use crate::tls::resolve;

/// Most sources of one kind: each has a thread or a descriptor.
const SOURCES_MAX: usize = 16;

/// Longest drain of a source: longer than a UPS's last minutes makes no sense.
const DRAIN_S: RangeInclusive<u64> = 1..=300;

/// Longest debounce.
const DEBOUNCE_MS_MAX: u64 = 600_000;

/// How often a slow source may be asked.
const INTERVAL_MS: RangeInclusive<u64> = 100..=60_000;

/// Longest name: it is a label in metrics.
const NAME_BYTES_MAX: usize = 64;

/// Disagreements of clocks that may be tolerated: the battery-backed one counts in seconds, and a lease lasts minutes.
const TOLERANCE_MS: RangeInclusive<u64> = 2_000..=60_000;

/// Lines of one GPIO chip: more than any has.
const LINE_MAX: u32 = 1023;

/// Pairs of one kernel event.
const PAIRS: RangeInclusive<usize> = 1..=8;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReactionKind {
    /// Wipe at once.
    Wipe,
    /// Give clients `drain_s` seconds, then wipe.
    Drain,
    /// Say so in log, status and metrics.
    Report,
}

/// What follows a condition of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reaction {
    /// What to do.
    pub action: ReactionKind,
    /// Seconds that a drain may take.
    #[serde(default = "drain_s_default")]
    pub drain_s: u64,
    /// For how long the condition must hold first, in milliseconds.
    #[serde(default)]
    pub debounce_ms: u64,
}

fn drain_s_default() -> u64 {
    10
}

impl Reaction {
    const fn now(action: ReactionKind) -> Self {
        Self { action, drain_s: 10, debounce_ms: 0 }
    }

    /// At once.
    pub const fn wipe() -> Self {
        Self::now(ReactionKind::Wipe)
    }

    /// After three seconds: logind waits five for those who asked it to.
    pub const fn drain_shortly() -> Self {
        Self { drain_s: 3, ..Self::now(ReactionKind::Drain) }
    }

    /// Only said, at once.
    pub const fn report() -> Self {
        Self::now(ReactionKind::Report)
    }

    /// Only said, when a source that is asked now and then has been silent for long.
    const fn report_silence() -> Self {
        Self { debounce_ms: 15_000, ..Self::report() }
    }

    fn validate(&self, key: &str) -> Result<(), Invalid> {
        if self.action == ReactionKind::Drain && !DRAIN_S.contains(&self.drain_s) {
            return Err(Invalid::new(
                format!("{key}.drain_s"),
                format!("a drain of {} s is out of range", self.drain_s),
                format!("give {} to {} s, or the action \"wipe\"", DRAIN_S.start(), DRAIN_S.end()),
            ));
        }
        if self.debounce_ms > DEBOUNCE_MS_MAX {
            return Err(Invalid::new(
                format!("{key}.debounce_ms"),
                format!("a debounce of {} ms is out of range", self.debounce_ms),
                format!("give 0 to {DEBOUNCE_MS_MAX} ms"),
            ));
        }
        Ok(())
    }
}

/// Which level of a line means that power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LineLevel {
    /// High.
    High,
    /// Low.
    Low,
}

/// What pulls an undriven line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LineBias {
    /// As the firmware left it.
    #[default]
    AsIs,
    /// Nothing.
    Disabled,
    /// To high.
    PullUp,
    /// To low.
    PullDown,
}

/// One `[[sources.gpio]]` table: a power-fail line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpioConfig {
    /// Its name in status and metrics.
    pub name: String,
    /// The chip's device.
    pub chip: PathBuf,
    /// The line's number on it.
    pub line: u32,
    /// The level that means that power fails.
    pub active: LineLevel,
    /// The line's bias.
    #[serde(default)]
    pub bias: LineBias,
    /// `chip` is no chip but a unix socket on which somebody sends recorded line events: for tests and drills.
    #[serde(default)]
    pub recorded: bool,
    /// When the line goes active.
    #[serde(default = "Reaction::wipe")]
    pub on_active: Reaction,
    /// When the line cannot be read.
    #[serde(default = "Reaction::report")]
    pub on_lost: Reaction,
}

/// The `[sources.power_supply]` table: the kernel's power_supply class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerSupplyConfig {
    /// The supplies to watch, by the kernel's names; none means all that bring mains.
    #[serde(default)]
    pub supplies: Vec<String>,
    /// Where the kernel shows them.
    #[serde(default = "power_supply_directory")]
    pub directory: PathBuf,
    /// How often they are read, beside the kernel's events.
    #[serde(default = "interval_ms_default")]
    pub interval_ms: u64,
    /// When every one is offline.
    #[serde(default = "Reaction::wipe")]
    pub on_offline: Reaction,
    /// When they cannot be read.
    #[serde(default = "Reaction::report_silence")]
    pub on_lost: Reaction,
}

fn power_supply_directory() -> PathBuf {
    "/sys/class/power_supply".into()
}

fn interval_ms_default() -> u64 {
    1_000
}

/// One `[[sources.kernel_event]]` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelEventConfig {
    /// Its name in status and metrics.
    pub name: String,
    /// Also events that somebody asked the kernel to repeat.
    #[serde(default)]
    pub synthetic: bool,
    /// Keys with the values that they must all have; a value that ends in `*` is a beginning.
    #[serde(rename = "match")]
    pub pairs: BTreeMap<String, String>,
    /// When such an event comes.
    #[serde(default = "Reaction::wipe")]
    pub on_event: Reaction,
    /// When the kernel's events cannot be heard.
    #[serde(default = "Reaction::report")]
    pub on_lost: Reaction,
}

/// One `[[sources.nut]]` table: a UPS at Network UPS Tools' upsd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NutConfig {
    /// Its name in status and metrics.
    pub name: String,
    /// upsd's `host:port`.
    #[serde(default = "nut_server_default")]
    pub server: String,
    /// The UPS's name at upsd.
    pub ups: String,
    /// Who to log in as, by `upsd.users`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A file that holds the user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// How often upsd is asked.
    #[serde(default = "ups_interval_ms_default")]
    pub interval_ms: u64,
    /// When it runs on its battery.
    #[serde(default = "Reaction::wipe")]
    pub on_battery: Reaction,
    /// When its battery is nearly empty, or it falls silent while on battery.
    #[serde(default = "Reaction::wipe")]
    pub on_low_battery: Reaction,
    /// When everyone is ordered down.
    #[serde(default = "Reaction::wipe")]
    pub on_forced_shutdown: Reaction,
    /// When it has not been heard for the debounce.
    #[serde(default = "Reaction::report_silence")]
    pub on_lost: Reaction,
}

/// One `[[sources.apcupsd]]` table: a UPS at apcupsd's network information server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApcupsdConfig {
    /// Its name in status and metrics.
    pub name: String,
    /// The server's `host:port`.
    #[serde(default = "apcupsd_server_default")]
    pub server: String,
    /// How often it is asked.
    #[serde(default = "ups_interval_ms_default")]
    pub interval_ms: u64,
    /// When it runs on its battery.
    #[serde(default = "Reaction::wipe")]
    pub on_battery: Reaction,
    /// When its battery is nearly empty, or it falls silent while on battery.
    #[serde(default = "Reaction::wipe")]
    pub on_low_battery: Reaction,
    /// When apcupsd shuts its machines down.
    #[serde(default = "Reaction::wipe")]
    pub on_forced_shutdown: Reaction,
    /// When it has not been heard for the debounce.
    #[serde(default = "Reaction::report_silence")]
    pub on_lost: Reaction,
}

fn nut_server_default() -> String {
    "127.0.0.1:3493".to_owned()
}

fn apcupsd_server_default() -> String {
    "127.0.0.1:3551".to_owned()
}

fn ups_interval_ms_default() -> u64 {
    2_000
}

/// The `[sources.logind]` table: shutdown and sleep as systemd-logind announces them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogindConfig {
    /// The system bus's socket.
    #[serde(default = "system_bus_default")]
    pub bus: PathBuf,
    /// When the machine shuts down or restarts.
    #[serde(default = "Reaction::drain_shortly")]
    pub on_shutdown: Reaction,
    /// When it goes to sleep.
    #[serde(default = "Reaction::wipe")]
    pub on_sleep: Reaction,
    /// When logind has not been heard for the debounce.
    #[serde(default = "Reaction::report_silence")]
    pub on_lost: Reaction,
}

fn system_bus_default() -> PathBuf {
    "/run/dbus/system_bus_socket".into()
}

/// The `[sources.chassis]` table: intrusion as hardware monitors show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChassisConfig {
    /// Where the kernel shows hardware monitors.
    #[serde(default = "hwmon_directory")]
    pub directory: PathBuf,
    /// How often they are read.
    #[serde(default = "interval_ms_default")]
    pub interval_ms: u64,
    /// When the chassis was opened.
    #[serde(default = "Reaction::wipe")]
    pub on_intrusion: Reaction,
    /// When they cannot be read.
    #[serde(default = "Reaction::report_silence")]
    pub on_lost: Reaction,
}

fn hwmon_directory() -> PathBuf {
    "/sys/class/hwmon".into()
}

/// One `[[sources.button]]` table: a power button, by the kernel's input device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ButtonConfig {
    /// Its name in status and metrics.
    pub name: String,
    /// The input device, or the socket of a recorded one.
    pub device: PathBuf,
    /// `device` is a unix socket with recorded events: for tests and drills.
    #[serde(default)]
    pub recorded: bool,
    /// When it is pressed.
    #[serde(default = "Reaction::drain_shortly")]
    pub on_press: Reaction,
    /// When the device is gone or cannot be opened.
    #[serde(default = "Reaction::report")]
    pub on_lost: Reaction,
}

/// The `[sources.bmc]` table: the machine's management controller, by the kernel's IPMI device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BmcConfig {
    /// The IPMI device, or the socket of a recorded one.
    #[serde(default = "ipmi_device")]
    pub device: PathBuf,
    /// `device` is a unix socket with recorded events: for tests and drills.
    #[serde(default)]
    pub recorded: bool,
    /// The machine has one power supply, whose loss of input is the loss of power.
    #[serde(default)]
    pub single_supply: bool,
    /// When the power of the machine goes.
    #[serde(default = "Reaction::wipe")]
    pub on_power: Reaction,
    /// When the chassis is opened.
    #[serde(default = "Reaction::wipe")]
    pub on_intrusion: Reaction,
    /// When the device is gone or cannot be opened.
    #[serde(default = "Reaction::report")]
    pub on_lost: Reaction,
}

fn ipmi_device() -> PathBuf {
    "/dev/ipmi0".into()
}

/// The `[sources.clock]` table: whether the machine's clock runs as its battery-backed one does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockConfig {
    /// Where the kernel shows the battery-backed clock; a file elsewhere is a recorded one.
    #[serde(default = "rtc_default")]
    pub rtc: PathBuf,
    /// How often it is read.
    #[serde(default = "interval_ms_default")]
    pub interval_ms: u64,
    /// How far the two may disagree.
    #[serde(default = "tolerance_ms_default")]
    pub tolerance_ms: u64,
    /// When they disagree by more.
    #[serde(default = "Reaction::wipe")]
    pub on_disagreement: Reaction,
    /// When it cannot be read.
    #[serde(default = "Reaction::report_silence")]
    pub on_lost: Reaction,
}

fn rtc_default() -> PathBuf {
    "/sys/class/rtc/rtc0/since_epoch".into()
}

fn tolerance_ms_default() -> u64 {
    5_000
}

impl ClockConfig {
    fn validate(&self) -> Result<(), Invalid> {
        if !TOLERANCE_MS.contains(&self.tolerance_ms) {
            return Err(Invalid::new(
                "sources.clock.tolerance_ms",
                format!("a tolerance of {} ms is out of range", self.tolerance_ms),
                format!("give {} to {} ms", TOLERANCE_MS.start(), TOLERANCE_MS.end()),
            ));
        }
        no_debounce(&self.on_disagreement, "sources.clock.on_disagreement")
    }
}

/// Refuses to wait whether an event lasts that has no end.
fn no_debounce(reaction: &Reaction, key: &str) -> Result<(), Invalid> {
    if reaction.debounce_ms == 0 {
        return Ok(());
    }
    Err(Invalid::new(
        format!("{key}.debounce_ms"),
        "an event has no end, so it cannot be waited whether it lasts",
        "remove the debounce",
    ))
}

/// The `[sources.hygiene]` table: whether memory hygiene gets worse while keys are held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HygieneConfig {
    /// How often the kernel's files are read.
    #[serde(default = "hygiene_interval_ms_default")]
    pub interval_ms: u64,
    /// Below which directory they are; another than `/` is a recorded tree, for tests and drills.
    #[serde(default = "root_default")]
    pub root: PathBuf,
    /// When something that was good is not any more.
    #[serde(default = "Reaction::wipe")]
    pub on_regression: Reaction,
}

impl Default for HygieneConfig {
    fn default() -> Self {
        let (interval_ms, root) = (hygiene_interval_ms_default(), root_default());
        Self { interval_ms, root, on_regression: Reaction::wipe() }
    }
}

fn hygiene_interval_ms_default() -> u64 {
    5_000
}

fn root_default() -> PathBuf {
    "/".into()
}

/// The `[watchdog]` table: a hardware watchdog that the node feeds while its wiper answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchdogConfig {
    /// The device.
    pub device: PathBuf,
    /// After how many seconds without food it resets the machine.
    #[serde(default = "watchdog_timeout_s_default")]
    pub timeout_s: u64,
    /// `device` is no watchdog but a file: for tests and drills.
    #[serde(default)]
    pub recorded: bool,
}

/// Below, a busy machine would be reset; above, a hung one would hold its keys for long.
const WATCHDOG_TIMEOUT_S: RangeInclusive<u64> = 4..=300;

fn watchdog_timeout_s_default() -> u64 {
    30
}

impl WatchdogConfig {
    pub(crate) fn resolve(&mut self, dir: &Path) {
        resolve(&mut self.device, dir);
    }

    pub(crate) fn validate(&self) -> Result<(), Invalid> {
        if WATCHDOG_TIMEOUT_S.contains(&self.timeout_s) {
            return Ok(());
        }
        Err(Invalid::new(
            "watchdog.timeout_s",
            format!("{} s are out of range", self.timeout_s),
            format!("give {} to {} s", WATCHDOG_TIMEOUT_S.start(), WATCHDOG_TIMEOUT_S.end()),
        ))
    }
}

/// The `[sources]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourcesConfig {
    /// Power-fail lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpio: Vec<GpioConfig>,
    /// The machine's own supplies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_supply: Option<PowerSupplyConfig>,
    /// Kernel events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_event: Vec<KernelEventConfig>,
    /// UPSes at upsd.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nut: Vec<NutConfig>,
    /// UPSes at apcupsd.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apcupsd: Vec<ApcupsdConfig>,
    /// The machine's shutdown and sleep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logind: Option<LogindConfig>,
    /// The chassis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chassis: Option<ChassisConfig>,
    /// The machine's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<ClockConfig>,
    /// The management controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc: Option<BmcConfig>,
    /// Power buttons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub button: Vec<ButtonConfig>,
    /// Memory hygiene; watched unless told otherwise.
    #[serde(default)]
    pub hygiene: HygieneConfig,
}

impl SourcesConfig {
    /// Whether none is configured.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn resolve(&mut self, dir: &Path) {
        self.gpio.iter_mut().for_each(|gpio| resolve(&mut gpio.chip, dir));
        self.power_supply.iter_mut().for_each(|supply| resolve(&mut supply.directory, dir));
        self.nut.iter_mut().filter_map(|nut| nut.password_file.as_mut()).for_each(|file| resolve(file, dir));
        self.logind.iter_mut().for_each(|logind| resolve(&mut logind.bus, dir));
        self.chassis.iter_mut().for_each(|chassis| resolve(&mut chassis.directory, dir));
        self.clock.iter_mut().for_each(|clock| resolve(&mut clock.rtc, dir));
        self.button.iter_mut().for_each(|button| resolve(&mut button.device, dir));
        self.bmc.iter_mut().for_each(|bmc| resolve(&mut bmc.device, dir));
        resolve(&mut self.hygiene.root, dir);
    }

    /// Each table's place in the file, with its reactions.
    fn reactions(&self) -> Vec<(String, Vec<(&'static str, &Reaction)>)> {
        let mut all = Vec::new();
        for (index, gpio) in self.gpio.iter().enumerate() {
            let reactions = vec![("on_active", &gpio.on_active), ("on_lost", &gpio.on_lost)];
            all.push((format!("sources.gpio[{index}]"), reactions));
        }
        for (index, event) in self.kernel_event.iter().enumerate() {
            let reactions = vec![("on_event", &event.on_event), ("on_lost", &event.on_lost)];
            all.push((format!("sources.kernel_event[{index}]"), reactions));
        }
        for (index, nut) in self.nut.iter().enumerate() {
            let reactions = vec![
                ("on_battery", &nut.on_battery),
                ("on_low_battery", &nut.on_low_battery),
                ("on_forced_shutdown", &nut.on_forced_shutdown),
                ("on_lost", &nut.on_lost),
            ];
            all.push((format!("sources.nut[{index}]"), reactions));
        }
        for (index, ups) in self.apcupsd.iter().enumerate() {
            let reactions = vec![
                ("on_battery", &ups.on_battery),
                ("on_low_battery", &ups.on_low_battery),
                ("on_forced_shutdown", &ups.on_forced_shutdown),
                ("on_lost", &ups.on_lost),
            ];
            all.push((format!("sources.apcupsd[{index}]"), reactions));
        }
        if let Some(supply) = &self.power_supply {
            let reactions = vec![("on_offline", &supply.on_offline), ("on_lost", &supply.on_lost)];
            all.push(("sources.power_supply".to_owned(), reactions));
        }
        if let Some(logind) = &self.logind {
            let reactions = vec![
                ("on_shutdown", &logind.on_shutdown),
                ("on_sleep", &logind.on_sleep),
                ("on_lost", &logind.on_lost),
            ];
            all.push(("sources.logind".to_owned(), reactions));
        }
        if let Some(chassis) = &self.chassis {
            let reactions = vec![("on_intrusion", &chassis.on_intrusion), ("on_lost", &chassis.on_lost)];
            all.push(("sources.chassis".to_owned(), reactions));
        }
        if let Some(clock) = &self.clock {
            let reactions = vec![("on_disagreement", &clock.on_disagreement), ("on_lost", &clock.on_lost)];
            all.push(("sources.clock".to_owned(), reactions));
        }
        for (index, button) in self.button.iter().enumerate() {
            let reactions = vec![("on_press", &button.on_press), ("on_lost", &button.on_lost)];
            all.push((format!("sources.button[{index}]"), reactions));
        }
        if let Some(bmc) = &self.bmc {
            let reactions = vec![
                ("on_power", &bmc.on_power),
                ("on_intrusion", &bmc.on_intrusion),
                ("on_lost", &bmc.on_lost),
            ];
            all.push(("sources.bmc".to_owned(), reactions));
        }
        let hygiene = vec![("on_regression", &self.hygiene.on_regression)];
        all.push(("sources.hygiene".to_owned(), hygiene));
        all
    }

    /// Each interval with its table's place in the file.
    fn intervals(&self) -> Vec<(String, u64)> {
        let nut = self.nut.iter().enumerate();
        let apcupsd = self.apcupsd.iter().enumerate();
        nut.map(|(index, nut)| (format!("sources.nut[{index}]"), nut.interval_ms))
            .chain(apcupsd.map(|(index, ups)| (format!("sources.apcupsd[{index}]"), ups.interval_ms)))
            .chain(self.power_supply.iter().map(|s| ("sources.power_supply".to_owned(), s.interval_ms)))
            .chain(self.chassis.iter().map(|chassis| ("sources.chassis".to_owned(), chassis.interval_ms)))
            .chain(self.clock.iter().map(|clock| ("sources.clock".to_owned(), clock.interval_ms)))
            .chain([("sources.hygiene".to_owned(), self.hygiene.interval_ms)])
            .collect()
    }

    pub(crate) fn validate(&self) -> Result<(), Invalid> {
        self.validate_names()?;
        for (key, reactions) in self.reactions() {
            for (name, reaction) in reactions {
                reaction.validate(&format!("{key}.{name}"))?;
            }
        }
        for (key, interval_ms) in self.intervals() {
            validate_interval(interval_ms, &key)?;
        }
        for (index, gpio) in self.gpio.iter().enumerate() {
            if gpio.line > LINE_MAX {
                return Err(Invalid::new(
                    format!("sources.gpio[{index}].line"),
                    format!("line {} is out of range", gpio.line),
                    format!("`gpioinfo` lists the chip's lines; give 0 to {LINE_MAX}"),
                ));
            }
        }
        for (index, event) in self.kernel_event.iter().enumerate() {
            event.validate(&format!("sources.kernel_event[{index}]"))?;
        }
        for (index, nut) in self.nut.iter().enumerate() {
            nut.validate(&format!("sources.nut[{index}]"))?;
        }
        for (index, ups) in self.apcupsd.iter().enumerate() {
            validate_server(&ups.server, &format!("sources.apcupsd[{index}]"))?;
        }
        for (index, button) in self.button.iter().enumerate() {
            no_debounce(&button.on_press, &format!("sources.button[{index}].on_press"))?;
        }
        if let Some(bmc) = &self.bmc {
            no_debounce(&bmc.on_power, "sources.bmc.on_power")?;
            no_debounce(&bmc.on_intrusion, "sources.bmc.on_intrusion")?;
        }
        self.clock.iter().try_for_each(ClockConfig::validate)
    }

    /// The sources that are configured, with what each needs to be heard.
    pub(crate) fn checks(&self) -> Vec<SourceCheck> {
        let check = |name: &str, hearing| SourceCheck { name: name.into(), hearing, warns_of_power: false };
        let warning = |check| SourceCheck { warns_of_power: true, ..check };
        let file = |name: &str, path: &Path| {
            check(name, Hearing { path: Some(path.to_owned()), ..Hearing::default() })
        };
        let gpio = self.gpio.iter().map(|gpio| warning(file(&gpio.name, &gpio.chip)));
        let events = self
            .kernel_event
            .iter()
            .map(|event| check(&event.name, Hearing { kernel_events: true, ..Hearing::default() }));
        let supply = self.power_supply.iter().map(|supply| warning(file("power-supply", &supply.directory)));
        let nut = self.nut.iter().map(|nut| {
            let (path, server) = (nut.password_file.clone(), Some(nut.server.clone()));
            warning(check(&nut.name, Hearing { path, server, ..Hearing::default() }))
        });
        let apcupsd = self
            .apcupsd
            .iter()
            .map(|ups| check(&ups.name, Hearing { server: Some(ups.server.clone()), ..Hearing::default() }))
            .map(warning);
        let logind = self.logind.iter().map(|logind| file("logind", &logind.bus));
        let chassis = self.chassis.iter().map(|chassis| file("chassis", &chassis.directory));
        let clock = self.clock.iter().map(|clock| file("clock", &clock.rtc));
        let button = self.button.iter().map(|button| file(&button.name, &button.device));
        let bmc = self.bmc.iter().map(|bmc| warning(file("bmc", &bmc.device)));
        let machine = logind.chain(chassis).chain(clock).chain(button).chain(bmc);
        gpio.chain(events).chain(supply).chain(nut).chain(apcupsd).chain(machine).collect()
    }

    /// The names of the sources that have one, with their place in the file.
    fn names(&self) -> Vec<(String, &str)> {
        fn of<'a, T>(kind: &str, all: &'a [T], name: impl Fn(&'a T) -> &'a str) -> Vec<(String, &'a str)> {
            all.iter().enumerate().map(|(at, one)| (format!("sources.{kind}[{at}]"), name(one))).collect()
        }
        [
            of("gpio", &self.gpio, |gpio| &gpio.name),
            of("kernel_event", &self.kernel_event, |event| &event.name),
            of("nut", &self.nut, |nut| &nut.name),
            of("apcupsd", &self.apcupsd, |ups| &ups.name),
            of("button", &self.button, |button| &button.name),
        ]
        .concat()
    }

    fn validate_names(&self) -> Result<(), Invalid> {
        let counts = [
            ("gpio", self.gpio.len()),
            ("kernel_event", self.kernel_event.len()),
            ("nut", self.nut.len()),
            ("apcupsd", self.apcupsd.len()),
            ("button", self.button.len()),
        ];
        for (kind, count) in counts {
            if count > SOURCES_MAX {
                return Err(Invalid::new(
                    format!("sources.{kind}"),
                    format!("{count} are named; at most {SOURCES_MAX} can be watched"),
                    "keep those that matter",
                ));
            }
        }
        // The kind stands for the one that there is of its kind.
        let mut seen = BTreeSet::from([
            "power-supply",
            "power-supply-files",
            "logind",
            "chassis",
            "clock",
            "bmc",
            "hygiene",
            "watchdog",
        ]);
        for (key, name) in self.names() {
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(allowed) {
                return Err(Invalid::new(
                    format!("{key}.name"),
                    format!("`{name}` cannot name a source"),
                    format!("use lower-case letters, digits and `-`, at most {NAME_BYTES_MAX}"),
                ));
            }
            if !seen.insert(name) {
                return Err(Invalid::new(
                    format!("{key}.name"),
                    format!("`{name}` names two sources"),
                    "give each a name of its own",
                ));
            }
        }
        Ok(())
    }
}

fn validate_interval(interval_ms: u64, key: &str) -> Result<(), Invalid> {
    if INTERVAL_MS.contains(&interval_ms) {
        return Ok(());
    }
    Err(Invalid::new(
        format!("{key}.interval_ms"),
        format!("an interval of {interval_ms} ms is out of range"),
        format!("give {} to {} ms", INTERVAL_MS.start(), INTERVAL_MS.end()),
    ))
}

impl KernelEventConfig {
    fn validate(&self, key: &str) -> Result<(), Invalid> {
        if !PAIRS.contains(&self.pairs.len()) {
            return Err(Invalid::new(
                format!("{key}.match"),
                format!("{} keys are named", self.pairs.len()),
                format!(
                    "name {} to {} of those that `udevadm monitor --kernel --property` shows",
                    PAIRS.start(),
                    PAIRS.end()
                ),
            ));
        }
        no_debounce(&self.on_event, &format!("{key}.on_event"))
    }
}

impl NutConfig {
    fn validate(&self, key: &str) -> Result<(), Invalid> {
        validate_server(&self.server, key)?;
        if self.user.is_some() != self.password_file.is_some() {
            return Err(Invalid::new(
                format!("{key}.user"),
                "a user needs a password_file, and a password_file a user",
                "name both as in upsd.users, or neither",
            ));
        }
        Ok(())
    }
}

fn validate_server(server: &str, key: &str) -> Result<(), Invalid> {
    let parts = server.rsplit_once(':');
    if parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)) {
        return Ok(());
    }
    Err(Invalid::new(
        format!("{key}.server"),
        format!("`{server}` is no host and port"),
        "give both, as in 192.0.2.9:3493 or [2001:db8::9]:3493",
    ))
}
