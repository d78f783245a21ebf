//! What the keyholder answers when it does not do what was asked.

use identity::{ClientError, Problem};

use crate::durable::{StateDirError, StorageError};
use crate::join::JoinError;
use crate::ledger::LedgerError;
use crate::oidc::OidcError;
use crate::policy::{PolicyError, Refusal};
use crate::store::StoreError;
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
    /// What ledger and lease records are kept in.
    #[error(transparent)]
    Store(StoreError),
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
    /// A text that is no policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The policy does not allow it.
    #[error("{0}")]
    Forbidden(Refusal),
    /// A certificate alone is not enough, and there is nothing else yet.
    #[error("{who} has no second factor, and this takes one; enrol one with `nightlatch people enrol`")]
    NoSecondFactor {
        /// Who.
        who: String,
    },
    /// A certificate alone is not enough.
    #[error("{who} is not logged in, and this takes a second factor; log in with `nightlatch login`")]
    NotLoggedIn {
        /// Who.
        who: String,
    },
    /// Not the code.
    #[error(
        "that is not the code, or it was used before; wait for the authenticator's next one and try again"
    )]
    WrongCode,
    /// Too many wrong codes.
    #[error("{who} gave too many wrong codes in a row; try again in {wait_s} s")]
    TooManyCodes {
        /// Who.
        who: String,
        /// Seconds until then.
        wait_s: u64,
    },
    /// A login at an OpenID provider.
    #[error(transparent)]
    Oidc(#[from] OidcError),
    /// The provider vouches for somebody to whom the policy gives nothing.
    #[error(
        "{name} is known to the OpenID provider, and the policy gives such a person no role{}; have a [[person]] rule applied that fits \
         the token's claims",
        role.map(|role| format!(" as {role}")).unwrap_or_default()
    )]
    NoRole {
        /// The person's name.
        name: String,
        /// The role that was asked for.
        role: Option<identity::Role>,
    },
    /// Not a token, or not any more, or another's.
    #[error(
        "the token is not known, has ended or belongs to somebody else; make one with `nightlatch token create`"
    )]
    BadToken,
    /// A token for something else.
    #[error(
        "the token {token} was not made for `{wanted}`; make one that is, or log in with `nightlatch login`"
    )]
    OutOfScope {
        /// Its name.
        token: String,
        /// What was asked for.
        wanted: String,
    },
    /// No such token.
    #[error("there is no token {id}; `nightlatch token list` shows those there are")]
    NoSuchToken {
        /// Its id.
        id: String,
    },
    /// Too many requests.
    #[error("too many requests; send the next in {wait_s} s")]
    TooOften {
        /// Seconds until then.
        wait_s: u64,
    },
    /// No such person.
    #[error("{who} has no second factor; `nightlatch people list` shows who has")]
    NoSuchPerson {
        /// Role and name.
        who: String,
    },
    /// It takes more than one person.
    #[error(
        "this takes other people's approval ({have} of {need} so far): {act}; have another say `nightlatch approval \
         approve {id}`, then say this again"
    )]
    ApprovalWanted {
        /// The request.
        id: String,
        /// What was asked for.
        act: String,
        /// Who has approved so far.
        have: usize,
        /// Who has to.
        need: u8,
    },
    /// No such request.
    #[error(
        "no request {id} waits for approval; it may have lapsed: `nightlatch approval list` shows those that wait"
    )]
    NoSuchRequest {
        /// Its id.
        id: String,
    },
    /// One person approving twice, or their own request.
    #[error(
        "{}; another person has to approve it",
        if *own { "who asks cannot approve" } else { "this person has approved it already" }
    )]
    SamePerson {
        /// It is the one who asked.
        own: bool,
    },
    /// The policy has no glass to break.
    #[error("the policy does not let one person go on alone; have another person approve it")]
    NoBreakGlass,
    /// Somebody had this node in their hands.
    #[error(
        "node {name} was marked as compromised; give the machine a new identity, and enrol it under that"
    )]
    Compromised {
        /// The node.
        name: String,
    },
    /// Nothing to confirm.
    #[error("no erasure of {what} waits for its backups; `nightlatch erasure list` shows those there are")]
    NoSuchErasure {
        /// Label or id.
        what: String,
    },
    /// No such receiver.
    #[error(
        "there is no webhook {name}; `nightlatch webhook list` shows those that the keyholder's configuration has"
    )]
    NoSuchWebhook {
        /// Its name.
        name: String,
    },
    /// No such dead letter.
    #[error(
        "webhook {webhook} has no dead letter of entry {entry}; `nightlatch webhook dead-letters` shows those there are"
    )]
    NoSuchLetter {
        /// The receiver.
        webhook: String,
        /// The entry of the trail.
        entry: u64,
    },
    /// The receiver did not take a test.
    #[error("webhook {name} did not take the test, {why}; check its url, its certificate and its own log")]
    WebhookFailed {
        /// Its name.
        name: String,
        /// Why.
        why: crate::webhooks::Undelivered,
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
    /// A keyholder that nobody has named.
    #[error(
        "the policy names no keyholder {name}; apply one with a [[keyholder]] table that has its name and identity key"
    )]
    NotEnrolled {
        /// Who asked.
        name: String,
    },
    /// A keyholder with another key than the policy says.
    #[error(
        "keyholder {name} has the identity key {claimed}, which is not the one in the policy; if nobody set that machine up anew, \
         somebody has its certificate: revoke that"
    )]
    OtherIdentity {
        /// Who asked.
        name: String,
        /// Its key.
        claimed: String,
    },
    /// A keyholder with another ledger.
    #[error("keyholder {name} asks for another root than this one's; look which store it is configured with")]
    OtherRoot {
        /// Who asked.
        name: String,
    },
    /// It takes a person.
    #[error(
        "keyholder {name} may have the root with a security officer's approval; give it with `nightlatch keyholder join {name}`"
    )]
    JoinNotApproved {
        /// Who asked.
        name: String,
    },
    /// The budget is used up.
    #[error(
        "{per_hour} keyholders got the root within the last hour, which is all that the policy lets go by itself; approve this one with \
         `nightlatch keyholder join`"
    )]
    TooManyJoins {
        /// The budget.
        per_hour: u32,
    },
    /// Another keyholder gave no root.
    #[error("keyholder {name} gave no root: {source}")]
    NoRoot {
        /// Which one.
        name: String,
        /// What happened.
        #[source]
        source: Box<ClientError>,
    },
    /// A request for the root, or an answer, that does not hold.
    #[error("what another keyholder said about the root does not hold: {0}")]
    Join(#[from] JoinError),
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

impl From<StoreError> for KeyholderError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::File(error) => Self::Storage(error),
            error => Self::Store(error),
        }
    }
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
            Self::OfficerOnly { .. } | Self::SamePerson { .. } | Self::NoBreakGlass => ("forbidden", 403),
            Self::Policy(_) => ("invalid-policy", 400),
            Self::Forbidden(_) => ("policy", 403),
            Self::NoSecondFactor { .. } | Self::NotLoggedIn { .. } => ("second-factor", 401),
            Self::Oidc(OidcError::NoProvider) => ("no-provider", 404),
            Self::Oidc(OidcError::Provider(_)) => ("provider-unreachable", 502),
            Self::Oidc(_) => ("bad-id-token", 401),
            Self::NoRole { .. } => ("no-role", 403),
            Self::BadToken => ("bad-token", 401),
            Self::OutOfScope { .. } => ("out-of-scope", 403),
            Self::NoSuchToken { .. } | Self::NoSuchWebhook { .. } | Self::NoSuchLetter { .. } => {
                ("not-found", 404)
            }
            Self::WrongCode => ("wrong-code", 401),
            Self::TooManyCodes { .. } => ("too-many-codes", 429),
            Self::TooOften { .. } => ("too-often", 429),
            Self::NoSuchPerson { .. } | Self::NoSuchRequest { .. } | Self::NoSuchErasure { .. } => {
                ("not-found", 404)
            }
            Self::ApprovalWanted { .. } => ("approval-wanted", 409),
            Self::Compromised { .. } => ("compromised", 403),
            Self::NotEnrolled { .. } => ("not-enrolled", 403),
            Self::OtherIdentity { .. } => ("other-identity", 403),
            Self::OtherRoot { .. } => ("other-root", 409),
            Self::JoinNotApproved { .. } => ("join-not-approved", 403),
            Self::TooManyJoins { .. } => ("too-many-joins", 429),
            Self::NoRoot { .. } => ("no-root", 502),
            Self::Join(_) => ("bad-join", 400),
            Self::WebhookFailed { .. } => ("webhook-failed", 502),
            Self::NodeRefused { .. } => ("node-refused", 502),
            Self::NodeUnreachable { .. } | Self::Identity { .. } | Self::NotDialled { .. } => {
                ("node-unreachable", 502)
            }
            Self::Store(StoreError::Away { .. }) => ("store-away", 503),
            Self::Store(StoreError::Changed) => ("changed-meanwhile", 409),
            Self::Store(StoreError::Distrusted { .. }) => ("store-distrusted", 503),
            Self::Vault(VaultError::Envelope(_) | VaultError::Random(_))
            | Self::Store(StoreError::File(_) | StoreError::Refused { .. })
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
