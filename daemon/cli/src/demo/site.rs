//! The demonstration's directory: what is where, and what has to stay the same from one run to the next.
//!
//! ```text
//! demo.json                identifiers and ports, chosen once: the keyholder dials the node's
//! pki/                     the authority and every certificate
//! profile.toml             connection settings for `nightlatch --profile DIR`
//! officers/                three officers' keys and shares; any two unseal the keyholder
//! keyholder/, node/        configurations and state
//! pool.img                 the disk
//! nbd.sock                 the NBD head's unix socket
//! access-key.json          the S3 user's access key (mode 0600)
//! logs/                    what both programs say
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use config::NodeListen;
use identity::PrivateFile;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use units::{ByteLen, NodeId};

use crate::args::DemoArgs;
use crate::commands::random_id;
use crate::failure::{Done, Failure};
use crate::loopback::ports::{Ports, Reservation};
use crate::loopback::processes::Processes;
use crate::loopback::{at, temporary_dir};

/// Version of demo.json.
const PLAN_VERSION: u32 = 1;

/// The name of node and host certificates.
pub(super) const NODE: &str = "demo-node";

/// The name of the keyholder.
pub(super) const KEYHOLDER: &str = "demo-keyholder";

/// The volume, the object store, the bucket, and the S3 user.
pub(super) const VOLUME: &str = "demo";
pub(super) const OBJECTS: &str = "demo-objects";
pub(super) const BUCKET: &str = "demo";
pub(super) const USER: &str = "demo";

/// The region of the S3 head.
pub(super) const REGION: &str = "us-east-1";

/// Size of the volume where none is asked for.
pub(super) const VOLUME_SIZE_DEFAULT: ByteLen = ByteLen(1 << 30);

/// The longest a unix socket's path may be (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What is chosen once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    version: u32,
    node: NodeId,
    /// The pool's file or device.
    pool: PathBuf,
    ports: Ports,
}

/// An installation that is being demonstrated.
pub(super) struct Site {
    pub(super) dir: PathBuf,
    pub(super) node: NodeId,
    pub(super) pool: PathBuf,
    pub(super) device: bool,
    pub(super) ports: Ports,
    pub(super) nbd_socket: PathBuf,
    /// The size that was asked for, if one was.
    pub(super) volume_size: Option<ByteLen>,
    pub(super) nbd_plain: bool,
    pub(super) s3_plain: bool,
    /// Seconds that a day of lifecycles takes.
    pub(super) s3_day_s: u64,
    pub(super) s3_signature_v2: bool,
    pub(super) processes: Processes,
    /// Directories to remove at the end.
    temporary: Vec<PathBuf>,
    /// Held for as long as this program uses the directory.
    _lock: Flock<File>,
    /// Keeps other demonstrations off the ports; `None` where one has come to use them since the last run, which
    /// the programs then say themselves.
    _ports: Option<Reservation>,
}

impl Site {
    /// Opens the directory, or makes it.
    pub(super) fn open(arguments: &DemoArgs) -> Done<Self> {
        if let Some(size) = arguments.volume_size
            && (size.0 == 0 || !size.is_sector_aligned())
        {
            return Err(Failure::usage(
                format!("{size} is not a volume's size"),
                "give a multiple of 4096 bytes, as in 1G",
            ));
        }
        let mut temporary = Vec::new();
        let dir = match &arguments.dir {
            Some(dir) => std::path::absolute(dir).map_err(|error| Failure::file("find", dir, &error))?,
            None => {
                let dir = temporary_dir()?;
                temporary.push(dir.clone());
                dir
            }
        };
        let lock = claim(&dir)?;
        let (plan, reservation) = Plan::load_or_create(&dir, arguments)?;
        let nbd_socket = socket_path(&dir, &mut temporary)?;
        Ok(Self {
            node: plan.node,
            device: plan.pool != dir.join("pool.img"),
            pool: plan.pool,
            ports: plan.ports,
            nbd_socket,
            volume_size: arguments.volume_size,
            nbd_plain: arguments.nbd_plain,
            s3_plain: arguments.s3_plain,
            s3_day_s: arguments.s3_day_s,
            s3_signature_v2: arguments.s3_signature_v2,
            processes: Processes::new(&dir.join("logs"))?,
            dir,
            temporary,
            _lock: lock,
            _ports: reservation,
        })
    }

    /// Removes what was temporary. Nothing is left to tell if that fails.
    pub(super) fn close(&self) {
        for dir in &self.temporary {
            let _ = fs::remove_dir_all(dir);
        }
    }

    /// Whether the directory goes away at the end.
    pub(super) fn is_temporary(&self) -> bool {
        self.temporary.contains(&self.dir)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn listen(&self) -> NodeListen {
        NodeListen {
            peers: None,
            key: at(self.ports.key),
            admin: at(self.ports.admin),
            metrics: at(self.ports.metrics),
            nbd: Some(at(self.ports.nbd)),
            nbd_unix: Some(self.nbd_socket.clone()),
            s3: Some(at(self.ports.s3)),
            s3_region: REGION.to_owned(),
            nbd_plain: self.nbd_plain,
            s3_plain: self.s3_plain,
            s3_day_s: self.s3_day_s,
            s3_signature_v2: self.s3_signature_v2,
        }
    }
}

/// Makes sure that the directory is a demonstration's or empty, and that no other program is using it.
fn claim(dir: &Path) -> Done<Flock<File>> {
    let is_demo = dir.join("demo.json").exists() || dir.join("demo.lock").exists();
    let is_empty = fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    if !is_demo && !is_empty {
        return Err(Failure::usage(
            format!("{} is neither empty nor a demonstration's directory", dir.display()),
            "give a new directory with --dir",
        ));
    }
    crate::commands::make_private_dir(dir)?;
    let path = dir.join("demo.lock");
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| Failure::file("write", &path, &error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        Failure::local(
            format!("another demonstration is using {}", dir.display()),
            "stop that one, or give another directory with --dir",
        )
    })
}

fn socket_path(dir: &Path, temporary: &mut Vec<PathBuf>) -> Done<PathBuf> {
    let path = dir.join("nbd.sock");
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok(path);
    }
    let short = temporary_dir()?;
    temporary.push(short.clone());
    Ok(short.join("nbd.sock"))
}

impl Plan {
    fn load_or_create(dir: &Path, arguments: &DemoArgs) -> Done<(Self, Option<Reservation>)> {
        let path = dir.join("demo.json");
        let device = match &arguments.device {
            Some(device) => {
                Some(std::path::absolute(device).map_err(|error| Failure::file("find", device, &error))?)
            }
            None => None,
        };
        let (plan, reservation) = match fs::read(&path) {
            Ok(text) => {
                let plan = Self::parse(&path, &text)?;
                let reservation = plan.ports.reserve();
                (plan, reservation)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let pool = device.clone().unwrap_or_else(|| dir.join("pool.img"));
                let (ports, reservation) = Ports::take()?;
                let plan = Self { version: PLAN_VERSION, node: NodeId(random_id()?), pool, ports };
                let text = serde_json::to_string_pretty(&plan)
                    .map_err(|error| Failure::local(format!("the plan cannot be written: {error}"), ""))?;
                PrivateFile::create(&path, text.as_bytes())?;
                (plan, Some(reservation))
            }
            Err(error) => return Err(Failure::file("read", &path, &error)),
        };
        match device {
            Some(device) if device != plan.pool => Err(Failure::usage(
                format!("this demonstration's pool is on {}", plan.pool.display()),
                "leave --device out, or give another directory with --dir",
            )),
            _ => Ok((plan, reservation)),
        }
    }

    fn parse(path: &Path, text: &[u8]) -> Done<Self> {
        match serde_json::from_slice::<Self>(text) {
            Ok(plan) if plan.version == PLAN_VERSION => Ok(plan),
            _ => Err(Failure::local(
                format!("{} is not from this version of the demonstration", path.display()),
                "give a new directory with --dir",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(dir: &Path) -> DemoArgs {
        DemoArgs {
            dir: Some(dir.to_owned()),
            volume_size: None,
            device: None,
            nbd_plain: false,
            s3_plain: false,
            s3_day_s: 24 * 3600,
            s3_signature_v2: false,
        }
    }

    #[test]
    fn the_same_directory_gives_the_same_installation() {
        let dir = tempfile::tempdir().unwrap();
        let first = Site::open(&arguments(dir.path())).unwrap();
        let (node, ports) = (first.node, first.ports);
        drop(first);
        let second = Site::open(&arguments(dir.path())).unwrap();
        assert_eq!((second.node, second.ports), (node, ports));
        assert!(!second.is_temporary());
    }

    #[test]
    fn a_directory_in_use_or_with_other_things_in_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = Site::open(&arguments(dir.path())).unwrap();
        let second = Site::open(&arguments(dir.path())).err().unwrap();
        assert!(second.to_string().contains("another demonstration"), "{second}");
        drop(first);
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("thesis.txt"), "precious").unwrap();
        let refused = Site::open(&arguments(other.path())).err().unwrap();
        assert!(refused.to_string().contains("neither empty"), "{refused}");
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_device_and_an_unusable_size_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Site::open(&arguments(dir.path())).unwrap());
        let other = DemoArgs { device: Some("/dev/sdx".into()), ..arguments(dir.path()) };
        assert!(Site::open(&other).err().unwrap().to_string().contains("--device"));
        for bytes in [0, 4097] {
            let odd = DemoArgs { volume_size: Some(ByteLen(bytes)), ..arguments(dir.path()) };
            assert!(Site::open(&odd).err().unwrap().to_string().contains("4096"));
        }
    }

    #[test]
    fn a_directory_too_deep_for_a_socket_gets_one_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(110));
        let site = Site::open(&arguments(&deep)).unwrap();
        assert!(site.nbd_socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX);
        let elsewhere = site.nbd_socket.parent().unwrap().to_owned();
        assert!(elsewhere.is_dir());
        site.close();
        assert!(!elsewhere.exists() && deep.is_dir());
    }
}
