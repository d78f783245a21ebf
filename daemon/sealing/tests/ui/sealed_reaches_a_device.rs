//! The control: what the failing cases do with `Clear` is right for `Sealed`.

use device::{Device, DeviceError};
use keyring::{KeyHandle, Keyring};
use sealing::{Bound, Clear, seal};
use units::{ByteOffset, DomainId, Lba, SectorCount, VolumeEpoch};

fn store(device: &dyn Device, keyring: &Keyring, key: KeyHandle) -> Result<(), DeviceError> {
    let clear = Clear::zeroed(SectorCount(1));
    let bound = Bound { domain: DomainId([0; 16]), epoch: VolumeEpoch(1) };
    let Ok(sealed) = seal(clear, (keyring, key), bound, (Lba(0), 1)) else { return Ok(()) };
    device.write(ByteOffset(0), sealed.as_slice())
}

fn main() {
    let _ = store;
}
