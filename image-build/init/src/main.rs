//! The appliance's first process.
//!
//! It begins in the initramfs: drivers for disks, the root that the image's own hash vouches for. It goes on in that root:
//! the node's configuration, drivers for the rest, network, state; then it starts the node and looks after it until the power
//! button, a restart or a failure ends the machine.
//!
//! Invariants:
//! - Nothing is executed but itself and the node (and, in the debug profile, a shell).
//! - Before the node starts, the kernel takes no further module and no other kernel.
//! - The machine ends only after the node has: its keys are wiped by then, or its memory was zeroed with it.
//! - Whatever it waits for, and whatever went wrong, the console says so.
//!
//! What it is not: a service manager. There is one service, and no socket by which anybody could give it orders.

mod console;
mod devices;
mod drivers;
mod failure;
mod machine;
mod measurements;
mod network;
mod node;
mod power;
mod root;
mod settings;

use std::process::ExitCode;
use std::time::Duration;

use nix::sys::reboot::RebootMode;

use crate::console::say;
use crate::failure::Failure;

/// Time to read why, before the machine tries again.
const FAILURE_SHOWN: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("nightlatch-init is the first process of an image, and nothing to be started by hand");
        return ExitCode::from(2);
    }
    let end = run().unwrap_or_else(|failure| {
        say(&format!("FAILED: {failure}"));
        say("the machine restarts in 10 seconds");
        std::thread::sleep(FAILURE_SHOWN);
        RebootMode::RB_AUTOBOOT
    });
    machine::end(end)
}

fn run() -> Result<RebootMode, Failure> {
    machine::mount_kernel_file_systems()?;
    console::open();
    let release = console::release();
    say(&format!("{release}: starting"));
    let mut drivers = drivers::Drivers::read()?;
    drivers.load_always()?;
    let root = root::find_and_map(&mut drivers)?;
    root::enter(&root)?;

    let mut drivers = drivers::Drivers::read()?;
    drivers.load_always()?;
    drivers.settle();
    devices::name_disks();
    measurements::show();
    machine::open_state()?;
    let plan = node::Plan::read()?;
    network::start(&mut drivers);
    plan.wait_for_pools(&mut drivers);
    settings::close_the_kernel()?;
    let buttons = power::Buttons::open();
    node::supervise(buttons)
}
