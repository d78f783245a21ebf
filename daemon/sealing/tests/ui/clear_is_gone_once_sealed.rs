use keyring::{KeyGone, KeyHandle, Keyring};
use sealing::{Clear, seal};
use units::{Lba, SectorCount};

fn reuse(keyring: &Keyring, key: KeyHandle) -> Result<u8, KeyGone> {
    let clear = Clear::zeroed(SectorCount(1));
    seal(clear, keyring, key, Lba(0))?;
    Ok(clear.as_bytes()[0])
}

fn main() {
    let _ = reuse;
}
