use keyring::{KeyGone, KeyHandle, Keyring};
use sealing::{Bound, Clear, seal};
use units::{DomainId, Lba, SectorCount, VolumeEpoch};

fn reuse(keyring: &Keyring, key: KeyHandle) -> Result<u8, KeyGone> {
    let clear = Clear::zeroed(SectorCount(1));
    let bound = Bound { domain: DomainId([0; 16]), epoch: VolumeEpoch(1) };
    seal(clear, (keyring, key), bound, (Lba(0), 1))?;
    Ok(clear.as_bytes()[0])
}

fn main() {
    let _ = reuse;
}
