//! `nightlatch node inventory` and `nightlatch node locate`: what a node's machine is, how its parts fare, and which is which.

use admin::api::{Hardware, Locate, Located};
use health::{
    BoardLine, Dimm, DiskHealth, DiskState, Finding, Interface, LineActive, LineMeaning, ReadDisk,
    Temperature,
};
use identity::PeerName;
use units::ByteLen;

use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::Done;
use crate::output::{Output, duration_ms, table};

pub(crate) fn inventory(name: Option<&PeerName>, connections: &Connections, output: Output) -> Done {
    let node = wait(connections.node(name.map(PeerName::as_str), Ask::Read))??;
    let hardware: Hardware = wait(node.get("/v1/hardware"))??;
    output.show(&hardware, || describe(&hardware))
}

pub(crate) fn locate(
    disk: &str,
    on: bool,
    name: Option<&str>,
    connections: &Connections,
    output: Output,
) -> Done {
    let node = wait(connections.node(name, Ask::Either))??;
    let path = format!("/v1/disks/{}/locate", path_part(disk));
    let located: Located = wait(node.post(&path, &Locate { on }))??;
    output.show(&located, || {
        let state = if located.on { "on" } else { "off" };
        format!("The light at {} is {state}.", located.disk)
    })
}

/// A name as one part of a path.
fn path_part(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    name.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn describe(hardware: &Hardware) -> String {
    let Hardware { inventory, readings, findings, .. } = hardware;
    let machine = &inventory.machine;
    let mut text = format!(
        "{} {}, board {} {}, firmware {} ({})\n",
        known(&machine.vendor),
        known(&machine.product),
        known(&machine.board_vendor),
        known(&machine.board),
        known(&machine.firmware),
        known(&machine.firmware_date),
    );
    text.push_str(&format!(
        "{} x {}, {} of memory, board profile {}\n\n",
        inventory.processors.threads,
        known(&inventory.processors.model),
        ByteLen(inventory.memory_bytes),
        known(&inventory.board),
    ));
    text.push_str(&finding_lines(findings, ""));
    let disks: Vec<_> = readings.disks.iter().map(|disk| disk_row(hardware, disk)).collect();
    let headers =
        ["DISK", "MODEL", "SERIAL", "SIZE", "LIGHT", "WEAR", "SPARE", "ERRORS", "°C", "ON FOR", "REMARK"];
    let cards = readings.interfaces.iter().filter(|interface| interface.physical);
    let cards: Vec<_> = cards.map(card_row).collect();
    let sensors: Vec<_> = readings.temperatures.iter().map(sensor_row).collect();
    let modules: Vec<_> = inventory.dimms.iter().map(module_row).collect();
    let tables = [
        table(&headers, &disks, "no disks"),
        table(&["CARD", "LINK", "SPEED", "ADDRESS", "DRIVER", "ERRORS"], &cards, "no network cards"),
        table(&["SENSOR", "°C", "WARM", "CRITICAL"], &sensors, "no sensors of temperature"),
        table(&["MEMORY", "SIZE", "KIND", "CORRECTED", "LOST"], &modules, "no driver counts memory errors"),
    ];
    text.push_str(&tables.join("\n"));
    if !inventory.lines.is_empty() {
        text.push_str("\nThe board has lines that the node can hear; in node.toml:\n");
        inventory.lines.iter().for_each(|line| text.push_str(&line_table(line)));
    }
    text
}

fn known(what: &Option<String>) -> String {
    what.clone().unwrap_or_else(|| "-".to_owned())
}

fn card_row(card: &Interface) -> Vec<String> {
    let errors = card.receive_errors.saturating_add(card.send_errors);
    vec![
        card.name.clone(),
        if card.up { "up" } else { "NO LINK" }.to_owned(),
        known(&card.speed_mbit.map(|speed| format!("{speed} Mbit/s"))),
        known(&card.address),
        known(&card.driver),
        errors.to_string(),
    ]
}

fn sensor_row(read: &Temperature) -> Vec<String> {
    let celsius = |value: Option<i64>| known(&value.map(|value| (value / 1000).to_string()));
    vec![
        read.sensor.clone(),
        celsius(read.millicelsius),
        celsius(read.max_millicelsius),
        celsius(read.critical_millicelsius),
    ]
}

fn module_row(module: &Dimm) -> Vec<String> {
    vec![
        module.label.clone().unwrap_or_else(|| module.name.clone()),
        format!("{} MiB", module.size_mib),
        known(&module.kind),
        module.corrected.to_string(),
        module.uncorrected.to_string(),
    ]
}

/// What somebody should look after, a line each.
pub(crate) fn finding_lines(findings: &[Finding], indent: &str) -> String {
    let line = |finding: &Finding| {
        let Finding { code, subject, found, advice, .. } = finding;
        format!("{indent}{} {subject}: {found}. {advice}\n", code.name().to_uppercase())
    };
    findings.iter().map(line).collect()
}

fn disk_row(hardware: &Hardware, read: &ReadDisk) -> Vec<String> {
    let disk = &read.disk;
    let located = hardware.inventory.disks.iter().find(|known| known.disk.name == disk.name);
    let light = match located.and_then(|known| known.located) {
        Some(true) => "ON",
        Some(false) => "off",
        None => "none",
    };
    let said = match &read.smart {
        DiskState::Read { health, .. } => health.clone(),
        DiskState::NotAsked | DiskState::Unreadable { .. } => DiskHealth::default(),
    };
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let percent = |value: Option<u8>| or_none(value.map(|value| format!("{value}%")));
    let replace = hardware
        .findings
        .iter()
        .any(|finding| finding.subject == disk.name && finding.code.calls_for_replacement());
    let remark = match &read.smart {
        _ if replace => "REPLACE".to_owned(),
        DiskState::Read { .. } => String::new(),
        DiskState::NotAsked => "was not asked how it fares: is nightlatch-smart.timer enabled?".to_owned(),
        DiskState::Unreadable { why } => why.clone(),
    };
    vec![
        disk.name.clone(),
        or_none(disk.model.clone()),
        or_none(disk.serial.clone()),
        ByteLen(disk.size_bytes).to_string(),
        light.to_owned(),
        percent(said.used_percent),
        percent(said.spare_percent),
        or_none(said.media_errors.or(said.reallocated_sectors).map(|errors| errors.to_string())),
        or_none(said.celsius.map(|celsius| celsius.to_string())),
        or_none(said.power_on_hours.map(|hours| duration_ms(hours.saturating_mul(3_600_000)))),
        remark,
    ]
}

/// The table of `node.toml` that hears a line.
fn line_table(line: &BoardLine) -> String {
    let active = match line.active {
        LineActive::High => "high",
        LineActive::Low => "low",
    };
    let means = match line.means {
        LineMeaning::PowerFail => "power-fail",
        LineMeaning::Intrusion => "intrusion",
    };
    let BoardLine { chip, line, .. } = line;
    format!(
        "  [[sources.gpio]]\n  name = \"{means}\"\n  chip = \"{chip}\"\n  line = {line}\n  active = \"{active}\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_shown_as_the_table_that_hears_it() {
        let line = BoardLine {
            chip: "/dev/gpiochip0".to_owned(),
            line: 7,
            active: LineActive::Low,
            means: LineMeaning::PowerFail,
        };
        let shown: toml::Table = toml::from_str(&line_table(&line)).unwrap();
        let gpio: config::GpioConfig = shown["sources"]["gpio"][0].clone().try_into().unwrap();
        assert_eq!((gpio.name.as_str(), gpio.line), ("power-fail", 7));
    }

    #[test]
    fn a_name_stays_one_part_of_a_path() {
        assert_eq!(path_part("nvme0n1"), "nvme0n1");
        assert_eq!(path_part("../a b?"), "..%2Fa%20b%3F");
    }
}
