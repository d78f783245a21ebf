//! The control: what the failing cases do with `Clear` is right for `Sealed`.

use device::{Device, DeviceError};
use keyring::{KeyHandle, Keyring};
use sealing::{Clear, seal};
use units::{ByteOffset, Lba, SectorCount};

fn store(device: &dyn Device, keyring: &Keyring, key: KeyHandle) -> Result<(), DeviceError> {
    let clear = Clear::zeroed(SectorCount(1));
    let Ok(sealed) = seal(clear, keyring, key, Lba(0)) else { return Ok(()) };
    device.write(ByteOffset(0), sealed.as_slice())
}

fn main() {
    let _ = store;
}
