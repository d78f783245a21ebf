//! The light at a disk's place, by which somebody in front of the machine finds it: of an enclosure's slot (SES), of a PCIe slot
//! (NPEM), or one that the board's profile names.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::board::Board;
use crate::tree::Tree;

const ENCLOSURES: &str = "class/enclosure";
const LEDS: &str = "class/leds";

/// What the kernel appends to the name of a PCIe slot's light (Documentation/ABI/testing/sysfs-bus-pci, NPEM).
const PCIE_LIGHT: &str = ":enclosure:locate";

/// Why a light was not switched.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// There is no such disk.
    #[error("this machine has no disk {0}; `nightlatch node inventory` names them")]
    NoDisk(String),
    /// Nobody knows of a light for it.
    #[error(
        "no light is known for {0}: neither an enclosure nor a PCIe slot has one, and the board's profile names none"
    )]
    NoLight(String),
    /// The kernel did not take it.
    #[error("{}: {source}; give the node's user write access to it (the unit nightlatchd.service says how)", path.display())]
    Refused {
        /// The light's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A light.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Light {
    /// Where it is, below the tree's root.
    directory: String,
    /// The attribute that switches it.
    attribute: &'static str,
    /// What is written to switch it on.
    on: String,
}

/// The light of a disk.
pub fn light_of(sys: &Tree, disk: &str, board: Option<&Board>) -> Option<Light> {
    let device = sys.real(&format!("block/{disk}/device"))?;
    slot_light(sys, &device)
        .or_else(|| pcie_light(sys, &device))
        .or_else(|| board.and_then(|board| board_light(sys, &device, board)))
}

/// Every light that may be some disk's.
pub fn lights(sys: &Tree, board: Option<&Board>) -> Vec<Light> {
    let slots = slots(sys).filter(|slot| sys.exists(&format!("{slot}/locate"))).map(Light::slot);
    let leds = sys.names(LEDS).into_iter().filter(|led| {
        led.ends_with(PCIE_LIGHT)
            || board.is_some_and(|board| board.lights.iter().any(|light| light.led == *led))
    });
    slots.chain(leds.map(|led| Light::led(sys, &led))).collect()
}

fn slots(sys: &Tree) -> impl Iterator<Item = String> {
    sys.names(ENCLOSURES).into_iter().flat_map(|enclosure| {
        let enclosure = format!("{ENCLOSURES}/{enclosure}");
        sys.names(&enclosure).into_iter().map(move |slot| format!("{enclosure}/{slot}"))
    })
}

fn slot_light(sys: &Tree, device: &Path) -> Option<Light> {
    let holds = |slot: &String| sys.real(&format!("{slot}/device")).is_some_and(|held| held == device);
    let slot = slots(sys).find(|slot| sys.exists(&format!("{slot}/locate")) && holds(slot))?;
    Some(Light::slot(slot))
}

/// The light's name begins with the address of the slot's port or of what is in it; both are parts of the disk's path.
fn pcie_light(sys: &Tree, device: &Path) -> Option<Light> {
    let is_on_the_way =
        |led: &String| led.strip_suffix(PCIE_LIGHT).is_some_and(|address| has_part(device, address));
    Some(Light::led(sys, &sys.names(LEDS).into_iter().find(is_on_the_way)?))
}

fn board_light(sys: &Tree, device: &Path, board: &Board) -> Option<Light> {
    let light = board.lights.iter().find(|light| has_part(device, &light.port))?;
    let light = Light::led(sys, &light.led);
    sys.exists(&light.directory).then_some(light)
}

fn has_part(path: &Path, part: &str) -> bool {
    path.components().any(|component| component.as_os_str() == part)
}

impl Light {
    fn slot(slot: String) -> Self {
        Self { directory: slot, attribute: "locate", on: "1".to_owned() }
    }

    fn led(sys: &Tree, led: &str) -> Self {
        let directory = format!("{LEDS}/{led}");
        let on = sys.text(&format!("{directory}/max_brightness")).unwrap_or_else(|| "1".to_owned());
        Self { directory, attribute: "brightness", on }
    }

    /// The file that switches it.
    pub fn path(&self, sys: &Tree) -> PathBuf {
        sys.path(&format!("{}/{}", self.directory, self.attribute))
    }

    /// Whether it is on; `None` where that cannot be read.
    pub fn is_on(&self, sys: &Tree) -> Option<bool> {
        let value = sys.text(&format!("{}/{}", self.directory, self.attribute))?;
        Some(value != "0")
    }
}

/// Switches a light.
///
/// # Errors
/// Where the kernel does not take it.
pub fn set_light(sys: &Tree, light: &Light, on: bool) -> Result<(), LocateError> {
    let path = light.path(sys);
    let value = if on { light.on.as_str() } else { "0" };
    let written = fs::OpenOptions::new().write(true).open(&path).and_then(|mut file| {
        use io::Write;
        file.write_all(value.as_bytes())
    });
    written.map_err(|source| LocateError::Refused { path, source })
}
