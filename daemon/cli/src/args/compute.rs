//! The grammar of what concerns the compute tier: the keyholders, the audit trail.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use identity::{Endpoint, PeerName};

/// `keyholder`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyholderCommand {
    /// How this keyholder stands: its root, its store, and what a policy that lets it join has to name
    Status,
    /// The keyholders that share a store: which live, which have the root, how many nodes each dials
    Members,
    /// Let a sealed keyholder have the root from this one, within the next minutes (security officer)
    #[command(
        after_help = "The policy has to name it first, with the identity key that `nightlatch keyholder status` shows there:\n\n  [[keyholder]]\n  name = \"compute-2\"\n  identity = \"64 HEXADECIMAL DIGITS\"\n\nCompare that key with the other machine's own console. The sealed keyholder asks every few seconds by itself.\nExample:\n  nightlatch keyholder join compute-2"
    )]
    Join {
        /// Its name, as in its certificate
        name: PeerName,
    },
}

/// `audit`.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Check that nobody has changed, removed, put in, cut off or forked anything
    #[command(
        after_help = "Examples:\n  nightlatch audit verify\n  nightlatch audit verify --witness heads.jsonl       with what an outside witness kept\n  nightlatch audit verify --node node-1               a node's own trail, and both compared\n  nightlatch audit verify --dir ./copy-of-state --root-key HEX    without the keyholder\n\nExit status: 0 the trail holds, perhaps with doubts that are listed; 1 it does not."
    )]
    Verify(AuditVerify),
    /// Show entries, oldest first
    #[command(
        after_help = "Examples:\n  nightlatch audit search --since 2h\n  nightlatch audit search --by alice --event 'node-*'\n  nightlatch audit search --about db --since 2026-01-01T00:00:00Z --json"
    )]
    Search(AuditSearch),
    /// Write entries for another system: JSON lines, CEF, or syslog, to a file or to a server over TLS
    #[command(
        after_help = "Examples:\n  nightlatch audit export --output audit.jsonl\n  nightlatch audit export --format cef\n  nightlatch audit export --format syslog --to logs.example.com:6514 --ca ca.pem --follow --state sent.json\n\nWith --state the number of the last entry that was sent is kept, and the next run goes on behind it."
    )]
    Export(AuditExport),
    /// Be an outside witness: keep the trail's heads on this machine and raise an alarm when the trail does not continue from them
    #[command(
        after_help = "Run it where neither the keyholder's administrators nor the nodes' can write, with a monitor's certificate: it is\nshown digests, never entries.\nExamples:\n  nightlatch audit witness --state heads.jsonl                  once, from a timer; fails on an alarm\n  nightlatch audit witness --state heads.jsonl --interval 60    for as long as it runs"
    )]
    Witness(AuditWitness),
}

/// `audit verify`.
#[derive(Debug, Args)]
pub(crate) struct AuditVerify {
    /// Read the trail from a state directory or a copy of one, not from the keyholder
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// The root's audit key: runs that another one certified do not count. Without it, that which the witness saw first
    #[arg(long, value_name = "HEX")]
    pub(crate) root_key: Option<String>,
    /// Heads that an outside witness kept
    #[arg(long, value_name = "FILE")]
    pub(crate) witness: Option<PathBuf>,
    /// Check this node's own trail as well, and compare the two
    #[arg(long, value_name = "NAME", conflicts_with = "dir")]
    pub(crate) node: Option<String>,
}

/// Which entries.
#[derive(Debug, Args)]
pub(crate) struct AuditFilter {
    /// Of this event; `node-*` for all that begin so
    #[arg(long, value_name = "EVENT")]
    pub(crate) event: Option<String>,
    /// By somebody whose role and name contain this
    #[arg(long, value_name = "TEXT")]
    pub(crate) by: Option<String>,
    /// With this in any field
    #[arg(long, value_name = "TEXT")]
    pub(crate) about: Option<String>,
    /// Not before: a moment (RFC 3339), or how long ago, as in 30m, 2h or 7d
    #[arg(long, value_name = "WHEN")]
    pub(crate) since: Option<String>,
    /// Before: a moment, or how long ago
    #[arg(long, value_name = "WHEN")]
    pub(crate) until: Option<String>,
}

/// `audit search`.
#[derive(Debug, Args)]
pub(crate) struct AuditSearch {
    #[command(flatten)]
    pub(crate) filter: AuditFilter,
    /// Of this node's own trail
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// The last so many
    #[arg(long, default_value_t = 200)]
    pub(crate) last: usize,
}

/// How entries are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AuditFormat {
    /// As they stand in the trail: they can be verified again
    Jsonl,
    /// ArcSight Common Event Format
    Cef,
    /// RFC 5424
    Syslog,
}

/// `audit export`.
#[derive(Debug, Args)]
pub(crate) struct AuditExport {
    #[command(flatten)]
    pub(crate) filter: AuditFilter,
    /// How
    #[arg(long, default_value = "jsonl")]
    pub(crate) format: AuditFormat,
    /// A new file to write to; standard output where neither is given
    #[arg(long, value_name = "FILE", conflicts_with = "to")]
    pub(crate) output: Option<PathBuf>,
    /// A syslog server that speaks TLS (RFC 5425); messages are CEF inside syslog with --format cef
    #[arg(long, value_name = "HOST:PORT", requires = "ca")]
    pub(crate) to: Option<Endpoint>,
    /// Who vouches for that server (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// This side's certificate, where the server wants one (PEM)
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// Its key (PEM, mode 0600)
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// Where the number of the last entry that was sent is kept
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
    /// Go on with what is written from now on
    #[arg(long)]
    pub(crate) follow: bool,
}

/// `audit witness`.
#[derive(Debug, Args)]
pub(crate) struct AuditWitness {
    /// Where the heads are kept
    #[arg(long, value_name = "FILE")]
    pub(crate) state: PathBuf,
    /// Look again every so many seconds, until stopped; once where not given
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) interval: Option<u64>,
}

/// `policy`.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Whether a file is a policy; needs no keyholder
    #[command(
        after_help = "Example:\n  nightlatch policy show --example > policy.toml && nightlatch policy check policy.toml"
    )]
    Check {
        /// The file
        file: PathBuf,
    },
    /// What a file would change, what of it asks for less, and which keys it does not want where they are
    Diff {
        /// The file
        file: PathBuf,
    },
    /// Put a file in force (security officer; others have to approve where it asks for less than before)
    #[command(
        after_help = "Example:\n  nightlatch policy diff policy.toml && nightlatch policy apply policy.toml"
    )]
    Apply {
        /// The file
        file: PathBuf,
    },
    /// Print the policy in force, as it was applied
    Show {
        /// Print one to begin with, each line explained; needs no keyholder
        #[arg(long)]
        example: bool,
    },
}

/// `people`.
#[derive(Debug, Subcommand)]
pub(crate) enum PeopleCommand {
    /// Make a second factor for yourself: a secret for an authenticator, which counts once you typed a code of it
    #[command(
        after_help = "The code is read from standard input.\nExample:\n  nightlatch --as security-officer people enrol"
    )]
    Enrol,
    /// Who has a second factor
    List,
    /// Forget somebody's second factor, when their authenticator is lost (security officer)
    Forget {
        /// Role and name, as in operator/alice
        who: String,
    },
}

/// `approval`.
#[derive(Debug, Subcommand)]
pub(crate) enum ApprovalCommand {
    /// What waits for another person
    List,
    /// Approve what somebody else has asked for
    Approve {
        /// The request
        id: String,
    },
    /// Refuse it, or take your own back
    Refuse {
        /// The request
        id: String,
    },
    /// Let one person go on alone, in an emergency and where the policy allows it; everybody is told (security officer)
    BreakGlass {
        /// The request
        id: String,
        /// Why nobody else can be asked
        #[arg(long)]
        reason: String,
    },
}

/// `erasure`.
#[derive(Debug, Subcommand)]
pub(crate) enum ErasureCommand {
    /// Erased volumes, and what is still to be destroyed
    List,
    /// Say that every backup of the ledger up to a serial number is destroyed (security officer)
    Confirm {
        /// The volume's id
        volume: units::VolumeId,
        /// The serial number
        #[arg(long, value_name = "SERIAL")]
        destroyed_up_to: u64,
    },
    /// Write a certificate of a complete erasure, signed by the root
    Certificate {
        /// The volume's id
        volume: units::VolumeId,
        /// The file to write
        file: PathBuf,
    },
}

/// `token`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token for a program: it stands in for your login, for what you name and nothing else. It is shown once
    #[command(
        after_help = "The program uses your certificate, and names the token's file (mode 0600) in NIGHTLATCH_TOKEN_FILE.\nExample:\n  nightlatch token create nightly --scope GET:/v1/ledger/backup --days 90 --output nightly.token"
    )]
    Create {
        /// What it is for
        name: String,
        /// An endpoint as openapi.json has it, as in POST:/v1/push; give it once for each
        #[arg(long = "scope", value_name = "ENDPOINT", required = true)]
        scopes: Vec<String>,
        /// Days until it ends
        #[arg(long, default_value_t = 90)]
        days: u32,
        /// A new file to write it to; it is printed where none is given
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// The tokens that have not ended
    List,
    /// End a token at once
    Revoke {
        /// Its id
        id: String,
    },
}

/// `webhook`.
#[derive(Debug, Subcommand)]
pub(crate) enum WebhookCommand {
    /// Who is told of what happens, how far each has come, and what waits
    List,
    /// What receivers did not take
    DeadLetters {
        /// Of this one
        name: Option<String>,
    },
    /// Send one event that says nothing, and show what comes back
    Test {
        /// The receiver
        name: String,
    },
    /// Send dead letters again, and try at once what waits
    #[command(
        after_help = "Examples:\n  nightlatch webhook replay pager\n  nightlatch webhook replay pager --entry 1042 --entry 1044"
    )]
    Replay(LettersArgs),
    /// Forget dead letters; the audit trail still has what they told of
    Discard {
        #[command(flatten)]
        letters: LettersArgs,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Write a new secret for a receiver; needs no keyholder
    #[command(
        after_help = "The keyholder's configuration names the file, and the receiver gets its content:\n  [[webhook]]\n  name = \"pager\"\n  url = \"https://hooks.example.com/nightlatch\"\n  secret = \"pager.secret\"\nExample:\n  nightlatch webhook secret pager.secret"
    )]
    Secret {
        /// The file to write
        file: PathBuf,
    },
}

/// Which dead letters.
#[derive(Debug, Args)]
pub(crate) struct LettersArgs {
    /// The receiver
    pub(crate) name: String,
    /// The number of the entry; give it once for each, or leave it out for all of them
    #[arg(long = "entry", value_name = "NUMBER")]
    pub(crate) entries: Vec<u64>,
}

/// `login`.
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// In a browser on this machine, at the OpenID provider that the keyholder knows; `--as` says in which role, operator without it
    #[arg(long)]
    pub(crate) oidc: bool,
    /// Who vouches for the provider's certificate (PEM)
    #[arg(
        long,
        value_name = "FILE",
        requires = "oidc",
        default_value = "/etc/ssl/certs/ca-certificates.crt"
    )]
    pub(crate) ca: PathBuf,
}
