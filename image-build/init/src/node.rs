//! The node: what it needs before it can start, its life, and its end.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, set_cad_enabled};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::console::say;
use crate::devices::{self, NODE_USER};
use crate::drivers::Drivers;
use crate::failure::Failure;
use crate::machine::own;
use crate::power::Buttons;
use crate::root::CREDENTIALS;

const PROGRAM: &str = "/usr/bin/nightlatchd";
const NOTIFICATIONS: &str = "/run/notify";
const DEBUG_SHELL: &str = "/etc/nightlatch/debug-shell";

/// As systemd/nightlatchd.service has them: the limits of locked memory, of realtime priority and of open files.
const LIMITS: &[(Resource, u64)] = &[
    (Resource::RLIMIT_MEMLOCK, 8 << 20),
    (Resource::RLIMIT_RTPRIO, 10),
    (Resource::RLIMIT_NOFILE, 65536),
    (Resource::RLIMIT_CORE, 0),
];

/// A node that is silent for so long is killed, and its secret memory goes with it.
const WATCHDOG: Duration = Duration::from_secs(30);
/// Its drain, its wipe and its receipts; then it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(45);
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// A disk of a pool that is not there by then is the node's to report.
const POOL_PATIENCE: Duration = Duration::from_secs(30);
const TURN: Duration = Duration::from_millis(200);

/// What of the node's configuration concerns the machine.
#[derive(Debug, Deserialize)]
pub(crate) struct Plan {
    #[serde(default)]
    pools: Vec<Pool>,
    watchdog: Option<HardwareWatchdog>,
}

#[derive(Debug, Deserialize)]
struct Pool {
    path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct HardwareWatchdog {
    device: PathBuf,
}

fn configuration() -> PathBuf {
    Path::new(CREDENTIALS).join("node.toml")
}

impl Plan {
    pub(crate) fn read() -> Result<Self, Failure> {
        let path = configuration();
        let text = fs::read_to_string(&path).map_err(|_| {
            Failure::Configuration(
                "this machine has no configuration: no node.toml lay beside the image. `nightlatch image disk --config` \
                 writes a disk that has one"
                    .to_owned(),
            )
        })?;
        toml::from_str(&text).map_err(|error| Failure::Configuration(format!("node.toml: {error}")))
    }

    /// Waits until the pools' disks are there, and hands them to the node, and the watchdog too.
    pub(crate) fn wait_for_pools(&self, drivers: &mut Drivers) {
        let (begun, mut said) = (Instant::now(), false);
        let missing = || self.pools.iter().find(|pool| !pool.path.exists());
        while let Some(pool) = missing().filter(|_| begun.elapsed() < POOL_PATIENCE) {
            if !said {
                say(&format!("waiting for the disk {}", pool.path.display()));
                said = true;
            }
            std::thread::sleep(TURN);
            drivers.look_around();
            devices::name_disks();
        }
        let devices =
            self.pools.iter().map(|pool| &pool.path).chain(self.watchdog.iter().map(|dog| &dog.device));
        for path in devices {
            // A link's target is what is owned.
            let device = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            if let Err(error) = own(&device, 0o600) {
                say(&format!("{} cannot be handed to the node: {error}", path.display()));
            }
        }
    }
}

/// One life of the node.
struct Life {
    process: Pid,
    heard: Instant,
    /// Its end was asked for at this moment.
    stopping: Option<Instant>,
}

struct Supervisor {
    notifications: UnixDatagram,
    signals: SignalFd,
    buttons: Buttons,
    life: Option<Life>,
    start_at: Instant,
    end: Option<RebootMode>,
}

/// Starts the node, and again whenever it ends, until the machine is to end; says how.
pub(crate) fn supervise(buttons: Buttons) -> Result<RebootMode, Failure> {
    for (resource, limit) in LIMITS {
        setrlimit(*resource, *limit, *limit).map_err(Failure::system(format!("set {resource:?}")))?;
    }
    // Ctrl-Alt-Del is an order to this process, and not to the kernel.
    let _ = set_cad_enabled(false);
    let mut mask = SigSet::empty();
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT].into_iter().for_each(|signal| mask.add(signal));
    mask.thread_block().map_err(Failure::system("block signals"))?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals = SignalFd::with_flags(&mask, flags).map_err(Failure::system("read signals"))?;
    let notifications =
        UnixDatagram::bind(NOTIFICATIONS).map_err(Failure::system(format!("listen on {NOTIFICATIONS}")))?;
    notifications.set_nonblocking(true).map_err(Failure::system("listen without waiting"))?;
    own(Path::new(NOTIFICATIONS), 0o600)
        .map_err(Failure::system(format!("hand {NOTIFICATIONS} to the node")))?;
    start_debug_shell();
    let start_at = Instant::now();
    Supervisor { notifications, signals, buttons, life: None, start_at, end: None }.run()
}

fn start_debug_shell() {
    if let Ok(text) = fs::read_to_string(DEBUG_SHELL) {
        let mut words = text.split_whitespace();
        let Some(program) = words.next() else { return };
        say("this is a debugging image: whoever sits here is root. Give it no key");
        if let Err(error) = Command::new(program).args(words).spawn() {
            say(&format!("no shell: {error}"));
        }
    }
}

impl Supervisor {
    fn run(mut self) -> Result<RebootMode, Failure> {
        loop {
            if let (None, Some(end)) = (&self.life, self.end) {
                return Ok(end);
            }
            if self.life.is_none() && Instant::now() >= self.start_at {
                self.start();
            }
            self.wait();
            self.hear_signals();
            self.hear_node();
            if self.buttons.pressed() {
                say("the power button was pressed: the node wipes its keys, then the machine powers off");
                self.stop(RebootMode::RB_POWER_OFF);
            }
            self.look_at_clock();
        }
    }

    fn start(&mut self) {
        let mut command = Command::new(PROGRAM);
        command.arg("--config").arg(configuration()).env_clear();
        command.env("NOTIFY_SOCKET", NOTIFICATIONS).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        match command.uid(NODE_USER).gid(NODE_USER).current_dir("/").spawn() {
            Ok(child) => {
                let process = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
                self.life = Some(Life { process, heard: Instant::now(), stopping: None });
            }
            Err(error) => {
                say(&format!("{PROGRAM} cannot be started: {error}"));
                self.start_at = Instant::now() + RESTART_AFTER;
            }
        }
    }

    /// Until something is to be read, or a second has passed.
    fn wait(&self) {
        let readable = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
        let mut descriptors = vec![readable(self.signals.as_fd()), readable(self.notifications.as_fd())];
        descriptors.extend(self.buttons.descriptors().map(readable));
        let _ = poll(&mut descriptors, PollTimeout::from(1000_u16));
    }

    fn hear_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
            match Signal::try_from(number) {
                Ok(Signal::SIGTERM) => self.stop(RebootMode::RB_POWER_OFF),
                Ok(Signal::SIGINT) => self.stop(RebootMode::RB_AUTOBOOT),
                _ => {}
            }
        }
        // Whoever lost its parent is ours too.
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let (Some(process), false) = (status.pid(), status == WaitStatus::StillAlive) else { break };
            if self.life.as_ref().is_some_and(|life| life.process == process) {
                let stopped = self.life.take().is_some_and(|life| life.stopping.is_some());
                let how = match status {
                    WaitStatus::Exited(_, code) => format!("with status {code}"),
                    WaitStatus::Signaled(_, signal, _) => format!("by {signal}"),
                    _ => String::new(),
                };
                let next = if self.end.is_some() { "" } else { "; it is started again, sealed" };
                say(&format!("the node has {} {how}{next}", if stopped { "stopped" } else { "ended" }));
                self.start_at = Instant::now() + RESTART_AFTER;
            }
        }
    }

    fn hear_node(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(len) = self.notifications.recv(&mut buffer) {
            let Some(life) = &mut self.life else { continue };
            life.heard = Instant::now();
            for line in String::from_utf8_lossy(&buffer[..len]).lines() {
                if let Some(status) = line.strip_prefix("STATUS=") {
                    say(status);
                }
            }
        }
    }

    /// Asks the node to wipe and end, and the machine to end after it.
    fn stop(&mut self, how: RebootMode) {
        self.end.get_or_insert(how);
        if let Some(life) = self.life.as_mut().filter(|life| life.stopping.is_none()) {
            life.stopping = Some(Instant::now());
            let _ = kill(life.process, Signal::SIGTERM);
        }
    }

    fn look_at_clock(&mut self) {
        let Some(life) = &mut self.life else { return };
        let late = match life.stopping {
            Some(asked) => asked.elapsed() > STOP_PATIENCE,
            None => life.heard.elapsed() > WATCHDOG,
        };
        if late {
            say("the node does not answer and is killed: the kernel zeroes its secret memory");
            let _ = kill(life.process, Signal::SIGKILL);
            life.heard = Instant::now();
        }
    }
}
