//! The cipher kernel: chosen by the environment or by what the processor can do, measured once, told in status.

use std::env::{self, VarError};
use std::sync::OnceLock;
use std::time::Instant;

use admin::api::CipherStatus;
use anyhow::{Context, bail};
use keyring::Kernel;

/// Forces a kernel, to compare or to get around one: its name, as status tells it.
const VARIABLE: &str = "NIGHTLATCH_CIPHER";

/// The kernel that [`VARIABLE`] names, or the fastest.
pub(crate) fn chosen() -> anyhow::Result<Kernel> {
    let kernel = match env::var(VARIABLE) {
        Ok(name) => Kernel::by_name(&name).with_context(|| format!("{VARIABLE} cannot be followed"))?,
        Err(VarError::NotPresent) => Kernel::fastest(),
        Err(VarError::NotUnicode(_)) => bail!("{VARIABLE} is not text: unset it, or name a cipher kernel"),
    };
    let status = status(kernel);
    tracing::info!(kernel = status.kernel, mib_per_second = status.mib_per_second, "cipher");
    Ok(kernel)
}

/// The kernel in use and its speed, which is measured at the first call: some milliseconds.
pub(crate) fn status(kernel: Kernel) -> CipherStatus {
    static MIB_PER_SECOND: OnceLock<u64> = OnceLock::new();
    let begun = Instant::now();
    let mib_per_second = *MIB_PER_SECOND.get_or_init(|| kernel.measure(|| begun.elapsed()) >> 20);
    CipherStatus { algorithm: "AES-256-XTS".into(), kernel: kernel.name().into(), mib_per_second }
}
