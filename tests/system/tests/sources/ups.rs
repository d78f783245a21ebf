//! UPSes: Network UPS Tools' own upsd with its dummy-ups driver, and apcupsd's own daemon.
//!
//! apcupsd has no driver that plays a UPS, so it is told to follow another apcupsd (its driver `net`), and that one is a
//! twin in this file: the server that the node asks is the real one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use config::{ApcupsdConfig, Reaction, ReactionKind, SourcesConfig};
use harness::client::{system_program, tools};
use harness::nut::Nut;
use harness::process::{Process, wait_for};
use harness::site::{PATIENCE, free_port};

use crate::{reaction, site_with, source, wait_refused, wait_source};

#[test]
fn a_ups_at_upsd_reports_on_battery_and_wipes_when_low_and_when_forced_down() {
    let mut nut = None;
    let site = site_with(|dir| {
        let started = Nut::start(dir);
        let config = started.config();
        nut = Some(started);
        SourcesConfig { nut: vec![config], ..SourcesConfig::default() }
    });
    let mut nut = nut.expect("upsd was started");
    wait_source(&site, "ups", "a UPS that answers", |source| source.up && source.heard_boot_ns.is_some());
    nut.set("OB DISCHRG");
    wait_source(&site, "ups", "a UPS on battery", |source| source.active == ["ups-on-battery"]);
    assert!(!site.status().seal.sealed, "only reported");
    nut.set("OB DISCHRG LB");
    site.wait_sealed("ups-low-battery");
    wait_refused(&site, "ups-low-battery");
    nut.set("OL CHRG");
    site.wait_serving();
    nut.set("FSD OL");
    site.wait_sealed("ups-forced-shutdown");
    nut.set("OL");
    site.wait_serving();
    // The driver ends, and upsd says that its data is stale: the UPS is lost, and found again.
    nut.stop_driver();
    let lost = wait_source(&site, "ups", "a lost UPS", |source| source.active == ["source-lost"]);
    let trouble = lost.trouble.unwrap_or_default();
    assert!(trouble.contains("DATA-STALE") || trouble.contains("DRIVER-NOT-CONNECTED"), "{trouble}");
    nut.start_driver();
    wait_source(&site, "ups", "a UPS that is found again", |source| source.up && source.active.is_empty());
    assert!(!site.status().seal.sealed, "its loss was only reported");
}

#[test]
fn a_wrong_password_at_upsd_is_a_lost_source_that_says_so() {
    let mut nut = None;
    let site = site_with(|dir| {
        let started = Nut::start(dir);
        let config = started.config();
        std::fs::write(started.password_file(), "guessed\n").expect("a password file");
        nut = Some(started);
        SourcesConfig { nut: vec![config], ..SourcesConfig::default() }
    });
    let trouble = |source: &admin::api::SourceStatus| source.trouble.clone().unwrap_or_default();
    wait_source(&site, "ups", "a refused login", |source| trouble(source).contains("ACCESS-DENIED"));
    assert!(!source(&site, "ups").up);
    drop(nut);
}

// ---- apcupsd ----

/// The twin that apcupsd follows: its information server, as much as apcupsd's driver asks for.
struct Followed {
    address: SocketAddr,
    flags: Arc<Mutex<&'static str>>,
}

impl Followed {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("a bound port");
        let flags = Arc::new(Mutex::new("0x05000008"));
        let shared = Arc::clone(&flags);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut length = [0; 2];
                while stream.read_exact(&mut length).is_ok() {
                    let mut command = vec![0; usize::from(u16::from_be_bytes(length))];
                    let flags = *shared.lock().unwrap_or_else(PoisonError::into_inner);
                    if stream.read_exact(&mut command).is_err() || stream.write_all(&answer(flags)).is_err() {
                        break;
                    }
                }
            }
        });
        Self { address, flags }
    }

    fn set(&self, flags: &'static str) {
        *self.flags.lock().unwrap_or_else(PoisonError::into_inner) = flags;
    }
}

fn answer(flags: &str) -> Vec<u8> {
    let lines = [
        "APC      : 001,036,0876",
        "HOSTNAME : followed",
        "UPSMODE  : Stand Alone",
        "STATUS   : ONLINE",
        "BCHARGE  : 100.0 Percent",
        "TIMELEFT : 30.0 Minutes",
        &format!("STATFLAG : {flags}"),
        "END APC  : 2026-01-01",
    ];
    let mut bytes = Vec::new();
    for line in lines {
        let line = format!("{line}\n");
        bytes.extend(u16::try_from(line.len()).expect("a short line").to_be_bytes());
        bytes.extend(line.as_bytes());
    }
    bytes.extend([0, 0]);
    bytes
}

/// Starts apcupsd, following `followed`.
fn apcupsd(dir: &Path, followed: SocketAddr, address: SocketAddr) -> Process {
    use std::os::unix::fs::PermissionsExt;
    let dir = dir.join("apcupsd");
    std::fs::create_dir_all(&dir).expect("a directory");
    // What it would do to the machine, it does not do here.
    let script = dir.join("apccontrol");
    std::fs::write(&script, "#!/bin/sh\nexit 0\n").expect("a script");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("a program");
    let here = dir.display();
    let config = format!(
        "## apcupsd.conf v1.1 ##\nUPSCABLE ether\nUPSTYPE net\nDEVICE {followed}\nPOLLTIME 1\nLOCKFILE {here}\n\
         SCRIPTDIR {here}\nPWRFAILDIR {here}\nNOLOGINDIR {here}\nONBATTERYDELAY 1\nBATTERYLEVEL 5\nMINUTES 3\n\
         TIMEOUT 0\nNETSERVER on\nNISIP {}\nNISPORT {}\nEVENTSFILE {here}/events\nUPSCLASS standalone\nUPSMODE disable\n",
        address.ip(),
        address.port()
    );
    let file = dir.join("apcupsd.conf");
    std::fs::write(&file, config).expect("a configuration");
    let unpacked = tools().join("apcupsd/sbin/apcupsd");
    let unpacked = unpacked.to_str().expect("a path of text");
    let mut command = system_program(&["/sbin/apcupsd", "/usr/sbin/apcupsd", unpacked]);
    command.args(["-b", "-f"]).arg(&file);
    Process::start("apcupsd", command)
}

#[test]
fn a_ups_at_apcupsd_wipes_on_battery_after_its_debounce_and_keys_come_back_with_the_mains() {
    let followed = Followed::start();
    let mut daemon = None;
    let site = site_with(|dir| {
        let address = free_port();
        daemon = Some(apcupsd(dir, followed.address, address));
        let ups = ApcupsdConfig {
            name: "ups".into(),
            server: address.to_string(),
            interval_ms: 100,
            on_battery: reaction(ReactionKind::Wipe, 500),
            on_low_battery: Reaction::wipe(),
            on_forced_shutdown: Reaction::wipe(),
            on_lost: reaction(ReactionKind::Report, 1_000),
        };
        SourcesConfig { apcupsd: vec![ups], ..SourcesConfig::default() }
    });
    wait_source(&site, "ups", "a UPS that answers", |source| source.up && source.heard_boot_ns.is_some());
    followed.set("0x05000010");
    site.wait_sealed("ups-on-battery");
    wait_refused(&site, "ups-on-battery");
    followed.set("0x05000008");
    site.wait_serving();
    daemon.as_mut().expect("apcupsd was started").kill();
    wait_source(&site, "ups", "a lost UPS", |source| source.active == ["source-lost"]);
    wait_for("a node that serves on", PATIENCE, || {
        if site.status().seal.sealed { Err("sealed".to_owned()) } else { Ok(()) }
    });
}
