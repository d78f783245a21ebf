//! Network UPS Tools' own upsd, with its dummy-ups driver: a UPS that says what it is told to.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use config::{NutConfig, Reaction, ReactionKind};

use crate::client::system_program;
use crate::process::Process;
use crate::site::free_port;

/// upsd and the driver of a UPS that says what its file says.
#[derive(Debug)]
pub struct Nut {
    dir: PathBuf,
    address: SocketAddr,
    _upsd: Process,
    driver: Option<Process>,
}

const PASSWORD: &str = "upsd's \"password\"";

impl Nut {
    /// Starts both below `dir`, the UPS on line.
    ///
    /// # Panics
    /// Where they do not start.
    pub fn start(dir: &Path) -> Self {
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

    /// Starts the driver anew.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start_driver(&mut self) {
        let mut command = system_program(&["/lib/nut/dummy-ups", "/usr/lib/nut/dummy-ups"]);
        Self::environment(&mut command, &self.dir);
        command.args(["-a", "rack"]);
        self.driver = Some(Process::start("dummy-ups", command));
    }

    /// Ends the driver: upsd goes on without.
    ///
    /// # Panics
    /// Where there is none.
    pub fn stop_driver(&mut self) {
        self.driver.take().expect("a driver was started").kill();
    }

    /// What the UPS says from now on, as in `OB LB`.
    pub fn set(&self, status: &str) {
        set_status(&self.dir.join("rack.dev"), status);
    }

    /// Where the node's password at upsd is.
    pub fn password_file(&self) -> PathBuf {
        self.dir.join("password")
    }

    /// The node's table: on battery is reported, a low battery and a forced shutdown wipe.
    ///
    /// # Panics
    /// Where the password's file cannot be written.
    pub fn config(&self) -> NutConfig {
        let password_file = self.password_file();
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
            on_lost: Reaction { action: ReactionKind::Report, drain_s: 1, debounce_ms: 1_000 },
        }
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
