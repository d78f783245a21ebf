//! The command line's grammar, with help that teaches.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use identity::{Endpoint, PeerName, Role, TrustDomain};
use units::{ByteLen, NodeId, PoolId, VolumeId};

const EXAMPLES: &str = "\
Start here:
  nightlatch demo                     see a node being unlocked, serving, losing power and forgetting
  nightlatch status                   what the keyholder and the nodes are doing
  nightlatch push --all               give every node its keys again
  nightlatch lockdown                 take every key away from every node, now

Connection settings come from a profile (TOML): --profile, NIGHTLATCH_PROFILE, or ~/.config/nightlatch/profile.toml.

Exit status: 0 done; 1 failed on this machine; 2 wrong command line; 3 unreachable or no answer in time;
4 refused by the other side; 5 a certificate is not accepted; 6 sealed: a key is needed that is not there.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "nightlatch",
    version,
    about = "One command line for Nightlatch storage nodes and keyholders",
    long_about = "One command line for Nightlatch: storage nodes that serve encrypted volumes and objects while the \
                  compute tier lends them keys, and forget the keys when power, lease or trust is lost.",
    after_help = EXAMPLES,
    arg_required_else_help = true
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Profile file, or the directory that holds profile.toml
    #[arg(long, global = true, value_name = "PATH", env = "NIGHTLATCH_PROFILE")]
    pub(crate) profile: Option<PathBuf>,
    /// Use the certificate of this role instead of the first that may do it
    #[arg(id = "as", long = "as", global = true, value_name = "ROLE", value_parser = role)]
    pub(crate) role: Option<Role>,
    /// Print one JSON document
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

fn role(text: &str) -> Result<Role, identity::InvalidName> {
    text.parse()
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show all of it on this machine: unlock, serve, lose power, forget, unlock again
    #[command(
        after_help = "Examples:\n  nightlatch demo\n  nightlatch demo --dir ./trial --json    for scripts: one JSON object when ready, until SIGTERM\n  nightlatch demo --device /dev/sdx       on a real disk, whose content is lost"
    )]
    Demo(DemoArgs),
    /// Make a certificate authority and certificates, for those who have none
    #[command(subcommand)]
    Pki(Pki),
    /// Officers' keys, the ceremony, unsealing the keyholder, ledger backups
    #[command(subcommand)]
    Key(Key),
    /// Prepare and enrol storage nodes; see and wipe one
    #[command(subcommand)]
    Node(NodeCommand),
    /// Make, check and grow pools on disks and files
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Volumes: encrypted disks, and the store that holds buckets
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Snapshots of volumes; taking and deleting them needs no key
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Buckets of a node's object store
    #[command(subcommand)]
    Bucket(BucketCommand),
    /// Users of a node's object store and their access keys
    #[command(subcommand)]
    User(UserCommand),
    /// What the keyholder and the nodes are doing, and what to do about it
    Status,
    /// Give keys to nodes
    #[command(after_help = "Examples:\n  nightlatch push --all\n  nightlatch push --node node-1")]
    Push(TargetArgs),
    /// Take keys away and keep them away until unlatched
    #[command(after_help = "Examples:\n  nightlatch revoke --volume db\n  nightlatch revoke --node node-1")]
    Revoke(TargetArgs),
    /// Take every key away from every node, now, and keep them away until unlatched
    Lockdown,
    /// Let keys be pushed again after a revoke, a lockdown, a wipe or an intrusion (security officer)
    #[command(
        after_help = "Examples:\n  nightlatch unlatch --all\n  nightlatch unlatch --volume db && nightlatch push --volume db"
    )]
    Unlatch(TargetArgs),
    /// Say what this machine has and lacks for keeping keys, why it matters and how to mend it
    #[command(
        after_help = "Examples:\n  nightlatch doctor\n  nightlatch doctor --config /etc/nightlatch/node.toml    as the node's user: its files and devices too\n  nightlatch doctor --json | jq -r '.findings[] | select(.verdict == \"broken\") | .mend'\n\nExit status: 0 all good; 1 something could be better or cannot be told; 2 a requirement is broken (or a wrong command\nline); 3 no report could be made. The node sends the same report to its keyholder as evidence."
    )]
    Doctor(DoctorArgs),
    /// Print shell completions
    #[command(after_help = "Example:\n  nightlatch completions bash > /etc/bash_completion.d/nightlatch")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one page a command into a directory
    #[command(
        after_help = "Examples:\n  nightlatch man | man -l -\n  nightlatch man /usr/local/share/man/man1"
    )]
    Man {
        /// Directory for the pages
        dir: Option<PathBuf>,
    },
    /// Run a program that ends when the one that started it ends
    #[command(hide = true)]
    RunAttached {
        /// Process id of the one that started it
        #[arg(long)]
        parent: i32,
        /// Program and arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<std::ffi::OsString>,
    },
}

/// `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// A node's configuration: its files, pools and sources are looked at too
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Where everything is kept, for the next time too; without it a temporary directory, removed at the end
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Size of the volume `demo`: 1G at first, later as it is; a larger one makes it grow
    #[arg(long, value_name = "SIZE")]
    pub(crate) volume_size: Option<ByteLen>,
    /// Use this disk or file for the pool instead of a file in the directory
    #[arg(long, value_name = "PATH")]
    pub(crate) device: Option<PathBuf>,
    /// Serve NBD over TCP without TLS (loopback only)
    #[arg(long)]
    pub(crate) nbd_plain: bool,
    /// Serve S3 without TLS (loopback only)
    #[arg(long)]
    pub(crate) s3_plain: bool,
    /// How long a day of S3 lifecycles takes, for tests of them
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 3600)]
    pub(crate) s3_day_s: u64,
    /// Take S3 signatures of version 2 in headers, for old clients
    #[arg(long)]
    pub(crate) s3_signature_v2: bool,
}

/// `pki`.
#[derive(Debug, Subcommand)]
pub(crate) enum Pki {
    /// Make a root, an issuer for each class of certificate, and a profile
    #[command(
        after_help = "Example:\n  nightlatch pki init ./pki --trust-domain storage.example.com\n\nMove root/ca.key offline afterwards: it is needed only to make new issuers."
    )]
    Init {
        /// Directory for all of it
        dir: PathBuf,
        /// Your organisation's name in every certificate
        #[arg(long, value_name = "NAME")]
        trust_domain: TrustDomain,
        /// Name in the first operator's certificate
        #[arg(long, value_name = "NAME", default_value = "operator")]
        operator: PeerName,
        /// Name in the first security officer's certificate
        #[arg(long, value_name = "NAME", default_value = "officer")]
        security_officer: PeerName,
        /// Address of the keyholder's administrative port, for the profile
        #[arg(long, value_name = "URL")]
        keyholder: Option<Endpoint>,
    },
    /// Issue a certificate and its key
    #[command(
        after_help = "Examples:\n  nightlatch pki issue node node-1 --pki ./pki\n  nightlatch pki issue server node-1 --host node-1.example.com --host 192.0.2.7 --pki ./pki\n  nightlatch pki issue nbd-client web-3 --days 90 --pki ./pki"
    )]
    Issue {
        /// What the holder is
        role: IssueRole,
        /// Name of the holder
        name: PeerName,
        /// The authority's directory
        #[arg(long, value_name = "DIR", default_value = "pki")]
        pki: PathBuf,
        /// DNS name or address of a server; give it once for each
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        /// Days until it expires
        #[arg(long, default_value_t = identity::pki::LEAF_DAYS_DEFAULT)]
        days: u32,
    },
}

/// What `pki issue` issues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IssueRole {
    /// Runs the system day to day
    Operator,
    /// Holds a share of the root; lifts latches
    SecurityOfficer,
    /// Reads, changes nothing
    Auditor,
    /// A monitoring system
    Monitor,
    /// The keyholder
    Keyholder,
    /// A storage node
    Node,
    /// A machine that mounts volumes over NBD
    NbdClient,
    /// Host certificates of a node's NBD and S3 heads
    Server,
}

impl IssueRole {
    /// The role in the certificate; none for host certificates.
    pub(crate) fn role(self) -> Option<Role> {
        Some(match self {
            Self::Operator => Role::Operator,
            Self::SecurityOfficer => Role::SecurityOfficer,
            Self::Auditor => Role::Auditor,
            Self::Monitor => Role::Monitor,
            Self::Keyholder => Role::Keyholder,
            Self::Node => Role::Node,
            Self::NbdClient => Role::NbdClient,
            Self::Server => return None,
        })
    }
}

/// `key`.
#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make an officer's key: a secret file for the officer, and a public one for the ceremony
    #[command(
        after_help = "Example, on the officer's own machine:\n  nightlatch key officer anna\n\nIt writes anna.officer-key, which stays with the officer, and anna.officer, which goes to the ceremony."
    )]
    Officer {
        /// The officer's name
        name: PeerName,
        /// Directory for the two files
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
    /// Make a new root secret in the keyholder and share it among officers
    #[command(
        after_help = "Example: any two of three officers can unseal later\n  nightlatch key ceremony --threshold 2 anna.officer ben.officer clara.officer --out ./shares"
    )]
    Ceremony {
        /// Shares needed to unseal
        #[arg(long, value_name = "K")]
        threshold: u8,
        /// The officers' public files
        #[arg(required = true, value_name = "OFFICER")]
        officers: Vec<PathBuf>,
        /// Directory for the shares, one a file, each encrypted to its officer
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
    /// Submit a share to the keyholder; with enough of them it is unsealed
    #[command(
        after_help = "Example:\n  nightlatch key unseal --share anna.share --officer-key anna.officer-key"
    )]
    Unseal {
        /// The officer's share
        #[arg(long, value_name = "FILE")]
        share: PathBuf,
        /// The officer's secret key file
        #[arg(long, value_name = "FILE")]
        officer_key: PathBuf,
    },
    /// Whether the keyholder has its root, and which shares it needs
    Status,
    /// Save the ledger: encrypted, useless without the shares, needed to open volumes after a loss
    Backup {
        /// The file to write
        file: PathBuf,
    },
    /// Put a saved ledger into an empty keyholder
    Restore {
        /// The file that `key backup` wrote
        file: PathBuf,
    },
    /// Prove that shares, a ledger backup and copies of a node's disks give the data back
    #[command(
        after_help = "Example, on a machine with all three programs and no network to the real ones:\n  nightlatch key drill --backup ledger.backup --disk ./copy-of-disk.img \\\n    --share anna.share --officer-key anna.officer-key --share ben.share --officer-key ben.officer-key\n\nIt starts a keyholder and a node on loopback, opens every volume of the copied disks and reads all of it. The copies are\nwritten to; throw them away afterwards. The outcome goes to the keyholder of the profile, whose status shows its date."
    )]
    Drill(KeyDrill),
}

/// `key drill`.
#[derive(Debug, Args)]
pub(crate) struct KeyDrill {
    /// The file that `key backup` wrote
    #[arg(long, value_name = "FILE")]
    pub(crate) backup: PathBuf,
    /// A copy of a disk or pool file of the node; give it once for each
    #[arg(long = "disk", value_name = "PATH", required = true)]
    pub(crate) disks: Vec<PathBuf>,
    /// An officer's share; give as many as it takes
    #[arg(long = "share", value_name = "FILE", required = true)]
    pub(crate) shares: Vec<PathBuf>,
    /// The secret key file of an officer whose share is given
    #[arg(long = "officer-key", value_name = "FILE", required = true)]
    pub(crate) officer_keys: Vec<PathBuf>,
    /// The node whose disks were copied; not needed where only one has volumes
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Read the first 64 MiB of each volume and bucket instead of everything
    #[arg(long)]
    pub(crate) quick: bool,
    /// Do not tell the profile's keyholder
    #[arg(long)]
    pub(crate) no_report: bool,
    /// Do not ask whether the disks are copies
    #[arg(long)]
    pub(crate) yes: bool,
}

/// `node`.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Make a node's identity key and configuration
    #[command(
        after_help = "Example, on the node, with certificates from `pki issue node` and `pki issue server`:\n  nightlatch node init --name node-1 --pki ./pki --pool /dev/disk/by-id/nvme-1 --listen 192.0.2.7\n\nThen start `nightlatchd --config node.toml`, and enrol it with the values that this command prints."
    )]
    Init(NodeInit),
    /// Tell the keyholder about a node
    #[command(
        after_help = "Examples:\n  nightlatch node add node-1 --id ID --key-address 192.0.2.7:7410 --admin-address 192.0.2.7:7411\n  nightlatch node approve node-1 --fingerprint 0123456789abcdef\n\nWith --identity-key the node is approved at once."
    )]
    Add(NodeAdd),
    /// List the nodes
    List,
    /// Pin a node's identity key, after comparing its fingerprint with what the node's own console shows
    Approve {
        /// The node
        name: PeerName,
        /// The fingerprint, 16 hexadecimal digits
        #[arg(long)]
        fingerprint: String,
    },
    /// Change where a node is dialled, when keys are pushed to it, or how long its leases are
    #[command(
        after_help = "Examples:\n  nightlatch node change node-1 --key-address 192.0.2.9:7410 --admin-address 192.0.2.9:7411\n  nightlatch node change node-1 --push auto      security officer\n  nightlatch node change node-1 --lease-ms 60000\n\nThe node that answers at a new address must still have the pinned identity key."
    )]
    Change(NodeChange),
    /// Remove a node that holds no volumes
    Remove {
        /// The node
        name: PeerName,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Ask a node for everything about itself
    Status {
        /// The node; not needed where the profile has only one
        name: Option<PeerName>,
    },
    /// Make a node forget every key, now, until a security officer unlatches it
    Wipe {
        /// The node; not needed where the profile has only one
        name: Option<PeerName>,
    },
}

/// `node init`.
#[derive(Debug, Args)]
pub(crate) struct NodeInit {
    /// Directory for node.toml and the node's state
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// The node's name, as in its certificate
    #[arg(long)]
    pub(crate) name: PeerName,
    /// The authority's directory, with certificates for this node and its heads
    #[arg(long, value_name = "DIR", default_value = "pki")]
    pub(crate) pki: PathBuf,
    /// A disk or file that holds a pool; give it once for each
    #[arg(long = "pool", value_name = "PATH", required = true)]
    pub(crate) pools: Vec<PathBuf>,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "::")]
    pub(crate) listen: std::net::IpAddr,
    /// The keyholder's grant-signing key (64 hexadecimal digits, from `nightlatch key status`); it can be written to
    /// state/keyholder.pub later as well
    #[arg(long, value_name = "HEX")]
    pub(crate) keyholder_key: Option<String>,
}

/// `node add`.
#[derive(Debug, Args)]
pub(crate) struct NodeAdd {
    /// The node's name, as in its certificate
    pub(crate) name: PeerName,
    /// Its id, as `node init` printed it
    #[arg(long)]
    pub(crate) id: NodeId,
    /// Where the keyholder dials it
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) key_address: Endpoint,
    /// Its administrative port
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) admin_address: Endpoint,
    /// Its identity key as `node init` printed it: approves it at once (security officer)
    #[arg(long, value_name = "HEX")]
    pub(crate) identity_key: Option<String>,
    /// Push keys whenever it is there, without a person's approval each time
    #[arg(long)]
    pub(crate) auto_push: bool,
    /// Length of its leases in milliseconds
    #[arg(long, value_name = "MS")]
    pub(crate) lease_ms: Option<u64>,
}

/// What `node change` changes.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct NodeChangeWhat {
    /// Where the keyholder dials it
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) key_address: Option<Endpoint>,
    /// Its administrative port
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) admin_address: Option<Endpoint>,
    /// When keys are pushed to it
    #[arg(long, value_enum)]
    pub(crate) push: Option<PushArg>,
    /// Length of its leases in milliseconds, from the next grant or renewal on
    #[arg(long, value_name = "MS")]
    pub(crate) lease_ms: Option<u64>,
}

/// `node change`.
#[derive(Debug, Args)]
pub(crate) struct NodeChange {
    /// The node
    pub(crate) name: PeerName,
    #[command(flatten)]
    pub(crate) what: NodeChangeWhat,
}

/// When keys are pushed to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PushArg {
    /// A person approves each push
    Approve,
    /// Whenever the node is there, unless something is latched
    Auto,
}

/// `pool`.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Make a pool on a disk or in a new file
    #[command(
        after_help = "Examples:\n  nightlatch pool create /dev/disk/by-id/nvme-1\n  nightlatch pool create ./pool.img --size 64G"
    )]
    Create {
        /// The disk, partition or file
        path: PathBuf,
        /// Make a sparse file of this size
        #[arg(long)]
        size: Option<ByteLen>,
        /// Unit of allocation
        #[arg(long, default_value = "1M")]
        extent: ByteLen,
        /// Destroy what the device holds
        #[arg(long)]
        force: bool,
    },
    /// Read all of a pool's metadata and say what is wrong with it; writes nothing
    #[command(
        after_help = "Every sector's content is compared by `nightlatch pool scrub`.\nExamples:\n  nightlatch pool check /dev/disk/by-id/nvme-1    no node is using it\n  nightlatch pool check --pool 5b0cf6a1f9c04ab29a6f37f2f0a0c7de    while its node serves"
    )]
    Check {
        /// The disk, partition or file, with the node stopped
        #[arg(required_unless_present = "pool")]
        path: Option<PathBuf>,
        /// The id of a pool of a running node
        #[arg(long, conflicts_with = "path")]
        pool: Option<PoolId>,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Mend what of a pool's metadata can be mended without a guess; refuses where something cannot
    #[command(
        after_help = "Mended are a damaged copy of the superblock, from the other, and a shrinking that a power cut interrupted. Anything else that is wrong has no second copy here: it is listed, nothing is written, and the replica or a backup has to give the data back."
    )]
    Repair {
        /// The disk, partition or file, with the node stopped
        path: PathBuf,
    },
    /// List the pools of a node
    List(NodeArg),
    /// Read everything in a pool of a running node and compare it with what was written
    #[command(
        after_help = "Without an action it shows how far scrubbing is. It needs no key; what keys are held verify is verified as well.\nExamples:\n  nightlatch pool scrub 5b0cf6a1f9c04ab29a6f37f2f0a0c7de --start --wait\n  nightlatch pool scrub 5b0cf6a1f9c04ab29a6f37f2f0a0c7de --stop"
    )]
    Scrub {
        /// The pool's id
        pool: PoolId,
        /// Begin now, or go on where it stopped
        #[arg(long, group = "action")]
        start: bool,
        /// Stop where it is, until started again
        #[arg(long, group = "action")]
        stop: bool,
        /// Begin at the beginning
        #[arg(long, group = "action")]
        restart: bool,
        /// Show the progress until the pass ends; fails where it found damage
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Use what a pool's disk has become longer by: online through its node, or on a disk no node is using
    #[command(
        after_help = "Examples:\n  nightlatch pool grow 5b0cf6a1f9c04ab29a6f37f2f0a0c7de    the node goes on serving\n  nightlatch pool grow --device ./pool.img"
    )]
    Grow {
        /// The pool's id
        #[arg(required_unless_present = "device")]
        pool: Option<PoolId>,
        /// The disk or file, with the node stopped
        #[arg(long, value_name = "PATH", conflicts_with = "pool")]
        device: Option<PathBuf>,
        #[command(flatten)]
        node: NodeArg,
    },
}

/// Which node.
#[derive(Debug, Args)]
pub(crate) struct NodeArg {
    /// The node; not needed where the profile has only one
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
}

/// `volume`.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Make a volume, with a key of its own, and push the key
    #[command(
        after_help = "Examples:\n  nightlatch volume create db --node node-1 --size 100G\n  nightlatch volume create photos --node node-1 --kind objects --size 64T"
    )]
    Create {
        /// The name its clients use
        label: String,
        #[command(flatten)]
        node: NodeArg,
        /// The pool of that node; the one with most free space where not given
        #[arg(long, value_name = "ID")]
        pool: Option<PoolId>,
        /// Logical size; space is taken only as it is written
        #[arg(long)]
        size: ByteLen,
        /// A disk over NBD, or the node's store of buckets
        #[arg(long, default_value = "block")]
        kind: KindArg,
        /// What clients see when the key goes: requests held for a reconnect, or errors
        #[arg(long, default_value = "hold")]
        on_seal: OnSealArg,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// List the volumes
    List,
    /// Make a volume that begins as a snapshot is: in the key domain of the snapshot's volume, and erased with it
    #[command(after_help = "Example:\n  nightlatch volume clone 5b0cf6a1f9c04ab29a6f37f2f0a0c7de db-test")]
    Clone {
        /// The snapshot's id; `nightlatch snapshot list` shows those there are
        snapshot: VolumeId,
        /// The name the clone's clients use
        label: String,
        #[command(flatten)]
        node: NodeArg,
        /// What clients see when the key goes: requests held for a reconnect, or errors
        #[arg(long, default_value = "hold")]
        on_seal: OnSealArg,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Make a volume what one of its snapshots shows. Its key must have been revoked: clients believe what they have read
    Rollback {
        /// The volume
        label: String,
        /// The snapshot's id
        snapshot: VolumeId,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Make the replica of a volume on another node the volume, when the node that has it is gone or given up
    #[command(
        after_help = "It holds what its newest snapshot shows; what was written to the volume since is on the node it was on, and not here. The key goes to the new node once the lease of the one before is over.\nExample:\n  nightlatch volume promote db --node node-2"
    )]
    Promote {
        /// The volume
        label: String,
        /// The node that has the replica
        #[arg(long, value_name = "NAME")]
        node: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Set how much space a volume may have and how much is kept for it, its snapshots counted with it; what is not
    /// given is no limit
    Limit {
        /// The volume
        label: String,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Change a volume's size
    Resize {
        /// The volume
        label: String,
        /// New logical size
        size: ByteLen,
        /// Allow a smaller size: what lies past it is gone
        #[arg(long)]
        allow_shrink: bool,
    },
    /// Erase a volume: its key first, then its space
    Delete {
        /// The volume
        label: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// How much space, and how fast.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct LimitArgs {
    /// Most space that it and its snapshots may take
    #[arg(long, value_name = "SIZE")]
    pub(crate) quota: Option<ByteLen>,
    /// Space that is kept for it, whatever other volumes write
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub(crate) reserve: ByteLen,
    /// Most requests a second, of all its clients together
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) iops: Option<u32>,
    /// Most bytes a second
    #[arg(long, value_name = "SIZE")]
    pub(crate) bandwidth: Option<ByteLen>,
}

/// `snapshot`.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Take a snapshot of a volume as it is, sealed or not
    #[command(
        after_help = "Examples:\n  nightlatch snapshot create db\n  nightlatch snapshot create 5b0cf6a1f9c04ab29a6f37f2f0a0c7de --node node-1    by its id, without the keyholder"
    )]
    Create {
        /// The volume, by its name or its id
        volume: String,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Send a snapshot to another node, or to a file: ciphertext, which needs no key on either side
    #[command(
        after_help = "The other node keeps it as a replica, which nobody writes and no key is given to until it is promoted (`nightlatch volume promote`). Only what differs from its newest snapshot travels, where both have that. What breaks off goes on where it was when the same is said again.\nExamples:\n  nightlatch snapshot send 5b0cf6a1f9c04ab29a6f37f2f0a0c7de --node node-1 --to-node node-2\n  nightlatch snapshot send 5b0cf6a1f9c04ab29a6f37f2f0a0c7de --since 0d9e… --output tuesday.snapshot"
    )]
    Send {
        /// The snapshot's id
        snapshot: VolumeId,
        #[command(flatten)]
        node: NodeArg,
        /// An older snapshot, of which only the difference is sent
        #[arg(long, value_name = "SNAPSHOT")]
        since: Option<VolumeId>,
        /// The node that receives it
        #[arg(long, value_name = "NAME", required_unless_present = "output")]
        to_node: Option<String>,
        /// The pool for a new replica; by default the one with most free space
        #[arg(long, requires = "to_node")]
        pool: Option<PoolId>,
        /// A new file to write it to
        #[arg(long, value_name = "FILE", conflicts_with = "to_node")]
        output: Option<PathBuf>,
    },
    /// Give a snapshot from a file to a node, which keeps it as a replica
    Receive {
        /// A file that `nightlatch snapshot send --output` wrote
        file: PathBuf,
        #[command(flatten)]
        node: NodeArg,
        /// The pool for a new replica; by default the one with most free space
        #[arg(long)]
        pool: Option<PoolId>,
    },
    /// List the snapshots of a node
    List(NodeArg),
    /// Delete a snapshot and free what only it showed
    Delete {
        /// The snapshot's id
        snapshot: VolumeId,
        #[command(flatten)]
        node: NodeArg,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// What a volume is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KindArg {
    /// A disk over NBD
    Block,
    /// The node's store of buckets
    Objects,
}

/// What clients see when the key goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnSealArg {
    /// Requests in flight stay unanswered; reconnecting clients resend them
    Hold,
    /// Requests in flight fail
    Fail,
}

/// `bucket`.
#[derive(Debug, Subcommand)]
pub(crate) enum BucketCommand {
    /// Make a bucket
    Create {
        /// Its name
        name: String,
        #[command(flatten)]
        node: NodeArg,
    },
    /// List the buckets
    List(NodeArg),
    /// Remove an empty bucket
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        node: NodeArg,
    },
}

/// `user`.
#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Make a user with an access key, or a further key of a user; the secret is shown once
    Create {
        /// The user's name
        name: String,
        #[command(flatten)]
        node: NodeArg,
    },
    /// List the users and their access keys
    List(NodeArg),
    /// Remove a user with all its access keys, or one access key
    #[command(
        after_help = "Examples:\n  nightlatch user delete backup\n  nightlatch user delete --access-key NLAK7Q2M5X"
    )]
    Delete {
        /// The user's name
        #[arg(required_unless_present = "access_key")]
        name: Option<String>,
        /// Only this access key
        #[arg(long, value_name = "KEY", conflicts_with = "name")]
        access_key: Option<String>,
        #[command(flatten)]
        node: NodeArg,
    },
}

/// What an act is about.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct TargetArgs {
    /// This volume
    #[arg(long, value_name = "LABEL")]
    pub(crate) volume: Option<String>,
    /// This node and all its volumes
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Everything
    #[arg(long)]
    pub(crate) all: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn no_command_gives_a_global_option_another_meaning() {
        fn check(command: &clap::Command, globals: &[String]) {
            for argument in command.get_arguments() {
                let id = argument.get_id().as_str();
                assert!(!globals.iter().any(|global| global == id), "{} {id}", command.get_name());
            }
            command.get_subcommands().for_each(|inner| check(inner, globals));
        }
        let command = Arguments::command();
        let globals: Vec<_> = command.get_arguments().map(|argument| argument.get_id().to_string()).collect();
        command.get_subcommands().for_each(|inner| check(inner, &globals));
    }

    #[test]
    fn every_command_says_what_it_does() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no help");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path} {} has no help", argument.get_id());
            }
            for inner in command.get_subcommands() {
                check(inner, &path);
            }
        }
        check(&Arguments::command(), "");
    }

    #[test]
    fn every_command_in_the_documents_is_one() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut checked = 0;
        for document in ["README.md", "docs/operating.md"] {
            let text = std::fs::read_to_string(root.join(document)).unwrap().replace("\\\n", " ");
            let mut in_code = false;
            for line in text.lines() {
                if line.starts_with("```") {
                    in_code = line == "```sh";
                }
                let command = line.split('#').next().unwrap_or_default().trim();
                if in_code && command.starts_with("nightlatch ") {
                    // Placeholders that stand for a value of a certain form.
                    let command = command
                        .replace("HEX", &"ab".repeat(32))
                        .replace("--id ID", &format!("--id {}", "ab".repeat(16)));
                    let parsed = Arguments::try_parse_from(command.split_whitespace());
                    assert!(parsed.is_ok(), "{document}: {line}\n{}", parsed.unwrap_err());
                    checked += 1;
                }
            }
        }
        assert!(checked >= 15, "{checked}");
    }
}
