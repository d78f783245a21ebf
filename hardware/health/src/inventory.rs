//! What the machine is: board, processors, memory, disks, interfaces.

use std::io::{BufRead, BufReader, Read};

use serde::{Deserialize, Serialize};

use crate::board::{Board, BoardLine};
use crate::disk::Disk;
use crate::link::Interface;
use crate::locate::light_of;
use crate::memory::Dimm;
use crate::readings::{Readings, Roots};
use crate::tree::{Tree, cleaned};

/// Longest part of `/proc/cpuinfo` that is read: it has about 1.5 KiB for each of a server's processors.
const CPUINFO_BYTES_MAX: u64 = 4 << 20;

/// Longest line of it that is looked at: the longest lists what the processor can.
const CPUINFO_LINE_BYTES_MAX: usize = 8192;

/// What the firmware says of the machine (`/sys/class/dmi/id`). Serial numbers are for root only, mostly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Who made it.
    pub vendor: Option<String>,
    /// What it is called.
    pub product: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Who made the board.
    pub board_vendor: Option<String>,
    /// What the board is called.
    pub board: Option<String>,
    /// Version of the firmware.
    pub firmware: Option<String>,
    /// Date of the firmware.
    pub firmware_date: Option<String>,
}

/// Its processors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processors {
    /// What the first is called.
    pub model: Option<String>,
    /// How many run programs.
    pub threads: u64,
}

/// A disk, and whether somebody can be led to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryDisk {
    /// The disk.
    #[serde(flatten)]
    pub disk: Disk,
    /// Whether its light is on; `None` where it has none.
    pub located: Option<bool>,
}

/// What the machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// The machine.
    pub machine: Machine,
    /// The name of the board profile in use.
    pub board: Option<String>,
    /// Its processors.
    pub processors: Processors,
    /// Memory that programs can use, in bytes.
    pub memory_bytes: u64,
    /// The modules, where a driver shows them.
    pub dimms: Vec<Dimm>,
    /// The disks.
    pub disks: Vec<InventoryDisk>,
    /// The network interfaces.
    pub interfaces: Vec<Interface>,
    /// General-purpose lines that the board's profile knows of.
    pub lines: Vec<BoardLine>,
}

impl Inventory {
    /// From what was read, and what does not change.
    pub fn of(roots: &Roots, readings: &Readings, board: Option<&Board>) -> Self {
        let located =
            |disk: &Disk| light_of(&roots.sys, &disk.name, board).and_then(|light| light.is_on(&roots.sys));
        let disks = readings.disks.iter().map(|read| &read.disk);
        Self {
            machine: machine(&roots.sys),
            board: board.map(|board| board.name.clone()),
            processors: processors(&roots.proc),
            memory_bytes: memory_bytes(&roots.proc),
            dimms: readings.memory.iter().flat_map(|controller| controller.dimms.iter().cloned()).collect(),
            disks: disks.map(|disk| InventoryDisk { disk: disk.clone(), located: located(disk) }).collect(),
            interfaces: readings.interfaces.clone(),
            lines: board.map_or_else(Vec::new, |board| board.lines.clone()),
        }
    }
}

fn machine(sys: &Tree) -> Machine {
    let attribute = |name: &str| sys.text(&format!("class/dmi/id/{name}"));
    Machine {
        vendor: attribute("sys_vendor"),
        product: attribute("product_name"),
        serial: attribute("product_serial"),
        board_vendor: attribute("board_vendor"),
        board: attribute("board_name"),
        firmware: attribute("bios_version"),
        firmware_date: attribute("bios_date"),
    }
}

/// Line by line: the whole is long on machines with many processors.
fn processors(proc: &Tree) -> Processors {
    let mut processors = Processors::default();
    let Some(file) = proc.open("cpuinfo") else { return processors };
    let mut lines = BufReader::new(file.take(CPUINFO_BYTES_MAX));
    let mut line = Vec::new();
    loop {
        line.clear();
        let len = u64::try_from(CPUINFO_LINE_BYTES_MAX).unwrap_or(u64::MAX);
        match (&mut lines).take(len).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return processors,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let Some((key, value)) = text.split_once(':') else { continue };
        match key.trim() {
            "processor" => processors.threads += 1,
            "model name" if processors.model.is_none() => processors.model = cleaned(value.as_bytes()),
            _ => {}
        }
    }
}

/// `/proc/meminfo` counts in KiB.
fn memory_bytes(proc: &Tree) -> u64 {
    let text = proc.text("meminfo").unwrap_or_default();
    let mut words = text.split_ascii_whitespace().skip_while(|word| *word != "MemTotal:");
    let kib: u64 = words.nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    kib.saturating_mul(1024)
}
