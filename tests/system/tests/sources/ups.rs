//! UPSes: Network UPS Tools' own upsd with its dummy-ups driver, and apcupsd's own daemon.
//!
//! apcupsd has no driver that plays a UPS, so it is told to follow another apcupsd (its driver `net`), and that one is a
//! twin in this file: the server that the node asks is the real one.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use config::{ApcupsdConfig, NutConfig, Reaction, ReactionKind, SourcesConfig};
use harness::process::{Process, wait_for};
use harness::site::{PATIENCE, free_port};

use crate::{reaction, site_with, source, wait_refused, wait_source};

/// A program of the system that is in no user's PATH.
fn system_program(paths: &[&str]) -> Command {
    let found = paths.iter().find(|path| Path::new(path).is_file());
    Command::new(found.unwrap_or_else(|| panic!("none of {paths:?} is there: run `make clients`")))
}

// ---- Network UPS Tools ----

/// upsd and the driver of a UPS that says what its file says.
struct Nut {
    dir: PathBuf,
    address: SocketAddr,
    _upsd: Process,
    driver: Option<Process>,
}

const PASSWORD: &str = "upsd's \"password\"";

impl Nut {
    fn start(dir: &Path) -> Self {
        let dir = dir.join("nut");
        std::fs::create_dir_all(&dir).expect("a directory");
        let address = free_port();
        let write = |name: &str, text: String| std::fs::write(dir.join(name), text).expect("a configuration");
        let device = dir.join("rack.dev");
        write("nut.conf", "MODE=standalone\n".to_owned());
        write(
            "ups.conf",
            format!(
                "[rack]\ndriver = dummy-ups\nport = {}\nmode = dummy-once\npollinterval = 1\n",
                device.display()
            ),
        );
        write("upsd.conf", format!("LISTEN {} {}\nMAXAGE 5\n", address.ip(), address.port()));
        write("upsd.users", "[node]\npassword = \"upsd's \\\"password\\\"\"\nupsmon secondary\n".to_owned());
        for name in ["upsd.conf", "upsd.users"] {
            use std::os::unix::fs::PermissionsExt;
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(dir.join(name), private).expect("a private file");
        }
        set_status(&device, "OL");
        let mut nut = Self { _upsd: Self::upsd(&dir), dir, address, driver: None };
        nut.start_driver();
        nut
    }

    fn environment(command: &mut Command, dir: &Path) {
        for variable in ["NUT_CONFPATH", "NUT_STATEPATH", "NUT_ALTPIDPATH"] {
            command.env(variable, dir);
        }
        command.args(["-F", "-u", "root"]);
    }

    fn upsd(dir: &Path) -> Process {
        let mut command = system_program(&["/lib/nut/upsd", "/usr/lib/nut/upsd", "/usr/sbin/upsd"]);
        Self::environment(&mut command, dir);
        Process::start("upsd", command)
    }

    fn start_driver(&mut self) {
        let mut command = system_program(&["/lib/nut/dummy-ups", "/usr/lib/nut/dummy-ups"]);
        Self::environment(&mut command, &self.dir);
        self.driver = Some(Process::start("dummy-ups", command.tap(|command| command.args(["-a", "rack"]))));
    }

    fn set(&self, status: &str) {
        set_status(&self.dir.join("rack.dev"), status);
    }

    fn config(&self) -> NutConfig {
        let password_file = self.dir.join("password");
        std::fs::write(&password_file, format!("{PASSWORD}\n")).expect("a password file");
        NutConfig {
            name: "ups".into(),
            server: self.address.to_string(),
            ups: "rack".into(),
            user: Some("node".into()),
            password_file: Some(password_file),
            interval_ms: 100,
            on_battery: Reaction::report(),
            on_low_battery: Reaction::wipe(),
            on_forced_shutdown: Reaction::wipe(),
            on_lost: reaction(ReactionKind::Report, 1_000),
        }
    }
}

/// A builder's step in the middle of an expression.
trait Tap: Sized {
    fn tap(self, step: impl FnOnce(&mut Self) -> &mut Self) -> Self;
}

impl Tap for Command {
    fn tap(mut self, step: impl FnOnce(&mut Self) -> &mut Self) -> Self {
        step(&mut self);
        self
    }
}

fn set_status(device: &Path, status: &str) {
    // The driver reads the file again when its time has changed, in whole seconds: two changes within one must differ in it.
    let former = std::fs::metadata(device).and_then(|metadata| metadata.modified());
    let next =
        former.map_or(SystemTime::now(), |former| SystemTime::now().max(former + Duration::from_secs(2)));
    // In one step, so that it never reads half of one.
    let path = device.with_extension("new");
    let mut file = File::create(&path).expect("the UPS's file");
    write!(file, "ups.mfr: Nightlatch\nups.status: {status}\n").expect("the UPS's file");
    file.set_modified(next).expect("the UPS's file");
    std::fs::rename(&path, device).expect("the UPS's file");
}

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
    nut.driver.take().expect("a driver was started").kill();
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
        std::fs::write(started.dir.join("password"), "guessed\n").expect("a password file");
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
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace root");
    let unpacked = root.join("target/tools/apcupsd/sbin/apcupsd");
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
