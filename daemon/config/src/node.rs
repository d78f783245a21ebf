//! `node.toml`: the configuration of `nightlatchd`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use hygiene::Installation;
use identity::PeerName;
use serde::{Deserialize, Serialize};
use units::NodeId;

use crate::error::{ConfigError, Invalid};
use crate::health::HealthConfig;
use crate::keyholder::{LEASE_MS, lease_ms_max_default};
use crate::peers::{self, PeerConfig, ReplicationConfig};
use crate::s3_webhook::{self, S3WebhookConfig};
use crate::sources::{SourcesConfig, WatchdogConfig};
use crate::tls::{NodeTls, resolve};
use crate::{Validate, load, parse};

/// Most pools of a node: one a disk, and the largest storage boxes hold about a hundred disks.
const POOLS_MAX: usize = 128;

/// Longest drain at a planned stop: init systems kill after a few minutes.
const DRAIN_S: RangeInclusive<u64> = 0..=300;

/// Longest path of a unix socket (`sun_path` of unix(7) less its terminating zero).
const UNIX_PATH_BYTES_MAX: usize = 107;

/// How often access logs are delivered.
const ACCESS_LOG_S: RangeInclusive<u64> = 1..=3600;

/// Where the kernel shows the variable (TCG Platform Reset Attack Mitigation Specification).
const MEMORY_OVERWRITE: &str =
    "/sys/firmware/efi/efivars/MemoryOverwriteRequestControl-e20939be-32d4-41be-a150-897f85d49829";

/// What the node needs to know before it starts. It knows no keyholder's address: keyholders dial it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's identifier, fixed at enrolment (32 hexadecimal digits).
    pub node_id: NodeId,
    /// The node's name, as in its certificate.
    pub name: PeerName,
    /// Where the node keeps its few files; made with mode 0700 where missing. No key of a volume is among them.
    pub state_dir: PathBuf,
    /// Longest lease the node takes, in milliseconds, whatever a keyholder grants.
    #[serde(default = "lease_ms_max_default")]
    pub lease_ms_max: u64,
    /// At SIGTERM, how many seconds clients get to finish before the keys are wiped.
    #[serde(default = "drain_s_default")]
    pub drain_s: u64,
    /// Take keys into mlocked memory where the kernel has no memfd_secret. Such memory is readable by root and not
    /// wiped when the process is killed.
    #[serde(default)]
    pub allow_mlock: bool,
    /// Where to listen.
    pub listen: NodeListen,
    /// Certificates.
    pub tls: NodeTls,
    /// Key files.
    #[serde(default)]
    pub keys: NodeKeys,
    /// The devices that hold pools.
    pub pools: Vec<PoolConfig>,
    /// Scrubbing in the background.
    #[serde(default)]
    pub scrub: ScrubConfig,
    /// How fast volumes are sealed anew after their keys were rotated.
    #[serde(default)]
    pub rekey: RekeyConfig,
    /// The S3 head, beside where it listens.
    #[serde(default)]
    pub s3: S3Config,
    /// Where the node hears that power, trust or the machine is going.
    #[serde(default, skip_serializing_if = "SourcesConfig::is_empty")]
    pub sources: SourcesConfig,
    /// A hardware watchdog to feed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogConfig>,
    /// How the machine's parts are watched.
    #[serde(default, skip_serializing_if = "HealthConfig::is_default")]
    pub health: HealthConfig,
    /// The machine's TPM, which says to keyholders what was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm: Option<TpmConfig>,
    /// Other nodes, that volumes are replicated to and from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerConfig>,
    /// What replication may use.
    #[serde(default)]
    pub replication: ReplicationConfig,
    /// The firmware's variable that asks for memory to be cleared after a sudden reset.
    #[serde(default = "memory_overwrite_default")]
    pub memory_overwrite: PathBuf,
}

/// The `[tpm]` table. A node without one is attested by nobody but itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TpmConfig {
    /// The kernel's device, or the socket of a software TPM.
    #[serde(default = "tpm_device_default")]
    pub device: PathBuf,
    /// Where the kernel shows what the firmware measured.
    #[serde(default = "event_log_default")]
    pub event_log: PathBuf,
}

/// The `[listen]` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeListen {
    /// The key port, which keyholders dial (mutual TLS).
    pub key: SocketAddr,
    /// The administration port (JSON over mutual TLS).
    pub admin: SocketAddr,
    /// Health and metrics in clear.
    pub metrics: SocketAddr,
    /// The port for other nodes that replicate their volumes here (mutual TLS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<SocketAddr>,
    /// The NBD head over TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd: Option<SocketAddr>,
    /// The NBD head on a unix socket, without TLS; file permissions decide who connects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd_unix: Option<PathBuf>,
    /// The S3 head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<SocketAddr>,
    /// The S3 region that clients must name.
    #[serde(default = "s3_region_default")]
    pub s3_region: String,
    /// Serve NBD over TCP without TLS; loopback addresses only.
    #[serde(default)]
    pub nbd_plain: bool,
    /// Serve S3 without TLS; loopback addresses only.
    #[serde(default)]
    pub s3_plain: bool,
    /// Take S3 signatures of version 2 (headers, presigned URLs, forms), for old clients.
    #[serde(default)]
    pub s3_signature_v2: bool,
    /// How long a day of S3 lifecycles takes, in seconds: shorter than 24 hours for tests only.
    #[serde(default = "s3_day_s_default")]
    pub s3_day_s: u64,
}

/// The `[keys]` table; both files have a place in `state_dir` unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeKeys {
    /// The node's Ed25519 identity key (PKCS#8 PEM, mode 0600).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<PathBuf>,
    /// The keyholders' grant-signing public key (64 hexadecimal digits), pinned at enrolment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyholder: Option<PathBuf>,
}

/// The `[scrub]` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScrubConfig {
    /// Days from the end of one pass to the beginning of the next; 0 for passes that a person orders only.
    pub every_days: u32,
    /// How much of the time it reads, in percent: where reads take longer because clients read too, it reads less.
    pub share_percent: u32,
    /// Most MiB a second of each pool.
    pub mib_per_s: u32,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self { every_days: 30, share_percent: 25, mib_per_s: 200 }
    }
}

/// The `[rekey]` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RekeyConfig {
    /// How much of the time it works, in percent: where the device is busy with clients, it does less.
    pub share_percent: u32,
    /// Most MiB a second of each pool.
    pub mib_per_s: u32,
}

impl Default for RekeyConfig {
    fn default() -> Self {
        Self { share_percent: 25, mib_per_s: 100 }
    }
}

/// The `[s3]` table. Rates are requests a second; 0 is no limit, of connections as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Config {
    /// Domains under which buckets are host names too.
    pub domains: Vec<String>,
    /// Most requests with one access key.
    pub requests_per_key: u32,
    /// Most requests from one address.
    pub requests_per_address: u32,
    /// Most requests of one operation, by its name.
    pub requests_per_operation: BTreeMap<String, u32>,
    /// Most connections from one address at once.
    pub connections_per_address: usize,
    /// Seconds that a line of an access log waits for its delivery at most.
    pub access_log_s: u64,
    /// Where notifications may go.
    pub webhooks: Vec<S3WebhookConfig>,
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            domains: Vec::new(),
            requests_per_key: 0,
            requests_per_address: 0,
            requests_per_operation: BTreeMap::new(),
            connections_per_address: 0,
            access_log_s: 300,
            webhooks: Vec::new(),
        }
    }
}

impl S3Config {
    fn validate(&self) -> Result<(), Invalid> {
        if !ACCESS_LOG_S.contains(&self.access_log_s) {
            return Err(Invalid::new(
                "s3.access_log_s",
                format!("{} s is out of range", self.access_log_s),
                format!("give {} to {} s", ACCESS_LOG_S.start(), ACCESS_LOG_S.end()),
            ));
        }
        s3_webhook::validate(&self.webhooks)
    }
}

/// One `[[pools]]` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// The pool's file or block device; prefer names under /dev/disk/by-id, which stay when disks move.
    pub path: PathBuf,
}

fn drain_s_default() -> u64 {
    10
}

/// Where the kernel shows the firmware's memory-overwrite request.
pub fn memory_overwrite_default() -> PathBuf {
    MEMORY_OVERWRITE.into()
}

impl TpmConfig {
    /// With the machine's own firmware log.
    pub fn with_device(device: PathBuf) -> Self {
        Self { device, event_log: event_log_default() }
    }
}

fn tpm_device_default() -> PathBuf {
    "/dev/tpmrm0".into()
}

fn event_log_default() -> PathBuf {
    "/sys/kernel/security/tpm0/binary_bios_measurements".into()
}

fn s3_day_s_default() -> u64 {
    24 * 3600
}

fn s3_region_default() -> String {
    "us-east-1".to_owned()
}

impl NodeConfig {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        load(path)
    }

    /// Checks a text as if it stood in `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        parse(text, path, path.parent().unwrap_or(Path::new("")))
    }

    /// Where the node's identity key is.
    pub fn identity_key_file(&self) -> PathBuf {
        self.keys.identity.clone().unwrap_or_else(|| self.state_dir.join("identity.key"))
    }

    /// Where the pinned grant-signing public key is.
    pub fn keyholder_key_file(&self) -> PathBuf {
        self.keys.keyholder.clone().unwrap_or_else(|| self.state_dir.join("keyholder.pub"))
    }

    /// What the doctor looks at of this configuration.
    pub fn installation(&self) -> Installation {
        let passwords = self.sources.nut.iter().filter_map(|nut| nut.password_file.clone());
        let heads = self.tls.server.iter().map(|server| server.key.clone());
        Installation {
            state_dir: self.state_dir.clone(),
            key_files: [self.identity_key_file(), self.tls.key.clone()]
                .into_iter()
                .chain(heads)
                .chain(passwords)
                .chain(self.s3.webhooks.iter().map(|webhook| webhook.secret_file.clone()))
                .collect(),
            pools: self.pools.iter().map(|pool| pool.path.clone()).collect(),
            sources: self.sources.checks(),
        }
    }

    /// Where the node writes its bound addresses once it listens.
    pub fn ready_file(&self) -> PathBuf {
        self.state_dir.join("ready.json")
    }
}

impl Validate for NodeConfig {
    fn resolve(&mut self, dir: &Path) {
        resolve(&mut self.state_dir, dir);
        self.tls.resolve(dir);
        let optional = [&mut self.keys.identity, &mut self.keys.keyholder, &mut self.listen.nbd_unix];
        for path in optional.into_iter().flatten() {
            resolve(path, dir);
        }
        for pool in &mut self.pools {
            resolve(&mut pool.path, dir);
        }
        self.sources.resolve(dir);
        self.s3.webhooks.iter_mut().for_each(|webhook| webhook.resolve(dir));
        if let Some(tpm) = &mut self.tpm {
            resolve(&mut tpm.device, dir);
            resolve(&mut tpm.event_log, dir);
        }
        self.health.resolve(dir);
        resolve(&mut self.memory_overwrite, dir);
        self.watchdog.iter_mut().for_each(|watchdog| watchdog.resolve(dir));
    }

    fn validate(&self) -> Result<(), Invalid> {
        if !LEASE_MS.contains(&self.lease_ms_max) {
            return Err(Invalid::new(
                "lease_ms_max",
                format!("a longest lease of {} ms is out of range", self.lease_ms_max),
                format!("give {} to {} ms", LEASE_MS.start(), LEASE_MS.end()),
            ));
        }
        if !DRAIN_S.contains(&self.drain_s) {
            return Err(Invalid::new(
                "drain_s",
                format!("a drain of {} s is out of range", self.drain_s),
                format!("give {} to {} s", DRAIN_S.start(), DRAIN_S.end()),
            ));
        }
        self.validate_pools()?;
        self.scrub.validate()?;
        self.rekey.validate()?;
        self.listen.validate()?;
        self.s3.validate()?;
        peers::validate(&self.peers, &self.replication, self.name.as_str())?;
        self.sources.validate()?;
        self.health.validate()?;
        self.watchdog.iter().try_for_each(WatchdogConfig::validate)?;
        if self.needs_server_certificate() && self.tls.server.is_empty() {
            return Err(Invalid::new(
                "tls.server",
                "the NBD and S3 heads need a host certificate and none is named",
                "add [[tls.server]] tables with cert and key, for example from `nightlatch pki issue server`",
            ));
        }
        Ok(())
    }
}

impl NodeConfig {
    fn needs_server_certificate(&self) -> bool {
        (self.listen.nbd.is_some() && !self.listen.nbd_plain)
            || (self.listen.s3.is_some() && !self.listen.s3_plain)
    }

    fn validate_pools(&self) -> Result<(), Invalid> {
        if self.pools.is_empty() || self.pools.len() > POOLS_MAX {
            return Err(Invalid::new(
                "pools",
                format!("{} pools are named; a node has 1 to {POOLS_MAX}", self.pools.len()),
                "add a [[pools]] table with the path of a device that `nightlatch pool create` has prepared",
            ));
        }
        for (index, pool) in self.pools.iter().enumerate() {
            if self.pools[..index].contains(pool) {
                return Err(Invalid::new(
                    format!("pools[{index}].path"),
                    format!("{} is named twice", pool.path.display()),
                    "remove one of the two tables",
                ));
            }
        }
        Ok(())
    }
}

impl RekeyConfig {
    fn validate(&self) -> Result<(), Invalid> {
        within([
            ("rekey.share_percent", self.share_percent, 1..=100),
            ("rekey.mib_per_s", self.mib_per_s, 1..=1_000_000),
        ])
    }
}

impl ScrubConfig {
    fn validate(&self) -> Result<(), Invalid> {
        within([
            ("scrub.every_days", self.every_days, 0..=3650),
            ("scrub.share_percent", self.share_percent, 1..=100),
            ("scrub.mib_per_s", self.mib_per_s, 1..=1_000_000),
        ])
    }
}

/// Refuses the first number that is out of its range.
fn within<const COUNT: usize>(ranges: [(&str, u32, RangeInclusive<u32>); COUNT]) -> Result<(), Invalid> {
    match ranges.into_iter().find(|(_, given, range)| !range.contains(given)) {
        None => Ok(()),
        Some((key, given, range)) => Err(Invalid::new(
            key,
            format!("{given} is out of range"),
            format!("give {} to {}", range.start(), range.end()),
        )),
    }
}

impl NodeListen {
    fn validate(&self) -> Result<(), Invalid> {
        let plain = [("nbd", self.nbd, self.nbd_plain), ("s3", self.s3, self.s3_plain)];
        for (head, address, plain) in plain {
            if plain && address.is_some_and(|address| !address.ip().is_loopback()) {
                return Err(Invalid::new(
                    format!("listen.{head}_plain"),
                    format!("the {head} head may go without TLS on a loopback address only"),
                    format!("remove {head}_plain, or listen on 127.0.0.1 or [::1]"),
                ));
            }
        }
        if let Some(path) = &self.nbd_unix
            && path.as_os_str().len() > UNIX_PATH_BYTES_MAX
        {
            return Err(Invalid::new(
                "listen.nbd_unix",
                format!(
                    "the path {} is longer than the {UNIX_PATH_BYTES_MAX} bytes that a socket's may have",
                    path.display()
                ),
                "choose a shorter one, for example under /run/nightlatch",
            ));
        }
        if self.s3_region.is_empty() || !self.s3_region.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        {
            return Err(Invalid::new(
                "listen.s3_region",
                format!("`{}` is not a region name", self.s3_region),
                "use letters, digits and `-`; us-east-1 suits every client",
            ));
        }
        self.validate_ports()
    }

    /// Two listeners on one address and port: the second would fail with a message about a port in use, long after
    /// the first was up.
    fn validate_ports(&self) -> Result<(), Invalid> {
        let named = [
            ("key", Some(self.key)),
            ("admin", Some(self.admin)),
            ("metrics", Some(self.metrics)),
            ("peers", self.peers),
            ("nbd", self.nbd),
            ("s3", self.s3),
        ];
        let named: Vec<_> = named.into_iter().filter_map(|(name, address)| Some((name, address?))).collect();
        for (index, (name, address)) in named.iter().enumerate() {
            let clash = named[..index].iter().find(|(_, other)| {
                let same_place = other.ip() == address.ip()
                    || other.ip().is_unspecified()
                    || address.ip().is_unspecified();
                address.port() != 0 && other.port() == address.port() && same_place
            });
            if let Some((other, _)) = clash {
                return Err(Invalid::new(
                    format!("listen.{name}"),
                    format!("{address} is taken by listen.{other}"),
                    "give each listener a port of its own",
                ));
            }
        }
        Ok(())
    }
}
