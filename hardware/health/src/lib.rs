//! How the machine's parts fare, and what the machine is: one source a file.
//!
//! ```text
//!   capture (nvme, ata) ── disk ──┐
//!   temperature, memory, link ────┼── Readings ── Judge (thresholds, what grew) ── Finding
//!   board (profiles as data) ─────┤
//!   locate, inventory ────────────┘
//! ```
//!
//! Invariants:
//! - Everything is read below a root that is handed in: the machine's, or a recorded one, which is each source's twin.
//! - What comes from a disk or from the kernel is parsed with limits and is a value, or an error, or nothing: no byte of it
//!   makes a parser panic.
//! - What a machine does not have is nothing, and what it has and cannot be read is said.
//! - A finding is about one part, has a code that stays the same, and says what to do.
//!
//! What it is not: it asks no disk ([`nightlatch-smart`](../smart) does, with the rights for that), knows no key, starts no
//! thread and has no clock.

#![forbid(unsafe_code)]

mod ata;
mod board;
mod capture;
mod disk;
mod inventory;
mod judge;
mod link;
mod locate;
mod memory;
mod nvme;
mod readings;
mod temperature;
mod tree;

pub use ata::{ATA_PAGE_BYTES, AtaError, AtaSmart, Attribute};
pub use board::{Board, BoardError, BoardLight, BoardLine, BoardSensor, Boards, LineActive, LineMeaning};
pub use capture::{CAPTURE_BYTES_MAX, Capture, CaptureError, Page, SelfVerdict, capture_name};
pub use disk::{Bus, Disk, DiskHealth, DiskState, Warning, disks, disks_below};
pub use inventory::{Inventory, InventoryDisk, Machine, Processors};
pub use judge::{Code, Finding, Judge, Severity, Thresholds};
pub use link::{Interface, interfaces};
pub use locate::{Light, LocateError, light_of, lights, set_light};
pub use memory::{Controller, Dimm, controllers};
pub use nvme::{NVME_PAGE_BYTES, NvmeError, NvmeSmart};
pub use readings::{ReadDisk, Readings, Roots};
pub use temperature::{Temperature, temperatures};
pub use tree::Tree;
