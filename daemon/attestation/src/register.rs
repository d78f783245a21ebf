//! Platform configuration registers: which are quoted, and what extending does.

use sha2::Digest as _;

/// A SHA-256 digest, and a register's contents.
pub type Digest = [u8; 32];

/// A register of the SHA-256 bank, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(u8);

impl Register {
    /// The firmware.
    pub const FIRMWARE: Self = Self(0);
    /// Firmware of cards.
    pub const OPTION_ROMS: Self = Self(2);
    /// What the firmware started.
    pub const BOOT_LOADER: Self = Self(4);
    /// Whether and with which keys the firmware checks what it starts.
    pub const SECURE_BOOT: Self = Self(7);
    /// The image, section by section.
    pub const IMAGE: Self = Self(11);
    /// What lies beside the image: the node's configuration, and a command line that is not the image's own.
    pub const CONFIGURATION: Self = Self(12);
    /// Extensions of the image.
    pub const EXTENSIONS: Self = Self(13);

    /// The register with this number; every TPM has 24.
    pub const fn new(number: u8) -> Option<Self> {
        if number < 24 { Some(Self(number)) } else { None }
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl std::fmt::Display for Register {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PCR {}", self.0)
    }
}

/// The register that every wipe extends.
///
/// 14, because nothing extends it once a kernel runs: firmware leaves it alone, shim puts its list of keys there before the
/// kernel starts, systemd uses 11, 12, 13 and 15 and the kernel 10. Until the machine is reset nobody can set it back
/// (PC Client profile: only 16 and 23 can be reset by software, 17 to 22 by a dynamic launch).
pub const WIPES: Register = Register(14);

/// The registers of a quote, in the order of their numbers.
pub const QUOTED: [Register; 8] = [
    Register::FIRMWARE,
    Register::OPTION_ROMS,
    Register::BOOT_LOADER,
    Register::SECURE_BOOT,
    Register::IMAGE,
    Register::CONFIGURATION,
    Register::EXTENSIONS,
    WIPES,
];

/// What a register holds that held `before` and was extended with `digest`.
pub fn extended(before: Digest, digest: Digest) -> Digest {
    sha2::Sha256::new().chain_update(before).chain_update(digest).finalize().into()
}

/// SHA-256.
pub fn digest(bytes: &[u8]) -> Digest {
    sha2::Sha256::digest(bytes).into()
}

/// The contents of the registers of [`QUOTED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers(pub [Digest; QUOTED.len()]);

impl Registers {
    /// What `register` holds; `None` for one that is not quoted.
    pub fn of(&self, register: Register) -> Option<Digest> {
        QUOTED.iter().zip(self.0).find(|(quoted, _)| **quoted == register).map(|(_, contents)| contents)
    }

    /// What a TPM signs of them.
    pub(crate) fn digest(&self) -> Digest {
        let mut hash = sha2::Sha256::new();
        self.0.iter().for_each(|contents| hash.update(contents));
        hash.finalize().into()
    }
}
