//! What the keyholder answers when it does not do what was asked.

use identity::{ClientError, Problem};

use crate::durable::{StateDirError, StorageError};
use crate::ledger::LedgerError;
use crate::vault::VaultError;

/// Why the keyholder did not do it. Each message ends with the next step, after a semicolon.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyholderError {
    /// Sealed, or a share, wrapped key or ceremony that is no good.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The ledger does not read.
    #[error(transparent)]
    Ledger(LedgerError),
    /// A file of the state directory.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The state directory itself.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// No secret memory for the root.
    #[error("there is no memory for the root secret: {0}; boot with secretmem.enable=1, or set allow_mlock")]
    Memory(#[source] locked_memory::LockedMemoryError),
    /// The kernel's boot id or clock.
    #[error("the system's {what} cannot be read; check that /proc is mounted")]
    System {
        /// What.
        what: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The configuration keeps this keyholder to its own machine.
    #[error(
        "{address} is not dialled: this keyholder keeps to loopback addresses; take dial_loopback_only out of its configuration"
    )]
    NotDialled {
        /// Where the node is.
        address: String,
    },
    /// There is no ledger to work with.
    #[error("this keyholder has no ledger; hold a ceremony, or restore a ledger backup first")]
    NoLedger,
    /// There is a ledger already.
    #[error(
        "this keyholder has a ledger already; unseal it with its officers' shares, or use an empty state directory"
    )]
    LedgerExists,
    /// A request that makes no sense as it is.
    #[error("{what}; {next_step}")]
    Invalid {
        /// What is wrong with it.
        what: String,
        /// How to put it right.
        next_step: &'static str,
    },
    /// No such node.
    #[error("there is no node named {name}; `nightlatch node list` shows those there are")]
    NoSuchNode {
        /// The name.
        name: String,
    },
    /// No such volume.
    #[error("there is no volume labelled {label}; `nightlatch volume list` shows those there are")]
    NoSuchVolume {
        /// The label.
        label: String,
    },
    /// The name, id or label is taken.
    #[error("{what} exists already; choose another, or remove it first")]
    Exists {
        /// What.
        what: String,
    },
    /// The node's key is not pinned.
    #[error("node {name} is not approved; compare its fingerprint and run `nightlatch node approve`")]
    NotApproved {
        /// The node.
        name: String,
    },
    /// The node has not yet said what its key is.
    #[error("node {name} has not been reached yet, so there is no key to approve; {detail}")]
    NothingClaimed {
        /// The node.
        name: String,
        /// Why it was not reached.
        detail: String,
    },
    /// The fingerprint given is not that of the node's key.
    #[error(
        "node {name} claims key {claimed}, not {given}; if the node's own console shows {given}, something stands \
         between it and the keyholder: do not approve it"
    )]
    OtherFingerprint {
        /// The node.
        name: String,
        /// Fingerprint of the key it claims.
        claimed: String,
        /// Fingerprint given.
        given: String,
    },
    /// The node still has volumes.
    #[error("node {name} still has {count} volumes; delete them first")]
    NodeInUse {
        /// The node.
        name: String,
        /// How many.
        count: usize,
    },
    /// The volume still has snapshots, which nobody could read without its key.
    #[error(
        "volume {label} still has {count} snapshots, which would be lost with its key; delete them with `nightlatch \
         snapshot delete`"
    )]
    HasSnapshots {
        /// The volume.
        label: String,
        /// How many.
        count: usize,
    },
    /// Something is latched.
    #[error("{what} is latched ({cause}); a security officer lifts that with `nightlatch unlatch`")]
    Latched {
        /// What.
        what: String,
        /// Why.
        cause: &'static str,
    },
    /// The volume's state does not allow it.
    #[error("volume {label} is being {state}; {next_step}")]
    Busy {
        /// The volume.
        label: String,
        /// What is going on.
        state: &'static str,
        /// What to do.
        next_step: &'static str,
    },
    /// Only a security officer may.
    #[error("{act} takes a security officer's certificate; ask an officer to do it")]
    OfficerOnly {
        /// What was asked for.
        act: &'static str,
    },
    /// The node refused.
    #[error("node {name} refused: {problem}")]
    NodeRefused {
        /// The node.
        name: String,
        /// What it said.
        problem: Problem,
    },
    /// The node could not be asked.
    #[error("node {name} could not be asked: {source}")]
    NodeUnreachable {
        /// The node.
        name: String,
        /// What happened.
        #[source]
        source: Box<ClientError>,
    },
    /// TLS cannot be set up.
    #[error("TLS to node {name} cannot be set up: {source}")]
    Identity {
        /// The node.
        name: String,
        /// Why.
        #[source]
        source: Box<identity::IdentityError>,
    },
}

impl From<LedgerError> for KeyholderError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Vault(error) => Self::Vault(error),
            error => Self::Ledger(error),
        }
    }
}

impl KeyholderError {
    /// The stable word for programs, and the HTTP status.
    pub fn kind(&self) -> (&'static str, u16) {
        match self {
            Self::Vault(VaultError::Sealed { .. }) => ("sealed", 503),
            Self::Vault(VaultError::AlreadyUnsealed) => ("unsealed", 409),
            Self::Vault(VaultError::Share(_) | VaultError::WrongRoot) => ("wrong-share", 400),
            Self::Vault(VaultError::ForeignSet { .. }) => ("foreign-set", 400),
            Self::Vault(VaultError::DuplicateShare { .. }) => ("duplicate-share", 409),
            Self::Vault(VaultError::ImpossibleSet) | Self::Invalid { .. } => ("invalid", 400),
            Self::Vault(VaultError::Unwrap { .. }) => ("wrong-root", 409),
            Self::Ledger(_) => ("ledger-damaged", 400),
            Self::NoLedger => ("no-ledger", 409),
            Self::LedgerExists | Self::Exists { .. } => ("exists", 409),
            Self::NoSuchNode { .. } | Self::NoSuchVolume { .. } => ("not-found", 404),
            Self::NotApproved { .. } | Self::NothingClaimed { .. } => ("not-approved", 409),
            Self::OtherFingerprint { .. } => ("other-fingerprint", 409),
            Self::NodeInUse { .. } | Self::HasSnapshots { .. } | Self::Busy { .. } => ("conflict", 409),
            Self::Latched { .. } => ("latched", 409),
            Self::OfficerOnly { .. } => ("forbidden", 403),
            Self::NodeRefused { .. } => ("node-refused", 502),
            Self::NodeUnreachable { .. } | Self::Identity { .. } | Self::NotDialled { .. } => {
                ("node-unreachable", 502)
            }
            Self::Vault(VaultError::Envelope(_) | VaultError::Random(_))
            | Self::Storage(_)
            | Self::StateDir(_)
            | Self::Memory(_)
            | Self::System { .. } => ("failed", 500),
        }
    }

    /// The body of the answer: the message cut at its first semicolon into what is wrong and what to do.
    pub fn problem(&self) -> Problem {
        let text = self.to_string();
        let (message, next_step) = text.split_once("; ").unwrap_or((&text, ""));
        Problem::new(self.kind().0, message, next_step)
    }
}
