//! What a node's TPM proves, and what follows from it: [ATTESTATION.md](../../attestation/ATTESTATION.md).
//!
//! Three questions, in this order: is the statement the TPM's own, made for this session ([`read`])? Is the key that signed it in
//! the TPM that it names ([`Challenge`])? Is that the TPM, and is the machine in the state, that a person approved ([`compare`])?
//!
//! It reads no clock and no ledger.

use attestation::{
    CredentialError, CredentialRandom, Digest, EventLog, FirmwareState, KeyError, KeyRole, Name, PublicKey,
    QUOTED, Quote, QuoteError, Register, Registers, WIPES, extended, make_credential, secrets_match,
};
use lease::message::{Attestation, Credential, CredentialOpened, WipeRecord};
use serde::{Deserialize, Serialize};
use units::BootId;
use zeroize::Zeroizing;

/// Registers whose contents a person approves: what the machine is, rather than which image it runs.
pub(crate) const PINNED: [Register; 5] = [
    Register::FIRMWARE,
    Register::OPTION_ROMS,
    Register::SECURE_BOOT,
    Register::CONFIGURATION,
    Register::EXTENSIONS,
];

/// What a TPM proves of its machine in one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proven {
    endorsement: PublicKey,
    attestation: Name,
    /// SHA-256 of the maker's certificate, where the node sent one. Whom it was made by is for people to look at.
    certificate: Option<Digest>,
    registers: Registers,
    wipes_began_at: Digest,
    wipes: Vec<WipeRecord>,
    firmware: Option<FirmwareState>,
}

/// What a person approved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Approved {
    /// Names of the keys.
    endorsement: Digest,
    attestation: Digest,
    certificate: Option<Digest>,
    /// Of [`PINNED`], in that order.
    registers: [Digest; PINNED.len()],
    /// What the firmware started, and the image: binding where no policy names images.
    boot_loader: Digest,
    image: Digest,
    wipes_began_at: Digest,
}

/// Why a TPM proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unproven {
    #[error("no TPM speaks for it")]
    NoTpm,
    #[error("its TPM said nothing: {0}")]
    Failed(String),
    #[error("{0}")]
    Key(#[from] KeyError),
    #[error("{0}")]
    Quote(#[from] QuoteError),
    #[error("{0}")]
    Credential(#[from] CredentialError),
    #[error("its quote comes with {0} registers")]
    Registers(usize),
    #[error("the wipes that it tells do not give the register of wipes ({WIPES}) that its TPM signed")]
    Wipes,
    #[error(
        "its quote is from before a wipe that the node itself signed ({cause}), or the wipe was kept from the TPM"
    )]
    BeforeWipe { cause: &'static str },
    #[error("its TPM did not open the credential made for it: {0}")]
    NotOpened(String),
    #[error("the key that signed its quote is not in the TPM that it names")]
    OtherSecret,
    #[error(
        "its TPM is {found} and not {approved}, with which it was approved: this may be a copy of the node"
    )]
    OtherTpm { found: Name, approved: Name },
    #[error(
        "it was approved with a TPM, and comes without: this may be a copy of the node on another machine"
    )]
    TpmGone,
    #[error("{}", changed(*register, *secure_boot))]
    Changed { register: Register, secure_boot: Option<bool> },
}

/// What is not as it was approved.
fn changed(register: Register, secure_boot: Option<bool>) -> String {
    let what = match register {
        Register::FIRMWARE | Register::OPTION_ROMS => "its firmware is not that",
        Register::SECURE_BOOT if secure_boot == Some(false) => {
            "Secure Boot is off, and what it checked before is not that"
        }
        Register::SECURE_BOOT => "whether and with which keys its firmware checks what it starts is not that",
        Register::CONFIGURATION => "what lies beside its image (configuration, command line) is not that",
        Register::EXTENSIONS => "the extensions of its image are not those",
        _ => "where its log of wipes begins is not that",
    };
    format!("{what} with which it was approved ({register})")
}

impl Unproven {
    /// What would put it right.
    pub(crate) const fn would_need(&self) -> &'static str {
        match self {
            Self::NoTpm | Self::TpmGone => "the machine with its TPM, and [tpm] in its configuration",
            Self::Failed(_) | Self::NotOpened(_) => {
                "a look at the node's log: its TPM has to be readable and without a password"
            }
            Self::Quote(QuoteError::OtherSession) => {
                "a quote made for this session: look for whoever sits between, or sends what he recorded"
            }
            Self::Key(_) | Self::Quote(_) | Self::Credential(_) | Self::Registers(_) | Self::OtherSecret => {
                "a look at the machine: a sound node does not send that"
            }
            Self::Wipes | Self::BeforeWipe { .. } => "a restart of the machine, and a look at why",
            Self::OtherTpm { .. } => {
                "the machine that was approved; where its board was replaced, a new approval (`nightlatch node approve`)"
            }
            Self::Changed { .. } => {
                "a new approval (`nightlatch node approve`) where you changed that, and else a look at the machine"
            }
        }
    }
}

/// Reads and verifies what a node sent. `expected` is what its quote has to be over.
pub(crate) fn read(
    attestation: Option<&Attestation>,
    expected: &Digest,
    boot: BootId,
) -> Result<Proven, Unproven> {
    let said = match attestation.map(|attestation| &attestation.statement) {
        None => return Err(Unproven::NoTpm),
        Some(Err(why)) => return Err(Unproven::Failed(why.clone())),
        Some(Ok(said)) => said,
    };
    let endorsement = PublicKey::parse(KeyRole::Endorsement, &said.endorsement_key)?;
    let key = PublicKey::parse(KeyRole::Attestation, &said.attestation_key)?;
    let registers = said.registers.clone().try_into().map(Registers);
    let registers = registers.map_err(|_| Unproven::Registers(said.registers.len()))?;
    let quote = Quote { statement: &said.quote, signature: &said.signature, registers };
    let quoted = quote.verify(&key, expected)?;
    let after_wipes =
        said.wipes.iter().fold(said.wipes_began_at, |value, wipe| extended(value, wipe.measurement(boot)));
    if quoted.registers.of(WIPES) != Some(after_wipes) {
        return Err(Unproven::Wipes);
    }
    let log = EventLog::parse(&said.event_log).ok();
    Ok(Proven {
        endorsement,
        attestation: key.name(),
        certificate: (!said.certificate.is_empty()).then(|| attestation::digest(&said.certificate)),
        registers: quoted.registers,
        wipes_began_at: said.wipes_began_at,
        wipes: said.wipes.clone(),
        firmware: log.map(|log| log.judged_by(&quoted.registers)),
    })
}

impl Proven {
    /// Refuses a quote without a wipe that is known from elsewhere, signed by the node.
    pub(crate) fn after(self, wipes: impl IntoIterator<Item = WipeRecord>) -> Result<Self, Unproven> {
        match wipes.into_iter().find(|wipe| !self.wipes.contains(wipe)) {
            Some(hidden) => Err(Unproven::BeforeWipe { cause: hidden.cause.name() }),
            None => Ok(self),
        }
    }

    /// The wipes since the machine was started, oldest first.
    pub(crate) fn wipes(&self) -> &[WipeRecord] {
        &self.wipes
    }

    /// The name of the TPM's endorsement key, which stands for the TPM.
    pub(crate) fn tpm(&self) -> Name {
        self.endorsement.name()
    }

    pub(crate) const fn certificate(&self) -> Option<Digest> {
        self.certificate
    }

    pub(crate) const fn firmware(&self) -> Option<&FirmwareState> {
        self.firmware.as_ref()
    }

    /// What the register holds.
    pub(crate) fn register(&self, register: Register) -> Digest {
        // Only quoted ones are asked for.
        self.registers.of(register).unwrap_or([0; 32])
    }

    /// What a person approves by approving this.
    pub(crate) fn approved(&self) -> Approved {
        Approved {
            endorsement: self.endorsement.name().0,
            attestation: self.attestation.0,
            certificate: self.certificate,
            registers: PINNED.map(|register| self.register(register)),
            boot_loader: self.register(Register::BOOT_LOADER),
            image: self.register(Register::IMAGE),
            wipes_began_at: self.wipes_began_at,
        }
    }

    /// Whether the key that signed is known to be in the TPM that it names.
    pub(crate) fn is_of(&self, approved: &Approved) -> bool {
        (self.endorsement.name().0, self.attestation.0) == (approved.endorsement, approved.attestation)
    }
}

impl Approved {
    /// Whether the image is the one that ran when it was approved.
    pub(crate) fn has_image_of(&self, proven: &Proven) -> bool {
        let started = (proven.register(Register::BOOT_LOADER), proven.register(Register::IMAGE));
        started == (self.boot_loader, self.image)
    }

    /// The TPM's name.
    pub(crate) const fn tpm(&self) -> Name {
        Name(self.endorsement)
    }
}

/// Compares what was proven with what was approved.
pub(crate) fn compare(proven: &Proven, approved: &Approved) -> Result<(), Unproven> {
    if !proven.is_of(approved) {
        return Err(Unproven::OtherTpm { found: proven.tpm(), approved: approved.tpm() });
    }
    let secure_boot = proven.firmware.as_ref().and_then(|firmware| firmware.secure_boot);
    let pinned = PINNED.into_iter().zip(approved.registers);
    let began_at = std::iter::once((WIPES, approved.wipes_began_at));
    let holds = |register| if register == WIPES { proven.wipes_began_at } else { proven.register(register) };
    match pinned.chain(began_at).find(|(register, contents)| holds(*register) != *contents) {
        Some((register, _)) => Err(Unproven::Changed { register, secure_boot }),
        None => Ok(()),
    }
}

/// A credential on its way, and what a TPM that holds the attestation key would find in it.
pub(crate) struct Challenge {
    secret: Zeroizing<[u8; attestation::SECRET_BYTES]>,
}

impl std::fmt::Debug for Challenge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Challenge")
    }
}

impl Challenge {
    /// A credential for the TPM that a node names, to be opened with the key that signed its quote.
    pub(crate) fn new(proven: &Proven, random: CredentialRandom) -> Result<(Self, Credential), Unproven> {
        let made = make_credential(&proven.endorsement, proven.attestation, &random)?;
        let credential = Credential { object: made.object, seed: made.seed };
        Ok((Self { secret: random.secret }, credential))
    }

    /// Whether it was opened.
    pub(crate) fn check(&self, opened: &CredentialOpened) -> Result<(), Unproven> {
        match &opened.secret {
            Err(why) => Err(Unproven::NotOpened(why.clone())),
            Ok(found) if secrets_match(found, &self.secret) => Ok(()),
            Ok(_) => Err(Unproven::OtherSecret),
        }
    }
}

const _: () =
    assert!(QUOTED.len() == PINNED.len() + 3, "boot loader and image by policy, wipes by their log");

/// For the sample of a ledger.
#[cfg(test)]
pub(crate) fn sample() -> Approved {
    Approved {
        endorsement: [1; 32],
        attestation: [2; 32],
        certificate: Some([3; 32]),
        registers: [[4; 32], [5; 32], [6; 32], [7; 32], [8; 32]],
        boot_loader: [9; 32],
        image: [10; 32],
        wipes_began_at: [0; 32],
    }
}
