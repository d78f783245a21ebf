//! The servers, how each is started, and what ours is held against.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use benches::folder;

use crate::cells::Cell;
use crate::ours;
use crate::pki::Pki;

/// What every server serves.
pub(crate) const SIZE_BYTES: u64 = 256 << 20;

/// A server and how it keeps its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Ours,
    NbdkitFile,
    NbdkitMemory,
    NbdkitLuks,
    QemuRaw,
    QemuLuks,
    NbdServer,
    /// Does nothing: what the client can take.
    Null,
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "nightlatch",
            Self::NbdkitFile => "nbdkit file",
            Self::NbdkitMemory => "nbdkit mem",
            Self::NbdkitLuks => "nbdkit luks",
            Self::QemuRaw => "qemu raw",
            Self::QemuLuks => "qemu luks",
            Self::NbdServer => "nbd-server",
            Self::Null => "nbdkit null",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Unix,
    Tcp,
    Tls,
}

/// A rate that ours has to reach.
pub(crate) struct Ratio {
    pub(crate) to: Subject,
    pub(crate) factor: f64,
    pub(crate) applies: fn(&Cell) -> bool,
}

/// Servers that are measured side by side.
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) transport: Transport,
    pub(crate) in_memory: bool,
    pub(crate) subjects: &'static [Subject],
    pub(crate) ratios: &'static [Ratio],
    /// Whose tail and processor time ours is held against.
    pub(crate) plain_peer: Subject,
}

const ALL: &[Subject] = &[
    Subject::Ours,
    Subject::NbdkitFile,
    Subject::NbdkitMemory,
    Subject::NbdkitLuks,
    Subject::QemuRaw,
    Subject::QemuLuks,
    Subject::NbdServer,
    Subject::Null,
];

const ON_DISK: &[Subject] = &[
    Subject::Ours,
    Subject::NbdkitFile,
    Subject::NbdkitLuks,
    Subject::QemuRaw,
    Subject::QemuLuks,
    Subject::NbdServer,
    Subject::Null,
];

const OVER_TLS: &[Subject] = &[
    Subject::Ours,
    Subject::NbdkitFile,
    Subject::NbdkitMemory,
    Subject::NbdkitLuks,
    Subject::QemuRaw,
    Subject::QemuLuks,
    Subject::NbdServer,
    Subject::Null,
];

const IN_CLEAR: &[Ratio] = &[
    Ratio { to: Subject::NbdkitFile, factor: 1.0, applies: |_| true },
    Ratio { to: Subject::NbdkitLuks, factor: 2.0, applies: |cell| cell.depth == 32 },
    Ratio { to: Subject::QemuLuks, factor: 4.0, applies: |cell| cell.depth == 32 },
    Ratio { to: Subject::NbdkitLuks, factor: 3.0, applies: |cell| cell.sequential },
];

const UNDER_TLS: &[Ratio] = &[
    Ratio { to: Subject::NbdkitFile, factor: 1.0, applies: |_| true },
    Ratio { to: Subject::NbdkitLuks, factor: 1.5, applies: |_| true },
];

const fn section(name: &'static str, transport: Transport, in_memory: bool) -> Section {
    let tls = matches!(transport, Transport::Tls);
    Section {
        name,
        transport,
        in_memory,
        subjects: if tls {
            OVER_TLS
        } else if in_memory {
            ALL
        } else {
            ON_DISK
        },
        ratios: if tls { UNDER_TLS } else { IN_CLEAR },
        plain_peer: Subject::NbdkitFile,
    }
}

pub(crate) const SECTIONS: [Section; 4] = [
    section("unix-memory", Transport::Unix, true),
    section("tcp-memory", Transport::Tcp, true),
    section("tls-memory", Transport::Tls, true),
    section("unix-disk", Transport::Unix, false),
];

/// A running server with its bytes.
pub(crate) struct Server {
    pub(crate) subject: Subject,
    pub(crate) uri: String,
    child: Child,
    /// Of the server: nbd-server leaves what was started.
    pid: u32,
    files: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if self.pid != self.child.id() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid).unwrap_or(i32::MAX));
            // Gone already is as good.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
    }
}

/// Where nbd-server says who it is.
const PID_FILE: &str = "pid";

/// Our pool's file.
const POOL: &str = "pool";

const PASSPHRASE: &str = "bench";

impl Server {
    pub(crate) fn start(subject: Subject, section: &Section, pki: &Pki) -> Result<Self> {
        let parent = if section.in_memory { PathBuf::from("/dev/shm") } else { folder() };
        fs::create_dir_all(&parent)?;
        let files = tempfile::Builder::new().prefix("bench-nbd-").tempdir_in(parent)?;
        fs::set_permissions(files.path(), fs::Permissions::from_mode(0o755))?;
        let port = free_port()?;
        let socket = files.path().join("nbd.sock");
        let label = if matches!(subject, Subject::Ours | Subject::NbdServer) { "disk" } else { "" };
        let uri = match section.transport {
            Transport::Unix => format!("nbd+unix:///{label}?socket={}", socket.display()),
            Transport::Tcp => format!("nbd://localhost:{port}/{label}"),
            Transport::Tls => format!("nbds://localhost:{port}/{label}"),
        };
        let start = Start { files: files.path(), socket: &socket, port, transport: section.transport, pki };
        let mut command = start.command(subject)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("{command:?}: run tests/clients.sh bench"))?;
        let pid = child.id();
        let mut server = Self { subject, uri, child, pid, files };
        server.wait_until_it_listens(section.transport, &socket, port)?;
        Ok(server)
    }

    fn wait_until_it_listens(&mut self, transport: Transport, socket: &Path, port: u16) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let has_left = self.subject == Subject::NbdServer && self.pid == self.child.id();
            let listens = !has_left
                && match transport {
                    Transport::Unix => UnixStream::connect(socket).is_ok(),
                    Transport::Tcp | Transport::Tls => TcpStream::connect(("127.0.0.1", port)).is_ok(),
                };
            if listens {
                // Everybody may connect: the client is somebody else.
                if transport == Transport::Unix {
                    fs::set_permissions(socket, fs::Permissions::from_mode(0o777))?;
                }
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "{} ended: {status}", self.subject.name());
                if let Ok(pid) = fs::read_to_string(self.files.path().join(PID_FILE)) {
                    self.pid = pid.trim().parse().context("a process id")?;
                }
            }
            ensure!(Instant::now() < deadline, "{} does not listen", self.subject.name());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where ours keeps its pool.
    pub(crate) fn pool(&self) -> PathBuf {
        self.files.path().join(POOL)
    }

    /// Processor time that the server and what it has forked have taken.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let own = self.pid;
        let mut all = vec![own];
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        let mut ticks = 0.0;
        for pid in all {
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
            // utime, stime, and those of children that have ended.
            for field in fields.iter().skip(11).take(4) {
                ticks += field.parse::<f64>().context("a number of ticks")?;
            }
        }
        // USER_HZ is 100 on every architecture we run on.
        Ok(ticks / 100.0)
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What a command line is made of.
struct Start<'a> {
    files: &'a Path,
    socket: &'a Path,
    port: u16,
    transport: Transport,
    pki: &'a Pki,
}

impl Start<'_> {
    fn command(&self, subject: Subject) -> Result<Command> {
        match subject {
            Subject::Ours => self.ours(),
            Subject::NbdkitFile => Ok(self.nbdkit(&[], &["file", &self.raw()?])),
            Subject::NbdkitMemory => Ok(self.nbdkit(&[], &["memory", &SIZE_BYTES.to_string()])),
            Subject::Null => Ok(self.nbdkit(&[], &["null", &SIZE_BYTES.to_string()])),
            Subject::NbdkitLuks => {
                let passphrase = format!("passphrase={PASSPHRASE}");
                Ok(self.nbdkit(&["--filter=luks"], &["file", &self.luks()?, &passphrase]))
            }
            Subject::QemuRaw => {
                let image = format!("driver=raw,file.driver=file,file.filename={}", self.raw()?);
                Ok(self.qemu(&image))
            }
            Subject::QemuLuks => {
                let image =
                    format!("driver=luks,key-secret=key,file.driver=file,file.filename={}", self.luks()?);
                let mut command = self.qemu(&image);
                command.arg(format!("--object=secret,id=key,data={PASSPHRASE}"));
                Ok(command)
            }
            Subject::NbdServer => self.nbd_server(),
        }
    }

    fn ours(&self) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ours::SERVE).arg(self.files.join(POOL));
        match self.transport {
            Transport::Unix => command.arg("unix").arg(self.socket),
            Transport::Tcp => command.args(["tcp", &self.port.to_string()]),
            Transport::Tls => command.args(["tls", &self.port.to_string()]).arg(self.pki.servers()),
        };
        Ok(command)
    }

    fn nbdkit(&self, filters: &[&str], plugin: &[&str]) -> Command {
        let mut command = Command::new("nbdkit");
        command.arg("--foreground").args(filters);
        match self.transport {
            Transport::Unix => command.arg("--unix").arg(self.socket),
            Transport::Tcp => command.args(["--ipaddr=127.0.0.1", "--port", &self.port.to_string()]),
            Transport::Tls => command
                .args([
                    "--ipaddr=127.0.0.1",
                    "--tls=require",
                    "--tls-verify-peer",
                    "--port",
                    &self.port.to_string(),
                ])
                .arg(format!("--tls-certificates={}", self.pki.servers().display())),
        };
        command.args(plugin);
        command
    }

    fn qemu(&self, image: &str) -> Command {
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--shared=16", "--image-opts", image]);
        match self.transport {
            Transport::Unix => command.arg("--socket").arg(self.socket),
            Transport::Tcp => command.args(["--bind=127.0.0.1", "--port", &self.port.to_string()]),
            Transport::Tls => command
                .args(["--bind=127.0.0.1", "--tls-creds=tls", "--port", &self.port.to_string()])
                .arg(format!(
                    "--object=tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={}",
                    self.pki.servers().display()
                )),
        };
        command
    }

    fn nbd_server(&self) -> Result<Command> {
        let config = self.files.join("nbd-server.conf");
        let listen = match self.transport {
            Transport::Unix => format!("unixsock = {}", self.socket.display()),
            Transport::Tcp => format!("listenaddr = 127.0.0.1\nport = {}", self.port),
            Transport::Tls => {
                let file = |name: &str| self.pki.servers().join(name).display().to_string();
                format!(
                    "listenaddr = 127.0.0.1\nport = {}\nforce_tls = true\ncacertfile = {}\ncertfile = {}\nkeyfile = {}",
                    self.port,
                    file("ca-cert.pem"),
                    file("server-cert.pem"),
                    file("server-key.pem")
                )
            }
        };
        fs::write(
            &config,
            format!(
                "[generic]\n{listen}\n[disk]\nexportname = {}\nfilesize = {SIZE_BYTES}\nflush = true\nfua = true\n",
                self.raw()?
            ),
        )?;
        let mut command = Command::new("nbd-server");
        command.arg("--config-file").arg(config).arg("--pid-file").arg(self.files.join(PID_FILE));
        Ok(command)
    }

    fn raw(&self) -> Result<String> {
        let path = self.files.join("raw.img");
        fs::File::create(&path)?.set_len(SIZE_BYTES)?;
        Ok(path.display().to_string())
    }

    fn luks(&self) -> Result<String> {
        let path = self.files.join("luks.img").display().to_string();
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "luks", "-o", "key-secret=key,iter-time=10"])
            .arg(format!("--object=secret,id=key,data={PASSPHRASE}"))
            .args([&path, &SIZE_BYTES.to_string()])
            .output()?;
        ensure!(made.status.success(), "qemu-img: {}", String::from_utf8_lossy(&made.stderr));
        Ok(path)
    }
}
