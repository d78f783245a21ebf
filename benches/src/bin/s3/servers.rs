//! The servers and how each is started; each keeps its bytes in a folder of its own on the same disk.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};

use crate::ours;

pub(crate) const BUCKET: &str = "bench";
pub(crate) const REGION: &str = "us-east-1";
pub(crate) const USER: &str = "bench";
/// First argument of the process that stores nothing.
pub(crate) const NULL: &str = "null";

/// For servers that are told their keys, in the form that garage asks for.
const ACCESS: (&str, &str) =
    ("GK3515373e4c851ebaad366558", "7d37d093435a41f2aab8f13c19ba067d9776c90215f56614adad6ece597dbb34");

const START_WITHIN: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// Encrypted, verified, durable.
    Ours,
    Garage,
    GarageFsync,
    SeaweedFs,
    SeaweedFsEncrypted,
    S3sFs,
    /// Stores nothing: what the client can take.
    Null,
}

impl Subject {
    pub(crate) const ALL: [Self; 7] = [
        Self::Ours,
        Self::Garage,
        Self::GarageFsync,
        Self::SeaweedFs,
        Self::SeaweedFsEncrypted,
        Self::S3sFs,
        Self::Null,
    ];

    pub(crate) const RIVALS: [Self; 5] =
        [Self::Garage, Self::GarageFsync, Self::SeaweedFs, Self::SeaweedFsEncrypted, Self::S3sFs];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "nightlatch",
            Self::Garage => "garage",
            Self::GarageFsync => "garage fsync",
            Self::SeaweedFs => "seaweedfs",
            Self::SeaweedFsEncrypted => "seaweedfs enc",
            Self::S3sFs => "s3s-fs",
            Self::Null => "null server",
        }
    }

    fn program(self) -> Result<Option<PathBuf>> {
        let name = match self {
            Self::Ours | Self::Null => return Ok(Some(std::env::current_exe()?)),
            Self::Garage | Self::GarageFsync => "garage",
            Self::SeaweedFs | Self::SeaweedFsEncrypted => "weed",
            Self::S3sFs => "s3s-fs",
        };
        let paths = std::env::var_os("PATH").unwrap_or_default();
        Ok(std::env::split_paths(&paths).map(|folder| folder.join(name)).find(|path| path.is_file()))
    }
}

/// Where our own server listens, and the key it made.
#[derive(Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) port: u16,
    pub(crate) access: (String, String),
}

impl Ready {
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("ready.json");
        fs::write(folder.join("ready.part"), serde_json::to_vec(self)?)?;
        Ok(fs::rename(folder.join("ready.part"), path)?)
    }
}

/// A running server with its bytes.
pub(crate) struct Server {
    pub(crate) subject: Subject,
    process: Child,
    port: u16,
    access: (String, String),
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// `None` where the program is not there.
    pub(crate) fn start(subject: Subject, scratch: &Path) -> Result<Option<Self>> {
        let Some(program) = subject.program()? else { return Ok(None) };
        let folder = scratch.join(subject.name().replace(' ', "-"));
        fs::create_dir(&folder)?;
        let port = free_port()?;
        let access = (ACCESS.0.to_owned(), ACCESS.1.to_owned());
        let mut command = Command::new(&program);
        command.current_dir(&folder).stdout(Stdio::null()).stderr(fs::File::create(folder.join("log"))?);
        match subject {
            Subject::Ours => drop(command.arg(ours::SERVE).arg(&folder)),
            Subject::Null => drop(command.arg(NULL).arg("-").stdout(Stdio::piped())),
            Subject::Garage | Subject::GarageFsync => {
                let config = garage_config(&folder, port, subject == Subject::GarageFsync)?;
                command.arg("-c").arg(config).arg("server").env("RUST_LOG", "error");
            }
            Subject::SeaweedFs | Subject::SeaweedFsEncrypted => {
                weed_arguments(&mut command, &folder, port, subject == Subject::SeaweedFsEncrypted)?;
            }
            Subject::S3sFs => {
                fs::create_dir(folder.join("root"))?;
                command.args(["--access-key", ACCESS.0, "--secret-key", ACCESS.1, "--host", "127.0.0.1"]);
                command.arg("--port").arg(port.to_string()).arg(folder.join("root"));
            }
        }
        let process = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        let mut server = Self { subject, process, port, access };
        server.wait(&program, &folder).with_context(|| format!("{} does not come up", subject.name()))?;
        Ok(Some(server))
    }

    fn wait(&mut self, program: &Path, folder: &Path) -> Result<()> {
        let until = Instant::now() + START_WITHIN;
        if self.subject == Subject::Ours {
            while !folder.join("ready.json").exists() {
                self.still_starting(until)?;
            }
            let ready: Ready = serde_json::from_slice(&fs::read(folder.join("ready.json"))?)?;
            (self.port, self.access) = (ready.port, ready.access);
        }
        if self.subject == Subject::Null {
            let mut digits = [0; 5];
            self.process.stdout.as_mut().context("an output")?.read_exact(&mut digits)?;
            self.port = std::str::from_utf8(&digits)?.parse()?;
        }
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            self.still_starting(until)?;
        }
        match self.subject {
            Subject::Garage | Subject::GarageFsync => garage_setup(program, folder),
            // The filer behind its S3 port needs a moment more.
            Subject::SeaweedFs | Subject::SeaweedFsEncrypted => {
                std::thread::sleep(Duration::from_secs(8));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn still_starting(&mut self, until: Instant) -> Result<()> {
        ensure!(self.process.try_wait()?.is_none(), "it ended");
        ensure!(Instant::now() < until, "not within {} s", START_WITHIN.as_secs());
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn access(&self) -> (&str, &str) {
        (&self.access.0, &self.access.1)
    }

    pub(crate) fn region(&self) -> &'static str {
        REGION
    }

    /// Whether the bucket is made over S3.
    pub(crate) fn needs_bucket(&self) -> bool {
        !matches!(self.subject, Subject::Garage | Subject::GarageFsync)
    }

    /// Most memory that was ever resident.
    #[expect(clippy::cast_precision_loss, reason = "a size of memory")]
    pub(crate) fn peak_mib(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: u64 = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
        kib as f64 / 1024.0
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn garage_config(folder: &Path, port: u16, fsync: bool) -> Result<PathBuf> {
    let path = folder.join("garage.toml");
    let (rpc, folder) = (free_port()?, folder.display());
    let text = format!(
        "metadata_dir = \"{folder}/meta\"\ndata_dir = \"{folder}/data\"\nreplication_factor = 1\n\
         metadata_fsync = {fsync}\ndata_fsync = {fsync}\nrpc_bind_addr = \"127.0.0.1:{rpc}\"\n\
         rpc_public_addr = \"127.0.0.1:{rpc}\"\nrpc_secret = \"{}\"\n[s3_api]\ns3_region = \"{REGION}\"\n\
         api_bind_addr = \"127.0.0.1:{port}\"\n",
        ACCESS.1
    );
    fs::write(&path, text)?;
    Ok(path)
}

fn garage_setup(program: &Path, folder: &Path) -> Result<()> {
    let garage = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(program)
            .arg("-c")
            .arg(folder.join("garage.toml"))
            .args(arguments)
            .env("RUST_LOG", "error")
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "garage {arguments:?}: {error}");
        Ok(text)
    };
    let id = garage(&["node", "id", "-q"])?;
    let id = id.trim().split('@').next().unwrap_or_default().to_owned();
    garage(&["layout", "assign", "-z", "here", "-c", "20G", &id])?;
    garage(&["layout", "apply", "--version", "1"])?;
    garage(&["key", "import", "--yes", "-n", USER, ACCESS.0, ACCESS.1])?;
    garage(&["bucket", "create", BUCKET])?;
    garage(&["bucket", "allow", "--read", "--write", "--owner", BUCKET, "--key", USER])?;
    Ok(())
}

fn weed_arguments(command: &mut Command, folder: &Path, port: u16, encrypt: bool) -> Result<()> {
    let identities = serde_json::json!({ "identities": [{
        "name": USER,
        "credentials": [{ "accessKey": ACCESS.0, "secretKey": ACCESS.1 }],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }] });
    let config = folder.join("s3.json");
    fs::write(&config, serde_json::to_vec(&identities)?)?;
    fs::create_dir(folder.join("data"))?;
    command.arg("server").arg("-s3").arg(format!("-dir={}", folder.join("data").display()));
    command.arg(format!("-s3.config={}", config.display())).arg(format!("-s3.port={port}"));
    command.args([
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-volume.max=100",
        "-master.volumeSizeLimitMB=1024",
    ]);
    for part in ["master", "volume", "filer"] {
        command.arg(format!("-{part}.port={}", free_port()?));
        command.arg(format!("-{part}.port.grpc={}", free_port()?));
    }
    command.arg(format!("-s3.port.grpc={}", free_port()?));
    if encrypt {
        command.arg("-filer.encryptVolumeData");
    }
    Ok(())
}

/// Answers every request as if it had been carried out: reads bodies, and sends bodies of the size that the path names.
pub(crate) fn serve_nothing() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        print!("{:05}", listener.local_addr()?.port());
        std::io::Write::flush(&mut std::io::stdout())?;
        let filled = Bytes::from(vec![0x5a; 64 << 20]);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let filled = filled.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let filled = filled.clone();
                    async move {
                        let is_get = request.method() == hyper::Method::GET;
                        let named = request.uri().path().split('/').nth(2).and_then(|size| size.parse().ok());
                        // A page of a listing is about this long.
                        let length: usize = if is_get { named.unwrap_or(300_000) } else { 0 };
                        let mut body = request.into_body();
                        while let Some(frame) = body.frame().await {
                            frame?;
                        }
                        anyhow::Ok(hyper::Response::new(Full::new(filled.slice(..length))))
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    })
}
