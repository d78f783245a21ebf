//! Temperatures, as hardware monitors show them (`/sys/class/hwmon`, Documentation/hwmon/sysfs-interface).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tree::Tree;

/// Limits outside of this are what drivers show for none.
const LIMITS_MILLICELSIUS: std::ops::RangeInclusive<i64> = 1..=150_000;

/// Readings outside of this come from inputs to which nothing is connected.
const READINGS_MILLICELSIUS: std::ops::RangeInclusive<i64> = -60_000..=200_000;

/// One sensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Temperature {
    /// What tells it from every other: chip, device and label, as in `nvme-nvme0/Composite`.
    pub sensor: String,
    /// The driver's name of the chip.
    pub chip: String,
    /// What the chip is part of, as the kernel names it.
    pub device: String,
    /// The driver's name of the input, or `tempN`.
    pub label: String,
    /// What it reads, in thousandths of a degree Celsius; `None` where it cannot be read.
    pub millicelsius: Option<i64>,
    /// Above this it is too warm.
    pub max_millicelsius: Option<i64>,
    /// Above this it is about to break.
    pub critical_millicelsius: Option<i64>,
    /// The chip's own alarm is on.
    pub alarm: bool,
}

/// Every sensor of temperature.
pub fn temperatures(sys: &Tree) -> Vec<Temperature> {
    let monitors = sys.names("class/hwmon").into_iter();
    let mut all: Vec<_> = monitors.flat_map(|monitor| of_monitor(sys, &monitor)).collect();
    // Two chips of one kind without a device each.
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for temperature in &mut all {
        let count = seen.entry(temperature.sensor.clone()).or_default();
        *count += 1;
        if *count > 1 {
            temperature.sensor = format!("{}#{count}", temperature.sensor);
        }
    }
    all
}

fn of_monitor(sys: &Tree, monitor: &str) -> Vec<Temperature> {
    let dir = format!("class/hwmon/{monitor}");
    let chip = sys.text(&format!("{dir}/name")).unwrap_or_else(|| monitor.to_owned());
    let device = sys.real_name(&format!("{dir}/device")).unwrap_or_else(|| monitor.to_owned());
    let names = sys.names(&dir);
    let inputs = names.iter().filter_map(|name| name.strip_prefix("temp")?.strip_suffix("_input"));
    let inputs =
        inputs.filter(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    inputs
        .map(|number| {
            let of = |what: &str| format!("{dir}/temp{number}_{what}");
            let limit =
                |what: &str| sys.number(&of(what)).filter(|limit| LIMITS_MILLICELSIUS.contains(limit));
            let alarms = ["alarm", "max_alarm", "crit_alarm", "emergency_alarm"];
            let label = sys.text(&of("label")).unwrap_or_else(|| format!("temp{number}"));
            Temperature {
                sensor: format!("{chip}-{device}/{label}"),
                chip: chip.clone(),
                device: device.clone(),
                label,
                millicelsius: sys.number(&of("input")).filter(|read| READINGS_MILLICELSIUS.contains(read)),
                max_millicelsius: limit("max"),
                critical_millicelsius: limit("crit"),
                alarm: alarms.iter().any(|alarm| sys.number::<u8>(&of(alarm)).is_some_and(|on| on != 0)),
            }
        })
        .collect()
}
