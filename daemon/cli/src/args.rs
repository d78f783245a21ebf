//! The command line's grammar, with help that teaches.

mod compute;
mod mirror;
mod notification;
mod replication;
mod snapshot;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use identity::{Endpoint, PeerName, Role, TrustDomain};
use units::{ByteLen, NodeId, PoolId, VolumeId};

pub(crate) use self::compute::*;
pub(crate) use self::mirror::MirrorArgs;
pub(crate) use self::notification::NotificationCommand;
pub(crate) use self::replication::{PeerAdd, PeerCommand, ReplicationCommand};
pub(crate) use self::snapshot::*;

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
    /// Officers' keys, the ceremony, unsealing the keyholder, ledger backups; named keys for objects
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
    /// Other nodes, that volumes are replicated to and from
    #[command(subcommand)]
    Peer(PeerCommand),
    /// How far volumes are at other nodes
    #[command(subcommand)]
    Replication(ReplicationCommand),
    /// Buckets of a node's object store
    #[command(subcommand)]
    Bucket(BucketCommand),
    /// Users of a node's object store and their access keys
    #[command(subcommand)]
    User(UserCommand),
    /// Groups of users of a node's object store
    #[command(subcommand)]
    Group(GroupCommand),
    /// How much buckets, and all buckets of a user together, may hold
    #[command(subcommand)]
    Quota(QuotaCommand),
    /// Webhooks that notifications of buckets go to, and what they did not take
    #[command(subcommand)]
    Notification(NotificationCommand),
    /// Policies in the language of AWS that say what users and groups of an object store may do
    #[command(subcommand)]
    AccessPolicy(AccessPolicyCommand),
    /// Bring what is in a bucket of any S3 server into a bucket of another
    #[command(
        after_help = "Objects that the target has already, with the same length and the same entity tag or written since, are passed over, so that\na run that was interrupted goes on, within large objects too. Content type and the like, and the metadata of users, come along;\ntags, access control lists and older versions do not. Nothing is deleted.\n\nAccess keys: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the target, SOURCE_AWS_ACCESS_KEY_ID and\nSOURCE_AWS_SECRET_ACCESS_KEY for the source where that has another.\n\nExample:\n  nightlatch mirror s3://photos s3://photos --from https://s3.eu-central-1.amazonaws.com --from-region eu-central-1 \\\n    --to https://node-1.example.com:7480 --to-ca ca.pem"
    )]
    Mirror(MirrorArgs),
    /// Build, sign, verify, publish and write to a disk the appliance's image
    #[command(subcommand)]
    Image(crate::commands::image::ImageCommand),
    /// The trail of who did what: check it, search it, send it elsewhere, witness it
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Which node may hold which key, where, when and after what: check, compare and apply the file that says so
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Second factors of people
    #[command(subcommand)]
    People(PeopleCommand),
    /// Log in at the keyholder: with a code from your authenticator, read from standard input, or at an OpenID provider
    #[command(
        after_help = "Examples:\n  nightlatch login                              a certificate and a code\n  nightlatch --as storage-admin login --oidc    no certificate: in a browser, at the provider that the keyholder knows"
    )]
    Login(LoginArgs),
    /// End your logins at the keyholder
    Logout,
    /// Tokens for programs
    #[command(subcommand)]
    Token(TokenCommand),
    /// What takes more than one person: see, approve, refuse
    #[command(subcommand)]
    Approval(ApprovalCommand),
    /// What is still to be destroyed after volumes were erased, and certificates
    #[command(subcommand)]
    Erasure(ErasureCommand),
    /// Keyholders that share a root: see how they stand, and let one have the root from another
    #[command(subcommand)]
    Keyholder(KeyholderCommand),
    /// Who is told of what happens: see, test, send again
    #[command(subcommand)]
    Webhook(WebhookCommand),
    /// Hand published images to machines that boot over the network
    #[command(subcommand)]
    Provision(crate::commands::provision::ProvisionCommand),
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
    /// Take S3 signatures of version 2, for old clients
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
    /// Runs pools, volumes, snapshots and buckets; gives nobody a key
    StorageAdmin,
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
            Self::StorageAdmin => Role::StorageAdmin,
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
    /// Make a key with a name, which S3 clients encrypt objects under (SSE-KMS) and which is revoked by itself
    #[command(
        after_help = "Examples:\n  nightlatch key create photos --node node-1\n  aws s3 cp holiday.jpg s3://album/ --sse aws:kms --sse-kms-key-id photos\n  nightlatch revoke --key photos        its objects can't be read any more, all others can\n  nightlatch unlatch --key photos && nightlatch push --key photos\n  nightlatch volume delete photos       erases the key: its objects are gone for good\n\nThe keyholder keeps the key and lends it as it lends volumes' keys: for a lease, and until it is revoked."
    )]
    Create {
        /// Its name: the key id that S3 clients give
        name: String,
        #[command(flatten)]
        node: NodeArg,
        /// Pool, where the node has several
        #[arg(long, value_name = "ID")]
        pool: Option<PoolId>,
    },
    /// The keys with names, and where they are
    List,
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
        after_help = "Example, on a machine with all three programs and no network to the real ones:\n  nightlatch key drill --backup ledger.backup --disk ./copy-of-disk.img \\\n    --share anna.share --officer-key anna.officer-key --share ben.share --officer-key ben.officer-key\n\nIt starts a keyholder and a node on loopback, opens every volume of the copied disks and reads all of it. The copies are\nwritten to; throw them away afterwards. File systems on disks are checked where their programs and nbdfuse are there.\nThe outcome goes to the keyholder of the profile, whose status shows its date.\n\nOf a backup site, which has no key: what it sends is taken as ciphertext and opened here.\n  nightlatch key drill --from-node backup-1 --backup ledger.backup --share anna.share --officer-key anna.officer-key ..."
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
    #[arg(long = "disk", value_name = "PATH", required_unless_present = "from_node")]
    pub(crate) disks: Vec<PathBuf>,
    /// A node whose newest snapshots are taken instead of a copy of a disk: the backup site, say
    #[arg(long, value_name = "NAME", conflicts_with = "disks")]
    pub(crate) from_node: Option<String>,
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
    /// Write the outcome for Prometheus: a file in the node exporter's textfile directory
    #[arg(long, value_name = "FILE")]
    pub(crate) metrics: Option<PathBuf>,
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
    /// Pin a node's identity key and its TPM, after comparing their fingerprints with what the node's own console shows
    #[command(
        after_help = "Examples:\n  nightlatch node approve node-1 --fingerprint 0123456789abcdef\n  nightlatch node approve node-1 --fingerprint 0123456789abcdef --tpm fedcba9876543210\n\nA node that has a TPM is approved with it and with the state that its machine is in: firmware, Secure Boot, configuration. After you changed one of these, approve it again."
    )]
    Approve {
        /// The node
        name: PeerName,
        /// The fingerprint, 16 hexadecimal digits
        #[arg(long)]
        fingerprint: String,
        /// The fingerprint of the machine's TPM, to be compared too
        #[arg(long)]
        tpm: Option<String>,
    },
    /// Change where a node is dialled, when keys are pushed to it, or how long its leases are
    #[command(
        after_help = "Examples:\n  nightlatch node change node-1 --key-address 192.0.2.9:7410 --admin-address 192.0.2.9:7411\n  nightlatch node change node-1 --push auto      security officer\n  nightlatch node change node-1 --lease-ms 60000\n\nThe node that answers at a new address must still have the pinned identity key."
    )]
    Change(NodeChange),
    /// Take a node's keys away; with --compromised also forbid its identity for good and list what it may have seen
    #[command(
        after_help = "Example, after somebody may have had the machine in their hands:\n  nightlatch node revoke node-1 --compromised\n\nThe machine needs a new identity before it can be enrolled again; what it held is listed, to be given new keys first."
    )]
    Revoke {
        /// The node
        name: PeerName,
        /// It is not to be trusted any more
        #[arg(long)]
        compromised: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
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
    /// Show what a node's machine is and how its parts fare: disks, memory, sensors, network cards
    #[command(
        after_help = "Examples:\n  nightlatch node inventory node-1\n  nightlatch node inventory node-1 --json\n\nDisks are asked how they fare by nightlatch-smart.timer on the node. What is in capitals wants somebody to look after it; a disk with REPLACE is to be exchanged before it fails."
    )]
    Inventory {
        /// The node; not needed where the profile has only one
        name: Option<PeerName>,
    },
    /// Switch the light at a disk's place on or off
    #[command(
        after_help = "Examples:\n  nightlatch node locate sdc on\n  nightlatch node locate nvme2n1 off --node node-1\n\n`nightlatch node inventory` names the disks, and says which have a light."
    )]
    Locate {
        /// The disk, as the inventory names it
        disk: String,
        /// What the light is to be
        #[arg(value_enum)]
        light: LightArg,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Make a node forget every key, now, until a security officer unlatches it
    Wipe {
        /// The node; not needed where the profile has only one
        name: Option<PeerName>,
    },
}

/// A light.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LightArg {
    /// On.
    On,
    /// Off.
    Off,
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
    /// Let the machine's TPM say to keyholders what was started
    #[arg(long, value_name = "DEVICE", num_args = 0..=1, default_missing_value = "/dev/tpmrm0")]
    pub(crate) tpm: Option<PathBuf>,
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
    /// Push keys whenever it is there, without a person's approval each time (security officer)
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
        /// Destroy what the device holds, and take a file that a loop device is over; never a disk that is mounted
        #[arg(long)]
        force: bool,
        /// Destroy snapshots whose lock is not over, too: backups that somebody wanted to be safe from this very command
        #[arg(long, requires = "force")]
        destroy_locked_snapshots: bool,
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
    /// Give a pool its damaged sectors back from another node that has them, in the volume or a snapshot of it
    #[command(
        after_help = "The last scrub says what is damaged (`nightlatch pool scrub`). A sector is taken only if it is what its own record says was written last: the same write, the same tag, the right checksum; never an older one. It needs no key on either side, and goes either way between a volume and its replica. Scrub again afterwards: a report names a hundred sectors.\nExample:\n  nightlatch pool heal 5b0cf6a1f9c04ab29a6f37f2f0a0c7de --node node-2 --from node-1"
    )]
    Heal {
        /// The pool's id
        pool: PoolId,
        /// The node that may have what was written
        #[arg(long, value_name = "NAME")]
        from: String,
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
    /// Make a volume, with a key of its own, which is pushed where the node's pushes take no approval
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
        /// What tells a sector that is not what was written; never changed afterwards
        #[arg(long, default_value = "tag")]
        integrity: IntegrityArg,
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
    /// Go on from what is on the device, although it is not what was known to be there (security officer)
    #[command(
        after_help = "A key is not taken where the pool was wound back, or was changed without the key while its node was sealed; `nightlatch status` says which. Find out first who could write to the device, and whether a replica has what is missing.\nExample:\n  nightlatch volume accept-state db && nightlatch push --volume db"
    )]
    AcceptState {
        /// The volume
        label: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Give a volume's key a new epoch: writes use it from then on, what is there is sealed anew while the volume serves
    #[command(
        after_help = "The old secret is destroyed by itself once nothing of the volume, its snapshots and its replicas lies under it; clones share the key and rotate with it. What was exported to a bucket under the old one cannot be read after that: export it anew. While a volume is sealed anew, writing over what is there may take space, as after a snapshot. The new secret is in the ledger: back it up.\nExamples:\n  nightlatch volume rotate db\n  nightlatch volume rotate db --show         how far it is, and what keeps an older epoch\n  nightlatch volume rotate db --wait && nightlatch key backup ledger"
    )]
    Rotate {
        /// The volume
        label: String,
        /// Begin nothing, show where it is
        #[arg(long)]
        show: bool,
        /// Wait until nothing is left to be sealed anew, with a bar and the time it takes
        #[arg(long)]
        wait: bool,
    },
    /// Set how much space a volume may have and how much is kept for it, its snapshots counted with it; what is not
    /// given is no limit
    Limit {
        /// The volume
        label: String,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Say who may use a disk over NBD, or show it: which certificates, from which addresses, to read only or to write too
    #[command(
        after_help = "Without an option it shows who may. With one it says so anew: what is not given is not restricted. What is named holds for the disk and its snapshots, from now on: connections that may no more are cut. A certificate of the clients issuer is needed in any case.\nExamples:\n  nightlatch volume access db --client db-1 --client db-2        by the name in the certificate\n  nightlatch volume access db --client db-1 --address 192.0.2.0/24\n  nightlatch volume access photos --anyone --read-only\n  nightlatch volume access db --anyone                         as before the first"
    )]
    Access {
        /// The volume
        label: String,
        #[command(flatten)]
        access: AccessArgs,
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

/// Who may use a disk.
#[derive(Clone, Debug, Args)]
pub(crate) struct AccessArgs {
    /// A client's name in its certificate, or sha256: and the digits of its key; give it once for each
    #[arg(long = "client", value_name = "NAME")]
    pub(crate) clients: Vec<String>,
    /// An address or network that clients connect from; give it once for each
    #[arg(long = "address", value_name = "NETWORK")]
    pub(crate) addresses: Vec<String>,
    /// The node's unix socket too, whose clients have neither certificate nor address
    #[arg(long)]
    pub(crate) local: bool,
    /// Every client that the node lets in
    #[arg(long, conflicts_with_all = ["clients", "addresses", "local"])]
    pub(crate) anyone: bool,
    /// Nobody may change anything
    #[arg(long)]
    pub(crate) read_only: bool,
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

/// What a volume's sectors are compared with when they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IntegrityArg {
    /// A checksum, and a tag under the volume's key: notices rot, and whoever tampers with the disk
    Tag,
    /// A checksum alone: notices rot, not tampering; costs less time
    Checksum,
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

/// A length of time in seconds, as in `90d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) u64);

pub(crate) fn span(text: &str) -> Result<Span, String> {
    const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let unit = UNITS.iter().find_map(|(name, seconds)| Some((text.strip_suffix(*name)?, *seconds)));
    unit.and_then(|(number, seconds)| number.parse::<u64>().ok()?.checked_mul(seconds))
        .map(Span)
        .ok_or_else(|| "give a number and a unit: 30s, 15m, 24h or 90d".to_owned())
}

/// `user`.
#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Make a user with an access key, or a further key of a user; the secret is shown once
    #[command(
        after_help = "Examples:\n  nightlatch user create backup\n  nightlatch user create contractor --expires-in 30d"
    )]
    Create {
        /// The user's name
        name: String,
        /// How long the key is good for: 30s, 15m, 24h, 90d; without it, until it is removed
        #[arg(long, value_name = "TIME", value_parser = span)]
        expires_in: Option<Span>,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Make a further key of a user and let the others end
    #[command(
        after_help = "Example:\n  nightlatch user rotate backup --grace 7d    the clients have a week to change over"
    )]
    Rotate {
        /// The user's name
        name: String,
        /// How long the earlier keys are still good for: 30s, 15m, 24h, 90d
        #[arg(long, value_name = "TIME", value_parser = span, default_value = "24h")]
        grace: Span,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Set when an access key ends
    Expire {
        /// The access key
        access_key: String,
        /// In how long: 30s, 15m, 24h, 90d
        #[arg(long = "in", value_name = "TIME", value_parser = span, required_unless_present = "never")]
        within: Option<Span>,
        /// Not at all
        #[arg(long, conflicts_with = "within")]
        never: bool,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Show what a user belongs to and has
    Show {
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

/// `group`.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Make an empty group
    Create {
        /// Its name
        name: String,
        #[command(flatten)]
        node: NodeArg,
    },
    /// List the groups with their members and policies
    List(NodeArg),
    /// Make a user a member: from then on policies decide what the user may do
    Add {
        /// The group
        group: String,
        /// The user
        user: String,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Take a user out of a group
    Remove {
        /// The group
        group: String,
        /// The user
        user: String,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Remove a group; its members stay users
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        node: NodeArg,
    },
}

/// `quota`.
#[derive(Debug, Subcommand)]
pub(crate) enum QuotaCommand {
    /// Set a quota, or lift it; what is stored already stays
    #[command(
        after_help = "What is counted are the bytes of all versions and of unfinished uploads, and versions with delete markers. A write that\nwould pass a quota is refused with 403 QuotaExceeded; deletes always go through.\nExamples:\n  nightlatch quota set --bucket photos --size 500G\n  nightlatch quota set --user web --size 2T --objects 10000000\n  nightlatch quota set --bucket photos --none"
    )]
    Set {
        #[command(flatten)]
        of: QuotaTarget,
        /// Most bytes
        #[arg(long, required_unless_present_any = ["objects", "none"])]
        size: Option<ByteLen>,
        /// Most versions of objects
        #[arg(long)]
        objects: Option<u64>,
        /// No quota any more
        #[arg(long, conflicts_with_all = ["size", "objects"])]
        none: bool,
        #[command(flatten)]
        node: NodeArg,
    },
    /// List the quotas
    List(NodeArg),
}

/// Whose quota.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct QuotaTarget {
    /// This bucket's
    #[arg(long, value_name = "NAME")]
    pub(crate) bucket: Option<String>,
    /// Of everything that this user owns
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
}

/// `access-policy`.
#[derive(Debug, Subcommand)]
pub(crate) enum AccessPolicyCommand {
    /// Make or replace a policy, from a file with JSON
    #[command(
        after_help = "A policy is written as those of AWS IAM users are, with actions and resources of S3:\n  {\"Version\": \"2012-10-17\", \"Statement\": [{\"Effect\": \"Allow\", \"Action\": [\"s3:GetObject\", \"s3:ListBucket\"],\n   \"Resource\": [\"arn:aws:s3:::photos\", \"arn:aws:s3:::photos/*\"],\n   \"Condition\": {\"IpAddress\": {\"aws:SourceIp\": \"10.0.0.0/8\"}}}]}\nExample:\n  nightlatch access-policy put read-photos ./read-photos.json && nightlatch access-policy attach read-photos --group staff"
    )]
    Put {
        /// Its name
        name: String,
        /// The file
        file: PathBuf,
        #[command(flatten)]
        node: NodeArg,
    },
    /// List the policies
    List(NodeArg),
    /// Print a policy
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Attach a policy to a user or a group: from the first one on policies decide what a user may do
    Attach {
        /// The policy
        name: String,
        #[command(flatten)]
        to: PolicyTarget,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Take a policy off; a user whom nothing allows anything then may do nothing
    Detach {
        /// The policy
        name: String,
        #[command(flatten)]
        from: PolicyTarget,
        #[command(flatten)]
        node: NodeArg,
    },
    /// Remove a policy that is attached to nobody
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        node: NodeArg,
    },
}

/// Whom a policy is attached to.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct PolicyTarget {
    /// This user
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Every member of this group
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<String>,
}

/// What an act is about.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct TargetArgs {
    /// This volume, or this named key
    #[arg(long, visible_alias = "key", value_name = "LABEL")]
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
    fn lengths_of_time_have_a_unit() {
        for (text, seconds) in [("30s", 30), ("15m", 900), ("24h", 86_400), ("90d", 7_776_000)] {
            assert_eq!(span(text), Ok(Span(seconds)));
        }
        for bad in ["", "d", "10", "-1d", "1w", "99999999999999999999d", "999999999999999999d"] {
            assert!(span(bad).is_err(), "{bad}");
        }
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
        let documents =
            ["README.md", "docs/operating.md", "docs/nbd.md", "docs/s3.md", "image-build/README.md"];
        for document in documents {
            let text = std::fs::read_to_string(root.join(document)).unwrap().replace("\\\n", " ");
            let mut in_code = false;
            for line in text.lines().map(str::trim_start) {
                if line.starts_with("```") {
                    in_code = line == "```sh";
                }
                let command = line.split('#').next().unwrap_or_default();
                // What the shell does with it is the shell's.
                let command = command.split(" > ").next().unwrap_or_default().trim();
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
