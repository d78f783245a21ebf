use device::{Device, DeviceError};
use sealing::Clear;
use units::{ByteOffset, SectorCount};

fn store(device: &dyn Device) -> Result<(), DeviceError> {
    let clear = Clear::zeroed(SectorCount(1));
    device.write(ByteOffset(0), clear.as_bytes())
}

fn main() {
    let _ = store;
}
