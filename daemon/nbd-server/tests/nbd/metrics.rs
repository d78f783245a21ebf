//! The counters count what happened.

use std::time::{Duration, Instant};

use nbd_server::Limits;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::raw::*;
use crate::rig::{NOT_SMALL, Rig, Setup, eventually};

fn text(rig: &Rig) -> String {
    let mut registry = Registry::default();
    rig.server.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

/// The value of the first sample of `name` whose labels contain `label`.
pub(crate) fn counter(rig: &Rig, name: &str, label: &str) -> u64 {
    let text = text(rig);
    let sample = text.lines().find(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
    });
    let sample = sample.unwrap_or_else(|| panic!("no {name} with {label} in\n{text}"));
    let value = sample.rsplit(' ').next().unwrap();
    value.parse().unwrap_or_else(|_| panic!("{sample}"))
}

#[test]
fn requests_bytes_errors_and_connections_are_counted() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.write(0, &[1; 8192], false).unwrap();
    client.read(0, &mut [0; 4096]).unwrap();
    client.read(0, &mut [0; 512]).unwrap();
    client.flush().unwrap();
    client.trim(0, 4096, false).unwrap();
    let mut raw = Raw::structured(&rig.socket);
    raw.request(READ, 0, 1, u64::MAX, 4096);
    assert_eq!(raw.chunk().errno(), Some(EINVAL));
    raw.request(77, 0, 1, 0, 0);
    assert_eq!(raw.chunk().errno(), Some(EINVAL));
    Raw::silent(&rig.socket).send(b"no");

    let volume = rig.export().volume.id();
    let of = |name: &str, operation: &str| {
        counter(&rig, name, &format!(r#"volume="{volume}",operation="{operation}""#))
    };
    assert!(!text(&rig).contains("disk"), "whoever reads metrics learns no label");
    assert_eq!(of("nbd_requests_total", "read"), 3);
    assert_eq!(of("nbd_payload_bytes_total", "read"), 4608);
    assert_eq!(of("nbd_errors_total", "read"), 1);
    assert_eq!(of("nbd_requests_total", "write"), 1);
    assert_eq!(of("nbd_payload_bytes_total", "write"), 8192);
    assert_eq!(of("nbd_requests_total", "flush"), 1);
    assert_eq!(of("nbd_requests_total", "trim"), 1);
    assert_eq!(of("nbd_errors_total", "unknown"), 1);
    assert_eq!(of("nbd_requests_in_flight", "read"), 0);
    assert_eq!(of("nbd_request_duration_seconds_count", "read"), 3);
    assert_eq!(counter(&rig, "nbd_export_connections", &volume.to_string()), 2);
    eventually("the failed negotiation is counted", || {
        counter(&rig, "nbd_negotiations_failed_total", "") == 1
    });
    drop((client, raw));
    eventually("connections are counted down", || counter(&rig, "nbd_connections", "") == 0);
    assert_eq!(counter(&rig, "nbd_connections_accepted_total", ""), 3);
}

#[test]
fn an_operation_that_takes_long_is_counted_as_slow() {
    let limits = Limits { slow_operation: Duration::from_millis(30), ..Limits::default() };
    let rig = Rig::with(Setup { limits, ..Setup::default() });
    rig.client().write(0, &[1; NOT_SMALL], false).unwrap();
    let mut raw = Raw::structured(&rig.socket);
    rig.device.close();
    let began = Instant::now();
    raw.request(READ, 0, 1, 0, 4096);
    rig.device.wait_held(1);
    // Not to wait for anything: to be slow.
    while began.elapsed() < limits.slow_operation {
        std::thread::sleep(limits.slow_operation);
    }
    rig.device.open();
    assert_eq!(raw.chunk().payload[8..], [1; 4096]);
    assert_eq!(counter(&rig, "nbd_slow_requests_total", r#"operation="read""#), 1);
    assert_eq!(counter(&rig, "nbd_slow_requests_total", r#"operation="flush""#), 0);
}
