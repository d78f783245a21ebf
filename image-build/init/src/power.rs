//! Power buttons, by the kernel's input devices: of the chassis, of a management controller, of a hypervisor.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `struct input_event` where a `long` has 64 bits: time, type, code, value.
const EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;

/// Every device that has a power key.
#[derive(Debug)]
pub(crate) struct Buttons(Vec<File>);

/// The kernel shows the keys of a device as words in hexadecimal digits, the highest first.
fn has_power_key(capabilities: &str) -> bool {
    let words: Vec<&str> = capabilities.split_whitespace().collect();
    let (word, bit) = (usize::from(KEY_POWER / 64), KEY_POWER % 64);
    let word = words.len().checked_sub(1 + word).and_then(|at| u64::from_str_radix(words[at], 16).ok());
    word.is_some_and(|word| word >> bit & 1 == 1)
}

fn is_press(event: &[u8]) -> bool {
    let number = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    let value = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
    number(16) == EV_KEY && number(18) == KEY_POWER && value == PRESSED
}

impl Buttons {
    /// Opens them.
    pub(crate) fn open() -> Self {
        let devices = fs::read_dir("/sys/class/input").into_iter().flatten().flatten();
        let buttons = devices.filter_map(|device| {
            let keys = fs::read_to_string(device.path().join("device/capabilities/key")).ok()?;
            let node = Path::new("/dev/input").join(device.file_name());
            let open = || fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(node).ok();
            has_power_key(&keys).then(open).flatten()
        });
        Self(buttons.collect())
    }

    /// What to wait for.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }

    /// Whether one was pressed since the last call.
    pub(crate) fn pressed(&mut self) -> bool {
        let mut pressed = false;
        for file in &mut self.0 {
            let mut events = [0; 64 * EVENT_BYTES];
            while let Ok(read) = file.read(&mut events) {
                if read == 0 {
                    break;
                }
                pressed |= events[..read].chunks_exact(EVENT_BYTES).any(is_press);
            }
        }
        pressed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_key_is_found_among_a_devices_keys() {
        // A power button of ACPI's; a keyboard that has one; a mouse, and nothing.
        for some in ["10000000000000 0\n", "1 0 10000000000000 0", "fff0000000000000 0"] {
            assert!(has_power_key(some), "{some}");
        }
        for none in ["70000 0 0 0 0", "0", "", "x y"] {
            assert!(!has_power_key(none), "{none}");
        }
    }

    #[test]
    fn a_press_is_the_power_key_going_down() {
        let event = |kind: u16, code: u16, value: i32| {
            let mut event = [0; EVENT_BYTES];
            event[16..18].copy_from_slice(&kind.to_ne_bytes());
            event[18..20].copy_from_slice(&code.to_ne_bytes());
            event[20..].copy_from_slice(&value.to_ne_bytes());
            is_press(&event)
        };
        assert!(event(EV_KEY, KEY_POWER, 1));
        assert!(!event(EV_KEY, KEY_POWER, 0) && !event(EV_KEY, KEY_POWER, 2));
        assert!(!event(EV_KEY, 30, 1) && !event(0, KEY_POWER, 1));
    }
}
