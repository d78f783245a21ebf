//! A device that an earlier version wrote, as a file in this repository: the sectors that are not zero.
//!
//! The formats of single parts have golden samples beside their code (pool, lease frames, ledger, key hierarchy). This is
//! all of them together, as a user's disk holds them: a pool, a block volume, an object store, sealed under known keys.
//!
//! ```text
//! "NLDEVICE"   8 bytes
//! length of the device, 8 bytes, little-endian
//! per sector: its number, 8 bytes, little-endian; 4096 bytes
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use device::{Device, SimulatedDevice};
use units::ByteLen;

const MAGIC: &[u8; 8] = b"NLDEVICE";
const SECTOR_BYTES: usize = 4096;

/// Where a golden device lies.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// Writes down what `device` holds.
pub fn encode(device: &SimulatedDevice) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&device.len().0.to_le_bytes());
    for (number, sector) in device.content() {
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&sector);
    }
    bytes
}

/// A device that holds what was written down.
///
/// # Errors
/// Where the bytes are no such file.
pub fn decode(bytes: &[u8]) -> Result<Arc<SimulatedDevice>> {
    let rest = bytes.strip_prefix(MAGIC).context("not a device's sectors")?;
    let (len, sectors) = rest.split_first_chunk().context("cut in the header")?;
    ensure!(sectors.len() % (8 + SECTOR_BYTES) == 0, "cut in a sector");
    let device = SimulatedDevice::new(ByteLen(u64::from_le_bytes(*len)));
    for sector in sectors.chunks_exact(8 + SECTOR_BYTES) {
        let (number, content) = sector.split_first_chunk().context("a sector has a number")?;
        device.edit(u64::from_le_bytes(*number), |page| page.copy_from_slice(content));
    }
    Ok(device)
}
