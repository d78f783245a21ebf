//! Captures of version 1, as they stand in files: every number of them.

use std::fs;

use health::{AtaSmart, Attribute, Capture, NvmeSmart, Page, SelfVerdict};
use units::BootInstant;

use crate::tree::golden;

fn capture(name: &str) -> Capture {
    let bytes = fs::read(golden().join(name)).unwrap();
    let capture = Capture::parse(&bytes).unwrap();
    assert_eq!(capture.encode(), bytes, "{name} is written as it was read");
    capture
}

#[test]
fn every_number_of_an_nvme_page_is_where_the_specification_has_it() {
    let capture = capture("nvme0n1.smart");
    assert_eq!((capture.taken, capture.verdict), (BootInstant(1_234_567_890_123), SelfVerdict::Unknown));
    let Page::Nvme(page) = capture.page else { panic!("{capture:?}") };
    let expected = NvmeSmart {
        critical_warning: 0b101,
        celsius: Some(41),
        spare_percent: 9,
        spare_threshold_percent: 10,
        used_percent: 93,
        endurance_group_warning: 2,
        data_units_read: 1_000_003,
        data_units_written: 2_000_006,
        host_read_commands: 3_000_009 + (1 << 70),
        host_write_commands: 4_000_012,
        controller_busy_minutes: 5_000_015,
        power_cycles: 6_000_018,
        power_on_hours: 7_000_021,
        unsafe_shutdowns: 8_000_024,
        media_errors: 9_000_027,
        error_log_entries: 10_000_030,
        warning_temperature_minutes: 11,
        critical_temperature_minutes: 12,
        sensors_celsius: [Some(30), Some(31), Some(32), Some(33), Some(34), Some(35), Some(36), None],
        thermal_1_transitions: 21,
        thermal_2_transitions: 22,
        thermal_1_seconds: 23,
        thermal_2_seconds: 24,
    };
    assert_eq!(NvmeSmart::parse(&*page), Ok(expected));
}

#[test]
fn every_attribute_of_an_ata_page_is_read_with_its_threshold() {
    let capture = capture("sda.smart");
    assert_eq!((capture.taken, capture.verdict), (BootInstant(987_654_321), SelfVerdict::Failing));
    let Page::Ata { data, thresholds } = capture.page else { panic!("{capture:?}") };
    let smart = AtaSmart::parse(&*data, &*thresholds).unwrap();
    let numbers: Vec<u8> = smart.attributes.iter().map(|attribute| attribute.number).collect();
    assert_eq!(numbers, [5, 9, 12, 187, 194, 197, 198, 199, 241]);
    let reallocated = Attribute { number: 5, prefail: true, value: Some(36), threshold: Some(36), raw: 1288 };
    assert_eq!(smart.failing().collect::<Vec<_>>(), [&reallocated]);
    let hours =
        Attribute { number: 9, prefail: false, value: Some(70), threshold: None, raw: 26_543 | 7 << 40 };
    assert_eq!(smart.attribute(9), Some(&hours));
    assert_eq!(smart.celsius(), Some(34), "the lowest byte, below the extremes");
    assert_eq!(smart.used_percent(), None, "a disk that turns does not wear by writing");
}
