//! A machine of a test's own: a distribution's kernel under QEMU, with a root made by the test.
//!
//! ```no_run
//! let mut guest = guest::Guest::builder().module("virtio_blk").drive("/tmp/disk".as_ref(), guest::Format::Raw).boot();
//! assert_eq!(guest.run("cat /sys/block/vda/size").expect_success().trim(), "131072");
//! ```
//!
//! The processor is emulated (TCG), so that no test depends on what the machine that runs it can virtualise; a boot takes
//! some ten seconds. The root is an archive in memory ([`archive`]): busybox, the programs and files that the test names with
//! the libraries they need, and kernel modules with what those depend on ([`kernel`]). There is no init system: one shell
//! script mounts what the kernel offers, loads the modules, configures the network, and from then on runs what comes over a
//! serial line ([`Guest::run`]). The other serial line is the kernel's console and becomes the log.
//!
//! QEMU, kernel and busybox are unpacked by `make clients` (tests/clients.sh) under `target/tools/guest`, and not installed.
//! A missing one fails the test.
//!
//! [`node`] puts a node of a test's installation into such a machine, while its keyholder and its clients stay outside.

pub mod appliance;
pub mod archive;
mod control;
pub mod kernel;
mod machine;
pub mod node;
mod qmp;
pub mod tpm;

pub use control::Output;
pub use machine::{Builder, Format, Guest};
