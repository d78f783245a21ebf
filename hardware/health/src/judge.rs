//! What of the readings somebody should act on: thresholds, and what grew since it was last seen.
//!
//! Invariants:
//! - One code and one part make one finding, however many signs there are for it.
//! - Growth is counted from the first reading on: a disk that comes with errors is judged by those that follow. A finding about
//!   growth stays until the window has passed without more.
//! - What a disk says of itself counts, whatever the thresholds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use units::BootInstant;

use crate::board::Board;
use crate::disk::{DiskHealth, DiskState, Warning};
use crate::memory::Controller;
use crate::readings::{ReadDisk, Readings};
use crate::temperature::Temperature;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $severity:ident, $replace:literal, $advice:literal;)*) => {
        /// What is the matter. The text of each is its name for programs, and stays.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Code { $($(#[$doc])* #[serde(rename = $text)] $name,)* }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Who is to hear of it.
            pub const fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }

            /// Whether it says that a disk should be replaced before it fails.
            pub const fn calls_for_replacement(self) -> bool {
                match self { $(Self::$name => $replace,)* }
            }

            /// What to do.
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$name => $advice,)* }
            }
        }
    };
}

codes! {
    /// The disk predicts its failure.
    DiskFailing = "disk-failing", Page, true,
        "Copy what is on it elsewhere now, and replace it.";
    /// The disk takes no writes.
    DiskReadOnly = "disk-read-only", Page, true,
        "Replace it: nothing can be written to its pool. What is on it can still be read.";
    /// Little spare is left.
    DiskSpare = "disk-spare", Ticket, true,
        "Order another and replace it.";
    /// Its endurance is used up, nearly.
    DiskWear = "disk-wear", Ticket, true,
        "Order another and replace it.";
    /// It gave data back otherwise than written, or not at all, more often than before.
    DiskMediaErrors = "disk-media-errors", Ticket, true,
        "Scrub its pool (`nightlatch pool scrub`), heal what was found, and replace it if more come.";
    /// It replaced more of its sectors.
    DiskReallocated = "disk-reallocated", Ticket, true,
        "Replace it if more follow within days.";
    /// It has sectors that it cannot read.
    DiskPending = "disk-pending", Ticket, true,
        "Scrub its pool (`nightlatch pool scrub`) and heal what was found: writing makes the disk replace such sectors.";
    /// What keeps its cache through a power cut has failed.
    DiskBackup = "disk-backup", Page, true,
        "Replace it: after a power cut it may not have what it said it had written.";
    /// It is too hot.
    DiskHot = "disk-hot", Ticket, false,
        "Look at fans, filters and the air around it.";
    /// What it answered is old, or makes no sense.
    DiskUnread = "disk-unread", Ticket, false,
        "See `systemctl status nightlatch-smart.timer nightlatch-smart.service`.";
    /// A sensor is above its limit.
    Warm = "warm", Ticket, false,
        "Look at fans, filters and the air around the machine.";
    /// A sensor is at the point at which things break.
    Hot = "hot", Page, false,
        "Take load away or shut the machine down, and look at its fans.";
    /// Memory corrected many errors.
    MemoryCorrected = "memory-corrected", Ticket, false,
        "Replace the module at the next occasion.";
    /// Memory lost data.
    MemoryUncorrected = "memory-uncorrected", Page, false,
        "Move what the node serves elsewhere, and replace the module.";
    /// A link is gone.
    LinkLost = "link-lost", Page, false,
        "Look at the cable, the module and the switch's port.";
}

/// Who is to hear of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It can wait for the morning.
    Ticket,
    /// It wakes somebody.
    Page,
}

impl Severity {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ticket => "ticket",
            Self::Page => "page",
        }
    }
}

/// Something to act on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What is the matter.
    pub code: Code,
    /// With which part.
    pub subject: String,
    /// Who is to hear of it.
    pub severity: Severity,
    /// What was seen.
    pub found: String,
    /// What to do.
    pub advice: String,
}

/// What is too much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Endurance used of a disk, in percent.
    pub used_percent: u8,
    /// Temperature of a disk, in degrees Celsius.
    pub disk_celsius: i64,
    /// Age of what a disk said.
    pub unread_after: Duration,
    /// Corrected errors of a memory controller within the window.
    pub memory_corrected: u64,
    /// How long growth stays a finding after the last of it.
    pub window: Duration,
    /// Interfaces that must have a link; without any, every card that had one since the start.
    pub links: Vec<String>,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            used_percent: 90,
            disk_celsius: 70,
            unread_after: Duration::from_secs(3 * 3600),
            memory_corrected: 100,
            window: Duration::from_secs(7 * 24 * 3600),
            links: Vec::new(),
        }
    }
}

/// A counter as it was seen.
#[derive(Clone, Copy, Debug)]
struct Growth {
    /// At the last reading.
    count: u64,
    /// When the window began.
    before: u64,
    /// The last reading that was higher than the one before.
    grew: Option<BootInstant>,
}

/// Remembers what was, and judges what is.
#[derive(Debug, Default)]
pub struct Judge {
    thresholds: Thresholds,
    counters: BTreeMap<(Code, String), Growth>,
    linked: BTreeSet<String>,
}

impl Judge {
    /// Nothing was seen yet.
    pub fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, ..Self::default() }
    }

    /// What of these readings somebody should act on, by code and part.
    pub fn findings(&mut self, now: BootInstant, readings: &Readings, board: Option<&Board>) -> Vec<Finding> {
        let mut found = BTreeMap::new();
        let mut note = |code: Code, subject: &str, what: String| {
            found.entry((code, subject.to_owned())).or_insert(what);
        };
        for disk in &readings.disks {
            self.of_disk(now, disk, &mut note);
        }
        for temperature in &readings.temperatures {
            of_temperature(temperature, board, &mut note);
        }
        for controller in &readings.memory {
            self.of_memory(now, controller, &mut note);
        }
        self.of_links(readings, &mut note);
        let finding = |((code, subject), found)| Finding {
            code,
            subject,
            severity: Code::severity(code),
            found,
            advice: Code::advice(code).to_owned(),
        };
        found.into_iter().map(finding).collect()
    }

    fn of_disk(&mut self, now: BootInstant, read: &ReadDisk, note: &mut impl FnMut(Code, &str, String)) {
        let name = read.disk.name.as_str();
        match &read.smart {
            DiskState::NotAsked => {}
            DiskState::Unreadable { why } => note(Code::DiskUnread, name, why.clone()),
            DiskState::Read { asked_boot_ns, health } => {
                let age_ms = now.ms_since(*asked_boot_ns);
                if u128::from(age_ms) > self.thresholds.unread_after.as_millis() {
                    note(
                        Code::DiskUnread,
                        name,
                        format!("it was last asked {} minutes ago", age_ms / 60_000),
                    );
                }
                self.of_health(health, name, note);
                self.of_growth(now, read, health, note);
            }
        }
    }

    fn of_health(&self, health: &DiskHealth, name: &str, note: &mut impl FnMut(Code, &str, String)) {
        for warning in &health.warnings {
            let (code, what) = match warning {
                Warning::Failing => (Code::DiskFailing, "the disk itself predicts its failure"),
                Warning::ReadOnly => (Code::DiskReadOnly, "the disk takes no writes any more"),
                Warning::Spare => (Code::DiskSpare, "the disk warns that its spare runs out"),
                Warning::Backup => (Code::DiskBackup, "its backup of volatile memory has failed"),
                Warning::PersistentMemory => (Code::DiskBackup, "its persistent memory has failed"),
                Warning::Temperature => (Code::DiskHot, "the disk warns of its temperature"),
            };
            note(code, name, what.to_owned());
        }
        let spare = health.spare_percent.zip(health.spare_threshold_percent);
        if let Some((spare, threshold)) = spare.filter(|(spare, threshold)| spare < threshold) {
            note(
                Code::DiskSpare,
                name,
                format!("{spare}% of its spare is left, and {threshold}% is the least it should have"),
            );
        }
        if let Some(used) = health.used_percent.filter(|used| *used >= self.thresholds.used_percent) {
            note(Code::DiskWear, name, format!("{used}% of its endurance is used"));
        }
        if let Some(pending) = health.pending_sectors.filter(|pending| *pending > 0) {
            note(Code::DiskPending, name, format!("{pending} sectors cannot be read"));
        }
        if let Some(celsius) = health.celsius.filter(|celsius| *celsius >= self.thresholds.disk_celsius) {
            note(Code::DiskHot, name, format!("{celsius} °C"));
        }
    }

    fn of_growth(
        &mut self,
        now: BootInstant,
        read: &ReadDisk,
        health: &DiskHealth,
        note: &mut impl FnMut(Code, &str, String),
    ) {
        let name = &read.disk.name;
        // Another disk at the same place is another disk.
        let part = format!("{name} {}", read.disk.serial.as_deref().unwrap_or_default());
        let counted = [
            (Code::DiskMediaErrors, health.media_errors, "media errors"),
            (Code::DiskReallocated, health.reallocated_sectors, "reallocated sectors"),
        ];
        for (code, count, what) in counted {
            let grown = count.map_or(0, |count| self.growth(now, code, &part, count));
            if grown > 0 {
                note(code, name, format!("{grown} more {what}, {} in all", count.unwrap_or(0)));
            }
        }
    }

    /// By how much a counter grew in the window.
    fn growth(&mut self, now: BootInstant, code: Code, part: &str, count: u64) -> u64 {
        let first = Growth { count, before: count, grew: None };
        let seen = self.counters.entry((code, part.to_owned())).or_insert(first);
        let over = |grew: BootInstant| u128::from(now.ms_since(grew)) > self.thresholds.window.as_millis();
        if count < seen.count {
            *seen = first;
        } else if count > seen.count {
            seen.grew = Some(now);
            seen.count = count;
        } else if seen.grew.is_some_and(over) {
            *seen = first;
        }
        seen.count - seen.before
    }

    fn of_memory(
        &mut self,
        now: BootInstant,
        controller: &Controller,
        note: &mut impl FnMut(Code, &str, String),
    ) {
        let name = controller.name.as_str();
        let modules = |count: fn(&crate::memory::Dimm) -> u64| {
            let modules = controller.dimms.iter().filter(move |dimm| count(dimm) > 0);
            let named: Vec<_> = modules.map(|dimm| dimm.label.as_deref().unwrap_or(&dimm.name)).collect();
            if named.is_empty() { String::new() } else { format!(" ({})", named.join(", ")) }
        };
        if controller.uncorrected > 0 {
            let what = format!(
                "{} errors that were not corrected{}",
                controller.uncorrected,
                modules(|dimm| dimm.uncorrected)
            );
            note(Code::MemoryUncorrected, name, what);
        }
        let grown = self.growth(now, Code::MemoryCorrected, name, controller.corrected);
        if grown >= self.thresholds.memory_corrected.max(1) {
            note(
                Code::MemoryCorrected,
                name,
                format!("{grown} more corrected errors{}", modules(|dimm| dimm.corrected)),
            );
        }
    }

    fn of_links(&mut self, readings: &Readings, note: &mut impl FnMut(Code, &str, String)) {
        let up = readings.interfaces.iter().filter(|interface| interface.physical && interface.up);
        self.linked.extend(up.map(|interface| interface.name.clone()));
        let named = &self.thresholds.links;
        let wanted: Vec<&String> =
            if named.is_empty() { self.linked.iter().collect() } else { named.iter().collect() };
        for name in wanted {
            match readings.interfaces.iter().find(|interface| interface.name == *name) {
                Some(interface) if interface.up => {}
                Some(_) => note(Code::LinkLost, name, "it has no link".to_owned()),
                None => note(Code::LinkLost, name, "there is no such interface any more".to_owned()),
            }
        }
    }
}

fn of_temperature(read: &Temperature, board: Option<&Board>, note: &mut impl FnMut(Code, &str, String)) {
    let said = board.and_then(|board| board.sensor(&read.chip, &read.label));
    let Some(millicelsius) = read.millicelsius.filter(|_| said.is_none_or(|said| !said.ignore)) else {
        return;
    };
    let limit = |said: Option<i64>, driver: Option<i64>| said.map(|celsius| celsius * 1000).or(driver);
    let critical = limit(said.and_then(|said| said.critical_celsius), read.critical_millicelsius);
    let warm = limit(said.and_then(|said| said.warm_celsius), read.max_millicelsius);
    let reaches = |limit: Option<i64>| limit.is_some_and(|limit| millicelsius >= limit);
    let what = || {
        let means = said.map_or(String::new(), |said| format!(" ({})", said.means));
        format!("{} °C{means}", millicelsius / 1000)
    };
    if reaches(critical) {
        note(Code::Hot, &read.sensor, what());
    } else if reaches(warm) || read.alarm {
        note(Code::Warm, &read.sensor, what());
    }
}

#[cfg(test)]
mod tests {
    use crate::disk::{Bus, Disk};
    use crate::link::Interface;

    use super::*;

    fn at(hours: u64) -> BootInstant {
        BootInstant(hours * 3_600_000_000_000)
    }

    fn disk(hours: u64, health: DiskHealth) -> Readings {
        let disk = Disk {
            name: "sda".to_owned(),
            bus: Bus::Ata,
            model: None,
            serial: Some("S1".to_owned()),
            firmware: None,
            size_bytes: 1,
            rotational: false,
        };
        let smart = DiskState::Read { asked_boot_ns: at(hours), health };
        Readings { disks: vec![ReadDisk { disk, smart }], ..Readings::default() }
    }

    fn codes(judge: &mut Judge, hours: u64, readings: &Readings) -> Vec<Code> {
        judge.findings(at(hours), readings, None).into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn each_threshold_is_met_at_its_value_and_not_one_before() {
        let judged = |health: DiskHealth| codes(&mut Judge::default(), 0, &disk(0, health));
        let used = |used| DiskHealth { used_percent: Some(used), ..DiskHealth::default() };
        assert_eq!((judged(used(89)), judged(used(90))), (vec![], vec![Code::DiskWear]));
        let spare = |spare| DiskHealth {
            spare_percent: Some(spare),
            spare_threshold_percent: Some(10),
            ..DiskHealth::default()
        };
        assert_eq!((judged(spare(10)), judged(spare(9))), (vec![], vec![Code::DiskSpare]));
        let hot = |celsius| DiskHealth { celsius: Some(celsius), ..DiskHealth::default() };
        assert_eq!((judged(hot(69)), judged(hot(70))), (vec![], vec![Code::DiskHot]));
        let pending = |count| DiskHealth { pending_sectors: Some(count), ..DiskHealth::default() };
        assert_eq!((judged(pending(0)), judged(pending(1))), (vec![], vec![Code::DiskPending]));
    }

    #[test]
    fn what_the_disk_says_of_itself_is_found_once_whatever_the_thresholds() {
        let warnings = [
            (Warning::Failing, Code::DiskFailing),
            (Warning::ReadOnly, Code::DiskReadOnly),
            (Warning::Spare, Code::DiskSpare),
            (Warning::Backup, Code::DiskBackup),
            (Warning::PersistentMemory, Code::DiskBackup),
            (Warning::Temperature, Code::DiskHot),
        ];
        for (warning, code) in warnings {
            let health = DiskHealth {
                warnings: [warning].into(),
                spare_percent: Some(5),
                spare_threshold_percent: Some(if code == Code::DiskSpare { 10 } else { 0 }),
                ..DiskHealth::default()
            };
            assert_eq!(codes(&mut Judge::default(), 0, &disk(0, health)), [code]);
        }
    }

    #[test]
    fn errors_count_from_when_they_were_first_seen_and_are_over_when_none_came_for_a_week() {
        let mut judge = Judge::default();
        let errors =
            |hours, count| disk(hours, DiskHealth { media_errors: Some(count), ..DiskHealth::default() });
        assert_eq!(codes(&mut judge, 0, &errors(0, 5)), []);
        assert_eq!(codes(&mut judge, 1, &errors(1, 6)), [Code::DiskMediaErrors]);
        assert_eq!(codes(&mut judge, 169, &errors(169, 6)), [Code::DiskMediaErrors]);
        assert_eq!(codes(&mut judge, 170, &errors(170, 6)), []);
        assert_eq!(codes(&mut judge, 171, &errors(171, 2)), [], "another disk, or one that forgot");
        let found = judge.findings(at(172), &errors(172, 4), None);
        assert_eq!(found[0].found, "2 more media errors, 4 in all");
    }

    #[test]
    fn what_nobody_asked_for_long_is_found() {
        let mut judge = Judge::default();
        let old = disk(0, DiskHealth::default());
        assert_eq!(codes(&mut judge, 3, &old), []);
        assert_eq!(codes(&mut judge, 4, &old), [Code::DiskUnread]);
    }

    #[test]
    fn memory_is_judged_by_what_it_lost_and_by_how_much_it_corrected_of_late() {
        let mut judge = Judge::default();
        let memory = |corrected, uncorrected| Readings {
            memory: vec![Controller {
                name: "mc0".to_owned(),
                kind: None,
                corrected,
                uncorrected,
                dimms: vec![],
            }],
            ..Readings::default()
        };
        assert_eq!(codes(&mut judge, 0, &memory(1000, 0)), []);
        assert_eq!(codes(&mut judge, 1, &memory(1099, 0)), []);
        assert_eq!(codes(&mut judge, 2, &memory(1100, 0)), [Code::MemoryCorrected]);
        assert_eq!(codes(&mut judge, 3, &memory(1100, 1)), [Code::MemoryCorrected, Code::MemoryUncorrected]);
    }

    #[test]
    fn a_card_that_had_a_link_must_keep_it_and_a_named_one_must_have_it() {
        let interface = |name: &str, physical, up| Interface {
            name: name.to_owned(),
            physical,
            enabled: true,
            up,
            speed_mbit: None,
            full_duplex: None,
            address: None,
            driver: None,
            carrier_changes: 0,
            receive_errors: 0,
            send_errors: 0,
        };
        let links = |up| Readings {
            interfaces: vec![
                interface("eth0", true, up),
                interface("eth1", true, false),
                interface("br0", false, up),
            ],
            ..Readings::default()
        };
        let mut judge = Judge::default();
        assert_eq!(codes(&mut judge, 0, &links(false)), []);
        assert_eq!(codes(&mut judge, 1, &links(true)), []);
        assert_eq!(codes(&mut judge, 2, &links(false)), [Code::LinkLost]);
        assert_eq!(codes(&mut judge, 3, &Readings::default()), [Code::LinkLost], "the card is gone");
        let mut judge = Judge::new(Thresholds { links: vec!["eth1".to_owned()], ..Thresholds::default() });
        let found = judge.findings(at(0), &links(true), None);
        assert_eq!(found.iter().map(|finding| finding.subject.as_str()).collect::<Vec<_>>(), ["eth1"]);
    }

    #[test]
    fn a_boards_word_goes_before_the_drivers_and_nonsense_is_ignored() {
        let read = |millicelsius, alarm| Temperature {
            sensor: "chip-dev/A".to_owned(),
            chip: "chip".to_owned(),
            device: "dev".to_owned(),
            label: "A".to_owned(),
            millicelsius: Some(millicelsius),
            max_millicelsius: Some(60_000),
            critical_millicelsius: Some(80_000),
            alarm,
        };
        let judged = |read: Temperature, board: Option<&Board>| {
            let readings = Readings { temperatures: vec![read], ..Readings::default() };
            Judge::default().findings(at(0), &readings, board).first().map(|finding| finding.code)
        };
        assert_eq!(judged(read(59_999, false), None), None);
        assert_eq!(judged(read(59_999, true), None), Some(Code::Warm));
        assert_eq!(judged(read(60_000, false), None), Some(Code::Warm));
        assert_eq!(judged(read(80_000, false), None), Some(Code::Hot));
        let profile =
            "format = 1\nname = \"b\"\n[[temperature]]\nchip = \"chip\"\ninput = \"A\"\nmeans = \"inlet\"\n";
        let board = |more: &str| Board::parse(&format!("{profile}{more}"), "b").unwrap();
        assert_eq!(judged(read(40_000, false), Some(&board("warm_celsius = 40"))), Some(Code::Warm));
        assert_eq!(judged(read(40_000, false), Some(&board("critical_celsius = 40"))), Some(Code::Hot));
        assert_eq!(judged(read(90_000, true), Some(&board("ignore = true"))), None);
    }

    #[test]
    fn names_are_those_that_travel_and_every_code_says_what_to_do() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
            assert!(code.advice().ends_with('.') && code.advice().len() > 20, "{code:?}");
        }
    }
}
